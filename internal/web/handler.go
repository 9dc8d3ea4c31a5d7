package web

import (
	"context"
	"fmt"
	"html/template"
	"log/slog"
	"net/http"
	"net/http/pprof"
	"net/url"
	"time"

	"github.com/klauspost/compress/gzhttp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/common/version"

	"github.com/lag-monitor/lag-monitor/internal/monitor"
)

// A Source is what the handler shows. All methods are called from many requests at once.
type Source interface {
	// Status returns everything that is known now. The answer is the caller's.
	Status() monitor.Status
	// Probe returns all that is known of one probe; false when there is none of that name.
	Probe(name string) (monitor.ProbeDetail, bool)
	// Pause stops the injections of a probe for d. An error that wraps monitor.ErrNotKept is a warning: it is
	// paused all the same.
	Pause(name string, d time.Duration) error
	// Resume ends a pause.
	Resume(name string) error
	// Ready returns nil when the monitor is configured and running, and else the reason why not.
	Ready() error
	// Config returns the configuration as YAML, without secrets.
	Config() ([]byte, error)
	// Reload reads the configuration again and applies it. The error says, one line for each, what is
	// wrong with which file.
	Reload(ctx context.Context) error
}

// Options say what the handler offers besides showing.
type Options struct {
	// Profiles serves net/http/pprof below /debug/pprof/: for those who look for a fault, since anybody who can
	// ask for a profile can keep a core busy.
	Profiles bool
	// AdminAPI lets probes be paused and resumed.
	AdminAPI bool
	// Alertmanager and External are where silences are made and where this page is reached, of http or https;
	// nil: not known.
	Alertmanager, External *url.URL
}

// maxScrapes bounds how many scrapes are answered at once: each one holds a copy of all series.
const maxScrapes = 8

// server answers the requests of the main listener.
type server struct {
	src    Source
	log    *slog.Logger
	opts   Options
	site   site
	pages  *boards
	stream *stream
}

// NewHandler returns the handler of the main listener. Metrics come from reg, which also gets the
// metrics of the handler itself.
func NewHandler(src Source, reg *prometheus.Registry, log *slog.Logger, opts Options) http.Handler {
	return newHandler(src, reg, log, opts, freshness)
}

func newHandler(src Source, reg *prometheus.Registry, log *slog.Logger, opts Options, fresh time.Duration) http.Handler {
	pages := newBoards(fresh)
	s := &server{
		src: src, log: log, opts: opts, pages: pages, stream: newStream(pages),
		site: site{External: opts.External, Alertmanager: opts.Alertmanager, Admin: opts.AdminAPI},
	}
	mux := http.NewServeMux()
	addHealth(mux, src)
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{
		ErrorLog:            slog.NewLogLogger(log.With("path", "/metrics").Handler(), slog.LevelError),
		ErrorHandling:       promhttp.ContinueOnError,
		Registry:            reg,
		MaxRequestsInFlight: maxScrapes,
		EnableOpenMetrics:   true,
	}))
	mux.HandleFunc("POST /-/reload", func(w http.ResponseWriter, r *http.Request) {
		err := src.Reload(r.Context())
		pages.stale()
		if err != nil {
			text(w, http.StatusInternalServerError, err.Error()+"\n")
			return
		}
		text(w, http.StatusOK, "reloaded\n")
	})
	mux.Handle("GET /config", zip(func(w http.ResponseWriter, _ *http.Request) {
		b, err := src.Config()
		if err != nil {
			text(w, http.StatusInternalServerError, err.Error()+"\n")
			return
		}
		text(w, http.StatusOK, string(b))
	}))
	s.addAPI(mux)
	mux.Handle("GET /{$}", zip(s.list))
	mux.Handle("GET /probes/{name}", zip(s.probe))
	mux.Handle("GET /probes/{$}", http.RedirectHandler("../", http.StatusSeeOther))
	addAssets(mux)
	if opts.Profiles {
		mux.HandleFunc("GET /debug/pprof/", pprof.Index)
		mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
		mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("POST /debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	}
	// Another site must not make a browser that is logged in reload, or pause a probe.
	return secure(http.NewCrossOriginProtection().Handler(mux))
}

// zip compresses what is long, for those who understand it.
func zip(h http.HandlerFunc) http.Handler { return gzhttp.GzipHandler(h) }

// NewHealthHandler returns the handler of the health listener: /-/healthy and /-/ready, nothing else.
func NewHealthHandler(src Source) http.Handler {
	mux := http.NewServeMux()
	addHealth(mux, src)
	return secure(mux)
}

func addHealth(mux *http.ServeMux, src Source) {
	mux.HandleFunc("GET /-/healthy", func(w http.ResponseWriter, _ *http.Request) {
		text(w, http.StatusOK, "healthy\n")
	})
	mux.HandleFunc("GET /-/ready", func(w http.ResponseWriter, _ *http.Request) {
		if err := src.Ready(); err != nil {
			text(w, http.StatusServiceUnavailable, "not ready: "+err.Error()+"\n")
			return
		}
		text(w, http.StatusOK, "ready\n")
	})
}

// wantsJSON reads ?format=. What is neither html nor json is answered.
func wantsJSON(w http.ResponseWriter, r *http.Request) (yes, ok bool) {
	switch f := r.URL.Query().Get("format"); f {
	case "", "html":
		return false, true
	case "json":
		return true, true
	default:
		apiError(w, http.StatusBadRequest, fmt.Sprintf("unknown format %q; valid: html, json", clean(f)))
		return false, false
	}
}

// list answers with the status page.
func (s *server) list(w http.ResponseWriter, r *http.Request) {
	asJSON, ok := wantsJSON(w, r)
	if !ok {
		return
	}
	if asJSON {
		s.apiStatus(w, r)
		return
	}
	f := filterOf(r)
	if err := f.check(); err != nil {
		s.problem(w, r, http.StatusBadRequest, problem{Text: err.Error()})
		return
	}
	p, b, err := s.listBoard()
	if err != nil {
		s.broken(w, "status page", err)
		return
	}
	p.Filter = f
	p.HTML = func(name string) template.HTML { return template.HTML(b.html(name)) } //nolint:gosec // made by the templates
	p.Events, p.Mark = "api/v1/events", s.pages.mark(b.rev)
	p.Title = p.Tab + " · lag-monitor"
	if f.On() {
		// The reader has a part only: he is sent everything, to choose from.
		p.Mark = ""
		p.Shown = 0
		var rows []byte
		for i := range p.Probes {
			if f.wants(&p.Probes[i]) {
				p.Shown++
				rows = append(append(rows, b.html(p.Probes[i].ID)...), '\n')
			}
		}
		all := p.HTML
		p.HTML = func(name string) template.HTML {
			if name == "probe-rows" {
				return template.HTML(rows) //nolint:gosec // made by the templates
			}
			return all(name)
		}
	}
	s.html(w, http.StatusOK, "list", p)
}

// listBoard returns what the status page shows.
func (s *server) listBoard() (listPage, *board, error) {
	now := time.Now()
	b, _, err := s.pages.get("", now, func() ([]section, any, bool, error) {
		p := newList(answer{version.Version, now, s.src.Status()}, s.src.Ready())
		parts, err := listSections(p)
		return parts, p, true, err
	})
	if err != nil {
		return listPage{}, nil, err
	}
	p := b.page.(listPage) //nolint:forcetypeassert // it is what the line above put there
	p.frame = s.frame("", b)
	return p, b, nil
}

// probe answers with the page of one probe.
func (s *server) probe(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("name")
	asJSON, ok := wantsJSON(w, r)
	if !ok {
		return
	}
	if asJSON {
		s.apiProbe(w, r)
		return
	}
	b, ok, err := s.probeBoard(name)
	if err != nil {
		s.broken(w, "probe page", err)
		return
	}
	if !ok {
		s.unknown(w, r, name)
		return
	}
	p := b.page.(probePage) //nolint:forcetypeassert // it is what probeBoard put there
	p.frame = s.frame("../", b)
	p.HTML = func(name string) template.HTML { return template.HTML(b.html(name)) } //nolint:gosec // made by the templates
	p.Title = p.Name + " " + p.State + " · lag-monitor"
	p.Events, p.Mark = "api/v1/events?probe="+url.QueryEscape(name), s.pages.mark(b.rev)
	p.Canonical = s.site.probe(name)
	s.html(w, http.StatusOK, "probe", p)
}

// probeBoard returns what the page of a probe shows; false when there is none of that name.
func (s *server) probeBoard(name string) (*board, bool, error) {
	now := time.Now()
	return s.pages.get("probe "+name, now, func() ([]section, any, bool, error) {
		d, ok := s.src.Probe(name)
		if !ok {
			return nil, nil, false, nil
		}
		p := newProbe(d, s.src.Status().Sinks, s.site, now)
		p.Root = "../"
		parts, err := probeSections(p)
		return parts, p, true, err
	})
}

func (s *server) frame(root string, b *board) frame {
	st := s.src.Status()
	return frame{
		Root: root, Asset: asset, Version: version.Version, Instance: clean(st.Instance), Up: duration(b.at.Sub(st.Started)),
		Now: b.at.UTC().Format("2006-01-02 15:04:05 UTC"),
	}
}

// problem is what a page of an error shows.
type problem struct {
	frame
	Text string
	Near []string // probes that may be meant
	Back string   // where to go, from the root; empty: to all probes
}

// problem answers with a page that says what is wrong.
func (s *server) problem(w http.ResponseWriter, r *http.Request, code int, p problem) {
	p.Asset, p.Version = asset, version.Version
	p.Title = p.Text + " · lag-monitor"
	p.Root = up(r)
	s.html(w, code, "error", p)
}

// unknown answers that there is no such probe.
func (s *server) unknown(w http.ResponseWriter, r *http.Request, name string) {
	near := nearest(name, s.src.Status().Probes)
	if isAPI(r) && !prefersHTML(r) {
		apiError(w, http.StatusNotFound, unknownText(name, near))
		return
	}
	s.problem(w, r, http.StatusNotFound, problem{Text: fmt.Sprintf("There is no probe %q.", clean(name)), Near: near})
}

// broken answers that a page cannot be made, and logs why.
func (s *server) broken(w http.ResponseWriter, what string, err error) {
	s.log.Error("page", "page", what, "err", err)
	text(w, http.StatusInternalServerError, err.Error()+"\n")
}

func (s *server) html(w http.ResponseWriter, code int, name string, data any) {
	html, err := render(name, data)
	if err != nil {
		s.broken(w, name, err)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	_, _ = w.Write([]byte(html))
}

func text(w http.ResponseWriter, code int, body string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	_, _ = w.Write([]byte(body))
}

// secure sets the headers that keep a browser from doing anything with a page but show it, run its own
// script and send its own forms. What the web configuration file has set already stays.
func secure(next http.Handler) http.Handler {
	headers := map[string]string{
		"Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
			"base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
		"X-Content-Type-Options": "nosniff",
		"X-Frame-Options":        "deny",
		"Referrer-Policy":        "no-referrer",
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for name, value := range headers {
			if w.Header().Get(name) == "" {
				w.Header().Set(name, value)
			}
		}
		next.ServeHTTP(w, r)
	})
}
