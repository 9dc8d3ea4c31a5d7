//go:build race

package journal

// slower is how much of a long test the race detector is spared: it would take ten times as long.
const slower = 8
