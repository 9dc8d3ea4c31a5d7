package sinks

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/lag-monitor/lag-monitor/internal/conn"
)

// natsBacklog asks, and tells from when to when the answer is.
func natsBacklog(t *testing.T, s Sink) (found map[string]Backlog, from, to time.Time, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	from = time.Now()
	all, err := s.(Backlogger).Backlog(ctx)
	found = make(map[string]Backlog)
	for _, b := range all {
		found[strings.TrimSpace(b.Queue+" "+b.Group)] = b
	}
	return found, from, time.Now(), err
}

func TestNATSBacklog(t *testing.T) {
	w := natsServer(t)
	w.stream(jetstream.StreamConfig{})
	ctx := t.Context()
	queue, err := w.js.CreateStream(ctx, jetstream.StreamConfig{Name: "Q", Subjects: []string{"q"}, Retention: jetstream.WorkQueuePolicy})
	if err != nil {
		t.Fatal(err)
	}
	pull := func(stream, name string, filters ...string) jetstream.Consumer {
		c, err := w.js.CreateConsumer(ctx, stream, jetstream.ConsumerConfig{Durable: name, AckPolicy: jetstream.AckExplicitPolicy, FilterSubjects: filters})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	billing, worker := pull("S", "billing", "s.a", "s.c.>"), pull("Q", "worker")
	pull("S", "idle", "s.none")
	s := w.sink(func(c *NATSConfig) { c.Consumers = []string{"billing", "idle", "push", "Q/worker"} })

	w.publish("s.b", 1) // for nobody of these
	time.Sleep(50 * time.Millisecond)
	var stored [3][2]time.Time // when each was published, at the earliest and at the latest
	for i, subject := range []string{"s.a", "s.c.d", "s.a"} {
		stored[i][0] = time.Now()
		w.publish(subject, uint64(i+2))
		stored[i][1] = time.Now()
		time.Sleep(20 * time.Millisecond)
	}
	w.publish("q", 9, 10)
	check := func(what string, want map[string][2]float64, oldest int, missing string) {
		t.Helper()
		got, from, to, err := natsBacklog(t, s)
		if (err == nil) != (missing == "") || err != nil && (conn.ClassOf(err) != conn.Missing || !strings.Contains(err.Error(), missing)) {
			t.Errorf("%s: %v of class %s, want the mention of %q", what, err, conn.ClassOf(err), missing)
		}
		for name, w := range want {
			b, ok := got[name]
			if !ok || b.Messages != w[0] || b.Consumers != w[1] || (b.Seconds == 0) != (w[0] == 0) || b.Seconds < 0 {
				t.Errorf("%s: %s is %+v, want %v", what, name, b, w)
			}
		}
		if len(got) != len(want) {
			t.Errorf("%s: %+v, want %v", what, got, want)
		}
		if oldest >= 0 {
			if age, least, most := got["S billing"].Seconds, from.Sub(stored[oldest][1]).Seconds(), to.Sub(stored[oldest][0]).Seconds(); age < least || age > most {
				t.Errorf("%s: the oldest is %f s old, want %f to %f", what, age, least, most)
			}
		}
	}
	// What others have in the stream of theirs does not wait; what is in a work queue does.
	check("before anybody reads", map[string][2]float64{"S billing": {3, 0}, "S idle": {0, 0}, "Q": {2, 1}, "Q worker": {2, 0}}, 0, "push")
	batch, err := billing.Fetch(2)
	if err != nil {
		t.Fatal(err)
	}
	var got []jetstream.Msg
	for m := range batch.Messages() {
		got = append(got, m)
	}
	if err := got[0].DoubleAck(ctx); err != nil {
		t.Fatal(err)
	}
	check("one is acknowledged, one is not", map[string][2]float64{"S billing": {2, 0}, "S idle": {0, 0}, "Q": {2, 1}, "Q worker": {2, 0}}, 1, "push")
	if err := got[1].DoubleAck(ctx); err != nil {
		t.Fatal(err)
	}
	check("two are acknowledged", map[string][2]float64{"S billing": {1, 0}, "S idle": {0, 0}, "Q": {2, 1}, "Q worker": {2, 0}}, 2, "push")

	inbox := w.nc.NewInbox()
	if _, err := w.js.CreatePushConsumer(ctx, "S", jetstream.ConsumerConfig{Durable: "push", DeliverSubject: inbox, AckPolicy: jetstream.AckExplicitPolicy, FilterSubject: "s.b"}); err != nil {
		t.Fatal(err)
	}
	check("pushed to nobody", map[string][2]float64{"S billing": {1, 0}, "S idle": {0, 0}, "S push": {1, 0}, "Q": {2, 1}, "Q worker": {2, 0}}, 2, "")
	sub, err := w.nc.SubscribeSync(inbox)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sub.NextMsg(30 * time.Second); err != nil {
		t.Fatal(err)
	}
	m, err := worker.Next(jetstream.FetchMaxWait(30 * time.Second))
	if err != nil {
		t.Fatal(err)
	}
	if err := m.DoubleAck(ctx); err != nil {
		t.Fatal(err)
	}
	check("sent and not acknowledged", map[string][2]float64{"S billing": {1, 0}, "S idle": {0, 0}, "S push": {1, 1}, "Q": {1, 1}, "Q worker": {1, 0}}, 2, "")
	// A client that waits for messages asks for them.
	waiting, stop := context.WithCancel(ctx)
	defer stop()
	if _, err := billing.Fetch(1); err != nil {
		t.Fatal(err)
	}
	empty, err := w.js.Consumer(ctx, "S", "idle")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = empty.Next(jetstream.FetchContext(waiting))
	}()
	waitUntil(t, "one who waits", func() bool {
		got, _, _, err := natsBacklog(t, s)
		return err == nil && got["S idle"].Consumers == 1
	})
	stop()
	<-done
	if info, err := queue.Info(ctx); err != nil || info.State.Msgs != 1 {
		t.Errorf("the work queue has %+v, %v, want 1 message left", info.State, err)
	}
}

// Who may not read a message learns how many wait all the same.
func TestNATSBacklogWithoutMessages(t *testing.T) {
	w := natsServer(t, func(o *server.Options) {
		o.Users = []*server.User{{Username: "u", Password: "p", Permissions: &server.Permissions{
			Publish:   &server.SubjectPermission{Deny: []string{"$JS.API.STREAM.MSG.GET.>", "$JS.API.DIRECT.GET.>"}},
			Subscribe: &server.SubjectPermission{Allow: []string{">"}},
		}}, {Username: "admin", Password: "p"}}
		o.NoAuthUser = "admin"
	})
	w.stream(jetstream.StreamConfig{})
	for _, name := range []string{"one", "two"} {
		if _, err := w.js.CreateConsumer(t.Context(), "S", jetstream.ConsumerConfig{Durable: name, AckPolicy: jetstream.AckExplicitPolicy}); err != nil {
			t.Fatal(err)
		}
	}
	w.publish("s.a", 1)
	t.Setenv("NATS_PASSWORD", "p")
	s := w.sink(func(c *NATSConfig) {
		c.Broker.Username, c.Broker.Password, c.Consumers = "u", conn.Secret{Env: "NATS_PASSWORD"}, []string{"one", "two"}
	})
	got, _, _, err := natsBacklog(t, s)
	if conn.ClassOf(err) != conn.Auth {
		t.Errorf("%v of class %s, want auth", err, conn.ClassOf(err))
	}
	for _, name := range []string{"S one", "S two"} {
		if b := got[name]; b.Messages != 1 || b.Seconds >= 0 {
			t.Errorf("%s: %+v, want 1 message of an unknown age", name, b)
		}
	}
}
