package conform

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/conn"
	"github.com/lag-monitor/lag-monitor/internal/heartbeat"
	"github.com/lag-monitor/lag-monitor/probe"
	"github.com/lag-monitor/lag-monitor/sinks"
)

// config: the bare defaults name exactly the keys that a person has to fill in, all at once.
func (s *suite) config() {
	injectKind := s.h.InjectKind
	if injectKind == "" {
		injectKind = s.h.Kind
	}
	if c, ok := probe.New(injectKind); ok {
		s.needs("injector "+injectKind, c.Validate(), s.h.InjectorNeeds)
	}
	if c, ok := sinks.New(s.h.Kind); ok {
		s.needs("sink "+s.h.Kind, c.Validate(), s.h.SinkNeeds)
	}
	for end, err := range map[string]error{"injector": s.Inject().Validate(), "sink": s.Sink().Validate()} {
		if err != nil {
			s.Errorf("%s: the harness's configuration is invalid: %v", end, err)
		}
	}
}

func (s *suite) needs(end string, err error, want []string) {
	s.Helper()
	var got []string
	for _, e := range flatten(err) {
		var f *conn.FieldError
		if !errors.As(e, &f) {
			s.Errorf("%s: Validate says %q without naming a key: use conn.Field", end, e)
			continue
		}
		got = append(got, f.Path)
	}
	slices.Sort(got)
	want = slices.Sorted(slices.Values(want))
	if !slices.Equal(got, want) {
		s.Errorf("%s: Validate of the defaults names the keys %q, want %q (%v)", end, got, want, err)
	}
}

func flatten(err error) []error {
	if err == nil {
		return nil
	}
	many, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return []error{err}
	}
	var out []error
	for _, e := range many.Unwrap() {
		out = append(out, flatten(e)...)
	}
	return out
}

// delivers: heartbeats on every lane arrive once, at plausible times, and as nothing but heartbeats.
func (s *suite) delivers() {
	in := s.injector()
	lanes := []uint32{0}
	if l, ok := in.(probe.Laner); ok {
		var err error
		if lanes, err = l.Lanes(context.Background()); err != nil {
			s.Fatalf("lanes: %v", err)
		}
	}
	if len(lanes) != s.Lanes || !slices.IsSorted(lanes) {
		s.Fatalf("lanes are %v, want %d in ascending order", lanes, s.Lanes)
	}
	ss := s.listen(s.sink())
	began := time.Now()
	var sent []accepted
	for range 3 {
		for _, lane := range lanes {
			sent = append(sent, s.send(in, lane))
		}
	}
	ss.expect(sent...)
	for _, e := range ss.rec.log() {
		if e.what != arrived {
			continue
		}
		if e.arrival.At.Before(began) || e.arrival.At.After(e.at) {
			s.Errorf("heartbeat %v arrived at %s, outside of the check that began at %s", e.key, e.arrival.At, began)
		}
		enq := e.arrival.Enqueued
		if s.Enqueued == enq.IsZero() {
			s.Errorf("heartbeat %v: the broker's time is %v, want one: %t", e.key, enq, s.Enqueued)
		}
		// Brokers cut their times to milliseconds or seconds.
		if !enq.IsZero() && (enq.Before(began.Add(-2*time.Second)) || enq.After(e.at.Add(2*time.Second))) {
			s.Errorf("heartbeat %v: the broker's time is %s, the check began at %s", e.key, enq, began)
		}
		if s.IDs == (e.arrival.ID == 0) {
			s.Errorf("heartbeat %v: identity %d, want one: %t", e.key, e.arrival.ID, s.IDs)
		}
	}
	s.counted(ss, map[sinks.Kind]uint64{sinks.Heartbeat: uint64(len(sent))})
	ss.stop()
}

// counted waits until the feed has counted exactly these messages.
func (s *suite) counted(ss *session, want map[sinks.Kind]uint64) {
	s.Helper()
	var all [len(sinks.Stats{}.Messages)]uint64
	for k, n := range want {
		all[k] = n
	}
	if !until(s.Within, func() bool {
		got := ss.feed.Stats().Messages
		if s.Snapshots {
			got[sinks.Other] = all[sinks.Other]
		}
		return got == all
	}) {
		got := make(map[string]uint64)
		for _, k := range sinks.AllKinds() {
			got[k.String()] = ss.feed.Stats().Messages[k]
		}
		s.Errorf("messages by kind are %v, want %v", got, want)
	}
}

// ordinary: ordinary messages are counted and left alone, and a second listener takes nothing away.
func (s *suite) ordinary() {
	const n = 300
	in := s.injector()
	a := s.listen(s.sink())
	b := a
	if !s.Exclusive {
		b = s.listen(s.sink())
	}
	var bodies [][]byte
	for i := range n {
		bodies = append(bodies, fmt.Appendf(nil, `{"order":%d,"note":"~ not a heartbeat, lagmon1. is no magic either"}`, i))
	}
	first := s.send(in, 0)
	s.Put(s.T, bodies...)
	second := s.send(in, 0)
	for _, ss := range []*session{a, b} {
		ss.expect(first, second)
		if s.Snapshots {
			s.eventually("both heartbeats counted", func() bool { return ss.feed.Stats().Messages[sinks.Heartbeat] == 2 })
		} else {
			s.counted(ss, map[sinks.Kind]uint64{sinks.Heartbeat: 2, sinks.Other: n})
		}
	}
	if s.Remaining != nil {
		if left := s.Remaining(s.T); left < n {
			s.Errorf("%d messages are left in the queue of %d ordinary ones: a sink took some away", left, n)
		}
	}
	a.stop()
	if b != a {
		b.stop()
	}
}

// tokens: damaged, forged and foreign heartbeats are told apart, and none of them is taken for ours.
func (s *suite) tokens() {
	ss := s.listen(s.sink())
	_, good := s.next(0)
	h := s.heartbeat(key{0, 7})
	other := h
	other.Probe = "elsewhere"
	forged := string(heartbeat.NewKeyring([]byte("not the suite's key")).Append(nil, &h))
	unsigned := string((*heartbeat.Keyring)(nil).Append(nil, &h))
	foreign := string(s.keys.Append(nil, &other))
	flipped := []byte(good.Token)
	if at := len(flipped) - 30; flipped[at] == 'A' {
		flipped[at] = 'B'
	} else {
		flipped[at] = 'A'
	}
	for _, token := range []string{string(flipped), good.Token[:len(good.Token)-20], heartbeat.Magic, forged, unsigned, foreign, good.Token} {
		s.Put(s.T, fmt.Appendf(nil, `{"heartbeat":"%s"}`, token))
	}
	s.counted(ss, map[sinks.Kind]uint64{sinks.Corrupt: 5, sinks.Foreign: 1, sinks.Heartbeat: 1})
	ss.stop()
}

// readyRace: a heartbeat that is injected in the very moment of Ready arrives.
func (s *suite) readyRace() {
	in := s.injector()
	ss := s.listen(s.sink())
	ss.expect(s.send(in, 0)) // making the injector's connection must not be what takes time
	ss.stop()
	for range 20 {
		now := make(chan struct{})
		rec := &recorder{src: s.source, onReady: func() { close(now) }}
		ss := s.startWith(s.sink(), rec)
		select {
		case <-now:
		case <-time.After(s.Within):
			ss.waitReady()
		}
		if s.Exclusive && !s.Keeps {
			// The sink itself is the server, and took the injector's connection with it when it ended.
			in = s.injector()
		}
		ss.expect(s.send(in, 0))
		ss.stop()
	}
}

// idle: an empty queue proves itself every second.
func (s *suite) idle() {
	if s.Unproven {
		s.claimsNothing()
		return
	}
	proof := s.Proof
	if proof == 0 {
		proof = 1500 * time.Millisecond
	}
	ss := s.listen(s.sink())
	s.eventually("caught up", func() bool { return !ss.rec.lastCaughtUp().IsZero() })
	began := time.Now()
	// What a busy machine did not let this process do, it did not let the sink and the broker do either.
	busy := 4 * sleep(4*time.Second)
	ss.stop()
	last, slack := began, 500*time.Millisecond+busy
	for _, e := range ss.rec.log() {
		if e.what != caughtUp {
			continue
		}
		if e.t.After(e.at) {
			s.Errorf("caught up with %s was claimed %s before that time", e.t, e.t.Sub(e.at))
		}
		if e.at.Sub(e.t) > proof+slack && e.at.After(began) {
			s.Errorf("the claim to be caught up was %s old when it was made", e.at.Sub(e.t))
		}
		if e.at.After(began) {
			if pause := e.at.Sub(last); pause > proof+busy {
				s.Errorf("no claim to be caught up for %s", pause)
			}
			last = e.at
		}
	}
	if pause := time.Since(last); pause > proof+slack {
		s.Errorf("no claim to be caught up for the last %s", pause)
	}
}

// claimsNothing is idle and caughtUp for a sink that cannot prove anything.
func (s *suite) claimsNothing() {
	in := s.injector()
	ss := s.listen(s.sink())
	ss.expect(s.send(in, 0))
	time.Sleep(2 * time.Second)
	ss.stop()
	if n := ss.rec.count(caughtUp); n > 0 {
		s.Errorf("%d claims to be caught up with a queue that proves nothing", n)
	}
}

// caughtUp: the claim covers what it says, one heartbeat at a time, behind a backlog, and in a stream.
func (s *suite) caughtUp() {
	if s.Unproven {
		s.claimsNothing()
		return
	}
	in := s.injector()
	ss := s.listen(s.sink())
	var sent []accepted
	for range 5 {
		a := s.send(in, uint32(len(sent)%s.Lanes))
		sent = append(sent, a)
		s.eventually("caught up with a heartbeat", func() bool { return ss.rec.lastCaughtUp().After(a.at) })
		if ss.rec.arrivals()[a.key] == 0 {
			s.Fatalf("caught up with heartbeat %v was claimed before it was delivered", a.key)
		}
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	stream := time.Now().Add(2 * time.Second)
	for g := range 3 {
		wg.Go(func() {
			for i := 0; time.Now().Before(stream); i++ {
				ctx, cancel := context.WithTimeout(context.Background(), s.Within)
				k, m := s.next(uint32((g + i) % s.Lanes))
				err := in.Inject(ctx, m)
				at := time.Now()
				cancel()
				if err != nil {
					s.Errorf("inject %v: %v", k, err)
					return
				}
				mu.Lock()
				sent = append(sent, accepted{k, at})
				mu.Unlock()
				time.Sleep(20 * time.Millisecond)
			}
		})
	}
	for bodies := slices.Repeat([][]byte{[]byte("ordinary")}, 300); time.Now().Before(stream); {
		s.Put(s.T, bodies...)
		time.Sleep(200 * time.Millisecond)
	}
	wg.Wait()
	end := time.Now()
	s.eventually("caught up with the stream", func() bool { return ss.rec.lastCaughtUp().After(end) })
	ss.expect(sent...)
	ss.stop()
}

// ends: Run returns nil soon after the end of its context, whatever it is doing.
func (s *suite) ends() {
	sink := s.sink()
	for _, after := range []time.Duration{0, time.Millisecond, 20 * time.Millisecond} {
		ss := s.start(sink)
		time.Sleep(after)
		ss.stop()
	}
	ss := s.listen(sink)
	ss.stop()
	in := s.injector()
	ss = s.listen(sink)
	busy := make(chan struct{})
	go func() {
		defer close(busy)
		for range 20 {
			_, m := s.next(0)
			ctx, cancel := context.WithTimeout(context.Background(), s.Within)
			_ = in.Inject(ctx, m)
			cancel()
		}
	}()
	ss.stop()
	<-busy
}

// hangs: a broker that goes silent holds nobody up.
func (s *suite) hangs() {
	if s.Hang == nil {
		s.note("the harness cannot make the broker hang")
		return
	}
	in := s.injector()
	sink := s.sink()
	ss := s.listen(sink)
	ss.expect(s.send(in, 0))
	release := s.Hang()
	defer func() { release() }()

	var refused, unknown []key
	for range 2 {
		k, err := s.trouble(in)
		switch {
		case err == nil:
			s.Errorf("heartbeat %v was accepted by a broker that hangs", k)
		case probe.IsRefused(err):
			refused = append(refused, k)
		default:
			unknown = append(unknown, k)
		}
	}
	ss.stopHung()
	fresh := s.start(s.sink())
	time.Sleep(300 * time.Millisecond)
	if fresh.feed.Stats().Ready {
		s.Error("a sink was ready while the broker hung")
	}
	fresh.stopHung()
	release()
	release = func() {}

	a := s.recovers(in)
	ss = s.until(sink)
	last := s.send(in, 0)
	want := []accepted{last}
	if s.Keeps {
		want = append(want, a)
	}
	ss.expect(want...)
	for _, k := range refused {
		if ss.rec.arrivals()[k] > 0 {
			s.Errorf("heartbeat %v arrived although its injection was refused", k)
		}
	}
	_ = unknown // may arrive or not; expect has seen that none came twice
	ss.stop()
}

// trouble injects into a broker in trouble and sees that the answer comes in time.
func (s *suite) trouble(in probe.Injector) (key, error) {
	s.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), injectTimeout)
	defer cancel()
	k, m := s.next(0)
	began := time.Now()
	err := in.Inject(ctx, m)
	if took := time.Since(began); took > injectTimeout+3*time.Second {
		s.Errorf("inject took %s with a deadline of %s", took, injectTimeout)
	}
	return k, err
}

// recovers injects until the injector, which is never opened anew, works again.
func (s *suite) recovers(in probe.Injector) accepted {
	s.Helper()
	var last error
	for deadline := time.Now().Add(2 * s.Within); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(context.Background(), injectTimeout)
		k, m := s.next(0)
		last = in.Inject(ctx, m)
		cancel()
		if last == nil {
			return accepted{k, time.Now()}
		}
	}
	s.Fatalf("the injector did not recover within %s: %v", 2*s.Within, last)
	return accepted{}
}

// until runs the sink again and again, as the loop does, until it is ready.
func (s *suite) until(sink sinks.Sink) *session {
	s.Helper()
	for deadline := time.Now().Add(2 * s.Within); ; time.Sleep(100 * time.Millisecond) {
		ss := s.start(sink)
		for !ss.feed.Stats().Ready && len(ss.done) == 0 && time.Now().Before(deadline) {
			time.Sleep(time.Millisecond)
		}
		if ss.feed.Stats().Ready {
			return ss
		}
		if !time.Now().Before(deadline) {
			s.Fatalf("the sink was not ready again within %s", 2*s.Within)
		}
	}
}

// again: the same object goes on from its position, or says that it may have missed something.
func (s *suite) again() {
	in := s.injector()
	sink := s.sink()
	ss := s.listen(sink)
	before := s.send(in, 0)
	ss.expect(before)
	ss.stop()

	var away []accepted
	for i := range 5 {
		ctx, cancel := context.WithTimeout(context.Background(), injectTimeout)
		k, m := s.next(uint32(i % s.Lanes))
		err := in.Inject(ctx, m)
		cancel()
		if err == nil {
			away = append(away, accepted{k, time.Now()})
		} else if s.Keeps {
			s.Fatalf("inject %v: %v", k, err)
		}
	}
	ss = s.listen(sink)
	if !s.Keeps {
		s.gapBeforeReady(ss)
		ss.expect(s.send(in, 0))
		ss.stop()
		return
	}
	away = append(away, s.send(in, 0))
	ss.expect(away...)
	ss.only(away...)
	if n := ss.rec.count(gap); n > 0 {
		s.Errorf("a gap was reported although the broker keeps messages")
	}
	ss.stop()
}

func (s *suite) gapBeforeReady(ss *session) {
	s.Helper()
	for _, e := range ss.rec.log() {
		switch e.what {
		case gap:
			if e.reason == "" {
				s.Error("a gap has no reason")
			}
			return
		case ready:
			s.Error("the sink was ready again without having reported a gap")
			return
		}
	}
}

// position: what a sink has read survives the process.
func (s *suite) position() {
	sink := s.sink()
	r, ok := sink.(sinks.Resumer)
	if !s.Keeps {
		if ok {
			s.Error("the sink is a Resumer although its broker keeps nothing")
		}
		return
	}
	if s.Takes && !ok {
		s.note("what is left in the queue is the position")
		return
	}
	if !ok {
		s.Fatal("the broker keeps messages but the sink is no Resumer")
	}
	in := s.injector()
	early := s.send(in, 0) // before the first listener: nobody's

	// Nothing has been read yet, but a start has been taken: that is a position too.
	ss := s.listen(sink)
	if s.Unproven {
		ss.expect(early) // who takes messages gets it
	} else {
		s.eventually("caught up", func() bool { return ss.rec.count(caughtUp) > 0 })
	}
	ss.stop()
	virgin := r.Position()

	var sent []accepted
	for i := range 2 * s.Lanes {
		sent = append(sent, s.send(in, uint32(i%s.Lanes)))
	}
	second, atSecond := s.resumed(virgin)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { // Position may be called while Run runs
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
				second.(sinks.Resumer).Position()
				if r, ok := second.(sinks.Settler); ok {
					r.Settle()
				}
			}
		}
	})
	atSecond.expect(sent...)
	atSecond.only(sent...)
	close(stop)
	wg.Wait()
	atSecond.stop()
	read := second.(sinks.Resumer).Position()

	more := []accepted{s.send(in, 0), s.send(in, uint32(s.Lanes-1))}
	// A part that does not exist (a partition that was, a shard that is gone) is no reason to fail, nor
	// is a position that is not understood, for a part that is none of ours.
	read["no such part"] = "no such position"
	_, atThird := s.resumed(read)
	atThird.expect(more...)
	atThird.only(more...)
	atThird.stop()

	// A monitor that restarts twice before it reads anything has not lost its place.
	delete(read, "no such part")
	idle := s.sink().(sinks.Resumer)
	idle.Resume(read)
	if got := idle.Position(); !maps.Equal(got, read) {
		s.Errorf("a sink that was resumed at %v and has not run says that its position is %v", read, got)
	}
}

// resumed makes a new sink that goes on at pos.
func (s *suite) resumed(pos map[string]string) (sinks.Sink, *session) {
	s.Helper()
	sink := s.sink()
	sink.(sinks.Resumer).Resume(maps.Clone(pos))
	return sink, s.listen(sink)
}

// lookBack: a sink without a position starts at a time in the past, once, and tells what is old.
func (s *suite) lookBack() {
	if _, ok := s.sink().(sinks.LookBacker); ok != s.LooksBack {
		s.Fatalf("the sink is a LookBacker: %t, want %t", ok, s.LooksBack)
	}
	if !s.LooksBack {
		s.note("the broker does not find messages by their time")
		return
	}
	// Some brokers tell their time in whole seconds.
	const apart = 1100 * time.Millisecond
	in := s.injector()
	round := func() (sent []accepted) {
		for i := range 2 * s.Lanes {
			sent = append(sent, s.send(in, uint32(i%s.Lanes)))
		}
		return sent
	}
	old := round()
	time.Sleep(apart)
	since := time.Now()
	time.Sleep(apart)
	past := round()
	bodies := make([][]byte, 300)
	for i := range bodies {
		bodies[i] = []byte("ordinary")
	}
	s.Put(s.T, bodies...) // a backlog, so that what comes behind it takes its time
	past = append(past, round()...)
	time.Sleep(apart)

	sink := s.sink()
	sink.(sinks.LookBacker).LookBack(since)
	ss := s.listen(sink)
	live := round()
	ss.expect(append(live, past...)...)
	ss.not("a heartbeat from before the look-back", old)
	ss.past(past, true)
	ss.past(live, false)
	// Every part has a position afterwards, and none looks back a second time.
	s.eventually("caught up", func() bool { return ss.rec.lastCaughtUp().After(live[len(live)-1].at) })
	ss.stop()
	if n := ss.rec.count(gap); n > 0 {
		s.Errorf("a gap was reported although nothing was missed")
	}
	seen := slices.Concat(old, past, live)
	more := round()
	ss = s.listen(sink)
	ss.expect(more...)
	ss.not("a heartbeat of the former Run", seen)
	ss.past(more, false)
	ss.stop()

	pos := sink.(sinks.Resumer).Position()
	seen, more = append(seen, more...), round()
	resumed := s.sink()
	resumed.(sinks.Resumer).Resume(maps.Clone(pos))
	resumed.(sinks.LookBacker).LookBack(since)
	ss = s.listen(resumed)
	ss.expect(more...)
	ss.not("a heartbeat from before the position", seen)
	ss.past(more, false)
	ss.stop()
	seen = append(seen, more...)

	// Before all that there is, and after it.
	whole := s.sink()
	whole.(sinks.LookBacker).LookBack(since.Add(-time.Hour))
	ss = s.listen(whole)
	ss.expect(seen...)
	ss.stop()
	time.Sleep(apart)
	end := s.sink()
	end.(sinks.LookBacker).LookBack(time.Now())
	ss = s.listen(end)
	more = round()
	ss.expect(more...)
	ss.not("a heartbeat from before the look-back", seen)
	ss.stop()
}

// restart: the broker goes away and comes back. Both ends say so, recover, and nothing is lost,
// repeated or sent late.
func (s *suite) restart() {
	if s.Stop == nil {
		s.note("the harness cannot stop the broker")
		return
	}
	in := s.injector()
	sink := s.sink()
	ss := s.listen(sink)
	before := s.send(in, 0)
	ss.expect(before)
	s.Stop()
	err := ss.ended(noticeWithin)
	if e := classIs(err, conn.Network); e != nil {
		s.Errorf("Run, when the broker had gone: %v", e)
	}
	var refused []key
	for range 3 {
		k, err := s.trouble(in)
		switch {
		case err == nil:
			s.Errorf("heartbeat %v was accepted by a broker that is down", k)
		case probe.IsRefused(err):
			refused = append(refused, k)
		}
	}
	down := s.start(sink)
	if e := classIs(down.ended(noticeWithin), conn.Network); e != nil {
		s.Errorf("Run, while the broker was down: %v", e)
	}
	if down.feed.Stats().Ready {
		s.Error("the sink was ready while the broker was down")
	}
	s.Start()
	away := s.recovers(in)
	ss = s.until(sink)
	want := []accepted{s.send(in, 0)}
	if s.Keeps {
		want = append(want, away)
		if ss.rec.count(gap) > 0 {
			s.Error("a gap was reported although the broker keeps messages")
		}
	} else {
		s.gapBeforeReady(ss)
	}
	ss.expect(want...)
	n := ss.rec.arrivals()
	if n[before.key] > 0 {
		s.Errorf("heartbeat %v was delivered again after the broker's restart", before.key)
	}
	for _, k := range refused {
		if n[k] > 0 {
			s.Errorf("heartbeat %v arrived although its injection was refused", k)
		}
	}
	ss.stop()
}

// ids: an identity belongs to one stored message, whoever reads it.
func (s *suite) ids() {
	sink := s.sink()
	r, ok := sink.(sinks.Resumer)
	if !s.IDs || !s.Keeps || s.Takes || !ok {
		s.note("arrivals carry no identity, or nothing can be read twice")
		return
	}
	in := s.injector()
	ss := s.listen(sink)
	s.eventually("caught up", func() bool { return ss.rec.count(caughtUp) > 0 })
	start := r.Position()
	var sent []accepted
	for i := range 4 * s.Lanes {
		sent = append(sent, s.send(in, uint32(i%s.Lanes)))
	}
	ss.expect(sent...)
	ss.stop()
	_, reader := s.resumed(start)
	reader.expect(sent...)
	reader.stop()

	owner := make(map[uint64]key)
	ids := make(map[key]uint64)
	for _, e := range ss.rec.log() {
		if e.what != arrived {
			continue
		}
		if k, taken := owner[e.arrival.ID]; taken && k != e.key {
			s.Errorf("heartbeats %v and %v have the same identity", k, e.key)
		}
		owner[e.arrival.ID], ids[e.key] = e.key, e.arrival.ID
	}
	for _, e := range reader.rec.log() {
		if e.what == arrived && e.arrival.ID != ids[e.key] {
			s.Errorf("heartbeat %v has the identity %d when it is read again, and had %d", e.key, e.arrival.ID, ids[e.key])
		}
	}
}

// concurrent: an injector is used by several goroutines at once.
func (s *suite) concurrent() {
	in := s.injector()
	ss := s.listen(s.sink())
	var mu sync.Mutex
	var sent []accepted
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 10 {
				ctx, cancel := context.WithTimeout(context.Background(), s.Within)
				k, m := s.next(uint32((g + i) % s.Lanes))
				err := in.Inject(ctx, m)
				cancel()
				if err != nil {
					s.Errorf("inject %v: %v", k, err)
					continue
				}
				mu.Lock()
				sent = append(sent, accepted{k, time.Now()})
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	ss.expect(sent...)
	ss.stop()
}

// batch: many lanes in one request are the same as one request for each.
func (s *suite) batch() {
	in, ok := s.injector().(probe.BatchInjector)
	if !ok {
		s.note("the injector sends one heartbeat at a time")
		return
	}
	ss := s.listen(s.sink())
	var sent []accepted
	for range 3 {
		var ms []*probe.Message
		var ks []key
		for lane := range uint32(s.Lanes) {
			k, m := s.next(lane)
			ks, ms = append(ks, k), append(ms, m)
		}
		errs := make([]error, len(ms))
		for i := range errs {
			errs[i] = errors.New("not overwritten")
		}
		ctx, cancel := context.WithTimeout(context.Background(), s.Within)
		in.InjectBatch(ctx, ms, errs)
		cancel()
		for i, err := range errs {
			if err != nil {
				s.Fatalf("batch: inject %v: %v", ks[i], err)
			}
			sent = append(sent, accepted{ks[i], time.Now()})
		}
	}
	ss.expect(sent...)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, m := s.next(0)
	errs := make([]error, 1)
	if in.InjectBatch(ctx, []*probe.Message{m}, errs); errs[0] == nil {
		s.Error("batch: no error although the context had ended before")
	}
	ss.stop()
}

// cancelled: an injection whose context has ended says so at once, and means it when it says refused.
func (s *suite) cancelled() {
	in := s.injector()
	ss := s.listen(s.sink())
	first := s.send(in, 0)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	k, m := s.next(0)
	began := time.Now()
	err := in.Inject(ctx, m)
	if err == nil {
		s.Error("no error although the context had ended before")
	}
	if took := time.Since(began); took > 3*time.Second {
		s.Errorf("inject took %s although the context had ended before", took)
	}
	ss.expect(first, s.send(in, 0))
	if probe.IsRefused(err) && ss.rec.arrivals()[k] > 0 {
		s.Errorf("heartbeat %v arrived although its injection was refused", k)
	}
	ss.stop()
}

// close: Close is prompt, may be called twice, and nothing goes out after it.
func (s *suite) close() {
	c := s.Inject()
	unused, err := c.Open()
	if err != nil {
		s.Fatalf("injector: open: %v", err)
	}
	in := s.injector()
	ss := s.listen(s.sink())
	ss.expect(s.send(in, 0))
	for _, i := range []probe.Injector{unused, in, in} {
		began := time.Now()
		if err := i.Close(); err != nil {
			s.Errorf("close: %v", err)
		}
		if took := time.Since(began); took > stopWithin {
			s.Errorf("close took %s", took)
		}
	}
	if _, err := s.trouble(in); err == nil {
		s.Error("an injector accepted a heartbeat after it was closed")
	}
	ss.stop()
}

// check: Check, Run and Inject all tell what is wrong with an end that cannot work.
func (s *suite) check() {
	in, sink := s.injector(), s.sink()
	ss := s.listen(s.sink())
	for end, v := range map[string]any{"injector": in, "sink": sink} {
		c, ok := v.(probe.Checker)
		if !ok {
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), s.Within)
		if err := c.Check(ctx); err != nil {
			s.Errorf("check of the %s, which works: %v", end, err)
		}
		cancel()
	}
	ss.stop()
	for _, b := range s.Broken {
		if b.Inject != nil {
			in, err := b.Inject().Open()
			if err != nil {
				s.Errorf("%s: open of the injector: %v", b.Name, err)
				continue
			}
			s.broken(b, "injector", in)
			if k, err := s.trouble(in); err == nil {
				s.Errorf("%s: heartbeat %v was accepted", b.Name, k)
			} else if e := classIs(err, b.Class); e != nil {
				s.Errorf("%s: inject: %v", b.Name, e)
			} else if !probe.IsRefused(err) && !b.Unknown {
				s.Errorf("%s: inject leaves open whether the heartbeat is in the pipeline: %v", b.Name, err)
			}
			if err := in.Close(); err != nil {
				s.Errorf("%s: close of the injector: %v", b.Name, err)
			}
		}
		if b.Sink != nil {
			sink, err := b.Sink().Open()
			if err != nil {
				s.Errorf("%s: open of the sink: %v", b.Name, err)
				continue
			}
			s.broken(b, "sink", sink)
			ss := s.start(sink)
			if e := classIs(ss.ended(noticeWithin), b.Class); e != nil {
				s.Errorf("%s: Run: %v", b.Name, e)
			}
			if ss.feed.Stats().Ready {
				s.Errorf("%s: the sink was ready", b.Name)
			}
		}
	}
}

// broken sees that Check finds what is wrong.
func (s *suite) broken(b Broken, end string, v any) {
	s.Helper()
	c, ok := v.(probe.Checker)
	if !ok || b.Unseen {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), s.Within)
	defer cancel()
	if err := c.Check(ctx); err == nil {
		s.Errorf("%s: check of the %s found nothing wrong", b.Name, end)
	} else if e := classIs(err, b.Class); e != nil {
		s.Errorf("%s: check of the %s: %v", b.Name, end, e)
	}
}
