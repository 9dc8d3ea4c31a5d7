package probe

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// recorder is a task that notes its ticks and can be made slow.
type recorder struct {
	mu       sync.Mutex
	ticks    []time.Time
	overruns int
	takes    time.Duration
}

func (r *recorder) Tick(at time.Time) {
	r.mu.Lock()
	r.ticks = append(r.ticks, at)
	takes := r.takes
	r.mu.Unlock()
	time.Sleep(takes)
}

func (r *recorder) Overrun(_ time.Time, n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.overruns += n
}

// seen returns the ticks so far and the number of overruns.
func (r *recorder) seen() ([]time.Time, int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.ticks), r.overruns
}

// inSchedule runs f beside a running schedule with a fake clock.
func inSchedule(t *testing.T, f func(s *Schedule)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := NewSchedule()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { s.Run(ctx); close(done) }()
		f(s)
		cancel()
		<-done
	})
}

func TestScheduleKeepsItsGrid(t *testing.T) {
	inSchedule(t, func(s *Schedule) {
		r := &recorder{takes: 300 * time.Millisecond}
		s.Add("a", time.Second, r)
		time.Sleep(100*time.Second + time.Millisecond)
		ticks, overruns := r.seen()
		if n := len(ticks); n < 100 || n > 102 {
			t.Fatalf("%d ticks in 100 s at 1 Hz", n)
		}
		for i := 2; i < len(ticks); i++ {
			if d := ticks[i].Sub(ticks[i-1]); d != time.Second {
				t.Errorf("tick %d comes %s after the one before", i, d)
			}
		}
		if d := ticks[1].Sub(ticks[0]); d < time.Second/2 || d > 3*time.Second/2 {
			t.Errorf("the second tick comes %s after the first", d)
		}
		if overruns != 0 {
			t.Errorf("%d overruns of a task that is fast enough", overruns)
		}
	})
}

func TestScheduleStartsAtOnce(t *testing.T) {
	inSchedule(t, func(s *Schedule) {
		r := &recorder{}
		s.Add("a", time.Hour, r)
		time.Sleep(time.Millisecond)
		if ticks, _ := r.seen(); len(ticks) != 1 {
			t.Errorf("%d ticks in the first millisecond, want the first one at once", len(ticks))
		}
	})
}

func TestScheduleCountsOverruns(t *testing.T) {
	inSchedule(t, func(s *Schedule) {
		r := &recorder{takes: 2500 * time.Millisecond}
		s.Add("a", time.Second, r)
		time.Sleep(90 * time.Second)
		ticks, overruns := r.seen()
		if sum := len(ticks) + overruns; sum < 89 || sum > 92 {
			t.Errorf("%d ticks and %d overruns in 90 s do not add up", len(ticks), overruns)
		}
		if len(ticks) > 31 {
			t.Errorf("%d ticks of 2.5 s in 90 s: some ran at once", len(ticks))
		}
	})
}

func TestScheduleSpreadsPhases(t *testing.T) {
	inSchedule(t, func(s *Schedule) {
		const n = 1000
		rs := make([]recorder, n)
		for i := range rs {
			s.Add(fmt.Sprint("probe-", i), time.Second, &rs[i])
		}
		time.Sleep(3 * time.Second)
		var buckets [10]int
		for i := range rs {
			ticks, _ := rs[i].seen()
			at := ticks[2]
			buckets[at.UnixNano()%int64(time.Second)*10/int64(time.Second)]++
		}
		for i, c := range buckets {
			if c < n/20 || c > n/5 {
				t.Errorf("%d of %d ticks fall into tenth %d of the interval: %v", c, n, i, buckets)
			}
		}
	})
}

func TestScheduleNowAndRemove(t *testing.T) {
	inSchedule(t, func(s *Schedule) {
		r := &recorder{}
		e := s.Add("a", time.Minute, r)
		count := func() int {
			ticks, _ := r.seen()
			return len(ticks)
		}
		time.Sleep(10 * time.Minute)
		before := count()
		e.Now()
		time.Sleep(time.Millisecond)
		if n := count(); n != before+1 {
			t.Fatalf("Now gives %d ticks", n-before)
		}
		time.Sleep(10 * time.Minute)
		if d := count() - before - 1; d < 9 || d > 10 {
			t.Errorf("%d ticks in the ten minutes after Now", d)
		}
		e.Remove()
		e.Remove()
		e.Now()
		before = count()
		time.Sleep(10 * time.Minute)
		if n := count(); n != before {
			t.Errorf("%d ticks after Remove", n-before)
		}
	})
}

func TestScheduleEndsIdleWorkers(t *testing.T) {
	inSchedule(t, func(s *Schedule) {
		var slow []*recorder
		for i := range 50 {
			r := &recorder{takes: 20 * time.Second}
			slow = append(slow, r)
			s.Add(fmt.Sprint("slow-", i), time.Minute, r)
		}
		time.Sleep(time.Second)
		if n := s.workers.Load(); n != 50 {
			t.Fatalf("%d workers for 50 ticks under way", n)
		}
		for _, r := range slow {
			r.mu.Lock()
			r.takes = 0
			r.mu.Unlock()
		}
		time.Sleep(40 * time.Second)
		if n := s.workers.Load(); n > 2 {
			t.Errorf("%d workers are left with nothing to do", n)
		}
	})
}
