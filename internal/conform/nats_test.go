package conform_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/lag-monitor/lag-monitor/internal/conform"
	"github.com/lag-monitor/lag-monitor/internal/conn"
	"github.com/lag-monitor/lag-monitor/internal/servers"
	"github.com/lag-monitor/lag-monitor/probe"
	"github.com/lag-monitor/lag-monitor/sinks"
)

// natsDirect runs f with a connection of the test's own.
func natsDirect(t *testing.T, url string, f func(ctx context.Context, nc *nats.Conn, js jetstream.JetStream)) {
	t.Helper()
	nc, err := nats.Connect(url)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	f(ctx, nc, js)
}

// natsStrict is a server with two users: u may do everything, w nothing.
func natsStrict(t *testing.T) string {
	return servers.NATS(t, func(o *server.Options) {
		none := &server.SubjectPermission{Deny: []string{">"}}
		o.Users = []*server.User{{Username: "u", Password: "p"}, {Username: "w", Password: "p", Permissions: &server.Permissions{Publish: none, Subscribe: none}}}
	}).URL
}

func natsStream() conform.Harness { return natsHarness("", true) }
func natsCore() conform.Harness   { return natsHarness("core", false) }

func natsHarness(variant string, js bool) conform.Harness {
	const subject, stream = "beats.a", "BEATS"
	needs := []string{"url", "stream"}
	return conform.Harness{Kind: "nats", Variant: variant, InjectorNeeds: []string{"url", "subject"}, SinkNeeds: needs,
		New: func(t *testing.T) conform.Pipeline {
			n := servers.NATS(t)
			proxy := servers.Proxy(t, strings.TrimPrefix(n.URL, "nats://"))
			url := "nats://" + proxy.Addr
			strict := natsStrict(t)
			secret := func(value string) conn.Secret {
				path := filepath.Join(t.TempDir(), "secret")
				if err := os.WriteFile(path, []byte(value), 0o600); err != nil {
					t.Fatal(err)
				}
				return conn.Secret{File: path}
			}
			password, wrong := secret("p"), secret("wrong")
			if js {
				for _, u := range []string{n.URL, strings.Replace(strict, "//", "//u:p@", 1)} {
					natsDirect(t, u, func(ctx context.Context, _ *nats.Conn, js jetstream.JetStream) {
						if _, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: stream, Subjects: []string{"beats.>"}, AllowMsgTTL: true}); err != nil {
							t.Fatal(err)
						}
					})
				}
			}
			inject := func(broker conn.NATS, stream, subject string) func() probe.Config {
				return func() probe.Config {
					c := probe.NewNATS()
					c.Broker, c.Subject, c.JetStream, c.Stream = broker, probe.MustTemplate(subject), js, stream
					return c
				}
			}
			listen := func(broker conn.NATS, stream, subject string) func() sinks.Config {
				return func() sinks.Config {
					c := sinks.NewNATS()
					c.Broker, c.JetStream, c.Stream, c.Subject = broker, js, stream, subject
					return c
				}
			}
			nobody := conn.NATS{URL: "nats://" + freeAddr(t)}
			p := conform.Pipeline{
				Inject: inject(conn.NATS{URL: url}, "", subject),
				Sink:   listen(conn.NATS{URL: url}, "", "beats.*"),
				Put: func(t *testing.T, bodies ...[]byte) {
					natsDirect(t, n.URL, func(ctx context.Context, nc *nats.Conn, stream jetstream.JetStream) {
						for _, b := range bodies {
							var err error
							if js {
								_, err = stream.PublishAsync("beats.other", b)
							} else {
								err = nc.Publish("beats.other", b)
							}
							if err != nil {
								t.Error(err)
							}
						}
						if js {
							select {
							case <-stream.PublishAsyncComplete():
							case <-ctx.Done():
								t.Error("put: not stored in time")
							}
						} else if err := nc.Flush(); err != nil {
							t.Error(err)
						}
					})
				},
				Keeps: js, LooksBack: js, IDs: js, Enqueued: js,
				Stop: n.Stop, Start: n.Start,
				Hang: func() func() {
					proxy.Set(servers.Faults{Silent: true})
					return func() { proxy.Set(servers.Faults{}) }
				},
				Broken: []conform.Broken{
					{Name: "nobody listens", Inject: inject(nobody, "", subject), Sink: listen(nobody, "", subject), Class: conn.Network},
					{Name: "no credentials", Inject: inject(conn.NATS{URL: strict}, "", subject), Sink: listen(conn.NATS{URL: strict}, "", subject), Class: conn.Auth},
					{Name: "wrong password", Inject: inject(conn.NATS{URL: strict, Username: "u", Password: wrong}, "", subject),
						Sink: listen(conn.NATS{URL: strict, Username: "u", Password: wrong}, "", subject), Class: conn.Auth},
					{Name: "may not listen", Sink: listen(conn.NATS{URL: strict, Username: "w", Password: password}, "", subject), Class: conn.Auth},
					{Name: "may not publish", Inject: inject(conn.NATS{URL: strict, Username: "w", Password: password}, "", subject), Class: conn.Auth, Unseen: !js},
				},
			}
			if js {
				p.Remaining = func(t *testing.T) (left int) {
					natsDirect(t, n.URL, func(ctx context.Context, _ *nats.Conn, js jetstream.JetStream) {
						s, err := js.Stream(ctx, stream)
						if err != nil {
							t.Error(err)
							return
						}
						left = int(s.CachedInfo().State.Msgs)
					})
					return left
				}
				there := conn.NATS{URL: url}
				p.Broken = append(p.Broken,
					conform.Broken{Name: "no such stream", Inject: inject(there, "", "nowhere.a"), Sink: listen(there, "NOWHERE", ""), Class: conn.Missing},
					conform.Broken{Name: "no stream of this subject", Sink: listen(there, "", "nowhere.*"), Class: conn.Missing},
				)
			}
			return p
		}}
}
