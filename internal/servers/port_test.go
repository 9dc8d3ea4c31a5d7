package servers

import (
	"net"
	"os/exec"
	"sync"
	"testing"
)

// A port that was looked at must be there for the taking at once, however many processes the test starts meanwhile.
func TestFreePortWhileProcessesStart(t *testing.T) {
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					_ = exec.Command("true").Run()
				}
			}
		})
	}
	for range 1000 {
		ln, err := net.Listen("tcp", FreeAddr(t))
		if err != nil {
			t.Error(err)
			break
		}
		ln.Close()
	}
	close(stop)
	wg.Wait()
}
