package web

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"gopkg.in/yaml.v3"

	"github.com/lag-monitor/lag-monitor/internal/monitor"
)

// apiSpec is openapi.yaml as a validator of answers.
type apiSpec struct {
	doc      map[string]any
	compiler *jsonschema.Compiler
	answered map[string]bool // "GET /api/v1/status 200"
}

func newAPISpec(t *testing.T) *apiSpec {
	t.Helper()
	var doc any
	if err := yaml.Unmarshal(openAPI, &doc); err != nil {
		t.Fatal(err)
	}
	// Through JSON, so that the values have the types that the validator knows.
	b, err := json.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := jsonschema.UnmarshalJSON(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	if err := c.AddResource("mem:openapi", plain); err != nil {
		t.Fatal(err)
	}
	return &apiSpec{doc: plain.(map[string]any), compiler: c, answered: make(map[string]bool)}
}

// at follows a JSON pointer through the description, and its references.
func (s *apiSpec) at(pointer ...string) (any, string) {
	var v any = s.doc
	where := "#"
	for _, p := range pointer {
		m, ok := v.(map[string]any)
		if !ok {
			return nil, ""
		}
		v = m[p]
		where += "/" + strings.NewReplacer("~", "~0", "/", "~1", "{", "%7B", "}", "%7D").Replace(p)
		if m, ok := v.(map[string]any); ok && m["$ref"] != nil {
			where = m["$ref"].(string)
			v, _ = s.at(strings.Split(strings.TrimPrefix(where, "#/"), "/")...)
		}
	}
	return v, where
}

// check holds an answer against the description.
func (s *apiSpec) check(t *testing.T, method, path string, w *httptest.ResponseRecorder) {
	t.Helper()
	code := fmt.Sprint(w.Code)
	response, where := s.at("paths", path, strings.ToLower(method), "responses", code)
	if response == nil {
		t.Errorf("%s %s: the description knows no answer %s", method, path, code)
		return
	}
	s.answered[method+" "+path+" "+code] = true
	content, _ := response.(map[string]any)["content"].(map[string]any)
	if len(content) == 0 {
		if w.Body.Len() > 0 {
			t.Errorf("%s %s %s: a body that the description does not know", method, path, code)
		}
		return
	}
	kind, _, _ := strings.Cut(w.Header().Get("Content-Type"), ";")
	if content[kind] == nil {
		t.Errorf("%s %s %s: %s, which the description does not know", method, path, code, kind)
		return
	}
	if kind != "application/json" {
		return
	}
	schema, err := s.compiler.Compile("mem:openapi" + where + "/content/application~1json/schema")
	if err != nil {
		t.Fatal(err)
	}
	body, err := jsonschema.UnmarshalJSON(w.Body)
	if err != nil {
		t.Errorf("%s %s %s: %v", method, path, code, err)
		return
	}
	if err := schema.Validate(body); err != nil {
		t.Errorf("%s %s %s is not what the description says: %v", method, path, code, err)
	}
}

// TestAnswersAreAsDescribed asks for every answer that openapi.yaml describes, in every scene, and holds it against
// its schema, which allows nothing that it does not name.
func TestAnswersAreAsDescribed(t *testing.T) {
	spec := newAPISpec(t)
	ask := func(h http.Handler, method, path, target string, header ...string) {
		t.Helper()
		spec.check(t, method, path, get(t, h, method, target, header...))
	}
	const probe = "/api/v1/probes/{name}"
	for _, name := range []string{"fine", "lagging", "dropped", "blind", "paused", "refused", "empty", "some"} {
		src := &fakeSource{status: someStatus()}
		if scene := scenes[name]; scene != nil {
			src.status, src.details = scene(now)
		}
		h := newHandler(src, prometheus.NewRegistry(), slog.New(slog.DiscardHandler), Options{AdminAPI: true, External: mustURL("https://lag.example.com/x")}, 0)
		ask(h, "GET", "/api/v1/status", "/api/v1/status")
		ask(h, "GET", "/api/v1/status", "/?format=json&q=orders")
		ask(h, "GET", "/api/v1/status", "/api/v1/status?state=ill")
		ask(h, "GET", "/api/v1/probes", "/api/v1/probes")
		ask(h, "GET", "/api/v1/probes", "/api/v1/probes?state=ill")
		ask(h, "GET", "/api/v1/sinks", "/api/v1/sinks")
		for _, p := range src.status.Probes {
			ask(h, "GET", probe, "/api/v1/probes/"+p.Name)
			ask(h, "GET", probe, "/probes/"+p.Name+"?format=json")
		}
		ask(h, "GET", probe, "/api/v1/probes/nobody")
	}
	src := &fakeSource{status: someStatus()}
	h := newTestHandler(src)
	ask(h, "POST", probe+"/pause", "/api/v1/probes/slow/pause?for=1h")
	ask(h, "POST", probe+"/pause", "/api/v1/probes/slow/pause?for=1h", "Accept", "text/html")
	ask(h, "POST", probe+"/pause", "/api/v1/probes/slow/pause?for=long")
	ask(h, "POST", probe+"/pause", "/api/v1/probes/slwo/pause?for=1h")
	ask(h, "POST", probe+"/resume", "/api/v1/probes/slow/resume")
	ask(h, "POST", probe+"/resume", "/api/v1/probes/slow/resume", "Accept", "text/html")
	ask(h, "POST", probe+"/resume", "/api/v1/probes/slwo/resume")
	src.pauseErr = fmt.Errorf("paused: %w", monitor.ErrNotKept)
	ask(h, "POST", probe+"/pause", "/api/v1/probes/slow/pause?for=1h")
	src.pauseErr = errors.New("it only listens")
	ask(h, "POST", probe+"/pause", "/api/v1/probes/slow/pause?for=1h")
	ask(h, "POST", probe+"/resume", "/api/v1/probes/slow/resume")
	closed := NewHandler(src, prometheus.NewRegistry(), slog.New(slog.DiscardHandler), Options{})
	ask(closed, "POST", probe+"/pause", "/api/v1/probes/slow/pause?for=1h")
	ask(closed, "POST", probe+"/resume", "/api/v1/probes/slow/resume")
	ask(h, "GET", "/api/v1/openapi.yaml", "/api/v1/openapi.yaml")
	ask(h, "GET", "/api/v1/events", "/api/v1/events?probe=slwo")

	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequestWithContext(ctx, "GET", "/api/v1/events", nil))
	spec.check(t, "GET", "/api/v1/events", w)
	full := &server{src: src, stream: newStream(newBoards(0))}
	for range maxSubscribers {
		full.stream.slots <- struct{}{}
	}
	w = httptest.NewRecorder()
	full.apiEvents(w, httptest.NewRequest("GET", "/api/v1/events", nil))
	spec.check(t, "GET", "/api/v1/events", w)

	paths, _ := spec.at("paths")
	for path, methods := range paths.(map[string]any) {
		for method, operation := range methods.(map[string]any) {
			for code := range operation.(map[string]any)["responses"].(map[string]any) {
				key := strings.ToUpper(method) + " " + path + " " + code
				// Resuming takes no argument that could be wrong.
				if !spec.answered[key] && key != "POST "+probe+"/resume 400" {
					t.Errorf("nothing has given the answer %s", key)
				}
			}
		}
	}
}

// TestEveryRouteIsDescribed: what the API offers and what openapi.yaml describes are the same.
func TestEveryRouteIsDescribed(t *testing.T) {
	source, err := io.ReadAll(mustOpen(t, "api.go"))
	if err != nil {
		t.Fatal(err)
	}
	var routes []string
	for _, line := range strings.Split(string(source), "\n") {
		if _, rest, ok := strings.Cut(line, `mux.Handle`); ok {
			_, rest, _ = strings.Cut(rest, `"`)
			route, _, _ := strings.Cut(rest, `"`)
			routes = append(routes, route)
		}
	}
	spec := newAPISpec(t)
	paths, _ := spec.at("paths")
	var described []string
	for path, methods := range paths.(map[string]any) {
		for method := range methods.(map[string]any) {
			described = append(described, strings.ToUpper(method)+" "+path)
		}
	}
	slices.Sort(routes)
	slices.Sort(described)
	if len(routes) < 8 || !slices.Equal(routes, described) {
		t.Errorf("served:\n%s\ndescribed:\n%s", strings.Join(routes, "\n"), strings.Join(described, "\n"))
	}
}
