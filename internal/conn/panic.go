package conn

import (
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
)

// PanicError is a panic of a driver that was contained. Its text has no stack: it is shown on pages too.
type PanicError struct {
	Value string // what was thrown, on one line, cut to 500 bytes
	Stack string
}

func (e *PanicError) Error() string { return "the driver panicked: " + e.Value }

// Contain turns a panic into a *PanicError. It is called by defer itself:
//
//	defer conn.Contain(&err)
//
// A panic on another goroutine cannot be contained by anybody but that goroutine.
func Contain(err *error) {
	v := recover()
	if v == nil {
		return
	}
	text := strings.Join(strings.Fields(fmt.Sprint(v)), " ")
	const most = 500
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + "…"
	}
	*err = &PanicError{text, string(debug.Stack())}
}

// StackOf is what a log says besides the text of err, as the arguments of slog.Logger.With: the stack if it
// was a panic, else nothing.
func StackOf(err error) []any {
	var p *PanicError
	if errors.As(err, &p) {
		return []any{"stack", p.Stack}
	}
	return nil
}
