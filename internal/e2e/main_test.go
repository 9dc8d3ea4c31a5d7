package e2e_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"
)

// binary is the path of the daemon, built once for all tests.
var binary string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "lag-monitor-e2e")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	end := func(code int) {
		os.RemoveAll(dir)
		os.Exit(code)
	}
	// Without servers every test is left out, and the build would be for nothing.
	if os.Getenv("LAG_MONITOR_TEST_SERVERS") != "" {
		binary = filepath.Join(dir, "lag-monitor")
		build := exec.Command("go", "build", "-o", binary, "../../cmd/lag-monitor")
		build.Stdout, build.Stderr = os.Stderr, os.Stderr
		if err := build.Run(); err != nil {
			fmt.Fprintln(os.Stderr, "build:", err)
			end(1)
		}
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(end))
}
