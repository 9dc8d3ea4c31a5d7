package main

import (
	"bytes"
	"flag"
	"os"
	"testing"
)

var update = flag.Bool("update", false, "write deploy/kubernetes/standalone/prometheusrule.yaml")

// The manifest is what the command prints. go test ./cmd/lag-monitor -run PrometheusRule -update writes it.
func TestPrometheusRule(t *testing.T) {
	const file = "../../deploy/kubernetes/standalone/prometheusrule.yaml"
	var want, stderr bytes.Buffer
	if code := run([]string{"rules", "--format=operator"}, &want, &stderr); code != exitOK {
		t.Fatalf("exit code %d: %s", code, &stderr)
	}
	if *update {
		if err := os.WriteFile(file, want.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want.Bytes()) {
		t.Errorf("%s is not what lag-monitor rules --format=operator prints: run go test ./cmd/lag-monitor -run PrometheusRule -update", file)
	}
}
