// Command stashdef is Stash Deferred: users send messages with the time when each is due, and each is put onto a
// Kinesis stream then. `stashdef frontend` takes the messages, `stashdef backend` publishes them, `stashdef all` does
// both in one process. This package holds flags and listeners; the work is done by the packages that it starts.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/alecthomas/kingpin/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/lag-monitor/lag-monitor/examples/stash-deferred/backend"
	"github.com/lag-monitor/lag-monitor/examples/stash-deferred/emulator"
	"github.com/lag-monitor/lag-monitor/examples/stash-deferred/frontend"
	"github.com/lag-monitor/lag-monitor/examples/stash-deferred/metrics"
	"github.com/lag-monitor/lag-monitor/examples/stash-deferred/store"
	"github.com/lag-monitor/lag-monitor/examples/stash-deferred/stream"
)

func main() {
	logger := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if err := run(logger, os.Args[1:]); err != nil {
		logger.Error("the end", "err", err)
		os.Exit(1)
	}
}

type flags struct {
	store            store.Config
	stream, endpoint string
	frontend         string // addresses
	backend          string
	options          backend.Options
	write            time.Duration
}

func run(logger *slog.Logger, args []string) error {
	f := flags{options: backend.Default()}
	app := kingpin.New("stashdef", "Stash Deferred: takes messages over HTTP, and puts each onto a Kinesis stream when it is due.")
	app.HelpFlag.Short('h')
	app.Flag("bigtable.project", "Project of the Bigtable instance.").StringVar(&f.store.Project)
	app.Flag("bigtable.instance", "The instance. Without it, and without an emulator, `all` keeps messages in memory.").StringVar(&f.store.Instance)
	app.Flag("bigtable.table", "The table; it has the column family m.").Default("deferred").StringVar(&f.store.Table)
	app.Flag("bigtable.emulator", "host:port of a Bigtable emulator, instead of the real service.").StringVar(&f.store.Emulator)
	app.Flag("kinesis.endpoint", "URL of a local Kinesis; default: the service's own. Region and credentials come from the environment.").StringVar(&f.endpoint)
	app.Flag("kinesis.stream", "Stream of messages that name none.").Default("deferred").StringVar(&f.stream)

	app.Flag("frontend.listen", "Address of the frontend: POST /v1/messages, and /metrics.").Default("127.0.0.1:8080").StringVar(&f.frontend)
	app.Flag("frontend.write-timeout", "How long the store may take to confirm a message.").Default("2s").DurationVar(&f.write)
	app.Flag("backend.listen", "Address of the backend's /metrics.").Default("127.0.0.1:8081").StringVar(&f.backend)
	o := &f.options
	app.Flag("backend.interval", "Between two scans.").Default(o.Interval.String()).DurationVar(&o.Interval)
	app.Flag("backend.scan-timeout", "Of one read of the store.").Default(o.ScanTimeout.String()).DurationVar(&o.ScanTimeout)
	app.Flag("backend.publishers", "Messages that are published at once.").Default(fmt.Sprint(o.Publishers)).IntVar(&o.Publishers)
	app.Flag("backend.delete-batch", "Rows that are deleted at once.").Default(fmt.Sprint(o.Batch)).IntVar(&o.Batch)
	app.Flag("backend.pause", "How long a row is left alone that was refused or not deleted.").Default(o.Pause.String()).DurationVar(&o.Pause)
	app.Flag("backend.backlog-interval", "Between two counts of what is due.").Default(o.Backlog.String()).DurationVar(&o.Backlog)

	app.Command("all", "Frontend and backend in one process.").Default()
	app.Command("frontend", "Take messages from users.")
	app.Command("backend", "Publish messages that are due.")
	command, err := app.Parse(args)
	if err != nil {
		return fmt.Errorf("%w (try stashdef --help)", err)
	}
	if err := f.check(command); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	return f.start(ctx, logger, command)
}

func (f *flags) check(command string) error {
	for name, d := range map[string]time.Duration{
		"frontend.write-timeout": f.write, "backend.interval": f.options.Interval, "backend.scan-timeout": f.options.ScanTimeout,
		"backend.pause": f.options.Pause, "backend.backlog-interval": f.options.Backlog,
	} {
		if d <= 0 {
			return fmt.Errorf("--%s=%v: it must be above 0s", name, d)
		}
	}
	for name, n := range map[string]int{"backend.publishers": f.options.Publishers, "backend.delete-batch": f.options.Batch} {
		if n < 1 || n > 1000 {
			return fmt.Errorf("--%s=%d: it must be between 1 and 1000", name, n)
		}
	}
	switch {
	case f.store.Emulator == "" && f.store.Instance == "" && command != "all":
		return fmt.Errorf("where is the store? %s needs --bigtable.project and --bigtable.instance, or --bigtable.emulator", command)
	case f.store.Emulator == "" && f.store.Instance != "" && f.store.Project == "":
		return errors.New("--bigtable.instance needs --bigtable.project")
	case f.store.Emulator != "":
		// The emulator takes any.
		if f.store.Project == "" {
			f.store.Project = "stash"
		}
		if f.store.Instance == "" {
			f.store.Instance = "emulator"
		}
	}
	return nil
}

// start runs what the command names until ctx ends or a listener does.
func (f *flags) start(ctx context.Context, logger *slog.Logger, command string) error {
	if f.store.Emulator == "" && f.store.Instance == "" {
		e, err := emulator.Start(ctx, "127.0.0.1:0")
		if err != nil {
			return err
		}
		defer e.Close()
		f.store = e.Config
		logger.Warn("messages are kept in the memory of this process alone", "emulator", e.Config.Emulator)
	}
	s, err := store.Open(ctx, f.store)
	if err != nil {
		return err
	}
	defer s.Close()

	ctx, cancel := context.WithCancelCause(ctx)
	var running sync.WaitGroup
	defer func() {
		cancel(nil)
		running.Wait()
	}()
	if command != "backend" {
		reg := prometheus.NewRegistry()
		mux := http.NewServeMux()
		mux.Handle("POST /v1/messages", &frontend.Frontend{
			Store: s, Stream: f.stream, Timeout: f.write, Metrics: metrics.NewFrontend(reg), Logger: logger.With("part", "frontend"),
		})
		if err := serve(ctx, cancel, &running, logger, "frontend", f.frontend, reg, mux); err != nil {
			return err
		}
	}
	if command != "frontend" {
		k, err := stream.Open(ctx, f.endpoint)
		if err != nil {
			return err
		}
		reg := prometheus.NewRegistry()
		b := &backend.Backend{
			Options: f.options, Store: s, Stream: k, Refused: stream.Refused,
			Metrics: metrics.NewBackend(reg), Logger: logger.With("part", "backend"),
		}
		if err := serve(ctx, cancel, &running, logger, "backend", f.backend, reg, http.NewServeMux()); err != nil {
			return err
		}
		b.Run(ctx)
	}
	<-ctx.Done()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// serve listens on an address until ctx ends, and adds /metrics and /-/healthy to mux.
func serve(ctx context.Context, cancel context.CancelCauseFunc, running *sync.WaitGroup, logger *slog.Logger, part, addr string, reg *prometheus.Registry, mux *http.ServeMux) error {
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{Registry: reg}))
	mux.HandleFunc("GET /-/healthy", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
	if err != nil {
		return fmt.Errorf("--%s.listen: %w", part, err)
	}
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute}
	logger.Info("listening", "part", part, "address", l.Addr().String())
	running.Go(func() {
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			cancel(err)
		}
	})
	running.Go(func() {
		<-ctx.Done()
		// Requests that are being answered get their answer.
		end, stop := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer stop()
		_ = srv.Shutdown(end)
	})
	return nil
}
