package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/lag-monitor/lag-monitor/internal/servers"
)

// shippedRules is used as it is.
const shippedRules = "../../rules/lag-monitor.rules.yaml"

// chain is the monitoring of a company: Prometheus with the shipped rules, Alertmanager with the shipped
// example, Slack.
type chain struct {
	prometheus *servers.PrometheusServer
	slack      *servers.SlackServer
	watchdog   *servers.SlackServer // receives the dead man's switch; it takes whatever is JSON
}

// startChain starts one that scrapes the monitors of each job.
func startChain(t *testing.T, jobs map[string][]*daemon) *chain {
	t.Helper()
	slack, watchdog := servers.Slack(t), servers.Slack(t)
	example, err := os.ReadFile("../../rules/alertmanager.example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	hook := filepath.Join(t.TempDir(), "slack-webhook-url")
	write(t, hook, slack.URL)
	config := strings.Replace(string(example), "/etc/alertmanager/slack-webhook-url", hook, 1)
	if !strings.Contains(config, hook) {
		t.Fatal("the Alertmanager example has no such webhook file")
	}
	const dead = "http://dead-mans-switch.example/lag-monitor"
	if !strings.Contains(config, dead) {
		t.Fatal("the Alertmanager example has no dead man's switch")
	}
	config = strings.Replace(config, dead, watchdog.URL, 1)
	config = regexp.MustCompile(`group_(wait|interval): \S+`).ReplaceAllString(config, "group_$1: 1s")
	am := servers.Alertmanager(t, config)
	var scrapes strings.Builder
	for job, monitors := range jobs {
		var addrs []string
		for _, d := range monitors {
			addrs = append(addrs, strconv.Quote(d.addr))
		}
		fmt.Fprintf(&scrapes, "  - {job_name: %s, static_configs: [{targets: [%s]}]}\n", job, strings.Join(addrs, ", "))
	}
	prometheus := servers.Prometheus(t, fmt.Sprintf(`
global: {scrape_interval: 1s, evaluation_interval: 1s}
alerting: {alertmanagers: [{static_configs: [{targets: [%q]}]}]}
scrape_configs:
%s`, am.Addr, &scrapes), shippedRules)
	return &chain{prometheus, slack, watchdog}
}

// low waits until the rules know a lag of each probe that is below its threshold of 5 s.
func (c *chain) low(t *testing.T, job string, probes ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c.prometheus.WaitQuery(ctx, t, fmt.Sprintf("job_probe:lag_monitor_lag_seconds:max{job=%q} < 5", job), func(s []servers.Sample) bool {
		return len(s) == len(probes)
	})
}

// evaluated waits until the rules have been evaluated n more times.
func (c *chain) evaluated(t *testing.T, n int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var last float64
	for n++; n > 0; n-- {
		s := c.prometheus.WaitQuery(ctx, t, "timestamp(lag_monitor:rules_evaluated)", func(s []servers.Sample) bool {
			return len(s) == 1 && s[0].Value > last
		})
		last = s[0].Value
	}
}

// message waits for the message with a title, and checks where it went.
func (c *chain) message(t *testing.T, status, probe string) servers.SlackMessage {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	m, err := c.slack.Wait(ctx, func(m servers.SlackMessage) bool { return m.Title == status+": "+probe })
	if err != nil {
		t.Fatalf("%s of %s: %v", status, probe, err)
	}
	if want := "#team-" + probe; m.Channel != want {
		t.Errorf("%s of %s went to %s; want %s", status, probe, m.Channel, want)
	}
	return m
}

// says waits until the page of a probe says something, which may become true only after it was sent.
func (c *chain) says(t *testing.T, probe, text string) bool {
	t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(time.Second) {
		body, err := call(context.Background(), http.MethodGet, c.prometheus.URL+"/api/v1/alerts", nil)
		if err != nil {
			t.Fatal(err)
		}
		var answer struct {
			Data struct {
				Alerts []struct{ Labels, Annotations map[string]string }
			}
		}
		if err := json.Unmarshal(body, &answer); err != nil {
			t.Fatal(err)
		}
		for _, a := range answer.Data.Alerts {
			if a.Labels["alertname"] == "LagHigh" && a.Labels["severity"] == "page" && a.Labels["probe"] == probe && strings.Contains(a.Annotations["description"], text) {
				return true
			}
		}
	}
	return false
}

// titles returns the titles of all messages about a probe.
func (c *chain) titles(probe string) []string {
	var titles []string
	for _, m := range c.slack.Messages() {
		if strings.HasSuffix(m.Title, ": "+probe) {
			titles = append(titles, m.Title)
		}
	}
	return titles
}

var lagInWords = regexp.MustCompile(`^\*[a-z]+: messages come out (\d+m )?[0-9.]+s late\*\n`)

// probeOf is a probe in YAML whose alerts go to a channel of its own.
func probeOf(name string, r *relay, sink string) string {
	return fmt.Sprintf("  %s: {labels: {team: %[1]s, channel: \"#team-%[1]s\"}, inject: {http: {url: %q}}, sinks: [%s]}\n", name, r.url, sink)
}

const chainGlobal = "global: {interval: 1s, timeout: 1m, page: {lag: 5s, for: 2s}}\n"

// into returns the put of a pipeline into a subject.
func into(js jetstream.JetStream, subject string) func(context.Context, []byte) error {
	return func(ctx context.Context, body []byte) error {
		_, err := js.Publish(ctx, subject, body)
		return err
	}
}

// TestChain takes incidents from the pipeline to the team's channel and back, over everything that takes
// part: daemon, Prometheus, rules, Alertmanager, Slack.
func TestChain(t *testing.T) {
	t.Parallel()
	servers.Need(t)
	well, ill := servers.NATS(t), servers.NATS(t)
	js, illJS := natsStream(t, well, "OUT", "out.>"), natsStream(t, ill, "OUT", "out.>")
	sinks := fmt.Sprintf("sinks:\n  out: {nats: {url: %q, stream: OUT}}\n  other-broker: {nats: {url: %q, stream: OUT}}\nprobes:\n", well.URL, ill.URL)

	healthy, stopped, headless := startRelay(t, into(js, "out.healthy")), startRelay(t, into(js, "out.stopped")), startRelay(t, into(js, "out.headless"))
	brokerless := startRelay(t, into(illJS, "out.brokerless"))
	watching := startDaemon(t, chainGlobal+sinks+
		probeOf("healthy", healthy, "out")+probeOf("stopped", stopped, "out")+probeOf("headless", headless, "out")+probeOf("brokerless", brokerless, "other-broker"))

	one := fmt.Sprintf("sinks:\n  out: {nats: {url: %q, stream: OUT}}\nprobes:\n", well.URL)
	restarted, crashing := startRelay(t, into(js, "out.restarted")), startRelay(t, into(js, "out.crashing"))
	restarting := startDaemon(t, chainGlobal+one+probeOf("restarted", restarted, "out"))
	looping := startDaemon(t, chainGlobal+one+probeOf("crashing", crashing, "out"))

	c := startChain(t, map[string][]*daemon{"watching": {watching}, "restarting": {restarting}, "looping": {looping}})

	t.Run("incidents", func(t *testing.T) {
		t.Parallel()
		c.low(t, "watching", "healthy", "stopped", "headless", "brokerless")
		// Of the pipelines of this test: another one may be crashing beside it.
		for _, name := range []string{"healthy", "stopped", "headless", "brokerless"} {
			if m := c.titles(name); len(m) > 0 {
				t.Fatalf("all is well, and Slack got %+v", m)
			}
		}
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if _, err := c.watchdog.Wait(ctx, func(m servers.SlackMessage) bool { return strings.Contains(m.Body, "LagMonitorWatchdog") }); err != nil {
			t.Errorf("the dead man's switch: %v", err)
		}
		began := time.Now()
		stopped.hold()
		headless.head.Set(servers.Faults{Refuse: true})
		headless.head.Cut()
		ill.Stop()
		for _, probe := range []string{"stopped", "headless", "brokerless"} {
			m := c.message(t, "PAGE", probe)
			t.Logf("%s: Slack got the page after %.1f s: %s", probe, m.Received.Sub(began).Seconds(), m.Text)
			if !lagInWords.MatchString(m.Text) {
				t.Errorf("%s: the page does not begin with the lag in words:\n%s", probe, m.Text)
			}
			// What the text says beyond the lag belongs to one kind of incident each.
			for cause, says := range map[string]string{
				"brokerless": "The monitor cannot see the queue; a dead broker looks the same.",
				"headless":   "The head did not accept ",
			} {
				is := strings.Contains(m.Text, says)
				if !is && cause == probe && probe == "headless" {
					// The share is that of five minutes: where the test had to wait before, it takes longer to be worth a word.
					is = c.says(t, probe, says)
				}
				if is != (cause == probe) {
					t.Errorf("%s: the page says %q: %v:\n%s", probe, says, is, m.Text)
				}
			}
		}
		watching.scrape(t).wants(t, map[string]float64{
			"sink_up sink out":          1,
			"sink_up sink other-broker": 0,
			"heartbeats_dropped_total":  0,
		})

		healed := time.Now()
		stopped.resume()
		headless.head.Set(servers.Faults{})
		ill.Start()
		for _, probe := range []string{"stopped", "headless", "brokerless"} {
			m := c.message(t, "RESOLVED", probe)
			t.Logf("%s: resolved after %.1f s", probe, m.Received.Sub(healed).Seconds())
		}
		c.low(t, "watching", "healthy", "stopped", "headless", "brokerless")
		for _, probe := range []string{"stopped", "headless", "brokerless"} {
			if got := c.titles(probe); len(got) != 2 {
				t.Errorf("one incident of %s made these messages: %q", probe, got)
			}
		}
		if got := c.titles("healthy"); len(got) > 0 {
			t.Errorf("nothing was wrong with the pipeline healthy; Slack got %q", got)
		}
		watching.scrape(t).wants(t, map[string]float64{
			"heartbeats_dropped_total":                           0,
			"heartbeats_sent_total probe stopped result failure": 0,
		})
	})

	t.Run("restarts", func(t *testing.T) {
		t.Parallel()
		c.low(t, "restarting", "restarted")
		c.low(t, "looping", "crashing")
		// A dead pipeline, and a monitor that never lives long enough to see for how long it has been dead.
		began := time.Now()
		crashing.hold()
		crash := func() {
			looping.Kill()
			looping.Start()
		}

		// In the middle of a healthy pipeline the monitor is stopped in order, and later killed.
		restarting.Stop()
		if err := restarting.Exit(); err != nil {
			t.Errorf("after SIGTERM: %v", err)
		}
		restarting.Start()
		crash()
		c.evaluated(t, 1)
		crash()
		c.low(t, "restarting", "restarted")
		restarting.Kill()
		restarting.Start()
		crashes := 2
		for len(c.titles("crashing")) == 0 {
			if time.Since(began) > patience {
				t.Fatalf("the pipeline has been dead for %v, the monitor has crashed %d times, and nobody was paged", patience, crashes)
			}
			crash()
			crashes++
			time.Sleep(time.Second)
		}
		m := c.message(t, "PAGE", "crashing")
		t.Logf("crashing: Slack got the page after %.1f s and %d crashes: %s", m.Received.Sub(began).Seconds(), crashes, m.Text)
		if !lagInWords.MatchString(m.Text) {
			t.Errorf("the page does not begin with the lag in words:\n%s", m.Text)
		}
		healed := time.Now()
		crashing.resume()
		t.Logf("crashing: resolved after %.1f s", c.message(t, "RESOLVED", "crashing").Received.Sub(healed).Seconds())
		if got := c.titles("crashing"); len(got) != 2 {
			t.Errorf("one incident made these messages: %q", got)
		}

		// Whatever the restarts do to the rules shows within two rounds.
		c.evaluated(t, 2)
		c.low(t, "restarting", "restarted")
		if got := c.titles("restarted"); len(got) > 0 {
			t.Errorf("only the monitor was restarted, and Slack got %q", got)
		}
		// Heartbeats of the instance before may come out, which is a reason for a ticket after half an hour of them.
		if got := c.prometheus.Query(t, `max_over_time(ALERTS{job="restarting",alertname!="HeartbeatsForeign"}[10m])
			or max_over_time(ALERTS{job="restarting",alertstate="firing"}[10m])`); len(got) > 0 {
			t.Errorf("only the monitor was restarted, and there were alerts: %+v", got)
		}
		restarting.scrape(t).wants(t, map[string]float64{
			"heartbeats_dropped_total":       0,
			"heartbeats_indeterminate_total": 0,
			"heartbeats_duplicated_total":    0,
		})
	})
}
