package faults_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/servers"
)

// patience is how long a row waits for something that should come much sooner: many rows run at once on a
// machine with two cores.
const patience = 90 * time.Second

// pipeline is what a row works on: two queues of one kind, and the ways on which the daemon reaches them.
type pipeline struct {
	head, dest           queue
	headProxy, destProxy *servers.FaultProxy // only the daemon goes through them; nil where there is no network
	refuse               func()              // has the head refuse the monitor from now on; nil: its proxy does
	inject, sink         string              // kind and settings in YAML, through the proxies
	unproven             bool                // nothing proves that all was read: what is missing stays in flight for hours

	// The process of the broker, for rows that ask for one of their own; nil where it cannot be had.
	broker broker
	server any // what the kind offers beside: *servers.KafkaServer, …
}

// broker is the process of a broker, with its children.
type broker interface {
	Stop()
	Kill()
	Start()
	Pause()
	Resume()
	LogTail() string
}

// kind is a kind of queue. open starts what all of its rows share, and returns a function that makes a
// pipeline for a row.
type kind struct {
	name string
	open func(t *testing.T, rows []*row) func(t *testing.T, r *row) *pipeline
	rows func() []*row

	stage  int // its rows run when those of all earlier stages are through: all at once are too much for two cores
	atOnce int // how many rows run at once, apart from those of other kinds; 0: as many as there is room for
}

// row is one fault.
type row struct {
	name string
	does string // what is done, for the table

	// fault breaks something and mends it again: it returns at the moment when nothing is broken any more.
	fault func(t *testing.T, f *field)
	plan  func(n int, m message) plan // what the relay does wrong, all the time

	interval time.Duration // of the probe; 200ms
	timeout  time.Duration // of the probe; 3s
	ttl      time.Duration // of heartbeats, also when the relay puts them; 10m, which nothing waits for
	page     time.Duration // lag that pages; 90s, which is longer than the fault and the recovery
	pages    int           // how often it must page, since the fault lasts longer than that
	settings string        // further keys of the sink and of the injector in YAML, such as "client_id: x, "
	env      []string      // further environment of the daemon
	journal  bool          // the daemon keeps one
	prefix   []string      // the command that runs the daemon, such as sh -c

	long      bool          // it takes much longer than others
	unnoticed bool          // the fault need not have any effect
	settles   time.Duration // how long it is left alone after it has recovered; as long as timeout

	keeps    time.Duration             // how long the destination keeps a message; 0: longer than a row takes
	breaks   bool                      // stops or kills the broker: it gets one that no other row uses at that time
	variant  string                    // names a broker of its own, which the kind sets up for the row
	recovers time.Duration             // the longest time of recovery; 80s
	near     float64                   // the lag in seconds below which all is well; 1
	memory   float64                   // the most resident memory of the daemon, in bytes; 0: no limit
	well     func(servers.Scrape) bool // what must hold besides when it has recovered

	secret, disk string // set by the kind: the file with the daemon's password, the disk of the broker

	once     bool // the relay tries once, and what fails is lost
	innocent bool // the pipeline loses nothing that the monitor could see: no drop may be declared

	unordered bool     // the queue keeps no order, or what comes again after an answer was lost comes behind others
	untold    bool     // nobody tells when a message came: those that come out after a time of blindness are in doubt
	ends      []string // lanes that end, and their series with them

	// headLoses says that the row destroys the head, and what it has acknowledged and nobody has read goes with it. Other rows are
	// held against what the head holds: that it is less than was acknowledged tells a loss, unless sends without an answer make up for it.
	headLoses bool

	gap  bool // messages leave the destination before they can be read: what does not come in time is in doubt
	anew bool // the daemon or the probe starts anew: earlier heartbeats are in no account
}

// field is a row while it runs.
type field struct {
	*pipeline
	*row
	daemon *daemon
	relay  *relay
	truth  *truth
	mended time.Time // when the fault had ended
}

// result is a line of the table.
type result struct {
	heartbeats, trueDrops   int
	recovery                time.Duration
	falseDrops, missedDrops int
	falsePages              int
	indeterminate, unseen   int
}

// watch is the Prometheus that all rows share, with the shipped rules, evaluated more often.
type watch struct {
	*servers.PrometheusServer
	targets string

	mu   sync.Mutex
	jobs map[string]string // address by job
}

func startWatch(t *testing.T) *watch {
	t.Helper()
	dir := t.TempDir()
	rules, err := os.ReadFile("../../rules/lag-monitor.rules.yaml")
	if err != nil {
		t.Fatal(err)
	}
	quick := filepath.Join(dir, "rules.yaml")
	if strings.Count(string(rules), "\n    interval: 15s\n") != 1 {
		t.Fatal("the rules have no group that runs every 15s")
	}
	writeFile(t, quick, strings.Replace(string(rules), "\n    interval: 15s\n", "\n    interval: 2s\n", 1))
	w := &watch{targets: filepath.Join(dir, "targets.json"), jobs: map[string]string{}}
	w.set(t, "", "")
	w.PrometheusServer = servers.Prometheus(t, fmt.Sprintf(`
global: {scrape_interval: 1s, evaluation_interval: 2s}
scrape_configs:
  - job_name: lag-monitor
    file_sd_configs: [{files: [%q], refresh_interval: 1s}]
`, w.targets), quick)
	return w
}

// set adds the target of a job, or removes it when the address is empty.
func (w *watch) set(t *testing.T, job, addr string) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if addr == "" {
		delete(w.jobs, job)
	} else {
		w.jobs[job] = addr
	}
	type group struct {
		Targets []string          `json:"targets"`
		Labels  map[string]string `json:"labels"`
	}
	groups := []group{}
	for job, addr := range w.jobs {
		groups = append(groups, group{[]string{addr}, map[string]string{"job": job}})
	}
	text, err := json.Marshal(groups)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, w.targets, string(text))
}

// knows waits until the rules know the lag of a job, so that they could page.
func (w *watch) knows(t *testing.T, job string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	w.WaitQuery(ctx, t, fmt.Sprintf("job_probe:lag_monitor_lag_seconds:max{job=%q}", job), func(s []servers.Sample) bool { return len(s) > 0 })
}

// pages returns how many pages there were for a job since a time: rises from no alert to a firing one.
func (w *watch) pages(t *testing.T, job string, since time.Time) int {
	t.Helper()
	span := int(time.Since(since).Seconds()) + 5
	pages := 0
	for _, s := range w.Query(t, fmt.Sprintf(`changes((count(ALERTS{alertname="LagHigh",alertstate="firing",severity="page",job=%q}) or vector(0))[%ds:1s])`, job, span)) {
		pages += (int(s.Value) + 1) / 2
	}
	return pages
}

// run runs a row on a pipeline and compares what the daemon says with what happened.
func (r *row) run(t *testing.T, kind string, w *watch, p *pipeline) result {
	job := kind + "_" + r.name
	f := &field{pipeline: p, row: r, truth: newTruth(), relay: &relay{head: p.head, dest: p.dest, plan: r.plan, once: r.once}}
	t.Cleanup(f.relay.start())
	var flags []string
	if r.journal {
		flags = append(flags, "--storage.path="+t.TempDir())
	}
	f.daemon = startDaemon(t, f.config(), r.anew, f.command, flags...)
	w.set(t, job, f.daemon.addr)
	defer w.set(t, job, "")
	started, near := time.Now(), orElse(r.near, 1)
	f.daemon.await(t, "heartbeats come out", patience, func(s servers.Scrape) bool {
		return s.Sum("sink_up") == 1 && s.Sum("heartbeats_received_total", "timing", "on_time") >= 10 && lag(s) < near
	})
	w.knows(t, job)

	accepted := func(s servers.Scrape) float64 { return s.Sum("heartbeats_sent_total", "result", "success") }
	refused := func(s servers.Scrape) float64 { return s.Sum("heartbeats_sent_total") - accepted(s) }
	skipped := func(s servers.Scrape) float64 { return s.Sum("heartbeats_skipped_total") }
	before, err := f.daemon.scrape(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	f.daemon.effect()
	r.fault(t, f)
	f.mended = time.Now()
	mended, err := f.daemon.scrape(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, recovered := f.daemon.await(t, "it has recovered", orElse(r.recovers, 80*time.Second), func(s servers.Scrape) bool {
		return s.Sum("sink_up") == 1 && lag(s) < near && accepted(s) >= accepted(mended)+3 && (r.well == nil || r.well(s))
	})
	if took := recovered.Sub(f.mended); took > 10*time.Second {
		t.Logf("it took %v to recover; end of the daemon's log:\n%s", took, f.daemon.LogTail())
	}
	after, err := f.daemon.scrape(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	e := f.daemon.effect()
	t.Logf("largest lag %.1f s, sink down %v, %v sends refused or unknown, %v ticks without one", e.lag, e.down, refused(after)-refused(before), skipped(after)-skipped(before))
	// A fault that nobody notices proves nothing.
	if r.plan == nil && !r.unnoticed && e.lag < near && !e.down && refused(after) == refused(before) && skipped(after) == skipped(before) {
		t.Error("the fault had no effect at all")
	}
	// What the fault left behind for later shows while all is well: a timer that still runs, a second copy.
	wait(t, orElse(r.settles, orElse(r.timeout, 3*time.Second)))
	f.daemon.await(t, "it stays well", patience, func(s servers.Scrape) bool { return s.Sum("sink_up") == 1 && lag(s) < near })
	pages := w.pages(t, job, started)
	w.set(t, job, "")

	said := f.quiesce(t)
	f.daemon.unwatch()
	res := f.compare(t, said)
	res.recovery = recovered.Sub(f.mended)
	res.falsePages = max(0, pages-r.pages)
	if pages != r.pages {
		t.Errorf("%d pages; want %d", pages, r.pages)
	}
	if r.memory > 0 && f.daemon.worst > r.memory {
		t.Errorf("the daemon took up to %.0f MB", f.daemon.worst/1e6)
	}
	for _, c := range f.daemon.complaints() {
		t.Error(c)
	}
	return res
}

// config is the daemon's configuration. With the default TTL a queue could have thrown away what nobody read for
// a few seconds, and a row would show doubt or none by how long a broker takes to start.
func (f *field) config() string {
	return fmt.Sprintf(`
global: {interval: %v, timeout: %v, send_timeout: 2s, page: {lag: %v}}
sinks:
  out: {%s}
probes:
  row:
    ttl: %v
    inject: {%s}
    sinks: [out]
`, orElse(f.interval, 200*time.Millisecond), orElse(f.timeout, 3*time.Second), orElse(f.page, 90*time.Second), f.sink,
		orElse(f.ttl, 10*time.Minute), f.inject)
}

// onServers starts a server for the rows that leave it alone, if there are any, and up to n for those that break one: each of them
// has one to itself while it lasts. open makes the pipeline of a row on its server.
func onServers[S any](rows []*row, n int, start, startBroken func() S, open func(*testing.T, *row, S) *pipeline) func(*testing.T, *row) *pipeline {
	var shared S
	has, broken := false, make(chan S, n)
	for _, r := range rows {
		switch {
		case r.breaks && len(broken) < n:
			broken <- startBroken()
		case !r.breaks && !has:
			shared, has = start(), true
		}
	}
	return func(t *testing.T, r *row) *pipeline {
		if r.breaks {
			s := <-broken
			t.Cleanup(func() { broken <- s })
			return open(t, r, s)
		}
		return open(t, r, shared)
	}
}

func orElse[T comparable](v, otherwise T) T {
	var zero T
	if v == zero {
		return otherwise
	}
	return v
}
