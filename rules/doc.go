// Package rules holds what Prometheus and Alertmanager load to page for the probes of lag-monitor: rule files,
// their tests, and an example of a routing. Its code makes the same rules in other forms: as an object of the
// Prometheus operator, and one group for each probe under the names of the service that lag-monitor was first
// written for.
package rules
