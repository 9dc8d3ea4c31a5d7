package probe

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/redis/go-redis/v9"

	"github.com/lag-monitor/lag-monitor/internal/conn"
)

// RedisConfig is `inject: {redis: …}`: an entry of a stream, an element of a list, or a message on a channel.
type RedisConfig struct {
	// Server says how to connect.
	Server conn.Redis `yaml:",inline"`
	// Stream, List and Channel are keys; one of them is given. Templates.
	Stream  Template `yaml:"stream,omitempty"`
	List    Template `yaml:"list,omitempty"`
	Channel Template `yaml:"channel,omitempty"`
	// Create makes a stream that does not exist.
	Create bool `yaml:"create,omitempty"`
	// Field is the field of a stream's entry that has the body; Fields are further ones, templates.
	Field  string              `yaml:"field,omitempty"`
	Fields map[string]Template `yaml:"fields,omitempty"`
	// Left pushes at the left end of a list; otherwise at the right end.
	Left bool `yaml:"left,omitempty"`
	// Body is what is sent; a template.
	Body Template `yaml:"body,omitempty"`
}

// NewRedis returns the defaults.
func NewRedis() *RedisConfig {
	return &RedisConfig{Server: conn.NewRedis(), Field: "body", Body: defaultBody}
}

// Validate implements Config.
func (c *RedisConfig) Validate() error {
	errs := []error{c.Server.Validate()}
	given := 0
	for _, t := range []Template{c.Stream, c.List, c.Channel} {
		if !t.IsZero() {
			given++
		}
	}
	if given != 1 {
		errs = append(errs, conn.Field("stream", "one of stream, list and channel is required"))
	}
	if !c.Stream.IsZero() {
		if c.Field == "" {
			errs = append(errs, conn.Field("field", "must not be empty"))
		}
		for _, name := range slices.Sorted(maps.Keys(c.Fields)) {
			if name == c.Field || name == Header || name == TraceHeader {
				errs = append(errs, conn.Field("fields."+name, "is written by lag-monitor itself"))
			}
		}
	} else {
		if c.Create {
			errs = append(errs, conn.Field("create", "goes with stream: a list is there as soon as it holds something"))
		}
		if len(c.Fields) > 0 {
			errs = append(errs, conn.Field("fields", "goes with stream"))
		}
	}
	if c.Left && c.List.IsZero() {
		errs = append(errs, conn.Field("left", "goes with list"))
	}
	errs = append(errs, conn.Prefix("body", CheckToken(c.Body)))
	return errors.Join(errs...)
}

// Open implements Config.
func (c *RedisConfig) Open() (Injector, error) {
	client, err := c.Server.Client()
	if err != nil {
		return nil, err
	}
	return &redisInjector{c: c, client: client}, nil
}

type redisInjector struct {
	c      *RedisConfig
	client redis.UniversalClient
	once   sync.Once
}

// key returns the name of what is written to.
func (i *redisInjector) key(m *Message) (string, error) {
	for _, t := range []Template{i.c.Stream, i.c.List, i.c.Channel} {
		if !t.IsZero() {
			key, err := t.Render(m)
			return string(key), err
		}
	}
	return "", errors.New("nothing to write to")
}

// Inject implements Injector.
func (i *redisInjector) Inject(ctx context.Context, m *Message) error {
	if err := ctx.Err(); err != nil {
		return Refused(err)
	}
	key, err := i.key(m)
	if err != nil {
		return Refused(fmt.Errorf("key: %w", err))
	}
	body, err := i.c.Body.Render(m)
	if err != nil {
		return Refused(fmt.Errorf("body: %w", err))
	}
	switch {
	case !i.c.Stream.IsZero():
		values := []any{i.c.Field, body, Header, m.Token, TraceHeader, m.TraceParent}
		for _, name := range slices.Sorted(maps.Keys(i.c.Fields)) {
			v, err := i.c.Fields[name].Render(m)
			if err != nil {
				return Refused(fmt.Errorf("fields.%s: %w", name, err))
			}
			values = append(values, name, v)
		}
		err = i.client.XAdd(ctx, &redis.XAddArgs{Stream: key, NoMkStream: !i.c.Create, Values: values}).Err()
		if errors.Is(err, redis.Nil) {
			return Refused(conn.WithClass(conn.Missing, fmt.Errorf("stream %s: does not exist", key)))
		}
	case !i.c.List.IsZero() && i.c.Left:
		err = i.client.LPush(ctx, key, body).Err()
	case !i.c.List.IsZero():
		err = i.client.RPush(ctx, key, body).Err()
	default:
		err = i.client.Publish(ctx, key, body).Err()
	}
	if err == nil {
		return nil
	}
	said := conn.RedisSaid(err) || errors.Is(err, redis.ErrClosed)
	err = fmt.Errorf("%s: %w", key, conn.RedisError(err))
	if said {
		return Refused(err)
	}
	return err
}

// Check implements Checker.
func (i *redisInjector) Check(ctx context.Context) error {
	if err := i.client.Ping(ctx).Err(); err != nil {
		return conn.RedisError(err)
	}
	if i.c.Stream.IsZero() || i.c.Create {
		return nil
	}
	key, err := i.key(Sample())
	if err != nil {
		return err
	}
	n, err := i.client.Exists(ctx, key).Result()
	if err == nil && n == 0 {
		return conn.WithClass(conn.Missing, fmt.Errorf("stream %s: does not exist", key))
	}
	return conn.RedisError(err)
}

// Close implements Injector.
func (i *redisInjector) Close() (err error) {
	i.once.Do(func() { err = i.client.Close() })
	return err
}
