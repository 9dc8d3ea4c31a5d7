package monitor

import (
	"cmp"
	"slices"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/ledger"
	"github.com/lag-monitor/lag-monitor/sinks"
)

// Status is what runs and how it does, for people and for /api/v1/status. Durations are in seconds.
type Status struct {
	Instance string        `json:"instance"`
	Started  time.Time     `json:"started"`
	Probes   []ProbeStatus `json:"probes"` // by name
	Sinks    []SinkStatus  `json:"sinks"`  // by name
}

// ProbeStatus is one probe.
type ProbeStatus struct {
	Name     string            `json:"name"`
	Labels   map[string]string `json:"labels,omitempty"`
	Head     string            `json:"head,omitempty"` // the kind of the injector; empty when the probe only listens
	Interval float64           `json:"interval"`
	Expiry   float64           `json:"expiry"`
	Timeout  float64           `json:"timeout"`
	PageLag  float64           `json:"page_lag,omitempty"` // threshold; 0 when there is none
	// PageLimits and TicketLimits are nil when the probe has no limit of that severity.
	PageLimits   *LimitStatus `json:"page,omitempty"`
	TicketLimits *LimitStatus `json:"ticket,omitempty"`
	Runbook      string       `json:"runbook,omitempty"`
	Dashboard    string       `json:"dashboard,omitempty"`
	Paused       *PauseStatus `json:"paused,omitempty"` // nil: not paused
	Stuck        *StuckStatus `json:"stuck,omitempty"`  // nil: nothing is stuck, or there are no hops
	Sent         SentStatus   `json:"sent"`
	// LastError is the last failure of an injection.
	LastError *ErrorStatus `json:"last_error,omitempty"`
	// Failing is set when the last injection was not accepted.
	Failing bool         `json:"failing"`
	Sinks   []PairStatus `json:"sinks"`
}

// SentStatus counts the injections of a probe by what the head said, and the ticks without one.
type SentStatus struct {
	Success uint64 `json:"success"`
	Failure uint64 `json:"failure"`
	Unknown uint64 `json:"unknown"`
	Skipped uint64 `json:"skipped"`
}

// ErrorStatus is an error and its time.
type ErrorStatus struct {
	Error string    `json:"error"`
	At    time.Time `json:"at"`
}

// PairStatus is the account of a probe at one sink.
type PairStatus struct {
	Sink          string       `json:"sink"`
	Role          string       `json:"role"`
	Sent          uint64       `json:"sent"`
	Restored      uint64       `json:"restored"` // sent by earlier runs, and taken over
	OnTime        uint64       `json:"on_time"`
	Late          uint64       `json:"late"`
	Dropped       uint64       `json:"dropped"`
	Indeterminate uint64       `json:"indeterminate"`
	InFlight      uint64       `json:"in_flight"`
	Duplicated    uint64       `json:"duplicated"`
	Redelivered   uint64       `json:"redelivered"`
	Reordered     uint64       `json:"reordered"`
	Unaccounted   uint64       `json:"unaccounted"`
	Lag           float64      `json:"lag"`     // seconds, the largest of all lanes
	Latency       float64      `json:"latency"` // seconds, of the newest heartbeat
	Rate          float64      `json:"rate"`    // arrivals a second, over the last minute
	Lanes         []LaneStatus `json:"lanes"`
}

// LaneStatus is one lane of a probe at one sink.
type LaneStatus struct {
	Lane    uint32    `json:"lane"`
	Seen    bool      `json:"seen"`          // something has arrived since the start
	Last    time.Time `json:"last,omitzero"` // due time of the newest heartbeat
	Lag     float64   `json:"lag"`
	Latency float64   `json:"latency"` // of the newest heartbeat
	// Recent is a letter for each of the last heartbeats, at most 64, the oldest first: "." on time, "l"
	// late, "x" dropped, "?" indeterminate, "w" in flight, "i" being injected, "-" not sent.
	Recent string `json:"recent"`
}

// SinkStatus is one sink.
type SinkStatus struct {
	Name      string            `json:"name"`
	Kind      string            `json:"kind"`
	Role      string            `json:"role"`
	Up        bool              `json:"up"`
	Since     time.Time         `json:"since,omitzero"` // of the last change of Up
	CaughtUp  time.Time         `json:"caught_up,omitzero"`
	Messages  map[string]uint64 `json:"messages"`
	Errors    map[string]uint64 `json:"errors"`
	LastError *ErrorStatus      `json:"last_error,omitempty"`
}

// letters stands for the fates in LaneStatus.Recent.
const letters = "-iww.lx?"

// Status takes stock.
func (m *Monitor) Status() Status {
	st := m.state.Load()
	now := time.Now()
	out := Status{Instance: m.opts.Instance, Started: m.origin, Probes: []ProbeStatus{}, Sinks: []SinkStatus{}}
	for _, p := range st.probes {
		out.Probes = append(out.Probes, p.status(now))
	}
	for _, s := range st.sinks {
		out.Sinks = append(out.Sinks, s.status())
	}
	slices.SortFunc(out.Probes, func(a, b ProbeStatus) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(out.Sinks, func(a, b SinkStatus) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

func (p *probeRun) status(now time.Time) ProbeStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.observed = time.Time{} // as of now, whoever looked a moment ago
	p.observe(now)
	c, n := p.cfg, &p.counts
	skipped := uint64(0)
	for _, s := range n.Skipped {
		skipped += s
	}
	out := ProbeStatus{Name: c.Name, Labels: c.Labels, Head: c.InjectKind, Interval: c.Interval.Seconds(),
		Expiry: c.Expiry.Seconds(), Timeout: c.Timeout.Seconds(), PageLag: c.Page.Lag.Seconds(), Failing: p.failing,
		PageLimits: p.limitStatus(0), TicketLimits: p.limitStatus(1), Runbook: c.Runbook, Dashboard: c.Dashboard,
		Paused: p.pauseStatus(now), Stuck: p.stuckStatus(now),
		Sent:  SentStatus{Success: n.Success, Failure: n.Failure, Unknown: n.Unknown, Skipped: skipped},
		Sinks: []PairStatus{}}
	if p.last.err != nil {
		out.LastError = &ErrorStatus{p.last.err.Error(), p.last.at}
	}
	for _, w := range p.watches {
		out.Sinks = append(out.Sinks, w.status(now))
	}
	return out
}

func (w *watch) status(now time.Time) PairStatus {
	n, lanes := w.advance(now, nil)
	out := PairStatus{Sink: w.sink.cfg.Name, Role: w.sink.cfg.Role, Sent: n.Sent - w.restored, Restored: w.restored, OnTime: n.OnTime, Late: n.Late, Dropped: n.Drops(),
		Indeterminate: n.InDoubt(), InFlight: n.InFlight, Duplicated: n.Duplicates, Redelivered: n.Redeliveries,
		Reordered: n.Reordered, Unaccounted: n.Unaccounted, Rate: w.rate.perSecond(w.p.m.instant(now)), Lanes: []LaneStatus{}}
	if lag, seen := w.maxLag(w.p.m.instant(now)); seen {
		out.Lag = lag.Seconds()
	}
	newest := time.Time{}
	for _, l := range lanes {
		ls := LaneStatus{Lane: l.Lane, Seen: l.Seen, Lag: max(0, l.Lag).Seconds(), Latency: l.Latency.Seconds(), Last: w.stamps[l.Lane].due}
		if l.Seen && ls.Last.After(newest) {
			newest, out.Latency = ls.Last, ls.Latency
		}
		var fates []ledger.Fate
		if w.ledger != nil {
			fates = w.ledger.Recent(fates, ls.Lane)
		} else {
			w.ledgers(func(l *ledger.Ledger) { fates = l.Recent(fates[:0], ls.Lane) })
		}
		recent := make([]byte, len(fates))
		for i, f := range fates {
			recent[i] = letters[f]
		}
		ls.Recent = string(recent)
		out.Lanes = append(out.Lanes, ls)
	}
	return out
}

func (s *sinkRun) status() SinkStatus {
	st := s.feed.Stats()
	out := SinkStatus{Name: s.cfg.Name, Kind: s.cfg.Kind, Role: s.cfg.Role, Up: st.Ready, CaughtUp: st.CaughtUp,
		Messages: make(map[string]uint64), Errors: make(map[string]uint64)}
	s.mu.Lock()
	out.Since = s.at
	s.mu.Unlock()
	for _, k := range sinks.AllKinds() {
		out.Messages[k.String()] = st.Messages[k]
	}
	for c, n := range st.Errors {
		out.Errors[string(c)] = n
	}
	if st.LastError != nil {
		out.LastError = &ErrorStatus{st.LastError.Error(), st.LastErrorAt}
	}
	return out
}
