package monitor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/lag-monitor/lag-monitor/internal/config"
	"github.com/lag-monitor/lag-monitor/internal/conform/memory"
	"github.com/lag-monitor/lag-monitor/internal/heartbeat"
	"github.com/lag-monitor/lag-monitor/internal/tracing"
	"github.com/lag-monitor/lag-monitor/probe"
)

// tracer keeps the traces that it is handed.
type tracer struct {
	sampled func(id [16]byte) bool // nil: all
	mute    bool                   // traces go nowhere

	mu    sync.Mutex
	got   []*tracing.Heartbeat
	stats tracing.Stats
}

func (t *tracer) Sampled(id [16]byte) bool { return t.sampled == nil || t.sampled(id) }
func (t *tracer) Exports() bool            { return !t.mute }

func (t *tracer) Export(h *tracing.Heartbeat) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.got = append(t.got, h)
	t.stats.Exported++
}

func (t *tracer) Lose(why tracing.Loss, n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stats.Dropped[why] += uint64(n)
}

func (t *tracer) Stats() tracing.Stats {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.stats
}

// story writes what was handed on, one line each, with times since the heartbeat was sent. Heartbeats are numbered
// from 1 in the order in which they were sent: ticks may be left out while the sinks begin to read.
func (t *tracer) story() string {
	synctest.Wait()
	t.mu.Lock()
	defer t.mu.Unlock()
	var b strings.Builder
	got := slices.Clone(t.got)
	slices.SortStableFunc(got, func(a, b *tracing.Heartbeat) int { return a.Sent.Compare(b.Sent) })
	n := 0
	for i, h := range got {
		if i == 0 || !h.Sent.Equal(got[i-1].Sent) {
			n++
		}
		fmt.Fprintf(&b, "%d", n)
		if in := h.Injection; in != nil {
			fmt.Fprintf(&b, " %s %v", in.Result, in.Took)
			if in.Error != "" {
				fmt.Fprintf(&b, " %q", in.Error)
			}
		} else {
			b.WriteString(" beside")
		}
		for _, s := range h.Stations {
			fmt.Fprintf(&b, "; %s %v -> %s %v %s", s.From, s.Left.Sub(h.Sent), s.Sink, s.At.Sub(h.Sent), s.Outcome)
			if s.Reason != "" {
				b.WriteString(" " + s.Reason)
			}
		}
		b.WriteString("\n")
	}
	return b.String()
}

func (t *tracer) wants(tt *testing.T, want string) {
	tt.Helper()
	if got := t.story(); got != want {
		tt.Errorf("the traces tell\n%s\nwant\n%s", got, want)
	}
}

// traced is a monitor like that of sim, with a hop "mid" before "out". way says how long the n-th heartbeat
// takes to each of them and what the head answers; a negative time loses it.
func traced(t *testing.T, way func(n int) (mid, out time.Duration, err error), f func(r *rig, tr *tracer)) {
	t.Helper()
	sim(t, func(r *rig) {
		tr := new(tracer)
		r.m.opts.Tracer = tr
		mid := memory.NewQueue(1, 0)
		r.cfg.Sinks["mid"] = &config.Sink{Name: "mid", Kind: "memory", Role: config.Hop, Config: &memory.SinkConfig{Queue: mid}, Fingerprint: "1"}
		p := r.cfg.Probes["p"]
		p.Sinks, p.InjectKind, p.Labels = []string{"mid", "out"}, "memory", map[string]string{"team": "data"}
		n := 0
		p.Inject = head(func(_ context.Context, m *probe.Message) error {
			n++
			a, b, err := way(n)
			token := []byte(m.Token)
			go func() {
				for _, s := range []struct {
					after time.Duration
					to    *memory.Queue
				}{{a, mid}, {b, r.queue}} {
					if s.after < 0 {
						return
					}
					time.Sleep(s.after)
					_ = s.to.Put(context.Background(), token)
				}
			}()
			time.Sleep(100 * time.Millisecond)
			return err
		})
		f(r, tr)
	})
}

var errEnough = probe.Refused(errors.New("enough"))

func TestTraces(t *testing.T) {
	traced(t, func(n int) (mid, out time.Duration, err error) {
		switch n {
		case 1:
			return 200 * time.Millisecond, 300 * time.Millisecond, nil
		case 2: // lost before the hop
			return -1, -1, nil
		case 3: // lost behind it
			return 200 * time.Millisecond, -1, nil
		case 4: // too late
			return 200 * time.Millisecond, 12 * time.Second, nil
		case 5: // faster than the answer of the head, which never comes
			return 10 * time.Millisecond, 10 * time.Millisecond, errors.New("timeout")
		case 6: // nobody knows
			return -1, -1, errors.New("timeout")
		}
		return -1, -1, errEnough
	}, func(r *rig, tr *tracer) {
		r.start()
		time.Sleep(6500 * time.Millisecond)
		r.m.state.Load().probes["p"].entry.Remove()
		time.Sleep(30 * time.Second)
		r.pair()
		tr.wants(t, `1 success 100ms; head 0s -> mid 200ms on_time; mid 200ms -> out 500ms on_time
2 success 100ms; head 0s -> mid 10s dropped timeout; head 0s -> out 10s dropped timeout
3 success 100ms; head 0s -> mid 200ms on_time; mid 200ms -> out 10s dropped timeout
4 success 100ms; head 0s -> mid 200ms on_time; mid 200ms -> out 10s dropped timeout
4 beside; head 0s -> out 12.2s late
5 unknown 100ms "timeout"; head 0s -> mid 10ms on_time; mid 10ms -> out 20ms on_time
6 unknown 100ms "timeout"; head 0s -> mid 10s indeterminate send_unknown; head 0s -> out 10s indeterminate send_unknown
7 failure 100ms "enough"
`)
		h := tr.got[0]
		own := r.m.state.Load().probes["p"]
		same := heartbeat.Heartbeat{Probe: "p", Instance: own.instance, Epoch: own.epoch, Seq: h.Seq}
		if h.Trace != same.Trace() || h.Probe != "p" || h.Labels["team"] != "data" || h.Injection.Kind != "memory" ||
			h.Stations[0].Kind != "memory" || h.Stations[0].Role != config.Hop || !h.Stations[0].Arrived {
			t.Errorf("%+v", h)
		}
		if n := r.m.openTraces.Load(); n != 0 {
			t.Errorf("%d traces are open at the end", n)
		}
	})
}

// The header says what was decided.
func TestTheTraceParentFollowsTheDecision(t *testing.T) {
	for name, c := range map[string]struct {
		tracer Tracer
		want   string
	}{
		"no tracer":   {nil, "-00"},
		"not sampled": {&tracer{sampled: func([16]byte) bool { return false }}, "-00"},
		"sampled":     {new(tracer), "-01"},
		"no receiver": {&tracer{mute: true}, "-01"},
	} {
		t.Run(name, func(t *testing.T) {
			sim(t, func(r *rig) {
				r.m.opts.Tracer = c.tracer
				var got string
				r.cfg.Probes["p"].Inject = head(func(ctx context.Context, m *probe.Message) error {
					got = m.TraceParent
					return r.inj.Inject(ctx, m)
				})
				r.start()
				time.Sleep(1500 * time.Millisecond)
				r.pair()
				if !strings.HasSuffix(got, c.want) {
					t.Errorf("traceparent %q does not end with %s", got, c.want)
				}
				if tr, ok := c.tracer.(*tracer); ok && (len(tr.got) > 0) != (name == "sampled") {
					t.Errorf("%d traces were exported", len(tr.got))
				}
			})
		})
	}
}

// A heartbeat in a dead-letter queue says so in its trace, before its loss ends the trace.
func TestTraceOfADeadLetter(t *testing.T) {
	traced(t, func(int) (mid, out time.Duration, err error) { return -1, -1, nil }, func(r *rig, tr *tracer) {
		dead := memory.NewQueue(1, 0)
		r.cfg.Sinks["dead"] = &config.Sink{Name: "dead", Kind: "memory", Role: config.DeadLetter, Config: &memory.SinkConfig{Queue: dead}, Fingerprint: "1"}
		p := r.cfg.Probes["p"]
		p.Sinks = []string{"out", "dead"}
		n := 0
		p.Inject = head(func(_ context.Context, m *probe.Message) error {
			if n++; n == 1 {
				token := []byte(m.Token)
				time.AfterFunc(time.Second, func() { _ = dead.Put(context.Background(), token) })
				return nil
			}
			return errEnough
		})
		r.start()
		time.Sleep(15 * time.Second)
		r.pair()
		if got := tr.story(); !strings.Contains(got, "1 success 0s; head 0s -> out 10s dropped dead_lettered; head 0s -> dead 1s dead_lettered\n") {
			t.Errorf("the traces tell\n%s", got)
		}
	})
}

// A process that only listens tells of arrivals and drops under the ids that the sender has chosen.
func TestTracesOfAListener(t *testing.T) {
	sim(t, func(r *rig) {
		tr := new(tracer)
		r.m.opts.Tracer = tr
		r.cfg.Probes["p"].Inject = nil
		r.start()
		time.Sleep(15 * time.Second) // what is sent within max_skew of the beginning may have been missed
		keys := heartbeat.NewKeyring()
		var sent heartbeat.Heartbeat
		for seq := uint64(1); seq <= 4; seq++ {
			time.Sleep(time.Second)
			h := heartbeat.Heartbeat{Probe: "p", Instance: 7, Epoch: 8, Lanes: 1, Seq: seq, Sent: time.Now(), Interval: time.Second, Timeout: 10 * time.Second, Accepted: 1<<(seq-1) - 1}
			if seq == 3 {
				sent = h
				continue // lost
			}
			_ = r.queue.Put(t.Context(), keys.Append(nil, &h))
		}
		time.Sleep(20 * time.Second)
		r.pair()
		tr.wants(t, "1 beside; head 0s -> out 0s on_time\n2 beside; head 0s -> out 0s on_time\n3 beside; head 0s -> out 10s dropped timeout\n4 beside; head 0s -> out 0s on_time\n")
		if h := tr.got[len(tr.got)-1]; h.Trace != sent.Trace() {
			t.Errorf("the lost one has the trace %x, not %x", h.Trace, sent.Trace())
		}
	})
}

// What is under way goes over to the probe that a reload puts in place of the old one.
func TestTracesOutliveAReload(t *testing.T) {
	traced(t, func(n int) (mid, out time.Duration, err error) {
		if n > 1 {
			return -1, -1, errEnough
		}
		return 2 * time.Second, 2 * time.Second, nil
	}, func(r *rig, tr *tracer) {
		r.start()
		time.Sleep(1300 * time.Millisecond)
		again := *r.cfg
		p := *r.cfg.Probes["p"]
		p.Fingerprint, p.RunFingerprint, p.Interval = "2", "2", time.Minute
		again.Probes = map[string]*config.Probe{"p": &p}
		if err := r.m.Apply(&again); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Second)
		r.pair()
		if got := tr.story(); !strings.Contains(got, "1 success 100ms; head 0s -> mid 2s on_time; mid 2s -> out 4s on_time\n") {
			t.Errorf("the traces tell\n%s", got)
		}
		if n := r.m.openTraces.Load(); n != 0 {
			t.Errorf("%d traces are open at the end", n)
		}
	})
}

// What is under way when the monitor ends, or when its probe is taken out of the configuration, is told as
// far as it is known.
func TestTracesEndWithTheirProbe(t *testing.T) {
	for name, end := range map[string]func(r *rig){
		"monitor": func(r *rig) { r.stop() },
		"probe": func(r *rig) {
			again := *r.cfg
			again.Probes = nil
			if err := r.m.Apply(&again); err != nil {
				r.t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			traced(t, func(n int) (mid, out time.Duration, err error) {
				if n > 1 {
					return -1, -1, errEnough
				}
				return 200 * time.Millisecond, -1, nil
			}, func(r *rig, tr *tracer) {
				r.m.opts.Grace = 0
				r.start()
				time.Sleep(1200 * time.Millisecond)
				end(r)
				got := tr.story()
				if !strings.Contains(got, "1 success 100ms; head 0s -> mid 200ms on_time; mid 200ms -> out ") || !strings.Contains(got, " in_flight\n") {
					t.Errorf("the traces tell\n%s", got)
				}
				if n := r.m.openTraces.Load(); n != 0 {
					t.Errorf("%d traces are open at the end", n)
				}
			})
		})
	}
}

// However long nothing is decided, a bounded number of traces is kept.
func TestOpenTracesAreBounded(t *testing.T) {
	traced(t, func(int) (mid, out time.Duration, err error) { return -1, -1, nil }, func(r *rig, tr *tracer) {
		r.cfg.Probes["p"].Timeout = time.Hour
		r.m.openTraces.Store(maxOpenTraces - 10) // those of other probes
		r.start()
		time.Sleep(100 * time.Second)
		r.pair()
		p := r.m.state.Load().probes["p"]
		p.mu.Lock()
		open, order := len(p.traces.open), len(p.traces.order)
		p.mu.Unlock()
		if lost := tr.Stats().Dropped[tracing.LossOverflow]; open != 10 || order > 100 || lost < 85 {
			t.Errorf("%d open, %d in order, %d lost", open, order, lost)
		}
	})
}

// What has ended is forgotten.
func TestEndedTracesLeaveNothing(t *testing.T) {
	traced(t, func(int) (mid, out time.Duration, err error) { return 0, 0, nil }, func(r *rig, tr *tracer) {
		r.start()
		time.Sleep(500 * time.Second)
		r.pair()
		p := r.m.state.Load().probes["p"]
		p.mu.Lock()
		open, order := len(p.traces.open), len(p.traces.order)
		p.mu.Unlock()
		if open > 1 || order > 100 || len(tr.got) < 490 {
			t.Errorf("%d open, %d in order, of %d traces", open, order, len(tr.got))
		}
	})
}

// Exemplars lead from a bucket to a trace.
func TestExemplars(t *testing.T) {
	traced(t, func(int) (mid, out time.Duration, err error) { return 0, 0, nil }, func(r *rig, tr *tracer) {
		r.start()
		time.Sleep(1500 * time.Millisecond)
		r.pair()
		reg := prometheus.NewRegistry()
		reg.MustRegister(r.m.Collector())
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		ids := map[string]bool{}
		for _, h := range tr.got {
			ids[fmt.Sprintf("%x", h.Trace.ID)] = true
		}
		found, counted := 0, 0.
		for _, f := range families {
			for _, m := range f.GetMetric() {
				for _, b := range m.GetHistogram().GetBucket() {
					if e := b.GetExemplar(); e != nil && f.GetName() == "lag_monitor_heartbeat_latency_seconds" && ids[e.GetLabel()[0].GetValue()] {
						found++
					}
				}
				if f.GetName() == "lag_monitor_traces_exported_total" {
					counted = m.GetCounter().GetValue()
				}
			}
		}
		if found != 2 || counted != float64(len(tr.got)) || counted == 0 {
			t.Errorf("%d exemplars of the traces of two sinks, %v traces counted of %d", found, counted, len(tr.got))
		}
	})
}
