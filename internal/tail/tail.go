package tail

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/config"
	"github.com/lag-monitor/lag-monitor/internal/heartbeat"
	"github.com/lag-monitor/lag-monitor/sinks"
)

// Options say how long and what. 0 stands for the value in the comment.
type Options struct {
	Count uint64        // end after this many heartbeats; 0: none ends it
	For   time.Duration // end after this time; 0: when ctx ends
	Since time.Duration // begin with what entered the queue that long ago, where the broker can tell; 0: with what comes now
	Other bool          // tell of ordinary messages, too: how many there were each second
	Start time.Duration // how long the sink may take to be ready; 0: 30 s
	// Logger gets what the sink logs; nil: nobody does.
	Logger *slog.Logger
}

// Seen is one heartbeat that came out, or something that looks like one.
type Seen struct {
	At   time.Time
	Kind sinks.Kind // Heartbeat, Foreign, Corrupt or Future
	// Of a corrupt token these are what it says of itself, as far as that can be read; Probe may be empty.
	Probe     string
	Instance  string // the name of the file's instance where it is that one, else its id in hex
	Epoch     uint64
	Lane      uint32
	Seq       uint64
	Sent, Due time.Time
	Latency   time.Duration // arrival − due, by the clocks of both hosts; by the broker's if Past and it tells
	Past      bool          // it was in the queue before we came
	Readable  bool          // the fields above hold
	Why       string        // it is corrupt
}

// Report is told what is seen, from one goroutine.
type Report interface {
	Begin(sink, kind string)
	Seen(Seen)
	// Other tells how many ordinary messages have passed since the last call, and in all.
	Other(at time.Time, more, total uint64)
	// Lost tells that so many were not shown, because they came faster than they could be written.
	Lost(n uint64)
}

var (
	// ErrNotTried marks an error after which nothing can be said of the queue.
	ErrNotTried = errors.New("the sink could not be read")
	// ErrTooFew ends a Run whose time was over before its count was full.
	ErrTooFew = errors.New("fewer heartbeats came out than were asked for")
)

const (
	startWithin = 30 * time.Second
	look        = 50 * time.Millisecond
	pending     = 1 << 16 // heartbeats that wait to be shown
)

// Run listens on the sink until ctx ends, the count is full or the time is over, and returns how many
// messages of each kind there were.
func Run(ctx context.Context, cfg *config.Config, name string, o Options, to Report) (counts map[string]uint64, err error) {
	s, err := cfg.Sinks[name].Beside()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotTried, err)
	}
	keys, err := cfg.Global.Keyring()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotTried, err)
	}
	sink, err := s.Config.Open()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotTried, err)
	}
	if o.Since > 0 {
		b, ok := sink.(sinks.LookBacker)
		if !ok {
			return nil, fmt.Errorf("%w: %s cannot look back", ErrNotTried, s.Kind)
		}
		b.LookBack(time.Now().Add(-o.Since))
	}
	log := o.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	r := &receiver{cfg: cfg, sink: name, news: make(chan struct{}, 1)}
	feed := sinks.NewFeed(r, keys)
	if len(s.Unwrap) > 0 {
		u, err := sinks.NewUnwrap(s.Unwrap...)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrNotTried, err)
		}
		feed.SetUnwrap(u)
	}
	listening, stop := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan struct{})
	go func() {
		defer close(done)
		sinks.Listen(listening, sink, feed, log.With("sink", name), rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())))
	}()
	defer func() { stop(); <-done }()

	began := time.Now()
	var over <-chan time.Time
	if o.For > 0 {
		t := time.NewTimer(o.For)
		defer t.Stop()
		over = t.C
	}
	tick := time.NewTicker(look)
	defer tick.Stop()
	v := &view{r: r, feed: feed, to: to, other: o.Other, count: o.Count}
	ready := false
	for {
		stats := feed.Stats()
		if stats.Ready && !ready {
			ready = true
			to.Begin(name, s.Kind)
		}
		if within := cmp.Or(o.Start, startWithin); !ready && time.Since(began) > within {
			return nil, fmt.Errorf("%w: not ready within %v: %s", ErrNotTried, within, reason(stats))
		}
		if v.show(false) {
			return kinds(feed), nil
		}
		select {
		case <-ctx.Done():
			if !ready {
				return nil, fmt.Errorf("%w: interrupted before it was ready: %s", ErrNotTried, reason(stats))
			}
			v.show(true)
			return kinds(feed), nil
		case <-over:
			if !ready {
				return nil, fmt.Errorf("%w: not ready within %v: %s", ErrNotTried, o.For, reason(stats))
			}
			if full := v.show(true); o.Count > 0 && !full {
				return kinds(feed), fmt.Errorf("%w: %d of %d within %v", ErrTooFew, v.shown, o.Count, o.For)
			}
			return kinds(feed), nil
		case <-r.news:
		case <-tick.C:
		}
	}
}

// view is what has been shown so far.
type view struct {
	r     *receiver
	feed  *sinks.Feed
	to    Report
	other bool
	count uint64 // 0: no end

	shown, others uint64
	told          time.Time // when others last were
}

// show reports what is new, and returns true when enough was shown.
func (v *view) show(end bool) (full bool) {
	seen, lost := v.r.take()
	for _, h := range seen {
		v.to.Seen(h)
		if v.shown++; v.shown == v.count {
			return true
		}
	}
	if lost > 0 {
		v.to.Lost(lost)
	}
	if n := v.feed.Stats().Messages[sinks.Other]; v.other && n > v.others && (end || time.Since(v.told) >= time.Second) {
		v.to.Other(time.Now(), n-v.others, n)
		v.others, v.told = n, time.Now()
	}
	return false
}

func reason(s sinks.Stats) string {
	if s.LastError != nil {
		return s.LastError.Error()
	}
	return "it has not begun to read"
}

func kinds(f *sinks.Feed) map[string]uint64 {
	counts := make(map[string]uint64)
	stats := f.Stats()
	for _, k := range sinks.AllKinds() {
		counts[k.String()] = stats.Messages[k]
	}
	return counts
}

// receiver takes what the feed finds. It is a sinks.Receiver and a sinks.CorruptReceiver.
type receiver struct {
	cfg  *config.Config
	sink string
	news chan struct{}

	mu   sync.Mutex
	seen []Seen
	lost uint64
}

func (r *receiver) take() (seen []Seen, lost uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	seen, lost = r.seen, r.lost
	r.seen, r.lost = nil, 0
	return seen, lost
}

func (r *receiver) put(s Seen) {
	r.mu.Lock()
	if len(r.seen) < pending {
		r.seen = append(r.seen, s)
	} else {
		r.lost++
	}
	r.mu.Unlock()
	select {
	case r.news <- struct{}{}:
	default:
	}
}

// Heartbeat implements sinks.Receiver.
func (r *receiver) Heartbeat(h *heartbeat.Heartbeat, a sinks.Arrival) sinks.Kind {
	s := r.describe(h, a)
	switch p := r.cfg.Probes[h.Probe]; {
	case h.Due().Sub(a.At) > r.cfg.Global.MaxSkew:
		s.Kind = sinks.Future
	case p != nil && slices.Contains(p.Sinks, r.sink):
		s.Kind = sinks.Heartbeat
	default:
		s.Kind = sinks.Foreign
	}
	r.put(s)
	return s.Kind
}

// Corrupt implements sinks.CorruptReceiver.
func (r *receiver) Corrupt(token []byte, err error, a sinks.Arrival) {
	s := Seen{At: a.At}
	var h heartbeat.Heartbeat
	if _, e := heartbeat.Peek(token, &h); e == nil {
		s = r.describe(&h, a)
	}
	s.Kind, s.Why = sinks.Corrupt, err.Error()
	r.put(s)
}

func (r *receiver) describe(h *heartbeat.Heartbeat, a sinks.Arrival) Seen {
	s := Seen{At: a.At, Probe: strings.Clone(h.Probe), Instance: Instance(h.Instance, r.cfg.Global.Instance), Epoch: h.Epoch, Lane: h.Lane, Seq: h.Seq,
		Sent: h.Sent, Due: h.Due(), Past: a.Past, Readable: true}
	at := a.At
	if a.Past && !a.Enqueued.IsZero() {
		at = a.Enqueued
	}
	s.Latency = at.Round(0).Sub(s.Due)
	return s
}

// Instance writes the id of an instance: by the name known, where it is that one's.
func Instance(id uint64, known string) string {
	for _, name := range []string{known, known + "/ping"} {
		if heartbeat.InstanceID(name) == id {
			return name
		}
	}
	return fmt.Sprintf("%016x", id)
}

// Ready, CaughtUp and Gap implement sinks.Receiver.
func (r *receiver) Ready(bool, time.Time) {}
func (r *receiver) CaughtUp(time.Time)    {}
func (r *receiver) Gap(time.Time, string) {}
