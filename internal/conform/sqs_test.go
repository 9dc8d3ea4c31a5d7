package conform_test

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"go.uber.org/goleak"

	"github.com/lag-monitor/lag-monitor/internal/conform"
	"github.com/lag-monitor/lag-monitor/internal/conn"
	"github.com/lag-monitor/lag-monitor/internal/servers"
	"github.com/lag-monitor/lag-monitor/probe"
	"github.com/lag-monitor/lag-monitor/sinks"
)

// TestConformanceSQS and TestConformanceSNS are two, since they may run side by side.
func TestConformanceSQS(t *testing.T) { conformOnMoto(t, 0) }

func TestConformanceSNS(t *testing.T) { conformOnMoto(t, 1) }

func conformOnMoto(t *testing.T, which int) {
	servers.Need(t)
	h := onMoto(servers.Moto(t))[which]
	t.Run(h.Name(), func(t *testing.T) { conform.Run(t, h) })
}

// onMoto are a standard queue, and a FIFO queue that is subscribed to a topic and gets two message groups from it.
func onMoto(m *servers.MotoServer) []conform.Harness {
	return []conform.Harness{sqsHarness(m, ""), sqsHarness(m, "sns_fifo")}
}

func sqsHarness(m *servers.MotoServer, variant string) conform.Harness {
	var made atomic.Int32
	h := conform.Harness{Kind: "sqs", Variant: variant, InjectorNeeds: []string{"queue"}, SinkNeeds: []string{"queue", "dedicated"},
		Leaks: []goleak.Option{goleak.IgnoreAnyFunction("github.com/lag-monitor/lag-monitor/internal/servers.(*Process).Start.func1")}}
	if variant == "sns_fifo" {
		h.InjectKind, h.InjectorNeeds = "sns", []string{"topic_arn"}
	}
	h.New = func(t *testing.T) conform.Pipeline {
		t.Setenv("LAG_MONITOR_TEST_AWS_ID", servers.MotoAccessKey)
		t.Setenv("LAG_MONITOR_TEST_AWS_KEY", servers.MotoSecretKey)
		queue := fmt.Sprintf("conform%s-%d", variant, made.Add(1))
		lanes := 1
		if variant == "sns_fifo" {
			queue, lanes = queue+".fifo", 2
		}
		url, arn := m.CreateQueue(t, queue, nil)
		topic := ""
		if variant != "" {
			topic = m.Subscribe(t, queue, arn, nil)
		}
		proxy := servers.Proxy(t, m.Addr)
		at := func(endpoint string) conn.AWS {
			c := conn.DefaultAWS()
			c.Endpoint, c.Region, c.RequestTimeout = endpoint, servers.MotoRegion, conn.Duration(time.Minute)
			c.AccessKeyID = conn.Secret{Env: "LAG_MONITOR_TEST_AWS_ID"}
			c.SecretAccessKey = conn.Secret{Env: "LAG_MONITOR_TEST_AWS_KEY"}
			return c
		}
		inject := func(at conn.AWS, name string) func() probe.Config {
			return func() probe.Config {
				if variant == "sns_fifo" {
					c := probe.NewSNS()
					c.AWS, c.TopicARN, c.AWSMessage.Lanes = at, topic, lanes
					if name != queue {
						c.TopicARN = strings.Replace(topic, queue, name, 1)
					}
					return c
				}
				c := probe.NewSQS()
				c.AWS, c.Queue = at, name
				return c
			}
		}
		listen := func(at conn.AWS, name string) func() sinks.Config {
			return func() sinks.Config {
				c := sinks.NewSQS()
				c.AWS, c.Queue, c.Dedicated = at, name, true
				c.Visibility = conn.Duration(5 * time.Second)
				return c
			}
		}
		here, nobody := at("http://"+proxy.Addr), at("http://"+freeAddr(t))
		noKey := here
		noKey.SecretAccessKey = conn.Secret{Env: "LAG_MONITOR_TEST_AWS_NOTHING"}
		missing := "nobody-made-this-queue"
		if variant == "sns_fifo" {
			missing += ".fifo"
		}
		client := m.SQS(t)
		var puts atomic.Int64
		return conform.Pipeline{
			Inject: inject(here, queue), Sink: listen(here, queue),
			Put: func(t *testing.T, bodies ...[]byte) {
				ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute) // thirty requests
				defer cancel()
				for part := range slices.Chunk(bodies, 10) {
					in := &sqs.SendMessageBatchInput{QueueUrl: aws.String(url)}
					for i, b := range part {
						e := types.SendMessageBatchRequestEntry{Id: aws.String(strconv.Itoa(i)), MessageBody: aws.String(string(b))}
						if variant == "sns_fifo" {
							e.MessageGroupId, e.MessageDeduplicationId = aws.String("orders"), aws.String(strconv.FormatInt(puts.Add(1), 10))
						}
						in.Entries = append(in.Entries, e)
					}
					out, err := client.SendMessageBatch(ctx, in)
					if err != nil || len(out.Failed) > 0 {
						t.Errorf("send ordinary messages: %v", err)
						return
					}
				}
			},
			Lanes: lanes, Keeps: true, Exclusive: true, Takes: true, IDs: true, Enqueued: true,
			Stop:  func() { proxy.Set(servers.Faults{Refuse: true}); proxy.Cut() },
			Start: func() { proxy.Set(servers.Faults{}) },
			Hang: func() func() {
				proxy.Set(servers.Faults{Silent: true})
				return func() { proxy.Set(servers.Faults{}) }
			},
			// A message in an answer that is lost comes again when its visibility timeout is over, and on a machine with much
			// else to do the server takes minutes for thousands of messages.
			Within: 3 * time.Minute,
			Proof:  10 * time.Second,
			Broken: []conform.Broken{
				{Name: "nothing of that name", Inject: inject(here, missing), Sink: listen(here, missing), Class: conn.Missing},
				{Name: "nobody listens", Inject: inject(nobody, queue), Sink: listen(nobody, queue), Class: conn.Network},
				{Name: "no secret", Inject: inject(noKey, queue), Sink: listen(noKey, queue), Class: conn.Auth},
			},
		}
	}
	return h
}
