// Package priority is a priority queue: what is urgent overtakes what is not, and under load what is not urgent waits for ever.
package priority
