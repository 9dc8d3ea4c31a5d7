package faults_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/lag-monitor/lag-monitor/internal/servers"
)

// partitions is how many a topic has at first.
const partitions = 2

// openKafka starts a broker for the rows that leave it alone, and one for those that break it, which they do
// one after the other.
func openKafka(t *testing.T, rows []*row) func(*testing.T, *row) *pipeline {
	ways := map[*row]int{}
	breaking := false
	for _, r := range rows {
		if r.breaks {
			breaking = true
		} else if r.variant == "" {
			ways[r] = 2 * len(ways)
		}
	}
	var shared, broken *servers.KafkaServer
	if len(ways) > 0 {
		shared = servers.Kafka(t, servers.KafkaOptions{
			Proxies: 2 * len(ways),
			// Over how many seconds a client's quota is averaged, and so how long it is made to wait.
			Config: map[string]string{"quota.window.num": "2"},
		})
	}
	if breaking {
		broken = servers.Kafka(t, servers.KafkaOptions{Proxies: 2, Config: backSoon})
	}
	var one sync.Mutex
	return func(t *testing.T, r *row) *pipeline {
		if r.breaks {
			one.Lock()
			t.Cleanup(one.Unlock)
			// The row before has refused what came to the head.
			for _, p := range broken.Proxies {
				p.Set(servers.Faults{})
			}
			return kafkaPipeline(t, r, broken, broken.Proxies, "")
		}
		way := ways[r]
		switch r.variant {
		case "login":
			k := servers.Kafka(t, servers.KafkaOptions{SASL: true, SASLProxies: 2, Config: map[string]string{"connections.max.reauth.ms": "4000"}})
			r.secret = filepath.Join(t.TempDir(), "password")
			writeFile(t, r.secret, servers.KafkaPassword)
			return kafkaPipeline(t, r, k, k.SASLProxies, fmt.Sprintf(
				", sasl: {mechanism: scram-sha-256, username: %s, password: {file: %q}}", servers.KafkaUser, r.secret))
		case "disk":
			r.disk = servers.Tmpfs(t, 128)
			k := servers.Kafka(t, servers.KafkaOptions{Proxies: 2, Data: filepath.Join(r.disk, "data"), Config: backSoon})
			return kafkaPipeline(t, r, k, k.Proxies, "")
		}
		return kafkaPipeline(t, r, shared, shared.Proxies[way:way+2], "")
	}
}

// backSoon is for brokers that are killed: one that comes back waits for so long until its former self is given up.
var backSoon = map[string]string{"broker.session.timeout.ms": "2000"}

// kafkaPipeline creates the two topics of a row. Settings are further ones of a connection, such as a login.
func kafkaPipeline(t *testing.T, r *row, k *servers.KafkaServer, proxies []*servers.FaultProxy, settings string) *pipeline {
	t.Helper()
	transport := &kafka.Transport{DialTimeout: 2 * time.Second, MetadataTTL: time.Second}
	t.Cleanup(transport.CloseIdleConnections)
	open := func(topic string) *kafkaQueue {
		k.CreateTopic(topic, partitions, "message.timestamp.type", "LogAppendTime")
		return &kafkaQueue{topic: topic, client: &kafka.Client{Addr: kafka.TCP(k.Addr), Timeout: 3 * time.Second, Transport: transport}}
	}
	head, dest := open(r.name+"-in"), open(r.name+"-out")
	yaml := func(topic string, p *servers.FaultProxy, more string) string {
		return fmt.Sprintf("kafka: {brokers: [%q], topic: %s, timeout: 2s%s%s}", p.Addr, topic, settings, more)
	}
	return &pipeline{
		head: head, dest: dest, headProxy: proxies[0], destProxy: proxies[1], broker: k.Process, server: k,
		inject: yaml(head.topic, proxies[0], r.settings), sink: yaml(dest.topic, proxies[1], ", metadata_refresh: 1s"+r.settings),
	}
}

// recreate deletes the topic and creates it again, by the hand of r, after a while.
func (q *kafkaQueue) recreate(t *testing.T, k *servers.KafkaServer, after time.Duration) {
	t.Helper()
	k.DeleteTopic(q.topic)
	q.life.Add(1)
	wait(t, after)
	k.CreateTopic(q.topic, partitions, "message.timestamp.type", "LogAppendTime")
}

// quota limits what a client may read and write, in bytes per second; 0 takes the limits away.
func quota(t *testing.T, k *servers.KafkaServer, clientID string, rate float64) {
	t.Helper()
	transport := &kafka.Transport{}
	defer transport.CloseIdleConnections()
	c := &kafka.Client{Addr: kafka.TCP(k.Addr), Timeout: 10 * time.Second, Transport: transport}
	var ops []kafka.AlterClientQuotaOps
	for _, key := range []string{"producer_byte_rate", "consumer_byte_rate"} {
		ops = append(ops, kafka.AlterClientQuotaOps{Key: key, Value: rate, Remove: rate == 0})
	}
	resp, err := c.AlterClientQuotas(t.Context(), &kafka.AlterClientQuotasRequest{Entries: []kafka.AlterClientQuotaEntry{{
		Entities: []kafka.AlterClientQuotaEntity{{EntityType: "client-id", EntityName: clientID}}, Ops: ops,
	}}})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range resp.Entries {
		if e.Error != nil {
			t.Fatal(e.Error)
		}
	}
}

// kafkaQueue is a topic whose records get the broker's time.
type kafkaQueue struct {
	client *kafka.Client
	topic  string
	life   atomic.Int64 // how often it was created anew
}

func (q *kafkaQueue) put(ctx context.Context, lane int, body []byte) error {
	resp, err := q.client.Produce(ctx, &kafka.ProduceRequest{
		Topic: q.topic, Partition: lane, RequiredAcks: kafka.RequireAll,
		Records: kafka.NewRecordReader(kafka.Record{Value: kafka.NewBytes(body)}),
	})
	if err != nil {
		return err
	}
	return resp.Error
}

func (q *kafkaQueue) lanes(ctx context.Context) (int, error) {
	m, err := q.client.Metadata(ctx, &kafka.MetadataRequest{Topics: []string{q.topic}})
	if err != nil {
		return 0, err
	}
	if len(m.Topics) != 1 || m.Topics[0].Error != nil {
		return 0, fmt.Errorf("topic %s: %+v", q.topic, m.Topics)
	}
	return len(m.Topics[0].Partitions), nil
}

func (q *kafkaQueue) follow(ctx context.Context, f func(message)) {
	var readers sync.WaitGroup
	defer readers.Wait()
	following := 0
	for ctx.Err() == nil {
		if n, err := q.lanes(ctx); err == nil {
			for ; following < n; following++ {
				lane := following
				readers.Go(func() { q.followLane(ctx, lane, f) })
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(500 * time.Millisecond):
		}
	}
}

func (q *kafkaQueue) followLane(ctx context.Context, lane int, f func(message)) {
	for next, life := int64(0), int64(0); ctx.Err() == nil; {
		if now := q.life.Load(); now != life {
			next, life = 0, now
		}
		found, _, err := q.fetch(ctx, lane, next, time.Second)
		for _, m := range found {
			f(m.message)
			next = m.offset + 1
		}
		if err != nil {
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
		}
	}
}

type record struct {
	message
	offset int64
}

// fetch reads from an offset on what one request gets, and returns the end of the log besides.
func (q *kafkaQueue) fetch(ctx context.Context, lane int, from int64, wait time.Duration) (found []record, end int64, err error) {
	resp, err := q.client.Fetch(ctx, &kafka.FetchRequest{Topic: q.topic, Partition: lane, Offset: from, MinBytes: 1, MaxBytes: 1 << 20, MaxWait: wait})
	if err != nil {
		return nil, 0, err
	}
	if resp.Error != nil {
		return nil, 0, resp.Error
	}
	for {
		rec, err := resp.Records.ReadRecord()
		if errors.Is(err, io.EOF) {
			return found, resp.HighWatermark, nil
		}
		if err != nil {
			return found, resp.HighWatermark, err
		}
		body, err := kafka.ReadAll(rec.Value)
		if err != nil {
			return found, resp.HighWatermark, err
		}
		if rec.Offset >= from {
			id := fmt.Sprintf("%d %d %d", q.life.Load(), lane, rec.Offset)
			found = append(found, record{message{id: id, lane: lane, body: body, at: rec.Time}, rec.Offset})
		}
	}
}

func (q *kafkaQueue) all(ctx context.Context) ([]message, error) {
	n, err := q.lanes(ctx)
	if err != nil {
		return nil, err
	}
	var all []message
	for lane := range n {
		for next := int64(0); ; {
			found, end, err := q.fetch(ctx, lane, next, 0)
			if err != nil {
				return nil, fmt.Errorf("%s/%d at %d: %w", q.topic, lane, next, err)
			}
			for _, m := range found {
				all = append(all, m.message)
				next = m.offset + 1
			}
			if next >= end {
				break
			}
			if len(found) == 0 {
				next++ // an offset without a record
			}
		}
	}
	return all, nil
}
