package rules

import (
	"bytes"
	_ "embed"
	"strings"

	"gopkg.in/yaml.v3"
)

// Generic is lag-monitor.rules.yaml: the rules and alerts for every probe of every monitor.
//
//go:embed lag-monitor.rules.yaml
var Generic []byte

// Dashboards is lag-monitor-dashboards.rules.yaml: what the dashboards read, beside Generic.
//
//go:embed lag-monitor-dashboards.rules.yaml
var Dashboards []byte

// Object is how a PrometheusRule is called.
type Object struct {
	Name      string
	Namespace string // may be empty
	Labels    map[string]string
}

// Operator returns a rule file as a PrometheusRule, an object of the Prometheus operator. The rules stand in
// it as they are, comments too.
func Operator(file []byte, o Object) ([]byte, error) {
	type meta struct {
		Name      string            `yaml:"name"`
		Namespace string            `yaml:"namespace,omitempty"`
		Labels    map[string]string `yaml:"labels,omitempty"`
	}
	head, err := marshal(struct {
		APIVersion string `yaml:"apiVersion"` //nolint:tagliatelle // as Kubernetes has it
		Kind       string `yaml:"kind"`
		Metadata   meta   `yaml:"metadata"`
	}{"monitoring.coreos.com/v1", "PrometheusRule", meta(o)})
	if err != nil {
		return nil, err
	}
	out := bytes.NewBuffer(head)
	out.WriteString("spec:\n")
	for line := range strings.Lines(string(file)) {
		if strings.TrimSpace(line) != "" {
			out.WriteString("  ")
		}
		out.WriteString(line)
	}
	return out.Bytes(), nil
}

// marshal writes YAML as the files here are written.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return b.Bytes(), e.Close()
}
