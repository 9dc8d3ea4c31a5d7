package heartbeat

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"hash"
	"hash/crc32"
	"math"
	"slices"
	"sync"
	"time"
)

// encoding is base64url without padding; strict, so that a token has one spelling only.
var encoding = base64.RawURLEncoding.Strict()

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

const (
	flagSigned = 1 << 0

	crcLen = 4
	macLen = 16
)

// Errors of Decode.
var (
	// ErrCorrupt: the token is cut short, mangled, or its checksum is wrong.
	ErrCorrupt = errors.New("heartbeat token is corrupt")
	// ErrForged: the token is signed by none of our keys, or not signed although keys are configured.
	ErrForged = errors.New("heartbeat token is not signed by a known key")
)

// Keyring encodes and verifies tokens. Without keys the check code is a CRC-32C, which finds damage;
// with keys it is an HMAC-SHA-256 cut to 16 bytes, which also stops forgery: the first key signs, all
// verify. A Keyring is safe for concurrent use; nil is a Keyring without keys.
type Keyring struct {
	signers []sync.Pool // of *signer, one pool per key
	digests [][sha256.Size]byte
}

// signer is what it takes to sign with one key. The sum lives in it, because what is handed to a
// hash.Hash would otherwise be allocated each time.
type signer struct {
	mac hash.Hash
	sum [sha256.Size]byte
}

// rooms holds the memory that Decode works in, for the same reason.
var rooms = sync.Pool{New: func() any { return new([maxBinary]byte) }}

// NewKeyring returns a Keyring over the keys, the signing one first.
func NewKeyring(keys ...[]byte) *Keyring {
	k := &Keyring{signers: make([]sync.Pool, len(keys))}
	for i, key := range keys {
		key = bytes.Clone(key)
		k.digests = append(k.digests, sha256.Sum256(key))
		k.signers[i].New = func() any { return &signer{mac: hmac.New(sha256.New, key)} }
	}
	return k
}

// Signed reports whether the keyring has keys.
func (k *Keyring) Signed() bool { return k != nil && len(k.signers) > 0 }

// Equal reports whether both keyrings have the same keys in the same order.
func (k *Keyring) Equal(o *Keyring) bool { return slices.Equal(k.sums(), o.sums()) }

// Accepts reports whether k verifies the tokens that o makes.
func (k *Keyring) Accepts(o *Keyring) bool {
	if !o.Signed() {
		return !k.Signed()
	}
	return slices.Contains(k.sums(), o.digests[0])
}

func (k *Keyring) sums() [][sha256.Size]byte {
	if k == nil {
		return nil
	}
	return k.digests
}

// Append appends the token of h to dst. The probe's name must be valid, Sent between the years 1678
// and 2262, and each duration between 0 and a century; durations are cut to the microsecond. Decode
// refuses the token of anything else. It allocates only to make dst larger.
func (k *Keyring) Append(dst []byte, h *Heartbeat) []byte {
	start := len(dst)
	dst = append(dst, Magic...)
	dst = append(dst, h.Probe...)
	dst = append(dst, '.')

	var room [maxBinary]byte
	b := append(room[:0], 0, 0)
	b = binary.BigEndian.AppendUint64(b, h.Instance)
	b = binary.BigEndian.AppendUint64(b, h.Epoch)
	b = binary.AppendUvarint(b, uint64(h.Lane))
	b = binary.AppendUvarint(b, uint64(h.Lanes))
	b = binary.AppendUvarint(b, h.Seq)
	b = binary.BigEndian.AppendUint64(b, uint64(h.Sent.UnixNano()))
	for _, d := range [...]time.Duration{h.Expiry, h.Interval, h.Timeout} {
		b = binary.AppendUvarint(b, uint64(d/time.Microsecond))
	}
	b = binary.BigEndian.AppendUint64(b, h.Accepted)
	// The check code is taken over what stands in dst, where the encoded form then overwrites it: room
	// itself would be allocated if it were handed on.
	end := len(dst)
	if k.Signed() {
		b[0] = flagSigned
		b[1] = byte(len(b) + macLen)
		dst = append(dst, b...)
		b = k.sum(0, b, dst[start:end], dst[end:])
	} else {
		b[1] = byte(len(b) + crcLen)
		dst = append(dst, b...)
		b = binary.BigEndian.AppendUint32(b, checksum(dst[start:end], dst[end:]))
	}
	return encoding.AppendEncode(dst[:end], b)
}

// checksum covers the readable prefix too, so that a heartbeat cannot be moved to another probe.
func checksum(prefix, body []byte) uint32 {
	return crc32.Update(crc32.Checksum(prefix, castagnoli), castagnoli, body)
}

// sum appends the shortened HMAC of prefix and body by key i to dst.
func (k *Keyring) sum(i int, dst, prefix, body []byte) []byte {
	s := k.signers[i].Get().(*signer)
	s.mac.Reset()
	s.mac.Write(prefix)
	s.mac.Write(body)
	dst = append(dst, s.mac.Sum(s.sum[:0])[:macLen]...)
	k.signers[i].Put(s)
	return dst
}

// Decode verifies a token as Next returns it and fills h. It accepts just the tokens that Append makes:
// one heartbeat has one spelling for each key. It returns ErrCorrupt or ErrForged, and then leaves h in
// an undefined state. It allocates only when h.Probe has to change.
func (k *Keyring) Decode(token []byte, h *Heartbeat) error {
	room := rooms.Get().(*[maxBinary]byte)
	defer rooms.Put(room)
	t, ok := split(token, room)
	if !ok {
		return ErrCorrupt
	}
	switch {
	case t.signed:
		if !k.verify(t.prefix, t.body, t.code) {
			return ErrForged
		}
	case checksum(t.prefix, t.body) != binary.BigEndian.Uint32(t.code):
		return ErrCorrupt
	case k.Signed():
		return ErrForged
	}
	return t.fields(h)
}

// Peek fills h with what a token says without a look at its check code: for a person who wants to know what
// it is, not for anything that acts on it. signed tells which kind of check code it has. It returns
// ErrCorrupt where the token cannot be read at all.
func Peek(token []byte, h *Heartbeat) (signed bool, err error) {
	var room [maxBinary]byte
	t, ok := split(token, &room)
	if !ok {
		return false, ErrCorrupt
	}
	return t.signed, t.fields(h)
}

// parts are slices of a token and of its decoded binary part.
type parts struct {
	name, prefix []byte // the prefix is all that stands before the binary part
	body, code   []byte // the code is a checksum, or a MAC where signed
	signed       bool
}

// split takes a token apart and decodes its binary part into room.
func split(token []byte, room *[maxBinary]byte) (t parts, ok bool) {
	if len(token) < len(Magic) || len(token) > MaxToken || string(token[:len(Magic)]) != Magic {
		return t, false
	}
	i := len(Magic)
	for i < len(token) && nameByte(token[i]) {
		i++
	}
	t.name = token[len(Magic):i]
	if len(t.name) == 0 || len(t.name) > MaxProbeName || i == len(token) || token[i] != '.' {
		return t, false
	}
	t.prefix = token[:i+1]
	if encoding.DecodedLen(len(token)-i-1) > len(room) {
		return t, false
	}
	n, err := encoding.Decode(room[:], token[i+1:])
	// The decoder skips line ends, a token has none: hence the look at the length.
	if err != nil || n < 2 || int(room[1]) != n || encoding.EncodedLen(n) != len(token)-i-1 {
		return t, false
	}
	code := crcLen
	switch {
	case room[0] == flagSigned && n > macLen:
		t.signed, code = true, macLen
	case room[0] != 0 || n <= crcLen:
		return t, false
	}
	t.body, t.code = room[:n-code], room[n-code:n]
	return t, true
}

// fields reads the body into h. It allocates only when h.Probe has to change.
func (t *parts) fields(h *Heartbeat) error {
	if len(t.body) < 2 {
		return ErrCorrupt
	}
	r := reader{b: t.body[2:]}
	h.Instance = r.fixed()
	h.Epoch = r.fixed()
	lane, lanes := r.varint(), r.varint()
	h.Seq = r.varint()
	h.Sent = time.Unix(0, int64(r.fixed()))
	h.Expiry, h.Interval, h.Timeout = r.duration(), r.duration(), r.duration()
	h.Accepted = r.fixed()
	if r.bad || len(r.b) != 0 || lane > math.MaxUint32 || lanes > math.MaxUint32 {
		return ErrCorrupt
	}
	h.Lane, h.Lanes = uint32(lane), uint32(lanes)
	if h.Probe != string(t.name) {
		h.Probe = string(t.name)
	}
	return nil
}

func (k *Keyring) verify(prefix, body, mac []byte) bool {
	if k == nil {
		return false
	}
	var room [macLen]byte
	for i := range k.signers {
		if hmac.Equal(k.sum(i, room[:0], prefix, body), mac) {
			return true
		}
	}
	return false
}

// reader takes fields off the front of b and remembers whether one was missing.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) fixed() uint64 {
	if len(r.b) < 8 {
		r.bad = true
		return 0
	}
	v := binary.BigEndian.Uint64(r.b)
	r.b = r.b[8:]
	return v
}

// varint reads a varint in its shortest form.
func (r *reader) varint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 || n > 1 && r.b[n-1] == 0 {
		r.bad = true
		return 0
	}
	r.b = r.b[n:]
	return v
}

// duration reads microseconds. Longer than a century is damage that the check code did not see.
func (r *reader) duration() time.Duration {
	const century = 100 * 365 * 24 * time.Hour
	v := r.varint()
	if v > uint64(century/time.Microsecond) {
		r.bad = true
		return 0
	}
	return time.Duration(v) * time.Microsecond
}
