// Command gen writes the Grafana dashboards of the folder above, and the list of their panels in docs/dashboards.md. It is a module of its own, so that the PromQL parser
// and the Jsonnet evaluator that its tests check them with reach nobody who builds the daemon.
//
// grafana.go holds the part of Grafana's classic JSON that is used, panels.go how each kind of panel looks, and
// fleet.go, probe.go and mermaid.go what is on each dashboard.
package main
