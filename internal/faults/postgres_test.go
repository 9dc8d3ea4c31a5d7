package faults_test

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/lag-monitor/lag-monitor/internal/servers"
)

func openPostgres(t *testing.T, rows []*row) func(*testing.T, *row) *pipeline {
	start := func() *servers.PostgresServer {
		p := servers.Postgres(t, servers.PostgresOptions{Password: true, Config: "track_commit_timestamp = on\nmax_connections = 200"})
		postgresDo(t, p, "postgres", "create database faults")
		return p
	}
	return onServers(rows, 1, start, start, postgresPipeline)
}

// postgresDial connects as the superuser.
func postgresDial(ctx context.Context, addr, database string) (*pgconn.PgConn, error) {
	return pgconn.Connect(ctx, fmt.Sprintf("postgres://postgres@%s/%s?sslmode=disable&connect_timeout=2", addr, database))
}

// postgresDo has the server carry out commands, and returns the first value of the last one's answer. It tries again until the
// server takes connections.
func postgresDo(t *testing.T, p *servers.PostgresServer, database, sql string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c, err := postgresDial(ctx, p.Addr, database)
	for ; err != nil; c, err = postgresDial(ctx, p.Addr, database) {
		if ctx.Err() != nil {
			t.Fatal(err)
		}
		pauseFor(ctx, 50*time.Millisecond)
	}
	defer postgresHangUp(c)
	results, err := c.Exec(ctx, sql).ReadAll()
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	if last := results[len(results)-1]; len(last.Rows) > 0 {
		return string(last.Rows[0][0])
	}
	return ""
}

const postgresPassword = "first"

// postgresPipeline creates the two tables of a row, and a role of its own for the monitor.
func postgresPipeline(t *testing.T, r *row, p *servers.PostgresServer) *pipeline {
	t.Helper()
	postgresDo(t, p, "faults", fmt.Sprintf("create role %s login password '%s'", r.name, postgresPassword))
	open := func(table string) *postgresQueue {
		postgresDo(t, p, "faults", fmt.Sprintf(`create table %[1]s (id bigint generated always as identity primary key, payload text not null,
			created_at timestamptz not null default clock_timestamp(), xact xid8 not null default pg_current_xact_id());
			create index on %[1]s (xact); create index on %[1]s (created_at); grant select, insert on %[1]s to %[2]s`, table, r.name))
		q := &postgresQueue{addr: p.Addr, table: table}
		t.Cleanup(q.drop)
		return q
	}
	head, dest := open(r.name+"_in"), open(r.name+"_out")
	r.secret = filepath.Join(t.TempDir(), "password")
	writeFile(t, r.secret, postgresPassword)
	headProxy, destProxy := servers.Proxy(t, p.Addr), servers.Proxy(t, p.Addr)
	yaml := func(proxy *servers.FaultProxy, more string) string {
		return fmt.Sprintf("postgres: {addresses: [%q], database: faults, username: %s, password: {file: %q}, timeout: 2s, %s%s}", proxy.Addr, r.name, r.secret, more, r.settings)
	}
	out := fmt.Sprintf("query: %q, start: %q, look_behind: 1s, poll_interval: 200ms, retention: %v", "select id, payload from "+dest.table+" where id > $1 order by id",
		"select coalesce(max(id), 0) from "+dest.table+" where created_at < $1", orElse(r.keeps, time.Hour))
	switch r.variant {
	case "transaction":
		out = fmt.Sprintf("query: %q, by: transaction, poll_interval: 200ms, retention: 1h", "select id, payload from "+dest.table+" where xact >= $1 order by id")
	case "channel":
		out = "channel: " + r.name
		postgresDo(t, p, "faults", fmt.Sprintf(`create function tell_%[1]s() returns trigger language plpgsql as $$ begin perform pg_notify('%[1]s', new.payload); return null; end $$;
			create trigger tell after insert on %[2]s for each row execute function tell_%[1]s()`, r.name, dest.table))
	}
	return &pipeline{
		head: head, dest: dest, headProxy: headProxy, destProxy: destProxy, broker: p, server: p,
		inject: yaml(headProxy, fmt.Sprintf("statement: %q", "insert into "+head.table+" (payload) values ($1)")), sink: yaml(destProxy, out),
	}
}

// postgresQueue is a table. The time of entry of a row is that of the commit of its transaction.
type postgresQueue struct {
	addr, table string
	stopped     atomic.Bool // nobody follows

	writing sync.Mutex // held while a message is put
	writer  *pgconn.PgConn
	begun   func(*pgconn.PgConn) // gets a transaction with the row that is put next, and commits it; nil: put does

	mu   sync.Mutex
	gone []message // rows that were deleted after they had been there in time
}

// drop ends the connection on which messages are put.
func (q *postgresQueue) drop() {
	q.writing.Lock()
	defer q.writing.Unlock()
	if q.writer != nil {
		postgresHangUp(q.writer)
		q.writer = nil
	}
}

// postgresHangUp does not wait for a server that does not answer.
func postgresHangUp(c *pgconn.PgConn) {
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	_ = c.Close(ctx)
}

func (q *postgresQueue) put(ctx context.Context, _ int, body []byte) (err error) {
	q.writing.Lock()
	defer q.writing.Unlock()
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	insert := func(c *pgconn.PgConn) error {
		_, err := c.ExecParams(ctx, "insert into "+q.table+" (payload) values ($1)", [][]byte{body}, nil, nil, nil).Close()
		return err
	}
	if begun := q.begun; begun != nil {
		c, err := postgresDial(ctx, q.addr, "faults")
		if err == nil {
			if _, err = c.Exec(ctx, "begin").ReadAll(); err == nil {
				err = insert(c)
			}
			if err != nil {
				postgresHangUp(c)
			}
		}
		if err == nil {
			q.begun = nil
			begun(c)
		}
		return err
	}
	if q.writer == nil {
		if q.writer, err = postgresDial(ctx, q.addr, "faults"); err != nil {
			q.writer = nil
			return err
		}
	}
	if err = insert(q.writer); err != nil {
		postgresHangUp(q.writer)
		q.writer = nil
	}
	return err
}

// postgresColumns are what take reads.
const postgresColumns = "id, payload, (extract(epoch from pg_xact_commit_timestamp(xmin)) * 1000000)::bigint"

func (q *postgresQueue) take(values [][]byte) (message, error) {
	micros, err := strconv.ParseInt(string(values[2]), 10, 64)
	return message{id: string(values[0]), body: slices.Clone(values[1]), at: time.UnixMicro(micros)}, err
}

// rows carries out a query that returns postgresColumns, and more columns, which it returns of the last row.
func (q *postgresQueue) rows(ctx context.Context, c *pgconn.PgConn, sql string, args ...string) (found []message, more []string, err error) {
	var values [][]byte
	for _, a := range args {
		values = append(values, []byte(a))
	}
	r := c.ExecParams(ctx, sql, values, nil, nil, nil).Read()
	for _, row := range r.Rows {
		m, err := q.take(row)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", q.table, err)
		}
		found = append(found, m)
		more = more[:0]
		for _, v := range row[3:] {
			more = append(more, string(v))
		}
	}
	return found, more, r.Err
}

// follow reads, each time, all that may have become visible since the time before.
func (q *postgresQueue) follow(ctx context.Context, f func(message)) {
	var c *pgconn.PgConn
	seen, oldest := map[string]bool{}, "0"
	for ; ctx.Err() == nil; pauseFor(ctx, 100*time.Millisecond) {
		if q.stopped.Load() {
			continue
		}
		err := func() (err error) {
			ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
			defer cancel()
			if c == nil {
				if c, err = postgresDial(ctx, q.addr, "faults"); err != nil {
					c = nil
					return err
				}
			}
			found, more, err := q.rows(ctx, c, "select "+postgresColumns+", pg_snapshot_xmin(pg_current_snapshot()) from "+q.table+" where xact >= $1 order by id", oldest)
			if err != nil || len(found) == 0 {
				return err
			}
			for _, m := range found {
				if !seen[m.id] {
					seen[m.id] = true
					f(m)
				}
			}
			oldest = more[0]
			return nil
		}()
		if err != nil && c != nil {
			postgresHangUp(c)
			c = nil
		}
	}
	if c != nil {
		postgresHangUp(c)
	}
}

// pauseFor waits, or until ctx ends.
func pauseFor(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

func (q *postgresQueue) all(ctx context.Context) ([]message, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	c, err := postgresDial(ctx, q.addr, "faults")
	if err != nil {
		return nil, err
	}
	defer postgresHangUp(c)
	q.mu.Lock()
	defer q.mu.Unlock()
	found, _, err := q.rows(ctx, c, "select "+postgresColumns+" from "+q.table+" order by id")
	found = append(slices.Clone(q.gone), found...)
	slices.SortStableFunc(found, func(a, b message) int { return a.at.Compare(b.at) })
	return found, err
}

// olderThan is a command for remove.
func (q *postgresQueue) olderThan(age time.Duration) string {
	return fmt.Sprintf("delete from %s where created_at < clock_timestamp() - interval '%d milliseconds' returning %s", q.table, age.Milliseconds(), postgresColumns)
}

// begin has the next message put into a transaction that f gets, to commit it.
func (q *postgresQueue) begin(f func(*pgconn.PgConn)) {
	q.writing.Lock()
	defer q.writing.Unlock()
	q.begun = f
}

// remove carries out a command that returns the rows which it removes. Those that count as having been there are kept.
func (q *postgresQueue) remove(t *testing.T, sql string, there bool) []message {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	c, err := postgresDial(ctx, q.addr, "faults")
	if err != nil {
		t.Fatal(err)
	}
	defer postgresHangUp(c)
	q.mu.Lock()
	defer q.mu.Unlock()
	found, _, err := q.rows(ctx, c, sql)
	if err != nil {
		t.Fatal(err)
	}
	if there {
		q.gone = append(q.gone, found...)
	}
	return found
}

// postgresRows lists what is broken in PostgreSQL, in the order of the table.
func postgresRows() []*row {
	of := func(f *field) *servers.PostgresServer { return f.server.(*servers.PostgresServer) }
	head := func(f *field) *postgresQueue { return f.head.(*postgresQueue) }
	dest := func(f *field) *postgresQueue { return f.dest.(*postgresQueue) }
	lateCommits := func(t *testing.T, f *field) {
		const late = 8
		var open sync.WaitGroup
		for range late {
			began := make(chan struct{})
			dest(f).begin(func(c *pgconn.PgConn) {
				open.Go(func() {
					defer postgresHangUp(c)
					pauseFor(t.Context(), 4*time.Second)
					if _, err := c.Exec(t.Context(), "commit").ReadAll(); err != nil {
						t.Errorf("commit: %v", err)
					}
				})
				close(began)
			})
			select {
			case <-began:
			case <-time.After(patience):
				t.Fatal("the pipeline puts nothing into the destination")
			}
			wait(t, 1500*time.Millisecond)
		}
		open.Wait()
		f.daemon.await(t, "all that came late are found behind younger ones", patience, func(s servers.Scrape) bool { return s.Sum("heartbeats_reordered_total") >= late })
	}
	everyFifth := func(n int, _ message) plan {
		if n%5 == 0 {
			return plan{copies: 3}
		}
		return forward
	}
	rows := append(only(commonRows(), "broker_restart", "broker_killed", "broker_sigstop", "accept_then_silent", "half_open", "packets_vanish", "slow_link", "sink_partition",
		"source_partition", "answers_lost", "long_outage", "monitor_killed", "duplicates", "reorder", "late", "one_in_7_dropped", "reload"),
		connectionsCut(5, 0),
		&row{
			name: "backends_terminated", does: "an operator ends all sessions (pg_terminate_backend), five times in 5 s", breaks: true,
			fault: func(t *testing.T, f *field) {
				for range 5 {
					postgresDo(t, of(f), "faults", "select count(pg_terminate_backend(pid)) from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()")
					wait(t, time.Second)
				}
			},
		},
		&row{
			name: "standby_promoted", does: "the server comes back as a standby, and is promoted 5 s later: another timeline", breaks: true,
			fault: func(t *testing.T, f *field) {
				of(f).Stop()
				of(f).Standby()
				of(f).Start()
				wait(t, 5*time.Second)
				if postgresDo(t, of(f), "faults", "select pg_promote(true, 60)") != "t" {
					t.Fatal("the server was not promoted")
				}
			},
		},
		&row{
			name: "login_changed", does: "the monitor's password is changed and its sessions are ended; 6 s later it is changed back",
			fault: func(t *testing.T, f *field) {
				postgresDo(t, of(f), "faults", fmt.Sprintf("alter role %s password 'another one'", f.name))
				postgresDo(t, of(f), "faults", fmt.Sprintf("select count(pg_terminate_backend(pid)) from pg_stat_activity where usename = '%s'", f.name))
				wait(t, 6*time.Second)
				postgresDo(t, of(f), "faults", fmt.Sprintf("alter role %s password '%s'", f.name, postgresPassword))
			},
		},
		&row{
			name: "late_commits", does: "eight transactions with a row stay open for 4 s, while others with higher ids come and go", interval: 100 * time.Millisecond, unnoticed: true, fault: lateCommits,
		},
		&row{
			name: "transaction_late_commits", does: "the same, read by transaction", variant: "transaction", interval: 100 * time.Millisecond, unnoticed: true, fault: lateCommits,
		},
		&row{
			name: "transaction_one_in_7_dropped", does: "1 in 7 is lost, read by transaction", variant: "transaction", interval: 100 * time.Millisecond, fault: relayed(200),
			plan: func(n int, _ message) plan {
				if n%7 == 0 {
					return plan{}
				}
				return forward
			},
		},
		&row{
			name: "expired_in_head", does: "the pipeline stands still for 8 s, and what is older than 3 s is cleaned out of its head",
			fault: func(t *testing.T, f *field) {
				head(f).stopped.Store(true)
				for range 16 {
					wait(t, 500*time.Millisecond)
					f.truth.add(head(f).remove(t, head(f).olderThan(3*time.Second), false), true)
				}
				head(f).stopped.Store(false)
			},
		},
		&row{
			name: "cleaned_up", does: "the destination, whose rows stay for 30 s, refuses the monitor for 42 s", keeps: 30 * time.Second, gap: true, long: true,
			fault: func(t *testing.T, f *field) {
				f.destProxy.Set(servers.Faults{Refuse: true})
				f.destProxy.Cut()
				for range 42 {
					wait(t, time.Second)
					dest(f).remove(t, dest(f).olderThan(f.keeps), true)
				}
				f.destProxy.Set(servers.Faults{})
			},
		},
		&row{
			name: "truncated", does: "the destination is truncated with heartbeats that the monitor has not read",
			fault: func(t *testing.T, f *field) {
				f.loseUnread(t, func(read []message) {
					last := "0"
					for _, m := range read {
						if len(m.id) > len(last) || len(m.id) == len(last) && m.id > last {
							last = m.id
						}
					}
					dest(f).remove(t, fmt.Sprintf("delete from %s where id <= %s returning %s", dest(f).table, last, postgresColumns), true)
					if postgresDo(t, of(f), "faults", "select count(*) from "+dest(f).table) == "0" {
						t.Error("there was nothing to lose")
					}
					postgresDo(t, of(f), "faults", "truncate "+dest(f).table)
				})
			},
		},
		&row{
			name: "channel_sink_partition", does: "the destination is a channel, and refuses the monitor alone for 10 s", variant: "channel", gap: true,
			fault: func(t *testing.T, f *field) {
				f.destProxy.Set(servers.Faults{Refuse: true})
				f.destProxy.Cut()
				wait(t, 10*time.Second)
				f.destProxy.Set(servers.Faults{})
			},
		},
		&row{
			name: "channel_half_open", does: "the destination is a channel; the far end of its connection vanishes without a word", variant: "channel", gap: true,
			fault: func(t *testing.T, f *field) {
				f.destProxy.HalfOpen()
				wait(t, 4*time.Second) // for it to show
			},
		},
		&row{
			name: "channel_stalls", does: "the destination is a channel, and nothing passes on its link for 1.5 s, nothing is closed", variant: "channel",
			fault: func(t *testing.T, f *field) {
				f.destProxy.Set(servers.Faults{Silent: true})
				wait(t, 1500*time.Millisecond)
				f.destProxy.Set(servers.Faults{})
			},
		},
		&row{
			name: "channel_duplicates", does: "the destination is a channel; 1 in 5 is delivered three times", variant: "channel", interval: 100 * time.Millisecond, fault: relayed(200), plan: everyFifth,
		},
		&row{
			name: "channel_one_in_7_dropped", does: "the destination is a channel; 1 in 7 is lost", variant: "channel", interval: 100 * time.Millisecond, fault: relayed(200),
			plan: func(n int, _ message) plan {
				if n%7 == 0 {
					return plan{}
				}
				return forward
			},
		},
	)
	for _, r := range rows {
		switch r.name {
		case "broker_restart":
			r.does = "SIGINT (fast shutdown), 3 s, start"
		case "broker_killed":
			r.does = "SIGQUIT (immediate shutdown), 3 s, start: it recovers from its log"
		}
		// A row has no time of its own for the monitor: it came when it was read. So there is time enough to read it.
		switch r.name {
		case "duplicates", "reorder", "late", "one_in_7_dropped", "reload", "transaction_one_in_7_dropped", "expired_in_head", "channel_duplicates", "channel_one_in_7_dropped":
		case "broker_restart", "broker_killed", "broker_sigstop", "standby_promoted":
			r.timeout = time.Minute
		case "long_outage":
			r.timeout = 2 * time.Minute
		case "cleaned_up":
			r.timeout = 50 * time.Second
		case "truncated", "channel_sink_partition", "channel_half_open", "channel_stalls":
			r.timeout = 15 * time.Second
		default:
			r.timeout = 25 * time.Second
		}
		r.settles = 3 * time.Second
	}
	return rows
}
