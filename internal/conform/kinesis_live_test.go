package conform_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/big"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kinesis"
	"go.uber.org/goleak"

	"github.com/lag-monitor/lag-monitor/internal/conn"
	"github.com/lag-monitor/lag-monitor/internal/heartbeat"
	"github.com/lag-monitor/lag-monitor/internal/servers"
	"github.com/lag-monitor/lag-monitor/probe"
	"github.com/lag-monitor/lag-monitor/sinks"
)

// arrivals is a Receiver that counts how often each heartbeat came.
type arrivals struct {
	mu     sync.Mutex
	count  map[uint64]int
	claim  time.Time
	wrong  string // a claim to be caught up that was not true
	put    map[uint64]time.Time
	gaps   []string
	delays []time.Duration
}

func newArrivals() *arrivals {
	return &arrivals{count: make(map[uint64]int), put: make(map[uint64]time.Time)}
}

func (a *arrivals) Heartbeat(h *heartbeat.Heartbeat, ar sinks.Arrival) sinks.Kind {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.count[h.Seq]++
	a.delays = append(a.delays, ar.At.Sub(h.Sent))
	return sinks.Heartbeat
}

func (a *arrivals) Ready(bool, time.Time) {}

func (a *arrivals) CaughtUp(t time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.claim = t
	for seq, at := range a.put {
		if at.Before(t) {
			if a.count[seq] == 0 && a.wrong == "" {
				a.wrong = fmt.Sprintf("heartbeat %d, accepted %s before the time up to which the sink claims to have caught up, had not arrived", seq, t.Sub(at))
			}
			delete(a.put, seq)
		}
	}
}

func (a *arrivals) Gap(_ time.Time, reason string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.gaps = append(a.gaps, reason)
}

// kinesisBench is a stream with a probe that injects into all its lanes, and a sink.
type kinesisBench struct {
	t      *testing.T
	server *servers.KinesisServer
	client *kinesis.Client
	sink   func(...func(*sinks.Kinesis)) sinks.Sink
	in     probe.Injector

	mu    sync.Mutex
	seq   uint64
	lanes []uint32
	wg    sync.WaitGroup
}

func newKinesisBench(t *testing.T, shards int32) *kinesisBench {
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) })
	t.Setenv("LAG_MONITOR_TEST_AWS_ID", servers.KinesisAccessKey)
	t.Setenv("LAG_MONITOR_TEST_AWS_KEY", servers.KinesisSecretKey)
	k := servers.Kinesis(t)
	k.CreateStream(t, "s", shards)
	p := kinesisPipeline(t, k, "s")
	in, err := p.Inject().Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close() })
	return &kinesisBench{t: t, server: k, client: k.Client(t), in: in, sink: func(configure ...func(*sinks.Kinesis)) sinks.Sink {
		c := p.Sink().(*sinks.Kinesis)
		c.Endpoint = k.Endpoint
		c.ShardRefresh = conn.Duration(time.Second)
		for _, f := range configure {
			f(c)
		}
		if err := c.Validate(); err != nil {
			t.Fatal(err)
		}
		s, err := c.Open()
		if err != nil {
			t.Fatal(err)
		}
		return s
	}}
}

// watch runs the sink under its loop and waits until it is ready.
func (b *kinesisBench) watch(s sinks.Sink) (*arrivals, *sinks.Feed, func()) {
	b.t.Helper()
	a := newArrivals()
	f := sinks.NewFeed(a, nil)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		sinks.Listen(ctx, s, f, slog.New(slog.DiscardHandler), rand.New(rand.NewPCG(1, 1)))
	}()
	stop := sync.OnceFunc(func() { cancel(); <-done })
	b.t.Cleanup(stop)
	b.within(15*time.Second, "the sink is ready", func() bool { return f.Stats().Ready })
	return a, f, stop
}

func (b *kinesisBench) within(d time.Duration, what string, cond func() bool) {
	b.t.Helper()
	d = max(d, time.Minute) // on a busy machine what is a matter of seconds takes longer
	for end := time.Now().Add(d); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			b.t.Fatalf("not within %s: %s", d, what)
		}
	}
}

// send injects one heartbeat and reports whether it was accepted.
func (b *kinesisBench) send(lane uint32, to ...*arrivals) bool {
	b.mu.Lock()
	b.seq++
	seq := b.seq
	b.mu.Unlock()
	h := heartbeat.Heartbeat{Probe: "p", Lane: lane, Seq: seq, Sent: time.Now()}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	err := b.in.Inject(ctx, &probe.Message{Probe: "p", Lane: lane, Seq: seq, Sent: h.Sent, Token: string((*heartbeat.Keyring)(nil).Append(nil, &h))})
	if err != nil {
		b.t.Logf("heartbeat %d: %v", seq, err)
		return false
	}
	for _, a := range to {
		a.mu.Lock()
		if a.count[seq] == 0 {
			a.put[seq] = time.Now()
		}
		a.mu.Unlock()
	}
	return true
}

// traffic sends a heartbeat to each lane all the time, as the schedule does, until stop is called. All of
// them have to be accepted.
func (b *kinesisBench) traffic(every time.Duration, to ...*arrivals) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	b.wg.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			if i%10 == 0 {
				lanes, err := b.in.(probe.Laner).Lanes(context.Background())
				if err != nil {
					b.t.Errorf("lanes: %v", err)
				}
				b.mu.Lock()
				b.lanes = lanes
				b.mu.Unlock()
			}
			for _, lane := range b.lanes {
				if !b.send(lane, to...) {
					b.t.Errorf("a heartbeat for lane %d was not accepted", lane)
				}
			}
			time.Sleep(every)
		}
	})
	return func() { cancel(); b.wg.Wait() }
}

// exactly waits until every heartbeat has arrived, and reports those that came more than once.
func (b *kinesisBench) exactly(as ...*arrivals) {
	b.t.Helper()
	for _, a := range as {
		missing := func() (out []uint64) {
			a.mu.Lock()
			defer a.mu.Unlock()
			for seq := uint64(1); seq <= b.seq; seq++ {
				if a.count[seq] == 0 {
					out = append(out, seq)
				}
			}
			return out
		}
		// A subscription that fell silent is given up after 35 s; what comes sooner is not waited for longer.
		for end := time.Now().Add(time.Minute); len(missing()) > 0 && time.Now().Before(end); {
			time.Sleep(10 * time.Millisecond)
		}
		if m := missing(); len(m) > 0 {
			b.t.Fatalf("%d of %d heartbeats did not arrive: %v", len(m), b.seq, m[:min(len(m), 20)])
		}
		time.Sleep(500 * time.Millisecond)
		a.mu.Lock()
		for seq, n := range a.count {
			if n > 1 {
				b.t.Errorf("heartbeat %d arrived %d times", seq, n)
			}
		}
		if a.wrong != "" {
			b.t.Error(a.wrong)
		}
		if len(a.gaps) > 0 {
			b.t.Errorf("gaps: %v", a.gaps)
		}
		a.mu.Unlock()
	}
}

// reshard splits a shard in the middle, or merges two neighbours.
func (b *kinesisBench) reshard(ids ...string) {
	b.t.Helper()
	var err error
	if len(ids) == 2 {
		_, err = b.client.MergeShards(b.t.Context(), &kinesis.MergeShardsInput{StreamName: aws.String("s"), ShardToMerge: &ids[0], AdjacentShardToMerge: &ids[1]})
	} else {
		out, lerr := b.client.ListShards(b.t.Context(), &kinesis.ListShardsInput{StreamName: aws.String("s")})
		if lerr != nil {
			b.t.Fatal(lerr)
		}
		for _, s := range out.Shards {
			if *s.ShardId == ids[0] {
				low, _ := new(big.Int).SetString(*s.HashKeyRange.StartingHashKey, 10)
				high, _ := new(big.Int).SetString(*s.HashKeyRange.EndingHashKey, 10)
				middle := low.Add(low, high).Rsh(low, 1).String()
				_, err = b.client.SplitShard(b.t.Context(), &kinesis.SplitShardInput{StreamName: aws.String("s"), ShardToSplit: &ids[0], NewStartingHashKey: &middle})
			}
		}
	}
	if err != nil {
		b.t.Fatal(err)
	}
	b.server.AwaitStream(b.t, "s")
}

func shardID(n int) string { return fmt.Sprintf("shardId-%012d", n) }

func throughFanOut(c *sinks.Kinesis) { c.EnhancedFanOut = &sinks.FanOut{Consumer: "monitor"} }

// Under traffic to every shard, splits and merges lose nothing and repeat nothing, for both ways to
// read; the lanes follow; ordinary records are counted.
func TestKinesisLiveReshard(t *testing.T) {
	b := newKinesisBench(t, 2)
	polled, feed, stopPolling := b.watch(b.sink())
	pushed, _, stopPushing := b.watch(b.sink(throughFanOut))
	began := time.Now()
	stop := b.traffic(100*time.Millisecond, polled, pushed)
	time.Sleep(time.Second)
	b.reshard(shardID(0)) // → 2, 3
	time.Sleep(2 * time.Second)
	b.mu.Lock()
	first, half := b.seq, time.Now()
	b.mu.Unlock()
	b.reshard(shardID(3), shardID(1)) // → 4
	time.Sleep(2 * time.Second)
	b.reshard(shardID(2), shardID(4)) // → 5
	b.reshard(shardID(5))             // → 6, 7, at once
	time.Sleep(2 * time.Second)
	b.within(time.Minute, "lanes 6 and 7", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return slices.Equal(b.lanes, []uint32{6, 7})
	})
	for range 7 {
		if _, err := b.client.PutRecord(t.Context(), &kinesis.PutRecordInput{StreamName: aws.String("s"), PartitionKey: aws.String("x"), Data: []byte("ordinary")}); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(time.Second)
	stop()
	b.exactly(polled, pushed)
	if n := feed.Stats().Messages[sinks.Other]; n != 7 {
		t.Errorf("%d other messages were counted, want 7", n)
	}
	for _, a := range []*arrivals{polled, pushed} {
		a.mu.Lock()
		slices.Sort(a.delays)
		t.Logf("%d heartbeats, latency median %s, maximum %s", len(a.delays), a.delays[len(a.delays)/2], a.delays[len(a.delays)-1])
		a.mu.Unlock()
		now := time.Now()
		b.within(time.Minute, "the next claim to be caught up", func() bool {
			a.mu.Lock()
			defer a.mu.Unlock()
			return a.claim.After(now)
		})
	}
	stopPolling()
	stopPushing()

	// Who comes late and looks back finds the same, through all generations of shards.
	whole, part := b.sink(throughFanOut), b.sink()
	whole.(sinks.LookBacker).LookBack(began)
	part.(sinks.LookBacker).LookBack(half)
	all, _, stopAll := b.watch(whole)
	some, _, stopSome := b.watch(part)
	b.exactly(all)
	for seq := first + 1; seq <= b.seq; seq++ {
		b.within(time.Minute, fmt.Sprintf("heartbeat %d arrives", seq), func() bool { return some.of(seq) > 0 })
	}
	stopAll()
	stopSome()
	for seq := uint64(1); seq <= b.seq; seq++ {
		// What was on its way at that moment may have come before it or after it.
		if n := some.of(seq); n > 1 || n > 0 && seq < first/2 {
			t.Errorf("heartbeat %d arrived %d times with a look-back to heartbeat %d", seq, n, first)
		}
	}
}

// of returns how often a heartbeat came.
func (a *arrivals) of(seq uint64) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.count[seq]
}

// The service's ill humours while it is polled: throttling, expired iterators, an error of its own, an
// answer that never comes, a consumer that uses up the reads.
func TestKinesisLiveFaults(t *testing.T) {
	b := newKinesisBench(t, 2)
	a, feed, _ := b.watch(b.sink(func(c *sinks.Kinesis) { c.RequestTimeout = conn.Duration(2 * time.Second) }))
	stop := b.traffic(100*time.Millisecond, a)
	counted := func(class conn.Class) uint64 { return feed.Stats().Errors[class] }

	b.server.Throttle("GetRecords", 4)
	b.within(10*time.Second, "throttles are counted", func() bool { return counted(conn.Throttle) >= 4 })
	for range 3 {
		time.Sleep(500 * time.Millisecond)
		b.server.ExpireIterators()
	}
	b.server.Inject(servers.KinesisFault{Operation: "GetRecords", Times: 2, Status: 500, Type: "InternalFailure"})
	b.within(10*time.Second, "internal failures are counted", func() bool { return counted(conn.Other) >= 2 })
	if n := counted(conn.Network) + counted(conn.Auth) + counted(conn.Missing); n != 0 || counted(conn.Other) != 2 {
		t.Errorf("other errors were counted, an expired iterator is none: %v", feed.Stats().LastError)
	}
	b.server.Inject(servers.KinesisFault{Operation: "GetRecords", Times: 1, Hang: true})
	b.within(10*time.Second, "a read without an answer is given up", func() bool { return counted(conn.Network) > 0 })
	if err := feed.Stats().LastError; !errors.Is(err, context.DeadlineExceeded) && !strings.Contains(err.Error(), "timeout") {
		t.Errorf("the last error is %v", err)
	}
	b.within(10*time.Second, "the sink is ready again", func() bool { return feed.Stats().Ready })
	b.server.LimitReads(true)
	time.Sleep(2 * time.Second)
	stop()
	b.exactly(a)
}

// A poll a second leaves four reads of five to others: beside one that takes three, on a machine that is
// busy, it is not throttled, and neither is the other by it.
func TestKinesisLivePace(t *testing.T) {
	b := newKinesisBench(t, 2)
	b.server.LimitReads(true)
	a, feed, _ := b.watch(b.sink(func(c *sinks.Kinesis) { c.PollInterval = conn.Duration(time.Second) }))
	other, err := b.client.GetShardIterator(t.Context(), &kinesis.GetShardIteratorInput{StreamName: aws.String("s"), ShardId: aws.String(shardID(0)), ShardIteratorType: "LATEST"})
	if err != nil {
		t.Fatal(err)
	}
	stop := b.traffic(200*time.Millisecond, a)
	before, began := b.server.Calls("GetRecords"), time.Now()
	reads := 0
	for it := other.ShardIterator; time.Since(began) < 10*time.Second; reads++ { // three reads a second
		out, err := b.client.GetRecords(t.Context(), &kinesis.GetRecordsInput{ShardIterator: it})
		if err != nil {
			t.Fatalf("the consumer beside the sink was throttled: %v", err)
		}
		it = out.NextShardIterator
		time.Sleep(330 * time.Millisecond)
	}
	stop()
	b.exactly(a)
	rate := float64(b.server.Calls("GetRecords")-before-reads) / time.Since(began).Minutes() / 2
	t.Logf("%.0f GetRecords a minute and shard", rate)
	if rate > 66 {
		t.Errorf("%.0f reads a minute and shard, want 60", rate)
	}
	if n := feed.Stats().Errors[conn.Throttle]; n > 0 {
		t.Errorf("the sink was throttled %d times", n)
	}
}

// Subscriptions that end, break and fall silent lose nothing.
func TestKinesisLiveFanOut(t *testing.T) {
	b := newKinesisBench(t, 2)
	a, feed, stopSink := b.watch(b.sink(throughFanOut, func(c *sinks.Kinesis) { c.EnhancedFanOut.Deregister = true }))
	stop := b.traffic(200*time.Millisecond, a)
	time.Sleep(2 * time.Second)
	// One that is just being made would not be hit. The server refuses those that come within seconds of the one before.
	both := func() {
		b.within(time.Minute, "both shards are subscribed", func() bool { return b.server.Subscriptions() == 2 })
	}
	for _, f := range []func(){b.server.EndSubscriptions, b.server.CutSubscriptions} {
		both()
		n := b.server.Calls("SubscribeToShard")
		f()
		b.within(15*time.Second, "both shards are subscribed again", func() bool { return b.server.Calls("SubscribeToShard") >= n+2 })
		time.Sleep(2 * time.Second)
	}
	both()
	b.server.Throttle("SubscribeToShard", 2)
	n := b.server.Calls("SubscribeToShard")
	b.server.SilenceSubscriptions()
	silent := time.Now()
	b.within(45*time.Second, "the silent subscriptions are given up", func() bool { return b.server.Calls("SubscribeToShard") >= n+2 })
	t.Logf("given up after %s", time.Since(silent).Round(time.Second))
	time.Sleep(3 * time.Second)
	stop()
	b.exactly(a)
	if feed.Stats().Errors[conn.Network] == 0 {
		t.Error("the silence was not counted")
	}
	stopSink()
	arn := b.server.AwaitStream(t, "s")
	out, err := b.client.ListStreamConsumers(t.Context(), &kinesis.ListStreamConsumersInput{StreamARN: &arn})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range out.Consumers {
		if c.ConsumerStatus == "ACTIVE" {
			t.Errorf("consumer %s is still registered", *c.ConsumerName)
		}
	}
}

// The broker is gone for half a minute and comes back: what was accepted before, and after, is read
// from the last position, by the same process and by one that knows the position only.
func TestKinesisLiveOutage(t *testing.T) {
	b := newKinesisBench(t, 2)
	s := b.sink()
	a, feed, stopSink := b.watch(s)
	for range 20 {
		b.send(0, a)
		b.send(1, a)
	}
	b.exactly(a)
	saved := maps.Clone(s.(sinks.Resumer).Position())
	// These may be in the stream, unread, when the broker goes.
	for range 20 {
		b.send(0, a)
		b.send(1, a)
	}
	b.server.Stop()
	b.within(15*time.Second, "the sink notices", func() bool { return !feed.Stats().Ready })
	claim := feed.Stats().CaughtUp
	time.Sleep(30 * time.Second)
	if feed.Stats().Ready || feed.Stats().CaughtUp != claim {
		t.Error("the sink claims to listen to a broker that is gone")
	}
	b.server.Start()
	b.within(15*time.Second, "the sink is ready again", func() bool { return feed.Stats().Ready })
	for range 20 {
		b.send(0, a)
		b.send(1, a)
	}
	b.exactly(a)
	stopSink()

	next := b.sink()
	next.(sinks.Resumer).Resume(saved)
	resumed, _, _ := b.watch(next)
	b.within(10*time.Second, "80 heartbeats behind the saved position", func() bool {
		resumed.mu.Lock()
		defer resumed.mu.Unlock()
		return len(resumed.count) == 80
	})
}

// How far the reader of each shard is behind is what the service says.
func TestKinesisLiveBacklog(t *testing.T) {
	b := newKinesisBench(t, 2)
	for name, configure := range map[string]func(*sinks.Kinesis){"lag-monitor": func(*sinks.Kinesis) {}, "monitor": throughFanOut} {
		s := b.sink(configure)
		_, _, stop := b.watch(s)
		b.within(time.Minute, "backlog of two shards for "+name, func() bool {
			all, err := s.(sinks.Backlogger).Backlog(t.Context())
			return err == nil && len(all) == 2 && all[0].Partition == shardID(0) && all[1].Partition == shardID(1) && all[0].Group == name && all[0].Queue == "s" &&
				all[0].Seconds == 0 && all[1].Seconds == 0
		})
		stop()
	}
}
