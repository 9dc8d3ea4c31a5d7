package sinks

import (
	"context"
	"slices"
	"testing"
	"time"
)

// rig is a sink that a test lets run, stop and go on, and what it has told.
type rig struct {
	taker
	t      *testing.T
	config Config
	to     Receiver // whom it tells; nil: the rig itself
	sink   Sink
	feed   *Feed
	cancel context.CancelFunc
	done   chan error
}

// open makes a new sink of the settings.
func (r *rig) open() {
	r.t.Helper()
	if err := r.config.Validate(); err != nil {
		r.t.Fatal(err)
	}
	s, err := r.config.Open()
	if err != nil {
		r.t.Fatal(err)
	}
	to := r.to
	if to == nil {
		to = r
	}
	r.sink, r.feed = s, NewFeed(to, nil)
}

// begin lets the sink run.
func (r *rig) begin() {
	ctx, cancel := context.WithCancel(r.t.Context())
	r.cancel, r.done = cancel, make(chan error, 1)
	go func() { r.done <- r.sink.Run(ctx, r.feed) }()
}

// run lets the sink run until it is caught up.
func (r *rig) run() {
	r.t.Helper()
	r.begin()
	r.settle()
}

// stop ends the run.
func (r *rig) stop() {
	r.t.Helper()
	r.cancel()
	if err := <-r.done; err != nil {
		r.t.Errorf("Run: %v", err)
	}
	r.feed.notReady()
}

// ended returns the error with which Run ends by itself.
func (r *rig) ended() error {
	r.t.Helper()
	select {
	case err := <-r.done:
		r.feed.notReady()
		return err
	case <-time.After(time.Minute):
		r.t.Fatal("Run had not ended after a minute")
		return nil
	}
}

// again makes a new sink that goes on where the one before was.
func (r *rig) again() {
	r.t.Helper()
	pos := r.sink.(Resumer).Position()
	r.open()
	r.sink.(Resumer).Resume(pos)
	r.run()
}

// eventually waits until cond, while the sink runs.
func (r *rig) eventually(what string, cond func() bool) {
	r.t.Helper()
	for deadline := time.Now().Add(time.Minute); !cond(); time.Sleep(2 * time.Millisecond) {
		select {
		case err := <-r.done:
			r.t.Fatalf("%s: Run ended: %v", what, err)
		default:
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("%s: not within a minute", what)
		}
	}
}

// settle waits until the sink has read all that there is now.
func (r *rig) settle() {
	r.t.Helper()
	now := time.Now()
	r.eventually("caught up", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.caughtUp.After(now)
	})
}

// want settles, and compares all that it has told so far.
func (r *rig) want(gaps []string, seqs ...uint64) {
	r.t.Helper()
	r.settle()
	r.mu.Lock()
	defer r.mu.Unlock()
	if !slices.Equal(r.seqs, seqs) {
		r.t.Errorf("heartbeats %v arrived, want %v", r.seqs, seqs)
	}
	if !slices.Equal(r.gaps, gaps) {
		r.t.Errorf("gaps %q, want %q", r.gaps, gaps)
	}
}
