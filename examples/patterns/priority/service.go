package priority

import (
	"context"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/lag-monitor/lag-monitor/examples/patterns/rabbit"
	"github.com/lag-monitor/lag-monitor/examples/patterns/service"
)

// Work is how long the worker takes for a call: it does twenty in a second.
const Work = 50 * time.Millisecond

// Declare makes what the service needs. It may be called again.
func Declare(ctx context.Context, env service.Env) error {
	return rabbit.Declare(ctx, env, rabbit.Topology{
		Exchanges: map[string]string{"calls": amqp.ExchangeDirect, "calls.done": amqp.ExchangeFanout},
		Queues:    map[string]amqp.Table{"calls.work": {"x-max-priority": 10}},
		Bindings:  []rabbit.Binding{{Queue: "calls.work", Key: "new", Exchange: "calls"}},
	})
}

// Worker does calls, one after the other. It has only one at a time: what it has been given already, nothing urgent can overtake.
func Worker(ctx context.Context, env service.Env, ready func()) error {
	return rabbit.Consume(ctx, env, "calls.work", 1, ready, func(ctx context.Context, ch *amqp.Channel, d amqp.Delivery) error {
		select {
		case <-time.After(Work):
		case <-ctx.Done():
			return ctx.Err()
		}
		return rabbit.Announce("calls.done", "")(ctx, ch, d)
	})
}

// Callers returns users who place calls of middle priority, perSecond of them in bursts of a tenth; 0: nobody calls.
func Callers(perSecond int) func(context.Context, service.Env, func()) error {
	return func(ctx context.Context, env service.Env, ready func()) error {
		return rabbit.Do(ctx, env, func(ch *amqp.Channel) error {
			ready()
			for tick := time.Tick(100 * time.Millisecond); ; {
				select {
				case <-tick:
				case <-ctx.Done():
					return nil
				}
				for range perSecond / 10 {
					err := rabbit.Publish(ctx, ch, "calls", "new", amqp.Publishing{Priority: 5, Body: []byte(`{"call": "a user's"}`)})
					if err != nil {
						return err
					}
				}
			}
		})
	}
}
