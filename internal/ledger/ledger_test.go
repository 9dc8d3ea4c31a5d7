package ledger

import (
	"fmt"
	"math"
	"runtime"
	"slices"
	"testing"
	"time"
	"unsafe"
)

// sec is an instant of the tests' clock.
func sec(n float64) Instant { return Instant(n * float64(time.Second)) }

// ten is the configuration of most tests: due 5 s after it was sent, deadline 10 s after that.
var ten = Config{Expiry: 5 * time.Second, Timeout: 10 * time.Second}

// reading returns a ledger whose sink reads since long ago, and was caught up at 0.
func reading(cfg Config) *Ledger {
	l := New(cfg)
	l.Ready(true, sec(-1000))
	l.CaughtUp(0)
	return l
}

// send registers and sends heartbeats at the given seconds, with sequences from 1, in lane 0.
func send(l *Ledger, r Result, at ...float64) {
	for i, t := range at {
		l.Expect(0, uint64(i+1), sec(t).Add(l.cfg.Expiry))
		l.Sent(0, uint64(i+1), r)
	}
}

func arrive(l *Ledger, seq uint64, at float64) Outcome {
	return l.Arrive(Arrival{Seq: seq, At: sec(at)})
}

func enqueued(l *Ledger, seq uint64, at, enqueued float64) Outcome {
	return l.Arrive(Arrival{Seq: seq, At: sec(at), Enqueued: sec(enqueued), HasEnqueued: true})
}

func dropped(n uint64) (d [dropReasons]uint64) {
	d[DropTimeout] = n
	return d
}

func doubted(d Doubt, n uint64) (all [doubts]uint64) {
	all[d] = n
	return all
}

// Each row is a rule. One heartbeat is sent at 1, due at 6, its deadline is 16, unless the row says
// otherwise.
func TestOutcomes(t *testing.T) {
	withTTL := ten
	withTTL.TTL = 20 * time.Second // over at 21
	shortTTL := ten
	shortTTL.TTL = 8 * time.Second // over at 9
	for _, c := range []struct {
		name string
		cfg  Config
		play func(l *Ledger)
		want Counts
	}{
		{"in flight", ten, func(l *Ledger) {
			send(l, Accepted, 1)
			l.CaughtUp(sec(15.9))
			l.Advance(sec(100))
		}, Counts{Sent: 1, InFlight: 1}},
		{"on time", ten, func(l *Ledger) {
			send(l, Accepted, 1)
			arrive(l, 1, 7)
			l.CaughtUp(sec(30))
			l.Advance(sec(30))
		}, Counts{Sent: 1, OnTime: 1}},
		{"on time at the deadline", ten, func(l *Ledger) {
			send(l, Accepted, 1)
			arrive(l, 1, 16)
		}, Counts{Sent: 1, OnTime: 1}},
		{"before it was due", ten, func(l *Ledger) {
			send(l, Accepted, 1)
			arrive(l, 1, 5)
		}, Counts{Sent: 1, OnTime: 1, Negative: 1}},
		{"dropped: the sink caught up at the deadline", ten, func(l *Ledger) {
			send(l, Accepted, 1)
			l.CaughtUp(sec(16))
			l.Advance(sec(16))
		}, Counts{Sent: 1, Dropped: dropped(1)}},
		{"late after a drop", ten, func(l *Ledger) {
			send(l, Accepted, 1)
			l.CaughtUp(sec(17))
			arrive(l, 1, 20)
		}, Counts{Sent: 1, Dropped: dropped(1), Late: 1}},
		{"late after a drop, the broker says it came in time", ten, func(l *Ledger) {
			send(l, Accepted, 1)
			l.CaughtUp(sec(17))
			enqueued(l, 1, 20, 10)
		}, Counts{Sent: 1, Dropped: dropped(1), Late: 1}},
		{"late by the broker's word", ten, func(l *Ledger) {
			send(l, Accepted, 1)
			enqueued(l, 1, 20, 16.1)
		}, Counts{Sent: 1, Dropped: dropped(1), Late: 1}},
		{"on time by the broker's word, though read late", ten, func(l *Ledger) {
			send(l, Accepted, 1)
			l.Ready(false, sec(2))
			l.Advance(sec(60))
			l.Ready(true, sec(60))
			enqueued(l, 1, 61, 16)
		}, Counts{Sent: 1, OnTime: 1}},
		{"on time by our word, whatever the broker's clock says", ten, func(l *Ledger) {
			send(l, Accepted, 1)
			enqueued(l, 1, 15, 99)
		}, Counts{Sent: 1, OnTime: 1}},
		{"found late without the broker's word", ten, func(l *Ledger) {
			send(l, Accepted, 1)
			l.CaughtUp(sec(15))
			arrive(l, 1, 16.5)
		}, Counts{Sent: 1, Indeterminate: doubted(DoubtResolution, 1), Late: 1}},
		{"found late after the sink was blind", ten, func(l *Ledger) {
			send(l, Accepted, 1)
			l.Ready(false, sec(2))
			l.Ready(true, sec(60))
			arrive(l, 1, 61)
			l.CaughtUp(sec(62))
		}, Counts{Sent: 1, Indeterminate: doubted(DoubtBlind, 1), Late: 1}},
		{"blind over the deadline, then proven", ten, func(l *Ledger) {
			send(l, Accepted, 1)
			l.Ready(false, sec(2))
			l.Advance(sec(60))
			l.Ready(true, sec(60))
			l.CaughtUp(sec(61))
		}, Counts{Sent: 1, Dropped: dropped(1)}},
		{"blind: wait", ten, func(l *Ledger) {
			send(l, Accepted, 1)
			l.Ready(false, sec(2))
			l.Advance(sec(16).Add(DefaultHold) - 1)
		}, Counts{Sent: 1, InFlight: 1}},
		{"blind: wait no longer", ten, func(l *Ledger) {
			send(l, Accepted, 1)
			l.Ready(false, sec(2))
			l.Advance(sec(16).Add(DefaultHold))
		}, Counts{Sent: 1, Indeterminate: doubted(DoubtBlind, 1)}},
		{"a hold of one's own", Config{Expiry: ten.Expiry, Timeout: ten.Timeout, Hold: time.Minute}, func(l *Ledger) {
			send(l, Accepted, 1)
			l.Advance(sec(76))
		}, Counts{Sent: 1, Indeterminate: doubted(DoubtBlind, 1)}},
		{"late after doubt", ten, func(l *Ledger) {
			send(l, Accepted, 1)
			l.Ready(false, sec(2))
			l.Advance(sec(16).Add(DefaultHold))
			enqueued(l, 1, 90_000, 3)
		}, Counts{Sent: 1, Indeterminate: doubted(DoubtBlind, 1), Late: 1}},
		{"refused: no drop", ten, func(l *Ledger) {
			send(l, Refused, 1)
			l.CaughtUp(sec(30))
			l.Advance(sec(30))
		}, Counts{}},
		{"skipped: no drop", ten, func(l *Ledger) {
			l.Skip(0, 1, sec(6))
			l.CaughtUp(sec(30))
			l.Advance(sec(30))
		}, Counts{}},
		{"never answered: nothing is counted", ten, func(l *Ledger) {
			l.Expect(0, 1, sec(6))
			l.CaughtUp(sec(30))
			l.Advance(sec(30))
		}, Counts{}},
		{"refused, and yet it came", ten, func(l *Ledger) {
			send(l, Refused, 1)
			arrive(l, 1, 7)
			arrive(l, 1, 8)
		}, Counts{Unaccounted: 2}},
		{"unknown, and it came", ten, func(l *Ledger) {
			send(l, Unknown, 1)
			arrive(l, 1, 7)
		}, Counts{Sent: 1, OnTime: 1}},
		{"unknown, and it did not come", ten, func(l *Ledger) {
			send(l, Unknown, 1)
			l.CaughtUp(sec(16))
			l.Advance(sec(16))
		}, Counts{Sent: 1, Indeterminate: doubted(DoubtSend, 1)}},
		{"it came before the head answered", ten, func(l *Ledger) {
			l.Expect(0, 1, sec(6))
			arrive(l, 1, 7)
			l.Sent(0, 1, Refused)
		}, Counts{Sent: 1, OnTime: 1}},
		{"it came before the head answered, proven late", ten, func(l *Ledger) {
			l.Expect(0, 1, sec(6))
			l.CaughtUp(sec(17))
			arrive(l, 1, 18)
		}, Counts{Sent: 1, Dropped: dropped(1), Late: 1}},
		{"a gap while it was on its way", ten, func(l *Ledger) {
			send(l, Accepted, 1)
			l.Gap(sec(1.1))
			l.CaughtUp(sec(16))
			l.Advance(sec(16))
		}, Counts{Sent: 1, Indeterminate: doubted(DoubtGap, 1)}},
		{"a gap before it was sent", ten, func(l *Ledger) {
			l.Gap(sec(1))
			send(l, Accepted, 1)
			l.CaughtUp(sec(16))
			l.Advance(sec(16))
		}, Counts{Sent: 1, Dropped: dropped(1)}},
		{"of two gaps the later one counts", ten, func(l *Ledger) {
			send(l, Accepted, 1)
			l.Gap(sec(2))
			l.Gap(sec(0.5))
			l.CaughtUp(sec(16))
			l.Advance(sec(16))
		}, Counts{Sent: 1, Indeterminate: doubted(DoubtGap, 1)}},
		{"a proof that came first counts first: gap", ten, func(l *Ledger) {
			send(l, Accepted, 1)
			l.CaughtUp(sec(16))
			l.Gap(sec(17))
			l.Advance(sec(18))
		}, Counts{Sent: 1, Dropped: dropped(1)}},
		{"a gap, and it came all the same", ten, func(l *Ledger) {
			send(l, Accepted, 1)
			l.Gap(sec(2))
			arrive(l, 1, 7)
		}, Counts{Sent: 1, OnTime: 1}},
		{"a proof goes no step back", ten, func(l *Ledger) {
			send(l, Accepted, 1)
			l.CaughtUp(sec(16))
			l.CaughtUp(sec(3))
			l.Advance(sec(16))
		}, Counts{Sent: 1, Dropped: dropped(1)}},
		{"dead-lettered", ten, func(l *Ledger) {
			send(l, Accepted, 1)
			l.DeadLetter(0, 1, DeadRejected)
			l.DeadLetter(0, 1, DeadOther)
			l.CaughtUp(sec(30))
			l.Advance(sec(30))
		}, Counts{Sent: 1, Dropped: [dropReasons]uint64{DropDeadLettered: 1}}},
		{"expired", ten, func(l *Ledger) {
			send(l, Unknown, 1)
			l.DeadLetter(0, 1, DeadExpired)
			l.CaughtUp(sec(16))
			l.Advance(sec(16))
		}, Counts{Sent: 1, Dropped: [dropReasons]uint64{DropExpired: 1}}},
		{"dead-lettered, before its deadline", ten, func(l *Ledger) {
			send(l, Accepted, 1)
			l.DeadLetter(0, 1, DeadRejected)
			l.CaughtUp(sec(15))
			l.Advance(sec(15))
		}, Counts{Sent: 1, InFlight: 1}},
		{"dead-lettered, and put back in time", ten, func(l *Ledger) {
			send(l, Accepted, 1)
			l.DeadLetter(0, 1, DeadRejected)
			arrive(l, 1, 8)
			l.CaughtUp(sec(30))
		}, Counts{Sent: 1, OnTime: 1}},
		{"dead-lettered, and put back too late", ten, func(l *Ledger) {
			send(l, Accepted, 1)
			l.DeadLetter(0, 1, DeadRejected)
			l.CaughtUp(sec(17))
			arrive(l, 1, 18)
		}, Counts{Sent: 1, Dropped: [dropReasons]uint64{DropDeadLettered: 1}, Late: 1}},
		{"dead-lettered, and entered the queue too late", ten, func(l *Ledger) {
			send(l, Accepted, 1)
			l.DeadLetter(0, 1, DeadRejected)
			l.Arrive(Arrival{Seq: 1, At: sec(18), Enqueued: sec(17), HasEnqueued: true})
		}, Counts{Sent: 1, Dropped: [dropReasons]uint64{DropDeadLettered: 1}, Late: 1}},
		{"dead-lettered, and the sink is blind", ten, func(l *Ledger) {
			send(l, Accepted, 1)
			l.DeadLetter(0, 1, DeadRejected)
			l.Ready(false, sec(10))
			l.Advance(sec(3600))
		}, Counts{Sent: 1, InFlight: 1}},
		{"dead-lettered, with a gap", ten, func(l *Ledger) {
			send(l, Accepted, 1)
			l.DeadLetter(0, 1, DeadRejected)
			l.Gap(sec(9))
			l.CaughtUp(sec(16))
			l.Advance(sec(16))
		}, Counts{Sent: 1, Dropped: [dropReasons]uint64{DropDeadLettered: 1}}},
		{"a dead letter of one that came, was refused or does not exist", ten, func(l *Ledger) {
			send(l, Accepted, 1)
			arrive(l, 1, 7)
			l.DeadLetter(0, 1, DeadOther)
			l.DeadLetter(0, 2, DeadOther)
			l.DeadLetter(7, 1, DeadOther)
		}, Counts{Sent: 1, OnTime: 1}},
		{"time to live over while blind", withTTL, func(l *Ledger) {
			send(l, Accepted, 1)
			l.Ready(false, sec(12))
			l.Ready(true, sec(40))
			l.CaughtUp(sec(41))
		}, Counts{Sent: 1, Indeterminate: doubted(DoubtBlind, 1)}},
		{"time to live over while catching up", withTTL, func(l *Ledger) {
			send(l, Accepted, 1)
			l.Ready(false, sec(12))
			l.Ready(true, sec(20))
			l.CaughtUp(sec(22))
		}, Counts{Sent: 1, Indeterminate: doubted(DoubtBlind, 1)}},
		{"time to live over after it had caught up", withTTL, func(l *Ledger) {
			send(l, Accepted, 1)
			l.Ready(false, sec(12))
			l.Ready(true, sec(19))
			l.CaughtUp(sec(20))
		}, Counts{Sent: 1, Dropped: dropped(1)}},
		{"time to live over before it was blind", shortTTL, func(l *Ledger) {
			send(l, Accepted, 1)
			l.CaughtUp(sec(10))
			l.Ready(false, sec(22))
			l.Ready(true, sec(40))
			l.CaughtUp(sec(41))
		}, Counts{Sent: 1, Dropped: dropped(1)}},
		{"time to live over while it hung", withTTL, func(l *Ledger) {
			send(l, Accepted, 1)
			l.Ready(false, sec(35)) // the watchdog lost patience
			l.Ready(true, sec(40))
			l.CaughtUp(sec(41))
		}, Counts{Sent: 1, Indeterminate: doubted(DoubtBlind, 1)}},
		{"proven before it was blind, at the end of the time to live", withTTL, func(l *Ledger) {
			send(l, Accepted, 1)
			l.CaughtUp(sec(16))
			l.Ready(false, sec(17))
			l.Advance(sec(30))
		}, Counts{Sent: 1, Dropped: dropped(1)}},
		{"an older proof is judged by itself", withTTL, func(l *Ledger) {
			send(l, Accepted, 1)
			l.Ready(false, sec(14))
			l.CaughtUp(sec(17)) // it was still on its way to us
			l.Ready(true, sec(30))
			l.CaughtUp(sec(31))
		}, Counts{Sent: 1, Dropped: dropped(1)}},
		{"a broker that keeps it does not care", ten, func(l *Ledger) {
			send(l, Accepted, 1)
			l.Ready(false, sec(12))
			l.Ready(true, sec(40))
			l.CaughtUp(sec(41))
		}, Counts{Sent: 1, Dropped: dropped(1)}},
		{"a short time to live, over in a blind time that has ended", shortTTL, func(l *Ledger) {
			send(l, Accepted, 1)
			l.Ready(false, sec(8))
			l.Ready(true, sec(10))
			l.CaughtUp(sec(11))
			l.CaughtUp(sec(17))
			l.Advance(sec(17))
		}, Counts{Sent: 1, Indeterminate: doubted(DoubtBlind, 1)}},
		{"a short time to live, over in the blind time before this one", shortTTL, func(l *Ledger) {
			send(l, Accepted, 1)
			l.Ready(false, sec(8))
			l.Ready(true, sec(10))
			l.CaughtUp(sec(11))
			l.Ready(false, sec(13))
			l.Ready(true, sec(20))
			l.CaughtUp(sec(21))
		}, Counts{Sent: 1, Indeterminate: doubted(DoubtBlind, 1)}},
		{"a short time to live, over between two blind times far apart", shortTTL, func(l *Ledger) {
			l.Ready(false, sec(-30))
			l.Ready(true, sec(-29))
			l.CaughtUp(sec(2))
			send(l, Accepted, 1)
			l.CaughtUp(sec(11))
			l.Ready(false, sec(12))
			l.Ready(true, sec(20))
			l.CaughtUp(sec(21))
		}, Counts{Sent: 1, Dropped: dropped(1)}},
		{"a redelivery and a duplicate", ten, func(l *Ledger) {
			send(l, Accepted, 1)
			for _, id := range []uint64{7, 7, 8, 0, 7 << 33} {
				l.Arrive(Arrival{Seq: 1, At: sec(7), ID: id})
			}
		}, Counts{Sent: 1, OnTime: 1, Redeliveries: 1, Duplicates: 3}},
		{"ids that differ in their upper half only", ten, func(l *Ledger) {
			send(l, Accepted, 1)
			l.Arrive(Arrival{Seq: 1, At: sec(7), ID: 7})
			l.Arrive(Arrival{Seq: 1, At: sec(7), ID: 1<<32 | 7})
		}, Counts{Sent: 1, OnTime: 1, Duplicates: 1}},
		{"an id that folds to nothing is an id", ten, func(l *Ledger) {
			send(l, Accepted, 1)
			l.Arrive(Arrival{Seq: 1, At: sec(7), ID: 1<<32 | 1})
			l.Arrive(Arrival{Seq: 1, At: sec(7), ID: 1<<32 | 1})
		}, Counts{Sent: 1, OnTime: 1, Redeliveries: 1}},
		{"a redelivery of a late one", ten, func(l *Ledger) {
			send(l, Accepted, 1)
			l.CaughtUp(sec(17))
			l.Arrive(Arrival{Seq: 1, At: sec(20), ID: 7})
			l.Arrive(Arrival{Seq: 1, At: sec(21), ID: 7})
			l.Arrive(Arrival{Seq: 1, At: sec(21), ID: 8})
		}, Counts{Sent: 1, Dropped: dropped(1), Late: 1, Redeliveries: 1, Duplicates: 1}},
		{"reordered", ten, func(l *Ledger) {
			send(l, Accepted, 1, 2, 3)
			arrive(l, 1, 7)
			arrive(l, 3, 8)
			arrive(l, 2, 9)
			arrive(l, 2, 9)
		}, Counts{Sent: 3, OnTime: 3, Reordered: 1, Duplicates: 1}},
		{"lanes are no order among each other", ten, func(l *Ledger) {
			l.Expect(1, 5, sec(6))
			l.Expect(2, 5, sec(6))
			l.Expect(2, 4, sec(6)) // not above all before: ignored
			l.Arrive(Arrival{Lane: 2, Seq: 5, At: sec(7)})
			l.Arrive(Arrival{Lane: 1, Seq: 5, At: sec(7)})
		}, Counts{Sent: 2, OnTime: 2}},
		{"of a lane that nobody knows", ten, func(l *Ledger) { arrive(l, 1, 7) }, Counts{Unaccounted: 1}},
		{"older than the lane", ten, func(l *Ledger) {
			l.Expect(0, 100, sec(6))
			arrive(l, 99, 7)
		}, Counts{Unaccounted: 1}},
		{"of a sequence that does not exist yet", ten, func(l *Ledger) {
			send(l, Accepted, 1)
			arrive(l, 2, 7)
			arrive(l, math.MaxUint64, 7)
		}, Counts{Sent: 1, InFlight: 1}},
		{"sequences that cannot be", ten, func(l *Ledger) {
			for _, seq := range []uint64{0, math.MaxUint64} {
				l.Expect(0, seq, sec(6))
				l.Infer(0, seq, sec(6), time.Second, 0)
				l.Sent(0, seq, Accepted)
			}
			send(l, Accepted, 1)
		}, Counts{Sent: 1, InFlight: 1}},
		{"a result that comes twice, or for nothing", ten, func(l *Ledger) {
			send(l, Accepted, 1)
			l.Sent(0, 1, Accepted)
			l.Sent(0, 2, Accepted)
			l.Sent(7, 1, Accepted)
		}, Counts{Sent: 1, InFlight: 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := reading(c.cfg)
			c.play(l)
			if got := l.Counts(); got != c.want {
				t.Errorf("%+v\nwant %+v", got, c.want)
			}
			if err := sums(l.Counts()); err != nil {
				t.Error(err)
			}
		})
	}
}

// What is sent before the sink has read for the first time is in nobody's account but in doubt.
func TestBeforeTheFirstReading(t *testing.T) {
	l := New(ten)
	send(l, Accepted, 1, 30)
	l.Advance(sec(1000))
	if got, want := l.Counts(), (Counts{Sent: 2, InFlight: 2}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	l.Ready(true, sec(20))
	l.CaughtUp(sec(50))
	if got, want := l.Counts(), (Counts{Sent: 2, Indeterminate: doubted(DoubtGap, 1), Dropped: dropped(1)}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	l = New(ten)
	send(l, Accepted, 1)
	arrive(l, 1, 20)
	if got, want := l.Counts(), (Counts{Sent: 1, Indeterminate: doubted(DoubtBlind, 1), Late: 1}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

// A proof that is known when the sink begins to read again ends the blind time too.
func TestProofBeforeReady(t *testing.T) {
	l := reading(ten)
	l.Ready(false, sec(1))
	l.CaughtUp(sec(5))
	l.Ready(true, sec(4))
	send(l, Accepted, 1)
	arrive(l, 1, 17)
	if got, want := l.Counts(), (Counts{Sent: 1, Indeterminate: doubted(DoubtResolution, 1), Late: 1}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

// The deadline itself is on time, be it that the heartbeat arrives or enters the queue then.
func TestAtTheDeadline(t *testing.T) {
	const timeout = 10 * time.Second
	for _, c := range []struct {
		name             string
		arrived, entered Instant // relative to the deadline
		want             Verdict
	}{
		{"arrives at the deadline", 0, -1, OnTime},
		{"arrives a nanosecond later", 1, 1, Late},
		{"entered at the deadline", 5, 0, OnTime},
		{"entered a nanosecond later", 5, 1, Late},
	} {
		l := reading(Config{Timeout: timeout})
		l.Expect(0, 1, sec(6))
		l.Sent(0, 1, Accepted)
		deadline := sec(6).Add(timeout)
		if got := l.Arrive(Arrival{Seq: 1, At: deadline + c.arrived, Enqueued: deadline + c.entered, HasEnqueued: true}); got.Verdict != c.want {
			t.Errorf("%s: %+v", c.name, got)
		}
	}
}

func TestOutcomeOfArrival(t *testing.T) {
	l := reading(ten)
	send(l, Accepted, 1, 2)
	l.Expect(0, 3, sec(8))
	l.Skip(0, 4, sec(9))
	due := func(a Arrival, s float64) Arrival { a.Due = sec(s); return a }
	for _, c := range []struct {
		name string
		a    Arrival
		want Outcome
	}{
		{"first", due(Arrival{Seq: 2, At: sec(9)}, 99), Outcome{OnTime, sec(7), 2 * time.Second, true, true, false}},
		{"older", Arrival{Seq: 1, At: sec(9)}, Outcome{OnTime, sec(6), 3 * time.Second, true, false, false}},
		{"again", Arrival{Seq: 1, At: sec(10)}, Outcome{Duplicate, sec(6), 4 * time.Second, false, false, false}},
		{"before the head answered", Arrival{Seq: 3, At: sec(9)}, Outcome{OnTime, sec(8), time.Second, true, true, true}},
		{"never sent, and yet the youngest", Arrival{Seq: 4, At: sec(10)}, Outcome{Unaccounted, sec(9), time.Second, false, true, false}},
		{"of the future", due(Arrival{Seq: 5, At: sec(10)}, 8), Outcome{NeverSent, sec(8), 2 * time.Second, false, false, false}},
		{"of another lane", due(Arrival{Lane: 1, Seq: 5, At: sec(10)}, 8), Outcome{Unaccounted, sec(8), 2 * time.Second, false, false, false}},
	} {
		if got := l.Arrive(c.a); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
}

func lagOf(t *testing.T, l *Ledger, at float64) float64 {
	t.Helper()
	lanes := l.Lanes(nil, sec(at))
	if len(lanes) != 1 {
		t.Fatalf("%d lanes", len(lanes))
	}
	return lanes[0].Lag.Seconds()
}

func TestLag(t *testing.T) {
	type point struct{ at, lag float64 }
	tick := func(seq uint64, at float64) func(*Ledger) {
		return func(l *Ledger) { l.Expect(0, seq, sec(at).Add(l.cfg.Expiry)); l.Sent(0, seq, Accepted) }
	}
	in := func(seq uint64, at float64) func(*Ledger) { return func(l *Ledger) { arrive(l, seq, at) } }
	for _, c := range []struct {
		name  string
		steps []any
	}{
		{"before anything has come it counts from the first tick's due time", []any{
			tick(1, 0), point{0, 0}, point{5, 0}, point{6, 1}, tick(2, 10), point{25, 20}}},
		{"no sawtooth: between two heartbeats it stays what it is", []any{
			tick(1, 0), in(1, 7), point{7, 2}, point{9, 2}, tick(2, 10), point{10, 2}, point{15, 2}, point{17, 2}, in(2, 17), point{17, 2}}},
		{"it grows in silence, from the first tick that is missing", []any{
			tick(1, 0), in(1, 5), tick(2, 10), tick(3, 20), point{15, 0}, point{40, 25}, tick(4, 30), point{100, 85}}},
		{"ticks that were skipped count", []any{
			tick(1, 0), in(1, 5), func(l *Ledger) { l.Skip(0, 2, sec(15)) }, point{40, 25}, tick(3, 20), point{40, 25}, in(3, 40), point{40, 15}}},
		{"ticks that were refused count", []any{
			tick(1, 0), in(1, 5), func(l *Ledger) { l.Expect(0, 2, sec(15)); l.Sent(0, 2, Refused) }, point{40, 25}}},
		{"ticks that were jumped over count", []any{
			tick(1, 0), in(1, 5), tick(9, 80), point{100, 15}, in(9, 100), point{200, 15}}},
		{"out of order: the older one changes nothing", []any{
			tick(1, 0), tick(2, 10), tick(3, 20), in(3, 26), point{26, 1}, in(1, 27), point{28, 1}}},
		{"out of order: the next one is waited for", []any{
			tick(1, 0), tick(2, 10), tick(3, 20), in(2, 16), point{16, 1}, point{30, 5}, in(1, 31), point{31, 6}}},
		{"before it was due", []any{tick(1, 0), in(1, 4), point{4, -1}, tick(2, 10), point{10, -1}}},
		{"what is lost does not hold it up once the next one comes", []any{
			tick(1, 0), tick(2, 10), in(2, 15), point{60, 0}, tick(3, 20), point{60, 35}}},
		{"a lane that has gone", []any{
			tick(1, 0), in(1, 6), tick(2, 10), func(l *Ledger) { l.Retire(0) }, point{100, 1}, in(2, 101), point{200, 86},
			tick(3, 195), point{230, 86}, point{300, 100}}},
		{"a lane that has gone, with two in flight", []any{
			tick(1, 0), in(1, 6), tick(2, 10), tick(3, 20), func(l *Ledger) { l.Retire(0) }, in(2, 101), point{900, 86}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := reading(ten)
			for i, s := range c.steps {
				switch s := s.(type) {
				case func(*Ledger):
					s(l)
				case point:
					if got := lagOf(t, l, s.at); math.Abs(got-s.lag) > 1e-6 {
						t.Errorf("step %d: lag at %v is %v, want %v", i, s.at, got, s.lag)
					}
				}
			}
		})
	}
}

func TestRetire(t *testing.T) {
	l := reading(ten)
	send(l, Accepted, 1)
	l.Retire(0)
	l.Retire(7)
	l.Advance(sec(2))
	switch lanes := l.Lanes(nil, sec(14)); {
	case len(lanes) != 1:
		t.Errorf("%d lanes while a heartbeat is in flight", len(lanes))
	case lanes[0].Lag != 0:
		t.Errorf("the lag of a lane that has gone is %s", lanes[0].Lag)
	}
	l.CaughtUp(sec(16))
	l.Advance(sec(16))
	if n := len(l.Lanes(nil, 0)); n != 0 {
		t.Errorf("%d lanes when nothing is", n)
	}
	if got, want := l.Counts(), (Counts{Sent: 1, Dropped: dropped(1)}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	l.Expect(0, 2, sec(20))
	l.Advance(sec(20))
	if n := len(l.Lanes(nil, 0)); n != 1 {
		t.Error("a tick did not bring the lane back")
	}
	l.Sent(0, 2, Accepted)
	l.Retire(0)
	l.Expect(0, 3, sec(21))
	l.Sent(0, 3, Accepted)
	l.Arrive(Arrival{Seq: 2, At: sec(21)})
	l.Arrive(Arrival{Seq: 3, At: sec(21)})
	l.Advance(sec(21))
	if n := len(l.Lanes(nil, 0)); n != 1 {
		t.Error("a lane that came back was forgotten")
	}
}

func TestLanesAreSorted(t *testing.T) {
	l := reading(ten)
	for _, lane := range []uint32{5, 1, 9, 0, 3} {
		l.Expect(lane, 1, 0)
	}
	got := l.Lanes([]LaneState{{Lane: 100}}, 0)
	if !slices.IsSortedFunc(got[1:], func(a, b LaneState) int { return int(a.Lane) - int(b.Lane) }) || len(got) != 6 || got[0].Lane != 100 {
		t.Errorf("%+v", got)
	}
}

func TestRecent(t *testing.T) {
	l := reading(ten)
	if got := l.Recent(nil, 0); got != nil {
		t.Errorf("%v of a lane that is not there", got)
	}
	send(l, Accepted, 1, 2, 3, 4)
	arrive(l, 1, 7)
	l.CaughtUp(sec(18))
	l.Advance(sec(18))
	arrive(l, 2, 19)
	l.Skip(0, 5, sec(20))
	l.Expect(0, 6, sec(20))
	l.Sent(0, 6, Unknown)
	l.Expect(0, 7, sec(20))
	if got, want := l.Recent(nil, 0), []Fate{Received, ReceivedLate, Dropped, Waiting, Unsent, WaitingMaybe, Injecting}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	for seq := uint64(8); seq <= 500; seq++ {
		l.Skip(0, seq, sec(21))
	}
	if got := l.Recent(nil, 0); len(got) != 64 {
		t.Errorf("%d fates", len(got))
	}
}

// A lane of any length of outage is accounted for, and no slot is taken for another's.
func TestRingGrowsAndShrinks(t *testing.T) {
	for _, outage := range []uint64{1, 63, 64, 65, 127, 128, 129, 1000, 5000} {
		l := reading(ten)
		at := func(seq uint64) float64 { return float64(seq) }
		seq := uint64(0)
		tick := func() {
			seq++
			l.Expect(0, seq, sec(at(seq)).Add(l.cfg.Expiry))
			l.Sent(0, seq, Accepted)
		}
		var want Counts
		for range 200 { // a healthy time
			tick()
			arrive(l, seq, at(seq)+5)
		}
		l.Ready(false, sec(at(seq)+6))
		first := seq + 1
		for range outage {
			tick()
		}
		want.Sent, want.OnTime = seq, 200
		ring := len(l.lanes[0].ring)
		if ring < int(min(outage, maxRing)) || ring > max(minRing, 2*int(outage)) {
			t.Errorf("outage of %d: ring of %d", outage, ring)
		}
		// Duplicates of those before the outage, which have or have not kept their slots.
		for s := first - min(100, first-1); s < first; s++ {
			if out := l.Arrive(Arrival{Seq: s, At: sec(at(seq)), Due: sec(at(s) + 5)}); out.Verdict != Duplicate || out.Due != sec(at(s)+5) {
				t.Fatalf("outage of %d: %d is %+v", outage, s, out)
			}
			want.Duplicates++
		}
		l.Ready(true, sec(at(seq)+1))
		end := at(seq) + 20
		for s := first; s <= seq; s++ {
			if s%10 == 0 {
				continue // lost
			}
			if out := enqueued(l, s, end, at(s)+6); out.Verdict != OnTime || out.Due != sec(at(s)+5) {
				t.Fatalf("outage of %d: %d is %+v", outage, s, out)
			}
			want.OnTime++
		}
		want.Dropped[DropTimeout] = seq - want.OnTime
		decided := at(seq) + 15
		tick() // one is always in flight
		want.Sent++
		want.InFlight++
		l.CaughtUp(sec(decided))
		l.Advance(sec(decided))
		if got := l.Counts(); got != want {
			t.Errorf("outage of %d: %+v, want %+v", outage, got, want)
		}
		if n := len(l.lanes[0].ring); n > 4*minRing {
			t.Errorf("outage of %d: ring of %d afterwards", outage, n)
		}
		for s := seq - min(seq-1, history-10); s < seq; s++ {
			v := Duplicate
			if s >= first && s%10 == 0 {
				v = Late
			}
			if out := l.Arrive(Arrival{Seq: s, At: sec(end + 1)}); out.Verdict != v {
				t.Fatalf("outage of %d: %d is %+v, want %v", outage, s, out, v)
			}
		}
	}
}

func TestHistory(t *testing.T) {
	l := reading(ten)
	send(l, Accepted, 1)
	arrive(l, 1, 7)
	l.Expect(0, 2, sec(8))
	l.Sent(0, 2, Accepted)
	l.CaughtUp(sec(30))
	l.Advance(sec(30))
	for seq := uint64(3); seq <= history+1; seq++ {
		l.Skip(0, seq, sec(40))
	}
	// 1 is too old by now, 2 is the oldest that is known, of 3 it is known that it was never sent.
	for seq, want := range []Verdict{1: Unaccounted, 2: Late, 3: Unaccounted} {
		if seq > 0 {
			if got := arrive(l, uint64(seq), 50).Verdict; got != want {
				t.Errorf("%d is %v, want %v", seq, got, want)
			}
		}
	}
	if got := arrive(l, 2, 51).Verdict; got != Duplicate {
		t.Errorf("the late one again is %v", got)
	}
	want := Counts{Sent: 2, OnTime: 1, Dropped: dropped(1), Late: 1, Unaccounted: 2, Duplicates: 1}
	if got := l.Counts(); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

// While a ring is longer than the history, a late arrival must not be written over a younger one.
func TestHistoryBesideALongRing(t *testing.T) {
	l := reading(ten)
	l.Ready(false, 0)
	const lost, waiting = 3 * history, history * 3 / 4
	for seq := uint64(1); seq <= lost+waiting; seq++ {
		due := sec(5)
		if seq > lost {
			due = sec(1000) // still waited for, so that the ring stays long
		}
		l.Expect(0, seq, due)
		l.Sent(0, seq, Accepted)
	}
	l.Ready(true, sec(20))
	l.CaughtUp(sec(30))
	const young = lost - 10
	if out := arrive(l, young-history, 40); out.Verdict != Late {
		t.Fatalf("%+v", out)
	}
	l.CaughtUp(sec(2000)) // and now the ring shrinks
	l.Advance(sec(2000))
	if n := len(l.lanes[0].ring); n > 4*minRing {
		t.Fatalf("ring of %d", n)
	}
	if out := arrive(l, young, 2001); out.Verdict != Late {
		t.Errorf("one that comes for the first time is %+v", out)
	}
}

func TestOverflow(t *testing.T) {
	l := reading(ten)
	l.Ready(false, 0)
	const extra = 100
	for seq := uint64(1); seq <= maxRing+extra; seq++ {
		l.Expect(0, seq, sec(5).Add(time.Duration(seq)))
		l.Sent(0, seq, Accepted)
		if seq%1000 == 0 {
			if err := sums(l.Counts()); err != nil {
				t.Fatal(err)
			}
		}
	}
	want := Counts{Sent: maxRing + extra, InFlight: maxRing, Indeterminate: doubted(DoubtOverflow, extra)}
	if got := l.Counts(); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if n := len(l.lanes[0].ring); n != maxRing {
		t.Errorf("ring of %d", n)
	}
	if lag := lagOf(t, l, 1000); lag < 994.9 {
		t.Errorf("lag is %v", lag)
	}
	if out := arrive(l, extra+1, 6); out.Verdict != OnTime {
		t.Errorf("%+v", out)
	}
}

func TestJump(t *testing.T) {
	for _, jump := range []uint64{2, 64, 1000, maxRing, maxRing + 1, maxRing + 2, 1 << 40} {
		l := reading(ten)
		send(l, Accepted, 1, 2)
		l.Expect(0, 3, sec(8))
		arrive(l, 1, 7)
		seq := 3 + jump
		l.Expect(0, seq, sec(9))
		l.Sent(0, seq, Accepted)
		want := Counts{Sent: 3, OnTime: 1, InFlight: 2}
		if jump > maxRing+1 {
			want = Counts{Sent: 3, OnTime: 1, InFlight: 1, Indeterminate: doubted(DoubtOverflow, 1)}
		}
		got := l.Counts()
		if jump >= maxRing-2 && jump <= maxRing+1 {
			want = got // somewhere between: what is kept depends on the room
			if err := sums(got); err != nil {
				t.Errorf("jump of %d: %v", jump, err)
			}
		}
		if got != want {
			t.Errorf("jump of %d: %+v, want %+v", jump, got, want)
		}
		if lag := lagOf(t, l, 100); lag != 93 {
			t.Errorf("jump of %d: lag %v", jump, lag)
		}
		if out := arrive(l, seq, 10); out.Verdict != OnTime || !out.Newest {
			t.Errorf("jump of %d: %+v", jump, out)
		}
		if n := len(l.lanes[0].ring); jump > maxRing+1 && n > 4*minRing {
			t.Errorf("jump of %d: ring of %d", jump, n)
		}
	}
}

func TestInfer(t *testing.T) {
	const every = 10 * time.Second
	due := func(seq uint64) Instant { return Instant(seq) * Instant(every) }
	hear := func(l *Ledger, lane uint32, seq uint64, bitmap uint64) Outcome {
		l.Infer(lane, seq, due(seq), every, bitmap)
		return l.Arrive(Arrival{Lane: lane, Seq: seq, At: due(seq).Add(time.Second), Due: due(seq)})
	}
	for _, c := range []struct {
		name string
		play func(l *Ledger)
		want Counts
	}{
		{"the first one that is heard", func(l *Ledger) { hear(l, 0, 500, 0) }, Counts{Sent: 1, OnTime: 1}},
		{"one after the other", func(l *Ledger) {
			for seq := uint64(1); seq <= 10; seq++ {
				hear(l, 0, seq, math.MaxUint64)
			}
		}, Counts{Sent: 10, OnTime: 10}},
		{"lost, skipped and lost", func(l *Ledger) {
			hear(l, 0, 500, 0)
			hear(l, 0, 504, 0b1101)
			l.CaughtUp(due(506))
			l.Advance(due(506))
		}, Counts{Sent: 4, OnTime: 2, Dropped: dropped(2)}},
		{"the missing one comes after all", func(l *Ledger) {
			hear(l, 0, 500, 0)
			hear(l, 0, 502, math.MaxUint64)
			l.Infer(0, 501, due(501), every, math.MaxUint64)
			l.Arrive(Arrival{Seq: 501, At: due(502), Due: due(501)})
		}, Counts{Sent: 3, OnTime: 3, Reordered: 1}},
		{"of more than 64 the older ones stay in doubt", func(l *Ledger) {
			hear(l, 0, 500, 0)
			hear(l, 0, 571, math.MaxUint64)
			l.CaughtUp(due(600))
			l.Advance(due(600))
		}, Counts{Sent: 72, OnTime: 2, Dropped: dropped(64), Indeterminate: doubted(DoubtSend, 6)}},
		{"of more than 65,536 none is missed", func(l *Ledger) {
			hear(l, 0, 500, 0)
			hear(l, 0, 500+maxRing+2, math.MaxUint64)
		}, Counts{Sent: 2, OnTime: 2}},
		{"the same one again", func(l *Ledger) {
			hear(l, 0, 500, 0)
			hear(l, 0, 500, 0)
		}, Counts{Sent: 1, OnTime: 1, Duplicates: 1}},
		{"shortly before the first one that was heard", func(l *Ledger) {
			hear(l, 0, 500, 0)
			hear(l, 0, 499, 0)
		}, Counts{Sent: 2, OnTime: 2, Reordered: 1}},
		{"long before the first one that was heard", func(l *Ledger) {
			hear(l, 0, 500, 0)
			hear(l, 0, 435, 0)
		}, Counts{Sent: 1, OnTime: 1, Unaccounted: 1}},
		{"the first one was lost, so the second is heard first", func(l *Ledger) {
			hear(l, 0, 3, 0b10)
			l.CaughtUp(due(10))
			l.Advance(due(10))
		}, Counts{Sent: 2, OnTime: 1, Dropped: dropped(1)}},
		{"what may have been sent before the account began is in no account", func(l *Ledger) {
			l.Gap(due(497)) // 497 as well, if its tick came half an interval sooner
			hear(l, 0, 500, math.MaxUint64)
			l.CaughtUp(due(510))
			l.Advance(due(510))
		}, Counts{Sent: 3, OnTime: 1, Dropped: dropped(2)}},
		{"no bit, and it comes all the same", func(l *Ledger) {
			hear(l, 0, 500, 0)
			hear(l, 0, 502, 0)
			hear(l, 0, 501, 0)
			hear(l, 0, 501, 0)
		}, Counts{Sent: 3, OnTime: 3, Reordered: 1, Duplicates: 1}},
		{"no bit, and it comes after its deadline", func(l *Ledger) {
			hear(l, 0, 500, 0)
			hear(l, 0, 505, 0)
			l.CaughtUp(due(505))
			l.Arrive(Arrival{Seq: 501, At: due(506), Due: due(501)})
		}, Counts{Sent: 3, OnTime: 2, Dropped: dropped(1), Late: 1, Reordered: 1}},
		{"it comes, but what it says cannot be true", func(l *Ledger) {
			hear(l, 0, 500, 0)
			l.Infer(0, 502, due(501), every, math.MaxUint64)
			l.Disbelieve(0, 502)
			hear(l, 0, 503, math.MaxUint64)
			l.CaughtUp(due(600))
			l.Advance(due(600))
		}, Counts{Sent: 4, OnTime: 2, Dropped: dropped(1), Indeterminate: doubted(DoubtFuture, 1)}},
		{"a lane that was forgotten comes back", func(l *Ledger) {
			hear(l, 0, 500, 0)
			l.Retire(0)
			l.Advance(due(501))
			hear(l, 0, 499, math.MaxUint64)
			hear(l, 0, 502, math.MaxUint64)
			l.CaughtUp(due(600))
			l.Advance(due(600))
		}, Counts{Sent: 3, OnTime: 2, Dropped: dropped(1), Unaccounted: 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := reading(Config{Timeout: 10 * time.Second})
			c.play(l)
			if got := l.Counts(); got != c.want {
				t.Errorf("%+v\nwant %+v", got, c.want)
			}
		})
	}
	// What clocks that are apart cannot tell after a gap is not held against the pipeline.
	for skew, want := range map[time.Duration]Counts{
		every:     {Sent: 4, OnTime: 2, Dropped: dropped(1), Indeterminate: doubted(DoubtGap, 1)},
		every / 2: {Sent: 4, OnTime: 2, Dropped: dropped(2)},
	} {
		l := reading(Config{Timeout: 10 * time.Second, Skew: skew})
		hear(l, 0, 500, 0)
		l.Gap(due(500) + 2)
		hear(l, 0, 503, math.MaxUint64)
		l.CaughtUp(due(600))
		l.Advance(due(600))
		if got := l.Counts(); got != want {
			t.Errorf("skew %v: %+v\nwant %+v", skew, got, want)
		}
	}
	// The due times in between follow from the interval, and the lag grows though no tick is registered.
	l := reading(Config{Timeout: 10 * time.Second})
	hear(l, 0, 500, 0)
	hear(l, 0, 504, math.MaxUint64)
	if got := l.Arrive(Arrival{Seq: 502, At: due(505)}); got.Due != due(502) {
		t.Errorf("due %v, want %v", time.Duration(got.Due), time.Duration(due(502)))
	}
	for at, want := range map[Instant]time.Duration{due(504) + 5: time.Second, due(505): time.Second, due(507): 20 * time.Second, due(604): 990 * time.Second} {
		if got := l.Lanes(nil, at)[0].Lag; got != want {
			t.Errorf("lag at %v is %v, want %v", time.Duration(at), got, want)
		}
	}
	l.Infer(0, 508, due(508), every, math.MaxUint64)
	l.Retire(0)
	l.Arrive(Arrival{Seq: 506, At: due(508)})
	if got := l.Lanes(nil, due(900))[0].Lag; got != 2*every {
		t.Errorf("lag of a lane that has gone is %v", got)
	}
}

// An account that is made of another one knows what the sink has proven, and nothing of its heartbeats.
func TestFork(t *testing.T) {
	base := reading(Config{Timeout: 10 * time.Second})
	send(base, Accepted, 1)
	base.Gap(sec(2))
	f := base.Fork(Config{Timeout: 20 * time.Second})
	if got := f.Counts(); got != (Counts{}) || len(f.Lanes(nil, 0)) != 0 {
		t.Errorf("%+v", got)
	}
	send(f, Accepted, 1.5, 3)
	f.CaughtUp(sec(22))
	f.Advance(sec(22))
	if got, want := f.Counts(), (Counts{Sent: 2, Indeterminate: doubted(DoubtGap, 1), InFlight: 1}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if got, want := base.Counts(), (Counts{Sent: 1, InFlight: 1}); got != want {
		t.Errorf("the first: %+v, want %+v", got, want)
	}
}

// An objective of 2 s: one heartbeat is sent at 1, due at 6, good until 8, its deadline is 16.
func TestObjective(t *testing.T) {
	cfg := ten
	cfg.SLO = 2 * time.Second
	for _, c := range []struct {
		name           string
		play           func(l *Ledger)
		within, beyond uint64
	}{
		{"in time", func(l *Ledger) { arrive(l, 1, 8) }, 1, 0},
		{"later, seen by a sink that had read everything", func(l *Ledger) { l.CaughtUp(sec(8)); arrive(l, 1, 9) }, 0, 1},
		{"later, and the sink may have been slow", func(l *Ledger) { l.CaughtUp(sec(7.9)); arrive(l, 1, 9) }, 0, 0},
		{"later, after the sink was blind", func(l *Ledger) {
			l.CaughtUp(sec(3))
			l.Ready(false, sec(4))
			l.Ready(true, sec(9))
			arrive(l, 1, 10)
			l.CaughtUp(sec(20))
		}, 0, 0},
		{"entered the queue in time, seen later", func(l *Ledger) { enqueued(l, 1, 15, 8) }, 1, 0},
		{"entered the queue later", func(l *Ledger) { enqueued(l, 1, 9, 8.1) }, 0, 1},
		{"lost", func(l *Ledger) { l.CaughtUp(sec(16)); l.Advance(sec(16)) }, 0, 1},
		{"lost, and late after all", func(l *Ledger) { l.CaughtUp(sec(16)); arrive(l, 1, 17) }, 0, 1},
		{"dead-lettered", func(l *Ledger) { l.DeadLetter(0, 1, DeadRejected); l.CaughtUp(sec(16)); l.Advance(sec(16)) }, 0, 1},
		{"in doubt", func(l *Ledger) { l.Gap(sec(2)); l.CaughtUp(sec(16)); l.Advance(sec(16)) }, 0, 0},
		{"twice", func(l *Ledger) { arrive(l, 1, 7); arrive(l, 1, 9) }, 1, 0},
		{"a new objective", func(l *Ledger) { l.SetSLO(time.Second); l.CaughtUp(sec(7.5)); arrive(l, 1, 8) }, 0, 1},
		{"no objective any more", func(l *Ledger) { l.SetSLO(0); l.CaughtUp(sec(16)); l.Advance(sec(16)) }, 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := reading(cfg)
			send(l, Accepted, 1)
			c.play(l)
			if got := l.Counts(); got.WithinSLO != c.within || got.BeyondSLO != c.beyond {
				t.Errorf("%d within, %d beyond; want %d, %d", got.WithinSLO, got.BeyondSLO, c.within, c.beyond)
			}
		})
	}
}

func TestPlus(t *testing.T) {
	a := Counts{1, 2, [dropReasons]uint64{3, 4, 5}, [doubts]uint64{6, 7, 8, 9, 10}, 11, 12, 13, 14, 15, 16, 17, 18, 19}
	want := Counts{2, 4, [dropReasons]uint64{6, 8, 10}, [doubts]uint64{12, 14, 16, 18, 20}, 22, 24, 26, 28, 30, 32, 34, 36, 38}
	if got := a.Plus(a); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if a.Drops() != 12 || a.InDoubt() != 40 {
		t.Errorf("%d dropped, %d in doubt", a.Drops(), a.InDoubt())
	}
}

func TestLabels(t *testing.T) {
	if got := fmt.Sprint(DropReasons()); got != "[timeout dead_lettered expired]" || len(DropReasons()) != int(dropReasons) {
		t.Error(got)
	}
	if got := fmt.Sprint(Doubts()); got != "[send_unknown sink_blind sink_gap resolution future overflow]" || len(Doubts()) != int(doubts) {
		t.Error(got)
	}
}

// The bounds that lane.go names, by the compiler's word and by the collector's.
func TestMemory(t *testing.T) {
	if n := unsafe.Sizeof(slot{}); n != 16 {
		t.Errorf("a slot has %d bytes", n)
	}
	if n := unsafe.Sizeof(record{}); n != 8 {
		t.Errorf("a record has %d bytes", n)
	}
	heap := func() int {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int(m.HeapAlloc)
	}
	const lanes = 2000
	before := heap()
	l := reading(ten)
	seq := uint64(0)
	tick := func(blind bool) {
		seq++
		for lane := range uint32(lanes) {
			l.Expect(lane, seq, sec(float64(seq)))
			l.Sent(lane, seq, Accepted)
			if !blind {
				l.Arrive(Arrival{Lane: lane, Seq: seq, At: sec(float64(seq))})
			}
		}
	}
	for range 100 {
		tick(false)
	}
	healthy := (heap() - before) / lanes
	if most := minRing*16 + minRecords*8 + history/4 + 512; healthy > most {
		t.Errorf("%d bytes for each healthy lane, more than %d", healthy, most)
	}
	l.Ready(false, sec(float64(seq)))
	for range 1000 {
		tick(true)
	}
	outage := (heap() - before) / lanes
	l.Ready(true, sec(float64(seq)))
	l.CaughtUp(sec(float64(seq + 10)))
	l.Advance(sec(float64(seq + 10)))
	after := (heap() - before) / lanes
	if after > healthy+256 {
		t.Errorf("%d bytes for each lane after an outage, %d before it", after, healthy)
	}
	if c := l.Counts(); c.Drops() != lanes*1000 {
		t.Errorf("%+v", c)
	}
	t.Logf("bytes for each lane: healthy %d, with 1,000 outstanding %d, afterwards %d", healthy, outage, after)
}

func TestAllocations(t *testing.T) {
	for name, inFlight := range map[string]uint64{"prompt": 0, "500 in flight": 500} {
		l := reading(ten)
		seq := uint64(0)
		step := func() {
			seq++
			now := Instant(seq) * Instant(time.Millisecond)
			l.Expect(0, seq, now)
			l.Sent(0, seq, Accepted)
			if seq > inFlight {
				l.Arrive(Arrival{Seq: seq - inFlight, At: now, ID: seq})
			}
			l.CaughtUp(now)
			l.Advance(now)
		}
		for range 5000 {
			step()
		}
		if n := testing.AllocsPerRun(5000, step); n != 0 {
			t.Errorf("%s: %v allocations for each heartbeat", name, n)
		}
		if c := l.Counts(); c.OnTime != seq-inFlight || c.InFlight != inFlight {
			t.Errorf("%s: %+v", name, c)
		}
	}
	l := reading(ten)
	seq := uint64(0)
	if n := testing.AllocsPerRun(1000, func() {
		seq++
		for lane := range uint32(4) {
			now := Instant(seq) * Instant(time.Second)
			l.Infer(lane, seq, now, time.Second, math.MaxUint64)
			l.Arrive(Arrival{Lane: lane, Seq: seq, At: now})
		}
	}); n >= 0.1 { // the lanes themselves, once
		t.Errorf("%v allocations for each heartbeat of another process", n)
	}
}

func Benchmark(b *testing.B) {
	for _, lanes := range []uint32{1, 1000} {
		b.Run(fmt.Sprintf("heartbeat, %d lanes", lanes), func(b *testing.B) {
			l := reading(ten)
			b.ReportAllocs()
			n := uint64(0)
			for b.Loop() {
				lane, seq := uint32(n)%lanes, n/uint64(lanes)+1
				now := Instant(seq) * Instant(time.Millisecond)
				l.Expect(lane, seq, now)
				l.Sent(lane, seq, Accepted)
				l.Arrive(Arrival{Lane: lane, Seq: seq, At: now, ID: n})
				l.CaughtUp(now)
				n++
			}
		})
	}
	b.Run("heartbeat of another process", func(b *testing.B) {
		l := reading(ten)
		b.ReportAllocs()
		seq := uint64(0)
		for b.Loop() {
			seq++
			now := Instant(seq) * Instant(time.Millisecond)
			l.Infer(0, seq, now, time.Millisecond, math.MaxUint64)
			l.Arrive(Arrival{Seq: seq, At: now})
		}
	})
	b.Run("advance and lags of 1,000 lanes", func(b *testing.B) {
		l := reading(ten)
		for lane := range uint32(1000) {
			l.Expect(lane, 1, 0)
			l.Sent(lane, 1, Accepted)
		}
		var states []LaneState
		b.ReportAllocs()
		for b.Loop() {
			l.Advance(1)
			states = l.Lanes(states[:0], 1)
		}
	})
}

// A head that answers after the sink has been blind twice: the first time is not forgotten.
func TestLateAnswerAfterTwoBlindTimes(t *testing.T) {
	l := New(Config{Timeout: time.Second, TTL: 4 * time.Second})
	l.Ready(true, 0)
	l.CaughtUp(0)
	l.Expect(0, 1, sec(1)) // may be discarded at 5
	l.Ready(false, sec(1))
	l.Ready(true, sec(7))
	l.CaughtUp(sec(7))
	l.Ready(false, sec(8))
	l.Ready(true, sec(9))
	l.CaughtUp(sec(9))
	l.Sent(0, 1, Accepted)
	l.Advance(sec(9))
	if c := l.Counts(); c.Drops() != 0 || c.Indeterminate[DoubtBlind] != 1 {
		t.Errorf("%+v", c)
	}
}

// Nor is it when there were more times of blindness than are kept: the oldest ones count as one.
func TestLateAnswerAfterManyBlindTimes(t *testing.T) {
	l := New(Config{Timeout: time.Second, TTL: 4 * time.Second})
	l.Ready(true, 0)
	l.CaughtUp(0)
	l.Expect(0, 1, sec(1)) // may be discarded at 5
	for i := range 3 * len(blindTimes{}.spans) {
		at := sec(1 + 10*float64(i))
		l.CaughtUp(at)
		l.Ready(false, at)
		l.Ready(true, at.Add(6*time.Second))
		l.CaughtUp(at.Add(6 * time.Second))
	}
	l.Sent(0, 1, Accepted)
	l.Advance(sec(1000))
	if c := l.Counts(); c.Drops() != 0 || c.Indeterminate[DoubtBlind] != 1 {
		t.Errorf("%+v", c)
	}
}

// What a proof decides does not depend on whether somebody looked before the heartbeat was found dead.
func TestDeadLetterComesAfterTheProof(t *testing.T) {
	for _, look := range []bool{true, false} {
		l := New(Config{Timeout: 10 * time.Second})
		l.Ready(true, 0)
		l.CaughtUp(0)
		send(l, Accepted, 1)
		l.CaughtUp(sec(15))
		if look {
			l.Advance(sec(15))
		}
		if l.DeadLetter(0, 1, DeadRejected) {
			t.Errorf("looked %v: dropped a second time", look)
		}
		if c := l.Counts(); c.Drops() != 1 || c.Dropped[DropDeadLettered] != 0 {
			t.Errorf("looked %v: %+v", look, c)
		}
	}
}

// What is told of single heartbeats is what the accounts say of them.
func TestTold(t *testing.T) {
	l := reading(ten)
	send(l, Accepted, 1, 2, 3, 4, 5, 6)
	l.Skip(0, 7, sec(12))
	l.Expect(0, 8, sec(13))
	arrive(l, 1, 7.5)
	arrive(l, 1, 8)
	l.Arrive(Arrival{Seq: 2, At: sec(9), Retries: 3})
	l.DeadLetter(0, 2, DeadMaxLen)
	l.DeadLetter(0, 3, DeadRejected)
	l.CaughtUp(sec(19))
	l.Advance(sec(19))
	arrive(l, 4, 30)
	l.Gap(sec(31))
	l.CaughtUp(sec(40))
	l.Advance(sec(40))
	arrive(l, 5, 41)
	for seq, want := range map[uint64]Record{
		1: {Fate: Received, Arrived: true, Latency: 1500 * time.Millisecond, Duplicates: 1},
		2: {Fate: Received, Arrived: true, Latency: 2 * time.Second, Death: DeadMaxLen, Retries: 3},
		3: {Fate: Dropped, Dropped: true, Drop: DropDeadLettered, Death: DeadRejected},
		4: {Fate: ReceivedLate, Arrived: true, Latency: 21 * time.Second, Dropped: true, Drop: DropTimeout},
		5: {Fate: ReceivedLate, Arrived: true, Latency: 31 * time.Second, Doubted: true, Doubt: DoubtGap},
		6: {Fate: Indeterminate, Doubted: true, Doubt: DoubtGap},
		7: {Fate: Unsent},
		8: {Fate: Injecting},
	} {
		if got, ok := l.Told(0, seq); !ok || got != want {
			t.Errorf("of heartbeat %d: %+v (%v), want %+v", seq, got, ok, want)
		}
	}
	for _, none := range [][2]uint64{{0, 0}, {0, 9}, {1, 1}} {
		if got, ok := l.Told(uint32(none[0]), none[1]); ok {
			t.Errorf("of a heartbeat that does not exist: %+v", got)
		}
	}
}

// One that comes when its slot is gone is told of all the same, and nothing is told of one that is older.
func TestToldOfTheLast(t *testing.T) {
	for _, keep := range []int{0, 200} {
		l := reading(Config{Timeout: 10 * time.Second, Keep: keep})
		last := max(minRecords, keep)
		for seq := uint64(1); seq <= 1000; seq++ {
			l.Expect(0, seq, sec(float64(seq)))
			l.Sent(0, seq, Accepted)
			l.CaughtUp(sec(float64(seq)))
		}
		at := 1000 - uint64(last) + 1
		l.Arrive(Arrival{Seq: at, At: sec(1000), Due: sec(float64(at))})
		if got, ok := l.Told(0, at); !ok || got.Fate != ReceivedLate || !got.Dropped || got.Latency != sec(1000).Sub(sec(float64(at))) {
			t.Errorf("keep %d: of the oldest: %+v (%v)", keep, got, ok)
		}
		if got, ok := l.Told(0, at-1); keep == 0 && ok {
			t.Errorf("keep %d: of one that is older: %+v", keep, got)
		}
		// After a jump nothing is told of what was before it.
		l.Expect(0, 1_000_000, sec(1_000_000))
		if got, ok := l.Told(0, 1_000_000-1); ok {
			t.Errorf("keep %d: of what was jumped over: %+v", keep, got)
		}
	}
}

// While nothing is sent on purpose the lag does not grow, and it begins with the first tick after that.
func TestPause(t *testing.T) {
	l := reading(ten)
	lag := func(at float64) time.Duration {
		d, _ := l.MaxLag(sec(at))
		return d
	}
	send(l, Accepted, 1, 2, 3) // due at 6, 7, 8
	arrive(l, 1, 6.5)
	if got := lag(20); got != 13*time.Second {
		t.Fatalf("before the pause: %s", got)
	}
	l.Pause()
	if got := lag(100); got != 500*time.Millisecond {
		t.Errorf("in the pause: %s", got)
	}
	arrive(l, 2, 30) // what was on its way still counts, and the third does not make the lag grow
	if got := lag(100); got != 23*time.Second {
		t.Errorf("in the pause, after an arrival: %s", got)
	}
	l.Expect(0, 4, sec(205))
	l.Sent(0, 4, Accepted)
	if got := lag(206); got != 23*time.Second {
		t.Errorf("after the pause: %s", got)
	}
	if got := lag(245); got != 40*time.Second {
		t.Errorf("after the pause, when nothing comes: %s", got)
	}
	arrive(l, 3, 246)
	if got := lag(246); got != 238*time.Second {
		t.Errorf("after a late arrival from before the pause: %s", got)
	}
	arrive(l, 4, 247)
	if got := lag(300); got != 42*time.Second {
		t.Errorf("at rest: %s", got)
	}
	l.CaughtUp(sec(300))
	if c := l.Counts(); c.Sent != 4 || c.InFlight != 0 {
		t.Errorf("%+v", c)
	}
}

// Between which stations heartbeats stay.
func TestStuck(t *testing.T) {
	cfg := Config{Timeout: 10 * time.Second}
	for _, c := range []struct {
		name  string
		do    func(a, b *Ledger)
		since float64 // 0: not stuck
	}{
		{"nothing is due yet", func(a, b *Ledger) { arrive(a, 1, 1) }, 0},
		{"passed the one, not the other", func(a, b *Ledger) { arrive(a, 1, 1); arrive(a, 2, 2); b.CaughtUp(sec(12)) }, 1},
		{"not passed the one either", func(a, b *Ledger) { b.CaughtUp(sec(50)) }, 0},
		{"the other has not read", func(a, b *Ledger) { arrive(a, 1, 1); b.CaughtUp(sec(10)) }, 0},
		{"the other is blind", func(a, b *Ledger) {
			arrive(a, 1, 1)
			b.CaughtUp(sec(12))
			b.Ready(false, sec(13))
		}, 0},
		{"one was lost, a younger one came", func(a, b *Ledger) {
			arrive(a, 1, 1)
			arrive(a, 2, 2)
			arrive(b, 2, 3)
			b.CaughtUp(sec(50))
		}, 0},
		{"only later ones have passed", func(a, b *Ledger) { arrive(a, 3, 3); b.CaughtUp(sec(50)) }, 3},
		{"from before a pause", func(a, b *Ledger) { arrive(a, 1, 1); b.CaughtUp(sec(50)); b.Pause() }, 0},
		{"of a lane that has gone", func(a, b *Ledger) { arrive(a, 1, 1); b.CaughtUp(sec(50)); b.Retire(0) }, 0},
	} {
		a, b := reading(cfg), reading(cfg)
		for _, l := range []*Ledger{a, b} {
			for seq := uint64(1); seq <= 3; seq++ {
				l.Expect(0, seq, sec(float64(seq)))
				l.Sent(0, seq, Accepted)
			}
		}
		c.do(a, b)
		if since, stuck := b.Stuck(a, cfg.Timeout); stuck != (c.since > 0) || stuck && since != sec(c.since) {
			t.Errorf("%s: stuck %v since %v", c.name, stuck, since)
		}
	}

	// From the head: what it has accepted, and not what it refused or may not have.
	head := reading(cfg)
	for seq, r := range []Result{Refused, Unknown, Accepted} {
		head.Expect(0, uint64(seq+1), sec(float64(seq+1)))
		head.Sent(0, uint64(seq+1), r)
	}
	head.CaughtUp(sec(12))
	if since, stuck := head.Stuck(nil, cfg.Timeout); stuck {
		t.Errorf("stuck since %v behind a head that accepted nothing", since)
	}
	head.CaughtUp(sec(13))
	head.Advance(sec(13)) // it is dropped by now
	if since, stuck := head.Stuck(nil, cfg.Timeout); !stuck || since != sec(3) {
		t.Errorf("stuck %v since %v behind the head", stuck, since)
	}

	// Long after, when the first of them is not kept any more.
	a, b := reading(cfg), reading(cfg)
	for seq := uint64(1); seq <= 5000; seq++ {
		for _, l := range []*Ledger{a, b} {
			l.Expect(0, seq, sec(float64(seq)))
			l.Sent(0, seq, Accepted)
		}
		arrive(a, seq, float64(seq))
		if seq <= 10 {
			arrive(b, seq, float64(seq))
		}
		b.CaughtUp(sec(float64(seq)))
	}
	if since, stuck := b.Stuck(a, cfg.Timeout); !stuck || since != sec(11) {
		t.Errorf("long after: stuck %v since %v", stuck, since)
	}
}

// Fate follows one heartbeat from its injection to its end, however many come after it, and says less of it
// when it is old.
func TestFate(t *testing.T) {
	l := New(Config{Timeout: 10})
	l.Ready(true, 0)
	want := func(seq uint64, f Fate) {
		t.Helper()
		if got := l.Fate(0, seq); got != f {
			t.Errorf("fate of %d is %v; want %v", seq, got, f)
		}
	}
	want(1, Unsent)
	for seq := uint64(1); seq <= 3; seq++ {
		l.Expect(0, seq, Instant(seq))
		want(seq, Injecting)
		l.Sent(0, seq, Accepted)
		want(seq, Waiting)
	}
	l.Arrive(Arrival{Seq: 2, At: 3})
	want(2, Received)
	l.CaughtUp(20)
	l.Advance(20)
	want(1, Dropped)
	l.Arrive(Arrival{Seq: 3, At: 30})
	want(3, ReceivedLate)
	for seq := uint64(4); seq <= 4+minRing; seq++ {
		l.Skip(0, seq, Instant(seq))
	}
	want(1, Dropped)
	want(3, Received)
	want(4, Unsent)
	want(5000, Unsent)
	if got := l.Fate(1, 1); got != Unsent {
		t.Errorf("a lane that is not known: %v", got)
	}
	for seq := uint64(100); seq < 2000; seq++ {
		l.Expect(0, seq, Instant(seq))
		l.Sent(0, seq, Accepted)
	}
	want(100, Waiting)
}
