package sinks

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kinesis/types"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/lag-monitor/lag-monitor/internal/conn"
	"github.com/lag-monitor/lag-monitor/internal/heartbeat"
)

// kinesisLookingBack makes a sink over a fake that has not run yet.
func kinesisLookingBack(api *fakeKinesis, since time.Time, configure func(*Kinesis)) *kinesisSink {
	c := NewKinesis()
	c.Stream = "deferred"
	configure(c)
	s := newKinesisSink(c, api, func() {})
	s.LookBack(since)
	return s
}

// A look-back goes through the reshards since then, asks nothing of shards that were closed before, and
// starts no child before its parents are drained.
func TestKinesisLookBack(t *testing.T) {
	for name, configure := range map[string]func(*Kinesis){"poll": func(*Kinesis) {}, "fan-out": fanOut} {
		for _, unfiltered := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					api := newFakeKinesis(2)
					api.consumer = "ACTIVE"
					for shard := range 2 {
						api.put(shard, kinesisToken(1000))
					}
					api.reshard(2, 0, 1) // → 2, 3
					api.put(2, kinesisToken(1000))
					time.Sleep(time.Hour)
					since := time.Now()
					n := 0
					put := func(shard int) {
						n++
						api.put(shard, kinesisToken(n))
						time.Sleep(3 * time.Second)
					}
					put(2)
					put(3)
					api.reshard(2, 2) // → 4, 5
					put(4)
					put(5)
					api.reshard(1, 4, 3) // → 6
					put(6)
					time.Sleep(time.Minute)
					if lists := 0; unfiltered {
						api.setFail(func(operation, _ string) error {
							if operation == "ListShards" {
								if lists++; lists == 2 {
									return errors.New("no such filter")
								}
							}
							return nil
						})
					}
					r := rerunKinesis(kinesisLookingBack(api, since, configure), new(kinesisLog))
					settle(100 * time.Millisecond)
					put(5)
					put(6)
					settle(20 * time.Second)
					r.exactly(t, 7)
					if slices.Sort(r.past); !slices.Equal(r.past, []uint64{1, 2, 3, 4, 5}) {
						t.Errorf("heartbeats %v are of the past, want 1 to 5", r.past)
					}
					for at, arrived := range r.claimed {
						if arrived < 5 {
							t.Errorf("caught up with %s was claimed when %d heartbeats had arrived", at, arrived)
						}
					}
					if age := time.Since(r.claim()); age > 3*time.Second {
						t.Errorf("the sink has been caught up for %s", age)
					}
					if len(r.gaps) > 0 {
						t.Errorf("gaps %v", r.gaps)
					}
					if asked := api.count("GetShardIterator", "shardId-000000000000") + api.count("Subscribe", "shardId-000000000000"); (asked > 0) != unfiltered {
						t.Errorf("%d requests for a shard that was closed before the look-back", asked)
					}
					if err := r.stop(); err != nil {
						t.Error(err)
					}
					r = rerunKinesis(r.sink, r.kinesisLog)
					settle(20 * time.Second)
					put(6)
					settle(5 * time.Second)
					r.exactly(t, 8)
					if err := r.stop(); err != nil {
						t.Error(err)
					}
				})
			})
		}
	}
}

// A time that is still to come by the service's clock is refused: then the end is where it starts.
func TestKinesisLookBackRefused(t *testing.T) {
	for name, configure := range map[string]func(*Kinesis){"poll": func(*Kinesis) {}, "fan-out": fanOut} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				api := newFakeKinesis(1)
				api.consumer = "ACTIVE"
				api.put(0, kinesisToken(1000))
				r := rerunKinesis(kinesisLookingBack(api, time.Now().Add(time.Minute), configure), new(kinesisLog))
				settle(10 * time.Second)
				api.put(0, kinesisToken(1))
				settle(10 * time.Second)
				r.exactly(t, 1)
				if s := r.feed.Stats(); s.LastError == nil || !strings.Contains(s.LastError.Error(), "look-back is refused") {
					t.Errorf("the last error is %v", s.LastError)
				}
				if err := r.stop(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// A shard that is written to its limit leaves no room for a look-back: the younger part of it is read,
// and what enters now does not wait.
func TestKinesisLookBackGivesWay(t *testing.T) {
	for name, configure := range map[string]func(*Kinesis){"poll": func(*Kinesis) {}, "fan-out": fanOut} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				api := newFakeKinesis(1)
				api.consumer, api.page = "ACTIVE", 4 // an event a second: 2 MiB/s
				since := time.Now()
				megabyte := bytes.Repeat([]byte("x"), 1<<20)
				n := 0
				write := func(seconds int) {
					for range seconds {
						n++
						api.put(0, kinesisToken(n))
						api.put(0, megabyte)
						settle(time.Second)
					}
				}
				write(300)
				r := rerunKinesis(kinesisLookingBack(api, since, configure), new(kinesisLog))
				write(60)
				if got := r.arrived(); got[len(got)-1] <= 300 {
					t.Errorf("a minute after the start the sink is at %d", got[len(got)-1])
				}
				write(150)
				if age := time.Since(r.claim()); age > 5*time.Second {
					t.Errorf("210 s after the start the sink is %s behind", age)
				}
				counts := make(map[uint64]int)
				for _, seq := range r.arrived() {
					counts[seq]++
				}
				for seq := 301; seq < n; seq++ {
					if counts[uint64(seq)] != 1 {
						t.Errorf("heartbeat %d arrived %d times", seq, counts[uint64(seq)])
					}
				}
				if len(r.past) > 200 || slices.Max(r.past) < 290 || len(r.gaps) > 0 {
					t.Errorf("%d of 300 old heartbeats arrived, the youngest is %d; gaps %v", len(r.past), slices.Max(r.past), r.gaps)
				}
				for seq, times := range counts {
					if times > 1 {
						t.Errorf("heartbeat %d arrived %d times", seq, times)
					}
				}
				if err := r.stop(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// The middle is never behind the moment of the start: what entered since must not be left out.
func TestKinesisLookBackStopsAtTheStart(t *testing.T) {
	started := time.UnixMilli(1700000000000)
	for last, want := range map[time.Duration]time.Duration{-time.Minute: -29 * time.Second, -2 * time.Second: 0, -time.Second: 0, -time.Millisecond: 0} {
		k := kinesisLookingBack(newFakeKinesis(1), started.Add(-time.Hour), func(*Kinesis) {})
		k.past.Store(started.UnixMilli())
		sh := new(shard)
		records := []types.Record{{ApproximateArrivalTimestamp: aws.Time(started.Add(last))}}
		p := pace{time.Now().Add(-paceStep), paceBytes}
		if !k.hurry(sh, records, 1, &p) || !sh.pos.since.Equal(started.Add(want)) {
			t.Errorf("from %s before the start reading goes on at %s", -last, sh.pos.since.Sub(started))
		}
		p = pace{time.Now().Add(-paceStep), paceBytes}
		if k.hurry(sh, append(records, types.Record{ApproximateArrivalTimestamp: aws.Time(started)}), 1, &p) {
			t.Error("a page that reaches the start is no reason to go on elsewhere")
		}
	}
}

func TestKafkaLookBack(t *testing.T) {
	f := fakeKafka(t, 2, 3)
	c := producer(t, f.ListenAddrs())
	now := time.Now()
	record := func(seq uint64, age time.Duration) *kgo.Record {
		return &kgo.Record{Value: []byte(tokenOf(seq)), Timestamp: now.Add(-age)}
	}
	// Times need not be in order: everything from the first message on that is young enough is read.
	put(t, c, 0, record(1, time.Hour))
	put(t, c, 0, record(2, time.Second))
	put(t, c, 0, record(3, time.Hour))
	put(t, c, 1, record(4, time.Hour))
	// What claims to be of the future stands for nothing.
	put(t, c, 2, record(5, -time.Hour))
	put(t, c, 2, record(6, time.Second))
	for _, start := range []struct {
		start string
		want  []uint64
	}{{"latest", []uint64{2, 3}}, {"earliest", []uint64{1, 2, 3, 4, 5, 6}}} {
		s := newKafkaSink(t, f.ListenAddrs(), func(k *Kafka) { k.Start = start.start })
		s.(LookBacker).LookBack(now.Add(-10 * time.Second))
		r := runKafka(t, s).waitReady(t)
		r.exactly(t, len(start.want), 0)
		got := r.arrived()
		if slices.Sort(got); !slices.Equal(got, start.want) {
			t.Errorf("start %s: arrived %v, want %v", start.start, got, start.want)
		}
		if stats := r.feed.Stats(); start.start == "latest" &&
			(stats.Errors[conn.Other] != 1 || !strings.Contains(stats.LastError.Error(), "partition 2: the message at offset 0 claims a time in the future")) {
			t.Errorf("errors %v, the last is %v", stats.Errors, stats.LastError)
		}
		if gaps := r.allGaps(); len(gaps) > 0 {
			t.Errorf("gaps %v", gaps)
		}
		r.stop(t)
	}
}

// A look-back that has been read for too long goes on in the middle of what is left.
func TestKafkaLookBackGivesWay(t *testing.T) {
	for _, c := range []struct {
		past int64
		pace pace
		want int64
	}{
		{1000, pace{time.Now().Add(-paceStep), paceBytes}, 503 - 1},
		{4, pace{time.Now().Add(-paceStep), paceBytes}, 4},
		{3, pace{time.Now().Add(-paceStep), paceBytes}, 3},
		{0, pace{time.Now().Add(-paceStep), paceBytes}, 3}, // no look-back
		{1000, pace{time.Now(), paceBytes}, 3},
		{1000, pace{time.Now().Add(-paceStep), 0}, 3},
	} {
		f := kafkaSession(kafkaFetchNames)
		f.list[0].past, f.list[0].pace = c.past, c.pace
		r := conn.NewKafkaReader(kafkaAnswer(1000, kafkaBatch(0, 0, "a", tokenOf(1), "b")), false)
		if _, _, err := f.response(&r, NewFeed(new(taker), nil)); err != nil {
			t.Error(err)
		}
		if pos := f.list[0].pos.Load(); pos != c.want {
			t.Errorf("%+v: position is %d", c, pos)
		}
	}
}

// slowTaker takes its time for one heartbeat.
type slowTaker struct {
	taker
	slow uint64
}

func (r *slowTaker) Heartbeat(h *heartbeat.Heartbeat, a Arrival) Kind {
	if h.Seq == r.slow {
		time.Sleep(paceStep)
	}
	return r.taker.Heartbeat(h, a)
}

func TestNATSLookBackGivesWay(t *testing.T) {
	w := natsServer(t)
	w.stream(jetstream.StreamConfig{})
	since := time.Now()
	w.publish("s.a", 1, 2)
	filler := bytes.Repeat([]byte("x"), 900<<10)
	for range 5 {
		if _, err := w.js.Publish(t.Context(), "s.a", filler); err != nil {
			t.Fatal(err)
		}
	}
	w.publish("s.a", 3, 4, 5, 6)
	s := w.sink(func(*NATSConfig) {})
	s.(LookBacker).LookBack(since)
	to := &slowTaker{slow: 2}
	p := &polling{taker: &to.taker, feed: NewFeed(to, nil), done: make(chan error, 1)}
	ctx, cancel := context.WithCancel(t.Context())
	p.cancel = cancel
	go func() { p.done <- s.Run(ctx, p.feed) }()
	p.waitReady(t)
	w.publish("s.a", 7)
	p.expect(t, 1, 2, 5, 6, 7)
	if len(p.gaps) > 0 {
		t.Errorf("gaps %v", p.gaps)
	}
	p.stop(t)
	if got := s.(Resumer).Position()["S"]; !strings.HasPrefix(got, "13@") {
		t.Errorf("position is %s, want 13", got)
	}
}
