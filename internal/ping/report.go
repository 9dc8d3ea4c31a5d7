package ping

import (
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/config"
	"github.com/lag-monitor/lag-monitor/internal/ledger"
	"github.com/lag-monitor/lag-monitor/internal/lines"
)

// Text writes a line for each heartbeat, for people.
type Text struct {
	W     io.Writer
	Quiet bool // only the summary
}

// Begin implements Report.
func (t *Text) Begin(p Plan) {
	if t.Quiet {
		return
	}
	to := ", no sink: only what the head says is told"
	if len(p.Sinks) > 0 {
		var names []string
		for _, n := range p.Sinks {
			kind := p.Kinds[n]
			if p.Roles[n] != config.Destination {
				kind += ", " + p.Roles[n]
			}
			names = append(names, n+" ("+kind+")")
		}
		to = " to " + strings.Join(names, ", ")
	}
	fmt.Fprintf(t.W, "PING %s: %s%s: every %v, on time within %v", p.Probe, p.Head, to, p.Interval, p.Timeout)
	if p.Expiry > 0 {
		fmt.Fprintf(t.W, " after %v in the pipeline", p.Expiry)
	}
	fmt.Fprintln(t.W)
}

// Beat implements Report.
func (t *Text) Beat(b Beat) {
	if t.Quiet {
		return
	}
	var line strings.Builder
	fmt.Fprintf(&line, "seq=%d lane=%d", b.Seq, b.Lane)
	switch b.Result {
	case ledger.Refused:
		fmt.Fprintf(&line, " REFUSED: %s", errorText(b.Err))
	case ledger.Unknown:
		fmt.Fprintf(&line, " (the head's answer was lost: %s)", errorText(b.Err))
	}
	if b.Result == ledger.Accepted && len(b.Sinks) == 0 {
		fmt.Fprintf(&line, " accepted in %s", lines.Latency(b.Took))
	}
	for _, s := range b.Sinks {
		fmt.Fprintf(&line, "  %s %s", s.Sink, s.text())
	}
	fmt.Fprintln(t.W, line.String())
}

func (s AtSink) text() string {
	switch s.Outcome {
	case OnTime:
		return lines.Latency(s.Latency)
	case Late:
		return "LATE " + lines.Latency(s.Latency)
	case Dropped:
		return "DROPPED"
	case InFlight:
		return "in flight"
	}
	if s.Arrived {
		return "in doubt " + lines.Latency(s.Latency)
	}
	return "in doubt"
}

// Extra implements Report.
func (t *Text) Extra(e Extra) {
	if t.Quiet {
		return
	}
	text := map[string]string{
		"late":        "came out after all, LATE " + lines.Latency(e.Latency),
		"duplicate":   "came out once more (duplicate)",
		"redelivery":  "was delivered once more by the broker (redelivery)",
		"unaccounted": "came out although the head had refused it",
	}[e.Kind]
	fmt.Fprintf(t.W, "seq=%d lane=%d  %s %s\n", e.Seq, e.Lane, e.Sink, text)
}

// Summary writes the account. maxLoss is what is allowed.
func (t *Text) Summary(s *Summary, maxLoss float64) {
	if !t.Quiet {
		fmt.Fprintln(t.W)
	}
	fmt.Fprintf(t.W, "%s: %d heartbeats in %s: the head accepted %d, refused %d, unknown %d", s.Probe, s.Accepted+s.Refused+s.Unknown,
		lines.Latency(s.Took), s.Accepted, s.Refused, s.Unknown)
	if s.Skipped > 0 {
		fmt.Fprintf(t.W, "; %d ticks were skipped because the head was busy with the one before", s.Skipped)
	}
	fmt.Fprintln(t.W)
	if len(s.Sinks) > 0 {
		tw := tabwriter.NewWriter(t.W, 0, 0, 2, ' ', 0)
		fmt.Fprintln(tw, "SINK\tSENT\tON TIME\tLATE\tDROPPED\tINDETERMINATE\tIN FLIGHT\tTWICE\tMIN\tP50\tP99\tMAX")
		for _, n := range s.Sinks {
			fmt.Fprintf(tw, "%s\t%d\t%d\t%d\t%d\t%d\t%d\t%d", n.Sink, n.Sent, n.OnTime, n.Late, n.Dropped, n.Indeterminate, n.Flight, n.Duplicated)
			for _, d := range []time.Duration{n.Min, n.P50, n.P99, n.Max} {
				if n.Arrived == 0 {
					fmt.Fprint(tw, "\t-")
				} else {
					fmt.Fprint(tw, "\t"+lines.Latency(d))
				}
			}
			fmt.Fprintln(tw)
		}
		_ = tw.Flush()
	}
	for _, n := range s.Sinks {
		if n.Trouble != "" {
			fmt.Fprintf(t.W, "trouble at %s: %s\n", n.Sink, lines.Clean(n.Trouble))
		}
	}
	loss, worst := s.Loss()
	fmt.Fprintf(t.W, "not on time: %s", percent(loss))
	if worst != "" {
		fmt.Fprintf(t.W, " at %s", worst)
	}
	fmt.Fprintf(t.W, ", allowed: %s\n", percent(maxLoss))
}

func percent(f float64) string { return strconv.FormatFloat(math.Round(f*1e4)/100, 'f', -1, 64) + "%" }

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return lines.Clean(err.Error())
}

// JSON writes an object a line. Durations are in seconds.
type JSON struct {
	W     io.Writer
	Quiet bool // only the summary
}

var results = map[ledger.Result]string{ledger.Accepted: "accepted", ledger.Unknown: "unknown", ledger.Refused: "refused"}

// Begin implements Report.
func (j *JSON) Begin(p Plan) {
	if j.Quiet {
		return
	}
	_ = lines.JSON(j.W, struct {
		Type     string   `json:"type"`
		Probe    string   `json:"probe"`
		Head     string   `json:"head"`
		Sinks    []string `json:"sinks"`
		Interval float64  `json:"interval"`
		Expiry   float64  `json:"expiry"`
		Timeout  float64  `json:"timeout"`
	}{"begin", p.Probe, p.Head, append([]string{}, p.Sinks...), p.Interval.Seconds(), p.Expiry.Seconds(), p.Timeout.Seconds()})
}

// Beat implements Report.
func (j *JSON) Beat(b Beat) {
	if j.Quiet {
		return
	}
	type atSink struct {
		Sink    string   `json:"sink"`
		Outcome Outcome  `json:"outcome"`
		Latency *float64 `json:"latency,omitempty"`
	}
	out := struct {
		Type   string    `json:"type"`
		Probe  string    `json:"probe"`
		Lane   uint32    `json:"lane"`
		Seq    uint64    `json:"seq"`
		Sent   time.Time `json:"sent"`
		Due    time.Time `json:"due"`
		Result string    `json:"result"`
		Error  string    `json:"error,omitempty"`
		Took   float64   `json:"inject_duration"`
		Sinks  []atSink  `json:"sinks"`
	}{"heartbeat", b.Probe, b.Lane, b.Seq, b.Sent.UTC(), b.Due.UTC(), results[b.Result], errorText(b.Err), b.Took.Seconds(), []atSink{}}
	for _, s := range b.Sinks {
		a := atSink{Sink: s.Sink, Outcome: s.Outcome}
		if s.Arrived {
			l := s.Latency.Seconds()
			a.Latency = &l
		}
		out.Sinks = append(out.Sinks, a)
	}
	_ = lines.JSON(j.W, out)
}

// Extra implements Report.
func (j *JSON) Extra(e Extra) {
	if j.Quiet {
		return
	}
	_ = lines.JSON(j.W, struct {
		Type    string    `json:"type"`
		Probe   string    `json:"probe"`
		Sink    string    `json:"sink"`
		Lane    uint32    `json:"lane"`
		Seq     uint64    `json:"seq"`
		Time    time.Time `json:"time"`
		Latency float64   `json:"latency"`
	}{e.Kind, e.Probe, e.Sink, e.Lane, e.Seq, e.At.UTC(), e.Latency.Seconds()})
}

// Summary writes the account. maxLoss is what is allowed.
func (j *JSON) Summary(s *Summary, maxLoss float64) {
	type latency struct {
		Min float64 `json:"min"`
		P50 float64 `json:"p50"`
		P99 float64 `json:"p99"`
		Max float64 `json:"max"`
	}
	type sink struct {
		Sink          string   `json:"sink"`
		Sent          uint64   `json:"sent"`
		OnTime        uint64   `json:"on_time"`
		Late          uint64   `json:"late"`
		Dropped       uint64   `json:"dropped"`
		Indeterminate uint64   `json:"indeterminate"`
		InFlight      uint64   `json:"in_flight"`
		Duplicated    uint64   `json:"duplicated"`
		Latency       *latency `json:"latency,omitempty"`
		Trouble       string   `json:"trouble,omitempty"`
	}
	loss, _ := s.Loss()
	out := struct {
		Type        string  `json:"type"`
		Probe       string  `json:"probe"`
		Duration    float64 `json:"duration"`
		Interrupted bool    `json:"interrupted"`
		Accepted    uint64  `json:"accepted"`
		Refused     uint64  `json:"refused"`
		Unknown     uint64  `json:"unknown"`
		Skipped     uint64  `json:"skipped"`
		Loss        float64 `json:"loss"`
		MaxLoss     float64 `json:"max_loss"`
		OK          bool    `json:"ok"`
		Sinks       []sink  `json:"sinks"`
	}{"summary", s.Probe, s.Took.Seconds(), s.Interrupted, s.Accepted, s.Refused, s.Unknown, s.Skipped, loss, maxLoss, loss <= maxLoss, []sink{}}
	for _, n := range s.Sinks {
		o := sink{n.Sink, n.Sent, n.OnTime, n.Late, n.Dropped, n.Indeterminate, n.Flight, n.Duplicated, nil, lines.Clean(n.Trouble)}
		if n.Arrived > 0 {
			o.Latency = &latency{n.Min.Seconds(), n.P50.Seconds(), n.P99.Seconds(), n.Max.Seconds()}
		}
		out.Sinks = append(out.Sinks, o)
	}
	_ = lines.JSON(j.W, out)
}
