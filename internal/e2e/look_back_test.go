package e2e_test

import (
	"context"
	"fmt"
	"math"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/lag-monitor/lag-monitor/internal/heartbeat"
	"github.com/lag-monitor/lag-monitor/internal/servers"
)

// TestLookBack: heartbeats come out while the monitor is dead. The next one finds them in the queues and
// continues the timestamps with them, although its own heads refuse everything, and counts them nowhere
// else. One that is told not to look back knows nothing.
func TestLookBack(t *testing.T) {
	t.Parallel()
	servers.Need(t)
	names := []string{"kafka4", "kinesis", "nats"}
	type pipeline struct {
		*queue
		*relay
		last atomic.Pointer[[]byte] // what the queue took last
	}
	pipelines := map[string]*pipeline{}
	config := func(lookBack string) string {
		var sinks, probes strings.Builder
		for _, name := range names {
			p := pipelines[name]
			fmt.Fprintf(&sinks, "  %s: {%s%s}\n", name, lookBack, p.sink)
			fmt.Fprintf(&probes, "  %s: {inject: {http: {url: %q}}, sinks: [%s]}\n", name, p.url, name)
		}
		return fmt.Sprintf("global: {interval: 250ms, timeout: 5m}\nsinks:\n%sprobes:\n%s", &sinks, &probes)
	}
	for _, name := range names {
		p := &pipeline{queue: queues[name](t)}
		p.relay = startRelay(t, func(ctx context.Context, body []byte) error {
			err := p.queue.put(ctx, body)
			if err == nil {
				p.last.Store(&body)
			}
			return err
		})
		pipelines[name] = p
	}
	every := func(ok func(s scrape, name string) bool) func(scrape) bool {
		return func(s scrape) bool {
			for _, name := range names {
				if !ok(s, name) {
					return false
				}
			}
			return true
		}
	}
	d := startDaemon(t, config(""))
	d.await(t, "heartbeats arrive everywhere", every(func(s scrape, name string) bool {
		return s.Sum("heartbeats_received_total", "sink", name) >= 8
	}))
	for _, name := range names {
		pipelines[name].hold()
	}
	for _, name := range names {
		eventually(t, name+" holds heartbeats", func() bool {
			accepted, delivered := pipelines[name].counts()
			return accepted-delivered >= 8
		})
	}
	d.Kill()
	due := map[string]float64{}
	for _, name := range names {
		p := pipelines[name]
		p.refuse()
		p.resume()
		eventually(t, name+" has delivered what it held", func() bool {
			accepted, delivered := p.counts()
			return accepted == delivered
		})
		_, token, _, ok := heartbeat.Next(*p.last.Load())
		var h heartbeat.Heartbeat
		if !ok || heartbeat.NewKeyring().Decode(token, &h) != nil {
			t.Fatalf("%s: %q is no heartbeat", name, *p.last.Load())
		}
		due[name] = float64(h.Due().UnixNano()) / 1e9
	}

	d.Start()
	s := d.await(t, "the timestamps continue", every(func(s scrape, name string) bool {
		at := s.Find("heartbeat_timestamp_seconds", "sink", name)
		accepted, _ := pipelines[name].counts()
		return len(at) == 1 && math.Abs(at[0].Value-due[name]) < 0.001 && s.Sum("sink_messages_total", "sink", name) >= float64(accepted) &&
			s.Sum("heartbeats_sent_total", "probe", name, "result", "failure") > 0
	}))
	for _, name := range names {
		accepted, _ := pipelines[name].counts()
		s.wants(t, map[string]float64{
			"heartbeats_sent_total result success probe " + name: 0,
			"heartbeats_sent_total result unknown probe " + name: 0,
			"heartbeats_received_total sink " + name:             0,
			"heartbeats_dropped_total sink " + name:              0,
			"heartbeats_indeterminate_total sink " + name:        0,
			"heartbeats_duplicated_total sink " + name:           0,
			"heartbeats_unaccounted_total sink " + name:          0,
			"heartbeats_in_flight sink " + name:                  0,
			"heartbeat_latency_seconds_count sink " + name:       0,
			"sink_messages_total kind heartbeat sink " + name:    float64(accepted),
			"sink_messages_total kind other sink " + name:        0,
			"sink_messages_total kind foreign sink " + name:      0,
			"sink_messages_total kind corrupt sink " + name:      0,
			"sink_messages_total kind future sink " + name:       0,
			"sink_errors_total sink " + name:                     0,
		})
	}

	d.Kill()
	write(t, d.config, config("look_back: 0s, "))
	d.Start()
	s = d.await(t, "the sinks have caught up", every(func(s scrape, name string) bool {
		return s.Sum("sink_caught_up_timestamp_seconds", "sink", name) > 0 && s.Sum("heartbeats_sent_total", "probe", name, "result", "failure") > 0
	}))
	for _, name := range names {
		if n := len(s.Find("heartbeat_timestamp_seconds", "sink", name)); n != 0 {
			t.Errorf("%s: %d timestamps without a look-back", name, n)
		}
		s.wants(t, map[string]float64{"sink_messages_total sink " + name: 0})
	}
}
