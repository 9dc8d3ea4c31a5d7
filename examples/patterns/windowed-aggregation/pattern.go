package windowedaggregation

import (
	"context"
	_ "embed"
	"time"

	"github.com/lag-monitor/lag-monitor/examples/patterns/service"
	"github.com/lag-monitor/lag-monitor/examples/patterns/stage"
)

//go:embed config.yaml
var config string

func aggregator(carry bool) service.Part {
	return service.Part{Name: "aggregator", Run: Aggregator(carry)}
}

// Pattern returns the aggregation as it is put on a stage.
func Pattern() stage.Pattern {
	return stage.Pattern{
		Name: "windowed-aggregation", What: "counts of clicks in windows of two seconds, with the heartbeats of each window",
		Broker: stage.Kafka, Config: config, Topics: []string{"clicks", "counts"},
		Parts: []service.Part{aggregator(true)},
		Sinks: []string{"counts"},
		Stories: []stage.Story{
			{
				Name: "clock-is-wrong", Breaks: "one click is dated half an hour ahead: every window is over, and all that comes after it is late",
				Do: func(s *stage.Stage) {
					s.Do(func(ctx context.Context, env service.Env) error {
						return Click(ctx, env, "/cart", time.Now().Add(30*time.Minute))
					})
				},
				Alerts: []string{"LagHigh clicks"}, Says: "Users feel it",
				Shows: []string{`count(lag_monitor_lag_seconds{sink="counts"} > 8) == 3`, `sum(lag_monitor_heartbeats_dropped_total{sink="counts",reason="timeout"}) > 5`},
			},
			{
				Name: "heartbeats-are-counted", Breaks: "the aggregator gets a version that knows no heartbeats, and counts them as clicks",
				Do:     func(s *stage.Stage) { s.Replace(aggregator(false)) },
				Alerts: []string{"LagHigh clicks"},
				Shows:  []string{`count(lag_monitor_lag_seconds{sink="counts"} > 8) == 3`, `lag_monitor_sink_messages_total{sink="counts",kind="other"} > 5`},
			},
		},
	}
}
