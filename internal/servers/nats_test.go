package servers_test

import (
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/lag-monitor/lag-monitor/internal/servers"
)

func TestNATS(t *testing.T) {
	n := servers.NATS(t)
	connect := func() jetstream.JetStream {
		t.Helper()
		nc, err := nats.Connect(n.URL)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(nc.Close)
		js, err := jetstream.New(nc)
		if err != nil {
			t.Fatal(err)
		}
		return js
	}
	js := connect()
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "S", Subjects: []string{"s.>"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := js.Publish(t.Context(), "s.a", []byte("one")); err != nil {
		t.Fatal(err)
	}
	n.Stop()
	if nc, err := nats.Connect(n.URL, nats.Timeout(time.Second)); err == nil {
		nc.Close()
		t.Error("a stopped server took a connection")
	}
	n.Start()
	s, err := connect().Stream(t.Context(), "S")
	if err != nil {
		t.Fatal(err)
	}
	m, err := s.GetLastMsgForSubject(t.Context(), "s.a")
	if err != nil || string(m.Data) != "one" {
		t.Errorf("after the restart the stream holds %+v, %v; want one", m, err)
	}
}

func TestNATSOptions(t *testing.T) {
	n := servers.NATS(t, func(o *server.Options) { o.Username, o.Password = "u", "p" })
	if nc, err := nats.Connect(n.URL); err == nil {
		nc.Close()
		t.Error("connected without a password")
	}
	nc, err := nats.Connect(n.URL, nats.UserInfo("u", "p"))
	if err != nil {
		t.Fatal(err)
	}
	nc.Close()
}
