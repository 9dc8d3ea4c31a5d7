package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/servers"

	"github.com/lag-monitor/lag-monitor/examples/stash-deferred/backend"
)

func TestFlags(t *testing.T) {
	for _, c := range []struct{ args, says string }{
		{"frontend", "frontend needs --bigtable.project and --bigtable.instance, or --bigtable.emulator"},
		{"backend", "backend needs --bigtable.project"},
		{"all --bigtable.instance=i", "--bigtable.instance needs --bigtable.project"},
		{"backend --bigtable.emulator=x --backend.interval=0s", "--backend.interval=0s: it must be above 0s"},
		{"backend --bigtable.emulator=x --backend.publishers=0", "--backend.publishers=0: it must be between 1 and 1000"},
		{"backend --bigtable.emulator=x --backend.delete-batch=1001", "--backend.delete-batch=1001"},
		{"backend --bigtable.emulator=x --backend.interval=soon", "invalid duration"},
		{"backends", "unexpected backends"},
		{"frontend --bigtable.emulator=127.0.0.1:1 --frontend.listen=127.0.0.1:x", "--frontend.listen: "},
	} {
		err := run(slog.New(slog.DiscardHandler), strings.Fields(c.args))
		if err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v; want %q", c.args, err, c.says)
		}
	}
}

// Both halves in one process, with Bigtable in its memory: a message goes in and comes out, and the end is in good order.
func TestAll(t *testing.T) {
	kinesis := servers.KinesisInMemory(t)
	kinesis.CreateStream(t, "deferred", 1)
	for name, value := range map[string]string{
		"AWS_REGION": servers.KinesisRegion, "AWS_ACCESS_KEY_ID": servers.KinesisAccessKey, "AWS_SECRET_ACCESS_KEY": servers.KinesisSecretKey, "AWS_EC2_METADATA_DISABLED": "true",
	} {
		t.Setenv(name, value)
	}
	f := flags{stream: "deferred", endpoint: kinesis.Endpoint, frontend: servers.FreeAddr(t), backend: servers.FreeAddr(t), write: 10 * time.Second, options: backend.Default()}
	f.options.Interval = 100 * time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- f.start(ctx, slog.New(slog.DiscardHandler), "all") }()

	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 20 * time.Second}
	send := func() error {
		resp, err := client.Post("http://"+f.frontend+"/v1/messages", "application/json", strings.NewReader(fmt.Sprintf(`{"expiry": %d, "message": "m"}`, time.Now().Unix())))
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if text, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusAccepted {
			return fmt.Errorf("%s: %s", resp.Status, text)
		}
		return nil
	}
	await(t, "a message is taken", send)
	await(t, "it is published and deleted", func() error {
		resp, err := client.Get("http://" + f.backend + "/metrics")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err == nil && !strings.Contains(string(text), `stashdef_bigtable_row_delete_total{result="success"} 1`) {
			err = fmt.Errorf("the metrics are\n%s", text)
		}
		return err
	})
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("the end: %v", err)
	}
	if c, err := net.Dial("tcp", f.frontend); err == nil {
		c.Close()
		t.Error("the frontend listens after its end")
	}
}

func await(t *testing.T, what string, f func() error) {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
	}
}
