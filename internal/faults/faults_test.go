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
	{name: "kinesis", open: openKinesis, rows: kinesisRows, atOnce: kinesisAtOnce, second: true},
	{name: "amqp", open: openAMQP, rows: amqpRows, second: true},
	{name: "http", open: openHTTP, rows: httpRows, second: true},
	{name: "redis", open: openRedis, rows: redisRows, atOnce: redisAtOnce, second: true},
	{name: "file", open: openFile, rows: fileRows, second: true},
	{name: "exec", open: openExec, rows: execRows, atOnce: execAtOnce, second: true},
	{name: "pubsub", open: openPubSub, rows: pubsubRows, second: true},
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
	var first sync.WaitGroup
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			if !k.second {
				first.Add(1)
				t.Cleanup(first.Done) // when all its rows are through
			}
			t.Parallel()
			if k.second {
				first.Wait()
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
