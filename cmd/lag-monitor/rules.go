package main

import (
	"cmp"
	"errors"
	"fmt"

	"github.com/alecthomas/kingpin/v2"

	"github.com/lag-monitor/lag-monitor/internal/config"
	"github.com/lag-monitor/lag-monitor/rules"
)

const rulesHelp = `Print the recording and alerting rules for Prometheus.

The rules that are printed by default serve every probe of every monitor: thresholds, labels and routing come from the metrics, so a new probe needs no new rules. They belong to this version of the program.

--per-probe prints, from a configuration file, a group of its own for each probe that has sinks instead: the lag as job:stash_deferred_lag:seconds, and an alert StashDeferredLagHigh with the threshold, the for and the labels of the probe's YAML written out. Make them anew whenever the file changes. They page for the lag only; beside the generic rules one incident would page twice.

  lag-monitor rules > /etc/prometheus/rules/lag-monitor.rules.yaml
  lag-monitor rules --dashboards > /etc/prometheus/rules/lag-monitor-dashboards.rules.yaml
  lag-monitor rules --format=operator --namespace=monitoring | kubectl apply -f -
  lag-monitor rules --per-probe --config.file=lag-monitor.yaml > probes.rules.yaml

Exit codes: 0; 2 when the flags or the file are wrong, or two probes would come to the same name.`

type rulesFlags struct {
	format     string
	perProbe   bool
	dashboards bool
	configFile string
	job        string
	object     rules.Object
}

func addRules(app *kingpin.Application, env *environment) (string, func() error) {
	c := app.Command("rules", rulesHelp)
	var f rulesFlags
	c.Flag("format", "prometheus: a rule file; operator: a PrometheusRule, for the Prometheus operator.").Default("prometheus").EnumVar(&f.format, "prometheus", "operator")
	c.Flag("per-probe", "Rules for each probe of --config.file.").BoolVar(&f.perProbe)
	c.Flag("dashboards", "The recording rules that the dashboards read, beside the generic rules.").BoolVar(&f.dashboards)
	addConfigFile(c, &f.configFile)
	c.Flag("job", "With --per-probe: only the monitors of this scrape job count.").StringVar(&f.job)
	c.Flag("name", "Name of the PrometheusRule. Default: lag-monitor, with -dashboards or -probes behind it.").StringVar(&f.object.Name)
	c.Flag("namespace", "Namespace of the PrometheusRule. Default: none.").StringVar(&f.object.Namespace)
	f.object.Labels = make(map[string]string)
	c.Flag("label", "A label of the PrometheusRule, for the operator's selector; may be repeated. Default: app.kubernetes.io/name=lag-monitor.").
		PlaceHolder("NAME=VALUE").StringMapVar(&f.object.Labels)
	return c.FullCommand(), func() error {
		out, err := f.render(env)
		if err != nil {
			return usageError{err}
		}
		_, err = env.stdout.Write(out)
		return err
	}
}

func (f *rulesFlags) render(env *environment) ([]byte, error) {
	operator := f.format == "operator"
	if !operator && (f.object.Name != "" || f.object.Namespace != "" || len(f.object.Labels) > 0) {
		return nil, errors.New("--name, --namespace and --label are for --format=operator")
	}
	if !f.perProbe && f.job != "" {
		return nil, errors.New("--job is for --per-probe: the generic rules tell jobs apart by themselves")
	}
	command, object, out := "lag-monitor rules", name, rules.Generic
	switch {
	case f.perProbe && f.dashboards:
		return nil, errors.New("--per-probe and --dashboards are two files: print one after the other")
	case f.dashboards:
		command, object, out = command+" --dashboards", name+"-dashboards", rules.Dashboards
	case f.perProbe:
		cfg, err := loadFor(f.configFile, env.stderr)
		if err != nil {
			return nil, err
		}
		if out, err = rules.PerProbe(ruleProbes(cfg), f.job); err != nil {
			return nil, fmt.Errorf("%s: %w", f.configFile, err)
		}
		command, object = command+" --per-probe", name+"-probes"
	}
	if operator {
		command += " --format=operator"
		f.object.Name = cmp.Or(f.object.Name, object)
		if len(f.object.Labels) == 0 {
			f.object.Labels["app.kubernetes.io/name"] = name
		}
		var err error
		if out, err = rules.Operator(out, f.object); err != nil {
			return nil, err
		}
	}
	if operator || f.perProbe {
		out = append([]byte("# Made by "+command+". Make it anew rather than change it.\n"), out...)
	}
	return out, nil
}

// ruleProbes returns the probes at whose sinks something may be late, by name.
func ruleProbes(cfg *config.Config) (out []rules.Probe) {
	for _, n := range sorted(cfg.Probes) {
		p := cfg.Probes[n]
		if len(p.Sinks) == 0 {
			continue
		}
		out = append(out, rules.Probe{
			Name: n, Labels: p.Labels, Runbook: p.Runbook,
			Page:   rules.Threshold{Lag: p.Page.Lag, For: p.Page.For},
			Ticket: rules.Threshold{Lag: p.Ticket.Lag, For: p.Ticket.For},
		})
	}
	return out
}
