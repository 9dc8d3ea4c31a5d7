package conform_test

import (
	"flag"
	"fmt"
	"slices"
	"testing"

	"github.com/lag-monitor/lag-monitor/internal/conform"
	"github.com/lag-monitor/lag-monitor/probe"
	"github.com/lag-monitor/lag-monitor/sinks"
)

// harnesses is the table of transports: a line for each, its harness in <kind>_test.go.
func harnesses() []conform.Harness {
	return []conform.Harness{
		inMemory(),
		kinesisStream(),
		natsStream(),
		natsCore(),
		webhook(),
		httpPoll(),
		onKafka(),
		onRedis("stream"),
		onRedis("list"),
		onRedis("channel"),
		onMQTT(""),
		onMQTT("session"),
		onMQTT("exactly_once"),
		onMQTT("shared"),
		onPubSub(""),
		onPubSub("keys"),
		logFile(),
		programs(false),
		programs(true),
	}
}

// shard is which part of the harnesses TestConformance runs, as "0/3": see scripts/shards.sh.
var shard = flag.String("shard", "0/1", "the part `I/N` of the transports that TestConformance runs")

func TestConformance(t *testing.T) {
	var mine, of int
	if _, err := fmt.Sscanf(*shard, "%d/%d", &mine, &of); err != nil || mine < 0 || mine >= of {
		t.Fatalf("-shard %s: want I/N with 0 <= I < N", *shard)
	}
	for i, h := range harnesses() {
		if i%of != mine {
			continue
		}
		t.Run(h.Name(), func(t *testing.T) { conform.Run(t, h) })
	}
}

// A kind of injector or sink that no harness drives fails here.
func TestEveryKindHasAHarness(t *testing.T) {
	injectors, listeners := make(map[string]bool), make(map[string]bool)
	for _, h := range slices.Concat(harnesses(), onRabbitMQ(nil), onMoto(nil), onPostgres(nil)) {
		listeners[h.Kind] = true
		if h.InjectKind != "" {
			injectors[h.InjectKind] = true
		} else {
			injectors[h.Kind] = true
		}
	}
	for _, k := range probe.Kinds() {
		if !injectors[k] {
			t.Errorf("injector %s has no harness in the conformance suite", k)
		}
	}
	for _, k := range sinks.Kinds() {
		if !listeners[k] {
			t.Errorf("sink %s has no harness in the conformance suite", k)
		}
	}
}
