//go:build unix

package sinks

import (
	"fmt"
	"io/fs"
	"syscall"
)

// fileID is the identity of a file on this host, whatever its name.
func fileID(info fs.FileInfo) string {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return ""
	}
	return fmt.Sprintf("%d:%d", st.Dev, st.Ino)
}
