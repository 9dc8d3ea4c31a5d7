package main

import (
	"context"
	"errors"
	"fmt"
	"os/signal"
	"strings"
	"syscall"

	"github.com/alecthomas/kingpin/v2"

	"github.com/lag-monitor/lag-monitor/internal/config"
	"github.com/lag-monitor/lag-monitor/internal/tail"
	"github.com/lag-monitor/lag-monitor/sinks"
)

const tailHelp = `Show the heartbeats that come out of one queue, whoever has sent them.

It listens on a sink of the configuration file beside the monitors that do, from now on, until Ctrl-C, --count or --timeout, and writes a line for each heartbeat: time, kind, probe, instance, lane, sequence and latency. It counts nothing for anybody. A sink that would take messages away from a monitor is refused.

The kinds: heartbeat, of a probe that the file expects at this sink; foreign, of any other; corrupt, damaged or not signed by a key of the file; future, due further ahead than global.max_skew. Latencies compare the clocks of two hosts.

  lag-monitor tail deferred-out                   until Ctrl-C
  lag-monitor tail deferred-out --other           also how many ordinary messages pass
  lag-monitor tail deferred-out --since=5m -n 10  what came out in the last minutes
  lag-monitor tail deferred-out -n 1 --timeout=1m --json || echo nothing comes out

Exit codes: 0 at the end, 1 when --timeout was over before --count was full, 2 when the flags or the file are wrong or the queue could not be read.`

type tailFlags struct {
	configFile string
	sink       string
	json       bool
	opts       tail.Options
}

func addTail(app *kingpin.Application, env *environment) (string, func() error) {
	c := app.Command("tail", tailHelp)
	var f tailFlags
	addConfigFile(c, &f.configFile)
	c.Arg("sink", "A sink of the file; it may be left out where there is only one.").StringVar(&f.sink)
	c.Flag("count", "End after this many heartbeats. 0: at Ctrl-C.").Short('n').Default("0").Uint64Var(&f.opts.Count)
	c.Flag("timeout", "End after this time. 0s: at Ctrl-C.").Default("0s").DurationVar(&f.opts.For)
	c.Flag("since", "Begin with what entered the queue that long ago, where the broker finds messages by time.").Default("0s").DurationVar(&f.opts.Since)
	c.Flag("start-timeout", "How long the sink may take to be ready.").Default("30s").DurationVar(&f.opts.Start)
	c.Flag("other", "Also write how many ordinary messages pass, at most once a second.").BoolVar(&f.opts.Other)
	c.Flag("json", "Write a JSON object a line. Durations are in seconds.").BoolVar(&f.json)
	return c.FullCommand(), func() error { return f.run(env) }
}

func (f *tailFlags) run(env *environment) error {
	switch {
	case f.opts.For < 0 || f.opts.Since < 0:
		return usageError{errors.New("--timeout and --since must not be negative")}
	case f.opts.Start <= 0:
		return usageError{errors.New("--start-timeout must be more than 0s")}
	}
	cfg, err := loadFor(f.configFile, env.stderr)
	if err != nil {
		return usageError{err}
	}
	sink, err := config.Pick("sink", f.sink, sinkNames(cfg))
	if err != nil {
		return usageError{fmt.Errorf("%s: %w", f.configFile, err)}
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	f.opts.Logger = env.quietLogger("warn")
	var report tail.Report = &tail.Text{W: env.stdout}
	if f.json {
		report = &tail.JSON{W: env.stdout}
	}
	counts, err := tail.Run(ctx, cfg, sink, f.opts, report)
	if counts != nil {
		var parts []string
		for _, k := range sinks.AllKinds() {
			if k != sinks.Other || f.opts.Other {
				parts = append(parts, fmt.Sprintf("%d %s", counts[k.String()], k))
			}
		}
		fmt.Fprintf(env.stderr, "%s: seen at %s: %s\n", name, sink, strings.Join(parts, ", "))
	}
	if errors.Is(err, tail.ErrNotTried) {
		return usageError{fmt.Errorf("tail %s: %w", sink, err)}
	}
	return err
}

func sinkNames(cfg *config.Config) []string { return sorted(cfg.Sinks) }
