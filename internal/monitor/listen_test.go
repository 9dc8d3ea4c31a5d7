package monitor

import (
	"fmt"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/config"
	"github.com/lag-monitor/lag-monitor/internal/heartbeat"
	"github.com/lag-monitor/lag-monitor/internal/ledger"
	"github.com/lag-monitor/lag-monitor/internal/metrics"
	"github.com/lag-monitor/lag-monitor/sinks"
)

// sender is another process that injects for a probe that only listens. Its pipeline takes no time.
type sender struct {
	r     *rig
	h     heartbeat.Heartbeat
	lanes map[uint32]*sendLane
	ahead time.Duration // of its clock
}

func (r *rig) sender(instance uint64) *sender {
	return &sender{r: r, lanes: make(map[uint32]*sendLane), h: heartbeat.Heartbeat{Probe: "p", Instance: instance,
		Epoch: heartbeat.NewEpoch(), Lanes: 1, Interval: time.Second, Timeout: 10 * time.Second}}
}

// restart makes it a new process.
func (s *sender) restart() { *s = *s.r.sender(s.h.Instance) }

// tick makes the tokens of one tick, which the head accepts, and returns them.
func (s *sender) tick(lanes ...uint32) (tokens [][]byte) {
	s.h.Lanes = uint32(len(lanes))
	for _, id := range lanes {
		if s.lanes[id] == nil {
			s.lanes[id] = &sendLane{id: id}
		}
		l := s.lanes[id]
		s.h.Lane, s.h.Sent = id, time.Now().Add(s.ahead)
		s.h.Seq, s.h.Accepted = l.next()
		l.accept(s.h.Seq)
		tokens = append(tokens, heartbeat.NewKeyring().Append(nil, &s.h))
	}
	return tokens
}

func (r *rig) put(tokens ...[]byte) {
	for _, t := range tokens {
		_ = r.queue.Put(r.t.Context(), t)
	}
}

// beat lets a tick come out at each of n seconds.
func (s *sender) beat(n int, lanes ...uint32) {
	for range n {
		s.r.put(s.tick(lanes...)...)
		time.Sleep(time.Second)
	}
}

// listening runs f with a probe that only listens, and so long that no doubt is left of its beginning.
func listening(t *testing.T, f func(r *rig)) {
	t.Helper()
	sim(t, func(r *rig) {
		r.cfg.Probes["p"].Inject = nil
		r.start()
		time.Sleep(20 * time.Second)
		f(r)
	})
}

// series returns what a scrape says of the lanes: the lag, or NaN where only the timestamp is known.
func (r *rig) series() map[string]float64 {
	r.pair()
	p := r.m.state.Load().probes["p"]
	p.mu.Lock()
	defer p.mu.Unlock()
	var st metrics.PairState
	p.watches[0].collect(time.Now(), &st, nil)
	lanes := map[string]float64{}
	for _, l := range st.Lanes {
		lanes[l.Lane] = math.NaN()
		if l.HasLag {
			lanes[l.Lane] = math.Round(l.Lag)
		}
	}
	return lanes
}

func (r *rig) wantSeries(when string, want map[string]float64) {
	r.t.Helper()
	if got := fmt.Sprint(r.series()); got != fmt.Sprint(want) {
		r.t.Errorf("%s: the lanes are %s; want %v", when, got, want)
	}
}

// TestSenderRestarts: each run of a sender is an account of its own. What its first token tells of those
// before it counts, and between the runs nothing is made up.
func TestSenderRestarts(t *testing.T) {
	listening(t, func(r *rig) {
		s := r.sender(7)
		for range 5 {
			s.restart()
			s.tick(0) // lost, and found in the bitmap of the next
			s.beat(3, 0)
			s.tick(0) // lost, and nobody can tell
		}
		time.Sleep(15 * time.Second)
		if got := r.pair(); got.Sent != 20 || got.OnTime != 15 || got.Dropped != 5 || got.Indeterminate != 0 {
			t.Errorf("%+v", got)
		}
	})
}

// TestSenderCrashLoop: 40 runs of a sender within the time for which their heartbeats are on their way.
func TestSenderCrashLoop(t *testing.T) {
	listening(t, func(r *rig) {
		s := r.sender(7)
		var held [][]byte
		for range 40 {
			s.restart()
			s.h.Timeout = 5 * time.Minute
			first, second := s.tick(0), s.tick(0)
			r.put(s.tick(0)...)
			held = append(held, slices.Concat(second, first)...)
			time.Sleep(2 * time.Second)
		}
		if got := r.pair(); got.Sent != 120 || got.InFlight != 80 {
			t.Errorf("under way: %+v", got)
		}
		r.put(held...)
		if got := r.pair(); got.OnTime != 120 || got.Indeterminate != 0 || got.Reordered != 80 {
			t.Errorf("%+v", got)
		}
		for range 20 { // those that are settled make room
			s.restart()
			s.beat(1, 0)
		}
		p := r.m.state.Load().probes["p"]
		p.mu.Lock()
		defer p.mu.Unlock()
		if n := len(p.watches[0].runs); n > maxSettled {
			t.Errorf("%d accounts are kept", n)
		}
	})
}

// TestForgottenSenderComesBack: nothing that was in a forgotten account is made up to be lost.
func TestForgottenSenderComesBack(t *testing.T) {
	listening(t, func(r *rig) {
		old := r.sender(1)
		old.beat(30, 0, 1)
		for i := range uint64(maxRuns + 2) {
			s := r.sender(10 + i)
			s.tick(0, 1)
			r.put(s.tick(0, 1)[0])
			time.Sleep(time.Second)
		}
		r.wantSeries("the account of lane 1 is forgotten", map[string]float64{"0": 0, "1": math.NaN()})
		old.beat(30, 0, 1)
		time.Sleep(15 * time.Second)
		n := float64(maxRuns + 2)
		if got := r.pair(); float64(got.Dropped) != n || float64(got.OnTime) != 120+n || got.Indeterminate != 0 {
			t.Errorf("%+v", got)
		}
	})
}

// TestLanesThatGo: a lane goes when the senders say that there are fewer and it is the one that is silent.
// A lane that is silent with no other in its place is dead, and its lag grows.
func TestLanesThatGo(t *testing.T) {
	grows := func(n int) map[string]float64 { return map[string]float64{"0": 0, "1": 0, "2": float64(n)} }
	healthy := map[string]float64{"0": 0, "1": 0}
	listening(t, func(r *rig) {
		s := r.sender(7)
		s.beat(5, 0, 1, 2)
		for range 10 {
			r.put(s.tick(0, 1, 2)[:2]...)
			time.Sleep(time.Second)
		}
		r.wantSeries("lane 2 is dead", grows(10))
		s.beat(5, 0, 1)
		r.wantSeries("lane 2 has gone", healthy)
		s.beat(5, 0, 1, 2)
		r.wantSeries("lane 2 is back", map[string]float64{"0": 0, "1": 0, "2": 0})
		time.Sleep(10 * time.Second)
		if got := r.pair(); got.Dropped != 10 || got.OnTime != 60 || got.Indeterminate != 0 {
			t.Errorf("10 were lost before lane 2 went: %+v", got)
		}
	})
	listening(t, func(r *rig) {
		s := r.sender(7)
		s.beat(5, 0, 1, 2)
		s.restart()
		for range 10 {
			r.put(s.tick(0, 1, 2)[:2]...)
			time.Sleep(time.Second)
		}
		r.wantSeries("the sender has restarted, and lane 2 is dead", grows(10))
		s.restart()
		s.beat(5, 0, 1)
		r.wantSeries("the sender has restarted, and lane 2 has gone", healthy)
	})
	listening(t, func(r *rig) {
		s := r.sender(7)
		s.beat(5, 0, 1, 2)
		c := *r.cfg.Probes["p"]
		c.RunFingerprint = "2"
		r.cfg.Probes = map[string]*config.Probe{"p": &c}
		if err := r.m.Apply(r.cfg); err != nil {
			t.Fatal(err)
		}
		r.wantSeries("a reload", map[string]float64{"0": math.NaN(), "1": math.NaN(), "2": math.NaN()})
		s.beat(10, 0, 1)
		r.wantSeries("a lane of before a reload has gone", healthy)
	})
	listening(t, func(r *rig) {
		a, b := r.sender(7), r.sender(8)
		for range 5 {
			r.put(a.tick(0, 1, 2)...)
			b.beat(1, 0, 1, 2)
		}
		b.beat(10, 0, 1, 2)
		r.wantSeries("one of two senders has died", map[string]float64{"0": 0, "1": 0, "2": 0})
		b.beat(5, 0, 1)
		r.wantSeries("a lane that the dead sender knew has gone", healthy)
		for range 10 {
			// One of two senders has not noticed yet that there is a lane more.
			r.put(a.tick(0, 1, 2)...)
			b.beat(1, 0, 1)
		}
		r.wantSeries("a lane that only one sender knows", map[string]float64{"0": 0, "1": 0, "2": 0})
		for range 10 {
			r.put(a.tick(0, 1, 2)[:2]...)
			b.beat(1, 0, 1)
		}
		r.wantSeries("a lane that only one sender knows is dead", grows(10))
	})
}

// expiringSink is a sink whose broker discards heartbeats after their time to live.
type expiringSink struct{ sinks.Config }

type discarding struct{ sinks.Sink }

func (discarding) Expires() bool { return true }

func (e expiringSink) Open() (sinks.Sink, error) {
	s, err := e.Config.Open()
	return discarding{s}, err
}

// TestListenerWhoseBrokerDiscards: what vanished while nobody read is nobody's loss.
func TestListenerWhoseBrokerDiscards(t *testing.T) {
	for _, discards := range []bool{true, false} {
		sim(t, func(r *rig) {
			r.cfg.Probes["p"].Inject = nil
			if discards {
				r.cfg.Sinks["out"].Config = expiringSink{r.cfg.Sinks["out"].Config}
			}
			r.start()
			time.Sleep(20 * time.Second)
			s := r.sender(7)
			s.beat(10, 0)
			r.queue.Stop()
			for range 25 {
				s.tick(0)
				time.Sleep(time.Second)
			}
			r.queue.Start()
			s.beat(20, 0)
			time.Sleep(10 * time.Second)
			want := [2]uint64{25, 0}
			if discards {
				want = [2]uint64{0, 25}
			}
			if got := r.pair(); [2]uint64{got.Dropped, got.Indeterminate} != want || got.OnTime != 30 {
				t.Errorf("discards %v: %+v", discards, got)
			}
		})
	}
}

// TestClocksApart: a sender whose clock is ahead, by less than is allowed and by more.
func TestClocksApart(t *testing.T) {
	listening(t, func(r *rig) {
		s := r.sender(7)
		s.ahead = 3 * time.Second
		s.beat(20, 0)
		w := r.m.state.Load().probes["p"].watches[0]
		feed := r.m.state.Load().sinks["out"].feed
		skew := func() time.Duration {
			w.p.mu.Lock()
			defer w.p.mu.Unlock()
			return w.skew.estimate(time.Now())
		}
		advance := func() ledger.Counts {
			w.p.mu.Lock()
			defer w.p.mu.Unlock()
			c, _ := w.advance(time.Now(), nil)
			return c
		}
		if got := skew(); got != 3*time.Second {
			t.Errorf("the skew is estimated as %v", got)
		}
		if c := advance(); c.Negative != 20 || c.OnTime != 20 {
			t.Errorf("%+v", c)
		}
		r.wantSeries("3 s ahead", map[string]float64{"0": -3})

		s.ahead = 20 * time.Second
		s.beat(5, 0)
		s.tick(0) // lost
		s.beat(5, 0)
		if got := feed.Stats().Messages[sinks.Future]; got != 10 {
			t.Errorf("%d from the future", got)
		}
		if got := skew(); got != 20*time.Second {
			t.Errorf("the skew is estimated as %v", got)
		}
		last := time.Now().Add(-10*time.Second + 2*time.Second) // 1 s before the first of them, by a clock that is 3 s ahead
		if got := r.pair().Lanes[0]; got.Last.Sub(last).Abs() > time.Millisecond || math.Abs(got.Lag-7) > 0.001 {
			t.Errorf("from the future: %+v", got)
		}

		s.ahead = 0
		s.beat(30, 0)
		time.Sleep(10 * time.Second)
		if got := r.pair(); got.Sent != 61 || got.OnTime != 50 || got.Dropped != 1 || got.Indeterminate != 10 {
			t.Errorf("%+v", got)
		}
	})
	listening(t, func(r *rig) {
		s := r.sender(7)
		s.ahead = 20 * time.Second
		s.beat(30, 0)
		s.ahead = 0
		r.wantSeries("nothing but from the future", nil)
		s.beat(20, 0)
		other := r.sender(8)
		other.ahead = 20 * time.Second
		time.Sleep(5 * time.Second)
		other.beat(5, 0)
		r.wantSeries("one sender is silent, and nobody believes the other one", map[string]float64{"0": 10})
		time.Sleep(10 * time.Second)
		if got := r.pair(); got.OnTime != 20 || got.Dropped != 0 || got.Indeterminate != 35 {
			t.Errorf("%+v", got)
		}
	})
}

// TestListenerIsReloaded: what was heard before is not made up to be lost, and what is lost meanwhile counts.
func TestListenerIsReloaded(t *testing.T) {
	listening(t, func(r *rig) {
		s := r.sender(7)
		s.beat(30, 0)
		c := *r.cfg.Probes["p"]
		c.RunFingerprint = "2"
		r.cfg.Probes = map[string]*config.Probe{"p": &c}
		held := s.tick(0)
		if err := r.m.Apply(r.cfg); err != nil {
			t.Fatal(err)
		}
		s.beat(1, 0)
		r.put(held...)
		s.tick(0) // lost
		time.Sleep(time.Second)
		s.beat(20, 0)
		time.Sleep(10 * time.Second)
		if got := r.pair(); got.Sent != 23 || got.OnTime != 22 || got.Dropped != 1 || got.Indeterminate != 0 || got.Unaccounted != 0 {
			t.Errorf("%+v", got)
		}
	})
}

// TestListenerStartsInTheMiddle: what was sent before is in no account, and what was lost a moment later, as
// clocks may be apart, is in doubt.
func TestListenerStartsInTheMiddle(t *testing.T) {
	sim(t, func(r *rig) {
		s := r.sender(7)
		s.beat(30, 0)
		s.tick(0) // lost
		held := s.tick(0)
		r.cfg.Probes["p"].Inject = nil
		r.start()
		s.beat(1, 0)
		r.put(held...)
		s.tick(0) // lost
		time.Sleep(time.Second)
		s.beat(20, 0)
		s.tick(0) // lost
		s.beat(1, 0)
		time.Sleep(10 * time.Second)
		if got := r.pair(); got.Sent != 25 || got.OnTime != 23 || got.Dropped != 1 || got.Indeterminate != 1 || got.Unaccounted != 0 {
			t.Errorf("%+v", got)
		}
	})
}

// TestChangedListenerGoesOn: a listener whose definition changes misses nothing of the senders that it knew.
func TestChangedListenerGoesOn(t *testing.T) {
	listening(t, func(r *rig) {
		s := r.sender(7)
		s.beat(30, 0)
		s.tick(0) // lost
		c := *r.cfg.Probes["p"]
		c.RunFingerprint = "2"
		r.cfg.Probes = map[string]*config.Probe{"p": &c}
		if err := r.m.Apply(r.cfg); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		s.tick(0) // lost
		time.Sleep(time.Second)
		s.beat(20, 0)
		time.Sleep(10 * time.Second)
		if got := r.pair(); got.Sent != 22 || got.OnTime != 20 || got.Dropped != 2 || got.Duplicated+got.Unaccounted != 0 {
			t.Errorf("%+v", got)
		}
	})
}
