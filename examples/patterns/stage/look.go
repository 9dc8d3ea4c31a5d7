package stage

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// client keeps no connections: an idle one would look like a goroutine that the test leaked.
var client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 20 * time.Second}

// get returns the body of a 200 answer.
func get(ctx context.Context, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", url, resp.Status, strings.TrimSpace(string(body)))
	}
	return body, err
}

// query returns the answer of Prometheus to an expression, of which each selector is narrowed to this stage.
func (s *Stage) query(ctx context.Context, expr string) ([]sample, error) {
	expr = strings.ReplaceAll(expr, "{", fmt.Sprintf("{job=%q,", s.name))
	body, err := get(ctx, s.house.prometheus.URL+"/api/v1/query?"+url.Values{"query": {expr}}.Encode())
	if err != nil {
		return nil, err
	}
	var answer struct{ Data struct{ Result []sample } }
	if err := json.Unmarshal(body, &answer); err != nil {
		return nil, fmt.Errorf("%s: %w", expr, err)
	}
	return answer.Data.Result, nil
}

type sample struct {
	Metric map[string]string
	Value  [2]any // time and value
}

// Firing returns the alerts that fire, or have fired within an hour, each as "NAME PROBE".
func (s *Stage) Firing(ctx context.Context) ([]string, error) {
	samples, err := s.query(ctx, `group by (alertname, probe) (last_over_time(ALERTS{alertstate="firing"}[1h]))`)
	if err != nil {
		return nil, err
	}
	var alerts []string
	for _, one := range samples {
		alerts = append(alerts, alertName(one.Metric))
	}
	slices.Sort(alerts)
	return alerts, nil
}

// Alerts returns what each alert that fires now says, by "NAME PROBE".
func (s *Stage) Alerts(ctx context.Context) (map[string]string, error) {
	body, err := get(ctx, s.house.prometheus.URL+"/api/v1/alerts")
	if err != nil {
		return nil, err
	}
	var answer struct {
		Data struct {
			Alerts []struct {
				Labels, Annotations map[string]string
				State               string
			}
		}
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return nil, err
	}
	alerts := map[string]string{}
	for _, a := range answer.Data.Alerts {
		if a.State == "firing" && a.Labels["job"] == s.name {
			alerts[alertName(a.Labels)] = a.Annotations["description"]
		}
	}
	return alerts, nil
}

// alertName returns "NAME PROBE", or only the name of an alert about a monitor.
func alertName(labels map[string]string) string {
	return strings.TrimSpace(labels["alertname"] + " " + labels["probe"])
}

// page reports whether the page of a probe has a text in its JSON.
func (s *Stage) page(ctx context.Context, text string) (bool, error) {
	samples, err := s.query(ctx, `group by (probe) (lag_monitor_probe_info{})`)
	for _, one := range samples {
		body, err := get(ctx, s.Monitor+"/api/v1/probes/"+one.Metric["probe"])
		if err != nil {
			return false, err
		}
		if strings.Contains(strings.Join(strings.Fields(string(body)), ""), text) {
			return true, nil
		}
	}
	return false, err
}

// Status says in one line how things stand.
func (s *Stage) Status(ctx context.Context) string {
	samples, err := s.query(ctx, `max by (probe, sink) (lag_monitor_lag_seconds{})`)
	if err != nil || len(samples) == 0 {
		return "nothing has come out yet"
	}
	var parts []string
	for _, one := range samples {
		text, _ := one.Value[1].(string)
		seconds, _ := strconv.ParseFloat(text, 64)
		parts = append(parts, fmt.Sprintf("%s at %s %.1f s", one.Metric["probe"], one.Metric["sink"], seconds))
	}
	slices.Sort(parts)
	return "lag: " + strings.Join(parts, ", ")
}

// Missing returns the expressions of a story that have no answer now.
func (s *Stage) Missing(ctx context.Context, story Story) ([]string, error) {
	var missing []string
	for _, expr := range story.Shows {
		samples, err := s.query(ctx, expr)
		if err != nil {
			return nil, err
		}
		if len(samples) == 0 {
			missing = append(missing, expr)
		}
	}
	return missing, nil
}

// Settle waits until a dozen heartbeats have come out everywhere, the least of which the rules tell a share.
func (s *Stage) Settle() {
	s.tb.Helper()
	settled := fmt.Sprintf(`count(sum by (probe, sink) (lag_monitor_heartbeats_received_total{timing="on_time",sink=~"%s"}) >= 12)
		== count(sum by (probe, sink) (lag_monitor_heartbeats_received_total{timing="on_time",sink=~"%[1]s"}))`, strings.Join(s.Pattern.Sinks, "|"))
	s.await("heartbeats come out", func(ctx context.Context) (string, error) {
		samples, err := s.query(ctx, settled)
		if err != nil || len(samples) > 0 {
			return "", err
		}
		return "not all have a dozen", nil
	})
}

// await asks every second until nothing is missing. An answer that fails is asked for again.
func (s *Stage) await(what string, missing func(context.Context) (string, error)) {
	s.tb.Helper()
	ctx, cancel := context.WithTimeout(s.tb.Context(), patience)
	defer cancel()
	for {
		last, err := missing(ctx)
		if err == nil && last == "" {
			return
		}
		select {
		case <-ctx.Done():
			metrics, _ := get(context.WithoutCancel(ctx), s.Monitor+"/metrics")
			s.tb.Fatalf("%s: not within %v: %s: %s, %v\n%s", s.name, patience, what, last, err, told(string(metrics)))
		case <-time.After(time.Second):
		}
	}
}

// told leaves out of a scrape what is 0 or about the process.
func told(metrics string) string {
	var b strings.Builder
	for line := range strings.Lines(metrics) {
		if strings.HasPrefix(line, "lag_monitor_") && !strings.HasSuffix(line, " 0\n") && !strings.Contains(line, "_bucket{") {
			b.WriteString(line)
		}
	}
	return b.String()
}

// Play tells one story on a stage that was just put up: all is well, it breaks, and the alerts of the story fire, and no others.
func Play(tb testing.TB, s *Stage, story Story) {
	tb.Helper()
	s.Settle()
	if alerts, err := s.Firing(tb.Context()); err != nil || len(alerts) > 0 {
		tb.Fatalf("before anything is broken: alerts %q, %v", alerts, err)
	}
	broken := time.Now()
	story.Do(s)
	seen, held := map[string]time.Duration{}, false
	s.await(story.Breaks, func(ctx context.Context) (string, error) {
		alerts, err := s.Firing(ctx)
		if err != nil {
			return "", err
		}
		for _, alert := range alerts {
			if !slices.Contains(story.Alerts, alert) {
				now, _ := s.Alerts(ctx)
				metrics, _ := get(ctx, s.Monitor+"/metrics")
				tb.Fatalf("%s: %s fires after %v; want %q and no other\n%s\n%s", s.name, alert, time.Since(broken), story.Alerts, now[alert], told(string(metrics)))
			}
			if seen[alert] == 0 {
				seen[alert] = time.Since(broken)
				tb.Logf("%s: %s after %v", s.name, alert, seen[alert].Round(time.Second))
			}
		}
		if !held || !story.Passes {
			if last, err := s.holds(ctx, story, alerts, seen); last != "" || err != nil {
				return last, err
			}
			held = true
		}
		if left := quiet - time.Since(broken); left > 0 {
			return fmt.Sprintf("watched for %v more", left), nil
		}
		return "", nil
	})
}

// holds says what of a story is missing now.
func (s *Stage) holds(ctx context.Context, story Story, alerts []string, seen map[string]time.Duration) (string, error) {
	missing, err := s.Missing(ctx, story)
	if err != nil {
		return "", err
	}
	if len(missing) > 0 || len(seen) < len(story.Alerts) {
		return fmt.Sprintf("no answer to %q; alerts %q, want %q", missing, alerts, story.Alerts), nil
	}
	if story.Says != "" {
		now, err := s.Alerts(ctx)
		if text := now[story.Alerts[0]]; err != nil || !strings.Contains(text, story.Says) {
			return fmt.Sprintf("%s says %q, not %q", story.Alerts[0], text, story.Says), err
		}
	}
	if story.Page != "" {
		if page, err := s.page(ctx, story.Page); err != nil || !page {
			return fmt.Sprintf("no page has %q", story.Page), err
		}
	}
	return "", nil
}
