package monitor

import (
	"time"

	"github.com/lag-monitor/lag-monitor/internal/ledger"
)

// Observer is told of heartbeats as they pass, for a person who looks on. It sees what the accounts see and
// changes nothing in them. Its methods are called from many goroutines with the lock of the probe held: they
// return at once and call no method of the Monitor.
type Observer interface {
	// Injected tells what the head has said of a heartbeat. It may come after the heartbeat has arrived.
	Injected(Injection)
	// Arrived tells that a heartbeat of a probe came out at one of its sinks; not at a dead-letter queue.
	Arrived(Arrival)
}

// Injection is one heartbeat that was injected, or that the head has refused.
type Injection struct {
	Probe     string
	Tick      uint64 // counts those with an injection from 1; the lanes of a tick share it
	Lane      uint32
	Seq       uint64
	Sent, Due time.Time
	Took      time.Duration // for all lanes of the tick together
	Result    ledger.Result
	Err       error // nil when the head has accepted it
}

// Arrival is one heartbeat that came out.
type Arrival struct {
	Probe, Sink string
	Lane        uint32
	Seq         uint64
	At          time.Time
	Outcome     ledger.Outcome
}

// Fate returns what has become so far of a heartbeat that a probe injects, at one of its sinks. What was
// decided long ago is told less exactly: late as Received, indeterminate as Dropped. It returns Unsent for
// what is not known.
func (m *Monitor) Fate(probe, sink string, lane uint32, seq uint64) ledger.Fate {
	p := m.state.Load().probes[probe]
	if p == nil {
		return ledger.Unsent
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, w := range p.watches {
		if w.sink.cfg.Name == sink && w.ledger != nil {
			w.sync()
			w.ledger.Advance(m.instant(time.Now()))
			return w.ledger.Fate(lane, seq)
		}
	}
	return ledger.Unsent
}
