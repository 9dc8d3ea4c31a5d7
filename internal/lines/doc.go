// Package lines holds how the commands that write line by line write their values: ping, tail and token. It
// decides nothing.
package lines
