package sinks

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/lag-monitor/lag-monitor/internal/conn"
)

// NATSConfig is a sink `nats`: a JetStream stream, or a subject of core NATS.
type NATSConfig struct {
	// Broker says how to connect.
	Broker conn.NATS `yaml:",inline"`
	// JetStream reads a stream. false listens on a subject of core NATS, which keeps nothing.
	JetStream bool `yaml:"jetstream"`
	// Stream to read. Default: the one that takes the subject.
	Stream string `yaml:"stream,omitempty"`
	// Subject to listen on; it may hold the wildcards * and >. Default: everything in the stream.
	Subject string `yaml:"subject,omitempty"`
	// Dedicated says that nobody else reads what this sink reads, so that it may take messages out of a
	// stream whose retention is work queue or interest.
	Dedicated bool `yaml:"dedicated,omitempty"`
	// Consumer is the name of the durable consumer of a dedicated sink.
	Consumer string `yaml:"consumer,omitempty"`
	// Consumers are those whose backlog is told: consumers of the sink's stream, or stream/consumer.
	Consumers []string `yaml:"consumers,omitempty"`
}

// NewNATS returns the defaults.
func NewNATS() *NATSConfig { return &NATSConfig{JetStream: true, Consumer: "lag-monitor"} }

// Validate implements Config.
func (c *NATSConfig) Validate() error {
	errs := []error{c.Broker.Validate()}
	switch {
	case c.Subject != "":
		errs = append(errs, conn.Prefix("subject", conn.NATSSubject(c.Subject, true)))
	case !c.JetStream:
		errs = append(errs, conn.Field("subject", "is required with jetstream: false"))
	case c.Stream == "":
		errs = append(errs, conn.Field("stream", "is required, or else the subject"))
	}
	if !c.JetStream && c.Stream != "" {
		errs = append(errs, conn.Field("stream", "cannot be combined with jetstream: false"))
	}
	if !c.JetStream && c.Dedicated {
		errs = append(errs, conn.Field("dedicated", "cannot be combined with jetstream: false"))
	}
	if c.Stream != "" && !natsName(c.Stream) {
		errs = append(errs, conn.Field("stream", "%q is not the name of a stream", c.Stream))
	}
	if !natsName(c.Consumer) {
		errs = append(errs, conn.Field("consumer", "%q is not the name of a consumer", c.Consumer))
	}
	if !c.JetStream && len(c.Consumers) > 0 {
		errs = append(errs, conn.Field("consumers", "cannot be combined with jetstream: false"))
	}
	errs = append(errs, checkConsumers(c.Consumers))
	return errors.Join(errs...)
}

// Open implements Config.
func (c *NATSConfig) Open() (Sink, error) {
	if !c.JetStream {
		return &natsCore{c: c}, nil
	}
	return &natsStream{c: c}, nil
}

const (
	// natsProve is how often a sink asks the server to prove that it is caught up.
	natsProve = 500 * time.Millisecond
	// natsAnswer bounds each answer of the server.
	natsAnswer = 5 * time.Second
	// natsAckWait is after which time a message that was on its way when a dedicated sink lost its
	// connection is sent again.
	natsAckWait = 5 * time.Second
	// natsBatch and natsBatchBytes bound what is on its way to a sink.
	natsBatch      = 1000
	natsBatchBytes = 16 << 20
)

// claims are the times of which a sink may say that it is caught up with them once it has delivered so
// many messages. It is safe for concurrent use.
type claims struct {
	delivered atomic.Uint64
	waits     atomic.Bool // the list is not empty

	mu   sync.Mutex
	list []claim
}

type claim struct {
	after uint64 // messages
	t     time.Time
}

// when notes that t may be claimed after so many messages.
func (c *claims) when(after uint64, t time.Time, f *Feed) {
	c.mu.Lock()
	// A claim may never come true, when messages are deleted before they are sent: a later one that
	// needs fewer replaces it. A sink that is far behind keeps a few old ones to reach.
	for len(c.list) > 0 && c.list[len(c.list)-1].after >= after {
		c.list = c.list[:len(c.list)-1]
	}
	const keep = 16
	if len(c.list) == keep {
		c.list = append(c.list[:keep/2], c.list[keep-1:]...)
	}
	c.list = append(c.list, claim{after, t})
	c.waits.Store(true)
	c.mu.Unlock()
	c.settle(f)
}

// deliveredUpTo notes that so many messages have been delivered.
func (c *claims) deliveredUpTo(n uint64, f *Feed) {
	c.delivered.Store(n)
	if c.waits.Load() {
		c.settle(f)
	}
}

// settle makes the claims that have come true.
func (c *claims) settle(f *Feed) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.delivered.Load()
	var t time.Time
	for len(c.list) > 0 && c.list[0].after <= n {
		t = c.list[0].t
		c.list = c.list[1:]
	}
	c.waits.Store(len(c.list) > 0)
	if !t.IsZero() {
		f.CaughtUp(t)
	}
}

// natsHeader returns the token's header. NATS keeps the case of header names; a pipeline that copies
// headers may have changed it.
func natsHeader(h nats.Header) []byte {
	if h == nil {
		return nil
	}
	for _, name := range [...]string{"lag-monitor-heartbeat", heartbeatHeader} {
		if v := h[name]; len(v) > 0 {
			return []byte(v[0])
		}
	}
	return nil
}

// Expires implements Expirer: whoever injected a message may have given it a time to live.
func (s *natsStream) Expires() bool { return true }

// natsStream reads a JetStream stream.
type natsStream struct {
	c *NATSConfig

	mu    sync.Mutex
	pos   natsPosition
	since time.Time // where to start without a position; zero: at the end

	past uint64 // messages up to this sequence were there before the sink; of Run alone
}

// natsPosition is a place in one life of a stream.
type natsPosition struct {
	next    uint64 // sequence of the next message; 0: none yet
	created int64  // when the stream was created, Unix ns: a stream of the same name may be a new one
}

func (s *natsStream) position() natsPosition {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pos
}

func (s *natsStream) keep(pos natsPosition) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pos = pos
}

// part is the name under which the position is carried over a restart.
func (s *natsStream) part() string {
	if s.c.Stream != "" {
		return s.c.Stream
	}
	return s.c.Subject
}

// Position implements Resumer.
func (s *natsStream) Position() map[string]string {
	pos := s.position()
	if pos.next == 0 {
		return map[string]string{}
	}
	return map[string]string{s.part(): fmt.Sprintf("%d@%d", pos.next, pos.created)}
}

// Resume implements Resumer.
func (s *natsStream) Resume(parts map[string]string) {
	next, created, ok := strings.Cut(parts[s.part()], "@")
	n, err1 := strconv.ParseUint(next, 10, 64)
	c, err2 := strconv.ParseInt(created, 10, 64)
	if ok && err1 == nil && err2 == nil {
		s.keep(natsPosition{n, c})
	}
}

// LookBack implements LookBacker. A dedicated sink starts with the oldest message as it is.
func (s *natsStream) LookBack(since time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.since = since
}

// errNATSSkip ends a round of a sink that leaves out a part of its look-back.
var errNATSSkip = errors.New("the look-back takes too long")

// back returns since when messages are wanted, zero when the sink has a position.
func (s *natsStream) back() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pos.next != 0 {
		return time.Time{}
	}
	return s.since
}

// attach connects and looks the stream up.
func (s *natsStream) attach(ctx context.Context) (*conn.NATSLink, jetstream.JetStream, jetstream.Stream, error) {
	l, err := s.c.Broker.Connect(ctx, nil)
	if err != nil {
		return nil, nil, nil, err
	}
	js, stream, err := s.lookUp(ctx, l)
	if err != nil {
		l.Close()
		return nil, nil, nil, err
	}
	return l, js, stream, nil
}

func (s *natsStream) lookUp(ctx context.Context, l *conn.NATSLink) (jetstream.JetStream, jetstream.Stream, error) {
	js, err := jetstream.New(l.Conn)
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := l.With(ctx)
	defer cancel()
	ctx, stop := context.WithTimeout(ctx, natsAnswer)
	defer stop()
	name := s.c.Stream
	if name == "" {
		if name, err = js.StreamNameBySubject(ctx, s.c.Subject); err != nil {
			return nil, nil, fmt.Errorf("stream of subject %s: %w", s.c.Subject, l.Err(err))
		}
	}
	stream, err := js.Stream(ctx, name)
	if err != nil {
		return nil, nil, fmt.Errorf("stream %s: %w", name, l.Err(err))
	}
	if r := stream.CachedInfo().Config.Retention; r != jetstream.LimitsPolicy && !s.c.Dedicated {
		return nil, nil, conn.WithClass(conn.Other, fmt.Errorf("stream %s has %s retention: a consumer of the monitor would change who gets its messages; "+
			"set dedicated: true when nobody else reads them, or give the sink a stream of its own that mirrors or sources this one", name, strings.ToLower(r.String())))
	}
	return js, stream, nil
}

// Check implements Checker.
func (s *natsStream) Check(ctx context.Context) error {
	l, _, _, err := s.attach(ctx)
	if err != nil {
		return err
	}
	l.Close()
	return nil
}

// start chooses where to begin and reports what may have been missed. A position without a next message is
// the time that back returns.
func (s *natsStream) start(info *jetstream.StreamInfo, f *Feed) natsPosition {
	pos, created, state := s.position(), info.Created.UnixNano(), info.State
	switch {
	case pos.next == 0 && info.Config.Retention == jetstream.LimitsPolicy && !s.back().IsZero():
		s.past = state.LastSeq
		return natsPosition{0, created} // the server will tell
	case pos.next == 0:
		pos = natsPosition{state.LastSeq + 1, created}
	case pos.created != created, pos.next > state.LastSeq+1:
		s.past = 0
		f.Gap("recreated")
		pos = natsPosition{max(state.FirstSeq, 1), created}
	case pos.next < state.FirstSeq:
		f.Gap("trimmed")
		pos.next = state.FirstSeq
	case info.Config.MaxMsgsPerSubject > 0 && pos.next <= state.LastSeq:
		// A newer message on a subject may have pushed an older one out of the middle of the stream.
		f.Gap("trimmed")
	}
	s.keep(pos)
	return pos
}

func (s *natsStream) consumer(pos natsPosition, retention jetstream.RetentionPolicy) jetstream.ConsumerConfig {
	c := jetstream.ConsumerConfig{
		Description:   "lag-monitor listens for its heartbeats",
		FilterSubject: s.c.Subject,
	}
	if retention != jetstream.LimitsPolicy {
		// The server keeps the position: messages leave the stream when they are acknowledged.
		c.Durable, c.AckPolicy, c.DeliverPolicy = s.c.Consumer, jetstream.AckExplicitPolicy, jetstream.DeliverAllPolicy
		c.AckWait, c.MaxAckPending = natsAckWait, natsBatch
		return c
	}
	// A consumer of our own, which acknowledges nothing and goes away with us.
	c.AckPolicy, c.MemoryStorage, c.Replicas, c.InactiveThreshold = jetstream.AckNonePolicy, true, 1, 30*time.Second
	c.DeliverPolicy, c.OptStartSeq = jetstream.DeliverByStartSequencePolicy, pos.next
	if pos.next == 0 {
		since := s.back()
		c.DeliverPolicy, c.OptStartTime = jetstream.DeliverByStartTimePolicy, &since
	}
	return c
}

// Run implements Sink. It reads through a consumer of its own from its own position, so nothing that
// others read is touched; a restart of the server, a stall or a lost message ends it, and the next Run
// goes on at the position with a new consumer.
func (s *natsStream) Run(ctx context.Context, f *Feed) error {
	for {
		err := s.run(ctx, f)
		switch {
		case ctx.Err() != nil:
			return nil
		case !errors.Is(err, errNATSSkip):
			return err
		}
	}
}

func (s *natsStream) run(ctx context.Context, f *Feed) error {
	l, js, stream, err := s.attach(ctx)
	if err != nil {
		return err
	}
	defer l.Close()
	ctx, cancel := l.With(ctx)
	defer cancel()
	name, config := stream.CachedInfo().Config.Name, stream.CachedInfo().Config
	pos := s.start(stream.CachedInfo(), f)

	own := config.Retention == jetstream.LimitsPolicy
	soon, stop := context.WithTimeout(ctx, natsAnswer)
	cons, err := js.CreateOrUpdateConsumer(soon, name, s.consumer(pos, config.Retention))
	stop()
	if err != nil {
		return fmt.Errorf("consumer on stream %s: %w", name, l.Err(err))
	}
	if pos.next == 0 {
		pos.next = cons.CachedInfo().Delivered.Stream + 1 // the server has looked the time up
		s.keep(pos)
	}
	if own {
		defer func() {
			soon, stop := context.WithTimeout(context.WithoutCancel(ctx), 500*time.Millisecond)
			defer stop()
			_ = js.DeleteConsumer(soon, name, cons.CachedInfo().Name) // it would go by itself after a while
		}()
	}
	limit := max(natsBatchBytes, int(l.MaxPayload())+64<<10)
	messages, err := cons.Messages(jetstream.PullMaxMessagesWithBytesLimit(natsBatch, limit),
		jetstream.PullExpiry(10*time.Second), jetstream.PullHeartbeat(natsAnswer/2), jetstream.WithMessagesErrOnMissingHeartbeat(true))
	if err != nil {
		return fmt.Errorf("stream %s: %w", name, l.Err(err))
	}
	defer messages.Stop()
	f.Ready()

	// One goroutine asks for proofs, this one delivers; whichever fails ends the other.
	ctx, fail := context.WithCancelCause(ctx)
	var proofs sync.WaitGroup
	defer proofs.Wait()
	defer fail(nil)
	var done claims
	// The consumer counts what it sends; a durable one has counted before. Its count says, too, when a
	// message was lost between the server and us.
	counted := cons.CachedInfo().Delivered.Consumer
	var pace pace
	done.delivered.Store(counted)
	proofs.Go(func() { fail(s.prove(ctx, l, cons, &done, f)) })
	for {
		m, err := messages.Next(jetstream.NextContext(ctx))
		if err != nil {
			if cause := context.Cause(ctx); cause != nil {
				err = cause
			}
			return fmt.Errorf("stream %s: %w", name, l.Err(err))
		}
		meta, err := m.Metadata()
		if err != nil {
			return fmt.Errorf("stream %s: %w", name, err)
		}
		if counted++; meta.Sequence.Consumer != counted {
			return conn.WithClass(conn.Network, fmt.Errorf("stream %s: message %d of the consumer came where %d was due", name, meta.Sequence.Consumer, counted))
		}
		f.Deliver(Message{Header: natsHeader(m.Headers()), Body: m.Data(), ID: natsID(pos.created, meta.Sequence.Stream), Enqueued: meta.Timestamp,
			Past: meta.Sequence.Stream <= s.past})
		if !own {
			if err := m.Ack(); err != nil {
				return fmt.Errorf("stream %s: acknowledge: %w", name, l.Err(err))
			}
		}
		if meta.Sequence.Stream >= pos.next {
			pos.next = meta.Sequence.Stream + 1
			if pos.next <= s.past && pace.slow(len(m.Data())) {
				pos.next += (s.past - pos.next + 2) / 2
				s.keep(pos)
				return errNATSSkip
			}
			s.keep(pos)
		}
		done.deliveredUpTo(counted, f)
	}
}

// natsID makes the identity of a stored message out of its sequence and its stream's birth.
func natsID(created int64, seq uint64) uint64 {
	x := uint64(created) * 0x9e3779b97f4a7c15
	return (x ^ x>>32) + seq | 1<<63
}

// prove asks for the consumer's state again and again. Every message that entered the stream before a
// question is, in its answer, either sent or pending: when as many have been delivered, the sink is
// caught up.
func (s *natsStream) prove(ctx context.Context, l *conn.NATSLink, cons jetstream.Consumer, done *claims, f *Feed) (err error) {
	defer conn.Contain(&err)
	tick := time.NewTicker(natsProve)
	defer tick.Stop()
	var before time.Time
	for began := time.Now(); ; {
		asked := time.Now()
		soon, stop := context.WithTimeout(ctx, natsAnswer)
		info, err := cons.Info(soon)
		stop()
		if err != nil {
			return fmt.Errorf("consumer: %w", l.Err(err))
		}
		// The server tells its consumers of a stored message a moment after it has told the publisher, so an
		// answer vouches for the question before it.
		// What a durable consumer had sent over a lost connection is not pending and will come again.
		again := info.NumAckPending > 0 && time.Since(began) < natsAckWait+time.Second
		if !before.IsZero() && !again {
			done.when(info.Delivered.Consumer+info.NumPending, before, f)
		}
		before = asked
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// natsCore listens on a subject of core NATS.
type natsCore struct {
	c        *NATSConfig
	listened bool
}

// Check implements Checker.
func (s *natsCore) Check(ctx context.Context) error {
	l, err := s.c.Broker.Connect(ctx, nil)
	if err != nil {
		return err
	}
	defer l.Close()
	_, err = s.subscribe(ctx, l)
	return err
}

// subscribe returns once the server has the subscription.
func (s *natsCore) subscribe(ctx context.Context, l *conn.NATSLink) (*nats.Subscription, error) {
	ctx, cancel := l.With(ctx)
	defer cancel()
	sub, err := l.SubscribeSync(s.c.Subject)
	if err != nil {
		return nil, fmt.Errorf("subject %s: %w", s.c.Subject, l.Err(err))
	}
	if err := sub.SetPendingLimits(natsBatch*16, natsBatchBytes*2); err != nil {
		return nil, fmt.Errorf("subject %s: %w", s.c.Subject, l.Err(err))
	}
	ctx, stop := context.WithTimeout(ctx, natsAnswer)
	defer stop()
	if err := l.FlushWithContext(ctx); err != nil {
		return nil, fmt.Errorf("subject %s: %w", s.c.Subject, l.Err(err))
	}
	if err := l.Denied(); err != nil {
		return nil, fmt.Errorf("subject %s: %w", s.c.Subject, err)
	}
	return sub, nil
}

// Run implements Sink. What is published while it is away is gone.
func (s *natsCore) Run(ctx context.Context, f *Feed) error {
	if err := s.run(ctx, f); ctx.Err() == nil {
		return err
	}
	return nil
}

func (s *natsCore) run(ctx context.Context, f *Feed) error {
	l, err := s.c.Broker.Connect(ctx, func() { f.Gap("overflow") })
	if err != nil {
		return err
	}
	defer l.Close()
	sub, err := s.subscribe(ctx, l)
	if err != nil {
		return err
	}
	if s.listened {
		f.Gap("disconnected")
	}
	s.listened = true
	f.Ready()

	ctx, cancel := l.With(ctx)
	defer cancel()
	ctx, fail := context.WithCancelCause(ctx)
	var proofs sync.WaitGroup
	defer proofs.Wait()
	defer fail(nil)
	var done claims
	proofs.Go(func() { fail(s.prove(ctx, l, sub, &done, f)) })
	for counted := uint64(1); ; counted++ {
		m, err := sub.NextMsgWithContext(ctx)
		if errors.Is(err, nats.ErrSlowConsumer) {
			counted-- // the gap has been reported; what comes next comes
			continue
		}
		if err != nil {
			if cause := context.Cause(ctx); cause != nil {
				err = cause
			}
			return fmt.Errorf("subject %s: %w", s.c.Subject, l.Err(err))
		}
		f.Deliver(Message{Header: natsHeader(m.Header), Body: m.Data})
		done.deliveredUpTo(counted, f)
	}
}

// prove asks the server for an answer again and again. It comes on the same connection behind every
// message that the server had accepted before: when those have been delivered, the sink is caught up.
func (s *natsCore) prove(ctx context.Context, l *conn.NATSLink, sub *nats.Subscription, done *claims, f *Feed) (err error) {
	defer conn.Contain(&err)
	tick := time.NewTicker(natsProve)
	defer tick.Stop()
	for {
		asked := time.Now()
		soon, stop := context.WithTimeout(ctx, natsAnswer)
		err := l.FlushWithContext(soon)
		stop()
		if err != nil {
			return fmt.Errorf("subject %s: %w", s.c.Subject, l.Err(err))
		}
		taken, err := received(sub)
		if err != nil {
			return fmt.Errorf("subject %s: %w", s.c.Subject, l.Err(err))
		}
		done.when(taken, asked, f)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// received counts the messages that have come in, whether or not they were taken yet. The client
// tells both numbers one after the other only, and one may move to the other side in between.
func received(sub *nats.Subscription) (uint64, error) {
	for {
		before, err := sub.Delivered()
		if err != nil {
			return 0, err
		}
		waiting, _, err := sub.Pending()
		if err != nil {
			return 0, err
		}
		after, err := sub.Delivered()
		if err != nil {
			return 0, err
		}
		if before == after {
			return uint64(after) + uint64(waiting), nil
		}
	}
}
