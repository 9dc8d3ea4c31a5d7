package journal

import (
	"bufio"
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

// childEnv makes the test binary another process: its value is what that does, a space, and the
// directory of its journal.
const childEnv = "LAG_MONITOR_JOURNAL_CHILD"

var children = map[string]func(dir string) error{"write": writeForEver, "fill": fillTheDisk}

func TestMain(m *testing.M) {
	if what, dir, ok := strings.Cut(os.Getenv(childEnv), " "); ok {
		if err := children[what](dir); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func child(t *testing.T, what, dir string) *exec.Cmd {
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+what+" "+dir)
	return cmd
}

// numbered is a batch that carries n in all of its parts.
func numbered(b *Batch, n int) *Batch {
	b.Reset()
	for i := range 3 {
		s := Sink{Name: fmt.Sprint("sink-", i), Position: map[string]string{"n": strconv.Itoa(n)}}
		for lane := range 20 + n%30 {
			s.Stamps = append(s.Stamps, Stamp{Probe: "probe", Lane: uint32(lane), Due: int64(n)})
		}
		b.PutSink(&s)
	}
	for i := range 30 {
		k := Block{Key: Key{Probe: fmt.Sprint("probe-", i), Sink: "sink-0"}}
		for seq := range uint64(1 + (n+i)%64) {
			k.Open = append(k.Open, Heartbeat{Seq: seq, Due: int64(n)})
		}
		b.PutBlock(&k)
	}
	return b
}

// number returns which batch a state is, and an error when it is not one in whole.
func number(s *State) (int, error) {
	if len(s.Sinks) != 3 || len(s.Blocks) != 30 {
		return 0, fmt.Errorf("%d sinks, %d blocks", len(s.Sinks), len(s.Blocks))
	}
	n, err := strconv.Atoi(s.Sinks["sink-0"].Position["n"])
	if err != nil {
		return 0, err
	}
	var b Batch
	numbered(&b, n)
	want := &State{Sinks: make(map[string]Sink)}
	for _, p := range b.puts {
		switch key, value := b.keyOf(p), b.valueOf(p); key[0] {
		case sinkKind:
			k, err := decodeSink(key, value)
			if err != nil {
				return 0, err
			}
			want.Sinks[k.Name] = k
		case blockKind:
			k, err := decodeBlock(key, value, nil)
			if err != nil {
				return 0, err
			}
			want.Blocks = append(want.Blocks, k)
		}
	}
	if !sameState(s, want) {
		return 0, fmt.Errorf("not all of it is of write %d", n)
	}
	return n, nil
}

// writeForEver writes one batch after the other from where the last process ended, and says which are
// on the disk.
func writeForEver(dir string) error {
	j, s, err := Open(dir)
	if err != nil {
		return err
	}
	if s.Lost != nil {
		return s.Lost
	}
	n := 0
	if len(s.Sinks) > 0 {
		if n, err = number(s); err != nil {
			return err
		}
	}
	var b Batch
	for first := true; ; first = false {
		n++
		if numbered(&b, n); first || n%5 == 0 { // also while a file is being made anew
			b.ReplaceAll()
		}
		if err := j.Write(&b); err != nil {
			return err
		}
		fmt.Println(n)
	}
}

func TestAKilledProcessLeavesItsLastWrite(t *testing.T) {
	dir := t.TempDir()
	written := 0
	for round := range 40 {
		cmd := child(t, "write", dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		acked := written
		for first := true; lines.Scan(); first = false {
			n, err := strconv.Atoi(lines.Text())
			if err != nil {
				t.Fatalf("round %d: the process says %q", round, lines.Text())
			}
			acked = n
			if first { // at any moment between two writes, or in one
				time.AfterFunc(time.Duration(mathrand.IntN(30_000))*time.Microsecond, func() { _ = cmd.Process.Kill() })
			}
		}
		if err := cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
			t.Fatalf("round %d: %v", round, err)
		}
		j, s := open(t, dir)
		j.Close()
		if s.Lost != nil {
			t.Fatalf("round %d: %v", round, s.Lost)
		}
		n, err := number(s)
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		if n != acked && n != acked+1 {
			t.Fatalf("round %d: write %d was the last, and %d is what is there", round, acked, n)
		}
		written = n
	}
	t.Logf("%d writes in 40 processes", written)
}
