package ledger

import (
	"slices"
	"time"
)

// BlockSize is how many sequences of a lane stand together in a Block.
const BlockSize = 64

// Block is what is open of the sequences from Number × BlockSize on.
type Block struct {
	Lane   uint32
	Number uint64
	Open   []Open // ascending; empty when nothing is open any more
}

// Open is a heartbeat whose outcome is open.
type Open struct {
	Seq uint64
	Due Instant
	// Maybe is set when it is not known whether the head has it: it has not answered, or not clearly.
	Maybe bool
	// Missed is set when it may have passed the sink unseen.
	Missed bool
	Death  Death // why it was found in a dead-letter queue; NotDead when it was not
}

// Changes calls f with each block in which something has changed since the last call, and with those
// only: what somebody has kept of the calls before is up to date again. The block is valid during the
// call; buf is room that may be used, and is returned for the next time.
func (l *Ledger) Changes(buf []Open, f func(*Block)) []Open {
	for id, ln := range l.lanes {
		if ln.touched >= ln.next {
			continue
		}
		b := Block{Lane: id}
		// What lies before open is final, so that only blocks that were not empty once are of interest there.
		from := ln.open / BlockSize
		gone := 0
		for ; gone < len(ln.saved) && ln.saved[gone] < from; gone++ {
			b.Number = ln.saved[gone]
			f(&b)
		}
		ln.saved = slices.Delete(ln.saved, 0, gone)
		for b.Number = max(from, ln.touched/BlockSize); b.Number*BlockSize < ln.next; b.Number++ {
			b.Open = l.openOf(ln, b.Number, buf[:0])
			at, saved := slices.BinarySearch(ln.saved, b.Number)
			switch {
			case len(b.Open) == 0 && !saved:
				continue
			case len(b.Open) == 0:
				ln.saved = slices.Delete(ln.saved, at, at+1)
			case !saved:
				ln.saved = slices.Insert(ln.saved, at, b.Number)
			}
			f(&b)
			buf = b.Open
		}
		ln.touched = ln.next
	}
	return buf
}

// openOf appends what is open of a block to dst.
func (l *Ledger) openOf(ln *lane, block uint64, dst []Open) []Open {
	for seq := max(ln.open, block*BlockSize); seq < min(ln.next, (block+1)*BlockSize); seq++ {
		s := ln.at(seq)
		if !s.fate.open() && s.fate != Injecting {
			continue
		}
		dst = append(dst, Open{Seq: seq, Due: s.due, Maybe: s.fate != Waiting,
			Death:  s.death,
			Missed: s.missed || l.gapped && s.due.Add(-l.cfg.Expiry-l.cfg.Skew) < l.gap})
	}
	return dst
}

// ChangeAll makes the next call of Changes tell everything that is open, and nothing else: for somebody
// who has kept nothing of the calls before.
func (l *Ledger) ChangeAll() {
	for _, ln := range l.lanes {
		ln.touched, ln.saved = 0, nil
	}
}

// Restore registers heartbeats that an earlier account has left open, in ascending order: they were
// injected already. Sequences of the lane that lie between count as settled.
func (l *Ledger) Restore(lane uint32, open []Open) {
	for _, o := range open {
		l.Expect(lane, o.Seq, o.Due)
		ln := l.lanes[lane]
		if ln == nil || !ln.inRing(o.Seq) || ln.at(o.Seq).fate != Injecting {
			continue
		}
		ln.at(o.Seq).missed = o.Missed
		if o.Maybe {
			l.Sent(lane, o.Seq, Unknown)
		} else {
			l.Sent(lane, o.Seq, Accepted)
		}
		if o.Death != NotDead {
			l.DeadLetter(lane, o.Seq, o.Death)
		}
	}
}

// Knows reports whether a heartbeat was expected and is still remembered, whatever has become of it.
func (l *Ledger) Knows(lane uint32, seq uint64) bool {
	return l.Fate(lane, seq) != Unsent
}

// Resume tells that the sink goes on where an earlier account has left off: that it begins to read for
// the first time in this one leaves no gap.
func (l *Ledger) Resume() { l.begun = true }

// End is how far a lane has been registered.
type End struct {
	Lane  uint32
	Next  uint64        // one past the last sequence
	Due   Instant       // of that last one
	Every time.Duration // between the ticks, where Infer has told
}

// Ends appends the end of each lane to dst, in no order.
func (l *Ledger) Ends(dst []End) []End {
	for id, ln := range l.lanes {
		dst = append(dst, End{Lane: id, Next: ln.next, Due: ln.lastDue(), Every: ln.every})
	}
	return dst
}

// RestoreEnd moves a lane to the end that it had in an earlier account, after Restore: what Infer is told
// of next goes on from there.
func (l *Ledger) RestoreEnd(e End) {
	l.Skip(e.Lane, e.Next-1, e.Due)
	if ln := l.lanes[e.Lane]; ln != nil {
		ln.every = e.Every
	}
}
