package main

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"

	"github.com/lag-monitor/lag-monitor/internal/config"
	"github.com/lag-monitor/lag-monitor/internal/conform/memory"
	"github.com/lag-monitor/lag-monitor/internal/monitor"
	"github.com/lag-monitor/lag-monitor/probe"
)

// watched wraps the injector of the queue in memory and notes how late its ticks come.
type watched struct {
	probe.Config
	note func(*probe.Message)
}

func (w watched) Open() (probe.Injector, error) {
	in, err := w.Config.Open()
	if err != nil || w.note == nil {
		return in, err
	}
	return noting{in, w.note}, nil
}

type noting struct {
	probe.Injector
	note func(*probe.Message)
}

func (n noting) Inject(ctx context.Context, m *probe.Message) error {
	n.note(m)
	return n.Injector.Inject(ctx, m)
}

// fleet is a monitor with n probes on one queue in memory. Without a directory it keeps no journal.
func fleet(n int, interval, latency time.Duration, note func(*probe.Message), journal string) (*monitor.Monitor, error) {
	q := memory.NewQueue(1, 0)
	cfg := &config.Config{
		Global: config.Global{MaxSkew: 10 * time.Second},
		Sinks:  map[string]*config.Sink{"out": {Name: "out", Kind: "memory", Role: config.Destination, Config: &memory.SinkConfig{Queue: q}}},
		Probes: make(map[string]*config.Probe, n),
	}
	var head probe.Config = &memory.InjectorConfig{Queue: q}
	if latency > 0 {
		head = slow{head, latency}
	}
	for i := range n {
		name := fmt.Sprintf("probe-%05d", i)
		cfg.Probes[name] = &config.Probe{Name: name, Interval: interval, Timeout: time.Minute, TTL: time.Minute, SendTimeout: 10 * time.Second,
			Labels: map[string]string{"team": "data"}, Page: config.Thresholds{Lag: 5 * time.Minute, For: 2 * time.Minute, DropRatio: .01},
			Inject: watched{head, note}, Sinks: []string{"out"}}
	}
	opts := monitor.Options{Instance: "bench"}
	if journal != "" {
		opts.OpenJournal = monitor.JournalIn(journal)
	}
	m := monitor.New(opts)
	return m, m.Apply(cfg)
}

// running runs f while the monitor runs.
func running(m *monitor.Monitor, f func()) error {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	f()
	cancel()
	return <-done
}

func onTime(m *monitor.Monitor) (n uint64) {
	for _, p := range m.Status().Probes {
		n += p.Sinks[0].OnTime
	}
	return n
}

// fleetCost measures 10,000 probes at 1 Hz.
func fleetCost() error {
	const probes, warm, length = 10_000, 5 * time.Second, 20 * time.Second
	var (
		mu    sync.Mutex
		sends []time.Duration // since start, of each heartbeat
		start = time.Now()
		// byProbe has the same by probe, to compare each with its own grid.
		byProbe = make(map[string][]time.Duration)
	)
	m, err := fleet(probes, time.Second, 0, func(msg *probe.Message) {
		mu.Lock()
		at := msg.Sent.Sub(start)
		sends = append(sends, at)
		byProbe[msg.Probe] = append(byProbe[msg.Probe], at)
		mu.Unlock()
	}, "")
	if err != nil {
		return err
	}
	return running(m, func() {
		time.Sleep(warm)
		mu.Lock()
		sends = make([]time.Duration, 0, probes*40)
		for name := range byProbe {
			byProbe[name] = make([]time.Duration, 0, 40)
		}
		mu.Unlock()
		before, used, began := onTime(m), cpu(), time.Now()
		time.Sleep(length)
		took := time.Since(began)
		cores := float64(cpu()-used) / float64(took)
		goroutines := runtime.NumGoroutine()
		arrived := onTime(m) - before
		heap()
		mu.Lock()
		defer mu.Unlock()
		row("10,000 probes at 1 Hz: heartbeats", "%d in %s", arrived, took.Round(time.Millisecond))
		row("cores (target < 0.3)", "%.2f", cores)
		row("resident memory (target < 200 MB)", "%.0f MiB", rss())
		row("goroutines (target < 1000)", "%d", goroutines)
		var busiest, buckets = 0, make(map[time.Duration]int)
		for _, s := range sends {
			b := s / (10 * time.Millisecond)
			buckets[b]++
			busiest = max(busiest, buckets[b])
		}
		row("busiest 10 ms (even: 100)", "%d", busiest)
		late := lateness(byProbe)
		row("lateness of a tick p50 / p99 / max (p99 < 2 ms)", "%s / %s / %s", percentile(late, .5), percentile(late, .99), late[len(late)-1])
	})
}

// lateness is how much later than planned each heartbeat was sent, sorted: how far it lies behind the
// grid of its probe, which the earliest one shows.
func lateness(byProbe map[string][]time.Duration) (late []time.Duration) {
	for _, sends := range byProbe {
		if len(sends) == 0 {
			continue
		}
		earliest := time.Duration(0)
		offset := func(at time.Duration) time.Duration { // from the first one's place, -0.5 s to 0.5 s
			return ((at-sends[0])%time.Second+3*time.Second/2)%time.Second - time.Second/2
		}
		for _, at := range sends {
			earliest = min(earliest, offset(at))
		}
		for _, at := range sends {
			late = append(late, offset(at)-earliest)
		}
	}
	slices.Sort(late)
	return late
}

// scrapeCost compares a scrape of 10,000 probes with as many constant series.
func scrapeCost() error {
	const probes = 10_000
	m, err := fleet(probes, time.Second, 0, nil, "")
	if err != nil {
		return err
	}
	if err := running(m, func() { time.Sleep(5 * time.Second) }); err != nil {
		return err
	}
	// The fleet stands still now, so that its heartbeats are not counted with the scrapes.
	ours := prometheus.NewRegistry()
	ours.MustRegister(m.Collector())
	plain := prometheus.NewRegistry()
	plain.MustRegister(mirror(ours))
	series := 0
	var a, b []time.Duration
	for range 7 {
		n, d := gather(ours)
		series = n
		a = append(a, d)
		_, d = gather(plain)
		b = append(b, d)
	}
	slices.Sort(a)
	slices.Sort(b)
	row("scrape of 10,000 probes: metrics", "%d", series)
	row("CPU, median of 7", "%s", a[3].Round(time.Millisecond))
	row("as many constant metrics, median of 7", "%s", b[3].Round(time.Millisecond))
	row("ratio (target <= 1.3)", "%.2f", float64(a[3])/float64(b[3]))
	return nil
}

// gather gathers and encodes, and returns the number of metrics and the CPU time.
func gather(r *prometheus.Registry) (n int, took time.Duration) {
	runtime.GC()
	used := cpu()
	families, err := r.Gather()
	if err != nil {
		fatal(err)
	}
	var w discard
	enc := expfmt.NewEncoder(&w, expfmt.NewFormat(expfmt.TypeTextPlain))
	for _, f := range families {
		n += len(f.GetMetric())
		if err := enc.Encode(f); err != nil {
			fatal(err)
		}
	}
	return n, cpu() - used
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

// constant is a collector of constant metrics.
type constant []func() prometheus.Metric

func (c constant) Describe(chan<- *prometheus.Desc) {}
func (c constant) Collect(ch chan<- prometheus.Metric) {
	for _, f := range c {
		ch <- f()
	}
}

// mirror makes, of what a registry gathers now, a collector that builds the same as constant metrics
// at each scrape, as an exporter would.
func mirror(r *prometheus.Registry) constant {
	families, err := r.Gather()
	if err != nil {
		fatal(err)
	}
	var out constant
	for _, f := range families {
		for _, m := range f.GetMetric() {
			var names, values []string
			for _, l := range m.GetLabel() {
				names, values = append(names, l.GetName()), append(values, l.GetValue())
			}
			desc := prometheus.NewDesc(f.GetName(), f.GetHelp(), names, nil)
			switch {
			case m.GetHistogram() != nil:
				h := m.GetHistogram()
				buckets := make(map[float64]uint64)
				for _, b := range h.GetBucket() {
					buckets[b.GetUpperBound()] = b.GetCumulativeCount()
				}
				out = append(out, func() prometheus.Metric {
					return prometheus.MustNewConstHistogram(desc, h.GetSampleCount(), h.GetSampleSum(), buckets, values...)
				})
			case m.GetCounter() != nil:
				v := m.GetCounter().GetValue()
				out = append(out, func() prometheus.Metric {
					return prometheus.MustNewConstMetric(desc, prometheus.CounterValue, v, values...)
				})
			default:
				v := m.GetGauge().GetValue()
				out = append(out, func() prometheus.Metric {
					return prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, v, values...)
				})
			}
		}
	}
	return out
}

// heartbeatCost measures one heartbeat on its whole way: encode, inject into a queue in memory, find,
// verify, account, metrics.
func heartbeatCost() error {
	const probes, length = 500, 10 * time.Second
	m, err := fleet(probes, 10*time.Millisecond, 0, nil, "") // 50,000 a second
	if err != nil {
		return err
	}
	return running(m, func() {
		time.Sleep(2 * time.Second)
		var a, b runtime.MemStats
		runtime.ReadMemStats(&a)
		before, used := onTime(m), cpu()
		time.Sleep(length)
		spent := cpu() - used
		n := onTime(m) - before
		runtime.ReadMemStats(&b)
		heap()
		row("heartbeats", "%d in %s", n, length)
		row("CPU per heartbeat (target < 10 µs)", "%.2f µs", float64(spent.Nanoseconds())/1e3/float64(n))
		row("allocations per heartbeat (target < 10)", "%.1f", float64(b.Mallocs-a.Mallocs)/float64(n))
	})
}
