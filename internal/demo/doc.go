// Package demo is `lag-monitor demo`: a small pipeline in this process, the real monitor that watches it
// over the loopback, a view of both in the terminal, and faults to switch on. It measures and counts
// nothing itself: what it shows of heartbeats is what the monitor says.
package demo
