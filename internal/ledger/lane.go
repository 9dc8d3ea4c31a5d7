package ledger

import (
	"math"
	"time"
)

const (
	// minRing is how many heartbeats of a lane are kept with their due time and message id at least: 1
	// KiB. A healthy lane has a handful outstanding.
	minRing = 64
	// maxRing bounds what one lane keeps in an outage: 65,536 slots of 16 bytes are 1 MiB. At one
	// heartbeat a second that is 18 hours.
	maxRing = 1 << 16
	// history is how many final heartbeats of a lane are remembered with two bits each, so that a late
	// one or a duplicate is recognised: 512 bytes.
	history = 2048
	// minRecords is how many heartbeats of a lane are told of: 1 KiB. Unlike the ring they do not grow in an
	// outage.
	minRecords = 128
)

// Fate is what has become of one heartbeat so far.
type Fate uint8

// The fates.
const (
	Unsent       Fate = iota // skipped or refused: nothing to wait for
	Injecting                // the head has not answered yet
	Waiting                  // the head has it
	WaitingMaybe             // the head may have it
	Received                 // arrived on time
	ReceivedLate             // arrived after its deadline
	Dropped
	Indeterminate
)

// open reports whether the outcome is open and counted as in flight.
func (f Fate) open() bool { return f == Waiting || f == WaitingMaybe }

// arrived reports whether the heartbeat has come out.
func (f Fate) arrived() bool { return f == Received || f == ReceivedLate }

// lost reports whether the heartbeat was declared dropped or indeterminate and has not arrived since.
func (f Fate) lost() bool { return f == Dropped || f == Indeterminate }

// slot is a heartbeat that is outstanding or was so recently.
type slot struct {
	due  Instant
	id   uint32 // folded id of the stored message that brought it; 0: not known
	fate Fate
	// missed is set when it may have passed the sink unseen in a run before this one.
	missed bool
	death  Death // found in a dead-letter queue: not there at its deadline, it is dropped for that
}

// record is what is told of one of the last heartbeats.
type record struct {
	took  float32 // latency in seconds, valid when it has arrived
	fate  Fate
	why   uint8 // whyDropped + a DropReason or whyDoubted + a Doubt, also when it came late afterwards; else 0
	again uint8 // arrivals after the first
	tale  uint8 // the Death, and from retriesFrom on how many times it was tried before
}

const (
	whyDropped, whyDoubted = 1, 1 << 4
	retriesFrom            = 3 // bits of a Death
	maxRetries             = 1<<(8-retriesFrom) - 1
)

func (r *record) died(d Death) { r.tale = r.tale>>retriesFrom<<retriesFrom | uint8(d) }

func (r *record) came(latency time.Duration, retries int) {
	r.took = float32(latency.Seconds())
	r.tale = r.tale&(1<<retriesFrom-1) | uint8(min(max(retries, 0), maxRetries))<<retriesFrom
}

// lane is one ordering domain: a window over its sequence numbers. Sequences from open to next-1 may
// be undecided; the ring holds the last len(ring) with their slots, the history the 2,048 before open
// with two bits each.
type lane struct {
	id    uint32
	first uint64 // the first sequence that was registered
	kept  uint64 // nothing before it has a slot, even where the ring has grown since
	open  uint64 // everything before it is final
	next  uint64 // one past the last registered sequence
	ring  []slot // the slot of seq stands at seq modulo the length, a power of two
	// records are of the last len(records), none before told; a power of two that never changes.
	records []record
	told    uint64
	final   [history / 32]uint64

	newest  uint64 // the youngest sequence that arrived; 0: none
	latency time.Duration
	// waiting is the due time of the first tick after newest (of the first tick of all when nothing has
	// arrived), whether or not the head accepted that one; valid when someWait.
	waiting  Instant
	someWait bool
	retired  bool
	floor    uint64 // ticks before it do not count for the lag: they were before a pause
	// every is the interval of the ticks where another process sends them: then the first tick after
	// newest is not registered but foretold. 0 where the ticks are our own.
	every time.Duration

	// For Changes: no slot before touched has changed since the last call (a new one is never before it), and saved are the blocks that
	// it told of as not empty, ascending.
	touched uint64
	saved   []uint64
}

func newLane(id uint32, seq uint64, keep int) *lane {
	return &lane{id: id, first: seq, kept: seq, open: seq, next: seq, touched: seq, told: seq, ring: make([]slot, minRing), records: make([]record, keep)}
}

func (l *lane) touch(seq uint64) { l.touched = min(l.touched, seq) }

// set changes what has become of a heartbeat that has a slot.
func (l *lane) set(seq uint64, f Fate) {
	l.at(seq).fate = f
	l.touch(seq)
	if rec := l.record(seq); rec != nil {
		rec.fate = f
	}
}

func (l *lane) recordAt(seq uint64) *record { return &l.records[seq&uint64(len(l.records)-1)] }

// record returns what is told of a heartbeat; nil for one that is too old, or does not exist.
func (l *lane) record(seq uint64) *record {
	if seq < l.told || seq >= l.next || l.next-seq > uint64(len(l.records)) {
		return nil
	}
	return l.recordAt(seq)
}

// again notes one more arrival of a heartbeat.
func (l *lane) again(seq uint64) {
	if rec := l.record(seq); rec != nil && rec.again < math.MaxUint8 {
		rec.again++
	}
}

// fate returns what has become of a heartbeat, and false when it is not remembered.
func (l *lane) fate(seq uint64) (Fate, bool) {
	if l.inRing(seq) {
		return l.at(seq).fate, true
	}
	if seq < l.first || seq >= l.open {
		return Unsent, seq < l.first
	}
	return l.recall(seq)
}

func (l *lane) at(seq uint64) *slot { return &l.ring[seq&uint64(len(l.ring)-1)] }

// inRing reports whether the slot of seq still belongs to seq.
func (l *lane) inRing(seq uint64) bool {
	return seq >= l.kept && seq < l.next && l.next-seq <= uint64(len(l.ring))
}

// remember notes what became of a heartbeat in the two-bit history of those before open. One that is
// older than it has no place there, though a long ring may still have its slot.
func (l *lane) remember(seq uint64, f Fate) {
	if seq < l.open && l.open-seq > history {
		return
	}
	var code uint64 // 0: nothing to wait for
	switch {
	case f.arrived():
		code = 1
	case f.lost():
		code = 2
	}
	word, shift := seq%history/32, seq%32*2
	l.final[word] = l.final[word]&^(3<<shift) | code<<shift
}

// recall returns what became of a heartbeat from first to open (Received, Dropped or Unsent, each standing for
// its like), and false when it is too old.
func (l *lane) recall(seq uint64) (Fate, bool) {
	if l.open-seq > history {
		return Unsent, false
	}
	switch l.final[seq%history/32] >> (seq % 32 * 2) & 3 {
	case 1:
		return Received, true
	case 2:
		return Dropped, true
	}
	return Unsent, true
}

// resize moves the youngest slots into a ring of n slots, a power of two.
func (l *lane) resize(n int) {
	old := l.ring
	l.ring = make([]slot, n)
	l.kept = max(l.kept, l.next-min(l.next, uint64(n), uint64(len(old))))
	for seq := l.kept; seq < l.next; seq++ {
		*l.at(seq) = old[seq&uint64(len(old)-1)]
	}
}

// stuckFrom is the first sequence that may be stuck: no younger one has come, nor was there a pause since.
func (l *lane) stuckFrom() uint64 { return max(l.newest+1, l.floor, l.first) }

// settle moves open over everything that is final, and gives the memory of an outage back once most of
// it is.
func (l *lane) settle() {
	for l.open < l.next {
		f := l.at(l.open).fate
		if f.open() || f == Injecting {
			break
		}
		l.remember(l.open, f)
		l.open++
	}
	// The steps between growing and shrinking are wide, so that a steady lane does neither.
	if waiting := int(l.next - l.open); len(l.ring) > 4*minRing && waiting <= len(l.ring)/8 {
		n := minRing
		for n < 4*waiting {
			n *= 2
		}
		l.resize(n)
	}
}

// lastDue is the due time of the newest tick.
func (l *lane) lastDue() Instant { return l.at(l.next - 1).due }

func (l *lane) retire() { l.retired, l.someWait = true, false }

// tick notes the due time of a new tick for the lag.
func (l *lane) tick(due Instant) {
	if !l.someWait {
		l.waiting, l.someWait = due, true
	}
}

// advance makes seq the youngest arrival, if it is.
func (l *lane) advance(seq uint64, due Instant, latency time.Duration) bool {
	if seq <= l.newest {
		return false
	}
	l.newest, l.latency = seq, latency
	switch after := max(seq+1, l.floor); {
	case l.every > 0 && !l.retired:
		l.waiting, l.someWait = due.Add(l.every), true
	case after >= l.next:
		l.someWait = false
	case l.inRing(after):
		l.waiting = l.at(after).due
	}
	// Otherwise that tick is older than the ring, and the older due time which stands there is kept: in
	// doubt the lag is too large rather than too small, until the next arrival.
	return true
}

// lag returns how far the lane is behind.
func (l *lane) lag(now Instant) time.Duration {
	lag := time.Duration(0)
	if l.newest > 0 {
		lag = l.latency
	}
	if l.someWait {
		lag = max(lag, now.Sub(l.waiting))
	}
	return lag
}
