package conform_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/lag-monitor/lag-monitor/internal/conn"
	"github.com/lag-monitor/lag-monitor/internal/heartbeat"
	"github.com/lag-monitor/lag-monitor/internal/servers"
	"github.com/lag-monitor/lag-monitor/probe"
	"github.com/lag-monitor/lag-monitor/sinks"
)

// TestKafkaProcessors: a heartbeat goes through services that read one topic and write another, each of which lets
// something else through, and is found on what they write.
func TestKafkaProcessors(t *testing.T) {
	servers.KafkaEach(t, servers.KafkaOptions{}, func(t *testing.T, k *servers.KafkaServer) {
		for name, p := range map[string]struct {
			key     string // template of the heartbeat's key
			process func(m kafka.Message) (kafka.Message, error)
		}{
			// Another key, the value taken apart and put together anew as something else, no headers.
			"value": {process: func(m kafka.Message) (kafka.Message, error) {
				var in map[string]any
				if err := json.Unmarshal(m.Value, &in); err != nil {
					return kafka.Message{}, err
				}
				out := new(bytes.Buffer)
				e := json.NewEncoder(out)
				e.SetIndent("", "  ")
				err := e.Encode(map[string]any{"meta": map[string]any{"source": "in"}, "payload": in})
				return kafka.Message{Key: []byte(fmt.Sprint(m.Offset)), Value: out.Bytes()}, err
			}},
			// Aggregated into something that has nothing of the value.
			"header": {process: func(m kafka.Message) (kafka.Message, error) {
				i := slices.IndexFunc(m.Headers, func(h kafka.Header) bool { return h.Key == probe.Header })
				if i < 0 {
					return kafka.Message{}, errors.New("no header")
				}
				return kafka.Message{Value: []byte(`{"count":1}`), Headers: []kafka.Header{{Key: "LAG-MONITOR-HEARTBEAT", Value: m.Headers[i].Value}}}, nil
			}},
			"key": {key: "{{ .Token }}", process: func(m kafka.Message) (kafka.Message, error) {
				return kafka.Message{Key: m.Key, Value: []byte{0, 0, 0, 0, 7, 2, 4}}, nil
			}},
		} {
			t.Run(name, func(t *testing.T) {
				in, out := "in-"+name, "out-"+name
				k.CreateTopic(in, kafkaLanes)
				k.CreateTopic(out, 2, "compression.type", "lz4")
				settings := conn.NewKafka()
				settings.Brokers = []string{k.Addr}
				from, to := probe.NewKafka(), sinks.NewKafka()
				from.Kafka, from.Topic, to.Kafka, to.Topic = settings, in, settings, out
				to.Groups = []string{"processor-" + name}
				if p.key != "" {
					from.Key = probe.MustTemplate(p.key)
				}
				sink, err := to.Open()
				if err != nil {
					t.Fatal(err)
				}
				found := newFound()
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
				defer cancel()
				var running sync.WaitGroup
				defer running.Wait()
				defer cancel()
				running.Go(func() {
					if err := sink.Run(ctx, sinks.NewFeed(found, nil)); err != nil {
						t.Error(err)
						cancel()
					}
				})
				running.Go(func() {
					if err := processor(ctx, k.Addr, to.Groups[0], in, out, p.process); err != nil && ctx.Err() == nil {
						t.Errorf("processor: %v", err)
						cancel()
					}
				})
				if found.next(ctx) != 0 {
					t.Fatal("the sink is not ready")
				}
				injector, err := from.Open()
				if err != nil {
					t.Fatal(err)
				}
				defer injector.Close()
				for lane := range uint32(kafkaLanes) {
					m := beat(lane, uint64(lane)+1)
					if err := injector.Inject(ctx, m); err != nil {
						t.Fatal(err)
					}
				}
				var got []uint64
				for range kafkaLanes {
					got = append(got, found.next(ctx))
				}
				if slices.Sort(got); !slices.Equal(got, []uint64{1, 2, 3}) {
					t.Fatalf("heartbeats %v came out, want 1, 2 and 3", got)
				}
				// The group of the processor is behind by nothing, as soon as it has committed.
				for waiting := -1.0; waiting != 0; {
					all, err := sink.(sinks.Backlogger).Backlog(ctx)
					if ctx.Err() != nil {
						t.Fatalf("the backlog is %+v, %v", all, err)
					}
					waiting = 0
					for _, b := range all {
						if b.Queue != in {
							t.Errorf("the backlog is told of %s", b.Queue)
						}
						if b.Partition != "" {
							waiting = max(waiting, b.Messages, -b.Messages)
						}
					}
					if len(all) == 0 || err != nil {
						waiting = -1
					}
				}
			})
		}
	})
}

// processor is a service between two topics.
func processor(ctx context.Context, broker, group, in, out string, process func(kafka.Message) (kafka.Message, error)) (err error) {
	tr := &kafka.Transport{}
	defer tr.CloseIdleConnections()
	w := &kafka.Writer{Addr: kafka.TCP(broker), Topic: out, Transport: tr, BatchTimeout: time.Millisecond, RequiredAcks: kafka.RequireAll, Compression: kafka.Gzip}
	r := kafka.NewReader(kafka.ReaderConfig{Brokers: []string{broker}, GroupID: group, Topic: in, StartOffset: kafka.FirstOffset, MaxWait: time.Second})
	defer func() { err = errors.Join(err, w.Close(), r.Close()) }()
	for {
		m, err := r.FetchMessage(ctx)
		if err != nil {
			return err
		}
		made, err := process(m)
		if err != nil {
			return err
		}
		if err := w.WriteMessages(ctx, made); err != nil {
			return err
		}
		if err := r.CommitMessages(ctx, m); err != nil {
			return err
		}
	}
}

// beat is a heartbeat as a probe hands it to an injector, unsigned.
func beat(lane uint32, seq uint64) *probe.Message {
	h := heartbeat.Heartbeat{Probe: "p", Instance: 1, Epoch: heartbeat.NewEpoch(), Lane: lane, Lanes: kafkaLanes, Seq: seq, Sent: time.Now(), Interval: time.Second, Timeout: time.Minute}
	trace := h.Trace()
	return &probe.Message{Probe: h.Probe, Token: string((*heartbeat.Keyring)(nil).Append(nil, &h)), Seq: seq, Lane: lane, Sent: h.Sent, Due: h.Due(), TTL: time.Minute,
		TraceParent: trace.Parent(true)}
}

// found is a receiver that passes on the sequences of what it is given; 0: the sink is ready.
type found struct{ seqs chan uint64 }

func newFound() *found { return &found{make(chan uint64, 100)} }

func (f *found) next(ctx context.Context) uint64 {
	select {
	case n := <-f.seqs:
		return n
	case <-ctx.Done():
		return ^uint64(0)
	}
}

func (f *found) Heartbeat(h *heartbeat.Heartbeat, _ sinks.Arrival) sinks.Kind {
	f.seqs <- h.Seq
	return sinks.Heartbeat
}

func (f *found) Ready(up bool, _ time.Time) {
	if up {
		f.seqs <- 0
	}
}

func (f *found) CaughtUp(time.Time)    {}
func (f *found) Gap(time.Time, string) {}

// TestKafkaCompactedWantsAKey: a compacted topic takes no heartbeat without a key, and says so for certain.
func TestKafkaCompactedWantsAKey(t *testing.T) {
	servers.KafkaEach(t, servers.KafkaOptions{}, func(t *testing.T, k *servers.KafkaServer) {
		k.CreateTopic("orders", 1, "cleanup.policy", "compact")
		for key, works := range map[string]bool{"": false, "lag-monitor": true} {
			c := probe.NewKafka()
			c.Brokers, c.Topic = []string{k.Addr}, "orders"
			if key != "" {
				c.Key = probe.MustTemplate(key)
			}
			in, err := c.Open()
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			if err := in.Inject(ctx, beat(0, 1)); (err == nil) != works || err != nil && !probe.IsRefused(err) {
				t.Errorf("key %q: %v", key, err)
			}
			cancel()
			in.Close()
		}
	})
}
