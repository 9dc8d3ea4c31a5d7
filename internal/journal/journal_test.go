package journal

import (
	"crypto/rand"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"
)

// sample is a state with every kind of value in it.
func sample(n int) *State {
	t0 := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC).UnixNano()
	s := &State{Sinks: map[string]Sink{}}
	for _, name := range []string{"deferred-out", "a sink with spaces", "ünïcode"} {
		k := Sink{
			Name: name, Fingerprint: "kafka:" + name,
			Position: map[string]string{"0": fmt.Sprint(n), "1": "4711", "": "empty key", "empty": ""},
		}
		for i := range 20 {
			k.Stamps = append(k.Stamps, Stamp{Probe: fmt.Sprintf("probe-%d", i/4), Lane: uint32(i), Due: t0 + int64(n+i)*1e9})
		}
		long := strings.Repeat("long", maxName/4-1) // shares more with the next than is written
		k.Stamps = append(k.Stamps, Stamp{Probe: long}, Stamp{Probe: long + "a"}, Stamp{Probe: long + "b"}, Stamp{Probe: long + "b", Lane: 1})
		k.Streams = []Stream{
			{Probe: "probe-1", Instance: 1<<64 - 1, Epoch: 7, Lanes: []StreamLane{{Lane: 1<<32 - 1, Next: 1<<64 - 1, Due: -5, Every: time.Second}, {}}},
			{Probe: "other", Epoch: uint64(n), Expiry: time.Second, Timeout: -1},
		}
		s.Sinks[name] = k
	}
	for i := range 120 {
		b := Block{
			Key:    Key{Probe: fmt.Sprintf("probe-%d", i/4), Sink: "deferred-out", Instance: 3, Epoch: 1<<63 + 1, Lane: uint32(i % 4), Block: uint64(n + i)},
			Expiry: 5 * time.Second, Timeout: time.Minute, TTL: time.Hour,
		}
		for seq := range uint64(1 + i%64) {
			b.Open = append(b.Open, Heartbeat{Seq: b.Block*64 + seq, Due: t0 + int64(seq)*15e9 + int64(seq*seq*7919%1e6), Maybe: (uint64(i)+seq)%5 == 0, Missed: (uint64(i)+seq)%7 == 0})
			if i%3 == 0 {
				b.Open[seq].Death = uint8(seq % 8)
			}
		}
		s.Blocks = append(s.Blocks, b)
	}
	for i := range 5 {
		s.Pauses = append(s.Pauses, Pause{Probe: fmt.Sprintf("probe-%d", i), Since: t0 + int64(n), Until: t0 + int64(i+1)*3600e9})
	}
	return s
}

// put puts a whole state into a batch.
func put(b *Batch, s *State) *Batch {
	for _, k := range s.Sinks {
		b.PutSink(&k)
	}
	for i := range s.Blocks {
		b.PutBlock(&s.Blocks[i])
	}
	for i := range s.Pauses {
		b.PutPause(&s.Pauses[i])
	}
	return b
}

// whole is a batch that replaces everything by the state.
func whole(s *State) *Batch {
	b := put(new(Batch), s)
	b.ReplaceAll()
	return b
}

// sameState compares without the time, and without regard to the order of blocks.
func sameState(a, b *State) bool {
	return len(a.Sinks) == len(b.Sinks) && len(a.Blocks) == len(b.Blocks) && len(a.Pauses) == len(b.Pauses) && within(a, b)
}

// within tells whether all that is in s is in all too.
func within(s, all *State) bool {
	for name, k := range s.Sinks {
		if !reflect.DeepEqual(k, all.Sinks[name]) {
			return false
		}
	}
	for _, p := range s.Pauses {
		if !slices.Contains(all.Pauses, p) {
			return false
		}
	}
	blocks := make(map[Key]*Block, len(all.Blocks))
	for i := range all.Blocks {
		blocks[all.Blocks[i].Key] = &all.Blocks[i]
	}
	for i := range s.Blocks {
		a := &s.Blocks[i]
		b := blocks[a.Key]
		if b == nil || a.Expiry != b.Expiry || a.Timeout != b.Timeout || a.TTL != b.TTL || a.Len() != b.Len() || !slices.Equal(a.Heartbeats(nil), b.Heartbeats(nil)) {
			return false
		}
	}
	return true
}

func open(t testing.TB, dir string) (*Journal, *State) {
	t.Helper()
	j, s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { j.Close() })
	return j, s
}

func write(t testing.TB, j *Journal, b *Batch) {
	t.Helper()
	if err := j.Write(b); err != nil {
		t.Fatal(err)
	}
}

func TestWhatIsWrittenIsReadBack(t *testing.T) {
	dir := t.TempDir() + "/a/b"
	j, s := open(t, dir)
	if len(s.Sinks)+len(s.Blocks) != 0 || s.Lost != nil || !s.At.IsZero() {
		t.Fatalf("a new journal holds %+v", s)
	}
	want := sample(1)
	before := time.Now()
	write(t, j, whole(want))
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}

	j, s = open(t, dir)
	if s.Lost != nil || !sameState(s, want) {
		t.Fatalf("read %d sinks, %d blocks; lost: %v", len(s.Sinks), len(s.Blocks), s.Lost)
	}
	if s.At.Before(before.Truncate(0)) || s.At.After(time.Now()) {
		t.Errorf("written at %v", s.At)
	}

	// What is not in a later batch stays, what is in it counts, an empty block goes.
	write(t, j, whole(want))
	var b Batch
	k := want.Sinks["ünïcode"]
	k.Position = map[string]string{"0": "4712"}
	k.Stamps = nil
	want.Sinks["ünïcode"] = k
	b.PutSink(&k)
	want.Blocks[3].Open = want.Blocks[3].Open[:1]
	b.PutBlock(&want.Blocks[3])
	b.PutBlock(&Block{Key: want.Blocks[5].Key})
	b.PutBlock(&Block{Key: Key{Probe: "never", Sink: "there"}})
	want.Pauses[2].Until++
	b.PutPause(&want.Pauses[2])
	b.PutPause(&Pause{Probe: want.Pauses[1].Probe})
	b.PutPause(&Pause{Probe: "never"})
	write(t, j, &b)
	want.Blocks = slices.Delete(want.Blocks, 5, 6)
	want.Pauses = slices.Delete(want.Pauses, 1, 2)
	j.Close()
	if _, s = open(t, dir); s.Lost != nil || !sameState(s, want) {
		t.Fatalf("read %d sinks, %d blocks; lost: %v", len(s.Sinks), len(s.Blocks), s.Lost)
	}
}

// Memory holds what a file would.
func TestMemoryHoldsWhatAFileWould(t *testing.T) {
	var m Memory
	j, _ := open(t, t.TempDir())
	for n := range 3 {
		b := put(new(Batch), sample(n))
		b.PutBlock(&Block{Key: sample(n).Blocks[7].Key})
		if n != 1 {
			b.ReplaceAll()
		}
		write(t, j, b)
		if err := m.Write(b); err != nil {
			t.Fatal(err)
		}
		want, _, err := load(j.path(fileName))
		if err != nil {
			t.Fatal(err)
		}
		if have, err := m.State(); err != nil || !sameState(have, want) {
			t.Fatalf("write %d: %v", n, err)
		}
	}
}

func TestAWriteNeedsTheWholeAfterAnError(t *testing.T) {
	dir := t.TempDir()
	j, _ := open(t, dir)
	if err := j.Write(put(new(Batch), sample(1))); err == nil || !strings.Contains(err.Error(), "has to replace all") {
		t.Fatalf("the first write: %v", err)
	}
	write(t, j, whole(sample(1)))

	var b Batch
	b.PutSink(&Sink{Name: "good"})
	b.PutSink(&Sink{Name: strings.Repeat("n", 2000)})
	b.PutBlock(&Block{Key: Key{Probe: strings.Repeat("n", 2000)}})
	if err := j.Write(&b); err == nil || !strings.Contains(err.Error(), `the name of sink "nnn`) {
		t.Fatalf("a name that is too long: %v", err)
	}
	if err := j.Write(put(new(Batch), sample(2))); err == nil {
		t.Fatal("the write after an error did not need all")
	}
	if s, _, err := load(j.path(fileName)); err != nil || !sameState(s, sample(1)) {
		t.Fatalf("after an error the file holds something else: %v", err)
	}
	b.Reset()
	b.PutSink(&Sink{Name: "good"})
	b.ReplaceAll()
	write(t, j, &b)
	j.Close()
	if err := j.Write(&b); err == nil || !strings.Contains(err.Error(), "is closed") {
		t.Fatalf("after Close: %v", err)
	}
	_, s := open(t, dir)
	if len(s.Sinks) != 1 || s.Sinks["good"].Name != "good" || len(s.Blocks) != 0 {
		t.Fatalf("read %d sinks, %d blocks", len(s.Sinks), len(s.Blocks))
	}
}

func TestOneProcessAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		j, _ := open(t, dir)
		write(t, j, whole(sample(1)))
		start := time.Now()
		second, s, err := Open(dir)
		if err == nil || !strings.Contains(err.Error(), dir+"/journal.db: is another lag-monitor using it?") || second != nil || len(s.Sinks) != 0 {
			t.Fatalf("%v %+v %v", second, s, err)
		}
		if d := time.Since(start); d < lockWait || d > 2*lockWait {
			t.Errorf("waited %v", d)
		}
		// One that ends meanwhile is waited for.
		time.AfterFunc(lockWait/2, func() { j.Close() })
		if _, s = open(t, dir); !sameState(s, sample(1)) {
			t.Errorf("read %d sinks; lost: %v", len(s.Sinks), s.Lost)
		}
	})
}

func TestFilesAreTheOwnersAlone(t *testing.T) {
	dir := t.TempDir() + "/new"
	j, _ := open(t, dir)
	write(t, j, whole(sample(1)))
	for path, want := range map[string]os.FileMode{dir: 0o700 | os.ModeDir, j.path(fileName): 0o600, j.path(lockName): 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode() != want {
			t.Errorf("%s: %v %v", path, info.Mode(), err)
		}
	}
}

// Whatever is done to the file while it is in use, a write fails or works, and one that replaces all
// heals.
func TestTheFileIsTamperedWithWhileInUse(t *testing.T) {
	noise := func(n int64) []byte {
		b := make([]byte, n)
		rand.Read(b)
		return b
	}
	overwrite := func(path string, from, to int64, with func(int64) []byte) error {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = f.WriteAt(with(to-from), from)
		return err
	}
	zeros := func(n int64) []byte { return make([]byte, n) }
	page := int64(os.Getpagesize())
	type tamper struct {
		name string
		do   func(path string, size int64) error
		must bool // fail: else the write would be lost
	}
	tampers := []tamper{
		{"removed", func(path string, _ int64) error { return os.Remove(path) }, true},
		{"moved", func(path string, _ int64) error { return os.Rename(path, path+"x") }, true},
		{"directory removed", func(path string, _ int64) error { return os.RemoveAll(filepath.Dir(path)) }, true},
		{"replaced", func(path string, _ int64) error {
			return errors.Join(os.Rename(path, path+"x"), os.WriteFile(path, nil, 0o600))
		}, true},
		{"a directory in its place", func(path string, _ int64) error {
			return errors.Join(os.Remove(path), os.Mkdir(path, 0o700))
		}, true},
		{"zeros", func(path string, size int64) error { return overwrite(path, 0, size, zeros) }, true},
		{"noise", func(path string, size int64) error { return overwrite(path, 0, size, noise) }, true},
		{"zeros behind the beginning", func(path string, size int64) error { return overwrite(path, 2*page, size, zeros) }, true},
		{"noise behind the beginning", func(path string, size int64) error { return overwrite(path, 2*page, size, noise) }, true},
		{"zeros in the middle", func(path string, size int64) error { return overwrite(path, size/2, size/2+3*page, zeros) }, false},
	}
	for _, p := range []int64{0, 1, 2, 3, 4, 6, 8, 10, 12, 14, 16, 20, 24, 28, 31} {
		tampers = append(tampers, tamper{fmt.Sprint("cut to page ", p), func(path string, size int64) error {
			if size <= p*page {
				return errors.New("the file is too small")
			}
			return os.Truncate(path, p*page)
		}, true})
	}
	faults := 0
	for _, c := range tampers {
		for _, blind := range []bool{false, true} { // to the file having changed: then bbolt meets what was done
			t.Run(fmt.Sprintf("%s/%t", c.name, blind), func(t *testing.T) {
				dir := t.TempDir() + "/d"
				j, _ := open(t, dir)
				j.noSync = true
				write(t, j, whole(sample(1)))
				write(t, j, put(new(Batch), sample(2)))
				if err := c.do(j.path(fileName), j.size); err != nil {
					t.Fatal(err)
				}
				if blind {
					j.size = 0
				}
				b := new(Batch)
				b.PutSink(&Sink{Name: "ünïcode"})
				if blind { // all of it, and it has to grow
					b = put(b, sample(3))
					k := sample(3).Blocks[30]
					for n := range 1000 {
						k.Lane = uint32(100 + n)
						b.PutBlock(&k)
					}
				}
				err := j.Write(b)
				if err == nil && c.must && !blind {
					t.Error("the write was taken")
				}
				if err != nil && !strings.Contains(err.Error(), j.path(fileName)+": ") {
					t.Error(err)
				}
				if err != nil && strings.Contains(err.Error(), "was damaged while in use: ") {
					faults++
				}
				if c.name == "a directory in its place" {
					if err := j.Write(whole(sample(4))); err == nil {
						t.Error("the file was put in the place of a directory")
					}
					if err := os.Remove(j.path(fileName)); err != nil {
						t.Fatal(err)
					}
				}
				write(t, j, whole(sample(4)))
				write(t, j, put(new(Batch), sample(4)))
				if err := j.Close(); err != nil {
					t.Fatal(err)
				}
				if _, s := open(t, dir); s.Lost != nil || !sameState(s, sample(4)) {
					t.Fatalf("not healed: %v", s.Lost)
				}
			})
		}
	}
	if faults < 10 {
		t.Errorf("bbolt met damage %d times", faults)
	}
}

// The directory is another one after it was removed, and must be locked like the first.
func TestADirectoryThatIsMadeAgainIsLocked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir() + "/d"
		j, _ := open(t, dir)
		write(t, j, whole(sample(1)))
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		write(t, j, whole(sample(2)))
		if _, _, err := Open(dir); err == nil || !strings.Contains(err.Error(), "is another lag-monitor using it?") {
			t.Fatal(err)
		}
	})
}

// Hours of writes, one a second, with values that grow and shrink.
func TestTheFileDoesNotGrow(t *testing.T) {
	writes := 20_000 / slower
	j, _ := open(t, t.TempDir())
	j.noSync = true
	var b Batch
	most := int64(0)
	for n := range writes {
		b.Reset()
		if n == 0 {
			b.ReplaceAll()
		}
		for i := range 4 {
			s := Sink{Name: fmt.Sprint("sink-", i), Stamps: make([]Stamp, mathrand.IntN(1000))}
			for i := range s.Stamps {
				s.Stamps[i] = Stamp{Probe: "probe", Lane: uint32(i), Due: int64(n) << 30}
			}
			b.PutSink(&s)
		}
		for range 5 {
			k := Block{Key: Key{Probe: "probe", Block: uint64(mathrand.IntN(100))}, Open: make([]Heartbeat, mathrand.IntN(64))}
			b.PutBlock(&k)
		}
		write(t, j, &b)
		most = max(most, j.size)
	}
	if most > 256<<10 { // 4 × about 10 kB, and the tree before
		t.Errorf("the file became %d bytes", most)
	}
}

func TestTheFileShrinksAfterAnOutage(t *testing.T) {
	dir := t.TempDir()
	j, _ := open(t, dir)
	j.noSync = true
	j.slack = 1 << 20
	write(t, j, whole(sample(1)))
	var b Batch
	for n := range 20_000 {
		b.PutBlock(&Block{Key: Key{Probe: "out", Block: uint64(n)}, Open: make([]Heartbeat, 64)})
	}
	write(t, j, &b)
	grown := j.size
	b.Reset()
	for n := range 20_000 {
		b.PutBlock(&Block{Key: Key{Probe: "out", Block: uint64(n)}})
	}
	write(t, j, &b)
	if s, _, err := load(j.path(fileName)); err != nil || !sameState(s, sample(1)) {
		t.Fatalf("after the outage: %d blocks; %v", len(s.Blocks), err)
	}
	write(t, j, put(new(Batch), sample(2)))
	if j.size > 512<<10 || grown < 2<<20 {
		t.Errorf("the file had %d bytes and has %d", grown, j.size)
	}
	write(t, j, put(new(Batch), sample(3)))
	j.Close()
	_, s := open(t, dir)
	for i := range s.Blocks { // of the samples only the sinks have the same keys
		if s.Blocks[i].Probe == "out" {
			t.Fatal("a deleted block is there")
		}
	}
	if s.Lost != nil || !reflect.DeepEqual(s.Sinks, sample(3).Sinks) {
		t.Fatalf("lost: %v", s.Lost)
	}
}

// No two things may have the same key.
func TestNamesDoNotCollide(t *testing.T) {
	names := []string{"", "a", "b", "aa", "ab", "ba", "b\x00", "\x00", "\x01a", "a\x01", "s", "h", "ü", strings.Repeat("x", 127), strings.Repeat("x", 128), strings.Repeat("x", maxName)}
	want := &State{Sinks: make(map[string]Sink)}
	for _, a := range names {
		want.Sinks[a] = Sink{Name: a, Fingerprint: "sink " + a}
		for _, b := range names {
			for _, n := range []uint64{0, 1, 1 << 56} {
				want.Blocks = append(want.Blocks, Block{
					Key:  Key{Probe: a, Sink: b, Instance: n, Epoch: 1 << 56 / max(n, 1), Lane: uint32(n >> 32), Block: n},
					Open: []Heartbeat{{Seq: n, Due: int64(len(want.Blocks))}},
				})
			}
		}
	}
	dir := t.TempDir()
	j, _ := open(t, dir)
	write(t, j, whole(want))
	j.Close()
	if _, s := open(t, dir); s.Lost != nil || !sameState(s, want) {
		t.Fatalf("read %d sinks, %d blocks; lost: %v", len(s.Sinks), len(s.Blocks), s.Lost)
	}
}

func TestOfTwoPutsTheLaterOneCounts(t *testing.T) {
	dir := t.TempDir()
	j, _ := open(t, dir)
	for _, all := range []bool{true, false} {
		var b Batch
		k := Block{Key: Key{Probe: "p"}}
		for n := range 100 {
			b.PutSink(&Sink{Name: "s", Fingerprint: fmt.Sprint(n)})
			k.Open = make([]Heartbeat, n)
			b.PutBlock(&k)
		}
		k.Open = nil
		b.PutBlock(&k)
		if all {
			b.ReplaceAll()
		}
		write(t, j, &b)
		if s, _, err := load(j.path(fileName)); err != nil || s.Sinks["s"].Fingerprint != "99" || len(s.Blocks) != 0 {
			t.Fatalf("%v %+v", err, s)
		}
	}
}

func TestASteadyBatchDoesNotAllocate(t *testing.T) {
	l := newLoad(10)
	l.tick(0)
	n := 0
	if allocs := testing.AllocsPerRun(10, func() {
		n++
		l.tick(n)
		l.b.sort()
	}); allocs > 1 {
		t.Errorf("%v allocations", allocs)
	}
	// The room that an outage took is given back.
	l.b.Reset()
	for i := range 20_000 {
		l.b.PutBlock(&Block{Key: Key{Probe: "p", Block: uint64(i)}, Open: make([]Heartbeat, 64)})
	}
	l.b.Reset()
	l.tick(1)
	l.b.Reset()
	if c := cap(l.b.buf); c > 1<<20 {
		t.Errorf("%d bytes are kept", c)
	}
}

// After an outage a journal holds hundreds of millions of heartbeats. Until somebody asks for them, they take
// little more memory than in the file.
func TestBlocksAreReadWhenAskedFor(t *testing.T) {
	var b Batch
	b.ReplaceAll()
	want := Block{Key: Key{Probe: "p", Sink: "s"}}
	for block := range uint64(100) {
		want.Block, want.Open = block, nil
		for i := range uint64(blockSize) {
			seq := block*blockSize + i
			want.Open = append(want.Open, Heartbeat{Seq: seq, Due: 1e18 + int64(seq)*1e9 + int64(seq*seq*7919%1e6), Maybe: seq%7 == 0})
		}
		b.PutBlock(&want)
	}
	var m Memory
	if err := m.Write(&b); err != nil {
		t.Fatal(err)
	}
	s, err := m.State()
	if err != nil {
		t.Fatal(err)
	}
	size, n := uintptr(0), 0
	var room []Heartbeat
	for i := range s.Blocks {
		k := &s.Blocks[i]
		size += unsafe.Sizeof(*k) + uintptr(cap(k.value)) + uintptr(cap(k.Open))*unsafe.Sizeof(Heartbeat{})
		n += k.Len()
		if room = k.Heartbeats(room); len(room) != blockSize || room[5].Seq != k.Block*blockSize+5 {
			t.Fatalf("block %d: %+v", k.Block, room)
		}
		if k.Block == want.Block && !slices.Equal(room, want.Open) {
			t.Errorf("%+v", room)
		}
	}
	if each := float64(size) / float64(n); n != 6400 || each > 10 {
		t.Errorf("%d heartbeats, %.1f bytes for each", n, each)
	}
}
