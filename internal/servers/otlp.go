package servers

import (
	"compress/gzip"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"

	collectorpb "go.opentelemetry.io/proto/slim/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/slim/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// OTLPServer receives traces by OTLP over HTTP, in its binary form, and keeps them. Its methods are safe for
// concurrent use.
type OTLPServer struct {
	*httptest.Server // not started yet

	// Answer, when it is set before the start, may answer the n-th request (from 1) in place of the receiver; false: it has
	// not.
	Answer func(n int, w http.ResponseWriter, r *http.Request) bool

	mu       sync.Mutex
	requests []*http.Request
	got      []*tracepb.ResourceSpans
}

// OTLP makes a receiver. Start or StartTLS starts it.
func OTLP(t testing.TB) *OTLPServer {
	t.Helper()
	s := new(OTLPServer)
	s.Server = httptest.NewUnstartedServer(s)
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	return s
}

// ServeHTTP takes one request.
func (s *OTLPServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.requests = append(s.requests, r)
	n := len(s.requests)
	s.mu.Unlock()
	if s.Answer != nil && s.Answer(n, w, r) {
		return
	}
	got, err := readTraces(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.got = append(s.got, got...)
	w.Header().Set("Content-Type", "application/x-protobuf") // of an answer without a field
}

func readTraces(r *http.Request) ([]*tracepb.ResourceSpans, error) {
	if r.Method != http.MethodPost || r.Header.Get("Content-Type") != "application/x-protobuf" {
		return nil, errors.New("want a POST of application/x-protobuf")
	}
	body := io.Reader(r.Body)
	if r.Header.Get("Content-Encoding") == "gzip" {
		z, err := gzip.NewReader(body)
		if err != nil {
			return nil, err
		}
		body = z
	}
	b, err := io.ReadAll(body)
	if err != nil {
		return nil, err
	}
	var m collectorpb.ExportTraceServiceRequest
	if err := proto.Unmarshal(b, &m); err != nil {
		return nil, err
	}
	return m.GetResourceSpans(), nil
}

// Requests returns all requests so far; their bodies have been read.
func (s *OTLPServer) Requests() []*http.Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests)
}

// Resources returns what was received so far, in the order of arrival.
func (s *OTLPServer) Resources() []*tracepb.ResourceSpans {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.got)
}

// Spans returns the spans of all of it.
func (s *OTLPServer) Spans() (all []*tracepb.Span) {
	for _, r := range s.Resources() {
		for _, scope := range r.GetScopeSpans() {
			all = append(all, scope.GetSpans()...)
		}
	}
	return all
}
