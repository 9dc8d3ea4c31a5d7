package rules_test

import (
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"gopkg.in/yaml.v3"

	"github.com/lag-monitor/lag-monitor/internal/metrics"
	"github.com/lag-monitor/lag-monitor/internal/servers"
)

const rulesFile = "lag-monitor.rules.yaml"

// ruleFile is the part of a Prometheus rule file that the tests look at.
type ruleFile struct {
	Groups []ruleGroup
}

type ruleGroup struct {
	Name     string `yaml:"name"`
	Interval string `yaml:"interval,omitempty"`
	Rules    []rule `yaml:"rules"`
}

type rule struct {
	Record      string            `yaml:"record,omitempty"`
	Alert       string            `yaml:"alert,omitempty"`
	Expr        string            `yaml:"expr"`
	For         string            `yaml:"for,omitempty"`
	KeepFiring  string            `yaml:"keep_firing_for,omitempty"`
	Labels      map[string]string `yaml:"labels,omitempty"`
	Annotations map[string]string `yaml:"annotations,omitempty"`
}

func readYAML[T any](t *testing.T, file string) T {
	t.Helper()
	var v T
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(b, &v); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	return v
}

func glob(t *testing.T, pattern string) []string {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		t.Fatalf("no file matches %s (%v)", pattern, err)
	}
	return files
}

// run runs a command and fails the test with all its output if it does not succeed.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	// The small heap of promtool is collected all the time: a third of what it does.
	cmd.Env = append(os.Environ(), "GOGC=400")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", filepath.Base(name), strings.Join(args, " "), err, out)
	}
	return string(out)
}

func TestPromtool(t *testing.T) {
	promtool := servers.Promtool(t)
	t.Run("check", func(t *testing.T) {
		run(t, promtool, append([]string{"check", "rules", rulesFile}, glob(t, "examples/*.rules.yaml")...)...)
	})
	for _, file := range glob(t, "tests/*.test.yaml") {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".test.yaml"), func(t *testing.T) {
			t.Parallel()
			run(t, promtool, "test", "rules", onlyGroups(t, file))
		})
	}
}

var groupsLine = regexp.MustCompile(`(?m)^# Groups: (.+)\.$`)

// onlyGroups returns a copy of a test file that reads only the groups of the rules which the file names in a line such as
// "# Groups: lag-monitor-lag, lag-monitor-drops.", or the file itself where it names none: promtool evaluates all groups in each
// round, and hours of rounds take long.
func onlyGroups(t *testing.T, file string) string {
	t.Helper()
	test, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	m := groupsLine.FindSubmatch(test)
	if m == nil {
		return file
	}
	var groups []ruleGroup
	for _, name := range strings.Split(string(m[1]), ", ") {
		all := readYAML[ruleFile](t, rulesFile).Groups
		i := slices.IndexFunc(all, func(g ruleGroup) bool { return g.Name == name })
		if i < 0 {
			t.Fatalf("%s: the rules have no group %s", file, name)
		}
		groups = append(groups, all[i])
	}
	dir := t.TempDir()
	const from, to = "rule_files: [../" + rulesFile + "]\n", "rule_files: [some.rules.yaml]\n"
	if !strings.Contains(string(test), from) {
		t.Fatalf("%s names groups, and reads more than the rules", file)
	}
	writeRules(t, filepath.Join(dir, "some.rules.yaml"), groups)
	copied := filepath.Join(dir, filepath.Base(file))
	if err := os.WriteFile(copied, []byte(strings.Replace(string(test), from, to, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	return copied
}

func writeRules(t *testing.T, file string, groups []ruleGroup) {
	t.Helper()
	b, err := yaml.Marshal(struct {
		Groups []ruleGroup `yaml:"groups"`
	}{groups})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// promtool evaluates every round, so it cannot show what a Prometheus that was away for half an hour still knows.
// Here each rule is given a switch that turns it off for that time, which leaves the same gap in what it recorded.
func TestPrometheusAway(t *testing.T) {
	promtool := servers.Promtool(t)
	file := readYAML[ruleFile](t, rulesFile)
	for _, g := range file.Groups {
		for i, r := range g.Rules {
			if r.Record != "" {
				g.Rules[i].Expr = "(\n" + r.Expr + "\n) and on () test_prometheus_runs"
			}
		}
	}
	dir := t.TempDir()
	writeRules(t, filepath.Join(dir, "gated.rules.yaml"), file.Groups)
	// Prometheus is away from 20m15s to 50m. gone: the monitor dies at 30m. restarted: the same, and it is back at 40m,
	// without a heartbeat since. removed: taken from the configuration at 10m, whose monitor dies while Prometheus is
	// away: what was known of it in the last hour must not come back for more than a round.
	test := `
rule_files: [gated.rules.yaml]
evaluation_interval: 15s
tests:
  - interval: 15s
    input_series:
      - {series: test_prometheus_runs, values: 1x80 stale _x118 1x1200}
      - {series: 'up{job="g",instance="a"}', values: 1x120 0x1200}
      - {series: 'lag_monitor_build_info{job="g",instance="a"}', values: 1x120 stale}
      - {series: 'lag_monitor_probe_info{job="g",instance="a",probe="gone",team="data"}', values: 1x120 stale}
      - {series: 'lag_monitor_heartbeats_in_flight{job="g",instance="a",probe="gone",sink="out"}', values: 1x120 stale}
      - {series: 'lag_monitor_probe_threshold_seconds{job="g",instance="a",probe="gone",severity="page"}', values: 300x120 stale}
      - {series: 'lag_monitor_lag_seconds{job="g",instance="a",probe="gone",sink="out",lane="0"}', values: 0x120 stale}
      - {series: 'up{job="r",instance="a"}', values: 1x120 0x39 1x1200}
      - {series: 'lag_monitor_build_info{job="r",instance="a"}', values: 1x120 stale _x38 1x1200}
      - {series: 'lag_monitor_probe_info{job="r",instance="a",probe="restarted",team="data"}', values: 1x120 stale _x38 1x1200}
      - {series: 'lag_monitor_heartbeats_in_flight{job="r",instance="a",probe="restarted",sink="out"}', values: 1x120 stale _x38 1x1200}
      - {series: 'lag_monitor_probe_threshold_seconds{job="r",instance="a",probe="restarted",severity="page"}', values: 300x120 stale _x38 300x1200}
      - {series: 'lag_monitor_lag_seconds{job="r",instance="a",probe="restarted",sink="out",lane="0"}', values: 0x120 stale}
      - {series: 'up{job="d",instance="a"}', values: 1x1200}
      - {series: 'lag_monitor_build_info{job="d",instance="a"}', values: 1x1200}
      - {series: 'lag_monitor_probe_info{job="d",instance="a",probe="removed",team="data"}', values: 1x40 stale}
      - {series: 'lag_monitor_heartbeats_in_flight{job="d",instance="a",probe="removed",sink="out"}', values: 1x40 stale}
      - {series: 'lag_monitor_probe_threshold_seconds{job="d",instance="a",probe="removed",severity="page"}', values: 4000x40 stale}
      - {series: 'lag_monitor_lag_seconds{job="d",instance="a",probe="removed",sink="out",lane="0"}', values: 0x40 stale}
    promql_expr_test:
      - {eval_time: 45m, expr: 'ALERTS{severity!="none"}'}
      - eval_time: 55m
        expr: ALERTS{severity="page"}
        exp_samples:
          - {labels: 'ALERTS{alertname="LagHigh",alertstate="firing",job="g",probe="gone",severity="page",team="data"}', value: 1}
          - {labels: 'ALERTS{alertname="LagHigh",alertstate="firing",job="r",probe="restarted",severity="page",team="data"}', value: 1}
      - {eval_time: 55m, expr: '{job="d",probe="removed"}'}
`
	if err := os.WriteFile(filepath.Join(dir, "away.test.yaml"), []byte(test), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, promtool, "test", "rules", filepath.Join(dir, "away.test.yaml"))
}

// watchdog is the alert that always fires.
const watchdog = "LagMonitorWatchdog"

// promtoolTest is the part of promtool's test files that the tests look at.
type promtoolTest struct {
	Tests []struct {
		AlertRuleTest []struct {
			Alertname string `yaml:"alertname"`
			ExpAlerts []struct {
				ExpLabels map[string]string `yaml:"exp_labels"`
			} `yaml:"exp_alerts"`
		} `yaml:"alert_rule_test"`
	}
}

func TestEveryAlertIsSeenFiringAndSilent(t *testing.T) {
	type key struct{ alert, severity string }
	firing, silent := map[key]bool{}, map[string]bool{}
	for _, file := range glob(t, "tests/*.test.yaml") {
		for _, test := range readYAML[promtoolTest](t, file).Tests {
			for _, c := range test.AlertRuleTest {
				if len(c.ExpAlerts) == 0 {
					silent[c.Alertname] = true
				}
				for _, alert := range c.ExpAlerts {
					firing[key{c.Alertname, alert.ExpLabels["severity"]}] = true
				}
			}
		}
	}
	for _, file := range append(glob(t, "examples/*.rules.yaml"), rulesFile) {
		for _, r := range alerts(t, file) {
			if k := (key{r.Alert, r.Labels["severity"]}); !firing[k] {
				t.Errorf("%s: no test sees %s with severity %q firing", file, k.alert, k.severity)
			}
			if !silent[r.Alert] && r.Alert != watchdog {
				t.Errorf("%s: no test sees %s silent", file, r.Alert)
			}
		}
	}
}

func alerts(t *testing.T, file string) []rule {
	t.Helper()
	var alerts []rule
	for _, g := range readYAML[ruleFile](t, file).Groups {
		for _, r := range g.Rules {
			if r.Alert != "" {
				alerts = append(alerts, r)
			}
		}
	}
	if len(alerts) == 0 {
		t.Fatalf("%s has no alert", file)
	}
	return alerts
}

func TestAlertsSayWhatToDo(t *testing.T) {
	for _, r := range alerts(t, rulesFile) {
		if s := r.Labels["severity"]; s != "page" && s != "ticket" && (r.Alert != watchdog || s != "none") {
			t.Errorf("%s: severity is %q", r.Alert, s)
		}
		for _, a := range []string{"summary", "description"} {
			if r.Annotations[a] == "" {
				t.Errorf("%s has no %s", r.Alert, a)
			}
		}
		runbook := "docs/runbooks/" + r.Alert + ".md"
		if url := "https://github.com/lag-monitor/lag-monitor/blob/main/" + runbook; !strings.Contains(r.Annotations["runbook_url"], url) {
			t.Errorf("%s: runbook_url %q does not name %s", r.Alert, r.Annotations["runbook_url"], url)
		}
		if _, err := os.Stat(filepath.Join("..", runbook)); err != nil {
			t.Errorf("%s: %v", r.Alert, err)
		}
	}
}

// Whoever is paged at night finds the alert in the runbooks and in the tables: no more and no less than there are.
func TestAlertsAreDocumented(t *testing.T) {
	severities := map[string][]string{}
	for _, r := range alerts(t, rulesFile) {
		severities[r.Alert] = append(severities[r.Alert], r.Labels["severity"])
	}
	const runbooks = "../docs/runbooks"
	for _, file := range glob(t, runbooks+"/*.md") {
		name := strings.TrimSuffix(filepath.Base(file), ".md")
		if severities[name] == nil {
			t.Errorf("%s is the runbook of no alert", file)
		}
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if text := string(b); !strings.HasPrefix(text, "# "+name+"\n") {
			t.Errorf("%s does not begin with the name of the alert", file)
		} else {
			for _, part := range []string{"**Meaning.**", "**What users feel.**", "**First look.**", "**Usual causes.**", "**Silence.**"} {
				if !strings.Contains(text, "\n"+part) {
					t.Errorf("%s does not say: %s", file, part)
				}
			}
		}
	}
	// The columns of the tables: the alert, who is called, and what it says.
	for file, link := range map[string]string{"../README.md": "docs/runbooks", "README.md": runbooks} {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		row := regexp.MustCompile("(?m)^\\| \\[`?([A-Za-z]+)`?\\]\\(" + regexp.QuoteMeta(link) + "/([A-Za-z]+)\\.md\\) \\| ([a-z, ]+) \\| .+ \\|$")
		told := map[string]string{}
		for _, m := range row.FindAllStringSubmatch(string(b), -1) {
			if m[1] != m[2] {
				t.Errorf("%s: %s has the runbook of %s", file, m[1], m[2])
			}
			told[m[1]] = m[3]
		}
		for alert, want := range severities {
			if got := told[alert]; got != strings.Join(want, ", ") {
				t.Errorf("%s: %s is told to be %q, and is %q", file, alert, got, strings.Join(want, ", "))
			}
		}
		for alert := range told {
			if severities[alert] == nil {
				t.Errorf("%s: there is no alert %s", file, alert)
			}
		}
	}
}

// An alert about a probe goes to its owner: it carries all labels of the probe, and none for a probe that is paused.
func TestAlertsCarryTheOwner(t *testing.T) {
	ofMonitors := []string{"MonitorDown", "ConfigReloadFailed", "JournalFailing", watchdog}
	for _, r := range alerts(t, rulesFile) {
		if joined := regexp.MustCompile(`job_probe:lag_monitor_probe_info:awake\s+\* on \(job, probe\) group_left \(\)`).MatchString(r.Expr); joined == slices.Contains(ofMonitors, r.Alert) {
			t.Errorf("%s: joined with the labels of the probe: %v", r.Alert, joined)
		}
	}
}

// The windows of the error budget are named by what they hold: the same length in the name, in the offset and in seconds.
func TestWindowsOfTheBudget(t *testing.T) {
	windows := map[string]bool{}
	for _, g := range readYAML[ruleFile](t, rulesFile).Groups {
		for _, r := range g.Rules {
			m := regexp.MustCompile(`^job_probe_sink:lag_monitor_slo_(bad|all):increase(\d+[mhd])$`).FindStringSubmatch(r.Record)
			if m == nil {
				continue
			}
			windows[m[2]] = true
			d, err := model.ParseDuration(m[2])
			if err != nil {
				t.Fatal(err)
			}
			series := "job_probe_sink:lag_monitor_slo_" + m[1] + ":total"
			want := fmt.Sprintf("%[1]s\n- (\n  (%[1]s offset %[2]s and job_probe_sink:lag_monitor_slo_since:timestamp <= (time() - %[3]d))\n"+
				"  or\n  (job_probe_sink:lag_monitor_slo_since:timestamp > (time() - %[3]d)) * 0\n)\n", series, m[2], int(time.Duration(d).Seconds()))
			if r.Expr != want {
				t.Errorf("%s is\n%swant\n%s", r.Record, r.Expr, want)
			}
		}
	}
	if got := slices.Sorted(maps.Keys(windows)); !slices.Equal(got, []string{"1d", "1h", "2h", "30m", "3d", "6h"}) {
		t.Errorf("windows %q", got)
	}
}

var (
	metricName = regexp.MustCompile(`[a-zA-Z_:][a-zA-Z0-9_:]*`)
	comment    = regexp.MustCompile(`(?m)^\s*#.*$`)
)

func TestRulesUseMetricsThatExist(t *testing.T) {
	contract := metrics.Names()
	recorded := map[string]bool{}
	for _, file := range append(glob(t, "examples/*.rules.yaml"), rulesFile) {
		var texts []string
		for _, g := range readYAML[ruleFile](t, file).Groups {
			for _, r := range g.Rules {
				if r.Record != "" {
					recorded[r.Record] = true
				}
				texts = append(texts, r.Expr)
				texts = slices.AppendSeq(texts, maps.Values(r.Annotations))
			}
		}
		for _, text := range texts {
			for _, name := range metricName.FindAllString(comment.ReplaceAllString(text, ""), -1) {
				switch {
				case strings.Contains(name, ":lag_monitor_"), strings.HasPrefix(name, "lag_monitor:"):
					if !recorded[name] && file != rulesFile {
						t.Errorf("%s uses %s, which it does not record", file, name)
					}
				case strings.HasPrefix(name, "lag_monitor_"):
					if _, ok := contract[name]; !ok {
						t.Errorf("%s uses %s, which is not a metric of lag-monitor", file, name)
					}
				}
			}
		}
	}
	// Rules refer to themselves and forward, so these are looked at with the whole file known.
	for _, g := range readYAML[ruleFile](t, rulesFile).Groups {
		for _, r := range g.Rules {
			for _, text := range append(slices.Collect(maps.Values(r.Annotations)), r.Expr) {
				for _, name := range metricName.FindAllString(comment.ReplaceAllString(text, ""), -1) {
					if (strings.Contains(name, ":lag_monitor_") || strings.HasPrefix(name, "lag_monitor:")) && !recorded[name] {
						t.Errorf("%s%s uses %s, which no rule records", r.Record, r.Alert, name)
					}
				}
			}
		}
	}
}

func TestAlertmanagerRoutes(t *testing.T) {
	amtool := servers.Amtool(t)
	const config = "alertmanager.example.yaml"
	run(t, amtool, "check-config", config)
	for _, c := range []struct{ receivers, labels string }{
		{"slack-page", "alertname=LagHigh severity=page team=data channel=#stash-deferred probe=p job=lm"},
		{"slack-page", "alertname=HeartbeatsDropped severity=page team=web channel=#web probe=q job=lm"},
		{"slack-ticket", "alertname=SinkDown severity=ticket team=data channel=#stash-deferred probe=p job=lm"},
		{"payments-pager,slack-page", "alertname=LagHigh severity=page team=payments channel=#payments probe=p job=lm"},
		{"payments-pager", "alertname=LagHigh severity=page team=payments probe=p job=lm"},
		{"slack-ticket", "alertname=LagHigh severity=ticket team=payments channel=#payments probe=p job=lm"},
		{"page", "alertname=LagHigh severity=page probe=p job=lm"},
		{"monitoring", "alertname=SinkDown severity=ticket probe=p job=lm"},
		{"monitoring", "alertname=MonitorDown severity=ticket instance=a job=lm"},
		{"monitoring", "alertname=MonitorDown severity=ticket"},
		{"slack-page", "alertname=ErrorBudgetBurn severity=page team=data channel=#stash-deferred probe=p job=lm"},
		{"payments-pager,slack-page", "alertname=ErrorBudgetBurn severity=page team=payments channel=#payments probe=p job=lm"},
		{"slack-ticket", "alertname=ErrorBudgetBurn severity=ticket team=data channel=#stash-deferred probe=p job=lm"},
		{"slack-ticket", "alertname=BacklogGrowing severity=ticket team=data channel=#stash-deferred probe=p job=lm"},
		{"monitoring", "alertname=ClockSkew severity=ticket probe=p job=lm"},
		{"watchdog", "alertname=LagMonitorWatchdog severity=none"},
		{"watchdog", "alertname=LagMonitorWatchdog severity=none channel=#of-an-external-label team=payments"},
	} {
		args := []string{"config", "routes", "test", "--config.file=" + config, "--verify.receivers=" + c.receivers}
		run(t, amtool, append(args, strings.Fields(c.labels)...)...)
	}
}

// shortExample is the Alertmanager example with a webhook of Slack and a receiver of the watchdog that exist, and short times.
func shortExample(t *testing.T, slack, watchdog *servers.SlackServer) string {
	t.Helper()
	b, err := os.ReadFile("alertmanager.example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	hook := filepath.Join(t.TempDir(), "slack-webhook-url")
	if err := os.WriteFile(hook, []byte(slack.URL), 0o600); err != nil {
		t.Fatal(err)
	}
	config := string(b)
	for old, now := range map[string]string{"/etc/alertmanager/slack-webhook-url": hook, "http://dead-mans-switch.example/lag-monitor": watchdog.URL} {
		if !strings.Contains(config, old) {
			t.Fatalf("the Alertmanager example has no %s", old)
		}
		config = strings.Replace(config, old, now, 1)
	}
	return regexp.MustCompile(`group_(wait|interval): \w+`).ReplaceAllString(config, "group_$1: 1s")
}

// All that one incident sets off, in the order in which the rules raise it, is one message to one channel; the watchdog goes
// its own way.
func TestOneIncidentIsOnePage(t *testing.T) {
	servers.Need(t)
	t.Parallel()
	slack, switched := servers.Slack(t), servers.Slack(t)
	am := servers.Alertmanager(t, shortExample(t, slack, switched))
	alert := func(name, severity string) servers.Alert {
		return servers.Alert{
			Labels:      map[string]string{"alertname": name, "severity": severity, "job": "lm", "probe": "p", "team": "data", "channel": "#data"},
			Annotations: map[string]string{"summary": "summary of " + name, "description": "description of " + name},
		}
	}
	am.Post(t, servers.Alert{Labels: map[string]string{"alertname": watchdog, "severity": "none"}})
	am.Post(t, alert("LagHigh", "page"))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	page, err := slack.Wait(ctx, func(servers.SlackMessage) bool { return true })
	if err != nil {
		t.Fatal(err)
	}
	if page.Channel != "#data" || page.Title != "PAGE: p" || !strings.Contains(page.Text, "summary of LagHigh") {
		t.Errorf("the page is %+v", page)
	}
	rest := []servers.Alert{alert("LagHigh", "ticket"), alert("ErrorBudgetBurn", "page"), alert("ErrorBudgetBurn", "ticket"), alert("HeartbeatsDropped", "page"),
		alert("SinkDown", "ticket"), alert("InjectionFailing", "ticket"), alert("BacklogGrowing", "ticket"), alert("HeartbeatsDeadLettered", "ticket")}
	am.Post(t, rest...)
	// A ticket of another probe in the same channel shows that Alertmanager has gone through all that came before.
	other := alert("SinkDown", "ticket")
	other.Labels["probe"] = "q"
	am.Post(t, other)
	if _, err := slack.Wait(ctx, func(m servers.SlackMessage) bool { return m.Title == "TICKET: q" }); err != nil {
		t.Error(err)
	}
	if _, err := switched.Wait(ctx, func(m servers.SlackMessage) bool { return strings.Contains(m.Body, watchdog) }); err != nil {
		t.Errorf("the dead man's switch: %v", err)
	}
	for _, m := range slack.Messages() {
		if strings.Contains(m.Text, watchdog) || m.Title != "TICKET: q" && (m.Title != "PAGE: p" || strings.Contains(m.Text, "ErrorBudgetBurn")) {
			t.Errorf("another message: %+v", m)
		}
	}
	if n := len(slack.Messages()); n != 2 {
		t.Errorf("%d messages, want the page and the ticket of another probe", n)
	}

	// When it is over, that is one message, too: the page of the budget does not come after it. What it explains ends before it;
	// another ticket shows that Alertmanager has seen that.
	for i := range rest {
		rest[i].EndsAt = time.Now()
	}
	third := alert("SinkDown", "ticket")
	third.Labels["probe"] = "r"
	am.Post(t, append(rest, third)...)
	if _, err := slack.Wait(ctx, func(m servers.SlackMessage) bool { return m.Title == "TICKET: lag-monitor" }); err != nil {
		t.Error(err)
	}
	over := alert("LagHigh", "page")
	over.EndsAt = time.Now()
	am.Post(t, over)
	if _, err := slack.Wait(ctx, func(m servers.SlackMessage) bool { return m.Title == "RESOLVED: p" }); err != nil {
		t.Error(err)
	}
	if n := len(slack.Messages()); n != 4 {
		t.Errorf("%d messages, want 4: %+v", n, slack.Messages())
	}
}

// The inhibitions of the example, in a real Alertmanager.
func TestAlertmanagerInhibits(t *testing.T) {
	servers.Need(t)
	config, err := os.ReadFile("alertmanager.example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	// No notification is sent within the test: group_wait of every route is longer.
	waiting := regexp.MustCompile(`group_wait: \w+`).ReplaceAllString(string(config), "group_wait: 1h")
	waiting = regexp.MustCompile(`group_interval: \w+`).ReplaceAllString(waiting, "group_interval: 2h")
	am := servers.Alertmanager(t, waiting)

	alert := func(name, severity, job, probe string) servers.Alert {
		labels := map[string]string{"alertname": name, "severity": severity, "job": job, "channel": "#c"}
		if probe != "" {
			labels["probe"] = probe
		}
		return servers.Alert{Labels: labels}
	}
	inhibited := []servers.Alert{
		alert("LagHigh", "ticket", "lm", "late"),
		alert("HeartbeatsDropped", "page", "lm", "late"),
		alert("SinkDown", "ticket", "lm", "late"),
		alert("InjectionFailing", "ticket", "lm", "late"),
		alert("HeartbeatNeverSeen", "page", "lm", "late"),
		alert("ErrorBudgetBurn", "page", "lm", "late"),
		alert("ErrorBudgetBurn", "ticket", "lm", "late"),
		alert("HeartbeatsDeadLettered", "ticket", "lm", "late"),
		alert("BacklogGrowing", "ticket", "lm", "late"),
		alert("SinkDown", "ticket", "lm", "new"),
		alert("HeartbeatsForeign", "ticket", "lm", "new"),
		alert("ErrorBudgetBurn", "page", "lm", "lossy"),
		alert("HeartbeatsDeadLettered", "ticket", "lm", "lossy"),
		alert("ErrorBudgetBurn", "ticket", "lm", "slow"),
		alert("LagHigh", "ticket", "lm", "slow"),
		alert("HeartbeatsDropped", "ticket", "lm", "slow"),
		alert("InjectionFailing", "ticket", "lm", "slow"),
		alert("ClockSkew", "ticket", "lm", "early"),
		alert("HeartbeatsDropped", "ticket", "lm", "lossy"),
		alert("MonitorDown", "ticket", "lm", ""),
	}
	free := []servers.Alert{
		alert("LagHigh", "page", "lm", "late"),
		alert("HeartbeatNeverSeen", "page", "lm", "new"),
		alert("HeartbeatsDropped", "page", "lm", "lossy"),
		alert("HeartbeatFromFuture", "ticket", "lm", "late"),
		alert("HeartbeatFromFuture", "ticket", "lm", "early"),
		alert("ClockSkew", "ticket", "lm", "other"),
		alert("HeartbeatsDuplicated", "ticket", "lm", "late"),
		alert("ErrorBudgetBurn", "page", "lm", "slow"),
		alert("SinkDown", "ticket", "lm", "slow"),
		alert("ErrorBudgetBurn", "ticket", "lm", "other"),
		alert("ErrorBudgetBurn", "page", "staging", "late"),
		alert("BacklogGrowing", "ticket", "lm", "other"),
		alert("SinkDown", "ticket", "lm", "other"),
		alert("SinkDown", "ticket", "staging", "late"),
		alert("LagHigh", "ticket", "lm", "other"),
		alert("MonitorDown", "ticket", "staging", ""),
		alert("ConfigReloadFailed", "ticket", "lm", ""),
		alert("JournalFailing", "ticket", "lm", ""),
	}
	am.Post(t, free...)
	am.Post(t, inhibited...)

	want := map[string]bool{}
	id := func(l map[string]string) string {
		return strings.Join([]string{l["job"], l["probe"], l["alertname"], l["severity"]}, " ")
	}
	for _, a := range free {
		want[id(a.Labels)] = false
	}
	for _, a := range inhibited {
		want[id(a.Labels)] = true
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for {
		got := map[string]bool{}
		for _, a := range am.Alerts(t) {
			got[id(a.Labels)] = len(a.Status.InhibitedBy) > 0
		}
		if maps.Equal(got, want) {
			return
		}
		select {
		case <-ctx.Done():
			for k, v := range want {
				if g, ok := got[k]; !ok || g != v {
					t.Errorf("%s: inhibited %v (known %v), want %v", k, g, ok, v)
				}
			}
			return
		case <-time.After(100 * time.Millisecond):
		}
	}
}
