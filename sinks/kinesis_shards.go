package sinks

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kinesis/types"
)

// A shardPosition is where reading a shard goes on. The zero value is the shard's end at the moment of
// reading (LATEST).
type shardPosition struct {
	seq     string    // after the record with this sequence number: the last one that was seen
	horizon bool      // at the oldest record that is kept
	since   time.Time // at the first record that arrived then or later, by the service's clock

	// iterator goes with since: a more exact place, as long as the service knows it (five minutes).
	iterator string
}

// String returns the form that Position hands out, and parseShardPosition reads.
func (p shardPosition) String() string {
	switch {
	case p.seq != "":
		return p.seq
	case p.horizon:
		return "TRIM_HORIZON"
	case !p.since.IsZero():
		return strings.TrimSpace("@" + strconv.FormatInt(p.since.UnixMilli(), 10) + " " + p.iterator)
	}
	return ""
}

func parseShardPosition(s string) (shardPosition, bool) {
	if s == "TRIM_HORIZON" {
		return shardPosition{horizon: true}, true
	}
	if place, ok := strings.CutPrefix(s, "@"); ok {
		ms, iterator, _ := strings.Cut(place, " ")
		n, err := strconv.ParseInt(ms, 10, 64)
		return shardPosition{since: time.UnixMilli(n), iterator: iterator}, err == nil
	}
	if s == "" || strings.Trim(s, "0123456789") != "" {
		return shardPosition{}, false
	}
	return shardPosition{seq: s}, true
}

// seqBefore compares two sequence numbers: decimal numbers of up to 128 digits without leading zeros.
func seqBefore(a, b string) bool {
	if len(a) != len(b) {
		return len(a) < len(b)
	}
	return a < b
}

type shardState int

const (
	shardWaiting  shardState = iota // its parents are not drained, or nobody reads it yet
	shardActive                     // a reader is on it
	shardFinished                   // drained, or it ended before our start
)

// A shard is one shard of the stream. Its mutable fields are guarded by the mutex of shards.
type shard struct {
	id      string
	parents []string
	first   string // its first possible sequence number; empty while not known
	closed  bool   // the list of shards gives it an end

	state    shardState
	pos      shardPosition
	caughtUp time.Time // everything that entered it before then has been delivered

	behind   time.Duration // how old the next record is, by the service's word of
	behindAt time.Time     // then; zero: nobody has said so yet
}

// shards knows which shards there are, how they descend from each other, and how far each is read. It
// does no I/O; it is safe for concurrent use.
//
// A shard that is split or merged is closed: no record enters it any more, and its children take over.
// So a child is read when its parents are drained, which keeps the order of records with the same
// key, and from its very first record, so that nothing is lost.
type shards struct {
	mu       sync.Mutex
	begun    bool
	all      map[string]*shard
	resume   map[string]string
	scanned  time.Time // when caughtUp last looked at all shards
	lastHeld time.Time // what it found
}

// update takes in the list of all shards of the stream. The first list decides by start where to begin,
// where no position was resumed. It returns the reason when records may have been missed.
func (s *shards) update(listed []types.Shard, start shardPosition) (gap string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.begun {
		s.begun = true
		s.all = make(map[string]*shard, len(listed))
		return s.begin(listed, start)
	}
	present := make(map[string]bool, len(listed))
	for _, l := range listed {
		id := aws.ToString(l.ShardId)
		present[id] = true
		known := s.all[id]
		first, open := shardRange(l)
		if known == nil {
			s.add(l)
			continue
		}
		// Ids count from 0 in each stream, sequence numbers contain the time: the same id with another
		// first number is a shard of another stream with the same name.
		if known.first != "" && first != "" && known.first != first {
			for _, old := range s.all {
				old.state = shardFinished
			}
			clear(s.all)
			for _, l := range listed {
				s.add(l)
			}
			return "recreated"
		}
		known.first, known.closed = first, !open
		if len(known.parents) == 0 {
			known.parents = shardParents(l)
		}
	}
	for id, sh := range s.all {
		if present[id] {
			continue
		}
		// The service forgets a closed shard when its last record has expired.
		if sh.state != shardFinished {
			gap = "trimmed"
		}
		delete(s.all, id)
		sh.state = shardFinished
	}
	return gap
}

// fresh reports whether nothing says yet where to read.
func (s *shards) fresh() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.begun && len(s.resume) == 0
}

// only finishes the closed shards that are not among the given ones: they were closed before the time at
// which reading begins.
func (s *shards) only(young []types.Shard) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, sh := range s.all {
		if sh.closed && !slices.ContainsFunc(young, func(l types.Shard) bool { return aws.ToString(l.ShardId) == id }) {
			sh.state = shardFinished
		}
	}
}

// begin applies the first list.
func (s *shards) begin(listed []types.Shard, start shardPosition) (gap string) {
	byID := make(map[string]types.Shard, len(listed))
	resumed := false
	for _, l := range listed {
		id := aws.ToString(l.ShardId)
		byID[id] = l
		_, ok := s.resume[id]
		resumed = resumed || ok
	}
	// descends reports whether a shard comes after one that has a position.
	var descends func(l types.Shard, depth int) bool
	descends = func(l types.Shard, depth int) bool {
		for _, parent := range shardParents(l) {
			if _, ok := s.resume[parent]; ok {
				return true
			}
			if p, ok := byID[parent]; ok && depth > 0 && descends(p, depth-1) {
				return true
			}
		}
		return false
	}
	for _, l := range listed {
		sh := s.add(l)
		first, open := shardRange(l)
		pos, ok := parseShardPosition(s.resume[sh.id])
		switch {
		case ok && pos.seq != "" && seqBefore(pos.seq, first):
			gap = "recreated" // the position is one of an earlier stream with this name
		case ok:
			sh.pos = pos
		case len(s.resume) > 0 && descends(l, len(listed)):
			// From its first record, as any child.
		case resumed && !open:
			sh.state = shardFinished // it was drained before the position was saved
		case resumed:
			// What came between it and the saved positions has expired.
			gap = "trimmed"
			sh.pos = start
		case start.horizon:
		case !start.since.IsZero():
			sh.pos = start
		case open:
			sh.pos = shardPosition{}
		default:
			sh.state = shardFinished
		}
	}
	s.resume = nil
	return gap
}

// add makes a shard that is to be read from its first record. It needs s.mu.
func (s *shards) add(l types.Shard) *shard {
	first, open := shardRange(l)
	sh := &shard{id: aws.ToString(l.ShardId), parents: shardParents(l), first: first, closed: !open, pos: shardPosition{horizon: true}}
	s.all[sh.id] = sh
	return sh
}

func shardParents(l types.Shard) (ids []string) {
	for _, p := range []*string{l.ParentShardId, l.AdjacentParentShardId} {
		if aws.ToString(p) != "" {
			ids = append(ids, *p)
		}
	}
	return ids
}

func shardRange(l types.Shard) (first string, open bool) {
	if l.SequenceNumberRange == nil {
		return "", true
	}
	return aws.ToString(l.SequenceNumberRange.StartingSequenceNumber), l.SequenceNumberRange.EndingSequenceNumber == nil
}

// children takes in what the last answer of a closed shard says of its children.
func (s *shards) children(of []types.ChildShard) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range of {
		id := aws.ToString(c.ShardId)
		if id == "" || s.all[id] != nil {
			continue
		}
		s.all[id] = &shard{id: id, parents: slices.Clone(c.ParentShards), pos: shardPosition{horizon: true}}
	}
}

// finish notes that a shard is drained. Its children must be known by then, so that caughtUp does not
// overlook them.
func (s *shards) finish(sh *shard) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sh.state = shardFinished
}

// finished reports whether the shard is drained or gone.
func (s *shards) finished(sh *shard) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return sh.state == shardFinished
}

// isClosed reports whether the list of shards gives the shard an end.
func (s *shards) isClosed(sh *shard) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return sh.closed
}

// rewind notes that no shard has a reader.
func (s *shards) rewind() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sh := range s.all {
		if sh.state == shardActive {
			sh.state = shardWaiting
		}
	}
}

// take returns the shards that can be read now and have no reader, sorted, and expects the caller to
// start one on each. A parent that is not known has expired and holds nobody up.
func (s *shards) take() []*shard {
	s.mu.Lock()
	defer s.mu.Unlock()
	var ready []*shard
	for _, sh := range s.all {
		if sh.state != shardWaiting {
			continue
		}
		if slices.ContainsFunc(sh.parents, func(id string) bool {
			p := s.all[id]
			return p != nil && p.state != shardFinished
		}) {
			continue
		}
		ready = append(ready, sh)
	}
	for _, sh := range ready {
		sh.state = shardActive
	}
	slices.SortFunc(ready, func(a, b *shard) int { return strings.Compare(a.id, b.id) })
	return ready
}

// at returns the shard's position.
func (s *shards) at(sh *shard) shardPosition {
	s.mu.Lock()
	defer s.mu.Unlock()
	return sh.pos
}

// move sets the shard's position.
func (s *shards) move(sh *shard, pos shardPosition) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sh.pos = pos
}

// behindKnown is for how long the service's word on how far a shard's reader is behind counts.
const behindKnown = 30 * time.Second

// lags notes how far the reader of a shard is behind; nil: the service has not said.
func (s *shards) lags(sh *shard, millis *int64, now time.Time) {
	if millis == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	sh.behind, sh.behindAt = time.Duration(*millis)*time.Millisecond, now
}

// backlog tells how far the readers are behind, by shard, sorted, as far as that is known of late.
func (s *shards) backlog(queue, group string, now time.Time) (all []Backlog) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(s.all)) {
		if sh := s.all[id]; sh.state == shardActive && !sh.behindAt.IsZero() && now.Sub(sh.behindAt) < behindKnown {
			all = append(all, Backlog{Queue: queue, Group: group, Partition: id, Messages: -1, Seconds: sh.behind.Seconds(), Consumers: -1})
		}
	}
	return all
}

// caughtUp notes that everything which entered the shard before t has been delivered, and returns up to
// when that holds for the whole stream: the earliest of all shards that are not finished, also of
// those which wait for a parent. It is zero while one of them has not caught up yet.
func (s *shards) caughtUp(sh *shard, t, now time.Time) time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t.After(sh.caughtUp) {
		sh.caughtUp = t
	}
	// With hundreds of shards there are hundreds of answers a second, each of which would look at
	// hundreds of shards.
	if len(s.all) > 32 && now.Sub(s.scanned) < 50*time.Millisecond {
		return s.lastHeld
	}
	s.scanned = now
	var held time.Time
	for _, other := range s.all {
		if other.state == shardFinished {
			continue
		}
		if other.caughtUp.IsZero() {
			s.lastHeld = time.Time{}
			return s.lastHeld
		}
		if held.IsZero() || other.caughtUp.Before(held) {
			held = other.caughtUp
		}
	}
	s.lastHeld = held
	return held
}

// positions returns the position of every shard that is not finished.
func (s *shards) positions() map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.begun {
		return maps.Clone(s.resume)
	}
	out := make(map[string]string, len(s.all))
	for id, sh := range s.all {
		if p := sh.pos.String(); p != "" && sh.state != shardFinished {
			out[id] = p
		}
	}
	return out
}
