package servers

import (
	"context"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

// NATSProcess is a NATS server with JetStream as a process of its own, which can be killed, paused, and
// told to read its configuration again.
type NATSProcess struct {
	*Process
	URL  string // nats://127.0.0.1:port
	Addr string // host:port

	dir, config string
}

// StartNATS starts the nats-server at binary and returns when it takes connections. Config is what its
// configuration says beside its address and its store, which is the directory at store, or one of the
// test's own when that is empty.
func StartNATS(t testing.TB, binary, store, config string) *NATSProcess {
	t.Helper()
	n := &NATSProcess{Addr: FreeAddr(t), dir: t.TempDir()}
	n.URL = "nats://" + n.Addr
	if store == "" {
		store = filepath.Join(n.dir, "store")
	}
	n.config = fmt.Sprintf("listen: %q\njetstream: {store_dir: %q}\n", n.Addr, store)
	n.write(t, config)
	n.Process = startProcess(t, "nats", n.dir, func() *exec.Cmd {
		return exec.Command(binary, "-c", filepath.Join(n.dir, "nats.conf"))
	}, func(ctx context.Context) error {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "tcp", n.Addr)
		if err != nil {
			return err
		}
		return conn.Close()
	})
	return n
}

// Configure replaces what StartNATS was given as configuration, and has the server read it.
func (n *NATSProcess) Configure(config string) {
	n.t.Helper()
	n.write(n.t, config)
	n.Signal(syscall.SIGHUP)
}

func (n *NATSProcess) write(t testing.TB, config string) {
	t.Helper()
	writeFile(t, n.dir, "nats.conf", n.config+config+"\n")
}
