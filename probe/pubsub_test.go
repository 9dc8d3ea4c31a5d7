package probe

import (
	"context"
	"strings"
	"testing"
	"time"

	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"cloud.google.com/go/pubsub/v2/pstest"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/lag-monitor/lag-monitor/internal/conn"
)

const pubsubTopic = "projects/acme-billing/topics/invoices"

func pubsubAt(t *testing.T, options ...pstest.ServerReactorOption) (*pstest.Server, *PubSub) {
	t.Helper()
	fake := pstest.NewServer(options...)
	t.Cleanup(func() { _ = fake.Close() })
	if _, err := fake.GServer.CreateTopic(t.Context(), &pubsubpb.Topic{Name: pubsubTopic}); err != nil {
		t.Fatal(err)
	}
	c := NewPubSub()
	c.Project, c.Topic, c.Endpoint, c.Insecure = "acme-billing", "invoices", fake.Addr, true
	c.RequestTimeout = conn.Duration(time.Minute)
	return fake, c
}

func pubsubOpen(t *testing.T, c *PubSub) Injector {
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

func TestPubSubPublishes(t *testing.T) {
	fake, c := pubsubAt(t)
	c.OrderingKeys = 2
	c.Attributes = map[string]Template{"origin": MustTemplate("{{ .Probe }}")}
	in := pubsubOpen(t, c)
	lanes, err := in.(Laner).Lanes(t.Context())
	if err != nil || len(lanes) != 2 {
		t.Fatal(lanes, err)
	}
	for _, lane := range lanes {
		m := Sample()
		m.Lane, m.TraceParent = lane, "00-1-2-00"
		if err := in.Inject(t.Context(), m); err != nil {
			t.Fatal(err)
		}
	}
	got := fake.Messages()
	if len(got) != 2 {
		t.Fatalf("%d messages", len(got))
	}
	for i, m := range got {
		if want := []string{"lag-monitor-sample-0", "lag-monitor-sample-1"}[i]; m.OrderingKey != want || m.Attributes["origin"] != "sample" ||
			m.Attributes[Header] != Sample().Token || m.Attributes[TraceHeader] != "00-1-2-00" || !strings.Contains(string(m.Data), Sample().Token) {
			t.Errorf("%+v, want key %s", m, want)
		}
	}
}

// Each answer is tried once and means what it says.
func TestPubSubOutcome(t *testing.T) {
	for code, refused := range map[codes.Code]bool{
		codes.NotFound: true, codes.PermissionDenied: true, codes.Unauthenticated: true, codes.InvalidArgument: true, codes.ResourceExhausted: true, codes.FailedPrecondition: true,
		codes.Unavailable: false, codes.DeadlineExceeded: false, codes.Aborted: false, codes.Internal: false, codes.Unknown: false, codes.Canceled: false,
	} {
		t.Run(code.String(), func(t *testing.T) {
			fake, c := pubsubAt(t)
			fake.SetAutoPublishResponse(false)
			fake.AddPublishResponse(nil, status.Error(code, "so it is"))
			// A second try would be accepted.
			fake.AddPublishResponse(&pubsubpb.PublishResponse{MessageIds: []string{"1"}}, nil)
			in := pubsubOpen(t, c)
			if err := in.Inject(t.Context(), Sample()); err == nil || IsRefused(err) != refused {
				t.Errorf("%v, refused %t; want %t", err, IsRefused(err), refused)
			}
		})
	}
}

// What never left is refused, whatever the reason.
func TestPubSubNotSent(t *testing.T) {
	fake, c := pubsubAt(t)
	c.RequestTimeout = conn.Duration(5 * time.Second)
	_ = fake.Close()
	in := pubsubOpen(t, c)
	for range 3 {
		if err := in.Inject(t.Context(), Sample()); !IsRefused(err) || conn.ClassOf(err) != conn.Network {
			t.Errorf("%v of class %s, refused %t", err, conn.ClassOf(err), IsRefused(err))
		}
	}
}

// A connection that swallows requests is replaced, and one that answers is not.
func TestPubSubSwallowed(t *testing.T) {
	fake, c := pubsubAt(t)
	in := pubsubOpen(t, c).(*pubsubInjector)
	if err := in.Inject(t.Context(), Sample()); err != nil {
		t.Fatal(err)
	}
	first := in.client
	fake.SetAutoPublishResponse(false) // it waits for an answer to give
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := in.Inject(ctx, Sample()); err == nil || IsRefused(err) {
		t.Errorf("%v, refused %t; want unknown", err, IsRefused(err))
	}
	if in.client != nil {
		t.Error("the connection is kept")
	}
	fake.AddPublishResponse(&pubsubpb.PublishResponse{MessageIds: []string{"1"}}, nil) // for the one that hangs
	fake.AddPublishResponse(&pubsubpb.PublishResponse{MessageIds: []string{"2"}}, nil)
	if err := in.Inject(t.Context(), Sample()); err != nil || in.client == first {
		t.Error(err)
	}
}

func TestPubSubValidate(t *testing.T) {
	for _, row := range []struct {
		change func(*PubSub)
		want   string
	}{
		{func(*PubSub) {}, ""},
		{func(c *PubSub) { c.Topic = "" }, "topic: which topic? write its id, or projects/PROJECT/topics/ID"},
		{func(c *PubSub) { c.Project = "" }, "topic: in which project? write project, or projects/PROJECT/topics/invoices"},
		{func(c *PubSub) { c.Body = MustTemplate("x") }, "body: "},
		{func(c *PubSub) { c.Attributes = map[string]Template{Header: MustTemplate("x")} }, "attributes.lag-monitor-heartbeat: is written by lag-monitor itself"},
		{func(c *PubSub) { c.Attributes = map[string]Template{"googx": MustTemplate("x")} }, "attributes.googx: is not the name of an attribute: 1 to 256 bytes, not beginning with goog"},
		{func(c *PubSub) { c.OrderingKeys = 101 }, "ordering_keys: 101 is out of range: 0 to 100"},
		{func(c *PubSub) { c.OrderingKey = MustTemplate("x") }, "ordering_key: goes with ordering_keys: how many?"},
		{func(c *PubSub) { c.OrderingKeys, c.OrderingKey = 2, MustTemplate("x") }, "ordering_key: is the same for each of the 2 lanes: write {{ .Lane }} into it"},
	} {
		c := NewPubSub()
		c.Project, c.Topic = "acme-billing", "invoices"
		row.change(c)
		got := ""
		if err := c.Validate(); err != nil {
			got = err.Error()
		}
		if got != row.want && (row.want == "" || !strings.HasPrefix(got, row.want)) {
			t.Errorf("%q, want %q", got, row.want)
		}
	}
}
