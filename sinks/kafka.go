package sinks

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/conn"
)

// Kafka listens on a topic: on every partition, without a consumer group, so that nobody's offsets
// are touched. It reads from each broker over one connection, all partitions in one request.
type Kafka struct {
	conn.Kafka `yaml:",inline"`
	// Topic to listen on.
	Topic string `yaml:"topic"`
	// Partitions to listen on; default: all, also those that are added later.
	Partitions []int32 `yaml:"partitions,omitempty"`
	// Start is where to begin when there is no position yet: latest, earliest, or a duration to look
	// back, such as 10m.
	Start string `yaml:"start"`
	// Isolation is read_uncommitted or read_committed: set it as the consumers of the topic do, since a
	// transaction that stays open holds back those with read_committed only.
	Isolation string `yaml:"isolation"`
	// Resolution lets the broker gather up to 1 MB of messages for this long before it answers, at most
	// 1s: that much is added to what is measured, and a busy topic costs a fraction to watch. 0: every
	// message at once.
	Resolution conn.Duration `yaml:"resolution"`
	// MaxBytes is how much to read in one answer. A larger batch of messages is read nevertheless.
	MaxBytes int32 `yaml:"max_bytes"`
	// MetadataRefresh is how often to look for new partitions and for a topic that was re-created.
	MetadataRefresh conn.Duration `yaml:"metadata_refresh"`
	// Groups are the consumer groups whose backlog is told, on all topics that they read.
	Groups []string `yaml:"groups,omitempty"`
}

const (
	kafkaLatest      = "latest"
	kafkaEarliest    = "earliest"
	kafkaUncommitted = "read_uncommitted"
	kafkaCommitted   = "read_committed"

	// kafkaMaxWait is how long a broker holds a request when nothing arrives: short enough to prove at
	// least once a second that the sink has caught up.
	kafkaMaxWait = 500 * time.Millisecond
)

// NewKafka returns the defaults.
func NewKafka() *Kafka {
	return &Kafka{
		Kafka:           conn.NewKafka(),
		Start:           kafkaLatest,
		Isolation:       kafkaUncommitted,
		MaxBytes:        1 << 20,
		MetadataRefresh: conn.Duration(30 * time.Second),
	}
}

// Validate reports all mistakes.
func (k *Kafka) Validate() error {
	errs := []error{k.Kafka.Validate()}
	if k.Topic == "" {
		errs = append(errs, conn.Field("topic", "the topic to listen on is missing"))
	}
	seen := make(map[int32]bool)
	for i, p := range k.Partitions {
		if p < 0 || seen[p] {
			errs = append(errs, conn.Field(fmt.Sprintf("partitions[%d]", i), "%d is not a partition, or named twice", p))
		}
		seen[p] = true
	}
	for i, g := range k.Groups {
		if g == "" || slices.Contains(k.Groups[:i], g) {
			errs = append(errs, conn.Field(fmt.Sprintf("groups[%d]", i), "%q is not a group, or named twice", g))
		}
	}
	if _, err := k.start(); err != nil {
		errs = append(errs, conn.Field("start", "%q is not a start: use latest, earliest, or a duration to look back such as 10m", k.Start))
	}
	if k.Isolation != kafkaUncommitted && k.Isolation != kafkaCommitted {
		errs = append(errs, conn.Field("isolation", "%q is not an isolation: use read_uncommitted or read_committed", k.Isolation))
	}
	if k.Resolution < 0 || k.Resolution > conn.Duration(time.Second) {
		errs = append(errs, conn.Field("resolution", "must be from 0 to 1s"))
	}
	if k.MaxBytes < 1<<10 || k.MaxBytes > 64<<20 {
		errs = append(errs, conn.Field("max_bytes", "must be from 1024 to 67108864"))
	}
	if k.MetadataRefresh < conn.Duration(100*time.Millisecond) {
		errs = append(errs, conn.Field("metadata_refresh", "must be at least 100ms"))
	}
	return errors.Join(errs...)
}

// start returns how far to look back, or one of the special times.
func (k *Kafka) start() (int64, error) {
	switch k.Start {
	case kafkaLatest:
		return conn.KafkaLatest, nil
	case kafkaEarliest:
		return conn.KafkaEarliest, nil
	}
	d, err := conn.ParseDuration(k.Start)
	if err != nil || d <= 0 {
		return 0, errors.New("not a duration to look back")
	}
	return time.Now().Add(-d).UnixMilli(), nil
}

// Open makes the sink.
func (k *Kafka) Open() (Sink, error) {
	cluster, err := k.Cluster()
	if err != nil {
		return nil, err
	}
	return &kafkaSink{cfg: *k, cluster: cluster, parts: make(map[int32]*kafkaPart)}, nil
}

type kafkaSink struct {
	cfg     Kafka
	cluster *conn.KafkaCluster

	mu      sync.Mutex
	topicID [16]byte
	parts   map[int32]*kafkaPart
	resume  map[int32]kafkaPosition
	since   int64 // where to start without a position, Unix milliseconds; 0: at the end
	// begun: the sink was ready once, or resumed. A partition that shows up later is a new one, of
	// which no message may be missed.
	begun bool
}

// kafkaPosition is what a restart carries over for one partition. Its text is offset@topic id.
type kafkaPosition struct {
	offset int64
	topic  [16]byte
}

func (p kafkaPosition) String() string {
	s := strconv.FormatInt(p.offset, 10)
	if p.topic != [16]byte{} {
		s += "@" + hex.EncodeToString(p.topic[:])
	}
	return s
}

func parseKafkaPosition(s string) (p kafkaPosition, ok bool) {
	offset, topic, _ := strings.Cut(s, "@")
	n, err := strconv.ParseInt(offset, 10, 64)
	if err != nil || n < 0 || len(topic) != 0 && len(topic) != 32 {
		return p, false
	}
	p.offset = n
	_, err = hex.Decode(p.topic[:], []byte(topic))
	return p, err == nil
}

// Position returns the next offset of each partition.
func (s *kafkaSink) Position() map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make(map[string]string, len(s.parts)+len(s.resume))
	for id, p := range s.resume {
		out[strconv.Itoa(int(id))] = p.String() // not taken up yet
	}
	for id, p := range s.parts {
		if pos := p.pos.Load(); pos >= 0 {
			out[strconv.Itoa(int(id))] = kafkaPosition{pos, s.topicID}.String()
		}
	}
	return out
}

// Resume sets the positions of an earlier run.
func (s *kafkaSink) Resume(from map[string]string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.resume = make(map[int32]kafkaPosition)
	for key, text := range from {
		id, err := strconv.ParseInt(key, 10, 32)
		if p, ok := parseKafkaPosition(text); ok && err == nil && id >= 0 {
			s.resume[int32(id)] = p
		}
	}
}

// LookBack implements LookBacker.
func (s *kafkaSink) LookBack(since time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.since = since.UnixMilli()
}

// Check reaches a broker and looks for the topic and the partitions.
func (s *kafkaSink) Check(ctx context.Context) error {
	c, err := s.cluster.Any(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	t, err := c.Topic(s.cfg.Topic)
	if err != nil {
		return err
	}
	_, err = s.wanted(t)
	return err
}

// wanted returns the partitions to listen on.
func (s *kafkaSink) wanted(t *conn.KafkaTopic) ([]conn.KafkaPartition, error) {
	if len(s.cfg.Partitions) == 0 {
		return t.Partitions, nil
	}
	var out []conn.KafkaPartition
	for _, id := range s.cfg.Partitions {
		i := slices.IndexFunc(t.Partitions, func(p conn.KafkaPartition) bool { return p.ID == id })
		if i < 0 {
			return nil, conn.WithClass(conn.Missing, fmt.Errorf("topic %s: partition %d does not exist: there are %d", s.cfg.Topic, id, len(t.Partitions)))
		}
		out = append(out, t.Partitions[i])
	}
	return out, nil
}

// errKafkaRecreated ends a round: the topic is another one than before.
var errKafkaRecreated = errors.New("topic was re-created")

// Run listens until ctx ends or a connection is lost.
func (s *kafkaSink) Run(ctx context.Context, feed *Feed) error {
	for {
		r := &kafkaRun{
			s: s, feed: feed,
			brokers: make(map[int32]*kafkaBroker), orphans: make(map[int32]*kafkaPart),
			stale: make(chan struct{}, 1), failed: make(chan error, 1),
		}
		err := r.round(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, errKafkaRecreated):
			continue
		}
		return err
	}
}

// kafkaRun is one connected period of a sink: a coordinator that knows which broker leads which
// partition, and a goroutine with one connection per broker.
type kafkaRun struct {
	s    *kafkaSink
	feed *Feed
	wg   sync.WaitGroup

	mu      sync.Mutex
	brokers map[int32]*kafkaBroker
	orphans map[int32]*kafkaPart // partitions that no broker's goroutine reads at the moment
	stale   chan struct{}        // an orphan has come up: ask for the layout again
	failed  chan error           // the first broker that failed
}

// round runs until ctx ends, a connection fails, or the topic turns out to be another one.
func (r *kafkaRun) round(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer r.wg.Wait()
	defer cancel()
	s := r.s
	control, err := s.cluster.Any(ctx)
	if err != nil {
		return err
	}
	first := control
	release := context.AfterFunc(ctx, func() { first.Close() })
	defer func() {
		release()
		control.Close()
	}()
	topic, err := control.Topic(s.cfg.Topic)
	if err != nil {
		return err
	}
	// While partitions are without a broker the layout is asked for ever less often.
	const firstPause, lastPause = 50 * time.Millisecond, time.Second
	pause := firstPause
	for {
		left, err := r.assign(ctx, topic)
		if err != nil {
			return err
		}
		wait := time.Duration(s.cfg.MetadataRefresh)
		if left {
			wait, pause = min(wait, pause), min(2*pause, lastPause)
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case err := <-r.failed:
			timer.Stop()
			return err
		case <-r.stale:
			// A partition that was handed back at once must not turn this into a busy loop.
			select {
			case <-ctx.Done():
			case <-time.After(pause):
			}
			timer.Stop()
			pause = min(2*pause, lastPause)
		case <-timer.C:
			if !left {
				pause = firstPause
			}
		}
		fresh, err := control.Topic(s.cfg.Topic)
		if conn.ClassOf(err) == conn.Network {
			// The broker that answered these questions is gone, which need not concern the others.
			release()
			control.Close()
			var other *conn.KafkaConn
			if other, err = s.cluster.Any(ctx, append(slices.Clone(s.cluster.Seeds()), topic.Addresses()...)...); err != nil {
				return err
			}
			control = other
			release = context.AfterFunc(ctx, func() { other.Close() })
			fresh, err = control.Topic(s.cfg.Topic)
		}
		if err != nil {
			return err
		}
		topic = fresh
	}
}

// assign compares the layout with what is being read: new partitions and orphans go to the brokers
// that lead them. left tells that some have no leader.
func (r *kafkaRun) assign(ctx context.Context, topic *conn.KafkaTopic) (left bool, err error) {
	s := r.s
	wanted, err := s.wanted(topic)
	if err != nil {
		return false, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()

	if s.topicID != topic.ID && s.topicID != [16]byte{} && topic.ID != [16]byte{} {
		s.topicID = topic.ID
		clear(s.parts)
		s.begun = true
		r.feed.Gap("recreated")
		if len(r.brokers) > 0 {
			return false, errKafkaRecreated
		}
		clear(r.orphans)
	}
	s.topicID = topic.ID
	if len(s.parts) == 0 && len(s.resume) > 0 {
		r.resume(topic)
	}
	start, _ := s.cfg.start()
	if s.begun {
		start = conn.KafkaEarliest
	}
	for _, p := range wanted {
		part := s.parts[p.ID]
		if part == nil {
			part = &kafkaPart{id: p.ID, start: start, epoch: p.Epoch, salt: kafkaSalt(s.topicID, 0)}
			part.pos.Store(-1)
			if !s.begun && start == conn.KafkaLatest {
				part.since = s.since
			}
			s.parts[p.ID] = part
		}
		if !r.reading(part) {
			r.orphans[p.ID] = part
		}
	}
	for _, p := range wanted {
		part := r.orphans[p.ID]
		if part == nil {
			continue
		}
		address, ok := topic.Brokers[p.Leader]
		if p.Leader < 0 || !ok {
			left = true
			continue
		}
		switch {
		case p.Epoch > part.epoch:
			part.epoch = p.Epoch
		case p.Epoch < part.epoch && s.topicID == [16]byte{} && part.moved == conn.KafkaUnknownEpoch:
			// Leaders are counted from 0 again: another topic of the same name, where no topic id tells.
			part.recreated()
			part.epoch = p.Epoch
			r.feed.Gap("recreated")
		}
		part.moved = 0
		delete(r.orphans, p.ID)
		b := r.brokers[p.Leader]
		if b == nil {
			b = &kafkaBroker{run: r, id: p.Leader, address: address, mine: make(map[int32]*kafkaPart)}
			b.fetch = kafkaFetch{
				topic: s.cfg.Topic, topicID: s.topicID, committed: s.cfg.Isolation == kafkaCommitted,
				minBytes: 1, maxWait: kafkaMaxWait, maxBytes: s.cfg.MaxBytes,
				parts: make(map[int32]*kafkaPart),
			}
			if s.cfg.Resolution > 0 {
				b.fetch.minBytes, b.fetch.maxWait = 1<<20, time.Duration(s.cfg.Resolution)
			}
			r.brokers[p.Leader] = b
			r.wg.Go(func() { b.serve(ctx) })
		}
		b.mine[p.ID] = part
		b.added = append(b.added, part)
		b.caughtUp, b.listening = time.Time{}, false
	}
	return left, nil
}

// resume takes over the positions of an earlier run.
func (r *kafkaRun) resume(topic *conn.KafkaTopic) {
	s := r.s
	s.begun = true
	for id, from := range s.resume {
		if from.topic != topic.ID && from.topic != [16]byte{} && topic.ID != [16]byte{} {
			r.feed.Gap("recreated")
			break // every partition begins at its first offset
		}
		i := slices.IndexFunc(topic.Partitions, func(p conn.KafkaPartition) bool { return p.ID == id })
		if i < 0 {
			continue
		}
		part := &kafkaPart{id: id, epoch: topic.Partitions[i].Epoch, salt: kafkaSalt(topic.ID, 0)}
		part.pos.Store(from.offset)
		s.parts[id] = part
	}
	s.resume = nil
}

// reading reports whether a broker's goroutine has the partition. The caller holds r.mu.
func (r *kafkaRun) reading(p *kafkaPart) bool {
	for _, b := range r.brokers {
		if b.mine[p.id] != nil {
			return true
		}
	}
	return false
}

// recreated makes the partition begin at the first offset of a new log.
func (p *kafkaPart) recreated() {
	p.pos.Store(-1)
	p.start, p.since, p.past = conn.KafkaEarliest, 0, 0
	p.salt = kafkaSalt([16]byte{}, p.salt+1)
}

func kafkaSalt(topic [16]byte, generation uint64) uint64 {
	h := generation
	for _, b := range topic {
		h = (h ^ uint64(b)) * 0x100000001b3
	}
	return h
}

// progress tells the feed what is certain once every partition is taken care of: that the sink
// listens, and up to when everything was delivered. The caller holds r.mu.
func (r *kafkaRun) progress() {
	if len(r.orphans) > 0 {
		return
	}
	var oldest time.Time
	complete := true
	for _, b := range r.brokers {
		if !b.listening {
			return
		}
		switch {
		case b.caughtUp.IsZero():
			complete = false
		case oldest.IsZero() || b.caughtUp.Before(oldest):
			oldest = b.caughtUp
		}
	}
	if !r.feed.ready.Load() {
		r.feed.Ready()
		r.s.mu.Lock()
		r.s.begun = true
		r.s.mu.Unlock()
	}
	if complete && !oldest.IsZero() {
		r.feed.CaughtUp(oldest)
	}
}

// kafkaBroker reads all partitions that one broker leads.
type kafkaBroker struct {
	run     *kafkaRun
	id      int32
	address string
	fetch   kafkaFetch // of the goroutine alone

	compacted *bool // whether the topic is, once that was asked; of the goroutine alone

	// Guarded by run.mu.
	mine      map[int32]*kafkaPart // what the goroutine reads or is about to
	added     []*kafkaPart         // what it has not taken up yet
	listening bool                 // all of mine have a position and the broker has answered for them
	caughtUp  time.Time
}

// serve is the goroutine.
func (b *kafkaBroker) serve(ctx context.Context) {
	if err := b.read(ctx); err != nil {
		err = fmt.Errorf("topic %s: broker %d at %s: %w", b.run.s.cfg.Topic, b.id, b.address, err)
		select {
		case b.run.failed <- err:
		default: // one error is enough to end the round
		}
	}
}

// read returns nil when the broker leads nothing of ours any more.
func (b *kafkaBroker) read(ctx context.Context) (err error) {
	defer conn.Contain(&err) // of what was sent to us, and of the libraries that decompress it
	f := &b.fetch
	var c *conn.KafkaConn
	release := func() bool { return true }
	defer func() {
		release()
		if c != nil {
			c.Close()
		}
		// The position is behind a hole of which nobody could be asked any more; the next run does not meet it.
		if f.scan.hole && (b.compacted == nil || *b.compacted) {
			b.run.feed.Gap("compacted")
		}
	}()
	var throttle time.Duration
	for {
		if c == nil || c.Expired() {
			if c != nil {
				release()
				c.Close()
			}
			if c, err = b.run.s.cluster.Connect(ctx, b.address); err != nil {
				return err
			}
			c.Expect(int(f.maxBytes))
			dialed := c
			release = context.AfterFunc(ctx, func() { dialed.Close() })
			if err := f.negotiate(c); err != nil {
				return err
			}
		}
		if done, err := b.take(c); done || err != nil {
			return err
		}
		asked := time.Now()
		f.request(c)
		r, _, err := c.Do(f.maxWait + throttle)
		if err != nil {
			return err
		}
		var lost []*kafkaPart
		lost, throttle, err = f.response(&r, b.run.feed)
		if err != nil {
			return err
		}
		if f.scan.hole {
			if err := b.missing(c); err != nil {
				return err
			}
		}
		if throttle >= time.Second {
			b.run.feed.Error(conn.WithClass(conn.Throttle, fmt.Errorf("topic %s: broker %d slows us down by %s", f.topic, b.id, throttle)))
		}
		if len(lost) > 0 {
			if err := b.lose(c, lost); err != nil {
				return err
			}
		}
		b.prove(asked)
	}
}

// prove takes in what an answer that was asked for then says of all partitions together.
func (b *kafkaBroker) prove(asked time.Time) {
	f := &b.fetch
	b.run.mu.Lock()
	defer b.run.mu.Unlock()
	if len(b.added) > 0 || len(f.list) == 0 || !f.answered() {
		return
	}
	b.listening = true
	if t := f.caughtUp(asked); !t.IsZero() {
		b.caughtUp = t
	}
	if f.heldUp() {
		b.run.feed.Skip(0) // alive, though there is nothing to claim
	}
	b.run.progress()
}

// missing finds out whether messages are missing that may have been heartbeats. Where the topic is compacted, a younger
// message of the same key may have taken the place of one that nobody had read yet. Other topics have holes, too, with some
// brokers: of their own bookkeeping.
func (b *kafkaBroker) missing(c *conn.KafkaConn) error {
	if b.compacted == nil {
		compacted, err := c.Compacted(b.fetch.topic)
		if conn.ClassOf(err) == conn.Network {
			return err
		}
		compacted = compacted || err != nil // who may not know has to fear it
		b.compacted = &compacted
	}
	b.fetch.scan.hole = false
	if *b.compacted {
		b.run.feed.Gap("compacted")
	}
	return nil
}

// take moves added partitions into the session, after finding out where to start. It reports done
// when nothing is left to read.
func (b *kafkaBroker) take(c *conn.KafkaConn) (done bool, err error) {
	r := b.run
	r.mu.Lock()
	added := b.added
	b.added = nil
	if len(added) == 0 && len(b.mine) == 0 {
		delete(r.brokers, b.id)
		r.progress()
		done = true
	}
	r.mu.Unlock()
	if len(added) == 0 {
		return done, nil
	}
	starts := make(map[int64][]*kafkaPart)
	for _, p := range added {
		if p.pos.Load() < 0 {
			at := p.start
			if p.since != 0 {
				at = p.since
			}
			starts[at] = append(starts[at], p)
		}
	}
	var lost []*kafkaPart
	for at, parts := range starts {
		failed, err := b.locate(c, at, parts)
		if err != nil {
			return false, err
		}
		lost = append(lost, failed...)
	}
	for _, p := range added {
		if !slices.Contains(lost, p) {
			b.fetch.add(p)
		}
	}
	if len(lost) > 0 {
		b.disown(lost)
		r.mu.Lock()
		defer r.mu.Unlock()
		if len(b.mine) == 0 && len(b.added) == 0 {
			delete(r.brokers, b.id)
			return true, nil
		}
	}
	return false, nil
}

// kafkaMoved reports whether an error says that a broker does not lead a partition, or not yet.
func kafkaMoved(code int16) bool {
	switch code {
	case conn.KafkaUnknownTopic, conn.KafkaLeaderNotAvailable, conn.KafkaNotLeader, conn.KafkaReplicaNotAvail,
		conn.KafkaStorage, conn.KafkaFencedEpoch, conn.KafkaUnknownEpoch, conn.KafkaOffsetNotAvailable:
		return true
	}
	return false
}

// locate sets the position of partitions and returns those that this broker does not lead.
func (b *kafkaBroker) locate(c *conn.KafkaConn, at int64, parts []*kafkaPart) (lost []*kafkaPart, err error) {
	ids := make([]int32, len(parts))
	for i, p := range parts {
		ids[i] = p.id
	}
	back := parts[0].since == at
	var end map[int32]conn.KafkaOffset
	if back {
		// Before the question for the time: what is appended between the two answers is read.
		if end, err = c.Offsets(b.fetch.topic, b.fetch.committed, conn.KafkaLatest, ids); err != nil {
			return nil, err
		}
	}
	found, err := c.Offsets(b.fetch.topic, b.fetch.committed, at, ids)
	if err != nil {
		return nil, err
	}
	var none []*kafkaPart
	for _, p := range parts {
		o := found[p.id]
		if back {
			o = b.back(p, o, end[p.id])
		}
		switch {
		case kafkaMoved(o.Code):
			p.moved = o.Code
			lost = append(lost, p)
			continue
		case o.Code != 0:
			return nil, fmt.Errorf("partition %d: offsets: %w", p.id, conn.KafkaError(o.Code))
		}
		if o.Offset < 0 {
			none = append(none, p)
			continue
		}
		p.pos.Store(o.Offset)
	}
	if len(none) > 0 && at != conn.KafkaLatest {
		more, err := b.locate(c, conn.KafkaLatest, none) // nothing is younger than the time asked for
		return append(lost, more...), err
	}
	return append(lost, none...), nil
}

// kafkaFuture is how far ahead of our clock the time of a message may be for it to be believed.
const kafkaFuture = time.Minute

// back chooses where a partition starts that looks back: at the first message that is young enough, or at
// the end where there is none or where the broker cannot tell.
func (b *kafkaBroker) back(p *kafkaPart, first, end conn.KafkaOffset) conn.KafkaOffset {
	if end.Code != 0 || kafkaMoved(first.Code) {
		return conn.KafkaOffset{Code: cmp.Or(end.Code, first.Code)}
	}
	p.past = end.Offset
	switch {
	case first.Code != 0:
		b.run.feed.Error(fmt.Errorf("topic %s: partition %d: the look-back is refused, the end is where it starts: %w", b.fetch.topic, p.id, conn.KafkaError(first.Code)))
	case first.Offset < 0:
	case first.Time > time.Now().Add(kafkaFuture).UnixMilli():
		// A producer has set the time. It may stand anywhere in the log and hide what is behind it: to begin
		// there might be to read the whole topic.
		b.run.feed.Error(fmt.Errorf("topic %s: partition %d: the message at offset %d claims a time in the future: there is no look-back", b.fetch.topic, p.id, first.Offset))
	default:
		return first
	}
	return end
}

// lose deals with partitions that the broker would not read from.
func (b *kafkaBroker) lose(c *conn.KafkaConn, lost []*kafkaPart) error {
	var gone, outside []*kafkaPart
	for _, p := range lost {
		if p.moved == conn.KafkaOffsetOutOfRange {
			outside = append(outside, p)
		} else {
			gone = append(gone, p)
		}
	}
	if len(outside) > 0 {
		more, err := b.relocate(c, outside)
		if err != nil {
			return err
		}
		gone = append(gone, more...)
	}
	if len(gone) > 0 {
		for _, p := range gone {
			b.fetch.remove(p)
		}
		b.disown(gone)
	}
	return nil
}

// relocate finds out why an offset is outside the log, says so, and goes on from the nearest one that
// exists.
func (b *kafkaBroker) relocate(c *conn.KafkaConn, parts []*kafkaPart) (lost []*kafkaPart, err error) {
	ids := make([]int32, len(parts))
	for i, p := range parts {
		ids[i] = p.id
	}
	first, err := c.Offsets(b.fetch.topic, b.fetch.committed, conn.KafkaEarliest, ids)
	if err != nil {
		return nil, err
	}
	end, err := c.Offsets(b.fetch.topic, b.fetch.committed, conn.KafkaLatest, ids)
	if err != nil {
		return nil, err
	}
	reasons := make(map[string]bool)
	for _, p := range parts {
		f, e, pos := first[p.id], end[p.id], p.pos.Load()
		p.end, b.fetch.proving = -1, time.Time{}
		switch {
		case f.Code != 0 || e.Code != 0 || f.Offset < 0 || e.Offset < 0:
			p.moved = conn.KafkaNotLeader
			lost = append(lost, p)
		case pos < f.Offset:
			reasons["trimmed"] = true
			p.pos.Store(f.Offset)
		case pos > e.Offset && b.fetch.version >= kafkaFetchIDs:
			// The same topic, so its log was cut: a leader was elected that had not all of it.
			reasons["truncated"] = true
			p.salt++
			p.past = min(p.past, e.Offset)
			p.pos.Store(e.Offset)
		case pos > e.Offset:
			reasons["recreated"] = true
			p.recreated()
			p.pos.Store(f.Offset)
		}
	}
	for _, reason := range slices.Sorted(maps.Keys(reasons)) {
		b.run.feed.Gap(reason)
	}
	return lost, nil
}

// disown hands partitions back to the coordinator.
func (b *kafkaBroker) disown(parts []*kafkaPart) {
	r := b.run
	r.mu.Lock()
	for _, p := range parts {
		delete(b.mine, p.id)
		r.orphans[p.id] = p
	}
	r.mu.Unlock()
	select {
	case r.stale <- struct{}{}:
	default:
	}
}
