package config

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
)

// BenchmarkLoad reads a file of ten thousand probes, which is what a start and each reload of a large
// installation cost.
func BenchmarkLoad(b *testing.B) {
	var text strings.Builder
	text.WriteString("sinks:\n  out:\n    log: {brokers: [a], topic: t}\nprobes:\n")
	for i := range 10_000 {
		fmt.Fprintf(&text, "  p%d:\n    interval: 1s\n    labels: {team: data}\n    page: {lag: 5m, for: 2m}\n    inject:\n      post:\n        url: http://head/%d\n    sinks: [out]\n", i, i)
	}
	dir := b.TempDir()
	write(b, dir, "main.yaml", text.String())
	b.ReportAllocs()
	for b.Loop() {
		if _, problems, err := testLoader(filepath.Join(dir, "main.yaml")).Load(); err != nil || len(problems) > 0 {
			b.Fatal(err, problems)
		}
	}
}
