package sim

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/lag-monitor/lag-monitor/internal/config"
	"github.com/lag-monitor/lag-monitor/internal/conn"
	"github.com/lag-monitor/lag-monitor/internal/monitor"
)

// host is one process of the monitor. After a restart another one has its name.
type host struct {
	w       *world
	s       *session
	name    string // and the instance
	life    int    // how many processes there were before
	injects bool
	listens bool
	ahead   time.Duration // its clock before that of the others
	grace   time.Duration
	pipes   []*pipe
	round   int // of the configuration

	m        *monitor.Monitor
	registry *prometheus.Registry
	cancel   context.CancelFunc
	done     chan error
	last     scrape // the one before
	stopped  bool
	ended    time.Time // when it was told to stop

	// Guarded by the world's lock.
	applying  bool
	keys      []string // the first signs
	listeners map[*queue]*listener
	journal   *kept                           // nil: it keeps none
	inherited map[*queue]map[*pipe][]heir     // from the journal of the process before
	stamped   map[*queue]map[topKey]time.Time // and its timestamps
	runs      map[*pipe]*run                  // that are part of the configuration
	former    map[*pipe][]*run                // that a reload replaced, in the same accounts of latency
	paused    map[*pipe]time.Time             // by the journal of the process before: until when
}

func (w *world) newHost(name string, injects, listens bool) *host {
	h := &host{w: w, name: name, injects: injects, listens: listens}
	w.hosts = append(w.hosts, h)
	return h
}

// knows reports whether a heartbeat signed with the key is believed.
func (h *host) knows(key string) bool {
	if key == "" {
		return len(h.keys) == 0
	}
	return slices.Contains(h.keys, key)
}

// firstRun is the run of a probe that its timestamps are kept under.
func (h *host) firstRun(p *pipe) *run {
	if f := h.former[p]; len(f) > 0 {
		return f[0]
	}
	return h.runs[p]
}

// start starts the process with its first configuration.
func (h *host) start(s *session) {
	w := h.w
	r := w.rand("host", h.name, h.life)
	h.s = s
	h.grace = pick(r, 0, 3*time.Second, 20*time.Second, 3*time.Minute)
	opts := monitor.Options{Instance: h.name, Grace: h.grace}
	if h.journal != nil {
		opts.OpenJournal = h.journal.open
	}
	h.m = monitor.New(opts)
	h.registry = prometheus.NewRegistry()
	h.registry.MustRegister(h.m.Collector())
	h.last = make(scrape)
	w.mu.Lock()
	h.listeners, h.runs, h.former = make(map[*queue]*listener), make(map[*pipe]*run), make(map[*pipe][]*run)
	if w.keys && h.life == 0 && w.rand("keys").Float64() < 0.7 {
		h.keys = []string{"a"}
	}
	if h.listens {
		for _, q := range w.queues {
			l := w.newListener(h, q)
			l.kinds, l.tops, l.stamps, l.ages = make(map[string]int), make(map[topKey]*top), make(map[topKey]time.Time), make(map[*pipe][]age)
			l.refused, l.claimed = make(map[*message]bool), make(map[*pipe]bool)
			h.listeners[q] = l
		}
	}
	for _, p := range h.pipes {
		h.runs[p] = w.newRun(h, p, p.set)
	}
	for q, stamps := range h.stamped {
		for k, due := range stamps {
			if r := h.runs[k.r.p]; r != nil && time.Until(due) <= w.maxSkew {
				h.listeners[q].stamps[topKey{r, k.lane}] = due
			}
		}
	}
	for p, until := range h.paused {
		if r := h.runs[p]; r != nil && time.Now().Before(until) {
			r.pauses = []span{{from: r.joined, to: mark{at: until}}}
			w.did(KindPauseKept)
		}
	}
	w.mu.Unlock()
	if err := h.m.Apply(h.config()); err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(s.t.Context())
	h.cancel, h.done = cancel, make(chan error, 1)
	go func() { h.done <- h.m.Run(ctx) }()
}

// config is the configuration as it stands. The labels change with each reload.
func (h *host) config() *config.Config {
	c := &config.Config{Global: config.Global{MaxSkew: h.w.maxSkew}, Sinks: make(map[string]*config.Sink), Probes: make(map[string]*config.Probe)}
	for _, k := range h.keys {
		c.Global.Keys = append(c.Global.Keys, secretOf(k))
	}
	for q, l := range h.listeners {
		role := config.Destination
		if q.dead {
			role = config.DeadLetter
		} else if q.hop {
			role = config.Hop
		}
		c.Sinks[q.name] = &config.Sink{Name: q.name, Kind: "sim", Role: role, Config: l, Fingerprint: "1"}
	}
	for p, r := range h.runs {
		cp := &config.Probe{Name: p.name, Interval: r.interval, Expiry: r.expiry, Timeout: r.timeout, TTL: r.ttl, SendTimeout: r.sendTimeout,
			Page: h.page(r), Labels: map[string]string{"round": strconv.Itoa(h.round)}, Fingerprint: strconv.Itoa(h.round), RunFingerprint: strconv.Itoa(r.n)}
		if h.injects {
			cp.InjectKind, cp.Inject = "sim", r
		}
		if h.listens {
			for _, q := range p.outs {
				cp.Sinks = append(cp.Sinks, q.name)
			}
			if p.dead != nil {
				cp.Sinks = append(cp.Sinks, p.dead.name)
			}
		}
		c.Probes[p.name] = cp
	}
	return c
}

func (h *host) page(r *run) config.Thresholds {
	return config.Thresholds{Lag: r.timeout, For: time.Duration(h.round) * time.Second, DropRatio: 0.01}
}

// reload changes the labels of all probes, and may change the keys, add a probe, change one, and take out
// one that was added.
func (h *host) reload(n int) {
	w := h.w
	r := w.rand("reload", h.name, n)
	h.round++
	w.mu.Lock()
	w.did(KindReload)
	h.applying = true
	now := w.now()
	gone := func(p *pipe) {
		h.runs[p].left = now
		h.last.forget(p.name, func(name string) bool { return !outlives(name) })
	}
	if w.keys && w.chance(r, KindKeys, 0.6) {
		w.did(KindKeys)
		// As people do it, step by step, and as they should not.
		h.keys = pick(r, nil, []string{"a"}, []string{"b", "a"}, []string{"b"}, []string{"b"}, []string{"c", "b"}, []string{"c"})
	}
	for _, p := range h.pipes {
		old := h.runs[p]
		if old == nil {
			continue
		}
		switch {
		case w.chance(r, KindChanged, 0.15) && h.injects && !w.isHold() && !w.keys:
			w.did(KindChanged)
			gone(p)
			h.former[p] = append(h.former[p], old)
			set := w.newSettings(r)
			if !h.listens {
				set.ttl = p.set.ttl // both ends are told the same
			}
			h.runs[p] = w.newRun(h, p, set)
			if t, ok := old.pausedAt(now.at); ok {
				h.runs[p].pauses = []span{{from: h.runs[p].joined, to: t.to}}
				w.did(KindPauseKept)
			}
		case w.chance(r, KindLeft, 0.4) && strings.HasPrefix(p.name, "joined"):
			w.did(KindLeft)
			gone(p)
			h.last.forget(p.name, func(string) bool { return true })
			delete(h.runs, p)
		}
	}
	if w.chance(r, KindJoined, 0.6) && h.injects && h.listens && !w.isHold() {
		p := w.newPipe("joined-" + h.name + strconv.Itoa(n))
		p.arrange()
		for i := range p.lanes {
			p.lanes[i].from = p.lanes[i].from.Add(now.at.Sub(w.start))
		}
		for _, q := range w.queues {
			switch {
			case q.dead:
				p.dead = q
			case len(p.outs) == 0 || r.Float64() < 0.5:
				p.outs = append(p.outs, q)
			}
		}
		p.order()
		h.runs[p] = w.newRun(h, p, p.set)
		h.pipes = append(h.pipes, p)
		w.did(KindJoined)
	}
	c := h.config()
	w.mu.Unlock()
	if err := h.m.Apply(c); err != nil {
		h.s.failf("reload: %v", err)
	}
	synctest.Wait()
	w.mu.Lock()
	h.applying = false
	for _, l := range h.listeners {
		l.poke()
	}
	w.mu.Unlock()
}

// stop ends the process and waits for it.
func (h *host) stop() {
	h.stopped, h.ended = true, time.Now()
	h.cancel()
	if err := <-h.done; err != nil {
		h.s.failf("Run: %v", err)
	}
}

// kill ends the process at once, with no time to wait for anything, and returns the one that comes after
// it. What the accounts said up to that moment has been compared.
func (h *host) kill() *host {
	w := h.w
	w.mu.Lock()
	w.did(KindKilled)
	next := &host{w: w, name: h.name, life: h.life + 1, injects: h.injects, listens: h.listens, ahead: h.ahead, pipes: h.watched(), keys: h.keys, round: h.round}
	if k := h.journal; k != nil {
		w.did(KindJournal)
		next.journal = &kept{Memory: k.Memory, h: next, written: k.written, stamps: k.stamps, pauses: k.pauses}
		if k.written.n > 0 {
			next.inherited, next.stamped = h.bequeath(k), k.stamps
			next.paused = k.pauses
		}
		k.frozen = true
	}
	for _, l := range h.listeners {
		l.next = len(l.q.msgs) // it reads nothing in the moment that its end takes
	}
	w.mu.Unlock()
	h.stop()
	i := slices.Index(w.hosts, h)
	w.mu.Lock()
	for _, r := range h.everyRun() {
		w.lostBeats += len(r.order)
	}
	w.hosts = append(w.hosts[:i:i], append([]*host{next}, w.hosts[i+1:]...)...)
	w.mu.Unlock()
	return next
}

// pause pauses a probe of the process, or resumes one.
func (h *host) pause(begin bool, n int) {
	w := h.w
	rnd := w.rand("pause", h.name, n)
	d := scale(between(rnd, time.Millisecond, 2*time.Minute), math.Sqrt(w.tempo))
	var pipes []*pipe
	w.mu.Lock()
	now := w.now()
	for _, p := range h.watched() {
		if _, paused := h.runs[p].pausedAt(now.at); begin || paused {
			pipes = append(pipes, p)
		}
	}
	if len(pipes) == 0 {
		w.mu.Unlock()
		return
	}
	p := pick(rnd, pipes...)
	r := h.runs[p]
	if t, paused := r.pausedAt(now.at); paused {
		t.to = now
	}
	if begin {
		w.did(KindPaused)
		r.pauses = append(r.pauses, span{from: now, to: mark{at: now.at.Add(d)}})
	} else {
		w.did(KindResumed)
	}
	w.mu.Unlock()
	var err error
	if begin {
		err = h.m.Pause(p.name, d)
	} else {
		err = h.m.Resume(p.name)
	}
	if err != nil && (h.journal != nil || !errors.Is(err, monitor.ErrNotKept)) {
		h.s.failf("pausing %s: %v", p.name, err)
	}
}

// pausedAt returns the pause that covers an instant.
func (r *run) pausedAt(t time.Time) (*span, bool) {
	for i := range r.pauses {
		if p := &r.pauses[i]; !t.Before(p.from.at) && t.Before(p.to.at) {
			return p, true
		}
	}
	return nil, false
}

// pausedBetween reports whether a pause ended between two heartbeats.
func (r *run) pausedBetween(a, b mark) bool {
	return slices.ContainsFunc(r.pauses, func(t span) bool { return t.to.at.After(a.at) && !t.to.at.After(b.at) })
}

// comparePaused counts the ticks in the pauses of a run by its phase, and finds heartbeats that were sent in
// one all the same.
func (s *session) comparePaused(r *run, got float64) {
	now := time.Now()
	for _, b := range r.order {
		if t, paused := r.pausedAt(b.sent.at); paused && b.sent.n > t.from.n {
			s.failf("%s: %s sent seq %d in a pause from %s to %s", r.h.name, r.p.name, b.seq, s.w.since(t.from.at), s.w.since(t.to.at))
		}
	}
	phase := r.phase()
	if phase < 0 && len(r.pauses) > 0 {
		return
	}
	least, most := 0.0, 0.0
	for _, t := range r.pauses {
		from, to := t.from.at, t.to.at
		if to.After(now) {
			to = now
		}
		if r.h.stopped && to.After(r.h.ended) {
			to = r.h.ended
		}
		first := from.Add((phase - time.Duration(from.UnixNano())%r.interval + r.interval) % r.interval)
		n := 0.0
		if to.After(first) {
			n = float64(1 + to.Sub(first)/r.interval)
		}
		least, most = least+n, most+n
		// A tick beside the phase may have stood for the next one of it, or have come in addition.
		extra := float64(r.extraTicks(from.Add(-r.interval), to))
		if from.Sub(r.joined.at) < 2*r.interval {
			extra++
		}
		least, most = least-extra, most+extra
	}
	if got < least || got > most {
		s.failf("at %s: %s: %s skipped %v ticks in pauses, should be from %v to %v", s.w.since(now), r.h.name, r.p.name, got, least, most)
	}
}

// watched are the pipelines that the process watches now.
func (h *host) watched() []*pipe {
	return slices.DeleteFunc(slices.Clone(h.pipes), func(p *pipe) bool { return h.runs[p] == nil })
}

// look takes stock at this moment, checks what holds at any moment, and returns the scrape.
func (h *host) look() scrape {
	st := h.m.Status()
	now := h.scrape()
	at := h.w.since(time.Now())
	s := h.s
	for _, p := range st.Probes {
		for _, q := range p.Sinks {
			if q.Role == config.DeadLetter {
				continue
			}
			if q.Sent+q.Restored != q.OnTime+q.Dropped+q.Indeterminate+q.InFlight {
				s.failf("at %s: %s: %s at %s: sent %d + restored %d is not on time %d + dropped %d + indeterminate %d + in flight %d",
					at, h.name, p.Name, q.Sink, q.Sent, q.Restored, q.OnTime, q.Dropped, q.Indeterminate, q.InFlight)
			}
			if !h.injects {
				continue
			}
			if sent := p.Sent.Success + p.Sent.Unknown; sent != q.Sent {
				s.failf("at %s: %s: %s at %s: the probe sent %d, the account has %d", at, h.name, p.Name, q.Sink, sent, q.Sent)
			}
			pair := fmt.Sprintf(`probe="%s",sink="%s"`, p.Name, q.Sink)
			sum := now.sum("heartbeats_received_total", pair, `timing="on_time"`) + now.sum("heartbeats_dropped_total", pair) +
				now.sum("heartbeats_indeterminate_total", pair) + now.sum("heartbeats_in_flight", pair)
			own := `probe="` + p.Name + `"`
			sent := now.sum("heartbeats_sent_total", own) - now.sum("heartbeats_sent_total", own, `result="failure"`) + now.sum("heartbeats_restored_total", pair)
			if sum != sent {
				s.failf("at %s: %s: %s at %s: the scrape has %v heartbeats, and %v were sent", at, h.name, p.Name, q.Sink, sum, sent)
			}
		}
	}
	for name, samples := range now {
		if !onlyGrows(name) {
			continue
		}
		for labels, v := range samples {
			if old, ok := h.last[name][labels]; ok && v < old {
				s.failf("at %s: %s: %s{%s} went from %v to %v", at, h.name, name, labels, old, v)
			}
		}
	}
	h.checkSinks(now)
	h.checkProbes(now)
	h.checkLag(now)
	h.last = now
	return now
}

// checkSinks compares what the sinks say of themselves with the record.
func (h *host) checkSinks(now scrape) {
	w, s := h.w, h.s
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, l := range h.listeners {
		own := `sink="` + l.q.name + `"`
		want := map[string]float64{"sink_up": float64(len(l.ready) - len(l.downs)), "sink_errors_total": float64(l.errors)}
		if n := len(l.proofs); n > 0 {
			want["sink_caught_up_timestamp_seconds"] = float64(l.proofs[n-1].t.UnixNano()) / 1e9
		}
		for name, v := range want {
			if got := now.sum(name, own); got < v-1e-6 || got > v+1e-6 {
				s.failf("at %s: %s: %s of %s is %v, should be %v", w.since(time.Now()), h.name, name, l.q.name, got, v)
			}
		}
		if n := now.sum("sink_errors_total", own, `class="`+string(conn.Network)+`"`); n != float64(l.errors) {
			s.failf("at %s: %s: %v network errors of %s, should be %d", w.since(time.Now()), h.name, n, l.q.name, l.errors)
		}
		for _, kind := range []string{"heartbeat", "other", "foreign", "corrupt", "future"} {
			if got := now.sum("sink_messages_total", own, `kind="`+kind+`"`); got != float64(l.kinds[kind]) {
				s.failf("at %s: %s: %s messages of %s: the monitor says %v, the truth is %d", w.since(time.Now()), h.name, kind, l.q.name, got, l.kinds[kind])
			}
		}
	}
}

// checkProbes compares what is exported of the configuration with what was configured, and finds series
// of probes that are not configured.
func (h *host) checkProbes(now scrape) {
	w, s := h.w, h.s
	at := w.since(time.Now())
	known := make(map[string]bool)
	for p, r := range h.runs {
		known[p.name] = true
		own := `probe="` + p.name + `"`
		page := h.page(r)
		for name, want := range map[string]float64{
			"probe_info": 1, "probe_interval_seconds": r.interval.Seconds(), "probe_expiry_seconds": r.expiry.Seconds(),
			"probe_threshold_seconds": page.Lag.Seconds(), "probe_for_seconds": page.For.Seconds(), "probe_threshold_drop_ratio": page.DropRatio,
		} {
			if got := now.sum(name, own); got != want {
				s.failf("at %s: %s: %s of %s is %v, should be %v", at, h.name, name, p.name, got, want)
			}
		}
		paused, until := 0.0, 0.0
		if t, ok := r.pausedAt(time.Now()); ok && h.injects {
			paused, until = 1, float64(t.to.at.UnixNano())/1e9
		}
		for name, want := range map[string]float64{"probe_paused": paused, "probe_paused_until_timestamp_seconds": until} {
			if got := now.sum(name, own); differ(got, want) {
				s.failf("at %s: %s: %s of %s is %v, should be %v", at, h.name, name, p.name, got, want)
			}
		}
		if got := now.sum("probe_info", own, `round="`+strconv.Itoa(h.round)+`"`); got != 1 {
			s.failf("at %s: %s: the labels of %s are not those of the configuration", at, h.name, p.name)
		}
	}
	for name, samples := range now {
		for labels := range samples {
			if _, rest, ok := strings.Cut(labels, `probe="`); ok {
				if probe, _, _ := strings.Cut(rest, `"`); !known[probe] {
					s.failf("at %s: %s: there is %s{%s}, and no such probe", at, h.name, name, labels)
				}
			}
		}
	}
}

// onlyGrows reports whether a series may never go down.
func onlyGrows(name string) bool {
	return strings.HasSuffix(name, "_total") || strings.HasSuffix(name, "_count") || name == "heartbeat_timestamp_seconds" ||
		name == "sink_caught_up_timestamp_seconds"
}

// outlives reports whether a series goes on when its probe is changed.
func outlives(name string) bool {
	return strings.HasSuffix(name, "_count") || strings.HasSuffix(name, "_sum") || name == "heartbeat_timestamp_seconds"
}

// scrape is all samples by name, without the prefix of all names, and by labels.
type scrape map[string]map[string]float64

// forget takes out series of a probe.
func (s scrape) forget(probe string, which func(name string) bool) {
	for name, samples := range s {
		if which(name) {
			maps.DeleteFunc(samples, func(labels string, _ float64) bool { return hasLabels(labels, `probe="`+probe+`"`) })
		}
	}
}

func (s scrape) set(name, labels string, v float64) {
	if s[name] == nil {
		s[name] = make(map[string]float64)
	}
	s[name][labels] = v
}

func (h *host) scrape() scrape {
	families, err := h.registry.Gather()
	if err != nil {
		h.s.failf("scrape: %v", err)
	}
	out := make(scrape)
	var b strings.Builder
	for _, f := range families {
		name := strings.TrimPrefix(f.GetName(), "lag_monitor_")
		for _, m := range f.Metric {
			b.Reset()
			for i, l := range m.Label {
				if i > 0 {
					b.WriteByte(',')
				}
				b.WriteString(l.GetName())
				b.WriteString(`="`)
				b.WriteString(l.GetValue())
				b.WriteByte('"')
			}
			switch labels := b.String(); {
			case m.Counter != nil:
				out.set(name, labels, m.Counter.GetValue())
			case m.Gauge != nil:
				out.set(name, labels, m.Gauge.GetValue())
			case m.Histogram != nil:
				out.set(name+"_count", labels, float64(m.Histogram.GetSampleCount()))
				out.set(name+"_sum", labels, m.Histogram.GetSampleSum())
			}
		}
	}
	return out
}

// sum adds up the samples of a name that have all these labels.
func (s scrape) sum(name string, labels ...string) (n float64) {
	for all, v := range s[name] {
		if !slices.ContainsFunc(labels, func(l string) bool { return !hasLabels(all, l) }) {
			n += v
		}
	}
	return n
}

// hasLabels reports whether a series has each of some labels, separated by commas.
func hasLabels(all, labels string) bool {
	for l := range strings.SplitSeq(labels, ",") {
		i := strings.Index(all, l)
		if i < 0 || i > 0 && all[i-1] != ',' {
			return false
		}
	}
	return true
}

// checkLag compares lag and timestamp of every lane that has never gone with the record.
func (h *host) checkLag(now scrape) {
	w := h.w
	w.mu.Lock()
	defer w.mu.Unlock()
	for p, r := range h.runs {
		for _, q := range p.outs {
			l := h.listeners[q]
			switch {
			case l == nil:
			case h.injects:
				h.checkOwnLag(now, r, l)
			default:
				h.checkLagOfOthers(now, p, l)
			}
		}
	}
}

func laneKey(p *pipe, q *queue, lane uint32) string {
	return fmt.Sprintf(`lane="%d",probe="%s",sink="%s"`, lane, p.name, q.name)
}

func (h *host) checkStamp(scrape scrape, p *pipe, l *listener, lane uint32) (has bool) {
	w, s := h.w, h.s
	key := laneKey(p, l.q, lane)
	stamp, has := scrape["heartbeat_timestamp_seconds"][key]
	due, want := l.stamps[topKey{h.firstRun(p), lane}]
	switch at := w.since(time.Now()); {
	case has != want:
		s.failf("at %s: %s: timestamp of %s: there is one: %v, should be: %v", at, h.name, key, has, want)
	case want && differ(stamp, float64(due.UnixNano())/1e9):
		s.failf("at %s: %s: timestamp of %s is %v, the newest heartbeat was due at %v", at, h.name, key, stamp, float64(due.UnixNano())/1e9)
	}
	return has
}

func differ(a, b float64) bool { return a-b > 1e-6 || b-a > 1e-6 }

func (h *host) checkOwnLag(scrape scrape, r *run, l *listener) {
	w, s, p := h.w, h.s, r.p
	if len(r.order) == 0 {
		return
	}
	now, phase := time.Now(), r.phase()
	for lane := range r.steadyLanes() {
		key := laneKey(p, l.q, lane)
		steady := true
		for _, f := range append(slices.Clone(h.former[p]), r) {
			// A timestamp from before goes when the first lookup does not find its lane.
			there := len(f.lookups) == 0 || slices.Contains(f.lookups[0].ids, lane)
			// So does one whose lane had gone in a process before, and nobody knows which those were.
			there = there && (h.inherited == nil || !p.laner)
			steady = steady && f.steadyLanes()[lane] && (there || len(h.former[p]) == 0 && h.life == 0)
		}
		hasStamp := false
		if steady {
			hasStamp = h.checkStamp(scrape, p, l, lane)
		}
		lag, hasLag := scrape["lag_seconds"][key]
		t := l.top(r, lane)
		if t.newest == nil {
			if hasLag {
				s.failf("at %s: %s: lag of %s is %v before anything arrived", w.since(now), h.name, key, lag)
			}
			continue
		}
		if want, sure := t.lag(r, phase, now); h.stopped && r.beats[beatKey{lane, t.newest.seq + 1}] == nil {
			continue // there may have been no tick after it
		} else if hasLag != hasStamp && !hasLag {
			s.failf("at %s: %s: no lag of %s", w.since(now), h.name, key)
		} else if far := lag > want.Seconds() && r.mostAt(lane, w.now())-t.newest.seq >= remembered; far {
			continue // the due time of that tick is not remembered any more: in doubt the lag is too large
		} else if hasLag && sure && differ(lag, want.Seconds()) {
			s.failf("at %s: %s: lag of %s is %v, should be %v: the newest is seq %d, due at %s", w.since(now), h.name, key, lag, want.Seconds(), t.newest.seq, w.since(t.newest.due))
		}
	}
}

// checkLagOfOthers is for a process that only listens: of several senders the one that is least behind
// counts.
func (h *host) checkLagOfOthers(scrape scrape, p *pipe, l *listener) {
	w, s, now := h.w, h.s, time.Now()
	want := make(map[uint32]time.Duration)
	for k, t := range l.tops {
		if l.claimed[p] {
			break // the due times of those that are not believed are guessed
		}
		if k.r.p != p || t.newest == nil {
			continue
		}
		lag := max(t.latency, now.Sub(t.due.Add(k.r.interval)))
		if old, ok := want[k.lane]; !ok || lag < old {
			want[k.lane] = lag
		}
	}
	for lane, lag := range want {
		key := laneKey(p, l.q, lane)
		h.checkStamp(scrape, p, l, lane)
		if got, ok := scrape["lag_seconds"][key]; !ok || differ(got, lag.Seconds()) {
			s.failf("at %s: %s: lag of %s is %v (%v), should be %v", w.since(now), h.name, key, got, ok, lag.Seconds())
		}
	}
	var widest, recent time.Duration
	for _, a := range l.ages[p] {
		widest = max(widest, -a.age)
		if now.Sub(a.at) < 5*time.Minute {
			recent = max(recent, -a.age)
		}
	}
	if got := scrape.sum("clock_skew_seconds", fmt.Sprintf(`probe="%s",sink="%s"`, p.name, l.q.name)); got < recent.Seconds()-1e-6 || got > widest.Seconds()+1e-6 {
		s.failf("at %s: %s: the skew of %s at %s is %v, should be between %v and %v", w.since(now), h.name, p.name, l.q.name, got, recent.Seconds(), widest.Seconds())
	}
}

// phase is where in its interval a probe ticks.
func (r *run) phase() time.Duration {
	n := make(map[time.Duration]int)
	var last time.Time
	for _, b := range r.order[max(0, len(r.order)-60):] {
		if !b.sent.at.Equal(last) { // one tick sends to all lanes
			n[time.Duration(b.sent.at.UnixNano())%r.interval]++
		}
		last = b.sent.at
	}
	best := time.Duration(-1)
	for at, count := range n {
		if best < 0 || count > n[best] || count == n[best] && at < best {
			best = at
		}
	}
	if n[best] < 3 {
		return -1
	}
	return best
}

// steadyLanes are the lanes that were there at every lookup since they came.
func (r *run) steadyLanes() map[uint32]bool {
	if !r.p.laner {
		return map[uint32]bool{0: true}
	}
	lanes := maps.Clone(r.lanesSeen)
	for i := 1; i < len(r.lookups); i++ {
		for _, id := range r.lookups[i-1].ids {
			if !slices.Contains(r.lookups[i].ids, id) {
				delete(lanes, id)
			}
		}
	}
	return lanes
}

// lag is the larger of the latency of the newest heartbeat and the age of the first tick after it. It is
// not sure where that tick was skipped and its time does not follow from the phase.
func (t *top) lag(r *run, phase time.Duration, now time.Time) (lag time.Duration, sure bool) {
	b := t.newest
	if n := len(r.pauses); n > 0 && b.sent.before(r.pauses[n-1].from) {
		// What was sent before the last pause does not count any more.
		last := r.lastAt(b.lane, r.pauses[n-1].from).seq
		switch next := r.beats[beatKey{b.lane, last + 1}]; {
		case now.Before(r.pauses[n-1].to.at):
			return t.latency, true
		case next != nil:
			return max(t.latency, now.Sub(next.due)), true
		default:
			return 0, false // the tick after the pause was skipped, or another one before it
		}
	}
	if next := r.beats[beatKey{b.lane, b.seq + 1}]; next != nil {
		return max(t.latency, now.Sub(next.due)), true
	}
	if r.extraTick(b.sent.at, b.sent.at.Add(r.interval)) {
		return 0, false
	}
	if phase < 0 || time.Duration(b.sent.at.UnixNano())%r.interval != phase {
		return 0, false
	}
	if tick := b.sent.at.Add(r.interval); !tick.After(now) {
		return max(t.latency, now.Sub(tick.Add(r.expiry))), true
	}
	return t.latency, true
}

// extraTick reports whether something happened between two instants that makes a probe tick beside its
// phase.
func (r *run) extraTick(from, to time.Time) bool { return r.extraTicks(from, to) > 0 }

// extraTicks counts these things: a sink or its lanes were there at last, or a pause ended.
func (r *run) extraTicks(from, to time.Time) (n int) {
	var causes []mark
	if len(r.lookups) > 0 {
		causes = append(causes, r.lookups[0].mark)
	}
	for _, t := range r.pauses {
		causes = append(causes, t.to)
	}
	for _, q := range append(slices.Clone(r.p.outs), r.p.dead) {
		l := r.h.listeners[q]
		if q == nil || l == nil {
			continue
		}
		if i := slices.IndexFunc(l.ready, func(m mark) bool { return r.joined.before(m) }); i >= 0 {
			causes = append(causes, l.ready[i])
		}
	}
	for _, m := range causes {
		if !m.at.Before(from) && !m.at.After(to) {
			n++
		}
	}
	return n
}
