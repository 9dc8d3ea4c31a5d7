// Package dashboards holds the Grafana dashboards: Fleet, Probe, and Probe with a Mermaid diagram, as the JSON that
// Grafana imports. They are made by the module in gen, which reaches nobody who uses this package, from what
// rules/lag-monitor-dashboards.rules.yaml records. docs/dashboards.md says how to load them.
package dashboards

import "embed"

// Files holds fleet.json, probe.json and probe-mermaid.json.
//
//go:embed *.json
var Files embed.FS
