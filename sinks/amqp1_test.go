package sinks

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	amqp1 "github.com/Azure/go-amqp"
	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/goleak"

	"github.com/lag-monitor/lag-monitor/internal/conn"
	"github.com/lag-monitor/lag-monitor/internal/servers"
)

// What is wrong in the settings is said of the key that is wrong.
func TestAMQP1Config(t *testing.T) {
	for _, row := range []struct {
		change func(c *AMQP1Config)
		want   string // "" is good
	}{
		{func(*AMQP1Config) {}, ""},
		{func(c *AMQP1Config) { c.Queue, c.Dedicated, c.Address = "", false, "topic://t" }, ""},
		{func(c *AMQP1Config) { c.Dedicated = false },
			`queue: whoever else reads "q" would lose messages to the monitor: listen to what feeds it, or set dedicated: true if nobody else reads it`},
		{func(c *AMQP1Config) { c.Queue = "" }, "queue: is required, with dedicated: true, or else address: a topic or an exchange of which each link gets a copy"},
		{func(c *AMQP1Config) { c.Address = "t" }, "address: cannot be combined with queue"},
		{func(c *AMQP1Config) { c.Queue, c.Address = "", "t" }, "dedicated: goes with queue: an address gives each link a copy"},
		{func(c *AMQP1Config) { c.Lock = -1 }, "lock: -1ns is not from 0s to 1h"},
		{func(c *AMQP1Config) { c.Queue, c.Address, c.Dedicated, c.Lock = "", "t", false, 1 }, "lock: goes with queue"},
		{func(c *AMQP1Config) { c.Broker.URL = "amqps://n.servicebus.windows.net" }, "lock: is required at Azure Service Bus: the lock duration of the queue"},
		{func(c *AMQP1Config) { c.Broker.Username = "u" }, "password: username and password go together"},
	} {
		c := NewAMQP1()
		c.Broker.URL, c.Queue, c.Dedicated = "amqp://h", "q", true
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

// Where markers go, and that a queue of a topic where nobody can send to it can do without.
func TestAMQP1Marker(t *testing.T) {
	for _, row := range []struct{ queue, address, marker, want string }{
		{"q", "", "", "q"}, {"q", "", "none", ""}, {"q", "", "t", "t"}, {"", "t", "", ""}, {"", "t", "t/m", "t/m"}, {"", "t", "none", ""},
	} {
		c := AMQP1Config{Queue: row.queue, Address: row.address, Marker: row.marker}
		if got := c.marker(); got != row.want {
			t.Errorf("%+v: %q", row, got)
		}
	}
}

// A message is read whatever its body and properties are made of.
func TestAMQP1Message(t *testing.T) {
	at := time.UnixMilli(1700000000123)
	with := func(change func(m *amqp1.Message)) *amqp1.Message {
		m := &amqp1.Message{Data: [][]byte{[]byte("body")}, ApplicationProperties: map[string]any{}, Annotations: amqp1.Annotations{}}
		change(m)
		return m
	}
	for name, row := range map[string]struct {
		m    *amqp1.Message
		want Message
		dead Death
	}{
		"data":     {m: with(func(*amqp1.Message) {}), want: Message{Body: []byte("body")}},
		"two":      {m: with(func(m *amqp1.Message) { m.Data = append(m.Data, []byte(" two")) }), want: Message{Body: []byte("body two")}},
		"nothing":  {m: &amqp1.Message{}, want: Message{Body: []byte{}}},
		"text":     {m: &amqp1.Message{Value: "text"}, want: Message{Body: []byte("text")}},
		"binary":   {m: &amqp1.Message{Value: []byte("bin")}, want: Message{Body: []byte("bin")}},
		"number":   {m: &amqp1.Message{Value: int64(7)}, want: Message{Body: []byte{}}},
		"header":   {m: with(func(m *amqp1.Message) { m.ApplicationProperties["lag-monitor-heartbeat"] = "t" }), want: Message{Body: []byte("body"), Header: []byte("t")}},
		"bytes":    {m: with(func(m *amqp1.Message) { m.ApplicationProperties["lag-monitor-heartbeat"] = []byte("t") }), want: Message{Body: []byte("body"), Header: []byte("t")}},
		"no text":  {m: with(func(m *amqp1.Message) { m.ApplicationProperties["lag-monitor-heartbeat"] = 1 }), want: Message{Body: []byte("body")}},
		"enqueued": {m: with(func(m *amqp1.Message) { m.Annotations["x-opt-enqueued-time"] = at }), want: Message{Body: []byte("body"), Enqueued: at}},
		"ingress":  {m: with(func(m *amqp1.Message) { m.Annotations["x-opt-ingress-time"] = at.UnixMilli() }), want: Message{Body: []byte("body"), Enqueued: at}},
		"diverted": {m: with(func(m *amqp1.Message) {
			m.Annotations["x-opt-ingress-time"], m.Annotations["x-opt-ORIG-ADDRESS"] = at.UnixMilli(), "a"
		}), want: Message{Body: []byte("body")}},
		"expired": {m: with(func(m *amqp1.Message) {
			m.Annotations["x-opt-enqueued-time"], m.Annotations["x-opt-deadletter-source"] = at, "orders"
			m.ApplicationProperties["DeadLetterReason"] = "TTLExpiredException"
		}), want: Message{Body: []byte("body")}, dead: Death{Reason: DeadExpired, Queue: "orders"}},
		"tried": {m: with(func(m *amqp1.Message) {
			m.ApplicationProperties["DeadLetterReason"], m.Header = "MaxDeliveryCountExceeded", &amqp1.MessageHeader{DeliveryCount: 10}
		}), want: Message{Body: []byte("body"), Retries: 10}, dead: Death{Reason: DeadDeliveryLimit}},
		"own reason": {m: with(func(m *amqp1.Message) { m.ApplicationProperties["DeadLetterReason"] = "no stock" }), want: Message{Body: []byte("body")}, dead: Death{Reason: "no stock"}},
		"artemis":    {m: with(func(m *amqp1.Message) { m.Annotations["x-opt-ORIG-QUEUE"] = "orders" }), want: Message{Body: []byte("body")}, dead: Death{Queue: "orders"}},
		"artemis expired": {m: with(func(m *amqp1.Message) {
			m.Annotations["x-opt-ORIG-QUEUE"], m.Annotations["x-opt-ACTUAL-EXPIRY"] = "orders", int64(1)
		}), want: Message{Body: []byte("body")}, dead: Death{Reason: DeadExpired, Queue: "orders"}},
	} {
		got := amqp1Message(row.m)
		var dead Death
		if got.Dead != nil {
			dead = *got.Dead
		}
		if string(got.Body) != string(row.want.Body) || string(got.Header) != string(row.want.Header) || !got.Enqueued.Equal(row.want.Enqueued) || got.Retries != row.want.Retries || dead != row.dead {
			t.Errorf("%s: %+v, dead %+v", name, got, dead)
		}
	}
}

// TestAMQP1 shares one broker between its parts.
func TestAMQP1(t *testing.T) {
	servers.Need(t)
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) })
	r := &rabbit{RabbitMQServer: servers.RabbitMQ(t, servers.RabbitMQOptions{AMQP1: true})}
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
		{"marker comes last", testAMQP1MarkerComesLast}, {"journal", testAMQP1Journal}, {"deleted", testAMQP1Deleted}, {"not durable", testAMQP1NotDurable},
		{"lock", testAMQP1Lock}, {"another reader", testAMQP1AnotherReader}, {"copy", testAMQP1Copy}, {"no marker", testAMQP1NoMarker}, {"check", testAMQP1Check}, {"many", testAMQP1Many},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, r) })
	}
}

// amqp1 returns a sink on a queue that is there.
func (r *rabbit) amqp1(t *testing.T, queue string, change func(c *AMQP1Config)) Sink {
	t.Helper()
	c := NewAMQP1()
	c.Broker.URL, c.Queue, c.Dedicated = "amqp://"+r.Addr, "/amq/queue/"+queue, true
	change(c)
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	s, err := c.Open()
	if err != nil {
		t.Fatal(err)
	}
	if q, ok := s.(*amqp1Queue); ok {
		q.linger = 0
	}
	return s
}

func asItIs(*AMQP1Config) {}

// left waits until so many messages are in a queue that has no reader, beside a marker that was on its way when the sink left.
func (r *rabbit) left(t *testing.T, queue string, want int) {
	t.Helper()
	waitUntil(t, fmt.Sprintf("%d messages in %s", want, queue), func() bool {
		q, err := r.ch.QueueDeclarePassive(queue, true, false, false, false, nil)
		if err != nil {
			t.Fatal(err)
		}
		if q.Consumers > 0 || q.Messages <= want {
			return q.Consumers == 0 && q.Messages == want
		}
		got, last := 0, uint64(0)
		for {
			m, ok, err := r.ch.Get(queue, false)
			if err != nil {
				t.Fatal(err)
			}
			if !ok {
				break
			}
			last = m.DeliveryTag
			if !bytes.HasPrefix(m.Body, []byte(amqp1Mark)) {
				got++
			}
		}
		if last > 0 {
			if err := r.ch.Nack(last, true, true); err != nil { // back to where they were
				t.Fatal(err)
			}
		}
		return got == want
	})
}

// holds waits until so many messages are in a queue, those that a reader has and has not settled among them.
func (r *rabbit) holds(t *testing.T, queue string, want int) {
	t.Helper()
	waitUntil(t, fmt.Sprintf("%d messages in %s, settled or not", want, queue), func() bool {
		return r.Eval(fmt.Sprintf(`{ok, Q} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, <<%q>>)), [{messages, N}] = rabbit_amqqueue:info(Q, [messages]), N`, queue)) == fmt.Sprint(want)
	})
}

// claimant is a Receiver that notes how many heartbeats had come when the sink claimed to be caught up.
type claimant struct {
	taker
	claims map[time.Time]int
}

func (c *claimant) CaughtUp(at time.Time) {
	c.taker.CaughtUp(at)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.claims[at] = len(c.seqs)
}

// Whatever the type of the queue, whoever puts messages in and whatever their priorities: a claim is made behind all of
// what was in before its time.
func testAMQP1MarkerComesLast(t *testing.T, r *rabbit) {
	for name, args := range map[string]amqp.Table{
		"classic": {amqp.QueueTypeArg: amqp.QueueTypeClassic}, "quorum": {amqp.QueueTypeArg: amqp.QueueTypeQuorum}, "priority": {"x-max-priority": 10},
	} {
		r.queue(t, "last."+name, args)
		to := &claimant{claims: make(map[time.Time]int)}
		a := runAMQPWith(t, r.amqp1(t, "last."+name, asItIs), to, &to.taker).readied(t)
		const writers, each = 4, 300
		type mark struct {
			at time.Time
			n  int
		}
		var (
			mu    sync.Mutex
			put   int
			marks []mark
			wait  sync.WaitGroup
		)
		for p := range writers {
			wait.Go(func() {
				c, err := amqp.Dial(r.URL)
				if err != nil {
					t.Error(err)
					return
				}
				defer c.Close()
				ch, err := c.Channel()
				if err == nil {
					err = ch.Confirm(false)
				}
				for n := 0; n < each && err == nil; n++ {
					var dc *amqp.DeferredConfirmation
					dc, err = ch.PublishWithDeferredConfirm("", "last."+name, false, false, amqp.Publishing{Body: []byte(tokenOf(uint64(p*each + n))), Priority: uint8((n + p) % 10), DeliveryMode: uint8(1 + n%2)})
					if err == nil {
						_, err = dc.WaitContext(t.Context())
					}
					mu.Lock()
					put++
					marks = append(marks, mark{time.Now(), put})
					mu.Unlock()
				}
				if err != nil {
					t.Error(err)
				}
			})
		}
		wait.Wait()
		a.proven(t)
		a.stop()
		for at, delivered := range to.claims {
			in := 0
			for _, m := range marks {
				if m.at.Before(at) {
					in = max(in, m.n)
				}
			}
			if delivered < in {
				t.Errorf("%s: caught up after %d messages, when at least %d had come in", name, delivered, in)
			}
		}
	}
}

// A heartbeat is accepted when the journal has it, and others at once; what comes again over a new connection is not
// delivered again, but is for another process.
func testAMQP1Journal(t *testing.T, r *rabbit) {
	r.queue(t, "journal1", nil)
	s := r.amqp1(t, "journal1", asItIs)
	journal := s.(Resumer)
	journal.Position()
	a := runAMQP(t, s).readied(t)
	r.beats(t, "", "journal1", 1)
	r.put(t, "", "journal1", amqp.Publishing{Body: []byte("of others")})
	r.beats(t, "", "journal1", 2)
	a.gotten(t, 1, 2)
	journal.Position() // about to be written, and fails
	a.stop()
	r.left(t, "journal1", 3) // the other one waits for its turn
	a = runAMQP(t, s).readied(t)
	r.beats(t, "", "journal1", 3)
	a.gotten(t, 3)
	a.proven(t)
	if gaps := a.gapped(); len(gaps) > 0 {
		t.Errorf("gaps %q", gaps)
	}
	a.stop()
	r.left(t, "journal1", 4)

	next := r.amqp1(t, "journal1", asItIs)
	next.(Resumer).Resume(journal.Position())
	if got := next.(Resumer).Position(); got["queue"] != "/amq/queue/journal1" {
		t.Errorf("position %v", got)
	}
	a = runAMQP(t, next).readied(t)
	waitUntil(t, "what was not accepted", func() bool { return len(a.arrived()) == 3 })
	next.(Resumer).Position()
	next.(Settler).Settle()
	r.holds(t, "journal1", 0)
	a.proven(t)
	a.stop()
	r.left(t, "journal1", 0)
}

// The sink ends when its queue is deleted, says that it is missing, and that something may have been in it.
func testAMQP1Deleted(t *testing.T, r *rabbit) {
	r.queue(t, "deleted1", nil)
	s := r.amqp1(t, "deleted1", asItIs)
	a := runAMQP(t, s).readied(t)
	if _, err := r.ch.QueueDelete("deleted1", false, false, false); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-a.err:
		if err == nil {
			t.Error("Run ended without an error")
		}
		t.Log(err)
	case <-time.After(time.Minute):
		t.Fatal("Run did not end")
	}
	a = runAMQP(t, s)
	select {
	case err := <-a.err:
		if conn.ClassOf(err) != conn.Missing {
			t.Errorf("class %s: %v", conn.ClassOf(err), err)
		}
	case <-time.After(time.Minute):
		t.Fatal("Run did not end")
	}
	r.queue(t, "deleted1", nil)
	if a = runAMQP(t, s).readied(t); !slices.Equal(a.gapped(), []string{"recreated"}) {
		t.Errorf("gaps %q", a.gapped())
	}
	a.stop()
	if a = runAMQP(t, s).readied(t); len(a.gapped()) > 0 {
		t.Errorf("gaps %q", a.gapped())
	}
	a.stop()
}

// A heartbeat that is gone when the broker is restarted makes a gap of a lost connection.
func testAMQP1NotDurable(t *testing.T, r *rabbit) {
	r.queue(t, "fleeting1", nil)
	s := r.amqp1(t, "fleeting1", asItIs)
	a := runAMQP(t, s).readied(t)
	r.put(t, "", "fleeting1", amqp.Publishing{DeliveryMode: amqp.Transient, Body: []byte(tokenOf(1))})
	a.gotten(t, 1)
	a.stop()
	if a = runAMQP(t, s).readied(t); !slices.Equal(a.gapped(), []string{"not_durable"}) {
		t.Errorf("gaps %q", a.gapped())
	}
	a.stop()
	if a = runAMQP(t, s).readied(t); len(a.gapped()) > 0 {
		t.Errorf("gaps %q", a.gapped())
	}
	a.stop()
}

// A broker that may hold something back is not caught up with.
func testAMQP1Lock(t *testing.T, r *rabbit) {
	r.queue(t, "lock1", nil)
	const lock = 2 * time.Second
	s := r.amqp1(t, "lock1", func(c *AMQP1Config) { c.Lock = conn.Duration(lock) })
	began := time.Now()
	a := runAMQP(t, s).readied(t)
	waitUntil(t, "caught up", func() bool { return !a.f.Stats().CaughtUp.IsZero() })
	if at := a.f.Stats().CaughtUp.Sub(began); at < lock {
		t.Errorf("caught up with %s after the start, while the broker may hold back for %s", at, lock)
	}
	a.stop()
}

// Two who read the same queue get a part each, and neither claims anything.
func testAMQP1AnotherReader(t *testing.T, r *rabbit) {
	r.queue(t, "two1", nil)
	stuck, err := r.ch.Consume("two1", "stuck", false, false, false, false, nil) // it takes, and settles nothing
	if err != nil {
		t.Fatal(err)
	}
	s := r.amqp1(t, "two1", asItIs)
	a := runAMQP(t, s).readied(t)
	r.beats(t, "", "two1", 1, 2, 3)
	select {
	case err := <-a.err:
		if err == nil || !strings.Contains(err.Error(), "somebody else reads") {
			t.Errorf("Run: %v", err)
		}
	case <-time.After(time.Minute):
		t.Fatal("Run did not end")
	}
	if !a.f.Stats().CaughtUp.IsZero() {
		t.Error("it claims to be caught up")
	}
	if err := r.ch.Cancel("stuck", false); err != nil {
		t.Fatal(err)
	}
	for d := range stuck {
		if err := d.Nack(false, true); err != nil {
			t.Fatal(err)
		}
	}
	// After a connection that was lost the broker may not have noticed.
	const linger = 3 * time.Second
	s.(*amqp1Queue).linger = linger
	began := time.Now()
	b := runAMQP(t, s).readied(t)
	waitUntil(t, "caught up", func() bool { return !b.f.Stats().CaughtUp.IsZero() })
	if at := b.f.Stats().CaughtUp.Sub(began); at < linger {
		t.Errorf("caught up with %s after the start", at)
	}
	if n := len(a.arrived()) + len(b.arrived()); n != 3 {
		t.Errorf("%d of 3 heartbeats", n)
	}
	b.stop()
}

// A copy hears what is sent while it listens, takes nothing from anybody, and says that it was away. Without an address
// for markers it claims nothing.
func testAMQP1Copy(t *testing.T, r *rabbit) {
	r.exchange(t, "copy1", amqp.ExchangeTopic)
	r.queue(t, "copy1.q", nil)
	if err := r.ch.QueueBind("copy1.q", "orders.#", "copy1", false, nil); err != nil {
		t.Fatal(err)
	}
	s := r.amqp1(t, "", func(c *AMQP1Config) { c.Queue, c.Dedicated, c.Address = "", false, "/exchange/copy1/orders.#" })
	if _, ok := s.(Resumer); ok {
		t.Error("a copy has no position")
	}
	a := runAMQP(t, s).readied(t)
	r.beats(t, "copy1", "orders.new", 1)
	r.beats(t, "copy1", "parcels.new", 2)
	r.beats(t, "copy1", "orders.old", 3)
	a.gotten(t, 1, 3)
	if !a.f.Stats().CaughtUp.IsZero() {
		t.Error("it claims to be caught up")
	}
	if silent := a.f.silent(); silent > 20*time.Second {
		t.Errorf("silent for %s", silent)
	}
	a.stop()
	r.left(t, "copy1.q", 2)
	if a = runAMQP(t, s).readied(t); !slices.Equal(a.gapped(), []string{"disconnected"}) {
		t.Errorf("gaps %q", a.gapped())
	}
	a.stop()
}

// Without markers the driver is alive all the same, and what was accepted is forgotten.
func testAMQP1NoMarker(t *testing.T, r *rabbit) {
	r.queue(t, "unmarked1", nil)
	s := r.amqp1(t, "unmarked1", func(c *AMQP1Config) { c.Marker = "none" }).(*amqp1Queue)
	a := runAMQP(t, s).readied(t)
	heard := a.f.heard.Load()
	waitUntil(t, "a sign of life", func() bool { return a.f.heard.Load() > heard })
	for range 2 * amqp1Taken {
		if err := r.ch.PublishWithContext(t.Context(), "", "unmarked1", false, false, amqp.Publishing{Body: []byte("of others")}); err != nil {
			t.Fatal(err)
		}
	}
	waitUntil(t, "all of them", func() bool { return a.f.Stats().Messages[Other] == 2*amqp1Taken })
	r.holds(t, "unmarked1", 0)
	a.stop()
	if n := len(s.taken); n > amqp1Taken+1 {
		t.Errorf("%d messages are remembered", n)
	}
	if !a.f.Stats().CaughtUp.IsZero() {
		t.Error("it claims to be caught up")
	}
}

// Check takes nothing, and sees that the address is missing.
func testAMQP1Check(t *testing.T, r *rabbit) {
	r.queue(t, "check1", nil)
	r.beats(t, "", "check1", 1, 2)
	if err := r.amqp1(t, "check1", asItIs).(Checker).Check(t.Context()); err != nil {
		t.Error(err)
	}
	r.left(t, "check1", 2)
	if err := r.amqp1(t, "nobody made it", asItIs).(Checker).Check(t.Context()); conn.ClassOf(err) != conn.Missing {
		t.Errorf("class %s: %v", conn.ClassOf(err), err)
	}
}

// More heartbeats than may be under way do not stall a sink whose journal is never written.
func testAMQP1Many(t *testing.T, r *rabbit) {
	r.queue(t, "many1", nil)
	s := r.amqp1(t, "many1", asItIs)
	s.(Resumer).Position()
	const n = 3 * amqp1Credit
	for seq := range uint64(n) {
		if err := r.ch.PublishWithContext(t.Context(), "", "many1", false, false, amqp.Publishing{DeliveryMode: amqp.Persistent, Body: []byte(tokenOf(seq))}); err != nil {
			t.Fatal(err)
		}
	}
	a := runAMQP(t, s).readied(t)
	waitUntil(t, "all of them", func() bool { return len(a.arrived()) == n })
	a.proven(t)
	r.holds(t, "many1", amqp1Held)
	a.stop()
	r.left(t, "many1", amqp1Held)
}
