package metrics

import (
	"math"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// durations has two buckets for each order of magnitude: 0.1 s to 31.6 s, which is room enough when nobody knows yet
// what is normal.
func durations(from float64) []float64 { return prometheus.ExponentialBuckets(from, math.Sqrt(10), 6) }

// Operation counts what an operation did, and how long it took. It is safe for concurrent use.
type Operation struct {
	success, failure prometheus.Counter
	duration         prometheus.Histogram
}

// newOperation makes stashdef_<what>_total and stashdef_<what>_duration_seconds.
func newOperation(reg prometheus.Registerer, what, counted, timed string) *Operation {
	total := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "stashdef_" + what + "_total", Help: counted + ", by result.",
	}, []string{"result"})
	duration := prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "stashdef_" + what + "_duration_seconds", Help: timed + ".", Buckets: durations(0.1),
	})
	reg.MustRegister(total, duration)
	return &Operation{success: total.WithLabelValues("success"), failure: total.WithLabelValues("failure"), duration: duration}
}

// Took observes how long one run of the operation took, whatever came of it.
func (o *Operation) Took(d time.Duration) { o.duration.Observe(d.Seconds()) }

// Succeeded adds n successes.
func (o *Operation) Succeeded(n int) { o.success.Add(float64(n)) }

// Failed adds n failures.
func (o *Operation) Failed(n int) { o.failure.Add(float64(n)) }

// Done counts one run that took d.
func (o *Operation) Done(d time.Duration, err error) {
	o.Took(d)
	if err != nil {
		o.Failed(1)
		return
	}
	o.Succeeded(1)
}

// Frontend is what the frontend counts.
type Frontend struct {
	Write    *Operation             // rows into Bigtable
	Requests *prometheus.CounterVec // by code of the answer
}

// codes are the answers of the frontend, so that each has its series from the start.
var codes = []string{"202", "400", "413", "503"}

// NewFrontend registers the metrics of the frontend.
func NewFrontend(reg prometheus.Registerer) *Frontend {
	f := &Frontend{
		Write: newOperation(reg, "bigtable_row_write", "Rows that the frontend wrote to Bigtable", "How long a write of one row took"),
		Requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "stashdef_http_request_total", Help: "Messages that users sent, by status code of the answer.",
		}, []string{"code"}),
	}
	for _, c := range codes {
		f.Requests.WithLabelValues(c)
	}
	reg.MustRegister(f.Requests)
	process(reg)
	return f
}

// Backend is what the backend counts.
type Backend struct {
	Scan         *Operation // rows out of Bigtable
	Publish      *Operation // attempts to put a message onto a stream
	Delete       *Operation // rows of Bigtable
	Duplicates   prometheus.Counter
	Backpressure prometheus.Histogram
	Backlog      prometheus.Gauge // rows
	BacklogAge   prometheus.Gauge // seconds
	Active       prometheus.Gauge

	decoded *prometheus.CounterVec
	streams map[string]bool // used by the scanner alone
}

// mostStreams bounds the values of the label stream, which come from users.
const mostStreams = 100

// NewBackend registers the metrics of the backend.
func NewBackend(reg prometheus.Registerer) *Backend {
	b := &Backend{
		Scan: newOperation(reg, "bigtable_row_scan", "Rows that scans found due; a scan that broke off, and a row that is no message, is a failure",
			"How long a scan waited for Bigtable"),
		Publish: newOperation(reg, "kinesis_message_write", "Attempts to write a message to Kinesis", "How long one attempt took"),
		Delete:  newOperation(reg, "bigtable_row_delete", "Rows that were to be deleted after they had been written to Kinesis", "How long the deletion of one batch took"),
		Duplicates: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "stashdef_duplicates_filtered_total", Help: "Rows that a scan found and that were on their way already.",
		}),
		Backpressure: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "stashdef_bigtable_row_scan_backpressure_seconds", Help: "How long the scanner waited for a publisher to take a row.",
			Buckets: durations(0.001),
		}),
		Backlog: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "stashdef_bigtable_backlog_rows", Help: "Rows that are due and still in Bigtable; NaN when they could not be counted.",
		}),
		BacklogAge: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "stashdef_bigtable_backlog_seconds", Help: "How long the oldest of them has been due.",
		}),
		Active: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "stashdef_active_rows", Help: "Rows that the backend knows to be on their way, refused for a while, or just deleted.",
		}),
		decoded: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "stashdef_kinesis_message_decode_total", Help: "Messages taken out of rows, by the stream that they are for.",
		}, []string{"stream"}),
		streams: map[string]bool{},
	}
	reg.MustRegister(b.Duplicates, b.Backpressure, b.Backlog, b.BacklogAge, b.Active, b.decoded)
	process(reg)
	return b
}

// Decoded counts a message for a stream. The first hundred streams have a series each, all others share the one of
// "other". It is for one goroutine.
func (b *Backend) Decoded(stream string) {
	if !b.streams[stream] {
		if len(b.streams) >= mostStreams {
			stream = "other"
		} else {
			b.streams[stream] = true
		}
	}
	b.decoded.WithLabelValues(stream).Inc()
}

// process adds what every part says of itself, its memory among it.
func process(reg prometheus.Registerer) {
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
}
