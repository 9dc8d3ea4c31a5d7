package conform_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/lag-monitor/lag-monitor/internal/heartbeat"
	"github.com/lag-monitor/lag-monitor/probe"
	"github.com/lag-monitor/lag-monitor/sinks"
)

// The Kafka benchmarks measure the CPU time of this process; the broker is a fake one in another.
// Compare what one run prints, on one machine: go test ./internal/conform -run '^$' -bench Kafka -benchtime 1x

const (
	benchBrokerEnv = "LAG_MONITOR_BENCH_BROKER" // partitions of the topic t; negative: endless canned batches
	benchRecord    = 200
)

// TestKafkaBenchBroker is the other process.
func TestKafkaBenchBroker(t *testing.T) {
	n, err := strconv.Atoi(os.Getenv(benchBrokerEnv))
	if err != nil {
		return
	}
	opts := []kfake.Opt{kfake.NumBrokers(1)}
	if n < 0 {
		n = -n
		opts = append(opts, kfake.SyntheticFetch(kfake.SyntheticBatch{Records: 80, RecordBytes: benchRecord}))
	}
	f := kfake.MustCluster(append(opts, kfake.SeedTopics(int32(n), "t"))...)
	defer f.Close()
	fmt.Println("broker at", f.ListenAddrs()[0])
	io.Copy(io.Discard, os.Stdin) // until the parent is gone
}

func benchBroker(b *testing.B, partitions int) (address string) {
	b.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestKafkaBenchBroker$")
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d", benchBrokerEnv, partitions))
	in, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	if err := errors.Join(err1, err2, cmd.Start()); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		in.Close()
		cmd.Wait()
	})
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if a, ok := strings.CutPrefix(lines.Text(), "broker at "); ok {
			return a
		}
	}
	b.Fatal("the broker did not start")
	return ""
}

func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// measured calls f and reports what n units of it cost.
func measured(b *testing.B, n int, unit string, f func()) {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	start := cpu()
	f()
	used := cpu() - start
	runtime.ReadMemStats(&after)
	b.ReportMetric(float64(used.Nanoseconds())/float64(n), "cpu-ns/"+unit)
	b.ReportMetric(float64(after.Mallocs-before.Mallocs)/float64(n), "allocs/"+unit)
	b.ReportMetric(0, "ns/op")
}

// bigConn gives kafka-go a buffer of 256 KB, which is the best that can be done for it.
type bigConn struct {
	net.Conn
	r *bufio.Reader
}

func (c *bigConn) Read(p []byte) (int, error) { return c.r.Read(p) }

func bareConn(b *testing.B, address string, partition int) *kafka.Conn {
	d := &kafka.Dialer{DialFunc: func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, network, address)
		return &bigConn{c, bufio.NewReaderSize(c, 256<<10)}, err
	}}
	c, err := d.DialLeader(context.Background(), "tcp", address, "t", partition)
	if err != nil {
		b.Fatal(err)
	}
	return c
}

// BenchmarkKafkaDrain reads 2,000,000 messages of others from 4 partitions.
func BenchmarkKafkaDrain(b *testing.B) {
	const total, partitions = 2_000_000, 4
	b.Run("lag-monitor", func(b *testing.B) {
		p := kafkaPipeline([]string{benchBroker(b, -partitions)}, "t")
		c := p.Sink().(*sinks.Kafka)
		c.Start = "earliest"
		for b.Loop() {
			sink, err := c.Open()
			if err != nil {
				b.Fatal(err)
			}
			feed := sinks.NewFeed(ignore{}, nil)
			ctx, cancel := context.WithCancel(context.Background())
			done := make(chan error)
			measured(b, total, "record", func() {
				go func() { done <- sink.Run(ctx, feed) }()
				for feed.Stats().Messages[sinks.Other] < total {
					time.Sleep(time.Millisecond)
				}
			})
			cancel()
			<-done
		}
	})
	b.Run("kafka-go", func(b *testing.B) {
		address := benchBroker(b, -partitions)
		for b.Loop() {
			measured(b, total, "record", func() {
				var wg sync.WaitGroup
				for p := range partitions {
					wg.Go(func() {
						c := bareConn(b, address, p)
						defer c.Close()
						c.Seek(0, kafka.SeekAbsolute)
						buf := make([]byte, 64<<10)
						for n := 0; n < total/partitions; {
							batch := c.ReadBatch(1, 1<<20)
							for n < total/partitions {
								if _, err := batch.Read(buf); err != nil {
									break
								}
								n++
							}
							batch.Close()
						}
					})
				}
				wg.Wait()
			})
		}
	})
	b.Run("franz-go", func(b *testing.B) {
		address := benchBroker(b, -partitions)
		for b.Loop() {
			measured(b, total, "record", func() {
				c, err := kgo.NewClient(kgo.SeedBrokers(address), kgo.ConsumeTopics("t"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
				if err != nil {
					b.Fatal(err)
				}
				for n := 0; n < total; {
					n += c.PollFetches(context.Background()).NumRecords()
				}
				c.CloseAllowingRebalance()
			})
		}
	})
}

// BenchmarkKafkaWatch sends heartbeats to the partitions 10 times a second and receives them. Latencies
// compare with one partition: with more, ours arrive together, and those of the pairs side by side.
func BenchmarkKafkaWatch(b *testing.B) {
	for _, partitions := range []int{1, 3} {
		b.Run(fmt.Sprintf("partitions=%d", partitions), func(b *testing.B) { besideBarePair(b, partitions) })
	}
}

func besideBarePair(b *testing.B, partitions int) {
	const ticks = 100
	b.Run("lag-monitor", func(b *testing.B) {
		address := benchBroker(b, partitions)
		for b.Loop() {
			watchKafka(b, address, partitions, ticks)
		}
	})
	b.Run("kafka-go", func(b *testing.B) {
		address := benchBroker(b, partitions)
		for b.Loop() {
			var mu sync.Mutex
			var latencies []time.Duration
			var writers, readers []*kafka.Conn
			for p := range partitions {
				writers, readers = append(writers, bareConn(b, address, p)), append(readers, bareConn(b, address, p))
				writers[p].SetRequiredAcks(-1)
				if _, err := readers[p].Seek(0, kafka.SeekEnd); err != nil {
					b.Fatal(err)
				}
			}
			measured(b, partitions*ticks, "heartbeat", func() {
				var wg sync.WaitGroup
				for p := range partitions {
					wg.Go(func() {
						for n := 0; n < ticks; {
							batch := readers[p].ReadBatchWith(kafka.ReadBatchConfig{MinBytes: 1, MaxBytes: 1 << 20, MaxWait: 500 * time.Millisecond})
							for {
								m, err := batch.ReadMessage()
								if err != nil {
									break
								}
								sent, _ := strconv.ParseInt(string(m.Value[:19]), 10, 64)
								mu.Lock()
								latencies = append(latencies, time.Since(time.Unix(0, sent)))
								mu.Unlock()
								n++
							}
							batch.Close()
						}
					})
				}
				// Each partition is a pair of its own: written one after the other, two of three would find
				// the processes awake, and their latency would be that of a busier broker.
				for p := range partitions {
					wg.Go(func() {
						every := time.NewTicker(100 * time.Millisecond)
						defer every.Stop()
						for range ticks {
							<-every.C
							value := fmt.Appendf(nil, "%019d%s", time.Now().UnixNano(), strings.Repeat("x", 120))
							if _, err := writers[p].WriteMessages(kafka.Message{Value: value}); err != nil {
								b.Error(err)
							}
						}
					})
				}
				wg.Wait()
			})
			reportLatency(b, latencies)
			for p := range partitions {
				writers[p].Close()
				readers[p].Close()
			}
		}
	})
}

// BenchmarkKafkaPartitions sends heartbeats to 1,000 partitions 10 times a second and receives them.
func BenchmarkKafkaPartitions(b *testing.B) {
	address := benchBroker(b, 1000)
	for b.Loop() {
		watchKafka(b, address, 1000, 100)
	}
}

func reportLatency(b *testing.B, l []time.Duration) {
	slices.Sort(l)
	b.ReportMetric(float64(l[len(l)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(l[len(l)*99/100].Microseconds()), "p99-µs")
}

// ignore is a receiver that takes everything for ours.
type ignore struct {
	heard func(*heartbeat.Heartbeat, sinks.Arrival)
}

func (i ignore) Heartbeat(h *heartbeat.Heartbeat, a sinks.Arrival) sinks.Kind {
	if i.heard != nil {
		i.heard(h, a)
	}
	return sinks.Heartbeat
}
func (ignore) Ready(bool, time.Time) {}
func (ignore) CaughtUp(time.Time)    {}
func (ignore) Gap(time.Time, string) {}

func watchKafka(b *testing.B, address string, partitions, ticks int) {
	p := kafkaPipeline([]string{address}, "t")
	in, err1 := p.Inject().Open()
	sink, err2 := p.Sink().Open()
	if err := errors.Join(err1, err2); err != nil {
		b.Fatal(err)
	}
	defer in.Close()
	lanes, err := in.(probe.Laner).Lanes(context.Background())
	if err != nil || len(lanes) != partitions {
		b.Fatal(lanes, err)
	}
	var mu sync.Mutex
	var latencies []time.Duration
	var heard atomic.Int64
	feed := sinks.NewFeed(ignore{func(h *heartbeat.Heartbeat, a sinks.Arrival) {
		mu.Lock()
		latencies = append(latencies, a.At.Sub(h.Sent))
		mu.Unlock()
		heard.Add(1)
	}}, nil)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- sink.Run(ctx, feed) }()
	for !feed.Stats().Ready {
		time.Sleep(time.Millisecond)
	}
	goroutines := 0
	began := time.Now()
	var busy time.Duration
	measured(b, partitions*ticks, "heartbeat", func() {
		start := cpu()
		every := time.NewTicker(100 * time.Millisecond)
		defer every.Stop()
		ms, errs := make([]*probe.Message, partitions), make([]error, partitions)
		var keys *heartbeat.Keyring
		var buf []byte
		for tick := range ticks {
			<-every.C
			for i, lane := range lanes {
				h := heartbeat.Heartbeat{Probe: "bench", Lane: lane, Lanes: uint32(partitions), Seq: uint64(tick + 1), Sent: time.Now(), Timeout: time.Minute}
				buf = keys.Append(buf[:0], &h)
				trace := h.Trace()
				ms[i] = &probe.Message{Probe: "bench", Lane: lane, Seq: h.Seq, Sent: h.Sent, Due: h.Sent, Token: string(buf), TraceParent: trace.Parent(true)}
			}
			in.(probe.BatchInjector).InjectBatch(ctx, ms, errs)
			if err := errors.Join(errs...); err != nil {
				b.Fatal(err)
			}
			goroutines = max(goroutines, runtime.NumGoroutine())
		}
		for int(heard.Load()) < partitions*ticks {
			time.Sleep(time.Millisecond)
		}
		busy = cpu() - start
	})
	b.ReportMetric(busy.Seconds()/time.Since(began).Seconds(), "cores")
	b.ReportMetric(float64(goroutines), "goroutines")
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	b.ReportMetric(float64(m.Sys)/(1<<20), "sys-MB")
	reportLatency(b, latencies)
	cancel()
	<-done
}
