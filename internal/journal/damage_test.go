package journal

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"
)

// twoWrites returns the file after each of two writes, and what they wrote.
func twoWrites(t testing.TB) (files [2][]byte, states [2]*State) {
	t.Helper()
	dir := t.TempDir()
	j, _ := open(t, dir)
	j.noSync = true
	write(t, j, whole(sample(1)))
	write(t, j, put(new(Batch), sample(1))) // so that both trees of the file are complete
	for i := range 2 {
		states[i] = sample(1)
		var b Batch
		for name, k := range states[i].Sinks {
			k.Position = map[string]string{"0": fmt.Sprint("write ", i)}
			states[i].Sinks[name] = k
			b.PutSink(&k)
		}
		for n := range states[i].Blocks {
			if k := &states[i].Blocks[n]; n%3 == i {
				k.Timeout += time.Duration(i+1) * time.Second
				b.PutBlock(k)
			} else if n%3 == 0 {
				k.Timeout += time.Second // of the first write
			}
		}
		write(t, j, &b)
		var err error
		if files[i], err = os.ReadFile(filepath.Join(dir, fileName)); err != nil {
			t.Fatal(err)
		}
		if s, _, err := loadBytes(files[i]); err != nil || !sameState(s, states[i]) {
			t.Fatalf("write %d: %v", i, err)
		}
	}
	return files, states
}

func loadBytes(b []byte) (*State, bool, error) { return file{bytes.NewReader(b), int64(len(b))}.load() }

// verdict says what a damaged file was read as, or why that is wrong.
func verdict(s *State, lost error, states [2]*State) (string, error) {
	switch empty := len(s.Sinks)+len(s.Blocks) == 0; {
	case sameState(s, states[1]) && lost == nil:
		return "exact", nil
	case sameState(s, states[0]) && lost == nil:
		return "older", nil
	case sameState(s, states[0]) && strings.Contains(lost.Error(), "went back"):
		return "older, said so", nil
	case empty && lost != nil:
		return "lost", nil
	case lost != nil && !sameState(s, states[1]) && within(s, states[1]):
		return "part", nil
	case lost != nil && !sameState(s, states[0]) && within(s, states[0]):
		return "part of older", nil
	default:
		return "", fmt.Errorf("%d sinks and %d blocks, read as what was never written; lost: %w", len(s.Sinks), len(s.Blocks), lost)
	}
}

// expectAll fails unless each of the verdicts was given: else the damage was not what it should be.
func expectAll(t *testing.T, got map[string]int, want ...string) {
	t.Helper()
	t.Log(got)
	for _, v := range want {
		if got[v] == 0 {
			t.Errorf("no damage was read as %q: %v", v, got)
		}
	}
}

// A file cut anywhere, through the front door.
func TestACutFileIsNeverMisread(t *testing.T) {
	files, states := twoWrites(t)
	good := files[1]
	page := os.Getpagesize()
	var sizes []int
	for p := 0; p <= len(good); p += page {
		sizes = append(sizes, p-1, p, p+1)
	}
	for range 50 {
		sizes = append(sizes, mathrand.IntN(len(good)))
	}
	got := make(map[string]int)
	for _, n := range sizes {
		if n < 0 || n > len(good) {
			continue
		}
		dir := t.TempDir()
		path := filepath.Join(dir, fileName)
		if err := os.WriteFile(path, good[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		j, s, err := Open(dir)
		if err != nil {
			t.Fatalf("cut to %d: %v", n, err)
		}
		v, err := verdict(s, s.Lost, states)
		if err != nil {
			t.Fatalf("cut to %d of %d: %v", n, len(good), err)
		}
		got[v]++
		if s.Lost != nil {
			kept, _ := filepath.Glob(path + ".bad-*")
			if len(kept) != 1 || !strings.Contains(s.Lost.Error(), filepath.Base(kept[0])) || !strings.Contains(s.Lost.Error(), path) {
				t.Fatalf("kept %q; lost: %v", kept, s.Lost)
			}
			if b, _ := os.ReadFile(kept[0]); !bytes.Equal(b, good[:n]) {
				t.Fatal("what is kept is not what was found")
			}
		}
		j.noSync = true
		write(t, j, whole(states[0]))
		j.Close()
		j, s = open(t, dir)
		if s.Lost != nil || !sameState(s, states[0]) {
			t.Fatalf("cut to %d: not healed: %v", n, s.Lost)
		}
		j.Close()
	}
	expectAll(t, got, "exact", "lost")
}

func TestAFlippedByteIsNeverMisread(t *testing.T) {
	files, states := twoWrites(t)
	metas, err := file{bytes.NewReader(files[1]), int64(len(files[1]))}.metas()
	if err != nil {
		t.Fatal(err)
	}
	good := files[1][:int64(metas[0].end)*metas[0].pageSize] // the rest has never been used
	b := bytes.Clone(good)
	got := make(map[string]int)
	flip := func(at int, by byte) {
		b[at] ^= by
		s, _, lost := loadBytes(b)
		v, err := verdict(s, lost, states)
		if err != nil {
			t.Fatalf("byte %d flipped by %#x: %v", at, by, err)
		}
		got[v]++
		b[at] = good[at]
	}
	page := os.Getpagesize()
	for at := range good {
		// Each byte of what says how the file is built; of the rest, some.
		if in := at % page; mathrand.IntN(slower) == 0 && (in < 112 || mathrand.IntN(50) == 0) {
			flip(at, 1<<mathrand.IntN(8))
		}
	}
	for range 300 { // several at once
		for range 1 + mathrand.IntN(8) {
			b[mathrand.IntN(len(b))] ^= byte(1 + mathrand.IntN(255))
		}
		s, _, lost := loadBytes(b)
		v, err := verdict(s, lost, states)
		if err != nil {
			t.Fatal(err)
		}
		got[v]++
		copy(b, good)
	}
	expectAll(t, got, "exact", "older", "older, said so", "part")
}

// A machine that goes down keeps any of the pages that were under way. As long as the page that makes
// them valid is not among them, what was written before is there; a disk that lies about that loses data
// but is found out.
func TestATornWriteIsNeverMisread(t *testing.T) {
	files, states := twoWrites(t)
	size, page := max(len(files[0]), len(files[1])), os.Getpagesize()
	before, after := make([]byte, size), make([]byte, size)
	copy(before, files[0])
	copy(after, files[1])
	var data, metas []int // pages that the write changed
	for at := 0; at < size; at += page {
		if !bytes.Equal(before[at:at+page], after[at:at+page]) {
			if at < 2*page {
				metas = append(metas, at)
			} else {
				data = append(data, at)
			}
		}
	}
	if len(metas) != 1 || len(data) < 3 {
		t.Fatalf("the write changed pages %d and %d", metas, data)
	}
	got := make(map[string]int)
	for range 200 {
		b := bytes.Clone(before)
		all := true
		for _, at := range data {
			if mathrand.IntN(2) == 0 {
				copy(b[at:at+page], after[at:])
			} else {
				all = false
			}
		}
		s, _, lost := loadBytes(b)
		if lost != nil || !sameState(s, states[0]) {
			t.Fatalf("without the meta page: %v", lost)
		}
		copy(b[metas[0]:metas[0]+page], after[metas[0]:])
		s, _, lost = loadBytes(b)
		v, err := verdict(s, lost, states)
		if err == nil && !all && v != "older, said so" && v != "exact" { // a page may hold nothing that matters
			err = fmt.Errorf("read as %s: %w", v, lost)
		}
		if err != nil {
			t.Fatal(err)
		}
		got[v]++
	}
	expectAll(t, got, "older, said so")
}

func TestWhatFollowsTheFileIsIgnored(t *testing.T) {
	files, states := twoWrites(t)
	for _, n := range []int{1, 100, os.Getpagesize(), 100_000} {
		tail := make([]byte, n)
		rand.Read(tail)
		if s, _, lost := loadBytes(append(bytes.Clone(files[1]), tail...)); lost != nil || !sameState(s, states[1]) {
			t.Errorf("%d bytes more: %v", n, lost)
		}
	}
}

// A page that is among its own descendants must end neither the stack nor the memory.
func TestAPageInsideItselfIsDamage(t *testing.T) {
	files, states := twoWrites(t)
	page, found := os.Getpagesize(), 0
	for at := 2 * page; at+page <= len(files[1]); at += page {
		b := bytes.Clone(files[1])
		if order.Uint16(b[at+8:]) != branchPage || order.Uint16(b[at+10:]) == 0 {
			continue
		}
		found++
		for i := range int(order.Uint16(b[at+10:])) {
			copy(b[at+pageHead+i*pageElement+8:], b[at:at+8])
		}
		s, _, lost := loadBytes(b)
		if _, err := verdict(s, lost, states); err != nil {
			t.Fatal(err)
		}
	}
	if found == 0 {
		t.Fatal("the file has no branch page")
	}
}

func TestWhatIsNoJournalIsKeptAside(t *testing.T) {
	garbage := make([]byte, 100_000)
	rand.Read(garbage)
	bolt := func(bucket string, put map[string]string) func(string) error {
		return func(path string) error {
			db, err := bbolt.Open(path, 0o600, nil)
			if err != nil {
				return err
			}
			if err := db.Update(func(tx *bbolt.Tx) error {
				b, err := tx.CreateBucket([]byte(bucket))
				for k, v := range put {
					err = errors.Join(err, b.Put([]byte(k), []byte(v)))
				}
				return err
			}); err != nil {
				return err
			}
			return db.Close()
		}
	}
	seal := func(key, body string) string {
		return string(binary.LittleEndian.AppendUint32([]byte(body), checksum([]byte(key), []byte(body))))
	}
	file := func(b []byte) func(string) error {
		return func(path string) error { return os.WriteFile(path, b, 0o600) }
	}
	for _, c := range []struct {
		name, want string
		make       func(path string) error
	}{
		{"empty", "not a journal", file(nil)},
		{"text", "not a journal", file([]byte("hello\n"))},
		{"zeros", "not a journal", file(make([]byte, 1<<16))},
		{"garbage", "not a journal", file(garbage)},
		{"a directory", "is a directory", func(path string) error { return os.Mkdir(path, 0o700) }},
		{"another program's database", "holds no journal", bolt("buckets", map[string]string{"a": "b"})},
		{"a database without a header", "has no header", bolt("journal", map[string]string{"a": "b"})},
		{"a newer format", "format 2 is of a newer lag-monitor", bolt("journal", map[string]string{"h": seal("h", "\x02what only it knows")})},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := c.make(filepath.Join(dir, fileName)); err != nil {
				t.Fatal(err)
			}
			j, s := open(t, dir)
			if s.Lost == nil || !strings.Contains(s.Lost.Error(), c.want) || !strings.Contains(s.Lost.Error(), "kept as journal.db.bad-") {
				t.Fatalf("lost: %v; want %q", s.Lost, c.want)
			}
			if len(s.Sinks)+len(s.Blocks) != 0 {
				t.Fatalf("read %+v", s)
			}
			write(t, j, whole(sample(1)))
			j.Close()
			if _, s := open(t, dir); s.Lost != nil || !sameState(s, sample(1)) {
				t.Fatalf("lost: %v", s.Lost)
			}
		})
	}
}

func TestOfDamagedFilesThreeAreKept(t *testing.T) {
	dir := t.TempDir() + "/[a]*" // what Glob takes for a pattern
	var last string
	for i := range 6 {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		last = fmt.Sprint("garbage ", i)
		if err := os.WriteFile(filepath.Join(dir, fileName), []byte(last), 0o600); err != nil {
			t.Fatal(err)
		}
		j, s := open(t, dir)
		if s.Lost == nil {
			t.Fatal("not lost")
		}
		j.Close()
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var have []string
	for _, e := range entries {
		if strings.Contains(e.Name(), ".bad-") {
			b, _ := os.ReadFile(filepath.Join(dir, e.Name()))
			have = append(have, string(b))
		}
	}
	if len(have) != kept || !strings.Contains(strings.Join(have, ","), last) {
		t.Fatalf("kept %q, want the last %d", have, kept)
	}
}

// What could be saved stays in place until a Write has replaced it: the next process finds it too when
// this one ends before.
func TestWhatWasSavedSurvivesUntilItIsReplaced(t *testing.T) {
	files, states := twoWrites(t)
	dir := t.TempDir()
	b := files[1]
	at := bytes.Index(b, []byte("kafka:ünïcode"))
	if at < 0 {
		t.Fatal("value not found")
	}
	for ; at >= 0; at = bytes.Index(b, []byte("kafka:ünïcode")) {
		b[at] = 'K'
	}
	if err := os.WriteFile(filepath.Join(dir, fileName), b, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		j, s := open(t, dir)
		if s.Lost == nil || !strings.Contains(s.Lost.Error(), `left out "s`) || len(s.Sinks) != len(states[1].Sinks)-1 || !within(s, states[1]) {
			t.Fatalf("lost: %v", s.Lost)
		}
		j.Close()
	}
	j, _ := open(t, dir)
	write(t, j, whole(states[1]))
	j.Close()
	if _, s := open(t, dir); s.Lost != nil || !sameState(s, states[1]) {
		t.Fatalf("lost: %v", s.Lost)
	}
}

// A file whose pages are right one by one, but lead on without end: by depth, or because each leads to
// the next one twice.
func TestATreeThatDoesNotEndIsDamage(t *testing.T) {
	const page = 4096
	craft := func(levels, children int) []byte {
		b := make([]byte, page*(levels+4))
		meta := b[pageHead:]
		order.PutUint32(meta, boltMagic)
		order.PutUint32(meta[4:], boltVersion)
		order.PutUint32(meta[8:], page)
		order.PutUint64(meta[16:], 3)
		order.PutUint64(meta[40:], uint64(levels+4))
		sum := fnv.New64a()
		sum.Write(meta[:56])
		order.PutUint64(meta[56:], sum.Sum64())
		for n := range levels + 1 {
			p := b[page*(3+n):]
			order.PutUint64(p, uint64(3+n))
			if order.PutUint16(p[8:], leafPage); n < levels { // the last is a leaf without entries
				order.PutUint16(p[8:], branchPage)
				order.PutUint16(p[10:], uint16(children))
				for c := range children {
					order.PutUint64(p[pageHead+c*pageElement+8:], uint64(4+n))
				}
			}
		}
		return b
	}
	for _, c := range []struct {
		levels, children int
		want             string
	}{
		{5, 1, "holds no journal"}, // the file is what it is meant to be
		{maxDepth, 2, "is used twice"},
		{maxDepth + 1, 1, errPage.Error()},
	} {
		if _, _, lost := loadBytes(craft(c.levels, c.children)); lost == nil || !strings.Contains(lost.Error(), c.want) {
			t.Errorf("%d levels, %d children: %v; want %q", c.levels, c.children, lost, c.want)
		}
	}
}

// Each number that says how a page is built, one at a time, set to what it cannot be.
func TestImpossibleNumbersAreDamage(t *testing.T) {
	files, states := twoWrites(t)
	b, page := bytes.Clone(files[1]), os.Getpagesize()
	try := func(at, size int) {
		for _, with := range []byte{0, 0xff} {
			for i := range size {
				b[at+i] = with
			}
			s, _, lost := loadBytes(b)
			if _, err := verdict(s, lost, states); err != nil {
				t.Fatalf("byte %d set to %#x: %v", at, with, err)
			}
			copy(b[at:at+size], files[1][at:])
		}
	}
	for p := 2 * page; p+page <= len(b); p += page {
		try(p, 8)
		try(p+8, 2)
		try(p+10, 2)
		try(p+12, 4)
		if flags := order.Uint16(b[p+8:]); flags != branchPage && flags != leafPage {
			continue
		}
		for i := range min(3, int(order.Uint16(b[p+10:]))) {
			for field := 0; field < pageElement; field += 4 {
				try(p+pageHead+i*pageElement+field, 4)
			}
		}
	}
}
