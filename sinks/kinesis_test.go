package sinks

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kinesis/types"

	"github.com/lag-monitor/lag-monitor/internal/conn"
)

// settle lets fake time pass until the sink has polled every shard a few times.
func settle(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func fanOut(c *Kinesis) { c.EnhancedFanOut = &FanOut{Consumer: "c"} }

// Both ways of reading follow splits and merges: nothing is lost, nothing comes twice, and a child is
// not read before its parents are drained.
func TestKinesisReshard(t *testing.T) {
	for name, configure := range map[string]func(*Kinesis){"poll": func(*Kinesis) {}, "fan-out": fanOut} {
		for _, anonym := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					api := newFakeKinesis(2)
					api.page, api.perList, api.anonym = 3, 2, anonym
					r := runKinesis(t, api, configure)
					settle(5 * time.Second)
					n := 0
					put := func(shards ...int) {
						for _, s := range shards {
							for range 4 {
								n++
								api.put(s, kinesisToken(n))
							}
						}
					}
					put(0, 1)
					api.reshard(2, 0) // 0 → 2, 3
					put(1, 2, 3)
					api.reshard(1, 2, 1) // 2, 1 → 4, at once: two generations behind
					put(3, 4)
					settle(time.Minute)
					put(3, 4)
					api.reshard(1, 3, 4) // everything → 5
					put(5)
					settle(time.Minute)
					r.exactly(t, n)
					got := r.arrived()
					for before, after := range map[uint64]uint64{1: 13, 9: 25, 5: 25} {
						if slices.Index(got, before) > slices.Index(got, after) {
							t.Errorf("heartbeat %d of a child came before %d of its parent", after, before)
						}
					}
					if age := time.Since(r.claim()); age > 3*time.Second {
						t.Errorf("after the reshards the sink has been caught up for %s", age)
					}
					pos := r.sink.Position()
					if err := r.stop(); err != nil {
						t.Error(err)
					}
					if len(pos) != 1 || pos["shardId-000000000005"] == "" {
						t.Errorf("position is %v, want the one open shard", pos)
					}
				})
			})
		}
	}
}

// A claim to be caught up holds for the children of a closed shard too.
func TestKinesisCaughtUpCoversChildren(t *testing.T) {
	for name, configure := range map[string]func(*Kinesis){"poll": func(*Kinesis) {}, "fan-out": fanOut} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				api := newFakeKinesis(3)
				api.anonym, api.lazy = true, true
				r := runKinesis(t, api, configure)
				settle(5 * time.Second)
				api.put(0, []byte("the closed shard has something to read"))
				// The list of shards, which is the only way to learn of the child, is throttled.
				api.setFail(func(operation, _ string) error {
					if operation == "ListShards" {
						return &types.LimitExceededException{}
					}
					return nil
				})
				api.reshard(1, 0)
				api.put(3, kinesisToken(1))
				put := time.Now()
				settle(20 * time.Second)
				if c := r.claim(); c.After(put) {
					t.Errorf("caught up was claimed for %s after a record that nobody has read", c.Sub(put))
				}
				api.setFail(nil)
				settle(20 * time.Second)
				r.exactly(t, 1)
				if !r.claim().After(put) {
					t.Error("never caught up again")
				}
				if err := r.stop(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// An empty answer with a distance to the tip is not the tip, and neither is a page of many.
func TestKinesisBehindIsNotCaughtUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newFakeKinesis(1)
		for range 50 {
			api.put(0, []byte("ordinary"))
		}
		time.Sleep(time.Minute)
		api.page = 1
		began := time.Now()
		r := runKinesis(t, api, func(c *Kinesis) { c.Start = "trim_horizon" })
		settle(10 * time.Second)
		if c := r.claim(); !c.IsZero() {
			t.Errorf("caught up was claimed at %s behind the tip", c)
		}
		backlog := func() []Backlog {
			all, err := r.sink.Backlog(t.Context())
			if err != nil {
				t.Error(err)
			}
			return all
		}
		if b := backlog(); len(b) != 1 || b[0].Seconds < 60 || b[0].Seconds > 75 || b[0].Partition != "shardId-000000000000" || b[0].Queue != "deferred" || b[0].Messages >= 0 || b[0].Consumers >= 0 {
			t.Errorf("backlog is %+v, want one shard that is more than a minute behind", b)
		}
		// While it is behind it reads faster, but leaves more than half of the five reads a second.
		reads := api.count("GetRecords", "shardId-000000000000")
		if rate := float64(reads) / time.Since(began).Seconds(); rate < 2 || rate > 2.6 {
			t.Errorf("%.2f reads a second while behind, want 2.5", rate)
		}
		settle(15 * time.Second)
		if r.claim().IsZero() {
			t.Error("never caught up")
		}
		before := api.count("GetRecords", "shardId-000000000000")
		settle(time.Minute)
		if n := api.count("GetRecords", "shardId-000000000000") - before; n < 59 || n > 61 {
			t.Errorf("%d reads a minute of an idle shard, want 60", n)
		}
		if got := r.feed.Stats().Messages[Other]; got != 50 {
			t.Errorf("%d ordinary messages were counted, want 50", got)
		}
		if b := backlog(); len(b) != 1 || b[0].Seconds != 0 {
			t.Errorf("backlog is %+v, want none of one shard", b)
		}
		_ = r.stop()
		settle(behindKnown)
		if b := backlog(); len(b) != 0 {
			t.Errorf("backlog of what nobody reads is %+v, want none known", b)
		}
	})
}

// An iterator lives five minutes. When it has expired before the first record was seen, the records that
// came meanwhile are not lost, and what was in the shard before the start stays unread.
func TestKinesisIteratorExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newFakeKinesis(2)
		api.put(0, kinesisToken(99))
		time.Sleep(time.Minute)
		r := runKinesis(t, api)
		settle(3 * time.Second)
		api.put(1, kinesisToken(1)) // shard 1 has a last record, shard 0 has none
		settle(3 * time.Second)
		// Nobody answers for ten minutes: Run goes away and comes back in the end.
		if err := r.stop(); err != nil {
			t.Error(err)
		}
		time.Sleep(5 * time.Minute)
		api.put(0, kinesisToken(2))
		api.put(1, kinesisToken(3))
		time.Sleep(5 * time.Minute)
		r2 := rerunKinesis(r.sink, r.kinesisLog)
		settle(3 * time.Second)
		r.exactly(t, 3)
		// The same inside one Run: every read is throttled for longer than an iterator lives.
		api.setFail(func(operation, _ string) error {
			if operation == "GetRecords" {
				return &types.ProvisionedThroughputExceededException{}
			}
			return nil
		})
		time.Sleep(6 * time.Minute)
		api.put(0, kinesisToken(4))
		before := api.count("GetRecords", "shardId-000000000000")
		time.Sleep(time.Minute)
		if n := api.count("GetRecords", "shardId-000000000000") - before; n < 10 || n > 16 {
			t.Errorf("%d reads in a minute of being throttled, want about one in 5s", n)
		}
		api.setFail(nil)
		settle(20 * time.Second)
		r.exactly(t, 4)
		if len(r2.done) != 0 {
			t.Errorf("Run ended: %v", <-r2.done)
		}
		if n := r2.feed.Stats().Errors[conn.Throttle]; n < 50 {
			t.Errorf("%d throttles were counted", n)
		}
		if !slices.Contains(api.types, types.ShardIteratorTypeAtTimestamp) {
			t.Error("no iterator was taken by time: the test proves nothing")
		}
		if len(r.gaps) != 0 {
			t.Errorf("gaps: %v", r.gaps)
		}
		_ = r2.stop()
	})
}

// Ready waits for a place in every shard.
func TestKinesisReadyNeedsEveryShard(t *testing.T) {
	for name, configure := range map[string]func(*Kinesis){"poll": func(*Kinesis) {}, "fan-out": fanOut} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				api := newFakeKinesis(3)
				api.setFail(func(operation, shard string) error {
					if (operation == "GetShardIterator" || operation == "Subscribe") && strings.HasSuffix(shard, "2") {
						return &types.LimitExceededException{}
					}
					return nil
				})
				r := runKinesis(t, api, configure)
				settle(20 * time.Second)
				if len(r.ready) != 0 {
					t.Error("ready without a place in the last shard")
				}
				api.setFail(nil)
				settle(10 * time.Second)
				if len(r.ready) != 1 {
					t.Error("not ready")
				}
				_ = r.stop()
			})
		})
	}
}

// What the journal kept: a shard that has been split since, one whose parent has expired, one that was
// empty, and one of an earlier stream.
func TestKinesisResume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newFakeKinesis(2)
		r := runKinesis(t, api)
		settle(3 * time.Second)
		api.put(0, kinesisToken(1))
		settle(3 * time.Second)
		_ = r.stop()
		saved := r.sink.Position()

		api.put(0, kinesisToken(2))
		api.put(1, kinesisToken(3))
		api.reshard(2, 0)
		api.put(2, kinesisToken(4))
		api.reshard(2, 2) // a grandchild
		api.put(4, kinesisToken(5))
		time.Sleep(10 * time.Minute)

		next := newKinesisSink(r.sink.cfg, api, func() {})
		next.Resume(maps.Clone(saved))
		if got := next.Position(); !maps.Equal(got, saved) {
			t.Errorf("position before the first run is %v, want %v", got, saved)
		}
		r2 := rerunKinesis(next, r.kinesisLog)
		settle(10 * time.Second)
		r.exactly(t, 5)
		_ = r2.stop()
		if len(r.gaps) != 0 {
			t.Errorf("gaps: %v", r.gaps)
		}

		// Much later the parents are gone, with whatever nobody had read; the children are read from
		// their first record.
		api.put(4, kinesisToken(6))
		for _, gone := range []int{0, 2} {
			api.shards[gone].gone = true
		}
		next = newKinesisSink(r.sink.cfg, api, func() {})
		next.Resume(saved)
		log := new(kinesisLog)
		r3 := rerunKinesis(next, log)
		settle(10 * time.Second)
		got := log.arrived()
		slices.Sort(got)
		if want := []uint64{3}; !slices.Equal(got[:1], want) {
			t.Errorf("heartbeats %v arrived, want 3, of the shard that is still there", got)
		}
		if !slices.Equal(log.gaps, []string{"trimmed"}) {
			t.Errorf("gaps %v, want one: the parents' records have expired", log.gaps)
		}
		_ = r3.stop()
	})
}

// The parent of a split expires while nobody listens: its children are read all the same.
func TestKinesisParentGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newFakeKinesis(1)
		r := runKinesis(t, api)
		settle(3 * time.Second)
		_ = r.stop()
		api.reshard(2, 0)
		api.put(1, kinesisToken(1))
		api.put(2, kinesisToken(2))
		api.shards[0].gone = true
		r2 := rerunKinesis(r.sink, r.kinesisLog)
		settle(5 * time.Second)
		r.exactly(t, 2)
		if !slices.Equal(r.gaps, []string{"trimmed"}) {
			t.Errorf("gaps %v, want one", r.gaps)
		}
		_ = r2.stop()
	})
}

// A stream that is deleted and created again has the same shard ids and other records, whether or not
// a record had been seen in the old one.
func TestKinesisRecreated(t *testing.T) {
	for _, seen := range []int{0, 1} {
		synctest.Test(t, func(t *testing.T) {
			api := newFakeKinesis(1)
			r := runKinesis(t, api)
			settle(3 * time.Second)
			for i := range seen {
				api.put(0, kinesisToken(2+i))
			}
			settle(3 * time.Second)
			recreate := func() {
				api.mu.Lock()
				defer api.mu.Unlock()
				api.shards = nil
				api.add()
			}
			_ = r.stop()
			recreate()
			api.put(0, kinesisToken(1))
			r2 := rerunKinesis(r.sink, r.kinesisLog)
			settle(5 * time.Second)
			r.exactly(t, 1+seen)
			if !slices.Equal(r.gaps, []string{"recreated"}) {
				t.Errorf("gaps %v, want one", r.gaps)
			}
			// While it runs, the list of shards shows it.
			recreate()
			settle(time.Minute)
			select {
			case err := <-r2.done:
				if conn.ClassOf(err) != conn.Missing || !strings.Contains(err.Error(), "created again") {
					t.Errorf("Run ended with %v", err)
				}
			default:
				t.Error("Run goes on with positions of another stream")
				_ = r2.stop()
			}
		})
	}
}

// A subscription to a closed shard that never tells its end is left when the list shows the end.
func TestKinesisFanOutWithoutEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newFakeKinesis(1)
		api.endless = true
		r := runKinesis(t, api, fanOut)
		settle(5 * time.Second)
		api.put(0, kinesisToken(1))
		api.reshard(2, 0)
		api.put(2, kinesisToken(2))
		settle(time.Minute)
		r.exactly(t, 2)
		if age := time.Since(r.claim()); age > 3*time.Second {
			t.Errorf("the last claim to be caught up is %s old", age)
		}
		_ = r.stop()
	})
}

// Errors that are gone at the next attempt do not end Run; those that stay do.
func TestKinesisErrors(t *testing.T) {
	denied := &types.AccessDeniedException{}
	for _, c := range []struct {
		name, operation string
		times           int
		err             error
		class           conn.Class
		ends            bool
	}{
		{"throttled", "GetRecords", 1000, &types.ProvisionedThroughputExceededException{}, conn.Throttle, false},
		{"two resets", "GetRecords", 2, &resetError{}, conn.Network, false},
		{"resets", "GetRecords", 3, &resetError{}, conn.Network, true},
		{"access denied", "GetRecords", 1, denied, conn.Auth, true},
		{"stream gone", "", 1000, &types.ResourceNotFoundException{}, conn.Missing, true},
		{"list throttled", "ListShards", 1000, &types.LimitExceededException{}, conn.Throttle, false},
		{"list reset", "ListShards", 2, &resetError{}, conn.Network, false},
		{"list resets", "ListShards", 3, &resetError{}, conn.Network, true},
		{"list denied", "ListShards", 1, denied, conn.Auth, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				api := newFakeKinesis(1)
				r := runKinesis(t, api)
				settle(3 * time.Second)
				left := c.times
				api.setFail(func(operation, _ string) error {
					if !strings.HasPrefix(operation, c.operation) || left == 0 {
						return nil
					}
					left--
					return c.err
				})
				settle(100 * time.Second)
				select {
				case err := <-r.done:
					if !c.ends || conn.ClassOf(err) != c.class || !errors.Is(err, c.err) || !strings.Contains(err.Error(), "kinesis stream deferred") {
						t.Errorf("Run ended with %v, class %s", err, conn.ClassOf(err))
					}
				default:
					if c.ends {
						t.Error("Run goes on")
					}
					if r.feed.Stats().Errors[c.class] == 0 {
						t.Error("the error was not counted")
					}
					if s := r.feed.silent(); s > 10*time.Second {
						t.Errorf("the feed has been silent for %s: the loop would take the sink for stalled", s)
					}
					_ = r.stop()
				}
			})
		})
	}
}

type resetError struct{}

func (*resetError) Error() string   { return "connection reset by peer" }
func (*resetError) Timeout() bool   { return false }
func (*resetError) Temporary() bool { return false }

// A subscription is renewed when it ends, given up when it is silent, and goes on where it was.
func TestKinesisFanOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newFakeKinesis(3) // one of them stays empty
		r := runKinesis(t, api, fanOut)
		settle(10 * time.Second)
		if api.count("RegisterStreamConsumer", "") != 1 {
			t.Error("the missing consumer was not registered once")
		}
		n := 0
		for range 60 { // 12 subscriptions of five minutes
			settle(time.Minute)
			n++
			api.put(n%2, kinesisToken(n))
		}
		settle(10 * time.Second)
		r.exactly(t, n)
		if b, err := r.sink.Backlog(t.Context()); err != nil || len(b) != 3 || b[0].Seconds != 0 || b[0].Group != "c" {
			t.Errorf("backlog is %+v, %v, want three shards", b, err)
		}
		if slices.Contains(api.types, types.ShardIteratorTypeAtTimestamp) {
			t.Error("a subscription was renewed by time, not from its continuation")
		}
		if got := api.count("Subscribe", "shardId-000000000000"); got < 12 || got > 14 {
			t.Errorf("%d subscriptions in an hour, want one for each 5 minutes", got)
		}
		if age := time.Since(r.claim()); age > 3*time.Second {
			t.Errorf("the last claim to be caught up is %s old", age)
		}
		for _, c := range r.claims {
			if c.Before(r.ready[0].Add(-time.Second)) {
				t.Errorf("claim %s before ready", c)
			}
		}

		// From its next subscription on, everything is silent.
		api.mu.Lock()
		api.mute = true
		api.mu.Unlock()
		settle(5 * time.Minute)
		claim := r.claim()
		n++
		api.put(1, kinesisToken(n))
		settle(30 * time.Second)
		if c := r.claim(); !c.Equal(claim) {
			t.Error("caught up was claimed on a silent subscription")
		}
		api.mu.Lock()
		api.mute = false
		api.mu.Unlock()
		before := api.count("Subscribe", "shardId-000000000001")
		settle(2 * time.Minute)
		if api.count("Subscribe", "shardId-000000000001") == before {
			t.Error("a silent subscription was not given up")
		}
		r.exactly(t, n)
		if r.feed.Stats().Errors[conn.Network] == 0 {
			t.Error("the silence was not counted")
		}
		if err := r.stop(); err != nil {
			t.Error(err)
		}
		if api.count("DeregisterStreamConsumer", "") != 0 {
			t.Error("the consumer was deregistered although nobody asked for it")
		}
	})
}

// An event that is under way does not vouch for what enters the shard meanwhile.
func TestKinesisFanOutEventsTakeTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newFakeKinesis(1)
		api.delay = 700 * time.Millisecond
		r := runKinesis(t, api, fanOut)
		settle(5 * time.Second)
		for n := 1; n <= 50; n++ {
			time.Sleep(770 * time.Millisecond)
			put := time.Now()
			api.put(0, kinesisToken(n))
			for !r.claim().After(put) {
				time.Sleep(10 * time.Millisecond)
			}
			if got := len(r.arrived()); got != n {
				t.Fatalf("caught up was claimed with %d of %d heartbeats read", got, n)
			}
		}
		_ = r.stop()
	})
}

// A consumer is deregistered only by the process that registered it, and only when it is told to.
func TestKinesisFanOutDeregister(t *testing.T) {
	for _, c := range []struct {
		exists types.ConsumerStatus
		option bool
		want   int
	}{{"", true, 1}, {"", false, 0}, {types.ConsumerStatusActive, true, 0}} {
		synctest.Test(t, func(t *testing.T) {
			api := newFakeKinesis(1)
			api.consumer = c.exists
			r := runKinesis(t, api, fanOut, func(k *Kinesis) { k.EnhancedFanOut.Deregister = c.option })
			settle(10 * time.Second)
			if err := r.stop(); err != nil {
				t.Error(err)
			}
			if got := api.count("DeregisterStreamConsumer", ""); got != c.want {
				t.Errorf("%+v: deregistered %d times", c, got)
			}
		})
	}
}

// What is measured and told of a record inside an aggregated one.
func TestKinesisAggregated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newFakeKinesis(1)
		r := runKinesis(t, api)
		settle(3 * time.Second)
		api.put(0, aggregate([]byte("a"), kinesisToken(1), []byte("b"), kinesisToken(2)))
		api.put(0, aggregate([]byte("a"), []byte("b"), []byte("c")))
		damaged := aggregate(kinesisToken(3))
		damaged[len(damaged)-1]++
		api.put(0, damaged) // taken as it is
		put := time.Now()
		settle(3 * time.Second)
		r.exactly(t, 3)
		if len(r.ids) != 3 || r.ids[0] > 0 {
			t.Errorf("ids %v, want three different ones", r.ids)
		}
		if !r.enqueued[0].Equal(put) {
			t.Errorf("entered the queue at %s, want %s", r.enqueued[0], put)
		}
		if s := r.feed.Stats().Messages; s[Other] != 5 || s[Heartbeat] != 3 || s[Corrupt] != 0 {
			t.Errorf("messages %v, want 5 other and 3 heartbeats", s)
		}
		_ = r.stop()
	})
}

func TestShardPosition(t *testing.T) {
	for _, s := range []string{"TRIM_HORIZON", "@1700000000000", "@1700000000000 AAAA/BB==", "49680399777318929582450008204332185936832765822324703234"} {
		p, ok := parseShardPosition(s)
		if !ok || p.String() != s {
			t.Errorf("%q is read as %+v, %t, and written as %q", s, p, ok, p)
		}
	}
	for _, s := range []string{"", "latest", "@", "@x", "12x", "-1"} {
		if p, ok := parseShardPosition(s); ok {
			t.Errorf("%q is taken for a position: %+v", s, p)
		}
	}
	if !seqBefore("9", "10") || seqBefore("10", "9") || seqBefore("10", "10") {
		t.Error("sequence numbers are compared as text")
	}
}

func TestKinesisValidate(t *testing.T) {
	c := NewKinesis()
	c.Start = "yesterday"
	c.PollInterval = conn.Duration(time.Millisecond)
	c.ShardRefresh = 0
	c.EnhancedFanOut = &FanOut{}
	c.Endpoint = "kinesis.local"
	c.ExternalID = "x"
	c.AccessKeyID = conn.Secret{Env: "A"}
	err := c.Validate()
	for _, path := range []string{"stream", "start", "poll_interval", "shard_refresh", "enhanced_fan_out.consumer", "endpoint", "external_id", "secret_access_key"} {
		if !strings.Contains(err.Error(), path+": ") {
			t.Errorf("no word of %s in:\n%v", path, err)
		}
	}
	c = NewKinesis()
	c.StreamARN = fakeARN
	c.Start = "1d"
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
	if c.Name() != "deferred" || aws.ToString(func() *string { _, a := c.StreamID(); return a }()) != fakeARN {
		t.Errorf("name %q", c.Name())
	}
}
