package conform_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/conform"
	"github.com/lag-monitor/lag-monitor/internal/conn"
	"github.com/lag-monitor/lag-monitor/probe"
	"github.com/lag-monitor/lag-monitor/sinks"
)

// programs are two of the system's own, with a file for a queue. Those that speak are told what to expect of each
// other by the protocol; the others by time.
func programs(speak bool) conform.Harness {
	variant := ""
	if speak {
		variant = "speaks"
	}
	return conform.Harness{
		Kind: "exec", Variant: variant, InjectorNeeds: []string{"command"}, SinkNeeds: []string{"command"},
		New: func(t *testing.T) conform.Pipeline {
			path := filepath.Join(t.TempDir(), "queue")
			if err := os.WriteFile(path, []byte("an old message\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			inject := func(command ...string) func() probe.Config {
				return func() probe.Config {
					c := probe.NewExec()
					c.Program.Command, c.Keep = command, speak
					return c
				}
			}
			listen := func(command ...string) func() sinks.Config {
				return func() sinks.Config {
					c := sinks.NewExec()
					c.Program.Command, c.Speaks = command, speak
					c.ReadyAfter, c.Delay = conn.Duration(300*time.Millisecond), conn.Duration(500*time.Millisecond)
					return c
				}
			}
			put, get := inject("sh", "-c", `cat >>"$0" && echo >>"$0"`, path), listen("tail", "-n", "0", "-F", path)
			if speak {
				put = inject("sh", "-c", `while read -r line; do printf '%s\n' "$line" >>"$0" && echo ok || echo refused full; done`, path)
				// The time is taken before the file is read, and what it had then is printed before it is told.
				get = listen("sh", "-c", `at=$(wc -l <"$0"); echo "lag-monitor: ready"
					while now=$(date +%s.%N); end=$(wc -l <"$0"); do
						if [ "$end" -gt "$at" ]; then tail -n "+$((at+1))" "$0" | head -n "$((end-at))"; at=$end; fi
						echo "lag-monitor: caught up $now"; sleep 0.05
					done`, path)
			}
			return conform.Pipeline{
				Inject: put, Sink: get,
				Put: func(t *testing.T, bodies ...[]byte) {
					f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
					if err != nil {
						t.Fatal(err)
					}
					defer f.Close()
					if _, err := f.Write(append(bytes.Join(bodies, []byte{'\n'}), '\n')); err != nil {
						t.Error(err)
					}
				},
				Broken: []conform.Broken{
					{Name: "no such program", Inject: inject("/nowhere/program"), Sink: listen("/nowhere/program"), Class: conn.Missing},
					{Name: "fails", Inject: inject("sh", "-c", "echo why >&2; exit 3"), Sink: listen("sh", "-c", "echo why >&2; exit 3"), Class: conn.Other, Unseen: true, Unknown: true},
				},
			}
		},
	}
}
