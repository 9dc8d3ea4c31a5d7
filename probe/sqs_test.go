package probe

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/lag-monitor/lag-monitor/internal/conn"
)

// fakeAWS answers every request but the look-up of a queue as it is told, and keeps the last one.
type fakeAWS struct {
	*httptest.Server
	mu     sync.Mutex
	last   string
	answer func(w http.ResponseWriter)
	asked  chan struct{} // gets one when a request came that is not answered
}

func newFakeAWS(t *testing.T) *fakeAWS {
	t.Helper()
	f := &fakeAWS{asked: make(chan struct{}, 1)}
	end := make(chan struct{})
	f.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		if strings.HasSuffix(r.Header.Get("X-Amz-Target"), ".GetQueueUrl") {
			_, _ = io.WriteString(w, `{"QueueUrl":"http://fake/123456789012/q"}`)
			return
		}
		f.mu.Lock()
		f.last = string(b)
		answer := f.answer
		f.mu.Unlock()
		if answer == nil {
			f.asked <- struct{}{}
			<-end
			return
		}
		answer(w)
	}))
	t.Cleanup(f.Close)
	t.Cleanup(func() { close(end) })
	return f
}

func (f *fakeAWS) says(status int, headers map[string]string, body string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.answer = func(w http.ResponseWriter) {
		for k, v := range headers {
			w.Header().Set(k, v)
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

func (f *fakeAWS) aws(t *testing.T) conn.AWS {
	t.Helper()
	t.Setenv("LAG_MONITOR_TEST_AWS_ID", "id")
	c := conn.DefaultAWS()
	c.Endpoint, c.Region = f.URL, "eu-west-1"
	c.AccessKeyID, c.SecretAccessKey = conn.Secret{Env: "LAG_MONITOR_TEST_AWS_ID"}, conn.Secret{Env: "LAG_MONITOR_TEST_AWS_ID"}
	return c
}

func openAWS(t *testing.T, c Config) Injector {
	t.Helper()
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	in, err := c.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = in.Close() })
	return in
}

// TestSQSRequest: what a message to a FIFO queue is made of.
func TestSQSRequest(t *testing.T) {
	f := newFakeAWS(t)
	c := NewSQS()
	c.AWS, c.Queue, c.Lanes = f.aws(t), "arn:aws:sqs:eu-west-1:123456789012:q.fifo", 3
	c.Attributes = map[string]Template{"origin": MustTemplate("{{ .Probe }}"), "nothing": MustTemplate(`{{ if eq .Probe "" }}x{{ end }}`)}
	in := openAWS(t, c)
	if lanes, err := in.(Laner).Lanes(t.Context()); err != nil || len(lanes) != 3 || lanes[2] != 2 {
		t.Errorf("lanes %v, %v", lanes, err)
	}
	type sent struct {
		QueueURL                                            string `json:"QueueUrl"`
		MessageBody, MessageGroupId, MessageDeduplicationId string
		MessageAttributes                                   map[string]struct{ DataType, StringValue string }
	}
	ids := map[string]bool{}
	for seq := range uint64(2) {
		f.says(http.StatusOK, nil, `{}`)
		m := Sample()
		m.Seq, m.Lane, m.Token = seq, 2, m.Token+string(rune('a'+seq))
		_ = in.Inject(t.Context(), m) // the answer lacks the checksum, which does not matter here
		var s sent
		if err := json.Unmarshal([]byte(f.last), &s); err != nil {
			t.Fatal(err)
		}
		if want := "lag-monitor-" + m.Probe + "-2"; s.MessageGroupId != want {
			t.Errorf("group %q, want %q", s.MessageGroupId, want)
		}
		if s.MessageAttributes[Header].StringValue != m.Token || s.MessageAttributes["origin"].StringValue != m.Probe || s.MessageAttributes["origin"].DataType != "String" {
			t.Errorf("attributes %v", s.MessageAttributes)
		}
		if _, ok := s.MessageAttributes["nothing"]; ok {
			t.Error("an empty attribute is sent, which the service refuses")
		}
		if s.QueueURL != "http://fake/123456789012/q" || !strings.Contains(s.MessageBody, m.Token) {
			t.Errorf("sent %+v", s)
		}
		ids[s.MessageDeduplicationId] = true
	}
	if len(ids) != 2 || ids[""] {
		t.Errorf("deduplication ids %v of two heartbeats", ids)
	}

	// A standard queue gets neither.
	c = NewSQS()
	c.AWS, c.Queue = f.aws(t), "q"
	_ = openAWS(t, c).Inject(t.Context(), Sample())
	if strings.Contains(f.last, "MessageGroupId") || strings.Contains(f.last, "MessageDeduplicationId") {
		t.Errorf("to a standard queue: %s", f.last)
	}
}

// TestSNSRequest: what is published to a topic.
func TestSNSRequest(t *testing.T) {
	f := newFakeAWS(t)
	f.says(http.StatusOK, nil, `<PublishResponse><PublishResult><MessageId>1</MessageId></PublishResult></PublishResponse>`)
	c := NewSNS()
	c.AWS, c.TopicARN, c.Attributes = f.aws(t), "arn:aws:sns:eu-west-1:123456789012:t.fifo", map[string]Template{"kind": MustTemplate("parcel")}
	m := Sample()
	if err := openAWS(t, c).Inject(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	got, err := url.ParseQuery(f.last)
	if err != nil {
		t.Fatal(err)
	}
	attributes := map[string]string{}
	for i := range 4 {
		at := "MessageAttributes.entry." + string(rune('1'+i))
		attributes[got.Get(at+".Name")] = got.Get(at + ".Value.StringValue")
	}
	if got.Get("TopicArn") != c.TopicARN || !strings.Contains(got.Get("Message"), m.Token) || attributes[Header] != m.Token || attributes["kind"] != "parcel" ||
		got.Get("MessageGroupId") != "lag-monitor-"+m.Probe+"-0" || len(got.Get("MessageDeduplicationId")) != 64 {
		t.Errorf("published %v", got)
	}
}

// TestAWSOutcomes: what each answer says of the heartbeat.
func TestAWSOutcomes(t *testing.T) {
	f := newFakeAWS(t)
	queue, topic := NewSQS(), NewSNS()
	queue.AWS, queue.Queue = f.aws(t), "q"
	topic.AWS, topic.TopicARN = f.aws(t), "arn:aws:sns:eu-west-1:123456789012:t"
	// SDK and service agree on the older names of errors in a header.
	older := func(code string) map[string]string { return map[string]string{"x-amzn-query-error": code + ";Sender"} }
	typed := func(code string) string { return `{"__type":"com.amazonaws.sqs#` + code + `","message":"no"}` }
	xml := func(code string) string {
		return `<ErrorResponse><Error><Type>Sender</Type><Code>` + code + `</Code><Message>no</Message></Error><RequestId>1</RequestId></ErrorResponse>`
	}
	for name, c := range map[string]struct {
		config  Config
		status  int
		headers map[string]string
		body    string
		class   conn.Class
		unknown bool
	}{
		"sqs, gone":             {queue, 400, older("AWS.SimpleQueueService.NonExistentQueue"), typed("QueueDoesNotExist"), conn.Missing, false},
		"sqs, gone, plain":      {queue, 400, nil, typed("QueueDoesNotExist"), conn.Missing, false},
		"sqs, denied":           {queue, 403, nil, typed("AccessDeniedException"), conn.Auth, false},
		"sqs, key":              {queue, 400, nil, typed("KmsAccessDenied"), conn.Auth, false},
		"sqs, key throttled":    {queue, 400, nil, typed("KmsThrottled"), conn.Throttle, false},
		"sqs, throttled":        {queue, 403, nil, typed("RequestThrottled"), conn.Throttle, false},
		"sqs, throttled by 503": {queue, 503, nil, typed("ThrottlingException"), conn.Throttle, false},
		"sqs, characters":       {queue, 400, nil, typed("InvalidMessageContents"), conn.Other, false},
		"sqs, broken":           {queue, 500, nil, typed("InternalFailure"), conn.Other, true},
		"sqs, unavailable":      {queue, 503, nil, `no`, conn.Other, true},
		"sns, gone":             {topic, 404, nil, xml("NotFound"), conn.Missing, false},
		"sns, denied":           {topic, 403, nil, xml("AuthorizationError"), conn.Auth, false},
		"sns, throttled":        {topic, 429, nil, xml("Throttled"), conn.Throttle, false},
		"sns, key":              {topic, 400, nil, xml("KMSDisabled"), conn.Auth, false},
		"sns, broken":           {topic, 500, nil, xml("InternalError"), conn.Other, true},
	} {
		t.Run(name, func(t *testing.T) {
			f.says(c.status, c.headers, c.body)
			err := openAWS(t, c.config).Inject(t.Context(), Sample())
			if err == nil || conn.ClassOf(err) != c.class || IsRefused(err) == c.unknown {
				t.Errorf("class %s, refused %t: %v", conn.ClassOf(err), IsRefused(err), err)
			}
		})
	}
	for _, c := range []Config{queue, topic} {
		f.mu.Lock()
		f.answer = func(http.ResponseWriter) { panic(http.ErrAbortHandler) }
		f.mu.Unlock()
		if err := openAWS(t, c).Inject(t.Context(), Sample()); err == nil || IsRefused(err) || conn.ClassOf(err) != conn.Network {
			t.Errorf("the connection is closed instead of an answer: %v", err)
		}
	}
	f.mu.Lock()
	f.answer = nil // never
	f.mu.Unlock()
	for _, c := range []Config{queue, topic} {
		in := openAWS(t, c)
		ctx, cancel := context.WithCancel(t.Context())
		go func() { // hang up when it is there, however long that takes
			<-f.asked
			cancel()
		}()
		if err := in.Inject(ctx, Sample()); err == nil || IsRefused(err) {
			t.Errorf("no answer: %v", err)
		}
		cancel()
	}
}

func TestAWSMessageConfig(t *testing.T) {
	many := map[string]Template{}
	for _, n := range "abcdefghi" {
		many[string(n)] = MustTemplate("x")
	}
	for want, set := range map[string]func(*SQS){
		"queue":                func(c *SQS) { c.Queue = "https://example.com/q" },
		"body":                 func(c *SQS) { c.Body = MustTemplate("no token") },
		"attributes":           func(c *SQS) { c.Attributes = many },
		"attributes.AWS.x":     func(c *SQS) { c.Attributes = map[string]Template{"AWS.x": MustTemplate("x")} },
		"attributes." + Header: func(c *SQS) { c.Attributes = map[string]Template{Header: MustTemplate("x")} },
		"attributes.a b":       func(c *SQS) { c.Attributes = map[string]Template{"a b": MustTemplate("x")} },
		"group":                func(c *SQS) { c.Queue, c.Lanes, c.Group = "q.fifo", 2, MustTemplate("same") },
		"lanes":                func(c *SQS) { c.Lanes = 2 },
		"request_timeout":      func(c *SQS) { c.RequestTimeout = 1 },
	} {
		c := NewSQS()
		c.Queue = "q"
		set(c)
		var f *conn.FieldError
		if err := c.Validate(); !errors.As(err, &f) || f.Path != want {
			t.Errorf("%v, want a mistake in %s", err, want)
		}
	}
	c := NewSQS()
	c.Queue, c.Group = "q", MustTemplate("a group")
	if err := c.Validate(); err == nil {
		t.Error("a group with a blank is taken")
	}
	for _, arn := range []string{"", "t", "arn:aws:sqs:eu-west-1:123456789012:t"} {
		c := NewSNS()
		c.TopicARN = arn
		var f *conn.FieldError
		if err := c.Validate(); !errors.As(err, &f) || f.Path != "topic_arn" {
			t.Errorf("%q: %v", arn, err)
		}
	}
}
