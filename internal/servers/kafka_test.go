package servers_test

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/sasl"
	"github.com/segmentio/kafka-go/sasl/plain"
	"github.com/segmentio/kafka-go/sasl/scram"

	"github.com/lag-monitor/lag-monitor/internal/servers"
)

// produce and fetch make one round trip over connections of their own.
func produce(addr, topic string, partition int, value string, d *kafka.Dialer) error {
	ctx, cancel := context.WithTimeout(context.Background(), cmp.Or(d.Timeout, 10*time.Second))
	defer cancel()
	conn, err := d.DialLeader(ctx, "tcp", addr, topic, partition)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	_, err = conn.WriteMessages(kafka.Message{Value: []byte(value)})
	return err
}

func fetch(addr, topic string, partition int, d *kafka.Dialer) ([]string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	conn, err := d.DialLeader(ctx, "tcp", addr, topic, partition)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return nil, err
	}
	first, last, err := conn.ReadOffsets()
	if err != nil {
		return nil, err
	}
	var values []string
	for i := first; i < last; i++ {
		m, err := conn.ReadMessage(1 << 20)
		if err != nil {
			return values, err
		}
		values = append(values, string(m.Value))
	}
	return values, nil
}

// steadily repeats what the broker refuses for the moment: one that was kept from its processor for seconds has
// lost its leaderships until it is heard again.
func steadily(t *testing.T, f func() error) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		err := f()
		if err == nil {
			return
		}
		var refused kafka.Error
		if !errors.As(err, &refused) || !refused.Temporary() || time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

func TestKafka(t *testing.T) {
	t.Parallel()
	d := &kafka.Dialer{}
	servers.KafkaEach(t, servers.KafkaOptions{}, func(t *testing.T, k *servers.KafkaServer) {
		want := map[servers.KafkaVersion]string{servers.Kafka39: "3.9.", servers.Kafka4: "4."}
		if v := servers.KafkaVersion(t.Name()[strings.LastIndex(t.Name(), "/")+1:]); !strings.HasPrefix(k.Version, want[v]) {
			t.Errorf("%s runs %s", v, k.Version)
		}
		k.CreateTopic("first", 2, "retention.ms", "86400000")
		send := func(partition int, value string) {
			t.Helper()
			steadily(t, func() error { return produce(k.Addr, "first", partition, value, d) })
		}
		expect := func(partition int, want string) {
			t.Helper()
			steadily(t, func() error {
				got, err := fetch(k.Addr, "first", partition, d)
				if err == nil && fmt.Sprint(got) != want {
					t.Fatalf("partition %d holds %v; want %s", partition, got, want)
				}
				return err
			})
		}
		send(0, "a")
		send(1, "b")
		expect(0, "[a]")

		k.Stop()
		if k.Pid() != 0 {
			t.Error("it has a pid after Stop")
		}
		if err := produce(k.Addr, "first", 0, "x", d); err == nil {
			t.Error("a stopped broker took a message")
		}
		k.Start()
		send(0, "c")
		k.Kill()
		k.Start()
		expect(0, "[a c]")
		expect(1, "[b]")

		k.AddPartitions("first", 3)
		send(2, "d")
		expect(2, "[d]")
		k.DeleteTopic("first")
		k.CreateTopic("first", 1)
		expect(0, "[]")

		k.Pause()
		short := &kafka.Dialer{Timeout: 300 * time.Millisecond}
		if err := produce(k.Addr, "first", 0, "x", short); err == nil {
			t.Error("a paused broker answered")
		}
		k.Resume()
		send(0, "e")
	})
}

func TestKafkaListeners(t *testing.T) {
	t.Parallel()
	opts := servers.KafkaOptions{SASL: true, TLS: true, Proxy: true}
	servers.KafkaEach(t, opts, func(t *testing.T, k *servers.KafkaServer) {
		k.CreateTopic("topic", 1)
		ca, err := os.ReadFile(k.TLS.CA)
		if err != nil {
			t.Fatal(err)
		}
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(ca)
		client, err := tls.LoadX509KeyPair(k.TLS.ClientCert, k.TLS.ClientKey)
		if err != nil {
			t.Fatal(err)
		}
		scramFor := func(a scram.Algorithm, password string) sasl.Mechanism {
			m, err := scram.Mechanism(a, servers.KafkaUser, password)
			if err != nil {
				t.Fatal(err)
			}
			return m
		}
		good := plain.Mechanism{Username: servers.KafkaUser, Password: servers.KafkaPassword}
		trusting := &tls.Config{RootCAs: roots}
		for _, c := range []struct {
			name string
			addr string
			d    kafka.Dialer
			ok   bool
		}{
			{"plain text", k.Addr, kafka.Dialer{}, true},
			{"proxy", k.Proxy.Addr, kafka.Dialer{}, true},
			{"PLAIN", k.SASLAddr, kafka.Dialer{SASLMechanism: good}, true},
			{"PLAIN, wrong password", k.SASLAddr, kafka.Dialer{SASLMechanism: plain.Mechanism{Username: servers.KafkaUser, Password: "x"}}, false},
			{"no login", k.SASLAddr, kafka.Dialer{Timeout: 2 * time.Second}, false},
			{"SCRAM-SHA-256", k.SASLAddr, kafka.Dialer{SASLMechanism: scramFor(scram.SHA256, servers.KafkaPassword)}, true},
			{"SCRAM-SHA-512", k.SASLAddr, kafka.Dialer{SASLMechanism: scramFor(scram.SHA512, servers.KafkaPassword)}, true},
			{"SCRAM, wrong password", k.SASLAddr, kafka.Dialer{SASLMechanism: scramFor(scram.SHA512, "x")}, false},
			{"TLS", k.TLSAddr, kafka.Dialer{TLS: trusting}, true},
			{"TLS with client certificate", k.TLSAddr, kafka.Dialer{TLS: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{client}}}, true},
			{"TLS, unknown authority", k.TLSAddr, kafka.Dialer{TLS: &tls.Config{}}, false},
			{"PLAIN over TLS", k.SASLTLSAddr, kafka.Dialer{TLS: trusting, SASLMechanism: good}, true},
			{"SCRAM over TLS", k.SASLTLSAddr, kafka.Dialer{TLS: trusting, SASLMechanism: scramFor(scram.SHA256, servers.KafkaPassword)}, true},
		} {
			t.Run(c.name, func(t *testing.T) {
				try := func() error { return produce(c.addr, "topic", 0, c.name, &c.d) }
				if c.ok {
					steadily(t, try)
				} else if try() == nil {
					t.Fatal("produce: no error")
				}
			})
		}
		if n := k.Proxy.Accepted(); n < 2 {
			t.Errorf("%d connections went through the proxy: the broker's advertised address bypasses it", n)
		}
		k.Proxy.Set(servers.Faults{Silent: true})
		err = produce(k.Proxy.Addr, "topic", 0, "x", &kafka.Dialer{Timeout: 300 * time.Millisecond})
		var timeout interface{ Timeout() bool }
		if !errors.As(err, &timeout) && !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("through a silent proxy: %v", err)
		}
	})
}
