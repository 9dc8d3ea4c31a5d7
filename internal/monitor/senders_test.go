package monitor

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/heartbeat"
	"github.com/lag-monitor/lag-monitor/probe"
)

// A listener keeps the accounts of the senders that it heard last, and the sums of the others.
func TestManySenders(t *testing.T) {
	sim(t, func(r *rig) {
		r.cfg.Probes["p"].Inject = nil
		r.cfg.Global.MaxSkew = 0 // or what was sent within it of the beginning would be in doubt
		r.start()
		say := func(epoch, seq uint64) {
			t.Helper()
			h := heartbeat.Heartbeat{Probe: "p", Instance: 7, Epoch: epoch, Lanes: 1, Seq: seq, Sent: time.Now(),
				Interval: time.Millisecond, Timeout: 10 * time.Second, Accepted: 1<<(seq-1) - 1}
			if err := r.queue.Put(t.Context(), heartbeat.NewKeyring().Append(nil, &h)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Millisecond)
			synctest.Wait()
		}
		// Of each sender the second heartbeat is missing. One sender more than there is room for comes when
		// the first has been heard again: the second is forgotten.
		for epoch := range uint64(maxRuns) {
			say(epoch+1, 1)
			say(epoch+1, 3)
		}
		say(1, 4)
		say(maxRuns+1, 1)
		say(maxRuns+1, 3)
		say(1, 2)

		s := r.listened()
		if s.Sent != 3*(maxRuns+1)+1 || s.OnTime != 2*(maxRuns+1)+2 || s.Indeterminate != 1 || s.InFlight != maxRuns-1 || s.Dropped != 0 {
			t.Errorf("after %d senders: %+v", maxRuns+1, s)
		}
		time.Sleep(15 * time.Second)
		if s := r.listened(); s.Indeterminate != 1 || s.InFlight != 0 || s.Dropped != maxRuns-1 {
			t.Errorf("after the deadlines: %+v", s)
		}
	})
}

// listened returns the account of a probe that only listens.
func (r *rig) listened() PairStatus {
	r.t.Helper()
	s := r.m.Status().Probes[0].Sinks[0]
	if s.Sent != s.OnTime+s.Dropped+s.Indeterminate+s.InFlight {
		r.t.Errorf("the account does not add up: %+v", s)
	}
	return s
}

// What the head said of the heartbeats before travels with each of them.
func TestTokensTellWhatTheHeadAccepted(t *testing.T) {
	sim(t, func(r *rig) {
		refused := func(seq uint64) bool { return seq%5 == 2 }
		unknown := func(seq uint64) bool { return seq%7 == 3 }
		var seen atomic.Int64
		var first atomic.Uint64
		r.cfg.Probes["p"].Inject = head(func(_ context.Context, m *probe.Message) error {
			var h heartbeat.Heartbeat
			if err := heartbeat.NewKeyring().Decode([]byte(m.Token), &h); err != nil {
				t.Fatal(err)
			}
			first.CompareAndSwap(0, h.Seq) // the first tick may come before the sink reads
			var want uint64
			for i := range min(64, h.Seq-1) {
				if before := h.Seq - 1 - i; before >= first.Load() && !refused(before) && !unknown(before) {
					want |= 1 << i
				}
			}
			if h.Accepted != want {
				t.Errorf("seq %d says %b, should say %b", h.Seq, h.Accepted, want)
			}
			seen.Add(1)
			switch {
			case refused(h.Seq):
				return probe.Refused(errors.New("no"))
			case unknown(h.Seq):
				return errors.New("no answer")
			}
			return nil
		})
		r.start()
		time.Sleep(100 * time.Second)
		if n := seen.Load(); n < 99 {
			t.Errorf("%d heartbeats in 100 s", n)
		}
	})
}

// The skew is how far a sender's clock is ahead: the most negative latency of the last minutes.
func TestSkew(t *testing.T) {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	var s skew
	for _, step := range []struct {
		at      time.Duration
		latency time.Duration
		want    time.Duration
	}{
		{0, 3 * time.Second, 0},
		{time.Second, -2 * time.Second, 2 * time.Second},
		{2 * time.Second, -time.Second, 2 * time.Second},
		{skewWindow + time.Second, -time.Second, 2 * time.Second}, // still among the last minutes
		{2*skewWindow + 2*time.Second, time.Second, time.Second},
		{5 * skewWindow, time.Second, 0},
	} {
		at := start.Add(step.at)
		s.see(at, step.latency)
		if got := s.estimate(at); got != step.want {
			t.Errorf("after %s, with a latency of %s: %s, should be %s", step.at, step.latency, got, step.want)
		}
	}
}
