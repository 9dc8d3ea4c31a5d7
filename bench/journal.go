package main

import (
	"context"
	"os"
	"slices"
	"time"

	"github.com/lag-monitor/lag-monitor/probe"
)

// slow wraps the injector of the queue in memory: the pipeline takes a while.
type slow struct {
	probe.Config
	by time.Duration
}

func (s slow) Open() (probe.Injector, error) {
	in, err := s.Config.Open()
	return slowInjector{in, s.by}, err
}

type slowInjector struct {
	probe.Injector
	by time.Duration
}

func (s slowInjector) Inject(_ context.Context, m *probe.Message) error {
	msg := *m
	time.AfterFunc(s.by, func() { _ = s.Injector.Inject(context.Background(), &msg) })
	return nil
}

// journalCost compares 10,000 probes at 1 Hz with and without a journal, turn by turn in one run.
func journalCost() error {
	for _, latency := range []time.Duration{0, 100 * time.Millisecond, 5 * time.Second} {
		var with, without []float64
		for range 3 {
			for _, kept := range []bool{false, true} {
				cores, err := fleetCores(latency, kept)
				if err != nil {
					return err
				}
				if kept {
					with = append(with, cores)
				} else {
					without = append(without, cores)
				}
			}
		}
		slices.Sort(with)
		slices.Sort(without)
		row("10,000 probes at 1 Hz, latency "+latency.String(), "%.3f cores, with the journal %.3f: %.2f × (target <= 1.1)",
			without[1], with[1], with[1]/without[1])
	}
	return nil
}

// fleetCores measures the processor time of a fleet.
func fleetCores(latency time.Duration, kept bool) (cores float64, err error) {
	dir := ""
	if kept {
		if dir, err = os.MkdirTemp("", "lag-monitor-bench"); err != nil {
			return 0, err
		}
		defer os.RemoveAll(dir)
	}
	m, err := fleet(10_000, time.Second, latency, nil, dir)
	if err != nil {
		return 0, err
	}
	err = running(m, func() {
		time.Sleep(latency + 3*time.Second)
		used, began := cpu(), time.Now()
		time.Sleep(10 * time.Second)
		cores = float64(cpu()-used) / float64(time.Since(began))
	})
	return cores, err
}
