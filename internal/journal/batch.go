package journal

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"slices"
	"time"
)

// Formats of values. A value of another format is one of a newer lag-monitor.
const (
	headerFormat = 1
	sinkFormat   = 1
	blockFormat  = 2 // 1 is the same without deaths, and is written where there are none
	pauseFormat  = 1
)

// The first byte of a key.
const (
	headerKind = 'h'
	sinkKind   = 's'
	blockKind  = 'b'
	pauseKind  = 'p'
)

// maxName bounds a probe's and a sink's name. It keeps keys far below what bbolt can hold and what a
// damaged value can make a reader allocate.
const maxName = 1024

// maxShared bounds what a name may take from the one before it: a hostile value of n bytes cannot unfold
// to more than about 100 n.
const maxShared = 255

// deathBits is how many bits a Heartbeat's Death has.
const deathBits = 3

// blockSize is how many sequences a Block spans.
const blockSize = 64

// headerKey is the key of the header.
var headerKey = []byte{headerKind}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksum is the guard of an entry. It covers the key, so that a value cannot be taken for that of
// another probe.
func checksum(key, value []byte) uint32 {
	return crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, value)
}

// Batch is what one Write changes. What is put into it is encoded at once: the arguments may be used
// again after the call. Of two puts with the same key the later one counts. The zero value is an empty
// batch; it is not safe for concurrent use. A Batch that is reset and filled again allocates only when it
// is larger than all before.
type Batch struct {
	buf  []byte // keys and values, one after the other
	puts []entry
	all  bool
	at   time.Time // of the last Reset: what is gathered after it is at least as new
	err  error     // of the first thing that cannot be written
	keys []string  // scratch
	open []Heartbeat
}

// entry is a key and its new value: offsets in Batch.buf, which may move while it grows.
type entry struct {
	key, value, end int // no value: delete the key
	sum             uint32
}

func (b *Batch) keyOf(p entry) []byte   { return b.buf[p.key:p.value:p.value] }
func (b *Batch) valueOf(p entry) []byte { return b.buf[p.value:p.end:p.end] }

// Reset empties the batch. What is put into it from now on holds for this moment or a later one, and State.At says so.
func (b *Batch) Reset() {
	if c := cap(b.buf); c > 1<<20 && c > 8*len(b.buf) { // an outage made it large, and is over
		b.buf, b.puts = nil, nil
	}
	b.buf, b.puts, b.all, b.err = b.buf[:0], b.puts[:0], false, nil
	b.at = time.Now()
}

// gathered is when the gathering of the batch began. A process that is held up between that and the writing must not
// make what it wrote look newer than it is.
func (b *Batch) gathered() time.Time {
	if b.at.IsZero() {
		return time.Now()
	}
	return b.at
}

// ReplaceAll makes the batch replace all that is in the file. The first Write of a Journal, and each
// after one that failed, needs such a batch.
func (b *Batch) ReplaceAll() { b.all = true }

// Len returns how many puts the batch holds.
func (b *Batch) Len() int { return len(b.puts) }

// Size returns the bytes of what has been put.
func (b *Batch) Size() int { return len(b.buf) }

// PutSink puts all that is kept for one sink.
func (b *Batch) PutSink(s *Sink) {
	if !b.named("sink", s.Name) {
		return
	}
	for i := range s.Stamps {
		if !b.named("probe", s.Stamps[i].Probe) {
			return
		}
	}
	for i := range s.Streams {
		if !b.named("probe", s.Streams[i].Probe) {
			return
		}
	}
	p := entry{key: len(b.buf)}
	b.buf = append(b.buf, sinkKind)
	b.buf = appendString(b.buf, s.Name)
	p.value = len(b.buf)

	e := b.buf
	e = append(e, sinkFormat)
	e = appendString(e, s.Fingerprint)
	b.keys = b.keys[:0]
	for k := range s.Position {
		b.keys = append(b.keys, k)
	}
	slices.Sort(b.keys) // the same sink is the same bytes
	e = binary.AppendUvarint(e, uint64(len(b.keys)))
	for _, k := range b.keys {
		e = appendString(e, k)
		e = appendString(e, s.Position[k])
	}
	clear(b.keys)

	e = binary.AppendUvarint(e, uint64(len(s.Stamps)))
	last, due := "", int64(0)
	for i := range s.Stamps {
		t := &s.Stamps[i]
		e = appendName(e, last, t.Probe)
		e = binary.AppendUvarint(e, uint64(t.Lane))
		e = binary.AppendVarint(e, t.Due-due)
		last, due = t.Probe, t.Due
	}

	e = binary.AppendUvarint(e, uint64(len(s.Streams)))
	for i := range s.Streams {
		t := &s.Streams[i]
		e = appendName(e, last, t.Probe)
		e = binary.BigEndian.AppendUint64(e, t.Instance)
		e = binary.BigEndian.AppendUint64(e, t.Epoch)
		e = binary.AppendVarint(e, int64(t.Expiry))
		e = binary.AppendVarint(e, int64(t.Timeout))
		e = binary.AppendUvarint(e, uint64(len(t.Lanes)))
		for _, l := range t.Lanes {
			e = binary.AppendUvarint(e, uint64(l.Lane))
			e = binary.AppendUvarint(e, l.Next)
			e = binary.AppendVarint(e, l.Due-due)
			e = binary.AppendVarint(e, int64(l.Every))
			due = l.Due
		}
		last = t.Probe
	}
	b.buf = e
	b.seal(p)
}

// PutBlock puts the heartbeats of a block that have no outcome yet, or deletes it when there are none.
func (b *Batch) PutBlock(k *Block) {
	if !b.named("probe", k.Probe) || !b.named("sink", k.Sink) {
		return
	}
	open := k.Open
	if k.value != nil {
		b.open = k.Heartbeats(b.open)
		open = b.open
	}
	p := entry{key: len(b.buf)}
	e := b.buf
	e = append(e, blockKind)
	e = appendString(e, k.Probe)
	e = appendString(e, k.Sink)
	e = binary.BigEndian.AppendUint64(e, k.Instance)
	e = binary.BigEndian.AppendUint64(e, k.Epoch)
	e = binary.BigEndian.AppendUint32(e, k.Lane)
	e = binary.BigEndian.AppendUint64(e, k.Block)
	p.value = len(e)
	if len(open) == 0 {
		p.end = len(e)
		b.buf, b.puts = e, append(b.puts, p)
		return
	}
	format := byte(blockFormat - 1)
	if slices.ContainsFunc(open, func(o Heartbeat) bool { return o.Death != 0 }) {
		format = blockFormat
	}
	e = append(e, format)
	e = binary.AppendVarint(e, int64(k.Expiry))
	e = binary.AppendVarint(e, int64(k.Timeout))
	e = binary.AppendVarint(e, int64(k.TTL))
	e = binary.AppendUvarint(e, uint64(len(open)))
	// Ticks follow each other at even distances: the change of the distance is what is worth writing.
	seq, due, step := k.Block*blockSize, int64(0), int64(0)
	for i, o := range open {
		e = binary.AppendVarint(e, int64(o.Seq-seq))
		e = binary.AppendVarint(e, o.Due-due-step)
		if i > 0 {
			step = o.Due - due
		}
		seq, due = o.Seq, o.Due
	}
	e = appendBits(e, len(open), func(i int) bool { return open[i].Maybe })
	e = appendBits(e, len(open), func(i int) bool { return open[i].Missed })
	for bit := 0; format == blockFormat && bit < deathBits; bit++ {
		e = appendBits(e, len(open), func(i int) bool { return open[i].Death>>bit&1 == 1 })
	}
	b.buf = e
	b.seal(p)
}

// PutPause puts the pause of a probe, or deletes it when it has no end.
func (b *Batch) PutPause(k *Pause) {
	if !b.named("probe", k.Probe) {
		return
	}
	p := entry{key: len(b.buf)}
	b.buf = append(b.buf, pauseKind)
	b.buf = appendString(b.buf, k.Probe)
	p.value = len(b.buf)
	if k.Until == 0 {
		p.end = len(b.buf)
		b.puts = append(b.puts, p)
		return
	}
	b.buf = append(b.buf, pauseFormat)
	b.buf = binary.AppendVarint(b.buf, k.Since)
	b.buf = binary.AppendVarint(b.buf, k.Until)
	b.seal(p)
}

// named keeps a name that is too long out of the batch, which then cannot be written.
func (b *Batch) named(what, name string) bool {
	if len(name) <= maxName {
		return true
	}
	if b.err == nil {
		b.err = fmt.Errorf("the name of %s %.40q… has %d bytes, more than %d", what, name, len(name), maxName)
	}
	return false
}

// seal ends the value of p with its checksum.
func (b *Batch) seal(p entry) {
	p.sum = checksum(b.buf[p.key:p.value], b.buf[p.value:])
	b.buf = binary.LittleEndian.AppendUint32(b.buf, p.sum)
	p.end = len(b.buf)
	b.puts = append(b.puts, p)
}

// sort puts the batch into the order of its keys, in which a file is written fastest, and keeps the order
// of puts with the same key.
func (b *Batch) sort() {
	slices.SortFunc(b.puts, func(p, q entry) int {
		return cmp.Or(bytes.Compare(b.keyOf(p), b.keyOf(q)), cmp.Compare(p.key, q.key))
	})
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// appendBits appends n bits, the first one in the lowest place.
func appendBits(b []byte, n int, bit func(int) bool) []byte {
	var v byte
	for i := range n {
		if bit(i) {
			v |= 1 << (i % 8)
		}
		if i%8 == 7 || i == n-1 {
			b, v = append(b, v), 0
		}
	}
	return b
}

// appendName appends a name without what it shares with the one before.
func appendName(b []byte, last, name string) []byte {
	n := 0
	for n < len(last) && n < len(name) && n < maxShared && last[n] == name[n] {
		n++
	}
	return appendString(binary.AppendUvarint(b, uint64(n)), name[n:])
}

// header is the entry that makes the others a whole.
type header struct {
	at    time.Time
	count uint64 // of the other entries
	sum   uint64 // of their checksums
	tx    uint64 // bbolt's number of the transaction: that of the meta page which leads here
}

func (h header) append(b []byte) []byte {
	n := len(b)
	b = append(b, headerFormat)
	b = binary.AppendVarint(b, h.at.UnixNano())
	b = binary.AppendUvarint(b, h.count)
	b = binary.AppendUvarint(b, h.sum)
	b = binary.AppendUvarint(b, h.tx)
	return binary.LittleEndian.AppendUint32(b, checksum(headerKey, b[n:]))
}
