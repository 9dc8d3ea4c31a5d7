package fanout

import (
	"context"
	_ "embed"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/lag-monitor/lag-monitor/examples/patterns/rabbit"
	"github.com/lag-monitor/lag-monitor/examples/patterns/service"
	"github.com/lag-monitor/lag-monitor/examples/patterns/stage"
)

//go:embed config.yaml
var config string

// Pattern returns the fan-out as it is put on a stage.
func Pattern() stage.Pattern {
	return stage.Pattern{
		Name: "fan-out", What: "one message, two services, a queue for each",
		Broker: stage.RabbitMQ, Config: config, Declare: Declare,
		Parts: []service.Part{{Name: "mail", Run: Mail}, {Name: "sms", Run: SMS}},
		Sinks: []string{"mail", "sms"},
		Stories: []stage.Story{
			{
				Name: "one-stops", Breaks: "the service that sends text messages is stopped",
				Do:     func(s *stage.Stage) { s.Stop("sms") },
				Alerts: []string{"LagHigh notify"}, Says: "Worst sink: sms.",
				Shows: []string{
					`lag_monitor_lag_seconds{sink="sms"} > 8`, `lag_monitor_lag_seconds{sink="mail"} < 8`,
					`lag_monitor_heartbeats_dropped_total{sink="sms",reason="timeout"} > 1`, `sum(lag_monitor_heartbeats_dropped_total{sink="mail"}) == 0`,
				},
			},
			{
				Name: "one-queue-is-deleted", Breaks: "somebody deletes the queue of the text messages, and its service makes a new one without a binding",
				Do: func(s *stage.Stage) {
					s.Do(func(ctx context.Context, env service.Env) error {
						return rabbit.Do(ctx, env, func(ch *amqp.Channel) error {
							if _, err := ch.QueueDelete("sms.work", false, false, false); err != nil {
								return err
							}
							_, err := ch.QueueDeclare("sms.work", true, false, false, false, nil)
							return err
						})
					})
				},
				Alerts: []string{"LagHigh notify"}, Says: "Worst sink: sms.",
				Shows: []string{
					`lag_monitor_backlog_consumers{queue="sms.work"} == 1`, `lag_monitor_backlog_messages{queue="sms.work"} == 0`,
					`lag_monitor_lag_seconds{sink="sms"} > 8`, `lag_monitor_lag_seconds{sink="mail"} < 8`,
				},
			},
		},
	}
}
