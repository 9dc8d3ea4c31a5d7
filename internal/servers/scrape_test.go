package servers_test

import (
	"testing"

	"github.com/lag-monitor/lag-monitor/internal/servers"
)

func TestScrape(t *testing.T) {
	s, err := servers.ParseScrape([]byte(`# TYPE lag_monitor_beats_total counter
lag_monitor_beats_total{probe="a",result="success"} 3
lag_monitor_beats_total{probe="a",result="failure"} 4
lag_monitor_beats_total{probe="b",result="success"} 5
# TYPE lag_monitor_took_seconds histogram
lag_monitor_took_seconds_bucket{le="+Inf"} 2
lag_monitor_took_seconds_sum 1.5
lag_monitor_took_seconds_count 2
`))
	if err != nil {
		t.Fatal(err)
	}
	for want, got := range map[float64]float64{
		12:  s.Sum("beats_total"),
		7:   s.Sum("beats_total", "probe", "a"),
		4:   s.Sum("beats_total", "probe", "a", "result", "failure"),
		0:   s.Sum("beats_total", "probe", "c"),
		2:   s.Sum("took_seconds_count"),
		1.5: s.Sum("took_seconds_sum"),
	} {
		if got != want {
			t.Errorf("%v; want %v", got, want)
		}
	}
	if _, err := servers.ParseScrape([]byte("no metrics {")); err == nil {
		t.Error("no error for what is no scrape")
	}
}
