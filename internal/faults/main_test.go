package faults_test

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"
)

// The paths of the daemon and of a NATS server that can be killed, built once for all tests.
var daemonBinary, natsBinary string

var write = flag.Bool("write", false, "write what is measured into docs/reliability.md")

func TestMain(m *testing.M) {
	flag.Parse()
	dir, err := os.MkdirTemp("", "lag-monitor-faults")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	end := func(code int) {
		os.RemoveAll(dir)
		os.Exit(code)
	}
	// Without servers every test is left out, and the builds would be for nothing.
	if os.Getenv("LAG_MONITOR_TEST_SERVERS") != "" {
		daemonBinary, natsBinary = filepath.Join(dir, "lag-monitor"), filepath.Join(dir, "nats-server")
		for path, source := range map[string]string{daemonBinary: "../../cmd/lag-monitor", natsBinary: "github.com/nats-io/nats-server/v2"} {
			build := exec.Command("go", "build", "-o", path, source)
			build.Stdout, build.Stderr = os.Stderr, os.Stderr
			if err := build.Run(); err != nil {
				fmt.Fprintln(os.Stderr, "build:", err)
				end(1)
			}
		}
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(end))
}
