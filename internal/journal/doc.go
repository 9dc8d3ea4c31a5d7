// Package journal keeps in one file what has to survive a restart: positions of sinks, newest timestamps
// and heartbeats without an outcome. It only stores: when to write what, and what to make of it later, is
// its caller's.
//
// # The file
//
// DIR/journal.db is a bbolt database with the one bucket "journal", in which each entry guards itself.
// Its keys:
//
//	h                                                             the header
//	s SINK                                                        a Sink
//	b PROBE SINK INSTANCE(8) EPOCH(8) LANE(4) BLOCK(8)            a Block
//	p PROBE                                                       a Pause
//
// Names have their length before them, so that no two keys can be the same bytes; numbers in keys are big
// endian. A value is a format byte, varints (times as differences to the one before, names without what
// they share with the one before), and four bytes CRC-32C over key and value. The header says when the
// file was last written, by which of bbolt's transactions, how many entries there are, and the sum of
// their checksums: so nothing can be missing, or be left over from an earlier write, unnoticed.
//
// Nobody ever writes into a file that another process made: Open only reads, and the first Write makes a
// new file beside it (journal.db.new) and moves it into place when it is on the disk. The same happens
// after every error. So what a damaged file says about its own structure is never relied upon for
// writing, and what an outage made large is small again after a restart.
//
// A lock on DIR/journal.lock keeps a second process out.
package journal
