package probe

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	amqp1 "github.com/Azure/go-amqp"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/lag-monitor/lag-monitor/internal/conn"
	"github.com/lag-monitor/lag-monitor/internal/servers"
)

// What is wrong in the settings is said of the key that is wrong.
func TestAMQP1Config(t *testing.T) {
	for _, row := range []struct {
		change func(c *AMQP1Config)
		want   string // "" is good
	}{
		{func(*AMQP1Config) {}, ""},
		{func(c *AMQP1Config) { c.Broker.URL = "amqps://a,amqps://b:1" }, ""},
		{func(c *AMQP1Config) { c.Address = "" }, "address: is required: the queue or topic to send to"},
		{func(c *AMQP1Config) { c.Priority = -1 }, "priority: -1 is not from 0 to 255"},
		{func(c *AMQP1Config) { c.Properties = map[string]Template{Header: MustTemplate("1")} },
			`properties: "lag-monitor-heartbeat" is not a property that can be set: not empty, not lag-monitor-heartbeat, not traceparent`},
		{func(c *AMQP1Config) { c.Broker.URL = "" }, "url: is required: an address such as amqps://host:5671"},
		{func(c *AMQP1Config) { c.Broker.URL = "amqp://h/v" }, `url: "amqp://h/v" has more than a host and a port; a virtual host of RabbitMQ is hostname: vhost:NAME`},
		{func(c *AMQP1Config) { c.Broker.Username = "u" }, "password: username and password go together"},
		{func(c *AMQP1Config) { c.Broker.External = true }, "external: needs tls with a cert_file: the certificate is what logs in"},
		{func(c *AMQP1Config) { c.Broker.TLS = &conn.TLS{} }, "tls: is for addresses that begin with amqps://"},
	} {
		c := NewAMQP1()
		c.Broker.URL, c.Address = "amqp://h", "q"
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

// Each outcome but "accepted" leaves the message outside, with the broker's reason.
func TestAMQP1Outcome(t *testing.T) {
	for _, row := range []struct {
		state amqp1.DeliveryState
		want  string
		class conn.Class
	}{
		{&amqp1.StateAccepted{}, "", conn.Other},
		{&amqp1.StateRejected{}, "rejected, without a reason", conn.Other},
		{&amqp1.StateRejected{Error: &amqp1.Error{Condition: amqp1.ErrCondResourceLimitExceeded, Description: "full"}}, "full", conn.Throttle},
		{&amqp1.StateReleased{}, "released", conn.Missing},
		{&amqp1.StateModified{}, "modified", conn.Other},
	} {
		err := amqp1Outcome(row.state)
		if row.want == "" {
			if err != nil {
				t.Errorf("%T: %v", row.state, err)
			}
		} else if !IsRefused(err) || !strings.Contains(err.Error(), row.want) || conn.ClassOf(err) != row.class {
			t.Errorf("%T: %v (class %s); want a refusal with %q of class %s", row.state, err, conn.ClassOf(err), row.want, row.class)
		}
	}
	if err := amqp1Outcome(&amqp1.StateReceived{}); err == nil || IsRefused(err) {
		t.Errorf("a state that is no outcome: %v; want an error that leaves it open", err)
	}
}

// Only what the client itself says of a message that it has not sent is certain.
func TestAMQP1Unsent(t *testing.T) {
	own := &amqp1.Error{Condition: amqp1.ErrCondTransferLimitExceeded}
	for _, row := range []struct {
		err  error
		want bool
	}{
		{own, true},
		{&amqp1.LinkError{RemoteErr: own}, false},
		{&amqp1.SessionError{RemoteErr: own}, false},
		{&amqp1.ConnError{RemoteErr: own}, false},
		{context.DeadlineExceeded, false},
	} {
		if got := unsent(row.err); got != row.want {
			t.Errorf("%T: %t, want %t", row.err, got, row.want)
		}
	}
}

// amqp1Closed is a broker that gives credit for messages and whose session takes none.
func amqp1Closed(c net.Conn) error {
	frame := func(kind, code byte, fields ...byte) []byte {
		count := fields[0]
		body := append([]byte{0x00, 0x53, code, 0xc0, byte(len(fields)), count}, fields[1:]...)
		return append([]byte{0, 0, 0, byte(8 + len(body)), 2, kind, 0, 0}, body...)
	}
	text := func(kind byte, s string) []byte { return append([]byte{kind, byte(len(s))}, s...) }
	const null, zero, yes = 0x40, 0x43, 0x41
	read := func() ([]byte, error) {
		for {
			head := make([]byte, 8)
			if _, err := io.ReadFull(c, head); err != nil || string(head[:4]) == "AMQP" {
				return head, err
			}
			body := make([]byte, binary.BigEndian.Uint32(head)-8)
			if _, err := io.ReadFull(c, body); err != nil || len(body) > 0 {
				return body, err
			}
		}
	}
	var name []byte
	for _, answer := range []func() []byte{
		func() []byte {
			return append([]byte("AMQP\x03\x01\x00\x00"), frame(1, 0x40, append([]byte{1}, text(0xa3, "ANONYMOUS")...)...)...)
		},
		func() []byte { return frame(1, 0x44, 1, 0x50, 0) },
		func() []byte { return []byte("AMQP\x00\x01\x00\x00") },
		func() []byte { return frame(0, 0x10, append([]byte{1}, text(0xa1, "broker")...)...) },
		func() []byte { return frame(0, 0x11, 4, 0x60, 0, 0, zero, zero, 0x52, 100) }, // begin, with a window of 0
		func() []byte {
			target := append([]byte{0x00, 0x53, 0x29, 0xc0, 4, 1}, text(0xa1, "q")...)
			attach := append(append([]byte{7}, name...), zero, yes, 0x50, 0, 0x50, 0, null)
			return append(frame(0, 0x12, append(attach, target...)...),
				frame(0, 0x13, 7, zero, zero, zero, 0x52, 100, zero, zero, 0x52, 10)...) // flow, with credit for 10
		},
	} {
		got, err := read()
		if err != nil {
			return err
		}
		if at := bytes.IndexByte(got, 0xa1); at >= 0 && at+1 < len(got) && at+2+int(got[at+1]) <= len(got) {
			name = got[at : at+2+int(got[at+1])]
		}
		if _, err := c.Write(answer()); err != nil {
			return err
		}
	}
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		_, _ = io.Copy(io.Discard, c)
	}()
	for {
		_, _ = c.Write([]byte{0, 0, 0, 8, 2, 0, 0, 0}) // it lives
		select {
		case <-gone:
			return nil
		case <-time.After(time.Second):
		}
	}
}

// A broker that lives and takes no message does not hold up who sends one.
func TestAMQP1Window(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var broker sync.WaitGroup
	defer broker.Wait()
	defer listener.Close()
	broker.Go(func() {
		c, err := listener.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		if err := amqp1Closed(c); err != nil {
			t.Error(err)
		}
	})
	c := NewAMQP1()
	c.Broker.URL, c.Address = "amqp://"+listener.Addr().String(), "q"
	in, err := c.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if _, err := in.(*amqp1Injector).link.get(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- in.Inject(ctx, mqttMessage(time.Minute)) }()
	select {
	case err := <-done:
		if !errors.Is(err, errAMQP1Held) || IsRefused(err) {
			t.Errorf("%v; want that the broker takes no more messages, which leaves it open", err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("Inject had not returned 25 s after its time")
	}
}

// TestAMQP1 shares one broker between its parts.
func TestAMQP1(t *testing.T) {
	servers.Need(t)
	r := servers.RabbitMQ(t, servers.RabbitMQOptions{TLS: true, AMQP1: true, Users: []servers.RabbitMQUser{{Name: servers.KafkaUser, Password: "unused", Configure: ".*", Write: ".*"}}})
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
	// get takes the next message out of a queue.
	get := func(t *testing.T, name string) amqp.Delivery {
		t.Helper()
		for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
			if d, ok, err := ch.Get(name, true); err != nil {
				t.Fatal(err)
			} else if ok {
				return d
			}
		}
		t.Fatalf("queue %s: no message within a minute", name)
		return amqp.Delivery{}
	}
	open := func(t *testing.T, url string, change func(c *AMQP1Config)) Injector {
		t.Helper()
		c := NewAMQP1()
		c.Broker.URL = url
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
	inject := func(t *testing.T, in Injector) error {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		return in.Inject(ctx, mqttMessage(90*time.Second))
	}

	t.Run("message", func(t *testing.T) {
		queue(t, "message", nil)
		in := open(t, "amqp://"+r.Addr, func(c *AMQP1Config) {
			c.Address, c.Priority = "/exchange/amq.direct", 7
			c.Subject, c.Properties = MustTemplate("key-{{ .Probe }}"), map[string]Template{"tenant": MustTemplate("t-{{ .Probe }}")}
		})
		sent := mqttMessage(0)
		if err := ch.QueueBind("message", "key-"+sent.Probe, "amq.direct", false, nil); err != nil {
			t.Fatal(err)
		}
		if err := inject(t, in); err != nil {
			t.Fatal(err)
		}
		d := get(t, "message")
		if d.Expiration != "90000" || d.DeliveryMode != amqp.Persistent || d.Priority != 7 || d.ContentType != "application/json" || !strings.Contains(string(d.Body), sent.Token) {
			t.Errorf("the message %+v came", d)
		}
		// RabbitMQ 3 hands application properties to others as they came, in one header.
		raw := fmt.Sprint(d.Headers["x-amqp-1.0-app-properties"])
		for name, want := range map[string]string{Header: sent.Token, TraceHeader: sent.TraceParent, "tenant": "t-" + sent.Probe} {
			if !strings.Contains(raw, name) || !strings.Contains(raw, want) {
				t.Errorf("property %s is not in %q", name, d.Headers)
			}
		}
	})
	// RabbitMQ 3 itself falls over what it should reject, and ends the connection: that leaves it open.
	t.Run("full", func(t *testing.T) {
		queue(t, "full", amqp.Table{"x-max-length": 1, "x-overflow": "reject-publish"})
		in := open(t, "amqp://"+r.Addr, func(c *AMQP1Config) { c.Address = "/amq/queue/full" })
		if err := inject(t, in); err != nil {
			t.Fatal(err)
		}
		if err := inject(t, in); err == nil {
			t.Error("a full queue has accepted a heartbeat")
		}
		get(t, "full")
		if err := inject(t, in); err != nil {
			t.Errorf("a queue that has room again: %v", err)
		}
	})
	t.Run("lost", func(t *testing.T) {
		queue(t, "lost", nil)
		proxy := servers.Proxy(t, r.Addr)
		in := open(t, "amqp://"+proxy.Addr, func(c *AMQP1Config) { c.Address = "/amq/queue/lost" })
		if err := inject(t, in); err != nil {
			t.Fatal(err)
		}
		get(t, "lost")
		proxy.Set(servers.Faults{SilentDown: true})
		done := make(chan error, 1)
		go func() { done <- inject(t, in) }()
		get(t, "lost") // the broker has it
		proxy.Cut()
		if err := <-done; err == nil || IsRefused(err) || conn.ClassOf(err) != conn.Network {
			t.Errorf("%v (class %s); want an error of class network that leaves it open", err, conn.ClassOf(err))
		}
		proxy.Set(servers.Faults{})
		if err := inject(t, in); err != nil {
			t.Errorf("after the connection was lost: %v", err)
		}
		get(t, "lost")
		if q, err := ch.QueueDeclarePassive("lost", true, false, false, false, nil); err != nil || q.Messages > 0 {
			t.Errorf("%d messages too many; %v", q.Messages, err)
		}
	})
	t.Run("login", func(t *testing.T) {
		queue(t, "login", nil)
		wrong := filepath.Join(t.TempDir(), "password")
		if err := os.WriteFile(wrong, []byte("wrong"), 0o600); err != nil {
			t.Fatal(err)
		}
		in := open(t, "amqp://"+r.Addr, func(c *AMQP1Config) {
			c.Address, c.Broker.Username, c.Broker.Password = "/amq/queue/login", servers.KafkaUser, conn.Secret{File: wrong}
		})
		// RabbitMQ thinks about it for 3 s of the 5 that there are to connect.
		err := inject(t, in)
		for end := time.Now().Add(time.Minute); IsRefused(err) && conn.ClassOf(err) == conn.Network && time.Now().Before(end); {
			err = inject(t, in)
		}
		if !IsRefused(err) || conn.ClassOf(err) != conn.Auth {
			t.Errorf("wrong password: %v (class %s)", err, conn.ClassOf(err))
		}
		in = open(t, "amqps://"+r.TLSAddr, func(c *AMQP1Config) {
			c.Address, c.Broker.External = "/amq/queue/login", true
			c.Broker.TLS = &conn.TLS{CAFile: r.TLS.CA, CertFile: r.TLS.ClientCert, KeyFile: r.TLS.ClientKey}
		})
		if err := inject(t, in); err != nil {
			t.Errorf("with a certificate: %v", err)
		}
	})
	t.Run("no such exchange", func(t *testing.T) {
		in := open(t, "amqp://"+r.Addr, func(c *AMQP1Config) { c.Address = "/exchange/nowhere" })
		err := inject(t, in)
		if !IsRefused(err) || conn.ClassOf(err) != conn.Missing {
			t.Errorf("%v (class %s)", err, conn.ClassOf(err))
		}
		if err := in.(Checker).Check(t.Context()); conn.ClassOf(err) != conn.Missing {
			t.Errorf("check: %v (class %s)", err, conn.ClassOf(err))
		}
	})
}
