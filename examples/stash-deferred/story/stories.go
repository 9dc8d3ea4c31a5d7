package story

import (
	"bytes"
	"fmt"
	"math"
	"regexp"
	"strings"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/servers"

	"github.com/lag-monitor/lag-monitor/examples/stash-deferred/emulator"
	"github.com/lag-monitor/lag-monitor/examples/stash-deferred/stage"
)

// The expressions that stories look at: recording rules, which the dashboard shows too.
const (
	backpressure  = `quantile:stashdef_bigtable_row_scan_backpressure:seconds{quantile="0.99"}`
	backlog       = `job:stashdef_bigtable_backlog:rows`
	writeFailures = `sum(result:stashdef_kinesis_message_write:rate1m{result="failure"})`
	deleteErrors  = `operation:stashdef_errors:ratio1m{operation="delete"}`
	refused       = `sum(rate(lag_monitor_heartbeats_sent_total{probe="stash-deferred",result!="success"}[1m]))`
	duplicates    = `sum(lag_monitor_heartbeats_duplicated_total{probe="stash-deferred"})`
	dropped       = `sum(lag_monitor_heartbeats_dropped_total{probe="stash-deferred"})`
	inFlight      = `sum(lag_monitor_heartbeats_in_flight{probe="stash-deferred"})`
)

// Stories are all but the one of the kills, which needs no monitor; see Kills. Those of a stage are played in this order.
var Stories = []Story{
	{1, "All is well", "lag", allWell},
	// Before the frontend goes down: the page of that story still counts refusals of five minutes ago.
	{3, "The scanner stalls", "lag", scannerStalls},
	{2, "The frontend goes down", "lag", frontendDown},
	{5, "The deleter fails", "lag", deleterFails},
	{4, "Kinesis throttles", "throttled", kinesisThrottles},
	{6, "The publisher loses 1 message in 50", "lossy", publisherLoses},
}

// Stages are what stories are played on. No two stories of a stage disturb each other, and stages can run side by side.
var Stages = []string{"lag", "throttled", "lossy"}

// On returns the stories of a stage.
func On(name string) (on []Story) {
	for _, s := range Stories {
		if s.Stage == name {
			on = append(on, s)
		}
	}
	return on
}

// Options returns what a stage of stories is; "kills" is the one of Kills.
func Options(name, root string, binaries stage.Binaries, kinesis *servers.KinesisServer) stage.Options {
	o := stage.Options{Root: root, Binaries: binaries, Kinesis: kinesis, Prefix: name + "-", Pace: stage.Fast, Watched: true}
	switch name {
	case "lag":
		o.Rate, o.Every = 5, time.Second
	case "throttled":
		o.Rate, o.Every = burstRate, burstEvery
	case "lossy":
		// More heartbeats than messages, so that enough of them are lost within a minute.
		o.Rate, o.Pace.Interval, o.Pace.Timeout = 3, 200*time.Millisecond, 15*time.Second
	case "kills":
		o.Rate, o.Every, o.Watched, o.Unmonitored = 500, time.Second, false, true
	}
	return o
}

// The traffic of the stage "throttled": bursts of 40 messages.
const (
	burstRate  = 10
	burstEvery = 4 * time.Second
)

func allWell(t *teller) {
	p := t.Pace
	const watched = 15 * time.Second
	over := func(function string) string {
		return fmt.Sprintf(function, fmt.Sprintf("%s[%v]", lagOriginal, watched))
	}
	t.wait(watched)
	// What the lag is made of at most: the newest heartbeat is one interval old, was rounded up to a second, waited for
	// the next scan, and then for the next look of the sink. A machine that is busy adds to it now and then.
	bound := (p.Interval + time.Second + p.Scan + p.Poll).Seconds()
	median := t.await("half of the time the lag is what intervals make of it", over("quantile_over_time(0.5, %s)"), below(bound))
	low, high := t.value(over("min_over_time(%s)")), t.value(over("max_over_time(%s)"))
	if low < 0 {
		t.tb.Errorf("the lag was %v s: a message came out before it was due", low)
	}
	if n := t.value(`sum(lag_monitor_negative_latencies_total{probe="stash-deferred"})`); n != 0 {
		t.tb.Errorf("%v messages came out before they were due", n)
	}
	t.step(Step{
		What: "nothing",
		Seen: fmt.Sprintf("lag %s to %s, median %s; interval + scan interval + poll + rounding to a second are %s; counted from the sending %s more, the expiry; publish failures %s; backlog %.0f rows",
			seconds(low), seconds(high), seconds(median), seconds(bound), p.Expiry, rate(t.value(writeFailures)), t.value(backlog)),
		Conclusion: "Messages come out when they are due. Nobody is called.",
	})
	t.had()
}

// whySendsFail finds the reason in the monitor's log: nobody listens, or the connection broke.
var whySendsFail = regexp.MustCompile(`injection fails.* err="[^"]*(connection refused|connection reset by peer|EOF)`)

func frontendDown(t *teller) {
	t.Frontend.Kill()
	t.step(Step{What: "the frontend's process is killed", Seen: fmt.Sprintf("lag %s", seconds(t.value(lagNow))), Conclusion: "Messages that were taken still come out; new ones are not taken."})
	page := t.paged()
	failing := t.await("the monitor's sends fail", refused, above(0))
	why := ""
	if m := whySendsFail.FindStringSubmatch(t.Monitor.Log()); m != nil {
		why = m[1]
	} else {
		t.tb.Errorf("the monitor does not say why its sends fail; end of its log:\n%s", t.Monitor.LogTail())
	}
	t.step(Step{
		What: "the page comes", Page: page.Text,
		Seen: fmt.Sprintf("lag %s; heartbeats that the head did not take %s; the log of lag-monitor says `%s`; publish failures %s; backlog %.0f rows",
			seconds(t.value(lagNow)), rate(failing), why, rate(t.value(writeFailures)), t.value(backlog)),
		Conclusion: "Users cannot send. The backend is idle and has no failures: look at the frontend, not at Bigtable or Kinesis.",
	})
	t.Frontend.Start()
	t.resolved()
	t.step(Step{What: "the frontend is started", Seen: fmt.Sprintf("lag %s", seconds(t.value(lagNow))), Conclusion: "It is over. Nothing that had been taken was late."})
	t.had("PAGE", "RESOLVED")
}

func scannerStalls(t *teller) {
	before, waiting := t.value(backpressure), t.value(backlog)
	t.Bigtable.Set(emulator.Faults{ScanHangs: true})
	t.step(Step{What: "Bigtable does not answer scans any more", Seen: fmt.Sprintf("lag %s, backlog %.0f rows, backpressure p99 %s", seconds(t.value(lagNow)), waiting, seconds(before)), Conclusion: "Users notice nothing: their messages are taken."})
	page := t.paged()
	grown := t.await("the backlog grows", backlog, above(waiting+20))
	now := t.value(backpressure)
	// NaN: nothing was scanned in the last minute, so nothing had to wait.
	if now > math.Max(3*before, 0.05) {
		t.tb.Errorf("backpressure is %s; before it was %s", seconds(now), seconds(before))
	}
	failing := t.await("scans fail", `sum(result:stashdef_bigtable_row_scan:rate1m{result="failure"})`, above(0))
	t.step(Step{
		What: "the page comes", Page: page.Text,
		Seen: fmt.Sprintf("lag %s; backlog %.0f rows, the oldest due for %s; backpressure p99 %s; scans that broke off %s; publish failures %s; heartbeats that the head did not take %s",
			seconds(t.value(lagNow)), grown, seconds(t.value(`job:stashdef_bigtable_backlog:seconds`)), seconds(now), rate(failing), rate(t.value(writeFailures)), rate(t.value(refused))),
		Conclusion: "Messages are taken and pile up, and nobody waits for a publisher: the scanner is what is slow. Look at Bigtable.",
	})
	t.Bigtable.Set(emulator.Faults{})
	t.resolved()
	rest := t.await("the backlog is gone", backlog, below(waiting+20))
	t.step(Step{What: "Bigtable answers again", Seen: fmt.Sprintf("lag %s, backlog %.0f rows", seconds(t.value(lagNow)), rest), Conclusion: "What had piled up has come out, late."})
	t.had("PAGE", "RESOLVED")
}

func kinesisThrottles(t *teller) {
	before := t.value(backpressure)
	const enough, tooFew = 15, 4
	t.Broker.LimitWrites(enough)
	t.step(Step{What: fmt.Sprintf("the shards take no more than %d messages a second; users send %d, in bursts", enough, t.Rate), Seen: fmt.Sprintf("lag %s, backpressure p99 %s", seconds(t.value(lagNow)), seconds(before)), Conclusion: "Each burst takes longer than before."})
	failing := t.await("attempts are throttled", writeFailures, above(1))
	pressed := t.await("the scanner waits for publishers", backpressure, above(math.Max(2*before, 0.1)))
	t.wait(t.Pace.Lag + t.Pace.For)
	worst := t.value(fmt.Sprintf("max_over_time(%s[%v])", lagNow, t.Pace.Lag+t.Pace.For))
	t.had()
	t.step(Step{
		What: "it goes on like that",
		Seen: fmt.Sprintf("lag at most %s; publish failures %s; backpressure p99 %s, before %s; error ratio of publishing %s",
			seconds(worst), rate(failing), seconds(pressed), seconds(before), percent(t.value(`operation:stashdef_errors:ratio1m{operation="publish"}`))),
		Conclusion: "Kinesis is too small for bursts, which retries and backpressure even out. No user feels it, so nobody is called; add a shard in working hours.",
	})
	t.Broker.LimitWrites(tooFew)
	page := t.paged()
	t.step(Step{
		What: fmt.Sprintf("now they take %d a second: the page comes", tooFew), Page: page.Text,
		Seen: fmt.Sprintf("lag %s; backlog %.0f rows; publish failures %s; backpressure p99 %s; scans that broke off %s",
			seconds(t.value(lagNow)), t.value(backlog), rate(t.value(writeFailures)), seconds(t.value(backpressure)), rate(t.value(`sum(result:stashdef_bigtable_row_scan:rate1m{result="failure"})`))),
		Conclusion: "Now users feel it. The scanner waits for publishers, and publishers for Kinesis: it is throttling, not Bigtable.",
	})
	t.Broker.LimitWrites(0)
	t.resolved()
	t.step(Step{What: "the limit is lifted", Seen: fmt.Sprintf("lag %s", seconds(t.value(lagNow))), Conclusion: "Nothing was lost: what was throttled stayed in Bigtable until it had been published."})
	t.had("PAGE", "RESOLVED")
}

func deleterFails(t *teller) {
	before, waiting := t.value(duplicates), t.value(backlog)
	t.Bigtable.Set(emulator.Faults{NoDeletion: true})
	t.step(Step{What: "a change of roles takes the right to delete rows away", Seen: fmt.Sprintf("heartbeats that came twice %.0f, deletion error ratio %s", before, percent(t.value(deleteErrors))), Conclusion: "Everything is published as before, and stays in Bigtable."})
	more := t.await("heartbeats come twice", duplicates, above(before+3))
	ratio := t.await("deletions fail", deleteErrors, above(0.3))
	ticket := t.message("TICKET", "stash-deferred")
	t.step(Step{
		What: "the ticket comes", Page: ticket.Text,
		Seen: fmt.Sprintf("lag %s; heartbeats that came twice %.0f; deletion error ratio %s; backlog %.0f rows; publish failures %s",
			seconds(t.value(lagNow)), more, percent(ratio), t.value(backlog), rate(t.value(writeFailures))),
		Conclusion: "Consumers get messages again and again; at least once is what they were promised, so it can wait until the morning, but not until next week: the backlog grows. Give the right back.",
	})
	t.Bigtable.Set(emulator.Faults{})
	rest := t.await("the backlog is gone", backlog, below(waiting+20))
	t.await("deletions succeed", `sum(rate(stashdef_bigtable_row_delete_total{result="failure"}[5s]))`, below(0.01))
	t.step(Step{What: "the right is given back", Seen: fmt.Sprintf("lag %s, backlog %.0f rows", seconds(t.value(lagNow)), rest), Conclusion: "All rows are deleted. Nothing was lost."})
	for _, title := range t.incidents() {
		if title == "PAGE" {
			t.had("TICKET")
			break
		}
	}
}

func publisherLoses(t *teller) {
	const nth = 50
	if n := t.value(dropped); n != 0 {
		t.tb.Fatalf("%v heartbeats are dropped before any is lost: the story needs a stage of its own", n)
	}
	t.Broker.Swallow(nth)
	t.step(Step{What: fmt.Sprintf("each %dth message is lost between the publisher and the stream, and the publisher is told that it is there", nth), Seen: "nothing in any metric of the service", Conclusion: "Nobody inside can know."})
	page := t.message("PAGE", "do not come out")
	t.step(Step{
		What: "the page comes", Page: page.Text,
		Seen: fmt.Sprintf("lag %s; heartbeats dropped %.0f; publish failures %s; deletion error ratio %s; error ratio of everything %s",
			seconds(t.value(lagNow)), t.value(dropped), rate(t.value(writeFailures)), percent(t.value(deleteErrors)), percent(t.value(`job:stashdef_errors:ratio1m`))),
		Conclusion: "Messages that were taken do not come out, at low lag and without one error: they are lost behind the publisher. Stop the rollout; compare what is published with what is in the stream.",
	})
	t.Broker.Swallow(0)
	lost := 0
	for _, data := range t.Broker.Swallowed() {
		if bytes.Contains(data, []byte("~lagmon1.")) {
			lost++
		}
	}
	// Each one that is lost is known at its deadline, and no other is.
	got := t.await("all lost heartbeats are counted", dropped, func(v float64) bool { return v >= float64(lost) })
	t.wait(t.Pace.Timeout/4 + 2*time.Second)
	if got = math.Max(got, t.value(dropped)); got != float64(lost) {
		t.tb.Errorf("%v heartbeats are counted as dropped; %d were lost", got, lost)
	}
	worst := t.value(fmt.Sprintf("max_over_time(%s[%v])", lagNow, time.Since(t.began).Round(time.Second)))
	if worst > t.Pace.Lag.Seconds() {
		t.tb.Errorf("the lag went up to %v s", worst)
	}
	t.step(Step{
		What:       "messages come through again",
		Seen:       fmt.Sprintf("heartbeats lost %d, counted as dropped %.0f; lag at most %s", lost, got, seconds(worst)),
		Conclusion: "The count is exact: each heartbeat that was lost, and no other.",
	})
	for _, m := range t.Slack.Messages() {
		if strings.Contains(m.Text, lateText) || strings.Contains(m.Text, writeUp) {
			t.tb.Errorf("the lag has paged, and there was none: %s", m.Text)
		}
	}
}
