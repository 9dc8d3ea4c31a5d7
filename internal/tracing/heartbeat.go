package tracing

import (
	"time"

	"github.com/lag-monitor/lag-monitor/internal/heartbeat"
)

// Heartbeat is what became of one heartbeat, or a part of it that is known later or to somebody else. All
// times are of the wall clock; where one process knows two of them, their difference is that of the
// monotonic clock. It is not changed once it is handed on.
type Heartbeat struct {
	Trace    heartbeat.Trace
	Probe    string
	Labels   map[string]string // of the probe
	Instance uint64
	Epoch    uint64
	Lane     uint32
	Seq      uint64
	Sent     time.Time
	Expiry   time.Duration
	// Injection is nil where another process has sent it, or where that was told before: then Stations hang
	// below a root that is in another message.
	Injection *Injection
	Stations  []Station
}

// Injection is what the head said of a heartbeat.
type Injection struct {
	Kind   string // of the head: http, kafka
	Took   time.Duration
	Result string // success, failure or unknown
	Error  string
}

// Station is a heartbeat at one sink.
type Station struct {
	Sink, Kind, Role string
	From             string    // the station before: "head" or the name of a sink
	Left             time.Time // when it was there
	At               time.Time // when it came out; else when it was given up, or last looked for
	Outcome          Outcome
	Reason           string // of OutcomeDropped and OutcomeIndeterminate
	// Latency is the arrival minus the due time, where it has arrived.
	Latency time.Duration
	Arrived bool
}

// Outcome is what became of a heartbeat at a sink.
type Outcome string

// The outcomes.
const (
	OnTime        Outcome = "on_time"
	Late          Outcome = "late"
	Dropped       Outcome = "dropped"
	Indeterminate Outcome = "indeterminate"
	InFlight      Outcome = "in_flight"     // the monitor has stopped before it was known
	DeadLettered  Outcome = "dead_lettered" // found in a dead-letter queue
	NotSent       Outcome = "not_sent"      // of the heartbeat as a whole: the head has refused it
)

// Outcome of the heartbeat as a whole is the worst of those at its stations.
func (h *Heartbeat) Outcome() Outcome {
	if h.Injection != nil && h.Injection.Result == "failure" && len(h.Stations) == 0 {
		return NotSent
	}
	worst := OnTime
	for _, s := range h.Stations {
		if severity[s.Outcome] > severity[worst] {
			worst = s.Outcome
		}
	}
	if len(h.Stations) == 0 && h.Injection != nil && h.Injection.Result == "unknown" {
		worst = Indeterminate
	}
	return worst
}

var severity = map[Outcome]int{OnTime: 0, InFlight: 1, Indeterminate: 2, Late: 3, DeadLettered: 4, Dropped: 5}

// end is the time of the last that is known.
func (h *Heartbeat) end() time.Time {
	end := h.Sent
	if h.Injection != nil {
		end = end.Add(h.Injection.Took)
	}
	for _, s := range h.Stations {
		if s.At.After(end) {
			end = s.At
		}
	}
	return end
}
