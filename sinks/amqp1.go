package sinks

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"hash/maphash"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/Azure/go-amqp"

	"github.com/lag-monitor/lag-monitor/internal/conn"
)

// AMQP1Config is a sink `amqp1`: a link to a broker that speaks AMQP 1.0, from a queue that is the monitor's or from an
// address that gives each link a copy.
type AMQP1Config struct {
	// Broker says how to connect.
	Broker conn.AMQP1 `yaml:",inline"`
	// Queue to take messages out of, as the broker writes it.
	Queue string `yaml:"queue,omitempty"`
	// Dedicated says that Queue is the monitor's, which takes every message out of it.
	Dedicated bool `yaml:"dedicated,omitempty"`
	// Address of a topic or an exchange, of which each link gets a copy of its own.
	Address string `yaml:"address,omitempty"`
	// Capabilities that the queue or address is asked for, such as queue or topic.
	Capabilities []string `yaml:"capabilities,omitempty"`
	// Marker is an address to which the sink sends, and which brings that to the sink: what came before it has come.
	// Empty: the queue, or for an address nothing. none: nothing.
	Marker string `yaml:"marker,omitempty"`
	// Lock is how long the broker may hold back what it has handed out over a connection that ended.
	Lock conn.Duration `yaml:"lock,omitempty"`
}

// NewAMQP1 returns the defaults.
func NewAMQP1() *AMQP1Config { return &AMQP1Config{} }

const (
	// amqp1NoMarker is the Marker that is none.
	amqp1NoMarker = "none"
	// amqp1Credit is how many messages are under way to a sink at most. The broker is given credit again when all have come:
	// RabbitMQ 3 counts wrongly what is given while it sends, and the client cannot bear more messages than it gave credit for.
	amqp1Credit = 1000
	// amqp1Held is how many messages are kept unaccepted at most, until the journal has them.
	amqp1Held = 500
	// amqp1Answer bounds each answer of the broker. It is also how long nothing may come while a marker is out.
	amqp1Answer = 5 * time.Second
	// amqp1Wait bounds the wait for a marker while other messages come.
	amqp1Wait = time.Minute
	// amqp1Prove is how often a marker is sent.
	amqp1Prove = 400 * time.Millisecond
	// amqp1Leave bounds how long it may take to accept what may be accepted when the sink ends.
	amqp1Leave = 500 * time.Millisecond
	// amqp1Linger is how long a broker may take to notice that a connection is lost, and hold back what it handed out over it.
	amqp1Linger = 20 * time.Second
	// amqp1Alone is how many markers have to come back in a row before one proves something. If somebody else read the
	// queue, say a connection of ours that the broker still takes to be there, the two would get them by turns.
	amqp1Alone = 4
	// amqp1Taken is how many messages are remembered that may come again.
	amqp1Taken = 4 * amqp1Credit
	// amqp1Mark is what a marker begins with.
	amqp1Mark = "lag-monitor-marker "
	// amqp1Locked is the domain of Azure Service Bus, which holds back what was not settled.
	amqp1Locked = ".servicebus.windows.net"
)

// Validate implements Config.
func (c *AMQP1Config) Validate() error {
	errs := []error{c.Broker.Validate()}
	add := func(path, format string, args ...any) { errs = append(errs, conn.Field(path, format, args...)) }
	switch {
	case c.Queue == "" && c.Address == "":
		add("queue", "is required, with dedicated: true, or else address: a topic or an exchange of which each link gets a copy")
	case c.Queue != "" && c.Address != "":
		add("address", "cannot be combined with queue")
	case c.Queue != "" && !c.Dedicated:
		add("queue", "whoever else reads %q would lose messages to the monitor: listen to what feeds it, or set dedicated: true if nobody else reads it", c.Queue)
	case c.Address != "" && c.Dedicated:
		add("dedicated", "goes with queue: an address gives each link a copy")
	}
	switch d := time.Duration(c.Lock); {
	case d < 0 || d > time.Hour:
		add("lock", "%s is not from 0s to 1h", c.Lock)
	case d != 0 && c.Address != "":
		add("lock", "goes with queue")
	case d == 0 && c.Queue != "" && strings.Contains(c.Broker.URL, amqp1Locked):
		add("lock", "is required at Azure Service Bus: the lock duration of the queue")
	}
	return errors.Join(errs...)
}

// marker returns the address of markers; empty: there is none.
func (c *AMQP1Config) marker() string {
	switch c.Marker {
	case amqp1NoMarker:
		return ""
	case "":
		return c.Queue
	}
	return c.Marker
}

// source returns the address to read.
func (c *AMQP1Config) source() string {
	if c.Queue != "" {
		return c.Queue
	}
	return c.Address
}

// Open implements Config.
func (c *AMQP1Config) Open() (Sink, error) {
	if _, err := c.Broker.TLS.Config(); err != nil {
		return nil, fmt.Errorf("tls: %w", err)
	}
	if c.Queue == "" {
		return &amqp1Copy{amqp1Sink: amqp1Sink{c: c}}, nil
	}
	return &amqp1Queue{amqp1Sink: amqp1Sink{c: c}, seed: maphash.MakeSeed(), linger: amqp1Linger}, nil
}

// amqp1Sink is what the queue and the copy share.
type amqp1Sink struct{ c *AMQP1Config }

// Expires implements Expirer: whoever injected a message may have given it a time to live.
func (s *amqp1Sink) Expires() bool { return true }

// Check implements Checker. It gives the broker no credit, and so gets no message.
func (s *amqp1Sink) Check(ctx context.Context) error {
	w, err := s.attach(ctx)
	if err != nil {
		return err
	}
	w.Close()
	return nil
}

// attach connects and has the links made. No message comes before the broker is given credit.
func (s *amqp1Sink) attach(ctx context.Context) (w *amqp1Work, err error) {
	l, err := s.c.Broker.Connect(ctx)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			l.Close()
		}
	}()
	w = &amqp1Work{AMQP1Link: l, address: s.c.source(), marker: s.c.marker(), back: make(chan amqp1Proof, 1)}
	attaching, stop := context.WithTimeout(ctx, amqp1Answer)
	defer stop()
	attaching, end := l.With(attaching)
	defer end()
	w.in, err = l.NewReceiver(attaching, w.address, &amqp.ReceiverOptions{Credit: -1, SourceCapabilities: s.c.Capabilities})
	if err != nil {
		return nil, fmt.Errorf("address %s: %w", w.address, l.Err(err))
	}
	if w.marker != "" {
		unsettled := amqp.SenderSettleModeUnsettled
		// RabbitMQ 3 breaks a session on which two links are made at once.
		own, failed := l.Another(attaching)
		if err = failed; err == nil {
			w.out, err = own.NewSender(attaching, w.marker, &amqp.SenderOptions{SettlementMode: &unsettled})
		}
		if err != nil {
			return nil, fmt.Errorf("the sink has to send its markers to %s: %w", w.marker, l.Err(err))
		}
	}
	return w, nil
}

// amqp1Work is a Run at work.
type amqp1Work struct {
	*conn.AMQP1Link
	f               *Feed
	address, marker string
	in              *amqp.Receiver
	out             *amqp.Sender // nil: no markers

	deliver func(*amqp.Message) error // takes a message, and accepts it now or later
	proven  func(amqp1Proof)          // a marker has come back; of the goroutine that delivers
	accept  func() error              // accepts what has become free

	nonce string          // of this Run
	taken atomic.Uint64   // messages that were delivered
	back  chan amqp1Proof // markers that have come back

	// before is what was settled before the marker was sent that is under way, and when.
	mu     sync.Mutex
	before amqp1Proof
	upTo   uint64 // what is settled, in the driver's own count
	series uint64 // the first marker of those that have come back in a row
}

// amqp1Proof is a marker: everything that had entered before asked has come when it comes back.
type amqp1Proof struct {
	number  uint64
	asked   time.Time
	settled uint64 // what the broker was told before, in the driver's own count
	row     uint64 // how many came back before it, in a row
}

// settledUpTo notes what the broker has been told.
func (w *amqp1Work) settledUpTo(n uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.upTo = n
}

// run listens until ctx ends.
func (w *amqp1Work) run(ctx context.Context) error {
	w.nonce = rand.Text() + " "
	if err := w.in.IssueCredit(amqp1Credit); err != nil {
		return w.Err(err)
	}
	// The client waits for its connection without looking at the context.
	guard := context.AfterFunc(ctx, func() { time.AfterFunc(amqp1Leave, func() { w.Drop(context.Canceled) }) })
	defer guard()
	ctx, end := w.With(ctx)
	defer end()
	ctx, fail := context.WithCancelCause(ctx)
	var proofs sync.WaitGroup
	defer proofs.Wait()
	defer fail(nil)
	proofs.Go(func() {
		var err error
		defer func() { fail(err) }()
		defer conn.Contain(&err)
		err = w.prove(ctx)
	})
	got := 0
	tick := time.Now().Add(amqp1Prove)
	for {
		// What is held back is accepted in time, whatever comes.
		waiting, stop := context.WithDeadline(ctx, tick)
		m, err := w.in.Receive(waiting, nil)
		stop()
		if now := time.Now(); !now.Before(tick) {
			tick = now.Add(amqp1Prove)
			if w.out == nil {
				w.f.Skip(0) // alive: the broker is not silent, or the connection would have ended
			}
			if err := w.accept(); err != nil {
				return fmt.Errorf("accept: %w", w.Err(err))
			}
		}
		switch {
		case err != nil && ctx.Err() != nil:
			_ = w.accept() // or it would come again
			return w.Err(context.Cause(ctx))
		case errors.Is(err, context.DeadlineExceeded):
			continue
		case err != nil:
			return w.Err(err)
		}
		if err := w.take(ctx, m); err != nil {
			return fmt.Errorf("accept: %w", w.Err(err))
		}
		if got++; got == amqp1Credit {
			got = 0
			if err := w.in.IssueCredit(amqp1Credit); err != nil {
				return w.Err(err)
			}
		}
	}
}

// take takes what has come: a marker or a message.
func (w *amqp1Work) take(ctx context.Context, m *amqp.Message) error {
	text, ok := bytes.CutPrefix(amqp1Body(m), []byte(amqp1Mark))
	if !ok {
		err := w.deliver(m)
		w.taken.Add(1)
		return err
	}
	// One of another Run, or of another sink that listens to the same topic, may come, too.
	if number, ok := bytes.CutPrefix(text, []byte(w.nonce)); ok {
		if n, err := strconv.ParseUint(string(number), 10, 64); err == nil {
			w.mu.Lock()
			p := w.before
			w.mu.Unlock()
			if p.number == n {
				w.proven(p)
				select {
				case w.back <- p:
				default:
				}
			}
		}
	}
	return w.in.AcceptMessage(ctx, m)
}

// prove sends markers.
func (w *amqp1Work) prove(ctx context.Context) error {
	if w.out == nil {
		<-ctx.Done()
		return nil
	}
	tick := time.NewTicker(amqp1Prove)
	defer tick.Stop()
	w.series = 1
	for n := uint64(1); ; n++ {
		if err := w.send(ctx, n); err != nil {
			return fmt.Errorf("marker to %s: %w", w.marker, err)
		}
		if err := w.await(ctx, n); err != nil {
			return fmt.Errorf("marker to %s: %w", w.marker, err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// send sends a marker, behind everything that is in the queue: its priority is the lowest.
func (w *amqp1Work) send(ctx context.Context, n uint64) error {
	ctx, stop := context.WithTimeout(ctx, amqp1Answer)
	defer stop()
	m := amqp.NewMessage([]byte(amqp1Mark + w.nonce + strconv.FormatUint(n, 10)))
	m.Header = &amqp.MessageHeader{TTL: 2 * amqp1Wait}
	w.mu.Lock()
	w.before = amqp1Proof{n, time.Now(), w.upTo, n - w.series}
	w.mu.Unlock()
	receipt, err := w.out.SendWithReceipt(ctx, m, nil)
	if err != nil {
		return w.silent(ctx, err)
	}
	state, err := receipt.Wait(ctx)
	if err != nil {
		return w.silent(ctx, err)
	}
	switch s := state.(type) {
	case *amqp.StateAccepted:
		return nil
	case *amqp.StateRejected:
		if s.Error != nil {
			return w.Err(fmt.Errorf("rejected: %w", s.Error))
		}
	}
	return conn.WithClass(conn.Other, fmt.Errorf("the broker does not take it: %T", state))
}

// silent tells why there was no answer.
func (w *amqp1Work) silent(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return conn.WithClass(conn.Network, fmt.Errorf("no answer: %w", err))
	}
	return w.Err(err)
}

// await waits for a marker. One that is behind very much is given up, for another one.
func (w *amqp1Work) await(ctx context.Context, n uint64) error {
	end := time.Now().Add(amqp1Wait)
	for {
		last := w.taken.Load()
		select {
		case p := <-w.back:
			if p.number == n {
				return nil
			}
		case <-time.After(amqp1Answer):
			if w.taken.Load() == last {
				return conn.WithClass(conn.Network, errors.New("it does not come back: somebody else reads what the monitor reads, or the address is another"))
			}
			if time.Now().After(end) {
				w.mu.Lock()
				w.series = n + 1
				w.mu.Unlock()
				w.f.Error(conn.WithClass(conn.Other, fmt.Errorf("marker to %s: not back after %s: very much was in the queue before it, or somebody else reads it", w.marker, amqp1Wait)))
				return nil
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// amqp1Copy listens to an address that gives each link a copy. What is sent while it is away is gone.
type amqp1Copy struct {
	amqp1Sink
	begun bool // it has listened before
}

// Run implements Sink.
func (s *amqp1Copy) Run(ctx context.Context, f *Feed) error {
	err := s.run(ctx, f)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func (s *amqp1Copy) run(ctx context.Context, f *Feed) error {
	w, err := s.attach(ctx)
	if err != nil {
		return err
	}
	defer w.Close()
	w.f = f
	w.deliver = func(m *amqp.Message) error {
		f.Deliver(amqp1Message(m))
		return w.in.AcceptMessage(ctx, m)
	}
	w.accept = func() error { return nil }
	w.proven = func(p amqp1Proof) { f.CaughtUp(p.asked) }
	if s.begun {
		f.Gap("disconnected")
	}
	s.begun = true
	f.Ready()
	if err := w.run(ctx); err != nil {
		return fmt.Errorf("address %s: %w", w.address, err)
	}
	return nil
}

// amqp1Queue takes messages out of a queue that nobody else reads. The broker keeps its position: what was accepted.
type amqp1Queue struct {
	amqp1Sink
	seed   maphash.Seed
	linger time.Duration // amqp1Linger

	mu    sync.Mutex
	begun bool // it has listened, or one before it

	// What the journal does not have yet is not accepted: it comes again should the process be killed.
	open settlement

	// Of Run alone.
	lost     string
	fleeting bool           // a heartbeat came that is gone when the broker is restarted
	hidden   time.Time      // until then the broker may hold back messages
	taken    []amqp1Taking  // delivered, and perhaps coming again
	accepted int            // the first so many of taken are accepted
	again    map[uint64]int // how often what was taken over lost connections may come again, by hash
}

// amqp1Taking is a message that was delivered.
type amqp1Taking struct {
	m         *amqp.Message // nil when it is accepted
	seq, hash uint64
	at        time.Time
	hold      bool // until the journal has it
}

// Position implements Resumer. What is left in the queue is the position.
func (s *amqp1Queue) Position() map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open.ask()
	if !s.begun {
		return map[string]string{}
	}
	return map[string]string{"queue": s.c.Queue}
}

// Settle implements Settler.
func (s *amqp1Queue) Settle() { s.open.settle() }

// Resume implements Resumer.
func (s *amqp1Queue) Resume(parts map[string]string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.begun = s.begun || parts["queue"] == s.c.Queue
}

// Run implements Sink.
func (s *amqp1Queue) Run(ctx context.Context, f *Feed) error {
	err := s.run(ctx, f)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func (s *amqp1Queue) run(ctx context.Context, f *Feed) error {
	w, err := s.attach(ctx)
	if err != nil {
		s.gone(err)
		return err
	}
	defer w.Close()
	w.f = f
	w.deliver = func(m *amqp.Message) error { return s.deliver(w, m) }
	w.accept = func() error { return s.accept(w) }
	w.proven = func(p amqp1Proof) { s.proven(w, p) }
	switch {
	case s.lost != "":
		f.Gap(s.lost)
	case s.fleeting:
		f.Gap("not_durable")
	}
	s.lost, s.fleeting = "", false
	hidden := time.Duration(s.c.Lock)
	s.mu.Lock()
	if s.begun {
		hidden = max(hidden, s.linger)
	}
	s.begun = true
	s.mu.Unlock()
	s.hidden = time.Now().Add(hidden)
	// What was delivered over the last connection and not accepted for certain comes again.
	if s.again == nil {
		s.again = make(map[uint64]int)
	}
	for i := range s.taken {
		s.again[s.taken[i].hash]++
	}
	s.taken, s.accepted = s.taken[:0], 0
	f.Ready()
	if err := w.run(ctx); err != nil {
		s.gone(err)
		return fmt.Errorf("queue %s: %w", w.address, err)
	}
	return nil
}

// gone notes that the queue was deleted, if that is what err says.
func (s *amqp1Queue) gone(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.begun && conn.ClassOf(err) == conn.Missing {
		s.lost = "recreated"
	}
}

// deliver takes a message.
func (s *amqp1Queue) deliver(w *amqp1Work, m *amqp.Message) error {
	msg := amqp1Message(m)
	var h maphash.Hash
	h.SetSeed(s.seed)
	_, _ = h.Write(msg.Header)
	_ = h.WriteByte(0)
	_, _ = h.Write(msg.Body)
	t := amqp1Taking{m: m, hash: h.Sum64(), at: time.Now()}
	// Only a broker that says so is known to hand out a message for the first time.
	if n := s.again[t.hash]; n > 0 && (m.Header == nil || !m.Header.FirstAcquirer) {
		if s.again[t.hash] = n - 1; n == 1 {
			delete(s.again, t.hash)
		}
		t.hold = true // it may have been a heartbeat
		w.f.Skip(0)
	} else if t.hold = w.f.Deliver(msg); t.hold && (m.Header == nil || !m.Header.Durable) {
		s.fleeting = true
	}
	t.seq = s.open.next()
	s.taken = append(s.taken, t)
	return s.accept(w)
}

// accept accepts what need not come again: the messages of others, and heartbeats that the journal has, if there is one.
func (s *amqp1Queue) accept(w *amqp1Work) error {
	free := s.open.free()
	hold := amqpHold
	if lock := time.Duration(s.c.Lock); lock > 0 {
		hold = min(hold, lock/2)
	}
	// In order, so that one number says what the broker was told.
	for ; s.accepted < len(s.taken); s.accepted++ {
		t := &s.taken[s.accepted]
		if t.hold && t.seq > free && time.Since(t.at) < hold && len(s.taken)-s.accepted <= amqp1Held {
			break
		}
		if err := w.in.AcceptMessage(context.Background(), t.m); err != nil {
			return err
		}
		t.m = nil
		w.settledUpTo(t.seq)
	}
	// Without markers, nothing else forgets them.
	if s.accepted > amqp1Taken {
		s.forget(s.accepted - amqp1Taken/2)
	}
	return nil
}

// forget forgets the first n of taken, which do not come again.
func (s *amqp1Queue) forget(n int) {
	s.taken = append(s.taken[:0], s.taken[n:]...)
	s.accepted -= n
}

// proven takes a marker that has come back. The broker reads in order what a connection brings, and the marker came
// back behind it: what was accepted before the marker was sent does not come again.
func (s *amqp1Queue) proven(w *amqp1Work, p amqp1Proof) {
	n := 0
	for n < s.accepted && s.taken[n].seq <= p.settled {
		n++
	}
	s.forget(n)
	if p.asked.Before(s.hidden) || p.row < amqp1Alone-1 {
		return // what was handed out before, or to somebody else, may come behind the marker
	}
	clear(s.again)
	w.f.CaughtUp(p.asked)
}

// amqp1Body returns the payload. Its pieces are seldom more than one.
func amqp1Body(m *amqp.Message) []byte {
	if len(m.Data) == 1 {
		return m.Data[0]
	}
	switch v := m.Value.(type) {
	case string:
		return []byte(v)
	case []byte:
		return v
	}
	return bytes.Join(m.Data, nil)
}

// amqp1Message is what a delivery brought. What it says of itself comes from outside and may be of any type.
func amqp1Message(m *amqp.Message) Message {
	msg := Message{Body: amqp1Body(m)}
	for _, name := range [...]string{"lag-monitor-heartbeat", heartbeatHeader} {
		switch v := m.ApplicationProperties[name].(type) {
		case string:
			msg.Header = []byte(v)
		case []byte:
			msg.Header = v
		default:
			continue
		}
		break
	}
	if msg.Dead = amqp1Death(m); msg.Dead != nil {
		if m.Header != nil && m.Header.DeliveryCount < 1<<30 {
			msg.Retries = int(m.Header.DeliveryCount)
		}
		return msg // its times are those of the queue that it was in before
	}
	if _, moved := m.Annotations["x-opt-ORIG-ADDRESS"]; moved {
		return msg
	}
	if t, ok := m.Annotations["x-opt-enqueued-time"].(time.Time); ok { // Azure Service Bus
		msg.Enqueued = t
	} else if ms, ok := m.Annotations["x-opt-ingress-time"].(int64); ok && ms > 0 { // Artemis
		msg.Enqueued = time.UnixMilli(ms)
	}
	return msg
}

// amqp1Reasons are the reasons of Azure Service Bus that have a word of ours.
var amqp1Reasons = map[string]string{"TTLExpiredException": DeadExpired, "MaxDeliveryCountExceeded": DeadDeliveryLimit}

// amqp1Death reads why and where a message was dead-lettered.
func amqp1Death(m *amqp.Message) *Death {
	if reason, ok := m.ApplicationProperties["DeadLetterReason"].(string); ok { // Azure Service Bus
		d := &Death{Reason: reason}
		if ours, ok := amqp1Reasons[reason]; ok {
			d.Reason = ours
		}
		d.Queue, _ = m.Annotations["x-opt-deadletter-source"].(string)
		return d
	}
	if queue, ok := m.Annotations["x-opt-ORIG-QUEUE"].(string); ok { // Artemis
		d := &Death{Queue: queue}
		if _, expired := m.Annotations["x-opt-ACTUAL-EXPIRY"]; expired {
			d.Reason = DeadExpired
		}
		return d
	}
	return nil
}
