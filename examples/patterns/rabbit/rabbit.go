package rabbit

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/lag-monitor/lag-monitor/examples/patterns/service"
)

// patience is how long the broker may take to answer.
const patience = 10 * time.Second

// open connects, opens a channel with publisher confirms, calls use and closes the connection. When ctx ends the
// connection is closed at once, so that every call on it returns.
func open(ctx context.Context, env service.Env, use func(*amqp.Connection, *amqp.Channel) error) error {
	conn, err := amqp.DialConfig("amqp://guest:guest@"+env.Addr, amqp.Config{
		Vhost: env.Space, Heartbeat: patience,
		Dial: func(network, addr string) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(ctx, patience)
			defer cancel()
			c, err := env.Dial(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			// The library takes the deadline of the handshake away when that is done.
			return c, c.SetDeadline(time.Now().Add(patience))
		},
	})
	if err != nil {
		return fmt.Errorf("rabbitmq: connect: %w", err)
	}
	end := func() { _ = conn.CloseDeadline(time.Now().Add(time.Second)) }
	defer end()
	defer context.AfterFunc(ctx, end)()
	ch, err := conn.Channel()
	if err != nil {
		return fmt.Errorf("rabbitmq: channel: %w", err)
	}
	if err := ch.Confirm(false); err != nil {
		return fmt.Errorf("rabbitmq: confirms: %w", err)
	}
	return use(conn, ch)
}

// Do calls use with a channel for it alone: to declare, bind and look.
func Do(ctx context.Context, env service.Env, use func(*amqp.Channel) error) error {
	return open(ctx, env, func(_ *amqp.Connection, ch *amqp.Channel) error { return use(ch) })
}

// Topology is what a service has on its broker.
type Topology struct {
	Exchanges map[string]string     // kind by name
	Queues    map[string]amqp.Table // arguments by name
	Bindings  []Binding
}

// Binding says which messages of an exchange go into a queue.
type Binding struct{ Queue, Key, Exchange string }

// Declare makes what is not there. All of it is durable.
func Declare(ctx context.Context, env service.Env, t Topology) error {
	return Do(ctx, env, func(ch *amqp.Channel) error {
		for name, kind := range t.Exchanges {
			if err := ch.ExchangeDeclare(name, kind, true, false, false, false, nil); err != nil {
				return fmt.Errorf("exchange %s: %w", name, err)
			}
		}
		for name, arguments := range t.Queues {
			if _, err := ch.QueueDeclare(name, true, false, false, false, arguments); err != nil {
				return fmt.Errorf("queue %s: %w", name, err)
			}
		}
		for _, b := range t.Bindings {
			if err := ch.QueueBind(b.Queue, b.Key, b.Exchange, false, nil); err != nil {
				return fmt.Errorf("binding of %s to %s: %w", b.Queue, b.Exchange, err)
			}
		}
		return nil
	})
}

// Handler does what is to be done with one message, acknowledges or rejects it, and returns an error only when the
// consumer cannot go on. It may publish on ch.
type Handler func(ctx context.Context, ch *amqp.Channel, d amqp.Delivery) error

// Consume hands the messages of a queue to handle, one after the other, until ctx ends (then it returns nil) or the
// connection does. Of prefetch messages under way all but one wait in this process.
func Consume(ctx context.Context, env service.Env, queue string, prefetch int, ready func(), handle Handler) error {
	err := open(ctx, env, func(conn *amqp.Connection, ch *amqp.Channel) error {
		closed, cancelled := conn.NotifyClose(make(chan *amqp.Error, 1)), ch.NotifyCancel(make(chan string, 1))
		if err := ch.Qos(prefetch, 0, false); err != nil {
			return fmt.Errorf("rabbitmq: prefetch: %w", err)
		}
		deliveries, err := ch.Consume(queue, "", false, false, false, false, nil)
		if err != nil {
			return fmt.Errorf("rabbitmq: consume %s: %w", queue, err)
		}
		ready()
		for d := range deliveries {
			if err := handle(ctx, ch, d); err != nil {
				return fmt.Errorf("rabbitmq: a message of %s: %w", queue, err)
			}
		}
		// A queue that is deleted ends its consumers, and leaves the connection.
		select {
		case <-cancelled:
			return fmt.Errorf("rabbitmq: consume %s: the broker has cancelled it", queue)
		case err, ok := <-closed:
			if !ok {
				return fmt.Errorf("rabbitmq: consume %s: the connection is closed", queue)
			}
			return fmt.Errorf("rabbitmq: consume %s: the connection is closed: %w", queue, err)
		}
	})
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// Publish publishes a message and waits until the broker has confirmed that it is in every queue it was routed to.
func Publish(ctx context.Context, ch *amqp.Channel, exchange, key string, p amqp.Publishing) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	p.DeliveryMode = amqp.Persistent
	c, err := ch.PublishWithDeferredConfirmWithContext(ctx, exchange, key, false, false, p)
	if err != nil {
		return fmt.Errorf("publish to %s: %w", exchange, err)
	}
	ok, err := c.WaitContext(ctx)
	if err == nil && !ok {
		err = errors.New("refused by the broker")
	}
	if err != nil {
		return fmt.Errorf("publish to %s: %w", exchange, err)
	}
	return nil
}

// Forward is a message as it goes on: its body, and the headers with which it came.
func Forward(d amqp.Delivery) amqp.Publishing {
	return amqp.Publishing{Headers: d.Headers, ContentType: d.ContentType, Body: d.Body}
}

// Announce returns a Handler for work that is done at once: it publishes the message to an exchange, and acknowledges it
// when that is confirmed. One of which nobody knows whether it was done is done again.
func Announce(exchange, key string) Handler {
	return func(ctx context.Context, ch *amqp.Channel, d amqp.Delivery) error {
		if err := Publish(ctx, ch, exchange, key, Forward(d)); err != nil {
			return err
		}
		return d.Ack(false)
	}
}
