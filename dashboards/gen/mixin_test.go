package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-jsonnet"
	"go.yaml.in/yaml/v3"
)

// The mixin hands on the dashboards and the rules as they are in their files: each once.
func TestMixin(t *testing.T) {
	vm := jsonnet.MakeVM()
	out, err := vm.EvaluateAnonymousSnippet("mixin_test.jsonnet", `
		local mixin = import '../mixin/mixin.libsonnet';
		{dashboards: mixin.grafanaDashboards, alerts: mixin.prometheusAlerts.groups, rules: mixin.prometheusRules.groups}
	`)
	if err != nil {
		t.Fatal(err)
	}
	var mixin struct {
		Dashboards    map[string]any
		Alerts, Rules []map[string]any
	}
	if err := json.Unmarshal([]byte(out), &mixin); err != nil {
		t.Fatal(err)
	}

	if len(mixin.Dashboards) != len(files()) {
		t.Errorf("%d dashboards; there are %d", len(mixin.Dashboards), len(files()))
	}
	for name := range files() {
		b, err := os.ReadFile(filepath.Join("..", name))
		if err != nil {
			t.Fatal(err)
		}
		var want any
		if err := json.Unmarshal(b, &want); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(mixin.Dashboards["lag-monitor-"+name], want) {
			t.Errorf("lag-monitor-%s is not what is in %s", name, name)
		}
	}

	var want []map[string]any
	for _, file := range []string{mainRules, ownRules} {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var groups struct{ Groups []map[string]any }
		if err := yaml.Unmarshal(b, &groups); err != nil {
			t.Fatal(err)
		}
		want = append(want, groups.Groups...)
	}
	byName := func(a, b map[string]any) int { return strings.Compare(a["name"].(string), b["name"].(string)) }
	slices.SortFunc(want, byName)
	got := slices.SortedFunc(slices.Values(slices.Concat(mixin.Alerts, mixin.Rules)), byName)
	// Through JSON both have the same kinds of numbers.
	if asJSON(t, got) != asJSON(t, want) {
		t.Errorf("the mixin has other groups than the rule files:\n%s\nwant\n%s", asJSON(t, got), asJSON(t, want))
	}
	hasAlert := func(g map[string]any) bool {
		return slices.ContainsFunc(g["rules"].([]any), func(r any) bool { return r.(map[string]any)["alert"] != nil })
	}
	for _, g := range mixin.Alerts {
		if !hasAlert(g) {
			t.Errorf("%v has no alert, and is among those that have", g["name"])
		}
	}
	for _, g := range mixin.Rules {
		if hasAlert(g) {
			t.Errorf("%v has alerts, and is among the recording rules", g["name"])
		}
	}
}

func asJSON(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
