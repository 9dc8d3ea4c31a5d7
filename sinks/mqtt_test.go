package sinks

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/paho"
	"github.com/eclipse/paho.golang/paho/session/state"

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
		{func(c *MQTTConfig) { c.Topic = "#" }, ""},
		{func(c *MQTTConfig) { c.Topic, c.Dedicated = "$share/g/orders/+/done", true }, ""},
		{func(c *MQTTConfig) { c.SessionExpiry = conn.Duration(time.Hour) }, ""},
		{func(c *MQTTConfig) { c.Broker.URL = "mqtt://a,mqtts://b:1" }, ""},
		{func(c *MQTTConfig) { c.Topic = "" }, "topic: is required: such as orders/+/done or orders/#"},
		{func(c *MQTTConfig) { c.Topic = "orders/#/x" }, `topic: "orders/#/x": # stands at the end only`},
		{func(c *MQTTConfig) { c.Topic = "orders/new+" }, `topic: "orders/new+": a wildcard stands alone between slashes`},
		{func(c *MQTTConfig) { c.Topic = "$share/g" }, `topic: "$share/g" is not a shared subscription such as $share/group/orders/#`},
		{func(c *MQTTConfig) { c.Topic = "$share/g/orders" }, "topic: who shares a subscription takes messages from the others: leave out $share/GROUP/ for a copy of each message, or set dedicated: true if nobody else is in the group"},
		{func(c *MQTTConfig) { c.Dedicated = true }, "dedicated: goes with a topic that begins with $share/: any other subscription takes nothing from anybody"},
		{func(c *MQTTConfig) { c.QoS = 3 }, "qos: 3 is not 0, 1 or 2"},
		{func(c *MQTTConfig) { c.QoS, c.SessionExpiry = 0, conn.Duration(time.Hour) }, "qos: a broker keeps no message of QoS 0 for a session: 1 or 2 with session_expiry"},
		{func(c *MQTTConfig) { c.SessionExpiry = conn.Duration(time.Second) }, "session_expiry: 1s is not 0, and not a number of whole seconds from 10s to 7d"},
		{func(c *MQTTConfig) { c.QueueLimit = 99 }, "queue_limit: 99 is not 0, and less than 100"},
		{func(c *MQTTConfig) { c.MarkerTopic = "a/#" }, `marker_topic: "a/#" is not a topic such as lag-monitor`},
		{func(c *MQTTConfig) { c.ClientID = "a/b" }, "client_id: has up to 1000 bytes, and none of / # +"},
		{func(c *MQTTConfig) { c.Broker.URL = "amqp://h" }, `url: "amqp://h" is not an address such as mqtt://host:1883`},
		{func(c *MQTTConfig) { c.Broker.URL = "mqtt://u:p@h" }, "url: holds a user name: use username and password, so that the password is not in the file"},
		{func(c *MQTTConfig) { c.Broker.KeepAlive = conn.Duration(1500 * time.Millisecond) }, "keep_alive: 1.5s is not a number of whole seconds from 2s to 1h"},
		{func(c *MQTTConfig) { c.Broker.Password = conn.Secret{Env: "P"} }, "username: password needs a username"},
		{func(c *MQTTConfig) { c.Broker.TLS = &conn.TLS{} }, "tls: is for addresses that begin with mqtts://"},
	} {
		c := NewMQTT()
		c.Broker.URL, c.Topic = "mqtt://h", "orders/+"
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

// mqttRig is a sink behind a proxy, and a client beside it.
type mqttRig struct {
	rig
	m     *servers.MosquittoServer
	proxy *servers.FaultProxy
	cfg   *MQTTConfig
}

func onMQTT(t *testing.T, opts servers.MosquittoOptions, configure func(*MQTTConfig)) *mqttRig {
	t.Helper()
	r := &mqttRig{rig: rig{t: t}, m: servers.Mosquitto(t, opts), cfg: NewMQTT()}
	r.proxy = servers.Proxy(t, r.m.Addr)
	r.cfg.Broker.URL, r.cfg.Topic = "mqtt://"+r.proxy.Addr, "orders/#"
	r.cfg.Broker.KeepAlive = conn.Duration(time.Minute) // a busy machine answers a ping late
	configure(r.cfg)
	r.config = r.cfg
	r.open()
	return r
}

// direct makes a connection of the test's own.
func (r *mqttRig) direct(s conn.MQTTSession) *conn.MQTTLink {
	r.t.Helper()
	broker := conn.NewMQTT()
	broker.URL, broker.KeepAlive = "mqtt://"+r.m.Addr, conn.Duration(time.Minute)
	if s.ClientID == "" {
		s.ClientID = conn.MQTTClientID("test")
	}
	l, err := broker.Connect(r.t.Context(), s)
	if err != nil {
		r.t.Fatal(err)
	}
	return l
}

// publish publishes heartbeats.
func (r *mqttRig) publish(qos byte, retain bool, seqs ...int) {
	r.t.Helper()
	l := r.direct(conn.MQTTSession{})
	defer l.Close()
	for _, n := range seqs {
		if _, err := l.Publish(r.t.Context(), &paho.Publish{Topic: "orders/done", QoS: qos, Retain: retain, Payload: []byte(tokenOf(uint64(n)))}); err != nil {
			r.t.Fatal(err)
		}
	}
	if err := l.Ping(r.t.Context()); err != nil {
		r.t.Fatal(err)
	}
}

func keptFor(d time.Duration) func(*MQTTConfig) {
	return func(c *MQTTConfig) { c.SessionExpiry = conn.Duration(d) }
}

// A message that was retained before the sink came is not of now; one that is retained while it listens is.
func TestMQTTRetained(t *testing.T) {
	t.Parallel()
	r := onMQTT(t, servers.MosquittoOptions{}, func(*MQTTConfig) {})
	r.publish(1, true, 1)
	r.run()
	r.publish(1, true, 2)
	r.want(nil, 2)
	r.stop()
}

// Without a session nothing is kept, and that is said.
func TestMQTTDisconnected(t *testing.T) {
	t.Parallel()
	r := onMQTT(t, servers.MosquittoOptions{}, func(*MQTTConfig) {})
	r.run()
	r.publish(1, false, 1)
	r.want(nil, 1)
	r.stop()
	r.publish(1, false, 2)
	r.run()
	r.publish(1, false, 3)
	r.want([]string{"disconnected"}, 1, 3)
	r.stop()
}

// A session keeps what comes while the sink is away. Nothing is missing then, unless it came with QoS 0.
func TestMQTTSession(t *testing.T) {
	t.Parallel()
	r := onMQTT(t, servers.MosquittoOptions{}, keptFor(time.Hour))
	r.run()
	r.publish(1, false, 1)
	r.want(nil, 1)
	r.stop()
	r.publish(2, false, 2)
	r.run()
	r.want(nil, 1, 2)
	r.publish(0, false, 3)
	r.want(nil, 1, 2, 3)
	r.stop()
	r.run()
	r.want([]string{"not_kept"}, 1, 2, 3)
	r.stop()
	// Nobody knows with which QoS they come now.
	r.run()
	r.publish(1, false, 4)
	r.want([]string{"not_kept", "not_kept"}, 1, 2, 3, 4)
	r.stop()
	r.run()
	r.want([]string{"not_kept", "not_kept"}, 1, 2, 3, 4)
	r.stop()
}

// The next process goes on with the session, and says what it cannot know.
func TestMQTTRestarted(t *testing.T) {
	t.Parallel()
	r := onMQTT(t, servers.MosquittoOptions{}, keptFor(time.Hour))
	r.run()
	r.stop()
	pos := r.sink.(Resumer).Position()
	r.publish(1, false, 1)
	r.open()
	r.sink.(Resumer).Resume(pos)
	r.run()
	r.want([]string{"restarted"}, 1)
	r.stop()
	// A session of another filter would bring what nobody wants.
	r.cfg.Topic = "orders/other"
	r.open()
	r.sink.(Resumer).Resume(pos)
	if got := r.sink.(Resumer).Position(); len(got) != 0 {
		t.Errorf("a sink on another topic goes on with the session %v", got)
	}
}

// A broker that has forgotten the session has forgotten what was in it.
func TestMQTTSessionLost(t *testing.T) {
	t.Parallel()
	r := onMQTT(t, servers.MosquittoOptions{}, keptFor(time.Hour))
	r.run()
	r.publish(1, false, 1)
	r.want(nil, 1)
	r.stop()
	r.m.Kill()
	r.m.Start()
	r.run()
	r.want([]string{"session_lost"}, 1)
	r.stop()
}

// A session that the broker has begun is there at the next connection, though the sink was not ready on the first.
func TestMQTTSessionLostBefore(t *testing.T) {
	t.Parallel()
	r := onMQTT(t, servers.MosquittoOptions{}, keptFor(time.Hour))
	r.run()
	r.publish(1, false, 1)
	r.want(nil, 1)
	r.stop()
	r.m.Kill()
	r.m.Start()
	good := r.cfg.Topic
	r.cfg.Topic = "#/not/valid" // ends the connection behind the login
	r.begin()
	if err := r.ended(); err == nil {
		t.Error("the broker has granted a filter that is not valid")
	}
	r.cfg.Topic = good
	r.run()
	r.want([]string{"session_lost"}, 1)
	r.stop()
}

// The second copy of a marker, which the sink's own filter brings, is not in the way of the next marker.
func TestMQTTMarkerTwice(t *testing.T) {
	t.Parallel()
	w := &mqttWork{marker: "m/id", nonce: "n ", back: make(chan mqttMarker, 1)}
	come := func(payload string) { w.received(&paho.Publish{Topic: w.marker, Payload: []byte(payload)}) }
	come("n 1")
	if m := <-w.back; m.number != 1 {
		t.Fatalf("marker %d came", m.number)
	}
	for _, payload := range []string{"n 1", "n 2", "n 2"} {
		come(payload)
	}
	if m := <-w.back; m.number != 2 {
		t.Errorf("marker %d came, want 2", m.number)
	}
}

// What the broker may have thrown away is told by the next Run, when the one that has read the full queue did not get its
// marker: the broker had no room for that either.
func TestMQTTOverflowBefore(t *testing.T) {
	t.Parallel()
	r := onMQTT(t, servers.MosquittoOptions{
		Config: "max_queued_messages 100", ACL: "topic readwrite orders/#\ntopic readwrite lag-monitor/#\ntopic write unread/#\n",
	}, func(c *MQTTConfig) { c.SessionExpiry, c.QueueLimit = conn.Duration(time.Hour), 100 })
	r.run()
	r.publish(1, false, 1)
	r.want(nil, 1)
	r.stop()
	for n := 2; n < 150; n++ {
		r.publish(1, false, n)
	}
	good := r.cfg.MarkerTopic
	r.cfg.MarkerTopic = "unread"
	r.begin()
	if err := r.ended(); err == nil {
		t.Error("the marker has come")
	}
	if n := len(r.arrived()); n < 50 || n >= 149 {
		t.Fatalf("%d heartbeats arrived: the queue was not full, or not read", n)
	}
	r.cfg.MarkerTopic = good
	r.run()
	r.stop()
	r.mu.Lock()
	defer r.mu.Unlock()
	if !slices.Contains(r.gaps, "overflow") {
		t.Errorf("gaps %q, want overflow", r.gaps)
	}
}

// A broker throws away what a client's queue cannot hold, and tells nobody.
func TestMQTTOverflow(t *testing.T) {
	t.Parallel()
	r := onMQTT(t, servers.MosquittoOptions{Config: "max_queued_messages 100"}, func(c *MQTTConfig) {
		c.SessionExpiry, c.QueueLimit = conn.Duration(time.Hour), 100
	})
	r.run()
	r.publish(1, false, 1)
	r.want(nil, 1)
	r.stop()
	for n := 2; n < 150; n++ {
		r.publish(1, false, n)
	}
	r.run()
	r.settle()
	r.stop()
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.seqs) >= 149 {
		t.Fatalf("%d heartbeats arrived: the broker has thrown away none", len(r.seqs))
	}
	if len(r.gaps) == 0 || r.gaps[0] != "overflow" {
		t.Errorf("%d of 149 heartbeats arrived; gaps %q, want overflow", len(r.seqs), r.gaps)
	}
}

// What was delivered and not acknowledged comes again, and is not taken for a duplicate of the pipeline's.
func TestMQTTRedelivered(t *testing.T) {
	t.Parallel()
	for qos := range 2 {
		t.Run(fmt.Sprint("QoS ", qos+1), func(t *testing.T) {
			r := onMQTT(t, servers.MosquittoOptions{}, func(c *MQTTConfig) {
				c.SessionExpiry, c.QoS = conn.Duration(time.Hour), qos+1
			})
			r.run()
			r.publish(2, false, 1)
			r.want(nil, 1)
			r.proxy.Set(servers.Faults{SilentUp: true})
			r.publish(2, false, 2)
			r.eventually("delivered", func() bool { return slices.Contains(r.arrived(), 2) })
			r.proxy.Cut()
			if err := r.ended(); conn.ClassOf(err) != conn.Network {
				t.Errorf("Run: %v; want an error of class network", err)
			}
			r.proxy.Set(servers.Faults{})
			r.publish(2, false, 2) // the pipeline's own
			r.run()
			r.want(nil, 1, 2, 2)
			r.stop()
		})
	}
}

// Two sinks with one client id end each other's connections.
func TestMQTTTakenOver(t *testing.T) {
	t.Parallel()
	r := onMQTT(t, servers.MosquittoOptions{}, func(c *MQTTConfig) { c.ClientID = "one" })
	r.run()
	l := r.direct(conn.MQTTSession{ClientID: "one"})
	defer l.Close()
	if err := r.ended(); conn.ClassOf(err) != conn.Network {
		t.Errorf("Run: %v", err) // Mosquitto does not tell why
	}
	// Who listens beside it leaves it alone.
	twin, err := Beside(r.cfg)
	if err != nil {
		t.Fatal(err)
	}
	if c := twin.(*MQTTConfig); c.ClientID != "" || c.SessionExpiry != 0 {
		t.Errorf("the twin has the client id %q", c.ClientID)
	}
}

// Who takes over a session takes what was in it, and the sink that comes back says so.
func TestMQTTSessionTakenOver(t *testing.T) {
	t.Parallel()
	r := onMQTT(t, servers.MosquittoOptions{}, func(c *MQTTConfig) { c.ClientID, c.SessionExpiry = "one", conn.Duration(time.Hour) })
	// other takes over the session until it has answered what was published before.
	other := func() (leave func()) {
		ended := make(chan struct{}, 2)
		l := r.direct(conn.MQTTSession{ClientID: "one", Expiry: time.Hour, State: state.NewInMemory(), Received: func(p *paho.Publish) {
			if string(p.Payload) == "end" {
				ended <- struct{}{}
			}
		}})
		return func() {
			defer l.Close()
			if _, err := l.Publish(t.Context(), &paho.Publish{Topic: "orders/done", QoS: 1, Payload: []byte("end")}); err != nil {
				t.Fatal(err)
			}
			<-ended
		}
	}
	r.run()
	r.publish(1, false, 1)
	r.want(nil, 1)
	// It takes what comes from now on.
	leave := other()
	if err := r.ended(); conn.ClassOf(err) != conn.Network {
		t.Errorf("Run: %v", err)
	}
	r.publish(1, false, 2)
	leave()
	r.run()
	r.want([]string{"taken_over"}, 1)
	// It takes what had come while the sink was away.
	r.stop()
	r.publish(1, false, 3)
	other()()
	r.run()
	r.want([]string{"taken_over", "taken_over"}, 1)
	// Who is back without it having been taken over has missed nothing.
	r.proxy.Cut()
	if err := r.ended(); conn.ClassOf(err) != conn.Network {
		t.Errorf("Run: %v", err)
	}
	r.publish(1, false, 4)
	r.run()
	r.want([]string{"taken_over", "taken_over"}, 1, 4)
	r.m.Stop()
	if err := r.ended(); conn.ClassOf(err) != conn.Network {
		t.Errorf("Run: %v", err)
	}
	r.m.Start()
	r.run()
	r.want([]string{"taken_over", "taken_over"}, 1, 4)
	r.stop()
}

// A marker needs its permissions, and their lack is told apart from a broker that hangs.
func TestMQTTMarkerPermissions(t *testing.T) {
	t.Parallel()
	for acl, want := range map[string]struct {
		text  string
		class conn.Class
	}{
		"topic read #\n": {"the sink has to publish to it", conn.Auth},
		"topic read orders/#\ntopic write lag-monitor/#\n": {"the sink has to be allowed to read it", conn.Network},
	} {
		r := onMQTT(t, servers.MosquittoOptions{ACL: acl}, func(*MQTTConfig) {})
		r.begin()
		err := r.ended()
		if err == nil || !strings.Contains(err.Error(), want.text) || conn.ClassOf(err) != want.class {
			t.Errorf("%q: Run: %v (class %s); want %q of class %s", acl, err, conn.ClassOf(err), want.text, want.class)
		}
		if r.ready > 0 || !r.caughtUp.IsZero() {
			t.Errorf("%q: the sink was ready without its marker", acl)
		}
	}
}

// The proof of being caught up rests on this: whatever the broker has taken from anybody, with whatever QoS and on
// whatever topic, it sends to a client before a marker that it takes later, however long the queue is.
func TestMQTTMarkerComesLast(t *testing.T) {
	t.Parallel()
	r := onMQTT(t, servers.MosquittoOptions{Config: "max_queued_messages 100000"}, func(*MQTTConfig) {})
	for _, qos := range []byte{0, 1, 2} {
		var got, first atomic.Int64
		at := make(chan int64, 1)
		l := r.direct(conn.MQTTSession{ReceiveMaximum: 2, Received: func(p *paho.Publish) {
			if p.Topic == "marker" {
				at <- got.Load()
				return
			}
			if got.Add(1) == 1 {
				first.Store(time.Now().UnixNano())
			}
		}})
		if _, err := l.Subscribe(t.Context(), &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: "orders/#", QoS: qos}, {Topic: "marker", QoS: qos}}}); err != nil {
			t.Fatal(err)
		}
		const each = 200
		var publishers sync.WaitGroup
		for p := range 6 {
			publishers.Go(func() {
				own := r.direct(conn.MQTTSession{})
				defer own.Close()
				for n := range each {
					m := &paho.Publish{Topic: fmt.Sprintf("orders/%d/%d", p, n%3), QoS: byte(p % 3), Payload: make([]byte, 500)}
					if _, err := own.Publish(t.Context(), m); err != nil {
						t.Error(err)
						return
					}
				}
				if err := own.Ping(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		publishers.Wait()
		if _, err := l.Publish(t.Context(), &paho.Publish{Topic: "marker", QoS: 1}); err != nil {
			t.Fatal(err)
		}
		select {
		case n := <-at:
			if n != 6*each {
				t.Errorf("QoS %d: the marker came behind %d messages of %d", qos, n, 6*each)
			}
		case <-time.After(time.Minute):
			t.Errorf("QoS %d: the marker did not come", qos)
		}
		l.Close()
	}
}

// Both ends log in with a certificate.
func TestMQTTCertificate(t *testing.T) {
	t.Parallel()
	m := servers.Mosquitto(t, servers.MosquittoOptions{TLS: true})
	for name, row := range map[string]struct {
		tls  conn.TLS
		good bool
	}{
		"with":              {conn.TLS{CAFile: m.TLS.CA, CertFile: m.TLS.ClientCert, KeyFile: m.TLS.ClientKey}, true},
		"without":           {conn.TLS{CAFile: m.TLS.CA}, false},
		"unknown authority": {conn.TLS{CertFile: m.TLS.ClientCert, KeyFile: m.TLS.ClientKey}, false},
	} {
		c := NewMQTT()
		c.Broker.URL, c.Broker.TLS, c.Topic = "mqtts://"+m.TLSAddr, &row.tls, "#"
		if err := c.Validate(); err != nil {
			t.Fatal(err)
		}
		s, err := c.Open()
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		if err := s.(Checker).Check(ctx); (err == nil) != row.good {
			t.Errorf("%s certificate: %v", name, err)
		}
		cancel()
	}
}
