package faults_test

import (
	"context"
	"sync"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/heartbeat"
)

// message is one message in a queue.
type message struct {
	id   string // of the stored message, unique in the queue over its whole life
	lane int    // the partition; 0 where there are none
	body []byte
	at   time.Time // when it entered the queue, by the broker's clock

	// known is when it was there at the latest, for a queue that knows; zero: when the relay had its answer.
	known time.Time
}

// queue is one queue on a real broker, used by programs that know nothing of faults or heartbeats. Its
// methods are safe for concurrent use. A context ends each of them.
type queue interface {
	// put is one attempt to append a body: nil when the broker has it for certain. It returns within a few
	// seconds whatever happens.
	put(ctx context.Context, lane int, body []byte) error
	// follow reads the queue from its beginning, and what comes, each message once and those of a lane in
	// their order, whatever breaks, until ctx ends. It calls f from any number of goroutines.
	follow(ctx context.Context, f func(message))
	// all reads what is in the queue now.
	all(ctx context.Context) ([]message, error)
}

// plan is what a relay makes of one heartbeat. The zero value drops it.
type plan struct {
	copies int
	delay  time.Duration            // before it is forwarded
	swap   bool                     // let the next one of its lane go first
	change func(body []byte) []byte // nil: unchanged
}

// forward is the plan of a relay that works.
var forward = plan{copies: 1}

// relay is a pipeline: it moves what comes into the head on to the destination. It tries again until the
// destination has taken a message for certain, so that it may repeat one, as such programs do, but loses none
// unless its plan says so.
type relay struct {
	head, dest queue
	plan       func(n int, m message) plan // of the n-th message, from 1; nil: forward all
	once       bool                        // it tries once, and what fails is lost

	mu      sync.Mutex
	changed *sync.Cond
	read    []message
	acked   map[string]time.Time // when the destination answered that it has a heartbeat, by token
	waiting []*parcel
	held    map[int]*parcel // to go behind the next one of the lane
	stopped bool            // hold
	putting bool
	ended   bool
}

type parcel struct {
	message
	due    time.Time
	copies int
}

// start lets the relay work until the returned function is called.
func (r *relay) start() (end func()) {
	r.changed = sync.NewCond(&r.mu)
	r.held = map[int]*parcel{}
	r.acked = map[string]time.Time{}
	ctx, cancel := context.WithCancel(context.Background())
	var both sync.WaitGroup
	both.Go(func() { r.head.follow(ctx, r.take) })
	both.Go(func() { r.work(ctx) })
	return func() {
		cancel()
		r.set(func() { r.ended = true })
		both.Wait()
	}
}

func (r *relay) set(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
	r.changed.Broadcast()
}

// take plans what becomes of a message from the head.
func (r *relay) take(m message) {
	r.set(func() {
		r.read = append(r.read, m)
		p := forward
		if r.plan != nil {
			p = r.plan(len(r.read), m)
		}
		if p.change != nil {
			m.body = p.change(m.body)
		}
		one := &parcel{message: m, due: time.Now().Add(p.delay), copies: p.copies}
		first := r.held[m.lane]
		delete(r.held, m.lane)
		switch {
		case p.swap && first == nil:
			r.held[m.lane] = one
		case first != nil:
			r.waiting = append(r.waiting, one, first)
		default:
			r.waiting = append(r.waiting, one)
		}
	})
}

// next removes the first parcel that is due, and returns nil when there is none; until tells when there may be one.
func (r *relay) next(now time.Time) (p *parcel, until time.Time) {
	for i, p := range r.waiting {
		if !p.due.After(now) {
			r.waiting = append(r.waiting[:i:i], r.waiting[i+1:]...)
			return p, now
		}
		if until.IsZero() || p.due.Before(until) {
			until = p.due
		}
	}
	return nil, until
}

func (r *relay) work(ctx context.Context) {
	for {
		r.mu.Lock()
		var p *parcel
		for !r.ended {
			var until time.Time
			if !r.stopped {
				if p, until = r.next(time.Now()); p != nil {
					break
				}
			}
			var wake *time.Timer
			if !until.IsZero() {
				wake = time.AfterFunc(time.Until(until), func() { r.set(func() {}) })
			}
			r.changed.Wait()
			if wake != nil {
				wake.Stop()
			}
		}
		if r.ended {
			r.mu.Unlock()
			return
		}
		r.putting = true
		r.mu.Unlock()
		for p.copies > 0 && ctx.Err() == nil {
			if err := r.dest.put(ctx, p.lane, p.body); err == nil {
				p.copies--
				r.ack(p.body)
				continue
			}
			if r.once {
				break
			}
			select {
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
		}
		r.set(func() { r.putting = false })
	}
}

// ack notes when the destination first had a heartbeat for certain.
func (r *relay) ack(body []byte) {
	_, token, _, _ := heartbeat.Next(body)
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, again := r.acked[string(token)]; !again {
		r.acked[string(token)] = time.Now()
	}
}

// hold stops the relay and returns when nothing is half-way between the queues. The head is read on.
func (r *relay) hold() {
	r.set(func() {
		r.stopped = true
		for r.putting {
			r.changed.Wait()
		}
	})
}

// resume lets it go on.
func (r *relay) resume() { r.set(func() { r.stopped = false }) }

// flush lets go what waits for another message to overtake it.
func (r *relay) flush() {
	r.set(func() {
		for lane, p := range r.held {
			r.waiting = append(r.waiting, p)
			delete(r.held, lane)
		}
	})
}

// idle returns the messages that it has read, and whether all of them are dealt with.
func (r *relay) idle() (read []message, idle bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.read, len(r.waiting)+len(r.held) == 0 && !r.putting
}

// counts returns how many messages it has read so far.
func (r *relay) counts() int {
	read, _ := r.idle()
	return len(read)
}

// beat is one heartbeat, by what is in the queues.
type beat struct {
	heartbeat.Heartbeat
	copies  int
	entered time.Time // the destination queue, for the first time, as the broker has it
	acked   time.Time // when the relay knew, or the queue
	inHead  bool
	older   bool // it came after a younger one of its lane
}

// onEdge reports whether it was about to enter at its deadline: stamped before, and readable perhaps after, since
// brokers look at the clock before they append. Nobody can say that it was there in time, or that it was not.
func (b *beat) onEdge() bool {
	const clocks = 5 * time.Millisecond // between two processes
	return b.copies > 0 && b.entered.Before(b.Deadline().Add(clocks)) && !b.acked.Before(b.Deadline().Add(-clocks))
}

// inTime reports whether it entered the destination queue in time.
func (b *beat) inTime() bool { return b.copies > 0 && !b.entered.After(b.Deadline()) }

// truth is what has happened, by what is in the two queues.
type truth struct {
	beats   map[string]*beat // by token
	seen    map[string]bool  // stored messages of the destination that are counted already
	corrupt int              // messages in the destination that only look like heartbeats
	others  int              // messages in the destination that do not
	swapped int              // heartbeats that came after a younger one of their lane
	newest  map[laneOf]*beat
	keys    *heartbeat.Keyring // of the daemon
}

// laneOf is one lane of one run of the daemon.
type laneOf struct {
	epoch uint64
	lane  uint32
}

func newTruth() *truth {
	return &truth{beats: map[string]*beat{}, seen: map[string]bool{}, newest: map[laneOf]*beat{}, keys: heartbeat.NewKeyring()}
}

// acked takes over when the relay knew that a heartbeat was there. One whose answer was lost is as if the answer
// had come at the end of time.
func (w *truth) acked(r *relay) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for token, b := range w.beats {
		if !b.acked.IsZero() {
			continue
		}
		at, ok := r.acked[token]
		if !ok {
			at = time.Now()
		}
		b.acked = at
	}
}

// add takes what was found in one of the queues. It may be called again for the same queue.
func (w *truth) add(found []message, isHead bool) {
	for _, m := range found {
		if !isHead {
			if w.seen[m.id] {
				continue
			}
			w.seen[m.id] = true
		}
		_, token, _, ok := heartbeat.Next(m.body)
		if !ok {
			if !isHead {
				w.others++
			}
			continue
		}
		var h heartbeat.Heartbeat
		if err := w.keys.Decode(token, &h); err != nil {
			if !isHead {
				w.corrupt++
			}
			continue
		}
		b := w.beats[string(token)]
		if b == nil {
			b = &beat{Heartbeat: h}
			w.beats[string(token)] = b
		}
		if isHead {
			b.inHead = true
			continue
		}
		if b.copies++; b.copies == 1 {
			b.entered, b.acked = m.at, m.known
			lane := laneOf{h.Epoch, h.Lane}
			if n := w.newest[lane]; n != nil && h.Seq < n.Seq {
				w.swapped++
				b.older = true
			} else {
				w.newest[lane] = b
			}
		}
	}
}
