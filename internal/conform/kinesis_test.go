package conform_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kinesis"
	"github.com/aws/aws-sdk-go-v2/service/kinesis/types"

	"github.com/lag-monitor/lag-monitor/internal/conform"
	"github.com/lag-monitor/lag-monitor/internal/conn"
	"github.com/lag-monitor/lag-monitor/internal/servers"
	"github.com/lag-monitor/lag-monitor/probe"
	"github.com/lag-monitor/lag-monitor/sinks"
)

// kinesisStream drives both ends against a local Kinesis, with two shards and the shortest poll.
func kinesisStream() conform.Harness {
	var streams atomic.Int32
	return conform.Harness{
		Kind:          "kinesis",
		InjectorNeeds: []string{"stream"},
		SinkNeeds:     []string{"stream"},
		New: func(t *testing.T) conform.Pipeline {
			t.Setenv("LAG_MONITOR_TEST_AWS_ID", servers.KinesisAccessKey)
			t.Setenv("LAG_MONITOR_TEST_AWS_KEY", servers.KinesisSecretKey)
			// One server for each check: what a check stops must not be another one's.
			k := servers.Kinesis(t)
			name := fmt.Sprintf("conform-%d", streams.Add(1))
			k.CreateStream(t, name, 2)
			return kinesisPipeline(t, k, name)
		},
	}
}

func kinesisPipeline(t *testing.T, k *servers.KinesisServer, stream string) conform.Pipeline {
	at := func(endpoint, stream string) conn.Kinesis {
		c := conn.DefaultKinesis()
		c.Stream, c.Endpoint, c.Region = stream, endpoint, servers.KinesisRegion
		c.AccessKeyID = conn.Secret{Env: "LAG_MONITOR_TEST_AWS_ID"}
		c.SecretAccessKey = conn.Secret{Env: "LAG_MONITOR_TEST_AWS_KEY"}
		return c
	}
	inject := func(c conn.Kinesis) func() probe.Config {
		return func() probe.Config {
			p := probe.NewKinesis()
			p.Kinesis = c
			return p
		}
	}
	sink := func(c conn.Kinesis) func() sinks.Config {
		return func() sinks.Config {
			s := sinks.NewKinesis()
			s.Kinesis = c
			s.PollInterval = conn.Duration(200 * time.Millisecond)
			return s
		}
	}
	proxy := servers.Proxy(t, k.Endpoint[len("http://"):])
	here := at("http://"+proxy.Addr, stream)
	missing := at(k.Endpoint, "nobody-made-this-stream")
	nobody := at("http://127.0.0.1:1", stream)
	noKey := here
	noKey.SecretAccessKey = conn.Secret{Env: "LAG_MONITOR_TEST_AWS_NOTHING"}
	client := k.Client(t)
	var puts sync.Mutex
	return conform.Pipeline{
		Inject: inject(here), Sink: sink(here),
		Put: func(t *testing.T, bodies ...[]byte) {
			puts.Lock()
			defer puts.Unlock()
			for len(bodies) > 0 {
				n := min(len(bodies), 500)
				in := &kinesis.PutRecordsInput{StreamName: &stream}
				for _, b := range bodies[:n] {
					in.Records = append(in.Records, types.PutRecordsRequestEntry{Data: b, PartitionKey: aws.String("ordinary")})
				}
				out, err := client.PutRecords(context.Background(), in)
				if err != nil || aws.ToInt32(out.FailedRecordCount) > 0 {
					t.Errorf("put ordinary records: %v", err)
				}
				bodies = bodies[n:]
			}
		},
		Lanes: 2, Keeps: true, LooksBack: true, IDs: true, Enqueued: true,
		Remaining: func(t *testing.T) int { return kinesisRecords(t, client, stream) },
		Stop: func() {
			k.Stop()
			proxy.Set(servers.Faults{Refuse: true})
			proxy.Cut()
		},
		Start: func() {
			k.Start()
			proxy.Set(servers.Faults{})
		},
		Hang: func() func() {
			proxy.Set(servers.Faults{Silent: true})
			return func() { proxy.Set(servers.Faults{}) }
		},
		Broken: []conform.Broken{
			{Name: "no such stream", Inject: inject(missing), Sink: sink(missing), Class: conn.Missing},
			{Name: "nobody listens", Inject: inject(nobody), Sink: sink(nobody), Class: conn.Network},
			{Name: "no secret", Inject: inject(noKey), Sink: sink(noKey), Class: conn.Auth},
		},
	}
}

// kinesisRecords counts the records of all shards from the oldest on.
func kinesisRecords(t *testing.T, client *kinesis.Client, stream string) (n int) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	shards, err := client.ListShards(ctx, &kinesis.ListShardsInput{StreamName: &stream})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range shards.Shards {
		it, err := client.GetShardIterator(ctx, &kinesis.GetShardIteratorInput{StreamName: &stream, ShardId: s.ShardId, ShardIteratorType: types.ShardIteratorTypeTrimHorizon})
		if err != nil {
			t.Fatal(err)
		}
		for next := it.ShardIterator; next != nil; {
			out, err := client.GetRecords(ctx, &kinesis.GetRecordsInput{ShardIterator: next})
			if err != nil {
				t.Fatal(err)
			}
			if n += len(out.Records); aws.ToInt64(out.MillisBehindLatest) == 0 {
				break
			}
			next = out.NextShardIterator
		}
	}
	return n
}
