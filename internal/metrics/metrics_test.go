package metrics

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/common/expfmt"

	"github.com/lag-monitor/lag-monitor/internal/conn"
	"github.com/lag-monitor/lag-monitor/internal/ledger"
	"github.com/lag-monitor/lag-monitor/sinks"
)

// scene is a collector with one probe at one sink.
type scene struct {
	m    *Metrics
	p    *Probe
	pair *Pair
	dead *DeadPair
	hop  *Hop
	sink *Sink

	stuck bool
	died  DeadState
	probe ProbeState
	state PairState
	stats sinks.Stats
}

func newScene() *scene {
	m := New()
	s := &scene{m: m, sink: m.Sink("out")}
	s.p = m.Probe("stash", map[string]string{"team": "data", "channel": "#stash"}, true, 15*time.Second, 0,
		map[string]Threshold{Page: {Lag: 5 * time.Minute, For: 2 * time.Minute, DropRatio: .01}, Ticket: {DuplicateRatio: .02, ReorderRatio: .5}})
	s.p.SLO = SLO{Latency: 30 * time.Second, Objective: .999}
	s.pair, s.dead, s.hop = s.p.Pair("out"), s.p.DeadPair("dlq"), s.p.Hop("head", "out")
	s.pair.Objective = true
	s.sink.SetLimits(BacklogLimits{Messages: 5000, Age: time.Minute})
	return s
}

func (s *scene) Describe(chan<- *prometheus.Desc) {}

func (s *scene) Collect(ch chan<- prometheus.Metric) {
	s.p.Collect(ch, &s.probe)
	s.pair.Collect(ch, &s.state)
	s.dead.Collect(ch, &s.died)
	s.hop.Collect(ch, s.stuck)
	s.sink.Collect(ch, s.stats, nil)
	s.m.Collect(ch)
}

// text is everything but histograms, in the text format.
func text(t *testing.T, c prometheus.Collector) string {
	t.Helper()
	r := prometheus.NewPedanticRegistry()
	r.MustRegister(c)
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, f := range families {
		if f.GetType().String() == "HISTOGRAM" {
			continue
		}
		if _, err := expfmt.MetricFamilyToText(&b, f); err != nil {
			t.Fatal(err)
		}
	}
	return regexp.MustCompile(`(?m)^#.*\n`).ReplaceAllString(b.String(), "")
}

func TestSeriesAtZero(t *testing.T) { golden(t, "zero", text(t, newScene())) }

func TestSeries(t *testing.T) {
	s := newScene()
	s.probe = ProbeState{Success: 10, Failure: 2, Unknown: 1, Skipped: [skipReasons]uint64{3, 4, 5}, PausedUntil: time.Unix(1_700_000_600, 0)}
	s.stuck = true
	for reason, n := range map[string]int{sinks.DeadRejected: 2, sinks.DeadDeliveryLimit: 1, "": 1, "somebody's own": 2} {
		for range n {
			s.died.Count(reason)
		}
	}
	s.state = PairState{Skew: .25, Lanes: []LaneState{{Lane: "0", Timestamp: 1.7e9, Lag: 12.5, HasLag: true}, {Lane: "7", Timestamp: 1.7e9 + .5}}}
	s.state.Counts = ledger.Counts{OnTime: 4, Late: 1, Dropped: [3]uint64{2, 1, 0}, Indeterminate: [6]uint64{1, 0, 0, 0, 0, 1}, InFlight: 2,
		Duplicates: 5, Redeliveries: 6, Reordered: 7, Unaccounted: 8, Negative: 9, WithinSLO: 3, BeyondSLO: 4}
	s.stats = sinks.Stats{Ready: true, CaughtUp: time.Unix(1_700_000_000, 0), Messages: [5]uint64{100, 5, 4, 3, 2}, Errors: map[conn.Class]uint64{conn.Auth: 1}}
	golden(t, "busy", text(t, s))
}

// golden compares with testdata/NAME.prom; UPDATE_GOLDEN=1 writes it.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := "testdata/" + name + ".prom"
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("the series differ from %s; UPDATE_GOLDEN=1 writes what is below\n%s", file, got)
	}
}

// Without an objective there is no series of it, nor at a hop; without limits none of them.
func TestNothingPromised(t *testing.T) {
	s := newScene()
	s.pair.Objective = false
	if got := text(t, s); strings.Contains(got, "_slo_total") || !strings.Contains(got, "_slo_objective_ratio") {
		t.Errorf("a hop:\n%s", got)
	}
	s.pair.Objective, s.p.SLO = true, SLO{}
	s.sink.SetLimits(BacklogLimits{})
	if got := text(t, s); strings.Contains(got, "slo") || strings.Contains(got, "threshold_backlog") {
		t.Errorf("nothing promised:\n%s", got)
	}
}

// A probe that only listens tells nothing of injections.
func TestListener(t *testing.T) {
	s := newScene()
	s.p.Delete()
	s.p = s.m.Probe("stash", nil, false, 15*time.Second, 0, nil)
	s.pair = s.p.Pair("out")
	got := text(t, s)
	if strings.Contains(got, "inject") || strings.Contains(got, "sent") || strings.Contains(got, "skipped") {
		t.Errorf("injections of a probe that only listens:\n%s", got)
	}
	if !strings.Contains(got, `lag_monitor_probe_interval_seconds{probe="stash"} 15`) {
		t.Errorf("no interval:\n%s", got)
	}
}

func TestHistogramsGoWithTheirProbe(t *testing.T) {
	s := newScene()
	s.p.Inject.Observe(.01)
	s.pair.Latency.Observe(.02)
	s.hop.Latency.Observe(.02)
	if n := testutil.CollectAndCount(s, latencyName, hopName, injectName); n != 3 {
		t.Errorf("%d histograms, want 3", n)
	}
	s.p.Delete()
	if n := testutil.CollectAndCount(s, latencyName, hopName, injectName); n != 0 {
		t.Errorf("%d histograms of a probe that has gone", n)
	}
}

func TestHistogramsAreClassicAndNative(t *testing.T) {
	s := newScene()
	s.pair.Latency.Observe(.02)
	r := prometheus.NewRegistry()
	r.MustRegister(s)
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != latencyName {
			continue
		}
		h := f.GetMetric()[0].GetHistogram()
		if len(h.GetBucket()) != len(latencyBuckets) || h.Schema == nil || len(h.GetPositiveSpan()) == 0 {
			t.Errorf("the histogram is not both: %v", h)
		}
	}
}

// The documentation lists the contract, no more and no less.
func TestDocumentation(t *testing.T) {
	doc, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	listed := make(map[string]string)
	for _, row := range regexp.MustCompile("(?m)^\\| `("+prefix+"[a-z_]+)` \\| ([a-z]+) \\| ([^|]*) \\|").FindAllStringSubmatch(string(doc), -1) {
		listed[row[1]] = strings.TrimSpace(row[3])
	}
	names := Names()
	for name, labels := range names {
		want := strings.Join(labels, ", ")
		if got, ok := listed[name]; !ok {
			t.Errorf("docs/metrics.md does not list %s", name)
		} else if got = strings.ReplaceAll(got, "`", ""); got != want && !strings.HasPrefix(got, want+" ") {
			t.Errorf("docs/metrics.md gives %s the labels %q, not %q", name, got, want)
		}
	}
	for name := range listed {
		if _, ok := names[name]; !ok {
			t.Errorf("docs/metrics.md lists %s, which does not exist", name)
		}
	}
}

// Every series that a scrape gives has the labels of the contract.
func TestLabels(t *testing.T) {
	s := newScene()
	s.state.Lanes = []LaneState{{Lane: "0", Timestamp: 1, HasLag: true}}
	s.probe.PausedUntil = time.Now()
	s.stats.CaughtUp = time.Now()
	s.pair.Latency.Observe(1)
	r := prometheus.NewPedanticRegistry()
	r.MustRegister(s)
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	names := Names()
	for _, f := range families {
		want, ok := names[f.GetName()]
		if !ok {
			t.Errorf("%s is not in the contract", f.GetName())
			continue
		}
		if f.GetName() == infoDesc.name {
			want = append(want, "team", "channel")
		}
		var got []string
		for _, l := range f.GetMetric()[0].GetLabel() {
			got = append(got, l.GetName())
		}
		slices.Sort(want)
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s has labels %v, the contract says %v", f.GetName(), got, want)
		}
	}
}
