package web

import (
	"cmp"
	"html/template"
	"net/url"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/lag-monitor/lag-monitor/internal/monitor"
)

// probePage is the page of one probe.
type probePage struct {
	frame
	verdict
	Name     string
	Path     string // the name, escaped for an address
	Headline string // the state
	Lead     string // and the rest of the sentence
	Facts    []fact
	Labels   []string
	Limits   []limitRow
	Diagram  diagram
	Strip    strip
	Chart    chart
	ChartMax float64 // seconds: the limit that pages, for the chart; 0: none
	Accounts []accountRow
	Us       string // is it us?
	Health   []healthRow
	Errors   []errorRow
	Config   string
	Links    []link
	Paused   bool
	Until    string
	Admin    bool
	HTML     func(string) template.HTML
}

// fact answers one question of the person on call.
type fact struct {
	Question, Answer string
	Class            string
	Links            []link
}

type link struct {
	Text string
	URL  template.URL // of http or https: checked
}

type limitRow struct {
	severity
	What, Limit, State string
}

type accountRow struct {
	Sink, Role, Rate, Lag, Latency                               string
	Sent, OnTime, Late, Dropped, Indeterminate, Flights, Doubled string
}

type healthRow struct {
	severity
	What, State, Detail, Error string
}

type errorRow struct{ At, Where, Text string }

// site is where the page is, and what it can link to.
type site struct {
	External     *url.URL // of this monitor, nil when it is not known
	Alertmanager *url.URL // nil: there is none
	Admin        bool     // probes can be paused
}

// webURL returns an address that a page may link to: of http or https.
func webURL(s string) (template.URL, bool) {
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return "", false
	}
	return template.URL(u.String()), true //nolint:gosec // the scheme is checked
}

// silence is a link to a new silence of a probe.
func (s site) silence(name string) (link, bool) {
	if s.Alertmanager == nil {
		return link{}, false
	}
	// The interface of Alertmanager lives behind the #, and takes everything after the ? as it stands.
	q := "filter=" + url.QueryEscape(`{probe="`+strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(name)+`"}`)
	if s.External != nil {
		q += "&comment=" + strings.ReplaceAll(url.QueryEscape(s.probe(name)), "+", "%20")
	}
	base := strings.TrimSuffix(s.Alertmanager.String(), "/")
	return link{"Silence it", template.URL(base + "/#/silences/new?" + strings.ReplaceAll(q, "+", "%20"))}, true //nolint:gosec // the flag's scheme is checked, the rest escaped
}

// probe is the address of a probe's page, for others.
func (s site) probe(name string) string {
	if s.External == nil {
		return ""
	}
	return s.External.JoinPath("probes", url.PathEscape(name)).String()
}

// newProbe words everything that is known of a probe. It is a function of its arguments.
func newProbe(d monitor.ProbeDetail, all []monitor.SinkStatus, at site, now time.Time) probePage {
	sinks := newSinkTable(all)
	v := judge(d.ProbeStatus, sinks)
	p := probePage{
		verdict: v, Name: clean(d.Name), Path: url.PathEscape(d.Name), Labels: labels(d.Labels), Admin: at.Admin && d.Head != "", // it is paused where it injects
		Headline: clean(d.Name) + " " + stateSentence(v), Diagram: newDiagram(d, sinks, v), Strip: newStrip(d.Beats),
		Config: cleanLines(d.Config), Limits: newLimits(d.ProbeStatus, v, now), Us: us(d.ProbeStatus, v),
	}
	if d.PageLimits != nil {
		p.ChartMax = d.PageLimits.Lag
	} else {
		p.ChartMax = d.PageLag
	}
	p.Chart = newChart(d.History, d.Name, p.ChartMax)
	if d.Paused != nil {
		p.Paused, p.Until = true, clock(d.Paused.Until, now)
	}
	p.Lead = lead(d.ProbeStatus, v, p.Labels, now)
	add := func(text, address string) {
		if u, ok := webURL(address); ok {
			p.Links = append(p.Links, link{text, u})
		}
	}
	add("Runbook", d.Runbook)
	add("Dashboard", d.Dashboard)
	if l, ok := at.silence(d.Name); ok {
		p.Links = append(p.Links, l)
	}
	p.Facts = facts(d, v, sinks, p.Labels, p.Links, now)
	for i := range d.Sinks {
		w := &d.Sinks[i]
		p.Accounts = append(p.Accounts, accountRow{
			Sink: clean(w.Sink), Role: roleWord(w.Role), Rate: rate(w.Rate), Lag: duration(seconds(lagAt(w))), Latency: duration(seconds(w.Latency)),
			Sent: count(w.Sent + w.Restored), OnTime: count(w.OnTime), Late: count(w.Late), Dropped: count(w.Dropped),
			Indeterminate: count(w.Indeterminate), Flights: count(w.InFlight), Doubled: count(w.Duplicated + w.Redelivered),
		})
	}
	p.Health, p.Errors = health(d, sinks, now)
	return p
}

// stateSentence is the state in words that follow the probe's name.
func stateSentence(v verdict) string {
	switch v.State {
	case "lagging", "slow":
		if !v.Seen {
			return "is dead: nothing has ever come out"
		}
		return "is " + v.State + ": messages " + "come out late"
	case "losing":
		return "is losing messages"
	case "blind":
		return "cannot be seen: nobody reads its queue"
	case "half blind":
		return "is on time, but nobody reads one of its queues"
	case "refused":
		return "is refused: the head does not take heartbeats"
	case "stuck":
		return "is stuck on its way"
	case "waiting":
		return "waits for its first heartbeat"
	case "paused":
		return "is paused: nobody watches it"
	case "injects only":
		return "only injects: another monitor listens"
	}
	return "is " + v.State
}

// lead says in a few words what there is to know besides the state: how far behind, since when, where, whether it
// is the pipeline or the monitor, and whose it is.
func lead(p monitor.ProbeStatus, v verdict, labels []string, now time.Time) string {
	var parts []string
	add := func(s string) {
		if s != "" {
			parts = append(parts, s)
		}
	}
	switch {
	case v.State == "paused":
		add("Until " + clock(p.Paused.Until, now))
	case v.State == "losing":
		add(capital(since(v.Since, now)))
	case v.Lag >= 0:
		add(strings.TrimSpace(duration(seconds(v.Lag)) + " behind " + since(v.Since, now)))
	default:
		add(capital(since(v.Since, now)))
	}
	add(where(p.Stuck))
	switch v.Fault {
	case inPipeline:
		add("the pipeline, not the monitor")
	case inHead:
		add("at the head, or on our way to it")
	case inSight:
		add("the monitor's view, not the pipeline")
	}
	text := strings.Join(parts, "; ")
	if text != "" {
		text += ". "
	}
	if len(labels) > 0 {
		text += "Owner: " + strings.Join(labels, ", ") + "."
	}
	return strings.TrimSpace(text)
}

// facts answers what one asks at three in the morning, in that order.
func facts(p monitor.ProbeDetail, v verdict, sinks sinkTable, labels []string, links []link, now time.Time) []fact {
	var out []fact
	add := func(q, a, class string) { out = append(out, fact{Question: q, Answer: a, Class: class}) }
	class := v.Class()
	switch v.Users {
	case feelIt:
		add("Do users feel it?", "Yes: messages "+v.what()+".", class)
	case feelNothing:
		add("Do users feel it?", "No: messages "+v.what()+".", "")
	default:
		add("Do users feel it?", unknownWhy(v), class)
	}
	if !v.Since.IsZero() {
		add("Since when?", capital(strings.TrimPrefix(since(v.Since, now), "since "))+".", "")
	}
	for _, w := range p.Sinks {
		if n := lostAt(p.Beats, w.Sink); n > 0 && isDestination(w) && v.severity != paused {
			add("How many are lost?", several(n, "of the last ", "of the last ")+count(uint64(len(p.Beats)))+", at "+clean(w.Sink)+".", "")
		}
	}
	if v.Lag >= 0 && v.severity != paused {
		a := duration(seconds(v.Lag))
		if v.Limit > 0 {
			a += ", limit " + limit(v.Limit)
		}
		if v.Sink != "" {
			a += ", at " + clean(v.Sink)
		}
		add("How far behind?", a+".", "")
	}
	if w := where(p.Stuck); w != "" {
		add("Where is it stuck?", capital(w)+", "+since(p.Stuck.Since, now)+".", class)
	}
	if a := us(p.ProbeStatus, v); v.Fault != "" && a != "" {
		add("Pipeline or monitor?", a, "")
	}
	if v.State == "blind" || v.State == "half blind" {
		if e := sinks[v.Blind[0]].LastError; e != nil {
			add("What does it say?", capital(clean(e.Error)), "")
		}
	} else if p.Failing && p.LastError != nil {
		add("What does the head say?", capital(clean(p.LastError.Error)), "")
	}
	if len(labels) > 0 {
		add("Whose is it?", strings.Join(labels, ", "), "")
	} else {
		add("Whose is it?", "Nobody's, says the configuration: it has no labels.", "")
	}
	todo := fact{Question: "What to do?", Links: links}
	if p.Runbook == "" {
		todo.Answer = "No runbook is configured."
	}
	return append(out, todo)
}

func unknownWhy(v verdict) string {
	switch v.State {
	case "paused":
		return "Nobody knows: it is paused."
	case "blind":
		return "Nobody can tell: the queue at the end is not read. If it does not come back, messages may be late or lost."
	case "waiting":
		return "Not known yet: no heartbeat has come out."
	case "injects only":
		return "This monitor does not know: another one listens."
	case "stuck":
		return "Not yet: messages have come out in time so far, but they stay on their way now."
	}
	return "Nobody can tell."
}

func capital(s string) string {
	if s == "" {
		return ""
	}
	r, n := utf8.DecodeRuneInString(s)
	return string(unicode.ToUpper(r)) + s[n:]
}

// us answers whether it is the monitor that is ill, and not the pipeline.
func us(p monitor.ProbeStatus, v verdict) string {
	switch {
	case v.Fault == inSight && v.State == "blind":
		return "The monitor cannot read " + clean(strings.Join(v.Blind, ", ")) + ": its broker is down, or we have no access. The pipeline itself is not accused."
	case v.Fault == inSight:
		return "The monitor cannot read " + clean(strings.Join(v.Blind, ", ")) + ". What users get is seen all the same."
	case v.Fault == inHead:
		return "The head: it does not take heartbeats, or we do not reach it. Look at the error; if others can put messages in, it is us."
	case p.Paused != nil:
		return "Nothing is injected while it is paused."
	case len(p.Sinks) == 0:
		return "The head takes heartbeats."
	case v.Fault == inPipeline && p.Head == "":
		return "The pipeline, or who injects: every queue is being read here."
	case v.Fault == inPipeline:
		return "The pipeline: the head takes heartbeats, and every queue is being read."
	case p.Head == "":
		return "The monitor is well: every queue is being read."
	}
	return "The monitor is well: the head takes heartbeats, and every queue is being read."
}

// newLimits says which limits there are, and which are crossed since when.
func newLimits(p monitor.ProbeStatus, v verdict, now time.Time) []limitRow {
	var out []limitRow
	for _, l := range []struct {
		name, verb string
		severity
		limits *monitor.LimitStatus
	}{{"page", "pages", trouble, p.PageLimits}, {"ticket", "opens a ticket", ticket, p.TicketLimits}} {
		if l.limits == nil {
			continue
		}
		if l.limits.Lag > 0 {
			r := limitRow{What: l.name + ": lag", Limit: "above " + limit(l.limits.Lag), State: "not crossed"}
			if l.limits.For > 0 {
				r.Limit += " for " + limit(l.limits.For)
			}
			if at := l.limits.LagSince; !at.IsZero() {
				r.severity = l.severity
				r.State = "crossed " + since(at, now)
				if called := at.Add(seconds(l.limits.For)); called.After(now) {
					r.State += ", " + l.verb + " at " + clock(called, now)
				} else {
					r.State += ", " + l.verb + " since " + clock(called, now)
				}
			} else if v.Lag > l.limits.Lag {
				r.severity, r.State = l.severity, "crossed"
			}
			out = append(out, r)
		}
		if l.limits.DropRatio > 0 {
			r := limitRow{What: l.name + ": lost messages", Limit: "more than " + percent(l.limits.DropRatio), State: "not crossed"}
			if at := l.limits.DropsSince; !at.IsZero() {
				r.severity, r.State = l.severity, "crossed "+since(at, now)
			}
			out = append(out, r)
		}
	}
	return out
}

// health looks at the monitor's own parts, and collects the last errors, the newest first.
func health(d monitor.ProbeDetail, sinks sinkTable, now time.Time) ([]healthRow, []errorRow) {
	var rows []healthRow
	var errs []errorRow
	addError := func(where string, e *monitor.ErrorStatus) {
		if e != nil {
			errs = append(errs, errorRow{clock(e.At, now), where, clean(e.Error)})
		}
	}
	if d.Head != "" {
		n := d.Sent
		r := healthRow{What: "injector, " + clean(d.Head), State: "well",
			Detail: count(n.Success) + " taken, " + count(n.Failure) + " refused, " + count(n.Unknown) + " without an answer, " + count(n.Skipped) + " skipped"}
		switch {
		case d.Paused != nil:
			r.severity, r.State = paused, "paused"
		case d.Failing:
			r.severity, r.State = ticket, "refused"
		case n.Success+n.Unknown+n.Failure == 0:
			r.severity, r.State = waiting, "nothing sent yet"
		}
		if d.Failing {
			r.Error = lastError(d.LastError, now)
		}
		rows = append(rows, r)
		addError("head", d.LastError)
	}
	for _, w := range d.Sinks {
		s, ok := sinks[w.Sink]
		r := healthRow{What: "sink " + clean(w.Sink) + ", " + clean(cmp.Or(s.Kind, "unknown"))}
		switch {
		case !ok:
			r.severity, r.State = waiting, "unknown"
		case !s.Up:
			r.severity, r.State = trouble, "blind"
			r.Error = lastError(s.LastError, now)
		default:
			r.State = "reading"
		}
		if !s.Since.IsZero() {
			r.State += " since " + clock(s.Since, now)
		}
		r.Detail = "never caught up"
		if !s.CaughtUp.IsZero() {
			r.Detail = "had read everything " + duration(now.Sub(s.CaughtUp)) + " ago"
		}
		r.Detail += ", errors " + errorCounts(s.Errors)
		rows = append(rows, r)
		addError("sink "+clean(w.Sink), s.LastError)
	}
	return rows, errs
}

// probeSections renders the parts of a probe's page that change.
func probeSections(p probePage) ([]section, error) {
	var out []section
	for _, id := range []string{"verdict", "facts", "pause", "diagram", "strip", "history", "limits", "accounts", "health", "errors", "config"} {
		html, err := render("probe-"+id, p)
		if err != nil {
			return nil, err
		}
		out = append(out, section{ID: id, HTML: html})
	}
	return out, nil
}
