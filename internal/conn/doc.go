// Package conn holds what both ends of a transport share: durations, secrets, TLS, marked errors and
// the settings of a broker connection. It injects nothing, listens to nothing and counts nothing.
package conn
