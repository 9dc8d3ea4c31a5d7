package sim

import (
	"cmp"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/conn"
	"github.com/lag-monitor/lag-monitor/sinks"
)

// queue is a destination or dead-letter queue at its broker.
type queue struct {
	w    *world
	name string
	dead bool
	hop  bool // on the way to the others

	keeps    bool // messages wait while nobody reads
	enqueued bool // tells when a message entered
	tellsIDs bool

	msgs []*message // by the time of entering; guarded by the world's lock
}

// message is what stands in a queue.
type message struct {
	id      uint64
	at      time.Time // when it enters
	body    []byte
	expires time.Time // zero: never
	beat    *beat     // nil where it is no heartbeat of the pipelines
	kind    string    // what it is, where beat is nil
	key     string    // who signed it
	of      *beat     // what it was made of, where it looks like a heartbeat
	due     time.Time // when it claims to be due
}

// What is in a queue besides heartbeats.
const (
	ordinary  = "ordinary"   // no heartbeat at all
	damaged   = "damaged"    // was one
	stranger  = "stranger"   // of another probe or instance
	formerRun = "former run" // of another run of the same probe, by what it says
	neverSent = "never sent" // of a sequence that is far ahead
)

func (q *queue) put(b *beat, key string, body []byte, after time.Duration) {
	m := &message{body: body, beat: b, key: key}
	if b.r.p.expires && !q.dead {
		m.expires = b.sent.at.Add(b.r.ttl)
	}
	q.insert(m, after)
}

// insert keeps the messages in the order in which they enter. No one enters in the past, so that nothing
// is put before what was delivered.
func (q *queue) insert(m *message, after time.Duration) {
	q.w.ids++
	m.id, m.at = q.w.ids, time.Now().Add(after)
	i, _ := slices.BinarySearchFunc(q.msgs, m, func(a, b *message) int { return a.at.Compare(b.at) })
	q.msgs = slices.Insert(q.msgs, i, m)
	for _, h := range q.w.hosts {
		if l := h.listeners[q]; l != nil {
			l.poke()
		}
	}
}

// listener is the sink of one process at a queue. It is the configuration of that sink.
type listener struct {
	w    *world
	h    *host
	q    *queue
	name string

	lateProof bool
	poll      time.Duration // pause between two reads; 0: a message is delivered as it enters
	answer    time.Duration // how long a read takes
	begins    time.Duration // how long the first connection takes
	reconnect time.Duration // how long the others take
	lookBack  time.Duration // how far back a process that was restarted begins to read
	outages   []outage
	wake      chan struct{} // something was put into the queue, or may be delivered again

	// Guarded by the world's lock.
	next    int  // index of the next message to deliver
	resumed bool // from the journal
	runs    int

	// The record.
	ready, downs []mark
	gaps         []mark
	proofs       []proof
	errors       int
	seen         []mark // messages that no beat has: for the trace
	kinds        map[string]int
	tops         map[topKey]*top
	stamps       map[topKey]time.Time
	ages         map[*pipe][]age
	claimed      map[*pipe]bool    // heartbeats arrived with due times that are not believed
	heard        []*run            // whose heartbeats arrived
	refused      map[*message]bool // heartbeats whose key was not known, or that claimed too much
}

// outage is a time without a connection.
type outage struct {
	at    time.Time
	lasts time.Duration
	tries int  // attempts to reconnect that fail at once
	hang  bool // it goes silent instead of failing
}

func (o *outage) end() time.Time { return o.at.Add(o.lasts) }

// proof is a call of CaughtUp.
type proof struct {
	mark
	t time.Time
}

// age is how old a heartbeat of another host was when it arrived, by both clocks.
type age struct {
	at  time.Time
	age time.Duration
}

// top is the youngest heartbeat of a lane, of those of one run, that a sink has delivered.
type top struct {
	newest  *beat
	due     time.Time // by our clock
	latency time.Duration
}

// topKey is a lane of one run of a probe; for timestamps, which outlast the run, of the first run of the
// probe in the process.
type topKey struct {
	r    *run
	lane uint32
}

func (l *listener) top(r *run, lane uint32) *top {
	k := topKey{r, lane}
	if l.tops[k] == nil {
		l.tops[k] = &top{}
	}
	return l.tops[k]
}

// stamp keeps the record of the youngest due time that a probe has seen here.
func (l *listener) stamp(p *pipe, lane uint32, due time.Time) {
	if now := time.Now(); l.q.hop && due.After(now) {
		due = now // it may be held after this
	}
	k := topKey{l.h.firstRun(p), lane}
	if old, ok := l.stamps[k]; !ok || due.After(old) {
		l.stamps[k] = due
	}
}

func (l *listener) poke() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// Validate implements sinks.Config.
func (l *listener) Validate() error { return nil }

// Open implements sinks.Config.
func (l *listener) Open() (sinks.Sink, error) { return l, nil }

// Expires implements sinks.Expirer: the broker of any of the pipelines that end here may discard.
func (l *listener) Expires() bool {
	return slices.ContainsFunc(l.h.pipes, func(p *pipe) bool { return p.expires && slices.Contains(p.outs, l.q) })
}

var errAway = conn.WithClass(conn.Network, errors.New("connection reset by peer"))

// outageAt returns the outage that covers t, and else the next one.
func (l *listener) outageAt(t time.Time) (now, next *outage) {
	for i := range l.outages {
		o := &l.outages[i]
		switch {
		case !t.Before(o.end()):
		case t.Before(o.at):
			return nil, o
		default:
			return o, nil
		}
	}
	return nil, nil
}

// Run implements sinks.Sink.
func (l *listener) Run(ctx context.Context, f *sinks.Feed) error {
	w := l.w
	w.mu.Lock()
	l.runs++
	r := w.rand("run", l.name, l.h.life, l.runs)
	first := len(l.ready) == 0
	w.mu.Unlock()
	if o, _ := l.outageAt(time.Now()); o != nil {
		if o.tries > 0 {
			o.tries--
			w.mu.Lock()
			w.did(KindRetry)
			l.errors++
			w.mu.Unlock()
			return errAway
		}
		// The attempts to connect hang until the broker is back. So the moment of the return is the
		// seed's alone, not that of the pauses of the loop.
		if !pause(ctx, time.Until(o.end())) {
			return nil
		}
	}
	wait := l.reconnect
	if first && l.begins > 0 {
		w.mu.Lock()
		w.did(KindLateReady)
		w.mu.Unlock()
		wait = l.begins
	}
	if !pause(ctx, wait+between(r, 1, time.Millisecond)) {
		return nil
	}
	for l.held() {
		if !pause(ctx, time.Millisecond) {
			return nil
		}
	}
	l.resume(r, f, first)
	err := l.read(ctx, r, f)
	w.mu.Lock()
	l.downs = append(l.downs, w.now())
	if err != nil {
		l.errors++
	}
	w.mu.Unlock()
	return err
}

// held reports whether a reload is under way. Nothing happens meanwhile, since nobody could tell whether
// it met the old configuration or the new one.
func (l *listener) held() bool {
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	return l.h.applying
}

// resume sets the position and says that the sink listens.
func (l *listener) resume(r *rand.Rand, f *sinks.Feed, first bool) {
	w := l.w
	w.mu.Lock()
	gap := false
	switch {
	case first && l.resumed:
	case first && l.h.life > 0 && l.q.keeps:
		l.skipTo(time.Now().Add(-l.lookBack), false)
	case first:
		l.skipTo(time.Now(), false)
	case l.q.keeps:
		w.did(KindDisconnect)
		if w.chance(r, KindRedelivered, 0.5) {
			l.next -= min(l.next, r.IntN(10))
		}
	default:
		w.did(KindGap)
		l.skipTo(time.Now(), true)
		gap = true
		l.gaps = append(l.gaps, w.now())
	}
	w.mu.Unlock()
	if gap {
		f.Gap("disconnected")
	}
	w.mu.Lock()
	l.ready = append(l.ready, w.now())
	w.mu.Unlock()
	f.Ready()
}

func (l *listener) skipTo(t time.Time, count bool) {
	for l.next < len(l.q.msgs) && !l.q.msgs[l.next].at.After(t) {
		if count && l.q.msgs[l.next].beat != nil {
			l.w.did(KindMissed)
		}
		l.next++
	}
}

// read polls the queue until the next outage.
func (l *listener) read(ctx context.Context, r *rand.Rand, f *sinks.Feed) error {
	w := l.w
	_, o := l.outageAt(time.Now())
	till := time.Now().Add(24 * time.Hour)
	if o != nil {
		till = o.at
	}
	var owed time.Time // a proof that is held back
	for {
		asked := time.Now()
		if l.poll > 0 && !pause(ctx, min(between(r, l.answer/2, l.answer), time.Until(till))) {
			return nil
		}
		if o != nil && !time.Now().Before(till) {
			return l.away(ctx, o)
		}
		if l.held() {
			if !pause(ctx, time.Millisecond) {
				return nil
			}
			continue
		}
		if w.chance(r, KindRedelivered, 0.002) {
			w.mu.Lock()
			l.next -= min(l.next, r.IntN(4))
			w.mu.Unlock()
		}
		for l.deliver(f, time.Now()) {
		}
		if l.lateProof && r.Float64() < 0.8 {
			if owed.IsZero() || r.Float64() < 0.1 {
				owed = asked // an old proof is still a proof
			}
			w.mu.Lock()
			w.did(KindLateProof)
			w.mu.Unlock()
		} else {
			owed = asked
		}
		l.prove(f, owed)
		// One that is handed its messages proves itself each second, and with each of them.
		if !l.idle(ctx, between(r, l.poll/2+1, cmp.Or(l.poll, time.Second)), till) {
			return nil
		}
		if o != nil && !time.Now().Before(till) {
			return l.away(ctx, o)
		}
	}
}

// idle waits between two reads; it reports false when ctx ended first.
func (l *listener) idle(ctx context.Context, d time.Duration, till time.Time) bool {
	if l.poll > 0 {
		return pause(ctx, min(d, time.Until(till)))
	}
	for last := time.Now().Add(d); ; {
		until := last
		l.w.mu.Lock()
		if l.next < len(l.q.msgs) && l.q.msgs[l.next].at.Before(until) {
			until = l.q.msgs[l.next].at
		}
		l.w.mu.Unlock()
		if till.Before(until) {
			until = till
		}
		t := time.NewTimer(time.Until(until))
		select {
		case <-t.C:
			return true
		case <-ctx.Done():
			t.Stop()
			return false
		case <-l.wake:
			t.Stop()
		}
	}
}

func (l *listener) away(ctx context.Context, o *outage) error {
	if !o.hang {
		return errAway
	}
	l.w.mu.Lock()
	l.w.did(KindHang)
	l.w.mu.Unlock()
	<-ctx.Done()
	if errors.Is(context.Cause(ctx), context.Canceled) {
		return nil // not the watchdog: the process ends
	}
	return errAway
}

func (l *listener) prove(f *sinks.Feed, t time.Time) {
	l.w.mu.Lock()
	if n := len(l.proofs); n == 0 || t.After(l.proofs[n-1].t) {
		l.proofs = append(l.proofs, proof{l.w.now(), t})
	}
	l.w.mu.Unlock()
	f.CaughtUp(t)
}

// deliver hands out the next message that has entered by t; false when there is none.
func (l *listener) deliver(f *sinks.Feed, t time.Time) bool {
	w, q := l.w, l.q
	w.mu.Lock()
	if l.next >= len(q.msgs) || q.msgs[l.next].at.After(t) {
		w.mu.Unlock()
		return false
	}
	m := q.msgs[l.next]
	l.next++
	if !m.expires.IsZero() && !t.Before(m.expires) {
		if !slices.Contains(m.beat.fate, KindExpired) {
			m.beat.note(KindExpired)
		}
		w.mu.Unlock()
		return true
	}
	out := sinks.Message{Body: m.body}
	if q.tellsIDs {
		out.ID = m.id * 0x9e3779b97f4a7c15
	} else {
		w.did(KindNoIDs)
	}
	if q.enqueued {
		out.Enqueued = m.at
	} else {
		w.did(KindNoEnqueued)
	}
	l.saw(m)
	w.mu.Unlock()
	f.Deliver(out)
	return true
}

// saw takes a delivery into the record. The caller holds the lock.
func (l *listener) saw(m *message) {
	w, h := l.w, l.h
	now := w.now()
	kind := l.classify(now.at, m)
	l.kinds[kind]++
	b := m.beat
	if b == nil {
		l.seen = append(l.seen, now)
		if kind == "heartbeat" && !l.q.dead {
			l.stamp(m.of.r.p, m.of.lane, m.due)
		}
		return
	}
	p := b.r.p
	own := b.r == h.runs[p]
	switch {
	case kind == "foreign" || kind == "corrupt":
		l.refused[m] = true
		return
	case !h.injects && kind == "future":
		l.refused[m] = true
		l.claimed[p] = true
		b.claims = append(b.claims, arrival{now, l, m})
		l.ages[p] = append(l.ages[p], age{now.at, now.at.Sub(b.token())})
		if !slices.Contains(l.heard, b.r) {
			l.heard = append(l.heard, b.r)
		}
		return
	case h.injects && !own:
		w.did(KindOldEpoch)
		if kind == "heartbeat" && !l.q.dead {
			l.stamp(p, b.lane, b.token())
		}
		if b.r.h == h || h.inherits(l, b) {
			a := arrival{now, l, m}
			b.arrivals = append(b.arrivals, a)
			if l.q.dead {
				b.deadLetterSeen = append(b.deadLetterSeen, a)
			}
		}
		return
	}
	due := b.due
	if !own {
		due = b.token()
		w.did(KindSkewed)
		if !l.q.dead {
			l.ages[p] = append(l.ages[p], age{now.at, now.at.Sub(due)})
		}
	}
	a := arrival{now, l, m}
	if slices.ContainsFunc(b.arrivals, func(o arrival) bool { return o.m == m && o.l == l }) {
		b.note(KindRedelivered)
	}
	if b.answer == "" && own {
		b.note(KindBeforeReply)
	}
	b.arrivals = append(b.arrivals, a)
	if !slices.Contains(l.heard, b.r) {
		l.heard = append(l.heard, b.r)
	}
	if l.q.dead {
		b.deadLetterSeen = append(b.deadLetterSeen, a)
		return
	}
	if t := l.top(b.r, b.lane); t.newest == nil || b.seq > t.newest.seq {
		t.newest, t.due, t.latency = b, due, now.at.Sub(due)
		if kind == "heartbeat" {
			l.stamp(p, b.lane, due)
		}
	}
}

// classify says what a message is to a sink, in the words of the metric.
func (l *listener) classify(now time.Time, m *message) string {
	w, h := l.w, l.h
	switch m.kind {
	case ordinary:
		return "other"
	case damaged:
		return "corrupt"
	}
	b := m.beat
	origin := b
	if origin == nil {
		origin = m.of
	}
	p := origin.r.p
	r := h.runs[p]
	if watched := r != nil && (p.dead == l.q || slices.Contains(p.outs, l.q)); !watched {
		r = nil
	}
	own := r != nil && b != nil && b.r == r && h.injects
	if !h.knows(m.key) {
		if !own {
			w.did(KindStaleKey)
			return "corrupt"
		}
		w.did(KindStaleOwn) // the probe itself knows what it sent
	}
	due := m.due
	if b != nil {
		due = b.token()
	}
	future := due.Sub(now) > w.maxSkew
	if l.q.hop {
		future = due.Sub(now) > w.maxSkew+origin.r.expiry
	}
	switch {
	case m.kind == stranger, r == nil:
		return "foreign"
	case h.injects && origin.r.h.name != h.name:
		w.did(KindReplica)
		return "foreign"
	case l.q.dead:
		return "heartbeat"
	case m.kind == neverSent && origin.r == r:
		return "corrupt"
	case future:
		return "future"
	}
	return "heartbeat"
}
