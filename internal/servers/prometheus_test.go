package servers_test

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/servers"
)

// TestPagingChain takes one alert from a rule to Slack and back.
func TestPagingChain(t *testing.T) {
	t.Parallel()
	servers.Need(t)
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	slack := servers.Slack(t)
	am := servers.Alertmanager(t, fmt.Sprintf(`
route: {receiver: slack, group_wait: 0s, group_interval: 1s}
receivers:
  - name: slack
    slack_configs:
      - {api_url: %q, channel: "#ops", title: "{{ .Status }}", text: "{{ (index .Alerts 0).Annotations.text }}", send_resolved: true}
`, slack.URL))
	rules := filepath.Join(t.TempDir(), "rules.yaml")
	err := os.WriteFile(rules, []byte(`
groups:
  - name: g
    interval: 200ms
    rules:
      - record: job:up:doubled
        expr: up * 2
      - alert: Gone
        expr: up == 0
        annotations: {text: "{{ $labels.job }} is gone"}
`), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	target := servers.Alertmanager(t, "route: {receiver: none}\nreceivers: [{name: none}]\n")
	config := fmt.Sprintf(`
global: {scrape_interval: 200ms, evaluation_interval: 200ms}
alerting: {alertmanagers: [{static_configs: [{targets: [%q]}]}]}
scrape_configs: [{job_name: target, static_configs: [{targets: [%q]}]}]
`, am.Addr, target.Addr)
	p := servers.Prometheus(t, config, rules)

	is := func(want float64) func([]servers.Sample) bool {
		return func(s []servers.Sample) bool {
			return len(s) == 1 && s[0].Value == want && s[0].Labels["job"] == "target"
		}
	}
	p.WaitQuery(ctx, t, "job:up:doubled", is(2))
	if s := p.Query(t, "scalar(vector(7))"); len(s) != 1 || s[0].Value != 7 || time.Since(s[0].Time) > time.Minute {
		t.Errorf("a scalar query answers %+v", s)
	}

	target.Stop()
	m, err := slack.Wait(ctx, func(m servers.SlackMessage) bool { return m.Title == "firing" })
	if err != nil {
		t.Fatal(err)
	}
	if m.Channel != "#ops" || m.Text != "target is gone" {
		t.Errorf("Slack got %+v", m)
	}
	if alerts := am.Alerts(t); len(alerts) != 1 || alerts[0].Labels["alertname"] != "Gone" || alerts[0].Status.State != "active" {
		t.Errorf("Alertmanager holds %+v", alerts)
	}
	target.Start()
	if _, err := slack.Wait(ctx, func(m servers.SlackMessage) bool { return m.Title == "resolved" }); err != nil {
		t.Fatal(err)
	}

	before := p.Query(t, `count_over_time(up[1h])`)[0].Value
	p.Stop()
	p.Start()
	if after := p.Query(t, `count_over_time(up[1h])`); len(after) != 1 || after[0].Value < before {
		t.Errorf("%v samples before the restart, %v after", before, after)
	}
	p.Reload(strings.Replace(config, "job_name: target", "job_name: renamed", 1))
	p.WaitQuery(ctx, t, `up{job="renamed"}`, func(s []servers.Sample) bool { return len(s) == 1 })
}

func TestAlertmanagerPost(t *testing.T) {
	am := servers.Alertmanager(t, `
route: {receiver: none}
receivers: [{name: none}]
inhibit_rules: [{source_matchers: [severity="page"], target_matchers: [severity="ticket"], equal: [probe]}]
`)
	am.Post(t, servers.Alert{Labels: map[string]string{"alertname": "A", "severity": "page", "probe": "p"}})
	am.Post(t, servers.Alert{Labels: map[string]string{"alertname": "B", "severity": "ticket", "probe": "p"}})
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		states := map[string]string{}
		for _, a := range am.Alerts(t) {
			states[a.Labels["alertname"]] = a.Status.State
		}
		if states["A"] == "active" && states["B"] == "suppressed" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("states are %v; want A active and B suppressed by it", states)
		}
	}
}

func TestTools(t *testing.T) {
	for _, tool := range []string{servers.Promtool(t), servers.Amtool(t)} {
		if out, err := exec.Command(tool, "--version").CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", tool, err, out)
		}
	}
}

func TestSlackAnswer(t *testing.T) {
	slack := servers.Slack(t)
	post := func(body string) int {
		t.Helper()
		resp, err := http.Post(slack.URL, "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		http.DefaultClient.CloseIdleConnections()
		return resp.StatusCode
	}
	slack.Answer(503)
	if got := post(`{"text":"one"}`); got != 503 {
		t.Errorf("status %d; want 503", got)
	}
	slack.Answer(0)
	if got := post(`{"text":"two","channel":"#c"}`); got != 200 {
		t.Errorf("status %d; want 200", got)
	}
	if got := post(`{`); got != 400 {
		t.Errorf("status %d for bad JSON; want 400", got)
	}
	if m := slack.Messages(); len(m) != 1 || m[0].Text != "two" || m[0].Channel != "#c" {
		t.Errorf("recorded %+v; want the second message alone", m)
	}
}
