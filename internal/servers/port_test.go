package servers

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

// A port that was looked at must be there for the taking at once, however many processes the test starts meanwhile.
func TestFreePortWhileProcessesStart(t *testing.T) {
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					_ = exec.Command("true").Run()
				}
			}
		})
	}
	for range 1000 {
		ln, err := net.Listen("tcp", FreeAddr(t))
		if err != nil {
			t.Error(err)
			break
		}
		ln.Close()
	}
	close(stop)
	wg.Wait()
}

// Another process of tests that runs at the same time is given other ports, also while nobody listens on ours.
func TestFreePortIsOurs(t *testing.T) {
	const variable = "LAG_MONITOR_TEST_PORTS"
	if os.Getenv(variable) != "" {
		for range 500 {
			fmt.Println(FreeAddr(t))
		}
		return
	}
	ours := make(map[string]bool)
	for range 500 {
		ours[FreeAddr(t)] = true
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), variable+"=1")
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	theirs := 0
	for line := range strings.Lines(string(out)) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "127.0.0.1:") {
			theirs++
			if ours[line] {
				t.Fatalf("%s was given to two processes", line)
			}
		}
	}
	if theirs != 500 {
		t.Fatalf("the other process was given %d ports, want 500", theirs)
	}
}

// Servers start one after the other, as many at once as there are processors.
func TestStartsTakeTurns(t *testing.T) {
	var mu sync.Mutex
	var at, most int
	var wg sync.WaitGroup
	add := func(n int) {
		mu.Lock()
		defer mu.Unlock()
		at += n
		most = max(most, at)
	}
	for range 3 * runtime.NumCPU() {
		wg.Go(func() {
			leave := enter(t)
			defer leave()
			add(1)
			time.Sleep(50 * time.Millisecond)
			add(-1)
		})
	}
	wg.Wait()
	// Tests of other packages take places, too.
	if most < 1 || most > runtime.NumCPU() {
		t.Errorf("%d servers started at once, want at most %d", most, runtime.NumCPU())
	}
}
