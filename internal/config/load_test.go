package config

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/conn"
	"github.com/lag-monitor/lag-monitor/probe"
	"github.com/lag-monitor/lag-monitor/sinks"
)

// The tests of the loader use two kinds of their own, so that what they say does not hang on the
// settings of a real transport: `post` injects, `log` listens, `queue` does both.

type post struct {
	URL     probe.Template            `yaml:"url"`
	Body    probe.Template            `yaml:"body"`
	Method  string                    `yaml:"method"`
	Headers map[string]probe.Template `yaml:"headers,omitempty"`
	Token   conn.Secret               `yaml:"token,omitempty"`
	TLS     *conn.TLS                 `yaml:"tls,omitempty"`
	Retries int                       `yaml:"retries,omitempty"`
	Accept  []int                     `yaml:"accept,omitempty"`
}

func (p *post) Validate() error {
	var errs []error
	if p.URL.IsZero() {
		errs = append(errs, conn.Field("url", "is required"))
	}
	if err := probe.CheckToken(p.URL, p.Body); err != nil {
		errs = append(errs, conn.Field("body", "%w", err))
	}
	if p.TLS.Validate() != nil {
		errs = append(errs, conn.Prefix("tls", p.TLS.Validate()))
	}
	for i, a := range p.Accept {
		if a < 100 || a > 599 {
			errs = append(errs, conn.Field("accept["+string(rune('0'+i))+"]", "%d is not an HTTP status", a))
		}
	}
	return errors.Join(errs...)
}
func (p *post) Open() (probe.Injector, error) { return injector{p}, nil }

// injector answers Check as its URL says.
type injector struct{ *post }

func (i injector) Inject(context.Context, *probe.Message) error { return nil }
func (i injector) Close() error                                 { return nil }
func (i injector) Check(ctx context.Context) error {
	switch i.URL.String() {
	case "http://down/":
		return conn.WithClass(conn.Network, errors.New("dial: connection refused"))
	case "http://hangs/":
		select {} // a driver that does not look at ctx
	case "http://slow/":
		<-ctx.Done()
		return ctx.Err()
	}
	return nil
}

type broker struct {
	Brokers []string    `yaml:"brokers"`
	User    string      `yaml:"user,omitempty"`
	Pass    conn.Secret `yaml:"password,omitempty"`
}

type logSink struct {
	broker `yaml:",inline"`
	Topic  string        `yaml:"topic"`
	Poll   conn.Duration `yaml:"poll"`
	Deep   struct {
		Lazy bool    `yaml:"lazy,omitempty"`
		Rate float64 `yaml:"rate,omitempty"`
	} `yaml:"deep,omitempty"`
}

func (l *logSink) Validate() error {
	if l.Topic == "" {
		return conn.Field("topic", "is required")
	}
	return nil
}
func (l *logSink) Open() (sinks.Sink, error) {
	if !l.Pass.IsZero() {
		if _, err := l.Pass.Read(); err != nil {
			return nil, err
		}
	}
	return listener{}, nil
}

type listener struct{}

func (listener) Run(context.Context, *sinks.Feed) error { return nil }

type queueInject struct {
	logSink `yaml:",inline"`
}

func (q *queueInject) Open() (probe.Injector, error) { return nil, errors.New("not in tests") }

func testKinds() kindTable {
	return kindTable{
		newProbe: func(k string) (probe.Config, bool) {
			switch k {
			case "post":
				return &post{Body: probe.MustTemplate(probe.DefaultBody), Method: "POST", Retries: 3}, true
			case "queue":
				return &queueInject{logSink{Poll: conn.Duration(time.Second)}}, true
			}
			return nil, false
		},
		newSink: func(k string) (sinks.Config, bool) {
			switch k {
			case "log":
				return &logSink{Poll: conn.Duration(time.Second)}, true
			}
			return nil, false
		},
		probes: func() []string { return []string{"post", "queue"} },
		sinks:  func() []string { return []string{"log"} },
	}
}

func testLoader(path string) *Loader {
	return &Loader{path: path, kinds: testKinds(), maxTotal: maxTotal}
}

// write makes the files of a txtar-like list of name, content pairs below a fresh folder.
func write(t testing.TB, dir string, nameAndText ...string) {
	t.Helper()
	for i := 0; i < len(nameAndText); i += 2 {
		p := filepath.Join(dir, nameAndText[i])
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(nameAndText[i+1]), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

const good = `
global:
  interval: 20s
  labels: {cluster: eu-1, team: none}
  key: {file: keys/one}
  page: {for: 1m, lag: 10m}
sinks:
  out:
    log: {brokers: [a, b], topic: t}
probes:
  orders:
    interval: 10s
    expiry: 1d
    labels: {team: data}
    page: {lag: 5m, drop_ratio: 1%}
    inject:
      post:
        url: http://head/
    sinks: [out]
`

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "main.yaml", good)
	cfg, problems, err := testLoader(filepath.Join(dir, "main.yaml")).Load()
	if err != nil || len(problems) > 0 {
		t.Fatal(err, problems)
	}
	p := cfg.Probes["orders"]
	if p.Interval != 10*time.Second || p.Expiry != 24*time.Hour || p.Timeout != time.Minute || p.TTL != 24*time.Hour+time.Minute || p.SendTimeout != 10*time.Second {
		t.Errorf("durations: %+v", p)
	}
	if p.Labels["team"] != "data" || p.Labels["cluster"] != "eu-1" {
		t.Errorf("labels: %v", p.Labels)
	}
	if want := (Thresholds{Lag: 5 * time.Minute, For: time.Minute, DropRatio: 0.01}); p.Page != want {
		t.Errorf("page = %+v, want %+v", p.Page, want)
	}
	if p.InjectKind != "post" || p.Inject.(*post).Method != "POST" || p.Inject.(*post).Retries != 3 {
		t.Errorf("inject: %+v", p.Inject)
	}
	s := cfg.Sinks["out"]
	if s.Kind != "log" || s.Role != Destination || s.Config.(*logSink).Poll != conn.Duration(time.Second) || len(s.Config.(*logSink).Brokers) != 2 {
		t.Errorf("sink: %+v %+v", s, s.Config)
	}
	if cfg.Global.Keys[0].File != filepath.Join(dir, "keys/one") {
		t.Errorf("key: %+v", cfg.Global.Keys)
	}
	if p.Source.Line != 11 || s.Source.Line != 8 || !strings.HasSuffix(p.Source.File, "main.yaml") {
		t.Errorf("sources: %+v %+v", p.Source, s.Source)
	}
	p.Runbook = "http://r/"
	if l := p.InfoLabels(); l["runbook"] != "http://r/" || l["team"] != "data" || len(l) != 3 || len(p.Labels) != 2 {
		t.Errorf("info labels: %v", l)
	}
	if len(cfg.Warnings) > 0 {
		t.Errorf("warnings: %v", cfg.Warnings)
	}
}

// TestRedactedRoundTrips: what Redacted writes loads again into the same effective configuration.
func TestRedactedRoundTrips(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "main.yaml", strings.Replace(good, "url: http://head/", "{url: http://head/, retries: 0, headers: {X-Api-Key: hunter2, Accept: all}, token: {env: T}}", 1))
	cfg, _, err := testLoader(filepath.Join(dir, "main.yaml")).Load()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cfg.Redacted()
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(out), "hunter2") || !strings.Contains(string(out), "X-Api-Key: <secret>") || !strings.Contains(string(out), "Accept: all") {
		t.Errorf("headers:\n%s", out)
	}
	for _, want := range []string{"retries: 0", "poll: 1s", "instance: ", "max_skew: 10s", "send_timeout: 10s", "env: T"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	again := t.TempDir()
	write(t, again, "main.yaml", strings.Replace(string(out), "<secret>", "hunter2", 1))
	cfg2, _, err := testLoader(filepath.Join(again, "main.yaml")).Load()
	if err != nil {
		t.Fatalf("%v in\n%s", err, out)
	}
	if cfg.Probes["orders"].Fingerprint != cfg2.Probes["orders"].Fingerprint || cfg.Sinks["out"].Fingerprint != cfg2.Sinks["out"].Fingerprint {
		t.Errorf("the fingerprints differ after a round trip through\n%s", out)
	}
}
