package main

import (
	"context"
	"errors"
	"os/signal"
	"syscall"

	"github.com/alecthomas/kingpin/v2"

	"github.com/lag-monitor/lag-monitor/internal/config"
)

const checkHelp = `Check configuration files: what they define, what is wrong with them, and what is probably not meant.

It reads main files with all that they include, writes a table of probes and sinks, each mistake with its file, line and key, and warnings: thresholds that a restart sets off, a queue that is read twice, a time to live that is too short. Files that are checked together are those of several monitors of one pipeline. With --connect it also asks every broker and service whether both ends would work; nothing is sent or received.

  lag-monitor check lag-monitor.yaml
  lag-monitor check --connect --timeout=5s lag-monitor.yaml
  lag-monitor check --strict eu.yaml us.yaml      in a pull request

Exit codes: 0 nothing is wrong; 1 an end would not work, or there are warnings and --strict; 2 a mistake in a file or in the flags.`

func addCheck(app *kingpin.Application, env *environment) (string, func() error) {
	c := app.Command("check", checkHelp)
	var o config.CheckOptions
	files := c.Arg("file", "A main configuration file; what it includes is checked with it.").Required().Strings()
	c.Flag("connect", "Also connect to every head and queue and see whether it would work. Nothing is sent or received.").BoolVar(&o.Connect)
	c.Flag("timeout", "With --connect: how long one end may take to answer.").Default("10s").DurationVar(&o.Timeout)
	c.Flag("scrape-interval", "How often Prometheus asks the monitor, for the warnings about thresholds.").Default("15s").DurationVar(&o.Scrape)
	strict := c.Flag("strict", "Warnings make the exit code 1.").Bool()
	return c.FullCommand(), func() error {
		if o.Timeout <= 0 || o.Scrape <= 0 {
			return usageError{errors.New("--timeout and --scrape-interval must be more than 0s")}
		}
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
		defer stop()
		switch found := config.Check(ctx, env.stdout, *files, o); {
		case found.Mistakes > 0:
			return usageError{errSilent}
		case found.Unreachable > 0, *strict && found.Warnings > 0:
			return errSilent
		}
		return nil
	}
}
