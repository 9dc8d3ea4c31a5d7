package sinks

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lag-monitor/lag-monitor/internal/conn"
)

// redisStream reads a stream by itself, without a consumer group.
type redisStream struct {
	c     *RedisConfig
	since time.Time // from LookBack

	mu  sync.Mutex
	pos streamID // everything up to here was delivered
	set bool     // there is a position
	// added is how many entries the stream had ever got when its last one was that at pos; -1: not known. More of
	// them than were read means that some were deleted before.
	added int64

	past streamID // entries up to here were there before the sink
	pace pace     // of those
}

// streamID is the id of an entry: milliseconds and a sequence, in order.
type streamID struct{ ms, seq uint64 }

func parseStreamID(s string) (id streamID, err error) {
	ms, seq, ok := strings.Cut(s, "-")
	if id.ms, err = strconv.ParseUint(ms, 10, 64); err == nil && ok {
		id.seq, err = strconv.ParseUint(seq, 10, 64)
	}
	if err != nil {
		return id, fmt.Errorf("%q is not the id of an entry", s)
	}
	return id, nil
}

func (a streamID) String() string         { return fmt.Sprintf("%d-%d", a.ms, a.seq) }
func (a streamID) before(b streamID) bool { return a.ms < b.ms || a.ms == b.ms && a.seq < b.seq }

const (
	redisCount = 1000 // entries in an answer
	// redisInfo is how often to ask how the stream stands, which repeats its first and its last entry.
	redisInfo = 250 * time.Millisecond
)

// Position implements Resumer.
func (s *redisStream) Position() map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.set {
		return nil
	}
	return map[string]string{s.c.Stream: fmt.Sprintf("%s %d", s.pos, s.added)}
}

// Resume implements Resumer.
func (s *redisStream) Resume(pos map[string]string) {
	id, added, _ := strings.Cut(pos[s.c.Stream], " ")
	at, err := parseStreamID(id)
	n, err2 := strconv.ParseInt(added, 10, 64)
	if err != nil || err2 != nil {
		return
	}
	s.move(at, n)
}

// LookBack implements LookBacker. Ids that are the application's tell no time.
func (s *redisStream) LookBack(since time.Time) {
	if !s.c.OwnIDs {
		s.since = since
	}
}

func (s *redisStream) move(to streamID, added int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pos, s.added, s.set = to, added, true
}

// state is how the stream stands.
type streamState struct {
	last  streamID
	added int64 // -1: the server is older than Redis 7 and does not count
}

func (s *redisStream) state(ctx context.Context, client redis.UniversalClient) (st streamState, err error) {
	info, err := client.XInfoStream(ctx, s.c.Stream).Result()
	if err != nil {
		if strings.Contains(err.Error(), "no such key") {
			err = conn.WithClass(conn.Missing, errors.New("does not exist"))
		}
		return st, err
	}
	st.added = info.EntriesAdded
	if st.added == 0 && info.LastGeneratedID != "0-0" {
		st.added = -1
	}
	st.last, err = parseStreamID(info.LastGeneratedID)
	return st, err
}

// Run implements Sink.
func (s *redisStream) Run(ctx context.Context, f *Feed) error {
	return s.c.redisRun(ctx, "stream "+s.c.Stream, func(client redis.UniversalClient) error {
		st, err := s.state(ctx, client)
		if err != nil {
			return err
		}
		if !s.set {
			s.begin(st)
		}
		s.compare(f, st)
		f.Ready()
		var told time.Time
		for {
			n, err := s.read(ctx, client, f)
			if err != nil {
				return err
			}
			if n == 0 && s.pos.before(st.last) {
				// What was there before this reading began is not any more: it was deleted.
				f.Gap("trimmed")
				s.move(st.last, st.added)
			}
			if n == redisCount || n > 0 && time.Since(told) < redisInfo {
				continue
			}
			asked := time.Now()
			if st, err = s.state(ctx, client); err != nil {
				return err
			}
			told = asked
			if s.compare(f, st) {
				f.CaughtUp(asked)
			}
		}
	})
}

// begin finds the first position: the end, or a time in the past.
func (s *redisStream) begin(st streamState) {
	s.past = st.last
	at, added := st.last, st.added
	if !s.since.IsZero() && s.since.UnixMilli() > 0 {
		if from := (streamID{uint64(s.since.UnixMilli()) - 1, math.MaxUint64}); from.before(at) {
			at, added = from, -1
		}
	}
	s.move(at, added)
}

// compare holds what was read against how the stream stands, and reports whether all of it was read.
func (s *redisStream) compare(f *Feed, st streamState) (all bool) {
	pos, added := s.pos, s.added
	switch {
	case st.last.before(pos) || st.added >= 0 && added >= 0 && st.added < added:
		// Somebody has deleted it and made it anew, or a replica without its end has become the master.
		f.Gap("recreated")
		switch {
		case !st.last.before(pos):
			s.move(pos, -1)
			return st.last == pos
		case s.c.OwnIDs:
			s.move(streamID{}, 0)
			return false
		}
		// Ids are times: what is older than what was read was read, too.
		s.move(st.last, st.added)
	case st.last != pos:
		return false
	case st.added >= 0 && added >= 0 && st.added > added:
		// Trimmed, or deleted by a consumer, before it was read.
		f.Gap("trimmed")
	}
	s.move(pos, st.added)
	return true
}

// read delivers what there is, and waits for it for a moment.
func (s *redisStream) read(ctx context.Context, client redis.UniversalClient, f *Feed) (n int, err error) {
	answer, err := client.XRead(ctx, &redis.XReadArgs{Streams: []string{s.c.Stream, s.pos.String()}, Count: redisCount, Block: redisBlock}).Result()
	if errors.Is(err, redis.Nil) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	var body []byte
	size := 0
	for _, stream := range answer {
		for _, e := range stream.Messages {
			id, err := parseStreamID(e.ID)
			if err != nil {
				return n, err
			}
			m := Message{ID: s.identity(id), Past: !s.past.before(id)}
			if !s.c.OwnIDs {
				m.Enqueued = time.UnixMilli(int64(id.ms))
			}
			body = body[:0]
			for name, v := range e.Values {
				text, _ := v.(string)
				switch {
				case strings.EqualFold(name, heartbeatHeader):
					m.Header = []byte(text)
				case s.c.Field == "" || s.c.Field == name:
					body = append(append(body, text...), '\n')
				}
			}
			if len(body) > 0 {
				body = body[:len(body)-1]
			}
			m.Body = body
			size += len(body)
			f.Deliver(m)
			added := s.added
			if added >= 0 {
				added++
			}
			s.move(id, added)
			n++
		}
	}
	if s.pos.before(s.past) && s.pace.slow(size) {
		s.move(streamID{s.pos.ms + (s.past.ms-s.pos.ms+1)/2, 0}, -1)
	}
	return n, nil
}

// identity is the same for an entry whoever reads it; never 0.
func (s *redisStream) identity(id streamID) uint64 {
	h := fnv.New64a()
	fmt.Fprint(h, s.c.Stream, " ", id)
	return h.Sum64() | 1
}

// Backlog implements Backlogger: what each consumer group has not been given yet, and what it has and not confirmed.
func (s *redisStream) Backlog(ctx context.Context) (all []Backlog, err error) {
	err = s.c.redisCheck(func(client redis.UniversalClient) error {
		groups, err := client.XInfoGroups(ctx, s.c.Stream).Result()
		if err != nil {
			return err
		}
		for _, g := range groups {
			if len(s.c.Groups) > 0 && !slices.Contains(s.c.Groups, g.Name) {
				continue
			}
			b := Backlog{Queue: s.c.Stream, Group: g.Name, Messages: -1, Seconds: -1, Consumers: float64(g.Consumers)}
			if g.Lag >= 0 {
				b.Messages = float64(g.Lag + g.Pending)
			}
			if !s.c.OwnIDs {
				if b.Seconds, err = s.oldest(ctx, client, g); err != nil {
					return err
				}
			}
			all = append(all, b)
		}
		return nil
	})
	return all, err
}

// oldest is the age of the oldest entry that a group has not confirmed.
func (s *redisStream) oldest(ctx context.Context, client redis.UniversalClient, g redis.XInfoGroup) (float64, error) {
	first := ""
	if g.Pending > 0 {
		p, err := client.XPending(ctx, s.c.Stream, g.Name).Result()
		if err != nil {
			return -1, err
		}
		first = p.Lower
	} else {
		next, err := client.XRangeN(ctx, s.c.Stream, "("+g.LastDeliveredID, "+", 1).Result()
		if err != nil {
			return -1, err
		}
		if len(next) == 0 {
			return 0, nil
		}
		first = next[0].ID
	}
	id, err := parseStreamID(first)
	if err != nil {
		return -1, err
	}
	return max(0, time.Since(time.UnixMilli(int64(id.ms))).Seconds()), nil
}

// Check implements Checker.
func (s *redisStream) Check(ctx context.Context) error {
	return s.c.redisCheck(func(client redis.UniversalClient) error {
		_, err := s.state(ctx, client)
		if err != nil {
			return fmt.Errorf("stream %s: %w", s.c.Stream, err)
		}
		return nil
	})
}
