package web

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// The limits of the stream of updates. docs/security.md lists them.
const (
	maxSubscribers = 64
	// freshness is how old an answer may be that several readers share, and the time between two updates.
	freshness = time.Second
	// share bounds what pages may cost: one that takes long to make is made less often, so that no more than this
	// part of a core goes into it.
	share = 10
	// quiet is how long a stream may say nothing. The page calls itself stale after three times that.
	quiet = 5 * time.Second
	// flow bounds what one reader is sent in the long run, bytes a second: when a thousand rows change each
	// second, he gets them less often.
	flow = 64 << 10
	// slowReader is how long one update may take to be written.
	slowReader = 10 * time.Second
	// maxBoards bounds the pages that are kept up to date at once.
	maxBoards = 64
	// maxGone bounds what is remembered of parts that are gone.
	maxGone = 10_000
)

// A section is a part of a page that changes by itself: one element with an id.
type section struct {
	ID   string `json:"id"`
	HTML string `json:"html"`
	Into string `json:"into,omitempty"` // the id of the element that it is appended to when it is new
	rev  uint64
}

// A board is what one page shows now. Pages and streams of the same page share it, so that a thousand
// readers cost as much as one. Only boards change used and at of one that can be
// seen.
type board struct {
	rev      uint64 // of the newest change
	at       time.Time
	used     time.Time
	cost     time.Duration // of making it
	sections []section
	gone     map[string]uint64
	page     any // what the sections were made of
}

// html returns the sections with that Into, or the only one with that id.
func (b *board) html(name string) string {
	var out strings.Builder
	for i := range b.sections {
		if s := &b.sections[i]; s.Into == name || s.ID == name {
			out.WriteString(s.HTML)
			out.WriteByte('\n')
		}
	}
	return out.String()
}

// changes is the body of an update.
type changes struct {
	Sections []section `json:"sections,omitempty"`
	Gone     []string  `json:"gone,omitempty"`
}

// after returns what has changed since a revision; 0: everything.
func (b *board) after(rev uint64) changes {
	var c changes
	for _, s := range b.sections {
		if s.rev > rev {
			c.Sections = append(c.Sections, s)
		}
	}
	for id, r := range b.gone {
		if r > rev && rev > 0 {
			c.Gone = append(c.Gone, id)
		}
	}
	return c
}

// boards keeps what pages show. Revisions rise over all boards; epoch tells those of one process from
// those of the next.
type boards struct {
	epoch string
	fresh time.Duration

	mu  sync.Mutex
	rev uint64
	all map[string]*board
}

func newBoards(fresh time.Duration) *boards {
	return &boards{epoch: strconv.FormatInt(time.Now().UnixNano(), 36), fresh: fresh, all: make(map[string]*board)}
}

// get returns the board of a page, made anew when it is too old. build returns the sections, what they were
// made of, and false when there is no such page.
func (l *boards) get(key string, now time.Time, build func() ([]section, any, bool, error)) (*board, bool, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	old := l.all[key]
	if old != nil {
		age, fresh := now.Sub(old.at), l.fresh
		if fresh > 0 {
			fresh = max(fresh, share*old.cost)
		}
		if age >= 0 && age < fresh {
			old.used = now
			return old, true, nil
		}
	}
	began := time.Now()
	parts, page, ok, err := build()
	if !ok || err != nil {
		delete(l.all, key)
		return nil, false, err
	}
	next := &board{at: now, used: now, sections: parts, gone: make(map[string]uint64), page: page, cost: time.Since(began)}
	before := make(map[string]section)
	if old != nil {
		next.rev = old.rev
		for _, s := range old.sections {
			before[s.ID] = s
		}
		if len(old.gone) < maxGone {
			for id, r := range old.gone {
				next.gone[id] = r
			}
		}
	}
	l.rev++
	for i := range parts {
		s := &parts[i]
		if was, ok := before[s.ID]; ok && was.HTML == s.HTML {
			s.rev = was.rev
		} else {
			s.rev, next.rev = l.rev, l.rev
		}
		delete(before, s.ID)
		delete(next.gone, s.ID)
	}
	for id := range before {
		next.gone[id], next.rev = l.rev, l.rev
	}
	if old == nil && len(l.all) >= maxBoards {
		l.forget()
	}
	l.all[key] = next
	return next, true, nil
}

// forget drops the board that nobody has asked for the longest. Who comes back gets everything anew.
func (l *boards) forget() {
	var oldest string
	for key, b := range l.all {
		if oldest == "" || b.used.Before(l.all[oldest].used) {
			oldest = key
		}
	}
	delete(l.all, oldest)
}

// stale makes the next reader of every page see what is now: something was done on purpose.
func (l *boards) stale() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, b := range l.all {
		b.at = time.Time{}
	}
}

// mark names a revision for the reader, who sends it back when he connects.
func (l *boards) mark(rev uint64) string { return l.epoch + "-" + strconv.FormatUint(rev, 10) }

// unmark reads a mark. same is false when it is of another process.
func (l *boards) unmark(s string) (rev uint64, same bool) {
	epoch, n, _ := strings.Cut(s, "-")
	rev, err := strconv.ParseUint(n, 10, 64)
	return rev, err == nil && epoch == l.epoch
}

type stoppingKey struct{}

// stopping is closed when the server that answers a request is told to stop. It is nil, which waits for
// ever, where the server does not say.
func stopping(ctx context.Context) <-chan struct{} {
	c, _ := ctx.Value(stoppingKey{}).(<-chan struct{})
	return c
}

// stream sends the changes of a page, as server-sent events, until the reader or the server goes:
//
//	event: update   {"sections": [{"id", "html", "into"}], "gone": [id]}, with the mark as id
//	event: tick     nothing has changed for a while
//	event: reload   the process is another one: the page is of the past
//	event: gone     there is no such page any more
type stream struct {
	slots chan struct{}
	pages *boards
}

func newStream(pages *boards) *stream {
	return &stream{slots: make(chan struct{}, maxSubscribers), pages: pages}
}

// serve answers one reader. look returns what his page shows now.
func (s *stream) serve(w http.ResponseWriter, r *http.Request, look func() (*board, bool, error)) {
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	default:
		w.Header().Set("Retry-After", "30")
		apiError(w, http.StatusServiceUnavailable, fmt.Sprintf("%d readers are being kept up to date, which is the most", maxSubscribers))
		return
	}
	out := http.NewResponseController(w)
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no") // nginx would hold updates back
	send := func(event, id string, data []byte) error {
		// The limit of an ordinary answer would end the stream. A recorder in a test has none.
		_ = out.SetWriteDeadline(time.Now().Add(slowReader))
		line := "event: " + event + "\n"
		if id != "" {
			line += "id: " + id + "\n"
		}
		if _, err := fmt.Fprintf(w, "%sdata: %s\n\n", line, data); err != nil {
			return err
		}
		return out.Flush()
	}

	mark := r.Header.Get("Last-Event-ID")
	if mark == "" {
		mark = r.URL.Query().Get("since")
	}
	var rev uint64
	if mark != "" {
		var same bool
		if rev, same = s.pages.unmark(mark); !same {
			_ = send("reload", "", []byte("{}"))
			return
		}
	}
	said := time.Time{}
	for first := true; ; first = false {
		pause := freshness
		b, ok, err := look()
		switch {
		case err != nil:
			return // it is logged; the reader comes back
		case !ok:
			_ = send("gone", "", []byte("{}"))
			return
		case first || b.rev > rev:
			data, err := encode(b.after(rev), "")
			if err != nil {
				return
			}
			if err := send("update", s.pages.mark(b.rev), data); err != nil {
				return
			}
			rev, said = b.rev, time.Now()
			pause = max(pause, time.Duration(len(data))*time.Second/flow)
		case time.Since(said) >= quiet:
			if err := send("tick", "", []byte("{}")); err != nil {
				return
			}
			said = time.Now()
		}
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-r.Context().Done():
			t.Stop()
			return
		case <-stopping(r.Context()):
			t.Stop()
			return
		}
	}
}
