// Package consumergroup is a Kafka consumer group: two members share the partitions of a topic. When one comes or goes the group
// divides them anew, and what a member has done without saying so is done again by another.
package consumergroup
