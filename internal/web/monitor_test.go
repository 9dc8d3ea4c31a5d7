package web

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/lag-monitor/lag-monitor/internal/config"
	"github.com/lag-monitor/lag-monitor/internal/monitor"
	"github.com/lag-monitor/lag-monitor/internal/servers"
)

// realSource is a monitor as the daemon runs it.
type realSource struct{ *monitor.Monitor }

func (realSource) Config() ([]byte, error)      { return nil, nil }
func (realSource) Reload(context.Context) error { return nil }

// TestPagesOfARealMonitor: what a monitor tells of a pipeline with a hop is what openapi.yaml describes, its pages can be
// made of it, and a pause is one.
func TestPagesOfARealMonitor(t *testing.T) {
	mid, end := servers.FreeAddr(t), servers.FreeAddr(t)
	client := &http.Client{Transport: &http.Transport{}, Timeout: time.Minute}
	t.Cleanup(client.CloseIdleConnections)
	pipeline := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		for _, to := range []string{mid, end} {
			resp, err := client.Post("http://"+to+"/", "application/json", bytes.NewReader(body))
			if err != nil {
				w.WriteHeader(http.StatusServiceUnavailable)
				return
			}
			resp.Body.Close()
		}
	}))
	t.Cleanup(pipeline.Close)
	file := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(file, fmt.Appendf(nil, `
sinks:
  mid: {role: hop, webhook: {listen: %q}}
  end: {webhook: {listen: %q}}
probes:
  p:
    interval: 100ms
    timeout: 1m
    labels: {team: data}
    page: {lag: 5m, for: 2m, drop_ratio: 1%%}
    inject: {http: {url: %q, body: '{{ .Token }}'}}
    sinks: [mid, end]
`, mid, end, pipeline.URL), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	m := monitor.New(monitor.Options{Logger: log, Instance: "test"})
	if err := m.Apply(cfg); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	h := newHandler(realSource{m}, prometheus.NewRegistry(), log, Options{AdminAPI: true}, 0)
	detail := func() (d detailAnswer) {
		t.Helper()
		if err := json.Unmarshal(get(t, h, "GET", "/api/v1/probes/p").Body.Bytes(), &d); err != nil {
			t.Fatal(err)
		}
		return d
	}
	// until waits for a state; each look is held against the description.
	spec := newAPISpec(t)
	until := func(what string, ok func(detailAnswer) bool) detailAnswer {
		t.Helper()
		for began := time.Now(); ; time.Sleep(50 * time.Millisecond) {
			spec.check(t, "GET", "/api/v1/probes/{name}", get(t, h, "GET", "/api/v1/probes/p"))
			d := detail()
			if ok(d) {
				return d
			}
			if t.Failed() || time.Since(began) > time.Minute {
				t.Fatalf("not %s: %+v", what, d)
			}
		}
	}
	d := until("on time", func(d detailAnswer) bool {
		return d.Verdict.State == "on time" && len(d.Hops) == 2 && d.Hops[1].Seen && d.Sinks[1].OnTime > 2
	})
	if d.Hops[0].From != "head" || d.Hops[0].To != "mid" || d.Hops[1].From != "mid" || d.Hops[1].To != "end" || !strings.Contains(d.Config, "interval: 100ms") {
		t.Errorf("hops %+v, configuration\n%s", d.Hops, d.Config)
	}
	if !strings.Contains(d.Mermaid, `n1["mid<br>webhook"]`) {
		t.Errorf("diagram\n%s", d.Mermaid)
	}
	for path, at := range map[string]string{"/api/v1/status": "/api/v1/status", "/api/v1/probes": "/api/v1/probes", "/api/v1/sinks": "/api/v1/sinks"} {
		spec.check(t, "GET", at, get(t, h, "GET", path))
	}
	look := func(want string) {
		t.Helper()
		for _, path := range []string{"/", "/probes/p"} {
			w := get(t, h, "GET", path)
			if w.Code != http.StatusOK || !strings.Contains(w.Body.String(), want) {
				t.Errorf("%s: %d without %q", path, w.Code, want)
			}
			sound(t, w.Body.Bytes())
		}
	}
	look("on time")

	w := get(t, h, "POST", "/api/v1/probes/p/pause?for=1h")
	if !strings.Contains(w.Body.String(), `"warning"`) || !strings.Contains(w.Body.String(), "--storage.path") {
		t.Errorf("no word of the restart that would end it: %s", w.Body)
	}
	spec.check(t, "POST", "/api/v1/probes/{name}/pause", w)
	d = until("paused", func(d detailAnswer) bool { return d.Verdict.State == "paused" })
	if d.Paused == nil || d.Paused.Until.Sub(d.Paused.Since) != time.Hour {
		t.Errorf("paused %+v", d.Paused)
	}
	look("<b>paused</b>")
	spec.check(t, "POST", "/api/v1/probes/{name}/resume", get(t, h, "POST", "/api/v1/probes/p/resume"))
	sent := detail().Sent.Success
	until("on time again", func(d detailAnswer) bool { return d.Verdict.State == "on time" && d.Sent.Success > sent })
}
