//go:build !nodemo

package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/alecthomas/kingpin/v2"
	"github.com/prometheus/common/promslog"
	"golang.org/x/term"

	"github.com/lag-monitor/lag-monitor/internal/demo"
)

const demoHelp = `Watch a small pipeline that runs in this process, and break it.

A service takes messages over HTTP, holds each one until its expiry and publishes it on NATS. The monitor watches it as it would watch any: through HTTP, NATS and a configuration file. All of it listens on the loopback only and is gone at the end.

On a terminal, keys switch faults on and off. Everywhere, requests to the service do (its address is shown):

  POST /fault?slow=4s        every message comes out 4 s late
  POST /fault?drop=0.33      1 in 3 messages is lost
  POST /fault?duplicate=5    each 5th message comes out twice
  POST /fault?stall=1        nothing comes out
  POST /fault?refuse=1       nothing is taken
  POST /heal                 all is well again

Several go into one request with &. Where the output is no terminal there is a line each second. What the monitor logs goes to the standard error unless that is a terminal. NO_COLOR is honoured.`

func addDemo(app *kingpin.Application, env *environment) (string, func() error) {
	c := app.Command("demo", demoHelp)
	opts := demo.Options{In: os.Stdin, Out: env.stdout}
	c.Flag("listen", "Address of the monitor's page and metrics.").Default("127.0.0.1:0").StringVar(&opts.Listen)
	c.Flag("service-listen", "Address of the service, which takes messages and faults.").Default("127.0.0.1:0").StringVar(&opts.Service)
	c.Flag("for", "End after this time. 0s: when the story is over, or a key or a signal says so.").Default("0s").DurationVar(&opts.For)
	c.Flag("story", "Play a story of a minute: all is well, slow, healed, lossy, healed.").BoolVar(&opts.Story)
	c.Flag("plain", "Write lines on a terminal, too.").BoolVar(&opts.Plain)
	return c.FullCommand(), func() error {
		if opts.For < 0 {
			return usageError{errors.New("--for must not be negative")}
		}
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
		defer stop()
		// A pipe that is closed (| head) is an end as good as any, and must not leave files behind.
		signal.Ignore(syscall.SIGPIPE)
		opts.Colour = os.Getenv("NO_COLOR") == ""
		opts.Plain = opts.Plain || os.Getenv("TERM") == "dumb"
		opts.Logger = slog.New(slog.DiscardHandler)
		if f, ok := env.stderr.(*os.File); !ok || !term.IsTerminal(int(f.Fd())) {
			env.log.Writer = env.stderr
			opts.Logger = promslog.New(&env.log)
		}
		if err := demo.Run(ctx, opts); !errors.Is(err, syscall.EPIPE) {
			return err
		}
		return nil
	}
}
