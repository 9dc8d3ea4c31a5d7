package servers

import (
	"fmt"
	"syscall"
)

func mountTmpfs(dir string, megabytes int) error {
	return syscall.Mount("lag-monitor-test", dir, "tmpfs", 0, fmt.Sprintf("size=%dm", megabytes))
}

// unmount is lazy: a server that was killed a moment ago may still hold a file.
func unmount(dir string) error { return syscall.Unmount(dir, syscall.MNT_DETACH) }
