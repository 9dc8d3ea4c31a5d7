package probe

import (
	"bytes"
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/lag-monitor/lag-monitor/internal/conn"
	"github.com/lag-monitor/lag-monitor/internal/servers"
)

// pgRig is an injector on a server of its own, and a client beside it.
type pgRig struct {
	t      *testing.T
	server *servers.PostgresServer
	client *pgconn.PgConn
	cfg    *PostgresConfig
	in     Injector
}

func onPostgres(t *testing.T, setup string, configure func(*PostgresConfig)) *pgRig {
	t.Helper()
	r := &pgRig{t: t, server: servers.Postgres(t, servers.PostgresOptions{}), cfg: NewPostgres()}
	r.connect()
	r.do(setup)
	r.cfg.Server.Addresses, r.cfg.Server.Database, r.cfg.Server.Username = []string{r.server.Addr}, "postgres", "postgres"
	r.cfg.Server.Timeout = conn.Duration(20 * time.Second)
	configure(r.cfg)
	if err := r.cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	in, err := r.cfg.Open()
	if err != nil {
		t.Fatal(err)
	}
	r.in = in
	t.Cleanup(func() { in.Close() })
	return r
}

func (r *pgRig) connect() {
	r.t.Helper()
	var err error
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if r.client, err = pgconn.Connect(r.t.Context(), "postgres://postgres@"+r.server.Addr+"/postgres?sslmode=disable"); err == nil {
			c := r.client
			r.t.Cleanup(func() { c.Close(context.Background()) })
			return
		}
	}
	r.t.Fatal(err)
}

func (r *pgRig) do(sql string) string {
	r.t.Helper()
	results, err := r.client.Exec(r.t.Context(), sql).ReadAll()
	if err != nil {
		r.t.Fatalf("%s: %v", sql, err)
	}
	if len(results) == 0 || len(results[len(results)-1].Rows) == 0 {
		return ""
	}
	return string(bytes.Join(results[len(results)-1].Rows[0], []byte("|")))
}

func (r *pgRig) inject(within time.Duration) error {
	ctx, cancel := context.WithTimeout(r.t.Context(), within)
	defer cancel()
	return r.in.Inject(ctx, Sample())
}

// start begins an injection that ends with cancel.
func (r *pgRig) start() (<-chan error, context.CancelFunc) {
	ctx, cancel := context.WithCancel(r.t.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.in.Inject(ctx, Sample()) }()
	return ended, cancel
}

// Every word has its value, in the form that a column of its type takes.
func TestPostgresParameters(t *testing.T) {
	r := onPostgres(t, `create table outbox (body jsonb, bytes bytea, token text, probe text, seq bigint, lane int, sent timestamptz, due timestamptz,
		expires timestamptz, uuid uuid primary key, traceparent text, epoch bigint)`, func(c *PostgresConfig) {
		c.Statement = "insert into outbox values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)"
		c.Parameters = append(strings.Fields("body bytes token probe seq lane sent due expires uuid traceparent"), "{{ .Due.Unix }}")
		c.Body = MustTemplate(`{"it's": "\\x", "heartbeat": "{{ .Token }}"}`)
	})
	if err := r.in.(Checker).Check(t.Context()); err != nil {
		t.Errorf("check: %v", err)
	}
	for range 2 { // no uuid twice
		if err := r.inject(time.Minute); err != nil {
			t.Fatal(err)
		}
	}
	m := Sample()
	got := r.do(`select body->>'heartbeat' || (body->>'it''s'), convert_from(bytes, 'UTF8'), token, probe, seq, lane, sent = to_timestamp(1700000000), due = sent,
		expires - sent, uuid_send(uuid) <> '', traceparent, epoch from outbox`)
	want := strings.Join([]string{m.Token + `\x`, `{"it's": "\\x", "heartbeat": "` + m.Token + `"}`, m.Token, "sample", "1", "0", "t", "t", "00:01:00", "t", m.TraceParent, "1700000000"}, "|")
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if n := r.do("select count(*) from outbox"); n != "2" {
		t.Errorf("%s rows", n)
	}
	if got := r.do("select application_name from pg_stat_activity where pid <> pg_backend_pid() and backend_type = 'client backend'"); got != "lag-monitor" {
		t.Errorf("the session is named %q", got)
	}
}

// Until COMMIT leaves nothing is in the pipeline; after that, only the server's word tells.
func TestPostgresOutcomes(t *testing.T) {
	r := onPostgres(t, `create table outbox (id int primary key, payload text); create table mood (m text); insert into mood values ('fine');
		create function wait() returns trigger language plpgsql as $$ begin
			if (select m from mood) = TG_ARGV[0] then perform pg_sleep(300); end if;
			if (select m from mood) = 'refuse ' || TG_ARGV[0] then raise exception 'no, says %', TG_ARGV[0]; end if;
			return new; end $$;
		create trigger early before insert on outbox for each row execute function wait('statement');
		create constraint trigger late after insert on outbox deferrable initially deferred for each row execute function wait('commit');
		alter role postgres set client_connection_check_interval = '5s'`, // the cancelling has a moment, which may be too short on a busy machine
		func(c *PostgresConfig) {
			c.Statement = "insert into outbox select coalesce(max(id), 0) + 1, $1 from outbox on conflict do nothing"
		})
	count := func(want string) {
		t.Helper()
		if n := r.do("select count(*) from outbox"); n != want {
			t.Errorf("%s rows, want %s", n, want)
		}
	}
	mood := func(m string) { r.do("update mood set m = '" + m + "'") }
	expect := func(err error, refused bool, text string) {
		t.Helper()
		if err == nil || IsRefused(err) != refused || !strings.Contains(err.Error(), text) {
			t.Errorf("%v, refused %t, want %q, refused %t", err, IsRefused(err), text, refused)
		}
	}
	if err := r.inject(time.Minute); err != nil {
		t.Fatal(err)
	}
	count("1")
	for _, when := range []string{"statement", "commit"} {
		mood("refuse " + when)
		expect(r.inject(time.Minute), true, when+": ERROR: no, says "+when)
		count("1")

		// We break it off in the middle, and the server cancels it.
		mood(when)
		ended, cancel := r.start()
		r.wait("select count(*) from pg_stat_activity where wait_event = 'PgSleep'", "1")
		cancel()
		expect(<-ended, when == "statement", when+": ")
		r.gone()
		count("1")

		// The server ends the session in the middle.
		ended, cancel = r.start()
		defer cancel()
		r.wait("select count(*) from pg_stat_activity where wait_event = 'PgSleep'", "1")
		r.do("select pg_terminate_backend(pid) from pg_stat_activity where wait_event = 'PgSleep'")
		expect(<-ended, when == "statement", "57P01")
		r.gone()
		count("1")
	}
	mood("fine")
	r.cfg.Statement = "insert into outbox values (1, $1) on conflict do nothing"
	expect(r.inject(time.Minute), true, "statement: it has written no row")
	r.cfg.Statement = "commit -- $1"
	r.in.(*postgresInjector).parameters = nil
	expect(r.inject(time.Minute), false, "statement: it has ended the transaction by itself")
	r.cfg.Statement = "insert into outbox values (2, 'x'); insert into outbox values (3, 'x')"
	expect(r.inject(time.Minute), true, "42601")
	count("1")
	r.cfg.Statement = "insert into outbox values ($1::int, $2)"
	if err := r.in.(Checker).Check(t.Context()); err == nil || err.Error() != "statement: it has 2 placeholders, and there are 0 parameters" {
		t.Errorf("check: %v", err)
	}
}

// gone waits until no session of ours waits for anything.
func (r *pgRig) gone() {
	r.t.Helper()
	r.wait("select count(*) from pg_stat_activity where wait_event = 'PgSleep'", "0")
}

func (r *pgRig) wait(sql, want string) {
	r.t.Helper()
	for deadline := time.Now().Add(time.Minute); r.do(sql) != want; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			r.t.Fatalf("%s is not %s within a minute", sql, want)
		}
	}
}

// The answer to COMMIT is lost: the heartbeat is in the table, and the injector does not say that it is not.
func TestPostgresAnswerLost(t *testing.T) {
	r := onPostgres(t, `create table outbox (payload text); create table gate (n int);
		create function wait() returns trigger language plpgsql as $$ begin lock table gate; return new; end $$;
		create constraint trigger late after insert on outbox deferrable initially deferred for each row execute function wait()`,
		func(c *PostgresConfig) { c.Statement = "insert into outbox values ($1)" })
	proxy := servers.Proxy(t, r.server.Addr)
	r.cfg.Server.Addresses = []string{proxy.Addr}
	second := &pgRig{t: t, server: r.server}
	second.connect()
	for n, how := range []string{"given up", "reset"} {
		r.do("begin; lock table gate")
		ended, cancel := r.start()
		defer cancel()
		second.wait("select count(*) from pg_stat_activity where query = 'commit' and wait_event_type = 'Lock'", "1")
		proxy.Set(servers.Faults{Silent: true}) // nor does it hear that it is to break off
		r.do("commit")
		second.wait("select count(*) from outbox", strconv.Itoa(n+1))
		if how == "reset" {
			proxy.Cut()
		} else {
			cancel()
		}
		if err := <-ended; err == nil || IsRefused(err) {
			t.Errorf("%s: %v, refused %t, want unknown", how, err, IsRefused(err))
		}
		proxy.Set(servers.Faults{})
	}
}

// A connection that died while it was idle costs no heartbeat.
func TestPostgresIdleConnectionDied(t *testing.T) {
	r := onPostgres(t, "create table outbox (payload text)", func(c *PostgresConfig) { c.Statement = "insert into outbox values ($1)" })
	for range 3 {
		if err := r.inject(time.Minute); err != nil {
			t.Fatal(err)
		}
		r.do("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'lag-monitor'")
	}
	r.server.Kill()
	if err := r.inject(time.Minute); !IsRefused(err) || conn.ClassOf(err) != conn.Network {
		t.Errorf("%v, refused %t, class %s", err, IsRefused(err), conn.ClassOf(err))
	}
	r.server.Start()
	r.connect()
	if err := r.inject(time.Minute); err != nil {
		t.Error(err)
	}
	if n := r.do("select count(*) from outbox"); n != "4" {
		t.Errorf("%s rows, want 4", n)
	}
}

func TestPostgresNotifyTooLong(t *testing.T) {
	r := onPostgres(t, "", func(c *PostgresConfig) { c.Notify = MustTemplate("of {{ .Probe }}") })
	r.do(`listen "of sample"`)
	if err := r.inject(time.Minute); err != nil {
		t.Fatal(err)
	}
	r.cfg.Body = MustTemplate("{{ .Token }}" + strings.Repeat("x", postgresPayload-len(Sample().Token)))
	if err := r.inject(time.Minute); err != nil {
		t.Error(err)
	}
	r.cfg.Body = MustTemplate("{{ .Token }}" + strings.Repeat("x", postgresPayload+1-len(Sample().Token)))
	if err := r.inject(time.Minute); !IsRefused(err) || err.Error() != "the body has 8000 bytes, and a notification takes 7999" {
		t.Errorf("%v, refused %t", err, IsRefused(err))
	}
}

func TestPostgresValidate(t *testing.T) {
	base := func() *PostgresConfig {
		c := NewPostgres()
		c.Server.Addresses, c.Server.Database, c.Server.Username = []string{"db:5432"}, "d", "u"
		return c
	}
	for _, tc := range []struct {
		configure func(*PostgresConfig)
		want      string
	}{
		{func(*PostgresConfig) {}, "statement: one of statement and notify is required"},
		{func(c *PostgresConfig) { c.Statement, c.Notify = "x", MustTemplate("y") }, "statement: one of statement and notify is required"},
		{func(c *PostgresConfig) { c.Notify, c.Body = MustTemplate("y"), MustTemplate("z") }, "body: the heartbeat is not in the message: put {{ .Token }} into it"},
		{func(c *PostgresConfig) { c.Statement, c.Parameters = "x", []string{"id"} },
			"parameters[0]: is one of body, bytes, due, expires, lane, probe, sent, seq, token, traceparent, uuid, or a template with {{ }}"},
		{func(c *PostgresConfig) { c.Statement, c.Parameters = "x", []string{"uuid"} },
			"parameters: the heartbeat is in none of them: name body, bytes or token"},
		{func(c *PostgresConfig) { c.Statement, c.Parameters = "x", []string{"bytes"} }, "<nil>"},
		{func(c *PostgresConfig) {
			c.Statement, c.Parameters = "x", []string{"<{{ .Token }}>"}
		}, "<nil>"},
	} {
		c := base()
		tc.configure(c)
		if got := fmt.Sprint(c.Validate()); got != tc.want {
			t.Errorf("got\n%s\nwant\n%s", got, tc.want)
		}
	}
}
