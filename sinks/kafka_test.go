package sinks

import (
	"context"
	"encoding/base64"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/compress"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"

	"github.com/lag-monitor/lag-monitor/internal/conn"
	"github.com/lag-monitor/lag-monitor/internal/heartbeat"
	"github.com/lag-monitor/lag-monitor/internal/servers"
)

// kafkaRunner is a sink that runs against a cluster.
type kafkaRunner struct {
	taker
	feed   *Feed
	sink   Sink
	cancel context.CancelFunc
	done   chan error
}

func newKafkaSink(t *testing.T, brokers []string, configure ...func(*Kafka)) Sink {
	t.Helper()
	c := NewKafka()
	c.Brokers, c.Topic = brokers, "t"
	c.MetadataRefresh = conn.Duration(100 * time.Millisecond)
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
}

func runKafka(t *testing.T, s Sink) *kafkaRunner {
	t.Helper()
	return startKafka(t, s, func(*Feed) {})
}

func startKafka(t *testing.T, s Sink, configure func(*Feed)) *kafkaRunner {
	t.Helper()
	r := &kafkaRunner{sink: s, done: make(chan error, 1)}
	r.feed = NewFeed(r, nil)
	configure(r.feed)
	var ctx context.Context
	ctx, r.cancel = context.WithCancel(t.Context())
	go func() { r.done <- s.Run(ctx, r.feed) }()
	return r
}

func (r *kafkaRunner) waitReady(t *testing.T) *kafkaRunner {
	t.Helper()
	waitUntil(t, "ready", func() bool {
		select {
		case err := <-r.done:
			t.Fatalf("Run ended: %v", err)
		default:
		}
		return r.feed.Stats().Ready
	})
	return r
}

func (r *kafkaRunner) stop(t *testing.T) {
	t.Helper()
	r.cancel()
	select {
	case err := <-r.done:
		if err != nil {
			t.Errorf("Run at the end of its context: %v", err)
		}
	case <-time.After(30 * time.Second):
		t.Error("Run did not end")
	}
}

func (r *kafkaRunner) allGaps() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.gaps)
}

// exactly waits until the sink has caught up with now and compares what it has counted.
func (r *kafkaRunner) exactly(t *testing.T, heartbeats, others int) {
	t.Helper()
	now := time.Now()
	waitUntil(t, "caught up", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.caughtUp.After(now)
	})
	m := r.feed.Stats().Messages
	if m[Heartbeat] != uint64(heartbeats) || m[Other] != uint64(others) || m[Corrupt] != 0 {
		t.Errorf("%d heartbeats, %d others and %d corrupt, want %d, %d and 0", m[Heartbeat], m[Other], m[Corrupt], heartbeats, others)
	}
}

func fakeKafka(t *testing.T, brokers, partitions int, opts ...kfake.Opt) *servers.FakeKafka {
	t.Helper()
	f := servers.StartFakeKafka(t, brokers, opts...)
	if err := f.CreateTopic("t", int32(partitions), nil); err != nil {
		t.Fatal(err)
	}
	return f
}

// oldKafka has no topic ids in Fetch: sinks fall back to names.
func oldKafka() kfake.Opt {
	v := kversion.V2_8_0()
	v.SetMaxKeyVersion(int16(kmsg.Metadata), 9)
	return kfake.MaxVersions(v)
}

func producer(t *testing.T, brokers []string, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	c, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(brokers...), kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.DefaultProduceTopic("t"), kgo.MetadataMinAge(50 * time.Millisecond)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// put produces one batch to a partition: strings are bodies, numbers the sequences of heartbeats.
func put(t *testing.T, c *kgo.Client, partition int32, what ...any) {
	t.Helper()
	var rs []*kgo.Record
	for _, w := range what {
		r := &kgo.Record{Partition: partition}
		switch w := w.(type) {
		case string:
			r.Value = []byte(w)
		case int:
			r.Value = []byte(`{"heartbeat":"` + tokenOf(uint64(w)) + `"}`)
		case *kgo.Record:
			r = w
			r.Partition = partition
		}
		rs = append(rs, r)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := c.ProduceSync(ctx, rs...).FirstErr(); err != nil {
		t.Fatalf("produce: %v", err)
	}
}

func repeat(n int, s string) []any { return slices.Repeat([]any{s}, n) }

// Heartbeats are found wherever they stand in a record, under every compression and in both spoken
// versions of Fetch, and everything else is counted exactly.
func TestKafkaFindsHeartbeats(t *testing.T) {
	codecs := []kgo.CompressionCodec{kgo.NoCompression(), kgo.GzipCompression(), kgo.SnappyCompression(), kgo.Lz4Compression(), kgo.ZstdCompression()}
	for name, opts := range map[string][]kfake.Opt{"ids": nil, "names": {oldKafka()}} {
		t.Run(name, func(t *testing.T) {
			f := fakeKafka(t, 2, 3, opts...)
			r := runKafka(t, newKafkaSink(t, f.ListenAddrs())).waitReady(t)
			seq, others := 0, 0
			for _, codec := range codecs {
				c := producer(t, f.ListenAddrs(), kgo.ProducerBatchCompression(codec))
				for p := range int32(3) {
					put(t, c, p, repeat(500, strings.Repeat(`{"order":"~ lagmon1 "}`, 10))...)
					header := &kgo.Record{Value: []byte("plain"), Headers: []kgo.RecordHeader{{Key: "a", Value: []byte("b")}, {Key: "lag-monitor-heartbeat", Value: []byte(tokenOf(uint64(seq + 2)))}}}
					key := &kgo.Record{Key: []byte(tokenOf(uint64(seq + 3)))}
					twice := &kgo.Record{Value: []byte(tokenOf(uint64(seq + 4))), Headers: []kgo.RecordHeader{{Key: "h", Value: []byte(tokenOf(uint64(seq + 4)))}}}
					put(t, c, p, "before", seq+1, header, "between", key, twice, "", "after")
					seq += 4
					others += 500 + 4
				}
			}
			r.exactly(t, seq, others)
			got := r.arrived()
			slices.Sort(got)
			for i, s := range got {
				if s != uint64(i+1) {
					t.Fatalf("heartbeat %d arrived in place of %d", s, i+1)
				}
			}
			r.stop(t)
		})
	}
}

// A sink that unwraps finds heartbeats in an envelope, beside it in a header or the key, and without one, and
// counts each message once.
func TestKafkaUnwraps(t *testing.T) {
	f := fakeKafka(t, 1, 1)
	u, err := NewUnwrap("base64", "gzip")
	if err != nil {
		t.Fatal(err)
	}
	r := startKafka(t, newKafkaSink(t, f.ListenAddrs()), func(f *Feed) { f.SetUnwrap(u) }).waitReady(t)
	wrap := func(text string) []byte { return []byte(base64.StdEncoding.EncodeToString(gzipped(t, []byte(text)))) }
	for i, codec := range []kgo.CompressionCodec{kgo.NoCompression(), kgo.ZstdCompression()} {
		n := uint64(5 * i)
		put(t, producer(t, f.ListenAddrs(), kgo.ProducerBatchCompression(codec)), 0,
			&kgo.Record{Key: []byte("k"), Value: wrap(tokenOf(n + 1))}, &kgo.Record{Value: wrap("ordinary")}, "ordinary, not wrapped", "",
			int(n+2), &kgo.Record{Value: wrap("x"), Headers: []kgo.RecordHeader{{Key: "lag-monitor-heartbeat", Value: []byte(tokenOf(n + 3))}}},
			&kgo.Record{Key: []byte(tokenOf(n + 4)), Value: wrap(tokenOf(n + 4))}, &kgo.Record{Value: wrap(tokenOf(n + 5))})
	}
	r.exactly(t, 10, 6)
	r.stop(t)
}

// kafka-go frames snappy in its own way, and so do others.
func TestKafkaFindsHeartbeatsOfKafkaGo(t *testing.T) {
	f := fakeKafka(t, 1, 1)
	r := runKafka(t, newKafkaSink(t, f.ListenAddrs())).waitReady(t)
	tr := &kafka.Transport{}
	defer tr.CloseIdleConnections()
	c := &kafka.Client{Addr: kafka.TCP(f.ListenAddrs()...), Transport: tr}
	for i, codec := range []compress.Compression{compress.None, compress.Gzip, compress.Snappy, compress.Lz4, compress.Zstd} {
		records := []kafka.Record{{Value: kafka.NewBytes([]byte("x"))}, {Value: kafka.NewBytes([]byte(tokenOf(uint64(i + 1))))}, {Value: kafka.NewBytes([]byte("y"))}}
		resp, err := c.Produce(t.Context(), &kafka.ProduceRequest{Topic: "t", RequiredAcks: kafka.RequireAll, Compression: codec, Records: kafka.NewRecordReader(records...)})
		if err = errors.Join(err, resp.Error); err != nil {
			t.Fatal(codec, err)
		}
	}
	r.exactly(t, 5, 10)
	r.stop(t)
}

func TestKafkaStart(t *testing.T) {
	f := fakeKafka(t, 1, 2)
	c := producer(t, f.ListenAddrs())
	old := &kgo.Record{Value: []byte("old"), Timestamp: time.Now().Add(-time.Hour)}
	put(t, c, 0, old)
	put(t, c, 0, 1)
	for start, want := range map[string][2]int{"latest": {0, 0}, "earliest": {1, 1}, "10m": {1, 0}} {
		r := runKafka(t, newKafkaSink(t, f.ListenAddrs(), func(k *Kafka) { k.Start = start })).waitReady(t)
		r.exactly(t, want[0], want[1])
		r.stop(t)
	}
	// A position inside a batch, and a batch that is larger than an answer is meant to be.
	put(t, c, 1, append(repeat(99, strings.Repeat("x", 1000)), 2)...)
	s := newKafkaSink(t, f.ListenAddrs(), func(k *Kafka) { k.MaxBytes, k.Partitions = 1024, []int32{1} })
	s.(Resumer).Resume(map[string]string{"1": "40", "0": "no position"})
	r := runKafka(t, s).waitReady(t)
	r.exactly(t, 1, 59)
	r.stop(t)
	if got := s.(Resumer).Position()["1"]; !strings.HasPrefix(got, "100@") {
		t.Errorf("position is %q, want offset 100", got)
	}
}

func TestKafkaTransactions(t *testing.T) {
	f := fakeKafka(t, 1, 1)
	plain := producer(t, f.ListenAddrs())
	txn := producer(t, f.ListenAddrs(), kgo.TransactionalID("x"))
	committed := newKafkaSink(t, f.ListenAddrs(), func(k *Kafka) { k.Isolation = "read_committed" })
	uncommitted := newKafkaSink(t, f.ListenAddrs())
	a, b := runKafka(t, committed).waitReady(t), runKafka(t, uncommitted).waitReady(t)

	ctx := t.Context()
	seq := 0
	for _, end := range []kgo.TransactionEndTry{kgo.TryAbort, kgo.TryCommit, kgo.TryAbort, kgo.TryAbort} {
		if err := txn.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		put(t, txn, 0, "in a transaction", seq+1)
		put(t, plain, 0, "in between", seq+2)
		put(t, txn, 0, seq+3, "in a transaction")
		if err := txn.EndTransaction(ctx, end); err != nil {
			t.Fatal(err)
		}
		put(t, plain, 0, seq+4)
		seq += 4
	}
	a.exactly(t, 4*2+2, 4+2)
	b.exactly(t, 4*4, 4*3)
	for _, s := range a.arrived() {
		if n := s % 4; (n == 1 || n == 3) && s != 5 && s != 7 {
			t.Errorf("heartbeat %d of an aborted transaction was delivered to read_committed", s)
		}
	}

	heldBack(t, f.ListenAddrs(), plain, txn, a, b, 100)
	a.exactly(t, 4*2+2+2, 4+2)
	a.stop(t)
	b.stop(t)
}

// heldBack opens a transaction: it holds back a sink that waits for its end, which may not say meanwhile that
// it has read everything, nor be taken for dead; and it holds back nobody else. Two heartbeats more arrive.
func heldBack(t *testing.T, brokers []string, plain, txn *kgo.Client, committed, uncommitted *kafkaRunner, seq int) {
	t.Helper()
	if err := txn.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	put(t, txn, 0, seq)
	opened := time.Now() // an answer that was asked for from now on has the transaction in it
	put(t, plain, 0, seq+1)
	waitUntil(t, "what is in the transaction, and behind it", func() bool { return slices.Contains(uncommitted.arrived(), uint64(seq+1)) })
	claim := func(r *kafkaRunner) time.Time {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.caughtUp
	}
	waitUntil(t, "three rounds of the other one", func() bool { return claim(uncommitted).After(opened.Add(3 * kafkaMaxWait)) })
	if slices.Contains(committed.arrived(), uint64(seq+1)) {
		t.Error("read_committed has read past an open transaction")
	}
	if c := claim(committed); c.After(opened) {
		t.Errorf("read_committed claims to have caught up %s after a transaction began that is still open", c.Sub(opened))
	}
	late := runKafka(t, newKafkaSink(t, brokers, func(k *Kafka) { k.Isolation = "read_committed" })).waitReady(t)
	for _, r := range []*kafkaRunner{committed, late} {
		now := time.Now()
		waitUntil(t, "a sign of life of one that waits", func() bool { return time.Since(now) > r.feed.silent() })
	}
	if c := claim(late); !c.IsZero() {
		t.Errorf("a sink that was started meanwhile claims to have caught up with %s", c)
	}
	late.stop(t)
	if err := txn.EndTransaction(t.Context(), kgo.TryCommit); err != nil {
		t.Fatal(err)
	}
	waitUntil(t, "what was held back", func() bool { return slices.Contains(committed.arrived(), uint64(seq+1)) })
	if gaps := committed.allGaps(); len(gaps) > 0 {
		t.Errorf("gaps: %v", gaps)
	}
}

func TestKafkaNewPartitions(t *testing.T) {
	f := fakeKafka(t, 2, 1)
	r := runKafka(t, newKafkaSink(t, f.ListenAddrs(), func(k *Kafka) { k.MetadataRefresh = conn.Duration(500 * time.Millisecond) })).waitReady(t)
	c := producer(t, f.ListenAddrs())
	req := kmsg.NewPtrCreatePartitionsRequest()
	topic := kmsg.NewCreatePartitionsRequestTopic()
	topic.Topic, topic.Count = "t", 4
	req.Topics, req.TimeoutMillis = append(req.Topics, topic), 5000
	if resp, err := req.RequestWith(t.Context(), c); err != nil || resp.Topics[0].ErrorCode != 0 {
		t.Fatal(resp, err)
	}
	c.ForceMetadataRefresh()
	late := producer(t, f.ListenAddrs())
	for p := range 4 {
		put(t, late, int32(p), p+1, "other")
	}
	waitUntil(t, "heartbeats of all partitions", func() bool { return len(r.arrived()) == 4 })
	r.exactly(t, 4, 4)
	if len(r.allGaps()) > 0 {
		t.Errorf("gaps: %v", r.allGaps())
	}
	r.stop(t)
}

// A topic that is re-created is noticed, whatever its new log looks like, and read from its beginning.
func TestKafkaRecreated(t *testing.T) {
	for name, c := range map[string]struct {
		opts    []kfake.Opt
		running bool
		after   int // other messages in the new log; 10 were in the old one
	}{
		"ids, longer":     {nil, true, 50},
		"ids, shorter":    {nil, true, 2},
		"ids, meanwhile":  {nil, false, 50},
		"names, shorter":  {[]kfake.Opt{oldKafka()}, true, 2},
		"names,meanwhile": {[]kfake.Opt{oldKafka()}, false, 2},
	} {
		t.Run(name, func(t *testing.T) {
			f := fakeKafka(t, 2, 2, c.opts...)
			s := newKafkaSink(t, f.ListenAddrs(), func(k *Kafka) { k.Start = "earliest" })
			put(t, producer(t, f.ListenAddrs()), 0, repeat(10, "other")...)
			r := runKafka(t, s).waitReady(t)
			r.exactly(t, 0, 10)
			if !c.running {
				r.stop(t)
			}
			if err := errors.Join(f.DeleteTopic("t"), f.CreateTopic("t", 2, nil)); err != nil {
				t.Fatal(err)
			}
			put(t, producer(t, f.ListenAddrs()), 0, append(repeat(c.after, "other"), 1)...)
			total, gaps := 0, []string{}
			for deadline := time.Now().Add(time.Minute); len(r.arrived()) == 0; time.Sleep(time.Millisecond) {
				select {
				case err := <-r.done: // the topic was seen missing; the loop calls Run again
					if !c.running || conn.ClassOf(err) == conn.Missing {
						total, gaps = int(r.feed.Stats().Messages[Other]), r.allGaps()
						r = runKafka(t, s)
						break
					}
					t.Fatalf("Run ended: %v", err)
				default:
				}
				if !c.running && r.feed.Stats().Messages[Other] == 10 {
					total = 10
					r = runKafka(t, s)
				}
				if time.Now().After(deadline) {
					t.Fatalf("the new log is not read; gaps %v", r.allGaps())
				}
			}
			if len(r.allGaps()) == 0 && total == 10 {
				gaps = r.allGaps()
			} else {
				gaps = append(gaps, r.allGaps()...)
			}
			r.exactly(t, 1, 10+c.after-total)
			if !slices.Contains(gaps, "recreated") {
				t.Errorf("gaps are %v, want recreated", gaps)
			}
			r.stop(t)
		})
	}
}

func TestKafkaTrimmed(t *testing.T) {
	f := fakeKafka(t, 1, 1)
	put(t, producer(t, f.ListenAddrs()), 0, append(repeat(9, "other"), 1)...)
	s := newKafkaSink(t, f.ListenAddrs())
	s.(Resumer).Resume(map[string]string{"0": "2"})
	if err := f.DeleteRecords("t", 0, 5); err != nil {
		t.Fatal(err)
	}
	r := runKafka(t, s).waitReady(t)
	r.exactly(t, 1, 4)
	if got := r.allGaps(); !slices.Equal(got, []string{"trimmed"}) {
		t.Errorf("gaps are %v, want trimmed", got)
	}
	r.stop(t)
}

// Leaders move without a pause in Run and without a message lost or read twice.
func TestKafkaLeadership(t *testing.T) {
	for name, opts := range map[string][]kfake.Opt{"ids": nil, "names": {oldKafka()}} {
		t.Run(name, func(t *testing.T) {
			f := fakeKafka(t, 3, 6, opts...)
			r := runKafka(t, newKafkaSink(t, f.ListenAddrs())).waitReady(t)
			c := producer(t, f.ListenAddrs())
			n := 0
			for round := range 6 {
				for p := range int32(6) {
					n++
					put(t, c, p, n, "other")
					if err := f.MoveTopicPartition("t", p, (p+int32(round))%3); err != nil {
						t.Fatal(err)
					}
				}
			}
			r.exactly(t, n, n)
			if len(r.allGaps()) > 0 {
				t.Errorf("gaps: %v", r.allGaps())
			}
			r.stop(t)
		})
	}
}

// Broken sessions and partition errors of brokers are overcome; errors that nobody can wait out end
// Run with their class.
func TestKafkaFaults(t *testing.T) {
	f := fakeKafka(t, 1, 2)
	r := runKafka(t, newKafkaSink(t, f.ListenAddrs())).waitReady(t)
	c := producer(t, f.ListenAddrs())
	n := 0
	for _, fault := range []kfake.Fault{
		{TopLevel: true, Err: kerr.FetchSessionIDNotFound},
		{TopLevel: true, Err: kerr.InvalidFetchSessionEpoch},
		{TopLevel: true, Err: kerr.FetchSessionTopicIDError},
		{Err: kerr.NotLeaderForPartition},
		{Err: kerr.UnknownLeaderEpoch},
		{Err: kerr.KafkaStorageError},
		{Err: kerr.UnknownTopicOrPartition},
	} {
		fault.Keys = []kmsg.Key{kmsg.Fetch}
		if !fault.TopLevel {
			fault.Topic = "t"
		}
		f.Fault(fault)
		for p := range int32(2) {
			n++
			put(t, c, p, n, "other")
		}
		r.exactly(t, n, n)
	}
	f.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Fetch}, Topic: "t", Err: kerr.TopicAuthorizationFailed, Count: -1})
	select {
	case err := <-r.done:
		if conn.ClassOf(err) != conn.Auth || !strings.Contains(err.Error(), "topic t") {
			t.Errorf("Run ended with %v of class %s, want auth", err, conn.ClassOf(err))
		}
	case <-time.After(time.Minute):
		t.Error("Run goes on without authorization")
	}
}

// A broker that accepts and says nothing is given up when its time is over.
func TestKafkaSilentBroker(t *testing.T) {
	f := fakeKafka(t, 1, 1)
	s := newKafkaSink(t, f.ListenAddrs(), func(k *Kafka) { k.Timeout = conn.Duration(3 * time.Second) })
	r := runKafka(t, s).waitReady(t)
	release := f.Hang()
	ends := func(r *kafkaRunner) {
		t.Helper()
		select {
		case err := <-r.done:
			if conn.ClassOf(err) != conn.Network {
				t.Errorf("Run ended with %v of class %s, want network", err, conn.ClassOf(err))
			}
		case <-time.After(time.Minute):
			t.Error("Run waits for ever")
		}
	}
	ends(r)
	ends(runKafka(t, s))
	release()
	put(t, producer(t, f.ListenAddrs()), 0, 1)
	r = runKafka(t, s).waitReady(t)
	r.exactly(t, 1, 0)
	r.stop(t)
}

// A hole is a gap also when the connection is lost before anybody can be asked whether it is one: the position is behind it.
func TestKafkaHoleWithoutAnswer(t *testing.T) {
	for name, refused := range map[string]int16{"not asked any more": 29, "asked, and no answer": 0} {
		t.Run(name, func(t *testing.T) {
			f := fakeKafka(t, 1, 2)
			f.ControlKey(int16(kmsg.Fetch), func(req kmsg.Request) (kmsg.Response, error, bool) {
				asked := req.(*kmsg.FetchRequest)
				resp := req.ResponseKind().(*kmsg.FetchResponse)
				topic := kmsg.NewFetchResponseTopic()
				topic.Topic, topic.TopicID = asked.Topics[0].Topic, asked.Topics[0].TopicID
				one, other := kmsg.NewFetchResponseTopicPartition(), kmsg.NewFetchResponseTopicPartition()
				one.HighWatermark, one.RecordBatches = 6, kafkaBatch(5, 0, "after a hole")
				other.Partition, other.ErrorCode = 1, refused
				topic.Partitions = append(topic.Partitions, one, other)
				resp.Topics = append(resp.Topics, topic)
				return resp, nil, true
			})
			f.ControlKey(int16(kmsg.DescribeConfigs), func(kmsg.Request) (kmsg.Response, error, bool) { return nil, errors.New("connection lost"), true })
			s := newKafkaSink(t, f.ListenAddrs())
			s.(Resumer).Resume(map[string]string{"0": "0", "1": "0"})
			r := runKafka(t, s)
			select {
			case err := <-r.done:
				if err == nil {
					t.Error("no error")
				}
			case <-time.After(time.Minute):
				t.Fatal("Run goes on")
			}
			if pos := s.(Resumer).Position()["0"]; !strings.HasPrefix(pos, "6") {
				t.Errorf("the position is %q, want 6", pos)
			}
			if gaps := r.allGaps(); !slices.Equal(gaps, []string{"compacted"}) {
				t.Errorf("gaps are %v, want compacted", gaps)
			}
		})
	}
}

// panicking is what a library is that cannot stand what it is given.
type panicking struct{ taker }

func (*panicking) Heartbeat(*heartbeat.Heartbeat, Arrival) Kind { panic("cannot stand it") }

// A panic while a broker's answer is taken apart ends the run and nothing else.
func TestKafkaPanic(t *testing.T) {
	f := fakeKafka(t, 1, 1)
	put(t, producer(t, f.ListenAddrs()), 0, 1)
	s := newKafkaSink(t, f.ListenAddrs(), func(k *Kafka) { k.Start = kafkaEarliest })
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var p *conn.PanicError
	if err := s.Run(ctx, NewFeed(new(panicking), nil)); !errors.As(err, &p) || p.Value != "cannot stand it" {
		t.Errorf("Run ended with %v, want the panic", err)
	}
}

func TestKafkaValidate(t *testing.T) {
	for want, breakIt := range map[string]func(*Kafka){
		"brokers: at least one broker is needed, as host:port":                                                       func(k *Kafka) { k.Brokers = nil },
		`brokers[0]: "a" is not host:port`:                                                                           func(k *Kafka) { k.Brokers = []string{"a"} },
		`brokers[0]: "a:x" has no port from 1 to 65535`:                                                              func(k *Kafka) { k.Brokers = []string{"a:x"} },
		"topic: the topic to listen on is missing":                                                                   func(k *Kafka) { k.Topic = "" },
		"timeout: must be longer than 0":                                                                             func(k *Kafka) { k.Timeout = 0 },
		"partitions[1]: 3 is not a partition, or named twice":                                                        func(k *Kafka) { k.Partitions = []int32{3, 3} },
		`start: "now" is not a start: use latest, earliest, or a duration to look back such as 10m`:                  func(k *Kafka) { k.Start = "now" },
		`isolation: "dirty" is not an isolation: use read_uncommitted or read_committed`:                             func(k *Kafka) { k.Isolation = "dirty" },
		"resolution: must be from 0 to 1s":                                                                           func(k *Kafka) { k.Resolution = conn.Duration(time.Minute) },
		"max_bytes: must be from 1024 to 67108864":                                                                   func(k *Kafka) { k.MaxBytes = 1 },
		"metadata_refresh: must be at least 100ms":                                                                   func(k *Kafka) { k.MetadataRefresh = 0 },
		`groups[1]: "g" is not a group, or named twice`:                                                              func(k *Kafka) { k.Groups = []string{"g", "g"} },
		`groups[0]: "" is not a group, or named twice`:                                                               func(k *Kafka) { k.Groups = []string{""} },
		"tls: cert_file and key_file go together":                                                                    func(k *Kafka) { k.TLS = &conn.TLS{CertFile: "x"} },
		`sasl.mechanism: "gssapi" is not a mechanism: use one of plain, scram-sha-256, scram-sha-512, aws-msk-iam`:   func(k *Kafka) { k.SASL = &conn.KafkaSASL{Mechanism: "gssapi"} },
		"sasl.mechanism: aws-msk-iam works over TLS only: add tls: {}":                                               func(k *Kafka) { k.SASL = &conn.KafkaSASL{Mechanism: "aws-msk-iam"} },
		"sasl.username: plain needs a username\nsasl.password: a secret has one source: {file: PATH} or {env: NAME}": func(k *Kafka) { k.SASL = &conn.KafkaSASL{Mechanism: "plain"} },
		"sasl.username: aws-msk-iam takes its credentials from the AWS environment: remove username and password":    func(k *Kafka) { k.TLS, k.SASL = &conn.TLS{}, &conn.KafkaSASL{Mechanism: "aws-msk-iam", Username: "u"} },
		"sasl.region: region and profile belong to aws-msk-iam": func(k *Kafka) {
			k.SASL = &conn.KafkaSASL{Mechanism: "scram-sha-256", Username: "u", Password: conn.Secret{Env: "P"}, Region: "r"}
		},
	} {
		k := NewKafka()
		k.Brokers, k.Topic = []string{"a:1"}, "t"
		if err := k.Validate(); err != nil {
			t.Fatal(err)
		}
		breakIt(k)
		if err := k.Validate(); err == nil || err.Error() != want {
			t.Errorf("%v\nwant %s", err, want)
		}
	}
}

func TestKafkaCheckNamesPartitions(t *testing.T) {
	f := fakeKafka(t, 1, 2)
	s := newKafkaSink(t, f.ListenAddrs(), func(k *Kafka) { k.Partitions = []int32{1, 2} })
	err := s.(Checker).Check(t.Context())
	if want := "topic t: partition 2 does not exist: there are 2"; err == nil || err.Error() != want || conn.ClassOf(err) != conn.Missing {
		t.Errorf("check says %v, want %s", err, want)
	}
}

// 1,000 partitions take one connection per broker and few goroutines.
func TestKafkaManyPartitions(t *testing.T) {
	const partitions = 1000
	f := fakeKafka(t, 3, partitions)
	r := runKafka(t, newKafkaSink(t, f.ListenAddrs())).waitReady(t)
	if n := f.Connections(); n > 4 {
		t.Errorf("%d connections to 3 brokers, want 3 and one that asks for the layout", n)
	}
	c := producer(t, f.ListenAddrs())
	var rs []*kgo.Record
	for p := range int32(partitions) {
		rs = append(rs, &kgo.Record{Partition: p, Value: []byte(tokenOf(uint64(p + 1)))})
	}
	if err := c.ProduceSync(t.Context(), rs...).FirstErr(); err != nil {
		t.Fatal(err)
	}
	r.exactly(t, partitions, 0)
	r.stop(t)
}

// The connection that asks for the layout may go without the others noticing.
func TestKafkaControlConnectionLost(t *testing.T) {
	f := fakeKafka(t, 2, 2)
	r := runKafka(t, newKafkaSink(t, f.ListenAddrs())).waitReady(t)
	lost := make(chan struct{})
	f.ControlKey(int16(kmsg.Metadata), func(kmsg.Request) (kmsg.Response, error, bool) {
		close(lost)
		return nil, errors.New("connection lost"), true
	})
	<-lost
	put(t, producer(t, f.ListenAddrs()), 1, 1)
	r.exactly(t, 1, 0)
	time.Sleep(300 * time.Millisecond)
	r.stop(t)
}
