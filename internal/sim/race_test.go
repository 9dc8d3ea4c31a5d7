//go:build race

package sim

// fewSeeds is how many seeds are run by default: under the race detector each takes ten times as long.
const fewSeeds = 30
