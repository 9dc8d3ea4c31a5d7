//go:build race

package heartbeat

// mostAllocations is how many allocations a call may take: under the race detector a sync.Pool loses
// some of what it is given, and a signer is made anew.
const mostAllocations = 20
