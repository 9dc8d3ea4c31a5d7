// Package topicrouting is a topic exchange: each service binds what it wants to see by patterns of the routing key. What
// nobody has bound is thrown away, and a message that one queue has taken was delivered as far as the broker knows.
package topicrouting
