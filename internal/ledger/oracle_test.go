package ledger

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"
	"unsafe"
)

// oracle is the ledger as its rules say it, with no thought for speed or memory: every heartbeat is
// kept, everything is looked up by walking, and what a proof decides is decided at once.
type oracle struct {
	cfg   Config
	lanes map[uint32]*oracleLane
	gone  map[uint32]uint64
	c     Counts

	reading  bool
	ever     bool         // it has read at some time
	since    Instant      // reading since
	proofs   []Instant    // of having caught up, ascending
	darks    [][2]Instant // the times in which nothing was read; the last one is open while darkNow
	darkNow  bool
	gapsUpTo []Instant
}

type oracleLane struct {
	ticks   []*oracleTick
	retired bool
	revived uint64        // ticks before this one do not count for the lag, until something arrives
	newest  *oracleTick   // youngest arrival
	latency time.Duration // of it
	every   time.Duration
}

type oracleTick struct {
	dead    Death
	seq     uint64
	due     Instant
	sending bool // the head has not answered
	sent    bool // accepted, or perhaps accepted
	maybe   bool
	decided bool
	arrived bool
	id      uint64
}

const longAgo = Instant(-1 << 62)

func newOracle(cfg Config) *oracle {
	if cfg.Hold == 0 {
		cfg.Hold = DefaultHold
	}
	return &oracle{cfg: cfg, lanes: make(map[uint32]*oracleLane), gone: make(map[uint32]uint64), darks: [][2]Instant{{longAgo, 0}}, darkNow: true}
}

func (ln *oracleLane) find(seq uint64) *oracleTick {
	for _, k := range slices.Backward(ln.ticks) {
		if k.seq == seq {
			return k
		}
	}
	return nil
}

func (ln *oracleLane) last() *oracleTick { return ln.ticks[len(ln.ticks)-1] }

func (o *oracle) tick(lane uint32, seq uint64, due Instant, sending bool) {
	ln := o.lanes[lane]
	if ln == nil {
		ln = &oracleLane{}
		o.lanes[lane] = ln
	} else if seq <= ln.last().seq {
		return
	} else {
		for s := ln.last().seq + 1; s < seq; s++ {
			ln.ticks = append(ln.ticks, &oracleTick{seq: s, due: due})
		}
	}
	if ln.retired {
		ln.retired, ln.revived = false, seq
	}
	ln.ticks = append(ln.ticks, &oracleTick{seq: seq, due: due, sending: sending})
}

func (o *oracle) sent(lane uint32, seq uint64, r Result) bool {
	ln := o.lanes[lane]
	if ln == nil {
		return false
	}
	k := ln.find(seq)
	if k == nil || !k.sending {
		return false
	}
	k.sending = false
	if r == Refused {
		return true
	}
	o.begin(k)
	k.maybe = r == Unknown
	o.prove()
	return true
}

func (o *oracle) begin(k *oracleTick) {
	k.sending, k.sent = false, true
	o.c.Sent++
	o.c.InFlight++
}

func (o *oracle) close(k *oracleTick, n *uint64) {
	k.decided = true
	o.c.InFlight--
	*n++
	for i := range o.c.Dropped {
		if n == &o.c.Dropped[i] && o.cfg.SLO > 0 {
			o.c.BeyondSLO++
		}
	}
}

func (o *oracle) deadline(k *oracleTick) Instant { return k.due.Add(o.cfg.Timeout) }

// prove decides everything that the last proof is enough for.
func (o *oracle) prove() {
	if len(o.proofs) == 0 {
		return
	}
	proof := o.proofs[len(o.proofs)-1]
	for _, ln := range o.lanes {
		for _, k := range ln.ticks {
			if k.sent && !k.decided && o.deadline(k) <= proof {
				o.close(k, o.guilt(k, proof))
			}
		}
	}
}

// guilt says what a heartbeat is that was not there at its deadline.
func (o *oracle) guilt(k *oracleTick, proof Instant) *uint64 {
	sent := k.due.Add(-o.cfg.Expiry)
	if k.dead != NotDead {
		return &o.c.Dropped[deadReason[k.dead]]
	}
	if k.maybe {
		return &o.c.Indeterminate[DoubtSend]
	}
	for _, g := range o.gapsUpTo {
		if sent < g.Add(o.cfg.Skew) {
			return &o.c.Indeterminate[DoubtGap]
		}
	}
	if o.cfg.TTL > 0 {
		gone := sent.Add(o.cfg.TTL)
		over := slices.Clone(o.darks)
		if o.darkNow {
			over = over[:len(over)-1]
		}
		if most := len(blindTimes{}.spans); len(over) > most { // the oldest ones, with what lay between
			over = append(over[len(over)-most+1:], [2]Instant{over[0][0], over[len(over)-most][1]})
		}
		if o.darkNow {
			over = append(over, [2]Instant{o.darks[len(o.darks)-1][0], proof})
		}
		for _, dark := range over {
			if dark[0] <= gone.Add(o.cfg.Skew) && gone <= dark[1].Add(o.cfg.Skew) {
				return &o.c.Indeterminate[DoubtBlind]
			}
		}
	}
	return &o.c.Dropped[DropTimeout]
}

// tire gives up what has been waited for too long without a proof.
func (o *oracle) tire(ln *oracleLane, now Instant) {
	for _, k := range ln.ticks {
		if k.sent && !k.decided && now.Sub(o.deadline(k)) >= o.cfg.Hold {
			o.close(k, &o.c.Indeterminate[DoubtBlind])
		}
	}
}

func (o *oracle) tireAll(now Instant) {
	for _, ln := range o.lanes {
		o.tire(ln, now)
	}
}

func (o *oracle) caughtUp(t Instant) {
	if n := len(o.proofs); n > 0 && t <= o.proofs[n-1] {
		return
	}
	o.proofs = append(o.proofs, t)
	o.prove()
	o.lighten()
}

func (o *oracle) lighten() {
	if n := len(o.proofs); o.darkNow && o.reading && n > 0 && o.proofs[n-1] >= o.since {
		o.darkNow = false
		o.darks[len(o.darks)-1][1] = o.proofs[n-1]
	}
}

func (o *oracle) ready(up bool, at Instant) {
	if up == o.reading {
		return
	}
	o.reading = up
	if up {
		o.since = at
		if !o.ever {
			o.ever = true
			o.gap(at) // where it begins is anywhere in the queue
		}
		o.lighten()
		return
	}
	o.tireAll(at)
	if o.darkNow {
		return
	}
	o.darkNow = true
	o.darks = append(o.darks, [2]Instant{o.proofs[len(o.proofs)-1], 0})
}

func (o *oracle) gap(t Instant) {
	o.tireAll(t)
	o.gapsUpTo = append(o.gapsUpTo, t)
}

func (o *oracle) advance(now Instant) {
	o.tireAll(now)
	for id, ln := range o.lanes {
		gone := ln.retired
		for _, k := range ln.ticks {
			gone = gone && !k.sending && !(k.sent && !k.decided)
		}
		if gone {
			if ln.every > 0 {
				o.gone[id] = ln.last().seq + 1
			}
			delete(o.lanes, id)
		}
	}
}

// deadReason is what a dead heartbeat is dropped for.
var deadReason = map[Death]DropReason{DeadOther: DropDeadLettered, DeadRejected: DropDeadLettered, DeadExpired: DropExpired, DeadMaxLen: DropDeadLettered, DeadDeliveryLimit: DropDeadLettered}

func (o *oracle) deadLetter(lane uint32, seq uint64, d Death) bool {
	ln := o.lanes[lane]
	if ln == nil {
		return false
	}
	k := ln.find(seq)
	if k == nil || !k.sent || k.decided {
		return false
	}
	k.dead, k.maybe = d, false
	return true
}

func (o *oracle) retire(lane uint32) {
	if ln := o.lanes[lane]; ln != nil {
		ln.retired = true
	}
}

// arrive returns what the ledger must say. fresh tells whether the heartbeat is so young that the
// ledger is bound to know by which message it came; where it is not, hint is the ledger's own word.
func (o *oracle) arrive(a Arrival, hint Verdict) Outcome {
	out := Outcome{Verdict: Unaccounted, Due: a.Due, Latency: a.At.Sub(a.Due)}
	ln := o.lanes[a.Lane]
	if ln == nil || a.Seq < ln.ticks[0].seq {
		o.c.Unaccounted++
		return out
	}
	k := ln.find(a.Seq)
	if k == nil {
		out.Verdict = NeverSent
		return out
	}
	// In the account of another sender an arrival outweighs the bitmap, as long as the ledger has a slot.
	told := !k.sent && !k.sending && ln.every > 0 && (ln.last().seq-k.seq < 64 || hint != Unaccounted)
	if k.sending || told {
		o.begin(k)
		out.ProvesSent = true
		o.prove()
	}
	o.tire(ln, a.At)
	if !k.sent {
		o.c.Unaccounted++
		out.Newest = o.youngest(ln, k, out.Latency)
		return out
	}
	if k.arrived {
		out.Verdict = Duplicate
		switch fresh := ln.last().seq-k.seq < 64; {
		case fresh && k.id != 0 && k.id == a.ID, !fresh && hint == Redelivery && k.id == a.ID:
			out.Verdict = Redelivery
			o.c.Redeliveries++
		default:
			o.c.Duplicates++
		}
		return out
	}
	out.First, out.Verdict = true, Late
	if !k.decided {
		deadline := o.deadline(k)
		switch {
		case a.At <= deadline, a.HasEnqueued && a.Enqueued <= deadline:
			out.Verdict = OnTime
			o.close(k, &o.c.OnTime)
			entered, known := a.At, a.At <= k.due.Add(o.cfg.SLO)
			if a.HasEnqueued {
				entered, known = min(a.Enqueued, a.At), true
			}
			for _, p := range o.proofs {
				known = known || p >= k.due.Add(o.cfg.SLO)
			}
			switch {
			case o.cfg.SLO == 0 || !known:
			case entered.Sub(k.due) <= o.cfg.SLO:
				o.c.WithinSLO++
			default:
				o.c.BeyondSLO++
			}
		case a.HasEnqueued:
			why := DropTimeout
			if k.dead != NotDead {
				why = deadReason[k.dead]
			}
			o.close(k, &o.c.Dropped[why])
		case o.darkNow:
			o.close(k, &o.c.Indeterminate[DoubtBlind])
		default:
			o.close(k, &o.c.Indeterminate[DoubtResolution])
		}
	}
	if out.Verdict == Late {
		o.c.Late++
	}
	if out.Latency < 0 {
		o.c.Negative++
	}
	if ln.newest != nil && k.seq < ln.newest.seq {
		o.c.Reordered++
	}
	k.arrived, k.id = true, a.ID
	out.Newest = o.youngest(ln, k, out.Latency)
	return out
}

func (o *oracle) youngest(ln *oracleLane, k *oracleTick, latency time.Duration) bool {
	if ln.newest != nil && k.seq <= ln.newest.seq {
		return false
	}
	ln.newest, ln.latency, ln.revived = k, latency, 0
	return true
}

func (o *oracle) lag(lane uint32, now Instant) time.Duration {
	ln := o.lanes[lane]
	lag := time.Duration(0)
	if ln.newest != nil {
		lag = ln.latency
	}
	if ln.retired {
		return lag
	}
	if ln.every > 0 && ln.newest != nil && ln.revived == 0 {
		return max(lag, now.Sub(ln.newest.due.Add(ln.every)))
	}
	for _, k := range ln.ticks {
		if (ln.newest == nil || k.seq > ln.newest.seq) && k.seq >= ln.revived {
			return max(lag, now.Sub(k.due))
		}
	}
	return lag
}

// check compares the state of a lane. After the arrival of a heartbeat that is too old for a ring the
// ledger may say a larger lag than there is, for it knows the due time of the next tick no more.
func (o *oracle) check(st LaneState, now Instant) error {
	ln := o.lanes[st.Lane]
	if ln == nil || st.Seen != (ln.newest != nil) || st.Seen && (st.Newest != ln.newest.seq || st.Latency != ln.latency) {
		return fmt.Errorf("lane is %+v", st)
	}
	lag := o.lag(st.Lane, now)
	if old := st.Seen && ln.last().seq-st.Newest >= 64; st.Lag < lag || st.Lag > lag && !old {
		return fmt.Errorf("lane is %+v, want lag %v", st, lag)
	}
	return nil
}

func (o *oracle) infer(lane uint32, seq uint64, due Instant, interval time.Duration, accepted func(uint64) bool) {
	if ln := o.lanes[lane]; ln != nil {
		for s := ln.last().seq + 1; s < seq; s++ {
			at := due.Add(-interval * time.Duration(seq-s))
			o.tick(lane, s, at, seq-s > 64 || accepted(s))
			switch {
			case seq-s > 64:
				o.sent(lane, s, Unknown)
			case accepted(s):
				o.sent(lane, s, Accepted)
			}
		}
	} else {
		if seq < o.gone[lane] {
			return
		}
		for s := max(o.gone[lane], seq-min(seq-1, 64)); s < seq; s++ {
			at := due.Add(-interval * time.Duration(seq-s))
			sure := accepted(s) && len(o.gapsUpTo) > 0
			for _, g := range o.gapsUpTo {
				sure = sure && at.Add(-o.cfg.Expiry-interval) >= g.Add(o.cfg.Skew)
			}
			o.tick(lane, s, at, sure)
			if sure {
				o.sent(lane, s, Accepted)
			}
		}
	}
	o.tick(lane, seq, due, true)
	o.lanes[lane].every = interval
}

// disbelieve is an arrival whose outcome cannot be known.
func (o *oracle) disbelieve(lane uint32, seq uint64) {
	ln := o.lanes[lane]
	if ln == nil {
		return
	}
	k := ln.find(seq)
	if k == nil {
		return
	}
	if k.sending {
		o.begin(k)
	}
	if k.sent && !k.decided {
		o.close(k, &o.c.Indeterminate[DoubtFuture])
	}
}

// sums checks the invariant that holds after every call.
func sums(c Counts) error {
	if got := c.OnTime + c.Drops() + c.InDoubt() + c.InFlight; got != c.Sent {
		return fmt.Errorf("sent %d, accounted for %d: %+v", c.Sent, got, c)
	}
	if c.WithinSLO > c.OnTime || c.WithinSLO+c.BeyondSLO > c.OnTime+c.Drops() {
		return fmt.Errorf("more for and against the objective than is known: %+v", c)
	}
	return nil
}

// grew checks that no counter went down.
func grew(before, after Counts) error {
	// Nothing but numbers of 64 bits.
	type numbers [unsafe.Sizeof(Counts{}) / 8]uint64
	before.InFlight, after.InFlight = 0, 0
	b, a := *(*numbers)(unsafe.Pointer(&before)), *(*numbers)(unsafe.Pointer(&after))
	for i := range b {
		if a[i] < b[i] {
			return fmt.Errorf("a counter went down: %+v, then %+v", before, after)
		}
	}
	return nil
}

func TestAgainstOracle(t *testing.T) {
	seeds, events := uint64(2000), 300
	if testing.Short() {
		seeds = 400
	}
	var total Counts
	for seed := range seeds {
		c, ok, _ := againstOracle(seed, events, false)
		if !ok {
			_, _, log := againstOracle(seed, events, true) // again, and now with the story
			from := max(0, len(log)-40)
			for _, line := range log[from:] {
				t.Log(line)
			}
			t.Fatalf("seed %d", seed)
		}
		total = total.Plus(c)
	}
	// A test that never gets anywhere proves nothing.
	v := reflect.ValueOf(total)
	for i := range v.NumField() {
		if v.Field(i).Kind() == reflect.Uint64 && v.Field(i).Uint() == 0 {
			t.Errorf("%s never happened: %+v", v.Type().Field(i).Name, total)
		}
	}
	for r, n := range total.Dropped {
		if n == 0 {
			t.Errorf("no drop for %v", DropReason(r))
		}
	}
	for r, n := range total.Indeterminate {
		if n == 0 && Doubt(r) != DoubtOverflow { // 65,536 outstanding ones have a test of their own
			t.Errorf("no doubt for %v", Doubt(r))
		}
	}
}

// againstOracle plays one random story to the ledger and to the oracle, up to where they differ, and
// tells it when told to.
func againstOracle(seed uint64, events int, tell bool) (c Counts, same bool, log []string) {
	r := rand.New(rand.NewPCG(seed, 7))
	const second = time.Second
	cfg := Config{Expiry: []time.Duration{0, 5 * second}[r.IntN(2)], Timeout: 10 * second,
		SLO: []time.Duration{0, 3 * second, 10 * second}[r.IntN(3)],
		TTL: []time.Duration{0, 0, 9 * second, 15 * second, 40 * second}[r.IntN(5)], Hold: []time.Duration{0, 30 * second}[r.IntN(2)]}
	inferring := r.IntN(3) == 0
	if inferring {
		cfg.Skew = []time.Duration{0, 3 * second}[r.IntN(2)]
	}
	l, o := New(cfg), newOracle(cfg)
	var (
		now  = Instant(r.Int64N(int64(100*second))) - Instant(50*second)
		next = [3]uint64{1 + r.Uint64N(5), 1 + r.Uint64N(1e9), 7}
		due  [3]Instant
		last Counts
	)
	say := func(format string, args ...any) {
		if !tell {
			return
		}
		log = append(log, fmt.Sprintf("%v: ", time.Duration(now))+fmt.Sprintf(format, args...))
	}
	around := func(d time.Duration) Instant { return now.Add(-time.Duration(r.Int64N(int64(d)))) }
	// The instance that sends in the inferring story has its own truth of what was accepted.
	accepted := func(seq uint64) bool { return seq%5 != 0 }
	for i := range due {
		due[i] = now.Add(cfg.Expiry)
	}
	for range events {
		now = now.Add(time.Duration(r.Int64N(int64(2 * second))))
		lane := uint32(r.IntN(3))
		// Somewhere around the youngest ticks, now and then beyond or long before.
		some := next[lane] - 1 - min(next[lane]-1, r.Uint64N(1+r.Uint64N(12)))
		if r.IntN(20) == 0 {
			some = next[lane] - 1 - min(next[lane]-1, r.Uint64N(200)) + r.Uint64N(3)
		}
		arrive := func(seq uint64, d Instant) string {
			a := Arrival{Lane: lane, Seq: seq, At: around(second), Due: d, ID: r.Uint64N(4)}
			if r.IntN(3) == 0 {
				a.Enqueued, a.HasEnqueued = around(20*second), true
			}
			got := l.Arrive(a)
			want := o.arrive(a, got.Verdict)
			say("arrive %+v: %+v", a, got)
			if got != want {
				return fmt.Sprintf("arrival is %+v, want %+v", got, want)
			}
			return ""
		}
		dueOf := func(seq uint64) Instant {
			if ln := o.lanes[lane]; ln != nil {
				if k := ln.find(seq); k != nil {
					return k.due
				}
			}
			return around(20 * second)
		}
		differs := ""
		switch n := r.IntN(100); {
		case n < 35 && inferring:
			jump := uint64(0)
			switch r.IntN(12) {
			case 0:
				jump = r.Uint64N(4)
			case 1:
				jump = r.Uint64N(90)
			}
			// Due times by a strict beat, since the ledger foretells them by it.
			due[lane] = due[lane].Add(time.Duration(jump+1) * second)
			seq := next[lane] + jump
			var bitmap uint64
			for i := range uint64(64) {
				if i+1 < seq && accepted(seq-1-i) {
					bitmap |= 1 << i
				}
			}
			l.Infer(lane, seq, due[lane], second, bitmap)
			o.infer(lane, seq, due[lane], second, accepted)
			say("infer lane %d seq %d due %v", lane, seq, time.Duration(due[lane]))
			next[lane] = seq + 1
			if r.IntN(10) == 0 {
				l.Disbelieve(lane, seq)
				o.disbelieve(lane, seq)
				say("disbelieve lane %d seq %d", lane, seq)
				break
			}
			differs = arrive(seq, due[lane])
		case n < 20:
			if r.IntN(30) == 0 {
				next[lane] += r.Uint64N(200)
			}
			seq := next[lane]
			next[lane]++
			l.Expect(lane, seq, now.Add(cfg.Expiry))
			o.tick(lane, seq, now.Add(cfg.Expiry), true)
			say("expect lane %d seq %d", lane, seq)
		case n < 23 && !inferring:
			seq := next[lane]
			next[lane]++
			l.Skip(lane, seq, now.Add(cfg.Expiry))
			o.tick(lane, seq, now.Add(cfg.Expiry), false)
			say("skip lane %d seq %d", lane, seq)
		case n < 43 && !inferring:
			res := []Result{Accepted, Accepted, Accepted, Unknown, Refused}[r.IntN(5)]
			got, want := l.Sent(lane, some, res), o.sent(lane, some, res)
			say("sent lane %d seq %d %v: %v", lane, some, res, got)
			if got != want {
				differs = fmt.Sprintf("sent is %v, want %v", got, want)
			}
		case n < 65:
			differs = arrive(some, dueOf(some))
		case n < 68:
			l.Advance(now)
			o.advance(now)
			reason := []Death{DeadOther, DeadRejected, DeadExpired, DeadMaxLen, DeadDeliveryLimit}[r.IntN(5)]
			got, want := l.DeadLetter(lane, some, reason), o.deadLetter(lane, some, reason)
			say("advance, dead letter lane %d seq %d %v: %v", lane, some, reason, got)
			if got != want {
				differs = fmt.Sprintf("dead letter is %v, want %v", got, want)
			}
		case n < 73:
			up := r.IntN(3) > 0
			at := around(second)
			l.Ready(up, at)
			o.ready(up, at)
			say("ready %v at %v", up, time.Duration(at))
		case n < 85:
			at := around(3 * second)
			l.CaughtUp(at)
			o.caughtUp(at)
			say("caught up at %v", time.Duration(at))
		case n < 86:
			at := around(3 * second)
			l.Gap(at)
			o.gap(at)
			say("gap to %v", time.Duration(at))
		case n < 87:
			l.Retire(lane)
			o.retire(lane)
			say("retire lane %d", lane)
		case n < 88:
			now = now.Add(time.Duration(r.Int64N(int64(60 * second))))
		default:
			l.Advance(now)
			o.advance(now)
			say("advance")
			if l.Counts() != o.c {
				differs = fmt.Sprintf("counts are %+v, want %+v", l.Counts(), o.c)
			}
		}
		c := l.Counts()
		if err := sums(c); err != nil {
			differs = err.Error()
		}
		if err := grew(last, c); err != nil {
			differs = err.Error()
		}
		last = c
		for _, st := range l.Lanes(nil, now) {
			if err := o.check(st, now); err != nil {
				differs = err.Error()
			}
		}
		if len(l.Lanes(nil, now)) != len(o.lanes) {
			differs = fmt.Sprintf("%d lanes, want %d", len(l.Lanes(nil, now)), len(o.lanes))
		}
		if differs != "" {
			say("%s", differs)
			return last, false, log
		}
	}
	return last, true, nil
}
