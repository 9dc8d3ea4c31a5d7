package backend

import (
	"sync"
	"time"
)

// mostHeld bounds the rows that are left alone for a while. What is beyond is tried again at each scan.
const mostHeld = 10_000

// active is the set of rows that a scan must not hand out: those on their way, those that were deleted after the last
// read of the store began, which that read may show once more, and those that are held. Everything else is forgotten,
// so it is as small as what is under way. It is safe for concurrent use.
type active struct {
	mu      sync.Mutex
	rows    map[string]time.Time // until when a row is held; zero: it is on its way
	deleted []string             // since the last begin
	held    int
}

func newActive() *active { return &active{rows: map[string]time.Time{}} }

// begin is called before each read of the store: what was deleted before it is not in it.
func (a *active) begin(now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, key := range a.deleted {
		delete(a.rows, key)
	}
	a.deleted = a.deleted[:0]
	if a.held == 0 {
		return
	}
	for key, until := range a.rows {
		if !until.IsZero() && !until.After(now) {
			delete(a.rows, key)
			a.held--
		}
	}
}

// take puts a row on its way; false when it is in the set already.
func (a *active) take(key string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, there := a.rows[key]; there {
		return false
	}
	a.rows[key] = time.Time{}
	return true
}

// release forgets a row: the next scan hands it out again.
func (a *active) release(key string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.rows, key)
}

// hold leaves a row that is on its way alone until a time.
func (a *active) hold(key string, until time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.held >= mostHeld {
		delete(a.rows, key)
		return
	}
	a.rows[key] = until
	a.held++
}

// finish is called when a row that was on its way has been deleted.
func (a *active) finish(key string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.deleted = append(a.deleted, key)
}

func (a *active) len() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.rows)
}
