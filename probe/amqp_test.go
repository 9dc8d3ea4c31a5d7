package probe

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/goleak"

	"github.com/lag-monitor/lag-monitor/internal/conn"
	"github.com/lag-monitor/lag-monitor/internal/servers"
)

// What is wrong in the settings is said of the key that is wrong.
func TestAMQPConfig(t *testing.T) {
	for _, row := range []struct {
		change func(c *AMQPConfig)
		want   string // "" is good
	}{
		{func(*AMQPConfig) {}, ""},
		{func(c *AMQPConfig) { c.Exchange, c.RoutingKey = "x", Template{} }, ""},
		{func(c *AMQPConfig) { c.RoutingKey = Template{} }, "routing_key: is required without an exchange: the name of the queue to inject into"},
		{func(c *AMQPConfig) { c.RoutingKey = MustTemplate(strings.Repeat("k", 256)) }, "routing_key: is longer than 255 bytes"},
		{func(c *AMQPConfig) { c.Exchange = strings.Repeat("x", 256) }, "exchange: is longer than 255 bytes"},
		{func(c *AMQPConfig) { c.Headers = map[string]Template{"traceparent": MustTemplate("1")} },
			`headers: "traceparent" is not a header that can be set: 1 to 255 bytes, not lag-monitor-heartbeat, not traceparent`},
		{func(c *AMQPConfig) { c.Priority = 256 }, "priority: 256 is not from 0 to 255"},
		{func(c *AMQPConfig) { c.Broker.URL = "kafka://h" }, `url: "kafka://h" is not an address such as amqp://host:5672/vhost`},
	} {
		c := NewAMQP()
		c.Broker.URL, c.RoutingKey = "amqp://h", MustTemplate("q")
		row.change(c)
		got := ""
		if err := c.Validate(); err != nil {
			got = err.Error()
		}
		if first, _, _ := strings.Cut(got, "\n"); first != row.want {
			t.Errorf("got  %s\nwant %s", first, row.want)
		}
	}
}

// TestAMQP shares one broker between its parts.
func TestAMQP(t *testing.T) {
	servers.Need(t)
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) })
	r := servers.RabbitMQ(t, servers.RabbitMQOptions{TLS: true, Users: []servers.RabbitMQUser{{Name: servers.KafkaUser, Password: "unused", Write: ".*"}}})
	c, err := amqp.Dial(r.URL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	ch, err := c.Channel()
	if err != nil {
		t.Fatal(err)
	}
	queue := func(t *testing.T, name string, args amqp.Table) {
		t.Helper()
		if _, err := ch.QueueDeclare(name, true, false, false, false, args); err != nil {
			t.Fatal(err)
		}
	}
	open := func(t *testing.T, addr string, change func(c *AMQPConfig)) Injector {
		t.Helper()
		c := NewAMQP()
		c.Broker.URL = "amqp://" + addr
		change(c)
		if err := c.Validate(); err != nil {
			t.Fatal(err)
		}
		in, err := c.Open()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := in.Close(); err != nil {
				t.Error(err)
			}
		})
		return in
	}
	to := func(queue string) func(c *AMQPConfig) {
		return func(c *AMQPConfig) { c.RoutingKey = MustTemplate(queue) }
	}
	const soon = 10 * time.Second
	refused := func(t *testing.T, err error, class conn.Class, text string) {
		t.Helper()
		if !IsRefused(err) || conn.ClassOf(err) != class || !strings.Contains(err.Error(), text) {
			t.Errorf("refused %t, class %s, %v; want it refused with class %s and %q", IsRefused(err), conn.ClassOf(err), err, class, text)
		}
	}

	t.Run("message", func(t *testing.T) {
		queue(t, "message", nil)
		in := open(t, r.Addr, func(c *AMQPConfig) {
			to("message")(c)
			c.Headers = map[string]Template{"kind": MustTemplate("beat of {{ .Probe }}")}
			c.Priority, c.Body = 5, MustTemplate("beat {{ .Token }}")
		})
		m := *Sample()
		m.TTL = 90 * time.Second
		if err := in.Inject(t.Context(), &m); err != nil {
			t.Fatal(err)
		}
		d, ok, err := ch.Get("message", true)
		if err != nil || !ok {
			t.Fatal(ok, err)
		}
		want := amqp.Table{Header: m.Token, TraceHeader: m.TraceParent, "kind": "beat of " + m.Probe}
		if fmt.Sprint(d.Headers) != fmt.Sprint(want) {
			t.Errorf("headers %v; want %v", d.Headers, want)
		}
		if string(d.Body) != "beat "+m.Token || d.DeliveryMode != amqp.Persistent || d.Priority != 5 || d.Expiration != "90000" ||
			d.ContentType != "application/json" || d.MessageId != m.TraceParent || d.AppId != "lag-monitor" || d.Timestamp.Unix() != m.Sent.Unix() {
			t.Errorf("got %+v", d)
		}
	})
	t.Run("not routed", func(t *testing.T) {
		refused(t, inject(t, open(t, r.Addr, to("nowhere")), soon), conn.Missing, "queue nowhere: the message came back: 312 NO_ROUTE")
		in := open(t, r.Addr, func(c *AMQPConfig) { to("nowhere")(c); c.Mandatory = false })
		if err := inject(t, in, soon); err != nil {
			t.Errorf("although it need not be routed: %v", err)
		}
	})
	t.Run("not routed among others", func(t *testing.T) {
		queue(t, "lane0", nil)
		in := open(t, r.Addr, to("lane{{ .Lane }}"))
		var all sync.WaitGroup
		for n := range 200 {
			all.Go(func() {
				m := *Sample()
				m.Lane, m.TraceParent = uint32(n%2), fmt.Sprint("trace ", n)
				err := in.Inject(t.Context(), &m)
				if (err != nil) != (n%2 == 1) || err != nil && !IsRefused(err) {
					t.Errorf("message %d: %v", n, err)
				}
			})
		}
		all.Wait()
	})
	t.Run("full", func(t *testing.T) {
		queue(t, "full", amqp.Table{"x-max-length": int64(1), "x-overflow": "reject-publish"})
		in := open(t, r.Addr, to("full"))
		var err error
		for range 3 {
			err = errors.Join(err, inject(t, in, soon))
		}
		refused(t, err, conn.Other, "queue full: the broker does not take the message")
		if _, err := ch.QueuePurge("full", false); err != nil {
			t.Fatal(err)
		}
		if err := inject(t, in, soon); err != nil {
			t.Errorf("when there is room again: %v", err)
		}
	})
	t.Run("blocked", func(t *testing.T) {
		queue(t, "blocked", nil)
		in := open(t, r.Addr, to("blocked"))
		if err := inject(t, in, soon); err != nil {
			t.Fatal(err)
		}
		heal := r.MemoryAlarm()
		// The alarm stops this connection a moment after it is raised.
		taken := 1
		var err error
		for deadline := time.Now().Add(soon); time.Now().Before(deadline); taken++ {
			if err = inject(t, in, time.Second); err != nil {
				break
			}
		}
		if err == nil || IsRefused(err) || conn.ClassOf(err) != conn.Throttle {
			t.Errorf("the first: %v", err)
		}
		began := time.Now()
		refused(t, inject(t, in, soon), conn.Throttle, "the broker takes no messages: low on memory")
		if took := time.Since(began); took > soon/2 {
			t.Errorf("the second took %s", took)
		}
		heal()
		var last error
		for deadline := time.Now().Add(soon); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
			if last = inject(t, in, soon); last == nil {
				break
			}
		}
		if last != nil {
			t.Errorf("when there is room again: %v", last)
		}
		// The one of which nobody knew was on its way.
		if q, err := ch.QueueDeclarePassive("blocked", true, false, false, false, nil); err != nil || q.Messages != taken+2 {
			t.Errorf("%d messages, %v; want %d", q.Messages, err, taken+2)
		}
	})
	t.Run("answer lost", func(t *testing.T) {
		queue(t, "lost", nil)
		p := servers.Proxy(t, r.Addr)
		in := open(t, p.Addr, to("lost"))
		if err := inject(t, in, soon); err != nil {
			t.Fatal(err)
		}
		p.Set(servers.Faults{SilentDown: true})
		if err := inject(t, in, 300*time.Millisecond); err == nil || IsRefused(err) || conn.ClassOf(err) != conn.Network {
			t.Errorf("without an answer: %v", err)
		}
		p.Set(servers.Faults{})
		if err := inject(t, in, soon); err != nil {
			t.Errorf("when the broker answers again: %v", err)
		}
	})
	t.Run("tls", func(t *testing.T) {
		queue(t, "tls", nil)
		secure := func(change func(c *AMQPConfig)) Injector {
			return open(t, r.Addr, func(c *AMQPConfig) {
				to("tls")(c)
				c.Broker.URL, c.Broker.TLS = "amqps://"+r.TLSAddr, &conn.TLS{CAFile: r.TLS.CA}
				change(c)
			})
		}
		if err := inject(t, secure(func(*AMQPConfig) {}), soon); err != nil {
			t.Error(err)
		}
		external := secure(func(c *AMQPConfig) {
			c.Broker.External, c.Broker.TLS.CertFile, c.Broker.TLS.KeyFile = true, r.TLS.ClientCert, r.TLS.ClientKey
		})
		if err := inject(t, external, soon); err != nil {
			t.Errorf("with a certificate: %v", err)
		}
		refused(t, inject(t, secure(func(c *AMQPConfig) { c.Broker.TLS = nil }), soon), conn.Auth, "certificate")
	})
	t.Run("second broker", func(t *testing.T) {
		queue(t, "second", nil)
		in := open(t, servers.FreeAddr(t)+",amqp://"+r.Addr+"/%2F", to("second"))
		if err := inject(t, in, soon); err != nil {
			t.Error(err)
		}
	})
	t.Run("password", func(t *testing.T) {
		const wrong = "hunter2 hunter2"
		in := open(t, r.Addr, func(c *AMQPConfig) {
			to("second")(c)
			c.Broker.Username, c.Broker.Password = "guest", secretFile(t, wrong)
		})
		err := inject(t, in, soon)
		refused(t, err, conn.Auth, "ACCESS_REFUSED")
		if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("the password is in the error: %v", err)
		}
	})
	t.Run("exchange vanishes", func(t *testing.T) {
		if err := ch.ExchangeDeclare("vanishes", amqp.ExchangeFanout, false, false, false, false, nil); err != nil {
			t.Fatal(err)
		}
		queue(t, "vanished", nil)
		bind := func() {
			t.Helper()
			if err := ch.QueueBind("vanished", "", "vanishes", false, nil); err != nil {
				t.Fatal(err)
			}
		}
		bind()
		in := open(t, r.Addr, func(c *AMQPConfig) { c.Exchange = "vanishes" })
		if err := inject(t, in, soon); err != nil {
			t.Fatal(err)
		}
		if err := ch.ExchangeDelete("vanishes", false, false); err != nil {
			t.Fatal(err)
		}
		refused(t, inject(t, in, soon), conn.Missing, "no exchange 'vanishes'")
		if err := ch.ExchangeDeclare("vanishes", amqp.ExchangeFanout, false, false, false, false, nil); err != nil {
			t.Fatal(err)
		}
		bind()
		if err := inject(t, in, soon); err != nil {
			t.Errorf("when it is there again: %v", err)
		}
	})
	t.Run("check", func(t *testing.T) {
		for name, want := range map[string]bool{"second": true, "nowhere": false} {
			ctx, cancel := context.WithTimeout(t.Context(), soon)
			if err := open(t, r.Addr, to(name)).(Checker).Check(ctx); (err == nil) != want {
				t.Errorf("%s: %v", name, err)
			}
			cancel()
		}
	})
}
