package e2e_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/servers"
)

// TestBrokerAway: brokers are away for 30 s under their sinks, with heartbeats in the queues that the
// sinks have not read yet. Then everything is read from the last position: nothing is dropped, nothing is
// indeterminate, nothing is read twice.
func TestBrokerAway(t *testing.T) {
	t.Parallel()
	servers.Need(t)
	const away = 30 * time.Second
	names := []string{"kafka4", "kinesis", "nats"}
	type pipeline struct {
		*queue
		*relay
		unread        int // put into the queue while the sink was away already
		started, back time.Time
	}
	pipelines := map[string]*pipeline{}
	var sinks, probes strings.Builder
	for _, name := range names {
		q := queues[name](t)
		p := &pipeline{queue: q, relay: startRelay(t, q.put)}
		pipelines[name] = p
		fmt.Fprintf(&sinks, "  %s: {%s}\n", name, q.sink)
		fmt.Fprintf(&probes, "  %s: {inject: {http: {url: %q}}, sinks: [%s]}\n", name, p.url, name)
	}
	d := startDaemon(t, fmt.Sprintf("global: {interval: 250ms, timeout: 5m}\nsinks:\n%sprobes:\n%s", &sinks, &probes))
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
	d.await(t, "heartbeats arrive everywhere", every(func(s scrape, name string) bool {
		return s.Sum("sink_up", "sink", name) == 1 && s.Sum("heartbeats_received_total", "sink", name) >= 8
	}))

	var before = map[string]int{}
	for _, name := range names {
		p := pipelines[name]
		p.proxy.Set(servers.Faults{Refuse: true})
		p.proxy.Cut()
		_, before[name] = p.counts()
	}
	d.await(t, "every sink is blind", every(func(s scrape, name string) bool { return s.Sum("sink_up", "sink", name) == 0 }))
	for _, name := range names {
		p := pipelines[name]
		eventually(t, name+" has messages that the sink has not seen", func() bool {
			_, delivered := p.counts()
			p.unread = delivered - before[name]
			return p.unread >= 8
		})
	}
	for _, name := range names {
		p := pipelines[name]
		// A broker on one host may lose what it is told in its last moment. That would be a drop, and the
		// monitor would be right to say so.
		p.hold()
		p.stop()
		p.resume()
	}
	stopped := time.Now()
	for time.Since(stopped) < away {
		s := d.scrape(t)
		for _, name := range names {
			if s.Sum("sink_up", "sink", name) != 0 {
				t.Fatalf("sink %s is up, and its broker is not:\n%s", name, s)
			}
		}
		time.Sleep(250 * time.Millisecond)
	}
	for _, name := range names {
		p := pipelines[name]
		p.start()
		p.proxy.Set(servers.Faults{})
		p.started = time.Now()
	}
	d.await(t, "every sink is back", every(func(s scrape, name string) bool {
		p := pipelines[name]
		if p.back.IsZero() && s.Sum("sink_up", "sink", name) == 1 {
			p.back = time.Now()
		}
		return !p.back.IsZero()
	}))
	for _, name := range names {
		pipelines[name].refuse()
	}
	s := d.await(t, "all outcomes are known", every(func(s scrape, name string) bool { return s.Sum("heartbeats_in_flight", "sink", name) == 0 }))
	for _, name := range names {
		p := pipelines[name]
		accepted, delivered := p.counts()
		if delivered != accepted {
			t.Errorf("%s: the pipeline has accepted %d and delivered %d", name, accepted, delivered)
		}
		s.wants(t, map[string]float64{
			"heartbeats_sent_total result success probe " + name:       float64(accepted),
			"heartbeats_sent_total result unknown probe " + name:       0,
			"heartbeats_received_total timing on_time sink " + name:    float64(accepted),
			"heartbeats_received_total timing late sink " + name:       0,
			"heartbeats_dropped_total sink " + name:                    0,
			"heartbeats_indeterminate_total sink " + name:              0,
			"heartbeats_duplicated_total kind redelivery sink " + name: 0,
			"sink_up sink " + name:                                     1,
		})
		if s.Sum("sink_errors_total", "sink", name, "class", "network") == 0 {
			t.Errorf("%s: no network error was counted:\n%s", name, s)
		}
		t.Logf("%s: %d messages waited in the queue; the sink was back %.1f s after its broker; the pipeline itself repeated %v",
			name, p.unread, p.back.Sub(p.started).Seconds(), s.Sum("heartbeats_duplicated_total", "kind", "duplicate", "sink", name))
	}
}
