package demo

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/config"
	"github.com/lag-monitor/lag-monitor/internal/monitor"
)

// screen is everything that is shown at one moment. To render it changes nothing and asks nobody.
type screen struct {
	Elapsed  time.Duration
	Status   monitor.Status
	Page     config.Thresholds
	Above    time.Duration // for how long the lag has been above Page.Lag; 0: it is not
	Service  Account
	Lags     []float64 // seconds, one for each second, the oldest first
	Twice    bool      // messages came out twice just now
	Note     string    // what the story says
	YAML     string
	ShowYAML bool
	Keys     bool   // somebody can press keys
	Hint     bool   // nobody has pressed any yet
	Web      string // URL of the monitor's page
	Control  string // URL of the service
}

// minWidth is what lines are laid out for; a narrower terminal cuts them off.
const minWidth = 60

// span is text in one style.
type span struct{ style, text string }

type line []span

// The styles. Whatever they say is said by a word or a sign, too.
const (
	plain  = ""
	bold   = "1"
	dim    = "2"
	red    = "1;31"
	green  = "32"
	yellow = "33"
)

// probe returns the probe, its account at the sink, and its lane; zeros before they exist.
func (s *screen) probe() (p monitor.ProbeStatus, a monitor.PairStatus, l monitor.LaneStatus) {
	if len(s.Status.Probes) > 0 {
		p = s.Status.Probes[0]
	}
	if len(p.Sinks) > 0 {
		a = p.Sinks[0]
	}
	if len(a.Lanes) > 0 {
		l = a.Lanes[0]
	}
	return p, a, l
}

// render lays the screen out in at most height lines of at most width characters; no height: all lines.
func (s *screen) render(width, height int, colour bool) string {
	var lines []line
	if s.ShowYAML {
		lines = s.yaml(max(width, minWidth))
	} else {
		lines = s.view(max(width, minWidth))
	}
	// A low terminal loses the space between the lines first.
	for i := 0; height > 0 && len(lines) > height && i < len(lines); i++ {
		if len(lines[i]) == 0 {
			lines = slices.Delete(lines, i, i+1)
		}
	}
	if height > 0 && len(lines) > height {
		lines = lines[:height]
	}
	var b strings.Builder
	for i, l := range lines {
		if i > 0 {
			b.WriteByte('\n')
		}
		l.write(&b, width, colour)
	}
	return b.String()
}

func (l line) write(b *strings.Builder, width int, colour bool) {
	var text strings.Builder
	for _, s := range l {
		text.WriteString(s.text)
	}
	total := len([]rune(text.String()))
	room := width
	for _, s := range l {
		r := []rune(s.text)
		if total > width && len(r) >= room {
			r = append(r[:max(0, room-1)], '…')
			room = 0
		} else {
			room -= len(r)
		}
		if colour && s.style != plain {
			fmt.Fprintf(b, "\x1b[%sm%s\x1b[0m", s.style, string(r))
		} else {
			b.WriteString(string(r))
		}
		if room <= 0 {
			return
		}
	}
}

const label = "%-9s "

func row(name string, spans ...span) line {
	return append(line{{dim, fmt.Sprintf(label, name)}}, spans...)
}

func (s *screen) view(width int) []line {
	p, a, l := s.probe()
	lines := []line{{{bold, "lag-monitor demo  "}, {dim, clock(s.Elapsed)}}}
	for _, t := range wrap(fmt.Sprintf("Every %s a heartbeat goes over HTTP into a small service, which holds it for %s and puts it on NATS. "+
		"lag-monitor listens there.", seconds(p.Interval), seconds(p.Expiry)), width) {
		lines = append(lines, line{{dim, t}})
	}
	lines = append(lines, nil,
		row("lag", s.bar(width, l)...),
		row("latency", span{plain, fmt.Sprintf("%-7s", ifSeen(l, seconds(l.Latency)))}, span{dim, "of the last heartbeat that came out"}),
		nil)
	lines = append(lines, counts(p, a)...)
	lines = append(lines, nil,
		row("last "+fmt.Sprint(strip), symbols(l.Recent)...),
		row("", legend(width)...),
		row("lag 2 min", s.sparkline(min(60, width-26))...),
		nil,
		row("fault", s.fault()...))
	if s.Note != "" {
		for i, t := range wrap(s.Note, width-10) {
			lines = append(lines, row([]string{"story", ""}[min(i, 1)], span{bold, t}))
		}
	}
	feel, style := s.feel()
	for i, t := range wrap(feel, width-10) {
		lines = append(lines, row([]string{"users see", ""}[min(i, 1)], span{style, t}))
	}
	lines = append(lines, row("alert", s.alert()), nil)
	if s.Keys {
		lines = append(lines, s.keys()...)
	}
	if s.Keys && s.Hint {
		lines = append(lines, line{{bold, "Try: press s twice, and watch the lag."}})
	}
	if s.Web == "" {
		return lines
	}
	curl := row("curl", span{plain, "-X POST '" + s.Control + "/fault?slow=4s'"})
	if width >= minWidth+18 {
		curl = append(curl, span{dim, "  drop=0.33  stall=1"})
	}
	return append(lines, row("page", span{plain, s.Web}, span{dim, "  and "}, span{plain, "/metrics"}), curl)
}

func (s *screen) yaml(width int) []line {
	lines := []line{{{bold, "The whole configuration of what you see"}, {dim, "  (y: back)"}}, nil}
	for t := range strings.SplitSeq(strings.TrimRight(s.YAML, "\n"), "\n") {
		for len(t) > width { // the text is to be read as a whole, and is ASCII
			lines = append(lines, line{{plain, t[:width]}})
			t = t[width:]
		}
		lines = append(lines, line{{plain, t}})
	}
	return append(lines, nil, line{{dim, "A real one runs as "}, {plain, "lag-monitor --config.file=FILE"}})
}

// bar shows the lag against the page's threshold, which is in the middle.
func (s *screen) bar(width int, l monitor.LaneStatus) []span {
	style, word := green, "ok"
	switch limit := s.Page.Lag.Seconds(); {
	case l.Lag > limit:
		style, word = red, "TOO HIGH"
	case l.Lag > limit/3:
		style, word = yellow, "behind"
	}
	if !l.Seen && l.Lag == 0 {
		style, word = plain, ""
	}
	n := min(width-48, 40) / 2 * 2
	full := min(n, int(math.Ceil(l.Lag/s.Page.Lag.Seconds()*float64(n)/2-0.2)))
	cells := []rune(strings.Repeat("█", max(0, full)) + strings.Repeat("·", n-max(0, full)))
	return []span{
		{style, fmt.Sprintf("%-7s", ifSeen(l, seconds(l.Lag)))},
		{plain, "▕"}, {style, string(cells[:n/2])}, {bold, "│"}, {style, string(cells[n/2:])}, {plain, "▏ "},
		{style, fmt.Sprintf("%-9s", word)}, {dim, "page above " + seconds(s.Page.Lag.Seconds())},
	}
}

func ifSeen(l monitor.LaneStatus, text string) string {
	if !l.Seen {
		return "-"
	}
	return text
}

// counts shows the account as the sum that it always is.
func counts(p monitor.ProbeStatus, a monitor.PairStatus) []line {
	drops, doubts := plain, plain
	if a.Dropped > 0 {
		drops = red
	}
	if a.Indeterminate > 0 {
		doubts = yellow
	}
	number := func(head string, n uint64) string { return fmt.Sprintf("%*d", len(head), n) }
	return []line{
		{{dim, " sent = on time + dropped + indeterminate + in flight"}},
		{{bold, number(" sent", a.Sent)}, {dim, " = "}, {green, number("on time", a.OnTime)}, {dim, " + "}, {drops, number("dropped", a.Dropped)}, {dim, " + "},
			{doubts, number("indeterminate", a.Indeterminate)}, {dim, " + "}, {plain, number("in flight", a.InFlight)}},
		{{dim, " and "}, {plain, fmt.Sprint(a.Late)}, {dim, " came out late after all, "}, {plain, fmt.Sprint(a.Duplicated)}, {dim, " twice, "},
			{plain, fmt.Sprint(p.Sent.Failure)}, {dim, " refused"}},
	}
}

// strip is how many of the last heartbeats are shown: as many as fit the least width.
const strip = 50

func legend(width int) []span {
	out := []span{{green, "•"}, {dim, " on time  "}, {red, "x"}, {dim, " dropped  "}, {yellow, "L"}, {dim, " late  "}, {yellow, "?"}, {dim, " unknown  "},
		{plain, ">"}, {dim, " waiting"}}
	if width >= minWidth+12 {
		out = append(out, span{dim, "  - not sent"})
	}
	return out
}

// symbols turns monitor.LaneStatus.Recent into what is shown.
func symbols(recent string) []span {
	var out []span
	for _, c := range recent[max(0, len(recent)-strip):] {
		s := span{dim, "-"}
		switch c {
		case '.':
			s = span{green, "•"}
		case 'x':
			s = span{red, "x"}
		case 'l':
			s = span{yellow, "L"}
		case '?':
			s = span{yellow, "?"}
		case 'w', 'i':
			s = span{plain, ">"}
		}
		if n := len(out); n > 0 && out[n-1].style == s.style {
			out[n-1].text += s.text
			continue
		}
		out = append(out, s)
	}
	return out
}

// sparkline shows two seconds of the lag in each of n columns, the newest at the right end.
func (s *screen) sparkline(n int) []span {
	limit := s.Page.Lag.Seconds()
	top := 2 * limit
	if len(s.Lags) > 0 {
		top = max(top, slices.Max(s.Lags))
	}
	cells := slices.Repeat([]rune{' '}, n)
	// Pairs are counted from the first sample on, so that a column does not change once it is full.
	for i, lag := range s.Lags {
		if at := n - 1 - ((len(s.Lags)-1)/2 - i/2); at >= 0 {
			level := '▁' + rune(math.Round(min(1, lag/top)*7))
			cells[at] = max(cells[at], level)
		}
	}
	return []span{{plain, string(cells)}, {dim, " top " + seconds(top)}}
}

func (s *screen) fault() []span {
	f := s.Service.Fault
	style := yellow
	if f == (Fault{}) {
		style = green
	}
	out := []span{{style, f.String()}}
	if s.Service.Dropped > 0 {
		out = append(out, span{dim, fmt.Sprintf("  (the service dropped %d)", s.Service.Dropped)})
	}
	return out
}

// feel says what a user of the pipeline would notice, and how bad that is.
func (s *screen) feel() (words, style string) {
	p, _, l := s.probe()
	var all []string
	style = green
	say := func(how, what string) {
		all = append(all, what)
		style = how
	}
	missing := missing(l.Recent)
	switch overdue := l.Lag > l.Latency+1; {
	case len(s.Status.Sinks) > 0 && !s.Status.Sinks[0].Up && !s.Status.Sinks[0].Since.IsZero() && l.Seen:
		return "nobody knows: the monitor cannot read the queue", red
	case !l.Seen && l.Lag < 1:
		return "the first heartbeat is on its way", plain
	case p.Failing:
		say(red, "messages are refused")
		if overdue {
			say(red, "nothing comes out: the next one is "+seconds(l.Lag)+" overdue")
		}
	case overdue:
		say(red, "nothing comes out: the next message is "+seconds(l.Lag)+" overdue")
	case l.Latency > 0.5:
		say(yellow, "messages come out "+seconds(l.Latency)+" late")
	}
	if missing > 0 {
		say(red, share(missing)+" is missing")
	}
	if s.Twice {
		say(cmp.Or(strings.TrimPrefix(style, green), yellow), "some messages come out twice")
	}
	if all == nil {
		say(green, "messages come out on time, all of them")
	}
	return strings.Join(all, ", and "), style
}

// window is over how many of the last heartbeats a share is taken.
const window = 12

// missing returns the share of the last heartbeats that have not come out though later ones have,
// whether or not they count as dropped yet. Those that none has overtaken are overdue at most.
func missing(recent string) float64 {
	return part(recent[:strings.LastIndexAny(recent, ".l")+1], "xw", ".l")
}

// missed returns the share of the last heartbeats that were not there at their deadline. From the first
// that may still come on, only those that have come are known, which would make it look better.
func missed(recent string) float64 {
	settled, _, _ := strings.Cut(recent, "w")
	return part(settled, "xl", ".")
}

// part returns how much of the last letters that are in either set is in the first one.
func part(recent, these, others string) float64 {
	n, of := 0, 0
	for i := len(recent) - 1; i >= 0 && of < window; i-- {
		switch {
		case strings.IndexByte(these, recent[i]) >= 0:
			n++
			of++
		case strings.IndexByte(others, recent[i]) >= 0:
			of++
		}
	}
	return float64(n) / float64(max(1, of))
}

// alert says whether somebody would be called now.
func (s *screen) alert() span {
	_, _, l := s.probe()
	limit := s.Page.Lag.Seconds()
	switch ratio := missed(l.Recent); {
	case s.Above >= s.Page.For && s.Above > 0:
		return span{red, fmt.Sprintf("LagHigh PAGES: lag %s > %s for %s", seconds(l.Lag), seconds(limit), seconds(s.Page.For.Seconds()))}
	case s.Above > 0:
		return span{yellow, fmt.Sprintf("LagHigh pages in %s: lag %s > %s", seconds((s.Page.For - s.Above).Seconds()), seconds(l.Lag), seconds(limit))}
	case s.Page.DropRatio > 0 && ratio > s.Page.DropRatio:
		return span{yellow, fmt.Sprintf("HeartbeatsDropped pages if %.0f %% > %.0f %% goes on", 100*ratio, 100*s.Page.DropRatio)}
	}
	return span{green, "none"}
}

// keys shows them; what is on has a star.
func (s *screen) keys() []line {
	var lines []line
	var now line
	for i, k := range keys {
		switch i {
		case 0:
		case 3:
			lines, now = append(lines, now), nil
		default:
			now = append(now, span{plain, "  "})
		}
		style, on := plain, " "
		if k.on != nil && k.on(s.Service.Fault) {
			style, on = yellow, "*"
		}
		now = append(now, span{bold, "[" + string(k.key) + "]"}, span{style, on + k.label})
	}
	return append(lines, now)
}

// text is the screen as one line, for where there is no terminal. What is usually nothing is left out.
func (s *screen) text() string {
	p, a, l := s.probe()
	feel, _ := s.feel()
	text := fmt.Sprintf("%5s  lag %-6s  sent %d = on time %d + dropped %d + indeterminate %d + in flight %d",
		clock(s.Elapsed), ifSeen(l, seconds(l.Lag)), a.Sent, a.OnTime, a.Dropped, a.Indeterminate, a.InFlight)
	for _, c := range []struct {
		n    uint64
		word string
	}{{a.Late, "late"}, {a.Duplicated, "twice"}, {p.Sent.Failure, "refused"}} {
		if c.n > 0 {
			text += fmt.Sprintf(", %s %d", c.word, c.n)
		}
	}
	text += " | " + feel
	if alert := s.alert(); alert.style != green {
		text += " | " + alert.text
	}
	return text
}

// seconds says a number of seconds as precisely as a person wants it.
func seconds(s float64) string {
	switch s = max(0, s); {
	case s == math.Trunc(s), s >= 9.95:
		return fmt.Sprintf("%.0f s", s)
	case s < 0.1:
		return fmt.Sprintf("%.0f ms", 1000*s)
	}
	return fmt.Sprintf("%.1f s", s)
}

// share says what part of the messages something happens to.
func share(part float64) string {
	if n := 1 / part; part < 0.6 && math.Abs(n-math.Round(n)) < 0.4 {
		return fmt.Sprintf("1 in %.0f messages", n)
	}
	return fmt.Sprintf("%.0f %% of the messages", 100*part)
}

func clock(d time.Duration) string {
	return fmt.Sprintf("%d:%02d", int(d.Minutes()), int(d.Seconds())%60)
}

// wrap breaks text into lines at spaces.
func wrap(text string, width int) []string {
	var lines []string
	for word := range strings.FieldsSeq(text) {
		n := len(lines)
		if n == 0 || len([]rune(lines[n-1]))+1+len([]rune(word)) > width {
			lines = append(lines, word)
			continue
		}
		lines[n-1] += " " + word
	}
	return lines
}
