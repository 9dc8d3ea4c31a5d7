package dashboard_test

import (
	"encoding/json"
	"flag"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/prometheus/prometheus/promql/parser"
	"gopkg.in/yaml.v3"

	"github.com/lag-monitor/lag-monitor/examples/stash-deferred/dashboard"
)

var write = flag.Bool("write", false, "write the dashboards")

func TestFiles(t *testing.T) {
	for name, mermaid := range dashboard.Files {
		want, err := dashboard.JSON(mermaid)
		if err != nil {
			t.Fatal(err)
		}
		if *write {
			if err := os.WriteFile(name, want, 0o644); err != nil { //nolint:gosec // a public file
				t.Fatal(err)
			}
		}
		got, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != string(want) {
			t.Errorf("%s is not what the code makes: go test ./dashboard -write", name)
		}
	}
}

type panel struct {
	ID          int
	Type, Title string
	Description string
	GridPos     struct{ X, Y, W, H int }
	Targets     []struct{ Expr string }
	FieldConfig struct{ Defaults struct{ Unit string } }
	Panels      []panel
}

// Panels say what they show, and do not lie on each other.
func TestPanels(t *testing.T) {
	for name := range dashboard.Files {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		var d struct{ Panels []panel }
		if err := json.Unmarshal(b, &d); err != nil {
			t.Fatal(err)
		}
		ids := map[int]bool{}
		var check func(panels []panel)
		check = func(panels []panel) {
			for i, p := range panels {
				if ids[p.ID] {
					t.Errorf("%s: two panels have the id %d", name, p.ID)
				}
				ids[p.ID] = true
				g := p.GridPos
				if g.W < 1 || g.H < 1 || g.X < 0 || g.X+g.W > 24 {
					t.Errorf("%s: %q is not on the grid: %+v", name, p.Title, g)
				}
				for _, q := range panels[:i] {
					o := q.GridPos
					if g.X < o.X+o.W && o.X < g.X+g.W && g.Y < o.Y+o.H && o.Y < g.Y+g.H {
						t.Errorf("%s: %q lies on %q", name, p.Title, q.Title)
					}
				}
				if len(p.Targets) > 0 && (p.Title == "" || p.Description == "") {
					t.Errorf("%s: panel %d has the title %q and the description %q", name, p.ID, p.Title, p.Description)
				}
				if p.Type == "timeseries" && p.FieldConfig.Defaults.Unit == "" {
					t.Errorf("%s: %q has no unit", name, p.Title)
				}
				check(p.Panels)
			}
		}
		check(d.Panels)
	}
}

type ruleFile struct {
	Groups []struct {
		Rules []struct{ Record, Alert, Expr string }
	}
}

func rules(t *testing.T, file string) ruleFile {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var f ruleFile
	if err := yaml.Unmarshal(b, &f); err != nil {
		t.Fatal(err)
	}
	return f
}

// names returns the metrics that an expression reads.
func names(t *testing.T, expr string) (names []string) {
	t.Helper()
	parsed, err := parser.NewParser(parser.Options{}).ParseExpr(expr)
	if err != nil {
		t.Errorf("%s: %v", expr, err)
		return nil
	}
	parser.Inspect(parsed, func(n parser.Node, _ []parser.Node) error {
		if v, ok := n.(*parser.VectorSelector); ok {
			names = append(names, v.Name)
		}
		return nil
	})
	return names
}

// What a panel shows of the service is recorded, so that the dashboard is fast and says the same as an alert would.
func TestQueriesReadRules(t *testing.T) {
	recorded := map[string]bool{"ALERTS": true}
	for _, file := range []string{"../rules/stash-deferred.rules.yaml", "../../../rules/lag-monitor.rules.yaml"} {
		for _, g := range rules(t, file).Groups {
			for _, r := range g.Rules {
				recorded[r.Record] = true
				names(t, r.Expr)
			}
		}
	}
	for _, expr := range append(dashboard.Queries(), dashboard.Annotation) {
		for _, name := range names(t, expr) {
			// No rule has the duplicates of half an hour; they are few, and one probe's.
			if !recorded[name] && name != "lag_monitor_heartbeats_duplicated_total" {
				t.Errorf("%s reads %s, which no rule records", expr, name)
			}
		}
	}
}

// The habits of the write-up: one rate interval everywhere, and sums of rates, never rates of sums.
func TestRates(t *testing.T) {
	ranges := regexp.MustCompile(`\[([^\]]*)\]`)
	rated := 0
	for _, g := range rules(t, "../rules/stash-deferred.rules.yaml").Groups {
		for _, r := range g.Rules {
			for _, m := range ranges.FindAllStringSubmatch(r.Expr, -1) {
				rated++
				if m[1] != "1m" {
					t.Errorf("%s%s: a rate over %s; want 1m", r.Record, r.Alert, m[1])
				}
			}
			parsed, err := parser.NewParser(parser.Options{}).ParseExpr(r.Expr)
			if err != nil {
				t.Fatal(err)
			}
			parser.Inspect(parsed, func(n parser.Node, _ []parser.Node) error {
				if c, ok := n.(*parser.Call); ok && c.Func.Name == "rate" {
					m, ok := c.Args[0].(*parser.MatrixSelector)
					if !ok || strings.Contains(m.VectorSelector.(*parser.VectorSelector).Name, ":") {
						t.Errorf("%s: the rate of something that is no counter: %s", r.Record, c)
					}
				}
				return nil
			})
		}
	}
	if rated < 20 {
		t.Errorf("%d rates were looked at", rated)
	}
}

// Each node of the Mermaid picture is named as its series is.
func TestMermaidNodesHaveSeries(t *testing.T) {
	titles := map[string]bool{}
	title := regexp.MustCompile(`"title", "([^"]+)"`)
	for _, g := range rules(t, "../rules/stash-deferred.rules.yaml").Groups {
		for _, r := range g.Rules {
			if r.Record == "node:stashdef_messages:rate1m" {
				for _, m := range title.FindAllStringSubmatch(r.Expr, -1) {
					titles[m[1]] = true
				}
			}
		}
	}
	seen := map[string]bool{}
	for _, m := range regexp.MustCompile(`\w+(?:\(\[|\(|\[|>)([A-Z][a-z ]+)(?:\]\)|\)|\])`).FindAllStringSubmatch(dashboard.Mermaid, -1) {
		seen[m[1]] = true
		if !titles[m[1]] {
			t.Errorf("node %q of the picture has no series", m[1])
		}
	}
	for name := range titles {
		if !seen[name] {
			t.Errorf("series %q has no node in the picture", name)
		}
	}
}
