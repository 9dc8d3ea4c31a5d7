package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Reload tells how the last reading of the configuration went. It is a prometheus.Collector and safe
// for concurrent use.
type Reload struct {
	successful, at prometheus.Gauge
}

// NewReload returns gauges at 0: nothing has been read yet.
func NewReload() *Reload {
	return &Reload{
		successful: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: reloadOKName,
			Help: "1 when the last reading of the configuration found no mistake in any file, else 0.",
		}),
		at: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: reloadTimeName,
			Help: "When the configuration was last read without a mistake, in seconds since 1970.",
		}),
	}
}

// Done notes the outcome of a reading that ended now.
func (r *Reload) Done(successful bool, now time.Time) {
	if !successful {
		r.successful.Set(0)
		return
	}
	r.successful.Set(1)
	r.at.Set(Seconds(now))
}

// Describe implements prometheus.Collector.
func (r *Reload) Describe(ch chan<- *prometheus.Desc) {
	r.successful.Describe(ch)
	r.at.Describe(ch)
}

// Collect implements prometheus.Collector.
func (r *Reload) Collect(ch chan<- prometheus.Metric) {
	r.successful.Collect(ch)
	r.at.Collect(ch)
}
