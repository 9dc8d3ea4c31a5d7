package web

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/common/version"

	"github.com/lag-monitor/lag-monitor/internal/config"
	"github.com/lag-monitor/lag-monitor/internal/conn"
	"github.com/lag-monitor/lag-monitor/internal/monitor"
)

//go:embed openapi.yaml
var openAPI []byte

// answer is the status with what the web adds to it: the body of /api/v1/status.
type answer struct {
	Version string    `json:"version"`
	Now     time.Time `json:"now"`
	monitor.Status
}

// judgement is a verdict as the API tells it.
type judgement struct {
	State    string    `json:"state"`           // as the page names it
	Severity string    `json:"severity"`        // trouble, ticket, paused, waiting, fine
	Users    string    `json:"users"`           // whether they feel it: yes, no, unknown
	Fault    string    `json:"fault,omitempty"` // pipeline, head, monitor
	Since    time.Time `json:"since,omitzero"`
	Text     string    `json:"text"`          // a sentence
	URL      string    `json:"url,omitempty"` // of the page, when --web.external-url is set
}

func (s *server) judgement(p monitor.ProbeStatus, sinks sinkTable, now time.Time) judgement {
	v := judge(p, sinks)
	return judgement{
		State: v.State, Severity: v.Class(), Users: v.Users, Fault: v.Fault, Since: v.Since,
		Text: strings.TrimSpace(clean(p.Name) + " " + stateSentence(v) + ". " + lead(p, v, labels(p.Labels), now)), URL: s.site.probe(p.Name),
	}
}

// probeAnswer is one probe in a list of the API.
type probeAnswer struct {
	Verdict judgement `json:"verdict"`
	monitor.ProbeStatus
}

// detailAnswer is the body of /api/v1/probes/NAME.
type detailAnswer struct {
	Now     time.Time `json:"now"`
	Verdict judgement `json:"verdict"`
	Mermaid string    `json:"mermaid"`
	monitor.ProbeDetail
}

// errorAnswer is the body of every error of the API.
type errorAnswer struct {
	Error string `json:"error"`
}

// pauseAnswer is the body of the answer to pause and resume.
type pauseAnswer struct {
	Probe   string               `json:"probe"`
	Paused  *monitor.PauseStatus `json:"paused"` // null: not paused
	Warning string               `json:"warning,omitempty"`
}

func (s *server) addAPI(mux *http.ServeMux) {
	mux.Handle("GET /api/v1/status", zip(s.apiStatus))
	mux.Handle("GET /api/v1/probes", zip(s.apiProbes))
	mux.Handle("GET /api/v1/probes/{name}", zip(s.apiProbe))
	mux.Handle("GET /api/v1/sinks", zip(s.apiSinks))
	mux.HandleFunc("GET /api/v1/events", s.apiEvents)
	mux.HandleFunc("POST /api/v1/probes/{name}/pause", s.admin(s.pause))
	mux.HandleFunc("POST /api/v1/probes/{name}/resume", s.admin(s.resume))
	mux.HandleFunc("GET /api/v1/openapi.yaml", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/yaml; charset=utf-8")
		w.Header().Set("Cache-Control", "max-age=300")
		_, _ = w.Write(openAPI)
	})
}

func filterOf(r *http.Request) filter {
	q := r.URL.Query()
	return filter{Text: clean(q.Get("q")), Label: clean(q.Get("label")), State: q.Get("state")}
}

func (s *server) apiStatus(w http.ResponseWriter, r *http.Request) {
	s.filtered(w, r, func(st monitor.Status, now time.Time) any { return answer{version.Version, now, st} })
}

func (s *server) apiProbes(w http.ResponseWriter, r *http.Request) {
	s.filtered(w, r, func(st monitor.Status, now time.Time) any {
		sinks := newSinkTable(st.Sinks)
		out := struct {
			Now    time.Time     `json:"now"`
			Probes []probeAnswer `json:"probes"` // the worst first
		}{now, []probeAnswer{}}
		for _, p := range st.Probes {
			out.Probes = append(out.Probes, probeAnswer{s.judgement(p, sinks, now), p})
		}
		slices.SortStableFunc(out.Probes, func(a, b probeAnswer) int {
			va, vb := judge(a.ProbeStatus, sinks), judge(b.ProbeStatus, sinks)
			return int(min(max(order(vb.severity, vb.Lag)-order(va.severity, va.Lag), -1), 1))
		})
		return out
	})
}

// filtered answers with what body makes of the status, in which only the probes are left that are asked
// for.
func (s *server) filtered(w http.ResponseWriter, r *http.Request, body func(monitor.Status, time.Time) any) {
	f, now := filterOf(r), time.Now()
	if err := f.check(); err != nil {
		apiError(w, http.StatusBadRequest, err.Error())
		return
	}
	st := s.src.Status()
	if f.On() {
		sinks := newSinkTable(st.Sinks)
		st.Probes = slices.DeleteFunc(st.Probes, func(p monitor.ProbeStatus) bool {
			row := newProbeRow(p, sinks, now)
			return !f.wants(&row)
		})
	}
	writeJSON(w, http.StatusOK, body(st, now))
}

func (s *server) apiProbe(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("name")
	d, ok := s.src.Probe(name)
	if !ok {
		apiError(w, http.StatusNotFound, unknownText(name, nearest(name, s.src.Status().Probes)))
		return
	}
	st, now := s.src.Status(), time.Now()
	sinks := newSinkTable(st.Sinks)
	v := judge(d.ProbeStatus, sinks)
	writeJSON(w, http.StatusOK, detailAnswer{now, s.judgement(d.ProbeStatus, sinks, now), newDiagram(d, sinks, v).Mermaid, d})
}

func (s *server) apiSinks(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, struct {
		Now   time.Time            `json:"now"`
		Sinks []monitor.SinkStatus `json:"sinks"`
	}{time.Now(), s.src.Status().Sinks})
}

func (s *server) apiEvents(w http.ResponseWriter, r *http.Request) {
	name := r.URL.Query().Get("probe")
	look := func() (*board, bool, error) {
		_, b, err := s.listBoard()
		return b, true, err
	}
	if name != "" {
		if _, ok := s.src.Probe(name); !ok {
			apiError(w, http.StatusNotFound, unknownText(name, nearest(name, s.src.Status().Probes)))
			return
		}
		look = func() (*board, bool, error) { return s.probeBoard(name) }
	}
	s.stream.serve(w, r, func() (*board, bool, error) {
		b, ok, err := look()
		if err != nil {
			s.log.Error("events", "err", err)
		}
		return b, ok, err
	})
}

// admin lets only those through who may change something.
func (s *server) admin(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if !s.opts.AdminAPI {
			s.refuse(w, r, http.StatusForbidden, "pausing is not offered here: it needs the flag --web.enable-admin-api")
			return
		}
		name := r.PathValue("name")
		if _, ok := s.src.Probe(name); !ok {
			s.unknown(w, r, name)
			return
		}
		next(w, r)
	}
}

func (s *server) pause(w http.ResponseWriter, r *http.Request) {
	text := r.FormValue("for")
	if text == "" {
		s.refuse(w, r, http.StatusBadRequest, "for how long? Say it as ?for=1h, at most 7d")
		return
	}
	d, err := conn.ParseDuration(text)
	if err != nil {
		s.refuse(w, r, http.StatusBadRequest, "for: "+clean(err.Error()))
		return
	}
	if d <= 0 || d > monitor.MaxPause {
		s.refuse(w, r, http.StatusBadRequest, fmt.Sprintf("for: %s is out of range: more than 0s, at most 7d", d))
		return
	}
	s.done(w, r, s.src.Pause(r.PathValue("name"), d))
}

func (s *server) resume(w http.ResponseWriter, r *http.Request) {
	s.done(w, r, s.src.Resume(r.PathValue("name")))
}

// done answers to a change that was made, or could not be.
func (s *server) done(w http.ResponseWriter, r *http.Request, err error) {
	name := r.PathValue("name")
	s.pages.stale()
	out := pauseAnswer{Probe: name}
	if errors.Is(err, monitor.ErrNotKept) {
		out.Warning, err = clean(err.Error()), nil
	}
	if err != nil {
		s.refuse(w, r, http.StatusConflict, clean(err.Error()))
		return
	}
	if prefersHTML(r) {
		// Relative, since a proxy may have taken a prefix off.
		w.Header().Set("Location", up(r)+"probes/"+url.PathEscape(name))
		w.WriteHeader(http.StatusSeeOther)
		return
	}
	if d, ok := s.src.Probe(name); ok {
		out.Paused = d.Paused
	}
	writeJSON(w, http.StatusOK, out)
}

// refuse says why something was not done, to a program or to a person.
func (s *server) refuse(w http.ResponseWriter, r *http.Request, code int, why string) {
	if prefersHTML(r) {
		s.problem(w, r, code, problem{Text: capital(why) + ".", Back: "probes/" + url.PathEscape(r.PathValue("name"))})
		return
	}
	apiError(w, code, why)
}

// prefersHTML tells a form in a browser from a program.
func prefersHTML(r *http.Request) bool { return strings.Contains(r.Header.Get("Accept"), "text/html") }

func isAPI(r *http.Request) bool { return strings.HasPrefix(r.URL.Path, "/api/") }

// up is the way from a request's path to the root.
func up(r *http.Request) string {
	return strings.Repeat("../", strings.Count(r.URL.EscapedPath(), "/")-1)
}

func apiError(w http.ResponseWriter, code int, why string) {
	writeJSON(w, code, errorAnswer{why})
}

func writeJSON(w http.ResponseWriter, code int, body any) {
	b, err := encode(body, "  ")
	if err != nil {
		text(w, http.StatusInternalServerError, err.Error()+"\n")
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	_, _ = w.Write(append(b, '\n'))
}

// encode writes JSON in which < stays <: it is never a part of a page. Without indent it is one line.
func encode(v any, indent string) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", indent)
	err := e.Encode(v)
	return bytes.TrimRight(b.Bytes(), "\n"), err
}

// nearest returns the probe that is most likely meant by a name that none has.
func nearest(name string, probes []monitor.ProbeStatus) []string {
	names := make([]string, len(probes))
	for i, p := range probes {
		names[i] = p.Name
	}
	if n := config.Near(name, names); n != "" {
		return []string{n}
	}
	return nil
}

func unknownText(name string, near []string) string {
	if len(near) > 0 {
		return fmt.Sprintf("there is no probe %q (did you mean %q?)", clean(name), near[0])
	}
	return fmt.Sprintf("there is no probe %q", clean(name))
}
