package config

import (
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"

	"github.com/lag-monitor/lag-monitor/internal/conn"
	"github.com/lag-monitor/lag-monitor/internal/tracing"
)

const example = "../../config.example.yaml"

// TestExample: the example is a good configuration, without as much as a warning.
func TestExample(t *testing.T) {
	// What it includes does not exist here.
	text := readExample(t)
	text = strings.Replace(text, "include: [conf.d/*.yaml]\n", "include: []\n", 1)
	dir := t.TempDir()
	write(t, dir, "main.yaml", text)
	cfg, err := Load(dir + "/main.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range cfg.Warnings {
		t.Error(w)
	}
	// Every key in it is one that the program has read: nothing went by unseen.
	if len(cfg.Probes) == 0 || len(cfg.Sinks) == 0 {
		t.Errorf("%d probes, %d sinks", len(cfg.Probes), len(cfg.Sinks))
	}
}

func readExample(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(example)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestExampleIsComplete: every option that the program knows is in the example, either set or, where
// it excludes another one, in a comment that could be uncommented; and every line has a comment or
// stands below one.
func TestExampleIsComplete(t *testing.T) {
	text := readExample(t)
	lines := strings.Split(text, "\n")
	d := newDecoder(example, "/", registered())
	root := d.parse([]byte(text))
	if root == nil {
		t.Fatal(d.problems)
	}
	d.top(root, &file{sinks: map[string]*Sink{}, probes: map[string]*Probe{}}, true)
	if len(d.problems) > 0 {
		t.Fatal(d.problems)
	}

	shown := map[string]bool{} // "global.interval", "probes.*.page.lag", "sinks.kafka.topic", "inject.http.url", …
	blocks := map[string][]string{}
	for path, key := range d.keys {
		parts := strings.Split(path, ".")
		switch {
		case parts[0] == "probes" && len(parts) > 3 && parts[2] == "inject":
			shown[strings.Join(parts[2:], ".")] = true
			if len(parts) == 4 {
				k := strings.Join(parts[2:], ".")
				blocks[k] = append(blocks[k], block(lines, key.Line)...)
			}
		case parts[0] == "probes" && len(parts) > 2:
			shown["probes.*."+strings.Join(parts[2:], ".")] = true
		case parts[0] == "sinks" && len(parts) > 2 && slices.Contains(names(fieldsOf(reflect.TypeFor[rawAnySink]())), parts[2]):
			shown["sinks.*."+strings.Join(parts[2:], ".")] = true
		case parts[0] == "sinks" && len(parts) > 2:
			shown["sinks."+strings.Join(parts[2:], ".")] = true
			if len(parts) == 3 {
				k := "sinks." + parts[2]
				blocks[k] = append(blocks[k], block(lines, key.Line)...)
			}
		default:
			shown[path] = true
			if len(parts) == 1 {
				blocks[path] = append(blocks[path], block(lines, key.Line)...)
			}
		}
	}
	// Anchors at the top are part of the blocks that use them; their commented lines count for all.
	var anchors []string
	for i, l := range lines {
		if strings.HasPrefix(l, "x-") {
			anchors = append(anchors, block(lines, i+1)...)
		}
	}
	commented := func(kind, key string) bool {
		re := regexp.MustCompile(`^\s*#\s*` + regexp.QuoteMeta(key) + `: |[{,]\s*` + regexp.QuoteMeta(key) + `: `)
		return slices.ContainsFunc(append(blocks[kind], anchors...), func(l string) bool {
			before, _, _ := strings.Cut(l, "#")
			return strings.TrimSpace(before) == "" && re.MatchString(l)
		})
	}

	var need func(typ reflect.Type, path, kind string)
	need = func(typ reflect.Type, path, kind string) {
		for typ.Kind() == reflect.Pointer {
			typ = typ.Elem()
		}
		if typ.Kind() != reflect.Struct || typ == reflect.TypeFor[inject]() {
			return
		}
		for _, f := range fieldsOf(typ) {
			at := path + "." + f.name
			if !shown[at] {
				if kind == "" || !commented(kind, f.name) {
					t.Errorf("%s is not in the example", at)
				}
				continue
			}
			// A secret is one of two; a template and a duration have no keys.
			if f.typ.Name() != "Secret" {
				need(f.typ, at, kind)
			}
		}
	}
	need(reflect.TypeFor[rawGlobal](), "global", "global")
	need(reflect.TypeFor[rawProbe](), "probes.*", "")
	need(reflect.TypeFor[rawAnySink](), "sinks.*", "")
	if !shown["include"] {
		t.Error("include is not in the example")
	}
	for kind, c := range allKinds() {
		if !shown[kind] {
			t.Errorf("kind %s is not in the example", kind)
			continue
		}
		need(reflect.TypeOf(c), kind, kind)
	}

	// A comment that begins with "default" stands beside the default.
	l := make(layouts)
	global := defaultGlobal()
	global.Tracing = &rawTracing{SampleRatio: 1, OTLP: &otlp{*tracing.NewOTLP()}}
	defaults := map[string]*yaml.Node{"global": l.encode(reflect.ValueOf(global), reflect.Value{})}
	for kind, c := range allKinds() {
		defaults[kind] = l.encode(reflect.ValueOf(c), reflect.Value{})
	}
	checked := 0
	for path, key := range d.keys {
		if !strings.Contains(lines[key.Line-1], "# default") || d.pos[path].Kind != yaml.ScalarNode {
			continue
		}
		parts := strings.Split(path, ".")
		top, below := parts[0], parts[1:]
		switch {
		case top == "sinks" && len(parts) > 3:
			top, below = "sinks."+parts[2], parts[3:]
		case top == "probes" && len(parts) > 4:
			top, below = "inject."+parts[3], parts[4:]
		case top != "global":
			continue
		}
		n := defaults[top]
		for _, k := range below {
			n = child(n, k)
		}
		want := ""
		if n != nil {
			want = n.Value
		}
		got := d.pos[path].Value
		a, errA := conn.ParseDuration(got)
		b, errB := conn.ParseDuration(want)
		if got != want && (errA != nil || errB != nil || a != b) && (want != "" || got != "false" && got != "0" && got != "0s") {
			t.Errorf("line %d: the default of %s is %q, not %q", key.Line, path, want, got)
		}
		checked++
	}
	if checked < 10 {
		t.Errorf("only %d defaults were compared", checked)
	}

	explained := false // a comment stands on the lines just above
	key := regexp.MustCompile(`^\s+[a-z][a-z_0-9]*: \S`)
	for i, l := range lines {
		switch trimmed := strings.TrimSpace(l); {
		case strings.HasPrefix(trimmed, "#"):
			explained = true
		case key.MatchString(l) && !strings.Contains(l, " # ") && !explained:
			t.Errorf("line %d has no comment: %s", i+1, trimmed)
		default:
			explained = false
		}
	}
}

// child returns the value of a key of a mapping, or nil.
func child(n *yaml.Node, key string) *yaml.Node {
	for i := 0; n != nil && i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return nil
}

// block returns the lines that belong to the key on line n, counted from 1.
func block(lines []string, n int) []string {
	indent := func(s string) int { return len(s) - len(strings.TrimLeft(s, " ")) }
	from := n - 1
	to := from + 1
	for to < len(lines) && (strings.TrimSpace(lines[to]) == "" || indent(lines[to]) > indent(lines[from])) {
		to++
	}
	return lines[from:to]
}
