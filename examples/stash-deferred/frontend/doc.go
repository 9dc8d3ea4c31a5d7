// Package frontend takes messages from users over HTTP and writes each one into the store. An answer of 202 means
// that the message is in Bigtable and comes out when it is due, however often the backend is killed. It publishes
// nothing.
package frontend
