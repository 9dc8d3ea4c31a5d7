// Package faults holds the fault matrix: the real binary between two real queues, with a relay between
// them that knows the truth, while one thing after the other breaks. Each row breaks one thing, and the
// counters of the daemon are compared with what is in the queues afterwards. docs/reliability.md shows
// what came out, and README.md here says how to add a row or a kind of queue.
//
// There is no code outside the tests. Faults inside one process, from seeds, are those of internal/sim.
package faults
