package faults_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/journal"
	"github.com/lag-monitor/lag-monitor/internal/servers"
)

const (
	kills = 200 // in all
	loops = 4   // monitors that are killed at the same time, each with a pipeline of its own
	// keepEvery is how often the monitor writes its journal, by its documentation.
	keepEvery = time.Second
)

// TestKills kills monitors that keep a journal at random moments. None accuses its pipeline of a loss that was
// none, and none forgets a heartbeat that was in the journal or should have been: those sent since the last
// write, at most the stated second before the kill, are all that a kill may take away.
func TestKills(t *testing.T) {
	servers.Need(t)
	server := servers.StartNATS(t, natsBinary, "", "")
	for i := range loops {
		t.Run(fmt.Sprint(i+1), func(t *testing.T) {
			t.Parallel()
			killLoop(t, &row{name: fmt.Sprint("killed", i+1), interval: 100 * time.Millisecond, timeout: 8 * time.Second}, server)
		})
	}
}

// life is one run of the daemon, from what it took over to what it left behind.
type life struct {
	began, ended time.Time
	taken        map[id]bool // open in the journal that it found
	left         map[id]bool // open in the journal when it was killed
	maybe        map[id]bool // of those, the ones of which nobody knows whether the head has them
	written      time.Time   // when that was written
	said         servers.Scrape
	saidAt       time.Time
}

// id names a heartbeat of a pipeline with one lane.
type id struct{ epoch, seq uint64 }

func killLoop(t *testing.T, r *row, server *servers.NATSProcess) {
	p := natsPipeline(t, r, server, "")
	r.plan = func(n int, _ message) plan {
		switch {
		case n%11 == 0:
			return plan{} // lost
		case n%3 == 0:
			return plan{copies: 1, delay: 2500 * time.Millisecond}
		}
		return plan{copies: 1, delay: 300 * time.Millisecond}
	}
	f := &field{pipeline: p, row: r, truth: newTruth(), relay: &relay{head: p.head, dest: p.dest, plan: r.plan}}
	t.Cleanup(f.relay.start())
	dir := t.TempDir()
	f.daemon = startDaemon(t, f.config(), true, f.command, "--storage.path="+dir)

	var lives []*life
	now := &life{began: time.Now()}
	// The first life has to come as far as its first writing.
	f.daemon.await(t, "heartbeats come out", patience, func(s servers.Scrape) bool { return s.Sum("heartbeats_received_total") >= 10 })
	wait(t, 1500*time.Millisecond)
	for range kills / loops {
		wait(t, rand.N(1500*time.Millisecond))
		at := time.Now()
		if s, err := f.daemon.scrape(t.Context()); err == nil {
			now.said, now.saidAt = s, at
		}
		f.daemon.Kill()
		now.ended = time.Now()
		now.read(t, dir)
		lives = append(lives, now)
		now = &life{began: time.Now(), taken: now.left}
		f.daemon.Start()
		// What was taken over is known before anything is sent.
		s, _ := f.daemon.await(t, "it lives again", patience, func(servers.Scrape) bool { return true })
		if n := int(s.Sum("heartbeats_restored_total")); n != len(now.taken) {
			t.Errorf("life %d: %d were open in the journal, %d restored", len(lives)+1, len(now.taken), n)
		}
	}
	wait(t, 2*time.Second)
	now.said, now.saidAt = f.quiesce(t), time.Now()
	now.ended = now.saidAt
	f.daemon.unwatch()
	judge(t, f, append(lives, now))
	for _, c := range f.daemon.complaints() {
		t.Error(c)
	}
}

// read reads a copy of the journal.
func (l *life) read(t *testing.T, dir string) {
	t.Helper()
	copied := t.TempDir()
	if err := os.CopyFS(copied, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	j, st, err := journal.Open(copied)
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	if st.Lost != nil {
		t.Fatal(st.Lost)
	}
	l.written, l.left, l.maybe = st.At, map[id]bool{}, map[id]bool{}
	for _, b := range st.Blocks {
		for _, o := range b.Heartbeats(nil) {
			l.left[id{b.Epoch, o.Seq}] = true
			if o.Maybe {
				l.maybe[id{b.Epoch, o.Seq}] = true
			}
		}
	}
}

// judge holds what the daemon has said and kept in its lives against what is in the queues.
func judge(t *testing.T, f *field, lives []*life) {
	t.Helper()
	// Between two clocks of one host, and until a heartbeat that is in the queue is in the account.
	const near = 500 * time.Millisecond
	beats := map[id]*beat{}
	for _, b := range f.truth.beats {
		beats[id{b.Epoch, b.Seq}] = b
	}
	lost := func(i id) bool { return beats[i] != nil && beats[i].copies == 0 }
	lostInAll := 0
	for i := range beats {
		if lost(i) {
			lostInAll++
		}
	}
	var dropped, doubted, kept, slack int
	var window time.Duration
	for n, l := range lives {
		final := n == len(lives)-1
		mine := maps.Clone(l.taken) // the heartbeats that this life has to account for
		if mine == nil {
			mine = map[id]bool{}
		}
		for i, b := range beats {
			if b.Sent.After(l.began) && b.Sent.Before(l.ended) {
				mine[i] = true
			}
		}
		mayDrop, trueDrops := 0, 0
		for i := range mine {
			if lost(i) {
				trueDrops++
				if beats[i].Deadline().Before(l.saidAt) {
					mayDrop++
				}
			}
		}
		if n := int(l.said.Sum("heartbeats_dropped_total")); n > mayDrop {
			t.Errorf("life %d has dropped %d; %d were lost by then", n+1, n, mayDrop)
		} else {
			dropped += n
		}
		// In doubt is only what may never have reached the head: the kill, or the end, came before its answer.
		unsure := int(l.said.Sum("heartbeats_sent_total", "result", "unknown"))
		if n > 0 {
			for i := range lives[n-1].maybe {
				if beats[i] == nil || lost(i) {
					unsure++
				}
			}
		}
		if in := int(l.said.Sum("heartbeats_indeterminate_total")); in > unsure {
			t.Errorf("life %d doubts %d heartbeats (%s); of %d it cannot be known whether they were sent", n+1, in, reasons(l.said), unsure)
		} else {
			doubted += in
		}
		if final {
			if got := int(l.said.Sum("heartbeats_dropped_total") + l.said.Sum("heartbeats_indeterminate_total")); got < trueDrops {
				t.Errorf("the last life had %d lost heartbeats to account for; it has dropped or doubts %d", trueDrops, got)
			}
			continue
		}
		window = max(window, l.ended.Sub(later(l.written, l.began)))
		for i := range mine {
			b := beats[i]
			switch {
			case b == nil: // it never came into the head
			case b.Sent.After(l.written.Add(-near)): // or perhaps: what a kill may take away
				if !l.left[i] {
					slack++
				}
			case b.copies > 0 && b.entered.Before(l.written.Add(near)), // it has come out, or perhaps
				b.Deadline().Before(l.written.Add(near)): // its time was over, or perhaps
			case !l.left[i]:
				t.Errorf("life %d forgets %v: sent %v before the journal was written, and open", n+1, i, l.written.Sub(b.Sent))
			default:
				kept++
			}
		}
	}
	if window > keepEvery+5*time.Second { // a busy machine writes late
		t.Errorf("a journal was %v old", window)
	}
	if kept == 0 || dropped == 0 {
		t.Errorf("%d were to be kept, %d dropped: that proves nothing", kept, dropped)
	}
	t.Logf("%d lives, %d heartbeats, %d open at a kill and kept, %d dropped and %d in doubt of %d lost ones, %d sent since the last writing and not in it; the oldest journal was %v old",
		len(lives), len(beats), kept, dropped, doubted, lostInAll, slack, window)
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
