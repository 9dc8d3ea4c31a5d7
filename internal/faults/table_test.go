package faults_test

import (
	"flag"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
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
	var all, sums strings.Builder
	for _, k := range kinds {
		var of []string
		for _, r := range k.rows() {
			if line, ok := lines[k.name+"/"+r.name]; ok {
				of = append(of, line)
			}
		}
		all.WriteString(strings.Join(of, ""))
		sums.WriteString(sumOf(k.name, of))
	}
	return sumHeading + sums.String() + "\n" + heading + all.String()
}

const sumHeading = "| kind | rows | heartbeats | lost, truly | median recovery | longest recovery | false drops | missed drops | false pages | indeterminate |\n" +
	"| --- | --: | --: | --: | --: | --: | --: | --: | --: | --: |\n"

// sumOf makes one line of all of a kind.
func sumOf(kind string, lines []string) string {
	if len(lines) == 0 {
		return ""
	}
	var sums [5]int // heartbeats, lost, false drops, missed drops, false pages
	indeterminate := 0
	var recoveries []float64
	for _, line := range lines {
		cells := strings.Split(line, " | ")
		cells = cells[len(cells)-8:] // what is done may hold anything
		for i, cell := range []int{0, 1, 3, 4, 5} {
			n, _ := strconv.Atoi(cells[cell])
			sums[i] += n
		}
		n, _ := strconv.Atoi(cells[6])
		indeterminate += n
		took, _ := strconv.ParseFloat(strings.TrimSuffix(cells[2], " s"), 64)
		recoveries = append(recoveries, took)
	}
	slices.Sort(recoveries)
	return fmt.Sprintf("| %s | %d | %d | %d | %.1f s | %.1f s | %d | %d | %d | %d |\n", kind, len(lines), sums[0], sums[1],
		recoveries[len(recoveries)/2], recoveries[len(recoveries)-1], sums[2], sums[3], sums[4], indeterminate)
}

// TestTable holds the table of the page against the rows there are, and its sums against its lines.
func TestTable(t *testing.T) {
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), beginTag)
	old, _, _ := strings.Cut(rest, endTag)
	tb := &table{lines: map[string]string{}}
	if tb.text(old) != old {
		t.Errorf("%s is not what its lines make: `make faults WRITE=1` with any RUN writes it", page)
	}
	for _, k := range kinds {
		for _, r := range k.rows() {
			if !strings.Contains(old, "RUN="+k.name+"/"+r.name+"`") {
				t.Errorf("%s/%s is not in %s: make faults RUN=%s/%s WRITE=1", k.name, r.name, page, k.name, r.name)
			}
		}
	}
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
