package faults_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"syscall"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/servers"
)

// soakFault is one thing that can be broken. begin breaks it and returns what mends it, or nil when nothing is left
// to mend.
type soakFault struct {
	name  string
	on    string // what it breaks: no two faults break the same at once
	begin func() (mend func())
}

// monitorItself is what faults break that concern the whole daemon.
const monitorItself = "monitor"

// breakSomething breaks one or two things for some seconds.
func (s *soak) breakSomething() {
	s.t.Helper()
	longest := max(5*time.Second, min(30*time.Second, *soakFor/20))
	gap := max(2*time.Minute, min(10*time.Minute, *soakFor/8))
	var chosen []*soakFault
	switch {
	case time.Since(s.killed) > gap:
		chosen = append(chosen, s.draw("ends", s.endings, ""))
	case s.rng.IntN(3) == 0:
		chosen = append(chosen, s.draw("monitor", s.ofMonitor, ""))
	default:
		chosen = append(chosen, s.draw("pipelines", s.ofPipelines, ""))
	}
	if s.rng.IntN(2) == 0 {
		chosen = append(chosen, s.draw("pipelines", s.ofPipelines, chosen[0].on))
	}
	var mends []func()
	for _, f := range chosen {
		s.logf("%s: %s", f.on, f.name)
		s.done = append(s.done, f.name)
		if mend := f.begin(); mend != nil {
			mends = append(mends, mend)
		}
		wait(s.t, time.Second+time.Duration(s.rng.Int64N(int64(longest))))
	}
	for _, mend := range mends {
		mend()
	}
}

// draw takes a fault off a deck, which is shuffled anew when it is used up, so that all have their turn.
func (s *soak) draw(name string, deck func() []*soakFault, not string) *soakFault {
	for {
		for i, f := range s.decks[name] {
			if f.on != not {
				s.decks[name] = append(s.decks[name][:i:i], s.decks[name][i+1:]...)
				return f
			}
		}
		more := deck()
		s.rng.Shuffle(len(more), func(i, j int) { more[i], more[j] = more[j], more[i] })
		s.decks[name] = append(s.decks[name], more...)
	}
}

// endings are the ways in which the process ends.
func (s *soak) endings() []*soakFault {
	return []*soakFault{
		{"SIGKILL", monitorItself, func() func() { s.restart(s.daemon.Kill, false); return nil }},
		{"SIGTERM", monitorItself, func() func() { s.restart(s.daemon.Stop, true); return nil }},
	}
}

// ofMonitor lists what happens to the daemon while it lives.
func (s *soak) ofMonitor() []*soakFault {
	probe := func() *soaked { all := s.probes(); return all[s.rng.IntN(len(all))] }
	one := func(name string, begin func() func()) *soakFault { return &soakFault{name, monitorItself, begin} }
	return []*soakFault{
		one("SIGSTOP", func() func() { s.daemon.Pause(); return s.daemon.Resume }),
		one("reload, nothing changed", func() func() {
			for range 5 {
				s.reload(s.config())
			}
			return nil
		}),
		one("reload, other labels", func() func() {
			s.teams[probe().name] = fmt.Sprint("team", s.rng.IntN(100))
			s.reload(s.config())
			return nil
		}),
		one("reload, a probe changed", func() func() { s.change(probe()); return nil }),
		one("reload, broken file", func() func() {
			s.daemon.configure(s.t, strings.Replace(s.config(), "probes:\n", "probes: [\n", 1))
			s.signalReload()
			s.await("the broken file is refused", func(sc servers.Scrape) bool { return sc.Sum("config_last_reload_successful") == 0 })
			return func() { s.reload(s.config()) }
		}),
		one("keys rotated", func() func() {
			// The next one signs, and the two before it stay known.
			last := len(s.secrets) - 1
			s.secrets = append([]string{s.secrets[last]}, s.secrets[:last]...)
			s.reload(s.config())
			return nil
		}),
	}
}

func (s *soak) signalReload() { s.daemon.Signal(syscall.SIGHUP) }

// ofPipelines lists what happens to the pipelines and to the links to them.
func (s *soak) ofPipelines() (all []*soakFault) {
	for _, p := range s.pipes {
		one := func(name string, begin func() func()) { all = append(all, &soakFault{name, p.name, begin}) }
		// A side is drawn when it happens: the head, the destination or both.
		link := func(name string, faults servers.Faults, cut bool) {
			one(name, func() func() {
				sides := p.side(s.rng.IntN(3))
				for _, side := range sides {
					side.Set(faults)
					if cut {
						side.Cut()
					}
				}
				return func() {
					for _, side := range sides {
						side.Set(servers.Faults{})
					}
				}
			})
		}
		link("link: packets vanish", servers.Faults{Silent: true}, false)
		link("link: accept, then silent", servers.Faults{Silent: true}, true)
		link("link: refused", servers.Faults{Refuse: true}, true)
		link("link: slow", servers.Faults{Latency: 400 * time.Millisecond, Bandwidth: 20_000}, false)
		link("link: answers lost", servers.Faults{SilentDown: true}, false)
		one("link: half-open", func() func() {
			for _, side := range p.side(s.rng.IntN(3)) {
				side.HalfOpen()
			}
			return nil
		})
		one("pipeline stops", func() func() { p.relay.hold(); return p.relay.resume })
		one("burst of others", func() func() { s.burst(p); return nil })
		if p.broker != nil {
			one("broker: SIGSTOP", func() func() { p.broker.Pause(); return p.broker.Resume })
			if !p.volatile {
				one("broker: SIGKILL", func() func() { p.broker.Kill(); return p.broker.Start })
				one("broker: restart", func() func() { p.broker.Stop(); return p.broker.Start })
			}
		}
		if p.more != nil {
			all = append(all, p.more(s, p)...)
		}
	}
	return all
}

// ofKinesis lists what the service itself does wrong, to the monitor alone.
func ofKinesis(_ *soak, p *soakPipe) []*soakFault {
	k := p.server.(*kinesisRow)
	heal := func() { k.head.Heal(); k.dest.Heal() }
	each := func(name string, f func(side *servers.KinesisProxy, operation string)) *soakFault {
		return &soakFault{name, p.name, func() func() {
			f(k.head, "PutRecords")
			f(k.dest, "GetRecords")
			return heal
		}}
	}
	return []*soakFault{
		each("service: throttled", func(side *servers.KinesisProxy, operation string) { side.Throttle(operation, 1e6) }),
		each("service: errors", func(side *servers.KinesisProxy, operation string) {
			for range 20 {
				side.Inject(servers.KinesisFault{Operation: operation, Times: 1, Status: http.StatusInternalServerError, Type: "InternalFailure"})
				side.Inject(servers.KinesisFault{Operation: operation, Times: 1, Lost: true})
				side.Inject(servers.KinesisFault{Operation: operation, Times: 1, Status: http.StatusServiceUnavailable})
			}
		}),
		{"service: iterators expire", p.name, func() func() { k.dest.ExpireIterators(); return k.dest.ExpireIterators }},
		{"service: one record in two refused", p.name, func() func() { k.head.RejectRecords(50); return heal }},
	}
}

// ofHTTP lists what the head of an HTTP pipeline does wrong.
func ofHTTP(s *soak, p *soakPipe) []*soakFault {
	head := p.server.(*httpRow).head
	return []*soakFault{
		{"head: restart", p.name, func() func() { head.stop(); return func() { head.start(s.t) } }},
		{"head: wrong answers", p.name, func() func() { head.behave(badAnswers()); return func() { head.behave(nil) } }},
		{"head: no answers", p.name, func() func() {
			head.behave(func(int) answer { return answer{name: "nothing", takes: true} })
			return func() { head.behave(nil) }
		}},
	}
}

func (p *soakPipe) side(n int) []*servers.FaultProxy {
	return [][]*servers.FaultProxy{{p.headProxy}, {p.destProxy}, {p.headProxy, p.destProxy}}[n]
}

// burst puts messages of others into the destination.
func (s *soak) burst(p *soakPipe) {
	ctx, cancel := context.WithTimeout(s.t.Context(), 20*time.Second)
	defer cancel()
	for n := range 500 {
		body := fmt.Sprintf(`{"order": "%d of %d", "text": %q}`, n, len(s.done), strings.Repeat("nothing of interest ", 20))
		// What fails may be there nevertheless: the queue is counted later.
		_ = p.dest.put(ctx, n%2*(p.lanes-1), []byte(body))
	}
}
