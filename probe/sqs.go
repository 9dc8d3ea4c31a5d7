package probe

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"github.com/lag-monitor/lag-monitor/internal/conn"
)

// AWSMessage is what a message to SQS and one to SNS have in common.
type AWSMessage struct {
	// Body is the template of the message; the services take the characters of XML, at most 1 MiB for SQS and 256 KiB for SNS.
	Body Template `yaml:"body,omitempty"`
	// Attributes are further message attributes, templates, at most 8: a filter policy may ask for them.
	// `lag-monitor-heartbeat` and `traceparent` are always sent.
	Attributes map[string]Template `yaml:"attributes,omitempty"`
	// Group is the template of the message group, 1 to 128 characters. FIFO needs one and has a default; a standard
	// queue or topic takes one for fair queues.
	Group Template `yaml:"group,omitempty"`
	// Lanes is how many message groups of a FIFO queue or topic get a heartbeat at each tick, 1 to 100.
	Lanes int `yaml:"lanes,omitempty"`
}

const (
	maxAWSAttributes = 8 // of 10, two are ours
	maxAWSLanes      = 100
)

var (
	awsAttribute = regexp.MustCompile(`^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$`)
	awsGroup     = regexp.MustCompile("^[A-Za-z0-9!-/:-@\\[-`{-~]{1,128}$")
	// fifoGroup is a group for each probe and lane.
	fifoGroup = MustTemplate("lag-monitor-{{ .Probe }}-{{ .Lane }}")
)

func newAWSMessage() AWSMessage { return AWSMessage{Body: defaultBody, Lanes: 1} }

func (c *AWSMessage) validate(fifo bool) error {
	errs := []error{conn.Prefix("body", CheckToken(c.Body))}
	if len(c.Attributes) > maxAWSAttributes {
		errs = append(errs, conn.Field("attributes", "there are %d: at most %d, beside the two of lag-monitor", len(c.Attributes), maxAWSAttributes))
	}
	for _, name := range slices.Sorted(maps.Keys(c.Attributes)) {
		lower := strings.ToLower(name)
		switch {
		case name == Header || name == TraceHeader:
			errs = append(errs, conn.Field("attributes."+name, "is written by lag-monitor itself"))
		case len(name) > 256 || !awsAttribute.MatchString(name) || strings.HasPrefix(lower, "aws.") || strings.HasPrefix(lower, "amazon."):
			errs = append(errs, conn.Field("attributes."+name, "is not the name of an attribute: 1 to 256 of A-Z a-z 0-9 _ - . , not beginning with AWS. or Amazon."))
		}
	}
	switch {
	case c.Lanes < 1 || c.Lanes > maxAWSLanes:
		errs = append(errs, conn.Field("lanes", "%d is out of range: 1 to %d", c.Lanes, maxAWSLanes))
	case c.Lanes > 1 && !fifo:
		errs = append(errs, conn.Field("lanes", "goes with FIFO: without it there is no order to watch"))
	}
	if group, err := c.group(Sample(), fifo); err != nil {
		errs = append(errs, conn.Prefix("group", err))
	} else if next := Sample(); c.Lanes > 1 {
		next.Lane++
		if other, err := c.group(next, fifo); err == nil && other == group {
			errs = append(errs, conn.Field("group", "is the same for each of the %d lanes: write {{ .Lane }} into it", c.Lanes))
		}
	}
	return errors.Join(errs...)
}

// group returns the message group, and "" for none.
func (c *AWSMessage) group(m *Message, fifo bool) (string, error) {
	t := c.Group
	if t.IsZero() {
		if !fifo {
			return "", nil
		}
		t = fifoGroup
	}
	b, err := t.Render(m)
	if err == nil && !awsGroup.Match(b) {
		err = fmt.Errorf("%q is not a message group: 1 to 128 letters, digits and punctuation marks", b)
	}
	return string(b), err
}

// An awsRendered is a message to be sent.
type awsRendered struct {
	body, group, unique *string
	attributes          map[string]string
}

func (c *AWSMessage) render(m *Message, fifo bool) (r awsRendered, err error) {
	body, err := c.Body.Render(m)
	if err != nil {
		return r, fmt.Errorf("body: %w", err)
	}
	r.body = aws.String(string(body))
	r.attributes = map[string]string{Header: m.Token}
	if m.TraceParent != "" {
		r.attributes[TraceHeader] = m.TraceParent
	}
	for name, t := range c.Attributes {
		v, err := t.Render(m)
		if err != nil {
			return r, fmt.Errorf("attributes.%s: %w", name, err)
		}
		if len(v) > 0 { // an empty one is refused
			r.attributes[name] = string(v)
		}
	}
	group, err := c.group(m, fifo)
	if err != nil {
		return r, fmt.Errorf("group: %w", err)
	}
	if group != "" {
		r.group = aws.String(group)
	}
	if fifo {
		// No two heartbeats are the same, also when the head takes bodies of equal content for duplicates.
		sum := sha256.Sum256([]byte(m.Token))
		r.unique = aws.String(hex.EncodeToString(sum[:]))
	}
	return r, nil
}

// lanes returns the lanes: each is a message group.
func (c *AWSMessage) lanes() []uint32 {
	all := make([]uint32, c.Lanes)
	for i := range all {
		all[i] = uint32(i)
	}
	return all
}

// awsOutcome decides what an error of a request to AWS means for the message in it. sent tells whether the
// request had left.
func awsOutcome(err error, sent bool) error {
	if err == nil {
		return nil
	}
	status := conn.HTTPStatus(err)
	// An answer of the 4xx kind is a clear no. After a 5xx, or no answer at all, the message may be there
	// nevertheless.
	if !sent || status >= 400 && status < 500 || conn.ClassOf(err) == conn.Throttle {
		return Refused(err)
	}
	return err
}

// SQS sends heartbeats to a queue of Amazon SQS.
type SQS struct {
	conn.SQS   `yaml:",inline"`
	AWSMessage `yaml:",inline"`
}

// NewSQS returns the defaults.
func NewSQS() *SQS { return &SQS{SQS: conn.DefaultSQS(), AWSMessage: newAWSMessage()} }

// Validate implements Config.
func (c *SQS) Validate() error {
	return errors.Join(c.SQS.Validate(), c.validate(c.FIFO()))
}

// Open implements Config.
func (c *SQS) Open() (Injector, error) {
	client, err := c.OpenClient()
	if err != nil {
		return nil, err
	}
	return &sqsInjector{cfg: c, client: client}, nil
}

type sqsInjector struct {
	cfg    *SQS
	client *conn.SQSClient
	closed atomic.Bool
}

var errAWSClosed = errors.New("the injector is closed")

// Inject implements Injector.
func (i *sqsInjector) Inject(ctx context.Context, m *Message) error {
	if i.closed.Load() {
		return Refused(errAWSClosed)
	}
	r, err := i.cfg.render(m, i.cfg.FIFO())
	if err != nil {
		return Refused(err)
	}
	url, err := i.client.URL(ctx, i.cfg.Queue)
	if err != nil {
		return Refused(i.cfg.Err("look it up", err))
	}
	in := &sqs.SendMessageInput{QueueUrl: aws.String(url), MessageBody: r.body, MessageGroupId: r.group, MessageDeduplicationId: r.unique,
		MessageAttributes: make(map[string]types.MessageAttributeValue, len(r.attributes))}
	for name, v := range r.attributes {
		in.MessageAttributes[name] = types.MessageAttributeValue{DataType: aws.String("String"), StringValue: aws.String(v)}
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(i.cfg.RequestTimeout))
	defer cancel()
	ctx, sent := conn.TrackSent(ctx)
	_, err = i.client.SendMessage(ctx, in)
	return awsOutcome(i.cfg.Err("send", err), sent.Load())
}

// Lanes implements Laner.
func (i *sqsInjector) Lanes(context.Context) ([]uint32, error) { return i.cfg.lanes(), nil }

// Check implements Checker. Whether it may send is only seen by sending.
func (i *sqsInjector) Check(ctx context.Context) error {
	return i.cfg.Err("look it up", i.client.Find(ctx, i.cfg.Queue))
}

// Close implements Injector.
func (i *sqsInjector) Close() error {
	i.closed.Store(true)
	i.client.CloseIdle()
	return nil
}
