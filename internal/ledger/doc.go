// Package ledger says what became of each heartbeat at each sink. It is a pure state machine: events
// and the time go in, outcomes and counts come out. It has no clock, no goroutine, no lock, no I/O
// and no metric; its owner serialises the calls.
package ledger
