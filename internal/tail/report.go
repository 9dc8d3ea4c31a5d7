package tail

import (
	"fmt"
	"io"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/lines"
	"github.com/lag-monitor/lag-monitor/sinks"
)

// Text writes a line for each heartbeat, for people.
type Text struct{ W io.Writer }

const clock = "15:04:05.000"

// Begin implements Report.
func (t *Text) Begin(sink, kind string) {
	fmt.Fprintf(t.W, "TAIL %s (%s): time, kind, probe, instance, lane, sequence, latency\n", sink, kind)
}

// Seen implements Report.
func (t *Text) Seen(s Seen) {
	fmt.Fprintf(t.W, "%s  %-9s", s.At.Format(clock), s.Kind)
	if s.Readable {
		fmt.Fprintf(t.W, "  %s  %s  lane=%d  seq=%d  %s", s.Probe, s.Instance, s.Lane, s.Seq, lines.Latency(s.Latency))
	}
	switch s.Kind {
	case sinks.Corrupt:
		fmt.Fprintf(t.W, "  (%s)", s.Why)
	case sinks.Future:
		fmt.Fprintf(t.W, "  (due %s)", s.Due.UTC().Format(time.RFC3339Nano))
	}
	if s.Past {
		fmt.Fprint(t.W, "  (was in the queue)")
	}
	fmt.Fprintln(t.W)
}

// Other implements Report.
func (t *Text) Other(at time.Time, more, total uint64) {
	fmt.Fprintf(t.W, "%s  %-9s  +%d, %d in all\n", at.Format(clock), sinks.Other, more, total)
}

// Lost implements Report.
func (t *Text) Lost(n uint64) {
	fmt.Fprintf(t.W, "… %d heartbeats came faster than they could be shown\n", n)
}

// JSON writes an object a line. Durations are in seconds.
type JSON struct{ W io.Writer }

// Begin implements Report.
func (j *JSON) Begin(string, string) {}

// Seen implements Report.
func (j *JSON) Seen(s Seen) {
	out := struct {
		Time     time.Time  `json:"time"`
		Kind     string     `json:"kind"`
		Error    string     `json:"error,omitempty"`
		Probe    string     `json:"probe,omitempty"`
		Instance string     `json:"instance,omitempty"`
		Epoch    string     `json:"epoch,omitempty"`
		Lane     *uint32    `json:"lane,omitempty"`
		Seq      *uint64    `json:"seq,omitempty"`
		Sent     *time.Time `json:"sent,omitempty"`
		Due      *time.Time `json:"due,omitempty"`
		Latency  *float64   `json:"latency,omitempty"`
		Past     bool       `json:"past,omitempty"`
	}{Time: s.At.UTC(), Kind: s.Kind.String(), Error: s.Why, Past: s.Past}
	if s.Readable {
		sent, due, latency := s.Sent.UTC(), s.Due.UTC(), s.Latency.Seconds()
		out.Probe, out.Instance, out.Epoch = s.Probe, s.Instance, fmt.Sprintf("%016x", s.Epoch)
		out.Lane, out.Seq, out.Sent, out.Due, out.Latency = &s.Lane, &s.Seq, &sent, &due, &latency
	}
	_ = lines.JSON(j.W, out)
}

// Other implements Report.
func (j *JSON) Other(at time.Time, more, total uint64) {
	_ = lines.JSON(j.W, struct {
		Time  time.Time `json:"time"`
		Kind  string    `json:"kind"`
		More  uint64    `json:"more"`
		Total uint64    `json:"total"`
	}{at.UTC(), sinks.Other.String(), more, total})
}

// Lost implements Report.
func (j *JSON) Lost(n uint64) {
	_ = lines.JSON(j.W, struct {
		Kind string `json:"kind"`
		Lost uint64 `json:"lost"`
	}{"lost", n})
}
