package workqueue

import (
	"context"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/lag-monitor/lag-monitor/examples/patterns/rabbit"
	"github.com/lag-monitor/lag-monitor/examples/patterns/service"
)

// Prefetch is how many orders a worker has at once. Those behind the one in work are lost time when it hangs.
const Prefetch = 10

// Declare makes what the service needs. It may be called again.
func Declare(ctx context.Context, env service.Env) error {
	return rabbit.Declare(ctx, env, rabbit.Topology{
		Exchanges: map[string]string{"orders": amqp.ExchangeDirect, "orders.done": amqp.ExchangeFanout},
		Queues:    map[string]amqp.Table{"orders.work": nil},
		Bindings:  []rabbit.Binding{{Queue: "orders.work", Key: "new", Exchange: "orders"}},
	})
}

// Worker does orders.
func Worker(ctx context.Context, env service.Env, ready func()) error {
	return rabbit.Consume(ctx, env, "orders.work", Prefetch, ready, rabbit.Announce("orders.done", ""))
}

// Rejecter is a worker of a version that understands no order, and rejects each one. There is no dead-letter queue, so the
// broker throws it away.
func Rejecter(ctx context.Context, env service.Env, ready func()) error {
	return rabbit.Consume(ctx, env, "orders.work", Prefetch, ready, func(_ context.Context, _ *amqp.Channel, d amqp.Delivery) error {
		return d.Reject(false)
	})
}

// Hanger is a worker that waits for something that never comes. It keeps what it was given, and its connection.
func Hanger(ctx context.Context, env service.Env, ready func()) error {
	return rabbit.Consume(ctx, env, "orders.work", Prefetch, ready, func(ctx context.Context, _ *amqp.Channel, _ amqp.Delivery) error {
		<-ctx.Done()
		return ctx.Err()
	})
}
