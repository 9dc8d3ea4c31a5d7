package sim

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"
)

// account is what truly became of the heartbeats of one probe at one sink, by the words of the design:
// sent, on time, dropped, indeterminate, late.
type account struct {
	sent, onTime, late uint64
	open               uint64            // no outcome yet
	dropped            map[string]uint64 // by reason
	doubt              map[string]uint64 // by reason
	duplicates         uint64
	redeliveries       uint64
	vague              uint64 // repeated so late that their message ids need not be remembered
	reordered          uint64
	unaccounted        uint64
	negative           uint64
	firsts             uint64        // observations of the latency
	latencies          time.Duration // their sum
	slack              time.Duration // and how far it may be off, where a due time was a guess and need not be remembered

	came map[*beat]time.Duration // latencies of all first arrivals, where somebody wants them

	unsure   bool   // it may be a little different
	restored uint64 // taken over from an account before
	held     uint64 // given up after the hold
	found    uint64 // losses that a process found which only listens
	bits     uint64 // ticks without a heartbeat that it knows of
}

// The reasons.
const (
	timedOut     = "timeout"
	deadLettered = "dead_lettered"
	sendUnknown  = "send_unknown"
	sinkBlind    = "sink_blind"
	sinkGap      = "sink_gap"
	resolution   = "resolution"
	overflow     = "overflow"
	notBelieved  = "future"
)

// What the design says of limits.
const (
	hold        = 6 * time.Hour // how long a heartbeat is waited for after its deadline
	outstanding = 65_536        // heartbeats that an account keeps for a lane
	history     = 2048          // heartbeats before those that are recognised when they arrive
)

// remembered is for how many ticks the id of a message is kept at least, so that a redelivery can be told
// from a duplicate.
const remembered = 64

// lastAt is the last tick of a lane before an event that was not skipped; nil when there is none.
func (r *run) lastAt(lane uint32, m mark) (last *beat) {
	for _, b := range r.order {
		if b.lane == lane && b.sent.before(m) && (last == nil || b.seq > last.seq) {
			last = b
		}
	}
	return last
}

// mostAt is the largest sequence that the last tick of a lane before an event can have had, with all that may have
// been skipped.
func (r *run) mostAt(lane uint32, m mark) uint64 {
	if last := r.lastAt(lane, m); last != nil {
		return last.seq + uint64(m.at.Sub(last.sent.at)/r.interval)
	}
	return 0
}

// verdict is the oracle's word on one heartbeat at one sink, and what it rests on.
type verdict struct {
	b             *beat
	due, deadline time.Time // by the clock of who judges
	known         mark      // when it was certain that the heartbeat is in the pipeline, or perhaps is
	answer        string    // and by what answer of the head
	claimed       bool      // it came out, and became known by that, with a due time that is not believed
	skew          time.Duration
	discards      bool // the broker discards it after its time to live
	missed        bool // it may have passed a process before unseen
	dead          bool // a process before found it in a dead-letter queue

	counted bool   // it is in the account
	outcome string // on time, or the reason of a drop or doubt; empty while there is none
	drop    bool
	held    bool
	at      mark // when that was certain
}

const onTime = "on time"

// blindness is a time in which a sink did not read, or had not caught up yet with what it had missed.
type blindness struct {
	from, to   mark
	fromT, toT time.Time
	over       bool
}

// oracle says what the accounts of a process have to be by now.
type oracle struct {
	w       *world
	settled map[*beat]mark // when the head had answered all of its tick
	blind   map[*listener][]blindness
}

func newOracle(w *world, h *host) *oracle {
	o := &oracle{w: w, settled: make(map[*beat]mark), blind: make(map[*listener][]blindness)}
	for _, r := range h.everyRun() {
		ticks := make(map[time.Time]mark)
		for _, b := range r.order {
			answered := b.answered
			if answered.n == 0 {
				answered.n = math.MaxInt // still on its way
			}
			if t := ticks[b.sent.at]; t.before(answered) {
				ticks[b.sent.at] = answered
			}
		}
		for _, b := range r.order {
			o.settled[b] = ticks[b.sent.at]
		}
	}
	for _, l := range h.listeners {
		o.blind[l] = l.blindTimes()
	}
	return o
}

// blindTimes lists when the sink was blind: from the start or the loss of the connection, until it has
// proven to have read all that had entered by the time it was back.
func (l *listener) blindTimes() []blindness {
	type event struct {
		mark
		what string
		t    time.Time
	}
	var events []event
	for _, m := range l.ready {
		events = append(events, event{m, "ready", m.at})
	}
	for _, m := range l.downs {
		events = append(events, event{m, "down", m.at})
	}
	for _, p := range l.proofs {
		events = append(events, event{p.mark, "proof", p.t})
	}
	slices.SortFunc(events, func(a, b event) int { return cmp.Compare(a.n, b.n) })
	times := []blindness{{fromT: time.Time{}}}
	var readyAt, lastProof time.Time
	up := false
	for _, e := range events {
		last := &times[len(times)-1]
		switch e.what {
		case "down":
			up = false
			if last.over {
				times = append(times, blindness{from: e.mark, fromT: lastProof}) // it still read then; who knows when it ceased
			}
			continue
		case "ready":
			up, readyAt = true, e.at
		case "proof":
			lastProof = e.t
		}
		if up && !last.over && !lastProof.Before(readyAt) {
			last.over, last.to, last.toT = true, e.mark, lastProof
		}
	}
	return times
}

// blindAt reports whether the sink was blind at an event.
func (o *oracle) blindAt(l *listener, m mark) bool {
	return slices.ContainsFunc(o.blind[l], func(b blindness) bool { return b.from.n < m.n && (!b.over || m.n < b.to.n) })
}

// unread reports whether a message that the broker discarded at t may have waited until then unread,
// as far as was known at the event m.
func (o *oracle) unread(l *listener, t time.Time, m mark) bool {
	return slices.ContainsFunc(o.blind[l], func(b blindness) bool {
		if b.from.n > m.n || t.Before(b.fromT) {
			return false
		}
		if !b.over || b.to.n > m.n {
			// Still blind; what was there at the last proof had been read by then.
			i, _ := slices.BinarySearchFunc(l.proofs, m.n, func(p proof, n int) int { return cmp.Compare(p.n, n+1) })
			return i == 0 || !t.After(l.proofs[i-1].t)
		}
		return !t.After(b.toT)
	})
}

// began is when the sink first read for the probe.
func (o *oracle) began(r *run, l *listener) (mark, bool) {
	var up mark
	for _, m := range l.ready {
		if r.joined.before(m) {
			break
		}
		up = m
	}
	for _, d := range l.downs {
		if up.before(d) && d.before(r.joined) {
			up = mark{}
		}
	}
	if up.n > 0 {
		return up, true
	}
	for _, m := range l.ready {
		if r.joined.before(m) {
			return m, true
		}
	}
	return mark{}, false
}

// accepted returns when it was certain that the heartbeat is in the pipeline, or perhaps is, and by what
// the head said or an arrival proved.
func (o *oracle) accepted(b *beat) (mark, string) {
	said, answer := o.settled[b], b.answer
	for _, a := range b.arrivals {
		if a.l.h != b.r.h || a.l.q.dead && a.l.q != b.r.p.dead {
			continue
		}
		if a.before(said) {
			said, answer = a.mark, accepted
		}
	}
	return said, answer
}

// judge says what became of a heartbeat at a sink. gaps are the events that messages may have passed
// before unseen.
func (o *oracle) judge(v *verdict, l *listener, gaps []mark) {
	b := v.b
	if v.answer == refused || v.known.n == math.MaxInt {
		v.at = v.known
		return
	}
	v.counted = true
	never := mark{n: math.MaxInt}
	proven, came := never, never
	// A proof is only recorded when it is younger than those before.
	if i, _ := slices.BinarySearchFunc(l.proofs, v.deadline, func(p proof, t time.Time) int { return p.t.Compare(t) }); i < len(l.proofs) {
		proven = l.proofs[i].mark
		if proven.before(v.known) {
			proven = v.known
		}
	}
	var first arrival
	for _, a := range b.arrivals {
		if a.l == l {
			first, came = a, a.mark
			break
		}
	}
	dead := v.deadSeen(l.h)
	for _, a := range v.b.claims {
		if a.l == l && !a.before(v.known) && a.before(proven) && a.before(came) || a.l == l && a.mark == v.known && v.claimed {
			v.at, v.outcome = a.mark, notBelieved
			return
		}
	}
	if m := o.patience(v, l); m.before(proven) && !came.before(m) {
		v.at, v.outcome, v.held = m, sinkBlind, true
		return
	}
	switch {
	case proven == never && came == never:
		v.at = never
	case !came.before(proven) && dead.before(proven):
		v.at, v.outcome, v.drop = proven, deadLettered, true
	case !came.before(proven):
		v.at = proven
		v.outcome, v.drop = o.absent(v, l, gaps, proven)
	default:
		v.at = came
		switch {
		case !came.at.After(v.deadline), l.q.enqueued && !first.m.at.After(v.deadline):
			v.outcome = onTime
		case l.q.enqueued && dead.before(came):
			v.outcome, v.drop = deadLettered, true
		case l.q.enqueued:
			v.outcome, v.drop = timedOut, true
		case o.blindAt(l, came):
			v.outcome = sinkBlind
		default:
			v.outcome = resolution
		}
	}
}

// deadSeen is when a process first found the heartbeat in a dead-letter queue, after it knew of it.
func (v *verdict) deadSeen(h *host) mark {
	if v.dead {
		return mark{n: 0}
	}
	for _, d := range v.b.deadLetterSeen {
		if d.l.h == h && !d.before(v.known) {
			return d.mark
		}
	}
	return mark{n: math.MaxInt}
}

// patience is when a heartbeat is given up that the sink cannot tell of: at the first event after the
// hold at which somebody looks at its account.
func (o *oracle) patience(v *verdict, l *listener) mark {
	first := mark{n: math.MaxInt}
	if !o.w.isHold() {
		return first
	}
	until := v.deadline.Add(hold)
	look := func(m mark) {
		if !m.at.Before(until) && m.before(first) && !m.before(v.known) {
			first = m
		}
	}
	look(v.known)
	for _, events := range [][]mark{l.h.looks(), l.downs, l.gaps} {
		for _, m := range events {
			look(m)
		}
	}
	for _, b := range v.b.r.order {
		look(b.sent)
		if b.lane != v.b.lane {
			continue
		}
		for _, a := range b.arrivals {
			if a.l == l {
				look(a.mark)
			}
		}
	}
	return first
}

// absent says what a heartbeat is that a sink which had caught up at its deadline had not seen.
func (o *oracle) absent(v *verdict, l *listener, gaps []mark, at mark) (reason string, drop bool) {
	if v.answer == unknown {
		return sendUnknown, false
	}
	sent := v.due.Add(-v.b.r.expiry - v.skew)
	for _, g := range gaps {
		if g.before(at) && sent.Before(g.at) {
			return sinkGap, false
		}
	}
	if v.discards && o.unread(l, v.b.sent.at.Add(v.b.r.ttl), at) {
		return sinkBlind, false
	}
	return timedOut, true
}

// forgotten returns, for each lane of a pair, when its record was forgotten: the lane had gone,
// everything in it was decided, and somebody looked. Before the next tick of the lane, that is.
func (o *oracle) forgotten(r *run, verdicts map[beatKey]*verdict) map[uint32][]mark {
	out := make(map[uint32][]mark)
	if len(r.lookups) < 2 {
		return out
	}
	looks := r.h.looks()
	for _, b := range r.order {
		looks = append(looks, b.sent)
	}
	slices.SortFunc(looks, func(a, b mark) int { return cmp.Compare(a.n, b.n) })
	for i := 1; i < len(r.lookups); i++ {
		gone := r.lookups[i]
		for _, lane := range r.lookups[i-1].ids {
			if slices.Contains(gone.ids, lane) {
				continue
			}
			from := gone.mark
			next := mark{n: math.MaxInt}
			for _, b := range r.order {
				switch {
				case b.lane != lane:
				case b.sent.before(gone.mark):
					if at := verdicts[beatKey{b.lane, b.seq}].at; from.before(at) {
						from = at
					}
				case b.sent.before(next):
					next = b.sent
				}
			}
			revived := r.revived(lane, i, next)
			for _, l := range looks {
				if from.before(l) && l.before(next) && l.at.Before(revived) {
					out[lane] = append(out[lane], l)
					break
				}
			}
		}
	}
	return out
}

// revived is when a lane that had gone at a lookup ticked again: at its next heartbeat, or at the ticks
// right before it that were skipped.
func (r *run) revived(lane uint32, gone int, next mark) time.Time {
	if next.n == math.MaxInt {
		return r.w.end.Add(24 * time.Hour)
	}
	var before, after uint64
	for _, b := range r.order {
		switch {
		case b.lane != lane:
		case b.sent.before(next):
			before = max(before, b.seq)
		case b.sent == next:
			after = b.seq
		}
	}
	for _, l := range r.lookups[gone:] {
		if slices.Contains(l.ids, lane) {
			skipped := min(int64(after-before-1), int64(next.at.Sub(l.at)/r.interval))
			return next.at.Add(-time.Duration(skipped * int64(r.interval)))
		}
	}
	return next.at
}

// account adds up what became of the heartbeats of a probe at a sink. For a process that only listens
// those of all senders are summed up.
func (o *oracle) account(r *run, l *listener) (account, []verdict) {
	if r.h.injects {
		return o.own(r, l)
	}
	sum := newAccount()
	var all []verdict
	// Where a due time is not believed, others are guessed from when it came; that is not told again here.
	sum.unsure = l.claimed[r.p]
	for _, sender := range l.heard {
		if sender.p == r.p {
			if sender.h.ahead.Abs() > o.w.maxSkew {
				sum.unsure = true // so are those of clocks that are further apart than was allowed for
			}
			acc, verdicts := o.stream(sender, l)
			sum.add(acc)
			all = append(all, verdicts...)
		}
	}
	return sum, all
}

func newAccount() account {
	return account{dropped: make(map[string]uint64), doubt: make(map[string]uint64)}
}

func (acc *account) add(b account) {
	acc.sent, acc.onTime, acc.late, acc.open = acc.sent+b.sent, acc.onTime+b.onTime, acc.late+b.late, acc.open+b.open
	for k, n := range b.dropped {
		acc.dropped[k] += n
	}
	for k, n := range b.doubt {
		acc.doubt[k] += n
	}
	acc.duplicates, acc.redeliveries, acc.vague = acc.duplicates+b.duplicates, acc.redeliveries+b.redeliveries, acc.vague+b.vague
	acc.reordered, acc.unaccounted, acc.negative = acc.reordered+b.reordered, acc.unaccounted+b.unaccounted, acc.negative+b.negative
	acc.firsts, acc.latencies, acc.slack = acc.firsts+b.firsts, acc.latencies+b.latencies, acc.slack+b.slack
	acc.unsure = acc.unsure || b.unsure
	acc.held, acc.found, acc.bits = acc.held+b.held, acc.found+b.found, acc.bits+b.bits
}

// outcomes counts the verdicts.
func (acc *account) outcomes(verdicts []verdict) {
	for i := range verdicts {
		v := &verdicts[i]
		if !v.counted {
			continue
		}
		acc.sent++
		switch {
		case v.outcome == "":
			acc.open++
		case v.outcome == onTime:
			acc.onTime++
		case v.drop:
			acc.dropped[v.outcome]++
		default:
			acc.doubt[v.outcome]++
		}
		if v.held {
			acc.held++
		}
	}
}

// came is an arrival with what it brought.
type came struct {
	arrival
	b *beat
}

// arrivalsAt lists the arrivals of a run's heartbeats at a sink in their order.
func (r *run) arrivalsAt(l *listener) (list []came) {
	for _, b := range r.order {
		for _, a := range b.arrivals {
			if a.l == l {
				list = append(list, came{a, b})
			}
		}
	}
	slices.SortFunc(list, func(a, b came) int { return cmp.Compare(a.n, b.n) })
	return list
}

// span is a time by events; the zero value of to is now.
type span struct{ from, to mark }

func (t span) has(m mark) bool { return !m.before(t.from) && (t.to.n == 0 || m.before(t.to)) }

// own is the account of what a process knows of a probe's own heartbeats, since the last reload that
// changed the probe: of the run of now, and of what was open then of the runs before.
func (o *oracle) own(r *run, l *listener) (account, []verdict) {
	gens := append(slices.Clone(r.h.former[r.p]), r)
	acc, verdicts := o.generation(gens, len(gens)-1, l)
	// The histogram is that of all generations.
	for i := range len(gens) - 1 {
		a, _ := o.generation(gens, i, l)
		acc.firsts += a.firsts
		acc.latencies += a.latencies
	}
	return acc, verdicts
}

// generation is the account that a reload began and the next one ended.
func (o *oracle) generation(gens []*run, i int, l *listener) (account, []verdict) {
	t := span{from: gens[i].joined}
	if i+1 < len(gens) {
		t.to = gens[i+1].joined
	}
	acc, verdicts := o.runAccount(gens[i], l, t, nil)
	for j, f := range gens[:i] {
		a, v := o.runAccount(f, l, t, gens[j+1:i+1])
		acc.restored += a.sent
		acc.add(a)
		verdicts = append(verdicts, v...)
	}
	a, v := o.heirs(gens[:i+1], t, l)
	acc.restored += a.restored
	acc.add(a)
	return acc, append(verdicts, v...)
}

// runAccount is the account of the heartbeats of one run in a span of time. Of a run that had ended
// before, those after are given; of its heartbeats the account has only those whose outcome was open when
// the span began, and knows nothing of the others.
func (o *oracle) runAccount(r *run, l *listener, t span, after []*run) (account, []verdict) {
	ended := len(after) > 0
	acc := newAccount()
	acc.came = make(map[*beat]time.Duration)
	gaps := slices.Clone(l.gaps)
	if m, ok := o.began(r, l); ok {
		gaps = append(gaps, m)
	}
	verdicts := make([]verdict, 0, len(r.order))
	byKey := make(map[beatKey]*verdict)
	for _, b := range r.order {
		v := verdict{b: b, due: b.due, deadline: b.deadline, discards: r.p.expires}
		v.known, v.answer = o.accepted(b)
		o.judge(&v, l, gaps)
		if ended && (!v.counted || v.at.before(t.from)) {
			continue
		}
		verdicts = append(verdicts, v)
	}
	for i := range verdicts {
		b := verdicts[i].b
		byKey[beatKey{b.lane, b.seq}] = &verdicts[i]
	}
	tooOld := o.giveUp(verdicts)
	acc.outcomes(verdicts)
	forgotten := make(map[uint32][]mark)
	if !ended {
		forgotten = o.forgotten(r, byKey)
	}
	gone := o.goneSince(verdicts, after)
	firsts := make(map[*beat]*message)
	newest := make(map[uint32]uint64)
	for _, a := range r.arrivalsAt(l) {
		if !t.has(a.mark) {
			continue
		}
		b, v := a.b, byKey[beatKey{a.b.lane, a.b.seq}]
		if v == nil || gone(b.lane, a.mark) {
			continue // of a run that had ended, and settled by then: it moves the timestamp and nothing else
		}
		lost := slices.ContainsFunc(forgotten[b.lane], func(m mark) bool { return b.sent.before(m) && m.before(a.mark) })
		for _, m := range forgotten[b.lane] {
			if m.before(a.mark) && !b.sent.before(m) {
				if top := r.beats[beatKey{b.lane, newest[b.lane]}]; top != nil && top.sent.before(m) {
					newest[b.lane] = 0
				}
			}
		}
		switch {
		case lost, tooOld(v, a.mark):
			acc.unaccounted++
		case !v.counted:
			acc.unaccounted++
			newest[b.lane] = max(newest[b.lane], b.seq)
		default:
			acc.arrived(a, v, firsts, newest, func() uint64 { return r.mostAt(b.lane, a.mark) })
		}
	}
	return acc, verdicts
}

// goneSince tells whether the lane of a run that has ended was forgotten by an event: the head has it no
// more, everything in it was decided, and somebody looked.
func (o *oracle) goneSince(verdicts []verdict, after []*run) func(lane uint32, m mark) bool {
	forgotten := make(map[uint32]mark)
	for _, r := range after {
		for i := 1; i < len(r.lookups); i++ {
			for _, lane := range r.lookups[i-1].ids {
				if _, ok := forgotten[lane]; ok || slices.Contains(r.lookups[i].ids, lane) {
					continue
				}
				from := r.lookups[i].mark
				for _, v := range verdicts {
					if v.b.lane == lane && from.before(v.at) {
						from = v.at
					}
				}
				first := mark{n: math.MaxInt}
				look := func(m mark) {
					if from.before(m) && m.before(first) {
						first = m
					}
				}
				for _, r := range after {
					for _, m := range r.h.looks() {
						look(m)
					}
					for _, b := range r.order {
						look(b.sent)
					}
				}
				forgotten[lane] = first
			}
		}
	}
	return func(lane uint32, m mark) bool {
		f, ok := forgotten[lane]
		return ok && f.before(m)
	}
}

// arrived takes an arrival into account that has a verdict. last is the last sequence of the lane by then.
func (acc *account) arrived(a came, v *verdict, firsts map[*beat]*message, newest map[uint32]uint64, last func() uint64) {
	b := a.b
	switch first, again := firsts[b]; {
	case again && first == a.m && a.l.q.tellsIDs && last()-b.seq >= remembered-3:
		acc.vague++
	case again && first == a.m && a.l.q.tellsIDs:
		acc.redeliveries++
	case again:
		acc.duplicates++
	default:
		latency := a.at.Sub(v.due)
		firsts[b] = a.m
		acc.firsts++
		acc.latencies += latency
		if last()-b.seq >= remembered-3 {
			acc.slack += v.due.Sub(b.token()).Abs()
		}
		if v.outcome != onTime {
			acc.late++
		}
		if acc.came != nil {
			acc.came[b] = latency
		}
		if latency < 0 && !a.l.q.hop {
			acc.negative++
		}
		if b.seq < newest[b.lane] {
			acc.reordered++
		}
		newest[b.lane] = max(newest[b.lane], b.seq)
	}
}

// giveUp finds the heartbeats of a lane that were given up because too many after them were outstanding.
// It returns whether one of them was too old to be recognised when it arrived.
func (o *oracle) giveUp(verdicts []verdict) (tooOld func(*verdict, mark) bool) {
	if !o.w.isFlood() || len(verdicts) == 0 {
		return func(*verdict, mark) bool { return false }
	}
	bySeq := make([]*verdict, verdicts[len(verdicts)-1].b.seq+1)
	for i := range verdicts {
		bySeq[verdicts[i].b.seq] = &verdicts[i]
	}
	open := uint64(1)
	decided := func(m mark) bool {
		v := bySeq[open]
		return v == nil || v.at.before(m)
	}
	for i := range verdicts {
		seq, sent := verdicts[i].b.seq, verdicts[i].b.sent
		for open < seq && decided(sent) {
			open++
		}
		for ; seq-open >= outstanding; open++ {
			if v := bySeq[open]; v != nil && !v.at.before(sent) {
				v.outcome, v.drop, v.at = overflow, false, sent
			}
		}
	}
	open = 1
	return func(v *verdict, m mark) bool {
		for open < uint64(len(bySeq))-1 && decided(m) {
			open++
		}
		return v.outcome == overflow && open > v.b.seq+history
	}
}

// stream is the account that a process which only listens keeps of a sender: it knows of a heartbeat when
// it arrives, or when a younger one does whose bitmap says that the head accepted it.
func (o *oracle) stream(s *run, l *listener) (account, []verdict) {
	acc := newAccount()
	var events []came
	for _, b := range s.order {
		for _, a := range append(slices.Clone(b.arrivals), b.claims...) {
			if a.l == l {
				events = append(events, came{a, b})
			}
		}
	}
	slices.SortFunc(events, func(a, b came) int { return cmp.Compare(a.n, b.n) })
	gaps := slices.Clone(l.gaps)
	if m, ok := o.began(l.h.runs[s.p], l); ok {
		gaps = append(gaps, m)
	}
	// missed reports whether what was sent with a due time may have passed before the sink could see it, by
	// clocks that are trusted so far and no further.
	missed := func(due time.Time, now mark) bool {
		return slices.ContainsFunc(gaps, func(g mark) bool { return g.before(now) && due.Add(-s.expiry-o.w.maxSkew-s.interval).Before(g.at) })
	}
	byKey := make(map[beatKey]*verdict)
	unsent := make(map[beatKey]time.Time) // due times of ticks that the bitmap says nothing was sent at
	first, next := make(map[uint32]uint64), make(map[uint32]uint64)
	var order []*verdict
	take := func(b *beat, known mark, answer string, due time.Time, claimed bool) {
		v := &verdict{b: b, due: due, deadline: due.Add(s.timeout), known: known, answer: answer, claimed: claimed, skew: o.w.maxSkew, discards: s.p.expires}
		byKey[beatKey{b.lane, b.seq}] = v
		order = append(order, v)
	}
	lastAt := make(map[int]uint64)
	for _, a := range events {
		b := a.b
		key := beatKey{b.lane, b.seq}
		due, claim := b.token(), slices.ContainsFunc(b.claims, func(c arrival) bool { return c.mark == a.mark })
		if claim {
			due = a.at
		}
		from, known := next[b.lane]
		if !known {
			from = b.seq - min(b.seq-1, 64)
			first[b.lane] = from
		}
		switch {
		case b.seq >= from:
			for seq := from; seq < b.seq; seq++ {
				back := b.seq - seq
				other := beatKey{b.lane, seq}
				missing, then := s.beats[other], due.Add(-s.interval*time.Duration(back))
				switch {
				case back > 64 && missing == nil:
					take(&beat{r: s, lane: b.lane, seq: seq, sent: mark{at: then.Add(-s.expiry)}}, a.mark, unknown, then, false)
				case back > 64:
					take(missing, a.mark, unknown, then, false)
				case missing == nil || missing.answer != accepted || s.pausedBetween(missing.sent, b.sent):
					acc.bits++
					unsent[other] = then
				case !known && missed(then, a.mark):
					unsent[other] = then
				default:
					take(missing, a.mark, accepted, then, false)
				}
			}
			take(b, a.mark, accepted, due, claim)
			next[b.lane] = b.seq + 1
		case byKey[key] == nil && !claim && b.seq >= first[b.lane]:
			// It was sent after all: the sender did not know.
			if next[b.lane]-b.seq > remembered {
				acc.unsure = true // whether it is still remembered that nothing was expected
			}
			take(b, a.mark, accepted, unsent[key], false)
		}
		lastAt[a.n] = next[b.lane] - 1
	}
	verdicts := make([]verdict, len(order))
	for i, v := range order {
		o.judge(v, l, gaps)
		if v.drop {
			acc.found++
		}
		verdicts[i] = *v
	}
	acc.outcomes(verdicts)
	firsts := make(map[*beat]*message)
	newest := make(map[uint32]uint64)
	for _, a := range s.arrivalsAt(l) {
		if v := byKey[beatKey{a.b.lane, a.b.seq}]; v == nil {
			acc.unaccounted++
		} else {
			acc.arrived(a, v, firsts, newest, func() uint64 { return lastAt[a.n] })
		}
	}
	return acc, verdicts
}

// results counts the injections of a run by their result.
func (o *oracle) results(r *run) map[string]uint64 {
	n := make(map[string]uint64)
	for _, b := range r.order {
		at, answer := o.accepted(b)
		if at.n == math.MaxInt {
			continue
		}
		n[map[string]string{accepted: "success", refused: "failure", unknown: "unknown"}[answer]]++
	}
	return n
}

// injections counts the ticks that the head has answered, and how long that took in sum.
func (o *oracle) injections(h *host, p *pipe) (n int, took time.Duration) {
	for _, r := range h.everyRun() {
		if r.p != p {
			continue
		}
		ticks := make(map[time.Time]bool)
		for _, b := range r.order {
			if at := o.settled[b]; at.n != math.MaxInt && !ticks[b.sent.at] {
				ticks[b.sent.at] = true
				n++
				took += at.at.Sub(b.sent.at)
			}
		}
	}
	return n, took
}

// innocent returns an accusation that the truth does not bear out: a drop by timeout of a heartbeat that
// had entered the queue by its deadline and was delivered, or would have been to any sink that reads.
func (o *oracle) innocent(v verdict, l *listener) error {
	b, r := v.b, v.b.r
	if !v.drop || v.outcome != timedOut || r.p.expires && r.ttl < r.expiry+r.timeout {
		return nil // a broker that discards what could still be on time makes it a drop
	}
	if slices.ContainsFunc(b.arrivals, func(a arrival) bool { return a.mark == v.at }) {
		return nil // it came out too late by the queue's own word; that a copy had passed unseen is beyond knowing
	}
	for _, m := range l.q.msgs {
		if m.beat == b && !m.at.After(v.deadline) && !l.outOfReach(m) {
			return fmt.Errorf("%s: %s lane %d seq %d at %s is called dropped, but it entered the queue at %s, before its deadline %s",
				l.h.name, r.p.name, b.lane, b.seq, l.name, o.w.since(m.at), o.w.since(v.deadline))
		}
	}
	return nil
}

// outOfReach reports whether the sink could not take a message for what it was: it did not know the key,
// or the broker discarded the message before the sink could ask for it, sooner than the next read after
// it had entered, or than the first one after the sink was back.
func (l *listener) outOfReach(m *message) bool {
	if l.refused[m] {
		return true
	}
	if m.expires.IsZero() || m.expires.After(time.Now()) {
		return false
	}
	read := l.poll + 2*l.answer
	return m.expires.Sub(m.at) < read || slices.ContainsFunc(l.ready, func(r mark) bool {
		return m.at.Before(r.at) && !m.expires.Before(r.at) && m.expires.Sub(r.at) < read
	})
}

func (w *world) since(t time.Time) string { return t.Sub(w.start).String() }
