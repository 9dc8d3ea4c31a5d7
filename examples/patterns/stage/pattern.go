package stage

import (
	"context"
	"time"

	"github.com/lag-monitor/lag-monitor/examples/patterns/service"
)

// Broker names what a pattern runs on.
type Broker string

// The brokers.
const (
	RabbitMQ Broker = "rabbitmq"
	Kafka    Broker = "kafka"
	Redis    Broker = "redis"
)

// Pattern is a way to use queues, as a small service that is watched.
type Pattern struct {
	Name, What string
	Broker     Broker
	// Config is the pattern's config.yaml.
	Config string
	// Topics are created on Kafka, each with three partitions.
	Topics []string
	// Declare makes what the service needs on its broker, and makes good what a story has taken away. May be nil.
	Declare func(ctx context.Context, env service.Env) error
	// Parts are started in this order, each when the one before is ready.
	Parts []service.Part
	// Sinks are those at which heartbeats arrive while all is well.
	Sinks   []string
	Stories []Story
}

// Story is one way in which a pattern breaks, and what tells it.
type Story struct {
	Name   string
	Breaks string
	// Do breaks it, and returns.
	Do func(*Stage)
	// Alerts are those that fire, each as "NAME PROBE"; no other one does. None: nobody has to know.
	Alerts []string
	// Says is in the description of the first alert. May be empty.
	Says string
	// Shows are expressions for Prometheus that all have an answer once it has broken. Each metric in them stands with braces, in
	// which the stage adds its job.
	Shows []string
	// Passes says that it heals by itself after a while: it is enough that all of this has held once, at the same time.
	Passes bool
	// Page is a text in the JSON of a probe's page, written without white space. May be empty.
	Page string
}

// For is how long the rules that wait have to see their reason, on a stage. The shipped ones wait for minutes.
const For = 10 * time.Second

// quiet is for how long at least a story is watched: longer than a timeout and For together, after which a drop is told.
const quiet = 28 * time.Second

// patience is how long a story may take to tell what it should, on a machine that does a lot besides.
const patience = 3 * time.Minute
