package servers

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Promtool returns the path of the promtool binary.
func Promtool(t testing.TB) string {
	t.Helper()
	return filepath.Join(installed(t, "prometheus"), "bin", "promtool")
}

// Amtool returns the path of the amtool binary.
func Amtool(t testing.TB) string {
	t.Helper()
	return filepath.Join(installed(t, "prometheus"), "bin", "amtool")
}

// PrometheusServer is a Prometheus with native histograms and the lifecycle endpoints switched on.
type PrometheusServer struct {
	*Process
	URL string // http://127.0.0.1:port

	config string // path of the configuration file
	rules  []string
}

// Prometheus starts a Prometheus with this configuration and returns when it is ready. ruleFiles are
// paths of rule files; they become the configuration's rule_files, which it must not have itself then.
func Prometheus(t testing.TB, configYAML string, ruleFiles ...string) *PrometheusServer {
	t.Helper()
	home := installed(t, "prometheus")
	dir := t.TempDir()
	addr := loopback(freePort(t))
	p := &PrometheusServer{URL: "http://" + addr, config: filepath.Join(dir, "prometheus.yml")}
	for _, file := range ruleFiles {
		abs, err := filepath.Abs(file)
		if err != nil {
			t.Fatal(err)
		}
		p.rules = append(p.rules, abs)
	}
	p.writeConfig(t, configYAML)
	p.Process = startProcess(t, "prometheus", dir, func() *exec.Cmd {
		return exec.Command(filepath.Join(home, "bin", "prometheus"),
			"--config.file="+p.config, "--storage.tsdb.path="+filepath.Join(dir, "data"),
			"--web.listen-address="+addr, "--web.enable-lifecycle", "--enable-feature=native-histograms")
	}, httpReady(p.URL+"/-/ready"))
	return p
}

func (p *PrometheusServer) writeConfig(t testing.TB, configYAML string) {
	t.Helper()
	var b strings.Builder
	b.WriteString(configYAML)
	if len(p.rules) > 0 {
		b.WriteString("\nrule_files:\n")
		for _, file := range p.rules {
			fmt.Fprintf(&b, "  - %s\n", strconv.Quote(file))
		}
	}
	writeFile(t, filepath.Dir(p.config), filepath.Base(p.config), b.String())
}

// Reload replaces the configuration, except for the rule files given at the start, and applies it.
func (p *PrometheusServer) Reload(configYAML string) {
	p.t.Helper()
	p.writeConfig(p.t, configYAML)
	if _, err := call(http.MethodPost, p.URL+"/-/reload", nil); err != nil {
		p.t.Fatalf("prometheus: reload: %v", err)
	}
}

// Sample is one element of an instant vector, or a scalar without labels.
type Sample struct {
	Labels map[string]string
	Value  float64
	Time   time.Time
}

// Query evaluates an expression now. It fails the test when the expression or the answer is bad; a
// native histogram's element has the value 0.
func (p *PrometheusServer) Query(t testing.TB, expr string) []Sample {
	t.Helper()
	samples, err := p.query(expr)
	if err != nil {
		t.Fatalf("prometheus: query %s: %v", expr, err)
	}
	return samples
}

// WaitQuery evaluates an expression until ok says that the answer is the wanted one, and returns that
// answer. It fails the test when ctx ends before.
func (p *PrometheusServer) WaitQuery(ctx context.Context, t testing.TB, expr string, ok func([]Sample) bool) []Sample {
	t.Helper()
	for {
		samples, err := p.query(expr)
		if err == nil && ok(samples) {
			return samples
		}
		select {
		case <-ctx.Done():
			t.Fatalf("prometheus: query %s: %v; last answer %+v, %v", expr, ctx.Err(), samples, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (p *PrometheusServer) query(expr string) ([]Sample, error) {
	body, err := call(http.MethodGet, p.URL+"/api/v1/query?"+url.Values{"query": {expr}}.Encode(), nil)
	if err != nil {
		return nil, err
	}
	var answer struct {
		Data struct {
			ResultType string
			Result     json.RawMessage
		}
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return nil, err
	}
	switch answer.Data.ResultType {
	case "vector":
		var elements []struct {
			Metric map[string]string
			Value  point
		}
		if err := json.Unmarshal(answer.Data.Result, &elements); err != nil {
			return nil, err
		}
		samples := make([]Sample, 0, len(elements))
		for _, e := range elements {
			samples = append(samples, Sample{Labels: e.Metric, Value: e.Value.value, Time: e.Value.time})
		}
		return samples, nil
	case "scalar":
		var v point
		if err := json.Unmarshal(answer.Data.Result, &v); err != nil {
			return nil, err
		}
		return []Sample{{Value: v.value, Time: v.time}}, nil
	default:
		return nil, fmt.Errorf("a %q is no instant vector", answer.Data.ResultType)
	}
}

// point is Prometheus' [seconds, "value"].
type point struct {
	time  time.Time
	value float64
}

func (p *point) UnmarshalJSON(b []byte) error {
	var seconds float64
	var value string
	if err := json.Unmarshal(b, &[2]any{&seconds, &value}); err != nil {
		return err
	}
	p.time = time.UnixMilli(int64(seconds * 1000))
	var err error
	p.value, err = strconv.ParseFloat(value, 64)
	return err
}

// AlertmanagerServer is an Alertmanager without peers.
type AlertmanagerServer struct {
	*Process
	Addr string // host:port, as Prometheus' static_configs want it
	URL  string // http://127.0.0.1:port
}

// Alertmanager starts an Alertmanager with this configuration and returns when it is ready.
func Alertmanager(t testing.TB, configYAML string) *AlertmanagerServer {
	t.Helper()
	home := installed(t, "prometheus")
	dir := t.TempDir()
	config := writeFile(t, dir, "alertmanager.yml", configYAML)
	addr := loopback(freePort(t))
	a := &AlertmanagerServer{Addr: addr, URL: "http://" + addr}
	a.Process = startProcess(t, "alertmanager", dir, func() *exec.Cmd {
		return exec.Command(filepath.Join(home, "bin", "alertmanager"),
			"--config.file="+config, "--storage.path="+filepath.Join(dir, "data"),
			"--web.listen-address="+addr, "--cluster.listen-address=")
	}, httpReady(a.URL+"/-/ready"))
	return a
}

// Alert is one alert that an Alertmanager holds.
type Alert struct {
	Labels      map[string]string
	Annotations map[string]string
	StartsAt    time.Time
	EndsAt      time.Time
	Status      struct {
		State       string   // unprocessed, active or suppressed
		InhibitedBy []string // fingerprints of the alerts that inhibit it
		SilencedBy  []string
	}
}

// Alerts returns all alerts that have not ended.
func (a *AlertmanagerServer) Alerts(t testing.TB) []Alert {
	t.Helper()
	body, err := call(http.MethodGet, a.URL+"/api/v2/alerts", nil)
	if err != nil {
		t.Fatalf("alertmanager: %v", err)
	}
	var alerts []Alert
	if err := json.Unmarshal(body, &alerts); err != nil {
		t.Fatalf("alertmanager: %v", err)
	}
	return alerts
}

// Post gives the Alertmanager alerts as Prometheus would. Those without a StartsAt start now; those
// without an EndsAt end after the configuration's resolve_timeout.
func (a *AlertmanagerServer) Post(t testing.TB, alerts ...Alert) {
	t.Helper()
	type postable struct {
		Labels      map[string]string `json:"labels"`
		Annotations map[string]string `json:"annotations,omitempty"`
		StartsAt    time.Time         `json:"startsAt,omitzero"`
		EndsAt      time.Time         `json:"endsAt,omitzero"`
	}
	var out []postable
	for _, al := range alerts {
		out = append(out, postable{al.Labels, al.Annotations, al.StartsAt, al.EndsAt})
	}
	body, err := json.Marshal(out)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := call(http.MethodPost, a.URL+"/api/v2/alerts", strings.NewReader(string(body))); err != nil {
		t.Fatalf("alertmanager: %v", err)
	}
}

// call makes one HTTP request and returns the body of a 2xx answer.
func call(method, url string, body io.Reader) ([]byte, error) {
	req, err := http.NewRequest(method, url, body)
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := httpClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode/100 != 2 {
		return nil, fmt.Errorf("%s %s: %s: %s", method, url, resp.Status, strings.TrimSpace(string(answer)))
	}
	return answer, nil
}
