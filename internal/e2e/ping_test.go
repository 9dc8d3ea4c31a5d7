package e2e_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/lag-monitor/lag-monitor/internal/servers"
)

// output runs the binary to its end and returns its exit code, what it wrote, and what it complained about.
func output(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	cmd := command(args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

// jsonLines decodes an object a line.
func jsonLines(t *testing.T, text string) (out []map[string]any) {
	t.Helper()
	for d := json.NewDecoder(bytes.NewReader([]byte(text))); d.More(); {
		var v map[string]any
		if err := d.Decode(&v); err != nil {
			t.Fatalf("%v in %s", err, text)
		}
		out = append(out, v)
	}
	return out
}

// TestPingDisturbsNobody: ping runs a probe beside the monitor that it belongs to, with the same file on the
// same host, and beside one that only listens. Its own account is exact; to the others its heartbeats are
// foreign, and they change nothing else. tail tells the heartbeats of both apart.
func TestPingDisturbsNobody(t *testing.T) {
	t.Parallel()
	servers.Need(t)
	for name, start := range queues {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			q := start(t)
			dir := t.TempDir()
			config, listens := filepath.Join(dir, "config.yaml"), filepath.Join(dir, "listens.yaml")
			write(t, filepath.Join(dir, "key"), "a key of the test")
			const head = "global: {instance: e2e, key: {file: key}, interval: 200ms, timeout: 1m}\n"
			write(t, config, head+fmt.Sprintf("sinks: {out: {%s}}\nprobes: {orders: {inject: {%s}, sinks: [out]}}\n", q.sink, q.inject))
			write(t, listens, head+fmt.Sprintf("sinks: {out: {%s}}\nprobes: {orders: {sinks: [out]}}\n", q.sink))
			d, l := startDaemonAt(t, config), startDaemonAt(t, listens)
			lanes := float64(q.lanes)
			arrived := func(s scrape) bool { return s.Sum("heartbeats_received_total") >= 2*lanes }
			d.await(t, "heartbeats arrive", arrived)
			l.await(t, "heartbeats arrive at the one that listens", arrived)

			const count = 5
			code, out, complaints := output(t, "ping", "--config.file="+config, fmt.Sprint("-c", count), "-i", "100ms", "--json")
			lines := jsonLines(t, out)
			if code != 0 || len(lines) != 2+count*q.lanes {
				t.Fatalf("exit code %d, %d lines:\n%s%s", code, len(lines), out, complaints)
			}
			summary := lines[len(lines)-1]
			at := summary["sinks"].([]any)[0].(map[string]any)
			for _, k := range []string{"sent", "on_time"} {
				if at[k] != count*lanes {
					t.Errorf("ping: %s is %v; want %v", k, at[k], count*lanes)
				}
			}
			if summary["accepted"] != count*lanes || summary["loss"] != 0. || at["dropped"] != 0. || at["indeterminate"] != 0. || at["duplicated"] != 0. {
				t.Errorf("ping: %v", summary)
			}

			for who, m := range map[string]*daemon{"sends": d, "listens": l} {
				s := m.await(t, "the heartbeats of ping are seen by the one that "+who, func(s scrape) bool { return s.Sum("sink_messages_total", "kind", "foreign") >= count*lanes })
				s.wants(t, map[string]float64{
					"sink_messages_total kind foreign": count * lanes, "sink_messages_total kind corrupt": 0, "heartbeats_dropped_total": 0,
					"heartbeats_indeterminate_total": 0, "heartbeats_duplicated_total": 0, "heartbeats_unaccounted_total": 0,
				})
				if lost := len(s.Find("lag_seconds")); lost != q.lanes {
					t.Errorf("the one that %s has %d lanes; want %d", who, lost, q.lanes)
				}
			}

			// Both at once, as tail sees them.
			pinged := make(chan struct{})
			go func() {
				defer close(pinged)
				_ = command("ping", "--config.file="+config, "-c20", "-i", "100ms", "-q").Run()
			}()
			code, out, complaints = output(t, "tail", "out", "--config.file="+config, fmt.Sprint("-n", 16*q.lanes), "--timeout=60s", "--json")
			<-pinged
			if code != 0 {
				t.Fatalf("tail: exit code %d: %s%s", code, out, complaints)
			}
			kinds := map[string]int{}
			for _, line := range jsonLines(t, out) {
				kinds[fmt.Sprint(line["kind"], " ", line["probe"], " ", line["instance"])]++
			}
			if len(kinds) != 2 || kinds["heartbeat orders e2e"] == 0 || kinds["foreign orders-ping e2e/ping"] == 0 {
				t.Errorf("tail saw %v", kinds)
			}
		})
	}
}

// TestPingLoss: what a pipeline loses, refuses or holds is what the account and the exit code say.
func TestPingLoss(t *testing.T) {
	t.Parallel()
	servers.Need(t)
	q := natsQueue(t)
	lossy := startRelay(t, q.put, func(r *relay) { r.copies = func(n int) int { return (n + 1) % 2 * 2 } }) // each second one twice, the others never
	refusing := startRelay(t, q.put, func(r *relay) { r.limit = 3 })
	config := filepath.Join(t.TempDir(), "config.yaml")
	write(t, config, fmt.Sprintf("sinks: {out: {%s}}\nprobes:\n  lossy: {inject: {http: {url: %q}}, sinks: [out]}\n  refusing: {inject: {http: {url: %q}}, sinks: [out]}\n",
		q.sink, lossy.url, refusing.url))
	for _, c := range []struct {
		probe, maxLoss string
		code           int
		want           map[string]float64
		at             map[string]float64
	}{
		{"lossy", "0", 1, map[string]float64{"accepted": 10, "refused": 0, "loss": .5}, map[string]float64{"sent": 10, "on_time": 5, "dropped": 5, "duplicated": 5}},
		{"lossy", "50%", 0, map[string]float64{"accepted": 10, "loss": .5}, map[string]float64{"on_time": 5, "dropped": 5}},
		{"refusing", "0.69", 1, map[string]float64{"accepted": 3, "refused": 7, "loss": .7}, map[string]float64{"sent": 3, "on_time": 3}},
		{"refusing", "1", 0, map[string]float64{"accepted": 0, "refused": 10, "loss": 1}, map[string]float64{"sent": 0}},
	} {
		code, out, complaints := output(t, "ping", c.probe, "--config.file="+config, "-c10", "-i", "50ms", "--timeout=3s", "--max-loss="+c.maxLoss, "--json", "-q")
		lines := jsonLines(t, out)
		if code != c.code || len(lines) != 1 {
			t.Errorf("%s: exit code %d; want %d:\n%s%s", c.probe, code, c.code, out, complaints)
			continue
		}
		for k, v := range c.want {
			if lines[0][k] != v {
				t.Errorf("%s: %s is %v; want %v", c.probe, k, lines[0][k], v)
			}
		}
		at := lines[0]["sinks"].([]any)[0].(map[string]any)
		for k, v := range c.at {
			if at[k] != v {
				t.Errorf("%s: %s is %v; want %v", c.probe, k, at[k], v)
			}
		}
	}
}
