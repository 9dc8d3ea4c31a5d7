package probe

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/lag-monitor/lag-monitor/internal/conn"
)

// NATSConfig is `inject: {nats: …}`: a message on a NATS subject, by default into a JetStream stream.
type NATSConfig struct {
	// Broker says how to connect.
	Broker conn.NATS `yaml:",inline"`
	// Subject to publish to; a template.
	Subject Template `yaml:"subject"`
	// JetStream waits until a stream has stored the message. false is core NATS: the server has the
	// message, and gives it to whoever listens.
	JetStream bool `yaml:"jetstream"`
	// Stream is the stream that has to take the message; any other one refuses it. Default: whichever
	// takes the subject.
	Stream string `yaml:"stream,omitempty"`
	// Deduplicate sends a Nats-Msg-Id. A pipeline that redelivers into a stream with a duplicate window is
	// then seen as the stream shows it, without the repetition.
	Deduplicate bool `yaml:"deduplicate,omitempty"`
	// Body of the message; a template.
	Body Template `yaml:"body,omitempty"`
}

// NewNATS returns the defaults.
func NewNATS() *NATSConfig {
	return &NATSConfig{JetStream: true, Body: defaultBody}
}

// Validate implements Config.
func (c *NATSConfig) Validate() error {
	errs := []error{c.Broker.Validate()}
	if c.Subject.IsZero() {
		errs = append(errs, conn.Field("subject", "is required"))
	} else if s, err := c.Subject.Render(Sample()); err != nil {
		errs = append(errs, conn.Field("subject", "%w", err))
	} else {
		errs = append(errs, conn.Prefix("subject", conn.NATSSubject(string(s), false)))
	}
	if c.Stream != "" && !c.JetStream {
		errs = append(errs, conn.Field("stream", "cannot be combined with jetstream: false"))
	}
	if c.Deduplicate && !c.JetStream {
		errs = append(errs, conn.Field("deduplicate", "cannot be combined with jetstream: false"))
	}
	errs = append(errs, conn.Prefix("body", CheckToken(c.Body)))
	return errors.Join(errs...)
}

// Open implements Config.
func (c *NATSConfig) Open() (Injector, error) {
	i := &natsInjector{c: c}
	i.link = keep(i.open, func(l *natsLink) bool { return l.Context.Err() == nil && l.IsConnected() })
	return i, nil
}

type natsInjector struct {
	c    *NATSConfig
	link *keptLink[*natsLink]
}

// natsLink is a connection and what was learnt from it.
type natsLink struct {
	*conn.NATSLink
	js jetstream.JetStream
	// ttl says that the stream takes a TTL for each message.
	ttl bool
}

// open connects, and asks the stream what it takes.
func (i *natsInjector) open(ctx context.Context) (*natsLink, error) {
	raw, err := i.c.Broker.Connect(ctx, nil)
	if err != nil {
		return nil, err
	}
	l := &natsLink{NATSLink: raw}
	if i.c.JetStream {
		if l.js, err = jetstream.New(raw.Conn); err == nil {
			err = l.learn(ctx, i.c)
		}
		if err != nil {
			l.Close()
			return nil, err
		}
	}
	return l, nil
}

// Expires implements Expirer. A stream may take a TTL for each message; which one will is known when it
// answers, so any that could is believed to.
func (i *natsInjector) Expires() bool { return i.c.JetStream }

// ttlDisabled is the code with which a stream says that it takes no TTL for single messages.
const ttlDisabled jetstream.ErrorCode = 10166

// learnFor bounds the question whether the stream takes a TTL.
const learnFor = 2 * time.Second

// learn asks whether the stream takes a TTL for each message. An account that may not ask gets none. One
// that may not receive answers is refused before anything leaves: what it sends would be in doubt.
func (l *natsLink) learn(ctx context.Context, c *NATSConfig) error {
	soon, cancel := context.WithTimeout(ctx, learnFor)
	defer cancel()
	s, err := l.stream(soon, c)
	if err == nil {
		l.ttl = s.CachedInfo().Config.AllowMsgTTL
		return nil
	}
	switch {
	case errors.Is(err, conn.ErrNATSInbox):
		return err
	case errors.Is(err, nats.ErrPermissionViolation):
		return l.again(ctx, c)
	}
	if conn.ClassOf(err) == conn.Network {
		return err
	}
	return nil
}

// again reconnects after a refused question, since the refusal ended the connection's context.
func (l *natsLink) again(ctx context.Context, c *NATSConfig) error {
	l.Close()
	raw, err := c.Broker.Connect(ctx, nil)
	if err != nil {
		return err
	}
	l.NATSLink = raw
	l.js, err = jetstream.New(raw.Conn)
	return err
}

func (l *natsLink) stream(ctx context.Context, c *NATSConfig) (jetstream.Stream, error) {
	ctx, cancel := l.With(ctx)
	defer cancel()
	name := c.Stream
	if name == "" {
		subject, err := c.Subject.Render(Sample())
		if err != nil {
			return nil, fmt.Errorf("subject: %w", err)
		}
		if name, err = l.js.StreamNameBySubject(ctx, string(subject)); err != nil {
			return nil, fmt.Errorf("stream of subject %s: %w", subject, l.Err(err))
		}
	}
	s, err := l.js.Stream(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("stream %s: %w", name, l.Err(err))
	}
	return s, nil
}

// Inject implements Injector. Nothing is kept for a later connection: a message leaves at once or is
// refused.
func (i *natsInjector) Inject(ctx context.Context, m *Message) error {
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
	if i.c.JetStream {
		err = i.store(ctx, l, msg, m)
	} else {
		err = i.publish(ctx, l, msg)
	}
	if err != nil {
		return fmt.Errorf("subject %s: %w", msg.Subject, err)
	}
	return nil
}

func (i *natsInjector) message(m *Message) (*nats.Msg, error) {
	subject, err := i.c.Subject.Render(m)
	if err != nil {
		return nil, fmt.Errorf("subject: %w", err)
	}
	body, err := i.c.Body.Render(m)
	if err != nil {
		return nil, fmt.Errorf("body: %w", err)
	}
	// The header names are written as they are, not in their canonical form: NATS tells cases apart.
	return &nats.Msg{Subject: string(subject), Data: body,
		Header: nats.Header{Header: {m.Token}, TraceHeader: {m.TraceParent}}}, nil
}

// store publishes to a stream and waits for its word.
func (i *natsInjector) store(ctx context.Context, l *natsLink, msg *nats.Msg, m *Message) error {
	if i.c.Stream != "" {
		msg.Header[jetstream.ExpectedStreamHeader] = []string{i.c.Stream}
	}
	if i.c.Deduplicate {
		msg.Header[jetstream.MsgIDHeader] = []string{m.TraceParent}
	}
	if l.ttl && m.TTL > 0 {
		// The server takes whole seconds and no less than one.
		msg.Header[jetstream.MsgTTLHeader] = []string{max(time.Second, m.TTL.Round(time.Second)).String()}
	}
	ctx, cancel := l.With(ctx)
	defer cancel()
	_, err := l.js.PublishMsg(ctx, msg, jetstream.WithRetryAttempts(0))
	if err == nil {
		return nil
	}
	var answer *jetstream.APIError
	switch {
	case errors.As(err, &answer):
		// The stream says no: it is full, say, or the message too long.
		if answer.ErrorCode == ttlDisabled {
			i.link.drop(l) // it took them when the connection was made: ask again
		}
		return Refused(conn.WithClass(conn.Other, err))
	case errors.Is(err, jetstream.ErrNoStreamResponse), errors.Is(err, nats.ErrMaxPayload), errors.Is(err, nats.ErrBadSubject):
		return Refused(l.Err(err))
	}
	return i.failed(l, msg, err)
}

// publish sends and waits until the server has it.
func (i *natsInjector) publish(ctx context.Context, l *natsLink, msg *nats.Msg) error {
	ctx, cancel := l.With(ctx)
	defer cancel()
	err := l.PublishMsg(msg)
	if errors.Is(err, nats.ErrMaxPayload) || errors.Is(err, nats.ErrBadSubject) {
		return Refused(l.Err(err))
	}
	if err == nil {
		err = l.FlushWithContext(ctx)
	}
	if err == nil {
		err = l.Denied() // the server says so before it answers the flush
	}
	if err == nil {
		return nil
	}
	return i.failed(l, msg, err)
}

// failed closes the connection, which nobody should trust any more, and tells whether the message may
// be out.
func (i *natsInjector) failed(l *natsLink, msg *nats.Msg, err error) error {
	denied := l.Denied()
	err = l.Err(err)
	i.link.drop(l)
	if denied != nil {
		err = denied
		if l.DeniedTo(msg.Subject) {
			return Refused(denied)
		}
	}
	return err
}

// Check implements Checker.
func (i *natsInjector) Check(ctx context.Context) error {
	raw, err := i.c.Broker.Connect(ctx, nil)
	if err != nil {
		return err
	}
	defer raw.Close()
	if !i.c.JetStream {
		return nil
	}
	js, err := jetstream.New(raw.Conn)
	if err != nil {
		return err
	}
	_, err = (&natsLink{NATSLink: raw, js: js}).stream(ctx, i.c)
	if errors.Is(err, nats.ErrPermissionViolation) && !errors.Is(err, conn.ErrNATSInbox) {
		return nil // it need not be allowed to ask
	}
	return err
}

// Close implements Injector.
func (i *natsInjector) Close() error {
	i.link.close()
	return nil
}
