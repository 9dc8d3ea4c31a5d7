// Package patterns lists the patterns of this module.
package patterns

import (
	"github.com/lag-monitor/lag-monitor/examples/patterns/stage"

	deadletter "github.com/lag-monitor/lag-monitor/examples/patterns/dead-letter"
	fanout "github.com/lag-monitor/lag-monitor/examples/patterns/fan-out"
	"github.com/lag-monitor/lag-monitor/examples/patterns/priority"
	retrybackoff "github.com/lag-monitor/lag-monitor/examples/patterns/retry-backoff"
	topicrouting "github.com/lag-monitor/lag-monitor/examples/patterns/topic-routing"
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
		priority.Pattern(),
	}
}
