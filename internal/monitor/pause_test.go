package monitor

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/config"
	"github.com/lag-monitor/lag-monitor/probe"
)

// status returns what is known of probe p.
func (r *rig) status() ProbeStatus {
	r.t.Helper()
	synctest.Wait()
	for _, p := range r.m.Status().Probes {
		if p.Name == "p" {
			return p
		}
	}
	r.t.Fatal("there is no probe p")
	return ProbeStatus{}
}

// pause pauses probe p where that is kept over a restart.
func (r *rig) pause(d time.Duration) {
	r.t.Helper()
	if err := r.m.Pause("p", d); err != nil {
		r.t.Fatal(err)
	}
}

// A paused probe sends nothing, loses nothing, and its lag stands still; it goes on by itself.
func TestPauseOfAProbe(t *testing.T) {
	sim(t, func(r *rig) {
		r.journaled()
		log := new(lines)
		r.m.log = slog.New(slog.NewTextHandler(log, nil))
		r.cfg.Probes["p"].Interval = 10 * time.Second
		*r.cfg.Probes["p"] = r.pipeline(3*time.Second, func(*probe.Message) bool { return false })
		r.start()
		time.Sleep(61 * time.Second) // the last one is still on its way
		before := r.status()
		r.pause(5 * time.Minute)
		if p := r.status().Paused; p == nil || p.Until.Sub(p.Since) != 5*time.Minute || !p.Since.Equal(time.Now().Round(0)) {
			t.Errorf("paused: %+v", p)
		}
		time.Sleep(4*time.Minute + 55*time.Second)
		st := r.status()
		if st.Sent.Success != before.Sent.Success || st.Sent.Skipped != before.Sent.Skipped+29 && st.Sent.Skipped != before.Sent.Skipped+30 {
			t.Errorf("in a pause: %+v, before it: %+v", st.Sent, before.Sent)
		}
		if s := st.Sinks[0]; s.OnTime != s.Sent || s.InFlight != 0 || math.Abs(s.Lag-3) > .01 {
			t.Errorf("in a pause: %+v", s)
		}
		time.Sleep(5*time.Second + 10*time.Millisecond)
		// It injects at the very end of the pause, not at the next tick.
		if st = r.status(); st.Paused != nil || st.Sent.Success != before.Sent.Success+1 {
			t.Errorf("after the pause: %+v, %+v", st.Paused, st.Sent)
		}
		time.Sleep(60 * time.Second)
		if s := r.pair(); s.Lag > 3.01 || s.Dropped+s.Indeterminate > 0 {
			t.Errorf("after the pause: %+v", s)
		}
		for _, line := range []string{`msg="probe is paused"`, `msg="probe injects again"`} {
			if n := strings.Count(log.String(), line); n != 1 {
				t.Errorf("%d times %s in the log", n, line)
			}
		}
	})
}

// A pipeline that is dead after a pause is seen as soon as one that was never paused.
func TestLagAfterAPause(t *testing.T) {
	sim(t, func(r *rig) {
		r.journaled()
		var dead atomic.Bool
		*r.cfg.Probes["p"] = r.pipeline(time.Millisecond, func(*probe.Message) bool { return dead.Load() })
		r.start()
		time.Sleep(10 * time.Second)
		dead.Store(true)
		time.Sleep(5 * time.Second)
		if lag := r.pair().Lag; lag < 4 {
			t.Fatalf("lag %v before the pause", lag)
		}
		r.pause(time.Hour)
		if lag := r.pair().Lag; lag > .01 {
			t.Errorf("lag %v when the pause begins", lag)
		}
		time.Sleep(30 * time.Minute)
		if lag := r.pair().Lag; lag > .01 {
			t.Errorf("lag %v in the pause", lag)
		}
		if err := r.m.Resume("p"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Second)
		if s := r.pair(); math.Abs(s.Lag-20) > 1.1 || s.Dropped == 0 {
			t.Errorf("20 s after the pause: %+v", s)
		}
	})
}

// A tick that overruns in a pause is one that was paused.
func TestPauseWhileTheHeadHangs(t *testing.T) {
	sim(t, func(r *rig) {
		r.journaled()
		r.cfg.Probes["p"].Inject = head(func(ctx context.Context, _ *probe.Message) error { <-ctx.Done(); return ctx.Err() })
		r.start()
		time.Sleep(100 * time.Millisecond)
		r.pause(time.Minute)
		time.Sleep(10*time.Second + 500*time.Millisecond)
		p := r.m.state.Load().probes["p"]
		p.mu.Lock()
		defer p.mu.Unlock()
		if n := p.counts.Skipped; n[2] != 10 || n[0] != 0 {
			t.Errorf("skipped %v", n)
		}
	})
}

func TestPauseOutlastsARestart(t *testing.T) {
	sim(t, func(r *rig) {
		left := r.journaled()
		r.start()
		time.Sleep(10 * time.Second)
		r.pause(24 * time.Hour)
		time.Sleep(2 * time.Second)
		// The last process could not read the probe's file: what it does not know it keeps.
		left = r.kill(left)
		probes := r.cfg.Probes
		r.cfg.Probes = map[string]*config.Probe{}
		time.Sleep(8 * time.Hour) // longer than anything else in the journal is of use
		r.restart(left)
		time.Sleep(2 * time.Second)
		left = r.kill(left)
		r.cfg.Probes = probes
		r.restart(left)
		time.Sleep(time.Minute)
		st := r.status()
		if st.Paused == nil || st.Sent.Success != 0 || st.Paused.Until.Sub(st.Paused.Since) != 24*time.Hour {
			t.Fatalf("after two restarts: %+v, %+v", st.Paused, st.Sent)
		}
		time.Sleep(16 * time.Hour)
		if st := r.status(); st.Paused != nil || st.Sent.Success == 0 {
			t.Errorf("after its end: %+v, %+v", st.Paused, st.Sent)
		}
		// One that is over is not in the journal any more.
		time.Sleep(2 * time.Second)
		left = r.kill(left)
		if st, _ := left.State(); len(st.Pauses) != 0 {
			t.Errorf("the journal has %+v", st.Pauses)
		}
	})
}

// A reload that changes the probe keeps its pause, one that takes it away does not.
func TestPauseAndReload(t *testing.T) {
	sim(t, func(r *rig) {
		r.journaled()
		r.start()
		time.Sleep(10 * time.Second)
		r.pause(time.Hour)
		changed := *r.cfg.Probes["p"]
		changed.Interval, changed.RunFingerprint = 2*time.Second, "2"
		apply := func(probes map[string]*config.Probe) {
			t.Helper()
			cfg := *r.cfg
			cfg.Probes = probes
			if err := r.m.Apply(&cfg); err != nil {
				t.Fatal(err)
			}
		}
		apply(map[string]*config.Probe{"p": &changed})
		time.Sleep(30 * time.Minute)
		if st := r.status(); st.Paused == nil || st.Sent.Success != 0 {
			t.Errorf("after a change: %+v, %+v", st.Paused, st.Sent)
		}
		time.Sleep(31 * time.Minute)
		if st := r.status(); st.Paused != nil || st.Sent.Success < 29 {
			t.Errorf("after its end: %+v, %+v", st.Paused, st.Sent)
		}
		r.pause(time.Hour)
		apply(nil)
		time.Sleep(time.Second)
		apply(map[string]*config.Probe{"p": &changed})
		time.Sleep(10 * time.Second)
		if st := r.status(); st.Paused != nil || st.Sent.Success < 4 {
			t.Errorf("of a probe that was taken away and came back: %+v, %+v", st.Paused, st.Sent)
		}
	})
}

func TestPauseErrors(t *testing.T) {
	sim(t, func(r *rig) {
		listener := *r.cfg.Probes["p"]
		listener.Name, listener.Inject = "listener", nil
		r.cfg.Probes["listener"] = &listener
		r.start()
		for _, c := range []struct {
			name string
			d    time.Duration
			is   error
			says string
		}{
			{"q", time.Hour, ErrNoProbe, `there is no such probe: unknown probe "q" (did you mean "p"?)`},
			{"entirely-else", time.Hour, ErrNoProbe, `there is no such probe: unknown probe "entirely-else"; valid: listener, p`},
			{"listener", time.Hour, ErrNotPausable, "probe listener: it cannot be paused: it only listens here, pause it where it injects"},
			{"p", 0, ErrNotPausable, "probe p for 0s: it cannot be paused: a pause is longer than 0 and at most 168h0m0s"},
			{"p", 7*24*time.Hour + 1, ErrNotPausable, "probe p for 168h0m0.000000001s: it cannot be paused: a pause is longer than 0 and at most 168h0m0s"},
			{"p", time.Hour, ErrNotKept, "probe p is paused: there is no journal (--storage.path) that can be written, so it ends with a restart of the monitor"},
		} {
			if err := r.m.Pause(c.name, c.d); !errors.Is(err, c.is) || err.Error() != c.says {
				t.Errorf("%s for %s: %v", c.name, c.d, err)
			}
		}
		if r.status().Paused == nil {
			t.Error("without a journal it is not paused")
		}
		if err := r.m.Resume("nobody"); !errors.Is(err, ErrNoProbe) {
			t.Error(err)
		}
		for range 2 { // the second time there is nothing to end
			if err := r.m.Resume("p"); err != nil {
				t.Error(err)
			}
		}
		if r.status().Paused != nil {
			t.Error("still paused")
		}
	})
	sim(t, func(r *rig) {
		disk := r.journaled()
		disk.full.Store(true)
		r.start()
		time.Sleep(5 * time.Second)
		if err := r.m.Pause("p", time.Hour); !errors.Is(err, ErrNotKept) {
			t.Errorf("with a full disk: %v", err)
		}
		disk.full.Store(false)
		time.Sleep(5 * time.Second)
		r.pause(time.Hour)
	})
}
