package conn

import (
	"testing"
	"time"
)

func TestSQSNames(t *testing.T) {
	for queue, want := range map[string]sqsName{
		"orders":       {name: "orders"},
		"orders.fifo":  {name: "orders.fifo"},
		"lag_monitor-": {name: "lag_monitor-"},
		"https://sqs.eu-west-1.amazonaws.com/123456789012/orders":            {name: "orders", account: "123456789012", region: "eu-west-1", url: "https://sqs.eu-west-1.amazonaws.com/123456789012/orders"},
		"https://sqs.cn-north-1.amazonaws.com.cn/123456789012/orders":        {name: "orders", account: "123456789012", region: "cn-north-1", url: "https://sqs.cn-north-1.amazonaws.com.cn/123456789012/orders"},
		"https://vpce-1.sqs.us-gov-west-1.vpce.amazonaws.com/123456789012/q": {name: "q", account: "123456789012", region: "us-gov-west-1", url: "https://vpce-1.sqs.us-gov-west-1.vpce.amazonaws.com/123456789012/q", endpoint: "https://vpce-1.sqs.us-gov-west-1.vpce.amazonaws.com"},
		"http://localhost:4566/123456789012/q":                               {name: "q", account: "123456789012", url: "http://localhost:4566/123456789012/q", endpoint: "http://localhost:4566"},
		"http://localhost:4566/queue/eu-west-1/123456789012/q":               {name: "q", account: "123456789012", url: "http://localhost:4566/queue/eu-west-1/123456789012/q", endpoint: "http://localhost:4566"},
		"arn:aws:sqs:eu-west-1:123456789012:orders.fifo":                     {name: "orders.fifo", account: "123456789012", region: "eu-west-1"},
		"arn:aws-us-gov:sqs:us-gov-west-1:123456789012:orders":               {name: "orders", account: "123456789012", region: "us-gov-west-1"},
	} {
		if got, err := parseSQSName(queue); err != nil || got != want {
			t.Errorf("%s: %+v, %v, want %+v", queue, got, err, want)
		}
		if SQSQueueName(queue) != want.name {
			t.Errorf("%s: the name is %s", queue, SQSQueueName(queue))
		}
	}
	for _, queue := range []string{
		"a b", "a.b", ".fifo", "ftp://host/123456789012/q", "https://host/q", "https://u:p@host/123456789012/q", "https:///123456789012/q", "https://host/123456789012/q.fifo?x", "https://host/123456789012/q#.fifo",
		"arn:aws:sqs:eu-west-1:1:q", "arn:aws:sns:eu-west-1:123456789012:q", "arn:aws:sqs:eu-west-1:123456789012:a b",
	} {
		if _, err := parseSQSName(queue); err == nil {
			t.Errorf("%q is taken for a queue", queue)
		}
	}
}

// TestSQSClient: the region and the endpoint of a queue are enough, and a request may wait for messages.
func TestSQSClient(t *testing.T) {
	for _, name := range []string{"AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE", "AWS_CONFIG_FILE"} {
		t.Setenv(name, "")
	}
	t.Setenv("AWS_CONFIG_FILE", "/dev/null")
	q := DefaultSQS()
	q.Queue = "https://vpce-1.sqs.eu-west-3.vpce.amazonaws.com/123456789012/q"
	c, err := q.OpenClient()
	if err != nil {
		t.Fatal(err)
	}
	o := c.Options()
	if o.Region != "eu-west-3" || o.BaseEndpoint == nil || *o.BaseEndpoint != "https://vpce-1.sqs.eu-west-3.vpce.amazonaws.com" {
		t.Errorf("region %q, endpoint %v", o.Region, o.BaseEndpoint)
	}
	q.Queue = "q"
	if _, err := q.OpenClient(); err == nil {
		t.Error("a name without a region is enough")
	}
	_, client, err := q.Open("arn:aws:sqs:eu-west-1")
	if err != nil {
		t.Fatal(err)
	}
	if got := client.Transport.(*tracking).ResponseHeaderTimeout; got >= SQSMaxWait {
		t.Errorf("the other services wait for %s", got)
	}
	if time.Duration(q.RequestTimeout) > SQSMaxWait {
		t.Error("the test proves nothing")
	}
}
