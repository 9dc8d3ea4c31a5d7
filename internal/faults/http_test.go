package faults_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/servers"
)

// httpRow is what a row has of its own: the pipeline's front end, and one of the two ways out.
type httpRow struct {
	head *httpHead
	hook *httpHook // requests to the monitor's listener
	feed *httpFeed // or a page with all messages
}

// httpRows lists what is broken where the head is a server, and the way out a request to the monitor or, with
// the variant poll, a page that it looks at.
func httpRows() []*row {
	head := func(f *field) *httpHead { return f.server.(*httpRow).head }
	hook := func(f *field) *httpHook { return f.server.(*httpRow).hook }
	feed := func(f *field) *httpFeed { return f.server.(*httpRow).feed }
	// slowly lets some be on their way when the monitor is killed, which then come while it is away.
	slowly := func(int, message) plan { return plan{copies: 1, delay: 500 * time.Millisecond} }
	killed := func(t *testing.T, f *field) {
		for range 10 {
			f.daemon.Kill()
			wait(t, 300*time.Millisecond)
			f.daemon.Start()
			wait(t, time.Second)
		}
	}
	rows := []*row{
		{
			name: "head_restart", does: "the head ends, with all connections, for 3 s",
			fault: func(t *testing.T, f *field) {
				head(f).stop()
				wait(t, 3*time.Second)
				head(f).start(t)
			},
		},
		{
			name: "head_answers", does: "by turns, with and without taking the heartbeat, the head answers 500, 502, 408, 409, 429, 404, with half an answer or none, for 10 s",
			fault: func(t *testing.T, f *field) {
				head(f).behave(badAnswers())
				wait(t, 10*time.Second)
				head(f).behave(nil)
				for what, n := range head(f).did() {
					if n == 0 {
						t.Errorf("the head has never answered %s", what)
					}
				}
			},
		},
		{
			name: "head_silent", does: "the head takes each heartbeat and answers nothing for 10 s",
			fault: func(t *testing.T, f *field) {
				head(f).behave(func(int) answer { return answer{name: "nothing", takes: true} })
				wait(t, 10*time.Second)
				head(f).behave(nil)
			},
			settles: 5 * time.Second,
		},
	}
	for _, r := range commonRows() {
		switch r.name {
		case "long_outage":
			// What comes out after more than 2,000 others is not remembered any more.
			r.does, r.interval = strings.Replace(r.does, "at 40 heartbeats", "at 20 heartbeats", 1), 50*time.Millisecond
		}
		if !r.breaks {
			rows = append(rows, r)
		}
	}
	return append(rows,
		&row{
			name: "sender_repeats", does: "for 10 s the listener's answers do not reach the sender, which repeats each delivery until one does",
			fault: func(t *testing.T, f *field) {
				f.destProxy.Set(servers.Faults{SilentDown: true})
				wait(t, 10*time.Second)
				f.destProxy.Set(servers.Faults{})
			},
		},
		&row{
			name: "credentials_rotated", does: "head and sender change to the next token; the monitor's file has it 5 s later", variant: "login",
			fault: func(t *testing.T, f *field) {
				head(f).demand("second")
				hook(f).present("second")
				wait(t, 5*time.Second)
				writeFile(t, f.secret, "second")
			},
		},
		&row{
			name: "killed_sender_gives_up", does: "the monitor, with a journal, is killed ten times and away for 0.3 s, with heartbeats half a second on their way; the sender tries each delivery once",
			anew: true, journal: true, once: true, innocent: true, plan: slowly, near: 2, fault: killed,
		},
		&row{
			name: "killed_no_journal", does: "the same without a journal", anew: true, once: true, innocent: true, plan: slowly, near: 2, fault: killed,
		},
		&row{
			name: "listener_moves", does: "reloads give the listener another port for 0.5 s, ten times; the sender tries each delivery once, at the old one",
			anew: true, journal: true, once: true, innocent: true, plan: slowly, near: 2,
			fault: func(t *testing.T, f *field) {
				other := fmt.Sprintf("listen: %q", servers.FreeAddr(t))
				for range 10 {
					f.daemon.configure(t, listens.ReplaceAllString(f.config(), other))
					f.daemon.Signal(syscall.SIGHUP)
					wait(t, 500*time.Millisecond)
					f.daemon.configure(t, f.config())
					f.daemon.Signal(syscall.SIGHUP)
					wait(t, 1500*time.Millisecond)
				}
			},
		},
		&row{
			name: "poll_refused", does: "the page cannot be reached for 10 s", variant: "poll", untold: true, innocent: true,
			fault: func(t *testing.T, f *field) {
				f.destProxy.Set(servers.Faults{Refuse: true})
				f.destProxy.Cut()
				wait(t, 10*time.Second)
				f.destProxy.Set(servers.Faults{})
			},
		},
		&row{
			name: "poll_silent", does: "the page takes connections and answers nothing for 10 s", variant: "poll", untold: true, innocent: true,
			fault: func(t *testing.T, f *field) {
				f.destProxy.Set(servers.Faults{Silent: true})
				f.destProxy.Cut()
				wait(t, 10*time.Second)
				f.destProxy.Set(servers.Faults{})
			},
		},
		&row{
			name: "poll_half_open", does: "the far end of both connections vanishes without a word", variant: "poll", untold: true, innocent: true,
			fault: func(_ *testing.T, f *field) {
				f.headProxy.HalfOpen()
				f.destProxy.HalfOpen()
			},
		},
		&row{
			name: "poll_404", does: "the page is gone (404) for 10 s", variant: "poll", untold: true, innocent: true,
			fault: func(t *testing.T, f *field) {
				feed(f).behave(func(w http.ResponseWriter) bool { http.Error(w, "no such page", http.StatusNotFound); return true })
				wait(t, 10*time.Second)
				feed(f).behave(nil)
			},
		},
		&row{
			name: "poll_slow", does: "each answer takes 1.5 s for 10 s", variant: "poll", untold: true, innocent: true,
			fault: func(t *testing.T, f *field) {
				feed(f).behave(func(http.ResponseWriter) bool { time.Sleep(1500 * time.Millisecond); return false })
				wait(t, 10*time.Second)
				feed(f).behave(nil)
			},
		},
		&row{
			name: "poll_slow_link", does: "400 ms and 20 kB/s in each direction for 10 s", variant: "poll", untold: true, innocent: true,
			fault: slowLink(400 * time.Millisecond),
		},
		&row{
			name: "poll_one_in_7_dropped", does: "1 in 7 is never shown", variant: "poll", interval: 100 * time.Millisecond, fault: relayed(200),
			plan: func(n int, _ message) plan {
				if n%7 == 0 {
					return plan{}
				}
				return forward
			},
		},
		&row{
			name: "poll_corrupt", does: "1 in 10 is shown with a byte changed", variant: "poll", interval: 100 * time.Millisecond, fault: relayed(200),
			plan: func(n int, _ message) plan {
				if n%10 == 0 {
					return plan{copies: 1, change: damage}
				}
				return forward
			},
		},
		&row{
			name: "poll_credentials_rotated", does: "head and page change to the next token; the monitor's file has it 5 s later", variant: "poll login", untold: true, innocent: true,
			fault: func(t *testing.T, f *field) {
				head(f).demand("second")
				feed(f).demand("second")
				wait(t, 5*time.Second)
				writeFile(t, f.secret, "second")
			},
		},
		&row{
			name: "poll_killed", does: "the monitor, with a journal, is killed ten times and away for 0.3 s, with heartbeats half a second on their way", variant: "poll",
			anew: true, journal: true, innocent: true, plan: slowly, near: 2, fault: killed,
		},
		&row{
			name: "poll_reload", does: "SIGHUP every 100 ms for 10 s, the sink's settings changed by turns", variant: "poll", anew: true, innocent: true, plan: slowly, near: 2,
			fault: func(t *testing.T, f *field) {
				f.reload(t, strings.Replace(f.config(), "max_body: 4194304", "max_body: 4194305", 1))
			},
		},
	)
}

var listens = regexp.MustCompile(`listen: "[^"]*"`)

// openHTTP needs no server that rows share.
func openHTTP(*testing.T, []*row) func(*testing.T, *row) *pipeline { return httpPipeline }

func httpPipeline(t *testing.T, r *row) *pipeline {
	t.Helper()
	own := &httpRow{head: newHTTPHead(t)}
	headProxy := servers.Proxy(t, own.head.addr)
	auth := ""
	if strings.Contains(r.variant, "login") {
		r.secret = filepath.Join(t.TempDir(), "token")
		writeFile(t, r.secret, "first")
		auth = fmt.Sprintf(", bearer_token: {file: %q}", r.secret)
		own.head.demand("first")
	}
	p := &pipeline{
		head: own.head, headProxy: headProxy, server: own,
		inject: fmt.Sprintf("http: {url: %q%s%s}", "http://"+headProxy.Addr+"/messages", auth, r.settings),
	}
	if strings.HasPrefix(r.variant, "poll") {
		own.feed = newHTTPFeed(t)
		p.dest, p.destProxy = own.feed, servers.Proxy(t, own.feed.addr)
		p.sink = fmt.Sprintf("http_poll: {url: %q, poll_interval: 200ms, timeout: 2s, max_body: 4194304%s}", "http://"+p.destProxy.Addr+"/latest", auth)
	} else {
		listen := servers.FreeAddr(t)
		own.hook = newHTTPHook(t, listen)
		p.dest, p.destProxy = own.hook, servers.Proxy(t, own.hook.addr)
		own.hook.url = "http://" + p.destProxy.Addr + "/"
		p.sink = fmt.Sprintf("webhook: {listen: %q, idle_timeout: 1m%s}", listen, auth)
	}
	if auth != "" {
		if own.feed != nil {
			own.feed.demand("first")
		} else {
			own.hook.present("first")
		}
	}
	return p
}

// httpServer is a server of the test that can go away and come back at its address.
type httpServer struct {
	addr    string
	handler http.Handler

	server *http.Server
	done   chan struct{}
}

func newHTTPServer(t *testing.T, h http.Handler) *httpServer {
	t.Helper()
	s := &httpServer{addr: servers.FreeAddr(t), handler: h}
	s.start(t)
	t.Cleanup(s.stop)
	return s
}

func (s *httpServer) start(t *testing.T) {
	t.Helper()
	ln, err := new(net.ListenConfig).Listen(t.Context(), "tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	server, done := &http.Server{Handler: s.handler, ReadHeaderTimeout: patience, ErrorLog: log.New(io.Discard, "", 0)}, make(chan struct{})
	s.server, s.done = server, done
	go func() {
		defer close(done)
		_ = server.Serve(ln) // until stop
	}()
}

// stop closes all connections too.
func (s *httpServer) stop() {
	s.server.Close()
	<-s.done
}

// shelf is a list of messages that only grows. It is safe for concurrent use.
type shelf struct {
	mu       sync.Mutex
	messages []message
	grown    chan struct{} // closed and replaced with each message
}

func newShelf() *shelf { return &shelf{grown: make(chan struct{})} }

func (s *shelf) add(body []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.messages = append(s.messages, message{id: fmt.Sprint(len(s.messages)), body: body, at: time.Now()})
	close(s.grown)
	s.grown = make(chan struct{})
}

// from returns the messages from the n-th on, and what is closed when there are more.
func (s *shelf) from(n int) ([]message, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.messages[n:len(s.messages):len(s.messages)], s.grown
}

// httpHead is the front end of the pipeline: it takes messages by POST.
type httpHead struct {
	*httpServer
	*shelf

	state sync.Mutex
	token string
	bad   func(n int) answer // of the n-th request
	asked int
	wrong map[string]int // how often it did what, by answer.name
}

// answer is what the head does with a request. A status of 0 is no answer: it waits until the client gives up.
type answer struct {
	name   string
	takes  bool
	status int
	breaks bool // the connection breaks after a part of the answer
}

// badAnswers does everything that a head may do wrong, by turns.
func badAnswers() func(int) answer {
	var all []answer
	for _, status := range []int{500, 502, 408, 409} {
		all = append(all, answer{fmt.Sprint(status, ", having taken it"), true, status, false}, answer{fmt.Sprint(status), false, status, false})
	}
	all = append(all, answer{"429", false, 429, false}, answer{"404", false, 404, false},
		answer{"a part of 202", true, 202, true}, answer{"a part of 503", false, 503, true}, answer{"nothing, having taken it", true, 0, false}, answer{"nothing", false, 0, false})
	return func(n int) answer { return all[n%len(all)] }
}

func newHTTPHead(t *testing.T) *httpHead {
	h := &httpHead{shelf: newShelf(), wrong: map[string]int{}}
	h.httpServer = newHTTPServer(t, http.HandlerFunc(h.serve))
	return h
}

// demand is the token that it wants from then on.
func (h *httpHead) demand(token string) {
	h.state.Lock()
	defer h.state.Unlock()
	h.token = token
}

// behave sets what it does; nil: what it should.
func (h *httpHead) behave(bad func(n int) answer) {
	h.state.Lock()
	defer h.state.Unlock()
	h.bad = bad
	for n := range 100 {
		if bad != nil {
			h.wrong[bad(n).name] += 0
		}
	}
}

// did counts what it has done wrong.
func (h *httpHead) did() map[string]int {
	h.state.Lock()
	defer h.state.Unlock()
	return maps.Clone(h.wrong)
}

func (h *httpHead) next() (answer, string) {
	h.state.Lock()
	defer h.state.Unlock()
	if h.bad == nil {
		return answer{takes: true, status: http.StatusAccepted}, h.token
	}
	a := h.bad(h.asked)
	h.asked++
	h.wrong[a.name]++
	return a, h.token
}

func (h *httpHead) serve(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // the client has gone in the middle of it
	}
	a, token := h.next()
	if token != "" && r.Header.Get("Authorization") != "Bearer "+token {
		http.Error(w, "which token?", http.StatusUnauthorized)
		return
	}
	if a.takes {
		h.add(body)
	}
	switch {
	case a.status == 0:
		<-r.Context().Done()
	case a.breaks:
		w.Header().Set("Content-Length", "1000")
		w.WriteHeader(a.status)
		_, _ = w.Write([]byte("not all of it"))
		panic(http.ErrAbortHandler)
	default:
		w.WriteHeader(a.status)
	}
}

func (h *httpHead) put(context.Context, int, []byte) error {
	return errors.New("only the monitor sends to the head")
}

func (h *httpHead) follow(ctx context.Context, f func(message)) {
	for n := 0; ctx.Err() == nil; {
		found, more := h.from(n)
		for _, m := range found {
			f(m)
		}
		n += len(found)
		select {
		case <-ctx.Done():
		case <-more:
		}
	}
}

func (h *httpHead) all(context.Context) ([]message, error) {
	found, _ := h.from(0)
	return found, nil
}

// httpHook is the way out by requests to the monitor's listener. The sender reaches it through the row's proxy;
// behind that, beside the listener, each request is written down with the listener's answer: that is what
// has come, whatever the sender knows of it.
type httpHook struct {
	*httpServer
	url    string // for the sender
	target string // the listener
	direct *http.Client
	sender *http.Client

	mu       sync.Mutex
	token    string
	attempts map[string]*attempts // by body
	order    []string             // bodies, in the order of their first answers
}

// attempts are the requests with one body that have reached the listener, for all that is known.
type attempts struct {
	first    time.Time // when the first one was passed on
	answered time.Time // when the first one was answered
	copies   int       // how many were
}

func newHTTPHook(t *testing.T, listen string) *httpHook {
	transport := func() *http.Transport {
		tr := &http.Transport{MaxIdleConnsPerHost: 4}
		t.Cleanup(tr.CloseIdleConnections)
		return tr
	}
	h := &httpHook{target: "http://" + listen + "/", attempts: map[string]*attempts{}}
	// A request that has come this far is answered some time: the monitor is only suspended at times.
	h.direct = &http.Client{Transport: transport(), Timeout: patience}
	h.sender = &http.Client{Transport: transport(), Timeout: 2 * time.Second}
	h.httpServer = newHTTPServer(t, http.HandlerFunc(h.serve))
	return h
}

// present is the token that the sender sends from then on.
func (h *httpHook) present(token string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.token = token
}

// serve passes a request on, whatever has become of its sender meanwhile.
func (h *httpHook) serve(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	req, err := http.NewRequestWithContext(context.WithoutCancel(r.Context()), http.MethodPost, h.target, bytes.NewReader(body))
	if err != nil {
		panic(err)
	}
	req.Header.Set("Authorization", r.Header.Get("Authorization"))
	began := time.Now()
	resp, err := h.direct.Do(req)
	status := http.StatusBadGateway
	if err == nil {
		status = resp.StatusCode
		resp.Body.Close()
	}
	// Where nobody listens, nothing came; and what was refused has not come either.
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "dial" || err == nil && (status < 200 || status > 299) {
		w.WriteHeader(status)
		return
	}
	h.note(string(body), began, err == nil)
	w.WriteHeader(status)
}

func (h *httpHook) note(body string, began time.Time, answered bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	a := h.attempts[body]
	if a == nil {
		a = &attempts{first: began}
		h.attempts[body] = a
	}
	if began.Before(a.first) {
		a.first = began
	}
	if !answered {
		return
	}
	if a.copies++; a.copies == 1 {
		a.answered = time.Now()
		h.order = append(h.order, body)
	}
}

func (h *httpHook) put(ctx context.Context, _ int, body []byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, h.url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	h.mu.Lock()
	if h.token != "" {
		req.Header.Set("Authorization", "Bearer "+h.token)
	}
	h.mu.Unlock()
	resp, err := h.sender.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return errors.New(resp.Status)
	}
	return nil
}

func (h *httpHook) follow(ctx context.Context, _ func(message)) { <-ctx.Done() }

// all returns a message for each copy, those of one body together.
func (h *httpHook) all(context.Context) ([]message, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var all []message
	for _, body := range h.order {
		a := h.attempts[body]
		for n := range a.copies {
			all = append(all, message{id: fmt.Sprint(n, " ", body), body: []byte(body), at: a.first, known: a.answered})
		}
	}
	for body, a := range h.attempts {
		if a.copies == 0 {
			// The monitor ended before it answered: nobody knows whether it had counted it.
			all = append(all, message{id: body, body: []byte(body), at: a.first, known: time.Now()})
		}
	}
	return all, nil
}

// httpFeed is the way out by a page that shows all messages.
type httpFeed struct {
	*httpServer
	*shelf

	state sync.Mutex
	token string
	bad   func(http.ResponseWriter) (answered bool)
	known []time.Time // when the monitor had read the n-th message for certain
	empty int         // how often the page was empty, which counts as one ordinary message
}

func newHTTPFeed(t *testing.T) *httpFeed {
	f := &httpFeed{shelf: newShelf()}
	f.httpServer = newHTTPServer(t, http.HandlerFunc(f.serve))
	return f
}

func (f *httpFeed) demand(token string) {
	f.state.Lock()
	defer f.state.Unlock()
	f.token = token
}

func (f *httpFeed) behave(bad func(http.ResponseWriter) (answered bool)) {
	f.state.Lock()
	defer f.state.Unlock()
	f.bad = bad
}

func (f *httpFeed) serve(w http.ResponseWriter, r *http.Request) {
	f.state.Lock()
	token, bad := f.token, f.bad
	// Who names the tag of an answer has read it.
	if read, err := strconv.Atoi(strings.Trim(r.Header.Get("If-None-Match"), `"`)); err == nil {
		for len(f.known) < read {
			f.known = append(f.known, time.Now())
		}
	}
	f.state.Unlock()
	if token != "" && r.Header.Get("Authorization") != "Bearer "+token {
		http.Error(w, "which token?", http.StatusUnauthorized)
		return
	}
	if bad != nil && bad(w) {
		return
	}
	found, _ := f.from(0)
	var page bytes.Buffer
	for _, m := range found {
		page.Write(m.body)
		page.WriteByte('\n')
	}
	tag := fmt.Sprintf("%q", strconv.Itoa(len(found)))
	w.Header().Set("ETag", tag)
	if r.Header.Get("If-None-Match") == tag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	if _, err := w.Write(page.Bytes()); len(found) == 0 && err == nil {
		f.state.Lock()
		defer f.state.Unlock()
		f.empty++
	}
}

func (f *httpFeed) put(_ context.Context, _ int, body []byte) error {
	f.add(body)
	return nil
}

func (f *httpFeed) follow(ctx context.Context, _ func(message)) { <-ctx.Done() }

func (f *httpFeed) all(context.Context) ([]message, error) {
	found, _ := f.from(0)
	f.state.Lock()
	defer f.state.Unlock()
	all := make([]message, 0, len(found)+f.empty)
	for i, m := range found {
		m.known = time.Now()
		if i < len(f.known) {
			m.known = f.known[i]
		}
		all = append(all, m)
	}
	for n := range f.empty {
		all = append(all, message{id: fmt.Sprint("empty ", n)})
	}
	return all, nil
}
