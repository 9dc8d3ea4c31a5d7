package conn

import (
	"context"
	"fmt"
	"net"
	"os"
	"syscall"
	"testing"
)

func TestClassOf(t *testing.T) {
	_, noFile := os.Open("does-not-exist")
	for _, row := range []struct {
		err  error
		want Class
	}{
		{noFile, Other},
		{fmt.Errorf("key: %w", noFile), Other},
		{&os.PathError{Op: "open", Path: "x", Err: syscall.EACCES}, Other},
		{syscall.ECONNREFUSED, Network},
		{&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}, Network},
		{context.DeadlineExceeded, Network},
		{WithClass(Throttle, noFile), Throttle},
		{fmt.Errorf("topic: %w", WithClass(Missing, fmt.Errorf("none"))), Missing},
		{fmt.Errorf("odd"), Other},
	} {
		if got := ClassOf(row.err); got != row.want {
			t.Errorf("ClassOf(%v) = %s, want %s", row.err, got, row.want)
		}
	}
}
