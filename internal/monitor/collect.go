package monitor

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/lag-monitor/lag-monitor/internal/ledger"
	"github.com/lag-monitor/lag-monitor/internal/metrics"
)

// Collector returns the metrics of everything that runs. It describes nothing beforehand: which series
// there are is up to the configuration.
func (m *Monitor) Collector() prometheus.Collector { return collector{m} }

type collector struct{ m *Monitor }

func (c collector) Describe(chan<- *prometheus.Desc) {}

// Collect takes the account of each probe under its lock, so that the counters of a probe and of its
// sinks add up in every scrape.
func (c collector) Collect(ch chan<- prometheus.Metric) {
	st := c.m.state.Load()
	now := time.Now()
	var (
		pairs []metrics.PairState
		lanes []ledger.LaneState
	)
	for _, p := range st.probes {
		p.mu.Lock()
		p.observe(now)
		for len(pairs) < len(p.watches) {
			pairs = append(pairs, metrics.PairState{})
		}
		for i, w := range p.watches {
			lanes = w.collect(now, &pairs[i], lanes)
		}
		p.counts.PausedUntil = time.Time{}
		if p.pausedAt(now) {
			p.counts.PausedUntil = p.pause.until
		}
		p.metrics.Collect(ch, &p.counts)
		for i, w := range p.watches {
			if w.metrics != nil {
				w.metrics.Collect(ch, &pairs[i])
			}
			if w.dead != nil {
				w.dead.Collect(ch, &w.died)
			}
			if w.hop != nil {
				_, stuck := w.stuck(now)
				w.hop.Collect(ch, stuck)
			}
		}
		p.mu.Unlock()
	}
	for _, s := range st.sinks {
		s.metrics.Collect(ch, s.feed.Stats(), s.backlogs())
	}
	metrics.CollectJournal(ch, c.m.journalErrors.Load())
	if t := c.m.opts.Tracer; t != nil {
		metrics.CollectTraces(ch, t.Stats())
	}
	c.m.metrics.Collect(ch)
}
