// Package stream writes messages to Kinesis, one record each, and tells which errors a second attempt may cure. It
// makes one attempt: whoever calls it retries, since only so each attempt is counted.
package stream
