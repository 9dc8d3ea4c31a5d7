package sim

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/conn"
	"github.com/lag-monitor/lag-monitor/internal/heartbeat"
	"github.com/lag-monitor/lag-monitor/probe"
)

// pipe is one pipeline: a head, and the queues that it ends in.
type pipe struct {
	w    *world
	name string
	set  settings // of the probes at first

	expires bool // the broker discards what is older than its time to live
	batch   bool // one request carries the heartbeats of all lanes
	laner   bool
	typical time.Duration // delay of a healthy day
	down    [][2]time.Time
	outs    []*queue
	dead    *queue

	firstLanes []uint32
	lanes      []lanePlan
}

// settings are those of a probe.
type settings struct{ interval, expiry, timeout, sendTimeout, ttl time.Duration }

type lanePlan struct {
	from time.Time
	ids  []uint32
}

// run is one run of a probe: a process that watches a pipeline, until the process ends or a reload
// changes the probe. It is the configuration of its injector.
type run struct {
	settings
	w *world
	h *host
	p *pipe
	n int // in the order of all runs

	// The record, guarded by the world's lock.
	beats     map[beatKey]*beat
	order     []*beat
	lookups   []lookup
	lanesSeen map[uint32]bool
	pauses    []span
	joined    mark // when the run became part of the configuration
	left      mark
}

func (w *world) newRun(h *host, p *pipe, set settings) *run {
	w.runs++
	r := &run{settings: set, w: w, h: h, p: p, n: w.runs, beats: make(map[beatKey]*beat), lanesSeen: make(map[uint32]bool), joined: w.now()}
	w.every = append(w.every, r)
	return r
}

// lookup is an answer to the question for the lanes.
type lookup struct {
	mark
	ids []uint32
}

type beatKey struct {
	lane uint32
	seq  uint64
}

// beat is the truth of one heartbeat.
type beat struct {
	r              *run
	lane           uint32
	seq            uint64
	sent           mark
	due, deadline  time.Time
	answered       mark
	answer         string // accepted, refused, unknown
	fate           []string
	arrivals       []arrival
	claims         []arrival // with a due time that a process which only listens does not believe
	deadLetterSeen []arrival // found in a dead-letter queue that the probe names
}

// token is when the heartbeat is due by the clock of its sender, which is what its token says.
func (b *beat) token() time.Time { return b.due.Add(b.r.h.ahead) }

// arrival is one delivery of a message with the heartbeat.
type arrival struct {
	mark
	l *listener
	m *message
}

func (b *beat) note(kind string) {
	b.r.w.did(kind)
	b.fate = append(b.fate, kind)
}

// Validate implements probe.Config.
func (r *run) Validate() error { return nil }

// Open implements probe.Config.
func (r *run) Open() (probe.Injector, error) {
	switch one := (injector{r}); {
	case r.p.laner && r.p.batch:
		return struct {
			batchInjector
			laner
		}{batchInjector{one}, laner{r}}, nil
	case r.p.laner:
		return struct {
			injector
			laner
		}{one, laner{r}}, nil
	default:
		return one, nil
	}
}

type injector struct{ r *run }

func (i injector) Close() error  { return nil }
func (i injector) Expires() bool { return i.r.p.expires }
func (i injector) Inject(ctx context.Context, m *probe.Message) error {
	return i.r.inject(ctx, m)
}

type batchInjector struct{ injector }

func (i batchInjector) InjectBatch(ctx context.Context, ms []*probe.Message, errs []error) {
	var wg sync.WaitGroup
	for n, m := range ms {
		wg.Go(func() { errs[n] = i.r.inject(ctx, m) })
	}
	wg.Wait()
}

type laner struct{ r *run }

func (l laner) Lanes(ctx context.Context) ([]uint32, error) {
	r, w := l.r, l.r.w
	rnd := w.rand("lanes", r.p.name, r.h.name, time.Since(w.start).String())
	if !pause(ctx, between(rnd, time.Microsecond, 200*time.Millisecond)) {
		return nil, ctx.Err()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	now := w.now()
	var ids []uint32
	for _, plan := range r.p.lanes {
		if !plan.from.After(now.at) {
			ids = plan.ids
		}
	}
	if n := len(r.lookups); n > 0 {
		for _, id := range r.lookups[n-1].ids {
			if !slices.Contains(ids, id) {
				w.did(KindLaneGone)
			}
		}
		for _, id := range ids {
			switch {
			case slices.Contains(r.lookups[n-1].ids, id):
			case r.lanesSeen[id]:
				w.did(KindLaneBack)
			default:
				w.did(KindLaneNew)
			}
		}
	}
	for _, id := range ids {
		r.lanesSeen[id] = true
	}
	r.lookups = append(r.lookups, lookup{now, ids})
	return slices.Clone(ids), nil
}

// pause waits; it reports false when ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

var (
	errRefused = probe.Refused(errors.New("the head says no"))
	errUnknown = errors.New("no answer that means anything")
)

func (r *run) inject(ctx context.Context, m *probe.Message) error {
	w := r.w
	rnd := w.rand("beat", r.p.name, r.h.name, r.n, m.Lane, m.Seq)
	b, t := r.register(m)
	wait, answer, lands := r.decide(rnd, b)
	if lands {
		w.mu.Lock()
		r.land(rnd, b, t)
		w.mu.Unlock()
	}
	if !pause(ctx, wait) && answer != errRefused { //nolint:errorlint // it is one of ours
		answer = errUnknown
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	b.answered = w.now()
	switch answer {
	case nil:
		b.answer = accepted
	case errRefused: //nolint:errorlint // it is one of ours
		b.answer = refused
	default:
		b.answer = unknown
	}
	return answer
}

// The answers of a head.
const (
	accepted = "accepted"
	refused  = "refused"
	unknown  = "unknown"
)

// token is a heartbeat as it travels.
type token struct {
	h   heartbeat.Heartbeat
	key string // the name of the key that signed it; empty: none did
}

func (t token) String() string { return string(keyring(t.key).Append(nil, &t.h)) }

// changed returns the token of another heartbeat, signed with the same key.
func (t token) changed(change func(h *heartbeat.Heartbeat)) token {
	change(&t.h)
	return t
}

// The names of the keys: those that a process may be given, and that of a forger.
var keyNames = []string{"a", "b", "c", "forger"}

// keyring returns one key, or none for no name.
func keyring(name string) *heartbeat.Keyring {
	if name == "" {
		return heartbeat.NewKeyring()
	}
	return heartbeat.NewKeyring([]byte(secret(name)))
}

func secret(name string) string { return "the secret of " + name }

// secretOf puts a key where the monitor can read it.
var secretOf = func() func(name string) conn.Secret {
	var once sync.Once
	return func(name string) conn.Secret {
		once.Do(func() {
			for _, n := range keyNames {
				if err := os.Setenv("LAG_MONITOR_SIM_KEY_"+n, secret(n)); err != nil {
					panic(err)
				}
			}
		})
		return conn.Secret{Env: "LAG_MONITOR_SIM_KEY_" + name}
	}
}()

// parse finds out what a token says, and who signed it.
func parse(s string) token {
	for _, key := range append([]string{""}, keyNames...) {
		var t token
		if err := keyring(key).Decode([]byte(s), &t.h); err == nil {
			t.key = key
			return t
		}
	}
	panic("a token that no key verifies: " + s)
}

// register takes a heartbeat into the record.
func (r *run) register(m *probe.Message) (*beat, token) {
	t := parse(m.Token)
	// The sender's clock is the one that the token is written by.
	t.h.Sent = t.h.Sent.Add(r.h.ahead)
	w := r.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if t.key != "" {
		w.did(KindSigned)
	}
	b := &beat{r: r, lane: m.Lane, seq: m.Seq, sent: w.now(), due: m.Due, deadline: m.Due.Add(r.timeout)}
	r.beats[beatKey{m.Lane, m.Seq}] = b
	r.order = append(r.order, b)
	return b, t
}

// decide draws what the head does: when it answers, what, and whether the heartbeat gets into the
// pipeline.
func (r *run) decide(rnd *rand.Rand, b *beat) (wait time.Duration, answer error, lands bool) { //nolint:revive // the error is a datum here
	w := r.w
	quick := between(rnd, 100*time.Microsecond, 5*time.Millisecond)
	if w.isFlood() {
		quick /= 5
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if !b.sent.at.Before(w.end) {
		return quick, errRefused, false
	}
	for _, d := range r.p.down {
		if !b.sent.at.Before(d[0]) && b.sent.at.Before(d[1]) {
			b.note(KindHeadDown)
			return quick, errRefused, false
		}
	}
	switch {
	case w.chance(rnd, KindRefused, 0.03):
		b.note(KindRefused)
		lie := w.chance(rnd, KindRefusedLie, 0.1)
		if lie {
			b.note(KindRefusedLie)
		}
		return quick, errRefused, lie
	case w.chance(rnd, KindUnknownLost, 0.02):
		b.note(KindUnknownLost)
		return between(rnd, quick, r.sendTimeout), errUnknown, false
	case w.chance(rnd, KindUnknownIn, 0.02):
		b.note(KindUnknownIn)
		return between(rnd, quick, r.sendTimeout), errUnknown, true
	case w.chance(rnd, KindHung, 0.01):
		b.note(KindHung)
		return time.Hour, nil, rnd.Float64() < 0.5
	case w.chance(rnd, KindLateAnswer, 0.05):
		b.note(KindLateAnswer)
		return between(rnd, quick, scale(r.sendTimeout, 0.95)), nil, true
	}
	return quick, nil, true
}

// land draws what the pipeline does with a heartbeat that it has, at each of its ends. The caller holds
// the lock.
func (r *run) land(rnd *rand.Rand, b *beat, t token) {
	w, p := r.w, r.p
	text := t.String()
	if p.dead != nil && w.chance(rnd, KindDeadLetter, 0.04) {
		b.note(KindDeadLetter)
		p.dead.put(b, t.key, []byte(text), between(rnd, time.Microsecond, r.expiry+r.timeout+time.Second))
		if !w.chance(rnd, KindDeadAndOut, 0.3) {
			return
		}
		b.note(KindDeadAndOut)
	}
	for _, q := range p.outs {
		rnd := w.rand("end", p.name, r.h.name, r.n, b.lane, b.seq, q.name)
		r.noise(rnd, q, b, t)
		if w.chance(rnd, KindDropped, 0.04) {
			b.note(KindDropped)
			continue
		}
		body := []byte(`{"heartbeat":"` + text + `"}`)
		delay := r.delay(rnd, b)
		if w.chance(rnd, KindCorrupted, 0.02) {
			b.note(KindCorrupted)
			body[len(body)-4] ^= 1
			q.insert(&message{body: body, kind: damaged}, delay)
			continue
		}
		b.note(KindDelivered)
		q.put(b, t.key, body, delay)
		if w.chance(rnd, KindDuplicated, 0.04) {
			b.note(KindDuplicated)
			q.put(b, t.key, body, r.delay(rnd, b))
		}
	}
}

// delay draws how long after its injection a heartbeat enters a queue.
func (r *run) delay(rnd *rand.Rand, b *beat) time.Duration {
	w := r.w
	usual := r.expiry + scale(r.p.typical, 0.2+rnd.ExpFloat64()) + between(rnd, time.Microsecond, time.Millisecond)
	switch {
	case r.expiry > w.maxSkew && w.chance(rnd, KindFarEarly, 0.01):
		b.note(KindFarEarly)
		return between(rnd, time.Millisecond, r.expiry-w.maxSkew-time.Millisecond)
	case r.expiry > 0 && w.chance(rnd, KindEarly, 0.02):
		b.note(KindEarly)
		return r.expiry - between(rnd, time.Millisecond, min(r.expiry-time.Millisecond, w.maxSkew-time.Millisecond))
	case w.chance(rnd, KindSlow, 0.03):
		b.note(KindSlow)
		return r.expiry + r.timeout + between(rnd, time.Microsecond, 2*r.timeout)
	case w.chance(rnd, KindReordered, 0.05):
		return r.expiry + between(rnd, time.Millisecond, min(3*r.interval, r.timeout))
	}
	return usual
}

// noise puts what is not the heartbeat beside it into the queue.
func (r *run) noise(rnd *rand.Rand, q *queue, b *beat, t token) {
	w := r.w
	after := between(rnd, time.Microsecond, time.Second)
	put := func(kind string, t token) {
		q.insert(&message{body: []byte(t.String()), kind: kind, of: b, key: t.key, due: t.h.Due()}, after)
	}
	if w.chance(rnd, KindOther, 0.1) {
		w.did(KindOther)
		q.insert(&message{body: []byte(`{"order":42,"note":"~lagmon is a fine name"}`), kind: ordinary}, after)
	}
	if w.chance(rnd, KindForeign, 0.02) {
		w.did(KindForeign)
		put(stranger, t.changed(func(h *heartbeat.Heartbeat) { h.Probe = "somebody-else" }))
	}
	if w.keys && w.chance(rnd, KindForged, 0.03) {
		w.did(KindForged)
		forged := t.changed(func(h *heartbeat.Heartbeat) { h.Epoch++ })
		if forged.key = "forger"; rnd.Float64() < 0.5 && r.h.listens {
			forged.key = ""
		}
		put(formerRun, forged)
	}
	if !r.h.listens {
		return // to who only listens these would be heartbeats of yet another process
	}
	if w.chance(rnd, KindFuture, 0.02) {
		w.did(KindFuture)
		put(formerRun, t.changed(func(h *heartbeat.Heartbeat) { h.Epoch++; h.Sent = h.Sent.Add(time.Hour) }))
	}
	if w.chance(rnd, KindForeign, 0.01) {
		w.did(KindForeign)
		put(stranger, t.changed(func(h *heartbeat.Heartbeat) { h.Instance++ }))
	}
	if !r.p.laner && w.chance(rnd, KindNeverSent, 0.02) {
		w.did(KindNeverSent)
		put(neverSent, t.changed(func(h *heartbeat.Heartbeat) { h.Seq += 100_000 }))
	}
	if w.chance(rnd, KindPreviousRun, 0.02) {
		w.did(KindPreviousRun)
		back := between(rnd, r.expiry, r.expiry+time.Minute)
		put(formerRun, t.changed(func(h *heartbeat.Heartbeat) { h.Epoch++; h.Sent = h.Sent.Add(-back) }))
	}
}
