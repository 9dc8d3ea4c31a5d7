package faults_test

import (
	"flag"
	"sync"
	"testing"

	"github.com/lag-monitor/lag-monitor/internal/servers"
)

// kinds lists the kinds of queue.
var kinds = []kind{
	{name: "kafka", open: openKafka, rows: kafkaRows},
	{name: "nats", open: openNATS, rows: natsRows},
	{name: "kinesis", open: openKinesis, rows: kinesisRows, atOnce: kinesisAtOnce, stage: 1},
	{name: "amqp", open: openAMQP, rows: amqpRows, stage: 2},
	{name: "amqp1", open: openAMQP1, rows: amqp1Rows, stage: 4},
	{name: "mqtt", open: openMQTT, rows: mqttRows, stage: 3},
	{name: "http", open: openHTTP, rows: httpRows, stage: 2},
	{name: "sqs", open: openAWS, rows: sqsRows, atOnce: awsAtOnce, stage: 5},
	{name: "sns", open: openAWS, rows: snsRows, atOnce: awsAtOnce, stage: 6},
	{name: "postgres", open: openPostgres, rows: postgresRows, stage: 4},
	{name: "redis", open: openRedis, rows: redisRows, atOnce: redisAtOnce, stage: 4},
	{name: "file", open: openFile, rows: fileRows, stage: 3},
	{name: "exec", open: openExec, rows: execRows, atOnce: execAtOnce, stage: 3},
	{name: "pubsub", open: openPubSub, rows: pubsubRows, stage: 3},
}

// stages is how many there are. The server of Kinesis takes so much of two cores that it has one to itself.
const stages = 7

// core are the rows that -core leaves of kinds whose rows take long: what has to hold on every transport (a restart, a forced
// close, expiry, a loss) and what only they have.
var core = map[string][]string{
	"amqp1":    {"broker_restart", "connections_cut", "ttl_expiry", "one_in_7_dropped"},
	"sqs":      {"sink_partition", "connections_cut", "one_in_7_dropped", "own_queue_recreated", "login_changed", "throttled"},
	"sns":      {"connections_cut", "one_in_7_dropped", "reorder", "sink_partition"},
	"postgres": {"broker_restart", "broker_killed", "connections_cut", "backends_terminated", "late_commits", "cleaned_up", "one_in_7_dropped", "channel_sink_partition"},
	"redis":    {"broker_restart", "broker_killed", "clients_killed", "trimmed", "one_in_7_dropped", "failover", "channel_sink_partition"},
}

var onlyCore = flag.Bool("core", false, "leave out rows of kinds that take long, as the table core says")

// atOnce is how many rows run at once, apart from those that take long and those that wait for a broker. Mostly
// they wait, but on two cores more of them would break each other's deadlines.
const atOnce = 12

// TestFaults breaks one thing in each row, and wants the monitor to say what has happened, neither more nor
// less.
func TestFaults(t *testing.T) {
	servers.Need(t)
	w := startWatch(t)
	table := newTable(t)
	slots := make(chan struct{}, atOnce)
	var through [stages]sync.WaitGroup
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			through[k.stage].Add(1)
			t.Cleanup(through[k.stage].Done) // when all its rows are
			t.Parallel()
			for earlier := range k.stage {
				through[earlier].Wait()
			}
			rows := k.rows()
			if names := core[k.name]; *onlyCore && names != nil {
				t.Logf("left out: %d of %d rows; make faults runs them all", len(rows)-len(names), len(rows))
				rows = only(rows, names...)
			}
			open := k.open(t, chosen(k.name, rows))
			slots := slots
			if k.atOnce > 0 {
				slots = make(chan struct{}, k.atOnce)
			}
			for _, r := range rows {
				t.Run(r.name, func(t *testing.T) {
					t.Parallel()
					if !r.breaks && (!r.long || k.atOnce > 0) {
						slots <- struct{}{}
						defer func() { <-slots }()
					}
					p := open(t, r)
					table.add(t, k.name, r, r.run(t, k.name, w, p))
				})
			}
		})
	}
}
