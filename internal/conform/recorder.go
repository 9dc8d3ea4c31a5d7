package conform

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/heartbeat"
	"github.com/lag-monitor/lag-monitor/probe"
	"github.com/lag-monitor/lag-monitor/sinks"
)

const probeName = "conform"

// A key tells the suite's heartbeats apart.
type key struct {
	lane uint32
	seq  uint64
}

// source makes heartbeats. It is safe for concurrent use.
type source struct {
	mu       sync.Mutex
	keys     *heartbeat.Keyring
	instance uint64
	epoch    uint64
	seq      map[uint32]uint64
}

func newSource() *source {
	return &source{keys: heartbeat.NewKeyring([]byte("the suite's key")), instance: heartbeat.InstanceID("conform"),
		epoch: heartbeat.NewEpoch(), seq: make(map[uint32]uint64)}
}

// next returns the next heartbeat of a lane, sent now.
func (s *source) next(lane uint32) (key, *probe.Message) {
	s.mu.Lock()
	s.seq[lane]++
	k := key{lane, s.seq[lane]}
	s.mu.Unlock()
	h := s.heartbeat(k)
	trace := h.Trace()
	return k, &probe.Message{Probe: h.Probe, Token: string(s.keys.Append(nil, &h)), Seq: h.Seq, Lane: lane,
		Sent: h.Sent, Due: h.Due(), TTL: time.Minute, TraceParent: trace.Parent(true)}
}

func (s *source) heartbeat(k key) heartbeat.Heartbeat {
	return heartbeat.Heartbeat{Probe: probeName, Instance: s.instance, Epoch: s.epoch, Lane: k.lane, Lanes: 1, Seq: k.seq,
		Sent: time.Now(), Interval: time.Second, Timeout: time.Minute, Accepted: ^uint64(0)}
}

type what int

const (
	arrived what = iota
	ready
	caughtUp
	gap
)

// An event is one call of the Receiver.
type event struct {
	what    what
	at      time.Time // when the call was made
	t       time.Time // caughtUp: the time that is claimed
	key     key       // arrived
	arrival sinks.Arrival
	reason  string // gap
}

// recorder is a sinks.Receiver that writes down every call in the order in which they were made.
type recorder struct {
	src *source

	mu      sync.Mutex
	events  []event
	onReady func() // called once, in the driver's goroutine
}

func (r *recorder) add(e event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, e)
}

// Heartbeat implements sinks.Receiver.
func (r *recorder) Heartbeat(h *heartbeat.Heartbeat, a sinks.Arrival) sinks.Kind {
	if h.Probe != probeName || h.Instance != r.src.instance || h.Epoch != r.src.epoch {
		return sinks.Foreign
	}
	r.add(event{what: arrived, at: time.Now(), key: key{h.Lane, h.Seq}, arrival: a})
	return sinks.Heartbeat
}

// Ready implements sinks.Receiver.
func (r *recorder) Ready(up bool, at time.Time) {
	r.add(event{what: ready, at: at})
	r.mu.Lock()
	hook := r.onReady
	r.onReady = nil
	r.mu.Unlock()
	if hook != nil && up {
		hook()
	}
}

// CaughtUp implements sinks.Receiver.
func (r *recorder) CaughtUp(t time.Time) { r.add(event{what: caughtUp, at: time.Now(), t: t}) }

// Gap implements sinks.Receiver.
func (r *recorder) Gap(t time.Time, reason string) {
	r.add(event{what: gap, at: t, reason: reason})
}

// log returns a copy of the events so far.
func (r *recorder) log() []event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.events)
}

// arrivals counts how often each heartbeat has arrived.
func (r *recorder) arrivals() map[key]int {
	n := make(map[key]int)
	for _, e := range r.log() {
		if e.what == arrived {
			n[e.key]++
		}
	}
	return n
}

func (r *recorder) count(w what) int {
	n := 0
	for _, e := range r.log() {
		if e.what == w {
			n++
		}
	}
	return n
}

// lastCaughtUp returns the newest time that the sink has claimed, zero before the first.
func (r *recorder) lastCaughtUp() time.Time {
	for _, e := range slices.Backward(r.log()) {
		if e.what == caughtUp {
			return e.t
		}
	}
	return time.Time{}
}

// accepted is a heartbeat that the head had accepted at a time.
type accepted struct {
	key key
	at  time.Time
}

// dishonest finds the claims to be caught up that came before the arrival of a heartbeat which they
// cover, and returns a text for the first one, else "".
func dishonest(events []event, sent []accepted) string {
	arrival := make(map[key]int)
	for i, e := range events {
		if _, ok := arrival[e.key]; e.what == arrived && !ok {
			arrival[e.key] = i
		}
	}
	for _, a := range sent {
		for i, e := range events {
			if e.what != caughtUp || !e.t.After(a.at) {
				continue
			}
			if at, ok := arrival[a.key]; !ok || at > i {
				return fmt.Sprintf("caught up with everything before %s was claimed while heartbeat %v, accepted %s earlier, had not been delivered",
					e.t.Format("15:04:05.000000"), a.key, e.t.Sub(a.at))
			}
			break
		}
	}
	return ""
}
