package monitor

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/lag-monitor/lag-monitor/internal/conform/memory"
	"github.com/lag-monitor/lag-monitor/internal/heartbeat"
	"github.com/lag-monitor/lag-monitor/probe"
	"github.com/lag-monitor/lag-monitor/sinks"
)

// timestamps returns the timestamp gauge of each lane of the only probe.
func (r *rig) timestamps() map[string]time.Time {
	r.t.Helper()
	synctest.Wait()
	reg := prometheus.NewRegistry()
	reg.MustRegister(r.m.Collector())
	families, err := reg.Gather()
	if err != nil {
		r.t.Fatal(err)
	}
	out := make(map[string]time.Time)
	for _, f := range families {
		if f.GetName() != "lag_monitor_heartbeat_timestamp_seconds" {
			continue
		}
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if l.GetName() == "lane" {
					out[l.GetValue()] = time.UnixMicro(int64(m.GetGauge().GetValue() * 1e6)).Round(time.Millisecond)
				}
			}
		}
	}
	return out
}

// scrapeOf returns all counters and gauges of a scrape, and the counts of the histograms, without the prefix
// of their names.
func scrapeOf(r *rig) map[string]float64 {
	r.t.Helper()
	synctest.Wait()
	reg := prometheus.NewRegistry()
	reg.MustRegister(r.m.Collector())
	families, err := reg.Gather()
	if err != nil {
		r.t.Fatal(err)
	}
	out := make(map[string]float64)
	for _, f := range families {
		name := strings.TrimPrefix(f.GetName(), "lag_monitor_")
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
			}
			key := "{" + strings.Join(labels, ",") + "}"
			if h := m.GetHistogram(); h != nil {
				out[name+"_count"+key] = float64(h.GetSampleCount())
				continue
			}
			out[name+key] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	return out
}

// untouched sees that no heartbeat is in the account.
func (r *rig) untouched() {
	r.t.Helper()
	s := r.m.Status().Probes[0].Sinks[0]
	if n := s.Sent + s.OnTime + s.Late + s.Dropped + s.Indeterminate + s.InFlight + s.Duplicated + s.Redelivered + s.Reordered + s.Unaccounted; n != 0 {
		r.t.Errorf("heartbeats of before the start are in the account: %+v", s)
	}
}

func (r *rig) messages(k sinks.Kind) uint64 {
	return r.m.state.Load().sinks["out"].feed.Stats().Messages[k]
}

// former puts what an earlier run of the probe has sent into the queue.
func (r *rig) former(lane uint32, lanes int, ago time.Duration, change func(*heartbeat.Heartbeat)) time.Time {
	h := heartbeat.Heartbeat{Probe: "p", Instance: heartbeat.InstanceID("here"), Epoch: 1, Lane: lane, Lanes: uint32(lanes), Seq: 1000 - uint64(ago/time.Second),
		Sent: time.Now().Add(-ago), Interval: time.Second, Timeout: 10 * time.Second}
	if change != nil {
		change(&h)
	}
	if err := r.queue.Put(r.t.Context(), (*heartbeat.Keyring)(nil).Append(nil, &h)); err != nil {
		r.t.Fatal(err)
	}
	return h.Due().Round(time.Millisecond)
}

// After a restart the timestamp goes on with what came out meanwhile, and nothing else does.
func TestLookBack(t *testing.T) {
	sim(t, func(r *rig) {
		r.cfg.Sinks["out"].LookBack = 30 * time.Second
		r.cfg.Probes["p"].Inject = head(func(context.Context, *probe.Message) error { return probe.Refused(errors.New("the head is down")) })
		time.Sleep(time.Hour)
		r.former(0, 1, 50*time.Second, nil)
		time.Sleep(40 * time.Second) // the one above has been in the queue for longer than the sink looks back
		r.former(0, 1, 20*time.Second, nil)
		newest := r.former(0, 1, 5*time.Second, nil)
		r.former(0, 1, 12*time.Second, nil)
		r.former(0, 1, 4*time.Second, func(h *heartbeat.Heartbeat) { h.Instance++ })
		r.former(0, 1, 3*time.Second, func(h *heartbeat.Heartbeat) { h.Sent = h.Sent.Add(time.Hour) })
		r.former(7, 8, 2*time.Second, nil) // the head has had more lanes
		r.start()
		time.Sleep(20 * time.Second)
		if got := r.timestamps(); len(got) != 1 || !got["0"].Equal(newest) {
			t.Errorf("timestamps %v, want lane 0 at %s", got, newest)
		}
		for kind, want := range map[sinks.Kind]uint64{sinks.Heartbeat: 4, sinks.Foreign: 1, sinks.Future: 1, sinks.Corrupt: 0, sinks.Other: 0} {
			if n := r.messages(kind); n != want {
				t.Errorf("%d messages are %s, want %d", n, kind, want)
			}
		}
		s := r.m.Status().Probes[0].Sinks[0]
		if s.Lanes[0].Seen {
			t.Error("a heartbeat of an earlier run counts as an arrival of this one")
		}
		r.untouched()
	})
}

func TestNoLookBack(t *testing.T) {
	sim(t, func(r *rig) {
		r.former(0, 1, 5*time.Second, nil)
		r.cfg.Probes["p"].Inject = head(func(context.Context, *probe.Message) error { return probe.Refused(errors.New("the head is down")) })
		r.start()
		time.Sleep(5 * time.Second)
		if got, n := r.timestamps(), r.messages(sinks.Heartbeat); len(got) != 0 || n != 0 {
			t.Errorf("timestamps %v and %d heartbeats from before a start at the end", got, n)
		}
	})
}

// While the head's lanes are not known every one may still be there; afterwards those that are gone go.
func TestLookBackBeforeTheLanesAreKnown(t *testing.T) {
	sim(t, func(r *rig) {
		r.cfg.Sinks["out"].LookBack = 30 * time.Second
		var unknown atomic.Bool
		unknown.Store(true)
		r.cfg.Probes["p"].Inject = lanes{func(context.Context, *probe.Message) error { return probe.Refused(errors.New("the head is down")) }, &unknown}
		want := make(map[string]time.Time)
		for lane := range uint32(3) {
			want[strconv.Itoa(int(lane))] = r.former(lane, 3, time.Duration(lane+1)*time.Second, nil)
		}
		r.start()
		for range 3 {
			time.Sleep(5 * time.Second)
			got := r.timestamps()
			for lane, at := range want {
				if !got[lane].Equal(at) {
					t.Errorf("lane %s: timestamp %v, want %s", lane, got[lane], at)
				}
			}
		}
		unknown.Store(false)
		time.Sleep(2 * laneRefresh)
		if got := r.timestamps(); len(got) != 1 || !got["0"].Equal(want["0"]) {
			t.Errorf("timestamps %v after lanes 1 and 2 of %v have gone", got, want)
		}
		r.untouched()
	})
}

// A listener has counted what was in the queue before it started, or another has: it takes the timestamps
// from there and counts from then on.
func TestLookBackOfAListener(t *testing.T) {
	sim(t, func(r *rig) {
		r.cfg.Sinks["out"].LookBack = 30 * time.Second
		r.cfg.Probes["p"].Inject = nil
		seq := uint64(0)
		send := func(lane uint32) time.Time {
			return r.former(lane, 2, 0, func(h *heartbeat.Heartbeat) { seq++; h.Seq = seq; h.Accepted = 1<<64 - 1; h.Instance = 7 })
		}
		gone, last := send(5), time.Time{} // before there were only two lanes
		for range 3 {
			send(0)
			last = send(1)
			time.Sleep(5 * time.Second)
		}
		r.start()
		if got := r.timestamps(); len(got) != 3 || !got["1"].Equal(last) || !got["5"].Equal(gone) {
			t.Errorf("timestamps %v, want lane 1 at %s", got, last)
		}
		time.Sleep(5 * time.Second)
		r.untouched()
		if n := r.messages(sinks.Heartbeat); n != 7 {
			t.Errorf("%d messages are heartbeats, want 7", n)
		}
		send(0)
		synctest.Wait()
		// Another part of the queue may take longer to look through.
		r.m.state.Load().sinks["out"].feed.Deliver(sinks.Message{Past: true, Body: (*heartbeat.Keyring)(nil).Append(nil, &heartbeat.Heartbeat{
			Probe: "p", Instance: 7, Epoch: 1, Lane: 1, Lanes: 2, Seq: 2, Sent: last.Add(-time.Second), Interval: time.Second, Timeout: 10 * time.Second})})
		last = send(1)
		if got := r.timestamps(); len(got) != 2 || !got["1"].Equal(last) {
			t.Errorf("timestamps %v, want lane 1 at %s and lane 5 gone", got, last)
		}
		time.Sleep(20 * time.Second)
		if s := r.m.Status().Probes[0].Sinks[0]; s.OnTime != 2 || s.Late+s.Dropped+s.Indeterminate != 0 {
			t.Errorf("after two heartbeats: %+v", s)
		}
	})
}

// forgetful is a sink that cannot even be asked to look back.
type forgetful struct{ *memory.SinkConfig }

func (f forgetful) Open() (sinks.Sink, error) {
	s, err := f.SinkConfig.Open()
	return forgetfulSink{s}, err
}

type forgetfulSink struct{ sinks.Sink }

func (forgetfulSink) LookBack(time.Time) { panic("a driver's mistake") }

func TestPanicOfALookBack(t *testing.T) {
	log := throwing(t, func(r *rig, _ *thrower) {
		out := r.cfg.Sinks["out"]
		out.LookBack, out.Config = time.Minute, forgetful{&memory.SinkConfig{Queue: r.queue}}
		r.start()
		time.Sleep(10 * time.Second)
		if s := r.pair(); s.OnTime < 9 {
			t.Errorf("after the panic: %+v", s)
		}
	})
	if n := strings.Count(log, `msg="looking back"`); n != 1 || !strings.Contains(log, "look_back_test.go") {
		t.Errorf("told %d times:\n%s", n, log)
	}
}
