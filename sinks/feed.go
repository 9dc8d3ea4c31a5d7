package sinks

import (
	"errors"
	"hash/maphash"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/conn"
	"github.com/lag-monitor/lag-monitor/internal/heartbeat"
)

// Kind is what a message on the queue turned out to be: the label `kind` of
// lag_monitor_sink_messages_total.
type Kind int

// The kinds of messages.
const (
	Other     Kind = iota // ordinary traffic
	Heartbeat             // of a probe that expects it here
	Foreign               // a valid heartbeat of another probe or another instance
	Corrupt               // damaged, cut short or signed by no known key
	Future                // a heartbeat that claims to be due later than now
	kindCount
)

var kindNames = [kindCount]string{"other", "heartbeat", "foreign", "corrupt", "future"}

func (k Kind) String() string { return kindNames[k] }

// AllKinds lists the kinds, for metrics that exist at zero.
func AllKinds() []Kind { return []Kind{Other, Heartbeat, Foreign, Corrupt, Future} }

// Arrival is how a heartbeat arrived.
type Arrival struct {
	At       time.Time // when it was delivered to us, with the monotonic clock
	Enqueued time.Time // see Message
	ID       uint64    // see Message
	Past     bool      // see Message
	Dead     *Death    // see Message
	Retries  int       // see Message
	// Retired is nil for a heartbeat that the keys of now verify, and else the keyring before that does.
	// Only who sent it himself before the keys changed has a reason to believe it.
	Retired *heartbeat.Keyring
}

// Receiver is told what a Feed finds. Its methods are called from the goroutines of the sink's driver,
// possibly several at once, and must not block.
type Receiver interface {
	// Heartbeat takes a verified heartbeat and says what it was: Heartbeat, Foreign or Future. h and its
	// strings are only valid during the call.
	Heartbeat(h *heartbeat.Heartbeat, a Arrival) Kind
	// Ready tells that the sink listens (true) or has stopped (false).
	Ready(up bool, at time.Time)
	// CaughtUp tells that everything which entered the queue before t has been delivered.
	CaughtUp(t time.Time)
	// Gap tells that messages which entered the queue before t may have passed unseen.
	Gap(t time.Time, reason string)
}

// CorruptReceiver is a Receiver that wants to see what is counted as Corrupt, too.
type CorruptReceiver interface {
	// Corrupt takes a token that no key verifies, with the error of Decode. token is only valid during the
	// call.
	Corrupt(token []byte, err error, a Arrival)
}

// Feed is what a driver delivers to. All methods are safe for concurrent use.
type Feed struct {
	to   Receiver
	keys atomic.Pointer[keys]

	ready    atomic.Bool
	heard    atomic.Int64 // when the driver last proved to be alive, as time since start
	start    time.Time
	seed     maphash.Seed
	unwrap   *Unwrap // nil: messages are what they are
	caughtUp atomic.Pointer[time.Time]
	kinds    [kindCount]atomic.Uint64

	mu     sync.Mutex
	errs   map[conn.Class]uint64
	last   error
	lastAt time.Time

	onError atomic.Pointer[func(error)]
	scratch sync.Pool
}

// keys verify what comes in: now's, and those that were replaced while heartbeats were on their way.
type keys struct {
	now     *heartbeat.Keyring
	retired []*heartbeat.Keyring
}

// NewFeed returns a Feed that verifies with the keys and reports to the receiver.
func NewFeed(to Receiver, now *heartbeat.Keyring) *Feed {
	f := &Feed{to: to, errs: make(map[conn.Class]uint64), start: time.Now(), seed: maphash.MakeSeed()}
	f.SetKeys(now)
	f.scratch.New = func() any { return new(heartbeat.Heartbeat) }
	return f
}

// SetKeys replaces the keys, for a reload. A heartbeat that only one of the retired keyrings verifies is
// passed on with Arrival.Retired.
func (f *Feed) SetKeys(now *heartbeat.Keyring, retired ...*heartbeat.Keyring) {
	f.keys.Store(&keys{now, retired})
}

// Ready says that from now on every message is delivered: everything since the last position of this
// sink, or everything from now on (then call Gap first, unless this is the first Run).
func (f *Feed) Ready() {
	f.touch()
	if f.ready.CompareAndSwap(false, true) {
		f.to.Ready(true, time.Now())
	}
}

// notReady is the loop's word that Run has ended. It reports whether the sink had been ready.
func (f *Feed) notReady() bool {
	if !f.ready.CompareAndSwap(true, false) {
		return false
	}
	f.to.Ready(false, time.Now())
	return true
}

// touch notes that the driver is alive; silent tells for how long it has not been heard.
func (f *Feed) touch()                { f.heard.Store(int64(time.Since(f.start))) }
func (f *Feed) silent() time.Duration { return time.Since(f.start) - time.Duration(f.heard.Load()) }

// Gap says that messages which entered the queue before now may have passed unseen, so that nobody is
// accused of their loss: a transport that keeps nothing was disconnected, a stream was trimmed or
// re-created. The reason is a short constant such as "disconnected" or "trimmed".
func (f *Feed) Gap(reason string) { f.to.Gap(time.Now(), reason) }

// CaughtUp says that everything which entered the queue before t has been delivered. t is a reading of
// this host's clock taken before the request whose answer proved it. It never goes back; a driver
// calls it at least once a second while it is connected and caught up, also when nothing arrives: the
// loop takes a long silence for a stall and reconnects.
func (f *Feed) CaughtUp(t time.Time) {
	f.touch()
	for {
		old := f.caughtUp.Load()
		if old != nil && !t.After(*old) {
			return
		}
		if f.caughtUp.CompareAndSwap(old, &t) {
			f.to.CaughtUp(t)
			return
		}
	}
}

// SetUnwrap makes the feed look for heartbeats inside envelopes. It is called before the first Run.
func (f *Feed) SetUnwrap(u *Unwrap) { f.unwrap = u }

// Wrapped reports whether heartbeats may be inside envelopes. mayHold is what a driver asks that looks for
// them itself before it delivers a message: false is certain.
func (f *Feed) Wrapped() bool         { return f.unwrap != nil }
func (f *Feed) mayHold(b []byte) bool { return f.unwrap != nil || heartbeat.Contains(b) }

// contents calls look with what is in a message, or with the message.
func (f *Feed) contents(b []byte, look func([]byte)) {
	if f.unwrap == nil {
		look(b)
		return
	}
	f.unwrap.Each(b, look)
}

// Deliver looks for heartbeats in a message, verifies them and passes them on. It reports whether the
// message held one of ours, and counts the message as other when it held none at all. A token that
// stands in a message several times, say in a header and in the body, counts once.
func (f *Feed) Deliver(m Message) (ours bool) {
	now := time.Now()
	f.heard.Store(int64(now.Sub(f.start)))
	l := lookout{f: f, a: Arrival{At: now, Enqueued: m.Enqueued, ID: m.ID, Past: m.Past, Dead: m.Dead, Retries: m.Retries}}
	l.look(m.Header)
	if f.unwrap == nil {
		l.look(m.Body)
	} else {
		inside := l // escapes, which an ordinary message must not pay for
		f.unwrap.Each(m.Body, inside.look)
		l = inside
	}
	if l.found == 0 {
		f.kinds[Other].Add(1)
	}
	return l.ours
}

// lookout looks through the parts of one message.
type lookout struct {
	f     *Feed
	a     Arrival
	seen  [4]uint64 // hashes of the last tokens: what they were in may be gone
	found int
	ours  bool
}

func (l *lookout) look(part []byte) {
	for {
		_, token, rest, ok := heartbeat.Next(part)
		if !ok {
			return
		}
		part = rest
		sum := maphash.Bytes(l.f.seed, token)
		if slices.Contains(l.seen[:min(l.found, len(l.seen))], sum) {
			continue
		}
		l.seen[l.found%len(l.seen)] = sum
		l.found++
		if l.f.deliver(token, l.a) == Heartbeat {
			l.ours = true
		}
	}
}

func (f *Feed) deliver(token []byte, a Arrival) Kind {
	h := f.scratch.Get().(*heartbeat.Heartbeat)
	defer f.scratch.Put(h)
	kind := Corrupt
	k := f.keys.Load()
	err := k.now.Decode(token, h)
	if errors.Is(err, heartbeat.ErrForged) {
		for _, old := range k.retired {
			if err = old.Decode(token, h); err == nil {
				a.Retired = old
				break
			}
		}
	}
	if err == nil {
		kind = f.to.Heartbeat(h, a)
	} else if to, ok := f.to.(CorruptReceiver); ok {
		to.Corrupt(token, err, a)
	}
	f.kinds[kind].Add(1)
	return kind
}

// Skip counts n messages that the driver has looked through itself and that hold no heartbeat.
func (f *Feed) Skip(n int) {
	f.touch()
	f.kinds[Other].Add(uint64(n))
}

// Error reports an error that did not end Run: it is counted by its class, logged once and shown.
func (f *Feed) Error(err error) {
	f.count(err)
	if hook := f.onError.Load(); hook != nil {
		(*hook)(err)
	}
}

func (f *Feed) setErrorHook(hook func(error)) { f.onError.Store(&hook) }

func (f *Feed) count(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.errs[conn.ClassOf(err)]++
	f.last, f.lastAt = err, time.Now()
}

// Stats is what a Feed has counted.
type Stats struct {
	Ready       bool
	CaughtUp    time.Time // zero before the first
	Messages    [kindCount]uint64
	Errors      map[conn.Class]uint64
	LastError   error // nil when there was none
	LastErrorAt time.Time
}

// Stats returns the counts so far.
func (f *Feed) Stats() Stats {
	s := Stats{Ready: f.ready.Load(), Errors: make(map[conn.Class]uint64, len(conn.Classes()))}
	if t := f.caughtUp.Load(); t != nil {
		s.CaughtUp = *t
	}
	for k := range f.kinds {
		s.Messages[k] = f.kinds[k].Load()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range conn.Classes() {
		s.Errors[c] = f.errs[c]
	}
	s.LastError, s.LastErrorAt = f.last, f.lastAt
	return s
}
