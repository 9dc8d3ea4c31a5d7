package probe

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/paho"

	"github.com/lag-monitor/lag-monitor/internal/conn"
	"github.com/lag-monitor/lag-monitor/internal/servers"
)

// What is wrong in the settings is said of the key that is wrong.
func TestMQTTConfig(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		change func(c *MQTTConfig)
		want   string // "" is good
	}{
		{func(*MQTTConfig) {}, ""},
		{func(c *MQTTConfig) { c.Topic = MustTemplate("orders/{{ .Probe }}") }, ""},
		{func(c *MQTTConfig) { c.Topic = Template{} }, "topic: is required: such as orders/new"},
		{func(c *MQTTConfig) { c.Topic = MustTemplate("orders/+") }, `topic: "orders/+" holds a wildcard, to which nothing can be published`},
		{func(c *MQTTConfig) { c.QoS = 3 }, "qos: 3 is not 0, 1 or 2"},
		{func(c *MQTTConfig) { c.ClientIDPrefix = strings.Repeat("x", 101) }, "client_id_prefix: is longer than 100 bytes"},
		{func(c *MQTTConfig) { c.Properties = map[string]Template{"traceparent": MustTemplate("1")} },
			`properties: "traceparent" is not a property that can be set: 1 to 65535 bytes, not lag-monitor-heartbeat, not traceparent`},
		{func(c *MQTTConfig) { c.Body = MustTemplate("none") }, "body: "},
	} {
		c := NewMQTT()
		c.Broker.URL, c.Topic = "mqtt://h", MustTemplate("q")
		row.change(c)
		got := ""
		if err := c.Validate(); err != nil {
			got = err.Error()
		}
		if first, _, _ := strings.Cut(got, "\n"); first != row.want && (row.want != "body: " || !strings.HasPrefix(first, row.want)) {
			t.Errorf("got  %s\nwant %s", first, row.want)
		}
	}
}

func openMQTT(t *testing.T, addr string, change func(c *MQTTConfig)) Injector {
	t.Helper()
	c := NewMQTT()
	c.Broker.URL, c.Topic = "mqtt://"+addr, MustTemplate("orders/new")
	c.Broker.KeepAlive = conn.Duration(time.Minute) // a busy machine answers a ping late
	change(c)
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	in, err := c.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close() })
	return in
}

// listenMQTT returns what comes on orders/#.
func listenMQTT(t *testing.T, addr string) <-chan *paho.Publish {
	t.Helper()
	got := make(chan *paho.Publish, 100)
	broker := conn.NewMQTT()
	broker.URL, broker.KeepAlive = "mqtt://"+addr, conn.Duration(time.Minute)
	l, err := broker.Connect(t.Context(), conn.MQTTSession{ClientID: conn.MQTTClientID("test"), Received: func(p *paho.Publish) { got <- p }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	if _, err := l.Subscribe(t.Context(), &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: "orders/#", QoS: 2, RetainAsPublished: true}}}); err != nil {
		t.Fatal(err)
	}
	return got
}

// mqttMessage is Sample with what a run adds to it.
func mqttMessage(ttl time.Duration) *Message {
	m := *Sample()
	m.TTL, m.TraceParent = ttl, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	return &m
}

// What a message carries: the headers, the time to live rounded up, and no wish to be retained.
func TestMQTTMessage(t *testing.T) {
	t.Parallel()
	m := servers.Mosquitto(t, servers.MosquittoOptions{})
	got := listenMQTT(t, m.Addr)
	for qos := range 3 {
		in := openMQTT(t, m.Addr, func(c *MQTTConfig) {
			c.QoS, c.Properties = qos, map[string]Template{"tenant": MustTemplate("t-{{ .Probe }}")}
		})
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		sent := mqttMessage(90*time.Second + time.Millisecond)
		if err := in.Inject(ctx, sent); err != nil {
			t.Fatal(err)
		}
		var p *paho.Publish
		select {
		case p = <-got:
		case <-ctx.Done():
			t.Fatalf("QoS %d: no message came", qos)
		}
		cancel()
		if int(p.QoS) != qos || p.Retain || p.Topic != "orders/new" || p.Properties.ContentType != "application/json" || !strings.Contains(string(p.Payload), sent.Token) {
			t.Errorf("QoS %d: %+v came", qos, p)
		}
		if e := p.Properties.MessageExpiry; e == nil || *e < 60 || *e > 91 {
			t.Errorf("QoS %d: the message expires after %v s, want 91", qos, e)
		}
		for name, want := range map[string]string{Header: sent.Token, TraceHeader: sent.TraceParent, "tenant": "t-" + sent.Probe} {
			if v := p.Properties.User.GetAll(name); len(v) != 1 || v[0] != want {
				t.Errorf("QoS %d: property %s is %q, want %q", qos, name, v, want)
			}
		}
	}
}

// A message that nobody has subscribed to is an error, unless that is wanted. The broker has taken it, and a rule of its own
// may pass it on.
func TestMQTTMandatory(t *testing.T) {
	t.Parallel()
	m := servers.Mosquitto(t, servers.MosquittoOptions{})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	err := openMQTT(t, m.Addr, func(*MQTTConfig) {}).Inject(ctx, mqttMessage(time.Minute))
	if err == nil || IsRefused(err) || !strings.Contains(err.Error(), "no subscription takes the topic (reason code 0x10)") {
		t.Errorf("mandatory: %v", err)
	}
	if err := openMQTT(t, m.Addr, func(c *MQTTConfig) { c.Mandatory = false }).Inject(ctx, mqttMessage(time.Minute)); err != nil {
		t.Errorf("not mandatory: %v", err)
	}
}

// A connection that is lost between a message and its answer leaves open what became of it, and the next message has a
// new one. Nothing is sent a second time.
func TestMQTTLost(t *testing.T) {
	t.Parallel()
	m := servers.Mosquitto(t, servers.MosquittoOptions{})
	proxy := servers.Proxy(t, m.Addr)
	got := listenMQTT(t, m.Addr)
	for qos := range 2 {
		in := openMQTT(t, proxy.Addr, func(c *MQTTConfig) { c.QoS = qos })
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		if err := in.Inject(ctx, mqttMessage(time.Minute)); err != nil {
			t.Fatal(err)
		}
		<-got
		proxy.Set(servers.Faults{SilentDown: true})
		done := make(chan error, 1)
		go func() { done <- in.Inject(ctx, mqttMessage(time.Minute)) }()
		<-got // the broker has it
		proxy.Cut()
		err := <-done
		if err == nil || IsRefused(err) {
			t.Errorf("QoS %d: %v; want an error that leaves it open", qos, err)
		}
		if conn.ClassOf(err) != conn.Network {
			t.Errorf("QoS %d: %v is of class %s, want network", qos, err, conn.ClassOf(err))
		}
		proxy.Set(servers.Faults{})
		if err := in.Inject(ctx, mqttMessage(time.Minute)); err != nil {
			t.Errorf("QoS %d: after the connection was lost: %v", qos, err)
		}
		<-got
		if n := len(got); n > 0 {
			t.Errorf("QoS %d: %d messages too many", qos, n)
		}
		cancel()
	}
}
