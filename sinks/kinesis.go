package sinks

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/service/kinesis"
	"github.com/aws/aws-sdk-go-v2/service/kinesis/types"
	"golang.org/x/sync/errgroup"

	"github.com/lag-monitor/lag-monitor/internal/conn"
)

// A shard gives 5 reads and 2 MiB a second to all its polling consumers together. The monitor takes one
// read for each PollInterval, and while it is behind one for each behindInterval, and leaves at least
// 0.75 MiB a second to the others.
const (
	behindInterval = 400 * time.Millisecond
	readBandwidth  = 1.25 * (1 << 20) // bytes per second
	pageBytes      = 1 << 20          // a page is asked for in records: as many as would have been this long
	firstLimit     = 1000
	maxLimit       = 10000

	maxPause    = 5 * time.Second // between attempts while the service throttles; below StallAfter
	maxFailures = 3               // transient errors in a row that end Run

	// latestMargin is how far before the moment of a LATEST position reading starts when it has to be
	// taken again by time: an answer's Date header is cut to the second.
	latestMargin = 2 * time.Second
	// reissuePause is between an iterator that has expired and the first read with its successor.
	reissuePause = 200 * time.Millisecond
	// idleMargin is the same for a shard that has been seen empty: longer than any record takes from
	// its time of arrival to being readable.
	idleMargin = time.Minute
)

// Kinesis listens on every shard of a Kinesis data stream, through splits and merges, and looks into
// records that the Kinesis Producer Library has aggregated.
type Kinesis struct {
	conn.Kinesis `yaml:",inline"`
	// Start says where the first run begins: `latest`, `trim_horizon` (the oldest record that is kept),
	// or a duration to look back.
	Start string `yaml:"start,omitempty"`
	// PollInterval is the time between two reads of a shard, 200ms to 10s. Measured latencies include
	// up to one PollInterval. The 5 reads a second of a shard are shared with its other consumers.
	PollInterval conn.Duration `yaml:"poll_interval,omitempty"`
	// ShardRefresh is the time between two looks at the list of shards, 1s to 10m. A reader learns of a
	// split or merge from the closed shard itself; the list is for what it may miss.
	ShardRefresh conn.Duration `yaml:"shard_refresh,omitempty"`
	// EnhancedFanOut, if set, reads through a registered consumer with a bandwidth of its own.
	EnhancedFanOut *FanOut `yaml:"enhanced_fan_out,omitempty"`
}

// FanOut is a registered consumer of a Kinesis data stream.
type FanOut struct {
	// Consumer is its name. It is registered when it does not exist. Two replicas of the monitor need
	// two names: a consumer has one subscription for each shard.
	Consumer string `yaml:"consumer"`
	// Deregister removes the consumer when the monitor stops, if this process has registered it.
	Deregister bool `yaml:"deregister,omitempty"`
}

// NewKinesis returns the defaults.
func NewKinesis() *Kinesis {
	return &Kinesis{
		Kinesis:      conn.DefaultKinesis(),
		Start:        "latest",
		PollInterval: conn.Duration(time.Second),
		ShardRefresh: conn.Duration(30 * time.Second),
	}
}

// Validate implements Config.
func (c *Kinesis) Validate() error {
	errs := []error{c.Kinesis.Validate()}
	if _, err := c.start(time.Time{}); err != nil {
		errs = append(errs, conn.Prefix("start", err))
	}
	if c.PollInterval < conn.Duration(200*time.Millisecond) || c.PollInterval > conn.Duration(10*time.Second) {
		errs = append(errs, conn.Field("poll_interval", "%s is out of range: 200ms to 10s", c.PollInterval))
	}
	if c.ShardRefresh < conn.Duration(time.Second) || c.ShardRefresh > conn.Duration(10*time.Minute) {
		errs = append(errs, conn.Field("shard_refresh", "%s is out of range: 1s to 10m", c.ShardRefresh))
	}
	if c.EnhancedFanOut != nil && !consumerName.MatchString(c.EnhancedFanOut.Consumer) {
		errs = append(errs, conn.Field("enhanced_fan_out.consumer", "%q is not the name of a consumer: 1 to 128 of A-Z a-z 0-9 _ . -", c.EnhancedFanOut.Consumer))
	}
	return errors.Join(errs...)
}

// start returns the position for the first run; the zero position is LATEST.
func (c *Kinesis) start(now time.Time) (shardPosition, error) {
	switch c.Start {
	case "latest":
		return shardPosition{}, nil
	case "trim_horizon":
		return shardPosition{horizon: true}, nil
	}
	back, err := conn.ParseDuration(c.Start)
	if err != nil || back <= 0 || back > 365*24*time.Hour {
		return shardPosition{}, fmt.Errorf("%q is not valid: latest, trim_horizon or a duration to look back, such as 10m", c.Start)
	}
	return shardPosition{since: now.Add(-back)}, nil
}

// Open implements Config.
func (c *Kinesis) Open() (Sink, error) {
	client, err := c.OpenClient()
	if err != nil {
		return nil, err
	}
	return newKinesisSink(c, kinesisClient{client.Client}, client.CloseIdle), nil
}

func newKinesisSink(c *Kinesis, api kinesisReader, closeIdle func()) *kinesisSink {
	return &kinesisSink{cfg: c, api: api, closeIdle: closeIdle}
}

// kinesisReader is the part of the SDK's client that the sink uses.
type kinesisReader interface {
	conn.ShardLister
	GetShardIterator(context.Context, *kinesis.GetShardIteratorInput, ...func(*kinesis.Options)) (*kinesis.GetShardIteratorOutput, error)
	GetRecords(context.Context, *kinesis.GetRecordsInput, ...func(*kinesis.Options)) (*kinesis.GetRecordsOutput, error)
	kinesisSubscriber
}

// kinesisSink is one goroutine for each open shard, and one that looks after them.
type kinesisSink struct {
	cfg       *Kinesis
	api       kinesisReader
	closeIdle func()

	shards   shards
	consumer consumer

	since time.Time // where to start without a position; zero: as the configuration says
	// past is when the sink started, by the service's clock in Unix milliseconds: what a look-back finds
	// before it is old. 0: nothing is.
	past    atomic.Int64
	looking bool // past has to be found out; written by Run while no reader runs
}

// Position implements Resumer: sequence numbers, or where to start in a shard that was empty so far.
func (k *kinesisSink) Position() map[string]string { return k.shards.positions() }

// Resume implements Resumer.
func (k *kinesisSink) Resume(positions map[string]string) {
	k.shards.mu.Lock()
	defer k.shards.mu.Unlock()
	k.shards.resume = positions
}

// Backlog implements Backlogger: for each shard how far our own reader is behind, by the service's word. Others keep their
// positions where the service does not know them.
func (k *kinesisSink) Backlog(context.Context) ([]Backlog, error) {
	group := "lag-monitor"
	if k.cfg.EnhancedFanOut != nil {
		group = k.cfg.EnhancedFanOut.Consumer
	}
	return k.shards.backlog(k.cfg.Name(), group, time.Now()), nil
}

// LookBack implements LookBacker.
func (k *kinesisSink) LookBack(since time.Time) { k.since = since }

// start returns where to begin. It changes nothing for a sink that has begun.
func (k *kinesisSink) start() (shardPosition, error) {
	start, err := k.cfg.start(time.Now())
	if err == nil && start == (shardPosition{}) && !k.since.IsZero() {
		start.since = k.since
		k.looking = k.looking || k.shards.fresh()
	}
	return start, err
}

// startedAt notes what the service's clock said when reading began.
func (k *kinesisSink) startedAt(served time.Time) {
	if k.looking {
		k.past.CompareAndSwap(0, served.UnixMilli())
	}
}

// refused chooses the position of a shard for which the service does not take the time of the look-back,
// say because our clock is ahead of its: the end, unless records may have entered the shard by now that
// must not be missed. It returns the error to report.
func (k *kinesisSink) refused(f *Feed, sh *shard, err error) error {
	k.shards.move(sh, shardPosition{horizon: f.ready.Load()})
	return fmt.Errorf("the look-back is refused: %w", err)
}

// Check implements Checker. It reads at the end of one shard, so that every permission is tried.
func (k *kinesisSink) Check(ctx context.Context) error {
	defer k.closeIdle()
	open, err := k.cfg.ListShards(ctx, k.api, true)
	if err != nil {
		return err
	}
	if len(open) == 0 {
		return conn.WithClass(conn.Missing, fmt.Errorf("kinesis stream %s has no open shard", k.cfg.Name()))
	}
	if k.cfg.EnhancedFanOut != nil {
		_, err := k.describe(ctx)
		return err
	}
	it, _, err := k.iterator(ctx, aws.ToString(open[0].ShardId), shardPosition{})
	if err != nil {
		return err
	}
	_, err = k.getRecords(ctx, aws.ToString(open[0].ShardId), it, 1)
	return err
}

// ended is how a shard's reader ended.
type ended struct {
	sh       *shard
	children []types.ChildShard
	err      error // nil: the shard is drained
}

// Run implements Sink.
func (k *kinesisSink) Run(parent context.Context, f *Feed) error {
	defer k.closeIdle()
	ctx, cancel := context.WithCancel(parent)
	var readers sync.WaitGroup
	defer readers.Wait()
	defer cancel()

	err := k.run(ctx, f, &readers)
	if parent.Err() != nil {
		if k.cfg.EnhancedFanOut != nil {
			return k.leave(context.WithoutCancel(parent))
		}
		return nil
	}
	return err
}

func (k *kinesisSink) run(ctx context.Context, f *Feed, readers *sync.WaitGroup) error {
	start, err := k.start()
	if err != nil {
		return err
	}
	k.shards.rewind()
	listed, err := k.cfg.ListShards(ctx, k.api, false)
	if err != nil {
		return err
	}
	var young []types.Shard
	if !start.since.IsZero() && k.shards.fresh() {
		// The shards that were closed before then, generations of them perhaps, would have to be drained one
		// after the other. Without an answer that is what happens.
		young, _ = k.cfg.ListShardsSince(ctx, k.api, start.since)
	}
	gap := k.shards.update(listed, start)
	if len(young) > 0 {
		k.shards.only(young)
	}
	// Every shard that can be read is ready, in its place, before the sink says so: a heartbeat that is
	// injected afterwards cannot slip by.
	open := k.shards.take()
	read, err := k.prepare(ctx, f, open)
	if err != nil {
		return err
	}
	if gap != "" {
		f.Gap(gap)
	}
	f.Ready()

	done := make(chan ended)
	launch := func(sh *shard, read func(context.Context, *shard) ([]types.ChildShard, error)) {
		readers.Go(func() {
			children, err := contained(ctx, sh, read)
			select {
			case done <- ended{sh, children, err}:
			case <-ctx.Done():
			}
		})
	}
	for i, sh := range open {
		launch(sh, read(i))
	}
	refresh := time.NewTicker(time.Duration(k.cfg.ShardRefresh))
	defer refresh.Stop()
	failures := 0
	for {
		look := false
		select {
		case <-ctx.Done():
			return nil
		case <-refresh.C:
			look = true
		case e := <-done:
			switch {
			case e.err != nil && !k.shards.finished(e.sh):
				if conn.ClassOf(e.err) != conn.Missing {
					return e.err
				}
				// The shard is gone, or the whole stream: the list tells, and an error there ends Run.
				if err := k.discover(ctx, f); err != nil {
					return err
				}
				if !k.shards.finished(e.sh) {
					return e.err
				}
			case e.err != nil:
			default:
				k.shards.children(e.children)
				// A closed shard has children; one that does not name them must not be dropped from
				// what is watched before the list has named them.
				if len(e.children) == 0 {
					if err := k.discoverPatiently(ctx, f); err != nil {
						return err
					}
				}
				k.shards.finish(e.sh)
			}
		}
		if look {
			err := k.discover(ctx, f)
			if err != nil && ctx.Err() == nil {
				failures++
				if conn.ClassOf(err) != conn.Throttle && (failures >= maxFailures || !transient(err)) {
					return err
				}
				f.Error(err)
			} else {
				failures = 0
			}
		}
		for _, sh := range k.shards.take() {
			launch(sh, read(-1))
		}
	}
}

// contained is read, of which a panic is an error.
func contained(ctx context.Context, sh *shard, read func(context.Context, *shard) ([]types.ChildShard, error)) (children []types.ChildShard, err error) {
	defer conn.Contain(&err)
	return read(ctx, sh)
}

// discover asks for the list of shards.
func (k *kinesisSink) discover(ctx context.Context, f *Feed) error {
	listed, err := k.cfg.ListShards(ctx, k.api, false)
	if err != nil {
		return err
	}
	gap := k.shards.update(listed, shardPosition{horizon: true})
	if gap != "" {
		f.Gap(gap)
	}
	if gap == "recreated" {
		return conn.WithClass(conn.Missing, fmt.Errorf("kinesis stream %s was deleted and created again", k.cfg.Name()))
	}
	return nil
}

// discoverPatiently is discover for when the list is needed to go on: it waits while it is throttled.
func (k *kinesisSink) discoverPatiently(ctx context.Context, f *Feed) error {
	for pause := time.Second; ; pause = min(2*pause, maxPause) {
		err := k.discover(ctx, f)
		if err == nil || conn.ClassOf(err) != conn.Throttle {
			return err
		}
		f.Error(err)
		if sleep(ctx, jitter(pause)) != nil {
			return nil
		}
	}
}

// prepare takes a place in each shard and returns the readers that go on from there: read(i) for
// open[i], and read(-1) for a shard that appears later.
func (k *kinesisSink) prepare(ctx context.Context, f *Feed, open []*shard) (read func(int) func(context.Context, *shard) ([]types.ChildShard, error), err error) {
	if k.cfg.EnhancedFanOut != nil {
		return k.prepareFanOut(ctx, f, open)
	}
	iterators := make([]string, len(open))
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(8)
	for i, sh := range open {
		group.Go(func() error {
			it, err := k.place(gctx, f, sh)
			iterators[i] = it
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	return func(i int) func(context.Context, *shard) ([]types.ChildShard, error) {
		it, phase := "", time.Duration(0)
		if i >= 0 {
			it = iterators[i]
			// Spread over the interval, so that the requests do not come in bursts.
			phase = time.Duration(k.cfg.PollInterval) * time.Duration(i) / time.Duration(len(open))
		}
		return func(ctx context.Context, sh *shard) ([]types.ChildShard, error) {
			return k.poll(ctx, f, sh, it, phase)
		}
	}, nil
}

// place takes an iterator at the shard's position; it waits while it is throttled.
func (k *kinesisSink) place(ctx context.Context, f *Feed, sh *shard) (string, error) {
	for pause := time.Second; ; pause = min(2*pause, maxPause) {
		pos := k.shards.at(sh)
		if pos.iterator != "" {
			return pos.iterator, nil
		}
		it, served, err := k.iterator(ctx, sh.id, pos)
		switch {
		case err == nil:
			if pos == (shardPosition{}) {
				// An iterator lives five minutes. Should this one expire before a record is seen, LATEST
				// would be a later place; the time is not.
				k.shards.move(sh, shardPosition{since: served.Add(-latestMargin), iterator: it})
			}
			k.startedAt(served)
			return it, nil
		case k.looking && pos.since.Equal(k.since) && isInvalidArgument(err):
			f.Error(k.refused(f, sh, err))
		case pos.seq != "" && isInvalidArgument(err):
			// The record of that number has expired, or never was in this stream.
			f.Error(err)
			f.Gap("trimmed")
			k.shards.move(sh, shardPosition{horizon: true})
		case conn.ClassOf(err) == conn.Throttle:
			f.Error(err)
			f.Skip(0) // an answer, though not the hoped-for one: the sink is alive
			if err := sleep(ctx, jitter(pause)); err != nil {
				return "", err
			}
		default:
			return "", err
		}
	}
}

// iterator asks for an iterator, and tells the service's time when it answered.
func (k *kinesisSink) iterator(ctx context.Context, id string, pos shardPosition) (it string, served time.Time, err error) {
	in := &kinesis.GetShardIteratorInput{ShardId: aws.String(id)}
	in.StreamName, in.StreamARN = k.cfg.StreamID()
	switch {
	case pos.seq != "":
		in.ShardIteratorType, in.StartingSequenceNumber = types.ShardIteratorTypeAfterSequenceNumber, aws.String(pos.seq)
	case pos.horizon:
		in.ShardIteratorType = types.ShardIteratorTypeTrimHorizon
	case !pos.since.IsZero():
		in.ShardIteratorType, in.Timestamp = types.ShardIteratorTypeAtTimestamp, aws.Time(pos.since)
	default:
		in.ShardIteratorType = types.ShardIteratorTypeLatest
	}
	asked := time.Now()
	ctx, cancel := context.WithTimeout(ctx, time.Duration(k.cfg.RequestTimeout))
	defer cancel()
	out, err := k.api.GetShardIterator(ctx, in)
	if err != nil {
		return "", time.Time{}, k.cfg.Err("get iterator of "+id, err)
	}
	served, ok := awsmiddleware.GetServerTime(out.ResultMetadata)
	if !ok {
		served = asked
	}
	return aws.ToString(out.ShardIterator), served, nil
}

func (k *kinesisSink) getRecords(ctx context.Context, id, it string, limit int32) (*kinesis.GetRecordsOutput, error) {
	in := &kinesis.GetRecordsInput{ShardIterator: aws.String(it), Limit: aws.Int32(limit)}
	_, in.StreamARN = k.cfg.StreamID()
	ctx, cancel := context.WithTimeout(ctx, time.Duration(k.cfg.RequestTimeout))
	defer cancel()
	out, err := k.api.GetRecords(ctx, in)
	if err != nil {
		return nil, k.cfg.Err("read "+id, err)
	}
	return out, nil
}

// poll reads a shard to its end. It returns the shard's children, as far as the service names them,
// when the shard is closed and drained.
func (k *kinesisSink) poll(ctx context.Context, f *Feed, sh *shard, it string, phase time.Duration) ([]types.ChildShard, error) {
	var (
		tolerance = tolerance{interval: time.Duration(k.cfg.PollInterval)}
		limit     = int32(firstLimit)
		pace      pace
		tip       time.Time // when the previous answer was asked for, if that one had reached the tip
		err       error
	)
	timer := time.NewTimer(phase)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-timer.C:
		}
		if it == "" {
			if it, err = k.place(ctx, f, sh); err != nil {
				wait, err := tolerance.of(ctx, f, err)
				if err != nil {
					return nil, err
				}
				timer.Reset(wait)
				continue
			}
		}
		asked := time.Now()
		out, err := k.getRecords(ctx, sh.id, it, limit)
		if err != nil {
			var expired *types.ExpiredIteratorException
			pos := k.shards.at(sh)
			if errors.As(err, &expired) || pos.iterator == it && isInvalidArgument(err) {
				pos.iterator = ""
				k.shards.move(sh, pos)
				it, tip = "", time.Time{}
				timer.Reset(reissuePause)
				continue
			}
			wait, err := tolerance.of(ctx, f, err)
			if err != nil {
				return nil, err
			}
			timer.Reset(wait)
			continue
		}
		tolerance.answered()
		k.shards.lags(sh, out.MillisBehindLatest, time.Now())
		bytes := k.deliver(f, sh, out.Records)
		if aws.ToString(out.NextShardIterator) == "" {
			return out.ChildShards, nil
		}
		it = *out.NextShardIterator
		if k.hurry(sh, out.Records, bytes, &pace) {
			it, tip = "", time.Time{}
			timer.Reset(max(reissuePause, time.Duration(float64(bytes)/readBandwidth*float64(time.Second))))
			continue
		}

		atTip := out.MillisBehindLatest != nil && *out.MillisBehindLatest == 0
		// A shard that was closed a moment ago may still look as if its tip were now. But such a shard
		// has no next page after the tip: an empty page with a next one proves that the shard was open,
		// and a page with records proves it for the page before.
		switch {
		case atTip && len(out.Records) == 0:
			k.caughtUp(f, sh, asked)
			k.idle(sh, out)
			tip = asked
		case atTip && !tip.IsZero():
			k.caughtUp(f, sh, tip)
			tip = asked
		case atTip:
			tip = asked
		default:
			tip = time.Time{}
		}

		wait := time.Duration(k.cfg.PollInterval)
		if !atTip {
			wait = min(wait, behindInterval)
		}
		if n := len(out.Records); n > 0 {
			wait = max(wait, time.Duration(float64(bytes)/readBandwidth*float64(time.Second)))
			limit = int32(min(max(pageBytes/max(bytes/n, 1), 100), maxLimit))
		}
		timer.Reset(max(0, time.Until(asked.Add(wait))))
	}
}

// deliver passes records on and moves the shard's position behind them. It returns how many bytes of
// data they hold.
func (k *kinesisSink) deliver(f *Feed, sh *shard, records []types.Record) (bytes int) {
	if len(records) == 0 {
		f.Skip(0)
		return 0
	}
	others := 0
	for i := range records {
		r := &records[i]
		bytes += len(r.Data)
		seq, arrived := aws.ToString(r.SequenceNumber), aws.ToTime(r.ApproximateArrivalTimestamp)
		past := k.isPast(arrived)
		message, count, aggregated := unaggregate(r.Data)
		switch {
		case !f.mayHold(r.Data):
			if !aggregated {
				count = 1
			}
			others += count
		case !aggregated:
			f.Deliver(Message{Body: r.Data, ID: recordID(sh.id, seq, 0), Enqueued: arrived, Past: past})
		default:
			eachRecord(message, func(j int, data []byte) {
				if !f.mayHold(data) {
					others++
					return
				}
				f.Deliver(Message{Body: data, ID: recordID(sh.id, seq, j+1), Enqueued: arrived, Past: past})
			})
		}
	}
	f.Skip(others)
	k.shards.move(sh, shardPosition{seq: aws.ToString(records[len(records)-1].SequenceNumber)})
	return bytes
}

// isPast reports whether a record that arrived then had been there before the sink.
func (k *kinesisSink) isPast(arrived time.Time) bool {
	past := k.past.Load()
	return past != 0 && !arrived.IsZero() && arrived.UnixMilli() < past
}

// hurry moves the position of a shard whose look-back takes too long to the middle of what is left, when
// all of the records just read belong to it.
func (k *kinesisSink) hurry(sh *shard, records []types.Record, bytes int, pace *pace) bool {
	for i := range records {
		if !k.isPast(aws.ToTime(records[i].ApproximateArrivalTimestamp)) {
			return false
		}
	}
	if len(records) == 0 || !pace.slow(bytes) {
		return false
	}
	last, past := aws.ToTime(records[len(records)-1].ApproximateArrivalTimestamp), time.UnixMilli(k.past.Load())
	middle := last.Add(past.Sub(last)/2 + time.Second) // further than two records are out of order by their times
	if middle.After(past) {
		middle = past
	}
	k.shards.move(sh, shardPosition{since: middle})
	return true
}

// idle moves the position of a shard that has had no record since our start, so that an iterator which
// is taken again does not have to walk over hours of nothing.
func (k *kinesisSink) idle(sh *shard, out *kinesis.GetRecordsOutput) {
	pos := k.shards.at(sh)
	if pos.seq != "" || pos.since.IsZero() {
		return
	}
	pos.iterator = aws.ToString(out.NextShardIterator)
	served, ok := awsmiddleware.GetServerTime(out.ResultMetadata)
	if since := served.Add(-idleMargin); ok && since.After(pos.since) {
		pos.since = since
	}
	k.shards.move(sh, pos)
}

// caughtUp reports what holds for all shards.
func (k *kinesisSink) caughtUp(f *Feed, sh *shard, t time.Time) {
	if held := k.shards.caughtUp(sh, t, time.Now()); !held.IsZero() {
		f.CaughtUp(held)
	}
}

// recordID is the FNV-1a hash of a record's place; sub counts the records inside an aggregated one
// from 1. It is never 0, which stands for no id.
func recordID(shard, seq string, sub int) uint64 {
	const prime = 1099511628211
	h := uint64(14695981039346656037)
	for _, s := range [2]string{shard, seq} {
		for i := range len(s) {
			h = (h ^ uint64(s[i])) * prime
		}
		h = (h ^ '/') * prime
	}
	for ; sub > 0; sub >>= 8 {
		h = (h ^ uint64(sub&0xff)) * prime
	}
	return max(h, 1)
}

// tolerance decides which errors of a shard end Run. A stream has many shards, each asked every second:
// one answer that is lost now and then must not tear all of them down.
type tolerance struct {
	interval time.Duration
	failures int // transient ones in a row
	throttle int // throttled in a row
}

func (t *tolerance) answered() { t.failures, t.throttle = 0, 0 }

// of returns how long to wait before the next attempt, or the error that ends Run.
func (t *tolerance) of(ctx context.Context, f *Feed, err error) (time.Duration, error) {
	if ctx.Err() != nil {
		return 0, ctx.Err()
	}
	if conn.ClassOf(err) == conn.Throttle {
		f.Error(err)
		f.Skip(0)
		t.throttle = min(t.throttle+1, 10)
		return jitter(min(t.interval<<t.throttle, maxPause)), nil
	}
	t.failures++
	if t.failures >= maxFailures || !transient(err) {
		return 0, err
	}
	f.Error(err)
	return t.interval, nil
}

// transient reports an error that is likely to be gone at the next attempt over the same client: an
// error of the service itself, or a connection that broke. A connection that cannot be made and a
// request without an answer are not: there the loop shall reconnect.
func transient(err error) bool {
	if conn.HTTPStatus(err) >= 500 {
		return true
	}
	if conn.HTTPStatus(err) != 0 || errors.Is(err, context.DeadlineExceeded) || conn.ClassOf(err) != conn.Network {
		return false
	}
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "dial" {
		return false
	}
	var timeout net.Error
	return !errors.As(err, &timeout) || !timeout.Timeout()
}

func isInvalidArgument(err error) bool {
	var invalid *types.InvalidArgumentException
	return errors.As(err, &invalid)
}

// jitter takes up to a fifth off.
func jitter(d time.Duration) time.Duration { return d - time.Duration(rand.Int64N(int64(d)/5+1)) }

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
