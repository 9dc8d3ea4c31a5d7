package sinks

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/segmentio/kafka-go/compress"

	"github.com/lag-monitor/lag-monitor/internal/conn"
)

// kafkaBatch builds a record batch whose records hold the bodies.
func kafkaBatch(base int64, attrs uint16, bodies ...string) []byte {
	var records []byte
	for i, body := range bodies {
		r := binary.AppendVarint([]byte{0}, 0)         // attributes, time
		r = binary.AppendVarint(r, int64(i))           // offset
		r = binary.AppendVarint(r, -1)                 // key
		r = binary.AppendVarint(r, int64(len(body)))   // value
		r = binary.AppendVarint(append(r, body...), 0) // headers
		records = binary.AppendVarint(records, int64(len(r)))
		records = append(records, r...)
	}
	if codec := compress.Compression(attrs & attrCodec).Codec(); codec != nil {
		var b bytes.Buffer
		w := codec.NewWriter(&b)
		w.Write(records)
		w.Close()
		records = b.Bytes()
	}
	b := append(make([]byte, batchHeader), records...)
	be := binary.BigEndian
	be.PutUint64(b, uint64(base))
	be.PutUint32(b[8:], uint32(len(b)-batchOverhead))
	b[batchMagicAt] = 2
	be.PutUint16(b[21:], attrs)
	be.PutUint32(b[23:], uint32(len(bodies)-1))
	be.PutUint32(b[57:], uint32(len(bodies)))
	be.PutUint32(b[17:], crc32.Checksum(b[21:], castagnoli))
	return b
}

// kafkaAnswer builds a Fetch answer of version 11 for partition 0.
func kafkaAnswer(high int64, records []byte) []byte {
	be := binary.BigEndian
	b := append([]byte(nil), make([]byte, 4+2)...) // throttle time, error
	b = be.AppendUint32(b, 7)                      // session
	b = be.AppendUint32(b, 1)
	b = append(b, 0, 1, 't')
	b = be.AppendUint32(b, 1)
	b = be.AppendUint32(b, 0)
	b = be.AppendUint16(b, 0)
	b = be.AppendUint64(b, uint64(high))
	b = be.AppendUint64(b, uint64(high))
	b = be.AppendUint64(b, 0)
	b = be.AppendUint32(b, 0)
	b = be.AppendUint32(b, ^uint32(0))
	b = be.AppendUint32(b, uint32(len(records)))
	return append(b, records...)
}

func kafkaSession(version int16) *kafkaFetch {
	f := &kafkaFetch{topic: "t", version: version, maxBytes: 1 << 20, parts: map[int32]*kafkaPart{}}
	f.add(&kafkaPart{id: 0})
	return f
}

// What a broker hands out damaged does not stop a sink, is not lost silently, and does not make it
// miscount what is sound.
func TestKafkaDamagedBatches(t *testing.T) {
	token := tokenOf(1)
	sound := kafkaBatch(0, 0, "a", token, "b")
	edit := func(f func(b []byte)) []byte {
		b := bytes.Clone(sound)
		f(b)
		return b
	}
	for name, c := range map[string]struct {
		batch              []byte
		heartbeats, others uint64
		reports            uint64
	}{
		"sound":              {sound, 1, 2, 0},
		"checksum":           {edit(func(b []byte) { b[17] ^= 1 }), 1, 2, 1},
		"count too small":    {edit(func(b []byte) { b[60] = 2 }), 1, 1, 1},
		"count absurd":       {edit(func(b []byte) { b[57] = 0x7f }), 1, 2, 2},
		"record cut":         {edit(func(b []byte) { b[batchHeader] = 0x7f }), 1, 2, 2},
		"codec not known":    {kafkaBatch(0, 7, "a", token, "b"), 0, 3, 1},
		"not gzip":           {edit(func(b []byte) { b[22] = 1 }), 0, 3, 1},
		"gzip":               {kafkaBatch(0, 1, "a", token, "b"), 1, 2, 0},
		"control batch":      {kafkaBatch(0, attrControl, "a", token, "b"), 0, 0, 0},
		"a batch and a tail": {append(bytes.Clone(sound), sound[:70]...), 1, 2, 0},
	} {
		f := kafkaSession(kafkaFetchNames)
		feed := NewFeed(new(taker), nil)
		r := conn.NewKafkaReader(kafkaAnswer(3, c.batch), false)
		if _, _, err := f.response(&r, feed); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		s := feed.Stats()
		if s.Messages[Heartbeat] != c.heartbeats || s.Messages[Other] != c.others || s.Errors[conn.Other] != c.reports {
			t.Errorf("%s: %d heartbeats, %d others, %d errors (%v), want %d, %d, %d", name,
				s.Messages[Heartbeat], s.Messages[Other], s.Errors[conn.Other], s.LastError, c.heartbeats, c.others, c.reports)
		}
		if pos := f.list[0].pos.Load(); pos != 3 || f.caughtUp(time.Now()).IsZero() {
			t.Errorf("%s: position is %d, want 3", name, pos)
		}
	}
	for want, b := range map[string][]byte{
		"partition 0: offset 0: message format 1 is not supported, only that of Kafka 0.11 and later is": edit(func(b []byte) { b[batchMagicAt] = 1 }),
		"partition 0: offset 0: record batch is damaged: length 3":                                       edit(func(b []byte) { binary.BigEndian.PutUint32(b[8:], 3) }),
		"partition 0: offset 0: record batch is damaged: offsets -1 to 1":                                edit(func(b []byte) { binary.BigEndian.PutUint64(b, ^uint64(0)) }),
	} {
		r := conn.NewKafkaReader(kafkaAnswer(3, b), false)
		if _, _, err := kafkaSession(kafkaFetchNames).response(&r, NewFeed(new(taker), nil)); err == nil || err.Error() != want {
			t.Errorf("error is %v, want %s", err, want)
		}
	}
}

// An ordinary message costs no allocation, compressed or not.
func TestKafkaSkipsWithoutAllocation(t *testing.T) {
	for _, codec := range []compress.Compression{compress.None, compress.Gzip, compress.Snappy, compress.Lz4, compress.Zstd} {
		bodies := make([]string, 5000)
		for i := range bodies {
			bodies[i] = fmt.Sprintf(`{"order":%d,"note":"%s"}`, i, strings.Repeat("~lagmon0.", 20))
		}
		answer := kafkaAnswer(5000, kafkaBatch(0, uint16(codec), bodies...))
		f := kafkaSession(kafkaFetchNames)
		feed := NewFeed(new(taker), nil)
		read := func() {
			f.list[0].pos.Store(0)
			r := conn.NewKafkaReader(answer, false)
			if _, _, err := f.response(&r, feed); err != nil {
				t.Fatal(err)
			}
		}
		// Allocations are those of the whole process, also of what ends in the background: what reading
		// needs, each of the runs has.
		allocs := math.Inf(1)
		for range 10 {
			allocs = min(allocs, testing.AllocsPerRun(1, read))
		}
		if feed.Stats().Messages[Other] != 2*10*5000 {
			t.Errorf("%s: %d messages are counted", codec, feed.Stats().Messages[Other])
		}
		// The codecs allocate a little for each batch.
		if limit := 0.0; codec == compress.None && allocs > limit || allocs > 50 {
			t.Errorf("%s: %.0f allocations for 5000 messages", codec, allocs)
		}
	}
}

func FuzzKafkaFetch(f *testing.F) {
	for _, codec := range []uint16{0, 1, 2, 3, 4} {
		f.Add(kafkaAnswer(3, kafkaBatch(0, codec, "a", tokenOf(1), "b")), false, true)
		f.Add(kafkaAnswer(9, append(kafkaBatch(0, codec|attrTransactional, "a"), kafkaBatch(1, attrControl, tokenOf(2))...)), false, false)
	}
	f.Add(kafkaAnswer(3, kafkaBatch(0, 0, "a")), true, true)
	f.Fuzz(func(t *testing.T, b []byte, ids, committed bool) {
		version := int16(kafkaFetchNames)
		if ids {
			version = kafkaFetchIDs
		}
		s := kafkaSession(version)
		s.committed = committed
		feed := NewFeed(new(taker), nil)
		before := s.list[0].pos.Load()
		r := conn.NewKafkaReader(b, ids)
		_, _, _ = s.response(&r, feed)
		if s.list[0].pos.Load() < before {
			t.Error("the position went back")
		}
		var n uint64
		for _, k := range feed.Stats().Messages {
			n += k
		}
		// A count that a batch claims may be wrong, but not beyond the offsets that it spans.
		if span := uint64(s.list[0].pos.Load() - before); n > span*4+uint64(len(b)) {
			t.Errorf("%d messages counted in %d offsets", n, span)
		}
	})
}
