package sinks

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"github.com/lag-monitor/lag-monitor/internal/conn"
	"github.com/lag-monitor/lag-monitor/internal/heartbeat"
	"github.com/lag-monitor/lag-monitor/internal/servers"
)

// natsWorld is a server, and a connection of the test's own to it.
type natsWorld struct {
	t *testing.T
	*servers.NATSServer
	nc *nats.Conn
	js jetstream.JetStream
}

func natsServer(t *testing.T, change ...func(*server.Options)) *natsWorld {
	t.Helper()
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) })
	w := &natsWorld{t: t, NATSServer: servers.NATS(t, change...)}
	var err error
	if w.nc, err = nats.Connect(w.URL); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.nc.Close)
	if w.js, err = jetstream.New(w.nc); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *natsWorld) stream(c jetstream.StreamConfig) {
	w.t.Helper()
	c.Name, c.Subjects = "S", []string{"s.>"}
	if _, err := w.js.CreateStream(w.t.Context(), c); err != nil {
		w.t.Fatal(err)
	}
}

func (w *natsWorld) publish(subject string, seqs ...uint64) {
	w.t.Helper()
	for _, seq := range seqs {
		if _, err := w.js.Publish(w.t.Context(), subject, []byte(tokenOf(seq))); err != nil {
			w.t.Fatal(err)
		}
	}
}

func (w *natsWorld) sink(change func(*NATSConfig)) Sink {
	w.t.Helper()
	c := NewNATS()
	c.Broker.URL, c.Stream = w.URL, "S"
	change(c)
	if err := c.Validate(); err != nil {
		w.t.Fatal(err)
	}
	s, err := c.Open()
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

func (p *polling) waitReady(t *testing.T) *polling {
	t.Helper()
	waitUntil(t, "ready", func() bool { return p.feed.Stats().Ready })
	return p
}

func (p *polling) expect(t *testing.T, seqs ...uint64) {
	t.Helper()
	waitUntil(t, fmt.Sprintf("arrival of %v", seqs), func() bool { return len(p.arrived()) >= len(seqs) })
	if got := p.arrived(); !slices.Equal(got, seqs) {
		t.Errorf("arrived %v, want %v", got, seqs)
	}
}

// A stream that is not what it was when the sink went away is a gap, and what it holds is still read.
func TestNATSGaps(t *testing.T) {
	for _, c := range []struct {
		name   string
		config jetstream.StreamConfig
		away   func(w *natsWorld)
		gaps   []string
		want   []uint64
	}{
		{"nothing happened", jetstream.StreamConfig{}, func(w *natsWorld) { w.publish("s.a", 4, 5) }, nil, []uint64{4, 5}},
		{"trimmed", jetstream.StreamConfig{MaxMsgs: 2}, func(w *natsWorld) { w.publish("s.a", 4, 5, 6, 7) }, []string{"trimmed"}, []uint64{6, 7}},
		{"trimmed in the middle", jetstream.StreamConfig{MaxMsgsPerSubject: 2}, func(w *natsWorld) { w.publish("s.a", 4, 5); w.publish("s.b", 6) },
			[]string{"trimmed"}, []uint64{4, 5, 6}},
		{"purged", jetstream.StreamConfig{}, func(w *natsWorld) {
			w.publish("s.a", 4)
			s, err := w.js.Stream(w.t.Context(), "S")
			if err == nil {
				err = s.Purge(w.t.Context())
			}
			if err != nil {
				w.t.Fatal(err)
			}
			w.publish("s.a", 5)
		}, []string{"trimmed"}, []uint64{5}},
		{"created anew, shorter", jetstream.StreamConfig{}, func(w *natsWorld) {
			w.recreate()
			w.publish("s.a", 4)
		}, []string{"recreated"}, []uint64{4}},
		{"created anew, longer", jetstream.StreamConfig{}, func(w *natsWorld) {
			w.recreate()
			w.publish("s.a", 4, 5, 6, 7, 8)
		}, []string{"recreated"}, []uint64{4, 5, 6, 7, 8}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := natsServer(t)
			w.stream(c.config)
			w.publish("s.a", 1)
			sink := w.sink(func(*NATSConfig) {})
			first := poll(sink).waitReady(t)
			w.publish("s.a", 2, 3)
			first.expect(t, 2, 3)
			first.stop(t)
			c.away(w)
			// A new process with the old position finds out just the same.
			fresh := w.sink(func(*NATSConfig) {})
			fresh.(Resumer).Resume(sink.(Resumer).Position())
			for _, s := range []Sink{sink, fresh} {
				second := poll(s).waitReady(t)
				second.expect(t, c.want...)
				second.stop(t)
				if !slices.Equal(second.gaps, c.gaps) {
					t.Errorf("gaps %v, want %v", second.gaps, c.gaps)
				}
			}
		})
	}
}

func (w *natsWorld) recreate() {
	w.t.Helper()
	if err := w.js.DeleteStream(w.t.Context(), "S"); err != nil {
		w.t.Fatal(err)
	}
	w.stream(jetstream.StreamConfig{})
}

// While it runs, too: a deleted consumer or stream ends Run, which a new Run repairs.
func TestNATSConsumerGone(t *testing.T) {
	w := natsServer(t)
	w.stream(jetstream.StreamConfig{})
	sink := w.sink(func(*NATSConfig) {})
	run := poll(sink).waitReady(t)
	s, err := w.js.Stream(t.Context(), "S")
	if err != nil {
		t.Fatal(err)
	}
	for name := range s.ConsumerNames(t.Context()).Name() {
		if err := s.DeleteConsumer(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	w.publish("s.a", 1)
	if err := <-run.done; conn.ClassOf(err) != conn.Network {
		t.Errorf("Run without its consumer: %v", err)
	}
	run.cancel()
	run = poll(sink).waitReady(t)
	run.expect(t, 1)
	run.stop(t)
	if s, err = w.js.Stream(t.Context(), "S"); err != nil || s.CachedInfo().State.Consumers != 0 {
		t.Errorf("after Run the stream has %d consumers (%v), want none", s.CachedInfo().State.Consumers, err)
	}
}

// Only heartbeats of the subject are read, at their place in a stream with others.
func TestNATSFilter(t *testing.T) {
	w := natsServer(t)
	w.stream(jetstream.StreamConfig{})
	run := poll(w.sink(func(c *NATSConfig) { c.Stream, c.Subject = "", "s.*.out" })).waitReady(t)
	w.publish("s.a.in", 1)
	w.publish("s.a.out", 2)
	w.publish("s.b.out", 3)
	w.publish("s.b.in", 4)
	run.expect(t, 2, 3)
	last := time.Now()
	waitUntil(t, "caught up behind what is filtered out", func() bool { return run.feed.Stats().CaughtUp.After(last) })
	run.stop(t)
}

// A stream that gives each message to one reader is left alone unless it is ours.
func TestNATSRetention(t *testing.T) {
	for _, policy := range []jetstream.RetentionPolicy{jetstream.WorkQueuePolicy, jetstream.InterestPolicy} {
		t.Run(policy.String(), func(t *testing.T) {
			w := natsServer(t)
			w.stream(jetstream.StreamConfig{Retention: policy})
			refused := w.sink(func(*NATSConfig) {})
			for what, err := range map[string]error{"Check": refused.(Checker).Check(t.Context()), "Run": refused.Run(t.Context(), NewFeed(&taker{}, nil))} {
				if err == nil || !strings.Contains(err.Error(), strings.ToLower(policy.String())+" retention") || !strings.Contains(err.Error(), "dedicated: true") {
					t.Errorf("%s: %v", what, err)
				}
			}
			sink := w.sink(func(c *NATSConfig) { c.Dedicated = true })
			run := poll(sink).waitReady(t)
			w.publish("s.a", 1, 2)
			run.expect(t, 1, 2)
			run.stop(t)
			w.publish("s.a", 3)
			run = poll(sink).waitReady(t)
			w.publish("s.a", 4)
			// 3 may have been on its way to the first Run when that ended; it is then sent once more.
			waitUntil(t, "arrival of 3 and 4", func() bool { return len(run.arrived()) >= 2 })
			if got := slices.Sorted(slices.Values(run.arrived())); !slices.Equal(got, []uint64{3, 4}) {
				t.Errorf("arrived %v, want 3 and 4", got)
			}
			last := time.Now()
			waitUntil(t, "caught up", func() bool { return run.feed.Stats().CaughtUp.After(last) })
			run.stop(t)
			if len(run.gaps) > 0 {
				t.Errorf("gaps %v", run.gaps)
			}
			s, err := w.js.Stream(t.Context(), "S")
			if err != nil {
				t.Fatal(err)
			}
			waitUntil(t, "messages to leave the stream", func() bool {
				info, err := s.Info(t.Context())
				return err == nil && info.State.Msgs == 0
			})
		})
	}
}

// What a slow reader could not take is a gap, not a drop.
func TestNATSCoreOverflow(t *testing.T) {
	w := natsServer(t)
	sink := w.sink(func(c *NATSConfig) { c.JetStream, c.Stream, c.Subject = false, "", "s.>" })
	block := make(chan struct{})
	r := &stuckTaker{block: block}
	feed := NewFeed(r, nil)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- sink.Run(ctx, feed) }()
	waitUntil(t, "ready", func() bool { return feed.Stats().Ready })
	for range natsBatch*16 + 1000 {
		if err := w.nc.Publish("s.a", []byte(tokenOf(1))); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.nc.Flush(); err != nil {
		t.Fatal(err)
	}
	waitUntil(t, "gap", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return slices.Contains(r.gaps, "overflow")
	})
	close(block)
	last := time.Now()
	waitUntil(t, "caught up again", func() bool { return feed.Stats().CaughtUp.After(last) })
	before := len(r.arrived())
	if err := w.nc.Publish("s.a", []byte(tokenOf(2))); err != nil {
		t.Fatal(err)
	}
	waitUntil(t, "next heartbeat", func() bool { return len(r.arrived()) == before+1 })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// stuckTaker holds the driver up until block is closed.
type stuckTaker struct {
	taker
	block chan struct{}
}

func (r *stuckTaker) Heartbeat(h *heartbeat.Heartbeat, a Arrival) Kind {
	<-r.block
	return r.taker.Heartbeat(h, a)
}

func TestNATSTLS(t *testing.T) {
	cert, key, _ := certificate(t)
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) })
	n := servers.NATS(t, func(o *server.Options) {
		config, err := server.GenTLSConfig(&server.TLSConfigOpts{CertFile: cert, KeyFile: key, CaFile: cert, Verify: true})
		if err != nil {
			t.Fatal(err)
		}
		o.TLSConfig, o.TLSVerify = config, true
	})
	for _, c := range []struct {
		name string
		tls  *conn.TLS
		fine bool
	}{
		{"with a certificate", &conn.TLS{CAFile: cert, CertFile: cert, KeyFile: key}, true},
		{"without a certificate", &conn.TLS{CAFile: cert}, false},
		{"unknown authority", &conn.TLS{CertFile: cert, KeyFile: key}, false},
		{"no tls", nil, false},
	} {
		config := NewNATS()
		config.Broker = conn.NATS{URL: n.URL, TLS: c.tls}
		config.JetStream, config.Subject = false, "s"
		sink, err := config.Open()
		if err != nil {
			t.Fatal(err)
		}
		if err := sink.(Checker).Check(t.Context()); (err == nil) != c.fine {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// Claims come true in any order of asking and delivering, and those that never will hold up nobody.
func TestClaims(t *testing.T) {
	at := func(n int) time.Time { return time.Unix(int64(n), 0) }
	type step struct {
		when, t   int // a claim of t after so many messages …
		delivered int // … or so many messages delivered
		want      int // the newest claim that has come true
	}
	for name, steps := range map[string][]step{
		"nothing to wait for":   {{when: 0, t: 1, want: 1}, {when: 0, t: 2, want: 2}},
		"in order":              {{when: 2, t: 1}, {delivered: 1}, {when: 3, t: 2}, {delivered: 2, want: 1}, {delivered: 3, want: 2}},
		"delivered before":      {{delivered: 5}, {when: 5, t: 1, want: 1}},
		"several at once":       {{when: 2, t: 1}, {when: 3, t: 2}, {delivered: 9, want: 2}},
		"messages were deleted": {{when: 9, t: 1}, {when: 2, t: 2}, {delivered: 2, want: 2}},
	} {
		r := &taker{}
		f := NewFeed(r, nil)
		var c claims
		for i, s := range steps {
			if s.t > 0 {
				c.when(uint64(s.when), at(s.t), f)
			} else {
				c.deliveredUpTo(uint64(s.delivered), f)
			}
			if got := r.caughtUp; s.want > 0 && !got.Equal(at(s.want)) || s.want == 0 && !got.IsZero() {
				t.Errorf("%s, step %d: caught up %v, want %d", name, i, got, s.want)
			}
		}
	}
	// Far behind, the list stays short and keeps its oldest claim.
	r := &taker{}
	f := NewFeed(r, nil)
	var c claims
	for n := 1; n <= 1000; n++ {
		c.when(uint64(n), at(n), f)
	}
	if len(c.list) > 16 || c.list[0].after != 1 || c.list[len(c.list)-1].after != 1000 {
		t.Errorf("%d claims from %d to %d", len(c.list), c.list[0].after, c.list[len(c.list)-1].after)
	}
}

func TestNATSValidate(t *testing.T) {
	file := conn.Secret{File: filepath.Join(t.TempDir(), "x")}
	for _, c := range []struct {
		change func(*NATSConfig)
		want   string
	}{
		{func(c *NATSConfig) { c.Broker.URL = "" }, "url: is required: an address such as nats://host:4222"},
		{func(c *NATSConfig) { c.Broker.URL = "nats://a:4222, http://b" }, `url: " http://b" is not an address such as nats://host:4222`},
		{func(c *NATSConfig) { c.Broker.URL = "nats://u:secret@a" }, "url: holds a user name: use username and password, so that the password is not in the file"},
		{func(c *NATSConfig) { c.Broker.URL = "nats://%zz" }, "url: is not an address such as nats://host:4222"},
		{func(c *NATSConfig) { c.Broker.Username = "u" }, "password: username and password go together"},
		{func(c *NATSConfig) { c.Broker.Token, c.Broker.NKeyFile = file, "seed" }, "credentials_file: only one of credentials_file, nkey_file, username and token can be used"},
		{func(c *NATSConfig) { c.Broker.Token = conn.Secret{File: "a", Env: "b"} }, "token: a secret has one source: {file: PATH} or {env: NAME}"},
		{func(c *NATSConfig) { c.Broker.TLS = &conn.TLS{KeyFile: "k"} }, "tls: cert_file and key_file go together"},
		{func(c *NATSConfig) { c.Stream = "" }, "stream: is required, or else the subject"},
		{func(c *NATSConfig) { c.Stream = "a.b" }, `stream: "a.b" is not the name of a stream`},
		{func(c *NATSConfig) { c.Subject = "a..b" }, `subject: "a..b" is not a subject such as orders.new`},
		{func(c *NATSConfig) { c.Consumer = "" }, `consumer: "" is not the name of a consumer`},
		{func(c *NATSConfig) { c.Consumers = []string{"ok", "S/ok", "a.b"} }, `consumers[2]: "a.b" is not the name of a consumer, or of stream/consumer`},
		{func(c *NATSConfig) { c.Consumers = []string{"/b"} }, `consumers[0]: "/b" is not the name of a consumer, or of stream/consumer`},
		{func(c *NATSConfig) { c.JetStream, c.Stream, c.Subject, c.Consumers = false, "", "a", []string{"b"} }, "consumers: cannot be combined with jetstream: false"},
		{func(c *NATSConfig) { c.JetStream = false }, "subject: is required with jetstream: false\nstream: cannot be combined with jetstream: false"},
		{func(c *NATSConfig) { c.JetStream, c.Stream, c.Subject, c.Dedicated = false, "", "a", true }, "dedicated: cannot be combined with jetstream: false"},
	} {
		config := NewNATS()
		config.Broker.URL, config.Stream = "nats://host:4222", "S"
		c.change(config)
		err := config.Validate()
		if err == nil || err.Error() != c.want {
			t.Errorf("got %v\nwant %s", err, c.want)
		}
		var f *conn.FieldError
		if !errors.As(err, &f) {
			t.Errorf("%v names no key", err)
		}
	}
}
