package tracing

import (
	"context"
	"encoding/binary"
	"log/slog"
	"math"
	"sync/atomic"
	"time"
)

const (
	maxQueue = 4096 // heartbeats that wait to be exported, about 1 KiB each
	maxBatch = 512  // heartbeats in one request
	// linger is how long a batch waits for others to share its request.
	linger = time.Second
)

// Loss is why a trace was thrown away: the label `reason` of lag_monitor_traces_dropped_total.
type Loss int

// The reasons.
const (
	LossQueue    Loss = iota // the receiver is slower than the heartbeats, or does not answer
	LossExport               // the receiver refused it, or did not take it in time
	LossOverflow             // more heartbeats were under way than are followed
	losses
)

var lossNames = [losses]string{"queue_full", "export_failed", "too_many_open"}

func (l Loss) String() string { return lossNames[l] }

// Losses lists them, for metrics that exist at zero.
func Losses() []Loss { return []Loss{LossQueue, LossExport, LossOverflow} }

// Stats is what an Exporter has counted, in traces: what is told of one heartbeat later is one more.
type Stats struct {
	Exported uint64
	Dropped  [losses]uint64
}

// Exporter decides which heartbeats are traced, and exports their traces. Without Use it does neither.
// All methods but Run and Flush are safe for concurrent use and never wait.
type Exporter struct {
	log   *slog.Logger
	queue chan *Heartbeat
	use   atomic.Pointer[use]

	exported atomic.Uint64
	dropped  [losses]atomic.Uint64

	left    []*Heartbeat // what Run had in its hands when it ended
	failing bool         // of the goroutine that exports
	lost    int
}

// use is what an Exporter does now.
type use struct {
	below    uint64 // ids whose lower half, without its last bit, is below are traced
	receiver *Receiver
}

// NewExporter returns an Exporter.
func NewExporter(log *slog.Logger) *Exporter {
	return &Exporter{log: log, queue: make(chan *Heartbeat, maxQueue)}
}

// Use makes the exporter trace this part of the heartbeats, 0 to 1, and send the traces to r; nil: nowhere.
func (e *Exporter) Use(ratio float64, r *Receiver) {
	next := &use{receiver: r}
	switch {
	case ratio >= 1:
		next.below = math.MaxUint64
	case ratio > 0:
		next.below = uint64(ratio * (1 << 63))
	}
	if old := e.use.Swap(next); old != nil && old.receiver != nil && old.receiver != r {
		old.receiver.client.CloseIdleConnections()
	}
}

// Sampled reports whether the heartbeat with this trace id is traced. Every process with the same ratio says
// the same, as do the samplers of OpenTelemetry that go by the id.
func (e *Exporter) Sampled(id [16]byte) bool {
	u := e.use.Load()
	return u != nil && binary.BigEndian.Uint64(id[8:])>>1 < u.below
}

// Exports reports whether traces go anywhere.
func (e *Exporter) Exports() bool {
	u := e.use.Load()
	return u != nil && u.receiver != nil
}

// Export takes a trace to be exported soon, or throws it away and counts it.
func (e *Exporter) Export(h *Heartbeat) {
	if !e.Exports() {
		return // tracing was turned off while the heartbeat was under way
	}
	select {
	case e.queue <- h:
	default:
		e.Lose(LossQueue, 1)
	}
}

// Lose counts traces that were thrown away.
func (e *Exporter) Lose(why Loss, n int) { e.dropped[why].Add(uint64(n)) }

// Stats returns the counts so far.
func (e *Exporter) Stats() Stats {
	s := Stats{Exported: e.exported.Load()}
	for i := range e.dropped {
		s.Dropped[i] = e.dropped[i].Load()
	}
	return s
}

// Run exports until ctx ends. It is called once.
func (e *Exporter) Run(ctx context.Context) {
	for {
		batch := e.gather(ctx)
		if ctx.Err() != nil {
			e.left = batch
			return
		}
		if !e.export(ctx, batch) {
			e.left = batch
			return
		}
	}
}

// gather waits for a trace and, for a little while, for others.
func (e *Exporter) gather(ctx context.Context) (batch []*Heartbeat) {
	select {
	case h := <-e.queue:
		batch = append(batch, h)
	case <-ctx.Done():
		return nil
	}
	enough := time.NewTimer(linger)
	defer enough.Stop()
	for len(batch) < maxBatch {
		select {
		case h := <-e.queue:
			batch = append(batch, h)
		case <-enough.C:
			return batch
		case <-ctx.Done():
			return batch
		}
	}
	return batch
}

// export sends a batch and counts what became of it. It reports false, and counts nothing, when ctx ended
// before anything was known.
func (e *Exporter) export(ctx context.Context, batch []*Heartbeat) bool {
	u := e.use.Load()
	if u == nil || u.receiver == nil || len(batch) == 0 {
		return true
	}
	rejected, err := u.receiver.upload(ctx, batch)
	lost := len(batch)
	switch {
	case err == nil:
		lost = 0
	case rejected > 0:
		lost = min(lost, int(rejected)) // it does not say which
	case ctx.Err() != nil:
		return false
	}
	e.exported.Add(uint64(len(batch) - lost))
	e.Lose(LossExport, lost)
	e.lost += lost
	switch {
	case err != nil && !e.failing:
		e.failing = true
		e.log.Warn("traces cannot be exported: they are thrown away until they can", "err", err)
	case err == nil && e.failing:
		e.log.Info("traces are exported again", "dropped", e.lost)
		e.failing, e.lost = false, 0
	}
	return true
}

// Flush exports what waits, until ctx ends, after Run has. What is not exported by then is counted as
// thrown away.
func (e *Exporter) Flush(ctx context.Context) {
	batch := e.left
	for {
		for more := true; more && len(batch) < maxBatch; {
			select {
			case h := <-e.queue:
				batch = append(batch, h)
			default:
				more = false
			}
		}
		if len(batch) == 0 {
			return
		}
		if !e.export(ctx, batch) {
			e.Lose(LossExport, len(batch))
			e.log.Warn("traces were thrown away at the end: the receiver did not take them in time", "traces", len(batch)+len(e.queue))
			e.Lose(LossExport, len(e.queue))
			return
		}
		batch = batch[:0]
	}
}
