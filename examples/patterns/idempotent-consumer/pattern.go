package idempotentconsumer

import (
	_ "embed"
	"time"

	"github.com/lag-monitor/lag-monitor/examples/patterns/service"
	"github.com/lag-monitor/lag-monitor/examples/patterns/stage"
)

//go:embed config.yaml
var config string

func gateway(again time.Duration) service.Part {
	return service.Part{Name: "gateway", Run: Gateway(again)}
}

func worker(field string, memory time.Duration) service.Part {
	return service.Part{Name: "worker", Run: Worker(field, memory)}
}

// Pattern returns the idempotent consumer as it is put on a stage.
func Pattern() stage.Pattern {
	return stage.Pattern{
		Name: "idempotent-consumer", What: "a gateway that may repeat itself, and a worker that does everything once",
		Broker: stage.Redis, Config: config, Declare: Declare,
		Parts: []service.Part{gateway(0), worker("id", Memory)},
		Sinks: []string{"orders", "done"},
		Stories: []stage.Story{
			{
				Name: "gateway-repeats", Breaks: "the gateway does not see answers, and puts each order into the stream twice",
				Do:     func(s *stage.Stage) { s.Replace(gateway(10 * time.Millisecond)) },
				Alerts: []string{"HeartbeatsDuplicated shop"},
				Shows: []string{
					`lag_monitor_heartbeats_duplicated_total{sink="orders",kind="duplicate"} > 5`, `lag_monitor_heartbeats_duplicated_total{sink="done",kind="duplicate"} == 0`,
				},
			},
			{
				Name: "memory-is-short", Breaks: "the gateway repeats itself after 200 ms, and the worker remembers for 50 ms",
				Do: func(s *stage.Stage) {
					s.Replace(worker("id", 50*time.Millisecond))
					s.Replace(gateway(200 * time.Millisecond))
				},
				Alerts: []string{"HeartbeatsDuplicated shop"},
				Shows: []string{
					`lag_monitor_heartbeats_duplicated_total{sink="orders",kind="duplicate"} > 5`, `lag_monitor_heartbeats_duplicated_total{sink="done",kind="duplicate"} > 5`,
				},
			},
			{
				Name: "key-is-too-coarse", Breaks: "the worker gets a version that takes each order of a customer for the first one",
				Do:     func(s *stage.Stage) { s.Replace(worker("customer", Memory)) },
				Alerts: []string{"LagHigh shop"}, Says: "Stuck: heartbeats pass orders and do not come to done.",
				Shows: []string{`lag_monitor_lag_seconds{sink="done"} > 8`, `lag_monitor_lag_seconds{sink="orders"} < 8`, `lag_monitor_stuck{from="orders",to="done"} == 1`},
			},
		},
	}
}
