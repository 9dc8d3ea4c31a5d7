//go:build unix && !linux

package servers

import "syscall"

// childAttr puts a child into a process group of its own. Only Linux can tie its life to ours.
func childAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true}
}
