package sinks

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/goleak"

	"github.com/lag-monitor/lag-monitor/internal/conn"
	"github.com/lag-monitor/lag-monitor/internal/heartbeat"
	"github.com/lag-monitor/lag-monitor/internal/servers"
)

// What is wrong in the settings is said of the key that is wrong.
func TestAMQPConfig(t *testing.T) {
	for _, row := range []struct {
		change func(c *AMQPConfig)
		want   string // "" is good
	}{
		{func(*AMQPConfig) {}, ""},
		{func(c *AMQPConfig) { c.Broker.URL = "amqp://u:p@h" }, "url: holds a user name: use username and password, so that the password is not in the file"},
		{func(c *AMQPConfig) { c.Broker.URL = "amqp://a,http://b" }, `url: "http://b" is not an address such as amqp://host:5672/vhost`},
		{func(c *AMQPConfig) { c.Broker.URL = "amqp://a/b/c" }, `url: "amqp://a/b/c": a slash in the name of a virtual host is written %2F`},
		{func(c *AMQPConfig) { c.Broker.URL = "amqp://a/%2Fb" }, ""},
		{func(c *AMQPConfig) { c.Broker.URL = "amqp://a?heartbeat=0" }, `url: "amqp://a?heartbeat=0" has more than a host, a port and a virtual host`},
		{func(c *AMQPConfig) { c.Broker.Username = "u" }, "password: username and password go together"},
		{func(c *AMQPConfig) { c.Broker.External = true }, "external: needs tls with a cert_file: the certificate is what logs in"},
		{func(c *AMQPConfig) { c.Broker.TLS = &conn.TLS{} }, "tls: is for addresses that begin with amqps://"},
		{func(c *AMQPConfig) { c.Exchange, c.Bindings = "", nil }, "exchange: is required, or else stream, or queue with dedicated: true"},
		{func(c *AMQPConfig) { c.Exchange, c.Bindings, c.Queue = "", nil, "work" }, `queue: whoever else reads "work" would lose messages to the monitor: listen to its exchange instead, or set dedicated: true if nobody else reads it`},
		{func(c *AMQPConfig) { c.Exchange, c.Bindings, c.Queue, c.Dedicated = "", nil, "dead", true }, ""},
		{func(c *AMQPConfig) { c.Exchange, c.Bindings, c.Stream = "", nil, "s" }, ""},
		{func(c *AMQPConfig) { c.Stream = "s" }, "exchange: cannot be combined with stream"},
		{func(c *AMQPConfig) { c.Queue, c.Dedicated = "q", true }, "exchange: cannot be combined with dedicated: true: the queue is bound already"},
		{func(c *AMQPConfig) { c.Dedicated = true }, "queue: is required with dedicated: true"},
		{func(c *AMQPConfig) { c.Bindings = nil }, "bindings: is required with exchange: such as [{routing_key: orders.new}], as the real queue is bound"},
		{func(c *AMQPConfig) { c.Bindings[0].RoutingKey = strings.Repeat("x", 256) }, "bindings[0]: routing_key is longer than 255 bytes"},
		{func(c *AMQPConfig) { c.QueueType = "stream" }, `queue_type: "stream" is not classic or quorum`},
		{func(c *AMQPConfig) { c.Keep = 0 }, "keep: 0s is not from 1m to 24h"},
		{func(c *AMQPConfig) { c.MaxLength = 100 }, "max_length: 100 is less than 10000"},
		{func(c *AMQPConfig) { c.Backlog = []string{"a", ""} }, `backlog[1]: "" is not the name of a queue`},
	} {
		c := NewAMQP()
		c.Broker.URL, c.Exchange, c.Bindings = "amqp://h", "x", []AMQPBinding{{RoutingKey: "#"}}
		row.change(c)
		got := ""
		if err := c.Validate(); err != nil {
			got = err.Error()
		}
		if first, _, _ := strings.Cut(got, "\n"); first != row.want {
			t.Errorf("got  %s\nwant %s", first, row.want)
		}
	}
}

// Who listens beside a monitor reads another queue than the monitor's.
func TestAMQPBeside(t *testing.T) {
	own := NewAMQP()
	own.Exchange, own.Queue = "x", "monitor"
	got, err := Beside(own)
	if c, ok := got.(*AMQPConfig); !ok || err != nil || c.Queue != "" || c.Exchange != "x" || own.Queue != "monitor" {
		t.Errorf("got %+v, %v", got, err)
	}
	stream, dedicated := NewAMQP(), NewAMQP()
	stream.Stream, dedicated.Queue, dedicated.Dedicated = "s", "q", true
	if got, err := Beside(stream); got != Config(stream) || err != nil {
		t.Errorf("got %+v, %v", got, err)
	}
	if _, err := Beside(dedicated); err == nil {
		t.Error("it reads beside the reader of a dedicated queue")
	}
}

// Headers are written by anybody: nothing in them is what it should be, and nothing breaks.
func TestAMQPDeath(t *testing.T) {
	entry := func(reason, queue string, count any) amqp.Table {
		return amqp.Table{"reason": reason, "queue": queue, "count": count, "exchange": "", "routing-keys": []any{"x"}}
	}
	for _, row := range []struct {
		name    string
		death   any
		want    *Death
		retries int
	}{
		{"none", nil, nil, 0},
		{"text", "rejected", nil, 0},
		{"list of texts", []any{"rejected", int64(3)}, nil, 0},
		{"wrong types", []any{amqp.Table{"reason": int64(1), "queue": true, "count": "2"}}, &Death{}, 0},
		{"absurd counts", []any{entry(DeadRejected, "q", int64(-5)), entry(DeadRejected, "q", int64(1)<<62)}, &Death{DeadRejected, "q", 0}, 0},
		{"once", []any{entry(DeadMaxLen, "q", int64(1))}, &Death{DeadMaxLen, "q", 1}, 0},
		{"retried", []any{entry(DeadExpired, "wait", int64(3)), entry(DeadRejected, "work", int64(3))}, &Death{DeadExpired, "wait", 3}, 3},
		{"only time", []any{entry(DeadExpired, "wait.2", int64(1)), entry(DeadExpired, "wait.1", int64(2))}, &Death{DeadExpired, "wait.2", 1}, 3},
		{"another word", []any{entry("moved", "q", int64(1))}, &Death{"moved", "q", 1}, 0},
	} {
		got, retries := amqpDeath(amqp.Table{"x-death": row.death})
		if (got == nil) != (row.want == nil) || got != nil && *got != *row.want || retries != row.retries {
			t.Errorf("%s: %+v, %d retries; want %+v, %d", row.name, got, retries, row.want, row.retries)
		}
	}
}

// rabbit is a broker, and a channel of the test's own, which confirms.
type rabbit struct {
	*servers.RabbitMQServer
	ch *amqp.Channel
}

// TestAMQP shares one broker between tests that use queues of their own.
func TestAMQP(t *testing.T) {
	servers.Need(t)
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) })
	r := &rabbit{RabbitMQServer: servers.RabbitMQ(t, servers.RabbitMQOptions{Users: []servers.RabbitMQUser{
		{Name: "least", Password: "p", Configure: `^lag-monitor\.`, Write: `^lag-monitor\.`, Read: `^(lag-monitor\..*|least|least\.dead|least\.stream)$`},
	}})}
	c, err := amqp.Dial(r.URL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if r.ch, err = c.Channel(); err == nil {
		err = r.ch.Confirm(false)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name string
		run  func(*testing.T, *rabbit)
	}{
		{"permissions", testAMQPPermissions}, {"exchanges", testAMQPExchanges}, {"dead letters", testAMQPDeadLetters}, {"retries", testAMQPRetries}, {"another reader", testAMQPAnotherReader}, {"proofs", testAMQPProofs},
		{"overflow", testAMQPOverflow}, {"deleted", testAMQPDeleted}, {"deleted meanwhile", testAMQPDeletedMeanwhile}, {"fleeting", testAMQPFleeting}, {"journal", testAMQPJournal},
		{"backlog", testAMQPBacklog}, {"trimmed", testAMQPTrimmed}, {"shared work", testAMQPSharedWork},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, r) })
	}
}

func (r *rabbit) exchange(t *testing.T, name, kind string) {
	t.Helper()
	if err := r.ch.ExchangeDeclare(name, kind, false, true, false, false, nil); err != nil {
		t.Fatal(err)
	}
}

func (r *rabbit) queue(t *testing.T, name string, args amqp.Table) {
	t.Helper()
	if _, err := r.ch.QueueDeclare(name, true, false, false, false, args); err != nil {
		t.Fatal(err)
	}
}

// put publishes and waits for the broker's word.
func (r *rabbit) put(t *testing.T, exchange, key string, m amqp.Publishing) {
	t.Helper()
	m.DeliveryMode = max(m.DeliveryMode, amqp.Persistent-m.DeliveryMode)
	dc, err := r.ch.PublishWithDeferredConfirm(exchange, key, false, false, m)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if ok, err := dc.WaitContext(ctx); err != nil || !ok {
		t.Fatalf("not confirmed: %v", err)
	}
}

func (r *rabbit) beats(t *testing.T, exchange, key string, seqs ...uint64) {
	t.Helper()
	for _, seq := range seqs {
		r.put(t, exchange, key, amqp.Publishing{Body: []byte(tokenOf(seq))})
	}
}

// sink returns a sink of the broker.
func (r *rabbit) sink(t *testing.T, change func(c *AMQPConfig)) Sink {
	t.Helper()
	c := NewAMQP()
	c.Broker.URL = "amqp://" + r.Addr
	change(c)
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	s, err := c.Open()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// amqpRun is a Run of a sink.
type amqpRun struct {
	*taker
	f    *Feed
	stop func()
	err  chan error
}

func runAMQP(t *testing.T, s Sink) *amqpRun {
	r := &taker{}
	return runAMQPWith(t, s, r, r)
}

// runAMQPWith has the sink report to a Receiver that keeps what it is told in a taker.
func runAMQPWith(t *testing.T, s Sink, to Receiver, in *taker) *amqpRun {
	ctx, cancel := context.WithCancel(t.Context())
	a := &amqpRun{taker: in, err: make(chan error, 1)}
	a.f = NewFeed(to, (*heartbeat.Keyring)(nil))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		a.err <- s.Run(ctx, a.f)
	}()
	a.stop = func() {
		cancel()
		<-ended
	}
	t.Cleanup(a.stop)
	return a
}

func (a *amqpRun) readied(t *testing.T) *amqpRun {
	t.Helper()
	waitUntil(t, "ready", func() bool {
		select {
		case err := <-a.err:
			t.Fatalf("Run: %v", err)
		default:
		}
		return a.f.Stats().Ready
	})
	return a
}

func (a *amqpRun) gotten(t *testing.T, want ...uint64) {
	t.Helper()
	waitUntil(t, fmt.Sprintf("heartbeats %v", want), func() bool { return len(a.arrived()) >= len(want) })
	if got := a.arrived(); !slices.Equal(got, want) {
		t.Fatalf("got %v; want %v", got, want)
	}
}

func (a *amqpRun) gapped() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.gaps)
}

// proven waits until the sink is caught up with a time after now.
func (a *amqpRun) proven(t *testing.T) {
	t.Helper()
	now := time.Now()
	waitUntil(t, "caught up", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.caughtUp.After(now)
	})
}

// What the documentation says that a user has to be allowed is enough.
func testAMQPPermissions(t *testing.T, r *rabbit) {
	r.exchange(t, "least", amqp.ExchangeTopic)
	r.queue(t, "least.dead", nil)
	r.queue(t, "least.stream", amqp.Table{amqp.QueueTypeArg: amqp.QueueTypeStream})
	r.queue(t, "of others", nil)
	password := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(password, []byte("p"), 0o600); err != nil {
		t.Fatal(err)
	}
	for exchange, change := range map[string]func(c *AMQPConfig){
		"least":        func(c *AMQPConfig) { c.Exchange, c.Bindings = "least", []AMQPBinding{{RoutingKey: "#"}} },
		"least.dead":   func(c *AMQPConfig) { c.Queue, c.Dedicated = "least.dead", true },
		"least.stream": func(c *AMQPConfig) { c.Stream = "least.stream" },
	} {
		s := r.sink(t, func(c *AMQPConfig) {
			change(c)
			c.Broker.Username, c.Broker.Password, c.Backlog = "least", conn.Secret{File: password}, []string{"of others"}
		})
		if err := s.(Checker).Check(t.Context()); err != nil {
			t.Errorf("check: %v", err)
		}
		a := runAMQP(t, s).readied(t)
		key := exchange
		if exchange != "least" {
			exchange = ""
		}
		r.beats(t, exchange, key, 1)
		a.gotten(t, 1)
		a.proven(t)
		if got, err := s.(Backlogger).Backlog(t.Context()); err != nil || len(got) != 1 {
			t.Errorf("backlog: %v, %v", got, err)
		}
		a.stop()
	}
}

// Messages that may have been in the own queue for longer than it keeps them make a gap, and only then.
func TestAMQPExpired(t *testing.T) {
	r := &taker{}
	w := &amqpWork{amqpQueue: &amqpQueue{amqpSink: amqpSink{c: NewAMQP()}}, f: NewFeed(r, nil), before: &amqpProof{}}
	began := time.Now()
	for _, at := range []time.Duration{0, 9 * time.Minute, 18 * time.Minute, 29 * time.Minute, 30 * time.Minute} {
		if err := w.take(amqpProof{asked: began.Add(at), clear: began.Add(at), consumers: 1}); err != nil {
			t.Fatal(err)
		}
		if want := at >= 29*time.Minute; (len(r.gaps) > 0) != want {
			t.Errorf("after %s the gaps are %q", at, r.gaps)
		}
		if !r.caughtUp.Equal(began.Add(at)) {
			t.Errorf("after %s it is caught up with %s", at, r.caughtUp.Sub(began))
		}
	}
	if !slices.Equal(r.gaps, []string{"expired"}) {
		t.Errorf("gaps %q", r.gaps)
	}
}

// A sink hears of each kind of exchange what the real queue would hear, and nothing else.
func testAMQPExchanges(t *testing.T, r *rabbit) {
	text := func(s any) AMQPValue { return AMQPValue{s} }
	for _, row := range []struct {
		kind     string
		bindings []AMQPBinding
		keys     []string // of heartbeats 1, 2, …
		headers  []amqp.Table
		want     []uint64
	}{
		{amqp.ExchangeDirect, []AMQPBinding{{RoutingKey: "a"}, {RoutingKey: "b"}}, []string{"a", "c", "b", "a.b"}, nil, []uint64{1, 3}},
		{amqp.ExchangeFanout, []AMQPBinding{{}}, []string{"a", "", "b.c"}, nil, []uint64{1, 2, 3}},
		{amqp.ExchangeTopic, []AMQPBinding{{RoutingKey: "a.*"}, {RoutingKey: "#.z"}}, []string{"a.b", "a.b.c", "z", "a.z", "x.y.z", "a"}, nil, []uint64{1, 3, 4, 5}},
		{amqp.ExchangeHeaders, []AMQPBinding{{Arguments: map[string]AMQPValue{"x-match": text("all"), "kind": text("parcel"), "size": text(int64(3)), "fast": text(true)}}},
			[]string{"", "", ""}, []amqp.Table{{"kind": "parcel", "size": int64(3), "fast": true}, {"kind": "parcel", "size": int64(4), "fast": true}, {"kind": "parcel"}}, []uint64{1}},
	} {
		t.Run(row.kind, func(t *testing.T) {
			name := "exchange-" + row.kind
			r.exchange(t, name, row.kind)
			a := runAMQP(t, r.sink(t, func(c *AMQPConfig) { c.Exchange, c.Bindings = name, row.bindings })).readied(t)
			for i, key := range row.keys {
				m := amqp.Publishing{Body: []byte(tokenOf(uint64(i + 1)))}
				if row.headers != nil {
					m.Headers = row.headers[i]
				}
				r.put(t, name, key, m)
			}
			a.proven(t)
			a.gotten(t, row.want...)
		})
	}
}

// deadOf publishes a message to a queue, and returns what a sink would make of it where it is dead-lettered.
func deadOf(t *testing.T, r *rabbit, name string, args amqp.Table, m amqp.Publishing, treat func(amqp.Delivery) error) Message {
	t.Helper()
	dead := name + ".dead"
	r.queue(t, dead, nil)
	args["x-dead-letter-exchange"], args["x-dead-letter-routing-key"] = "", dead
	r.queue(t, name, args)
	m.Body = []byte("x")
	if treat == nil {
		r.put(t, "", name, m)
		return r.take(t, dead)
	}
	ch := r.channel(t)
	work, err := ch.Consume(name, "", false, false, false, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.put(t, "", name, m)
	for {
		select {
		case d := <-work:
			if err := treat(d); err != nil {
				t.Fatal(err)
			}
		case <-time.After(50 * time.Millisecond):
			if d, ok, err := r.ch.Get(dead, true); err != nil {
				t.Fatal(err)
			} else if ok {
				return amqpMessage(&d)
			}
		case <-t.Context().Done():
			t.Fatal("not dead-lettered")
		}
	}
}

// channel is one more channel, with a connection of its own.
func (r *rabbit) channel(t *testing.T) *amqp.Channel {
	t.Helper()
	c, err := amqp.Dial(r.URL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	ch, err := c.Channel()
	if err != nil {
		t.Fatal(err)
	}
	return ch
}

// take takes the next message out of a queue.
func (r *rabbit) take(t *testing.T, queue string) (m Message) {
	t.Helper()
	waitUntil(t, "a message in "+queue, func() bool {
		d, ok, err := r.ch.Get(queue, true)
		if err != nil {
			t.Fatal(err)
		}
		m = amqpMessage(&d)
		return ok
	})
	return m
}

// Each way into a dead-letter queue is told by the broker's word for it.
func testAMQPDeadLetters(t *testing.T, r *rabbit) {
	reject := func(d amqp.Delivery) error { return d.Reject(false) }
	for _, row := range []struct {
		reason string
		args   amqp.Table
		m      amqp.Publishing
		treat  func(amqp.Delivery) error
	}{
		{DeadRejected, amqp.Table{}, amqp.Publishing{}, reject},
		{DeadExpired, amqp.Table{}, amqp.Publishing{Expiration: "1"}, nil},
		{DeadMaxLen, amqp.Table{"x-max-length": int64(0)}, amqp.Publishing{}, nil},
		{DeadDeliveryLimit, amqp.Table{amqp.QueueTypeArg: "quorum", "x-delivery-limit": int64(2)}, amqp.Publishing{}, func(d amqp.Delivery) error { return d.Reject(true) }},
	} {
		m := deadOf(t, r, "dead-"+row.reason, row.args, row.m, row.treat)
		want := Death{row.reason, "dead-" + row.reason, 1}
		if m.Dead == nil || *m.Dead != want {
			t.Errorf("got %+v; want %+v", m.Dead, want)
		}
	}
}

// A heartbeat that goes round through a retry queue comes out with the number of its attempts.
func testAMQPRetries(t *testing.T, r *rabbit) {
	r.queue(t, "retry.work", amqp.Table{"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "retry.wait"})
	r.queue(t, "retry.wait", amqp.Table{"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "retry.work", "x-message-ttl": int64(20)})
	work, err := r.channel(t).Consume("retry.work", "", false, false, false, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.beats(t, "", "retry.work", 1)
	for i := range 4 {
		select {
		case d := <-work:
			if m := amqpMessage(&d); m.Retries != i || (m.Dead != nil) != (i > 0) {
				t.Errorf("attempt %d has %d retries, dead: %+v", i+1, m.Retries, m.Dead)
			}
			if err := d.Reject(false); err != nil {
				t.Fatal(err)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("it did not come again")
		}
	}
}

// A queue that somebody else reads gives each a part: the sink does not begin, and claims nothing from the moment at
// which somebody joins it.
func testAMQPAnotherReader(t *testing.T, r *rabbit) {
	r.queue(t, "mine", nil)
	other, err := amqp.Dial(r.URL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { other.Close() })
	ch, err := other.Channel()
	if err != nil {
		t.Fatal(err)
	}
	// It holds what it gets, as a connection of our own does that was cut off.
	if _, err := ch.Consume("mine", "", false, false, false, false, nil); err != nil {
		t.Fatal(err)
	}
	r.beats(t, "", "mine", 1, 2)
	s := r.sink(t, func(c *AMQPConfig) { c.Queue, c.Dedicated = "mine", true })
	a := runAMQP(t, s)
	select {
	case err := <-a.err:
		if err == nil || !strings.Contains(err.Error(), "queue mine is read by somebody else") {
			t.Errorf("Run: %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("Run goes on")
	}
	if a.ready > 0 || !a.caughtUp.IsZero() {
		t.Error("the sink was ready, or caught up")
	}
	other.Close()
	a = runAMQP(t, s).readied(t)
	a.proven(t)
	a.gotten(t, 1, 2)
}

// busyTaker takes its time for each heartbeat, so that many wait inside the client.
type busyTaker struct {
	taker
	pause time.Duration
}

func (r *busyTaker) Heartbeat(h *heartbeat.Heartbeat, a Arrival) Kind {
	time.Sleep(r.pause)
	return r.taker.Heartbeat(h, a)
}

// A sink that has much to do claims no more than it has delivered, however much of the rest has left the queue already.
func testAMQPProofs(t *testing.T, r *rabbit) {
	r.exchange(t, "proofs", amqp.ExchangeFanout)
	r.queue(t, "proofs.dedicated", amqp.Table{amqp.QueueTypeArg: amqp.QueueTypeQuorum})
	r.queue(t, "proofs.stream", amqp.Table{amqp.QueueTypeArg: amqp.QueueTypeStream})
	for _, q := range []string{"proofs.dedicated", "proofs.stream"} {
		if err := r.ch.QueueBind(q, "", "proofs", false, nil); err != nil {
			t.Fatal(err)
		}
	}
	r.beats(t, "proofs", "", 1) // a stream that is empty proves itself less often
	const beats = 700
	var runs []*amqpRun
	for _, change := range []func(c *AMQPConfig){
		func(c *AMQPConfig) { c.Exchange, c.Bindings = "proofs", []AMQPBinding{{}} },
		func(c *AMQPConfig) { c.Queue, c.Dedicated = "proofs.dedicated", true },
		func(c *AMQPConfig) { c.Stream = "proofs.stream" },
	} {
		taker := &busyTaker{pause: 5 * time.Millisecond}
		a := runAMQPWith(t, r.sink(t, change), taker, &taker.taker).readied(t)
		a.proven(t)
		runs = append(runs, a)
	}
	confirmed := make([]time.Time, beats+2)
	for seq := uint64(2); seq < beats+2; seq++ {
		r.beats(t, "proofs", "", seq)
		confirmed[seq] = time.Now()
	}
	for _, a := range runs {
		a.proven(t)
		a.mu.Lock()
		// Each came with what had been claimed by then.
		for i, seq := range a.seqs {
			if seq > 1 && a.proofs[i].After(confirmed[seq]) {
				t.Errorf("heartbeat %d came %s after it was claimed to have been delivered", seq, a.proofs[i].Sub(confirmed[seq]))
				break
			}
		}
		if n := len(a.seqs); n < beats {
			t.Errorf("%d heartbeats came; %d were sent", n, beats)
		}
		a.mu.Unlock()
	}
}

// What pushed heartbeats out of the own queue while nobody read makes a gap, and so no drop.
func testAMQPOverflow(t *testing.T, r *rabbit) {
	r.exchange(t, "overflow", amqp.ExchangeFanout)
	s := r.sink(t, func(c *AMQPConfig) { c.Exchange, c.Bindings, c.MaxLength = "overflow", []AMQPBinding{{}}, amqpLeast })
	a := runAMQP(t, s).readied(t)
	a.proven(t)
	a.stop()
	r.beats(t, "overflow", "", 1)
	var last *amqp.DeferredConfirmation
	for range amqpLeast {
		var err error
		if last, err = r.ch.PublishWithDeferredConfirm("overflow", "", false, false, amqp.Publishing{Body: []byte("x"), DeliveryMode: amqp.Persistent}); err != nil {
			t.Fatal(err)
		}
	}
	last.Wait()
	r.beats(t, "overflow", "", 2)
	a = runAMQP(t, s).readied(t)
	if g := a.gapped(); !slices.Contains(g, "overflow") {
		t.Errorf("gaps %q; want overflow", g)
	}
	a.proven(t)
	a.gotten(t, 2)
}

// A queue that was deleted is made again, and that is a gap, whether or not the sink listened at that time.
func testAMQPDeleted(t *testing.T, r *rabbit) {
	r.exchange(t, "deleted", amqp.ExchangeFanout)
	s := r.sink(t, func(c *AMQPConfig) {
		c.Exchange, c.Bindings, c.Queue = "deleted", []AMQPBinding{{}}, "deleted-monitor"
	})
	a := runAMQP(t, s).readied(t)
	remove := func() {
		t.Helper()
		if _, err := r.ch.QueueDelete("deleted-monitor", false, false, false); err != nil {
			t.Fatal(err)
		}
	}
	remove()
	select {
	case err := <-a.err:
		if conn.ClassOf(err) != conn.Missing {
			t.Errorf("Run: %v", err)
		}
	case <-time.After(time.Minute):
		t.Fatal("Run goes on")
	}
	// The exchange went with its last queue.
	r.exchange(t, "deleted", amqp.ExchangeFanout)
	a = runAMQP(t, s).readied(t)
	if g := a.gapped(); !slices.Equal(g, []string{"recreated"}) {
		t.Errorf("gaps %q; want recreated", g)
	}
	a.stop()
	remove()
	r.exchange(t, "deleted", amqp.ExchangeFanout)
	a = runAMQP(t, s).readied(t)
	if g := a.gapped(); !slices.Equal(g, []string{"recreated"}) {
		t.Errorf("gaps %q; want recreated", g)
	}
	r.beats(t, "deleted", "", 1)
	a.gotten(t, 1)
}

// A sink whose queue is deleted and made anew, by whoever owns it, before the sink is back says that something may have been in it: also
// when the answer to a question of its own is the first to tell it.
func testAMQPDeletedMeanwhile(t *testing.T, r *rabbit) {
	r.queue(t, "meanwhile", nil)
	s := r.sink(t, func(c *AMQPConfig) { c.Queue, c.Dedicated = "meanwhile", true })
	a := runAMQP(t, s).readied(t)
	for range 3 {
		// Both wait for the broker then: what deletes the queue, and a question of the sink.
		r.Pause()
		deleted := make(chan error, 1)
		go func() {
			_, err := r.ch.QueueDelete("meanwhile", false, false, false)
			deleted <- err
		}()
		time.Sleep(2 * amqpProve)
		r.Resume()
		if err := <-deleted; err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-a.err:
			t.Log(err)
		case <-time.After(time.Minute):
			t.Fatal("Run goes on")
		}
		r.queue(t, "meanwhile", nil)
		a = runAMQP(t, s).readied(t)
		if g := a.gapped(); !slices.Equal(g, []string{"recreated"}) {
			t.Fatalf("gaps %q; want recreated", g)
		}
	}
}

// Heartbeats that are not on disk may be gone when the connection is back: that is a gap. Others are not.
func testAMQPFleeting(t *testing.T, r *rabbit) {
	r.exchange(t, "fleeting", amqp.ExchangeFanout)
	s := r.sink(t, func(c *AMQPConfig) { c.Exchange, c.Bindings = "fleeting", []AMQPBinding{{}} })
	a := runAMQP(t, s).readied(t)
	r.beats(t, "fleeting", "", 1)
	a.gotten(t, 1)
	a.stop()
	a = runAMQP(t, s).readied(t)
	r.put(t, "fleeting", "", amqp.Publishing{Body: []byte(tokenOf(2)), DeliveryMode: amqp.Transient})
	a.gotten(t, 2)
	a.stop()
	if g := a.gapped(); len(g) > 0 {
		t.Errorf("gaps %q; want none", g)
	}
	a = runAMQP(t, s).readied(t)
	if g := a.gapped(); !slices.Equal(g, []string{"not_persistent"}) {
		t.Errorf("gaps %q; want not_persistent", g)
	}
}

// What the journal does not have yet comes again to the next process, and to this one it does not.
func testAMQPJournal(t *testing.T, r *rabbit) {
	r.exchange(t, "journal", amqp.ExchangeFanout)
	change := func(c *AMQPConfig) { c.Exchange, c.Bindings = "journal", []AMQPBinding{{}} }
	s := r.sink(t, change)
	journal := s.(Resumer)
	a := runAMQP(t, s).readied(t)
	r.beats(t, "journal", "", 1, 2)
	a.gotten(t, 1, 2)
	journal.Position() // has 1 and 2
	s.(Settler).Settle()
	r.beats(t, "journal", "", 3)
	a.gotten(t, 1, 2, 3)
	position := journal.Position() // would have 3, and fails
	r.beats(t, "journal", "", 4)
	a.gotten(t, 1, 2, 3, 4)
	a.proven(t) // what may be acknowledged is
	a.stop()

	a = runAMQP(t, s).readied(t)
	a.proven(t)
	if got := a.arrived(); len(got) > 0 {
		t.Errorf("%v came again to the same process", got)
	}
	a.stop()

	next := r.sink(t, change)
	next.(Resumer).Resume(position)
	a = runAMQP(t, next).readied(t)
	a.proven(t)
	a.gotten(t, 3, 4)
	if g := a.gapped(); len(g) > 0 {
		t.Errorf("gaps %q; want none", g)
	}
}

// The backlog of queues is told, also beside one that does not exist, and the sink goes on.
func testAMQPBacklog(t *testing.T, r *rabbit) {
	r.queue(t, "backlog", nil)
	r.beats(t, "", "backlog", 1, 2, 3)
	r.exchange(t, "backlog", amqp.ExchangeFanout)
	s := r.sink(t, func(c *AMQPConfig) {
		c.Exchange, c.Bindings, c.Backlog = "backlog", []AMQPBinding{{}}, []string{"nowhere", "backlog"}
	})
	b := s.(Backlogger)
	if got, err := b.Backlog(t.Context()); got != nil || err != nil {
		t.Errorf("before Run: %v, %v", got, err)
	}
	a := runAMQP(t, s).readied(t)
	for range 3 {
		got, err := b.Backlog(t.Context())
		if want := []Backlog{{Queue: "backlog", Messages: 3, Seconds: -1}}; !slices.Equal(got, want) {
			t.Errorf("got %+v; want %+v", got, want)
		}
		if err == nil || conn.ClassOf(err) != conn.Missing || !strings.Contains(err.Error(), "queue nowhere") {
			t.Errorf("got %v", err)
		}
	}
	a.proven(t)
}

// A stream that has lost its beginning while the sink was away makes a gap.
func testAMQPTrimmed(t *testing.T, r *rabbit) {
	r.queue(t, "trimmed", amqp.Table{amqp.QueueTypeArg: amqp.QueueTypeStream, "x-max-length-bytes": int64(20_000), "x-stream-max-segment-size-bytes": int64(10_000)})
	s := r.sink(t, func(c *AMQPConfig) { c.Stream = "trimmed" })
	a := runAMQP(t, s).readied(t)
	r.beats(t, "", "trimmed", 1)
	a.gotten(t, 1)
	a.stop()
	r.beats(t, "", "trimmed", 2)
	for range 100 {
		r.put(t, "", "trimmed", amqp.Publishing{Body: make([]byte, 1000)})
	}
	r.beats(t, "", "trimmed", 3)
	a = runAMQP(t, s).readied(t)
	a.proven(t)
	a.gotten(t, 3)
	if g := a.gapped(); !slices.Equal(g, []string{"trimmed"}) {
		t.Errorf("gaps %q; want trimmed", g)
	}
}

// Consumers of a work queue lose nothing, wait no longer and get everything in its order while a sink listens to the
// same messages.
func testAMQPSharedWork(t *testing.T, r *rabbit) {
	if testing.Short() {
		t.Skip("takes 8 s")
	}
	const rate, phases = 1000, 4 // without and with the sink by turns
	r.exchange(t, "shared", amqp.ExchangeDirect)
	r.queue(t, "shared", nil)
	if err := r.ch.QueueBind("shared", "work", "shared", false, nil); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var got []int
	var delays [phases][]time.Duration
	var sent [phases * 2 * rate]time.Time
	var consumers sync.WaitGroup
	ch := r.channel(t)
	if err := ch.Qos(100, 0, false); err != nil {
		t.Fatal(err)
	}
	work, err := ch.Consume("shared", "real", false, false, false, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	var taken atomic.Int64
	consumers.Go(func() {
		for d := range work {
			now := time.Now()
			var n int
			if _, err := fmt.Sscanf(string(d.Body), "%d", &n); err != nil {
				t.Error(err)
			}
			mu.Lock()
			got = append(got, n)
			delays[n/(2*rate)] = append(delays[n/(2*rate)], now.Sub(sent[n]))
			mu.Unlock()
			if err := d.Ack(false); err != nil {
				t.Error(err)
			}
			taken.Add(1)
		}
	})
	heard := uint64(0)
	pub := r.channel(t)
	for phase := range phases {
		var a *amqpRun
		if phase%2 == 1 {
			a = runAMQP(t, r.sink(t, func(c *AMQPConfig) { c.Exchange, c.Bindings = "shared", []AMQPBinding{{RoutingKey: "work"}} })).readied(t)
		}
		tick := time.NewTicker(time.Second / rate)
		for n := phase * 2 * rate; n < (phase+1)*2*rate; n++ {
			<-tick.C
			mu.Lock()
			sent[n] = time.Now()
			mu.Unlock()
			if err := pub.PublishWithContext(t.Context(), "shared", "work", true, false, amqp.Publishing{Body: fmt.Appendf(nil, "%d %0200d", n, n), DeliveryMode: amqp.Persistent}); err != nil {
				t.Fatal(err)
			}
		}
		tick.Stop()
		waitUntil(t, "all work is done", func() bool { return taken.Load() == int64((phase+1)*2*rate) })
		if a != nil {
			waitUntil(t, "the sink has heard it, too", func() bool { return a.f.Stats().Messages[Other] == 2*rate })
			heard += a.f.Stats().Messages[Other]
			a.stop()
		}
	}
	if err := ch.Cancel("real", false); err != nil {
		t.Fatal(err)
	}
	consumers.Wait()
	if heard != phases/2*2*rate {
		t.Errorf("the sink has heard %d messages", heard)
	}
	for i, n := range got {
		if n != i {
			t.Fatalf("message %d came where %d was due", n, i)
		}
	}
	median := func(phase int) time.Duration {
		slices.Sort(delays[phase])
		return delays[phase][len(delays[phase])/2]
	}
	without, with := min(median(0), median(2)), min(median(1), median(3))
	t.Logf("median from the publisher to the consumer: %v, %v without; %v, %v with a sink", median(0), median(2), median(1), median(3))
	if with > without+5*time.Millisecond {
		t.Errorf("with a sink a message takes %v, without %v", with, without)
	}
}
