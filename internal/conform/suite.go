package conform

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/conn"
	"github.com/lag-monitor/lag-monitor/probe"
	"github.com/lag-monitor/lag-monitor/sinks"
)

const (
	// stopWithin is how long Run and Close may take to end: the contract's two seconds and what a busy
	// machine adds.
	stopWithin = 2*time.Second + 3*time.Second
	// noticeWithin is how long a sink may take to notice that the broker's connections are gone.
	noticeWithin = 30 * time.Second
	// injectTimeout is the deadline that the suite gives to an injection into a broker in trouble.
	injectTimeout = 2 * time.Second
)

// suite is one check at work.
type suite struct {
	*testing.T
	h Harness
	Pipeline
	*source
}

func (s *suite) eventually(what string, cond func() bool) {
	s.Helper()
	if !until(s.Within, cond) {
		s.Fatalf("%s: not within %s", what, s.Within)
	}
}

// sleep sleeps for d, and returns the longest time for which the machine kept this process from going on meanwhile.
func sleep(d time.Duration) (held time.Duration) {
	const step = 10 * time.Millisecond
	end := time.Now().Add(d)
	for last := time.Now(); last.Before(end); {
		time.Sleep(step)
		now := time.Now()
		held, last = max(held, now.Sub(last)-step), now
	}
	return held
}

func until(d time.Duration, cond func() bool) bool {
	for deadline := time.Now().Add(d); !cond(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			return cond()
		}
	}
	return true
}

// injector opens the injector and closes it at the end of the check.
func (s *suite) injector() probe.Injector {
	s.Helper()
	c := s.Inject()
	if err := c.Validate(); err != nil {
		s.Fatalf("injector: the harness's configuration is invalid: %v", err)
	}
	in, err := c.Open()
	if err != nil {
		s.Fatalf("injector: open: %v", err)
	}
	s.Cleanup(func() {
		if err := in.Close(); err != nil {
			s.Errorf("injector: close: %v", err)
		}
	})
	return in
}

func (s *suite) sink() sinks.Sink {
	s.Helper()
	c := s.Sink()
	if err := c.Validate(); err != nil {
		s.Fatalf("sink: the harness's configuration is invalid: %v", err)
	}
	sink, err := c.Open()
	if err != nil {
		s.Fatalf("sink: open: %v", err)
	}
	return sink
}

// send injects one heartbeat that has to be accepted.
func (s *suite) send(in probe.Injector, lane uint32) accepted {
	s.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), s.Within)
	defer cancel()
	k, m := s.next(lane)
	if err := in.Inject(ctx, m); err != nil {
		s.Fatalf("inject %v: %v", k, err)
	}
	return accepted{k, time.Now()}
}

// session is one Run of a sink.
type session struct {
	s      *suite
	rec    *recorder
	feed   *sinks.Feed
	cancel context.CancelFunc
	done   chan error
}

// start runs the sink with a new recorder.
func (s *suite) start(sink sinks.Sink) *session {
	return s.startWith(sink, &recorder{src: s.source})
}

func (s *suite) startWith(sink sinks.Sink, rec *recorder) *session {
	ctx, cancel := context.WithCancel(context.Background())
	ss := &session{s: s, rec: rec, feed: sinks.NewFeed(rec, s.keys), cancel: cancel, done: make(chan error, 1)}
	go func() { ss.done <- sink.Run(ctx, ss.feed) }()
	s.Cleanup(func() {
		cancel()
		select {
		case <-ss.done:
		case <-time.After(s.Within):
		}
	})
	return ss
}

// listen runs the sink and waits until it is ready.
func (s *suite) listen(sink sinks.Sink) *session {
	s.Helper()
	ss := s.start(sink)
	ss.waitReady()
	return ss
}

func (ss *session) waitReady() {
	ss.s.Helper()
	for deadline := time.Now().Add(ss.s.Within); !ss.feed.Stats().Ready; time.Sleep(time.Millisecond) {
		select {
		case err := <-ss.done:
			ss.done <- err
			ss.s.Fatalf("Run ended before it was ready: %v", err)
		default:
		}
		if time.Now().After(deadline) {
			ss.s.Fatalf("the sink was not ready within %s", ss.s.Within)
		}
	}
}

// stop ends the context and sees that Run returns nil in time.
func (ss *session) stop() {
	ss.s.Helper()
	began := time.Now()
	ss.cancel()
	select {
	case err := <-ss.done:
		ss.done <- err // for the cleanup
		if err != nil {
			ss.s.Errorf("Run returned %v at the end of its context, not nil", err)
		}
		if took := time.Since(began); took > stopWithin {
			ss.s.Errorf("Run took %s to return after the end of its context", took)
		}
	case <-time.After(stopWithin + 3*time.Second):
		ss.s.Fatalf("Run had not returned %s after the end of its context", stopWithin+3*time.Second)
	}
}

// stopHung is stop while the broker hangs: Run may have noticed that, and ended.
func (ss *session) stopHung() {
	ss.s.Helper()
	select {
	case err := <-ss.done:
		ss.done <- err
		if e := classIs(err, conn.Network); e != nil {
			ss.s.Errorf("Run, while the broker hung: %v", e)
		}
	default:
		ss.stop()
	}
}

// ended waits for Run to end by itself and returns its error.
func (ss *session) ended(within time.Duration) error {
	ss.s.Helper()
	select {
	case err := <-ss.done:
		ss.done <- err
		if err == nil {
			err = errors.New("Run returned nil although its context had not ended")
			ss.s.Error(err)
		}
		return err
	case <-time.After(within):
		ss.s.Fatalf("Run had not ended after %s", within)
		return nil
	}
}

// expect waits for heartbeats to arrive, then gives duplicates a moment to show, and reports
// everything that did not arrive exactly once.
func (ss *session) expect(sent ...accepted) {
	ss.s.Helper()
	missing := func() (out []key) {
		n := ss.rec.arrivals()
		for _, a := range sent {
			if n[a.key] == 0 {
				out = append(out, a.key)
			}
		}
		return out
	}
	if !until(ss.s.Within, func() bool { return len(missing()) == 0 }) {
		m := missing()
		ss.s.Fatalf("%d of %d heartbeats did not arrive within %s: %v", len(m), len(sent), ss.s.Within, m[:min(len(m), 10)])
	}
	time.Sleep(50 * time.Millisecond)
	for k, n := range ss.rec.arrivals() {
		if n > 1 {
			ss.s.Errorf("heartbeat %v arrived %d times", k, n)
		}
	}
	if text := dishonest(ss.rec.log(), sent); text != "" {
		ss.s.Error(text)
	}
}

// only reports heartbeats that arrived although they are none of these.
func (ss *session) only(sent ...accepted) {
	ss.s.Helper()
	want := make(map[key]bool)
	for _, a := range sent {
		want[a.key] = true
	}
	for k := range ss.rec.arrivals() {
		if !want[k] {
			ss.s.Errorf("heartbeat %v arrived here although it had been delivered or refused before", k)
		}
	}
}

// not reports heartbeats that arrived although none of these should have.
func (ss *session) not(what string, sent []accepted) {
	ss.s.Helper()
	n := ss.rec.arrivals()
	for _, a := range sent {
		if n[a.key] > 0 {
			ss.s.Errorf("%s arrived: %v", what, a.key)
		}
	}
}

// past sees that each of these was delivered as one from before the start, or that none was.
func (ss *session) past(sent []accepted, want bool) {
	ss.s.Helper()
	which := make(map[key]bool)
	for _, a := range sent {
		which[a.key] = true
	}
	for _, e := range ss.rec.log() {
		if e.what == arrived && which[e.key] && e.arrival.Past != want {
			ss.s.Errorf("heartbeat %v is of the past: %t, want %t", e.key, e.arrival.Past, want)
		}
	}
}

func (s *suite) note(text string) { s.Log("does not apply: " + text) }

func classIs(err error, want conn.Class) error {
	if got := conn.ClassOf(err); got != want {
		return fmt.Errorf("class %s, want %s: %w", got, want, err)
	}
	return nil
}
