package monitor

import (
	"context"
	"strings"
	"time"
	"unicode"

	"github.com/lag-monitor/lag-monitor/internal/conn"
	"github.com/lag-monitor/lag-monitor/sinks"
)

const (
	// backlogEvery is how often a sink is asked for its backlog.
	backlogEvery = 15 * time.Second
	// backlogFirst is when it is asked first: it has to connect before it can tell.
	backlogFirst = 2 * time.Second
	// backlogWithin bounds the answer.
	backlogWithin = 10 * time.Second
)

// pollBacklog asks a sink for its backlog again and again until ctx ends. What is not known any more is not shown, and
// an error is told once until it is another.
func (s *sinkRun) pollBacklog(ctx context.Context, b sinks.Backlogger) {
	pause := time.NewTimer(backlogFirst)
	defer pause.Stop()
	told := ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-pause.C:
		}
		found, err := askBacklog(ctx, b)
		if ctx.Err() != nil {
			return
		}
		s.backlog.Store(&found)
		switch {
		case err == nil:
			told = ""
		case wordsOf(err) != told:
			told = wordsOf(err)
			s.feed.Error(err)
		}
		pause.Reset(backlogEvery)
	}
}

// wordsOf is the text of an error without its digits: ports and numbers of requests make each of a row another one.
func wordsOf(err error) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsDigit(r) {
			return -1
		}
		return r
	}, err.Error())
}

func askBacklog(ctx context.Context, b sinks.Backlogger) (found []sinks.Backlog, err error) {
	ctx, cancel := context.WithTimeout(ctx, backlogWithin)
	defer cancel()
	defer conn.Contain(&err)
	found, err = b.Backlog(ctx)
	// A series that is there twice would spoil the whole scrape.
	type series struct{ queue, group, partition string }
	seen := make(map[series]bool)
	once := found[:0:0]
	for _, f := range found {
		if k := (series{f.Queue, f.Group, f.Partition}); !seen[k] {
			seen[k] = true
			once = append(once, f)
		}
	}
	return once, err
}

// backlogs returns what is known of the backlog.
func (s *sinkRun) backlogs() []sinks.Backlog {
	if b := s.backlog.Load(); b != nil {
		return *b
	}
	return nil
}
