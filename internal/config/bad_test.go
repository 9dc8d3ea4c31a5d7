package config

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
	"gopkg.in/yaml.v3"

	"github.com/lag-monitor/lag-monitor/internal/conn"
	"github.com/lag-monitor/lag-monitor/probe"
	"github.com/lag-monitor/lag-monitor/sinks"
)

var update = flag.Bool("update", false, "write what the loader says into testdata/bad")

// loadBad returns everything that is wrong with the files, one line each, with dir cut away.
func loadBad(l *Loader, dir string) string {
	cfg, problems, err := l.Load()
	var b strings.Builder
	if err != nil {
		fmt.Fprintln(&b, err)
	}
	for _, p := range problems {
		fmt.Fprintln(&b, p)
	}
	if (cfg == nil) != (err != nil) {
		fmt.Fprintf(&b, "cfg = %v with err = %v\n", cfg, err)
	}
	return strings.ReplaceAll(b.String(), dir+string(filepath.Separator), "")
}

// TestBad is the table of what people get wrong, one archive per row: the files, and word for word
// what they are told.
func TestBad(t *testing.T) {
	rows, err := filepath.Glob("testdata/bad/*.txtar")
	if err != nil || len(rows) < 40 {
		t.Fatalf("%d rows, want at least 40; %v", len(rows), err)
	}
	for _, row := range rows {
		t.Run(strings.TrimSuffix(filepath.Base(row), ".txtar"), func(t *testing.T) {
			ar, err := txtar.ParseFile(row)
			if err != nil {
				t.Fatal(err)
			}
			dir, want := t.TempDir(), ""
			for _, f := range ar.Files {
				if f.Name == "want" {
					want = string(f.Data)
					continue
				}
				write(t, dir, f.Name, string(f.Data))
			}
			got := loadBad(testLoader(filepath.Join(dir, "main.yaml")), dir)
			if *update {
				var out txtar.Archive
				for _, f := range ar.Files {
					if f.Name != "want" {
						out.Files = append(out.Files, f)
					}
				}
				out.Files = append(out.Files, txtar.File{Name: "want", Data: []byte(got)})
				if err := os.WriteFile(row, txtar.Format(&out), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if want == "" {
				t.Fatal("the row has no text that is wanted")
			}
			if got != want {
				t.Errorf("got:\n%swant:\n%s", got, want)
			}
			if strings.Contains(got, "hunter2") {
				t.Errorf("a secret is in %s", got)
			}
		})
	}
}

// TestBadBytes is the part of the table that does not survive an editor.
func TestBadBytes(t *testing.T) {
	bomb := "x-a: &a [x, x, x, x, x, x, x, x, x]\n"
	for c := 'b'; c <= 'i'; c++ {
		bomb += fmt.Sprintf("x-%c: &%c [%s*%c]\n", c, c, strings.Repeat(fmt.Sprintf("*%c, ", c-1), 8), c-1)
	}
	wide := "x-a: &a {"
	for i := range 1000 {
		wide += fmt.Sprintf("k%d: v, ", i)
	}
	wide += "}\nprobes:\n"
	merges := wide
	for i := range 1000 {
		wide += fmt.Sprintf("  p%d: {labels: *a}\n", i)
		merges += fmt.Sprintf("  p%d: {labels: {<<: *a}}\n", i)
	}
	for _, row := range []struct{ name, text, want string }{
		{"latin-1", "probes: {}\n# caf\xe9\n", "main.yaml:2: not UTF-8 text\n"},
		{"UTF-16", "\xff\xfep\x00r\x00", "main.yaml:1: not UTF-8 text\n"},
		{"NUL", "probes: {}\n\x00\n", "main.yaml:2: control character U+0000 is not allowed\n"},
		{"too large", "# " + strings.Repeat("x", maxFile), "main.yaml: the file is larger than 8 MiB: split it with include\n"},
		{"BOM", "\ufeffprobess: {}\n", "main.yaml:1: probess: unknown key (did you mean \"probes\"?)\n"},
		{"CRLF", "global:\r\n  interval: 5s\r\nprobess: {}\r\n", "main.yaml:3: probess: unknown key (did you mean \"probes\"?)\n"},
		{"tabs between", "global:\t{interval:\t5s}\nprobess:\t{}\n", "main.yaml:2: probess: unknown key (did you mean \"probes\"?)\n"},
		{"a number that overflows", "probes:\n  p:\n    inject: {post: {retries: 99999999999999999999}}\n", "main.yaml:3: probes.p.inject.post.retries: want a whole number, not 99999999999999999999\n"},
		{"a duration that overflows", "global: {interval: 99999999999999999999h}\n", "main.yaml:1: global.interval: \"99999999999999999999h\" is not a duration: write a number and a unit, such as 500ms, 15s, 5m, 1h30m or 1d\n"},
		{"a duration that just overflows", "global: {interval: 2562048h}\n", "main.yaml:1: global.interval: \"2562048h\" is not a duration: write a number and a unit, such as 500ms, 15s, 5m, 1h30m or 1d\n"},
		{"a ratio that overflows", "global: {page: {drop_ratio: 1e999}}\n", "main.yaml:1: global.page.drop_ratio: \"1e999\" is not a ratio: write 1% or 0.01\n"},
		{"a duration of many digits", "global: {interval: " + strings.Repeat("9", 100_000) + "s}\n", "main.yaml:1: global.interval: \"" + strings.Repeat("9", 999) + "…\n"},
		{"one long name", "probes: {" + strings.Repeat("p", 1_000_000) + ": {}}\n", "main.yaml:1: not YAML: did not find expected ',' or '}'\n"},
		{"many mistakes", "probes: {" + strings.Repeat("p: {},", 100_000) + "}\n",
			strings.Repeat("main.yaml:1: probes.p: this key is here twice; first on line 1\n", maxProblems) + "main.yaml: and 980 more problems\n"},
		{"deep", "probes:\n  p:\n    labels: {a: " + strings.Repeat("[", 5000) + strings.Repeat("]", 5000) + "}\n",
			"main.yaml:3: probes.p.labels.a: want text, not a list\n"},
		{"deeper than the parser", "x-a: " + strings.Repeat("[", 20000), "main.yaml:1: not YAML: exceeded max depth of 10000\n"},
		{"bomb", bomb + "probes:\n  p:\n    inject: {post: {retries: *i}}\n", "main.yaml:9: probes.p.inject.post.retries: want a whole number, not a list\n"},
		{"wide aliases", wide, "main.yaml:1: probes.p99.labels.k900: the file's aliases (*name) expand to more than 200000 values\n"},
		{"wide merges", merges, "main.yaml:202: probes.p199.labels: the file's aliases (*name) expand to more than 200000 values\n"},
		{"alias to itself", "probes: &a\n  p: *a\n", "main.yaml:2: probes.p.p: unknown key; valid: dashboard, expiry, inject, interval, labels, page, runbook, send_timeout, sinks, slo, ticket, timeout, ttl\n"},
		{"merge with itself", "probes:\n  p: &a\n    <<: *a\n", "main.yaml:3: probes.p: merge keys (<<) are nested too deep\n"},
	} {
		t.Run(row.name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, "main.yaml", row.text)
			got := loadBad(testLoader(filepath.Join(dir, "main.yaml")), dir)
			if lines := bytes.Count([]byte(got), []byte("\n")); lines > maxProblems+1 {
				t.Errorf("%d lines", lines)
			}
			if got != row.want {
				t.Errorf("got:\n%s\nwant:\n%s", got, row.want)
			}
		})
	}
}

// TestStrictBelowUnmarshalers: yaml.v3's strict decoding ends at a custom UnmarshalYAML that calls
// node.Decode; ours goes on below every value, and below both forms that a type may have.
func TestStrictBelowUnmarshalers(t *testing.T) {
	var lax struct {
		Post trap `yaml:"post"`
	}
	const text = "post: {url: x, urll: y}\n"
	dec := yaml.NewDecoder(strings.NewReader(text))
	dec.KnownFields(true)
	if err := dec.Decode(&lax); err != nil {
		t.Errorf("yaml.v3 has become strict (%v): the walk of our own may not be needed any more", err)
	}
	d := newDecoder("f", "/", testKinds())
	var strict struct {
		Post functional `yaml:"post"`
	}
	d.value(d.parse([]byte(text)), reflect.ValueOf(&strict).Elem(), "")
	if got := d.problems.Error(); got != `f:1: post.urll: unknown key (did you mean "url"?)` {
		t.Errorf("got %s", got)
	}
	if strict.Post.URL != "x" {
		t.Errorf("url = %q", strict.Post.URL)
	}
}

type trap struct {
	URL string `yaml:"url"`
}

func (p *trap) UnmarshalYAML(n *yaml.Node) error {
	type plain trap
	return n.Decode((*plain)(p))
}

type functional struct {
	URL string `yaml:"url"`
}

func (p *functional) UnmarshalYAML(unmarshal func(any) error) error {
	type plain functional
	return unmarshal((*plain)(p))
}

// TestKindsAreStrict walks the settings of every registered kind for what the walk cannot see through:
// a type with UnmarshalYAML(*yaml.Node), an interface, a map without text keys.
func TestKindsAreStrict(t *testing.T) {
	for name, c := range allKinds() {
		var look func(t *testing.T, typ reflect.Type, path string)
		look = func(t *testing.T, typ reflect.Type, path string) {
			if _, ok := reflect.New(typ).Interface().(funcUnmarshaler); ok {
				return
			}
			if _, ok := reflect.New(typ).Interface().(yaml.Unmarshaler); ok {
				t.Errorf("%s: %s has UnmarshalYAML(*yaml.Node): unknown keys below it would be accepted", path, typ)
			}
			switch typ.Kind() {
			case reflect.Pointer, reflect.Slice:
				look(t, typ.Elem(), path)
			case reflect.Map:
				if typ.Key().Kind() != reflect.String {
					t.Errorf("%s: %s has keys that are not text", path, typ)
				}
				look(t, typ.Elem(), path)
			case reflect.Struct:
				for _, f := range fieldsOf(typ) {
					if f.name != strings.ToLower(f.name) || strings.Contains(f.name, "-") {
						t.Errorf("%s.%s: keys are written in snake_case", path, f.name)
					}
					look(t, f.typ, path+"."+f.name)
				}
			case reflect.Interface, reflect.Func, reflect.Chan, reflect.Array:
				t.Errorf("%s: a %s cannot be decoded", path, typ)
			}
		}
		t.Run(name, func(t *testing.T) { look(t, reflect.TypeOf(c).Elem(), name) })
	}
}

// allKinds returns the defaults of every registered kind, by "inject.http", "sinks.kafka", ….
func allKinds() map[string]any {
	all := make(map[string]any)
	for _, k := range probe.Kinds() {
		all["inject."+k], _ = probe.New(k)
	}
	for _, k := range sinks.Kinds() {
		all["sinks."+k], _ = sinks.New(k)
	}
	return all
}

// TestNoSecretInErrors puts a known text into every place of every kind's settings and looks for it in
// what is reported and shown. Places that do not hold secrets may repeat a text, but a password in an
// address, a secret written out, the contents of secret files and variables must not be seen.
func TestNoSecretInErrors(t *testing.T) {
	const secret = "hunter2hunter2"
	t.Setenv("LAG_MONITOR_TEST_SECRET", secret)
	dir := t.TempDir()
	write(t, dir, "secret", secret+"\n")
	literal := []string{secret, "{value: " + secret + "}", "[" + secret + "]", "{" + secret + ": 1}"}
	for kind, c := range allKinds() {
		where, name, _ := strings.Cut(kind, ".")
		var visit func(typ reflect.Type, path []string)
		visit = func(typ reflect.Type, path []string) {
			var values []string
			switch {
			case typ == reflect.TypeFor[conn.Secret]():
				values = append([]string{"{file: " + dir + "/secret}", "{env: LAG_MONITOR_TEST_SECRET}", "{file: " + dir + "/secret, env: LAG_MONITOR_TEST_SECRET}"}, literal[:3]...)
			case typ.Kind() == reflect.Pointer || typ.Kind() == reflect.Slice:
				visit(typ.Elem(), path)
				return
			case typ.Kind() == reflect.Map:
				visit(typ.Elem(), append(slices.Clone(path), "Authorization"))
				return
			case typ.Kind() == reflect.Struct && typ != reflect.TypeFor[probe.Template]():
				for _, f := range fieldsOf(typ) {
					visit(f.typ, append(slices.Clone(path), f.name))
				}
				return
			case typ.Kind() == reflect.String || typ == reflect.TypeFor[probe.Template]():
				values = []string{"'nats://user:" + secret + "@host'", "'http://user:" + secret + "@%zz'", "'user:" + secret + "@host:1'"}
				if slices.Contains(path, "Authorization") {
					values = []string{"'Bearer " + secret + "'"}
				}
			default:
				values = literal[1:2]
			}
			for _, v := range values {
				for _, list := range []bool{false, true} {
					value := v
					if list {
						value = "[" + v + "]"
					}
					settings := value
					for i := len(path) - 1; i >= 0; i-- {
						settings = "{" + path[i] + ": " + settings + "}"
					}
					text := "sinks: {s: {" + name + ": " + settings + "}}\n"
					if where == "inject" {
						text = "probes: {p: {inject: {" + name + ": " + settings + "}}}\n"
					}
					write(t, dir, "main.yaml", text)
					cfg, _, err := NewLoader(filepath.Join(dir, "main.yaml")).Load()
					said := fmt.Sprint(err)
					if err == nil {
						out, err := cfg.Redacted()
						said = fmt.Sprint(string(out), err, cfg.Warnings)
						// What Open says counts too. It does not wait for the network.
						for _, s := range cfg.Sinks {
							_, err := s.Config.Open()
							said += fmt.Sprint(err)
						}
						for _, p := range cfg.Probes {
							i, err := p.Inject.Open()
							said += fmt.Sprint(err)
							if err == nil {
								_ = i.Close()
							}
						}
					}
					if strings.Contains(said, secret) {
						t.Errorf("%s\n%s", text, said)
					}
				}
			}
		}
		visit(reflect.TypeOf(c).Elem(), nil)
	}
}

// TestLinksInCircles: files that include themselves, links that point to themselves, and more files than
// anybody means end with a text, soon.
func TestLinksInCircles(t *testing.T) {
	const good = "sinks: {out: {log: {brokers: [a], topic: t}}}\nprobes: {p: {sinks: [out]}}\n"
	link := func(t *testing.T, dir, to, name string) {
		t.Helper()
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, row := range []struct {
		name string
		make func(t *testing.T, dir string)
		want string
	}{
		{"a file that includes itself", func(t *testing.T, dir string) {
			write(t, dir, "main.yaml", "include: [main.yaml, ./main.yaml, '*.yaml']\n"+good)
		}, ""},
		{"itself by another name", func(t *testing.T, dir string) {
			write(t, dir, "main.yaml", "include: [again.yaml]\n"+good)
			link(t, dir, "main.yaml", "again.yaml")
		}, "again.yaml:1: include: only the main file has this key\n"},
		{"a link to itself", func(t *testing.T, dir string) {
			write(t, dir, "main.yaml", "include: [loop.yaml]\n"+good)
			link(t, dir, "loop.yaml", "loop.yaml")
		}, "loop.yaml: too many levels of symbolic links\n"},
		{"a link to itself, by a pattern", func(t *testing.T, dir string) {
			write(t, dir, "main.yaml", "include: ['l*.yaml']\n"+good)
			link(t, dir, "l2.yaml", "l1.yaml")
			link(t, dir, "l1.yaml", "l2.yaml")
		}, "l1.yaml: too many levels of symbolic links\nl2.yaml: too many levels of symbolic links\n"},
		{"a folder in itself", func(t *testing.T, dir string) {
			write(t, dir, "main.yaml", "include: ['conf.d/*/*/*/*/*.yaml']\n"+good)
			write(t, dir, "conf.d/a.yaml", "probes: {q: {sinks: [out]}}\n")
			link(t, dir, ".", "conf.d/loop")
		}, ""},
		{"the main file is a link to itself", func(t *testing.T, dir string) { link(t, dir, "main.yaml", "main.yaml") }, "main.yaml: too many levels of symbolic links\n"},
		{"a device", func(t *testing.T, dir string) { write(t, dir, "main.yaml", "include: [/dev/zero]\n"+good) }, "/dev/zero: is not a regular file\n"},
		{"the main file is a device", func(t *testing.T, dir string) { link(t, dir, "/dev/zero", "main.yaml") }, "main.yaml: the file is larger than 8 MiB: split it with include\n"},
		{"too much in all", func(t *testing.T, dir string) {
			write(t, dir, "main.yaml", "include: ['c*.yaml']\n"+good)
			for i := range 12 {
				write(t, dir, fmt.Sprintf("c%02d.yaml", i), "# "+strings.Repeat("x", 99)+"\n{}")
			}
		}, "main.yaml:1: include[0]: more than 10000 files or 0 MiB are included: those from c10.yaml on are left out\n"},
	} {
		t.Run(row.name, func(t *testing.T) {
			dir := t.TempDir()
			row.make(t, dir)
			l := testLoader(filepath.Join(dir, "main.yaml"))
			l.maxTotal = 1000
			got := loadBad(l, dir)
			if got != row.want {
				t.Errorf("got:\n%s\nwant:\n%s", got, row.want)
			}
		})
	}
}
