package conn

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
)

// SQS says where a queue of Amazon SQS is.
type SQS struct {
	AWS `yaml:",inline"`
	// Queue is the name, the URL or the ARN of the queue. A name is looked for in the own account.
	Queue string `yaml:"queue,omitempty"`
}

// DefaultSQS returns the defaults.
func DefaultSQS() SQS { return SQS{AWS: DefaultAWS()} }

// SQSMaxWait is the longest that a request may wait for messages at the service.
const SQSMaxWait = 20 * time.Second

var (
	queueName = regexp.MustCompile(`^[a-zA-Z0-9_-]{1,80}$|^[a-zA-Z0-9_-]{1,75}\.fifo$`)
	queueARN  = regexp.MustCompile(`^arn:aws[a-z-]*:sqs:[a-z0-9-]+:\d{12}:[^:]+$`)
	queuePath = regexp.MustCompile(`^(?:/queue)?(?:/[a-z0-9-]+)?/\d{12}/[^/]+$`) // the middle part: some local servers put the region there
	awsHost   = regexp.MustCompile(`^([a-z0-9-]+\.)*amazonaws\.com(\.cn)?$`)
	awsRegion = regexp.MustCompile(`(?:^|\.)([a-z]{2}(?:-[a-z]+)+-\d)\.`)
)

// An sqsName is what the name, the URL or the ARN of a queue says.
type sqsName struct {
	name, account, region string
	url                   string // if it is one
	endpoint              string // the host of the URL, unless that is the public one
}

func parseSQSName(queue string) (n sqsName, err error) {
	switch {
	case strings.Contains(queue, "://"):
		u, err := url.Parse(queue)
		if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || !queuePath.MatchString(u.Path) {
			return n, errors.New("it is not the URL of a queue: write https://sqs.REGION.amazonaws.com/ACCOUNT/NAME")
		}
		parts := strings.Split(u.Path, "/")
		n = sqsName{name: parts[len(parts)-1], account: parts[len(parts)-2], url: queue}
		if m := awsRegion.FindStringSubmatch(u.Hostname()); m != nil {
			n.region = m[1]
		}
		if !awsHost.MatchString(u.Hostname()) || strings.Contains(u.Hostname(), ".vpce.") {
			n.endpoint = u.Scheme + "://" + u.Host
		}
	case strings.HasPrefix(queue, "arn:"):
		if !queueARN.MatchString(queue) {
			return n, fmt.Errorf("%q is not the ARN of a queue: write arn:aws:sqs:REGION:ACCOUNT:NAME", queue)
		}
		parts := strings.Split(queue, ":")
		n = sqsName{name: parts[5], account: parts[4], region: parts[3]}
	default:
		n.name = queue
	}
	if !queueName.MatchString(n.name) {
		return n, fmt.Errorf("%q is not the name of a queue: 1 to 80 of A-Z a-z 0-9 _ -, with .fifo at the end of a FIFO queue's", n.name)
	}
	return n, nil
}

// Validate reports every mistake as a FieldError.
func (q *SQS) Validate() error {
	errs := []error{q.AWS.Validate()}
	if q.Queue == "" {
		errs = append(errs, Field("queue", "which queue? write its name, URL or ARN"))
	} else if n, err := parseSQSName(q.Queue); err != nil {
		errs = append(errs, Prefix("queue", err))
	} else if q.Region != "" && n.region != "" && n.region != q.Region {
		errs = append(errs, Field("region", "the queue is in %s, not in %s: leave the region out", n.region, q.Region)) // one of the same name may be there
	}
	return errors.Join(errs...)
}

// CheckBeside reports what is wrong with another queue that is asked for by the same client, in one region.
func (q *SQS) CheckBeside(queue string) error {
	n, err := parseSQSName(queue)
	if err != nil {
		return err
	}
	own, err := parseSQSName(q.Queue)
	if err != nil {
		return nil //nolint:nilerr // Validate reports it
	}
	if region := cmp.Or(q.Region, own.region); region != "" && n.region != "" && n.region != region {
		return fmt.Errorf("it is in %s, and the sink in %s", n.region, region)
	}
	return nil
}

// SQSQueueName returns the name of a queue that is given by its name, URL or ARN.
func SQSQueueName(queue string) string {
	return queue[strings.LastIndexAny(queue, "/:")+1:]
}

// Name returns the queue's name.
func (q *SQS) Name() string { return SQSQueueName(q.Queue) }

// FIFO reports whether the queue keeps the order of each message group.
func (q *SQS) FIFO() bool { return strings.HasSuffix(q.Queue, ".fifo") }

// Err wraps an error of the SDK with its class and the queue's name.
func (q *SQS) Err(doing string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("sqs queue %s: %s: %w", q.Name(), doing, AWSError(err))
}

// An SQSClient is the SDK's client with what it needs to find queues and to be left cleanly.
type SQSClient struct {
	*sqs.Client
	// CloseIdle closes the idle connections; the client can still be used.
	CloseIdle func()

	timeout time.Duration
	mu      sync.Mutex
	urls    map[string]string
}

// OpenClient reads credentials' sources and returns a client. It does not wait for the network. The caller
// bounds each request.
func (q *SQS) OpenClient(options ...func(*sqs.Options)) (*SQSClient, error) {
	n, err := parseSQSName(q.Queue)
	if err != nil {
		return nil, err
	}
	cfg, client, err := q.Open("arn:aws:sqs:" + n.region)
	if err != nil {
		return nil, err
	}
	if t, ok := client.Transport.(*tracking); ok {
		t.ResponseHeaderTimeout += SQSMaxWait
	}
	endpoint := q.Endpoint
	if endpoint == "" {
		endpoint = n.endpoint
	}
	return &SQSClient{
		Client: sqs.NewFromConfig(cfg, append([]func(*sqs.Options){func(o *sqs.Options) {
			o.HTTPClient = client
			if endpoint != "" {
				o.BaseEndpoint = aws.String(endpoint)
			}
		}}, options...)...),
		CloseIdle: client.CloseIdleConnections,
		timeout:   time.Duration(q.RequestTimeout),
		urls:      make(map[string]string),
	}, nil
}

// URL returns the URL of a queue that is given by its name, URL or ARN. It asks the service the first time
// for each name. It is safe for concurrent use.
func (c *SQSClient) URL(ctx context.Context, queue string) (string, error) {
	n, err := parseSQSName(queue)
	if err != nil {
		return "", err
	}
	if n.url != "" {
		return n.url, nil
	}
	c.mu.Lock()
	known := c.urls[queue]
	c.mu.Unlock()
	if known != "" {
		return known, nil
	}
	return c.find(ctx, queue, n)
}

// Find asks the service for a queue, also when its URL is known.
func (c *SQSClient) Find(ctx context.Context, queue string) error {
	n, err := parseSQSName(queue)
	if err == nil {
		_, err = c.find(ctx, queue, n)
	}
	return err
}

func (c *SQSClient) find(ctx context.Context, queue string, n sqsName) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	in := &sqs.GetQueueUrlInput{QueueName: aws.String(n.name)}
	if n.account != "" {
		in.QueueOwnerAWSAccountId = aws.String(n.account)
	}
	out, err := c.GetQueueUrl(ctx, in)
	if err != nil {
		return "", err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.urls[queue] = aws.ToString(out.QueueUrl)
	return c.urls[queue], nil
}
