package sinks

import (
	"context"
	"sync"
	"time"
)

// Sink listens on one destination queue. The loop (Listen) owns it: it calls Run, and calls it again
// after an error, with backoff, never twice at once. A sink keeps its position in the queue between
// calls of Run, so that the next one goes on where the last one ended.
type Sink interface {
	// Run connects, calls f.Ready once it is certain that every message which enters the queue from
	// now on (or after its last position) will be delivered, delivers messages to f until ctx ends,
	// and releases everything it holds. It returns nil when ctx ended and else the error that stopped
	// it, marked with conn.WithClass where the driver knows better than conn.ClassOf. Run does not
	// retry a lost connection and does not log; it returns within seconds of the end of ctx, whatever
	// the other side does. A panic of Run is contained and counts as an error of class other. A panic on
	// a goroutine that Run has started cannot be contained by anybody else and ends the process: such a
	// goroutine defers conn.Contain and hands the error to Run.
	Run(ctx context.Context, f *Feed) error
}

// Resumer is implemented by sinks whose broker keeps messages: their position can be carried over a
// restart of the monitor. Both methods may be called while Run runs.
type Resumer interface {
	// Position returns, for each part of the queue (a partition, a shard), the last position of which
	// everything before was delivered.
	Position() map[string]string
	// Resume sets the positions to start from, before the first Run. Unknown parts are ignored.
	Resume(map[string]string)
}

// Settler is implemented by a Resumer that lets its broker forget what it was given only when that is in the journal.
type Settler interface {
	// Settle says that the journal is on the disk with the position that Position has returned last, and with the outcome of
	// all that had been delivered by then. It may be called while Run runs. Where no call of it comes, because the disk
	// fails, the sink waits for a while and then goes on without.
	Settle()
}

// settlement counts what a Settler has delivered, and how much of that the broker may forget. A sink of which nobody ever
// asks the position has no journal behind it, and holds nothing back. The zero value is ready, and safe for concurrent use.
type settlement struct {
	mu                        sync.Mutex
	delivered, asked, written uint64
	journal                   bool
}

// next counts a message that has been delivered, and returns its number.
func (s *settlement) next() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.delivered++
	return s.delivered
}

// ask notes that the journal is about to be written.
func (s *settlement) ask() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.journal, s.asked = true, s.delivered
}

// settle notes that it was written, and reports whether there is more that the broker may forget.
func (s *settlement) settle() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	more := s.asked > s.written
	s.written = s.asked
	return more
}

// free returns the number of the last message that the broker may forget.
func (s *settlement) free() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.journal {
		return s.delivered
	}
	return s.written
}

// LookBacker is implemented by sinks whose broker keeps messages and finds them by the time at which they
// entered the queue.
type LookBacker interface {
	// LookBack sets where to start for want of a position: with the messages that entered the queue at
	// since or later. It is called before the first Run at most, and does nothing for a sink that was
	// resumed or whose configuration names another start than the end. since is compared with the
	// broker's clock as it is, whatever the two clocks differ by, and is a lower limit only: a driver may
	// deliver a little more.
	//
	// Nothing else changes. Ready does not wait for the old messages, CaughtUp does, and what lies before
	// since is no Gap. Old messages are delivered with Message.Past. Where the broker cannot tell the place
	// (it keeps no times, it refuses, it has trimmed the time away) the sink starts at the end, or at the
	// oldest message there is. On a queue so busy that reading it takes long the sink leaves old messages
	// out, the older ones rather than the younger.
	LookBack(since time.Time)
}

// Backlog is how many messages wait in a queue, and for how long. Negative means not known.
type Backlog struct {
	Queue, Group, Partition string
	Messages                float64
	Seconds                 float64
	Consumers               float64
}

// Backlogger is implemented by sinks that can tell the backlog of their queue: a cause, for the
// dashboard.
type Backlogger interface {
	Backlog(ctx context.Context) ([]Backlog, error)
}

// Expirer is implemented by a sink whose queue may hold heartbeats that the broker discards after their time
// to live, wherever they were injected.
type Expirer interface {
	// Expires reports whether it does so here. A heartbeat that nobody read in that time is not a loss.
	Expires() bool
}

// Checker is implemented by sinks that can tell whether they would work without receiving anything:
// reach the broker, authenticate, see that the queue exists.
type Checker interface {
	Check(ctx context.Context) error
}

// Message is one message of the queue. Its slices are only valid during Deliver.
type Message struct {
	// Header is the value of the header lag-monitor-heartbeat, where the transport has headers and the
	// message has that one.
	Header []byte
	// Body is the payload. A driver that unwraps an envelope or that has bytes which hold headers and
	// payload together passes what it has: the token is found wherever it is.
	Body []byte
	// ID is the same for two deliveries exactly when the broker handed out the same stored message
	// again (a hash of partition and offset, of a message id); 0 when the transport cannot tell.
	ID uint64
	// Enqueued is when the broker says that the message entered this queue, by the broker's clock; zero
	// when it does not say.
	Enqueued time.Time
	// Past is set when the message had entered the queue before the sink started for the first time, and is
	// delivered because of LookBack: whoever listened then has counted it, and its arrival here says
	// nothing of how long it was under way. Where only clocks tell, it is exact to the second.
	Past bool
	// Dead is set on a message that a broker has dead-lettered, and says why. nil: it was not, or nobody says.
	// It is only valid during Deliver.
	Dead *Death
	// Retries is how many times the message was tried before and put back, by the broker's or the
	// application's word; 0 where nobody says.
	Retries int
}

// Death is why and where a message was dead-lettered the last time.
type Death struct {
	Reason string // one of the Dead… constants; empty or another word when the broker has another
	Queue  string // the queue that the message was taken from
	Count  int    // how many times it was dead-lettered there for this reason; 0: not known
}

// The reasons of a Death. They are the words of RabbitMQ: a driver passes on what it reads.
const (
	DeadRejected      = "rejected"       // a consumer did not want it
	DeadExpired       = "expired"        // its time to live was over
	DeadMaxLen        = "maxlen"         // the queue was full
	DeadDeliveryLimit = "delivery_limit" // it was tried too often
)
