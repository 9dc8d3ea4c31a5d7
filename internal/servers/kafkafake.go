package servers

import (
	"maps"
	"net"
	"slices"
	"sync"
	"testing"

	"github.com/twmb/franz-go/pkg/kfake"
)

// FakeKafka is a Kafka cluster inside this process: for speed, and for faults that a real one does not
// show on demand. It needs nothing installed.
type FakeKafka struct {
	*kfake.Cluster // changes with Start

	t     testing.TB
	opts  []kfake.Opt
	ports []int

	mu    sync.Mutex
	gate  chan struct{} // open (nil) unless the cluster hangs
	conns map[net.Conn]bool
}

// StartFakeKafka starts a cluster of n brokers. It keeps what it was given over Stop and Start.
func StartFakeKafka(t testing.TB, n int, opts ...kfake.Opt) *FakeKafka {
	t.Helper()
	f := &FakeKafka{t: t, opts: append([]kfake.Opt{kfake.DataDir(t.TempDir())}, opts...), conns: make(map[net.Conn]bool)}
	for range n {
		f.ports = append(f.ports, freePort(t))
	}
	f.Start()
	t.Cleanup(f.Stop)
	return f
}

// Start brings a stopped cluster back at the same addresses.
func (f *FakeKafka) Start() {
	c, err := kfake.NewCluster(append(f.opts, kfake.Ports(f.ports...), kfake.ListenFn(f.listen))...)
	if err != nil {
		f.t.Fatalf("fake kafka: %v", err)
	}
	f.Cluster = c
}

// Stop ends the cluster and every connection to it. A second Stop does nothing.
func (f *FakeKafka) Stop() {
	f.Close()
	f.mu.Lock()
	open := slices.Collect(maps.Keys(f.conns))
	f.mu.Unlock()
	for _, c := range open {
		c.Close()
	}
}

// Hang makes the brokers silent until release is called; connections are still accepted.
func (f *FakeKafka) Hang() (release func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	gate := make(chan struct{})
	f.gate = gate
	return func() {
		f.mu.Lock()
		f.gate = nil
		f.mu.Unlock()
		close(gate)
	}
}

// Connections returns how many connections the brokers have accepted and not seen the end of.
func (f *FakeKafka) Connections() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.conns)
}

func (f *FakeKafka) listen(network, address string) (net.Listener, error) {
	ln, err := net.Listen(network, address)
	return &gatedListener{ln, f}, err
}

type gatedListener struct {
	net.Listener
	f *FakeKafka
}

func (l *gatedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	g := &gatedConn{c, l.f}
	l.f.mu.Lock()
	l.f.conns[g] = true
	l.f.mu.Unlock()
	return g, nil
}

type gatedConn struct {
	net.Conn
	f *FakeKafka
}

func (c *gatedConn) wait() {
	c.f.mu.Lock()
	gate := c.f.gate
	c.f.mu.Unlock()
	if gate != nil {
		<-gate
	}
}

func (c *gatedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.wait()
	return n, err
}

func (c *gatedConn) Write(b []byte) (int, error) {
	c.wait()
	return c.Conn.Write(b)
}

func (c *gatedConn) Close() error {
	c.f.mu.Lock()
	delete(c.f.conns, c)
	c.f.mu.Unlock()
	return c.Conn.Close()
}
