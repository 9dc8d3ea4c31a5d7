package monitor

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/config"
	"github.com/lag-monitor/lag-monitor/internal/heartbeat"
	"github.com/lag-monitor/lag-monitor/internal/ledger"
	"github.com/lag-monitor/lag-monitor/internal/metrics"
	"github.com/lag-monitor/lag-monitor/sinks"
)

// neighbours are the places next to a watch among the others of its probe. They never change after bind.
type neighbours struct {
	from *watch   // the station before; nil: the head
	next []*watch // the stations after it
	// hop is the metrics of the way from the one before; nil where the probe has no hops.
	hop *metrics.Hop
}

// join puts the watches of a probe into their places: a hop is passed by what comes after it in the list.
// Dead-letter queues are nobody's station.
func (p *probeRun) join() {
	var last *watch
	for _, w := range p.watches {
		if !w.expects() {
			continue
		}
		w.from = last
		if last != nil {
			last.next = append(last.next, w)
		}
		if w.isHop() {
			last, p.hops = w, true
		}
	}
	for _, w := range p.watches {
		if p.hops && w.expects() {
			w.hop = p.metrics.Hop(w.before(), w.sink.cfg.Name)
		}
	}
}

func (w *watch) isHop() bool { return w.sink.cfg.Role == config.Hop }

// way names the way to w.
func (w *watch) way() [2]string { return [2]string{w.before(), w.sink.cfg.Name} }

// before is the name of the station before.
func (w *watch) before() string {
	if w.from == nil {
		return headStation
	}
	return w.from.sink.cfg.Name
}

// maxKeep bounds for how many heartbeats of a lane a hop remembers when each came.
const maxKeep = 4096

// keep is how many those are: what is on the way to the next station while it is not later than its
// deadline by as much again.
func (w *watch) keep() int {
	if !w.isHop() {
		return 0
	}
	c := w.p.cfg
	return int(min((c.Expiry+2*c.Timeout)/c.Interval+1, maxKeep))
}

// hopTime is the time between two stations whose latencies are known. The head's is minus the expiry: the
// pipeline had the heartbeat so long before it was due. The time that it was asked to hold the heartbeat
// does not count: of a way that begins before the due time and ends after it only the rest does.
func hopTime(from, to time.Duration) time.Duration {
	if to >= 0 {
		from = max(from, 0)
	}
	return max(to-from, 0) // a station that is read more rarely than the next one seems to come after it
}

// passed observes the ways to and from a station at which a heartbeat has arrived for the first time.
func (w *watch) passed(h *heartbeat.Heartbeat, latency time.Duration) {
	if w.hop == nil {
		return
	}
	if w.from == nil {
		w.hop.Latency.Observe(hopTime(-h.Expiry, latency).Seconds())
	} else if l := w.from.accountOf(h); l != nil {
		if r, ok := l.Told(h.Lane, h.Seq); ok && r.Arrived {
			w.hop.Latency.Observe(hopTime(r.Latency, latency).Seconds())
		}
	}
	for _, n := range w.next {
		if l := n.accountOf(h); l != nil {
			if r, ok := l.Told(h.Lane, h.Seq); ok && r.Arrived {
				n.hop.Latency.Observe(hopTime(latency, r.Latency).Seconds())
			}
		}
	}
}

// accountOf returns the account that a heartbeat is in; nil if it is in none.
func (w *watch) accountOf(h *heartbeat.Heartbeat) *ledger.Ledger {
	return w.accountFrom(source{h.Instance, h.Epoch})
}

// accountFrom is the same by who sent it.
func (w *watch) accountFrom(from source) *ledger.Ledger {
	if w.ledger != nil && from == (source{w.p.instance, w.p.epoch}) {
		return w.ledger
	}
	if r := w.runOf(from); r != nil {
		return r.ledger
	}
	return nil
}

// runOf is find without a word on who was heard last.
func (w *watch) runOf(from source) *run {
	for _, r := range w.runs {
		if r.source == from {
			return r
		}
	}
	return nil
}

// stuck finds out whether heartbeats have passed the station before w and do not come to w: since when.
// What is known of the limit of the lag counts when it is shorter than the timeout: by then somebody is
// called, and wants to know.
func (w *watch) stuck(now time.Time) (since time.Time, ok bool) {
	p := w.p
	if w.hop == nil {
		return time.Time{}, false
	}
	w.sync()
	here, from := w.ledger, source{p.instance, p.epoch}
	if here == nil {
		// Of several senders the one that was heard last: the others may have ended.
		o := w
		if w.from != nil {
			o = w.from
		}
		if len(o.runs) == 0 {
			return time.Time{}, false
		}
		from = o.runs[len(o.runs)-1].source
		here = w.accountFrom(from)
	}
	var before *ledger.Ledger
	if w.from != nil {
		if before = w.from.accountFrom(from); before == nil {
			return time.Time{}, false
		}
	}
	if here == nil {
		return time.Time{}, false
	}
	patience := p.cfg.Timeout
	if l := p.cfg.Page.Lag; l > 0 {
		patience = min(patience, l)
	}
	due, ok := here.Stuck(before, patience)
	if !ok {
		return time.Time{}, false
	}
	return now.Add(-p.m.instant(now).Sub(due)).Round(0), true
}

// stuckStatus is the first way, in the order of the stations, on which heartbeats stay.
func (p *probeRun) stuckStatus(now time.Time) *StuckStatus {
	for _, w := range p.watches {
		if since, ok := w.stuck(now); ok {
			return &StuckStatus{From: w.before(), To: w.sink.cfg.Name, Since: since}
		}
	}
	return nil
}

// deaths is how many deaths of a probe's heartbeats are remembered with their words.
const deaths = 16

// death is what a dead-letter queue says of a heartbeat.
type death struct {
	source
	lane  uint32
	seq   uint64
	words string
}

// deathOf puts a death into the words of the accounts.
func deathOf(d *sinks.Death) ledger.Death {
	if d == nil {
		return ledger.DeadOther
	}
	switch d.Reason {
	case sinks.DeadRejected:
		return ledger.DeadRejected
	case sinks.DeadExpired:
		return ledger.DeadExpired
	case sinks.DeadMaxLen:
		return ledger.DeadMaxLen
	case sinks.DeadDeliveryLimit:
		return ledger.DeadDeliveryLimit
	}
	return ledger.DeadOther
}

// deathNames stand for the deaths of the accounts where their own words are forgotten.
var deathNames = map[ledger.Death]string{ledger.DeadRejected: sinks.DeadRejected, ledger.DeadExpired: sinks.DeadExpired,
	ledger.DeadMaxLen: sinks.DeadMaxLen, ledger.DeadDeliveryLimit: sinks.DeadDeliveryLimit}

// rememberDeath keeps the words of a death, in place of the oldest.
func (p *probeRun) rememberDeath(h *heartbeat.Heartbeat, sink string, d *sinks.Death) {
	var words []string
	if d != nil {
		if d.Reason != "" {
			words = append(words, strings.Clone(d.Reason))
		}
		if d.Queue != "" {
			words = append(words, "from "+d.Queue)
		}
		if d.Count > 1 {
			words = append(words, fmt.Sprintf("%d times", d.Count))
		}
	}
	words = append(words, "found in "+sink)
	if len(p.deaths) >= deaths {
		p.deaths = slices.Delete(p.deaths, 0, 1)
	}
	p.deaths = append(p.deaths, death{source{h.Instance, h.Epoch}, h.Lane, h.Seq, strings.Join(words, ", ")})
}

// deathWords returns what is known of a death.
func (p *probeRun) deathWords(from source, lane uint32, seq uint64, d ledger.Death) string {
	for _, k := range slices.Backward(p.deaths) {
		if k.source == from && k.lane == lane && k.seq == seq {
			return k.words
		}
	}
	return deathNames[d]
}
