package sinks

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/lag-monitor/lag-monitor/internal/conn"
)

// pgTable reads the rows of a query again and again. Rows do not become visible in the order of their keys: the transaction
// that took the smaller one may end later. So what has been read stays in sight, and is read again, until nothing can come before
// it any more; which rows were delivered is remembered.
//
// by: transaction, that is exact: $1 is the oldest transaction that had not ended at the reading before, and whatever was not visible
// then belongs to it or to a younger one.
//
// by: key, $1 is a key that was the last one at some reading, and
//   - LookBehind has passed since, so that whoever had chosen a smaller key has begun to write, and is known to the server
//     as a transaction;
//   - and all transactions that were known at that time have ended.
type pgTable struct {
	c    *PostgresConfig
	part string // of Position

	since time.Time // from LookBack
	pace  pace      // of the first reading, then
	ready bool      // Ready was called for it
	read  bool      // the first reading is done

	seen  map[uint64]struct{} // rows that were in sight at the last reading, by identity
	marks []pgMark            // by: key, oldest first

	mu  sync.Mutex
	pos pgPosition
	set bool
}

// pgPosition is what survives a restart of the monitor.
type pgPosition struct {
	Value    string    `json:"value"`              // $1
	At       time.Time `json:"at"`                 // when the last reading began
	Timeline string    `json:"timeline,omitempty"` // of the server: another one after a failover
	Seen     []string  `json:"seen,omitempty"`     // identities of the rows in sight that have heartbeats
}

// pgMark is a key that was the last one.
type pgMark struct {
	key  string
	at   time.Time // when it had been read
	xmax uint64    // the first transaction that had not begun when LookBehind had passed; 0: it has not
}

const (
	maxPGSeen  = 1 << 20 // rows in sight that are remembered; above that, those that may have heartbeats, up to twice that
	maxPGSaved = 4096    // identities in a position
	maxPGMarks = 4096
)

func newPGTable(c *PostgresConfig) *pgTable {
	sum := sha256.Sum256([]byte(strings.Join([]string{c.Server.Database, c.By, c.Key, c.Query}, "\x00")))
	return &pgTable{c: c, part: "rows " + hex.EncodeToString(sum[:6]), seen: make(map[uint64]struct{})}
}

// Position implements Resumer.
func (s *pgTable) Position() map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.set {
		return nil
	}
	text, err := json.Marshal(s.pos)
	if err != nil {
		return nil
	}
	return map[string]string{s.part: string(text)}
}

// Resume implements Resumer.
func (s *pgTable) Resume(pos map[string]string) {
	var p pgPosition
	if err := json.Unmarshal([]byte(pos[s.part]), &p); err != nil || p.At.IsZero() {
		return
	}
	if _, err := strconv.ParseUint(p.Value, 10, 64); err != nil && s.c.By == byTransaction {
		return
	}
	for _, text := range p.Seen {
		id, err := strconv.ParseUint(text, 16, 64)
		if err != nil {
			return
		}
		s.seen[id] = struct{}{}
	}
	s.read = true
	s.move(p)
}

// LookBack implements LookBacker.
func (s *pgTable) LookBack(since time.Time) { s.since = since }

func (s *pgTable) move(to pgPosition) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pos, s.set = to, true
}

// Run implements Sink.
func (s *pgTable) Run(ctx context.Context, f *Feed) error {
	for {
		err := s.c.once(ctx, func(l *conn.PostgresLink) error { return s.poll(ctx, l, f) })
		if ctx.Err() != nil {
			return nil
		}
		if !errors.Is(err, errPGPace) {
			return fmt.Errorf("query: %w", err)
		}
		s.since = s.since.Add(time.Since(s.since) / 2)
	}
}

// errPGPace ends a reading of old rows that takes too long.
var errPGPace = errors.New("the look-back takes too long")

func (s *pgTable) poll(ctx context.Context, l *conn.PostgresLink, f *Feed) error {
	timeline, err := pgTimeline(ctx, l)
	if err != nil {
		return err
	}
	tick := time.NewTicker(time.Duration(s.c.PollInterval))
	defer tick.Stop()
	for {
		asked := time.Now()
		if err := s.reading(ctx, l, f, timeline, asked); err != nil {
			return err
		}
		f.CaughtUp(asked)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// pgTimeline tells the timeline of the server: a replica that became the master has begun a new one, and may lack the end of the old
// one. Empty: it does not say.
func pgTimeline(ctx context.Context, l *conn.PostgresLink) (string, error) {
	rows, _, err := l.Do(ctx, "select substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)")
	if conn.PostgresSaid(err) {
		return "", nil
	}
	if err != nil || len(rows) != 1 {
		return "", err
	}
	return string(rows[0][0]), nil
}

// pgSnapshot is the state of the database that a reading sees: all transactions before xmin have ended, those from xmax on had not begun.
type pgSnapshot struct {
	xmin, xmax uint64
	now        time.Time // by the server's clock
	asked, got time.Time // it was taken between these, by ours
}

func pgBegin(ctx context.Context, l *conn.PostgresLink) (sn pgSnapshot, err error) {
	sn.asked = time.Now()
	rows, _, err := l.Do(ctx, postgresReadOnly()+
		"; select pg_snapshot_xmin(s), pg_snapshot_xmax(s), (extract(epoch from clock_timestamp()) * 1000000)::bigint from pg_current_snapshot() s")
	if err != nil {
		return sn, err
	}
	sn.got = time.Now()
	if len(rows) != 1 || len(rows[0]) != 3 {
		return sn, errors.New("the server shows no snapshot")
	}
	var micros int64
	if sn.xmin, err = strconv.ParseUint(string(rows[0][0]), 10, 64); err == nil {
		if sn.xmax, err = strconv.ParseUint(string(rows[0][1]), 10, 64); err == nil {
			micros, err = strconv.ParseInt(string(rows[0][2]), 10, 64)
		}
	}
	sn.now = time.UnixMicro(micros)
	return sn, err
}

// reading reads what is in sight, in one snapshot, and delivers what was not before.
func (s *pgTable) reading(ctx context.Context, l *conn.PostgresLink, f *Feed, timeline string, asked time.Time) error {
	sn, err := pgBegin(ctx, l)
	if err != nil {
		return err
	}
	pos, err := s.from(ctx, l, f, sn, timeline)
	if err != nil {
		return err
	}
	pos.Timeline, pos.At = cmp.Or(timeline, pos.Timeline), asked
	r := pgReading{s: s, f: f, seen: make(map[uint64]struct{}, len(s.seen)), skip: !s.read && s.since.IsZero(), past: !s.read}
	if err := r.all(ctx, l, pos.Value); err != nil {
		s.brokenOff(&r)
		return err
	}
	s.up(f)
	if _, _, err := l.Do(ctx, "rollback"); err != nil {
		s.brokenOff(&r)
		return err
	}
	s.seen, s.read = r.seen, true
	if s.c.By == byTransaction {
		pos.Value = strconv.FormatUint(sn.xmin, 10)
	} else {
		pos.Value = s.mature(pos.Value, r.last, sn)
	}
	pos.Seen = pos.Seen[:0:0]
	for _, id := range r.held[max(0, len(r.held)-maxPGSaved):] {
		pos.Seen = append(pos.Seen, strconv.FormatUint(id, 16))
	}
	s.move(pos)
	return nil
}

// up tells that the server carries the query out: whatever becomes visible from now on will be read.
func (s *pgTable) up(f *Feed) {
	s.ready = true
	f.Ready()
}

// brokenOff notes what a reading delivered before it was broken off: the next one begins where it began, and may be another process's.
func (s *pgTable) brokenOff(r *pgReading) {
	maps.Copy(s.seen, r.seen)
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.set {
		return
	}
	seen := slices.Clone(s.pos.Seen)
	for _, id := range r.held[max(0, len(r.held)-maxPGSaved):] {
		if text := strconv.FormatUint(id, 16); !slices.Contains(seen, text) {
			seen = append(seen, text)
		}
	}
	s.pos.Seen = seen[max(0, len(seen)-maxPGSaved):]
}

// from returns where this reading begins.
func (s *pgTable) from(ctx context.Context, l *conn.PostgresLink, f *Feed, sn pgSnapshot, timeline string) (pos pgPosition, err error) {
	s.mu.Lock()
	pos = s.pos
	s.mu.Unlock()
	behind := time.Duration(s.c.LookBehind)
	if s.set && s.read {
		now := time.Now()
		// A machine that sleeps stops one of the two clocks.
		away := max(now.Sub(pos.At), now.Round(0).Sub(pos.At.Round(0)))
		if away > time.Duration(s.c.Retention) {
			f.Gap("trimmed")
		}
		again := pos.Timeline != "" && timeline != "" && pos.Timeline != timeline
		if s.c.By == byTransaction {
			// The oldest open transaction of one server is never older than it was.
			if old, err := strconv.ParseUint(pos.Value, 10, 64); err != nil || old > sn.xmin {
				again, pos.Value = true, strconv.FormatUint(sn.xmin, 10)
			}
		}
		if !again {
			return pos, nil
		}
		// Keys and transactions of before may be given out a second time.
		f.Gap("recreated")
		s.marks = nil
		if s.c.By == byKey {
			pos.Value, err = s.start(ctx, l, sn.now.Add(-max(away, 0)-behind)) // the position has its time by our clock
		}
		return pos, err
	}
	if s.ready {
		// In the middle of the first reading: this one takes for old whatever it sees, so the gap ends with its snapshot.
		f.Gap("disconnected")
	}
	at := sn.now
	if !s.since.IsZero() && s.since.Before(at) {
		at = s.since
	}
	if s.c.By == byKey {
		pos.Value, err = s.start(ctx, l, at.Add(-behind))
		return pos, err
	}
	pos.Value = strconv.FormatUint(sn.xmin, 10)
	if s.c.Start == "" || s.since.IsZero() {
		return pos, nil
	}
	text, err := s.start(ctx, l, at)
	if err != nil || text == "" {
		return pos, err // none since
	}
	old, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return pos, fmt.Errorf("start: %q is not a transaction (xid8)", text)
	}
	if old < sn.xmin {
		pos.Value = text
	}
	return pos, nil
}

// start asks for the key or the transaction behind which the rows since a time are; empty: there is none, of transactions.
func (s *pgTable) start(ctx context.Context, l *conn.PostgresLink, since time.Time) (value string, err error) {
	var args [][]byte
	if strings.Contains(s.c.Start, "$1") {
		args = [][]byte{since.UTC().AppendFormat(nil, "2006-01-02T15:04:05.999999Z07:00")}
	}
	_, err = l.Each(ctx, s.c.Start, args, func(_ []pgconn.FieldDescription, values [][]byte) error {
		if len(values) > 0 && values[0] != nil {
			value = string(values[0])
		}
		return nil
	})
	if err == nil && value == "" && s.c.By == byKey {
		err = conn.WithClass(conn.Other, errors.New("it returns nothing: for an empty table, too, it has to return a value that is before all others (coalesce)"))
	}
	if err != nil {
		return "", fmt.Errorf("start: %w", err)
	}
	return value, nil
}

// mature returns the key behind which the next reading begins.
func (s *pgTable) mature(value, last string, sn pgSnapshot) string {
	if last != "" && (len(s.marks) == 0 || s.marks[len(s.marks)-1].key != last) && last != value {
		if len(s.marks) == maxPGMarks {
			s.marks = s.marks[:maxPGMarks-1]
		}
		s.marks = append(s.marks, pgMark{key: last, at: sn.got})
	}
	for i := range s.marks {
		if m := &s.marks[i]; m.xmax == 0 && sn.asked.Sub(m.at) >= time.Duration(s.c.LookBehind) {
			m.xmax = sn.xmax
		}
	}
	for len(s.marks) > 0 && s.marks[0].xmax != 0 && s.marks[0].xmax <= sn.xmin {
		value = s.marks[0].key
		s.marks = slices.Delete(s.marks, 0, 1)
	}
	return value
}

// pgReading is one reading at work.
type pgReading struct {
	s          *pgTable
	f          *Feed
	skip, past bool // rows that were there before the sink: not delivered, or as such

	seen  map[uint64]struct{}
	held  []uint64 // those of them that may have heartbeats
	last  string   // key
	rows  int      // of the page
	fresh int      // those of them that were not in a page before
	body  []byte
	field struct{ key, column int }
}

// all reads page after page: the query may have a limit.
func (r *pgReading) all(ctx context.Context, l *conn.PostgresLink, from string) error {
	for {
		r.rows, r.fresh, r.field.key = 0, 0, -1
		if _, err := l.Each(ctx, r.s.c.Query, [][]byte{[]byte(from)}, r.row); err != nil {
			return err
		}
		if r.rows == 0 || r.s.c.By == byTransaction || !postgresLimited.MatchString(r.s.c.Query) {
			return nil
		}
		if r.fresh == 0 {
			return conn.WithClass(conn.Other, fmt.Errorf("it returns the row of $1 again: the condition is %s > $1", r.s.c.Key))
		}
		from = r.last
	}
}

// columns finds the columns.
func (r *pgReading) columns(fields []pgconn.FieldDescription) error {
	r.field.key, r.field.column = -1, -1
	for i, fd := range fields {
		if fd.Name == r.s.c.Key {
			r.field.key = i
		}
		if fd.Name == r.s.c.Column {
			r.field.column = i
		}
	}
	if r.field.key < 0 {
		return conn.WithClass(conn.Other, fmt.Errorf("it returns no column %s", r.s.c.Key))
	}
	if r.field.column < 0 && r.s.c.Column != "" {
		return conn.WithClass(conn.Other, fmt.Errorf("it returns no column %s", r.s.c.Column))
	}
	return nil
}

func (r *pgReading) row(fields []pgconn.FieldDescription, values [][]byte) error {
	if r.field.key < 0 {
		if err := r.columns(fields); err != nil {
			return err
		}
		r.s.up(r.f) // the old rows of a look-back may take a while
	}
	key := values[r.field.key]
	if key == nil {
		return conn.WithClass(conn.Other, fmt.Errorf("column %s of a row is null", r.s.c.Key))
	}
	if r.s.c.By == byKey && r.last != "" && pgBefore(fields[r.field.key].DataTypeOID, string(key), r.last) {
		return conn.WithClass(conn.Other, fmt.Errorf("the rows are not in the order of %s: add order by %s", r.s.c.Key, r.s.c.Key))
	}
	r.last = string(key)
	r.body = r.body[:0]
	for i, v := range values {
		if v == nil || r.field.column >= 0 && i != r.field.column {
			continue
		}
		if len(r.body) > 0 {
			r.body = append(r.body, '\n')
		}
		r.body = pgAppend(r.body, fields[i].DataTypeOID, v)
	}
	r.rows++
	id := r.s.identity(key)
	if _, twice := r.seen[id]; twice {
		return nil
	}
	r.fresh++
	if err := r.remember(id); err != nil {
		return err
	}
	if _, before := r.s.seen[id]; before || r.skip {
		return nil
	}
	r.f.Deliver(Message{Body: r.body, ID: id, Past: r.past})
	if r.past && r.s.pace.slow(len(r.body)) && strings.Contains(r.s.c.Start, "$1") {
		return errPGPace
	}
	return nil
}

// remember notes a row that is in sight.
func (r *pgReading) remember(id uint64) error {
	holds := r.f.mayHold(r.body)
	switch {
	case len(r.seen) >= 2*maxPGSeen:
		return conn.WithClass(conn.Other, fmt.Errorf("more than %d rows are in sight at once: an old transaction is open, or look_behind is too long", 2*maxPGSeen))
	case len(r.seen) >= maxPGSeen && !holds:
		return nil // it may be counted a second time
	case holds:
		r.held = append(r.held, id)
	}
	r.seen[id] = struct{}{}
	return nil
}

// The object ids of types.
const (
	oidBytea = 17
	oidInt8  = 20
	oidInt2  = 21
	oidInt4  = 23
	oidUUID  = 2950
)

// pgBefore reports whether a is certainly before b, both in the text form of a type.
func pgBefore(oid uint32, a, b string) bool {
	switch oid {
	case oidInt8, oidInt2, oidInt4:
		x, err := strconv.ParseInt(a, 10, 64)
		y, err2 := strconv.ParseInt(b, 10, 64)
		return err == nil && err2 == nil && x < y
	case oidUUID:
		return a < b
	}
	return false
}

// pgAppend appends what is in a column.
func pgAppend(dst []byte, oid uint32, v []byte) []byte {
	if text, ok := bytes.CutPrefix(v, []byte(`\x`)); ok && oid == oidBytea {
		if decoded, err := hex.AppendDecode(dst, text); err == nil {
			return decoded
		}
	}
	return append(dst, v...)
}

// identity is the same for a row whoever reads it; never 0.
func (s *pgTable) identity(key []byte) uint64 {
	h := sha256.New()
	h.Write([]byte(s.part))
	h.Write(key)
	var sum [sha256.Size]byte
	return binary.BigEndian.Uint64(h.Sum(sum[:0])) | 1
}

// Backlog implements Backlogger.
func (s *pgTable) Backlog(ctx context.Context) ([]Backlog, error) { return s.c.backlog(ctx) }

// Check implements Checker: it asks for the rows behind NULL, of which there are none, so that the server looks at the names and at what we may.
func (s *pgTable) Check(ctx context.Context) error {
	return s.c.once(ctx, func(l *conn.PostgresLink) error {
		if _, err := pgBegin(ctx, l); err != nil {
			return err
		}
		d, err := l.Prepare(ctx, "", s.c.Query, nil)
		if err != nil {
			return fmt.Errorf("query: %w", l.Error(err))
		}
		if err := (&pgReading{s: s}).columns(d.Fields); err != nil {
			return fmt.Errorf("query: %w", err)
		}
		if _, err := l.Each(ctx, s.c.Query, [][]byte{nil}, nil); err != nil {
			return fmt.Errorf("query: %w", err)
		}
		if s.c.Start != "" {
			_, err = s.start(ctx, l, time.Now())
		}
		return err
	})
}
