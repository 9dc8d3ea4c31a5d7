package ping

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
	"github.com/lag-monitor/lag-monitor/internal/ledger"
	"github.com/lag-monitor/lag-monitor/probe"
	"github.com/lag-monitor/lag-monitor/sinks"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// head is an injector that does what a test says.
type head func(ctx context.Context, m *probe.Message) error

func (h head) Inject(ctx context.Context, m *probe.Message) error { return h(ctx, m) }
func (h head) Close() error                                       { return nil }
func (h head) Validate() error                                    { return nil }
func (h head) Open() (probe.Injector, error)                      { return h, nil }

// broken is a sink that never reads.
type broken struct{}

func (broken) Validate() error                        { return nil }
func (broken) Open() (sinks.Sink, error)              { return broken{}, nil }
func (broken) Run(context.Context, *sinks.Feed) error { return errors.New("no such queue") }

// told is a Report that keeps all.
type told struct {
	plan   Plan
	beats  []Beat
	extras []Extra
}

func (r *told) Begin(p Plan)  { r.plan = p }
func (r *told) Beat(b Beat)   { b.Sinks = append([]AtSink{}, b.Sinks...); r.beats = append(r.beats, b) }
func (r *told) Extra(e Extra) { r.extras = append(r.extras, e) }

// file is a configuration of one probe, "orders", at 1 Hz with a timeout of 5 s, into a queue in memory.
func file(q *memory.Queue, h head) *config.Config {
	return &config.Config{
		Global: config.Global{Instance: "here", MaxSkew: 10 * time.Second},
		Sinks: map[string]*config.Sink{
			"out":  {Name: "out", Kind: "memory", Role: config.Destination, Config: &memory.SinkConfig{Queue: q}, Fingerprint: "1"},
			"dead": {Name: "dead", Kind: "memory", Role: config.DeadLetter, Config: &memory.SinkConfig{Queue: memory.NewQueue(1, 0)}, Fingerprint: "2"},
		},
		Probes: map[string]*config.Probe{"orders": {Name: "orders", Interval: time.Second, Timeout: 5 * time.Second, TTL: 10 * time.Second,
			SendTimeout: 5 * time.Second, Inject: h, InjectKind: "head", Sinks: []string{"out", "dead"}, Fingerprint: "1", RunFingerprint: "1"}},
	}
}

// bubble runs f under a fake clock with a queue.
func bubble(t *testing.T, f func(t *testing.T, q *memory.Queue)) {
	synctest.Test(t, func(t *testing.T) { f(t, memory.NewQueue(1, 0)) })
}

// into puts every heartbeat into the queue but those that skip names.
func into(q *memory.Queue, skip ...uint64) head {
	return func(ctx context.Context, m *probe.Message) error {
		for _, s := range skip {
			if s == m.Seq {
				return nil
			}
		}
		return q.Put(ctx, []byte(m.Token))
	}
}

func TestRun(t *testing.T) {
	bubble(t, func(t *testing.T, q *memory.Queue) {
		var tokens []string
		cfg := file(q, func(ctx context.Context, m *probe.Message) error {
			tokens = append(tokens, m.Token)
			switch m.Seq {
			case 2: // lost
				return nil
			case 3:
				return probe.Refused(errors.New("too busy"))
			case 4: // in, though the answer is lost
				return errors.Join(q.Put(ctx, []byte(m.Token)), errors.New("timeout"))
			case 5: // not in, and the answer is lost
				return errors.New("timeout")
			case 6: // twice
				return errors.Join(q.Put(ctx, []byte(m.Token)), q.Put(ctx, []byte(m.Token)))
			case 7: // late, when it has been given up
				body := []byte(m.Token)
				time.AfterFunc(6*time.Second, func() { _ = q.Put(context.Background(), body) })
				return nil
			}
			return q.Put(ctx, []byte(m.Token))
		})
		var r told
		s, err := Run(t.Context(), cfg, "orders", Options{Count: 14}, &r)
		if err != nil {
			t.Fatal(err)
		}
		if r.plan.Probe != "orders" || r.plan.Timeout != 5*time.Second || len(r.beats) != 14 {
			t.Errorf("%+v, %d beats", r.plan, len(r.beats))
		}
		got := make(map[uint64]string)
		for _, b := range r.beats {
			got[b.Seq] = fmt.Sprint(b.Result == ledger.Accepted, b.Err != nil, b.Sinks)
			if len(b.Sinks) == 1 {
				got[b.Seq] = fmt.Sprint(b.Result == ledger.Accepted, b.Err != nil, b.Sinks[0].Sink, b.Sinks[0].Outcome)
			}
		}
		for seq, want := range map[uint64]string{1: "true falseouton_time", 2: "true falseoutdropped", 3: "false true[]", 4: "false trueouton_time",
			5: "false trueoutindeterminate", 6: "true falseouton_time", 7: "true falseoutdropped", 14: "true falseouton_time"} {
			if strings.ReplaceAll(got[seq], " ", "") != strings.ReplaceAll(want, " ", "") {
				t.Errorf("heartbeat %d: %s; want %s", seq, got[seq], want)
			}
		}
		if len(r.extras) != 2 || r.extras[0].Kind != "duplicate" || r.extras[0].Seq != 6 || r.extras[1].Kind != "late" || r.extras[1].Seq != 7 {
			t.Errorf("extras: %+v", r.extras)
		}
		n := s.Sinks[0]
		if s.Accepted != 11 || s.Refused != 1 || s.Unknown != 2 || len(s.Sinks) != 1 || n.Sent != 13 || n.OnTime != 10 || n.Late != 1 || n.Dropped != 2 ||
			n.Indeterminate != 1 || n.Flight != 0 || n.Duplicated != 1 || n.Arrived != 11 || n.Max != 6*time.Second || n.Min > time.Millisecond {
			t.Errorf("%+v", s)
		}
		if loss, worst := s.Loss(); loss != 4./14 || worst != "out" {
			t.Errorf("loss %v at %q", loss, worst)
		}
		// Nobody else takes them for their own.
		var h heartbeat.Heartbeat
		if err := (*heartbeat.Keyring)(nil).Decode([]byte(tokens[0]), &h); err != nil || h.Probe != "orders-ping" || h.Instance == heartbeat.InstanceID("here") {
			t.Errorf("%+v, %v", h, err)
		}
	})
}

// Whatever is told to have come has a latency, also when it comes while the list is gone through. On a real clock, and so
// often that it happens.
func TestArrivedHasALatency(t *testing.T) {
	const count = 3000
	q := memory.NewQueue(1, 0)
	var r told
	cfg := file(q, into(q))
	if _, err := Run(t.Context(), cfg, "orders", Options{Count: count, Interval: 100 * time.Microsecond}, &r); err != nil {
		t.Fatal(err)
	}
	for _, b := range r.beats {
		if s := b.Sinks[0]; s.Outcome == OnTime && !s.Arrived {
			t.Fatalf("heartbeat %d came on time, and has no latency: %+v", b.Seq, b)
		}
	}
}

// The options stand before the definition.
func TestOptions(t *testing.T) {
	bubble(t, func(t *testing.T, q *memory.Queue) {
		var r told
		began := time.Now()
		s, err := Run(t.Context(), file(q, into(q, 3)), "orders", Options{Count: 3, Interval: 100 * time.Millisecond, Timeout: 20 * time.Second}, &r)
		if err != nil || s.Sinks[0].Dropped != 1 || s.Sinks[0].OnTime != 2 {
			t.Errorf("%+v, %v", s, err)
		}
		if took := time.Since(began); took < 20*time.Second || took > 23*time.Second {
			t.Errorf("took %v", took)
		}
	})
}

// Interrupted: what was decided is told, and what was on its way counts neither way.
func TestInterrupted(t *testing.T) {
	bubble(t, func(t *testing.T, q *memory.Queue) {
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(2500*time.Millisecond, cancel)
		var r told
		s, err := Run(ctx, file(q, into(q, 3, 4)), "orders", Options{}, &r)
		if err != nil {
			t.Fatal(err)
		}
		if n := s.Sinks[0]; !s.Interrupted || n.OnTime != 2 || n.Flight == 0 || len(r.beats) != int(n.Sent) {
			t.Errorf("%+v, told %+v", s, r.beats)
		}
		if loss, _ := s.Loss(); loss != 0 {
			t.Errorf("loss %v", loss)
		}
	})
}

func TestNotTried(t *testing.T) {
	bubble(t, func(t *testing.T, q *memory.Queue) {
		for _, c := range []struct {
			name   string
			change func(*config.Config)
			want   string
		}{
			{"a sink does not read", func(c *config.Config) { c.Sinks["out"].Config = broken{} }, "not ready within 30s: sink out: no such queue"},
			{"it only listens", func(c *config.Config) { c.Probes["orders"].Inject = nil }, "probe orders only listens: it has nothing to send"},
		} {
			cfg := file(q, into(q))
			c.change(cfg)
			var r told
			s, err := Run(t.Context(), cfg, "orders", Options{Count: 1}, &r)
			if s != nil || !errors.Is(err, ErrNotTried) || !strings.Contains(err.Error(), c.want) || len(r.beats) > 0 {
				t.Errorf("%s: %+v, %v", c.name, s, err)
			}
		}
	})
}

// A sink that goes blind is waited for only so long, and its trouble is told.
func TestBlind(t *testing.T) {
	bubble(t, func(t *testing.T, q *memory.Queue) {
		cfg := file(q, func(ctx context.Context, m *probe.Message) error {
			q.Stop()
			return nil
		})
		var r told
		s, err := Run(t.Context(), cfg, "orders", Options{Count: 1}, &r)
		if err != nil || s.Sinks[0].Flight != 1 || s.Sinks[0].Trouble == "" || r.beats[0].Sinks[0].Outcome != InFlight {
			t.Errorf("%+v, %v", s, err)
		}
		if loss, _ := s.Loss(); loss != 1 {
			t.Errorf("loss %v", loss)
		}
		var out bytes.Buffer
		(&Text{W: &out}).Summary(s, 0)
		if !strings.Contains(out.String(), "trouble at out: ") {
			t.Error(out.String())
		}
	})
}
