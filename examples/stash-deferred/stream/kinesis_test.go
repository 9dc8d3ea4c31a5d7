package stream_test

import (
	"bytes"
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/servers"

	"github.com/lag-monitor/lag-monitor/examples/stash-deferred/stream"
)

func environment(t *testing.T) {
	for name, value := range map[string]string{
		"AWS_REGION": servers.KinesisRegion, "AWS_ACCESS_KEY_ID": servers.KinesisAccessKey, "AWS_SECRET_ACCESS_KEY": servers.KinesisSecretKey, "AWS_EC2_METADATA_DISABLED": "true",
	} {
		t.Setenv(name, value)
	}
}

// What another attempt may cure is tried again; everything else is not.
func TestRefused(t *testing.T) {
	environment(t)
	for _, c := range []struct {
		status  int
		kind    string
		refused bool
	}{
		{400, "ResourceNotFoundException", true},
		{400, "InvalidArgumentException", true},
		{400, "AccessDeniedException", true},
		{400, "ExpiredTokenException", true},
		{400, "ProvisionedThroughputExceededException", false},
		{400, "LimitExceededException", false},
		{429, "ThrottlingException", false},
		{500, "InternalFailure", false},
		{503, "ServiceUnavailable", false},
	} {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/x-amz-json-1.1")
			w.WriteHeader(c.status)
			_, _ = w.Write([]byte(`{"__type":"` + c.kind + `","message":"no"}`))
		}))
		k, err := stream.Open(t.Context(), srv.URL)
		if err != nil {
			t.Fatal(err)
		}
		err = k.Put(t.Context(), "s", "key", []byte("m"))
		if err == nil || stream.Refused(err) != c.refused {
			t.Errorf("%d %s: refused %v (%v); want %v", c.status, c.kind, stream.Refused(err), err, c.refused)
		}
		srv.Close()
	}
	// Nobody there, and nobody who answers.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	k, err := stream.Open(t.Context(), "http://"+l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := k.Put(ctx, "s", "key", nil); err == nil || stream.Refused(err) {
		t.Errorf("no answer: %v", err)
	}
	l.Close()
	if err := k.Put(t.Context(), "s", "key", nil); err == nil || stream.Refused(err) {
		t.Errorf("no listener: %v", err)
	}
}

func TestKinesis(t *testing.T) {
	server := servers.Kinesis(t)
	environment(t)
	server.CreateStream(t, "s", 2)
	k, err := stream.Open(t.Context(), server.Endpoint)
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Put(t.Context(), "s", "key", bytes.Repeat([]byte{0}, 512<<10)); err != nil {
		t.Error(err)
	}
	if err := k.Put(t.Context(), "nobody", "key", []byte("m")); !stream.Refused(err) {
		t.Errorf("a stream that is not there: %v", err)
	}
	server.Throttle("PutRecord", 1)
	if err := k.Put(t.Context(), "s", "key", []byte("m")); err == nil || stream.Refused(err) {
		t.Errorf("throttled: %v", err)
	}
	if n := server.Calls("PutRecord"); n != 3 {
		t.Errorf("%d calls; want one for each attempt", n)
	}
}
