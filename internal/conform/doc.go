// Package conform is the conformance suite that every transport passes: what the loops, the ledger
// and the metrics rely on, proven against the real driver and, where there is one, a real broker.
// Only tests import it.
//
// A transport joins with a harness of a few lines (see Harness) in a file of its own beside the
// suite and one line in the table of harnesses; a kind without one fails the tests.
package conform
