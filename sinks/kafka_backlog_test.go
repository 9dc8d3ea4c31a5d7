package sinks

import (
	"context"
	"fmt"
	"maps"
	"math"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/lag-monitor/lag-monitor/internal/conn"
	"github.com/lag-monitor/lag-monitor/internal/servers"
)

// kafkaCluster is where the backlog is tested: a fake one, and real ones.
type kafkaCluster struct {
	brokers []string
	create  func(topic string, partitions int, config ...string)
}

// eachKafka runs f on a fake cluster of two brokers, and on each real version where there is one.
func eachKafka(t *testing.T, f func(t *testing.T, k kafkaCluster)) {
	t.Run("fake", func(t *testing.T) {
		c := servers.StartFakeKafka(t, 2)
		f(t, kafkaCluster{c.ListenAddrs(), func(topic string, partitions int, config ...string) {
			settings := make(map[string]string)
			for i := 0; i < len(config); i += 2 {
				settings[config[i]] = config[i+1]
			}
			if err := c.CreateTopic(topic, int32(partitions), settings); err != nil {
				t.Fatal(err)
			}
		}})
	})
	t.Run("real", func(t *testing.T) {
		servers.KafkaEach(t, servers.KafkaOptions{}, func(t *testing.T, k *servers.KafkaServer) {
			f(t, kafkaCluster{[]string{k.Addr}, k.CreateTopic})
		})
	})
}

// backlogOf asks until the answer has no error: a coordinator may not be there yet.
func backlogOf(t *testing.T, s Sink) map[string]Backlog {
	t.Helper()
	var found []Backlog
	retry(t, "backlog", func(ctx context.Context) (err error) {
		found, err = s.(Backlogger).Backlog(ctx)
		return err
	})
	byName := make(map[string]Backlog)
	for _, b := range found {
		key := strings.TrimRight(fmt.Sprint(b.Queue, " ", b.Group, " ", b.Partition), " ")
		if _, twice := byName[key]; twice {
			t.Errorf("%s is told twice", key)
		}
		byName[key] = b
	}
	return byName
}

// retry does something until there is no error.
func retry(t *testing.T, what string, f func(ctx context.Context) error) {
	t.Helper()
	var err error
	defer func() {
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}()
	waitUntil(t, what, func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		err = f(ctx)
		return err == nil
	})
}

// wantBacklog waits until the backlog is this: messages, seconds (exact to some minutes) and consumers by "topic
// group partition".
func wantBacklog(t *testing.T, s Sink, want map[string][3]float64) {
	t.Helper()
	var got map[string]Backlog
	same := func() bool {
		for k, w := range want {
			g, ok := got[k]
			if !ok || g.Messages != w[0] || g.Consumers != w[2] || (g.Seconds < 0) != (w[1] < 0) || (g.Seconds == 0) != (w[1] == 0) || math.Abs(g.Seconds-w[1]) > 300 {
				return false
			}
		}
		return len(got) == len(want)
	}
	defer func() {
		if !same() {
			for _, k := range slices.Sorted(maps.Keys(got)) {
				t.Logf("%s: %+v", k, got[k])
			}
		}
	}()
	waitUntil(t, fmt.Sprintf("backlog %v", want), func() bool {
		got = backlogOf(t, s)
		return same()
	})
}

// commit sets the offsets of a group that has no members.
func commit(t *testing.T, brokers []string, group, topic string, offsets map[int]int64) {
	t.Helper()
	tr := &kafka.Transport{}
	defer tr.CloseIdleConnections()
	c := &kafka.Client{Addr: kafka.TCP(brokers...), Transport: tr}
	var all []kafka.OffsetCommit
	for p, o := range offsets {
		all = append(all, kafka.OffsetCommit{Partition: p, Offset: o})
	}
	retry(t, "commit", func(ctx context.Context) error {
		resp, err := c.OffsetCommit(ctx, &kafka.OffsetCommitRequest{GroupID: group, GenerationID: -1, Topics: map[string][]kafka.OffsetCommit{topic: all}})
		if err != nil {
			return err
		}
		for _, p := range resp.Topics[topic] {
			if p.Error != nil {
				return p.Error
			}
		}
		return nil
	})
}

// aged are messages that were sent so many minutes ago.
func aged(minutes ...int) (rs []any) {
	for _, m := range minutes {
		rs = append(rs, &kgo.Record{Value: []byte(strings.Repeat("x", 100)), Timestamp: time.Now().Add(-time.Duration(m) * time.Minute)})
	}
	return rs
}

// A group of real consumers, from its first message to after its end; nobody notices who asks.
func TestKafkaGroupBacklog(t *testing.T) {
	eachKafka(t, func(t *testing.T, k kafkaCluster) {
		k.create("t", 1)
		k.create("in", 3)
		in := func(opts ...kgo.Opt) *kgo.Client {
			return producer(t, k.brokers, append(opts, kgo.DefaultProduceTopic("in"))...)
		}
		put(t, in(kgo.ProducerBatchCompression(kgo.ZstdCompression())), 0, aged(100, 90, 80, 70, 60, 50)...)
		put(t, in(), 1, aged(100, 90)...)
		s := newKafkaSink(t, k.brokers, func(k *Kafka) { k.Groups = []string{"billing", "nobody"} })
		wantBacklog(t, s, map[string][3]float64{"t billing": {-1, -1, 0}, "t nobody": {-1, -1, 0}})

		r := kafka.NewReader(kafka.ReaderConfig{Brokers: k.brokers, GroupID: "billing", Topic: "in", StartOffset: kafka.FirstOffset, MaxWait: time.Second})
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
		defer cancel()
		var got []kafka.Message
		for len(got) < 8 {
			m, err := r.FetchMessage(ctx)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, m)
		}
		wantBacklog(t, s, map[string][3]float64{"t nobody": {-1, -1, 0}, "in billing": {-1, -1, 1},
			"in billing 0": {-1, -1, 1}, "in billing 1": {-1, -1, 1}, "in billing 2": {0, 0, 1}})
		for _, m := range got {
			if m.Partition == 1 || m.Offset == 3 {
				if err := r.CommitMessages(ctx, m); err != nil {
					t.Fatal(err)
				}
			}
		}
		wantBacklog(t, s, map[string][3]float64{"t nobody": {-1, -1, 0}, "in billing": {-1, -1, 1},
			"in billing 0": {2, 60 * 60, 1}, "in billing 1": {0, 0, 1}, "in billing 2": {0, 0, 1}})
		if n := r.Stats().Rebalances; n != 1 {
			t.Errorf("the group has shared out its partitions %d times, want 1", n)
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		put(t, in(), 1, aged(30)...)
		put(t, in(), 2, aged(20)...)
		wantBacklog(t, s, map[string][3]float64{"t nobody": {-1, -1, 0}, "in billing": {-1, -1, 0},
			"in billing 0": {2, 60 * 60, 0}, "in billing 1": {1, 30 * 60, 0}, "in billing 2": {-1, -1, 0}})
	})
}

// A group whose partitions the brokers share out (KIP-848).
func TestKafkaNewGroupBacklog(t *testing.T) {
	k := servers.Kafka(t, servers.KafkaOptions{}) // Kafka 3.9 has such groups as a preview only
	brokers := []string{k.Addr}
	k.CreateTopic("t", 2)
	put(t, producer(t, brokers), 0, aged(50, 40)...)
	c, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.ConsumerGroup("billing"), kgo.ConsumeTopics("t"), kgo.ServerSideBalancer(), kgo.DisableAutoCommit())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for n := 0; n < 2; {
		n += len(c.PollFetches(ctx).Records())
		if ctx.Err() != nil {
			t.Fatal("the group reads nothing")
		}
	}
	if err := c.CommitRecords(ctx, &kgo.Record{Topic: "t", Partition: 0, Offset: 0}); err != nil {
		t.Fatal(err)
	}
	s := newKafkaSink(t, brokers, func(k *Kafka) { k.Groups = []string{"billing"} })
	wantBacklog(t, s, map[string][3]float64{"t billing": {-1, -1, 1}, "t billing 0": {1, 40 * 60, 1}, "t billing 1": {0, 0, 1}})
}

// Where an offset stands before what is no message for the group, or before nothing.
func TestKafkaBacklogOffsets(t *testing.T) {
	eachKafka(t, func(t *testing.T, k kafkaCluster) {
		k.create("t", 4)
		plain, txn := producer(t, k.brokers), producer(t, k.brokers, kgo.TransactionalID("x"))
		put(t, plain, 0, aged(100)...)
		// Two aborted transactions, each of two messages and a marker.
		for range 2 {
			if err := txn.BeginTransaction(); err != nil {
				t.Fatal(err)
			}
			put(t, txn, 0, aged(90, 80)...)
			if err := txn.EndTransaction(t.Context(), kgo.TryAbort); err != nil {
				t.Fatal(err)
			}
		}
		end := int64(1 + 2*3)
		put(t, plain, 1, aged(70, 60, 50, 40)...)
		put(t, plain, 2, aged(30)...)
		if err := deleteRecords(t, plain, 1, 3); err != nil {
			t.Fatal(err)
		}
		// A partition with a batch that no small answer holds, behind another one.
		big := aged(120, 110)
		for _, r := range big {
			r.(*kgo.Record).Value = []byte(strings.Repeat("x", 300_000))
		}
		put(t, plain, 3, big...)
		all := func(from int64) map[int]int64 { return map[int]int64{0: from, 1: 1, 2: 5, 3: 1} }
		commit(t, k.brokers, "g", "t", all(1))
		commit(t, k.brokers, "h", "t", all(end))
		for isolation, zero := range map[string][3]float64{"read_committed": {0, 0, 0}, "read_uncommitted": {6, 90 * 60, 0}} {
			s := newKafkaSink(t, k.brokers, func(k *Kafka) { k.Groups, k.Isolation = []string{"g", "h"}, isolation })
			want := map[string][3]float64{"t g 0": zero, "t h 0": {0, 0, 0}}
			for _, g := range []string{"t g", "t h"} {
				want[g] = [3]float64{-1, -1, 0}
				want[g+" 1"] = [3]float64{1, 40 * 60, 0} // what has been deleted does not wait any more
				want[g+" 2"] = [3]float64{-1, -1, 0}     // an offset behind the end: of another log
				want[g+" 3"] = [3]float64{1, 110 * 60, 0}
			}
			wantBacklog(t, s, want)
		}
		// What waits in an open transaction waits for nobody who waits for its end; who does not wait may be past it.
		if err := txn.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		put(t, txn, 0, aged(10)...)
		commit(t, k.brokers, "h", "t", map[int]int64{0: end + 1})
		s := newKafkaSink(t, k.brokers, func(k *Kafka) { k.Groups, k.Isolation = []string{"g", "h"}, "read_committed" })
		if b := backlogOf(t, s); b["t g 0"].Messages != 0 || b["t h 0"].Messages != 0 || b["t h 0"].Seconds != 0 {
			t.Errorf("with an open transaction: %+v", b)
		}
		if err := txn.EndTransaction(t.Context(), kgo.TryCommit); err != nil {
			t.Fatal(err)
		}
		waitUntil(t, "the end of the transaction", func() bool { return backlogOf(t, s)["t g 0"].Messages == 2 }) // with the marker
	})
}

func deleteRecords(t *testing.T, c *kgo.Client, partition int32, before int64) error {
	req := kmsg.NewPtrDeleteRecordsRequest()
	topic := kmsg.NewDeleteRecordsRequestTopic()
	topic.Topic = "t"
	p := kmsg.NewDeleteRecordsRequestTopicPartition()
	p.Partition, p.Offset = partition, before
	topic.Partitions = append(topic.Partitions, p)
	req.Topics, req.TimeoutMillis = append(req.Topics, topic), 10000
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	resp, err := req.RequestWith(ctx, c)
	if err != nil {
		return err
	}
	return kerr.ErrorForCode(resp.Topics[0].Partitions[0].ErrorCode)
}

// The broker's time of arrival is what counts where the topic has it, whatever the producers say.
func TestKafkaBacklogLogAppendTime(t *testing.T) {
	servers.KafkaEach(t, servers.KafkaOptions{}, func(t *testing.T, k *servers.KafkaServer) {
		k.CreateTopic("t", 1, "message.timestamp.type", "LogAppendTime")
		put(t, producer(t, []string{k.Addr}, kgo.ProducerBatchCompression(kgo.GzipCompression())), 0, aged(100, 90, 80)...)
		commit(t, []string{k.Addr}, "g", "t", map[int]int64{0: 1})
		s := newKafkaSink(t, []string{k.Addr}, func(k *Kafka) { k.Groups = []string{"g"} })
		if b := backlogOf(t, s)["t g 0"]; b.Messages != 2 || b.Seconds < 0 || b.Seconds > 600 {
			t.Errorf("%+v, want 2 messages of a moment ago", b)
		}
	})
}

// What one broker or one group cannot tell does not hide what the others tell.
func TestKafkaBacklogErrors(t *testing.T) {
	f := fakeKafka(t, 2, 2)
	for p := range int32(2) {
		if err := f.MoveTopicPartition("t", p, p); err != nil {
			t.Fatal(err)
		}
	}
	c := producer(t, f.ListenAddrs())
	put(t, c, 0, aged(10, 10)...)
	put(t, c, 1, aged(10, 10, 10)...)
	commit(t, f.ListenAddrs(), "g", "t", map[int]int64{0: 0, 1: 0})
	s := newKafkaSink(t, f.ListenAddrs(), func(k *Kafka) { k.Groups = []string{"g"} })
	ask := func() (string, error) {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		found, err := s.(Backlogger).Backlog(ctx)
		var text []string
		for _, b := range found {
			if b.Partition != "" {
				text = append(text, fmt.Sprintf("%s: %v %t", b.Partition, b.Messages, b.Seconds > 0))
			}
		}
		return strings.Join(text, ", "), err
	}
	if got, err := ask(); got != "0: 2 true, 1: 3 true" || err != nil {
		t.Errorf("%s, %v", got, err)
	}
	for _, fault := range []struct {
		kfake.Fault
		want  string
		class conn.Class
	}{
		{kfake.Fault{Keys: []kmsg.Key{kmsg.Fetch}, Topic: "t", Err: kerr.TopicAuthorizationFailed}, "0: 2 false, 1: 3 true", conn.Auth},
		{kfake.Fault{Keys: []kmsg.Key{kmsg.ListOffsets}, Topic: "t", Err: kerr.NotLeaderForPartition}, "0: -1 false, 1: 3 true", ""},
		{kfake.Fault{Keys: []kmsg.Key{kmsg.ListOffsets}, Topic: "t", Err: kerr.TopicAuthorizationFailed}, "0: -1 false, 1: 3 true", conn.Auth},
		{kfake.Fault{Keys: []kmsg.Key{kmsg.FindCoordinator}, TopLevel: true, Err: kerr.CoordinatorNotAvailable}, "", conn.Other},
		{kfake.Fault{Keys: []kmsg.Key{kmsg.OffsetFetch}, TopLevel: true, Err: kerr.GroupAuthorizationFailed}, "", conn.Auth},
	} {
		if fault.Topic != "" {
			fault.Partitions = []int32{0}
		}
		fault.Count = -1
		h := f.Fault(fault.Fault)
		got, err := ask()
		if got != fault.want || (err == nil) != (fault.class == "") || err != nil && conn.ClassOf(err) != fault.class {
			t.Errorf("%v of %v: %s, %v of class %s; want %s, %s", fault.Err, fault.Keys, got, err, conn.ClassOf(err), fault.want, fault.class)
		}
		h.Remove()
	}
	release := f.Hang()
	defer release()
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if _, err := s.(Backlogger).Backlog(ctx); err == nil {
		t.Error("no error of a cluster that hangs")
	}
}

// A seed that says nothing, as a host that is off, leaves time to ask another one.
func TestKafkaBacklogSilentSeed(t *testing.T) {
	f := fakeKafka(t, 1, 1)
	s := newKafkaSink(t, append([]string{"127.0.0.1:1"}, f.ListenAddrs()...), func(k *Kafka) {
		k.Groups, k.Timeout = []string{"g"}, conn.Duration(time.Minute)
		k.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			if address == "127.0.0.1:1" {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return new(net.Dialer).DialContext(ctx, network, address)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	if found, err := s.(Backlogger).Backlog(ctx); len(found) != 1 || err != nil {
		t.Errorf("%v, %v, want one line", found, err)
	}
}

// The first message that waits is found in any batch.
func TestKafkaFirst(t *testing.T) {
	timed := func(b []byte, started, newest int64) []byte {
		for i, v := range []int64{started, newest} {
			for j := range 8 {
				b[27+8*i+j] = byte(v >> (56 - 8*j))
			}
		}
		return b
	}
	whole := timed(kafkaBatch(10, 0, "a", "b", "c"), 1000, 1002)
	for name, c := range map[string]struct {
		pos              int64
		batches          [][]byte
		offset, at, next int64
	}{
		"first":             {10, [][]byte{whole}, 10, 1000, 10},
		"inside":            {12, [][]byte{whole}, 12, 1000, 12},
		"compressed":        {11, [][]byte{timed(kafkaBatch(10, 4, "a", "b", "c"), 1000, 1002)}, 11, 1000, 11},
		"log append":        {11, [][]byte{timed(kafkaBatch(10, attrLogAppend, "a", "b"), 1000, 1002)}, 11, 1002, 11},
		"no time":           {11, [][]byte{timed(kafkaBatch(10, 0, "a", "b"), -1, -1)}, 11, 0, 11},
		"behind a hole":     {5, [][]byte{whole}, 10, 1000, 5},
		"control":           {9, [][]byte{timed(kafkaBatch(9, attrControl|attrTransactional, "x"), 1, 1), whole}, 10, 1000, 10},
		"control only":      {9, [][]byte{timed(kafkaBatch(9, attrControl|attrTransactional, "x"), 1, 1)}, -1, 0, 10},
		"empty batch":       {9, [][]byte{func() []byte { b := kafkaBatch(9, 0, "x"); clear(b[57:61]); return b[:batchHeader] }()}, -1, 0, 9},
		"cut short":         {10, [][]byte{whole[:70]}, -1, 0, 10},
		"cut short, second": {9, [][]byte{timed(kafkaBatch(9, attrControl, "x"), 1, 1), whole[:70]}, -1, 0, 10},
		"of old":            {10, [][]byte{func() []byte { b := slices.Clone(whole); b[batchMagicAt] = 1; return b }()}, 10, 0, 10},
		"damaged":           {11, [][]byte{func() []byte { b := slices.Clone(whole); b[batchHeader] = 0xff; return b }()}, 11, 0, 11},
		"nothing":           {3, nil, -1, 0, 3},
		"before":            {13, [][]byte{whole}, -1, 0, 13},
	} {
		offset, at, next := new(kafkaScan).first(c.pos, slices.Concat(c.batches...), false)
		if offset != c.offset || at != c.at || next != c.next {
			t.Errorf("%s: offset %d, time %d, next %d; want %d, %d, %d", name, offset, at, next, c.offset, c.at, c.next)
		}
	}
}

func FuzzKafkaFirst(f *testing.F) {
	f.Add(kafkaBatch(10, 0, "a", "b"), int64(11), false)
	f.Add(slices.Concat(kafkaBatch(0, attrControl|attrTransactional, "a"), kafkaBatch(1, attrLogAppend, "a")), int64(0), true)
	f.Fuzz(func(t *testing.T, b []byte, pos int64, committed bool) {
		if pos < 0 {
			return
		}
		offset, _, next := new(kafkaScan).first(pos, b, committed)
		if offset >= 0 && offset < pos || next < pos {
			t.Errorf("from %d: the first is at %d, the batches end at %d", pos, offset, next)
		}
	})
}
