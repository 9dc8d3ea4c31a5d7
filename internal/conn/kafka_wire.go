package conn

import (
	"encoding/binary"
)

// KafkaWriter appends the fields of one request in Kafka's wire format. Flexible requests (KIP-482)
// have compact strings and arrays and end every structure with tagged fields, of which none is sent.
type KafkaWriter struct {
	b        []byte
	flexible bool
}

// Int8 appends an integer.
func (w *KafkaWriter) Int8(v int8) { w.b = append(w.b, byte(v)) }

// Int16 appends a big-endian integer.
func (w *KafkaWriter) Int16(v int16) { w.b = binary.BigEndian.AppendUint16(w.b, uint16(v)) }

// Int32 appends a big-endian integer.
func (w *KafkaWriter) Int32(v int32) { w.b = binary.BigEndian.AppendUint32(w.b, uint32(v)) }

// Int64 appends a big-endian integer.
func (w *KafkaWriter) Int64(v int64) { w.b = binary.BigEndian.AppendUint64(w.b, uint64(v)) }

// Bool appends a boolean.
func (w *KafkaWriter) Bool(v bool) {
	if v {
		w.Int8(1)
	} else {
		w.Int8(0)
	}
}

// String appends a string, or a nullable string that is not null.
func (w *KafkaWriter) String(s string) {
	if w.flexible {
		w.b = binary.AppendUvarint(w.b, uint64(len(s))+1)
	} else {
		w.Int16(int16(len(s)))
	}
	w.b = append(w.b, s...)
}

// Null appends a nullable string that is null.
func (w *KafkaWriter) Null() {
	if w.flexible {
		w.b = append(w.b, 0)
	} else {
		w.Int16(-1)
	}
}

// Array appends the length of an array; its elements follow.
func (w *KafkaWriter) Array(n int) {
	if w.flexible {
		w.b = binary.AppendUvarint(w.b, uint64(n)+1)
	} else {
		w.Int32(int32(n))
	}
}

// Raw appends bytes as they are.
func (w *KafkaWriter) Raw(b []byte) { w.b = append(w.b, b...) }

// Buffer returns what is written so far.
func (w *KafkaWriter) Buffer() []byte { return w.b }

// SetBuffer takes the buffer back after something was appended to it.
func (w *KafkaWriter) SetBuffer(b []byte) { w.b = b }

// End ends a structure.
func (w *KafkaWriter) End() {
	if w.flexible {
		w.b = append(w.b, 0)
	}
}

// KafkaReader takes the fields of one response off the front of a buffer. After a field that is not
// there every further one is zero and Bad reports true, so that a parser checks once per structure.
type KafkaReader struct {
	b        []byte
	flexible bool
	bad      bool
}

// NewKafkaReader returns a reader over a response body.
func NewKafkaReader(b []byte, flexible bool) KafkaReader {
	return KafkaReader{b: b, flexible: flexible}
}

// Bad reports that the response was shorter than its fields, or one of its lengths absurd.
func (r *KafkaReader) Bad() bool { return r.bad }

// Fail makes the reader bad.
func (r *KafkaReader) Fail() { r.bad, r.b = true, nil }

// Raw takes n bytes.
func (r *KafkaReader) Raw(n int) []byte {
	if n < 0 || n > len(r.b) {
		r.Fail()
		return nil
	}
	v := r.b[:n:n]
	r.b = r.b[n:]
	return v
}

// Int8 takes an integer.
func (r *KafkaReader) Int8() int8 {
	if b := r.Raw(1); b != nil {
		return int8(b[0])
	}
	return 0
}

// Int16 takes a big-endian integer.
func (r *KafkaReader) Int16() int16 {
	if b := r.Raw(2); b != nil {
		return int16(binary.BigEndian.Uint16(b))
	}
	return 0
}

// Int32 takes a big-endian integer.
func (r *KafkaReader) Int32() int32 {
	if b := r.Raw(4); b != nil {
		return int32(binary.BigEndian.Uint32(b))
	}
	return 0
}

// Int64 takes a big-endian integer.
func (r *KafkaReader) Int64() int64 {
	if b := r.Raw(8); b != nil {
		return int64(binary.BigEndian.Uint64(b))
	}
	return 0
}

// Bool takes a boolean.
func (r *KafkaReader) Bool() bool { return r.Int8() != 0 }

// UUID takes a topic id.
func (r *KafkaReader) UUID() (id [16]byte) {
	copy(id[:], r.Raw(16))
	return id
}

func (r *KafkaReader) uvarint() int {
	v, n := binary.Uvarint(r.b)
	if n <= 0 || v > 1<<31 {
		r.Fail()
		return 0
	}
	r.b = r.b[n:]
	return int(v)
}

// String takes a string; a null one is empty.
func (r *KafkaReader) String() []byte {
	n := 0
	if r.flexible {
		n = r.uvarint() - 1
	} else {
		n = int(r.Int16())
	}
	if n <= 0 {
		return nil
	}
	return r.Raw(n)
}

// Bytes takes a byte array, such as a set of records; a null one is empty.
func (r *KafkaReader) Bytes() []byte {
	n := 0
	if r.flexible {
		n = r.uvarint() - 1
	} else {
		n = int(r.Int32())
	}
	if n <= 0 {
		return nil
	}
	return r.Raw(n)
}

// Array takes the length of an array; a null one has none. No element is smaller than one byte, so a
// length beyond the buffer is refused before anybody makes room for it.
func (r *KafkaReader) Array() int {
	n := 0
	if r.flexible {
		n = r.uvarint() - 1
	} else {
		n = int(r.Int32())
	}
	if n > len(r.b) {
		r.Fail()
	}
	if n < 0 || r.bad {
		return 0
	}
	return n
}

// End skips the tagged fields at the end of a structure.
func (r *KafkaReader) End() {
	if !r.flexible {
		return
	}
	for n := r.uvarint(); n > 0 && !r.bad; n-- {
		r.uvarint()
		r.Raw(r.uvarint())
	}
}
