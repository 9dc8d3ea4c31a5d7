package rules_test

import (
	"strings"
	"testing"

	"github.com/lag-monitor/lag-monitor/internal/metrics"
	"github.com/lag-monitor/lag-monitor/internal/servers"
)

const dashboardRulesFile = "lag-monitor-dashboards.rules.yaml"

// The rules for dashboards go into a Prometheus that has the others too, and read what these record and what monitors export.
func TestDashboardRules(t *testing.T) {
	contract := metrics.Names()
	recorded := map[string]bool{}
	groups := map[string]bool{}
	for _, file := range []string{rulesFile, dashboardRulesFile} {
		for _, g := range readYAML[ruleFile](t, file).Groups {
			if groups[g.Name] {
				t.Errorf("two groups are called %s", g.Name)
			}
			groups[g.Name] = true
			for _, r := range g.Rules {
				if file == dashboardRulesFile && (r.Alert != "" || recorded[r.Record] && r.Labels == nil) {
					t.Errorf("%s%s is an alert, or recorded twice", r.Record, r.Alert)
				}
				if r.Record != "" {
					recorded[r.Record] = true
				}
			}
		}
	}
	for _, g := range readYAML[ruleFile](t, dashboardRulesFile).Groups {
		for _, r := range g.Rules {
			for _, name := range metricName.FindAllString(comment.ReplaceAllString(r.Expr, ""), -1) {
				switch {
				case strings.Contains(name, ":"):
					if !recorded[name] {
						t.Errorf("%s reads %s, which no rule records", r.Record, name)
					}
				case strings.HasPrefix(name, "lag_monitor_"):
					if _, ok := contract[strings.TrimSuffix(name, "_bucket")]; !ok {
						t.Errorf("%s reads %s, which is not a metric of lag-monitor", r.Record, name)
					}
				}
			}
		}
	}
	run(t, servers.Promtool(t), "check", "rules", dashboardRulesFile)
}
