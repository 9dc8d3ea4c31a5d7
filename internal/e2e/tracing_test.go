package e2e_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	collectorpb "go.opentelemetry.io/proto/slim/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/slim/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/lag-monitor/lag-monitor/internal/servers"
)

// tracedService is a pipeline that takes part in tracing: a front end puts what it gets on the subject mid, a
// worker moves it from there to out. Each continues the trace of its message and exports a span of its own.
type tracedService struct {
	url  string
	lose atomic.Bool // the worker throws away what it gets
}

func startTracedService(t *testing.T, natsURL, otlp string) *tracedService {
	t.Helper()
	s := new(tracedService)
	nc, err := nats.Connect(natsURL)
	if err != nil {
		t.Fatal(err)
	}
	forward := func(name, subject string, body []byte, parent string) {
		span, child := continueTrace(name, parent)
		if span == nil {
			t.Errorf("%s got the traceparent %q", name, parent)
			return
		}
		_ = nc.PublishMsg(&nats.Msg{Subject: subject, Data: body, Header: nats.Header{"traceparent": {child}}})
		span.EndTimeUnixNano = uint64(time.Now().UnixNano())
		export(t, otlp, span)
	}
	worker, err := nc.Subscribe("mid", func(m *nats.Msg) {
		if !s.lose.Load() {
			forward("work", "out", m.Data, m.Header["traceparent"][0])
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		forward("take", "mid", body, r.Header.Get("traceparent"))
		w.WriteHeader(http.StatusAccepted)
	}))
	s.url = front.URL
	t.Cleanup(func() {
		front.CloseClientConnections()
		front.Close()
		_ = worker.Unsubscribe()
		nc.Close()
	})
	return s
}

// continueTrace starts a span below a traceparent, and returns it with the traceparent for what it calls; nil
// when there is nothing to record.
func continueTrace(name, parent string) (*tracepb.Span, string) {
	m := regexp.MustCompile(`^00-([0-9a-f]{32})-([0-9a-f]{16})-01$`).FindStringSubmatch(parent)
	if m == nil {
		return nil, ""
	}
	trace, _ := hex.DecodeString(m[1])
	above, _ := hex.DecodeString(m[2])
	id := make([]byte, 8)
	_, _ = rand.Read(id)
	return &tracepb.Span{TraceId: trace, SpanId: id, ParentSpanId: above, Name: name, StartTimeUnixNano: uint64(time.Now().UnixNano())},
		fmt.Sprintf("00-%s-%x-01", m[1], id)
}

func export(t *testing.T, otlp string, span *tracepb.Span) {
	b, err := proto.Marshal(&collectorpb.ExportTraceServiceRequest{ResourceSpans: []*tracepb.ResourceSpans{{ScopeSpans: []*tracepb.ScopeSpans{{Spans: []*tracepb.Span{span}}}}}})
	if err != nil {
		t.Error(err)
		return
	}
	resp, err := client.Post(otlp+"/v1/traces", "application/x-protobuf", bytes.NewReader(b))
	if err != nil {
		t.Error(err)
		return
	}
	resp.Body.Close()
}

// traceOf writes a trace as a tree: a line for each span, two spaces deeper than its parent's, children by
// their begin. It reports false when a span hangs below one that is not there.
func traceOf(spans []*tracepb.Span) (tree string, whole bool) {
	children := map[string][]*tracepb.Span{}
	known := map[string]bool{"": true}
	for _, s := range spans {
		children[string(s.GetParentSpanId())] = append(children[string(s.GetParentSpanId())], s)
		known[string(s.GetSpanId())] = true
	}
	whole = true
	for parent := range children {
		whole = whole && known[parent]
	}
	var b strings.Builder
	var walk func(parent, indent string)
	walk = func(parent, indent string) {
		for _, name := range []string{"heartbeat", "inject", "take", "work", "arrive"} { // in the order of the pipeline
			for _, s := range children[parent] {
				if s.GetName() == name {
					fmt.Fprintf(&b, "%s%s%s\n", indent, name, told(s))
					walk(string(s.GetSpanId()), indent+"  ")
				}
			}
		}
	}
	walk("", "")
	return b.String(), whole
}

// told is what a span of the monitor says of itself.
func told(s *tracepb.Span) (text string) {
	for _, a := range s.GetAttributes() {
		switch key := strings.TrimPrefix(a.GetKey(), "lag_monitor."); key {
		case "from", "sink", "outcome", "result", "reason":
			text += " " + key + "=" + a.GetValue().GetStringValue()
		}
	}
	if s.GetStatus().GetCode() == tracepb.Status_STATUS_CODE_ERROR {
		text += " ERROR"
	}
	return text
}

const wholeTrace = `heartbeat outcome=on_time result=success
  inject result=success
    take
      work
  arrive sink=mid from=head outcome=on_time
  arrive sink=out from=mid outcome=on_time
`

const lostTrace = `heartbeat outcome=dropped result=success ERROR
  inject result=success
    take
  arrive sink=mid from=head outcome=on_time
  arrive sink=out from=mid outcome=dropped reason=timeout ERROR
`

// One trace holds what the monitor knows of a heartbeat and what the services on its way have recorded, from
// the head to the end, and to where it was lost.
func TestTracing(t *testing.T) {
	t.Parallel()
	servers.Need(t)
	n := servers.NATS(t)
	otlp := servers.OTLP(t)
	otlp.Start()
	s := startTracedService(t, n.URL, otlp.URL)
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("very-s3cret"), 0o600); err != nil {
		t.Fatal(err)
	}
	d := startDaemon(t, fmt.Sprintf(`
global:
  tracing: {otlp: {endpoint: %q, bearer_token: {file: %q}}}
sinks:
  mid: {role: hop, nats: {url: %[3]q, subject: mid, jetstream: false}}
  out: {nats: {url: %[3]q, subject: out, jetstream: false}}
probes:
  traced:
    interval: 200ms
    timeout: 2s
    page: {lag: 1m}
    inject: {http: {url: %[4]q}}
    sinks: [mid, out]
`, otlp.URL, token, n.URL, s.url))
	// The first ones may have been sent before both sinks listened.
	d.await(t, "heartbeats have come out", func(m scrape) bool { return m.Sum("heartbeats_received_total", "sink", "out") >= 15 })
	s.lose.Store(true)
	d.await(t, "five are lost", func(m scrape) bool { return m.Sum("heartbeats_dropped_total", "sink", "out") >= 5 })
	exemplars, err := openMetrics(d.addr)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := call(context.Background(), http.MethodGet, "http://"+d.addr+"/api/v1/status", nil); err != nil || bytes.Contains(got, []byte("very-s3cret")) {
		t.Errorf("the status holds the secret: %v", err)
	}
	last := d.scrape(t)
	d.Stop() // what waits is exported

	traces := map[string][]*tracepb.Span{}
	for _, span := range otlp.Spans() {
		traces[string(span.GetTraceId())] = append(traces[string(span.GetTraceId())], span)
	}
	count := map[string]int{}
	for id, spans := range traces {
		tree, whole := traceOf(spans)
		if !whole {
			t.Errorf("the trace %x has a span below one that is not there:\n%s", id, tree)
		}
		count[tree]++
		for _, a := range spans {
			for _, b := range spans {
				// All of them read one clock; the root and the injection begin with the sending.
				if bytes.Equal(b.GetParentSpanId(), a.GetSpanId()) && b.GetStartTimeUnixNano() < a.GetStartTimeUnixNano() {
					t.Errorf("%s of %x begins before %s", b.GetName(), id, a.GetName())
				}
			}
			if a.GetEndTimeUnixNano() < a.GetStartTimeUnixNano() {
				t.Errorf("%s of %x ends before it begins", a.GetName(), id)
			}
		}
	}
	if count[wholeTrace] < 10 || count[lostTrace] < 5 {
		t.Errorf("%d whole traces and %d lost ones; all:", count[wholeTrace], count[lostTrace])
		for tree, n := range count {
			t.Logf("%d times\n%s", n, tree)
		}
	}
	if sent := last.Sum("heartbeats_sent_total"); float64(len(traces)) < sent {
		t.Errorf("%d traces of %v heartbeats", len(traces), sent)
	}
	if lost := last.Sum("traces_dropped_total"); lost != 0 {
		t.Errorf("%v traces were thrown away", lost)
	}
	found := 0
	for _, m := range regexp.MustCompile(`(?m)^lag_monitor_heartbeat_latency_seconds_bucket.* # \{trace_id="([0-9a-f]{32})"\}`).FindAllStringSubmatch(exemplars, -1) {
		id, _ := hex.DecodeString(m[1])
		if len(traces[string(id)]) == 0 {
			t.Errorf("the exemplar %s leads to no trace", m[1])
		}
		found++
	}
	if found < 2 {
		t.Errorf("%d exemplars", found)
	}
	for _, r := range otlp.Requests() {
		if r.Header.Get("User-Agent") == "lag-monitor" && r.Header.Get("Authorization") != "Bearer very-s3cret" {
			t.Errorf("a request without the credentials: %v", r.Header)
		}
	}
}

// Tracing is turned on, sent elsewhere and turned off by a reload; one that cannot work changes nothing.
func TestTracingByReload(t *testing.T) {
	t.Parallel()
	servers.Need(t)
	n := servers.NATS(t)
	otlp := servers.OTLP(t)
	otlp.Start()
	config := func(tracing string) string {
		return fmt.Sprintf(`
global: {tracing: %s}
sinks:
  out: {nats: {url: %[2]q, subject: pass, jetstream: false}}
probes:
  p: {interval: 100ms, timeout: 2s, page: {lag: 1m}, inject: {nats: {url: %[2]q, subject: pass, jetstream: false}}, sinks: [out]}
`, tracing, n.URL)
	}
	d := startDaemon(t, strings.Replace(config("{}"), "global: {tracing: {}}", "", 1))
	s := d.await(t, "heartbeats come out", func(m scrape) bool { return m.Sum("heartbeats_received_total") >= 5 })
	s.wants(t, map[string]float64{"traces_exported_total": 0, "traces_dropped_total": 0})

	reload := func(tracing string, status int, text string) {
		t.Helper()
		write(t, d.config, config(tracing))
		if code, said := d.reload(t); code != status || !strings.Contains(said, text) {
			t.Fatalf("%s: %d %s", tracing, code, said)
		}
	}
	on := fmt.Sprintf("{otlp: {endpoint: %q}}", otlp.URL)
	reload(on, http.StatusOK, "")
	d.await(t, "traces are exported", func(m scrape) bool { return m.Sum("traces_exported_total") > 0 })
	reload(fmt.Sprintf("{otlp: {endpoint: %q, tls: {ca_file: nothing.pem}}}", strings.Replace(otlp.URL, "http:", "https:", 1)), http.StatusInternalServerError, "global.tracing.otlp: tls: ")
	before := d.scrape(t)
	d.await(t, "the one before goes on", func(m scrape) bool {
		return m.Sum("traces_exported_total") > before.Sum("traces_exported_total")
	})
	// Refuses connections: the accounts go on, and the end comes soon all the same.
	reload(fmt.Sprintf("{otlp: {endpoint: \"http://%s\"}}", servers.FreeAddr(t)), http.StatusOK, "")
	before = d.scrape(t)
	d.await(t, "heartbeats come out", func(m scrape) bool {
		return m.Sum("heartbeats_received_total") >= before.Sum("heartbeats_received_total")+10
	})
	d.Stop()
	if log := d.Log(); !strings.Contains(log, "traces were thrown away at the end") {
		t.Errorf("the end says nothing of the traces that nobody took:\n%s", d.LogTail())
	}

	write(t, d.config, strings.Replace(config("{sample_ratio: 50%}"), "pass", "other", 1)) // decides, and exports nothing
	d.Start()
	d.await(t, "heartbeats are sent", func(m scrape) bool { return m.Sum("heartbeats_sent_total") >= 5 })
	d.scrape(t).wants(t, map[string]float64{"traces_exported_total": 0, "traces_dropped_total": 0})
}

func openMetrics(addr string) (string, error) {
	req, err := http.NewRequest(http.MethodGet, "http://"+addr+"/metrics", nil)
	if err != nil {
		return "", err
	}
	req.Header.Set("Accept", "application/openmetrics-text; version=1.0.0")
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}
