package kafka

import (
	"context"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/lag-monitor/lag-monitor/examples/patterns/service"
)

// Options are those of every client. ready is called when the member has got partitions of topic to read.
func Options(env service.Env, group, topic string, ready func(), more ...kgo.Opt) []kgo.Opt {
	return append([]kgo.Opt{
		kgo.SeedBrokers(env.Addr), kgo.Dialer(env.Dial),
		kgo.ConsumerGroup(env.Space + group), kgo.ConsumeTopics(env.Space + topic),
		// The member says what it has done, after it has done it; and no partition is taken away while it works.
		kgo.DisableAutoCommit(), kgo.BlockRebalanceOnPoll(),
		kgo.Balancers(kgo.RangeBalancer()), kgo.HeartbeatInterval(500 * time.Millisecond),
		kgo.OnPartitionsAssigned(func(_ context.Context, _ *kgo.Client, assigned map[string][]int32) {
			if len(assigned) > 0 {
				ready()
			}
		}),
		kgo.FetchMaxWait(500 * time.Millisecond), kgo.RecordDeliveryTimeout(10 * time.Second), kgo.RequestTimeoutOverhead(10 * time.Second),
	}, more...)
}

// Lot returns a context for the work on what was read: that is ended also when the process is told to end, within a time.
func Lot(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), 20*time.Second)
}

// Failed returns the first error of a poll.
func Failed(f kgo.Fetches) error {
	for _, e := range f.Errors() {
		return fmt.Errorf("kafka: read %s, partition %d: %w", e.Topic, e.Partition, e.Err)
	}
	return nil
}

// Forward is a record as it goes on: key, value and headers, in another topic.
func Forward(r *kgo.Record, topic string) *kgo.Record {
	return &kgo.Record{Topic: topic, Key: r.Key, Value: r.Value, Headers: r.Headers}
}
