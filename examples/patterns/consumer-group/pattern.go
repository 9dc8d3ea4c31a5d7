package consumergroup

import (
	_ "embed"

	"github.com/lag-monitor/lag-monitor/examples/patterns/service"
	"github.com/lag-monitor/lag-monitor/examples/patterns/stage"
)

//go:embed config.yaml
var config string

// Pattern returns the consumer group as it is put on a stage.
func Pattern() stage.Pattern {
	return stage.Pattern{
		Name: "consumer-group", What: "two members that share three partitions",
		Broker: stage.Kafka, Config: config, Topics: []string{"parcels", "shipped"},
		Parts: []service.Part{{Name: "member-1", Run: Member}, {Name: "member-2", Run: Member}},
		Sinks: []string{"shipped"},
		Stories: []stage.Story{
			{
				Name: "member-leaves", Breaks: "one member is stopped, and leaves the group: the other one takes its partitions",
				Do:    func(s *stage.Stage) { s.Stop("member-1") },
				Shows: []string{`count(lag_monitor_lag_seconds{sink="shipped"} < 8) == 3`, `sum(lag_monitor_heartbeats_duplicated_total{}) == 0`},
			},
			{
				Name: "member-dies", Breaks: "one member is killed: until the broker misses it, after 45 s, nobody reads its partitions",
				Do:     func(s *stage.Stage) { s.Kill("member-1") },
				Alerts: []string{"LagHigh parcels"},
				Shows:  []string{`count(lag_monitor_lag_seconds{sink="shipped"} > 8) > 0`, `count(lag_monitor_lag_seconds{sink="shipped"} < 8) > 0`},
				Passes: true,
			},
			{
				Name: "member-crashes", Breaks: "one member crashes again and again, before it has said what it has done",
				Do:     func(s *stage.Stage) { s.Replace(service.Part{Name: "member-1", Run: Forgetful}) },
				Alerts: []string{"HeartbeatsDuplicated parcels"},
				Shows:  []string{`sum(lag_monitor_heartbeats_duplicated_total{sink="shipped",kind="duplicate"}) > 1`, `sum(lag_monitor_heartbeats_dropped_total{}) == 0`},
			},
		},
	}
}
