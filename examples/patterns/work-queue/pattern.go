package workqueue

import (
	_ "embed"

	"github.com/lag-monitor/lag-monitor/examples/patterns/service"
	"github.com/lag-monitor/lag-monitor/examples/patterns/stage"
)

//go:embed config.yaml
var config string

// Pattern returns the work queue as it is put on a stage.
func Pattern() stage.Pattern {
	return stage.Pattern{
		Name: "work-queue", What: "a queue, two workers, acknowledgements by hand, prefetch",
		Broker: stage.RabbitMQ, Config: config, Declare: Declare,
		Sinks: []string{"done"},
		Parts: []service.Part{{Name: "worker-1", Run: Worker}, {Name: "worker-2", Run: Worker}},
		Stories: []stage.Story{
			{
				Name: "worker-dies", Breaks: "one of the two workers is killed",
				Do:    func(s *stage.Stage) { s.Kill("worker-1") },
				Shows: []string{`lag_monitor_backlog_consumers{queue="orders.work"} == 1`, `lag_monitor_lag_seconds{sink="done"} < 8`},
			},
			{
				Name: "workers-die", Breaks: "both workers are killed",
				Do:     func(s *stage.Stage) { s.Kill("worker-1", "worker-2") },
				Alerts: []string{"LagHigh orders"},
				Shows:  []string{`lag_monitor_backlog_consumers{queue="orders.work"} == 0`, `lag_monitor_backlog_messages{queue="orders.work"} > 5`},
			},
			{
				Name: "worker-rejects", Breaks: "one worker gets a version that rejects every order",
				Do:     func(s *stage.Stage) { s.Replace(service.Part{Name: "worker-1", Run: Rejecter}) },
				Alerts: []string{"HeartbeatsDropped orders"},
				Shows:  []string{`lag_monitor_heartbeats_dropped_total{sink="done",reason="timeout"} > 1`, `lag_monitor_lag_seconds{sink="done"} < 8`},
			},
			{
				Name: "worker-hangs", Breaks: "one worker hangs, with as many orders as it may have",
				Do:     func(s *stage.Stage) { s.Replace(service.Part{Name: "worker-1", Run: Hanger}) },
				Alerts: []string{"HeartbeatsDropped orders"},
				Shows:  []string{`lag_monitor_heartbeats_dropped_total{sink="done",reason="timeout"} > 1`, `lag_monitor_backlog_consumers{queue="orders.work"} == 2`},
			},
		},
	}
}
