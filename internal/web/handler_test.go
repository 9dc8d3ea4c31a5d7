package web

import (
	"encoding/json"
	"errors"
	"flag"
	"html/template"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/version"
	"go.uber.org/goleak"

	"github.com/lag-monitor/lag-monitor/internal/monitor"
)

var update = flag.Bool("update", false, "write the golden files")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var now = time.Date(2026, 11, 20, 10, 0, 0, 0, time.UTC)

// someStatus has a row of every kind, in an order that sorting has to change.
func someStatus() monitor.Status {
	at := func(age time.Duration) time.Time { return now.Add(-age) }
	return monitor.Status{
		Instance: "eu-1", Started: now.Add(-26 * time.Hour),
		Probes: []monitor.ProbeStatus{
			{
				Name: "calm", Head: "http", Interval: 10, Timeout: 60, Labels: map[string]string{"team": "data", "channel": "#calm"},
				Sent: monitor.SentStatus{Success: 1234567}, Sinks: []monitor.PairStatus{{
					Sink: "out", OnTime: 1234560, Dropped: 7,
					Lanes: []monitor.LaneStatus{
						{Lane: 0, Seen: true, Lag: 0.0042, Last: at(4 * time.Second), Latency: 0.0042},
						{Lane: 1, Seen: true, Lag: 0.25, Last: at(5 * time.Second), Latency: 0.25},
					},
				}},
			},
			{
				Name: "new", Head: "nats", Interval: 10, Timeout: 60, PageLag: 300, Sent: monitor.SentStatus{Success: 1},
				Sinks: []monitor.PairStatus{{Sink: "out", InFlight: 1, Lanes: []monitor.LaneStatus{{Lag: 1}}}},
			},
			{
				Name: "slow", Head: "kafka", Interval: 10, Timeout: 60, PageLag: 300, Sent: monitor.SentStatus{Success: 99},
				Sinks: []monitor.PairStatus{{
					Sink: "out", OnTime: 10, Late: 2, Dropped: 80, Indeterminate: 1, InFlight: 6,
					Lanes: []monitor.LaneStatus{{Seen: true, Lag: 754, Last: at(754 * time.Second), Latency: 1.26}},
				}},
			},
			{
				Name: "refused", Head: "http", Interval: 10, Timeout: 60, PageLag: 300, Failing: true,
				Sent:      monitor.SentStatus{Success: 10, Failure: 3, Unknown: 1},
				LastError: &monitor.ErrorStatus{Error: `Post "http://stash": <refused>`, At: at(time.Second)},
				Sinks: []monitor.PairStatus{{
					Sink: "out", OnTime: 10, Lanes: []monitor.LaneStatus{{Seen: true, Lag: 31, Last: at(31 * time.Second), Latency: 0.2}},
				}},
			},
			{
				Name: "unseen", Head: "kinesis", Interval: 10, Timeout: 60, PageLag: 300, Sent: monitor.SentStatus{Success: 4},
				Sinks: []monitor.PairStatus{{Sink: "dead", InFlight: 4}},
			},
			{
				Name: "only-in", Head: "http", Interval: 10, Timeout: 60, Sent: monitor.SentStatus{Success: 5, Failure: 1},
				LastError: &monitor.ErrorStatus{Error: "long ago", At: at(time.Hour)}, Sinks: []monitor.PairStatus{},
			},
		},
		Sinks: []monitor.SinkStatus{
			{
				Name: "out", Kind: "nats", Up: true, Since: at(time.Hour), CaughtUp: at(300 * time.Millisecond),
				Messages: map[string]uint64{"heartbeat": 1234660, "other": 9999, "foreign": 1, "corrupt": 2, "future": 3},
				Errors:   map[string]uint64{"network": 1},
			},
			{
				Name: "dead", Kind: "kinesis", Messages: map[string]uint64{}, Errors: map[string]uint64{"auth": 3, "network": 2},
				LastError: &monitor.ErrorStatus{Error: "stream deferred: access denied", At: at(2 * time.Second)},
			},
		},
	}
}

func someAnswer() answer { return answer{"1.2.3", now, someStatus()} }

func newTestHandler(f *fakeSource) http.Handler {
	return newHandler(f, prometheus.NewRegistry(), slog.New(slog.DiscardHandler), Options{Profiles: true, AdminAPI: true}, 0)
}

func get(t *testing.T, h http.Handler, method, path string, header ...string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequest(method, path, nil)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func TestEndpoints(t *testing.T) {
	down := errors.New("no configuration yet")
	for _, c := range []struct {
		name, method, path string
		src                *fakeSource
		code               int
		contentType, body  string // body: a part of it
	}{
		{"healthy", "GET", "/-/healthy", &fakeSource{notReady: down}, 200, "text/plain; charset=utf-8", "healthy\n"},
		{"healthy by HEAD", "HEAD", "/-/healthy", &fakeSource{}, 200, "text/plain; charset=utf-8", ""},
		{"healthy by POST", "POST", "/-/healthy", &fakeSource{}, 405, "", ""},
		{"ready", "GET", "/-/ready", &fakeSource{}, 200, "text/plain; charset=utf-8", "ready\n"},
		{"not ready", "GET", "/-/ready", &fakeSource{notReady: down}, 503, "text/plain; charset=utf-8", "not ready: no configuration yet\n"},
		{"reload", "POST", "/-/reload", &fakeSource{}, 200, "text/plain; charset=utf-8", "reloaded\n"},
		{"reload by GET", "GET", "/-/reload", &fakeSource{}, 405, "", "Method Not Allowed"},
		{"reload by PUT", "PUT", "/-/reload", &fakeSource{}, 405, "", "Method Not Allowed"},
		{"reload fails", "POST", "/-/reload", &fakeSource{reloadErr: errors.New("a.yaml:3: no\nb.yaml:4: no")}, 500, "text/plain; charset=utf-8", "a.yaml:3: no\nb.yaml:4: no\n"},
		{"config", "GET", "/config", &fakeSource{config: "probes: {}\n"}, 200, "text/plain; charset=utf-8", "probes: {}\n"},
		{"config fails", "GET", "/config", &fakeSource{configErr: down}, 500, "text/plain; charset=utf-8", "no configuration yet\n"},
		{"config by POST", "POST", "/config", &fakeSource{}, 405, "", ""},
		{"status", "GET", "/api/v1/status", &fakeSource{status: someStatus()}, 200, "application/json", `"instance": "eu-1"`},
		{"page", "GET", "/", &fakeSource{status: someStatus()}, 200, "text/html; charset=utf-8", "<!doctype html>"},
		{"page by POST", "POST", "/", &fakeSource{}, 405, "", ""},
		{"style", "GET", "/assets/style.css", &fakeSource{}, 200, "text/css; charset=utf-8", "prefers-color-scheme: dark"},
		{"script", "GET", "/assets/app.js", &fakeSource{}, 200, "text/javascript; charset=utf-8", "EventSource"},
		{"licence", "GET", "/assets/uPlot.LICENSE", &fakeSource{}, 200, "text/plain; charset=utf-8", "The MIT License"},
		{"icon", "GET", "/assets/icon.svg", &fakeSource{}, 200, "image/svg+xml", "<svg"},
		{"unknown asset", "GET", "/assets/nothing.js", &fakeSource{}, 404, "", ""},
		{"assets are no folder", "GET", "/assets/", &fakeSource{}, 404, "", ""},
		{"not out of the folder", "GET", "/assets/..%2fhandler.go", &fakeSource{}, 404, "", ""},
		{"page as JSON", "GET", "/?format=json", &fakeSource{status: someStatus()}, 200, "application/json", `"instance": "eu-1"`},
		{"page in another format", "GET", "/?format=xml", &fakeSource{}, 400, "application/json", `unknown format \"xml\"; valid: html, json`},
		{"page in an unknown state", "GET", "/?state=ill", &fakeSource{}, 400, "text/html; charset=utf-8", "unknown state &#34;ill&#34;; valid: trouble, ticket, paused, waiting, fine"},
		{"probe", "GET", "/probes/slow", &fakeSource{status: someStatus()}, 200, "text/html; charset=utf-8", "slow is lagging: messages come out late"},
		{"probe by POST", "POST", "/probes/slow", &fakeSource{status: someStatus()}, 405, "", "Method Not Allowed"},
		{"probe as JSON", "GET", "/probes/slow?format=json", &fakeSource{status: someStatus()}, 200, "application/json", `"name": "slow"`},
		{"probe in another format", "GET", "/probes/slow?format=xml", &fakeSource{status: someStatus()}, 400, "application/json", "unknown format"},
		{"unknown probe", "GET", "/probes/slwo", &fakeSource{status: someStatus()}, 404, "text/html; charset=utf-8", `<a href="../probes/slow">slow</a>`},
		{"unknown probe, nothing like it", "GET", "/probes/zzzzzzzz", &fakeSource{status: someStatus()}, 404, "text/html; charset=utf-8", "There is no probe &#34;zzzzzzzz&#34;."},
		{"unknown probe as JSON", "GET", "/probes/slwo?format=json", &fakeSource{status: someStatus()}, 404, "application/json", `there is no probe \"slwo\" (did you mean \"slow\"?)`},
		{"no probe", "GET", "/probes/", &fakeSource{}, 303, "", ""},
		{"probes", "GET", "/api/v1/probes", &fakeSource{status: someStatus()}, 200, "application/json", `"severity": "trouble"`},
		{"probes in an unknown state", "GET", "/api/v1/probes?state=ill", &fakeSource{}, 400, "application/json", "unknown state"},
		{"sinks", "GET", "/api/v1/sinks", &fakeSource{status: someStatus()}, 200, "application/json", `"sinks"`},
		{"probe of the API", "GET", "/api/v1/probes/slow", &fakeSource{status: someStatus()}, 200, "application/json", `"mermaid": "flowchart LR`},
		{"unknown probe of the API", "GET", "/api/v1/probes/slwo", &fakeSource{status: someStatus()}, 404, "application/json", `did you mean \"slow\"?`},
		{"events of an unknown probe", "GET", "/api/v1/events?probe=slwo", &fakeSource{status: someStatus()}, 404, "application/json", `did you mean \"slow\"?`},
		{"the API's description", "GET", "/api/v1/openapi.yaml", &fakeSource{}, 200, "application/yaml; charset=utf-8", "openapi: 3.1"},
		{"status by DELETE", "DELETE", "/api/v1/status", &fakeSource{}, 405, "", "Method Not Allowed"},
		{"profiles", "GET", "/debug/pprof/", &fakeSource{}, 200, "text/html; charset=utf-8", "goroutine"},
		{"a profile", "GET", "/debug/pprof/goroutine?debug=1", &fakeSource{}, 200, "text/plain; charset=utf-8", "goroutine profile"},
		{"command line", "GET", "/debug/pprof/cmdline", &fakeSource{}, 200, "text/plain; charset=utf-8", "web.test"},
		{"unknown", "GET", "/nothing", &fakeSource{}, 404, "", ""},
		{"below the page", "GET", "/index.html", &fakeSource{}, 404, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := get(t, newTestHandler(c.src), c.method, c.path)
			if w.Code != c.code {
				t.Errorf("code %d, want %d: %s", w.Code, c.code, w.Body)
			}
			if got := w.Header().Get("Content-Type"); c.contentType != "" && got != c.contentType {
				t.Errorf("content type %q, want %q", got, c.contentType)
			}
			if !strings.Contains(w.Body.String(), c.body) {
				t.Errorf("body %q, want %q in it", w.Body, c.body)
			}
			if want := map[bool]int{true: 1}[c.path == "/-/reload" && c.method == "POST"]; c.src.reloads != want {
				t.Errorf("%d reloads, want %d", c.src.reloads, want)
			}
			for name, want := range map[string]string{
				"X-Content-Type-Options": "nosniff", "X-Frame-Options": "deny", "Referrer-Policy": "no-referrer",
			} {
				if got := w.Header().Get(name); got != want {
					t.Errorf("%s: %q, want %q", name, got, want)
				}
			}
			csp := w.Header().Get("Content-Security-Policy")
			for _, want := range []string{"default-src 'none'", "frame-ancestors 'none'"} {
				if !strings.Contains(csp, want) {
					t.Errorf("Content-Security-Policy %q is without %q", csp, want)
				}
			}
		})
	}
}

// TestNoProfilesUnlessAskedFor: they are for those who look for a fault.
func TestNoProfilesUnlessAskedFor(t *testing.T) {
	h := NewHandler(&fakeSource{status: someStatus()}, prometheus.NewRegistry(), slog.New(slog.DiscardHandler), Options{})
	for path, want := range map[string]int{
		"/debug/pprof/": 404, "/debug/pprof/heap": 404, "/debug/pprof/cmdline": 404, "/debug/pprof/profile": 404, "/debug/pprof/symbol": 404,
		"/debug/pprof/trace": 404, "/metrics": 200, "/": 200,
	} {
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, httptest.NewRequest("GET", path, nil))
		if rec.Code != want {
			t.Errorf("%s: %d, want %d", path, rec.Code, want)
		}
	}
}

func TestHealthHandlerShowsNothingElse(t *testing.T) {
	h := NewHealthHandler(&fakeSource{notReady: errors.New("starting"), status: someStatus()})
	for path, want := range map[string]int{
		"/-/healthy": 200, "/-/ready": 503, "/": 404, "/metrics": 404, "/config": 404, "/api/v1/status": 404, "/debug/pprof/": 404,
	} {
		if got := get(t, h, "GET", path).Code; got != want {
			t.Errorf("%s: %d, want %d", path, got, want)
		}
	}
	if got := get(t, h, "POST", "/-/reload").Code; got != 404 {
		t.Errorf("reload: %d, want 404", got)
	}
}

func TestReloadFromAnotherSiteIsRefused(t *testing.T) {
	for site, want := range map[string]int{"cross-site": 403, "same-origin": 200, "none": 200} {
		src := &fakeSource{}
		if got := get(t, newTestHandler(src), "POST", "/-/reload", "Sec-Fetch-Site", site).Code; got != want {
			t.Errorf("%s: %d, want %d", site, got, want)
		}
		if want := map[bool]int{true: 1}[want == 200]; src.reloads != want {
			t.Errorf("%s: %d reloads, want %d", site, src.reloads, want)
		}
	}
}

// TestReloadIsSeenAtOnce: who reloads looks at the page next.
func TestReloadIsSeenAtOnce(t *testing.T) {
	src := &fakeSource{status: someStatus()}
	h := NewHandler(src, prometheus.NewRegistry(), slog.New(slog.DiscardHandler), Options{})
	get(t, h, "GET", "/")
	src.set(func(f *fakeSource) { f.status.Probes = f.status.Probes[:1] })
	get(t, h, "POST", "/-/reload")
	if page := get(t, h, "GET", "/").Body.String(); !strings.Contains(page, "The only probe is on time") {
		t.Error("the page is from before the reload")
	}
}

func TestStatusIsJSONThatNobodyKeeps(t *testing.T) {
	w := get(t, newTestHandler(&fakeSource{status: someStatus()}), "GET", "/api/v1/status")
	if got := w.Header().Get("Cache-Control"); got != "no-store" {
		t.Errorf("Cache-Control %q, want no-store", got)
	}
	var s answer
	if err := json.Unmarshal(w.Body.Bytes(), &s); err != nil {
		t.Fatal(err)
	}
	if got := s.Probes[2].Sinks[0].Lanes[0].Lag; got != 754 {
		t.Errorf("lag %v, want 754 (seconds)", got)
	}
	if s.Now.IsZero() || s.Version == "" && version.Version != "" || s.Instance != "eu-1" {
		t.Errorf("now %v, version %q, instance %q", s.Now, s.Version, s.Instance)
	}
}

// A scraper gets the format that it asks for, and native histograms where the format can carry them.
func TestMetricsFormats(t *testing.T) {
	reg := prometheus.NewRegistry()
	h := prometheus.NewHistogram(prometheus.HistogramOpts{Name: "latency_seconds", Buckets: []float64{1}, NativeHistogramBucketFactor: 1.1})
	h.Observe(0.5)
	reg.MustRegister(h)
	handler := NewHandler(&fakeSource{}, reg, slog.New(slog.DiscardHandler), Options{})
	for accept, want := range map[string]string{
		"": "text/plain; version=0.0.4",
		"application/openmetrics-text;version=1.0.0": "application/openmetrics-text; version=1.0.0",
	} {
		w := get(t, handler, "GET", "/metrics", "Accept", accept)
		if got := w.Header().Get("Content-Type"); !strings.HasPrefix(got, want) {
			t.Errorf("accept %q: %q, want %q", accept, got, want)
		}
		if !strings.Contains(w.Body.String(), `latency_seconds_bucket{le="1`) {
			t.Errorf("accept %q: no classic buckets in %s", accept, w.Body)
		}
	}
	proto := "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited"
	w := get(t, handler, "GET", "/metrics", "Accept", proto)
	d := expfmt.NewDecoder(w.Body, expfmt.ResponseFormat(w.Header()))
	for {
		var mf dto.MetricFamily
		if err := d.Decode(&mf); err != nil {
			t.Fatal("no native histogram:", err)
		}
		if mf.GetName() == "latency_seconds" {
			if got := mf.GetMetric()[0].GetHistogram(); len(got.GetPositiveSpan()) == 0 || len(got.GetBucket()) == 0 {
				t.Errorf("histogram %v: want native and classic buckets", got)
			}
			return
		}
	}
}

// golden compares with a file of testdata, or writes it.
func golden(t *testing.T, file string, got []byte) {
	t.Helper()
	file = filepath.Join("testdata", file)
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Errorf("differs from %s (go test ./internal/web -update writes it):\n%s", file, got)
	}
}

// rendered is a page without what every request brings anew.
func rendered(t *testing.T, name string, sections []section, err error, fill func(board *board, f frame) any) []byte {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	b := &board{sections: sections, at: now}
	f := frame{
		Asset: func(name string) string { return "assets/" + name }, Version: "1.2.3", Instance: "eu-1", Up: "26h 00m",
		Now: now.Format("2006-01-02 15:04:05 UTC"), Events: "api/v1/events", Mark: "e-1", Title: "title",
	}
	html, err := render(name, fill(b, f))
	if err != nil {
		t.Fatal(err)
	}
	return []byte(html)
}

func renderList(t *testing.T, a answer, notReady error) []byte {
	t.Helper()
	p := newList(a, notReady)
	sections, err := listSections(p)
	return rendered(t, "list", sections, err, func(b *board, f frame) any {
		p.frame, p.HTML = f, func(name string) template.HTML { return template.HTML(b.html(name)) }
		return p
	})
}

func renderProbe(t *testing.T, d monitor.ProbeDetail, sinks []monitor.SinkStatus, at site) []byte {
	t.Helper()
	p := newProbe(d, sinks, at, now)
	p.Root = "../"
	sections, err := probeSections(p)
	return rendered(t, "probe", sections, err, func(b *board, f frame) any {
		f.Root = "../"
		p.frame, p.HTML = f, func(name string) template.HTML { return template.HTML(b.html(name)) }
		return p
	})
}

func TestPageGolden(t *testing.T) {
	golden(t, "page.html", renderList(t, someAnswer(), errors.New("sink dead has never been ready")))
}

func TestProbeGolden(t *testing.T) {
	st, details := scenes["lagging"](now)
	d := details["orders"]
	d.ProbeStatus = st.Probes[1]
	golden(t, "probe.html", renderProbe(t, d, st.Sinks, site{
		External: mustURL("https://lag.example.com/eu/"), Alertmanager: mustURL("https://alerts.example.com/am/"), Admin: true,
	}))
}

func mustURL(s string) *url.URL {
	u, err := url.Parse(s)
	if err != nil {
		panic(err)
	}
	return u
}

func TestPageSortsTroubleToTheTop(t *testing.T) {
	p := newList(someAnswer(), nil)
	var got []string
	for _, r := range p.Probes {
		got = append(got, r.Name+": "+r.State)
	}
	want := []string{
		"slow: lagging", "unseen: blind", "refused: refused",
		"new: waiting", "calm: on time", "only-in: injects only",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if p.Sinks[0].Name != "dead" {
		t.Errorf("first sink %q, want the blind one", p.Sinks[0].Name)
	}
	if want := "2 of 6 probes are in trouble: users feel 1, of 1 nobody can tell."; p.Text != want {
		t.Errorf("headline %q, want %q", p.Text, want)
	}
}

func TestDuration(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", 1500 * time.Microsecond: "1.5ms", 42 * time.Millisecond: "42ms", 999 * time.Millisecond: "999ms",
		59990 * time.Millisecond: "59.9s", 252 * time.Second: "4m 12s", 26 * time.Hour: "26h 00m",
		50 * time.Hour: "2d 02h", -2 * time.Second: "-2.0s",
	} {
		if got := duration(d); got != want {
			t.Errorf("%v: %q, want %q", int64(d), got, want)
		}
	}
}

func TestCount(t *testing.T) {
	for n, want := range map[uint64]string{0: "0", 999: "999", 1000: "1\u202f000", 1234567: "1\u202f234\u202f567"} {
		if got := count(n); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}

func mustOpen(t *testing.T, file string) *os.File {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}
