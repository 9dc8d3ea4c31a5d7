package monitor

import (
	"slices"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/heartbeat"
	"github.com/lag-monitor/lag-monitor/internal/ledger"
)

const (
	// keptBeats is how many heartbeats of a probe are kept to be shown, of all lanes together.
	keptBeats = 120
	// keptErrors is how many different errors of them are kept, and maxError how long each is at most.
	keptErrors = 8
	maxError   = 500
)

// result is what the head said of a heartbeat: the low bits of beats.result.
type result uint8

const (
	resultNone result = iota // nobody knows: another process has sent it
	resultPending
	resultSuccess
	resultFailure
	resultUnknown
	resultSkipped
	resultBits = 4 // above them stands the number of the error, from 1; 0: none
)

// said are the words for them.
var said = [...]string{"", "pending", "success", "failure", "unknown", "skipped"}

// beats are the last heartbeats of a probe. What became of each is in the accounts. It is guarded by the
// probe's lock. Ten thousand probes have one, so that it has no pointer per heartbeat and nine bytes for each.
type beats struct {
	n      uint64             // how many there were so far; number i stands at i modulo keptBeats
	last   ledger.Instant     // when the youngest was sent
	kept   *keptOf            // nil before the first
	lanes  *[keptBeats]uint32 // nil while all are 0
	from   *[keptBeats]source // nil where the probe itself sends
	errors []string
}

type keptOf struct {
	sent   [keptBeats]uint32 // in milliseconds: the low half, since two neighbours are never 24 days apart
	seq    [keptBeats]uint32 // the low half
	result [keptBeats]uint8
}

// first is the number of the oldest that is kept.
func (b *beats) first() uint64 { return b.n - min(b.n, keptBeats) }

func (b *beats) lane(i uint64) uint32 {
	if b.lanes == nil {
		return 0
	}
	return b.lanes[i%keptBeats]
}

func millis(t ledger.Instant) uint32 { return uint32(int64(t) / int64(time.Millisecond)) }

// sent returns when each of the kept heartbeats was sent, the oldest first, to the millisecond.
func (b *beats) sent() []ledger.Instant {
	times := make([]ledger.Instant, b.n-b.first())
	t := b.last
	for k := len(times) - 1; k >= 0; k-- {
		times[k] = t
		if i := b.first() + uint64(k); k > 0 {
			step := int32(b.kept.sent[i%keptBeats] - b.kept.sent[(i-1)%keptBeats])
			t = t.Add(-time.Duration(step) * time.Millisecond)
		}
	}
	return times
}

// add appends a heartbeat and returns its number.
func (b *beats) add(lane uint32, seq uint64, sent ledger.Instant, r result) uint64 {
	if b.kept == nil {
		b.kept = new(keptOf)
	}
	if lane != 0 && b.lanes == nil {
		b.lanes = new([keptBeats]uint32)
	}
	at := b.n % keptBeats
	b.kept.sent[at], b.kept.seq[at], b.kept.result[at] = millis(sent), uint32(seq), uint8(r)
	b.last = sent
	if b.lanes != nil {
		b.lanes[at] = lane
	}
	b.n++
	return b.n - 1
}

// set notes what the head said of number i.
func (b *beats) set(i uint64, r result) {
	if i >= b.first() && i < b.n {
		b.kept.result[i%keptBeats] = uint8(r)
	}
}

// fail adds the error to what the head said of number i.
func (b *beats) fail(i uint64, err error) {
	if i >= b.first() && i < b.n {
		b.kept.result[i%keptBeats] |= b.error(err.Error()) << resultBits
	}
}

// of returns what the head said of number i, and the error.
func (b *beats) of(i uint64) (result, string) {
	v := b.kept.result[i%keptBeats]
	if k := v >> resultBits; k > 0 {
		return result(v & (1<<resultBits - 1)), b.errors[k-1]
	}
	return result(v), ""
}

// error returns the number of an error, from 1. The oldest makes room for a new one.
func (b *beats) error(text string) uint8 {
	if len(text) > maxError {
		text = text[:maxError] + "…"
	}
	if i := slices.Index(b.errors, text); i >= 0 {
		return uint8(i + 1)
	}
	if len(b.errors) < keptErrors {
		b.errors = append(b.errors, text)
		return uint8(len(b.errors))
	}
	// The one that the youngest heartbeats do not have is the least missed.
	var used [keptErrors + 1]uint64
	for i := b.first(); i < b.n; i++ {
		used[b.kept.result[i%keptBeats]>>resultBits] = i + 1
	}
	oldest := 1
	for k := 2; k <= keptErrors; k++ {
		if used[k] < used[oldest] {
			oldest = k
		}
	}
	for i := b.first(); i < b.n; i++ {
		if r := &b.kept.result[i%keptBeats]; int(*r>>resultBits) == oldest {
			*r &= 1<<resultBits - 1
		}
	}
	b.errors[oldest-1] = text
	return uint8(oldest)
}

// heard notes a heartbeat that another process has sent, and those that it says it sent since the last one
// that was heard. One heartbeat comes out at several sinks.
func (b *beats) heard(h *heartbeat.Heartbeat, now ledger.Instant, age time.Duration) {
	if b.from == nil {
		b.from = new([keptBeats]source)
	}
	from := source{h.Instance, h.Epoch}
	missing := uint64(0)
	for i := b.n; i > b.first(); i-- {
		if at := (i - 1) % keptBeats; b.from[at] == from && b.lane(i-1) == h.Lane {
			if missing = uint64(uint32(h.Seq) - b.kept.seq[at]); missing == 0 || missing > 1<<31 {
				return // known, or older than one that is
			}
			missing--
			break
		}
	}
	sent := now.Add(-age - h.Expiry)
	for back := min(missing, keptBeats); ; back-- {
		i := b.add(h.Lane, h.Seq-back, sent.Add(-h.Interval*time.Duration(back)), resultNone)
		b.from[i%keptBeats] = from
		if back == 0 {
			return
		}
	}
}
