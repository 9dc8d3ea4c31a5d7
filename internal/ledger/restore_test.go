package ledger

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// kept is what somebody has who writes down all that Changes tells.
type kept map[[2]uint64][]Open

func (k kept) take(l *Ledger) {
	l.Changes(nil, func(b *Block) {
		key := [2]uint64{uint64(b.Lane), b.Number}
		if len(b.Open) == 0 {
			delete(k, key)
			return
		}
		k[key] = slices.Clone(b.Open)
	})
}

// opens is the same by a look at every slot.
func opens(l *Ledger) kept {
	k := make(kept)
	for id, ln := range l.lanes {
		for seq := ln.open; seq < ln.next; seq++ {
			s := ln.at(seq)
			if f := s.fate; f == Waiting || f == WaitingMaybe || f == Injecting {
				key := [2]uint64{uint64(id), seq / BlockSize}
				k[key] = append(k[key], Open{Seq: seq, Due: s.due, Maybe: f != Waiting, Death: s.death, Missed: s.missed || l.gapped && s.due.Add(-l.cfg.Expiry) < l.gap})
			}
		}
	}
	return k
}

// What Changes has told is what is open, after any course of events, and an account restored from it
// comes to the same end.
func TestChangesAndRestore(t *testing.T) {
	for seed := range uint64(400) {
		r := rand.New(rand.NewPCG(seed, 1))
		cfg := Config{Expiry: time.Duration(r.IntN(3)) * time.Second, Timeout: time.Duration(1+r.IntN(20)) * time.Second}
		l := New(cfg)
		if r.IntN(3) > 0 {
			l.Ready(true, 0)
		}
		k := make(kept)
		now := Instant(time.Hour)
		next := []uint64{1 + uint64(r.IntN(200)), 1, 1 << 40}
		for step := range 1 + r.IntN(1500) {
			now = now.Add(time.Duration(r.IntN(600)) * time.Millisecond)
			lane := uint32(r.IntN(len(next)))
			older := next[lane] - 1 - min(next[lane]-1, uint64(r.IntN(100)))
			switch r.IntN(14) {
			case 0, 1, 2, 3, 4:
				l.Expect(lane, next[lane], now.Add(cfg.Expiry))
				next[lane]++
			case 5, 6, 7:
				l.Sent(lane, older, []Result{Accepted, Accepted, Unknown, Refused}[r.IntN(4)])
			case 8, 9:
				l.Arrive(Arrival{Lane: lane, Seq: older, At: now})
			case 10:
				l.CaughtUp(now.Add(-time.Duration(r.IntN(3000)) * time.Millisecond))
			case 11:
				l.Advance(now)
			case 12:
				switch r.IntN(10) {
				case 0:
					l.Gap(now)
				case 1:
					l.Ready(r.IntN(2) == 0, now)
				case 2:
					l.Retire(lane)
				case 3:
					next[lane] += uint64(r.IntN(300))
				case 4:
					l.DeadLetter(lane, older, []Death{DeadOther, DeadExpired}[r.IntN(2)])
				case 5:
					l.ChangeAll()
					clear(k)
				}
			case 13:
				k.take(l)
				if want := opens(l); !maps.EqualFunc(k, want, slices.Equal) {
					t.Fatalf("seed %d, step %d: kept\n%v\nopen\n%v", seed, step, k, want)
				}
			}
		}
		k.take(l)
		if want := opens(l); !maps.EqualFunc(k, want, slices.Equal) {
			t.Fatalf("seed %d: kept\n%v\nopen\n%v", seed, k, want)
		}

		restored := New(cfg)
		restored.Resume()
		sum := uint64(0)
		for _, key := range slices.SortedFunc(maps.Keys(k), func(a, b [2]uint64) int { return slices.Compare(a[:], b[:]) }) {
			restored.Restore(uint32(key[0]), k[key])
			sum += uint64(len(k[key]))
		}
		if c := restored.Counts(); c.Sent != sum || c.InFlight != sum {
			t.Fatalf("seed %d: %d heartbeats restored, %d sent, %d in flight", seed, sum, c.Sent, c.InFlight)
		}
		again := make(kept)
		again.take(restored)
		if !maps.EqualFunc(again, k, slices.Equal) {
			t.Fatalf("seed %d: restored\n%v\nof\n%v", seed, again, k)
		}
		restored.Ready(true, now)
		restored.CaughtUp(now.Add(time.Hour))
		restored.Advance(now.Add(time.Hour))
		want := Counts{Sent: sum}
		for _, open := range k {
			for _, o := range open {
				switch {
				case o.Death != NotDead:
					want.Dropped[deadReason[o.Death]]++
				case o.Maybe:
					want.Indeterminate[DoubtSend]++
				case o.Missed:
					want.Indeterminate[DoubtGap]++
				default:
					want.Dropped[DropTimeout]++
				}
			}
		}
		if got := restored.Counts(); got != want {
			t.Fatalf("seed %d: the restored account ends as\n%+v, want\n%+v", seed, got, want)
		}
	}
}

// A restored account tells the heartbeats that it was given from those that it never heard of.
func TestKnows(t *testing.T) {
	l := New(Config{Timeout: time.Second})
	l.Resume()
	l.Restore(7, []Open{{Seq: 10, Due: 1}, {Seq: 12, Due: 3}})
	l.Ready(true, 0)
	l.Arrive(Arrival{Lane: 7, Seq: 10, At: 2})
	for seq, want := range map[uint64]bool{9: false, 10: true, 11: false, 12: true, 13: false} {
		if got := l.Knows(7, seq); got != want {
			t.Errorf("Knows(7, %d) = %t", seq, got)
		}
	}
	if l.Knows(8, 10) {
		t.Error("knows a heartbeat of a lane that was never there")
	}
	l.CaughtUp(Instant(time.Hour))
	for range 500 { // out of the ring, into the history
		l.Skip(7, l.lanes[7].next, Instant(time.Hour))
	}
	if !l.Knows(7, 10) || !l.Knows(7, 12) || l.Knows(7, 11) {
		t.Error("forgotten too early: ", fmt.Sprint(l.Knows(7, 10), l.Knows(7, 12), l.Knows(7, 11)))
	}
}

// What was open over a gap stays in doubt in the account that takes it over; a sink that resumes leaves
// no gap by itself.
func TestRestoreKeepsDoubt(t *testing.T) {
	for _, resumed := range []bool{true, false} {
		t.Run(fmt.Sprintf("resumed=%t", resumed), func(t *testing.T) {
			l := New(Config{Timeout: time.Second})
			if resumed {
				l.Resume()
			}
			l.Restore(0, []Open{{Seq: 1, Due: 1}, {Seq: 2, Due: 2, Missed: true}})
			l.Ready(true, 10)
			l.CaughtUp(Instant(time.Minute))
			l.Advance(Instant(time.Minute))
			c := l.Counts()
			want := uint64(2)
			if resumed {
				want = 1
			}
			if c.Indeterminate[DoubtGap] != want || c.Drops() != 2-want {
				t.Errorf("%d in doubt for the gap, %d dropped", c.Indeterminate[DoubtGap], c.Drops())
			}
		})
	}
}
