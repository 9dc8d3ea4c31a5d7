package store_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"cloud.google.com/go/bigtable"
	"go.uber.org/goleak"
	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/lag-monitor/lag-monitor/examples/stash-deferred/emulator"
	"github.com/lag-monitor/lag-monitor/examples/stash-deferred/store"
)

func TestMain(m *testing.M) {
	// Of Google's libraries, for the life of the process.
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("go.opencensus.io/stats/view.(*worker).start"))
}

func open(t *testing.T) (*emulator.Server, *store.Store) {
	t.Helper()
	e, err := emulator.Start(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	s, err := store.Open(t.Context(), e.Config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return e, s
}

func keys(rows []store.Row) (keys []string) {
	for _, r := range rows {
		keys = append(keys, r.Key)
	}
	return keys
}

func TestStore(t *testing.T) {
	_, s := open(t)
	ctx, now := t.Context(), time.Unix(1_764_388_805, 0)
	want := store.Message{Stream: "orders", Body: []byte("\x00 any \xff bytes")}
	for i := range 10 {
		if err := s.Put(ctx, now.Unix()+int64(i)-4, fmt.Sprintf("id%d", i), want); err != nil {
			t.Fatal(err)
		}
	}
	// 4 s of the past, and the second that has just begun.
	rows, more, err := s.Due(ctx, "", now, 100)
	if err != nil || more || len(rows) != 5 {
		t.Fatalf("due are %q, more %v, %v; want 5", keys(rows), more, err)
	}
	for _, r := range rows {
		if r.Err != nil || r.Message.Stream != want.Stream || string(r.Message.Body) != string(want.Body) {
			t.Errorf("%s holds %+v", r.Key, r)
		}
	}
	first, more, err := s.Due(ctx, "", now, 2)
	if err != nil || !more || len(first) != 2 {
		t.Fatalf("the first two are %q, more %v, %v", keys(first), more, err)
	}
	rest, more, err := s.Due(ctx, first[1].Key, now, 100)
	if err != nil || more || len(rest) != 3 || rest[0].Key != rows[2].Key {
		t.Fatalf("behind them are %q, more %v, %v", keys(rest), more, err)
	}
	if b, err := s.Backlog(ctx, now, 100); err != nil || b.Rows != 5 || b.Oldest != 4*time.Second {
		t.Errorf("the backlog is %+v, %v", b, err)
	}
	if failed := s.Delete(ctx, keys(rows)); failed != nil {
		t.Errorf("delete: %v", failed)
	}
	if rows, _, err := s.Due(ctx, "", now, 100); err != nil || len(rows) != 0 {
		t.Errorf("after deletion are %q, %v", keys(rows), err)
	}
	if b, err := s.Backlog(ctx, now.Add(time.Hour), 3); err != nil || b.Rows != 3 {
		t.Errorf("the backlog up to 3 is %+v, %v", b, err)
	}
}

// What somebody else wrote is told, and does not hide what is behind it.
func TestRowsThatAreNoMessages(t *testing.T) {
	e, s := open(t)
	ctx, now := t.Context(), time.Unix(1_764_388_805, 0)
	conn, err := grpc.NewClient("passthrough:///"+e.Config.Emulator, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	client, err := bigtable.NewClientWithConfig(ctx, e.Config.Project, e.Config.Instance, bigtable.ClientConfig{MetricsProvider: bigtable.NoopMetricsProvider{}, DisableSession: true}, option.WithGRPCConn(conn))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	for key, cells := range map[string][]string{
		store.Key(1, "column"): {"other", "{}"}, store.Key(2, "json"): {"message", "{"}, store.Key(3, "stream"): {"message", "{}"},
		"deferred:0000000004": {"message", "{}"},
	} {
		m := bigtable.NewMutation()
		m.Set(store.Family, cells[0], bigtable.Now(), []byte(cells[1]))
		if err := client.Open(e.Config.Table).Apply(ctx, key, m); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Put(ctx, 5, "good", store.Message{Stream: "s"}); err != nil {
		t.Fatal(err)
	}
	rows, _, err := s.Due(ctx, "", now, 100)
	if err != nil || len(rows) != 5 {
		t.Fatalf("due are %q, %v", keys(rows), err)
	}
	for i, want := range []string{"is not one cell m:message", "unexpected end", "names no stream", "the key is not deferred", ""} {
		got := ""
		if rows[i].Err != nil {
			got = rows[i].Err.Error()
		}
		if !strings.Contains(got, want) || (want == "") != (got == "") {
			t.Errorf("%s: %q; want %q", rows[i].Key, got, want)
		}
	}
}

func TestFaults(t *testing.T) {
	e, s := open(t)
	ctx, now := t.Context(), time.Unix(1_764_388_805, 0)
	if err := s.Put(ctx, 1, "a", store.Message{Stream: "s"}); err != nil {
		t.Fatal(err)
	}
	short := func() context.Context {
		ctx, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
		t.Cleanup(cancel)
		return ctx
	}
	e.Set(emulator.Faults{ScanHangs: true})
	if rows, _, err := s.Due(short(), "", now, 10); err == nil {
		t.Errorf("a scan that hangs returned %q", keys(rows))
	}
	if b, err := s.Backlog(ctx, now, 10); err != nil || b.Rows != 1 {
		t.Errorf("keys cannot be counted while scans hang: %+v, %v", b, err)
	}
	e.Set(emulator.Faults{NoDeletion: true})
	if failed := s.Delete(ctx, []string{store.Key(1, "a")}); len(failed) != 1 || !strings.Contains(failed[store.Key(1, "a")].Error(), "permission") {
		t.Errorf("a deletion without the right to it: %v", failed)
	}
	if err := s.Put(ctx, 2, "b", store.Message{Stream: "s"}); err != nil {
		t.Errorf("a write without the right to delete: %v", err)
	}
	e.Set(emulator.Faults{Down: true})
	if err := s.Put(short(), 3, "c", store.Message{Stream: "s"}); err == nil {
		t.Error("a write into a store that is down succeeded")
	}
	e.Set(emulator.Faults{})
	if rows, _, err := s.Due(ctx, "", now, 10); err != nil || len(rows) != 2 {
		t.Errorf("after all are %q, %v; want a and b", keys(rows), err)
	}
}
