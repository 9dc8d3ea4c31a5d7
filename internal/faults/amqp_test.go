package faults_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/lag-monitor/lag-monitor/internal/servers"
)

// openAMQP starts a broker for the rows that leave it alone, and two for those that break it, which they do one after
// the other.
func openAMQP(t *testing.T, rows []*row) func(*testing.T, *row) *pipeline {
	return onRabbitMQ(t, rows, servers.RabbitMQOptions{Users: []servers.RabbitMQUser{amqpMonitor}}, amqpPipeline)
}

// amqpMonitor is who the monitor is in rows with a login.
var amqpMonitor = servers.RabbitMQUser{Name: "monitor", Password: "first", Configure: ".*", Write: ".*", Read: ".*"}

// onRabbitMQ starts the brokers of a kind.
func onRabbitMQ(t *testing.T, rows []*row, options servers.RabbitMQOptions, open func(*testing.T, *row, *servers.RabbitMQServer) *pipeline) func(*testing.T, *row) *pipeline {
	start := func() *servers.RabbitMQServer { return servers.RabbitMQ(t, options) }
	return onServers(rows, 2, start, start, open)
}

// amqpLogin is how the monitor logs in: as itself in rows that change its password.
func amqpLogin(t *testing.T, r *row) string {
	t.Helper()
	if r.variant != "login" {
		return ""
	}
	r.secret = filepath.Join(t.TempDir(), "password")
	writeFile(t, r.secret, amqpMonitor.Password)
	return fmt.Sprintf(", username: %s, password: {file: %q}", amqpMonitor.Name, r.secret)
}

// amqpOwn is the name of the queue that the monitor makes for itself in a row.
func amqpOwn(r *row) string { return r.name + "-monitor" }

// amqpExchanges creates the two exchanges of a row, and the ways to them.
func amqpExchanges(t *testing.T, r *row, b *servers.RabbitMQServer) (p *pipeline, head, dest *amqpQueue) {
	t.Helper()
	open := func(name string, ttl time.Duration) *amqpQueue {
		q := &amqpQueue{url: b.URL, name: name, ttl: ttl, began: map[string]time.Time{}}
		t.Cleanup(q.drop)
		if err := q.create(); err != nil {
			t.Fatal(err)
		}
		return q
	}
	head, dest = open(r.name+"-in", 0), open(r.name+"-out", r.ttl)
	p = &pipeline{head: head, dest: dest, headProxy: servers.Proxy(t, b.Addr), destProxy: servers.Proxy(t, b.Addr), broker: b.Process, server: b}
	return p, head, dest
}

func amqpPipeline(t *testing.T, r *row, b *servers.RabbitMQServer) *pipeline {
	t.Helper()
	p, head, dest := amqpExchanges(t, r, b)
	settings := amqpLogin(t, r) + r.settings
	p.inject = fmt.Sprintf("amqp: {url: %q, exchange: %s, routing_key: beats%s}", "amqp://"+p.headProxy.Addr, head.name, settings)
	if r.variant == "stream" {
		p.sink = fmt.Sprintf("amqp: {url: %q, stream: %s%s}", "amqp://"+p.destProxy.Addr, dest.name, settings)
		return p
	}
	switch r.variant {
	case "quorum":
		settings += ", queue_type: quorum"
	case "keep":
		settings += ", keep: 1m"
	}
	p.sink = fmt.Sprintf("amqp: {url: %q, exchange: %s, bindings: [{routing_key: '#'}], queue: %s%s}", "amqp://"+p.destProxy.Addr, dest.name, amqpOwn(r), settings)
	return p
}

// amqpQueue is a fanout exchange with a stream of the same name bound to it, which keeps the truth: it can be read
// again and again. It has one lane.
type amqpQueue struct {
	url, name string
	ttl       time.Duration // of what is put, apart from the truth; 0: none

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
	if err == nil && q.ttl == 0 {
		err = ch.QueueBind(q.name, "", q.name, false, nil)
	}
	return err
}

// with runs f on a channel of its own.
func (q *amqpQueue) with(t *testing.T, f func(ch *amqp.Channel) error) {
	t.Helper()
	c, ch, err := q.dial()
	if err != nil {
		t.Fatal(err)
	}
	defer hangUp(c)
	if err := f(ch); err != nil {
		t.Fatal(err)
	}
}

// remove deletes a queue.
func (q *amqpQueue) remove(t *testing.T, name string) {
	t.Helper()
	q.with(t, func(ch *amqp.Channel) error {
		_, err := ch.QueueDelete(name, false, false, false)
		return err
	})
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
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	m := amqp.Publishing{Body: body, DeliveryMode: amqp.Persistent}
	if q.ttl > 0 {
		// What has expired does not come out of the stream either. So the truth has a message of its own.
		if err := q.publish(ctx, "", m); err != nil {
			return err
		}
		m.Expiration = fmt.Sprint(q.ttl.Milliseconds())
	}
	return q.publish(ctx, q.name, m)
}

// publish publishes to an exchange, or with the default one to the stream alone.
func (q *amqpQueue) publish(ctx context.Context, exchange string, m amqp.Publishing) error {
	dc, err := q.ch.PublishWithDeferredConfirm(exchange, q.name, true, false, m)
	if err != nil {
		return err
	}
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

// rabbitOf returns the broker of a row.
func rabbitOf(f *field) *servers.RabbitMQServer { return f.server.(*servers.RabbitMQServer) }

// rabbitRows are those of a broker that an operator of RabbitMQ breaks, for both of its protocols.
func rabbitRows() []*row {
	alarm := func(raise func(f *field) (heal func())) func(*testing.T, *field) {
		return func(t *testing.T, f *field) {
			heal := raise(f)
			wait(t, 10*time.Second)
			heal()
		}
	}
	return []*row{
		{
			name: "connections_closed", does: "an operator closes all connections", breaks: true, unnoticed: true, // two heartbeats are further apart than it takes
			fault: func(t *testing.T, f *field) {
				if n := rabbitOf(f).CloseConnections(); n < 2 {
					t.Errorf("there were %d connections; want the monitor's two at least", n)
				}
			},
		},
		{
			name: "memory_alarm", does: "the broker is out of memory for 10 s and takes nothing from anybody", breaks: true,
			fault: alarm(func(f *field) func() { return rabbitOf(f).MemoryAlarm() }),
		},
		{
			name: "disk_alarm", does: "the broker is short of disk for 10 s and takes nothing from anybody", breaks: true,
			fault: alarm(func(f *field) func() { return rabbitOf(f).DiskAlarm() }),
		},
		{
			name: "login_broken", does: "the monitor's password is changed at the broker, its connections are reset, and the password is changed back 8 s later", variant: "login",
			fault: func(t *testing.T, f *field) {
				rabbitOf(f).SetPassword(amqpMonitor.Name, "another one")
				cut(f)
				wait(t, 8*time.Second)
				rabbitOf(f).SetPassword(amqpMonitor.Name, amqpMonitor.Password)
			},
		},
		ttlExpiry(),
	}
}

// quietly has nobody write while the broker is stopped or killed. The truth is in another queue than the one that the
// monitor reads, and a message could be in one and not in the other: also for a while after the start, since an exchange
// confirms what a stream that is not up yet does not get.
func quietly(rows []*row) []*row {
	for _, r := range rows {
		switch r.name {
		case "broker_restart", "broker_killed", "quorum_broker_killed":
			fault := r.fault
			r.fault = func(t *testing.T, f *field) {
				f.relay.hold()
				defer f.relay.resume()
				f.headProxy.Set(servers.Faults{Refuse: true}) // as the broker does in a moment
				defer f.headProxy.Set(servers.Faults{})
				fault(t, f)
				for _, q := range []queue{f.head, f.dest} {
					for deadline := time.Now().Add(patience); ; wait(t, 50*time.Millisecond) {
						_, err := q.all(t.Context())
						if err == nil {
							break
						}
						if time.Now().After(deadline) {
							t.Fatal(err)
						}
					}
				}
			}
		}
	}
	return rows
}

// amqpRows lists what is broken in RabbitMQ, in the order of the table.
func amqpRows() []*row {
	dest := func(f *field) *amqpQueue { return f.dest.(*amqpQueue) }
	rows := append(append(commonRows(), rabbitRows()...),
		&row{
			name: "queue_ttl", does: "the monitor's own queue keeps a message for 60 s, and the destination refuses the monitor for 80 s", variant: "keep", gap: true,
			long: true, timeout: 2 * time.Minute, page: 4 * time.Minute,
			fault: func(t *testing.T, f *field) {
				f.destProxy.Set(servers.Faults{Refuse: true})
				f.destProxy.Cut()
				for range 4 {
					wait(t, 20*time.Second)
					// Nobody reads it, so it would go, and not only what is in it.
					dest(f).with(t, func(ch *amqp.Channel) error {
						_, err := ch.QueueDeclare(amqpOwn(f.row), true, false, false, false, amqp.Table{
							amqp.QueueTypeArg: amqp.QueueTypeClassic, amqp.QueueTTLArg: 60_000, amqp.QueueMessageTTLArg: 60_000, amqp.QueueMaxLenArg: 100_000,
						})
						return err
					})
				}
				f.destProxy.Set(servers.Faults{})
			},
		},
		&row{
			name: "own_queue_deleted", does: "the monitor's own queue is deleted with heartbeats that it has not read", gap: true,
			fault: func(t *testing.T, f *field) {
				f.replaceDestination(t, func() { dest(f).remove(t, amqpOwn(f.row)) })
			},
		},
		&row{
			name: "quorum_broker_killed", does: "the monitor's own queue is a quorum queue; SIGKILL, 3 s, start with its data", variant: "quorum", breaks: true,
			timeout: time.Minute, fault: only(commonRows(), "broker_killed")[0].fault,
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
	return untimed(quietly(rows))
}
