// lag-monitor as a monitoring mixin: what the files of this repository hold, under the names that mixins have.
//
// An alert reads what the recording rules of its own group have recorded in the same round, and some of these read their own
// previous value: groups are handed on whole. Those with an alert are prometheusAlerts, the others prometheusRules; load both.
local groups =
  std.parseYaml(importstr '../../rules/lag-monitor.rules.yaml').groups
  + std.parseYaml(importstr '../../rules/lag-monitor-dashboards.rules.yaml').groups;
local alerts(group) = std.length([rule for rule in group.rules if std.objectHas(rule, 'alert')]) > 0;

{
  grafanaDashboardFolder:: 'lag-monitor',
  grafanaDashboards+:: {
    'lag-monitor-fleet.json': import '../fleet.json',
    'lag-monitor-probe.json': import '../probe.json',
    'lag-monitor-probe-mermaid.json': import '../probe-mermaid.json',
  },
  prometheusAlerts+:: {
    groups+: [group for group in groups if alerts(group)],
  },
  prometheusRules+:: {
    groups+: [group for group in groups if !alerts(group)],
  },
}
