package deadletter

import (
	_ "embed"

	"github.com/lag-monitor/lag-monitor/examples/patterns/service"
	"github.com/lag-monitor/lag-monitor/examples/patterns/stage"
)

//go:embed config.yaml
var config string

// Pattern returns the queue with a dead-letter queue as it is put on a stage.
func Pattern() stage.Pattern {
	return stage.Pattern{
		Name: "dead-letter", What: "a queue that gives messages up, and says why",
		Broker: stage.RabbitMQ, Config: config, Declare: Declare,
		Parts: []service.Part{{Name: "worker", Run: Worker}},
		Sinks: []string{"done"},
		Stories: []stage.Story{
			{
				Name: "rejected", Breaks: "the worker rejects each third order",
				Do:     func(s *stage.Stage) { s.Replace(service.Part{Name: "worker", Run: Picky(false)}) },
				Alerts: []string{"HeartbeatsDropped orders", "HeartbeatsDeadLettered orders"},
				Shows: []string{
					`lag_monitor_heartbeats_dead_lettered_total{sink="dead",reason="rejected"} > 1`,
					`lag_monitor_heartbeats_dropped_total{sink="done",reason="dead_lettered"} > 1`, `lag_monitor_heartbeats_dropped_total{sink="done",reason="timeout"} == 0`,
				},
			},
			{
				Name: "tried-too-often", Breaks: "the worker puts each third order back, again and again",
				Do:     func(s *stage.Stage) { s.Replace(service.Part{Name: "worker", Run: Picky(true)}) },
				Alerts: []string{"HeartbeatsDropped orders", "HeartbeatsDeadLettered orders"},
				Shows: []string{
					`lag_monitor_heartbeats_dead_lettered_total{sink="dead",reason="delivery_limit"} > 1`,
					`lag_monitor_heartbeats_dropped_total{sink="done",reason="dead_lettered"} > 1`, `lag_monitor_heartbeats_dropped_total{sink="done",reason="timeout"} == 0`,
				},
			},
			{
				Name: "expired", Breaks: "the worker is killed, and orders wait for longer than they may",
				Do:     func(s *stage.Stage) { s.Kill("worker") },
				Alerts: []string{"LagHigh orders", "HeartbeatsDeadLettered orders"},
				Shows: []string{
					`lag_monitor_heartbeats_dead_lettered_total{sink="dead",reason="expired"} > 1`,
					`lag_monitor_heartbeats_dropped_total{sink="done",reason="expired"} > 1`,
				},
			},
		},
	}
}
