package journal

import "time"

// State is what the last process left.
type State struct {
	At     time.Time // wall clock of the last Write; zero when there was none
	Sinks  map[string]Sink
	Blocks []Block // in no order that means anything
	Pauses []Pause // the same
	// Lost says what could not be read, why, and under which name the file is kept; nil when all is well.
	// What the rest of the State holds is right even then, but may be incomplete or one Write older.
	Lost error

	names map[string]string // one copy of each
	open  []Heartbeat       // scratch
}

// Sink is what is kept for one sink.
type Sink struct {
	Name        string
	Fingerprint string            // whose change makes the position void; means nothing here
	Position    map[string]string // as the sink's driver gave it
	Stamps      []Stamp
	Streams     []Stream
}

// Stamp is the newest heartbeat received of a probe's lane.
type Stamp struct {
	Probe string
	Lane  uint32
	Due   int64 // ns since 1970
}

// Stream is an account that a listener keeps of another process' heartbeats.
type Stream struct {
	Probe           string
	Instance, Epoch uint64
	Expiry, Timeout time.Duration // what its heartbeats are held against
	Lanes           []StreamLane
}

// StreamLane is one lane of a Stream.
type StreamLane struct {
	Lane  uint32
	Next  uint64 // the sequence expected next
	Due   int64  // of Next-1, ns since 1970
	Every time.Duration
}

// Key names a Block: 64 sequences of one lane, at one sink.
type Key struct {
	Probe, Sink     string
	Instance, Epoch uint64
	Lane            uint32
	Block           uint64 // sequence / 64
}

// Block holds the heartbeats among 64 sequences that have no outcome yet.
type Block struct {
	Key
	Expiry, Timeout, TTL time.Duration
	Open                 []Heartbeat // in a Batch, a Block without any is deleted

	// Of one that was read the value is kept as it stands in the file, instead of Open: after an outage that is
	// a tenth of the memory, and each account takes its own in turn.
	value []byte
	n     int
}

// Len is how many heartbeats the block holds.
func (b *Block) Len() int { return max(b.n, len(b.Open)) }

// Heartbeats returns those of the block. buf is room that may be used.
func (b *Block) Heartbeats(buf []Heartbeat) []Heartbeat {
	if b.value == nil {
		return b.Open
	}
	var k Block
	// It was right when it was read.
	_ = k.decode(b.value, b.Block, buf)
	return k.Open
}

// Heartbeat is one that has no outcome yet.
type Heartbeat struct {
	Seq   uint64
	Due   int64 // ns since 1970
	Maybe bool  // whether the head accepted it is not known
	// Missed is set when it may have passed the sink unseen.
	Missed bool
	// Death is why it was found in a dead-letter queue, from 1 to 7; 0 when it was not.
	Death uint8
}

// Pause is a time in which a probe injects nothing.
type Pause struct {
	Probe        string
	Since, Until int64 // ns since 1970; in a Batch, a Pause whose Until is 0 is deleted
}
