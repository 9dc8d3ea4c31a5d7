package memory_test

import (
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/lag-monitor/lag-monitor/internal/conform/memory"
	"github.com/lag-monitor/lag-monitor/internal/heartbeat"
	"github.com/lag-monitor/lag-monitor/probe"
	"github.com/lag-monitor/lag-monitor/sinks"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// taker counts what a sink reports.
type taker struct {
	mu   sync.Mutex
	seqs []uint64
	gaps []string
	wake chan struct{}
}

func (r *taker) Heartbeat(h *heartbeat.Heartbeat, _ sinks.Arrival) sinks.Kind {
	r.mu.Lock()
	r.seqs = append(r.seqs, h.Seq)
	r.mu.Unlock()
	if r.wake != nil {
		r.wake <- struct{}{}
	}
	return sinks.Heartbeat
}
func (r *taker) Ready(bool, time.Time) {}
func (r *taker) CaughtUp(time.Time)    {}
func (r *taker) Gap(_ time.Time, reason string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.gaps = append(r.gaps, reason)
}

func message(seq uint64) *probe.Message {
	h := heartbeat.Heartbeat{Probe: "p", Seq: seq, Sent: time.Now(), Interval: time.Second, Timeout: time.Minute}
	return &probe.Message{Probe: "p", Token: string((*heartbeat.Keyring)(nil).Append(nil, &h)), Seq: seq}
}

// The queue holds the last messages only, and a sink that was away for longer says so. All of it works
// in a synctest bubble, for simulations.
func TestTrimmed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := memory.NewQueue(1, 4)
		in, _ := (&memory.InjectorConfig{Queue: q}).Open()
		sink, _ := (&memory.SinkConfig{Queue: q}).Open()
		r := &taker{}
		run := func(during func()) {
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error)
			go func() { done <- sink.Run(ctx, sinks.NewFeed(r, nil)) }()
			synctest.Wait()
			during()
			synctest.Wait()
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		inject := func(seqs ...uint64) {
			for _, seq := range seqs {
				if err := in.Inject(t.Context(), message(seq)); err != nil {
					t.Error(err)
				}
			}
		}
		run(func() { inject(1, 2) })
		inject(3, 4, 5, 6)
		run(func() {})
		if len(r.gaps) != 0 {
			t.Errorf("gaps %v although the queue held everything", r.gaps)
		}
		inject(7, 8, 9, 10, 11, 12)
		run(func() { inject(13) })
		if want := []uint64{1, 2, 3, 4, 5, 6, 9, 10, 11, 12, 13}; !slices.Equal(r.seqs, want) || !slices.Equal(r.gaps, []string{"trimmed"}) {
			t.Errorf("arrived %v with gaps %v, want %v with one", r.seqs, r.gaps, want)
		}
		if q.Len() != 4 {
			t.Errorf("the queue holds %d messages, want 4", q.Len())
		}
	})
}

// One heartbeat through the queue, from Inject to the receiver in another goroutine.
func BenchmarkQueue(b *testing.B) {
	q := memory.NewQueue(1, 0)
	in, _ := (&memory.InjectorConfig{Queue: q}).Open()
	sink, _ := (&memory.SinkConfig{Queue: q}).Open()
	r := &taker{wake: make(chan struct{})}
	feed := sinks.NewFeed(r, nil)
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan error)
	go func() { done <- sink.Run(ctx, feed) }()
	for !feed.Stats().Ready {
		time.Sleep(time.Millisecond)
	}
	m := message(1)
	b.ReportAllocs()
	for b.Loop() {
		if err := in.Inject(ctx, m); err != nil {
			b.Fatal(err)
		}
		<-r.wake
	}
	cancel()
	if err := <-done; err != nil {
		b.Error(err)
	}
}
