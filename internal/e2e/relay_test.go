package e2e_test

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/servers"
)

// relay is a pipeline: an HTTP front end that accepts messages, and a worker that puts them into the
// destination queue in the same order, again and again until the queue has taken them.
type relay struct {
	url  string
	head *servers.FaultProxy // in front of the front end: heads that refuse connections

	put    func(context.Context, []byte) error
	copies func(n int) int // how often the n-th accepted message, counted from 1, comes out
	limit  int             // messages accepted before the front end answers 429; 0: no limit

	mu        sync.Mutex
	changed   *sync.Cond
	waiting   [][]byte // accepted, not in the queue yet
	held      bool
	putting   bool // the worker is talking to the queue
	ended     bool
	accepted  int
	delivered int
}

// startRelay starts a pipeline into the queue behind put. A change sets limit or copies.
func startRelay(t *testing.T, put func(context.Context, []byte) error, change ...func(*relay)) *relay {
	t.Helper()
	r := &relay{put: put, copies: func(int) int { return 1 }}
	r.changed = sync.NewCond(&r.mu)
	for _, f := range change {
		f(r)
	}
	server := httptest.NewServer(r)
	r.head = servers.Proxy(t, strings.TrimPrefix(server.URL, "http://"))
	r.url = "http://" + r.head.Addr + "/messages"
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.work(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		r.set(func() { r.ended = true })
		<-done
		server.CloseClientConnections()
		server.Close()
	})
	return r
}

// ServeHTTP accepts a message.
func (r *relay) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(req.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.limit > 0 && r.accepted >= r.limit {
		http.Error(w, "enough", http.StatusTooManyRequests)
		return
	}
	r.accepted++
	for range r.copies(r.accepted) {
		r.waiting = append(r.waiting, body)
	}
	r.changed.Broadcast()
	w.WriteHeader(http.StatusAccepted)
}

func (r *relay) work(ctx context.Context) {
	for {
		r.mu.Lock()
		for (r.held || len(r.waiting) == 0) && !r.ended {
			r.changed.Wait()
		}
		if r.ended {
			r.mu.Unlock()
			return
		}
		body := r.waiting[0]
		r.putting = true
		r.mu.Unlock()
		attempt, done := context.WithTimeout(ctx, 5*time.Second)
		err := r.put(attempt, body)
		done()
		r.set(func() {
			r.putting = false
			if err == nil {
				r.waiting = r.waiting[1:]
				r.delivered++
			}
		})
		if err != nil {
			select {
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
		}
	}
}

func (r *relay) set(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
	r.changed.Broadcast()
}

// hold stops the worker, while the front end goes on accepting. It returns when no message is half-way
// between the two.
func (r *relay) hold() {
	r.set(func() {
		r.held = true
		for r.putting {
			r.changed.Wait()
		}
	})
}

// resume lets the worker go on.
func (r *relay) resume() { r.set(func() { r.held = false }) }

// refuse lets the front end answer 429 from now on.
func (r *relay) refuse() { r.set(func() { r.limit = max(r.accepted, 1) }) }

// counts returns how many messages were accepted, and how many have been put into the queue.
func (r *relay) counts() (accepted, delivered int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.accepted, r.delivered
}
