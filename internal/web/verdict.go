package web

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/monitor"
)

// severity orders what is shown: the person on call reads from the top.
type severity int

const (
	fine    severity = iota
	waiting          // nothing known yet
	paused           // somebody wants to know nothing for a while
	ticket           // something is wrong, nobody is hurt
	trouble          // users feel it, or nobody can tell
)

// Class is the CSS class, and the word in the API.
func (s severity) Class() string {
	return [...]string{"fine", "waiting", "paused", "ticket", "trouble"}[s]
}

// The words for what users feel.
const (
	feelNothing = "no"
	feelIt      = "yes"
	feelUnknown = "unknown"
)

// The words for where the fault is.
const (
	inPipeline = "pipeline" // heartbeats are taken, every queue is read, and yet they are late or lost
	inHead     = "head"     // what is put into the pipeline is not taken: by it, or on the way to it
	inSight    = "monitor"  // a queue cannot be read: the broker is down, or it is us
)

// The roles of a sink.
const (
	roleHop        = "hop"
	roleDeadLetter = "dead_letter"
)

// A verdict is what the page and the API say of one probe.
type verdict struct {
	severity
	State string    // a word or two
	Users string    // one of feelNothing, feelIt, feelUnknown
	Fault string    // one of inPipeline, inHead, inSight; empty when nothing is wrong
	Since time.Time // zero: not known
	Sink  string    // the destination that it is about
	Lag   float64   // seconds, the largest of all destinations that are not blind; -1: no destination
	Limit float64   // seconds, what Lag is held against; 0: nothing
	Seen  bool      // something has come out at Sink
	Blind []string  // the probe's sinks that do not read, destinations first
}

// sinkTable is what judge has to know of sinks, by name.
type sinkTable map[string]monitor.SinkStatus

func newSinkTable(all []monitor.SinkStatus) sinkTable {
	t := make(sinkTable, len(all))
	for _, s := range all {
		t[s.Name] = s
	}
	return t
}

// blind tells of a sink that is known and does not read.
func (t sinkTable) blind(name string) bool {
	s, ok := t[name]
	return ok && !s.Up
}

func isDestination(p monitor.PairStatus) bool {
	return p.Role != roleHop && p.Role != roleDeadLetter
}

// seenAt tells whether anything has ever come out there.
func seenAt(p *monitor.PairStatus) bool {
	return slices.ContainsFunc(p.Lanes, func(l monitor.LaneStatus) bool { return l.Seen || !l.Last.IsZero() })
}

// lagAt is the lag of a pair, whether or not the status sums up its lanes.
func lagAt(p *monitor.PairStatus) float64 {
	lag := p.Lag
	for _, l := range p.Lanes {
		lag = max(lag, l.Lag)
	}
	return lag
}

// judge says how a probe does. What is worst for users is looked at first; a queue that nobody reads says
// nothing, so its lag counts only when no other queue tells of trouble.
func judge(p monitor.ProbeStatus, sinks sinkTable) verdict {
	v := verdict{Users: feelNothing, Lag: -1, State: "on time", Seen: true}
	page, ticketLimits := p.PageLimits, p.TicketLimits
	if page == nil {
		page = &monitor.LimitStatus{Lag: p.PageLag}
	}
	if ticketLimits == nil {
		ticketLimits = &monitor.LimitStatus{}
	}
	// A limit that the team did not set is the timeout: past it heartbeats are no longer on time.
	v.Limit = cmp.Or(page.Lag, p.Timeout)
	var blindAt *monitor.PairStatus
	var others []string
	for i := range p.Sinks {
		w := &p.Sinks[i]
		blind := sinks.blind(w.Sink)
		switch {
		case !isDestination(*w):
			if blind {
				others = append(others, w.Sink)
			}
		case blind:
			v.Blind = append(v.Blind, w.Sink)
			if blindAt == nil || lagAt(w) > lagAt(blindAt) {
				blindAt = w
			}
		default:
			if lag := lagAt(w); lag > v.Lag {
				v.Lag, v.Sink, v.Seen = lag, w.Sink, seenAt(w)
			}
		}
	}
	fault := inPipeline
	if p.Failing {
		fault = inHead
	}
	set := func(s severity, state, users, where string, at time.Time) verdict {
		v.severity, v.State, v.Users, v.Fault, v.Since = s, state, users, where, at
		v.Blind = append(v.Blind, others...)
		return v
	}
	over := func(limit float64) bool { return limit > 0 && v.Lag > limit }
	switch {
	case p.Paused != nil:
		return set(paused, "paused", feelUnknown, "", p.Paused.Since)
	case over(v.Limit), !page.LagSince.IsZero() && blindAt == nil:
		return set(trouble, "lagging", feelIt, fault, page.LagSince)
	case !page.DropsSince.IsZero():
		return set(trouble, "losing", feelIt, fault, page.DropsSince)
	case blindAt != nil:
		v.Sink, v.Seen = blindAt.Sink, seenAt(blindAt)
		if v.Lag < 0 {
			v.Lag = lagAt(blindAt)
		}
		return set(trouble, "blind", feelUnknown, inSight, sinks[blindAt.Sink].Since)
	case p.Failing && len(p.Sinks) == 0:
		return set(trouble, "refused", feelUnknown, inHead, time.Time{})
	case p.Failing:
		return set(ticket, "refused", feelNothing, inHead, time.Time{})
	case over(ticketLimits.Lag), !ticketLimits.LagSince.IsZero():
		return set(ticket, "slow", feelNothing, fault, ticketLimits.LagSince)
	case !ticketLimits.DropsSince.IsZero():
		return set(ticket, "losing", feelIt, fault, ticketLimits.DropsSince)
	case p.Stuck != nil:
		return set(ticket, "stuck", feelUnknown, inPipeline, p.Stuck.Since)
	case len(others) > 0:
		return set(ticket, "half blind", feelNothing, inSight, sinks[others[0]].Since)
	case len(p.Sinks) == 0:
		return set(fine, "injects only", feelUnknown, "", time.Time{})
	case !v.Seen:
		return set(waiting, "waiting", feelUnknown, "", time.Time{})
	}
	return set(fine, "on time", feelNothing, "", time.Time{})
}

// what says what users feel, in words that follow "messages".
func (v verdict) what() string {
	switch {
	case v.State == "losing":
		return "are lost"
	case v.Lag < 0 || v.State == "paused":
		return ""
	case !v.Seen:
		return "have never come out, for " + duration(seconds(v.Lag))
	}
	return "come out " + duration(seconds(v.Lag)) + " late"
}

// station names an end of a hop.
func station(name string) string {
	if name == "head" {
		return "the head"
	}
	return clean(name)
}

// where says which hop is stuck; "" when none is, or there are none.
func where(s *monitor.StuckStatus) string {
	if s == nil {
		return ""
	}
	return "heartbeats pass " + station(s.From) + " and do not come to " + station(s.To)
}

// note is the verdict in half a sentence, for a row of the list; "" when all is well.
func (v verdict) note(p monitor.ProbeStatus, sinks sinkTable, now time.Time) string {
	var parts []string
	add := func(s string) {
		if s != "" {
			parts = append(parts, s)
		}
	}
	switch v.State {
	case "paused":
		add("until " + clock(p.Paused.Until, now) + ": nothing is injected and nobody is called")
	case "lagging", "slow":
		if !v.Seen {
			add("nothing has ever come out at " + clean(v.Sink))
		} else {
			add("at " + clean(v.Sink))
		}
		if !v.Since.IsZero() {
			add("since " + clock(v.Since, now))
		}
	case "losing":
		add("messages are lost")
		add("since " + clock(v.Since, now))
	case "blind", "half blind":
		add("nobody reads " + clean(strings.Join(v.Blind, ", ")))
		if !v.Since.IsZero() {
			add("since " + clock(v.Since, now))
		}
		if e := sinks[v.Blind[0]].LastError; e != nil {
			add(clean(e.Error))
		}
	}
	if v.severity > paused {
		add(where(p.Stuck))
		if p.Failing && p.LastError != nil {
			add("the head does not take heartbeats: " + clean(p.LastError.Error))
		}
	}
	return strings.Join(parts, " · ")
}

// labels returns "key=value" by key.
func labels(m map[string]string) []string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, clean(k+"="+m[k]))
	}
	return out
}

// A headline is the first thing that the status page says.
type headline struct {
	severity
	Text   string   // a sentence
	Detail []string // what else there is to know, a sentence each
	Tab    string   // for the browser's tab: short, the worst first
}

// newHeadline sums up: how many are in trouble, whether users feel it, since when.
func newHeadline(all []verdict, idle int, now time.Time) headline {
	var n [trouble + 1]int
	var first time.Time
	felt, unknown, lossy := 0, 0, false
	for _, v := range all {
		n[v.severity]++
		lossy = lossy || v.severity == ticket && v.Users == feelIt
		if v.severity != trouble {
			continue
		}
		if v.Users == feelIt {
			felt++
		} else {
			unknown++
		}
		if !v.Since.IsZero() && (first.IsZero() || v.Since.Before(first)) {
			first = v.Since
		}
	}
	var h headline
	total := several(len(all), "probe", "probes")
	switch bad := n[trouble]; {
	case bad > 0:
		h.severity = trouble
		h.Text = several(bad, "of "+total+" is in trouble", "of "+total+" are in trouble")
		if len(all) == 1 {
			h.Text = "The only probe is in trouble"
		}
		h.Tab = count(uint64(bad)) + " in trouble"
		switch {
		case unknown == 0:
			h.Text += ": users feel it"
		case felt == 0:
			h.Text += ": nobody can tell whether users feel it"
		default:
			h.Text += fmt.Sprintf(": users feel %d, of %d nobody can tell", felt, unknown)
		}
		if !first.IsZero() {
			h.Text += ", " + since(first, now)
		}
		h.Text += "."
	case len(all) == 0:
		h.severity, h.Text, h.Tab = waiting, "No probes are configured.", "No probes"
	case n[ticket] > 0:
		h.severity = ticket
		h.Text = "Users feel nothing: of " + total + " none is in trouble."
		if lossy {
			h.Text = "Of " + total + " none is in trouble, but a few messages are lost."
		}
		h.Tab = several(n[ticket], "to look at", "to look at")
	case n[fine] == 0 && n[paused] > 0:
		h.severity, h.Tab = paused, several(n[paused], "paused", "paused")
		h.Text = "Nothing is watched: every probe is paused or waiting."
	case n[fine] == 0:
		h.severity, h.Tab = waiting, "Waiting"
		h.Text = "Nothing has come out yet: " + several(len(all), "probe waits for its first heartbeat.", "probes wait for their first heartbeat.")
		return h
	case n[waiting]+n[paused] > 0:
		h.Text, h.Tab = "Of "+total+" none is in trouble.", "On time"
	case len(all) == 1:
		h.Text, h.Tab = "The only probe is on time.", "On time"
	default:
		h.Text, h.Tab = "All "+total+" are on time.", "On time"
	}
	if n[ticket] > 0 {
		h.Detail = append(h.Detail, several(n[ticket], "probe needs a look.", "probes need a look."))
	}
	if n[paused] > 0 {
		h.Detail = append(h.Detail, several(n[paused], "probe is paused: nobody is called for it.", "probes are paused: nobody is called for them."))
	}
	if n[waiting] > 0 {
		h.Detail = append(h.Detail, several(n[waiting], "probe waits for its first heartbeat.", "probes wait for their first heartbeat."))
	}
	if idle > 0 {
		h.Detail = append(h.Detail, several(idle, "sink does not read.", "sinks do not read."))
	}
	return h
}
