package faults_test

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"cloud.google.com/go/pubsub/v2/pstest"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/lag-monitor/lag-monitor/internal/conn"
	"github.com/lag-monitor/lag-monitor/internal/servers"
)

const (
	pubsubProject     = "lag-monitor-faults"
	pubsubHead        = "/topics/head"
	pubsubAckDeadline = 10 * time.Second // after which a message that was handed out on a lost connection comes again
)

// pubsubRow is what a row has of its own: the fake of the client library, in this process, since the service cannot be had. It
// keeps nothing when it ends: what a row breaks is the way to it, or its answers.
type pubsubRow struct {
	fake    *pstest.Server
	refuses atomic.Bool // the head answers with errors, by turns
	refused atomic.Int64
}

// React implements pstest.Reactor.
func (p *pubsubRow) React(req any) (handled bool, ret any, err error) {
	if !p.refuses.Load() || !strings.HasSuffix(req.(*pubsubpb.PublishRequest).GetTopic(), pubsubHead) {
		return false, &pubsubpb.PublishResponse{}, nil
	}
	bad := []codes.Code{codes.Unavailable, codes.ResourceExhausted, codes.Internal, codes.PermissionDenied, codes.Aborted, codes.NotFound}
	code := bad[int(p.refused.Add(1))%len(bad)]
	return true, &pubsubpb.PublishResponse{}, status.Error(code, "not now")
}

// pubsubRows lists what is broken on the way to the fake of Pub/Sub, in the order of the table.
func pubsubRows() []*row {
	of := func(f *field) *pubsubRow { return f.server.(*pubsubRow) }
	rows := only(commonRows(), "accept_then_silent", "half_open", "sink_partition", "source_partition", "answers_lost", "monitor_killed",
		"duplicates", "late", "one_in_7_dropped", "reload")
	return append(rows,
		&row{
			name: "stream_stalls", does: "nothing passes on the destination's link for 35 s, nothing is closed until then", long: true, settles: 12 * time.Second,
			fault: func(t *testing.T, f *field) {
				f.destProxy.Set(servers.Faults{Silent: true})
				wait(t, 35*time.Second)
				f.destProxy.Cut() // the fake stands still for ever when it is asked for a sign of life on a stream that has ended
				f.destProxy.Set(servers.Faults{})
			},
		},
		&row{
			name: "streams_closed", does: "the service ends each stream after 2 s, for 10 s", settles: 12 * time.Second,
			fault: func(t *testing.T, f *field) {
				of(f).fake.SetStreamTimeout(2 * time.Second)
				f.destProxy.Cut() // the stream that it has began before
				wait(t, 10*time.Second)
				of(f).fake.SetStreamTimeout(0)
			},
		},
		&row{
			name: "redelivered", does: "for 12 s no acknowledgement reaches the service, which hands everything out again; then the connection is cut", unnoticed: true, settles: 12 * time.Second,
			fault: func(t *testing.T, f *field) {
				f.destProxy.Set(servers.Faults{SilentUp: true})
				wait(t, 12*time.Second)
				f.destProxy.Cut()
				f.destProxy.Set(servers.Faults{})
			},
		},
		&row{
			name: "head_answers", does: "by turns, the head answers UNAVAILABLE, RESOURCE_EXHAUSTED, INTERNAL, PERMISSION_DENIED, ABORTED and NOT_FOUND for 10 s",
			fault: func(t *testing.T, f *field) {
				of(f).refuses.Store(true)
				wait(t, 10*time.Second)
				of(f).refuses.Store(false)
				if n := of(f).refused.Load(); n < 6 {
					t.Errorf("%d answers; not each was given", n)
				}
			},
		},
	)
}

// openPubSub starts a fake for each row.
func openPubSub(*testing.T, []*row) func(*testing.T, *row) *pipeline { return pubsubPipeline }

func pubsubPipeline(t *testing.T, r *row) *pipeline {
	t.Helper()
	own := &pubsubRow{}
	own.fake = pstest.NewServer(pstest.ServerReactorOption{FuncName: "Publish", Reactor: own})
	t.Cleanup(func() { _ = own.fake.Close() })
	headProxy, destProxy := servers.Proxy(t, own.fake.Addr), servers.Proxy(t, own.fake.Addr)
	at := conn.DefaultPubSub()
	at.Project, at.Endpoint, at.Insecure = pubsubProject, own.fake.Addr, true
	dialer, err := at.Open()
	if err != nil {
		t.Fatal(err)
	}
	client, err := dialer.Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	head, dest := &pubsubQueue{own.fake, "projects/" + pubsubProject + pubsubHead}, &pubsubQueue{own.fake, "projects/" + pubsubProject + "/topics/destination"}
	for _, q := range []*pubsubQueue{head, dest} {
		if _, err := client.CreateTopic(t.Context(), &pubsubpb.Topic{Name: q.topic}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := client.CreateSubscription(t.Context(), &pubsubpb.Subscription{Name: "projects/" + pubsubProject + "/subscriptions/monitor", Topic: dest.topic,
		AckDeadlineSeconds: int32(pubsubAckDeadline / time.Second)}); err != nil {
		t.Fatal(err)
	}
	endpoint := func(p *servers.FaultProxy) string {
		return fmt.Sprintf("project: %s, endpoint: %q, insecure: true%s", pubsubProject, p.Addr, r.settings)
	}
	r.unordered = true // without keys
	return &pipeline{
		head: head, dest: dest, headProxy: headProxy, destProxy: destProxy, server: own, unproven: true,
		inject: fmt.Sprintf("pubsub: {topic: head, %s}", endpoint(headProxy)),
		sink:   fmt.Sprintf("pubsub: {subscription: monitor, dedicated: true, ack_deadline: %v, %s}", pubsubAckDeadline, endpoint(destProxy)),
	}
}

// pubsubQueue is a topic: the fake keeps all that was ever published.
type pubsubQueue struct {
	fake  *pstest.Server
	topic string
}

func (q *pubsubQueue) put(_ context.Context, _ int, body []byte) error {
	q.fake.Publish(q.topic, body, nil)
	return nil
}

func (q *pubsubQueue) follow(ctx context.Context, f func(message)) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for n := 0; ctx.Err() == nil; {
		found, _ := q.all(ctx)
		for _, m := range found[n:] {
			f(m)
		}
		n = len(found)
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

func (q *pubsubQueue) all(context.Context) (all []message, err error) {
	for _, m := range q.fake.Messages() {
		if m.Topic == q.topic {
			all = append(all, message{id: m.ID, body: m.Data, at: m.PublishTime})
		}
	}
	return all, nil
}
