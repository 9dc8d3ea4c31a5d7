package servers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"testing"
)

// stopped is the panic that stands for the end of a test.
type stopped struct{ error }

// outside is a testing.TB for a program, since the servers of this package are started for a test. Like a test it
// belongs to one goroutine.
type outside struct {
	testing.TB // for the methods that nobody calls
	ctx        context.Context
	out        io.Writer
	cleanups   []func()
	failed     bool
}

// Outside calls f with a testing.TB that logs to out. A fatal failure ends f and becomes the error; whatever happens,
// all cleanups are done.
func Outside(ctx context.Context, out io.Writer, f func(testing.TB)) (err error) {
	o := &outside{ctx: ctx, out: out}
	defer func() {
		for len(o.cleanups) > 0 {
			last := o.cleanups[len(o.cleanups)-1]
			o.cleanups = o.cleanups[:len(o.cleanups)-1]
			last()
		}
	}()
	defer func() {
		switch v := recover().(type) {
		case nil:
		case stopped:
			o.failed = true
			err = v.error
		default:
			panic(v)
		}
	}()
	f(o)
	if o.failed {
		return errors.New("something went wrong, see above")
	}
	return nil
}

func (o *outside) Helper()                  {}
func (o *outside) Name() string             { return "outside" }
func (o *outside) Context() context.Context { return o.ctx }
func (o *outside) Failed() bool             { return o.failed }
func (o *outside) Cleanup(f func())         { o.cleanups = append(o.cleanups, f) }

func (o *outside) TempDir() string {
	dir, err := os.MkdirTemp("", "lag-monitor-")
	if err != nil {
		o.Fatal(err)
	}
	o.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func (o *outside) Log(args ...any)                 { fmt.Fprintln(o.out, args...) }
func (o *outside) Logf(format string, args ...any) { fmt.Fprintf(o.out, format+"\n", args...) }

func (o *outside) Error(args ...any) {
	o.failed = true
	o.Log(args...)
}

func (o *outside) Errorf(format string, args ...any) {
	o.failed = true
	o.Logf(format, args...)
}

func (o *outside) Fatal(args ...any)                 { panic(stopped{errors.New(fmt.Sprint(args...))}) }
func (o *outside) Fatalf(format string, args ...any) { panic(stopped{fmt.Errorf(format, args...)}) }
func (o *outside) Skipf(format string, args ...any)  { o.Fatalf(format, args...) }
