package sinks

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/conn"
	"github.com/lag-monitor/lag-monitor/internal/heartbeat"
)

// heartbeatHeader is where the injectors put the token besides the body.
const heartbeatHeader = "Lag-Monitor-Heartbeat"

// WebhookConfig is a sink `webhook`: the pipeline delivers by HTTP requests to a listener of the
// monitor.
type WebhookConfig struct {
	// Listen is the address to listen on, such as :9900 or 127.0.0.1:9900.
	Listen string `yaml:"listen"`
	// Path of the requests; any other path is answered with 404.
	Path string `yaml:"path,omitempty"`
	// MaxBody is the longest body in bytes, after decompression; a longer one is answered with 413.
	MaxBody int64 `yaml:"max_body,omitempty"`
	// ReadTimeout bounds how long one request may take to come in.
	ReadTimeout conn.Duration `yaml:"read_timeout,omitempty"`
	// IdleTimeout is how long a connection is kept without a request.
	IdleTimeout conn.Duration `yaml:"idle_timeout,omitempty"`
	// MaxConnections is how many connections are held at once. For one more, the one is closed whose request
	// has been coming in, or that has been idle, for the longest.
	MaxConnections int `yaml:"max_connections,omitempty"`
	// TLS makes the listener speak https.
	TLS *conn.ServerTLS `yaml:"tls,omitempty"`

	// Auth is what a request has to carry; others are answered with 401.
	Auth conn.HTTPAuth `yaml:",inline"`
}

// NewWebhook returns the defaults.
func NewWebhook() *WebhookConfig {
	return &WebhookConfig{
		Path: "/", MaxBody: 1 << 20, MaxConnections: 64,
		ReadTimeout: conn.Duration(10 * time.Second), IdleTimeout: conn.Duration(time.Minute),
	}
}

// Validate implements Config.
func (c *WebhookConfig) Validate() error {
	var errs []error
	if c.Listen == "" {
		errs = append(errs, conn.Field("listen", "is required: an address such as :9900 or 127.0.0.1:9900"))
	} else if _, _, err := net.SplitHostPort(c.Listen); err != nil {
		errs = append(errs, conn.Field("listen", "%q is not an address such as :9900 or 127.0.0.1:9900", c.Listen))
	}
	if !strings.HasPrefix(c.Path, "/") || strings.ContainsAny(c.Path, "?#") {
		errs = append(errs, conn.Field("path", "%q is not a path such as /heartbeats", c.Path))
	}
	if c.MaxBody < int64(heartbeat.MaxToken) || c.MaxBody > 64<<20 {
		errs = append(errs, conn.Field("max_body", "is between %d (one heartbeat) and %d bytes", heartbeat.MaxToken, 64<<20))
	}
	if c.MaxConnections < 1 || c.MaxConnections > 10000 {
		errs = append(errs, conn.Field("max_connections", "is between 1 and 10000"))
	}
	if c.ReadTimeout <= 0 {
		errs = append(errs, conn.Field("read_timeout", "is a positive duration: without it a slow client would hold a connection for ever"))
	}
	if c.IdleTimeout <= 0 {
		errs = append(errs, conn.Field("idle_timeout", "is a positive duration: without it an idle client would hold a connection for ever"))
	}
	errs = append(errs, conn.Prefix("tls", c.TLS.Validate()), c.Auth.Validate())
	return errors.Join(errs...)
}

// Open implements Config.
func (c *WebhookConfig) Open() (Sink, error) { return &webhook{c: c}, nil }

type webhook struct {
	c      *WebhookConfig
	listed bool // it has listened before
	bodies sync.Pool
}

// Run implements Sink. To be caught up is to listen: a request is answered when its heartbeat has been
// delivered, so everything that the pipeline could put out is.
func (w *webhook) Run(ctx context.Context, f *Feed) error {
	tlsConfig, err := w.c.TLS.Config()
	if err != nil {
		return err
	}
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", w.c.Listen)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("listen on %s: %w", w.c.Listen, err)
	}
	// A handler may be about to begin when the server has been closed: the gate keeps it from delivering
	// after Run has returned.
	var gate sync.RWMutex
	closed := false
	h := w.handler(f)
	protocols := new(http.Protocols)
	// A connection of HTTP/2 carries many requests at once, which max_connections would not bound.
	protocols.SetHTTP1(true)
	srv := &http.Server{
		Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			gate.RLock()
			defer gate.RUnlock()
			if closed {
				http.Error(rw, "the listener is closing", http.StatusServiceUnavailable)
				return
			}
			h.ServeHTTP(rw, r)
		}),
		TLSConfig:         tlsConfig,
		Protocols:         protocols,
		ReadHeaderTimeout: time.Duration(w.c.ReadTimeout),
		ReadTimeout:       time.Duration(w.c.ReadTimeout),
		WriteTimeout:      time.Duration(w.c.ReadTimeout) + 5*time.Second,
		IdleTimeout:       time.Duration(w.c.IdleTimeout),
		MaxHeaderBytes:    conn.MaxHeader,
		ErrorLog:          log.New(io.Discard, "", 0),
	}
	conn.LimitConns(srv, w.c.MaxConnections, conn.ConnGrace)
	shut := func() {
		gate.Lock()
		defer gate.Unlock()
		closed = true
	}
	if w.listed {
		f.Gap("disconnected")
	}
	w.listed = true
	f.Ready()
	// A request proves that we are caught up, so none is served before that is ready to be heard. The
	// kernel keeps those that come meanwhile.
	done := make(chan error, 1)
	go func() {
		if tlsConfig != nil {
			done <- srv.ServeTLS(ln, "", "")
		} else {
			done <- srv.Serve(ln)
		}
	}()

	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		f.CaughtUp(time.Now())
		select {
		case <-tick.C:
			continue
		case err := <-done:
			_ = srv.Close()
			shut()
			return fmt.Errorf("serve on %s: %w", w.c.Listen, err)
		case <-ctx.Done():
		}
		// Requests that have begun are answered; those that take their time are cut off, and their senders
		// do not take them for delivered.
		soon, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		_ = srv.Shutdown(soon)
		cancel()
		_ = srv.Close()
		<-done //nolint:errcheck // it says that it was closed
		shut()
		return nil
	}
}

// handler delivers the requests to f.
func (w *webhook) handler(f *Feed) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if status, text := w.serve(rw, r, f); status != http.StatusNoContent {
			http.Error(rw, text, status)
		} else {
			rw.WriteHeader(status)
		}
	})
}

func (w *webhook) serve(rw http.ResponseWriter, r *http.Request, f *Feed) (status int, text string) {
	if r.URL.Path != w.c.Path {
		return http.StatusNotFound, "no such path"
	}
	switch r.Method {
	case http.MethodPost, http.MethodPut, http.MethodPatch:
	default:
		rw.Header().Set("Allow", "POST, PUT, PATCH")
		return http.StatusMethodNotAllowed, "use POST, PUT or PATCH"
	}
	if ok, err := w.c.Auth.Allows(r); err != nil {
		f.Error(conn.WithClass(conn.Other, err))
		return http.StatusInternalServerError, "the credentials of this listener cannot be read"
	} else if !ok {
		if w.c.Auth.BasicAuth != nil {
			rw.Header().Set("WWW-Authenticate", `Basic realm="lag-monitor"`)
		} else if !w.c.Auth.BearerToken.IsZero() {
			rw.Header().Set("WWW-Authenticate", "Bearer")
		}
		return http.StatusUnauthorized, "wrong or missing credentials"
	}
	tooLarge := fmt.Sprintf("the body is longer than %d bytes", w.c.MaxBody)
	if r.ContentLength > w.c.MaxBody {
		return http.StatusRequestEntityTooLarge, tooLarge
	}
	var body io.Reader = http.MaxBytesReader(rw, r.Body, w.c.MaxBody)
	switch encoding := r.Header.Get("Content-Encoding"); strings.ToLower(encoding) {
	case "", "identity":
	case "gzip":
		z, err := gzip.NewReader(body)
		if err != nil {
			return http.StatusBadRequest, "the body is not gzip"
		}
		body = z
	default:
		return http.StatusUnsupportedMediaType, "send the body as it is or compressed with gzip"
	}
	buf, _ := w.bodies.Get().(*bytes.Buffer)
	if buf == nil {
		buf = new(bytes.Buffer)
	}
	buf.Reset()
	defer func() {
		if buf.Cap() <= 64<<10 { // a rare large body must not stay
			w.bodies.Put(buf)
		}
	}()
	n, err := io.Copy(buf, io.LimitReader(body, w.c.MaxBody+1))
	var over *http.MaxBytesError
	switch {
	case errors.As(err, &over) || n > w.c.MaxBody:
		return http.StatusRequestEntityTooLarge, tooLarge
	case err != nil:
		return http.StatusBadRequest, "the body could not be read"
	}
	// Whoever was due before now and is not here is late for certain, this one too: without this proof it would
	// be in doubt up to the next tick.
	f.CaughtUp(time.Now())
	f.Deliver(Message{Header: []byte(r.Header.Get(heartbeatHeader)), Body: buf.Bytes()})
	return http.StatusNoContent, ""
}

// Check implements Checker. It does not listen, since a monitor that runs may be using the address.
func (w *webhook) Check(context.Context) error {
	if _, err := w.c.TLS.Config(); err != nil {
		return err
	}
	_, err := w.c.Auth.Allows(&http.Request{Header: make(http.Header)})
	return err
}
