package retrybackoff

import (
	"context"
	"fmt"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/lag-monitor/lag-monitor/examples/patterns/rabbit"
	"github.com/lag-monitor/lag-monitor/examples/patterns/service"
)

// Pauses are how long a job waits before its next try; after the last one it is given up. Each has a queue of its own: time is up at the
// head of a queue only, so that jobs with different pauses in one queue would wait for each other.
var Pauses = []time.Duration{250 * time.Millisecond, 500 * time.Millisecond, time.Second}

func retryQueue(try int) string { return fmt.Sprintf("jobs.retry.%d", try) }

// Declare makes what the service needs. It may be called again.
func Declare(ctx context.Context, env service.Env) error {
	t := rabbit.Topology{
		Exchanges: map[string]string{"jobs": amqp.ExchangeDirect, "jobs.done": amqp.ExchangeFanout, "jobs.dead": amqp.ExchangeFanout},
		Queues:    map[string]amqp.Table{"jobs.work": {"x-dead-letter-exchange": "jobs.dead"}, "jobs.dead.monitor": nil},
		Bindings:  []rabbit.Binding{{Queue: "jobs.work", Key: "new", Exchange: "jobs"}, {Queue: "jobs.dead.monitor", Exchange: "jobs.dead"}},
	}
	for i, pause := range Pauses {
		t.Queues[retryQueue(i+1)] = amqp.Table{
			amqp.QueueMessageTTLArg: pause.Milliseconds(), "x-dead-letter-exchange": "jobs", "x-dead-letter-routing-key": "new",
		}
	}
	return rabbit.Declare(ctx, env, t)
}

// triesHeader counts how often a job was tried. The broker counts, too, in x-death; but from version 4 on it does not go on with a count
// that a client has published.
const triesHeader = "tries"

func tries(d amqp.Delivery) int {
	n, _ := d.Headers[triesHeader].(int32)
	return int(n)
}

// Worker returns a worker whose first failures tries of each job fail, since what it calls is not well; 0: all is well.
func Worker(failures int) func(context.Context, service.Env, func()) error {
	return func(ctx context.Context, env service.Env, ready func()) error {
		return rabbit.Consume(ctx, env, "jobs.work", 10, ready, func(ctx context.Context, ch *amqp.Channel, d amqp.Delivery) error {
			tried := tries(d)
			if tried >= failures {
				return rabbit.Announce("jobs.done", "")(ctx, ch, d)
			}
			if tried >= len(Pauses) {
				return d.Reject(false)
			}
			// All headers go along. x-death among them is how the monitor knows.
			if d.Headers == nil {
				d.Headers = amqp.Table{}
			}
			d.Headers[triesHeader] = int32(tried + 1)
			return rabbit.Announce("", retryQueue(tried+1))(ctx, ch, d)
		})
	}
}
