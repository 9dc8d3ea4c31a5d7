//go:build !race

package heartbeat

// mostAllocations is how many allocations a call may take. The collector may empty a pool meanwhile: a
// rare refill is no allocation for each call.
const mostAllocations = 0.1
