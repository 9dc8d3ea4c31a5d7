package sinks

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/snappy"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

const (
	// maxUnwrapped bounds what one envelope may hold: bytes behind it are not looked at. It is the largest
	// message that common brokers take, a few times over, and keeps a compressed bomb small.
	maxUnwrapped = 16 << 20
	// keptUnwrapped is how much memory is kept for the next message.
	keptUnwrapped = 1 << 20
	// MaxEnvelopes is how many envelopes may be one inside the other.
	MaxEnvelopes = 8
)

// Unwrap takes messages out of their envelopes, so that a heartbeat is found which the pipeline has compressed,
// encoded or packed together with others. It is safe for concurrent use.
type Unwrap struct {
	names []string
	free  sync.Pool // of *opener
}

// Envelopes lists what can be unwrapped, sorted.
func Envelopes() []string { return slices.Sorted(maps.Keys(envelopes())) }

// NewUnwrap returns an Unwrap for envelopes one inside the other, the outermost first.
func NewUnwrap(names ...string) (*Unwrap, error) {
	if len(names) > MaxEnvelopes {
		return nil, fmt.Errorf("%d envelopes; at most %d", len(names), MaxEnvelopes)
	}
	known := envelopes()
	for _, n := range names {
		if known[n] == nil {
			return nil, fmt.Errorf("envelope %q is not known; valid: %s", n, strings.Join(Envelopes(), ", "))
		}
	}
	u := &Unwrap{names: names}
	u.free.New = func() any {
		o := &opener{kept: make([][]byte, len(names))}
		for _, n := range names {
			o.open = append(o.open, known[n])
		}
		return o
	}
	return u, nil
}

// Each calls f with everything that is inside b; it is valid until f returns. What is not in the envelope
// that is expected is passed on as far as it could be opened: some of a queue's messages may be wrapped in
// another way, or not at all.
func (u *Unwrap) Each(b []byte, f func([]byte)) {
	o := u.free.Get().(*opener)
	o.each(0, b, f)
	for i, k := range o.kept {
		if cap(k) > keptUnwrapped {
			o.kept[i] = nil
		}
	}
	u.free.Put(o)
}

// opener is what the opening of one message needs. It is kept for the next.
type opener struct {
	open []envelope
	kept [][]byte // memory of the envelope at that depth
	gzip *gzip.Reader
	zstd *zstd.Decoder
	lz4  *lz4.Reader
	s2   *s2.Reader
}

// each opens the envelopes from a depth on.
func (o *opener) each(depth int, b []byte, f func([]byte)) {
	if depth == len(o.open) {
		f(b)
		return
	}
	if err := o.open[depth](o, depth, b, func(in []byte) { o.each(depth+1, in, f) }); err != nil {
		f(b)
	}
}

// envelope calls f with each message inside b, or returns an error when b is no such envelope, without having
// called f. What it passes on may be in o.kept[depth].
type envelope func(o *opener, depth int, b []byte, f func([]byte)) error

var errNotWrapped = errors.New("not in this envelope")

func envelopes() map[string]envelope {
	return map[string]envelope{
		"base64":      openBase64,
		"cloudevents": openCloudEvents,
		"confluent":   openConfluent,
		"gzip":        openGzip,
		"kpl":         openKPL,
		"lz4":         openLZ4,
		"snappy":      openSnappy,
		"sns":         openSNS,
		"zstd":        openZstd,
	}
}

// drain passes on what r holds, at most maxUnwrapped bytes. What came before an error is passed on: a
// message that is cut short may still hold a heartbeat.
func (o *opener) drain(depth int, r io.Reader, f func([]byte)) error {
	buf := bytes.NewBuffer(o.kept[depth][:0])
	_, err := buf.ReadFrom(io.LimitReader(r, maxUnwrapped))
	o.kept[depth] = buf.Bytes()
	if err != nil && buf.Len() == 0 {
		return err
	}
	f(buf.Bytes())
	return nil
}

// openBase64 takes the standard and the URL alphabet, padded or not, in lines or in quotes.
func openBase64(o *opener, depth int, b []byte, f func([]byte)) error {
	text := o.kept[depth][:0]
	enc := base64.RawStdEncoding
	for _, c := range bytes.Trim(bytes.TrimSpace(b), `"`) {
		switch c {
		case '\r', '\n', ' ', '\t':
			continue
		case '-', '_':
			enc = base64.RawURLEncoding
		}
		text = append(text, c)
	}
	o.kept[depth] = text
	text = bytes.TrimRight(text, "=")
	if len(text) == 0 {
		return errNotWrapped
	}
	n, err := enc.Decode(text, text) // the result is shorter, and never overtakes what is read
	if err != nil {
		return err
	}
	f(text[:n])
	return nil
}

func openGzip(o *opener, depth int, b []byte, f func([]byte)) (err error) {
	if o.gzip == nil {
		o.gzip = new(gzip.Reader)
	}
	if err := o.gzip.Reset(bytes.NewReader(b)); err != nil {
		return err
	}
	return o.drain(depth, o.gzip, f)
}

func openZstd(o *opener, depth int, b []byte, f func([]byte)) (err error) {
	if o.zstd == nil {
		// One at a time: no goroutines.
		o.zstd, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxMemory(maxUnwrapped))
		if err != nil {
			return err
		}
	}
	if err := o.zstd.Reset(bytes.NewReader(b)); err != nil {
		return err
	}
	return o.drain(depth, o.zstd, f)
}

// openLZ4 takes the frame format.
func openLZ4(o *opener, depth int, b []byte, f func([]byte)) error {
	if o.lz4 == nil {
		o.lz4 = lz4.NewReader(nil)
	}
	o.lz4.Reset(bytes.NewReader(b))
	return o.drain(depth, o.lz4, f)
}

var (
	snappyStream = []byte("\xff\x06\x00\x00sNaPpY")
	snappyXerial = []byte("\x82SNAPPY\x00")
)

// xerialHeader is the magic and two versions of four bytes each.
const xerialHeader = 16

// openSnappy takes the plain block, the stream format, and the blocks of snappy-java.
func openSnappy(o *opener, depth int, b []byte, f func([]byte)) error {
	switch {
	case bytes.HasPrefix(b, snappyStream):
		if o.s2 == nil {
			o.s2 = s2.NewReader(nil)
		}
		o.s2.Reset(bytes.NewReader(b))
		return o.drain(depth, o.s2, f)
	case bytes.HasPrefix(b, snappyXerial) && len(b) > xerialHeader:
		var out []byte
		for rest := b[xerialHeader:]; len(rest) > 4; {
			size := int64(binary.BigEndian.Uint32(rest))
			if rest = rest[4:]; size > int64(len(rest)) {
				break
			}
			part, err := snappyBlock(nil, rest[:size], maxUnwrapped-len(out))
			if err != nil {
				break
			}
			out, rest = append(out, part...), rest[size:]
		}
		if len(out) == 0 {
			return errNotWrapped
		}
		f(out)
		return nil
	}
	out, err := snappyBlock(o.kept[depth][:cap(o.kept[depth])], b, maxUnwrapped)
	if err != nil {
		return err
	}
	o.kept[depth] = out
	f(out)
	return nil
}

func snappyBlock(dst, b []byte, limit int) ([]byte, error) {
	if n, err := snappy.DecodedLen(b); err != nil || n > limit || n == 0 {
		return nil, errNotWrapped
	}
	return snappy.Decode(dst, b)
}

func openKPL(_ *opener, _ int, b []byte, f func([]byte)) error {
	message, _, ok := unaggregate(b)
	if !ok {
		return errNotWrapped
	}
	eachRecord(message, func(_ int, data []byte) { f(data) })
	return nil
}

// openConfluent takes off what the serializers of a schema registry put in front: a zero and the schema's id.
func openConfluent(_ *opener, _ int, b []byte, f func([]byte)) error {
	const prefix = 5
	if len(b) < prefix || b[0] != 0 {
		return errNotWrapped
	}
	f(b[prefix:])
	return nil
}

// openSNS takes the notification that SNS makes of a message unless raw delivery is on.
func openSNS(_ *opener, _ int, b []byte, f func([]byte)) error {
	var n struct{ Message *string }
	if err := json.Unmarshal(b, &n); err != nil {
		return err
	}
	if n.Message == nil {
		return errNotWrapped
	}
	f([]byte(*n.Message))
	return nil
}

// openCloudEvents takes an event in the structured JSON form, or a batch of them. In the binary form the message is the
// data, and there is nothing to unwrap.
func openCloudEvents(_ *opener, _ int, b []byte, f func([]byte)) error {
	type event struct {
		Version string          `json:"specversion"`
		Data    json.RawMessage `json:"data"`
		Base64  []byte          `json:"data_base64"`
	}
	var batch []event
	if b = bytes.TrimSpace(b); len(b) > 0 && b[0] == '[' {
		if err := json.Unmarshal(b, &batch); err != nil {
			return err
		}
	} else {
		batch = make([]event, 1)
		if err := json.Unmarshal(b, &batch[0]); err != nil {
			return err
		}
	}
	if len(batch) == 0 || slices.ContainsFunc(batch, func(e event) bool { return e.Version == "" }) {
		return errNotWrapped
	}
	for _, e := range batch {
		data := []byte(e.Data)
		var text string
		switch {
		case e.Base64 != nil:
			data = e.Base64
		case json.Unmarshal(data, &text) == nil:
			data = []byte(text)
		}
		f(data)
	}
	return nil
}
