package monitor

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/lag-monitor/lag-monitor/internal/config"
	"github.com/lag-monitor/lag-monitor/internal/conform/memory"
	"github.com/lag-monitor/lag-monitor/internal/heartbeat"
	"github.com/lag-monitor/lag-monitor/internal/ledger"
	"github.com/lag-monitor/lag-monitor/probe"
	"github.com/lag-monitor/lag-monitor/sinks"
)

func (r *rig) detail() ProbeDetail {
	r.t.Helper()
	synctest.Wait()
	d, ok := r.m.Probe("p")
	if !ok {
		r.t.Fatal("there is no probe p")
	}
	return d
}

// begun leaves out the ticks that may pass while the sink begins to read: before the first heartbeat or beside it, and the
// one that makes up for it where that has not quite returned.
func begun(beats []BeatStatus) []BeatStatus {
	skipped := func(b BeatStatus) bool { return b.Result == "skipped" }
	for i := slices.IndexFunc(beats, skipped); i == 0 || i == 1; i = slices.IndexFunc(beats, skipped) {
		beats = slices.Delete(slices.Clone(beats), i, i+1)
	}
	return beats
}

// stations adds sinks of the roles to the probe, in front of "out", and returns how to put a message there.
func (r *rig) stations(names ...string) map[string]func(*probe.Message) {
	r.t.Helper()
	puts := map[string]func(*probe.Message){"out": func(m *probe.Message) { _ = r.inj.Inject(context.Background(), m) }}
	p := r.cfg.Probes["p"]
	p.Sinks = nil
	for _, name := range names {
		p.Sinks = append(p.Sinks, name)
		if name == "out" {
			continue
		}
		q := memory.NewQueue(1, 0)
		inj, err := (&memory.InjectorConfig{Queue: q}).Open()
		if err != nil {
			r.t.Fatal(err)
		}
		role := config.Destination
		switch {
		case strings.HasPrefix(name, "hop"):
			role = config.Hop
		case strings.HasPrefix(name, "dead"):
			role = config.DeadLetter
		}
		r.cfg.Sinks[name] = &config.Sink{Name: name, Kind: "memory", Role: role, Config: &memory.SinkConfig{Queue: q}, Fingerprint: "1"}
		puts[name] = func(m *probe.Message) { _ = inj.Inject(context.Background(), m) }
	}
	return puts
}

// after passes a message on after a while.
func after(d time.Duration, m *probe.Message, to func(*probe.Message)) {
	msg := *m
	time.AfterFunc(d, func() { to(&msg) })
}

func TestBeats(t *testing.T) {
	sim(t, func(r *rig) {
		r.cfg.Probes["p"].Expiry = 500 * time.Millisecond
		n := 0
		r.cfg.Probes["p"].Inject = head(func(_ context.Context, m *probe.Message) error {
			out := func(d time.Duration) {
				after(d, m, func(m *probe.Message) { _ = r.inj.Inject(context.Background(), m) })
			}
			switch n++; n {
			case 2:
				return probe.Refused(errors.New("503 Service Unavailable"))
			case 3:
				return errors.New("no answer")
			case 4: // lost
				return nil
			case 5:
				out(700 * time.Millisecond)
			case 6:
				out(12500 * time.Millisecond)
				return nil
			case 30:
				time.Sleep(2500 * time.Millisecond)
			case 31:
				time.Sleep(time.Second)
			}
			out(600 * time.Millisecond)
			return nil
		})
		r.start()
		time.Sleep(32*time.Second + 300*time.Millisecond)
		d := r.detail()
		if len(d.Beats) != int(d.Sent.Success+d.Sent.Failure+d.Sent.Unknown+d.Sent.Skipped+1) { // one is pending
			t.Errorf("%d heartbeats are shown, of %+v", len(d.Beats), d.Sent)
		}
		for i, want := range map[int]string{
			0: "success on_time 0.1", 1: "failure 503 Service Unavailable", 2: "unknown no answer indeterminate send_unknown", 3: "success dropped timeout",
			4: "success on_time 0.1 duplicates 1", 5: "success late timeout 12.0", 29: "success on_time 2.6",
			30: "skipped", 31: "skipped", 32: "pending in_flight",
		} {
			b := begun(d.Beats)[i]
			s := b.Sinks[0]
			got := b.Result
			for _, word := range []string{b.Error, s.Outcome, s.Reason} {
				if word != "" {
					got += " " + word
				}
			}
			if !s.Arrived.IsZero() {
				got += fmt.Sprintf(" %.1f", s.Latency)
				if diff := s.Arrived.Sub(b.Due).Seconds() - s.Latency; math.Abs(diff) > 1e-6 {
					t.Errorf("heartbeat %d arrived %v after it was due, its latency is %v", i, s.Arrived.Sub(b.Due), s.Latency)
				}
			}
			if s.Duplicates > 0 {
				got += fmt.Sprint(" duplicates ", s.Duplicates)
			}
			if got != want {
				t.Errorf("heartbeat %d: %q, want %q", i, got, want)
			}
			if b.Seq < uint64(i+1) || b.Seq > uint64(i+3) || b.Due.Sub(b.Sent) != 500*time.Millisecond || s.Sink != "out" {
				t.Errorf("heartbeat %d: %+v", i, b)
			}
		}
		time.Sleep(300 * time.Second)
		d = r.detail()
		if len(d.Beats) != keptBeats || d.Beats[keptBeats-1].Seq-d.Beats[0].Seq != keptBeats-1 || time.Since(d.Beats[keptBeats-1].Sent) > time.Second {
			t.Errorf("%d heartbeats are shown, from %+v to %+v", len(d.Beats), d.Beats[0], d.Beats[len(d.Beats)-1])
		}
		if i := slices.IndexFunc(d.Beats[:115], func(b BeatStatus) bool { return b.Sinks[0].Outcome != "on_time" }); i >= 0 {
			t.Errorf("heartbeat %d is %+v", i, d.Beats[i])
		}
	})
}

// A driver's errors may be different each time: a few are kept, and none is shown for another.
func TestErrorsOfBeats(t *testing.T) {
	var b beats
	for i := range 300 {
		n := b.add(0, uint64(i+1), 0, resultPending)
		b.set(n, resultFailure)
		b.fail(n, fmt.Errorf("error %d of port %d%s", i%2, i/4, strings.Repeat("!", i)))
		if len(b.errors) > keptErrors {
			t.Fatalf("%d errors are kept", len(b.errors))
		}
	}
	shown := 0
	for i := b.first(); i < b.n; i++ {
		r, text := b.of(i)
		if r != resultFailure {
			t.Fatalf("heartbeat %d is %v", i, r)
		}
		if text == "" {
			continue
		}
		shown++
		if len(text) > maxError+len("…") || !strings.HasPrefix(text, fmt.Sprintf("error %d of port %d!", i%2, i/4)) {
			t.Errorf("the error of heartbeat %d is %q", i, text)
		}
	}
	if shown < keptErrors {
		t.Errorf("%d errors are shown", shown)
	}
}

// Where the probe only listens, heartbeats are shown that came, and those that they tell of.
func TestBeatsOfAListener(t *testing.T) {
	listening(t, func(r *rig) {
		a, b := r.sender(7), r.sender(8)
		b.h.Expiry = 2 * time.Second
		for range 3 {
			a.beat(2, 0)
			b.beat(1, 0)
			a.tick(0) // lost
		}
		a.beat(1, 0)
		time.Sleep(15 * time.Second)
		d := r.detail()
		var got []string
		for _, beat := range d.Beats {
			got = append(got, fmt.Sprint(beat.Seq, " ", beat.Result, beat.Sinks[0].Outcome))
			if !beat.Sinks[0].Arrived.IsZero() && math.Abs(beat.Sinks[0].Latency) > .01 && math.Abs(beat.Sinks[0].Latency+2) > .01 {
				t.Errorf("%+v", beat)
			}
		}
		slices.Sort(got)
		// Of each sender: a's third, sixth and ninth are lost.
		if want := "[1 on_time 1 on_time 10 on_time 2 on_time 2 on_time 3 dropped 3 on_time 4 on_time 5 on_time 6 dropped 7 on_time 8 on_time 9 dropped]"; fmt.Sprint(got) != want {
			t.Errorf("got  %v\nwant %s", got, want)
		}
		if d.Sent != (SentStatus{}) || !slices.IsSortedFunc(d.Beats, func(a, b BeatStatus) int { return a.Sent.Compare(b.Sent) }) {
			t.Errorf("%+v", d.Beats)
		}
	})
}

func TestHops(t *testing.T) {
	sim(t, func(r *rig) {
		puts := r.stations("hop1", "hop2", "out", "copy", "dead")
		p := r.cfg.Probes["p"]
		p.Expiry = 30 * time.Second // held between hop1 and hop2, longer than any skew
		var stop atomic.Int32
		p.Inject = head(func(_ context.Context, m *probe.Message) error {
			after(100*time.Millisecond, m, puts["hop1"])
			if stop.Load() == 1 {
				return nil
			}
			after(30*time.Second+200*time.Millisecond, m, puts["hop2"])
			if stop.Load() == 2 {
				return nil
			}
			after(30*time.Second+500*time.Millisecond, m, puts["out"])
			after(30*time.Second+600*time.Millisecond, m, puts["copy"])
			return nil
		})
		r.start()
		time.Sleep(200 * time.Second)
		d := r.detail()
		want := []HopStatus{
			{From: "head", To: "hop1", Latency: .1, P50: .1, P99: .1, Rate: 1, Seen: true},
			{From: "hop1", To: "hop2", Latency: .2, P50: .2, P99: .2, Rate: 1, Seen: true},
			{From: "hop2", To: "out", Latency: .3, P50: .3, P99: .3, Rate: 1, Seen: true},
			{From: "hop2", To: "copy", Latency: .4, P50: .4, P99: .4, Rate: 1, Seen: true},
		}
		if len(d.Hops) != len(want) {
			t.Fatalf("%d hops", len(d.Hops))
		}
		for i, got := range d.Hops {
			for _, v := range []*float64{&got.Latency, &got.P50, &got.P99, &got.Rate} {
				*v = math.Round(*v*100) / 100
			}
			if got != want[i] {
				t.Errorf("hop %d is %+v, want %+v", i, got, want[i])
			}
		}
		if d.Stuck != nil {
			t.Errorf("stuck: %+v", d.Stuck)
		}
		// A station before the one that holds is no sign of a wrong clock.
		for _, s := range d.Sinks[:4] {
			if s.Dropped+s.Indeterminate > 0 || s.Lag > .7 || s.Sink == "hop1" && s.Lanes[0].Last.After(time.Now()) {
				t.Errorf("%+v", s)
			}
		}
		r.wantScrape(`hop_latency_seconds_count{from="head",probe="p",to="hop1"}`, float64(d.Sinks[0].OnTime))
		r.wantScrape(`hop_latency_seconds_count{from="hop2",probe="p",to="copy"}`, float64(d.Sinks[3].OnTime))
		r.wantScrape(`negative_latencies_total{probe="p",sink="hop1"}`, 0)
		r.wantScrape(`sink_messages_total{kind="future",sink="hop1"}`, 0)
		r.wantScrape(`stuck{from="hop1",probe="p",to="hop2"}`, 0)

		for i, way := range [][2]string{{"hop1", "hop2"}, {"hop2", "out"}} {
			stop.Store(int32(i + 1))
			began := time.Now()
			time.Sleep(100 * time.Second)
			st := r.status()
			if st.Stuck == nil || st.Stuck.From != way[0] || st.Stuck.To != way[1] || st.Stuck.Since.Sub(began.Add(30*time.Second)).Abs() > 2*time.Second {
				t.Errorf("stuck: %+v, should be between %v since %v", st.Stuck, way, began.Add(30*time.Second))
			}
			r.wantScrape(fmt.Sprintf(`stuck{from=%q,probe="p",to=%q}`, way[0], way[1]), 1)
			r.wantScrape(`stuck{from="head",probe="p",to="hop1"}`, 0)
			stop.Store(0)
			time.Sleep(100 * time.Second)
			if st := r.status(); st.Stuck != nil {
				t.Errorf("still stuck: %+v", st.Stuck)
			}
		}
	})
}

// A limit that is shorter than the timeout: the page that it brings can say where.
func TestStuckBeforeTheDeadline(t *testing.T) {
	sim(t, func(r *rig) {
		puts := r.stations("hop", "out")
		p := r.cfg.Probes["p"]
		p.Timeout, p.Page = time.Hour, config.Thresholds{Lag: 30 * time.Second}
		var lost atomic.Bool
		p.Inject = head(func(_ context.Context, m *probe.Message) error {
			puts["hop"](m)
			if !lost.Load() {
				puts["out"](m)
			}
			return nil
		})
		r.start()
		time.Sleep(20 * time.Second)
		lost.Store(true)
		time.Sleep(25 * time.Second)
		if st := r.status(); st.Stuck != nil || !st.PageLimits.LagSince.IsZero() {
			t.Errorf("after 25 s: %+v, %+v", st.Stuck, st.PageLimits)
		}
		time.Sleep(10 * time.Second)
		if st := r.status(); st.Stuck == nil || st.PageLimits.LagSince.IsZero() {
			t.Errorf("after 35 s: %+v, %+v", st.Stuck, st.PageLimits)
		}
	})
}

// wantScrape checks one series of a scrape.
func (r *rig) wantScrape(series string, want float64) {
	r.t.Helper()
	if got, ok := scrapeOf(r)[series]; !ok || math.Abs(got-want) > 1e-6 {
		r.t.Errorf("%s is %v (%v), want %v", series, got, ok, want)
	}
}

// sentBeats leaves out the ticks without a heartbeat.
func sentBeats(beats []BeatStatus) []BeatStatus {
	return slices.DeleteFunc(slices.Clone(beats), func(b BeatStatus) bool { return b.Result == "skipped" })
}

func TestDeadLettersTellWhy(t *testing.T) {
	sim(t, func(r *rig) {
		r.stations("out", "dead")
		p := r.cfg.Probes["p"]
		var mu sync.Mutex
		var tokens []string
		p.Inject = head(func(_ context.Context, m *probe.Message) error {
			mu.Lock()
			defer mu.Unlock()
			tokens = append(tokens, m.Token)
			return nil
		})
		r.start()
		time.Sleep(5500 * time.Millisecond)
		mu.Lock()
		sent := slices.Clone(tokens)
		mu.Unlock()
		feeds := r.m.state.Load().sinks
		for i, d := range []*sinks.Death{
			{Reason: sinks.DeadRejected, Queue: "orders", Count: 3}, {Reason: sinks.DeadExpired}, nil, {Reason: "somebody's own"}, {Reason: sinks.DeadMaxLen},
		} {
			feeds["dead"].feed.Deliver(sinks.Message{Body: []byte(sent[i]), Dead: d})
		}
		feeds["out"].feed.Deliver(sinks.Message{Body: []byte(sent[4]), Retries: 2}) // put back
		d := r.detail()
		if s := sentBeats(d.Beats)[0].Sinks[0]; s.Outcome != "in_flight" || s.Reason != "dead_lettered (rejected, from orders, 3 times, found in dead)" {
			t.Errorf("before the deadline: %+v", s)
		}
		time.Sleep(15 * time.Second)
		d = r.detail()
		for i, want := range []string{
			"dropped dead_lettered (rejected, from orders, 3 times, found in dead)", "dropped expired (expired, found in dead)", "dropped dead_lettered (found in dead)",
			"dropped dead_lettered (somebody's own, found in dead)", "on_time dead_lettered (maxlen, found in dead)", "dropped timeout",
		} {
			if s := sentBeats(d.Beats)[i].Sinks[0]; s.Outcome+" "+s.Reason != want {
				t.Errorf("heartbeat %d: %+v, want %s", i, s, want)
			}
		}
		if s := sentBeats(d.Beats)[4].Sinks[0]; s.Retries != 2 {
			t.Errorf("%+v", s)
		}
		feeds["dead"].feed.Deliver(sinks.Message{Body: []byte(sent[5]), Dead: &sinks.Death{Reason: sinks.DeadDeliveryLimit}})
		if s := sentBeats(r.detail().Beats)[5].Sinks[0]; s.Outcome != "dropped" || s.Reason != "timeout, dead_lettered (delivery_limit, found in dead)" {
			t.Errorf("dead-lettered after its deadline: %+v", s)
		}
		for reason, n := range map[string]float64{"rejected": 1, "expired": 1, "other": 2, "maxlen": 1, "delivery_limit": 1} {
			r.wantScrape(fmt.Sprintf(`heartbeats_dead_lettered_total{probe="p",reason=%q,sink="dead"}`, reason), n)
		}
		r.wantScrape(`heartbeats_dropped_total{probe="p",reason="dead_lettered",sink="out"}`, 3)
		r.wantScrape(`heartbeats_dropped_total{probe="p",reason="expired",sink="out"}`, 1)
	})
}

// What is dead outlasts a restart.
func TestDeathOutlastsARestart(t *testing.T) {
	sim(t, func(r *rig) {
		left := r.journaled()
		r.stations("out", "dead")
		var mu sync.Mutex
		var tokens []string
		r.cfg.Probes["p"].Inject = head(func(_ context.Context, m *probe.Message) error {
			mu.Lock()
			defer mu.Unlock()
			if len(tokens) > 0 {
				return probe.Refused(errors.New("enough"))
			}
			tokens = append(tokens, m.Token)
			return nil
		})
		r.start()
		mu.Lock()
		first := []byte(tokens[0])
		mu.Unlock()
		r.m.state.Load().sinks["dead"].feed.Deliver(sinks.Message{Body: first, Dead: &sinks.Death{Reason: sinks.DeadExpired}})
		time.Sleep(2 * time.Second)
		r.restart(r.kill(left))
		time.Sleep(20 * time.Second)
		r.wantScrape(`heartbeats_dropped_total{probe="p",reason="expired",sink="out"}`, 1)
	})
}

func TestHistory(t *testing.T) {
	sim(t, func(r *rig) {
		var slow atomic.Int64
		var lost atomic.Bool
		p := r.cfg.Probes["p"]
		p.Interval = 10 * time.Second
		p.Inject = head(func(_ context.Context, m *probe.Message) error {
			if !lost.Load() {
				after(100*time.Millisecond+time.Duration(slow.Load()), m, func(m *probe.Message) { _ = r.inj.Inject(context.Background(), m) })
			}
			return nil
		})
		time.Sleep(time.Until(time.Now().Truncate(time.Minute).Add(time.Minute + time.Second)))
		r.start()
		at := func(minute float64) {
			time.Sleep(time.Until(r.m.origin.Add(time.Duration(minute * float64(time.Minute)))))
		}
		at(2)
		slow.Store(int64(20 * time.Second))
		at(4)
		slow.Store(0)
		at(6)
		lost.Store(true)
		at(10)
		lost.Store(false)
		at(15)
		h := r.detail().History
		if len(h.Sinks) != 1 || h.Sinks[0].Sink != "out" || h.Step != 60 || len(h.Sinks[0].Lag) != historySteps || len(h.Sinks[0].Latency) != historySteps {
			t.Fatalf("%+v", h)
		}
		last := historySteps - 1
		if now := h.Start.Add(time.Duration(last) * time.Minute); !now.Equal(time.Now().Truncate(time.Minute)) {
			t.Errorf("the last point is of %v", now)
		}
		show := func(of []*float64) string {
			var out []string
			for _, v := range of[last-16:] {
				if v == nil {
					out = append(out, "-")
				} else {
					out = append(out, fmt.Sprintf("%.0f", *v))
				}
			}
			return strings.Join(out, " ")
		}
		// In the minutes 6 to 9 nothing comes: at the end of each the lag is the largest of it.
		lag := h.Sinks[0].Lag
		for i, want := range []float64{55, 115, 175, 235} {
			if v := lag[last-8+i-1]; v == nil || math.Abs(*v-want) > 12 {
				t.Errorf("lags %s", show(lag))
			}
		}
		if got := show(h.Sinks[0].Latency); got != "- - 0 20 20 20 0 - - - - 0 0 0 0 0 -" {
			t.Errorf("latencies %s", got)
		}
		if v := h.Sinks[0].Latency[last-7]; v != nil {
			t.Errorf("a latency of a minute without an arrival: %s", show(h.Sinks[0].Latency))
		}
		if h.Sinks[0].Lag[0] != nil || h.Sinks[0].Lag[last-16] != nil {
			t.Errorf("a lag of a time before the start: %s", show(lag))
		}
	})
}

// A history that nobody has looked at or written to for hours has no leftovers of before.
func TestHistorySteps(t *testing.T) {
	var h history
	h.step(1000)
	lag, _ := h.now()
	lag.raise(5)
	h.step(1000 + 10*historySteps)
	for i, v := range h.lag {
		if v != unknown {
			t.Fatalf("step %d is %v", i, v.float())
		}
	}
	h.step(900) // a clock that was set back
	if h.minute != 1000+10*historySteps {
		t.Errorf("at %d", h.minute)
	}
}

func TestSmall(t *testing.T) {
	for _, v := range []float64{0, 1e-9, 6e-8, .001, .0499, .5, 1, 1.9999, 2, 299.9, 300, 301, 86400, 6e5, 4e9, -.001, -2, -86400} {
		if got := toSmall(v).float(); math.Abs(got-v) > math.Abs(v)/1000 || toSmall(v) == unknown {
			t.Errorf("%v became %v", v, got)
		}
	}
	if got := toSmall(1e-30).float(); got != 0 {
		t.Errorf("1e-30 became %v", got)
	}
	for _, v := range []float64{1e30, math.Inf(1)} {
		if got := toSmall(v).float(); got < 8e9 {
			t.Errorf("%v became %v", v, got)
		}
	}
	if got := toSmall(-1e30); got == unknown || got.float() > -8e9 {
		t.Errorf("-1e30 became %v", got.float())
	}
	s := unknown
	for _, v := range []float64{-3, -5, 2, 1} {
		s.raise(v)
	}
	if s.float() != 2 {
		t.Errorf("the largest is %v", s.float())
	}
}

func TestRate(t *testing.T) {
	var r rate
	at := ledger.Instant(time.Hour)
	add := func(d time.Duration) { at = at.Add(d); r.add(at) }
	for range 20 {
		add(time.Second)
	}
	if got := r.perSecond(at); math.Abs(got-1) > .3 {
		t.Errorf("after 20 s at 1 Hz: %v", got)
	}
	for range 200 {
		add(500 * time.Millisecond)
	}
	if got := r.perSecond(at); math.Abs(got-2) > .1 {
		t.Errorf("at 2 Hz: %v", got)
	}
	if got := r.perSecond(at.Add(30 * time.Second)); math.Abs(got-1) > .15 {
		t.Errorf("30 s after the last one: %v", got)
	}
	if got := r.perSecond(at.Add(time.Hour)); got != 0 {
		t.Errorf("an hour after the last one: %v", got)
	}
}

// Limits are crossed by the same words as in the rules.
func TestLimits(t *testing.T) {
	sim(t, func(r *rig) {
		var lost atomic.Uint64 // one in so many; 0: none
		p := r.cfg.Probes["p"]
		p.Page = config.Thresholds{Lag: time.Minute, For: 2 * time.Minute, DropRatio: .05}
		p.Ticket = config.Thresholds{DropRatio: .01}
		p.Labels, p.Runbook, p.Dashboard = map[string]string{}, "https://wiki/p", "https://graphs/p"
		p.Inject = head(func(ctx context.Context, m *probe.Message) error {
			if n := lost.Load(); n > 0 && m.Seq%n == 0 {
				return nil
			}
			return r.inj.Inject(ctx, m)
		})
		r.start()
		time.Sleep(5 * time.Minute)
		st := r.status()
		if st.Runbook != p.Runbook || st.Dashboard != p.Dashboard || *st.TicketLimits != (LimitStatus{DropRatio: .01}) ||
			*st.PageLimits != (LimitStatus{Lag: 60, For: 120, DropRatio: .05}) {
			t.Fatalf("%+v, %+v, %+v", st, st.PageLimits, st.TicketLimits)
		}
		// Two in a hundred are lost: a ticket and no page.
		lost.Store(50)
		time.Sleep(30 * time.Minute)
		st = r.status()
		if st.TicketLimits.DropsSince.IsZero() || !st.PageLimits.DropsSince.IsZero() || !st.PageLimits.LagSince.IsZero() {
			t.Errorf("2 %% lost: %+v, %+v", st.PageLimits, st.TicketLimits)
		}
		// None comes: the lag is crossed when it is a minute, whenever somebody looks. Drops are what that is about.
		lost.Store(1)
		began := time.Now()
		time.Sleep(50 * time.Second)
		if st = r.status(); !st.PageLimits.LagSince.IsZero() {
			t.Errorf("after 50 s: %+v", st.PageLimits)
		}
		time.Sleep(10 * time.Minute)
		st = r.status()
		if since := st.PageLimits.LagSince.Sub(began.Add(time.Minute)); since.Abs() > 2*time.Second {
			t.Errorf("crossed %v beside the time: %+v", since, st.PageLimits)
		}
		if !st.PageLimits.DropsSince.IsZero() || !st.TicketLimits.DropsSince.IsZero() {
			t.Errorf("drops of a lag that pages: %+v, %+v", st.PageLimits, st.TicketLimits)
		}
		lost.Store(0)
		time.Sleep(10 * time.Second)
		if st = r.status(); !st.PageLimits.LagSince.IsZero() || !st.PageLimits.DropsSince.IsZero() {
			t.Errorf("after it came back: %+v", st.PageLimits)
		}
		time.Sleep(time.Hour)
		if st = r.status(); !st.PageLimits.DropsSince.IsZero() || !st.TicketLimits.DropsSince.IsZero() {
			t.Errorf("an hour later: %+v, %+v", st.PageLimits, st.TicketLimits)
		}
		// Of a paused probe none is crossed.
		lost.Store(1)
		time.Sleep(5 * time.Minute)
		if st = r.status(); st.PageLimits.LagSince.IsZero() {
			t.Errorf("%+v", st.PageLimits)
		}
		if err := r.m.Pause("p", time.Hour); !errors.Is(err, ErrNotKept) {
			t.Fatal(err)
		}
		if st = r.status(); !st.PageLimits.LagSince.IsZero() {
			t.Errorf("paused: %+v", st.PageLimits)
		}
	})
}

func TestLosses(t *testing.T) {
	var l losses
	at := ledger.Instant(100 * time.Hour)
	l.see(at, 1000, 1000) // taken over
	if _, ok := l.ratio(); ok {
		t.Error("a ratio of nothing")
	}
	l.see(at.Add(time.Minute), 1007, 1002)
	if _, ok := l.ratio(); ok {
		t.Error("a ratio of nine")
	}
	l.see(at.Add(2*time.Minute), 1008, 1002)
	if got, ok := l.ratio(); !ok || got != .2 {
		t.Errorf("%v %v of ten", got, ok)
	}
	// In the last half hour there were none; but two hours back there were ten.
	l.see(at.Add(time.Hour), 1008, 1002)
	if got, ok := l.ratio(); !ok || got != .2 {
		t.Errorf("%v %v an hour later", got, ok)
	}
	l.see(at.Add(3*time.Hour), 1008, 1002)
	if got, ok := l.ratio(); ok {
		t.Errorf("%v three hours later", got)
	}
	l.see(at.Add(3*time.Hour+time.Minute), 1108, 1003)
	if got, ok := l.ratio(); ok {
		t.Errorf("%v by one drop", got)
	}
}

// What is shown of the definition is the probe's own and its sinks', and no secret.
func TestDetailHasTheDefinition(t *testing.T) {
	sim(t, func(r *rig) {
		r.cfg.Sinks["other"] = &config.Sink{Name: "other", Kind: "memory", Role: config.Destination, Config: r.cfg.Sinks["out"].Config, Fingerprint: "2"}
		r.cfg.Probes["p"].Page.Lag = 5 * time.Minute
		r.cfg.Probes["p"].InjectKind, r.cfg.Probes["p"].Inject = "memory", &memory.InjectorConfig{Queue: r.queue}
		r.start()
		got := r.detail().Config
		for _, part := range []string{"probes:\n", "    p:\n", "sinks:\n", "    out:\n", "role: destination", "lag: 5m"} {
			if !strings.Contains(got, part) {
				t.Errorf("no %q in\n%s", part, got)
			}
		}
		if strings.Contains(got, "other") {
			t.Errorf("another probe's sink in\n%s", got)
		}
		if _, ok := r.m.Probe("nobody"); ok {
			t.Error("a probe that there is not")
		}
	})
}

// A probe that only injects has no stations.
func TestDetailWithoutSinks(t *testing.T) {
	sim(t, func(r *rig) {
		r.cfg.Probes["p"].Sinks = nil
		r.start()
		time.Sleep(10 * time.Second)
		d := r.detail()
		if len(d.Hops)+len(d.History.Sinks) != 0 || len(d.Beats) < 10 || d.Beats[0].Result != "success" || len(d.Beats[0].Sinks) != 0 || d.Stuck != nil {
			t.Errorf("%+v", d)
		}
	})
}

// What is kept to be shown of a probe with one lane and one sink: ten thousand of them take less than 60 MB.
func TestMemoryOfWhatIsShown(t *testing.T) {
	const records = 128 * 8 // of the account
	size := unsafe.Sizeof(beats{}) + unsafe.Sizeof(keptOf{}) + unsafe.Sizeof(history{}) + unsafe.Sizeof(rate{}) + unsafe.Sizeof(losses{}) +
		unsafe.Sizeof(neighbours{}) + unsafe.Sizeof([2]crossing{}) + unsafe.Sizeof(pause{}) + records
	if size > 4500 {
		t.Errorf("%d bytes for each probe", size)
	}
	// Nothing of it is made for a heartbeat.
	p := &probeRun{m: &Monitor{}, cfg: &config.Probe{Page: config.Thresholds{Lag: time.Minute}}}
	p.m.origin = time.Now()
	w := &watch{p: p, sink: &sinkRun{cfg: &config.Sink{}}, ledger: ledger.New(ledger.Config{Timeout: time.Minute})}
	p.watches = []*watch{w}
	h := &heartbeat.Heartbeat{}
	now := p.m.origin
	n := uint64(0)
	tick := func() {
		n++
		now = now.Add(2 * time.Second)
		at := p.m.instant(now)
		p.observe(now)
		i := p.beats.add(0, n, at, resultPending)
		w.ledger.Expect(0, n, at)
		w.ledger.Sent(0, n, ledger.Accepted)
		p.beats.set(i, resultSuccess)
		h.Seq = n
		p.observe(now)
		lag, ok := w.lagOf(0, at)
		w.saw(h, w.ledger.Arrive(ledger.Arrival{Seq: n, At: at}), at, lag, ok)
	}
	tick()
	if n := testing.AllocsPerRun(1000, tick); n > 0 {
		t.Errorf("%v allocations for each heartbeat", n)
	}
}

// BenchmarkObserve is what a tick and an arrival cost more for what is shown.
func BenchmarkObserve(b *testing.B) {
	p := &probeRun{m: &Monitor{origin: time.Now()}, cfg: &config.Probe{Page: config.Thresholds{Lag: time.Minute, DropRatio: .01}}}
	w := &watch{p: p, sink: &sinkRun{cfg: &config.Sink{}}, ledger: ledger.New(ledger.Config{Timeout: time.Minute})}
	p.watches = []*watch{w}
	h := &heartbeat.Heartbeat{}
	now := p.m.origin
	w.ledger.Expect(0, 1, 0)
	out := w.ledger.Arrive(ledger.Arrival{Seq: 1})
	b.ReportAllocs()
	for i := range b.N {
		now = now.Add(time.Second)
		at := p.m.instant(now)
		p.observe(now)
		p.beats.set(p.beats.add(0, uint64(i), at, resultPending), resultSuccess)
		p.observe(now)
		lag, ok := w.lagOf(0, at)
		w.saw(h, out, at, lag, ok)
	}
}
