package tail

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/lag-monitor/lag-monitor/internal/config"
	"github.com/lag-monitor/lag-monitor/internal/conform/memory"
	"github.com/lag-monitor/lag-monitor/internal/heartbeat"
	"github.com/lag-monitor/lag-monitor/sinks"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// told is a Report that keeps all.
type told struct {
	seen   []Seen
	others []uint64
	begun  bool
}

func (r *told) Begin(string, string)                { r.begun = true }
func (r *told) Seen(s Seen)                         { r.seen = append(r.seen, s) }
func (r *told) Other(_ time.Time, more, all uint64) { r.others = append(r.others, more, all) }
func (r *told) Lost(n uint64)                       { panic(fmt.Sprint(n, " were lost")) }

func file(q *memory.Queue) *config.Config {
	return &config.Config{
		Global: config.Global{Instance: "here", MaxSkew: 10 * time.Second},
		Sinks:  map[string]*config.Sink{"out": {Name: "out", Kind: "memory", Role: config.Destination, Config: &memory.SinkConfig{Queue: q}}},
		Probes: map[string]*config.Probe{"orders": {Name: "orders", Sinks: []string{"out"}}, "elsewhere": {Name: "elsewhere"}},
	}
}

func token(keys *heartbeat.Keyring, change func(*heartbeat.Heartbeat)) []byte {
	h := heartbeat.Heartbeat{Probe: "orders", Instance: heartbeat.InstanceID("here"), Epoch: 7, Lanes: 1, Seq: 1, Sent: time.Now(), Timeout: time.Minute}
	if change != nil {
		change(&h)
	}
	return keys.Append(nil, &h)
}

// bubble runs tail under a fake clock on a queue into which put puts a message each second from the start.
func bubble(t *testing.T, o Options, put ...func() []byte) (r told, counts map[string]uint64, err error) {
	synctest.Test(t, func(t *testing.T) {
		q := memory.NewQueue(1, 0)
		// What was in the queue before is none of our business, unless it is asked for.
		_ = q.Put(t.Context(), token(nil, func(h *heartbeat.Heartbeat) { h.Seq = 99 }))
		time.Sleep(time.Minute)
		ctx, cancel := context.WithCancel(t.Context())
		for i, p := range put {
			time.AfterFunc(time.Duration(i+1)*time.Second, func() { _ = q.Put(t.Context(), p()) })
		}
		time.AfterFunc(time.Duration(len(put)+2)*time.Second, cancel)
		counts, err = Run(ctx, file(q), "out", o, &r)
		cancel()
	})
	return r, counts, err
}

func TestKinds(t *testing.T) {
	plain := func() []byte { return []byte("an order like any other") }
	r, counts, err := bubble(t, Options{Other: true},
		func() []byte { return token(nil, nil) },
		func() []byte { return token(nil, func(h *heartbeat.Heartbeat) { h.Probe = "elsewhere" }) },
		func() []byte { return token(nil, func(h *heartbeat.Heartbeat) { h.Probe, h.Instance = "unknown", 1 }) },
		func() []byte {
			return token(nil, func(h *heartbeat.Heartbeat) { h.Instance = heartbeat.InstanceID("here/ping") })
		},
		func() []byte {
			return token(nil, func(h *heartbeat.Heartbeat) { h.Sent = h.Sent.Add(11 * time.Second) })
		},
		func() []byte {
			return token(nil, func(h *heartbeat.Heartbeat) { h.Sent = h.Sent.Add(-3 * time.Second); h.Expiry = time.Second })
		},
		func() []byte { return token(heartbeat.NewKeyring([]byte("k")), nil) },
		func() []byte { return []byte("~lagmon1.orders.AE") },
		plain, plain)
	if err != nil || !r.begun {
		t.Fatal(err)
	}
	want := []string{"heartbeat orders here 0s", "foreign elsewhere here 0s", "foreign unknown 0000000000000001 0s", "heartbeat orders here/ping 0s",
		"future orders here -11s", "heartbeat orders here 2s", "corrupt orders here 0s", "corrupt   0s"}
	for i, s := range r.seen {
		if got := fmt.Sprintf("%s %s %s %v", s.Kind, s.Probe, s.Instance, s.Latency); i >= len(want) || got != want[i] {
			t.Errorf("%d: %s", i, got)
		}
	}
	if len(r.seen) != len(want) {
		t.Errorf("%d were seen", len(r.seen))
	}
	if counts["heartbeat"] != 3 || counts["foreign"] != 2 || counts["corrupt"] != 2 || counts["future"] != 1 || counts["other"] != 2 {
		t.Error(counts)
	}
	if fmt.Sprint(r.others) != "[1 1 1 2]" {
		t.Errorf("others: %v", r.others)
	}
}

func TestEnds(t *testing.T) {
	beat := func() []byte { return token(nil, nil) }
	r, _, err := bubble(t, Options{Count: 2}, beat, beat, beat)
	if err != nil || len(r.seen) != 2 {
		t.Errorf("count: %d, %v", len(r.seen), err)
	}
	r, _, err = bubble(t, Options{For: 2500 * time.Millisecond}, beat, beat, beat)
	if err != nil || len(r.seen) != 2 {
		t.Errorf("time: %d, %v", len(r.seen), err)
	}
	r, _, err = bubble(t, Options{Count: 3, For: 2500 * time.Millisecond}, beat, beat, beat)
	if !errors.Is(err, ErrTooFew) || len(r.seen) != 2 || !strings.Contains(err.Error(), "2 of 3 within 2.5s") {
		t.Errorf("too few: %d, %v", len(r.seen), err)
	}
	r, _, err = bubble(t, Options{Since: 2 * time.Minute}, beat)
	if err != nil || len(r.seen) != 2 || !r.seen[0].Past || r.seen[0].Seq != 99 || r.seen[1].Past {
		t.Errorf("since: %+v, %v", r.seen, err)
	}
}

// What cannot be read is not written as if it were.
func TestReports(t *testing.T) {
	var text, asJSON bytes.Buffer
	for _, r := range []Report{&Text{&text}, &JSON{&asJSON}} {
		r.Begin("out", "memory")
		r.Seen(Seen{At: time.Unix(1, 0).UTC(), Kind: sinks.Corrupt, Why: "it is corrupt"})
		r.Other(time.Unix(1, 0).UTC(), 2, 3)
		r.Lost(4)
	}
	if want := "TAIL out (memory): time, kind, probe, instance, lane, sequence, latency\n00:00:01.000  corrupt    (it is corrupt)\n00:00:01.000  other      +2, 3 in all\n… 4 heartbeats came faster than they could be shown\n"; text.String() != want {
		t.Errorf("got\n%s\nwant\n%s", &text, want)
	}
	want := `{"time":"1970-01-01T00:00:01Z","kind":"corrupt","error":"it is corrupt"}
{"time":"1970-01-01T00:00:01Z","kind":"other","more":2,"total":3}
{"kind":"lost","lost":4}
`
	if asJSON.String() != want {
		t.Errorf("got\n%s\nwant\n%s", &asJSON, want)
	}
}
