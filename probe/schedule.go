package probe

import (
	"container/heap"
	"context"
	"hash/fnv"
	"sync"
	"sync/atomic"
	"time"
)

// Task is what a schedule calls at every tick.
type Task interface {
	// Tick does the work of the tick that was planned for at. It runs on a goroutine of its own and never
	// twice at once for one entry.
	Tick(at time.Time)
	// Overrun is called instead of Tick while the one before is still running, and once for n ticks that
	// passed while the process was suspended. It must not block.
	Overrun(at time.Time, n int)
}

// Schedule calls tasks at fixed rates: one goroutine and one timer for all of them, and a pool of
// workers that is as large as the number of ticks under way. Ticks do not drift, and the phases of
// entries with the same interval are spread by their names, so that they do not bunch and stay the
// same over a restart. All methods are safe for concurrent use.
type Schedule struct {
	wake chan struct{}
	work chan *Entry // nil tells a worker to end
	wg   sync.WaitGroup

	workers atomic.Int64 // all, of which busy are under way; peak is the most at once since the last sweep
	busy    atomic.Int64
	peak    int64 // of the goroutine of Run

	mu      sync.Mutex
	entries queue
}

// Entry is a task in a schedule.
type Entry struct {
	s        *Schedule
	task     Task
	interval time.Duration
	next     time.Time // when the task is called next; guarded by s.mu
	grid     time.Time // the next tick of the entry's own phase; equal to next but for an extra tick
	index    int       // in the heap; -1 when removed
	busy     atomic.Bool
	at       time.Time // of the tick under way; owned by who set busy
}

// NewSchedule returns an empty schedule. Run makes it go.
func NewSchedule() *Schedule {
	return &Schedule{wake: make(chan struct{}, 1), work: make(chan *Entry)}
}

// startSpread is how far apart the first ticks of the entries are: a fleet of 10,000 starts within a
// second, a single probe at once.
const startSpread = 100 * time.Microsecond

// Add puts a task into the schedule. Its first tick comes at once, or within the interval when there
// are many entries; the later ones at the phase which belongs to the name.
func (s *Schedule) Add(name string, interval time.Duration, t Task) *Entry {
	e := &Entry{s: s, task: t, interval: interval}
	now, part := time.Now(), fraction(name)
	s.mu.Lock()
	spread := min(interval, time.Duration(len(s.entries))*startSpread)
	e.next = now.Add(scale(spread, part))
	e.grid = e.next.Add((interval + scale(interval, part) - time.Duration(e.next.UnixNano())%interval) % interval)
	heap.Push(&s.entries, e)
	s.mu.Unlock()
	s.poke()
	return e
}

// fraction spreads names evenly over [0, 1).
func fraction(name string) float64 {
	h := fnv.New64a()
	h.Write([]byte(name))
	// FNV leaves the high bits of short names alike: one multiplication mixes them.
	return float64((h.Sum64()*0x9e3779b97f4a7c15)>>11) / (1 << 53)
}

func scale(d time.Duration, by float64) time.Duration { return time.Duration(float64(d) * by) }

// Remove takes the entry out. A tick that is under way goes on.
func (e *Entry) Remove() {
	e.s.mu.Lock()
	defer e.s.mu.Unlock()
	if e.index >= 0 {
		heap.Remove(&e.s.entries, e.index)
	}
}

// Wait waits for the tick that is under way, if there is one. It is called after Remove.
func (e *Entry) Wait() {
	for e.busy.Load() {
		time.Sleep(time.Millisecond)
	}
}

// Now brings the next tick forward to this moment; the phase of the later ones stays.
func (e *Entry) Now() {
	e.s.mu.Lock()
	if e.index >= 0 {
		e.next = time.Now()
		heap.Fix(&e.s.entries, e.index)
	}
	e.s.mu.Unlock()
	e.s.poke()
}

func (s *Schedule) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Run calls the tasks until ctx ends, and then waits for the ticks under way.
func (s *Schedule) Run(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	sweep := time.NewTicker(sweepEvery)
	defer sweep.Stop()
	for {
		wait := s.dispatch(time.Now())
		timer.Reset(wait)
		select {
		case <-ctx.Done():
			close(s.work)
			s.wg.Wait()
			return
		case <-s.wake:
		case <-sweep.C:
			s.sweep()
		case <-timer.C:
		}
	}
}

// dispatch starts everything that is due and returns how long nothing else is.
func (s *Schedule) dispatch(now time.Time) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.entries) > 0 {
		e := s.entries[0]
		if wait := e.next.Sub(now); wait > 0 {
			return wait
		}
		at := e.next
		missed := e.plan(now)
		heap.Fix(&s.entries, 0)
		if missed > 0 {
			e.task.Overrun(at, missed)
		}
		if !e.busy.CompareAndSwap(false, true) {
			e.task.Overrun(at, 1)
			continue
		}
		e.at = at
		s.peak = max(s.peak, s.busy.Add(1))
		select {
		case s.work <- e:
		default:
			s.workers.Add(1)
			s.wg.Add(1)
			go s.worker(e)
		}
	}
	return time.Hour
}

// plan sets the next tick, and returns how many were passed over since the one that is due now.
func (e *Entry) plan(now time.Time) (missed int) {
	if late := now.Sub(e.grid); late >= 0 {
		missed = int(late / e.interval)
		e.grid = e.grid.Add(time.Duration(missed+1) * e.interval)
	} else if -late < e.interval/2 {
		e.grid = e.grid.Add(e.interval) // the extra tick of now stands for the one that was near
	}
	e.next = e.grid
	return missed
}

func (s *Schedule) worker(e *Entry) {
	defer s.wg.Done()
	defer s.workers.Add(-1)
	for ok := true; ok && e != nil; e, ok = <-s.work {
		e.task.Tick(e.at)
		e.busy.Store(false)
		s.busy.Add(-1)
	}
}

// sweepEvery is how often workers are ended that nobody has needed since the last time.
const sweepEvery = 5 * time.Second

func (s *Schedule) sweep() {
	for surplus := s.workers.Load() - max(s.peak, 1); surplus > 0; surplus-- {
		select {
		case s.work <- nil:
		default: // the others are busy
			surplus = 0
		}
	}
	s.peak = s.busy.Load()
}

// queue is a heap by the time of the next tick.
type queue []*Entry

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].next.Before(q[j].next) }
func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].index, q[j].index = i, j
}

func (q *queue) Push(x any) {
	e := x.(*Entry)
	e.index = len(*q)
	*q = append(*q, e)
}

func (q *queue) Pop() any {
	old := *q
	e := old[len(old)-1]
	old[len(old)-1] = nil
	e.index = -1
	*q = old[:len(old)-1]
	return e
}
