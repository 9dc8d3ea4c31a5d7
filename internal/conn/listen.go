package conn

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"sync"
	"time"
)

// MaxHeader bounds the header of a request to one of our listeners, in bytes. Go allows 4 KiB beyond it.
const MaxHeader = 16 << 10

// A Limit bounds how many connections an HTTP server holds. When there is one too many, it closes
// one that has had its time, instead of letting the new one wait for an end: whoever opens connections
// and sends nothing, or a byte a second, would keep everybody else out otherwise. It is safe for
// concurrent use.
type Limit struct {
	most  int
	grace time.Duration

	mu    sync.Mutex
	conns map[net.Conn]*connUse
}

// connUse is what a connection is doing.
type connUse struct {
	since   time.Time // of the last change
	idle    bool      // between two requests
	serving int       // requests that are being answered
}

// ConnGrace is what everybody has to say what he wants, however many others want to be heard. Who had to
// wait to be accepted has said it by then, but for the handshake of TLS.
const ConnGrace = 200 * time.Millisecond

// LimitConns makes srv hold at most that many connections, each of which has grace to itself. It is called
// before srv serves, and takes srv.ConnState and srv.ConnContext.
func LimitConns(srv *http.Server, most int, grace time.Duration) *Limit {
	l := &Limit{most: most, grace: grace, conns: make(map[net.Conn]*connUse)}
	srv.ConnState = l.state
	srv.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		return context.WithValue(ctx, connKey{}, c)
	}
	return l
}

type connKey struct{}

// Serving keeps connections from being closed while h answers a request on them. It belongs around a
// handler that does not read bodies, behind the check of credentials.
func (l *Limit) Serving(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, _ := r.Context().Value(connKey{}).(net.Conn)
		l.serving(c, 1)
		defer l.serving(c, -1)
		h.ServeHTTP(w, r)
	})
}

func (l *Limit) serving(c net.Conn, n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if u := l.conns[c]; u != nil {
		u.serving += n
		u.since = time.Now()
	}
}

func (l *Limit) state(c net.Conn, s http.ConnState) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch s {
	case http.StateClosed, http.StateHijacked:
		delete(l.conns, c)
	case http.StateNew:
		l.conns[c] = &connUse{since: time.Now()}
		if len(l.conns) > l.most {
			l.makeRoom(c)
		}
	default:
		if u := l.conns[c]; u != nil {
			u.since, u.idle = time.Now(), s == http.StateIdle
		}
	}
}

// makeRoom closes a connection when there is one too many: one whose request has been coming in for
// longer than the grace, else one that has been idle for so long, the oldest of them. Otherwise it waits,
// and so do those who have not been accepted yet: if newcomers pushed out the next best, everybody would
// be pushed out before he has said anything. When nobody can go because all are being answered, the
// newcomer goes. The caller holds the lock.
func (l *Limit) makeRoom(newcomer net.Conn) {
	for began := time.Now(); len(l.conns) > l.most; {
		now := time.Now()
		var victim net.Conn
		var worst *connUse
		for c, u := range l.conns {
			if u.serving > 0 || now.Sub(u.since) < l.grace {
				continue
			}
			if worst == nil || worst.idle && !u.idle || worst.idle == u.idle && u.since.Before(worst.since) {
				victim, worst = c, u
			}
		}
		if victim == nil && now.Sub(began) > l.grace {
			victim = newcomer
		}
		if victim == nil {
			l.mu.Unlock()
			time.Sleep(min(l.grace, time.Millisecond))
			l.mu.Lock()
			continue
		}
		delete(l.conns, victim)
		// Without the word of goodbye of TLS, which would wait for a client that does not read.
		if t, ok := victim.(*tls.Conn); ok {
			victim = t.NetConn()
		}
		_ = victim.Close()
	}
}
