package fanout

import (
	"context"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/lag-monitor/lag-monitor/examples/patterns/rabbit"
	"github.com/lag-monitor/lag-monitor/examples/patterns/service"
)

// Declare makes what the service needs. It may be called again.
func Declare(ctx context.Context, env service.Env) error {
	return rabbit.Declare(ctx, env, rabbit.Topology{
		Exchanges: map[string]string{"notify": amqp.ExchangeFanout, "mail.sent": amqp.ExchangeFanout, "sms.sent": amqp.ExchangeFanout},
		Queues:    map[string]amqp.Table{"mail.work": nil, "sms.work": nil},
		Bindings:  []rabbit.Binding{{Queue: "mail.work", Exchange: "notify"}, {Queue: "sms.work", Exchange: "notify"}},
	})
}

// Mail sends what was published as mail.
func Mail(ctx context.Context, env service.Env, ready func()) error {
	return rabbit.Consume(ctx, env, "mail.work", 10, ready, rabbit.Announce("mail.sent", ""))
}

// SMS sends what was published as text messages.
func SMS(ctx context.Context, env service.Env, ready func()) error {
	return rabbit.Consume(ctx, env, "sms.work", 10, ready, rabbit.Announce("sms.sent", ""))
}
