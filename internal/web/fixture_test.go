package web

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/monitor"
)

// fakeSource is a Source of which a test says what it knows. It is safe for concurrent use through set.
type fakeSource struct {
	mu        sync.Mutex
	status    monitor.Status
	details   map[string]monitor.ProbeDetail // those that are not here have a detail without history
	notReady  error
	config    string
	configErr error
	reloadErr error
	pauseErr  error
	reloads   int
	pauses    []string
}

func (f *fakeSource) set(change func(*fakeSource)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f)
}

func (f *fakeSource) Status() monitor.Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	st := f.status
	st.Probes = slices.Clone(st.Probes)
	return st
}

func (f *fakeSource) Probe(name string) (monitor.ProbeDetail, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range f.status.Probes {
		if p.Name != name {
			continue
		}
		d := f.details[name]
		d.ProbeStatus = p
		if d.Hops == nil {
			d.Hops = []monitor.HopStatus{}
		}
		if d.Beats == nil {
			d.Beats = []monitor.BeatStatus{}
		}
		if d.History.Sinks == nil {
			d.History.Sinks = []monitor.SinkHistory{}
		}
		return d, true
	}
	return monitor.ProbeDetail{}, false
}

func (f *fakeSource) Pause(name string, d time.Duration) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pauses = append(f.pauses, "pause "+name+" "+d.String())
	if f.pauseErr != nil && !errors.Is(f.pauseErr, monitor.ErrNotKept) {
		return f.pauseErr
	}
	for i := range f.status.Probes {
		if p := &f.status.Probes[i]; p.Name == name {
			at := time.Now()
			p.Paused = &monitor.PauseStatus{Since: at, Until: at.Add(d)}
		}
	}
	return f.pauseErr
}

func (f *fakeSource) Resume(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pauses = append(f.pauses, "resume "+name)
	for i := range f.status.Probes {
		if f.status.Probes[i].Name == name {
			f.status.Probes[i].Paused = nil
		}
	}
	return f.pauseErr
}

func (f *fakeSource) Ready() error                 { return f.notReady }
func (f *fakeSource) Config() ([]byte, error)      { return []byte(f.config), f.configErr }
func (f *fakeSource) Reload(context.Context) error { f.reloads++; return f.reloadErr }

// scenes are the states that the page is looked at in, by name. Each is a function of the time.
var scenes = map[string]func(now time.Time) (monitor.Status, map[string]monitor.ProbeDetail){
	"fine":     func(now time.Time) (monitor.Status, map[string]monitor.ProbeDetail) { return pipelines(now, "fine") },
	"lagging":  func(now time.Time) (monitor.Status, map[string]monitor.ProbeDetail) { return pipelines(now, "lagging") },
	"dropped":  func(now time.Time) (monitor.Status, map[string]monitor.ProbeDetail) { return pipelines(now, "dropped") },
	"blind":    func(now time.Time) (monitor.Status, map[string]monitor.ProbeDetail) { return pipelines(now, "blind") },
	"paused":   func(now time.Time) (monitor.Status, map[string]monitor.ProbeDetail) { return pipelines(now, "paused") },
	"refused":  func(now time.Time) (monitor.Status, map[string]monitor.ProbeDetail) { return pipelines(now, "refused") },
	"empty":    func(now time.Time) (monitor.Status, map[string]monitor.ProbeDetail) { return emptyStatus(now), nil },
	"thousand": func(now time.Time) (monitor.Status, map[string]monitor.ProbeDetail) { return thousand(now), nil },
}

func emptyStatus(now time.Time) monitor.Status {
	return monitor.Status{Instance: "eu-1", Started: now.Add(-time.Minute), Probes: []monitor.ProbeStatus{}, Sinks: []monitor.SinkStatus{}}
}

// pipelines is a small company: a pipeline of four stations, orders, to which state happens, and a few others
// that are well.
func pipelines(now time.Time, state string) (monitor.Status, map[string]monitor.ProbeDetail) {
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	up := func(name, kind, role string) monitor.SinkStatus {
		return monitor.SinkStatus{
			Name: name, Kind: kind, Role: role, Up: true, Since: ago(26 * time.Hour), CaughtUp: ago(300 * time.Millisecond),
			Messages: map[string]uint64{"heartbeat": 9360, "other": 1_234_567, "foreign": 0, "corrupt": 0, "future": 0}, Errors: map[string]uint64{"network": 2},
		}
	}
	st := monitor.Status{Instance: "eu-1", Started: ago(26 * time.Hour), Sinks: []monitor.SinkStatus{
		up("orders-raw", "kafka", "hop"), up("orders-priced", "kafka", "hop"), up("orders-out", "kinesis", "destination"),
		up("orders-search", "webhook", "destination"), up("orders-dlq", "kafka", "dead_letter"), up("mail-out", "nats", "destination"), up("stash-out", "kinesis", "destination"),
	}}
	pair := func(sink, role string, lag float64) monitor.PairStatus {
		return monitor.PairStatus{
			Sink: sink, Role: role, Sent: 9360, OnTime: 9359, InFlight: 1, Lag: lag, Latency: min(lag, 0.4), Rate: 0.1,
			Lanes: []monitor.LaneStatus{{Seen: true, Last: ago(seconds(lag)), Lag: lag, Latency: min(lag, 0.4), Recent: "................................w"}},
		}
	}
	orders := monitor.ProbeStatus{
		Name: "orders", Head: "http", Labels: map[string]string{"team": "shop", "channel": "#shop-oncall"}, Interval: 10, Timeout: 60, PageLag: 300,
		PageLimits: &monitor.LimitStatus{Lag: 300, For: 120, DropRatio: 0.01}, TicketLimits: &monitor.LimitStatus{Lag: 30, For: 600},
		Runbook: "https://wiki.example.com/runbooks/orders", Dashboard: "https://grafana.example.com/d/orders", Sent: monitor.SentStatus{Success: 9358, Failure: 4, Unknown: 2, Skipped: 1},
		Sinks: []monitor.PairStatus{
			pair("orders-raw", "hop", 0.02), pair("orders-priced", "hop", 0.2), pair("orders-out", "destination", 0.42), pair("orders-search", "destination", 1.3), pair("orders-dlq", "dead_letter", 0),
		},
	}
	orders.Sinks[4].OnTime, orders.Sinks[4].InFlight, orders.Sinks[4].Sent, orders.Sinks[4].Rate, orders.Sinks[4].Lanes = 0, 0, 0, 0, nil
	d := monitor.ProbeDetail{
		Hops: []monitor.HopStatus{
			{From: "head", To: "orders-raw", Latency: 0.02, P50: 0.018, P99: 0.05, Rate: 0.1, Seen: true},
			{From: "orders-raw", To: "orders-priced", Latency: 0.18, P50: 0.15, P99: 0.4, Rate: 0.1, Seen: true},
			{From: "orders-priced", To: "orders-out", Latency: 0.22, P50: 0.2, P99: 0.9, Rate: 0.1, Seen: true},
			{From: "orders-priced", To: "orders-search", Latency: 1.1, P50: 0.9, P99: 2.5, Rate: 0.1, Seen: true},
		},
		Config: "probes:\n  orders:\n    interval: 10s\n    timeout: 1m\n    page: {lag: 5m, for: 2m, drop_ratio: 1%}\n    inject:\n      http: {url: https://shop.internal/orders}\n" +
			"    sinks: [orders-raw, orders-priced, orders-out, orders-search, orders-dlq]\n",
		Beats: beats(now, state), History: history(now, state, "orders-out", "orders-search"),
	}
	switch state {
	case "lagging":
		orders.PageLimits.LagSince = ago(14 * time.Minute)
		orders.TicketLimits.LagSince = ago(18 * time.Minute)
		orders.Stuck = &monitor.StuckStatus{From: "orders-raw", To: "orders-priced", Since: ago(18 * time.Minute)}
		for i := 1; i < 4; i++ {
			w := &orders.Sinks[i]
			w.Lag, w.Rate, w.OnTime, w.Dropped, w.InFlight = 1154, 0, 9245, 108, 7
			w.Lanes[0].Lag, w.Lanes[0].Last, w.Lanes[0].Recent = 1154, ago(1154*time.Second), "......xxxxxxxxxxxxxxxxxxxwwwwwww"
		}
		for i := 1; i < 4; i++ {
			d.Hops[i].Rate = 0
		}
	case "dropped":
		orders.PageLimits.DropsSince = ago(9 * time.Minute)
		w := &orders.Sinks[2]
		w.OnTime, w.Dropped, w.Late, w.Duplicated = 9340, 19, 3, 2
		w.Lanes[0].Recent = "....x..x....x.x...lx....x.."
	case "blind":
		k := &st.Sinks[2]
		k.Up, k.Since, k.CaughtUp = false, ago(4*time.Minute), ago(4*time.Minute)
		k.Errors = map[string]uint64{"auth": 24, "network": 2}
		k.LastError = &monitor.ErrorStatus{Error: `kinesis: DescribeStream deferred: AccessDeniedException: <role/lag-monitor> is not authorized`, At: ago(2 * time.Second)}
		orders.Sinks[2].Indeterminate, orders.Sinks[2].Lag = 18, 240
		orders.Sinks[2].Lanes[0].Recent, orders.Sinks[2].Lanes[0].Lag = ".........??????????????????wwwwww", 240
	case "paused":
		orders.Paused = &monitor.PauseStatus{Since: ago(20 * time.Minute), Until: now.Add(40 * time.Minute)}
	case "refused":
		orders.Failing, orders.LastError = true, &monitor.ErrorStatus{Error: `Post "https://shop.internal/orders": 503 Service Unavailable: <html>upstream down</html>`, At: ago(3 * time.Second)}
		orders.Sent.Failure = 44
	}
	mail := monitor.ProbeStatus{
		Name: "mail", Head: "nats", Labels: map[string]string{"team": "growth"}, Interval: 15, Timeout: 60, PageLag: 60, PageLimits: &monitor.LimitStatus{Lag: 60, For: 60},
		Sent: monitor.SentStatus{Success: 6240}, Sinks: []monitor.PairStatus{pair("mail-out", "destination", 0.034)},
	}
	stash := monitor.ProbeStatus{
		Name: "stash-deferred", Head: "http", Labels: map[string]string{"team": "data", "channel": "#stash-deferred"}, Interval: 10, Expiry: 5, Timeout: 300, PageLag: 300,
		PageLimits: &monitor.LimitStatus{Lag: 300, For: 120}, Sent: monitor.SentStatus{Success: 9360}, Sinks: []monitor.PairStatus{pair("stash-out", "destination", 1.2)},
	}
	st.Probes = []monitor.ProbeStatus{mail, orders, stash}
	return st, map[string]monitor.ProbeDetail{"orders": d}
}

// beats are the last 120 of orders.
func beats(now time.Time, state string) []monitor.BeatStatus {
	out := make([]monitor.BeatStatus, 0, 120)
	for i := range 120 {
		age := time.Duration(119-i)*10*time.Second + 2*time.Second
		sent := now.Add(-age)
		b := monitor.BeatStatus{Seq: uint64(9241 + i), Sent: sent, Due: sent, Result: "success"}
		passed := func(sink string, after time.Duration) {
			b.Sinks = append(b.Sinks, monitor.BeatSinkStatus{Sink: sink, Outcome: "on_time", Arrived: sent.Add(after), Latency: after.Seconds()})
		}
		passed("orders-raw", 20*time.Millisecond)
		out1 := func(s monitor.BeatSinkStatus) { s.Sink = "orders-out"; b.Sinks = append(b.Sinks, s) }
		switch {
		case state == "lagging" && age < 60*time.Second:
			out1(monitor.BeatSinkStatus{Outcome: "in_flight"})
		case state == "lagging" && age < 18*time.Minute:
			out1(monitor.BeatSinkStatus{Outcome: "dropped", Reason: "timeout"})
		case state == "dropped" && i%6 == 2:
			out1(monitor.BeatSinkStatus{Outcome: "dropped", Reason: "dead_lettered (rejected, from orders-priced)"})
		case state == "dropped" && i%17 == 3:
			out1(monitor.BeatSinkStatus{Outcome: "late", Arrived: sent.Add(70 * time.Second), Latency: 70})
		case state == "dropped" && i%29 == 4:
			out1(monitor.BeatSinkStatus{Outcome: "on_time", Arrived: sent.Add(time.Second), Latency: 1, Duplicates: 2})
		case state == "blind" && age < 4*time.Minute:
			out1(monitor.BeatSinkStatus{Outcome: "indeterminate", Reason: "blind"})
		case state == "paused" && age < 20*time.Minute:
			b = monitor.BeatStatus{Due: sent, Result: "skipped"}
		case state == "refused" && age < 7*time.Minute:
			b = monitor.BeatStatus{Seq: b.Seq, Sent: sent, Due: sent, Result: "failure", Error: "503 Service Unavailable: <html>upstream down</html>"}
		default:
			passed("orders-priced", 200*time.Millisecond)
			passed("orders-out", 420*time.Millisecond)
			passed("orders-search", 1300*time.Millisecond)
		}
		out = append(out, b)
	}
	return out
}

// history is six hours with a hill two hours ago, a gap, and what state does to the end.
func history(now time.Time, state string, sinks ...string) monitor.HistoryStatus {
	h := monitor.HistoryStatus{Start: now.Add(-6 * time.Hour).Truncate(time.Minute), Step: 60}
	for n, sink := range sinks {
		s := monitor.SinkHistory{Sink: sink}
		for i := range 360 {
			if i > 80 && i < 95 {
				s.Lag, s.Latency = append(s.Lag, nil), append(s.Latency, nil)
				continue
			}
			latency := 0.3*float64(1+2*n) + 0.1*math.Sin(float64(i)/7)*math.Sin(float64(i)/31) + 20*math.Exp(-math.Pow(float64(i-240)/8, 2))
			lag := latency + 0.05
			if state == "lagging" && i > 340 {
				lag = float64(i-340) * 60
			}
			s.Lag, s.Latency = append(s.Lag, &lag), append(s.Latency, &latency)
		}
		h.Sinks = append(h.Sinks, s)
	}
	return h
}

// thousand is a thousand probes on twelve sinks, three of which are not well.
func thousand(now time.Time) monitor.Status {
	st := monitor.Status{Instance: "eu-1", Started: now.Add(-50 * time.Hour)}
	for i := range 12 {
		st.Sinks = append(st.Sinks, monitor.SinkStatus{
			Name: fmt.Sprintf("events-%02d", i), Kind: "kafka", Role: "destination", Up: i != 7, Since: now.Add(-30 * time.Minute), CaughtUp: now.Add(-time.Second),
			Messages: map[string]uint64{"heartbeat": 1}, Errors: map[string]uint64{},
		})
	}
	for i := range 1000 {
		lag := 0.01 * float64(i%40)
		p := monitor.ProbeStatus{
			Name: fmt.Sprintf("tenant-%04d-events", i), Head: "kafka", Interval: 15, Timeout: 60, PageLag: 300, PageLimits: &monitor.LimitStatus{Lag: 300, For: 120, DropRatio: 0.01},
			Labels: map[string]string{"team": fmt.Sprintf("team-%02d", i%20), "channel": fmt.Sprintf("#team-%02d-oncall", i%20)}, Sent: monitor.SentStatus{Success: 11520},
		}
		if i%333 == 5 {
			lag, p.PageLimits.LagSince = 400+float64(i), now.Add(-5*time.Minute)
		}
		p.Sinks = []monitor.PairStatus{{
			Sink: fmt.Sprintf("events-%02d", i%12), Role: "destination", Sent: 11520, OnTime: 11510, Dropped: uint64(i % 3), InFlight: 1, Lag: lag, Latency: lag, Rate: 0.066,
			Lanes: []monitor.LaneStatus{{Seen: true, Last: now.Add(-5 * time.Second), Lag: lag, Latency: lag, Recent: "................................................................"}},
		}}
		st.Probes = append(st.Probes, p)
	}
	return st
}
