package sinks

import "time"

// A look-back is of use for its youngest messages above all, and what enters now waits behind it. So a
// driver that has read paceBytes of it in paceStep or longer, and is not through, goes on from the middle
// of what is left. Ten such steps are a minute and leave a thousandth.
const (
	paceStep  = 5 * time.Second
	paceBytes = 4 << 20
)

// pace measures the reading of a look-back. The zero value is ready for use.
type pace struct {
	began time.Time
	bytes int
}

// slow counts bytes that have been read, and reports that it is time to go on from the middle.
func (p *pace) slow(bytes int) bool {
	now := time.Now()
	if p.began.IsZero() {
		p.began = now
	}
	p.bytes += bytes
	if now.Sub(p.began) < paceStep || p.bytes < paceBytes {
		return false
	}
	*p = pace{began: now}
	return true
}
