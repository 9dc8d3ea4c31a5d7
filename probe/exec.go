package probe

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/conn"
)

// ExecConfig is `inject: {exec: …}`: a program puts the heartbeat into the pipeline.
type ExecConfig struct {
	// Program is what runs.
	Program conn.Exec `yaml:",inline"`
	// Keep leaves the program running: it gets a line for each heartbeat and answers each with a line, `ok`,
	// `refused WHY` or `unknown WHY`. Otherwise it runs once for each, with the body on its standard input, and its
	// exit status is the answer: 0 is accepted.
	Keep bool `yaml:"keep,omitempty"`
	// Refused are the exit statuses that say that the heartbeat is certainly not in the pipeline. After any other
	// but 0 nobody knows.
	Refused []int `yaml:"refused,omitempty"`
	// Body is what the program gets; a template.
	Body Template `yaml:"body,omitempty"`
}

// NewExec returns the defaults.
func NewExec() *ExecConfig { return &ExecConfig{Body: defaultBody} }

// shellRefused are the statuses of a shell that could not run the program.
var shellRefused = []int{126, 127}

// Validate implements Config.
func (c *ExecConfig) Validate() error {
	errs := []error{c.Program.Validate(), conn.Prefix("body", CheckToken(c.Body))}
	for i, code := range c.Refused {
		if code < 1 || code > 255 {
			errs = append(errs, conn.Field(fmt.Sprintf("refused[%d]", i), "an exit status that says no is between 1 and 255"))
		}
	}
	if c.Keep {
		if len(c.Refused) > 0 {
			errs = append(errs, conn.Field("refused", "cannot be combined with keep: true, where the program answers with a line"))
		}
		if line, err := c.Body.Render(Sample()); err == nil && bytes.ContainsAny(line, "\r\n") {
			errs = append(errs, conn.Field("body", "must not hold a line break with keep: true, where a line is a message"))
		}
	}
	return errors.Join(errs...)
}

// Open implements Config.
func (c *ExecConfig) Open() (Injector, error) {
	return &execInjector{c: c, turn: make(chan struct{}, 1)}, nil
}

type execInjector struct {
	c      *ExecConfig
	closed atomic.Bool
	turn   chan struct{} // held by whoever talks to the kept program
	kept   *keptProgram  // guarded by turn
}

// Inject implements Injector.
func (i *execInjector) Inject(ctx context.Context, m *Message) error {
	if err := ctx.Err(); err != nil {
		return Refused(err)
	}
	if i.closed.Load() {
		return Refused(errClosed)
	}
	body, err := i.c.Body.Render(m)
	if err != nil {
		return Refused(fmt.Errorf("body: %w", err))
	}
	if i.c.Keep {
		return i.tell(ctx, body)
	}
	p, err := i.c.Program.Program(ctx, "LAG_MONITOR_HEARTBEAT="+m.Token, "TRACEPARENT="+m.TraceParent)
	if err != nil {
		return Refused(err)
	}
	p.Stdin = bytes.NewReader(body)
	if err := p.Start(); err != nil {
		return Refused(err)
	}
	if err = p.Wait(); err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%w: %w", ctx.Err(), err)
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) && (slices.Contains(i.c.Refused, exit.ExitCode()) || slices.Contains(shellRefused, exit.ExitCode())) {
		return Refused(err)
	}
	return err
}

// keptProgram is a program that goes on from one heartbeat to the next.
type keptProgram struct {
	*conn.Program
	cancel  context.CancelFunc
	in      io.WriteCloser
	answers chan string   // its lines; closed when it says no more
	ended   chan struct{} // closed when it has ended
	err     error         // how; read it only after ended is closed
}

// maxExecAnswer bounds a line that a program answers with.
const maxExecAnswer = 64 << 10

func (i *execInjector) start() (*keptProgram, error) {
	ctx, cancel := context.WithCancel(context.Background())
	p, err := i.c.Program.Program(ctx)
	if err != nil {
		cancel()
		return nil, err
	}
	k := &keptProgram{Program: p, cancel: cancel, answers: make(chan string, 1), ended: make(chan struct{})}
	out, err := p.StdoutPipe()
	if err == nil {
		k.in, err = p.StdinPipe()
	}
	if err == nil {
		err = p.Start()
	}
	if err != nil {
		cancel()
		return nil, err
	}
	go func() {
		defer close(k.ended)
		defer cancel()
		lines := bufio.NewScanner(out)
		lines.Buffer(nil, maxExecAnswer)
		for lines.Scan() {
			select {
			case k.answers <- lines.Text():
			case <-ctx.Done():
			}
		}
		close(k.answers)
		if lines.Err() != nil {
			cancel() // a line without end: nothing more can be understood
		}
		k.err = p.Wait()
	}()
	return k, nil
}

// end ends the program and waits for it.
func (k *keptProgram) end() error {
	k.in.Close()
	k.cancel()
	<-k.ended
	return k.err
}

// tell gives the body to the kept program and waits for its answer.
func (i *execInjector) tell(ctx context.Context, body []byte) error {
	if bytes.ContainsAny(body, "\r\n") {
		return Refused(errors.New("body: holds a line break"))
	}
	select {
	case i.turn <- struct{}{}:
		defer func() { <-i.turn }()
	case <-ctx.Done():
		return Refused(fmt.Errorf("waiting for the program: %w", ctx.Err()))
	}
	if i.closed.Load() {
		return Refused(errClosed)
	}
	if i.kept != nil {
		select {
		case <-i.kept.answers:
			// It has ended since the last heartbeat, or said something that nobody has asked for: what it says next
			// could be the answer to anything.
			_ = i.kept.end()
			i.kept = nil
		default:
		}
	}
	if i.kept == nil {
		k, err := i.start()
		if err != nil {
			return Refused(err)
		}
		i.kept = k
	}
	k := i.kept
	wrote := make(chan struct{})
	var n int // how much of the line has left; read it only after wrote is closed, as writeErr
	var writeErr error
	go func() {
		defer close(wrote)
		n, writeErr = k.in.Write(append(body, '\n'))
	}()
	fail := func(err error) error {
		i.kept = nil
		if end := k.end(); end != nil {
			err = fmt.Errorf("%w: %w", err, end)
		}
		return err
	}
	select {
	case <-wrote:
		if writeErr != nil {
			err := fail(writeErr)
			if n == 0 {
				err = Refused(err)
			}
			return err
		}
	case <-ctx.Done():
		err := fail(fmt.Errorf("the program does not read: %w", ctx.Err()))
		<-wrote
		return err
	}
	select {
	case answer, ok := <-k.answers:
		if !ok {
			return fail(errors.New("the program has ended without an answer"))
		}
		return i.answer(k, answer, fail)
	case <-ctx.Done():
		// A late answer would be taken for that of the next heartbeat.
		return fail(fmt.Errorf("no answer from the program: %w", ctx.Err()))
	}
}

func (i *execInjector) answer(k *keptProgram, line string, fail func(error) error) error {
	word, why, _ := strings.Cut(strings.TrimSpace(line), " ")
	err := conn.WithClass(conn.Other, fmt.Errorf("the program says: %s", conn.Quote(k.Redact(strings.TrimSpace(line)))))
	switch word {
	case "ok":
		if why == "" {
			return nil
		}
	case "refused":
		return Refused(err)
	case "unknown":
		return err
	}
	return fail(conn.WithClass(conn.Other, fmt.Errorf("%w; want ok, refused WHY or unknown WHY", err)))
}

// Check implements Checker: it looks for the program.
func (i *execInjector) Check(context.Context) error { return i.c.Program.Check() }

// Close implements Injector.
func (i *execInjector) Close() error {
	i.closed.Store(true)
	select {
	case i.turn <- struct{}{}:
	case <-time.After(closeTimeout):
		return errors.New("the program does not end")
	}
	k := i.kept
	i.kept = nil
	<-i.turn
	if k != nil {
		_ = k.end() // how it ends when it is told to is its own affair
	}
	return nil
}

const closeTimeout = 10 * time.Second
