package sinks

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/lag-monitor/lag-monitor/internal/conn"
)

// AMQPConfig is a sink `amqp`: an exchange of RabbitMQ, to which the sink binds a queue of its own; a stream; or a
// queue that is the monitor's.
type AMQPConfig struct {
	// Broker says how to connect.
	Broker conn.AMQP `yaml:",inline"`
	// Exchange to listen to, through a queue that the sink declares and binds.
	Exchange string `yaml:"exchange,omitempty"`
	// Bindings say which messages of the exchange are wanted: those of the real queue.
	Bindings []AMQPBinding `yaml:"bindings,omitempty"`
	// Queue is the name of the sink's own queue, by default a new one; or, with Dedicated, of one that is there.
	Queue string `yaml:"queue,omitempty"`
	// QueueType of the own queue: classic, or quorum to outlive a node of a cluster.
	QueueType string `yaml:"queue_type,omitempty"`
	// Keep is how long the broker keeps the own queue, and a message in it, while nobody reads.
	Keep conn.Duration `yaml:"keep,omitempty"`
	// MaxLength is how many messages the own queue holds at most. The oldest give way.
	MaxLength int `yaml:"max_length,omitempty"`
	// Dedicated says that Queue is the monitor's, which takes every message out of it.
	Dedicated bool `yaml:"dedicated,omitempty"`
	// Stream to read; it stays as it is.
	Stream string `yaml:"stream,omitempty"`
	// Backlog names queues whose messages and consumers are counted, for the dashboard.
	Backlog []string `yaml:"backlog,omitempty"`
}

// AMQPBinding is what makes an exchange put a message into a queue.
type AMQPBinding struct {
	// RoutingKey of the messages. In a topic exchange * is one word and # any number of words.
	RoutingKey string `yaml:"routing_key,omitempty"`
	// Arguments for a headers exchange: values of headers, and x-match.
	Arguments map[string]AMQPValue `yaml:"arguments,omitempty"`
}

// AMQPValue is a text, a whole number, true or false.
type AMQPValue struct{ v any }

// UnmarshalYAML implements yaml.Unmarshaler in the form that keeps strict decoding.
func (a *AMQPValue) UnmarshalYAML(unmarshal func(any) error) error {
	var v any
	if err := unmarshal(&v); err != nil {
		return err
	}
	switch n := v.(type) {
	case string, bool:
		a.v = v
	case int:
		a.v = int64(n)
	default:
		return errors.New("is not a text, a whole number, true or false")
	}
	return nil
}

// MarshalYAML writes what was read.
func (a AMQPValue) MarshalYAML() (any, error) { return a.v, nil }

// NewAMQP returns the defaults.
func NewAMQP() *AMQPConfig {
	return &AMQPConfig{QueueType: amqp.QueueTypeClassic, Keep: conn.Duration(10 * time.Minute), MaxLength: 100_000}
}

const (
	// amqpName is how long a name may be, in bytes.
	amqpName = 255
	// amqpPrefetch is how many messages are under way to a sink at most.
	amqpPrefetch = 1000
	// amqpLeast is the least length of an own queue that tells an overflow from a busy moment.
	amqpLeast = 10 * amqpPrefetch
	// amqpAnswer bounds each answer of the broker.
	amqpAnswer = 5 * time.Second
	// amqpProve is how often a sink asks for a proof that it is caught up.
	amqpProve = 400 * time.Millisecond
	// amqpBindEvery is after how many proofs the own queue is bound again, in case somebody replaced the exchange.
	amqpBindEvery = 12
	// amqpAcks is how many messages are acknowledged at once on a busy queue.
	amqpAcks = 64
	// amqpLeave is how long the reader before us may take to leave the queue.
	amqpLeave = 2 * time.Second
	// amqpHold is how long a heartbeat waits at most for the journal before it is acknowledged.
	amqpHold = time.Minute
)

// Validate implements Config.
func (c *AMQPConfig) Validate() error {
	errs := []error{c.Broker.Validate()}
	add := func(path, format string, args ...any) { errs = append(errs, conn.Field(path, format, args...)) }
	for path, name := range map[string]string{"exchange": c.Exchange, "queue": c.Queue, "stream": c.Stream} {
		if len(name) > amqpName {
			add(path, "is longer than %d bytes", amqpName)
		}
	}
	switch {
	case c.Stream != "":
		if c.Exchange != "" {
			add("exchange", "cannot be combined with stream")
		}
		if c.Queue != "" || c.Dedicated {
			add("queue", "cannot be combined with stream")
		}
	case c.Dedicated && c.Queue == "":
		add("queue", "is required with dedicated: true")
	case c.Dedicated && c.Exchange != "":
		add("exchange", "cannot be combined with dedicated: true: the queue is bound already")
	case c.Dedicated:
	case c.Exchange == "" && c.Queue != "":
		add("queue", "whoever else reads %q would lose messages to the monitor: listen to its exchange instead, or set dedicated: true if nobody else reads it", c.Queue)
	case c.Exchange == "":
		add("exchange", "is required, or else stream, or queue with dedicated: true")
	case len(c.Bindings) == 0:
		add("bindings", "is required with exchange: such as [{routing_key: orders.new}], as the real queue is bound")
	}
	if c.Exchange == "" && len(c.Bindings) > 0 {
		add("bindings", "is for an exchange")
	}
	for i, b := range c.Bindings {
		path := fmt.Sprintf("bindings[%d]", i)
		if len(b.RoutingKey) > amqpName {
			add(path, "routing_key is longer than %d bytes", amqpName)
		}
		for name := range b.Arguments {
			if name == "" || len(name) > amqpName {
				add(path, "arguments: %q is not the name of a header", name)
			}
		}
	}
	if c.QueueType != amqp.QueueTypeClassic && c.QueueType != amqp.QueueTypeQuorum {
		add("queue_type", "%q is not classic or quorum", c.QueueType)
	}
	if d := time.Duration(c.Keep); d < time.Minute || d > 24*time.Hour {
		add("keep", "%s is not from 1m to 24h", c.Keep)
	}
	if c.MaxLength < amqpLeast {
		add("max_length", "%d is less than %d", c.MaxLength, amqpLeast)
	}
	for i, q := range c.Backlog {
		if q == "" || len(q) > amqpName {
			add(fmt.Sprintf("backlog[%d]", i), "%q is not the name of a queue", q)
		}
	}
	return errors.Join(errs...)
}

// Beside implements Besider. A queue has one reader, so the twin makes another one, which goes soon after it.
func (c *AMQPConfig) Beside() (Config, error) {
	if c.Exchange == "" {
		return c, nil
	}
	twin := *c
	twin.Queue, twin.Keep = "", conn.Duration(time.Minute)
	return &twin, nil
}

// Open implements Config.
func (c *AMQPConfig) Open() (Sink, error) {
	if c.Stream != "" {
		return &amqpStream{amqpSink: amqpSink{c: c}}, nil
	}
	return &amqpQueue{amqpSink: amqpSink{c: c}, seed: maphash.MakeSeed()}, nil
}

// amqpSink is what the queue and the stream share: the connection of Run, on which Backlog asks.
type amqpSink struct {
	c *AMQPConfig

	mu   sync.Mutex
	link *conn.AMQPLink
	asks bool // Backlog is under way, or was given up
}

// connect connects for Run. The context that it returns ends with the connection, too.
func (s *amqpSink) connect(ctx context.Context) (*conn.AMQPLink, context.Context, func(), error) {
	l, err := s.c.Broker.Connect(ctx, "listens")
	if err != nil {
		return nil, nil, nil, err
	}
	s.setLink(l)
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(l.Context, func() { cancel(context.Cause(l.Context)) })
	return l, ctx, func() {
		stop()
		s.setLink(nil)
		l.Close()
		cancel(nil)
	}, nil
}

func (s *amqpSink) setLink(l *conn.AMQPLink) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.link = l
}

// Expires implements Expirer: whoever injected a message may have given it a time to live.
func (s *amqpSink) Expires() bool { return true }

// Backlog implements Backlogger. It asks on the connection of Run.
func (s *amqpSink) Backlog(ctx context.Context) ([]Backlog, error) {
	if len(s.c.Backlog) == 0 {
		return nil, nil
	}
	s.mu.Lock()
	l, busy := s.link, s.asks
	s.asks = s.asks || l != nil
	s.mu.Unlock()
	switch {
	case l == nil:
		return nil, nil // that there is no connection is told already
	case busy:
		return nil, conn.WithClass(conn.Network, errors.New("backlog: the broker has not answered the last question"))
	}
	type answer struct {
		found []Backlog
		err   error
	}
	// One that does not answer must not cost the sink its connection, with which the goroutine ends.
	answers := make(chan answer, 1)
	go func() {
		a := answer{err: errors.New("backlog: the question ended its goroutine")}
		defer func() {
			s.mu.Lock()
			s.asks = false
			s.mu.Unlock()
			answers <- a
		}()
		defer conn.Contain(&a.err)
		a.found, a.err = s.inspect(l)
	}()
	select {
	case a := <-answers:
		return a.found, a.err
	case <-ctx.Done():
		return nil, fmt.Errorf("backlog: %w", ctx.Err())
	}
}

func (s *amqpSink) inspect(l *conn.AMQPLink) ([]Backlog, error) {
	var found []Backlog
	var errs []error
	var ch *amqp.Channel
	for _, name := range s.c.Backlog {
		if ch == nil {
			var err error
			if ch, err = l.Channel(); err != nil {
				return found, errors.Join(append(errs, fmt.Errorf("backlog: %w", l.Err(err)))...)
			}
		}
		q, err := ch.QueueDeclarePassive(name, true, false, false, false, nil)
		if err != nil {
			errs = append(errs, fmt.Errorf("backlog: queue %s: %w", name, l.Err(err)))
			ch = nil // the broker has closed it
			continue
		}
		found = append(found, Backlog{Queue: name, Messages: float64(q.Messages), Consumers: float64(q.Consumers), Seconds: -1})
	}
	if ch != nil {
		_ = ch.Close()
	}
	return found, errors.Join(errs...)
}

// amqpMessage is what a delivery brought. What it says of itself comes from outside and may be of any type.
func amqpMessage(d *amqp.Delivery) Message {
	m := Message{Body: d.Body}
	for _, name := range [...]string{"lag-monitor-heartbeat", heartbeatHeader} {
		switch v := d.Headers[name].(type) {
		case string:
			m.Header = []byte(v)
		case []byte:
			m.Header = v
		default:
			continue
		}
		break
	}
	m.Dead, m.Retries = amqpDeath(d.Headers)
	return m
}

// amqpDeath reads where and why a message was dead-lettered the last time, and how many times it was tried before:
// it counts as tried each time that a consumer did not want it, or, where it went round through queues from which
// time alone frees it, each time that it came out of one.
func amqpDeath(headers amqp.Table) (*Death, int) {
	list, _ := headers["x-death"].([]any)
	var last *Death
	rejected, expired := 0, 0
	for _, one := range list {
		t, ok := one.(amqp.Table)
		if !ok {
			continue
		}
		count, _ := t["count"].(int64)
		if count < 0 || count > 1<<30 {
			count = 0
		}
		d := &Death{Count: int(count)}
		d.Reason, _ = t["reason"].(string)
		d.Queue, _ = t["queue"].(string)
		if last == nil {
			last = d // the newest stands first
		}
		switch d.Reason {
		case DeadRejected, DeadDeliveryLimit:
			rejected += d.Count
		case DeadExpired:
			expired += d.Count
		}
	}
	if rejected == 0 {
		rejected = expired
	}
	return last, rejected
}

// amqpQueue consumes a queue that nobody else reads. The broker keeps its position: what was acknowledged.
type amqpQueue struct {
	amqpSink
	seed maphash.Seed

	// All under amqpSink.mu.
	name string // of the queue; empty before the first Run

	// What the journal does not have yet is not acknowledged: it comes again should the process be killed.
	open settlement

	// Of Run alone.
	known   bool // the queue was there before
	lost    string
	taken   []amqpTaken    // delivered, and perhaps coming again
	again   map[uint64]int // how often what is in taken over lost connections may come again, by hash
	claimed time.Time
	// fleeting is set when a heartbeat came that is gone when the broker is restarted.
	fleeting bool
}

// amqpTaken is a message that was delivered.
type amqpTaken struct {
	tag, seq uint64
	hash     uint64
	at       time.Time
	hold     bool // until the journal has it
	acked    bool
}

// Position implements Resumer.
func (s *amqpQueue) Position() map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open.ask()
	if s.name == "" {
		return map[string]string{}
	}
	return map[string]string{"queue": s.name}
}

// Settle implements Settler.
func (s *amqpQueue) Settle() { s.open.settle() }

// Resume implements Resumer.
func (s *amqpQueue) Resume(parts map[string]string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if name := parts["queue"]; name != "" && len(name) <= amqpName && (s.c.Queue == "" || s.c.Queue == name) {
		s.name, s.known = name, true
	}
}

// queue returns the name of the queue.
func (s *amqpQueue) queue() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.name == "" {
		if s.name = s.c.Queue; s.name == "" {
			b := make([]byte, 8)
			rand.Read(b)
			s.name = conn.UserAgent + "." + hex.EncodeToString(b)
		}
	}
	return s.name
}

// amqpAttached is a channel of a sink at work.
type amqpAttached struct {
	*conn.AMQPLink
	ch     *amqp.Channel
	closed chan *amqp.Error
	gone   chan string
}

func amqpOpen(ctx context.Context, l *conn.AMQPLink) (*amqpAttached, error) {
	a := &amqpAttached{AMQPLink: l}
	err := l.Do(ctx, amqpAnswer, func() (err error) {
		if a.ch, err = l.Channel(); err != nil {
			return err
		}
		a.closed, a.gone = a.ch.NotifyClose(make(chan *amqp.Error, 1)), a.ch.NotifyCancel(make(chan string, 1))
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("channel: %w", err)
	}
	return a, nil
}

// errAMQPDeleted ends a Run whose queue was deleted.
var errAMQPDeleted = conn.WithClass(conn.Missing, errors.New("the queue was deleted"))

// ended tells why there are no more deliveries.
func (a *amqpAttached) ended(ctx context.Context) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	select {
	case err := <-a.closed:
		if err != nil {
			return a.Err(err)
		}
	default:
	}
	select {
	case _, ok := <-a.gone:
		if ok {
			return errAMQPDeleted
		}
	default:
	}
	return a.Err(amqp.ErrClosed)
}

// inspect asks for a queue that has to be there.
func (a *amqpAttached) inspect(ctx context.Context, name string) (q amqp.Queue, err error) {
	err = a.Do(ctx, amqpAnswer, func() (err error) {
		q, err = a.ch.QueueDeclarePassive(name, true, false, false, false, nil)
		return err
	})
	return q, err
}

// bind binds the own queue.
func (s *amqpQueue) bind(ctx context.Context, a *amqpAttached, name string) error {
	for _, b := range s.c.Bindings {
		if err := a.Do(ctx, amqpAnswer, func() error {
			return a.ch.QueueBind(name, b.RoutingKey, s.c.Exchange, false, b.table())
		}); err != nil {
			return fmt.Errorf("bind queue %s to exchange %s: %w", name, s.c.Exchange, err)
		}
	}
	return nil
}

func (b *AMQPBinding) table() amqp.Table {
	if len(b.Arguments) == 0 {
		return nil
	}
	t := amqp.Table{}
	for name, v := range b.Arguments {
		t[name] = v.v
	}
	return t
}

// declare makes the own queue. It outlives a lost connection and a restart of the broker, and then itself goes.
func (s *amqpQueue) declare(ctx context.Context, a *amqpAttached, name string) error {
	keep := time.Duration(s.c.Keep).Milliseconds()
	err := a.Do(ctx, amqpAnswer, func() error {
		_, err := a.ch.QueueDeclare(name, true, false, false, false, amqp.Table{
			amqp.QueueTypeArg: s.c.QueueType, amqp.QueueTTLArg: keep, amqp.QueueMessageTTLArg: keep, amqp.QueueMaxLenArg: int64(s.c.MaxLength),
		})
		return err
	})
	if err != nil {
		return fmt.Errorf("declare queue %s: %w", name, err)
	}
	return nil
}

// attach finds or makes the queue and sees that nobody else reads it. It tells what may have been missed.
func (s *amqpQueue) attach(ctx context.Context, l *conn.AMQPLink) (a *amqpAttached, lost string, err error) {
	if a, err = amqpOpen(ctx, l); err != nil {
		return nil, "", err
	}
	name := s.queue()
	var q amqp.Queue
	here := false
	if s.known || s.c.Queue != "" {
		q, err = a.inspect(ctx, name)
		if here = err == nil; !here {
			gone := conn.ClassOf(err) == conn.Missing
			if gone && s.known {
				s.lost = "recreated"
			}
			if !gone || s.c.Dedicated {
				return nil, "", fmt.Errorf("queue %s: %w", name, err)
			}
			if a, err = amqpOpen(ctx, l); err != nil { // the broker has closed the first
				return nil, "", err
			}
		}
	}
	if !here {
		if err := s.declare(ctx, a, name); err != nil {
			return nil, "", err
		}
	}
	if !s.c.Dedicated {
		if err := s.bind(ctx, a, name); err != nil {
			// The queue goes, and what comes meanwhile does not come to it.
			if s.known {
				s.lost = "unbound"
			}
			return nil, "", err
		}
	}
	// A connection of our own that has just ended may be on its way out.
	for until := time.Now().Add(amqpLeave); q.Consumers > 0 && time.Now().Before(until); {
		select {
		case <-ctx.Done():
			return nil, "", context.Cause(ctx)
		case <-time.After(50 * time.Millisecond):
		}
		if q, err = a.inspect(ctx, name); err != nil {
			return nil, "", fmt.Errorf("queue %s: %w", name, err)
		}
	}
	if q.Consumers > 0 {
		return nil, "", conn.WithClass(conn.Other, fmt.Errorf("queue %s is read by somebody else, who would get a part of the messages; "+
			"if it was the monitor itself, the broker takes a quarter of a minute to notice that a connection is lost", name))
	}
	switch {
	case s.lost != "":
		lost = s.lost
	case s.fleeting:
		lost = "not_persistent"
	case !s.c.Dedicated && q.Messages >= s.c.MaxLength:
		lost = "overflow"
	}
	return a, lost, nil
}

// Check implements Checker. It declares nothing.
func (s *amqpQueue) Check(ctx context.Context) error {
	l, err := s.c.Broker.Connect(ctx, "checks")
	if err != nil {
		return err
	}
	defer l.Close()
	a, err := amqpOpen(ctx, l)
	if err != nil {
		return err
	}
	if s.c.Dedicated {
		if _, err := a.inspect(ctx, s.c.Queue); err != nil {
			return fmt.Errorf("queue %s: %w", s.c.Queue, err)
		}
		return nil
	}
	if err := a.Do(ctx, amqpAnswer, func() error {
		return a.ch.ExchangeDeclarePassive(s.c.Exchange, amqp.ExchangeTopic, true, false, false, false, nil)
	}); err != nil {
		return fmt.Errorf("exchange %s: %w", s.c.Exchange, err)
	}
	return nil
}

// Run implements Sink.
func (s *amqpQueue) Run(ctx context.Context, f *Feed) error {
	if err := s.run(ctx, f); ctx.Err() == nil {
		return err
	}
	return nil
}

func (s *amqpQueue) run(ctx context.Context, f *Feed) (err error) {
	l, ctx, end, err := s.connect(ctx)
	if err != nil {
		return err
	}
	defer end()
	a, lost, err := s.attach(ctx, l)
	if err != nil {
		return err
	}
	name := s.queue()
	defer func() {
		// The broker says so by itself or answers a question with it, whichever comes first.
		if conn.ClassOf(err) == conn.Missing && s.known {
			s.lost = "recreated"
		}
	}()
	var deliveries <-chan amqp.Delivery
	err = l.Do(ctx, amqpAnswer, func() (err error) {
		if err = a.ch.Qos(amqpPrefetch, 0, false); err != nil {
			return err
		}
		// Exclusively, since two who read the same queue get a part each.
		deliveries, err = a.ch.Consume(name, "", false, true, false, false, nil)
		return err
	})
	if err != nil {
		return fmt.Errorf("queue %s: %w", name, err)
	}
	if lost != "" {
		f.Gap(lost)
	}
	s.lost, s.known, s.fleeting = "", true, false
	f.Ready()

	// What was delivered over the last connection and not acknowledged for certain comes again.
	if s.again == nil {
		s.again = make(map[uint64]int)
	}
	for _, t := range s.taken {
		s.again[t.hash]++
	}
	s.taken = s.taken[:0]

	w := &amqpWork{amqpQueue: s, amqpAttached: a, f: f, tell: make(chan amqpProof), before: &amqpProof{}}
	ctx, fail := context.WithCancelCause(ctx)
	var proofs sync.WaitGroup
	defer proofs.Wait()
	defer fail(nil)
	proofs.Go(func() {
		var err error
		defer func() { fail(err) }()
		defer conn.Contain(&err)
		err = w.prove(ctx, name)
	})
	for {
		select {
		case d, ok := <-deliveries:
			if !ok {
				return fmt.Errorf("queue %s: %w", name, a.ended(ctx))
			}
			if err := w.deliver(&d); err != nil {
				return fmt.Errorf("queue %s: acknowledge: %w", name, l.Err(err))
			}
		case p := <-w.tell:
			if err := w.take(p); err != nil {
				return fmt.Errorf("queue %s: acknowledge: %w", name, l.Err(err))
			}
		case <-ctx.Done():
			_ = w.acknowledge(time.Now()) // or it would come again
			return fmt.Errorf("queue %s: %w", name, context.Cause(ctx))
		}
	}
}

// amqpWork is a Run at work on a queue.
type amqpWork struct {
	*amqpQueue
	*amqpAttached
	f *Feed

	tell    chan amqpProof
	got     uint64     // deliveries taken on this connection
	claims  claims     // made of got
	acked   int        // the first so many of taken are acknowledged
	before  *amqpProof // the last one
	full    bool       // the queue may have overflowed since the last claim
	ackedUp atomic.Uint64
}

// amqpProof is an answer of the broker.
type amqpProof struct {
	asked            time.Time
	ready, consumers int
	seen             uint64 // deliveries that came in before the answer, at least
	settled          uint64 // what was acknowledged before the question, by seq
	clear            time.Time
}

// deliver takes a message.
func (w *amqpWork) deliver(d *amqp.Delivery) error {
	now := time.Now()
	m := amqpMessage(d)
	var h maphash.Hash
	h.SetSeed(w.seed)
	_, _ = h.Write(m.Header)
	_, _ = h.Write(m.Body)
	t := amqpTaken{tag: d.DeliveryTag, hash: h.Sum64(), at: now}
	if n := w.again[t.hash]; n > 0 && d.Redelivered {
		w.again[t.hash] = n - 1
		t.hold = true // it may have been a heartbeat
	} else if t.hold = w.f.Deliver(m); t.hold && d.DeliveryMode != amqp.Persistent {
		w.fleeting = true
	}
	t.seq = w.open.next()
	w.taken = append(w.taken, t)
	w.got++
	w.claims.deliveredUpTo(w.got, w.f)
	if len(w.taken)-w.acked >= amqpAcks {
		return w.acknowledge(now)
	}
	return nil
}

// acknowledge acknowledges what need not come again: the messages of others, and heartbeats that the journal has, if
// there is one.
func (w *amqpWork) acknowledge(now time.Time) error {
	free := w.open.free()
	may := func(t *amqpTaken) bool {
		return t.acked || !t.hold || t.seq <= free || now.Sub(t.at) > amqpHold
	}
	to := w.acked
	for to < len(w.taken) && may(&w.taken[to]) {
		to++
	}
	// Those that are held must not use up what may be under way.
	if len(w.taken)-to > amqpPrefetch/2 {
		to = len(w.taken) - amqpPrefetch/2
	}
	if to == w.acked {
		return nil
	}
	last := &w.taken[to-1]
	if err := w.ch.Ack(last.tag, true); err != nil {
		return err
	}
	w.acked = to
	w.ackedUp.Store(last.seq)
	return nil
}

// take takes a proof.
func (w *amqpWork) take(p amqpProof) error {
	// What was acknowledged before the question is settled by the answer, and does not come again.
	n := 0
	for n < w.acked && w.taken[n].seq <= p.settled {
		n++
	}
	w.taken = append(w.taken[:0], w.taken[n:]...)
	w.acked -= n

	// All that the queue held at its fullest since the last answer has come since, is on its way, or is still there.
	if !w.c.Dedicated && p.seen-w.before.seen+uint64(p.ready)+amqpPrefetch >= uint64(w.c.MaxLength) {
		w.full = true
	}
	// An answer overtakes the deliveries that were sent to us before it, but not two questions long: the messages of a
	// quorum queue may come from another node than the answer. With nothing ready everything was sent to us, the only
	// one who reads.
	if !p.clear.IsZero() {
		if w.full {
			w.f.Gap("overflow")
			w.full = false
		} else if !w.c.Dedicated && !w.claimed.IsZero() && p.clear.Sub(w.claimed) > time.Duration(w.c.Keep) {
			w.f.Gap("expired")
		}
		w.claimed = p.clear
		clear(w.again)
		w.claims.when(p.seen, p.clear, w.f)
	}
	w.before = &p
	return w.acknowledge(time.Now())
}

// prove asks for the state of the queue again and again.
func (w *amqpWork) prove(ctx context.Context, name string) error {
	tick := time.NewTicker(amqpProve)
	defer tick.Stop()
	var empty [2]time.Time // when the last questions were asked, if the queue was empty then
	for n := 1; ; n++ {
		p := amqpProof{asked: time.Now(), settled: w.ackedUp.Load(), clear: empty[0]}
		q, err := w.inspect(ctx, name)
		if err != nil {
			return err
		}
		p.seen, p.ready, p.consumers = w.Deliveries(), q.Messages, q.Consumers
		empty[0], empty[1] = empty[1], time.Time{}
		if p.ready == 0 && p.consumers == 1 {
			empty[1] = p.asked
		}
		select {
		case w.tell <- p:
		case <-ctx.Done():
			return nil
		}
		if n%amqpBindEvery == 0 && !w.c.Dedicated {
			if err := w.bind(ctx, w.amqpAttached, name); err != nil {
				return err
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}
