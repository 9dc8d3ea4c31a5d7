package ledger

import "time"

// Instant is a point in time on the clock of the ledger's owner, in nanoseconds since an origin that
// the owner chose. In one process that clock is the monotonic one.
type Instant int64

// Add returns the instant d later.
func (t Instant) Add(d time.Duration) Instant { return t + Instant(d) }

// Sub returns the time from u to t.
func (t Instant) Sub(u Instant) time.Duration { return time.Duration(t - u) }

// DropReason is the label `reason` of lag_monitor_heartbeats_dropped_total.
type DropReason int

// The reasons of a drop.
const (
	DropTimeout      DropReason = iota // not there at its deadline, by a sink that was reading
	DropDeadLettered                   // the same, and found in a dead-letter queue before
	DropExpired                        // the same, because its time to live was over
	dropReasons
)

var dropNames = [dropReasons]string{"timeout", "dead_lettered", "expired"}

func (r DropReason) String() string { return dropNames[r] }

// DropReasons lists them, for metrics that exist at zero.
func DropReasons() []DropReason { return []DropReason{DropTimeout, DropDeadLettered, DropExpired} }

// Death is why a heartbeat was found in a dead-letter queue, by the broker's word.
type Death uint8

// The reasons of a death.
const (
	NotDead Death = iota // it was not found there
	DeadOther
	DeadRejected
	DeadExpired
	DeadMaxLen
	DeadDeliveryLimit
)

// reason is what a drop is put down to when the heartbeat was found dead before.
func (d Death) reason() DropReason {
	if d == DeadExpired {
		return DropExpired
	}
	return DropDeadLettered
}

// Doubt is why an outcome is indeterminate: the label `reason` of
// lag_monitor_heartbeats_indeterminate_total.
type Doubt int

// The reasons of doubt.
const (
	// DoubtSend: whether the head accepted the heartbeat is not known, and it did not arrive.
	DoubtSend Doubt = iota
	// DoubtBlind: the sink could not read over the deadline, and what it read later does not tell.
	DoubtBlind
	// DoubtGap: messages may have passed the sink unseen while the heartbeat was on its way.
	DoubtGap
	// DoubtResolution: it arrived after the deadline, but the sink looks into its queue too rarely to say
	// on which side of the deadline it entered.
	DoubtResolution
	// DoubtFuture: it came out, but by its own word it was due so far in the future that the word is not
	// believed.
	DoubtFuture
	// DoubtOverflow: more heartbeats were outstanding than a ledger keeps.
	DoubtOverflow
	doubts
)

var doubtNames = [doubts]string{"send_unknown", "sink_blind", "sink_gap", "resolution", "future", "overflow"}

func (d Doubt) String() string { return doubtNames[d] }

// Doubts lists them, for metrics that exist at zero.
func Doubts() []Doubt {
	return []Doubt{DoubtSend, DoubtBlind, DoubtGap, DoubtResolution, DoubtFuture, DoubtOverflow}
}

// Counts is the account of one probe at one sink. At any instant
//
//	Sent = OnTime + sum(Dropped) + sum(Indeterminate) + InFlight
//
// holds exactly. All but InFlight only ever grow.
type Counts struct {
	Sent          uint64 // accepted by the head, or not known to have been refused
	OnTime        uint64
	Dropped       [dropReasons]uint64
	Indeterminate [doubts]uint64
	InFlight      uint64

	Late         uint64 // arrived after all; each was counted as dropped or indeterminate before
	Duplicates   uint64 // the same heartbeat as another message
	Redeliveries uint64 // the same stored message again
	Reordered    uint64 // arrived after a younger one of its lane
	Unaccounted  uint64 // arrivals of heartbeats that were refused (in an account of our own), or too old to be known
	Negative     uint64 // arrived before they were due

	// Of those whose outcome is known, by Config.SLO: came out within it, or later or not at all. What nobody
	// can tell is in neither.
	WithinSLO, BeyondSLO uint64
}

// Drops is the sum over all reasons.
func (c *Counts) Drops() (n uint64) {
	for _, v := range c.Dropped {
		n += v
	}
	return n
}

// InDoubt is the sum over all reasons.
func (c *Counts) InDoubt() (n uint64) {
	for _, v := range c.Indeterminate {
		n += v
	}
	return n
}

// Plus returns the sum of two accounts.
func (c Counts) Plus(d Counts) Counts {
	c.Sent += d.Sent
	c.OnTime += d.OnTime
	for i := range c.Dropped {
		c.Dropped[i] += d.Dropped[i]
	}
	for i := range c.Indeterminate {
		c.Indeterminate[i] += d.Indeterminate[i]
	}
	c.InFlight += d.InFlight
	c.Late += d.Late
	c.Duplicates += d.Duplicates
	c.Redeliveries += d.Redeliveries
	c.Reordered += d.Reordered
	c.Unaccounted += d.Unaccounted
	c.Negative += d.Negative
	c.WithinSLO += d.WithinSLO
	c.BeyondSLO += d.BeyondSLO
	return c
}
