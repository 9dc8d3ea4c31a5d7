package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/version"

	"github.com/lag-monitor/lag-monitor/internal/config"
	"github.com/lag-monitor/lag-monitor/internal/metrics"
	"github.com/lag-monitor/lag-monitor/internal/monitor"
	"github.com/lag-monitor/lag-monitor/internal/tracing"
	"github.com/lag-monitor/lag-monitor/internal/web"
)

var errStopping = errors.New("shutting down")

// daemon joins the configuration file, the monitor and what the web shows of both. It implements
// web.Source.
type daemon struct {
	log     *slog.Logger
	loader  *config.Loader
	monitor *monitor.Monitor
	metrics *metrics.Reload
	tracing *tracing.Exporter
	config  atomic.Pointer[config.Config]

	reloading sync.Mutex // held during a reload: one at a time, whoever asks
	stopping  atomic.Bool
}

var _ web.Source = (*daemon)(nil)

// newDaemon reads the configuration and prepares what it says; nothing runs yet. A mistake in an
// included file is logged and does not stop the others. storage is the directory of the journal; empty for
// none.
func newDaemon(file, storage string, grace time.Duration, reg *prometheus.Registry, log *slog.Logger) (*daemon, error) {
	d := &daemon{log: log, loader: config.NewLoader(file), metrics: metrics.NewReload(), tracing: tracing.NewExporter(log)}
	cfg, problems, err := d.loader.Load()
	if err != nil {
		return nil, err
	}
	opts := monitor.Options{Logger: log, Instance: cfg.Global.Instance, Grace: grace, Tracer: d.tracing}
	if storage != "" {
		opts.OpenJournal = monitor.JournalIn(storage)
	}
	d.monitor = monitor.New(opts)
	if err := d.apply(cfg); err != nil {
		return nil, err
	}
	for _, c := range []prometheus.Collector{d.metrics, d.monitor.Collector()} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	d.accept(cfg, problems)
	log.Info("configuration loaded", "file", file, "probes", len(cfg.Probes), "sinks", len(cfg.Sinks))
	return d, nil
}

// apply makes cfg the running configuration. When it returns an error, nothing has changed.
func (d *daemon) apply(cfg *config.Config) error {
	c := cfg.Global.Tracing
	var receiver *tracing.Receiver
	if c.OTLP != nil {
		r, err := c.OTLP.Open(cfg.Global.Instance, version.Version)
		if err != nil {
			return fmt.Errorf("global.tracing.otlp: %w", err)
		}
		receiver = r
	}
	if err := d.monitor.Apply(cfg); err != nil {
		return err
	}
	d.tracing.Use(c.SampleRatio, receiver)
	return nil
}

// accept notes a configuration that has been applied.
func (d *daemon) accept(cfg *config.Config, problems []error) {
	d.config.Store(cfg)
	for _, w := range cfg.Warnings {
		d.log.Warn("configuration", "warning", w.Error())
	}
	for _, p := range problems {
		d.log.Error("configuration", "err", p)
	}
	d.metrics.Done(len(problems) == 0, time.Now())
}

// Reload reads the files again and applies them. When the main file is wrong nothing changes; when
// included files are, everything else is applied and the error lists them. It logs what it returns.
func (d *daemon) Reload(context.Context) error {
	d.reloading.Lock()
	defer d.reloading.Unlock()
	if d.stopping.Load() {
		return errStopping
	}
	cfg, problems, err := d.loader.Load()
	if err == nil {
		err = d.apply(cfg)
	}
	if err != nil {
		d.metrics.Done(false, time.Now())
		for _, e := range each(err) {
			d.log.Error("configuration not reloaded: the one before stays", "err", e)
		}
		return fmt.Errorf("not reloaded, the configuration before stays:\n%w", err)
	}
	d.accept(cfg, problems)
	d.log.Info("configuration reloaded", "probes", len(cfg.Probes), "sinks", len(cfg.Sinks), "problems", len(problems))
	if len(problems) > 0 {
		return fmt.Errorf("reloaded, but of what is wrong here the last good version stays:\n%w", errors.Join(problems...))
	}
	return nil
}

// each returns the parts of a joined error, so that each one gets a line in the log.
func each(err error) []error {
	if many, ok := err.(interface{ Unwrap() []error }); ok {
		return many.Unwrap()
	}
	return []error{err}
}

// The export of the last traces may take what is left of the grace, within these limits: a receiver that is down
// must not hold up the end, and heartbeats in flight must not use up all of the time.
const (
	minFlush = time.Second
	maxFlush = 5 * time.Second
)

// run runs the monitor until ctx ends, and then exports the traces that wait, within the rest of the grace.
func (d *daemon) run(ctx context.Context, grace time.Duration) error {
	exporting, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	exported, told := make(chan struct{}), make(chan time.Time, 1)
	go func() {
		defer close(exported)
		d.tracing.Run(exporting)
	}()
	defer context.AfterFunc(ctx, func() { told <- time.Now() })()
	err := d.monitor.Run(ctx)
	stop()
	<-exported
	left := minFlush
	if err == nil {
		left = min(max(left, grace-time.Since(<-told)), maxFlush)
	}
	flushing, end := context.WithTimeout(context.WithoutCancel(ctx), left)
	defer end()
	d.tracing.Flush(flushing)
	return err
}

// stop makes Ready and Reload say that the end is near.
func (d *daemon) stop() { d.stopping.Store(true) }

// Ready implements web.Source.
func (d *daemon) Ready() error {
	if d.stopping.Load() {
		return errStopping
	}
	return d.monitor.Ready()
}

// Config implements web.Source.
func (d *daemon) Config() ([]byte, error) { return d.config.Load().Redacted() }

// Status implements web.Source.
func (d *daemon) Status() monitor.Status { return d.monitor.Status() }

// Probe implements web.Source.
func (d *daemon) Probe(name string) (monitor.ProbeDetail, bool) { return d.monitor.Probe(name) }

// Pause implements web.Source.
func (d *daemon) Pause(name string, t time.Duration) error { return d.monitor.Pause(name, t) }

// Resume implements web.Source.
func (d *daemon) Resume(name string) error { return d.monitor.Resume(name) }
