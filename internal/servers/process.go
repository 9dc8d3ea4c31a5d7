package servers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gofrs/flock"
)

const (
	// readyDeadline is generous: beside one that starts, others serve tests on a machine with two cores.
	readyDeadline = 90 * time.Second
	stopDeadline  = 20 * time.Second
	logTailBytes  = 6 << 10
)

// Process is a server that runs as an operating system process of its own. Each one is the leader of
// its own process group, and a signal goes to the whole group.
type Process struct {
	t       testing.TB
	name    string
	command func() *exec.Cmd
	ready   func(context.Context) error
	logPath string

	cmd    *exec.Cmd
	exited chan struct{} // closed when the process has been waited for
	waited error         // how it ended; read it only after exited is closed
}

// startProcess starts a server when its turn has come (see enter), and returns when ready does not return an error any
// more. command is called for each start; ready is called again and again until it returns nil.
func startProcess(t testing.TB, name, dir string, command func() *exec.Cmd, ready func(context.Context) error) *Process {
	t.Helper()
	leave := enter(t)
	defer leave()
	return launch(t, name, dir, command, ready)
}

// launch is startProcess without waiting for a turn.
func launch(t testing.TB, name, dir string, command func() *exec.Cmd, ready func(context.Context) error) *Process {
	t.Helper()
	p := &Process{t: t, name: name, command: command, ready: ready, logPath: filepath.Join(dir, name+".log")}
	t.Cleanup(func() {
		// Its data goes away with the test, so there is nothing that a gentle end would save.
		p.signal(syscall.SIGKILL)
		p.wait(stopDeadline)
		if t.Failed() {
			t.Logf("end of the log of %s:\n%s", p.name, p.LogTail())
		}
	})
	p.Start()
	return p
}

// enter waits until fewer servers than the machine has processors are starting, in whatever process of tests, and takes
// one of the places until leave is called. A virtual machine that starts takes all processors it can get: five at once are
// ready later than one after the other, and the servers that serve other tests meanwhile answer late.
func enter(t testing.TB) (leave func()) {
	t.Helper()
	places := make([]*flock.Flock, runtime.NumCPU())
	for i := range places {
		places[i] = flock.New(filepath.Join(locks(t), "start-"+strconv.Itoa(i)))
	}
	for ; ; time.Sleep(20 * time.Millisecond) {
		for _, place := range places {
			ok, err := place.TryLock()
			if err != nil {
				t.Fatal(err)
			}
			if ok {
				return func() { _ = place.Close() }
			}
		}
	}
}

// locks returns the directory in which processes of tests agree who has what.
func locks(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(os.TempDir(), "lag-monitor-test-"+strconv.Itoa(os.Getuid()))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

// Program starts any other program as a server of the test and returns when ready does not return an
// error any more. Its log is in the test's temporary directory. command is called for each start. It waits for no other
// server that starts.
func Program(t testing.TB, name string, command func() *exec.Cmd, ready func(context.Context) error) *Process {
	t.Helper()
	return launch(t, name, t.TempDir(), command, ready)
}

// Start starts the server again after Stop or Kill, with the same ports and data, and waits until it
// is ready. It fails the test when the server ends or is not ready in time.
func (p *Process) Start() {
	p.t.Helper()
	if p.running() {
		p.t.Fatalf("%s: start: it is running already", p.name)
	}
	log, err := os.OpenFile(p.logPath, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		p.t.Fatal(err)
	}
	cmd := p.command()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = childAttr()
	started := make(chan error, 1)
	exited := make(chan struct{})
	p.cmd, p.exited = cmd, exited
	go func() {
		// The kernel ends the child when the thread that started it ends, not the process: keep the thread.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(exited)
		defer log.Close()
		err := cmd.Start()
		started <- err
		if err == nil {
			p.waited = cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		p.t.Fatalf("%s: start: %v", p.name, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), readyDeadline)
	defer cancel()
	for {
		attempt, done := context.WithTimeout(ctx, 5*time.Second)
		err := p.ready(attempt)
		done()
		if err == nil && p.running() {
			return
		}
		select {
		case <-exited:
			p.t.Fatalf("%s ended instead of becoming ready: %v; end of its log:\n%s", p.name, p.waited, p.LogTail())
		case <-ctx.Done():
			p.t.Fatalf("%s is not ready after %v: %v; end of its log:\n%s", p.name, readyDeadline, err, p.LogTail())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Stop ends the server as its operator would (SIGTERM) and returns when it has ended. A server that
// does not end in time is killed, and the test fails.
func (p *Process) Stop() {
	p.t.Helper()
	p.signal(syscall.SIGTERM)
	if !p.wait(stopDeadline) {
		p.Kill()
		p.t.Fatalf("%s did not end within %v after SIGTERM; end of its log:\n%s", p.name, stopDeadline, p.LogTail())
	}
}

// Kill ends the server without warning (SIGKILL) and returns when it has ended.
func (p *Process) Kill() {
	p.t.Helper()
	p.signal(syscall.SIGKILL)
	if !p.wait(stopDeadline) {
		p.t.Fatalf("%s did not end within %v after SIGKILL", p.name, stopDeadline)
	}
}

// Pause freezes the server (SIGSTOP): the kernel still accepts connections for it, nothing answers. It returns when
// every thread stands still, since one that runs on another processor may answer a request or two after the signal.
func (p *Process) Pause() {
	p.signal(syscall.SIGSTOP)
	for end := time.Now().Add(stopDeadline); p.running() && !standsStill(p.cmd.Process.Pid); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			p.t.Errorf("%s: does not stand still after SIGSTOP", p.name)
			return
		}
	}
}

// standsStill reports whether no thread of the process runs, as far as the system tells.
func standsStill(pid int) bool {
	stats, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	for _, path := range stats {
		stat, err := os.ReadFile(path)
		if err != nil {
			continue // the thread has ended
		}
		// The state stands behind the name, which is in brackets and may hold anything.
		if i := bytes.LastIndexByte(stat, ')'); i >= 0 && i+2 < len(stat) && !bytes.ContainsRune([]byte("TtZXx"), rune(stat[i+2])) {
			return false
		}
	}
	return true
}

// Resume lets a paused server go on (SIGCONT).
func (p *Process) Resume() { p.signal(syscall.SIGCONT) }

// Pid returns the process id of the server, or 0 when it does not run.
func (p *Process) Pid() int {
	if !p.running() {
		return 0
	}
	return p.cmd.Process.Pid
}

// Signal sends a signal to the server, if it runs.
func (p *Process) Signal(sig syscall.Signal) { p.signal(sig) }

// Exit returns how the server ended the last time: nil for exit code 0. It waits for the end.
func (p *Process) Exit() error {
	<-p.exited
	return p.waited
}

// Log returns everything that the process has written.
func (p *Process) Log() string {
	p.t.Helper()
	b, err := os.ReadFile(p.logPath)
	if err != nil {
		p.t.Fatal(err)
	}
	return string(b)
}

// LogTail returns the end of what the server wrote to its standard output and error.
func (p *Process) LogTail() string {
	f, err := os.Open(p.logPath)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > logTailBytes {
		if _, err := f.Seek(-logTailBytes, io.SeekEnd); err != nil {
			return err.Error()
		}
	}
	tail, err := io.ReadAll(f)
	if err != nil {
		return err.Error()
	}
	return string(bytes.TrimSpace(tail))
}

func (p *Process) running() bool {
	if p.exited == nil {
		return false
	}
	select {
	case <-p.exited:
		return false
	default:
		return p.cmd.Process != nil
	}
}

func (p *Process) signal(sig syscall.Signal) {
	if !p.running() {
		return
	}
	// A child that has just ended is no error: wait tells.
	if err := syscall.Kill(-p.cmd.Process.Pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		p.t.Errorf("%s: signal %v: %v", p.name, sig, err)
	}
}

// wait reports whether the process ended within d.
func (p *Process) wait(d time.Duration) bool {
	if p.exited == nil {
		return true
	}
	select {
	case <-p.exited:
		return true
	case <-time.After(d):
		return false
	}
}

var (
	portMu sync.Mutex
	// ports are those that this process has taken, each with its lock.
	ports = map[int]*flock.Flock{}
)

// freePort returns a port of 127.0.0.1 that nobody listens on, and that no other process of tests is given while this one
// lives: a server that is stopped finds it free when it comes back, and nobody else is sent what is meant for it. It lies
// below the range from which the kernel takes the ports of outgoing connections.
func freePort(t testing.TB) int {
	t.Helper()
	portMu.Lock()
	defer portMu.Unlock()
	for range 1000 {
		port := 15000 + rand.IntN(15000)
		if ports[port] != nil {
			continue
		}
		lock := flock.New(filepath.Join(locks(t), strconv.Itoa(port)))
		ok, err := lock.TryLock()
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			continue
		}
		if !free(port) {
			_ = lock.Close()
			continue
		}
		ports[port] = lock // until this process ends
		return port
	}
	t.Fatal("no free port between 15000 and 30000")
	return 0
}

// free reports whether nobody listens on a port of 127.0.0.1. A process that is started meanwhile would have
// the listener of this look, too, until it has become another program: none is.
func free(port int) bool {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	ln, err := net.Listen("tcp", loopback(port))
	if err != nil {
		return false
	}
	ln.Close()
	return true
}

// FreeAddr returns an address (host:port) of loopback that nobody listens on, and that keeps free for
// the test: see internal/servers/README.md on ports.
func FreeAddr(t testing.TB) string {
	t.Helper()
	return loopback(freePort(t))
}

func loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// httpReady returns a readiness check that wants status 200 from url.
func httpReady(url string) func(context.Context) error {
	return func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		resp, err := httpClient.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s: %s", url, resp.Status)
		}
		return nil
	}
}

// httpClient keeps no connections: an idle one would look like a goroutine that the test leaked.
var httpClient = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 30 * time.Second}

// writeFile writes a file into dir and returns its path.
func writeFile(t testing.TB, dir, name, content string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
