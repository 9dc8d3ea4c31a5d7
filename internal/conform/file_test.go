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

// logFile is a file that the injector appends to and the sink follows.
func logFile() conform.Harness {
	return conform.Harness{
		Kind: "file", InjectorNeeds: []string{"path"}, SinkNeeds: []string{"path"},
		New: func(t *testing.T) conform.Pipeline {
			dir := t.TempDir()
			path := filepath.Join(dir, "app.log")
			if err := os.WriteFile(path, []byte("an old line\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			inject := func(path string) func() probe.Config {
				return func() probe.Config {
					c := probe.NewFile()
					c.Path = path
					return c
				}
			}
			follow := func(path string) func() sinks.Config {
				return func() sinks.Config {
					c := sinks.NewFile()
					c.Path, c.PollInterval = path, conn.Duration(10*time.Millisecond)
					return c
				}
			}
			nowhere := filepath.Join(dir, "nowhere.log")
			return conform.Pipeline{
				Inject: inject(path), Sink: follow(path),
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
				Keeps: true, IDs: true,
				Remaining: func(t *testing.T) int {
					b, err := os.ReadFile(path)
					if err != nil {
						t.Fatal(err)
					}
					return bytes.Count(b, []byte{'\n'})
				},
				Broken: []conform.Broken{
					{Name: "no such file", Inject: inject(nowhere), Sink: follow(nowhere), Class: conn.Missing},
					{Name: "no such directory", Inject: inject(filepath.Join(nowhere, "x")), Sink: follow(filepath.Join(nowhere, "x")), Class: conn.Missing},
				},
			}
		},
	}
}
