package monitor

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/config"
	"github.com/lag-monitor/lag-monitor/internal/journal"
)

// MaxPause is the longest pause. Nobody is called for a paused probe, so that none may be forgotten.
const MaxPause = 7 * 24 * time.Hour

var (
	// ErrNotKept is wrapped by the error of a Pause that has succeeded, but would not survive a restart.
	ErrNotKept = errors.New("there is no journal (--storage.path) that can be written, so it ends with a restart of the monitor")
	// ErrNoProbe is wrapped when there is no probe of the name.
	ErrNoProbe = errors.New("there is no such probe")
	// ErrNotPausable is wrapped when a probe only listens, or the pause would be too short or too long.
	ErrNotPausable = errors.New("it cannot be paused")
)

// pause is a time in which a probe injects nothing; the zero value is none.
type pause struct{ since, until time.Time }

// Pause stops the injections of a probe from now on, for d, at most MaxPause. It sets a new end to a pause
// that is under way. Nothing that was sent is forgotten, and nobody is called while it lasts. The error
// wraps ErrNoProbe, ErrNotPausable, or ErrNotKept: then the probe is paused all the same.
func (m *Monitor) Pause(name string, d time.Duration) error {
	m.apply.Lock() // a reload that is under way would not see the pause
	defer m.apply.Unlock()
	p, err := m.pausable(name)
	if err != nil {
		return err
	}
	if d <= 0 || d > MaxPause {
		return fmt.Errorf("probe %s for %s: %w: a pause is longer than 0 and at most %s", name, d, ErrNotPausable, MaxPause)
	}
	p.mu.Lock()
	now := time.Now()
	since := now
	if p.pausedAt(now) {
		since = p.pause.since
	}
	p.setPause(pause{since, now.Add(d)}, now)
	p.unkept = true
	p.mu.Unlock()
	p.log.Info("probe is paused", "until", now.Add(d).Round(0))
	if m.keeper == nil || m.keeper.down.Load() {
		return fmt.Errorf("probe %s is paused: %w", name, ErrNotKept)
	}
	return nil
}

// Resume ends the pause of a probe, which injects at once. A probe that is not paused goes on. The error
// wraps ErrNoProbe or ErrNotPausable.
func (m *Monitor) Resume(name string) error {
	m.apply.Lock()
	defer m.apply.Unlock()
	p, err := m.pausable(name)
	if err != nil {
		return err
	}
	p.endPause(time.Time{}, "somebody has resumed it")
	return nil
}

func (m *Monitor) pausable(name string) (*probeRun, error) {
	st := m.state.Load()
	p := st.probes[name]
	switch {
	case p == nil:
		return nil, fmt.Errorf("%w: %s", ErrNoProbe, config.Unknown(fmt.Sprintf("probe %q", name), name, slices.Sorted(maps.Keys(st.probes))))
	case !p.injects():
		return nil, fmt.Errorf("probe %s: %w: it only listens here, pause it where it injects", name, ErrNotPausable)
	}
	return p, nil
}

// pausedAt reports whether the probe is paused. The caller holds the lock.
func (p *probeRun) pausedAt(now time.Time) bool { return now.Before(p.pause.until) }

// paused is the same at the time of the last look or tick, at no cost.
func (p *probeRun) paused() bool { return p.pausedAt(p.observed) }

// setPause begins a pause, or gives it another end. The caller holds the lock.
func (p *probeRun) setPause(to pause, now time.Time) {
	if !p.pausedAt(now) {
		for _, w := range p.watches {
			if w.ledger != nil {
				w.ledger.Pause()
			}
		}
	}
	p.pause = to
	if p.pauseEnd != nil {
		p.pauseEnd.Stop()
	}
	p.pauseEnd = time.AfterFunc(to.until.Sub(now), func() { p.endPause(to.until, pauseOver) })
}

// pauseOver is why a pause ends by itself.
const pauseOver = "the pause is over"

// endPause ends the pause that has the end until, or any for the zero time, and injects at once.
func (p *probeRun) endPause(until time.Time, why string) {
	p.mu.Lock()
	if p.closed || p.pause == (pause{}) || !until.IsZero() && !p.pause.until.Equal(until) {
		p.mu.Unlock()
		return
	}
	p.unpause(time.Now(), why)
	entry := p.entry
	p.mu.Unlock()
	if entry != nil {
		entry.Now()
	}
}

// unpause ends the pause. The caller holds the lock.
func (p *probeRun) unpause(now time.Time, why string) {
	p.pauseEnd.Stop()
	p.log.Info("probe injects again", "why", why, "paused_for", now.Sub(p.pause.since).Round(time.Second))
	p.pause, p.unkept = pause{}, true
	for _, l := range p.byLane {
		l.resume()
	}
}

// takePause takes over a pause from the probe that p replaces, or else from the process before.
func (p *probeRun) takePause(old *probeRun) {
	if !p.injects() {
		return
	}
	var to pause
	now := time.Now()
	if old != nil {
		old.mu.Lock()
		to = old.pause
		old.mu.Unlock()
	} else if p.m.rest != nil {
		to = p.m.rest.pause(p.cfg.Name, now)
	}
	if !now.Before(to.until) {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.setPause(to, now)
	p.unkept = true
	if old == nil {
		p.log.Info("probe is still paused", "until", to.until.Round(0))
	}
}

// pauseStatus is nil when the probe is not paused. The caller holds the lock.
func (p *probeRun) pauseStatus(now time.Time) *PauseStatus {
	if !p.pausedAt(now) {
		return nil
	}
	return &PauseStatus{Since: p.pause.since.Round(0), Until: p.pause.until.Round(0)}
}

// pause returns the pause that the process before has left, once.
func (r *remains) pause(probe string, now time.Time) pause {
	r.mu.Lock()
	defer r.mu.Unlock()
	i := slices.IndexFunc(r.pauses, func(p journal.Pause) bool { return p.Probe == probe })
	if i < 0 {
		return pause{}
	}
	p := r.pauses[i]
	r.pauses = slices.Delete(r.pauses, i, i+1)
	left := time.Unix(0, p.Until).Sub(now)
	if left > MaxPause {
		return pause{} // the clock was set back, or the file is wrong: silence without end is the worst
	}
	return pause{time.Unix(0, p.Since), now.Add(left)}
}

// pauses adds the pauses that have changed, or all of them.
func (k *keeper) pauses(st *state, now time.Time) {
	for name, p := range st.probes {
		p.mu.Lock()
		if k.whole || p.unkept {
			row := journal.Pause{Probe: name}
			if p.pausedAt(now) {
				row.Since, row.Until = p.pause.since.UnixNano(), p.pause.until.UnixNano()
			}
			if row.Until != 0 || !k.whole {
				k.batch.PutPause(&row)
			}
			p.unkept = false
		}
		p.mu.Unlock()
	}
	rest := k.m.rest
	if rest == nil || !k.whole {
		return
	}
	rest.mu.Lock()
	defer rest.mu.Unlock()
	for i := range rest.pauses {
		if p := &rest.pauses[i]; p.Until > now.UnixNano() {
			k.batch.PutPause(p)
		}
	}
}
