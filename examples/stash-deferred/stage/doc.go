// Package stage puts the whole case up on loopback: Bigtable, Kinesis, the service's two processes, users, lag-monitor,
// and, where they are installed, Prometheus, Alertmanager and a Slack that only remembers. It holds no story and no
// check; package story plays on it.
package stage
