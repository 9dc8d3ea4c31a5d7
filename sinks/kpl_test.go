package sinks

import (
	"bytes"
	"crypto/md5"
	"fmt"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
)

// aggregate writes records as the Kinesis Producer Library does, with a key table, tags and a field
// that nobody knows.
func aggregate(records ...[]byte) []byte {
	var m []byte
	m = protowire.AppendTag(m, 1, protowire.BytesType)
	m = protowire.AppendString(m, "key-a")
	m = protowire.AppendTag(m, 2, protowire.BytesType)
	m = protowire.AppendString(m, "340282366920938463463374607431768211455")
	for i, data := range records {
		var r []byte
		r = protowire.AppendTag(r, 1, protowire.VarintType)
		r = protowire.AppendVarint(r, 0)
		if i%2 == 1 {
			r = protowire.AppendTag(r, 2, protowire.VarintType)
			r = protowire.AppendVarint(r, 0)
		}
		r = protowire.AppendTag(r, 3, protowire.BytesType)
		r = protowire.AppendBytes(r, data)
		if i == 0 {
			tag := protowire.AppendTag(nil, 1, protowire.BytesType)
			tag = protowire.AppendString(tag, "a tag")
			r = protowire.AppendTag(r, 4, protowire.BytesType)
			r = protowire.AppendBytes(r, tag)
		}
		m = protowire.AppendTag(m, 3, protowire.BytesType)
		m = protowire.AppendBytes(m, r)
	}
	m = protowire.AppendTag(m, 15, protowire.Fixed64Type)
	m = protowire.AppendFixed64(m, 7)
	return seal(m)
}

func seal(message []byte) []byte {
	sum := md5.Sum(message)
	return append(append([]byte{0xF3, 0x89, 0x9A, 0xC2}, message...), sum[:]...)
}

func split(data []byte) (out []string, ok bool) {
	message, count, ok := unaggregate(data)
	if !ok {
		return nil, false
	}
	eachRecord(message, func(i int, b []byte) {
		if i != len(out) {
			panic("records are not counted from 0")
		}
		out = append(out, string(b))
	})
	if len(out) != count {
		panic(fmt.Sprintf("%d records, %d were announced", len(out), count))
	}
	return out, true
}

func TestKPL(t *testing.T) {
	got, ok := split(aggregate([]byte("one"), nil, []byte("three")))
	if want := `["one" "" "three"]`; !ok || fmt.Sprintf("%q", got) != want {
		t.Errorf("%q, %t; want %s", got, ok, want)
	}
	// A vector by hand: the record "x" with the first key, "k".
	hand := seal([]byte{0x0a, 1, 'k', 0x1a, 5, 0x08, 0, 0x1a, 1, 'x'})
	if got, ok := split(hand); !ok || fmt.Sprint(got) != "[x]" {
		t.Errorf("the vector by hand holds %q, %t", got, ok)
	}
	sealed := aggregate([]byte("one"))
	for name, data := range map[string][]byte{
		"empty":             nil,
		"magic only":        sealed[:4],
		"cut":               sealed[:len(sealed)-1],
		"another magic":     append([]byte{0xF3, 0x89, 0x9A, 0xC3}, sealed[4:]...),
		"another sum":       append(bytes.Clone(sealed[:len(sealed)-1]), sealed[len(sealed)-1]^1),
		"no record":         seal([]byte{0x0a, 1, 'k'}),
		"message cut":       seal([]byte{0x0a, 9, 'k'}),
		"record cut":        seal([]byte{0x1a, 2, 0x1a, 9}),
		"length of 2^63":    seal([]byte{0x1a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f}),
		"group without end": seal([]byte{0x1b}),
		"field 0":           seal([]byte{0x02, 0}),
	} {
		if got, ok := split(data); ok {
			t.Errorf("%s: taken for aggregated: %q", name, got)
		}
	}
	if n := testing.AllocsPerRun(100, func() {
		message, _, _ := unaggregate(sealed)
		eachRecord(message, func(int, []byte) {})
	}); n > 0 {
		t.Errorf("%v allocations to open a record", n)
	}
}

func FuzzKPL(f *testing.F) {
	f.Add(aggregate([]byte("one"), []byte("two")), false)
	f.Add([]byte{0x0a, 1, 'k', 0x1a, 5, 0x08, 0, 0x1a, 1, 'x'}, true)
	f.Add([]byte{0x1b, 0x1c}, true)
	f.Fuzz(func(t *testing.T, data []byte, valid bool) {
		if valid {
			data = seal(data) // past the sum, into the parser
		}
		before := bytes.Clone(data)
		records, ok := split(data)
		if !bytes.Equal(before, data) {
			t.Fatal("the record was changed")
		}
		size := 0
		for _, r := range records {
			size += len(r)
		}
		if ok && (size > len(data) || len(records) == 0) {
			t.Fatalf("%d records with %d bytes out of %d", len(records), size, len(data))
		}
	})
}
