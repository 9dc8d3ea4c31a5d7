package exactlyonce

import (
	_ "embed"

	"github.com/lag-monitor/lag-monitor/examples/patterns/service"
	"github.com/lag-monitor/lag-monitor/examples/patterns/stage"
)

//go:embed config.yaml
var config string

func worker(crash int) service.Part { return service.Part{Name: "worker", Run: Worker(crash)} }

func repair(begin bool) service.Part { return service.Part{Name: "repair", Run: Repair(begin)} }

// Pattern returns the transactions as they are put on a stage.
func Pattern() stage.Pattern {
	return stage.Pattern{
		Name: "exactly-once", What: "read, change and write in one transaction",
		Broker: stage.Kafka, Config: config, Topics: []string{"payments", "paid"},
		Parts: []service.Part{worker(0), repair(false)},
		Sinks: []string{"written", "paid"},
		Stories: []stage.Story{
			{
				Name: "worker-crashes", Breaks: "the worker crashes in each fifth transaction, when it has written and not committed",
				Do:     func(s *stage.Stage) { s.Replace(worker(5)) },
				Alerts: []string{"HeartbeatsDuplicated payments"},
				Shows: []string{
					`lag_monitor_heartbeats_duplicated_total{sink="written",kind="duplicate"} > 1`, `lag_monitor_heartbeats_duplicated_total{sink="paid",kind="duplicate"} == 0`,
					`sum(lag_monitor_heartbeats_dropped_total{}) == 0`,
				},
			},
			{
				Name: "transaction-stays-open", Breaks: "another program begins a transaction on the same topic and does not end it: what the worker commits waits behind it",
				Do:     func(s *stage.Stage) { s.Replace(repair(true)) },
				Alerts: []string{"LagHigh payments"},
				Shows:  []string{`count(lag_monitor_lag_seconds{sink="paid"} > 8) == 3`, `count(lag_monitor_lag_seconds{sink="written"} < 8) == 3`},
				Passes: true,
			},
		},
	}
}
