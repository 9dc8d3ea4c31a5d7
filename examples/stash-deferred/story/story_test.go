package story_test

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/servers"

	"github.com/lag-monitor/lag-monitor/examples/stash-deferred/dashboard"
	"github.com/lag-monitor/lag-monitor/examples/stash-deferred/stage"
	"github.com/lag-monitor/lag-monitor/examples/stash-deferred/story"
)

var (
	write = flag.Bool("write", false, "write what the stories show into docs/stash-deferred.md")

	binaries stage.Binaries
)

func TestMain(m *testing.M) {
	flag.Parse()
	// Stages wait most of the time: all of them run at once, however many cores there are.
	_ = flag.Set("test.parallel", strconv.Itoa(len(story.Stages)))
	dir, err := os.MkdirTemp("", "stash-deferred")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := 1
	// Without servers the stories are left out, and the builds would be for nothing.
	if os.Getenv("LAG_MONITOR_TEST_SERVERS") != "" {
		binaries, err = stage.Build(context.Background(), "..", dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	} else {
		code = m.Run()
	}
	os.RemoveAll(dir)
	os.Exit(code)
}

// TestStories plays the six stories that are watched, on three stages side by side: they wait most of the time. The one
// of the kills computes, and comes after them.
func TestStories(t *testing.T) {
	servers.Need(t)
	var mu sync.Mutex
	var told []story.Told
	played := func(one story.Told) {
		mu.Lock()
		defer mu.Unlock()
		told = append(told, one)
	}
	t.Run("watched", func(t *testing.T) {
		for _, name := range story.Stages {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				// The local Kinesis has one thread: one for each stage bears a busy machine.
				st := stage.Up(t, story.Options(name, "..", binaries, servers.KinesisInMemory(t)))
				for _, s := range story.On(name) {
					played(s.Play(t, st, log(t)))
				}
				if name == "lag" {
					panelsHaveData(t, st)
				}
			})
		}
	})
	t.Run("kills", func(t *testing.T) {
		st := stage.Up(t, story.Options("kills", "..", binaries, servers.KinesisInMemory(t)))
		played(story.Kills(t, st, 200, log(t)))
	})
	if *write && !t.Failed() {
		if err := story.Write("../../../docs/stash-deferred.md", told); err != nil {
			t.Error(err)
		}
	}
}

func log(t *testing.T) func(story.Step) {
	return func(s story.Step) {
		t.Logf("%5.1f s  %s\n  %s\n  %s\n  => %s", s.After.Seconds(), s.What, s.Seen, s.Page, s.Conclusion)
	}
}

// panelsHaveData asks each query of the dashboard.
func panelsHaveData(t *testing.T, st *stage.Stage) {
	t.Helper()
	for _, expr := range append(dashboard.Queries(), "max_over_time("+dashboard.Annotation+"[10m])") {
		values, err := st.Query(t.Context(), expr)
		if err != nil || len(values) == 0 {
			t.Errorf("a panel would be empty: %s has %v (%v)", expr, values, err)
		}
	}
}

// The files of this example are valid as they are, for those who take them as a template.
func TestFilesAreValid(t *testing.T) {
	servers.Need(t)
	for name, args := range map[string][]string{
		"rules":      {servers.Promtool(t), "check", "rules", "../rules/stash-deferred.rules.yaml"},
		"rule tests": {servers.Promtool(t), "test", "rules", "../rules/stash-deferred.test.yaml"},
		"monitor":    {binaries.Monitor, "check", "../lag-monitor.yaml"},
	} {
		if out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
}

func TestTable(t *testing.T) {
	path := filepath.Join(t.TempDir(), "doc.md")
	if err := os.WriteFile(path, []byte("# Head\n\n<!-- stories: begin -->\n\n### 2. Old\n\nold\n\n### 7. Kept\n\nkept\n\n<!-- stories: end -->\n\ntail\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	told := []story.Told{
		{Number: 2, Title: "Second", Steps: []story.Step{{After: 1500 * time.Millisecond, What: "a | b", Page: "*text* <b>\nmore\n<https://x|Runbook>\n", Conclusion: "c"}}},
		{Number: 1, Title: "First"},
	}
	if err := story.Write(path, told); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"# Head\n\n<!-- stories: begin -->\n\n### 1. First\n", "\n### 7. Kept\n\nkept\n\n<!-- stories: end -->\n", "| 2 s | a \\| b |  | *text* &lt;b&gt;<br>more | c |\n", "<!-- stories: end -->\n\ntail\n"} {
		if !strings.Contains(string(got), want) {
			t.Errorf("the document has no %q:\n%s", want, got)
		}
	}
	if strings.Contains(string(got), "old") || strings.Index(string(got), "First") > strings.Index(string(got), "Second") {
		t.Errorf("the document is\n%s", got)
	}
	if err := os.WriteFile(path, []byte("no place"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := story.Write(path, told); err == nil {
		t.Error("a document without a place for the stories was accepted")
	}
}
