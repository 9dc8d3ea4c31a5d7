// Package internal_test holds the house in order: who may import whom, and that each folder says what
// it is for.
package internal_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"maps"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/lag-monitor/lag-monitor"

// mayImport lists, for each package of the module, which others it may import directly: upper floors
// see lower ones, never the other way round, and neighbours do not see each other. A new package is
// put in here with thought.
var mayImport = map[string][]string{
	"cmd/lag-monitor": {
		"internal/config", "internal/conn", "internal/demo", "internal/heartbeat", "internal/metrics", "internal/monitor", "internal/ping", "internal/tail",
		"internal/token", "internal/tracing", "internal/web", "dashboards", "rules", "sinks",
	},

	// What the commands for people do.
	"internal/ping":  {"internal/config", "internal/ledger", "internal/lines", "internal/monitor"},
	"internal/tail":  {"internal/config", "internal/heartbeat", "internal/lines", "sinks"},
	"internal/token": {"internal/heartbeat", "internal/lines", "sinks"},
	"internal/lines": {},

	"internal/demo":    {"internal/config", "internal/metrics", "internal/monitor", "internal/web"},
	"internal/web":     {"internal/config", "internal/conn", "internal/monitor"},
	"internal/monitor": {"internal/config", "internal/conn", "internal/heartbeat", "internal/journal", "internal/ledger", "internal/metrics", "internal/tracing", "probe", "sinks"},
	"internal/config":  {"internal/conn", "internal/heartbeat", "internal/tracing", "probe", "sinks"},

	"probe":            {"internal/conn", "internal/heartbeat"},
	"sinks":            {"internal/conn", "internal/heartbeat"},
	"internal/metrics": {"internal/conn", "internal/ledger", "internal/tracing", "sinks"},
	"internal/tracing": {"internal/conn", "internal/heartbeat"},
	"internal/journal": {"internal/conn", "internal/heartbeat"},
	"internal/ledger":  {"internal/heartbeat"},

	"internal/conn":      {"internal/heartbeat"},
	"internal/heartbeat": {},

	// Files for Prometheus and Grafana, and the Go code that tests them.
	"rules":      {},
	"dashboards": {},

	// Measures the parts that it imports.
	"bench": {
		"internal/config", "internal/conform/memory", "internal/conn", "internal/heartbeat", "internal/journal", "internal/ledger",
		"internal/metrics", "internal/monitor", "probe", "sinks",
	},

	// For tests only; see TestDaemonHoldsNoTestCode.
	"internal/servers":        {},
	"internal/conform":        {"internal/conn", "internal/heartbeat", "internal/conform/memory", "internal/servers", "probe", "sinks"},
	"internal/conform/memory": {"internal/conn", "probe", "sinks"},
	"internal/sim":            {"internal/config", "internal/conn", "internal/heartbeat", "internal/journal", "internal/monitor", "probe", "sinks"},
	"internal/e2e":            {},
	"internal/faults":         {},
}

// testOnly are the packages that must not reach the daemon.
var testOnly = []string{"internal/servers", "internal/conform", "internal/conform/memory", "internal/e2e", "internal/faults", "internal/sim"}

// notDrivers are the files of probe and sinks that are not the driver of a transport.
var notDrivers = map[string][]string{
	"probe": {"doc.go", "injector.go", "kinds.go", "loop.go", "schedule.go", "template.go"},
	"sinks": {"doc.go", "feed.go", "kinds.go", "loop.go", "sink.go", "unwrap.go"},
}

type pkg struct {
	ImportPath, Dir string
	Standard        bool
	GoFiles         []string
	Imports, Deps   []string
	Doc             string
}

// goList runs go list in the module's root.
func goList(t *testing.T, args ...string) []pkg {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"list", "-json=ImportPath,Dir,Standard,GoFiles,Imports,Deps,Doc"}, args...)...)
	cmd.Dir = ".."
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, &stderr)
	}
	var pkgs []pkg
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
}

// own returns the path inside the module, and false for a package of somebody else.
func own(importPath string) (string, bool) {
	return strings.CutPrefix(importPath, module+"/")
}

func TestImports(t *testing.T) {
	for _, p := range goList(t, "./...") {
		name, ok := own(p.ImportPath)
		if !ok || len(p.GoFiles) == 0 {
			continue
		}
		allowed, known := mayImport[name]
		if !known {
			t.Errorf("%s is new: say in mayImport what it may import", name)
			continue
		}
		for _, i := range p.Imports {
			if dep, ok := own(i); ok && !slices.Contains(allowed, dep) {
				t.Errorf("%s imports %s; it may import %q", name, dep, allowed)
			}
		}
	}
}

// The table itself must not open a way around the floors.
func TestTheTableKeepsTheFloors(t *testing.T) {
	reach := func(from string) map[string]bool {
		seen := make(map[string]bool)
		var walk func(string)
		walk = func(p string) {
			for _, d := range mayImport[p] {
				if !seen[d] {
					seen[d] = true
					walk(d)
				}
			}
		}
		walk(from)
		return seen
	}
	for from, never := range map[string][]string{
		"probe":              {"sinks", "internal/ledger", "internal/metrics", "internal/monitor", "internal/config"},
		"sinks":              {"probe", "internal/ledger", "internal/metrics", "internal/monitor", "internal/config"},
		"internal/ledger":    {"internal/conn", "internal/metrics", "probe", "sinks"},
		"internal/tracing":   {"probe", "sinks", "internal/ledger", "internal/metrics", "internal/monitor", "internal/config"},
		"internal/conn":      {"probe", "sinks", "internal/metrics"},
		"internal/config":    {"internal/monitor", "internal/web"},
		"internal/monitor":   {"internal/web"},
		"internal/heartbeat": slices.Collect(maps.Keys(mayImport)),
		"cmd/lag-monitor":    testOnly,
	} {
		for _, to := range never {
			if reach(from)[to] {
				t.Errorf("%s can reach %s", from, to)
			}
		}
	}
}

func TestHeartbeatAndLedgerArePure(t *testing.T) {
	std := make(map[string]bool)
	for _, p := range goList(t, "-deps", "./internal/heartbeat", "./internal/ledger") {
		std[p.ImportPath] = p.Standard
		if name, ok := own(p.ImportPath); !p.Standard && (!ok || name != "internal/heartbeat" && name != "internal/ledger") {
			t.Errorf("heartbeat or ledger depends on %s: only the standard library is allowed", p.ImportPath)
		}
	}
	for _, p := range goList(t, "./internal/ledger") {
		for _, i := range p.Imports {
			if slices.Contains([]string{"net", "net/http", "os", "io", "log", "log/slog", "sync", "context"}, i) {
				t.Errorf("ledger imports %s: it has no I/O, no goroutine and no log", i)
			}
		}
	}
}

// Drivers return errors; the loops count and log them once.
func TestDriversNeitherCountNorLog(t *testing.T) {
	for _, p := range goList(t, "./probe", "./sinks") {
		name, _ := own(p.ImportPath)
		for _, f := range p.GoFiles {
			if slices.Contains(notDrivers[name], f) {
				continue
			}
			for _, i := range imports(t, filepath.Join(p.Dir, f)) {
				if i == "log/slog" || strings.HasPrefix(i, "github.com/prometheus/client_golang") {
					t.Errorf("%s/%s imports %s: a driver uses no logger and no metrics", name, f, i)
				}
			}
		}
	}
}

// A transport that sends the token in a header sends the trace context beside it.
func TestInjectorsWithHeadersCarryTheTrace(t *testing.T) {
	found := 0
	for _, p := range goList(t, "./probe") {
		for _, f := range p.GoFiles {
			if slices.Contains(notDrivers["probe"], f) {
				continue
			}
			parsed, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, f), nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			uses := map[string]bool{}
			ast.Inspect(parsed, func(n ast.Node) bool {
				if s, ok := n.(*ast.SelectorExpr); ok { // http.Header is another one
					ast.Inspect(s.X, func(n ast.Node) bool {
						if id, ok := n.(*ast.Ident); ok {
							uses[id.Name] = true
						}
						return true
					})
					return false
				}
				if id, ok := n.(*ast.Ident); ok {
					uses[id.Name] = true
				}
				return true
			})
			if uses["Header"] {
				found++
				if !uses["TraceHeader"] {
					t.Errorf("probe/%s sends the header of the heartbeat, and no traceparent", f)
				}
			}
		}
	}
	if found < 3 {
		t.Errorf("only %d transports have headers", found)
	}
}

func imports(t *testing.T, file string) []string {
	t.Helper()
	parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
	if err != nil {
		t.Fatal(err)
	}
	var paths []string
	for _, i := range parsed.Imports {
		paths = append(paths, strings.Trim(i.Path.Value, `"`))
	}
	return paths
}

func TestDaemonHoldsNoTestCode(t *testing.T) {
	for _, p := range goList(t, "-deps", "./cmd/lag-monitor") {
		name, ok := own(p.ImportPath)
		if (ok && slices.Contains(testOnly, name)) || p.ImportPath == "testing" || strings.HasPrefix(p.ImportPath, "go.uber.org/goleak") {
			t.Errorf("the daemon holds %s", p.ImportPath)
		}
	}
}

// Each folder has one file that says what is and what is not in it.
func TestEachPackageSaysWhatItIsFor(t *testing.T) {
	for _, p := range goList(t, "./...") {
		name, _ := own(p.ImportPath)
		switch {
		case len(p.GoFiles) == 0:
		case strings.HasPrefix(name, "cmd/"):
			if p.Doc == "" {
				t.Errorf("%s has no package comment", name)
			}
		case !slices.Contains(p.GoFiles, "doc.go"):
			t.Errorf("%s has no doc.go", name)
		case p.Doc == "":
			t.Errorf("%s: doc.go has no package comment", name)
		}
	}
}
