package tracing

import (
	"context"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	collectorpb "go.opentelemetry.io/proto/slim/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/slim/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/slim/otlp/trace/v1"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"github.com/lag-monitor/lag-monitor/internal/conn"
	"github.com/lag-monitor/lag-monitor/internal/heartbeat"
	"github.com/lag-monitor/lag-monitor/internal/servers"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newCollector(t *testing.T, answer func(n int, w http.ResponseWriter, r *http.Request) bool) *servers.OTLPServer {
	c := servers.OTLP(t)
	c.Answer = answer
	return c
}

func open(t *testing.T, endpoint string, change ...func(*OTLP)) *Receiver {
	t.Helper()
	o := NewOTLP()
	o.Endpoint = endpoint
	for _, f := range change {
		f(o)
	}
	if err := o.Validate(); err != nil {
		t.Fatal(err)
	}
	r, err := o.Open("here", "1.2.3")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.client.CloseIdleConnections)
	return r
}

// sample is a heartbeat that was lost behind its first station.
func sample() *Heartbeat {
	h := heartbeat.Heartbeat{Probe: "orders", Instance: 1, Epoch: 2, Lane: 3, Seq: 4}
	sent := time.Unix(1_700_000_000, 0)
	return &Heartbeat{Trace: h.Trace(), Probe: h.Probe, Labels: map[string]string{"team": "data"}, Instance: 1, Epoch: 2, Lane: 3, Seq: 4,
		Sent: sent, Expiry: 5 * time.Second,
		Injection: &Injection{Kind: "http", Took: 20 * time.Millisecond, Result: "success"},
		Stations: []Station{
			{Sink: "mid", Kind: "kafka", Role: "hop", From: "head", Left: sent, At: sent.Add(5100 * time.Millisecond), Outcome: OnTime, Latency: 100 * time.Millisecond, Arrived: true},
			{Sink: "out", Kind: "nats", Role: "destination", From: "mid", Left: sent.Add(5100 * time.Millisecond), At: sent.Add(65 * time.Second), Outcome: Dropped, Reason: "timeout"},
		}}
}

// tell writes spans as lines: who hangs below whom, when, and what is said.
func tell(spans []*tracepb.Span, sent time.Time) string {
	names := map[string]string{}
	for _, s := range spans {
		names[string(s.GetSpanId())] = s.GetName() + value(s, "lag_monitor.sink")
	}
	var b strings.Builder
	for _, s := range spans {
		fmt.Fprintf(&b, "%s%s", s.GetName(), value(s, "lag_monitor.sink"))
		if len(s.GetParentSpanId()) > 0 {
			fmt.Fprintf(&b, " below %s", names[string(s.GetParentSpanId())])
		}
		at := func(ns uint64) time.Duration { return time.Unix(0, int64(ns)).Sub(sent) }
		fmt.Fprintf(&b, " %s %v-%v flags=%x", strings.TrimPrefix(s.GetKind().String(), "SPAN_KIND_"), at(s.GetStartTimeUnixNano()), at(s.GetEndTimeUnixNano()), s.GetFlags())
		for _, a := range s.GetAttributes() {
			fmt.Fprintf(&b, " %s=%s", strings.TrimPrefix(a.GetKey(), "lag_monitor."), plain(a.GetValue()))
		}
		if st := s.GetStatus(); st != nil {
			fmt.Fprintf(&b, " %s %q", strings.TrimPrefix(st.GetCode().String(), "STATUS_CODE_"), st.GetMessage())
		}
		b.WriteString("\n")
	}
	return b.String()
}

func value(s *tracepb.Span, key string) string {
	for _, a := range s.GetAttributes() {
		if a.GetKey() == key {
			return " " + a.GetValue().GetStringValue()
		}
	}
	return ""
}

func plain(v *commonpb.AnyValue) string {
	switch v := v.GetValue().(type) {
	case *commonpb.AnyValue_StringValue:
		return v.StringValue
	case *commonpb.AnyValue_IntValue:
		return fmt.Sprint(v.IntValue)
	case *commonpb.AnyValue_DoubleValue:
		return fmt.Sprint(v.DoubleValue)
	}
	return "?"
}

const lostStory = `heartbeat INTERNAL 0s-1m5s flags=101 probe=orders lane=3 seq=4 epoch=0000000000000002 instance=0000000000000001 due=2023-11-14T22:13:25Z expiry_seconds=5 outcome=dropped result=success label.team=data ERROR "dropped between mid and out: timeout"
inject below heartbeat CLIENT 0s-20ms flags=101 probe=orders head.kind=http result=success
arrive mid below heartbeat CONSUMER 0s-5.1s flags=101 probe=orders sink=mid sink.kind=kafka sink.role=hop from=head outcome=on_time latency_seconds=0.1
arrive out below heartbeat CONSUMER 5.1s-1m5s flags=101 probe=orders sink=out sink.kind=nats sink.role=destination from=mid outcome=dropped reason=timeout ERROR "dropped between mid and out: timeout"
`

// What goes over the wire is one trace: the ids, the tree, the times and the errors.
func TestUpload(t *testing.T) {
	c := newCollector(t, nil)
	c.Start()
	h := sample()
	r := open(t, c.URL, func(o *OTLP) {
		o.Headers, o.Resource = map[string]string{"X-Scope-OrgID": "monitoring"}, map[string]string{"deployment.environment.name": "prod"}
	})
	if _, err := r.upload(t.Context(), []*Heartbeat{h}); err != nil {
		t.Fatal(err)
	}
	spans := c.Spans()
	if got := tell(spans, h.Sent); got != lostStory {
		t.Errorf("got\n%s\nwant\n%s", got, lostStory)
	}
	ids := map[string]bool{}
	for _, s := range spans {
		if string(s.GetTraceId()) != string(h.Trace.ID[:]) || len(s.GetSpanId()) != 8 || ids[string(s.GetSpanId())] {
			t.Errorf("the span %s has the ids %x, %x", s.GetName(), s.GetTraceId(), s.GetSpanId())
		}
		ids[string(s.GetSpanId())] = true
	}
	if string(spans[0].GetSpanId()) != string(h.Trace.Root[:]) || string(spans[1].GetSpanId()) != string(h.Trace.Injection[:]) {
		t.Error("root and injection do not have the ids of the heartbeat")
	}
	if parent := strings.Split(h.Trace.Parent(true), "-"); parent[1] != hex.EncodeToString(spans[1].GetTraceId()) || parent[2] != hex.EncodeToString(spans[1].GetSpanId()) {
		t.Errorf("what is made of the traceparent %v does not hang below the injection", parent)
	}
	var resource []string
	for _, a := range c.Resources()[0].GetResource().GetAttributes() {
		resource = append(resource, a.GetKey()+"="+plain(a.GetValue()))
	}
	if got, want := fmt.Sprint(resource), "[deployment.environment.name=prod service.instance.id=here service.name=lag-monitor service.version=1.2.3]"; got != want {
		t.Errorf("resource %s, want %s", got, want)
	}
	if r := c.Requests()[0]; r.URL.Path != "/v1/traces" || r.Header.Get("X-Scope-OrgID") != "monitoring" || r.Header.Get("User-Agent") != conn.UserAgent {
		t.Errorf("%s with %v", r.URL, r.Header)
	}
}

func TestOutcomes(t *testing.T) {
	for name, c := range map[string]struct {
		change  func(*Heartbeat)
		outcome Outcome
		status  string
	}{
		"on time":       {func(h *Heartbeat) { h.Stations = h.Stations[:1] }, OnTime, ""},
		"dropped":       {func(*Heartbeat) {}, Dropped, "dropped between mid and out: timeout"},
		"indeterminate": {func(h *Heartbeat) { h.Stations[1].Outcome = Indeterminate }, Indeterminate, ""},
		"in flight":     {func(h *Heartbeat) { h.Stations[1].Outcome = InFlight }, InFlight, ""},
		"refused": {func(h *Heartbeat) {
			h.Stations, h.Injection = nil, &Injection{Result: "failure", Error: "status 503"}
		}, NotSent, "the head refused it: status 503"},
		"only injected": {func(h *Heartbeat) { h.Stations = nil }, OnTime, ""},
		"unknown":       {func(h *Heartbeat) { h.Stations, h.Injection.Result = nil, "unknown" }, Indeterminate, ""},
		"control characters": {func(h *Heartbeat) {
			h.Stations, h.Injection = nil, &Injection{Result: "failure", Error: "a\nb\x00\xffc" + strings.Repeat("x", 5000)}
		}, NotSent, "the head refused it: a b c" + strings.Repeat("x", 1000)[:1000-len("the head refused it: a\nb\x00\xffc")] + "…"},
	} {
		t.Run(name, func(t *testing.T) {
			h := sample()
			c.change(h)
			root := h.spans(nil, 1)[0]
			if h.Outcome() != c.outcome || root.GetStatus().GetMessage() != c.status || (root.GetStatus().GetCode() == tracepb.Status_STATUS_CODE_ERROR) != (c.status != "") {
				t.Errorf("%s, %v", h.Outcome(), root.GetStatus())
			}
			if _, err := proto.Marshal(root); err != nil {
				t.Error(err)
			}
		})
	}
}

// A part that is told later hangs below a root that is told elsewhere, under an id of its own.
func TestPart(t *testing.T) {
	h := sample()
	whole := h.spans(nil, 1)
	late := *h
	late.Injection, late.Stations = nil, []Station{{Sink: "out", Left: h.Sent.Add(time.Hour), At: h.Sent.Add(time.Minute), Outcome: Late, Arrived: true}}
	part := late.spans(nil, 1)
	if len(part) != 1 || string(part[0].GetParentSpanId()) != string(h.Trace.Root[:]) || string(part[0].GetSpanId()) == string(whole[3].GetSpanId()) {
		t.Errorf("%v", part)
	}
	if part[0].GetStartTimeUnixNano() > part[0].GetEndTimeUnixNano() {
		t.Error("clocks that differ make a span that ends before it begins")
	}
	if value(part[0], "lag_monitor.epoch") == "" {
		t.Error("nobody can say whose part it is")
	}
	if again := late.spans(nil, 2); string(again[0].GetSpanId()) == string(part[0].GetSpanId()) {
		t.Error("two monitors that listen at the same place use the same id")
	}
}

func TestUploadTriesAgain(t *testing.T) {
	c := newCollector(t, func(n int, w http.ResponseWriter, _ *http.Request) bool {
		if n > 2 {
			return false
		}
		w.Header().Set("Retry-After", "1")
		w.WriteHeader(map[int]int{1: http.StatusServiceUnavailable, 2: http.StatusTooManyRequests}[n])
		return true
	})
	c.Start()
	began := time.Now()
	if _, err := open(t, c.URL).upload(t.Context(), []*Heartbeat{sample()}); err != nil || len(c.Requests()) != 3 || len(c.Spans()) != 4 {
		t.Errorf("%v after %d requests, %d spans", err, len(c.Requests()), len(c.Spans()))
	}
	if took := time.Since(began); took < 2*time.Second {
		t.Errorf("twice Retry-After: 1 were over in %v", took)
	}
}

func TestUploadFails(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(secret, []byte("s3cr3t-token\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		answer func(int, http.ResponseWriter, *http.Request) bool
		want   string
	}{
		"refused": {func(_ int, w http.ResponseWriter, r *http.Request) bool {
			http.Error(w, "who is "+r.Header.Get("Authorization")+"?", http.StatusUnauthorized)
			return true
		}, `status 401 Unauthorized: "who is <secret>?"`},
		"redirected": {func(_ int, w http.ResponseWriter, r *http.Request) bool {
			http.Redirect(w, r, "http://127.0.0.1:1/", http.StatusFound)
			return true
		}, `status 302 Found`},
		"some rejected": {func(_ int, w http.ResponseWriter, _ *http.Request) bool {
			b, _ := proto.Marshal(&collectorpb.ExportTraceServiceResponse{PartialSuccess: &collectorpb.ExportTracePartialSuccess{RejectedSpans: 3, ErrorMessage: "too old, s3cr3t-token"}})
			_, _ = w.Write(b)
			return true
		}, `3 spans were rejected: "too old, <secret>"`},
	} {
		t.Run(name, func(t *testing.T) {
			s := newCollector(t, c.answer)
			s.Start()
			r := open(t, s.URL, func(o *OTLP) { o.Auth.BearerToken = conn.Secret{File: secret} })
			_, err := r.upload(t.Context(), []*Heartbeat{sample()})
			if want := "POST " + s.URL + ": " + c.want; err == nil || !strings.HasPrefix(err.Error(), want) || len(s.Requests()) != 1 {
				t.Errorf("%v after %d requests, want %s", err, len(s.Requests()), want)
			}
			if got := s.Requests()[0].Header.Get("Authorization"); got != "Bearer s3cr3t-token" {
				t.Errorf("Authorization: %s", got)
			}
		})
	}
}

func TestCheckAndTLS(t *testing.T) {
	c := newCollector(t, nil)
	c.StartTLS()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := open(t, c.URL+"/otlp/traces", func(o *OTLP) { o.TLS = &conn.TLS{CAFile: ca} }).Check(t.Context()); err != nil {
		t.Error(err)
	}
	if r := c.Requests(); len(r) != 1 || r[0].URL.Path != "/otlp/traces" || len(c.Spans()) != 0 {
		t.Errorf("%d requests, %d spans", len(r), len(c.Spans()))
	}
	if err := open(t, c.URL).Check(t.Context()); err == nil || conn.ClassOf(err) != conn.Auth {
		t.Errorf("a certificate of nobody: %v", err)
	}
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// run runs an exporter until the function that it returns is called.
func run(t *testing.T, e *Exporter) (end func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		e.Run(ctx)
	}()
	return func() {
		cancel()
		<-done
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("never: " + what)
		}
	}
}

func TestExporter(t *testing.T) {
	c := newCollector(t, nil)
	c.Start()
	e := NewExporter(quiet())
	e.Export(sample())
	if e.Exports() || e.Sampled([16]byte{}) || len(e.queue) != 0 {
		t.Error("it exports before it was told where to")
	}
	e.Use(1, open(t, c.URL))
	end := run(t, e)
	for range 10 {
		e.Export(sample())
	}
	eventually(t, "ten traces have arrived", func() bool { return e.Stats().Exported == 10 })
	if n := len(c.Requests()); n > 2 {
		t.Errorf("%d requests for ten traces at once", n)
	}
	// What comes at the very end is exported, too.
	e.Export(sample())
	end()
	e.Flush(t.Context())
	if s := e.Stats(); s.Exported != 11 || len(c.Spans()) != 44 || s.Dropped != [losses]uint64{} {
		t.Errorf("%+v, %d spans", s, len(c.Spans()))
	}
}

// A receiver that is down costs a bounded queue, and neither time nor memory beyond it.
func TestDeadReceiver(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // takes connections and never answers
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	e := NewExporter(quiet())
	e.Use(1, open(t, "http://"+l.Addr().String()))
	end := run(t, e)
	h := sample()
	const n = 20_000
	began := time.Now()
	for range n {
		e.Export(h)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("handing over %d traces took %v", n, took)
	}
	if lost := e.Stats().Dropped[LossQueue]; lost < n-maxQueue-2*maxBatch {
		t.Errorf("%d of %d traces were thrown away", lost, n)
	}
	end()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	e.Flush(ctx)
	if s := e.Stats(); s.Exported != 0 || s.Dropped[LossQueue]+s.Dropped[LossExport] != n {
		t.Errorf("%+v of %d", s, n)
	}
}

// It says once that it cannot, and once that it can again.
func TestExporterLogsChanges(t *testing.T) {
	var down sync.Mutex
	bad := true
	c := newCollector(t, func(_ int, w http.ResponseWriter, _ *http.Request) bool {
		down.Lock()
		defer down.Unlock()
		if bad {
			w.WriteHeader(http.StatusForbidden)
		}
		return bad
	})
	c.Start()
	var log strings.Builder
	e := NewExporter(slog.New(slog.NewTextHandler(&log, nil)))
	e.Use(1, open(t, c.URL))
	for range 3 {
		e.export(t.Context(), []*Heartbeat{sample()})
	}
	down.Lock()
	bad = false
	down.Unlock()
	for range 3 {
		e.export(t.Context(), []*Heartbeat{sample()})
	}
	if got := log.String(); strings.Count(got, "\n") != 2 || !strings.Contains(got, "status 403 Forbidden") || !strings.Contains(got, "dropped=3") {
		t.Errorf("the log says\n%s", got)
	}
	if s := e.Stats(); s.Exported != 3 || s.Dropped[LossExport] != 3 {
		t.Errorf("%+v", s)
	}
}

// The decision goes by the id alone, so that all processes come to the same.
func TestSampled(t *testing.T) {
	e := NewExporter(quiet())
	for _, c := range []struct {
		ratio     float64
		low, high int
	}{{0, 0, 0}, {.01, 50, 150}, {.5, 4800, 5200}, {1, 10_000, 10_000}} {
		e.Use(c.ratio, nil)
		n := 0
		for seq := range 10_000 {
			h := heartbeat.Heartbeat{Probe: "p", Seq: uint64(seq)}
			if e.Sampled(h.Trace().ID) {
				n++
			}
		}
		if n < c.low || n > c.high {
			t.Errorf("%d of 10,000 at a ratio of %v", n, c.ratio)
		}
	}
	e.Use(1, nil)
	if all := [16]byte{8: 0xff, 9: 0xff, 10: 0xff, 11: 0xff, 12: 0xff, 13: 0xff, 14: 0xff, 15: 0xff}; !e.Sampled(all) {
		t.Error("not all are traced at a ratio of 1")
	}
}
