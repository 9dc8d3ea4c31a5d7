package sinks

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lag-monitor/lag-monitor/internal/conn"
)

// RedisConfig is a sink `redis`: a stream, a list of the monitor's own, or channels.
type RedisConfig struct {
	// Server says how to connect.
	Server conn.Redis `yaml:",inline"`
	// Stream, List, Channel and Pattern name what to listen on; one of them is given.
	Stream  string `yaml:"stream,omitempty"`
	List    string `yaml:"list,omitempty"`
	Channel string `yaml:"channel,omitempty"`
	Pattern string `yaml:"pattern,omitempty"`
	// Field is the field of a stream's entry to look in, for entries whose envelope is unwrapped; otherwise
	// all are looked through.
	Field string `yaml:"field,omitempty"`
	// OwnIDs says that the ids of the stream's entries are the application's and tell no time.
	OwnIDs bool `yaml:"own_ids,omitempty"`
	// Dedicated says that the list is the monitor's alone: what it reads it takes out.
	Dedicated bool `yaml:"dedicated,omitempty"`
	// Left takes from the left end of a list, where the oldest element is when the pipeline pushes at the
	// right.
	Left bool `yaml:"left"`
	// Groups are the consumer groups of the stream whose backlog is told; empty: all.
	Groups []string `yaml:"groups,omitempty"`
}

// NewRedis returns the defaults.
func NewRedis() *RedisConfig { return &RedisConfig{Server: conn.NewRedis(), Left: true} }

// redisBlock is how long a command waits for something to come.
const redisBlock = 500 * time.Millisecond

// Validate implements Config.
func (c *RedisConfig) Validate() error {
	errs := []error{c.Server.Validate()}
	given := 0
	for _, name := range []string{c.Stream, c.List, c.Channel, c.Pattern} {
		if name != "" {
			given++
		}
	}
	if given != 1 {
		errs = append(errs, conn.Field("stream", "one of stream, list, channel and pattern is required"))
	}
	if c.List != "" && !c.Dedicated {
		errs = append(errs, conn.Field("dedicated", "a list can only be listened on by taking its elements: say dedicated: true if nobody else reads it"))
	}
	if c.Dedicated && c.List == "" {
		errs = append(errs, conn.Field("dedicated", "goes with list: streams and channels are read without taking anything"))
	}
	for name, set := range map[string]bool{"field": c.Field != "", "own_ids": c.OwnIDs, "groups": len(c.Groups) > 0} {
		if set && c.Stream == "" {
			errs = append(errs, conn.Field(name, "goes with stream"))
		}
	}
	return errors.Join(errs...)
}

// Open implements Config.
func (c *RedisConfig) Open() (Sink, error) {
	if _, err := c.Server.TLS.Config(); err != nil {
		return nil, fmt.Errorf("tls: %w", err)
	}
	switch {
	case c.Stream != "":
		return &redisStream{c: c, added: -1}, nil
	case c.List != "":
		return &redisList{c: c, aside: c.List + ":lag-monitor"}, nil
	}
	return &redisChannel{c: c}, nil
}

// redisRun runs f with a client that is closed when ctx ends, so that nothing waits for a silent server, and
// turns what it returns into the result of Run.
func (c *RedisConfig) redisRun(ctx context.Context, name string, f func(redis.UniversalClient) error) error {
	client, err := c.Server.Client()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { client.Close() })
	err = f(client)
	if stop() {
		client.Close()
	}
	if err == nil || ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("%s: %w", name, conn.RedisError(err))
}

// redisCheck runs f once.
func (c *RedisConfig) redisCheck(f func(redis.UniversalClient) error) error {
	client, err := c.Server.Client()
	if err != nil {
		return err
	}
	defer client.Close()
	return conn.RedisError(f(client))
}

// redisList takes the elements of a list out, one after the other. Each one is moved aside first and deleted once it
// is delivered: an answer that is lost with its connection loses no element.
type redisList struct {
	c     *RedisConfig
	aside string // the list with the one element that is being delivered
	done  string // the last element that was delivered, if it may still be aside
}

// Run implements Sink.
func (s *redisList) Run(ctx context.Context, f *Feed) error {
	return s.c.redisRun(ctx, "list "+s.c.List, func(client redis.UniversalClient) error {
		from := "RIGHT"
		if s.c.Left {
			from = "LEFT"
		}
		left, err := client.LRange(ctx, s.aside, 0, -1).Result()
		if err != nil {
			return err
		}
		for i, element := range left {
			if i > 0 || s.done != element {
				f.Deliver(Message{Body: []byte(element)})
			}
		}
		if len(left) > 0 {
			if err := client.Del(ctx, s.aside).Err(); err != nil {
				s.done = left[len(left)-1]
				return err
			}
		}
		s.done = ""
		f.Ready()
		for {
			asked := time.Now()
			// The client's own BLMove waits for whole seconds.
			element, err := client.Do(ctx, "BLMOVE", s.c.List, s.aside, from, "RIGHT", redisBlock.Seconds()).Text()
			if errors.Is(err, redis.Nil) {
				f.CaughtUp(asked) // the list was empty all the while
				continue
			}
			if err != nil {
				return err
			}
			f.Deliver(Message{Body: []byte(element)})
			s.done = element
			asked = time.Now()
			pipe := client.Pipeline()
			pipe.LPop(ctx, s.aside)
			waiting := pipe.LLen(ctx, s.c.List)
			if _, err := pipe.Exec(ctx); err != nil {
				return err
			}
			s.done = ""
			if waiting.Val() == 0 {
				f.CaughtUp(asked)
			}
		}
	})
}

// Backlog implements Backlogger.
func (s *redisList) Backlog(ctx context.Context) (all []Backlog, err error) {
	err = s.c.redisCheck(func(client redis.UniversalClient) error {
		n, err := client.LLen(ctx, s.c.List).Result()
		all = []Backlog{{Queue: s.c.List, Messages: float64(n), Seconds: -1, Consumers: -1}}
		return err
	})
	return all, err
}

// Check implements Checker. A list that is empty does not exist.
func (s *redisList) Check(ctx context.Context) error {
	return s.c.redisCheck(func(client redis.UniversalClient) error { return client.LLen(ctx, s.c.List).Err() })
}

// redisChannel listens on channels, which keep nothing.
type redisChannel struct {
	c     *RedisConfig
	begun bool // it has listened before
}

func (s *redisChannel) name() string { return s.c.Channel + s.c.Pattern }

// Run implements Sink. The server answers a ping on the connection of a subscription behind everything that was
// published before, so that each answer is a proof. In a cluster messages travel between the nodes, and it is one for
// this node only.
func (s *redisChannel) Run(ctx context.Context, f *Feed) error {
	return s.c.redisRun(ctx, "channel "+s.name(), func(client redis.UniversalClient) error {
		var sub *redis.PubSub
		if s.c.Pattern != "" {
			sub = client.PSubscribe(ctx, s.c.Pattern)
		} else {
			sub = client.Subscribe(ctx, s.c.Channel)
		}
		defer context.AfterFunc(ctx, func() { sub.Close() })()
		defer sub.Close()
		answer, err := sub.ReceiveTimeout(ctx, time.Duration(s.c.Server.Timeout))
		if err != nil {
			return err
		}
		if _, ok := answer.(*redis.Subscription); !ok {
			return conn.WithClass(conn.Other, fmt.Errorf("the server answers a subscription with %T", answer))
		}
		if s.begun {
			f.Gap("disconnected")
		}
		s.begun = true
		f.Ready()

		pinging, stop := context.WithCancel(ctx)
		pinged := make(chan struct{})
		go func() {
			defer close(pinged)
			var err error
			defer conn.Contain(&err)
			for tick := time.NewTicker(redisBlock); ; {
				// The answer, or its absence, tells the reader.
				_ = sub.Ping(pinging, time.Now().Format(time.RFC3339Nano))
				select {
				case <-tick.C:
				case <-pinging.Done():
					tick.Stop()
					return
				}
			}
		}()
		defer func() {
			stop()
			<-pinged
		}()
		for {
			got, err := sub.ReceiveTimeout(ctx, redisBlock+time.Duration(s.c.Server.Timeout))
			if err != nil {
				return err
			}
			switch got := got.(type) {
			case *redis.Message:
				f.Deliver(Message{Body: []byte(got.Payload)})
			case *redis.Pong:
				if asked, err := time.Parse(time.RFC3339Nano, got.Payload); err == nil {
					f.CaughtUp(asked)
				}
			case *redis.Subscription:
				return conn.WithClass(conn.Network, errors.New("the connection was made anew"))
			}
		}
	})
}

// Check implements Checker.
func (s *redisChannel) Check(ctx context.Context) error {
	return s.c.redisCheck(func(client redis.UniversalClient) error { return client.Ping(ctx).Err() })
}
