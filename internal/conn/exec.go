package conn

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"
)

// Exec is a program that is one end of a pipeline.
type Exec struct {
	// Command is the program and its arguments. No shell takes part; name one where it is wanted.
	Command []string `yaml:"command"`
	// Env are further variables of its environment, from secrets. Of the daemon's own it gets PATH, HOME, LANG, TZ and
	// TMPDIR only: the rest may hold what is no business of this program.
	Env map[string]Secret `yaml:"env,omitempty"`
}

var keptEnv = []string{"PATH", "HOME", "LANG", "TZ", "TMPDIR"}

const (
	// execGrace is how long a program may take to end after SIGTERM. An injection must return soon after its time
	// is over.
	execGrace = 500 * time.Millisecond
	// execTail is how much is kept of what a program says of its failure.
	execTail = 4 << 10
)

// Validate reports every mistake as a FieldError.
func (c *Exec) Validate() error {
	var errs []error
	switch {
	case len(c.Command) == 0:
		errs = append(errs, Field("command", "is required: a list of the program and its arguments"))
	case c.Command[0] == "":
		errs = append(errs, Field("command[0]", "names no program"))
	}
	for i, a := range c.Command {
		if strings.ContainsRune(a, 0) {
			errs = append(errs, Field(fmt.Sprintf("command[%d]", i), "must not hold a zero byte"))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.Env)) {
		if name == "" || strings.ContainsAny(name, "=\x00") {
			errs = append(errs, Field("env", "%q cannot be the name of a variable", name))
			continue
		}
		errs = append(errs, Prefix("env."+name, c.Env[name].Validate()))
	}
	return errors.Join(errs...)
}

// A Program is a program that was prepared to run once. Its Wait tells of a failure in words.
type Program struct {
	*exec.Cmd
	redact Redactor
	said   tail
}

// Program prepares the program. It ends with ctx: SIGTERM for it and all that it has started, and after half a
// second SIGKILL. extra are further variables, as NAME=value.
func (c *Exec) Program(ctx context.Context, extra ...string) (*Program, error) {
	env := make([]string, 0, len(keptEnv)+len(c.Env)+len(extra))
	for _, name := range keptEnv {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	var secrets []string
	for _, name := range slices.Sorted(maps.Keys(c.Env)) {
		v, err := c.Env[name].Read()
		if err != nil {
			return nil, WithClass(Auth, fmt.Errorf("env.%s: %w", name, err))
		}
		secrets = append(secrets, v)
		env = append(env, name+"="+v)
	}
	p := &Program{Cmd: exec.CommandContext(ctx, c.Command[0], c.Command[1:]...), redact: NewRedactor(secrets...)}
	p.Env, p.Stderr, p.WaitDelay = slices.Concat(env, extra), &p.said, execGrace
	ownGroup(p.Cmd)
	return p, nil
}

// Start starts it. Whoever has started it calls Wait, once.
func (p *Program) Start() error {
	err := p.Cmd.Start()
	switch {
	case err == nil:
		return nil
	case errors.Is(err, exec.ErrNotFound), errors.Is(err, fs.ErrNotExist):
		return WithClass(Missing, err)
	case errors.Is(err, fs.ErrPermission):
		return WithClass(Auth, err)
	}
	return WithClass(Other, err)
}

// Wait waits for the end, and sees to it that nothing of it is left. The error has the end of what the program
// wrote to its standard error, without secrets.
func (p *Program) Wait() error {
	err := p.Cmd.Wait()
	endGroup(p.Cmd)
	if err == nil {
		return nil
	}
	text := p.redact.Text(p.said.String())
	if text = strings.TrimSpace(text); text != "" {
		err = fmt.Errorf("%w: %s", err, Quote(text))
	}
	return WithClass(Other, err)
}

// tail keeps the end of what is written to it.
type tail struct {
	mu sync.Mutex
	b  []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	if over := len(t.b) - execTail; over > 0 {
		t.b = append(t.b[:0], t.b[over:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.b)
}

// Redact takes the program's secrets out of what it has said.
func (p *Program) Redact(s string) string { return p.redact.Text(s) }

// Check reports whether there is such a program.
func (c *Exec) Check() error {
	_, err := exec.LookPath(c.Command[0])
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrPermission):
		return WithClass(Auth, err)
	}
	return WithClass(Missing, err)
}
