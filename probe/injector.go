package probe

import (
	"context"
	"errors"
	"time"
)

// Header is the name of the header that carries the token where a transport has headers.
const Header = "lag-monitor-heartbeat"

// TraceHeader carries the W3C trace context of the heartbeat.
const TraceHeader = "traceparent"

// Message is one heartbeat on its way to the head. Its exported fields are what a template sees. A
// driver reads it during Inject and keeps no part of it.
type Message struct {
	Probe  string
	Token  string // the heartbeat itself, ASCII, safe in JSON, CSV, URLs and headers
	Seq    uint64
	Lane   uint32
	Sent   time.Time
	Due    time.Time // Sent + Expiry
	Expiry time.Duration
	TTL    time.Duration // how long a broker may keep it undelivered; a driver sets it where the broker can

	TraceParent string // W3C traceparent
}

// Injector puts heartbeats into the head of one pipeline. The loop calls it from several goroutines
// at once; Close is called once, after the last Inject returned. A panic in a method is contained: the
// outcome of an injection is unknown then. A panic on a goroutine that the driver has started cannot be
// contained by anybody else and ends the process: such a goroutine defers conn.Contain.
type Injector interface {
	// Inject returns nil when the head has accepted the message, in the strongest sense that the
	// transport offers (a confirmed publish, all in-sync replicas, an accepted status). Otherwise the
	// error says whether the message is certainly not in the pipeline (see Refused) or whether that is
	// not known. Inject tries once, does not log, and returns soon after ctx ends: a message that may
	// have left by then is unknown.
	Inject(ctx context.Context, m *Message) error
	Close() error
}

// BatchInjector is implemented by a transport that sends the heartbeats of many lanes in one request.
type BatchInjector interface {
	Injector
	// InjectBatch sends all of ms, at most one per lane, and puts into errs, which is as long as ms,
	// what Inject would have returned for each.
	InjectBatch(ctx context.Context, ms []*Message, errs []error)
}

// Laner is implemented by a transport that can address the ordering domains of its head: the
// partitions of a topic, the shards of a stream. The loop asks at start and every half minute, and
// then sends one heartbeat to each lane at every tick. Without Laner there is one lane, 0.
type Laner interface {
	// Lanes returns the current lanes in ascending order, at least one.
	Lanes(ctx context.Context) ([]uint32, error)
}

// Expirer is implemented by a transport whose broker can discard an undelivered message after the
// Message's TTL.
type Expirer interface {
	// Expires reports whether it does so here. A heartbeat that nobody read in that time is not a loss.
	Expires() bool
}

// Checker is implemented by ends that can tell whether they would work without sending or receiving
// anything: reach the broker, authenticate, see that the topic or stream exists.
type Checker interface {
	Check(ctx context.Context) error
}

type refused struct{ error }

func (r *refused) Unwrap() error { return r.error }

// Refused marks an error after which the message is certainly not in the pipeline: the connection
// could not be made, the head answered no. It returns nil for nil.
func Refused(err error) error {
	if err == nil {
		return nil
	}
	return &refused{err}
}

// IsRefused reports whether err, or what it wraps, was marked by Refused. Any other error of Inject
// leaves the outcome unknown.
func IsRefused(err error) bool {
	var r *refused
	return errors.As(err, &r)
}
