package demo

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/lag-monitor/lag-monitor/internal/config"
	"github.com/lag-monitor/lag-monitor/internal/metrics"
	"github.com/lag-monitor/lag-monitor/internal/monitor"
	"github.com/lag-monitor/lag-monitor/internal/web"
)

// configuration is what the newcomer is to see: with these few lines the monitor watches the service.
const configuration = `sinks:
  deferred-out:
    nats: {url: "%s", stream: %s}
probes:
  %s:
    interval: 500ms  # a heartbeat twice a second,
    expiry: 1s       # which the service is to hold for 1 s;
    timeout: 5s      # 5 s after that it counts as dropped
    page: {lag: 3s, for: 3s, drop_ratio: 10%%}
    inject:
      http:
        url: %s/v1/messages
        body: '{"expiry": {{ .Due.UnixMilli }}, "message": "{{ .Token }}"}'
    sinks: [deferred-out]
`

const (
	probeName = "deferred"
	stream    = "deferred"
	subject   = "deferred.out"
	starting  = 10 * time.Second
	answer    = 2 * time.Second
)

// pipeline is all that runs: NATS, the service, and the monitor with its page.
type pipeline struct {
	service *service
	monitor *monitor.Monitor
	config  *config.Config
	yaml    string
	web     string // URLs
	control string

	failed  chan error // the first thing that ended by itself
	closers []func()
	running sync.WaitGroup
}

// open starts everything. Whatever it returns, close has to be called.
func open(opts Options) (*pipeline, error) {
	p := &pipeline{failed: make(chan error, 1)}
	dir, err := os.MkdirTemp("", "lag-monitor-demo-")
	if err != nil {
		return p, err
	}
	p.closers = append(p.closers, func() { _ = os.RemoveAll(dir) })
	broker, publish, err := p.openNATS(filepath.Join(dir, "store"))
	if err != nil {
		return p, fmt.Errorf("nats: %w", err)
	}
	p.service = newService(publish)
	p.run(func(ctx context.Context) error { p.service.run(ctx); return nil })
	if p.control, err = p.serve(opts.Service, p.service.handler()); err != nil {
		return p, err
	}
	p.yaml = fmt.Sprintf(configuration, broker, stream, probeName, p.control)
	if err := p.watch(filepath.Join(dir, "lag-monitor.yaml"), opts); err != nil {
		return p, err
	}
	return p, nil
}

// close ends everything in the reverse order of its start.
func (p *pipeline) close() {
	for i := len(p.closers) - 1; i >= 0; i-- {
		p.closers[i]()
	}
	p.running.Wait()
}

// run runs f until close. When f ends before, with an error or a panic, that is the end of the demo:
// the terminal has to be put in order first.
func (p *pipeline) run(f func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	p.closers = append(p.closers, func() { cancel(); <-done })
	p.running.Go(func() {
		defer close(done)
		var err error
		defer func() {
			if v := recover(); v != nil {
				err = fmt.Errorf("panic: %v\n%s", v, debug.Stack())
			}
			if err != nil {
				select {
				case p.failed <- err:
				default:
				}
			}
		}()
		err = f(ctx)
	})
}

// serve answers HTTP at an address and returns its URL.
func (p *pipeline) serve(address string, h http.Handler) (string, error) {
	l, err := new(net.ListenConfig).Listen(context.Background(), "tcp", address)
	if err != nil {
		return "", err
	}
	srv := &http.Server{Handler: h, ReadHeaderTimeout: answer}
	p.run(func(context.Context) error {
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	p.closers = append(p.closers, func() { _ = srv.Close() })
	return "http://" + l.Addr().String(), nil
}

// openNATS starts a server with one stream and returns its URL and what publishes to it.
func (p *pipeline) openNATS(dir string) (string, func(context.Context, []byte) error, error) {
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: dir, NoSigs: true, NoLog: true})
	if err != nil {
		return "", nil, err
	}
	s.Start()
	p.closers = append(p.closers, func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(starting) {
		return "", nil, fmt.Errorf("is not ready after %v", starting)
	}
	c, err := nats.Connect(s.ClientURL())
	if err != nil {
		return "", nil, err
	}
	p.closers = append(p.closers, c.Close)
	js, err := jetstream.New(c)
	if err != nil {
		return "", nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), starting)
	defer cancel()
	if _, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: stream, Subjects: []string{subject}, MaxAge: time.Minute}); err != nil {
		return "", nil, err
	}
	return s.ClientURL(), func(ctx context.Context, body []byte) error {
		ctx, cancel := context.WithTimeout(ctx, answer)
		defer cancel()
		_, err := js.Publish(ctx, subject, body)
		return err
	}, nil
}

// watch starts the monitor as `lag-monitor run` would: from a file.
func (p *pipeline) watch(file string, opts Options) error {
	if err := os.WriteFile(file, []byte(p.yaml), 0o600); err != nil {
		return err
	}
	cfg, err := config.Load(file)
	if err != nil {
		return err
	}
	p.config = cfg
	// No grace: nobody waits for the heartbeats of a demo.
	p.monitor = monitor.New(monitor.Options{Logger: opts.Logger, Instance: cfg.Global.Instance})
	if err := p.monitor.Apply(cfg); err != nil {
		return err
	}
	reg, loaded := prometheus.NewRegistry(), metrics.NewReload()
	loaded.Done(true, time.Now())
	reg.MustRegister(loaded, p.monitor.Collector())
	if p.web, err = p.serve(opts.Listen, web.NewHandler(source{p}, reg, opts.Logger, web.Options{})); err != nil {
		return err
	}
	p.run(p.monitor.Run)
	return nil
}

// source is what the web page shows.
type source struct{ *pipeline }

var _ web.Source = source{}

func (s source) Status() monitor.Status                        { return s.monitor.Status() }
func (s source) Probe(name string) (monitor.ProbeDetail, bool) { return s.monitor.Probe(name) }
func (s source) Pause(name string, d time.Duration) error      { return s.monitor.Pause(name, d) }
func (s source) Resume(name string) error                      { return s.monitor.Resume(name) }
func (s source) Ready() error                                  { return s.monitor.Ready() }
func (s source) Config() ([]byte, error)                       { return s.config.Redacted() }
func (s source) Reload(context.Context) error                  { return errors.New("the demo keeps its configuration") }
