package probe

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/conn"
)

func openExec(t *testing.T, configure func(*ExecConfig), script string, args ...string) Injector {
	t.Helper()
	c := NewExec()
	c.Program.Command = append([]string{"sh", "-c", script}, args...)
	configure(c)
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	inj, err := c.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := inj.Close(); err != nil {
			t.Error(err)
		}
	})
	return inj
}

// What a program says by its exit status, and what is told of it.
func TestExecOnce(t *testing.T) {
	t.Setenv("SOMEBODY_ELSES_PASSWORD", "hunter2-hunter2")
	t.Setenv("API_KEY", "correct-horse-battery")
	const all = `cat >"$0"; echo "$LAG_MONITOR_HEARTBEAT" >>"$0"; env >>"$0"; `
	for _, tt := range []struct {
		name, script string
		refused      bool
		want         string // in the error; empty: accepted
	}{
		{"accepted", all, false, ""},
		{"fails", all + "echo broken pipe to $API_KEY >&2; exit 1", false, `exit status 1: "broken pipe to <secret>"`},
		{"says no", all + "exit 22", true, "exit status 22"},
		{"is not there", all + "no-such-program", true, "exit status 127: "},
		{"killed", all + "kill -9 $$", false, "signal: killed"},
		{"hangs", all + "sleep 60 & wait", false, "deadline exceeded"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out := filepath.Join(t.TempDir(), "out")
			inj := openExec(t, func(c *ExecConfig) {
				c.Refused = []int{22}
				c.Program.Env = map[string]conn.Secret{"API_KEY": {Env: "API_KEY"}}
			}, tt.script, out)
			within := 20 * time.Second
			if tt.name == "hangs" {
				within = 300 * time.Millisecond
			}
			err := inject(t, inj, within)
			if (err == nil) != (tt.want == "") || IsRefused(err) != tt.refused || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("refused %t: %v; want refused %t: %s", IsRefused(err), err, tt.refused, tt.want)
			}
			if err != nil && strings.Contains(err.Error(), "correct-horse") {
				t.Errorf("a secret is in the error: %v", err)
			}
			got, readErr := os.ReadFile(out)
			if readErr != nil {
				t.Fatal(readErr)
			}
			if want := `{"heartbeat":"` + Sample().Token + `"}` + Sample().Token + "\n"; !strings.HasPrefix(string(got), want) {
				t.Errorf("the program got %q, want %q", got, want)
			}
			if strings.Contains(string(got), "hunter2") || !strings.Contains(string(got), "API_KEY=correct-horse-battery") {
				t.Errorf("the program's environment is %s", got)
			}
		})
	}
}

// A kept program answers with lines, and one that cannot be trusted any more is replaced.
func TestExecKept(t *testing.T) {
	keep := func(c *ExecConfig) { c.Keep = true }
	const loop = `echo started >>"$0"; while read -r line; do echo "$line" >>"$0"; `
	for _, tt := range []struct {
		name, script string
		want         []string // of each heartbeat: part of the error, with "refused: " in front where it is
		starts       int
	}{
		{"accepts", loop + "echo ok; done", []string{"", "", ""}, 1},
		{"says no", loop + "echo refused queue is full; done", []string{`refused: the program says: "refused queue is full"`, "refused: "}, 1},
		{"does not know", loop + "echo unknown timed out; done", []string{`the program says: "unknown timed out"`, "unknown"}, 1},
		{"babbles", loop + "echo done; done", []string{`the program says: "done"; want ok, refused WHY or unknown WHY`, "done"}, 2},
		{"ends in between", loop + "echo ok; exit; done", []string{"", "", ""}, 3},
		{"ends without an answer", loop + "echo why >&2; exit 3; done", []string{`ended without an answer: exit status 3: "why"`, "exit status 3"}, 2},
		{"does not answer", loop + "sleep 60 & wait; done", []string{"no answer from the program", "no answer"}, 2},
		{"answers twice", loop + "echo ok; echo ok; done", []string{"", ""}, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out := filepath.Join(t.TempDir(), "out")
			inj := openExec(t, keep, tt.script, out)
			for i, want := range tt.want {
				within := 20 * time.Second
				if tt.name == "does not answer" {
					within = 500 * time.Millisecond
				}
				err := inject(t, inj, within)
				if i > 0 || err != nil {
					time.Sleep(50 * time.Millisecond) // for a second answer, or an end, to be there
				}
				want, refused := strings.CutPrefix(want, "refused: ")
				if (err == nil) != (want == "" && !refused) || IsRefused(err) != refused || err != nil && !strings.Contains(err.Error(), want) {
					t.Errorf("heartbeat %d: refused %t: %v; want refused %t: %s", i+1, IsRefused(err), err, refused, want)
				}
				time.Sleep(50 * time.Millisecond)
			}
			got, err := os.ReadFile(out)
			if err != nil {
				t.Fatal(err)
			}
			if n := strings.Count(string(got), "started\n"); n != tt.starts {
				t.Errorf("started %d times, want %d", n, tt.starts)
			}
			if n := strings.Count(string(got), Sample().Token); n != len(tt.want) {
				t.Errorf("got %d heartbeats, want %d", n, len(tt.want))
			}
		})
	}
}

func TestExecClosed(t *testing.T) {
	c := NewExec()
	c.Program.Command, c.Keep = []string{"sh", "-c", "trap '' TERM; while read -r l; do echo ok; done; sleep 60"}, true
	inj, err := c.Open()
	if err != nil {
		t.Fatal(err)
	}
	if err := inject(t, inj, 20*time.Second); err != nil {
		t.Fatal(err)
	}
	if err := inj.Close(); err != nil {
		t.Error(err)
	}
	if err := inject(t, inj, time.Second); !errors.Is(err, errClosed) || !IsRefused(err) {
		t.Errorf("after Close: %v", err)
	}
}

func TestExecValidate(t *testing.T) {
	c := NewExec()
	c.Program.Env = map[string]conn.Secret{"A=B": {Env: "X"}, "C": {}}
	c.Keep, c.Refused, c.Body = true, []int{0}, MustTemplate("{{ .Token }}\n")
	want := strings.Join([]string{
		"command: is required: a list of the program and its arguments",
		`env: "A=B" cannot be the name of a variable`,
		"env.C: a secret has one source: {file: PATH} or {env: NAME}",
		"refused[0]: an exit status that says no is between 1 and 255",
		"refused: cannot be combined with keep: true, where the program answers with a line",
		"body: must not hold a line break with keep: true, where a line is a message",
	}, "\n")
	if got := c.Validate().Error(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
