package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os/signal"
	"syscall"

	"github.com/alecthomas/kingpin/v2"
	"github.com/prometheus/common/promslog"

	"github.com/lag-monitor/lag-monitor/internal/config"
	"github.com/lag-monitor/lag-monitor/internal/ping"
)

const pingHelp = `Send heartbeats through one pipeline, now, and tell what becomes of each.

It runs a probe of the configuration file by itself, from here, until --count or Ctrl-C, and ends with the account. The heartbeats carry a name of their own: monitors that watch the same pipeline count them as foreign, and nothing of theirs changes. Before the first one every sink reads its queue. A sink that would take messages away from a monitor is refused.

  lag-monitor ping                        the only probe of the file, until Ctrl-C
  lag-monitor ping orders -c 20 -i 0.5s   20 heartbeats, two a second
  lag-monitor ping orders -c 50 --timeout=10s --max-loss=2% --quiet   a gate in a deployment
  lag-monitor ping orders -c 5 --json | jq -c 'select(.type == "heartbeat")'

Exit codes: 0 all were on time, but for --max-loss; 1 more than that were refused by the head, dropped, late, or of unknown outcome; 2 the flags or the file are wrong, or it could not be tried: a sink or the head was not ready.`

type pingFlags struct {
	configFile string
	probe      string
	maxLoss    string
	json       bool
	quiet      bool
	opts       ping.Options
}

func addPing(app *kingpin.Application, env *environment) (string, func() error) {
	c := app.Command("ping", pingHelp)
	var f pingFlags
	addConfigFile(c, &f.configFile)
	c.Arg("probe", "A probe of the file; it may be left out where there is only one.").StringVar(&f.probe)
	c.Flag("count", "End after this many heartbeats (in each lane). 0: at Ctrl-C.").Short('c').Default("0").Uint64Var(&f.opts.Count)
	c.Flag("interval", "Time between two heartbeats, at least 10ms. Default: that of the probe.").Short('i').PlaceHolder("0.5s").DurationVar(&f.opts.Interval)
	c.Flag("timeout", "How long after its due time a heartbeat is on time. Default: that of the probe.").PlaceHolder("10s").DurationVar(&f.opts.Timeout)
	c.Flag("start-timeout", "How long the sinks and the head may take to be ready.").Default("30s").DurationVar(&f.opts.Start)
	c.Flag("max-loss", "Which part may not be on time for the exit code to be 0, such as 1% or 0.01.").Default("0").StringVar(&f.maxLoss)
	c.Flag("json", "Write a JSON object a line, the last one with the account. Durations are in seconds.").BoolVar(&f.json)
	c.Flag("quiet", "Write only the account.").Short('q').BoolVar(&f.quiet)
	return c.FullCommand(), func() error { return f.run(env) }
}

func (f *pingFlags) run(env *environment) error {
	switch {
	case f.opts.Interval != 0 && f.opts.Interval < config.MinInterval:
		return usageError{fmt.Errorf("--interval is at least %v", config.MinInterval)}
	case f.opts.Timeout < 0:
		return usageError{errors.New("--timeout must be more than 0s")}
	case f.opts.Start <= 0:
		return usageError{errors.New("--start-timeout must be more than 0s")}
	}
	maxLoss, err := config.ParseRatio(f.maxLoss)
	if err != nil {
		return usageError{fmt.Errorf("--max-loss: %w", err)}
	}
	cfg, err := loadFor(f.configFile, env.stderr)
	if err != nil {
		return usageError{err}
	}
	names := sorted(cfg.Probes)
	if f.probe == "" {
		names = ping.Names(cfg)
	}
	probe, err := config.Pick("probe", f.probe, names)
	if err != nil {
		return usageError{fmt.Errorf("%s: %w", f.configFile, err)}
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	f.opts.Logger = env.quietLogger("error")

	var report interface {
		ping.Report
		Summary(s *ping.Summary, maxLoss float64)
	} = &ping.Text{W: env.stdout, Quiet: f.quiet}
	if f.json {
		report = &ping.JSON{W: env.stdout, Quiet: f.quiet}
	}
	s, err := ping.Run(ctx, cfg, probe, f.opts, report)
	if err != nil {
		return usageError{fmt.Errorf("ping %s: %w", probe, err)}
	}
	report.Summary(s, maxLoss)
	if loss, _ := s.Loss(); loss > maxLoss {
		return errSilent
	}
	return nil
}

// addConfigFile adds the flag --config.file, as `run` has it.
func addConfigFile(c *kingpin.CmdClause, to *string) {
	c.Flag("config.file", "The configuration file.").Default(defaultConfig).StringVar(to)
}

// loadFor loads a configuration for a command that runs a part of it. What is wrong with included files is
// told and does not stop it.
func loadFor(file string, stderr io.Writer) (*config.Config, error) {
	cfg, problems, err := config.NewLoader(file).Load()
	for _, p := range problems {
		fmt.Fprintf(stderr, "%s: left out: %v\n", name, p)
	}
	return cfg, configHint(err, file)
}

// quietLogger logs from a level on, unless the flags ask for another than the usual one.
func (e *environment) quietLogger(level string) *slog.Logger {
	e.log.Writer = e.stderr
	if e.log.Level.String() == "info" {
		_ = e.log.Level.Set(level)
	}
	return promslog.New(&e.log)
}
