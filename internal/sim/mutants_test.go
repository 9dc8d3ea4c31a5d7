package sim

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

var (
	mutantsFlag = flag.Bool("mutants", false, "break each rule in turn and require the simulator to see it")
	mutantFlag  = flag.String("mutant", "", "with -mutants: only mutations whose name matches this regular expression")
)

const (
	// mutantSeeds is how many seeds a mutation may survive. Most are seen by the first few.
	mutantSeeds = 2000
	// mutantPatience bounds one mutation: one that makes the monitor wait for ever is red, too.
	mutantPatience = 5 * time.Minute
	// mutantsAtOnce is how many are run side by side; each keeps one core busy.
	mutantsAtOnce = 2
	// mutantVariable is the environment variable that tells a binary which mutation is on.
	mutantVariable = "LAG_MONITOR_MUTANT"
	// root is the module's root, seen from here.
	root = "../.."
)

// mutation breaks one rule of the monitor.
type mutation struct {
	rule  rule
	name  string // what the broken monitor does
	edits []edit
	// by names the test that has to see it, as "package TestName", where the simulator has no such event.
	by string
}

// edit replaces a piece of a source file, which has to be there just once. In the new text the word MUTANT
// stands for "this mutation is on" and the word OLD for the old text. Several edits may name the same
// old text when all but the first say OLD; otherwise their places must not overlap.
type edit struct{ file, old, new string }

// Every mutation of the table is seen: a monitor that breaks the rule disagrees with the truth within some
// seeds. All mutations are compiled into one binary, each behind a condition; the sources themselves
// are not touched.
func TestMutants(t *testing.T) {
	overlay := writeMutants(t, mutations) // also tells who has changed a line that a row quotes
	if !*mutantsFlag {
		t.Log("left out: go test ./internal/sim -run TestMutants -mutants breaks each rule in turn, in a minute or so")
		return
	}
	only := regexp.MustCompile(*mutantFlag)
	binaries := map[string]string{"internal/sim": buildMutants(t, overlay, "internal/sim")}
	for _, m := range mutations {
		if pkg, _, ok := strings.Cut(m.by, " "); ok && binaries[pkg] == "" {
			binaries[pkg] = buildMutants(t, overlay, pkg)
		}
	}

	began := time.Now()
	results := make([]mutantResult, len(mutations))
	inTurn(len(mutations), func(i int) {
		if m := mutations[i]; only.MatchString(m.name) {
			results[i] = runMutant(t, binaries, m, i+1, mutantSeeds)
		}
	})
	seeds := 100 // of fewer not every kind of event would be a part
	for i, r := range results {
		switch m := mutations[i]; {
		case !only.MatchString(m.name):
		case !r.red && m.by != "":
			t.Errorf("survives %s: %s", m.by, m.name)
		case !r.red:
			t.Errorf("survives %d seeds: %s", mutantSeeds, m.name)
		default:
			seeds = max(seeds, r.seed)
		}
	}
	printMutants(t, results, time.Since(began))

	// What is red without a mutation proves nothing: the same seeds and tests have to be green.
	sound := []mutation{{name: "no mutation"}}
	for _, by := range slices.Sorted(maps.Keys(unitTests())) {
		sound = append(sound, mutation{name: "no mutation", by: by})
	}
	inTurn(len(sound), func(i int) {
		if r := runMutant(t, binaries, sound[i], 0, seeds); r.red {
			t.Errorf("red without a mutation, so that nothing of the above counts: %s\n%s", sound[i].by, r.output)
		}
	})
	t.Logf("green without a mutation: %d seeds and %d unit tests; all of it took %s", seeds, len(sound)-1, time.Since(began).Round(time.Second))
}

// unitTests are the tests that stand in for the simulator.
func unitTests() map[string]bool {
	tests := make(map[string]bool)
	for _, m := range mutations {
		if m.by != "" {
			tests[m.by] = true
		}
	}
	return tests
}

// inTurn calls f with 0 to n-1, a few at a time.
func inTurn(n int, f func(i int)) {
	var wg sync.WaitGroup
	next := make(chan int)
	for range mutantsAtOnce {
		wg.Go(func() {
			for i := range next {
				f(i)
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	wg.Wait()
}

// writeMutants writes the files with all mutations in them, and returns the overlay that puts them in the
// place of the sources.
func writeMutants(t *testing.T, all []mutation) (overlay string) {
	t.Helper()
	byFile := make(map[string][]numbered)
	names := make(map[string]bool)
	for i, m := range all {
		if names[m.name] {
			t.Errorf("two mutations are called %q", m.name)
		}
		names[m.name] = true
		for _, e := range m.edits {
			byFile[e.file] = append(byFile[e.file], numbered{e, i + 1, m.name})
		}
	}
	dir := t.TempDir()
	replace := make(map[string]string)
	put := func(file, text string) {
		abs, err := filepath.Abs(filepath.Join(root, file))
		if err != nil {
			t.Fatal(err)
		}
		to := filepath.Join(dir, strings.ReplaceAll(file, "/", "_"))
		if err := os.WriteFile(to, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		replace[abs] = to
	}
	for file, edits := range byFile {
		src, err := os.ReadFile(filepath.Join(root, file))
		if err != nil {
			t.Fatal(err)
		}
		text, err := apply(string(src), edits)
		if err != nil {
			t.Errorf("%s: %v", file, err)
			continue
		}
		put(file, text)
		// Each package reads for itself which mutation is on: the house has no floor below all of them.
		pkg := filepath.Base(filepath.Dir(file))
		put(filepath.Join(filepath.Dir(file), "mutant_on.go"), fmt.Sprintf(
			"package %s\n\nimport (\n\t\"os\"\n\t\"strconv\"\n)\n\nvar mutantOn, _ = strconv.Atoi(os.Getenv(%q))\n", pkg, mutantVariable))
	}
	if t.Failed() {
		t.FailNow()
	}
	data, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	overlay = filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(overlay, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return overlay
}

// numbered is an edit of the mutation with a number.
type numbered struct {
	edit
	n    int
	name string
}

// apply makes all edits of a file.
func apply(src string, edits []numbered) (string, error) {
	type place struct {
		at   int
		old  string
		text string
		name string
	}
	var places []*place
	var errs []error
	for _, e := range edits {
		if n := strings.Count(src, e.old); n != 1 {
			errs = append(errs, fmt.Errorf("mutation %q: its old text is there %d times, not once: the code has changed, rewrite the row:\n%s", e.name, n, e.old))
			continue
		}
		if !strings.Contains(e.new, "MUTANT") {
			errs = append(errs, fmt.Errorf("mutation %q: its new text does not say MUTANT", e.name))
		}
		text := strings.ReplaceAll(e.new, "MUTANT", "(mutantOn == "+strconv.Itoa(e.n)+")")
		i := slices.IndexFunc(places, func(p *place) bool { return p.old == e.old })
		if i < 0 {
			places = append(places, &place{strings.Index(src, e.old), e.old, strings.ReplaceAll(text, "OLD", e.old), e.name})
			continue
		}
		if !strings.Contains(text, "OLD") {
			errs = append(errs, fmt.Errorf("mutation %q: it changes the same text as %q and has to say OLD", e.name, places[i].name))
		}
		places[i].text = strings.ReplaceAll(text, "OLD", places[i].text)
	}
	slices.SortFunc(places, func(a, b *place) int { return a.at - b.at })
	var out strings.Builder
	end, last := 0, ""
	for _, p := range places {
		if p.at < end {
			errs = append(errs, fmt.Errorf("the places of the mutations %q and %q overlap", last, p.name))
			continue
		}
		out.WriteString(src[end:p.at] + p.text)
		end, last = p.at+len(p.old), p.name
	}
	out.WriteString(src[end:])
	return out.String(), errors.Join(errs...)
}

// buildMutants compiles the tests of a package, all mutations included.
func buildMutants(t *testing.T, overlay, pkg string) (binary string) {
	t.Helper()
	binary = filepath.Join(t.TempDir(), filepath.Base(pkg)+".test")
	cmd := exec.CommandContext(t.Context(), "go", "test", "-c", "-vet=off", "-overlay", overlay, "-o", binary, "./"+pkg)
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go test -c ./%s with all mutations: %v\n%s", pkg, err, out)
	}
	return binary
}

type mutantResult struct {
	red    bool
	seed   int    // that saw it; 0 where no seed says so
	saw    string // the first disagreement
	took   time.Duration
	output string
}

var failingSeed = regexp.MustCompile(`(?m)^.*seed (\d+): go test .*\n(.*)$`)

// runMutant runs the tests that have to see mutation n; none is on when n is 0.
func runMutant(t *testing.T, binaries map[string]string, m mutation, n, seeds int) mutantResult {
	args := []string{"-test.run", "^TestSeeds$", "-first", "-seeds", strconv.Itoa(seeds)}
	pkg, test, unit := strings.Cut(m.by, " ")
	if unit {
		args = []string{"-test.run", "^" + test + "$", "-test.v"}
	} else {
		pkg = "internal/sim"
	}
	ctx, cancel := context.WithTimeout(t.Context(), mutantPatience)
	defer cancel()
	cmd := exec.CommandContext(ctx, binaries[pkg], args...)
	cmd.Dir = filepath.Join(root, pkg)
	// A bubble is one thread's work, and what it leaves is little: more threads only get in each other's way.
	cmd.Env = append(os.Environ(), mutantVariable+"="+strconv.Itoa(n), "GOMAXPROCS=1", "GOGC=400")
	began := time.Now()
	out, err := cmd.CombinedOutput()
	r := mutantResult{red: err != nil, took: time.Since(began), output: string(out)}
	if unit && !r.red && !strings.Contains(r.output, "--- ") {
		t.Errorf("%s: there is no such test: %s", m.name, m.by)
	}
	if !r.red {
		return r
	}
	switch found := failingSeed.FindStringSubmatch(r.output); {
	case unit:
		r.saw = m.by
	case found != nil:
		r.seed, _ = strconv.Atoi(found[1])
		r.saw = strings.TrimSpace(found[2])
	default:
		line, _, _ := strings.Cut(strings.TrimSpace(r.output), "\n")
		r.saw = line
	}
	return r
}

// printMutants prints the table: which rule is broken how, and by which seed the simulator sees it.
func printMutants(t *testing.T, results []mutantResult, took time.Duration) {
	t.Helper()
	var out strings.Builder
	out.WriteString("| rule | a monitor that breaks it | seen by | after |\n| --- | --- | --- | --- |\n")
	n, seeds, most := 0, 0, 0
	for i, r := range results {
		m := mutations[i]
		if r.took == 0 {
			continue
		}
		n++
		seen := "nothing"
		switch {
		case r.red && r.seed > 0:
			seen = "seed " + strconv.Itoa(r.seed)
			seeds, most = seeds+r.seed, max(most, r.seed)
		case r.red:
			seen = r.saw
		}
		fmt.Fprintf(&out, "| %s | %s | %s | %.1f s |\n", m.rule, m.name, seen, r.took.Seconds())
		if r.red {
			t.Logf("%-70s %s", m.name, r.saw)
		}
	}
	t.Logf("\n%s", out.String())
	t.Logf("%d mutations, %d seeds until all were seen, at most %d for one, in %s", n, seeds, most, took.Round(time.Second))
}
