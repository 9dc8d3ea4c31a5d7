package e2e_test

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/servers"
)

// patience is how long a test waits for something that should come much sooner: several packages test
// at once on a machine with two cores.
const patience = 90 * time.Second

// client keeps no connections: an idle one would look like a goroutine that the test leaked.
var client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 20 * time.Second}

// environment is what every daemon and every check finds in its environment beside the test's own.
var environment = []string{"E2E_AWS_KEY=" + servers.KinesisAccessKey, "E2E_AWS_SECRET=" + servers.KinesisSecretKey}

// command is one call of the binary.
func command(args ...string) *exec.Cmd {
	cmd := exec.Command(binary, args...)
	cmd.Env = append(os.Environ(), environment...)
	return cmd
}

// daemon is a running lag-monitor. Start, Stop, Kill and Signal are those of its process.
type daemon struct {
	*servers.Process
	addr   string // of its web server, the same after a restart
	config string // path of its configuration file
}

// startDaemon runs lag-monitor with a configuration until the test ends.
func startDaemon(t *testing.T, config string, flags ...string) *daemon {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.yaml")
	write(t, path, config)
	return startDaemonAt(t, path, flags...)
}

// startDaemonAt runs lag-monitor with the configuration file at path.
func startDaemonAt(t *testing.T, path string, flags ...string) *daemon {
	t.Helper()
	d := &daemon{addr: servers.FreeAddr(t), config: path}
	flags = append([]string{"--config.file=" + path, "--web.listen-address=" + d.addr}, flags...)
	d.Process = servers.Program(t, "lag-monitor", func() *exec.Cmd { return command(flags...) }, func(ctx context.Context) error {
		_, err := call(ctx, http.MethodGet, "http://"+d.addr+"/-/healthy", nil)
		return err
	})
	return d
}

// reload asks for a reload and returns the status and the text of the answer.
func (d *daemon) reload(t *testing.T) (int, string) {
	t.Helper()
	resp, err := client.Post("http://"+d.addr+"/-/reload", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

// scrape reads /metrics. Whenever it is called, each account must add up.
func (d *daemon) scrape(t *testing.T) scrape {
	t.Helper()
	s, err := d.tryScrape()
	if err != nil {
		t.Fatal(err)
	}
	s.addsUp(t)
	return s
}

func (d *daemon) tryScrape() (scrape, error) {
	text, err := call(context.Background(), http.MethodGet, "http://"+d.addr+"/metrics", nil)
	if err != nil {
		return scrape{}, err
	}
	s, err := servers.ParseScrape(text)
	return scrape{s}, err
}

// await scrapes again and again until ok accepts a scrape, and returns that one.
func (d *daemon) await(t *testing.T, what string, ok func(scrape) bool) scrape {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		s := d.scrape(t)
		if ok(s) {
			return s
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s; last scrape:\n%s", patience, what, s)
		}
	}
}

// scrape is what /metrics said.
type scrape struct{ servers.Scrape }

// wants reports every difference between the scrape and a table: the key is a metric's name (without
// lag_monitor_) and pairs of label and value, all separated by spaces; the value is what they add up to.
func (s scrape) wants(t *testing.T, table map[string]float64) {
	t.Helper()
	for _, key := range slices.Sorted(maps.Keys(table)) {
		f := strings.Fields(key)
		if len(s.Find(f[0], f[1:]...)) == 0 {
			t.Errorf("%s: no such series", key)
		} else if got := s.Sum(f[0], f[1:]...); got != table[key] {
			t.Errorf("%s: %v; want %v", key, got, table[key])
		}
	}
}

// addsUp checks the account of each pair of a probe that injects and a sink.
func (s scrape) addsUp(t *testing.T) {
	t.Helper()
	for _, e := range s.Find("heartbeats_in_flight") {
		probe, sink := e.Labels["probe"], e.Labels["sink"]
		if len(s.Find("heartbeats_sent_total", "probe", probe)) == 0 {
			continue
		}
		sent := s.Sum("heartbeats_sent_total", "probe", probe, "result", "success") + s.Sum("heartbeats_sent_total", "probe", probe, "result", "unknown")
		onTime := s.Sum("heartbeats_received_total", "probe", probe, "sink", sink, "timing", "on_time")
		dropped := s.Sum("heartbeats_dropped_total", "probe", probe, "sink", sink)
		unknown := s.Sum("heartbeats_indeterminate_total", "probe", probe, "sink", sink)
		restored := s.Sum("heartbeats_restored_total", "probe", probe, "sink", sink)
		if sent+restored != onTime+dropped+unknown+e.Value {
			t.Fatalf("the account of %s at %s does not add up: sent %v + restored %v; on time %v + dropped %v + indeterminate %v + in flight %v",
				probe, sink, sent, restored, onTime, dropped, unknown, e.Value)
		}
	}
}

// call makes one HTTP request and returns the body of a 2xx answer.
func call(ctx context.Context, method, url string, body io.Reader) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
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

// eventually waits until ok returns true.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

// write replaces a file in one step, so that nobody reads half of it.
func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}
