package main

// probeMermaid is the dashboard of a probe with a Mermaid diagram in place of the node graph, for those who have the plugin
// "Diagram" (jdbranham-diagram-panel).
func probeMermaid() dashboard {
	s := ofProbe
	ds := prometheus()
	d := newDashboard(mermaidUID, "lag-monitor / Probe (Mermaid)",
		"One pipeline: how late its messages come out, how many do not, and where on the way. Needs the plugin Diagram.", s,
		append(jobAndProbe(s, false), variable{
			Name: "ways", Label: "Ways", Type: "query", Datasource: &ds, Refresh: 2, Hide: 2, Multi: true, IncludeAll: true, SkipURLSync: true,
			Description: "The lines of the diagram, one for each part of the way",
			Query:       "query_result(" + mermaidWays(s) + ")", Regex: `/mermaid="([^"]+)"/`, Current: all(),
		}))
	d.Panels = lay(probeSections(s, diagram(s))...)
	return d
}

// mermaidWays names in the label mermaid the line of each way. Grafana joins the values of a variable with commas: each
// line ends in a comment that swallows the comma. Names of probes and sinks need no quotes.
func mermaidWays(s scope) string {
	return with(`label_join(group by (from, to) (`+s.of(edgeRule)+`), "mermaid", " ", "from", "to")`,
		"mermaid", "\n  s_$1 --> s_$2[$2]\n%% -", "mermaid", `(\S+) (\S+)`)
}

// diagram shows in each node how much of the page threshold the lag has used up. The plugin finds a node by its text, which is
// the name of the series.
func diagram(s scope) panel {
	p := newPanel("jdbranham-diagram-panel", "Pipeline", "The head, the hops and where messages come out. The number is the lag of a sink as a share of the page threshold: at 100 % somebody is called. A probe without page.lag shows no numbers.", half, tall)
	p.Options = anything{
		"content":       "graph LR\n  s_head([\"${probe}\"])\n${ways:csv}\n",
		"mode":          "content",
		"valueName":     "last",
		"legend":        anything{"show": false, "asTable": true, "hideEmpty": false, "hideZero": false, "placement": "under", "displayMode": "table", "stats": []string{"last"}, "sortBy": "last", "sortDesc": true, "gradient": anything{"enabled": true, "show": true}},
		"nodeSize":      anything{"minWidth": 30, "minHeight": 40},
		"composites":    []string{},
		"maxWidth":      true,
		"style":         "",
		"pluginVersion": "", "moddedSeriesVal": 0, "mermaidServiceUrl": "", "useBasicAuth": false, "authUsername": "", "authPassword": "",
		"metricCharacterReplacements": []string{},
		"mermaidThemeVariablesDark":   mermaidTheme(),
		"mermaidThemeVariablesLight":  mermaidTheme(),
		"useBackground":               true,
	}
	return withData(p, "time_series", false, fieldConfig{Defaults: fieldDefaults{
		Unit: ratio, Thresholds: steps(good, at(near, 0.5), at(bad, 1)), Color: anything{"mode": "thresholds"}, Custom: anything{"valueName": "last"},
	}}, []query{q(s.of("job_probe_sink:lag_monitor_lag_of_page:ratio"), "{{sink}}")})
}

func mermaidTheme() anything {
	return anything{
		"common":       anything{"fontFamily": "Roboto,Helvetica Neue,Arial,sans-serif"},
		"classDiagram": anything{}, "flowChart": anything{}, "sequenceDiagram": anything{}, "stateDiagram": anything{}, "userJourneyDiagram": anything{},
	}
}
