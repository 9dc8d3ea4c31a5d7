// Command patterns lists the patterns of this module, or runs one of them on this machine, to look at and to break. Everything
// listens on loopback, and is gone at the end.
package main

import (
	"bufio"
	"context"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/alecthomas/kingpin/v2"

	"github.com/lag-monitor/lag-monitor/internal/servers"

	patterns "github.com/lag-monitor/lag-monitor/examples/patterns"
	"github.com/lag-monitor/lag-monitor/examples/patterns/stage"
)

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	app := kingpin.New("patterns", "Run one way to use queues, with its broker and all that watches it, to look at and to break.")
	app.HelpFlag.Short('h')
	root := app.Flag("root", "Directory of examples/patterns.").Default(".").ExistingDir()
	name := app.Arg("pattern", "Name of a pattern; without one they are listed.").String()
	if _, err := app.Parse(args); err != nil {
		fmt.Fprintf(os.Stderr, "patterns: %v (try --help)\n", err)
		return 2
	}
	if *name == "" {
		list()
		return 0
	}
	all := patterns.All()
	i := slices.IndexFunc(all, func(p stage.Pattern) bool { return p.Name == *name })
	if i < 0 {
		fmt.Fprintf(os.Stderr, "patterns: there is no pattern %q\n", *name)
		list()
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if err := show(ctx, *root, all[i]); err != nil && ctx.Err() == nil {
		fmt.Fprintln(os.Stderr, "patterns:", err)
		return 1
	}
	return 0
}

func list() {
	for _, p := range patterns.All() {
		fmt.Printf("  %-21s %s (%s)\n", p.Name, p.What, p.Broker)
	}
	fmt.Println("\nmake patterns PATTERN=NAME runs one. docs/patterns.md tells what breaks in each, and what tells it.")
}

// needed fails when a server of the tests is not installed.
func needed(names ...string) error {
	for _, name := range names {
		if _, err := os.Stat(filepath.Join(os.Getenv("LAG_MONITOR_TEST_SERVERS"), name, ".stamp")); err != nil {
			return fmt.Errorf("%s is not installed in LAG_MONITOR_TEST_SERVERS (%q). This installs it, with the other servers of the tests: "+
				"bash internal/servers/install.sh", name, os.Getenv("LAG_MONITOR_TEST_SERVERS"))
		}
	}
	return nil
}

// show puts a pattern up and lets a person break it until ctx ends.
func show(ctx context.Context, root string, p stage.Pattern) error {
	broker := string(p.Broker)
	if p.Broker == stage.Kafka {
		broker = string(servers.Kafka4)
	}
	if err := needed("prometheus", broker); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "patterns-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	fmt.Println("Building lag-monitor; the first time takes a minute or two ...")
	binary, err := stage.Build(ctx, root, dir)
	if err != nil {
		return err
	}
	return servers.Outside(ctx, os.Stderr, func(tb testing.TB) {
		fmt.Println("Starting everything ...")
		house := stage.Open(tb, root, binary, p.Name)
		play(ctx, stage.Up(tb, house, p.Name, p), house)
	})
}

// play does what a person types, and tells what changes.
func play(ctx context.Context, s *stage.Stage, house *stage.House) {
	fmt.Printf("\n%s: %s\n\n", s.Pattern.Name, s.Pattern.What)
	fmt.Printf("lag-monitor    %s/   its metrics: /metrics, its configuration: /config\n", s.Monitor)
	fmt.Printf("Prometheus     %s/alerts   rules wait %v instead of minutes\n", house.Prometheus(), stage.For)
	fmt.Printf("%-14s %s\n", s.Pattern.Broker, s.Env.Addr)
	fmt.Print("\nBreak something: type a number and Enter; h heals everything; q or Ctrl-C ends it. One thing for each start shows best: drops count\n" +
		"as part of a lag page for 45 minutes after it.\n\n")
	for i, story := range s.Pattern.Stories {
		fmt.Printf("  %d  %s\n", i+1, story.Breaks)
	}
	fmt.Println()
	typed := make(chan string)
	// Reading cannot be interrupted; the goroutine ends with the process.
	go func() {
		defer close(typed)
		for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
			select {
			case typed <- strings.TrimSpace(lines.Text()):
			case <-ctx.Done():
				return
			}
		}
	}()
	began, fired, tick := time.Now(), map[string]string{}, time.NewTicker(time.Second)
	defer tick.Stop()
	say := func(format string, args ...any) {
		fmt.Printf("%4.0f s  %s\n", time.Since(began).Seconds(), fmt.Sprintf(format, args...))
	}
	var waiting []string // expressions that a person was told to look at, and that have no answer yet
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return
		case what, ok := <-typed:
			if !ok {
				typed = nil // nobody types any more
				continue
			}
			if what == "q" {
				return
			}
			waiting = act(s, what, say)
		case <-tick.C:
			waiting = look(ctx, s, fired, waiting, say)
			if n%10 == 0 {
				say("%s", s.Status(ctx))
			}
		}
	}
}

// act does what was typed, and returns which expressions have an answer once that shows.
func act(s *stage.Stage, what string, say func(string, ...any)) []string {
	if what == "h" {
		say("== everything is as it was in the beginning")
		s.Heal()
		return nil
	}
	n, err := strconv.Atoi(what)
	if err != nil || n < 1 || n > len(s.Pattern.Stories) {
		return nil
	}
	story := s.Pattern.Stories[n-1]
	say("== %s", story.Breaks)
	story.Do(s)
	if len(story.Alerts) == 0 {
		say("   No alert: nobody has to know.")
	} else {
		say("   It raises %s, and nothing else.", strings.Join(story.Alerts, ", "))
	}
	if story.Page != "" {
		say("   The page of the probe says %s.", story.Page)
	}
	for _, expr := range story.Shows {
		say("   Look at  %s", expr)
	}
	return story.Shows
}

// look tells which alerts have come and gone, and which expressions have an answer now; it returns the others.
func look(ctx context.Context, s *stage.Stage, fired map[string]string, waiting []string, say func(string, ...any)) []string {
	alerts, err := s.Alerts(ctx)
	if err != nil {
		return waiting
	}
	for _, name := range slices.Sorted(maps.Keys(alerts)) {
		if _, known := fired[name]; !known {
			say("ALERT %s\n        %s", name, alerts[name])
		}
	}
	for _, name := range slices.Sorted(maps.Keys(fired)) {
		if _, there := alerts[name]; !there {
			say("over: %s", name)
		}
	}
	clear(fired)
	maps.Copy(fired, alerts)
	missing, err := s.Missing(ctx, stage.Story{Shows: waiting})
	if err != nil {
		return waiting
	}
	for _, expr := range waiting {
		if !slices.Contains(missing, expr) {
			say("   Now  %s", expr)
		}
	}
	return missing
}
