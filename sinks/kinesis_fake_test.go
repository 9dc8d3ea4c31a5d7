package sinks

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kinesis"
	"github.com/aws/aws-sdk-go-v2/service/kinesis/types"

	"github.com/lag-monitor/lag-monitor/internal/heartbeat"
)

// fakeKinesis is one stream as the sink sees it, for what a real server takes minutes or days to do:
// iterators that expire, subscriptions that end, shards whose retention is over. Its clock is time.Now,
// which a test fakes.
type fakeKinesis struct {
	mu       sync.Mutex
	shards   []*fakeShard
	next     int64
	page     int           // records of one answer, 0: as many as asked for
	perList  int           // shards of one answer, 0: all
	anonym   bool          // a closed shard does not name its children
	lazy     bool          // the page that reaches the end of a closed shard does not tell so, only the next one
	delay    time.Duration // that an event is under way
	endless  bool          // the subscription to a closed shard goes on, with empty events
	consumer types.ConsumerStatus
	life     time.Duration // of a subscription, 0: five minutes
	mute     bool          // new subscriptions say nothing

	fail  func(operation, shard string) error // nil: nothing fails
	calls map[string][]time.Time
	types []types.ShardIteratorType // that iterators and subscriptions were asked for
}

type fakeShard struct {
	id      string
	parents []string
	first   string
	closed  time.Time // zero: open
	gone    bool
	records []types.Record
}

func newFakeKinesis(shards int) *fakeKinesis {
	k := &fakeKinesis{next: 4900000000000000000, calls: make(map[string][]time.Time)}
	for range shards {
		k.add()
	}
	return k
}

func (k *fakeKinesis) seq() string {
	k.next++
	return strconv.FormatInt(k.next, 10)
}

func (k *fakeKinesis) add(parents ...*fakeShard) *fakeShard {
	s := &fakeShard{id: fmt.Sprintf("shardId-%012d", len(k.shards)), first: k.seq()}
	for _, p := range parents {
		s.parents = append(s.parents, p.id)
		p.closed = time.Now()
	}
	k.shards = append(k.shards, s)
	return s
}

// reshard closes the parents and opens n children.
func (k *fakeKinesis) reshard(n int, parents ...int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	var ps []*fakeShard
	for _, p := range parents {
		ps = append(ps, k.shards[p])
	}
	for range n {
		k.add(ps...)
	}
}

func (k *fakeKinesis) put(shard int, data []byte) {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := k.shards[shard]
	if !s.closed.IsZero() {
		panic("put into a closed shard")
	}
	s.records = append(s.records, types.Record{Data: data, SequenceNumber: aws.String(k.seq()), ApproximateArrivalTimestamp: aws.Time(time.Now())})
}

// call notes a call and returns its error. It needs k.mu.
func (k *fakeKinesis) call(ctx context.Context, operation, shard string) error {
	k.calls[operation+shard] = append(k.calls[operation+shard], time.Now())
	if err := ctx.Err(); err != nil {
		return err
	}
	if k.fail != nil {
		return k.fail(operation, shard)
	}
	return nil
}

func (k *fakeKinesis) count(operation, shard string) int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.calls[operation+shard])
}

func (k *fakeKinesis) setFail(fail func(operation, shard string) error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.fail = fail
}

func (k *fakeKinesis) find(id *string) (*fakeShard, error) {
	for _, s := range k.shards {
		if s.id == aws.ToString(id) && !s.gone {
			return s, nil
		}
	}
	return nil, &types.ResourceNotFoundException{Message: aws.String("no shard " + aws.ToString(id))}
}

func (k *fakeKinesis) ListShards(ctx context.Context, in *kinesis.ListShardsInput, _ ...func(*kinesis.Options)) (*kinesis.ListShardsOutput, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.call(ctx, "ListShards", ""); err != nil {
		return nil, err
	}
	from := 0
	if in.NextToken != nil {
		if in.StreamName != nil || in.ShardFilter != nil {
			return nil, errors.New("a token and a name in one request")
		}
		from, _ = strconv.Atoi(*in.NextToken)
	}
	out := &kinesis.ListShardsOutput{}
	for i, s := range k.shards {
		if i < from || s.gone {
			continue
		}
		if f := in.ShardFilter; f != nil && f.Type == types.ShardFilterTypeFromTimestamp && !s.closed.IsZero() && s.closed.Before(*f.Timestamp) {
			continue
		}
		if k.perList > 0 && len(out.Shards) == k.perList {
			out.NextToken = aws.String(strconv.Itoa(i))
			break
		}
		shard := types.Shard{ShardId: aws.String(s.id), SequenceNumberRange: &types.SequenceNumberRange{StartingSequenceNumber: aws.String(s.first)}}
		if !s.closed.IsZero() {
			shard.SequenceNumberRange.EndingSequenceNumber = aws.String("9999999999999999999")
		}
		if len(s.parents) > 0 {
			shard.ParentShardId = aws.String(s.parents[0])
		}
		if len(s.parents) > 1 {
			shard.AdjacentParentShardId = aws.String(s.parents[1])
		}
		out.Shards = append(out.Shards, shard)
	}
	return out, nil
}

// index returns where in the shard's records a position is.
func (k *fakeKinesis) index(s *fakeShard, kind types.ShardIteratorType, seq *string, at *time.Time) (int, error) {
	k.types = append(k.types, kind)
	found := -1
	switch kind {
	case types.ShardIteratorTypeTrimHorizon:
		found = 0
	case types.ShardIteratorTypeAfterSequenceNumber:
		if seqBefore(*seq, s.first) {
			return 0, &types.InvalidArgumentException{Message: aws.String("the sequence number did not come from this stream")}
		}
		found = slices.IndexFunc(s.records, func(r types.Record) bool { return seqBefore(*seq, *r.SequenceNumber) })
	case types.ShardIteratorTypeAtTimestamp:
		if at.After(time.Now()) {
			return 0, &types.InvalidArgumentException{Message: aws.String("the timestamp is in the future")}
		}
		found = slices.IndexFunc(s.records, func(r types.Record) bool { return !r.ApproximateArrivalTimestamp.Before(*at) })
	}
	if found < 0 {
		return len(s.records), nil
	}
	return found, nil
}

func (k *fakeKinesis) GetShardIterator(ctx context.Context, in *kinesis.GetShardIteratorInput, _ ...func(*kinesis.Options)) (*kinesis.GetShardIteratorOutput, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.call(ctx, "GetShardIterator", aws.ToString(in.ShardId)); err != nil {
		return nil, err
	}
	s, err := k.find(in.ShardId)
	if err != nil {
		return nil, err
	}
	i, err := k.index(s, in.ShardIteratorType, in.StartingSequenceNumber, in.Timestamp)
	if err != nil {
		return nil, err
	}
	return &kinesis.GetShardIteratorOutput{ShardIterator: fakeIterator(s, i)}, nil
}

func fakeIterator(s *fakeShard, i int) *string {
	return aws.String(fmt.Sprintf("%s/%d/%d", s.id, i, time.Now().UnixNano()))
}

func (k *fakeKinesis) children(s *fakeShard) (out []types.ChildShard) {
	for _, c := range k.shards {
		if slices.Contains(c.parents, s.id) && !k.anonym {
			out = append(out, types.ChildShard{ShardId: aws.String(c.id), ParentShards: c.parents})
		}
	}
	return out
}

func (k *fakeKinesis) GetRecords(ctx context.Context, in *kinesis.GetRecordsInput, _ ...func(*kinesis.Options)) (*kinesis.GetRecordsOutput, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	parts := strings.Split(*in.ShardIterator, "/")
	if err := k.call(ctx, "GetRecords", parts[0]); err != nil {
		return nil, err
	}
	s, err := k.find(&parts[0])
	if err != nil {
		return nil, err
	}
	i, _ := strconv.Atoi(parts[1])
	issued, _ := strconv.ParseInt(parts[2], 10, 64)
	if time.Since(time.Unix(0, issued)) > 5*time.Minute {
		return nil, &types.ExpiredIteratorException{Message: aws.String("expired")}
	}
	i = min(i, len(s.records)) // an iterator of a stream that was created again
	n := min(len(s.records), i+int(aws.ToInt32(in.Limit)))
	if k.page > 0 {
		n = min(n, i+k.page)
	}
	out := &kinesis.GetRecordsOutput{Records: s.records[i:n], MillisBehindLatest: aws.Int64(0)}
	switch {
	case n < len(s.records):
		out.MillisBehindLatest = aws.Int64(max(1, time.Since(*s.records[n].ApproximateArrivalTimestamp).Milliseconds()))
		out.NextShardIterator = fakeIterator(s, n)
	case s.closed.IsZero(), k.lazy && len(out.Records) > 0:
		out.NextShardIterator = fakeIterator(s, n)
	default:
		out.ChildShards = k.children(s)
	}
	return out, nil
}

const fakeARN = "arn:aws:kinesis:us-east-1:000000000000:stream/deferred"

func (k *fakeKinesis) DescribeStreamSummary(ctx context.Context, _ *kinesis.DescribeStreamSummaryInput, _ ...func(*kinesis.Options)) (*kinesis.DescribeStreamSummaryOutput, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return &kinesis.DescribeStreamSummaryOutput{StreamDescriptionSummary: &types.StreamDescriptionSummary{StreamARN: aws.String(fakeARN)}},
		k.call(ctx, "DescribeStreamSummary", "")
}

func (k *fakeKinesis) DescribeStreamConsumer(ctx context.Context, _ *kinesis.DescribeStreamConsumerInput, _ ...func(*kinesis.Options)) (*kinesis.DescribeStreamConsumerOutput, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.call(ctx, "DescribeStreamConsumer", ""); err != nil {
		return nil, err
	}
	was := k.consumer
	switch was {
	case "":
		return nil, &types.ResourceNotFoundException{}
	case types.ConsumerStatusCreating:
		k.consumer = types.ConsumerStatusActive
	}
	return &kinesis.DescribeStreamConsumerOutput{ConsumerDescription: &types.ConsumerDescription{
		ConsumerStatus: was, ConsumerARN: aws.String(fakeARN + "/consumer/c:1"),
	}}, nil
}

func (k *fakeKinesis) RegisterStreamConsumer(ctx context.Context, _ *kinesis.RegisterStreamConsumerInput, _ ...func(*kinesis.Options)) (*kinesis.RegisterStreamConsumerOutput, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.consumer = types.ConsumerStatusCreating
	return &kinesis.RegisterStreamConsumerOutput{}, k.call(ctx, "RegisterStreamConsumer", "")
}

func (k *fakeKinesis) DeregisterStreamConsumer(ctx context.Context, _ *kinesis.DeregisterStreamConsumerInput, _ ...func(*kinesis.Options)) (*kinesis.DeregisterStreamConsumerOutput, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.consumer = ""
	return &kinesis.DeregisterStreamConsumerOutput{}, k.call(ctx, "DeregisterStreamConsumer", "")
}

type fakeEvents struct {
	ch   chan types.SubscribeToShardEventStream
	stop context.CancelFunc
}

func (e *fakeEvents) Events() <-chan types.SubscribeToShardEventStream { return e.ch }
func (e *fakeEvents) Close() error                                     { e.stop(); return nil }
func (e *fakeEvents) Err() error                                       { return nil }

func (k *fakeKinesis) Subscribe(ctx context.Context, in *kinesis.SubscribeToShardInput) (kinesis.SubscribeToShardEventStreamReader, time.Time, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.call(ctx, "Subscribe", aws.ToString(in.ShardId)); err != nil {
		return nil, time.Time{}, err
	}
	s, err := k.find(in.ShardId)
	if err != nil {
		return nil, time.Time{}, err
	}
	i, err := k.index(s, in.StartingPosition.Type, in.StartingPosition.SequenceNumber, in.StartingPosition.Timestamp)
	if err != nil {
		return nil, time.Time{}, err
	}
	life := k.life
	if life == 0 {
		life = 5 * time.Minute
	}
	ctx, cancel := context.WithTimeout(ctx, life)
	e := &fakeEvents{make(chan types.SubscribeToShardEventStream), cancel}
	go k.events(ctx, e, s, i, k.mute)
	return e, time.Now(), nil
}

// events sends an event every second.
func (k *fakeKinesis) events(ctx context.Context, e *fakeEvents, s *fakeShard, i int, mute bool) {
	defer close(e.ch)
	for {
		k.mu.Lock()
		n := len(s.records)
		if k.page > 0 {
			n = min(n, i+k.page)
		}
		v := types.SubscribeToShardEvent{Records: s.records[i:n], MillisBehindLatest: aws.Int64(0)}
		if i = n; n < len(s.records) {
			v.MillisBehindLatest = aws.Int64(1)
		}
		over := n == len(s.records) && !s.closed.IsZero() && !k.endless
		if over {
			v.ChildShards = k.children(s)
		} else {
			v.ContinuationSequenceNumber = aws.String(strconv.FormatInt(k.next, 10))
			if n < len(s.records) {
				v.ContinuationSequenceNumber = s.records[n-1].SequenceNumber
			}
		}
		k.mu.Unlock()
		time.Sleep(k.delay)
		if !mute {
			select {
			case <-ctx.Done():
				return
			case e.ch <- &types.SubscribeToShardEventStreamMemberSubscribeToShardEvent{Value: v}:
			}
			if over {
				return
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Second - k.delay):
		}
	}
}

// kinesisLog is a Receiver that writes down what it is told.
type kinesisLog struct {
	mu       sync.Mutex
	seqs     []uint64
	ids      map[uint64]int
	past     []uint64 // of seqs
	ready    []time.Time
	claims   []time.Time
	claimed  map[time.Time]int // claim → how many heartbeats had arrived by then
	gaps     []string
	enqueued []time.Time
}

func (l *kinesisLog) Heartbeat(h *heartbeat.Heartbeat, a Arrival) Kind {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seqs = append(l.seqs, h.Seq)
	if a.Past {
		l.past = append(l.past, h.Seq)
	}
	if l.ids == nil {
		l.ids = make(map[uint64]int)
	}
	l.ids[a.ID]++
	l.enqueued = append(l.enqueued, a.Enqueued)
	return Heartbeat
}

func (l *kinesisLog) Ready(up bool, at time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if up {
		l.ready = append(l.ready, at)
	}
}

func (l *kinesisLog) CaughtUp(t time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.claims = append(l.claims, t)
	if l.claimed == nil {
		l.claimed = make(map[time.Time]int)
	}
	l.claimed[t] = len(l.seqs)
}

func (l *kinesisLog) Gap(_ time.Time, reason string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.gaps = append(l.gaps, reason)
}

func (l *kinesisLog) claim() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.claims) == 0 {
		return time.Time{}
	}
	return l.claims[len(l.claims)-1]
}

func (l *kinesisLog) arrived() []uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.seqs)
}

// exactly reports heartbeats 1 to n that did not arrive once.
func (l *kinesisLog) exactly(t *testing.T, n int) {
	t.Helper()
	got := l.arrived()
	slices.Sort(got)
	var want []uint64
	for i := range n {
		want = append(want, uint64(i+1))
	}
	if !slices.Equal(got, want) {
		t.Errorf("heartbeats %v arrived, want each of 1 to %d once", got, n)
	}
}

func kinesisToken(seq int) []byte {
	h := heartbeat.Heartbeat{Probe: "p", Seq: uint64(seq), Sent: time.Now()}
	return append([]byte(`{"n":"`), append((*heartbeat.Keyring)(nil).Append(nil, &h), `"}`...)...)
}

// kinesisRun is a running sink over a fake.
type kinesisRun struct {
	*kinesisLog
	feed *Feed
	sink *kinesisSink
	stop func() error
	done chan error
}

func runKinesis(t *testing.T, api *fakeKinesis, configure ...func(*Kinesis)) *kinesisRun {
	c := NewKinesis()
	c.Stream = "deferred"
	for _, f := range configure {
		f(c)
	}
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	return rerunKinesis(newKinesisSink(c, api, func() {}), new(kinesisLog))
}

func rerunKinesis(sink *kinesisSink, log *kinesisLog) *kinesisRun {
	ctx, cancel := context.WithCancel(context.Background())
	r := &kinesisRun{kinesisLog: log, feed: NewFeed(log, nil), sink: sink, done: make(chan error, 1)}
	go func() { r.done <- sink.Run(ctx, r.feed) }()
	r.stop = func() error {
		cancel()
		return <-r.done
	}
	return r
}
