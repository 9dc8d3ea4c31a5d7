package faults_test

import (
	"flag"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/heartbeat"
	"github.com/lag-monitor/lag-monitor/internal/journal"
	"github.com/lag-monitor/lag-monitor/internal/servers"
)

var (
	soakFor  = flag.Duration("soak", 0, "how long TestSoak goes on breaking things; 0 leaves it out")
	soakSeed = flag.Uint64("soak-seed", 0, "the seed of TestSoak, as an earlier run has printed it; 0 draws one")
)

// soakJob is the name under which Prometheus scrapes the daemon of the soak.
const soakJob = "soak"

// soak is one daemon with several pipelines, and all that is known of them.
type soak struct {
	t       *testing.T
	rng     *rand.Rand
	pipes   []*soakPipe
	daemon  *daemon
	storage string
	began   time.Time
	done    []string // faults, in the order in which they began

	// Of the configuration.
	secrets  []string // paths of the keys' files, the one that signs first
	teams    map[string]string
	timeouts map[string]time.Duration

	decks   map[string][]*soakFault
	killed  time.Time // when the process last ended
	series  []resources
	settled time.Time // the last reckoning
	totals  map[string]total
	count   int // of reckonings

	mu       sync.Mutex
	process  int
	changing map[string]bool // probes whose counters begin anew at any moment
	stamps   map[string]float64
	before   []stampsAt // of the last scrapes
	messages map[string]float64
}

// stampsAt are the timestamps that a scrape showed, and when.
type stampsAt struct {
	at     time.Time
	stamps map[string]float64
}

// soakPipe is one pipeline, which several probes share.
type soakPipe struct {
	*pipeline
	name      string
	relay     *relay
	truth     *truth
	intervals []time.Duration // of its probes; the last one's heartbeats are held for a while
	probes    []*soaked
	forgets   bool // what came while nobody kept a journal cannot be read again
	volatile  bool // the broker loses its data when it ends
	lanes     int  // 1 or 2
	more      func(s *soak, p *soakPipe) []*soakFault

	taken int // messages of the relay that are in the truth
	base  *sinkMarks
}

// sinkMarks are what a sink and its queue had at the last reckoning.
type sinkMarks struct{ heartbeats, corrupt, others int }

// soakExpiry is how long the last probe of a pipeline asks it to hold heartbeats.
const soakExpiry = 2 * time.Second

// soakPipes starts the pipelines.
func soakPipes(t *testing.T) []*soakPipe {
	ms := func(n ...int) (ds []time.Duration) {
		for _, n := range n {
			ds = append(ds, time.Duration(n)*time.Millisecond)
		}
		return ds
	}
	r := &row{name: "soak"}
	k := servers.Kafka(t, servers.KafkaOptions{Proxies: 2, Config: backSoon})
	return []*soakPipe{
		{name: "kafka", lanes: 2, pipeline: kafkaPipeline(t, r, k, k.Proxies, ""), intervals: ms(250, 500, 1000)},
		{name: "nats", lanes: 1, pipeline: natsPipeline(t, r, servers.StartNATS(t, natsBinary, "", ""), ""), intervals: ms(200, 500, 1000)},
		{
			// It has to hold all data in memory: written to disk again and again, they would take all of the server's time.
			name: "kinesis", lanes: 2, pipeline: kinesisPipeline(t, r, servers.KinesisInMemory(t)), intervals: ms(1000, 2000, 1500), volatile: true,
			more: ofKinesis,
		},
		{name: "http", lanes: 1, pipeline: httpPipeline(t, r), intervals: ms(200, 500, 1000), forgets: true, more: ofHTTP},
	}
}

// TestSoak lets one daemon watch several pipelines whose relays drop, delay, repeat, reorder and damage heartbeats,
// breaks one or two things at a time at random, and holds every count against the queues, and what the
// daemon takes at the end against what it took at first.
func TestSoak(t *testing.T) {
	if *soakFor == 0 {
		t.Log("left out: make soak breaks things at random for an hour, SOAK=5m for five minutes")
		return
	}
	servers.Need(t)
	seed := *soakSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	s := &soak{
		t: t, rng: rand.New(rand.NewPCG(seed, 1)), storage: t.TempDir(), teams: map[string]string{}, timeouts: map[string]time.Duration{},
		changing: map[string]bool{}, stamps: map[string]float64{}, messages: map[string]float64{}, totals: map[string]total{},
		decks: map[string][]*soakFault{},
	}
	s.logf("%v of faults; -soak-seed %d draws the same ones", *soakFor, seed)
	keys := s.makeKeys(4)
	w := startWatch(t)
	s.pipes = soakPipes(t)
	for i, p := range s.pipes {
		p.truth = newTruth()
		p.truth.keys = keys
		p.relay = &relay{head: p.head, dest: p.dest, plan: unreliable(rand.New(rand.NewPCG(seed, uint64(2+i))), keys)}
		t.Cleanup(p.relay.start())
		for n := range p.intervals {
			p.probes = append(p.probes, &soaked{name: fmt.Sprintf("%s_%d", p.name, n+1), pipe: p, lives: []*account{{began: time.Now(), first: true}}})
		}
	}
	s.daemon = startDaemon(t, s.config(), true, nil, "--storage.path="+s.storage, "--shutdown.grace=2s", "--web.enable-pprof")
	s.daemon.mu.Lock()
	s.daemon.each = s.look
	s.daemon.mu.Unlock()
	w.set(t, soakJob, s.daemon.addr)
	s.await("heartbeats come out of each pipeline", func(sc servers.Scrape) bool { return s.alive(sc, 3) })
	w.knows(t, soakJob)
	s.began, s.killed, s.settled = time.Now(), time.Now(), time.Now()

	for s.more() {
		s.becomeWell()
		s.quiet(5 * time.Second)
		if time.Since(s.settled) > min(*soakFor/4, 3*time.Minute) {
			s.reckon()
			s.becomeWell()
		}
		if s.more() {
			s.breakSomething()
		}
	}
	s.becomeWell()
	s.quiet(10 * time.Second)
	if pages := w.pages(t, soakJob, s.began); pages != 0 {
		t.Errorf("%d pages; no lag was that long", pages)
	}
	w.set(t, soakJob, "")
	said := s.reckon()
	s.daemon.unwatch()
	if n := said.Sum("journal_errors_total"); n != 0 {
		t.Errorf("the journal could not be read or written %v times", n)
	}
	wrong := leaks(s.series)
	for _, l := range wrong {
		t.Error(l)
	}
	if len(wrong) > 0 {
		text, err := get(t.Context(), "http://"+s.daemon.addr+"/debug/pprof/goroutine?debug=1")
		t.Logf("the daemon's goroutines (%v):\n%.8000s", err, text)
	}
	for _, c := range s.daemon.complaints() {
		t.Error(c)
	}
	s.report()
}

// more reports whether the time is not over, and all was right so far.
func (s *soak) more() bool {
	if s.t.Failed() || len(s.daemon.complaints()) > 0 {
		return false
	}
	return time.Since(s.began) < *soakFor
}

// logf writes at once: without it an hour would pass in silence.
func (s *soak) logf(format string, args ...any) {
	at := time.Duration(0)
	if !s.began.IsZero() {
		at = time.Since(s.began).Round(time.Second)
	}
	fmt.Printf("soak %7v: %s\n", at, fmt.Sprintf(format, args...))
}

// makeKeys writes the files of so many keys, and returns a keyring that knows all of them.
func (s *soak) makeKeys(n int) *heartbeat.Keyring {
	dir := s.t.TempDir()
	var all [][]byte
	for i := range n {
		secret := fmt.Sprintf("the secret number %d, which is long enough", i)
		path := filepath.Join(dir, fmt.Sprint("key", i))
		writeFile(s.t, path, secret)
		s.secrets, all = append(s.secrets, path), append(all, []byte(secret))
	}
	return heartbeat.NewKeyring(all...)
}

// unreliable is the plan of a relay that does everything wrong at times.
func unreliable(rng *rand.Rand, keys *heartbeat.Keyring) func(int, message) plan {
	return func(_ int, m message) plan {
		due, deadline := dueOf(keys, m.body)
		if due.IsZero() {
			return forward
		}
		// A moment later, so that nothing comes before it is due.
		p := plan{copies: 1, delay: max(0, time.Until(due)) + 2*time.Millisecond + time.Duration(rng.IntN(150))*time.Millisecond}
		switch n := rng.IntN(100); {
		case n < 2:
			return plan{}
		case n < 5:
			p.copies = 2 + rng.IntN(2)
		case n < 8:
			p.swap = true
		case n < 10:
			p.change = damage
		case n < 12:
			p.delay = max(0, time.Until(deadline)) + time.Duration(500+rng.IntN(2500))*time.Millisecond
		}
		return p
	}
}

// config is the daemon's configuration as it should be now. Three keys stay in it, since what was signed with the one before
// may still be on its way when the process ends.
func (s *soak) config() string {
	var keys []string
	for _, path := range s.secrets[:3] {
		keys = append(keys, fmt.Sprintf("{file: %q}", path))
	}
	var b strings.Builder
	fmt.Fprintf(&b, "global: {send_timeout: 2s, page: {lag: 90s}, key: [%s]}\nsinks:\n", strings.Join(keys, ", "))
	for _, p := range s.pipes {
		fmt.Fprintf(&b, "  %s: {%s}\n", p.name, p.sink)
	}
	b.WriteString("probes:\n")
	for _, p := range s.pipes {
		for n, probe := range p.probes {
			expiry := time.Duration(0)
			if n == len(p.probes)-1 {
				expiry = soakExpiry
			}
			fmt.Fprintf(&b, "  %s: {interval: %v, expiry: %v, timeout: %v, ttl: 10m, labels: {team: %s}, inject: {%s}, sinks: [%s]}\n", probe.name, p.intervals[n], expiry,
				orElse(s.timeouts[probe.name], 4*time.Second), orElse(s.teams[probe.name], "one"), p.inject, p.name)
		}
	}
	return b.String()
}

func (s *soak) probes() (all []*soaked) {
	for _, p := range s.pipes {
		all = append(all, p.probes...)
	}
	return all
}

// look sees what must hold in every scrape, and keeps it for the next reckoning.
func (s *soak) look(began time.Time, sc servers.Scrape) (wrong []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ratchet := func(name string, known map[string]float64, labels ...string) {
		for _, e := range sc.Find(name) {
			key := ""
			for _, l := range labels {
				key += " " + e.Labels[l]
			}
			if before := known[key]; e.Value < before {
				wrong = append(wrong, fmt.Sprintf("%s of%s went back from %v to %v", name, key, before, e.Value))
			}
			known[key] = e.Value
		}
	}
	ratchet("heartbeat_timestamp_seconds", s.stamps, "probe", "sink", "lane")
	s.before = append(s.before, stampsAt{time.Now(), maps.Clone(s.stamps)})
	s.before = s.before[max(0, len(s.before)-100):]
	ratchet("sink_messages_total", s.messages, "sink", "kind")
	for _, p := range s.probes() {
		if s.changing[p.name] || len(sc.Find("heartbeats_in_flight", "probe", p.name)) == 0 {
			continue
		}
		l := p.lives[len(p.lives)-1]
		f := figuresOf(began, sc, p.name)
		if !l.last.at.IsZero() {
			for _, name := range f.wentBackFrom(l.last) {
				wrong = append(wrong, fmt.Sprintf("%s: %s", p.name, name))
			}
		}
		l.scrapes = append(l.scrapes, f)
		l.last = f
	}
	return wrong
}

// await waits until the daemon says something.
func (s *soak) await(what string, ok func(servers.Scrape) bool) servers.Scrape {
	s.t.Helper()
	sc, _ := s.daemon.await(s.t, what, patience, ok)
	return sc
}

// alive reports whether each probe has received so many heartbeats in time.
func (s *soak) alive(sc servers.Scrape, n float64) bool {
	for _, p := range s.probes() {
		if sc.Sum("heartbeats_received_total", "probe", p.name, "timing", "on_time") < n {
			return false
		}
	}
	return true
}

// becomeWell waits until every sink reads, every head accepts and every lane has caught up. Their relays do wrong all
// the time, so it is enough to have seen each of them well once.
func (s *soak) becomeWell() {
	s.t.Helper()
	const near = 2.5
	before := map[string]float64{}
	well := map[string]bool{}
	first := true
	began := time.Now()
	s.await("all is well", func(sc servers.Scrape) bool {
		all := true
		for _, p := range s.probes() {
			accepted := sc.Sum("heartbeats_sent_total", "probe", p.name, "result", "success")
			if first {
				before[p.name] = accepted
			}
			if accepted < before[p.name]+2 {
				all = false
			}
			lanes := sc.Find("lag_seconds", "probe", p.name)
			for _, e := range lanes {
				key := p.name + " " + e.Labels["lane"]
				if well[key] = well[key] || e.Value < near; !well[key] {
					all = false
				}
			}
			if len(lanes) == 0 {
				all = false
			}
		}
		first = false
		return all && int(sc.Sum("sink_up")) == len(s.pipes)
	})
	s.logf("all is well after %.1f s", time.Since(began).Seconds())
}

// quiet leaves everything alone for a while, and then measures what the daemon takes.
func (s *soak) quiet(d time.Duration) {
	s.t.Helper()
	wait(s.t, d)
	sc := s.await("a scrape", func(servers.Scrape) bool { return true })
	one := func(name string) float64 {
		if len(sc[name]) == 0 {
			s.t.Fatalf("there is no %s", name)
		}
		return sc[name][0].Value
	}
	beats := 0
	for _, p := range s.pipes {
		beats += p.relay.counts()
	}
	s.series = append(s.series, resources{
		at: time.Since(s.began), process: s.process, goroutines: int(one("go_goroutines")), files: int(one("process_open_fds")),
		memory: one("process_resident_memory_bytes"), beats: beats, faults: len(s.done),
	})
}

// reckon ends the injection for a moment, from outside, until every outcome is known and read, and compares.
func (s *soak) reckon() servers.Scrape {
	s.t.Helper()
	refused := func(sc servers.Scrape, probe string) float64 {
		return sc.Sum("heartbeats_sent_total", "probe", probe, "result", "failure")
	}
	before := s.await("a scrape", func(servers.Scrape) bool { return true })
	for _, p := range s.pipes {
		p.headProxy.Set(servers.Faults{Refuse: true})
	}
	ended := func(sc servers.Scrape) bool {
		for _, p := range s.pipes {
			p.headProxy.Cut()
		}
		for _, p := range s.probes() {
			if refused(sc, p.name) < refused(before, p.name)+2 {
				return false
			}
		}
		return sc.Sum("heartbeats_in_flight") == 0
	}
	s.await("nothing is sent any more, and all outcomes are known", ended)
	for _, p := range s.pipes {
		p.relay.flush()
		s.read(p)
	}
	now := float64(time.Now().UnixMilli()) / 1000
	said := s.await("the sinks have read everything", func(sc servers.Scrape) bool {
		for _, e := range sc.Find("sink_caught_up_timestamp_seconds") {
			if e.Value <= now {
				return false
			}
		}
		return int(sc.Sum("sink_up")) == len(s.pipes) && sc.Sum("heartbeats_in_flight") == 0
	})
	for _, p := range s.pipes {
		p.headProxy.Set(servers.Faults{})
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.count++
	for _, p := range s.pipes {
		s.compare(p, said)
	}
	s.settled = time.Now()
	s.logf("reckoned: %d heartbeats, %d dropped", int(said.Sum("heartbeats_sent_total", "result", "success")), int(said.Sum("heartbeats_dropped_total")))
	return said
}

// read takes what is in the queues of a pipeline over into its truth.
func (s *soak) read(p *soakPipe) {
	s.t.Helper()
	for deadline := time.Now().Add(patience); ; wait(s.t, 50*time.Millisecond) {
		head, err := p.head.all(s.t.Context())
		read, idle := p.relay.idle()
		if err == nil && idle && len(read) >= len(head) {
			p.truth.add(read[p.taken:], true)
			p.taken = len(read)
			break
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("%s: the relay has read %d of %d messages, idle %v (%v)", p.name, len(read), len(head), idle, err)
		}
	}
	dest, err := p.dest.all(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	p.truth.add(dest, false)
	p.truth.acked(p.relay)
}

// compare holds what the daemon says of a pipeline against its truth.
func (s *soak) compare(p *soakPipe, said servers.Scrape) {
	s.t.Helper()
	wrong := func(format string, args ...any) { s.t.Helper(); s.t.Errorf(format, args...) }
	beats := p.truth.byProbe()
	for _, probe := range p.probes {
		l := probe.lives[len(probe.lives)-1]
		l.last = figuresOf(l.last.began, said, probe.name)
		s.totals[probe.name] = probe.reckon(beats[probe.name], wrong)
		newest := map[string]time.Time{}
		for _, b := range beats[probe.name] {
			if lane := fmt.Sprint(b.Lane); b.copies > 0 && b.Due().After(newest[lane]) {
				newest[lane] = b.Due()
			}
		}
		for _, e := range said.Find("heartbeat_timestamp_seconds", "probe", probe.name) {
			if d := e.Value - float64(newest[e.Labels["lane"]].UnixNano())/1e9; math.Abs(d) > 0.001 {
				wrong("%s, lane %s: the timestamp differs by %v s from that of the newest heartbeat", probe.name, e.Labels["lane"], d)
			}
		}
	}
	kind := func(k string) int { return int(said.Sum("sink_messages_total", "sink", p.name, "kind", k)) }
	copies := 0
	for _, b := range p.truth.beats {
		copies += b.copies
	}
	is := sinkMarks{heartbeats: copies - kind("heartbeat"), corrupt: p.truth.corrupt - kind("corrupt"), others: p.truth.others - kind("other")}
	if p.base == nil && s.process == 0 {
		p.base = &sinkMarks{}
	}
	// A new process reads some again, and has not seen what came before.
	if p.base != nil && is != *p.base {
		wrong("%s: the queue has %+v messages more than the daemon has seen; before, it was %+v", p.name, is, *p.base)
	}
	p.base = &is
	for _, k := range []string{"foreign", "future"} {
		if n := kind(k); n != 0 {
			wrong("%s: %d messages of kind %s", p.name, n, k)
		}
	}
}

// restart ends the process and starts it again, with what it has left in its journal. When it was not told, the journal
// is as old as its last writing.
func (s *soak) restart(end func(), told bool) {
	s.t.Helper()
	s.await("a last scrape", func(servers.Scrape) bool { return true })
	end()
	ended := time.Now()
	copied := s.t.TempDir()
	if err := os.CopyFS(copied, os.DirFS(s.storage)); err != nil {
		s.t.Fatal(err)
	}
	j, st, err := journal.Open(copied)
	if err != nil {
		s.t.Fatal(err)
	}
	if err := j.Close(); err != nil || st.Lost != nil {
		s.t.Fatal(err, st.Lost)
	}
	if age := ended.Sub(st.At); age > keepEvery+5*time.Second { // a busy machine writes late
		s.t.Errorf("the journal was %v old", age)
	}
	left := leftBehind(st)
	// What the process has said before it ended may still be on its way to look.
	s.daemon.mu.Lock()
	s.mu.Lock()
	s.process++
	if !told {
		// A timestamp may begin where it was when the journal was written.
		for i, b := range slices.Backward(s.before) {
			if b.at.Before(st.At.Add(-time.Second)) || i == 0 {
				s.stamps = maps.Clone(b.stamps)
				break
			}
		}
	}
	s.messages = map[string]float64{}
	for _, p := range s.pipes {
		p.base = nil
		for _, probe := range p.probes {
			l := probe.lives[len(probe.lives)-1]
			l.ended, l.left, l.written = ended, left[probe.name], st.At
			next := &account{began: time.Now(), taken: left[probe.name]}
			if next.taken == nil {
				next.taken = map[beatID]bool{}
			}
			probe.lives = append(probe.lives, next)
		}
	}
	s.mu.Unlock()
	s.daemon.mu.Unlock()
	wait(s.t, time.Duration(s.rng.IntN(2000))*time.Millisecond)
	s.daemon.Start()
	s.killed = time.Now()
}

// reload has the daemon read its configuration, and waits until it has.
func (s *soak) reload(config string) {
	s.t.Helper()
	when := func(sc servers.Scrape) float64 { return sc.Sum("config_last_reload_success_timestamp_seconds") }
	before := s.await("a scrape", func(servers.Scrape) bool { return true })
	s.daemon.configure(s.t, config)
	s.signalReload()
	s.await("the configuration is read", func(sc servers.Scrape) bool {
		return when(sc) > when(before) && sc.Sum("config_last_reload_successful") == 1
	})
}

// change starts a probe anew by a change of its definition.
func (s *soak) change(p *soaked) {
	s.t.Helper()
	s.await("a last scrape", func(servers.Scrape) bool { return true })
	s.mu.Lock()
	s.changing[p.name] = true
	l := p.lives[len(p.lives)-1]
	began := time.Now()
	l.ended, l.unchecked = began, true
	s.mu.Unlock()
	if s.timeouts[p.name] == 0 {
		s.timeouts[p.name] = 5 * time.Second
	} else {
		delete(s.timeouts, p.name)
	}
	s.reload(s.config())
	s.mu.Lock()
	p.lives = append(p.lives, &account{began: began, inherits: true})
	delete(s.changing, p.name)
	s.mu.Unlock()
}

// report prints what the daemon took over the time, and the accounts.
func (s *soak) report() {
	var b strings.Builder
	fmt.Fprintf(&b, "%8s %8s %11s %6s %8s %11s %7s\n", "time", "process", "goroutines", "files", "RSS MB", "heartbeats", "faults")
	every := (len(s.series) + 29) / 30
	for i, r := range s.series {
		if i%every == 0 || i == len(s.series)-1 {
			fmt.Fprintf(&b, "%8v %8d %11d %6d %8.1f %11d %7d\n", r.at.Round(time.Second), r.process+1, r.goroutines, r.files, r.memory/1e6, r.beats, r.faults)
		}
	}
	fmt.Fprintf(&b, "\n%-12s %5s %10s %8s %8s %6s %8s %6s %12s %13s\n", "probe", "lives", "heartbeats", "lost", "on time", "late", "dropped", "doubt", "false drops", "missed drops")
	var all total
	for _, p := range s.probes() {
		y := s.totals[p.name]
		fmt.Fprintf(&b, "%-12s %5d %10d %8d %8d %6d %8d %6d %12d %13d\n", p.name, len(p.lives), y.beats, y.lost, y.onTime, y.late, y.dropped, y.doubted, y.falseDrops, y.missedDrops)
		all.beats, all.lost, all.onTime, all.late = all.beats+y.beats, all.lost+y.lost, all.onTime+y.onTime, all.late+y.late
		all.dropped, all.doubted, all.falseDrops, all.missedDrops = all.dropped+y.dropped, all.doubted+y.doubted, all.falseDrops+y.falseDrops, all.missedDrops+y.missedDrops
	}
	fmt.Fprintf(&b, "%-12s %5d %10d %8d %8d %6d %8d %6d %12d %13d\n", "all", s.process+1, all.beats, all.lost, all.onTime, all.late, all.dropped, all.doubted, all.falseDrops, all.missedDrops)
	names := map[string]int{}
	for _, f := range s.done {
		names[f]++
	}
	var kinds []string
	for f, n := range names {
		kinds = append(kinds, fmt.Sprintf("%d %s", n, f))
	}
	slices.Sort(kinds)
	fmt.Fprintf(&b, "\n%d faults of %d kinds, %d processes, %d scrapes, %d reckonings: %s\n", len(s.done), len(kinds), s.process+1, s.daemon.scrapes, s.count, strings.Join(kinds, ", "))
	fmt.Print(b.String())
}
