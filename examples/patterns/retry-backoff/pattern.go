package retrybackoff

import (
	_ "embed"

	"github.com/lag-monitor/lag-monitor/examples/patterns/service"
	"github.com/lag-monitor/lag-monitor/examples/patterns/stage"
)

//go:embed config.yaml
var config string

func worker(failures int) service.Part { return service.Part{Name: "worker", Run: Worker(failures)} }

// Pattern returns the queue with retries as it is put on a stage.
func Pattern() stage.Pattern {
	return stage.Pattern{
		Name: "retry-backoff", What: "a worker that tries again, after 250 ms, 500 ms and 1 s",
		Broker: stage.RabbitMQ, Config: config, Declare: Declare,
		Parts: []service.Part{worker(0)},
		Sinks: []string{"done"},
		Stories: []stage.Story{
			{
				Name: "fails-twice", Breaks: "what the worker calls fails twice for each job, and then does it",
				Do: func(s *stage.Stage) { s.Replace(worker(2)) },
				Shows: []string{
					// 750 ms of pauses, where it was next to nothing.
					`lag_monitor_lag_seconds{sink="done"} > 0.7 < 8`, `sum(lag_monitor_heartbeats_dropped_total{}) == 0`,
				},
				Page: `"retries":2`,
			},
			{
				Name: "fails-always", Breaks: "what the worker calls is down, and each job is given up after three retries",
				Do:     func(s *stage.Stage) { s.Replace(worker(100)) },
				Alerts: []string{"LagHigh jobs", "HeartbeatsDeadLettered jobs"},
				Shows: []string{
					`lag_monitor_heartbeats_dead_lettered_total{sink="dead",reason="rejected"} > 1`,
					`lag_monitor_heartbeats_dropped_total{sink="done",reason="dead_lettered"} > 1`,
				},
			},
		},
	}
}
