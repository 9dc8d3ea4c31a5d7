package probe

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync/atomic"

	"github.com/lag-monitor/lag-monitor/internal/conn"
)

// FileConfig is `inject: {file: …}`: a line at the end of a file, which a log shipper picks up.
type FileConfig struct {
	// Path of the file. It is opened for each line, so that a rotated file is left alone.
	Path string `yaml:"path"`
	// Create makes the file when it does not exist, with mode 0644.
	Create bool `yaml:"create,omitempty"`
	// Sync waits until the line is on the disk.
	Sync bool `yaml:"sync,omitempty"`
	// Body is the line, without its end; a template.
	Body Template `yaml:"body,omitempty"`
}

// NewFile returns the defaults.
func NewFile() *FileConfig { return &FileConfig{Body: defaultBody} }

// Validate implements Config.
func (c *FileConfig) Validate() error {
	errs := []error{conn.Prefix("path", conn.FilePath(c.Path))}
	if err := CheckToken(c.Body); err != nil {
		errs = append(errs, conn.Prefix("body", err))
	} else if line, err := c.Body.Render(Sample()); err == nil && bytes.ContainsAny(line, "\r\n") {
		errs = append(errs, conn.Field("body", "is one line: it must not hold a line break"))
	}
	return errors.Join(errs...)
}

// Open implements Config.
func (c *FileConfig) Open() (Injector, error) { return &fileInjector{c: c}, nil }

type fileInjector struct {
	c      *FileConfig
	closed atomic.Bool
	torn   atomic.Bool // our last line has no end: the disk was full
}

func (i *fileInjector) open() (*os.File, error) {
	flags := os.O_WRONLY | os.O_APPEND
	if i.c.Create {
		flags |= os.O_CREATE
	}
	f, err := os.OpenFile(i.c.Path, flags, 0o644)
	if err != nil {
		return nil, conn.FileError(err)
	}
	return f, nil
}

// Inject implements Injector. The line is one write, which does not mix with the lines of others; a write that
// takes only a part leaves open what a reader makes of it.
func (i *fileInjector) Inject(ctx context.Context, m *Message) error {
	if err := ctx.Err(); err != nil {
		return Refused(err)
	}
	if i.closed.Load() {
		return Refused(errClosed)
	}
	line, err := i.c.Body.Render(m)
	if err != nil {
		return Refused(fmt.Errorf("body: %w", err))
	}
	if bytes.ContainsAny(line, "\r\n") {
		return Refused(errors.New("body: holds a line break"))
	}
	f, err := i.open()
	if err != nil {
		return Refused(err)
	}
	line = append(line, '\n')
	ends := 0 // bytes that only end the line before, which would swallow this one
	if i.torn.Swap(false) {
		line, ends = slices.Insert(line, 0, '\n'), 1
	}
	n, err := f.Write(line)
	if n > ends && n < len(line) || n < ends {
		i.torn.Store(true)
	}
	if err == nil && i.c.Sync {
		err = f.Sync()
	}
	if c := f.Close(); err == nil {
		err = c
	}
	if err == nil {
		return nil
	}
	if err = conn.FileError(err); n <= ends {
		return Refused(err)
	}
	return err
}

// Check implements Checker.
func (i *fileInjector) Check(context.Context) error {
	f, err := i.open()
	if err != nil {
		return err
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && !info.Mode().IsRegular() {
		return conn.WithClass(conn.Other, fmt.Errorf("%s: not a regular file", i.c.Path))
	}
	return nil
}

// Close implements Injector.
func (i *fileInjector) Close() error {
	i.closed.Store(true)
	return nil
}
