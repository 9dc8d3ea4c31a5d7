package web

import (
	"cmp"
	"embed"
	"fmt"
	"html/template"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/monitor"
)

//go:embed templates/*.html
var templateFiles embed.FS

// templates hold every page, and every part of one that changes by itself.
var templates = template.Must(template.New("").ParseFS(templateFiles, "templates/*.html"))

// render executes one template.
func render(name string, data any) (string, error) {
	var b strings.Builder
	err := templates.ExecuteTemplate(&b, name, data)
	return b.String(), err
}

// frame is what every page has around its content.
type frame struct {
	Title            string
	Root             string // the way from this page to "/", such as "../"
	Asset            func(string) string
	Version          string
	Instance, Up     string
	Now              string
	Events, Mark     string // where updates come from, and what they continue; empty: this page has none
	Canonical        string
	AlertmanagerSite string
}

// probeRow is one probe in the list.
type probeRow struct {
	verdict
	ID, Name  string
	Labels    []string
	Note      string
	Behind    string
	LimitText string
	Way       string // "kafka → out"
	Recent    string
	Dropped   string
	Order     int64 // what is larger is shown further up
	search    string
}

// sinkRow is one sink in the list.
type sinkRow struct {
	severity
	ID, Name, Kind, Role, State, Since, CaughtUp string
	Heartbeats, Other, Rejected, Errors          string
	Error                                        string
	Order                                        int64
}

// maxOptions bounds the labels that the filter offers. All of them can be typed.
const maxOptions = 200

// listPage is the status page.
type listPage struct {
	frame
	headline
	NotReady string
	Probes   []probeRow // the worst first
	Sinks    []sinkRow
	Filter   filter
	Shown    int
	Options  []string // labels to choose from
	HTML     func(string) template.HTML
}

// newList sorts what is wrong to the top and words it. It is a function of its arguments: the time is the
// status's own.
func newList(s answer, notReady error) listPage {
	var p listPage
	if notReady != nil {
		p.NotReady = clean(notReady.Error())
	}
	sinks := newSinkTable(s.Sinks)
	idle := 0
	for _, k := range s.Sinks {
		r := newSinkRow(k, s.Now)
		if !k.Up {
			idle++
		}
		p.Sinks = append(p.Sinks, r)
	}
	verdicts := make([]verdict, 0, len(s.Probes))
	options := make(map[string]int)
	for _, pr := range s.Probes {
		r := newProbeRow(pr, sinks, s.Now)
		verdicts = append(verdicts, r.verdict)
		p.Probes = append(p.Probes, r)
		for _, l := range r.Labels {
			options[l]++
		}
	}
	slices.SortStableFunc(p.Probes, func(a, b probeRow) int {
		return cmp.Or(cmp.Compare(b.Order, a.Order), cmp.Compare(a.Name, b.Name))
	})
	slices.SortStableFunc(p.Sinks, func(a, b sinkRow) int {
		return cmp.Or(cmp.Compare(b.Order, a.Order), cmp.Compare(a.Name, b.Name))
	})
	p.headline = newHeadline(verdicts, idle, s.Now)
	all := slices.SortedFunc(maps.Keys(options), func(a, b string) int {
		return cmp.Or(cmp.Compare(options[b], options[a]), cmp.Compare(a, b))
	})
	p.Options = all[:min(len(all), maxOptions)]
	slices.Sort(p.Options)
	p.Shown = len(p.Probes)
	return p
}

// order puts severities in order, and what lags more above what lags less within one.
func order(s severity, lag float64) int64 {
	const step = 1e10 // ms: 115 days
	return int64(s)*step + int64(min(max(lag*1000, 0), step-1))
}

func newProbeRow(p monitor.ProbeStatus, sinks sinkTable, now time.Time) probeRow {
	v := judge(p, sinks)
	r := probeRow{
		verdict: v, ID: "p-" + clean(p.Name), Name: clean(p.Name), Labels: labels(p.Labels), Note: v.note(p, sinks, now),
		Behind: none, Dropped: none, Way: way(p), Order: order(v.severity, v.Lag),
	}
	var dropped, expected uint64
	for i := range p.Sinks {
		w := &p.Sinks[i]
		if !isDestination(*w) {
			continue
		}
		expected++
		dropped += w.Dropped
		if w.Sink == v.Sink {
			r.Recent = recent(w)
		}
	}
	if expected > 0 {
		r.Dropped = count(dropped)
	}
	if v.Lag >= 0 {
		r.Behind = duration(seconds(v.Lag))
	}
	if v.severity != fine && v.Lag >= 0 && v.Limit > 0 {
		r.LimitText = "limit " + limit(v.Limit)
	}
	r.search = strings.ToLower(strings.Join(append([]string{r.Name, r.State, r.Way, r.Note}, r.Labels...), "\n"))
	return r
}

// recentShown is how many heartbeats a row of the list shows.
const recentShown = 24

// recent returns a letter for each of the last heartbeats of the lane that lags most.
func recent(w *monitor.PairStatus) string {
	var worst *monitor.LaneStatus
	for i := range w.Lanes {
		if l := &w.Lanes[i]; worst == nil || l.Lag > worst.Lag {
			worst = l
		}
	}
	if worst == nil {
		return ""
	}
	s := worst.Recent
	return clean(s[max(0, len(s)-recentShown):])
}

// way writes a pipeline in a line.
func way(p monitor.ProbeStatus) string {
	var b strings.Builder
	b.WriteString(clean(cmp.Or(p.Head, "elsewhere")))
	sep := " → "
	for _, w := range p.Sinks {
		switch w.Role {
		case roleDeadLetter:
			continue
		case roleHop:
			b.WriteString(" → " + clean(w.Sink))
		default:
			b.WriteString(sep + clean(w.Sink))
			sep = ", "
		}
	}
	return b.String()
}

func newSinkRow(k monitor.SinkStatus, now time.Time) sinkRow {
	r := sinkRow{ID: "s-" + clean(k.Name), Name: clean(k.Name), Kind: clean(k.Kind), Role: roleWord(k.Role), State: "reading", CaughtUp: "never"}
	if !k.Up {
		r.State, r.severity = "blind", trouble
	}
	r.Order = int64(r.severity)
	if !k.Since.IsZero() {
		r.Since = "since " + clock(k.Since, now)
	}
	if !k.CaughtUp.IsZero() {
		r.CaughtUp = duration(now.Sub(k.CaughtUp)) + " ago"
	}
	r.Heartbeats, r.Other = count(k.Messages["heartbeat"]), count(k.Messages["other"])
	r.Rejected = count(k.Messages["foreign"] + k.Messages["corrupt"] + k.Messages["future"])
	r.Errors = errorCounts(k.Errors)
	r.Error = lastError(k.LastError, now)
	return r
}

// errorCounts sums errors up and names their classes: "5 (3 auth, 2 network)".
func errorCounts(m map[string]uint64) string {
	var sum uint64
	var parts []string
	for _, class := range slices.Sorted(maps.Keys(m)) {
		if m[class] > 0 {
			sum += m[class]
			parts = append(parts, count(m[class])+" "+clean(class))
		}
	}
	if sum == 0 {
		return "0"
	}
	return fmt.Sprintf("%s (%s)", count(sum), strings.Join(parts, ", "))
}

func lastError(e *monitor.ErrorStatus, now time.Time) string {
	if e == nil {
		return ""
	}
	return clock(e.At, now) + ": " + clean(e.Error)
}

func roleWord(role string) string {
	return clean(strings.ReplaceAll(cmp.Or(role, "destination"), "_", " "))
}

// listSections renders the parts of the status page that change.
func listSections(p listPage) ([]section, error) {
	out := make([]section, 0, len(p.Probes)+len(p.Sinks)+2)
	var failed error
	add := func(id, into, name string, data any) {
		html, err := render(name, data)
		if err != nil && failed == nil {
			failed = err
		}
		out = append(out, section{ID: id, HTML: html, Into: into})
	}
	add("headline", "", "headline", p)
	add("notready", "", "notready", p)
	for i := range p.Probes {
		add(p.Probes[i].ID, "probe-rows", "probe-row", &p.Probes[i])
	}
	for i := range p.Sinks {
		add(p.Sinks[i].ID, "sink-rows", "sink-row", &p.Sinks[i])
	}
	return out, failed
}

// A filter says which probes are wanted. The zero filter wants all.
type filter struct {
	Text  string // words, all of which must be in the name, the labels, the state or the way
	Label string // key=value
	State string // a severity
}

// On tells whether it leaves anything out.
func (f filter) On() bool { return f != filter{} }

// Severities are the states that can be asked for, the worst first.
func (f filter) Severities() []severity { return []severity{trouble, ticket, paused, waiting, fine} }

// Word is how the page names a severity.
func (s severity) Word() string {
	return [...]string{"on time", "waiting", "paused", "to look at", "in trouble"}[s]
}

// check returns what is wrong with the filter, nil when nothing is.
func (f filter) check() error {
	if f.State == "" {
		return nil
	}
	var valid []string
	for _, s := range f.Severities() {
		if s.Class() == f.State {
			return nil
		}
		valid = append(valid, s.Class())
	}
	return fmt.Errorf("unknown state %q; valid: %s", clean(f.State), strings.Join(valid, ", "))
}

func (f filter) wants(r *probeRow) bool {
	if f.State != "" && r.Class() != f.State {
		return false
	}
	if f.Label != "" && !slices.Contains(r.Labels, f.Label) {
		return false
	}
	for _, word := range strings.Fields(strings.ToLower(f.Text)) {
		if !strings.Contains(r.search, word) {
			return false
		}
	}
	return true
}
