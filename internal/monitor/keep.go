package monitor

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/conn"
	"github.com/lag-monitor/lag-monitor/internal/journal"
	"github.com/lag-monitor/lag-monitor/internal/ledger"
	"github.com/lag-monitor/lag-monitor/sinks"
)

const (
	// keepEvery is how often the journal is written: what was sent since the last time may end without an
	// outcome when the process is killed.
	keepEvery = time.Second
	// firstKeep is when it is written first: a process that is killed again and again would else tell of the
	// same outcomes each time, and forget all that it has sent.
	firstKeep = 100 * time.Millisecond
	// keepShare bounds what a slow disk may take: a pause is at least so many times as long as the writing
	// before it.
	keepShare = 10
	// reopenEvery is how often a journal that cannot be opened is tried again.
	reopenEvery = 30 * time.Second
	// lastWrite bounds how long a disk that hangs can hold up the end.
	lastWrite = 5 * time.Second
)

// JournalIn keeps the journal in a directory.
func JournalIn(dir string) func() (Journal, *journal.State, error) {
	return func() (Journal, *journal.State, error) { return journal.Open(dir) }
}

// keeper writes the journal. Its fields belong to the goroutine that writes.
type keeper struct {
	m       *Monitor
	journal Journal   // nil while it cannot be opened
	tried   time.Time // when opening it was last tried
	failing bool
	down    atomic.Bool // the same, for others
	batch   journal.Batch
	// whole is set when the file has to be written anew.
	whole bool

	rows  map[*sinkRun]*journal.Sink
	block journal.Block
	open  []ledger.Open
	ends  []ledger.End
}

// openJournal opens the journal for the first time, before anything is configured.
func (m *Monitor) openJournal() {
	k := &keeper{m: m, whole: true, tried: time.Now()}
	m.keeper = k
	j, st, err := m.opts.OpenJournal()
	if st.Lost != nil {
		m.journalErrors.Add(1)
		m.log.Error("the journal cannot be read in whole: starting with what can be read", "err", st.Lost)
	}
	m.rest = newRemains(st)
	if !st.At.IsZero() {
		open := 0
		for i := range st.Blocks {
			open += st.Blocks[i].Len()
		}
		m.log.Info("going on from the journal", "written", st.At, "sinks", len(st.Sinks), "heartbeats", open)
	}
	if err != nil {
		k.failed(err)
		return
	}
	k.journal = j
}

// failed counts an error of the journal, and logs the first of a row.
func (k *keeper) failed(err error) {
	k.m.journalErrors.Add(1)
	k.whole = true
	k.down.Store(true)
	if !k.failing {
		k.failing = true
		k.m.log.Error("the journal cannot be written: a restart would begin without it", "err", err)
	}
}

// run writes until ctx ends, and then a last time.
func (k *keeper) run(ctx context.Context) {
	pause := time.NewTimer(firstKeep)
	defer pause.Stop()
	for {
		select {
		case <-ctx.Done():
			k.write()
			if k.journal != nil {
				if err := k.journal.Close(); err != nil {
					k.failed(err)
				}
			}
			return
		case <-pause.C:
			began := time.Now()
			k.write()
			pause.Reset(max(keepEvery, keepShare*time.Since(began)))
		}
	}
}

func (k *keeper) write() {
	if k.journal == nil && !k.reopen() {
		return
	}
	if k.m.replaced.Swap(false) {
		k.whole = true
	}
	k.collect()
	if err := k.journal.Write(&k.batch); err != nil {
		k.failed(err)
		return
	}
	for s := range k.rows {
		s.settle()
	}
	k.whole = false
	k.down.Store(false)
	if k.failing {
		k.failing = false
		k.m.log.Info("the journal is written again")
	}
}

// reopen tries to open the journal. What it holds is of no use any more: heartbeats have passed since.
func (k *keeper) reopen() bool {
	if time.Since(k.tried) < reopenEvery {
		return false
	}
	k.tried = time.Now()
	j, _, err := k.m.opts.OpenJournal()
	if err != nil {
		k.failed(err)
		return false
	}
	k.journal = j
	return true
}

// collect fills the batch with what has changed.
func (k *keeper) collect() {
	m := k.m
	st := m.state.Load()
	k.batch.Reset()
	if k.whole {
		k.batch.ReplaceAll()
	}
	// The positions come first: an account may know more than has been read by its position, and then a
	// little is read again. The other way round heartbeats would be missing.
	rows := make(map[*sinkRun]*journal.Sink, len(st.sinks))
	for _, s := range st.sinks {
		row := k.rows[s]
		if row == nil {
			row = &journal.Sink{Name: s.cfg.Name, Fingerprint: s.cfg.Fingerprint}
		}
		row.Position, row.Stamps, row.Streams = s.position(), row.Stamps[:0], row.Streams[:0]
		rows[s] = row
	}
	k.rows = rows
	now := time.Now()
	for _, p := range st.probes {
		p.mu.Lock()
		for _, w := range p.watches {
			k.watch(w, now)
		}
		p.mu.Unlock()
	}
	k.pauses(st, now)
	if m.rest != nil {
		k.rest(m.rest, st, now)
	}
	for _, row := range k.rows {
		k.batch.PutSink(row)
	}
}

// position returns where the sink stands; nil where it cannot tell.
func (s *sinkRun) position() (pos map[string]string) {
	r, ok := s.sink.(sinks.Resumer)
	if !ok {
		return nil
	}
	var err error
	func() {
		defer conn.Contain(&err)
		pos = r.Position()
	}()
	if err != nil {
		s.positionFailed(err)
		return nil
	}
	s.positionErr = ""
	return pos
}

// settle lets the sink's broker forget what the journal has by now.
func (s *sinkRun) settle() {
	r, ok := s.sink.(sinks.Settler)
	if !ok {
		return
	}
	var err error
	func() {
		defer conn.Contain(&err)
		r.Settle()
	}()
	if err != nil {
		s.positionFailed(err)
	}
}

// positionFailed tells of an error once: it may come every second.
func (s *sinkRun) positionFailed(err error) {
	if text := err.Error(); text != s.positionErr {
		s.positionErr = text
		s.log.With(conn.StackOf(err)...).Error("the position of the sink", "err", err)
	}
}

// watch adds the timestamps of a watch, and what has changed in its accounts.
func (k *keeper) watch(w *watch, now time.Time) {
	if !w.expects() {
		return
	}
	row := k.rows[w.sink]
	if row == nil {
		return // of a sink that a reload is about to replace
	}
	// What is decided by now is not open any more.
	w.sync()
	t := w.p.m.instant(now)
	w.ledgers(func(l *ledger.Ledger) { l.Advance(t) })
	probe := w.p.cfg.Name
	for lane, st := range w.stamps {
		row.Stamps = append(row.Stamps, journal.Stamp{Probe: probe, Lane: lane, Due: st.due.UnixNano()})
	}
	k.block.Probe, k.block.Sink = probe, w.sink.cfg.Name
	if w.ledger != nil {
		k.account(w, now, w.p.instance, w.p.epoch, w.ledgerConfig(), w.ledger)
	}
	for _, r := range w.runs {
		k.account(w, now, r.instance, r.epoch, r.cfg, r.ledger)
		if w.ledger == nil {
			row.Streams = append(row.Streams, k.stream(w, now, r))
		}
	}
}

func (k *keeper) account(w *watch, now time.Time, instance, epoch uint64, cfg ledger.Config, l *ledger.Ledger) {
	if k.whole {
		l.ChangeAll()
	}
	b := &k.block
	b.Instance, b.Epoch = instance, epoch
	b.Expiry, b.Timeout, b.TTL = cfg.Expiry, cfg.Timeout, cfg.TTL
	k.open = l.Changes(k.open, func(c *ledger.Block) {
		b.Lane, b.Block, b.Open = c.Lane, c.Number, b.Open[:0]
		for _, o := range c.Open {
			b.Open = append(b.Open, journal.Heartbeat{Seq: o.Seq, Due: w.p.m.wall(now, o.Due), Maybe: o.Maybe, Missed: o.Missed, Death: uint8(o.Death)})
		}
		k.batch.PutBlock(b)
	})
}

func (k *keeper) stream(w *watch, now time.Time, r *run) journal.Stream {
	s := journal.Stream{Probe: w.p.cfg.Name, Instance: r.instance, Epoch: r.epoch, Expiry: r.cfg.Expiry, Timeout: r.cfg.Timeout}
	k.ends = r.ledger.Ends(k.ends[:0])
	for _, e := range k.ends {
		s.Lanes = append(s.Lanes, journal.StreamLane{Lane: e.Lane, Next: e.Next, Due: w.p.m.wall(now, e.Due), Every: e.Every})
	}
	return s
}

// rest adds what the process before has left and nobody has asked for yet.
func (k *keeper) rest(rest *remains, st *state, now time.Time) {
	rest.mu.Lock()
	defer rest.mu.Unlock()
	if rest.old(now) {
		return
	}
	for _, row := range k.rows {
		left := rest.sinks[row.Name]
		row.Stamps = append(row.Stamps, left.Stamps...)
		row.Streams = append(row.Streams, left.Streams...)
	}
	for name, left := range rest.sinks {
		if st.sinks[name] == nil {
			k.batch.PutSink(&left)
		}
	}
	if !k.whole {
		return
	}
	for _, blocks := range rest.open {
		for i := range blocks {
			k.batch.PutBlock(&blocks[i])
		}
	}
}

// wall is the inverse of instantOfWall.
func (m *Monitor) wall(now time.Time, t ledger.Instant) int64 {
	return now.UnixNano() - int64(m.instant(now).Sub(t))
}
