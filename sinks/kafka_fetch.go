package sinks

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"sync/atomic"
	"time"

	"github.com/segmentio/kafka-go/compress"

	"github.com/lag-monitor/lag-monitor/internal/conn"
)

// kafkaPart is what a sink knows of one partition. pos may be read at any time; the other fields
// belong to the broker's goroutine that reads the partition, or to the coordinator while none does.
type kafkaPart struct {
	id  int32
	pos atomic.Int64 // the next offset to read: everything before it was delivered; < 0: not known yet
	// start is where to begin when pos is not known: a time as conn.KafkaConn.Offsets takes it.
	start int64
	// since is, for a start at the end, from when on messages are wanted nevertheless, Unix milliseconds; 0:
	// none. What is before the offset past was there before the sink.
	since int64
	past  int64
	pace  pace  // of what is before past
	epoch int32 // of the leader
	// end is the high watermark by the last answer; < 0: not known yet. stable is up to where the sink is let
	// read: below end while a transaction is open that it waits for. goal is what end was when the sink last
	// began to prove that it had caught up.
	end, stable, goal int64

	salt  uint64 // which incarnation of the topic the offsets belong to
	sent  int64  // the offset that the fetch session has; < 0: it does not have the partition
	limit int32  // bytes to ask for; grows when a batch does not fit
	moved int16  // why the partition left its broker: a Kafka error code
}

// kafkaFetch is one incremental fetch session (KIP-227) with one broker: it says which partitions to
// read from where, afterwards only what has changed, and takes the answers apart.
type kafkaFetch struct {
	topic     string
	topicID   [16]byte
	committed bool
	minBytes  int32
	maxWait   time.Duration
	maxBytes  int32

	version   int16 // 11: topics by name; 13: by id, in the flexible format
	parts     map[int32]*kafkaPart
	list      []*kafkaPart // the same
	sessionID int32
	epoch     int32
	fresh     bool         // the next answer is wanted at once: it proves that the broker serves us
	proving   time.Time    // when the answer was asked for that the goals are of; zero: there are none
	changed   []*kafkaPart // scratch

	scan kafkaScan
}

// Versions of the Fetch request that are spoken: 11 is the last with topic names in the old format
// (Kafka 2.3 and later), 13 the first with topic ids (Kafka 3.1 and later), which alone tell a
// re-created topic for certain.
const (
	kafkaFetchKey     = 1
	kafkaFetchNames   = 11
	kafkaFetchIDs     = 13
	kafkaMaxPartBytes = 128 << 20
)

// add and remove change the set of partitions; the next request opens a new session with it.
func (f *kafkaFetch) add(p *kafkaPart) {
	p.end, p.limit = -1, 0
	f.proving = time.Time{}
	f.parts[p.id] = p
	f.list = append(f.list, p)
	f.fresh = true
	f.reset(f.sessionID)
}

func (f *kafkaFetch) remove(p *kafkaPart) {
	delete(f.parts, p.id)
	f.list = slices.DeleteFunc(f.list, func(q *kafkaPart) bool { return p == q })
	f.reset(f.sessionID)
}

// negotiate picks the version for a connection and forgets the session.
func (f *kafkaFetch) negotiate(c *conn.KafkaConn) error {
	f.fresh = true
	f.reset(0)
	if v, ok := c.Version(kafkaFetchKey, kafkaFetchIDs, kafkaFetchIDs); ok && f.topicID != [16]byte{} {
		f.version = v
		return nil
	}
	if v, ok := c.Version(kafkaFetchKey, kafkaFetchNames, kafkaFetchNames); ok {
		f.version = v
		return nil
	}
	return errors.New("the broker is too old: Kafka 2.3 or newer is needed")
}

// reset makes the next request name every partition and open a new session in place of the given one.
func (f *kafkaFetch) reset(session int32) {
	f.sessionID, f.epoch = session, 0
	for _, p := range f.list {
		p.sent = -1
	}
}

// request writes the next Fetch.
func (f *kafkaFetch) request(c *conn.KafkaConn) {
	w := c.Request(kafkaFetchKey, f.version, f.version >= 12)
	w.Int32(-1)
	if f.fresh {
		w.Int32(0)
		w.Int32(0)
	} else {
		w.Int32(int32(f.maxWait / time.Millisecond))
		w.Int32(f.minBytes)
	}
	f.fresh = false
	maxBytes := f.maxBytes
	for _, p := range f.list {
		maxBytes = max(maxBytes, p.limit)
	}
	w.Int32(maxBytes)
	if f.committed {
		w.Int8(1)
	} else {
		w.Int8(0)
	}
	w.Int32(f.sessionID)
	w.Int32(f.epoch)
	f.changed = f.changed[:0]
	for _, p := range f.list {
		if p.sent != p.pos.Load() || f.epoch == 0 {
			f.changed = append(f.changed, p)
		}
	}
	if len(f.changed) == 0 {
		w.Array(0)
	} else {
		w.Array(1)
		if f.version >= kafkaFetchIDs {
			w.Raw(f.topicID[:])
		} else {
			w.String(f.topic)
		}
		w.Array(len(f.changed))
		for _, p := range f.changed {
			p.sent = p.pos.Load()
			w.Int32(p.id)
			w.Int32(p.epoch)
			w.Int64(p.sent)
			if f.version >= 12 {
				w.Int32(-1)
			}
			w.Int64(-1)
			w.Int32(max(f.maxBytes, p.limit))
			w.End()
		}
		w.End()
	}
	w.Array(0) // forgotten: a set of partitions that shrinks gets a new session
	w.String("")
	w.End()
}

// response takes an answer apart: delivers and counts the messages, moves the positions, and returns
// the partitions that this broker does not serve (any more), whose moved says why. throttle is for
// how long the broker will not read from this connection.
func (f *kafkaFetch) response(r *conn.KafkaReader, feed *Feed) (lost []*kafkaPart, throttle time.Duration, err error) {
	throttle = time.Duration(r.Int32()) * time.Millisecond
	code := r.Int16()
	session := r.Int32()
	switch code {
	case 0:
	case conn.KafkaSessionNotFound, conn.KafkaSessionEpoch, conn.KafkaSessionTopicID:
		f.reset(0)
		return nil, throttle, nil
	case conn.KafkaUnknownTopicID, conn.KafkaInconsistentID:
		for _, p := range f.list {
			p.moved = code
			lost = append(lost, p)
		}
		f.reset(0)
		return lost, throttle, nil
	default:
		return nil, throttle, conn.KafkaError(code)
	}
	if session == 0 {
		f.reset(0) // the broker keeps no session for us
	} else {
		f.sessionID = session
		f.epoch = f.epoch%(1<<31-1) + 1
	}
	skipped := 0
	defer func() {
		if skipped > 0 {
			feed.Skip(skipped)
		}
	}()
	for range r.Array() {
		var ours bool
		if f.version >= kafkaFetchIDs {
			ours = r.UUID() == f.topicID
		} else {
			ours = string(r.String()) == f.topic
		}
		for range r.Array() {
			got := f.scan.fetched(r)
			if r.Bad() {
				return lost, throttle, errors.New("fetch answer is cut short")
			}
			p := f.parts[got.id]
			if p == nil || !ours {
				continue
			}
			switch got.code {
			case 0:
			case conn.KafkaOffsetOutOfRange, conn.KafkaUnknownTopic, conn.KafkaLeaderNotAvailable, conn.KafkaNotLeader,
				conn.KafkaReplicaNotAvail, conn.KafkaStorage, conn.KafkaFencedEpoch, conn.KafkaUnknownEpoch,
				conn.KafkaOffsetNotAvailable, conn.KafkaUnknownTopicID, conn.KafkaInconsistentID:
				p.moved = got.code
				lost = append(lost, p)
				continue
			default:
				return lost, throttle, fmt.Errorf("partition %d: %w", got.id, conn.KafkaError(got.code))
			}
			p.end, p.stable = got.high, got.high
			if f.committed {
				p.stable = got.stable
			}
			before := p.pos.Load()
			n, err := f.scan.records(p, got.records, f.committed, feed)
			skipped += n
			if err != nil {
				return lost, throttle, fmt.Errorf("partition %d: %w", got.id, err)
			}
			if pos := p.pos.Load(); pos < p.past && p.pace.slow(len(got.records)) {
				p.pos.Store(pos + (p.past-pos+1)/2)
			}
			if len(got.records) > 0 && p.pos.Load() == before {
				// A broker hands out a batch that is larger than what we asked for, but may cut it short
				// when it is not the first of the answer.
				p.limit = max(p.limit, f.maxBytes) * 2
				if p.limit > kafkaMaxPartBytes {
					return lost, throttle, fmt.Errorf("partition %d: the batch at offset %d is larger than %d bytes", got.id, before, kafkaMaxPartBytes)
				}
				p.sent = -1
			} else {
				p.limit = 0
			}
		}
		r.End()
	}
	r.End()
	if r.Bad() {
		return lost, throttle, errors.New("fetch answer is cut short")
	}
	return lost, throttle, nil
}

// answered reports that the broker has spoken of every partition.
func (f *kafkaFetch) answered() bool {
	for _, p := range f.list {
		if p.end < 0 {
			return false
		}
	}
	return true
}

// caughtUp returns up to when everything that had entered the partitions was delivered, as of an answer that
// was asked for then; zero while that is not certain. What entered before a question lies below the high
// watermark of its answer, and is delivered when the position has got there: at once, as a rule, but a sink
// that waits for the ends of transactions gets there when those end which were open, and others are open by
// then.
func (f *kafkaFetch) caughtUp(asked time.Time) (t time.Time) {
	now, then := true, !f.proving.IsZero()
	for _, p := range f.list {
		pos := p.pos.Load()
		now = now && p.end >= 0 && pos >= p.end
		then = then && pos >= p.goal
	}
	switch {
	case now:
		f.proving = time.Time{}
		return asked
	case then:
		t = f.proving
		fallthrough
	case f.proving.IsZero():
		f.proving = asked
		for _, p := range f.list {
			p.goal = p.end
		}
	}
	return t
}

// heldUp reports that there is nothing to read but what waits for the end of a transaction.
func (f *kafkaFetch) heldUp() bool {
	held := false
	for _, p := range f.list {
		pos := p.pos.Load()
		if pos < p.stable {
			return false
		}
		held = held || pos < p.end
	}
	return held
}

type kafkaAborted struct{ producer, first int64 }

// kafkaScan looks through the record batches of an answer. What it holds is scratch space.
type kafkaScan struct {
	aborted []kafkaAborted // of the partition at hand, by first offset
	active  []int64        // producers inside an aborted transaction
	hole    bool           // offsets are missing that were not before the sink
	src     bytes.Reader
	plain   []byte // a decompressed batch
}

// kafkaFetched is what an answer says of one partition.
type kafkaFetched struct {
	id           int32
	code         int16
	high, stable int64 // high watermark, last stable offset
	records      []byte
}

// fetched takes one partition off an answer; its aborted transactions are then those of the scan.
func (s *kafkaScan) fetched(r *conn.KafkaReader) (f kafkaFetched) {
	f.id, f.code, f.high, f.stable = r.Int32(), r.Int16(), r.Int64(), r.Int64()
	r.Int64() // start of the log
	aborted := s.aborted[:0]
	for range r.Array() {
		aborted = append(aborted, kafkaAborted{r.Int64(), r.Int64()})
		r.End()
	}
	s.aborted = aborted
	r.Int32() // preferred replica: none, since we name no rack
	f.records = r.Bytes()
	r.End()
	return f
}

// Layout of a record batch (format v2).
const (
	batchOverhead = 12 // base offset and length
	batchHeader   = 61
	batchMagicAt  = 16

	attrCodec         = 0x07
	attrLogAppend     = 0x08
	attrTransactional = 0x10
	attrControl       = 0x20
)

// maxKafkaPlain bounds a decompressed batch.
const maxKafkaPlain = 128 << 20

var (
	castagnoli = crc32.MakeTable(crc32.Castagnoli)

	errRecord = errors.New("record batch is damaged")
)

// records goes through the batches of one partition and moves its position. Batches are not decoded:
// one search over the whole of a batch finds out whether it holds a heartbeat at all, and only then
// are its records looked at one by one. It returns how many messages it has seen and not delivered.
func (s *kafkaScan) records(p *kafkaPart, b []byte, committed bool, feed *Feed) (skipped int, err error) {
	s.active = s.active[:0]
	pos := p.pos.Load()
	for len(b) >= batchMagicAt+1 {
		if magic := b[batchMagicAt]; magic != 2 {
			return skipped, fmt.Errorf("offset %d: message format %d is not supported, only that of Kafka 0.11 and later is", pos, int8(magic))
		}
		size := int(int32(binary.BigEndian.Uint32(b[8:])))
		if size > len(b)-batchOverhead {
			return skipped, nil // the broker cuts the last batch where its limit of bytes is reached
		}
		if size < batchHeader-batchOverhead {
			return skipped, fmt.Errorf("offset %d: %w: length %d", pos, errRecord, size)
		}
		batch := b[:batchOverhead+size]
		b = b[batchOverhead+size:]
		base := int64(binary.BigEndian.Uint64(batch))
		last := base + int64(int32(binary.BigEndian.Uint32(batch[23:])))
		if last < base || base < 0 {
			return skipped, fmt.Errorf("offset %d: %w: offsets %d to %d", pos, errRecord, base, last)
		}
		if last < pos {
			continue // read before
		}
		if count := int64(int32(binary.BigEndian.Uint32(batch[57:]))); last >= p.past && (base > pos || count < last-base+1) {
			s.hole = true
		}
		attrs := binary.BigEndian.Uint16(batch[21:])
		producer := int64(binary.BigEndian.Uint64(batch[43:]))
		visible := attrs&attrControl == 0
		if committed {
			visible = s.committed(attrs, producer, last) && visible
		}
		if visible {
			skipped += s.batch(p, batch, attrs, base, last, pos, feed)
		}
		pos = last + 1
		p.pos.Store(pos)
	}
	return skipped, nil
}

// committed follows the aborted transactions and reports whether a batch belongs to none.
func (s *kafkaScan) committed(attrs uint16, producer, last int64) bool {
	for len(s.aborted) > 0 && s.aborted[0].first <= last {
		s.active = append(s.active, s.aborted[0].producer)
		s.aborted = s.aborted[1:]
	}
	if attrs&attrTransactional == 0 {
		return true
	}
	for i, id := range s.active {
		if id != producer {
			continue
		}
		if attrs&attrControl != 0 {
			// A marker of this producer ends its transaction, and since the transaction is in the list
			// of the aborted ones it is an abort marker.
			s.active[i] = s.active[len(s.active)-1]
			s.active = s.active[:len(s.active)-1]
		}
		return false
	}
	return true
}

// batch looks through one batch from the offset from on. It returns how many messages were neither
// delivered nor before from.
func (s *kafkaScan) batch(p *kafkaPart, batch []byte, attrs uint16, base, last, from int64, feed *Feed) (skipped int) {
	count := int(int32(binary.BigEndian.Uint32(batch[57:])))
	if count < 0 || int64(count) > last-base+1 {
		feed.Error(fmt.Errorf("partition %d: offset %d: %w: %d messages at offsets %d to %d", p.id, from, errRecord, count, base, last))
		count = int(min(last-base+1, maxKafkaPlain))
	}
	body := batch[batchHeader:]
	if attrs&attrCodec != 0 {
		var err error
		if body, err = s.decompress(body, compress.Compression(attrs&attrCodec)); err != nil {
			feed.Error(fmt.Errorf("partition %d: offset %d: %w: %w", p.id, from, errRecord, err))
			return count
		}
	}
	hit := feed.mayHold(body)
	if !hit && base >= from {
		return count
	}
	if hit && crc32.Checksum(batch[21:], castagnoli) != binary.BigEndian.Uint32(batch[17:]) {
		feed.Error(fmt.Errorf("partition %d: offset %d: %w: wrong checksum", p.id, from, errRecord))
	}
	var enqueued time.Time
	if attrs&attrLogAppend != 0 {
		enqueued = time.UnixMilli(int64(binary.BigEndian.Uint64(batch[35:])))
	}
	rest := body
	for n := range count {
		record, tail, ok := nextRecord(rest)
		if !ok {
			// What cannot be taken apart is looked at as a whole: a heartbeat in it verifies or does not.
			feed.Error(fmt.Errorf("partition %d: offset %d: %w: message %d of %d", p.id, base, errRecord, n+1, count))
			if !feed.mayHold(rest) {
				return skipped + count - n
			}
			feed.Deliver(Message{Body: rest, Enqueued: enqueued, Past: last < p.past})
			return skipped + count - n - 1
		}
		rest = tail
		offset := base + recordOffset(record)
		if offset < from {
			continue
		}
		if !feed.mayHold(record) {
			skipped++
			continue
		}
		var whole []byte
		if feed.Wrapped() {
			whole, record = record, recordValue(record)
		}
		feed.Deliver(Message{Header: whole, Body: record, Enqueued: enqueued, ID: kafkaID(p.salt, p.id, offset), Past: offset < p.past})
	}
	return skipped
}

// nextRecord splits a record off: key, value and headers with their lengths between, which do not
// matter to a search.
func nextRecord(b []byte) (record, rest []byte, ok bool) {
	size, n := binary.Varint(b)
	if n <= 0 || size < 0 || size > int64(len(b)-n) {
		return nil, nil, false
	}
	return b[n : n+int(size)], b[n+int(size):], true
}

// recordOffset is the offset of a record inside its batch.
func recordOffset(record []byte) int64 {
	if len(record) < 1 {
		return 0
	}
	record = record[1:] // attributes
	_, n := binary.Varint(record)
	if n <= 0 {
		return 0
	}
	delta, _ := binary.Varint(record[n:])
	return delta
}

// recordValue is the value of a record, where an envelope begins; nil when there is none.
func recordValue(record []byte) []byte {
	if len(record) < 1 {
		return nil
	}
	rest := record[1:] // attributes
	for range 2 {      // time and offset, as differences
		_, n := binary.Varint(rest)
		if n <= 0 {
			return nil
		}
		rest = rest[n:]
	}
	var field []byte
	for range 2 { // key and value
		size, n := binary.Varint(rest)
		if n <= 0 || size > int64(len(rest)-n) {
			return nil
		}
		rest, field = rest[n:], nil
		if size > 0 {
			field, rest = rest[:size], rest[size:]
		}
	}
	return field
}

// kafkaID is never 0, which means unknown.
func kafkaID(salt uint64, partition int32, offset int64) uint64 {
	h := salt ^ uint64(partition)*0x9e3779b97f4a7c15 ^ uint64(offset)*0xc2b2ae3d27d4eb4f
	h = (h ^ h>>33) * 0xff51afd7ed558ccd
	h = (h ^ h>>33) * 0xc4ceb9fe1a85ec53
	return (h ^ h>>33) | 1
}

// decompress returns the records of a compressed batch, valid until the next call.
func (s *kafkaScan) decompress(b []byte, codec compress.Compression) ([]byte, error) {
	c := codec.Codec()
	if c == nil {
		return nil, fmt.Errorf("compression %d is not known", int8(codec))
	}
	if cap(s.plain) > 8<<20 {
		s.plain = nil // one giant batch must not keep its memory for ever
	}
	s.src.Reset(b)
	r := c.NewReader(&s.src)
	defer r.Close()
	out := s.plain[:0]
	for {
		if len(out) == cap(out) {
			if len(out) >= maxKafkaPlain {
				return nil, fmt.Errorf("%s: more than %d bytes", c.Name(), maxKafkaPlain)
			}
			out = append(out, make([]byte, max(64<<10, len(out)))...)[:len(out)]
		}
		n, err := r.Read(out[len(out):cap(out)])
		out = out[:len(out)+n]
		s.plain = out
		if err == io.EOF {
			return out, nil
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", c.Name(), err)
		}
	}
}
