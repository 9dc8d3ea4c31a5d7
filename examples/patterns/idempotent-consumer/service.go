package idempotentconsumer

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/lag-monitor/lag-monitor/examples/patterns/service"
)

// Memory is for how long an order is remembered: longer than a gateway may take to try again.
const Memory = time.Hour

// group is the consumer group at both streams.
const group = "shop"

// length is how many entries a stream keeps, so that it does not grow for ever.
const length = 100_000

func connect(env service.Env) *redis.Client {
	return redis.NewClient(&redis.Options{
		Addr: env.Addr, DB: env.DB, Dialer: env.Dial, MaxRetries: -1, ContextTimeoutEnabled: true,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	})
}

// Declare makes what the service needs. It may be called again.
func Declare(ctx context.Context, env service.Env) error {
	c := connect(env)
	defer c.Close()
	for _, stream := range []string{"orders.new", "orders"} {
		if err := c.XGroupCreateMkStream(ctx, stream, group, "0").Err(); err != nil && !strings.HasPrefix(err.Error(), "BUSYGROUP") {
			return fmt.Errorf("redis: group at %s: %w", stream, err)
		}
	}
	// The monitor listens from the beginning, before the first order is done.
	return c.XGroupCreateMkStream(ctx, "orders.done", "mail", "0").Err()
}

// consume hands the entries of a stream to handle, which confirms them, until ctx ends.
func consume(ctx context.Context, env service.Env, stream string, ready func(), handle func(context.Context, *redis.Client, redis.XMessage) error) error {
	c := connect(env)
	defer c.Close()
	// What the run before has got and not confirmed comes first.
	for from := "0"; ; {
		out, err := c.XReadGroup(ctx, &redis.XReadGroupArgs{Group: group, Consumer: "one", Streams: []string{stream, from}, Count: 100, Block: time.Second}).Result()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil && !errors.Is(err, redis.Nil) {
			return fmt.Errorf("redis: read %s: %w", stream, err)
		}
		ready()
		if from == "0" && (len(out) == 0 || len(out[0].Messages) == 0) {
			from = ">"
		}
		for _, s := range out {
			for _, m := range s.Messages {
				if err := handle(ctx, c, m); err != nil {
					return fmt.Errorf("redis: an entry of %s: %w", stream, err)
				}
			}
		}
	}
}

// Gateway returns a gateway, which puts each order into the stream of the workers; with again above 0 also a second time, that much
// later, as one that did not see the answer to its first try.
func Gateway(again time.Duration) func(context.Context, service.Env, func()) error {
	return func(ctx context.Context, env service.Env, ready func()) error {
		return consume(ctx, env, "orders.new", ready, func(ctx context.Context, c *redis.Client, m redis.XMessage) error {
			put := func() error {
				return c.XAdd(ctx, &redis.XAddArgs{Stream: "orders", MaxLen: length, Approx: true, Values: m.Values}).Err()
			}
			if err := put(); err != nil {
				return err
			}
			if again > 0 {
				select {
				case <-time.After(again):
				case <-ctx.Done():
					return ctx.Err()
				}
				if err := put(); err != nil {
					return err
				}
			}
			return c.XAck(ctx, "orders.new", group, m.ID).Err()
		})
	}
}

// once announces an order unless its key is known, remembers the key and confirms the entry: all of it or nothing.
var once = redis.NewScript(`
if redis.call('SET', KEYS[1], '1', 'NX', 'PX', ARGV[1]) then
	redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[4], '*', unpack(ARGV, 5))
end
return redis.call('XACK', KEYS[2], ARGV[2], ARGV[3])
`)

// Worker returns a worker that does each order once: it remembers it by one of its fields, for that long.
func Worker(field string, memory time.Duration) func(context.Context, service.Env, func()) error {
	return func(ctx context.Context, env service.Env, ready func()) error {
		return consume(ctx, env, "orders", ready, func(ctx context.Context, c *redis.Client, m redis.XMessage) error {
			args := []any{memory.Milliseconds(), group, m.ID, length}
			for name, value := range m.Values {
				args = append(args, name, value)
			}
			return once.Run(ctx, c, []string{fmt.Sprintf("done:%v", m.Values[field]), "orders", "orders.done"}, args...).Err()
		})
	}
}
