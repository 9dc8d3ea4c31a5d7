package faults_test

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"sort"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/heartbeat"
	"github.com/lag-monitor/lag-monitor/internal/journal"
	"github.com/lag-monitor/lag-monitor/internal/servers"
)

// soaked is one probe of the soak: its account is held against the truth.
type soaked struct {
	name  string
	pipe  *soakPipe
	lives []*account // one after the other; the last one is the current one
}

// account is the account of one probe from the start of the process, or from a change of the probe, until the
// next one.
type account struct {
	began time.Time // nothing that was sent before is its own
	ended time.Time // zero while it lasts

	// taken are the open heartbeats of the process before that it took over from the journal; true when the
	// journal itself says that they may end in doubt.
	taken map[beatID]bool
	// inherits is set when it took over heartbeats in memory: how many is in the metrics, and which ones is not known.
	inherits bool
	first    bool // of a process that began without a journal: all that it counts is its own

	scrapes []figures // since the last reckoning
	last    figures
	base    *marks // at the last reckoning

	left      map[beatID]bool // open in the journal when it was killed
	written   time.Time       // when that was
	unchecked bool            // it ended by a change of the probe
}

// beatID names a heartbeat of a probe.
type beatID struct {
	epoch uint64
	lane  uint32
	seq   uint64
}

func idOf(b *beat) beatID { return beatID{b.Epoch, b.Lane, b.Seq} }

// figures are what one scrape says of a probe.
type figures struct {
	began, at                                                      time.Time // of the scrape: before and after
	accepted, unknown, restored, onTime, late, dropped, doubted    int
	inFlight, duplicates, redeliveries, reordered, observed, stray int
}

// marks are counts of the truth and of the daemon that only their differences are compared of.
type marks struct {
	said                figures
	came, copies, older int
}

func figuresOf(began time.Time, s servers.Scrape, probe string) figures {
	sum := func(name string, labels ...string) int {
		return int(math.Round(s.Sum(name, append([]string{"probe", probe}, labels...)...)))
	}
	return figures{
		began: began, at: time.Now(),
		accepted: sum("heartbeats_sent_total", "result", "success"), unknown: sum("heartbeats_sent_total", "result", "unknown"),
		restored: sum("heartbeats_restored_total"), inFlight: sum("heartbeats_in_flight"),
		onTime: sum("heartbeats_received_total", "timing", "on_time"), late: sum("heartbeats_received_total", "timing", "late"),
		dropped: sum("heartbeats_dropped_total"), doubted: sum("heartbeats_indeterminate_total"),
		duplicates: sum("heartbeats_duplicated_total", "kind", "duplicate"), redeliveries: sum("heartbeats_duplicated_total", "kind", "redelivery"),
		reordered: sum("heartbeats_reordered_total"), observed: sum("heartbeat_latency_seconds_count"),
		stray: sum("heartbeats_unaccounted_total") + sum("negative_latencies_total"),
	}
}

// wentBackFrom names what is lower than in the scrape before.
func (f figures) wentBackFrom(b figures) (names []string) {
	for name, v := range map[string][2]int{
		"accepted": {b.accepted, f.accepted}, "unknown": {b.unknown, f.unknown}, "restored": {b.restored, f.restored},
		"on time": {b.onTime, f.onTime}, "late": {b.late, f.late}, "dropped": {b.dropped, f.dropped}, "indeterminate": {b.doubted, f.doubted},
		"duplicates": {b.duplicates, f.duplicates}, "redeliveries": {b.redeliveries, f.redeliveries}, "reordered": {b.reordered, f.reordered},
		"observed": {b.observed, f.observed}, "unaccounted": {b.stray, f.stray},
	} {
		if v[1] < v[0] {
			names = append(names, fmt.Sprintf("%s from %d to %d", name, v[0], v[1]))
		}
	}
	return names
}

// tally is the truth about some heartbeats.
type tally struct {
	inHead, inTime, lateCame, lost, edge, copies, older int
}

func (y *tally) add(b *beat) {
	switch {
	case b.copies == 0:
		y.lost++
	case b.inTime():
		y.inTime++
	default:
		y.lateCame++
	}
	if b.copies > 0 {
		y.copies += b.copies - 1
		if b.onEdge() {
			y.edge++
		}
	}
	if b.older {
		y.older++
	}
	if b.inHead || b.copies > 0 {
		y.inHead++
	}
}

func (y tally) came() int { return y.inTime + y.lateCame }

// own returns the heartbeats of each life of a probe, in the order of the lives.
func (p *soaked) own(beats []*beat) [][]*beat {
	first := map[uint64]time.Time{}
	for _, b := range beats {
		if at, ok := first[b.Epoch]; !ok || b.Sent.Before(at) {
			first[b.Epoch] = b.Sent
		}
	}
	lives := make([][]*beat, len(p.lives))
	life := map[uint64]int{}
	for epoch, at := range first {
		for n, l := range p.lives {
			if !at.Before(l.began) {
				life[epoch] = n
			}
		}
	}
	for _, b := range beats {
		lives[life[b.Epoch]] = append(lives[life[b.Epoch]], b)
	}
	return lives
}

// total is a line of the table at the end.
type total struct {
	beats, onTime, late, dropped, doubted, lost int
	falseDrops, missedDrops, vanished           int
}

// reckon compares what a probe's lives have counted with what is in the queues. The last life has nothing in flight
// any more. wrong is called for each disagreement.
func (p *soaked) reckon(beats []*beat, wrong func(format string, args ...any)) total {
	var sum total
	lives := p.own(beats)
	byID := map[beatID]*beat{}
	for _, b := range beats {
		byID[idOf(b)] = b
	}
	for n, l := range p.lives {
		last := n == len(p.lives)-1
		var own, taken tally
		for _, b := range lives[n] {
			own.add(b)
		}
		takenBeats := []*beat{}
		mayDoubt := 0
		for id, maybe := range l.taken {
			b := byID[id]
			if b != nil {
				taken.add(b)
				takenBeats = append(takenBeats, b)
			}
			// A sender's request that a listener has answered is not repeated for the next process.
			if b == nil || maybe || p.pipe.forgets {
				mayDoubt++
			}
		}
		if l.inherits && n > 0 {
			for _, before := range lives[:n] {
				for _, b := range before {
					if b.Deadline().After(l.began.Add(-time.Minute)) {
						taken.add(b)
						takenBeats = append(takenBeats, b)
					}
				}
			}
			mayDoubt = l.last.restored
		}
		f := l.last
		p.early(l, slices.Concat(takenBeats, lives[n]), wrong)
		sum.beats += own.inHead
		sum.onTime, sum.late, sum.dropped, sum.doubted = sum.onTime+f.onTime, sum.late+f.late, sum.dropped+f.dropped, sum.doubted+f.doubted
		sum.lost += own.lost
		if !last {
			if !l.unchecked {
				mine := lives[n]
				if !l.inherits {
					mine = append(takenBeats, mine...)
				}
				p.forgotten(l, mine, wrong)
			}
			continue
		}

		say := func(format string, args ...any) {
			f := f
			f.began, f.at = time.Time{}, time.Time{} // they say nothing here
			wrong("%s, life %d: %s; own %+v, taken over %d: %+v; the daemon says %+v", p.name, n+1, fmt.Sprintf(format, args...), own, len(l.taken), taken, f)
		}
		if f.inFlight != 0 {
			say("%d are in flight", f.inFlight)
		}
		if f.accepted+f.unknown+f.restored != f.onTime+f.dropped+f.doubted+f.inFlight {
			say("that does not add up")
		}
		if own.inHead > f.accepted+f.unknown {
			say("the head holds %d, and %d were accepted and %d perhaps", own.inHead, f.accepted, f.unknown)
		}
		never := f.unknown
		if own.inHead > f.accepted {
			never = f.accepted + f.unknown - own.inHead
		}
		vanished := max(0, f.accepted-own.inHead) // acknowledged by the broker, and not there
		gone := own.lost + vanished
		notInTime := gone + own.lateCame
		falseDrops := f.dropped - (notInTime + own.edge)
		missed := gone - f.dropped - max(0, f.doubted-never)
		allowed := min(f.unknown, never+own.lost+own.lateCame+own.edge)
		lowOnTime, highOnTime := own.inTime-own.edge, own.inTime+own.edge
		lowCame, highCame := own.came(), own.came()
		switch {
		case l.inherits:
			falseDrops -= min(f.restored, taken.lost+taken.lateCame+taken.edge)
			allowed += mayDoubt
			highOnTime += min(f.restored, taken.inTime+taken.edge)
			highCame += min(f.restored, taken.came())
		case l.taken != nil:
			if f.restored != len(l.taken) {
				say("%d were open in the journal, %d are restored", len(l.taken), f.restored)
			}
			falseDrops -= taken.lost + taken.lateCame + taken.edge
			missed += taken.lost - mayDoubt
			allowed += mayDoubt
			lowOnTime += taken.inTime - taken.edge
			highOnTime += taken.inTime + taken.edge
			lowCame, highCame = lowCame+taken.came(), highCame+taken.came()
			if p.pipe.forgets {
				lowOnTime, lowCame = own.inTime-own.edge, own.came()
			}
		}
		if falseDrops > 0 {
			say("%d dropped too many", falseDrops)
		}
		if missed > 0 {
			say("%d drops missed", missed)
		}
		if f.doubted > allowed {
			say("%d in doubt; at most %d cannot be known", f.doubted, allowed)
		}
		if f.onTime < lowOnTime || f.onTime > highOnTime {
			say("%d to %d came in time", lowOnTime, highOnTime)
		}
		if came := f.onTime + f.late; came < lowCame || came > highCame {
			say("%d to %d came", lowCame, highCame)
		}
		if f.stray != 0 {
			say("%d belong to nobody, or came before they were due", f.stray)
		}
		now := &marks{said: f, came: own.came(), copies: own.copies, older: own.older}
		before := l.base
		if before == nil && l.first {
			before = &marks{}
		}
		if before != nil {
			for what, d := range map[string][2]int{
				"duplicates": {f.duplicates - before.said.duplicates, now.copies - before.copies},
				"reordered":  {f.reordered - before.said.reordered, now.older - before.older},
				"latencies":  {f.observed - before.said.observed, now.came - before.came},
				"read twice": {f.redeliveries - before.said.redeliveries, 0},
			} {
				if d[0] != d[1] {
					say("%s since the last reckoning: the daemon says %d, the queue %d", what, d[0], d[1])
				}
			}
		}
		l.base = now
		sum.falseDrops, sum.missedDrops, sum.vanished = max(0, falseDrops), max(0, missed), vanished
	}
	return sum
}

// early looks for scrapes that have said more than was true at their time.
func (p *soaked) early(l *account, beats []*beat, wrong func(format string, args ...any)) {
	const near = 100 * time.Millisecond // between a heartbeat's arrival and the broker's time of it, by two clocks
	var overdue, inTime, late, sent []time.Time
	for _, b := range beats {
		if b.inHead || b.copies > 0 {
			sent = append(sent, b.Sent)
		}
		if !b.inTime() || b.onEdge() {
			overdue = append(overdue, b.Deadline())
		}
		if b.copies > 0 && (b.inTime() || b.onEdge()) {
			inTime = append(inTime, b.entered)
		}
		if b.copies > 0 && (!b.inTime() || b.onEdge()) {
			late = append(late, b.entered)
		}
	}
	until := func(times []time.Time, t time.Time) int {
		return sort.Search(len(times), func(i int) bool { return times[i].After(t) })
	}
	for _, times := range [][]time.Time{overdue, inTime, late, sent} {
		slices.SortFunc(times, time.Time.Compare)
	}
	for _, f := range l.scrapes {
		at := f.at.Add(near)
		// What the broker has acknowledged and lost again is a drop.
		vanished := max(0, f.accepted+f.restored-until(sent, at))
		for what, d := range map[string][2]int{
			"dropped": {f.dropped, until(overdue, at) + vanished}, "on time": {f.onTime, until(inTime, at)}, "late": {f.late, until(late, at)},
		} {
			if d[0] > d[1] {
				wrong("%s at %s: %s %d; it can have been %d at most", p.name, f.at.Format(time.TimeOnly), what, d[0], d[1])
			}
		}
	}
	l.scrapes = nil
}

// forgotten looks for lost heartbeats that a life which was killed has neither counted nor left in the journal.
func (p *soaked) forgotten(l *account, beats []*beat, wrong func(format string, args ...any)) {
	const near = time.Second
	lost, excused := 0, 0
	for _, b := range beats {
		if b.copies > 0 {
			continue
		}
		lost++
		_, left := l.left[idOf(b)]
		if left || b.Sent.After(l.written.Add(-near)) || b.Deadline().After(l.last.began.Add(-near)) {
			excused++ // the next one has it, or the kill took it away, or nobody has read what was counted
		}
	}
	if short := lost - excused - l.last.dropped - l.last.doubted; short > 0 {
		wrong("%s: the life that ended at %s has forgotten %d of %d lost heartbeats", p.name, l.ended.Format(time.TimeOnly), short, lost)
	}
}

// leftBehind returns what is open in a journal, by probe.
func leftBehind(st *journal.State) map[string]map[beatID]bool {
	left := map[string]map[beatID]bool{}
	for _, b := range st.Blocks {
		if left[b.Probe] == nil {
			left[b.Probe] = map[beatID]bool{}
		}
		for _, o := range b.Heartbeats(nil) {
			left[b.Probe][beatID{b.Epoch, b.Lane, o.Seq}] = o.Maybe || o.Missed
		}
	}
	return left
}

// byProbe returns the heartbeats of a pipeline, by probe.
func (w *truth) byProbe() map[string][]*beat {
	all := map[string][]*beat{}
	for _, b := range w.beats {
		all[b.Probe] = append(all[b.Probe], b)
	}
	return all
}

// resources are what the daemon takes at one moment of quiet.
type resources struct {
	at                time.Duration // since the beginning
	process           int           // counts the daemon's processes
	goroutines, files int
	memory            float64 // bytes
	beats, faults     int     // so far
}

// leaks says what the daemon takes more of at the end than after it has warmed up, which is a fifth of the time.
func leaks(all []resources) (wrong []string) {
	if len(all) == 0 {
		return []string{"nothing was measured"}
	}
	// Connections that are kept for the next request come and go.
	const few = 10
	fifth := func(rs []resources) int { return min(len(rs), max(3, len(rs)/5)) }
	middle := func(rs []resources, of func(resources) float64) float64 {
		var v []float64
		for _, r := range rs[len(rs)-fifth(rs):] {
			v = append(v, of(r))
		}
		slices.Sort(v)
		return v[len(v)/2]
	}
	most := func(rs []resources, of func(resources) float64) float64 {
		worst := 0.0
		for _, r := range rs[:fifth(rs)] {
			worst = max(worst, of(r))
		}
		return worst
	}
	compare := func(name string, rs []resources) {
		for what, of := range map[string]func(resources) float64{
			"goroutines": func(r resources) float64 { return float64(r.goroutines) },
			"open files": func(r resources) float64 { return float64(r.files) },
		} {
			if start, end := most(rs, of), middle(rs, of); end > start+few {
				wrong = append(wrong, fmt.Sprintf("%s: %v %s at first, %v at the end", name, start, what, end))
			}
		}
		memory := func(r resources) float64 { return r.memory }
		if start, end := most(rs, memory), middle(rs, memory); end > start*1.2+10e6 {
			wrong = append(wrong, fmt.Sprintf("%s: %.0f MB at first, %.0f MB at the end", name, start/1e6, end/1e6))
		}
	}
	compare("in all", all)
	lives := map[int][]resources{}
	for _, r := range all {
		lives[r.process] = append(lives[r.process], r)
	}
	for _, n := range slices.Sorted(maps.Keys(lives)) {
		if len(lives[n]) >= 10 {
			compare(fmt.Sprintf("process %d", n), lives[n])
		}
	}
	return wrong
}

// dueOf reads when the heartbeat in a message is due, and its deadline; the zero time when there is none.
func dueOf(keys *heartbeat.Keyring, body []byte) (due, deadline time.Time) {
	_, token, _, ok := heartbeat.Next(body)
	var h heartbeat.Heartbeat
	if !ok || keys.Decode(token, &h) != nil {
		return time.Time{}, time.Time{}
	}
	return h.Due(), h.Deadline()
}
