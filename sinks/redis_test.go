package sinks

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lag-monitor/lag-monitor/internal/servers"
)

// redisRig is a sink on a server of its own, and a client beside it.
type redisRig struct {
	rig
	client *redis.Client
	cfg    *RedisConfig
}

func onRedis(t *testing.T, configure func(*RedisConfig)) *redisRig {
	t.Helper()
	server := servers.Redis(t)
	c := NewRedis()
	c.Server.Addresses = []string{server.Addr}
	configure(c)
	r := &redisRig{rig: rig{t: t, config: c}, cfg: c, client: redis.NewClient(&redis.Options{Addr: server.Addr})}
	t.Cleanup(func() { r.client.Close() })
	r.open()
	return r
}

// add appends heartbeats to the stream, with further arguments of XADD.
func (r *redisRig) add(configure func(*redis.XAddArgs), seqs ...int) {
	r.t.Helper()
	for _, n := range seqs {
		a := &redis.XAddArgs{Stream: "s", Values: []any{"a", "1", "body", tokenOf(uint64(n)), "z", "2"}}
		if configure != nil {
			configure(a)
		}
		if err := r.client.XAdd(r.t.Context(), a).Err(); err != nil {
			r.t.Fatal(err)
		}
	}
}

// What was trimmed or deleted after it was read is nobody's loss. What was before it could be read is a gap, however
// the entries went.
func TestRedisTrimmed(t *testing.T) {
	ctx := t.Context()
	for name, lose := range map[string]func(r *redisRig){
		"trimmed": func(r *redisRig) { r.client.XTrimMaxLen(ctx, "s", 1) },
		"deleted": func(r *redisRig) {
			all := r.client.XRange(ctx, "s", "-", "+").Val()
			r.client.XDel(ctx, "s", all[len(all)-2].ID)
		},
		"the last one, too": func(r *redisRig) { r.client.XTrimMaxLen(ctx, "s", 0) },
	} {
		t.Run(name, func(t *testing.T) {
			r := onRedis(t, func(c *RedisConfig) { c.Stream = "s" })
			r.add(nil, 1)
			r.run()
			r.add(nil, 2, 3)
			r.want(nil, 2, 3)
			r.client.XTrimMaxLen(ctx, "s", 1)
			r.add(func(a *redis.XAddArgs) { a.MaxLen = 1 }, 4)
			r.want(nil, 2, 3, 4)
			r.stop()
			r.add(nil, 5, 6)
			lose(r)
			r.run()
			want := []uint64{2, 3, 4, 6}
			if name == "the last one, too" {
				want = []uint64{2, 3, 4}
			}
			r.want([]string{"trimmed"}, want...)
			r.add(nil, 7)
			r.want([]string{"trimmed"}, append(want, 7)...)
			r.stop()
		})
	}
}

// A stream that was made anew is read from its beginning, and one that is not there is missing.
func TestRedisRecreated(t *testing.T) {
	for _, later := range []bool{true, false} { // the new ids are above those before, or below
		r := onRedis(t, func(c *RedisConfig) { c.Stream, c.OwnIDs = "s", true })
		id := func(ms int) func(*redis.XAddArgs) {
			return func(a *redis.XAddArgs) { a.ID = fmt.Sprintf("%d-*", ms) }
		}
		r.add(id(1000), 1)
		r.run()
		r.add(id(1001), 2, 3)
		r.want(nil, 2, 3)
		r.client.Del(t.Context(), "s")
		if err := <-r.done; err == nil || !strings.Contains(err.Error(), "stream s: does not exist") {
			t.Errorf("Run, without the stream: %v", err)
		}
		r.feed.notReady()
		ms := 500
		if later {
			ms = 2000
		}
		r.add(id(ms), 4)
		r.run()
		r.want([]string{"recreated"}, 2, 3, 4)
		r.stop()
	}
}

// A replica that lacks the end of the stream has nothing below it that is new: after it has become the master, none of it
// is read again.
func TestRedisBehind(t *testing.T) {
	r := onRedis(t, func(c *RedisConfig) { c.Stream = "s" })
	r.add(nil, 1)
	r.run()
	r.add(nil, 2, 3)
	behind, err := r.client.Dump(t.Context(), "s").Result()
	if err != nil {
		t.Fatal(err)
	}
	r.add(nil, 4, 5)
	r.want(nil, 2, 3, 4, 5)
	if err := r.client.RestoreReplace(t.Context(), "s", 0, behind).Err(); err != nil {
		t.Fatal(err)
	}
	r.want([]string{"recreated"}, 2, 3, 4, 5)
	r.add(nil, 6)
	r.want([]string{"recreated"}, 2, 3, 4, 5, 6)
	r.stop()
}

// A restart of the monitor goes on where it was, and knows what was trimmed meanwhile.
func TestRedisResumes(t *testing.T) {
	r := onRedis(t, func(c *RedisConfig) { c.Stream, c.Field = "s", "body" })
	r.add(nil, 1)
	r.run()
	r.add(nil, 2)
	r.want(nil, 2)
	r.stop()
	again := func() {
		pos := r.sink.(Resumer).Position()
		r.open()
		r.sink.(Resumer).Resume(pos)
		r.run()
	}
	r.add(nil, 3)
	again()
	r.want(nil, 2, 3)
	r.stop()
	r.add(nil, 4, 5)
	r.client.XTrimMaxLen(t.Context(), "s", 1)
	again()
	r.want([]string{"trimmed"}, 2, 3, 5)
	r.stop()
}

func TestRedisBacklog(t *testing.T) {
	r := onRedis(t, func(c *RedisConfig) { c.Stream, c.Groups = "s", []string{"slow", "idle"} })
	ctx := t.Context()
	for _, g := range []string{"slow", "idle", "others"} {
		if err := r.client.XGroupCreateMkStream(ctx, "s", g, "$").Err(); err != nil {
			t.Fatal(err)
		}
	}
	r.add(nil, 1, 2, 3)
	read := func(group string, n int64) {
		got, err := r.client.XReadGroup(ctx, &redis.XReadGroupArgs{Group: group, Consumer: "c", Streams: []string{"s", ">"}, Count: n}).Result()
		if err != nil {
			t.Fatal(err)
		}
		if group == "idle" {
			for _, m := range got[0].Messages {
				r.client.XAck(ctx, "s", group, m.ID)
			}
		}
	}
	read("slow", 1)
	read("idle", 3)
	time.Sleep(20 * time.Millisecond)
	got, err := r.sink.(Backlogger).Backlog(ctx)
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(got, func(a, b Backlog) int { return strings.Compare(a.Group, b.Group) })
	if len(got) != 2 || got[0] != (Backlog{Queue: "s", Group: "idle", Consumers: 1}) ||
		got[1].Group != "slow" || got[1].Messages != 3 || got[1].Consumers != 1 || got[1].Seconds <= 0 || got[1].Seconds > 60 {
		t.Errorf("backlog %+v", got)
	}
	list := onRedis(t, func(c *RedisConfig) { c.List, c.Dedicated = "l", true })
	list.client.RPush(ctx, "l", "a", "b")
	if got, err := list.sink.(Backlogger).Backlog(ctx); err != nil || len(got) != 1 || got[0].Messages != 2 || got[0].Queue != "l" {
		t.Errorf("backlog of a list %+v, %v", got, err)
	}
}

// An element whose answer was lost is not lost, and one that was delivered is not delivered again.
func TestRedisListLosesNothing(t *testing.T) {
	r := onRedis(t, func(c *RedisConfig) { c.List, c.Dedicated = "l", true })
	ctx := t.Context()
	r.client.RPush(ctx, "l:lag-monitor", tokenOf(1)) // moved aside by a process that was killed
	r.client.RPush(ctx, "l", tokenOf(2))
	r.run()
	r.want(nil, 1, 2)
	r.stop()
	r.client.RPush(ctx, "l:lag-monitor", tokenOf(3), tokenOf(4))
	r.sink.(*redisList).done = tokenOf(3) // delivered, and the connection was lost before it could be deleted
	r.run()
	r.want(nil, 1, 2, 4)
	r.stop()
	if n := r.client.LLen(ctx, "l:lag-monitor").Val(); n != 0 {
		t.Errorf("%d elements are left aside", n)
	}
}

func TestRedisValidate(t *testing.T) {
	c := NewRedis()
	c.Server.Addresses, c.Server.DB, c.Server.Timeout, c.Server.Username = []string{"redis", "b:1"}, -1, 0, "u"
	c.List, c.Field = "l", "f"
	want := strings.Join([]string{
		`addresses[0]: "redis" is not of the form host:port`,
		"addresses: several addresses are those of sentinels, with master, or of a cluster, with cluster: true",
		"db: is 0 or more, and a cluster has only 0",
		"password: username needs a password",
		"timeout: is between 1s and 20s",
		"dedicated: a list can only be listened on by taking its elements: say dedicated: true if nobody else reads it",
		"field: goes with stream",
	}, "\n")
	if got := c.Validate().Error(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
