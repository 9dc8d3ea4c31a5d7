package sinks

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/conn"
	"github.com/lag-monitor/lag-monitor/internal/heartbeat"
)

// fileRig is a sink that follows a file in a directory of the test.
type fileRig struct {
	taker
	t    *testing.T
	path string
	sink *fileSink
	feed *Feed
	stop func()
}

func followFile(t *testing.T, configure ...func(*FileConfig)) *fileRig {
	t.Helper()
	c := NewFile()
	c.Path, c.PollInterval = filepath.Join(t.TempDir(), "[a] log"), conn.Duration(5*time.Millisecond)
	for _, f := range configure {
		f(c)
	}
	r := &fileRig{t: t, path: c.Path}
	r.add(r.path, "before")
	r.sink = &fileSink{c: c}
	return r
}

// run starts the sink and waits until it has read everything; the function that it returns stops it.
func (r *fileRig) run() {
	r.t.Helper()
	r.feed = NewFeed(r, nil)
	ctx, cancel := context.WithCancel(r.t.Context())
	done := make(chan error, 1)
	go func() { done <- r.sink.Run(ctx, r.feed) }()
	r.stop = func() {
		r.t.Helper()
		cancel()
		if err := <-done; err != nil {
			r.t.Errorf("Run: %v", err)
		}
	}
	r.settle()
}

// settle waits until what is in the file now has been read.
func (r *fileRig) settle() {
	r.t.Helper()
	now := time.Now()
	waitUntil(r.t, "caught up", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.caughtUp.After(now)
	})
}

// add appends lines: text, or the number of a heartbeat.
func (r *fileRig) add(path string, lines ...any) {
	r.t.Helper()
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		r.t.Fatal(err)
	}
	defer f.Close()
	for _, l := range lines {
		if n, ok := l.(int); ok {
			l = fmt.Sprintf("2026-01-01 level=info msg=%s", tokenOf(uint64(n)))
		}
		if _, err := fmt.Fprintln(f, l); err != nil {
			r.t.Fatal(err)
		}
	}
}

func (r *fileRig) rename(from, to string) {
	r.t.Helper()
	if err := os.Rename(from, to); err != nil {
		r.t.Fatal(err)
	}
}

func (r *fileRig) want(others int, seqs ...uint64) {
	r.t.Helper()
	r.settle()
	if got := r.arrived(); !slices.Equal(got, seqs) {
		r.t.Errorf("heartbeats %v arrived, want %v", got, seqs)
	}
	m := r.feed.Stats().Messages
	if m[Other] != uint64(others) || m[Corrupt] != 0 {
		r.t.Errorf("%d others and %d corrupt, want %d and 0", m[Other], m[Corrupt], others)
	}
}

func (r *fileRig) wantGaps(want ...string) {
	r.t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if !slices.Equal(r.gaps, want) {
		r.t.Errorf("gaps %q, want %q", r.gaps, want)
	}
}

func TestFileFollows(t *testing.T) {
	r := followFile(t)
	r.run()
	r.add(r.path, "ordinary", 1, 2, "", "more")
	r.want(3, 1, 2)
	// A line that is being written is no line yet.
	token := tokenOf(3)
	f, err := os.OpenFile(r.path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, part := range []string{token[:20], token[20:]} {
		if _, err := f.WriteString(part); err != nil {
			t.Fatal(err)
		}
		r.want(3, 1, 2)
	}
	if _, err := f.WriteString("\nlast\n"); err != nil {
		t.Fatal(err)
	}
	r.want(4, 1, 2, 3)
	r.stop()
	r.wantGaps()
}

// Another file gets the name: both are read, the old one for a while yet, and one that gets its name back
// is not read twice.
func TestFileRenamed(t *testing.T) {
	r := followFile(t)
	r.run()
	old := r.path + ".1"
	r.add(r.path, 1)
	r.rename(r.path, old)
	r.add(old, 2)
	r.want(0, 1, 2)
	r.add(r.path, "head of the new one", 3)
	r.want(1, 1, 2, 3)
	r.add(old, 4) // by somebody who has not noticed
	r.want(1, 1, 2, 3, 4)
	r.rename(r.path, r.path+".2")
	r.rename(old, r.path)
	r.add(r.path, 5)
	r.want(1, 1, 2, 3, 4, 5)
	r.stop()
	r.wantGaps()
}

func TestFileCut(t *testing.T) {
	r := followFile(t)
	r.run()
	r.add(r.path, 1)
	r.want(0, 1)
	if err := os.Truncate(r.path, 0); err != nil {
		t.Fatal(err)
	}
	r.settle()
	r.add(r.path, 2)
	r.want(0, 1, 2)
	r.stop()
	r.wantGaps("truncated")
}

// A file that was cut and has become longer than before, or just as long, is read from its beginning, too.
func TestFileCutAndGrown(t *testing.T) {
	for _, more := range []string{"x", "xx", strings.Repeat("x", 300<<10)} {
		r := followFile(t)
		r.run()
		r.add(r.path, 1, "x")
		r.want(1, 1)
		r.stop()
		if err := os.Truncate(r.path, 0); err != nil {
			t.Fatal(err)
		}
		r.add(r.path, "before", 2, more)
		r.run()
		r.want(2, 1, 2)
		r.add(r.path, 3)
		r.want(2, 1, 2, 3)
		r.stop()
		r.wantGaps("truncated")
	}
}

// What was written while nobody read is read by the next Run, and by the next process.
func TestFileResumes(t *testing.T) {
	r := followFile(t)
	r.run()
	r.add(r.path, 1)
	r.want(0, 1)
	r.stop()
	r.add(r.path, 2)
	r.run()
	r.want(0, 1, 2)
	r.stop()

	again := func() {
		t.Helper()
		s := &fileSink{c: r.sink.c}
		s.Resume(r.sink.Position())
		r.sink = s
		r.run()
	}
	r.add(r.path, 3)
	again()
	r.want(0, 1, 2, 3)
	r.stop()
	// The file was rotated meanwhile.
	r.add(r.path, 4)
	r.rename(r.path, r.path+".1")
	r.add(r.path, 5)
	again()
	r.want(0, 1, 2, 3, 4, 5)
	r.stop()
	r.wantGaps()
}

// A file that is gone, or that only has the identity of the one that was read, is not taken for it.
func TestFileResumesElsewhere(t *testing.T) {
	r := followFile(t)
	r.run()
	r.add(r.path, 1, strings.Repeat("x", 100))
	r.want(1, 1)
	r.stop()
	pos := r.sink.Position()
	for id := range pos {
		// As if the next file had been given the identity of this one.
		if err := os.WriteFile(r.path, []byte(strings.Repeat("y\n", 500)+tokenOf(2)+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(r.path)
		if err != nil {
			t.Fatal(err)
		}
		pos = map[string]string{fileID(info): pos[id]}
	}
	s := &fileSink{c: r.sink.c}
	s.Resume(pos)
	r.sink = s
	r.run()
	r.want(500, 1, 2)
	r.stop()
	r.wantGaps("rotated")
}

func TestFileLongLine(t *testing.T) {
	r := followFile(t, func(c *FileConfig) { c.MaxLine = fileChunk })
	r.run()
	r.add(r.path, strings.Repeat("x", 3*fileChunk)+tokenOf(1), 2, strings.Repeat("y", fileChunk/2)+tokenOf(3))
	r.want(1, 2, 3)
	r.stop()
	if e := r.feed.Stats().LastError; e == nil || !strings.Contains(e.Error(), "the line at byte 7 is longer than max_line, 262144 bytes") {
		t.Errorf("error %v", e)
	}
}

func TestFileValidate(t *testing.T) {
	c := NewFile()
	c.Path, c.PollInterval, c.MaxLine = "/var/log/", 0, 10
	want := fmt.Sprintf("path: names a directory: it must name a file\npoll_interval: is between 1ms and 1s\n"+
		"max_line: is between %d (one heartbeat) and 67108864 bytes", heartbeat.MaxToken)
	if got := c.Validate().Error(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
