package faults_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sns"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"github.com/lag-monitor/lag-monitor/internal/servers"
)

// awsAtOnce is how many rows of a kind one local server can bear: it takes some 8 ms of a core for each request.
const awsAtOnce = 6

// awsRow is what a row has of the server: calls that go wrong, apart for the monitor's two ways.
type awsRow struct {
	*servers.MotoServer
	head, dest *awsGate
	own        string // the monitor's own queue, by name and by URL
	ownURL     string
}

// snsHead says that the head of a row is a topic.
const snsHead = "sns"

func openAWS(t *testing.T, rows []*row) func(*testing.T, *row) *pipeline {
	start := func() *servers.MotoServer { return servers.Moto(t) }
	return onServers(rows, 1, start, start, awsPipeline)
}

// awsPipeline creates the queues and topics of a row. The destination is a topic, to which a queue of the monitor's own and one of the
// test's are subscribed, and so is the head of the kind sns. FIFO is everything or nothing.
func awsPipeline(t *testing.T, r *row, m *servers.MotoServer) *pipeline {
	t.Helper()
	fifo, suffix := strings.Contains(r.variant, "fifo"), ""
	if fifo {
		suffix = ".fifo"
	}
	// open makes a topic with a queue for the truth and another one, whose URL it returns.
	open := func(name string, other map[string]string) (q *awsQueue, url string) {
		q = &awsQueue{fifo: fifo, sqs: m.SQS(t), sns: m.SNS(t), lost: map[string]bool{}}
		truth, truthARN := m.CreateQueue(t, r.name+"-"+name+"-truth"+suffix, nil)
		// First, so that what is in the other one is in this one at that time.
		q.topic = m.Subscribe(t, r.name+"-"+name+suffix, truthARN, nil)
		url, arn := m.CreateQueue(t, r.name+"-"+name+suffix, other)
		m.Subscribe(t, r.name+"-"+name+suffix, arn, nil)
		q.truth = &awsReader{client: q.sqs, url: truth}
		q.arn = arn
		return q, url
	}
	retention := func(d time.Duration) map[string]string {
		if d == 0 {
			return nil
		}
		return map[string]string{"MessageRetentionPeriod": strconv.Itoa(int(d / time.Second))}
	}
	server := &awsRow{MotoServer: m, head: newAWSGate(t, m.Addr), dest: newAWSGate(t, m.Addr)}
	headProxy, destProxy := servers.Proxy(t, server.head.addr), servers.Proxy(t, server.dest.addr)
	id, secret := filepath.Join(t.TempDir(), "id"), filepath.Join(t.TempDir(), "secret")
	writeFile(t, id, servers.MotoAccessKey)
	writeFile(t, secret, servers.MotoSecretKey)
	yaml := func(p *servers.FaultProxy) string {
		return fmt.Sprintf("endpoint: %q, region: %s, request_timeout: 2s, access_key_id: {file: %q}, secret_access_key: {file: %q}", "http://"+p.Addr, servers.MotoRegion, id, secret)
	}
	var head *awsQueue
	inject, headKeeps, hides := "", time.Duration(0), 5*time.Second
	if strings.Contains(r.variant, "expires") {
		headKeeps = 3 * time.Second // the service would keep it for a minute
	}
	if strings.Contains(r.variant, "hides") {
		hides = 15 * time.Second // what was handed out is not to be seen long after its deadline
	}
	if strings.Contains(r.variant, snsHead) {
		var url string
		head, url = open("in", retention(headKeeps))
		head.reads = &awsReader{client: head.sqs, url: url}
		lanes := 1
		if fifo {
			lanes = 2
		}
		inject = fmt.Sprintf("sns: {topic_arn: %q, lanes: %d, %s}", head.topic, lanes, yaml(headProxy))
	} else {
		url, _ := m.CreateQueue(t, r.name+"-in", nil)
		head = &awsQueue{sqs: m.SQS(t)}
		head.reads = &awsReader{client: head.sqs, url: url}
		inject = fmt.Sprintf("sqs: {queue: %s-in, %s}", r.name, yaml(headProxy))
	}
	dest, ownURL := open("out", retention(r.keeps))
	server.own, server.ownURL = r.name+"-out"+suffix, ownURL
	return &pipeline{
		head: head, dest: dest, headProxy: headProxy, destProxy: destProxy, broker: m.Process, server: server, inject: inject,
		sink: fmt.Sprintf("sqs: {queue: %s, dedicated: true, visibility: %v, %s}", server.own, hides, yaml(destProxy)),
	}
}

// awsQueue is a topic, or a queue that nobody but the relay reads. A queue can be read once: what was read is kept.
type awsQueue struct {
	sqs   *sqs.Client
	sns   *sns.Client
	fifo  bool   // the group of a message ends with the number of its lane
	topic string // ARN, to put messages into
	arn   string // of the queue beside the truth

	reads   *awsReader // what is followed; nil where nobody does
	truth   *awsReader // a queue that gets all that the topic gets; nil: what is followed is all
	stopped atomic.Bool
	puts    atomic.Int64

	mu   sync.Mutex
	lost map[string]bool // ids of messages that count as never having been there
}

func (q *awsQueue) put(ctx context.Context, lane int, body []byte) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	in := &sns.PublishInput{TopicArn: &q.topic, Message: aws.String(string(body))}
	if q.fifo {
		in.MessageGroupId, in.MessageDeduplicationId = aws.String(fmt.Sprintf("lane-%d", lane)), aws.String(strconv.FormatInt(q.puts.Add(1), 10))
	}
	_, err := q.sns.Publish(ctx, in, func(o *sns.Options) { o.RetryMaxAttempts = 1 })
	return err
}

func (q *awsQueue) follow(ctx context.Context, f func(message)) {
	for ctx.Err() == nil {
		if q.stopped.Load() {
			pauseFor(ctx, 100*time.Millisecond)
			continue
		}
		if err := q.reads.read(ctx, time.Second, f); err != nil {
			pauseFor(ctx, 200*time.Millisecond)
		}
	}
}

func (q *awsQueue) all(ctx context.Context) ([]message, error) {
	r := q.truth
	if r == nil {
		r = q.reads
	}
	for deadline := time.Now().Add(20 * time.Second); ; pauseFor(ctx, 100*time.Millisecond) {
		empty, err := r.empty(ctx)
		if err == nil && empty {
			break
		}
		if err == nil && q.truth != nil {
			err = r.read(ctx, 0, nil)
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			return nil, fmt.Errorf("the queue is not empty: %w", cmp.Or(err, ctx.Err(), errors.New("messages are left")))
		}
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	return slices.DeleteFunc(r.found(), func(m message) bool { return q.lost[m.id] }), nil
}

// lose has the messages besides some count as never having been there, and returns them.
func (q *awsQueue) lose(t *testing.T, besides []message) (lost []message) {
	t.Helper()
	all, err := q.all(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, m := range all {
		if !slices.ContainsFunc(besides, func(o message) bool { return bytes.Equal(o.body, m.body) }) {
			q.lost[m.id] = true
			lost = append(lost, m)
		}
	}
	if len(lost) == 0 {
		t.Error("there was nothing to lose")
	}
	return lost
}

// awsReader takes messages out of a queue, for one goroutine at a time, and keeps them.
type awsReader struct {
	client *sqs.Client
	url    string

	mu   sync.Mutex
	seen map[string]bool
	kept []message
}

// found returns what has been read, in the order in which it entered the queue.
func (r *awsReader) found() []message {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := slices.Clone(r.kept)
	slices.SortStableFunc(all, func(a, b message) int { return a.at.Compare(b.at) })
	return all
}

// empty reports whether nothing is in the queue, not even what is hidden.
func (r *awsReader) empty(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	names := []types.QueueAttributeName{types.QueueAttributeNameApproximateNumberOfMessages, types.QueueAttributeNameApproximateNumberOfMessagesNotVisible}
	out, err := r.client.GetQueueAttributes(ctx, &sqs.GetQueueAttributesInput{QueueUrl: &r.url, AttributeNames: names})
	if err != nil {
		return false, err
	}
	for _, name := range names {
		if out.Attributes[string(name)] != "0" {
			return false, nil
		}
	}
	return true, nil
}

// read takes up to ten messages and calls f, which may be nil, with those that were not read before.
func (r *awsReader) read(ctx context.Context, wait time.Duration, f func(message)) error {
	ctx, cancel := context.WithTimeout(ctx, wait+3*time.Second)
	defer cancel()
	out, err := r.client.ReceiveMessage(ctx, &sqs.ReceiveMessageInput{
		QueueUrl: &r.url, MaxNumberOfMessages: 10, WaitTimeSeconds: int32(wait / time.Second), VisibilityTimeout: 2,
		MessageSystemAttributeNames: []types.MessageSystemAttributeName{types.MessageSystemAttributeNameSentTimestamp, types.MessageSystemAttributeNameMessageGroupId},
	}, func(o *sqs.Options) { o.RetryMaxAttempts = 1 })
	if err != nil || len(out.Messages) == 0 {
		return err
	}
	in := &sqs.DeleteMessageBatchInput{QueueUrl: &r.url}
	for i, m := range out.Messages {
		one, err := awsMessage(m)
		if err != nil {
			return err
		}
		r.mu.Lock()
		before := r.seen[one.id]
		if !before {
			if r.seen == nil {
				r.seen = map[string]bool{}
			}
			r.seen[one.id] = true
			r.kept = append(r.kept, one)
		}
		r.mu.Unlock()
		if !before && f != nil {
			f(one)
		}
		in.Entries = append(in.Entries, types.DeleteMessageBatchRequestEntry{Id: aws.String(strconv.Itoa(i)), ReceiptHandle: m.ReceiptHandle})
	}
	_, err = r.client.DeleteMessageBatch(ctx, in)
	return err
}

// awsMessage takes a message out of the notification of a topic, if it is in one.
func awsMessage(m types.Message) (message, error) {
	ms, err := strconv.ParseInt(m.Attributes[string(types.MessageSystemAttributeNameSentTimestamp)], 10, 64)
	if err != nil {
		return message{}, err
	}
	one := message{id: *m.MessageId, body: []byte(*m.Body), at: time.UnixMilli(ms)}
	var notification struct{ Type, Message string }
	if json.Unmarshal(one.body, &notification) == nil && notification.Type == "Notification" {
		one.body = []byte(notification.Message)
	}
	if group := m.Attributes[string(types.MessageSystemAttributeNameMessageGroupId)]; group != "" {
		if one.lane, err = strconv.Atoi(group[strings.LastIndexByte(group, '-')+1:]); err != nil {
			return message{}, fmt.Errorf("group %q has no lane", group)
		}
	}
	return one, nil
}

// awsGate passes requests on to a server, and lets them go wrong for the monitor alone.
type awsGate struct {
	addr  string
	proxy *httputil.ReverseProxy

	mu    sync.Mutex
	key   string // the id of the access key that counts; empty: any does
	bad   func(operation string, n int) awsAnswer
	asked int
}

// awsAnswer is what becomes of a request. The zero value is the server's own answer.
type awsAnswer struct {
	status int
	code   string
	taken  bool // the server has done what it was asked before
}

func newAWSGate(t *testing.T, addr string) *awsGate {
	t.Helper()
	transport := &http.Transport{MaxIdleConnsPerHost: 100}
	g := &awsGate{proxy: &httputil.ReverseProxy{
		Transport: transport,
		ErrorLog:  log.New(io.Discard, "", 0), // connections that break are the test's doing
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: addr})
			r.Out.Host = r.In.Host
		},
		// A server that does not answer shows as a broken connection, not as an answer of its own.
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
	}}
	server := httptest.NewUnstartedServer(g)
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.Start()
	g.addr = strings.TrimPrefix(server.URL, "http://")
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
		transport.CloseIdleConnections()
	})
	return g
}

// behave sets what becomes of the n-th request from now on; nil: all is well.
func (g *awsGate) behave(bad func(operation string, n int) awsAnswer) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.bad, g.asked = bad, 0
}

// accept makes the access key with this id the only one.
func (g *awsGate) accept(key string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.key = key
}

func (g *awsGate) answer(operation, signature string) (a awsAnswer) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.key != "" && !strings.Contains(signature, " Credential="+g.key+"/") {
		return awsAnswer{status: http.StatusForbidden, code: "InvalidClientTokenId"}
	}
	if g.bad != nil {
		a = g.bad(operation, g.asked)
		g.asked++
	}
	return a
}

// ServeHTTP handles one request, of the JSON protocol of SQS or the query protocol of SNS.
func (g *awsGate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	_, operation, isJSON := strings.Cut(r.Header.Get("X-Amz-Target"), ".")
	if form, err := url.ParseQuery(string(body)); err == nil && !isJSON {
		operation = form.Get("Action")
	}
	a := g.answer(operation, r.Header.Get("Authorization"))
	if a.taken {
		g.proxy.ServeHTTP(httptest.NewRecorder(), r)
	}
	switch {
	case a.status == 0 && a.taken:
		panic(http.ErrAbortHandler)
	case a.status == 0:
		g.proxy.ServeHTTP(w, r)
	case isJSON:
		w.Header().Set("Content-Type", "application/x-amz-json-1.0")
		w.WriteHeader(a.status)
		_ = json.NewEncoder(w).Encode(map[string]string{"__type": "com.amazonaws.sqs#" + a.code, "message": "injected by the test"})
	default:
		w.Header().Set("Content-Type", "text/xml")
		w.WriteHeader(a.status)
		fmt.Fprintf(w, `<ErrorResponse xmlns="http://sns.amazonaws.com/doc/2010-03-31/"><Error><Type>Sender</Type><Code>%s</Code><Message>injected by the test</Message></Error></ErrorResponse>`, a.code)
	}
}

// throttled answers every request as the service does when there are too many.
func throttled(string, int) awsAnswer {
	return awsAnswer{status: http.StatusBadRequest, code: "ThrottlingException"}
}

// failing answers by turns with an error and with nothing, before and after the request is done, and now and then well.
func failing(_ string, n int) awsAnswer {
	return []awsAnswer{
		{status: http.StatusInternalServerError, code: "InternalFailure"},
		{},
		{status: http.StatusServiceUnavailable, code: "ServiceUnavailable", taken: true},
		{},
		{taken: true},
	}[n%5]
}

// awsOwn are the rows of what AWS itself does wrong.
func awsOwn() []*row {
	of := func(f *field) *awsRow { return f.server.(*awsRow) }
	gates := func(f *field) []*awsGate { return []*awsGate{of(f).head, of(f).dest} }
	return []*row{
		connectionsCut(5, 0),
		{
			name: "receives_lost", does: "for 10 s the messages that the monitor receives are lost on their way, each time: the service hides them for 15 s", variant: "hides",
			fault: func(t *testing.T, f *field) {
				of(f).dest.behave(func(operation string, _ int) awsAnswer { return awsAnswer{taken: operation == "ReceiveMessage"} })
				wait(t, 10*time.Second)
				of(f).dest.behave(nil)
			},
		},
		{
			name: "deletes_fail", does: "for 15 s nothing that the monitor has received is deleted: it comes again after 5 s",
			fault: func(t *testing.T, f *field) {
				of(f).dest.behave(func(operation string, _ int) awsAnswer {
					if operation != "DeleteMessageBatch" {
						return awsAnswer{}
					}
					return awsAnswer{status: http.StatusInternalServerError, code: "InternalFailure"}
				})
				wait(t, 15*time.Second)
				of(f).dest.behave(nil)
			},
		},
		{
			name: "throttled", does: "every request of the monitor is throttled for 10 s",
			fault: func(t *testing.T, f *field) {
				for _, g := range gates(f) {
					g.behave(throttled)
				}
				wait(t, 10*time.Second)
				for _, g := range gates(f) {
					g.behave(nil)
				}
			},
		},
		{
			name: "errors", does: "for 15 s, three in five requests are answered with 500, with 503 though they are done, or not at all though they are done",
			fault: func(t *testing.T, f *field) {
				for _, g := range gates(f) {
					g.behave(failing)
				}
				wait(t, 15*time.Second)
				for _, g := range gates(f) {
					g.behave(nil)
				}
			},
		},
		{
			name: "login_changed", does: "the monitor's access key is no longer known for 8 s",
			fault: func(t *testing.T, f *field) {
				for _, g := range gates(f) {
					g.accept("another")
				}
				wait(t, 8*time.Second)
				for _, g := range gates(f) {
					g.accept(servers.MotoAccessKey)
				}
			},
		},
	}
}

// sqsRows lists what is broken in SQS, in the order of the table: standard queues, whose messages come again in any order.
func sqsRows() []*row {
	of := func(f *field) *awsRow { return f.server.(*awsRow) }
	dest := func(f *field) *awsQueue { return f.dest.(*awsQueue) }
	rows := append(only(commonRows(), "broker_sigstop", "accept_then_silent", "half_open", "sink_partition", "answers_lost", "monitor_killed", "pipeline_stops", "duplicates", "late",
		"one_in_7_dropped", "reload"), awsOwn()...)
	rows = append(rows,
		&row{
			name: "purged", does: "the monitor's own queue is purged with heartbeats that it has not read: nobody can see that, it is loss",
			fault: func(t *testing.T, f *field) {
				f.loseUnread(t, func(read []message) {
					dest(f).lose(t, read)
					if _, err := dest(f).sqs.PurgeQueue(t.Context(), &sqs.PurgeQueueInput{QueueUrl: &of(f).ownURL}); err != nil {
						t.Fatal(err)
					}
				})
			},
		},
		&row{
			name: "own_queue_recreated", does: "the monitor's own queue is deleted with heartbeats that it has not read, and created again 2 s later", gap: true,
			fault: func(t *testing.T, f *field) {
				f.replaceDestination(t, func() {
					if _, err := dest(f).sqs.DeleteQueue(t.Context(), &sqs.DeleteQueueInput{QueueUrl: &of(f).ownURL}); err != nil {
						t.Fatal(err)
					}
					wait(t, 2*time.Second)
					of(f).CreateQueue(t, of(f).own, nil)
				})
			},
		},
		&row{
			name: "expired", does: "the monitor's own queue, which keeps messages for 20 s, refuses the monitor for 32 s", keeps: 20 * time.Second, gap: true, long: true,
			fault: func(t *testing.T, f *field) {
				f.destProxy.Set(servers.Faults{Refuse: true})
				f.destProxy.Cut()
				wait(t, 32*time.Second)
				f.destProxy.Set(servers.Faults{})
			},
		},
	)
	for _, r := range rows {
		r.unordered = r.plan == nil
		// An empty queue is proven by a request that waits for a second in vain.
		r.near, r.interval = 2.5, 1500*time.Millisecond
		if r.plan != nil {
			r.fault = relayed(40)
		}
	}
	return rows
}

// snsRows lists what is broken in SNS, in the order of the table: FIFO topics, with an order for each group, but for one row.
func snsRows() []*row {
	head := func(f *field) *awsQueue { return f.head.(*awsQueue) }
	rows := append(only(commonRows(), "broker_sigstop", "half_open", "sink_partition", "answers_lost", "monitor_killed", "duplicates", "reorder", "late", "one_in_7_dropped",
		"reload"), awsOwn()...)
	// misses notes what the pipeline has never got, some time after nothing is broken any more.
	misses := func(t *testing.T, f *field) {
		t.Helper()
		f.truth.add(head(f).lose(t, head(f).reads.found()), true)
	}
	rows = append(rows,
		&row{
			name: "unsubscribed", does: "the pipeline's queue is not subscribed to the head for 8 s",
			fault: func(t *testing.T, f *field) {
				q := head(f)
				subscriptions, err := q.sns.ListSubscriptionsByTopic(t.Context(), &sns.ListSubscriptionsByTopicInput{TopicArn: &q.topic})
				if err != nil {
					t.Fatal(err)
				}
				for _, s := range subscriptions.Subscriptions {
					if *s.Endpoint == q.arn {
						if _, err := q.sns.Unsubscribe(t.Context(), &sns.UnsubscribeInput{SubscriptionArn: s.SubscriptionArn}); err != nil {
							t.Fatal(err)
						}
					}
				}
				wait(t, 8*time.Second)
				if _, err := q.sns.Subscribe(t.Context(), &sns.SubscribeInput{TopicArn: &q.topic, Protocol: aws.String("sqs"), Endpoint: &q.arn}); err != nil {
					t.Fatal(err)
				}
				misses(t, f)
			},
		},
		// A message that has expired would hold up its group in the local server for ever.
		&row{
			name: "expired_in_head", does: "the pipeline stands still for 12 s; its queue at the head, of a standard topic, keeps messages for 3 s", variant: "expires", interval: 1500 * time.Millisecond,
			fault: func(t *testing.T, f *field) {
				head(f).stopped.Store(true)
				wait(t, 12*time.Second)
				head(f).stopped.Store(false)
				wait(t, 3*time.Second)
				misses(t, f)
			},
		},
	)
	for _, r := range rows {
		r.near = 3.5
		if r.variant != "expires" {
			r.variant, r.interval = r.variant+" fifo", 2*time.Second
		}
		r.variant += " " + snsHead
		if r.plan != nil {
			r.fault = relayed(50)
		}
	}
	return rows
}
