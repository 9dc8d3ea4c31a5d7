package web

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	stdlog "log"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	toolkit "github.com/prometheus/exporter-toolkit/web"

	"github.com/lag-monitor/lag-monitor/internal/conn"
)

// drain is how long answers that are under way may take after the server was told to stop.
const drain = 5 * time.Second

// Server is one listener, or several with the same settings.
type Server struct {
	http  *http.Server
	flags *toolkit.FlagConfig
	log   *slog.Logger
}

// The limits of a listener. docs/security.md lists them.
const (
	maxConns  = 256 // a connection that sends nothing costs about 10 KB, with TLS 40 KB
	maxHealth = 64
	// healthGrace is short, since those who ask are near, and give up after a second.
	healthGrace = 100 * time.Millisecond
	// maxStreams is how many requests one connection of HTTP/2 may have open. Browsers use a dozen.
	maxStreams = 32
	// maxBody bounds what is read of a request: nothing that is offered here needs a body of length.
	maxBody = 64 << 10
)

// serverLog takes the lines of an http.Server. What clients do wrong, such as a failed handshake, is said
// at the level debug: anybody could fill the log with it. What remains is ours.
type serverLog struct{ log *slog.Logger }

func (l serverLog) Write(p []byte) (int, error) {
	level := slog.LevelDebug
	if bytes.Contains(p, []byte("panic")) || bytes.Contains(p, []byte("Accept error")) {
		level = slog.LevelError
	}
	l.log.Log(context.Background(), level, "web server", "err", string(bytes.TrimSpace(p)))
	return len(p), nil
}

// NewServer returns a server for the addresses, TLS and authentication that flags say.
func NewServer(h http.Handler, flags *toolkit.FlagConfig, log *slog.Logger) *Server {
	return newServer(h, flags, maxConns, conn.ConnGrace, log)
}

func newServer(h http.Handler, flags *toolkit.FlagConfig, conns int, grace time.Duration, log *slog.Logger) *Server {
	s := &Server{
		flags: flags,
		log:   log,
		http: &http.Server{
			ReadHeaderTimeout: 10 * time.Second,
			ReadTimeout:       30 * time.Second,
			// A scrape of a hundred thousand series over a slow line fits; profiles extend it themselves.
			WriteTimeout:   time.Minute,
			IdleTimeout:    2 * time.Minute,
			MaxHeaderBytes: conn.MaxHeader,
			HTTP2:          &http.HTTP2Config{MaxConcurrentStreams: maxStreams},
			ErrorLog:       stdlog.New(serverLog{log}, "", 0),
		},
	}
	// The toolkit puts its check of credentials around this.
	s.http.Handler = conn.LimitConns(s.http, conns, grace).Serving(http.MaxBytesHandler(h, maxBody))
	return s
}

// NewHealthServer returns a server for one address, without TLS and authentication whatever the web
// configuration says: probes of a container platform cannot log in.
func NewHealthServer(h http.Handler, address string, log *slog.Logger) *Server {
	addresses, socket, file := []string{address}, false, ""
	return newServer(h, &toolkit.FlagConfig{
		WebListenAddresses: &addresses, WebSystemdSocket: &socket, WebConfigFile: &file,
	}, maxHealth, healthGrace, log.With("listener", "health"))
}

// Run listens and serves until ctx ends, then lets answers under way finish and returns nil. It calls
// listening once, when every address is open and the web configuration is accepted. Run is called
// once.
func (s *Server) Run(ctx context.Context, listening func()) error {
	var once sync.Once
	// Streams of updates never end by themselves, and must not use up the time that answers have to finish.
	stop := make(chan struct{})
	s.http.RegisterOnShutdown(func() { close(stop) })
	base := context.WithValue(context.Background(), stoppingKey{}, (<-chan struct{})(stop))
	// The toolkit opens all listeners before it serves the first, and offers no other sign of success.
	s.http.BaseContext = func(net.Listener) context.Context {
		once.Do(listening)
		return base
	}
	served := make(chan error, 1)
	go func() { served <- toolkit.ListenAndServe(s.http, s.flags, s.log) }()
	select {
	case err := <-served:
		return fmt.Errorf("web: %w", err)
	case <-ctx.Done():
	}
	limit, cancel := context.WithTimeout(context.Background(), drain)
	defer cancel()
	if err := s.http.Shutdown(limit); err != nil {
		_ = s.http.Close()
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("web: %w", err)
	}
	return nil
}
