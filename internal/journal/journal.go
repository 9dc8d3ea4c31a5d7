package journal

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/gofrs/flock"
	"go.etcd.io/bbolt"
)

const (
	fileName = "journal.db"
	newName  = "journal.db.new" // one that is being made
	lockName = "journal.lock"   // stays when the file is replaced
	lockWait = time.Second      // for the process before to end
	chunk    = 8 << 20          // bytes of one transaction while a file is being made

	// While it is in use a file is made anew when more than slack bytes and three quarters of it are free.
	slack = 64 << 20
)

var (
	errClosed   = errors.New("is closed")
	errNotAll   = errors.New("the write before did not succeed: the next one has to replace all")
	errReplaced = errors.New("was removed, replaced or cut by somebody else")
	errHeld     = errors.New("is another lag-monitor using it?")
)

// Journal is the file of a running process. Its methods are not safe for concurrent use. It starts no
// goroutine.
type Journal struct {
	dir  string
	lock *flock.Flock // nil when closed

	// The file that is being written; nil until the first Write and after one that failed.
	db   *bbolt.DB
	f    *os.File // the same
	size int64    // that it had after the last Write
	used int64    // bytes that the last transaction found: the file grows in larger steps
	h    header   // that is in it

	broken bool   // bbolt panicked during this call: it may hold its own locks for ever
	head   []byte // scratch
	noSync bool   // in benchmarks: what the disk costs is not to be measured
	slack  int64  // less in tests
}

// Open takes the journal in dir, which is made if it does not exist, and returns what the last process
// left in it; an empty State when there is none.
//
// A file that cannot be read in whole is kept aside as journal.db.bad-TIME, of which the newest three
// stay, and State.Lost says what happened. That is no error of Open.
//
// The error says that the journal cannot be used: the directory cannot be written, or another process
// holds it, for whose end Open waits at most a second. Then there is no Journal. The State is never nil:
// where the file could be read though not written, it holds what was left.
//
// A full disk is no error here but of Write.
func Open(dir string) (*Journal, *State, error) {
	j := &Journal{dir: dir, slack: slack}
	empty := &State{Sinks: make(map[string]Sink)}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, empty, j.explain(err)
	}
	if err := j.acquire(); err != nil {
		if errors.Is(err, errHeld) {
			return nil, empty, j.explain(err)
		}
		s, _, lost := load(j.path(fileName))
		if lost != nil {
			s.Lost = j.explain(lost)
		}
		return nil, s, j.explain(err)
	}
	s, found, lost := load(j.path(fileName))
	if lost != nil {
		bad, err := moveAside(j.path(fileName), found, time.Now())
		if err != nil {
			_ = j.lock.Unlock()
			s.Lost = j.explain(lost)
			return nil, s, j.explain(err)
		}
		s.Lost = fmt.Errorf("journal %s: %w; kept as %s", j.path(fileName), lost, filepath.Base(bad))
	}
	_ = os.Remove(j.path(newName)) // of a process that ended while it made one
	return j, s, nil
}

func (j *Journal) path(name string) string { return filepath.Join(j.dir, name) }

// acquire takes the lock of the directory.
func (j *Journal) acquire() error {
	l := flock.New(j.path(lockName), flock.SetFlag(os.O_CREATE|os.O_RDWR), flock.SetPermissions(0o600))
	ctx, cancel := context.WithTimeout(context.Background(), lockWait)
	defer cancel()
	if _, err := l.TryLockContext(ctx, 20*time.Millisecond); errors.Is(err, context.DeadlineExceeded) {
		return errHeld
	} else if err != nil {
		return err
	}
	j.lock = l
	return nil
}

// explain adds what the error is about and what there is to do.
func (j *Journal) explain(err error) error {
	is := func(no syscall.Errno) bool {
		return errors.Is(err, no) || strings.HasSuffix(err.Error(), no.Error()) // bbolt does not wrap them all
	}
	todo := ""
	switch {
	case is(syscall.ENOSPC), is(syscall.EDQUOT):
		todo = ": make room on its disk"
	case is(syscall.EFBIG):
		todo = ": raise the limit on the size of files"
	case is(syscall.EROFS), errors.Is(err, fs.ErrPermission):
		todo = ": let the user that lag-monitor runs as read and write there"
	case is(syscall.ENOTDIR):
		todo = ": name a directory"
	}
	return fmt.Errorf("journal %s: %w%s", j.path(fileName), err, todo)
}

// Write makes the changes of the batch, all or none of them, and returns when they are on the disk. The
// batch can be used again after the call.
//
// After an error the file holds what it held before, or the whole batch; then, and as the first of a
// Journal, a batch is needed that replaces all (see Batch.ReplaceAll). So whoever gets an error tries
// again, whenever it likes, with everything that is true by then.
func (j *Journal) Write(b *Batch) error {
	if j.lock == nil {
		return j.explain(errClosed)
	}
	j.broken = false
	if err := j.guard(func() error { return j.write(b) }); err != nil {
		j.drop()
		return j.explain(err)
	}
	return nil
}

// Close ends the use of the file. What was written stays.
func (j *Journal) Close() error {
	if j.lock == nil {
		return nil
	}
	j.broken = false
	j.drop()
	err := j.lock.Unlock()
	j.lock = nil
	if err != nil {
		return j.explain(err)
	}
	return nil
}

// guard turns a panic into an error. bbolt reads its file through a mapping into memory: a file that is
// cut, or a disk that fails, is a fault there, and damage that it notices a panic.
func (j *Journal) guard(do func() error) (err error) {
	old := debug.SetPanicOnFault(true)
	done := false
	defer func() {
		debug.SetPanicOnFault(old)
		if r := recover(); r != nil || !done {
			j.broken = true
			err = fmt.Errorf("was damaged while in use: %v", r)
		}
	}()
	err = do()
	done = true
	return err
}

// drop closes the file, if one is open.
func (j *Journal) drop() {
	if j.db == nil {
		return
	}
	j.shut(j.db, j.f)
	j.db, j.f = nil, nil
}

// shut closes a file of bbolt's.
func (j *Journal) shut(db *bbolt.DB, f *os.File) {
	// After a panic bbolt may wait for ever for a lock that it holds itself. What remains then is its
	// mapping: addresses, no memory.
	if !j.broken && db != nil && j.guard(db.Close) == nil {
		return
	}
	if f != nil {
		_ = f.Close()
	}
}

func (j *Journal) write(b *Batch) error {
	if b.err != nil {
		return b.err
	}
	b.sort()
	if b.all {
		return j.replace(func(db *bbolt.DB) (header, error) { return j.fill(db, b) })
	}
	if j.db == nil {
		return errNotAll
	}
	if err := j.inPlace(); err != nil {
		return err
	}
	h, err := j.commit(j.db, b, b.puts, j.h, true)
	if err != nil {
		return err
	}
	j.h = h
	if s := j.db.Stats(); int64(s.FreeAlloc) > j.slack && int64(s.FreeAlloc) > j.used/4*3 {
		// An outage is over. A list of what is free is written each time, and is long by now.
		return j.replace(func(db *bbolt.DB) (header, error) {
			if err := bbolt.Compact(db, j.db, chunk); err != nil {
				return h, err
			}
			return j.commit(db, b, nil, h, true)
		})
	}
	return j.measure()
}

// inPlace tells whether the file is still the one of its name, and no shorter than it was: what is
// written to a file that has been removed is gone.
func (j *Journal) inPlace() error {
	have, err := j.f.Stat()
	if err != nil {
		return err
	}
	is, err := os.Stat(j.path(fileName))
	if err != nil || !os.SameFile(have, is) || is.Size() < j.size {
		return errReplaced
	}
	return nil
}

func (j *Journal) measure() error {
	info, err := j.f.Stat()
	if err != nil {
		return err
	}
	j.size = info.Size()
	return nil
}

// replace makes a new file, lets fill write into it, and puts it in the place of the old one.
func (j *Journal) replace(fill func(*bbolt.DB) (header, error)) (err error) {
	if err := j.hold(); err != nil {
		return err
	}
	fresh := j.path(newName)
	if err := os.RemoveAll(fresh); err != nil {
		return err
	}
	var (
		f  *os.File
		db *bbolt.DB
	)
	placed := false
	defer func() { // also when bbolt panics
		if !placed {
			if err == nil {
				j.broken = true
			}
			j.shut(db, f)
			_ = os.Remove(fresh) // it may be what fills the disk
		}
	}()
	db, err = bbolt.Open(fresh, 0o600, &bbolt.Options{
		Timeout: lockWait,
		// Written with each transaction: without it bbolt reads the whole file after an error, and does so
		// in a goroutine, whose panic nobody could recover.
		NoFreelistSync: false,
		FreelistType:   bbolt.FreelistMapType,
		NoSync:         true, // once, at the end
		OpenFile: func(path string, flag int, mode os.FileMode) (*os.File, error) {
			var err error
			f, err = os.OpenFile(path, flag, mode)
			return f, err
		},
	})
	if err != nil {
		db = nil
		return err
	}
	h, err := fill(db)
	if err != nil {
		return err
	}
	if !j.noSync {
		if err := db.Sync(); err != nil {
			return err
		}
	}
	if err := os.Rename(fresh, j.path(fileName)); err != nil {
		return err
	}
	placed = true
	j.drop()
	db.NoSync = j.noSync
	j.db, j.f, j.h = db, f, h
	if err := j.syncDir(); err != nil {
		return err
	}
	return j.measure()
}

// hold makes sure of the lock. It is gone when somebody removed the directory with all that was in it.
func (j *Journal) hold() error {
	have, err := j.lock.Stat()
	if err != nil {
		return err
	}
	if is, err := os.Stat(j.path(lockName)); err == nil && os.SameFile(have, is) {
		return nil
	}
	if err := os.MkdirAll(j.dir, 0o700); err != nil {
		return err
	}
	old := j.lock
	if err := j.acquire(); err != nil {
		return err
	}
	return old.Unlock()
}

// syncDir puts the file's name on the disk.
func (j *Journal) syncDir() error {
	if j.noSync {
		return nil
	}
	d, err := os.Open(j.dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, errors.ErrUnsupported) && !errors.Is(err, syscall.EINVAL) {
		return err // the others are file systems that need no such thing
	}
	return nil
}

// fill writes a batch into an empty file. The header comes last: until then the file is no journal.
func (j *Journal) fill(db *bbolt.DB, b *Batch) (header, error) {
	var h header
	for puts := b.puts; ; {
		n, size := 0, 0
		for n < len(puts) && size < chunk {
			size += puts[n].end - puts[n].key
			n++
		}
		last := n == len(puts)
		var err error
		if h, err = j.commit(db, b, puts[:n], h, last); err != nil || last {
			return h, err
		}
		puts = puts[n:]
	}
}

// commit writes puts in one transaction, with a header if it is the last of a Write, and returns the
// header.
func (j *Journal) commit(db *bbolt.DB, b *Batch, puts []entry, h header, last bool) (header, error) {
	tx, err := db.Begin(true)
	if err != nil {
		return h, err
	}
	bucket, err := tx.CreateBucketIfNotExists(bucketName)
	if err != nil {
		return h, errors.Join(err, tx.Rollback())
	}
	j.used = tx.Size()
	if b.all {
		bucket.FillPercent = 0.9 // keys come in order
	}
	for _, p := range puts {
		key, value := b.keyOf(p), b.valueOf(p)
		if old := bucket.Get(key); old != nil {
			h.count--
			h.sum -= uint64(storedSum(old))
		}
		if len(value) == 0 {
			err = bucket.Delete(key)
		} else {
			h.count++
			h.sum += uint64(p.sum)
			err = bucket.Put(key, value)
		}
		if err != nil {
			return h, errors.Join(err, tx.Rollback())
		}
	}
	if last {
		h.at, h.tx = b.gathered(), uint64(tx.ID())
		j.head = h.append(j.head[:0])
		if err := bucket.Put(headerKey, j.head); err != nil {
			return h, errors.Join(err, tx.Rollback())
		}
	}
	return h, tx.Commit()
}
