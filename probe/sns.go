package probe

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sns"
	"github.com/aws/aws-sdk-go-v2/service/sns/types"

	"github.com/lag-monitor/lag-monitor/internal/conn"
)

// SNS publishes heartbeats to a topic of Amazon SNS.
type SNS struct {
	conn.AWS `yaml:",inline"`
	// TopicARN is the ARN of the topic.
	TopicARN   string `yaml:"topic_arn,omitempty"`
	AWSMessage `yaml:",inline"`
}

// NewSNS returns the defaults.
func NewSNS() *SNS { return &SNS{AWS: conn.DefaultAWS(), AWSMessage: newAWSMessage()} }

var topicARN = regexp.MustCompile(`^arn:aws[a-z-]*:sns:[a-z0-9-]+:\d{12}:[A-Za-z0-9_-]{1,256}(\.fifo)?$`)

// Validate implements Config.
func (c *SNS) Validate() error {
	errs := []error{c.AWS.Validate()}
	switch {
	case c.TopicARN == "":
		errs = append(errs, conn.Field("topic_arn", "which topic? write arn:aws:sns:REGION:ACCOUNT:NAME"))
	case !topicARN.MatchString(c.TopicARN):
		errs = append(errs, conn.Field("topic_arn", "%q is not the ARN of a topic: write arn:aws:sns:REGION:ACCOUNT:NAME", c.TopicARN))
	}
	return errors.Join(append(errs, c.validate(c.fifo()))...)
}

func (c *SNS) fifo() bool { return strings.HasSuffix(c.TopicARN, ".fifo") }

func (c *SNS) err(doing string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("sns topic %s: %s: %w", c.TopicARN[strings.LastIndexByte(c.TopicARN, ':')+1:], doing, conn.AWSError(err))
}

// Open implements Config.
func (c *SNS) Open() (Injector, error) {
	cfg, client, err := c.AWS.Open(c.TopicARN)
	if err != nil {
		return nil, err
	}
	return &snsInjector{cfg: c, closeIdle: client.CloseIdleConnections, api: sns.NewFromConfig(cfg, func(o *sns.Options) {
		o.HTTPClient = client
		if c.Endpoint != "" {
			o.BaseEndpoint = aws.String(c.Endpoint)
		}
	})}, nil
}

type snsInjector struct {
	cfg       *SNS
	api       *sns.Client
	closeIdle func()
	closed    atomic.Bool
}

// Inject implements Injector.
func (i *snsInjector) Inject(ctx context.Context, m *Message) error {
	if i.closed.Load() {
		return Refused(errAWSClosed)
	}
	r, err := i.cfg.render(m, i.cfg.fifo())
	if err != nil {
		return Refused(err)
	}
	in := &sns.PublishInput{TopicArn: aws.String(i.cfg.TopicARN), Message: r.body, MessageGroupId: r.group, MessageDeduplicationId: r.unique,
		MessageAttributes: make(map[string]types.MessageAttributeValue, len(r.attributes))}
	for name, v := range r.attributes {
		in.MessageAttributes[name] = types.MessageAttributeValue{DataType: aws.String("String"), StringValue: aws.String(v)}
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(i.cfg.RequestTimeout))
	defer cancel()
	ctx, sent := conn.TrackSent(ctx)
	_, err = i.api.Publish(ctx, in)
	return awsOutcome(i.cfg.err("publish", err), sent.Load())
}

// Lanes implements Laner.
func (i *snsInjector) Lanes(context.Context) ([]uint32, error) { return i.cfg.lanes(), nil }

// Check implements Checker. Whether it may publish is only seen by publishing.
func (i *snsInjector) Check(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(i.cfg.RequestTimeout))
	defer cancel()
	_, err := i.api.GetTopicAttributes(ctx, &sns.GetTopicAttributesInput{TopicArn: aws.String(i.cfg.TopicARN)})
	return i.cfg.err("look at it", err)
}

// Close implements Injector.
func (i *snsInjector) Close() error {
	i.closed.Store(true)
	i.closeIdle()
	return nil
}
