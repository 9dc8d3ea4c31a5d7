package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"lag-monitor": main})
}

// The scripts see the command line as a person does. $ADDR, $HEALTH and $OTHER are addresses that nobody
// listens on.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		// A daemon that does not end is killed then, and the test says so.
		Deadline: time.Now().Add(5 * time.Minute),
		// root may read what nobody may.
		Condition: func(cond string) (bool, error) {
			if cond == "root" {
				return os.Getuid() == 0, nil
			}
			return false, fmt.Errorf("unknown condition %s", cond)
		},
		Setup: func(e *testscript.Env) error {
			for _, name := range []string{"ADDR", "HEALTH", "OTHER"} {
				l, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					return err
				}
				defer l.Close()
				e.Setenv(name, l.Addr().String())
			}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": exits, "http": httpCommand, "signal": signalCommand, "listen": listen, "expand": expand, "eventually": eventually,
			"pipeline": pipeline, "post": post,
		},
	})
}

// exits CODE COMMAND ARG...: the command ends with that exit code.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND ARG...")
	}
	err := ts.Exec(args[1], args[2:]...)
	got := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if strconv.Itoa(got) != args[0] {
		ts.Fatalf("exit code %d, want %s", got, args[0])
	}
}

// http METHOD CODE URL: the answer has that status; its body becomes the standard output. A server
// that does not listen yet is waited for, as is the status.
func httpCommand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: http METHOD CODE URL")
	}
	var last string
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		code, body, err := request(args[0], args[2])
		if err != nil {
			last = err.Error()
			continue
		}
		if strconv.Itoa(code) == args[1] {
			_, err := ts.Stdout().Write(body)
			ts.Check(err)
			return
		}
		last = fmt.Sprintf("status %d: %s", code, body)
		if args[0] != http.MethodGet {
			break
		}
	}
	ts.Fatalf("%s %s: %s, want %s", args[0], args[2], last, args[1])
}

func request(method, url string) (int, []byte, error) {
	r, err := http.NewRequest(method, url, nil)
	if err != nil {
		return 0, nil, err
	}
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(r)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, b, err
}

// signal NAME: sends TERM, INT or HUP to the one command in the background.
func signalCommand(ts *testscript.TestScript, neg bool, args []string) {
	known := map[string]syscall.Signal{"TERM": syscall.SIGTERM, "INT": syscall.SIGINT, "HUP": syscall.SIGHUP}
	if neg || len(args) != 1 || known[args[0]] == 0 || len(ts.BackgroundCmds()) != 1 {
		ts.Fatalf("usage: signal TERM|INT|HUP, with one command in the background")
	}
	ts.Check(ts.BackgroundCmds()[0].Process.Signal(known[args[0]]))
}

// listen ADDRESS: something else listens there until the script ends. It takes every HTTP request,
// and nothing ever comes of it.
func listen(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: listen ADDRESS")
	}
	l, err := net.Listen("tcp", args[0])
	ts.Check(err)
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusAccepted) })}
	go func() { _ = s.Serve(l) }()
	ts.Defer(func() { s.Close() })
}

// expand FILE: puts the values of $ADDR, $HEALTH and $OTHER into the file.
func expand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: expand FILE")
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(os.Expand(ts.ReadFile(args[0]), ts.Getenv)), 0o600))
}

// eventually URL TEXT: until the answer holds the text.
func eventually(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: eventually URL TEXT")
	}
	var body []byte
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		var err error
		if _, body, err = request(http.MethodGet, args[0]); err == nil && bytes.Contains(body, []byte(args[1])) {
			return
		}
	}
	ts.Fatalf("%s never holds %q, but %q", args[0], args[1], body)
}

// pipeline LISTEN TO: a pipeline that takes messages at LISTEN and delivers each to the URL TO. The path of
// the request says how: /in at once, /late after a second, /half every second one, /never none; /refuse
// takes none. GET / answers with a # for each message that was delivered.
func pipeline(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: pipeline LISTEN TO")
	}
	l, err := net.Listen("tcp", args[0])
	ts.Check(err)
	var n, delivered atomic.Int64
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			fmt.Fprint(w, strings.Repeat("#", int(delivered.Load())))
			return
		}
		body, err := io.ReadAll(r.Body)
		if err != nil || r.URL.Path == "/refuse" {
			http.Error(w, "no\x1b[2J", http.StatusTooManyRequests)
			return
		}
		w.WriteHeader(http.StatusAccepted)
		if r.URL.Path == "/never" || r.URL.Path == "/half" && n.Add(1)%2 == 0 {
			return
		}
		go func() {
			if r.URL.Path == "/late" {
				time.Sleep(time.Second)
			}
			if resp, err := http.Post(args[1], "text/plain", bytes.NewReader(body)); err == nil {
				resp.Body.Close()
				delivered.Add(1)
			}
		}()
	})}
	go func() { _ = s.Serve(l) }()
	ts.Defer(func() { s.Close() })
}

// post URL FILE: sends the file; a server that does not listen yet is waited for.
func post(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: post URL FILE")
	}
	body := ts.ReadFile(args[1])
	var err error
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		var resp *http.Response
		if resp, err = http.Post(args[0], "text/plain", strings.NewReader(body)); err == nil {
			resp.Body.Close()
			return
		}
	}
	ts.Check(err)
}
