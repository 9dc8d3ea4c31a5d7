package journal

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// load reads what the file holds. A file that does not exist is an empty State. An error says what could
// not be read; what the State then holds is right, but not all. The boolean tells whether it holds
// anything.
func load(path string) (*State, bool, error) {
	empty := &State{Sinks: make(map[string]Sink)}
	r, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return empty, false, nil
	} else if err != nil {
		return empty, false, err
	}
	defer r.Close()
	info, err := r.Stat()
	if err != nil {
		return empty, false, err
	}
	return file{r, info.Size()}.load()
}

// load is the same for a file that exists.
func (f file) load() (*State, bool, error) {
	empty := &State{Sinks: make(map[string]Sink)}
	metas, err := f.metas()
	if err != nil {
		return empty, false, err
	}
	newest := f.read(metas[0])
	switch {
	case newest.err == nil:
		return newest.state, true, nil
	case errors.As(newest.err, new(formatError)):
		return empty, false, newest.err
	}
	// The tree before the last Write is untouched until the next one.
	if len(metas) == 2 {
		if older := f.read(metas[1]); older.err == nil {
			return older.state, true, fmt.Errorf("the last write is damaged, went back to the one before: %w", newest.err)
		}
	}
	if newest.partial {
		return newest.state, true, newest.err
	}
	return empty, false, newest.err
}

// reading is what was found below one meta page.
type reading struct {
	state   *State
	err     error // nil when the state is exactly what was written
	partial bool  // the state is what was written, without some values
}

func (f file) read(m meta) reading {
	s := &State{Sinks: make(map[string]Sink)}
	var (
		found, want header
		headerErr   = errors.New("has no header")
		bad         []string
		badErr      error
	)
	err := f.walk(m, func(key, value []byte) {
		if key[0] == headerKind {
			want, headerErr = decodeHeader(key, value)
			return
		}
		found.count++
		found.sum += uint64(storedSum(value))
		if err := s.add(key, value); err != nil {
			bad, badErr = append(bad, strconv.Quote(string(key))), err
		}
	})
	s.At = want.at
	switch {
	case err != nil:
		return reading{err: err}
	case headerErr != nil:
		return reading{err: fmt.Errorf("header: %w", headerErr)}
	case want.tx != m.tx:
		return reading{err: fmt.Errorf("is of write %d, not %d", want.tx, m.tx)}
	case found.count != want.count || found.sum != want.sum:
		// Some page may be one of an earlier write: none of the values can be trusted to be the newest.
		return reading{err: fmt.Errorf("%d of %d values are missing or of another write", max(want.count, found.count)-min(want.count, found.count), want.count)}
	case badErr != nil:
		more := ""
		if len(bad) > 3 {
			more = fmt.Sprintf(" and %d more", len(bad)-3)
			bad = bad[:3]
		}
		return reading{state: s, partial: true, err: fmt.Errorf("left out %s%s: %w", strings.Join(bad, ", "), more, badErr)}
	}
	return reading{state: s}
}

// add adds what an entry holds.
func (s *State) add(key, value []byte) error {
	switch key[0] {
	case sinkKind:
		v, err := decodeSink(key, value)
		if err != nil {
			return err
		}
		s.Sinks[v.Name] = v
	case blockKind:
		v, err := decodeBlock(key, value, s.open)
		if err != nil {
			return err
		}
		s.open, v.Open, v.n = v.Open, nil, len(v.Open)
		v.value = bytes.Clone(value[:len(value)-4])
		v.Probe, v.Sink = s.name(v.Probe), s.name(v.Sink)
		s.Blocks = append(s.Blocks, v)
	case pauseKind:
		v, err := decodePause(key, value)
		if err != nil {
			return err
		}
		s.Pauses = append(s.Pauses, v)
	default:
		return errValue
	}
	return nil
}

// name returns the one copy of a name that many blocks have.
func (s *State) name(n string) string {
	if s.names == nil {
		s.names = make(map[string]string)
	}
	if k, ok := s.names[n]; ok {
		return k
	}
	s.names[n] = n
	return n
}

// kept is how many damaged files are kept for whoever wants to look at them.
const kept = 3

// moveAside gives the file a name under which it is kept, and removes the oldest of those kept before.
// When what it holds is still needed, it stays under its old name as well, until the first Write replaces
// it.
func moveAside(path string, needed bool, now time.Time) (string, error) {
	dir, prefix := filepath.Dir(path), filepath.Base(path)+".bad-"
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", err
	}
	var before []int64
	for _, e := range entries {
		if at, ok := strings.CutPrefix(e.Name(), prefix); ok {
			if n, err := strconv.ParseInt(at, 10, 64); err == nil {
				before = append(before, n)
			}
		}
	}
	slices.Sort(before)
	named := func(n int64) string { return filepath.Join(dir, prefix+strconv.FormatInt(n, 10)) }
	at := now.Unix()
	if n := len(before); n > 0 && before[n-1] >= at {
		at = before[n-1] + 1 // the newest has the largest number
	}
	if !needed || os.Link(path, named(at)) != nil { // not every file system has links
		if err := os.Rename(path, named(at)); err != nil {
			return "", err
		}
	}
	for _, old := range before[:max(0, len(before)-(kept-1))] {
		_ = os.RemoveAll(named(old)) // else the next time
	}
	return named(at), nil
}
