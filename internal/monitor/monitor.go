package monitor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/config"
	"github.com/lag-monitor/lag-monitor/internal/heartbeat"
	"github.com/lag-monitor/lag-monitor/internal/journal"
	"github.com/lag-monitor/lag-monitor/internal/ledger"
	"github.com/lag-monitor/lag-monitor/internal/metrics"
	"github.com/lag-monitor/lag-monitor/probe"
)

// Options are what a Monitor is made of besides its configuration.
type Options struct {
	Logger *slog.Logger
	// Instance names this process among those that watch the same pipelines, unless the configuration
	// names it.
	Instance string
	// Grace bounds how long the end of Run waits for heartbeats in flight.
	Grace time.Duration
	// OpenJournal opens the journal and returns what the process before has left in it. nil: nothing is
	// kept. The State is never nil. When it fails the monitor says so, goes on without and tries again now and then.
	OpenJournal func() (Journal, *journal.State, error)
	// Tracer takes the traces of heartbeats; nil: none are made.
	Tracer Tracer
	// Observer, if there is one, is told of each heartbeat that the probes inject and that comes out.
	Observer Observer
	// Ticks is after how many ticks with an injection each probe injects no more; 0: never.
	Ticks uint64
}

// Journal is where what has to survive a restart is written: a journal.Journal. Its methods are called by
// one goroutine at a time.
type Journal interface {
	Write(*journal.Batch) error
	Close() error
}

// Monitor runs the probes and sinks of a configuration. Its methods are safe for concurrent use.
type Monitor struct {
	opts    Options
	log     *slog.Logger
	origin  time.Time // zero of the ledgers' clock
	metrics *metrics.Metrics
	sched   *probe.Schedule

	apply sync.Mutex // one Apply at a time
	// keys are those of the last Apply; retired are the ones before, whose heartbeats may be on their way,
	// the newest last. Both are guarded by apply.
	keys    *heartbeat.Keyring
	retired []*heartbeat.Keyring
	// running is set from the start of Run to its end, under apply; sinks and probes are started only then.
	running atomic.Bool
	ctx     context.Context // of the sinks; ends after the last injection

	state atomic.Pointer[state]

	keeper        *keeper       // nil without a journal
	rest          *remains      // of the process before; nil when there is nothing
	replaced      atomic.Bool   // a reload has replaced accounts: the journal is to be written anew
	journalErrors atomic.Uint64 // so far
	openTraces    atomic.Int64  // of all probes
}

// state is one applied configuration. It is replaced as a whole.
type state struct {
	probes map[string]*probeRun
	sinks  map[string]*sinkRun
}

// New returns a Monitor without a configuration.
func New(opts Options) *Monitor {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	m := &Monitor{opts: opts, log: opts.Logger, origin: time.Now(), metrics: metrics.New(), sched: probe.NewSchedule()}
	m.state.Store(&state{})
	if opts.OpenJournal != nil {
		m.openJournal()
	}
	return m
}

// instant puts a reading of this host's clock on the ledgers' clock.
func (m *Monitor) instant(t time.Time) ledger.Instant { return ledger.Instant(t.Sub(m.origin)) }

// Apply makes cfg the running configuration. Everything that can fail comes first: when Apply returns
// an error, nothing has changed. Probes and sinks whose definitions are the same keep running with
// their accounts.
func (m *Monitor) Apply(cfg *config.Config) error {
	m.apply.Lock()
	defer m.apply.Unlock()

	keys, err := cfg.Global.Keyring()
	if err != nil {
		return err
	}
	if m.keys != nil && keys.Equal(m.keys) {
		keys = m.keys
	}
	instance := cfg.Global.Instance
	if instance == "" {
		instance = m.opts.Instance
	}
	old := m.state.Load()
	next := &state{probes: make(map[string]*probeRun), sinks: make(map[string]*sinkRun)}

	var errs []error
	for _, name := range slices.Sorted(maps.Keys(cfg.Sinks)) {
		c := cfg.Sinks[name]
		if s := old.sinks[name]; s != nil && s.cfg.Fingerprint == c.Fingerprint {
			next.sinks[name] = s
			continue
		}
		s, err := m.openSink(c, cfg.LookBack(name), keys)
		if err != nil {
			errs = append(errs, fmt.Errorf("sink %s: %w", name, err))
			continue
		}
		next.sinks[name] = s
	}
	var opened []*probeRun
	for _, name := range slices.Sorted(maps.Keys(cfg.Probes)) {
		c := cfg.Probes[name]
		if p := old.probes[name]; p != nil && p.unchanged(c, instance, next.sinks) {
			next.probes[name] = p
			continue
		}
		p, err := m.openProbe(c, instance, cfg.Global.MaxSkew)
		if err != nil {
			errs = append(errs, fmt.Errorf("probe %s: %w", name, err))
			continue
		}
		opened = append(opened, p)
		next.probes[name] = p
	}
	if len(errs) > 0 {
		for _, p := range opened {
			p.close()
		}
		return errors.Join(errs...)
	}

	m.swap(old, next, cfg, keys)
	return nil
}

// swap cannot fail.
func (m *Monitor) swap(old, next *state, cfg *config.Config, keys *heartbeat.Keyring) {
	for _, name := range slices.Sorted(maps.Keys(old.probes)) { // stopping takes time: in an order that can be repeated
		if p := old.probes[name]; next.probes[name] != p {
			p.stop()
		}
	}
	others := m.retire(keys)
	// The sinks first, so that no heartbeat meets a sink which does not know its key.
	for name, s := range next.sinks {
		s.feed.SetKeys(keys, others...)
		s.metrics.SetLimits(metrics.BacklogLimits(cfg.Sinks[name].Backlog))
	}
	for name, p := range next.probes {
		if o := old.probes[name]; o != nil && o != p {
			p.keys = o.keys // those of the heartbeats that it takes over
		}
		p.setKeys(keys, m.retired)
		p.maxSkew.Store(int64(cfg.Global.MaxSkew))
		if old.probes[name] == p {
			p.relabel(cfg.Probes[name])
			continue
		}
		p.bind(next.sinks, old.probes[name])
		p.takePause(old.probes[name])
	}
	for _, s := range next.sinks {
		s.watch(next.probes)
	}
	m.state.Store(next)
	m.replaced.Store(true)
	for name, p := range old.probes {
		if next.probes[name] == p {
			continue
		}
		if q := next.probes[name]; q == nil {
			p.metrics.Delete()
			p.endTraces()
		} else {
			p.deletePairsNotIn(q)
		}
	}
	for name, s := range old.sinks {
		if next.sinks[name] != s {
			s.stop()
		}
	}
	if m.running.Load() {
		m.startAll(old, next)
	}
}

// startAll starts what is new in next: the sinks first, so that none misses a heartbeat.
func (m *Monitor) startAll(old, next *state) {
	for _, name := range slices.Sorted(maps.Keys(next.sinks)) {
		if s := next.sinks[name]; old.sinks[name] != s {
			s.start(m.ctx)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(next.probes)) {
		if p := next.probes[name]; old.probes[name] != p {
			p.start()
		}
	}
}

// maxRetired is how many keyrings are remembered. Each one costs a look at what is taken for a forgery,
// and nobody changes keys that often while heartbeats are on their way.
const maxRetired = 8

// retire replaces the keys, and returns those of before whose heartbeats the new ones do not verify, the
// newest first: a keyring that signed again later vouches for more. One that the new keys verify is kept
// all the same, since the next change may take its key away with heartbeats still on their way.
func (m *Monitor) retire(keys *heartbeat.Keyring) (others []*heartbeat.Keyring) {
	before := m.keys
	m.keys = keys
	if before != nil && before != keys {
		m.retired = append(slices.Clone(m.retired[max(0, len(m.retired)+1-maxRetired):]), before)
	}
	for _, k := range slices.Backward(m.retired) {
		if !keys.Accepts(k) {
			others = append(others, k)
		}
	}
	return others
}

// Run runs what is configured until ctx ends. Then it injects no more, waits up to Options.Grace for
// the heartbeats in flight, stops the sinks and returns nil.
func (m *Monitor) Run(ctx context.Context) error {
	sinksCtx, stopSinks := context.WithCancel(context.WithoutCancel(ctx))
	defer stopSinks()
	schedCtx, stopSched := context.WithCancel(context.WithoutCancel(ctx))
	defer stopSched()
	scheduled := make(chan struct{})
	go func() {
		defer close(scheduled)
		m.sched.Run(schedCtx)
	}()

	m.apply.Lock()
	m.ctx = sinksCtx
	m.running.Store(true)
	m.startAll(&state{}, m.state.Load())
	m.apply.Unlock()
	endKeeping := m.keep(context.WithoutCancel(ctx))

	<-ctx.Done()
	m.apply.Lock()
	defer m.apply.Unlock()
	m.running.Store(false)
	m.log.Info("stopping: no more injections, waiting for heartbeats in flight", "grace", m.opts.Grace)
	st := m.state.Load()
	patience := time.AfterFunc(m.opts.Grace, func() {
		for _, p := range st.probes {
			p.cancel()
		}
	})
	defer patience.Stop()
	deadline := time.Now().Add(m.opts.Grace)
	stopSched()
	<-scheduled
	m.drain(deadline)

	for _, name := range slices.Sorted(maps.Keys(st.probes)) {
		st.probes[name].stop()
	}
	stopSinks()
	for _, s := range st.sinks {
		s.stop()
	}
	for _, p := range st.probes {
		p.endTraces()
	}
	endKeeping()
	return nil
}

// keep writes the journal until the function that it returns is called, which writes it a last time.
func (m *Monitor) keep(ctx context.Context) (end func()) {
	if m.keeper == nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		m.keeper.run(ctx)
	}()
	return func() {
		cancel()
		select {
		case <-done:
		case <-time.After(lastWrite):
			m.log.Error("the journal's disk does not answer: its last second may be missing")
		}
	}
}

// drain waits until nothing is in flight, at most until the deadline.
func (m *Monitor) drain(deadline time.Time) {
	for {
		var open uint64
		for _, p := range m.state.Load().probes {
			open += p.inFlight()
		}
		if open == 0 {
			return
		}
		if !time.Now().Before(deadline) {
			m.log.Warn("heartbeats are still in flight at the end of the grace period", "heartbeats", open)
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// Ready returns nil while Run runs what is configured.
func (m *Monitor) Ready() error {
	if !m.running.Load() {
		return errors.New("not running")
	}
	return nil
}
