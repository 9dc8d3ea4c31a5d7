package sinks

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/segmentio/kafka-go/compress"

	"github.com/lag-monitor/lag-monitor/internal/conn"
)

// Backlog implements Backlogger: for each of the configured groups, and each partition of each topic that the
// group has a committed offset on or a member for, how many messages it has not committed, and for how long the
// oldest of these has been there; and once for each topic how many members the group has. It asks as an
// administrator's tool would and joins no group. What one broker cannot tell does not hide what the others
// tell: then there are both an answer and an error.
func (s *kafkaSink) Backlog(ctx context.Context) ([]Backlog, error) {
	if len(s.cfg.Groups) == 0 {
		return nil, nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // which ends every connection
	q := kafkaQuestion{s: s, ctx: ctx, conns: make(map[string]*conn.KafkaConn)}
	q.ask()
	return q.found, errors.Join(q.errs...)
}

// kafkaQuestion is one round of asking.
type kafkaQuestion struct {
	s     *kafkaSink
	ctx   context.Context
	found []Backlog

	mu    sync.Mutex
	conns map[string]*conn.KafkaConn // by address
	errs  []error
}

// kafkaBehind is where a group is on a partition.
type kafkaBehind struct {
	row       int // of the answer
	partition int32
	committed int64 // < 0: nothing is

	pos, end int64 // from where to where messages wait, once that is known
	limit    int32 // bytes to ask for
}

func (q *kafkaQuestion) fail(err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.errs = append(q.errs, fmt.Errorf("backlog: %w", err))
}

// connect returns a connection that ends with the question. Nobody else may use it at the same time.
func (q *kafkaQuestion) connect(address string) (*conn.KafkaConn, error) {
	q.mu.Lock()
	c := q.conns[address]
	q.mu.Unlock()
	if c != nil {
		return c, nil
	}
	c, err := q.s.cluster.Connect(q.ctx, address)
	if err != nil {
		return nil, err
	}
	context.AfterFunc(q.ctx, func() { c.Close() })
	q.mu.Lock()
	defer q.mu.Unlock()
	q.conns[address] = c
	return c, nil
}

// kafkaStanding is what is known of a group.
type kafkaStanding struct {
	name      string
	committed map[string]map[int32]int64
	*conn.KafkaGroup
}

// reach connects to the first of the seeds that answers. None may take all the time that there is: a host that is
// off says nothing, and its cluster is asked just then.
func (q *kafkaQuestion) reach() (*conn.KafkaConn, error) {
	seeds := q.s.cluster.Seeds()
	var errs []error
	for i, address := range seeds {
		ctx, cancel := q.ctx, context.CancelFunc(func() {})
		if end, ok := ctx.Deadline(); ok {
			ctx, cancel = context.WithTimeout(ctx, time.Until(end)/time.Duration(len(seeds)-i+1))
		}
		c, err := q.s.cluster.Connect(ctx, address)
		cancel()
		if err == nil {
			return c, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

func (q *kafkaQuestion) ask() {
	control, err := q.reach()
	if err != nil {
		q.fail(err)
		return
	}
	context.AfterFunc(q.ctx, func() { control.Close() })

	var groups []kafkaStanding
	topics := make(map[string]bool)
	for _, name := range q.s.cfg.Groups {
		g, err := q.group(control, name)
		if err != nil {
			q.fail(fmt.Errorf("group %s: %w", name, err))
			continue
		}
		groups = append(groups, g)
		for _, t := range g.topics() {
			topics[t] = true
		}
		if len(g.topics()) == 0 {
			q.row(q.s.cfg.Topic, name, "", float64(g.Members))
		}
	}
	leaders := make(map[string]map[string][]kafkaBehind) // by address and topic
	for _, topic := range slices.Sorted(maps.Keys(topics)) {
		layout, err := control.Topic(topic)
		if conn.ClassOf(err) == conn.Missing {
			continue // deleted, and the group's offsets will be
		}
		if err != nil {
			q.fail(err)
			continue
		}
		for _, g := range groups {
			q.rows(g, layout, leaders)
		}
	}
	var asking sync.WaitGroup
	for address, topics := range leaders {
		asking.Go(func() {
			if err := q.leader(address, topics); err != nil {
				q.fail(err)
			}
		})
	}
	asking.Wait()
}

// group asks where a group is, which has to come before the ends of the partitions are asked for.
func (q *kafkaQuestion) group(control *conn.KafkaConn, name string) (g kafkaStanding, err error) {
	g.name = name
	address, err := control.Coordinator(name)
	if err != nil {
		return g, err
	}
	c, err := q.connect(address)
	if err != nil {
		return g, err
	}
	if g.KafkaGroup, err = c.Group(name); err == nil {
		g.committed, err = c.Committed(name)
	}
	if conn.ClassOf(err) == conn.Network {
		q.mu.Lock()
		delete(q.conns, address) // not to be asked again
		q.mu.Unlock()
	}
	return g, err
}

// topics are those that the group reads, or has read and may go on with.
func (g *kafkaStanding) topics() []string {
	all := make(map[string]bool)
	for t := range g.committed {
		all[t] = true
	}
	for t := range g.Assigned {
		all[t] = true
	}
	return slices.Sorted(maps.Keys(all))
}

// row adds a line to the answer in which only the consumers are known, and returns its number.
func (q *kafkaQuestion) row(topic, group, partition string, consumers float64) int {
	q.found = append(q.found, Backlog{Queue: topic, Group: group, Partition: partition, Messages: -1, Seconds: -1, Consumers: consumers})
	return len(q.found) - 1
}

// rows adds the lines of a group and a topic, and what to ask the leaders for.
func (q *kafkaQuestion) rows(g kafkaStanding, layout *conn.KafkaTopic, leaders map[string]map[string][]kafkaBehind) {
	if !slices.Contains(g.topics(), layout.Name) {
		return
	}
	q.row(layout.Name, g.name, "", float64(g.Members))
	for _, p := range layout.Partitions {
		consumers := -1.0
		switch {
		case g.Assigned[layout.Name][p.ID]:
			consumers = 1
		case g.Assigned != nil:
			consumers = 0
		}
		b := kafkaBehind{partition: p.ID, committed: -1, row: q.row(layout.Name, g.name, strconv.Itoa(int(p.ID)), consumers)}
		if at, ok := g.committed[layout.Name][p.ID]; ok {
			b.committed = at
		}
		address, ok := layout.Brokers[p.Leader]
		if p.Leader < 0 || !ok {
			continue // nobody can tell at the moment
		}
		if leaders[address] == nil {
			leaders[address] = make(map[string][]kafkaBehind)
		}
		leaders[address][layout.Name] = append(leaders[address][layout.Name], b)
	}
}

// leader completes the lines of the partitions that a broker leads.
func (q *kafkaQuestion) leader(address string, topics map[string][]kafkaBehind) (err error) {
	defer conn.Contain(&err)
	c, err := q.connect(address)
	if err != nil {
		return err
	}
	var errs []error
	for _, topic := range slices.Sorted(maps.Keys(topics)) {
		waiting, err := q.ends(c, topic, topics[topic])
		if err := errors.Join(err, q.ages(c, topic, waiting)); err != nil {
			errs = append(errs, fmt.Errorf("broker %s: %w", address, err))
		}
		if q.ctx.Err() != nil {
			break
		}
	}
	return errors.Join(errs...)
}

// ends finds out how many messages wait, and returns where some do.
func (q *kafkaQuestion) ends(c *conn.KafkaConn, topic string, all []kafkaBehind) (waiting []*kafkaBehind, err error) {
	seen := make(map[int32]bool)
	for _, b := range all {
		seen[b.partition] = true
	}
	ids := slices.Sorted(maps.Keys(seen))
	committed := q.s.cfg.Isolation == kafkaCommitted
	first, err := c.Offsets(topic, committed, conn.KafkaEarliest, ids)
	if err != nil {
		return nil, err
	}
	end, err := c.Offsets(topic, committed, conn.KafkaLatest, ids)
	if err != nil {
		return nil, err
	}
	high := end
	if committed {
		// A group may read what is in an open transaction although we do not.
		if high, err = c.Offsets(topic, false, conn.KafkaLatest, ids); err != nil {
			return nil, err
		}
	}
	for i := range all {
		b := &all[i]
		f, e, h := first[b.partition], end[b.partition], high[b.partition]
		row := &q.found[b.row]
		b.pos, b.end = max(b.committed, f.Offset), e.Offset
		switch {
		case f.Code != 0 || e.Code != 0 || h.Code != 0:
			if code := cmp.Or(f.Code, e.Code, h.Code); !kafkaMoved(code) {
				err = fmt.Errorf("topic %s: partition %d: offsets: %w", topic, b.partition, conn.KafkaError(code))
			}
		case f.Offset == e.Offset && b.committed <= h.Offset:
			row.Messages, row.Seconds = 0, 0 // empty
		case b.committed < 0, b.committed > h.Offset:
			// Where it will begin is the group's own affair.
		case b.pos >= b.end:
			row.Messages, row.Seconds = 0, 0
		default:
			row.Messages = float64(b.end - b.pos)
			waiting = append(waiting, b)
		}
	}
	return waiting, err
}

// How the first waiting messages are fetched. A broker gives out whole batches only: an answer without any
// means that the limit was too low, but for the first partition of a request, where no limit counts.
const (
	kafkaAgeLimit  = 16 << 10
	kafkaAgeBytes  = 8 << 20
	kafkaAgeRounds = 32
)

// ages finds out since when the oldest of the messages waits, and corrects their number by those that were
// compacted away, aborted or are no messages at all, as far as they come before it.
func (q *kafkaQuestion) ages(c *conn.KafkaConn, topic string, waiting []*kafkaBehind) error {
	if len(waiting) == 0 {
		return nil
	}
	if _, ok := c.Version(kafkaFetchKey, kafkaFetchNames, kafkaFetchNames); !ok {
		return errors.New("the broker is too old: Kafka 2.3 or newer is needed")
	}
	for _, b := range waiting {
		b.limit = kafkaAgeLimit
	}
	scan := new(kafkaScan)
	for range kafkaAgeRounds {
		// No partition may stand in a request twice, and each group has a place of its own in it.
		var now, later []*kafkaBehind
		taken := make(map[int32]bool)
		for _, b := range waiting {
			if taken[b.partition] {
				later = append(later, b)
				continue
			}
			taken[b.partition] = true
			now = append(now, b)
		}
		if len(now) == 0 {
			return nil
		}
		left, err := q.age(c, topic, now, scan)
		if err != nil {
			return err
		}
		waiting = slices.Concat(later, left)
	}
	return nil
}

// age asks once, and returns those that are not decided yet.
func (q *kafkaQuestion) age(c *conn.KafkaConn, topic string, asked []*kafkaBehind, scan *kafkaScan) (left []*kafkaBehind, err error) {
	committed := q.s.cfg.Isolation == kafkaCommitted
	w := c.Request(kafkaFetchKey, kafkaFetchNames, false)
	w.Int32(-1)
	w.Int32(0) // what there is, at once
	w.Int32(0)
	w.Int32(kafkaAgeBytes)
	w.Bool(committed)
	w.Int32(0) // without a session
	w.Int32(-1)
	w.Array(1)
	w.String(topic)
	w.Array(len(asked))
	open := make(map[int32]*kafkaBehind, len(asked))
	for _, b := range asked {
		open[b.partition] = b
		w.Int32(b.partition)
		w.Int32(-1)
		w.Int64(b.pos)
		w.Int64(-1)
		w.Int32(b.limit)
	}
	w.Array(0)
	w.String("")
	r, _, err := c.Do(0)
	if err != nil {
		return nil, fmt.Errorf("topic %s: oldest messages: %w", topic, err)
	}
	r.Int32() // throttle
	code := r.Int16()
	r.Int32() // session
	now := time.Now()
	var failed error
	for range r.Array() {
		r.String()
		for range r.Array() {
			f := scan.fetched(&r)
			b := open[f.id]
			if r.Bad() || b == nil {
				continue
			}
			delete(open, f.id)
			if f.code != 0 {
				if !kafkaMoved(f.code) && f.code != conn.KafkaOffsetOutOfRange {
					failed = fmt.Errorf("topic %s: partition %d: oldest message: %w", topic, f.id, conn.KafkaError(f.code))
				}
				continue
			}
			first, at, next := scan.first(b.pos, f.records, committed)
			row := &q.found[b.row]
			switch {
			case first >= 0 && first < b.end:
				row.Messages = float64(b.end - first)
				if at > 0 {
					row.Seconds = max(0, now.Sub(time.UnixMilli(at)).Seconds())
				}
			case first >= 0 || next >= b.end:
				row.Messages, row.Seconds = 0, 0 // what waited was nothing for the group
			default:
				if next == b.pos {
					b.limit = min(b.limit*8, kafkaMaxPartBytes)
				}
				b.pos = next
				row.Messages = float64(b.end - b.pos)
				left = append(left, b)
			}
		}
	}
	switch {
	case r.Bad():
		return nil, fmt.Errorf("topic %s: oldest messages: answer is cut short", topic)
	case code != 0:
		return nil, fmt.Errorf("topic %s: oldest messages: %w", topic, conn.KafkaError(code))
	}
	return left, failed
}

// first looks for the first message of a set of batches at or behind pos. It returns its offset, -1 when there
// is none, its time in Unix milliseconds, 0 when that is not known, and where the complete batches end.
func (s *kafkaScan) first(pos int64, b []byte, committed bool) (offset, at, next int64) {
	s.active = s.active[:0]
	next = pos
	for len(b) >= batchHeader {
		size := int(int32(binary.BigEndian.Uint32(b[8:])))
		base := int64(binary.BigEndian.Uint64(b))
		if b[batchMagicAt] != 2 || size < batchHeader-batchOverhead {
			return max(pos, base), 0, next // the format of old, or damaged: something is there
		}
		if size > len(b)-batchOverhead {
			break
		}
		batch := b[:batchOverhead+size]
		b = b[batchOverhead+size:]
		last := base + int64(int32(binary.BigEndian.Uint32(batch[23:])))
		attrs := binary.BigEndian.Uint16(batch[21:])
		switch {
		case base < 0 || last < base:
			return pos, 0, next
		case last < pos:
			continue
		}
		visible := attrs&attrControl == 0
		if committed {
			visible = s.committed(attrs, int64(binary.BigEndian.Uint64(batch[43:])), last) && visible
		}
		if visible {
			if offset, at, ok := s.firstOf(batch, attrs, base, pos); ok {
				return offset, at, next
			}
		}
		next = last + 1
	}
	return -1, 0, next
}

// firstOf looks for the first message of a batch at or behind pos. ok is false when there is none.
func (s *kafkaScan) firstOf(batch []byte, attrs uint16, base, pos int64) (offset, at int64, ok bool) {
	body := batch[batchHeader:]
	if attrs&attrCodec != 0 {
		var err error
		if body, err = s.decompress(body, compress.Compression(attrs&attrCodec)); err != nil {
			return max(base, pos), 0, true
		}
	}
	started, newest := int64(binary.BigEndian.Uint64(batch[27:])), int64(binary.BigEndian.Uint64(batch[35:]))
	for count := int(int32(binary.BigEndian.Uint32(batch[57:]))); count > 0; count-- {
		record, rest, ok := nextRecord(body)
		if !ok {
			return max(base, pos), 0, true
		}
		body = rest
		offset := base + recordOffset(record)
		switch {
		case offset < pos:
			continue
		case attrs&attrLogAppend != 0:
			return offset, newest, true
		case started < 0: // the producer has set no time
			return offset, 0, true
		}
		return offset, started + recordTime(record), true
	}
	return 0, 0, false
}

// recordTime is how much later than its batch a record claims to be, in milliseconds.
func recordTime(record []byte) int64 {
	if len(record) < 1 {
		return 0
	}
	delta, _ := binary.Varint(record[1:]) // behind the attributes
	return delta
}
