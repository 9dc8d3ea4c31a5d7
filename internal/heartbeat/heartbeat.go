package heartbeat

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"time"
)

// Magic is how every token of this version begins. The first byte is rare in JSON, CSV, text and
// compressed data, which makes the search for it cheap.
const Magic = "~lagmon1."

var magic = []byte(Magic)

// MaxProbeName is the longest name of a probe, in bytes.
const MaxProbeName = 64

// MaxToken is the longest token that this version can produce, in bytes.
const MaxToken = len(Magic) + MaxProbeName + 1 + (maxBinary*4+2)/3

// maxBinary is the longest binary part: header 2, instance 8, epoch 8, lane 5, lanes 5, sequence 10,
// sent 8, three durations of at most 8 (a century is 52 bits of microseconds), accepted 8, check code 16.
const maxBinary = 2 + 8 + 8 + 5 + 5 + 10 + 8 + 3*8 + 8 + 16

// Heartbeat is everything that a token says of itself. Instance, Epoch, Probe, Lane and Seq together
// are unique.
type Heartbeat struct {
	Probe    string
	Instance uint64 // InstanceID of the process that sent it
	Epoch    uint64 // random for each run of that process
	Lane     uint32 // ordering domain inside the probe
	Lanes    uint32 // how many lanes the probe was sending to
	Seq      uint64 // counts the ticks of this lane from 1, whether or not they could be sent
	Sent     time.Time
	Expiry   time.Duration // Due = Sent + Expiry
	Interval time.Duration
	Timeout  time.Duration // Deadline = Due + Timeout
	// Accepted says which of the 64 sequences before this one the head has accepted: bit i stands for
	// Seq-1-i. It is 0 for a tick that was skipped or refused, and also where the outcome of the send is
	// not known. A listener that misses a sequence whose bit is 0 has no loss to report.
	Accepted uint64
}

// Due is when the pipeline is asked to put the heartbeat out.
func (h *Heartbeat) Due() time.Time { return h.Sent.Add(h.Expiry) }

// Deadline is the last moment at which the heartbeat is on time.
func (h *Heartbeat) Deadline() time.Time { return h.Sent.Add(h.Expiry + h.Timeout) }

// Trace is the trace of one heartbeat in the sense of the W3C: the id of the trace, and those of the two
// spans that others refer to.
type Trace struct {
	ID        [16]byte
	Root      [8]byte // the span of the whole heartbeat
	Injection [8]byte // the span of its injection: the parent of what the pipeline's own services record
}

// Trace returns the trace of the heartbeat. Its ids are made of what makes the heartbeat unique, so that
// every listener derives the same ones.
func (h *Heartbeat) Trace() Trace {
	var room [28 + MaxProbeName]byte
	b := room[:28]
	binary.BigEndian.PutUint64(b[0:], h.Instance)
	binary.BigEndian.PutUint64(b[8:], h.Epoch)
	binary.BigEndian.PutUint32(b[16:], h.Lane)
	binary.BigEndian.PutUint64(b[20:], h.Seq)
	sum := sha256.Sum256(append(b, h.Probe...))
	return Trace{ID: [16]byte(sum[:16]), Injection: [8]byte(sum[16:24]), Root: [8]byte(sum[24:])}
}

// Parent is the header traceparent of the W3C: what comes of the heartbeat hangs below its injection.
// sampled asks whoever gets it to record that.
func (t *Trace) Parent(sampled bool) string {
	out := make([]byte, 0, 55)
	out = append(out, "00-"...)
	out = hex.AppendEncode(out, t.ID[:])
	out = append(out, '-')
	out = hex.AppendEncode(out, t.Injection[:])
	if sampled {
		return string(append(out, "-01"...))
	}
	return string(append(out, "-00"...))
}

// ValidName reports whether s is the name of a probe: 1 to 64 of A-Z a-z 0-9 _ -.
func ValidName(s string) bool {
	if len(s) == 0 || len(s) > MaxProbeName {
		return false
	}
	for i := range len(s) {
		if !nameByte(s[i]) {
			return false
		}
	}
	return true
}

func nameByte(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_' || c == '-'
}

// InstanceID folds the name of an instance into the eight bytes that a token carries.
func InstanceID(name string) uint64 {
	sum := sha256.Sum256([]byte(name))
	return binary.BigEndian.Uint64(sum[:])
}

// NewEpoch draws the random id of one process run.
func NewEpoch() uint64 {
	var b [8]byte
	rand.Read(b[:]) // never fails: crypto/rand ends the process instead
	return binary.BigEndian.Uint64(b[:])
}

// Contains reports whether b may hold a token: the cheap test for a listener that looks through
// ordinary traffic.
func Contains(b []byte) bool { return bytes.Contains(b, magic) }

// Next finds the first token in b, whatever is around it. It returns the token, the probe's name
// inside it, and what follows; all are slices of b. ok is false when there is no further magic. A
// token that is cut short or mangled is returned too, as far as it goes: Decode tells.
func Next(b []byte) (probe, token, rest []byte, ok bool) {
	start := bytes.Index(b, magic)
	if start < 0 {
		return nil, nil, nil, false
	}
	i := start + len(Magic)
	nameAt := i
	for i < len(b) && i-nameAt < MaxProbeName && nameByte(b[i]) {
		i++
	}
	probe = b[nameAt:i]
	end := i
	if i < len(b) && b[i] == '.' {
		i++
		end = i
		// The binary part says in its second byte how long it is, so that letters which happen to
		// follow the token are not taken for a part of it. A token that is cut short ends where its
		// alphabet does, so that it swallows nothing of the one behind it.
		var head [3]byte
		if len(b)-i >= 4 {
			if _, err := encoding.Decode(head[:], b[i:i+4]); err == nil {
				last := min(len(b), i+encoding.EncodedLen(int(head[1])))
				for end < last && nameByte(b[end]) {
					end++
				}
			}
		}
	}
	return probe, b[start:end], b[end:], true
}
