package topicrouting

import (
	"context"
	_ "embed"

	"github.com/lag-monitor/lag-monitor/examples/patterns/rabbit"
	"github.com/lag-monitor/lag-monitor/examples/patterns/service"
	"github.com/lag-monitor/lag-monitor/examples/patterns/stage"
)

//go:embed config.yaml
var config string

func unbind(bindings ...rabbit.Binding) func(*stage.Stage) {
	return func(s *stage.Stage) {
		s.Do(func(ctx context.Context, env service.Env) error { return Unbind(ctx, env, bindings...) })
	}
}

// Pattern returns the topic exchange as it is put on a stage.
func Pattern() stage.Pattern {
	return stage.Pattern{
		Name: "topic-routing", What: "a topic exchange, and bindings that choose",
		Broker: stage.RabbitMQ, Config: config, Declare: Declare,
		Parts: []service.Part{{Name: "billing", Run: Billing}, {Name: "audit", Run: Audit}},
		Sinks: []string{"billed", "audited"},
		Stories: []stage.Story{
			{
				Name: "binding-is-removed", Breaks: "the binding of billing for orders from the US is removed",
				Do:     unbind(rabbit.Binding{Queue: "billing", Key: "order.us.*", Exchange: "events"}),
				Alerts: []string{"LagHigh orders-us"}, Says: "Worst sink: billed.",
				Shows: []string{
					`lag_monitor_lag_seconds{probe="orders-us",sink="billed"} > 8`, `lag_monitor_lag_seconds{probe="orders-us",sink="audited"} < 8`,
					`lag_monitor_lag_seconds{probe="orders-eu",sink="billed"} < 8`,
					// One queue has taken it, and so the broker says that all is well.
					`lag_monitor_heartbeats_sent_total{probe="orders-us",result="failure"} == 0`,
				},
			},
			{
				Name: "nobody-is-bound", Breaks: "no queue is bound for orders any more",
				// Audit comes last: what the broker has taken until then has come out there.
				Do: unbind(rabbit.Binding{Queue: "billing", Key: "order.us.*", Exchange: "events"},
					rabbit.Binding{Queue: "billing", Key: "order.eu.*", Exchange: "events"}, rabbit.Binding{Queue: "audit", Key: "#", Exchange: "events"}),
				Alerts: []string{"LagHigh orders-us", "LagHigh orders-eu", "InjectionFailing orders-us", "InjectionFailing orders-eu"},
				Says:   "The head did not accept",
				Shows: []string{
					`lag_monitor_heartbeats_sent_total{probe="orders-us",result="failure"} > 1`,
					`sum(lag_monitor_heartbeats_dropped_total{sink="audited"}) == 0`,
				},
			},
		},
	}
}
