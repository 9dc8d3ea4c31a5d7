package conform_test

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/heartbeat"
	"github.com/lag-monitor/lag-monitor/internal/servers"
	"github.com/lag-monitor/lag-monitor/probe"
	"github.com/lag-monitor/lag-monitor/sinks"
)

// TestKafkaLeaders moves the leadership of partitions between two brokers while heartbeats pass: by an election, by the end
// of a broker that hands over first, and by the death of one that does not. What was accepted arrives once and in the order of
// its partition, what was refused does not, and the sink never says that it may have missed something.
func TestKafkaLeaders(t *testing.T) {
	servers.KafkaEach(t, servers.KafkaOptions{}, func(t *testing.T, k *servers.KafkaServer) {
		version := servers.Kafka4
		if strings.HasPrefix(k.Version, "3.") {
			version = servers.Kafka39
		}
		second := servers.Kafka(t, servers.KafkaOptions{Version: version, Join: k})
		k.CreateReplicated("orders", kafkaLanes)

		from, to := probe.NewKafka(), sinks.NewKafka()
		from.Brokers, from.Topic = []string{k.Addr, second.Addr}, "orders"
		to.Brokers, to.Topic = from.Brokers, from.Topic
		in, err := from.Open()
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		sink, err := to.Open()
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		defer running.Wait()
		defer cancel()
		out := &passed{seqs: map[uint32][]uint64{}}
		feed := sinks.NewFeed(out, nil)
		running.Go(func() { sinks.Listen(ctx, sink, feed, slog.New(slog.DiscardHandler), rand.New(rand.NewPCG(1, 2))) })
		for deadline := time.Now().Add(90 * time.Second); !feed.Stats().Ready; time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("the sink is not ready")
			}
		}

		// Each lane is sent on by itself: one that waits for a leader does not hold up the others.
		head := &passed{seqs: map[uint32][]uint64{}}
		refused, unknown := map[uint32][]uint64{}, map[uint32][]uint64{}
		sending, enough := context.WithCancel(ctx)
		defer enough()
		var senders sync.WaitGroup
		for lane := range uint32(kafkaLanes) {
			senders.Go(func() {
				for seq := uint64(1); sending.Err() == nil; seq++ {
					soon, cancel := context.WithTimeout(ctx, 5*time.Second)
					err := in.Inject(soon, beat(lane, seq))
					cancel()
					head.mu.Lock()
					switch {
					case err == nil:
						head.seqs[lane] = append(head.seqs[lane], seq)
					case probe.IsRefused(err):
						refused[lane] = append(refused[lane], seq)
					default:
						unknown[lane] = append(unknown[lane], seq)
					}
					head.mu.Unlock()
					time.Sleep(20 * time.Millisecond)
				}
			})
		}
		flows := func(when string) {
			t.Helper()
			more := head.newest()
			for lane := range more {
				more[lane] += 5
			}
			reach(t, head, more, when)
			reach(t, out, head.newest(), when)
		}
		flows("at first")
		for _, broker := range []int{2, 1, 2} {
			for p := range kafkaLanes {
				k.Lead("orders", p, broker)
			}
			flows("after an election")
		}
		for _, end := range []func(){second.Stop, second.Kill} {
			end()
			flows("while a broker is away")
			second.Start()
			for p := range kafkaLanes {
				k.Lead("orders", p, 2)
			}
			flows("when it leads again")
		}
		enough()
		senders.Wait()
		reach(t, out, head.newest(), "at the end")

		out.mu.Lock()
		defer out.mu.Unlock()
		if len(out.gaps) > 0 {
			t.Errorf("gaps %q", out.gaps)
		}
		for lane := range uint32(kafkaLanes) {
			got := out.seqs[lane]
			if !slices.IsSorted(got) || len(slices.Compact(slices.Clone(got))) != len(got) {
				t.Errorf("lane %d: not once and in order: %v", lane, got)
			}
			for _, seq := range head.seqs[lane] {
				if !slices.Contains(got, seq) {
					t.Errorf("lane %d: %d was accepted and did not come", lane, seq)
				}
			}
			for _, seq := range refused[lane] {
				if slices.Contains(got, seq) {
					t.Errorf("lane %d: %d was refused and came", lane, seq)
				}
			}
			t.Logf("lane %d: %d accepted, %d refused, %d unknown, %d came", lane, len(head.seqs[lane]), len(refused[lane]), len(unknown[lane]), len(got))
		}
	})
}

// passed notes the sequences of each lane.
type passed struct {
	mu   sync.Mutex
	seqs map[uint32][]uint64
	gaps []string
}

// newest returns the last sequence of each lane.
func (p *passed) newest() (n [kafkaLanes]uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for lane, seqs := range p.seqs {
		n[lane] = seqs[len(seqs)-1]
	}
	return n
}

// reach waits until each lane has come so far.
func reach(t *testing.T, p *passed, want [kafkaLanes]uint64, when string) {
	t.Helper()
	for deadline := time.Now().Add(90 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		got, there := p.newest(), true
		for lane := range want {
			there = there && got[lane] >= want[lane]
		}
		if there {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: lanes stand at %v, want %v", when, got, want)
		}
	}
}

func (p *passed) Heartbeat(h *heartbeat.Heartbeat, _ sinks.Arrival) sinks.Kind {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seqs[h.Lane] = append(p.seqs[h.Lane], h.Seq)
	return sinks.Heartbeat
}

func (p *passed) Gap(_ time.Time, reason string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gaps = append(p.gaps, reason)
}

func (p *passed) Ready(bool, time.Time) {}
func (p *passed) CaughtUp(time.Time)    {}
