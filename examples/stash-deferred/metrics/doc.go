// Package metrics is the only place where the names, labels, help and buckets of the service's metrics are:
// stashdef_<what>_<unit>. Every counter exists at 0 from the start. For each operation there are a counter by
// result and a histogram of durations; whoever does not know what to measure begins with these two.
package metrics
