package e2e_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/servers"
)

// TestExact: of 200 heartbeats a pipeline loses 7 and repeats 5, in a queue that others use too. The
// monitor says exactly that, in every scrape on the way the account adds up, every partition of the queue
// is covered, and the others notice nothing.
func TestExact(t *testing.T) {
	t.Parallel()
	servers.Need(t)
	for name, open := range queues {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			exact(t, open(t))
		})
	}
}

func exact(t *testing.T, q *queue) {
	// First, last and neighbours: where an account that is off by one would show.
	lost := []int{1, 50, 51, 52, 117, 199, 200}
	repeated := []int{2, 60, 61, 118, 198}
	const accepted, ordinary = 200, 300
	r := startRelay(t, q.put, func(r *relay) {
		r.limit = accepted
		r.copies = func(n int) int {
			switch {
			case slices.Contains(lost, n):
				return 0
			case slices.Contains(repeated, n):
				return 2
			}
			return 1
		}
	})
	d := startDaemon(t, fmt.Sprintf(`
global: {timeout: 40s}
sinks:
  orders: {%s}
probes:
  relayed:
    interval: 50ms
    inject: {http: {url: %q}}
    sinks: [orders]
  direct:
    interval: 500ms
    inject: {%s}
    sinks: [orders]
`, q.sink, r.url, q.inject))
	d.await(t, "the sink reads", func(s scrape) bool { return s.Sum("sink_up") == 1 })

	// What looks like the beginning of a heartbeat belongs to others as well.
	order := func(i int) string {
		return fmt.Sprintf(`{"order": %d, "note": "%s"}`, i, []string{"", "~lagmon", "~lagmon0.relayed.AAAA"}[i%3])
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	traffic := make(chan error, 1)
	go func() {
		for i := range ordinary {
			if err := q.put(ctx, []byte(order(i))); err != nil {
				traffic <- err
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
		traffic <- nil
	}()
	s := d.await(t, "all outcomes are known", func(s scrape) bool {
		return s.Sum("heartbeats_sent_total", "probe", "relayed", "result", "success") == accepted &&
			s.Sum("heartbeats_in_flight", "probe", "relayed") == 0
	})
	if err := <-traffic; err != nil {
		t.Fatalf("ordinary traffic: %v", err)
	}
	s.wants(t, map[string]float64{
		"heartbeats_sent_total probe relayed result success":        accepted,
		"heartbeats_sent_total probe relayed result unknown":        0,
		"heartbeats_received_total probe relayed timing on_time":    accepted - 7,
		"heartbeats_received_total probe relayed timing late":       0,
		"heartbeats_dropped_total probe relayed reason timeout":     7,
		"heartbeats_dropped_total probe relayed":                    7,
		"heartbeats_indeterminate_total probe relayed":              0,
		"heartbeats_duplicated_total probe relayed kind duplicate":  5,
		"heartbeats_duplicated_total probe relayed kind redelivery": 0,
		"heartbeats_unaccounted_total probe relayed":                0,
		"heartbeat_latency_seconds_count probe relayed":             accepted - 7,
		"heartbeats_dropped_total probe direct":                     0,
		"heartbeats_indeterminate_total probe direct":               0,
		"heartbeats_duplicated_total probe direct":                  0,
		"sink_messages_total kind corrupt":                          0,
		"sink_messages_total kind foreign":                          0,
		"sink_messages_total kind future":                           0,
	})
	s = d.await(t, "all ordinary traffic is counted", func(s scrape) bool { return s.Sum("sink_messages_total", "kind", "other") >= ordinary })
	s.wants(t, map[string]float64{"sink_messages_total kind other": ordinary})

	mean := s.Sum("heartbeat_latency_seconds_sum", "probe", "relayed") / (accepted - 7)
	if mean <= 0 || mean > 30 {
		t.Errorf("a mean latency of %v s is not plausible", mean)
	}
	t.Logf("mean latency through the relay %.1f ms, straight into the queue %.1f ms", 1000*mean,
		1000*s.Sum("heartbeat_latency_seconds_sum", "probe", "direct")/s.Sum("heartbeat_latency_seconds_count", "probe", "direct"))

	// Each heartbeat goes to every lane: none is ahead of another by more than what is on its way.
	lanes := s.Find("heartbeat_timestamp_seconds", "probe", "direct")
	if len(lanes) != q.lanes {
		t.Errorf("%d lanes are covered; want %d: %v", len(lanes), q.lanes, lanes)
	}
	for _, l := range lanes {
		if age := time.Since(time.UnixMicro(int64(l.Value * 1e6))); age > 15*time.Second {
			t.Errorf("lane %s has seen nothing for %v", l.Labels["lane"], age)
		}
	}
	if sent := s.Sum("heartbeats_sent_total", "probe", "direct", "result", "success"); sent < 10*float64(q.lanes) {
		t.Errorf("only %v heartbeats went straight into the queue", sent)
	}

	found := q.ordinary(t, ordinary)
	for i := range ordinary {
		if found[order(i)] != 1 {
			t.Errorf("the ordinary consumer has read %s %d times", order(i), found[order(i)])
		}
	}
}
