package faults_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/servers"
)

// fileRows lists what is broken where the pipeline reads one log and writes another, in the order of the table.
func fileRows() []*row {
	head := func(f *field) *fileQueue { return f.head.(*fileQueue) }
	dest := func(f *field) *fileQueue { return f.dest.(*fileQueue) }
	rows := []*row{
		{
			name: "rotated", does: "the destination is renamed, and a new file made at once, every 2 s", interval: 100 * time.Millisecond, unnoticed: true,
			fault: func(t *testing.T, f *field) {
				for range 6 {
					dest(f).rename(t)
					dest(f).create(t)
					wait(t, 2*time.Second)
				}
			},
		},
		{
			name: "rotated_unnoticed", does: "the destination is renamed and a new file made; the pipeline writes into the old one for 5 s more", interval: 100 * time.Millisecond, unnoticed: true,
			fault: func(t *testing.T, f *field) {
				dest(f).stay(true)
				dest(f).rename(t)
				dest(f).create(t)
				wait(t, 5*time.Second)
				dest(f).stay(false)
			},
		},
		{
			name: "missing", does: "the destination is renamed, and a new file made 5 s later; until then the pipeline cannot write",
			fault: func(t *testing.T, f *field) {
				dest(f).rename(t)
				wait(t, 5*time.Second)
				dest(f).create(t)
			},
		},
		{
			name: "head_rotated", does: "the head is renamed, and a new file made 3 s later",
			fault: func(t *testing.T, f *field) {
				head(f).rename(t)
				wait(t, 3*time.Second)
				head(f).create(t)
			},
		},
		{
			name: "cut", does: "the destination is copied and cut (copytruncate), with lines that the monitor, which is suspended, has not read", gap: true, unnoticed: true,
			fault: func(t *testing.T, f *field) {
				f.unread(t, f.daemon.Pause)
				dest(f).cut(t)
				f.daemon.Resume()
			},
		},
		{
			name: "cut_and_grown", does: "the same, and the file has become longer than before when the monitor looks again", gap: true, unnoticed: true,
			fault: func(t *testing.T, f *field) {
				f.unread(t, f.daemon.Pause)
				dest(f).cut(t)
				dest(f).others(t, 5000)
				f.daemon.Resume()
			},
		},
		{
			name: "half_lines", does: "each line is written in two steps, 150 ms apart", interval: 250 * time.Millisecond, unnoticed: true,
			fault: func(t *testing.T, f *field) {
				dest(f).halves(150 * time.Millisecond)
				f.relays(t, f.relay.counts()+40)
				dest(f).halves(0)
			},
		},
		{
			name: "disk_full", does: "the disk of both logs is full for 5 s", variant: "disk",
			fault: func(t *testing.T, f *field) {
				f.relay.hold()
				f.relays(t, f.relay.counts()+5) // which find no room
				free := servers.Fill(t, f.disk)
				f.relay.resume()
				wait(t, 5*time.Second)
				free()
			},
		},
		{
			name: "killed_and_rotated", does: "the monitor, with a journal, is killed, and the destination renamed with lines that it has not read, five times", anew: true, journal: true, innocent: true, unnoticed: true,
			fault: func(t *testing.T, f *field) {
				for range 5 {
					f.unread(t, f.daemon.Kill)
					dest(f).rename(t)
					dest(f).create(t)
					f.daemon.Start()
					wait(t, 2*time.Second)
				}
			},
		},
		{
			name: "killed_and_compressed", does: "the same, once, and the renamed file is gone (compressed)", anew: true, journal: true, innocent: true, unnoticed: true,
			fault: func(t *testing.T, f *field) {
				wait(t, 1500*time.Millisecond) // there is a journal
				f.unread(t, f.daemon.Kill)
				dest(f).rename(t)
				dest(f).create(t)
				dest(f).compress(t)
				f.daemon.Start()
			},
		},
	}
	rows = append(rows, only(commonRows(), "monitor_sigstop", "monitor_killed", "pipeline_stops", "duplicates", "late", "one_in_7_dropped", "reload")...)
	for _, r := range rows {
		// A file does not tell when a line came: there is time enough for what could not be read at once.
		switch r.name {
		case "late":
		case "pipeline_stops":
			r.untold = true // what came between two looks
		case "one_in_7_dropped":
			r.timeout, r.settles = 10*time.Second, 3*time.Second
		default:
			r.timeout, r.settles = 25*time.Second, 3*time.Second
		}
	}
	return rows
}

// unread stops the monitor, and has a few heartbeats come into the destination that it has not read.
func (f *field) unread(t *testing.T, stop func()) {
	t.Helper()
	f.relay.hold()
	f.relays(t, f.relay.counts()+5)
	stop()
	f.relay.resume()
	for deadline := time.Now().Add(patience); ; wait(t, 10*time.Millisecond) {
		if _, idle := f.relay.idle(); idle {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("nothing comes into the destination")
		}
	}
}

// openFile needs no server.
func openFile(*testing.T, []*row) func(*testing.T, *row) *pipeline { return filePipeline }

func filePipeline(t *testing.T, r *row) *pipeline {
	t.Helper()
	dir := t.TempDir()
	if r.variant == "disk" {
		r.disk = servers.Tmpfs(t, 4)
		dir = r.disk
	}
	head, dest := newFileQueue(t, filepath.Join(dir, "in.log")), newFileQueue(t, filepath.Join(dir, "out.log"))
	return &pipeline{
		head: head, dest: dest, refuse: func() { head.takeAway(t) },
		inject: fmt.Sprintf("file: {path: %q%s}", head.path, r.settings),
		sink:   fmt.Sprintf("file: {path: %q}", dest.path),
	}
}

// fileQueue is a log. It has one lane.
type fileQueue struct {
	path string

	mu    sync.Mutex // held while the pipeline writes, and while somebody rotates
	files []string   // that have had the name, the one that has it last
	into  int        // of these, the one that the pipeline writes into; -1: the last one
	step  time.Duration
	torn  bool                 // the last line has no end
	began map[string]time.Time // when the pipeline began to write a line first, and when the line was there
	ended map[string]time.Time
}

func newFileQueue(t *testing.T, path string) *fileQueue {
	t.Helper()
	q := &fileQueue{path: path, files: []string{path}, into: -1, began: map[string]time.Time{}, ended: map[string]time.Time{}}
	q.create(t)
	return q
}

// create makes the file.
func (q *fileQueue) create(t *testing.T) {
	t.Helper()
	f, err := os.OpenFile(q.path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
}

// rename gives the file another name, and leaves none of the old one.
func (q *fileQueue) rename(t *testing.T) {
	t.Helper()
	q.mu.Lock()
	defer q.mu.Unlock()
	last := len(q.files) - 1
	q.files[last] = fmt.Sprintf("%s.%d", q.path, last+1)
	if err := os.Rename(q.path, q.files[last]); err != nil {
		t.Fatal(err)
	}
	q.files = append(q.files, q.path)
}

// takeAway renames the file, if it is there.
func (q *fileQueue) takeAway(t *testing.T) {
	t.Helper()
	if _, err := os.Stat(q.path); err == nil {
		q.rename(t)
	}
}

// stay has the pipeline go on with the file that has the name now, until it is told to look again.
func (q *fileQueue) stay(on bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.into = -1; on {
		q.into = len(q.files) - 1
	}
}

// halves has each line written in two steps, so long apart.
func (q *fileQueue) halves(step time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.step = step
}

// cut copies the file and empties it.
func (q *fileQueue) cut(t *testing.T) {
	t.Helper()
	q.mu.Lock()
	defer q.mu.Unlock()
	last := len(q.files) - 1
	q.files[last] = fmt.Sprintf("%s.%d", q.path, last+1)
	text, err := os.ReadFile(q.path)
	if err == nil {
		err = os.WriteFile(q.files[last], text, 0o600)
	}
	if err == nil {
		err = os.Truncate(q.path, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	q.files = append(q.files, q.path)
}

// compress puts the file that had the name before where nobody finds it.
func (q *fileQueue) compress(t *testing.T) {
	t.Helper()
	q.mu.Lock()
	defer q.mu.Unlock()
	gone := filepath.Join(t.TempDir(), "gone")
	last := len(q.files) - 2
	text, err := os.ReadFile(q.files[last])
	if err == nil {
		err = os.WriteFile(gone, text, 0o600)
	}
	if err == nil {
		err = os.Remove(q.files[last])
	}
	if err != nil {
		t.Fatal(err)
	}
	q.files[last] = gone
}

// others adds lines of others.
func (q *fileQueue) others(t *testing.T, n int) {
	t.Helper()
	q.mu.Lock()
	defer q.mu.Unlock()
	if err := q.write(q.path, []byte(strings.Repeat("an ordinary line, which holds no heartbeat\n", n))); err != nil {
		t.Fatal(err)
	}
}

// write appends to a file that is there.
func (q *fileQueue) write(path string, text []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	n, err := f.Write(text)
	if n > 0 {
		q.torn = text[n-1] != '\n'
	}
	return err
}

func (q *fileQueue) put(_ context.Context, _ int, body []byte) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if _, again := q.began[string(body)]; !again {
		q.began[string(body)] = time.Now()
	}
	path := q.path
	if q.into >= 0 {
		path = q.files[q.into]
	}
	line := append(bytes.Clone(body), '\n')
	if q.torn {
		line = append([]byte{'\n'}, line...) // the disk was full in the middle of a line
	}
	if half := len(line) / 2; q.step > 0 {
		if err := q.write(path, line[:half]); err != nil {
			return err
		}
		time.Sleep(q.step)
		line = line[half:]
	}
	if err := q.write(path, line); err != nil {
		return err
	}
	if _, again := q.ended[string(body)]; !again {
		q.ended[string(body)] = time.Now()
	}
	return nil
}

// lines calls f with each line from the offsets on, which it moves.
func (q *fileQueue) lines(offsets map[int]int, f func(message)) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	for i, path := range q.files {
		text, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // at the moment nothing has the name
		}
		if err != nil {
			return err
		}
		for at := offsets[i]; ; {
			line, _, whole := bytes.Cut(text[at:], []byte{'\n'})
			if !whole {
				break
			}
			m := message{id: fmt.Sprint(i, " ", at), body: line, at: q.began[string(line)], known: q.ended[string(line)]}
			if !m.known.IsZero() {
				m.known = m.known.Add(time.Second) // the monitor looks ten times a second
			}
			f(m)
			at += len(line) + 1
			offsets[i] = at
		}
	}
	return nil
}

func (q *fileQueue) follow(ctx context.Context, f func(message)) {
	offsets := map[int]int{}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for ctx.Err() == nil {
		if err := q.lines(offsets, f); err != nil {
			panic(err)
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

func (q *fileQueue) all(context.Context) (all []message, err error) {
	err = q.lines(map[int]int{}, func(m message) { all = append(all, m) })
	return all, err
}
