package tracing

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/cenkalti/backoff/v5"
	collectorpb "go.opentelemetry.io/proto/slim/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/slim/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/slim/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/slim/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/lag-monitor/lag-monitor/internal/conn"
	"github.com/lag-monitor/lag-monitor/internal/heartbeat"
)

const (
	serviceName = "lag-monitor"
	scope       = "github.com/lag-monitor/lag-monitor/internal/tracing"

	// patience is how long a batch is tried again, and maxPause the longest pause between two tries,
	// whatever the receiver asks for.
	patience = 30 * time.Second
	maxPause = 10 * time.Second
	maxReply = 64 << 10
)

// Receiver is a receiver of OTLP that has been opened. Its methods are safe for concurrent use.
type Receiver struct {
	c        *OTLP
	u        *url.URL
	client   *http.Client
	resource *resourcepb.Resource
	instance uint64
	version  string
}

// Open makes a Receiver. It reads certificates but does not wait for the network. instance names this
// process.
func (c *OTLP) Open(instance, version string) (*Receiver, error) {
	u, err := c.target()
	if err != nil {
		return nil, err
	}
	client, err := conn.HTTPClient(c.TLS, &c.Auth, false)
	if err != nil {
		return nil, err
	}
	about := map[string]string{"service.name": serviceName, "service.version": version, "service.instance.id": instance}
	maps.Copy(about, c.Resource)
	r := &Receiver{c: c, u: u, client: client, resource: new(resourcepb.Resource), instance: heartbeat.InstanceID(instance), version: version}
	for _, k := range slices.Sorted(maps.Keys(about)) {
		if about[k] != "" {
			r.resource.Attributes = append(r.resource.Attributes, text(k, about[k]))
		}
	}
	return r, nil
}

// Check asks the receiver whether it would take traces, by sending none.
func (r *Receiver) Check(ctx context.Context) error {
	defer r.client.CloseIdleConnections()
	_, err := r.send(ctx, new(collectorpb.ExportTraceServiceRequest))
	return r.named(err)
}

// upload sends a batch, and tries again for a while where that may help. rejected are the spans that the
// receiver did not want, with its words in the error beside it.
func (r *Receiver) upload(ctx context.Context, batch []*Heartbeat) (rejected int64, err error) {
	var spans []*tracepb.Span
	for _, h := range batch {
		spans = h.spans(spans, r.instance)
	}
	req := &collectorpb.ExportTraceServiceRequest{ResourceSpans: []*tracepb.ResourceSpans{{
		Resource:   r.resource,
		ScopeSpans: []*tracepb.ScopeSpans{{Scope: &commonpb.InstrumentationScope{Name: scope, Version: clean(r.version)}, Spans: spans}},
	}}}
	pauses := backoff.NewExponentialBackOff()
	pauses.MaxInterval = maxPause
	rejected, err = backoff.Retry(ctx, func() (int64, error) { return r.send(ctx, req) },
		backoff.WithBackOff(pauses), backoff.WithMaxElapsedTime(patience))
	return rejected, r.named(err)
}

// named says in an error whose it is.
func (r *Receiver) named(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("POST %s: %w", conn.HTTPTarget(r.u), err)
}

// send sends one request. An error after which another try is of no use is a backoff.PermanentError.
func (r *Receiver) send(ctx context.Context, m *collectorpb.ExportTraceServiceRequest) (rejected int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(r.c.Timeout))
	defer cancel()
	raw, err := proto.Marshal(m)
	if err != nil {
		return 0, backoff.Permanent(err)
	}
	var body bytes.Buffer
	z := gzip.NewWriter(&body)
	_, _ = z.Write(raw) // into memory
	_ = z.Close()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.u.String(), &body)
	if err != nil {
		return 0, backoff.Permanent(errors.New("endpoint: is not a URL"))
	}
	for name, v := range r.c.Headers {
		req.Header.Set(name, v)
	}
	req.Header.Set("Content-Type", "application/x-protobuf")
	req.Header.Set("Content-Encoding", "gzip")
	req.Header.Set("User-Agent", conn.UserAgent)
	if h := req.Header.Get("Host"); h != "" {
		req.Host = h
	}
	redact, err := r.c.Auth.Set(req)
	if err != nil {
		return 0, err // the file of a secret may be there in a moment
	}
	resp, err := r.client.Do(req)
	if err != nil {
		return 0, conn.HTTPError(err)
	}
	defer resp.Body.Close()
	reply, _ := io.ReadAll(io.LimitReader(resp.Body, maxReply))
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return 0, refusal(resp, redact(string(reply)))
	}
	var answer collectorpb.ExportTraceServiceResponse
	if err := proto.Unmarshal(reply, &answer); err != nil || answer.GetPartialSuccess().GetRejectedSpans() <= 0 {
		return 0, nil // it has taken them, in whatever words
	}
	p := answer.GetPartialSuccess()
	return p.GetRejectedSpans(), backoff.Permanent(fmt.Errorf("%d spans were rejected: %s", p.GetRejectedSpans(), conn.Quote(redact(p.GetErrorMessage()))))
}

// refusal is the error of an answer that is no success. The specification lists the statuses after which
// a client may try again.
func refusal(resp *http.Response, words string) error {
	err := conn.WithClass(conn.HTTPClass(resp.StatusCode), fmt.Errorf("status %s", conn.HTTPStatusText(resp.StatusCode)))
	if words != "" {
		err = fmt.Errorf("%w: %s", err, conn.Quote(words))
	}
	switch resp.StatusCode {
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		if s, bad := strconv.Atoi(resp.Header.Get("Retry-After")); bad == nil && s > 0 {
			return fmt.Errorf("%w (%w)", err, backoff.RetryAfter(min(s, int(maxPause/time.Second))))
		}
		return err
	}
	return backoff.Permanent(err)
}
