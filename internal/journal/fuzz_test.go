package journal

import (
	"bytes"
	"encoding/binary"
	"reflect"
	"strings"
	"testing"
	"unsafe"
)

// FuzzValue decodes hostile entries that carry the right checksum. What is made of them is bounded by
// their length, and what is read is what would be written.
func FuzzValue(f *testing.F) {
	b := put(new(Batch), sample(1))
	for _, p := range b.puts {
		value := b.valueOf(p)
		f.Add(b.keyOf(p), value[:len(value)-4])
	}
	head := header{count: 3, sum: 1 << 60, tx: 9}.append(nil)
	f.Add(headerKey, head[:len(head)-4])
	// Many things announced and none there; and names that unfold from the one before.
	f.Add([]byte("b\x00\x00"+strings.Repeat("\x00", 28)), []byte("\x01\x00\x00\x00\xff\xff\xff\xff\xff\xff\x01"))
	f.Add([]byte("s\x00"), []byte("\x01\x00\x00\xff\xff\xff\xff\xff\xff\x01"))
	unfold := "\x01\x00\x00\xe9\x07" + "\x00\x80\x08" + strings.Repeat("x", maxName) + "\x00\x00" // 1001 stamps
	f.Add([]byte("s\x00"), []byte(unfold+strings.Repeat("\xff\x07\x00\x00\x00\xfe\x07\x01x\x00\x00", 500)+"\x00"))
	f.Fuzz(func(t *testing.T, key, body []byte) {
		if len(key) == 0 {
			return
		}
		value := binary.LittleEndian.AppendUint32(bytes.Clone(body), checksum(key, body))
		size := uintptr(0)
		var again Batch
		switch key[0] {
		case headerKind:
			_, _ = decodeHeader(key, value)
		case sinkKind:
			s, err := decodeSink(key, value)
			if err != nil {
				return
			}
			size = uintptr(len(s.Name)+len(s.Fingerprint)) + uintptr(cap(s.Stamps))*unsafe.Sizeof(Stamp{}) + uintptr(cap(s.Streams))*unsafe.Sizeof(Stream{})
			for k, v := range s.Position {
				size += uintptr(len(k)+len(v)) + 2*unsafe.Sizeof("")
			}
			for _, t := range s.Stamps {
				size += uintptr(len(t.Probe))
			}
			for _, t := range s.Streams {
				size += uintptr(len(t.Probe)) + uintptr(cap(t.Lanes))*unsafe.Sizeof(StreamLane{})
			}
			again.PutSink(&s)
			if again.err == nil {
				second, err := decodeSink(again.keyOf(again.puts[0]), again.valueOf(again.puts[0]))
				if err != nil || !reflect.DeepEqual(s, second) {
					t.Fatalf("%v\n%+v\n%+v", err, s, second)
				}
			}
		case blockKind:
			k, err := decodeBlock(key, value, nil)
			if err != nil {
				return
			}
			size = uintptr(len(k.Probe)+len(k.Sink)) + uintptr(cap(k.Open))*unsafe.Sizeof(Heartbeat{})
			again.PutBlock(&k)
			if again.err == nil {
				second, err := decodeBlock(again.keyOf(again.puts[0]), again.valueOf(again.puts[0]), nil)
				if err != nil || !reflect.DeepEqual(k, second) {
					t.Fatalf("%v\n%+v\n%+v", err, k, second)
				}
			}
		}
		if key[0] == pauseKind {
			p, err := decodePause(key, value)
			if err != nil {
				return
			}
			if again.PutPause(&p); again.err == nil {
				if second, err := decodePause(again.keyOf(again.puts[0]), again.valueOf(again.puts[0])); err != nil || p != second {
					t.Fatalf("%v\n%+v\n%+v", err, p, second)
				}
			}
		}
		if most := uintptr(100*len(value) + len(key)); size > most {
			t.Fatalf("%d bytes became %d", len(value), size)
		}
	})
}

// FuzzFile reads a hostile file.
func FuzzFile(f *testing.F) {
	files, _ := twoWrites(f)
	f.Add(files[1], 8192, []byte{9})
	f.Add(files[0][:4096], 100, []byte{})
	f.Fuzz(func(t *testing.T, b []byte, at int, over []byte) {
		if at < 0 || at > len(b) {
			return
		}
		b = bytes.Clone(b)
		copy(b[at:], over)
		s, found, err := loadBytes(b)
		if s == nil || !found && len(s.Sinks)+len(s.Blocks) > 0 || err == nil && !found {
			t.Fatalf("%+v %v %v", s, found, err)
		}
	})
}
