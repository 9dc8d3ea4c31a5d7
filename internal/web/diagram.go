package web

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/lag-monitor/lag-monitor/internal/monitor"
)

// The shapes of a diagram, by what a station is.
const (
	shapeProcess = "process" // a box: what takes a message and does something with it
	shapeStore   = "store"   // a cylinder: where messages lie
	shapeState   = "state"   // rounded: what became of them
)

// The kinds of ends that are processes; everything else is a queue of some sort.
var processes = []string{"http", "http_poll", "webhook", "grpc"}

// node is a station of a pipeline.
type node struct {
	severity
	ID, Name, Note string
	Shape          string
	X, Y, W, H     int
	column, row    int
}

// edge is a way between two nodes.
type edge struct {
	severity
	From, To    string // IDs
	Label, Note string // what is on the arrow: rate and latency, and what is wrong
	Dashed      bool
	Path        string // of the SVG
	LabelX      int
	LabelY      int
	fromN, toN  *node
	Title       string
}

// diagram is a pipeline as it is watched: the head, the stations on the way, the destinations with what
// became of the heartbeats there, and the queues of dead letters.
type diagram struct {
	Title, Desc string
	W, H        int
	Nodes       []*node
	Edges       []*edge
	Mermaid     string
}

// The measures of a diagram, in pixels.
const (
	nodeW, nodeH = 150, 58
	gapX, gapY   = 116, 34
	margin       = 12
	// nameWidth is how many characters of a name fit into a node.
	nameWidth = 19
)

func newDiagram(p monitor.ProbeDetail, sinks sinkTable, v verdict) diagram {
	b := builder{p: p, sinks: sinks, v: v, nodes: make(map[string]*node)}
	b.stations()
	b.layout()
	return b.d
}

type builder struct {
	p     monitor.ProbeDetail
	sinks sinkTable
	v     verdict
	d     diagram
	head  *node
	nodes map[string]*node // by sink
}

// add gives a node its number.
func (b *builder) add(n *node) {
	n.ID = "n" + strconv.Itoa(len(b.d.Nodes))
	b.d.Nodes = append(b.d.Nodes, n)
}

// from is the node where a hop begins. A sink may be called head, too, and then has no hop of its own.
func (b *builder) from(name string) *node {
	if name == "head" {
		return b.head
	}
	return b.nodes[name]
}

func shapeOf(kind string) string {
	if slices.Contains(processes, kind) {
		return shapeProcess
	}
	return shapeStore
}

// stations makes the nodes and the edges, and puts each node into a column.
func (b *builder) stations() {
	p := b.p
	head := &node{Name: "head", Shape: shapeOf(p.Head), Note: clean(p.Head), severity: fine}
	switch {
	case p.Head == "":
		head.Note, head.Shape = "fed from elsewhere", shapeProcess
	case p.Paused != nil:
		head.severity, head.Note = paused, clean(p.Head)+", paused"
	case p.Failing:
		head.severity, head.Note = ticket, clean(p.Head)+", refuses"
	}
	b.head = head
	b.add(head)
	last, lastColumn := "head", 0
	pairs := make(map[string]*monitor.PairStatus, len(p.Sinks))
	for i := range p.Sinks {
		w := &p.Sinks[i]
		pairs[w.Sink] = w
		n := &node{Name: clean(w.Sink), Shape: shapeOf(b.sinks[w.Sink].Kind), Note: clean(b.sinks[w.Sink].Kind), column: lastColumn + 1, severity: b.stationSeverity(w)}
		if b.sinks.blind(w.Sink) {
			n.Note += ", not read"
		}
		if w.Role == roleDeadLetter {
			n.Note = "dead letters"
		}
		b.nodes[w.Sink] = n
		b.add(n)
		if w.Role == roleHop {
			last, lastColumn = w.Sink, lastColumn+1
		}
	}
	covered := make(map[string]bool)
	for _, h := range p.Hops {
		from, to := b.from(h.From), b.nodes[h.To]
		if from == nil || to == nil || from == to || pairs[h.To] == nil {
			continue
		}
		covered[h.To] = true
		to.column = max(to.column, from.column+1)
		b.hop(from, to, h, pairs[h.To])
	}
	for i := range p.Sinks {
		w := &p.Sinks[i]
		if covered[w.Sink] {
			continue
		}
		b.hop(b.from(last), b.nodes[w.Sink], monitor.HopStatus{From: last, To: w.Sink, Rate: w.Rate, Latency: w.Latency, Seen: seenAt(w) && w.Role != roleDeadLetter}, w)
	}
	end := 0
	for _, n := range b.d.Nodes {
		end = max(end, n.column)
	}
	// Destinations stand below each other, whatever the way to them, and what became of the heartbeats last.
	for i := range p.Sinks {
		w := &p.Sinks[i]
		if w.Role == roleHop {
			continue
		}
		n := b.nodes[w.Sink]
		n.column = end
		b.outcome(w, n, end+1)
	}
}

func (b *builder) stationSeverity(w *monitor.PairStatus) severity {
	switch {
	case b.p.Paused != nil:
		return paused
	case b.sinks.blind(w.Sink) && isDestination(*w):
		return trouble
	case b.sinks.blind(w.Sink):
		return ticket
	case !isDestination(*w):
		return fine
	case b.v.Limit > 0 && lagAt(w) > b.v.Limit:
		return trouble
	case b.v.State == "losing" && lostAt(b.p.Beats, w.Sink) > 0:
		return b.v.severity
	case b.p.TicketLimits != nil && b.p.TicketLimits.Lag > 0 && lagAt(w) > b.p.TicketLimits.Lag:
		return ticket
	case !seenAt(w):
		return waiting
	}
	return fine
}

func (b *builder) hop(from, to *node, h monitor.HopStatus, w *monitor.PairStatus) {
	e := &edge{From: from.ID, To: to.ID, fromN: from, toN: to, Dashed: w.Role == roleDeadLetter, severity: to.severity}
	e.Label = rate(h.Rate)
	switch {
	case w.Role == roleDeadLetter:
		e.severity = fine
	case isDestination(*w):
		// The arrow into a destination has the lag, which is what users feel.
		e.Note = "lag " + duration(seconds(lagAt(w)))
	case h.Seen:
		e.Note = "took " + duration(seconds(h.Latency))
	}
	if s := b.p.Stuck; s != nil && s.From == h.From && s.To == h.To {
		e.severity, e.Note, e.Dashed = trouble, "stuck", true
	}
	e.Title = station(h.From) + " to " + station(h.To) + ": " + e.Label
	if h.Seen {
		e.Title += fmt.Sprintf(", the newest heartbeat took %s, half of them at most %s, 99 of 100 at most %s",
			duration(seconds(h.Latency)), duration(seconds(h.P50)), duration(seconds(h.P99)))
	}
	if e.Note != "" {
		e.Title += ", " + e.Note
	}
	b.d.Edges = append(b.d.Edges, e)
}

// lostAt counts the heartbeats that were dropped at a sink.
func lostAt(beats []monitor.BeatStatus, sink string) int {
	n := 0
	for _, b := range beats {
		if slices.ContainsFunc(b.Sinks, func(s monitor.BeatSinkStatus) bool { return s.Sink == sink && s.Outcome == "dropped" }) {
			n++
		}
	}
	return n
}

// rate writes how often something happens, in the unit that gives a number one can read.
func rate(perSecond float64) string {
	switch {
	case perSecond <= 0:
		return "0/min"
	case perSecond < 1:
		return strconv.FormatFloat(perSecond*60, 'f', 1, 64) + "/min"
	}
	return strconv.FormatFloat(perSecond, 'f', 1, 64) + "/s"
}

// outcome adds what became of the heartbeats at a destination or in a queue of dead letters.
func (b *builder) outcome(w *monitor.PairStatus, at *node, column int) {
	n := &node{Shape: shapeState, column: column}
	switch w.Role {
	case roleDeadLetter:
		dead := 0
		for _, beat := range b.p.Beats {
			if slices.ContainsFunc(beat.Sinks, func(s monitor.BeatSinkStatus) bool { return strings.Contains(s.Reason, "dead_lettered") }) {
				dead++
			}
		}
		n.Name, n.Note = "dead-lettered", fmt.Sprintf("%d of the last %d", dead, len(b.p.Beats))
		if dead > 0 {
			n.severity = ticket
		}
	default:
		n.Name, n.severity = "on time "+count(w.OnTime), at.severity
		var parts []string
		for _, c := range []struct {
			n    uint64
			word string
		}{{w.Dropped, "dropped"}, {w.Indeterminate, "in doubt"}, {w.InFlight, "on its way"}} {
			if c.n > 0 {
				parts = append(parts, count(c.n)+" "+c.word)
			}
		}
		n.Note = strings.Join(parts[:min(len(parts), 2)], ", ")
		if w.Dropped > 0 && w.Indeterminate == 0 {
			n.Note = parts[0]
		}
	}
	b.add(n)
	e := &edge{From: at.ID, To: n.ID, fromN: at, toN: n, severity: n.severity, Dashed: w.Role == roleDeadLetter, Title: at.Name + ": " + n.Name + " " + n.Note}
	b.d.Edges = append(b.d.Edges, e)
}

// layout gives everything its place: columns from left to right, rows from top to bottom.
func (b *builder) layout() {
	rows := make(map[int]int)
	most := 0
	for _, n := range b.d.Nodes {
		n.row = rows[n.column]
		rows[n.column]++
		most = max(most, rows[n.column])
	}
	b.d.H = 2*margin + most*nodeH + (most-1)*gapY
	for _, n := range b.d.Nodes {
		n.W, n.H = nodeW, nodeH
		n.X = margin + n.column*(nodeW+gapX)
		if n.Shape == shapeState {
			n.X -= gapX - 44 // nothing is written on the way to a state
		}
		// A column with fewer nodes than the fullest stands in the middle.
		free := b.d.H - 2*margin - rows[n.column]*nodeH - (rows[n.column]-1)*gapY
		n.Y = margin + free/2 + n.row*(nodeH+gapY)
		b.d.W = max(b.d.W, n.X+n.W+margin)
	}
	out := make(map[*node]int)
	for _, e := range b.d.Edges {
		out[e.fromN]++
	}
	for _, e := range b.d.Edges {
		x1, y1, x2, y2 := e.fromN.X+e.fromN.W, e.fromN.Y+e.fromN.H/2, e.toN.X-7, e.toN.Y+e.toN.H/2
		bend := (x2 - x1) / 2
		e.Path = fmt.Sprintf("M%d %dC%d %d %d %d %d %d", x1, y1, x1+bend, y1, x2-bend, y2, x2, y2)
		if y1 == y2 {
			e.Path = fmt.Sprintf("M%d %dH%d", x1, y1, x2)
		}
		e.LabelX, e.LabelY = (x1+x2)/2, y2
		if out[e.fromN] > 1 {
			e.LabelX = x2 - 40 // where the ways have parted
		}
	}
	b.describe()
	b.mermaid()
}

// Text returns a name short enough for its node.
func (n *node) Text() string { return short(n.Name, nameWidth) }

// Sub returns the note, short enough for its node.
func (n *node) Sub() string { return short(n.Note, nameWidth+5) }

// MidX and the following are the places of the parts of a shape.
func (n *node) MidX() int  { return n.X + n.W/2 }
func (n *node) TextY() int { return n.Y + n.H/2 - 2 + n.dip() }
func (n *node) NoteY() int { return n.Y + n.H/2 + 15 + n.dip() }

// dip moves the text of a cylinder below its lid.
func (n *node) dip() int {
	if n.Shape == shapeStore {
		return 4
	}
	return 0
}

// Cylinder returns the outline of a cylinder, and its lid.
func (n *node) Cylinder() string {
	const lid = 7
	return fmt.Sprintf("M%d %da%d %d 0 0 1 %d 0v%da%d %d 0 0 1 -%d 0z", n.X, n.Y+lid, n.W/2, lid, n.W, n.H-2*lid, n.W/2, lid, n.W)
}

// Lid returns the front of the lid of a cylinder.
func (n *node) Lid() string {
	const lid = 7
	return fmt.Sprintf("M%d %da%d %d 0 0 0 %d 0", n.X, n.Y+lid, n.W/2, lid, n.W)
}

// Round is the radius of the corners.
func (n *node) Round() int {
	if n.Shape == shapeState {
		return n.H / 2
	}
	return 3
}

func short(s string, most int) string {
	if utf8.RuneCountInString(s) <= most {
		return s
	}
	r := []rune(s)
	return string(r[:most-1]) + "…"
}

// describe says in words what the picture shows, for those who do not see it.
func (b *builder) describe() {
	b.d.Title = "The pipeline of " + clean(b.p.Name)
	parts := make([]string, len(b.d.Edges))
	for i, e := range b.d.Edges {
		parts[i] = e.Title
	}
	b.d.Desc = cmp.Or(strings.Join(parts, "; "), "It has no stations that are watched") + "."
}

// mermaid writes the same picture as text, for a ticket or a wiki.
func (b *builder) mermaid() {
	var t strings.Builder
	t.WriteString("flowchart LR\n")
	for _, n := range b.d.Nodes {
		open, end := "[", "]"
		switch n.Shape {
		case shapeStore:
			open, end = "[(", ")]"
		case shapeState:
			open, end = "([", "])"
		}
		text := mermaidText(n.Name)
		if n.Note != "" {
			text += "<br>" + mermaidText(n.Note)
		}
		fmt.Fprintf(&t, "  %s%s\"%s\"%s:::%s\n", n.ID, open, text, end, n.Class())
	}
	for _, e := range b.d.Edges {
		arrow := "-->"
		if e.Dashed {
			arrow = "-.->"
		}
		text := strings.Join(slices.DeleteFunc([]string{e.Label, e.Note}, func(s string) bool { return s == "" }), ", ")
		if text == "" {
			fmt.Fprintf(&t, "  %s %s %s\n", e.From, arrow, e.To)
		} else {
			fmt.Fprintf(&t, "  %s %s|\"%s\"| %s\n", e.From, arrow, mermaidText(text), e.To)
		}
	}
	for _, c := range []struct{ class, colour string }{
		{"fine", "1a7f4b"}, {"waiting", "5b6b86"}, {"paused", "6941c6"}, {"ticket", "9a6700"}, {"trouble", "c0262d"},
	} {
		fmt.Fprintf(&t, "  classDef %s stroke:#%s,stroke-width:2px\n", c.class, c.colour)
	}
	b.d.Mermaid = t.String()
}

// mermaidText escapes what would end a quoted text or be taken for markup.
func mermaidText(s string) string {
	var b strings.Builder
	for _, r := range s {
		switch r {
		case '"', '#', '<', '>', '&', '`', '\\', ';':
			fmt.Fprintf(&b, "#%d;", r)
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}
