package faults_test

import (
	"fmt"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/lag-monitor/lag-monitor/internal/servers"
)

// openAMQP1 starts brokers as openAMQP does. Their other protocol is what the relay and the truth use.
func openAMQP1(t *testing.T, rows []*row) func(*testing.T, *row) *pipeline {
	return onRabbitMQ(t, rows, servers.RabbitMQOptions{AMQP1: true, Users: []servers.RabbitMQUser{amqpMonitor}}, amqp1Pipeline)
}

// amqp1Pipeline has a queue of the monitor's own behind the destination, or, with the variant "copy", a link that gets a
// copy.
func amqp1Pipeline(t *testing.T, r *row, b *servers.RabbitMQServer) *pipeline {
	t.Helper()
	p, head, dest := amqpExchanges(t, r, b)
	settings := amqpLogin(t, r) + r.settings
	p.inject = fmt.Sprintf("amqp1: {url: %q, address: /exchange/%s, subject: beats%s}", "amqp://"+p.headProxy.Addr, head.name, settings)
	if r.variant == "copy" {
		p.sink = fmt.Sprintf("amqp1: {url: %q, address: /exchange/%s/all, marker: /exchange/%[2]s/marker%s}", "amqp://"+p.destProxy.Addr, dest.name, settings)
		return p
	}
	dest.with(t, amqp1Own(r, dest))
	p.sink = fmt.Sprintf("amqp1: {url: %q, queue: /amq/queue/%s, dedicated: true%s}", "amqp://"+p.destProxy.Addr, amqpOwn(r), settings)
	return p
}

// amqp1Own makes the queue of the monitor's.
func amqp1Own(r *row, dest *amqpQueue) func(*amqp.Channel) error {
	return func(ch *amqp.Channel) error {
		queueType := amqp.QueueTypeClassic
		if r.variant == "quorum" {
			queueType = amqp.QueueTypeQuorum
		}
		if _, err := ch.QueueDeclare(amqpOwn(r), true, false, false, false, amqp.Table{amqp.QueueTypeArg: queueType}); err != nil {
			return err
		}
		return ch.QueueBind(amqpOwn(r), "", dest.name, false, nil)
	}
}

// amqp1Rows lists what is broken in RabbitMQ where the monitor speaks AMQP 1.0, in the order of the table.
func amqp1Rows() []*row {
	rows := append(append(only(commonRows(), "broker_restart", "broker_killed", "broker_sigstop", "accept_then_silent", "half_open", "sink_partition",
		"answers_lost", "monitor_killed", "pipeline_stops", "duplicates", "late", "one_in_7_dropped", "reload"),
		connectionsCut(20, 50*time.Millisecond)),
		rabbitRows()...)
	rows = append(rows,
		&row{
			name: "own_queue_deleted", does: "the monitor's queue is deleted, and made again 10 s later", gap: true,
			untold: true, // the broker may hand out one more over a connection that the sink has given up
			fault: func(t *testing.T, f *field) {
				dest := f.dest.(*amqpQueue)
				dest.remove(t, amqpOwn(f.row))
				wait(t, 10*time.Second)
				dest.with(t, amqp1Own(f.row, dest))
			},
		},
		&row{
			name: "quorum_broker_killed", does: "the monitor's queue is a quorum queue; SIGKILL, 3 s, start with its data", variant: "quorum", breaks: true,
			timeout: time.Minute, fault: only(commonRows(), "broker_killed")[0].fault,
		},
		&row{
			name: "copy_sink_partition", does: "the sink has no queue but a copy; the destination refuses the monitor alone for 5 s", variant: "copy", gap: true,
			fault: sinkRefused(5 * time.Second),
		},
	)
	return untimed(quietly(rows))
}
