package main

import "strings"

// Units of Grafana.
const (
	seconds   = "s"
	ratio     = "percentunit"
	perSecond = "cps"
	inBytes   = "bytes"
	count     = "short"
)

// Colors of Grafana's palette, by what they say.
const (
	good  = "green"
	near  = "orange"
	bad   = "red"
	plain = "text"
)

// Sizes on the grid, which is 24 wide.
const (
	full, half, third, quarter = 24, 12, 8, 6
	tall, usual, top, low      = 10, 8, 6, 4
)

// query is one query of a panel.
type query struct {
	expr   string
	legend string
	ref    string // A, B, C ... when empty
}

// q is a query whose series are named by legend, where {{label}} stands for a label's value.
func q(expr, legend string) query { return query{expr: expr, legend: legend} }

// targets gives the queries the format that the panel wants: time_series, table or heatmap. Instant ones are
// evaluated once, at the end of the time range.
func targets(format string, instant bool, queries []query) []target {
	var ts []target
	for i, query := range queries {
		ref := query.ref
		if ref == "" {
			ref = string(rune('A' + i))
		}
		ts = append(ts, target{
			RefID: ref, Datasource: prometheus(), Expr: strings.TrimSpace(query.expr), LegendFormat: query.legend,
			Format: format, Instant: instant, Range: !instant, EditorMode: "code",
		})
	}
	return ts
}

// newPanel is a panel without options. Its place is set by lay.
func newPanel(kind, title, description string, w, h int) panel {
	return panel{Type: kind, Title: title, Description: description, GridPos: gridPos{W: w, H: h}}
}

func withData(p panel, format string, instant bool, fields fieldConfig, queries []query) panel {
	ds := prometheus()
	p.Datasource = &ds
	p.Targets = targets(format, instant, queries)
	if fields.Overrides == nil {
		fields.Overrides = []override{}
	}
	p.FieldConfig = &fields
	return p
}

// text is a panel of documentation, in Markdown.
func text(title, markdown string, w, h int) panel {
	p := newPanel("text", title, "", w, h)
	p.Options = anything{"mode": "markdown", "content": strings.TrimSpace(markdown)}
	return p
}

// graph is a panel of lines over time.
func graph(title, description, unit string, w, h int, queries ...query) panel {
	p := newPanel("timeseries", title, description, w, h)
	p.Interval = "1m" // the rules have no more points
	p.Options = anything{
		"legend":  anything{"displayMode": "table", "placement": "bottom", "showLegend": true, "calcs": []string{"lastNotNull", "max"}, "sortBy": "Last *", "sortDesc": true},
		"tooltip": anything{"mode": "multi", "sort": "desc"},
	}
	return withData(p, "time_series", false, fieldConfig{Defaults: fieldDefaults{
		Unit: unit, Color: anything{"mode": "palette-classic"},
		Custom: anything{"drawStyle": "line", "lineWidth": 1, "fillOpacity": 5, "showPoints": "never", "spanNulls": false, "lineInterpolation": "linear"},
	}}, queries)
}

// from0 lets the axis begin at 0.
func from0(p panel) panel { p.FieldConfig.Defaults.Min = new(0.0); return p }

// to1 is for ratios: what is above 1 does not exist.
func to1(p panel) panel { p = from0(p); p.FieldConfig.Defaults.Max = new(1.0); return p }

// stacked adds the series up to an area.
func stacked(p panel) panel {
	p.FieldConfig.Defaults.Custom["stacking"] = anything{"mode": "normal", "group": "A"}
	p.FieldConfig.Defaults.Custom["fillOpacity"] = 30
	return p
}

// logarithmic is for what spans orders of magnitude.
func logarithmic(p panel) panel {
	p.FieldConfig.Defaults.Custom["scaleDistribution"] = anything{"type": "log", "log": 10}
	return p
}

// limits shows the series whose names end in " threshold" as dashed lines without an area.
func limits(p panel) panel {
	for _, l := range []struct{ severity, color string }{{"page", bad}, {"ticket", near}} {
		p.FieldConfig.Overrides = append(p.FieldConfig.Overrides, override{
			Matcher: matcher{"byRegexp", "/(^| )" + l.severity + " threshold$/"},
			Properties: []property{
				{"color", anything{"mode": "fixed", "fixedColor": l.color}},
				{"custom.lineStyle", anything{"fill": "dash", "dash": []int{10, 10}}},
				{"custom.fillOpacity", 0},
				{"custom.lineWidth", 2},
			},
		})
	}
	return p
}

// colored gives series fixed colors, by name.
func colored(p panel, colors map[string]string) panel {
	for _, name := range sorted(colors) {
		p.FieldConfig.Overrides = append(p.FieldConfig.Overrides, override{
			Matcher: matcher{"byName", name}, Properties: []property{{"color", anything{"mode": "fixed", "fixedColor": colors[name]}}},
		})
	}
	return p
}

// steps colors a value: base below the first limit, then pairs of color and limit.
func steps(base string, more ...step) *thresholds {
	return &thresholds{Mode: "absolute", Steps: append([]step{{Color: base}}, more...)}
}

func at(color string, value float64) step { return step{color, &value} }

// stat is one big number, the last one.
func stat(title, description, unit string, w int, th *thresholds, queries ...query) panel {
	p := newPanel("stat", title, description, w, top)
	p.Options = anything{
		"reduceOptions": anything{"calcs": []string{"lastNotNull"}, "fields": "", "values": false},
		"orientation":   "auto", "colorMode": "value", "graphMode": "none", "justifyMode": "auto", "textMode": "auto",
		"wideLayout": true, "showPercentChange": false, "percentChangeColorMode": "standard",
	}
	return withData(p, "time_series", true, fieldConfig{Defaults: fieldDefaults{
		Unit: unit, Color: anything{"mode": "thresholds"}, Thresholds: th, NoValue: "no data",
	}}, queries)
}

// named shows words in place of values.
func named(p panel, words map[string]string) panel {
	options := anything{}
	for value, word := range words {
		options[value] = anything{"text": word}
	}
	p.FieldConfig.Defaults.Mappings = append(p.FieldConfig.Defaults.Mappings, anything{"type": "value", "options": options})
	return p
}

// bars compares the newest values of many series.
func bars(title, description, unit string, w, h int, th *thresholds, queries ...query) panel {
	p := newPanel("bargauge", title, description, w, h)
	p.Options = anything{
		"reduceOptions": anything{"calcs": []string{"lastNotNull"}, "fields": "", "values": false},
		"orientation":   "horizontal", "displayMode": "basic", "valueMode": "color", "namePlacement": "left", "showUnfilled": true, "sizing": "auto",
		"minVizWidth": 8, "minVizHeight": 16, "maxVizHeight": 300,
		"legend": anything{"displayMode": "list", "placement": "bottom", "showLegend": false, "calcs": []string{}},
	}
	return withData(p, "time_series", true, fieldConfig{Defaults: fieldDefaults{
		Unit: unit, Color: anything{"mode": "thresholds"}, Thresholds: th, Min: new(0.0),
	}}, queries)
}

// column is one column of a table: a label, which keeps its name, or the value of the query with this reference ("Value #A"; that of an
// only query is "Value"), which has a title.
type column struct {
	field, title, unit string
	thresholds         *thresholds
	links              []dataLink
	width              int
}

// table shows the newest values of queries that have the same labels, a row for each set of labels. Labels that are no
// column are left out; sortBy is the title of the column that puts the largest values first, if any.
func table(title, description string, w, h int, sortBy string, columns []column, queries ...query) panel {
	p := newPanel("table", title, description, w, h)
	p.Options = anything{"showHeader": true, "cellHeight": "sm", "frameIndex": 0, "sortBy": []any{}}
	if sortBy != "" {
		p.Options["sortBy"] = []any{anything{"displayName": sortBy, "desc": true}}
	}
	fields := fieldConfig{Defaults: fieldDefaults{
		Color:  anything{"mode": "thresholds"},
		Custom: anything{"align": "auto", "cellOptions": anything{"type": "auto"}, "inspect": false},
	}}
	order, names := anything{}, anything{}
	var keep []string
	for i, c := range columns {
		keep = append(keep, c.field)
		order[c.field] = i
		if c.title == "" {
			c.title = c.field
		} else {
			names[c.field] = c.title
		}
		var properties []property
		if c.unit != "" {
			properties = append(properties, property{"unit", c.unit})
		}
		if c.thresholds != nil {
			properties = append(properties, property{"thresholds", c.thresholds},
				property{"custom.cellOptions", anything{"type": "color-text"}})
		}
		if c.links != nil {
			properties = append(properties, property{"links", c.links})
		}
		if c.width > 0 {
			properties = append(properties, property{"custom.width", c.width})
		}
		if properties != nil {
			fields.Overrides = append(fields.Overrides, override{matcher{"byName", c.title}, properties})
		}
	}
	p.Transformations = []transform{
		{"merge", anything{}},
		{"filterFieldsByName", anything{"include": anything{"names": keep}}},
		{"organize", anything{"indexByName": order, "renameByName": names, "excludeByName": anything{}}},
	}
	return withData(p, "table", true, fields, queries)
}

// heatmap shows the buckets of a histogram, classic (a series for each le) or native.
func heatmap(title, description string, w, h int, expr string) panel {
	p := newPanel("heatmap", title, description, w, h)
	p.Interval = "1m"
	p.Options = anything{
		"calculate": false,
		"yAxis":     anything{"unit": seconds, "axisPlacement": "left", "reverse": false},
		"rowsFrame": anything{"layout": "auto"},
		"color":     anything{"mode": "scheme", "scheme": "Oranges", "steps": 64, "reverse": false, "exponent": 0.5, "fill": "dark-orange", "scale": "exponential"},
		"cellGap":   1, "showValue": "never", "filterValues": anything{"le": 1e-9},
		"tooltip":   anything{"mode": "single", "yHistogram": true, "showColorScale": false},
		"legend":    anything{"show": true},
		"exemplars": anything{"color": "rgba(255,0,255,0.7)"},
	}
	return withData(p, "heatmap", false, fieldConfig{Defaults: fieldDefaults{
		Custom: anything{"scaleDistribution": anything{"type": "linear"}, "hideFrom": anything{"legend": false, "tooltip": false, "viz": false}},
	}}, []query{q(expr, "{{le}}")})
}

// nodeGraph shows what is connected with what. Each query gives one table: that of edges needs the labels id, source and
// target, that of nodes id, title and whatever else; both get their value as the main number. The panel looks for the
// real name of a field, which only a calculation sets: renaming changes what is displayed.
func nodeGraph(title, description string, w, h int, unit string, queries ...query) panel {
	p := newPanel("nodeGraph", title, description, w, h)
	p.Options = anything{"zoomMode": "cooperative", "layoutAlgorithm": "layered"}
	if unit != "" {
		p.Options["nodes"], p.Options["edges"] = anything{"mainStatUnit": unit}, anything{"mainStatUnit": unit}
	}
	for _, query := range queries {
		value := "Value #" + query.ref
		if len(queries) == 1 {
			value = "Value"
		}
		p.Transformations = append(p.Transformations, transform{"calculateField", anything{
			"mode": "binary", "alias": "mainstat", "replaceFields": false, "timeSeries": false,
			"binary": anything{"left": value, "operator": "*", "right": "1"},
		}})
	}
	return withData(p, "table", true, fieldConfig{}, queries)
}

// section is a row and what is below it. Below the fold are those that are closed when the dashboard opens.
type section struct {
	title  string
	folded bool
	panels []panel
}

// lay numbers the panels and puts them on the grid, from left to right and from top to bottom, a section below the other. The
// first section has no row above it if it has no title. Grafana wants what a folded row hides inside of it.
func lay(sections ...section) []panel {
	var laid []panel
	id, y := 0, 0
	for _, s := range sections {
		var row *panel
		if s.title != "" {
			id++
			r := panel{ID: id, Type: "row", Title: s.title, GridPos: gridPos{Y: y, W: full, H: 1}, Collapsed: &s.folded, Panels: &[]panel{}}
			y++
			if s.folded {
				row = &r
			} else {
				laid = append(laid, r)
			}
		}
		var inside []panel
		x, height := 0, 0
		for _, p := range s.panels {
			if x+p.GridPos.W > full {
				x, y, height = 0, y+height, 0
			}
			id++
			p.ID, p.GridPos.X, p.GridPos.Y = id, x, y
			x, height = x+p.GridPos.W, max(height, p.GridPos.H)
			inside = append(inside, p)
		}
		if row == nil {
			laid, y = append(laid, inside...), y+height
			continue
		}
		// The row is closed: what follows comes directly below it.
		row.Panels = &inside
		laid = append(laid, *row)
		y = row.GridPos.Y + 1
	}
	return laid
}
