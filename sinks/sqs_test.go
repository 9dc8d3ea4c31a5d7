package sinks

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/sqs"

	"github.com/lag-monitor/lag-monitor/internal/conn"
	"github.com/lag-monitor/lag-monitor/internal/heartbeat"
)

// sqsHeld is a message in a fakeSQS.
type sqsHeld struct {
	id, body string
	header   string
	system   map[string]string // attributes of the service
	sent     time.Time
	visible  time.Time
	receives int
}

// fakeSQS is a queue that a client reaches without a network, so that its time may be that of synctest.
type fakeSQS struct {
	mu         sync.Mutex
	messages   []*sqsHeld
	attributes map[string]string
	calls      map[string]int
	batches    [][]string // ids that were deleted
	putBack    []string
	lose       map[string]int // so many answers of an action are lost
	fail       map[string]int // so many entries of a batch fail
	early      bool           // empty answers do not wait
}

func newFakeSQS() *fakeSQS {
	return &fakeSQS{attributes: map[string]string{"MessageRetentionPeriod": "345600", "ApproximateNumberOfMessages": "1", "ApproximateNumberOfMessagesNotVisible": "2", "ApproximateNumberOfMessagesDelayed": "4"},
		calls: map[string]int{}, lose: map[string]int{}, fail: map[string]int{}}
}

func (q *fakeSQS) put(m *sqsHeld) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if m.id == "" {
		m.id = "m" + strconv.Itoa(q.calls["put"])
		q.calls["put"]++
	}
	if m.sent.IsZero() {
		m.sent = time.Now()
	}
	q.messages = append(q.messages, m)
}

func (q *fakeSQS) left() int { q.mu.Lock(); defer q.mu.Unlock(); return len(q.messages) }

func (q *fakeSQS) deleted() (ids []string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return slices.Concat(q.batches...)
}

var errAnswerLost = errors.New("connection reset by peer")

// Do is the client's HTTP client.
func (q *fakeSQS) Do(r *http.Request) (*http.Response, error) {
	_, action, _ := strings.Cut(r.Header.Get("X-Amz-Target"), ".")
	b, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	var in struct {
		WaitTimeSeconds, MaxNumberOfMessages, VisibilityTimeout int
		Entries                                                 []struct{ Id, ReceiptHandle string }
		AttributeNames                                          []string
	}
	if err := json.Unmarshal(b, &in); err != nil {
		return nil, err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.calls[action]++
	var out any
	switch action {
	case "GetQueueUrl":
		out = map[string]any{"QueueUrl": "http://fake/123456789012/q"}
	case "GetQueueAttributes":
		got := map[string]string{}
		for _, n := range in.AttributeNames {
			if v, ok := q.attributes[n]; ok {
				got[n] = v
			}
		}
		out = map[string]any{"Attributes": got}
	case "ReceiveMessage":
		if in.WaitTimeSeconds == 0 { // the SDK does not send it
			in.WaitTimeSeconds, _ = strconv.Atoi(q.attributes["ReceiveMessageWaitTimeSeconds"])
		}
		found, err := q.receive(r, in.WaitTimeSeconds, in.MaxNumberOfMessages, in.VisibilityTimeout)
		if err != nil {
			return nil, err
		}
		out = map[string]any{"Messages": found}
	case "DeleteMessageBatch", "ChangeMessageVisibilityBatch":
		var done, failed []any
		var ids []string
		for _, e := range in.Entries {
			id, _, _ := strings.Cut(e.ReceiptHandle, "/")
			i := slices.IndexFunc(q.messages, func(m *sqsHeld) bool { return m.id == id })
			if q.fail[action] > 0 {
				q.fail[action]--
				failed = append(failed, map[string]any{"Id": e.Id, "Code": "InternalError", "Message": "not now", "SenderFault": false})
				continue
			}
			done = append(done, map[string]any{"Id": e.Id})
			ids = append(ids, id)
			if i < 0 {
				continue // what is gone is deleted
			}
			if action == "DeleteMessageBatch" {
				q.messages = slices.Delete(q.messages, i, i+1)
			} else {
				q.messages[i].visible = time.Now()
				q.putBack = append(q.putBack, id)
			}
		}
		if action == "DeleteMessageBatch" {
			q.batches = append(q.batches, ids)
		}
		out = map[string]any{"Successful": done, "Failed": failed}
	default:
		return nil, fmt.Errorf("no action %q", action)
	}
	if q.lose[action] > 0 {
		q.lose[action]--
		return nil, errAnswerLost
	}
	body, err := json.Marshal(out)
	return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(strings.NewReader(string(body))), Header: http.Header{"Content-Type": {"application/x-amz-json-1.0"}}, Request: r}, err
}

// receive waits for messages as the service does. It holds q.mu but not while it waits.
func (q *fakeSQS) receive(r *http.Request, wait, most, visibility int) (found []any, err error) {
	for end := time.Now().Add(time.Duration(wait) * time.Second); ; {
		for _, m := range q.messages {
			if len(found) == most || time.Now().Before(m.visible) {
				continue
			}
			m.receives++
			m.visible = time.Now().Add(time.Duration(visibility) * time.Second)
			attributes := map[string]string{"SentTimestamp": strconv.FormatInt(m.sent.UnixMilli(), 10), "ApproximateReceiveCount": strconv.Itoa(m.receives)}
			for k, v := range m.system {
				attributes[k] = v
			}
			one := map[string]any{"MessageId": m.id, "Body": m.body, "ReceiptHandle": m.id + "/" + strconv.Itoa(m.receives), "Attributes": attributes}
			if m.header != "" {
				one["MessageAttributes"] = map[string]any{"lag-monitor-heartbeat": map[string]any{"DataType": "String", "StringValue": m.header}}
			}
			found = append(found, one)
		}
		if len(found) > 0 || q.early || !time.Now().Before(end) {
			return found, nil
		}
		q.mu.Unlock()
		select {
		case <-time.After(10 * time.Millisecond):
		case <-r.Context().Done():
			err = r.Context().Err()
		}
		q.mu.Lock()
		if err != nil {
			return nil, err
		}
	}
}

// onFakeSQS returns a sink of q.
func onFakeSQS(t *testing.T, q *fakeSQS, set func(*SQS)) *sqsSink {
	t.Helper()
	t.Setenv("LAG_MONITOR_TEST_AWS_ID", "id")
	c := NewSQS()
	c.Queue, c.Dedicated, c.Region = "q", true, "eu-west-1"
	c.AccessKeyID, c.SecretAccessKey = conn.Secret{Env: "LAG_MONITOR_TEST_AWS_ID"}, conn.Secret{Env: "LAG_MONITOR_TEST_AWS_ID"}
	if set != nil {
		set(c)
	}
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	client, err := c.OpenClient(func(o *sqs.Options) { o.HTTPClient = q; o.DisableMessageChecksumValidation = true })
	if err != nil {
		t.Fatal(err)
	}
	return &sqsSink{c: c, client: client, unsettled: make(map[string]*sqsTaken), age: -1}
}

// arrivals is a taker that keeps what it was told.
type sqsArrivals struct {
	taker
	all     []Arrival
	deaths  []Death
	foreign bool // every heartbeat is somebody else's
}

func (r *sqsArrivals) Heartbeat(h *heartbeat.Heartbeat, a Arrival) Kind {
	kind := r.taker.Heartbeat(h, a)
	r.mu.Lock()
	defer r.mu.Unlock()
	if a.Dead != nil {
		r.deaths = append(r.deaths, *a.Dead)
	}
	r.all = append(r.all, a)
	if r.foreign {
		return Foreign
	}
	return kind
}

// sqsRun runs the sink in a bubble; stop ends it and returns its error.
func sqsRun(t *testing.T, s *sqsSink, r Receiver) (f *Feed, stop func() error, done chan error) {
	ctx, cancel := context.WithCancel(t.Context())
	f, done = NewFeed(r, nil), make(chan error, 1)
	go func() { done <- s.Run(ctx, f) }()
	return f, func() error {
		cancel()
		began := time.Now()
		err := <-done
		if took := time.Since(began); took > 2500*time.Millisecond {
			t.Errorf("Run took %s to end", took)
		}
		done <- err
		return err
	}, done
}

// inSQS runs a test in a bubble of its own time, with a sink on a fake.
func inSQS(t *testing.T, set func(*SQS), test func(t *testing.T, q *fakeSQS, s *sqsSink, r *sqsArrivals)) {
	t.Helper()
	q := newFakeSQS()
	s := onFakeSQS(t, q, set)
	synctest.Test(t, func(t *testing.T) { test(t, q, s, &sqsArrivals{}) })
}

func (r *taker) lastCaughtUp() time.Time { r.mu.Lock(); defer r.mu.Unlock(); return r.caughtUp }

// sqsPass lets time go by, and the sink do what it has to do then.
func sqsPass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// TestSQSEmptyIsProof: a whole wait without a message proves the queue empty, once nobody before us can hold one.
func TestSQSEmptyIsProof(t *testing.T) {
	inSQS(t, nil, func(t *testing.T, q *fakeSQS, s *sqsSink, r *sqsArrivals) {
		began := time.Now()
		f, stop, _ := sqsRun(t, s, r)
		sqsPass(30 * time.Second)
		if at := r.lastCaughtUp(); !at.IsZero() {
			t.Errorf("caught up with %s after the start although a message may be hidden for 31s", at.Sub(began))
		}
		if !f.Stats().Ready {
			t.Error("not ready")
		}
		sqsPass(5 * time.Second)
		if at := r.lastCaughtUp(); time.Since(at) > 2100*time.Millisecond || at.After(time.Now().Add(-time.Second)) {
			t.Errorf("caught up with %s ago, want one to two seconds", time.Since(at))
		}
		q.put(&sqsHeld{body: tokenOf(1)})
		sqsPass(50 * time.Millisecond)
		if got := r.arrived(); !slices.Equal(got, []uint64{1}) || q.left() != 0 {
			t.Errorf("arrived %v, %d left", got, q.left())
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

// TestSQSQueueWaits: a queue may make requests wait that do not say how long.
func TestSQSQueueWaits(t *testing.T) {
	inSQS(t, nil, func(t *testing.T, q *fakeSQS, s *sqsSink, r *sqsArrivals) {
		q.attributes["ReceiveMessageWaitTimeSeconds"] = "20"
		f, stop, done := sqsRun(t, s, r)
		sqsPass(3 * time.Second)
		if !f.Stats().Ready {
			t.Error("not ready")
		}
		sqsPass(40 * time.Second)
		if len(done) > 0 || r.lastCaughtUp().IsZero() {
			t.Error("not caught up with an empty queue")
		}
		_ = stop()
	})
}

// TestSQSEarlyAnswer: who answers at once, with nothing, has sampled, and is not asked in a rush.
func TestSQSEarlyAnswer(t *testing.T) {
	inSQS(t, nil, func(t *testing.T, q *fakeSQS, s *sqsSink, r *sqsArrivals) {
		q.early = true
		_, stop, _ := sqsRun(t, s, r)
		sqsPass(time.Minute)
		if at := r.lastCaughtUp(); !at.IsZero() {
			t.Error("caught up by an answer that did not wait")
		}
		if n := q.calls["ReceiveMessage"]; n > 70 {
			t.Errorf("%d requests in a minute", n)
		}
		_ = stop()
	})
}

// TestSQSLostAnswer: what was in an answer that got lost comes again, once, and nothing is claimed until then.
func TestSQSLostAnswer(t *testing.T) {
	inSQS(t, nil, func(t *testing.T, q *fakeSQS, s *sqsSink, r *sqsArrivals) {
		_, stop, done := sqsRun(t, s, r)
		sqsPass(40 * time.Second)
		q.mu.Lock()
		q.lose["ReceiveMessage"] = 1
		q.mu.Unlock()
		q.put(&sqsHeld{body: tokenOf(1)})
		lost := time.Now()
		sqsPass(2 * time.Second)
		if err := <-done; err == nil {
			t.Fatal("a lost answer did not end Run")
		}
		done <- nil
		_ = stop()
		_, stop, _ = sqsRun(t, s, r)
		sqsPass(27 * time.Second)
		if at := r.lastCaughtUp(); at.After(lost) {
			t.Errorf("caught up with %s after an answer was lost", at.Sub(lost))
		}
		sqsPass(10 * time.Second)
		if at := r.lastCaughtUp(); !at.After(lost) {
			t.Error("not caught up again")
		}
		if got := r.arrived(); !slices.Equal(got, []uint64{1}) {
			t.Errorf("arrived %v", got)
		}
		if len(r.gaps) > 0 {
			t.Errorf("gaps %v", r.gaps)
		}
		_ = stop()
	})
}

// TestSQSRedriveIsAGap: where a queue gives up what is received too often, a lost answer may have been the last one.
func TestSQSRedriveIsAGap(t *testing.T) {
	inSQS(t, nil, func(t *testing.T, q *fakeSQS, s *sqsSink, r *sqsArrivals) {
		q.attributes["RedrivePolicy"] = `{"maxReceiveCount":"1"}`
		_, stop, done := sqsRun(t, s, r)
		sqsPass(3 * time.Second)
		before := len(r.gaps)
		q.mu.Lock()
		q.lose["ReceiveMessage"] = 1
		q.mu.Unlock()
		sqsPass(3 * time.Second)
		<-done
		done <- nil
		_ = stop()
		if len(r.gaps) != before+1 {
			t.Errorf("gaps %v", r.gaps)
		}
	})
}

// TestSQSDeleteFails: what could not be deleted comes again, is not counted again, and is deleted then.
func TestSQSDeleteFails(t *testing.T) {
	for _, how := range []string{"entry", "answer"} {
		inSQS(t, nil, func(t *testing.T, q *fakeSQS, s *sqsSink, r *sqsArrivals) {
			f, stop, done := sqsRun(t, s, r)
			sqsPass(2 * time.Second)
			q.mu.Lock()
			if how == "entry" {
				q.fail["DeleteMessageBatch"] = 1
			} else {
				q.lose["DeleteMessageBatch"] = 1
			}
			q.mu.Unlock()
			q.put(&sqsHeld{body: tokenOf(1)})
			sqsPass(time.Second)
			if how == "answer" {
				if err := <-done; err == nil {
					t.Error("a lost answer did not end Run")
				}
				done <- nil
				_ = stop()
				_, stop, _ = sqsRun(t, s, r)
			} else if n := f.Stats().Errors[conn.Other]; n != 1 {
				t.Errorf("%d errors", n)
			}
			sqsPass(40 * time.Second)
			if got := r.arrived(); !slices.Equal(got, []uint64{1}) || q.left() != 0 || len(s.unsettled) != 0 {
				t.Errorf("%s: arrived %v, %d left, %d unsettled", how, got, q.left(), len(s.unsettled))
			}
			_ = stop()
		})
	}
}

// TestSQSForgets: what could not be deleted, and does not come again, holds a FIFO queue's proof up for a while only.
func TestSQSForgets(t *testing.T) {
	inSQS(t, func(c *SQS) { c.Queue = "q.fifo" }, func(t *testing.T, q *fakeSQS, s *sqsSink, r *sqsArrivals) {
		_, stop, _ := sqsRun(t, s, r)
		sqsPass(2 * time.Second)
		q.mu.Lock()
		q.fail["DeleteMessageBatch"] = 1
		q.mu.Unlock()
		q.put(&sqsHeld{body: tokenOf(1)})
		sqsPass(time.Second)
		q.mu.Lock()
		q.messages = nil // it was deleted after all
		q.mu.Unlock()
		sqsPass(50 * time.Second)
		if !r.lastCaughtUp().IsZero() {
			t.Error("caught up while a message may hold up its group")
		}
		sqsPass(20 * time.Second)
		if r.lastCaughtUp().IsZero() || len(s.unsettled) != 0 {
			t.Errorf("not caught up, %d unsettled", len(s.unsettled))
		}
		_ = stop()
	})
}

// TestSQSHoldsForTheJournal: a heartbeat stays in the queue until the journal has it, or half the visibility timeout.
func TestSQSHoldsForTheJournal(t *testing.T) {
	inSQS(t, nil, func(t *testing.T, q *fakeSQS, s *sqsSink, r *sqsArrivals) {
		s.Position()
		_, stop, _ := sqsRun(t, s, r)
		sqsPass(time.Second)
		q.put(&sqsHeld{body: tokenOf(1)})
		q.put(&sqsHeld{body: "ordinary"})
		sqsPass(5 * time.Second)
		if q.left() != 1 {
			t.Errorf("%d left before the journal was written, want the heartbeat", q.left())
		}
		s.Position() // asks
		sqsPass(2 * time.Second)
		if q.left() != 1 {
			t.Error("deleted before it was written")
		}
		s.Settle()
		sqsPass(2 * time.Second)
		if q.left() != 0 {
			t.Error("not deleted after it was written")
		}
		q.put(&sqsHeld{body: tokenOf(2)})
		sqsPass(14 * time.Second)
		if q.left() != 1 {
			t.Error("deleted before it was written")
		}
		sqsPass(4 * time.Second)
		if q.left() != 0 {
			t.Error("held for longer than half the visibility timeout")
		}
		if got := r.arrived(); !slices.Equal(got, []uint64{1, 2}) {
			t.Errorf("arrived %v", got)
		}
		_ = stop()
	})
}

// TestSQSFIFOHeld: what is held keeps back others of its group, so that an empty answer proves nothing.
func TestSQSFIFOHeld(t *testing.T) {
	for _, fifo := range []bool{false, true} {
		inSQS(t, func(c *SQS) {
			if fifo {
				c.Queue = "q.fifo"
			}
		}, func(t *testing.T, q *fakeSQS, s *sqsSink, r *sqsArrivals) {
			s.Position()
			_, stop, _ := sqsRun(t, s, r)
			sqsPass(40 * time.Second)
			q.put(&sqsHeld{body: tokenOf(1)})
			at := time.Now()
			sqsPass(10 * time.Second)
			if caught := r.lastCaughtUp().After(at); caught == fifo {
				t.Errorf("FIFO %t: caught up while a heartbeat is held: %t", fifo, caught)
			}
			_ = stop()
			if hidden := time.Now().Before(q.messages[0].visible); hidden == fifo {
				t.Errorf("FIFO %t: at the end, what is held is hidden: %t", fifo, hidden)
			}
		})
	}
}

// TestSQSFIFODeletesSoon: a long wait does not keep what the journal has.
func TestSQSFIFODeletesSoon(t *testing.T) {
	inSQS(t, func(c *SQS) { c.Queue, c.Wait = "q.fifo", conn.Duration(20*time.Second) }, func(t *testing.T, q *fakeSQS, s *sqsSink, r *sqsArrivals) {
		s.Position()
		_, stop, _ := sqsRun(t, s, r)
		sqsPass(time.Second)
		q.put(&sqsHeld{body: tokenOf(1)})
		sqsPass(500 * time.Millisecond)
		s.Position()
		s.Settle()
		sqsPass(2 * time.Second)
		if q.left() > 0 {
			t.Error("a heartbeat that the journal has keeps back its group")
		}
		_ = stop()
	})
}

// TestSQSDeadLetter: the queue that a message was given up in, and how often it was tried.
func TestSQSDeadLetter(t *testing.T) {
	inSQS(t, nil, func(t *testing.T, q *fakeSQS, s *sqsSink, r *sqsArrivals) {
		q.put(&sqsHeld{body: "x", header: tokenOf(1), receives: 3, system: map[string]string{"DeadLetterQueueSourceArn": "arn:aws:sqs:eu-west-1:123456789012:work"}})
		q.put(&sqsHeld{body: tokenOf(2), receives: 3})
		_, stop, _ := sqsRun(t, s, r)
		sqsPass(time.Second)
		if want := []Death{{Reason: DeadDeliveryLimit, Queue: "work"}}; !slices.Equal(r.deaths, want) {
			t.Errorf("deaths %v, want %v", r.deaths, want)
		}
		if r.all[0].Retries != 3 || r.all[1].Retries != 0 {
			t.Errorf("retries %d and %d", r.all[0].Retries, r.all[1].Retries)
		}
		if r.all[0].ID == 0 || r.all[0].ID == r.all[1].ID {
			t.Errorf("identities %d and %d", r.all[0].ID, r.all[1].ID)
		}
		_ = stop()
	})
}

// TestSQSTimer: a message that a timer held back came in when the timer ended, as far as anybody can know.
func TestSQSTimer(t *testing.T) {
	inSQS(t, nil, func(t *testing.T, q *fakeSQS, s *sqsSink, r *sqsArrivals) {
		_, stop, _ := sqsRun(t, s, r)
		sqsPass(40 * time.Second)
		q.put(&sqsHeld{body: tokenOf(1), visible: time.Now().Add(time.Minute)})
		q.put(&sqsHeld{body: tokenOf(2), visible: time.Now().Add(time.Second)})
		sqsPass(70 * time.Second)
		for i, low := range []time.Duration{0, 57 * time.Second} { // the second message comes first
			if d := r.all[i].Enqueued.Sub(r.all[0].Enqueued); d < low || d > low+3*time.Second {
				t.Errorf("message %d entered %s after the first", i, d)
			}
		}
		_ = stop()
	})
}

// TestSQSExpired: messages that were too old for the queue may be gone.
func TestSQSExpired(t *testing.T) {
	inSQS(t, nil, func(t *testing.T, q *fakeSQS, s *sqsSink, r *sqsArrivals) {
		q.attributes["MessageRetentionPeriod"] = "600"
		_, stop, _ := sqsRun(t, s, r)
		sqsPass(time.Minute)
		_ = stop()
		sqsPass(5 * time.Minute)
		_, stop, _ = sqsRun(t, s, r)
		sqsPass(time.Second)
		_ = stop()
		if len(r.gaps) != 0 {
			t.Errorf("gaps %v after five minutes", r.gaps)
		}
		next := &sqsSink{c: s.c, client: s.client, unsettled: map[string]*sqsTaken{}}
		next.Resume(s.Position())
		sqsPass(11 * time.Minute)
		_, stop, _ = sqsRun(t, next, r)
		sqsPass(time.Second)
		if !slices.Equal(r.gaps, []string{"expired"}) {
			t.Errorf("gaps %v after eleven minutes", r.gaps)
		}
		q.put(&sqsHeld{body: "old", sent: time.Now().Add(-550 * time.Second)})
		sqsPass(time.Second)
		if !slices.Equal(r.gaps, []string{"expired", "expired"}) {
			t.Errorf("gaps %v after a message that is nearly too old", r.gaps)
		}
		_ = stop()
	})
}

// TestSQSRecreated: what was in a queue that was deleted is gone without anybody's fault.
func TestSQSRecreated(t *testing.T) {
	inSQS(t, nil, func(t *testing.T, q *fakeSQS, s *sqsSink, r *sqsArrivals) {
		look := func(s *sqsSink, gaps ...string) {
			t.Helper()
			_, stop, _ := sqsRun(t, s, r)
			sqsPass(10 * time.Second)
			_ = stop()
			if !slices.Equal(r.gaps, gaps) {
				t.Errorf("gaps %v, want %v", r.gaps, gaps)
			}
			r.gaps = nil
		}
		at := func() string { return strconv.FormatInt(time.Now().Unix(), 10) }
		q.attributes["CreatedTimestamp"] = at()
		look(s)
		look(s)
		q.attributes["CreatedTimestamp"] = at()
		look(s, "recreated")
		look(s)
		next := func() *sqsSink {
			n := &sqsSink{c: s.c, client: s.client, unsettled: map[string]*sqsTaken{}}
			n.Resume(s.Position())
			return n
		}
		sqsPass(10 * time.Minute)
		look(next())
		q.attributes["CreatedTimestamp"] = at()
		look(next(), "recreated")
	})
}

// TestSQSShared: messages of others go back at once, ours are deleted, and nothing is claimed.
func TestSQSShared(t *testing.T) {
	inSQS(t, func(c *SQS) { c.Dedicated, c.Shared = false, true }, func(t *testing.T, q *fakeSQS, s *sqsSink, r *sqsArrivals) {
		q.put(&sqsHeld{body: "an order"})
		q.put(&sqsHeld{body: tokenOf(1)})
		_, stop, _ := sqsRun(t, s, r)
		sqsPass(time.Minute)
		if got := r.arrived(); !slices.Equal(got, []uint64{1}) || !slices.Equal(q.deleted(), []string{"m1"}) || q.left() != 1 {
			t.Errorf("arrived %v, deleted %v, %d left", got, q.deleted(), q.left())
		}
		if n := q.messages[0].receives; n < 40 || n > 70 {
			t.Errorf("a message of others was looked at %d times in a minute", n)
		}
		if !r.lastCaughtUp().IsZero() {
			t.Error("caught up with a shared queue")
		}
		_ = stop()
		if time.Now().Before(q.messages[0].visible) {
			t.Error("a message of others stays hidden at the end")
		}
	})
	inSQS(t, func(c *SQS) { c.Dedicated, c.Shared = false, true }, func(t *testing.T, q *fakeSQS, s *sqsSink, r *sqsArrivals) {
		f, stop, _ := sqsRun(t, s, r)
		sqsPass(time.Minute)
		if !f.Stats().Ready || !r.lastCaughtUp().IsZero() {
			t.Errorf("ready %t, and caught up with a shared queue that is empty: %t", f.Stats().Ready, !r.lastCaughtUp().IsZero())
		}
		_ = stop()
	})
	inSQS(t, func(c *SQS) { c.Dedicated, c.Shared = false, true }, func(t *testing.T, q *fakeSQS, s *sqsSink, r *sqsArrivals) {
		q.put(&sqsHeld{body: "an order"})
		q.fail["ChangeMessageVisibilityBatch"] = 1
		_, stop, done := sqsRun(t, s, r)
		sqsPass(10 * time.Second)
		ended := len(done) > 0
		if err := stop(); !ended || err == nil || !strings.Contains(err.Error(), "put back") {
			t.Errorf("messages of others stay hidden, and nobody is told: %v", err)
		}
	})
	inSQS(t, func(c *SQS) { c.Dedicated, c.Shared = false, true }, func(t *testing.T, q *fakeSQS, s *sqsSink, r *sqsArrivals) {
		r.foreign = true
		q.put(&sqsHeld{body: tokenOf(1)})
		_, stop, _ := sqsRun(t, s, r)
		sqsPass(10 * time.Second)
		if q.left() != 1 {
			t.Error("a heartbeat of others was deleted from a shared queue")
		}
		_ = stop()
	})
	inSQS(t, func(c *SQS) { c.Dedicated, c.Shared = false, true }, func(t *testing.T, q *fakeSQS, s *sqsSink, r *sqsArrivals) {
		q.attributes["RedrivePolicy"] = `{"maxReceiveCount":5}`
		if err := s.Check(t.Context()); err == nil || !strings.Contains(err.Error(), "redrive policy") {
			t.Errorf("check: %v", err)
		}
		f, _, done := sqsRun(t, s, r)
		if err := <-done; err == nil || f.Stats().Ready || q.calls["ReceiveMessage"] > 0 {
			t.Errorf("a queue with a redrive policy is shared: %v", err)
		}
	})
}

// TestSQSLeaves: a request that is under way at the end brings its messages back.
func TestSQSLeaves(t *testing.T) {
	inSQS(t, nil, func(t *testing.T, q *fakeSQS, s *sqsSink, r *sqsArrivals) {
		_, stop, _ := sqsRun(t, s, r)
		sqsPass(1500 * time.Millisecond)
		go func() {
			sqsPass(100 * time.Millisecond)
			q.put(&sqsHeld{body: tokenOf(1)})
		}()
		if err := stop(); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		if got := r.arrived(); len(got) > 0 || !slices.Equal(q.putBack, []string{"m0"}) {
			t.Errorf("arrived %v, put back %v", got, q.putBack)
		}
	})
	// Nobody waits for a long one.
	inSQS(t, func(c *SQS) { c.Wait = conn.Duration(20 * time.Second) }, func(t *testing.T, q *fakeSQS, s *sqsSink, r *sqsArrivals) {
		_, stop, _ := sqsRun(t, s, r)
		sqsPass(5 * time.Second)
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

// TestSQSBacklog: of the own queue with an age, of others without.
func TestSQSBacklog(t *testing.T) {
	inSQS(t, func(c *SQS) { c.BacklogQueues = []string{"https://sqs.eu-west-1.amazonaws.com/123456789012/work"} }, func(t *testing.T, q *fakeSQS, s *sqsSink, r *sqsArrivals) {
		want := []Backlog{{Queue: "q", Messages: 7, Seconds: -1, Consumers: -1}, {Queue: "work", Messages: 7, Seconds: -1, Consumers: -1}}
		if got, err := s.Backlog(t.Context()); err != nil || !slices.Equal(got, want) {
			t.Errorf("backlog %v, %v, want %v", got, err, want)
		}
		_, stop, _ := sqsRun(t, s, r)
		q.put(&sqsHeld{body: "old", sent: time.Now().Add(-time.Minute)})
		sqsPass(500 * time.Millisecond)
		if got, err := s.Backlog(t.Context()); err != nil || got[0].Seconds < 60 || got[0].Seconds > 62 {
			t.Errorf("backlog %v, %v, want an age of 60 s", got, err)
		}
		sqsPass(5 * time.Second)
		if got, err := s.Backlog(t.Context()); err != nil || got[0].Seconds != 0 {
			t.Errorf("backlog %v, %v of an empty queue", got, err)
		}
		_ = stop()
		if got, err := s.Backlog(t.Context()); err != nil || got[0].Seconds >= 0 {
			t.Errorf("backlog %v, %v of a queue that nobody reads", got, err)
		}
	})
}

func TestSQSConfig(t *testing.T) {
	for _, c := range []struct {
		set  func(*SQS)
		want string
	}{
		{func(c *SQS) { c.Dedicated = false }, "dedicated"},
		{func(c *SQS) { c.Shared = true }, "shared"},
		{func(c *SQS) { c.Dedicated, c.Shared, c.Queue = false, true, "q.fifo" }, "shared"},
		{func(c *SQS) { c.Wait = conn.Duration(1500 * time.Millisecond) }, "wait"},
		{func(c *SQS) { c.Wait = conn.Duration(21 * time.Second) }, "wait"},
		{func(c *SQS) { c.Visibility = conn.Duration(time.Second) }, "visibility"},
		{func(c *SQS) { c.Queue = "a b" }, "queue"},
		{func(c *SQS) { c.BacklogQueues = []string{"ok", "arn:aws:sqs:x"} }, "backlog_queues[1]"},
		{func(c *SQS) { c.Queue, c.Region = "arn:aws:sqs:eu-west-1:123456789012:q", "eu-west-2" }, "region"},
		{func(c *SQS) {
			c.Region, c.BacklogQueues = "eu-west-2", []string{"arn:aws:sqs:eu-west-1:123456789012:q"}
		}, "backlog_queues[0]"},
	} {
		s := NewSQS()
		s.Queue, s.Dedicated = "q", true
		if err := s.Validate(); err != nil {
			t.Fatal(err)
		}
		c.set(s)
		var f *conn.FieldError
		if err := s.Validate(); !errors.As(err, &f) || f.Path != c.want {
			t.Errorf("%v, want a mistake in %s", err, c.want)
		}
	}
	if _, err := Beside(NewSQS()); err == nil {
		t.Error("somebody may take messages beside the monitor")
	}
}
