package faults_test

import (
	"flag"
	"fmt"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	page     = "../../docs/reliability.md"
	beginTag = "<!-- fault matrix: begin -->\n"
	endTag   = "<!-- fault matrix: end -->\n"
)

// table collects the lines of the rows that have run.
type table struct {
	mu    sync.Mutex
	lines map[string]string // by kind/name
}

// newTable writes the table into the page at the end of the test, if that was asked for.
func newTable(t *testing.T) *table {
	tb := &table{lines: map[string]string{}}
	t.Cleanup(func() {
		if !*write || t.Failed() {
			return
		}
		text, err := os.ReadFile(page)
		if err != nil {
			t.Error(err)
			return
		}
		before, rest, ok := strings.Cut(string(text), beginTag)
		old, after, ok2 := strings.Cut(rest, endTag)
		if !ok || !ok2 {
			t.Errorf("%s has no place for the table", page)
			return
		}
		if err := os.WriteFile(page, []byte(before+beginTag+tb.text(old)+endTag+after), 0o644); err != nil {
			t.Error(err)
		}
	})
	return tb
}

const heading = "| fault | what is done | heartbeats | lost, truly | recovery | false drops | missed drops | false pages | indeterminate | command |\n" +
	"| --- | --- | --: | --: | --: | --: | --: | --: | --: | --- |\n"

// add takes the line of a row, and prints it.
func (tb *table) add(t *testing.T, kind string, r *row, res result) {
	t.Helper()
	tb.mu.Lock()
	defer tb.mu.Unlock()
	key := kind + "/" + r.name
	line := fmt.Sprintf("| %s %s | %s | %d | %d | %.1f s | %d | %d | %d | %d | `make faults RUN=%s` |\n",
		kind, strings.ReplaceAll(r.name, "_", " "), r.does, res.heartbeats, res.trueDrops,
		res.recovery.Round(100*time.Millisecond).Seconds(), res.falseDrops, res.missedDrops, res.falsePages, res.indeterminate, key)
	tb.lines[key] = line
	t.Log(line)
}

var lineKey = regexp.MustCompile("RUN=([a-z0-9_/]+)`")

// text is the table, in the order of the rows. A row that has not run keeps its old line.
func (tb *table) text(old string) string {
	tb.mu.Lock()
	defer tb.mu.Unlock()
	lines := map[string]string{}
	for line := range strings.Lines(old) {
		if m := lineKey.FindStringSubmatch(line); m != nil {
			lines[m[1]] = line
		}
	}
	for key, line := range tb.lines {
		lines[key] = line
	}
	var b strings.Builder
	b.WriteString(heading)
	for _, k := range kinds {
		for _, r := range k.rows() {
			b.WriteString(lines[k.name+"/"+r.name])
		}
	}
	return b.String()
}

// chosen returns the rows of a kind that -run lets through, so that no server is started for the others.
func chosen(kind string, rows []*row) []*row {
	parts := strings.Split(flag.Lookup("test.run").Value.String(), "/")
	if len(parts) < 3 {
		return rows
	}
	var some []*row
	for _, r := range rows {
		if ok, err := regexp.MatchString(parts[2], r.name); err == nil && ok {
			some = append(some, r)
		}
	}
	return some
}
