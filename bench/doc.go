// Command bench measures what the monitor itself costs, over queues in memory, without any broker: one
// heartbeat, a fleet of 10,000 probes, a scrape of them, and a start. `make bench` runs it beside the
// benchmarks of the transports; docs/performance.md holds the table.
package main
