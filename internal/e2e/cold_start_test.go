package e2e_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/servers"
)

// TestColdStart measures how long after its start a monitor has seen its first heartbeat come out. It
// prints that and judges nothing: how fast this machine is at the moment is not the program's doing.
func TestColdStart(t *testing.T) {
	servers.Need(t)
	for _, name := range []string{"kafka4", "kinesis", "nats"} {
		q := queues[name](t)
		var times []time.Duration
		for range 5 {
			times = append(times, coldStart(t, directly(q.sink, q.inject)))
		}
		t.Logf("%s: exec to first heartbeat %v", name, times)
		if unhurried := strings.Replace(q.sink, ", poll_interval: 200ms", "", 1); unhurried != q.sink {
			t.Logf("%s with its default poll_interval: %v", name, coldStart(t, directly(unhurried, q.inject)))
		}
	}
	p := startWebhookPipeline(t)
	var times []time.Duration
	for range 5 {
		times = append(times, coldStart(t, p.team("p", "1s")))
	}
	t.Logf("http to webhook: exec to first heartbeat %v", times)
}

// directly is a probe that injects into the queue on which its sink listens.
func directly(sink, inject string) string {
	return fmt.Sprintf("sinks:\n  out: {%s}\nprobes:\n  p: {inject: {%s}, sinks: [out]}\n", sink, inject)
}

func coldStart(t *testing.T, config string) time.Duration {
	t.Helper()
	began := time.Now()
	d := startDaemon(t, config)
	for s := (scrape{}); s.Sum("heartbeats_received_total") == 0; time.Sleep(2 * time.Millisecond) {
		s = d.scrape(t)
		if time.Since(began) > patience {
			t.Fatalf("no heartbeat within %v:\n%s", patience, s)
		}
	}
	took := time.Since(began).Round(time.Millisecond)
	d.Kill()
	return took
}
