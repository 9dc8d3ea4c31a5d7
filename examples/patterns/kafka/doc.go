// Package kafka is how the services on Kafka talk to it: the options that their clients have in common.
package kafka
