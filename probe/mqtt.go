package probe

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/eclipse/paho.golang/paho"
	"github.com/eclipse/paho.golang/paho/session"

	"github.com/lag-monitor/lag-monitor/internal/conn"
)

// MQTTConfig is `inject: {mqtt: …}`: a message on a topic of an MQTT 5 broker. It is never retained.
type MQTTConfig struct {
	// Broker says how to connect.
	Broker conn.MQTT `yaml:",inline"`
	// ClientIDPrefix is how the client id begins. The rest is different for each connection, so that replicas do not
	// take it from each other.
	ClientIDPrefix string `yaml:"client_id_prefix,omitempty"`
	// Topic to publish to; a template.
	Topic Template `yaml:"topic,omitempty"`
	// QoS is 0 (the broker has read the message), 1 (it has taken it over) or 2 (it has taken it over once).
	QoS int `yaml:"qos"`
	// Mandatory says that a message which no subscription takes, where the broker says so, is an error that leaves open
	// what becomes of it. false counts it as accepted.
	Mandatory bool `yaml:"mandatory"`
	// Properties are user properties of the message, beside lag-monitor-heartbeat and traceparent; templates.
	Properties map[string]Template `yaml:"properties,omitempty"`
	// ContentType of the body.
	ContentType string `yaml:"content_type"`
	// Body of the message; a template.
	Body Template `yaml:"body,omitempty"`
}

// NewMQTT returns the defaults.
func NewMQTT() *MQTTConfig {
	return &MQTTConfig{Broker: conn.NewMQTT(), ClientIDPrefix: conn.UserAgent, QoS: 1, Mandatory: true, ContentType: "application/json", Body: defaultBody}
}

// mqttText is how long a text of the protocol may be, in bytes.
const mqttText = 65535

// Validate implements Config.
func (c *MQTTConfig) Validate() error {
	errs := []error{c.Broker.Validate()}
	if len(c.ClientIDPrefix) > 100 {
		errs = append(errs, conn.Field("client_id_prefix", "is longer than 100 bytes"))
	}
	if c.Topic.IsZero() {
		errs = append(errs, conn.Field("topic", "is required: such as orders/new"))
	} else if s, err := c.Topic.Render(Sample()); err != nil {
		errs = append(errs, conn.Field("topic", "%w", err))
	} else if err := conn.MQTTTopic(string(s)); err != nil {
		errs = append(errs, conn.Field("topic", "%w", err))
	}
	if c.QoS < 0 || c.QoS > 2 {
		errs = append(errs, conn.Field("qos", "%d is not 0, 1 or 2", c.QoS))
	}
	for _, name := range slices.Sorted(maps.Keys(c.Properties)) {
		if name == "" || len(name) > mqttText || name == Header || name == TraceHeader {
			errs = append(errs, conn.Field("properties", "%q is not a property that can be set: 1 to %d bytes, not %s, not %s", name, mqttText, Header, TraceHeader))
		} else if _, err := c.Properties[name].Render(Sample()); err != nil {
			errs = append(errs, conn.Field("properties."+name, "%w", err))
		}
	}
	if len(c.ContentType) > mqttText {
		errs = append(errs, conn.Field("content_type", "is longer than %d bytes", mqttText))
	}
	errs = append(errs, conn.Prefix("body", CheckToken(c.Body)))
	return errors.Join(errs...)
}

// Open implements Config.
func (c *MQTTConfig) Open() (Injector, error) {
	if _, err := c.Broker.TLS.Config(); err != nil {
		return nil, fmt.Errorf("tls: %w", err)
	}
	i := &mqttInjector{c: c}
	i.link = keep(i.connect, func(l *conn.MQTTLink) bool { return l.Context.Err() == nil })
	return i, nil
}

type mqttInjector struct {
	c    *MQTTConfig
	link *keptLink[*conn.MQTTLink]
}

// connect makes a connection whose session ends with it.
func (i *mqttInjector) connect(ctx context.Context) (*conn.MQTTLink, error) {
	return i.c.Broker.Connect(ctx, conn.MQTTSession{ClientID: conn.MQTTClientID(i.c.ClientIDPrefix)})
}

// Expires implements Expirer: each message has an expiry interval.
func (i *mqttInjector) Expires() bool { return true }

// Inject implements Injector. Nothing is kept for a later connection: a message leaves at once or is refused.
func (i *mqttInjector) Inject(ctx context.Context, m *Message) error {
	if err := ctx.Err(); err != nil {
		return Refused(err)
	}
	p, err := i.message(m)
	if err != nil {
		return Refused(err)
	}
	l, err := i.link.get(ctx)
	if err != nil {
		return Refused(err)
	}
	if err := i.publish(ctx, l, p); err != nil {
		return fmt.Errorf("topic %s: %w", p.Topic, err)
	}
	return nil
}

func (i *mqttInjector) message(m *Message) (*paho.Publish, error) {
	topic, err := i.c.Topic.Render(m)
	if err == nil {
		err = conn.MQTTTopic(string(topic))
	}
	if err != nil {
		return nil, fmt.Errorf("topic: %w", err)
	}
	body, err := i.c.Body.Render(m)
	if err != nil {
		return nil, fmt.Errorf("body: %w", err)
	}
	properties := &paho.PublishProperties{ContentType: i.c.ContentType}
	properties.User.Add(Header, m.Token).Add(TraceHeader, m.TraceParent)
	for _, name := range slices.Sorted(maps.Keys(i.c.Properties)) {
		v, err := i.c.Properties[name].Render(m)
		if err == nil && len(v) > mqttText {
			err = fmt.Errorf("is longer than %d bytes", mqttText)
		}
		if err != nil {
			return nil, fmt.Errorf("properties.%s: %w", name, err)
		}
		properties.User.Add(name, string(v))
	}
	if m.TTL > 0 {
		seconds := uint32(min(max(1, math.Ceil(m.TTL.Seconds())), math.MaxUint32))
		properties.MessageExpiry = &seconds
	}
	return &paho.Publish{Topic: string(topic), QoS: byte(i.c.QoS), Payload: body, Properties: properties}, nil
}

// noSubscription is the reason code of a message that the broker has taken and for which it knows no subscription. A rule
// or a bridge of the broker may have it all the same.
const noSubscription = 0x10

// publish sends a message and waits for the broker's word.
func (i *mqttInjector) publish(ctx context.Context, l *conn.MQTTLink, p *paho.Publish) error {
	both, stop := l.With(ctx)
	defer stop()
	answer, err := l.Publish(both, p)
	if err == nil && p.QoS == 0 {
		// Nothing answers the message itself, and the broker reads in order.
		err = l.Ping(both)
	}
	if answer != nil && answer.ReasonCode != 0 {
		said := ""
		if answer.Properties != nil {
			said = answer.Properties.ReasonString
		}
		if answer.ReasonCode == noSubscription && !i.c.Mandatory {
			return nil
		}
		reason := l.Reason(answer.ReasonCode, said)
		if answer.ReasonCode == packetUnknown || answer.ReasonCode == noSubscription {
			return reason
		}
		return Refused(reason)
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, paho.ErrInvalidArguments), errors.Is(err, session.ErrNoConnection), errors.Is(err, session.ErrPacketIdentifiersExhausted):
		return Refused(l.Err(err))
	case ctx.Err() != nil:
		// What was written may still wait on this side. It must not come in much later.
		err := fmt.Errorf("no answer to the message: %w", ctx.Err())
		l.Drop(err)
		return err
	}
	return l.Err(err)
}

// packetUnknown ends the second half of a message with QoS 2 of which the broker has lost the first.
const packetUnknown = 0x92

// Check implements Checker. It publishes nothing.
func (i *mqttInjector) Check(ctx context.Context) error {
	l, err := i.connect(ctx)
	if err != nil {
		return err
	}
	l.Close()
	return nil
}

// Close implements Injector.
func (i *mqttInjector) Close() error {
	i.link.close()
	return nil
}
