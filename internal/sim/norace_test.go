//go:build !race

package sim

// fewSeeds is how many seeds are run by default: as many as take some seconds.
const fewSeeds = 240
