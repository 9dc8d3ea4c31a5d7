package deadletter

import (
	"context"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/lag-monitor/lag-monitor/examples/patterns/rabbit"
	"github.com/lag-monitor/lag-monitor/examples/patterns/service"
)

// What the queue of orders gives up.
const (
	Age   = 4 * time.Second // an order that has waited for longer
	Tries = 3               // an order that was put back more often
)

// Declare makes what the service needs. It may be called again. Only a quorum queue counts how often a message was put back.
func Declare(ctx context.Context, env service.Env) error {
	return rabbit.Declare(ctx, env, rabbit.Topology{
		Exchanges: map[string]string{"orders": amqp.ExchangeDirect, "orders.done": amqp.ExchangeFanout, "orders.dead": amqp.ExchangeFanout},
		Queues: map[string]amqp.Table{
			"orders.work": {
				amqp.QueueTypeArg: amqp.QueueTypeQuorum, amqp.QueueMessageTTLArg: Age.Milliseconds(),
				"x-delivery-limit": Tries, "x-dead-letter-exchange": "orders.dead",
			},
			// For people, who look at what is in it and put it back; it forgets what nobody has looked at for a day.
			"orders.dead":         {amqp.QueueMessageTTLArg: (24 * time.Hour).Milliseconds()},
			"orders.dead.monitor": nil,
		},
		Bindings: []rabbit.Binding{
			{Queue: "orders.work", Key: "new", Exchange: "orders"},
			{Queue: "orders.dead", Exchange: "orders.dead"},
			{Queue: "orders.dead.monitor", Exchange: "orders.dead"},
		},
	})
}

// Worker does orders.
func Worker(ctx context.Context, env service.Env, ready func()) error {
	return rabbit.Consume(ctx, env, "orders.work", 10, ready, rabbit.Announce("orders.done", ""))
}

// Picky returns a worker that cannot do each third order: it rejects it, or, with requeue, puts it back for another try.
func Picky(requeue bool) func(context.Context, service.Env, func()) error {
	return func(ctx context.Context, env service.Env, ready func()) error {
		orders := 0
		bad := map[string]bool{}
		return rabbit.Consume(ctx, env, "orders.work", 1, ready, func(ctx context.Context, ch *amqp.Channel, d amqp.Delivery) error {
			if !d.Redelivered {
				orders++
				bad[d.MessageId] = orders%3 == 0
			}
			if bad[d.MessageId] {
				return d.Reject(requeue)
			}
			return rabbit.Announce("orders.done", "")(ctx, ch, d)
		})
	}
}
