package main

import "fmt"

// probe is the dashboard of one pipeline.
func probe() dashboard {
	s := ofProbe
	d := newDashboard(probeUID, "lag-monitor / Probe", "One pipeline: how late its messages come out, how many do not, and where on the way.", s, jobAndProbe(s, false))
	d.Panels = lay(probeSections(s, pipeline(s))...)
	return d
}

// pipeline is the node graph of a probe: its head, its sinks, and the ways between them.
func pipeline(s scope) panel {
	return nodeGraph("Pipeline", "The head, the hops and where messages come out. The number in a sink is its lag, that in the head how long it takes to answer, that of an arrow the time on that part of the way (both p50). Red: later than the page threshold, or stuck. Grey: no monitor can read the queue.",
		half, tall, seconds,
		query{ref: "nodes", expr: nodes(s)}, query{ref: "edges", expr: edges(s)})
}

const (
	nodeRule = "job_probe_sink_state:lag_monitor_lag_seconds:max"
	edgeRule = "job_probe_from_to_state:lag_monitor_way_latency_seconds:median_rate5m"
)

// nodes are the sinks and the head. An edge that names a node that is not there would break the panel, so all come from the pairs
// that are watched.
func nodes(s scope) string {
	sinks := with(with(with("max by (sink, state) ("+s.of(nodeRule)+")", "id", "$1", "sink", "(.*)"), "title", "$1", "sink", "(.*)"), "subtitle", "$1", "state", "(.*)")
	head := "max by (probe) (\n  " + s.of("job_probe:lag_monitor_heartbeat_inject_duration_seconds:quantile_rate5m", `quantile="0.5"`) +
		"\n  or on (job, probe)\n  " + s.of("job_probe_sink:lag_monitor_heartbeats_in_flight:sum") + " * NaN\n)"
	head = with(with(with(with(head, "id", "head", "", ""), "title", "$1", "probe", "(.*)"), "subtitle", "head", "", ""), "color", "#5794F2", "", "")
	return stateColor(sinks, "late", "ok", "blind") + "\nor\n" + head
}

func edges(s scope) string {
	e := with(with("max by (from, to, state) ("+s.of(edgeRule)+")", "source", "$1", "from", "(.*)"), "target", "$1", "to", "(.*)")
	return stateColor(`label_join(`+e+`, "id", " ", "from", "to")`, "stuck", "ok", "")
}

// with adds a label to the series of an expression.
func with(expr, label, value, source, pattern string) string {
	return fmt.Sprintf("label_replace(%s, %q, %q, %q, %q)", expr, label, value, source, pattern)
}

// stateColor adds the label color by the label state.
func stateColor(expr, ill, well, unknown string) string {
	expr = with(with(expr, "color", "#F2495C", "state", ill), "color", "#73BF69", "state", well)
	if unknown != "" {
		expr = with(expr, "color", "#8E8E8E", "state", unknown)
	}
	return expr
}

// probeSections is what is on the dashboard of a probe, around the picture of its pipeline.
func probeSections(s scope, picture panel) []section {
	late := steps(good, at(near, 0.5), at(bad, 1))
	lost := steps(good, at(near, 0.001), at(bad, 0.01))
	info := table("About this probe", "The labels of the probe's YAML, which route its alerts. Runbook and dashboard open with a click.", full, low, "", []column{
		{field: "probe"},
	}, q(s.of(infoRule), ""))
	// All labels, whatever their names.
	info.Transformations = []transform{{"organize", anything{"excludeByName": anything{"Time": true, "Value": true, "__name__": true}, "indexByName": anything{}, "renameByName": anything{}}}}
	for _, l := range []string{"runbook", "dashboard"} {
		info.FieldConfig.Overrides = append(info.FieldConfig.Overrides, override{matcher{"byName", l}, []property{
			{"links", []dataLink{{Title: "Open the " + l, URL: "${__value.raw}", TargetBlank: true}}},
		}})
	}
	return []section{
		{panels: []panel{
			text("How to read this", `
**Lag** is what users feel: how late messages come out now. It is the latency of the newest heartbeat, or the age of the first one that should have
come after it, whichever is larger, so that it grows while nothing comes out. The dashed lines are the thresholds of the probe's YAML.

**Lost** is the share that the head refuses or that does not come out by its deadline. *Indeterminate* says that nobody can know: the monitor
was blind, or the head gave no answer. [What to do](`+docs+`runbooks) · [all words](`+docs+`metrics.md)
`, third, top),
			stat("Lag", "How late messages come out now, at the worst sink.", seconds, 4, steps(plain), q(s.of("job_probe:lag_monitor_lag_seconds:max"), "lag")),
			stat("Of the page threshold", "Lag as a share of `page.lag`: at 100 % somebody is called, once it has lasted for as long as `for` says.",
				ratio, 4, late, q(s.of("job_probe:lag_monitor_lag_of_page:ratio"), "of page")),
			stat("Lost over the whole way", "Of what users want to put in, the share that the head refuses or that does not come out at the worst sink by its deadline. Last 5 minutes.",
				ratio, 4, lost, q(s.of("job_probe:lag_monitor_heartbeats_lost:ratio_rate5m"), "lost")),
			stat("Pages", "Alerts of severity page of this probe that are firing now.",
				count, 2, steps(good, at(bad, 1)), q("count("+s.of("ALERTS", `alertstate="firing"`, `severity="page"`)+") or vector(0)", "pages")),
			named(stat("Sending", "Whether the probe sends heartbeats. Nobody is called for a probe that is paused.", count, 2, steps(good, at(near, 1)),
				q(s.of("job_probe:lag_monitor_probe_paused:max"), "paused")), map[string]string{"0": "yes", "1": "paused"}),
			limits(logarithmic(graph("Lag", "How far each sink is behind now, with the thresholds of the probe's YAML.", seconds, half, tall,
				q(s.of("job_probe_sink:lag_monitor_lag_seconds:max"), "{{sink}}"),
				q(s.of("job_probe_severity:lag_monitor_probe_threshold_seconds:last"), "{{severity}} threshold")))),
			picture,
			info,
		}},
		{title: "Success and errors", panels: []panel{
			stacked(from0(colored(graph("What the head says", "Heartbeats per second that were put in, by the answer of the head. `failure` was certainly refused, `unknown` may be in the pipeline.",
				perSecond, third, usual, q(s.of("job_probe_result:lag_monitor_heartbeats_sent:rate5m"), "{{result}}")),
				map[string]string{"success": good, "failure": bad, "unknown": near}))),
			to1(graph("On time", "Of the heartbeats whose outcome is known, the share that came out by its deadline, for each sink.",
				ratio, third, usual, q(s.of("job_probe_sink:lag_monitor_heartbeats_on_time:ratio_rate5m"), "{{sink}}"))),
			from0(graph("Errors", "The share that the head refuses, that is dropped on the way to each sink, and both together over the whole way.",
				ratio, third, usual,
				q(s.of("job_probe:lag_monitor_heartbeats_refused:ratio_rate5m"), "refused by the head"),
				q(s.of("job_probe_sink:lag_monitor_heartbeats_dropped:ratio_rate5m"), "dropped before {{sink}}"),
				q(s.of("job_probe:lag_monitor_heartbeats_lost:ratio_rate5m"), "lost over the whole way"))),
			from0(graph("Drops", "Heartbeats per second that the head accepted and that a sink, proven to be reading, had not seen at their deadline, by reason.",
				perSecond, third, usual, q(s.of("job_probe_sink_reason:lag_monitor_heartbeats_dropped:rate5m"), "{{sink}} {{reason}}"))),
			from0(graph("Arrivals", "Heartbeats per second that came out, on time or late. A late one was counted as dropped or indeterminate before.",
				perSecond, third, usual, q(s.of("job_probe_sink_timing:lag_monitor_heartbeats_received:rate5m"), "{{sink}} {{timing}}"))),
			from0(graph("Nobody can know", "Heartbeats per second whose outcome is indeterminate, by reason: the head gave no answer, or the sink was blind over the deadline.",
				perSecond, third, usual, q(s.of("job_probe_sink_reason:lag_monitor_heartbeats_indeterminate:rate5m"), "{{sink}} {{reason}}"))),
			from0(graph("On their way", "Heartbeats that were sent and whose outcome is open.", count, third, usual,
				q(s.of("job_probe_sink:lag_monitor_heartbeats_in_flight:sum"), "{{sink}}"))),
			from0(graph("Twice, or out of order", "Heartbeats per second that came out again (`duplicate`: as another message; `redelivery`: the same stored message), or after a younger one of their lane.",
				perSecond, third, usual,
				q(s.of("job_probe_sink_kind:lag_monitor_heartbeats_duplicated:rate5m"), "{{sink}} {{kind}}"),
				q(s.of("job_probe_sink:lag_monitor_heartbeats_reordered:rate5m"), "{{sink}} out of order"))),
			from0(graph("Not sent", "Ticks per second without an injection, by reason. They lose nothing, and the lag grows as if they had been sent.",
				perSecond, third, usual, q(s.of("job_probe_reason:lag_monitor_heartbeats_skipped:rate5m"), "{{reason}}"))),
		}},
		{title: "Hops", panels: []panel{
			logarithmic(graph("Time on each part of the way", "p50 and p99 of the time between two stations, for a probe that has hops: where the time goes. The time that the pipeline was asked to hold the heartbeat is not in it.",
				seconds, half, usual,
				q(s.of("job_probe_from_to:lag_monitor_hop_latency_seconds:quantile_rate5m", `quantile="0.5"`), "p50 {{from}} → {{to}}"),
				q(s.of("job_probe_from_to:lag_monitor_hop_latency_seconds:quantile_rate5m", `quantile="0.99"`), "p99 {{from}} → {{to}}"))),
			to1(graph("Stuck", "1 while heartbeats have passed one station and do not come to the next one, whose queue is proven to be read: look between the two.",
				count, quarter, usual, q(s.of("job_probe_from_to:lag_monitor_stuck:max"), "{{from}} → {{to}}"))),
			from0(graph("Dead letters", "Messages with a heartbeat per second that were found in a dead-letter queue, by the broker's reason.",
				perSecond, quarter, usual, q(s.of("job_probe_sink_reason:lag_monitor_heartbeats_dead_lettered:rate5m"), "{{sink}} {{reason}}"))),
		}},
		{title: "Queues", panels: []panel{
			stacked(from0(graph("Messages read", "Messages per second on the queues that this probe comes out of, by kind: `other` is ordinary traffic.",
				perSecond, third, usual, q(s.ofSinks("job_sink_kind:lag_monitor_sink_messages:rate5m"), "{{sink}} {{kind}}")))),
			graph("Unread", "How old the newest message may be that no monitor has read yet. Above a minute or two the monitor itself is behind or blind.",
				seconds, third, usual, q(s.ofSinks("job_sink:lag_monitor_sink_unread:seconds"), "{{sink}}")),
			to1(graph("Connected", "1 while a monitor reads the queue, 0 while all of them are blind: then outcomes are indeterminate, and a dead broker looks the same.",
				count, third, usual, q(s.ofSinks("job_sink:lag_monitor_sink_up:max"), "{{sink}}"))),
			from0(graph("Errors of reading", "Errors per second of the sinks, by class.",
				perSecond, quarter, usual, q(s.ofSinks("job_sink_class:lag_monitor_sink_errors:rate5m"), "{{sink}} {{class}}"))),
			from0(graph("Backlog", "Messages that wait in the queues. A cause of lag, not a symptom.",
				count, quarter, usual, q(s.ofSinks("job_sink_queue_group:lag_monitor_backlog_messages:sum"), "{{sink}} {{queue}} {{group}}"))),
			from0(graph("Backlog age", "How long the oldest message has been waiting in the queues.",
				seconds, quarter, usual, q(s.ofSinks("job_sink_queue_group:lag_monitor_backlog_seconds:max"), "{{sink}} {{queue}} {{group}}"))),
			from0(graph("Consumers", "How many consumers the broker knows of on the queues. None, and nothing takes the messages away.",
				count, quarter, usual, q(s.ofSinks("job_sink_queue_group:lag_monitor_backlog_consumers:max"), "{{sink}} {{queue}} {{group}}"))),
		}},
		itself(s),
		latencies(s,
			q(s.of("job_probe_sink:lag_monitor_heartbeat_latency_seconds:quantile_rate5m", `quantile="0.5"`), "p50 {{sink}}"),
			q(s.of("job_probe_sink:lag_monitor_heartbeat_latency_seconds:quantile_rate5m", `quantile="0.9"`), "p90 {{sink}}"),
			q(s.of("job_probe_sink:lag_monitor_heartbeat_latency_seconds:quantile_rate5m", `quantile="0.99"`), "p99 {{sink}}"),
			q(s.of("job_probe:lag_monitor_heartbeat_inject_duration_seconds:quantile_rate5m", `quantile="0.99"`), "p99 head's answer"),
		),
	}
}
