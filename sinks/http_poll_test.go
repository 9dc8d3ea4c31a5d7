package sinks

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/lag-monitor/lag-monitor/internal/conn"
	"github.com/lag-monitor/lag-monitor/internal/heartbeat"
)

// page is an endpoint whose answer a test sets.
type page struct {
	mu       sync.Mutex
	status   int
	body     string
	etag     string
	answers  int // polls answered since the body was set
	notAgain int // of them with 304
	last     *http.Request
}

func (p *page) set(body string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.body, p.answers = body, 0
	if p.etag != "" {
		p.etag = fmt.Sprintf("%q", fmt.Sprint(time.Now().UnixNano()))
	}
}

func (p *page) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.answers++
	p.last = r
	if p.etag != "" {
		w.Header().Set("ETag", p.etag)
		if r.Header.Get("If-None-Match") == p.etag {
			p.notAgain++
			w.WriteHeader(http.StatusNotModified)
			return
		}
	}
	if p.status != 0 {
		w.WriteHeader(p.status)
	}
	fmt.Fprint(w, p.body)
}

// show sets the answer and waits until it has been seen.
func (p *page) show(t *testing.T, tokens ...uint64) {
	t.Helper()
	var body []string
	for _, seq := range tokens {
		body = append(body, tokenOf(seq))
	}
	p.set(strings.Join(body, "\n"))
	waitUntil(t, "polled", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.answers > 1
	})
}

type polling struct {
	*taker
	feed   *Feed
	cancel context.CancelFunc
	done   chan error
}

func poll(s Sink) *polling {
	r := &taker{}
	p := &polling{taker: r, feed: NewFeed(r, nil), done: make(chan error, 1)}
	var ctx context.Context
	ctx, p.cancel = context.WithCancel(context.Background())
	go func() { p.done <- s.Run(ctx, p.feed) }()
	return p
}

func (p *polling) stop(t *testing.T) {
	t.Helper()
	p.cancel()
	if err := <-p.done; err != nil {
		t.Error(err)
	}
}

func openPoll(t *testing.T, url string, change func(*HTTPPollConfig)) Sink {
	t.Helper()
	c := NewHTTPPoll()
	c.URL = url
	c.PollInterval = conn.Duration(10 * time.Millisecond)
	change(c)
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	s, err := c.Open()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// A heartbeat counts when it appears: not while it stays, and again when it had left in between.
func TestHTTPPollCountsAppearances(t *testing.T) {
	for _, etag := range []string{"", `"first"`} {
		t.Run("etag "+etag, func(t *testing.T) {
			defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
			p := &page{etag: etag}
			s := httptest.NewServer(p)
			defer s.Close()
			p.set(tokenOf(1))
			run := poll(openPoll(t, s.URL, func(*HTTPPollConfig) {}))
			waitUntil(t, "ready", func() bool { return run.feed.Stats().Ready })
			p.show(t, 1, 2)
			p.show(t, 2, 3, 3)
			p.show(t, 3)
			p.show(t)
			p.show(t, 3, 4)
			p.show(t, 2)
			run.stop(t)
			if got, want := run.arrived(), []uint64{2, 3, 3, 4, 2}; !slices.Equal(got, want) {
				t.Errorf("arrived %v, want %v: 1 was there before, 3 and 2 left and came back", got, want)
			}
			if (etag != "") != (p.notAgain > 0) {
				t.Errorf("%d answers were 304, with ETags %t", p.notAgain, etag != "")
			}
		})
	}
}

// Between two Runs the same happens, with a gap unless the endpoint is said to keep everything.
func TestHTTPPollKeeps(t *testing.T) {
	for _, keeps := range []bool{false, true} {
		t.Run(fmt.Sprint(keeps), func(t *testing.T) {
			defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
			p := &page{}
			s := httptest.NewServer(p)
			defer s.Close()
			p.set(tokenOf(1))
			sink := openPoll(t, s.URL, func(c *HTTPPollConfig) { c.Keeps = keeps })
			first := poll(sink)
			waitUntil(t, "ready", func() bool { return first.feed.Stats().Ready })
			p.show(t, 1, 2)
			first.stop(t)
			p.set(tokenOf(2) + tokenOf(3))
			second := poll(sink)
			waitUntil(t, "arrival", func() bool { return len(second.arrived()) > 0 })
			second.stop(t)
			if got := second.arrived(); !slices.Equal(got, []uint64{3}) {
				t.Errorf("arrived %v, want 3 alone", got)
			}
			if (len(second.gaps) == 0) != keeps || len(first.gaps) != 0 {
				t.Errorf("gaps %v then %v, keeps %t", first.gaps, second.gaps, keeps)
			}
		})
	}
}

func TestHTTPPollErrors(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	p := &page{}
	s := httptest.NewServer(p)
	defer s.Close()
	bearer := secretFile(t, "secret-token")
	for _, c := range []struct {
		status int
		class  conn.Class
		body   string
	}{
		{301, conn.Other, ""}, {401, conn.Auth, "secret-token is wrong"}, {403, conn.Auth, ""}, {404, conn.Missing, ""},
		{429, conn.Throttle, ""}, {500, conn.Other, ""}, {503, conn.Network, ""}, {304, conn.Other, ""},
		{200, conn.Other, strings.Repeat("x", 5000)},
	} {
		p.status, p.body = c.status, c.body
		run := poll(openPoll(t, s.URL+"/secret-path?secret-query", func(c *HTTPPollConfig) {
			c.Auth.BearerToken = bearer
			c.MaxBody = 4000
		}))
		err := <-run.done
		run.cancel()
		if err == nil || conn.ClassOf(err) != c.class {
			t.Errorf("status %d: error %v of class %s, want %s", c.status, err, conn.ClassOf(err), c.class)
			continue
		}
		if strings.Contains(err.Error(), "secret-") {
			t.Errorf("status %d: error %q tells a secret", c.status, err)
		}
		if run.feed.Stats().Ready {
			t.Errorf("status %d: ready", c.status)
		}
		if got := p.last.Header.Get("Authorization"); got != "Bearer secret-token" {
			t.Errorf("authorization is %q", got)
		}
	}
}

// An endpoint that accepts a request and never answers is an error after the timeout.
func TestHTTPPollTimeout(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	defer s.Close()
	run := poll(openPoll(t, s.URL, func(c *HTTPPollConfig) { c.Timeout = conn.Duration(50 * time.Millisecond) }))
	defer run.cancel()
	if err := <-run.done; conn.ClassOf(err) != conn.Network {
		t.Errorf("error %v", err)
	}
}

func TestHTTPPollValidate(t *testing.T) {
	for _, c := range []struct {
		change func(*HTTPPollConfig)
		want   string
	}{
		{func(c *HTTPPollConfig) { c.URL = "" }, "url: is required"},
		{func(c *HTTPPollConfig) { c.URL = "ftp://x/" }, "url: is not of the form http://host/path or https://host/path"},
		{func(c *HTTPPollConfig) { c.PollInterval = conn.Duration(time.Minute) }, "poll_interval: is between 10ms and 10s"},
		{func(c *HTTPPollConfig) { c.Timeout = 0 }, "timeout: is positive and at most 10s"},
		{func(c *HTTPPollConfig) { c.MaxBody = 1 }, fmt.Sprintf("max_body: is between %d (one heartbeat) and 67108864 bytes", heartbeat.MaxToken)},
		{func(c *HTTPPollConfig) { c.Headers = map[string]string{"Authorization": "x"} },
			"headers.Authorization: use basic_auth, bearer_token or secret_headers, so that the secret is not in the file"},
		{func(c *HTTPPollConfig) { c.Headers = map[string]string{"X": "a\r\nb"} }, "headers.X: holds characters that a header cannot have"},
		{func(c *HTTPPollConfig) { c.TLS = &conn.TLS{KeyFile: "x"} }, "tls: cert_file and key_file go together"},
	} {
		config := NewHTTPPoll()
		config.URL = "http://out/"
		c.change(config)
		if err := config.Validate(); err == nil || err.Error() != c.want {
			t.Errorf("got %v\nwant %s", err, c.want)
		}
	}
}
