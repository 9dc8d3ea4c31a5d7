package e2e_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/servers"
)

// replica is the configuration of one of several monitors.
func replica(instance, rest string) string {
	return fmt.Sprintf("global: {instance: %s, interval: 1s, timeout: 1m, page: {lag: 5s, for: 2s}}\n%s", instance, rest)
}

// TestReplicas: two monitors watch the same pipeline, and two listeners the pipeline that a third monitor
// injects into. Each counts what is its own, nobody is paged when one of them dies, and everybody is paged
// once when the pipeline does.
func TestReplicas(t *testing.T) {
	t.Parallel()
	servers.Need(t)
	n := servers.NATS(t)
	js := natsStream(t, n, "OUT", "out.>")
	sinks := fmt.Sprintf("sinks:\n  out: {nats: {url: %q, stream: OUT}}\n", n.URL)
	both, one, split := startRelay(t, into(js, "out.both")), startRelay(t, into(js, "out.one")), startRelay(t, into(js, "out.split"))

	pair := func(name string, r *relay) []*daemon {
		watch := sinks + "probes:\n" + probeOf(name, r, "out")
		return []*daemon{startDaemon(t, replica("a", watch)), startDaemon(t, replica("b", watch))}
	}
	withBoth, withOne := pair("both", both), pair("one", one)
	const team = `labels: {team: split, channel: "#team-split"}`
	listen := func(instance string) *daemon {
		return startDaemon(t, replica(instance, sinks+"probes:\n  split: {"+team+", sinks: [out]}\n"))
	}
	listeners := []*daemon{listen("l1"), listen("l2")}
	sender := startDaemon(t, replica("s", fmt.Sprintf("probes:\n  split: {%s, inject: {http: {url: %q}}}\n", team, split.url)))
	c := startChain(t, map[string][]*daemon{"both": withBoth, "one": withOne, "split": append(slices.Clone(listeners), sender)})

	// incident checks that one incident has made one page, and ends it.
	incident := func(t *testing.T, probe string, began time.Time, heal func()) servers.SlackMessage {
		t.Helper()
		m := c.message(t, "PAGE", probe)
		t.Logf("%s: Slack got the page after %.1f s: %s", probe, m.Received.Sub(began).Seconds(), m.Text)
		heal()
		c.message(t, "RESOLVED", probe)
		if got := c.titles(probe); len(got) != 2 {
			t.Errorf("one incident of %s made these messages: %q", probe, got)
		}
		return m
	}
	quiet := func(t *testing.T, probe, after string) {
		t.Helper()
		c.evaluated(t, 2)
		c.low(t, probe, probe)
		if got := c.titles(probe); len(got) > 0 {
			t.Errorf("%s, and Slack got %q", after, got)
		}
	}

	t.Run("with both", func(t *testing.T) {
		t.Parallel()
		c.low(t, "both", "both")
		began := time.Now()
		both.hold()
		incident(t, "both", began, both.resume)

		both.refuse()
		// A replica has no news of what is refused, and waits for nothing.
		var s [2]scrape
		for i, d := range withBoth {
			s[i] = d.await(t, "all outcomes are known", func(s scrape) bool {
				return s.Sum("heartbeats_in_flight") == 0 && s.Sum("heartbeats_sent_total", "result", "failure") > 0
			})
		}
		accepted, _ := both.counts()
		received := func(i int) float64 { return s[i].Sum("heartbeats_received_total", "timing", "on_time") }
		if got := received(0) + received(1); got != float64(accepted) {
			t.Errorf("%d heartbeats were accepted; the replicas received %v and %v", accepted, received(0), received(1))
		}
		for i := range s {
			s[i].wants(t, map[string]float64{
				"heartbeats_sent_total result success": received(i),
				"heartbeats_dropped_total":             0,
				"heartbeats_indeterminate_total":       0,
				"heartbeats_duplicated_total":          0,
				"heartbeats_unaccounted_total":         0,
				"sink_messages_total kind corrupt":     0,
			})
			if got := withBoth[i].scrape(t).Sum("sink_messages_total", "kind", "foreign"); got < received(1-i) {
				t.Errorf("replica %d took %v heartbeats for foreign; the other one received %v", i, got, received(1-i))
			}
		}
	})

	t.Run("with one", func(t *testing.T) {
		t.Parallel()
		c.low(t, "one", "one")
		withOne[1].Kill()
		quiet(t, "one", "one of two replicas has died")
		began := time.Now()
		one.hold()
		incident(t, "one", began, one.resume)
		withOne[1].Start()
		withOne[1].await(t, "the replica is back", func(s scrape) bool { return s.Sum("heartbeats_received_total", "timing", "on_time") > 0 })
		for _, d := range withOne {
			d.scrape(t).wants(t, map[string]float64{"heartbeats_dropped_total": 0})
		}
	})

	t.Run("split", func(t *testing.T) {
		t.Parallel()
		c.low(t, "split", "split")
		listeners[0].Kill()
		quiet(t, "split", "one of two listeners has died")
		listeners[0].Start()
		began := time.Now()
		sender.Kill()
		m := incident(t, "split", began, sender.Start)
		if !strings.Contains(m.Text, "Monitors of this job that do not answer: 1") {
			t.Errorf("the page does not say that a monitor is away:\n%s", m.Text)
		}
		for _, d := range listeners {
			d.await(t, "heartbeats arrive again", func(s scrape) bool { return s.Sum("lag_seconds") < 5 })
			d.scrape(t).wants(t, map[string]float64{
				"heartbeats_dropped_total":         0,
				"heartbeats_indeterminate_total":   0,
				"heartbeats_unaccounted_total":     0,
				"sink_messages_total kind corrupt": 0,
			})
		}
	})
}
