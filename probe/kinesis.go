package probe

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kinesis"
	"github.com/aws/aws-sdk-go-v2/service/kinesis/types"

	"github.com/lag-monitor/lag-monitor/internal/conn"
)

// What one PutRecords request may hold. The service takes more bytes, but in one request of this size
// even a full batch stays well inside a second on a slow line.
const (
	maxPutRecords = 500
	maxPutBytes   = 4 << 20
)

// Kinesis puts heartbeats on a Kinesis data stream.
type Kinesis struct {
	conn.Kinesis `yaml:",inline"`
	// Data is the template of the record's data.
	Data Template `yaml:"data,omitempty"`
	// PartitionKey is the template of the partition key, at most 256 characters. With `lanes: one` it
	// decides the shard; with `lanes: all` the shard is chosen by an explicit hash key.
	PartitionKey Template `yaml:"partition_key,omitempty"`
	// Lanes: `all` sends one heartbeat to every open shard at each tick and follows resharding; `one`
	// sends one heartbeat, to the shard of its partition key.
	Lanes string `yaml:"lanes,omitempty"`
}

// NewKinesis returns the defaults.
func NewKinesis() *Kinesis {
	return &Kinesis{
		Kinesis:      conn.DefaultKinesis(),
		Data:         MustTemplate(DefaultBody),
		PartitionKey: MustTemplate("lag-monitor-{{ .Probe }}-{{ .Lane }}"),
		Lanes:        "all",
	}
}

// Validate implements Config.
func (c *Kinesis) Validate() error {
	errs := []error{c.Kinesis.Validate()}
	if err := CheckToken(c.Data); err != nil {
		errs = append(errs, conn.Prefix("data", err))
	}
	if key, err := c.PartitionKey.Render(Sample()); err != nil {
		errs = append(errs, conn.Prefix("partition_key", err))
	} else if len(key) == 0 || len([]rune(string(key))) > 256 {
		errs = append(errs, conn.Field("partition_key", "the key has %d characters: 1 to 256 are valid", len([]rune(string(key)))))
	}
	if c.Lanes != "all" && c.Lanes != "one" {
		errs = append(errs, conn.Field("lanes", "%q is not valid: all (every open shard) or one (the shard of the partition key)", c.Lanes))
	}
	return errors.Join(errs...)
}

// Open implements Config.
func (c *Kinesis) Open() (Injector, error) {
	client, err := c.OpenClient()
	if err != nil {
		return nil, err
	}
	in := &kinesisInjector{cfg: c, api: client, closeIdle: client.CloseIdle}
	if c.Lanes == "one" {
		return in, nil
	}
	return &kinesisLanes{kinesisInjector: in, middle: make(map[uint32]string)}, nil
}

// kinesisPutter is the part of the SDK's client that the injector uses.
type kinesisPutter interface {
	conn.ShardLister
	PutRecord(context.Context, *kinesis.PutRecordInput, ...func(*kinesis.Options)) (*kinesis.PutRecordOutput, error)
	PutRecords(context.Context, *kinesis.PutRecordsInput, ...func(*kinesis.Options)) (*kinesis.PutRecordsOutput, error)
}

// kinesisInjector injects by partition key.
type kinesisInjector struct {
	cfg       *Kinesis
	api       kinesisPutter
	closeIdle func()
	closed    atomic.Bool
}

func (k *kinesisInjector) Close() error {
	k.closed.Store(true)
	k.closeIdle()
	return nil
}

var errKinesisClosed = errors.New("the injector is closed")

// Check implements Checker.
func (k *kinesisInjector) Check(ctx context.Context) error {
	_, err := k.cfg.ListShards(ctx, k.api, true)
	return err
}

func (k *kinesisInjector) Inject(ctx context.Context, m *Message) error {
	return k.put(ctx, m, nil)
}

func (k *kinesisInjector) render(m *Message) (data []byte, key string, err error) {
	if k.closed.Load() {
		return nil, "", errKinesisClosed
	}
	data, err = k.cfg.Data.Render(m)
	if err != nil {
		return nil, "", fmt.Errorf("data: %w", err)
	}
	b, err := k.cfg.PartitionKey.Render(m)
	if err != nil {
		return nil, "", fmt.Errorf("partition_key: %w", err)
	}
	return data, string(b), nil
}

// put sends one record; hash, if not nil, is the explicit hash key.
func (k *kinesisInjector) put(ctx context.Context, m *Message, hash *string) error {
	data, key, err := k.render(m)
	if err != nil {
		return Refused(err)
	}
	in := &kinesis.PutRecordInput{Data: data, PartitionKey: aws.String(key), ExplicitHashKey: hash}
	in.StreamName, in.StreamARN = k.cfg.StreamID()
	ctx, cancel := context.WithTimeout(ctx, time.Duration(k.cfg.RequestTimeout))
	defer cancel()
	ctx, sent := conn.TrackSent(ctx)
	_, err = k.api.PutRecord(ctx, in)
	return k.outcome("put record", err, sent.Load())
}

// outcome decides what an error of a put means. sent tells whether the request had left.
func (k *kinesisInjector) outcome(doing string, err error, sent bool) error {
	return awsOutcome(k.cfg.Err(doing, err), sent)
}

// kinesisLanes injects into every open shard.
type kinesisLanes struct {
	*kinesisInjector

	mu     sync.Mutex
	middle map[uint32]string // lane → a hash key in the middle of its shard's range, decimal
}

// Lanes implements Laner. A lane is the number in a shard's id.
func (k *kinesisLanes) Lanes(ctx context.Context) ([]uint32, error) {
	shards, err := k.cfg.ListShards(ctx, k.api, true)
	if err != nil {
		return nil, err
	}
	middle := make(map[uint32]string, len(shards))
	lanes := make([]uint32, 0, len(shards))
	for _, s := range shards {
		lane, err := conn.ShardNumber(aws.ToString(s.ShardId))
		if err != nil {
			return nil, k.cfg.Err("list shards", err)
		}
		m, err := middleOf(s.HashKeyRange)
		if err != nil {
			return nil, k.cfg.Err("list shards", fmt.Errorf("%s: %w", *s.ShardId, err))
		}
		middle[lane] = m
		lanes = append(lanes, lane)
	}
	if len(lanes) == 0 {
		return nil, conn.WithClass(conn.Missing, fmt.Errorf("kinesis stream %s has no open shard", k.cfg.Name()))
	}
	slices.Sort(lanes)
	k.mu.Lock()
	defer k.mu.Unlock()
	// The schedule may still be at a tick of lanes that have closed: their hash keys lead to a child.
	if len(k.middle) <= 2*len(middle)+100 {
		for lane, m := range k.middle {
			if _, open := middle[lane]; !open {
				middle[lane] = m
			}
		}
	}
	k.middle = middle
	return lanes, nil
}

// middleOf returns the hash key in the middle of a range: as far as can be from both neighbours, so
// that a split cannot leave the key on the border.
func middleOf(r *types.HashKeyRange) (string, error) {
	if r == nil {
		return "", errors.New("it has no range of hash keys")
	}
	low, ok1 := new(big.Int).SetString(aws.ToString(r.StartingHashKey), 10)
	high, ok2 := new(big.Int).SetString(aws.ToString(r.EndingHashKey), 10)
	if !ok1 || !ok2 {
		return "", fmt.Errorf("its range of hash keys is %q to %q", aws.ToString(r.StartingHashKey), aws.ToString(r.EndingHashKey))
	}
	return low.Add(low, high).Rsh(low, 1).String(), nil
}

// hash returns the explicit hash key of a lane, and asks for the shards when it does not know the
// lane.
func (k *kinesisLanes) hash(ctx context.Context, lane uint32) (*string, error) {
	k.mu.Lock()
	m, ok := k.middle[lane]
	k.mu.Unlock()
	if !ok {
		if _, err := k.Lanes(ctx); err != nil {
			return nil, err
		}
		k.mu.Lock()
		m, ok = k.middle[lane]
		k.mu.Unlock()
	}
	if !ok {
		return nil, conn.WithClass(conn.Missing, fmt.Errorf("kinesis stream %s has no open shard with the number %d", k.cfg.Name(), lane))
	}
	return &m, nil
}

func (k *kinesisLanes) Inject(ctx context.Context, m *Message) error {
	hash, err := k.hash(ctx, m.Lane)
	if err != nil {
		return Refused(err)
	}
	return k.put(ctx, m, hash)
}

// InjectBatch implements BatchInjector.
func (k *kinesisLanes) InjectBatch(ctx context.Context, ms []*Message, errs []error) {
	var (
		entries []types.PutRecordsRequestEntry
		at      []int // entries[i] is ms[at[i]]
		bytes   int
	)
	flush := func() {
		if len(entries) > 0 {
			k.putAll(ctx, entries, at, errs)
		}
		entries, at, bytes = nil, nil, 0
	}
	for i, m := range ms {
		errs[i] = nil
		hash, err := k.hash(ctx, m.Lane)
		if err != nil {
			errs[i] = Refused(err)
			continue
		}
		data, key, err := k.render(m)
		if err != nil {
			errs[i] = Refused(err)
			continue
		}
		if len(entries) == maxPutRecords || len(entries) > 0 && bytes+len(data)+len(key) > maxPutBytes {
			flush()
		}
		entries = append(entries, types.PutRecordsRequestEntry{Data: data, PartitionKey: aws.String(key), ExplicitHashKey: hash})
		at = append(at, i)
		bytes += len(data) + len(key)
	}
	flush()
}

func (k *kinesisLanes) putAll(ctx context.Context, entries []types.PutRecordsRequestEntry, at []int, errs []error) {
	in := &kinesis.PutRecordsInput{Records: entries}
	in.StreamName, in.StreamARN = k.cfg.StreamID()
	ctx, cancel := context.WithTimeout(ctx, time.Duration(k.cfg.RequestTimeout))
	defer cancel()
	ctx, sent := conn.TrackSent(ctx)
	out, err := k.api.PutRecords(ctx, in)
	if err == nil && len(out.Records) != len(entries) {
		err = fmt.Errorf("%d results for %d records", len(out.Records), len(entries))
	}
	if err != nil {
		err = k.outcome("put records", err, sent.Load())
		for _, i := range at {
			errs[i] = err
		}
		return
	}
	for j, r := range out.Records {
		errs[at[j]] = k.recordOutcome(r)
	}
}

// recordOutcome decides what the result of one record in an accepted request means.
func (k *kinesisLanes) recordOutcome(r types.PutRecordsResultEntry) error {
	code := aws.ToString(r.ErrorCode)
	if code == "" {
		return nil
	}
	err := fmt.Errorf("kinesis stream %s: put records: %s: %s", k.cfg.Name(), code, aws.ToString(r.ErrorMessage))
	switch {
	case code == "ProvisionedThroughputExceededException":
		return Refused(conn.WithClass(conn.Throttle, err))
	case strings.HasPrefix(code, "KMS"):
		return Refused(conn.WithClass(conn.Auth, err))
	}
	// InternalFailure: the service does not know either.
	return conn.WithClass(conn.Other, err)
}
