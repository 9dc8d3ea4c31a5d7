package conform_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/goleak"

	"github.com/lag-monitor/lag-monitor/internal/conform"
	"github.com/lag-monitor/lag-monitor/internal/conn"
	"github.com/lag-monitor/lag-monitor/internal/servers"
	"github.com/lag-monitor/lag-monitor/probe"
	"github.com/lag-monitor/lag-monitor/sinks"
)

// rabbitUsers may do everything, and nothing, with the password p.
var rabbitUsers = []servers.RabbitMQUser{{Name: "u", Password: "p", Configure: ".*", Write: ".*", Read: ".*"}, {Name: "w", Password: "p"}}

// TestConformanceRabbitMQ runs the variants that speak AMQP 0-9-1 on one broker, which takes seconds to start.
func TestConformanceRabbitMQ(t *testing.T) { onBroker(t, "amqp", "amqp_dedicated", "amqp_stream") }

// TestConformanceAMQP1 runs those that speak AMQP 1.0: beside the others in a process of its own, since together they take longest.
func TestConformanceAMQP1(t *testing.T) { onBroker(t, "amqp_amqp1", "amqp1_queue", "amqp1_copy") }

func onBroker(t *testing.T, names ...string) {
	servers.Need(t)
	r := servers.RabbitMQ(t, servers.RabbitMQOptions{Users: rabbitUsers, AMQP1: true})
	left := len(names)
	for _, h := range onRabbitMQ(r) {
		if slices.Contains(names, h.Name()) {
			left--
			t.Run(h.Name(), func(t *testing.T) { conform.Run(t, h) })
		}
	}
	if left != 0 {
		t.Errorf("%d of %q are not there", left, names)
	}
}

// onRabbitMQ are a queue of the sink's own on an exchange, a quorum queue that is the sink's, and a stream; and an
// exchange that AMQP 1.0 sends to, alone and with a sink that speaks it, too.
func onRabbitMQ(r *servers.RabbitMQServer) []conform.Harness {
	return []conform.Harness{rabbitHarness(r, ""), rabbitHarness(r, "dedicated"), rabbitHarness(r, "stream"), amqp1Harness(r), amqp1Links(r, "queue"), amqp1Links(r, "copy")}
}

// rabbitDirect runs f with a channel of the test's own, which confirms.
func rabbitDirect(t *testing.T, r *servers.RabbitMQServer, f func(ch *amqp.Channel) error) {
	t.Helper()
	c, err := amqp.Dial(r.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ch, err := c.Channel()
	if err == nil {
		err = ch.Confirm(false)
	}
	if err == nil {
		err = f(ch)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func rabbitHarness(r *servers.RabbitMQServer, variant string) conform.Harness {
	var made atomic.Int32
	// The broker that one check starts again outlives it.
	leaks := []goleak.Option{goleak.IgnoreAnyFunction("github.com/lag-monitor/lag-monitor/internal/servers.(*Process).Start.func1")}
	return conform.Harness{Kind: "amqp", Variant: variant, Leaks: leaks, InjectorNeeds: []string{"url", "routing_key"}, SinkNeeds: []string{"url", "exchange"},
		New: func(t *testing.T) conform.Pipeline {
			// The exchange feeds a queue of somebody else, or the only one.
			exchange := fmt.Sprintf("conform%s-%d", variant, made.Add(1))
			queue := exchange + ".q"
			kind := map[string]string{"": amqp.QueueTypeClassic, "dedicated": amqp.QueueTypeQuorum, "stream": amqp.QueueTypeStream}[variant]
			rabbitDirect(t, r, func(ch *amqp.Channel) error {
				if err := ch.ExchangeDeclare(exchange, amqp.ExchangeTopic, true, false, false, false, nil); err != nil {
					return err
				}
				if _, err := ch.QueueDeclare(queue, true, false, false, false, amqp.Table{amqp.QueueTypeArg: kind}); err != nil {
					return err
				}
				return ch.QueueBind(queue, "orders.#", exchange, false, nil)
			})
			proxy := servers.Proxy(t, r.Addr)
			secret := func(value string) conn.Secret {
				path := filepath.Join(t.TempDir(), "secret")
				if err := os.WriteFile(path, []byte(value), 0o600); err != nil {
					t.Fatal(err)
				}
				return conn.Secret{File: path}
			}
			inject := func(broker conn.AMQP, exchange, key string) func() probe.Config {
				return func() probe.Config {
					c := probe.NewAMQP()
					c.Broker, c.Exchange, c.RoutingKey = broker, exchange, probe.MustTemplate(key)
					return c
				}
			}
			listen := func(broker conn.AMQP, exchange, queue string) func() sinks.Config {
				return func() sinks.Config {
					c := sinks.NewAMQP()
					c.Broker = broker
					switch variant {
					case "":
						c.Exchange, c.Bindings = exchange, []sinks.AMQPBinding{{RoutingKey: "orders.*"}}
					case "dedicated":
						c.Queue, c.Dedicated = queue, true
					case "stream":
						c.Stream = queue
					}
					return c
				}
			}
			here := conn.AMQP{URL: "amqp://" + proxy.Addr, Username: "u", Password: secret("p")}
			wrong, nobody, elsewhere, poor := here, here, here, here
			wrong.Password, poor.Username = secret("wrong"), "w"
			nobody.URL = "amqp://" + freeAddr(t)
			elsewhere.URL += "/nowhere"
			const key = "orders.new"
			var puts sync.Mutex
			p := conform.Pipeline{
				Inject: inject(here, exchange, key), Sink: listen(here, exchange, queue),
				Put: func(t *testing.T, bodies ...[]byte) {
					t.Helper()
					puts.Lock()
					defer puts.Unlock()
					rabbitDirect(t, r, func(ch *amqp.Channel) error {
						ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
						defer cancel()
						var last []*amqp.DeferredConfirmation
						for _, b := range bodies {
							dc, err := ch.PublishWithDeferredConfirm(exchange, "orders.other", true, false, amqp.Publishing{Body: b, DeliveryMode: amqp.Persistent})
							if err != nil {
								return err
							}
							last = append(last, dc)
						}
						for _, dc := range last {
							if ok, err := dc.WaitContext(ctx); !ok || err != nil {
								return fmt.Errorf("not confirmed: %w", err)
							}
						}
						return nil
					})
				},
				Keeps: true, LooksBack: variant == "stream", IDs: variant == "stream", Exclusive: variant == "dedicated",
				Stop: r.Stop, Start: r.Start,
				Hang: func() func() {
					proxy.Set(servers.Faults{Silent: true})
					return func() { proxy.Set(servers.Faults{}) }
				},
				Within: 40 * time.Second,
				Broken: []conform.Broken{
					{Name: "nobody listens", Inject: inject(nobody, exchange, key), Sink: listen(nobody, exchange, queue), Class: conn.Network},
					{Name: "wrong password", Inject: inject(wrong, exchange, key), Sink: listen(wrong, exchange, queue), Class: conn.Auth},
					{Name: "no such virtual host", Inject: inject(elsewhere, exchange, key), Sink: listen(elsewhere, exchange, queue), Class: conn.Missing},
					{Name: "may not publish", Inject: inject(poor, exchange, key), Class: conn.Auth, Unseen: true},
					{Name: "may not read", Sink: listen(poor, exchange, queue), Class: conn.Auth, Unseen: true},
					{Name: "no such exchange or queue", Inject: inject(here, "nowhere", key), Sink: listen(here, "nowhere", "nowhere"), Class: conn.Missing},
					{Name: "no such queue", Inject: inject(here, "", "nowhere"), Class: conn.Missing},
					{Name: "not routed", Inject: inject(here, exchange, "nobody.wants.it"), Class: conn.Missing, Unseen: true},
				},
			}
			if variant == "" {
				p.Remaining = func(t *testing.T) (left int) {
					rabbitDirect(t, r, func(ch *amqp.Channel) error {
						q, err := ch.QueueDeclarePassive(queue, true, false, false, false, nil)
						left = q.Messages
						return err
					})
					return left
				}
			}
			if variant != "" {
				// The broker itself is restarted once, in the first variant.
				p.Stop = func() { proxy.Set(servers.Faults{Refuse: true}); proxy.Cut() }
				p.Start = func() { proxy.Set(servers.Faults{}) }
			}
			return p
		}}
}
