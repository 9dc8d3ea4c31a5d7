package sinks

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/lag-monitor/lag-monitor/internal/conn"
)

// StallAfter is how long a sink that is ready may go without CaughtUp or a delivery before the loop
// takes it for stalled and reconnects. Drivers prove themselves every second; thirty times that is
// longer than any pause of a healthy broker that was worth waiting for.
const StallAfter = 30 * time.Second

// errStalled ends a Run that had gone silent.
var errStalled = conn.WithClass(conn.Network, fmt.Errorf("nothing heard from the queue for %s: reconnecting", StallAfter))

// Listen keeps a sink running until ctx ends: it calls Run, and after an error calls it again with a
// growing, jittered pause of 100 ms to 10 s. It counts each error in the feed and logs it once. The
// pause is short at first since every second of blindness is a second in which nobody knows. The jitter
// is the caller's, and of this call alone: what is drawn from it decides when the sink comes back.
func Listen(ctx context.Context, s Sink, f *Feed, log *slog.Logger, jitter *rand.Rand) {
	pause := backoff.NewExponentialBackOff()
	pause.RandomizationFactor = 0 // its randomness is that of the process, which nobody can repeat
	pause.InitialInterval = 100 * time.Millisecond
	pause.MaxInterval = 10 * time.Second
	f.setErrorHook(func(err error) { log.With(conn.StackOf(err)...).Warn("sink reports an error", "err", err) })
	for ctx.Err() == nil {
		began := time.Now()
		err := runOnce(ctx, s, f)
		wasReady := f.notReady()
		if ctx.Err() != nil {
			if err != nil {
				log.With(conn.StackOf(err)...).Warn("sink ended with an error", "err", err)
			}
			return
		}
		if err == nil {
			err = errors.New("the driver stopped by itself")
		}
		f.count(err)
		if wasReady && time.Since(began) > pause.MaxInterval {
			pause.Reset()
		}
		wait := min(time.Duration(float64(pause.NextBackOff())*(0.5+jitter.Float64())), pause.MaxInterval)
		log.With(conn.StackOf(err)...).Warn("sink disconnected", "err", err, "class", conn.ClassOf(err), "retry_in", wait.Round(time.Millisecond))
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

// runOnce calls Run under a watchdog and turns a panic of the driver into an error.
func runOnce(ctx context.Context, s Sink, f *Feed) (err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watch := time.NewTicker(StallAfter / 6)
	defer watch.Stop()
	done := make(chan error, 1)
	f.touch()
	go func() {
		err := errors.New("the driver ended its goroutine")
		defer func() { done <- err }()
		defer conn.Contain(&err)
		err = s.Run(ctx, f)
	}()
	for {
		select {
		case err := <-done:
			if cause := context.Cause(ctx); errors.Is(cause, errStalled) {
				return cause
			}
			return err
		case <-watch.C:
			if f.ready.Load() && f.silent() > StallAfter {
				cancel(errStalled)
			}
		}
	}
}
