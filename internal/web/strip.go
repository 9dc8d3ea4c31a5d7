package web

import (
	"fmt"
	"strings"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/monitor"
)

// A fate is what the strip says of one heartbeat. Each one has a letter and a shape of its own, since not
// everybody tells colours apart.
type fate struct {
	Class, Letter, Word string
}

// fates are all there are, in the order of the legend.
var fates = []fate{
	{"ontime", "·", "on time"},
	{"late", "L", "late"},
	{"dropped", "×", "dropped"},
	{"indeterminate", "?", "indeterminate"},
	{"inflight", "›", "under way"},
	{"duplicate", "D", "duplicate"},
	{"refused", "!", "refused by the head"},
	{"skipped", "–", "skipped"},
}

const (
	fateOnTime = iota
	fateLate
	fateDropped
	fateIndeterminate
	fateInFlight
	fateDuplicate
	fateRefused
	fateSkipped
)

// beat is one heartbeat in the strip.
type beat struct {
	fate
	ID    string
	Name  string      // "heartbeat 4711: dropped"
	Lines [][2]string // what is shown when somebody looks at it: a word and a text
}

// fateOf chooses what is worst: what happened at the sink where it went worst.
func fateOf(b monitor.BeatStatus) int {
	switch b.Result {
	case "failure":
		return fateRefused
	case "skipped":
		return fateSkipped
	}
	rank := [...]int{fateOnTime: 0, fateDuplicate: 1, fateInFlight: 2, fateIndeterminate: 3, fateLate: 4, fateDropped: 5, fateRefused: 0, fateSkipped: 0}
	worst, known := fateOnTime, false
	for _, s := range b.Sinks {
		f := fateOnTime
		switch s.Outcome {
		case "late":
			f = fateLate
		case "dropped":
			f = fateDropped
		case "indeterminate":
			f = fateIndeterminate
		case "in_flight":
			f = fateInFlight
		case "":
			continue
		}
		if s.Duplicates > 0 && f == fateOnTime {
			f = fateDuplicate
		}
		if !known || rank[f] > rank[worst] {
			worst = f
		}
		known = true
	}
	if !known && b.Result == "pending" {
		return fateInFlight
	}
	if !known && b.Result == "unknown" {
		return fateIndeterminate
	}
	return worst
}

// resultWord says what the head answered.
func resultWord(r string) string {
	switch r {
	case "success":
		return "taken by the head"
	case "failure":
		return "refused by the head"
	case "unknown":
		return "no answer from the head: nobody knows whether it was taken"
	case "pending":
		return "being sent"
	case "skipped":
		return "not sent"
	}
	return clean(r)
}

// newBeat words one heartbeat. lanes is set where the probe has several.
func newBeat(b monitor.BeatStatus, lanes bool) beat {
	f := fates[fateOf(b)]
	out := beat{fate: f, ID: fmt.Sprintf("b%d-%d", b.Lane, b.Seq)}
	if b.Result == "skipped" || b.Seq == 0 {
		// Without a number of its own; the place of a tick does.
		out.ID = fmt.Sprintf("t%d-%d", b.Lane, b.Due.UnixMilli())
	}
	out.Name = fmt.Sprintf("heartbeat %d", b.Seq)
	if lanes {
		out.Name += fmt.Sprintf(" in lane %d", b.Lane)
	}
	out.Name += ": " + f.Word
	line := func(word, format string, args ...any) {
		out.Lines = append(out.Lines, [2]string{word, fmt.Sprintf(format, args...)})
	}
	const at = "15:04:05.000"
	times := "due " + b.Due.UTC().Format(at)
	if !b.Sent.IsZero() {
		times = "sent " + b.Sent.UTC().Format(at) + ", " + times
	}
	line("times", "%s UTC", times)
	if w := resultWord(b.Result); w != "" {
		line("head", "%s", w)
	}
	if b.Error != "" {
		line("error", "%s", clean(b.Error))
	}
	for _, s := range b.Sinks {
		line(clean(s.Sink), "%s", arrival(s))
	}
	return out
}

// arrival says what became of a heartbeat at a sink.
func arrival(s monitor.BeatSinkStatus) string {
	var parts []string
	switch s.Outcome {
	case "on_time":
		parts = append(parts, "on time")
	case "in_flight":
		parts = append(parts, "under way")
	case "":
	default:
		parts = append(parts, clean(s.Outcome))
	}
	if s.Reason != "" {
		parts = append(parts, clean(strings.ReplaceAll(s.Reason, "_", " ")))
	}
	if !s.Arrived.IsZero() {
		parts = append(parts, "arrived "+s.Arrived.UTC().Format("15:04:05.000")+", latency "+duration(seconds(s.Latency)))
	}
	if s.Duplicates > 0 {
		parts = append(parts, several(s.Duplicates, "time more", "times more"))
	}
	if s.Retries > 0 {
		parts = append(parts, "tried "+several(s.Retries, "time", "times")+" before")
	}
	if len(parts) == 0 {
		return "not seen"
	}
	return strings.Join(parts, ", ")
}

// strip is the last heartbeats, the oldest first.
type strip struct {
	Beats  []beat
	Legend []fateCount
	From   string // the time of the oldest
	Span   string
}

type fateCount struct {
	fate
	N int
}

func newStrip(all []monitor.BeatStatus) strip {
	var s strip
	lanes := false
	for _, b := range all {
		lanes = lanes || b.Lane != all[0].Lane
	}
	n := make([]int, len(fates))
	for _, b := range all {
		s.Beats = append(s.Beats, newBeat(b, lanes))
		n[fateOf(b)]++
	}
	for i, f := range fates {
		s.Legend = append(s.Legend, fateCount{f, n[i]})
	}
	if len(all) > 0 {
		first, last := all[0].Due, all[len(all)-1].Due
		s.From = first.UTC().Format("15:04:05 UTC")
		s.Span = duration(last.Sub(first).Round(time.Second))
	}
	return s
}
