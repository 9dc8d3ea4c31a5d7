package config

import (
	"reflect"
	"regexp"

	"gopkg.in/yaml.v3"

	"github.com/lag-monitor/lag-monitor/internal/conn"
)

// hidden stands for what is not shown.
const hidden = "<secret>"

// secretName matches the names of headers, query parameters and properties that tend to hold
// credentials although the file has other keys for them.
var secretName = regexp.MustCompile(`(?i)auth|token|secret|passw|credential|cookie|api-?_?key|signature`)

// Redacted returns the whole configuration as one file with every default filled in, which Load
// accepts. References to secrets, {file:} and {env:}, are shown: they say where a secret is, not what
// it is. The values of headers that look like credentials are not shown.
func (c *Config) Redacted() ([]byte, error) {
	g := rawGlobal{
		Interval: conn.Duration(c.Global.Interval), Timeout: conn.Duration(c.Global.Timeout), SendTimeout: conn.Duration(c.Global.SendTimeout),
		Labels: c.Global.Labels, Page: c.Global.Page.raw(), Ticket: c.Global.Ticket.rawTicket(), SLO: c.Global.SLO.raw(), Key: c.Global.Keys,
		Instance: c.Global.Instance, MaxSkew: conn.Duration(c.Global.MaxSkew), Tracing: rawTracingOf(c.Global.Tracing),
	}
	l := make(layouts)
	root := &yaml.Node{Kind: yaml.MappingNode}
	// max_skew may be 0, which is not its default.
	add(root, "global", l.encode(reflect.ValueOf(g), reflect.ValueOf(defaultGlobal())))
	l.addDefinitions(root, c.Sinks, c.Probes)
	if len(root.Content) == 2 {
		add(root, "probes", &yaml.Node{Kind: yaml.MappingNode})
	}
	hide(root)
	return yaml.Marshal(root)
}

// Redacted returns the probe and its sinks as Config.Redacted would. sinks are those that the probe names.
func (p *Probe) Redacted(sinks map[string]*Sink) ([]byte, error) {
	root := &yaml.Node{Kind: yaml.MappingNode}
	make(layouts).addDefinitions(root, sinks, map[string]*Probe{p.Name: p})
	hide(root)
	return yaml.Marshal(root)
}

func (l layouts) addDefinitions(root *yaml.Node, sinks map[string]*Sink, probes map[string]*Probe) {
	listen := make(map[string]*rawSink, len(sinks))
	for n, s := range sinks {
		listen[n] = s.raw()
	}
	add(root, "sinks", l.encode(reflect.ValueOf(listen), reflect.Value{}))
	all := make(map[string]rawProbe, len(probes))
	for n, p := range probes {
		all[n] = p.raw()
	}
	add(root, "probes", l.encode(reflect.ValueOf(all), reflect.Value{}))
}

// hide masks the headers that look like credentials, wherever a kind has a mapping of headers. Every
// other place for a secret takes a reference only.
func hide(n *yaml.Node) {
	for i, c := range n.Content {
		if n.Kind == yaml.MappingNode && i%2 == 1 && n.Content[i-1].Value == "headers" && c.Kind == yaml.MappingNode {
			for j := 0; j+1 < len(c.Content); j += 2 {
				if v := c.Content[j+1]; v.Kind == yaml.ScalarNode && secretName.MatchString(c.Content[j].Value) {
					v.SetString(hidden)
				}
			}
			continue
		}
		hide(c)
	}
}
