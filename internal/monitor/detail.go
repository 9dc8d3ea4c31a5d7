package monitor

import (
	"math"
	"slices"
	"strings"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/config"
	"github.com/lag-monitor/lag-monitor/internal/conn"
	"github.com/lag-monitor/lag-monitor/internal/ledger"
)

// LimitStatus is what a probe's limits of one severity are, and whether they are crossed. Durations are
// in seconds.
type LimitStatus struct {
	Lag       float64 `json:"lag,omitempty"`        // 0: no limit
	For       float64 `json:"for,omitempty"`        // how long the lag has to be above it before somebody is called
	DropRatio float64 `json:"drop_ratio,omitempty"` // of the heartbeats that were accepted, 0 to 1; 0: no limit
	// LagSince and DropsSince are since when the limit has been crossed without a break; zero when it is not.
	LagSince   time.Time `json:"lag_since,omitzero"`
	DropsSince time.Time `json:"drops_since,omitzero"`
}

// PauseStatus is a pause of a probe.
type PauseStatus struct {
	Since time.Time `json:"since"`
	Until time.Time `json:"until"`
}

// StuckStatus says between which two stations of a probe its heartbeats stay: they have passed From ("head"
// or the name of a sink) and do not come to To.
type StuckStatus struct {
	From  string    `json:"from"`
	To    string    `json:"to"`
	Since time.Time `json:"since"`
}

// ProbeDetail is all that is known of one probe.
type ProbeDetail struct {
	ProbeStatus
	// Hops are the ways between two stations, in the order of the probe's sinks: head to the first, first to
	// the second, and so on. Destinations that follow the last hop fan out from it.
	Hops    []HopStatus   `json:"hops"`
	Beats   []BeatStatus  `json:"beats"` // the last 120 heartbeats of all lanes, the oldest first
	History HistoryStatus `json:"history"`
	Config  string        `json:"config"` // the probe and its sinks as YAML with every default, without secrets
}

// HopStatus is one way between two stations. Durations are in seconds.
type HopStatus struct {
	From    string  `json:"from"` // "head" or a sink
	To      string  `json:"to"`   // a sink
	Latency float64 `json:"latency"`
	P50     float64 `json:"p50"` // of the heartbeats in ProbeDetail.Beats
	P99     float64 `json:"p99"`
	Rate    float64 `json:"rate"` // arrivals a second at To, over the last minute
	Seen    bool    `json:"seen"` // a heartbeat has been seen at both ends: Latency, P50 and P99 mean something
}

// BeatStatus is one heartbeat.
type BeatStatus struct {
	Lane   uint32           `json:"lane"`
	Seq    uint64           `json:"seq"`
	Sent   time.Time        `json:"sent"`
	Due    time.Time        `json:"due"`
	Result string           `json:"result"` // success, failure, unknown, pending, skipped; empty where the probe only listens
	Error  string           `json:"error,omitempty"`
	Sinks  []BeatSinkStatus `json:"sinks"`
}

// BeatSinkStatus is one heartbeat at one sink.
type BeatSinkStatus struct {
	Sink       string    `json:"sink"`
	Outcome    string    `json:"outcome"` // on_time, late, dropped, indeterminate, in_flight; empty when nothing is expected
	Reason     string    `json:"reason,omitempty"`
	Arrived    time.Time `json:"arrived,omitzero"`
	Latency    float64   `json:"latency,omitempty"` // seconds, valid when Arrived is
	Duplicates int       `json:"duplicates,omitempty"`
	Retries    int       `json:"retries,omitempty"` // how many times the message was tried before it came
}

// HistoryStatus is the last six hours, a point a minute.
type HistoryStatus struct {
	Start time.Time     `json:"start"` // of the first point
	Step  float64       `json:"step"`  // seconds
	Sinks []SinkHistory `json:"sinks"`
}

// SinkHistory has, for each step, the largest lag and latency at a sink, in seconds; nil where nothing is
// known.
type SinkHistory struct {
	Sink    string     `json:"sink"`
	Lag     []*float64 `json:"lag"`
	Latency []*float64 `json:"latency"`
}

// Probe takes stock of one probe; false when there is none of that name.
func (m *Monitor) Probe(name string) (ProbeDetail, bool) {
	p := m.state.Load().probes[name]
	if p == nil {
		return ProbeDetail{}, false
	}
	now := time.Now()
	out := ProbeDetail{ProbeStatus: p.status(now), Hops: []HopStatus{}, Beats: []BeatStatus{}}
	p.mu.Lock()
	cfg := p.cfg
	out.Beats = p.beatStatus(now)
	for _, w := range p.watches {
		if w.expects() {
			out.Hops = append(out.Hops, w.hopStatus(now, out.Beats))
		}
	}
	out.History = p.historyStatus(now)
	p.mu.Unlock()
	out.Config = p.redacted(cfg)
	return out, true
}

// beatStatus lists the kept heartbeats in the order in which they were sent.
func (p *probeRun) beatStatus(now time.Time) []BeatStatus {
	b := &p.beats
	list := make([]BeatStatus, 0, b.n-b.first())
	at, times := p.m.instant(now), b.sent()
	for i := b.first(); i < b.n; i++ {
		low := b.kept.seq[i%keptBeats]
		from := source{p.instance, p.epoch}
		if b.from != nil {
			from = b.from[i%keptBeats]
		}
		r, err := b.of(i)
		sent := now.Add(-at.Sub(times[i-b.first()])).Round(0)
		out := BeatStatus{Lane: b.lane(i), Seq: uint64(low), Sent: sent, Due: sent.Add(p.cfg.Expiry), Result: said[r], Error: err, Sinks: []BeatSinkStatus{}}
		for _, w := range p.watches {
			if !w.expects() {
				continue
			}
			s := BeatSinkStatus{Sink: w.sink.cfg.Name}
			if w.ledger == nil {
				if r := w.runOf(from); r != nil {
					out.Due = sent.Add(r.cfg.Expiry) // what its sender says
				}
			}
			if l := w.accountFrom(from); l != nil {
				out.Seq = l.Near(out.Lane, low)
				if rec, ok := l.Told(out.Lane, out.Seq); ok {
					s = p.told(rec, s, out, from)
				}
			}
			out.Sinks = append(out.Sinks, s)
		}
		list = append(list, out)
	}
	slices.SortStableFunc(list, func(a, b BeatStatus) int { return a.Sent.Compare(b.Sent) })
	return list
}

// outcomes are the words for the fates of a heartbeat.
var outcomes = map[ledger.Fate]string{ledger.Injecting: "in_flight", ledger.Waiting: "in_flight", ledger.WaitingMaybe: "in_flight",
	ledger.Received: "on_time", ledger.ReceivedLate: "late", ledger.Dropped: "dropped", ledger.Indeterminate: "indeterminate"}

// told fills in what the account at a sink tells of a heartbeat.
func (p *probeRun) told(rec ledger.Record, s BeatSinkStatus, b BeatStatus, from source) BeatSinkStatus {
	s.Outcome, s.Duplicates, s.Retries = outcomes[rec.Fate], rec.Duplicates, rec.Retries
	if rec.Arrived {
		s.Latency, s.Arrived = rec.Latency.Seconds(), b.Due.Add(rec.Latency)
	}
	switch {
	case rec.Dropped:
		s.Reason = rec.Drop.String()
	case rec.Doubted:
		s.Reason = rec.Doubt.String()
	}
	if rec.Death == ledger.NotDead {
		return s
	}
	words := p.deathWords(from, b.Lane, b.Seq, rec.Death)
	dead := ledger.DropDeadLettered.String()
	switch {
	case s.Reason == "":
		s.Reason = dead
	case rec.Dropped && rec.Drop != ledger.DropTimeout:
	default:
		s.Reason += ", " + dead
	}
	if words != "" {
		s.Reason += " (" + words + ")"
	}
	return s
}

// hopStatus is the way to the sink of w, by the heartbeats that are shown.
func (w *watch) hopStatus(now time.Time, shown []BeatStatus) HopStatus {
	out := HopStatus{From: w.before(), To: w.sink.cfg.Name, Rate: w.rate.perSecond(w.p.m.instant(now))}
	arrived := func(b *BeatStatus, sink string) (time.Duration, bool) {
		i := slices.IndexFunc(b.Sinks, func(s BeatSinkStatus) bool { return s.Sink == sink })
		if i < 0 || b.Sinks[i].Arrived.IsZero() {
			return 0, false
		}
		return seconds(b.Sinks[i].Latency), true
	}
	var times []float64
	for i := range shown {
		b := &shown[i]
		to, ok := arrived(b, out.To)
		from := b.Sent.Sub(b.Due)
		if w.from != nil && ok {
			from, ok = arrived(b, out.From)
		}
		if ok {
			out.Latency = hopTime(from, to).Seconds()
			times = append(times, out.Latency)
		}
	}
	if out.Seen = len(times) > 0; out.Seen {
		slices.Sort(times)
		out.P50, out.P99 = quantile(times, .5), quantile(times, .99)
	}
	return out
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// quantile is the smallest of sorted values that a share of them does not exceed.
func quantile(sorted []float64, share float64) float64 {
	return sorted[max(0, int(math.Ceil(share*float64(len(sorted))))-1)]
}

func (p *probeRun) historyStatus(now time.Time) HistoryStatus {
	out := HistoryStatus{Step: historyStep.Seconds(), Sinks: []SinkHistory{}}
	newest := minuteOf(now)
	for _, w := range p.watches {
		newest = max(newest, w.history.minute)
	}
	from := newest - historySteps + 1
	out.Start = time.Unix(from*int64(historyStep/time.Second), 0)
	for _, w := range p.watches {
		if w.expects() {
			out.Sinks = append(out.Sinks, w.historyStatus(from, newest))
		}
	}
	return out
}

// redacted is the definition of the probe and its sinks, without secrets.
func (p *probeRun) redacted(cfg *config.Probe) string {
	of := make(map[string]*config.Sink, len(p.watches))
	for _, w := range p.watches {
		of[w.sink.cfg.Name] = w.sink.cfg
	}
	var text []byte
	var err error
	func() {
		defer conn.Contain(&err) // the settings are the drivers'
		text, err = cfg.Redacted(of)
	}()
	if err != nil {
		return "# cannot be shown: " + strings.ReplaceAll(err.Error(), "\n", " ") + "\n"
	}
	return string(text)
}
