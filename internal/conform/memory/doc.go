// Package memory is the reference transport: a queue in this process with an injector and a sink. The
// conformance suite proves itself on it, simulations and benchmarks measure the monitor without a
// broker's costs. It is in neither table of kinds, since no pipeline ends inside the monitor.
package memory
