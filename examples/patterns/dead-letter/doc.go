// Package deadletter is a work queue whose broken messages end in a dead-letter queue, with the reason: a worker rejected them,
// they waited for too long, or they were tried too often.
package deadletter
