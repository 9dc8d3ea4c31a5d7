package main

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/alecthomas/kingpin/v2"
)

func TestComplete(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := os.WriteFile("c.yaml", []byte("sinks: {out: {webhook: {listen: ':1'}}, old: {webhook: {listen: ':2'}}}\nprobes: {orders: {inject: {http: {url: 'http://x/'}}}, listens: {sinks: [out]}}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("bad.yaml", []byte("probs: {}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	app := kingpin.New(name, "")
	env := new(environment)
	addLogFlags(app, env)
	for _, add := range subcommands() {
		add(app, env)
	}
	for _, c := range []struct{ line, want string }{
		{"t|", "tail token"},
		{"ch|", "check"},
		{"fly |", ""},
		{"--config.w|", "--config.watch --config.watch-interval"},
		{"ping --config.file=c.yaml |", "orders"},
		{"ping --config.file = c.yaml |", "orders"},
		{"ping --config.file c.yaml o|", "orders"},
		{"ping --config.file=c.yaml orders |", ""},
		{"ping --config.file=bad.yaml |", ""},
		{"ping --config.file=none.yaml |", ""},
		{"ping --config.file |", ""},
		{"ping -c 5 --config.file c.yaml |", "orders"},
		{"ping --json --config.file c.yaml |", "orders"},
		{"ping --ma|", "--max-loss"},
		{"tail --config.file=c.yaml |", "old out"},
		{"rules --format |", "prometheus operator"},
		{"rules --format=o|", "--format=operator"},
		{"rules --format = o|", "operator"},
		{"rules --format =|", "prometheus operator"},
		{"tail --log.level=w|", "--log.level=warn"},
		{"completion f|", "fish"},
		{"check |", ""},
	} {
		words := strings.Split(strings.TrimSuffix(c.line, "|"), " ")
		got := complete(app.Model(), words)
		want := strings.Fields(c.want)
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", c.line, got, want)
		}
	}
	if got := complete(app.Model(), nil); !slices.Contains(got, "ping") || !slices.Contains(got, "run") {
		t.Errorf("nothing: %q", got)
	}
}

// Every command is in docs/commands.md, with its exit codes, and shows in its help how it is called.
func TestCommandsAreDocumented(t *testing.T) {
	b, err := os.ReadFile("../../docs/commands.md")
	if err != nil {
		t.Fatal(err)
	}
	doc := string(b)
	app := kingpin.New(name, "")
	for _, add := range subcommands() {
		add(app, new(environment))
	}
	for _, c := range app.Model().Commands {
		if c.Hidden || c.Name == "help" {
			continue
		}
		if !strings.Contains(doc, "\n| `"+c.Name+"` |") && !strings.Contains(doc, "\n| [`"+c.Name+"`](#"+c.Name+") |") {
			t.Errorf("docs/commands.md has no row for %s", c.Name)
		}
		if c.Name == "run" || c.Name == "demo" || c.Name == "version" {
			continue
		}
		if !strings.Contains(c.Help, "\n  lag-monitor "+c.Name) && !strings.Contains(c.Help, "<(lag-monitor "+c.Name) {
			t.Errorf("the help of %s has no example", c.Name)
		}
		if !strings.Contains(doc, "\n## "+c.Name+"\n") {
			t.Errorf("docs/commands.md has no section for %s", c.Name)
		}
	}
}
