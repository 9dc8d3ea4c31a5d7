package demo

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/config"
	"github.com/lag-monitor/lag-monitor/internal/monitor"
)

var update = flag.Bool("update", false, "write the golden files")

// fixed returns a screen with one probe, at the given lag and latency in seconds.
func fixed(lag, latency float64, recent string, change ...func(*screen, *monitor.ProbeStatus, *monitor.PairStatus)) screen {
	a := monitor.PairStatus{Sink: "deferred-out", Lanes: []monitor.LaneStatus{{Seen: strings.ContainsAny(recent, ".l"), Lag: lag, Latency: latency, Recent: recent}}}
	for _, c := range recent {
		a.Sent++
		switch c {
		case '.':
			a.OnTime++
		case 'l':
			a.Late++
			a.Dropped++
		case 'x':
			a.Dropped++
		case '?':
			a.Indeterminate++
		case 'w', 'i':
			a.InFlight++
		default:
			a.Sent--
		}
	}
	p := monitor.ProbeStatus{Name: probeName, Interval: 0.5, Expiry: 1, Timeout: 5, PageLag: 3}
	s := screen{
		Elapsed: 83 * time.Second, Page: config.Thresholds{Lag: 3 * time.Second, For: 3 * time.Second, DropRatio: 0.1},
		Lags: []float64{0, 0, 0.5, 1, 2, 3, 4, 4, 4, 4, 6, 9, 0, 0, 0}, Keys: true,
		YAML: fmt.Sprintf(configuration, "nats://127.0.0.1:4222", stream, probeName, "http://127.0.0.1:8080"),
		Web:  "http://127.0.0.1:9847", Control: "http://127.0.0.1:8080",
	}
	for _, f := range change {
		f(&s, &p, &a)
	}
	p.Sinks = []monitor.PairStatus{a}
	s.Status = monitor.Status{Probes: []monitor.ProbeStatus{p}, Sinks: []monitor.SinkStatus{{Up: true, Since: time.Unix(1, 0)}}}
	return s
}

func screens() map[string]screen {
	empty := screen{Page: config.Thresholds{Lag: 3 * time.Second}}
	well := fixed(0.002, 0.002, "-"+strings.Repeat(".", 60)+"ww", func(s *screen, _ *monitor.ProbeStatus, _ *monitor.PairStatus) {
		s.Hint = true
	})
	slow := fixed(6.02, 6.01, strings.Repeat(".", 30)+strings.Repeat("l", 5)+strings.Repeat("w", 14), func(s *screen, _ *monitor.ProbeStatus, _ *monitor.PairStatus) {
		s.Above, s.Service.Fault.Slow = 12*time.Second, 6*time.Second
	})
	lossy := fixed(0.4, 0.002, strings.Repeat("..x", 10)+strings.Repeat("..w", 4)+"ww", func(s *screen, p *monitor.ProbeStatus, _ *monitor.PairStatus) {
		s.Service = Account{Fault: Fault{Drop: 1. / 3}, Dropped: 14}
		s.Note = "Now it loses 1 message in 3. Each is counted as dropped 5 s after it was due, not before."
		s.Elapsed = 3*time.Minute + 4*time.Second
		for range 120 {
			s.Lags = append(s.Lags, 0.5)
		}
	})
	yaml := well
	yaml.ShowYAML = true
	return map[string]screen{"empty": empty, "well": well, "slow": slow, "lossy": lossy, "yaml": yaml}
}

func TestViewGolden(t *testing.T) {
	for name, s := range screens() {
		for _, size := range [][2]int{{60, 24}, {80, 24}, {120, 40}} {
			file := filepath.Join("testdata", fmt.Sprintf("%s-%d.txt", name, size[0]))
			got := s.render(size[0], size[1], false) + "\n"
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("%s differs (-update writes it):\n%s", file, got)
			}
		}
	}
}

// Colour adds nothing but colour, and no terminal gets more than it has room for.
func TestViewFits(t *testing.T) {
	sgr := regexp.MustCompile("\x1b\\[[0-9;]*m")
	for name, s := range screens() {
		for width := 1; width <= 200; width += 7 {
			for _, height := range []int{0, 1, 10, 24} {
				text := s.render(width, height, false)
				if colour := sgr.ReplaceAllString(s.render(width, height, true), ""); colour != text {
					t.Fatalf("%s at %d×%d: with colour it says\n%s\nand without\n%s", name, width, height, colour, text)
				}
				lines := strings.Split(text, "\n")
				if height > 0 && len(lines) > height {
					t.Errorf("%s at %d×%d has %d lines", name, width, height, len(lines))
				}
				for _, l := range lines {
					if n := len([]rune(l)); n > width {
						t.Errorf("%s at %d×%d: a line has %d characters: %s", name, width, height, n, l)
					}
				}
			}
		}
	}
}

func TestWords(t *testing.T) {
	type change = func(*screen, *monitor.ProbeStatus, *monitor.PairStatus)
	above := func(d time.Duration) change {
		return func(s *screen, _ *monitor.ProbeStatus, _ *monitor.PairStatus) { s.Above = d }
	}
	for _, tc := range []struct {
		name         string
		lag, latency float64
		recent       string
		change       change
		feel, alert  string
	}{
		{"start", 0, 0, "ww", nil, "the first heartbeat is on its way", "none"},
		{"nothing ever", 4, 0, "wwwwwwwwww", above(time.Second), "nothing comes out: the next message is 4 s overdue", "LagHigh pages in 2 s: lag 4 s > 3 s"},
		{"well", 0.01, 0.01, "......ww", nil, "messages come out on time, all of them", "none"},
		{"slow", 4.04, 4.01, "....wwwwwwww", above(time.Minute), "messages come out 4.0 s late", "LagHigh PAGES: lag 4.0 s > 3 s for 3 s"},
		{"silent", 12, 0.01, "....wwwwwwww", above(3 * time.Second), "nothing comes out: the next message is 12 s overdue", "LagHigh PAGES: lag 12 s > 3 s for 3 s"},
		{"first one missing", 0.01, 0.01, ".........w..ww", nil, "1 in 12 messages is missing", "none"},
		{"lossy", 0.4, 0.01, "..x..x..x..x..w", nil, "1 in 3 messages is missing", "HeartbeatsDropped pages if 33 % > 10 % goes on"},
		{"lossy before", 0.01, 0.01, "x............ww", nil, "messages come out on time, all of them", "none"},
		{"late ones are not missing", 6, 6, "llllllllllllwwww", above(time.Second), "messages come out 6 s late", "LagHigh pages in 2 s: lag 6 s > 3 s"},
		{"refused", 5, 0.01, "..----", func(_ *screen, p *monitor.ProbeStatus, _ *monitor.PairStatus) { p.Failing = true },
			"messages are refused, and nothing comes out: the next one is 5 s overdue", "none"},
		{"twice", 0.01, 0.01, "......", func(s *screen, _ *monitor.ProbeStatus, _ *monitor.PairStatus) { s.Twice = true },
			"some messages come out twice", "none"},
		{"slow and lossy", 2, 2, "..x..x..x..x..", nil, "messages come out 2 s late, and 1 in 3 messages is missing", "HeartbeatsDropped pages if 33 % > 10 % goes on"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.change == nil {
				tc.change = func(*screen, *monitor.ProbeStatus, *monitor.PairStatus) {}
			}
			s := fixed(tc.lag, tc.latency, tc.recent, tc.change)
			if feel, _ := s.feel(); feel != tc.feel {
				t.Errorf("says %q, want %q", feel, tc.feel)
			}
			if alert := s.alert().text; alert != tc.alert {
				t.Errorf("alert %q, want %q", alert, tc.alert)
			}
		})
	}
	s := fixed(9, 0.01, "....")
	s.Status.Sinks[0].Up = false
	if feel, _ := s.feel(); feel != "nobody knows: the monitor cannot read the queue" {
		t.Errorf("blind: says %q", feel)
	}
}

// A line tells the same as the view.
func TestText(t *testing.T) {
	s := screens()["slow"]
	want := " 1:23  lag 6.0 s   sent 49 = on time 30 + dropped 5 + indeterminate 0 + in flight 14, late 5 | " +
		"messages come out 6.0 s late | LagHigh PAGES: lag 6.0 s > 3 s for 3 s"
	if got := s.text(); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}
