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
	"github.com/lag-monitor/lag-monitor/internal/conn"
	"github.com/lag-monitor/lag-monitor/internal/heartbeat"
	"github.com/lag-monitor/lag-monitor/internal/ledger"
	"github.com/lag-monitor/lag-monitor/internal/metrics"
	"github.com/lag-monitor/lag-monitor/probe"
)

const (
	// laneRefresh is how often the lanes of a head are looked up.
	laneRefresh = 30 * time.Second
	// lanesAtOnce is how many lanes are injected to at the same time where the transport takes one
	// message a request.
	lanesAtOnce = 16
)

// probeRun is one probe that runs, with its accounts at all its sinks. It is a task of the schedule.
type probeRun struct {
	m        *Monitor
	log      *slog.Logger
	called   string // the probe's name in its heartbeats
	instance uint64
	epoch    uint64       // of this run of the probe: a changed probe is a new run, with sequences of its own
	maxSkew  atomic.Int64 // time.Duration
	injector probe.Injector
	expires  bool // the broker discards heartbeats after their TTL

	ctx    context.Context // of the injections
	cancel context.CancelFunc

	// Owned by Tick, which never runs twice at once.
	ticks  uint64 // with an injection
	msgs   []probe.Message
	ptrs   []*probe.Message
	errs   []error
	buf    []byte
	failed int    // ticks that failed since the head was well; for the log
	thrown string // what the driver panicked with, the last time that it was logged

	mu      sync.Mutex
	entry   *probe.Entry // nil before start
	cfg     *config.Probe
	metrics *metrics.Probe
	watches []*watch
	lanes   []*sendLane // those that are injected to, ascending
	byLane  map[uint32]*sendLane
	counts  metrics.ProbeState
	last    lastError
	keys    *heartbeat.Keyring
	// retired has, for each keyring that signed before, the last sequence of each lane under it.
	retired map[*heartbeat.Keyring]map[uint32]uint64
	failing bool // the last injection was not accepted
	closed  bool
	traces  traces
	hops    bool // one of its sinks is a hop

	pause    pause
	pauseEnd *time.Timer // nil before the first pause
	unkept   bool        // the pause is not in the journal as it is

	beats    beats
	deaths   []death
	observed time.Time   // when history and limits were last brought up to date
	crossed  [2]crossing // of the page, and of the ticket
	lagHigh  time.Time   // when the lag was last one that pages

	refreshing  bool
	refreshedAt time.Time
}

// sendLane is the sending side of a lane.
type sendLane struct {
	id       uint32
	seq      uint64 // of the last tick
	accepted uint64 // bit i: the head accepted seq-i
	live     bool
	// sending is the sequence that is being injected, 0 when none is, and beat its number among those that
	// are shown; proven is set when it has arrived before the injection returned.
	sending uint64
	beat    uint64
	proven  bool
	// paused is the last sequence before a pause. A listener takes ticks for evenly spaced: by those before
	// a pause it would be wrong about the time, and so they are not told of.
	paused uint64
}

// next moves on to the next sequence and returns it with the bitmap of those before.
func (l *sendLane) next() (seq, accepted uint64) {
	accepted = l.accepted
	l.accepted <<= 1
	l.seq++
	return l.seq, accepted
}

// accept notes that the head has accepted seq.
func (l *sendLane) accept(seq uint64) {
	if seq > l.paused {
		l.accepted |= 1 << (l.seq - seq)
	}
}

// resume begins anew after a pause.
func (l *sendLane) resume() { l.paused, l.accepted = l.seq, 0 }

type lastError struct {
	err error
	at  time.Time
}

func (m *Monitor) openProbe(c *config.Probe, instance string, maxSkew time.Duration) (*probeRun, error) {
	p := &probeRun{m: m, cfg: c, log: m.log.With("probe", c.Name), called: c.HeartbeatName(), instance: heartbeat.InstanceID(instance),
		epoch: heartbeat.NewEpoch(), byLane: make(map[uint32]*sendLane)}
	p.maxSkew.Store(int64(maxSkew))
	if c.Inject != nil {
		inj, err := open(func() (inj probe.Injector, err error) {
			inj, err = c.Inject.Open()
			if e, ok := inj.(probe.Expirer); ok && err == nil {
				p.expires = e.Expires()
			}
			return inj, err
		})
		if err != nil {
			return nil, err
		}
		p.injector = inj
		if _, ok := inj.(probe.Laner); !ok {
			p.setLanes([]uint32{0})
		}
	}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	return p, nil
}

func (p *probeRun) injects() bool { return p.injector != nil }

func (p *probeRun) skewAllowed() time.Duration { return time.Duration(p.maxSkew.Load()) }

// unchanged reports whether the probe can go on as it is under a new configuration.
func (p *probeRun) unchanged(c *config.Probe, instance string, sinks map[string]*sinkRun) bool {
	if p.cfg.RunFingerprint != c.RunFingerprint || p.instance != heartbeat.InstanceID(instance) || len(p.watches) != len(c.Sinks) {
		return false
	}
	for i, name := range c.Sinks {
		if p.watches[i].sink != sinks[name] {
			return false
		}
	}
	return true
}

// bind makes the accounts at the sinks, before the probe starts.
func (p *probeRun) bind(sinks map[string]*sinkRun, old *probeRun) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.metrics = p.newMetrics(p.cfg)
	for _, name := range p.cfg.Sinks {
		w := newWatch(p, sinks[name])
		p.watches = append(p.watches, w)
		if old == nil {
			p.m.restore(w)
			continue
		}
		old.mu.Lock()
		for _, o := range old.watches {
			if o.sink.cfg.Name == name {
				w.takeOver(o)
			}
		}
		p.crossed, p.lagHigh = old.crossed, old.lagHigh
		old.mu.Unlock()
	}
	p.join()
	if old != nil {
		old.mu.Lock()
		p.inheritTraces(old)
		old.mu.Unlock()
	}
}

func (p *probeRun) newMetrics(c *config.Probe) *metrics.Probe {
	thresholds := map[string]metrics.Threshold{}
	for severity, t := range map[string]config.Thresholds{metrics.Page: c.Page, metrics.Ticket: c.Ticket} {
		thresholds[severity] = metrics.Threshold{Lag: t.Lag, For: t.For, DropRatio: t.DropRatio,
			DuplicateRatio: t.DuplicateRatio, ReorderRatio: t.ReorderRatio}
	}
	mp := p.m.metrics.Probe(c.Name, c.InfoLabels(), p.injects(), c.Interval, c.Expiry, thresholds)
	mp.SLO = metrics.SLO(c.SLO)
	return mp
}

// relabel takes over what a reload may change without a restart: labels, thresholds and links.
func (p *probeRun) relabel(c *config.Probe) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cfg = c
	p.metrics = p.newMetrics(c)
	for _, w := range p.watches {
		w.setMetrics()
		w.ledgers(func(l *ledger.Ledger) { l.SetSLO(c.SLO.Latency) })
	}
}

// setKeys makes the probe sign with other keys from the next heartbeat on. retired are the keyrings whose
// heartbeats may still be on their way.
func (p *probeRun) setKeys(now *heartbeat.Keyring, retired []*heartbeat.Keyring) {
	p.mu.Lock()
	defer p.mu.Unlock()
	before := p.keys
	if before == now {
		return
	}
	p.keys = now
	maps.DeleteFunc(p.retired, func(k *heartbeat.Keyring, _ map[uint32]uint64) bool { return !slices.Contains(retired, k) })
	if before == nil || !slices.Contains(retired, before) {
		return
	}
	last := make(map[uint32]uint64, len(p.byLane))
	for id, l := range p.byLane {
		last[id] = l.seq
	}
	if p.retired == nil {
		p.retired = make(map[*heartbeat.Keyring]map[uint32]uint64)
	}
	p.retired[before] = last
}

func (p *probeRun) deletePairsNotIn(next *probeRun) {
	for _, w := range p.watches {
		if !slices.ContainsFunc(next.watches, func(o *watch) bool { return o.sink.cfg.Name == w.sink.cfg.Name }) && w.metrics != nil {
			w.metrics.Delete()
		}
		if w.hop != nil && !slices.ContainsFunc(next.watches, func(o *watch) bool { return o.hop != nil && o.way() == w.way() }) {
			w.hop.Delete()
		}
	}
}

func (p *probeRun) start() {
	if !p.injects() {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.injector.(probe.Laner); ok {
		p.refreshLanes()
	}
	// The instance is part of the name, so that replicas do not inject at the same moment.
	p.entry = p.m.sched.Add(fmt.Sprint(p.cfg.Name, p.instance), p.cfg.Interval, p)
}

// stop ends the injections and closes the injector, off the caller's path: a head that hangs must not
// hold up a reload.
func (p *probeRun) stop() {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return
	}
	p.closed = true
	if p.pauseEnd != nil {
		p.pauseEnd.Stop()
	}
	entry := p.entry
	p.mu.Unlock()
	if entry != nil {
		entry.Remove()
	}
	p.cancel()
	if entry != nil {
		entry.Wait()
	}
	p.close()
}

func (p *probeRun) close() {
	p.cancel()
	if p.injector == nil {
		return
	}
	err := func() (err error) {
		defer conn.Contain(&err)
		return p.injector.Close()
	}()
	if err != nil {
		p.log.With(conn.StackOf(err)...).Warn("closing the injector", "err", err)
	}
}

// sinkBegan is called when a sink has begun to read for the first time. A probe that has been waiting
// for it injects at once.
func (p *probeRun) sinkBegan() {
	p.mu.Lock()
	entry := p.entry
	waited := p.counts.Skipped[metrics.SkipNotReady] > 0
	p.mu.Unlock()
	if entry != nil && waited {
		entry.Now()
	}
}

// setLanes replaces the lanes that are injected to. The caller holds the lock, or is alone.
func (p *probeRun) setLanes(ids []uint32) {
	for _, l := range p.lanes {
		l.live = false
	}
	old := p.lanes
	p.lanes = nil
	for _, id := range ids {
		l := p.byLane[id]
		if l == nil {
			l = &sendLane{id: id}
			p.byLane[id] = l
		}
		l.live = true
		p.lanes = append(p.lanes, l)
	}
	for _, w := range p.watches {
		for lane, st := range w.stamps {
			if l := p.byLane[lane]; st.carried && (l == nil || !l.live) {
				delete(w.stamps, lane)
			}
		}
	}
	for _, l := range old {
		if l.live {
			continue
		}
		for _, w := range p.watches {
			w.ledgers(func(led *ledger.Ledger) { led.Retire(l.id) })
		}
	}
}

// refreshLanes looks the lanes up in the background. The caller holds the lock.
func (p *probeRun) refreshLanes() {
	if p.refreshing || p.closed {
		return
	}
	p.refreshing = true
	timeout := p.cfg.SendTimeout
	go func() {
		ctx, cancel := context.WithTimeout(p.ctx, timeout)
		defer cancel()
		ids, err := p.lookUpLanes(ctx)
		p.mu.Lock()
		first := p.lanes == nil && err == nil
		p.refreshing, p.refreshedAt = false, time.Now()
		if err != nil {
			p.last = lastError{err, time.Now()}
		} else {
			p.setLanes(ids)
		}
		entry := p.entry
		p.mu.Unlock()
		if err != nil && ctx.Err() != context.Canceled {
			p.log.With(conn.StackOf(err)...).Warn("looking up the lanes of the head", "err", err)
		}
		if first && entry != nil {
			entry.Now()
		}
	}()
}

func (p *probeRun) lookUpLanes(ctx context.Context) (ids []uint32, err error) {
	defer conn.Contain(&err)
	ids, err = p.injector.(probe.Laner).Lanes(ctx)
	if err == nil && len(ids) == 0 {
		err = errors.New("the head has no lane")
	}
	return ids, err
}

// Overrun implements probe.Task.
func (p *probeRun) Overrun(at time.Time, n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pausedAt(time.Now()) {
		p.counts.Skipped[metrics.SkipPaused] += uint64(n)
		return
	}
	p.counts.Skipped[metrics.SkipOverrun] += uint64(n)
	p.skip(at)
}

// skip lets a tick pass: nothing is sent, but what users would feel goes on. The caller holds the lock.
func (p *probeRun) skip(at time.Time) {
	due := p.m.instant(at).Add(p.cfg.Expiry)
	for _, l := range p.lanes {
		seq, _ := l.next()
		p.beats.add(l.id, seq, due.Add(-p.cfg.Expiry), resultSkipped)
		for _, w := range p.watches {
			if w.expects() {
				w.ledger.Skip(l.id, seq, due)
			}
		}
	}
}

// Tick implements probe.Task: one heartbeat to each lane.
func (p *probeRun) Tick(at time.Time) {
	msgs := p.prepare(at)
	if msgs == nil {
		return
	}
	began := time.Now()
	p.inject(msgs)
	p.settle(msgs, time.Since(began))
}

// prepare registers the heartbeats of a tick and returns them; nil when the tick is skipped.
func (p *probeRun) prepare(at time.Time) []*probe.Message {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.m.opts.Ticks > 0 && p.ticks >= p.m.opts.Ticks {
		return nil
	}
	now := time.Now()
	p.observe(now)
	switch {
	case p.pausedAt(now):
		p.counts.Skipped[metrics.SkipPaused]++
		return nil
	case p.pause != (pause{}):
		p.unpause(now, pauseOver)
	}
	if _, ok := p.injector.(probe.Laner); ok && now.Sub(p.refreshedAt) > laneRefresh {
		p.refreshLanes()
	}
	if len(p.lanes) == 0 {
		// Nobody knows yet where to inject: the head does not answer.
		if p.last.err != nil {
			p.counts.Failure++
			p.refreshLanes()
		}
		return nil
	}
	if len(p.watches) > 0 && !slices.ContainsFunc(p.watches, func(w *watch) bool { return w.begun }) {
		p.counts.Skipped[metrics.SkipNotReady]++
		p.skip(at)
		return nil
	}

	p.ticks++
	c := p.cfg
	due := p.m.instant(now).Add(c.Expiry)
	p.grow(len(p.lanes))
	h := heartbeat.Heartbeat{Probe: p.called, Instance: p.instance, Epoch: p.epoch, Lanes: uint32(len(p.lanes)),
		Sent: now, Expiry: c.Expiry, Interval: c.Interval, Timeout: c.Timeout}
	for i, l := range p.lanes {
		h.Lane = l.id
		h.Seq, h.Accepted = l.next()
		l.sending, l.proven = h.Seq, false
		l.beat = p.beats.add(h.Lane, h.Seq, due.Add(-c.Expiry), resultPending)
		for _, w := range p.watches {
			if w.expects() {
				w.ledger.Expect(h.Lane, h.Seq, due)
			}
		}
		p.buf = p.keys.Append(p.buf[:0], &h)
		p.msgs[i] = probe.Message{Probe: c.Name, Token: string(p.buf), Seq: h.Seq, Lane: h.Lane, Sent: now,
			Due: now.Add(c.Expiry), Expiry: c.Expiry, TTL: c.TTL, TraceParent: p.trace(&h)}
		p.ptrs[i], p.errs[i] = &p.msgs[i], nil
	}
	for _, w := range p.watches {
		w.sync()
		w.ledgers(func(l *ledger.Ledger) { l.Advance(p.m.instant(now)) })
	}
	return p.ptrs[:len(p.lanes)]
}

func (p *probeRun) grow(n int) {
	if n <= len(p.msgs) {
		return
	}
	p.msgs = make([]probe.Message, n)
	p.ptrs = make([]*probe.Message, n)
	p.errs = make([]error, n)
}

// inject sends the messages and leaves what became of each in p.errs.
func (p *probeRun) inject(msgs []*probe.Message) {
	ctx, cancel := context.WithTimeout(p.ctx, p.sendTimeout())
	defer cancel()
	errs := p.errs[:len(msgs)]
	if len(msgs) == 1 {
		errs[0] = p.injectOne(ctx, msgs[0])
		return
	}
	if b, ok := p.injector.(probe.BatchInjector); ok {
		var err error
		func() {
			defer conn.Contain(&err)
			b.InjectBatch(ctx, msgs, errs)
		}()
		if err != nil {
			for i := range errs {
				errs[i] = err
			}
		}
		return
	}
	var wg sync.WaitGroup
	room := make(chan struct{}, lanesAtOnce)
	for i, msg := range msgs {
		room <- struct{}{}
		wg.Go(func() {
			errs[i] = p.injectOne(ctx, msg)
			<-room
		})
	}
	wg.Wait()
}

func (p *probeRun) sendTimeout() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cfg.SendTimeout
}

func (p *probeRun) injectOne(ctx context.Context, m *probe.Message) (err error) {
	defer conn.Contain(&err)
	return p.injector.Inject(ctx, m)
}

// settle notes what the head said of each message.
func (p *probeRun) settle(msgs []*probe.Message, took time.Duration) {
	var failure error
	p.mu.Lock()
	p.metrics.Inject.Observe(took.Seconds())
	for i, msg := range msgs {
		err := p.errs[i]
		result := ledger.Unknown
		switch {
		case err == nil:
			result = ledger.Accepted
		case probe.IsRefused(err):
			result = ledger.Refused
		}
		if err != nil {
			failure = err
			p.last = lastError{err, time.Now()}
		}
		l := p.byLane[msg.Lane]
		if !l.proven {
			p.sent(l, msg.Seq, result)
		}
		if err != nil {
			p.beats.fail(l.beat, err)
		}
		p.traceSent(msg.Lane, msg.Seq, took, result, err)
		l.sending = 0
		if o := p.m.opts.Observer; o != nil {
			if l.proven {
				result, err = ledger.Accepted, nil
			}
			o.Injected(Injection{Probe: p.cfg.Name, Tick: p.ticks, Lane: msg.Lane, Seq: msg.Seq, Sent: msg.Sent, Due: msg.Due, Took: took, Result: result, Err: err})
		}
	}
	before := p.failing
	p.failing = failure != nil
	p.mu.Unlock()
	p.report(failure, before)
}

// sent takes the result of one injection into the accounts. The caller holds the lock.
func (p *probeRun) sent(l *sendLane, seq uint64, r ledger.Result) {
	for _, w := range p.watches {
		if w.expects() {
			w.ledger.Sent(l.id, seq, r) // no news to the account that has seen it arrive
		}
	}
	switch r {
	case ledger.Accepted:
		p.counts.Success++
		l.accept(seq)
		p.beats.set(l.beat, resultSuccess)
	case ledger.Unknown:
		p.counts.Unknown++
		p.beats.set(l.beat, resultUnknown)
	case ledger.Refused:
		p.counts.Failure++
		p.beats.set(l.beat, resultFailure)
	}
}

// proven notes that the head has accepted a heartbeat, because it arrived before the injection
// returned. The caller holds the lock.
func (p *probeRun) proven(lane uint32, seq uint64) {
	if l := p.byLane[lane]; l != nil && l.sending == seq && !l.proven {
		l.proven = true
		p.sent(l, seq, ledger.Accepted)
	}
}

// report logs a change of the head's health once, and the failures in between in sum.
func (p *probeRun) report(err error, before bool) {
	switch {
	case err != nil:
		p.failed++
		var thrown *conn.PanicError
		news := !before
		if errors.As(err, &thrown) && thrown.Value != p.thrown {
			p.thrown, news = thrown.Value, true // it may follow failures of another kind
		}
		if news && p.ctx.Err() == nil {
			p.log.With(conn.StackOf(err)...).Warn("injection fails", "err", err, "refused", probe.IsRefused(err))
		}
	case before:
		p.log.Info("injection works again", "failed", p.failed)
		p.failed, p.thrown = 0, ""
	}
}

// inFlight counts the heartbeats whose outcome is open at any sink.
func (p *probeRun) inFlight() (n uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	for _, w := range p.watches {
		c, _ := w.advance(now, nil)
		n += c.InFlight
	}
	return n
}
