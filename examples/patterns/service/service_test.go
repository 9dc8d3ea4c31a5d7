package service_test

import (
	"errors"
	"net"
	"testing"
	"time"

	"github.com/lag-monitor/lag-monitor/examples/patterns/service"
)

// A cut breaks what is connected, and lets nothing new be connected.
func TestCut(t *testing.T) {
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var link service.Link
	conn, err := link.Dial(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	link.Cut()
	if _, err := conn.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a write after the cut: %v", err)
	}
	if _, err := link.Dial(t.Context(), "tcp", l.Addr().String()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a dial after the cut: %v", err)
	}
}
