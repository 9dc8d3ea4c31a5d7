package conform_test

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/paho"

	"github.com/lag-monitor/lag-monitor/internal/conform"
	"github.com/lag-monitor/lag-monitor/internal/conn"
	"github.com/lag-monitor/lag-monitor/internal/servers"
	"github.com/lag-monitor/lag-monitor/probe"
	"github.com/lag-monitor/lag-monitor/sinks"
)

// mqttDirect runs f with a connection of the test's own.
func mqttDirect(t *testing.T, addr string, s conn.MQTTSession, f func(ctx context.Context, l *conn.MQTTLink) error) {
	t.Helper()
	broker := conn.NewMQTT()
	broker.URL, broker.KeepAlive = "mqtt://"+addr, conn.Duration(time.Minute)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	l, err := broker.Connect(ctx, s)
	if err != nil {
		t.Error(err)
		return
	}
	defer l.Close()
	if err := f(ctx, l); err != nil {
		t.Error(err)
	}
}

// onMQTT is a topic that the sink subscribes to: with a session that ends with its connection and QoS 1, or with QoS 0 in
// a shared subscription; with a session that is kept and QoS 1 or 2.
func onMQTT(variant string) conform.Harness {
	return conform.Harness{
		Kind: "mqtt", Variant: variant, InjectorNeeds: []string{"url", "topic"}, SinkNeeds: []string{"url", "topic"},
		New: func(t *testing.T) conform.Pipeline {
			m := servers.Mosquitto(t, servers.MosquittoOptions{Config: "max_queued_messages 100000"})
			strict := servers.Mosquitto(t, servers.MosquittoOptions{Users: map[string]string{"u": "p", "w": "p"}, ACL: "user u\ntopic readwrite #\n"})
			proxy := servers.Proxy(t, m.Addr)
			secret := func(value string) conn.Secret {
				path := filepath.Join(t.TempDir(), "secret")
				if err := os.WriteFile(path, []byte(value), 0o600); err != nil {
					t.Fatal(err)
				}
				return conn.Secret{File: path}
			}
			at := func(addr, user string, password conn.Secret) conn.MQTT {
				c := conn.NewMQTT()
				c.URL, c.Username, c.Password = "mqtt://"+addr, user, password
				c.KeepAlive = conn.Duration(time.Minute) // a busy machine answers a ping late
				return c
			}
			kept, shared := variant == "session" || variant == "exactly_once", variant == "shared"
			level := map[string]int{"": 1, "shared": 0, "session": 1, "exactly_once": 2}[variant]
			inject := func(broker conn.MQTT, topic string) func() probe.Config {
				return func() probe.Config {
					c := probe.NewMQTT()
					c.Broker, c.Topic, c.QoS = broker, probe.MustTemplate(topic), level
					return c
				}
			}
			listen := func(broker conn.MQTT, filter string) func() sinks.Config {
				return func() sinks.Config {
					c := sinks.NewMQTT()
					c.Broker, c.Topic, c.QoS, c.QueueLimit = broker, filter, level, 100_000
					if kept {
						c.SessionExpiry = conn.Duration(time.Hour)
					}
					if shared {
						c.Topic, c.Dedicated = "$share/monitor/"+filter, true
					}
					return c
				}
			}
			// Somebody else takes the messages, too, and is away.
			other := conn.MQTTSession{ClientID: "other", Expiry: time.Hour}
			mqttDirect(t, m.Addr, other, func(ctx context.Context, l *conn.MQTTLink) error {
				_, err := l.Subscribe(ctx, &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: "orders/#", QoS: 1}}})
				return err
			})
			const topic, filter = "orders/new", "orders/+"
			there, nobody := at(proxy.Addr, "", conn.Secret{}), at(freeAddr(t), "", conn.Secret{})
			anonymous, wrong, nothing := at(strict.Addr, "", conn.Secret{}), at(strict.Addr, "u", secret("wrong")), at(strict.Addr, "w", secret("p"))
			var puts sync.Mutex
			p := conform.Pipeline{
				Inject: inject(there, topic), Sink: listen(there, filter),
				Put: func(t *testing.T, bodies ...[]byte) {
					t.Helper()
					puts.Lock()
					defer puts.Unlock()
					mqttDirect(t, m.Addr, conn.MQTTSession{ClientID: conn.MQTTClientID("put")}, func(ctx context.Context, l *conn.MQTTLink) error {
						for _, b := range bodies {
							m := &paho.Publish{Topic: "orders/other", QoS: 1, Payload: b}
							if _, err := l.PublishWithOptions(ctx, m, paho.PublishOptions{Method: paho.PublishMethod_AsyncSend}); err != nil {
								return err
							}
						}
						return l.Ping(ctx) // answered behind all of them
					})
				},
				Keeps: kept, Exclusive: shared,
				Stop: m.Stop, Start: m.Start,
				Hang: func() func() {
					proxy.Set(servers.Faults{Silent: true})
					return func() { proxy.Set(servers.Faults{}) }
				},
				Within: 40 * time.Second,
				Broken: []conform.Broken{
					{Name: "nobody listens", Inject: inject(nobody, topic), Sink: listen(nobody, filter), Class: conn.Network},
					{Name: "no credentials", Inject: inject(anonymous, topic), Sink: listen(anonymous, filter), Class: conn.Auth},
					{Name: "wrong password", Inject: inject(wrong, topic), Sink: listen(wrong, filter), Class: conn.Auth},
				},
			}
			if level > 0 {
				p.Broken = append(p.Broken,
					conform.Broken{Name: "may not publish", Inject: inject(nothing, topic), Sink: listen(nothing, filter), Class: conn.Auth, Unseen: true})
			}
			if level == 1 { // the client does not pass this on from the first answer of the two with QoS 2
				p.Broken = append(p.Broken, conform.Broken{Name: "no subscription", Inject: inject(there, "elsewhere"), Class: conn.Missing, Unseen: true, Unknown: true})
			}
			return p
		},
	}
}
