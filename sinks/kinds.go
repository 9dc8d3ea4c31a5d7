package sinks

import "github.com/lag-monitor/lag-monitor/internal/conn"

// Config is the configuration of one kind of sink.
type Config = conn.Config[Sink]

// kinds is the table of transports: the key of a sink in the file and a constructor that returns the
// defaults.
func kinds() conn.Kinds[Sink] {
	return conn.Kinds[Sink]{
		"amqp":      func() Config { return NewAMQP() },
		"amqp1":     func() Config { return NewAMQP1() },
		"exec":      func() Config { return NewExec() },
		"file":      func() Config { return NewFile() },
		"http_poll": func() Config { return NewHTTPPoll() },
		"kafka":     func() Config { return NewKafka() },
		"kinesis":   func() Config { return NewKinesis() },
		"mqtt":      func() Config { return NewMQTT() },
		"nats":      func() Config { return NewNATS() },
		"postgres":  func() Config { return NewPostgres() },
		"pubsub":    func() Config { return NewPubSub() },
		"redis":     func() Config { return NewRedis() },
		"sqs":       func() Config { return NewSQS() },
		"webhook":   func() Config { return NewWebhook() },
	}
}

// New returns the configuration of a kind filled with its defaults, and false for a kind that does
// not exist.
func New(kind string) (Config, bool) { return kinds().New(kind) }

// Kinds returns the names of all kinds, sorted.
func Kinds() []string { return kinds().Names() }
