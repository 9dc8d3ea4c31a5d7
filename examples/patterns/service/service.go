package service

import (
	"context"
	"net"
	"sync"
)

// Env is what a part is given. Addr, Space and DB keep the runs of several services on one broker apart.
type Env struct {
	Addr  string // host:port of the broker
	Space string // RabbitMQ: the virtual host. Kafka: what goes before the name of each topic and group
	DB    int    // Redis: the number of the database

	// Dial opens a connection to the broker, like that of net.Dialer. Every client of the part uses it.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
}

// Part is one process of a service, such as a worker.
type Part struct {
	Name string
	// Run does the work until ctx ends. It calls ready once messages that come in from now on are taken, and returns an
	// error when it cannot go on; it is started again then, as by any supervisor.
	Run func(ctx context.Context, env Env, ready func()) error
}

// Link is the network of one run of a part. The zero value is one that works.
type Link struct {
	mu    sync.Mutex
	cut   bool
	conns []net.Conn
}

// Dial is net.Dialer's, until the link is cut.
func (l *Link) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cut {
		conn.Close()
		return nil, net.ErrClosed
	}
	l.conns = append(l.conns, conn)
	return conn, nil
}

// Cut closes all connections, and lets no new one be made: what a broker sees of a client that is killed. It is safe for
// concurrent use.
func (l *Link) Cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut = true
	for _, conn := range l.conns {
		conn.Close()
	}
	l.conns = nil
}
