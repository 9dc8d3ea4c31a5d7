package monitor

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/config"
	"github.com/lag-monitor/lag-monitor/internal/conform/memory"
	"github.com/lag-monitor/lag-monitor/internal/heartbeat"
	"github.com/lag-monitor/lag-monitor/internal/journal"
	"github.com/lag-monitor/lag-monitor/internal/metrics"
	"github.com/lag-monitor/lag-monitor/probe"
	"github.com/lag-monitor/lag-monitor/sinks"
)

// shelf is a journal of processes that come and go.
type shelf struct {
	full atomic.Bool // nothing can be written

	mu     sync.Mutex
	memory journal.Memory
}

func (s *shelf) Write(b *journal.Batch) error {
	if s.full.Load() {
		return errors.New("no space left on device")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.memory.Write(b)
}

func (s *shelf) State() (*journal.State, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.memory.State()
}

func (s *shelf) Close() error { return nil }

// lines is a log that is read while it is written.
type lines struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// stampOf returns the timestamp of lane 0 of the probe at its sink.
func (r *rig) stampOf() (due time.Time, ok bool) {
	w := r.m.state.Load().probes["p"].watches[0]
	w.p.mu.Lock()
	defer w.p.mu.Unlock()
	st, ok := w.stamps[0]
	return st.due, ok
}

// journaled gives the rig's monitor a journal.
func (r *rig) journaled() *shelf {
	s := new(shelf)
	r.m = New(r.options(s))
	return s
}

func (r *rig) options(s *shelf) Options {
	return Options{Instance: "here", OpenJournal: func() (Journal, *journal.State, error) {
		st, err := s.State()
		if err != nil {
			r.t.Error(err)
			st = &journal.State{}
		}
		return s, st, nil
	}}
}

// kill ends the process as it stands; what it would still have written is not.
func (r *rig) kill(s *shelf) *shelf {
	r.t.Helper()
	st, err := s.State()
	if err != nil {
		r.t.Fatal(err)
	}
	var b journal.Batch
	b.ReplaceAll()
	for _, sink := range st.Sinks {
		b.PutSink(&sink)
	}
	for i := range st.Blocks {
		b.PutBlock(&st.Blocks[i])
	}
	for i := range st.Pauses {
		b.PutPause(&st.Pauses[i])
	}
	left := new(shelf)
	if err := left.Write(&b); err != nil {
		r.t.Fatal(err)
	}
	r.stop()
	return left
}

// restart begins a new process with what the one before has left.
func (r *rig) restart(s *shelf) {
	r.t.Helper()
	r.m = New(r.options(s))
	r.start()
}

// account is pair with the heartbeats of earlier runs.
func (r *rig) account() PairStatus {
	r.t.Helper()
	s := r.pair()
	if s.Sent+s.Restored != s.OnTime+s.Dropped+s.Indeterminate+s.InFlight {
		r.t.Errorf("the account does not add up: %+v", s)
	}
	return s
}

// pipeline is a head whose heartbeats come out after a while, or not at all.
func (r *rig) pipeline(after time.Duration, lost func(*probe.Message) bool) config.Probe {
	p := *r.cfg.Probes["p"]
	p.Inject = head(func(_ context.Context, m *probe.Message) error {
		if lost(m) {
			return nil
		}
		msg := *m
		time.AfterFunc(after, func() { _ = r.inj.Inject(context.Background(), &msg) })
		return nil
	})
	r.cfg.Probes = map[string]*config.Probe{"p": &p}
	return p
}

func none(*probe.Message) bool { return false }

// What was on its way when the process was killed comes to its true end in the next one.
func TestRestartWithJournal(t *testing.T) {
	for _, c := range []struct {
		name string
		away time.Duration
		end  func(r *rig, s *shelf) *shelf
	}{
		{"killed", time.Second, (*rig).kill},
		{"killed, and away for longer than the timeout", 40 * time.Second, (*rig).kill},
		{"stopped", time.Second, func(r *rig, s *shelf) *shelf {
			r.stop()
			return s
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			sim(t, func(r *rig) {
				s := r.journaled()
				var first atomic.Bool
				first.Store(true)
				r.pipeline(5*time.Second, func(m *probe.Message) bool { return first.Load() && m.Seq == 57 })
				r.start()
				time.Sleep(58200 * time.Millisecond)
				before := r.account()
				if before.InFlight < 5 || before.Dropped != 0 {
					t.Fatalf("before: %+v", before)
				}
				s = c.end(r, s)
				first.Store(false)
				time.Sleep(c.away)
				r.restart(s)
				after := r.m.Status().Probes[0].Sinks[0]
				// The journal may be a second old, and one heartbeat a second is sent.
				if after.Restored < before.InFlight-1 || after.Restored > before.InFlight+1 {
					t.Errorf("%d were in flight, %d restored", before.InFlight, after.Restored)
				}
				time.Sleep(30 * time.Second)
				got := r.account()
				if got.Dropped != 1 || got.Indeterminate != 0 || got.Duplicated+got.Redelivered+got.Unaccounted != 0 {
					t.Errorf("one of those on their way was lost: %+v", got)
				}
				if n := got.OnTime + got.InFlight + 1; n != got.Sent+got.Restored {
					t.Errorf("%+v", got)
				}
			})
		})
	}
}

// A long pipeline has more on its way than one block of the journal holds.
func TestRestartWithManyInFlight(t *testing.T) {
	sim(t, func(r *rig) {
		s := r.journaled()
		r.pipeline(10*time.Minute, none)
		r.cfg.Probes["p"].Timeout, r.cfg.Probes["p"].TTL = 20*time.Minute, time.Hour
		r.start()
		time.Sleep(8*time.Minute + 200*time.Millisecond)
		before := r.account()
		s = r.kill(s)
		r.restart(s)
		if after := r.m.Status().Probes[0].Sinks[0]; after.Restored < before.InFlight-1 || after.Restored > before.InFlight+1 {
			t.Errorf("%d were in flight, %d restored", before.InFlight, after.Restored)
		}
	})
}

// The timestamp goes on from where it stood, before anything arrives.
func TestRestartKeepsTimestamps(t *testing.T) {
	sim(t, func(r *rig) {
		s := r.journaled()
		var dead atomic.Bool
		r.pipeline(0, func(*probe.Message) bool { return dead.Load() })
		r.start()
		time.Sleep(20 * time.Second)
		dead.Store(true)
		time.Sleep(20 * time.Second)
		before, _ := r.stampOf()
		for range 3 { // through a crash loop
			s = r.kill(s)
			r.restart(s)
			time.Sleep(1500 * time.Millisecond)
			if got, _ := r.stampOf(); !got.Equal(before) {
				t.Fatalf("the timestamp was %s, is %s", before, got)
			}
		}
		var b journal.Batch
		st, _ := s.State()
		row := st.Sinks["out"]
		for i := range row.Stamps {
			row.Stamps[i].Due = time.Now().Add(time.Hour).UnixNano()
		}
		b.PutSink(&row)
		s = r.kill(s)
		if err := s.Write(&b); err != nil {
			t.Fatal(err)
		}
		r.restart(s)
		if due, ok := r.stampOf(); ok {
			t.Errorf("a timestamp of the future was restored: %s", due)
		}
	})
}

// A sink that cannot go on where the one before has left off accuses nobody.
func TestRestartWithoutPosition(t *testing.T) {
	sim(t, func(r *rig) {
		s := r.journaled()
		r.pipeline(5*time.Second, none)
		r.start()
		time.Sleep(30200 * time.Millisecond)
		s = r.kill(s)
		sink := *r.cfg.Sinks["out"]
		sink.Fingerprint = "another queue"
		r.cfg.Sinks = map[string]*config.Sink{"out": &sink}
		time.Sleep(10 * time.Second)
		r.restart(s)
		time.Sleep(30 * time.Second)
		if got := r.account(); got.Restored < 4 || got.Dropped != 0 || got.Indeterminate != got.Restored {
			t.Errorf("what came out while nobody read: %+v", got)
		}
	})
}

// What is older than anybody waits for is left alone.
func TestRestartAfterTooLong(t *testing.T) {
	sim(t, func(r *rig) {
		s := r.journaled()
		r.pipeline(5*time.Second, none)
		r.start()
		time.Sleep(30200 * time.Millisecond)
		s = r.kill(s)
		time.Sleep(7 * time.Hour)
		r.restart(s)
		time.Sleep(5 * time.Second)
		if got := r.account(); got.Restored != 0 || got.Dropped+got.Indeterminate != 0 {
			t.Errorf("after seven hours: %+v", got)
		}
	})
}

// A run that leaves heartbeats behind in each of many crashes loses none.
func TestCrashLoop(t *testing.T) {
	sim(t, func(r *rig) {
		s := r.journaled()
		r.pipeline(7*time.Second, none)
		r.start()
		dropped, doubt := uint64(0), uint64(0)
		for i := range 20 {
			time.Sleep(time.Duration(1700+130*i) * time.Millisecond)
			got := r.account()
			dropped, doubt = dropped+got.Dropped, doubt+got.Indeterminate
			s = r.kill(s)
			time.Sleep(200 * time.Millisecond)
			r.restart(s)
		}
		time.Sleep(30 * time.Second)
		got := r.account()
		if dropped+doubt+got.Dropped+got.Indeterminate != 0 || got.Restored == 0 {
			t.Errorf("%d dropped and %d in doubt on the way, then %+v", dropped, doubt, got)
		}
	})
}

// A probe whose definition changes goes on waiting for what it has sent.
func TestChangedProbeKeepsWhatIsInFlight(t *testing.T) {
	sim(t, func(r *rig) {
		p := r.pipeline(5*time.Second, func(m *probe.Message) bool { return m.Seq == 28 })
		r.start()
		time.Sleep(30200 * time.Millisecond)
		p.Interval, p.RunFingerprint = 2*time.Second, "2"
		again := *r.cfg
		again.Probes = map[string]*config.Probe{"p": &p}
		if err := r.m.Apply(&again); err != nil {
			t.Fatal(err)
		}
		if got := r.m.Status().Probes[0].Sinks[0]; got.Restored < 5 || got.InFlight < 5 {
			t.Errorf("after the reload: %+v", got)
		}
		time.Sleep(20 * time.Second)
		got := r.account()
		if got.Dropped != 1 || got.Indeterminate+got.Duplicated+got.Unaccounted != 0 {
			t.Errorf("one was lost before the reload: %+v", got)
		}
	})
}

// Whoever still comes to an account that was replaced is counted in the new one.
func TestChangedProbeForwards(t *testing.T) {
	sim(t, func(r *rig) {
		p := r.pipeline(5*time.Second, func(m *probe.Message) bool { return m.Seq == 28 })
		r.start()
		time.Sleep(30200 * time.Millisecond)
		old := r.m.state.Load().probes["p"]
		p.RunFingerprint = "2"
		again := *r.cfg
		again.Probes = map[string]*config.Probe{"p": &p}
		if err := r.m.Apply(&again); err != nil {
			t.Fatal(err)
		}
		h := heartbeat.Heartbeat{Probe: "p", Instance: old.instance, Epoch: old.epoch, Seq: 28, Sent: time.Now().Add(-2 * time.Second)}
		old.watches[0].arrive(&h, sinks.Arrival{At: time.Now()})
		time.Sleep(20 * time.Second)
		if got := r.account(); got.Dropped+got.Indeterminate != 0 {
			t.Errorf("it arrived: %+v", got)
		}
	})
}

// A probe that was taken away leaves nothing in the journal that could be held against a pipeline when it
// comes back.
func TestRemovedProbeLeavesNothing(t *testing.T) {
	sim(t, func(r *rig) {
		s := r.journaled()
		r.pipeline(5*time.Second, none)
		r.start()
		time.Sleep(30200 * time.Millisecond)
		without := *r.cfg
		without.Probes = nil
		if err := r.m.Apply(&without); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Second)
		s = r.kill(s)
		r.restart(s)
		time.Sleep(20 * time.Second)
		if got := r.account(); got.Restored+got.Dropped+got.Indeterminate != 0 {
			t.Errorf("%+v", got)
		}
	})
}

// lanes is a head that tells its lanes when it wants to.
type lanes struct {
	head
	unknown *atomic.Bool
}

func (l lanes) Open() (probe.Injector, error) { return l, nil }

func (l lanes) Lanes(context.Context) ([]uint32, error) {
	if l.unknown.Load() {
		return nil, errors.New("no answer")
	}
	return []uint32{0}, nil
}

// The timestamps of heartbeats from before are kept although nothing can be sent yet.
func TestTimestampBeforeTheFirstTick(t *testing.T) {
	sim(t, func(r *rig) {
		s := r.journaled()
		p := r.pipeline(5*time.Second, none)
		var unknown atomic.Bool
		p.Inject = lanes{p.Inject.(head), &unknown}
		r.cfg.Probes = map[string]*config.Probe{"p": &p}
		r.start()
		time.Sleep(30200 * time.Millisecond)
		s = r.kill(s)
		unknown.Store(true)
		r.restart(s)
		newest := 0.0
		for range 10 {
			var out metrics.PairState
			w := r.m.state.Load().probes["p"].watches[0]
			w.p.mu.Lock()
			w.collect(time.Now(), &out, nil)
			w.p.mu.Unlock()
			if len(out.Lanes) != 1 || out.Lanes[0].Timestamp < newest {
				t.Fatalf("%+v after %v", out.Lanes, newest)
			}
			newest = out.Lanes[0].Timestamp
			time.Sleep(time.Second)
		}
		if got := r.account(); got.OnTime != got.Restored || got.Restored < 4 || got.Sent != 0 {
			t.Errorf("%+v", got)
		}
	})
}

// A disk that fails is told of once, counted each time, and does no harm.
func TestJournalFails(t *testing.T) {
	sim(t, func(r *rig) {
		s := r.journaled()
		var logged lines
		r.m.log = slog.New(slog.NewTextHandler(&logged, nil))
		r.pipeline(5*time.Second, none)
		r.start()
		time.Sleep(10200 * time.Millisecond)
		s.full.Store(true)
		time.Sleep(10 * time.Second)
		if n := r.m.journalErrors.Load(); n < 9 || n > 11 {
			t.Errorf("%d errors in ten seconds", n)
		}
		if n := strings.Count(logged.String(), "no space left"); n != 1 {
			t.Errorf("logged %d times:\n%s", n, logged.String())
		}
		s.full.Store(false)
		time.Sleep(2 * time.Second)
		if !strings.Contains(logged.String(), "written again") {
			t.Errorf("nothing said of the recovery:\n%s", logged.String())
		}
		before := r.account()
		s = r.kill(s)
		r.restart(s)
		time.Sleep(30 * time.Second)
		// Blocks that were closed while nothing could be written must not come back.
		if got := r.account(); got.Restored < before.InFlight-1 || got.Restored > before.InFlight+1 || got.Dropped+got.Indeterminate != 0 {
			t.Errorf("%+v, then %+v", before, got)
		}
	})
}

// A journal that cannot be opened is tried again, and what it knows is still used when it could be read.
func TestJournalCannotBeOpened(t *testing.T) {
	sim(t, func(r *rig) {
		s := new(shelf)
		opts := r.options(s)
		open, tries := opts.OpenJournal, 0
		opts.OpenJournal = func() (Journal, *journal.State, error) {
			if tries++; tries < 3 {
				_, st, _ := open()
				return nil, st, errors.New("is another lag-monitor using it?")
			}
			return open()
		}
		r.m = New(opts)
		r.start()
		time.Sleep(50 * time.Second)
		if n := r.m.journalErrors.Load(); n != 2 {
			t.Errorf("%d errors after two tries", n)
		}
		time.Sleep(20 * time.Second)
		if st, err := s.State(); err != nil || len(st.Sinks["out"].Stamps) != 1 || r.m.journalErrors.Load() != 2 {
			t.Errorf("not written after the third try: %+v, %v", st, err)
		}
	})
}

// What a probe has left waits for a configuration that is broken for a while, and for its sink.
func TestRestartWithBrokenInclude(t *testing.T) {
	sim(t, func(r *rig) {
		s := r.journaled()
		r.pipeline(5*time.Second, none)
		whole := r.cfg
		r.start()
		time.Sleep(30200 * time.Millisecond)
		s = r.kill(s)
		r.cfg = &config.Config{Global: whole.Global}
		r.restart(s)
		time.Sleep(3 * time.Second)
		s = r.kill(s) // whatever is not configured is still in the journal
		r.restart(s)
		time.Sleep(time.Second)
		if err := r.m.Apply(whole); err != nil {
			t.Fatal(err)
		}
		time.Sleep(30 * time.Second)
		if got := r.account(); got.Restored < 4 || got.Dropped+got.Indeterminate != 0 {
			t.Errorf("after the configuration was mended: %+v", got)
		}
	})
}

// A listener finds exactly what was dropped while it was away.
func TestListenerRestarts(t *testing.T) {
	sim(t, func(r *rig) {
		s := r.journaled()
		p := *r.cfg.Probes["p"]
		p.Inject = nil
		r.cfg.Probes = map[string]*config.Probe{"p": &p}
		keys := heartbeat.NewKeyring()
		seq, accepted, old := uint64(0), uint64(0), []byte(nil)
		send := func(n int, lost map[uint64]bool) {
			for range n {
				seq++
				h := heartbeat.Heartbeat{Probe: "p", Instance: 1, Epoch: 2, Lanes: 1, Seq: seq, Sent: time.Now(), Accepted: accepted,
					Interval: time.Second, Timeout: 10 * time.Second}
				accepted = accepted<<1 | 1
				token := keys.Append(nil, &h)
				if !lost[seq] {
					_ = r.queue.Put(t.Context(), token)
				}
				if seq == 15 {
					old = token
				}
				time.Sleep(time.Second)
			}
		}
		lost := map[uint64]bool{5: true, 19: true, 20: true, 22: true, 31: true}
		r.start()
		send(20, lost)
		s = r.kill(s)
		send(5, lost)
		// Another sender has begun meanwhile, and lost its first one. By then clocks that are apart no longer
		// matter.
		time.Sleep(12 * time.Second)
		for i := range uint64(3) {
			time.Sleep(time.Second)
			if i > 0 {
				_ = r.queue.Put(t.Context(), keys.Append(nil, &heartbeat.Heartbeat{Probe: "p", Instance: 9, Epoch: 1, Lanes: 1, Seq: i + 1, Sent: time.Now(),
					Accepted: 1<<i - 1, Interval: time.Second, Timeout: 10 * time.Second}))
			}
		}
		r.restart(s)
		_ = r.queue.Put(t.Context(), old) // was settled long ago: whether it is a duplicate or read again, nobody knows
		send(40, lost)
		got := r.m.Status().Probes[0].Sinks[0]
		// The drop of 5 was counted by the process before.
		if got.Dropped != 5 || got.Indeterminate+got.Duplicated+got.Unaccounted+got.Late != 0 {
			t.Errorf("5 were dropped since: %+v", got)
		}
		if n := got.OnTime; n < 42 || n > 47 {
			t.Errorf("65 were sent, 20 before the restart: %+v", got)
		}
		if m := r.m.state.Load().sinks["out"].feed.Stats().Messages; m[sinks.Corrupt]+m[sinks.Foreign] != 0 {
			t.Errorf("%v", m)
		}
	})
}

// settler is a sink whose broker forgets what was settled. It notes who is called.
type settler struct {
	sinks.Sink
	panics bool

	mu    sync.Mutex
	calls []string
}

func (s *settler) Validate() error           { return nil }
func (s *settler) Open() (sinks.Sink, error) { return s, nil }
func (s *settler) Resume(map[string]string)  {}

func (s *settler) Position() map[string]string {
	s.note("position")
	return nil
}

func (s *settler) Settle() {
	s.note("settle")
	if s.panics {
		panic("a driver's mistake")
	}
}

func (s *settler) note(call string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = append(s.calls, call)
}

// during returns the calls of a time.
func (s *settler) during(d time.Duration) []string {
	s.mu.Lock()
	s.calls = nil
	s.mu.Unlock()
	time.Sleep(d)
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.calls)
}

// A broker forgets nothing that the journal could not be told.
func TestSettle(t *testing.T) {
	for _, panics := range []bool{false, true} {
		sim(t, func(r *rig) {
			shelf := r.journaled()
			inner, err := (&memory.SinkConfig{Queue: r.queue}).Open()
			if err != nil {
				t.Fatal(err)
			}
			s := &settler{Sink: inner, panics: panics}
			r.cfg.Sinks["out"].Config = s
			r.start()
			calls := s.during(10 * time.Second)
			if len(calls) < 18 {
				t.Errorf("calls in ten seconds: %q", calls)
			}
			for i, call := range calls {
				if want := []string{"position", "settle"}[i%2]; call != want {
					t.Errorf("call %d was %s, want %s", i, call, want)
				}
			}
			shelf.full.Store(true)
			if calls := s.during(10 * time.Second); slices.Contains(calls, "settle") || len(calls) < 9 {
				t.Errorf("calls while nothing could be written: %q", calls)
			}
			shelf.full.Store(false)
			if calls := s.during(3 * time.Second); !slices.Contains(calls, "settle") {
				t.Errorf("calls when it was written again: %q", calls)
			}
		})
	}
}
