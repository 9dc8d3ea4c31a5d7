// Package backend takes messages that are due out of the store and puts them onto their streams: a scanner, some
// publishers and a deleter, joined by unbuffered channels, so that whoever is slow slows down those before it, and
// nothing piles up between them. A message is published at least once, in no order: it stays in the store until it
// has been published, so that the process can be killed at any moment.
package backend
