package faults_test

import (
	"context"
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/servers"
)

// client keeps no connections: an idle one would look like a goroutine that the test leaked.
var client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 20 * time.Second}

// daemon is a running lag-monitor that is scraped twice a second from its start to its end. Whatever happens,
// the accounts must add up in every scrape, and neither a counter nor a timestamp may go back.
type daemon struct {
	*servers.Process
	addr, config string
	anew         bool // counters may begin anew, since the process or the probe is started again

	cancel context.CancelFunc
	done   chan struct{}

	mu      sync.Mutex
	last    servers.Scrape
	sums    map[string]*servers.Series // of the counters, over all runs, by name and labels
	wrong   []string
	scrapes int
	worst   float64 // resident memory in bytes
	seen    effect
	each    func(began time.Time, s servers.Scrape) (wrong []string) // looks at each scrape instead of add and wentBack, unless nil
}

// effect is what scrapes showed of a fault.
type effect struct {
	lag  float64 // the largest, in seconds
	down bool    // a sink did not read
}

// effect returns what scrapes have shown since the last call.
func (d *daemon) effect() effect {
	d.mu.Lock()
	defer d.mu.Unlock()
	e := d.seen
	d.seen = effect{}
	return e
}

// startDaemon runs lag-monitor until the test ends. command makes its command line; nil: the binary with
// the two flags that each needs.
func startDaemon(t *testing.T, config string, anew bool, command func(flags ...string) *exec.Cmd, flags ...string) *daemon {
	t.Helper()
	d := &daemon{anew: anew, addr: servers.FreeAddr(t), config: filepath.Join(t.TempDir(), "config.yaml"), done: make(chan struct{}), sums: map[string]*servers.Series{}}
	d.configure(t, config)
	if command == nil {
		command = func(flags ...string) *exec.Cmd { return exec.Command(daemonBinary, flags...) }
	}
	flags = append([]string{"--config.file=" + d.config, "--web.listen-address=" + d.addr}, flags...)
	d.Process = servers.Program(t, "lag-monitor", func() *exec.Cmd { return command(flags...) }, func(ctx context.Context) error {
		_, err := get(ctx, "http://"+d.addr+"/-/healthy")
		return err
	})
	ctx, cancel := context.WithCancel(context.Background())
	d.cancel = cancel
	go d.watch(ctx)
	t.Cleanup(d.unwatch)
	return d
}

// configure replaces the configuration file in one step.
func (d *daemon) configure(t *testing.T, config string) {
	t.Helper()
	writeFile(t, d.config, config)
}

// writeFile replaces a file in one step, so that nobody reads half of it.
func writeFile(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func (d *daemon) watch(ctx context.Context) {
	defer close(d.done)
	for tick := time.NewTicker(500 * time.Millisecond); ; {
		select {
		case <-ctx.Done():
			tick.Stop()
			return
		case <-tick.C:
			// It may be dead at the moment, on purpose.
			_, _ = d.scrape(ctx)
		}
	}
}

// unwatch ends the scrapes.
func (d *daemon) unwatch() {
	d.cancel()
	<-d.done
}

// scrape reads /metrics and looks at what must hold in every scrape.
func (d *daemon) scrape(ctx context.Context) (servers.Scrape, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	before := time.Now()
	text, err := get(ctx, "http://"+d.addr+"/metrics")
	if err != nil {
		return nil, err
	}
	s, err := servers.ParseScrape(text)
	if err != nil {
		return nil, err
	}
	d.scrapes++
	for _, e := range s["process_resident_memory_bytes"] {
		d.worst = max(d.worst, e.Value)
	}
	if len(s.Find("lag_seconds")) > 0 {
		d.seen.lag = max(d.seen.lag, lag(s))
	}
	d.seen.down = d.seen.down || s.Sum("sink_up") < 1
	d.wrong = append(d.wrong, addsUp(s)...)
	if d.each != nil {
		d.wrong = append(d.wrong, d.each(before, s)...)
		d.last = s
		return s, nil
	}
	d.add(s)
	if !d.anew {
		d.wrong = append(d.wrong, wentBack(d.last, s)...)
	}
	d.last = s
	return s, nil
}

// counters are those that wentBack and totals look at.
var counters = []string{
	"heartbeats_sent_total", "heartbeats_received_total", "heartbeats_dropped_total", "heartbeats_indeterminate_total", "heartbeats_duplicated_total",
	"heartbeats_reordered_total", "heartbeats_restored_total", "heartbeat_latency_seconds_count", "sink_messages_total",
}

// add adds up how far the counters have come since the last scrape, as Prometheus does: one that is lower began anew.
func (d *daemon) add(s servers.Scrape) {
	for _, name := range counters {
		for _, e := range s.Find(name) {
			key := fmt.Sprint(name, e.Labels)
			sum := d.sums[key]
			if sum == nil {
				sum = &servers.Series{Labels: e.Labels}
				d.sums[key] = sum
			}
			before := 0.0
			for _, b := range d.last.Find(name) {
				if fmt.Sprint(b.Labels) == fmt.Sprint(e.Labels) && b.Value <= e.Value {
					before = b.Value
				}
			}
			sum.Value += e.Value - before
		}
	}
}

// totals returns the counters added up over all runs.
func (d *daemon) totals() servers.Scrape {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := servers.Scrape{}
	for key, sum := range d.sums {
		name, _, _ := strings.Cut(key, "map[")
		s["lag_monitor_"+name] = append(s["lag_monitor_"+name], *sum)
	}
	return s
}

// complaints returns what was wrong in the scrapes.
func (d *daemon) complaints() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.wrong
}

// addsUp checks the account of each pair of a probe and a sink.
func addsUp(s servers.Scrape) (wrong []string) {
	for _, e := range s.Find("heartbeats_in_flight") {
		pair := []string{"probe", e.Labels["probe"], "sink", e.Labels["sink"]}
		if len(s.Find("heartbeats_sent_total", pair[:2]...)) == 0 {
			continue
		}
		sent := s.Sum("heartbeats_sent_total", "probe", pair[1], "result", "success") + s.Sum("heartbeats_sent_total", "probe", pair[1], "result", "unknown")
		restored := s.Sum("heartbeats_restored_total", pair...)
		onTime := s.Sum("heartbeats_received_total", append(pair, "timing", "on_time")...)
		dropped, unknown := s.Sum("heartbeats_dropped_total", pair...), s.Sum("heartbeats_indeterminate_total", pair...)
		if sent+restored != onTime+dropped+unknown+e.Value {
			wrong = append(wrong, fmt.Sprintf("the account of %v does not add up: sent %v + restored %v; on time %v + dropped %v + indeterminate %v + in flight %v",
				pair, sent, restored, onTime, dropped, unknown, e.Value))
		}
	}
	return wrong
}

// wentBack compares two scrapes, one after the other.
func wentBack(before, after servers.Scrape) (wrong []string) {
	for _, name := range append([]string{"heartbeat_timestamp_seconds"}, counters...) {
		for _, b := range before.Find(name) {
			for _, a := range after.Find(name) {
				if fmt.Sprint(a.Labels) == fmt.Sprint(b.Labels) && a.Value < b.Value {
					wrong = append(wrong, fmt.Sprintf("%s%v went back from %v to %v", name, a.Labels, b.Value, a.Value))
				}
			}
		}
	}
	return wrong
}

// await scrapes until ok accepts a scrape, and returns that one and when it was.
func (d *daemon) await(t *testing.T, what string, patience time.Duration, ok func(servers.Scrape) bool) (servers.Scrape, time.Time) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
		s, err := d.scrape(t.Context())
		if err == nil && ok(s) {
			return s, time.Now()
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s; last scrape (%v):\n%s", patience, what, err, s)
		}
	}
}

// lag is the largest lag of all lanes in seconds, and infinite while there is none.
func lag(s servers.Scrape) float64 {
	lags := s.Find("lag_seconds")
	if len(lags) == 0 {
		return math.Inf(1)
	}
	worst := 0.0
	for _, l := range lags {
		worst = max(worst, l.Value)
	}
	return worst
}

func get(ctx context.Context, url string) ([]byte, error) {
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
		err = fmt.Errorf("%s: %s: %s", url, resp.Status, body)
	}
	return body, err
}
