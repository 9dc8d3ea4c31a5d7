package conform_test

import (
	"context"
	"testing"

	"github.com/lag-monitor/lag-monitor/internal/conform"
	"github.com/lag-monitor/lag-monitor/internal/conform/memory"
	"github.com/lag-monitor/lag-monitor/internal/conn"
	"github.com/lag-monitor/lag-monitor/probe"
	"github.com/lag-monitor/lag-monitor/sinks"
)

// inMemory is the reference: the suite proves itself on it, with 3 lanes and without a network.
func inMemory() conform.Harness {
	return conform.Harness{Kind: "memory", New: func(*testing.T) conform.Pipeline {
		return memoryPipeline(memory.NewQueue(3, 0))
	}}
}

func memoryPipeline(q *memory.Queue) conform.Pipeline {
	dead := memory.NewQueue(1, 0)
	dead.Stop()
	return conform.Pipeline{
		Inject: func() probe.Config { return &memory.InjectorConfig{Queue: q} },
		Sink:   func() sinks.Config { return &memory.SinkConfig{Queue: q} },
		Put: func(t *testing.T, bodies ...[]byte) {
			for _, b := range bodies {
				if err := q.Put(context.Background(), b); err != nil {
					t.Error(err)
				}
			}
		},
		Lanes: 3, Keeps: true, LooksBack: true, IDs: true, Enqueued: true,
		Remaining: func(*testing.T) int { return q.Len() },
		Stop:      q.Stop, Start: q.Start, Hang: q.Hang,
		Broken: []conform.Broken{{
			Name:   "stopped",
			Inject: func() probe.Config { return &memory.InjectorConfig{Queue: dead} },
			Sink:   func() sinks.Config { return &memory.SinkConfig{Queue: dead} },
			Class:  conn.Network,
		}},
	}
}
