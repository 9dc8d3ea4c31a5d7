package servers

import "syscall"

// childAttr puts a child into a process group of its own and has the kernel kill it when the test
// binary is gone, however that came to pass.
func childAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
