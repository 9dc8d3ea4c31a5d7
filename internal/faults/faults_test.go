package faults_test

import (
	"sync"
	"testing"

	"github.com/lag-monitor/lag-monitor/internal/servers"
)

// kinds lists the kinds of queue.
var kinds = []kind{
	{name: "kafka", open: openKafka, rows: kafkaRows},
	{name: "nats", open: openNATS, rows: natsRows},
	{name: "kinesis", open: openKinesis, rows: kinesisRows, atOnce: kinesisAtOnce, stage: 1},
	{name: "amqp", open: openAMQP, rows: amqpRows, stage: 1},
	{name: "amqp1", open: openAMQP1, rows: amqp1Rows, stage: 2},
	{name: "mqtt", open: openMQTT, rows: mqttRows, stage: 1},
	{name: "http", open: openHTTP, rows: httpRows, stage: 1},
	{name: "sqs", open: openAWS, rows: sqsRows, atOnce: awsAtOnce, stage: 2},
	{name: "sns", open: openAWS, rows: snsRows, atOnce: awsAtOnce, stage: 2},
	{name: "postgres", open: openPostgres, rows: postgresRows, stage: 2},
	{name: "redis", open: openRedis, rows: redisRows, atOnce: redisAtOnce, stage: 2},
	{name: "file", open: openFile, rows: fileRows, stage: 1},
	{name: "exec", open: openExec, rows: execRows, atOnce: execAtOnce, stage: 1},
	{name: "pubsub", open: openPubSub, rows: pubsubRows, stage: 1},
}

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
	var stages [3]sync.WaitGroup
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			stages[k.stage].Add(1)
			t.Cleanup(stages[k.stage].Done) // when all its rows are through
			t.Parallel()
			for earlier := range k.stage {
				stages[earlier].Wait()
			}
			rows := k.rows()
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
