// Package dashboard makes the Grafana dashboard of Stash Deferred: a picture of the service with the rates in it, and
// what a responder looks at, from what users feel down to durations. Its queries are recording rules of
// ../rules/stash-deferred.rules.yaml and of lag-monitor. The JSON files beside it are what it makes;
// `go test ./dashboard -write` writes them anew.
package dashboard
