// Package e2e holds the end-to-end tests: the real binary, with a configuration as a user writes it,
// between real servers of internal/servers. It uses nothing of the program but what a user sees: flags,
// files, signals, /metrics and the exit code; internal/heartbeat alone serves to forge bad tokens.
//
// There is no code outside the tests. What one package does by itself is tested there.
package e2e
