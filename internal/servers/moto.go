package servers

import (
	"context"
	"encoding/json"
	"maps"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/sns"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
)

// What a client of moto says of itself; any key does.
const (
	MotoRegion    = "us-east-1"
	MotoAccessKey = "test"
	MotoSecretKey = "test"
)

// MotoServer is SQS and SNS in memory: what it holds is gone when it ends.
type MotoServer struct {
	*Process
	Addr     string // host:port
	Endpoint string // URL
}

// motoStart mends two things of moto before it starts: a message that comes while another one is deleted could be lost, since only one of
// the two holds the lock; and a request that waits for messages of a FIFO queue kept a processor busy while there are some whose group is held.
const motoStart = `
import sys, time
from moto.server import main
from moto.sqs.models import Queue
delete, wait = Queue.delete_message, Queue.wait_for_messages
def delete_message(self, receipt_handle):
    with self._messages_lock:
        delete(self, receipt_handle)
def wait_for_messages(self, timeout):
    if self.messages:
        time.sleep(0.05)
    else:
        wait(self, timeout)
Queue.delete_message, Queue.wait_for_messages = delete_message, wait_for_messages
main(sys.argv[1:])
`

// Moto starts a server and returns when it answers.
func Moto(t testing.TB) *MotoServer {
	t.Helper()
	lib := filepath.Join(installed(t, "moto"), "lib")
	dir := t.TempDir()
	m := &MotoServer{Addr: FreeAddr(t)}
	m.Endpoint = "http://" + m.Addr
	port := m.Addr[len("127.0.0.1:"):]
	m.Process = startProcess(t, "moto", dir, func() *exec.Cmd {
		cmd := exec.Command("python3", "-c", motoStart, "-H", "127.0.0.1", "-p", port)
		cmd.Dir = dir
		cmd.Env = append(cmd.Environ(), "PYTHONPATH="+lib, "PYTHONDONTWRITEBYTECODE=1")
		return cmd
	}, httpReady(m.Endpoint+"/moto-api/data.json"))
	return m
}

func (m *MotoServer) config(t testing.TB) (*http.Client, aws.CredentialsProvider) {
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}, credentials.NewStaticCredentialsProvider(MotoAccessKey, MotoSecretKey, "")
}

// SQS returns a client of the SDK.
func (m *MotoServer) SQS(t testing.TB) *sqs.Client {
	client, creds := m.config(t)
	return sqs.New(sqs.Options{Region: MotoRegion, BaseEndpoint: aws.String(m.Endpoint), Credentials: creds, HTTPClient: client})
}

// SNS returns a client of the SDK.
func (m *MotoServer) SNS(t testing.TB) *sns.Client {
	client, creds := m.config(t)
	return sns.New(sns.Options{Region: MotoRegion, BaseEndpoint: aws.String(m.Endpoint), Credentials: creds, HTTPClient: client})
}

// CreateQueue creates a queue with attributes, which may be nil, and returns its URL and ARN. One whose name ends in .fifo is
// a FIFO queue.
func (m *MotoServer) CreateQueue(t testing.TB, name string, attributes map[string]string) (url, arn string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	client := m.SQS(t)
	if strings.HasSuffix(name, ".fifo") {
		fifo := map[string]string{"FifoQueue": "true"}
		maps.Copy(fifo, attributes)
		attributes = fifo
	}
	out, err := client.CreateQueue(ctx, &sqs.CreateQueueInput{QueueName: &name, Attributes: attributes})
	if err != nil {
		t.Fatalf("moto: create queue %s: %v", name, err)
	}
	got, err := client.GetQueueAttributes(ctx, &sqs.GetQueueAttributesInput{QueueUrl: out.QueueUrl, AttributeNames: []types.QueueAttributeName{types.QueueAttributeNameQueueArn}})
	if err != nil {
		t.Fatalf("moto: queue %s: %v", name, err)
	}
	return *out.QueueUrl, got.Attributes["QueueArn"]
}

// Subscribe creates a topic, unless it is there, subscribes a queue to it and returns its ARN. policy, which may be nil,
// is the filter policy. A topic whose name ends in .fifo is a FIFO topic.
func (m *MotoServer) Subscribe(t testing.TB, topic, queueARN string, policy map[string]any) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	client := m.SNS(t)
	create := &sns.CreateTopicInput{Name: &topic}
	if strings.HasSuffix(topic, ".fifo") {
		create.Attributes = map[string]string{"FifoTopic": "true"}
	}
	out, err := client.CreateTopic(ctx, create)
	if err != nil {
		t.Fatalf("moto: create topic %s: %v", topic, err)
	}
	in := &sns.SubscribeInput{TopicArn: out.TopicArn, Protocol: aws.String("sqs"), Endpoint: &queueARN}
	if policy != nil {
		text, err := json.Marshal(policy)
		if err != nil {
			t.Fatal(err)
		}
		in.Attributes = map[string]string{"FilterPolicy": string(text)}
	}
	if _, err := client.Subscribe(ctx, in); err != nil {
		t.Fatalf("moto: subscribe %s to %s: %v", queueARN, topic, err)
	}
	return *out.TopicArn
}
