package sinks

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"cloud.google.com/go/pubsub/v2/pstest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/lag-monitor/lag-monitor/internal/conn"
)

const (
	pubsubTestTopic = "projects/acme-billing/topics/invoices"
	pubsubTestName  = "projects/acme-billing/subscriptions/out"
)

// pubsubOn is a sink on a fake, whose subscription is missing.
func pubsubOn(t *testing.T, addr string, change func(*PubSub)) *pubsubSink {
	t.Helper()
	c := NewPubSub()
	c.Project, c.Subscription, c.Dedicated, c.Endpoint, c.Insecure = "acme-billing", "out", true, addr, true
	c.AckDeadline, c.RequestTimeout = conn.Duration(10*time.Second), conn.Duration(30*time.Second)
	if change != nil {
		change(c)
	}
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	s, err := c.Open()
	if err != nil {
		t.Fatal(err)
	}
	return s.(*pubsubSink)
}

func pubsubFake(t *testing.T) *pstest.Server {
	t.Helper()
	fake := pstest.NewServer()
	t.Cleanup(func() { _ = fake.Close() })
	if _, err := fake.GServer.CreateTopic(t.Context(), &pubsubpb.Topic{Name: pubsubTestTopic}); err != nil {
		t.Fatal(err)
	}
	return fake
}

func pubsubSubscribe(t *testing.T, fake *pstest.Server) {
	t.Helper()
	if _, err := fake.GServer.CreateSubscription(t.Context(), &pubsubpb.Subscription{Name: pubsubTestName, Topic: pubsubTestTopic, AckDeadlineSeconds: 10}); err != nil {
		t.Fatal(err)
	}
}

// pubsubRun runs the sink until stop is called, which returns what Run did.
func pubsubRun(t *testing.T, s Sink) (*taker, *Feed, func() error) {
	t.Helper()
	rec := new(taker)
	f := NewFeed(rec, nil)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, f) }()
	stop := func() error {
		cancel()
		select {
		case err := <-done:
			done <- err
			return err
		case <-time.After(30 * time.Second):
			return errors.New("Run does not end")
		}
	}
	t.Cleanup(func() { _ = stop() })
	return rec, f, stop
}

func pubsubAcked(fake *pstest.Server) (n int) {
	for _, m := range fake.Messages() {
		n += m.Acks
	}
	return n
}

// What is to be made is made once, with an end, and what may have been before is a gap.
func TestPubSubCreates(t *testing.T) {
	fake := pubsubFake(t)
	create := func(c *PubSub) {
		c.Create = &PubSubCreate{Topic: "invoices", Filter: "attributes:lag-monitor-heartbeat", Expiration: conn.Duration(48 * time.Hour)}
	}
	s := pubsubOn(t, fake.Addr, create)
	if err := s.Check(t.Context()); err != nil {
		t.Errorf("check of what is still to be made: %v", err)
	}
	rec, f, stop := pubsubRun(t, s)
	waitUntil(t, "ready", func() bool { return f.Stats().Ready })
	got, err := fake.GServer.GetSubscription(t.Context(), &pubsubpb.GetSubscriptionRequest{Subscription: pubsubTestName})
	if err != nil || got.Topic != pubsubTestTopic || got.Filter != "attributes:lag-monitor-heartbeat" || got.ExpirationPolicy.Ttl.AsDuration() != 48*time.Hour ||
		got.MessageRetentionDuration.AsDuration() != 24*time.Hour || got.AckDeadlineSeconds != 10 {
		t.Errorf("%v, %v", got, err)
	}
	if !slices.Equal(rec.gaps, []string{"created"}) {
		t.Errorf("gaps %q", rec.gaps)
	}
	fake.Publish(pubsubTestTopic, []byte("ordinary"), nil)
	fake.Publish(pubsubTestTopic, []byte("x"), map[string]string{pubsubHeader: tokenOf(1)})
	waitUntil(t, "the heartbeat in an attribute", func() bool { return slices.Equal(rec.arrived(), []uint64{1}) })
	if err := stop(); err != nil {
		t.Error(err)
	}
	if err := s.Check(t.Context()); err != nil {
		t.Errorf("check: %v", err)
	}

	rec, f, stop = pubsubRun(t, pubsubOn(t, fake.Addr, create))
	waitUntil(t, "ready again", func() bool { return f.Stats().Ready })
	if err := stop(); err != nil || len(rec.gaps) > 0 {
		t.Errorf("%v, gaps %q of a subscription that was there", err, rec.gaps)
	}
}

// What the journal does not have yet is not acknowledged, and what came again meanwhile is not delivered again.
func TestPubSubJournal(t *testing.T) {
	fake := pubsubFake(t)
	pubsubSubscribe(t, fake)
	s := pubsubOn(t, fake.Addr, func(c *PubSub) { c.AckDeadline = conn.Duration(10 * time.Minute) })
	s.Position() // there is a journal
	rec, _, stop := pubsubRun(t, s)
	fake.Publish(pubsubTestTopic, []byte(tokenOf(1)), nil)
	fake.Publish(pubsubTestTopic, []byte("ordinary"), nil)
	waitUntil(t, "the heartbeat", func() bool { return len(rec.arrived()) == 1 })
	waitUntil(t, "the message of others acknowledged", func() bool { return pubsubAcked(fake) == 1 })
	s.Position()
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	held := fake.Messages()[0]
	if held.Acks != 0 {
		t.Fatal("acknowledged before the journal had it")
	}
	rec, f, stop := pubsubRun(t, s)
	waitUntil(t, "ready", func() bool { return f.Stats().Ready })
	// The stream had ended, and the service hands it out once more.
	handOut := func(ack string) {
		s.deliver(f, []*pubsubpb.ReceivedMessage{{AckId: ack, Message: &pubsubpb.PubsubMessage{MessageId: held.ID, Data: held.Data}}}, time.Now())
	}
	handOut(held.ID + ":1")
	if n := pubsubAcked(fake); n != 1 {
		t.Errorf("%d messages are acknowledged, want 1", n)
	}
	s.Settle()
	acknowledged := func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.unsettled[held.ID].ack == ""
	}
	waitUntil(t, "acknowledged", func() bool { return pubsubAcked(fake) == 2 && acknowledged() })
	handOut("late") // it was under way once more when it was acknowledged
	waitUntil(t, "acknowledged again", acknowledged)
	if err := stop(); err != nil || len(rec.arrived()) > 0 || len(rec.gaps) > 0 {
		t.Errorf("%v; arrived again: %v, gaps %q", err, rec.arrived(), rec.gaps)
	}
}

func TestPubSubMessage(t *testing.T) {
	s := pubsubOn(t, "localhost:1", nil)
	at := time.Unix(1700000000, 123000000)
	in := &pubsubpb.ReceivedMessage{DeliveryAttempt: 3, Message: &pubsubpb.PubsubMessage{Data: []byte("x"), MessageId: "7", PublishTime: timestamppb.New(at)}}
	m := s.message(in)
	if m.Retries != 2 || m.ID == 0 || !m.Enqueued.Equal(at) || m.Dead != nil || m.Header != nil {
		t.Errorf("%+v", m)
	}
	id := m.ID
	in.Message.Attributes = map[string]string{"CloudPubSubDeadLetterSourceSubscription": "billing", "CloudPubSubDeadLetterSourceDeliveryCount": "5", pubsubHeader: "t"}
	in.DeliveryAttempt = 0
	m = s.message(in)
	if m.Dead == nil || *m.Dead != (Death{Reason: DeadDeliveryLimit, Queue: "billing"}) || m.Retries != 5 || m.ID != id || string(m.Header) != "t" {
		t.Errorf("%+v %+v", m, m.Dead)
	}
	in.Message.Attributes["CloudPubSubDeadLetterSourceDeliveryCount"] = "many"
	in.Message.MessageId = "8"
	if m = s.message(in); m.Retries != 0 || m.ID == id {
		t.Errorf("%+v", m)
	}
	if m = s.message(new(pubsubpb.ReceivedMessage)); m.ID != 0 || !m.Enqueued.IsZero() {
		t.Errorf("%+v of nothing", m)
	}
}

// A position that is older than messages are kept is a gap.
func TestPubSubExpired(t *testing.T) {
	fake := pubsubFake(t)
	pubsubSubscribe(t, fake) // which keeps messages for a week
	for age, want := range map[time.Duration]int{time.Hour: 0, 8 * 24 * time.Hour: 1} {
		s := pubsubOn(t, fake.Addr, nil)
		s.Resume(map[string]string{pubsubTestName: time.Now().Add(-age).Format(time.RFC3339)})
		rec, f, stop := pubsubRun(t, s)
		waitUntil(t, "ready", func() bool { return f.Stats().Ready })
		if err := stop(); err != nil || len(rec.gaps) != want {
			t.Errorf("%s: %v, gaps %q, want %d", age, err, rec.gaps, want)
		}
	}
}

// pubsubOdd is a service that behaves as it is told.
type pubsubOdd struct {
	pubsubpb.UnimplementedSubscriberServer
	subscription *pubsubpb.Subscription // nil: nobody may look
	answers      bool                   // gives a sign of life
	hands        []*pubsubpb.ReceivedMessage
	ackError     error
	streams      atomic.Int32
	acks         atomic.Int32
}

func (o *pubsubOdd) serve(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	pubsubpb.RegisterSubscriberServer(server, o)
	ended := make(chan struct{})
	go func() { defer close(ended); _ = server.Serve(ln) }()
	t.Cleanup(func() { server.Stop(); <-ended })
	return ln.Addr().String()
}

func (o *pubsubOdd) GetSubscription(context.Context, *pubsubpb.GetSubscriptionRequest) (*pubsubpb.Subscription, error) {
	if o.subscription == nil {
		return nil, status.Error(codes.PermissionDenied, "no")
	}
	return o.subscription, nil
}

func (o *pubsubOdd) Acknowledge(context.Context, *pubsubpb.AcknowledgeRequest) (*emptypb.Empty, error) {
	o.acks.Add(1)
	return new(emptypb.Empty), o.ackError
}

func (o *pubsubOdd) StreamingPull(s pubsubpb.Subscriber_StreamingPullServer) error {
	o.streams.Add(1)
	for first := true; ; first = false {
		in, err := s.Recv()
		if err != nil {
			return err
		}
		switch {
		case first && in.ProtocolVersion != 1:
			return status.Error(codes.InvalidArgument, "which protocol?")
		case first && len(o.hands) > 0:
			if err := s.Send(&pubsubpb.StreamingPullResponse{ReceivedMessages: o.hands}); err != nil {
				return err
			}
		case !first && o.answers:
			if err := s.Send(&pubsubpb.StreamingPullResponse{}); err != nil {
				return err
			}
		}
	}
}

// A stream that gives no sign of life is not ready, and is given up.
func TestPubSubSilent(t *testing.T) {
	o := new(pubsubOdd)
	s := pubsubOn(t, o.serve(t), func(c *PubSub) { c.RequestTimeout = conn.Duration(5 * time.Second) })
	f := NewFeed(new(taker), nil)
	// Before one that was alive would be given up.
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := s.Run(ctx, f); !errors.Is(err, errPubSubSilent) || conn.ClassOf(err) != conn.Network || f.Stats().Ready {
		t.Errorf("%v of class %s, ready %t", err, conn.ClassOf(err), f.Stats().Ready)
	}
}

// Who may not look at the subscription may read it nevertheless.
func TestPubSubMayNotLook(t *testing.T) {
	o := &pubsubOdd{answers: true}
	rec, f, stop := pubsubRun(t, pubsubOn(t, o.serve(t), nil))
	waitUntil(t, "ready", func() bool { return f.Stats().Ready })
	if err := stop(); err != nil || len(rec.gaps) > 0 || o.streams.Load() != 1 {
		t.Errorf("%v, gaps %q, %d streams", err, rec.gaps, o.streams.Load())
	}
}

// A subscription that hands out nothing is told of.
func TestPubSubUnusable(t *testing.T) {
	for want, row := range map[string]struct {
		subscription *pubsubpb.Subscription
		class        conn.Class
	}{
		"it is detached from its topic":      {&pubsubpb.Subscription{Detached: true}, conn.Missing},
		"its topic has been deleted":         {&pubsubpb.Subscription{Topic: "_deleted-topic_"}, conn.Missing},
		"it pushes its messages elsewhere":   {&pubsubpb.Subscription{PushConfig: &pubsubpb.PushConfig{PushEndpoint: "https://x"}}, conn.Other},
		"it pushes its messages elsewhere: ": {&pubsubpb.Subscription{BigqueryConfig: &pubsubpb.BigQueryConfig{Table: "x"}}, conn.Other},
	} {
		o := &pubsubOdd{subscription: row.subscription, answers: true}
		s := pubsubOn(t, o.serve(t), nil)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		for what, err := range map[string]error{"run": s.Run(ctx, NewFeed(new(taker), nil)), "check": s.Check(ctx)} {
			if err == nil || !strings.Contains(err.Error(), want) || conn.ClassOf(err) != row.class {
				t.Errorf("%s: %v of class %s, want %s of class %s", what, err, conn.ClassOf(err), want, row.class)
			}
		}
		cancel()
	}
}

// An acknowledgement that comes too late is told and not repeated; one that fails ends the stream.
func TestPubSubAcknowledge(t *testing.T) {
	hands := []*pubsubpb.ReceivedMessage{{AckId: "a", Message: &pubsubpb.PubsubMessage{MessageId: "1", Data: []byte(tokenOf(1))}}}
	o := &pubsubOdd{answers: true, hands: hands, ackError: status.Error(codes.FailedPrecondition, "too late")}
	s := pubsubOn(t, o.serve(t), nil)
	rec, f, stop := pubsubRun(t, s)
	waitUntil(t, "an error", func() bool { return f.Stats().LastError != nil })
	if err := stop(); err != nil || len(rec.arrived()) != 1 || len(s.unsettled) != 1 || len(s.settled()) != 0 {
		t.Errorf("%v, arrived %v, unsettled %v", err, rec.arrived(), s.unsettled)
	}

	o = &pubsubOdd{answers: true, hands: hands, ackError: status.Error(codes.Unavailable, "not now")}
	s = pubsubOn(t, o.serve(t), nil)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := s.Run(ctx, NewFeed(new(taker), nil)); err == nil || conn.ClassOf(err) != conn.Network || !strings.Contains(err.Error(), "acknowledge") {
		t.Errorf("%v", err)
	}
}

// What was handed out again before its acknowledgement came is acknowledged again, and not delivered again.
func TestPubSubHandedOutAgain(t *testing.T) {
	o := &pubsubOdd{answers: true, hands: []*pubsubpb.ReceivedMessage{{AckId: "a", Message: &pubsubpb.PubsubMessage{MessageId: "1", Data: []byte(tokenOf(1))}}}}
	s := pubsubOn(t, o.serve(t), nil)
	for n, want := range []int{1, 0} {
		rec, _, stop := pubsubRun(t, s)
		waitUntil(t, "acknowledged", func() bool { return int(o.acks.Load()) == n+1 })
		if err := stop(); err != nil || len(rec.arrived()) != want {
			t.Errorf("run %d: %v, arrived %v, want %d", n+1, err, rec.arrived(), want)
		}
	}
	for _, taken := range s.unsettled {
		taken.at = taken.at.Add(-3 * time.Duration(s.c.AckDeadline))
	}
	if s.settled(); len(s.unsettled) > 0 {
		t.Errorf("%v is remembered for ever", s.unsettled)
	}
}

func TestPubSubEnd(t *testing.T) {
	for _, row := range []struct {
		err  error
		want bool
	}{
		{conn.PubSubErr("s", "receive", status.Error(codes.Unavailable, "x")), true},
		{conn.PubSubErr("s", "receive", errors.New("x")), false},
		{conn.PubSubErr("s", "receive", status.Error(codes.NotFound, "x")), false},
		{conn.PubSubErr("s", "receive", errPubSubSilent), false},
	} {
		if got := pubsubEnd(row.err); got != row.want {
			t.Errorf("%v: %t", row.err, got)
		}
	}
}

func TestPubSubValidate(t *testing.T) {
	for _, row := range []struct {
		change func(*PubSub)
		want   string
	}{
		{func(*PubSub) {}, ""},
		{func(c *PubSub) { c.Subscription = "" }, "subscription: which subscription? write its id, or projects/PROJECT/subscriptions/ID"},
		{func(c *PubSub) { c.Dedicated = false }, "dedicated: a subscription can only be listened on by taking its messages"},
		{func(c *PubSub) { c.AckDeadline = conn.Duration(9 * time.Second) }, "ack_deadline: 9s is not valid: whole seconds from 10s to 10m"},
		{func(c *PubSub) { c.Create = &PubSubCreate{} }, "create.topic: a subscription to which topic? write its id, or projects/PROJECT/topics/ID"},
		{func(c *PubSub) { c.Create = &PubSubCreate{Topic: "invoices", Expiration: conn.Duration(time.Hour)} }, "create.expiration: 1h0m0s is too short: 1d or more"},
		{func(c *PubSub) { c.Create = &PubSubCreate{Topic: "invoices", Filter: strings.Repeat("x", 257)} }, "create.filter: it has 257 bytes: at most 256"},
	} {
		c := NewPubSub()
		c.Project, c.Subscription, c.Dedicated = "acme-billing", "out", true
		row.change(c)
		got := ""
		if err := c.Validate(); err != nil {
			got = err.Error()
		}
		if got != row.want && (row.want == "" || !strings.HasPrefix(got, row.want)) {
			t.Errorf("%q, want %q", got, row.want)
		}
	}
}
