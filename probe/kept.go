package probe

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

var errClosed = errors.New("the injector is closed")

// closer is a pointer to a connection.
type closer interface {
	comparable
	Close()
}

// keptLink is the one connection of an injector: made when a message needs it, and anew when it was lost. Its methods may
// be called from several goroutines.
type keptLink[L closer] struct {
	open  func(context.Context) (L, error)
	works func(L) bool  // a connection that was made works still
	turn  chan struct{} // held by whoever connects

	mu     sync.Mutex
	link   L // zero when there is none
	closed bool
}

// keep returns a connection that open makes and works looks at.
func keep[L closer](open func(context.Context) (L, error), works func(L) bool) *keptLink[L] {
	return &keptLink[L]{open: open, works: works, turn: make(chan struct{}, 1)}
}

// get returns the connection, and makes a new one when there is none or it was lost. Only one is made at a time.
func (k *keptLink[L]) get(ctx context.Context) (L, error) {
	var none L
	if l, err := k.current(); l != none || err != nil {
		return l, err
	}
	select {
	case k.turn <- struct{}{}:
		defer func() { <-k.turn }()
	case <-ctx.Done():
		return none, fmt.Errorf("connect: %w", ctx.Err())
	}
	if l, err := k.current(); l != none || err != nil {
		return l, err
	}
	l, err := k.open(ctx)
	if err != nil {
		return none, err
	}
	k.mu.Lock()
	old := k.link
	k.link = l
	closed := k.closed
	k.mu.Unlock()
	if old != none {
		old.Close()
	}
	if closed {
		l.Close()
		return none, errClosed
	}
	return l, nil
}

// current returns the connection that works, none when there is none, or errClosed.
func (k *keptLink[L]) current() (L, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	var none L
	if k.closed {
		return none, errClosed
	}
	if k.link != none && k.works(k.link) {
		return k.link, nil
	}
	return none, nil
}

// drop closes a connection, and makes the next message connect anew.
func (k *keptLink[L]) drop(l L) {
	k.mu.Lock()
	if k.link == l {
		var none L
		k.link = none
	}
	k.mu.Unlock()
	l.Close()
}

// close closes the connection for good.
func (k *keptLink[L]) close() {
	k.mu.Lock()
	var none L
	l := k.link
	k.link, k.closed = none, true
	k.mu.Unlock()
	if l != none {
		l.Close()
	}
}
