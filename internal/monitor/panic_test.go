package monitor

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/config"
	"github.com/lag-monitor/lag-monitor/internal/conform/memory"
	"github.com/lag-monitor/lag-monitor/internal/conn"
	"github.com/lag-monitor/lag-monitor/probe"
	"github.com/lag-monitor/lag-monitor/sinks"
)

// thrower is an injector whose methods panic on demand.
type thrower struct {
	head
	inject, batch, lanes, end, open, expires atomic.Bool
}

func (x *thrower) may(throw *atomic.Bool) {
	if throw.Load() {
		panic("a driver's mistake")
	}
}

func (x *thrower) Open() (probe.Injector, error) { x.may(&x.open); return x, nil }
func (x *thrower) Close() error                  { x.may(&x.end); return nil }
func (x *thrower) Expires() bool                 { x.may(&x.expires); return false }

func (x *thrower) Inject(ctx context.Context, m *probe.Message) error {
	x.may(&x.inject)
	return x.head(ctx, m)
}

func (x *thrower) Lanes(context.Context) ([]uint32, error) {
	x.may(&x.lanes)
	if x.batch.Load() {
		return []uint32{0, 1}, nil
	}
	return []uint32{0}, nil
}

type batchThrower struct{ *thrower }

func (x batchThrower) Open() (probe.Injector, error) { return x, nil }

func (x batchThrower) InjectBatch(ctx context.Context, ms []*probe.Message, errs []error) {
	errs[0] = x.head(ctx, ms[0])
	panic("a driver's mistake")
}

// throwing runs f with a monitor over a thrower, and returns its log.
func throwing(t *testing.T, f func(r *rig, x *thrower)) string {
	var log bytes.Buffer
	sim(t, func(r *rig) {
		r.m = New(Options{Instance: "here", Grace: 5 * time.Second, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		x := &thrower{head: r.inj.Inject}
		r.cfg.Probes["p"].Inject = x
		f(r, x)
		r.stop()
	})
	return log.String()
}

// told checks that a panic is in the log, with where it happened, n times.
func told(t *testing.T, log string, n int) {
	t.Helper()
	if got := strings.Count(log, `err="the driver panicked: a driver's mistake"`); got != n {
		t.Errorf("the panic is in the log %d times; want %d:\n%s", got, n, log)
	}
	if got := strings.Count(log, "stack="); got != n || !strings.Contains(log, "panic_test.go") {
		t.Errorf("the stack is in the log %d times; want %d:\n%s", got, n, log)
	}
}

// shown checks that the page shows the panic and not the stack.
func shown(t *testing.T, e *ErrorStatus) {
	t.Helper()
	if e == nil || e.Error != "the driver panicked: a driver's mistake" {
		t.Errorf("the page shows %+v", e)
	}
}

// TestInjectPanics: nobody knows whether it was sent, and the next heartbeat is.
func TestInjectPanics(t *testing.T) {
	log := throwing(t, func(r *rig, x *thrower) {
		r.start()
		time.Sleep(10 * time.Second)
		x.inject.Store(true)
		time.Sleep(10 * time.Second)
		p := r.m.Status().Probes[0]
		shown(t, p.LastError)
		if !p.Failing || p.Sent.Unknown != 10 || p.Sent.Failure != 0 {
			t.Errorf("10 panics: %+v", p)
		}
		x.inject.Store(false)
		time.Sleep(30 * time.Second)
		if s := r.pair(); s.Indeterminate != 10 || s.Dropped != 0 || s.InFlight != 0 {
			t.Errorf("10 panics: %+v", s)
		}
	})
	told(t, log, 1)
	if !strings.Contains(log, `msg="injection works again"`) {
		t.Errorf("no word that it works again:\n%s", log)
	}
}

// TestBatchPanics: of what was in the same request nobody knows anything; what arrives is on time.
func TestBatchPanics(t *testing.T) {
	log := throwing(t, func(r *rig, x *thrower) {
		x.batch.Store(true)
		r.cfg.Probes["p"].Inject = batchThrower{x}
		r.start()
		time.Sleep(30 * time.Second)
		p, s := r.m.Status().Probes[0], r.pair()
		shown(t, p.LastError)
		if p.Sent.Failure != 0 || s.OnTime < 29 || s.Indeterminate < 15 || s.Dropped != 0 {
			t.Errorf("a batch of two, of which one was sent: %+v\n%+v", p.Sent, s)
		}
	})
	told(t, log, 1)
}

func TestLanesPanic(t *testing.T) {
	log := throwing(t, func(r *rig, x *thrower) {
		x.lanes.Store(true)
		r.start()
		time.Sleep(10 * time.Second)
		shown(t, r.m.Status().Probes[0].LastError)
		x.lanes.Store(false)
		time.Sleep(10 * time.Second)
		if s := r.pair(); s.OnTime < 9 {
			t.Errorf("after the lanes could be asked: %+v", s)
		}
	})
	if !strings.Contains(log, "stack=") {
		t.Errorf("no stack in the log:\n%s", log)
	}
}

// TestOpenPanics: a reload fails, and what runs goes on.
func TestOpenPanics(t *testing.T) {
	throwing(t, func(r *rig, x *thrower) {
		r.start()
		opens, expires := new(thrower), new(thrower)
		opens.open.Store(true)
		expires.expires.Store(true)
		for what, bad := range map[string]*thrower{"Open": opens, "Expires": expires} {
			cfg := *r.cfg
			changed := *cfg.Probes["p"]
			changed.Inject, changed.RunFingerprint = bad, what
			cfg.Probes = map[string]*config.Probe{"p": &changed}
			if err := r.m.Apply(&cfg); err == nil || err.Error() != "probe p: the driver panicked: a driver's mistake" {
				t.Errorf("%s panics: %v", what, err)
			}
		}
		cfg := *r.cfg
		changed := *cfg.Sinks["out"]
		changed.Config, changed.Fingerprint = throwingSink{open: true}, "2"
		cfg.Sinks = map[string]*config.Sink{"out": &changed}
		if err := r.m.Apply(&cfg); err == nil || err.Error() != "sink out: the driver panicked: a driver's mistake" {
			t.Errorf("Open of a sink panics: %v", err)
		}
		time.Sleep(10 * time.Second)
		if s := r.pair(); s.OnTime < 10 {
			t.Errorf("what ran before does not go on: %+v", s)
		}
	})
}

func TestClosePanics(t *testing.T) {
	log := throwing(t, func(r *rig, x *thrower) {
		x.end.Store(true)
		r.start()
		time.Sleep(5 * time.Second)
		if s := r.pair(); s.OnTime < 5 {
			t.Errorf("%+v", s)
		}
	})
	told(t, log, 1)
}

// throwingSink panics in the middle of every third message.
type throwingSink struct {
	open bool
	sinks.Sink
	seen *int
}

func (x throwingSink) Validate() error { return nil }

func (x throwingSink) Open() (sinks.Sink, error) {
	if x.open {
		panic("a driver's mistake")
	}
	return x, nil
}

func (x throwingSink) Run(ctx context.Context, f *sinks.Feed) error {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- x.Sink.Run(ctx, f) }()
	defer func() {
		cancel()
		<-ended
	}()
	for start := *x.seen; ; {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Second):
			if *x.seen++; *x.seen >= start+3 && *x.seen < 30 {
				panic("a driver's mistake")
			}
		}
	}
}

// TestSinkPanics: the sink is started again and goes on where it was; nobody is accused.
func TestSinkPanics(t *testing.T) {
	log := throwing(t, func(r *rig, x *thrower) {
		inner, err := (&memory.SinkConfig{Queue: r.queue}).Open()
		if err != nil {
			t.Fatal(err)
		}
		r.cfg.Sinks["out"].Config = throwingSink{Sink: inner, seen: new(int)}
		r.start()
		time.Sleep(100 * time.Second)
		out := r.m.Status().Sinks[0]
		shown(t, out.LastError)
		if n := out.Errors[string(conn.Other)]; n < 5 || n > 10 {
			t.Errorf("%d errors of class other; want one for each panic: %v", n, out.Errors)
		}
		time.Sleep(30 * time.Second)
		if s := r.pair(); s.OnTime < 100 || s.Dropped != 0 || s.Indeterminate != 0 || s.Duplicated != 0 {
			t.Errorf("%+v", s)
		}
	})
	if n := strings.Count(log, "stack="); n < 5 || n > 10 {
		t.Errorf("%d stacks in the log:\n%s", n, log)
	}
}
