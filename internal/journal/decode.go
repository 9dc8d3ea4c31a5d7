package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"
)

var (
	errChecksum = errors.New("checksum does not match")
	errValue    = errors.New("malformed value")
)

// formatError is a value of a format that this version does not know.
type formatError struct{ format byte }

func (e formatError) Error() string {
	return fmt.Sprintf("format %d is of a newer lag-monitor", e.format)
}

// storedSum returns the checksum that an entry was written with.
func storedSum(value []byte) uint32 {
	if len(value) < 4 {
		return 0
	}
	return binary.LittleEndian.Uint32(value[len(value)-4:])
}

// unseal checks the guard of an entry, and returns what is between format and checksum. newest is the
// newest format that is known.
func unseal(key, value []byte, newest byte) ([]byte, error) {
	if len(value) < 5 {
		return nil, errValue
	}
	body := value[:len(value)-4]
	switch {
	case checksum(key, body) != storedSum(value):
		return nil, errChecksum
	case body[0] > newest:
		return nil, formatError{body[0]}
	case body[0] == 0:
		return nil, errValue
	}
	return body[1:], nil
}

// decoder reads a value. After the first thing that cannot be it is bad and empty, and returns zeros.
type decoder struct {
	b   []byte
	bad bool
}

func (d *decoder) fail() { d.b, d.bad = nil, true }

// end returns an error unless the value was right to its last byte.
func (d *decoder) end() error {
	if d.bad || len(d.b) != 0 {
		return errValue
	}
	return nil
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) varint() int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) duration() time.Duration { return time.Duration(d.varint()) }

func (d *decoder) lane() uint32 {
	v := d.uvarint()
	if v > 1<<32-1 {
		d.fail()
		return 0
	}
	return uint32(v)
}

// bytes returns the next n bytes.
func (d *decoder) bytes(n uint64) []byte {
	if n > uint64(len(d.b)) {
		d.fail()
		return nil
	}
	p := d.b[:n]
	d.b = d.b[n:]
	return p
}

func (d *decoder) uint64() uint64 {
	if p := d.bytes(8); p != nil {
		return binary.BigEndian.Uint64(p)
	}
	return 0
}

func (d *decoder) uint32() uint32 {
	if p := d.bytes(4); p != nil {
		return binary.BigEndian.Uint32(p)
	}
	return 0
}

func (d *decoder) string() string { return string(d.bytes(d.uvarint())) }

// name is the opposite of appendName.
func (d *decoder) name(last string) string {
	shared := d.uvarint()
	rest := d.bytes(d.uvarint())
	if shared > maxShared || shared > uint64(len(last)) || int(shared)+len(rest) > maxName {
		d.fail()
		return ""
	}
	if len(rest) == 0 && int(shared) == len(last) {
		return last
	}
	return last[:shared] + string(rest)
}

// count returns how many things follow that have at least size bytes each: so what is made for them is
// bounded by what is there.
func (d *decoder) count(size int) int {
	n := d.uvarint()
	if n > uint64(len(d.b)/size) {
		d.fail()
		return 0
	}
	return int(n)
}

// bits is the opposite of appendBits.
func (d *decoder) bits(n int) func(int) bool {
	b := d.bytes(uint64(n+7) / 8)
	return func(i int) bool { return b != nil && b[i/8]>>(i%8)&1 == 1 }
}

func decodeHeader(key, value []byte) (header, error) {
	body, err := unseal(key, value, headerFormat)
	if err != nil {
		return header{}, err
	}
	d := decoder{b: body}
	h := header{at: time.Unix(0, d.varint()), count: d.uvarint(), sum: d.uvarint(), tx: d.uvarint()}
	return h, d.end()
}

func decodeSink(key, value []byte) (Sink, error) {
	body, err := unseal(key, value, sinkFormat)
	if err != nil {
		return Sink{}, err
	}
	k := decoder{b: key[1:]}
	s := Sink{Name: k.string()}
	if err := k.end(); err != nil {
		return Sink{}, err
	}

	d := decoder{b: body}
	s.Fingerprint = d.string()
	if n := d.count(2); n > 0 {
		s.Position = make(map[string]string, n)
		for range n {
			k := d.string()
			s.Position[k] = d.string()
		}
	}

	last, due := "", int64(0)
	if n := d.count(4); n > 0 {
		s.Stamps = make([]Stamp, n)
		for i := range s.Stamps {
			last = d.name(last)
			s.Stamps[i] = Stamp{Probe: last, Lane: d.lane(), Due: due + d.varint()}
			due = s.Stamps[i].Due
		}
	}

	if n := d.count(21); n > 0 {
		s.Streams = make([]Stream, n)
		for i := range s.Streams {
			last = d.name(last)
			t := Stream{Probe: last, Instance: d.uint64(), Epoch: d.uint64(), Expiry: d.duration(), Timeout: d.duration()}
			if n := d.count(4); n > 0 {
				t.Lanes = make([]StreamLane, n)
				for j := range t.Lanes {
					t.Lanes[j] = StreamLane{Lane: d.lane(), Next: d.uvarint(), Due: due + d.varint(), Every: d.duration()}
					due = t.Lanes[j].Due
				}
			}
			s.Streams[i] = t
		}
	}
	if err := d.end(); err != nil {
		return Sink{}, err
	}
	return s, nil
}

// decodeBlock decodes a whole entry. buf is room for the heartbeats that may be used.
func decodeBlock(key, value []byte, buf []Heartbeat) (Block, error) {
	if _, err := unseal(key, value, blockFormat); err != nil {
		return Block{}, err
	}
	k := decoder{b: key[1:]}
	b := Block{Key: Key{
		Probe: k.string(), Sink: k.string(), Instance: k.uint64(), Epoch: k.uint64(), Lane: k.uint32(), Block: k.uint64(),
	}}
	if err := k.end(); err != nil {
		return Block{}, err
	}

	if err := b.decode(value[:len(value)-4], b.Block, buf); err != nil {
		return Block{}, err
	}
	return b, nil
}

// decode decodes a value without its checksum.
func (b *Block) decode(value []byte, block uint64, buf []Heartbeat) error {
	format, d := value[0], decoder{b: value[1:]}
	b.Expiry, b.Timeout, b.TTL = d.duration(), d.duration(), d.duration()
	n := d.count(2)
	if n == 0 {
		return errValue // it would have been deleted
	}
	b.Open = slices.Grow(buf[:0], n)[:n]
	clear(b.Open)
	seq, due, step := block*blockSize, int64(0), int64(0)
	for i := range b.Open {
		o := &b.Open[i]
		o.Seq = seq + uint64(d.varint())
		o.Due = due + step + d.varint()
		if i > 0 {
			step = o.Due - due
		}
		seq, due = o.Seq, o.Due
	}
	maybe, missed := d.bits(n), d.bits(n)
	for i := range b.Open {
		b.Open[i].Maybe, b.Open[i].Missed = maybe(i), missed(i)
	}
	for bit := 0; format == blockFormat && bit < deathBits; bit++ {
		set := d.bits(n)
		for i := range b.Open {
			if set(i) {
				b.Open[i].Death |= 1 << bit
			}
		}
	}
	return d.end()
}

func decodePause(key, value []byte) (Pause, error) {
	body, err := unseal(key, value, pauseFormat)
	if err != nil {
		return Pause{}, err
	}
	k := decoder{b: key[1:]}
	p := Pause{Probe: k.string()}
	if err := k.end(); err != nil {
		return Pause{}, err
	}
	d := decoder{b: body}
	p.Since, p.Until = d.varint(), d.varint()
	if err := d.end(); err != nil {
		return Pause{}, err
	}
	if p.Until == 0 {
		return Pause{}, errValue // it would have been deleted
	}
	return p, nil
}
