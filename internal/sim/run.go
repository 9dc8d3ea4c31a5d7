package sim

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// Result is what one seed came to.
type Result struct {
	Seed       uint64
	Failures   []string // what the monitor and the truth disagree on
	Events     []string // of the heartbeats of the accounts that are wrong
	Counts     map[string]int
	Heartbeats int
	Length     time.Duration // until the heads refuse everything
	Trace      []string      // all that happened, where it was asked for, in the order of time
}

// Run runs the world of a seed without the kinds of events that are off. It may be called from several
// tests at once.
func Run(t *testing.T, seed uint64, off map[string]bool) Result { return simulate(t, seed, off, false) }

func simulate(t *testing.T, seed uint64, off map[string]bool, trace bool) (res Result) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(seed, off)
		s := &session{w: w, t: t, res: &res}
		res = Result{Seed: seed, Counts: w.count, Length: w.end.Sub(w.start)}
		s.run()
		if trace {
			res.Trace = s.trace()
		}
	})
	return res
}

type session struct {
	w    *world
	t    *testing.T
	res  *Result
	last *host // whose accounts are looked at for the last time
}

func (s *session) failf(format string, args ...any) {
	if len(s.res.Failures) < 20 {
		s.res.Failures = append(s.res.Failures, fmt.Sprintf(format, args...))
	}
}

func (s *session) run() {
	w := s.w
	for _, h := range slices.Clone(w.hosts) {
		h.start(s)
	}
	r := w.rand("looks")
	pause := max(w.length/15, 5*time.Second)
	var back []action // when a process that was killed is started again
	for n := 0; time.Now().Before(w.end); n++ {
		next := time.Now().Add(between(r, time.Millisecond, pause))
		if next.After(w.end) {
			next = w.end
		}
		var do *action
		for _, plan := range []*[]action{&w.plan, &back} {
			if len(*plan) > 0 && w.start.Add((*plan)[0].at).Before(next) {
				do = &(*plan)[0]
				next = w.start.Add(do.at)
			}
		}
		time.Sleep(time.Until(next))
		if do == nil {
			s.look(r.Float64() < 0.2)
			continue
		}
		a := *do
		if len(w.plan) > 0 && do == &w.plan[0] {
			w.plan = w.plan[1:]
		} else {
			back = back[1:]
		}
		h := w.hosts[slices.IndexFunc(w.hosts, func(h *host) bool { return h.name == a.host })]
		switch up := h.m != nil; {
		case a.what == doStart:
			h.start(s)
		case !up: // it is down already
		case a.what == doReload:
			s.look(false) // whatever is proven is decided before accounts are taken over
			h.reload(n)
		case a.what == doPause || a.what == doResume:
			synctest.Wait()
			h.pause(a.what == doPause, n)
		default:
			s.look(true)
			h.kill()
			back = append(back, action{time.Since(w.start) + between(r, time.Millisecond, 20*time.Second), h.name, doStart})
			slices.SortFunc(back, func(a, b action) int { return cmp.Compare(a.at, b.at) })
		}
	}
	for _, a := range back {
		h := w.hosts[slices.IndexFunc(w.hosts, func(h *host) bool { return h.name == a.host })]
		time.Sleep(time.Until(w.start.Add(a.at)))
		h.start(s)
	}
	if w.shutdown {
		s.look(true)
	} else {
		s.rest()
		s.look(true)
		s.allAtRest()
	}
	for _, h := range w.hosts {
		s.shutDown(h)
	}
	for _, h := range w.hosts {
		for _, r := range h.everyRun() {
			for _, b := range r.order {
				if b.sent.at.Before(w.end) {
					s.res.Heartbeats++
				}
			}
		}
	}
	s.res.Heartbeats += w.lostBeats
}

// shutDown ends a process as a signal does, and looks at what it has decided by then.
func (s *session) shutDown(h *host) {
	w := s.w
	began := time.Now()
	h.stop()
	took := time.Since(began)
	s.last = h
	// A tick under way is cancelled at the end of the grace period, and waited for.
	if took > h.grace+time.Second {
		s.failf("%s took %s to shut down, its grace period is %s", h.name, took, h.grace)
	}
	s.look(true)
	s.last = nil
	open := h.last.sum("heartbeats_in_flight")
	if open > 0 && took < h.grace {
		s.failf("%s was shut down after %s with %v heartbeats in flight, its grace period is %s", h.name, took, open, h.grace)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.shutdown {
		w.did(KindShutdown)
		w.did(map[bool]string{true: KindCutShort, false: KindDrained}[open > 0])
	}
}

// rest waits until nothing can be open any more: all outages are over, all messages have entered and
// were read, and every sink has proven so.
func (s *session) rest() {
	w := s.w
	until := w.end
	later := func(t time.Time) {
		if t.After(until) {
			until = t
		}
	}
	w.mu.Lock()
	for _, r := range w.every {
		later(w.end.Add(r.sendTimeout + r.expiry + r.timeout + max(0, r.h.ahead)))
	}
	for _, h := range w.hosts {
		for _, l := range h.listeners {
			if n := len(l.outages); n > 0 {
				later(l.outages[n-1].end())
			}
		}
	}
	for _, q := range w.queues {
		for _, m := range q.msgs {
			later(m.at)
		}
	}
	w.mu.Unlock()
	time.Sleep(time.Until(until) + time.Second)
	// A proof may come late, and a reconnection after the loop's longest pause.
	for range 90 {
		done := true
		w.mu.Lock()
		for _, h := range w.hosts {
			for q, l := range h.listeners {
				if n := len(l.proofs); n == 0 || l.next < len(q.msgs) || !l.proofs[n-1].t.After(until) {
					done = false
				}
			}
		}
		w.mu.Unlock()
		if done {
			return
		}
		time.Sleep(time.Second)
	}
	s.failf("the sinks have not read everything at the end")
}

// allAtRest checks that everything has an outcome once all is over.
func (s *session) allAtRest() {
	for _, h := range s.w.hosts {
		if n := h.last.sum("heartbeats_in_flight"); n != 0 {
			s.failf("%s: %v heartbeats are in flight when all is over", h.name, n)
		}
	}
}

// look takes stock of all processes at this moment. deep compares all the accounts with the oracle.
func (s *session) look(deep bool) {
	w := s.w
	synctest.Wait()
	w.mu.Lock()
	w.looks = append(w.looks, w.now())
	w.mu.Unlock()
	for _, h := range w.hosts {
		if h.m == nil {
			continue
		}
		scrape := h.look()
		if deep {
			s.compare(h, scrape)
		}
	}
}

// compare holds a scrape of a process against the oracle.
func (s *session) compare(h *host, scrape scrape) {
	w := s.w
	w.mu.Lock()
	defer w.mu.Unlock()
	o := newOracle(w, h)
	for p, r := range h.runs {
		own := `probe="` + p.name + `"`
		c := comparison{s: s, h: h, scrape: scrape, ok: true}
		if h.injects {
			results := o.results(r)
			for _, result := range []string{"success", "failure", "unknown"} {
				c.check(float64(results[result]), "heartbeats_sent_total", own, `result="`+result+`"`)
			}
			n, took := o.injections(h, p)
			c.check(float64(n), "heartbeat_inject_duration_seconds_count", own)
			c.check(took.Seconds(), "heartbeat_inject_duration_seconds_sum", own)
			s.compareSkipped(c, r)
		}
		for _, q := range p.outs {
			if l := h.listeners[q]; l != nil {
				s.comparePair(o, r, l, scrape)
			}
		}
		if h.injects && h.listens {
			s.compareHops(o, r, scrape)
		}
	}
}

// comparison holds single series of a scrape against the truth.
type comparison struct {
	s      *session
	h      *host
	scrape scrape
	ok     bool
}

func (c *comparison) check(want float64, name string, labels ...string) {
	// A sum of many latencies depends on the order a little.
	if got := c.scrape.sum(name, labels...); differ(got, want) && math.Abs(got-want) > 1e-12*want {
		c.s.failf("at %s: %s: %s%v: the monitor says %v, the truth is %v", c.s.w.since(time.Now()), c.h.name, name, labels, got, want)
		c.ok = false
	}
}

// compareHops holds the ways between the stations of a probe against the record, where it is the only run
// and its lanes never went.
func (s *session) compareHops(o *oracle, r *run, scrape scrape) {
	w, h := s.w, r.h
	own := `probe="` + r.p.name + `"`
	if !r.p.outs[0].hop {
		if n := len(scrape["stuck"]); n > 0 && scrape.sum("hop_latency_seconds_count", own) > 0 {
			s.failf("%s: %s has no hop, and series of hops", h.name, r.p.name)
		}
		return
	}
	if len(h.former[r.p]) > 0 || h.inherited != nil || len(r.lookups) > 1 || h.stopped || w.isFlood() {
		return
	}
	var before *listener
	var passed map[*beat]time.Duration
	for _, q := range r.p.outs {
		l := h.listeners[q]
		acc, verdicts := o.runAccount(r, l, span{from: r.joined}, nil)
		from := "head"
		if before != nil {
			from = before.q.name
		}
		n, sum, vague := 0, time.Duration(0), false
		for b, latency := range acc.came {
			start, ok := -r.expiry, true
			if before != nil {
				start, ok = passed[b]
			}
			if !ok {
				continue
			}
			if latency >= 0 && start < 0 {
				start = 0
			}
			n++
			sum += max(0, latency-start)
			for _, a := range b.arrivals {
				vague = vague || r.mostAt(b.lane, a.mark)-b.seq > 100 // it may be forgotten by then
			}
		}
		c := comparison{s: s, h: h, scrape: scrape, ok: true}
		way := fmt.Sprintf(`%s,from="%s",to="%s"`, own, from, q.name)
		if !vague {
			c.check(float64(n), "hop_latency_seconds_count", way)
			if got := scrape.sum("hop_latency_seconds_sum", way); math.Abs(got-sum.Seconds()) > 1e-5*(1+float64(n)) {
				s.failf("%s: the times from %s to %s of %s are %v in sum, should be %v", h.name, from, q.name, r.p.name, got, sum.Seconds())
			}
			stuck, sure := s.stuck(r, o.blindAt(l, w.now()), l, before, passed, verdicts)
			if sure {
				c.check(map[bool]float64{true: 1}[stuck], "stuck", way)
			}
			if stuck && sure {
				w.did(KindStuck)
			}
		}
		w.count[KindHop] += n
		if before == nil && q.hop {
			before, passed = l, acc.came
		}
	}
}

// stuck reports whether a heartbeat has passed the station before a sink, and neither it nor a younger one of
// its lane has come to the sink though that had read everything at its deadline. It is not sure where so many
// ticks without a heartbeat followed that those before are forgotten.
func (s *session) stuck(r *run, blind bool, l, before *listener, passed map[*beat]time.Duration, verdicts []verdict) (stuck, sure bool) {
	now := s.w.now()
	if _, paused := r.pausedAt(now.at); paused || len(l.proofs) == 0 || blind {
		return false, true
	}
	for _, v := range verdicts {
		b := v.b
		if t := l.top(r, b.lane).newest; t != nil && b.seq <= t.seq || l.proofs[len(l.proofs)-1].t.Before(v.deadline) {
			continue
		}
		if n := len(r.pauses); n > 0 && b.sent.before(r.pauses[n-1].from) {
			continue
		}
		_, came := passed[b]
		if came || before == nil && v.counted && (v.drop || v.outcome == "" && v.answer == accepted) {
			stuck = true
			sure = sure || r.mostAt(b.lane, now)-b.seq < remembered-3
		}
	}
	return stuck, sure || !stuck
}

// compareSkipped counts the ticks between those with a heartbeat, where there is one lane. What was
// skipped since the last heartbeat is known to the schedule alone; there is a limit to it.
func (s *session) compareSkipped(c comparison, r *run) {
	own := `probe="` + r.p.name + `"`
	paused := c.scrape.sum("heartbeats_skipped_total", own, `reason="paused"`)
	s.comparePaused(r, paused)
	skipped := c.scrape.sum("heartbeats_skipped_total", own) - paused
	if c.h == s.last {
		s.w.count[KindSkipped] += int(skipped)
		s.w.count[KindPausedTick] += int(paused)
		for _, t := range r.pauses {
			if t.to.n == 0 && t.to.at.Before(c.h.ended) {
				s.w.count[KindPauseOver]++
			}
		}
	}
	if r.p.laner || len(r.order) == 0 {
		return
	}
	last := r.order[len(r.order)-1]
	first := r.order[0].seq - 1
	c.check(float64(first), "heartbeats_skipped_total", own, `reason="sink_not_ready"`)
	overruns := float64(last.seq - first - uint64(len(r.order)))
	tail := float64(time.Since(last.sent.at)/r.interval + 2)
	if got := skipped - float64(first); got < overruns || got > overruns+tail {
		s.failf("%s: %s skipped %v ticks that overran, should be from %v to %v", c.h.name, r.p.name, got, overruns, overruns+tail)
	}
}

func (s *session) comparePair(o *oracle, r *run, l *listener, scrape scrape) {
	acc, verdicts := o.account(r, l)
	w, p := s.w, r.p
	if acc.unsure || l.h.stopped && len(r.steadyLanes()) < len(r.lanesSeen) {
		return // while it is shut down it looks at its accounts, and forgets lanes, at moments of its own
	}
	if l.h == s.last {
		for kind, n := range map[string]uint64{KindReordered: acc.reordered, KindHeld: acc.held, KindOverflow: acc.doubt[overflow], KindGapFound: acc.found, KindRefusedFar: acc.bits} {
			w.count[kind] += int(n)
		}
	}
	pair := fmt.Sprintf(`probe="%s",sink="%s"`, p.name, l.q.name)
	c := comparison{s: s, h: l.h, scrape: scrape, ok: true}
	check := func(want uint64, name string, labels ...string) {
		c.check(float64(want), name, append(labels, pair)...)
	}
	check(acc.onTime, "heartbeats_received_total", `timing="on_time"`)
	check(acc.late, "heartbeats_received_total", `timing="late"`)
	if !l.h.injects {
		s.spare(&acc, scrape, pair)
	}
	for _, reason := range []string{timedOut, deadLettered, "expired"} {
		check(acc.dropped[reason], "heartbeats_dropped_total", `reason="`+reason+`"`)
	}
	for _, reason := range []string{sendUnknown, sinkBlind, sinkGap, resolution, overflow, notBelieved} {
		check(acc.doubt[reason], "heartbeats_indeterminate_total", `reason="`+reason+`"`)
	}
	check(acc.duplicates+acc.redeliveries+acc.vague, "heartbeats_duplicated_total")
	if acc.vague == 0 {
		check(acc.redeliveries, "heartbeats_duplicated_total", `kind="redelivery"`)
	}
	check(acc.reordered, "heartbeats_reordered_total")
	check(acc.unaccounted, "heartbeats_unaccounted_total")
	check(acc.negative, "negative_latencies_total")
	check(acc.open, "heartbeats_in_flight")
	check(acc.restored, "heartbeats_restored_total")
	check(acc.firsts, "heartbeat_latency_seconds_count")
	if sum := scrape.sum("heartbeat_latency_seconds_sum", pair); math.Abs(sum-acc.latencies.Seconds()) > acc.slack.Seconds() {
		c.check(acc.latencies.Seconds(), "heartbeat_latency_seconds_sum", pair)
	}
	if l.h.injects {
		c.check(0, "clock_skew_seconds", pair)
	}
	for _, v := range verdicts {
		if err := o.innocent(v, l); err != nil {
			s.failf("%v", err)
			c.ok = false
		}
	}
	if !c.ok && len(s.res.Events) < 400 {
		s.res.Events = append(s.res.Events, s.story(r, l, verdicts)...)
	}
}

// spare allows a monitor that only listens to doubt what the oracle calls a drop: it guesses when a heartbeat that did
// not come was sent, and so whether the sink was blind when the broker discarded it.
func (s *session) spare(acc *account, scrape scrape, pair string) {
	doubted := uint64(scrape.sum("heartbeats_indeterminate_total", pair, `reason="`+sinkBlind+`"`))
	if more := doubted - min(doubted, acc.doubt[sinkBlind]); more <= acc.dropped[timedOut] {
		acc.doubt[sinkBlind] += more
		acc.dropped[timedOut] -= more
	}
}

// trace lists all that happened, and the last scrapes. Of what happened at one instant the order is that
// of the words: goroutines that run at the same instant have none.
func (s *session) trace() []string {
	w := s.w
	var out []string
	note := func(m mark, format string, args ...any) {
		if m.n > 0 {
			out = append(out, fmt.Sprintf("%012d ", m.at.Sub(w.start))+fmt.Sprintf(format, args...))
		}
	}
	for _, h := range w.hosts {
		for _, r := range h.everyRun() {
			name := fmt.Sprintf("%s run %d of %s", h.name, r.n, r.p.name)
			note(r.joined, "%s joined", name)
			note(r.left, "%s left", name)
			for _, l := range r.lookups {
				note(l.mark, "%s has lanes %v", name, l.ids)
			}
			for _, b := range r.order {
				name := fmt.Sprintf("%s lane %d seq %d", name, b.lane, b.seq)
				note(b.sent, "%s sent", name)
				note(b.answered, "%s %s: %s", name, b.answer, strings.Join(b.fate, ", "))
				for _, a := range b.arrivals {
					note(a.mark, "%s arrived at %s", name, a.l.name)
				}
			}
		}
		for _, l := range h.listeners {
			for what, marks := range map[string][]mark{"ready": l.ready, "down": l.downs, "gap": l.gaps, "other traffic": l.seen} {
				for _, m := range marks {
					note(m, "%s %s", l.name, what)
				}
			}
			for _, p := range l.proofs {
				note(p.mark, "%s has read all before %d", l.name, p.t.Sub(w.start))
			}
		}
	}
	slices.Sort(out)
	for _, h := range w.hosts {
		var last []string
		for name, samples := range h.last {
			for labels, v := range samples {
				last = append(last, fmt.Sprintf("%s %s{%s} %.6f", h.name, name, labels, v)) // sums of floats depend on their order
			}
		}
		slices.Sort(last)
		out = append(out, last...)
	}
	return out
}

// everyRun returns the runs of the process's probes that were part of its configuration.
func (h *host) everyRun() (runs []*run) {
	for _, p := range h.pipes {
		runs = append(runs, h.former[p]...)
		if r := h.runs[p]; r != nil {
			runs = append(runs, r)
		}
	}
	return runs
}

// story tells of the pair and of each heartbeat that did not simply arrive.
func (s *session) story(r *run, l *listener, verdicts []verdict) []string {
	w, p := s.w, r.p
	out := []string{fmt.Sprintf("%s at %s: interval %s, expiry %s, timeout %s, send timeout %s, ttl %s (broker discards: %v), lanes %v, keeps %v, enqueue times %v, ids %v, poll %s, keys %v",
		p.name, l.name, r.interval, r.expiry, r.timeout, r.sendTimeout, r.ttl, p.expires, p.laner, l.q.keeps, l.q.enqueued, l.q.tellsIDs, l.poll, l.h.keys)}
	for _, h := range w.hosts {
		out = append(out, fmt.Sprintf("  process %s, number %d, injects %v, listens %v, clock ahead by %s, grace %s", h.name, h.life+1, h.injects, h.listens, h.ahead, h.grace))
	}
	for _, m := range l.ready {
		out = append(out, "  ready "+w.since(m.at))
	}
	for _, m := range l.downs {
		out = append(out, "  down "+w.since(m.at))
	}
	for _, m := range l.gaps {
		out = append(out, "  gap "+w.since(m.at))
	}
	for _, l := range r.lookups {
		out = append(out, fmt.Sprintf("  lanes %v at %s", l.ids, w.since(l.at)))
	}
	for _, v := range verdicts {
		b := v.b
		if !b.sent.at.Before(w.end) || len(b.fate) == 1 && b.fate[0] == KindDelivered && v.outcome == onTime {
			continue
		}
		line := fmt.Sprintf("  lane %d seq %d sent %s deadline %s %s %s: %s;", b.lane, b.seq, w.since(b.sent.at), w.since(v.deadline), b.answer, w.since(b.answered.at), strings.Join(b.fate, ", "))
		for _, a := range b.arrivals {
			line += fmt.Sprintf(" arrived at %s %s (entered %s, id %d)", a.l.name, w.since(a.at), w.since(a.m.at), a.m.id)
		}
		if v.counted {
			line += fmt.Sprintf(" => %s at %s", v.outcome, w.since(v.at.at))
		} else {
			line += " => not in the account"
		}
		out = append(out, line)
	}
	return out
}
