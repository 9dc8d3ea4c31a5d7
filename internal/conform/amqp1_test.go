package conform_test

import (
	"strings"
	"testing"

	"github.com/lag-monitor/lag-monitor/internal/conform"
	"github.com/lag-monitor/lag-monitor/internal/conn"
	"github.com/lag-monitor/lag-monitor/internal/servers"
	"github.com/lag-monitor/lag-monitor/probe"
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
