// Package emulator is a Bigtable in memory with the service's table, and with faults to switch: what Google's
// bttest does not do by itself. It stands in for a real instance on a laptop and in tests, and keeps nothing.
package emulator
