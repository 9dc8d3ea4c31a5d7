package faults_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/lag-monitor/lag-monitor/internal/servers"
)

// openNATS starts a server for the rows that leave it alone, and one for those that break it, which they do
// one after the other.
func openNATS(t *testing.T, rows []*row) func(*testing.T, *row) *pipeline {
	var shared, broken *servers.NATSProcess
	for _, r := range rows {
		switch {
		case r.breaks && broken == nil:
			broken = servers.StartNATS(t, natsBinary, "", "")
		case !r.breaks && r.variant == "" && shared == nil:
			shared = servers.StartNATS(t, natsBinary, "", "")
		}
	}
	var one sync.Mutex
	return func(t *testing.T, r *row) *pipeline {
		if r.breaks {
			one.Lock()
			t.Cleanup(one.Unlock)
			return natsPipeline(t, r, broken, "")
		}
		switch r.variant {
		case "login":
			n := servers.StartNATS(t, natsBinary, "", natsUsers("first"))
			r.secret = filepath.Join(t.TempDir(), "password")
			writeFile(t, r.secret, "first")
			return natsPipeline(t, r, n, fmt.Sprintf(", username: monitor, password: {file: %q}", r.secret), nats.UserInfo("pipeline", "pipeline"))
		case "disk":
			r.disk = servers.Tmpfs(t, 32)
			return natsPipeline(t, r, servers.StartNATS(t, natsBinary, filepath.Join(r.disk, "store"), ""), "")
		case "slow":
			return natsPipeline(t, r, servers.StartNATS(t, natsBinary, "", `write_deadline: "1s"`), "")
		}
		return natsPipeline(t, r, shared, "")
	}
}

// natsUsers is the part of a configuration that lets the monitor in with a password.
func natsUsers(password string) string {
	return fmt.Sprintf("authorization: {users: [{user: pipeline, password: pipeline}, {user: monitor, password: %q}]}", password)
}

// natsPipeline creates the two streams of a row. Settings are further ones of a connection, such as a login.
func natsPipeline(t *testing.T, r *row, n *servers.NATSProcess, settings string, options ...nats.Option) *pipeline {
	t.Helper()
	// Without a buffer, what is published while the server is away fails instead of coming out later.
	options = append([]nats.Option{nats.MaxReconnects(-1), nats.ReconnectWait(50 * time.Millisecond), nats.ReconnectBufSize(-1),
		nats.PingInterval(time.Second)}, options...)
	nc, err := nats.Connect(n.URL, options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc, jetstream.WithPublishAsyncMaxPending(floodSize))
	if err != nil {
		t.Fatal(err)
	}
	open := func(stream string) *natsQueue {
		q := &natsQueue{js: js, stream: stream}
		if err := q.create(t.Context()); err != nil {
			t.Fatal(err)
		}
		return q
	}
	head, dest := open(r.name+"-in"), open(r.name+"-out")
	headProxy, destProxy := servers.Proxy(t, n.Addr), servers.Proxy(t, n.Addr)
	return &pipeline{
		head: head, dest: dest, headProxy: headProxy, destProxy: destProxy, broker: n.Process, server: n,
		inject: fmt.Sprintf("nats: {url: %q, subject: %s%s%s}", "nats://"+headProxy.Addr, head.stream, settings, r.settings),
		sink:   fmt.Sprintf("nats: {url: %q, stream: %s%s%s}", "nats://"+destProxy.Addr, dest.stream, settings, r.settings),
	}
}

// natsQueue is a stream that takes the subject of its own name. It has one lane.
type natsQueue struct {
	js     jetstream.JetStream
	stream string
	life   atomic.Int64 // how often it was created anew
}

func (q *natsQueue) create(ctx context.Context) error {
	_, err := q.js.CreateStream(ctx, jetstream.StreamConfig{Name: q.stream, Subjects: []string{q.stream}})
	return err
}

// recreate deletes the stream and creates it again after a while.
func (q *natsQueue) recreate(t *testing.T, after time.Duration) {
	t.Helper()
	if err := q.js.DeleteStream(t.Context(), q.stream); err != nil {
		t.Fatal(err)
	}
	q.life.Add(1)
	wait(t, after)
	if err := q.create(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// floodSize is how many messages flood puts into the stream.
const floodSize = 3000

// flood puts messages of others into the stream, of 10 kB each.
func (q *natsQueue) flood(t *testing.T) {
	t.Helper()
	var last jetstream.PubAckFuture
	for range floodSize {
		var err error
		if last, err = q.js.PublishAsync(q.stream, make([]byte, 10_000)); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-last.Ok():
	case err := <-last.Err():
		t.Fatal(err)
	case <-time.After(patience):
		t.Fatal("the stream does not take the messages of others")
	}
}

func (q *natsQueue) put(ctx context.Context, _ int, body []byte) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	_, err := q.js.Publish(ctx, q.stream, body)
	return err
}

// take turns one of the client's messages into ours.
func (q *natsQueue) take(m jetstream.Msg) (message, uint64, error) {
	meta, err := m.Metadata()
	if err != nil {
		return message{}, 0, err
	}
	return message{id: fmt.Sprintf("%d %d", q.life.Load(), meta.Sequence.Stream), body: m.Data(), at: meta.Timestamp}, meta.Sequence.Stream, nil
}

// read reads from a sequence on what is there, waiting a moment for it.
func (q *natsQueue) read(ctx context.Context, from uint64, wait time.Duration, f func(message, uint64)) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second+wait)
	defer cancel()
	c, err := q.js.CreateConsumer(ctx, q.stream, jetstream.ConsumerConfig{
		DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: from, AckPolicy: jetstream.AckNonePolicy,
		InactiveThreshold: 10 * time.Second, MemoryStorage: true,
	})
	if err != nil {
		return err
	}
	for ctx.Err() == nil {
		batch, err := c.Fetch(500, jetstream.FetchMaxWait(wait))
		if err != nil {
			return err
		}
		for m := range batch.Messages() {
			one, seq, err := q.take(m)
			if err != nil {
				return err
			}
			if seq != from {
				return fmt.Errorf("%s: message %d came; want %d", q.stream, seq, from)
			}
			f(one, seq)
			from++
		}
		if err := batch.Error(); err != nil && !errors.Is(err, nats.ErrTimeout) {
			return err
		}
	}
	return nil
}

func (q *natsQueue) follow(ctx context.Context, f func(message)) {
	// Each call gets a consumer of its own, which goes on where the last one stopped: what was lost on its
	// way is read again.
	for next, life := uint64(1), int64(0); ctx.Err() == nil; {
		if now := q.life.Load(); now != life {
			next, life = 1, now
		}
		err := q.read(ctx, next, time.Second, func(m message, seq uint64) {
			f(m)
			next = seq + 1
		})
		if err == nil {
			continue
		}
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// last returns the sequence of the last message.
func (q *natsQueue) last(ctx context.Context) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	s, err := q.js.Stream(ctx, q.stream)
	if err != nil {
		return 0, err
	}
	return s.CachedInfo().State.LastSeq, nil
}

func (q *natsQueue) all(ctx context.Context) ([]message, error) {
	last, err := q.last(ctx)
	if err != nil {
		return nil, err
	}
	var all []message
	for next := uint64(1); next <= last; {
		ctx, cancel := context.WithCancel(ctx)
		err := q.read(ctx, next, time.Second, func(m message, seq uint64) {
			all = append(all, m)
			if next = seq + 1; next > last {
				cancel()
			}
		})
		cancel()
		if err != nil && next <= last {
			return nil, err
		}
	}
	return all, nil
}
