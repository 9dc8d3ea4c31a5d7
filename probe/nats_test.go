package probe

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"github.com/lag-monitor/lag-monitor/internal/conn"
	"github.com/lag-monitor/lag-monitor/internal/servers"
)

func natsServer(t *testing.T, login string, change ...func(*server.Options)) (url string, js jetstream.JetStream) {
	t.Helper()
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) })
	url = servers.NATS(t, change...).URL
	nc, err := nats.Connect(url[:len("nats://")] + login + url[len("nats://"):])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	if js, err = jetstream.New(nc); err != nil {
		t.Fatal(err)
	}
	return url, js
}

func openNATS(t *testing.T, url string, change func(*NATSConfig)) Injector {
	t.Helper()
	c := NewNATS()
	c.Broker.URL, c.Subject = url, MustTemplate("s.{{ .Probe }}")
	change(c)
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	in, err := c.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := in.Close(); err != nil {
			t.Error(err)
		}
	})
	return in
}

func lastMessage(t *testing.T, js jetstream.JetStream) *jetstream.RawStreamMsg {
	t.Helper()
	s, err := js.Stream(t.Context(), "S")
	if err != nil {
		t.Fatal(err)
	}
	m, err := s.GetLastMsgForSubject(t.Context(), "s.sample")
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestNATSMessage(t *testing.T) {
	url, js := natsServer(t, "")
	config := jetstream.StreamConfig{Name: "S", Subjects: []string{"s.>"}, AllowMsgTTL: true}
	if _, err := js.CreateStream(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	in := openNATS(t, url, func(c *NATSConfig) { c.Body = MustTemplate("beat {{ .Token }}") })
	if err := inject(t, in, 5*time.Second); err != nil {
		t.Fatal(err)
	}
	m := lastMessage(t, js)
	if string(m.Data) != "beat "+Sample().Token {
		t.Errorf("body is %q", m.Data)
	}
	for name, want := range map[string]string{Header: Sample().Token, TraceHeader: Sample().TraceParent, "Nats-TTL": "1m0s", "Nats-Msg-Id": ""} {
		if got := m.Header.Get(name); got != want && (m.Header[name] == nil || m.Header[name][0] != want) {
			t.Errorf("header %s is %q, want %q (of %v)", name, got, want, m.Header)
		}
	}
}

// A heartbeat that nobody takes out of the stream leaves it by itself.
func TestNATSTTLExpires(t *testing.T) {
	url, js := natsServer(t, "")
	s, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "S", Subjects: []string{"s.>"}, AllowMsgTTL: true})
	if err != nil {
		t.Fatal(err)
	}
	in := openNATS(t, url, func(*NATSConfig) {})
	m := Sample()
	m.TTL = 300 * time.Millisecond // rounded up to the server's smallest
	if err := in.Inject(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		info, err := s.Info(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if info.State.Msgs == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the heartbeat is still in the stream")
		}
	}
}

// A stream that takes no TTL gets none, also when it has taken them before or is another one than asked for.
func TestNATSStreamChanges(t *testing.T) {
	url, js := natsServer(t, "")
	with := jetstream.StreamConfig{Name: "S", Subjects: []string{"s.>"}, AllowMsgTTL: true}
	if _, err := js.CreateStream(t.Context(), with); err != nil {
		t.Fatal(err)
	}
	in := openNATS(t, url, func(*NATSConfig) {})
	if err := inject(t, in, 5*time.Second); err != nil {
		t.Fatal(err)
	}
	if err := js.DeleteStream(t.Context(), "S"); err != nil {
		t.Fatal(err)
	}
	if err := inject(t, in, 5*time.Second); !IsRefused(err) || conn.ClassOf(err) != conn.Missing {
		t.Errorf("without a stream: %v", err)
	}
	without := with
	without.AllowMsgTTL = false
	if _, err := js.CreateStream(t.Context(), without); err != nil {
		t.Fatal(err)
	}
	if err := inject(t, in, 5*time.Second); !IsRefused(err) {
		t.Errorf("the first heartbeat with a TTL into a stream that takes none: %v", err)
	}
	if err := inject(t, in, 5*time.Second); err != nil {
		t.Errorf("the second one: %v", err)
	}
	if m := lastMessage(t, js); m.Header.Get("Nats-TTL") != "" {
		t.Errorf("headers are %v", m.Header)
	}
	other := openNATS(t, url, func(c *NATSConfig) { c.Stream = "OTHER" })
	if err := inject(t, other, 5*time.Second); !IsRefused(err) {
		t.Errorf("a stream that is not the one asked for: %v", err)
	}
}

func TestNATSDeduplicate(t *testing.T) {
	url, js := natsServer(t, "")
	s, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "S", Subjects: []string{"s.>"}})
	if err != nil {
		t.Fatal(err)
	}
	in := openNATS(t, url, func(c *NATSConfig) { c.Deduplicate = true })
	for range 2 {
		if err := inject(t, in, 5*time.Second); err != nil {
			t.Fatal(err)
		}
	}
	if info, err := s.Info(t.Context()); err != nil || info.State.Msgs != 1 {
		t.Errorf("the stream holds %d messages (%v), want 1", info.State.Msgs, err)
	}
}

// A user who may publish and nothing else is enough; what is denied is refused at once, and recovers.
func TestNATSPermissions(t *testing.T) {
	url, js := natsServer(t, "admin:p@", func(o *server.Options) {
		allow := func(s ...string) *server.SubjectPermission { return &server.SubjectPermission{Allow: s} }
		o.Users = []*server.User{{Username: "admin", Password: "p"},
			{Username: "u", Password: "p", Permissions: &server.Permissions{Publish: allow("s.sample"), Subscribe: allow("_INBOX.>")}}}
	})
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "S", Subjects: []string{"s.>"}, AllowMsgTTL: true}); err != nil {
		t.Fatal(err)
	}
	password := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(password, []byte("p"), 0o600); err != nil {
		t.Fatal(err)
	}
	broker := conn.NATS{URL: url, Username: "u", Password: conn.Secret{File: password}}
	for _, stored := range []bool{true, false} {
		in := openNATS(t, url, func(c *NATSConfig) {
			c.Broker, c.JetStream = broker, stored
			c.Subject = MustTemplate("s.{{ if eq .Seq 1 }}sample{{ else }}denied{{ end }}")
		})
		if err := inject(t, in, 5*time.Second); err != nil {
			t.Errorf("jetstream %t: may publish: %v", stored, err)
		}
		m := Sample()
		m.Seq = 2
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		began := time.Now()
		err := in.Inject(ctx, m)
		cancel()
		if !IsRefused(err) || conn.ClassOf(err) != conn.Auth || time.Since(began) > 2*time.Second {
			t.Errorf("jetstream %t: may not publish: %v after %s", stored, err, time.Since(began))
		}
		if err := inject(t, in, 5*time.Second); err != nil {
			t.Errorf("jetstream %t: may publish, afterwards: %v", stored, err)
		}
		if err := in.(Checker).Check(t.Context()); err != nil {
			t.Errorf("jetstream %t: check: %v", stored, err)
		}
	}
}

// An account that cannot hear JetStream's answers is refused before anything leaves, so that nothing is in doubt.
func TestNATSInboxDenied(t *testing.T) {
	url, js := natsServer(t, "admin:p@", func(o *server.Options) {
		o.Users = []*server.User{{Username: "admin", Password: "p"},
			{Username: "u", Password: "p", Permissions: &server.Permissions{Subscribe: &server.SubjectPermission{Deny: []string{">"}}}}}
	})
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "S", Subjects: []string{"s.>"}}); err != nil {
		t.Fatal(err)
	}
	password := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(password, []byte("p"), 0o600); err != nil {
		t.Fatal(err)
	}
	in := openNATS(t, url, func(c *NATSConfig) {
		c.Broker = conn.NATS{URL: url, Username: "u", Password: conn.Secret{File: password}}
		c.Subject = MustTemplate("s.a")
	})
	for range 20 {
		if err := inject(t, in, 5*time.Second); !IsRefused(err) || !errors.Is(err, conn.ErrNATSInbox) || conn.ClassOf(err) != conn.Auth {
			t.Fatalf("inject: %v, want it refused for its inbox", err)
		}
	}
	if err := in.(Checker).Check(t.Context()); !errors.Is(err, conn.ErrNATSInbox) {
		t.Errorf("check: %v, want the inbox", err)
	}
	s, err := js.Stream(t.Context(), "S")
	if err != nil {
		t.Fatal(err)
	}
	if n := s.CachedInfo().State.Msgs; n != 0 {
		t.Errorf("the stream holds %d messages that were refused", n)
	}
}

func TestNATSValidate(t *testing.T) {
	for _, c := range []struct {
		change func(*NATSConfig)
		want   string
	}{
		{func(c *NATSConfig) { c.Subject = Template{} }, "subject: is required"},
		{func(c *NATSConfig) { c.Subject = MustTemplate("s.*") }, `subject: "s.*" holds a wildcard, to which nothing can be published`},
		{func(c *NATSConfig) { c.Subject = MustTemplate("s. x") }, `subject: "s. x" is not a subject such as orders.new`},
		{func(c *NATSConfig) { c.Body = MustTemplate("x") }, "body: the heartbeat is not in the message: put {{ .Token }} into it"},
		{func(c *NATSConfig) { c.JetStream, c.Stream = false, "S" }, "stream: cannot be combined with jetstream: false"},
		{func(c *NATSConfig) { c.JetStream, c.Deduplicate = false, true }, "deduplicate: cannot be combined with jetstream: false"},
	} {
		config := NewNATS()
		config.Broker.URL, config.Subject = "nats://host", MustTemplate("s")
		c.change(config)
		err := config.Validate()
		if err == nil || err.Error() != c.want {
			t.Errorf("got %v\nwant %s", err, c.want)
		}
		var f *conn.FieldError
		if !errors.As(err, &f) {
			t.Errorf("%v names no key", err)
		}
	}
}
