package monitor

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/lag-monitor/lag-monitor/internal/config"
	"github.com/lag-monitor/lag-monitor/probe"
)

// value returns the sum of the series of a counter or gauge, and whether there is one.
func (r *rig) value(name string) (v float64, ok bool) {
	r.t.Helper()
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(r.m.Collector())
	families, err := reg.Gather()
	if err != nil {
		r.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			v, ok = v+m.GetCounter().GetValue()+m.GetGauge().GetValue(), true
		}
	}
	return v, ok
}

// Of the heartbeats of each 10 s one comes out 3 s late, one is lost and one is refused.
func TestObjective(t *testing.T) {
	sim(t, func(r *rig) {
		n := 0
		r.cfg.Probes["p"].Inject = head(func(ctx context.Context, m *probe.Message) error {
			n++
			switch n % 10 {
			case 1:
				msg := *m
				time.AfterFunc(3*time.Second, func() { _ = r.inj.Inject(context.WithoutCancel(ctx), &msg) })
				return nil
			case 2:
				return nil
			case 3:
				return probe.Refused(errors.New("no"))
			}
			return r.inj.Inject(ctx, m)
		})
		r.cfg.Probes["p"].SLO = config.SLO{Latency: 2 * time.Second, Objective: .9}
		r.cfg.Sinks["out"].Backlog = config.Backlog{Messages: 5}
		r.start()
		time.Sleep(120500 * time.Millisecond)
		within, _ := r.value("lag_monitor_heartbeats_within_slo_total")
		beyond, _ := r.value("lag_monitor_heartbeats_beyond_slo_total")
		if s := r.pair(); within < 82 || beyond < 22 || uint64(within+beyond) != s.OnTime+s.Dropped {
			t.Errorf("within %v, beyond %v; want 7 and 2 of each 10: %+v", within, beyond, s)
		}
		if v, _ := r.value("lag_monitor_sink_threshold_backlog_messages"); v != 5 {
			t.Errorf("limit of the backlog: %v", v)
		}

		// A reload that promises less leaves the probe running and counts by the new objective.
		kept := r.m.state.Load()
		again := *r.cfg
		p, out := *r.cfg.Probes["p"], *r.cfg.Sinks["out"]
		p.SLO.Latency, p.Fingerprint, out.Backlog.Messages = 5*time.Second, "2", 7
		again.Probes, again.Sinks = map[string]*config.Probe{"p": &p}, map[string]*config.Sink{"out": &out}
		if err := r.m.Apply(&again); err != nil {
			t.Fatal(err)
		}
		if now := r.m.state.Load(); now.probes["p"] != kept.probes["p"] || now.sinks["out"] != kept.sinks["out"] {
			t.Error("another objective started the probe or the sink anew")
		}
		time.Sleep(20 * time.Second)
		beyond0, _ := r.value("lag_monitor_heartbeats_beyond_slo_total")
		time.Sleep(100 * time.Second)
		beyond1, _ := r.value("lag_monitor_heartbeats_beyond_slo_total")
		if d := beyond1 - beyond0; d < 9 || d > 11 {
			t.Errorf("%v beyond the new objective in 100 s, want the 10 that are lost", d)
		}
		if v, _ := r.value("lag_monitor_sink_threshold_backlog_messages"); v != 7 {
			t.Errorf("limit of the backlog: %v", v)
		}

		p.SLO, p.Fingerprint = config.SLO{}, "3"
		again.Probes = map[string]*config.Probe{"p": &p}
		if err := r.m.Apply(&again); err != nil {
			t.Fatal(err)
		}
		if v, ok := r.value("lag_monitor_heartbeats_beyond_slo_total"); ok {
			t.Errorf("no objective, and %v beyond it", v)
		}
	})
}
