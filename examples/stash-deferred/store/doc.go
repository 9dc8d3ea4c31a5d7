// Package store keeps deferred messages in Bigtable, a row each: how a row is called and what is in it, how it
// is written, scanned and deleted. It has no metrics, no log and no retry of its own: the client retries what
// may be retried until the context ends, and the callers count.
package store
