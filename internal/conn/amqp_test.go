package conn

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"
)

// amqpFrame is one frame as a broker sends it.
func amqpFrame(kind byte, payload ...byte) []byte {
	b := []byte{kind, 0, 1}
	b = binary.BigEndian.AppendUint32(b, uint32(len(payload)))
	return append(append(b, payload...), 0xce)
}

var (
	amqpDeliver = amqpFrame(1, 0, 60, 0, 60, 5, 't', 'a', 'g', 's', '!', 0, 0, 0, 0, 0, 0, 0, 1, 0, 1, 'x', 0)
	amqpAck     = amqpFrame(1, 0, 60, 0, 80, 0, 0, 0, 0, 0, 0, 0, 1, 0)
	amqpHeader  = amqpFrame(2, 0, 60, 0, 60, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0)
	amqpBody    = amqpFrame(3, 0, 60, 0, 60)
	amqpPing    = amqpFrame(8)
)

// However the bytes are cut, each delivery counts once, and what only looks like one does not.
func FuzzAMQPFrames(f *testing.F) {
	stream := bytes.Join([][]byte{amqpPing, amqpDeliver, amqpHeader, amqpBody, amqpAck, amqpDeliver, amqpHeader, amqpFrame(3, amqpDeliver...), amqpPing, amqpFrame(1, 0, 60), amqpDeliver}, nil)
	f.Add(stream, uint8(1))
	f.Add(stream, uint8(7))
	f.Add([]byte{1, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 60, 0, 60, 1, 2, 3}, uint8(3))
	f.Fuzz(func(t *testing.T, p []byte, step uint8) {
		whole := new(amqpFrames).deliveries(p)
		var in amqpFrames
		cut := 0
		for rest := p; len(rest) > 0; {
			n := min(int(step)%16+1, len(rest))
			cut += in.deliveries(rest[:n])
			rest = rest[n:]
		}
		if cut != whole {
			t.Errorf("%d in pieces of %d, %d at once", cut, step, whole)
		}
		if want := amqpDeliveries(p); whole != want {
			t.Errorf("%d deliveries; want %d", whole, want)
		}
		if bytes.Equal(p, stream) && whole != 3 {
			t.Errorf("%d deliveries; want 3", whole)
		}
	})
}

// amqpDeliveries counts with the whole stream at hand.
func amqpDeliveries(p []byte) (n int) {
	for len(p) >= 7 {
		size := uint64(binary.BigEndian.Uint32(p[3:7]))
		if p[0] == 1 && size >= 4 && len(p) >= 11 && bytes.Equal(p[7:11], []byte{0, 60, 0, 60}) {
			n++
		}
		if size+8 >= uint64(len(p)) {
			return n
		}
		p = p[size+8:]
	}
	return n
}

func TestAMQPError(t *testing.T) {
	for _, row := range []struct {
		err  error
		want Class
	}{
		{&amqp.Error{Code: 404, Server: true, Reason: "NOT_FOUND - no queue 'x' in vhost '/'"}, Missing},
		{&amqp.Error{Code: 404, Server: true, Reason: "NOT_FOUND - home node 'a@b' of durable queue 'x' in vhost '/' is down or inaccessible"}, Network},
		{&amqp.Error{Code: 403, Server: true, Reason: "ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN"}, Auth},
		{&amqp.Error{Code: 403, Server: true, Reason: "ACCESS_REFUSED - queue 'x' in vhost '/' in exclusive use"}, Other},
		{&amqp.Error{Code: 530, Server: true, Reason: "NOT_ALLOWED - access to vhost 'x' refused for user 'u'"}, Auth},
		{&amqp.Error{Code: 530, Server: true, Reason: "NOT_ALLOWED - vhost x not found"}, Missing},
		{&amqp.Error{Code: 530, Server: true, Reason: "NOT_ALLOWED - access to vhost '/' refused for user 'u': connection limit (1) is reached"}, Throttle},
		{&amqp.Error{Code: 320, Server: true, Reason: "CONNECTION_FORCED - broker forced connection closure with reason 'shutdown'"}, Network},
		{&amqp.Error{Code: 501, Reason: "EOF"}, Network},
		{amqp.ErrClosed, Network},
		{&amqp.Error{Code: 406, Server: true, Reason: "PRECONDITION_FAILED - inequivalent arg"}, Other},
		{errors.New("odd"), Other},
	} {
		if got := ClassOf(AMQPError(row.err)); got != row.want {
			t.Errorf("%v is of class %s, want %s", row.err, got, row.want)
		}
	}
}
