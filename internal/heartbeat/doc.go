// Package heartbeat is the heartbeat's identity and its token: encode, find in arbitrary bytes,
// verify. It knows no transport, no clock and no metric, and imports the standard library only.
// docs/heartbeat.md specifies the bytes.
package heartbeat
