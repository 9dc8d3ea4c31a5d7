package conform_test

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/lag-monitor/lag-monitor/internal/conform"
	"github.com/lag-monitor/lag-monitor/internal/conn"
	"github.com/lag-monitor/lag-monitor/internal/servers"
	"github.com/lag-monitor/lag-monitor/probe"
	"github.com/lag-monitor/lag-monitor/sinks"
)

// amqp1Harness is an exchange of RabbitMQ to which AMQP 1.0 sends, and on which the sink amqp listens.
func amqp1Harness(r *servers.RabbitMQServer) conform.Harness {
	h := rabbitHarness(r, "")
	h.Variant, h.InjectKind, h.InjectorNeeds = "amqp1", "amqp1", []string{"url", "address"}
	base := h.New
	h.New = func(t *testing.T) conform.Pipeline {
		p := base(t)
		old := p.Inject().(*probe.AMQPConfig)
		inject := func(change func(c *probe.AMQP1Config)) func() probe.Config {
			return func() probe.Config {
				c := probe.NewAMQP1()
				c.Broker = conn.AMQP1{URL: old.Broker.URL, Username: old.Broker.Username, Password: old.Broker.Password}
				c.Address, c.Subject = "/exchange/"+old.Exchange, old.RoutingKey
				change(c)
				return c
			}
		}
		p.Inject = inject(func(*probe.AMQP1Config) {})
		var broken []conform.Broken
		for _, b := range p.Broken {
			switch b.Name {
			case "wrong password": // RabbitMQ thinks about it for 3 s: see the tests of package probe
				continue
			case "no such queue", "not routed": // RabbitMQ 3 accepts what no queue takes
				continue
			case "no such virtual host":
				b.Class = conn.Auth // it does not tell who may not know
			case "may not publish":
				b.Unknown = true // it ends the session and settles nothing
			}
			if b.Inject == nil {
				continue
			}
			was := b.Inject().(*probe.AMQPConfig)
			b.Sink = nil
			b.Inject = inject(func(c *probe.AMQP1Config) {
				host, vhost, deeper := strings.Cut(strings.TrimPrefix(was.Broker.URL, "amqp://"), "/")
				c.Broker = conn.AMQP1{URL: "amqp://" + host, Username: was.Broker.Username, Password: was.Broker.Password}
				if deeper {
					c.Broker.Hostname = "vhost:" + vhost
				}
				c.Address, c.Subject = "/exchange/"+was.Exchange, was.RoutingKey
			})
			broken = append(broken, b)
		}
		p.Broken = broken
		return p
	}
	return h
}

// amqp1Links are both ends in AMQP 1.0: variant "queue" is one that is the sink's, variant "copy" an exchange, of which
// each link gets a copy. What others put in comes over the other protocol.
func amqp1Links(r *servers.RabbitMQServer, variant string) conform.Harness {
	var made atomic.Int32
	h := amqp1Harness(r)
	h.Kind, h.Variant, h.InjectKind, h.SinkNeeds = "amqp1", variant, "", []string{"url", "queue"}
	base := h.New
	h.New = func(t *testing.T) conform.Pipeline {
		p := base(t)
		in := p.Inject().(*probe.AMQP1Config)
		exchange := strings.TrimPrefix(in.Address, "/exchange/")
		queue := fmt.Sprintf("links-%d", made.Add(1))
		if variant == "queue" {
			rabbitDirect(t, r, func(ch *amqp.Channel) error {
				if _, err := ch.QueueDeclare(queue, true, false, false, false, amqp.Table{amqp.QueueTypeArg: amqp.QueueTypeQuorum}); err != nil {
					return err
				}
				return ch.QueueBind(queue, "orders.#", exchange, false, nil)
			})
		}
		listen := func(change func(c *sinks.AMQP1Config)) func() sinks.Config {
			return func() sinks.Config {
				c := sinks.NewAMQP1()
				c.Broker = in.Broker
				if variant == "queue" {
					c.Queue, c.Dedicated = "/amq/queue/"+queue, true
				} else {
					c.Address, c.Marker = "/exchange/"+exchange+"/orders.#", "/exchange/"+exchange+"/orders.marker"
				}
				change(c)
				return c
			}
		}
		p.Sink = listen(func(*sinks.AMQP1Config) {})
		p.Keeps, p.Exclusive = variant == "queue", variant == "queue"
		p.Within = time.Minute
		for i := range p.Broken {
			switch b := &p.Broken[i]; b.Name {
			case "nobody listens":
				b.Sink = listen(func(c *sinks.AMQP1Config) { c.Broker.URL = "amqp://" + freeAddr(t) })
			case "no such virtual host":
				b.Sink = listen(func(c *sinks.AMQP1Config) { c.Broker.Hostname = "vhost:nowhere" })
			case "may not publish":
				b.Sink = listen(func(c *sinks.AMQP1Config) { c.Broker.Username = "w" })
			case "no such exchange or queue":
				b.Sink = listen(func(c *sinks.AMQP1Config) {
					if c.Queue = "/amq/queue/nowhere"; variant == "copy" {
						c.Queue, c.Address = "", "/exchange/nowhere/#"
					}
				})
			}
		}
		return p
	}
	return h
}
