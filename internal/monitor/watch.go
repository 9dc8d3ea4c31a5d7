package monitor

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/config"
	"github.com/lag-monitor/lag-monitor/internal/heartbeat"
	"github.com/lag-monitor/lag-monitor/internal/ledger"
	"github.com/lag-monitor/lag-monitor/internal/metrics"
	"github.com/lag-monitor/lag-monitor/internal/tracing"
	"github.com/lag-monitor/lag-monitor/sinks"
)

const (
	// maxRuns is how many runs of senders are told apart. A monitor in a crash loop leaves one a run behind,
	// until the deadlines of its last heartbeats.
	maxRuns = 64
	// maxSettled is how many accounts of senders are kept that have nothing in flight any more, to recognise
	// what comes late or twice; maxRunLanes bounds the lanes of all of them (each takes about 1.5 KiB), and
	// maxForgotten how many senders are remembered by nothing but their name.
	maxSettled   = 8
	maxRunLanes  = 1 << 14
	maxForgotten = 4096
	// keepRun is how long a run of before is remembered after it was taken over, so that duplicates of its
	// last heartbeats are known.
	keepRun = 10 * time.Minute
)

// watch is one probe at one sink: its account. All fields are guarded by the probe's lock.
type watch struct {
	p       *probeRun
	sink    *sinkRun
	metrics *metrics.Pair // nil where nothing is expected
	// dead and died are what a dead-letter queue has instead.
	dead *metrics.DeadPair
	died metrics.DeadState

	// ledger is the account of our own heartbeats; nil where the probe only listens. runs are the accounts
	// of other runs, the most recently heard last: of the processes that send, where the probe only listens;
	// else of what earlier runs of the probe have left open. past is the sum of those forgotten.
	ledger *ledger.Ledger
	runs   []*run
	past   ledger.Counts
	// blank is an account without heartbeats, where the probe only listens: it knows what the account of a
	// new sender has to know of the sink. forgotten are the senders whose accounts are not kept.
	blank     *ledger.Ledger
	goesOn    bool // blank knows from another account what the sink has read before
	forgotten map[source]bool
	// restored counts the heartbeats that were taken over from earlier accounts.
	restored uint64
	// successor is the watch that has taken this one's place by a reload, for those who come too late.
	successor *watch

	// begun is set when the sink has begun to read for the first time. A probe injects nothing before one
	// of its sinks has.
	begun  bool
	stamps map[uint32]stamp // by lane
	skew   skew

	neighbours
	history history
	rate    rate
	losses  losses
}

// stamp is the newest heartbeat of a lane.
type stamp struct {
	due time.Time // wall clock
	// carried is set while it stems from an account before this one and the lane has not been seen in it.
	carried bool
}

// source is one run of a process that sends.
type source struct{ instance, epoch uint64 }

// run is the account of one run of a sender.
type run struct {
	source
	cfg    ledger.Config
	ledger *ledger.Ledger
	// What the newest token says, where the probe only listens: how many lanes there are, how often, and
	// when it was due.
	lanes int
	every time.Duration
	due   time.Time
	// settled is, by lane, the sequence before which everything that the account does not know was settled in
	// an account before it.
	settled map[uint32]uint64
	until   time.Time // forgotten then, if nothing is open; zero: never
}

// ledgerConfig is what the account of the probe's own heartbeats is made with.
func (w *watch) ledgerConfig() ledger.Config {
	c := ledger.Config{Expiry: w.p.cfg.Expiry, Timeout: w.p.cfg.Timeout, Early: w.isHop(), Keep: w.keep(),
		SLO: w.p.cfg.SLO.Latency}
	if w.p.expires {
		c.TTL = w.p.cfg.TTL
	}
	return c
}

func newWatch(p *probeRun, s *sinkRun) *watch {
	w := &watch{p: p, sink: s, stamps: make(map[uint32]stamp)}
	w.setMetrics()
	if p.injects() {
		cfg := w.ledgerConfig()
		cfg.Decided = w.decided(source{p.instance, p.epoch}, cfg)
		w.ledger = ledger.New(cfg)
	} else {
		w.blank = ledger.New(ledger.Config{})
	}
	return w
}

// setMetrics makes the metrics of the pair. What is found in a dead-letter queue is counted by its reason,
// and as a drop at the destinations where it does not come.
func (w *watch) setMetrics() {
	if w.expects() {
		w.metrics = w.p.metrics.Pair(w.sink.cfg.Name)
		w.metrics.Objective = w.sink.cfg.Role == config.Destination
	} else {
		w.dead = w.p.metrics.DeadPair(w.sink.cfg.Name)
	}
	if w.hop != nil {
		w.hop = w.p.metrics.Hop(w.before(), w.sink.cfg.Name)
	}
}

// expects reports whether heartbeats are expected to come out at the sink.
func (w *watch) expects() bool { return w.sink.cfg.Role != config.DeadLetter }

// ledgers calls f with every account of the watch.
func (w *watch) ledgers(f func(*ledger.Ledger)) {
	if w.ledger != nil {
		f(w.ledger)
	}
	if w.blank != nil {
		f(w.blank)
	}
	for _, r := range w.runs {
		f(r.ledger)
	}
}

// lock takes the lock of the watch that now stands where w stood, and returns that watch.
func (w *watch) lock() *watch {
	w.p.mu.Lock()
	for w.successor != nil {
		next := w.successor
		w.p.mu.Unlock()
		w = next
		w.p.mu.Lock()
	}
	return w
}

// sync tells the accounts what the sink has proven by now.
func (w *watch) sync() {
	if t, ok := w.sink.proof(); ok {
		w.ledgers(func(l *ledger.Ledger) { l.CaughtUp(t) })
	}
}

func (w *watch) caughtUp() {
	w = w.lock()
	defer w.p.mu.Unlock()
	w.sync()
}

func (w *watch) ready(up bool, at time.Time) {
	if w, first := w.begins(up, at); first {
		w.p.sinkBegan()
	}
}

// begins passes the news on to the watch that is in force, and reports whether the sink has begun to read
// for the first time.
func (w *watch) begins(up bool, at time.Time) (in *watch, first bool) {
	w = w.lock()
	defer w.p.mu.Unlock()
	w.sync()
	t := w.p.m.instant(at)
	w.ledgers(func(l *ledger.Ledger) { l.Ready(up, t) })
	first = up && !w.begun
	if first && w.blank != nil && !w.goesOn {
		// The sink may have been reading for long. What it read before is in another account, or in none.
		w.blank.Gap(w.p.m.instant(time.Now()))
	}
	w.begun = w.begun || up
	return w, first
}

func (w *watch) gap(at time.Time) {
	w = w.lock()
	defer w.p.mu.Unlock()
	w.sync()
	t := w.p.m.instant(at)
	w.ledgers(func(l *ledger.Ledger) { l.Gap(t) })
}

// arrive takes a heartbeat of the probe that came out at the sink.
func (w *watch) arrive(h *heartbeat.Heartbeat, a sinks.Arrival) sinks.Kind {
	w = w.lock()
	defer w.p.mu.Unlock()
	kind, out := w.account(h, a)
	if out.First {
		outcome := tracing.OnTime
		if out.Verdict == ledger.Late {
			outcome = tracing.Late
		}
		w.metrics.Observe(out.Latency, w.traceArrival(h, a, outcome, out.Latency))
	}
	if o := w.p.m.opts.Observer; o != nil && kind == sinks.Heartbeat && w.expects() {
		o.Arrived(Arrival{Probe: w.p.cfg.Name, Sink: w.sink.cfg.Name, Lane: h.Lane, Seq: h.Seq, At: a.At, Outcome: out})
	}
	return kind
}

func (w *watch) account(h *heartbeat.Heartbeat, a sinks.Arrival) (sinks.Kind, ledger.Outcome) {
	p := w.p
	if a.Retired != nil && !w.signedWith(a.Retired, h) {
		return sinks.Corrupt, ledger.Outcome{}
	}
	ours := p.injects() && h.Instance == p.instance && h.Epoch == p.epoch
	var r *run
	if !ours {
		r = w.find(h)
	}
	if p.injects() && h.Instance != p.instance && r == nil {
		return sinks.Foreign, ledger.Outcome{}
	}
	if !w.expects() {
		w.traceArrival(h, a, tracing.DeadLettered, a.At.Sub(h.Due()))
		w.deadLetter(h, a)
		return sinks.Heartbeat, ledger.Outcome{}
	}
	// The age by the wall clock: all that there is for a heartbeat of another process, or of a run of ours
	// that has ended. Round takes the monotonic reading off.
	age := a.At.Round(0).Sub(h.Due())
	early := p.skewAllowed() // by how much it may come before it is due
	if w.isHop() {
		early += h.Expiry // it may be on its way to where it is held
	}
	future := !ours && -age > early
	// What is still open of our own earlier runs came out, however early; it is no forgery.
	earlier := !ours && p.injects() && r != nil && r.ledger.Knows(h.Lane, h.Seq)
	future = future && !earlier
	if future && (p.injects() || a.Past) {
		return sinks.Future, ledger.Outcome{}
	}

	l := w.ledger
	if !ours {
		switch {
		case p.injects() && !earlier,
			!p.injects() && a.Past && (r == nil || r.settled[h.Lane] == 0): // whoever listened then has counted it
			w.stampBefore(h.Lane, w.shown(h.Due(), a.At))
			return sinks.Heartbeat, ledger.Outcome{}
		case r == nil:
			r = w.newSender(h)
		}
		l = r.ledger
		if h.Seq < r.settled[h.Lane] && !l.Knows(h.Lane, h.Seq) {
			if future {
				return sinks.Future, ledger.Outcome{}
			}
			w.stamp(h.Lane, w.shown(h.Due(), a.At))
			return sinks.Heartbeat, ledger.Outcome{}
		}
	}
	arrival := ledger.Arrival{Lane: h.Lane, Seq: h.Seq, At: p.m.instant(a.At), ID: a.ID, Retries: a.Retries}
	arrival.Due = arrival.At.Add(-age)
	if !a.Enqueued.IsZero() {
		arrival.Enqueued, arrival.HasEnqueued = arrival.At.Add(-a.At.Round(0).Sub(a.Enqueued)), true
	}
	p.observe(a.At)
	if !p.injects() {
		w.skew.see(a.At, age)
		p.beats.heard(h, arrival.At, age)
		if future {
			// It came out, so it is no loss. What it says of itself moves nothing.
			l.Infer(h.Lane, h.Seq, arrival.At, h.Interval, h.Accepted)
			l.Disbelieve(h.Lane, h.Seq)
			return sinks.Future, ledger.Outcome{}
		}
		l.Infer(h.Lane, h.Seq, arrival.Due, h.Interval, h.Accepted)
	}
	w.sync()
	lag, hasLag := w.lagOf(h.Lane, arrival.At)
	out := l.Arrive(arrival)
	w.saw(h, out, arrival.At, lag, hasLag)
	if out.ProvesSent && ours {
		p.proven(h.Lane, h.Seq)
	}
	switch {
	case out.Verdict == ledger.NeverSent:
		return sinks.Corrupt, out
	case out.Latency < -early:
		return sinks.Future, out
	}
	// From our own clock, not from the token: what a forger writes into it moves nothing.
	switch due := w.shown(a.At.Round(0).Add(-out.Latency), a.At); {
	case !ours && p.injects():
		w.stampBefore(h.Lane, due)
	case out.Newest:
		w.stamp(h.Lane, due)
		if !p.injects() {
			w.limit(r, h)
		}
	}
	return sinks.Heartbeat, out
}

// signedWith reports whether the probe itself has sent a heartbeat while it signed with a keyring that is
// retired. Our own records decide: of what the token says, anybody who has an old key could have written
// it, or anybody at all if there was no key.
func (w *watch) signedWith(retired *heartbeat.Keyring, h *heartbeat.Heartbeat) bool {
	p := w.p
	last, before := p.retired[retired]
	switch {
	case !p.injects() || h.Instance != p.instance || !before && p.keys != retired:
		return false
	case h.Epoch != p.epoch: // what the probe has taken over was sent before it began
		r := w.find(h)
		return r != nil && r.ledger.Knows(h.Lane, h.Seq)
	case before:
		return h.Seq <= last[h.Lane]
	}
	return true // the change of keys has reached the sink, and not yet us
}

// shown is the due time that the timestamp of a lane shows. At a hop before the one that holds it, a
// heartbeat is due later, and no timestamp may be in the future.
func (w *watch) shown(due, at time.Time) time.Time {
	if at = at.Round(0); w.isHop() && due.After(at) {
		return at
	}
	return due
}

// lagOf is the lag of a lane as it is exported; false when there is none.
func (w *watch) lagOf(lane uint32, t ledger.Instant) (lag time.Duration, ok bool) {
	if w.ledger != nil {
		return w.ledger.Lag(lane, t)
	}
	for _, r := range w.runs {
		if l, seen := r.ledger.Lag(lane, t); seen && (!ok || l < lag) {
			lag, ok = l, true
		}
	}
	return lag, ok
}

// stamp moves the timestamp of a lane forward.
func (w *watch) stamp(lane uint32, due time.Time) {
	if old, ok := w.stamps[lane]; !ok || due.After(old.due) {
		w.stamps[lane] = stamp{due: due}
	}
}

// stampBefore does so for a heartbeat of an earlier run, whose lane this one may not have sent to yet.
func (w *watch) stampBefore(lane uint32, due time.Time) {
	if l := w.p.byLane[lane]; l == nil && w.p.lanes != nil || l != nil && !l.live {
		return // the lane has gone
	}
	if old, ok := w.stamps[lane]; !ok || due.After(old.due) {
		w.stamps[lane] = stamp{due: due, carried: true}
	}
}

// deadLetter tells the accounts of the probe at its other sinks that a heartbeat was dead-lettered.
func (w *watch) deadLetter(h *heartbeat.Heartbeat, a sinks.Arrival) {
	reason := ""
	if a.Dead != nil {
		reason = a.Dead.Reason
	}
	w.died.Count(reason)
	w.rate.add(w.p.m.instant(a.At))
	w.p.rememberDeath(h, w.sink.cfg.Name, a.Dead)
	why := deathOf(a.Dead)
	own := w.ledger != nil && h.Instance == w.p.instance && h.Epoch == w.p.epoch
	if own {
		w.p.proven(h.Lane, h.Seq) // it may be faster than the answer of the head
	}
	for _, o := range w.p.watches {
		if !o.expects() {
			continue
		}
		o.sync()
		if own {
			o.ledger.DeadLetter(h.Lane, h.Seq, why)
		} else if r := o.find(h); r != nil {
			r.ledger.DeadLetter(h.Lane, h.Seq, why)
		}
	}
}

// find returns the account of the run that sent h, and nil if there is none.
func (w *watch) find(h *heartbeat.Heartbeat) *run {
	from := source{h.Instance, h.Epoch}
	i := slices.IndexFunc(w.runs, func(r *run) bool { return r.source == from })
	if i < 0 {
		return nil
	}
	r := w.runs[i]
	if last := len(w.runs) - 1; i < last {
		w.runs = append(slices.Delete(w.runs, i, i+1), r)
	}
	return r
}

// newSender makes the account of a process that is new to a probe that only listens.
func (w *watch) newSender(h *heartbeat.Heartbeat) *run {
	w.sync()
	// The sender's expiry and timeout are what its heartbeats are held against.
	r := w.newRun(h.Instance, h.Epoch, ledger.Config{Expiry: h.Expiry, Timeout: h.Timeout})
	r.ledger = w.blank.Fork(r.cfg)
	if w.forgotten[r.source] {
		// What it sent before was in another account: it would look lost to this one.
		r.ledger.Gap(w.p.m.instant(time.Now()))
		delete(w.forgotten, r.source)
	}
	return r
}

func (w *watch) newRun(instance, epoch uint64, cfg ledger.Config) *run {
	w.makeRoom()
	cfg.Early, cfg.Keep = w.isHop(), w.keep()
	if !w.p.injects() {
		cfg.Skew = w.p.skewAllowed()
		// The token has no time to live; it has to be the same in the configuration of both sides.
		if e, ok := w.sink.sink.(sinks.Expirer); ok && e.Expires() {
			cfg.TTL = w.p.cfg.TTL
		}
	}
	cfg.Decided = w.decided(source{instance, epoch}, cfg)
	cfg.SLO = w.p.cfg.SLO.Latency // the objective is ours, whoever sends
	r := &run{source: source{instance, epoch}, cfg: cfg, ledger: ledger.New(cfg)}
	w.runs = append(w.runs, r)
	return r
}

// makeRoom forgets accounts until there is room for another one: of senders those that have been silent
// longest among those without anything in flight; in need, any. A sender that restarts again and again
// leaves many, in which something may be in flight for a timeout.
func (w *watch) makeRoom() {
	now := w.p.m.instant(time.Now())
	for !w.p.injects() && len(w.runs) >= maxSettled {
		lanes, settled := 0, -1
		for i, r := range w.runs {
			r.ledger.Advance(now)
			lanes += len(r.ledger.Lanes(nil, now))
			if c := r.ledger.Counts(); settled < 0 && c.InFlight == 0 {
				settled = i
			}
		}
		if settled < 0 && lanes < maxRunLanes {
			break
		}
		w.forget(max(settled, 0))
	}
	if len(w.runs) >= maxRuns {
		w.forget(0)
	}
}

// forget drops an account and keeps its sum. What was open in it cannot be followed any more.
func (w *watch) forget(i int) {
	c := w.runs[i].ledger.Counts()
	c.Indeterminate[ledger.DoubtOverflow] += c.InFlight
	c.InFlight = 0
	w.past = w.past.Plus(c)
	from := w.runs[i].source
	w.runs = slices.Delete(w.runs, i, i+1)
	if w.p.injects() {
		return
	}
	if len(w.forgotten) >= maxForgotten {
		w.forgotten = nil
		w.blank.Gap(w.p.m.instant(time.Now()))
	}
	if w.forgotten == nil {
		w.forgotten = make(map[source]bool)
	}
	w.forgotten[from] = true
	for lane, st := range w.stamps {
		st.carried = true // a lane that no other account knows may be dead: its silence has to go on
		w.stamps[lane] = st
	}
}

// limit forgets lanes beyond the number that the senders say there are, those first that have been silent
// longest: partitions or shards that have gone, as far as a listener can know. A lane is only taken for
// gone when it is two intervals older than the freshest, since the lanes of one tick arrive one after the
// other. A lane that is silent without another in its place stays, and its lag grows.
func (w *watch) limit(r *run, h *heartbeat.Heartbeat) {
	r.lanes, r.every, r.due = int(h.Lanes), h.Interval, h.Due()
	if len(w.stamps) <= r.lanes {
		return
	}
	var n int
	var every time.Duration
	for _, o := range w.runs {
		every = max(every, o.every)
	}
	for _, o := range w.runs {
		// Senders look lanes up at different times. Those that live count, in their last run.
		if o == r || o.instance != r.instance && r.due.Sub(o.due) < 2*every+w.p.skewAllowed() {
			n = max(n, o.lanes)
		}
	}
	if n == 0 || len(w.stamps) <= n {
		return
	}
	lanes := slices.SortedFunc(maps.Keys(w.stamps), func(a, b uint32) int { return w.stamps[a].due.Compare(w.stamps[b].due) })
	freshest := w.stamps[lanes[len(lanes)-1]].due
	for _, lane := range lanes[:len(lanes)-n] {
		if freshest.Sub(w.stamps[lane].due) < 2*every {
			return
		}
		delete(w.stamps, lane)
		w.ledgers(func(l *ledger.Ledger) { l.Retire(lane) })
	}
}

// prune forgets runs that have ended long ago.
func (w *watch) prune(now time.Time) {
	for i := 0; i < len(w.runs); i++ {
		if r := w.runs[i]; !r.until.IsZero() && now.After(r.until) && r.ledger.Counts().InFlight == 0 {
			w.forget(i)
			i--
		}
	}
}

// advance decides what can be decided, and returns the account and the state of the lanes.
func (w *watch) advance(now time.Time, lanes []ledger.LaneState) (ledger.Counts, []ledger.LaneState) {
	w.sync()
	w.prune(now)
	t := w.p.m.instant(now)
	w.ledgers(func(l *ledger.Ledger) { l.Advance(t) })
	return w.sums(), w.lanes(t, lanes)
}

// lanes appends the state of the lanes, in ascending order.
func (w *watch) lanes(t ledger.Instant, lanes []ledger.LaneState) []ledger.LaneState {
	first := len(lanes)
	w.ledgers(func(l *ledger.Ledger) {
		if w.ledger == nil || l == w.ledger { // those of our own runs that have ended do not count
			lanes = l.Lanes(lanes, t)
		}
	})
	// Of several senders the freshest counts: any of them proves that the lane is alive.
	slices.SortFunc(lanes[first:], func(a, b ledger.LaneState) int {
		switch {
		case a.Lane != b.Lane:
			return cmp.Compare(a.Lane, b.Lane)
		case a.Seen && !b.Seen:
			return -1
		case b.Seen && !a.Seen:
			return 1
		}
		return cmp.Compare(a.Lag, b.Lag)
	})
	return lanes[:first+len(slices.CompactFunc(lanes[first:], func(a, b ledger.LaneState) bool { return a.Lane == b.Lane }))]
}

// collect fills in what a scrape says of the watch. buf is room that it may use.
func (w *watch) collect(now time.Time, out *metrics.PairState, buf []ledger.LaneState) []ledger.LaneState {
	out.Counts, buf = w.advance(now, buf[:0])
	out.Restored = w.restored
	out.Skew = w.skew.estimate(now).Seconds()
	out.Lanes = out.Lanes[:0]
	for lane, st := range w.stamps {
		i, ok := slices.BinarySearchFunc(buf, lane, func(l ledger.LaneState, lane uint32) int { return cmp.Compare(l.Lane, lane) })
		if !ok && !st.carried {
			delete(w.stamps, lane) // the lane has gone
			continue
		}
		l := metrics.LaneState{Lane: laneName(lane), Timestamp: metrics.Seconds(st.due)}
		if ok {
			l.HasLag, l.Lag = buf[i].Seen, buf[i].Lag.Seconds()
		}
		out.Lanes = append(out.Lanes, l)
	}
	return buf
}

// laneName is the label of a lane.
func laneName(lane uint32) string { return strconv.FormatUint(uint64(lane), 10) }

// skew estimates by how much a sender's clock is ahead of ours: by the most negative latency of the
// last minutes, since a heartbeat cannot arrive before it was sent.
type skew struct {
	began      time.Time
	this, last time.Duration
}

const skewWindow = 5 * time.Minute

func (s *skew) see(at time.Time, latency time.Duration) {
	s.roll(at)
	s.this = max(s.this, -latency)
}

func (s *skew) roll(now time.Time) {
	switch age := now.Sub(s.began); {
	case age >= 2*skewWindow:
		s.began, s.this, s.last = now, 0, 0
	case age >= skewWindow:
		s.began, s.this, s.last = now, 0, s.this
	}
}

func (s *skew) estimate(now time.Time) time.Duration {
	s.roll(now)
	return max(s.this, s.last)
}
