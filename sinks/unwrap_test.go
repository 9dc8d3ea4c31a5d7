package sinks

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/snappy"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

func gzipped(t *testing.T, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func zstded(t *testing.T, b []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	return w.EncodeAll(b, nil)
}

func lz4ed(t *testing.T, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := lz4.NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func snappyStreamed(t *testing.T, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := s2.NewWriter(&out, s2.WriterSnappyCompat(), s2.WriterConcurrency(1))
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// xerial writes the format of snappy-java, in blocks of ten bytes.
func xerial(b []byte) []byte {
	out := append([]byte("\x82SNAPPY\x00"), 0, 0, 0, 1, 0, 0, 0, 1)
	for len(b) > 0 {
		part := snappy.Encode(nil, b[:min(10, len(b))])
		b = b[min(10, len(b)):]
		out = append(binary.BigEndian.AppendUint32(out, uint32(len(part))), part...)
	}
	return out
}

func quoted(t *testing.T, b []byte) []byte {
	t.Helper()
	text, err := json.Marshal(string(b))
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestUnwrap(t *testing.T) {
	const message = `{"heartbeat":"~lagmon1.orders.AbCd_-09"}` + "\n"
	plain := []byte(message)
	std := base64.StdEncoding.EncodeToString(plain)
	event := func(field string, value any) []byte {
		return []byte(fmt.Sprintf(`{"specversion":"1.0","id":"1","type":"t","source":"s",%q:%s}`, field, value))
	}
	for _, tt := range []struct {
		name    string
		unwrap  string // several with spaces between
		wrapped []byte
		want    []string
	}{
		{"nothing to do", "", plain, []string{message}},
		{"base64", "base64", []byte(std), []string{message}},
		{"base64 for URLs, not padded", "base64", []byte(base64.RawURLEncoding.EncodeToString([]byte{0xfb, 0xff, 0xfe, 0x01})), []string{"\xfb\xff\xfe\x01"}},
		{"base64 in lines and quotes", "base64", []byte("\"" + std[:10] + "\r\n" + std[10:] + "\"\n"), []string{message}},
		{"gzip", "gzip", gzipped(t, plain), []string{message}},
		{"gzip of two members", "gzip", append(gzipped(t, plain), gzipped(t, plain)...), []string{message + message}},
		{"gzip that is cut short", "gzip", gzipped(t, bytes.Repeat(plain, 100))[:100], nil},
		{"zstd", "zstd", zstded(t, plain), []string{message}},
		{"lz4", "lz4", lz4ed(t, plain), []string{message}},
		{"snappy block", "snappy", snappy.Encode(nil, plain), []string{message}},
		{"snappy stream", "snappy", snappyStreamed(t, plain), []string{message}},
		{"snappy of Java", "snappy", xerial(plain), []string{message}},
		{"Confluent's prefix", "confluent", append([]byte{0, 0, 0, 0, 7}, plain...), []string{message}},
		{"an SNS notification", "sns", []byte(`{"Type":"Notification","Message":` + string(quoted(t, plain)) + `}`), []string{message}},
		{"SNS with raw delivery", "sns", plain, []string{message}},
		{"a CloudEvent with JSON in it", "cloudevents", event("data", strings.TrimSpace(message)), []string{strings.TrimSpace(message)}},
		{"a CloudEvent with text in it", "cloudevents", event("data", string(quoted(t, plain))), []string{message}},
		{"a CloudEvent with bytes in it", "cloudevents", event("data_base64", `"`+std+`"`), []string{message}},
		{"a batch of CloudEvents", "cloudevents", append(append(append(append([]byte("["), event("data", "1")...), ','), event("data", "2")...), ']'), []string{"1", "2"}},
		{"KPL", "kpl", aggregate([]byte("one"), plain), []string{"one", message}},
		{"several in a row", "sns base64 gzip", []byte(`{"Message":` + string(quoted(t, []byte(base64.StdEncoding.EncodeToString(gzipped(t, plain))))) + `}`), []string{message}},
		{"KPL, and each compressed", "kpl zstd", aggregate(zstded(t, plain), []byte("ordinary"), zstded(t, plain)), []string{message, "ordinary", message}},
		{"not wrapped at all", "base64 gzip", plain, []string{message}},
		{"only the outer one", "gzip base64", gzipped(t, []byte("no base64!")), []string{"no base64!"}},
		{"empty", "base64 gzip zstd", nil, []string{""}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			u, err := NewUnwrap(strings.Fields(tt.unwrap)...)
			if err != nil {
				t.Fatal(err)
			}
			for range 2 { // the second time with the memory of the first
				var got []string
				u.Each(tt.wrapped, func(b []byte) { got = append(got, string(b)) })
				if tt.want == nil { // part of it
					if len(got) != 1 || !strings.HasPrefix(got[0], message) {
						t.Errorf("got %.80q; want the beginning of what was in it", got)
					}
				} else if fmt.Sprint(got) != fmt.Sprint(tt.want) {
					t.Errorf("got %q; want %q", got, tt.want)
				}
			}
		})
	}
}

func TestUnwrapBadNames(t *testing.T) {
	if _, err := NewUnwrap("gzip", "zip"); err == nil || !strings.Contains(err.Error(), `"zip" is not known; valid: base64, cloudevents,`) {
		t.Error(err)
	}
	if _, err := NewUnwrap(strings.Fields(strings.Repeat("gzip ", MaxEnvelopes+1))...); err == nil {
		t.Error("too many are allowed")
	}
}

// A small message that unpacks to gigabytes must not take them.
func TestUnwrapBomb(t *testing.T) {
	bomb := make([]byte, 2*maxUnwrapped)
	for name, b := range map[string][]byte{"gzip": gzipped(t, bomb), "zstd": zstded(t, bomb), "lz4": lz4ed(t, bomb), "snappy": snappyStreamed(t, bomb)} {
		u, err := NewUnwrap(name)
		if err != nil {
			t.Fatal(err)
		}
		u.Each(b, func(in []byte) {
			if len(in) > maxUnwrapped {
				t.Errorf("%s: %d bytes of %d", name, len(in), len(b))
			}
		})
	}
}

// What is not wrapped goes through as it is, and nothing panics or grows without bound.
func FuzzUnwrap(f *testing.F) {
	f.Add([]byte("x"), uint16(0))
	f.Add([]byte(`{"Message":"eyJ9"}`), uint16(0x321))
	f.Add([]byte("\x82SNAPPY\x00........\xff\xff\xff\xff"), uint16(6))
	f.Add([]byte(`[{"specversion":"1.0","data":{}}]`), uint16(1))
	f.Fuzz(func(t *testing.T, b []byte, pick uint16) {
		all := Envelopes()
		var names []string
		for ; pick > 0; pick >>= 4 {
			names = append(names, all[int(pick&15)%len(all)])
		}
		u, err := NewUnwrap(names...)
		if err != nil {
			t.Fatal(err)
		}
		before := bytes.Clone(b)
		parts := 0
		u.Each(b, func(in []byte) {
			parts++
			if len(in) > max(maxUnwrapped, len(b)) {
				t.Errorf("%v: %d bytes from %d", names, len(in), len(b))
			}
		})
		if !bytes.Equal(b, before) {
			t.Error("the message itself was changed")
		}
	})
}
