package conn

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho/session/state"
)

// A broker that lets us in by a method that nobody has asked for does not end the process.
func TestMQTTNoAuth(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		c, err := listener.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		for _, answer := range []*packets.ControlPacket{packets.NewControlPacket(packets.AUTH), packets.NewControlPacket(packets.CONNACK)} {
			if _, err := packets.ReadPacket(c); err != nil {
				t.Error(err)
				return
			}
			switch p := answer.Content.(type) {
			case *packets.Auth:
				p.ReasonCode, p.Properties.AuthMethod = packets.AuthContinueAuthentication, "other"
			case *packets.Connack:
				p.Properties.AuthMethod = "other"
			}
			if _, err := answer.WriteTo(c); err != nil {
				t.Error(err)
				return
			}
		}
		_, _ = packets.ReadPacket(c) // the farewell
	}()
	m := NewMQTT()
	m.URL = "mqtt://" + listener.Addr().String()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	l, err := m.Connect(ctx, MQTTSession{ClientID: MQTTClientID("test")})
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
}

// A message with QoS 2 is confirmed when the connection has just gone: the client panics.
func TestMQTTStatePanics(t *testing.T) {
	t.Parallel()
	here, there := net.Pipe()
	defer there.Close()
	l := &MQTTLink{raw: &mqttConn{Conn: here}}
	l.Context, l.fail = context.WithCancelCause(t.Context())
	s := mqttState{state.NewInMemory(), l}
	err := s.PacketReceived(&packets.ControlPacket{Content: &packets.Pubrec{PacketID: 1}}, nil)
	var panicked *PanicError
	if !errors.As(err, &panicked) || !errors.As(context.Cause(l.Context), &panicked) {
		t.Errorf("%v; the connection ended with %v", err, context.Cause(l.Context))
	}
}
