package rules

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/common/model"
	"gopkg.in/yaml.v3"
)

// Probe is what rules for one probe are made of: what its YAML says.
type Probe struct {
	Name         string
	Labels       map[string]string
	Page, Ticket Threshold
	Runbook      string // may be empty
}

// Threshold is a limit of the lag; none where Lag is 0.
type Threshold struct{ Lag, For time.Duration }

// runbook is what an alert names when the probe has no runbook of its own.
const runbook = "https://github.com/lag-monitor/lag-monitor/blob/main/docs/runbooks/LagHigh.md"

// PerProbe returns a rule file with a group for each probe, in the order given. The group records the lag as
// job:NAME_lag:seconds and has an alert NameLagHigh for each threshold, with the labels of the probe. job, if
// it is not empty, is the only one whose monitors count.
//
// Characters of a name that a metric cannot have become _, and a name of an alert has no separators: two
// probes may come to the same name, which is an error that names both.
//
// The lag is that of the worst sink and lane, and of the best replica. Like the one of the generic rules it goes
// on growing when the monitor is gone and its series with it, and from the start when nothing ever comes out:
// the rule for a sink then adds the time that has passed to its own last value. That has no end while no monitor
// watches the probe: who takes the probe away makes the file anew.
func PerProbe(probes []Probe, job string) ([]byte, error) {
	type rule struct {
		Record      string            `yaml:"record,omitempty"`
		Alert       string            `yaml:"alert,omitempty"`
		Expr        block             `yaml:"expr"`
		For         string            `yaml:"for,omitempty"`
		Labels      map[string]string `yaml:"labels,omitempty"`
		Annotations map[string]string `yaml:"annotations,omitempty"`
	}
	type group struct {
		Name     string `yaml:"name"`
		Interval string `yaml:"interval"`
		Rules    []rule `yaml:"rules"`
	}
	if err := clashes(probes); err != nil {
		return nil, err
	}
	var file struct {
		Groups []group `yaml:"groups"`
	}
	file.Groups = []group{}
	for _, p := range probes {
		record := p.record()
		selector := fmt.Sprintf("probe=%q", p.Name)
		if job != "" {
			selector += fmt.Sprintf(",job=%q", job)
		}
		fill := strings.NewReplacer("SINK", p.sinkRecord(), "SELECTOR", selector)
		g := group{Name: "lag-monitor-" + p.Name, Interval: "15s", Rules: []rule{
			{Record: p.sinkRecord(), Expr: block(fill.Replace(sinkLag))},
			{Record: record, Expr: block(fill.Replace("max(SINK)"))},
		}}
		for _, s := range []struct {
			severity string
			Threshold
		}{{"page", p.Page}, {"ticket", p.Ticket}} {
			if s.Lag <= 0 {
				continue
			}
			labels := map[string]string{"severity": s.severity, "probe": p.Name}
			for k, v := range p.Labels {
				labels[k] = literal(v)
			}
			url := runbook
			if p.Runbook != "" {
				url = literal(p.Runbook)
			}
			r := rule{Alert: p.alert(), Expr: block(fmt.Sprintf("%s > %s", record, seconds(s.Lag))), Labels: labels, Annotations: map[string]string{
				"summary": p.words() + " messages are late",
				"description": fmt.Sprintf(`%s messages are arriving {{ $value | printf "%%.0f" }} seconds after they were scheduled (threshold %s)`,
					p.words(), model.Duration(s.Lag)),
				"runbook_url": url,
			}}
			if s.For > 0 {
				r.For = model.Duration(s.For).String()
			}
			g.Rules = append(g.Rules, r)
		}
		file.Groups = append(file.Groups, g)
	}
	return marshal(file)
}

// sinkLag is the lag of each sink. The parts, for those sinks for which none before has a value: what monitors
// say; its own last value and the time since, or, when Prometheus was away, the newest heartbeat of the last
// hour, as long as the sink is watched or nobody watches the probe at all; 0 for one that is new.
const sinkLag = `max by (sink) (min by (sink, lane) (lag_monitor_lag_seconds{SELECTOR}))
or
(
  (SINK + (time() - timestamp(SINK)) or time() - max by (sink) (max_over_time(lag_monitor_heartbeat_timestamp_seconds{SELECTOR}[1h])))
  and on (sink) lag_monitor_heartbeats_in_flight{SELECTOR}
)
or
(
  (SINK + (time() - timestamp(SINK)) or time() - max by (sink) (max_over_time(lag_monitor_heartbeat_timestamp_seconds{SELECTOR}[1h])))
  unless on () lag_monitor_heartbeats_in_flight{SELECTOR}
)
or
max by (sink) (lag_monitor_heartbeats_in_flight{SELECTOR}) * 0
`

// block is a text of several lines.
type block string

// MarshalYAML writes it as one.
func (b block) MarshalYAML() (any, error) {
	n := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: string(b)}
	if strings.Contains(string(b), "\n") {
		n.Style = yaml.LiteralStyle
	}
	return n, nil
}

// record is the name of the lag, and sinkRecord of the lag of each sink.
func (p Probe) record() string { return "job:" + strings.ReplaceAll(p.Name, "-", "_") + "_lag:seconds" }
func (p Probe) sinkRecord() string {
	return "sink:" + strings.ReplaceAll(p.Name, "-", "_") + "_lag:seconds"
}

// alert is the name of the alerts.
func (p Probe) alert() string {
	var b strings.Builder
	for _, word := range p.split() {
		b.WriteString(strings.ToUpper(word[:1]) + word[1:])
	}
	return b.String() + "LagHigh"
}

// words is how a sentence begins with the name.
func (p Probe) words() string {
	words := p.split()
	if len(words) == 0 {
		return p.Name
	}
	s := strings.Join(words, " ")
	return strings.ToUpper(s[:1]) + s[1:]
}

func (p Probe) split() []string {
	return strings.FieldsFunc(p.Name, func(r rune) bool { return r == '-' || r == '_' })
}

// clashes reports probes whose rules would have the same name.
func clashes(probes []Probe) error {
	by := make(map[string][]string)
	for _, p := range probes {
		by[p.record()] = append(by[p.record()], p.Name)
		by[p.alert()] = append(by[p.alert()], p.Name)
	}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(by)) {
		if len(by[name]) > 1 {
			errs = append(errs, fmt.Errorf("probes %s would all make %s: rename all but one, or use the generic rules", strings.Join(by[name], " and "), name))
		}
	}
	return errors.Join(errs...)
}

// literal keeps a text from being taken for a template of Prometheus.
func literal(s string) string { return strings.ReplaceAll(s, "{{", `{{ "{{" }}`) }

func seconds(d time.Duration) string {
	return strings.TrimSuffix(strings.TrimRight(fmt.Sprintf("%.3f", d.Seconds()), "0"), ".")
}
