package memory

import (
	"context"
	"errors"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/conn"
	"github.com/lag-monitor/lag-monitor/probe"
	"github.com/lag-monitor/lag-monitor/sinks"
)

// InjectorConfig makes injectors that write into a queue.
type InjectorConfig struct {
	Queue *Queue         `yaml:"-"`
	Body  probe.Template // zero means probe.DefaultBody
}

// Validate implements probe.Config.
func (c *InjectorConfig) Validate() error {
	if c.Queue == nil {
		return conn.Field("queue", "is required")
	}
	return conn.Prefix("body", probe.CheckToken(c.body()))
}

var defaultBody = probe.MustTemplate(probe.DefaultBody)

func (c *InjectorConfig) body() probe.Template {
	if c.Body.IsZero() {
		return defaultBody
	}
	return c.Body
}

// Open implements probe.Config.
func (c *InjectorConfig) Open() (probe.Injector, error) {
	return &Injector{queue: c.Queue, body: c.body()}, nil
}

// Injector writes heartbeats into a Queue. It implements probe.BatchInjector and probe.Laner.
type Injector struct {
	queue  *Queue
	body   probe.Template
	closed atomic.Bool
}

var errClosed = probe.Refused(errors.New("the injector is closed"))

// Inject implements probe.Injector. Every error of it is a refusal: a message is in the queue or not.
func (i *Injector) Inject(ctx context.Context, m *probe.Message) error {
	if i.closed.Load() {
		return errClosed
	}
	return probe.Refused(i.queue.put(ctx, func(dst []byte) ([]byte, error) { return i.body.Append(dst, m) }))
}

// InjectBatch implements probe.BatchInjector.
func (i *Injector) InjectBatch(ctx context.Context, ms []*probe.Message, errs []error) {
	for n, m := range ms {
		errs[n] = i.Inject(ctx, m)
	}
}

// Lanes implements probe.Laner.
func (i *Injector) Lanes(context.Context) ([]uint32, error) {
	lanes := make([]uint32, i.queue.lanes)
	for n := range lanes {
		lanes[n] = uint32(n)
	}
	return lanes, nil
}

// Check implements probe.Checker.
func (i *Injector) Check(ctx context.Context) error { return i.queue.check(ctx) }

// Close implements probe.Injector.
func (i *Injector) Close() error {
	i.closed.Store(true)
	return nil
}

func (q *Queue) check(ctx context.Context) error {
	if err := q.enter(ctx); err != nil {
		return err
	}
	q.mu.Unlock()
	return nil
}

// SinkConfig makes sinks that read a queue from its end.
type SinkConfig struct {
	Queue *Queue `yaml:"-"`
}

// Validate implements sinks.Config.
func (c *SinkConfig) Validate() error {
	if c.Queue == nil {
		return conn.Field("queue", "is required")
	}
	return nil
}

// Open implements sinks.Config.
func (c *SinkConfig) Open() (sinks.Sink, error) { return &Sink{queue: c.Queue}, nil }

// Sink reads a Queue from a position of its own. It implements sinks.Resumer, sinks.LookBacker and
// sinks.Checker.
type Sink struct {
	queue *Queue
	pos   atomic.Uint64 // position of the next message to read, plus one; 0: not known yet
	since atomic.Int64  // where to start without a position, Unix time in ns; 0: at the end
	past  uint64        // what is before this position was there before the sink; of Run alone
}

// caughtUpEvery is how often an idle sink says so.
const caughtUpEvery = 500 * time.Millisecond

// batch is how many messages Run copies out of the queue under one lock.
const batch = 256

// Run implements sinks.Sink.
func (s *Sink) Run(ctx context.Context, f *sinks.Feed) error {
	tick := time.NewTicker(caughtUpEvery)
	defer tick.Stop()
	var (
		buf   []byte
		ends  [batch]int
		times [batch]int64
	)
	for started := false; ; {
		asked := time.Now()
		if err := s.queue.enter(ctx); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		q := s.queue
		wake := q.wake
		pos := s.pos.Load()
		trimmed := false
		if pos == 0 {
			pos = q.next + 1
			if since := s.since.Load(); since != 0 {
				pos, s.past = q.after(since)+1, q.next
			}
			s.pos.Store(pos)
		}
		at := pos - 1
		if at > q.next { // the position is of another life of this queue
			at, trimmed = q.next, true
		} else if oldest := q.next - min(q.next, uint64(len(q.ring))); at < oldest {
			at, trimmed = oldest, true
		}
		first := at
		buf = buf[:0]
		n := 0
		for ; n < batch && at < q.next; n, at = n+1, at+1 {
			m := &q.ring[at%uint64(len(q.ring))]
			buf = append(buf, m.body...)
			ends[n], times[n] = len(buf), m.at
		}
		more := at < q.next
		q.waits = q.waits || !more
		q.mu.Unlock()

		if trimmed {
			f.Gap("trimmed")
		}
		if !started {
			started = true
			f.Ready()
		}
		for i, from := 0, 0; i < n; i++ {
			at := first + uint64(i)
			f.Deliver(sinks.Message{Body: buf[from:ends[i]], ID: at + 1, Enqueued: time.Unix(0, times[i]), Past: at < s.past})
			from = ends[i]
		}
		s.pos.Store(at + 1)
		if more {
			continue
		}
		f.CaughtUp(asked)
		select {
		case <-wake:
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// Check implements sinks.Checker.
func (s *Sink) Check(ctx context.Context) error { return s.queue.check(ctx) }

const part = "0"

// Position implements sinks.Resumer.
func (s *Sink) Position() map[string]string {
	pos := s.pos.Load()
	if pos == 0 {
		return map[string]string{}
	}
	return map[string]string{part: strconv.FormatUint(pos-1, 10)}
}

// LookBack implements sinks.LookBacker.
func (s *Sink) LookBack(since time.Time) { s.since.Store(since.UnixNano()) }

// Resume implements sinks.Resumer.
func (s *Sink) Resume(pos map[string]string) {
	if n, err := strconv.ParseUint(pos[part], 10, 63); err == nil {
		s.pos.Store(n + 1)
	}
}
