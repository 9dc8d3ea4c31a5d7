package metrics_test

import (
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/lag-monitor/lag-monitor/examples/stash-deferred/metrics"
)

// Each series that a rule or a panel may ask for is there from the start.
func TestNames(t *testing.T) {
	front, back := prometheus.NewRegistry(), prometheus.NewRegistry()
	metrics.NewFrontend(front)
	b := metrics.NewBackend(back)
	b.Decoded("orders")
	got := map[string]bool{}
	for _, reg := range []*prometheus.Registry{front, back} {
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			if !strings.HasPrefix(f.GetName(), "stashdef_") {
				continue
			}
			if f.GetHelp() == "" {
				t.Errorf("%s has no help", f.GetName())
			}
			for _, m := range f.GetMetric() {
				name := f.GetName()
				for _, l := range m.GetLabel() {
					name += fmt.Sprintf("{%s=%q}", l.GetName(), l.GetValue())
				}
				got[name] = true
				if h := m.GetHistogram(); h != nil {
					from := 0.1
					if strings.Contains(name, "backpressure") {
						from = 0.001
					}
					for i, bucket := range h.GetBucket() {
						if want := from * math.Pow(10, float64(i)/2); math.Abs(bucket.GetUpperBound()/want-1) > 1e-9 {
							t.Errorf("%s: bucket %d is %v; want %v", name, i, bucket.GetUpperBound(), want)
						}
					}
					if len(h.GetBucket()) != 6 {
						t.Errorf("%s has %d buckets", name, len(h.GetBucket()))
					}
				}
			}
		}
	}
	want := []string{
		`stashdef_active_rows`, `stashdef_bigtable_backlog_rows`, `stashdef_bigtable_backlog_seconds`, `stashdef_bigtable_row_scan_backpressure_seconds`,
		`stashdef_duplicates_filtered_total`, `stashdef_kinesis_message_decode_total{stream="orders"}`,
		`stashdef_http_request_total{code="202"}`, `stashdef_http_request_total{code="400"}`, `stashdef_http_request_total{code="413"}`, `stashdef_http_request_total{code="503"}`,
	}
	for _, op := range []string{"bigtable_row_write", "bigtable_row_scan", "kinesis_message_write", "bigtable_row_delete"} {
		want = append(want, "stashdef_"+op+"_duration_seconds", "stashdef_"+op+`_total{result="success"}`, "stashdef_"+op+`_total{result="failure"}`)
	}
	for _, name := range want {
		if !got[name] {
			t.Errorf("%s is missing", name)
		}
		delete(got, name)
	}
	for name := range got {
		t.Errorf("%s is new: enter it here and in docs/stash-deferred.md", name)
	}
}

// Names of streams come from users, and must not fill Prometheus.
func TestStreamsAreBounded(t *testing.T) {
	reg := prometheus.NewRegistry()
	b := metrics.NewBackend(reg)
	for i := range 1000 {
		b.Decoded(fmt.Sprint("stream", i))
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != "stashdef_kinesis_message_decode_total" {
			continue
		}
		if n := len(f.GetMetric()); n != 101 {
			t.Errorf("%d series; want 100 streams and the others", n)
		}
	}
}
