package sinks

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"github.com/lag-monitor/lag-monitor/internal/conn"
)

// SQS takes the messages out of a queue of Amazon SQS, which knows no other way to read one.
type SQS struct {
	conn.SQS `yaml:",inline"`
	// Dedicated says that nobody else reads the queue: every message in it is received and deleted.
	Dedicated bool `yaml:"dedicated,omitempty"`
	// Shared says that the messages of others in the queue, say a dead-letter queue, are not ours: each is put back at
	// once, and only our heartbeats are deleted. It proves nothing, and each look counts as a receive.
	Shared bool `yaml:"shared,omitempty"`
	// Wait is how long a request waits for messages, 1s to 20s in whole seconds. When nothing came in all that time, the
	// queue is proven to be empty: keep it shorter than the time between two messages.
	Wait conn.Duration `yaml:"wait,omitempty"`
	// Visibility is how long a message that was received is hidden from others, 5s to 1h in whole seconds. When an answer
	// is lost, what was in it comes again after this time, and drops are declared so much later.
	Visibility conn.Duration `yaml:"visibility,omitempty"`
	// BacklogQueues are further queues of the same region, by name, URL or ARN, whose backlog is told. Nothing is received from them.
	BacklogQueues []string `yaml:"backlog_queues,omitempty"`
}

const (
	sqsHeader = "lag-monitor-heartbeat" // the names of attributes are what they are written as
	sqsBatch  = 10                      // the most that one request receives or deletes
	// sqsEarly is how much earlier than asked an empty answer may come and still be one of a whole wait.
	sqsEarly = 100 * time.Millisecond
	// sqsLeave is how long a request under way may take to bring its messages when the sink ends: who hangs up leaves them
	// hidden. sqsPutBack is how long it may then take to put them back.
	sqsLeave   = 1200 * time.Millisecond
	sqsPutBack = 400 * time.Millisecond
	// sqsMargin is what is added to the time for which a lost message is hidden.
	sqsMargin = time.Second
	// sqsSkew is how far the service's clock may be from ours before a message seems to have been held back.
	sqsSkew = 5 * time.Second
	// sqsLook is the pause between two looks at a shared queue that holds messages of others.
	sqsLook = time.Second
	// sqsUnsettled bounds what is remembered of messages that could not be deleted.
	sqsUnsettled = 10_000
)

// NewSQS returns the defaults.
func NewSQS() *SQS {
	return &SQS{SQS: conn.DefaultSQS(), Wait: conn.Duration(time.Second), Visibility: conn.Duration(30 * time.Second)}
}

// Validate implements Config.
func (c *SQS) Validate() error {
	errs := []error{c.SQS.Validate()}
	switch {
	case c.Dedicated && c.Shared:
		errs = append(errs, conn.Field("shared", "choose one of dedicated and shared"))
	case !c.Dedicated && !c.Shared:
		errs = append(errs, conn.Field("dedicated", "a queue can only be listened on by taking its messages: subscribe a queue of its own to what feeds it, and say dedicated: true if nobody else reads that"))
	case c.Shared && c.FIFO():
		errs = append(errs, conn.Field("shared", "a message of a FIFO queue that is looked at holds up all others of its group: only dedicated: true is possible"))
	}
	whole := func(name string, d conn.Duration, low, high time.Duration) {
		if t := time.Duration(d); t < low || t > high || t%time.Second != 0 {
			errs = append(errs, conn.Field(name, "%s is not valid: whole seconds from %s to %s", d, low, high))
		}
	}
	whole("wait", c.Wait, time.Second, conn.SQSMaxWait)
	whole("visibility", c.Visibility, 5*time.Second, time.Hour)
	for i, q := range c.BacklogQueues {
		if err := c.CheckBeside(q); err != nil {
			errs = append(errs, conn.Prefix("backlog_queues["+strconv.Itoa(i)+"]", err))
		}
	}
	return errors.Join(errs...)
}

// Beside implements Besider.
func (c *SQS) Beside() (Config, error) {
	return nil, errors.New("a queue of SQS is read by taking messages out, and the monitor that runs would miss them")
}

// Open implements Config.
func (c *SQS) Open() (Sink, error) {
	// A checksum that is wrong would fail the whole answer, again and again; what is damaged is found in the token.
	client, err := c.OpenClient(func(o *sqs.Options) { o.DisableMessageChecksumValidation = true })
	if err != nil {
		return nil, err
	}
	return &sqsSink{c: c, client: client, unsettled: make(map[string]*sqsTaken), age: -1}, nil
}

// sqsSink takes messages out of a queue. The service keeps its position: what was deleted.
type sqsSink struct {
	c      *SQS
	client *conn.SQSClient
	runs   atomic.Bool

	// Of Run alone.
	begun     bool
	redrives  bool                 // the queue gives up what is received too often
	waits     bool                 // a request that does not say how long it waits, waits
	created   int64                // when the queue was, in seconds since 1970; 0: not known
	retention time.Duration        // of the queue; 0: not known
	hidden    time.Time            // until then messages may be hidden of which we do not know
	claimed   time.Time            // the queue was empty then
	unsettled map[string]*sqsTaken // delivered, and perhaps coming again, by message id

	mu   sync.Mutex
	age  float64   // seconds that the last message had been in the queue; 0 when it is empty, negative when not known
	read time.Time // when the queue was read last

	// What the journal does not have yet is not deleted: it comes again should the process be killed.
	open settlement
}

// sqsTaken is a message that was delivered and has to be deleted.
type sqsTaken struct {
	receipt string // empty: it could not be deleted, and is when it comes again
	seq     uint64
	at      time.Time
	hold    bool // until the journal has it
}

// Position implements Resumer. What is left in the queue is the position; when it was read last tells whether
// something may have been too old to be left.
func (s *sqsSink) Position() map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open.ask()
	if s.read.IsZero() {
		return map[string]string{}
	}
	return map[string]string{s.c.Name(): s.read.UTC().Format(time.RFC3339)}
}

// Settle implements Settler.
func (s *sqsSink) Settle() { s.open.settle() }

// Resume implements Resumer.
func (s *sqsSink) Resume(parts map[string]string) {
	if t, err := time.Parse(time.RFC3339, parts[s.c.Name()]); err == nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.read = t
	}
}

// answered notes that the queue was read at t.
func (s *sqsSink) answered(t time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.read = t.Truncate(time.Minute) // or each would be written
}

// know asks what the queue does with messages that are old or were received often, and tells what may have become of
// those that came while nobody read.
func (s *sqsSink) know(ctx context.Context, f *Feed, url string) error {
	attributes, err := s.attributes(ctx, url, types.QueueAttributeNameRedrivePolicy, types.QueueAttributeNameMessageRetentionPeriod, types.QueueAttributeNameReceiveMessageWaitTimeSeconds,
		types.QueueAttributeNameCreatedTimestamp)
	if err != nil {
		return s.c.Err("look at it", err)
	}
	s.redrives = attributes[string(types.QueueAttributeNameRedrivePolicy)] != ""
	if s.c.Shared && s.redrives {
		return conn.WithClass(conn.Other, fmt.Errorf("sqs queue %s: it has a redrive policy: it gives messages up after a number of receives, and each look at a shared queue is one", s.c.Name()))
	}
	n, err := strconv.Atoi(attributes[string(types.QueueAttributeNameReceiveMessageWaitTimeSeconds)])
	s.waits = err == nil && n > 0
	s.retention = 0
	if n, err := strconv.Atoi(attributes[string(types.QueueAttributeNameMessageRetentionPeriod)]); err == nil && n > 0 {
		s.retention = time.Duration(n) * time.Second
	}
	s.mu.Lock()
	read := s.read
	s.mu.Unlock()
	if created, err := strconv.ParseFloat(attributes[string(types.QueueAttributeNameCreatedTimestamp)], 64); err == nil && created > 0 {
		before := s.created
		s.created = int64(created)
		// What the one before held went with it. read is up to a minute early, and a process before us did not say which it read.
		if before != 0 && before != s.created || before == 0 && !read.IsZero() && time.Unix(s.created, 0).Sub(read) > 2*time.Minute {
			f.Gap("recreated")
			return nil
		}
	}
	if !read.IsZero() && s.tooOld(time.Since(read)) {
		f.Gap("expired")
	}
	return nil
}

// tooOld reports whether the queue may have discarded what was sent to it so long ago.
func (s *sqsSink) tooOld(age time.Duration) bool { return s.retention > 0 && age > s.retention*9/10 }

// Run implements Sink.
func (s *sqsSink) Run(ctx context.Context, f *Feed) error {
	s.runs.Store(true)
	defer s.client.CloseIdle()
	defer s.runs.Store(false)
	defer s.tellAge(-1) // nobody looks
	err := s.run(ctx, f)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func (s *sqsSink) run(ctx context.Context, f *Feed) error {
	url, err := s.client.URL(ctx, s.c.Queue)
	if err != nil {
		return s.c.Err("look it up", err)
	}
	if err := s.know(ctx, f, url); err != nil {
		return err
	}
	if !s.begun {
		// The process before us, or a request of it that nobody took the answer of, may hold messages.
		s.begun = true
		s.lost(f)
	}
	defer s.leave(url)
	// The first request does not wait: it shows that we may read. The SDK leaves a zero out, and then the queue's own
	// time counts, up to 20 s.
	first, wait := true, time.Duration(0)
	if s.waits {
		wait = time.Second
	}
	for ; ; first, wait = false, time.Duration(s.c.Wait) {
		held := s.c.FIFO() && len(s.unsettled) > 0 // and keeps back others of its group
		if held {
			wait = min(wait, time.Second) // it is to be deleted as soon as it may
		}
		asked := time.Now()
		got, err := s.receive(ctx, url, wait)
		if err != nil {
			s.lost(f)
			return s.c.Err("receive", err)
		}
		took := time.Since(asked)
		if ctx.Err() != nil {
			if err := s.putBack(context.WithoutCancel(ctx), sqsPutBack, url, got); err != nil || len(got) > 0 && s.redrives {
				s.lost(f)
			}
			return nil
		}
		s.answered(asked)
		if first {
			f.Ready()
		}
		f.Skip(0) // alive, whatever there is
		others := s.deliver(f, got)
		if s.c.Shared && len(others) > 0 {
			err := s.putBack(ctx, time.Duration(s.c.RequestTimeout), url, others)
			if err != nil && ctx.Err() != nil {
				err = s.putBack(context.WithoutCancel(ctx), sqsPutBack, url, others)
			}
			if err != nil { // they stay hidden: go no further
				return s.c.Err("put back", err)
			}
			pause(ctx, sqsLook)
		}
		if err := s.delete(ctx, f, url); err != nil {
			return s.c.Err("delete", err)
		}
		if len(got) > 0 || first {
			continue
		}
		if took < wait-sqsEarly {
			pause(ctx, min(wait, time.Second)-took) // an answer that did not wait is a sample
			continue
		}
		s.tellAge(0)
		// A long poll asks all servers, and nobody else takes anything away.
		if s.c.Dedicated && asked.After(s.hidden) && !held {
			s.claimed = asked
			f.CaughtUp(asked)
		}
	}
}

// lost notes that messages may have been handed out which did not come to us.
func (s *sqsSink) lost(f *Feed) {
	// The service may go on waiting for messages after we have hung up.
	s.hidden = time.Now().Add(time.Duration(s.c.Wait) + time.Duration(s.c.Visibility) + sqsMargin)
	if s.redrives && s.c.Dedicated {
		f.Gap("dead_lettered") // it may have been the last receive that the queue allows
	}
}

// pause waits for d, or for the end of ctx.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// receive asks for messages. When ctx ends meanwhile, the answer is waited for a little: it may hold some.
func (s *sqsSink) receive(ctx context.Context, url string, wait time.Duration) ([]types.Message, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	asking, cancel := context.WithTimeout(context.WithoutCancel(ctx), wait+time.Duration(s.c.RequestTimeout))
	defer cancel()
	answered := make(chan struct{})
	defer close(answered)
	defer context.AfterFunc(ctx, func() {
		select {
		case <-answered:
		case <-time.After(sqsLeave):
			cancel()
		}
	})()
	out, err := s.client.ReceiveMessage(asking, &sqs.ReceiveMessageInput{
		QueueUrl:              aws.String(url),
		MaxNumberOfMessages:   sqsBatch,
		WaitTimeSeconds:       int32(wait / time.Second),
		VisibilityTimeout:     int32(time.Duration(s.c.Visibility) / time.Second),
		MessageAttributeNames: []string{sqsHeader},
		MessageSystemAttributeNames: []types.MessageSystemAttributeName{
			types.MessageSystemAttributeNameSentTimestamp,
			types.MessageSystemAttributeNameApproximateReceiveCount,
			types.MessageSystemAttributeNameDeadLetterQueueSourceArn,
		},
	})
	if err != nil {
		return nil, err
	}
	return out.Messages, nil
}

// deliver passes on what is new, and returns the messages of others in a shared queue.
func (s *sqsSink) deliver(f *Feed, got []types.Message) (others []types.Message) {
	old := false
	for i := range got {
		id := aws.ToString(got[i].MessageId)
		if t := s.unsettled[id]; t != nil && id != "" {
			t.receipt, t.at = aws.ToString(got[i].ReceiptHandle), time.Now() // it was delivered, and only its end got lost
			continue
		}
		m := s.message(&got[i])
		ours := f.Deliver(m)
		if !m.Enqueued.IsZero() {
			age := time.Since(m.Enqueued)
			s.tellAge(max(0, age.Seconds()))
			old = old || s.tooOld(age)
		}
		if s.c.Shared && !ours {
			others = append(others, got[i])
			continue
		}
		s.remember(id, &sqsTaken{receipt: aws.ToString(got[i].ReceiptHandle), seq: s.open.next(), at: time.Now(), hold: ours})
	}
	if old {
		f.Gap("expired") // some may have been older
	}
	return others
}

// remember keeps what is to be deleted.
func (s *sqsSink) remember(id string, t *sqsTaken) {
	for old, o := range s.unsettled {
		if len(s.unsettled) < sqsUnsettled {
			break
		}
		if o.receipt == "" {
			delete(s.unsettled, old)
		}
	}
	s.unsettled[id] = t
}

// message makes a Message of one of the queue.
func (s *sqsSink) message(m *types.Message) (out Message) {
	out.Body = []byte(aws.ToString(m.Body))
	if a, ok := m.MessageAttributes[sqsHeader]; ok {
		if out.Header = a.BinaryValue; a.StringValue != nil {
			out.Header = []byte(*a.StringValue)
		}
	}
	if m.MessageId != nil {
		h := fnv.New64a()
		fmt.Fprint(h, s.c.Name(), " ", *m.MessageId)
		out.ID = h.Sum64() | 1
	}
	if ms, err := strconv.ParseInt(m.Attributes[string(types.MessageSystemAttributeNameSentTimestamp)], 10, 64); err == nil && ms > 0 {
		out.Enqueued = time.UnixMilli(ms)
		// A timer, of the queue or of the message, held it back: it was not there when the queue was last empty.
		if s.claimed.Sub(out.Enqueued) > sqsSkew {
			out.Enqueued = s.claimed.Round(0)
		}
	}
	if source := m.Attributes[string(types.MessageSystemAttributeNameDeadLetterQueueSourceArn)]; source != "" {
		out.Dead = &Death{Reason: DeadDeliveryLimit, Queue: conn.SQSQueueName(source)}
		// This receive is counted too.
		if n, err := strconv.Atoi(m.Attributes[string(types.MessageSystemAttributeNameApproximateReceiveCount)]); err == nil && n > 1 {
			out.Retries = n - 1
		}
	}
	return out
}

// delete deletes what need not come again: the messages of others, and heartbeats that the journal has, if there is
// one. What the service refuses to delete is told, and tried again when it comes again.
func (s *sqsSink) delete(ctx context.Context, f *Feed, url string) error {
	free := s.open.free()
	var ids []string
	for id, t := range s.unsettled {
		if t.receipt == "" {
			if time.Since(t.at) > 2*time.Duration(s.c.Visibility) {
				delete(s.unsettled, id) // it would have come by now
			}
		} else if !t.hold || t.seq <= free || time.Since(t.at) > time.Duration(s.c.Visibility)/2 {
			ids = append(ids, id)
		}
	}
	for part := range slices.Chunk(ids, sqsBatch) {
		in := &sqs.DeleteMessageBatchInput{QueueUrl: aws.String(url)}
		for i, id := range part {
			in.Entries = append(in.Entries, types.DeleteMessageBatchRequestEntry{Id: aws.String(strconv.Itoa(i)), ReceiptHandle: aws.String(s.unsettled[id].receipt)})
		}
		asking, cancel := context.WithTimeout(ctx, time.Duration(s.c.RequestTimeout))
		out, err := s.client.DeleteMessageBatch(asking, in)
		cancel()
		if err != nil {
			return err
		}
		for _, failed := range out.Failed {
			i, err := strconv.Atoi(aws.ToString(failed.Id))
			if err != nil || i < 0 || i >= len(part) {
				continue
			}
			s.unsettled[part[i]].receipt = ""
			if f != nil {
				f.Error(conn.WithClass(conn.Other, fmt.Errorf("sqs queue %s: delete: %s: %s", s.c.Name(), aws.ToString(failed.Code), aws.ToString(failed.Message))))
			}
		}
		for _, id := range part {
			if s.unsettled[id].receipt != "" {
				delete(s.unsettled, id)
			}
		}
	}
	return nil
}

// putBack makes messages visible again, and fails when one is not: that comes back by itself.
func (s *sqsSink) putBack(ctx context.Context, within time.Duration, url string, all []types.Message) error {
	if len(all) == 0 {
		return nil
	}
	in := &sqs.ChangeMessageVisibilityBatchInput{QueueUrl: aws.String(url)}
	for i := range all {
		in.Entries = append(in.Entries, types.ChangeMessageVisibilityBatchRequestEntry{Id: aws.String(strconv.Itoa(i)), ReceiptHandle: all[i].ReceiptHandle, VisibilityTimeout: 0})
	}
	asking, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	out, err := s.client.ChangeMessageVisibilityBatch(asking, in)
	if err != nil || len(out.Failed) == 0 {
		return err
	}
	return conn.WithClass(conn.Other, fmt.Errorf("%s: %s", aws.ToString(out.Failed[0].Code), aws.ToString(out.Failed[0].Message)))
}

// leave deletes what may be deleted at the end of Run, or it would come again. What the journal does not have yet keeps back
// others of its group in a FIFO queue: it is to come again at once, not when its time is over.
func (s *sqsSink) leave(url string) {
	ctx, cancel := context.WithTimeout(context.Background(), sqsPutBack)
	defer cancel()
	_ = s.delete(ctx, nil, url)
	if !s.c.FIFO() {
		return
	}
	var held []types.Message
	for _, t := range s.unsettled {
		if t.receipt != "" {
			held = append(held, types.Message{ReceiptHandle: aws.String(t.receipt)})
		}
	}
	for part := range slices.Chunk(held, sqsBatch) {
		_ = s.putBack(ctx, sqsPutBack, url, part)
	}
}

func (s *sqsSink) attributes(ctx context.Context, url string, names ...types.QueueAttributeName) (map[string]string, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(s.c.RequestTimeout))
	defer cancel()
	out, err := s.client.GetQueueAttributes(ctx, &sqs.GetQueueAttributesInput{QueueUrl: aws.String(url), AttributeNames: names})
	if err != nil {
		return nil, err
	}
	return out.Attributes, nil
}

func (s *sqsSink) tellAge(seconds float64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.age = seconds
}

// Backlog implements Backlogger: what waits, is held back or is being worked on, by the service's estimate. How long
// it waits is only known of the queue that the sink reads itself.
func (s *sqsSink) Backlog(ctx context.Context) (all []Backlog, err error) {
	if !s.runs.Load() {
		defer s.client.CloseIdle()
	}
	var errs []error
	for i, queue := range append([]string{s.c.Queue}, s.c.BacklogQueues...) {
		n, err := s.waiting(ctx, queue)
		if err != nil {
			errs = append(errs, fmt.Errorf("sqs queue %s: backlog: %w", conn.SQSQueueName(queue), conn.AWSError(err)))
			continue
		}
		b := Backlog{Queue: conn.SQSQueueName(queue), Messages: n, Seconds: -1, Consumers: -1}
		if i == 0 && s.c.Dedicated {
			s.mu.Lock()
			b.Seconds = s.age
			s.mu.Unlock()
		}
		all = append(all, b)
	}
	return all, errors.Join(errs...)
}

func (s *sqsSink) waiting(ctx context.Context, queue string) (n float64, err error) {
	url, err := s.client.URL(ctx, queue)
	if err != nil {
		return 0, err
	}
	names := []types.QueueAttributeName{types.QueueAttributeNameApproximateNumberOfMessages, types.QueueAttributeNameApproximateNumberOfMessagesNotVisible, types.QueueAttributeNameApproximateNumberOfMessagesDelayed}
	attributes, err := s.attributes(ctx, url, names...)
	if err != nil {
		return 0, err
	}
	for _, name := range names {
		v, err := strconv.ParseFloat(attributes[string(name)], 64)
		if err != nil || v < 0 {
			return 0, fmt.Errorf("%s is %q", name, attributes[string(name)])
		}
		n += v
	}
	return n, nil
}

// Check implements Checker. Whether it may receive is only seen by receiving.
func (s *sqsSink) Check(ctx context.Context) error {
	defer func() {
		if !s.runs.Load() {
			s.client.CloseIdle()
		}
	}()
	if err := s.client.Find(ctx, s.c.Queue); err != nil {
		return s.c.Err("look it up", err)
	}
	url, err := s.client.URL(ctx, s.c.Queue)
	if err != nil {
		return s.c.Err("look it up", err)
	}
	return (&sqsSink{c: s.c, client: s.client}).know(ctx, nil, url)
}
