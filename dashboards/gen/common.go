package main

import (
	"fmt"
	"strings"
)

// What both dashboards have.

const (
	fleetUID   = "lag-monitor-fleet"
	probeUID   = "lag-monitor-probe"
	mermaidUID = "lag-monitor-probe-mermaid"
	tag        = "lag-monitor"
	docs       = "https://github.com/lag-monitor/lag-monitor/blob/main/docs/"
)

// scope says which probes a dashboard is about: the selectors that its variables make.
type scope struct {
	job, probe string // label matchers
}

var (
	ofFleet = scope{job: `job=~"$job"`, probe: `probe=~"$probe"`}
	ofProbe = scope{job: `job="$job"`, probe: `probe="$probe"`}
)

// of selects the series of a rule that has the labels job and probe, with more matchers if there are any.
func (s scope) of(rule string, more ...string) string {
	return rule + "{" + strings.Join(append([]string{s.job, s.probe}, more...), ", ") + "}"
}

// ofJob is for rules about monitors, which have no probe.
func (s scope) ofJob(rule string, more ...string) string {
	return rule + "{" + strings.Join(append([]string{s.job}, more...), ", ") + "}"
}

// ofSinks is for rules about queues, which any number of probes share: those that a probe of the scope passes, comes out of, or is
// dead-lettered into.
func (s scope) ofSinks(rule string) string {
	return s.ofJob(rule) + " and on (job, sink) (" + s.of("job_probe_sink:lag_monitor_heartbeats_in_flight:sum") + " or " +
		s.of("job_probe_sink_reason:lag_monitor_heartbeats_dead_lettered:rate5m") + ")"
}

func newDashboard(uid, title, description string, s scope, vars []variable) dashboard {
	return dashboard{
		UID: uid, Title: title, Description: description, Tags: []string{tag}, SchemaVersion: schemaVersion, Editable: true,
		GraphTooltip: 1, Refresh: "1m", Time: timeRange{"now-6h", "now"}, Timezone: "browser",
		Links: []link{
			{Title: "lag-monitor", Type: "dashboards", Tags: []string{tag}, Tooltip: "The other dashboards of lag-monitor, with the same choice of probes", Icon: "external link", IncludeVars: true, KeepTime: true},
			{Title: "Runbooks", Type: "link", URL: docs + "runbooks", Tags: []string{}, Tooltip: "What to do when an alert fires", Icon: "doc", TargetBlank: true},
		},
		Annotations: annotations{List: []annotation{
			alertMarks("Pages", s, "page", bad, true),
			alertMarks("Tickets", s, "ticket", near, false),
			{
				Name: "Monitors", Datasource: prometheus(), Enable: false, IconColor: "purple", Step: "1m",
				Expr:        s.ofJob("ALERTS", `alertstate="firing"`, `probe=""`, `alertname!~".*Watchdog"`),
				TitleFormat: "{{alertname}}", TextFormat: "{{instance}}", TagKeys: "instance,severity",
			},
			{
				Name: "Paused", Datasource: prometheus(), Enable: true, IconColor: "blue", Step: "1m",
				Expr: s.of("job_probe:lag_monitor_probe_paused:max") + " == 1", TitleFormat: "Paused", TextFormat: "{{probe}}", TagKeys: "probe",
			},
		}},
		Templating: templating{List: append([]variable{{
			Name: "datasource", Label: "Data source", Type: "datasource", Query: "prometheus", Refresh: 1,
			Description: "The Prometheus that loads the rules of lag-monitor",
		}}, vars...)},
	}
}

// alertMarks shows when alerts of the probes fired, as Prometheus recorded it.
func alertMarks(name string, s scope, severity, color string, on bool) annotation {
	return annotation{
		Name: name, Datasource: prometheus(), Enable: on, IconColor: color, Step: "1m",
		Expr:        s.of("ALERTS", `alertstate="firing"`, fmt.Sprintf("severity=%q", severity)),
		TitleFormat: "{{alertname}}", TextFormat: "{{probe}}", TagKeys: "probe,team,severity",
	}
}

const infoRule = "job_probe:lag_monitor_probe_info:last"

// chosenByLabel are the variables that narrow the probes down by any label that a team gives its probes in YAML.
func chosenByLabel(s scope) []variable {
	ds := prometheus()
	return []variable{
		{
			Name: "label", Label: "Label", Type: "query", Datasource: &ds, Refresh: 1, Sort: 1,
			Description: "A label of the probes' YAML to choose by, such as team; probe: choose by name",
			Query:       "label_names(" + infoRule + ")", Regex: "/^(?!__name__$|job$).*$/",
			Current: anything{"text": "probe", "value": "probe"},
		},
		{
			Name: "value", Label: "is", Type: "query", Datasource: &ds, Refresh: 2, Sort: 1, Multi: true, IncludeAll: true, AllValue: ".*",
			Description: "Values of that label; All takes the probes without the label too",
			Query:       "label_values(" + infoRule + "{" + s.job + "}, $label)",
			Current:     all(),
		},
	}
}

func all() anything { return anything{"text": []string{"All"}, "value": []string{"$__all"}} }

// jobAndProbe are the variables job and probe, with those of chosenByLabel between them.
func jobAndProbe(s scope, many bool) []variable {
	ds := prometheus()
	job := variable{
		Name: "job", Label: "Job", Type: "query", Datasource: &ds, Refresh: 2, Sort: 1, Multi: many, IncludeAll: many,
		Description: "Job of the monitors in Prometheus: all instances of one are replicas",
		Query:       "label_values(" + infoRule + ", job)",
	}
	// Without allValue, All stands for the probes that label and value leave.
	name := variable{
		Name: "probe", Label: "Probe", Type: "query", Datasource: &ds, Refresh: 2, Sort: 1, Multi: many, IncludeAll: many,
		Description: "Probes that the choices before leave",
		Query:       "label_values(" + infoRule + "{" + s.job + `, $label=~"$value"}, probe)`,
	}
	if many {
		job.AllValue = ".*"
		job.Current, name.Current = all(), all()
	}
	return append(append([]variable{job}, chosenByLabel(s)...), name)
}

// toProbe opens a probe's dashboard. job and probe say where the link finds them: __data.fields in a table,
// __field.labels on a graph.
func toProbe(where string) dataLink {
	return dataLink{
		Title: "Open the probe",
		URL: fmt.Sprintf("/d/%s?${datasource:queryparam}&var-job=${%s.job}&var-probe=${%[2]s.probe}&${__url_time_range}",
			probeUID, where),
	}
}

// linked lets a click on a series open its probe.
func linked(p panel) panel {
	p.FieldConfig.Defaults.Links = append(p.FieldConfig.Defaults.Links, toProbe("__field.labels"))
	return p
}

// latencies are the panels below the fold: they say how a pipeline usually is, and nobody is called for them.
func latencies(s scope, quantiles ...query) section {
	return section{title: "Latency", folded: true, panels: []panel{
		text("What latency says", `
Latency is the time from **due to arrival** of one heartbeat; late ones count too. It answers *how fast is this pipeline usually, and has
that changed?* Nobody is called for it: users feel **lag**, which is also there when nothing arrives.

Quantiles and heat are over the last 5 minutes of every minute. With a heartbeat every 15 s these are 20 values, so p99 is the slowest of them.
`, full, low),
		logarithmic(graph("Latency quantiles",
			"p50, p90 and p99 of the time from due to arrival, on a logarithmic scale. Where it comes from: the histogram of every sink, replicas together.",
			seconds, half, tall, quantiles...)),
		heatmap("Latency heatmap",
			"How many heartbeats per second arrived with which latency. Two bands are two kinds of ways through the pipeline: a cache, a slow shard, a retry.",
			half, tall, "sum by (le) ("+s.of("job_probe_sink_le:lag_monitor_heartbeat_latency_seconds_bucket:rate5m")+")\nor\nsum ("+
				s.of("job_probe_sink:lag_monitor_heartbeat_latency_seconds:rate5m")+")"),
	}}
}

// itself are the panels about the monitors.
func itself(s scope) section {
	return section{title: "The monitors", panels: []panel{
		from0(graph("CPU", "Processor time that each monitor uses, in cores. It grows with the number of heartbeats and with the ordinary traffic of the queues that it reads.",
			"suffix: cores", quarter, usual, q(s.ofJob("job_instance:lag_monitor_cpu_seconds:rate5m"), "{{instance}}"))),
		from0(graph("Memory", "Resident memory of each monitor. It is bounded whatever the outage: what overflows is counted as indeterminate.",
			inBytes, quarter, usual, q(s.ofJob("job_instance:lag_monitor_resident_memory_bytes:sum"), "{{instance}}"))),
		from0(graph("Goroutines", "Goroutines of each monitor. A line that only ever rises is a leak.",
			count, quarter, usual, q(s.ofJob("job_instance:lag_monitor_goroutines:sum"), "{{instance}}"))),
		table("Versions", "Each monitor that answers, and its version. Replicas with different versions are a rollout, or one that was forgotten.",
			quarter, usual, "", []column{{field: "job"}, {field: "instance"}, {field: "version"}},
			q(s.ofJob("job_instance_version:lag_monitor_build:info"), "")),
	}}
}
