package monitor

import (
	"math"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/config"
	"github.com/lag-monitor/lag-monitor/internal/heartbeat"
	"github.com/lag-monitor/lag-monitor/internal/ledger"
)

const (
	historySteps = 360 // six hours
	historyStep  = time.Minute
)

// history is the largest lag and latency of a pair in each of the last 360 minutes. It takes 1.5 KiB.
type history struct {
	minute       int64 // since 1970, of the newest step; 0 before the first
	first        int64 // of the oldest step ever
	lag, latency [historySteps]small
}

// small is a number in 16 bits: a sign, six bits of exponent and nine of fraction, so true to one part in
// a thousand between a nanosecond and a century of seconds.
type small uint16

// unknown is the small that is no number: minus zero.
const unknown small = 1 << 15

const (
	smallBias = 31
	smallBits = 23 - 9 // that a float32 has more
)

func toSmall(v float64) small {
	b := math.Float32bits(float32(v))
	sign := small(b >> 31 << 15)
	b = b&(1<<31-1) + 1<<(smallBits-1)
	switch e := int(b>>23) - 127 + smallBias; {
	case e <= 0:
		return 0
	case e > 63:
		return sign | (unknown - 1)
	default:
		return sign | small(e)<<9 | small(b>>smallBits)&(1<<9-1)
	}
}

func (s small) float() float64 {
	if s&(unknown-1) == 0 {
		return 0
	}
	e := uint32(s>>9&63) + 127 - smallBias
	return float64(math.Float32frombits(uint32(s)>>15<<31 | e<<23 | uint32(s&(1<<9-1))<<smallBits))
}

// raise makes s the larger of itself and v.
func (s *small) raise(v float64) {
	if *s == unknown || v > s.float() {
		*s = toSmall(v)
	}
}

// step moves on to the minute, whose steps in between are unknown.
func (h *history) step(minute int64) {
	if h.minute == 0 {
		h.minute, h.first = minute-1, minute
	}
	h.minute = max(h.minute, minute-historySteps)
	for h.minute < minute {
		h.minute++
		h.lag[h.minute%historySteps], h.latency[h.minute%historySteps] = unknown, unknown
	}
}

func (h *history) now() (lag, latency *small) {
	return &h.lag[h.minute%historySteps], &h.latency[h.minute%historySteps]
}

func minuteOf(t time.Time) int64 { return t.Unix() / int64(historyStep/time.Second) }

// rate counts arrivals by steps of five seconds, over a minute.
type rate struct {
	step, first int64
	n           [rateSteps]uint32
}

const (
	rateSteps = 12
	rateStep  = 5 * time.Second
)

func (r *rate) roll(t ledger.Instant) {
	step := int64(t) / int64(rateStep)
	if r.first == 0 {
		r.first, r.step = step+1, step // 0 is none yet
	}
	r.step = max(r.step, step-rateSteps)
	for r.step < step {
		r.step++
		r.n[r.step%rateSteps] = 0
	}
}

func (r *rate) add(t ledger.Instant) {
	r.roll(t)
	r.n[r.step%rateSteps]++
}

// perSecond is the mean over the last minute, or since the first look when that is less.
func (r *rate) perSecond(t ledger.Instant) float64 {
	r.roll(t)
	var sum uint32
	for _, n := range r.n {
		sum += n
	}
	from := max(r.first-1, r.step-rateSteps+1)
	since := time.Duration(int64(t) - from*int64(rateStep))
	return float64(sum) / max(since, time.Second).Seconds()
}

// losses counts what was decided in steps of five minutes, over two hours: what the rules of drops look at.
type losses struct {
	step            int64
	onTime, dropped [lossSteps]uint32
	seen            [2]uint64 // the counts up to now
	begun           bool
}

const (
	lossSteps = 25 // one more: the newest is not whole
	lossStep  = 5 * time.Minute
	halfHour  = int(30 * time.Minute / lossStep)
	twoHours  = int(2 * time.Hour / lossStep)
	// A share means something from ten outcomes on, and one drop is chance, as the rules have it.
	leastDecided, leastDropped = 10, 2
)

func (l *losses) see(t ledger.Instant, onTime, dropped uint64) {
	step := int64(t) / int64(lossStep)
	if !l.begun {
		// What an account has taken over was decided before.
		l.begun, l.step, l.seen = true, step, [2]uint64{onTime, dropped}
	}
	l.step = max(l.step, step-lossSteps)
	for l.step < step {
		l.step++
		l.onTime[l.step%lossSteps], l.dropped[l.step%lossSteps] = 0, 0
	}
	l.onTime[l.step%lossSteps] += uint32(onTime - l.seen[0])
	l.dropped[l.step%lossSteps] += uint32(dropped - l.seen[1])
	l.seen = [2]uint64{onTime, dropped}
}

func (l *losses) sum(steps int) (dropped, decided uint64) {
	for i := range int64(steps + 1) {
		if at := l.step - i; at >= 0 {
			dropped += uint64(l.dropped[at%lossSteps])
			decided += uint64(l.onTime[at%lossSteps])
		}
	}
	return dropped, decided + dropped
}

// ratio is the share of drops as the rules see it; false when there are too few to tell.
func (l *losses) ratio() (float64, bool) {
	lately, _ := l.sum(twoHours)
	dropped, decided := l.sum(halfHour)
	if decided < leastDecided {
		dropped, decided = l.sum(twoHours)
	}
	if decided < leastDecided || lately < leastDropped {
		return 0, false
	}
	return float64(dropped) / float64(decided), true
}

// crossing is since when the limits of one severity have been crossed; zero when they are not.
type crossing struct{ lag, drops time.Time }

// afterLag is for how long after a page for lag the drops are those that the page was about, as in the rules.
const afterLag = 45 * time.Minute

// observeEvery is how often what is shown of a probe is brought up to date at most.
const observeEvery = time.Second

// observe brings history and limits up to date. It is called at every tick, arrival and look; between them
// nothing changes but the lag, which grows evenly. The caller holds the lock.
func (p *probeRun) observe(now time.Time) {
	before := p.observed
	if now.Sub(before) < observeEvery {
		return
	}
	p.observed = now
	paused := p.pausedAt(now)
	var (
		lag   time.Duration
		seen  bool
		ratio float64
	)
	for _, w := range p.watches {
		if !w.expects() {
			continue
		}
		l, ok := w.observe(now, paused)
		if ok && (l > lag || !seen) {
			lag, seen = l, true
		}
		if r, ok := w.losses.ratio(); ok {
			ratio = max(ratio, r)
		}
	}
	if paused || !seen {
		p.crossed = [2]crossing{}
		return
	}
	for i, t := range p.limits() {
		c := &p.crossed[i]
		switch over := lag - t.Lag; {
		case t.Lag <= 0 || over <= 0:
			c.lag = time.Time{}
		case c.lag.IsZero():
			c.lag = now.Add(-over) // it has grown evenly since then
			if c.lag.Before(before) {
				c.lag = before
			}
		}
	}
	page := p.cfg.Page
	if since := p.crossed[0].lag; !since.IsZero() && now.Sub(since) >= page.For {
		p.lagHigh = now
	}
	for i, t := range p.limits() {
		c := &p.crossed[i]
		switch {
		case t.DropRatio <= 0 || ratio <= t.DropRatio || !p.lagHigh.IsZero() && now.Sub(p.lagHigh) < afterLag:
			c.drops = time.Time{}
		case c.drops.IsZero():
			c.drops = now
		}
	}
}

// limits are those of the page and of the ticket.
func (p *probeRun) limits() [2]config.Thresholds {
	return [2]config.Thresholds{p.cfg.Page, p.cfg.Ticket}
}

// limitStatus is nil when there is no limit.
func (p *probeRun) limitStatus(i int) *LimitStatus {
	t, c := p.limits()[i], p.crossed[i]
	if t.IsZero() {
		return nil
	}
	return &LimitStatus{Lag: t.Lag.Seconds(), For: t.For.Seconds(), DropRatio: t.DropRatio, LagSince: c.lag.Round(0), DropsSince: c.drops.Round(0)}
}

// observe brings the history up to date, and returns the lag.
func (w *watch) observe(now time.Time, paused bool) (lag time.Duration, seen bool) {
	at, minute := w.p.m.instant(now), minuteOf(now)
	h := &w.history
	if h.minute > 0 && !paused {
		// Until now nothing was seen: at its end the lag of each minute was the largest.
		for m := max(h.minute, minute-historySteps); m < minute; m++ {
			end := at.Add(-now.Sub(time.Unix((m+1)*60, 0)))
			h.step(m)
			if lag, ok := w.maxLag(end); ok {
				l, _ := h.now()
				l.raise(lag.Seconds())
			}
		}
	}
	h.step(minute)
	lag, seen = w.maxLag(at)
	if seen && !paused {
		l, _ := h.now()
		l.raise(lag.Seconds())
	}
	c := w.sums()
	w.losses.see(at, c.OnTime, c.Drops())
	return lag, seen
}

// sums adds up the accounts.
func (w *watch) sums() ledger.Counts {
	sum := w.past
	w.ledgers(func(l *ledger.Ledger) { sum = sum.Plus(l.Counts()) })
	return sum
}

// maxLag is the largest lag of all lanes, as it is exported; false when nothing was ever received.
func (w *watch) maxLag(t ledger.Instant) (lag time.Duration, seen bool) {
	if w.ledger != nil {
		lag, seen = w.ledger.MaxLag(t)
	} else {
		for _, l := range w.lanes(t, nil) {
			if l.Seen {
				lag, seen = max(lag, l.Lag), true
			}
		}
	}
	if seen || len(w.stamps) == 0 {
		return lag, seen
	}
	// As the rules do for a process that has received nothing yet.
	for _, st := range w.stamps {
		lag = max(lag, t.Sub(w.p.m.instant(st.due)))
	}
	return lag, true
}

// saw notes an arrival for what is shown of the watch. lag is that of the lane just before it, the largest
// since the last one.
func (w *watch) saw(h *heartbeat.Heartbeat, out ledger.Outcome, at ledger.Instant, lag time.Duration, hasLag bool) {
	if !out.First {
		return
	}
	w.rate.add(at)
	w.passed(h, out.Latency)
	if w.history.minute == 0 {
		return
	}
	l, late := w.history.now()
	late.raise(out.Latency.Seconds())
	if hasLag && !w.p.paused() {
		l.raise(lag.Seconds())
	}
}

func (w *watch) historyStatus(from, newest int64) SinkHistory {
	out := SinkHistory{Sink: w.sink.cfg.Name}
	points := func(of *[historySteps]small) []*float64 {
		list := make([]*float64, 0, historySteps)
		for m := from; m <= newest; m++ {
			var v *float64
			if s := of[m%historySteps]; m >= w.history.first && m > w.history.minute-historySteps && m <= w.history.minute && s != unknown {
				f := s.float()
				v = &f
			}
			list = append(list, v)
		}
		return list
	}
	out.Lag, out.Latency = points(&w.history.lag), points(&w.history.latency)
	return out
}
