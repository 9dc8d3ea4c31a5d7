package demo

import (
	"context"
	"os"
	"time"
)

// key is one that a person can press to switch a fault; those without change do something to the view.
type key struct {
	key    byte
	label  string
	on     func(Fault) bool
	change func(*Fault)
}

const slower = 2 * time.Second

var keys = []key{
	{'s', "slower by 2 s", func(f Fault) bool { return f.Slow > 0 }, func(f *Fault) { f.Slow += slower }},
	{'d', "drop 1 in 3", func(f Fault) bool { return f.Drop > 0 }, func(f *Fault) { f.Drop = toggle(f.Drop, 1./3) }},
	{'c', "publish nothing", func(f Fault) bool { return f.Stall }, func(f *Fault) { f.Stall = !f.Stall }},
	{'k', "refuse", func(f Fault) bool { return f.Refuse }, func(f *Fault) { f.Refuse = !f.Refuse }},
	{'u', "twice", func(f Fault) bool { return f.Duplicate > 0 }, func(f *Fault) { f.Duplicate = toggle(f.Duplicate, 5) }},
	{'h', "heal", nil, func(f *Fault) { *f = Fault{} }},
	{'y', "YAML", nil, nil},
	{'q', "quit", nil, nil},
}

func toggle[T comparable](now, on T) T {
	var off T
	if now == off {
		return on
	}
	return off
}

const (
	ctrlC  = 3
	ctrlD  = 4
	escape = 27
)

// press does what a key means and returns true when it means the end. A key that means nothing does
// nothing.
func (s *screen) press(b byte, svc *service) (quit bool) {
	s.Hint = false
	switch b {
	case 'q', ctrlC, ctrlD:
		return true
	case 'y':
		s.ShowYAML = !s.ShowYAML
		return false
	}
	for _, k := range keys {
		if k.key == b && k.change != nil {
			svc.change(k.change)
			s.ShowYAML = false
		}
	}
	return false
}

// readKeys sends what is typed until ctx ends. When there is no more input it sends a quit.
func readKeys(ctx context.Context, in *os.File, out chan<- byte) {
	buf := make([]byte, 64)
	for ctx.Err() == nil {
		// A read of a terminal cannot be interrupted, so none is begun before there is something to read.
		if !waitInput(in, 100*time.Millisecond) {
			continue
		}
		n, err := in.Read(buf)
		typed := letters(buf[:n])
		if err != nil {
			typed = append(typed, 'q')
		}
		for _, b := range typed {
			select {
			case out <- b:
			case <-ctx.Done():
			}
		}
		if err != nil {
			return
		}
	}
}

// letters returns what was typed, in lower case and without the sequences of arrows and other keys, in
// which letters occur that nobody meant.
func letters(typed []byte) (out []byte) {
	for i := 0; i < len(typed); i++ {
		if typed[i] != escape {
			b := typed[i]
			if b >= 'A' && b <= 'Z' {
				b += 'a' - 'A'
			}
			out = append(out, b)
			continue
		}
		if i++; i < len(typed) && (typed[i] == '[' || typed[i] == 'O') {
			for i++; i < len(typed) && (typed[i] < '@' || typed[i] > '~'); i++ {
			}
		}
	}
	return out
}
