package patterns_test

import (
	"context"
	"flag"
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/lag-monitor/lag-monitor/internal/servers"

	patterns "github.com/lag-monitor/lag-monitor/examples/patterns"
	"github.com/lag-monitor/lag-monitor/examples/patterns/stage"
)

var binary string

func TestMain(m *testing.M) {
	flag.Parse()
	// Stories wait most of the time: many run at once, however few cores there are, and not so many that they keep each other waiting.
	_ = flag.Set("test.parallel", "12")
	dir, err := os.MkdirTemp("", "patterns")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := 1
	if os.Getenv("LAG_MONITOR_TEST_SERVERS") != "" {
		binary, err = stage.Build(context.Background(), ".", dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	} else {
		code = m.Run()
	}
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.RemoveAll(dir)
	os.Exit(code)
}

// TestPatterns breaks each pattern in each of its ways, on stages of their own, side by side.
func TestPatterns(t *testing.T) {
	servers.Need(t)
	var names []string
	for _, p := range patterns.All() {
		for _, s := range p.Stories {
			names = append(names, p.Name+"-"+s.Name)
		}
	}
	house := stage.Open(t, ".", binary, names...)
	house.Start()
	t.Run("all", func(t *testing.T) {
		for _, p := range patterns.All() {
			t.Run(p.Name, func(t *testing.T) {
				t.Parallel()
				for _, s := range p.Stories {
					t.Run(s.Name, func(t *testing.T) {
						t.Parallel()
						stage.Play(t, stage.Up(t, house, p.Name+"-"+s.Name, p), s)
					})
				}
			})
		}
	})
}
