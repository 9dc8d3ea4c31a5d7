package docs_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/sns"
	"github.com/aws/aws-sdk-go-v2/service/sns/types"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/lag-monitor/lag-monitor/internal/servers"
)

// pipelines has, for each page that is run, what its reader has already: each starts it and says at which
// addresses it is.
var pipelines = map[string]func(r *reader){
	// A worker that takes orders from one subject and puts them on another one.
	"add-a-probe.md": func(r *reader) {
		n := r.nats("orders")
		n.work("orders.in", func(_ int, m []byte) { n.put("orders.out", m) })
	},
	// A service that takes messages over HTTP and puts each out when it is due.
	"deferring-service.md": func(r *reader) {
		n := r.nats("deferred")
		r.front("stash.internal:8080", func(_ int, _ http.Header, body []byte) int {
			var m struct {
				DueMS   int64 `json:"due_ms"`
				Message string
			}
			if err := json.Unmarshal(body, &m); err != nil {
				return http.StatusBadRequest
			}
			n.later(time.Until(time.UnixMilli(m.DueMS)), func() { n.put("deferred.out", []byte(m.Message)) })
			return http.StatusAccepted
		})
	},
	// A front end that wants a key, refuses every third message and puts the others into a queue.
	"http-to-queue.md": func(r *reader) {
		n := r.nats("signup")
		r.front("signup.internal:8080", func(i int, h http.Header, body []byte) int {
			switch {
			case h.Get("X-Api-Key") != "correct horse":
				return http.StatusUnauthorized
			case i%3 == 0:
				return http.StatusServiceUnavailable
			}
			n.put("signup.out", body)
			return http.StatusAccepted
		})
	},
	// A worker that sends each message three ways, and every second time forgets one of them.
	"fan-out.md": func(r *reader) {
		n := r.nats("notify")
		n.work("notify.in", func(i int, m []byte) {
			n.put("notify.mail", m)
			n.put("notify.push", m)
			if i%2 == 0 {
				n.put("notify.sms", m)
			}
		})
	},
	// A worker that cannot do every second order.
	"dead-letters.md": func(r *reader) {
		n := r.nats("orders")
		n.work("orders.in", func(i int, m []byte) {
			if i%2 == 0 {
				n.put("orders.dead", m)
			} else {
				n.put("orders.out", m)
			}
		})
	},
	// A worker between two topics, which gives every third order up.
	"sns-to-sqs.md": func(r *reader) {
		m := servers.Moto(r.t)
		r.addrs["aws.internal:4566"] = m.Addr
		for name, text := range map[string]string{"key-id": servers.MotoAccessKey, "secret-key": servers.MotoSecretKey} {
			if err := os.WriteFile(filepath.Join(r.dir, name), []byte(text), 0o600); err != nil {
				r.t.Fatal(err)
			}
		}
		_, dead := m.CreateQueue(r.t, "orders-dlq", nil)
		work, arn := m.CreateQueue(r.t, "orders-work", map[string]string{
			"VisibilityTimeout": "1", "RedrivePolicy": fmt.Sprintf(`{"deadLetterTargetArn":%q,"maxReceiveCount":1}`, dead),
		})
		m.Subscribe(r.t, "orders", arn, nil)
		_, own := m.CreateQueue(r.t, "lag-monitor-shipped", nil)
		shipped := m.Subscribe(r.t, "shipped", own, map[string]any{"lag-monitor-heartbeat": []any{map[string]any{"exists": true}}})
		r.worker(m, work, shipped)
	},
	// A service that calls back.
	"sign-heartbeats.md": func(r *reader) {
		hook := servers.FreeAddr(r.t)
		r.addrs["localhost:9900"] = hook
		client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
		r.front("orders.internal:8080", func(_ int, _ http.Header, body []byte) int {
			go func() { // the monitor may have gone
				if resp, err := client.Post("http://"+hook+"/", "application/json", bytes.NewReader(body)); err == nil {
					resp.Body.Close()
				}
			}()
			return http.StatusAccepted
		})
	},
	// A worker again, between two monitors.
	"split-hosts.md": func(r *reader) {
		r.addrs["localhost:9857"] = servers.FreeAddr(r.t)
		n := r.nats("orders")
		n.work("orders.in", func(_ int, m []byte) { n.put("orders.out", m) })
	},
	"tune-thresholds.md": func(r *reader) {
		n := r.nats("orders")
		n.work("orders.in", func(_ int, m []byte) { n.later(50*time.Millisecond, func() { n.put("orders.out", m) }) })
	},
}

// queue is a NATS server with a stream.
type queue struct {
	t  *testing.T
	nc *nats.Conn
	wg sync.WaitGroup
}

// nats starts a server at nats.internal:4222 with a stream of that name, which takes its subjects.
func (r *reader) nats(stream string) *queue {
	r.t.Helper()
	s := servers.NATS(r.t)
	r.addrs["nats.internal:4222"] = strings.TrimPrefix(s.URL, "nats://")
	nc, err := nats.Connect(s.URL)
	if err != nil {
		r.t.Fatal(err)
	}
	q := &queue{t: r.t, nc: nc}
	r.t.Cleanup(func() {
		q.wg.Wait()
		nc.Close()
	})
	js, err := jetstream.New(nc)
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	if _, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: stream, Subjects: []string{stream + ".>"}}); err != nil {
		r.t.Fatal(err)
	}
	return q
}

// work calls f with each message of a subject, counted from 1.
func (q *queue) work(subject string, f func(i int, m []byte)) {
	q.t.Helper()
	i := 0
	if _, err := q.nc.Subscribe(subject, func(m *nats.Msg) {
		i++
		f(i, m.Data)
	}); err != nil {
		q.t.Fatal(err)
	}
}

func (q *queue) put(subject string, m []byte) { _ = q.nc.Publish(subject, m) }

func (q *queue) later(after time.Duration, f func()) {
	q.wg.Add(1)
	time.AfterFunc(after, func() {
		defer q.wg.Done()
		f()
	})
}

// front starts an HTTP service at an address of the page, which answers with the status that f returns for its
// i-th request, counted from 1.
func (r *reader) front(addr string, f func(i int, h http.Header, body []byte) int) {
	r.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		r.t.Fatal(err)
	}
	r.addrs[addr] = l.Addr().String()
	var mu sync.Mutex
	i := 0
	s := &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, err := io.ReadAll(req.Body)
		if err != nil || req.Method != http.MethodPost {
			http.Error(w, fmt.Sprint(err), http.StatusBadRequest)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		i++
		w.WriteHeader(f(i, req.Header, body))
	})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(l)
	}()
	r.t.Cleanup(func() {
		_ = s.Close()
		<-done
	})
}

// worker takes orders from a queue and publishes them to a topic, with their attributes, but for every third.
func (r *reader) worker(m *servers.MotoServer, queue, topic string) {
	r.t.Helper()
	from, to := m.SQS(r.t), m.SNS(r.t)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	r.t.Cleanup(func() {
		cancel()
		<-done
	})
	go func() {
		defer close(done)
		for i := 0; ctx.Err() == nil; {
			got, err := from.ReceiveMessage(ctx, &sqs.ReceiveMessageInput{QueueUrl: &queue, WaitTimeSeconds: 1})
			if err != nil {
				continue
			}
			for _, one := range got.Messages {
				if i++; i%3 == 0 {
					continue // it comes again, and the queue gives it up
				}
				var n struct {
					Message           string
					MessageAttributes map[string]struct{ Type, Value string }
				}
				if err := json.Unmarshal([]byte(*one.Body), &n); err != nil {
					continue
				}
				out := &sns.PublishInput{TopicArn: &topic, Message: &n.Message, MessageAttributes: map[string]types.MessageAttributeValue{}}
				for name, v := range n.MessageAttributes {
					out.MessageAttributes[name] = types.MessageAttributeValue{DataType: &v.Type, StringValue: &v.Value}
				}
				if _, err := to.Publish(ctx, out); err == nil {
					_, _ = from.DeleteMessage(ctx, &sqs.DeleteMessageInput{QueueUrl: &queue, ReceiptHandle: one.ReceiptHandle})
				}
			}
		}
	}()
}
