package windowedaggregation

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/lag-monitor/lag-monitor/examples/patterns/kafka"
	"github.com/lag-monitor/lag-monitor/examples/patterns/service"
)

const (
	// Length of a window.
	Length = 2 * time.Second
	// Lateness is how much later than a younger one a click may come. After that its window is closed, and it is thrown away.
	Lateness = 500 * time.Millisecond
)

// Count is what comes out of a window.
type Count struct {
	From       time.Time      `json:"from"`
	Clicks     map[string]int `json:"clicks"`               // by page
	Heartbeats []string       `json:"heartbeats,omitempty"` // what was passed around
}

// window holds what came in for one.
type window struct {
	count Count
	first map[int32]kgo.EpochOffset // of each partition
}

// Windows are those that are open. The zero value is not ready to use; see NewWindows.
type Windows struct {
	open   map[int64]*window // by their beginning in Unix milliseconds
	newest time.Time         // of all clicks
	next   map[int32]kgo.EpochOffset
}

// NewWindows returns a state without windows.
func NewWindows() *Windows {
	return &Windows{open: map[int64]*window{}, next: map[int32]kgo.EpochOffset{}}
}

// Add takes a record, and reports whether it was in time. A heartbeat is not counted: it waits with its window for the end.
func (w *Windows) Add(r *kgo.Record) bool {
	w.next[r.Partition] = kgo.EpochOffset{Epoch: r.LeaderEpoch, Offset: r.Offset + 1}
	if r.Timestamp.After(w.newest) {
		w.newest = r.Timestamp
	}
	from := r.Timestamp.Truncate(Length)
	if !from.Add(Length).After(w.newest.Add(-Lateness)) {
		return false
	}
	one := w.open[from.UnixMilli()]
	if one == nil {
		one = &window{count: Count{From: from, Clicks: map[string]int{}}, first: map[int32]kgo.EpochOffset{}}
		w.open[from.UnixMilli()] = one
	}
	if _, there := one.first[r.Partition]; !there {
		one.first[r.Partition] = kgo.EpochOffset{Epoch: r.LeaderEpoch, Offset: r.Offset}
	}
	if bytes.Contains(r.Value, []byte("~lagmon1.")) {
		one.count.Heartbeats = append(one.count.Heartbeats, string(r.Value))
	} else {
		one.count.Clicks[string(r.Value)]++
	}
	return true
}

// Closed takes out the windows that are over, the oldest first.
func (w *Windows) Closed() []Count {
	var counts []Count
	for _, from := range slices.Sorted(maps.Keys(w.open)) {
		if one := w.open[from]; !one.count.From.Add(Length).After(w.newest.Add(-Lateness)) {
			counts = append(counts, one.count)
			delete(w.open, from)
		}
	}
	return counts
}

// Done returns from where a new process would have to read, so that it has all that is in open windows.
func (w *Windows) Done() map[int32]kgo.EpochOffset {
	done := maps.Clone(w.next)
	for _, one := range w.open {
		for partition, first := range one.first {
			if first.Offset < done[partition].Offset {
				done[partition] = first
			}
		}
	}
	return done
}

// Aggregator returns a process that counts; without carry one that counts heartbeats as if they were clicks.
func Aggregator(carry bool) func(context.Context, service.Env, func()) error {
	return func(ctx context.Context, env service.Env, ready func()) error {
		cl, err := kgo.NewClient(kafka.Options(env, "counting", "clicks", ready)...)
		if err != nil {
			return err
		}
		defer cl.CloseAllowingRebalance()
		for w := NewWindows(); ; cl.AllowRebalance() {
			fetches := cl.PollFetches(ctx)
			if ctx.Err() != nil {
				return nil
			}
			if err := kafka.Failed(fetches); err != nil {
				return err
			}
			for _, r := range fetches.Records() {
				w.Add(r)
			}
			if err := tell(ctx, cl, env.Space, w, carry); err != nil {
				return err
			}
		}
	}
}

// tell puts the counts of windows that are over into their topic, and says from where a new process would have to read.
func tell(ctx context.Context, cl *kgo.Client, space string, w *Windows, carry bool) error {
	counts := w.Closed()
	if len(counts) == 0 {
		return nil
	}
	ctx, cancel := kafka.Lot(ctx)
	defer cancel()
	for _, count := range counts {
		if !carry {
			count.Clicks["unknown"] += len(count.Heartbeats)
			count.Heartbeats = nil
		}
		text, err := json.Marshal(count)
		if err != nil {
			return err
		}
		if err := cl.ProduceSync(ctx, &kgo.Record{Topic: space + "counts", Value: text}).FirstErr(); err != nil {
			return fmt.Errorf("kafka: a count: %w", err)
		}
	}
	return commit(ctx, cl, space+"clicks", w.Done())
}

func commit(ctx context.Context, cl *kgo.Client, topic string, done map[int32]kgo.EpochOffset) error {
	var failed error
	cl.CommitOffsetsSync(ctx, map[string]map[int32]kgo.EpochOffset{topic: done}, func(_ *kgo.Client, _ *kmsg.OffsetCommitRequest, _ *kmsg.OffsetCommitResponse, err error) {
		failed = err
	})
	if failed != nil {
		return fmt.Errorf("kafka: commit: %w", failed)
	}
	return nil
}

// Click puts one click into the topic, dated at.
func Click(ctx context.Context, env service.Env, page string, at time.Time) error {
	cl, err := kgo.NewClient(kgo.SeedBrokers(env.Addr), kgo.Dialer(env.Dial), kgo.RecordDeliveryTimeout(10*time.Second))
	if err != nil {
		return err
	}
	defer cl.Close()
	return cl.ProduceSync(ctx, &kgo.Record{Topic: env.Space + "clicks", Value: []byte(page), Timestamp: at}).FirstErr()
}
