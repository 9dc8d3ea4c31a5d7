package e2e_test

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/heartbeat"
	"github.com/lag-monitor/lag-monitor/internal/servers"
)

// TestKeyRotation goes through all steps of a rotation, from unsigned heartbeats to a second key and to a
// key file that is replaced, each with heartbeats on their way in the pipeline.
func TestKeyRotation(t *testing.T) {
	t.Parallel()
	servers.Need(t)
	dir, addr := t.TempDir(), servers.FreeAddr(t)
	var last atomic.Pointer[[]byte]
	put := func(ctx context.Context, body []byte) error {
		_, err := call(ctx, http.MethodPost, "http://"+addr, strings.NewReader(string(body)))
		return err
	}
	r := startRelay(t, func(ctx context.Context, body []byte) error {
		last.Store(&body)
		return put(ctx, body)
	})
	config := filepath.Join(dir, "config.yaml")
	use := func(keys string) {
		write(t, config, fmt.Sprintf(`
global: {instance: e2e, timeout: 10m%s}
sinks:
  out: {webhook: {listen: %q}}
probes:
  orders: {interval: 20ms, inject: {http: {url: %q}}, sinks: [out]}
`, keys, addr, r.url))
	}
	write(t, filepath.Join(dir, "a"), "the first key, which is long enough")
	write(t, filepath.Join(dir, "b"), "the second key, which is long enough")
	use("")
	d := startDaemonAt(t, config, "--config.watch", "--config.watch-interval=50ms")
	forge := func(keys *heartbeat.Keyring) string {
		var h heartbeat.Heartbeat
		_, token, _, _ := heartbeat.Next(*last.Load())
		for _, k := range []string{"", "the first key, which is long enough", "the second key, which is long enough", "the third key, which is long enough"} {
			ring := heartbeat.NewKeyring([]byte(k))
			if k == "" {
				ring = heartbeat.NewKeyring()
			}
			if ring.Decode(token, &h) == nil {
				// One that is on its way, and was sent under the keys of now.
				accepted, delivered := r.counts()
				h.Seq += uint64(accepted - delivered)
				h.Sent = time.Now()
				return string(keys.Append(nil, &h))
			}
		}
		t.Fatalf("nobody knows who signed %s", token)
		return ""
	}
	reloads := func(s scrape) float64 { return s.Sum("config_last_reload_success_timestamp_seconds") }
	accepted := func(n int) {
		t.Helper()
		before, _ := r.counts()
		eventually(t, "the head accepts", func() bool { now, _ := r.counts(); return now >= before+n })
	}

	forged := 0.0
	for _, step := range []struct {
		what   string
		change func()
		forger *heartbeat.Keyring // whom nobody believes after the step
	}{
		{"signed", func() { use(", key: {file: a}") }, heartbeat.NewKeyring()},
		{"a second key verifies", func() { use(", key: [{file: a}, {file: b}]") }, heartbeat.NewKeyring([]byte("a guess"))},
		{"the second key signs", func() { use(", key: [{file: b}, {file: a}]") }, heartbeat.NewKeyring()},
		{"the first key is taken away", func() { use(", key: {file: b}") }, heartbeat.NewKeyring([]byte("the first key, which is long enough"))},
		{"only the key's file changes", func() { write(t, filepath.Join(dir, "b"), "the third key, which is long enough") },
			heartbeat.NewKeyring([]byte("the second key, which is long enough"))},
	} {
		accepted(3)
		r.hold()
		accepted(3)
		before := d.scrape(t)
		step.change()
		d.await(t, step.what+": reloaded", func(s scrape) bool { return reloads(s) > reloads(before) })
		accepted(3)

		// The pipeline stands still: what moves now was moved by the forger.
		before = d.scrape(t)
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		for range 3 {
			if err := put(ctx, []byte(forge(step.forger))); err != nil {
				t.Fatal(err)
			}
			forged++
		}
		cancel()
		s := d.scrape(t)
		s.wants(t, map[string]float64{
			"sink_messages_total kind corrupt":         forged,
			"heartbeat_timestamp_seconds":              before.Sum("heartbeat_timestamp_seconds"),
			"heartbeats_received_total timing on_time": before.Sum("heartbeats_received_total", "timing", "on_time"),
		})

		r.resume()
		held, _ := r.counts()
		d.await(t, step.what+": what was held has arrived", func(s scrape) bool { return progress(s, "orders") >= float64(held) })
		d.scrape(t).wants(t, map[string]float64{
			"sink_messages_total kind corrupt": forged, "sink_messages_total kind foreign": 0, "sink_messages_total kind future": 0,
			"heartbeats_dropped_total": 0, "heartbeats_indeterminate_total": 0, "heartbeats_duplicated_total": 0,
			"config_last_reload_successful": 1,
		})
		if t.Failed() {
			t.Fatalf("after: %s", step.what)
		}
	}

	// A key that cannot be read is no reason to go on without one.
	before := d.scrape(t)
	use(", key: {file: missing}")
	d.await(t, "the missing key is reported", func(s scrape) bool { return s.Sum("config_last_reload_successful") == 0 })
	after := d.await(t, "the key before goes on", func(s scrape) bool { return progress(s, "orders") >= progress(before, "orders")+10 })
	after.wants(t, map[string]float64{"sink_messages_total kind corrupt": forged, "heartbeats_dropped_total": 0})
}
