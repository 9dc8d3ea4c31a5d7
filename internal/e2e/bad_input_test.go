package e2e_test

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/heartbeat"
	"github.com/lag-monitor/lag-monitor/internal/servers"
)

// TestBadTokens puts what is no heartbeat of ours into real queues. It is counted by kind and moves
// nothing else.
func TestBadTokens(t *testing.T) {
	t.Parallel()
	servers.Need(t)
	for _, name := range []string{"kafka4", "kinesis", "nats"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			badTokens(t, queues[name](t))
		})
	}
}

func badTokens(t *testing.T, q *queue) {
	const key = "the key of this test, which is long"
	dir := t.TempDir()
	write(t, filepath.Join(dir, "key"), key)
	var captured struct {
		sync.Mutex
		body []byte
	}
	r := startRelay(t, func(ctx context.Context, body []byte) error {
		captured.Lock()
		captured.body = body
		captured.Unlock()
		return q.put(ctx, body)
	})
	// One heartbeat, at the start: whatever moves later was moved by what the test puts in.
	config := filepath.Join(dir, "config.yaml")
	write(t, config, fmt.Sprintf(`
global: {instance: e2e, key: {file: key}, interval: 1h, timeout: 1h}
sinks:
  orders: {%s}
probes:
  orders: {inject: {http: {url: %q}}, sinks: [orders]}
`, q.sink, r.url))
	d := startDaemonAt(t, config)
	before := d.await(t, "the heartbeat has arrived", func(s scrape) bool { return s.Sum("heartbeats_received_total") == 1 })
	before.wants(t, map[string]float64{"sink_messages_total kind heartbeat": 1})

	keys := heartbeat.NewKeyring([]byte(key))
	_, whole, _, _ := heartbeat.Next(captured.body)
	var own heartbeat.Heartbeat
	if err := keys.Decode(whole, &own); err != nil {
		t.Fatal(err)
	}
	token := func(keys *heartbeat.Keyring, change func(*heartbeat.Heartbeat)) string {
		h := own
		h.Sent = time.Now()
		change(&h)
		return string(keys.Append(nil, &h))
	}
	flipped := []byte(string(whole))
	flipped[len(flipped)/2] ^= 1
	kinds := []struct{ what, kind, token string }{
		{"one bit is wrong", "corrupt", string(flipped)},
		{"cut short", "corrupt", string(whole[:len(whole)-7])},
		{"only the beginning", "corrupt", "~lagmon1."},
		{"only the name", "corrupt", "~lagmon1.orders."},
		{"signed by another key", "corrupt", token(heartbeat.NewKeyring([]byte("some other key")), func(h *heartbeat.Heartbeat) { h.Seq++ })},
		{"not signed", "corrupt", token(nil, func(h *heartbeat.Heartbeat) { h.Seq++ })},
		{"signed, but never sent", "corrupt", token(keys, func(h *heartbeat.Heartbeat) { h.Seq += 1000 })},
		{"of another instance", "foreign", token(keys, func(h *heartbeat.Heartbeat) { h.Instance++ })},
		{"of another probe", "foreign", token(keys, func(h *heartbeat.Heartbeat) { h.Probe = "payments" })},
		{"from the future", "future", token(keys, func(h *heartbeat.Heartbeat) { h.Epoch++; h.Sent = h.Sent.Add(time.Hour) })},
		{"far from the future", "future", token(keys, func(h *heartbeat.Heartbeat) { h.Epoch++; h.Sent = h.Sent.Add(1000 * time.Hour) })},
		{"a copy", "heartbeat", string(whole)},
		{"ordinary", "other", "an order like any other"},
	}
	want := map[string]float64{"heartbeat": 1}
	var total float64 = 1
	for _, k := range kinds {
		for _, body := range []string{k.token, `{"payload": "` + k.token + `"}`} {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			if err := q.put(ctx, []byte(body)); err != nil {
				t.Fatalf("%s: %v", k.what, err)
			}
			cancel()
			want[k.kind]++
			total++
		}
	}
	s := d.await(t, "everything is counted", func(s scrape) bool { return s.Sum("sink_messages_total") >= total })
	table := map[string]float64{
		"heartbeats_received_total":                  1,
		"heartbeats_duplicated_total kind duplicate": 2, // the copies
		"heartbeats_dropped_total":                   0,
		"heartbeats_indeterminate_total":             0,
		"heartbeats_in_flight":                       0,
		"heartbeat_latency_seconds_count":            1,
	}
	for _, e := range s.Find("sink_messages_total") {
		kind := e.Labels["kind"]
		table["sink_messages_total kind "+kind] = want[kind]
	}
	for _, gauge := range []string{"heartbeat_timestamp_seconds", "lag_seconds"} {
		if now, then := s.Find(gauge), before.Find(gauge); len(now) != len(then) {
			t.Errorf("%s: %v became %v", gauge, then, now)
		}
		table[gauge] = before.Sum(gauge)
	}
	s.wants(t, table)
}

// TestWebhookBody: a body over the limit is refused, and one at the limit is not.
func TestWebhookBody(t *testing.T) {
	t.Parallel()
	servers.Need(t)
	addr := servers.FreeAddr(t)
	d := startDaemon(t, fmt.Sprintf(`
sinks:
  callbacks: {webhook: {listen: %q, path: /in, max_body: 1000}}
probes:
  orders: {sinks: [callbacks]}
`, addr))
	d.await(t, "the listener is there", func(s scrape) bool { return s.Sum("sink_up") == 1 })
	post := func(body string) int {
		t.Helper()
		resp, err := client.Post("http://"+addr+"/in", "text/plain", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	if got := post(strings.Repeat("x", 1001)); got != http.StatusRequestEntityTooLarge {
		t.Errorf("1001 bytes: status %d; want 413", got)
	}
	d.scrape(t).wants(t, map[string]float64{"sink_messages_total": 0})
	if got := post(strings.Repeat("x", 1000)); got != http.StatusNoContent {
		t.Errorf("1000 bytes: status %d; want 204", got)
	}
	d.scrape(t).wants(t, map[string]float64{"sink_messages_total": 1, "sink_messages_total kind other": 1, "sink_up": 1})
}
