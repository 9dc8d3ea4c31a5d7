package sim

import (
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/journal"
	"github.com/lag-monitor/lag-monitor/internal/monitor"
)

// kept is the journal of a process. It writes down as well, for the oracle, when the monitor wrote and what
// the truth was then.
type kept struct {
	*journal.Memory
	h      *host
	frozen bool // the process has been killed: it only seems to write

	// Guarded by the world's lock.
	written mark
	wrote   []mark // each time it was written: the monitor looks at its accounts for that
	stamps  map[*queue]map[topKey]time.Time
	pauses  map[*pipe]time.Time // until when each is paused
}

// open is what the monitor opens.
func (k *kept) open() (monitor.Journal, *journal.State, error) {
	st, err := k.State()
	return k, st, err
}

// Write implements monitor.Journal.
func (k *kept) Write(b *journal.Batch) error {
	w := k.h.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if k.frozen {
		return nil
	}
	k.written = w.now()
	k.wrote = append(k.wrote, k.written)
	k.stamps = make(map[*queue]map[topKey]time.Time)
	for q, l := range k.h.listeners {
		k.stamps[q] = maps.Clone(l.stamps)
	}
	k.pauses = make(map[*pipe]time.Time)
	for p, r := range k.h.runs {
		if t, ok := r.pausedAt(k.written.at); ok {
			k.pauses[p] = t.to.at
		}
	}
	return k.Memory.Write(b)
}

// Position implements sinks.Resumer.
func (l *listener) Position() map[string]string {
	if !l.q.keeps {
		return nil
	}
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	if len(l.ready) == 0 && !l.resumed {
		return nil
	}
	return map[string]string{"": strconv.Itoa(l.next)}
}

// Resume implements sinks.Resumer.
func (l *listener) Resume(pos map[string]string) {
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	if n, err := strconv.Atoi(pos[""]); err == nil {
		l.next, l.resumed = n, true
	}
}

// looks are the times at which somebody looked at the accounts of a process.
func (h *host) looks() []mark {
	looks := slices.Clone(h.w.looks)
	if h.journal != nil {
		looks = append(looks, h.journal.wrote...)
	}
	return looks
}

// heir is a heartbeat that was open at a sink when the journal was written the last time.
type heir struct {
	b      *beat
	maybe  bool // whether the head has it was not known
	missed bool // it may have passed the sink unseen
	dead   bool // it was found in a dead-letter queue
}

// bequeath lists, by queue and probe, what the journal of a process has to have kept.
func (h *host) bequeath(k *kept) map[*queue]map[*pipe][]heir {
	o := newOracle(h.w, h)
	out := make(map[*queue]map[*pipe][]heir)
	for q, l := range h.listeners {
		if q.dead {
			continue
		}
		out[q] = make(map[*pipe][]heir)
		for p, r := range h.runs {
			if !slices.Contains(p.outs, q) {
				continue
			}
			gens := append(slices.Clone(h.former[p]), r)
			last := len(gens) - 1
			for last >= 0 && !gens[last].joined.before(k.written) {
				last--
			}
			if last < 0 {
				if h.life > 0 && !h.runs[p].joined.before(k.written) {
					// Nothing was written in this life: what is in the journal is still that of the one before.
					out[q][p] = h.inherited[q][p]
				}
				continue
			}
			_, verdicts := o.generation(gens, last, l)
			for i := range verdicts {
				if hr, open := o.heirOf(&verdicts[i], l, k.written); open {
					h.w.did(KindRestored)
					out[q][p] = append(out[q][p], hr)
				}
			}
		}
	}
	return out
}

// heirOf tells what is known of a heartbeat at an event, and whether it was open then.
func (o *oracle) heirOf(v *verdict, l *listener, at mark) (heir, bool) {
	if !v.b.sent.before(at) || v.at.before(at) {
		return heir{}, false
	}
	hr := heir{b: v.b, maybe: v.answer == unknown || at.before(v.known), missed: v.missed, dead: v.deadSeen(l.h).before(at)}
	gaps := slices.Clone(l.gaps)
	if m, ok := o.began(v.b.r, l); ok && v.b.r.h == l.h {
		gaps = append(gaps, m)
	} else if m, ok := o.firstReady(l); ok {
		gaps = append(gaps, m)
	}
	for _, g := range gaps {
		hr.missed = hr.missed || g.before(at) && v.due.Add(-v.b.r.expiry).Before(g.at)
	}
	return hr, true
}

// firstReady is when the sink of a process that took over a journal first read, where it could not go on
// from a position: what was sent before may have passed unseen.
func (o *oracle) firstReady(l *listener) (mark, bool) {
	if l.resumed || len(l.ready) == 0 {
		return mark{}, false
	}
	return l.ready[0], true
}

// heirs are the accounts of what a process took over from the journal, in a generation of its own runs.
func (o *oracle) heirs(gens []*run, t span, l *listener) (sum account, all []verdict) {
	sum = newAccount()
	r := gens[len(gens)-1]
	byRun := make(map[*run][]heir)
	for _, hr := range r.h.inherited[l.q][r.p] {
		byRun[hr.b.r] = append(byRun[hr.b.r], hr)
	}
	for former, list := range byRun {
		acc, verdicts := o.heirAccount(former, list, gens, t, l)
		sum.add(acc)
		sum.restored += acc.sent
		all = append(all, verdicts...)
	}
	return sum, all
}

func (o *oracle) heirAccount(former *run, list []heir, gens []*run, t span, l *listener) (account, []verdict) {
	acc := newAccount()
	var verdicts []verdict
	for _, hr := range list {
		b := hr.b
		v := verdict{b: b, due: b.due, deadline: b.deadline, discards: former.p.expires, known: mark{n: 1, at: gens[0].joined.at}, answer: accepted, missed: hr.missed, dead: hr.dead}
		if hr.maybe {
			v.answer = unknown
		}
		gaps := slices.Clone(l.gaps)
		if m, ok := o.firstReady(l); ok {
			gaps = append(gaps, m)
		}
		if hr.missed {
			gaps = append(gaps, mark{n: 0, at: b.sent.at.Add(time.Nanosecond)})
		}
		o.judge(&v, l, gaps)
		if len(gens) > 1 && v.at.before(t.from) {
			continue
		}
		verdicts = append(verdicts, v)
	}
	slices.SortFunc(verdicts, func(a, b verdict) int { return a.b.sent.n - b.b.sent.n })
	byKey := make(map[beatKey]*verdict)
	last := make(map[uint32]uint64)
	for i := range verdicts {
		b := verdicts[i].b
		byKey[beatKey{b.lane, b.seq}] = &verdicts[i]
		last[b.lane] = max(last[b.lane], b.seq)
	}
	acc.outcomes(verdicts)
	gone := o.goneSince(verdicts, gens)
	firsts, newest := make(map[*beat]*message), make(map[uint32]uint64)
	for _, a := range former.arrivalsAt(l) {
		v := byKey[beatKey{a.b.lane, a.b.seq}]
		if v == nil || !t.has(a.mark) || gone(a.b.lane, a.mark) {
			continue
		}
		acc.arrived(a, v, firsts, newest, func() uint64 { return last[a.b.lane] })
	}
	return acc, verdicts
}

// inherits reports whether the process has a heartbeat from the journal.
func (h *host) inherits(l *listener, b *beat) bool {
	return slices.ContainsFunc(h.inherited[l.q][b.r.p], func(hr heir) bool { return hr.b == b }) ||
		l.q.dead && slices.ContainsFunc(slices.Collect(maps.Values(h.inherited)), func(m map[*pipe][]heir) bool {
			return slices.ContainsFunc(m[b.r.p], func(hr heir) bool { return hr.b == b })
		})
}
