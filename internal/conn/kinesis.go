package conn

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kinesis"
	"github.com/aws/aws-sdk-go-v2/service/kinesis/types"
)

// Kinesis says where a Kinesis data stream is. Exactly one of Stream and StreamARN is set.
type Kinesis struct {
	AWS `yaml:",inline"`
	// Stream is the name of the data stream.
	Stream string `yaml:"stream,omitempty"`
	// StreamARN names the stream instead, also one of another account.
	StreamARN string `yaml:"stream_arn,omitempty"`
}

// DefaultKinesis returns the defaults.
func DefaultKinesis() Kinesis { return Kinesis{AWS: DefaultAWS()} }

var (
	streamName = regexp.MustCompile(`^[a-zA-Z0-9_.-]{1,128}$`)
	streamARN  = regexp.MustCompile(`^arn:aws[a-z-]*:kinesis:[a-z0-9-]+:\d{12}:stream/[a-zA-Z0-9_.-]{1,128}$`)
)

// Validate reports every mistake as a FieldError.
func (k *Kinesis) Validate() error {
	var errs []error
	switch {
	case k.Stream == "" && k.StreamARN == "":
		errs = append(errs, Field("stream", "which stream? write stream: NAME or stream_arn: ARN"))
	case k.Stream != "" && k.StreamARN != "":
		errs = append(errs, Field("stream_arn", "choose one of stream and stream_arn"))
	case k.Stream != "" && !streamName.MatchString(k.Stream):
		errs = append(errs, Field("stream", "%q is not the name of a stream: 1 to 128 of A-Z a-z 0-9 _ . -", k.Stream))
	case k.StreamARN != "" && !streamARN.MatchString(k.StreamARN):
		errs = append(errs, Field("stream_arn", "%q is not the ARN of a stream: write arn:aws:kinesis:REGION:ACCOUNT:stream/NAME", k.StreamARN))
	}
	return errors.Join(append(errs, k.AWS.Validate())...)
}

// Name returns the stream's name, for errors.
func (k *Kinesis) Name() string {
	if k.Stream != "" {
		return k.Stream
	}
	return k.StreamARN[strings.LastIndexByte(k.StreamARN, '/')+1:]
}

// Err wraps an error of the SDK with its class and the stream's name.
func (k *Kinesis) Err(doing string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("kinesis stream %s: %s: %w", k.Name(), doing, AWSError(err))
}

// StreamID returns the parameters that name the stream in a request: one of them is nil.
func (k *Kinesis) StreamID() (name, arn *string) {
	if k.StreamARN != "" {
		return nil, aws.String(k.StreamARN)
	}
	return aws.String(k.Stream), nil
}

// A KinesisClient is the SDK's client with what it needs to be left cleanly.
type KinesisClient struct {
	*kinesis.Client
	// CloseIdle closes the idle connections; the client can still be used.
	CloseIdle func()
}

// OpenClient reads credentials' sources and returns a client. It does not wait for the network.
func (k *Kinesis) OpenClient() (*KinesisClient, error) {
	cfg, client, err := k.Open(k.StreamARN)
	if err != nil {
		return nil, err
	}
	return &KinesisClient{
		Client: kinesis.NewFromConfig(cfg, func(o *kinesis.Options) {
			o.HTTPClient = client
			if k.Endpoint != "" {
				o.BaseEndpoint = aws.String(k.Endpoint)
			}
		}),
		CloseIdle: client.CloseIdleConnections,
	}, nil
}

// ShardLister is the call that ListShards needs.
type ShardLister interface {
	ListShards(context.Context, *kinesis.ListShardsInput, ...func(*kinesis.Options)) (*kinesis.ListShardsOutput, error)
}

// ListShards returns the stream's shards, all pages of them, in the service's order. With open it
// leaves out the closed ones. Each page has RequestTimeout to arrive.
func (k *Kinesis) ListShards(ctx context.Context, api ShardLister, open bool) ([]types.Shard, error) {
	if open {
		return k.listShards(ctx, api, &types.ShardFilter{Type: types.ShardFilterTypeAtLatest})
	}
	return k.listShards(ctx, api, nil)
}

// ListShardsSince is ListShards without the shards that were closed before a time of the service's clock.
func (k *Kinesis) ListShardsSince(ctx context.Context, api ShardLister, since time.Time) ([]types.Shard, error) {
	return k.listShards(ctx, api, &types.ShardFilter{Type: types.ShardFilterTypeFromTimestamp, Timestamp: aws.Time(since)})
}

func (k *Kinesis) listShards(ctx context.Context, api ShardLister, filter *types.ShardFilter) ([]types.Shard, error) {
	open := filter != nil && filter.Type == types.ShardFilterTypeAtLatest
	var shards []types.Shard
	in := &kinesis.ListShardsInput{ShardFilter: filter}
	in.StreamName, in.StreamARN = k.StreamID()
	for {
		page, cancel := context.WithTimeout(ctx, time.Duration(k.RequestTimeout))
		out, err := api.ListShards(page, in)
		cancel()
		if err != nil {
			return nil, k.Err("list shards", err)
		}
		for _, s := range out.Shards {
			// A server that ignores the filter must not bring closed shards in.
			if open && s.SequenceNumberRange != nil && s.SequenceNumberRange.EndingSequenceNumber != nil {
				continue
			}
			shards = append(shards, s)
		}
		if aws.ToString(out.NextToken) == "" {
			return shards, nil
		}
		// The token names the stream; a request with both is refused.
		in = &kinesis.ListShardsInput{NextToken: out.NextToken}
		if k.StreamARN != "" {
			in.StreamARN = aws.String(k.StreamARN)
		}
	}
}

// ShardNumber returns the number in a shard's id: 12 for shardId-000000000012.
func ShardNumber(id string) (uint32, error) {
	n, err := strconv.ParseUint(strings.TrimPrefix(id, "shardId-"), 10, 32)
	if err != nil || !strings.HasPrefix(id, "shardId-") {
		return 0, fmt.Errorf("shard id %q has no number", id)
	}
	return uint32(n), nil
}
