package sinks

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/lag-monitor/lag-monitor/internal/conn"
)

// natsConsumer splits the name of a consumer in the configuration, which is stream/consumer, or the consumer alone where it
// is on the sink's own stream.
func natsConsumer(name string) (stream, consumer string) {
	stream, consumer, ok := strings.Cut(name, "/")
	if !ok {
		return "", name
	}
	return stream, consumer
}

// Backlog implements Backlogger: for each of the configured consumers how many messages it has not been sent or has not
// acknowledged, and since when the oldest of them has been in the stream; and for a stream that deletes what is acknowledged how
// much is in it. It only asks.
func (s *natsStream) Backlog(ctx context.Context) (all []Backlog, err error) {
	if len(s.c.Consumers) == 0 {
		return nil, nil
	}
	l, err := s.c.Broker.Connect(ctx, nil)
	if err != nil {
		return nil, fmt.Errorf("backlog: %w", err)
	}
	defer l.Close()
	ctx, cancel := l.With(ctx)
	defer cancel()
	js, err := jetstream.New(l.Conn)
	if err != nil {
		return nil, fmt.Errorf("backlog: %w", err)
	}
	var errs []error
	fail := func(what string, err error) {
		missing := errors.Is(err, jetstream.ErrConsumerNotFound)
		if err = fmt.Errorf("backlog: %s: %w", what, l.Err(err)); missing {
			err = conn.WithClass(conn.Missing, err) // it is not ours, which would have been lost with the connection
		}
		errs = append(errs, err)
	}
	type age struct {
		row      int
		stream   jetstream.Stream
		consumer *jetstream.ConsumerInfo
	}
	var ages []age
	streams := make(map[string]jetstream.Stream)
	for _, name := range s.c.Consumers {
		where, consumer := natsConsumer(name)
		if where == "" {
			if where, err = s.streamName(ctx, js); err != nil {
				fail("stream of subject "+s.c.Subject, err)
				continue
			}
		}
		stream := streams[where]
		if stream == nil {
			if stream, err = answered(ctx, func(ctx context.Context) (jetstream.Stream, error) { return js.Stream(ctx, where) }); err != nil {
				fail("stream "+where, err)
				continue
			}
			streams[where] = stream
			if b, ok := natsQueue(stream.CachedInfo()); ok {
				all = append(all, b)
			}
		}
		c, err := answered(ctx, func(ctx context.Context) (*jetstream.ConsumerInfo, error) { return consumerInfo(ctx, stream, consumer) })
		if err != nil {
			fail(fmt.Sprintf("consumer %s on stream %s", consumer, where), err)
			continue
		}
		b := Backlog{Queue: where, Group: consumer, Messages: float64(c.NumPending) + float64(c.NumAckPending), Consumers: float64(c.NumWaiting)}
		if c.Config.DeliverSubject != "" {
			b.Consumers = 0 // it is pushed to
			if c.PushBound {
				b.Consumers = 1
			}
		}
		b.Seconds = -1
		ages = append(ages, age{len(all), stream, c})
		all = append(all, b)
	}
	// The server answers a question that is not allowed by nothing, and the connection is given up: last, what is needed least.
	for _, a := range ages {
		b := &all[a.row]
		if b.Seconds, err = natsOldest(ctx, a.stream, a.consumer); err != nil {
			fail(fmt.Sprintf("oldest message of consumer %s on stream %s", b.Group, b.Queue), err)
		}
	}
	return all, errors.Join(errs...)
}

// answered bounds one question.
func answered[T any](ctx context.Context, ask func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, natsAnswer)
	defer cancel()
	return ask(ctx)
}

func consumerInfo(ctx context.Context, stream jetstream.Stream, name string) (*jetstream.ConsumerInfo, error) {
	c, err := stream.Consumer(ctx, name)
	if err == nil {
		return c.CachedInfo(), nil
	}
	if !errors.Is(err, jetstream.ErrNotPullConsumer) {
		return nil, err
	}
	p, err := stream.PushConsumer(ctx, name)
	if err != nil {
		return nil, err
	}
	return p.CachedInfo(), nil
}

func (s *natsStream) streamName(ctx context.Context, js jetstream.JetStream) (string, error) {
	if s.c.Stream != "" {
		return s.c.Stream, nil
	}
	return answered(ctx, func(ctx context.Context) (string, error) { return js.StreamNameBySubject(ctx, s.c.Subject) })
}

// natsQueue is the backlog of a stream as a whole, where what is in it waits for somebody. What other streams keep does not.
func natsQueue(info *jetstream.StreamInfo) (Backlog, bool) {
	if info.Config.Retention == jetstream.LimitsPolicy {
		return Backlog{}, false
	}
	b := Backlog{Queue: info.Config.Name, Messages: float64(info.State.Msgs), Consumers: float64(info.State.Consumers)}
	if info.State.Msgs > 0 {
		b.Seconds = natsAge(info.State.FirstTime, info.TimeStamp)
	}
	return b, true
}

// natsOldest is the age of the first message that a consumer has not been sent or has not acknowledged; negative when that cannot be
// told.
func natsOldest(ctx context.Context, stream jetstream.Stream, c *jetstream.ConsumerInfo) (float64, error) {
	if c.NumPending == 0 && c.NumAckPending == 0 {
		return 0, nil
	}
	after := c.Delivered.Stream
	if c.NumAckPending > 0 {
		after = c.AckFloor.Stream
	}
	filters := c.Config.FilterSubjects
	if c.Config.FilterSubject != "" {
		filters = []string{c.Config.FilterSubject}
	}
	if len(filters) == 0 {
		filters = []string{">"}
	}
	var first *jetstream.RawStreamMsg
	for _, f := range filters {
		m, err := answered(ctx, func(ctx context.Context) (*jetstream.RawStreamMsg, error) {
			return stream.GetMsg(ctx, after+1, jetstream.WithGetMsgSubject(f))
		})
		switch {
		case errors.Is(err, jetstream.ErrMsgNotFound):
		case err != nil:
			return -1, err
		case first == nil || m.Sequence < first.Sequence:
			first = m
		}
	}
	if first == nil {
		return -1, nil // taken since
	}
	return natsAge(first.Time, c.TimeStamp), nil
}

// natsAge is how old a message was by the server's clock, which old servers do not tell.
func natsAge(stored, now time.Time) float64 {
	if now.IsZero() {
		now = time.Now()
	}
	return max(0, now.Sub(stored).Seconds())
}

// checkConsumers reports names that are none.
func checkConsumers(names []string) error {
	var errs []error
	for i, name := range names {
		stream, consumer := natsConsumer(name)
		if strings.Contains(name, "/") && !natsName(stream) || !natsName(consumer) {
			errs = append(errs, conn.Field(fmt.Sprintf("consumers[%d]", i), "%q is not the name of a consumer, or of stream/consumer", name))
		}
	}
	return errors.Join(errs...)
}

// natsName reports whether a stream or a consumer can have the name.
func natsName(s string) bool { return s != "" && !strings.ContainsAny(s, " .*>/\\\t\r\n") }
