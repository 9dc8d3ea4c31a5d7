package probe

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/lag-monitor/lag-monitor/internal/conn"
)

// Kafka injects into a topic: at every tick one heartbeat into every partition, unless told
// otherwise. A heartbeat is accepted when all in-sync replicas have it; nothing is sent twice.
type Kafka struct {
	conn.Kafka `yaml:",inline"`
	// Topic to inject into. It is never created.
	Topic string `yaml:"topic"`
	// Body of the message.
	Body Template `yaml:"body"`
	// Key of the message; default: none.
	Key Template `yaml:"key,omitempty"`
	// Headers of the message, beside lag-monitor-heartbeat and traceparent.
	Headers map[string]Template `yaml:"headers,omitempty"`
	// Partition is all (each one is a lane), the number of one, or by_key (that which a producer would
	// choose for the key).
	Partition string `yaml:"partition"`
	// Partitioner says how producers of this topic choose a partition by key: murmur2 (Java and most
	// others), crc32 (librdkafka's default), fnv1a (Sarama).
	Partitioner string `yaml:"partitioner"`
}

const (
	kafkaAll   = "all"
	kafkaByKey = "by_key"
)

// kafkaPartitioners choose a partition by key as the producers do that the names stand for.
func kafkaPartitioners() map[string]kafka.Balancer {
	return map[string]kafka.Balancer{
		"murmur2": kafka.Murmur2Balancer{Consistent: true},
		"crc32":   kafka.CRC32Balancer{Consistent: true},
		"fnv1a":   &kafka.ReferenceHash{},
	}
}

// NewKafka returns the defaults.
func NewKafka() *Kafka {
	return &Kafka{Kafka: conn.NewKafka(), Body: MustTemplate(DefaultBody), Partition: kafkaAll, Partitioner: "murmur2"}
}

// partition returns the number that is configured, -1 when it is none.
func (k *Kafka) partition() (int32, error) {
	if k.Partition == kafkaAll || k.Partition == kafkaByKey {
		return -1, nil
	}
	n, err := strconv.ParseInt(k.Partition, 10, 32)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("%q is not a partition: use all, by_key or a number", k.Partition)
	}
	return int32(n), nil
}

// Validate reports all mistakes.
func (k *Kafka) Validate() error {
	errs := []error{k.Kafka.Validate()}
	if k.Topic == "" {
		errs = append(errs, conn.Field("topic", "the topic to inject into is missing"))
	}
	if _, err := k.partition(); err != nil {
		errs = append(errs, conn.Field("partition", "%w", err))
	}
	if k.Partition == kafkaByKey && k.Key.IsZero() {
		errs = append(errs, conn.Field("key", "partition: by_key needs a key"))
	}
	if known := kafkaPartitioners(); known[k.Partitioner] == nil {
		errs = append(errs, conn.Field("partitioner", "%q is not a partitioner: use one of %v", k.Partitioner, slices.Sorted(maps.Keys(known))))
	}
	for field, t := range map[string]Template{"body": k.Body, "key": k.Key} {
		if _, err := t.Render(Sample()); err != nil {
			errs = append(errs, conn.Field(field, "%w", err))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(k.Headers)) {
		switch _, err := k.Headers[name].Render(Sample()); {
		case err != nil:
			errs = append(errs, conn.Field("headers."+name, "%w", err))
		case name == "" || name == Header || name == TraceHeader:
			errs = append(errs, conn.Field("headers."+name, "this header is set by lag-monitor itself, or has no name"))
		}
	}
	return errors.Join(errs...)
}

// Open makes the injector.
func (k *Kafka) Open() (Injector, error) {
	cluster, err := k.Cluster()
	if err != nil {
		return nil, err
	}
	in := &kafkaInjector{
		cfg: *k, cluster: cluster, balancer: kafkaPartitioners()[k.Partitioner],
		senders: make(map[int32]*kafkaSender), asking: make(chan struct{}, 1), headers: slices.Sorted(maps.Keys(k.Headers)),
	}
	if in.fixed, err = k.partition(); err != nil {
		return nil, conn.Field("partition", "%w", err)
	}
	in.ctx, in.cancel = context.WithCancel(context.Background())
	return in, nil
}

type kafkaInjector struct {
	cfg      Kafka
	cluster  *conn.KafkaCluster
	balancer kafka.Balancer
	fixed    int32 // the only partition; < 0: all, or by key
	headers  []string

	ctx    context.Context // ends with Close
	cancel context.CancelFunc

	asking chan struct{} // has room for the one who asks for the layout

	mu      sync.Mutex
	topic   *kafkaLayout
	stale   bool
	senders map[int32]*kafkaSender
}

// kafkaLayout is the topic as of some moment.
type kafkaLayout struct {
	*conn.KafkaTopic
	leaders map[int32]int32 // of each partition; -1: none
	ids     []int           // ascending
}

// layout returns the topic's layout, asked for anew when fresh is wanted or when a sender has met an
// error that a new one may explain.
func (in *kafkaInjector) layout(ctx context.Context, fresh bool) (*kafkaLayout, error) {
	known := func() *kafkaLayout {
		in.mu.Lock()
		defer in.mu.Unlock()
		if in.stale {
			return nil
		}
		return in.topic
	}
	if l := known(); l != nil && !fresh {
		return l, nil
	}
	select {
	case in.asking <- struct{}{}:
		defer func() { <-in.asking }()
	case <-ctx.Done():
		return nil, fmt.Errorf("topic %s: layout not known: %w", in.cfg.Topic, ctx.Err())
	}
	if l := known(); l != nil && !fresh {
		return l, nil // another one has asked meanwhile
	}
	addresses := in.cluster.Seeds()
	in.mu.Lock()
	if in.topic != nil {
		addresses = append(slices.Clone(addresses), in.topic.Addresses()...)
	}
	in.mu.Unlock()
	c, err := in.cluster.Any(ctx, addresses...)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	t, err := c.Topic(in.cfg.Topic)
	if err != nil {
		return nil, err
	}
	l := &kafkaLayout{KafkaTopic: t, leaders: make(map[int32]int32, len(t.Partitions))}
	for _, p := range t.Partitions {
		l.leaders[p.ID] = p.Leader
		l.ids = append(l.ids, int(p.ID))
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	in.topic, in.stale = l, false
	return l, nil
}

func (in *kafkaInjector) suspect() {
	in.mu.Lock()
	in.stale = true
	in.mu.Unlock()
}

// sender returns the sender to a broker.
func (in *kafkaInjector) sender(id int32, address string) *kafkaSender {
	in.mu.Lock()
	defer in.mu.Unlock()
	s := in.senders[id]
	if s == nil || s.address != address {
		if s != nil {
			s.close()
		}
		s = &kafkaSender{in: in, address: address}
		in.senders[id] = s
	}
	return s
}

// Lanes returns the partitions.
func (in *kafkaInjector) Lanes(ctx context.Context) ([]uint32, error) {
	if in.cfg.Partition == kafkaByKey {
		return []uint32{0}, nil
	}
	l, err := in.layout(ctx, true)
	if err != nil {
		return nil, err
	}
	if in.fixed >= 0 {
		if _, ok := l.leaders[in.fixed]; !ok {
			return nil, in.noPartition(l)
		}
		return []uint32{uint32(in.fixed)}, nil
	}
	lanes := make([]uint32, len(l.ids))
	for i, id := range l.ids {
		lanes[i] = uint32(id)
	}
	return lanes, nil
}

func (in *kafkaInjector) noPartition(l *kafkaLayout) error {
	return conn.WithClass(conn.Missing, fmt.Errorf("topic %s: partition %d does not exist: there are %d", in.cfg.Topic, in.fixed, len(l.ids)))
}

// Check reaches a broker and looks for the topic and the partition.
func (in *kafkaInjector) Check(ctx context.Context) error {
	l, err := in.layout(ctx, true)
	if err != nil {
		return err
	}
	if _, ok := l.leaders[in.fixed]; in.fixed >= 0 && !ok {
		return in.noPartition(l)
	}
	return nil
}

// Inject sends one heartbeat.
func (in *kafkaInjector) Inject(ctx context.Context, m *Message) error {
	var errs [1]error
	in.InjectBatch(ctx, []*Message{m}, errs[:])
	return errs[0]
}

// InjectBatch sends the heartbeats with one request to each broker.
func (in *kafkaInjector) InjectBatch(ctx context.Context, ms []*Message, errs []error) {
	clear(errs)
	refuse := func(err error) {
		for i := range errs {
			errs[i] = Refused(err)
		}
	}
	l, err := in.layout(ctx, false)
	if err != nil {
		refuse(err)
		return
	}
	batch := kafkaBatches.Get().(*kafkaBatch)
	defer batch.free()
	for i, m := range ms {
		partition, record, err := in.render(batch, l, m)
		if err != nil {
			errs[i] = Refused(err)
			continue
		}
		leader, ok := l.leaders[partition]
		address := l.Brokers[leader]
		if !ok || leader < 0 || address == "" {
			in.suspect()
			errs[i] = Refused(conn.WithClass(conn.Missing, fmt.Errorf("topic %s: partition %d has no leader", in.cfg.Topic, partition)))
			continue
		}
		batch.entries = append(batch.entries, kafkaEntry{partition: partition, leader: leader, record: record, sent: m.Sent, err: &errs[i]})
	}
	slices.SortStableFunc(batch.entries, func(a, b kafkaEntry) int { return int(a.leader) - int(b.leader) })
	var others sync.WaitGroup
	for rest := batch.entries; len(rest) > 0; {
		n := 1
		for n < len(rest) && rest[n].leader == rest[0].leader {
			n++
		}
		group := rest[:n]
		rest = rest[n:]
		s := in.sender(group[0].leader, l.Brokers[group[0].leader])
		if len(rest) > 0 {
			others.Go(func() { s.send(ctx, group) })
		} else {
			s.send(ctx, group) // the last one, which is usually the only one, in this goroutine
		}
	}
	others.Wait()
}

// kafkaEntry is one heartbeat on its way. record is key, value and headers of a record of format v2;
// what comes before them depends on the batch it ends up in.
type kafkaEntry struct {
	partition, leader int32
	record            []byte
	sent              time.Time
	err               *error
}

// kafkaBatch is the scratch space of one InjectBatch.
type kafkaBatch struct {
	entries []kafkaEntry
	records []byte // all records, one behind the other
	part    []byte // a key or a value before its length is known
}

var kafkaBatches = sync.Pool{New: func() any { return new(kafkaBatch) }}

func (b *kafkaBatch) free() {
	clear(b.entries)
	b.entries, b.records, b.part = b.entries[:0], b.records[:0], b.part[:0]
	if cap(b.records) <= 1<<20 {
		kafkaBatches.Put(b)
	}
}

// render makes the record of a heartbeat and chooses its partition.
func (in *kafkaInjector) render(b *kafkaBatch, l *kafkaLayout, m *Message) (partition int32, record []byte, err error) {
	start := len(b.records)
	out := b.records
	partition = in.fixed
	if b.part, err = in.cfg.Key.Append(b.part[:0], m); err != nil {
		return 0, nil, fmt.Errorf("key: %w", err)
	}
	switch {
	case in.cfg.Partition == kafkaByKey:
		partition = int32(in.balancer.Balance(kafka.Message{Key: b.part}, l.ids...))
	case partition < 0:
		partition = int32(m.Lane)
	}
	if in.cfg.Key.IsZero() {
		out = binary.AppendVarint(out, -1)
	} else {
		out = appendKafkaBytes(out, b.part)
	}
	if b.part, err = in.cfg.Body.Append(b.part[:0], m); err != nil {
		return 0, nil, fmt.Errorf("body: %w", err)
	}
	out = appendKafkaBytes(out, b.part)
	out = binary.AppendVarint(out, int64(2+len(in.headers)))
	out = appendKafkaString(appendKafkaString(out, Header), m.Token)
	out = appendKafkaString(appendKafkaString(out, TraceHeader), m.TraceParent)
	for _, name := range in.headers {
		if b.part, err = in.cfg.Headers[name].Append(b.part[:0], m); err != nil {
			return 0, nil, fmt.Errorf("header %s: %w", name, err)
		}
		out = appendKafkaBytes(appendKafkaString(out, name), b.part)
	}
	b.records = out
	return partition, out[start:len(out):len(out)], nil
}

func appendKafkaBytes(dst, b []byte) []byte {
	return append(binary.AppendVarint(dst, int64(len(b))), b...)
}

func appendKafkaString(dst []byte, s string) []byte {
	return append(binary.AppendVarint(dst, int64(len(s))), s...)
}

// Close ends the connections, and requests that are still on their way.
func (in *kafkaInjector) Close() error {
	in.cancel()
	in.mu.Lock()
	defer in.mu.Unlock()
	for _, s := range in.senders {
		s.close()
	}
	return nil
}

// kafkaSender sends to one broker over one connection, one request at a time. Heartbeats that come
// while one is on its way go together with the next, without any wait of their own.
type kafkaSender struct {
	in      *kafkaInjector
	address string

	mu     sync.Mutex
	busy   bool
	closed bool
	queue  []*kafkaCall
	conn   *conn.KafkaConn // guarded by busy, except to close it
}

// kafkaCall is what one caller wants sent. A caller that has to wait leaves a copy in the queue, so
// that it can go away when its context ends although somebody else is sending the copy.
type kafkaCall struct {
	entries []kafkaEntry
	errs    []error       // of the copied entries
	ready   chan struct{} // closed when errs are set, or when it is the caller's turn to send
	turn    bool
}

func newKafkaCall(entries []kafkaEntry) *kafkaCall {
	c := &kafkaCall{entries: slices.Clone(entries), errs: make([]error, len(entries)), ready: make(chan struct{})}
	for i := range c.entries {
		c.entries[i].record = slices.Clone(c.entries[i].record)
		c.entries[i].err = &c.errs[i]
	}
	return c
}

var errKafkaClosed = errors.New("the injector is closed")

func (s *kafkaSender) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	if s.conn != nil {
		s.conn.Close()
	}
}

// send sends the entries and sets their errors.
func (s *kafkaSender) send(ctx context.Context, entries []kafkaEntry) {
	s.mu.Lock()
	if s.busy {
		call := newKafkaCall(entries)
		s.queue = append(s.queue, call)
		s.mu.Unlock()
		if !s.await(ctx, call, entries) {
			return
		}
		s.mu.Lock()
	}
	s.busy = true
	others := s.queue // everything that waits goes along
	s.queue = nil
	s.mu.Unlock()

	calls := append([]*kafkaCall{{entries: entries}}, others...)
	err := func() (err error) {
		defer conn.Contain(&err) // the caller may be a goroutine of InjectBatch, whose panic nobody else could contain
		s.exchange(ctx, calls)
		return nil
	}()

	s.mu.Lock()
	if err != nil {
		s.fail(calls, true, err)
		if s.conn != nil {
			s.conn.Close()
			s.conn = nil
		}
	}
	for _, c := range others {
		close(c.ready)
	}
	s.next()
	s.mu.Unlock()
}

// next hands the connection to the first that waits, or frees it. The caller holds s.mu.
func (s *kafkaSender) next() {
	if len(s.queue) == 0 {
		s.busy = false
		return
	}
	first := s.queue[0]
	s.queue = s.queue[1:]
	first.turn = true
	close(first.ready)
}

// await waits until somebody else has sent the call, or it is this one's turn (true), or ctx ends.
// Unless it is this one's turn the errors of the entries are set.
func (s *kafkaSender) await(ctx context.Context, call *kafkaCall, entries []kafkaEntry) (turn bool) {
	give := func(err func(i int) error) {
		for i := range entries {
			*entries[i].err = err(i)
		}
	}
	sent := func(i int) error { return call.errs[i] }
	unsent := func(int) error {
		return Refused(fmt.Errorf("topic %s: not sent: %w", s.in.cfg.Topic, context.Cause(ctx)))
	}
	select {
	case <-call.ready:
		if !call.turn {
			give(sent)
		}
		return call.turn
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.Index(s.queue, call); i >= 0 {
		s.queue = slices.Delete(s.queue, i, i+1)
		give(unsent)
		return false
	}
	select {
	case <-call.ready:
		if call.turn {
			s.next()
			give(unsent)
		} else {
			give(sent)
		}
	default:
		give(func(int) error {
			return fmt.Errorf("topic %s: broker %s: no answer: %w", s.in.cfg.Topic, s.address, context.Cause(ctx))
		})
	}
	return false
}

// fail sets the errors of all entries. What may have been sent is not refused.
func (s *kafkaSender) fail(calls []*kafkaCall, sent bool, err error) {
	err = fmt.Errorf("topic %s: broker %s: %w", s.in.cfg.Topic, s.address, err)
	if !sent {
		err = Refused(err)
	}
	for _, c := range calls {
		for _, e := range c.entries {
			*e.err = err
		}
	}
}

// exchange sends the calls in one request and sets the errors of all entries.
func (s *kafkaSender) exchange(ctx context.Context, calls []*kafkaCall) {
	c, err := s.connection(ctx)
	if err != nil {
		s.in.suspect()
		s.fail(calls, false, err)
		return
	}
	stop := context.AfterFunc(ctx, func() { c.Close() })
	sent, err := s.produce(c, calls)
	stopped := stop()
	if err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("no answer: %w", ctx.Err())
		}
		s.in.suspect()
		s.fail(calls, sent, err)
	}
	if err != nil || !stopped || c.Expired() {
		s.mu.Lock()
		s.conn = nil
		s.mu.Unlock()
		c.Close()
	}
}

func (s *kafkaSender) connection(ctx context.Context) (*conn.KafkaConn, error) {
	s.mu.Lock()
	c, closed := s.conn, s.closed
	s.mu.Unlock()
	if closed {
		return nil, errKafkaClosed
	}
	if c != nil {
		if c.Alive() {
			return c, nil
		}
		c.Close()
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.in.ctx, cancel)()
	c, err := s.in.cluster.Connect(ctx, s.address)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conn = c
	if err == nil && s.closed {
		c.Close()
		err = errKafkaClosed
	}
	if err != nil {
		s.conn = nil
	}
	return s.conn, err
}

// Produce v3 to v8 are spoken: Kafka 1.0 and later, 4.x included.
const kafkaProduceKey = 0

// produce makes one exchange with the broker.
func (s *kafkaSender) produce(c *conn.KafkaConn, calls []*kafkaCall) (sent bool, err error) {
	v, ok := c.Version(kafkaProduceKey, 3, 8)
	if !ok {
		return false, errors.New("the broker speaks no common version of Produce")
	}
	total := 0
	for _, call := range calls {
		total += len(call.entries)
	}
	w := c.Request(kafkaProduceKey, v, false)
	w.Null()    // no transaction
	w.Int16(-1) // all in-sync replicas
	// The broker gives up before we do, so that it can say so.
	w.Int32(int32(time.Duration(s.in.cfg.Timeout) * 9 / 10 / time.Millisecond))
	w.Array(1)
	w.String(s.in.cfg.Topic)
	// A partition may stand in a request once, so several heartbeats for the same one share a batch.
	all := make([]*kafkaEntry, 0, total)
	for _, call := range calls {
		for i := range call.entries {
			all = append(all, &call.entries[i])
		}
	}
	slices.SortStableFunc(all, func(a, b *kafkaEntry) int { return int(a.partition) - int(b.partition) })
	partitions := 0
	for i, e := range all {
		if i == 0 || e.partition != all[i-1].partition {
			partitions++
		}
	}
	w.Array(partitions)
	buf := w.Buffer()
	for i := 0; i < len(all); {
		n := i + 1
		for n < len(all) && all[n].partition == all[i].partition {
			n++
		}
		buf = binary.BigEndian.AppendUint32(buf, uint32(all[i].partition))
		buf = appendKafkaBatch(buf, all[i:n])
		i = n
	}
	w.SetBuffer(buf)
	r, sent, err := c.Do(0)
	if err != nil {
		return sent, err
	}
	done := 0
	for range r.Array() {
		r.String()
		for range r.Array() {
			partition, code, offset := r.Int32(), r.Int16(), r.Int64()
			r.Int64() // log append time
			if v >= 5 {
				r.Int64() // start of the log
			}
			var text []byte
			if v >= 8 {
				for range r.Array() {
					r.Int32()
					text = r.String()
				}
				if t := r.String(); len(t) > 0 {
					text = t
				}
			}
			if r.Bad() {
				return true, errors.New("produce answer is cut short")
			}
			at, ok := slices.BinarySearchFunc(all, partition, func(e *kafkaEntry, p int32) int { return int(e.partition) - int(p) })
			if !ok {
				continue
			}
			err := s.outcome(partition, code, offset, text)
			for ; at < len(all) && all[at].partition == partition; at++ {
				*all[at].err = err
				done++
			}
		}
	}
	if r.Bad() || done != len(all) {
		return true, fmt.Errorf("produce answer speaks of %d messages instead of %d", done, len(all))
	}
	return true, nil
}

// outcome says what the answer for a partition means.
func (s *kafkaSender) outcome(partition int32, code int16, offset int64, text []byte) error {
	err := conn.KafkaError(code)
	if err == nil {
		return nil
	}
	s.in.suspect()
	if len(text) > 0 {
		err = fmt.Errorf("%w: %s", err, text)
	}
	err = fmt.Errorf("topic %s: partition %d: %w", s.in.cfg.Topic, partition, err)
	if kafkaNotWritten(code, offset) {
		return Refused(err)
	}
	return err
}

// kafkaNotWritten reports that a broker which answers with this error has not appended the message.
func kafkaNotWritten(code int16, offset int64) bool {
	switch code {
	case 2, 10, 17, 18, 19, 29, 31, 32, 35, 43, 44, 87, conn.KafkaThrottling:
		// Checked before the log is touched: damaged, too large, an invalid topic, too few replicas, not
		// authorized, an unwanted time or version, against a policy, invalid, over the quota.
		return true
	case -1, conn.KafkaRequestTimedOut, conn.KafkaNotEnoughAfter:
		return false
	}
	// Of the others some come both before the message is appended and, when the leader changes, while
	// it waits for its replicas. A broker that has appended it tells where, along with the error.
	return offset < 0
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// appendKafkaBatch appends the entries of one partition as a record batch of format v2 with its
// length in front, uncompressed.
func appendKafkaBatch(dst []byte, entries []*kafkaEntry) []byte {
	start := len(dst)
	dst = append(dst, make([]byte, 4+61)...)
	first, newest := entries[0].sent.UnixMilli(), entries[0].sent.UnixMilli()
	for i, e := range entries {
		at := e.sent.UnixMilli()
		newest = max(newest, at)
		var delta [1 + 2*binary.MaxVarintLen64]byte
		head := binary.AppendVarint(delta[:1], at-first)
		head = binary.AppendVarint(head, int64(i))
		dst = binary.AppendVarint(dst, int64(len(head)+len(e.record)))
		dst = append(dst, head...)
		dst = append(dst, e.record...)
	}
	be := binary.BigEndian
	be.PutUint32(dst[start:], uint32(len(dst)-start-4))
	b := dst[start+4:]
	be.PutUint32(b[8:], uint32(len(b)-12))
	be.PutUint32(b[12:], ^uint32(0)) // leader epoch: the broker's to fill in
	b[16] = 2
	be.PutUint32(b[23:], uint32(len(entries)-1))
	be.PutUint64(b[27:], uint64(first))
	be.PutUint64(b[35:], uint64(newest))
	be.PutUint64(b[43:], ^uint64(0)) // no producer id, epoch or sequence
	be.PutUint16(b[51:], ^uint16(0))
	be.PutUint32(b[53:], ^uint32(0))
	be.PutUint32(b[57:], uint32(len(entries)))
	be.PutUint32(b[17:], crc32.Checksum(b[21:], castagnoli))
	return dst
}
