package servers_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/servers"
)

const dirEnv = "LAG_MONITOR_TEST_SERVERS"

// fatalTB is a testing.TB whose Fatalf ends the calling goroutine and does not fail the test.
type fatalTB struct {
	testing.TB
	fatal string
}

func (f *fatalTB) Helper() {}
func (f *fatalTB) Fatalf(format string, args ...any) {
	f.fatal = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

func TestNeed(t *testing.T) {
	t.Setenv(dirEnv, t.TempDir())
	servers.Need(t)
	f := &fatalTB{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		servers.Promtool(f)
	}()
	<-done
	if !strings.Contains(f.fatal, "prometheus is not installed") || !strings.Contains(f.fatal, "install.sh") {
		t.Errorf("a server that is not there: %q", f.fatal)
	}
	t.Setenv(dirEnv, "")
	var inner *testing.T
	t.Run("without servers", func(t *testing.T) {
		inner = t
		servers.Need(t)
		t.Error("the test went on")
	})
	if !inner.Skipped() {
		t.Error("without the variable the test was not left out")
	}
}

// TestNothingLeftBehind kills a test binary that has a server running, and wants the server gone.
func TestNothingLeftBehind(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Log("only Linux ends a child with its parent")
		return
	}
	servers.Need(t)
	if os.Getenv("SERVERS_TEST_CHILD") != "" {
		fmt.Println("pid", servers.Alertmanager(t, "route: {receiver: none}\nreceivers: [{name: none}]\n").Pid())
		select {}
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestNothingLeftBehind$", "-test.v")
	cmd.Env = append(cmd.Environ(), "SERVERS_TEST_CHILD=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	for lines := bufio.NewScanner(out); pid == 0 && lines.Scan(); {
		if rest, ok := strings.CutPrefix(lines.Text(), "pid "); ok {
			pid, err = strconv.Atoi(rest)
		}
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if pid == 0 || err != nil {
		t.Fatalf("the child told no pid: %v", err)
	}
	for deadline := time.Now().Add(10 * time.Second); syscall.Kill(pid, 0) == nil; time.Sleep(10 * time.Millisecond) {
		// A zombie answers until the process that adopted it waits for it.
		if stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat"); err == nil && strings.Contains(string(stat), ") Z ") {
			break
		}
		if time.Now().After(deadline) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
			t.Fatalf("server %d outlived the test binary", pid)
		}
	}
}

// TestStartErrors wants the reason out of the server's own log when it does not start.
func TestStartErrors(t *testing.T) {
	servers.Need(t)
	f := &fatalTB{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		servers.Alertmanager(f, "route: {receiver: nobody}\n")
	}()
	<-done
	if !strings.Contains(f.fatal, "ended instead of becoming ready") || !strings.Contains(f.fatal, `undefined receiver \"nobody\"`) {
		t.Errorf("a bad configuration is reported as %q", f.fatal)
	}
}

// TestInstallQuiet runs the installer over what is installed: it must have nothing to do or to say.
func TestInstallQuiet(t *testing.T) {
	servers.Need(t)
	cmd := exec.Command("bash", "install.sh")
	before := stamps(t)
	out, err := cmd.CombinedOutput()
	if err != nil || len(out) != 0 || stamps(t) != before {
		t.Errorf("a second run did something: %v\n%s", err, out)
	}
}

func stamps(t *testing.T) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(os.Getenv(dirEnv), "*", ".stamp"))
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for _, file := range files {
		info, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(&all, file, info.ModTime())
	}
	return all.String()
}

// What a paused server would have done a moment later must not happen. Of a process with many threads one takes the signal,
// when its turn comes, and the others go on until then.
func TestPauseStandsStill(t *testing.T) {
	if out := os.Getenv("SERVERS_TEST_BUSY"); out != "" {
		f, err := os.OpenFile(out, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		for range 16 {
			go func() {
				runtime.LockOSThread()
				for {
					_, _ = f.WriteString("x")
				}
			}()
		}
		select {}
	}
	out := filepath.Join(t.TempDir(), "out")
	p := servers.Program(t, "busy", func() *exec.Cmd {
		cmd := exec.Command(os.Args[0], "-test.run=^TestPauseStandsStill$")
		cmd.Env = append(cmd.Environ(), "SERVERS_TEST_BUSY="+out, "GOMAXPROCS=16")
		return cmd
	}, func(context.Context) error { _, err := os.Stat(out); return err })
	size := func() int64 {
		info, err := os.Stat(out)
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
	for range 50 {
		p.Pause()
		before := size()
		time.Sleep(2 * time.Millisecond)
		if after := size(); after != before {
			t.Fatalf("it wrote %d bytes after Pause", after-before)
		}
		p.Resume()
		time.Sleep(time.Millisecond)
	}
}
