package faults_test

import (
	"context"
	"fmt"
	"math"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/servers"
)

// command is the daemon's command line.
func (f *field) command(flags ...string) *exec.Cmd {
	args := append(append(append([]string{}, f.prefix...), daemonBinary), flags...)
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(), f.env...)
	return cmd
}

// quiesce ends the injection, from outside, and returns what the daemon says once all outcomes are known and
// everything has been read. Sends that it catches on their way are unknown, which the account has room for.
func (f *field) quiesce(t *testing.T) servers.Scrape {
	t.Helper()
	refused := func(s servers.Scrape) float64 { return s.Sum("heartbeats_sent_total", "result", "failure") }
	before, err := f.daemon.scrape(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// Just behind a heartbeat, so that none is caught on its way: its answer would be lost.
	for read, until := f.relay.counts(), time.Now().Add(5*time.Second); f.relay.counts() == read && time.Now().Before(until); {
		wait(t, time.Millisecond)
	}
	wait(t, 15*time.Millisecond)
	refuse := f.refuse
	if refuse == nil {
		f.headProxy.Set(servers.Faults{Refuse: true})
		refuse = f.headProxy.Cut
	}
	f.daemon.await(t, "nothing is sent any more, and all outcomes are known", patience, func(s servers.Scrape) bool {
		refuse() // also one that was accepted just before
		return (s.Sum("heartbeats_in_flight") == 0 || f.unproven) && refused(s) >= refused(before)+5
	})
	f.relay.flush()
	for deadline := time.Now().Add(patience); ; wait(t, 50*time.Millisecond) {
		head, err := f.head.all(t.Context())
		read, idle := f.relay.idle()
		if err == nil && idle && len(read) >= len(head) {
			f.truth.add(head, true)
			f.truth.add(read, true) // a head that was replaced held more
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the relay has read %d of %d messages, idle %v (%v)", len(read), len(head), idle, err)
		}
	}
	dest, err := f.dest.all(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	f.truth.add(dest, false)
	f.truth.acked(f.relay)
	if f.unproven {
		return f.remains(t)
	}
	// The sink has read all when it proves that it is caught up with a time after the last message.
	now := float64(time.Now().UnixMilli()) / 1000
	said, _ := f.daemon.await(t, "the sink has read everything", patience, func(s servers.Scrape) bool {
		return s.Sum("sink_up") == 1 && s.Sum("sink_caught_up_timestamp_seconds") > now && s.Sum("heartbeats_in_flight") == 0
	})
	return said
}

// remains waits until nothing is in flight but what never came, where nothing proves that a sink has read everything.
func (f *field) remains(t *testing.T) servers.Scrape {
	t.Helper()
	missing := func(s servers.Scrape) float64 {
		n := s.Sum("heartbeats_sent_total", "result", "success") + s.Sum("heartbeats_sent_total", "result", "unknown")
		for _, b := range f.truth.beats {
			if b.copies > 0 {
				n--
			}
		}
		return n
	}
	if f.anew {
		// Nobody knows which are in the account. What was handed out and not acknowledged has come again by then.
		wait(t, 15*time.Second)
		missing = func(s servers.Scrape) float64 { return s.Sum("heartbeats_in_flight") }
	}
	said, _ := f.daemon.await(t, "all that came is counted", patience, func(s servers.Scrape) bool {
		return s.Sum("sink_up") == 1 && s.Sum("heartbeats_in_flight") == missing(s)
	})
	return said
}

// compare holds what the daemon says against what is in the queues.
func (f *field) compare(t *testing.T, s servers.Scrape) result {
	t.Helper()
	sum := func(name string, labels ...string) int { return int(math.Round(s.Sum(name, labels...))) }
	accepted, unknown := sum("heartbeats_sent_total", "result", "success"), sum("heartbeats_sent_total", "result", "unknown")
	onTime, late := sum("heartbeats_received_total", "timing", "on_time"), sum("heartbeats_received_total", "timing", "late")
	dropped, doubted := sum("heartbeats_dropped_total"), sum("heartbeats_indeterminate_total")
	if f.unproven {
		doubted += sum("heartbeats_in_flight") // in the end
	}
	gapped := sum("heartbeats_indeterminate_total", "reason", "sink_gap")
	if f.ttl > 0 {
		gapped += sum("heartbeats_indeterminate_total", "reason", "sink_blind") // discarded before anybody read them
	}
	duplicates, reordered := sum("heartbeats_duplicated_total", "kind", "duplicate"), sum("heartbeats_reordered_total")

	var head, came, inTime, edge, copies int
	var lost int // in the head, never in the destination
	var never int
	for _, b := range f.truth.beats {
		if b.inHead || b.copies > 0 {
			head++
		}
		switch {
		case b.copies == 0:
			lost++
		case b.inTime():
			came, inTime = came+1, inTime+1
		default:
			came++
		}
		if b.copies > 0 {
			copies += b.copies - 1
			if b.onEdge() {
				if edge++; edge > 5 {
					continue
				}
				t.Logf("lane %d, %d: stamped %v before its deadline, acknowledged %v after", b.Lane, b.Seq, b.Deadline().Sub(b.entered), b.acked.Sub(b.Deadline()))
			}
		}
	}
	if head > accepted {
		never = accepted + unknown - head // their answers were lost, and so were they
	} else {
		never = unknown
	}
	vanished := max(0, accepted-head) // acknowledged, and not there: the broker's own loss, at least
	// Of what is there some may be sends without an answer; then as many more were lost that had one.
	vanishedMost := vanished
	if vanished > 0 || f.headLoses {
		vanishedMost = min(accepted, accepted+unknown-head)
	}
	res := result{
		heartbeats: accepted + unknown, indeterminate: doubted,
		trueDrops:   lost + vanished,
		falseDrops:  max(0, dropped-(head-inTime+vanishedMost+edge)),
		missedDrops: max(0, lost+vanished-dropped-max(0, doubted-max(0, never))),
		unseen:      came - onTime - late,
	}
	switch {
	case f.innocent:
		res.falseDrops = dropped
	case f.unproven: // only what came late is known not to have come in time
		res.falseDrops = max(0, dropped-(came-inTime+edge))
	}
	wrong := func(format string, args ...any) { t.Helper(); t.Errorf(format, args...) }
	if f.anew {
		// The counters of the runs, added up, lack what was counted between the last scrape of a run and its end,
		// and what was lost with it, so only the bounds are known that must hold nevertheless.
		totals := f.daemon.totals()
		onTime, dropped, doubted = int(totals.Sum("heartbeats_received_total", "timing", "on_time")), int(totals.Sum("heartbeats_dropped_total")), int(totals.Sum("heartbeats_indeterminate_total"))
		t.Logf("over all runs: head %d, came %d, in time %d, edge %d; daemon: sent %v, restored %v, on time %d, dropped %d, indeterminate %d", head, came, inTime, edge,
			totals.Sum("heartbeats_sent_total"), totals.Sum("heartbeats_restored_total"), onTime, dropped, doubted)
		res = result{
			heartbeats: head, trueDrops: lost, indeterminate: doubted,
			falseDrops: max(0, dropped-(head-inTime+edge)), missedDrops: max(0, lost-dropped-doubted),
		}
		// What a process declares after it has last written its journal, the next one declares again.
		again := 0
		if f.journal {
			again = int(totals.Sum("heartbeats_restored_total"))
			res.falseDrops = max(0, res.falseDrops-min(again, head-inTime+edge))
		}
		if f.innocent {
			// What is lost was sent to a monitor that was not there. What it had sent in the last second before it was
			// killed may be in no account.
			res.falseDrops, res.missedDrops = dropped, 0
			if f.journal && lost > 0 && doubted == 0 {
				wrong("%d never came, and nothing is in doubt", lost)
			}
		}
		if res.falseDrops > 0 || res.missedDrops > 0 || onTime > inTime+edge+again {
			wrong("these do not agree")
		}
		f.stuck(t, s)
		return res
	}
	if head > accepted+unknown {
		wrong("the head holds %d heartbeats; the daemon has sent %d and perhaps %d", head, accepted, unknown)
	}
	if vanished > 0 {
		t.Logf("the broker has lost %d that it had acknowledged", vanished)
	}
	if res.falseDrops > 0 {
		wrong("%d dropped; of %d in the head %d came in time, and %d vanished from it", dropped, head, inTime, vanishedMost)
	}
	if res.missedDrops > 0 {
		wrong("%d never came, %d of them vanished from the head; the daemon says dropped %d, indeterminate %d, of which %d never were in the head",
			lost+vanished, vanished, dropped, doubted, never)
	}
	// A send without an answer is in doubt unless it comes in time.
	if allowed := min(unknown, max(0, never)+head-inTime+edge) + f.doubted(head-inTime+edge+res.unseen+vanishedMost, late); doubted > allowed {
		wrong("%d are indeterminate; at most %d cannot be known", doubted, allowed)
	}
	if f.gap && res.unseen == 0 {
		wrong("nothing was lost before the daemon could read it: the row proves nothing")
	}
	if res.unseen < 0 || res.unseen > 0 && (!f.gap || res.unseen > gapped) {
		wrong("%d came; the daemon has seen %d on time and %d late, and doubts %d for gaps", came, onTime, late, gapped)
	}
	if !f.gap {
		for name, both := range map[string][2]int{
			"duplicates": {duplicates, copies},
			"reordered":  {reordered, f.truth.swapped},
			"corrupt":    {sum("sink_messages_total", "kind", "corrupt"), f.truth.corrupt},
			"ordinary":   {sum("sink_messages_total", "kind", "other"), f.truth.others},
			"latencies":  {sum("heartbeat_latency_seconds_count"), came},
		} {
			if both[0] != both[1] && !(f.unordered && name == "reordered") {
				wrong("%s: the daemon says %d, the queue %d", name, both[0], both[1])
			}
		}
		if onTime > inTime+edge || onTime < inTime-edge {
			wrong("%d came in time; the daemon says %d", inTime, onTime)
		}
	}
	for _, none := range []string{"heartbeats_unaccounted_total", "negative_latencies_total"} {
		if n := sum(none); n != 0 {
			wrong("%s: %d; want 0", none, n)
		}
	}
	for _, none := range []string{"foreign", "future"} {
		if n := sum("sink_messages_total", "kind", none); n != 0 {
			wrong("messages of kind %s: %d; want 0", none, n)
		}
	}
	if n := sum("heartbeats_duplicated_total", "kind", "redelivery"); n != 0 {
		wrong("%d messages were read twice", n)
	}
	f.stuck(t, s)
	t.Logf("sent %d + %d unknown, head %d, came %d, in time %d, edge %d, copies %d; daemon: unseen %d, on time %d, late %d, dropped %d, indeterminate %d (%s); largest memory %.0f MB; %d scrapes",
		accepted, unknown, head, came, inTime, edge, copies, res.unseen, onTime, late, dropped, doubted, reasons(s), f.daemon.worst/1e6, f.daemon.scrapes)
	return res
}

// doubted is how many heartbeats may be in doubt for a gap or for blindness, of those that did not come in time or
// that could not be read; and where nobody tells when they came, of those that were read late.
func (f *field) doubted(missing, late int) int {
	switch {
	case f.untold:
		return missing + late
	case f.gap, f.unproven:
		return missing
	}
	return 0
}

// stuck wants each lane's series to show the newest heartbeat of that lane.
func (f *field) stuck(t *testing.T, s servers.Scrape) {
	t.Helper()
	newest := map[string]*beat{}
	for lane, b := range f.truth.newest {
		name := fmt.Sprint(lane.lane)
		if n := newest[name]; n == nil || b.Sent.After(n.Sent) {
			newest[name] = b
		}
	}
	for _, name := range f.ends {
		delete(newest, name)
	}
	series := s.Find("heartbeat_timestamp_seconds")
	if len(series) != len(newest) {
		t.Errorf("%d lanes have a timestamp; heartbeats came in %d", len(series), len(newest))
	}
	for _, e := range series {
		b := newest[e.Labels["lane"]]
		if b == nil {
			t.Errorf("lane %s has a timestamp; nothing came in it", e.Labels["lane"])
			continue
		}
		if d := e.Value - float64(b.Due().UnixNano())/1e9; math.Abs(d) > 0.001 {
			t.Errorf("the timestamp of lane %s differs by %v s from that of its newest heartbeat", e.Labels["lane"], d)
		}
	}
}

func reasons(s servers.Scrape) string {
	text := ""
	for _, e := range s.Find("heartbeats_indeterminate_total") {
		if e.Value > 0 {
			text += fmt.Sprintf(" %s %v", e.Labels["reason"], e.Value)
		}
	}
	return text
}

// wait lets time go by in a row.
func wait(t *testing.T, d time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	<-ctx.Done()
	if t.Context().Err() != nil {
		t.Fatal("the test has ended")
	}
}
