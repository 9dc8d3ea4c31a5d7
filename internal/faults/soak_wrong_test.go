package faults_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/heartbeat"
)

// TestSoakSeesWhatIsWrong: the reckoning is content with an account that is right, and with none that is wrong by one.
func TestSoakSeesWhatIsWrong(t *testing.T) {
	start := time.Now().Add(-time.Hour)
	var beats []*beat
	right := figures{began: time.Now(), at: time.Now(), restored: 2}
	taken := map[beatID]bool{}
	for seq := range 100 {
		b := &beat{Heartbeat: heartbeat.Heartbeat{Epoch: 2, Seq: uint64(seq), Sent: start.Add(time.Duration(seq) * time.Second), Timeout: 4 * time.Second}, inHead: true, copies: 1}
		b.entered = b.Sent.Add(time.Second)
		switch {
		case seq < 2: // of the process before
			b.Epoch, b.Sent = 1, start.Add(-time.Second)
			taken[idOf(b)] = false
		default:
			right.accepted++
		}
		switch seq {
		case 1, 10, 20, 30: // lost
			b.copies = 0
			right.dropped++
		case 11, 21: // late
			b.entered = b.Deadline().Add(time.Second)
			right.dropped++
			right.late++
		case 12:
			b.copies = 3
			right.duplicates += 2
			right.onTime++
		case 13:
			b.older = true
			right.reordered++
			right.onTime++
		default:
			right.onTime++
		}
		b.acked = b.entered
		if b.copies > 0 && b.Epoch == 2 {
			right.observed++
		}
		beats = append(beats, b)
	}
	complaints := func(f figures) (n int) {
		p := &soaked{name: "p", pipe: &soakPipe{}, lives: []*account{
			{began: start.Add(-time.Minute), ended: start.Add(-time.Millisecond), unchecked: true},
			{began: start.Add(-time.Millisecond), taken: taken, last: f, scrapes: []figures{f}, base: &marks{}},
		}}
		p.reckon(beats, func(string, ...any) { n++ })
		return n
	}
	if complaints(right) > 0 {
		t.Fatal("the account is right")
	}
	for name, wrong := range map[string]func(f *figures, by int){
		"accepted": func(f *figures, by int) { f.accepted += by }, "restored": func(f *figures, by int) { f.restored += by },
		"on time": func(f *figures, by int) { f.onTime += by }, "late": func(f *figures, by int) { f.late += by },
		"dropped": func(f *figures, by int) { f.dropped += by }, "in flight": func(f *figures, by int) { f.inFlight += by },
		"duplicates": func(f *figures, by int) { f.duplicates += by }, "redeliveries": func(f *figures, by int) { f.redeliveries += by },
		"reordered": func(f *figures, by int) { f.reordered += by }, "observed": func(f *figures, by int) { f.observed += by },
		"unaccounted": func(f *figures, by int) { f.stray += by }, "in doubt": func(f *figures, by int) { f.doubted += max(by, 0) - min(by, 0) },
	} {
		for _, by := range []int{-1, 1} {
			f := right
			wrong(&f, by)
			if complaints(f) == 0 {
				t.Errorf("%s %+d: nobody notices", name, by)
			}
		}
	}

	// Only one that is lost has been sent by then, and its deadline is to come.
	early := right
	early.at = start.Add(12 * time.Second)
	early.accepted, early.restored, early.onTime, early.late, early.dropped = 11, 0, 0, 0, 1
	p := &soaked{name: "p", pipe: &soakPipe{}, lives: []*account{{began: start, last: right, scrapes: []figures{early}}}}
	n := 0
	p.early(p.lives[0], beats[2:], func(string, ...any) { n++ })
	if n == 0 {
		t.Error("a drop that is declared too early is not noticed")
	}
}

// TestLeaks: what grows by a little with each fault is seen at the end, and what only varies is not.
func TestLeaks(t *testing.T) {
	for name, c := range map[string]struct {
		grow  func(r *resources, n int)
		leaks bool
	}{
		"steady":                      {func(r *resources, n int) { r.goroutines += n % 7; r.files += n % 5; r.memory += float64(n%3) * 1e6 }, false},
		"goroutines":                  {func(r *resources, n int) { r.goroutines += n }, true},
		"files":                       {func(r *resources, n int) { r.files += n }, true},
		"memory":                      {func(r *resources, n int) { r.memory += float64(n) * 1e6 }, true},
		"memory, of each new process": {func(r *resources, n int) { r.process = n / 10; r.memory += float64(n%10) * 4e6 }, true},
	} {
		var all []resources
		for n := range 30 {
			r := resources{goroutines: 70, files: 35, memory: 40e6}
			c.grow(&r, n)
			all = append(all, r)
		}
		if wrong := leaks(all); (len(wrong) > 0) != c.leaks {
			t.Errorf("%s: %s", name, fmt.Sprint(wrong))
		}
	}
	if len(leaks(nil)) == 0 {
		t.Error("nothing measured is nothing proven")
	}
}
