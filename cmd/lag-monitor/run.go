package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/alecthomas/kingpin/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	versioncollector "github.com/prometheus/client_golang/prometheus/collectors/version"
	"github.com/prometheus/common/promslog"
	"github.com/prometheus/common/version"
	toolkit "github.com/prometheus/exporter-toolkit/web"
	"github.com/prometheus/exporter-toolkit/web/kingpinflag"

	"github.com/lag-monitor/lag-monitor/internal/web"
)

// runFlags are the flags of `lag-monitor run`.
type runFlags struct {
	configFile    string
	watch         bool
	watchInterval time.Duration
	storage       string
	web           *toolkit.FlagConfig
	healthAddress string
	webOptions    web.Options
	grace         time.Duration
}

func addRun(app *kingpin.Application, env *environment) (string, func() error) {
	c := app.Command("run", "Watch the pipelines of a configuration. This is what happens when no command is given.").Default()
	var f runFlags
	addConfigFile(c, &f.configFile)
	c.Flag("config.watch", "Reload when a configuration file changes. SIGHUP and POST /-/reload always work.").BoolVar(&f.watch)
	c.Flag("config.watch-interval", "How often to look whether a file has changed.").Default("5s").DurationVar(&f.watchInterval)
	c.Flag("storage.path", "A directory for what survives a restart: heartbeats on their way, positions and newest timestamps. Without it a restart forgets the first.").
		PlaceHolder("DIR").
		StringVar(&f.storage)
	f.web = kingpinflag.AddFlags(c, ":9847")
	c.Flag("web.health-listen-address", "Also serve /-/healthy and /-/ready here, without TLS and login, whatever the web configuration says.").
		PlaceHolder(":9848").
		StringVar(&f.healthAddress)
	c.Flag("web.enable-pprof", "Serve profiles of the process at /debug/pprof/, behind the login of the web configuration if it asks for one.").BoolVar(&f.webOptions.Profiles)
	c.Flag("web.enable-admin-api", "Let probes be paused and resumed on their pages and by POST /api/v1/probes/NAME/pause, behind the login of the web configuration if it asks for one.").
		BoolVar(&f.webOptions.AdminAPI)
	external := c.Flag("web.external-url", "Where people reach the page, for links to it from elsewhere, such as https://lag.example.com/.").PlaceHolder("URL").String()
	alertmanager := c.Flag("web.alertmanager-url", "Where people reach Alertmanager: probes get a link that silences them.").PlaceHolder("URL").String()
	c.Flag("shutdown.grace", "After SIGTERM or SIGINT, how long to wait for heartbeats that are still on their way.").Default("30s").DurationVar(&f.grace)
	return c.FullCommand(), func() error {
		if f.watch && f.watchInterval <= 0 {
			return usageError{errors.New("--config.watch-interval must be more than 0s")}
		}
		if err := parseURL(*external, &f.webOptions.External); err != nil {
			return usageError{fmt.Errorf("--web.external-url: %w", err)}
		}
		if err := parseURL(*alertmanager, &f.webOptions.Alertmanager); err != nil {
			return usageError{fmt.Errorf("--web.alertmanager-url: %w", err)}
		}
		if f.grace < 0 {
			return usageError{errors.New("--shutdown.grace must not be negative")}
		}
		env.log.Writer = env.stderr
		return f.run(promslog.New(&env.log))
	}
}

// parseURL reads where a browser can go; "" is no address. The error does not repeat it, since it may hold a
// password.
func parseURL(s string, to **url.URL) error {
	if s == "" {
		return nil
	}
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return errors.New("not a URL; write it as https://host/")
	case u.Scheme != "http" && u.Scheme != "https" || u.Host == "":
		return errors.New("must begin with http:// or https:// and a host")
	case u.User != nil:
		return errors.New("must not hold a name or a password: everybody who sees the page would see them")
	case u.RawQuery != "" || u.Fragment != "":
		return errors.New("must not have a ? or a #")
	}
	*to = u
	return nil
}

// run is the life of the daemon. It returns nil after a graceful stop.
func (f *runFlags) run(log *slog.Logger) error {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(signals)

	if os.Getenv("GOGC") == "" {
		// Nearly all of the heap is accounts that live as long as their probes: letting it grow to twice its
		// size before it is looked through would buy next to nothing with half of the memory.
		debug.SetGCPercent(50)
	}
	log.Info("starting", "version", version.Version, "revision", version.GetRevision(), "go", version.GoVersion)
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		versioncollector.NewCollector("lag_monitor"))
	d, err := newDaemon(f.configFile, f.storage, f.grace, reg, log)
	if err != nil {
		return usageError{configHint(err, f.configFile)}
	}

	servers := []*web.Server{web.NewServer(web.NewHandler(d, reg, log, f.webOptions), f.web, log)}
	if f.healthAddress != "" {
		servers = append(servers, web.NewHealthServer(web.NewHealthHandler(d), f.healthAddress, log))
	}
	serving, stopServing := context.WithCancel(context.Background())
	defer stopServing()
	listening, served := make(chan struct{}, len(servers)), make(chan error, len(servers))
	flags := []string{"--web.listen-address", "--web.health-listen-address"}
	for i, s := range servers {
		go func() {
			served <- listenHint(s.Run(serving, func() { listening <- struct{}{} }), flags[i])
		}()
	}
	// Whoever cannot be scraped must not inject: a second instance that was started by mistake would
	// send heartbeats into the pipelines before it notices that its port is taken.
	for range servers {
		select {
		case <-listening:
		case err := <-served:
			var listen *net.OpError
			if web := *f.web.WebConfigFile; web != "" && !errors.As(err, &listen) {
				return fmt.Errorf("%w (--web.config.file=%s)", err, web)
			}
			return err
		case s := <-signals:
			if s == syscall.SIGHUP {
				continue
			}
			return nil
		}
	}

	watching, stopWatching := context.WithCancel(context.Background())
	defer stopWatching()
	watched := make(chan error, 1)
	go func() { watched <- d.run(watching, f.grace) }()
	reloads := make(chan struct{}, 1)
	reloading, stopReloading := context.WithCancel(context.Background())
	defer stopReloading()
	go f.reload(reloading, d, reloads)

	var failure error
	running, open := true, len(servers)
	for running {
		select {
		case s := <-signals:
			if s == syscall.SIGHUP {
				select {
				case reloads <- struct{}{}:
				default: // one is waiting already, and will see the newest files
				}
				continue
			}
			log.Info("told to stop; a second signal ends at once", "signal", s.String())
			running = false
		case failure = <-served:
			log.Error("stopping: the web server ended", "err", failure)
			open--
			failure, running = errSilent, false
		case err := <-watched:
			return fmt.Errorf("the monitor ended by itself: %w", err)
		}
	}

	d.stop()
	stopReloading()
	stopWatching()
	// The page and the metrics stay up while the last heartbeats come in, so that they are counted by
	// somebody.
	for waiting := true; waiting; {
		select {
		case s := <-signals:
			if s == syscall.SIGHUP {
				continue
			}
			log.Warn("ended by a second signal: heartbeats on their way are forgotten", "signal", s.String())
			return errSilent
		case err := <-watched:
			if err != nil {
				log.Error("stopped", "err", err)
				failure = errSilent
			}
			waiting = false
		}
	}
	stopServing()
	for range open {
		if err := <-served; err != nil && failure == nil {
			failure = err
		}
	}
	if failure == nil {
		log.Info("stopped")
	}
	return failure
}

// reload reloads, one after the other, when asked to and when files change, until ctx ends.
func (f *runFlags) reload(ctx context.Context, d *daemon, asked <-chan struct{}) {
	var tick <-chan time.Time
	if f.watch {
		t := time.NewTicker(f.watchInterval)
		defer t.Stop()
		tick = t.C
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-asked:
		case <-tick:
			if !d.loader.Changed() {
				continue
			}
		}
		_ = d.Reload(ctx) // it has logged what was wrong
	}
}
