package web

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/lag-monitor/lag-monitor/internal/monitor"
)

// event is one server-sent event.
type event struct{ name, id, data string }

func (e event) changes(t *testing.T) (ids []string, gone []string) {
	t.Helper()
	var c changes
	if err := json.Unmarshal([]byte(e.data), &c); err != nil {
		t.Fatalf("%v: %s", err, e.data)
	}
	for _, s := range c.Sections {
		ids = append(ids, s.ID)
	}
	slices.Sort(ids)
	slices.Sort(c.Gone)
	return ids, c.Gone
}

// pipeWriter is a ResponseWriter whose events a test reads one by one, without a network, so that the time can
// be the one of synctest.
type pipeWriter struct {
	header http.Header
	code   int
	text   strings.Builder
	events chan event
}

func newPipeWriter() *pipeWriter {
	return &pipeWriter{header: make(http.Header), events: make(chan event, 1000)}
}

func (w *pipeWriter) Header() http.Header              { return w.header }
func (w *pipeWriter) WriteHeader(code int)             { w.code = code }
func (w *pipeWriter) Write(b []byte) (int, error)      { return w.text.Write(b) }
func (w *pipeWriter) SetReadDeadline(time.Time) error  { return nil }
func (w *pipeWriter) SetWriteDeadline(time.Time) error { return nil }
func (w *pipeWriter) Flush() {
	for _, block := range strings.Split(w.text.String(), "\n\n") {
		var e event
		for _, line := range strings.Split(block, "\n") {
			key, value, _ := strings.Cut(line, ": ")
			switch key {
			case "event":
				e.name = value
			case "id":
				e.id = value
			case "data":
				e.data = value
			}
		}
		if e.name != "" {
			w.events <- e
		}
	}
	w.text.Reset()
}

// listen begins a stream and returns its events, and what ends it and waits for that.
func listen(t *testing.T, h http.Handler, target string, header ...string) (<-chan event, func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	w, done := newPipeWriter(), make(chan struct{})
	r := httptest.NewRequestWithContext(ctx, "GET", target, nil)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	go func() {
		defer close(done)
		defer close(w.events)
		h.ServeHTTP(w, r)
	}()
	return w.events, func() { cancel(); <-done }
}

func streamed(src Source) http.Handler {
	return NewHandler(src, prometheus.NewRegistry(), slog.New(slog.DiscardHandler), Options{AdminAPI: true})
}

// next returns the next event within limit.
func next(t *testing.T, events <-chan event, limit time.Duration) (event, bool) {
	t.Helper()
	select {
	case e, ok := <-events:
		return e, ok
	case <-time.After(limit):
		return event{}, false
	}
}

func TestStreamSendsWhatChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st, details := pipelines(time.Now(), "fine")
		st.Sinks = nil // their ages change each second
		src := &fakeSource{status: st, details: details}
		events, end := listen(t, streamed(src), "/api/v1/events")
		defer end()

		e, _ := next(t, events, time.Second)
		ids, _ := e.changes(t)
		if want := []string{"headline", "notready", "p-mail", "p-orders", "p-stash-deferred"}; e.name != "update" || !slices.Equal(ids, want) {
			t.Fatalf("first %s: %q, want %q", e.name, ids, want)
		}
		if e, ok := next(t, events, quiet-time.Second); ok {
			t.Errorf("%v though nothing has changed", e)
		}
		if e, ok := next(t, events, 2*time.Second); !ok || e.name != "tick" {
			t.Errorf("%v, %v; want a tick after %v", e, ok, quiet)
		}
		src.set(func(f *fakeSource) {
			f.status.Probes = slices.Clone(f.status.Probes)
			f.status.Probes[0].Failing, f.status.Probes[0].LastError = true, &monitor.ErrorStatus{Error: "<no>", At: time.Now()}
		})
		e, _ = next(t, events, 2*time.Second)
		if ids, gone := e.changes(t); !slices.Equal(ids, []string{"headline", "p-mail"}) || len(gone) > 0 {
			t.Errorf("changed %q, gone %q", ids, gone)
		}
		if strings.Contains(e.data, "<no>") || !strings.Contains(e.data, "&lt;no&gt;") {
			t.Errorf("not escaped: %s", e.data)
		}
		src.set(func(f *fakeSource) { f.status.Probes = f.status.Probes[:2] })
		e, _ = next(t, events, 2*time.Second)
		if ids, gone := e.changes(t); !slices.Equal(ids, []string{"headline"}) || !slices.Equal(gone, []string{"p-stash-deferred"}) {
			t.Errorf("changed %q, gone %q", ids, gone)
		}

	})
}

func TestStreamGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st, details := pipelines(time.Now(), "fine")
		st.Sinks = nil
		src := &fakeSource{status: st, details: details}
		h := streamed(src)
		page := get(t, h, "GET", "/").Body.String()
		_, page, _ = strings.Cut(page, `data-mark="`)
		mark, _, _ := strings.Cut(page, `"`)
		time.Sleep(2 * time.Second)
		src.set(func(f *fakeSource) { f.status.Probes = slices.Clone(f.status.Probes[1:]) })
		// Who was away gets what he has missed and nothing else; the header is of the later word.
		for _, how := range [][]string{{"/api/v1/events?since=" + mark}, {"/api/v1/events?since=x-1", "Last-Event-ID", mark}} {
			events, end := listen(t, h, how[0], how[1:]...)
			e, _ := next(t, events, time.Second)
			if ids, gone := e.changes(t); !slices.Equal(ids, []string{"headline"}) || !slices.Equal(gone, []string{"p-mail"}) {
				t.Errorf("%q: changed %q, gone %q", how, ids, gone)
			}
			end()
		}
		// A mark of another process, or of nobody: what the reader sees is of the past.
		for _, m := range []string{"x-1", "x", "%20", mark + "x", strings.Split(mark, "-")[0]} {
			events, end := listen(t, h, "/api/v1/events?since="+m)
			if e, _ := next(t, events, time.Second); e.name != "reload" {
				t.Errorf("%s: %v", m, e)
			}
			end()
		}
	})
}

func TestStreamOfAProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st, details := pipelines(time.Now(), "fine")
		src := &fakeSource{status: st, details: details}
		events, end := listen(t, streamed(src), "/api/v1/events?probe=orders")
		defer end()
		e, _ := next(t, events, time.Second)
		want := []string{"accounts", "config", "diagram", "errors", "facts", "health", "history", "limits", "pause", "strip", "verdict"}
		if ids, _ := e.changes(t); !slices.Equal(ids, want) {
			t.Errorf("first %q, want %q", ids, want)
		}
		src.set(func(f *fakeSource) { f.status.Probes = f.status.Probes[:1] })
		for range 3 { // ages have changed meanwhile
			if e, _ = next(t, events, 3*time.Second); e.name != "update" {
				break
			}
		}
		if e.name != "gone" {
			t.Errorf("%v, want gone", e)
		}
		if _, ok := <-events; ok {
			t.Error("goes on after the end")
		}
	})
}

// When a thousand rows change each second, a reader gets them less often, and all of them.
func TestStreamIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := &fakeSource{}
		stop := make(chan struct{})
		defer close(stop)
		go func() {
			for n := 1.0; ; n++ {
				st := thousand(time.Now())
				for i := range st.Probes {
					st.Probes[i].Sinks[0].Lag = n
				}
				src.set(func(f *fakeSource) { f.status = st })
				select {
				case <-time.After(time.Second):
				case <-stop:
					return
				}
			}
		}()
		time.Sleep(time.Millisecond)
		events, end := listen(t, streamed(src), "/api/v1/events")
		defer end()
		sum, began := 0, time.Now()
		for time.Since(began) < time.Minute {
			if e, ok := next(t, events, time.Minute); ok {
				sum += len(e.data)
			}
		}
		rate := float64(sum) / time.Since(began).Seconds()
		if rate > 1.5*flow {
			t.Errorf("%.0f bytes a second, of which %d are allowed", rate, flow)
		}
		if rate < flow/4 {
			t.Errorf("only %.0f bytes a second: the test sees nothing", rate)
		}
	})
}

func TestStreamHasSoManyReaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := streamed(&fakeSource{status: someStatus()})
		var ends []func()
		for range maxSubscribers {
			events, end := listen(t, h, "/api/v1/events")
			if e, ok := next(t, events, time.Second); !ok || e.name != "update" {
				t.Fatal(e, ok)
			}
			ends = append(ends, end)
		}
		w := get(t, h, "GET", "/api/v1/events")
		if w.Code != 503 || w.Header().Get("Retry-After") == "" || !strings.Contains(w.Body.String(), "64 readers") {
			t.Errorf("one too many: %d %v %s", w.Code, w.Header(), w.Body)
		}
		ends[0]()
		events, end := listen(t, h, "/api/v1/events")
		if e, ok := next(t, events, time.Second); !ok || e.name != "update" {
			t.Error("a place is free and cannot be had:", e, ok)
		}
		for _, f := range append(ends[1:], end) {
			f()
		}
	})
}

// TestBoardsAreBounded: whoever asks for one page after the other does not fill the memory.
func TestBoardsAreBounded(t *testing.T) {
	l := newBoards(time.Second)
	at := now
	for i := range 3 * maxBoards {
		at = at.Add(time.Millisecond)
		_, ok, err := l.get(fmt.Sprint("probe ", i), at, func() ([]section, any, bool, error) { return []section{{ID: "a"}}, nil, true, nil })
		if !ok || err != nil {
			t.Fatal(ok, err)
		}
		if _, _, err := l.get("", at, func() ([]section, any, bool, error) { return nil, nil, true, nil }); err != nil {
			t.Fatal(err)
		}
	}
	if len(l.all) > maxBoards {
		t.Errorf("%d boards, want %d at most", len(l.all), maxBoards)
	}
	if l.all[""] == nil {
		t.Error("the one that was used a moment ago is gone")
	}
	if _, ok, _ := l.get("probe none", at, func() ([]section, any, bool, error) { return nil, nil, false, nil }); ok || l.all["probe none"] != nil {
		t.Error("what does not exist is kept")
	}
}

// TestStreamOnAServer: the limits of ordinary requests do not end a stream, and the end of the server does.
func TestStreamOnAServer(t *testing.T) {
	addr := freeAddress(t)
	st, details := pipelines(time.Now(), "fine") // ages change each second
	s := NewServer(streamed(&fakeSource{status: st, details: details}), webFlags(addr, ""), slog.New(slog.DiscardHandler))
	s.http.ReadTimeout, s.http.WriteTimeout = 300*time.Millisecond, 300*time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	listening, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- s.Run(ctx, func() { close(listening) }) }()
	<-listening
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport}).Get("http://" + addr + "/api/v1/events")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if got := resp.Header.Get("Content-Type"); got != "text/event-stream" {
		t.Fatal(got)
	}
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	updates := 0
	for began := time.Now(); updates < 3 && lines.Scan(); { // a second apart
		if lines.Text() == "event: update" {
			updates++
		}
		if time.Since(began) > time.Minute {
			t.Fatal("no three updates in a minute")
		}
	}
	if updates < 3 {
		t.Fatalf("the stream ended after %d updates: %v", updates, lines.Err())
	}
	cancel()
	for lines.Scan() {
		continue
	}
	// A stream that the server had to cut off at last would end in the middle of its encoding.
	if err := lines.Err(); err != nil {
		t.Errorf("the stream did not end by itself: %v", err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestEventsAddressOfEachPage(t *testing.T) {
	h := streamed(&fakeSource{status: someStatus()})
	for path, want := range map[string]string{"/": "api/v1/events", "/probes/slow": "api/v1/events?probe=" + url.QueryEscape("slow")} {
		if page := get(t, h, "GET", path).Body.String(); !strings.Contains(page, `data-events="`+want+`"`) {
			t.Errorf("%s does not name %s", path, want)
		}
	}
}
