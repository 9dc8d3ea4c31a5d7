// Package deploy holds what runs lag-monitor elsewhere. It is a module of its own, so that the types of
// Kubernetes that its test checks the manifests with reach nobody who builds the daemon.
package deploy
