package sinks

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"slices"
	"strconv"
	"sync"
	"time"

	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"github.com/google/uuid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/lag-monitor/lag-monitor/internal/conn"
)

// PubSub takes the messages out of a subscription of Google Pub/Sub, which is a copy of what is published to a topic.
type PubSub struct {
	conn.PubSub `yaml:",inline"`
	// Subscription is the id or the full name of the subscription.
	Subscription string `yaml:"subscription,omitempty"`
	// Dedicated says that nobody else reads the subscription: every message in it is received and acknowledged.
	Dedicated bool `yaml:"dedicated,omitempty"`
	// Create makes the subscription where it does not exist. It is never deleted.
	Create *PubSubCreate `yaml:"create,omitempty"`
	// AckDeadline is how long a message that was handed out is not handed out again, 10s to 10m in whole seconds. What was
	// on its way over a connection that is lost comes that much later.
	AckDeadline conn.Duration `yaml:"ack_deadline,omitempty"`
}

// PubSubCreate is a subscription that does not exist yet.
type PubSubCreate struct {
	// Topic is the id or the full name of the topic that it belongs to.
	Topic string `yaml:"topic,omitempty"`
	// Filter lets only some messages into it, by their attributes; "" lets in all.
	Filter string `yaml:"filter,omitempty"`
	// Expiration is after how long without a reader the service deletes it, 1d or more; 0: a week. It keeps messages for half of
	// that time, a week at most.
	Expiration conn.Duration `yaml:"expiration,omitempty"`
}

const (
	pubsubHeader = "lag-monitor-heartbeat"
	// pubsubPing is the time between two requests for a sign of life, and pubsubPong that in which the service always gives one.
	pubsubPing = 10 * time.Second
	pubsubPong = 15 * time.Second
	// pubsubLong is how long a stream lives before its end is taken for an ordinary one: the service ends each now and then.
	pubsubLong = time.Minute
	// pubsubOutstanding and pubsubBytes bound what is handed out and not acknowledged.
	pubsubOutstanding = 1000
	pubsubBytes       = 16 << 20
	// pubsubAcks is how many messages one request acknowledges.
	pubsubAcks = 500
	// pubsubLeave is how long the last acknowledgements may take when the sink ends.
	pubsubLeave = 500 * time.Millisecond
	// pubsubUnsettled bounds what is remembered of messages that could not be acknowledged.
	pubsubUnsettled = 10_000
	// pubsubKept is the shortest time for which a subscription may keep messages.
	pubsubKept = 10 * time.Minute
)

// NewPubSub returns the defaults.
func NewPubSub() *PubSub {
	return &PubSub{PubSub: conn.DefaultPubSub(), AckDeadline: conn.Duration(30 * time.Second)}
}

// expiration returns Expiration or its default.
func (c *PubSubCreate) expiration() time.Duration {
	if c.Expiration == 0 {
		return 7 * 24 * time.Hour
	}
	return time.Duration(c.Expiration)
}

// Validate implements Config.
func (c *PubSub) Validate() error {
	errs := []error{c.PubSub.Validate()}
	if c.Subscription == "" {
		errs = append(errs, conn.Field("subscription", "which subscription? write its id, or projects/PROJECT/subscriptions/ID"))
	} else if _, err := c.Full("subscriptions", c.Subscription); err != nil {
		errs = append(errs, conn.Prefix("subscription", err))
	}
	if !c.Dedicated {
		errs = append(errs, conn.Field("dedicated", "a subscription can only be listened on by taking its messages: make one of the monitor's own, which is a copy, and say dedicated: true if nobody else reads it"))
	}
	if d := time.Duration(c.AckDeadline); d < 10*time.Second || d > 10*time.Minute || d%time.Second != 0 {
		errs = append(errs, conn.Field("ack_deadline", "%s is not valid: whole seconds from 10s to 10m", c.AckDeadline))
	}
	if c.Create != nil {
		if c.Create.Topic == "" {
			errs = append(errs, conn.Field("create.topic", "a subscription to which topic? write its id, or projects/PROJECT/topics/ID"))
		} else if _, err := c.Full("topics", c.Create.Topic); err != nil {
			errs = append(errs, conn.Prefix("create.topic", err))
		}
		if len(c.Create.Filter) > 256 {
			errs = append(errs, conn.Field("create.filter", "it has %d bytes: at most 256", len(c.Create.Filter)))
		}
		if c.Create.expiration() < 24*time.Hour {
			errs = append(errs, conn.Field("create.expiration", "%s is too short: 1d or more", c.Create.Expiration))
		}
	}
	return errors.Join(errs...)
}

// Open implements Config.
func (c *PubSub) Open() (Sink, error) {
	name, err := c.Full("subscriptions", c.Subscription)
	if err != nil {
		return nil, err
	}
	s := &pubsubSink{c: c, name: name, client: uuid.NewString(), wake: make(chan struct{}, 1), unsettled: make(map[string]*pubsubTaken)}
	if c.Create != nil {
		if s.topic, err = c.Full("topics", c.Create.Topic); err != nil {
			return nil, err
		}
	}
	if s.dialer, err = c.PubSub.Open(); err != nil {
		return nil, err
	}
	return s, nil
}

// pubsubSink takes messages out of a subscription. The service keeps its position: what was acknowledged.
type pubsubSink struct {
	c           *PubSub
	name, topic string
	client      string // names this sink to the service
	dialer      *conn.PubSubDialer
	wake        chan struct{} // there is something to acknowledge

	kept time.Duration // for which the subscription keeps messages; of Run alone

	mu        sync.Mutex
	unsettled map[string]*pubsubTaken // delivered, and perhaps coming again, by message id
	// What the journal does not have yet is not acknowledged: it comes again should the process be killed. The journal asks
	// for the position, writes, and asks again.
	delivered, asked, written uint64
	journal                   bool
	read                      time.Time // when the subscription was read last
}

// pubsubTaken is a message that was delivered and has to be acknowledged.
type pubsubTaken struct {
	ack  string // empty: it could not be, or was; it is when it comes again
	seq  uint64
	at   time.Time
	hold bool // until the journal has it
}

// Position implements Resumer. What is left in the subscription is the position; when it was read last tells whether
// something may have been too old to be left.
func (s *pubsubSink) Position() map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.journal = true
	if s.asked > s.written || s.delivered > s.asked {
		s.nudge()
	}
	s.written, s.asked = s.asked, s.delivered
	if s.read.IsZero() {
		return map[string]string{}
	}
	return map[string]string{s.name: s.read.UTC().Format(time.RFC3339)}
}

// Resume implements Resumer.
func (s *pubsubSink) Resume(parts map[string]string) {
	if t, err := time.Parse(time.RFC3339, parts[s.name]); err == nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.read = t
	}
}

func (s *pubsubSink) nudge() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Run implements Sink.
func (s *pubsubSink) Run(ctx context.Context, f *Feed) error {
	client, err := s.dialer.Dial()
	if err != nil {
		return err
	}
	defer client.Close()
	defer s.leave(client)
	if err = s.prepare(ctx, client, f); err == nil {
		for ctx.Err() == nil {
			began := time.Now()
			err = s.stream(ctx, client, f)
			if time.Since(began) < pubsubLong || !pubsubEnd(err) {
				break
			}
		}
	}
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// pubsubEnd reports whether a stream has ended as each does now and then, by the service's word.
func pubsubEnd(err error) bool {
	return (status.Code(err) == codes.Unavailable || errors.Is(err, io.EOF)) && !errors.Is(err, errPubSubSilent)
}

// request bounds a request about the subscription.
func (s *pubsubSink) request(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(conn.PubSubRoute(ctx, "subscription", s.name), time.Duration(s.c.RequestTimeout))
}

// prepare makes the subscription if it is to be made, and tells what may have become of messages while nobody read.
func (s *pubsubSink) prepare(ctx context.Context, client *conn.PubSubClient, f *Feed) error {
	made, err := s.create(ctx, client)
	if err != nil {
		return err
	}
	s.mu.Lock()
	read := s.read
	s.mu.Unlock()
	if made {
		f.Gap("created") // there may have been one before, which had expired
	}
	got, err := s.get(ctx, client)
	switch code := status.Code(err); {
	case err == nil:
		s.kept = got.GetMessageRetentionDuration().AsDuration()
	case code == codes.PermissionDenied || code == codes.Unimplemented:
		s.kept = 0 // reading needs no permission to look
	default:
		return conn.PubSubErr(s.name, "look it up", err)
	}
	if err == nil {
		if err := s.usable(got); err != nil {
			return err
		}
	}
	if !read.IsZero() && time.Since(read) > max(s.kept, pubsubKept)*9/10 {
		f.Gap("expired")
	}
	return nil
}

func (s *pubsubSink) get(ctx context.Context, client *conn.PubSubClient) (*pubsubpb.Subscription, error) {
	ctx, cancel := s.request(ctx)
	defer cancel()
	return client.GetSubscription(ctx, &pubsubpb.GetSubscriptionRequest{Subscription: s.name})
}

// usable says why a subscription hands out nothing to who asks.
func (s *pubsubSink) usable(got *pubsubpb.Subscription) error {
	switch {
	case got.GetDetached():
		return conn.WithClass(conn.Missing, fmt.Errorf("pubsub %s: it is detached from its topic", s.name))
	case got.GetTopic() == "_deleted-topic_":
		return conn.WithClass(conn.Missing, fmt.Errorf("pubsub %s: its topic has been deleted", s.name))
	case got.GetPushConfig().GetPushEndpoint() != "" || got.GetBigqueryConfig().GetTable() != "" || got.GetCloudStorageConfig().GetBucket() != "":
		return fmt.Errorf("pubsub %s: it pushes its messages elsewhere: a pull subscription is needed", s.name)
	}
	return nil
}

// create makes the subscription if it is missing, and reports whether it was.
func (s *pubsubSink) create(ctx context.Context, client *conn.PubSubClient) (bool, error) {
	if s.c.Create == nil {
		return false, nil
	}
	ctx, cancel := s.request(ctx)
	defer cancel()
	_, err := client.CreateSubscription(ctx, &pubsubpb.Subscription{
		Name: s.name, Topic: s.topic, Filter: s.c.Create.Filter,
		AckDeadlineSeconds:       int32(time.Duration(s.c.AckDeadline) / time.Second),
		MessageRetentionDuration: durationpb.New(min(s.c.Create.expiration()/2, 7*24*time.Hour)), // has to be less than the other
		ExpirationPolicy:         &pubsubpb.ExpirationPolicy{Ttl: durationpb.New(s.c.Create.expiration())},
		Labels:                   map[string]string{"made-by": "lag-monitor"},
	})
	if status.Code(err) == codes.AlreadyExists {
		return false, nil
	}
	return err == nil, conn.PubSubErr(s.name, "create it", err)
}

func (s *pubsubSink) silent() error { return conn.PubSubErr(s.name, "receive", errPubSubSilent) }

var errPubSubSilent = conn.WithClass(conn.Network, errors.New("the stream has gone silent"))

// stream reads until the stream ends.
func (s *pubsubSink) stream(ctx context.Context, client *conn.PubSubClient, f *Feed) error {
	ctx, cancel := context.WithCancelCause(conn.PubSubRoute(ctx, "subscription", s.name))
	defer cancel(nil)
	// The first answer takes no longer than any request.
	first := time.AfterFunc(time.Duration(s.c.RequestTimeout), func() { cancel(s.silent()) })
	defer first.Stop()
	why := func(err error) error {
		if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
			return cause
		}
		return conn.PubSubErr(s.name, "receive", err)
	}
	stream, err := client.StreamingPull(ctx)
	if err != nil {
		return why(err)
	}
	if err := stream.Send(&pubsubpb.StreamingPullRequest{
		Subscription: s.name, ClientId: s.client,
		StreamAckDeadlineSeconds: int32(time.Duration(s.c.AckDeadline) / time.Second),
		MaxOutstandingMessages:   pubsubOutstanding, MaxOutstandingBytes: pubsubBytes,
		ProtocolVersion: 1, // the service answers an empty request
	}); err != nil {
		_, err = stream.Recv() // which says why
		return why(err)
	}

	answers := make(chan struct{}, 1)
	var beside sync.WaitGroup
	defer beside.Wait()
	defer cancel(nil) // before the wait
	start := func(work func() error) {
		beside.Go(func() {
			var err error
			defer func() {
				if err != nil {
					cancel(err)
				}
			}()
			defer conn.Contain(&err)
			err = work()
		})
	}
	start(func() error { return s.keep(ctx, stream, answers) })
	start(func() error { return s.acknowledge(ctx, client, f) })

	for ready := false; ; {
		got, err := stream.Recv()
		if err != nil {
			return why(err)
		}
		asked := time.Now()
		if !ready {
			ready = true
			first.Stop()
			f.Ready() // the subscription keeps what comes from now on, and we may read it
		}
		select {
		case answers <- struct{}{}:
		default:
		}
		f.Skip(0) // alive, whatever there is
		s.deliver(f, got.GetReceivedMessages(), asked)
	}
}

// keep asks for a sign of life again and again, from the start, and ends the stream that gives none. A stream may
// stall without any other sign.
func (s *pubsubSink) keep(ctx context.Context, stream pubsubpb.Subscriber_StreamingPullClient, answers <-chan struct{}) error {
	ping := time.NewTimer(0)
	defer ping.Stop()
	patience := time.NewTimer(pubsubPing + pubsubPong)
	defer patience.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-answers:
			patience.Reset(pubsubPing + pubsubPong)
		case <-patience.C:
			return s.silent()
		case <-ping.C:
			// An error of Send is that of Recv. It cannot wait: a hundred of these fit into any window.
			_ = stream.Send(&pubsubpb.StreamingPullRequest{})
			ping.Reset(pubsubPing)
		}
	}
}

// deliver passes on what is new.
func (s *pubsubSink) deliver(f *Feed, got []*pubsubpb.ReceivedMessage, at time.Time) {
	old := false
	for _, r := range got {
		m := r.GetMessage()
		id := m.GetMessageId()
		s.mu.Lock()
		t := s.unsettled[id]
		if t != nil {
			t.ack, t.at = r.GetAckId(), at // it was delivered, and only its end got lost
		}
		s.mu.Unlock()
		if t != nil {
			continue
		}
		out := s.message(r)
		ours := f.Deliver(out)
		old = old || s.kept > 0 && !out.Enqueued.IsZero() && time.Since(out.Enqueued) > s.kept*9/10
		s.mu.Lock()
		s.delivered++
		s.remember(id, &pubsubTaken{ack: r.GetAckId(), seq: s.delivered, at: at, hold: ours})
		s.mu.Unlock()
	}
	s.mu.Lock()
	s.read = at.Truncate(time.Minute) // or each would be written
	s.mu.Unlock()
	if old {
		f.Gap("expired") // some may have been older
	}
	if len(got) > 0 {
		s.nudge()
	}
}

// remember keeps what is to be acknowledged. The caller holds mu.
func (s *pubsubSink) remember(id string, t *pubsubTaken) {
	for old, o := range s.unsettled {
		if len(s.unsettled) < pubsubUnsettled {
			break
		}
		if o.ack == "" {
			delete(s.unsettled, old)
		}
	}
	s.unsettled[id] = t
}

// message makes a Message of one of the subscription.
func (s *pubsubSink) message(r *pubsubpb.ReceivedMessage) (out Message) {
	m := r.GetMessage()
	out.Body = m.GetData()
	if token, ok := m.GetAttributes()[pubsubHeader]; ok {
		out.Header = []byte(token)
	}
	if id := m.GetMessageId(); id != "" {
		h := fnv.New64a()
		fmt.Fprint(h, s.name, " ", id)
		out.ID = h.Sum64() | 1
	}
	if t := m.GetPublishTime(); t.IsValid() {
		out.Enqueued = t.AsTime()
	}
	if n := r.GetDeliveryAttempt(); n > 1 {
		out.Retries = int(n - 1)
	}
	if source := m.GetAttributes()["CloudPubSubDeadLetterSourceSubscription"]; source != "" {
		out.Dead = &Death{Reason: DeadDeliveryLimit, Queue: source}
		if n, err := strconv.Atoi(m.GetAttributes()["CloudPubSubDeadLetterSourceDeliveryCount"]); err == nil && n > 0 {
			out.Retries = n
		}
	}
	return out
}

// acknowledge acknowledges what was delivered until ctx ends.
func (s *pubsubSink) acknowledge(ctx context.Context, client *conn.PubSubClient, f *Feed) error {
	again := time.NewTicker(time.Second) // for what waits for the journal
	defer again.Stop()
	for {
		if err := s.settle(ctx, client, f); err != nil && ctx.Err() == nil {
			return conn.PubSubErr(s.name, "acknowledge", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-s.wake:
		case <-again.C:
		}
	}
}

// settle acknowledges what need not come again: the messages of others, and heartbeats that the journal has, if there
// is one.
func (s *pubsubSink) settle(ctx context.Context, client *conn.PubSubClient, f *Feed) error {
	for part := range slices.Chunk(s.settled(), pubsubAcks) {
		in := &pubsubpb.AcknowledgeRequest{Subscription: s.name}
		for _, one := range part {
			in.AckIds = append(in.AckIds, one[1])
		}
		asking, cancel := s.request(ctx)
		_, err := client.Acknowledge(asking, in)
		cancel()
		refused := status.Code(err) == codes.FailedPrecondition || status.Code(err) == codes.InvalidArgument
		if err != nil && !refused {
			return err
		}
		s.mu.Lock()
		for _, one := range part {
			switch t := s.unsettled[one[0]]; {
			case t == nil || t.ack != one[1]: // it has come again meanwhile
			case refused, t.hold:
				t.ack, t.at = "", time.Now() // a heartbeat that was acknowledged may be on its way again
			default:
				delete(s.unsettled, one[0])
			}
		}
		s.mu.Unlock()
		if refused && f != nil {
			f.Error(conn.PubSubErr(s.name, "acknowledge", err)) // exactly-once delivery: too late for some of them
		}
	}
	return nil
}

// settled returns the ids of messages that may be acknowledged, with their acknowledgement ids.
func (s *pubsubSink) settled() (ids [][2]string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	free := s.written
	if !s.journal {
		free = s.delivered
	}
	for id, t := range s.unsettled {
		age := time.Since(t.at)
		if t.ack == "" {
			if age > 2*time.Duration(s.c.AckDeadline) {
				delete(s.unsettled, id) // it would have come by now
			}
		} else if !t.hold || t.seq <= free || age > time.Duration(s.c.AckDeadline)/2 {
			ids = append(ids, [2]string{id, t.ack})
		}
	}
	return ids
}

// leave acknowledges what may be acknowledged at the end of Run, or it would come again.
func (s *pubsubSink) leave(client *conn.PubSubClient) {
	ctx, cancel := context.WithTimeout(context.Background(), pubsubLeave)
	defer cancel()
	_ = s.settle(ctx, client, nil)
}

// Check implements Checker. Whether it may receive is only seen by receiving.
func (s *pubsubSink) Check(ctx context.Context) error {
	client, err := s.dialer.Dial()
	if err != nil {
		return err
	}
	defer client.Close()
	got, err := s.get(ctx, client)
	if err == nil {
		return s.usable(got)
	}
	if s.c.Create == nil || status.Code(err) != codes.NotFound {
		return conn.PubSubErr(s.name, "look it up", err)
	}
	ctx, cancel := context.WithTimeout(conn.PubSubRoute(ctx, "topic", s.topic), time.Duration(s.c.RequestTimeout))
	defer cancel()
	_, err = client.GetTopic(ctx, &pubsubpb.GetTopicRequest{Topic: s.topic})
	return conn.PubSubErr(s.topic, "look it up", err)
}
