package main

// fleet is the dashboard of all probes: which one is ill, and what they share.
func fleet() dashboard {
	s := ofFleet
	d := newDashboard(fleetUID, "lag-monitor / Fleet",
		"All pipelines that lag-monitor watches: which are late, which lose messages, and what they share.", s, jobAndProbe(s, true))
	late := steps(good, at(near, 0.5), at(bad, 1))
	lost := steps(good, at(near, 0.001), at(bad, 0.01))
	d.Panels = lay(
		section{panels: []panel{
			text("How to read this", `
Every pipeline here gets a small **heartbeat** at its head, again and again, and lag-monitor listens where messages come out. Users feel two
things: messages come out **late** (lag), or **not at all** (lost). The table has the worst pipeline on top; a click opens it.

Lag is compared with the *page threshold* in each probe's own YAML: at 100 % somebody is called. [Alerts and what to do](`+docs+`runbooks)
· [what the panels mean](`+docs+`dashboards.md)
`, third, top),
			stat("Late pipelines", "Probes whose lag is above their page threshold now. They page once it has lasted for as long as their `for` says.",
				count, 4, steps(good, at(bad, 1)), q("count("+s.of("job_probe:lag_monitor_lag_of_page:ratio")+" >= 1) or vector(0)", "late")),
			stat("Pages", "Alerts of severity page that are firing now, of the chosen probes.",
				count, 4, steps(good, at(bad, 1)), q("count("+s.of("ALERTS", `alertstate="firing"`, `severity="page"`)+") or vector(0)", "pages")),
			stat("Lost, all together", "Of what users want to put in, the share that the heads refuse or that does not come out by its deadline. Each probe counts by its number of heartbeats.",
				ratio, 4, lost,
				q("sum("+s.of("job_probe:lag_monitor_heartbeats_lost:ratio_rate5m")+" * "+s.of("job_probe:lag_monitor_heartbeats_expected:rate5m")+")\n/ sum("+
					s.of("job_probe:lag_monitor_heartbeats_expected:rate5m")+")", "lost")),
			stat("Pipelines", "Probes that are watched.", count, 4, steps(plain), q("count("+s.of(infoRule)+")", "pipelines")),

			table("Pipelines, the latest first", "One row for each probe. **Of page** is the lag as a share of the page threshold; a probe without `page.lag` has none. **Lost** is over the last 5 minutes and the whole way.",
				16, tall, "Of page", []column{
					{field: "probe", links: []dataLink{toProbe("__data.fields")}},
					{field: "job"},
					{field: "Value #A", title: "Lag", unit: seconds, width: 110},
					{field: "Value #B", title: "Of page", unit: ratio, thresholds: late, width: 110},
					{field: "Value #C", title: "Lost", unit: ratio, thresholds: lost, width: 110},
					{field: "Value #D", title: "p99 latency", unit: seconds, width: 120},
				},
				q("max by (job, probe) ("+s.of("job_probe:lag_monitor_lag_seconds:max")+")", ""),
				q("max by (job, probe) ("+s.of("job_probe:lag_monitor_lag_of_page:ratio")+")", ""),
				q("max by (job, probe) ("+s.of("job_probe:lag_monitor_heartbeats_lost:ratio_rate5m")+")", ""),
				q("max by (job, probe) ("+s.of("job_probe_sink:lag_monitor_heartbeat_latency_seconds:quantile_rate5m", `quantile="0.99"`)+")", "")),
			bars("Closest to their page threshold", "The ten probes whose lag has used up most of their page threshold.",
				ratio, third, tall, late, q("topk(10, "+s.of("job_probe:lag_monitor_lag_of_page:ratio")+")", "{{probe}}")),

			linked(logarithmic(graph("Lag, the ten worst", "How far each pipeline is behind now: the latency of the newest heartbeat, or the age of the first tick after it. It grows during silence, also when the head is down.",
				seconds, half, tall, q("topk(10, "+s.of("job_probe:lag_monitor_lag_seconds:max")+")", "{{probe}}")))),
			linked(to1(graph("Lost over the whole way, the ten worst", "One error rate from the head to the worst sink: refused by the head, or accepted and not out by its deadline. Sinks are not added up, since what is lost at the first hop is missing at all that follow.",
				ratio, half, tall, q("topk(10, "+s.of("job_probe:lag_monitor_heartbeats_lost:ratio_rate5m")+")", "{{probe}}")))),
		}},
		section{title: "Success and errors", panels: []panel{
			stacked(from0(graph("What the heads say", "Heartbeats per second that were put in, by the answer of the head. `failure` was certainly refused, `unknown` may be in the pipeline.",
				perSecond, third, usual, q("sum by (result) ("+s.of("job_probe_result:lag_monitor_heartbeats_sent:rate5m")+")", "{{result}}")))),
			to1(graph("On time, the ten worst sinks", "Of the heartbeats whose outcome is known, the share that came out by its deadline.",
				ratio, third, usual, q("bottomk(10, "+s.of("job_probe_sink:lag_monitor_heartbeats_on_time:ratio_rate5m")+")", "{{probe}} → {{sink}}"))),
			linked(from0(graph("Drops, the ten worst", "Heartbeats per second that a head accepted and that a sink, proven to be reading, had not seen at their deadline. A blind monitor counts none.",
				perSecond, third, usual, q("topk(10, sum by (job, probe, reason) ("+s.of("job_probe_sink_reason:lag_monitor_heartbeats_dropped:rate5m")+"))", "{{probe}} {{reason}}")))),
		}},
		section{title: "Queues", panels: []panel{
			from0(graph("Busiest queues", "Messages per second that the monitors read, the ten busiest sinks, ordinary traffic included. The monitor's CPU goes with it.",
				perSecond, third, usual, q("topk(10, "+s.ofSinks("job_sink:lag_monitor_sink_messages:rate5m")+")", "{{sink}}"))),
			graph("Unread, the ten worst", "How old the newest message may be that no monitor has read yet. Above a minute or two the monitor itself is behind; while it is blind, outcomes are indeterminate and not dropped.",
				seconds, third, usual, q("topk(10, "+s.ofSinks("job_sink:lag_monitor_sink_unread:seconds")+")", "{{sink}}")),
			from0(graph("Errors of reading, the ten worst", "Errors per second of the sinks, by class. `throttle` on Kinesis: others read the stream too.",
				perSecond, third, usual, q("topk(10, "+s.ofSinks("job_sink_class:lag_monitor_sink_errors:rate5m")+")", "{{sink}} {{class}}"))),
			from0(graph("Backlog, the ten longest", "Messages that wait in the queues. A cause of lag, not a symptom: nobody is called for it alone.",
				count, half, usual, q("topk(10, "+s.ofSinks("job_sink_queue_group:lag_monitor_backlog_messages:sum")+")", "{{sink}} {{queue}} {{group}}"))),
			from0(graph("Backlog age, the ten oldest", "How long the oldest message has been waiting in the queues.",
				seconds, half, usual, q("topk(10, "+s.ofSinks("job_sink_queue_group:lag_monitor_backlog_seconds:max")+")", "{{sink}} {{queue}} {{group}}"))),
		}},
		itself(s),
		latencies(s,
			q("topk(5, "+s.of("job_probe_sink:lag_monitor_heartbeat_latency_seconds:quantile_rate5m", `quantile="0.5"`)+")", "p50 {{probe}} → {{sink}}"),
			q("topk(5, "+s.of("job_probe_sink:lag_monitor_heartbeat_latency_seconds:quantile_rate5m", `quantile="0.9"`)+")", "p90 {{probe}} → {{sink}}"),
			q("topk(5, "+s.of("job_probe_sink:lag_monitor_heartbeat_latency_seconds:quantile_rate5m", `quantile="0.99"`)+")", "p99 {{probe}} → {{sink}}"),
		),
		section{title: "What they share", folded: true, panels: []panel{
			nodeGraph("Pipelines and queues", "Each pipeline with the queues that it passes and comes out of. The number of a queue is how many pipelines come into it: what they share, they have in common when it breaks. Red: stuck on this part of the way.",
				full, 16, "", query{ref: "edges", expr: fleetEdges(s)}),
		}},
	)
	return d
}

// fleetEdges go from a pipeline to its first queues, and from queue to queue. The panel makes the nodes from the edges.
func fleetEdges(s scope) string {
	first := with("group by (probe, to, state) ("+s.of(edgeRule, `from="head"`)+")", "source", "$1", "probe", "(.*)")
	then := with("group by (from, to, state) ("+s.of(edgeRule, `from!="head"`)+")", "source", "queue $1", "from", "(.*)")
	e := with("(\n  "+first+"\n  or\n  "+then+"\n)", "target", "queue $1", "to", "(.*)")
	return stateColor(`label_join(`+e+`, "id", " ", "source", "target", "state")`, "stuck", "ok", "")
}
