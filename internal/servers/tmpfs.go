package servers

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// Tmpfs returns a directory on a disk of its own with room for so many megabytes, which Fill fills. It
// leaves the test out, and says so, when this process may not mount anything.
func Tmpfs(t testing.TB, megabytes int) string {
	t.Helper()
	dir := t.TempDir()
	err := mountTmpfs(dir, megabytes)
	if errors.Is(err, errors.ErrUnsupported) || errors.Is(err, syscall.EPERM) {
		t.Skip("left out: needs a small disk of its own, which only root may mount; `make test` as root runs this test")
	}
	if err != nil {
		t.Fatalf("mount: %v", err)
	}
	t.Cleanup(func() {
		if err := unmount(dir); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return dir
}

// Fill fills the disk of a directory to the last byte, until the returned function frees it again.
func Fill(t testing.TB, dir string) (free func()) {
	t.Helper()
	name := filepath.Join(dir, "ballast")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for size := 1 << 20; size > 0; {
		if _, err := f.Write(make([]byte, size)); errors.Is(err, syscall.ENOSPC) {
			size /= 2
		} else if err != nil {
			t.Fatal(err)
		}
	}
	return func() {
		if err := os.Remove(name); err != nil {
			t.Errorf("free the disk: %v", err)
		}
	}
}
