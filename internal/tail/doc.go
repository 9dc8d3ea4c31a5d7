// Package tail shows the heartbeats that come out of one queue, whoever has sent them, as tail -f does with
// the lines of a file. It counts nothing for anybody and takes nothing away from anybody.
package tail
