//go:build unix

package demo

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// interruptible: readKeys ends soon after its context.
const interruptible = true

// waitInput returns true when a read would not block, after d at the latest.
func waitInput(f *os.File, d time.Duration) bool {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLIN}}, int(d.Milliseconds()))
	return n > 0 || err != nil && err != unix.EINTR
}
