package monitor

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/config"
	"github.com/lag-monitor/lag-monitor/internal/conn"
	"github.com/lag-monitor/lag-monitor/internal/heartbeat"
	"github.com/lag-monitor/lag-monitor/internal/ledger"
	"github.com/lag-monitor/lag-monitor/internal/metrics"
	"github.com/lag-monitor/lag-monitor/sinks"
)

// sinkRun is one sink that runs, shared by all probes that expect heartbeats there. It is the Receiver
// of its feed.
type sinkRun struct {
	m       *Monitor
	cfg     *config.Sink
	back    time.Duration // how far to look back without a position
	log     *slog.Logger
	sink    sinks.Sink
	feed    *sinks.Feed
	metrics *metrics.Sink

	// caughtUp is an Instant, and 0 before the first. The watches look it up when they need it: telling
	// each of a thousand at every step would cost more than the listening.
	caughtUp atomic.Int64
	watches  atomic.Pointer[map[string]*watch] // by the probe's name in its heartbeats; the map is never changed

	backlog atomic.Pointer[[]sinks.Backlog] // as it was told last

	// behind is set from when the sink has begun to read until it has caught up with that moment.
	behind atomic.Bool

	mu sync.Mutex // held over Ready and Gap, over the first proof after Ready, and while a watch joins
	up bool
	at time.Time // when up last changed; zero before the first Ready

	// resumed is set when the sink goes on where that of the process before has left off.
	resumed bool

	positionErr string // the last one that was logged; of the journal's goroutine

	cancel context.CancelFunc // nil before start
	done   chan struct{}
}

func (m *Monitor) openSink(c *config.Sink, back time.Duration, keys *heartbeat.Keyring) (*sinkRun, error) {
	sink, err := open(c.Config.Open)
	if err != nil {
		return nil, err
	}
	s := &sinkRun{m: m, cfg: c, back: back, sink: sink, metrics: m.metrics.Sink(c.Name), log: m.log.With("sink", c.Name)}
	s.feed = sinks.NewFeed(s, keys)
	if len(c.Unwrap) > 0 {
		u, err := sinks.NewUnwrap(c.Unwrap...)
		if err != nil {
			return nil, err
		}
		s.feed.SetUnwrap(u)
	}
	s.watches.Store(&map[string]*watch{})
	s.resume()
	return s, nil
}

// open opens an end. A driver that panics must not end the process at a reload.
func open[T any](f func() (T, error)) (v T, err error) {
	defer conn.Contain(&err)
	return f()
}

// resume sets the sink to where that of the process before stood.
func (s *sinkRun) resume() {
	r, ok := s.sink.(sinks.Resumer)
	if !ok || s.m.rest == nil {
		return
	}
	pos := s.m.rest.position(s.cfg.Name, s.cfg.Fingerprint, time.Now())
	if len(pos) == 0 {
		return
	}
	var err error
	func() {
		defer conn.Contain(&err)
		r.Resume(pos)
	}()
	if err != nil {
		s.log.With(conn.StackOf(err)...).Error("resuming where the process before has left off", "err", err)
		return
	}
	s.resumed = true
}

// lookBack tells the sink where to start if it has no position.
func (s *sinkRun) lookBack() {
	b, ok := s.sink.(sinks.LookBacker)
	if !ok || s.back <= 0 {
		return
	}
	var err error
	func() {
		defer conn.Contain(&err)
		b.LookBack(time.Now().Add(-s.back))
	}()
	if err != nil {
		s.log.With(conn.StackOf(err)...).Error("looking back", "err", err)
	}
}

func (s *sinkRun) start(ctx context.Context) {
	ctx, s.cancel = context.WithCancel(ctx)
	s.done = make(chan struct{})
	s.lookBack()
	var asking sync.WaitGroup
	if b, ok := s.sink.(sinks.Backlogger); ok {
		asking.Go(func() { s.pollBacklog(ctx, b) })
	}
	go func() {
		defer close(s.done)
		defer asking.Wait()
		// Of the names, so that replicas do not come back at the same moment and a test can repeat itself.
		jitter := rand.New(rand.NewPCG(heartbeat.InstanceID(s.m.opts.Instance), heartbeat.InstanceID(s.cfg.Name)))
		sinks.Listen(ctx, s.sink, s.feed, s.log, jitter)
	}()
}

// stop ends the sink and waits for it. A sink that was never started has nothing to stop.
func (s *sinkRun) stop() {
	if s.cancel == nil {
		return
	}
	s.cancel()
	<-s.done
}

// watch makes the sink report to the probes that name it.
func (s *sinkRun) watch(probes map[string]*probeRun) {
	watches := make(map[string]*watch)
	for _, p := range probes {
		for _, w := range p.watches {
			if w.sink == s {
				watches[p.called] = w
			}
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	known := *s.watches.Load()
	s.watches.Store(&watches)
	for name, w := range watches {
		if known[name] != w {
			w.ready(s.up, s.at)
		}
	}
}

// Heartbeat implements sinks.Receiver.
func (s *sinkRun) Heartbeat(h *heartbeat.Heartbeat, a sinks.Arrival) sinks.Kind {
	w := (*s.watches.Load())[h.Probe]
	if w == nil {
		if a.Retired != nil {
			return sinks.Corrupt
		}
		return sinks.Foreign
	}
	return w.arrive(h, a)
}

// Ready implements sinks.Receiver.
func (s *sinkRun) Ready(up bool, at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.up, s.at = up, at
	s.behind.Store(up)
	if up {
		s.log.Info("sink reads its queue", "kind", s.cfg.Kind)
	}
	for _, w := range *s.watches.Load() {
		w.ready(up, at)
	}
}

// CaughtUp implements sinks.Receiver.
func (s *sinkRun) CaughtUp(t time.Time) {
	at := int64(s.m.instant(t))
	for {
		old := s.caughtUp.Load()
		if at <= old {
			return
		}
		if s.caughtUp.CompareAndSwap(old, at) {
			break
		}
	}
	if !s.behind.Load() {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if t.Before(s.at) {
		return
	}
	// This proof ends the time of blindness. Were it left to be found at the next look, that time would
	// last as long as nobody looks.
	s.behind.Store(false)
	for _, w := range *s.watches.Load() {
		w.caughtUp()
	}
}

// Gap implements sinks.Receiver.
func (s *sinkRun) Gap(t time.Time, reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.at.IsZero() { // before the first Ready there was nothing to miss
		s.log.Warn("messages may have passed the sink unseen", "reason", reason)
	}
	for _, w := range *s.watches.Load() {
		w.gap(t)
	}
}

// proof returns up to when the sink has proven to have read everything; false before the first time.
func (s *sinkRun) proof() (ledger.Instant, bool) {
	at := s.caughtUp.Load()
	return ledger.Instant(at), at != 0
}
