package servers

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// NATSServer is a NATS server with JetStream that runs in this process, with its store on disk.
type NATSServer struct {
	URL string // nats://127.0.0.1:port

	t       testing.TB
	options server.Options
	server  *server.Server
}

// NATS starts a NATS server and returns when it is ready. It needs nothing installed. Change the
// options, its port and store excepted, to have authentication, TLS or limits.
func NATS(t testing.TB, change ...func(*server.Options)) *NATSServer {
	t.Helper()
	dir := t.TempDir()
	n := &NATSServer{t: t, options: server.Options{
		JetStream: true,
		LogFile:   filepath.Join(dir, "nats.log"),
		NoSigs:    true,
	}}
	for _, f := range change {
		f(&n.options)
	}
	n.options.Host, n.options.Port, n.options.StoreDir = "127.0.0.1", freePort(t), filepath.Join(dir, "store")
	n.URL = "nats://" + loopback(n.options.Port)
	t.Cleanup(func() {
		n.Stop()
		if t.Failed() {
			log, err := os.ReadFile(n.options.LogFile)
			t.Logf("log of nats (%v):\n%s", err, log[max(0, len(log)-logTailBytes):])
		}
	})
	n.Start()
	return n
}

// Start starts the server again after Stop, with the same port and store.
func (n *NATSServer) Start() {
	n.t.Helper()
	if n.server != nil {
		n.t.Fatal("nats: start: it is running already")
	}
	options := n.options
	s, err := server.NewServer(&options)
	if err != nil {
		n.t.Fatal(fmt.Errorf("nats: start: %w", err))
	}
	s.ConfigureLogger()
	s.Start()
	n.server = s
	if !s.ReadyForConnections(readyDeadline) {
		n.t.Fatalf("nats is not ready after %v", readyDeadline)
	}
}

// Stop ends the server and returns when it has ended. Stopping a stopped one does nothing.
func (n *NATSServer) Stop() {
	n.t.Helper()
	if n.server == nil {
		return
	}
	s := n.server
	n.server = nil
	s.Shutdown()
	ended := make(chan struct{})
	go func() {
		s.WaitForShutdown()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(stopDeadline):
		n.t.Errorf("nats did not end within %v", stopDeadline)
	}
}
