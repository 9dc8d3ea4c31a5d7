// Package token finds the heartbeats in whatever a person has copied out of a log, a queue or a console, and
// says what they are and whether they are genuine.
package token
