package conform_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/lag-monitor/lag-monitor/internal/conform"
	"github.com/lag-monitor/lag-monitor/internal/conn"
	"github.com/lag-monitor/lag-monitor/internal/servers"
	"github.com/lag-monitor/lag-monitor/probe"
	"github.com/lag-monitor/lag-monitor/sinks"
)

// TestConformancePostgres runs all variants on one server, which takes a second to start.
func TestConformancePostgres(t *testing.T) {
	servers.Need(t)
	p := servers.Postgres(t, servers.PostgresOptions{Password: true})
	postgresDirect(t, p, "postgres", func(ctx context.Context, l *conn.PostgresLink) error {
		_, _, err := l.Do(ctx, "create role u login password 'p'; create role w login password 'p'")
		return err
	})
	for _, h := range onPostgres(p) {
		t.Run(h.Name(), func(t *testing.T) { conform.Run(t, h) })
	}
}

// onPostgres are an outbox that is read by its key and one that is read by transaction, and a channel.
func onPostgres(p *servers.PostgresServer) []conform.Harness {
	return []conform.Harness{postgresHarness(p, ""), postgresHarness(p, "transaction"), postgresHarness(p, "channel")}
}

// postgresDirect runs f with a connection of the test's own, as the superuser.
func postgresDirect(t *testing.T, p *servers.PostgresServer, database string, f func(ctx context.Context, l *conn.PostgresLink) error) {
	t.Helper()
	c := conn.NewPostgres()
	c.Addresses, c.Database, c.Username, c.Timeout = []string{p.Addr}, database, "postgres", conn.Duration(20*time.Second)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	l, err := c.Connect(ctx, nil)
	if err == nil {
		defer l.Close()
		err = f(ctx, l)
	}
	if err != nil {
		t.Error(err)
	}
}

func postgresHarness(server *servers.PostgresServer, variant string) conform.Harness {
	var made atomic.Int32
	// The server that one check starts again outlives it.
	leaks := []goleak.Option{goleak.IgnoreAnyFunction("github.com/lag-monitor/lag-monitor/internal/servers.(*Process).Start.func1")}
	return conform.Harness{
		Kind: "postgres", Variant: variant, Leaks: leaks,
		InjectorNeeds: []string{"addresses", "database", "username", "statement"}, SinkNeeds: []string{"addresses", "database", "username", "query"},
		New: func(t *testing.T) conform.Pipeline {
			database := fmt.Sprintf("conform%s%d", variant, made.Add(1))
			postgresDirect(t, server, "postgres", func(ctx context.Context, l *conn.PostgresLink) error {
				_, _, err := l.Do(ctx, "create database "+database)
				return err
			})
			postgresDirect(t, server, database, func(ctx context.Context, l *conn.PostgresLink) error {
				_, _, err := l.Do(ctx, `create table outbox (id bigint generated always as identity primary key, payload text not null,
					created_at timestamptz not null default clock_timestamp(), xact xid8 not null default pg_current_xact_id());
					create index on outbox (xact); create index on outbox (created_at); grant select, insert on outbox to u`)
				return err
			})
			proxy := servers.Proxy(t, server.Addr)
			secret := func(value string) conn.Secret {
				path := filepath.Join(t.TempDir(), "secret")
				if err := os.WriteFile(path, []byte(value), 0o600); err != nil {
					t.Fatal(err)
				}
				return conn.Secret{File: path}
			}
			inject := func(server conn.Postgres, table string) func() probe.Config {
				return func() probe.Config {
					c := probe.NewPostgres()
					c.Server = server
					if variant == "channel" {
						c.Notify = probe.MustTemplate(table)
					} else {
						c.Statement = "insert into " + table + " (payload) values ($1)"
					}
					return c
				}
			}
			listen := func(server conn.Postgres, table string) func() sinks.Config {
				return func() sinks.Config {
					c := sinks.NewPostgres()
					c.Server = server
					if variant == "channel" {
						c.Channel = table
						return c
					}
					c.Retention, c.LookBehind, c.PollInterval = conn.Duration(time.Hour), conn.Duration(time.Second), conn.Duration(50*time.Millisecond)
					if variant == "transaction" {
						c.By = "transaction"
						c.Query = "select id, payload from " + table + " where xact >= $1 order by xact, id"
						c.Start = "select min(xact::text::bigint) from " + table + " where created_at >= $1"
						return c
					}
					c.Query = "select id, payload from " + table + " where id > $1 order by id limit 100"
					c.Start = "select coalesce(max(id), 0) from " + table + " where created_at < $1"
					return c
				}
			}
			here := conn.NewPostgres()
			here.Addresses, here.Database, here.Username, here.Password = []string{proxy.Addr}, database, "u", secret("p")
			here.Timeout = conn.Duration(10 * time.Second)
			nobody, wrong, elsewhere, poor := here, here, here, here
			nobody.Addresses = []string{freeAddr(t)}
			wrong.Password, elsewhere.Database, poor.Username = secret("wrong"), "nowhere", "w"
			pipeline := conform.Pipeline{
				Inject: inject(here, "outbox"), Sink: listen(here, "outbox"),
				Put: func(t *testing.T, bodies ...[]byte) {
					t.Helper()
					postgresDirect(t, server, database, func(ctx context.Context, l *conn.PostgresLink) error {
						if _, _, err := l.Do(ctx, "begin"); err != nil {
							return err
						}
						for n, b := range bodies {
							sql := "insert into outbox (payload) values ($1)"
							if variant == "channel" {
								// The server sends what is the same twice in a transaction once.
								sql, b = "select pg_notify('outbox', $1)", append(strconv.AppendInt(nil, int64(n), 10), b...)
							}
							if _, err := l.Each(ctx, sql, [][]byte{b}, nil); err != nil {
								return err
							}
						}
						_, _, err := l.Do(ctx, "commit")
						return err
					})
				},
				Keeps: variant != "channel", LooksBack: variant != "channel", IDs: variant != "channel",
				Stop: server.Stop, Start: server.Start,
				Hang: func() func() {
					proxy.Set(servers.Faults{Silent: true})
					return func() { proxy.Set(servers.Faults{}) }
				},
				Within: 30 * time.Second,
				Broken: []conform.Broken{
					{Name: "nobody listens", Inject: inject(nobody, "outbox"), Sink: listen(nobody, "outbox"), Class: conn.Network},
					{Name: "wrong password", Inject: inject(wrong, "outbox"), Sink: listen(wrong, "outbox"), Class: conn.Auth},
					{Name: "no such database", Inject: inject(elsewhere, "outbox"), Sink: listen(elsewhere, "outbox"), Class: conn.Missing},
				},
			}
			if variant != "channel" {
				pipeline.Broken = append(pipeline.Broken,
					conform.Broken{Name: "no such table", Inject: inject(here, "nowhere"), Sink: listen(here, "nowhere"), Class: conn.Missing},
					conform.Broken{Name: "may not write", Inject: inject(poor, "outbox"), Class: conn.Auth, Unseen: true},
					conform.Broken{Name: "may not read", Sink: listen(poor, "outbox"), Class: conn.Auth},
				)
				pipeline.Remaining = func(t *testing.T) (n int) {
					postgresDirect(t, server, database, func(ctx context.Context, l *conn.PostgresLink) error {
						rows, _, err := l.Do(ctx, "select count(*) from outbox")
						if err == nil {
							n, err = strconv.Atoi(string(rows[0][0]))
						}
						return err
					})
					return n
				}
			}
			return pipeline
		},
	}
}
