// Package lagmonitor holds the files of the repository's root that the program itself needs. It has no code.
package lagmonitor
