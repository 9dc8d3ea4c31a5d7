package monitor

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/journal"
	"github.com/lag-monitor/lag-monitor/internal/ledger"
)

// takeOver makes w stand where o stood: newer heartbeats, later proofs and whoever still comes to o find
// w. What is open at o stays so. The caller holds both locks.
func (w *watch) takeOver(o *watch) {
	o.successor = w
	for lane, st := range o.stamps {
		w.stamps[lane] = stamp{due: st.due, carried: true}
	}
	w.history, w.rate, w.losses = o.history, o.rate, o.losses
	defer func() {
		c := w.sums()
		w.losses.seen = [2]uint64{c.OnTime, c.Drops()}
	}()
	if !w.expects() || !o.expects() || w.p.injects() != o.p.injects() {
		return
	}
	// Only the very same sink has read without a gap.
	resumed := w.sink == o.sink
	w.skew = o.skew
	if o.ledger != nil {
		w.adopt(&run{source: source{o.p.instance, o.p.epoch}, cfg: o.ledgerConfig(), ledger: o.ledger}, resumed)
	} else if resumed {
		w.blank = o.blank.Fork(ledger.Config{})
		w.forgotten, w.goesOn = o.forgotten, true
	}
	for _, r := range o.runs {
		w.adopt(r, resumed)
	}
}

// adopt takes over what is open in an account that ends.
func (w *watch) adopt(o *run, resumed bool) {
	from := o.ledger
	if w.p.injects() && from.Counts().InFlight == 0 {
		return
	}
	r := w.earlierRun(o.instance, o.epoch, o.cfg, false)
	r.lanes, r.every, r.due = o.lanes, o.every, o.due
	if resumed {
		r.ledger = from.Fork(r.cfg) // with all that it knows of the sink
	}
	from.ChangeAll()
	from.Changes(nil, func(b *ledger.Block) { r.ledger.Restore(b.Lane, b.Open) })
	w.restored += r.ledger.Counts().Sent
	if !w.p.injects() {
		for _, e := range from.Ends(nil) {
			r.end(e)
		}
	}
}

// earlierRun makes the account of a run that this one knows from another account.
func (w *watch) earlierRun(instance, epoch uint64, cfg ledger.Config, resumed bool) *run {
	r := w.newRun(instance, epoch, cfg)
	if resumed {
		r.ledger.Resume()
	}
	if w.p.injects() {
		r.until = time.Now().Add(cfg.Expiry + cfg.Timeout + keepRun)
	}
	return r
}

func (r *run) end(e ledger.End) {
	r.ledger.RestoreEnd(e)
	if r.settled == nil {
		r.settled = make(map[uint32]uint64)
	}
	r.settled[e.Lane] = e.Next
}

// remains is what the journal knows from the process before and nobody has asked for yet: a file of the
// configuration that is broken now may be whole in an hour.
type remains struct {
	mu    sync.Mutex
	at    time.Time
	sinks map[string]journal.Sink
	// open has the blocks by probe and sink.
	open map[[2]string][]journal.Block
	// pauses outlast what else is here: they have an end of their own.
	pauses []journal.Pause
}

func newRemains(st *journal.State) *remains {
	r := &remains{at: st.At, sinks: st.Sinks, open: make(map[[2]string][]journal.Block), pauses: st.Pauses}
	if r.old(time.Now()) {
		return r
	}
	for _, b := range st.Blocks {
		k := [2]string{b.Probe, b.Sink}
		r.open[k] = append(r.open[k], b)
	}
	for _, blocks := range r.open { // a ledger takes them in ascending order
		slices.SortFunc(blocks, func(a, b journal.Block) int { return cmp.Compare(a.Block, b.Block) })
	}
	return r
}

// old reports whether so much time has passed that nobody waits for those heartbeats any more.
func (r *remains) old(now time.Time) bool { return now.Sub(r.at) > ledger.DefaultHold }

// position returns where the sink of the process before stood.
func (r *remains) position(name, fingerprint string, now time.Time) map[string]string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s, ok := r.sinks[name]; ok && s.Fingerprint == fingerprint && !r.old(now) {
		return s.Position
	}
	return nil
}

// restore gives a watch what the process before has left of it. The caller holds its lock.
func (m *Monitor) restore(w *watch) {
	rest := m.rest
	if rest == nil || !w.expects() {
		return
	}
	rest.mu.Lock()
	defer rest.mu.Unlock()
	probe, sink := w.p.cfg.Name, w.sink.cfg.Name
	now := time.Now()
	row := rest.sinks[sink]
	row.Stamps = slices.DeleteFunc(row.Stamps, func(s journal.Stamp) bool {
		if s.Probe != probe {
			return false
		}
		// The clock may have been set back since: a time to come would hide a dead pipeline.
		if due := time.Unix(0, s.Due); due.Sub(now) <= w.p.skewAllowed() {
			w.stamps[s.Lane] = stamp{due: due, carried: true}
		}
		return true
	})

	// A sink that reads already has let pass what it was not asked for.
	resumed := w.sink.resumed && w.sink.cancel == nil
	runs := make(map[[2]uint64]*run)
	if w.blank != nil && resumed {
		// What senders that are new to us have sent since then has come by.
		w.goesOn = true
		w.blank.Resume()
		w.blank.Gap(m.instantOfWall(now, rest.at.UnixNano()))
	}
	if !w.p.injects() {
		for _, s := range row.Streams {
			if s.Probe == probe && !rest.old(now) {
				runs[[2]uint64{s.Instance, s.Epoch}] = w.earlierRun(s.Instance, s.Epoch, ledger.Config{Expiry: s.Expiry, Timeout: s.Timeout}, resumed)
			}
		}
	}
	key := [2]string{probe, sink}
	var open []ledger.Open
	var beats []journal.Heartbeat
	for _, b := range rest.open[key] {
		id := [2]uint64{b.Instance, b.Epoch}
		r := runs[id]
		if r == nil {
			if !w.p.injects() {
				continue // without its end nobody knows which of its heartbeats are missing
			}
			r = w.earlierRun(b.Instance, b.Epoch, ledger.Config{Expiry: b.Expiry, Timeout: b.Timeout, TTL: b.TTL}, resumed)
			runs[id] = r
		}
		open = open[:0]
		beats = b.Heartbeats(beats)
		for _, o := range beats {
			open = append(open, ledger.Open{Seq: o.Seq, Due: m.instantOfWall(now, o.Due), Maybe: o.Maybe, Missed: o.Missed, Death: ledger.Death(o.Death)})
		}
		r.ledger.Restore(b.Lane, open)
	}
	delete(rest.open, key)
	for _, r := range runs {
		w.restored += r.ledger.Counts().Sent
	}
	// The ends come last: what is open lies before them.
	for _, s := range row.Streams {
		if r := runs[[2]uint64{s.Instance, s.Epoch}]; s.Probe == probe && r != nil {
			for _, l := range s.Lanes {
				r.end(ledger.End{Lane: l.Lane, Next: l.Next, Due: m.instantOfWall(now, l.Due), Every: l.Every})
			}
		}
	}
	row.Streams = slices.DeleteFunc(row.Streams, func(s journal.Stream) bool { return s.Probe == probe })
	rest.sinks[sink] = row
}

// instantOfWall puts a time of another process, in nanoseconds since 1970, on the ledgers' clock.
func (m *Monitor) instantOfWall(now time.Time, ns int64) ledger.Instant {
	return m.instant(now).Add(-time.Duration(now.UnixNano() - ns))
}
