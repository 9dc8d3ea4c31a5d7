package ping

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/config"
	"github.com/lag-monitor/lag-monitor/internal/ledger"
	"github.com/lag-monitor/lag-monitor/internal/monitor"
)

// Options say how long, how often and how patiently. 0 stands for what the probe's definition says, or for
// the value in the comment.
type Options struct {
	Count    uint64        // ticks with an injection; 0: until ctx ends
	Interval time.Duration // between two ticks
	Timeout  time.Duration // how long after its due time a heartbeat is on time
	Start    time.Duration // how long the sinks and the head may take to be ready; 0: 30 s
	Logger   *slog.Logger  // what the monitor logs; nil: nothing
}

// Outcome is what has become of a heartbeat at a sink.
type Outcome string

// The outcomes. InFlight is told only of what was open at the end.
const (
	OnTime        Outcome = "on_time"
	Late          Outcome = "late"
	Dropped       Outcome = "dropped"
	Indeterminate Outcome = "indeterminate"
	InFlight      Outcome = "in_flight"
)

// AtSink is the outcome of one heartbeat at one sink.
type AtSink struct {
	Sink    string
	Outcome Outcome
	Arrived bool          // it came out, so that it has a latency
	Latency time.Duration // arrival − due
}

// Beat is one heartbeat, told when its outcome is known at every sink.
type Beat struct {
	Probe     string
	Lane      uint32
	Seq       uint64
	Sent, Due time.Time
	Took      time.Duration // how long the head took to answer
	Result    ledger.Result
	Err       error    // what the head said, unless it has accepted the heartbeat
	Sinks     []AtSink // in the order of the probe's definition; empty when it was refused
}

// Extra is an arrival after the heartbeat's outcome was known: late after all, or once more.
type Extra struct {
	Probe, Sink string
	Lane        uint32
	Seq         uint64
	At          time.Time
	Kind        string // "late", "duplicate", "redelivery" or "unaccounted"
	Latency     time.Duration
}

// Plan is what is about to be done.
type Plan struct {
	Probe, Head       string // the probe's name and the kind of its head
	Sinks             []string
	Kinds, Roles      map[string]string // of the sinks
	Interval, Timeout time.Duration
	Expiry            time.Duration
}

// Report is told what happens, from one goroutine: Begin once, then Beats and Extras.
type Report interface {
	Begin(Plan)
	Beat(Beat)
	Extra(Extra)
}

// ErrNotTried marks an error after which nothing can be said of the pipeline.
var ErrNotTried = errors.New("the probe could not be tried")

const (
	startWithin = 30 * time.Second
	look        = 50 * time.Millisecond
	// proof is how long after a deadline a sink that reads may take to prove that it has read everything.
	proof = 5 * time.Second
	// suffix makes the name that heartbeats carry: no probe of a daemon answers to it.
	suffix = "-ping"
)

// Run runs the probe until Count ticks have come to their end or ctx ends, and returns the account. Before
// the first heartbeat every sink reads its queue. An error wraps ErrNotTried.
func Run(ctx context.Context, cfg *config.Config, name string, o Options, to Report) (*Summary, error) {
	only, p, err := alone(cfg, name, o)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotTried, err)
	}
	r := &run{probe: p, to: to, beats: make(map[key]*beat), latencies: make(map[string][]time.Duration), news: make(chan struct{}, 1)}
	r.m = monitor.New(monitor.Options{Logger: o.Logger, Observer: r, Ticks: o.Count})
	// The sinks first, without the probe: a heartbeat that is sent before all of them read would be in doubt.
	sinksOnly := *only
	sinksOnly.Probes = nil
	if err := r.m.Apply(&sinksOnly); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotTried, err)
	}
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = r.m.Run(running) // nil, since nothing but stop ends it
	}()
	defer func() {
		stop()
		<-ended
	}()

	start := cmp.Or(o.Start, startWithin)
	if err := r.ready(ctx, start); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotTried, err)
	}
	r.sinks = only.Sinks
	plan := Plan{Probe: p.Name, Head: p.InjectKind, Sinks: p.Sinks, Kinds: map[string]string{}, Roles: map[string]string{}, Interval: p.Interval, Timeout: p.Timeout, Expiry: p.Expiry}
	for n, s := range only.Sinks {
		plan.Kinds[n], plan.Roles[n] = s.Kind, s.Role
	}
	to.Begin(plan)
	r.began = time.Now()
	if err := r.m.Apply(only); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotTried, err)
	}
	if err := r.follow(ctx, o.Count, start); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotTried, err)
	}
	return r.summary(ctx.Err() != nil), nil
}

// alone returns a configuration with the probe and its sinks and nothing else, of which no other monitor
// takes notice.
func alone(cfg *config.Config, name string, o Options) (*config.Config, *config.Probe, error) {
	p := *cfg.Probes[name]
	if p.Inject == nil {
		return nil, nil, fmt.Errorf("probe %s only listens: it has nothing to send", name)
	}
	p.Alias = p.Name[:min(len(p.Name), 64-len(suffix))] + suffix
	p.Interval = cmp.Or(o.Interval, p.Interval)
	if o.Timeout > 0 {
		p.Timeout = o.Timeout
		p.TTL = max(p.TTL, p.Expiry+p.Timeout)
	}
	only := &config.Config{Global: cfg.Global, Sinks: make(map[string]*config.Sink), Probes: map[string]*config.Probe{name: &p}}
	only.Global.Instance += "/ping"
	for _, n := range p.Sinks {
		s, err := cfg.Sinks[n].Beside()
		if err != nil {
			return nil, nil, err
		}
		only.Sinks[n] = s
	}
	return only, &p, nil
}

type key struct {
	lane uint32
	seq  uint64
}

// beat is a heartbeat that is on its way or has been told.
type beat struct {
	Beat
	settled bool // the head has answered
	told    bool
	latency map[string]time.Duration // where it has arrived
}

// run is one call of Run. It is the Observer of its monitor.
type run struct {
	m     *monitor.Monitor
	probe *config.Probe
	sinks map[string]*config.Sink
	to    Report
	began time.Time

	news chan struct{}
	mu   sync.Mutex
	// What the monitor has told since the last look.
	injections []monitor.Injection
	arrivals   []monitor.Arrival

	beats     map[key]*beat // in flight, and the last ones that are not
	order     []key         // of beats
	latencies map[string][]time.Duration
	ticks     uint64
	lastDue   time.Time
}

// Injected implements monitor.Observer.
func (r *run) Injected(i monitor.Injection) {
	r.mu.Lock()
	r.injections = append(r.injections, i)
	r.mu.Unlock()
	r.poke()
}

// Arrived implements monitor.Observer.
func (r *run) Arrived(a monitor.Arrival) {
	r.mu.Lock()
	r.arrivals = append(r.arrivals, a)
	r.mu.Unlock()
	r.poke()
}

func (r *run) poke() {
	select {
	case r.news <- struct{}{}:
	default:
	}
}

// ready waits until every sink reads its queue.
func (r *run) ready(ctx context.Context, within time.Duration) error {
	late := time.NewTimer(within)
	defer late.Stop()
	for {
		var blind []error
		for _, s := range r.m.Status().Sinks {
			if s.Up {
				continue
			}
			why := "it has not begun to read"
			if s.LastError != nil {
				why = s.LastError.Error
			}
			blind = append(blind, fmt.Errorf("sink %s: %s", s.Name, why))
		}
		if len(blind) == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(append(blind, errors.New("interrupted before the sinks were ready"))...)
		case <-late.C:
			return fmt.Errorf("not ready within %v: %w", within, errors.Join(blind...))
		case <-time.After(look):
		}
	}
}

// follow tells what happens until the count is full and everything is decided, or ctx ends.
func (r *run) follow(ctx context.Context, count uint64, within time.Duration) error {
	tick := time.NewTicker(look)
	defer tick.Stop()
	for {
		r.take()
		open := r.tell(false)
		now := time.Now()
		switch {
		case count > 0 && r.ticks >= count && (open == 0 || now.After(r.lastDue.Add(r.probe.Timeout+proof))):
			r.tell(true)
			return nil
		case r.ticks == 0 && now.Sub(r.began) > r.probe.SendTimeout+within:
			return r.silentHead()
		}
		select {
		case <-ctx.Done():
			if r.take(); r.ticks == 0 {
				return errors.New("interrupted before the head had answered")
			}
			r.tell(true)
			return nil
		case <-r.news:
		case <-tick.C:
		}
	}
}

// silentHead says why nothing was ever sent.
func (r *run) silentHead() error {
	for _, p := range r.m.Status().Probes {
		if p.LastError != nil {
			return fmt.Errorf("the head: %s", p.LastError.Error)
		}
	}
	return errors.New("the head has not answered")
}

// take takes what the monitor has told into the list.
func (r *run) take() {
	r.mu.Lock()
	injections, arrivals := r.injections, r.arrivals
	r.injections, r.arrivals = nil, nil
	r.mu.Unlock()
	for _, i := range injections {
		b := r.beat(i.Lane, i.Seq)
		b.Sent, b.Due, b.Took, b.Result, b.Err, b.settled = i.Sent, i.Due, i.Took, i.Result, i.Err, true
		r.ticks, r.lastDue = max(r.ticks, i.Tick), i.Due
	}
	for _, a := range arrivals {
		b := r.beat(a.Lane, a.Seq)
		out := a.Outcome
		if out.First {
			r.latencies[a.Sink] = append(r.latencies[a.Sink], out.Latency)
			b.latency[a.Sink] = out.Latency
		}
		extra := Extra{Probe: r.probe.Name, Sink: a.Sink, Lane: a.Lane, Seq: a.Seq, At: a.At, Latency: out.Latency}
		switch {
		case out.Verdict == ledger.Late && b.told:
			extra.Kind = "late"
		case out.Verdict == ledger.Duplicate:
			extra.Kind = "duplicate"
		case out.Verdict == ledger.Redelivery:
			extra.Kind = "redelivery"
		case out.Verdict == ledger.Unaccounted:
			extra.Kind = "unaccounted"
		default:
			continue
		}
		r.to.Extra(extra)
	}
}

// remembered is how many heartbeats are kept after they were told, to know what comes late.
const remembered = 4096

func (r *run) beat(lane uint32, seq uint64) *beat {
	k := key{lane, seq}
	b := r.beats[k]
	if b == nil {
		b = &beat{Beat: Beat{Probe: r.probe.Name, Lane: lane, Seq: seq}, latency: make(map[string]time.Duration)}
		r.beats[k] = b
		r.order = append(r.order, k)
		for len(r.order) > remembered && r.beats[r.order[0]].told {
			delete(r.beats, r.order[0])
			r.order = r.order[1:]
		}
	}
	return b
}

// tell reports the heartbeats whose outcome is known by now, and at the end all others. It returns how many
// are open.
func (r *run) tell(end bool) (open int) {
	var known []*beat
	for _, k := range r.order {
		b := r.beats[k]
		if b.told || !b.settled {
			continue
		}
		done := true
		b.Sinks = b.Sinks[:0]
		for _, name := range r.probe.Sinks {
			if b.Result == ledger.Refused {
				break
			}
			if r.sinks[name].Role == config.DeadLetter {
				continue
			}
			s := AtSink{Sink: name, Outcome: outcome(r.m.Fate(r.probe.Name, name, k.lane, k.seq))}
			done = done && s.Outcome != InFlight
			b.Sinks = append(b.Sinks, s)
		}
		if !done {
			open++
			if !end {
				continue
			}
		}
		known = append(known, b)
	}
	// What made an outcome known may have come after the last look at what has arrived.
	r.take()
	for _, b := range known {
		for i := range b.Sinks {
			s := &b.Sinks[i]
			s.Latency, s.Arrived = b.latency[s.Sink]
		}
		b.told = true
		r.to.Beat(b.Beat)
	}
	return open
}

func outcome(f ledger.Fate) Outcome {
	switch f {
	case ledger.Received:
		return OnTime
	case ledger.ReceivedLate:
		return Late
	case ledger.Dropped:
		return Dropped
	case ledger.Waiting, ledger.WaitingMaybe, ledger.Injecting:
		return InFlight
	}
	return Indeterminate
}

// Summary is the account at the end.
type Summary struct {
	Probe       string
	Took        time.Duration
	Interrupted bool
	Accepted    uint64 // by the head
	Refused     uint64
	Unknown     uint64        // the head's answer was lost
	Skipped     uint64        // ticks that passed while the one before was not over
	Sinks       []SinkSummary // in the order of the probe's definition, without dead-letter queues
}

// SinkSummary is the account at one sink.
type SinkSummary struct {
	Sink                                               string
	Sent, OnTime, Late, Dropped, Indeterminate, Flight uint64
	Duplicated                                         uint64 // with redeliveries
	// Latencies of what arrived, late ones too; valid when Arrived is more than 0.
	Arrived            int
	Min, P50, P99, Max time.Duration
	// Trouble is the last thing that went wrong at the sink; empty: nothing did.
	Trouble string
}

func (r *run) summary(interrupted bool) *Summary {
	s := &Summary{Probe: r.probe.Name, Took: time.Since(r.began), Interrupted: interrupted}
	status := r.m.Status()
	trouble := make(map[string]string)
	for _, n := range status.Sinks {
		if n.LastError != nil {
			trouble[n.Name] = n.LastError.Error
		}
	}
	for _, p := range status.Probes {
		s.Accepted, s.Refused, s.Unknown, s.Skipped = p.Sent.Success, p.Sent.Failure, p.Sent.Unknown, p.Sent.Skipped
		for _, n := range p.Sinks {
			if n.Role == config.DeadLetter {
				continue
			}
			line := SinkSummary{Sink: n.Sink, Sent: n.Sent, OnTime: n.OnTime, Late: n.Late, Dropped: n.Dropped, Indeterminate: n.Indeterminate,
				Flight: n.InFlight, Duplicated: n.Duplicated + n.Redelivered, Trouble: trouble[n.Sink]}
			if l := r.latencies[n.Sink]; len(l) > 0 {
				slices.Sort(l)
				at := func(q float64) time.Duration { return l[min(len(l)-1, int(q*float64(len(l))))] }
				line.Arrived, line.Min, line.P50, line.P99, line.Max = len(l), l[0], at(.5), at(.99), l[len(l)-1]
			}
			s.Sinks = append(s.Sinks, line)
		}
	}
	return s
}

// Loss returns the part of the heartbeats that was not on time at the sink where most were not: refused,
// dropped, late, or of an outcome that is not known. What was on its way when somebody interrupted counts
// neither way. It is 1 when nothing was decided.
func (s *Summary) Loss() (loss float64, worst string) {
	tried := s.Accepted + s.Refused + s.Unknown
	if len(s.Sinks) == 0 {
		if tried == 0 {
			return 1, ""
		}
		return float64(s.Refused+s.Unknown) / float64(tried), ""
	}
	loss = -1
	for _, n := range s.Sinks {
		of := tried
		if s.Interrupted {
			of -= min(of, n.Flight)
		}
		l := 1.
		if of > 0 {
			l = float64(of-min(n.OnTime, of)) / float64(of)
		}
		if l > loss {
			loss, worst = l, n.Sink
		}
	}
	return loss, worst
}

// Names returns the probes of cfg that can be pinged, sorted.
func Names(cfg *config.Config) []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(cfg.Probes)), func(n string) bool { return cfg.Probes[n].Inject == nil })
}
