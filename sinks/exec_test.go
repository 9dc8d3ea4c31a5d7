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
)

func openExec(t *testing.T, configure func(*ExecConfig), script string, args ...string) Sink {
	t.Helper()
	c := NewExec()
	c.Program.Command = append([]string{"sh", "-c", script}, args...)
	c.ReadyAfter, c.Delay = conn.Duration(50*time.Millisecond), conn.Duration(50*time.Millisecond)
	configure(c)
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	s, err := c.Open()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// A program that ends says why, and what came while it was away is in doubt unless it goes on where it was.
func TestExecEnds(t *testing.T) {
	for _, keeps := range []bool{false, true} {
		s := openExec(t, func(c *ExecConfig) { c.Keeps = keeps }, `echo `+tokenOf(1)+`; echo other; sleep 0.5; echo the queue is gone >&2; exit 7`)
		r := new(taker)
		feed := NewFeed(r, nil)
		for range 2 {
			err := s.Run(t.Context(), feed)
			feed.notReady()
			if err == nil || !strings.Contains(err.Error(), `sh: exit status 7: "the queue is gone"`) || conn.ClassOf(err) != conn.Other {
				t.Errorf("Run: %v", err)
			}
		}
		want := []string{"restarted"}
		if keeps {
			want = nil
		}
		if !slices.Equal(r.gaps, want) || r.ready != 4 || len(r.seqs) != 2 || r.caughtUp.IsZero() {
			t.Errorf("keeps %t: gaps %q, ready %d times, heartbeats %v, caught up %v", keeps, r.gaps, r.ready, r.seqs, r.caughtUp)
		}
		if m := feed.Stats().Messages; m[Other] != 2 {
			t.Errorf("%d others, want 2", m[Other])
		}
	}
}

// A program that dies in the middle of a line has printed no message, and damaged none.
func TestExecHalfALine(t *testing.T) {
	token := tokenOf(1)
	s := openExec(t, func(c *ExecConfig) { c.Keeps = true }, `echo whole; printf %s "$0"; exit 7`, token[:len(token)/2])
	feed := NewFeed(new(taker), nil)
	if err := s.Run(t.Context(), feed); err == nil || !strings.Contains(err.Error(), "exit status 7") {
		t.Errorf("Run: %v", err)
	}
	if m := feed.Stats().Messages; m[Other] != 1 || m[Corrupt] != 0 {
		t.Errorf("%d others and %d corrupt; want 1 and 0", m[Other], m[Corrupt])
	}
}

// A program that speaks is believed, and one that says what nobody understands is not.
func TestExecSpeaks(t *testing.T) {
	now := time.Now()
	r := new(taker)
	feed := NewFeed(r, nil)
	s := openExec(t, func(c *ExecConfig) { c.Speaks = true; c.MaxLine = 1000 }, fmt.Sprintf(
		"echo lag-monitor: ready; echo lag-monitor: caught up %d.5; echo lag-monitor: gap trimmed; echo lag-monitor: caught up 99999999999; echo lag-monitor: caught up yesterday; sleep 60", now.Unix()-10))
	if err := s.Run(t.Context(), feed); err == nil || !strings.Contains(err.Error(), `the program says "caught up yesterday"; want ready,`) {
		t.Errorf("Run: %v", err)
	}
	if r.ready != 1 || !slices.Equal(r.gaps, []string{"program"}) || r.caughtUp.After(time.Now()) || r.caughtUp.Before(now) {
		t.Errorf("ready %d times, gaps %q, caught up %v", r.ready, r.gaps, r.caughtUp)
	}
	s = openExec(t, func(c *ExecConfig) { c.MaxLine = 1000 }, `head -c 2000 /dev/zero | tr '\0' x; sleep 60`)
	if err := s.Run(t.Context(), feed); err == nil || !strings.Contains(err.Error(), "a line is longer than max_line, 1000 bytes") {
		t.Errorf("Run: %v", err)
	}
}

// Nothing of a program is left when the sink ends, also not what it has started.
func TestExecLeavesNothing(t *testing.T) {
	pid := filepath.Join(t.TempDir(), "pid")
	s := openExec(t, func(*ExecConfig) {}, `trap '' TERM; sleep 60 & echo $! >"$0"; wait; sleep 60`, pid)
	ctx, cancel := contextUntil(t, func() bool { b, err := os.ReadFile(pid); return err == nil && len(b) > 1 })
	defer cancel()
	if err := s.Run(ctx, NewFeed(new(taker), nil)); err != nil {
		t.Errorf("Run: %v", err)
	}
	b, err := os.ReadFile(pid)
	if err != nil {
		t.Fatal(err)
	}
	waitUntil(t, "the child's child has ended", func() bool {
		stat, err := os.ReadFile("/proc/" + strings.TrimSpace(string(b)) + "/stat")
		return err != nil || strings.Contains(string(stat), ") Z ")
	})
}

// contextUntil returns a context that ends when cond holds.
func contextUntil(t *testing.T, cond func() bool) (context.Context, context.CancelFunc) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		defer cancel()
		for ctx.Err() == nil && !cond() {
			time.Sleep(5 * time.Millisecond)
		}
	}()
	return ctx, cancel
}
