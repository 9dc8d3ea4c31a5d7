package topicrouting

import (
	"context"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/lag-monitor/lag-monitor/examples/patterns/rabbit"
	"github.com/lag-monitor/lag-monitor/examples/patterns/service"
)

// Declare makes what the service needs. It may be called again.
func Declare(ctx context.Context, env service.Env) error {
	return rabbit.Declare(ctx, env, rabbit.Topology{
		Exchanges: map[string]string{"events": amqp.ExchangeTopic, "billing.done": amqp.ExchangeFanout, "audit.done": amqp.ExchangeFanout},
		Queues:    map[string]amqp.Table{"billing": nil, "audit": nil},
		Bindings: []rabbit.Binding{
			{Queue: "billing", Key: "order.eu.*", Exchange: "events"},
			{Queue: "billing", Key: "order.us.*", Exchange: "events"},
			{Queue: "audit", Key: "#", Exchange: "events"},
		},
	})
}

// Billing writes bills for orders.
func Billing(ctx context.Context, env service.Env, ready func()) error {
	return rabbit.Consume(ctx, env, "billing", 10, ready, rabbit.Announce("billing.done", ""))
}

// Audit keeps everything.
func Audit(ctx context.Context, env service.Env, ready func()) error {
	return rabbit.Consume(ctx, env, "audit", 10, ready, rabbit.Announce("audit.done", ""))
}

// Unbind takes bindings away.
func Unbind(ctx context.Context, env service.Env, bindings ...rabbit.Binding) error {
	return rabbit.Do(ctx, env, func(ch *amqp.Channel) error {
		for _, b := range bindings {
			if err := ch.QueueUnbind(b.Queue, b.Key, b.Exchange, nil); err != nil {
				return err
			}
		}
		return nil
	})
}
