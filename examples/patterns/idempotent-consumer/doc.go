// Package idempotentconsumer is a consumer that recognises what it has done: a gateway may put an order into the stream twice,
// and the worker does it once, since Redis remembers the order's id.
package idempotentconsumer
