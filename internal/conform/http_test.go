package conform_test

import (
	"bytes"
	"fmt"
	"hash/fnv"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/conform"
	"github.com/lag-monitor/lag-monitor/internal/conn"
	"github.com/lag-monitor/lag-monitor/internal/servers"
	"github.com/lag-monitor/lag-monitor/probe"
	"github.com/lag-monitor/lag-monitor/sinks"
)

// freeAddr returns an address on loopback where nobody listens.
func freeAddr(t *testing.T) string {
	t.Helper()
	return servers.FreeAddr(t)
}

func httpTo(url string) *probe.HTTPConfig {
	c := probe.NewHTTP()
	c.URL = probe.MustTemplate(url)
	return c
}

// webhook is a head that is the destination too: the injector posts to the sink's listener.
func webhook() conform.Harness {
	return conform.Harness{
		Kind: "webhook", InjectKind: "http",
		InjectorNeeds: []string{"url"}, SinkNeeds: []string{"listen"},
		New: func(t *testing.T) conform.Pipeline {
			addr, nobody := freeAddr(t), "http://"+freeAddr(t)+"/"
			url := "http://" + addr + "/beats"
			taken := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(http.StatusUnauthorized)
			}))
			t.Cleanup(taken.Close)
			sink := func(listen string) func() sinks.Config {
				return func() sinks.Config {
					c := sinks.NewWebhook()
					c.Listen, c.Path = listen, "/beats"
					return c
				}
			}
			return conform.Pipeline{
				Inject: func() probe.Config { return httpTo(url) },
				Sink:   sink(addr),
				Put: func(t *testing.T, bodies ...[]byte) {
					for _, b := range bodies {
						resp, err := http.Post(url, "text/plain", bytes.NewReader(b))
						if err != nil {
							t.Error(err)
							return
						}
						resp.Body.Close()
						if resp.StatusCode != http.StatusNoContent {
							t.Errorf("put: %s", resp.Status)
						}
					}
					http.DefaultClient.CloseIdleConnections()
				},
				Exclusive: true,
				Broken: []conform.Broken{
					{Name: "nobody listens", Inject: func() probe.Config { return httpTo(nobody) }, Class: conn.Network},
					{Name: "wrong credentials", Inject: func() probe.Config { return httpTo(taken.URL) }, Class: conn.Auth, Unseen: true},
					{Name: "address in use", Sink: sink(taken.Listener.Addr().String()), Class: conn.Network, Unseen: true},
				},
			}
		},
	}
}

// board is a service that shows the last messages that were posted to it.
type board struct {
	addr string

	mu    sync.Mutex
	shown [][]byte
	hung  chan struct{}
	srv   *http.Server
}

// boardSize is more than what one check puts in within a poll.
const boardSize = 2000

func (b *board) add(body []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.shown = append(b.shown, body)
	b.shown = b.shown[max(0, len(b.shown)-boardSize):]
}

func (b *board) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	b.mu.Lock()
	hung := b.hung
	b.mu.Unlock()
	if hung != nil {
		select {
		case <-hung:
		case <-r.Context().Done():
			return
		}
	}
	if r.Method == http.MethodPost {
		b.add(body)
		return
	}
	b.mu.Lock()
	text := bytes.Join(b.shown, []byte("\n"))
	b.mu.Unlock()
	h := fnv.New64a()
	h.Write(text)
	etag := fmt.Sprintf(`"%x"`, h.Sum64())
	w.Header().Set("ETag", etag)
	if r.Header.Get("If-None-Match") == etag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	w.Write(text)
}

func (b *board) start(t *testing.T) {
	ln, err := net.Listen("tcp", b.addr)
	if err != nil {
		t.Error(err)
		return
	}
	b.addr = ln.Addr().String()
	b.srv = &http.Server{Handler: b}
	go b.srv.Serve(ln)
}

func (b *board) hang() (release func()) {
	hung := make(chan struct{})
	b.mu.Lock()
	b.hung = hung
	b.mu.Unlock()
	return func() {
		b.mu.Lock()
		b.hung = nil
		b.mu.Unlock()
		close(hung)
	}
}

func httpPoll() conform.Harness {
	return conform.Harness{
		Kind: "http_poll", InjectKind: "http",
		InjectorNeeds: []string{"url"}, SinkNeeds: []string{"url"},
		New: func(t *testing.T) conform.Pipeline {
			b := &board{addr: "127.0.0.1:0"}
			b.start(t)
			t.Cleanup(func() { b.srv.Close() })
			status := func(code int) string {
				s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }))
				t.Cleanup(s.Close)
				return s.URL
			}
			poll := func(url string) func() sinks.Config {
				return func() sinks.Config {
					c := sinks.NewHTTPPoll()
					c.URL = url
					c.PollInterval = conn.Duration(20 * time.Millisecond)
					return c
				}
			}
			url := "http://" + b.addr + "/"
			nobody := "http://" + freeAddr(t) + "/"
			return conform.Pipeline{
				Inject: func() probe.Config { return httpTo(url) },
				Sink:   poll(url),
				Put: func(_ *testing.T, bodies ...[]byte) {
					for _, body := range bodies {
						b.add(body)
					}
				},
				Snapshots: true,
				Stop:      func() { b.srv.Close() },
				Start:     func() { b.start(t) },
				Hang:      b.hang,
				Broken: []conform.Broken{
					{Name: "nobody listens", Sink: poll(nobody), Class: conn.Network},
					{Name: "wrong credentials", Sink: poll(status(403)), Class: conn.Auth},
					{Name: "no such path", Sink: poll(status(404)), Class: conn.Missing},
					{Name: "too many requests", Sink: poll(status(429)), Class: conn.Throttle},
					{Name: "gateway", Sink: poll(status(502)), Inject: func() probe.Config { return httpTo(status(502)) },
						Class: conn.Network, Unseen: true, Unknown: true},
				},
			}
		},
	}
}
