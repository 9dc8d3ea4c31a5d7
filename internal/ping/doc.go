// Package ping runs one probe by itself for a while, as ping(8) does with a host, and tells what becomes of
// each of its heartbeats. The monitor that it runs is the real one: what is told is read from its accounts.
// The daemon that watches the same pipeline is left alone.
package ping
