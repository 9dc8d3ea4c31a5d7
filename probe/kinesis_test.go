package probe

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kinesis"
	"github.com/aws/aws-sdk-go-v2/service/kinesis/types"
	"go.uber.org/goleak"

	"github.com/lag-monitor/lag-monitor/internal/conn"
	"github.com/lag-monitor/lag-monitor/internal/servers"
)

// fakePutter answers as told and notes what it is asked for.
type fakePutter struct {
	shards []types.Shard
	puts   []*kinesis.PutRecordsInput
	lists  int
}

func (f *fakePutter) ListShards(context.Context, *kinesis.ListShardsInput, ...func(*kinesis.Options)) (*kinesis.ListShardsOutput, error) {
	f.lists++
	return &kinesis.ListShardsOutput{Shards: f.shards}, nil
}

func (f *fakePutter) PutRecord(context.Context, *kinesis.PutRecordInput, ...func(*kinesis.Options)) (*kinesis.PutRecordOutput, error) {
	return &kinesis.PutRecordOutput{}, nil
}

func (f *fakePutter) PutRecords(_ context.Context, in *kinesis.PutRecordsInput, _ ...func(*kinesis.Options)) (*kinesis.PutRecordsOutput, error) {
	f.puts = append(f.puts, in)
	out := &kinesis.PutRecordsOutput{}
	for i := range in.Records {
		r := types.PutRecordsResultEntry{}
		switch i {
		case 1:
			r.ErrorCode = aws.String("ProvisionedThroughputExceededException")
		case 2:
			r.ErrorCode = aws.String("InternalFailure")
		case 3:
			r.ErrorCode = aws.String("KMSAccessDeniedException")
		}
		out.Records = append(out.Records, r)
	}
	return out, nil
}

// evenShards cuts the hash range into n shards of one size.
func evenShards(n int) (out []types.Shard) {
	size := new(big.Int).Div(new(big.Int).Lsh(big.NewInt(1), 128), big.NewInt(int64(n)))
	for i := range n {
		low := new(big.Int).Mul(size, big.NewInt(int64(i)))
		high := new(big.Int).Sub(new(big.Int).Add(low, size), big.NewInt(1))
		out = append(out, types.Shard{
			ShardId:             aws.String(fmt.Sprintf("shardId-%012d", i)),
			HashKeyRange:        &types.HashKeyRange{StartingHashKey: aws.String(low.String()), EndingHashKey: aws.String(high.String())},
			SequenceNumberRange: &types.SequenceNumberRange{StartingSequenceNumber: aws.String("1")},
		})
	}
	return out
}

func fakeLanes(f *fakePutter) *kinesisLanes {
	c := NewKinesis()
	c.Stream = "s"
	return &kinesisLanes{kinesisInjector: &kinesisInjector{cfg: c, api: f, closeIdle: func() {}}, middle: map[uint32]string{}}
}

// A batch is cut at 500 records and at the bytes of one request, each record goes into the middle of its
// shard's range, and each has an outcome of its own.
func TestKinesisBatch(t *testing.T) {
	f := &fakePutter{shards: evenShards(1200)}
	k := fakeLanes(f)
	lanes, err := k.Lanes(t.Context())
	if err != nil || len(lanes) != 1200 || !slices.IsSorted(lanes) {
		t.Fatalf("%d lanes, %v", len(lanes), err)
	}
	var ms []*Message
	for _, lane := range lanes {
		m := Sample()
		m.Lane = lane
		ms = append(ms, m)
	}
	errs := make([]error, len(ms))
	k.InjectBatch(t.Context(), ms, errs)
	if len(f.puts) != 3 || len(f.puts[0].Records) != 500 || len(f.puts[2].Records) != 200 {
		t.Fatalf("%d requests", len(f.puts))
	}
	for i, want := range []struct {
		refused bool
		class   conn.Class
	}{1: {true, conn.Throttle}, 2: {false, conn.Other}, 3: {true, conn.Auth}} {
		if i == 0 {
			continue
		}
		err := errs[500+i]
		if err == nil || IsRefused(err) != want.refused || conn.ClassOf(err) != want.class {
			t.Errorf("result %d of the second request: %v, class %s", i, err, conn.ClassOf(err))
		}
	}
	if errs[0] != nil || errs[504] != nil {
		t.Errorf("accepted records have errors: %v, %v", errs[0], errs[504])
	}
	for i, r := range f.puts[1].Records {
		h, _ := new(big.Int).SetString(*r.ExplicitHashKey, 10)
		rng := f.shards[500+i].HashKeyRange
		low, _ := new(big.Int).SetString(*rng.StartingHashKey, 10)
		high, _ := new(big.Int).SetString(*rng.EndingHashKey, 10)
		if toLow, toHigh := new(big.Int).Sub(h, low), new(big.Int).Sub(high, h); toLow.Sub(toLow, toHigh).CmpAbs(big.NewInt(1)) > 0 {
			t.Fatalf("hash key %s is not in the middle of %s to %s", h, low, high)
		}
	}

	f.puts = nil
	k.cfg.Data = MustTemplate("{{ .Token }}" + strings.Repeat("x", 1_000_000))
	k.InjectBatch(t.Context(), ms[:10], errs)
	if len(f.puts) != 3 || len(f.puts[0].Records) != 4 {
		t.Errorf("10 records of 1 MB went in %d requests, the first of %d", len(f.puts), len(f.puts[0].Records))
	}
}

// A lane that has been closed since the schedule last asked still has a hash key; one that never was is
// refused.
func TestKinesisLaneOfClosedShard(t *testing.T) {
	f := &fakePutter{shards: evenShards(2)}
	k := fakeLanes(f)
	if _, err := k.Lanes(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.shards = evenShards(4)[2:]
	if lanes, err := k.Lanes(t.Context()); err != nil || fmt.Sprint(lanes) != "[2 3]" {
		t.Errorf("lanes %v, %v", lanes, err)
	}
	m := Sample()
	if err := k.Inject(t.Context(), m); err != nil {
		t.Errorf("a heartbeat for a shard that was split: %v", err)
	}
	m.Lane = 77
	if err := k.Inject(t.Context(), m); !IsRefused(err) || conn.ClassOf(err) != conn.Missing {
		t.Errorf("a heartbeat for a shard that never was: %v", err)
	}
	f.shards = nil
	if _, err := k.Lanes(t.Context()); conn.ClassOf(err) != conn.Missing {
		t.Errorf("a stream without an open shard: %v", err)
	}
}

func TestKinesisValidate(t *testing.T) {
	c := NewKinesis()
	c.Stream, c.StreamARN = "a/b", ""
	c.Data = MustTemplate("no heartbeat")
	c.PartitionKey = MustTemplate(strings.Repeat("k", 257))
	c.Lanes = "some"
	err := c.Validate()
	for _, path := range []string{"stream", "data", "partition_key", "lanes"} {
		if !strings.Contains(err.Error(), path+": ") {
			t.Errorf("no word of %s in:\n%v", path, err)
		}
	}
}

// What a person's monitor is told about each way in which an injection can go wrong.
func TestKinesisOutcomes(t *testing.T) {
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) })
	k := servers.Kinesis(t)
	k.CreateStream(t, "head", 2)
	t.Setenv("LAG_MONITOR_TEST_AWS_ID", servers.KinesisAccessKey)
	t.Setenv("LAG_MONITOR_TEST_AWS_KEY", servers.KinesisSecretKey)
	config := func() *Kinesis {
		c := NewKinesis()
		c.Stream, c.Endpoint, c.Region = "head", k.Endpoint, servers.KinesisRegion
		c.AccessKeyID = conn.Secret{Env: "LAG_MONITOR_TEST_AWS_ID"}
		c.SecretAccessKey = conn.Secret{Env: "LAG_MONITOR_TEST_AWS_KEY"}
		c.RequestTimeout = conn.Duration(2 * time.Second)
		return c
	}
	proxy := servers.Proxy(t, strings.TrimPrefix(k.Endpoint, "http://"))
	for _, c := range []struct {
		name    string
		config  func(*Kinesis)
		arrange func()
		refused bool
		class   conn.Class
	}{
		{"accepted", nil, nil, false, ""},
		{"throttled", nil, func() { k.Throttle("PutRecord", 1) }, true, conn.Throttle},
		{"denied", nil, func() {
			k.Inject(servers.KinesisFault{Operation: "PutRecord", Times: 1, Status: 400, Type: "AccessDeniedException"})
		}, true, conn.Auth},
		{"expired token", nil, func() {
			k.Inject(servers.KinesisFault{Operation: "PutRecord", Times: 1, Status: 400, Type: "ExpiredTokenException"})
		}, true, conn.Auth},
		{"invalid", nil, func() {
			k.Inject(servers.KinesisFault{Operation: "PutRecord", Times: 1, Status: 400, Type: "ValidationException"})
		}, true, conn.Other},
		{"no stream", func(c *Kinesis) { c.Stream, c.Lanes = "nobody", "one" }, nil, true, conn.Missing},
		{"nobody listens", func(c *Kinesis) { c.Endpoint, c.Lanes = "http://127.0.0.1:1", "one" }, nil, true, conn.Network},
		{"no TLS there", func(c *Kinesis) {
			c.Endpoint, c.Lanes = strings.Replace(k.Endpoint, "http:", "https:", 1), "one"
		}, nil, true, conn.Network},
		{"no credentials", func(c *Kinesis) {
			c.SecretAccessKey, c.Lanes = conn.Secret{Env: "LAG_MONITOR_TEST_AWS_NOTHING"}, "one"
		}, nil, true, conn.Auth},
		{"bad template", func(c *Kinesis) { c.Data = MustTemplate(`{{ .Token }}{{ index .Token 5000 }}`) }, nil, true, conn.Other},
		{"internal failure", nil, func() {
			k.Inject(servers.KinesisFault{Operation: "PutRecord", Times: 1, Status: 500, Type: "InternalFailure"})
		}, false, conn.Other},
		{"bad gateway", nil, func() {
			k.Inject(servers.KinesisFault{Operation: "PutRecord", Times: 1, Status: http.StatusBadGateway})
		}, false, conn.Other},
		{"answer lost", nil, func() { k.Inject(servers.KinesisFault{Operation: "PutRecord", Times: 1, Lost: true}) }, false, conn.Network},
		{"no answer", nil, func() { k.Inject(servers.KinesisFault{Operation: "PutRecord", Times: 1, Hang: true}) }, false, conn.Network},
		{"silence", func(c *Kinesis) { c.Endpoint, c.Lanes = "http://"+proxy.Addr, "one" }, func() { proxy.Set(servers.Faults{Silent: true}) }, false, conn.Network},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := config()
			if c.config != nil {
				c.config(cfg)
			}
			in, err := cfg.Open()
			if err != nil {
				t.Fatal(err)
			}
			defer in.Close()
			if l, ok := in.(Laner); ok {
				if lanes, err := l.Lanes(t.Context()); err != nil || len(lanes) != 2 {
					t.Fatalf("lanes %v, %v", lanes, err)
				}
			}
			k.Heal()
			if c.arrange != nil {
				c.arrange()
			}
			before := k.Calls("PutRecord")
			began := time.Now()
			err = in.Inject(t.Context(), Sample())
			if c.class == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if err == nil || IsRefused(err) != c.refused || conn.ClassOf(err) != c.class {
				t.Errorf("got %v: refused %t, class %s; want refused %t, class %s", err, IsRefused(err), conn.ClassOf(err), c.refused, c.class)
			}
			if took := time.Since(began); took > 3*time.Second {
				t.Errorf("it took %s", took)
			}
			if n := k.Calls("PutRecord") - before; n > 1 {
				t.Errorf("it was tried %d times", n)
			}
		})
	}

	t.Run("one of a batch", func(t *testing.T) {
		k.Heal()
		in, err := config().Open()
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		k.RejectRecords(1)
		a, b := Sample(), Sample()
		b.Lane = 1
		errs := make([]error, 2)
		in.(BatchInjector).InjectBatch(t.Context(), []*Message{a, b}, errs)
		if !IsRefused(errs[0]) || conn.ClassOf(errs[0]) != conn.Throttle || errs[1] != nil {
			t.Errorf("results %v", errs)
		}
		k.Inject(servers.KinesisFault{Operation: "PutRecords", Times: 1, Lost: true})
		in.(BatchInjector).InjectBatch(t.Context(), []*Message{a, b}, errs)
		for _, err := range errs {
			if err == nil || IsRefused(err) {
				t.Errorf("a batch whose answer was lost: %v", err)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := in.Inject(ctx, a); !IsRefused(err) || !errors.Is(err, context.Canceled) {
			t.Errorf("an injection that did not begin: %v", err)
		}
	})
}
