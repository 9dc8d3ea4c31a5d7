package conform

import (
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/lag-monitor/lag-monitor/internal/conn"
	"github.com/lag-monitor/lag-monitor/probe"
	"github.com/lag-monitor/lag-monitor/sinks"
)

// Harness ties one transport to the suite.
type Harness struct {
	// Kind is the key in the table of sinks and in the table of injectors.
	Kind string
	// Variant tells several harnesses of one kind apart.
	Variant string
	// InjectKind is the key in the table of injectors where it is another one: a sink without an
	// injector of its own is paired with one that can feed it (http feeds webhook).
	InjectKind string
	// InjectorNeeds and SinkNeeds are the paths of the keys that have no default: Validate of the bare
	// defaults names exactly these.
	InjectorNeeds, SinkNeeds []string
	// New makes a pipeline with an empty queue of its own. It is called once for each check; a broker
	// that starts slowly is shared between the calls, and the queue's name differs.
	New func(t *testing.T) Pipeline
	// Leaks are goroutines of the harness itself that outlive a check, such as those of a broker that
	// runs in this process.
	Leaks []goleak.Option
}

// Name is the name of the subtest: the kind, and the variant if there is one.
func (h *Harness) Name() string {
	if h.Variant == "" {
		return h.Kind
	}
	return h.Kind + "_" + h.Variant
}

// Pipeline is one queue with both of its ends. Inject, Sink and Put are required.
type Pipeline struct {
	// Inject and Sink return complete configurations of the two ends, new ones at each call.
	Inject func() probe.Config
	Sink   func() sinks.Config
	// Put writes ordinary messages into the queue that the sink listens on, in order, by other means
	// than the injector, and returns when they are in it.
	Put func(t *testing.T, bodies ...[]byte)
	// Lanes is how many lanes the head has; 0 means one.
	Lanes int
	// Keeps says that the broker keeps messages while nobody listens, so that a sink goes on from its
	// position; otherwise the sink must call Gap.
	Keeps bool
	// LooksBack says that the broker finds kept messages by the time at which they came, so that the sink is
	// a sinks.LookBacker.
	LooksBack bool
	// Exclusive says that a second listener on the same queue does not hear what the first one hears.
	Exclusive bool
	// Takes says that the sink takes messages out of the queue, which is its own: what is left is what it has
	// not read yet.
	Takes bool
	// Unproven says that the broker gives no proof that everything was delivered, so that the sink never claims to be
	// caught up.
	Unproven bool
	// Snapshots says that the sink sees what the queue shows as a whole, so that ordinary messages in it
	// cannot be counted one by one.
	Snapshots bool
	// IDs says that arrivals carry the identity of the stored message; Enqueued that they carry the
	// broker's time.
	IDs, Enqueued bool
	// Remaining counts the messages that are in the queue; nil when it cannot be told.
	Remaining func(t *testing.T) int
	// Stop ends the broker, connections included, and Start brings it back at the same address with
	// what it has promised to keep. Both are nil when the harness cannot do it.
	Stop, Start func()
	// Hang makes the broker silent without closing a connection: it neither answers nor refuses, until
	// release is called. nil when the harness cannot do it.
	Hang func() (release func())
	// Broken are ends that cannot work, each with the class of its errors.
	Broken []Broken
	// Proof is the longest time between two claims of an idle sink to be caught up, on a busy machine, for a transport
	// whose request for a message takes a second by itself; 0 means 1.5 s.
	Proof time.Duration
	// Within bounds each wait for a message or for readiness; 0 means 30 s.
	Within time.Duration
}

// Broken is an end that cannot work: a topic that does not exist, credentials that are wrong, an
// address where nobody listens. Either end may be nil.
type Broken struct {
	Name   string
	Inject func() probe.Config
	Sink   func() sinks.Config
	Class  conn.Class
	// Unseen says that Check cannot find it, since that would take a message.
	Unseen bool
	// Unknown says that a failed injection leaves open whether the heartbeat is in the pipeline.
	Unknown bool
}

// Run runs every check, each as a subtest with a pipeline of its own.
func Run(t *testing.T, h Harness) {
	for _, c := range checks {
		before := goleak.IgnoreCurrent()
		t.Run(c.name, func(t *testing.T) {
			s := &suite{T: t, h: h, Pipeline: h.New(t), source: newSource()}
			s.Lanes = max(s.Lanes, 1)
			if s.Within == 0 {
				s.Within = 30 * time.Second
			}
			c.run(s)
		})
		if err := goleak.Find(append([]goleak.Option{before}, h.Leaks...)...); err != nil {
			t.Errorf("%s left goroutines behind: %v", c.name, err)
		}
	}
}

// checks are in the order in which a new driver is best brought to life.
var checks = []struct {
	name string
	run  func(*suite)
}{
	{"config", (*suite).config},
	{"delivers", (*suite).delivers},
	{"ordinary", (*suite).ordinary},
	{"tokens", (*suite).tokens},
	{"ready", (*suite).readyRace},
	{"idle", (*suite).idle},
	{"caught_up", (*suite).caughtUp},
	{"ends", (*suite).ends},
	{"hangs", (*suite).hangs},
	{"again", (*suite).again},
	{"position", (*suite).position},
	{"look_back", (*suite).lookBack},
	{"restart", (*suite).restart},
	{"ids", (*suite).ids},
	{"concurrent", (*suite).concurrent},
	{"batch", (*suite).batch},
	{"cancelled", (*suite).cancelled},
	{"close", (*suite).close},
	{"check", (*suite).check},
}
