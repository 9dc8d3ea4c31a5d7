package faults_test

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kinesis"
	"github.com/aws/aws-sdk-go-v2/service/kinesis/types"

	"github.com/lag-monitor/lag-monitor/internal/servers"
)

// kinesisRow is what a row has of the server: calls that go wrong, apart for the monitor's two ways.
type kinesisRow struct {
	*servers.KinesisServer
	head, dest *servers.KinesisProxy
	keyID      string // file with the id of the monitor's access key
}

// kinesisRows lists what is broken in Kinesis, in the order of the table.
func kinesisRows() []*row {
	of := func(f *field) *kinesisRow { return f.server.(*kinesisRow) }
	head := func(f *field) *kinesisQueue { return f.head.(*kinesisQueue) }
	dest := func(f *field) *kinesisQueue { return f.dest.(*kinesisQueue) }
	restart := func(t *testing.T, f *field) {
		// What the server takes while it ends may be lost, and then even the readers of the truth would not
		// know what there was: nobody writes at that moment.
		f.headProxy.Set(servers.Faults{Refuse: true})
		f.headProxy.Cut()
		f.relay.hold()
		of(f).Stop()
		wait(t, 3*time.Second)
		of(f).Process.Start()
		f.headProxy.Set(servers.Faults{})
		f.relay.resume()
	}
	var rows []*row
	for _, r := range commonRows() {
		switch r.name {
		case "broker_restart":
			r.does, r.fault = "stopped once its data is on disk, 3 s, start", restart
		case "long_outage":
			r.does, r.interval = strings.Replace(r.does, "at 40 heartbeats", "at 8 heartbeats", 1), 125*time.Millisecond
		case "slow_link": // its reads are slower by themselves
			r.does, r.fault = "900 ms and 20 kB/s in each direction for 10 s", slowLink(900*time.Millisecond)
		case "broker_killed": // the local server would lose its last half second
			continue
		}
		rows = append(rows, r)
	}
	rows = append(rows,
		&row{
			name: "destination_recreated", does: "the destination stream is deleted with heartbeats that the monitor has not read, and created again 2 s later", gap: true,
			fault: func(t *testing.T, f *field) {
				f.replaceDestination(t, func() { dest(f).recreate(t, 2*time.Second) })
			},
		},
		&row{
			name: "head_recreated", does: "the head stream is deleted, and created again 2 s later", headLoses: true,
			fault: func(t *testing.T, f *field) { head(f).recreate(t, 2*time.Second) },
		},
		&row{
			name: "destination_resharded", does: "a shard of the destination is split, 4 s later the halves are merged", unnoticed: true,
			fault: func(t *testing.T, f *field) { dest(f).splitAndMerge(t, 4*time.Second) },
		},
		&row{
			name: "head_resharded", does: "a shard of the head is split and a half of it split again; the monitor looks every 30 s", unnoticed: true, long: true, recovers: 2 * time.Minute,
			ends: []string{"0"},
			fault: func(t *testing.T, f *field) {
				head(f).split(t, 0)
				head(f).split(t, 2)
			},
			well: func(s servers.Scrape) bool { return len(s.Find("lag_seconds", "lane", "5")) == 1 },
		},
		&row{
			name: "throttled", does: "every read, and every write or single records of it, exceeds the limit for 10 s",
			fault: func(t *testing.T, f *field) {
				k := of(f)
				k.dest.Throttle("GetRecords", 1e6)
				k.head.Throttle("PutRecords", 15)
				for range 100 {
					k.head.RejectRecords(1) // the first of a request of two
					wait(t, 100*time.Millisecond)
				}
				k.head.Heal()
				k.dest.Heal()
			},
		},
		&row{
			name: "iterators_expire", does: "the iterators of the monitor expire twice a second, until it has taken 20", unnoticed: true,
			fault: func(t *testing.T, f *field) {
				// One that is handed out at that moment does not expire.
				taken := of(f).dest.Calls("GetShardIterator")
				for deadline := time.Now().Add(patience); of(f).dest.Calls("GetShardIterator") < taken+20; wait(t, 500*time.Millisecond) {
					of(f).dest.ExpireIterators()
					if time.Now().After(deadline) {
						t.Fatalf("%d iterators are taken anew; want 20", of(f).dest.Calls("GetShardIterator")-taken)
					}
				}
			},
		},
		&row{
			name: "errors", does: "for 10 s, one read and one write a second is answered with an error of the service, by turns before and after it is done",
			fault: func(t *testing.T, f *field) {
				for i := range 10 {
					read := servers.KinesisFault{Operation: "GetRecords", Times: 1, Status: http.StatusInternalServerError, Type: "InternalFailure"}
					put := servers.KinesisFault{Operation: "PutRecords", Times: 1, Status: http.StatusServiceUnavailable}
					if i%2 == 0 {
						read = servers.KinesisFault{Operation: "GetRecords", Times: 1, Lost: true}
						put = servers.KinesisFault{Operation: "PutRecords", Times: 1, Lost: true}
					}
					of(f).dest.Inject(read)
					of(f).head.Inject(put)
					wait(t, time.Second)
				}
			},
		},
		&row{
			name: "credentials_expired", does: "the access key expires; the monitor's file has the next one 5 s later", variant: "login",
			fault: func(t *testing.T, f *field) {
				of(f).head.Accept("second")
				of(f).dest.Accept("second")
				wait(t, 5*time.Second)
				writeFile(t, of(f).keyID, "second")
			},
		},
		&row{
			name: "fan_out_restart", does: "as broker restart, read through enhanced fan-out", variant: "fan_out", breaks: true, fault: restart,
		},
		&row{
			name: "fan_out_cut", does: "subscriptions end, break off, are refused and throttled for 10 s", variant: "fan_out",
			fault: func(t *testing.T, f *field) {
				for i := range 4 {
					of(f).dest.Throttle("SubscribeToShard", 1)
					if i%2 == 0 {
						of(f).dest.CutSubscriptions()
					} else {
						of(f).dest.EndSubscriptions()
					}
					wait(t, 2500*time.Millisecond)
				}
			},
		},
		&row{
			name: "fan_out_silent", does: "open subscriptions say nothing more, and their connections stay", variant: "fan_out", long: true, recovers: 2 * time.Minute,
			page: 2 * time.Minute,
			fault: func(t *testing.T, f *field) {
				of(f).dest.SilenceSubscriptions()
				wait(t, 5*time.Second) // for it to show
			},
		},
		&row{
			name: "fan_out_resharded", does: "as destination resharded, read through enhanced fan-out", variant: "fan_out", unnoticed: true,
			fault: func(t *testing.T, f *field) { dest(f).splitAndMerge(t, 4*time.Second) },
		},
	)
	for _, r := range rows {
		// The local server takes 5 ms of a core for each request.
		r.near = 2.5
		switch r.interval {
		case 0:
			r.interval = 500 * time.Millisecond
		case 100 * time.Millisecond:
			r.interval = 250 * time.Millisecond
		}
	}
	return rows
}

// kinesisAtOnce is how many rows one local server can bear.
const kinesisAtOnce = 6

func openKinesis(t *testing.T, rows []*row) func(*testing.T, *row) *pipeline {
	return onServers(rows, 1, func() *servers.KinesisServer { return servers.KinesisInMemory(t) },
		func() *servers.KinesisServer { return servers.Kinesis(t) }, kinesisPipeline)
}

// kinesisPipeline creates the two streams of a row. Faults of the service itself are those of the monitor's
// two proxies, so that the pipeline does not suffer them.
func kinesisPipeline(t *testing.T, r *row, k *servers.KinesisServer) *pipeline {
	t.Helper()
	open := func(stream string) *kinesisQueue {
		k.CreateStream(t, stream, partitions)
		return &kinesisQueue{server: k, client: k.Client(t), stream: stream}
	}
	head, dest := open(strings.ReplaceAll(r.name, "_", "-")+"-in"), open(strings.ReplaceAll(r.name, "_", "-")+"-out")
	server := &kinesisRow{KinesisServer: k, head: k.NewProxy(t), dest: k.NewProxy(t), keyID: filepath.Join(t.TempDir(), "id")}
	headProxy := servers.Proxy(t, strings.TrimPrefix(server.head.Endpoint, "http://"))
	destProxy := servers.Proxy(t, strings.TrimPrefix(server.dest.Endpoint, "http://"))
	secret := filepath.Join(t.TempDir(), "secret")
	writeFile(t, server.keyID, "first")
	writeFile(t, secret, servers.KinesisSecretKey)
	yaml := func(stream string, p *servers.FaultProxy, more string) string {
		return fmt.Sprintf("kinesis: {stream: %s, endpoint: %q, region: %s, request_timeout: 2s, access_key_id: {file: %q}, secret_access_key: {file: %q}%s%s}",
			stream, "http://"+p.Addr, servers.KinesisRegion, server.keyID, secret, more, r.settings)
	}
	more := ", poll_interval: 500ms, shard_refresh: 2s"
	switch r.variant {
	case "login":
		server.head.Accept("first")
		server.dest.Accept("first")
	case "fan_out":
		more += ", enhanced_fan_out: {consumer: monitor}"
	}
	return &pipeline{
		head: head, dest: dest, headProxy: headProxy, destProxy: destProxy, broker: k.Process, server: server,
		inject: yaml(head.stream, headProxy, ""), sink: yaml(dest.stream, destProxy, more),
	}
}

// kinesisQueue is a stream. Its lanes are those of the heartbeats: a lane has a partition key of its own, and
// so one place in the range of hash keys, in which shards come and go.
type kinesisQueue struct {
	server *servers.KinesisServer
	client *kinesis.Client
	stream string
	life   atomic.Int64 // how often it was created anew
}

// recreate deletes the stream and creates it again after a while.
func (q *kinesisQueue) recreate(t *testing.T, after time.Duration) {
	t.Helper()
	if _, err := q.client.DeleteStream(t.Context(), &kinesis.DeleteStreamInput{StreamName: &q.stream}); err != nil {
		t.Fatal(err)
	}
	q.life.Add(1)
	wait(t, after)
	q.server.CreateStream(t, q.stream, partitions)
}

// split splits the shard with a number in the middle of its range.
func (q *kinesisQueue) split(t *testing.T, number int) {
	t.Helper()
	shards, err := q.shards(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	low, _ := new(big.Int).SetString(*shards[number].HashKeyRange.StartingHashKey, 10)
	high, _ := new(big.Int).SetString(*shards[number].HashKeyRange.EndingHashKey, 10)
	middle := low.Add(low, high).Rsh(low, 1).String()
	if _, err := q.client.SplitShard(t.Context(), &kinesis.SplitShardInput{StreamName: &q.stream, ShardToSplit: shards[number].ShardId, NewStartingHashKey: &middle}); err != nil {
		t.Fatal(err)
	}
	q.server.AwaitStream(t, q.stream)
}

// splitAndMerge splits the first shard of a new stream and merges its children after a while.
func (q *kinesisQueue) splitAndMerge(t *testing.T, after time.Duration) {
	t.Helper()
	q.split(t, 0)
	wait(t, after)
	shards, err := q.shards(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	children := shards[partitions:]
	if len(children) != 2 {
		t.Fatalf("%d shards; want two more than before", len(shards))
	}
	_, err = q.client.MergeShards(t.Context(), &kinesis.MergeShardsInput{StreamName: &q.stream, ShardToMerge: children[0].ShardId, AdjacentShardToMerge: children[1].ShardId})
	if err != nil {
		t.Fatal(err)
	}
	q.server.AwaitStream(t, q.stream)
}

// shards returns all shards, the closed ones too, in the order of their numbers.
func (q *kinesisQueue) shards(ctx context.Context) ([]types.Shard, error) {
	out, err := q.client.ListShards(ctx, &kinesis.ListShardsInput{StreamName: &q.stream})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(out.Shards, func(a, b types.Shard) int { return strings.Compare(*a.ShardId, *b.ShardId) })
	return out.Shards, nil
}

// hashKey is the place of a lane: spread over the range in such a way that the halves of a shard have lanes too.
func hashKey(lane int) string {
	quarter := big.NewInt(int64(lane%2*2 + lane/2%2))
	return quarter.Lsh(quarter, 126).Add(quarter, new(big.Int).Lsh(big.NewInt(1), 125)).String()
}

func (q *kinesisQueue) put(ctx context.Context, lane int, body []byte) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	_, err := q.client.PutRecord(ctx, &kinesis.PutRecordInput{
		StreamName: &q.stream, Data: body, PartitionKey: aws.String(fmt.Sprintf("lane-%d", lane)), ExplicitHashKey: aws.String(hashKey(lane)),
	})
	return err
}

// cursor reads one shard.
type cursor struct {
	id       string
	parents  []string
	last     string // sequence number of the last record that was read
	iterator string
	drained  bool // it is closed, and all is read
}

// read reads once, and reports whether that was all there is. Any error takes a new iterator.
func (q *kinesisQueue) read(ctx context.Context, c *cursor, life int64, f func(message)) (tip bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	if c.iterator == "" {
		in := &kinesis.GetShardIteratorInput{StreamName: &q.stream, ShardId: &c.id, ShardIteratorType: types.ShardIteratorTypeTrimHorizon}
		if c.last != "" {
			in.ShardIteratorType, in.StartingSequenceNumber = types.ShardIteratorTypeAfterSequenceNumber, &c.last
		}
		out, err := q.client.GetShardIterator(ctx, in)
		if err != nil {
			return false, err
		}
		c.iterator = *out.ShardIterator
	}
	out, err := q.client.GetRecords(ctx, &kinesis.GetRecordsInput{ShardIterator: &c.iterator})
	if err != nil {
		c.iterator = ""
		return false, err
	}
	for _, r := range out.Records {
		key := *r.PartitionKey
		lane, err := strconv.Atoi(key[strings.LastIndexByte(key, '-')+1:])
		if err != nil {
			return false, fmt.Errorf("partition key %q has no lane", key)
		}
		f(message{id: fmt.Sprintf("%d %s %s", life, c.id, *r.SequenceNumber), lane: lane, body: r.Data, at: *r.ApproximateArrivalTimestamp})
		c.last = *r.SequenceNumber
	}
	c.iterator = aws.ToString(out.NextShardIterator)
	c.drained = c.iterator == ""
	return c.drained || len(out.Records) == 0 && aws.ToInt64(out.MillisBehindLatest) == 0, nil
}

// look adds the shards that cursors does not have yet.
func (q *kinesisQueue) look(ctx context.Context, cursors *[]*cursor) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	shards, err := q.shards(ctx)
	if err != nil {
		return err
	}
	for _, s := range shards {
		if slices.ContainsFunc(*cursors, func(c *cursor) bool { return c.id == *s.ShardId }) {
			continue
		}
		*cursors = append(*cursors, &cursor{id: *s.ShardId, parents: []string{aws.ToString(s.ParentShardId), aws.ToString(s.AdjacentParentShardId)}})
	}
	return nil
}

// follow reads the shards by turns, and a child only when its parents are drained.
func (q *kinesisQueue) follow(ctx context.Context, f func(message)) {
	var cursors []*cursor
	life := int64(0)
	for round := 0; ctx.Err() == nil; round++ {
		if now := q.life.Load(); now != life {
			cursors, life = nil, now
		}
		if round%5 == 0 {
			_ = q.look(ctx, &cursors) // the next round asks again
		}
		for _, c := range cursors {
			if c.drained || slices.ContainsFunc(cursors, func(p *cursor) bool { return !p.drained && slices.Contains(c.parents, p.id) }) {
				continue
			}
			_, _ = q.read(ctx, c, life, f)
		}
		select {
		case <-ctx.Done():
		case <-time.After(300 * time.Millisecond):
		}
	}
}

func (q *kinesisQueue) all(ctx context.Context) ([]message, error) {
	var cursors []*cursor
	if err := q.look(ctx, &cursors); err != nil {
		return nil, err
	}
	if len(cursors) == 0 {
		return nil, errors.New("the stream has no shards")
	}
	var all []message
	for _, c := range cursors {
		for tip := false; !tip; {
			var err error
			if tip, err = q.read(ctx, c, q.life.Load(), func(m message) { all = append(all, m) }); err != nil {
				return nil, fmt.Errorf("%s/%s: %w", q.stream, c.id, err)
			}
		}
	}
	return all, nil
}
