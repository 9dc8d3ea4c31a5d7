package conform_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"cloud.google.com/go/pubsub/v2/pstest"
	"go.uber.org/goleak"

	"github.com/lag-monitor/lag-monitor/internal/conform"
	"github.com/lag-monitor/lag-monitor/internal/conn"
	"github.com/lag-monitor/lag-monitor/internal/servers"
	"github.com/lag-monitor/lag-monitor/probe"
	"github.com/lag-monitor/lag-monitor/sinks"
)

// onPubSub is a topic with a subscription, on the fake of the client library: without ordering keys, and with two.
func onPubSub(variant string) conform.Harness {
	var made atomic.Int32
	return conform.Harness{Kind: "pubsub", Variant: variant, InjectorNeeds: []string{"topic"}, SinkNeeds: []string{"subscription", "dedicated"},
		// The fake's connections end a moment after it.
		Leaks: []goleak.Option{goleak.IgnoreAnyFunction("google.golang.org/grpc.(*Server).serveStreams")},
		New: func(t *testing.T) conform.Pipeline {
			fake := pstest.NewServer()
			t.Cleanup(func() { _ = fake.Close() })
			proxy := servers.Proxy(t, fake.Addr)
			at := func(endpoint string) conn.PubSub {
				c := conn.DefaultPubSub()
				c.Project, c.Endpoint, c.Insecure = "conform", endpoint, true
				return c
			}
			n := made.Add(1)
			topic, subscription := fmt.Sprintf("in-%d", n), fmt.Sprintf("out-%d", n)
			direct := at(fake.Addr)
			admin, err := direct.Open()
			if err != nil {
				t.Fatal(err)
			}
			client, err := admin.Dial()
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = client.Close() })
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			full := "projects/conform/topics/" + topic
			if _, err := client.CreateTopic(ctx, &pubsubpb.Topic{Name: full}); err != nil {
				t.Fatal(err)
			}
			if _, err := client.CreateSubscription(ctx, &pubsubpb.Subscription{Name: "projects/conform/subscriptions/" + subscription, Topic: full,
				AckDeadlineSeconds: 10, EnableMessageOrdering: variant != ""}); err != nil {
				t.Fatal(err)
			}
			lanes := 1
			inject := func(at conn.PubSub, topic string) func() probe.Config {
				return func() probe.Config {
					c := probe.NewPubSub()
					c.PubSub, c.Topic = at, topic
					if variant != "" {
						c.OrderingKeys = 2
					}
					return c
				}
			}
			if variant != "" {
				lanes = 2
			}
			listen := func(at conn.PubSub, subscription string) func() sinks.Config {
				return func() sinks.Config {
					c := sinks.NewPubSub()
					c.PubSub, c.Subscription, c.Dedicated = at, subscription, true
					c.AckDeadline = conn.Duration(10 * time.Second)
					return c
				}
			}
			here, nobody := at(proxy.Addr), at(freeAddr(t))
			return conform.Pipeline{
				Inject: inject(here, topic), Sink: listen(here, subscription),
				Put: func(t *testing.T, bodies ...[]byte) {
					for _, b := range bodies {
						fake.Publish(full, b, nil)
					}
				},
				Lanes: lanes, Keeps: true, Exclusive: true, Takes: true, IDs: true, Enqueued: true, Unproven: true,
				Stop:  func() { proxy.Set(servers.Faults{Refuse: true}); proxy.Cut() },
				Start: func() { proxy.Set(servers.Faults{}) },
				Hang: func() func() {
					proxy.Set(servers.Faults{Silent: true})
					return func() { proxy.Set(servers.Faults{}) }
				},
				// A message on its way over a connection that is lost comes again when its deadline is over.
				Within: time.Minute,
				Broken: []conform.Broken{
					{Name: "nothing of that name", Inject: inject(here, "nobody-made-this"), Sink: listen(here, "nobody-made-this"), Class: conn.Missing},
					{Name: "nobody listens", Inject: inject(nobody, topic), Sink: listen(nobody, subscription), Class: conn.Network},
				},
			}
		},
	}
}
