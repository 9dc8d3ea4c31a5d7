package servers

import (
	"context"
	"errors"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Faults is what a FaultProxy does to the traffic it passes on. The zero value passes everything.
type Faults struct {
	Refuse     bool          // nobody listens: new connections are refused
	Silent     bool          // connections are accepted and stay open, no byte passes in either direction
	SilentUp   bool          // no byte passes from client to server
	SilentDown bool          // no byte passes from server to client
	Latency    time.Duration // added to each direction
	Bandwidth  int           // bytes per second, direction and connection; 0: no limit
}

// FaultProxy passes TCP connections on to a server, with faults that a test switches on and off. What a
// silent proxy has not passed on is passed on when it heals, as after a healed network partition. Its
// methods are safe for concurrent use.
type FaultProxy struct {
	Addr string // host:port for clients

	t   testing.TB
	ctx context.Context
	wg  sync.WaitGroup

	mu       sync.Mutex
	upstream string
	faults   Faults
	changed  chan struct{} // closed and replaced when faults change
	listener net.Listener
	pairs    map[*pair]struct{}
	accepted int
}

type pair struct {
	client, server net.Conn
	half           chan struct{} // closed when the server's side is gone and the client must not notice
	ctx            context.Context
	cancel         context.CancelFunc
}

// Proxy starts a proxy in front of the server at upstream (host:port), which need not run yet.
func Proxy(t testing.TB, upstream string) *FaultProxy {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	p := &FaultProxy{
		Addr: loopback(freePort(t)), t: t, upstream: upstream, ctx: ctx,
		changed: make(chan struct{}), pairs: map[*pair]struct{}{},
	}
	p.mu.Lock()
	err := p.listen()
	p.mu.Unlock()
	if err != nil {
		cancel()
		t.Fatalf("proxy: %v", err)
	}
	t.Cleanup(func() {
		cancel()
		p.mu.Lock()
		if p.listener != nil {
			p.listener.Close()
		}
		p.mu.Unlock()
		p.Cut()
		p.wg.Wait()
	})
	return p
}

// Set replaces all faults. Set(Faults{}) heals.
func (p *FaultProxy) Set(f Faults) {
	p.t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.faults = f
	close(p.changed)
	p.changed = make(chan struct{})
	var err error
	switch {
	case f.Refuse && p.listener != nil:
		p.listener.Close()
		p.listener = nil
	case !f.Refuse && p.listener == nil:
		err = p.listen()
	}
	if err != nil {
		p.t.Errorf("proxy: listen again: %v", err)
	}
}

// Cut resets every open connection on both sides.
func (p *FaultProxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.pairs {
		c.cancel()
	}
}

// LeadTo makes new connections go to another server, as when a name is given to it. Those that are open stay.
func (p *FaultProxy) LeadTo(upstream string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.upstream = upstream
}

// HalfOpen closes the server's side of every open connection. The client's side stays open and swallows
// what it is sent, as when a host vanished without a word.
func (p *FaultProxy) HalfOpen() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.pairs {
		select {
		case <-c.half:
		default:
			close(c.half)
			c.server.Close()
		}
	}
}

// Open returns how many connections are open, Accepted how many there ever were.
func (p *FaultProxy) Open() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.pairs)
}

// Accepted returns how many connections clients have made.
func (p *FaultProxy) Accepted() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.accepted
}

// listen needs p.mu.
func (p *FaultProxy) listen() error {
	ln, err := net.Listen("tcp", p.Addr)
	// A process that is just being started holds on to a listener that was closed here, until it has become
	// another program.
	for end := time.Now().Add(5 * time.Second); errors.Is(err, syscall.EADDRINUSE) && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
		ln, err = net.Listen("tcp", p.Addr)
	}
	if err != nil {
		return err
	}
	p.listener = ln
	p.wg.Go(func() {
		for {
			client, err := ln.Accept()
			if err != nil {
				return
			}
			p.wg.Go(func() { p.serve(client) })
		}
	})
	return nil
}

func (p *FaultProxy) serve(client net.Conn) {
	defer client.Close()
	p.mu.Lock()
	upstream := p.upstream
	p.mu.Unlock()
	server, err := (&net.Dialer{}).DialContext(p.ctx, "tcp", upstream)
	if err != nil {
		return
	}
	defer server.Close()
	ctx, cancel := context.WithCancel(p.ctx)
	defer cancel()
	c := &pair{client: client, server: server, half: make(chan struct{}), ctx: ctx, cancel: cancel}
	p.mu.Lock()
	p.pairs[c] = struct{}{}
	p.accepted++
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		delete(p.pairs, c)
		p.mu.Unlock()
	}()
	stop := context.AfterFunc(ctx, func() {
		for _, conn := range []net.Conn{client, server} {
			if tcp, ok := conn.(*net.TCPConn); ok {
				// Zero linger makes the close a reset.
				_ = tcp.SetLinger(0)
			}
			conn.Close()
		}
	})
	defer stop()
	var both sync.WaitGroup
	both.Go(func() { p.pump(c, server, client, true) })
	both.Go(func() { p.pump(c, client, server, false) })
	both.Wait()
}

// pump passes bytes from src to dst until either ends.
func (p *FaultProxy) pump(c *pair, dst, src net.Conn, up bool) {
	type chunk struct {
		due  time.Time
		data []byte
	}
	// Latency must not limit the rate: what is read waits in a queue.
	queue := make(chan chunk, 64)
	go func() {
		defer close(queue)
		for {
			buf := make([]byte, 16<<10)
			n, err := src.Read(buf)
			if n > 0 {
				f, _ := p.now()
				select {
				case queue <- chunk{due: time.Now().Add(f.Latency), data: buf[:n]}:
				case <-c.ctx.Done():
					return
				}
			}
			if err != nil {
				return
			}
		}
	}()
	// The reader ends with its connection; wait for it, so that no goroutine outlives the test.
	defer func() {
		for range queue {
		}
	}()
	for ch := range queue {
		if !p.sleep(c, time.Until(ch.due)) || !p.awaitVoice(c, up) {
			break
		}
		if f, _ := p.now(); f.Bandwidth > 0 {
			if !p.sleep(c, time.Duration(float64(len(ch.data))/float64(f.Bandwidth)*float64(time.Second))) {
				break
			}
		}
		if _, err := dst.Write(ch.data); err != nil && !c.isHalf() {
			c.cancel()
			return
		}
	}
	if c.isHalf() {
		if !up {
			return // the server's side has ended; the client's stays
		}
		c.cancel()
		return
	}
	// src has ended: pass that on, and let the other direction finish.
	if p.awaitVoice(c, up) {
		if tcp, ok := dst.(*net.TCPConn); ok {
			_ = tcp.CloseWrite()
		}
	}
}

func (c *pair) isHalf() bool {
	select {
	case <-c.half:
		return true
	default:
		return false
	}
}

func (p *FaultProxy) now() (Faults, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.faults, p.changed
}

// awaitVoice waits while the direction is silent; false when the connection is cut.
func (p *FaultProxy) awaitVoice(c *pair, up bool) bool {
	for {
		f, changed := p.now()
		if !f.Silent && !(up && f.SilentUp) && !(!up && f.SilentDown) {
			return c.ctx.Err() == nil
		}
		select {
		case <-changed:
		case <-c.ctx.Done():
			return false
		}
	}
}

func (p *FaultProxy) sleep(c *pair, d time.Duration) bool {
	if d <= 0 {
		return true
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-c.ctx.Done():
		return false
	}
}
