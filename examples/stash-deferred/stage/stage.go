package stage

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/servers"

	"github.com/lag-monitor/lag-monitor/examples/stash-deferred/emulator"
)

// Binaries are the programs that a stage runs.
type Binaries struct{ Stashdef, Monitor string }

// Build builds both into dir. root is the directory of this module.
func Build(ctx context.Context, root, dir string) (Binaries, error) {
	b := Binaries{Stashdef: filepath.Join(dir, "stashdef"), Monitor: filepath.Join(dir, "lag-monitor")}
	for _, build := range []struct{ in, out, what string }{
		{root, b.Stashdef, "./cmd/stashdef"},
		{filepath.Join(root, "..", ".."), b.Monitor, "./cmd/lag-monitor"},
	} {
		cmd := exec.CommandContext(ctx, "go", "build", "-o", build.out, build.what)
		cmd.Dir = build.in
		cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
		if err := cmd.Run(); err != nil {
			return Binaries{}, fmt.Errorf("go build %s: %w", build.what, err)
		}
	}
	return b, nil
}

// Pace is how fast everything is. What is written in the files of this example is Production; nobody waits for that in
// front of a terminal, so stories are told at the pace of Fast.
type Pace struct {
	Interval, Expiry, Timeout time.Duration // of the probe
	Lag, For                  time.Duration // that page
	Poll                      time.Duration // of the sink
	Scan, ScanTimeout         time.Duration // of the backend
	Pause                     time.Duration
	Rules                     time.Duration // between two evaluations, and two scrapes
	GroupWait                 time.Duration // of pages
}

// The two paces.
var (
	Production = Pace{
		Interval: 10 * time.Second, Expiry: 5 * time.Second, Timeout: 5 * time.Minute, Lag: 5 * time.Minute, For: 2 * time.Minute,
		Poll: time.Second, Scan: time.Second, ScanTimeout: 10 * time.Second, Pause: 10 * time.Second, Rules: 15 * time.Second, GroupWait: time.Minute,
	}
	Fast = Pace{
		Interval: 500 * time.Millisecond, Expiry: 2 * time.Second, Timeout: 30 * time.Second, Lag: 12 * time.Second, For: 2 * time.Second,
		Poll: 400 * time.Millisecond, Scan: 500 * time.Millisecond, ScanTimeout: 2 * time.Second, Pause: 2 * time.Second, Rules: time.Second, GroupWait: 4 * time.Second,
	}
)

// Options say what is put up.
type Options struct {
	Root     string // the directory of this module
	Binaries Binaries
	Pace     Pace
	// Kinesis is a server that several stages share.
	Kinesis *servers.KinesisServer
	// Prefix goes before the names of the streams, so that stages with one server do not meet.
	Prefix string
	// Rate is how many messages users send in a second; 0: there are no users.
	Rate int
	// Every is the grid of their due times.
	Every time.Duration
	// Watched adds Prometheus, Alertmanager and Slack.
	Watched bool
	// Unmonitored leaves out lag-monitor.
	Unmonitored bool
}

// Stage is the whole case while it runs. It ends with its test and belongs to the test's goroutine.
type Stage struct {
	Options
	tb testing.TB

	Bigtable *emulator.Server
	Broker   *servers.KinesisProxy // between the backend and Kinesis, for faults
	Streams  []string              // the first is the one that is monitored

	Frontend, Backend, Monitor            *servers.Process
	FrontendAddr, BackendAddr, MonitorURL string

	Users *Users

	Prometheus   *servers.PrometheusServer
	Alertmanager *servers.AlertmanagerServer
	Slack        *servers.SlackServer
}

// Up puts everything up and returns when it runs.
func Up(tb testing.TB, opts Options) *Stage {
	tb.Helper()
	s := &Stage{Options: opts, tb: tb, FrontendAddr: servers.FreeAddr(tb), BackendAddr: servers.FreeAddr(tb)}
	var err error
	if s.Bigtable, err = emulator.Start(tb.Context(), "127.0.0.1:0"); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(s.Bigtable.Close)
	s.Broker = opts.Kinesis.NewProxy(tb)
	for _, name := range []string{"deferred", "orders", "emails", "reminders", "audit"} {
		s.Streams = append(s.Streams, opts.Prefix+name)
		opts.Kinesis.CreateStream(tb, opts.Prefix+name, 1)
	}

	counting := opts.Pace.Rules
	if opts.Unmonitored {
		counting = time.Minute // nobody looks
	}
	s.Frontend = s.start("frontend", s.FrontendAddr, "frontend", "--frontend.listen="+s.FrontendAddr)
	s.Backend = s.start("backend", s.BackendAddr, "backend", "--backend.listen="+s.BackendAddr,
		"--kinesis.endpoint="+s.Broker.Endpoint, "--backend.interval="+opts.Pace.Scan.String(), "--backend.scan-timeout="+opts.Pace.ScanTimeout.String(),
		"--backend.pause="+opts.Pace.Pause.String(), "--backend.backlog-interval="+counting.String())
	if !opts.Unmonitored {
		s.monitor()
	}
	if opts.Watched {
		s.watch()
	}
	if opts.Rate > 0 {
		s.Users = startUsers("http://"+s.FrontendAddr+"/v1/messages", s.Streams, opts.Rate, opts.Every)
		tb.Cleanup(s.Users.Stop)
	}
	return s
}

// environment of the service and of the monitor: how to log in to the local Kinesis.
func environment() []string {
	return append(os.Environ(), "AWS_REGION="+servers.KinesisRegion, "AWS_ACCESS_KEY_ID="+servers.KinesisAccessKey,
		"AWS_SECRET_ACCESS_KEY="+servers.KinesisSecretKey, "AWS_EC2_METADATA_DISABLED=true", "AWS_CONFIG_FILE="+os.DevNull, "AWS_SHARED_CREDENTIALS_FILE="+os.DevNull)
}

func (s *Stage) start(name, addr string, args ...string) *servers.Process {
	s.tb.Helper()
	args = append(args, "--bigtable.emulator="+s.Bigtable.Config.Emulator)
	return servers.Program(s.tb, "stashdef-"+name, func() *exec.Cmd {
		cmd := exec.CommandContext(context.Background(), s.Binaries.Stashdef, args...)
		cmd.Env = environment()
		return cmd
	}, healthy(addr))
}

// healthy looks whether the process at addr answers.
func healthy(addr string) func(context.Context) error {
	return func(ctx context.Context) error {
		_, err := Get(ctx, "http://"+addr+"/-/healthy")
		return err
	}
}

// edit is one place of a file that is another one on a stage.
type edit struct{ from, to string }

// edited reads a file of the repository and makes the edits, each of which must have a place.
func (s *Stage) edited(path string, edits ...edit) string {
	s.tb.Helper()
	b, err := os.ReadFile(filepath.Join(s.Root, path))
	if err != nil {
		s.tb.Fatal(err)
	}
	text := string(b)
	for _, e := range edits {
		if !strings.Contains(text, e.from) {
			s.tb.Fatalf("%s has no %q any more", path, e.from)
		}
		text = strings.ReplaceAll(text, e.from, e.to)
	}
	return text
}

// monitor runs lag-monitor with the file of this example, at the stage's addresses and pace.
func (s *Stage) monitor() {
	s.tb.Helper()
	p := s.Pace
	config := s.edited("lag-monitor.yaml",
		edit{"stream: deferred\n", "stream: " + s.Streams[0] + "\n"},
		edit{`"stream": "deferred"`, fmt.Sprintf(`"stream": %q`, s.Streams[0])},
		edit{"http://127.0.0.1:4567", s.Kinesis.Endpoint},
		edit{"http://127.0.0.1:8080", "http://" + s.FrontendAddr},
		edit{"poll_interval: 1s", "poll_interval: " + p.Poll.String()},
		edit{" interval: 10s", " interval: " + p.Interval.String()},
		edit{"expiry: 5s", "expiry: " + p.Expiry.String()},
		edit{"timeout: 5m", "timeout: " + p.Timeout.String()},
		edit{"lag: 5m, for: 2m", fmt.Sprintf("lag: %v, for: %v", p.Lag, p.For)},
	)
	path := filepath.Join(s.tb.TempDir(), "lag-monitor.yaml")
	s.write(path, config)
	addr := servers.FreeAddr(s.tb)
	s.MonitorURL = "http://" + addr
	s.Monitor = servers.Program(s.tb, "lag-monitor", func() *exec.Cmd {
		cmd := exec.CommandContext(context.Background(), s.Binaries.Monitor, "--config.file="+path, "--web.listen-address="+addr)
		cmd.Env = environment()
		return cmd
	}, healthy(addr))
}

func (s *Stage) write(path, text string) {
	s.tb.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		s.tb.Fatal(err)
	}
}

var (
	groupInterval = regexp.MustCompile(`(?m)^(    interval: )\S+$`)
	alertFor      = regexp.MustCompile(`(?m)^(        for: )\S+$`)
	groupWait     = regexp.MustCompile(`group_wait: \S+`)
	groupRepeat   = regexp.MustCompile(`group_interval: \S+`)
)

// watch starts Prometheus with the shipped rules and those of this example, the shipped example of Alertmanager, and a
// Slack.
func (s *Stage) watch() {
	s.tb.Helper()
	p, dir := s.Pace, s.tb.TempDir()
	quick := func(text string) string {
		if p == Production {
			return text
		}
		return alertFor.ReplaceAllString(groupInterval.ReplaceAllString(text, "${1}"+p.Rules.String()), "${1}5s")
	}
	var rules []string
	for name, text := range map[string]string{
		"lag-monitor.rules.yaml": quick(s.edited("../../rules/lag-monitor.rules.yaml")),
		"stash-deferred.rules.yaml": strings.Replace(quick(s.edited("rules/stash-deferred.rules.yaml",
			edit{"> 5*60", fmt.Sprintf("> %v", p.Lag.Seconds())}, edit{"threshold 5m", "threshold " + short(p.Lag)})),
			"        for: 5s", "        for: "+p.For.String(), 1),
	} {
		path := filepath.Join(dir, name)
		s.write(path, text)
		rules = append(rules, path)
	}
	s.Slack = servers.Slack(s.tb)
	hook := filepath.Join(dir, "slack-webhook-url")
	s.write(hook, s.Slack.URL)
	config := s.edited("../../rules/alertmanager.example.yaml", edit{"/etc/alertmanager/slack-webhook-url", hook},
		// The dead man's switch goes to somebody who only remembers, too.
		edit{"http://dead-mans-switch.example/lag-monitor", servers.Slack(s.tb).URL})
	// Two alerts tell the lag, a moment apart: one message takes both when it waits for that moment.
	config = groupWait.ReplaceAllString(config, "group_wait: "+p.GroupWait.String())
	if p != Production {
		// Both end a moment apart, too.
		config = groupRepeat.ReplaceAllString(config, "group_interval: "+p.GroupWait.String())
	}
	s.Alertmanager = servers.Alertmanager(s.tb, config)
	job := func(name, addr string) string {
		return fmt.Sprintf("  - {job_name: %s, static_configs: [{targets: [%q]}]}\n", name, strings.TrimPrefix(addr, "http://"))
	}
	s.Prometheus = servers.Prometheus(s.tb, fmt.Sprintf("global: {scrape_interval: %[1]v, evaluation_interval: %[1]v}\n"+
		"alerting: {alertmanagers: [{static_configs: [{targets: [%[2]q]}]}]}\nscrape_configs:\n", p.Rules, s.Alertmanager.Addr)+
		job("lag-monitor", s.MonitorURL)+job("stashdef-frontend", s.FrontendAddr)+job("stashdef-backend", s.BackendAddr), rules...)
}

// short writes 5m0s as 5m.
func short(d time.Duration) string {
	return strings.TrimSuffix(strings.TrimSuffix(d.String(), "0s"), "0m")
}

// client keeps no connections: an idle one would look like a goroutine that the test leaked.
var client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 20 * time.Second}

// Get returns the body of a 200 answer.
func Get(ctx context.Context, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", url, resp.Status, strings.TrimSpace(string(body)))
	}
	return body, err
}

// Query asks Prometheus for the values of an expression now. It is safe for concurrent use.
func (s *Stage) Query(ctx context.Context, expr string) ([]float64, error) {
	body, err := Get(ctx, s.Prometheus.URL+"/api/v1/query?"+url.Values{"query": {expr}}.Encode())
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
	var vector []struct{ Value [2]any }
	if answer.Data.ResultType == "scalar" {
		vector = make([]struct{ Value [2]any }, 1)
		err = json.Unmarshal(answer.Data.Result, &vector[0].Value)
	} else {
		err = json.Unmarshal(answer.Data.Result, &vector)
	}
	if err != nil {
		return nil, err
	}
	var values []float64
	for _, e := range vector {
		text, _ := e.Value[1].(string)
		v, err := strconv.ParseFloat(text, 64)
		if err != nil {
			return nil, err
		}
		values = append(values, v)
	}
	return values, nil
}

// Scrape reads the metrics of the frontend, the backend and the monitor. What does not answer is left out. It is safe
// for concurrent use.
func (s *Stage) Scrape(ctx context.Context) servers.Scrape {
	all := servers.Scrape{}
	for _, url := range []string{"http://" + s.FrontendAddr, "http://" + s.BackendAddr, s.MonitorURL} {
		text, err := Get(ctx, url+"/metrics")
		if err != nil {
			continue
		}
		one, err := servers.ParseScrape(text)
		if err != nil {
			continue
		}
		for name, series := range one {
			all[name] = append(all[name], series...)
		}
	}
	return all
}
