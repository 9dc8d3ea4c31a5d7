package web

import (
	"strings"
	"testing"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/monitor"
)

// wellProbe is a probe that is well, with a hop, a destination and a queue of dead letters.
func wellProbe() monitor.ProbeStatus {
	pair := func(sink, role string) monitor.PairStatus {
		return monitor.PairStatus{Sink: sink, Role: role, Lag: 1, Lanes: []monitor.LaneStatus{{Seen: true, Lag: 1, Last: now}}}
	}
	return monitor.ProbeStatus{
		Name: "p", Head: "http", Timeout: 60, PageLag: 300,
		PageLimits: &monitor.LimitStatus{Lag: 300, For: 120, DropRatio: 0.01}, TicketLimits: &monitor.LimitStatus{Lag: 30},
		Sinks: []monitor.PairStatus{pair("mid", roleHop), pair("out", ""), pair("dlq", roleDeadLetter)},
	}
}

func TestJudge(t *testing.T) {
	at := now.Add(-10 * time.Minute)
	for _, c := range []struct {
		name   string
		change func(*monitor.ProbeStatus, map[string]bool) // map: the sinks that do not read
		state  string
		severity
		users, fault string
		since        time.Time
	}{
		{"well", func(*monitor.ProbeStatus, map[string]bool) {}, "on time", fine, feelNothing, "", time.Time{}},
		{"lag", func(p *monitor.ProbeStatus, _ map[string]bool) { p.Sinks[1].Lag, p.PageLimits.LagSince = 301, at }, "lagging", trouble, feelIt, inPipeline, at},
		{"lag in one lane, of which the sum does not tell", func(p *monitor.ProbeStatus, _ map[string]bool) { p.Sinks[1].Lag, p.Sinks[1].Lanes[0].Lag = 0, 301 }, "lagging", trouble, feelIt, inPipeline, time.Time{}},
		{"lag at the limit", func(p *monitor.ProbeStatus, _ map[string]bool) { p.Sinks[1].Lag, p.TicketLimits = 300, nil }, "on time", fine, feelNothing, "", time.Time{}},
		{"lag at a hop is no lag", func(p *monitor.ProbeStatus, _ map[string]bool) { p.Sinks[0].Lag = 301 }, "on time", fine, feelNothing, "", time.Time{}},
		{"lag because the head refuses", func(p *monitor.ProbeStatus, _ map[string]bool) { p.Sinks[1].Lag, p.Failing = 301, true }, "lagging", trouble, feelIt, inHead, time.Time{}},
		{"lag without a limit: the timeout", func(p *monitor.ProbeStatus, _ map[string]bool) {
			p.Sinks[1].Lag, p.PageLag, p.PageLimits, p.TicketLimits = 61, 0, nil, nil
		}, "lagging", trouble, feelIt, inPipeline, time.Time{}},
		{"drops", func(p *monitor.ProbeStatus, _ map[string]bool) { p.PageLimits.DropsSince = at }, "losing", trouble, feelIt, inPipeline, at},
		{"lag is worse than drops", func(p *monitor.ProbeStatus, _ map[string]bool) { p.PageLimits.DropsSince, p.Sinks[1].Lag = at, 301 }, "lagging", trouble, feelIt, inPipeline, time.Time{}},
		{"blind", func(_ *monitor.ProbeStatus, b map[string]bool) { b["out"] = true }, "blind", trouble, feelUnknown, inSight, at},
		{"blind and far behind: nobody can tell", func(p *monitor.ProbeStatus, b map[string]bool) {
			p.Sinks[1].Lag, p.PageLimits.LagSince, b["out"] = 999, at, true
		}, "blind", trouble, feelUnknown, inSight, at},
		{"one is blind, the other lags", func(p *monitor.ProbeStatus, b map[string]bool) {
			p.Sinks = append(p.Sinks, p.Sinks[1])
			p.Sinks[3].Sink, p.Sinks[3].Lag, b["out"] = "out2", 301, true
		}, "lagging", trouble, feelIt, inPipeline, time.Time{}},
		{"the hop is blind", func(_ *monitor.ProbeStatus, b map[string]bool) { b["mid"] = true }, "half blind", ticket, feelNothing, inSight, at},
		{"dead letters are not read", func(_ *monitor.ProbeStatus, b map[string]bool) { b["dlq"] = true }, "half blind", ticket, feelNothing, inSight, at},
		{"refused, not yet felt", func(p *monitor.ProbeStatus, _ map[string]bool) { p.Failing = true }, "refused", ticket, feelNothing, inHead, time.Time{}},
		{"refused, and nobody listens", func(p *monitor.ProbeStatus, _ map[string]bool) { p.Failing, p.Sinks = true, nil }, "refused", trouble, feelUnknown, inHead, time.Time{}},
		{"slow", func(p *monitor.ProbeStatus, _ map[string]bool) { p.Sinks[1].Lag, p.TicketLimits.LagSince = 31, at }, "slow", ticket, feelNothing, inPipeline, at},
		{"a few drops", func(p *monitor.ProbeStatus, _ map[string]bool) { p.TicketLimits.DropsSince = at }, "losing", ticket, feelIt, inPipeline, at},
		{"stuck, not yet felt", func(p *monitor.ProbeStatus, _ map[string]bool) {
			p.Stuck = &monitor.StuckStatus{From: "mid", To: "out", Since: at}
		}, "stuck", ticket, feelUnknown, inPipeline, at},
		{"paused, whatever else", func(p *monitor.ProbeStatus, b map[string]bool) {
			p.Paused, p.Sinks[1].Lag, p.Failing, b["out"] = &monitor.PauseStatus{Since: at}, 999, true, true
		}, "paused", paused, feelUnknown, "", at},
		{"nothing seen yet", func(p *monitor.ProbeStatus, _ map[string]bool) { p.Sinks[1].Lanes = nil }, "waiting", waiting, feelUnknown, "", time.Time{}},
		{"nothing seen for too long", func(p *monitor.ProbeStatus, _ map[string]bool) { p.Sinks[1].Lanes, p.Sinks[1].Lag = nil, 301 }, "lagging", trouble, feelIt, inPipeline, time.Time{}},
		{"nobody listens", func(p *monitor.ProbeStatus, _ map[string]bool) { p.Sinks = nil }, "injects only", fine, feelUnknown, "", time.Time{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, blind := wellProbe(), make(map[string]bool)
			c.change(&p, blind)
			var sinks []monitor.SinkStatus
			for _, w := range p.Sinks {
				sinks = append(sinks, monitor.SinkStatus{Name: w.Sink, Up: !blind[w.Sink], Since: at})
			}
			v := judge(p, newSinkTable(sinks))
			if v.State != c.state || v.severity != c.severity || v.Users != c.users || v.Fault != c.fault || !v.Since.Equal(c.since) {
				t.Errorf("%s, %s, users %s, fault %q, since %v; want %s, %s, %s, %q, %v", v.State, v.Class(), v.Users, v.Fault, v.Since,
					c.state, c.severity.Class(), c.users, c.fault, c.since)
			}
		})
	}
}

func TestHeadline(t *testing.T) {
	at := now.Add(-12 * time.Minute)
	well, felt, blind := verdict{Users: feelNothing}, verdict{severity: trouble, Users: feelIt, Since: at}, verdict{severity: trouble, Users: feelUnknown, Since: at.Add(time.Minute)}
	look, off, wait, lossy := verdict{severity: ticket, Users: feelNothing}, verdict{severity: paused}, verdict{severity: waiting}, verdict{severity: ticket, Users: feelIt}
	for _, c := range []struct {
		all  []verdict
		idle int
		want string // the sentence, what else, | the tab
		severity
	}{
		{nil, 0, "No probes are configured. | No probes", waiting},
		{nil, 1, "No probes are configured. 1 sink does not read. | No probes", waiting},
		{[]verdict{well}, 0, "The only probe is on time. | On time", fine},
		{[]verdict{well, well}, 0, "All 2 probes are on time. | On time", fine},
		{[]verdict{well, off, wait}, 0, "Of 3 probes none is in trouble. 1 probe is paused: nobody is called for it. 1 probe waits for its first heartbeat. | On time", fine},
		{[]verdict{felt}, 0, "The only probe is in trouble: users feel it, since 09:48:00 UTC (12 minutes). | 1 in trouble", trouble},
		{[]verdict{well, felt}, 0, "1 of 2 probes is in trouble: users feel it, since 09:48:00 UTC (12 minutes). | 1 in trouble", trouble},
		{[]verdict{blind, felt, felt}, 2, "3 of 3 probes are in trouble: users feel 2, of 1 nobody can tell, since 09:48:00 UTC (12 minutes). 2 sinks do not read. | 3 in trouble", trouble},
		{[]verdict{blind, look}, 0, "1 of 2 probes is in trouble: nobody can tell whether users feel it, since 09:49:00 UTC (11 minutes). 1 probe needs a look. | 1 in trouble", trouble},
		{[]verdict{well, look, look}, 0, "Users feel nothing: of 3 probes none is in trouble. 2 probes need a look. | 2 to look at", ticket},
		{[]verdict{well, lossy}, 0, "Of 2 probes none is in trouble, but a few messages are lost. 1 probe needs a look. | 1 to look at", ticket},
		{[]verdict{off}, 0, "Nothing is watched: every probe is paused or waiting. 1 probe is paused: nobody is called for it. | 1 paused", paused},
		{[]verdict{wait, wait}, 0, "Nothing has come out yet: 2 probes wait for their first heartbeat. | Waiting", waiting},
	} {
		h := newHeadline(c.all, c.idle, now)
		if got := strings.Join(append([]string{h.Text}, h.Detail...), " ") + " | " + h.Tab; got != c.want || h.severity != c.severity {
			t.Errorf("%s (%s)\nwant %s (%s)", got, h.Class(), c.want, c.severity.Class())
		}
	}
}

// TestFacts: what the page of a probe says at the top, scene by scene.
func TestFacts(t *testing.T) {
	for scene, want := range map[string][]string{
		"fine":    {"orders is on time", "1.3s behind. Owner: channel=#shop-oncall, team=shop.", "No: messages come out 1.3s late."},
		"lagging": {"orders is lagging: messages come out late", "19m 14s behind since 09:46:00 UTC (14 minutes); heartbeats pass orders-raw and do not come to orders-priced; the pipeline, not the monitor. Owner: channel=#shop-oncall, team=shop.", "Yes: messages come out 19m 14s late.", "09:46:00 UTC (14 minutes).", "19m 14s, limit 5m, at orders-out.", "Heartbeats pass orders-raw and do not come to orders-priced, since 09:42:00 UTC (18 minutes).", "The pipeline: the head takes heartbeats, and every queue is being read."},
		"dropped": {"orders is losing messages", "Since 09:51:00 UTC (9 minutes); the pipeline, not the monitor.", "Yes: messages are lost.", "20 of the last 120, at orders-out."},
		"blind":   {"orders cannot be seen: nobody reads its queue", "the monitor's view, not the pipeline", "Nobody can tell: the queue at the end is not read.", "The monitor cannot read orders-out: its broker is down, or we have no access.", "AccessDeniedException: <role/lag-monitor> is not authorized"},
		"paused":  {"orders is paused: nobody watches it", "Until 10:40:00 UTC. Owner", "Nobody knows: it is paused."},
		"refused": {"orders is refused: the head does not take heartbeats", "at the head, or on our way to it", "503 Service Unavailable"},
	} {
		st, details := pipelines(now, scene)
		d := details["orders"]
		d.ProbeStatus = st.Probes[1]
		p := newProbe(d, st.Sinks, site{}, now)
		said := p.Headline + "\n" + p.Lead + "\n"
		for _, f := range p.Facts {
			said += f.Answer + "\n"
		}
		for _, w := range want {
			if !strings.Contains(said, w) {
				t.Errorf("%s: %q is not in\n%s", scene, w, said)
			}
		}
	}
}

func TestLimits(t *testing.T) {
	p := wellProbe()
	p.PageLimits.LagSince, p.TicketLimits.LagSince, p.TicketLimits.DropRatio, p.TicketLimits.DropsSince = now.Add(-time.Minute), now.Add(-time.Hour), 0.001, now.Add(-time.Hour)
	var got []string
	for _, l := range newLimits(p, judge(p, nil), now) {
		got = append(got, l.What+" "+l.Limit+": "+l.State+" "+l.Class())
	}
	want := []string{
		"page: lag above 5m for 2m: crossed since 09:59:00 UTC (1 minute), pages at 10:01:00 UTC trouble",
		"page: lost messages more than 1%: not crossed fine",
		"ticket: lag above 30s: crossed since 09:00:00 UTC (1 h 00 min), opens a ticket since 09:00:00 UTC ticket",
		"ticket: lost messages more than 0.1%: crossed since 09:00:00 UTC (1 h 00 min) ticket",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
