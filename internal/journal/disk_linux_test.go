package journal

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
)

// asNobody runs do as a user for whom permissions count, whoever runs the tests.
func asNobody(t *testing.T, do func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		if os.Geteuid() == 0 {
			runtime.LockOSThread() // which ends with the goroutine: the others stay root
			if err := syscall.Setfsuid(65534); err != nil {
				t.Error(err)
				return
			}
		}
		do()
	}()
	<-done
}

// nobodys returns a directory that asNobody may write.
func nobodys(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if os.Geteuid() == 0 {
		for _, d := range []string{dir, filepath.Dir(dir)} { // the one above is root's alone too
			if err := os.Chown(d, 65534, -1); err != nil {
				t.Fatal(err)
			}
		}
	}
	return dir
}

func chmod(t *testing.T, path string, mode os.FileMode) {
	t.Helper()
	if err := os.Chmod(path, mode); err != nil {
		t.Error(err)
	}
}

// says fails unless the error names the file and what to do.
func says(t *testing.T, err error, want ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("no error; want one with %q", want)
		return
	}
	for _, w := range want {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%v\ndoes not say %q", err, w)
		}
	}
}

func TestADirectoryThatCannotBeWritten(t *testing.T) {
	dir := nobodys(t)
	path := filepath.Join(dir, fileName)
	asNobody(t, func() {
		j, _, err := Open(dir)
		if err != nil {
			t.Error(err)
			return
		}
		if err := j.Write(whole(sample(1))); err != nil {
			t.Error(err)
		}

		// While it is in use, and a new file is called for.
		chmod(t, dir, 0o500)
		says(t, j.Write(whole(sample(2))), path, "permission denied: let the user that lag-monitor runs as")
		says(t, j.Write(put(new(Batch), sample(2))), path, "has to replace all")
		chmod(t, dir, 0o700)
		if err := j.Write(whole(sample(3))); err != nil {
			t.Error(err)
		}
		if err := j.Write(put(new(Batch), sample(4))); err != nil {
			t.Error(err)
		}
		j.Close()

		// At the start. What is there can be used all the same.
		if err := os.Remove(filepath.Join(dir, lockName)); err != nil {
			t.Error(err)
		}
		chmod(t, dir, 0o500)
		j, s, err := Open(dir)
		says(t, err, path, "permission denied: let the user that lag-monitor runs as")
		if j != nil || s.Lost != nil || s.Sinks["ünïcode"].Position["0"] != "4" {
			t.Errorf("%v %+v", j, s)
		}
		chmod(t, dir, 0o700)

		// A file that cannot be read is no reason to do without one.
		chmod(t, path, 0)
		j, s, err = Open(dir)
		if err != nil {
			t.Error(err)
			return
		}
		defer j.Close()
		says(t, s.Lost, path, "permission denied", "kept as journal.db.bad-")
		if err := j.Write(whole(sample(5))); err != nil {
			t.Error(err)
		}
	})
}

func TestWhatIsNoDirectory(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{path, filepath.Join(path, "below")} {
		j, s, err := Open(dir)
		says(t, err, filepath.Join(dir, fileName), "not a directory: name a directory")
		if j != nil || s == nil {
			t.Errorf("%v %v", j, s)
		}
	}
}

// A disk becomes full in the middle of a write, and has room again: here the limit on the size of files
// stands for the disk's, because it can be set for one process.
func TestAFullDisk(t *testing.T) {
	if out, err := child(t, "fill", t.TempDir()).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func fillTheDisk(dir string) error {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
		return err
	}
	most := limit.Max
	room := func(n uint64) {
		limit.Cur = min(n, most)
		if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
			panic(err)
		}
	}
	big := new(Batch)
	k := sample(1).Blocks[30]
	for n := range 2000 {
		k.Block = uint64(n)
		big.PutBlock(&k)
	}
	holds := func(n int) error {
		s, _, err := load(filepath.Join(dir, fileName))
		if err == nil && !sameState(s, sample(n)) {
			err = fmt.Errorf("the file does not hold write %d", n)
		}
		return err
	}
	failed := func(err error) error {
		if err == nil || !strings.Contains(err.Error(), fileName+": ") || !strings.HasSuffix(err.Error(), "file too large: raise the limit on the size of files") {
			return fmt.Errorf("a write without room: %w", err)
		}
		return nil
	}

	j, _, err := Open(dir)
	if err != nil {
		return err
	}
	defer j.Close()
	// From the first write on.
	room(20_000)
	if err := failed(j.Write(whole(sample(1)))); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(dir, newName)); err == nil {
		return fmt.Errorf("half a file is left")
	}
	room(most)
	if err := j.Write(whole(sample(2))); err != nil {
		return err
	}
	// A file that has to grow cannot.
	room(uint64(j.size))
	if err := failed(j.Write(big)); err != nil {
		return err
	}
	if err := holds(2); err != nil {
		return err
	}
	// Nor is there room for another one.
	room(4096)
	for range 3 {
		if err := failed(j.Write(whole(sample(3)))); err != nil {
			return err
		}
		if err := holds(2); err != nil {
			return err
		}
	}
	room(most)
	if err := j.Write(whole(sample(4))); err != nil {
		return err
	}
	if err := holds(4); err != nil {
		return err
	}
	big.Reset()
	put(big, sample(5))
	if err := j.Write(big); err != nil {
		return err
	}
	j.Close()

	// No room, and a file that was cut besides: what bbolt reads to get over the error is not there.
	for page := int64(2); page < 64; page++ {
		if j, _, err = Open(dir); err != nil {
			return err
		}
		// So that what the write below needs is at the beginning of the file.
		all := whole(sample(1))
		for n := range uint64(100) {
			all.PutBlock(&Block{Key: Key{Probe: "a", Block: n}, Open: k.Open})
		}
		err := j.Write(all)
		for range 4 {
			var b Batch
			for n := range uint64(100) {
				b.PutBlock(&Block{Key: Key{Probe: "a", Block: n}})
			}
			b.PutSink(&Sink{Name: "ünïcode"})
			err = errors.Join(err, j.Write(&b))
		}
		if err != nil {
			return err
		}
		if err := os.Truncate(j.path(fileName), page*int64(os.Getpagesize())); err != nil {
			return err
		}
		j.size = 0 // so that it is not noticed before
		room(8192)
		var b Batch
		b.PutSink(&Sink{Name: "ünïcode"})
		if err := j.Write(&b); err == nil {
			return fmt.Errorf("cut to page %d: no error", page)
		}
		room(most)
		j.Close()
	}
	return nil
}
