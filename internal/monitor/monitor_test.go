package monitor

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/lag-monitor/lag-monitor/internal/config"
	"github.com/lag-monitor/lag-monitor/internal/conform/memory"
	"github.com/lag-monitor/lag-monitor/internal/conn"
	"github.com/lag-monitor/lag-monitor/internal/heartbeat"
	"github.com/lag-monitor/lag-monitor/internal/ledger"
	"github.com/lag-monitor/lag-monitor/internal/metrics"
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

// rig is a monitor over a queue in memory, under a fake clock.
type rig struct {
	t      *testing.T
	m      *Monitor
	queue  *memory.Queue
	inj    probe.Injector
	cfg    *config.Config
	cancel context.CancelFunc
	done   chan error
}

// sim runs f in a bubble with a monitor that is not started yet: one probe "p" at 1 Hz with a timeout
// of 10 s, one sink "out".
func sim(t *testing.T, f func(r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		q := memory.NewQueue(1, 0)
		inj, err := (&memory.InjectorConfig{Queue: q}).Open()
		if err != nil {
			t.Fatal(err)
		}
		r := &rig{t: t, queue: q, inj: inj, m: New(Options{Instance: "here", Grace: 5 * time.Second})}
		r.cfg = &config.Config{
			Global: config.Global{MaxSkew: 10 * time.Second},
			Sinks:  map[string]*config.Sink{"out": {Name: "out", Kind: "memory", Role: config.Destination, Config: &memory.SinkConfig{Queue: q}, Fingerprint: "1"}},
			Probes: map[string]*config.Probe{"p": {Name: "p", Interval: time.Second, Timeout: 10 * time.Second, TTL: 10 * time.Second, SendTimeout: 5 * time.Second,
				Inject: head(inj.Inject), Sinks: []string{"out"}, Fingerprint: "1", RunFingerprint: "1"}},
		}
		f(r)
		r.stop()
	})
}

func (r *rig) start() {
	r.t.Helper()
	if err := r.m.Apply(r.cfg); err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(r.t.Context())
	r.cancel, r.done = cancel, make(chan error, 1)
	go func() { r.done <- r.m.Run(ctx) }()
	synctest.Wait()
}

func (r *rig) stop() {
	if r.cancel == nil {
		return
	}
	r.cancel()
	if err := <-r.done; err != nil {
		r.t.Errorf("Run: %v", err)
	}
	r.cancel = nil
}

// pair returns the account of probe p at sink out, after checking that it adds up.
func (r *rig) pair() PairStatus {
	r.t.Helper()
	synctest.Wait()
	p := r.m.Status().Probes[0]
	s := p.Sinks[0]
	if s.Sent+s.Restored != s.OnTime+s.Dropped+s.Indeterminate+s.InFlight {
		r.t.Errorf("the account does not add up: %+v", s)
	}
	if c := r.cfg.Probes[p.Name]; len(p.Sinks) == 1 && (c == nil || c.Inject != nil) && p.Sent.Success+p.Sent.Unknown != s.Sent {
		r.t.Errorf("the probe sent %+v, the account has %d", p.Sent, s.Sent)
	}
	return s
}

func TestAllIsWell(t *testing.T) {
	sim(t, func(r *rig) {
		r.start()
		time.Sleep(100 * time.Second)
		s := r.pair()
		if s.OnTime < 99 || s.OnTime > 102 || s.Sent != s.OnTime {
			t.Errorf("in 100 s at 1 Hz: %+v", s)
		}
		if lag := s.Lanes[0].Lag; lag > 0.001 {
			t.Errorf("lag %v of a healthy pipeline", lag)
		}
	})
}

// A pipeline that compresses its messages is watched through what it does to them.
func TestUnwrap(t *testing.T) {
	sim(t, func(r *rig) {
		r.cfg.Sinks["out"].Unwrap = []string{"base64", "gzip"}
		r.cfg.Probes["p"].Inject = head(func(ctx context.Context, m *probe.Message) error {
			var packed bytes.Buffer
			text := base64.NewEncoder(base64.StdEncoding, &packed)
			w := gzip.NewWriter(text)
			_, err := fmt.Fprintf(w, "{\"body\": %q}", m.Token)
			if err := errors.Join(err, w.Close(), text.Close()); err != nil {
				return err
			}
			return r.queue.Put(ctx, packed.Bytes())
		})
		r.start()
		time.Sleep(10 * time.Second)
		if s := r.pair(); s.OnTime < 9 || s.OnTime != s.Sent {
			t.Errorf("in 10 s at 1 Hz: %+v", s)
		}
	})
}

func TestExactDropsAndDuplicates(t *testing.T) {
	sim(t, func(r *rig) {
		n := 0
		r.cfg.Probes["p"].Inject = head(func(ctx context.Context, m *probe.Message) error {
			n++
			switch {
			case n > 200:
				return probe.Refused(errors.New("enough"))
			case n%28 == 0: // 7 of 200
				return nil
			case n%40 == 3: // 5 of 200
				if err := r.inj.Inject(ctx, m); err != nil {
					return err
				}
			}
			return r.inj.Inject(ctx, m)
		})
		r.start()
		time.Sleep(230 * time.Second)
		s := r.pair()
		if s.Sent != 200 || s.Dropped != 7 || s.OnTime != 193 || s.Duplicated != 5 || s.Indeterminate != 0 || s.InFlight != 0 {
			t.Errorf("7 drops and 5 duplicates in 200: %+v", s)
		}
	})
}

func TestLagGrowsWhenTheHeadRefuses(t *testing.T) {
	sim(t, func(r *rig) {
		var down atomic.Bool
		r.cfg.Probes["p"].Inject = head(func(ctx context.Context, m *probe.Message) error {
			if down.Load() {
				return probe.Refused(errors.New("connection refused"))
			}
			return r.inj.Inject(ctx, m)
		})
		r.start()
		time.Sleep(10 * time.Second)
		down.Store(true)
		time.Sleep(2 * time.Minute)
		s := r.pair()
		if lag := s.Lanes[0].Lag; math.Abs(lag-119.5) > 1 {
			t.Errorf("lag %v s after two minutes of a dead head", lag)
		}
		if s.Dropped != 0 || s.Indeterminate != 0 {
			t.Errorf("refused heartbeats are in the account: %+v", s)
		}
		st := r.m.Status().Probes[0]
		if !st.Failing || st.Sent.Failure < 118 || st.LastError == nil {
			t.Errorf("%+v", st)
		}
		down.Store(false)
		time.Sleep(2 * time.Second)
		if lag := r.pair().Lanes[0].Lag; lag > 0.001 {
			t.Errorf("lag %v after the head has come back", lag)
		}
	})
}

func TestLagHasNoSawtooth(t *testing.T) {
	sim(t, func(r *rig) {
		r.cfg.Probes["p"].Interval = 15 * time.Second
		r.start()
		for range 100 {
			time.Sleep(1700 * time.Millisecond)
			if lag := r.pair().Lanes[0].Lag; lag > 0.001 {
				t.Fatalf("lag %v of a healthy pipeline", lag)
			}
		}
	})
}

func TestBrokerAwayForThirtySeconds(t *testing.T) {
	sim(t, func(r *rig) {
		// The queue refuses both ends while it is away; the sink must find what was sent before.
		r.cfg.Probes["p"].Timeout = time.Minute
		r.start()
		time.Sleep(20 * time.Second)
		r.queue.Stop()
		time.Sleep(30 * time.Second)
		if up := r.m.Status().Sinks[0].Up; up {
			t.Error("the sink says it reads a queue that is away")
		}
		r.queue.Start()
		time.Sleep(2 * time.Minute)
		s := r.pair()
		if s.Dropped+s.Indeterminate+s.Late != 0 {
			t.Errorf("after an absence of the broker: %+v", s)
		}
	})
}

func TestNothingIsSentBeforeASinkReads(t *testing.T) {
	sim(t, func(r *rig) {
		r.cfg.Probes["p"].Interval = time.Minute
		r.queue.Stop()
		r.start()
		time.Sleep(90 * time.Second)
		st := r.m.Status().Probes[0]
		if st.Sent.Success+st.Sent.Unknown+st.Sent.Failure != 0 || st.Sent.Skipped < 1 {
			t.Errorf("before the sink reads: %+v", st.Sent)
		}
		r.queue.Start()
		time.Sleep(20 * time.Second)
		if s := r.pair(); s.OnTime == 0 {
			t.Errorf("the probe waits for its next tick although the sink reads now: %+v", s)
		}
	})
}

func TestUnknownSends(t *testing.T) {
	sim(t, func(r *rig) {
		n := 0
		r.cfg.Probes["p"].Inject = head(func(ctx context.Context, m *probe.Message) error {
			n++
			if n%2 == 0 {
				if err := r.inj.Inject(ctx, m); err != nil {
					return err
				}
			}
			if n > 20 {
				return probe.Refused(errors.New("enough"))
			}
			return errors.New("timeout")
		})
		r.start()
		time.Sleep(40 * time.Second)
		st := r.m.Status().Probes[0]
		s := r.pair()
		// In this queue a heartbeat can arrive before its injection returns; that proves it was accepted.
		if s.OnTime < 10 || s.Dropped != 0 || s.Indeterminate != 10 {
			t.Errorf("every second one of unknown fate arrives: %+v, %+v", st.Sent, s)
		}
	})
}

func TestForgedFutureAndForeign(t *testing.T) {
	sim(t, func(r *rig) {
		r.start()
		time.Sleep(10 * time.Second)
		r.m.state.Load().probes["p"].entry.Remove() // no more of ours: the gauge stands still
		before := r.pair().Lanes[0]
		keys := heartbeat.NewKeyring()
		own := r.m.state.Load().probes["p"]
		put := func(h heartbeat.Heartbeat, mangle bool) {
			token := keys.Append(nil, &h)
			if mangle {
				token[len(token)-3] ^= 1
			}
			_ = r.queue.Put(t.Context(), token)
			synctest.Wait()
		}
		base := heartbeat.Heartbeat{Probe: "p", Instance: own.instance, Epoch: own.epoch, Lanes: 1, Seq: 5, Sent: time.Now(), Interval: time.Second, Timeout: 10 * time.Second}
		for _, c := range []struct {
			name   string
			kind   sinks.Kind
			change func(h *heartbeat.Heartbeat)
			mangle bool
		}{
			{"damaged", sinks.Corrupt, func(*heartbeat.Heartbeat) {}, true},
			{"of a run that has ended, from the future", sinks.Future, func(h *heartbeat.Heartbeat) { h.Epoch++; h.Sent = h.Sent.Add(time.Hour) }, false},
			{"of a run that has ended, older than what we know", sinks.Heartbeat, func(h *heartbeat.Heartbeat) { h.Epoch++; h.Sent = h.Sent.Add(-time.Minute) }, false},
			{"of another instance", sinks.Foreign, func(h *heartbeat.Heartbeat) { h.Instance++ }, false},
			{"of another probe", sinks.Foreign, func(h *heartbeat.Heartbeat) { h.Probe = "q" }, false},
			{"never sent", sinks.Corrupt, func(h *heartbeat.Heartbeat) { h.Seq = 1000; h.Sent = h.Sent.Add(5 * time.Second) }, false},
			{"a duplicate with another time", sinks.Heartbeat, func(h *heartbeat.Heartbeat) { h.Sent = h.Sent.Add(5 * time.Second) }, false},
		} {
			old := r.m.state.Load().sinks["out"].feed.Stats().Messages[c.kind]
			h := base
			c.change(&h)
			put(h, c.mangle)
			if n := r.m.state.Load().sinks["out"].feed.Stats().Messages[c.kind] - old; n != 1 {
				t.Errorf("%s: counted %d times as %s: %v", c.name, n, c.kind, r.m.state.Load().sinks["out"].feed.Stats().Messages)
			}
			if after := r.pair().Lanes[0]; !after.Last.Equal(before.Last) {
				t.Errorf("%s: moves the timestamp by %s", c.name, after.Last.Sub(before.Last))
			}
		}
	})
}

func TestReloadKeepsWhatIsUnchanged(t *testing.T) {
	sim(t, func(r *rig) {
		r.start()
		time.Sleep(10 * time.Second)
		kept := r.m.state.Load()

		again := *r.cfg
		q := *r.cfg.Probes["p"]
		q.Name = "q"
		sent := 0
		q.Inject = head(func(ctx context.Context, m *probe.Message) error {
			sent++
			return r.inj.Inject(ctx, m)
		})
		p := *r.cfg.Probes["p"]
		p.Labels, p.Fingerprint = map[string]string{"team": "data"}, "2" // RunFingerprint is the same
		again.Probes = map[string]*config.Probe{"p": &p, "q": &q}
		if err := r.m.Apply(&again); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		st := r.m.Status()
		if st.Probes[0].Sinks[0].OnTime < 19 || st.Probes[0].Labels["team"] != "data" {
			t.Errorf("the unchanged probe started anew: %+v", st.Probes[0])
		}
		if st.Probes[1].Sinks[0].OnTime < 9 {
			t.Errorf("the new probe does not run: %+v", st.Probes[1])
		}
		if r.m.state.Load().sinks["out"] != kept.sinks["out"] {
			t.Error("the unchanged sink was replaced")
		}

		changed := again
		p2 := p
		p2.RunFingerprint = "3"
		changed.Probes = map[string]*config.Probe{"p": &p2}
		before := r.pair().Lanes[0].Last
		if err := r.m.Apply(&changed); err != nil {
			t.Fatal(err)
		}
		if n := len(r.m.Status().Probes); n != 1 {
			t.Errorf("%d probes after one was removed", n)
		}
		next := r.m.state.Load().probes["p"]
		next.mu.Lock()
		if next.watches[0].stamps[0].due.Before(before) {
			t.Error("the changed probe forgot its last timestamp")
		}
		next.mu.Unlock()
		was := sent
		time.Sleep(10 * time.Second)
		if sent != was {
			t.Errorf("the removed probe sent %d heartbeats more", sent-was)
		}
		registry := prometheus.NewRegistry()
		registry.MustRegister(r.m.Collector())
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			for _, m := range f.Metric {
				if text := m.String(); strings.Contains(text, `value:"q"`) {
					t.Errorf("the removed probe is still there: %s %s", f.GetName(), text)
				}
			}
		}
	})
}

type broken struct{ sinks.Config }

func (broken) Open() (sinks.Sink, error) { return nil, errors.New("no certificate") }

func TestBadReloadChangesNothing(t *testing.T) {
	sim(t, func(r *rig) {
		r.start()
		time.Sleep(5 * time.Second)
		before := r.m.state.Load()
		bad := *r.cfg
		bad.Probes = map[string]*config.Probe{}
		bad.Sinks = map[string]*config.Sink{"x": {Name: "x", Config: broken{}}}
		if err := r.m.Apply(&bad); err == nil || err.Error() != "sink x: no certificate" {
			t.Errorf("error %v", err)
		}
		if r.m.state.Load() != before {
			t.Error("a bad configuration changed what runs")
		}
	})
}

func TestHangingHeadOverruns(t *testing.T) {
	sim(t, func(r *rig) {
		r.cfg.Probes["p"].Inject = head(func(ctx context.Context, m *probe.Message) error {
			<-ctx.Done()
			return ctx.Err()
		})
		r.start()
		time.Sleep(time.Minute)
		st := r.m.Status().Probes[0]
		if st.Sent.Unknown < 9 || st.Sent.Skipped < 40 || st.Sent.Success != 0 {
			t.Errorf("a head that hangs: %+v", st.Sent)
		}
		if lag := r.pair().Lanes[0].Lag; lag < 58 {
			t.Errorf("lag %v after a minute of silence", lag)
		}
	})
}

func TestShutdownWaitsForHeartbeatsInFlight(t *testing.T) {
	sim(t, func(r *rig) {
		r.cfg.Probes["p"].Inject = head(func(ctx context.Context, m *probe.Message) error {
			msg := *m
			go func() {
				time.Sleep(2 * time.Second)
				_ = r.inj.Inject(context.Background(), &msg)
			}()
			return nil
		})
		r.start()
		time.Sleep(10500 * time.Millisecond)
		if s := r.pair(); s.InFlight == 0 {
			t.Fatalf("nothing in flight: %+v", s)
		}
		began := time.Now()
		r.stop()
		if s := r.pair(); s.InFlight != 0 || s.Dropped != 0 {
			t.Errorf("after the end: %+v", s)
		}
		if d := time.Since(began); d < time.Second || d > 3*time.Second {
			t.Errorf("the end took %s", d)
		}
	})
}

func TestListenerFindsDropsFromTheTokens(t *testing.T) {
	sim(t, func(r *rig) {
		p := r.cfg.Probes["p"]
		p.Inject = nil
		r.start()
		keys := heartbeat.NewKeyring()
		h := heartbeat.Heartbeat{Probe: "p", Instance: 7, Epoch: 9, Lanes: 1, Interval: time.Second, Timeout: 10 * time.Second}
		for seq := uint64(1); seq <= 100; seq++ {
			h.Seq, h.Sent = seq, time.Now()
			refused := seq%10 == 5
			lost := seq%20 == 13 // 5 of 100
			if !refused && !lost {
				_ = r.queue.Put(t.Context(), keys.Append(nil, &h))
			}
			h.Accepted <<= 1
			if !refused {
				h.Accepted |= 1
			}
			time.Sleep(time.Second)
		}
		time.Sleep(15 * time.Second)
		s := r.m.Status().Probes[0].Sinks[0]
		if s.Dropped != 5 || s.OnTime != 85 || s.Indeterminate != 0 {
			t.Errorf("5 of 100 lost, 10 refused: %+v", s)
		}
		if lag := s.Lanes[0].Lag; math.Abs(lag-15) > 1.1 {
			t.Errorf("lag %v 15 s after the last heartbeat", lag)
		}
	})
}

func TestSharedSink(t *testing.T) {
	sim(t, func(r *rig) {
		base := *r.cfg.Probes["p"]
		r.cfg.Probes = map[string]*config.Probe{}
		for i := range 200 {
			p := base
			p.Name = fmt.Sprint("p", i)
			r.cfg.Probes[p.Name] = &p
		}
		r.start()
		time.Sleep(30 * time.Second)
		for _, p := range r.m.Status().Probes {
			if p.Sinks[0].OnTime < 28 {
				t.Errorf("%s: %+v", p.Name, p.Sinks[0])
			}
		}
		if f := r.m.state.Load().sinks["out"].feed.Stats().Messages; f[sinks.Foreign]+f[sinks.Corrupt]+f[sinks.Other] != 0 {
			t.Errorf("messages %v", f)
		}
	})
}

var _ conn.Config[sinks.Sink] = broken{}

// With two sinks of which one comes late, the account of each holds what was sent.
func TestSinkThatComesLate(t *testing.T) {
	sim(t, func(r *rig) {
		late := memory.NewQueue(1, 0)
		r.cfg.Sinks["late"] = &config.Sink{Name: "late", Kind: "memory", Role: config.Destination, Config: &memory.SinkConfig{Queue: late}, Fingerprint: "2"}
		p := r.cfg.Probes["p"]
		p.Sinks = []string{"out", "late"}
		second, err := (&memory.InjectorConfig{Queue: late}).Open()
		if err != nil {
			t.Fatal(err)
		}
		p.Inject = head(func(ctx context.Context, m *probe.Message) error {
			_ = second.Inject(ctx, m)
			return r.inj.Inject(ctx, m)
		})
		late.Stop()
		r.start()
		time.Sleep(30 * time.Second)
		late.Start()
		time.Sleep(60 * time.Second)
		st := r.m.Status().Probes[0]
		for _, s := range st.Sinks {
			if s.Sent != st.Sent.Success || s.Sent != s.OnTime+s.Dropped+s.Indeterminate+s.InFlight {
				t.Errorf("%s: sent %d of %d: %+v", s.Sink, s.Sent, st.Sent.Success, s)
			}
			if s.Dropped != 0 {
				t.Errorf("%s: a sink that was not there accuses the pipeline: %+v", s.Sink, s)
			}
		}
		if s := st.Sinks[1]; s.Indeterminate < 20 || s.Indeterminate > 45 || s.OnTime < 40 {
			t.Errorf("the late sink: %+v", s)
		}
	})
}

func TestDeadLetterQueue(t *testing.T) {
	sim(t, func(r *rig) {
		dead := memory.NewQueue(1, 0)
		r.cfg.Sinks["dead"] = &config.Sink{Name: "dead", Kind: "memory", Role: config.DeadLetter, Config: &memory.SinkConfig{Queue: dead}, Fingerprint: "2"}
		p := r.cfg.Probes["p"]
		p.Sinks = []string{"out", "dead"}
		to, err := (&memory.InjectorConfig{Queue: dead}).Open()
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		p.Inject = head(func(ctx context.Context, m *probe.Message) error {
			if n++; n%10 == 0 {
				return to.Inject(ctx, m)
			}
			if n%10 == 5 { // what another run of ours has lost is not lost by this one
				var h heartbeat.Heartbeat
				if err := heartbeat.NewKeyring().Decode([]byte(m.Token), &h); err != nil {
					t.Fatal(err)
				}
				h.Epoch++
				other := *m
				other.Token = string(heartbeat.NewKeyring().Append(nil, &h))
				if err := to.Inject(ctx, &other); err != nil {
					t.Fatal(err)
				}
				time.Sleep(100 * time.Millisecond)
			}
			return r.inj.Inject(ctx, m)
		})
		r.start()
		time.Sleep(100*time.Second + time.Millisecond)
		st := r.m.Status().Probes[0]
		s := st.Sinks[0]
		if s.Dropped < 9 || s.Dropped > 11 || s.Sent != s.OnTime+s.Dropped+s.InFlight {
			t.Errorf("one in ten dead-lettered: %+v", s)
		}
		r.m.state.Load().probes["p"].mu.Lock()
		defer r.m.state.Load().probes["p"].mu.Unlock()
		l := r.m.state.Load().probes["p"].watches[0].ledger
		c := l.Counts()
		for seq := range uint64(100) {
			if told, ok := l.Told(0, seq); ok && told.Fate == ledger.Received && told.Death != ledger.NotDead {
				t.Errorf("heartbeat %d came, and is called dead", seq)
			}
		}
		if c.Dropped[ledger.DropDeadLettered] < 9 {
			t.Errorf("drops by reason: %v", c.Dropped)
		}
	})
}

// An arrival proves that the head has accepted a heartbeat, whatever the head says afterwards.
func TestArrivalOutweighsRefusal(t *testing.T) {
	sim(t, func(r *rig) {
		r.cfg.Probes["p"].Inject = head(func(ctx context.Context, m *probe.Message) error {
			if err := r.inj.Inject(ctx, m); err != nil {
				return err
			}
			time.Sleep(100 * time.Millisecond)
			return probe.Refused(errors.New("502 from a proxy that gave up"))
		})
		r.start()
		time.Sleep(10500 * time.Millisecond)
		s := r.pair()
		if st := r.m.Status().Probes[0].Sent; st.Failure != 0 || st.Success != s.OnTime || s.OnTime < 10 {
			t.Errorf("%+v, %+v", st, s)
		}
	})
}

// A tick that is skipped because the one before still hangs is felt all the same.
func TestLagGrowsThroughOverruns(t *testing.T) {
	sim(t, func(r *rig) {
		r.cfg.Probes["p"].Inject = head(func(ctx context.Context, m *probe.Message) error {
			if err := r.inj.Inject(ctx, m); err != nil {
				return err
			}
			<-ctx.Done() // 5 s
			return ctx.Err()
		})
		r.start()
		time.Sleep(4900 * time.Millisecond)
		if lag := r.pair().Lanes[0].Lag; lag < 3 || lag > 5 {
			t.Errorf("lag %v s after nearly 5 s of skipped ticks", lag)
		}
	})
}

// The timestamp comes from our own records: a copy with another time in it moves it to where the
// original belongs.
func TestTimestampIsOurOwn(t *testing.T) {
	sim(t, func(r *rig) {
		var forge atomic.Bool
		keys := heartbeat.NewKeyring()
		sent := make(chan time.Time, 1)
		r.cfg.Probes["p"].Inject = head(func(ctx context.Context, m *probe.Message) error {
			if !forge.Load() {
				return r.inj.Inject(ctx, m)
			}
			var h heartbeat.Heartbeat
			if err := keys.Decode([]byte(m.Token), &h); err != nil {
				return err
			}
			sent <- m.Sent
			h.Sent = h.Sent.Add(8 * time.Second) // inside the allowance for skew
			forge.Store(false)
			if err := r.queue.Put(ctx, keys.Append(nil, &h)); err != nil {
				return err
			}
			r.m.state.Load().probes["p"].entry.Remove()
			return nil
		})
		r.start()
		time.Sleep(3500 * time.Millisecond)
		forge.Store(true)
		time.Sleep(2 * time.Second)
		if off := r.pair().Lanes[0].Last.Sub(<-sent); off.Abs() > time.Millisecond {
			t.Errorf("the timestamp is %s away from the due time", off)
		}
	})
}

// expiring is a head whose broker discards heartbeats after their time to live.
type expiring struct{ head }

func (e expiring) Open() (probe.Injector, error) { return e, nil }
func (e expiring) Expires() bool                 { return true }

// What the broker may have discarded while nobody read is nobody's loss.
func TestBrokerThatDiscards(t *testing.T) {
	for _, discards := range []bool{true, false} {
		sim(t, func(r *rig) {
			p := r.cfg.Probes["p"]
			lose := head(func(ctx context.Context, m *probe.Message) error {
				if m.Seq > 10 && m.Seq <= 15 {
					return nil // accepted, and never seen again
				}
				return r.inj.Inject(ctx, m)
			})
			p.Inject = lose
			if discards {
				p.Inject = expiring{lose}
			}
			r.start()
			time.Sleep(15500 * time.Millisecond)
			r.queue.Stop() // until after the deadlines and the time to live
			time.Sleep(20 * time.Second)
			r.queue.Start()
			time.Sleep(time.Minute)
			s := r.pair()
			if dropped := s.Dropped > 0; dropped == discards {
				t.Errorf("discards %v: %+v", discards, s)
			}
			if s.Dropped+s.Indeterminate < 5 {
				t.Errorf("discards %v: the lost ones are in no account: %+v", discards, s)
			}
		})
	}
}

// How long a sink was blind does not depend on when somebody looks next: not on the interval of the
// probe, and not on scrapes.
func TestBlindnessEndsWithTheProof(t *testing.T) {
	sim(t, func(r *rig) {
		p := r.cfg.Probes["p"]
		p.Interval = time.Minute
		p.Inject = expiring{func(context.Context, *probe.Message) error { return nil }} // accepted, and lost
		r.start()
		for r.m.Status().Probes[0].Sent.Success < 2 {
			time.Sleep(time.Second)
		}
		before := r.pair()
		r.queue.Stop()
		time.Sleep(2 * time.Second)
		r.queue.Start()
		time.Sleep(40 * time.Second) // the time to live ends after 10 s, with a sink that reads
		if s := r.pair(); s.Dropped != before.Dropped+1 || s.Indeterminate != before.Indeterminate {
			t.Errorf("before the sink was away for 2 s: %+v\nafter: %+v", before, s)
		}
	})
}

// varying is a head whose lanes change.
type varying struct {
	head
	ids func() []uint32
}

func (v varying) Lanes(context.Context) ([]uint32, error) { return v.ids(), nil }
func (v varying) Open() (probe.Injector, error)           { return v, nil }

// A lane that has gone takes its series along: a lag that stands still would say that all is well.
func TestLaneThatHasGone(t *testing.T) {
	sim(t, func(r *rig) {
		var ids atomic.Pointer[[]uint32]
		ids.Store(&[]uint32{0, 1})
		p := r.cfg.Probes["p"]
		p.Inject = varying{p.Inject.(head), func() []uint32 { return *ids.Load() }}
		r.start()
		lanes := func() []string {
			var out metrics.PairState
			w := r.m.state.Load().probes["p"].watches[0]
			w.p.mu.Lock()
			defer w.p.mu.Unlock()
			w.collect(time.Now(), &out, nil)
			var names []string
			for _, l := range out.Lanes {
				names = append(names, l.Lane)
			}
			slices.Sort(names)
			return names
		}
		time.Sleep(20 * time.Second)
		if got := lanes(); !slices.Equal(got, []string{"0", "1"}) {
			t.Errorf("lanes %v", got)
		}
		ids.Store(&[]uint32{0})
		time.Sleep(2 * laneRefresh)
		if got := lanes(); !slices.Equal(got, []string{"0"}) {
			t.Errorf("lanes %v after one has gone", got)
		}
	})
}
