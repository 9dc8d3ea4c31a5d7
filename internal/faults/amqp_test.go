package faults_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/lag-monitor/lag-monitor/internal/servers"
)

// openAMQP starts a broker for the rows that leave it alone, and one for those that break it, which they do one after
// the other.
func openAMQP(t *testing.T, rows []*row) func(*testing.T, *row) *pipeline {
	var shared, broken *servers.RabbitMQServer
	for _, r := range rows {
		switch {
		case r.breaks && broken == nil:
			broken = servers.RabbitMQ(t, servers.RabbitMQOptions{})
		case !r.breaks && shared == nil:
			shared = servers.RabbitMQ(t, servers.RabbitMQOptions{})
		}
	}
	var one sync.Mutex
	return func(t *testing.T, r *row) *pipeline {
		if r.breaks {
			one.Lock()
			t.Cleanup(one.Unlock)
			return amqpPipeline(t, r, broken)
		}
		return amqpPipeline(t, r, shared)
	}
}

// amqpOwn is the name of the queue that the monitor makes for itself in a row.
func amqpOwn(r *row) string { return r.name + "-monitor" }

// amqpPipeline creates the two exchanges of a row.
func amqpPipeline(t *testing.T, r *row, b *servers.RabbitMQServer) *pipeline {
	t.Helper()
	open := func(name string) *amqpQueue {
		q := &amqpQueue{url: b.URL, name: name, began: map[string]time.Time{}}
		t.Cleanup(q.drop)
		if err := q.create(); err != nil {
			t.Fatal(err)
		}
		return q
	}
	head, dest := open(r.name+"-in"), open(r.name+"-out")
	headProxy, destProxy := servers.Proxy(t, b.Addr), servers.Proxy(t, b.Addr)
	p := &pipeline{
		head: head, dest: dest, headProxy: headProxy, destProxy: destProxy, broker: b.Process, server: b,
		inject: fmt.Sprintf("amqp: {url: %q, exchange: %s, routing_key: beats%s}", "amqp://"+headProxy.Addr, head.name, r.settings),
		sink:   fmt.Sprintf("amqp: {url: %q, exchange: %s, bindings: [{routing_key: '#'}], queue: %s%s}", "amqp://"+destProxy.Addr, dest.name, amqpOwn(r), r.settings),
	}
	if r.variant == "stream" {
		p.sink = fmt.Sprintf("amqp: {url: %q, stream: %s%s}", "amqp://"+destProxy.Addr, dest.name, r.settings)
	}
	return p
}

// amqpQueue is a fanout exchange with a stream of the same name bound to it, which keeps the truth: it can be read
// again and again. It has one lane.
type amqpQueue struct {
	url, name string

	mu    sync.Mutex // held while a message is put
	conn  *amqp.Connection
	ch    *amqp.Channel
	began map[string]time.Time // when a body was put first: the stream does not tell when it came
}

// dial connects, and hands out a channel that confirms.
func (q *amqpQueue) dial() (*amqp.Connection, *amqp.Channel, error) {
	c, err := amqp.DialConfig(q.url+"?connection_timeout=2000", amqp.Config{Heartbeat: 4 * time.Second})
	if err != nil {
		return nil, nil, err
	}
	ch, err := c.Channel()
	if err == nil {
		err = ch.Confirm(false)
	}
	if err == nil {
		err = ch.Qos(5000, 0, false)
	}
	if err != nil {
		hangUp(c)
		return nil, nil, err
	}
	return c, ch, nil
}

// hangUp does not wait for a broker that does not answer.
func hangUp(c *amqp.Connection) { _ = c.CloseDeadline(time.Now().Add(200 * time.Millisecond)) }

func (q *amqpQueue) create() error {
	c, ch, err := q.dial()
	if err != nil {
		return err
	}
	defer hangUp(c)
	err = ch.ExchangeDeclare(q.name, amqp.ExchangeFanout, true, false, false, false, nil)
	if err == nil {
		_, err = ch.QueueDeclare(q.name, true, false, false, false, amqp.Table{amqp.QueueTypeArg: amqp.QueueTypeStream})
	}
	if err == nil {
		err = ch.QueueBind(q.name, "", q.name, false, nil)
	}
	return err
}

// remove deletes a queue.
func (q *amqpQueue) remove(t *testing.T, name string) {
	t.Helper()
	c, ch, err := q.dial()
	if err != nil {
		t.Fatal(err)
	}
	defer hangUp(c)
	if _, err := ch.QueueDelete(name, false, false, false); err != nil {
		t.Fatal(err)
	}
}

// drop ends the connection on which messages are put.
func (q *amqpQueue) drop() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.conn != nil {
		hangUp(q.conn)
		q.conn = nil
	}
}

func (q *amqpQueue) put(ctx context.Context, _ int, body []byte) (err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if _, again := q.began[string(body)]; !again {
		q.began[string(body)] = time.Now()
	}
	if q.conn == nil {
		if q.conn, q.ch, err = q.dial(); err != nil {
			return err
		}
	}
	defer func() {
		if err != nil {
			hangUp(q.conn)
			q.conn = nil
		}
	}()
	dc, err := q.ch.PublishWithDeferredConfirm(q.name, "", true, false, amqp.Publishing{Body: body, DeliveryMode: amqp.Persistent})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if ok, err := dc.WaitContext(ctx); err != nil || !ok {
		return fmt.Errorf("not confirmed: %w", err)
	}
	return nil
}

// read reads from an offset on until f returns false or ctx ends.
func (q *amqpQueue) read(ctx context.Context, from any, f func(m message, offset int64) bool) error {
	c, ch, err := q.dial()
	if err != nil {
		return err
	}
	defer hangUp(c)
	found, err := ch.Consume(q.name, "", false, false, false, false, amqp.Table{"x-stream-offset": from})
	if err != nil {
		return err
	}
	for {
		select {
		case d, ok := <-found:
			if !ok {
				return errors.New("the connection is lost")
			}
			offset := d.Headers["x-stream-offset"].(int64)
			if err := d.Ack(false); err != nil {
				return err
			}
			if !f(message{id: fmt.Sprint(offset), body: d.Body}, offset) {
				return nil
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (q *amqpQueue) follow(ctx context.Context, f func(message)) {
	for next := int64(0); ctx.Err() == nil; {
		_ = q.read(ctx, next, func(m message, offset int64) bool {
			if offset >= next {
				f(m)
				next = offset + 1
			}
			return true
		})
		select {
		case <-ctx.Done():
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// last returns the offset of the last message, -1 when there is none. The last chunk comes as a whole, soon or not at
// all.
func (q *amqpQueue) last(ctx context.Context) (int64, error) {
	last := int64(-1)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	idle := time.AfterFunc(time.Second, cancel)
	defer idle.Stop()
	err := q.read(ctx, "last", func(_ message, offset int64) bool {
		last = offset
		idle.Reset(300 * time.Millisecond)
		return true
	})
	if errors.Is(err, context.Canceled) {
		err = nil
	}
	return last, err
}

func (q *amqpQueue) all(ctx context.Context) ([]message, error) {
	last, err := q.last(ctx)
	if err != nil || last < 0 {
		return nil, err
	}
	var all []message
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	err = q.read(ctx, "first", func(m message, offset int64) bool {
		all = append(all, m)
		return offset < last
	})
	q.mu.Lock()
	defer q.mu.Unlock()
	for i := range all {
		if at, ok := q.began[string(all[i].body)]; ok {
			all[i].at = at
		}
	}
	return all, err
}

// amqpRows lists what is broken in RabbitMQ, in the order of the table.
func amqpRows() []*row {
	of := func(f *field) *servers.RabbitMQServer { return f.server.(*servers.RabbitMQServer) }
	rows := append(commonRows(),
		&row{
			name: "connections_closed", does: "an operator closes all connections", breaks: true,
			fault: func(_ *testing.T, f *field) { of(f).CloseConnections() },
		},
		&row{
			name: "memory_alarm", does: "the broker is out of memory for 10 s and takes nothing from anybody", breaks: true,
			fault: func(t *testing.T, f *field) {
				heal := of(f).MemoryAlarm()
				wait(t, 10*time.Second)
				heal()
			},
		},
		&row{
			name: "own_queue_deleted", does: "the monitor's own queue is deleted with heartbeats that it has not read", gap: true,
			fault: func(t *testing.T, f *field) {
				f.replaceDestination(t, func() { f.dest.(*amqpQueue).remove(t, amqpOwn(f.row)) })
			},
		},
		&row{
			name: "stream_sink_partition", does: "the destination is a stream, and refuses the monitor alone for 10 s", variant: "stream",
			fault: sinkRefused(10 * time.Second),
		},
		&row{
			name: "stream_duplicates", does: "the destination is a stream; 1 in 5 is delivered three times", variant: "stream", interval: 100 * time.Millisecond, fault: relayed(200),
			plan: func(n int, _ message) plan {
				if n%5 == 0 {
					return plan{copies: 3}
				}
				return forward
			},
		},
	)
	for _, r := range rows {
		switch r.name {
		case "broker_restart", "broker_killed":
			// The truth is in another queue than the one that the monitor reads: nobody writes at the moment at which a
			// message could be in one and not in the other.
			fault := r.fault
			r.fault = func(t *testing.T, f *field) {
				f.relay.hold()
				defer f.relay.resume()
				fault(t, f)
			}
		}
	}
	return untimed(rows)
}
