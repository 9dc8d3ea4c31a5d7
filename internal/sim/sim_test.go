package sim

import (
	"flag"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	seedFlag  = flag.Uint64("seed", 0, "run only this seed, and tell its events")
	seedsFlag = flag.Int("seeds", 0, "how many seeds TestSeeds runs, from 1 on; 0: as many as fit into some seconds")
	freshFlag = flag.Int("fresh", 0, "how many seeds besides that have never been run, drawn from the clock")
	beatsFlag = flag.Int("beats", 0, "how many heartbeats TestSeeds has to have")
	firstFlag = flag.Bool("first", false, "stop at the first seed that fails, and do not shrink it")
	offFlag   = flag.String("off", "", "what to take out, separated by commas: kinds of events, 'probe NAME', 'after TIME'")
)

// The monitor says what happened, whatever a seed makes happen. A failing seed tells what it takes, the
// events of the heartbeats in question, and the command that repeats it.
func TestSeeds(t *testing.T) {
	off := make(map[string]bool)
	for k := range strings.SplitSeq(*offFlag, ",") {
		off[k] = true
	}
	if *seedFlag > 0 {
		report(t, Run(t, *seedFlag, off), off)
		return
	}
	seeds := *seedsFlag
	if seeds == 0 {
		seeds = fewSeeds
		if testing.Short() {
			seeds = min(seeds, 100)
		}
	}
	fresh := uint64(time.Now().Unix()) << 20
	if *freshFlag > 0 {
		t.Logf("%d seeds from %d on are run for the first time", *freshFlag, fresh)
	}
	began := time.Now()
	sum := tally{count: make(map[string]int)}
	t.Run("all", func(t *testing.T) {
		for i := range runtime.GOMAXPROCS(0) {
			t.Run(fmt.Sprint(i), func(t *testing.T) {
				t.Parallel()
				for n := sum.take(); n < seeds+*freshFlag && sum.failures() < 3; n = sum.take() {
					seed := uint64(n + 1)
					if n >= seeds {
						seed = fresh + uint64(n-seeds)
					}
					res := Run(t, seed, off)
					sum.add(res)
					switch {
					case len(res.Failures) == 0:
					case *firstFlag:
						report(t, res, off)
					default:
						less, without := shrink(t, res, off)
						report(t, less, without)
					}
				}
			})
		}
	})
	took := time.Since(began)
	if sum.failed > 0 {
		return
	}
	for _, k := range Kinds() {
		t.Logf("%8d  %s", sum.count[k], k)
		// Below a hundred seeds, as under the race detector, chance decides.
		if sum.count[k] == 0 && *offFlag == "" && seeds >= 100 && (k != KindOverflow || seeds >= floodSeed) {
			t.Errorf("it never happened: %s", k)
		}
	}
	for _, k := range slices.Sorted(maps.Keys(sum.count)) {
		if !slices.Contains(Kinds(), k) {
			t.Errorf("the table does not list %q", k)
		}
	}
	if sum.beats < *beatsFlag {
		t.Errorf("%d heartbeats, should be %d", sum.beats, *beatsFlag)
	}
	t.Logf("%d seeds, %d heartbeats in %s: no disagreement", sum.seeds, sum.beats, took.Round(time.Millisecond))
}

// tally adds up what the seeds came to.
type tally struct {
	mu     sync.Mutex
	next   int
	seeds  int
	beats  int
	failed int
	count  map[string]int
}

// take returns the index of the next seed.
func (s *tally) take() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.next++
	return s.next - 1
}

func (s *tally) failures() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if *firstFlag && s.failed > 0 {
		return 3
	}
	return s.failed
}

func (s *tally) add(res Result) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k, n := range res.Counts {
		s.count[k] += n
	}
	s.seeds++
	s.beats += res.Heartbeats
	if len(res.Failures) > 0 {
		s.failed++
	}
}

func report(t *testing.T, res Result, off map[string]bool) {
	t.Helper()
	if len(res.Failures) == 0 {
		return
	}
	cmd := fmt.Sprintf("go test ./internal/sim -run TestSeeds -seed %d", res.Seed)
	if list := strings.Join(slices.Sorted(maps.Keys(off)), ","); list != "" {
		cmd += " -off '" + list + "'"
	}
	t.Errorf("seed %d: %s\n%s\n%s", res.Seed, cmd, strings.Join(res.Failures, "\n"), strings.Join(res.Events, "\n"))
}

// shrink takes out of a seed what it fails without: the end of the run, whole probes, kinds of events. It
// returns the last failure, and what is taken out.
func shrink(t *testing.T, res Result, off map[string]bool) (less Result, without map[string]bool) {
	less, without = res, maps.Clone(off)
	try := func(what string) bool {
		next := maps.Clone(without)
		next[what] = true
		res := Run(t, res.Seed, next)
		if len(res.Failures) == 0 {
			return false
		}
		less, without = res, next
		return true
	}
	// The run is cut where it still fails, to the sixteenth.
	end := ""
	for from, to := 0, 16; to-from > 1; {
		mid := (from + to) / 2
		next := offAfter + (res.Length * time.Duration(mid) / 16).String()
		before := without
		without = maps.Clone(without)
		delete(without, end)
		if try(next) {
			end, to = next, mid
		} else {
			without, from = before, mid
		}
	}
	for i := range 4 {
		if name := fmt.Sprintf("%sp%d", offProbe, i); !without[name] {
			try(name)
		}
	}
	for _, k := range Kinds() {
		if less.Counts[k] > 0 {
			try(k)
		}
	}
	return less, without
}

// A seed is a whole run: the same one again gives the same events at the same instants.
func TestSeedRepeats(t *testing.T) {
	seeds := uint64(fewSeeds / 6)
	if testing.Short() {
		seeds = min(seeds, 10)
	}
	for seed := range seeds {
		first, again := simulate(t, seed+1, nil, true), simulate(t, seed+1, nil, true)
		if len(first.Trace) < 10 {
			t.Fatalf("seed %d has %d events", seed+1, len(first.Trace))
		}
		for i := range min(len(first.Trace), len(again.Trace)) {
			if first.Trace[i] != again.Trace[i] {
				t.Errorf("seed %d, event %d: %s\nand again: %s", seed+1, i, first.Trace[i], again.Trace[i])
				break
			}
		}
		if len(first.Trace) != len(again.Trace) {
			t.Errorf("seed %d has %d events, and then %d", seed+1, len(first.Trace), len(again.Trace))
		}
	}
}
