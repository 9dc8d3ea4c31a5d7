package probe

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/lag-monitor/lag-monitor/internal/conn"
	"github.com/lag-monitor/lag-monitor/internal/servers"
)

func fakeKafka(t *testing.T, brokers, partitions int) *servers.FakeKafka {
	t.Helper()
	f := servers.StartFakeKafka(t, brokers)
	if err := f.CreateTopic("t", int32(partitions), nil); err != nil {
		t.Fatal(err)
	}
	return f
}

func openKafka(t *testing.T, brokers []string, configure ...func(*Kafka)) *kafkaInjector {
	t.Helper()
	c := NewKafka()
	c.Brokers, c.Topic = brokers, "t"
	for _, f := range configure {
		f(c)
	}
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	in, err := c.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close() })
	return in.(*kafkaInjector)
}

func kafkaMessage(lane uint32, seq uint64) *Message {
	m := Sample()
	m.Lane, m.Seq, m.Sent = lane, seq, time.Now()
	m.Token = fmt.Sprintf("~lagmon1.sample.%d-%d", lane, seq)
	return m
}

// stored reads n records of the topic from its beginning with another client.
func stored(t *testing.T, f *servers.FakeKafka, n int) []*kgo.Record {
	t.Helper()
	c, err := kgo.NewClient(kgo.SeedBrokers(f.ListenAddrs()...), kgo.ConsumeTopics("t"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	var out []*kgo.Record
	for len(out) < n && ctx.Err() == nil {
		fs := c.PollFetches(ctx)
		if err := fs.Err(); err != nil {
			t.Fatal(err)
		}
		out = append(out, fs.Records()...)
	}
	if len(out) != n {
		t.Fatalf("%d records are stored, want %d", len(out), n)
	}
	return out
}

// A message is stored whole, in its partition, with its time, and other clients take its batch for a
// valid one.
func TestKafkaMessage(t *testing.T) {
	f := fakeKafka(t, 2, 3)
	in := openKafka(t, f.ListenAddrs(), func(k *Kafka) {
		k.Key = MustTemplate("k{{ .Seq }}")
		k.Headers = map[string]Template{"tenant": MustTemplate("a-{{ .Lane }}"), "b": MustTemplate("")}
	})
	lanes, err := in.Lanes(t.Context())
	if err != nil || !slices.Equal(lanes, []uint32{0, 1, 2}) {
		t.Fatal(lanes, err)
	}
	ms := []*Message{kafkaMessage(0, 1), kafkaMessage(1, 2), kafkaMessage(2, 3), kafkaMessage(7, 4)}
	errs := make([]error, len(ms))
	in.InjectBatch(t.Context(), ms, errs)
	if err := errors.Join(errs[:3]...); err != nil {
		t.Fatal(err)
	}
	if !IsRefused(errs[3]) {
		t.Errorf("a partition that does not exist: %v, want a refusal", errs[3])
	}
	for _, r := range stored(t, f, 3) {
		m := ms[r.Partition]
		headers := fmt.Sprint(r.Headers)
		want := fmt.Sprint([]kgo.RecordHeader{{Key: Header, Value: []byte(m.Token)}, {Key: TraceHeader, Value: []byte(m.TraceParent)},
			{Key: "b", Value: []byte{}}, {Key: "tenant", Value: fmt.Appendf(nil, "a-%d", m.Lane)}})
		if string(r.Key) != fmt.Sprintf("k%d", m.Seq) || string(r.Value) != `{"heartbeat":"`+m.Token+`"}` || headers != want ||
			r.Timestamp.UnixMilli() != m.Sent.UnixMilli() {
			t.Errorf("partition %d holds %s = %s, %s at %s", r.Partition, r.Key, r.Value, headers, r.Timestamp)
		}
	}
}

// Keys go where the producers of the topic would put them. The partitions were computed with
// franz-go's implementations of the same.
func TestKafkaByKey(t *testing.T) {
	f := fakeKafka(t, 1, 7)
	for name, partitioner := range map[string]kgo.Partitioner{"murmur2": kgo.StickyKeyPartitioner(nil)} {
		in := openKafka(t, f.ListenAddrs(), func(k *Kafka) {
			k.Key, k.Partition, k.Partitioner = MustTemplate("customer-{{ .Seq }}"), "by_key", name
		})
		if lanes, err := in.Lanes(t.Context()); err != nil || !slices.Equal(lanes, []uint32{0}) {
			t.Fatal(lanes, err)
		}
		for seq := range uint64(20) {
			if err := in.Inject(t.Context(), kafkaMessage(0, seq)); err != nil {
				t.Fatal(err)
			}
		}
		for _, r := range stored(t, f, 20) {
			if want := partitioner.ForTopic("t").Partition(r, 7); int(r.Partition) != want {
				t.Errorf("%s: key %s is in partition %d, want %d", name, r.Key, r.Partition, want)
			}
		}
	}
}

// Heartbeats that come while a request is on its way share the next one.
func TestKafkaConcurrent(t *testing.T) {
	f := fakeKafka(t, 1, 2)
	in := openKafka(t, f.ListenAddrs())
	requests := 0
	f.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		f.KeepControl()
		requests++ // control functions run one after the other
		f.SleepControl(func() { time.Sleep(5 * time.Millisecond) })
		return nil, nil, false
	})
	const n = 100
	var wg sync.WaitGroup
	for i := range uint64(n) {
		wg.Go(func() {
			if err := in.Inject(t.Context(), kafkaMessage(uint32(i%2), i)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	got := stored(t, f, n)
	seen := make(map[string]bool)
	for _, r := range got {
		seen[string(r.Value)] = true
	}
	if len(seen) != n {
		t.Errorf("%d of %d heartbeats are stored", len(seen), n)
	}
	if requests > n/4 {
		t.Errorf("%d heartbeats took %d requests", n, requests)
	}
}

// A mistake in the driver ends neither the process nor the injections after it, and leaves open what became of a heartbeat.
func TestKafkaPanics(t *testing.T) {
	f := fakeKafka(t, 2, 2)
	for p := range int32(2) {
		if err := f.MoveTopicPartition("t", p, p); err != nil { // each to a broker of its own
			t.Fatal(err)
		}
	}
	in := openKafka(t, f.ListenAddrs())
	l, err := in.layout(t.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	for id, address := range l.Brokers {
		in.senders[id] = &kafkaSender{in: &kafkaInjector{cfg: in.cfg}, address: address} // has no context
	}
	for range 2 {
		errs := make([]error, 2)
		in.InjectBatch(t.Context(), []*Message{kafkaMessage(0, 1), kafkaMessage(1, 1)}, errs)
		for _, err := range errs {
			if p := new(conn.PanicError); !errors.As(err, &p) || IsRefused(err) {
				t.Errorf("%v, refused %t; want a panic that leaves it open", err, IsRefused(err))
			}
		}
	}
}

// The outcome is refused exactly when nothing was written.
func TestKafkaOutcomes(t *testing.T) {
	f := fakeKafka(t, 1, 1)
	in := openKafka(t, f.ListenAddrs(), func(k *Kafka) { k.Timeout = conn.Duration(500 * time.Millisecond) })
	if err := in.Inject(t.Context(), kafkaMessage(0, 1)); err != nil {
		t.Fatal(err)
	}
	accepted := 1
	for _, c := range []struct {
		err     *kerr.Error
		refused bool
		class   conn.Class
		written bool
	}{
		{kerr.ThrottlingQuotaExceeded, true, conn.Throttle, false},
		{kerr.TopicAuthorizationFailed, true, conn.Auth, false},
		{kerr.NotEnoughReplicas, true, conn.Other, false},
		{kerr.MessageTooLarge, true, conn.Other, false},
		{kerr.NotEnoughReplicasAfterAppend, false, conn.Other, true},
		{kerr.RequestTimedOut, false, conn.Network, true},
		{kerr.UnknownServerError, false, conn.Other, false},
	} {
		f.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: "t", Err: c.err})
		err := in.Inject(t.Context(), kafkaMessage(0, 2))
		if err == nil || IsRefused(err) != c.refused || conn.ClassOf(err) != c.class {
			t.Errorf("%s: %v: refused %t, class %s", c.err.Message, err, IsRefused(err), conn.ClassOf(err))
		}
		if c.written {
			accepted++
		}
	}
	// An error that comes before and after the append: the offset tells.
	for _, offset := range []int64{-1, 42} {
		f.ControlKey(int16(kmsg.Produce), func(req kmsg.Request) (kmsg.Response, error, bool) {
			resp := req.ResponseKind().(*kmsg.ProduceResponse)
			p := kmsg.NewProduceResponseTopicPartition()
			p.ErrorCode, p.BaseOffset = kerr.NotLeaderForPartition.Code, offset
			resp.Topics = []kmsg.ProduceResponseTopic{{Topic: "t", Partitions: []kmsg.ProduceResponseTopicPartition{p}}}
			return resp, nil, true
		})
		if err := in.Inject(t.Context(), kafkaMessage(0, 2)); err == nil || IsRefused(err) != (offset < 0) {
			t.Errorf("not the leader, offset %d: %v, refused %t", offset, err, IsRefused(err))
		}
	}
	// A connection that is lost, or an answer that does not come, after the request has left.
	f.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) { return nil, errors.New("gone"), true })
	if err := in.Inject(t.Context(), kafkaMessage(0, 3)); err == nil || IsRefused(err) || conn.ClassOf(err) != conn.Network {
		t.Errorf("connection lost: %v, want an unknown outcome", err)
	}
	f.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) { return nil, nil, true })
	if err := in.Inject(t.Context(), kafkaMessage(0, 4)); err == nil || IsRefused(err) || conn.ClassOf(err) != conn.Network {
		t.Errorf("no answer: %v, want an unknown outcome", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := in.Inject(ctx, kafkaMessage(0, 5)); !IsRefused(err) {
		t.Errorf("context that had ended: %v, want a refusal", err)
	}
	// A broker that has restarted while nothing was sent has closed the connection: that is seen before
	// anything is sent, and costs nothing.
	if err := in.Inject(t.Context(), kafkaMessage(0, 6)); err != nil {
		t.Fatal(err)
	}
	f.Stop()
	err := in.Inject(t.Context(), kafkaMessage(0, 7))
	for tries := 0; err != nil && !IsRefused(err) && tries < 3; tries++ { // the old connection was not closed yet
		err = in.Inject(t.Context(), kafkaMessage(0, 7))
	}
	if !IsRefused(err) || conn.ClassOf(err) != conn.Network {
		t.Errorf("broker is down: %v, want a refusal", err)
	}
	f.Start()
	if err := in.Inject(t.Context(), kafkaMessage(0, 8)); err != nil {
		t.Errorf("broker is back: %v", err)
	}
	stored(t, f, accepted+2)
}

func TestKafkaFollowsLeaders(t *testing.T) {
	f := fakeKafka(t, 3, 1)
	in := openKafka(t, f.ListenAddrs())
	for i := range 6 {
		if err := f.MoveTopicPartition("t", 0, int32(i%3)); err != nil {
			t.Fatal(err)
		}
		_ = in.Inject(t.Context(), kafkaMessage(0, 1)) // may find out that the leader is another one
		if err := in.Inject(t.Context(), kafkaMessage(0, 2)); err != nil {
			t.Errorf("after the move: %v", err)
		}
	}
}

func TestKafkaClose(t *testing.T) {
	f := fakeKafka(t, 1, 1)
	in := openKafka(t, f.ListenAddrs())
	if err := in.Inject(t.Context(), kafkaMessage(0, 1)); err != nil {
		t.Fatal(err)
	}
	defer f.Hang()()
	done := make(chan error)
	go func() { done <- in.Inject(t.Context(), kafkaMessage(0, 2)) }()
	time.Sleep(50 * time.Millisecond)
	in.Close()
	select {
	case err := <-done:
		if err == nil || IsRefused(err) {
			t.Errorf("closed in the middle: %v, want an unknown outcome", err)
		}
	case <-time.After(time.Second):
		t.Error("Close leaves a request waiting")
	}
}

func TestKafkaBatchLayout(t *testing.T) {
	sent := time.UnixMilli(1700000000123)
	b := appendKafkaBatch(nil, []*kafkaEntry{{record: []byte("ab"), sent: sent}, {record: []byte("cde"), sent: sent.Add(-5 * time.Millisecond)}})
	be := binary.BigEndian
	if int(be.Uint32(b)) != len(b)-4 || int(be.Uint32(b[12:])) != len(b)-16 {
		t.Errorf("lengths are %d and %d of %d", be.Uint32(b), be.Uint32(b[12:]), len(b))
	}
	b = b[4:]
	if got := crc32.Checksum(b[21:], castagnoli); got != be.Uint32(b[17:]) {
		t.Error("wrong checksum")
	}
	if be.Uint64(b[27:]) != 1700000000123 || be.Uint64(b[35:]) != 1700000000123 || be.Uint32(b[57:]) != 2 || be.Uint32(b[23:]) != 1 {
		t.Errorf("header is % x", b[:61])
	}
	if want := "\x0a\x00\x00\x00ab\x0c\x00\x09\x02cde"; string(b[61:]) != want {
		t.Errorf("records are %q, want %q", b[61:], want)
	}
}

func TestKafkaValidate(t *testing.T) {
	for want, breakIt := range map[string]func(*Kafka){
		"topic: the topic to inject into is missing":                                    func(k *Kafka) { k.Topic = "" },
		`partition: "first" is not a partition: use all, by_key or a number`:            func(k *Kafka) { k.Partition = "first" },
		`partition: "-1" is not a partition: use all, by_key or a number`:               func(k *Kafka) { k.Partition = "-1" },
		"key: partition: by_key needs a key":                                            func(k *Kafka) { k.Partition = "by_key" },
		`partitioner: "md5" is not a partitioner: use one of [crc32 fnv1a murmur2]`:     func(k *Kafka) { k.Partitioner = "md5" },
		"headers.traceparent: this header is set by lag-monitor itself, or has no name": func(k *Kafka) { k.Headers = map[string]Template{"traceparent": {}} },
	} {
		k := NewKafka()
		k.Brokers, k.Topic = []string{"a:1"}, "t"
		breakIt(k)
		if err := k.Validate(); err == nil || err.Error() != want {
			t.Errorf("%v\nwant %s", err, want)
		}
	}
}
