package sinks

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/lag-monitor/lag-monitor/internal/conn"
	"github.com/lag-monitor/lag-monitor/internal/heartbeat"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// ear is a Receiver that notes what it is told.
type ear struct {
	mu       sync.Mutex
	ups      []bool
	beats    []heartbeat.Heartbeat
	caughtUp time.Time
	gaps     []string
}

func (e *ear) Heartbeat(h *heartbeat.Heartbeat, _ Arrival) Kind {
	e.mu.Lock()
	defer e.mu.Unlock()
	if h.Probe != "mine" {
		return Foreign
	}
	e.beats = append(e.beats, *h)
	return Heartbeat
}

func (e *ear) Ready(up bool, _ time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.ups = append(e.ups, up)
}

func (e *ear) CaughtUp(t time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.caughtUp = t
}

func (e *ear) Gap(_ time.Time, reason string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.gaps = append(e.gaps, reason)
}

// run is a Sink that is one function.
type run func(ctx context.Context, f *Feed) error

func (r run) Run(ctx context.Context, f *Feed) error { return r(ctx, f) }

var silent = slog.New(slog.DiscardHandler)

func theJitter() *rand.Rand { return rand.New(rand.NewPCG(1, 1)) }

func TestListenReconnects(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &ear{}
		f := NewFeed(e, nil)
		var starts []time.Time
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		Listen(ctx, run(func(_ context.Context, f *Feed) error {
			starts = append(starts, time.Now())
			return conn.WithClass(conn.Auth, errors.New("bad password"))
		}), f, silent, theJitter())
		if n := len(starts); n < 8 || n > 30 {
			t.Errorf("%d attempts in a minute", n)
		}
		if d := starts[1].Sub(starts[0]); d > time.Second {
			t.Errorf("the second attempt comes after %s", d)
		}
		for i := 2; i < len(starts); i++ {
			if d := starts[i].Sub(starts[i-1]); d > 10*time.Second {
				t.Errorf("a pause of %s", d)
			}
		}
		if n := f.Stats().Errors[conn.Auth]; n != uint64(len(starts)) && n != uint64(len(starts)-1) {
			t.Errorf("%d errors counted for %d attempts", n, len(starts))
		}
	})
}

// The same jitter gives the same pauses: what decides when a sink comes back is in the caller's hand.
func TestListenPausesByItsJitter(t *testing.T) {
	pauses := func(seed uint64) (d []time.Duration) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			began := time.Now()
			Listen(ctx, run(func(context.Context, *Feed) error {
				d = append(d, time.Since(began))
				return errors.New("not today")
			}), NewFeed(&ear{}, nil), silent, rand.New(rand.NewPCG(seed, 1)))
		})
		return d
	}
	a, b, c := pauses(1), pauses(1), pauses(2)
	if !slices.Equal(a, b) {
		t.Errorf("the same jitter gives attempts at %s and at %s", a, b)
	}
	if slices.Equal(a, c) {
		t.Errorf("every jitter gives attempts at %s", a)
	}
}

func TestListenEndsAStall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &ear{}
		f := NewFeed(e, nil)
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		Listen(ctx, run(func(ctx context.Context, f *Feed) error {
			f.Ready()
			f.CaughtUp(time.Now())
			<-ctx.Done() // and never a word again
			return nil
		}), f, silent, theJitter())
		if n := f.Stats().Errors[conn.Network]; n < 2 || n > 4 {
			t.Errorf("%d reconnects of a silent sink in two minutes", n)
		}
		if len(e.ups) < 4 || e.ups[0] != true || e.ups[1] != false {
			t.Errorf("ups %v", e.ups)
		}
	})
}

func TestListenLeavesAHealthySinkAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &ear{}
		f := NewFeed(e, nil)
		runs := 0
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		defer cancel()
		Listen(ctx, run(func(ctx context.Context, f *Feed) error {
			runs++
			f.Ready()
			for ctx.Err() == nil {
				f.CaughtUp(time.Now())
				time.Sleep(500 * time.Millisecond)
			}
			return nil
		}), f, silent, theJitter())
		if runs != 1 {
			t.Errorf("%d runs of a healthy sink", runs)
		}
	})
}

// deaf is a Receiver that panics at every heartbeat.
type deaf struct{ ear }

func (*deaf) Heartbeat(*heartbeat.Heartbeat, Arrival) Kind { panic("a receiver's mistake") }

// TestListenStartsAgain after everything that ends Run out of turn, and counts it once.
func TestListenStartsAgain(t *testing.T) {
	token := heartbeat.NewKeyring().Append(nil, &heartbeat.Heartbeat{Probe: "p", Seq: 1, Sent: time.Now()})
	for what, c := range map[string]struct {
		run  run
		want string
	}{
		"the driver panics":             {func(context.Context, *Feed) error { panic("a\ndriver's mistake") }, "the driver panicked: a driver's mistake"},
		"the driver panics with nil":    {func(context.Context, *Feed) error { panic(nil) }, "the driver panicked: panic called with nil argument"}, //nolint:govet // on purpose
		"the receiver panics":           {func(_ context.Context, f *Feed) error { f.Deliver(Message{Body: token}); return nil }, "the driver panicked: a receiver's mistake"},
		"the driver ends its goroutine": {func(context.Context, *Feed) error { runtime.Goexit(); return nil }, "the driver ended its goroutine"},
		"the driver just returns":       {func(context.Context, *Feed) error { return nil }, "the driver stopped by itself"},
	} {
		synctest.Test(t, func(t *testing.T) {
			f := NewFeed(&deaf{}, nil)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			runs := uint64(0)
			var log bytes.Buffer
			Listen(ctx, run(func(ctx context.Context, f *Feed) error {
				runs++
				f.Ready()
				return c.run(ctx, f)
			}), f, slog.New(slog.NewTextHandler(&log, nil)), theJitter())
			st := f.Stats()
			if st.LastError == nil || st.LastError.Error() != c.want || st.Ready || runs < 5 || st.Errors[conn.Other] < runs-1 || st.Errors[conn.Other] > runs {
				t.Errorf("%s: %d runs, last error %v; want %q\n%+v", what, runs, st.LastError, c.want, st)
			}
			if stacks := uint64(strings.Count(log.String(), "stack=")); strings.Contains(c.want, "panicked") != (stacks >= runs-1) {
				t.Errorf("%s: %d stacks in the log of %d runs:\n%s", what, stacks, runs, log.String())
			}
		})
	}
}

func TestDeliverCounts(t *testing.T) {
	e := &ear{}
	keys := heartbeat.NewKeyring([]byte("k"))
	f := NewFeed(e, keys)
	h := heartbeat.Heartbeat{Probe: "mine", Seq: 1, Sent: time.Now()}
	mine := string(keys.Append(nil, &h))
	h.Seq = 2
	second := string(keys.Append(nil, &h))
	h.Probe = "theirs"
	theirs := string(keys.Append(nil, &h))
	unsigned := string(heartbeat.NewKeyring().Append(nil, &h))

	for _, c := range []struct {
		name         string
		header, body string
		ours         bool
		counted      map[Kind]uint64
	}{
		{"nothing", "", `{"order":17}`, false, map[Kind]uint64{Other: 1}},
		{"empty", "", "", false, map[Kind]uint64{Other: 1}},
		{"in the body", "", `{"heartbeat":"` + mine + `"}`, true, map[Kind]uint64{Heartbeat: 1}},
		{"in header and body", mine, `{"heartbeat":"` + mine + `"}`, true, map[Kind]uint64{Heartbeat: 1}},
		{"two in one message", "", mine + second, true, map[Kind]uint64{Heartbeat: 2}},
		{"of another probe", theirs, "", false, map[Kind]uint64{Foreign: 1}},
		{"cut short", "", mine[:len(mine)-4], false, map[Kind]uint64{Corrupt: 1}},
		{"not signed", "", unsigned, false, map[Kind]uint64{Corrupt: 1}},
		{"the magic alone", "", "see ~lagmon1.", false, map[Kind]uint64{Corrupt: 1}},
	} {
		before := f.Stats().Messages
		if ours := f.Deliver(Message{Header: []byte(c.header), Body: []byte(c.body)}); ours != c.ours {
			t.Errorf("%s: ours %v", c.name, ours)
		}
		for _, k := range AllKinds() {
			if n := f.Stats().Messages[k] - before[k]; n != c.counted[k] {
				t.Errorf("%s: %d counted as %s, want %d", c.name, n, k, c.counted[k])
			}
		}
	}
}

func TestCaughtUpNeverGoesBack(t *testing.T) {
	e := &ear{}
	f := NewFeed(e, nil)
	now := time.Now()
	f.CaughtUp(now)
	f.CaughtUp(now.Add(-time.Second))
	if !e.caughtUp.Equal(now) || !f.Stats().CaughtUp.Equal(now) {
		t.Errorf("caught up %v", e.caughtUp)
	}
}
