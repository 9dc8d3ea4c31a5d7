// Package exactlyonce is a process that reads, changes and writes in transactions: what it has written and how far it has read become
// visible together or not at all.
package exactlyonce
