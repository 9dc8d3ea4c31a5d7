// Package monitor joins probes, sinks, ledgers and metrics: it owns what runs, feeds arrivals into the
// accounts, applies a new configuration and shuts down. It parses no configuration and serves no HTTP.
package monitor
