package story

import (
	"context"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/servers"

	"github.com/lag-monitor/lag-monitor/examples/stash-deferred/stage"
)

// patience is how long a story waits for something that should come much sooner: several run at once on a machine
// with two cores.
const patience = 90 * time.Second

// Step is something that a responder sees, and what follows from it.
type Step struct {
	After      time.Duration // since the story began
	What       string        // what is done, or what happens
	Seen       string        // figures, each with its name
	Page       string        // the text of a message in the team's channel; empty: there is none
	Conclusion string
}

// Told is a story that has been played.
type Told struct {
	Number int
	Title  string
	Steps  []Step
}

// Story is one of them. Those with one Stage follow each other on it, the others can be played beside them.
type Story struct {
	Number int
	Title  string
	Stage  string
	play   func(*teller)
}

// teller plays a story.
type teller struct {
	*stage.Stage
	tb    testing.TB
	told  Told
	began time.Time
	tell  func(Step)
}

// Play plays a story on a stage that is watched, and calls tell for each step as it comes.
func (s Story) Play(tb testing.TB, st *stage.Stage, tell func(Step)) Told {
	tb.Helper()
	t := &teller{Stage: st, tb: tb, told: Told{Number: s.Number, Title: s.Title}, tell: tell}
	t.calm()
	t.began = time.Now()
	s.play(t)
	return t.told
}

// step adds what is seen now.
func (t *teller) step(s Step) {
	s.After = time.Since(t.began)
	t.told.Steps = append(t.told.Steps, s)
	t.tell(s)
}

// value is that of an expression which has one; NaN when it has none.
func (t *teller) value(expr string) float64 {
	t.tb.Helper()
	values, err := t.Query(t.tb.Context(), expr)
	if err != nil {
		t.tb.Fatalf("query %s: %v", expr, err)
	}
	switch len(values) {
	case 0:
		return math.NaN()
	case 1:
		return values[0]
	}
	t.tb.Fatalf("query %s has %d values; want one", expr, len(values))
	return 0
}

// await asks until ok accepts the value of an expression, and returns that one. Errors of Prometheus are waited out.
func (t *teller) await(what, expr string, ok func(float64) bool) float64 {
	t.tb.Helper()
	ctx, cancel := context.WithTimeout(t.tb.Context(), patience)
	defer cancel()
	for {
		values, err := t.Query(ctx, expr)
		if err == nil && len(values) == 1 && ok(values[0]) {
			return values[0]
		}
		select {
		case <-ctx.Done():
			t.tb.Fatalf("not within %v: %s; %s is %v (%v); %s", patience, what, expr, values, err, t.Status(context.Background()))
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func above(x float64) func(float64) bool { return func(v float64) bool { return v > x } }
func below(x float64) func(float64) bool { return func(v float64) bool { return v < x } }

// wait lets time pass.
func (t *teller) wait(d time.Duration) {
	select {
	case <-time.After(d):
	case <-t.tb.Context().Done():
		t.tb.Fatal("ended before its end")
	}
}

// The lags, as the write-up's rule and lag-monitor's own know them.
const (
	lagOriginal = `job:stashdef_lag:seconds`
	lagNow      = `job_probe:lag_monitor_lag_seconds:max{probe="stash-deferred"}`
)

// calm waits until all is well: rules have values, the lag is low, no alert of the service is on its way.
func (t *teller) calm() {
	t.tb.Helper()
	low := below(t.Pace.Lag.Seconds() / 2)
	t.await("the lag is low", lagNow, low)
	t.await("the lag is low", lagOriginal, low)
	t.await("users are served", `sum(result:stashdef_kinesis_message_write:rate1m{result="success"})`, above(0))
	t.await("no alert is left", `count(ALERTS{probe="stash-deferred"}) or vector(0)`, below(1))
}

// message waits for a message to the channel that came since the story began and holds all the texts.
func (t *teller) message(title string, texts ...string) servers.SlackMessage {
	t.tb.Helper()
	ctx, cancel := context.WithTimeout(t.tb.Context(), patience)
	defer cancel()
	m, err := t.Slack.Wait(ctx, func(m servers.SlackMessage) bool {
		if m.Received.Before(t.began) || m.Title != title+": stash-deferred" {
			return false
		}
		for _, text := range texts {
			if !strings.Contains(m.Text, text) {
				return false
			}
		}
		return true
	})
	if err != nil {
		t.tb.Fatalf("%s with %q: %v; %s", title, texts, err, t.Status(context.Background()))
	}
	if m.Channel != "#stash-deferred" {
		t.tb.Errorf("%s went to %s; want #stash-deferred", m.Title, m.Channel)
	}
	return m
}

// incidents returns what the channel has seen since the story began: PAGE, TICKET, RESOLVED. Messages that follow one of
// the same kind bring an open page up to date.
func (t *teller) incidents() (titles []string) {
	for _, m := range t.Slack.Messages() {
		title, _, _ := strings.Cut(m.Title, ":")
		if !m.Received.Before(t.began) && (len(titles) == 0 || titles[len(titles)-1] != title) {
			titles = append(titles, title)
		}
	}
	return titles
}

// had checks what the channel has seen.
func (t *teller) had(want ...string) {
	t.tb.Helper()
	if got := t.incidents(); fmt.Sprint(got) != fmt.Sprint(want) {
		var texts []string
		for _, m := range t.Slack.Messages() {
			texts = append(texts, m.Received.Format("15:04:05.0 ")+m.Title+"\n"+m.Text)
		}
		t.tb.Errorf("story %d: the channel has seen %v; want %v\n%s", t.told.Number, got, want, strings.Join(texts, "\n"))
	}
}

// The texts that a page of the lag holds: the write-up's, and lag-monitor's own.
const (
	writeUp  = "Stash deferred messages are arriving"
	lateText = "messages come out"
)

// paged waits for the page of the lag.
func (t *teller) paged() servers.SlackMessage {
	t.tb.Helper()
	return t.message("PAGE", writeUp, lateText)
}

// resolved waits until the page has ended.
func (t *teller) resolved() {
	t.tb.Helper()
	t.await("the lag is low again", lagNow, below(t.Pace.Lag.Seconds()/2))
	t.message("RESOLVED")
}

func seconds(v float64) string {
	if math.IsNaN(v) {
		return "none"
	}
	if v < 0.1 {
		return fmt.Sprintf("%.0f ms", v*1000)
	}
	return fmt.Sprintf("%.1f s", v)
}

func rate(v float64) string {
	if math.IsNaN(v) {
		v = 0
	}
	return fmt.Sprintf("%.1f/s", v)
}

func percent(v float64) string {
	if math.IsNaN(v) {
		v = 0
	}
	return fmt.Sprintf("%.0f %%", v*100)
}
