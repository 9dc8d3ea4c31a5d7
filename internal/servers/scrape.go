package servers

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// Scrape is what a lag-monitor's /metrics said: the series by the name of the metric. A histogram is
// there as NAME_count and NAME_sum.
type Scrape map[string][]Series

// Series is one of them.
type Series struct {
	Labels map[string]string
	Value  float64
}

// ParseScrape reads the Prometheus text format.
func ParseScrape(text []byte) (Scrape, error) {
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(string(text)))
	if err != nil {
		return nil, err
	}
	s := Scrape{}
	for name, family := range families {
		for _, m := range family.GetMetric() {
			labels := map[string]string{}
			for _, l := range m.GetLabel() {
				labels[l.GetName()] = l.GetValue()
			}
			add := func(name string, value float64) { s[name] = append(s[name], Series{labels, value}) }
			switch {
			case m.Counter != nil:
				add(name, m.GetCounter().GetValue())
			case m.Gauge != nil:
				add(name, m.GetGauge().GetValue())
			case m.Histogram != nil:
				add(name+"_count", float64(m.GetHistogram().GetSampleCount()))
				add(name+"_sum", m.GetHistogram().GetSampleSum())
			}
		}
	}
	return s, nil
}

// String shows the program's own series, one a line.
func (s Scrape) String() string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(s)) {
		if !strings.HasPrefix(name, "lag_monitor_") || strings.Contains(name, "_info") {
			continue
		}
		for _, e := range s[name] {
			fmt.Fprintf(&b, "%s%v %v\n", name, e.Labels, e.Value)
		}
	}
	return b.String()
}

// Find returns the series of lag_monitor_NAME with these labels, given as pairs of name and value.
func (s Scrape) Find(name string, labels ...string) []Series {
	var found []Series
next:
	for _, e := range s["lag_monitor_"+name] {
		for i := 0; i+1 < len(labels); i += 2 {
			if e.Labels[labels[i]] != labels[i+1] {
				continue next
			}
		}
		found = append(found, e)
	}
	return found
}

// Sum adds up what Find returns.
func (s Scrape) Sum(name string, labels ...string) float64 {
	var sum float64
	for _, e := range s.Find(name, labels...) {
		sum += e.Value
	}
	return sum
}
