package monitor

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/lag-monitor/lag-monitor/sinks"
)

// backlogSink is a sink that tells its backlog by a function.
type backlogSink struct {
	sinks.Sink
	tell func(ctx context.Context) ([]sinks.Backlog, error)
}

func (b backlogSink) Backlog(ctx context.Context) ([]sinks.Backlog, error) { return b.tell(ctx) }

type backlogConfig struct {
	sinks.Config
	tell func(ctx context.Context) ([]sinks.Backlog, error)
}

func (c backlogConfig) Open() (sinks.Sink, error) {
	s, err := c.Config.Open()
	return backlogSink{s, c.tell}, err
}

// TestBacklog: what a sink tells is shown until it can tell no more or is gone, and an error is told once.
func TestBacklog(t *testing.T) {
	var log strings.Builder
	sim(t, func(r *rig) {
		r.m.log = slog.New(slog.NewTextHandler(&log, nil))
		var mu sync.Mutex
		asked := 0
		tell := func(context.Context) ([]sinks.Backlog, error) {
			return []sinks.Backlog{{Queue: "q", Messages: 7, Consumers: 2, Seconds: -1}, {Queue: "q", Messages: 8, Seconds: -1}}, nil
		}
		plain := r.cfg.Sinks["out"].Config
		r.cfg.Sinks["out"].Config = backlogConfig{plain, func(ctx context.Context) ([]sinks.Backlog, error) {
			mu.Lock()
			asked++
			now := tell
			mu.Unlock()
			return now(ctx)
		}}
		set := func(f func(context.Context) ([]sinks.Backlog, error)) {
			mu.Lock()
			defer mu.Unlock()
			tell = f
		}
		times := func() int {
			mu.Lock()
			defer mu.Unlock()
			return asked
		}
		r.start()
		shown := func() string {
			t.Helper()
			synctest.Wait()
			reg := prometheus.NewPedanticRegistry()
			reg.MustRegister(r.m.Collector())
			families, err := reg.Gather()
			if err != nil {
				t.Fatal(err)
			}
			var all []string
			for _, f := range families {
				if strings.Contains(f.GetName(), "backlog") {
					for _, m := range f.Metric {
						all = append(all, fmt.Sprint(strings.TrimPrefix(f.GetName(), "lag_monitor_backlog_"), " ", m.GetGauge().GetValue()))
					}
				}
			}
			return strings.Join(all, ", ")
		}
		errs := func() uint64 {
			n := uint64(0)
			for _, e := range r.m.state.Load().sinks["out"].feed.Stats().Errors {
				n += e
			}
			return n
		}
		const all = "consumers 2, messages 7"
		if got := shown(); got != "" {
			t.Errorf("before it was asked: %s", got)
		}
		time.Sleep(61 * time.Second)
		if got := shown(); got != all || times() != 4 {
			t.Errorf("after a minute %s, asked %d times", got, times())
		}
		set(func(context.Context) ([]sinks.Backlog, error) {
			return nil, fmt.Errorf("127.0.0.1:%d: no such queue", 40000+times()) // from another port each time
		})
		time.Sleep(time.Minute)
		if got := shown(); got != "" || errs() != 1 {
			t.Errorf("while it is not known: %s, %d errors", got, errs())
		}
		set(func(context.Context) ([]sinks.Backlog, error) { panic("backlog") })
		time.Sleep(30 * time.Second)
		if got := shown(); got != "" || errs() != 2 {
			t.Errorf("after a panic: %s, %d errors", got, errs())
		}
		set(func(ctx context.Context) ([]sinks.Backlog, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		})
		time.Sleep(30 * time.Second)
		if errs() != 3 {
			t.Errorf("one that does not answer: %d errors", errs())
		}
		set(func(context.Context) ([]sinks.Backlog, error) {
			return []sinks.Backlog{{Queue: "q", Messages: 7, Consumers: 2, Seconds: -1}}, nil
		})
		time.Sleep(30 * time.Second)
		if got := shown(); got != all || errs() != 3 {
			t.Errorf("when it is well again: %s, %d errors", got, errs())
		}
		cfg := *r.cfg
		cfg.Sinks, cfg.Probes = nil, nil
		if err := r.m.Apply(&cfg); err != nil {
			t.Fatal(err)
		}
		if got := shown(); got != "" {
			t.Errorf("of a sink that is gone: %s", got)
		}
		n := times()
		time.Sleep(time.Minute)
		if times() != n {
			t.Error("a sink that is gone was asked")
		}
	})
	if n := strings.Count(log.String(), "no such queue"); n != 1 {
		t.Errorf("the error is %d times in the log", n)
	}
}
