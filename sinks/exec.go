package sinks

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/conn"
	"github.com/lag-monitor/lag-monitor/internal/heartbeat"
)

// ExecConfig is a sink `exec`: a program prints what comes out of the pipeline, a line for each message.
type ExecConfig struct {
	// Program is what runs as long as the sink does. When it ends it is started again.
	Program conn.Exec `yaml:",inline"`
	// Speaks says that the program tells how it stands, in lines of its own: `lag-monitor: ready`, `lag-monitor: caught up
	// TIME` and `lag-monitor: gap WHY`. Otherwise ReadyAfter and Delay stand in.
	Speaks bool `yaml:"speaks,omitempty"`
	// ReadyAfter is how long after its start the program is taken to listen.
	ReadyAfter conn.Duration `yaml:"ready_after,omitempty"`
	// Delay is the longest time from the moment at which a message enters the queue to that at which its line is
	// printed. A drop is declared by as much later.
	Delay conn.Duration `yaml:"delay,omitempty"`
	// Keeps says that the program goes on where it was when it is started again. Otherwise everything that came while it
	// was away is taken for possibly unseen.
	Keeps bool `yaml:"keeps,omitempty"`
	// MaxLine is the longest line in bytes; a longer one ends the program.
	MaxLine int64 `yaml:"max_line,omitempty"`
}

// NewExec returns the defaults.
func NewExec() *ExecConfig {
	return &ExecConfig{ReadyAfter: conn.Duration(time.Second), Delay: conn.Duration(time.Second), MaxLine: 1 << 20}
}

const (
	execWord     = "lag-monitor: "
	execEvery    = 250 * time.Millisecond // how often a program that says nothing of itself proves to be alive
	maxExecDelay = time.Minute
	maxExecLine  = 64 << 20
)

// Validate implements Config.
func (c *ExecConfig) Validate() error {
	errs := []error{c.Program.Validate()}
	for name, d := range map[string]conn.Duration{"ready_after": c.ReadyAfter, "delay": c.Delay} {
		if d < 0 || d > conn.Duration(maxExecDelay) {
			errs = append(errs, conn.Field(name, "is between 0s and %s", conn.Duration(maxExecDelay)))
		}
	}
	if c.MaxLine < int64(heartbeat.MaxToken) || c.MaxLine > maxExecLine {
		errs = append(errs, conn.Field("max_line", "is between %d (one heartbeat) and %d bytes", heartbeat.MaxToken, maxExecLine))
	}
	return errors.Join(errs...)
}

// Open implements Config.
func (c *ExecConfig) Open() (Sink, error) { return &execSink{c: c}, nil }

type execSink struct {
	c     *ExecConfig
	begun bool // it has listened before
}

// Run implements Sink.
func (s *execSink) Run(ctx context.Context, f *Feed) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p, err := s.c.Program.Program(ctx)
	if err != nil {
		return err
	}
	out, err := p.StdoutPipe()
	if err != nil {
		return err
	}
	if err := p.Start(); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	read := make(chan error, 1)
	go func() {
		var err error
		defer func() { read <- err }()
		defer conn.Contain(&err)
		err = s.read(f, out)
	}()
	tick := time.NewTicker(execEvery)
	defer tick.Stop()
	began := time.Now()
	for ready := false; ; {
		select {
		case err := <-read:
			// Its output has ended: so has the program, or it has nothing more to say.
			cancelled := ctx.Err() != nil
			cancel()
			ended := p.Wait()
			switch {
			case cancelled:
				return nil
			case err != nil:
				return err
			case ended == nil || errors.Is(ended, context.Canceled):
				return conn.WithClass(conn.Other, fmt.Errorf("%s: the program has ended by itself", s.c.Program.Command[0]))
			}
			return fmt.Errorf("%s: %w", s.c.Program.Command[0], ended)
		case now := <-tick.C:
			if s.c.Speaks {
				continue
			}
			if !ready && time.Since(began) >= time.Duration(s.c.ReadyAfter) {
				ready = true
				s.ready(f)
			}
			if ready {
				f.CaughtUp(now.Add(-time.Duration(s.c.Delay)))
			}
		}
	}
}

func (s *execSink) ready(f *Feed) {
	if s.begun && !s.c.Keeps {
		f.Gap("restarted")
	}
	s.begun = true
	f.Ready()
}

// read delivers the program's lines to their end.
func (s *execSink) read(f *Feed, out io.Reader) error {
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, int(s.c.MaxLine)+1)
	lines.Split(wholeLines)
	for lines.Scan() {
		line := lines.Bytes()
		if s.c.Speaks && bytes.HasPrefix(line, []byte(execWord)) {
			if err := s.hear(f, string(line[len(execWord):])); err != nil {
				return err
			}
			continue
		}
		f.Deliver(Message{Body: line})
	}
	err := lines.Err()
	if errors.Is(err, bufio.ErrTooLong) {
		return conn.WithClass(conn.Other, fmt.Errorf("a line is longer than max_line, %d bytes", s.c.MaxLine))
	}
	return nil // how the program has ended says more than that its output has
}

// wholeLines is bufio.ScanLines without what stands behind the end of the last line: the program has died in the middle of
// one, which is not damaged for that.
func wholeLines(b []byte, atEOF bool) (int, []byte, error) {
	if bytes.IndexByte(b, '\n') < 0 {
		return 0, nil, nil
	}
	return bufio.ScanLines(b, atEOF)
}

// hear takes what the program says of itself.
func (s *execSink) hear(f *Feed, said string) error {
	switch text, isTime := strings.CutPrefix(said, "caught up "); {
	case said == "ready":
		s.ready(f)
		return nil
	case isTime:
		seconds, err := strconv.ParseFloat(text, 64)
		if err != nil || !(seconds > 0 && seconds < 1e11) {
			break
		}
		t := time.UnixMicro(int64(seconds * 1e6))
		if now := time.Now(); t.After(now) {
			t = now
		}
		f.CaughtUp(t)
		return nil
	case strings.HasPrefix(said, "gap "):
		f.Gap("program")
		return nil
	}
	return conn.WithClass(conn.Other, fmt.Errorf("the program says %s; want ready, caught up TIME (seconds since 1970) or gap WHY behind %q",
		conn.Quote(said), execWord))
}

// Check implements Checker: it looks for the program.
func (s *execSink) Check(context.Context) error { return s.c.Program.Check() }
