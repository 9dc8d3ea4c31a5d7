package sim

import (
	"cmp"
	"github.com/lag-monitor/lag-monitor/internal/journal"
	"hash/fnv"
	"io"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Kinds of events that a seed may ask for. Each has to occur in a run over all seeds.
const (
	KindDelivered   = "delivered"
	KindEarly       = "delivered before it was due"
	KindFarEarly    = "delivered before it was due by more than the skew allowed"
	KindSlow        = "entered the queue after its deadline"
	KindDropped     = "dropped"
	KindDuplicated  = "duplicated (another message)"
	KindRedelivered = "redelivered (same message)"
	KindReordered   = "reordered"
	KindCorrupted   = "corrupted"
	KindRefused     = "refused by the head"
	KindRefusedLie  = "refused, and delivered all the same"
	KindUnknownLost = "unknown to the head, and lost"
	KindUnknownIn   = "unknown to the head, and delivered"
	KindHung        = "never answered by the head"
	KindLateAnswer  = "accepted, answered late"
	KindBeforeReply = "arrived before the head's answer"
	KindDeadLetter  = "dead-lettered"
	KindDeadAndOut  = "dead-lettered, and delivered"
	KindExpired     = "discarded by the broker after its time to live"
	KindLaneGone    = "lane retired"
	KindLaneNew     = "lane added"
	KindLaneBack    = "lane brought back"
	KindHeadDown    = "head down for a while"
	KindDisconnect  = "sink disconnected and resumed"
	KindGap         = "sink resumed with a gap"
	KindMissed      = "passed a sink that keeps nothing"
	KindHang        = "sink hung until the watchdog ended it"
	KindRetry       = "sink failed to reconnect"
	KindLateReady   = "sink became ready late"
	KindLateProof   = "sink proved itself late"
	KindOther       = "other traffic"
	KindForeign     = "foreign heartbeat"
	KindFuture      = "future heartbeat"
	KindNeverSent   = "heartbeat that was never sent"
	KindPreviousRun = "heartbeat of a run before"
	KindReload      = "configuration reloaded"
	KindJoined      = "probe added by a reload"
	KindLeft        = "probe removed by a reload"
	KindNoEnqueued  = "queue that does not tell enqueue times"
	KindNoIDs       = "queue that does not tell message ids"
	KindSkipped     = "tick skipped"

	KindChanged    = "probe changed by a reload"
	KindOldEpoch   = "heartbeat of the probe before it was changed or the process restarted"
	KindSigned     = "signed heartbeat"
	KindKeys       = "keys changed by a reload"
	KindForged     = "forged heartbeat"
	KindStaleKey   = "heartbeat signed with a key that is not known any more"
	KindStaleOwn   = "the same, and the probe's own"
	KindShutdown   = "shut down in mid-run"
	KindDrained    = "shut down with nothing left in flight"
	KindCutShort   = "in flight at the end of the grace period"
	KindKilled     = "process killed and started anew"
	KindJournal    = "the same, with its journal"
	KindRestored   = "heartbeat taken over from the journal"
	KindReplica    = "heartbeat of the other replica"
	KindSkewed     = "heartbeat of another host, whose clock differs"
	KindGapFound   = "loss found by a process that only listens"
	KindRefusedFar = "gap that the bitmap explains"
	KindHeld       = "given up after the hold"
	KindOverflow   = "given up for lack of room"
	KindHop        = "heartbeat seen at both ends of a hop"
	KindStuck      = "stuck between two stations"
	KindPaused     = "probe paused"
	KindPausedTick = "tick in a pause"
	KindPauseOver  = "pause over by itself"
	KindResumed    = "probe resumed"
	KindPauseKept  = "pause that outlasted a restart, or a reload that changed the probe"
)

// Kinds lists them in the order of the table.
func Kinds() []string {
	return []string{KindDelivered, KindEarly, KindFarEarly, KindSlow, KindDropped, KindDuplicated, KindRedelivered, KindReordered,
		KindCorrupted, KindRefused, KindRefusedLie, KindUnknownLost, KindUnknownIn, KindHung, KindLateAnswer, KindBeforeReply,
		KindDeadLetter, KindDeadAndOut, KindExpired, KindLaneGone, KindLaneNew, KindLaneBack, KindHeadDown, KindDisconnect,
		KindGap, KindMissed, KindHang, KindRetry, KindLateReady, KindLateProof, KindOther, KindForeign, KindFuture,
		KindNeverSent, KindPreviousRun, KindReload, KindJoined, KindLeft, KindNoEnqueued, KindNoIDs, KindSkipped,
		KindChanged, KindOldEpoch, KindSigned, KindKeys, KindForged, KindStaleKey, KindStaleOwn, KindShutdown, KindDrained,
		KindCutShort, KindKilled, KindJournal, KindRestored, KindReplica, KindSkewed, KindGapFound, KindRefusedFar, KindHeld, KindOverflow,
		KindHop, KindStuck, KindPaused, KindPausedTick, KindPauseOver, KindResumed, KindPauseKept}
}

// What else than a kind of event may be taken out of a seed: a probe of the start by its name, and all
// that is after a time.
const (
	offProbe = "probe "
	offAfter = "after "
)

// world is everything that one seed makes up, and the record of all that truly happened. The record
// numbers the events of all pipelines and queues in one order; the instants of independent events differ
// by design (every delay is drawn to the nanosecond), so that there is only one order.
type world struct {
	seed     uint64
	off      map[string]bool // kinds that may not occur, to find out which one a failure needs
	start    time.Time
	end      time.Time // from here on every head refuses, so that all accounts come to rest
	shutdown bool      // the processes are shut down at the end instead, before anything has come to rest
	length   time.Duration
	maxSkew  time.Duration
	wild     float64 // how often things go wrong; 1 is ordinary
	tempo    float64 // how much faster things go wrong than in a run of five minutes: 1 or less
	keys     bool    // heartbeats are signed, at least at times
	pipes    []*pipe
	queues   []*queue
	hosts    []*host // the processes; one that was killed stays in the list
	plan     []action

	mu    sync.Mutex
	n     int // events so far
	ids   uint64
	runs  int
	every []*run // also those of processes that were killed: what they sent may be waited for after them
	count map[string]int
	looks []mark // when somebody looked at the accounts
	// lostBeats is how many heartbeats were sent by processes that were killed.
	lostBeats int
}

// action is something that a person does to a process.
type action struct {
	at   time.Duration
	host string
	what string
}

// The actions.
const (
	doReload = "reload"
	doKill   = "kill"
	doStart  = "start"
	doPause  = "pause"
	doResume = "resume"
)

// mark is an event's place in the order of all events, and its instant.
type mark struct {
	n  int
	at time.Time
}

func (m mark) before(o mark) bool { return m.n < o.n }

// now marks an event. The caller holds the lock.
func (w *world) now() mark {
	w.n++
	return mark{w.n, time.Now()}
}

// chance draws whether an event of the kind happens. The draw is made even when the kind is off, so
// that what else happens stays the same.
func (w *world) chance(r *rand.Rand, kind string, p float64) bool {
	return r.Float64() < p*w.wild && !w.off[kind]
}

// did counts an event. The caller holds the lock.
func (w *world) did(kind string) { w.count[kind]++ }

// rand returns a stream of its own for whatever the names stand for: draws of one heartbeat do not
// depend on which other goroutine was faster.
func (w *world) rand(names ...any) *rand.Rand {
	h := fnv.New64a()
	for _, n := range names {
		switch n := n.(type) {
		case string:
			_, _ = io.WriteString(h, n)
		case int:
			_, _ = io.WriteString(h, strconv.Itoa(n))
		case uint32:
			_, _ = io.WriteString(h, strconv.FormatUint(uint64(n), 10))
		case uint64:
			_, _ = io.WriteString(h, strconv.FormatUint(n, 10))
		}
		h.Write([]byte{0})
	}
	return rand.New(rand.NewPCG(w.seed, h.Sum64()))
}

// between draws a duration, to the nanosecond.
func between(r *rand.Rand, from, to time.Duration) time.Duration {
	return from + time.Duration(r.Int64N(int64(to-from)+1))
}

func pick[T any](r *rand.Rand, of ...T) T { return of[r.IntN(len(of))] }

// newWorld makes up the pipelines of a seed, and the processes that watch them. It is called inside the
// bubble.
func newWorld(seed uint64, off map[string]bool) *world {
	w := &world{seed: seed, off: off, start: time.Now(), maxSkew: 10 * time.Second, count: make(map[string]int)}
	r := w.rand("world")
	w.wild = pick(r, 0.2, 0.7, 1, 1, 2)
	queues, pipes := 1+r.IntN(3), 1+r.IntN(4)
	w.length = between(r, 3*time.Minute, 8*time.Minute)
	switch {
	case w.isHold():
		pipes, w.length = 1, between(r, 6*time.Hour+40*time.Minute, 7*time.Hour+10*time.Minute)
	case w.isFlood():
		queues, pipes, w.length, w.wild = 1, 1, 110*time.Second, 0.0005
	case r.Float64() < 0.95:
		// Most seeds are short: what goes wrong does so by the meeting of two or three events, and those
		// are met more often in many small worlds than in a few large ones.
		var rate float64 // heartbeats a second
		for i := range pipes {
			p := w.newPipe("p" + strconv.Itoa(i))
			rate += float64(max(1, len(p.firstLanes))) / p.set.interval.Seconds()
		}
		w.length = min(max(time.Duration(float64(between(r, 100*time.Second, 150*time.Second))/rate), 25*time.Second), w.length)
	}
	w.tempo = min(1, w.length.Seconds()/300)
	w.end = w.start.Add(w.length)
	for k := range off {
		if d, err := time.ParseDuration(strings.TrimPrefix(k, offAfter)); err == nil && strings.HasPrefix(k, offAfter) {
			w.end = w.start.Add(min(d, w.length))
		}
	}
	// Not a full second: whether the end meets the watchdog of a sink must not depend on which goroutine is
	// faster.
	w.end = w.end.Add(between(w.rand("end"), time.Millisecond, 999*time.Millisecond))
	w.keys = w.chance(r, KindSigned, 0.4)
	for i := range queues {
		w.queues = append(w.queues, w.newQueue("out"+strconv.Itoa(i)))
	}
	if w.chance(w.rand("hops"), KindHop, 0.5) {
		w.queues[0].hop = true
	}
	var dead *queue
	if r.Float64() < 0.5 && !w.isFlood() {
		dead = w.newQueue("dead")
		dead.dead = true
		w.queues = append(w.queues, dead)
	}
	w.people(r)
	for i := range pipes {
		p := w.newPipe("p" + strconv.Itoa(i))
		p.arrange()
		for _, j := range r.Perm(queues)[:1+r.IntN(min(2, queues))] {
			p.outs = append(p.outs, w.queues[j])
		}
		p.order()
		if dead != nil && r.Float64() < 0.7 {
			p.dead = dead
		}
		if !off[offProbe+p.name] {
			w.pipes = append(w.pipes, p)
		}
	}
	for _, h := range w.hosts {
		h.pipes = slices.Clone(w.pipes)
	}
	return w
}

// isHold reports whether the run has an outage longer than a heartbeat is waited for.
func (w *world) isHold() bool { return w.seed%97 == 13 }

// isFlood reports whether more heartbeats are outstanding in the run than a ledger keeps.
func (w *world) isFlood() bool { return w.seed%4000 == floodSeed }

// floodSeed is the first such seed. It takes seconds, so that a few in a long row have to do.
const floodSeed = 3000

// people makes up the processes, and what is done to them.
func (w *world) people(r *rand.Rand) {
	name := "here"
	split, far := r.Float64(), pick(r, 0, -3*time.Millisecond, 50*time.Millisecond, -3*time.Second, 2*time.Second, 9*time.Second, 15*time.Second, -40*time.Second)
	far += between(r, -time.Microsecond, time.Microsecond)
	switch {
	case w.isHold() || w.isFlood():
		w.newHost(name, true, true)
	case split < 0.12 && !w.off[KindReplica]:
		w.newHost(name, true, true)
		w.newHost("there", true, true)
	case split < 0.3 && !w.off[KindSkewed]:
		name = "head"
		w.newHost(name, true, false).ahead = far
		w.newHost("tail", false, true)
	default:
		w.newHost(name, true, true)
	}
	for _, h := range w.hosts {
		do := func(what string, n int, early, late time.Duration) {
			for range n {
				if at := between(r, early, w.length-late); w.start.Add(at).Before(w.end) && !w.isFlood() {
					w.plan = append(w.plan, action{at, h.name, what})
				}
			}
		}
		reloads, kills := r.IntN(4), 0
		if w.chance(r, KindKilled, 0.12) && !w.isHold() {
			kills = 1 + r.IntN(2)
			if w.chance(r, KindJournal, 0.6) && h.injects && h.listens && !w.keys && !w.isFlood() {
				h.journal = &kept{Memory: new(journal.Memory), h: h}
			}
		}
		do(doReload, reloads, 5*time.Second, 5*time.Second)
		do(doKill, kills, 3*time.Second, 3*time.Second)
		w.planPauses(h)
	}
	slices.SortFunc(w.plan, func(a, b action) int { return cmp.Compare(a.at, b.at) })
	w.shutdown = w.chance(r, KindShutdown, 0.12) && !w.isFlood()
}

// order puts the hop before the other ends.
func (p *pipe) order() {
	slices.SortStableFunc(p.outs, func(a, b *queue) int {
		switch {
		case a.hop && !b.hop:
			return -1
		case b.hop && !a.hop:
			return 1
		}
		return 0
	})
}

// planPauses makes up when somebody pauses a probe of the process. It draws from a stream of its own.
func (w *world) planPauses(h *host) {
	r := w.rand("pauses", h.name)
	if !h.injects || w.isHold() || w.isFlood() || !w.chance(r, KindPaused, 0.4) {
		return
	}
	plan := func(at time.Duration, what string) {
		if w.start.Add(at).Before(w.end) {
			w.plan = append(w.plan, action{at, h.name, what})
		}
	}
	for range 1 + r.IntN(3) {
		at := between(r, time.Millisecond, w.length)
		plan(at, doPause)
		if r.Float64() < 0.5 {
			plan(at+between(r, time.Millisecond, 20*time.Second), doResume)
		}
	}
	for _, a := range slices.Clone(w.plan) {
		if a.host == h.name && (a.what == doKill || a.what == doReload) && r.Float64() < 0.7 {
			plan(max(time.Millisecond, a.at-between(r, 0, 5*time.Second)), doPause)
		}
	}
}

func (w *world) newPipe(name string) *pipe {
	r := w.rand("pipe", name)
	p := &pipe{w: w, name: name}
	p.expires = r.Float64() < 0.4 && !w.off[KindExpired]
	p.set = w.newSettings(r)
	switch {
	case w.isHold():
		p.set.interval, p.set.timeout = pick(r, 30*time.Second, time.Minute), pick(r, 30*time.Second, 5*time.Minute)
		p.set.limit()
	case w.isFlood():
		p.set.interval, p.set.timeout = 1300*time.Microsecond, 150*time.Second
		p.set.limit()
		p.expires = false
	}
	p.batch = r.Float64() < 0.3
	p.typical = pick(r, time.Millisecond, 20*time.Millisecond, 300*time.Millisecond)
	if r.Float64() < 0.4 && !w.isFlood() {
		p.laner = true
		p.firstLanes = []uint32{0, 1, 2, 3}[:1+r.IntN(3)]
	}
	return p
}

func (w *world) newSettings(r *rand.Rand) (s settings) {
	s.interval = pick(r, 500*time.Millisecond, time.Second, time.Second, 2*time.Second, 7*time.Second, 15*time.Second)
	s.expiry = pick(r, 0, 0, 0, 3*time.Second, 8*time.Second, 25*time.Second)
	s.timeout = pick(r, time.Second, 5*time.Second, 10*time.Second, 30*time.Second, time.Minute)
	// Not a multiple of any interval: whether a tick meets the end of the injection before it must not
	// depend on which goroutine is faster.
	s.sendTimeout = pick(r, time.Second, 3*time.Second, 10*time.Second) + between(r, time.Millisecond, 50*time.Millisecond)
	s.limit()
	if r.Float64() < 0.3 {
		s.ttl = s.expiry + scale(s.timeout, 0.3+r.Float64())
	}
	return s
}

// limit sets the usual time to live.
func (s *settings) limit() { s.ttl = max(4*s.interval, s.expiry+s.timeout) }

// arrange plans the fate of the head over the length of the run.
func (p *pipe) arrange() {
	w := p.w
	length := w.length
	r := w.rand("plan", p.name)
	p.lanes = []lanePlan{{w.start, []uint32{0}}}
	switch {
	case p.laner && slices.ContainsFunc(w.hosts, func(h *host) bool { return !h.listens }), p.laner && w.isHold():
		// A process that only listens learns of lanes that have gone by and by, which is tested elsewhere.
		p.lanes = []lanePlan{{w.start, p.firstLanes}}
	case p.laner:
		p.lanes = w.planLanes(r, p.firstLanes, length)
	}
	if w.isFlood() || w.isHold() {
		return
	}
	for range 2 {
		if w.chance(r, KindHeadDown, 0.3) {
			from := w.start.Add(between(r, 0, length))
			p.down = append(p.down, [2]time.Time{from, from.Add(scale(between(r, time.Second, time.Minute), w.tempo))})
		}
	}
}

// planLanes plans which lanes the head has and when: they come, go and come back.
func (w *world) planLanes(r *rand.Rand, ids []uint32, length time.Duration) []lanePlan {
	plan := []lanePlan{{w.start, ids}}
	for at := scale(between(r, 20*time.Second, 2*time.Minute), w.tempo); at < length; at += scale(between(r, 20*time.Second, 2*time.Minute), w.tempo) {
		var next []uint32
		last := plan[len(plan)-1].ids
		for id := range uint32(5) {
			had := false
			for _, l := range last {
				had = had || l == id
			}
			if had && !w.chance(r, KindLaneGone, 0.3) || !had && w.chance(r, KindLaneNew, 0.3) {
				next = append(next, id)
			}
		}
		if len(next) > 0 {
			plan = append(plan, lanePlan{w.start.Add(at), next})
		}
	}
	return plan
}

func (w *world) newQueue(name string) *queue {
	r := w.rand("queue", name)
	q := &queue{w: w, name: name}
	q.keeps = r.Float64() < 0.7 || w.off[KindGap]
	q.enqueued = r.Float64() < 0.6 || w.off[KindNoEnqueued]
	q.tellsIDs = r.Float64() < 0.8 || w.off[KindNoIDs]
	return q
}

// newListener makes up the connection of a process to a queue.
func (w *world) newListener(h *host, q *queue) *listener {
	r := w.rand("listener", h.name, q.name)
	l := &listener{w: w, h: h, q: q, name: q.name + "@" + h.name, wake: make(chan struct{}, 1)}
	l.poll = pick(r, 0, 200*time.Millisecond, time.Second, 3*time.Second)
	l.answer = pick(r, time.Millisecond, 30*time.Millisecond, 500*time.Millisecond)
	l.lateProof = w.chance(r, KindLateProof, 0.3)
	if w.chance(r, KindLateReady, 0.3) {
		l.begins = between(r, time.Second, 40*time.Second)
	}
	l.reconnect = between(r, time.Millisecond, 3*time.Second)
	l.lookBack = between(r, 0, time.Minute)
	length := w.length
	switch {
	case w.isHold():
		l.poll = 0
		l.outages = []outage{{at: w.start.Add(between(r, time.Minute, 10*time.Minute)), lasts: between(r, 6*time.Hour, 6*time.Hour+20*time.Minute)}}
		return l
	case w.isFlood():
		l.poll, l.begins, l.reconnect = 0, 0, time.Millisecond
		l.outages = []outage{{at: w.start.Add(between(r, time.Second, 2*time.Second)), lasts: 106 * time.Second}}
		return l
	case r.Float64() < 0.15:
		w.wildOutages(l, r, length)
		return l
	}
	for at := scale(between(r, 20*time.Second, 3*time.Minute), w.tempo); at < length; {
		o := outage{at: w.start.Add(at), lasts: scale(between(r, 3*time.Second, pick(r, 5*time.Second, 30*time.Second, 2*time.Minute)), math.Sqrt(w.tempo))}
		switch {
		case w.chance(r, KindHang, 0.15):
			o.hang = true
			o.lasts += 50 * time.Second
		case !w.chance(r, KindDisconnect, 0.7):
			o.lasts = 0
		}
		if w.chance(r, KindRetry, 0.4) {
			o.tries = 1 + r.IntN(3)
		}
		if o.lasts > 0 {
			l.outages = append(l.outages, o)
		}
		at += o.lasts + scale(between(r, 100*time.Millisecond, 2*time.Minute), w.tempo)
	}
	return l
}

// wildOutages makes a connection that never holds for long.
func (w *world) wildOutages(l *listener, r *rand.Rand, length time.Duration) {
	for at := between(r, time.Second, 20*time.Second); at < length && !w.off[KindDisconnect]; {
		o := outage{at: w.start.Add(at), lasts: between(r, time.Second, 10*time.Second)}
		l.outages = append(l.outages, o)
		at += o.lasts + between(r, 10*time.Millisecond, 20*time.Second)
	}
}

func scale(d time.Duration, by float64) time.Duration { return time.Duration(float64(d) * by) }
