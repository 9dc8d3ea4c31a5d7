package probe

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/lag-monitor/lag-monitor/internal/conn"
)

// AMQPConfig is `inject: {amqp: …}`: a message to an exchange of RabbitMQ.
type AMQPConfig struct {
	// Broker says how to connect.
	Broker conn.AMQP `yaml:",inline"`
	// Exchange to publish to, which has to exist. Default: the default exchange, which puts a message into the
	// queue whose name is the routing key.
	Exchange string `yaml:"exchange,omitempty"`
	// RoutingKey of the message; a template. With the default exchange the name of a queue.
	RoutingKey Template `yaml:"routing_key,omitempty"`
	// Headers of the message, beside lag-monitor-heartbeat and traceparent: what a headers exchange routes by.
	Headers map[string]Template `yaml:"headers,omitempty"`
	// Mandatory has the broker give back a message that no queue takes, and then it is refused. false counts it as
	// accepted.
	Mandatory bool `yaml:"mandatory"`
	// Persistent asks the broker to write the message to disk.
	Persistent bool `yaml:"persistent"`
	// Priority of the message, for queues that have priorities: 0 to 255.
	Priority int `yaml:"priority,omitempty"`
	// ContentType of the body.
	ContentType string `yaml:"content_type"`
	// Body of the message; a template.
	Body Template `yaml:"body,omitempty"`
}

// NewAMQP returns the defaults.
func NewAMQP() *AMQPConfig {
	return &AMQPConfig{Mandatory: true, Persistent: true, ContentType: "application/json", Body: defaultBody}
}

// amqpName is how long the name of an exchange, a routing key or a header may be, in bytes.
const amqpName = 255

// Validate implements Config.
func (c *AMQPConfig) Validate() error {
	errs := []error{c.Broker.Validate()}
	if c.Exchange == "" && c.RoutingKey.IsZero() {
		errs = append(errs, conn.Field("routing_key", "is required without an exchange: the name of the queue to inject into"))
	}
	if len(c.Exchange) > amqpName {
		errs = append(errs, conn.Field("exchange", "is longer than %d bytes", amqpName))
	}
	if s, err := c.RoutingKey.Render(Sample()); err != nil {
		errs = append(errs, conn.Field("routing_key", "%w", err))
	} else if len(s) > amqpName {
		errs = append(errs, conn.Field("routing_key", "is longer than %d bytes", amqpName))
	}
	for name, t := range c.Headers {
		if name == "" || len(name) > amqpName || name == Header || name == TraceHeader {
			errs = append(errs, conn.Field("headers", "%q is not a header that can be set: 1 to %d bytes, not %s, not %s", name, amqpName, Header, TraceHeader))
		} else if _, err := t.Render(Sample()); err != nil {
			errs = append(errs, conn.Field("headers."+name, "%w", err))
		}
	}
	if c.Priority < 0 || c.Priority > 255 {
		errs = append(errs, conn.Field("priority", "%d is not from 0 to 255", c.Priority))
	}
	if len(c.ContentType) > amqpName {
		errs = append(errs, conn.Field("content_type", "is longer than %d bytes", amqpName))
	}
	errs = append(errs, conn.Prefix("body", CheckToken(c.Body)))
	return errors.Join(errs...)
}

// Open implements Config.
func (c *AMQPConfig) Open() (Injector, error) {
	i := &amqpInjector{c: c}
	i.link = keep(i.open, func(l *amqpLink) bool { return l.Context.Err() == nil && !l.ch.IsClosed() })
	return i, nil
}

type amqpInjector struct {
	c    *AMQPConfig
	link *keptLink[*amqpLink]
}

// amqpLink is a connection with one channel, on which the broker confirms what it has taken.
type amqpLink struct {
	*conn.AMQPLink
	ch       *amqp.Channel
	returned chan amqp.Return
	closing  chan *amqp.Error // why the broker has closed the channel

	mu   sync.Mutex
	back map[string]amqp.Return // by message id, of those that are waited for
	wait map[string]bool
	why  *amqp.Error // from closing
}

// amqpReturns is how many messages may come back between two looks. More cannot be under way: an injection
// whose deadline has passed takes the connection with it.
const amqpReturns = 4096

func (i *amqpInjector) open(ctx context.Context) (*amqpLink, error) {
	raw, err := i.c.Broker.Connect(ctx, "injects")
	if err != nil {
		return nil, err
	}
	l := &amqpLink{AMQPLink: raw, back: map[string]amqp.Return{}, wait: map[string]bool{}}
	err = raw.Do(ctx, amqpAnswer, func() (err error) {
		if l.ch, err = raw.Channel(); err != nil {
			return err
		}
		l.closing = l.ch.NotifyClose(make(chan *amqp.Error, 1))
		l.returned = l.ch.NotifyReturn(make(chan amqp.Return, amqpReturns))
		return l.ch.Confirm(false)
	})
	if err != nil {
		raw.Close()
		return nil, fmt.Errorf("channel: %w", err)
	}
	return l, nil
}

// amqpAnswer bounds each answer of the broker that is not that to a message.
const amqpAnswer = 5 * time.Second

// Expires implements Expirer: each message has a time to live.
func (i *amqpInjector) Expires() bool { return true }

// Inject implements Injector. Nothing is kept for a later connection: a message leaves at once or is refused.
func (i *amqpInjector) Inject(ctx context.Context, m *Message) error {
	if err := ctx.Err(); err != nil {
		return Refused(err)
	}
	key, msg, err := i.message(m)
	if err != nil {
		return Refused(err)
	}
	l, err := i.link.get(ctx)
	if err != nil {
		return Refused(err)
	}
	// What is sent to a broker that does not read comes in whenever it reads again.
	if err := l.Blocked(); err != nil {
		return Refused(err)
	}
	if err := i.publish(ctx, l, key, msg); err != nil {
		return fmt.Errorf("%s: %w", i.c.target(key), err)
	}
	return nil
}

// target names where a message goes.
func (c *AMQPConfig) target(key string) string {
	if c.Exchange == "" {
		return "queue " + key
	}
	return "exchange " + c.Exchange
}

func (i *amqpInjector) message(m *Message) (key string, msg amqp.Publishing, err error) {
	k, err := i.c.RoutingKey.Render(m)
	if err != nil {
		return "", msg, fmt.Errorf("routing_key: %w", err)
	}
	if len(k) > amqpName {
		return "", msg, fmt.Errorf("routing_key: is longer than %d bytes", amqpName)
	}
	body, err := i.c.Body.Render(m)
	if err != nil {
		return "", msg, fmt.Errorf("body: %w", err)
	}
	headers := amqp.Table{Header: m.Token, TraceHeader: m.TraceParent}
	for name, t := range i.c.Headers {
		v, err := t.Render(m)
		if err != nil {
			return "", msg, fmt.Errorf("headers.%s: %w", name, err)
		}
		headers[name] = string(v)
	}
	msg = amqp.Publishing{
		Headers: headers, Body: body, ContentType: i.c.ContentType, Priority: uint8(i.c.Priority),
		MessageId: m.TraceParent, Timestamp: m.Sent, AppId: conn.UserAgent, DeliveryMode: amqp.Transient,
	}
	if i.c.Persistent {
		msg.DeliveryMode = amqp.Persistent
	}
	if m.TTL > 0 {
		msg.Expiration = strconv.FormatInt(max(1, m.TTL.Milliseconds()), 10)
	}
	return string(k), msg, nil
}

// publish sends a message and waits for the broker's word.
func (i *amqpInjector) publish(ctx context.Context, l *amqpLink, key string, msg amqp.Publishing) error {
	l.expect(msg.MessageId)
	defer l.forget(msg.MessageId)
	var confirmed *amqp.DeferredConfirmation
	err := l.Do(ctx, amqpAnswer, func() (err error) {
		confirmed, err = l.ch.PublishWithDeferredConfirm(i.c.Exchange, key, i.c.Mandatory, false, msg)
		return err
	})
	if err != nil {
		return i.failed(l, err)
	}
	select {
	case <-confirmed.Done():
	case <-ctx.Done():
		// While the broker reads nothing it is no use to connect again, and what was sent meanwhile would pile up.
		if blocked := l.Blocked(); blocked != nil {
			return blocked
		}
		i.link.drop(l)
		return fmt.Errorf("no confirmation: %w", ctx.Err())
	}
	// The end of the channel makes a refusal of all that is not confirmed.
	if !confirmed.Acked() {
		if l.ch.IsClosed() {
			return i.failed(l, amqp.ErrClosed)
		}
		return Refused(conn.WithClass(conn.Other, errors.New("the broker does not take the message: a queue is full, or has failed")))
	}
	if r, ok := l.cameBack(msg.MessageId); ok {
		return Refused(conn.WithClass(conn.Missing, fmt.Errorf("the message came back: %d %s: no queue takes routing key %q", r.ReplyCode, r.ReplyText, key)))
	}
	return nil
}

func (l *amqpLink) expect(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.wait[id] = true
}

func (l *amqpLink) forget(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.take()
	delete(l.wait, id)
	delete(l.back, id)
}

// cameBack reports whether a message that is confirmed was given back before: the broker does that first.
func (l *amqpLink) cameBack(id string) (amqp.Return, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.take()
	r, ok := l.back[id]
	return r, ok
}

// take takes what has come back.
func (l *amqpLink) take() {
	for {
		select {
		case r, ok := <-l.returned:
			if !ok {
				return
			}
			if l.wait[r.MessageId] {
				r.Body, r.Headers = nil, nil
				l.back[r.MessageId] = r
			}
		default:
			return
		}
	}
}

// reason returns why the broker has closed the channel, nil if it has not.
func (l *amqpLink) reason() *amqp.Error {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case err, ok := <-l.closing:
		if ok {
			l.why = err
		}
	default:
	}
	return l.why
}

// failed gives the connection up, and tells whether the message may be out. A channel that the broker has closed
// with a reason has taken nothing since: the exchange is not there, or we may not publish to it.
func (i *amqpInjector) failed(l *amqpLink, err error) error {
	if why := l.reason(); why != nil && why.Server {
		switch why.Code {
		case amqp.NotFound, amqp.AccessRefused, amqp.PreconditionFailed, amqp.ContentTooLarge:
			i.link.drop(l)
			return Refused(conn.AMQPError(why))
		}
	}
	err = l.Err(err)
	i.link.drop(l)
	return err
}

// Check implements Checker.
func (i *amqpInjector) Check(ctx context.Context) error {
	l, err := i.open(ctx)
	if err != nil {
		return err
	}
	defer l.Close()
	key, _, err := i.message(Sample())
	if err != nil {
		return err
	}
	err = l.Do(ctx, amqpAnswer, func() error {
		if i.c.Exchange == "" {
			_, err := l.ch.QueueDeclarePassive(key, true, false, false, false, nil)
			return err
		}
		return l.ch.ExchangeDeclarePassive(i.c.Exchange, amqp.ExchangeTopic, true, false, false, false, nil)
	})
	if err != nil {
		return fmt.Errorf("%s: %w", i.c.target(key), err)
	}
	return nil
}

// Close implements Injector.
func (i *amqpInjector) Close() error {
	i.link.close()
	return nil
}
