package config

import (
	"bytes"
	"path/filepath"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/txtar"
)

// FuzzLoad: no bytes make the loader panic or think for long, and what it accepts it can write down
// and read again with the same meaning.
func FuzzLoad(f *testing.F) {
	rows, err := filepath.Glob("testdata/bad/*.txtar")
	if err != nil {
		f.Fatal(err)
	}
	for _, row := range rows {
		ar, err := txtar.ParseFile(row)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(ar.Files[0].Data)
	}
	f.Add([]byte(good))
	f.Add([]byte("x-a: &a {sinks: [out], labels: {a: b}}\nsinks: {out: {log: {topic: t, deep: {rate: 1e3}}}}\nprobes: {p: {<<: *a, ticket: {drop_ratio: 1%}}}\n"))
	f.Add([]byte("probes: {p: {inject: {queue: {topic: ' a: b', brokers: ['', \"\\u2028\", '#']}}}}\n"))
	dir := f.TempDir() // each worker is a process of its own
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(includes(data)) > 0 {
			return // other files are not the fuzzer's business
		}
		load := func(name string, data []byte) (*Config, []error, error) {
			write(t, dir, name, string(data))
			return testLoader(filepath.Join(dir, name)).Load()
		}
		start := time.Now()
		cfg, problems, err := load("main.yaml", data)
		// A quarter of this is what the largest allowed file takes on a slow machine.
		if took := time.Since(start); took > 10*time.Second {
			t.Errorf("took %s", took)
		}
		if err != nil {
			return
		}
		if len(problems) > 0 {
			t.Fatalf("problems without includes: %v", problems)
		}
		out, err := cfg.Redacted()
		if err != nil {
			t.Fatal(err)
		}
		again, problems, err := load("again.yaml", out)
		if err != nil || len(problems) > 0 {
			t.Fatalf("%v %v in\n%s", err, problems, out)
		}
		if bytes.Contains(out, []byte(hidden)) {
			return
		}
		for n, p := range cfg.Probes {
			if q := again.Probes[n]; q == nil || q.Fingerprint != p.Fingerprint {
				t.Errorf("probe %q is another one after a round trip through\n%s", n, out)
			}
		}
		for n, s := range cfg.Sinks {
			if q := again.Sinks[n]; q == nil || q.Fingerprint != s.Fingerprint {
				t.Errorf("sink %q is another one after a round trip through\n%s", n, out)
			}
		}
		if len(cfg.Probes) != len(again.Probes) || len(cfg.Sinks) != len(again.Sinks) {
			t.Errorf("something is lost in\n%s", out)
		}
	})
}
