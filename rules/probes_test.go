package rules_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/lag-monitor/lag-monitor/internal/servers"
	"github.com/lag-monitor/lag-monitor/rules"
)

func stash() rules.Probe {
	return rules.Probe{Name: "stash-deferred", Labels: map[string]string{"team": "data", "channel": "#stash {{ deferred"},
		Page: rules.Threshold{Lag: 5 * time.Minute, For: 2 * time.Minute}, Ticket: rules.Threshold{Lag: 90*time.Second + 500*time.Millisecond}}
}

func perProbe(t *testing.T, job string, probes ...rules.Probe) string {
	t.Helper()
	b, err := rules.PerProbe(probes, job)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// Promtool takes every form of both kinds of rules, from odd names too.
func TestGeneratedRulesCheck(t *testing.T) {
	promtool := servers.Promtool(t)
	dir := t.TempDir()
	odd := rules.Probe{Name: "9-Lives__x-", Page: rules.Threshold{Lag: time.Second}, Runbook: "https://wiki.internal/{{9}}"}
	for name, text := range map[string]string{
		"none":   perProbe(t, ""),
		"probes": perProbe(t, "", odd, stash(), rules.Probe{Name: "quiet"}),
		"job":    perProbe(t, `lag"monitor`, stash()),
	} {
		file := filepath.Join(dir, name+".yaml")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		run(t, promtool, "check", "rules", file)
	}
	for name, text := range map[string][]byte{"generic": rules.Generic, "probes": []byte(perProbe(t, "", stash()))} {
		object, err := rules.Operator(text, rules.Object{Name: "a", Namespace: "b", Labels: map[string]string{"c": "true"}})
		if err != nil {
			t.Fatal(err)
		}
		var decoded struct {
			APIVersion string `yaml:"apiVersion"`
			Kind       string
			Metadata   struct {
				Name, Namespace string
				Labels          map[string]string
			}
			Spec yaml.Node
		}
		if err := yaml.Unmarshal(object, &decoded); err != nil {
			t.Fatal(err)
		}
		if decoded.Kind != "PrometheusRule" || decoded.Metadata.Namespace != "b" || decoded.Metadata.Labels["c"] != "true" {
			t.Errorf("%s: %+v", name, decoded)
		}
		spec, err := yaml.Marshal(&decoded.Spec)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, name+".spec.yaml")
		if err := os.WriteFile(file, spec, 0o600); err != nil {
			t.Fatal(err)
		}
		run(t, promtool, "check", "rules", file)
	}
}

// The page of one probe fires when nothing comes out, whatever the reason, and is silent otherwise.
func TestPerProbeRules(t *testing.T) {
	promtool := servers.Promtool(t)
	dir := t.TempDir()
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("probes.rules.yaml", perProbe(t, "lm", stash()))
	// A round is 15s. %s: what is told of the lag at the sinks a and b.
	const head = `
rule_files: [probes.rules.yaml]
evaluation_interval: 15s
tests:
`
	const page = `        exp_alerts:
          - exp_labels: {alertname: StashDeferredLagHigh, severity: page, probe: stash-deferred, team: data, channel: '#stash {{ deferred'}
            exp_annotations:
              summary: Stash deferred messages are late
              description: 'Stash deferred messages are arriving AGE seconds after they were scheduled (threshold 5m)'
              runbook_url: https://github.com/lag-monitor/lag-monitor/blob/main/docs/runbooks/LagHigh.md
          - exp_labels: {alertname: StashDeferredLagHigh, severity: ticket, probe: stash-deferred, team: data, channel: '#stash {{ deferred'}
            exp_annotations:
              summary: Stash deferred messages are late
              description: 'Stash deferred messages are arriving AGE seconds after they were scheduled (threshold 1m30s500ms)'
              runbook_url: https://github.com/lag-monitor/lag-monitor/blob/main/docs/runbooks/LagHigh.md
`
	series := func(name, sink, rest, values string) string {
		return "      - {series: 'lag_monitor_" + name + `{job="lm",instance="a",probe="stash-deferred",sink="` + sink + `"` + rest + "}', values: " + values + "}\n"
	}
	lag := func(sink, values string) string { return series("lag_seconds", sink, `,lane="0"`, values) }
	watched := func(sink, values string) string { return series("heartbeats_in_flight", sink, "", values) }
	at := func(when, age string) string {
		out := "      - eval_time: " + when + "\n        alertname: StashDeferredLagHigh\n"
		if age != "" {
			out += strings.ReplaceAll(page, "AGE", age)
		}
		return out
	}
	write("probes.test.yaml", head+
		"  - name: dead from 10m on, healed at 20m\n    interval: 15s\n    input_series:\n"+
		lag("a", "0x40 15+15x38 0x60")+watched("a", "1x140")+
		"    alert_rule_test:\n"+at("11m", "")+at("17m15s", "435")+at("21m", "")+
		"  - name: one of two sinks is dead\n    interval: 15s\n    input_series:\n"+
		lag("a", "0x140")+watched("a", "1x140")+lag("b", "0x40 15+15x100")+watched("b", "1x140")+
		"    alert_rule_test:\n"+at("17m15s", "435")+
		"  - name: the monitor is gone from 10m on\n    interval: 15s\n    input_series:\n"+
		lag("a", "0x40 stale")+watched("a", "1x40 stale")+
		"    alert_rule_test:\n"+at("11m", "")+at("17m15s", "435")+at("2h", "6600")+
		"  - name: a restart is no incident\n    interval: 15s\n    input_series:\n"+
		lag("a", "0x40 stale _x5 0x100")+watched("a", "1x40 stale _x3 1x102")+
		"    alert_rule_test:\n"+at("11m30s", "")+at("20m", "")+
		"  - name: nothing has ever come out at one sink of a new probe\n    interval: 15s\n    input_series:\n"+
		lag("a", "0x140")+watched("a", "1x140")+watched("b", "1x140")+
		"    alert_rule_test:\n"+at("1m", "")+at("8m", "480")+
		"  - name: a sink that is taken away while it lags\n    interval: 15s\n    input_series:\n"+
		lag("a", "0x140")+watched("a", "1x140")+lag("b", "0x20 15+15x20 stale")+watched("b", "1x40 stale")+
		"    alert_rule_test:\n"+at("30m", "")+
		"  - name: another job plays no part\n    interval: 15s\n    input_series:\n"+
		strings.ReplaceAll(lag("a", "0x40 15+15x100")+watched("a", "1x140"), `job="lm"`, `job="staging"`)+
		"    alert_rule_test:\n"+at("30m", ""))
	run(t, promtool, "test", "rules", filepath.Join(dir, "probes.test.yaml"))
}

// Two probes that would come to one name are refused, and both are named.
func TestPerProbeClash(t *testing.T) {
	for _, c := range []struct {
		names []string
		want  string
	}{
		{[]string{"a-b", "a_b"}, "probes a-b and a_b would all make ABLagHigh"},
		{[]string{"a-b", "a_b"}, "probes a-b and a_b would all make job:a_b_lag:seconds"},
		{[]string{"ordersNew", "orders-new"}, "probes ordersNew and orders-new would all make OrdersNewLagHigh: rename all but one, or use the generic rules"},
	} {
		var probes []rules.Probe
		for _, n := range c.names {
			probes = append(probes, rules.Probe{Name: n})
		}
		_, err := rules.PerProbe(probes, "")
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: %v", c.names, err)
		}
	}
	if _, err := rules.PerProbe([]rules.Probe{{Name: "a"}, {Name: "b"}}, ""); err != nil {
		t.Error(err)
	}
}
