package rules_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/servers"
)

// fleet returns what a monitor of n probes exports that the rules read, all well. COUNT stands for the heartbeats so far and NOW for
// the time: to write 30 MB anew for each scrape would take longer than what is measured.
func fleet(n int) string {
	w := new(strings.Builder)
	fmt.Fprint(w, "lag_monitor_build_info{version=\"1\"} 1\nlag_monitor_config_last_reload_successful 1\nlag_monitor_config_last_reload_success_timestamp_seconds 1\n"+
		"lag_monitor_journal_errors_total 0\nlag_monitor_sink_up{sink=\"out\"} 1\nlag_monitor_sink_caught_up_timestamp_seconds{sink=\"out\"} NOW\n")
	for _, kind := range []string{"heartbeat", "other", "foreign", "corrupt", "future"} {
		fmt.Fprintf(w, "lag_monitor_sink_messages_total{sink=\"out\",kind=%q} 0\n", kind)
	}
	for i := range n {
		p := fmt.Sprintf("probe=\"probe-%05d\"", i)
		q := p + `,sink="out"`
		fmt.Fprintf(w, "lag_monitor_probe_info{%s,team=\"team-%d\",channel=\"#team-%[2]d\"} 1\n", p, i%100)
		for name, v := range map[string]float64{
			"probe_interval_seconds": 15, "probe_expiry_seconds": 0, "probe_paused": 0,
			"probe_slo_latency_seconds": 30, "probe_slo_objective_ratio": .999,
		} {
			fmt.Fprintf(w, "lag_monitor_%s{%s} %v\n", name, p, v)
		}
		for _, s := range []string{"page", "ticket"} {
			fmt.Fprintf(w, "lag_monitor_probe_threshold_seconds{%s,severity=%q} 300\nlag_monitor_probe_for_seconds{%[1]s,severity=%[2]q} 120\n"+
				"lag_monitor_probe_threshold_drop_ratio{%[1]s,severity=%[2]q} 0.01\n", p, s)
		}
		for r, v := range map[string]string{"success": "COUNT", "failure": "0", "unknown": "0"} {
			fmt.Fprintf(w, "lag_monitor_heartbeats_sent_total{%s,result=%q} %s\n", p, r, v)
		}
		fmt.Fprintf(w, "lag_monitor_heartbeats_received_total{%s,timing=\"on_time\"} COUNT\nlag_monitor_heartbeats_received_total{%[1]s,timing=\"late\"} 0\n"+
			"lag_monitor_heartbeats_within_slo_total{%[1]s} COUNT\nlag_monitor_heartbeats_beyond_slo_total{%[1]s} 0\n"+
			"lag_monitor_heartbeats_duplicated_total{%[1]s,kind=\"duplicate\"} 0\nlag_monitor_heartbeats_duplicated_total{%[1]s,kind=\"redelivery\"} 0\n"+
			"lag_monitor_heartbeats_reordered_total{%[1]s} 0\nlag_monitor_heartbeats_in_flight{%[1]s} 0\nlag_monitor_clock_skew_seconds{%[1]s} 0\n"+
			"lag_monitor_heartbeat_timestamp_seconds{%[1]s,lane=\"0\"} NOW\nlag_monitor_lag_seconds{%[1]s,lane=\"0\"} 0.2\n", q)
		for _, r := range []string{"timeout", "dead_lettered", "expired"} {
			fmt.Fprintf(w, "lag_monitor_heartbeats_dropped_total{%s,reason=%q} 0\n", q, r)
		}
	}
	return w.String()
}

// ruleMetric matches what Prometheus says of itself: by group, or as a whole.
var ruleMetric = regexp.MustCompile(`(?m)^(prometheus_rule_group_last_duration_seconds|prometheus_rule_group_iterations_total|process_cpu_seconds_total)(?:\{rule_group="[^"]*;([a-z-]+)"\})? (\S+)$`)

// BenchmarkRules measures what a round of each group costs a real Prometheus that scrapes a monitor of 10,000 probes every 15 s for
// RULES_BENCH_FOR (6m): the longer, the more samples the windows hold. A busy machine makes rounds longer but not dearer, so that the
// processor time of the second half is divided among the groups by how long their rounds took.
func BenchmarkRules(b *testing.B) {
	const probes = 10_000
	length, err := time.ParseDuration(os.Getenv("RULES_BENCH_FOR"))
	if err != nil {
		length = 6 * time.Minute
	}
	text, start := fleet(probes), time.Now()
	monitor := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		now := time.Now()
		_, _ = strings.NewReplacer("COUNT", fmt.Sprint(int(now.Sub(start).Seconds())/15), "NOW", fmt.Sprint(now.Unix())).WriteString(w, text)
	}))
	defer monitor.Close()
	p := servers.Prometheus(b, fmt.Sprintf(`
global: {scrape_interval: 15s, evaluation_interval: 15s}
scrape_configs: [{job_name: lag-monitor, scrape_timeout: 15s, static_configs: [{targets: [%q]}]}]
`, strings.TrimPrefix(monitor.URL, "http://")), rulesFile)
	var (
		rounds, took, before = map[string]float64{}, map[string]float64{}, map[string]float64{}
		used                 float64
	)
	for first := true; time.Since(start) < length; time.Sleep(time.Second) {
		if time.Since(start) < length/2 {
			continue
		}
		resp, err := http.Get(p.URL + "/metrics")
		if err != nil {
			b.Fatal(err)
		}
		said, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			b.Fatal(err)
		}
		now := map[[2]string]float64{}
		for _, m := range ruleMetric.FindAllStringSubmatch(string(said), -1) {
			if now[[2]string{m[1], m[2]}], err = strconv.ParseFloat(m[3], 64); err != nil {
				b.Fatal(err)
			}
		}
		for k, v := range now {
			if k[0] == "prometheus_rule_group_iterations_total" {
				if !first && v > before[k[1]] {
					rounds[k[1]]++
					took[k[1]] += now[[2]string{"prometheus_rule_group_last_duration_seconds", k[1]}]
				}
				before[k[1]] = v
			}
		}
		cpu := now[[2]string{"process_cpu_seconds_total", ""}]
		if first {
			used = -cpu
		}
		first = false
		before["cpu"] = cpu
	}
	used += before["cpu"]
	total := 0.0
	for _, t := range took {
		total += t
	}
	for group, n := range rounds {
		b.ReportMetric(used*took[group]/total/n, group+"-cpu-s/round")
		b.ReportMetric(took[group]/n, group+"-s/round")
	}
	b.ReportMetric(0, "ns/op")
	if up := p.Query(b, "up"); len(up) != 1 || up[0].Value != 1 {
		b.Errorf("the scrape: %+v", up)
	}
	for name, query := range map[string]string{
		"lag-low": "count(job_probe:lag_monitor_lag_seconds:max < 1)", "budgets": "count(job_probe_sink:lag_monitor_slo_all:increase3d)",
	} {
		if got := p.Query(b, query); len(got) != 1 || got[0].Value != probes {
			b.Errorf("%s: %+v, want %d: the rules have not seen all probes", name, got, probes)
		}
	}
	if got := p.Query(b, `ALERTS{severity!="none"}`); len(got) > 0 {
		b.Errorf("all is well, and there are %d alerts, such as %+v", len(got), got[0])
	}
}
