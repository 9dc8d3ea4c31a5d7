package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/lag-monitor/lag-monitor/dashboards"
	"github.com/lag-monitor/lag-monitor/internal/servers"
)

// withoutData are rules that record nothing here, each with the reason why.
var withoutData = map[string]string{
	"job_sink_queue_group:lag_monitor_backlog_messages:sum":  "no monitor asks its sinks for their backlog yet",
	"job_sink_queue_group:lag_monitor_backlog_seconds:max":   "no monitor asks its sinks for their backlog yet",
	"job_sink_queue_group:lag_monitor_backlog_consumers:max": "no monitor asks its sinks for their backlog yet",
}

// dashboard is the part of a dashboard that is held against Prometheus.
type dashboard struct {
	Templating struct {
		List []struct{ Name, Type, Query, Regex string }
	}
	Annotations struct {
		List []struct{ Name, Expr string }
	}
	Panels []dashboardPanel
}

type dashboardPanel struct {
	Title, Type string
	Targets     []struct{ RefID, Expr, LegendFormat string }
	FieldConfig struct {
		Defaults struct{ Links []struct{ URL string } }
	}
	Transformations []struct {
		ID      string
		Options struct{ Include struct{ Names []string } }
	}
	Panels []dashboardPanel
}

// TestDashboards asks a real Prometheus, which has scraped a real daemon, everything that the dashboards ask: with native
// histograms (job native), and with classic ones (job classic), which Prometheus keeps of what comes as text.
func TestDashboards(t *testing.T) {
	t.Parallel()
	servers.Need(t)
	n := servers.NATS(t)
	js := natsStream(t, n, "OUT", "out.>")
	natsStream(t, n, "HOP", "hop.>")
	natsStream(t, n, "DEAD", "dead.>")
	toHop, toOut := into(js, "hop.orders"), into(js, "out.orders")
	pipeline := startRelay(t, func(ctx context.Context, body []byte) error {
		if err := toHop(ctx, body); err != nil {
			return err
		}
		return toOut(ctx, body)
	})
	d := startDaemon(t, fmt.Sprintf(`
global: {interval: 500ms, timeout: 1m, page: {lag: 2s, drop_ratio: 50%%}, ticket: {lag: 1s}}
sinks:
  hop: {role: hop, nats: {url: %q, stream: HOP}}
  out: {nats: {url: %[1]q, stream: OUT}}
  dead: {role: dead_letter, nats: {url: %[1]q, stream: DEAD}}
probes:
  orders:
    labels: {team: data}
    runbook: https://wiki.example/orders
    inject: {http: {url: %q}}
    sinks: [hop, out, dead]
`, n.URL, pipeline.url))

	asText := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text, err := call(r.Context(), http.MethodGet, "http://"+d.addr+"/metrics", nil)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		w.Header().Set("Content-Type", "text/plain; version=0.0.4")
		w.Write(text)
	}))
	t.Cleanup(asText.Close)
	// The rules as they are, but every second.
	var rules []string
	for _, name := range []string{"lag-monitor.rules.yaml", "lag-monitor-dashboards.rules.yaml"} {
		b, err := os.ReadFile(filepath.Join("../../rules", name))
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), name)
		write(t, file, regexp.MustCompile(`(?m)^    interval: \S+`).ReplaceAllString(string(b), "    interval: 1s"))
		rules = append(rules, file)
	}
	prometheus := servers.Prometheus(t, fmt.Sprintf(`
global: {scrape_interval: 1s, evaluation_interval: 1s}
scrape_configs:
  - {job_name: native, static_configs: [{targets: [%q]}]}
  - {job_name: classic, static_configs: [{targets: [%q]}]}
`, d.addr, strings.TrimPrefix(asText.URL, "http://")), rules...)

	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	some := func(s []servers.Sample) bool { return len(s) > 0 }
	for _, job := range []string{"native", "classic"} {
		prometheus.WaitQuery(ctx, t, fmt.Sprintf(`job_probe_sink:lag_monitor_heartbeat_latency_seconds:quantile_rate5m{job=%q, quantile="0.99"} > 0`, job), some)
		if s := prometheus.Query(t, fmt.Sprintf(`lag_monitor_heartbeat_latency_seconds_bucket{job=%q}`, job)); some(s) != (job == "classic") {
			t.Fatalf("job %s has %d series of classic buckets", job, len(s))
		}
	}
	// A page, and what is red.
	pipeline.hold()
	for _, job := range []string{"native", "classic"} {
		prometheus.WaitQuery(ctx, t, fmt.Sprintf(`ALERTS{job=%q, alertname="LagHigh", alertstate="firing", severity="page"}`, job), some)
		prometheus.WaitQuery(ctx, t, fmt.Sprintf(`job_probe_sink_state:lag_monitor_lag_seconds:max{job=%q, state="late"}`, job), some)
	}

	for _, job := range []string{"native", "classic"} {
		filled := strings.NewReplacer("$job", job, "$probe", "orders", "$label", "team", "$value", "data")
		// ask waits for an answer to what is on a dashboard; nil if there is a reason why there is none.
		ask := func(t *testing.T, where, expr string) []servers.Sample {
			t.Helper()
			for rule := range withoutData {
				if strings.Contains(expr, rule) {
					return nil
				}
			}
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			s := prometheus.WaitQuery(ctx, t, filled.Replace(expr), some)
			t.Logf("%s: %d", where, len(s))
			return s
		}
		files, err := dashboards.Files.ReadDir(".")
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			t.Run(job+"/"+strings.TrimSuffix(file.Name(), ".json"), func(t *testing.T) {
				b, err := dashboards.Files.ReadFile(file.Name())
				if err != nil {
					t.Fatal(err)
				}
				var d dashboard
				if err := json.Unmarshal(b, &d); err != nil {
					t.Fatal(err)
				}
				if len(d.Panels) == 0 {
					t.Fatal("no panels")
				}
				for _, p := range d.Panels {
					p.ask(t, ask)
					for _, inside := range p.Panels {
						inside.ask(t, ask)
					}
				}
				for _, a := range d.Annotations.List {
					// Nobody has paused the probe, and the monitor is well.
					if a.Name != "Paused" && a.Name != "Monitors" {
						ask(t, a.Name, a.Expr)
					}
				}
				for _, v := range d.Templating.List {
					if v.Type == "query" {
						askVariable(t, ask, v.Name, v.Query, v.Regex)
					}
				}
			})
		}
	}
}

type askFunc func(t *testing.T, where, expr string) []servers.Sample

var (
	legendLabel = regexp.MustCompile(`\{\{(\w+)\}\}`)
	linkLabel   = regexp.MustCompile(`\$\{__field\.labels\.(\w+)\}`)
)

// ask asks what the panel asks, and wants answers with the labels that the panel shows.
func (p dashboardPanel) ask(t *testing.T, ask askFunc) {
	answers := map[string][]servers.Sample{}
	for _, q := range p.Targets {
		s := ask(t, p.Title+" "+q.RefID, q.Expr)
		answers[q.RefID] = s
		wanted := legendLabel.FindAllStringSubmatch(q.LegendFormat, -1)
		for _, l := range p.FieldConfig.Defaults.Links {
			wanted = append(wanted, linkLabel.FindAllStringSubmatch(l.URL, -1)...)
		}
		for _, m := range wanted {
			for _, sample := range s {
				// Buckets of a native histogram have no le.
				if _, ok := sample.Labels[m[1]]; !ok && m[1] != "le" {
					t.Errorf("%s %s: no label %s in %v", p.Title, q.RefID, m[1], sample.Labels)
				}
			}
		}
	}
	for _, tr := range p.Transformations {
		if tr.ID != "filterFieldsByName" {
			continue
		}
		for _, column := range tr.Options.Include.Names {
			for ref, s := range answers {
				if _, ok := s[0].Labels[column]; !ok && !strings.HasPrefix(column, "Value") {
					t.Errorf("%s %s: no label %s for a column in %v", p.Title, ref, column, s[0].Labels)
				}
			}
		}
	}
	if p.Type == "nodeGraph" {
		wantGraph(t, p.Title, answers["nodes"], answers["edges"])
	}
}

// wantGraph checks what the panel Node graph needs: an id in each row, unique in its table, and no edge to a node that is not
// there; without nodes the panel makes them from the edges.
func wantGraph(t *testing.T, title string, nodes, edges []servers.Sample) {
	t.Helper()
	ids := func(table []servers.Sample, fields ...string) []string {
		var ids []string
		for _, row := range table {
			for _, field := range append(fields, "id", "color") {
				if row.Labels[field] == "" {
					t.Errorf("%s: no %s in %v", title, field, row.Labels)
				}
			}
			if slices.Contains(ids, row.Labels["id"]) {
				t.Errorf("%s: two rows are called %q", title, row.Labels["id"])
			}
			ids = append(ids, row.Labels["id"])
		}
		return ids
	}
	there := ids(nodes, "title")
	ids(edges, "source", "target")
	if len(nodes) > 0 && len(there) != 3 {
		t.Errorf("%s: nodes %q; want the head and two sinks", title, there)
	}
	for _, e := range edges {
		for _, end := range []string{"source", "target"} {
			if len(nodes) > 0 && !slices.Contains(there, e.Labels[end]) {
				t.Errorf("%s: the edge %q has a %s that is no node", title, e.Labels["id"], end)
			}
		}
	}
	var ways []string
	for _, e := range edges {
		ways = append(ways, e.Labels["source"]+" → "+e.Labels["target"])
	}
	slices.Sort(ways)
	want := []string{"head → hop", "hop → out"}
	if len(nodes) == 0 {
		want = []string{"orders → queue hop", "queue hop → queue out"}
	}
	if !slices.Equal(ways, want) {
		t.Errorf("%s: edges %q; want %q", title, ways, want)
	}
}

var variableQuery = regexp.MustCompile(`^(label_values|label_names|query_result)\((.*?)(?:, (\$?\w+))?\)$`)

// askVariable asks for the values of a template variable, as Grafana does.
func askVariable(t *testing.T, ask askFunc, name, query, regex string) {
	t.Helper()
	m := variableQuery.FindStringSubmatch(query)
	if m == nil {
		t.Errorf("variable %s: %s", name, query)
		return
	}
	s := ask(t, "variable "+name, m[2])
	switch m[1] {
	case "label_values":
		label := strings.Replace(m[3], "$label", "team", 1)
		if s[0].Labels[label] == "" {
			t.Errorf("variable %s: no label %s in %v", name, label, s[0].Labels)
		}
	case "query_result":
		// Lines of a diagram. Grafana takes them out of each answer as text, and joins them with commas, here inside of comments.
		var lines []string
		for _, sample := range s {
			lines = append(lines, sample.Labels["mermaid"])
		}
		slices.Sort(lines)
		want := []string{"\n  s_head --> s_hop[hop]\n%% -", "\n  s_hop --> s_out[out]\n%% -"}
		if !slices.Equal(lines, want) || regex != `/mermaid="([^"]+)"/` {
			t.Errorf("variable %s: %q by %s; want %q", name, lines, regex, want)
		}
	}
}
