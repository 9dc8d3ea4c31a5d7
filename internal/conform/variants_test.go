package conform_test

import (
	"context"
	"errors"
	"flag"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/conform"
	"github.com/lag-monitor/lag-monitor/internal/conn"
	"github.com/lag-monitor/lag-monitor/probe"
	"github.com/lag-monitor/lag-monitor/sinks"
)

// variants are transports with one fault each, and the check that has to find it.
var variants = []struct{ fault, check, text string }{
	{"", "", ""}, // without a fault every check passes
	{"invalid", "config", "harness's configuration is invalid"},
	{"drops one", "concurrent", "did not arrive"},
	{"twice", "delivers", "arrived 2 times"},
	{"no time", "delivers", "the broker's time is"},
	{"consumes", "ordinary", "took some away"},
	{"steals", "ordinary", "did not arrive"},
	{"others uncounted", "ordinary", "messages by kind"},
	{"skips odd tokens", "tokens", "messages by kind"},
	{"ready too early", "ready", "did not arrive"},
	{"never ready", "ready", "was not ready within"},
	{"silent when idle", "idle", "no claim to be caught up"},
	{"claims the future", "idle", "before that time"},
	{"claims too early", "caught_up", "caught up with "}, // two places may see it first
	{"claims behind a backlog", "caught_up", "caught up"},
	{"ignores the context", "ends", "after the end of its context"},
	{"returns the context's error", "ends", "not nil"},
	{"ignores the context while hanging", "hangs", "after the end of its context"},
	{"injects without a deadline", "hangs", "with a deadline of"},
	{"refuses what it sends", "hangs", "although its injection was refused"},
	{"does not resume", "again", "did not arrive"},
	{"gap for nothing", "again", "a gap was reported"},
	{"no gap", "again", "without having reported a gap"},
	{"starts from the beginning", "position", "delivered or refused before"},
	{"position of nothing", "position", "did not arrive"},
	{"forgets a resumed position", "position", "says that its position is"},
	{"fails at foreign parts", "position", "ended before it was ready"},
	{"sleeps through a restart", "restart", "had not ended after"},
	{"wrong class", "restart", "class other, want network"},
	{"sends late", "restart", "although its injection was refused"},
	{"does not recover", "restart", "did not recover"},
	{"ignores since", "look_back", "did not arrive"},
	{"looks back to the beginning", "look_back", "from before the look-back arrived"},
	{"looks back again", "look_back", "of the former Run arrived"},
	{"looks back behind its position", "look_back", "from before the position arrived"},
	{"claims before it has looked back", "look_back", "caught up with everything before"},
	{"looks back as if it were now", "look_back", "is of the past: false"},
	{"takes all for the past", "look_back", "is of the past: true"},
	{"gap for a look-back", "look_back", "a gap was reported"},
	{"does not look back", "look_back", "is a LookBacker: false"},
	{"same identity", "ids", "the same identity"},
	{"new identity", "ids", "when it is read again"},
	{"one at a time", "concurrent", "inject"},
	{"batch leaves errors", "batch", "not overwritten"},
	{"accepts after the end", "cancelled", "no error although"},
	{"closes slowly", "close", "close took"},
	{"closes once", "close", "close:"},
	{"accepts after close", "close", "after it was closed"},
	{"check sees nothing", "check", "found nothing wrong"},
	{"check sees ghosts", "check", "which works"},
	{"unsure of a refusal", "check", "leaves open"},
	{"leaks", "ends", "left goroutines behind"},
}

// The faulty transports spend their time waiting, so more of them run at once than there are cores.
func TestMain(m *testing.M) {
	flag.Parse()
	if err := flag.Set("test.parallel", "16"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

// faultVariable carries the fault into the process that is meant to fail.
const faultVariable = "LAG_MONITOR_CONFORM_FAULT"

// Each fault turns the suite red, in the check that is there for it. Each runs in a process of its
// own, since a test cannot survive the failure of its subtest.
func TestSuiteCanFail(t *testing.T) {
	if fault, ok := os.LookupEnv(faultVariable); ok {
		conform.Run(t, faulty(fault))
		return
	}
	for _, v := range variants {
		t.Run(v.fault, func(t *testing.T) {
			t.Parallel()
			cmd := exec.Command(os.Args[0], "-test.run=^TestSuiteCanFail$/^"+v.check+"$", "-test.v", "-test.timeout=2m")
			if v.check == "" {
				cmd.Args[1] = "-test.run=^TestSuiteCanFail$"
			}
			cmd.Env = append(os.Environ(), faultVariable+"="+v.fault)
			out, err := cmd.CombinedOutput()
			switch {
			case v.fault == "" && err != nil:
				t.Errorf("the transport without a fault fails: %v\n%s", err, out)
			case v.fault != "" && err == nil:
				t.Errorf("check %s does not see it\n%s", v.check, out)
			case !strings.Contains(string(out), v.text):
				t.Errorf("check %s fails without the words %q\n%s", v.check, v.text, out)
			}
		})
	}
}

func faulty(fault string) conform.Harness {
	return conform.Harness{Kind: "faulty", New: func(*testing.T) conform.Pipeline {
		q := &faultyQueue{fault: fault, taken: make(map[int]bool)}
		dead := &faultyQueue{fault: fault, down: true}
		return conform.Pipeline{
			Inject: func() probe.Config { return &faultyConfig[probe.Injector]{q, &faultyInjector{q: q}} },
			Sink:   func() sinks.Config { return &faultyConfig[sinks.Sink]{q, q.sink()} },
			Put: func(_ *testing.T, bodies ...[]byte) {
				for _, b := range bodies {
					q.append(b)
				}
			},
			Keeps: fault != "no gap", LooksBack: fault != "no gap", IDs: true, Enqueued: true, Within: 2 * time.Second,
			Remaining: func(*testing.T) int { return q.len() },
			Stop:      func() { q.set(func() { q.down = true }) },
			Start:     q.start,
			Hang: func() func() {
				q.set(func() { q.hung = true })
				return func() { q.set(func() { q.hung = false }) }
			},
			Broken: []conform.Broken{{
				Name:   "down",
				Inject: func() probe.Config { return &faultyConfig[probe.Injector]{dead, &faultyInjector{q: dead}} },
				Sink:   func() sinks.Config { return &faultyConfig[sinks.Sink]{dead, dead.sink()} },
				Class:  conn.Network,
			}},
		}
	}}
}

// faultyConfig opens always the one end that it was made with.
type faultyConfig[T any] struct {
	q   *faultyQueue
	end T
}

func (c *faultyConfig[T]) Open() (T, error) { return c.end, nil }

func (c *faultyConfig[T]) Validate() error {
	if c.q.fault == "invalid" {
		return conn.Field("queue", "is wrong")
	}
	return nil
}

// faultyQueue is a small polling transport with one fault.
type faultyQueue struct {
	fault string

	mu         sync.Mutex
	msgs       [][]byte
	times      []time.Time // of msgs
	late       [][]byte    // fault "sends late"
	taken      map[int]bool
	down, hung bool
	stops      int
	readers    int
}

func (q *faultyQueue) set(f func()) {
	q.mu.Lock()
	defer q.mu.Unlock()
	f()
}

func (q *faultyQueue) start() {
	q.set(func() {
		q.down = false
		q.stops++
		for _, b := range q.late {
			q.msgs, q.times = append(q.msgs, b), append(q.times, time.Now())
		}
	})
}

func (q *faultyQueue) append(b []byte) {
	q.set(func() { q.msgs, q.times = append(q.msgs, append([]byte(nil), b...)), append(q.times, time.Now()) })
}

func (q *faultyQueue) len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.msgs) - len(q.taken)
}

func (q *faultyQueue) state() (n int, down, hung bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.msgs), q.down, q.hung
}

func (q *faultyQueue) sink() sinks.Sink {
	s := &faultySink{q: q, pos: -1}
	q.set(func() { q.readers++; s.reader = q.readers })
	switch q.fault {
	case "no gap":
		return struct {
			sinks.Sink
			probe.Checker
		}{s, s}
	case "does not look back":
		return struct {
			sinks.Sink
			sinks.Resumer
			probe.Checker
		}{s, s, s}
	}
	return s
}

type faultyInjector struct {
	q      *faultyQueue
	mu     sync.Mutex
	closed bool
	n      int
	busy   bool
}

var errFaulty = errors.New("the queue is down")

func (i *faultyInjector) Inject(ctx context.Context, m *probe.Message) error {
	fault := i.q.fault
	i.mu.Lock()
	i.n++
	n, closed, busy := i.n, i.closed, i.busy
	i.busy = true
	i.mu.Unlock()
	defer func() { i.mu.Lock(); i.busy = false; i.mu.Unlock() }()
	if fault == "one at a time" && busy {
		return errors.New("another injection is going on")
	}
	if closed && fault != "accepts after close" {
		return probe.Refused(errors.New("closed"))
	}
	if ctx.Err() != nil && fault != "accepts after the end" {
		return probe.Refused(ctx.Err())
	}
	time.Sleep(100 * time.Microsecond)
	body := []byte(m.Token)
	_, down, hung := i.q.state()
	if hung {
		<-ctx.Done()
		if fault == "injects without a deadline" {
			time.Sleep(4 * time.Second)
		}
		if fault == "refuses what it sends" {
			i.q.append(body)
		}
		return probe.Refused(ctx.Err())
	}
	if down || fault == "does not recover" && i.q.stops > 0 {
		if fault == "sends late" {
			i.q.set(func() { i.q.late = append(i.q.late, body) })
		}
		if fault == "unsure of a refusal" {
			return conn.WithClass(conn.Network, errFaulty)
		}
		return probe.Refused(conn.WithClass(conn.Network, errFaulty))
	}
	if fault == "drops one" && n == 17 {
		return nil
	}
	i.q.append(body)
	return nil
}

func (i *faultyInjector) InjectBatch(ctx context.Context, ms []*probe.Message, errs []error) {
	for n, m := range ms {
		if err := i.Inject(ctx, m); err != nil || i.q.fault != "batch leaves errors" {
			errs[n] = err
		}
	}
}

func (i *faultyInjector) Check(context.Context) error { return i.q.check() }

func (q *faultyQueue) check() error {
	_, down, _ := q.state()
	switch {
	case q.fault == "check sees ghosts":
		return errFaulty
	case down && q.fault != "check sees nothing":
		return conn.WithClass(conn.Network, errFaulty)
	}
	return nil
}

func (i *faultyInjector) Close() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.q.fault == "closes slowly" {
		time.Sleep(6 * time.Second)
	}
	if i.closed && i.q.fault == "closes once" {
		return errors.New("closed already")
	}
	i.closed = true
	return nil
}

type faultySink struct {
	q      *faultyQueue
	reader int

	mu  sync.Mutex
	pos int // -1: at the end
	bad bool

	since time.Time
	past  int // messages before this one were there before the sink
}

func (s *faultySink) LookBack(since time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.since = since
	if s.q.fault == "looks back behind its position" {
		s.pos = -1
	}
}

// begin returns where to start without a position, given how many messages there are.
func (s *faultySink) begin(n int) int {
	fault := s.q.fault
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.since.IsZero() || fault == "ignores since" {
		return n
	}
	if s.past = n; fault == "takes all for the past" {
		s.past = 1 << 30
	}
	s.q.mu.Lock()
	defer s.q.mu.Unlock()
	for i, t := range s.q.times[:n] {
		if fault == "looks back to the beginning" || !t.Before(s.since) {
			return i
		}
	}
	return n
}

func (s *faultySink) Check(context.Context) error { return s.q.check() }

func (s *faultySink) Position() map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pos < 0 {
		return map[string]string{}
	}
	return map[string]string{"0": strconv.Itoa(s.pos)}
}

func (s *faultySink) Resume(pos map[string]string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bad = len(pos) > 1
	switch n, err := strconv.Atoi(pos["0"]); {
	case err != nil || s.q.fault == "forgets a resumed position" && !s.bad && n > 2:
	case s.q.fault == "starts from the beginning":
		s.pos = 0
	default:
		s.pos = n
	}
}

func (s *faultySink) Run(ctx context.Context, f *sinks.Feed) error {
	fault := s.q.fault
	if fault == "leaks" {
		go time.Sleep(10 * time.Second)
	}
	if fault == "fails at foreign parts" && s.bad {
		return errors.New("what part is that")
	}
	s.mu.Lock()
	pos := s.pos
	s.mu.Unlock()
	again := pos >= 0
	if fault == "looks back again" && !s.since.IsZero() {
		pos = -1
	}
	if fault == "gap for a look-back" && !s.since.IsZero() {
		f.Gap("fault")
	}
	if fault == "does not resume" {
		pos = -1
	}
	if fault == "gap for nothing" && again {
		f.Gap("fault")
	}
	up := false
	claimed := time.Time{}
	for {
		asked := time.Now()
		n, down, hung := s.q.state()
		if down && fault != "sleeps through a restart" {
			if fault == "wrong class" {
				return errFaulty
			}
			return conn.WithClass(conn.Network, errFaulty)
		}
		if !down && !hung {
			if fault == "ready too early" && !up {
				up = true
				f.Ready()
				time.Sleep(5 * time.Millisecond)
				n, _, _ = s.q.state()
			}
			looking := false
			if pos < 0 {
				pos = s.begin(n)
				looking = pos < n
			}
			if !up && fault != "never ready" {
				up = true
				if fault != "position of nothing" {
					s.keep(pos)
				}
				f.Ready()
			}
			if fault == "claims too early" && n > pos {
				f.CaughtUp(asked)
			}
			if fault == "claims before it has looked back" && looking {
				f.CaughtUp(asked)
			}
			s.deliver(f, pos, n)
			if n > pos {
				s.keep(n)
			}
			// The claim that hides a backlog comes right behind each: the paced one would seldom meet it.
			behind := fault == "claims behind a backlog" && n-pos > 10
			pos = n
			due := time.Since(claimed) > 100*time.Millisecond && (fault != "silent when idle" || claimed.IsZero())
			if up && (due || behind) {
				claimed = asked
				switch {
				case fault == "claims the future":
					asked = asked.Add(time.Second)
				case behind:
					asked = time.Now().Add(50 * time.Millisecond)
				}
				f.CaughtUp(asked)
			}
		}
		if fault == "ignores the context" || fault == "ignores the context while hanging" && hung {
			time.Sleep(7 * time.Second)
		}
		select {
		case <-ctx.Done():
			if fault == "returns the context's error" {
				return ctx.Err()
			}
			return nil
		case <-time.After(time.Millisecond):
		}
	}
}

func (s *faultySink) keep(pos int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pos = pos
}

func (s *faultySink) deliver(f *sinks.Feed, from, to int) {
	fault := s.q.fault
	for i := from; i < to; i++ {
		s.q.mu.Lock()
		body := s.q.msgs[i]
		if fault == "consumes" || fault == "steals" {
			if s.q.taken[i] && fault == "steals" {
				s.q.mu.Unlock()
				continue
			}
			s.q.taken[i] = true
		}
		s.q.mu.Unlock()
		m := sinks.Message{Body: body, ID: uint64(i + 1), Enqueued: time.Now(), Past: i < s.past && fault != "looks back as if it were now"}
		switch {
		case fault == "no time":
			m.Enqueued = time.Time{}
		case fault == "same identity":
			m.ID = 1
		case fault == "new identity":
			m.ID += uint64(s.reader) << 32
		case fault == "others uncounted" && string(body[:1]) == "{" && i%2 == 0,
			fault == "skips odd tokens" && len(body) < 120:
			continue
		}
		if f.Deliver(m) && fault == "twice" {
			f.Deliver(m)
		}
	}
}
