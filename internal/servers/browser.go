package servers

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"
)

// Browser runs a script of Node.js that drives a browser, and returns what it printed. The script finds the
// packages of internal/web/browser/package.json below the environment variable NODE_PACKAGES, and the browser
// at BROWSER. Script and browser are killed, and the test fails, when they have not ended after limit.
func Browser(t testing.TB, script string, limit time.Duration, env ...string) []byte {
	t.Helper()
	packages := filepath.Join(installed(t, "browser"), "node_modules")
	chromium, err := exec.LookPath("chromium")
	if err != nil {
		t.Fatalf("%v: run internal/servers/install.sh", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "node", script)
	cmd.Env = append(os.Environ(), append(env, "NODE_PACKAGES="+packages, "BROWSER="+chromium, "HOME="+t.TempDir())...)
	cmd.SysProcAttr = childAttr()
	// The browser ends by itself when its remote control is gone.
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = stopDeadline
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	// The kernel ends the script when the thread that started it ends.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %v\n%s%s", script, err, &out, &errs)
	}
	return out.Bytes()
}
