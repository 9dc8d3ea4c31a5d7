// Package probe injects heartbeats at the head of a pipeline: the Injector interface, the schedule
// that decides when, the table of kinds, and one file per transport. It never listens to a queue;
// that is package sinks.
package probe
