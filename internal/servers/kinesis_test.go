package servers_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/service/kinesis"
	"github.com/aws/aws-sdk-go-v2/service/kinesis/types"
	"github.com/aws/smithy-go"

	"github.com/lag-monitor/lag-monitor/internal/servers"
)

type stream struct {
	t      *testing.T
	client *kinesis.Client
	name   string
}

func (s stream) put(data string) error {
	_, err := s.client.PutRecord(s.t.Context(), &kinesis.PutRecordInput{
		StreamName: &s.name, PartitionKey: aws.String("k"), ExplicitHashKey: aws.String("0"), Data: []byte(data),
	})
	return err
}

func (s stream) iterator() *string {
	s.t.Helper()
	out, err := s.client.GetShardIterator(s.t.Context(), &kinesis.GetShardIteratorInput{
		StreamName: &s.name, ShardId: aws.String("shardId-000000000000"), ShardIteratorType: types.ShardIteratorTypeTrimHorizon,
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return out.ShardIterator
}

func (s stream) get(it *string) (*kinesis.GetRecordsOutput, error) {
	return s.client.GetRecords(s.t.Context(), &kinesis.GetRecordsInput{ShardIterator: it})
}

func (s stream) expect(want string) {
	s.t.Helper()
	out, err := s.get(s.iterator())
	if err != nil {
		s.t.Fatal(err)
	}
	var got []string
	for _, r := range out.Records {
		got = append(got, string(r.Data))
	}
	if fmt.Sprint(got) != want {
		s.t.Fatalf("the shard holds %v; want %s", got, want)
	}
}

func TestKinesis(t *testing.T) {
	t.Parallel()
	k := servers.Kinesis(t)
	k.CreateStream(t, "deferred", 2)
	s := stream{t, k.Client(t), "deferred"}
	if err := s.put("a"); err != nil {
		t.Fatal(err)
	}
	s.expect("[a]")
	k.Stop()
	if err := s.put("x"); err == nil {
		t.Error("a stopped server took a record")
	} else if api := smithy.APIError(nil); errors.As(err, &api) {
		t.Errorf("a stopped server answered %v", err)
	}
	k.Start()
	s.expect("[a]")

	if _, err := s.client.SplitShard(t.Context(), &kinesis.SplitShardInput{
		StreamName: &s.name, ShardToSplit: aws.String("shardId-000000000000"),
		NewStartingHashKey: aws.String("85070591730234615865843651857942052864"),
	}); err != nil {
		t.Fatal(err)
	}
	k.AwaitStream(t, s.name)
	out, err := s.client.ListShards(t.Context(), &kinesis.ListShardsInput{StreamName: &s.name})
	if err != nil || len(out.Shards) != 4 {
		t.Fatalf("after the split there are shards %+v, %v; want 4", out, err)
	}
}

func TestKinesisFaults(t *testing.T) {
	t.Parallel()
	k := servers.Kinesis(t)
	k.CreateStream(t, "s", 1)
	s := stream{t, k.Client(t), "s"}

	k.Throttle("GetRecords", 2)
	it := s.iterator()
	for i := range 3 {
		_, err := s.get(it)
		if is[*types.ProvisionedThroughputExceededException](err) != (i < 2) {
			t.Errorf("read %d of 3, two of them throttled: %v", i, err)
		}
	}
	k.Throttle("PutRecord", 1)
	if err := s.put("x"); !is[*types.ProvisionedThroughputExceededException](err) {
		t.Errorf("a throttled put: %v", err)
	}
	k.ExpireIterators()
	if _, err := s.get(it); !is[*types.ExpiredIteratorException](err) {
		t.Errorf("an expired iterator: %v", err)
	}
	if _, err := s.get(s.iterator()); err != nil {
		t.Errorf("a fresh iterator after others expired: %v", err)
	}

	k.Inject(servers.KinesisFault{Operation: "PutRecord", Times: 1, Status: 503})
	var plain *awshttp.ResponseError
	if err := s.put("x"); !errors.As(err, &plain) || plain.HTTPStatusCode() != 503 {
		t.Errorf("status 503: %v", err)
	}
	k.Inject(servers.KinesisFault{Operation: "PutRecord", Times: 1, Status: 500, Type: "InternalFailure"})
	var api smithy.APIError
	if err := s.put("x"); !errors.As(err, &api) || api.ErrorCode() != "InternalFailure" {
		t.Errorf("status 500 with a type: %v", err)
	}
	k.Inject(servers.KinesisFault{Operation: "PutRecord", Times: 1, Hang: true})
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := (stream{t, s.client, "s"}).putCtx(ctx, "x"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a call that hangs: %v", err)
	}
	s.expect("[]")
	k.Inject(servers.KinesisFault{Operation: "PutRecord", Times: 1, Lost: true})
	if err := s.put("lost answer"); err == nil {
		t.Error("an answer that was lost arrived")
	}
	s.expect("[lost answer]")

	k.RejectRecords(2)
	var entries []types.PutRecordsRequestEntry
	for i := range 3 {
		entries = append(entries, types.PutRecordsRequestEntry{PartitionKey: aws.String("k"), Data: fmt.Append(nil, i)})
	}
	for _, want := range [][]bool{{false, false, true}, {true, true, true}} {
		out, err := s.client.PutRecords(t.Context(), &kinesis.PutRecordsInput{StreamName: &s.name, Records: entries})
		if err != nil {
			t.Fatal(err)
		}
		var got []bool
		for _, r := range out.Records {
			got = append(got, r.ErrorCode == nil && r.SequenceNumber != nil)
		}
		if !slices.Equal(got, want) {
			t.Errorf("records taken: %v; want %v", got, want)
		}
	}
	s.expect("[lost answer 2 0 1 2]")

	k.LimitReads(true)
	it = s.iterator()
	for again := time.Now().Add(time.Minute); ; time.Sleep(time.Second) {
		throttled, start := 0, time.Now()
		for range 8 {
			if _, err := s.get(it); is[*types.ProvisionedThroughputExceededException](err) {
				throttled++
			}
		}
		if took := time.Since(start); took >= time.Second && time.Now().Before(again) {
			continue // a slow machine: these were not within a second
		}
		if throttled != 3 {
			t.Errorf("%d of 8 reads at once were throttled; want 3", throttled)
		}
		break
	}
	k.Heal()
	if _, err := s.get(it); err != nil {
		t.Errorf("a read after the limit was lifted: %v", err)
	}
	if n := k.Calls("PutRecords"); n != 2 {
		t.Errorf("%d PutRecords calls were counted; want 2", n)
	}
	k.LimitWrites(1)
	for i := 0; !is[*types.ProvisionedThroughputExceededException](s.put("limited")); i++ {
		// A slow machine may take more than a second for two of them.
		if i == 50 {
			t.Fatal("none of 50 puts was throttled")
		}
	}
	k.LimitWrites(0)
	k.Swallow(2)
	for i := range 4 {
		if err := s.put(fmt.Sprint("maybe", i)); err != nil {
			t.Errorf("put %d of some that are swallowed: %v", i, err)
		}
	}
	if lost := k.Swallowed(); fmt.Sprintf("%s", lost) != "[maybe1 maybe3]" {
		t.Errorf("swallowed are %s", lost)
	}
	out, err := s.get(s.iterator())
	if err != nil {
		t.Fatal(err)
	}
	var kept []string
	for _, r := range out.Records {
		if strings.HasPrefix(string(r.Data), "maybe") {
			kept = append(kept, string(r.Data))
		}
	}
	if fmt.Sprint(kept) != "[maybe0 maybe2]" {
		t.Errorf("the shard holds %v of those that were not swallowed", kept)
	}
	k.Inject(servers.KinesisFault{Operation: "PutRecord", Times: 1, Hang: true})
	k.Heal()
	if err := s.put("healed"); err != nil {
		t.Errorf("a put after healing: %v", err)
	}
}

func (s stream) putCtx(ctx context.Context, data string) error {
	_, err := s.client.PutRecord(ctx, &kinesis.PutRecordInput{StreamName: &s.name, PartitionKey: aws.String("k"), Data: []byte(data)})
	return err
}

func is[E error](err error) bool {
	var target E
	return errors.As(err, &target)
}

func TestKinesisSubscribe(t *testing.T) {
	t.Parallel()
	k := servers.Kinesis(t)
	arn := k.CreateStream(t, "s", 1)
	s := stream{t, k.Client(t), "s"}
	consumer, err := s.client.RegisterStreamConsumer(t.Context(), &kinesis.RegisterStreamConsumerInput{StreamARN: &arn, ConsumerName: aws.String("c")})
	if err != nil {
		t.Fatal(err)
	}
	subscribe := func() *kinesis.SubscribeToShardEventStream {
		t.Helper()
		deadline := time.Now().Add(20 * time.Second)
		for {
			// Two subscriptions of one client decode their events with one decoder (smithy-go v1.28.8).
			out, err := k.Client(t).SubscribeToShard(t.Context(), &kinesis.SubscribeToShardInput{
				ConsumerARN: consumer.Consumer.ConsumerARN, ShardId: aws.String("shardId-000000000000"),
				StartingPosition: &types.StartingPosition{Type: types.ShardIteratorTypeTrimHorizon},
			})
			if err == nil {
				t.Cleanup(func() { out.GetStream().Close() })
				return out.GetStream()
			}
			// The consumer is not active at once.
			if !is[*types.ResourceInUseException](err) || time.Now().After(deadline) {
				t.Fatal(err)
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	// await reads until a record holds want; it returns how the stream ended or fell silent before that.
	await := func(es *kinesis.SubscribeToShardEventStream, want string, patience time.Duration) string {
		timeout := time.After(patience)
		for {
			select {
			case ev, ok := <-es.Events():
				if !ok {
					return fmt.Sprintf("ended: %v", es.Err())
				}
				if e, ok := ev.(*types.SubscribeToShardEventStreamMemberSubscribeToShardEvent); ok {
					for _, r := range e.Value.Records {
						if string(r.Data) == want {
							return ""
						}
					}
				}
			case <-timeout:
				return "silent"
			}
		}
	}
	put := func(data string) {
		t.Helper()
		if err := s.put(data); err != nil {
			t.Fatal(err)
		}
	}

	// follow subscribes until a record holds want. The server needs a moment to notice that the subscription
	// before is over: it refuses the next one in its stream, or ends it.
	follow := func(want string) *kinesis.SubscribeToShardEventStream {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
			es := subscribe()
			how := await(es, want, 20*time.Second)
			if how == "" {
				return es
			}
			if time.Now().After(deadline) {
				t.Fatalf("the stream %s before %q", how, want)
			}
			es.Close()
		}
	}

	put("one")
	es := follow("one")
	if n := k.Subscriptions(); n != 1 {
		t.Errorf("%d subscriptions are open; want 1", n)
	}
	k.EndSubscriptions()
	if how := await(es, "never", 20*time.Second); how != "ended: <nil>" {
		t.Errorf("a subscription that was ended %s", how)
	}

	es = follow("one")
	k.CutSubscriptions()
	if how := await(es, "never", 20*time.Second); how == "ended: <nil>" || how == "silent" {
		t.Errorf("a subscription that was cut %s", how)
	}

	es = follow("one")
	k.SilenceSubscriptions()
	put("two")
	if how := await(es, "two", 2*time.Second); how != "silent" {
		t.Errorf("a subscription that was silenced %q", how)
	}
	es.Close()
	follow("two")
}
