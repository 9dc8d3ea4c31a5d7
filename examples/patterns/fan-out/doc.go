// Package fanout is a fan-out: what is published once goes to two services, each with a queue of its own. They know nothing
// of each other, and one that stops must not hold up the other.
package fanout
