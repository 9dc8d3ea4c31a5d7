package probe

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/Azure/go-amqp"

	"github.com/lag-monitor/lag-monitor/internal/conn"
)

// AMQP1Config is `inject: {amqp1: …}`: a message to an address of a broker that speaks AMQP 1.0.
type AMQP1Config struct {
	// Broker says how to connect.
	Broker conn.AMQP1 `yaml:",inline"`
	// Address to send to: a queue or a topic, as the broker writes it.
	Address string `yaml:"address"`
	// Capabilities that the address is asked for, such as queue or topic.
	Capabilities []string `yaml:"capabilities,omitempty"`
	// Subject of the message; a template. In RabbitMQ the routing key where the address has none.
	Subject Template `yaml:"subject,omitempty"`
	// Group that the message belongs to, such as a session of Azure Service Bus; a template.
	Group Template `yaml:"group,omitempty"`
	// Properties are application properties, beside lag-monitor-heartbeat and traceparent; templates.
	Properties map[string]Template `yaml:"properties,omitempty"`
	// Durable asks the broker not to lose the message when it is restarted.
	Durable bool `yaml:"durable"`
	// Priority of the message: 0 to 255.
	Priority int `yaml:"priority"`
	// ContentType of the body.
	ContentType string `yaml:"content_type"`
	// Body of the message; a template.
	Body Template `yaml:"body,omitempty"`
}

// amqp1Priority is the priority of a message that says none.
const amqp1Priority = 4

// NewAMQP1 returns the defaults.
func NewAMQP1() *AMQP1Config {
	return &AMQP1Config{Durable: true, Priority: amqp1Priority, ContentType: "application/json", Body: defaultBody}
}

// Validate implements Config.
func (c *AMQP1Config) Validate() error {
	errs := []error{c.Broker.Validate()}
	if c.Address == "" {
		errs = append(errs, conn.Field("address", "is required: the queue or topic to send to"))
	}
	for path, t := range map[string]Template{"subject": c.Subject, "group": c.Group} {
		if _, err := t.Render(Sample()); err != nil {
			errs = append(errs, conn.Field(path, "%w", err))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.Properties)) {
		if name == "" || name == Header || name == TraceHeader {
			errs = append(errs, conn.Field("properties", "%q is not a property that can be set: not empty, not %s, not %s", name, Header, TraceHeader))
		} else if _, err := c.Properties[name].Render(Sample()); err != nil {
			errs = append(errs, conn.Field("properties."+name, "%w", err))
		}
	}
	if c.Priority < 0 || c.Priority > 255 {
		errs = append(errs, conn.Field("priority", "%d is not from 0 to 255", c.Priority))
	}
	errs = append(errs, conn.Prefix("body", CheckToken(c.Body)))
	return errors.Join(errs...)
}

// Open implements Config.
func (c *AMQP1Config) Open() (Injector, error) {
	if _, err := c.Broker.TLS.Config(); err != nil {
		return nil, fmt.Errorf("tls: %w", err)
	}
	i := &amqp1Injector{c: c}
	i.link = keep(i.open, func(l *amqp1Link) bool { return l.Context.Err() == nil })
	return i, nil
}

type amqp1Injector struct {
	c    *AMQP1Config
	link *keptLink[*amqp1Link]
}

// amqp1Link is a connection with a link to the address, on which the broker settles each message.
type amqp1Link struct {
	*conn.AMQP1Link
	*amqp.Sender
}

// Close closes the connection, and the link with it.
func (l *amqp1Link) Close() { l.AMQP1Link.Close() }

func (i *amqp1Injector) open(ctx context.Context) (*amqp1Link, error) {
	l, err := i.c.Broker.Connect(ctx)
	if err != nil {
		return nil, err
	}
	ctx, stop := l.With(ctx)
	defer stop()
	unsettled := amqp.SenderSettleModeUnsettled
	s, err := l.NewSender(ctx, i.c.Address, &amqp.SenderOptions{SettlementMode: &unsettled, TargetCapabilities: i.c.Capabilities})
	if err != nil {
		err = fmt.Errorf("address %s: %w", i.c.Address, l.Err(err))
		l.Close()
		return nil, err
	}
	return &amqp1Link{l, s}, nil
}

// Expires implements Expirer: each message has a time to live.
func (i *amqp1Injector) Expires() bool { return true }

// Inject implements Injector. Nothing is kept for a later connection: a message leaves at once or is refused.
func (i *amqp1Injector) Inject(ctx context.Context, m *Message) error {
	if err := ctx.Err(); err != nil {
		return Refused(err)
	}
	msg, err := i.message(m)
	if err != nil {
		return Refused(err)
	}
	l, err := i.link.get(ctx)
	if err != nil {
		return Refused(err)
	}
	if err := i.send(ctx, l, msg); err != nil {
		return fmt.Errorf("address %s: %w", i.c.Address, err)
	}
	return nil
}

func (i *amqp1Injector) message(m *Message) (*amqp.Message, error) {
	body, err := i.c.Body.Render(m)
	if err != nil {
		return nil, fmt.Errorf("body: %w", err)
	}
	text := func(name string, t Template) *string {
		if t.IsZero() || err != nil {
			return nil
		}
		v, failed := t.Render(m)
		if failed != nil {
			err = fmt.Errorf("%s: %w", name, failed)
		}
		s := string(v)
		return &s
	}
	msg := amqp.NewMessage(body)
	msg.Header = &amqp.MessageHeader{Durable: i.c.Durable, Priority: uint8(i.c.Priority), TTL: m.TTL}
	msg.Properties = &amqp.MessageProperties{MessageID: m.TraceParent, Subject: text("subject", i.c.Subject), GroupID: text("group", i.c.Group)}
	if i.c.ContentType != "" {
		msg.Properties.ContentType = &i.c.ContentType
	}
	msg.ApplicationProperties = map[string]any{Header: m.Token, TraceHeader: m.TraceParent}
	for _, name := range slices.Sorted(maps.Keys(i.c.Properties)) {
		if v := text("properties."+name, i.c.Properties[name]); v != nil {
			msg.ApplicationProperties[name] = *v
		}
	}
	return msg, err
}

// amqp1Held is how long the client has to give a message back when there is no more time for it.
const amqp1Held = 500 * time.Millisecond

var errAMQP1Held = conn.WithClass(conn.Throttle, errors.New("the broker takes no more messages on the connection"))

// send sends a message and waits until the broker has settled it.
func (i *amqp1Injector) send(ctx context.Context, l *amqp1Link, msg *amqp.Message) error {
	both, stop := l.With(ctx)
	defer stop()
	// The client waits for the broker's session window without regard to the context.
	done := make(chan struct{})
	defer close(done)
	defer context.AfterFunc(both, func() {
		select {
		case <-done:
		case <-time.After(amqp1Held):
			l.Drop(errAMQP1Held)
		}
	})()
	receipt, err := l.SendWithReceipt(both, msg, nil)
	if err != nil {
		why := l.Err(err)
		if cause := context.Cause(l.Context); errors.Is(cause, errAMQP1Held) {
			why = cause
		}
		l.Drop(why)
		if unsent(err) {
			return Refused(why)
		}
		return why
	}
	state, err := receipt.Wait(both)
	if err != nil {
		err = fmt.Errorf("no answer to the message: %w", l.Err(err))
		l.Drop(err)
		return err
	}
	return amqp1Outcome(state)
}

// unsent reports whether an error of SendWithReceipt is the client's own: the message got no credit from the broker in
// time, or is larger than the broker takes. What the broker said may have come behind the message.
func unsent(err error) bool {
	var (
		said    *amqp.Error
		link    *amqp.LinkError
		session *amqp.SessionError
		lost    *amqp.ConnError
	)
	return errors.As(err, &said) && !errors.As(err, &link) && !errors.As(err, &session) && !errors.As(err, &lost)
}

// amqp1Outcome is what the broker's settlement of a message means. All but the first outcome leave the message with us.
func amqp1Outcome(state amqp.DeliveryState) error {
	switch s := state.(type) {
	case *amqp.StateAccepted:
		return nil
	case *amqp.StateRejected:
		if s.Error == nil {
			return Refused(conn.WithClass(conn.Other, errors.New("rejected, without a reason")))
		}
		return Refused(conn.AMQP1Error(fmt.Errorf("rejected: %w", s.Error)))
	case *amqp.StateReleased:
		return Refused(conn.WithClass(conn.Missing, errors.New("released: the address has nobody to give the message to, or cannot take it now")))
	case *amqp.StateModified:
		return Refused(conn.WithClass(conn.Other, errors.New("modified: the broker gives the message back")))
	}
	return conn.WithClass(conn.Other, fmt.Errorf("the broker settles the message with %T", state))
}

// Check implements Checker.
func (i *amqp1Injector) Check(ctx context.Context) error {
	l, err := i.open(ctx)
	if err != nil {
		return err
	}
	l.Close()
	return nil
}

// Close implements Injector.
func (i *amqp1Injector) Close() error {
	i.link.close()
	return nil
}
