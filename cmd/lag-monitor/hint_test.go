package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// A file that this user may not read. As root the test runs itself as nobody, since root may read all.
func TestConfigHintPermission(t *testing.T) {
	file := os.Getenv("LAG_MONITOR_TEST_UNREADABLE")
	if file == "" && os.Getuid() == 0 {
		dir, err := os.MkdirTemp("", "") //nolint:usetesting // that of the test is closed to others
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, "config.yaml")
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		self, err := os.ReadFile("/proc/self/exe")
		if err != nil {
			t.Skip("no /proc")
		}
		exe := filepath.Join(dir, "test")
		if err := os.WriteFile(exe, self, 0o755); err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), exe, "-test.run=^TestConfigHintPermission$", "-test.v")
		cmd.Dir = dir
		cmd.Env = []string{"LAG_MONITOR_TEST_UNREADABLE=" + file}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS: TestConfigHintPermission") {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	if file == "" {
		file = filepath.Join(t.TempDir(), "config.yaml")
		if err := os.WriteFile(file, nil, 0); err != nil {
			t.Fatal(err)
		}
	}
	err := configHint(errors.New("x: permission denied"), file)
	if !strings.HasPrefix(err.Error(), "x: permission denied; this process runs as user ") {
		t.Error(err)
	}
}

func TestListenHint(t *testing.T) {
	for err, want := range map[error]string{
		syscall.EACCES:        "permission denied; ports below 1024 need a privilege: name a higher one with --flag",
		syscall.EADDRINUSE:    "address already in use; something else listens there, another lag-monitor perhaps: end it, or name another address with --flag",
		syscall.EADDRNOTAVAIL: "cannot assign requested address; this host has no such address: name another with --flag, or :PORT for all",
		errors.New("other"):   "other",
	} {
		if got := listenHint(err, "--flag").Error(); got != want {
			t.Errorf("got %q", got)
		}
	}
	if listenHint(nil, "--flag") != nil {
		t.Error("nil became an error")
	}
}
