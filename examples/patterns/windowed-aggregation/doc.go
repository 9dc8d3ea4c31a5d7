// Package windowedaggregation counts clicks in windows of two seconds. A count is a new message, in which no click is found
// any more: a heartbeat has to be passed around the counting, and with the window into which it fell.
package windowedaggregation
