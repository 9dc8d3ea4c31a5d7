package servers_test

import (
	"net"
	"testing"

	"github.com/lag-monitor/lag-monitor/internal/servers"
)

// TestMosquitto: the broker comes back at the same address.
func TestMosquitto(t *testing.T) {
	m := servers.Mosquitto(t, servers.MosquittoOptions{Users: map[string]string{"u": "p"}, ACL: "user u\ntopic readwrite #\n", TLS: true})
	for _, addr := range []string{m.Addr, m.TLSAddr} {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	m.Stop()
	if c, err := net.Dial("tcp", m.Addr); err == nil {
		c.Close()
		t.Error("a broker that was stopped takes connections")
	}
	m.Start()
	c, err := net.Dial("tcp", m.Addr)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}
