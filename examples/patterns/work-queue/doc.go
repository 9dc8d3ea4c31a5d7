// Package workqueue is a work queue: orders wait in one queue, several workers take them, a few at a time, and acknowledge
// each one when it is done. What a worker has not acknowledged when it dies goes to another one.
package workqueue
