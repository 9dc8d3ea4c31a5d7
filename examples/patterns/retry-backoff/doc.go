// Package retrybackoff is a queue whose worker tries a job again when it fails, each time after a longer pause: it puts the job
// into a queue that nobody reads, and whose time to live brings it back.
package retrybackoff
