package monitor

import (
	"cmp"
	"encoding/hex"
	"slices"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/config"
	"github.com/lag-monitor/lag-monitor/internal/heartbeat"
	"github.com/lag-monitor/lag-monitor/internal/ledger"
	"github.com/lag-monitor/lag-monitor/internal/tracing"
	"github.com/lag-monitor/lag-monitor/sinks"
)

// Tracer decides which heartbeats are traced and takes what became of them: a tracing.Exporter. Its methods
// are safe for concurrent use, and do not wait.
type Tracer interface {
	Sampled(id [16]byte) bool
	Exports() bool // whether Export is of any use now
	Export(*tracing.Heartbeat)
	Lose(why tracing.Loss, n int)
	Stats() tracing.Stats
}

// maxOpenTraces is how many traces all probes together may have open, at about 1 KiB each. Beyond that a probe
// gives up its oldest for each new one.
const maxOpenTraces = 1 << 15

// traces are the traces of a probe's own heartbeats whose outcome is open. The probe's lock guards them.
type traces struct {
	open  map[traceKey]*openTrace
	order []traceKey // the oldest first; some may be open no more
}

type traceKey struct {
	source
	lane uint32
	seq  uint64
}

type openTrace struct {
	h       tracing.Heartbeat
	timeout time.Duration
	waiting []string // the sinks that have not told yet
}

// station is where heartbeats come to before it is known when and whether.
func (w *watch) station() tracing.Station {
	return tracing.Station{Sink: w.sink.cfg.Name, Kind: w.sink.cfg.Kind, Role: w.sink.cfg.Role}
}

// trace begins the trace of a heartbeat that is about to be injected, if it is one to trace, and returns its
// traceparent. The caller holds the lock.
func (p *probeRun) trace(h *heartbeat.Heartbeat) string {
	id, t := h.Trace(), p.m.opts.Tracer
	if t == nil || !t.Sampled(id.ID) {
		return id.Parent(false)
	}
	if !t.Exports() {
		return id.Parent(true)
	}
	o := &openTrace{timeout: h.Timeout, h: tracing.Heartbeat{Trace: id, Probe: p.cfg.Name, Labels: p.cfg.Labels, Instance: h.Instance, Epoch: h.Epoch,
		Lane: h.Lane, Seq: h.Seq, Sent: h.Sent, Expiry: h.Expiry}}
	for _, w := range p.watches {
		if w.expects() {
			o.waiting = append(o.waiting, w.sink.cfg.Name)
		}
	}
	p.makeTraceRoom()
	p.addTrace(traceKey{source{h.Instance, h.Epoch}, h.Lane, h.Seq}, o)
	return id.Parent(true)
}

func (p *probeRun) addTrace(k traceKey, o *openTrace) {
	if p.traces.open == nil {
		p.traces.open = make(map[traceKey]*openTrace)
	}
	p.traces.open[k] = o
	p.traces.order = append(p.traces.order, k)
	p.m.openTraces.Add(1)
}

func (p *probeRun) removeTrace(k traceKey) {
	delete(p.traces.open, k)
	p.m.openTraces.Add(-1)
}

// makeTraceRoom keeps the order short, and gives up the oldest trace when there are too many.
func (p *probeRun) makeTraceRoom() {
	t := &p.traces
	if len(t.order) > 2*len(t.open)+64 {
		t.order = slices.DeleteFunc(t.order, func(k traceKey) bool { return t.open[k] == nil })
	}
	if p.m.openTraces.Load() < maxOpenTraces {
		return
	}
	for i, k := range t.order {
		if t.open[k] != nil {
			p.removeTrace(k)
			p.m.opts.Tracer.Lose(tracing.LossOverflow, 1)
			t.order = t.order[i+1:]
			return
		}
	}
}

// traceSent notes what the head has said. The caller holds the lock.
func (p *probeRun) traceSent(lane uint32, seq uint64, took time.Duration, r ledger.Result, err error) {
	k := traceKey{source{p.instance, p.epoch}, lane, seq}
	o := p.traces.open[k]
	if o == nil {
		return
	}
	o.h.Injection = &tracing.Injection{Kind: p.cfg.InjectKind, Took: took, Result: resultNames[r]}
	if err != nil {
		o.h.Injection.Error = err.Error()
	}
	if r == ledger.Refused {
		o.waiting = nil
	}
	p.endTrace(k, o)
}

var resultNames = map[ledger.Result]string{ledger.Accepted: "success", ledger.Refused: "failure", ledger.Unknown: "unknown"}

// endTrace hands a trace on when all is known.
func (p *probeRun) endTrace(k traceKey, o *openTrace) {
	if o.h.Injection == nil || len(o.waiting) > 0 {
		return
	}
	p.removeTrace(k)
	place := func(s tracing.Station) int {
		return slices.IndexFunc(p.watches, func(w *watch) bool { return w.sink.cfg.Name == s.Sink })
	}
	slices.SortStableFunc(o.h.Stations, func(a, b tracing.Station) int { return cmp.Compare(place(a), place(b)) })
	for i := range o.h.Stations {
		s := &o.h.Stations[i]
		s.From, s.Left = before(&o.h, o.h.Stations[:i], s.At)
	}
	p.m.opts.Tracer.Export(&o.h)
}

// headStation stands for where heartbeats are injected, among the stations on their way.
const headStation = "head"

// before returns the last of the stations that a heartbeat is known to have passed, and when: one of the hops,
// or the head. What passes quickly may be seen at the next station, at that time, before it is seen at the hop.
func before(h *tracing.Heartbeat, stations []tracing.Station, at time.Time) (from string, left time.Time) {
	from, left = headStation, h.Sent
	for _, s := range stations {
		if s.Role == config.Hop && s.Arrived {
			from, left = s.Sink, s.At
		}
	}
	if left.After(at) {
		left = at
	}
	return from, left
}

// traceArrival notes an arrival, and returns the id of the trace; empty when the heartbeat is not traced. A
// heartbeat whose trace has ended, or whose sender is another process, gets a span by itself. The caller
// holds the lock.
func (w *watch) traceArrival(h *heartbeat.Heartbeat, a sinks.Arrival, outcome tracing.Outcome, latency time.Duration) string {
	p, t := w.p, w.p.m.opts.Tracer
	if t == nil || !t.Exports() {
		return ""
	}
	k := traceKey{source{h.Instance, h.Epoch}, h.Lane, h.Seq}
	o := p.traces.open[k]
	s := w.station()
	s.Outcome, s.Latency, s.Arrived = outcome, latency, true
	if o == nil {
		id := h.Trace()
		if !t.Sampled(id.ID) {
			return ""
		}
		s.From, s.Left, s.At = headStation, h.Sent, a.At.Round(0)
		t.Export(p.part(k, id, h.Sent, h.Expiry, s))
		return hex.EncodeToString(id.ID[:])
	}
	s.At = o.h.Sent.Add(a.At.Sub(o.h.Sent))
	if i := slices.Index(o.waiting, s.Sink); i >= 0 || outcome == tracing.DeadLettered {
		o.h.Stations = append(o.h.Stations, s)
		if i >= 0 {
			o.waiting = slices.Delete(o.waiting, i, i+1)
		}
		p.endTrace(k, o)
	} else {
		s.From, s.Left = before(&o.h, o.h.Stations, s.At)
		t.Export(p.part(k, o.h.Trace, o.h.Sent, o.h.Expiry, s))
	}
	return hex.EncodeToString(o.h.Trace.ID[:])
}

// part is what is told of a heartbeat beside its trace.
func (p *probeRun) part(k traceKey, id heartbeat.Trace, sent time.Time, expiry time.Duration, s tracing.Station) *tracing.Heartbeat {
	return &tracing.Heartbeat{Trace: id, Probe: p.cfg.Name, Labels: p.cfg.Labels, Instance: k.instance, Epoch: k.epoch, Lane: k.lane, Seq: k.seq,
		Sent: sent, Expiry: expiry, Stations: []tracing.Station{s}}
}

// decided is told by the account of a run which heartbeats it has given up; nil when nobody traces. It is
// called under the probe's lock.
func (w *watch) decided(from source, cfg ledger.Config) func(ledger.Decision) {
	t := w.p.m.opts.Tracer
	if t == nil {
		return nil
	}
	return func(d ledger.Decision) {
		if !t.Exports() {
			return
		}
		p, now := w.p, time.Now()
		k := traceKey{from, d.Lane, d.Seq}
		s := w.station()
		s.Outcome, s.Reason = tracing.Indeterminate, d.Reason
		if d.Dropped {
			s.Outcome = tracing.Dropped
		}
		if o := p.traces.open[k]; o != nil {
			i := slices.Index(o.waiting, s.Sink)
			if i < 0 {
				return
			}
			s.At = o.h.Sent.Add(min(now.Sub(o.h.Sent), o.h.Expiry+o.timeout))
			o.h.Stations = append(o.h.Stations, s)
			o.waiting = slices.Delete(o.waiting, i, i+1)
			p.endTrace(k, o)
			return
		}
		h := heartbeat.Heartbeat{Probe: p.cfg.Name, Instance: from.instance, Epoch: from.epoch, Lane: d.Lane, Seq: d.Seq}
		id := h.Trace()
		if !t.Sampled(id.ID) {
			return
		}
		due := time.Unix(0, p.m.wall(now, d.Due))
		s.From, s.Left = headStation, due.Add(-cfg.Expiry)
		s.At = due.Add(cfg.Timeout)
		if now.Before(s.At) {
			s.At = now.Round(0)
		}
		t.Export(p.part(k, id, s.Left, cfg.Expiry, s))
	}
}

// inheritTraces takes over the traces of the probe before a reload. A sink that is expected no more is not
// waited for. The caller holds both locks.
func (p *probeRun) inheritTraces(old *probeRun) {
	for _, k := range old.traces.order {
		o := old.traces.open[k]
		if o == nil {
			continue
		}
		old.removeTrace(k)
		o.waiting = slices.DeleteFunc(o.waiting, func(sink string) bool {
			return !slices.ContainsFunc(p.watches, func(w *watch) bool { return w.expects() && w.sink.cfg.Name == sink })
		})
		p.addTrace(k, o)
		p.endTrace(k, o)
	}
	old.traces = traces{}
}

// endTraces hands on what is open, for a probe that goes: what becomes of it is not known any more, or to the
// next process.
func (p *probeRun) endTraces() {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	for _, k := range p.traces.order {
		o := p.traces.open[k]
		if o == nil {
			continue
		}
		at := o.h.Sent.Add(now.Sub(o.h.Sent))
		if o.h.Injection == nil {
			o.h.Injection = &tracing.Injection{Kind: p.cfg.InjectKind, Took: now.Sub(o.h.Sent), Result: resultNames[ledger.Unknown]}
		}
		for _, w := range p.watches {
			if slices.Contains(o.waiting, w.sink.cfg.Name) {
				s := w.station()
				s.Outcome, s.At = tracing.InFlight, at
				o.h.Stations = append(o.h.Stations, s)
			}
		}
		o.waiting = nil
		p.endTrace(k, o)
	}
	p.traces = traces{}
}
