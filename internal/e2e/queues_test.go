package e2e_test

import (
	"bytes"
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kinesis"
	"github.com/aws/aws-sdk-go-v2/service/kinesis/types"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/segmentio/kafka-go"

	"github.com/lag-monitor/lag-monitor/internal/heartbeat"
	"github.com/lag-monitor/lag-monitor/internal/servers"
)

// queue is a destination queue on a real broker, and what its other users do with it.
type queue struct {
	sink   string // the sink's kind and settings in YAML; what it reads comes through proxy
	inject string // the same for an injector that puts heartbeats straight into the queue
	lanes  int

	put         func(context.Context, []byte) error                          // an ordinary producer; safe for concurrent use
	consume     func(ctx context.Context, more func(body []byte) bool) error // an ordinary consumer, from the beginning, while more
	proxy       *servers.FaultProxy
	stop, start func()
}

// queues lists the brokers that the tests run on.
var queues = map[string]func(*testing.T) *queue{
	"kafka39": func(t *testing.T) *queue { return kafkaQueue(t, servers.Kafka39) },
	"kafka4":  func(t *testing.T) *queue { return kafkaQueue(t, servers.Kafka4) },
	"kinesis": kinesisQueue,
	"nats":    natsQueue,
}

func kafkaQueue(t *testing.T, version servers.KafkaVersion) *queue {
	const topic, partitions = "orders", 3
	k := servers.Kafka(t, servers.KafkaOptions{Version: version, Proxy: true})
	k.CreateTopic(topic, partitions)
	transport := &kafka.Transport{DialTimeout: 2 * time.Second}
	t.Cleanup(transport.CloseIdleConnections)
	w := &kafka.Writer{
		Addr: kafka.TCP(k.Addr), Topic: topic, Balancer: &kafka.RoundRobin{}, RequiredAcks: kafka.RequireAll,
		BatchSize: 1, MaxAttempts: 1, Transport: transport,
	}
	t.Cleanup(func() { w.Close() })
	return &queue{
		sink:   fmt.Sprintf("kafka: {brokers: [%q], topic: %s}", k.Proxy.Addr, topic),
		inject: fmt.Sprintf("kafka: {brokers: [%q], topic: %s}", k.Addr, topic),
		lanes:  partitions,
		put: func(ctx context.Context, body []byte) error {
			return w.WriteMessages(ctx, kafka.Message{Value: body})
		},
		consume: func(ctx context.Context, more func([]byte) bool) error {
			r := kafka.NewReader(kafka.ReaderConfig{
				Brokers: []string{k.Addr}, Topic: topic, GroupID: "shop", StartOffset: kafka.FirstOffset, MaxWait: time.Second,
			})
			defer r.Close()
			for {
				m, err := r.ReadMessage(ctx)
				if err != nil || !more(m.Value) {
					return err
				}
			}
		},
		proxy: k.Proxy, stop: k.Stop, start: k.Start,
	}
}

func kinesisQueue(t *testing.T) *queue {
	const stream, shards = "orders", 3
	k := servers.Kinesis(t)
	k.CreateStream(t, stream, shards)
	proxy := servers.Proxy(t, strings.TrimPrefix(k.Endpoint, "http://"))
	settings := func(endpoint, more string) string {
		return fmt.Sprintf("kinesis: {stream: %s, region: %s, endpoint: %q, access_key_id: {env: E2E_AWS_KEY}, secret_access_key: {env: E2E_AWS_SECRET}%s}",
			stream, servers.KinesisRegion, endpoint, more)
	}
	c := k.Client(t)
	return &queue{
		sink:   settings("http://"+proxy.Addr, ", poll_interval: 200ms"),
		inject: settings(k.Endpoint, ""),
		lanes:  shards,
		put: func(ctx context.Context, body []byte) error {
			_, err := c.PutRecord(ctx, &kinesis.PutRecordInput{
				StreamName: aws.String(stream), Data: body, PartitionKey: aws.String(strconv.FormatInt(time.Now().UnixNano(), 36)),
			})
			return err
		},
		consume: func(ctx context.Context, more func([]byte) bool) error {
			list, err := c.ListShards(ctx, &kinesis.ListShardsInput{StreamName: aws.String(stream)})
			if err != nil {
				return err
			}
			for _, shard := range list.Shards {
				it, err := c.GetShardIterator(ctx, &kinesis.GetShardIteratorInput{
					StreamName: aws.String(stream), ShardId: shard.ShardId, ShardIteratorType: types.ShardIteratorTypeTrimHorizon,
				})
				if err != nil {
					return err
				}
				for next := it.ShardIterator; ; {
					out, err := c.GetRecords(ctx, &kinesis.GetRecordsInput{ShardIterator: next})
					if err != nil {
						return err
					}
					for _, r := range out.Records {
						if !more(r.Data) {
							return nil
						}
					}
					if aws.ToInt64(out.MillisBehindLatest) == 0 && len(out.Records) == 0 {
						break
					}
					next = out.NextShardIterator
				}
			}
			return nil
		},
		proxy: proxy, stop: k.Stop, start: k.Start,
	}
}

// natsStream makes a stream on a NATS server and returns a connection for its ordinary users.
func natsStream(t *testing.T, n *servers.NATSServer, stream, subject string) jetstream.JetStream {
	t.Helper()
	// Without a buffer, what is published while the server is away fails instead of coming out later twice.
	nc, err := nats.Connect(n.URL, nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond), nats.ReconnectBufSize(-1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if _, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: stream, Subjects: []string{subject}, AllowMsgTTL: true}); err != nil {
		t.Fatal(err)
	}
	return js
}

func natsQueue(t *testing.T) *queue {
	n := servers.NATS(t)
	js := natsStream(t, n, "ORDERS", "orders")
	proxy := servers.Proxy(t, strings.TrimPrefix(n.URL, "nats://"))
	return &queue{
		sink:   fmt.Sprintf("nats: {url: %q, stream: ORDERS}", "nats://"+proxy.Addr),
		inject: fmt.Sprintf("nats: {url: %q, subject: orders}", n.URL),
		lanes:  1,
		put: func(ctx context.Context, body []byte) error {
			_, err := js.Publish(ctx, "orders", body)
			return err
		},
		consume: func(ctx context.Context, more func([]byte) bool) error {
			c, err := js.CreateConsumer(ctx, "ORDERS", jetstream.ConsumerConfig{Durable: "shop", AckPolicy: jetstream.AckExplicitPolicy})
			if err != nil {
				return err
			}
			for {
				m, err := c.Next(jetstream.FetchMaxWait(5 * time.Second))
				if err != nil {
					return err
				}
				if err := m.Ack(); err != nil {
					return err
				}
				if !more(m.Data()) {
					return nil
				}
			}
		},
		proxy: proxy, stop: n.Stop, start: n.Start,
	}
}

// ordinary reads the queue as its real consumer does until it has n messages that are no heartbeats, and
// returns how often each was there.
func (q *queue) ordinary(t *testing.T, n int) map[string]int {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	found, left := map[string]int{}, n
	err := q.consume(ctx, func(body []byte) bool {
		if !bytes.Contains(body, []byte(heartbeat.Magic)) {
			found[string(body)]++
			left--
		}
		return left > 0
	})
	if err != nil {
		t.Errorf("an ordinary consumer: %v", err)
	}
	return found
}
