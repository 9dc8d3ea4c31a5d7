package sinks

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/service/kinesis"
	"github.com/aws/aws-sdk-go-v2/service/kinesis/types"
	"golang.org/x/sync/errgroup"

	"github.com/lag-monitor/lag-monitor/internal/conn"
)

const (
	// fanOutSilence is how long a subscription may go without an event before it is given up. The
	// service sends one every few seconds, also when there is no record.
	fanOutSilence = 35 * time.Second
	// fanOutPause keeps within one subscription a second for each shard and consumer.
	fanOutPause = 1100 * time.Millisecond
	// eventApart is how far apart two events have to arrive for the second to prove something of the first;
	// longer than an event is under way.
	eventApart = 500 * time.Millisecond
	// consumerWait bounds the wait for a new consumer to become active.
	consumerWait = time.Minute
	// leaveWait bounds what deregistering may take at the end.
	leaveWait = 1500 * time.Millisecond
)

var consumerName = regexp.MustCompile(`^[a-zA-Z0-9_.-]{1,128}$`)

// kinesisSubscriber is the part of the SDK's client that enhanced fan-out uses.
type kinesisSubscriber interface {
	DescribeStreamSummary(context.Context, *kinesis.DescribeStreamSummaryInput, ...func(*kinesis.Options)) (*kinesis.DescribeStreamSummaryOutput, error)
	DescribeStreamConsumer(context.Context, *kinesis.DescribeStreamConsumerInput, ...func(*kinesis.Options)) (*kinesis.DescribeStreamConsumerOutput, error)
	RegisterStreamConsumer(context.Context, *kinesis.RegisterStreamConsumerInput, ...func(*kinesis.Options)) (*kinesis.RegisterStreamConsumerOutput, error)
	DeregisterStreamConsumer(context.Context, *kinesis.DeregisterStreamConsumerInput, ...func(*kinesis.Options)) (*kinesis.DeregisterStreamConsumerOutput, error)
	// Subscribe is SubscribeToShard with the events and the service's time of the answer. The events end
	// when ctx does.
	Subscribe(ctx context.Context, in *kinesis.SubscribeToShardInput) (kinesis.SubscribeToShardEventStreamReader, time.Time, error)
}

// kinesisClient adapts the SDK's client.
type kinesisClient struct{ *kinesis.Client }

// Subscribe uses a client of its own for each subscription: two subscriptions of one client decode their
// events with one decoder at the same time (smithy-go v1.28.8), which mixes them up.
func (c kinesisClient) Subscribe(ctx context.Context, in *kinesis.SubscribeToShardInput) (kinesis.SubscribeToShardEventStreamReader, time.Time, error) {
	asked := time.Now()
	out, err := kinesis.New(c.Options()).SubscribeToShard(ctx, in)
	if err != nil {
		return nil, time.Time{}, err
	}
	served, ok := awsmiddleware.GetServerTime(out.ResultMetadata)
	if !ok {
		served = asked
	}
	return out.GetStream(), served, nil
}

// consumer is what is known of the registered consumer.
type consumer struct {
	mu         sync.Mutex
	arn        string
	registered bool // by this process
}

// streamARN returns the ARN of the stream, and asks for it where only the name is known.
func (k *kinesisSink) streamARN(ctx context.Context) (string, error) {
	if k.cfg.StreamARN != "" {
		return k.cfg.StreamARN, nil
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(k.cfg.RequestTimeout))
	defer cancel()
	out, err := k.api.DescribeStreamSummary(ctx, &kinesis.DescribeStreamSummaryInput{StreamName: aws.String(k.cfg.Stream)})
	if err != nil {
		return "", k.cfg.Err("describe stream", err)
	}
	return aws.ToString(out.StreamDescriptionSummary.StreamARN), nil
}

// describe returns the consumer, nil when it is not registered.
func (k *kinesisSink) describe(ctx context.Context) (*types.ConsumerDescription, error) {
	stream, err := k.streamARN(ctx)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(k.cfg.RequestTimeout))
	defer cancel()
	out, err := k.api.DescribeStreamConsumer(ctx, &kinesis.DescribeStreamConsumerInput{
		StreamARN: aws.String(stream), ConsumerName: aws.String(k.cfg.EnhancedFanOut.Consumer),
	})
	var missing *types.ResourceNotFoundException
	if errors.As(err, &missing) {
		return nil, nil
	}
	if err != nil {
		return nil, k.cfg.Err("describe consumer "+k.cfg.EnhancedFanOut.Consumer, err)
	}
	return out.ConsumerDescription, nil
}

// enlist registers the consumer if it is missing and waits until it is active.
func (k *kinesisSink) enlist(ctx context.Context) (arn string, err error) {
	name := k.cfg.EnhancedFanOut.Consumer
	ctx, cancel := context.WithTimeout(ctx, consumerWait)
	defer cancel()
	for {
		c, err := k.describe(ctx)
		switch {
		case err != nil && conn.ClassOf(err) != conn.Throttle:
			return "", err
		case err == nil && c == nil:
			stream, err := k.streamARN(ctx)
			if err != nil {
				return "", err
			}
			_, err = k.api.RegisterStreamConsumer(ctx, &kinesis.RegisterStreamConsumerInput{StreamARN: aws.String(stream), ConsumerName: aws.String(name)})
			var exists *types.ResourceInUseException
			if err != nil && !errors.As(err, &exists) {
				return "", k.cfg.Err("register consumer "+name, err)
			}
			if err == nil {
				k.consumer.mu.Lock()
				k.consumer.registered = true
				k.consumer.mu.Unlock()
			}
		case err == nil && c.ConsumerStatus == types.ConsumerStatusActive:
			arn := aws.ToString(c.ConsumerARN)
			k.consumer.mu.Lock()
			k.consumer.arn = arn
			k.consumer.mu.Unlock()
			return arn, nil
		}
		if sleep(ctx, time.Second) != nil {
			return "", conn.WithClass(conn.Missing, fmt.Errorf("kinesis stream %s: consumer %s is not active yet: %w", k.cfg.Name(), name, ctx.Err()))
		}
	}
}

// leave deregisters the consumer where the configuration asks for it and this process registered it.
func (k *kinesisSink) leave(ctx context.Context) error {
	k.consumer.mu.Lock()
	arn, registered := k.consumer.arn, k.consumer.registered
	k.consumer.mu.Unlock()
	if !registered || arn == "" || !k.cfg.EnhancedFanOut.Deregister {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, leaveWait)
	defer cancel()
	if _, err := k.api.DeregisterStreamConsumer(ctx, &kinesis.DeregisterStreamConsumerInput{ConsumerARN: aws.String(arn)}); err != nil {
		return k.cfg.Err("deregister consumer "+k.cfg.EnhancedFanOut.Consumer, err)
	}
	k.consumer.mu.Lock()
	k.consumer.arn, k.consumer.registered = "", false
	k.consumer.mu.Unlock()
	return nil
}

// prepareFanOut subscribes to every open shard; see prepare.
func (k *kinesisSink) prepareFanOut(ctx context.Context, f *Feed, open []*shard) (func(int) func(context.Context, *shard) ([]types.ChildShard, error), error) {
	arn, err := k.enlist(ctx)
	if err != nil {
		return nil, err
	}
	subs := make([]*subscription, len(open))
	group, gctx := errgroup.WithContext(ctx) // for the waits only: the subscriptions live on
	group.SetLimit(8)
	for i, sh := range open {
		group.Go(func() (err error) {
			// A consumer that left its subscriptions a moment ago has to wait up to five seconds.
			tolerance := tolerance{interval: fanOutPause}
			for {
				subs[i], err = k.subscribe(ctx, f, sh, arn)
				if err == nil {
					return nil
				}
				wait, err := tolerance.of(ctx, f, err)
				if err != nil {
					return err
				}
				if err := sleep(gctx, wait); err != nil {
					return err
				}
			}
		})
	}
	if err := group.Wait(); err != nil {
		for _, s := range subs {
			if s != nil {
				s.close()
			}
		}
		return nil, err
	}
	return func(i int) func(context.Context, *shard) ([]types.ChildShard, error) {
		var first *subscription
		if i >= 0 {
			first = subs[i]
		}
		return func(ctx context.Context, sh *shard) ([]types.ChildShard, error) {
			return k.follow(ctx, f, sh, arn, first)
		}
	}, nil
}

// A subscription delivers the events of one shard for up to five minutes.
type subscription struct {
	kinesis.SubscribeToShardEventStreamReader
	cancel context.CancelFunc
	began  time.Time
}

func (s *subscription) close() {
	s.cancel()
	_ = s.Close() // what it could say was said by Err, or comes from the cancellation
}

func (k *kinesisSink) subscribe(ctx context.Context, f *Feed, sh *shard, arn string) (*subscription, error) {
	pos := k.shards.at(sh)
	start := &types.StartingPosition{Type: types.ShardIteratorTypeLatest}
	switch {
	case pos.seq != "":
		start.Type, start.SequenceNumber = types.ShardIteratorTypeAfterSequenceNumber, aws.String(pos.seq)
	case pos.horizon:
		start.Type = types.ShardIteratorTypeTrimHorizon
	case !pos.since.IsZero():
		start.Type, start.Timestamp = types.ShardIteratorTypeAtTimestamp, aws.Time(pos.since)
	}
	// The context has to live as long as the events do; only the answer's head has a deadline.
	ctx, cancel := context.WithCancel(ctx)
	late := time.AfterFunc(time.Duration(k.cfg.RequestTimeout), cancel)
	began := time.Now()
	events, served, err := k.api.Subscribe(ctx, &kinesis.SubscribeToShardInput{
		ConsumerARN: aws.String(arn), ShardId: aws.String(sh.id), StartingPosition: start,
	})
	if !late.Stop() && err != nil {
		err = fmt.Errorf("%w: %w", context.DeadlineExceeded, err)
	}
	if err != nil {
		cancel()
		err = k.cfg.Err("subscribe to "+sh.id, err)
		if pos.seq != "" && isInvalidArgument(err) {
			f.Gap("trimmed")
			k.shards.move(sh, shardPosition{horizon: true})
			err = conn.WithClass(conn.Throttle, err) // try again, from there
		}
		if k.looking && !k.since.IsZero() && pos.since.Equal(k.since) && isInvalidArgument(err) {
			err = conn.WithClass(conn.Throttle, k.refused(f, sh, err))
		}
		return nil, err
	}
	if pos == (shardPosition{}) {
		k.shards.move(sh, shardPosition{since: served.Add(-latestMargin)})
	}
	k.startedAt(served)
	return &subscription{events, cancel, began}, nil
}

// follow reads a shard through one subscription after the other to its end; see poll.
func (k *kinesisSink) follow(ctx context.Context, f *Feed, sh *shard, arn string, sub *subscription) ([]types.ChildShard, error) {
	tolerance := tolerance{interval: fanOutPause}
	for {
		if sub == nil {
			var err error
			if sub, err = k.subscribe(ctx, f, sh, arn); err != nil {
				wait, err := tolerance.of(ctx, f, err)
				if err != nil {
					return nil, err
				}
				if err := sleep(ctx, wait); err != nil {
					return nil, err
				}
				continue
			}
		}
		children, drained, err := k.drain(ctx, f, sh, sub, &tolerance)
		began := sub.began
		sub.close()
		sub = nil
		if drained {
			return children, nil
		}
		wait := fanOutPause - time.Since(began)
		if err != nil {
			if wait, err = tolerance.of(ctx, f, err); err != nil {
				return nil, err
			}
		}
		if err := sleep(ctx, max(wait, 0)); err != nil {
			return nil, err
		}
	}
}

// drain delivers the events of one subscription. It returns nil when the subscription ended as it does
// every five minutes.
func (k *kinesisSink) drain(ctx context.Context, f *Feed, sh *shard, sub *subscription, tolerance *tolerance) (children []types.ChildShard, drained bool, err error) {
	silence := time.NewTimer(fanOutSilence)
	defer silence.Stop()
	// An event says nothing of when it was made. But what is made after another event has arrived here
	// is later than that arrival. Events that come together were held up somewhere and prove nothing
	// for each other, hence the least time between.
	anchor := sub.began
	closed := k.shards.isClosed(sh) // at the anchor
	var pace pace
	for {
		var event types.SubscribeToShardEventStream
		var ok bool
		select {
		case <-ctx.Done():
			return nil, false, ctx.Err()
		case <-silence.C:
			return nil, false, conn.WithClass(conn.Network, fmt.Errorf("kinesis stream %s: the subscription to %s is silent for %s", k.cfg.Name(), sh.id, fanOutSilence))
		case event, ok = <-sub.Events():
		}
		if !ok {
			if ctx.Err() != nil {
				return nil, false, ctx.Err()
			}
			return nil, false, k.cfg.Err("subscription to "+sh.id, sub.Err())
		}
		silence.Reset(fanOutSilence)
		member, ok := event.(*types.SubscribeToShardEventStreamMemberSubscribeToShardEvent)
		if !ok {
			continue
		}
		tolerance.answered()
		e := &member.Value
		k.shards.lags(sh, e.MillisBehindLatest, time.Now())
		bytes := k.deliver(f, sh, e.Records)
		next := aws.ToString(e.ContinuationSequenceNumber)
		if next == "" || len(e.ChildShards) > 0 {
			return e.ChildShards, true, nil
		}
		if k.hurry(sh, e.Records, bytes, &pace) {
			return nil, false, nil
		}
		k.shards.move(sh, shardPosition{seq: next})
		now := time.Now()
		atTip := e.MillisBehindLatest != nil && *e.MillisBehindLatest == 0
		if now.Sub(anchor) < eventApart {
			continue
		}
		switch {
		case atTip && closed && len(e.Records) == 0:
			// The service names the children in the last event. Should that one have been lost with its
			// connection, the list has told already that nothing more will come.
			return nil, true, nil
		case atTip && !closed:
			k.caughtUp(f, sh, anchor)
		}
		anchor, closed = now, k.shards.isClosed(sh)
	}
}
