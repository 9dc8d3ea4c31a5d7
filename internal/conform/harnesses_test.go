package conform_test

import (
	"bytes"
	"flag"
	"os"
	"os/exec"
	"slices"
	"strings"
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

// alone is the transport that a process of TestConformance runs.
var alone = flag.String("alone", "", "the one transport that TestConformance runs, in this process; by default each has a process of its own")

// sideBySide is how many transports are tested at once. They mostly wait, but where there are real servers, other tests of
// this package and others run beside them.
func sideBySide() int {
	if os.Getenv("LAG_MONITOR_TEST_SERVERS") != "" {
		return 2
	}
	return 8
}

// TestConformance runs each transport in a process of its own: each check looks for goroutines that are left over, so that
// within one process they would all wait one after the other.
func TestConformance(t *testing.T) {
	// Whoever asks for one check, or one transport, wants it here.
	here := *alone != "" || strings.Contains(flag.Lookup("test.run").Value.String(), "/")
	room := make(chan struct{}, sideBySide())
	for _, h := range harnesses() {
		if *alone != "" && h.Name() != *alone {
			continue
		}
		t.Run(h.Name(), func(t *testing.T) {
			if here {
				conform.Run(t, h)
				return
			}
			t.Parallel()
			room <- struct{}{}
			defer func() { <-room }()
			inItsOwnProcess(t, h.Name())
		})
	}
}

// inItsOwnProcess runs TestConformance for one transport, with the flags that this process was given.
func inItsOwnProcess(t *testing.T, name string) {
	t.Helper()
	args := slices.DeleteFunc(slices.Clone(os.Args[1:]), func(arg string) bool {
		for _, not := range []string{"run", "testlogfile", "coverprofile", "gocoverdir", "count", "v"} {
			if strings.HasPrefix(arg, "-test."+not+"=") {
				return true
			}
		}
		return false
	})
	cmd := exec.CommandContext(t.Context(), os.Args[0], append(args, "-test.run=^TestConformance$", "-test.v", "-alone="+name)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	} else if !bytes.Contains(out, []byte("--- PASS: TestConformance/"+name)) && !bytes.Contains(out, []byte("--- SKIP: TestConformance/"+name)) {
		t.Errorf("it ran nothing:\n%s", out)
	} else {
		t.Logf("%s", out)
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
