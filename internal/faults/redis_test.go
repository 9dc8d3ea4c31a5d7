package faults_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lag-monitor/lag-monitor/internal/servers"
)

// redisAtOnce is how many rows run at once: each has a server of its own, which writes to the disk for every command.
const redisAtOnce = 7

// redisRow is what a row has of its own.
type redisRow struct {
	*servers.RedisServer
	replica    *servers.RedisServer // of it, through link; nil but for the variant replica
	link       *servers.FaultProxy
	head, dest *redisQueue
}

// redisRows lists what is broken in Redis, in the order of the table. The destination is a stream, or with the variants of
// these names a list or a channel.
func redisRows() []*row {
	of := func(f *field) *redisRow { return f.server.(*redisRow) }
	ask := func(t *testing.T, f *field, args ...any) {
		t.Helper()
		if err := of(f).head.client.Load().Do(t.Context(), args...).Err(); err != nil {
			t.Fatalf("%v: %v", args, err)
		}
	}
	rows := only(commonRows(), "broker_restart", "broker_killed", "broker_sigstop", "accept_then_silent", "half_open", "sink_partition", "answers_lost",
		"monitor_killed", "duplicates", "reorder", "late", "one_in_7_dropped", "reload")
	rows = append(rows,
		&row{
			name: "clients_killed", does: "an operator ends all connections (CLIENT KILL) every 100 ms for 5 s",
			fault: func(t *testing.T, f *field) {
				for range 50 {
					ask(t, f, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
					wait(t, 100*time.Millisecond)
				}
			},
		},
		&row{
			name: "trimmed", does: "the destination is trimmed to its last two entries, with others that the monitor has not read (XTRIM MAXLEN)", gap: true,
			fault: func(t *testing.T, f *field) {
				f.replaceDestination(t, func() { ask(t, f, "XTRIM", of(f).dest.stream, "MAXLEN", 2) })
			},
		},
		&row{
			name: "trimmed_by_age", does: "the destination is trimmed to what is younger than now, with entries that the monitor has not read (XTRIM MINID)", gap: true,
			fault: func(t *testing.T, f *field) {
				f.replaceDestination(t, func() { ask(t, f, "XTRIM", of(f).dest.stream, "MINID", time.Now().UnixMilli()) })
			},
		},
		&row{
			name: "flushed", does: "FLUSHALL, with entries that the monitor has not read; both streams are made again 2 s later", gap: true,
			fault: func(t *testing.T, f *field) {
				f.replaceDestination(t, func() {
					ask(t, f, "FLUSHALL")
					wait(t, 2*time.Second)
					of(f).head.create(t)
					of(f).dest.create(t)
				})
			},
		},
		&row{
			name: "login_changed", does: "the password is changed and the connections are ended; the monitor's file has it 5 s later", variant: "login",
			fault: func(t *testing.T, f *field) {
				ask(t, f, "ACL", "SETUSER", "monitor", "resetpass", ">second")
				ask(t, f, "CLIENT", "KILL", "USER", "monitor")
				wait(t, 5*time.Second)
				writeFile(t, f.secret, "second")
			},
		},
		&row{
			name: "out_of_memory", does: "the server is at its limit (maxmemory, noeviction) and takes nothing from anybody for 10 s",
			fault: func(t *testing.T, f *field) {
				ask(t, f, "CONFIG", "SET", "maxmemory", 1)
				wait(t, 10*time.Second)
				ask(t, f, "CONFIG", "SET", "maxmemory", 0)
			},
		},
		&row{
			name: "failover", does: "the replica, which has everything, becomes the master; the address leads to it 2 s later", variant: "replica",
			fault: func(t *testing.T, f *field) {
				f.relay.hold()
				defer f.relay.resume()
				ask(t, f, "CLIENT", "PAUSE", 10_000, "WRITE")
				of(f).replicated(t)
				of(f).promote(t, f, 2*time.Second)
			},
		},
		&row{
			name: "failover_behind", does: "the master is gone, and a replica that lacks the last two seconds, which the monitor has read, takes its place 2 s later", variant: "replica",
			timeout: 15 * time.Second, settles: 3 * time.Second, // the relay waits for all of that
			fault: func(t *testing.T, f *field) {
				of(f).replicated(t)
				of(f).link.Set(servers.Faults{Refuse: true})
				of(f).link.Cut()
				f.relays(t, f.relay.counts()+10)
				f.relay.hold()
				defer f.relay.resume()
				now := float64(time.Now().UnixMilli()) / 1000
				f.daemon.await(t, "the sink has read what the replica has not", patience, func(s servers.Scrape) bool { return s.Sum("sink_caught_up_timestamp_seconds") > now })
				found, err := f.dest.all(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				f.truth.add(found, false)
				of(f).promote(t, f, 2*time.Second)
				f.daemon.await(t, "the sink reads from the replica", patience, func(s servers.Scrape) bool { return s.Sum("sink_up") == 1 })
			},
		},
		diskFull(),
	)
	for _, variant := range []string{"list", "channel"} {
		names := []string{"sink_partition", "one_in_7_dropped"}
		if variant == "list" {
			names = append(names, "broker_killed", "monitor_killed")
		}
		for _, r := range only(commonRows(), names...) {
			// Neither tells when a message came: there is time enough for what could not be read at once.
			r.timeout, r.settles = 25*time.Second, 3*time.Second
			if r.plan != nil {
				r.timeout = 10 * time.Second
			}
			r.gap = variant == "channel" && r.plan == nil // a channel keeps nothing
			r.innocent = r.journal                        // what was taken from the list in the last second before a kill is in no journal
			r.name, r.does, r.variant = variant+"_"+r.name, r.does+"; the destination is a "+variant, variant
			rows = append(rows, r)
		}
	}
	for _, r := range rows {
		r.breaks = false // each has a server of its own
	}
	return rows
}

// openRedis starts a server for each row: one starts within a moment.
func openRedis(*testing.T, []*row) func(*testing.T, *row) *pipeline { return redisPipeline }

func redisPipeline(t *testing.T, r *row) *pipeline {
	t.Helper()
	own, login := &redisRow{}, ""
	switch r.variant {
	case "disk":
		r.disk = servers.Tmpfs(t, 16)
		own.RedisServer = servers.Redis(t, "--dir", r.disk)
	default:
		own.RedisServer = servers.Redis(t)
	}
	own.head, own.dest = newRedisQueue(t, own.Addr, r.name+"-in"), newRedisQueue(t, own.Addr, r.name+"-out")
	own.head.create(t)
	own.dest.create(t)
	switch r.variant {
	case "login":
		if err := own.head.client.Load().Do(t.Context(), "ACL", "SETUSER", "monitor", "on", ">first", "~*", "&*", "+@all").Err(); err != nil {
			t.Fatal(err)
		}
		r.secret = filepath.Join(t.TempDir(), "password")
		writeFile(t, r.secret, "first")
		login = fmt.Sprintf(", username: monitor, password: {file: %q}", r.secret)
	case "replica":
		own.link = servers.Proxy(t, own.Addr)
		_, port, _ := strings.Cut(own.link.Addr, ":")
		own.replica = servers.Redis(t, "--replicaof", "127.0.0.1 "+port)
	case "list", "channel":
		own.dest.beside = r.variant
	}
	headProxy, destProxy := servers.Proxy(t, own.Addr), servers.Proxy(t, own.Addr)
	p := &pipeline{
		head: own.head, dest: own.dest, headProxy: headProxy, destProxy: destProxy, broker: own.Process, server: own,
		inject: fmt.Sprintf("redis: {addresses: [%q], stream: %s%s%s}", headProxy.Addr, own.head.stream, login, r.settings),
	}
	what := "stream: " + own.dest.stream
	switch r.variant {
	case "list":
		what = "list: " + own.dest.name() + ", dedicated: true"
	case "channel":
		what = "channel: " + own.dest.name()
	}
	p.sink = fmt.Sprintf("redis: {addresses: [%q], %s%s%s}", destProxy.Addr, what, login, r.settings)
	return p
}

// replicated waits until the replica has everything that the master had when it was called.
func (s *redisRow) replicated(t *testing.T) {
	t.Helper()
	want := s.offset(t, s.Addr)
	for deadline := time.Now().Add(patience); s.offset(t, s.replica.Addr) < want; wait(t, 50*time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the replica does not follow")
		}
	}
}

// offset is how far the replication has come at a server.
func (s *redisRow) offset(t *testing.T, addr string) int {
	t.Helper()
	c := redisClient(addr)
	defer c.Close()
	info, err := c.Info(t.Context(), "replication").Result()
	if err != nil {
		t.Fatal(err)
	}
	name := "\r\nmaster_repl_offset:"
	if strings.Contains(info, "role:slave") {
		if !strings.Contains(info, "master_link_status:up") {
			return -1
		}
		name = "\r\nslave_repl_offset:"
	}
	_, text, _ := strings.Cut(info, name)
	text, _, _ = strings.Cut(text, "\r\n")
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("%v in %s", err, info)
	}
	return n
}

// promote ends the master; the address leads to the replica after a while.
func (s *redisRow) promote(t *testing.T, f *field, after time.Duration) {
	t.Helper()
	s.Kill()
	c := redisClient(s.replica.Addr)
	defer c.Close()
	if err := c.Do(t.Context(), "REPLICAOF", "NO", "ONE").Err(); err != nil {
		t.Fatal(err)
	}
	wait(t, after)
	for _, q := range []*redisQueue{s.head, s.dest} {
		q.move(t, s.replica.Addr)
	}
	f.headProxy.LeadTo(s.replica.Addr)
	f.destProxy.LeadTo(s.replica.Addr)
}

func redisClient(addr string) *redis.Client {
	return redis.NewClient(&redis.Options{Addr: addr, MaxRetries: -1, DialTimeout: 2 * time.Second, ReadTimeout: 2 * time.Second, WriteTimeout: 2 * time.Second})
}

// redisQueue is a stream. It has one lane.
type redisQueue struct {
	stream string
	beside string // "list", "channel": what the monitor reads gets each message in the same transaction as the stream
	client atomic.Pointer[redis.Client]
}

func newRedisQueue(t *testing.T, addr, stream string) *redisQueue {
	t.Helper()
	q := &redisQueue{stream: stream}
	q.move(t, addr)
	return q
}

// move has the queue at another server from now on.
func (q *redisQueue) move(t *testing.T, addr string) {
	t.Helper()
	c := redisClient(addr)
	t.Cleanup(func() { c.Close() })
	if old := q.client.Swap(c); old != nil {
		old.Close()
	}
}

// name is that of the list or the channel.
func (q *redisQueue) name() string { return q.stream + "-" + q.beside }

// create makes the stream, empty.
func (q *redisQueue) create(t *testing.T) {
	t.Helper()
	if err := q.client.Load().XGroupCreateMkStream(t.Context(), q.stream, "pipeline", "0").Err(); err != nil {
		t.Fatal(err)
	}
}

func (q *redisQueue) put(ctx context.Context, _ int, body []byte) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	_, err := q.client.Load().TxPipelined(ctx, func(tx redis.Pipeliner) error {
		switch q.beside {
		case "list":
			tx.RPush(ctx, q.name(), body)
		case "channel":
			tx.Publish(ctx, q.name(), body)
		}
		tx.XAdd(ctx, &redis.XAddArgs{Stream: q.stream, Values: []any{"body", body}})
		return nil
	})
	return err
}

// take turns one of the client's entries into a message. Its id tells when it came, to the millisecond.
func (q *redisQueue) take(e redis.XMessage) (message, error) {
	ms, _, _ := strings.Cut(e.ID, "-")
	at, err := strconv.ParseInt(ms, 10, 64)
	body, ok := e.Values["body"].(string)
	if err != nil || !ok {
		return message{}, fmt.Errorf("%s: entry %s: %v", q.stream, e.ID, e.Values)
	}
	return message{id: e.ID, body: []byte(body), at: time.UnixMilli(at)}, nil
}

func (q *redisQueue) follow(ctx context.Context, f func(message)) {
	for last := "0"; ctx.Err() == nil; {
		answer, err := q.client.Load().XRead(ctx, &redis.XReadArgs{Streams: []string{q.stream, last}, Count: 500, Block: 500 * time.Millisecond}).Result()
		for _, s := range answer {
			for _, e := range s.Messages {
				m, err := q.take(e)
				if err != nil {
					panic(err)
				}
				f(m)
				last = e.ID // also of a stream that was made anew: ids are times
			}
		}
		if err != nil && !errors.Is(err, redis.Nil) {
			select {
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
		}
	}
}

func (q *redisQueue) all(ctx context.Context) ([]message, error) {
	entries, err := q.client.Load().XRange(ctx, q.stream, "-", "+").Result()
	if err != nil {
		return nil, err
	}
	all := make([]message, len(entries))
	for i, e := range entries {
		if all[i], err = q.take(e); err != nil {
			return nil, err
		}
	}
	return all, nil
}
