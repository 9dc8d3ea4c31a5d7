package servers_test

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/servers"
)

// echo starts a server that sends back what it gets.
func echo(t *testing.T) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_, _ = io.Copy(conn, conn)
			}()
		}
	}()
	return ln.Addr().String()
}

func dial(t *testing.T, p *servers.FaultProxy) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", p.Addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// ask sends text and waits for it to come back.
func ask(conn net.Conn, text string, patience time.Duration) (time.Duration, error) {
	start := time.Now()
	if err := conn.SetDeadline(start.Add(patience)); err != nil {
		return 0, err
	}
	if _, err := io.WriteString(conn, text); err != nil {
		return 0, err
	}
	_, err := io.ReadFull(conn, make([]byte, len(text)))
	return time.Since(start), err
}

func TestProxy(t *testing.T) {
	const long, short = 10 * time.Second, 200 * time.Millisecond
	p := servers.Proxy(t, echo(t))
	conn := dial(t, p)
	if _, err := ask(conn, "hello", long); err != nil {
		t.Fatal(err)
	}

	p.Set(servers.Faults{Latency: 150 * time.Millisecond})
	if took, err := ask(conn, "slow", long); err != nil || took < 300*time.Millisecond || took > 5*time.Second {
		t.Errorf("with 150 ms in each direction a round trip took %v, %v", took, err)
	}
	p.Set(servers.Faults{Bandwidth: 10_000})
	if took, err := ask(conn, string(make([]byte, 4000)), long); err != nil || took < 700*time.Millisecond {
		t.Errorf("4 kB there and back at 10 kB/s took %v, %v", took, err)
	}

	for name, f := range map[string]servers.Faults{"both": {Silent: true}, "up": {SilentUp: true}, "down": {SilentDown: true}} {
		p.Set(f)
		if _, err := ask(conn, "x", short); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("silent %s: %v", name, err)
		}
		if _, err := ask(dial(t, p), "y", short); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("silent %s, new connection: %v", name, err)
		}
		p.Set(servers.Faults{})
		_ = conn.SetDeadline(time.Now().Add(long))
		if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
			t.Errorf("silent %s: what was held back did not come after healing: %v", name, err)
		}
	}

	p.HalfOpen()
	if _, err := ask(conn, "lost", short); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("half open: %v", err)
	}
	conn = dial(t, p)
	if _, err := ask(conn, "again", long); err != nil {
		t.Errorf("a new connection beside half-open ones: %v", err)
	}
	p.Cut()
	if _, err := ask(conn, "cut", long); !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
		t.Errorf("cut: %v", err)
	}

	p.Set(servers.Faults{Refuse: true})
	if _, err := net.Dial("tcp", p.Addr); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("refused: %v", err)
	}
	p.Set(servers.Faults{})
	if _, err := ask(dial(t, p), "back", long); err != nil {
		t.Errorf("after refusing: %v", err)
	}
	for deadline := time.Now().Add(long); p.Open() > 5; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d connections are still open", p.Open())
		}
	}
	if n := p.Accepted(); n != 6 {
		t.Errorf("%d connections were accepted; want 6", n)
	}
}
