package ledger

import (
	"cmp"
	"math"
	"slices"
	"time"
)

// Config is what a ledger needs to know of its probe.
type Config struct {
	Expiry  time.Duration // due = sent + Expiry
	Timeout time.Duration // deadline = due + Timeout
	// TTL is how long after it was sent the broker discards an undelivered heartbeat; 0 when the broker
	// keeps it until it is read. One that was discarded while the sink was blind is nobody's loss.
	TTL time.Duration
	// Skew is by how much due times may be off the clock of the other instants: 0 when they are taken from
	// it, the skew that is allowed when they stem from another host.
	Skew time.Duration
	// Hold is how long after its deadline a heartbeat is waited for by a sink that cannot read; then it is
	// indeterminate. 0 means DefaultHold.
	Hold time.Duration
	// Keep is for how many heartbeats of a lane Told knows more than their fate; 0 means 128.
	Keep int
	// Early is set where heartbeats are expected before they are due, at a station before the one that holds
	// them: then they are not counted as Negative.
	Early bool
	// SLO is how long after it was due a heartbeat is good enough for the objective of its team, at most
	// Timeout; 0 when there is none.
	SLO time.Duration
	// Decided is told of each heartbeat that was in flight and is now dropped or indeterminate, at that moment;
	// nil: nobody is told. It must not call the ledger.
	Decided func(Decision)
}

// Decision is the outcome of a heartbeat that has not arrived on time.
type Decision struct {
	Lane    uint32
	Seq     uint64
	Due     Instant
	Dropped bool   // false: indeterminate
	Reason  string // the DropReason or the Doubt
}

// DefaultHold outlasts nearly every outage of a broker, so that what is found after it is still
// accounted for by what it was.
const DefaultHold = 6 * time.Hour

// Ledger is the account of one probe at one sink. Its methods are not safe for concurrent use.
type Ledger struct {
	cfg   Config
	lanes map[uint32]*lane
	gone  map[uint32]uint64 // inferred lanes that were forgotten, and the sequence that would have been their next
	c     Counts

	ready    bool
	begun    bool    // it has been ready
	readyAt  Instant // when it last became so
	caughtUp Instant // everything that entered the queue before was delivered; valid when proven
	proven   bool
	// blind is set from when the sink ceases to read until it has caught up again; that time began at
	// blindFrom, its last proof before.
	blind      bool
	blindFrom  Instant
	blindTimes blindTimes
	gap        Instant // what was sent before may have passed unseen; valid when gapped
	gapped     bool
}

// blindTimes are the times of blindness that are over, each from the last proof before to the proof that ended it,
// oldest first. A heartbeat may become known, or the head answer, long after the broker has discarded it. When there
// are more than fit, the two oldest count as one with what is between them: that sheds more doubt than is due, never less.
type blindTimes struct {
	spans [8]struct{ from, to Instant }
	n     int
}

func (b *blindTimes) add(from, to Instant) {
	if b.n == len(b.spans) {
		b.spans[1].from = b.spans[0].from
		copy(b.spans[:], b.spans[1:])
		b.n--
	}
	b.spans[b.n].from, b.spans[b.n].to = from, to
	b.n++
}

// New returns an empty ledger for a sink that has never read.
func New(cfg Config) *Ledger {
	if cfg.Hold <= 0 {
		cfg.Hold = DefaultHold
	}
	n := minRecords
	for n < cfg.Keep && n < maxRing {
		n *= 2
	}
	cfg.Keep = n
	return &Ledger{cfg: cfg, lanes: make(map[uint32]*lane), blind: true, blindFrom: math.MinInt64}
}

// Fork returns an empty account that knows of the sink what l knows: for one more sender of what the
// sink reads.
func (l *Ledger) Fork(cfg Config) *Ledger {
	f := New(cfg)
	cfg = f.cfg
	*f = *l
	f.cfg, f.lanes, f.gone, f.c = cfg, make(map[uint32]*lane), nil, Counts{}
	return f
}

// SetSLO replaces Config.SLO for what comes from now on.
func (l *Ledger) SetSLO(d time.Duration) { l.cfg.SLO = d }

// Counts returns the account so far.
func (l *Ledger) Counts() Counts { return l.c }

// Result says what the head made of an injection.
type Result int

// The results of an injection.
const (
	Accepted Result = iota
	Unknown         // it may be in the pipeline
	Refused         // it is certainly not
)

// Expect registers a heartbeat that is about to be injected. Sequences of a lane start anywhere above
// 0 and grow by one with each tick, due times grow with them; a jump is taken for ticks that were
// skipped, and one over more than 65,536 ticks for a new start. A sequence that is not above all before
// is ignored.
func (l *Ledger) Expect(lane uint32, seq uint64, due Instant) { l.register(lane, seq, due, Injecting) }

// Skip registers a tick without an injection: nothing is expected, but the lag goes on.
func (l *Ledger) Skip(lane uint32, seq uint64, due Instant) { l.register(lane, seq, due, Unsent) }

func (l *Ledger) register(id uint32, seq uint64, due Instant, f Fate) {
	if seq == 0 || seq == math.MaxUint64 { // neither has room for "none yet" or "the next" beside it
		return
	}
	ln := l.lanes[id]
	if ln == nil {
		ln = newLane(id, seq, l.cfg.Keep)
		l.lanes[id] = ln
	}
	if seq < ln.next {
		return
	}
	ln.retired = false
	if seq-ln.next > maxRing {
		// A jump over everything that is kept: what was open is given up, and the window starts anew.
		for ln.open < ln.next {
			l.giveUp(ln)
		}
		ln.first, ln.kept, ln.open, ln.next, ln.told = seq, seq, seq, seq, seq
	}
	for ln.next < seq {
		l.put(ln, slot{due: due, fate: Unsent})
		ln.settle()
	}
	l.put(ln, slot{due: due, fate: f})
	ln.tick(due)
	ln.settle()
}

// put appends the slot of the next sequence, and makes room for it.
func (l *Ledger) put(ln *lane, s slot) {
	if ln.next-ln.open >= uint64(len(ln.ring)) {
		if len(ln.ring) < maxRing {
			ln.resize(2 * len(ln.ring))
		} else {
			l.giveUp(ln)
		}
	}
	*ln.at(ln.next) = s
	*ln.recordAt(ln.next) = record{fate: s.fate}
	ln.next++
}

// giveUp ends the wait for the oldest open heartbeat for lack of room.
func (l *Ledger) giveUp(ln *lane) {
	s := ln.at(ln.open)
	if s.fate.open() {
		l.doubt(ln, ln.open, DoubtOverflow)
	} else if s.fate == Injecting {
		ln.set(ln.open, Unsent)
	}
	ln.remember(ln.open, s.fate)
	ln.open++
}

// Sent tells what became of an injection. It reports false when that changes nothing: the heartbeat had
// arrived first, or was never expected or given up for lack of room.
func (l *Ledger) Sent(lane uint32, seq uint64, r Result) bool {
	ln := l.lanes[lane]
	if ln == nil || !ln.inRing(seq) || ln.at(seq).fate != Injecting {
		return false
	}
	switch r {
	case Refused:
		ln.set(seq, Unsent)
		ln.settle()
		return true
	case Accepted:
		ln.set(seq, Waiting)
	default:
		ln.set(seq, WaitingMaybe)
	}
	l.c.Sent++
	l.c.InFlight++
	return true
}

// Verdict is what an arrival was.
type Verdict int

// The verdicts.
const (
	OnTime      Verdict = iota
	Late                // first arrival, after its deadline
	Duplicate           // another message with the same heartbeat
	Redelivery          // the same stored message again
	Unaccounted         // refused by the head, or too old to be known
	NeverSent           // of a sequence that does not exist yet: somebody made it up
)

// Arrival is a heartbeat that came out.
type Arrival struct {
	Lane uint32
	Seq  uint64
	At   Instant
	// Due is when it was due, by the token, for heartbeats that are too old for the ledger to know.
	Due Instant
	// Enqueued is when it entered the destination queue by the broker's word; valid when HasEnqueued.
	Enqueued    Instant
	HasEnqueued bool
	ID          uint64 // the same for the same stored message; 0: not known
	Retries     int    // how many times the message was tried before
}

// Outcome is what the ledger makes of an arrival.
type Outcome struct {
	Verdict Verdict
	Due     Instant
	Latency time.Duration // arrival − due
	First   bool          // the first arrival of this heartbeat
	Newest  bool          // and the youngest of its lane so far
	// ProvesSent is set when the heartbeat arrived before its injection returned: the head has accepted
	// it, whatever the injection will say. Sent then reports false.
	ProvesSent bool
}

// Arrive takes an arrival into the account.
func (l *Ledger) Arrive(a Arrival) Outcome {
	out := Outcome{Verdict: Unaccounted, Due: a.Due, Latency: a.At.Sub(a.Due)}
	ln := l.lanes[a.Lane]
	if ln != nil && a.Seq >= ln.next {
		out.Verdict = NeverSent
		return out
	}
	if ln == nil || a.Seq < ln.first {
		l.c.Unaccounted++
		return out
	}
	if ln.inRing(a.Seq) && (ln.at(a.Seq).fate == Injecting || ln.at(a.Seq).fate == Unsent && ln.every > 0) {
		// It is there, so the head has accepted it, whatever a bitmap said: that says no as well when the
		// sender does not know.
		ln.set(a.Seq, Waiting)
		ln.open = min(ln.open, a.Seq)
		l.c.Sent++
		l.c.InFlight++
		out.ProvesSent = true
	}
	l.resolve(ln, a.At)

	var s *slot // nil when only the history knows the heartbeat
	was, known := Unsent, true
	if ln.inRing(a.Seq) {
		s = ln.at(a.Seq)
		was = s.fate
		out.Due, out.Latency = s.due, a.At.Sub(s.due)
	} else {
		was, known = ln.recall(a.Seq)
	}
	id := fold(a.ID)
	switch {
	case !known:
		l.c.Unaccounted++
		return out
	case was == Unsent:
		// The head said no, and yet it came: it is in nobody's account, but it proves that the pipeline
		// lives.
		l.c.Unaccounted++
		out.Newest = ln.advance(a.Seq, out.Due, out.Latency)
		return out
	case was.arrived() && s != nil && id != 0 && s.id == id:
		l.c.Redeliveries++
		ln.again(a.Seq)
		out.Verdict = Redelivery
		return out
	case was.arrived():
		l.c.Duplicates++
		ln.again(a.Seq)
		out.Verdict = Duplicate
		return out
	}

	out.First, out.Verdict = true, Late
	if s != nil && s.fate.open() {
		switch deadline := s.due.Add(l.cfg.Timeout); {
		case a.At <= deadline || a.HasEnqueued && a.Enqueued <= deadline:
			out.Verdict = OnTime
			l.c.OnTime++
			l.c.InFlight--
			l.objective(s.due, a)
		case a.HasEnqueued:
			l.drop(ln, a.Seq, DropTimeout)
		case l.blind:
			l.doubt(ln, a.Seq, DoubtBlind)
		default:
			l.doubt(ln, a.Seq, DoubtResolution)
		}
	}
	if out.Verdict == Late {
		l.c.Late++
	}
	if s != nil {
		s.id = id
		if out.Verdict == OnTime {
			ln.set(a.Seq, Received)
		} else {
			ln.set(a.Seq, ReceivedLate)
		}
	}
	if a.Seq < ln.open {
		ln.remember(a.Seq, Received)
	}
	if rec := ln.record(a.Seq); rec != nil {
		if s == nil {
			rec.fate = ReceivedLate
		}
		rec.came(out.Latency, a.Retries)
	}
	if out.Latency < 0 && !l.cfg.Early {
		l.c.Negative++
	}
	if a.Seq < ln.newest {
		l.c.Reordered++
	}
	out.Newest = ln.advance(a.Seq, out.Due, out.Latency)
	ln.settle()
	return out
}

// DeadLetter takes a heartbeat that was found in a dead-letter queue. If it does not come by its deadline
// after all, put back by somebody or on another way, it is dropped for that reason. It reports whether the
// heartbeat is still waited for.
func (l *Ledger) DeadLetter(lane uint32, seq uint64, d Death) bool {
	ln := l.lanes[lane]
	if ln == nil {
		return false
	}
	if l.proven {
		l.resolve(ln, l.caughtUp) // a proof that came first counts first, whether or not anybody has looked since
	}
	if rec := ln.record(seq); rec != nil {
		rec.died(d)
	}
	if !ln.inRing(seq) || !ln.at(seq).fate.open() {
		return false
	}
	ln.set(seq, Waiting) // the head has had it, whatever it said
	ln.at(seq).death = d
	return true
}

// Ready tells that the sink has begun or ceased to read its queue. What was sent before it began for
// the first time may have passed unseen.
func (l *Ledger) Ready(up bool, at Instant) {
	if up == l.ready {
		return
	}
	l.ready = up
	if up {
		l.readyAt = at
		if !l.begun {
			l.begun = true
			l.Gap(at)
		}
		l.see()
		return
	}
	l.decide(at)
	if l.blind {
		return
	}
	// Nobody knows when it ceased, only that it still read at its last proof: a connection that hangs
	// says nothing until somebody loses patience.
	l.blind, l.blindFrom = true, l.caughtUp
}

// CaughtUp tells that everything which entered the queue before t has been delivered. What had its
// deadline by then and has not arrived is decided, at the latest by the next Advance.
func (l *Ledger) CaughtUp(t Instant) {
	if l.proven && t <= l.caughtUp {
		return
	}
	if l.blind && l.proven {
		l.decide(l.caughtUp) // what the older proof was enough for, before this one stretches the blind time
	}
	l.caughtUp, l.proven = t, true
	l.see()
}

// see ends the blind time once the sink has caught up with what entered its queue meanwhile.
func (l *Ledger) see() {
	if l.blind && l.ready && l.proven && l.caughtUp >= l.readyAt {
		l.decide(l.caughtUp)
		l.blind = false
		l.blindTimes.add(l.blindFrom, l.caughtUp)
	}
}

// Gap tells that messages which entered the queue before t may have passed unseen.
func (l *Ledger) Gap(t Instant) {
	l.decide(t)
	if l.gapped && t <= l.gap {
		return
	}
	l.gap, l.gapped = t, true
	for _, ln := range l.lanes {
		ln.touch(ln.open) // what is open there may have been missed
	}
}

// Advance decides what can be decided by now.
func (l *Ledger) Advance(now Instant) {
	l.decide(now)
	for id, ln := range l.lanes {
		if ln.retired && ln.open == ln.next && len(ln.saved) == 0 {
			if ln.every > 0 {
				if l.gone == nil {
					l.gone = make(map[uint32]uint64)
				}
				l.gone[id] = ln.next
			}
			delete(l.lanes, id)
		}
	}
}

// decide settles every lane by what is proven so far. It runs before anything that sheds doubt, so
// that a proof which came first counts first.
func (l *Ledger) decide(now Instant) {
	for _, ln := range l.lanes {
		l.resolve(ln, now)
	}
}

// resolve decides the open heartbeats of a lane. Due times grow with the sequence, so the first one
// that has time left ends the walk.
func (l *Ledger) resolve(ln *lane, now Instant) {
	for seq := ln.open; seq < ln.next; seq++ {
		s := ln.at(seq)
		deadline := s.due.Add(l.cfg.Timeout)
		caughtUp := l.proven && l.caughtUp >= deadline
		if !caughtUp && now.Sub(deadline) < l.cfg.Hold {
			break
		}
		if !s.fate.open() {
			continue
		}
		sent := s.due.Add(-l.cfg.Expiry)
		switch {
		case !caughtUp:
			l.doubt(ln, seq, DoubtBlind)
		case s.death != NotDead:
			l.drop(ln, seq, DropTimeout)
		case s.fate == WaitingMaybe:
			l.doubt(ln, seq, DoubtSend)
		case s.missed || l.gapped && sent.Add(-l.cfg.Skew) < l.gap:
			l.doubt(ln, seq, DoubtGap)
		case l.cfg.TTL > 0 && l.blindAt(sent.Add(l.cfg.TTL)):
			// It may have waited in the queue until the broker threw it away, and nobody read.
			l.doubt(ln, seq, DoubtBlind)
		default:
			l.drop(ln, seq, DropTimeout)
		}
	}
	ln.settle()
}

// blindAt reports whether what stood in the queue at about t may not have been read: the sink was blind,
// and had not caught up yet. It is asked only once a proof is there for some time before t or after.
func (l *Ledger) blindAt(t Instant) bool {
	early, late := t.Add(-l.cfg.Skew), t.Add(l.cfg.Skew)
	for _, s := range l.blindTimes.spans[:l.blindTimes.n] {
		if late >= s.from && early <= s.to {
			return true
		}
	}
	return l.blind && late >= l.blindFrom && early <= l.caughtUp
}

// objective counts an arrival that was on time for or against the objective. One that was seen later than that
// counts against it only when it is known to have entered the queue later: what the sink was slow to read is
// nobody's fault.
func (l *Ledger) objective(due Instant, a Arrival) {
	if l.cfg.SLO <= 0 {
		return
	}
	switch limit := due.Add(l.cfg.SLO); {
	case a.At <= limit || a.HasEnqueued && a.Enqueued <= limit:
		l.c.WithinSLO++
	case a.HasEnqueued || l.proven && l.caughtUp >= limit:
		l.c.BeyondSLO++
	}
}

func (l *Ledger) drop(ln *lane, seq uint64, r DropReason) {
	if l.cfg.SLO > 0 {
		l.c.BeyondSLO++
	}
	if d := ln.at(seq).death; d != NotDead {
		r = d.reason()
	}
	ln.set(seq, Dropped)
	if rec := ln.record(seq); rec != nil {
		rec.why = whyDropped + uint8(r)
	}
	l.c.Dropped[r]++
	l.c.InFlight--
	l.decided(ln, seq, true, r.String())
}

func (l *Ledger) doubt(ln *lane, seq uint64, d Doubt) {
	ln.set(seq, Indeterminate)
	if rec := ln.record(seq); rec != nil {
		rec.why = whyDoubted + uint8(d)
	}
	l.c.Indeterminate[d]++
	l.c.InFlight--
	l.decided(ln, seq, false, d.String())
}

func (l *Ledger) decided(ln *lane, seq uint64, dropped bool, reason string) {
	if l.cfg.Decided != nil {
		l.cfg.Decided(Decision{Lane: ln.id, Seq: seq, Due: ln.at(seq).due, Dropped: dropped, Reason: reason})
	}
}

// fold keeps 32 bits of an id, never 0 for one that is known.
func fold(id uint64) uint32 {
	if id == 0 {
		return 0
	}
	return max(uint32(id^id>>32), 1)
}

// Retire tells that a lane has gone: a shard was closed, a topic shrank. Its lag grows no more, and it is
// forgotten when what is in flight is decided. A new tick brings it back.
func (l *Ledger) Retire(lane uint32) {
	if ln := l.lanes[lane]; ln != nil {
		ln.retire()
	}
}

// Pause tells that no ticks come for a while, on purpose: what was sent so far does not count for the lag
// any more, only the first tick after the pause does. The account goes on as ever.
func (l *Ledger) Pause() {
	for _, ln := range l.lanes {
		ln.floor, ln.someWait = ln.next, false
	}
}

// LaneState is what a lane looks like now.
type LaneState struct {
	Lane uint32
	// Seen reports whether anything has arrived. Until then Lag counts from the first tick.
	Seen    bool
	Lag     time.Duration
	Latency time.Duration // of the youngest arrival
	Newest  uint64        // sequence of the youngest arrival
}

// Lanes appends the state of each lane to dst, in ascending order.
func (l *Ledger) Lanes(dst []LaneState, now Instant) []LaneState {
	start := len(dst)
	for id, ln := range l.lanes {
		dst = append(dst, LaneState{Lane: id, Seen: ln.newest > 0, Lag: ln.lag(now), Latency: ln.latency, Newest: ln.newest})
	}
	slices.SortFunc(dst[start:], func(a, b LaneState) int { return cmp.Compare(a.Lane, b.Lane) })
	return dst
}

// MaxLag returns the largest lag of the lanes in which anything has arrived; false when there is none.
func (l *Ledger) MaxLag(now Instant) (lag time.Duration, seen bool) {
	for _, ln := range l.lanes {
		if ln.newest > 0 {
			lag, seen = max(lag, ln.lag(now)), true
		}
	}
	return lag, seen
}

// Lag returns the lag of a lane; false when nothing has arrived there.
func (l *Ledger) Lag(lane uint32, now Instant) (time.Duration, bool) {
	ln := l.lanes[lane]
	if ln == nil || ln.newest == 0 {
		return 0, false
	}
	return ln.lag(now), true
}

// Record is what is told of one heartbeat.
type Record struct {
	Fate    Fate
	Arrived bool
	Latency time.Duration // valid when it has arrived; to seven digits
	// Drop and Doubt are what it was before it came late, too.
	Drop       DropReason // valid when it was dropped
	Doubt      Doubt      // valid when it is indeterminate
	Dropped    bool
	Doubted    bool
	Death      Death
	Duplicates int // arrivals after the first, at most 255 are counted
	Retries    int // at most 31 are counted
}

// Told tells of one of the last heartbeats of a lane: of the last 128 at least, or Config.Keep. It is false
// for older ones and for those that do not exist.
func (l *Ledger) Told(lane uint32, seq uint64) (Record, bool) {
	ln := l.lanes[lane]
	if ln == nil {
		return Record{}, false
	}
	rec := ln.record(seq)
	if rec == nil {
		return Record{}, false
	}
	r := Record{Fate: rec.fate, Arrived: rec.fate.arrived(), Duplicates: int(rec.again),
		Death: Death(rec.tale & (1<<retriesFrom - 1)), Retries: int(rec.tale >> retriesFrom)}
	if r.Arrived {
		r.Latency = time.Duration(float64(rec.took) * float64(time.Second))
	}
	switch {
	case rec.why >= whyDoubted:
		r.Doubted, r.Doubt = true, Doubt(rec.why-whyDoubted)
	case rec.why >= whyDropped:
		r.Dropped, r.Drop = true, DropReason(rec.why-whyDropped)
	}
	return r, true
}

// Near returns the sequence of a lane whose low half is low and which is nearest to the newest one.
func (l *Ledger) Near(lane uint32, low uint32) uint64 {
	ln := l.lanes[lane]
	if ln == nil {
		return uint64(low)
	}
	return ln.next + uint64(int64(int32(low-uint32(ln.next))))
}

// Stuck finds heartbeats that have passed the station before this one, whose account is from (nil: the head
// has accepted them), and have not come here a patience after they were due, though the sink has proven to
// have read until then, nor has any younger one of the lane. It returns when the first of them was due.
func (l *Ledger) Stuck(from *Ledger, patience time.Duration) (since Instant, stuck bool) {
	if !l.proven || l.blind {
		return 0, false
	}
	for id, ln := range l.lanes {
		if ln.retired {
			continue
		}
		first, last := ln.stuckFrom(), ln.next
		var f *lane
		if from != nil {
			if f = from.lanes[id]; f == nil {
				continue
			}
			last = min(last, f.newest+1)
		}
		seq := max(first, ln.kept, ln.next-min(ln.next, uint64(len(ln.ring))))
		all := seq == first // what is between the newest and the first that passed is known
		for ; seq < last; seq++ {
			s := ln.at(seq)
			if l.caughtUp < s.due.Add(patience) {
				break
			}
			passed := s.fate == Waiting || s.fate == Dropped
			if f != nil {
				fate, known := f.fate(seq)
				passed, all = fate.arrived(), all && known
			}
			if !passed {
				continue
			}
			due := s.due
			if !all && ln.someWait {
				due = ln.waiting // of the first tick after the newest, which is all that is kept of that time
			}
			if !stuck || due < since {
				since, stuck = due, true
			}
			break
		}
	}
	return since, stuck
}

// Recent appends the fates of the last heartbeats of a lane to dst, the oldest first, at most 64.
func (l *Ledger) Recent(dst []Fate, lane uint32) []Fate {
	if ln := l.lanes[lane]; ln != nil {
		for seq := ln.next - min(minRing, ln.next-ln.first); seq < ln.next; seq++ {
			dst = append(dst, ln.at(seq).fate)
		}
	}
	return dst
}

// Fate returns what has become of one heartbeat so far: Unsent if it was never registered, or too long ago.
// Unlike Told it knows every one that is open. Of one that has lost its slot, Received stands for ReceivedLate, too, and Dropped for Indeterminate.
func (l *Ledger) Fate(lane uint32, seq uint64) Fate {
	ln := l.lanes[lane]
	switch {
	case ln == nil || seq < ln.first || seq >= ln.next:
		return Unsent
	case ln.inRing(seq):
		return ln.at(seq).fate
	}
	f, _ := ln.recall(seq)
	return f
}

// Infer registers a heartbeat that another process sent, on the word of its token, before its Arrive:
// the ticks of the lane since the last one known, of which the token's bitmap says whether the head
// accepted them. due is that of seq; the due times of the ticks in between follow from the interval.
// Of more than 64 missing ones the older ones stay in doubt; of more than 65,536 none is missed, the
// lane starts anew. Of a lane that is new, the 64 before seq are looked for, too, as far as they were
// certainly sent after the last gap: what came out before the account began is in no account.
func (l *Ledger) Infer(lane uint32, seq uint64, due Instant, interval time.Duration, bitmap uint64) {
	from := seq
	ln := l.lanes[lane]
	fresh := ln == nil
	switch {
	case seq == 0 || seq == math.MaxUint64 || fresh && seq < l.gone[lane]:
		return // not a sequence, or an old one of a lane that is forgotten
	case fresh:
		from = max(l.gone[lane], seq-min(seq-1, 64))
	case seq > ln.next && seq-ln.next <= maxRing:
		from = ln.next
	}
	for s := from; s < seq; s++ {
		back := seq - 1 - s
		at := due.Add(-interval * time.Duration(back+1))
		switch {
		case back >= 64:
			l.Expect(lane, s, at)
			l.Sent(lane, s, Unknown)
		case bitmap>>back&1 == 0, fresh && !l.seenSince(at, interval):
			l.Skip(lane, s, at)
		default:
			l.Expect(lane, s, at)
			l.Sent(lane, s, Accepted)
		}
	}
	l.Expect(lane, seq, due)
	if ln := l.lanes[lane]; ln != nil {
		ln.every = interval
	}
}

// seenSince reports whether a heartbeat with about this due time was sent after everything that may have
// passed unseen. The due time is guessed: a sender's first ticks are up to half an interval further apart.
func (l *Ledger) seenSince(due Instant, interval time.Duration) bool {
	return l.gapped && due.Add(-l.cfg.Expiry-l.cfg.Skew-interval) >= l.gap
}

// Disbelieve takes a heartbeat that came out and whose due time cannot be true, after Infer with a time
// that can: it is no loss, but whether it was on time is not known.
func (l *Ledger) Disbelieve(lane uint32, seq uint64) {
	ln := l.lanes[lane]
	if ln == nil || !ln.inRing(seq) {
		return
	}
	if ln.at(seq).fate == Injecting {
		ln.set(seq, Waiting)
		l.c.Sent++
		l.c.InFlight++
	}
	if ln.at(seq).fate.open() {
		l.doubt(ln, seq, DoubtFuture)
		ln.settle()
	}
}
