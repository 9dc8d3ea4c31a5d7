// Package patterns lists the patterns of this module.
package patterns

import (
	"github.com/lag-monitor/lag-monitor/examples/patterns/stage"

	consumergroup "github.com/lag-monitor/lag-monitor/examples/patterns/consumer-group"
	deadletter "github.com/lag-monitor/lag-monitor/examples/patterns/dead-letter"
	exactlyonce "github.com/lag-monitor/lag-monitor/examples/patterns/exactly-once"
	fanout "github.com/lag-monitor/lag-monitor/examples/patterns/fan-out"
	idempotentconsumer "github.com/lag-monitor/lag-monitor/examples/patterns/idempotent-consumer"
	"github.com/lag-monitor/lag-monitor/examples/patterns/priority"
	retrybackoff "github.com/lag-monitor/lag-monitor/examples/patterns/retry-backoff"
	topicrouting "github.com/lag-monitor/lag-monitor/examples/patterns/topic-routing"
	windowedaggregation "github.com/lag-monitor/lag-monitor/examples/patterns/windowed-aggregation"
	workqueue "github.com/lag-monitor/lag-monitor/examples/patterns/work-queue"
)

// All returns the patterns in the order in which they are best read.
func All() []stage.Pattern {
	return []stage.Pattern{
		workqueue.Pattern(),
		fanout.Pattern(),
		topicrouting.Pattern(),
		deadletter.Pattern(),
		retrybackoff.Pattern(),
		consumergroup.Pattern(),
		priority.Pattern(),
		idempotentconsumer.Pattern(),
		windowedaggregation.Pattern(),
		exactlyonce.Pattern(),
	}
}
