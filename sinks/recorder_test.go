package sinks

import (
	"sync"
	"testing"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/heartbeat"
)

// taker is a Receiver that takes every heartbeat for ours and counts the calls.
type taker struct {
	mu       sync.Mutex
	seqs     []uint64
	proofs   []time.Time // caughtUp when each of them came
	gaps     []string
	ready    int
	caughtUp time.Time
}

func (r *taker) Heartbeat(h *heartbeat.Heartbeat, _ Arrival) Kind {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seqs = append(r.seqs, h.Seq)
	r.proofs = append(r.proofs, r.caughtUp)
	return Heartbeat
}

func (r *taker) Ready(bool, time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ready++
}

func (r *taker) CaughtUp(t time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.caughtUp = t
}

func (r *taker) Gap(_ time.Time, reason string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.gaps = append(r.gaps, reason)
}

func (r *taker) arrived() []uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]uint64{}, r.seqs...)
}

// tokenOf returns an unsigned token with this sequence.
func tokenOf(seq uint64) string {
	h := heartbeat.Heartbeat{Probe: "p", Instance: 1, Epoch: 2, Seq: seq, Sent: time.Unix(1700000000, 0), Interval: time.Second, Timeout: time.Minute}
	return string((*heartbeat.Keyring)(nil).Append(nil, &h))
}

func waitUntil(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !cond(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within 30 s", what)
		}
	}
}
