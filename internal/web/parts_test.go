package web

import (
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/monitor"
	"github.com/lag-monitor/lag-monitor/internal/servers"
)

func TestDiagram(t *testing.T) {
	for scene, want := range map[string][]string{
		"fine": {
			`n0["head<br>http"]:::fine`, `n1[("orders-raw<br>kafka")]:::fine`, `n3[("orders-out<br>kinesis")]:::fine`, `n4["orders-search<br>webhook"]:::fine`, `n5[("orders-dlq<br>dead letters")]:::fine`,
			`(["on time 9` + "\u202f" + `359<br>1 on its way"])`, `(["dead-lettered<br>0 of the last 120"]):::fine`,
			`n0 -->|"6.0/min, took 20ms"| n1`, `n1 -->|"6.0/min, took 180ms"| n2`, `n2 -->|"6.0/min, lag 420ms"| n3`, `n2 -->|"6.0/min, lag 1.3s"| n4`, `n2 -.->|"0/min"| n5`,
		},
		"lagging": {`n1 -.->|"0/min, stuck"| n2`, `n3[("orders-out<br>kinesis")]:::trouble`, `n1[("orders-raw<br>kafka")]:::fine`},
		"dropped": {`n3[("orders-out<br>kinesis")]:::trouble`, `n4["orders-search<br>webhook"]:::fine`, `(["dead-lettered<br>20 of the last 120"]):::ticket`},
		"blind":   {`n3[("orders-out<br>kinesis, not read")]:::trouble`},
		"paused":  {`n0["head<br>http, paused"]:::paused`},
		"refused": {`n0["head<br>http, refuses"]:::ticket`},
	} {
		st, details := pipelines(now, scene)
		d := details["orders"]
		d.ProbeStatus = st.Probes[1]
		sinks := newSinkTable(st.Sinks)
		g := newDiagram(d, sinks, judge(d.ProbeStatus, sinks))
		for _, w := range want {
			if !strings.Contains(g.Mermaid, w) {
				t.Errorf("%s: %s is not in\n%s", scene, w, g.Mermaid)
			}
		}
		seen := make(map[[2]int]bool)
		for _, n := range g.Nodes {
			if n.X < 0 || n.Y < 0 || n.X+n.W > g.W || n.Y+n.H > g.H {
				t.Errorf("%s: %s is outside of the picture", scene, n.Name)
			}
			if at := [2]int{n.X, n.Y}; seen[at] {
				t.Errorf("%s: two nodes at %v", scene, at)
			} else {
				seen[at] = true
			}
		}
	}
}

// A probe without hops, and one of which the status knows more sinks than hops.
func TestDiagramWithoutHops(t *testing.T) {
	p := wellProbe()
	g := newDiagram(monitor.ProbeDetail{ProbeStatus: p}, nil, judge(p, nil))
	for _, w := range []string{`-->|"0/min, took 0s"| n1`, `n1 -->|"0/min, lag 1.0s"| n2`, `n1 -.->|"0/min"| n3`} {
		if !strings.Contains(g.Mermaid, w) {
			t.Errorf("%s is not in\n%s", w, g.Mermaid)
		}
	}
	p.Sinks = nil
	if g := newDiagram(monitor.ProbeDetail{ProbeStatus: p}, nil, judge(p, nil)); len(g.Nodes) != 1 || g.Desc == "" {
		t.Errorf("%d nodes, %q", len(g.Nodes), g.Desc)
	}
	p.Head, p.Sinks = "", []monitor.PairStatus{{Sink: "head"}}
	g = newDiagram(monitor.ProbeDetail{ProbeStatus: p, Hops: []monitor.HopStatus{{From: "head", To: "head"}}}, nil, judge(p, nil))
	if !strings.Contains(g.Mermaid, `n0["head<br>fed from elsewhere"]`) || !strings.Contains(g.Mermaid, "| n1\n") {
		t.Errorf("a sink that is called head:\n%s", g.Mermaid)
	}
}

func TestStrip(t *testing.T) {
	sink := func(outcome string, twice int) []monitor.BeatSinkStatus {
		return []monitor.BeatSinkStatus{{Sink: "hop", Outcome: "on_time"}, {Sink: "out", Outcome: outcome, Duplicates: twice}}
	}
	for _, c := range []struct {
		beat monitor.BeatStatus
		want int
	}{
		{monitor.BeatStatus{Result: "success", Sinks: sink("on_time", 0)}, fateOnTime},
		{monitor.BeatStatus{Result: "", Sinks: sink("on_time", 0)}, fateOnTime},
		{monitor.BeatStatus{Result: "success", Sinks: sink("late", 2)}, fateLate},
		{monitor.BeatStatus{Result: "success", Sinks: sink("dropped", 0)}, fateDropped},
		{monitor.BeatStatus{Result: "unknown", Sinks: sink("indeterminate", 0)}, fateIndeterminate},
		{monitor.BeatStatus{Result: "unknown"}, fateIndeterminate},
		{monitor.BeatStatus{Result: "success", Sinks: sink("in_flight", 0)}, fateInFlight},
		{monitor.BeatStatus{Result: "pending"}, fateInFlight},
		{monitor.BeatStatus{Result: "success", Sinks: sink("on_time", 1)}, fateDuplicate},
		{monitor.BeatStatus{Result: "failure", Sinks: sink("in_flight", 0)}, fateRefused},
		{monitor.BeatStatus{Result: "skipped"}, fateSkipped},
		{monitor.BeatStatus{Result: "success", Sinks: append(sink("dropped", 0), sink("late", 0)...)}, fateDropped},
	} {
		if got := fateOf(c.beat); got != c.want {
			t.Errorf("%+v: %s, want %s", c.beat, fates[got].Word, fates[c.want].Word)
		}
	}
	letters, classes := make(map[string]bool), make(map[string]bool)
	for _, f := range fates {
		letters[f.Letter], classes[f.Class] = true, true
	}
	if len(letters) != len(fates) || len(classes) != len(fates) {
		t.Error("two fates look alike")
	}
	css, err := assets.ReadFile("assets/style.css")
	if err != nil {
		t.Fatal(err)
	}
	for class := range classes {
		if !strings.Contains(string(css), "\n."+class+" {") {
			t.Errorf("style.css has no shape for %s", class)
		}
	}
	var lines []string
	for _, l := range newBeat(monitor.BeatStatus{
		Lane: 3, Seq: 7, Sent: now, Due: now.Add(5 * time.Second), Result: "unknown", Error: "deadline",
		Sinks: []monitor.BeatSinkStatus{{Sink: "out", Outcome: "on_time", Arrived: now.Add(6 * time.Second), Latency: 1, Duplicates: 1, Retries: 2}, {Sink: "next", Outcome: "dropped", Reason: "dead_lettered"}, {Sink: "last"}},
	}, true).Lines {
		lines = append(lines, l[0]+": "+l[1])
	}
	want := "times: sent 10:00:00.000, due 10:00:05.000 UTC\nhead: no answer from the head: nobody knows whether it was taken\nerror: deadline\n" +
		"out: on time, arrived 10:00:06.000, latency 1.0s, 1 time more, tried 2 times before\nnext: dropped, dead lettered\nlast: not seen"
	if got := strings.Join(lines, "\n"); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestChart(t *testing.T) {
	h := history(now, "lagging", "out", "search")
	c := newChart(h, "orders", 300)
	if len(c.Lines) != 8 {
		t.Errorf("%d lines, want 8: two sinks, lag and latency, a gap in each", len(c.Lines))
	}
	if len(c.Rows) != 6 || len(c.Hours) != 6 || c.LimitText != "pages above 5m" || !strings.Contains(c.Desc, "the largest lag at out was 19m 00s") {
		t.Errorf("%d rows, %d hours, %q, %q", len(c.Rows), len(c.Hours), c.LimitText, c.Desc)
	}
	var x, y, before int
	for _, p := range strings.Fields(c.Lines[len(c.Lines)-1].Points) {
		if _, err := fmt.Sscanf(p, "%d,%d", &x, &y); err != nil || x < before || x > c.W || y < 0 || y > c.Bottom {
			t.Fatalf("%s after x=%d, %v", p, before, err)
		}
		before = x
	}
	if y >= c.LimitY {
		t.Errorf("the lag of 19 minutes at y=%d is not above the limit of 5 minutes at y=%d", y, c.LimitY)
	}
	young := history(now, "fine", "out")
	for i := range 350 {
		young.Sinks[0].Lag[i], young.Sinks[0].Latency[i] = nil, nil
	}
	c = newChart(young, "orders", 0)
	if _, err := fmt.Sscanf(c.Lines[0].Points, "%d,", &x); err != nil || x < c.W/2 || x > c.W*3/4 || len(c.Rows) != 1 {
		t.Errorf("ten minutes of the last thirty begin at x=%d of %d, in %d rows", x, c.W, len(c.Rows))
	}
	inf, nan, zero := math.Inf(1), math.NaN(), 0.0
	for _, odd := range []monitor.HistoryStatus{
		{}, {Step: 60}, {Step: -1, Sinks: h.Sinks}, {Step: nan, Sinks: h.Sinks}, {Step: 1e300, Sinks: h.Sinks},
		{Step: 60, Sinks: []monitor.SinkHistory{{Lag: []*float64{&inf, &nan, &zero, nil}}}}, {Step: 60, Sinks: []monitor.SinkHistory{{Lag: []*float64{nil}}}},
	} {
		newChart(odd, "p", 0) // does not panic
	}
	if c := newChart(monitor.HistoryStatus{}, "p", 300); c.Desc != "Nothing is known yet." || len(c.Lines) > 0 {
		t.Errorf("%+v", c)
	}
}

func TestWords(t *testing.T) {
	for got, want := range map[string]string{
		limit(300): "5m", limit(5400): "1h30m", limit(7200): "2h", limit(0.25): "250ms", limit(90): "1m30s", limit(86400): "24h",
		percent(0.01): "1%", percent(0.0005): "0.05%", percent(1): "100%",
		span(30 * time.Second): "less than a minute", span(61 * time.Second): "1 minute", span(59 * time.Minute): "59 minutes", span(3*time.Hour + 5*time.Minute): "3 h 05 min", span(75 * time.Hour): "3 days 3 h",
		clock(now.Add(-time.Hour), now): "09:00:00 UTC", clock(now.Add(-20*time.Hour), now): "2026-11-19 14:00 UTC",
		rate(0): "0/min", rate(0.1): "6.0/min", rate(2.25): "2.2/s", rate(1.0 / 600): "0.1/min",
		clean("plain, zwölf"): "plain, zwölf", clean("a\x1b[1m\nb"): "a␛[1m␊b", clean("\u202ex"): "\ufffdx", clean("\xff"): "\ufffd",
		cleanLines("a\n\tb\r"): "a\n\tb␍", errorCounts(map[string]uint64{"auth": 3, "network": 0}): "3 (3 auth)", errorCounts(nil): "0",
		capital("ärger"): "Ärger", capital(""): "", several(1, "probe", "probes"): "1 probe", several(1200, "probe", "probes"): "1\u202f200 probes",
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if got := clean(strings.Repeat("x", 2*maxText)); len(got) != maxText+len("…") {
		t.Errorf("%d bytes", len(got))
	}
	if seconds(math.NaN()) != 0 || seconds(math.Inf(1)) <= 0 || seconds(math.Inf(-1)) >= 0 {
		t.Error("seconds does not saturate")
	}
}

// uPlotVersion is what assets/ holds of the npm package uplot. To change it: take dist/uPlot.iife.min.js,
// dist/uPlot.min.css and LICENSE of another version, and put the hashes that this test tells here.
const uPlotVersion = "1.6.32"

// TestUPlotIsWhatItSays: the files are those of the package, byte by byte.
func TestUPlotIsWhatItSays(t *testing.T) {
	files := map[string]string{
		"uPlot.iife.min.js": "Gx3t0zdBAuQOuvvmaLZj7HKEiSgWTAs+VdtNY7wt19QDPTDQjFIwAuXDj0zeN00c",
		"uPlot.min.css":     "IfV0B7MIOYuO95kO9G5ySKPz/85zqFNOAs8iy4tkK5zd9izhJAB8b7lHrwYqqmYE",
		"uPlot.LICENSE":     "LBMwZlHtMnim4BBA9gOI4OOPUI5cNjaxzIZCJRYYEyIykienqB4X7/vxq0t1Ihgd",
	}
	for name, want := range files {
		b, err := assets.ReadFile("assets/" + name)
		if err != nil {
			t.Fatal(err)
		}
		if sum := sha512.Sum384(b); base64.StdEncoding.EncodeToString(sum[:]) != want {
			t.Errorf("%s has the SHA-384 %s, want %s", name, base64.StdEncoding.EncodeToString(sum[:]), want)
		}
	}
}

// TestUPlotIsOfNPM compares with the package that the browser tests have installed from the registry, by the hash
// of the lock file.
func TestUPlotIsOfNPM(t *testing.T) {
	servers.Need(t)
	dir := filepath.Join(os.Getenv("LAG_MONITOR_TEST_SERVERS"), "browser", "node_modules", "uplot")
	var p struct{ Version, License string }
	b, err := os.ReadFile(filepath.Join(dir, "package.json"))
	if err == nil {
		err = json.Unmarshal(b, &p)
	}
	if err != nil {
		t.Fatal(err)
	}
	if p.Version != uPlotVersion || p.License != "MIT" {
		t.Errorf("version %s, licence %s", p.Version, p.License)
	}
	for ours, theirs := range map[string]string{"uPlot.iife.min.js": "dist/uPlot.iife.min.js", "uPlot.min.css": "dist/uPlot.min.css", "uPlot.LICENSE": "LICENSE"} {
		want, err := os.ReadFile(filepath.Join(dir, theirs))
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := assets.ReadFile("assets/" + ours); string(got) != string(want) {
			t.Errorf("%s is not %s of uplot %s", ours, theirs, p.Version)
		}
	}
}
