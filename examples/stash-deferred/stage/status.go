package stage

import (
	"context"
	"fmt"
	"math"
	"strings"

	"github.com/lag-monitor/lag-monitor/internal/servers"
)

// sum adds up the series of a metric with a label's value; an empty label takes all.
func sum(s servers.Scrape, name, label, value string) float64 {
	total := 0.0
	for _, e := range s[name] {
		if label == "" || e.Labels[label] == value {
			total += e.Value
		}
	}
	return total
}

// Status says in one line how things stand.
func (s *Stage) Status(ctx context.Context) string {
	m := s.Scrape(ctx)
	lag := math.NaN()
	for _, e := range m.Find("lag_seconds") {
		lag = e.Value
	}
	var b strings.Builder
	if s.Monitor != nil {
		fmt.Fprintf(&b, "lag %5.1f s", lag)
		if lag > s.Pace.Lag.Seconds() {
			b.WriteString(" TOO HIGH")
		}
		b.WriteString(" | ")
	}
	failures := sum(m, "stashdef_kinesis_message_write_total", "result", "failure") + sum(m, "stashdef_bigtable_row_delete_total", "result", "failure") +
		sum(m, "stashdef_bigtable_row_scan_total", "result", "failure") + sum(m, "stashdef_bigtable_row_write_total", "result", "failure")
	fmt.Fprintf(&b, "in %.0f, due and waiting %.0f, out %.0f, deleted %.0f, failures %.0f",
		sum(m, "stashdef_bigtable_row_write_total", "result", "success"), sum(m, "stashdef_bigtable_backlog_rows", "", ""),
		sum(m, "stashdef_kinesis_message_write_total", "result", "success"), sum(m, "stashdef_bigtable_row_delete_total", "result", "success"), failures)
	if s.Monitor == nil {
		return b.String()
	}
	fmt.Fprintf(&b, " | heartbeats: on time %.0f, dropped %.0f, twice %.0f, refused %.0f",
		m.Sum("heartbeats_received_total", "timing", "on_time"), m.Sum("heartbeats_dropped_total"), m.Sum("heartbeats_duplicated_total"),
		m.Sum("heartbeats_sent_total", "result", "failure"))
	return b.String()
}
