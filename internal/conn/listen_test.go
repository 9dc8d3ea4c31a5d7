package conn

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"testing"
	"time"
)

// limited serves h with at most that many connections until the test ends.
func limited(t *testing.T, most int, handler func(*Limit) http.Handler) (addr string, l *Limit) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{ReadHeaderTimeout: time.Hour}
	l = LimitConns(srv, most, 100*time.Millisecond)
	srv.Handler = handler(l)
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ln) }()
	t.Cleanup(func() {
		srv.Close()
		<-done
		l.mu.Lock()
		defer l.mu.Unlock()
		for c, u := range l.conns {
			if u.serving > 0 {
				t.Errorf("%v is still being served", c.RemoteAddr())
			}
		}
	})
	return ln.Addr().String(), l
}

func (l *Limit) held() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.conns)
}

func dial(t *testing.T, addr, say string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if _, err := io.WriteString(c, say); err != nil {
		t.Fatal(err)
	}
	return c
}

// closed reports whether the other side has closed c, and has sent nothing.
func closed(c net.Conn, within time.Duration) bool {
	c.SetReadDeadline(time.Now().Add(within))
	n, err := c.Read(make([]byte, 1))
	return n == 0 && !errors.Is(err, os.ErrDeadlineExceeded)
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

const request = "GET / HTTP/1.1\r\nHost: x\r\n\r\n"

// TestConnLimitOrder: who has to go when there is one too many.
func TestConnLimitOrder(t *testing.T) {
	var inside atomic.Int64
	release := make(chan struct{})
	addr, l := limited(t, 3, func(l *Limit) http.Handler {
		return l.Serving(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/long" {
				inside.Add(1)
				<-release
			}
		}))
	})
	served := dial(t, addr, "GET /long HTTP/1.1\r\nHost: x\r\n\r\n")
	eventually(t, "the long request is being served", func() bool { return inside.Load() == 1 })
	idle := dial(t, addr, request)
	if _, err := io.ReadFull(idle, make([]byte, 15)); err != nil {
		t.Fatal(err)
	}
	// The slow one goes before the one that is idle, although that one is older.
	slow := dial(t, addr, "GET / HT")
	eventually(t, "three are there", func() bool { return l.held() == 3 })
	time.Sleep(2 * l.grace) // both have had their time
	second := dial(t, addr, "GET /long HTTP/1.1\r\nHost: x\r\n\r\n")
	if !closed(slow, time.Minute) || l.held() != 3 {
		t.Errorf("the slow one is not closed; %d are held", l.held())
	}
	eventually(t, "another long request", func() bool { return inside.Load() == 2 })
	third := dial(t, addr, "GET /long HTTP/1.1\r\nHost: x\r\n\r\n")
	idle.SetReadDeadline(time.Now().Add(time.Minute))
	if _, err := io.Copy(io.Discard, idle); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the idle one is not closed")
	}
	eventually(t, "another long request", func() bool { return inside.Load() == 3 })
	// All are being answered: the newcomer goes.
	if late := dial(t, addr, ""); !closed(late, time.Minute) {
		t.Error("a fourth is let in beside three that are being answered")
	}
	close(release)
	for _, c := range []net.Conn{served, second, third} {
		if _, err := io.ReadFull(c, make([]byte, 15)); err != nil {
			t.Errorf("a request that was being served got no answer: %v", err)
		}
	}
}

// TestConnLimitUnderFire: slow clients without end, and every request of an honest one is answered.
func TestConnLimitUnderFire(t *testing.T) {
	addr, l := limited(t, 8, func(*Limit) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) })
	})
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	const attackers = 16
	for i := range attackers {
		go func() {
			defer func() { ended <- struct{}{} }()
			attack(ctx, addr, i)
		}()
	}
	defer func() {
		stop()
		for range attackers {
			<-ended
		}
	}()
	eventually(t, "the attack has begun", func() bool { return l.held() == 8 })
	tr := &http.Transport{}
	defer tr.CloseIdleConnections()
	client := &http.Client{Transport: tr, Timeout: time.Minute}
	failed := 0
	for i := range 20 {
		tr.DisableKeepAlives = i%2 == 0
		resp, err := client.Get("http://" + addr)
		if err != nil {
			failed++
			continue
		}
		resp.Body.Close()
		if n := l.held(); n > 9 {
			t.Fatalf("%d connections are held", n)
		}
		time.Sleep(10 * time.Millisecond)
	}
	// The machine may be so busy that the grace passes over a request.
	if failed > 5 {
		t.Errorf("%d of 20 requests were not answered", failed)
	}
}

// attack opens a connection, keeps it as long as it can, and opens another.
func attack(ctx context.Context, addr string, i int) {
	for ctx.Err() == nil {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			time.Sleep(time.Millisecond)
			continue
		}
		end := context.AfterFunc(ctx, func() { c.Close() })
		say := []string{"", "GET / HTTP/1.1\r\nX: ", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n", request}[i%4]
		_, err = fmt.Fprint(c, say)
		for i%4 != 0 && err == nil {
			time.Sleep(20 * time.Millisecond)
			_, err = c.Write([]byte("x"))
		}
		if err == nil {
			_, _ = io.Copy(io.Discard, c)
		}
		end()
		c.Close()
	}
}
