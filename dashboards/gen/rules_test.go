package main

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
	"go.yaml.in/yaml/v3"
)

// The rules that the dashboards are built on, and those that are theirs.
const (
	mainRules = "../../rules/lag-monitor.rules.yaml"
	ownRules  = "../../rules/lag-monitor-dashboards.rules.yaml"
)

// rateInterval is the only one that rates have.
const rateInterval = 5 * time.Minute

func promQL() parser.Parser { return parser.NewParser(parser.Options{}) }

// rule is the part of a rule in a rule file that the tests look at.
type rule struct {
	Record string
	Alert  string
	Expr   string
	Labels map[string]string
}

func readRules(t *testing.T, file string) []rule {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var groups struct{ Groups []struct{ Rules []rule } }
	if err := yaml.Unmarshal(b, &groups); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	var rules []rule
	for _, g := range groups.Groups {
		rules = append(rules, g.Rules...)
	}
	for _, r := range rules {
		if _, err := promQL().ParseExpr(r.Expr); err != nil {
			t.Errorf("%s: %s%s: %v", file, r.Record, r.Alert, err)
		}
	}
	return rules
}

// recorded returns the labels of each recorded series: those in front of its name, and those that the rule adds.
func recorded(t *testing.T) map[string][]string {
	t.Helper()
	series := map[string][]string{}
	for _, file := range []string{mainRules, ownRules} {
		for _, r := range readRules(t, file) {
			if r.Record == "" {
				continue
			}
			names, _, _ := strings.Cut(r.Record, ":")
			series[r.Record] = append(series[r.Record], strings.Split(names, "_")...)
			for l := range r.Labels {
				series[r.Record] = append(series[r.Record], l)
			}
		}
	}
	return series
}

// filled puts values in the place of Grafana's variables.
var filled = strings.NewReplacer("$job", "lm", "$probe", "stash", "$label", "team", "$value", "data")

// selectors calls f for each metric that an expression selects.
func selectors(t *testing.T, expr string, f func(name string, matchers []*labels.Matcher)) {
	t.Helper()
	tree, err := promQL().ParseExpr(filled.Replace(expr))
	if err != nil {
		t.Errorf("%s\n%v", expr, err)
		return
	}
	parser.Inspect(tree, func(n parser.Node, _ []parser.Node) error {
		if v, ok := n.(*parser.VectorSelector); ok {
			f(v.Name, v.LabelMatchers)
		}
		return nil
	})
}

var variableQuery = regexp.MustCompile(`^(?:label_values\((.*), *([$\w]+)|label_names\((.*)|query_result\((.*))\)$`)

// expressions calls f for each expression of a dashboard: queries of panels, annotations, variables.
func expressions(t *testing.T, d dashboard, f func(where, expr string)) {
	t.Helper()
	every(d, func(p panel) {
		for _, q := range p.Targets {
			f(p.Title+" "+q.RefID, q.Expr)
		}
	})
	for _, a := range d.Annotations.List {
		f("annotation "+a.Name, a.Expr)
	}
	for _, v := range d.Templating.List {
		if v.Type != "query" {
			continue
		}
		m := variableQuery.FindStringSubmatch(v.Query)
		if m == nil {
			t.Errorf("variable %s: Grafana does not understand %s", v.Name, v.Query)
			continue
		}
		f("variable "+v.Name, m[1]+m[3]+m[4])
	}
}

// Each expression is PromQL, and reads what a rule records (or ALERTS, which Prometheus records by itself), by labels
// that it has.
func TestPanelsReadRecordingRules(t *testing.T) {
	series := recorded(t)
	series["ALERTS"] = []string{"alertname", "alertstate", "severity", "job", "probe"}
	each(t, func(t *testing.T, d dashboard) {
		expressions(t, d, func(where, expr string) {
			n := 0
			selectors(t, expr, func(name string, matchers []*labels.Matcher) {
				n++
				has, ok := series[name]
				if !ok {
					t.Errorf("%s reads %s, which no rule records", where, name)
				}
				for _, m := range matchers {
					if m.Name != "__name__" && name != infoRule && !slices.Contains(has, m.Name) {
						t.Errorf("%s: %s has no label %s", where, name, m.Name)
					}
				}
			})
			if n == 0 {
				t.Errorf("%s reads nothing: %s", where, expr)
			}
		})
	})
}

// A rule is read by a panel, or by another rule.
func TestEachRuleIsRead(t *testing.T) {
	read := map[string]bool{}
	add := func(name string, _ []*labels.Matcher) { read[name] = true }
	for _, d := range files() {
		expressions(t, d, func(_, expr string) { selectors(t, expr, add) })
	}
	for _, r := range readRules(t, ownRules) {
		selectors(t, r.Expr, add)
	}
	for _, r := range readRules(t, ownRules) {
		if !read[r.Record] {
			t.Errorf("nothing reads %s", r.Record)
		}
	}
}

// Rates are of counters as they are scraped, over one interval everywhere; nothing rates a sum.
func TestSumsOfRates(t *testing.T) {
	rates := 0
	for _, r := range readRules(t, ownRules) {
		tree, err := promQL().ParseExpr(r.Expr)
		if err != nil {
			t.Fatal(err)
		}
		parser.Inspect(tree, func(n parser.Node, _ []parser.Node) error {
			switch n := n.(type) {
			case *parser.SubqueryExpr:
				t.Errorf("%s has a subquery", r.Record)
			case *parser.MatrixSelector:
				rates++
				if n.Range != rateInterval {
					t.Errorf("%s: a range of %v; all others have %v", r.Record, n.Range, rateInterval)
				}
				if name := n.VectorSelector.(*parser.VectorSelector).Name; strings.Contains(name, ":") {
					t.Errorf("%s takes a range of %s, which a rule records", r.Record, name)
				}
			case *parser.Call:
				if slices.Contains([]string{"increase", "irate", "delta", "deriv"}, n.Func.Name) {
					t.Errorf("%s uses %s", r.Record, n.Func.Name)
				}
			}
			return nil
		})
	}
	if rates == 0 {
		t.Error("no rule has a rate")
	}
	for name, d := range files() {
		expressions(t, d, func(where, expr string) {
			tree, err := promQL().ParseExpr(filled.Replace(expr))
			if err != nil {
				t.Fatal(err)
			}
			if tree.Type() == parser.ValueTypeMatrix {
				t.Errorf("%s: %s is a range", name, where)
			}
			parser.Inspect(tree, func(n parser.Node, _ []parser.Node) error {
				switch n.(type) {
				case *parser.MatrixSelector, *parser.SubqueryExpr:
					t.Errorf("%s: %s takes a range: that belongs into a rule", name, where)
				}
				return nil
			})
		})
	}
}
