package sinks

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/lag-monitor/lag-monitor/internal/conn"
	"github.com/lag-monitor/lag-monitor/internal/servers"
)

// What a fake cluster may see differently from Kafka itself.
func TestKafkaReal(t *testing.T) {
	servers.KafkaEach(t, servers.KafkaOptions{}, func(t *testing.T, k *servers.KafkaServer) {
		t.Parallel() // most of it is waiting for a broker that is away
		brokers := []string{k.Addr}
		t.Run("codecs", func(t *testing.T) {
			k.CreateTopic("t", 2)
			defer k.DeleteTopic("t")
			r := runKafka(t, newKafkaSink(t, brokers)).waitReady(t)
			for i, codec := range []kgo.CompressionCodec{kgo.NoCompression(), kgo.GzipCompression(), kgo.SnappyCompression(), kgo.Lz4Compression(), kgo.ZstdCompression()} {
				c := producer(t, brokers, kgo.ProducerBatchCompression(codec))
				put(t, c, 0, append(repeat(1000, "an ordinary message"), i+1)...)
				put(t, c, 1, append(repeat(500, "an ordinary message"), i+1)...)
			}
			r.exactly(t, 10, 7500)
			r.stop(t)
		})
		t.Run("transactions", func(t *testing.T) {
			k.CreateTopic("t", 1)
			defer k.DeleteTopic("t")
			a := runKafka(t, newKafkaSink(t, brokers, func(k *Kafka) { k.Isolation = "read_committed" })).waitReady(t)
			b := runKafka(t, newKafkaSink(t, brokers)).waitReady(t)
			plain, txn := producer(t, brokers), producer(t, brokers, kgo.TransactionalID("x"))
			for seq, end := range map[int]kgo.TransactionEndTry{10: kgo.TryAbort, 20: kgo.TryCommit, 30: kgo.TryAbort} {
				if err := txn.BeginTransaction(); err != nil {
					t.Fatal(err)
				}
				put(t, txn, 0, "in a transaction", seq)
				put(t, plain, 0, "in between", seq+1)
				put(t, txn, 0, seq+2)
				if err := txn.EndTransaction(t.Context(), end); err != nil {
					t.Fatal(err)
				}
				put(t, plain, 0, seq+3)
			}
			a.exactly(t, 8, 4) // it has come past the aborted ones, to the end
			b.exactly(t, 12, 6)
			for _, s := range []uint64{10, 12, 30, 32} {
				if slices.Contains(a.arrived(), s) {
					t.Errorf("heartbeat %d of an aborted transaction was delivered to read_committed", s)
				}
			}
			if gaps := a.allGaps(); len(gaps) > 0 {
				t.Errorf("gaps: %v", gaps)
			}
			heldBack(t, brokers, plain, txn, a, b, 100)
			a.exactly(t, 10, 4)
			b.exactly(t, 14, 6)
			a.stop(t)
			b.stop(t)
		})
		t.Run("partitions and re-creation", func(t *testing.T) {
			k.CreateTopic("t", 1)
			s := newKafkaSink(t, brokers)
			r := runKafka(t, s).waitReady(t)
			k.AddPartitions("t", 3)
			c := producer(t, brokers)
			for p := range int32(3) {
				put(t, c, p, int(p)+1, "other")
			}
			waitUntil(t, "all partitions", func() bool { return len(r.arrived()) == 3 })
			r.exactly(t, 3, 3)

			k.DeleteTopic("t")
			select {
			case err := <-r.done:
				if conn.ClassOf(err) != conn.Missing {
					t.Errorf("Run ended with %v of class %s, want missing", err, conn.ClassOf(err))
				}
			case <-time.After(time.Minute):
				t.Error("a deleted topic is not noticed")
			}
			k.CreateTopic("t", 1)
			put(t, producer(t, brokers), 0, append(repeat(20, "other"), 9)...)
			r = runKafka(t, s).waitReady(t)
			r.exactly(t, 1, 20)
			if !slices.Contains(r.allGaps(), "recreated") {
				t.Errorf("gaps are %v, want recreated", r.allGaps())
			}
			r.stop(t)
			k.DeleteTopic("t")
		})
		t.Run("broker away for 30 s", func(t *testing.T) {
			k.CreateTopic("t", 3)
			s := newKafkaSink(t, brokers)
			r := &kafkaRunner{sink: s}
			r.feed = NewFeed(r, nil)
			ended := make(chan struct{})
			ctx, cancel := context.WithCancel(t.Context())
			go func() {
				defer close(ended)
				Listen(ctx, s, r.feed, slog.New(slog.DiscardHandler), rand.New(rand.NewPCG(1, 1)))
			}()
			defer func() { cancel(); <-ended }()
			waitUntil(t, "ready", func() bool { return r.feed.Stats().Ready })
			c := producer(t, brokers)
			for p := range int32(3) {
				put(t, c, p, int(p)+1, "other")
			}
			r.exactly(t, 3, 3)
			k.Stop()
			time.Sleep(30 * time.Second)
			k.Start()
			for p := range int32(3) {
				put(t, c, p, int(p)+4, "other")
			}
			waitUntil(t, "what came after the pause", func() bool { return len(r.arrived()) == 6 })
			r.exactly(t, 6, 6)
			if len(r.allGaps()) > 0 {
				t.Errorf("gaps: %v", r.allGaps())
			}
		})
	})
}

// Where younger messages have taken the place of older ones nothing was lost, but a heartbeat may be missing that nobody
// can be accused of. Who has listened all along has seen everything.
func TestKafkaCompacted(t *testing.T) {
	servers.KafkaEach(t, servers.KafkaOptions{Config: map[string]string{"log.cleaner.backoff.ms": "50"}}, func(t *testing.T, k *servers.KafkaServer) {
		brokers := []string{k.Addr}
		k.CreateTopic("t", 1, "cleanup.policy", "compact", "segment.ms", "50", "min.cleanable.dirty.ratio", "0.001", "delete.retention.ms", "0")
		listens := runKafka(t, newKafkaSink(t, brokers)).waitReady(t)
		c := producer(t, brokers)
		beat := func(seq int) *kgo.Record {
			return &kgo.Record{Key: []byte("lag-monitor"), Value: []byte(tokenOf(uint64(seq)))}
		}
		heartbeats, others := 0, 0
		round := func() {
			heartbeats++
			put(t, c, 0, &kgo.Record{Key: []byte("order")}, beat(heartbeats), &kgo.Record{Key: []byte("order"), Value: []byte("x")})
			others += 2
			waitUntil(t, "its arrival", func() bool { return slices.Contains(listens.arrived(), uint64(heartbeats)) }) // before it can be compacted
		}
		// The position of a sink that went away after the first message.
		s := newKafkaSink(t, brokers)
		s.(Resumer).Resume(map[string]string{"0": "1"})
		for deadline := time.Now().Add(60 * time.Second); ; {
			round()
			if kafkaRecords(t, brokers) < 3*heartbeats-6 {
				break
			}
			if time.Now().After(deadline) {
				t.Fatal("the broker does not compact the topic")
			}
		}
		listens.exactly(t, heartbeats, others)

		away := runKafka(t, s).waitReady(t)
		now := time.Now()
		waitUntil(t, "caught up", func() bool {
			away.mu.Lock()
			defer away.mu.Unlock()
			return away.caughtUp.After(now)
		})
		if got := away.arrived(); len(got) == 0 || len(got) >= heartbeats || got[len(got)-1] != uint64(heartbeats) {
			t.Errorf("%d of %d heartbeats, the last is %v; want fewer, and the last one", len(got), heartbeats, got[max(0, len(got)-1):])
		}
		if gaps := away.allGaps(); len(gaps) == 0 || slices.ContainsFunc(gaps, func(g string) bool { return g != "compacted" }) {
			t.Errorf("gaps of a sink that was away: %v, want compacted", gaps)
		}
		away.stop(t)
		// A sink that starts only now has nothing to fear from what was compacted before it came.
		late := newKafkaSink(t, brokers)
		late.(LookBacker).LookBack(time.Now().Add(-time.Hour))
		r := runKafka(t, late).waitReady(t)
		round()
		waitUntil(t, "the last heartbeat", func() bool { return slices.Contains(r.arrived(), uint64(heartbeats)) })
		if gaps := r.allGaps(); len(gaps) > 0 {
			t.Errorf("gaps of a sink that looks back: %v", gaps)
		}
		r.stop(t)
		if gaps := listens.allGaps(); len(gaps) > 0 {
			t.Errorf("gaps of a sink that has seen everything: %v", gaps)
		}
		listens.stop(t)
	})
}

// kafkaRecords counts what there is in partition 0 of topic t by another client.
func kafkaRecords(t *testing.T, brokers []string) (n int) {
	t.Helper()
	c, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{"t": {0: kgo.NewOffset().AtStart()}}))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for {
		f := c.PollFetches(ctx)
		if err := f.Err(); err != nil {
			t.Fatal(err)
		}
		done := false
		f.EachPartition(func(p kgo.FetchTopicPartition) {
			n += len(p.Records)
			done = len(p.Records) > 0 && p.Records[len(p.Records)-1].Offset == p.HighWatermark-1
		})
		if done {
			return n
		}
	}
}
