package conform_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lag-monitor/lag-monitor/internal/conform"
	"github.com/lag-monitor/lag-monitor/internal/conn"
	"github.com/lag-monitor/lag-monitor/internal/servers"
	"github.com/lag-monitor/lag-monitor/probe"
	"github.com/lag-monitor/lag-monitor/sinks"
)

// redisDirect runs f with a client of the test's own.
func redisDirect(t *testing.T, addr string, f func(ctx context.Context, c *redis.Client)) {
	t.Helper()
	c := redis.NewClient(&redis.Options{Addr: addr, MaxRetries: -1})
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	f(ctx, c)
}

// onRedis is a pipeline of one of the three kinds: stream, list or channel.
func onRedis(kind string) conform.Harness {
	variant := ""
	if kind != "stream" {
		variant = kind
	}
	return conform.Harness{
		Kind: "redis", Variant: variant, InjectorNeeds: []string{"addresses", "stream"}, SinkNeeds: []string{"addresses", "stream"},
		New: func(t *testing.T) conform.Pipeline {
			r := servers.Redis(t)
			users := filepath.Join(t.TempDir(), "users.acl")
			if err := os.WriteFile(users, []byte("user default off\nuser u on >p ~* &* +@all\nuser w on >p ~nothing resetchannels +ping\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			strict := servers.Redis(t, "--aclfile", users)
			proxy := servers.Proxy(t, r.Addr)
			secret := func(value string) conn.Secret {
				path := filepath.Join(t.TempDir(), "secret")
				if err := os.WriteFile(path, []byte(value), 0o600); err != nil {
					t.Fatal(err)
				}
				return conn.Secret{File: path}
			}
			at := func(addr, user string, password conn.Secret) conn.Redis {
				c := conn.NewRedis()
				c.Addresses, c.Username, c.Password = []string{addr}, user, password
				c.Timeout = conn.Duration(2 * time.Second)
				return c
			}
			inject := func(server conn.Redis, key string) func() probe.Config {
				return func() probe.Config {
					c := probe.NewRedis()
					c.Server = server
					switch kind {
					case "stream":
						c.Stream = probe.MustTemplate(key)
					case "list":
						c.List = probe.MustTemplate(key)
					default:
						c.Channel = probe.MustTemplate(key)
					}
					return c
				}
			}
			listen := func(server conn.Redis, key string) func() sinks.Config {
				return func() sinks.Config {
					c := sinks.NewRedis()
					c.Server = server
					switch kind {
					case "stream":
						c.Stream = key
					case "list":
						c.List, c.Dedicated = key, true
					default:
						c.Pattern = key + "*"
					}
					return c
				}
			}
			const key = "beats"
			if kind == "stream" {
				redisDirect(t, r.Addr, func(ctx context.Context, c *redis.Client) {
					if err := c.XGroupCreateMkStream(ctx, key, "real", "$").Err(); err != nil {
						t.Fatal(err)
					}
				})
			}
			there, nobody := at(proxy.Addr, "", conn.Secret{}), at(freeAddr(t), "", conn.Secret{})
			anonymous, wrong, nothing := at(strict.Addr, "", conn.Secret{}), at(strict.Addr, "u", secret("wrong")), at(strict.Addr, "w", secret("p"))
			p := conform.Pipeline{
				Inject: inject(there, key), Sink: listen(there, key),
				Put: func(t *testing.T, bodies ...[]byte) {
					redisDirect(t, r.Addr, func(ctx context.Context, c *redis.Client) {
						pipe := c.Pipeline()
						for _, b := range bodies {
							switch kind {
							case "stream":
								pipe.XAdd(ctx, &redis.XAddArgs{Stream: key, Values: []any{"order", b}})
							case "list":
								pipe.RPush(ctx, key, b)
							default:
								pipe.Publish(ctx, key+".more", b)
							}
						}
						if _, err := pipe.Exec(ctx); err != nil {
							t.Error(err)
						}
					})
				},
				Keeps: kind != "channel", Exclusive: kind == "list", Takes: kind == "list", LooksBack: kind == "stream", IDs: kind == "stream", Enqueued: kind == "stream",
				Stop: r.Stop, Start: r.Start,
				Hang: func() func() {
					r.Pause()
					return r.Resume
				},
				Broken: []conform.Broken{
					{Name: "nobody listens", Inject: inject(nobody, key), Sink: listen(nobody, key), Class: conn.Network},
					{Name: "no credentials", Inject: inject(anonymous, key), Sink: listen(anonymous, key), Class: conn.Auth},
					{Name: "wrong password", Inject: inject(wrong, key), Sink: listen(wrong, key), Class: conn.Auth},
					{Name: "may do nothing", Inject: inject(nothing, key), Sink: listen(nothing, key), Class: conn.Auth, Unseen: true},
				},
			}
			if kind == "stream" {
				p.Broken = append(p.Broken, conform.Broken{Name: "no such stream", Inject: inject(there, "nowhere"), Sink: listen(there, "nowhere"), Class: conn.Missing})
				p.Remaining = func(t *testing.T) (n int) {
					redisDirect(t, r.Addr, func(ctx context.Context, c *redis.Client) { n = int(c.XLen(ctx, key).Val()) })
					return n
				}
			}
			return p
		},
	}
}
