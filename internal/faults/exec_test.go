package faults_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// execAtOnce is how many rows run at once: each starts dozens of programs a second.
const execAtOnce = 5

// execRow is what a row has of its own: two programs of the shell, which do what a file says.
type execRow struct{ dir string }

// The programs of a row, for fmt: %[1]s is its directory. Both turn from one heartbeat to the next between having taken it
// and not, where they do wrong.
const (
	execCommon = `#!/bin/sh
cd %[1]s || exit 126
turn() { if [ -e turn ]; then rm -f turn; return 1; fi; : >turn; }
take() { printf '%%s\n' "$1" >>in.log; }
flood() { head -c 5000000 /dev/zero | tr '\0' x >&2; }
`
	// execSend runs once for each heartbeat.
	execSend = execCommon + `line=$(cat)
case $(cat send.does) in
refuses) echo not now >&2; exit 22 ;;
dies) turn && take "$line"; echo died >&2; exit 3 ;;
hangs) turn && take "$line"; exec sleep 1000 ;;
floods) flood; take "$line"; turn || exit 3 ;;
*) take "$line" ;;
esac
`
	// execKeep is kept, and answers.
	execKeep = execCommon + `while read -r line; do
	case $(cat send.does) in
	refuses) echo refused not now ;;
	dies) turn && take "$line"; echo died >&2; exit 3 ;;
	hangs) turn && take "$line"; exec sleep 1000 ;;
	halves) take "$line"; printf o; exit 3 ;;
	late) take "$line"; sleep 3; echo ok ;;
	*) take "$line" && echo ok || echo refused full ;;
	esac
done
`
	// execListen goes on where it was, and says how it stands. The time is taken before the file is read, and what it had then
	// is printed before it is told.
	execListen = execCommon + `at=$(cat at)
echo "lag-monitor: ready"
while now=$(date +%%s.%%N); end=$(wc -l <out.log); do
	case $(cat listen.does) in
	dies) echo died >&2; exit 3 ;;
	hangs) while [ "$(cat listen.does)" = hangs ]; do sleep 0.1; done; continue ;;
	floods) flood ;;
	halves) if [ "$end" -gt "$at" ]; then tail -n "+$((at+1))" out.log | head -c 60; exit 3; fi ;;
	esac
	if [ "$end" -gt "$at" ]; then
		tail -n "+$((at+1))" out.log | head -n "$((end-at))"
		at=$end
		echo "$at" >at
	fi
	echo "lag-monitor: caught up $now"
	sleep 0.2
done
`
	// execPlain says nothing of itself, and begins at the end each time.
	execPlain = execCommon + `echo $$ >pid
exec tail -n 0 -F out.log 2>/dev/null
`
)

// execRows lists what is broken where programs are both ends, in the order of the table.
func execRows() []*row {
	of := func(f *field) *execRow { return f.server.(*execRow) }
	during := func(program, does string, for_ time.Duration) func(*testing.T, *field) {
		return func(t *testing.T, f *field) {
			of(f).set(t, program, does)
			wait(t, for_)
			of(f).set(t, program, "")
		}
	}
	missing := func(program string) func(*testing.T, *field) {
		return func(t *testing.T, f *field) {
			path := filepath.Join(of(f).dir, program)
			if err := os.Rename(path, path+".away"); err != nil {
				t.Fatal(err)
			}
			if program == "listen" {
				of(f).set(t, program, "dies") // the one that runs
			}
			wait(t, 5*time.Second)
			of(f).set(t, program, "")
			if err := os.Rename(path+".away", path); err != nil {
				t.Fatal(err)
			}
		}
	}
	rows := []*row{
		{name: "head_dies", does: "by turns, with and without having taken the heartbeat, the program at the head ends with status 3, for 5 s", fault: during("send", "dies", 5*time.Second)},
		{name: "head_hangs", does: "by turns, with and without having taken the heartbeat, the program at the head goes on for ever, for 10 s", fault: during("send", "hangs", 10*time.Second)},
		{name: "head_floods", does: "the program at the head writes 5 MB to its standard error each time, and ends with status 3 every second time, for 5 s", memory: 120e6, fault: during("send", "floods", 5*time.Second)},
		{name: "head_missing", does: "the program at the head is not there for 5 s", fault: missing("send")},
		{name: "kept_head_dies", does: "a program that is kept ends instead of an answer, by turns with and without having taken the heartbeat, for 5 s", variant: "keep", fault: during("send", "dies", 5*time.Second)},
		{name: "kept_head_late", does: "its answers come after 3 s, when the time is over, for 10 s", variant: "keep", fault: during("send", "late", 10*time.Second)},
		{name: "kept_head_halves", does: "it ends in the middle of an answer, for 5 s", variant: "keep", fault: during("send", "halves", 5*time.Second)},
		{name: "out_dies", does: "the program that listens ends whenever it is started, for 5 s, and goes on where it was", fault: during("listen", "dies", 5*time.Second)},
		{name: "out_hangs", does: "the program that listens says and prints nothing for 10 s", fault: during("listen", "hangs", 10*time.Second)},
		{name: "out_halves", does: "the program that listens ends in the middle of a line whenever it has one to print, for 5 s", fault: during("listen", "halves", 5*time.Second)},
		{name: "out_floods", does: "the program that listens writes 5 MB to its standard error before each look, for 5 s", memory: 120e6, unnoticed: true, fault: during("listen", "floods", 5*time.Second)},
		{name: "out_missing", does: "the program that listens ends, and is not there for 5 s", fault: missing("listen")},
		{
			name: "plain_out_killed", does: "tail -F, which begins at the end each time and says nothing of itself, is killed every 300 ms for 5 s", variant: "plain", gap: true,
			fault: func(t *testing.T, f *field) {
				for range 16 {
					of(f).kill(t)
					wait(t, 300*time.Millisecond)
				}
			},
		},
	}
	rows = append(rows, only(commonRows(), "monitor_killed", "duplicates", "one_in_7_dropped", "reload")...)
	for _, r := range rows {
		// A program does not tell when a message came: there is time enough for what could not be printed at once.
		r.timeout, r.settles = 25*time.Second, 3*time.Second
		if r.plan != nil {
			r.timeout, r.interval, r.fault = 15*time.Second, 0, relayed(100) // each heartbeat is a program
		}
		if r.journal {
			r.innocent = true // the position is that of the program, and dies with what it has printed
		}
	}
	return rows
}

// openExec needs no server.
func openExec(*testing.T, []*row) func(*testing.T, *row) *pipeline { return execPipeline }

func execPipeline(t *testing.T, r *row) *pipeline {
	t.Helper()
	own := &execRow{dir: t.TempDir()}
	head, dest := newFileQueue(t, filepath.Join(own.dir, "in.log")), newFileQueue(t, filepath.Join(own.dir, "out.log"))
	send, listen, how, says := execSend, execListen, "refused: [22]", ", speaks: true, keeps: true"
	switch r.variant {
	case "keep":
		send, how = execKeep, "keep: true"
	case "plain":
		listen, says = execPlain, ""
	}
	own.set(t, "send", "")
	own.set(t, "listen", "")
	writeFile(t, filepath.Join(own.dir, "at"), "0")
	for name, text := range map[string]string{"send": send, "listen": listen} {
		path := filepath.Join(own.dir, name)
		writeFile(t, path, fmt.Sprintf(text, own.dir))
		if err := os.Chmod(path, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return &pipeline{
		head: head, dest: dest, refuse: func() { own.set(t, "send", "refuses") }, server: own,
		inject: fmt.Sprintf("exec: {command: [%q], %s%s}", filepath.Join(own.dir, "send"), how, r.settings),
		sink:   fmt.Sprintf("exec: {command: [%q]%s}", filepath.Join(own.dir, "listen"), says),
	}
}

// set says what a program does from now on; "": what it should.
func (e *execRow) set(t *testing.T, program, does string) {
	t.Helper()
	writeFile(t, filepath.Join(e.dir, program+".does"), does)
}

// kill kills the program that listens, if it runs.
func (e *execRow) kill(t *testing.T) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(e.dir, "pid"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return // it is being written
	}
	if cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid)); err == nil && cwd == e.dir { // it has ended, and somebody else has the number
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}
