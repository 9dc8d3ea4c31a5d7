package conform_test

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	"go.uber.org/goleak"

	"github.com/lag-monitor/lag-monitor/internal/conform"
	"github.com/lag-monitor/lag-monitor/internal/conn"
	"github.com/lag-monitor/lag-monitor/internal/servers"
	"github.com/lag-monitor/lag-monitor/probe"
	"github.com/lag-monitor/lag-monitor/sinks"
)

const kafkaLanes = 3

// onKafka runs against a cluster of two brokers inside this process, new for each check.
func onKafka() conform.Harness {
	return conform.Harness{
		Kind: "kafka", InjectorNeeds: []string{"brokers", "topic"}, SinkNeeds: []string{"brokers", "topic"},
		New: func(t *testing.T) conform.Pipeline {
			f := servers.StartFakeKafka(t, 2)
			if err := f.CreateTopic("orders", kafkaLanes, nil); err != nil {
				t.Fatal(err)
			}
			p := kafkaPipeline(f.ListenAddrs(), "orders")
			p.Stop, p.Start, p.Hang = f.Stop, f.Start, f.Hang
			p.Enqueued = false // the fake stamps no time of its own
			return p
		},
		Leaks: []goleak.Option{goleak.IgnoreAnyFunction("github.com/twmb/franz-go/pkg/kfake.(*Cluster).run")},
	}
}

// kafkaPipeline is one topic of a cluster with both ends.
func kafkaPipeline(brokers []string, topic string) conform.Pipeline {
	settings := conn.NewKafka()
	settings.Brokers = brokers
	inject := func(k conn.Kafka, topic string) func() probe.Config {
		return func() probe.Config {
			c := probe.NewKafka()
			c.Kafka, c.Topic = k, topic
			return c
		}
	}
	listen := func(k conn.Kafka, topic string) func() sinks.Config {
		return func() sinks.Config {
			c := sinks.NewKafka()
			c.Kafka, c.Topic = k, topic
			return c
		}
	}
	nobody := settings
	nobody.Brokers = []string{nobodyListens()}
	return conform.Pipeline{
		Inject: inject(settings, topic), Sink: listen(settings, topic),
		Put: func(t *testing.T, bodies ...[]byte) {
			t.Helper()
			putKafka(t, brokers[0], topic, bodies...)
		},
		Lanes: kafkaLanes, Keeps: true, LooksBack: true, IDs: true, Enqueued: true,
		Remaining: func(t *testing.T) int { return kafkaMessages(t, brokers[0], topic) },
		Broken: []conform.Broken{
			{Name: "no topic", Inject: inject(settings, "nowhere"), Sink: listen(settings, "nowhere"), Class: conn.Missing},
			{Name: "nobody listens", Inject: inject(nobody, topic), Sink: listen(nobody, topic), Class: conn.Network},
		},
	}
}

// nobodyListens returns an address that refuses connections.
func nobodyListens() string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

func kafkaClient(broker string) (*kafka.Client, func()) {
	tr := &kafka.Transport{}
	return &kafka.Client{Addr: kafka.TCP(broker), Timeout: time.Minute, Transport: tr}, tr.CloseIdleConnections
}

// putKafka spreads messages over the partitions with another client than ours.
func putKafka(t *testing.T, broker, topic string, bodies ...[]byte) {
	t.Helper()
	c, done := kafkaClient(broker)
	defer done()
	for p := range kafkaLanes {
		var records []kafka.Record
		for i := p; i < len(bodies); i += kafkaLanes {
			records = append(records, kafka.Record{Time: time.Now(), Value: kafka.NewBytes(bodies[i])})
		}
		if len(records) == 0 {
			continue
		}
		resp, err := c.Produce(context.Background(), &kafka.ProduceRequest{
			Topic: topic, Partition: p, RequiredAcks: kafka.RequireAll, Records: kafka.NewRecordReader(records...),
		})
		if err == nil {
			err = resp.Error
		}
		if err != nil {
			t.Errorf("put %d messages into partition %d: %v", len(records), p, err)
		}
	}
}

func kafkaMessages(t *testing.T, broker, topic string) (n int) {
	t.Helper()
	c, done := kafkaClient(broker)
	defer done()
	req := &kafka.ListOffsetsRequest{Topics: map[string][]kafka.OffsetRequest{}}
	for p := range kafkaLanes {
		req.Topics[topic] = append(req.Topics[topic], kafka.FirstOffsetOf(p), kafka.LastOffsetOf(p))
	}
	resp, err := c.ListOffsets(context.Background(), req)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range resp.Topics[topic] {
		n += int(p.LastOffset - p.FirstOffset)
	}
	return n
}

// The same on real brokers, which one server serves for all checks.
func TestConformanceKafka(t *testing.T) {
	servers.KafkaEach(t, servers.KafkaOptions{}, func(t *testing.T, k *servers.KafkaServer) {
		var n atomic.Int32
		h := onKafka()
		h.Leaks = append(h.Leaks, goleak.IgnoreAnyFunction("github.com/lag-monitor/lag-monitor/internal/servers.(*Process).Start.func1"))
		h.New = func(*testing.T) conform.Pipeline {
			topic := fmt.Sprintf("orders-%d", n.Add(1))
			k.CreateTopic(topic, kafkaLanes, "message.timestamp.type", "LogAppendTime")
			p := kafkaPipeline([]string{k.Addr}, topic)
			p.Stop, p.Start = k.Stop, k.Start
			p.Hang = func() func() {
				k.Pause()
				return k.Resume
			}
			p.Within = 40 * time.Second
			return p
		}
		conform.Run(t, h)
	})
}

// Every way to log in works on both ends, and a wrong password is told from a broken network.
func TestKafkaLogin(t *testing.T) {
	servers.KafkaEach(t, servers.KafkaOptions{SASL: true, TLS: true}, func(t *testing.T, k *servers.KafkaServer) {
		t.Setenv("KAFKA_PASSWORD", servers.KafkaPassword)
		t.Setenv("KAFKA_WRONG", "wrong")
		k.CreateTopic("orders", 1)
		encrypted := &conn.TLS{CAFile: k.TLS.CA}
		sasl := func(mechanism, env string) *conn.KafkaSASL {
			return &conn.KafkaSASL{Mechanism: mechanism, Username: servers.KafkaUser, Password: conn.Secret{Env: env}}
		}
		for name, c := range map[string]struct {
			address string
			tls     *conn.TLS
			sasl    *conn.KafkaSASL
			class   conn.Class // of the error; empty: it works
		}{
			"tls":                    {k.TLSAddr, encrypted, nil, ""},
			"plain":                  {k.SASLAddr, nil, sasl("plain", "KAFKA_PASSWORD"), ""},
			"scram-sha-256":          {k.SASLAddr, nil, sasl("scram-sha-256", "KAFKA_PASSWORD"), ""},
			"scram-sha-512 over tls": {k.SASLTLSAddr, encrypted, sasl("scram-sha-512", "KAFKA_PASSWORD"), ""},
			"plain, wrong":           {k.SASLAddr, nil, sasl("plain", "KAFKA_WRONG"), conn.Auth},
			"scram, wrong":           {k.SASLAddr, nil, sasl("scram-sha-512", "KAFKA_WRONG"), conn.Auth},
			"certificate not known":  {k.TLSAddr, &conn.TLS{}, nil, conn.Auth},
			"plain where tls is":     {k.TLSAddr, nil, nil, conn.Network},
		} {
			settings := conn.NewKafka()
			settings.Brokers, settings.TLS, settings.SASL = []string{c.address}, c.tls, c.sasl
			settings.Timeout = conn.Duration(30 * time.Second)
			if c.class == conn.Network {
				settings.Timeout = conn.Duration(3 * time.Second) // no answer comes
			}
			in, out := probe.NewKafka(), sinks.NewKafka()
			in.Kafka, in.Topic = settings, "orders"
			out.Kafka, out.Topic = settings, "orders"
			injector, err := in.Open()
			if err != nil {
				t.Fatal(err)
			}
			sink, err := out.Open()
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			for end, err := range map[string]error{
				"check of the injector": injector.(probe.Checker).Check(ctx),
				"check of the sink":     sink.(sinks.Checker).Check(ctx),
				"injection":             injector.Inject(ctx, probe.Sample()),
			} {
				if (err == nil) != (c.class == "") || err != nil && conn.ClassOf(err) != c.class {
					t.Errorf("%s: %s: %v of class %s, want %q", name, end, err, conn.ClassOf(err), c.class)
				}
				if err != nil && strings.Contains(err.Error(), servers.KafkaPassword) {
					t.Errorf("%s: %s: the password is in the error", name, end)
				}
			}
			cancel()
			injector.Close()
		}
	})
}
