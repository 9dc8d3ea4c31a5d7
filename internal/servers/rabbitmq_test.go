package servers

import (
	"context"
	"errors"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// openRabbit connects and opens a channel that confirms.
func openRabbit(t *testing.T, url string) (*amqp.Connection, *amqp.Channel) {
	t.Helper()
	c, err := amqp.Dial(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	ch, err := c.Channel()
	if err == nil {
		err = ch.Confirm(false)
	}
	if err != nil {
		t.Fatal(err)
	}
	return c, ch
}

// putRabbit reports whether a message was confirmed in time.
func putRabbit(t *testing.T, ch *amqp.Channel, queue string, within time.Duration) bool {
	t.Helper()
	dc, err := ch.PublishWithDeferredConfirm("", queue, true, false, amqp.Publishing{DeliveryMode: amqp.Persistent, Body: []byte("x")})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	ok, _ := dc.WaitContext(ctx)
	return ok
}

// What a broker has confirmed outlives its end by force; an operator can close its connections, change a password and
// raise its alarm.
func TestRabbitMQ(t *testing.T) {
	r := RabbitMQ(t, RabbitMQOptions{Users: []RabbitMQUser{{Name: "reader", Password: `o"ne\`, Read: ".*"}}})
	c, ch := openRabbit(t, r.URL)
	kinds := []string{amqp.QueueTypeClassic, amqp.QueueTypeQuorum, amqp.QueueTypeStream}
	for _, kind := range kinds {
		if _, err := ch.QueueDeclare(kind, true, false, false, false, amqp.Table{amqp.QueueTypeArg: kind}); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if !putRabbit(t, ch, kind, 20*time.Second) {
				t.Fatalf("%s: not confirmed", kind)
			}
		}
	}
	for what, alarm := range map[string]func() func(){"memory": r.MemoryAlarm, "disk": r.DiskAlarm} {
		heal := alarm()
		blocked, blocking := openRabbit(t, r.URL)
		said := blocked.NotifyBlocked(make(chan amqp.Blocking, 2))
		if putRabbit(t, blocking, "classic", time.Second) {
			t.Errorf("a broker that is short of %s took a message", what)
		}
		if b := <-said; !b.Active {
			t.Error("it does not say that it blocks")
		}
		heal()
		if b := <-said; b.Active {
			t.Error("it does not say that it blocks no more")
		}
		blocked.Close()
	}

	closed := c.NotifyClose(make(chan *amqp.Error, 1))
	if n := r.CloseConnections(); n != 1 {
		t.Errorf("%d connections; want 1", n)
	}
	if err := <-closed; err == nil || err.Code != amqp.ConnectionForced {
		t.Errorf("the connection ended with %v", err)
	}
	reader := func(password string) error {
		c, err := amqp.DialConfig("amqp://"+r.Addr, amqp.Config{SASL: []amqp.Authentication{&amqp.PlainAuth{Username: "reader", Password: password}}})
		if err == nil {
			c.Close()
		}
		return err
	}
	if err := reader(`o"ne\`); err != nil {
		t.Error(err)
	}
	r.SetPassword("reader", "two")
	if err := reader("two"); err != nil {
		t.Error(err)
	}
	if err := reader(`o"ne\`); !errors.Is(err, amqp.ErrCredentials) {
		t.Errorf("with the old password: %v", err)
	}

	r.Kill()
	r.Start()
	_, ch = openRabbit(t, r.URL)
	if err := ch.Qos(10, 0, false); err != nil {
		t.Fatal(err)
	}
	for _, kind := range kinds {
		// A stream comes up a moment after the broker.
		var got <-chan amqp.Delivery
		var from amqp.Table
		if kind == amqp.QueueTypeStream {
			from = amqp.Table{"x-stream-offset": "first"}
		}
		for deadline := time.Now().Add(30 * time.Second); got == nil; time.Sleep(100 * time.Millisecond) {
			var err error
			if got, err = ch.Consume(kind, "", false, false, false, false, from); err == nil {
				break
			}
			if time.Now().After(deadline) {
				t.Fatal(err)
			}
			_, ch = openRabbit(t, r.URL)
			if err := ch.Qos(10, 0, false); err != nil {
				t.Fatal(err)
			}
		}
		for i := range 3 {
			select {
			case <-got:
			case <-time.After(30 * time.Second):
				t.Fatalf("%s: %d of 3 messages are left", kind, i)
			}
		}
	}
	r.Stop()
}
