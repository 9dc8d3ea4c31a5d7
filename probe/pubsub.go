package probe

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/lag-monitor/lag-monitor/internal/conn"
)

// PubSub publishes heartbeats to a topic of Google Pub/Sub.
type PubSub struct {
	conn.PubSub `yaml:",inline"`
	// Topic is the id or the full name of the topic.
	Topic string `yaml:"topic,omitempty"`
	// Body is the template of the message's data.
	Body Template `yaml:"body,omitempty"`
	// Attributes are further attributes, templates, at most 98: the filter of a subscription may ask for them.
	// `lag-monitor-heartbeat` and `traceparent` are always sent.
	Attributes map[string]Template `yaml:"attributes,omitempty"`
	// OrderingKeys is how many ordering keys get a heartbeat at each tick, up to 100; 0: heartbeats have no ordering key.
	OrderingKeys int `yaml:"ordering_keys,omitempty"`
	// OrderingKey is the template of the key, 1 to 1024 bytes.
	OrderingKey Template `yaml:"ordering_key,omitempty"`
}

const (
	maxPubSubAttributes = 98 // of 100, two are ours
	maxPubSubName       = 256
	maxPubSubValue      = 1024
	maxPubSubLanes      = 100
)

// pubsubKey is a key for each probe and lane.
var pubsubKey = MustTemplate("lag-monitor-{{ .Probe }}-{{ .Lane }}")

// NewPubSub returns the defaults.
func NewPubSub() *PubSub { return &PubSub{PubSub: conn.DefaultPubSub(), Body: defaultBody} }

// Validate implements Config.
func (c *PubSub) Validate() error {
	errs := []error{c.PubSub.Validate(), conn.Prefix("body", CheckToken(c.Body))}
	if c.Topic == "" {
		errs = append(errs, conn.Field("topic", "which topic? write its id, or projects/PROJECT/topics/ID"))
	} else if _, err := c.Full("topics", c.Topic); err != nil {
		errs = append(errs, conn.Prefix("topic", err))
	}
	if len(c.Attributes) > maxPubSubAttributes {
		errs = append(errs, conn.Field("attributes", "there are %d: at most %d, beside the two of lag-monitor", len(c.Attributes), maxPubSubAttributes))
	}
	for _, name := range slices.Sorted(maps.Keys(c.Attributes)) {
		switch {
		case name == Header || name == TraceHeader:
			errs = append(errs, conn.Field("attributes."+name, "is written by lag-monitor itself"))
		case name == "" || len(name) > maxPubSubName || strings.HasPrefix(name, "goog"):
			errs = append(errs, conn.Field("attributes."+name, "is not the name of an attribute: 1 to %d bytes, not beginning with goog", maxPubSubName))
		}
	}
	if c.OrderingKeys < 0 || c.OrderingKeys > maxPubSubLanes {
		errs = append(errs, conn.Field("ordering_keys", "%d is out of range: 0 to %d", c.OrderingKeys, maxPubSubLanes))
	}
	if c.OrderingKeys == 0 && !c.OrderingKey.IsZero() {
		errs = append(errs, conn.Field("ordering_key", "goes with ordering_keys: how many?"))
	} else if key, err := c.key(Sample()); err != nil {
		errs = append(errs, conn.Prefix("ordering_key", err))
	} else if next := Sample(); c.OrderingKeys > 1 {
		next.Lane++
		if other, err := c.key(next); err == nil && other == key {
			errs = append(errs, conn.Field("ordering_key", "is the same for each of the %d lanes: write {{ .Lane }} into it", c.OrderingKeys))
		}
	}
	return errors.Join(errs...)
}

// key returns the ordering key, and "" for none.
func (c *PubSub) key(m *Message) (string, error) {
	if c.OrderingKeys <= 0 {
		return "", nil
	}
	t := c.OrderingKey
	if t.IsZero() {
		t = pubsubKey
	}
	b, err := t.Render(m)
	if err == nil && (len(b) == 0 || len(b) > maxPubSubValue || !utf8.Valid(b)) {
		err = fmt.Errorf("it has %d bytes: UTF-8 is needed, 1 to %d bytes", len(b), maxPubSubValue)
	}
	return string(b), err
}

// Open implements Config.
func (c *PubSub) Open() (Injector, error) {
	topic, err := c.Full("topics", c.Topic)
	if err != nil {
		return nil, err
	}
	dialer, err := c.PubSub.Open()
	if err != nil {
		return nil, err
	}
	return &pubsubInjector{cfg: c, topic: topic, dialer: dialer}, nil
}

type pubsubInjector struct {
	cfg    *PubSub
	topic  string
	dialer *conn.PubSubDialer

	mu     sync.Mutex
	client *conn.PubSubClient // nil before the first use
	heard  time.Time          // when an answer came last, whatever it said
	closed bool
}

var errPubSubClosed = errors.New("the injector is closed")

// use returns the connection.
func (i *pubsubInjector) use() (*conn.PubSubClient, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.closed {
		return nil, errPubSubClosed
	}
	if i.client == nil {
		client, err := i.dialer.Dial()
		if err != nil {
			return nil, err
		}
		i.client = client
	}
	return i.client, nil
}

// judge looks at the end of a request that began at began. A connection that takes requests and has answered none since may be
// dead without knowing, for many minutes: the next request gets a new one.
func (i *pubsubInjector) judge(client *conn.PubSubClient, began time.Time, err error, sent bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	switch code := status.Code(err); {
	case code != codes.DeadlineExceeded && code != codes.Canceled:
		i.heard = time.Now()
	case code == codes.DeadlineExceeded && sent && i.heard.Before(began) && i.client == client:
		_ = client.Close()
		i.client = nil
	}
}

// Inject implements Injector.
func (i *pubsubInjector) Inject(ctx context.Context, m *Message) error {
	message, err := i.cfg.render(m)
	if err != nil {
		return Refused(err)
	}
	client, err := i.use()
	if err != nil {
		return Refused(err)
	}
	ctx, cancel := context.WithTimeout(conn.PubSubRoute(ctx, "topic", i.topic), time.Duration(i.cfg.RequestTimeout))
	defer cancel()
	ctx, sent := conn.TrackSent(ctx)
	began := time.Now()
	got, err := client.Publish(ctx, &pubsubpb.PublishRequest{Topic: i.topic, Messages: []*pubsubpb.PubsubMessage{message}})
	i.judge(client, began, err, sent.Load())
	if err == nil && len(got.GetMessageIds()) != 1 {
		return fmt.Errorf("pubsub %s: publish: the answer has %d ids for one message", i.topic, len(got.GetMessageIds()))
	}
	return pubsubOutcome(conn.PubSubErr(i.topic, "publish", err), status.Code(err), sent.Load())
}

// pubsubOutcome decides what an error means for the message. sent tells whether the request may have left.
func pubsubOutcome(err error, code codes.Code, sent bool) error {
	if err == nil || !sent {
		return Refused(err)
	}
	switch code {
	case codes.NotFound, codes.PermissionDenied, codes.Unauthenticated, codes.InvalidArgument, codes.ResourceExhausted, codes.FailedPrecondition, codes.OutOfRange, codes.Unimplemented:
		return Refused(err) // the service has looked at it, and said no
	}
	return err // Unavailable, Internal, Aborted, a deadline: nobody knows how far it came
}

func (c *PubSub) render(m *Message) (*pubsubpb.PubsubMessage, error) {
	body, err := c.Body.Render(m)
	if err != nil {
		return nil, fmt.Errorf("body: %w", err)
	}
	out := &pubsubpb.PubsubMessage{Data: body, Attributes: map[string]string{Header: m.Token}}
	if m.TraceParent != "" {
		out.Attributes[TraceHeader] = m.TraceParent
	}
	for name, t := range c.Attributes {
		v, err := t.Render(m)
		if err == nil && (len(v) > maxPubSubValue || !utf8.Valid(v)) {
			err = fmt.Errorf("it has %d bytes: UTF-8 is needed, at most %d bytes", len(v), maxPubSubValue)
		}
		if err != nil {
			return nil, fmt.Errorf("attributes.%s: %w", name, err)
		}
		out.Attributes[name] = string(v)
	}
	if out.OrderingKey, err = c.key(m); err != nil {
		return nil, fmt.Errorf("ordering_key: %w", err)
	}
	return out, nil
}

// Lanes implements Laner: each ordering key is one.
func (i *pubsubInjector) Lanes(context.Context) ([]uint32, error) {
	all := make([]uint32, max(i.cfg.OrderingKeys, 1))
	for n := range all {
		all[n] = uint32(n)
	}
	return all, nil
}

// Check implements Checker. Whether it may publish is only seen by publishing.
func (i *pubsubInjector) Check(ctx context.Context) error {
	client, err := i.use()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(conn.PubSubRoute(ctx, "topic", i.topic), time.Duration(i.cfg.RequestTimeout))
	defer cancel()
	_, err = client.GetTopic(ctx, &pubsubpb.GetTopicRequest{Topic: i.topic})
	return conn.PubSubErr(i.topic, "look it up", err)
}

// Close implements Injector.
func (i *pubsubInjector) Close() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.closed = true
	if i.client == nil {
		return nil
	}
	err := i.client.Close()
	i.client = nil
	return err
}
