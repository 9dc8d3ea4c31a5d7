package e2e_test

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/lag-monitor/lag-monitor/internal/servers"
)

// webhookPipeline is a pipeline that needs no broker: its relay posts to a webhook sink of the monitor.
type webhookPipeline struct {
	*relay
	listen string
}

func startWebhookPipeline(t *testing.T) *webhookPipeline {
	t.Helper()
	addr := servers.FreeAddr(t)
	return &webhookPipeline{
		relay: startRelay(t, func(ctx context.Context, body []byte) error {
			_, err := call(ctx, http.MethodPost, "http://"+addr, strings.NewReader(string(body)))
			return err
		}),
		listen: addr,
	}
}

// team is an included file with one probe.
func (p *webhookPipeline) team(name, interval string) string {
	return fmt.Sprintf(`
sinks:
  %[1]s-out: {webhook: {listen: %[2]q}}
probes:
  %[1]s: {interval: %[3]s, inject: {http: {url: %[4]q}}, sinks: [%[1]s-out]}
`, name, p.listen, interval, p.url)
}

const reloadMain = "global: {timeout: 1m}\ninclude: [team-*.yaml]\n"

// progress returns how many heartbeats of a probe have arrived; 0 after its counters began anew.
func progress(s scrape, probe string) float64 {
	return s.Sum("heartbeats_received_total", "probe", probe, "timing", "on_time")
}

// TestReload: what is unchanged keeps its counters over a reload, and a broken file of one team leaves
// that team's last good version in force.
func TestReload(t *testing.T) {
	t.Parallel()
	servers.Need(t)
	dir := t.TempDir()
	orders, payments := startWebhookPipeline(t), startWebhookPipeline(t)
	config := filepath.Join(dir, "config.yaml")
	paymentsFile := filepath.Join(dir, "team-payments.yaml")
	write(t, config, reloadMain)
	write(t, filepath.Join(dir, "team-orders.yaml"), orders.team("orders", "50ms"))
	write(t, paymentsFile, payments.team("payments", "50ms"))
	d := startDaemonAt(t, config)

	// after waits until both go on, and checks that orders has lost nothing of its account.
	after := func(what string, before scrape) scrape {
		t.Helper()
		now := d.scrape(t)
		if progress(now, "orders") < progress(before, "orders") {
			t.Errorf("%s: orders was not changed and counts anew: %v heartbeats, then %v", what, progress(before, "orders"), progress(now, "orders"))
		}
		return d.await(t, what+": both go on", func(s scrape) bool {
			return progress(s, "orders") >= progress(now, "orders")+20 && progress(s, "payments") >= 20
		})
	}
	interval := func(seconds float64) func(scrape) bool {
		return func(s scrape) bool { return s.Sum("probe_interval_seconds", "probe", "payments") == seconds }
	}
	s := after("start", d.await(t, "it runs", func(s scrape) bool { return len(s.Find("heartbeats_in_flight")) == 2 }))
	s.wants(t, map[string]float64{"config_last_reload_successful": 1})

	write(t, paymentsFile, payments.team("payments", "60ms"))
	d.Signal(syscall.SIGHUP)
	before := s
	d.await(t, "SIGHUP reloads", interval(0.06))
	s = after("SIGHUP", before)

	write(t, paymentsFile, payments.team("payments", "70ms"))
	if status, text := d.reload(t); status != http.StatusOK {
		t.Errorf("POST /-/reload: %d: %s", status, text)
	}
	d.scrape(t).wants(t, map[string]float64{"probe_interval_seconds probe payments": 0.07})
	s = after("POST /-/reload", s)

	write(t, paymentsFile, strings.Replace(payments.team("payments", "80ms"), "interval", "intervall", 1))
	status, text := d.reload(t)
	if want := paymentsFile + ":5: probes.payments.intervall: unknown key"; status != http.StatusInternalServerError || !strings.Contains(text, want) {
		t.Errorf("a bad included file: %d: %s\nwant 500 and %s", status, text, want)
	}
	bad := d.scrape(t)
	bad.wants(t, map[string]float64{"config_last_reload_successful": 0, "probe_interval_seconds probe payments": 0.07})
	if progress(bad, "payments") < progress(s, "payments") {
		t.Errorf("the last good version of payments counts anew: %v heartbeats, then %v", progress(s, "payments"), progress(bad, "payments"))
	}
	s = after("a bad included file", bad)

	write(t, paymentsFile, payments.team("payments", "80ms"))
	if status, text := d.reload(t); status != http.StatusOK {
		t.Errorf("POST /-/reload after the mistake was mended: %d: %s", status, text)
	}
	d.scrape(t).wants(t, map[string]float64{"config_last_reload_successful": 1, "probe_interval_seconds probe payments": 0.08})
	s = after("mended", s)
	s.wants(t, map[string]float64{
		"heartbeats_dropped_total probe orders":       0,
		"heartbeats_indeterminate_total probe orders": 0,
		// The tick of the start may come before the sink reads; no reload adds to that.
		"heartbeats_skipped_total probe orders reason sink_not_ready": before.Sum("heartbeats_skipped_total", "probe", "orders", "reason", "sink_not_ready"),
	})

	d.Stop()
	if err := d.Exit(); err != nil {
		t.Errorf("after SIGTERM: %v", err)
	}
}

// TestWatch: --config.watch sees that Kubernetes has swapped the folder of a ConfigMap.
func TestWatch(t *testing.T) {
	t.Parallel()
	servers.Need(t)
	dir := t.TempDir()
	orders, payments := startWebhookPipeline(t), startWebhookPipeline(t)
	// As the kubelet does it: a folder for each version, a link to it that is replaced in one step, and
	// links to the files through that link.
	publish := func(version string, files map[string]string) {
		t.Helper()
		data := filepath.Join(dir, ".."+version)
		old, _ := os.Readlink(filepath.Join(dir, "..data"))
		if err := os.Mkdir(data, 0o700); err != nil {
			t.Fatal(err)
		}
		for name, content := range files {
			write(t, filepath.Join(data, name), content)
		}
		if err := os.Symlink(filepath.Base(data), filepath.Join(dir, "..data_tmp")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")); err != nil {
			t.Fatal(err)
		}
		for name := range files {
			if err := os.Symlink(filepath.Join("..data", name), filepath.Join(dir, name)); err != nil && !os.IsExist(err) {
				t.Fatal(err)
			}
		}
		if old != "" {
			if err := os.RemoveAll(filepath.Join(dir, old)); err != nil {
				t.Fatal(err)
			}
		}
	}
	version := func(interval string) map[string]string {
		return map[string]string{
			"config.yaml": reloadMain, "team-orders.yaml": orders.team("orders", "50ms"), "team-payments.yaml": payments.team("payments", interval),
		}
	}
	publish("2026_01_01", version("50ms"))
	d := startDaemonAt(t, filepath.Join(dir, "config.yaml"), "--config.watch", "--config.watch-interval=100ms")
	before := d.await(t, "both go on", func(s scrape) bool { return progress(s, "orders") >= 20 && progress(s, "payments") >= 20 })

	publish("2026_01_02", version("60ms"))
	now := d.await(t, "the new version is taken up", func(s scrape) bool { return s.Sum("probe_interval_seconds", "probe", "payments") == 0.06 })
	if progress(now, "orders") < progress(before, "orders") {
		t.Errorf("orders was not changed and counts anew: %v heartbeats, then %v", progress(before, "orders"), progress(now, "orders"))
	}
	now.wants(t, map[string]float64{"config_last_reload_successful": 1})

	bad := version("70ms")
	bad["team-payments.yaml"] = "probes: [\n"
	publish("2026_01_03", bad)
	d.await(t, "the mistake is reported", func(s scrape) bool { return s.Sum("config_last_reload_successful") == 0 })
	d.scrape(t).wants(t, map[string]float64{"probe_interval_seconds probe payments": 0.06})

	publish("2026_01_04", version("80ms"))
	d.await(t, "the mended version is taken up", func(s scrape) bool {
		return s.Sum("config_last_reload_successful") == 1 && s.Sum("probe_interval_seconds", "probe", "payments") == 0.08
	})
	d.scrape(t).wants(t, map[string]float64{"heartbeats_dropped_total probe orders": 0, "heartbeats_indeterminate_total probe orders": 0})
}
