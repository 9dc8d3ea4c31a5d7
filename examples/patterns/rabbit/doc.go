// Package rabbit is how the services on RabbitMQ talk to it: declare, consume, publish and wait for the confirmation. What
// to do with a message is the service's.
package rabbit
