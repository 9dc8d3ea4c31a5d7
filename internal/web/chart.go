package web

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/monitor"
)

// chart is the history of a probe as a picture that needs no JavaScript, and as a table.
type chart struct {
	Title, Desc string
	W, H        int
	Lines       []chartLine
	Grid        []chartGrid
	Hours       []chartGrid
	LimitY      int // 0: no limit
	LimitText   string
	Rows        []chartRow
	Sinks       []string
	Left        int
	Bottom      int
	Right       int
}

type chartLine struct {
	Class, Points string // points of one unbroken run
}

type chartGrid struct {
	At   int
	Text string
}

// chartRow is an hour, or what there is of it.
type chartRow struct {
	From  string
	Cells []string // for each sink: "lag 4m 12s, latency 0.2s"
}

const (
	chartW, chartH                           = 860, 230
	chartLeft, chartBottom, chartTop         = 52, 24, 8
	maxChartSinks                            = 4
	leastShown, mostShown            float64 = 0.001, 10 * 365 * 86400
)

// marks are where the scale has a line: a logarithmic one, in the units that people think in.
var marks = []float64{0.001, 0.01, 0.1, 1, 10, 60, 600, 3600, 6 * 3600, 24 * 3600, 7 * 24 * 3600, 30 * 24 * 3600, 365 * 24 * 3600}

// shortest is how many points a chart has at least, where there are as many.
const shortest = 30

// trimmed leaves the time out before anything was known: a monitor that has just begun shows a few minutes, not an
// empty picture.
func trimmed(h monitor.HistoryStatus) monitor.HistoryStatus {
	points, first := 0, math.MaxInt
	for _, s := range h.Sinks {
		for _, values := range [][]*float64{s.Lag, s.Latency} {
			points = max(points, len(values))
			if i := slices.IndexFunc(values, func(v *float64) bool { return v != nil }); i >= 0 {
				first = min(first, i)
			}
		}
	}
	first = max(min(first, points-shortest), 0)
	out := monitor.HistoryStatus{Start: h.Start.Add(time.Duration(first) * seconds(h.Step)), Step: h.Step}
	for _, s := range h.Sinks {
		s.Lag, s.Latency = s.Lag[min(first, len(s.Lag)):], s.Latency[min(first, len(s.Latency)):]
		out.Sinks = append(out.Sinks, s)
	}
	return out
}

func newChart(h monitor.HistoryStatus, name string, limitAt float64) chart {
	h = trimmed(h)
	c := chart{
		Title: "Lag and latency of " + clean(name) + " over the last six hours", W: chartW, H: chartH,
		Left: chartLeft, Bottom: chartH - chartBottom, Right: chartW,
	}
	low, high, points := math.Inf(1), 0.0, 0
	each := func(v *float64) {
		if v != nil && !math.IsNaN(*v) {
			low, high = min(low, max(*v, leastShown)), max(high, min(*v, mostShown))
		}
	}
	for _, s := range h.Sinks {
		points = max(points, len(s.Lag), len(s.Latency))
		for _, v := range s.Lag {
			each(v)
		}
		for _, v := range s.Latency {
			each(v)
		}
	}
	if math.IsInf(low, 1) || points == 0 || h.Step <= 0 {
		c.Desc = "Nothing is known yet."
		return c
	}
	if limitAt > 0 {
		high = max(high, limitAt*1.3)
	}
	low, high = math.Log10(low*0.7), math.Log10(max(high*1.3, low*10))
	y := func(v float64) int {
		f := (math.Log10(min(max(v, leastShown), mostShown)) - low) / (high - low)
		return chartTop + int(math.Round((1-min(max(f, 0), 1))*float64(chartH-chartTop-chartBottom)))
	}
	x := func(i int) float64 {
		return chartLeft + float64(i)/float64(max(points-1, 1))*float64(chartW-chartLeft-4)
	}
	for _, m := range marks {
		if l := math.Log10(m); l >= low && l <= high {
			c.Grid = append(c.Grid, chartGrid{y(m), limit(m)})
		}
	}
	step := seconds(h.Step)
	for i := range points {
		at := h.Start.Add(time.Duration(i) * step).UTC()
		if at.Truncate(time.Hour).After(at.Add(-step)) {
			c.Hours = append(c.Hours, chartGrid{int(x(i)), at.Truncate(time.Hour).Format("15:04")})
		}
	}
	if limitAt > 0 {
		c.LimitY, c.LimitText = y(limitAt), "pages above "+limit(limitAt)
	}
	var words []string
	for n, s := range h.Sinks[:min(len(h.Sinks), maxChartSinks)] {
		c.Sinks = append(c.Sinks, clean(s.Sink))
		for _, series := range []struct {
			class  string
			values []*float64
		}{{fmt.Sprintf("lat s%d", n), s.Latency}, {fmt.Sprintf("lag s%d", n), s.Lag}} {
			for _, run := range runs(series.values, x, y) {
				c.Lines = append(c.Lines, chartLine{series.class, run})
			}
		}
		if v := largest(s.Lag); v != nil {
			words = append(words, "the largest lag at "+clean(s.Sink)+" was "+duration(seconds(*v)))
		}
	}
	c.Desc = strings.Join(words, "; ") + "."
	perHour := max(int(time.Hour/max(step, time.Second)), 1)
	for from := 0; from < points; from += perHour {
		row := chartRow{From: h.Start.Add(time.Duration(from) * step).UTC().Format("15:04")}
		for _, s := range h.Sinks[:len(c.Sinks)] {
			row.Cells = append(row.Cells, "lag "+cell(s.Lag, from, perHour)+", latency "+cell(s.Latency, from, perHour))
		}
		c.Rows = append(c.Rows, row)
	}
	return c
}

func cell(all []*float64, from, n int) string {
	from = min(from, len(all))
	if v := largest(all[from:min(from+n, len(all))]); v != nil {
		return duration(seconds(*v))
	}
	return "unknown"
}

func largest(all []*float64) *float64 {
	var most *float64
	for _, v := range all {
		if v != nil && (most == nil || *v > *most) {
			most = v
		}
	}
	return most
}

// runs returns the points of each stretch without a gap.
func runs(values []*float64, x func(int) float64, y func(float64) int) []string {
	var out []string
	var b strings.Builder
	end := func() {
		if b.Len() > 0 {
			out = append(out, b.String())
			b.Reset()
		}
	}
	for i, v := range values {
		if v == nil || math.IsNaN(*v) {
			end()
			continue
		}
		if b.Len() == 0 && (i+1 == len(values) || values[i+1] == nil) {
			// A point by itself would be no line.
			fmt.Fprintf(&b, "%.0f,%d ", x(i)-1, y(*v))
		}
		fmt.Fprintf(&b, "%.0f,%d ", x(i), y(*v))
	}
	end()
	return out
}
