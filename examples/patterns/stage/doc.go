// Package stage puts a pattern up on loopback: its broker, the parts of its service, lag-monitor with the pattern's own
// configuration, and a Prometheus with the shipped rules. It breaks what a story says and looks which alerts tell it. It
// knows no pattern.
package stage
