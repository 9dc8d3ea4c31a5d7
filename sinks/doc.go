// Package sinks listens on destination queues: the Sink interface, the Feed it delivers to, the loop
// that keeps it running, the table of kinds, and one file per transport. It never injects; that is
// package probe.
package sinks
