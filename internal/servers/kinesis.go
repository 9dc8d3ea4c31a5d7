package servers

import (
	"context"
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/kinesis"
)

// What a client of the local Kinesis says of itself; any key does.
const (
	KinesisRegion    = "us-east-1"
	KinesisAccessKey = "test"
	KinesisSecretKey = "test"
)

// kinesisPersist is how often the server writes its data to disk.
const kinesisPersist = 200 * time.Millisecond

// KinesisServer is a local Kinesis behind a KinesisProxy, which is what clients talk to.
type KinesisServer struct {
	*Process
	*KinesisProxy

	data     string // path of the file that holds everything
	upstream string // URL of the server itself
}

// Kinesis starts a local Kinesis and returns when it is ready. What it holds survives Stop and Start;
// Kill may lose the last half second.
func Kinesis(t testing.TB) *KinesisServer {
	t.Helper()
	return startKinesis(t, true)
}

// KinesisInMemory is Kinesis for many users at once: it writes nothing to disk, which takes most of the
// server's time when there is much to write, and loses everything when it ends.
func KinesisInMemory(t testing.TB) *KinesisServer {
	t.Helper()
	return startKinesis(t, false)
}

func startKinesis(t testing.TB, persist bool) *KinesisServer {
	t.Helper()
	home := filepath.Join(installed(t, "kinesis"), "node_modules", "kinesis-local")
	dir := t.TempDir()
	plain, tls := freePort(t), freePort(t)
	// It has no setting for the address it listens on, and takes all there are.
	preload := writeFile(t, dir, "loopback.js", `
const net = require('net');
const listen = net.Server.prototype.listen;
net.Server.prototype.listen = function (...args) {
  if (typeof args[0] === 'number') args[0] = {port: args[0]};
  if (args[0] && typeof args[0] === 'object' && args[0].port !== undefined) {
    args[0] = {...args[0], host: '127.0.0.1'};
    args = args.filter((a, i) => i === 0 || typeof a === 'function');
  }
  return listen.apply(this, args);
};
`)
	k := &KinesisServer{data: filepath.Join(dir, "data", "kinesis-data.json")}
	k.Process = startProcess(t, "kinesis", dir, func() *exec.Cmd {
		cmd := exec.Command("node", "--require", preload, filepath.Join(home, "main.js"))
		cmd.Dir = dir
		cmd.Env = append(cmd.Environ(),
			"KINESIS_MOCK_PLAIN_PORT="+strconv.Itoa(plain), "KINESIS_MOCK_TLS_PORT="+strconv.Itoa(tls),
			"KINESIS_MOCK_CERT_PATH="+filepath.Join(home, "server.json"),
			"AWS_REGION="+KinesisRegion, "SHARD_LIMIT=10000", "LOG_LEVEL=WARN",
			"SHOULD_PERSIST_DATA="+strconv.FormatBool(persist), "PERSIST_PATH="+filepath.Join(dir, "data"), "PERSIST_INTERVAL="+kinesisPersist.String())
		// The control plane of the service takes a while too, but tests need not wait half a second each time.
		for _, op := range []string{"CREATE_STREAM", "DELETE_STREAM", "REGISTER_STREAM_CONSUMER", "DEREGISTER_STREAM_CONSUMER",
			"MERGE_SHARDS", "SPLIT_SHARD", "UPDATE_SHARD_COUNT"} {
			cmd.Env = append(cmd.Env, op+"_DURATION=50ms")
		}
		return cmd
	}, httpReady("http://"+loopback(plain)+"/healthcheck"))
	k.upstream = "http://" + loopback(plain)
	k.KinesisProxy = newKinesisProxy(t, k.upstream)
	return k
}

// NewProxy puts one more proxy in front of the server, with faults of its own.
func (k *KinesisServer) NewProxy(t testing.TB) *KinesisProxy {
	t.Helper()
	return newKinesisProxy(t, k.upstream)
}

// Stop ends the server once it has written its data to disk. What is put while it stops may be lost.
func (k *KinesisServer) Stop() {
	k.Process.t.Helper()
	time.Sleep(2 * kinesisPersist)
	// After SIGTERM it would wait half a minute for connections that clients keep open. It must not be
	// killed while it writes either: it could not read the half of a file when it starts again.
	for deadline := time.Now().Add(stopDeadline); ; time.Sleep(kinesisPersist / 10) {
		k.Pause()
		time.Sleep(10 * time.Millisecond) // for the signal to reach each of its threads
		if data, err := os.ReadFile(k.data); err == nil && json.Valid(data) {
			break
		}
		k.Resume()
		if time.Now().After(deadline) {
			k.Process.t.Fatalf("kinesis: stop: %s is never whole", k.data)
		}
	}
	k.Kill()
}

// Client returns an SDK client for the server, through the proxy. It does not retry unless told to.
func (k *KinesisServer) Client(t testing.TB, options ...func(*kinesis.Options)) *kinesis.Client {
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	return kinesis.New(kinesis.Options{
		Region:       KinesisRegion,
		BaseEndpoint: aws.String(k.Endpoint),
		Credentials:  credentials.NewStaticCredentialsProvider(KinesisAccessKey, KinesisSecretKey, ""),
		HTTPClient:   &http.Client{Transport: transport},
		Retryer:      aws.NopRetryer{},
	}, options...)
}

// CreateStream creates a stream, waits until it is active and returns its ARN.
func (k *KinesisServer) CreateStream(t testing.TB, name string, shards int32) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	client := k.Client(t)
	if _, err := client.CreateStream(ctx, &kinesis.CreateStreamInput{StreamName: &name, ShardCount: &shards}); err != nil {
		t.Fatalf("kinesis: create stream %s: %v", name, err)
	}
	return k.AwaitStream(t, name)
}

// AwaitStream waits until a stream is active, as after a reshard, and returns its ARN.
func (k *KinesisServer) AwaitStream(t testing.TB, name string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	client := k.Client(t)
	for {
		out, err := client.DescribeStreamSummary(ctx, &kinesis.DescribeStreamSummaryInput{StreamName: &name})
		if err != nil {
			t.Fatalf("kinesis: waiting for stream %s: %v", name, err)
		}
		if out.StreamDescriptionSummary.StreamStatus == "ACTIVE" {
			return *out.StreamDescriptionSummary.StreamARN
		}
		time.Sleep(20 * time.Millisecond)
	}
}
