package patterns_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	patterns "github.com/lag-monitor/lag-monitor/examples/patterns"
	"github.com/lag-monitor/lag-monitor/examples/patterns/stage"
)

var write = flag.Bool("write", false, "write the tables into docs/patterns.md")

// table is what the document says of a pattern's stories.
func table(p stage.Pattern) string {
	var b strings.Builder
	b.WriteString("| what breaks | what fires | what else shows it |\n| --- | --- | --- |\n")
	for _, s := range p.Stories {
		fires := "nothing: nobody has to know"
		if len(s.Alerts) > 0 {
			fires = ""
		}
		for i, alert := range s.Alerts {
			name, probe, _ := strings.Cut(alert, " ")
			if i > 0 {
				fires += "<br>"
			}
			fires += fmt.Sprintf("[`%s`](runbooks/%[1]s.md) of `%s`", name, probe)
		}
		if s.Says != "" {
			fires += fmt.Sprintf("<br>“%s”", s.Says)
		}
		var shows []string
		for _, expr := range s.Shows {
			shows = append(shows, "`"+expr+"`")
		}
		if s.Page != "" {
			shows = append(shows, "the page of the probe: `"+s.Page+"`")
		}
		fmt.Fprintf(&b, "| %s | %s | %s |\n", s.Breaks, fires, strings.Join(shows, "<br>"))
	}
	return b.String()
}

// TestDocument holds the tables of docs/patterns.md against the stories that are played.
func TestDocument(t *testing.T) {
	path := filepath.Join("..", "..", "docs", "patterns.md")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	for _, p := range patterns.All() {
		begin, end := "<!-- "+p.Name+": begin -->\n", "<!-- "+p.Name+": end -->\n"
		before, rest, ok := strings.Cut(text, begin)
		_, after, closed := strings.Cut(rest, end)
		if !ok || !closed {
			t.Fatalf("%s has no place for a table between %q and %q", path, begin, end)
		}
		text = before + begin + "\n" + table(p) + "\n" + end + after
	}
	if text == string(b) {
		return
	}
	if !*write {
		t.Fatalf("the tables of %s are not what is played: run go test . -run TestDocument -write", path)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestStories looks at what a story needs to be told.
func TestStories(t *testing.T) {
	names := map[string]bool{}
	for _, p := range patterns.All() {
		if p.What == "" || len(p.Stories) == 0 || len(p.Sinks) == 0 {
			t.Errorf("%s: incomplete", p.Name)
		}
		for _, s := range p.Stories {
			if names[p.Name+s.Name] || s.Breaks == "" || s.Do == nil || len(s.Shows) == 0 || s.Says != "" && len(s.Alerts) == 0 {
				t.Errorf("%s: %s: incomplete, or there already", p.Name, s.Name)
			}
			names[p.Name+s.Name] = true
			for _, alert := range s.Alerts {
				name, probe, _ := strings.Cut(alert, " ")
				if _, err := os.Stat(filepath.Join("..", "..", "docs", "runbooks", name+".md")); err != nil || probe == "" {
					t.Errorf("%s: %s: alert %q: %v", p.Name, s.Name, alert, err)
				}
			}
		}
	}
}
