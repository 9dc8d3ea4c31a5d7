package config

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/conn"
	"github.com/lag-monitor/lag-monitor/internal/heartbeat"
	"github.com/lag-monitor/lag-monitor/internal/tracing"
	"github.com/lag-monitor/lag-monitor/probe"
	"github.com/lag-monitor/lag-monitor/sinks"
)

// Config is a whole configuration with all defaults filled in. Nobody changes it after it was loaded,
// so that it is safe for concurrent use.
type Config struct {
	Global   Global
	Sinks    map[string]*Sink
	Probes   map[string]*Probe
	Files    []string   // every file that was read, the main file first
	Warnings []*Problem // what is allowed but probably not meant
}

// Global is what holds for all probes.
type Global struct {
	Interval    time.Duration     // default of the probes
	Timeout     time.Duration     // default of the probes
	SendTimeout time.Duration     // default of the probes
	Labels      map[string]string // on every probe that does not set them itself
	Page        Thresholds        // default of the probes
	Ticket      Thresholds        // default of the probes
	SLO         SLO               // default of the probes
	Keys        []conn.Secret     // the first signs heartbeats, all verify them; none: a checksum only
	Instance    string            // who sends: the host's name by default
	MaxSkew     time.Duration     // how far in the future a heartbeat may claim to be due
	Tracing     tracing.Config    // which heartbeats are traced, and where their traces go
}

// Keyring reads the keys. The error names the key and where it should be, not what it is.
func (g *Global) Keyring() (*heartbeat.Keyring, error) {
	var keys [][]byte
	for i, k := range g.Keys {
		v, err := k.Read()
		if err != nil {
			return nil, fmt.Errorf("global.key: key %d: %w", i+1, err)
		}
		keys = append(keys, []byte(v))
	}
	return heartbeat.NewKeyring(keys...), nil
}

// The roles of a sink.
const (
	Destination = "destination"
	Hop         = "hop"
	DeadLetter  = "dead_letter"
)

// Sink is one queue to listen on.
type Sink struct {
	Name string
	Kind string
	Role string // Destination, Hop or DeadLetter
	// LookBack is how far before now the sink starts when it has no position; 0: at the end, negative: as
	// Config.LookBack says.
	LookBack time.Duration
	Unwrap   []string // the envelopes around its messages, the outermost first; see sinks.Envelopes
	Backlog  Backlog
	Config   sinks.Config
	Source   Source
	// Fingerprint is equal for two sinks exactly when their effective definitions are, leaving out LookBack and
	// Backlog: they say nothing of a sink that runs.
	Fingerprint string

	def sinks.Config // the kind's defaults
}

// AutoLookBack is the LookBack of a sink for which the file does not set it.
const AutoLookBack time.Duration = -1

// maxAutoLookBack bounds what is read for a probe with long times, and with it what a start costs. Older
// heartbeats would only say that the pipeline has been silent for as long.
const maxAutoLookBack = 5 * time.Minute

// LookBack returns how far before now a sink without a position starts: what the file says, else as long as
// a heartbeat of its probes may be under way and another one takes to come, at most five minutes. Nothing
// that is found in a dead-letter queue so late is of use.
func (c *Config) LookBack(sink string) time.Duration {
	s := c.Sinks[sink]
	switch {
	case s == nil:
		return 0
	case s.LookBack >= 0:
		return s.LookBack
	case s.Role == DeadLetter:
		return 0
	}
	var longest time.Duration
	for _, p := range c.Probes {
		if slices.Contains(p.Sinks, sink) {
			longest = max(longest, p.Expiry+p.Timeout+p.Interval)
		}
	}
	return min(longest, maxAutoLookBack)
}

// Beside returns the sink for one more process that listens on the queue for a while, from now on: it disturbs
// no monitor that does. The error names the sink.
func (s *Sink) Beside() (*Sink, error) {
	c, err := sinks.Beside(s.Config)
	if err != nil {
		return nil, fmt.Errorf("sink %s cannot be read beside the monitor that it belongs to: %w", s.Name, err)
	}
	twin := *s
	twin.Config, twin.LookBack = c, 0
	return &twin, nil
}

// Probe is one pipeline to watch.
type Probe struct {
	Name string
	// Alias is what heartbeats call the probe, where that is not its name: nobody else's probe may take them
	// for its own. No file says so; who runs a probe beside the monitor that it belongs to does.
	Alias       string
	Interval    time.Duration
	Expiry      time.Duration
	Timeout     time.Duration
	TTL         time.Duration
	SendTimeout time.Duration
	Labels      map[string]string // its own over the global ones
	Page        Thresholds
	Ticket      Thresholds
	SLO         SLO
	Runbook     string // URL for the alert's text; may be empty
	Dashboard   string // the same
	InjectKind  string
	Inject      probe.Config // nil: only listens
	Sinks       []string     // names; empty: only injects
	Source      Source
	// Fingerprint is equal for two probes exactly when their effective definitions are.
	Fingerprint string
	// RunFingerprint leaves out what only alerts and people see: labels, thresholds, the objective and links. A reload
	// that changes nothing else need not restart the probe.
	RunFingerprint string

	def probe.Config // the kind's defaults
}

// HeartbeatName is what the heartbeats of the probe call it.
func (p *Probe) HeartbeatName() string {
	if p.Alias != "" {
		return p.Alias
	}
	return p.Name
}

// InfoLabels are the labels of the probe's info series, which alerts are joined with: its own labels and
// its links as `runbook` and `dashboard`.
func (p *Probe) InfoLabels() map[string]string {
	labels := maps.Clone(p.Labels)
	if p.Runbook != "" {
		labels["runbook"] = p.Runbook
	}
	if p.Dashboard != "" {
		labels["dashboard"] = p.Dashboard
	}
	return labels
}

// Thresholds are the limits of one severity. Zero means that there is no limit.
type Thresholds struct {
	Lag       time.Duration
	For       time.Duration // how long the lag must stay above the limit
	DropRatio float64       // of the heartbeats that were accepted, 0 to 1
	// Of tickets only; the rules have a limit of their own where there is none.
	DuplicateRatio float64 // of the heartbeats that came out, 0 to 1
	ReorderRatio   float64 // the same
}

// SLO is what a team has promised its users: the share Objective of the messages comes out within Latency of
// when it was due. The zero value promises nothing.
type SLO struct {
	Latency   time.Duration
	Objective float64 // 0 to 1
}

// Backlog is how much may wait in the queue of a sink. Zero means what the rules say.
type Backlog struct {
	Messages float64
	Age      time.Duration // of the oldest one
}

// IsZero reports that no limit is set.
func (t Thresholds) IsZero() bool { return t.Lag == 0 && t.DropRatio == 0 }

// Source says where something was defined.
type Source struct {
	File string
	Line int
}

// Load reads a configuration as a whole: any problem in any file is an error, of type Problems where
// the files could be read.
func Load(path string) (*Config, error) {
	cfg, problems, err := NewLoader(path).Load()
	if err != nil {
		return nil, err
	}
	if len(problems) > 0 {
		var ps Problems
		for _, p := range problems {
			ps = append(ps, p.(*Problem))
		}
		return nil, ps
	}
	return cfg, nil
}
