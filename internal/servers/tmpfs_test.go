package servers_test

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/lag-monitor/lag-monitor/internal/servers"
)

func TestTmpfs(t *testing.T) {
	dir := servers.Tmpfs(t, 4)
	file := filepath.Join(dir, "file")
	for range 2 {
		if err := os.WriteFile(file, []byte("room"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		free := servers.Fill(t, dir)
		if err := os.WriteFile(file, []byte("no room"), 0o600); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("on a full disk: %v", err)
		}
		os.Remove(file)
		free()
	}
}
