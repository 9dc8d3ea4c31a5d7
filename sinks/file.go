package sinks

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"hash/fnv"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/conn"
	"github.com/lag-monitor/lag-monitor/internal/heartbeat"
)

// FileConfig is a sink `file`: the lines that are added to a file, through rotations of both kinds: another
// file takes its name, or it is copied and cut.
type FileConfig struct {
	// Path of the file.
	Path string `yaml:"path"`
	// PollInterval is how often to look for new lines. A heartbeat is seen by as much later.
	PollInterval conn.Duration `yaml:"poll_interval,omitempty"`
	// MaxLine is the longest line in bytes; a longer one is counted and not looked at.
	MaxLine int64 `yaml:"max_line,omitempty"`
}

// NewFile returns the defaults.
func NewFile() *FileConfig {
	return &FileConfig{PollInterval: conn.Duration(100 * time.Millisecond), MaxLine: 1 << 20}
}

const (
	maxFileLine = 64 << 20
	fileChunk   = 256 << 10
	// fileDrain is for how long a file that has lost its name is read: writers that have it open go on for
	// a moment after a rotation.
	fileDrain = 10 * time.Second
)

// Validate implements Config.
func (c *FileConfig) Validate() error {
	errs := []error{conn.Prefix("path", conn.FilePath(c.Path))}
	if c.PollInterval < conn.Duration(time.Millisecond) || c.PollInterval > conn.Duration(maxFilePoll) {
		errs = append(errs, conn.Field("poll_interval", "is between 1ms and %s", maxFilePoll))
	}
	if c.MaxLine < int64(heartbeat.MaxToken) || c.MaxLine > maxFileLine {
		errs = append(errs, conn.Field("max_line", "is between %d (one heartbeat) and %d bytes", heartbeat.MaxToken, maxFileLine))
	}
	return errors.Join(errs...)
}

// maxFilePoll lets the sink prove itself every second.
const maxFilePoll = time.Second

// Open implements Config.
func (c *FileConfig) Open() (Sink, error) { return &fileSink{c: c}, nil }

// fileSink reads one file, and those that had its name before until they are quiet.
type fileSink struct {
	c   *FileConfig
	buf []byte

	// open are the files that are read, the one that has the name last. They belong to Run, which leaves them
	// open for the next one: what was written meanwhile is still there, whatever has become of the name.
	open []*followed

	mu  sync.Mutex
	pos map[string]string // as Position returns it, and as Resume has set it
}

// followed is a file that is read.
type followed struct {
	f     *os.File
	id    string // of the file, whatever its name; empty where the system has none
	at    int64  // everything before was delivered
	last  []byte // of that, the last bytes, fileMark at most
	told  string // the position at at, as it is written down; empty after a move
	turns int    // how often it was cut: offsets begin anew
	long  bool   // at is inside a line that is too long
	lost  time.Time
}

// Position implements Resumer: the offset in each file that is read, by the file's identity.
func (s *fileSink) Position() map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pos
}

// Resume implements Resumer.
func (s *fileSink) Resume(pos map[string]string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pos = maps.Clone(pos)
}

// Run implements Sink.
func (s *fileSink) Run(ctx context.Context, f *Feed) error {
	if len(s.open) == 0 {
		if err := s.begin(f); err != nil {
			return err
		}
	}
	defer s.tell()
	s.tell()
	f.Ready()
	tick := time.NewTicker(time.Duration(s.c.PollInterval))
	defer tick.Stop()
	for {
		asked := time.Now()
		if err := s.poll(ctx, f); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return nil
		}
		s.tell()
		f.CaughtUp(asked)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// tell makes known how far the files have been read.
func (s *fileSink) tell() {
	pos := make(map[string]string, len(s.open))
	for _, o := range s.open {
		if o.id != "" {
			pos[o.id] = o.position()
		}
	}
	s.mu.Lock()
	s.pos = pos
	s.mu.Unlock()
}

// fileMark is how many bytes before a position tell whether it is still the same file: systems give a deleted
// file's identity to the next one, and one that was copied and cut may have become longer than before.
const fileMark = 64

// position writes down how far the file was read, and what stands before.
func (o *followed) position() string {
	if o.told == "" {
		o.told = fmt.Sprintf("%d %08x", o.at, crc32.ChecksumIEEE(o.last))
	}
	return o.told
}

// resume moves to a position that was written down, and reports false when it is none of this file.
func (o *followed) resume(text string) bool {
	var at int64
	var mark uint32
	if n, err := fmt.Sscanf(text, "%d %x", &at, &mark); n != 2 || err != nil || at < 0 {
		return false
	}
	if o.begin(at) != nil || crc32.ChecksumIEEE(o.last) != mark {
		o.anew()
		return false
	}
	return true
}

// anew goes back to the beginning.
func (o *followed) anew() { o.at, o.last, o.told, o.long = 0, nil, "", false }

// begin takes everything before at for delivered.
func (o *followed) begin(at int64) error {
	from := max(0, at-fileMark)
	o.at, o.last, o.told = at, make([]byte, at-from), ""
	_, err := o.f.ReadAt(o.last, from)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// move notes that b, which stands at the position, was delivered.
func (o *followed) move(b []byte) {
	o.at, o.told = o.at+int64(len(b)), ""
	o.last = append(o.last, b[max(0, len(b)-fileMark):]...)
	o.last = append(o.last[:0], o.last[max(0, len(o.last)-fileMark):]...)
}

// begin opens the file for the first time: at its end, or where the process before has left off.
func (s *fileSink) begin(f *Feed) error {
	o, err := openFollowed(s.c.Path)
	if err != nil {
		return err
	}
	left := s.Position()
	if len(left) == 0 {
		end, err := o.f.Seek(0, io.SeekEnd)
		if err == nil {
			err = o.begin(end)
		}
		if err != nil {
			o.f.Close()
			return conn.FileError(err)
		}
		s.open = []*followed{o}
		return nil
	}
	// The file may have been renamed since; it is then beside the one that has the name now.
	found := 0
	names, _ := filepath.Glob(globEscape(filepath.Dir(s.c.Path)) + "/*")
	for _, name := range names {
		info, err := os.Stat(name)
		if err != nil || !info.Mode().IsRegular() {
			continue
		}
		id := fileID(info)
		text, ok := left[id]
		if !ok || id == "" {
			continue
		}
		p := o
		if id != o.id {
			if p, err = openFollowed(name); err != nil {
				continue
			}
			p.lost = time.Now()
		}
		if p.id != id || !p.resume(text) {
			if p != o {
				p.f.Close()
			}
			continue
		}
		if p != o {
			s.open = append(s.open, p)
		}
		found++
	}
	s.open = append(s.open, o)
	if found < len(left) {
		f.Gap("rotated")
	}
	return nil
}

// globEscape keeps the characters of a directory's name from being a pattern.
func globEscape(dir string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(dir)
}

func openFollowed(path string) (*followed, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, conn.FileError(err)
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = conn.WithClass(conn.Other, fmt.Errorf("%s: not a regular file", path))
	}
	if err != nil {
		f.Close()
		return nil, conn.FileError(err)
	}
	return &followed{f: f, id: fileID(info)}, nil
}

// poll reads every file to its end. When it returns nil, everything that was in them before is delivered.
func (s *fileSink) poll(ctx context.Context, f *Feed) error {
	// Who has the name is asked before the reading: a file that loses it meanwhile is read once more.
	named, err := os.Stat(s.c.Path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return conn.FileError(err)
	}
	last := s.open[len(s.open)-1]
	have, err2 := last.f.Stat()
	if err2 != nil {
		return conn.FileError(err2)
	}
	if err == nil && !os.SameFile(named, have) {
		next, err := s.next(named)
		switch {
		case err == nil:
			last.lost, next.lost = time.Now(), time.Time{}
			s.open = append(s.open, next)
		case !errors.Is(err, os.ErrNotExist): // it has been taken away again: later
			return err
		}
	}
	for i := 0; i < len(s.open); {
		o := s.open[i]
		grown, err := s.read(ctx, f, o)
		if err != nil {
			return fmt.Errorf("%s: %w", s.c.Path, conn.FileError(err))
		}
		if grown && !o.lost.IsZero() {
			o.lost = time.Now()
		}
		if !o.lost.IsZero() && time.Since(o.lost) > fileDrain {
			o.f.Close()
			s.open = append(s.open[:i], s.open[i+1:]...)
			continue
		}
		i++
	}
	return nil
}

// next returns the file that has got the name: a new one, or one that is still read and has it back.
func (s *fileSink) next(named os.FileInfo) (*followed, error) {
	for i, o := range s.open {
		if info, err := o.f.Stat(); err == nil && os.SameFile(info, named) {
			s.open = append(s.open[:i], s.open[i+1:]...)
			return o, nil
		}
	}
	return openFollowed(s.c.Path)
}

// read delivers the whole lines of one file. A line without its end has not been written yet.
func (s *fileSink) read(ctx context.Context, f *Feed, o *followed) (grown bool, err error) {
	if s.buf == nil {
		s.buf = make([]byte, fileChunk)
	}
	for ctx.Err() == nil {
		n, err := o.f.ReadAt(s.buf, o.at-int64(len(o.last)))
		if err != nil && err != io.EOF {
			return grown, err
		}
		if !bytes.HasPrefix(s.buf[:n], o.last) {
			// It was copied and cut. What came between the last look and the cut is in the copy only.
			f.Gap("truncated")
			o.anew()
			o.turns++
			continue
		}
		b, full := s.buf[len(o.last):n], n == len(s.buf)
		whole := bytes.LastIndexByte(b, '\n') + 1
		switch {
		case len(b) == 0:
			return grown, nil
		case whole > 0:
			grown = true
			s.lines(f, o, b[:whole])
			o.move(b[:whole])
		case o.long:
			o.move(b)
		case !full:
			return grown, nil // the end of the file is the beginning of a line
		case int64(len(b)) >= s.c.MaxLine:
			f.Error(conn.WithClass(conn.Other, fmt.Errorf("%s: the line at byte %d is longer than max_line, %d bytes", s.c.Path, o.at, s.c.MaxLine)))
			o.long = true
			o.move(b)
		default:
			s.buf = make([]byte, min(int64(2*len(s.buf)), max(s.c.MaxLine, fileChunk)+fileMark))
		}
	}
	return grown, nil
}

// lines delivers the lines of b, which ends with a line.
func (s *fileSink) lines(f *Feed, o *followed, b []byte) {
	at := o.at
	if o.long {
		end := bytes.IndexByte(b, '\n') + 1
		b, at = b[end:], at+int64(end)
		o.long = false
		f.Skip(1)
	}
	if !f.mayHold(b) {
		f.Skip(bytes.Count(b, []byte{'\n'}))
		return
	}
	others := 0
	for len(b) > 0 {
		end := bytes.IndexByte(b, '\n')
		line := b[:end]
		if f.mayHold(line) {
			f.Deliver(Message{Body: line, ID: o.line(at)})
		} else {
			others++
		}
		b, at = b[end+1:], at+int64(end)+1
	}
	f.Skip(others)
}

// line is the identity of the line at an offset, also for another process; never 0.
func (o *followed) line(at int64) uint64 {
	h := fnv.New64a()
	fmt.Fprint(h, o.id, " ", o.turns, " ", at)
	return h.Sum64() | 1
}

// Check implements Checker.
func (s *fileSink) Check(context.Context) error {
	o, err := openFollowed(s.c.Path)
	if err != nil {
		return err
	}
	return o.f.Close()
}
