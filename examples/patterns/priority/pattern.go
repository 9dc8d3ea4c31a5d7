package priority

import (
	_ "embed"

	"github.com/lag-monitor/lag-monitor/examples/patterns/service"
	"github.com/lag-monitor/lag-monitor/examples/patterns/stage"
)

//go:embed config.yaml
var config string

func callers(perSecond int) service.Part {
	return service.Part{Name: "callers", Run: Callers(perSecond)}
}

// Pattern returns the priority queue as it is put on a stage.
func Pattern() stage.Pattern {
	return stage.Pattern{
		Name: "priority", What: "a priority queue, a worker and those who load it",
		Broker: stage.RabbitMQ, Config: config, Declare: Declare,
		Parts: []service.Part{{Name: "worker", Run: Worker}, callers(0)},
		Sinks: []string{"done"},
		Stories: []stage.Story{
			{
				Name: "overload", Breaks: "forty calls a second come in, and the worker does twenty",
				Do:     func(s *stage.Stage) { s.Replace(callers(40)) },
				Alerts: []string{"LagHigh calls-low"},
				Shows: []string{
					`lag_monitor_lag_seconds{probe="calls-low"} > 8`, `lag_monitor_lag_seconds{probe="calls-high"} < 8`,
					`sum(lag_monitor_heartbeats_dropped_total{probe="calls-high"}) == 0`, `lag_monitor_backlog_messages{queue="calls.work"} > 20`,
				},
			},
		},
	}
}
