// Package tracing turns what became of a heartbeat into the spans of one trace, and exports traces by OTLP.
// It does not follow heartbeats: who does hands it the facts.
package tracing
