package metrics

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/lag-monitor/lag-monitor/internal/conn"
	"github.com/lag-monitor/lag-monitor/internal/ledger"
	"github.com/lag-monitor/lag-monitor/internal/tracing"
	"github.com/lag-monitor/lag-monitor/sinks"
)

// Metrics holds the histograms of all probes. Everything else is read at each scrape.
type Metrics struct {
	latency, hop, inject *prometheus.HistogramVec

	mu    sync.Mutex
	pairs map[[2]string]*dto.LabelPair // those that many series have
	infos map[string]*prometheus.Desc  // of probe_info, by the names of its labels
}

// New returns the histograms, without a series yet.
func New() *Metrics {
	vec := func(o prometheus.HistogramOpts) *prometheus.HistogramVec {
		o.Buckets = latencyBuckets
		return prometheus.NewHistogramVec(o, histogramLabels[o.Name])
	}
	return &Metrics{
		pairs: make(map[[2]string]*dto.LabelPair),
		infos: make(map[string]*prometheus.Desc),
		latency: vec(prometheus.HistogramOpts{Name: latencyName,
			Help:                           "Arrival minus due time of each heartbeat that was received, late ones too.",
			NativeHistogramBucketFactor:    1.1,
			NativeHistogramMaxBucketNumber: 100,
		}),
		hop: vec(prometheus.HistogramOpts{Name: hopName,
			Help:                           "Time of each heartbeat between two consecutive stations of the probe, without the time that the pipeline was asked to hold it.",
			NativeHistogramBucketFactor:    1.1,
			NativeHistogramMaxBucketNumber: 100,
		}),
		// Classic only: that the head is slow is a cause, and a native histogram is most of what a probe costs.
		inject: vec(prometheus.HistogramOpts{Name: injectName, Help: "How long the head took to answer an injection."}),
	}
}

// Collect sends the histograms.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	m.latency.Collect(ch)
	m.hop.Collect(ch)
	m.inject.Collect(ch)
}

// Threshold is what a probe's YAML says for one severity; zero values are not exported.
type Threshold struct {
	Lag, For                                time.Duration
	DropRatio, DuplicateRatio, ReorderRatio float64
}

// SLO is the objective of a probe: this share of the messages comes out within Latency. The zero value is not
// exported.
type SLO struct {
	Latency   time.Duration
	Objective float64
}

// BacklogLimits are what a sink's YAML says of its backlog; zero values are not exported.
type BacklogLimits struct {
	Messages float64
	Age      time.Duration
}

// Probe is the metrics of one probe. Ten thousand of them are an ordinary fleet, so it keeps little:
// the labels are laid out once, in one piece of memory, and shared where they can be.
type Probe struct {
	Inject prometheus.Observer // nil for a probe that only listens
	SLO    SLO                 // set before the first Collect

	m     *Metrics
	name  string
	label *dto.LabelPair // probe="name"
	info  *sample
	// labels are, one behind the other, the pairs of sent (by result) and skipped (by reason).
	labels     labelSets
	interval   time.Duration
	expiry     time.Duration
	thresholds []namedThreshold
	pairs      []*Pair
	deadPairs  []*DeadPair
	hops       []*Hop
}

type namedThreshold struct {
	labels []*dto.LabelPair
	Threshold
}

// Pair is the metrics of one probe at one sink.
type Pair struct {
	Latency   prometheus.Observer
	Objective bool // the probe's objective counts here; set before the first Collect

	m      *Metrics
	probe  *Probe
	sink   *dto.LabelPair
	labels labelSets // as pairSets says
	lanes  []laneLabels
}

type laneLabels struct {
	lane   string
	labels []*dto.LabelPair
}

// labelSets are sets of labels of equal size, one behind the other.
type labelSets struct {
	all  []*dto.LabelPair
	size int
}

func newLabelSets(size int, sets ...[]*dto.LabelPair) labelSets {
	s := labelSets{size: size, all: make([]*dto.LabelPair, 0, size*len(sets))}
	for _, set := range sets {
		s.all = append(s.all, set...)
	}
	return s
}

func (s labelSets) at(i int) []*dto.LabelPair {
	return s.all[i*s.size : (i+1)*s.size : (i+1)*s.size]
}

// Probe creates the metrics of a probe, all counters at 0. A probe of the same name that is replaced
// goes on in the same histograms. One that only listens has no series that tell of injections.
func (m *Metrics) Probe(name string, labels map[string]string, injects bool, interval, expiry time.Duration, thresholds map[string]Threshold) *Probe {
	p := &Probe{m: m, name: name, label: pair("probe", name), interval: interval, expiry: expiry}
	info := []*dto.LabelPair{p.label}
	for k, v := range labels {
		info = append(info, m.shared(k, v))
	}
	slices.SortFunc(info, func(a, b *dto.LabelPair) int { return cmp.Compare(a.GetName(), b.GetName()) })
	p.info = &sample{desc: m.infoDesc(info), labels: info, value: 1}
	for _, severity := range slices.Sorted(maps.Keys(thresholds)) {
		if t := thresholds[severity]; t != (Threshold{}) {
			p.thresholds = append(p.thresholds, namedThreshold{[]*dto.LabelPair{p.label, m.shared("severity", severity)}, t})
		}
	}
	if !injects {
		p.labels = newLabelSets(2, []*dto.LabelPair{p.label, nil})
		return p
	}
	p.Inject = m.inject.WithLabelValues(name)
	var sets [][]*dto.LabelPair
	for _, r := range results {
		sets = append(sets, []*dto.LabelPair{p.label, m.shared("result", r)})
	}
	for _, r := range skipNames {
		sets = append(sets, []*dto.LabelPair{p.label, m.shared("reason", r)})
	}
	p.labels = newLabelSets(2, sets...)
	return p
}

// The sets of labels of a pair, in this order; the first has no third label and is used without it.
const (
	setBase     = 0
	setReceived = 1               // on_time, late
	setRepeated = setReceived + 2 // duplicate, redelivery
	setDropped  = setRepeated + 2 // by reason
)

// Pair creates the metrics of the probe at a sink.
func (p *Probe) Pair(sink string) *Pair {
	m := p.m
	q := &Pair{m: m, probe: p, sink: m.shared("sink", sink), Latency: m.latency.WithLabelValues(p.name, sink)}
	sets := [][]*dto.LabelPair{
		{p.label, q.sink, nil},
		{p.label, q.sink, m.shared("timing", "on_time")}, {p.label, q.sink, m.shared("timing", "late")},
		{m.shared("kind", "duplicate"), p.label, q.sink}, {m.shared("kind", "redelivery"), p.label, q.sink},
	}
	for _, r := range ledger.DropReasons() {
		sets = append(sets, []*dto.LabelPair{p.label, m.shared("reason", r.String()), q.sink})
	}
	for _, r := range ledger.Doubts() {
		sets = append(sets, []*dto.LabelPair{p.label, m.shared("reason", r.String()), q.sink})
	}
	q.labels = newLabelSets(3, sets...)
	p.pairs = append(p.pairs, q)
	return q
}

// shared returns the one pair of a name and a value that many series have.
func (m *Metrics) shared(name, value string) *dto.LabelPair {
	m.mu.Lock()
	defer m.mu.Unlock()
	key := [2]string{name, value}
	l := m.pairs[key]
	if l == nil {
		l = pair(name, value)
		m.pairs[key] = l
	}
	return l
}

// infoDesc returns the description of probe_info with these labels: the probes of a team have the same.
func (m *Metrics) infoDesc(labels []*dto.LabelPair) *prometheus.Desc {
	var names []string
	for _, l := range labels {
		names = append(names, l.GetName())
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	key := strings.Join(names, ",")
	d := m.infos[key]
	if d == nil {
		d = prometheus.NewDesc(infoDesc.name, infoHelp, names, nil)
		m.infos[key] = d
	}
	return d
}

// Delete removes the histograms of the pair; the series of the accounts go with the account.
func (q *Pair) Delete() { q.m.latency.DeleteLabelValues(q.probe.name, q.sink.GetValue()) }

// DeadPair is the metrics of one probe at a dead-letter queue.
type DeadPair struct{ labels labelSets }

// DeadPair creates the metrics of the probe at a dead-letter queue.
func (p *Probe) DeadPair(sink string) *DeadPair {
	s := p.m.shared("sink", sink)
	var sets [][]*dto.LabelPair
	for _, r := range deaths {
		sets = append(sets, []*dto.LabelPair{p.label, p.m.shared("reason", r), s})
	}
	q := &DeadPair{newLabelSets(3, sets...)}
	p.deadPairs = append(p.deadPairs, q)
	return q
}

// DeadState counts what was found in a dead-letter queue, by reason.
type DeadState [deathReasons]uint64

// Count counts a message that was dead-lettered for a reason of the broker's.
func (s *DeadState) Count(reason string) {
	i := slices.Index(deaths[:], reason)
	if i < 0 {
		i = len(deaths) - 1
	}
	s[i]++
}

// Collect sends the metrics of the pair.
func (q *DeadPair) Collect(ch chan<- prometheus.Metric, s *DeadState) {
	for i, v := range s {
		counter(ch, deadLetteredDesc, q.labels.at(i), v)
	}
}

// Hop is the metrics of the way between two stations of a probe.
type Hop struct {
	Latency prometheus.Observer

	probe    *Probe
	from, to string
	labels   []*dto.LabelPair
}

// Hop creates the metrics of the way from one station to another: from is "head" or a sink, to a sink.
func (p *Probe) Hop(from, to string) *Hop {
	m := p.m
	h := &Hop{probe: p, from: from, to: to, Latency: m.hop.WithLabelValues(p.name, from, to),
		labels: []*dto.LabelPair{m.shared("from", from), p.label, m.shared("to", to)}}
	p.hops = append(p.hops, h)
	return h
}

// Collect sends whether heartbeats are stuck on the way.
func (h *Hop) Collect(ch chan<- prometheus.Metric, stuck bool) {
	v := 0.0
	if stuck {
		v = 1
	}
	gauge(ch, stuckDesc, h.labels, v)
}

// Delete removes the histogram of the hop.
func (h *Hop) Delete() { h.probe.m.hop.DeleteLabelValues(h.probe.name, h.from, h.to) }

// Delete removes the histograms of the probe, of its pairs and of its hops.
func (p *Probe) Delete() {
	p.m.inject.DeleteLabelValues(p.name)
	for _, q := range p.pairs {
		q.Delete()
	}
	for _, h := range p.hops {
		h.Delete()
	}
}

// ProbeState is what a scrape says of a probe.
type ProbeState struct {
	Success, Failure, Unknown uint64
	Skipped                   [skipReasons]uint64
	PausedUntil               time.Time // zero while it is not paused
}

// Collect sends the metrics of the probe, without its pairs.
func (p *Probe) Collect(ch chan<- prometheus.Metric, s *ProbeState) {
	ch <- p.info
	base := p.labels.all[:1:1]
	gauge(ch, intervalDesc, base, p.interval.Seconds())
	gauge(ch, expiryDesc, base, p.expiry.Seconds())
	for _, t := range p.thresholds {
		if t.Lag > 0 {
			gauge(ch, thresholdDesc, t.labels, t.Lag.Seconds())
			gauge(ch, forDesc, t.labels, t.For.Seconds())
		}
		if t.DropRatio > 0 {
			gauge(ch, ratioDesc, t.labels, t.DropRatio)
		}
		if t.DuplicateRatio > 0 {
			gauge(ch, duplicateRatioDesc, t.labels, t.DuplicateRatio)
		}
		if t.ReorderRatio > 0 {
			gauge(ch, reorderRatioDesc, t.labels, t.ReorderRatio)
		}
	}
	if p.SLO != (SLO{}) {
		gauge(ch, sloLatencyDesc, base, p.SLO.Latency.Seconds())
		gauge(ch, sloObjectiveDesc, base, p.SLO.Objective)
	}
	if p.Inject == nil {
		return
	}
	for i, v := range [...]uint64{s.Success, s.Failure, s.Unknown} {
		counter(ch, sentDesc, p.labels.at(i), v)
	}
	for i, v := range s.Skipped {
		counter(ch, skippedDesc, p.labels.at(len(results)+i), v)
	}
	if s.PausedUntil.IsZero() {
		gauge(ch, pausedDesc, base, 0)
		return
	}
	gauge(ch, pausedDesc, base, 1)
	gauge(ch, pausedUntilDesc, base, Seconds(s.PausedUntil))
}

// LaneState is what a scrape says of one lane that has received something.
type LaneState struct {
	Lane      string
	Timestamp float64 // seconds since the epoch
	Lag       float64 // seconds
	HasLag    bool    // false while the timestamp is only remembered from before a restart
}

// PairState is what a scrape says of a pair.
type PairState struct {
	Counts   ledger.Counts
	Restored uint64  // of Counts.Sent: by earlier runs
	Skew     float64 // seconds
	Lanes    []LaneState
}

// Collect sends the metrics of the pair. It is called by one goroutine at a time.
func (q *Pair) Collect(ch chan<- prometheus.Metric, s *PairState) {
	c := &s.Counts
	base := q.labels.at(setBase)[:2:2]
	for i, v := range [...]uint64{c.OnTime, c.Late} {
		counter(ch, receivedDesc, q.labels.at(setReceived+i), v)
	}
	for i, v := range [...]uint64{c.Duplicates, c.Redeliveries} {
		counter(ch, duplicatedDesc, q.labels.at(setRepeated+i), v)
	}
	for i, v := range c.Dropped {
		counter(ch, droppedDesc, q.labels.at(setDropped+i), v)
	}
	for i, v := range c.Indeterminate {
		counter(ch, indeterminateDesc, q.labels.at(setDropped+len(c.Dropped)+i), v)
	}
	counter(ch, reorderedDesc, base, c.Reordered)
	counter(ch, unaccountedDesc, base, c.Unaccounted)
	counter(ch, negativeDesc, base, c.Negative)
	counter(ch, restoredDesc, base, s.Restored)
	gauge(ch, inFlightDesc, base, float64(c.InFlight))
	gauge(ch, skewDesc, base, s.Skew)
	if q.Objective && q.probe.SLO != (SLO{}) {
		counter(ch, withinSLODesc, base, c.WithinSLO)
		counter(ch, beyondSLODesc, base, c.BeyondSLO)
	}
	for i := range s.Lanes {
		l := &s.Lanes[i]
		labels := q.lane(l.Lane)
		gauge(ch, timestampDesc, labels, l.Timestamp)
		if l.HasLag {
			gauge(ch, lagDesc, labels, l.Lag)
		}
	}
}

// lane returns the labels of a lane. The lanes come in the same order at each scrape, or nearly so.
func (q *Pair) lane(lane string) []*dto.LabelPair {
	i, ok := slices.BinarySearchFunc(q.lanes, lane, func(l laneLabels, lane string) int { return cmp.Compare(l.lane, lane) })
	if !ok {
		l := q.m.shared("lane", lane)
		q.lanes = slices.Insert(q.lanes, i, laneLabels{l.GetValue(), []*dto.LabelPair{l, q.probe.label, q.sink}})
	}
	return q.lanes[i].labels
}

// Sink is the metrics of one sink.
type Sink struct {
	m      *Metrics
	name   string
	label  *dto.LabelPair
	limits atomic.Pointer[BacklogLimits] // nil: none
}

// SetLimits replaces the limits of the backlog. It is safe for concurrent use.
func (s *Sink) SetLimits(l BacklogLimits) { s.limits.Store(&l) }

// Sink creates the metrics of a sink.
func (m *Metrics) Sink(name string) *Sink {
	return &Sink{m: m, name: name, label: m.shared("sink", name)}
}

// Collect sends the metrics of the sink.
func (s *Sink) Collect(ch chan<- prometheus.Metric, st sinks.Stats, backlog []sinks.Backlog) {
	up := 0.0
	if st.Ready {
		up = 1
	}
	base := []*dto.LabelPair{s.label}
	gauge(ch, sinkUpDesc, base, up)
	if !st.CaughtUp.IsZero() {
		gauge(ch, caughtUpDesc, base, Seconds(st.CaughtUp))
	}
	for _, k := range sinks.AllKinds() {
		counter(ch, messagesDesc, []*dto.LabelPair{s.m.shared("kind", k.String()), s.label}, st.Messages[k])
	}
	for _, c := range conn.Classes() {
		counter(ch, errorsDesc, []*dto.LabelPair{s.m.shared("class", string(c)), s.label}, st.Errors[c])
	}
	if l := s.limits.Load(); l != nil {
		if l.Messages > 0 {
			gauge(ch, backlogLimitMessagesDesc, base, l.Messages)
		}
		if l.Age > 0 {
			gauge(ch, backlogLimitSecondsDesc, base, l.Age.Seconds())
		}
	}
	for _, b := range backlog {
		for _, v := range []struct {
			desc  desc
			value float64
		}{{backlogMessagesDesc, b.Messages}, {backlogSecondsDesc, b.Seconds}, {backlogConsumersDesc, b.Consumers}} {
			if v.value >= 0 {
				ch <- prometheus.MustNewConstMetric(v.desc.Desc, prometheus.GaugeValue, v.value, s.name, b.Queue, b.Group, b.Partition)
			}
		}
	}
}

// CollectJournal sends how often the journal has failed.
func CollectJournal(ch chan<- prometheus.Metric, failures uint64) {
	counter(ch, journalErrorsDesc, nil, failures)
}

// CollectTraces sends what became of traces.
func CollectTraces(ch chan<- prometheus.Metric, s tracing.Stats) {
	counter(ch, tracesExportedDesc, nil, s.Exported)
	for _, l := range tracing.Losses() {
		counter(ch, tracesDroppedDesc, []*dto.LabelPair{pair("reason", l.String())}, s.Dropped[l])
	}
}

// Observe notes the latency of a heartbeat. trace is the id of its trace, which becomes an exemplar of the
// bucket; empty when it has none.
func (q *Pair) Observe(latency time.Duration, trace string) {
	if e, ok := q.Latency.(prometheus.ExemplarObserver); ok && trace != "" {
		e.ObserveWithExemplar(latency.Seconds(), prometheus.Labels{"trace_id": trace})
		return
	}
	q.Latency.Observe(latency.Seconds())
}

// Seconds is t as Prometheus writes times.
func Seconds(t time.Time) float64 { return float64(t.UnixNano()) / 1e9 }

func counter(ch chan<- prometheus.Metric, d desc, labels []*dto.LabelPair, v uint64) {
	ch <- &sample{desc: d.Desc, labels: labels, value: float64(v), counter: true}
}

func gauge(ch chan<- prometheus.Metric, d desc, labels []*dto.LabelPair, v float64) {
	ch <- &sample{desc: d.Desc, labels: labels, value: v}
}

// sample is one value of a series: a prometheus.Metric whose labels were laid out before.
type sample struct {
	desc    *prometheus.Desc
	labels  []*dto.LabelPair // sorted by name
	value   float64
	counter bool
}

func (s *sample) Desc() *prometheus.Desc { return s.desc }

func (s *sample) Write(out *dto.Metric) error {
	out.Label = s.labels
	if s.counter {
		out.Counter = &dto.Counter{Value: &s.value}
	} else {
		out.Gauge = &dto.Gauge{Value: &s.value}
	}
	return nil
}

func pair(name, value string) *dto.LabelPair { return &dto.LabelPair{Name: &name, Value: &value} }
