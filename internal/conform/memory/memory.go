package memory

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"sync"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/conn"
)

// Size is how many messages a Queue holds unless NewQueue is told otherwise.
const Size = 1 << 14

var errDown = conn.WithClass(conn.Network, errors.New("the queue is stopped"))

// Queue is a log of the last messages, which any number of sinks read from positions of their own. It
// starts no goroutine, and reuses the memory of old messages for new ones. It is safe for concurrent
// use.
type Queue struct {
	mu    sync.Mutex
	ring  []slot
	next  uint64 // position of the next message; the oldest one is next - len(ring) or 0
	spare []byte // memory for the next message
	wake  chan struct{}
	waits bool          // a sink waits for wake
	hung  chan struct{} // not nil while the queue hangs; closed by the release
	down  bool
	lanes int
}

type slot struct {
	body []byte
	at   int64 // Unix time in ns
}

// NewQueue returns a queue that holds the last size messages (0 means Size) and whose head has that
// many lanes.
func NewQueue(lanes, size int) *Queue {
	if size == 0 {
		size = Size
	}
	return &Queue{ring: make([]slot, size), wake: make(chan struct{}), lanes: max(lanes, 1)}
}

// Len returns how many messages the queue holds.
func (q *Queue) Len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return int(min(q.next, uint64(len(q.ring))))
}

// Stop makes the queue refuse everything and ends the sinks that listen; its messages stay. Start
// undoes it.
func (q *Queue) Stop() { q.setDown(true) }

// Start makes a stopped queue work again.
func (q *Queue) Start() { q.setDown(false) }

func (q *Queue) setDown(down bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.down = down
	q.signal()
}

// Hang makes the queue neither answer nor refuse until release is called. What was being put in when
// its caller gave up is lost.
func (q *Queue) Hang() (release func()) {
	hung := make(chan struct{})
	q.mu.Lock()
	defer q.mu.Unlock()
	q.hung = hung
	q.signal()
	return func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		if q.hung == hung {
			q.hung = nil
			close(hung)
		}
	}
}

// signal wakes the sinks that wait; q.mu is held.
func (q *Queue) signal() {
	if q.waits {
		q.waits = false
		close(q.wake)
		q.wake = make(chan struct{})
	}
}

// Put copies a message into the queue. It waits while the queue hangs.
func (q *Queue) Put(ctx context.Context, body []byte) error {
	return q.put(ctx, func(dst []byte) ([]byte, error) { return append(dst, body...), nil })
}

// put lets render write the message into memory that an old one has left.
func (q *Queue) put(ctx context.Context, render func(dst []byte) ([]byte, error)) error {
	if err := q.enter(ctx); err != nil {
		return err
	}
	defer q.mu.Unlock()
	body, err := render(q.spare[:0])
	if err != nil {
		return err
	}
	s := &q.ring[q.next%uint64(len(q.ring))]
	q.spare, s.body, s.at = s.body, body, time.Now().UnixNano()
	q.next++
	q.signal()
	return nil
}

// after returns the position of the first message that was put in at t or later, Unix time in ns. q.mu is
// held.
func (q *Queue) after(t int64) uint64 {
	oldest := q.next - min(q.next, uint64(len(q.ring)))
	return oldest + uint64(sort.Search(int(q.next-oldest), func(i int) bool {
		return q.ring[(oldest+uint64(i))%uint64(len(q.ring))].at >= t
	}))
}

// enter takes q.mu once the queue answers.
func (q *Queue) enter(ctx context.Context) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		q.mu.Lock()
		hung := q.hung
		if q.down {
			q.mu.Unlock()
			return errDown
		}
		if hung == nil {
			return nil
		}
		q.mu.Unlock()
		select {
		case <-hung:
		case <-ctx.Done():
			return fmt.Errorf("the queue hangs: %w", ctx.Err())
		}
	}
}
