package dashboard

import (
	"encoding/json"
	"strings"
)

// anything is a JSON object.
type anything = map[string]any

// panel is one of the dashboard before it has a place.
type panel struct {
	kind, title, description string
	w, h                     int
	queries                  []query
	table                    bool // one table of the newest values for each query, not lines
	defaults                 anything
	overrides                []anything
	options                  anything
	transformations          []anything
}

// query is PromQL and the name of its lines, where {{label}} stands for a label's value.
type query struct{ expr, legend string }

// source is the Prometheus that the variable names.
func source() anything { return anything{"type": "prometheus", "uid": "${datasource}"} }

// lines is a panel of lines over time.
func lines(title, description, unit string, queries ...query) panel {
	return panel{
		kind: "timeseries", title: title, description: description, w: 8, h: 8, queries: queries,
		defaults: anything{
			"unit": unit, "color": anything{"mode": "palette-classic"},
			"custom": anything{"drawStyle": "line", "lineWidth": 1, "fillOpacity": 5, "showPoints": "never", "spanNulls": false},
		},
		options: anything{
			"legend":  anything{"displayMode": "list", "placement": "bottom", "showLegend": true, "calcs": []string{}},
			"tooltip": anything{"mode": "multi", "sort": "desc"},
		},
	}
}

// logarithmic is for what spans orders of magnitude.
func logarithmic(p panel) panel {
	p.defaults["custom"].(anything)["scaleDistribution"] = anything{"type": "log", "log": 10}
	return p
}

// failuresRed shows success in green and failure in red.
func failuresRed(p panel) panel {
	for name, color := range map[string]string{"success": "green", "failure": "red"} {
		p.overrides = append(p.overrides, fixed("byName", name, color))
	}
	// One order, so that the file stays the same.
	if p.overrides[0]["matcher"].(anything)["options"] != "failure" {
		p.overrides[0], p.overrides[1] = p.overrides[1], p.overrides[0]
	}
	return p
}

func fixed(matcher, name, color string) anything {
	return anything{
		"matcher":    anything{"id": matcher, "options": name},
		"properties": []anything{{"id": "color", "value": anything{"mode": "fixed", "fixedColor": color}}},
	}
}

// share is a panel of ratios, from nothing to everything.
func share(p panel) panel {
	p.defaults["min"], p.defaults["max"] = 0, 1
	return p
}

func results(title, description, rule string) panel {
	return failuresRed(lines(title, description, "cps", query{rule, "{{result}}"}))
}

func quantiles(title, description, rule string) panel {
	return logarithmic(lines(title, description+" On a log scale, since fast and slow are orders of magnitude apart.", "s", query{rule, "p{{quantile}}"}))
}

func text(markdown string, h int) panel {
	return panel{kind: "text", w: 24, h: h, options: anything{"mode": "markdown", "content": strings.TrimSpace(markdown)}}
}

// Mermaid is the picture of the service for the plugin Diagram. The text of a node is the name of its series: stores are
// rectangles, processes are round, and what a message can end up as is a flag.
const Mermaid = `graph LR
User([User]) ==> Stash
subgraph frontend
  Stash(Stash) --> WE>Write error]
end
Stash ==> Bigtable[Bigtable]
subgraph backend
  Bigtable ==> Scanner(Scanner)
  Scanner --> Duplicate>Duplicate]
  Scanner --> SE>Scan error]
  Scanner ==> Publisher(Publisher)
  Publisher --> PE>Publish error]
  Publisher ==> Deleter(Deleter)
  Deleter --> DE>Delete error]
end
Deleter ==> Bigtable
Publisher ==> Kinesis[Kinesis]
`

const (
	nodes = "node:stashdef_messages:rate1m"
	edges = "edge:stashdef_messages:rate1m"
)

// picture is the panel of the pipeline, in one of two ways.
func picture(mermaid bool) panel {
	const description = "Messages a second, over a minute, at each place and between them. Duplicate and the errors are places where a row can end up in a scan; it is tried again."
	if mermaid {
		theme := anything{
			"common":       anything{"fontFamily": "Roboto,Helvetica Neue,Arial,sans-serif"},
			"classDiagram": anything{}, "flowChart": anything{}, "sequenceDiagram": anything{}, "stateDiagram": anything{}, "userJourneyDiagram": anything{},
		}
		return panel{
			kind: "jdbranham-diagram-panel", title: "The service (sum of rates over 1m)", description: description, w: 16, h: 12,
			queries:  []query{{nodes, "{{title}}"}},
			defaults: anything{"unit": "cps", "decimals": 1, "custom": anything{"valueName": "last"}},
			options: anything{
				"content": Mermaid, "mode": "content", "valueName": "last", "composites": []string{}, "metricCharacterReplacements": []string{},
				"legend":   anything{"show": false, "asTable": true, "hideEmpty": false, "hideZero": false, "placement": "under", "displayMode": "table", "stats": []string{"last"}, "sortBy": "last", "sortDesc": true, "gradient": anything{"enabled": true, "show": true}},
				"nodeSize": anything{"minWidth": 30, "minHeight": 40}, "maxWidth": true, "style": "", "pluginVersion": "", "moddedSeriesVal": 0,
				"mermaidServiceUrl": "", "useBasicAuth": false, "authUsername": "", "authPassword": "",
				"mermaidThemeVariablesDark": theme, "mermaidThemeVariablesLight": theme, "useBackground": false,
			},
		}
	}
	p := panel{
		kind: "nodeGraph", title: "The service (sum of rates over 1m)", description: description, w: 16, h: 12, table: true,
		queries: []query{{nodes, "nodes"}, {edges, "edges"}},
		options: anything{"zoomMode": "cooperative", "layoutAlgorithm": "layered", "nodes": anything{"mainStatUnit": "cps"}, "edges": anything{"mainStatUnit": "cps"}},
	}
	// The panel looks for a field whose real name is mainstat. A calculation makes one; renaming changes what is shown only.
	for _, q := range p.queries {
		p.transformations = append(p.transformations, anything{"id": "calculateField", "options": anything{
			"mode": "binary", "alias": "mainstat", "replaceFields": false, "timeSeries": false,
			"binary": anything{"left": "Value #" + q.legend, "operator": "*", "right": "1"},
		}})
	}
	return p
}

func lag() panel {
	p := lines("Lag: what users feel", "How far the output is behind. It grows while nothing comes out, whatever the cause. At the dashed line somebody is called.", "s",
		query{`job_probe:lag_monitor_lag_seconds:max{probe="stash-deferred"}`, "lag"},
		query{`job_probe_severity:lag_monitor_probe_threshold_seconds:last{probe="stash-deferred",severity="page"}`, "page"})
	p.h = 12
	p.overrides = []anything{{
		"matcher": anything{"id": "byName", "options": "page"},
		"properties": []anything{
			{"id": "color", "value": anything{"mode": "fixed", "fixedColor": "red"}},
			{"id": "custom.lineStyle", "value": anything{"fill": "dash", "dash": []int{10, 10}}},
			{"id": "custom.fillOpacity", "value": 0},
		},
	}}
	return p
}

// above is what everybody sees, folded what is below the fold.
func above(mermaid bool) []panel {
	return []panel{
		text(`
**Stash Deferred** takes messages with the time when each is due (`+"`POST /v1/messages`"+`), keeps them in Bigtable, and puts each onto its Kinesis stream when it is due: at least once, in no order.

Begin on the right: **lag** is what users feel, and the only reason to wake somebody. The picture says which part the messages come to, and where they end. Everything below is a cause: red lines first, then backpressure. [What to conclude](https://github.com/lag-monitor/lag-monitor/blob/main/docs/stash-deferred.md), failure by failure.
`, 4),
		picture(mermaid), lag(),
		lines("Messages in", "What users send, by the status of the answer: 202 is taken, 400 is the user's mistake, 503 is Bigtable.", "cps", query{"code:stashdef_http_request:rate1m", "{{code}}"}),
		results("Scanned", "Rows that scans found due. A scan that broke off is a failure.", "result:stashdef_bigtable_row_scan:rate1m"),
		results("Published", "Attempts to write to Kinesis. What fails is retried, and blocks the publisher meanwhile.", "result:stashdef_kinesis_message_write:rate1m"),
		share(lines("Error ratio of deletions", "The share of rows that could not be deleted. Each of them is published once more: consumers see duplicates.", "percentunit",
			query{`operation:stashdef_errors:ratio1m{operation="delete"}`, "delete"})),
		share(lines("Error ratio of everything", "The share of attempts that failed in all four operations together.", "percentunit",
			query{"job:stashdef_errors:ratio1m", "all operations"})),
		lines("Messages lost and doubled, as users see them", "Heartbeats that lag-monitor has counted as dropped, and those that came out twice, in the last 30 minutes.", "short",
			query{`job_probe_sink:lag_monitor_heartbeats_dropped:increase30m{probe="stash-deferred"}`, "dropped"},
			query{`sum(increase(lag_monitor_heartbeats_duplicated_total{probe="stash-deferred"}[30m]))`, "doubled"}),
		quantiles("Backpressure", "How long the scanner waits until a publisher takes a row: below a millisecond, unless publishers or the deleter are what is slow.", "quantile:stashdef_bigtable_row_scan_backpressure:seconds"),
		lines("Backlog", "Rows that are due and still in Bigtable.", "short", query{"job:stashdef_bigtable_backlog:rows", "rows"}),
		lines("Age of the backlog", "How long the oldest of them has been due.", "s", query{"job:stashdef_bigtable_backlog:seconds", "oldest"}),
		lines("Busiest streams", "The four streams that most messages are for: did somebody start to send something new?", "cps", query{"stream:stashdef_kinesis_message_decode:top4", "{{stream}}"}),
		results("Deleted", "Rows that were deleted after they had been published.", "result:stashdef_bigtable_row_delete:rate1m"),
		lines("Memory", "Resident memory of each part.", "bytes", query{"job:stashdef_memory:bytes", "{{job}}"}),
	}
}

func folded() []panel {
	return []panel{
		quantiles("Duration of a write to Bigtable", "How long the frontend waited for Bigtable.", "quantile:stashdef_bigtable_row_write_duration:seconds"),
		quantiles("Duration of a scan", "How long one read of Bigtable took, without the time that publishers took.", "quantile:stashdef_bigtable_row_scan_duration:seconds"),
		quantiles("Duration of a write to Kinesis", "How long one attempt took.", "quantile:stashdef_kinesis_message_write_duration:seconds"),
		quantiles("Duration of a deletion", "How long the deletion of one batch took.", "quantile:stashdef_bigtable_row_delete_duration:seconds"),
	}
}

// place numbers panels and puts them onto the grid of 24 columns, from left to right and from top to bottom.
func place(panels []panel, id, y int) (placed []anything, nextID, nextY int) {
	x, row := 0, 0
	for _, p := range panels {
		if x+p.w > 24 {
			x, y, row = 0, y+row, 0
		}
		id++
		placed = append(placed, p.json(id, x, y))
		x, row = x+p.w, max(row, p.h)
	}
	return placed, id, y + row
}

func (p panel) json(id, x, y int) anything {
	out := anything{"id": id, "type": p.kind, "title": p.title, "gridPos": anything{"x": x, "y": y, "w": p.w, "h": p.h}, "options": p.options}
	if p.description != "" {
		out["description"] = p.description
	}
	if len(p.queries) == 0 {
		return out
	}
	var targets []anything
	for i, q := range p.queries {
		t := anything{"refId": string(rune('A' + i)), "datasource": source(), "expr": q.expr, "legendFormat": q.legend, "format": "time_series", "instant": false, "range": true, "editorMode": "code"}
		if p.table {
			t["refId"], t["format"], t["instant"], t["range"] = q.legend, "table", true, false
			delete(t, "legendFormat")
		}
		targets = append(targets, t)
	}
	defaults, overrides := p.defaults, p.overrides
	if defaults == nil {
		defaults = anything{}
	}
	if overrides == nil {
		overrides = []anything{}
	}
	out["datasource"], out["targets"] = source(), targets
	out["fieldConfig"] = anything{"defaults": defaults, "overrides": overrides}
	if p.transformations != nil {
		out["transformations"] = p.transformations
	}
	return out
}

// Files are the names of the two dashboards; the second one needs the plugin Diagram.
var Files = map[string]bool{"stash-deferred.json": false, "stash-deferred-mermaid.json": true}

// JSON returns the dashboard, with the core node graph or with a Mermaid diagram.
func JSON(mermaid bool) ([]byte, error) {
	title, uid := "Stash Deferred", "stash-deferred"
	if mermaid {
		title, uid = title+" (Mermaid)", uid+"-mermaid"
	}
	panels, id, y := place(above(mermaid), 0, 0)
	hidden, _, _ := place(folded(), id+1, y+1)
	panels = append(panels, anything{
		"id": id + 1, "type": "row", "title": "Durations: causes of causes, and often alarming for no reason", "collapsed": true,
		"gridPos": anything{"x": 0, "y": y, "w": 24, "h": 1}, "panels": hidden,
	})
	d := anything{
		"uid": uid, "title": title, "description": "A service that defers messages: what users feel, how it works, and where it is slow or fails.",
		"tags": []string{"stash-deferred"}, "schemaVersion": 39, "editable": true, "graphTooltip": 1, "refresh": "30s", "timezone": "",
		"time": anything{"from": "now-1h", "to": "now"}, "links": []anything{}, "panels": panels,
		"templating": anything{"list": []anything{{
			"name": "datasource", "label": "Prometheus", "description": "The Prometheus that scrapes the service", "type": "datasource", "query": "prometheus",
			"refresh": 1, "hide": 0, "multi": false, "includeAll": false, "current": anything{},
		}}},
		"annotations": anything{"list": []anything{{
			"name": "Alerts", "datasource": source(), "enable": true, "hide": false, "iconColor": "red",
			"expr": Annotation, "titleFormat": "{{alertname}}", "textFormat": "{{severity}}", "step": "15s",
		}}},
	}
	b, err := json.MarshalIndent(d, "", "  ")
	return append(b, '\n'), err
}

// Annotation marks the times at which an alert of the service fired.
const Annotation = `ALERTS{probe="stash-deferred",alertstate="firing"}`

// Queries returns the queries of all panels.
func Queries() (exprs []string) {
	for _, p := range append(above(false), folded()...) {
		for _, q := range p.queries {
			exprs = append(exprs, q.expr)
		}
	}
	return exprs
}
