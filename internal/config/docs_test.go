package config

import (
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// TestExamplesOfDocs: what these pages show is a good configuration, without a warning.
func TestExamplesOfDocs(t *testing.T) {
	for _, page := range []string{"hops", "pause"} {
		b, err := os.ReadFile("../../docs/" + page + ".md")
		if err != nil {
			t.Fatal(err)
		}
		_, text, ok := strings.Cut(string(b), "```yaml\n")
		text, _, end := strings.Cut(text, "```\n")
		if !ok || !end {
			t.Fatalf("docs/%s.md has no example", page)
		}
		dir := t.TempDir()
		write(t, dir, "main.yaml", text)
		cfg, err := Load(dir + "/main.yaml")
		if err != nil {
			t.Fatalf("docs/%s.md: %v", page, err)
		}
		for _, w := range cfg.Warnings {
			t.Errorf("docs/%s.md: %v", page, w)
		}
	}
}

// TestDocs: the page on the configuration names every key and default of its own, and its example is a
// good configuration.
func TestDocs(t *testing.T) {
	b, err := os.ReadFile("../../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	section := func(name string) string {
		_, s, ok := strings.Cut(text, "\n## `"+name+"`\n")
		if !ok {
			t.Fatalf("no section %s", name)
		}
		s, _, _ = strings.Cut(s, "\n## ")
		return s
	}
	for _, row := range []struct {
		section string
		typ     reflect.Type
	}{{"global", reflect.TypeFor[rawGlobal]()}, {"sinks", reflect.TypeFor[rawAnySink]()}, {"probes", reflect.TypeFor[rawProbe]()}} {
		s := section(row.section)
		for _, f := range fieldsOf(row.typ) {
			if !strings.Contains(s, "`"+f.name+"`") {
				t.Errorf("%s has no key %s", row.section, f.name)
			}
		}
	}
	for _, f := range fieldsOf(reflect.TypeFor[rawThresholds]()) {
		if !strings.Contains(section("probes"), "`page."+f.name+"`") {
			t.Errorf("probes has no key page.%s", f.name)
		}
	}
	for _, row := range []struct {
		section, key string
		typ          reflect.Type
	}{{"probes", "ticket", reflect.TypeFor[rawTicket]()}, {"probes", "slo", reflect.TypeFor[rawSLO]()}, {"sinks", "backlog", reflect.TypeFor[rawBacklog]()}} {
		page := names(fieldsOf(reflect.TypeFor[rawThresholds]()))
		for _, f := range fieldsOf(row.typ) {
			if key := row.key + "." + f.name; !strings.Contains(section(row.section), "`"+key+"`") && !(row.key == "ticket" && slices.Contains(page, f.name)) {
				t.Errorf("%s has no key %s", row.section, key)
			}
		}
	}
	g := defaultGlobal()
	for key, d := range map[string]string{"interval": short(g.global().Interval), "timeout": short(g.global().Timeout), "send_timeout": short(g.global().SendTimeout), "max_skew": short(g.global().MaxSkew)} {
		if row := "| `" + key + "` | `" + d + "` |"; !strings.Contains(section("global"), row) {
			t.Errorf("global has no row %s", row)
		}
	}
	for _, l := range reservedLabels {
		if !strings.Contains(section("probes"), "`"+l+"`") {
			t.Errorf("the reserved label %s is not named", l)
		}
	}

	_, yaml, _ := strings.Cut(text, "```yaml\n")
	yaml, _, _ = strings.Cut(yaml, "```")
	dir := t.TempDir()
	write(t, dir, "main.yaml", yaml, "conf.d/README", "")
	cfg, err := Load(dir + "/main.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range cfg.Warnings {
		t.Error(w)
	}
}
