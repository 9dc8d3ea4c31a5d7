package stream

import (
	"context"
	"errors"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/kinesis"
	"github.com/aws/smithy-go"
)

// Kinesis writes records. It is safe for concurrent use.
type Kinesis struct{ client *kinesis.Client }

// Open finds region and credentials where the AWS SDK does. endpoint replaces the public address of the service
// unless it is empty.
func Open(ctx context.Context, endpoint string) (*Kinesis, error) {
	cfg, err := awsconfig.LoadDefaultConfig(ctx, awsconfig.WithRetryer(func() aws.Retryer { return aws.NopRetryer{} }))
	if err != nil {
		return nil, fmt.Errorf("aws: %w", err)
	}
	return &Kinesis{kinesis.NewFromConfig(cfg, func(o *kinesis.Options) {
		if endpoint != "" {
			o.BaseEndpoint = &endpoint
		}
	})}, nil
}

// Put writes one record. The key spreads records over the shards. When it returns an error the record may be in the
// stream all the same: the answer may have been lost.
func (k *Kinesis) Put(ctx context.Context, stream, key string, data []byte) error {
	_, err := k.client.PutRecord(ctx, &kinesis.PutRecordInput{StreamName: &stream, PartitionKey: &key, Data: data})
	return err
}

// Refused tells the errors that the next attempt would meet again: no such stream, no right, too large. Throttling, a
// lost connection, no answer in time and errors of the service are none.
func Refused(err error) bool {
	var api smithy.APIError
	if !errors.As(err, &api) {
		return false
	}
	if _, throttled := retry.DefaultThrottleErrorCodes[api.ErrorCode()]; throttled {
		return false
	}
	var response *awshttp.ResponseError
	return errors.As(err, &response) && response.HTTPStatusCode()/100 == 4
}
