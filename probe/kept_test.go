package probe

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
)

type fakeLink struct{ lost, closed atomic.Bool }

func (l *fakeLink) Close() { l.closed.Store(true) }

// All who need a connection get the same one, until it is lost.
func TestKeptLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var made []*fakeLink
		hold := make(chan error)
		k := keep(func(context.Context) (*fakeLink, error) {
			if err := <-hold; err != nil {
				return nil, err
			}
			made = append(made, new(fakeLink))
			return made[len(made)-1], nil
		}, func(l *fakeLink) bool { return !l.lost.Load() })

		// One connects, the others wait for it, and no longer than they may.
		var wg sync.WaitGroup
		for range 5 {
			wg.Go(func() {
				if l, err := k.get(t.Context()); err != nil || l != made[0] {
					t.Errorf("got %p, %v; want the first", l, err)
				}
			})
		}
		synctest.Wait()
		over, stop := context.WithCancel(t.Context())
		stop()
		if _, err := k.get(over); !errors.Is(err, context.Canceled) {
			t.Errorf("waiting ended with %v", err)
		}
		hold <- nil
		wg.Wait()

		// A lost one is replaced, and closed; a failure to connect is told, and the next one tries again.
		made[0].lost.Store(true)
		refused := errors.New("refused")
		go func() { hold <- refused; hold <- nil }()
		if _, err := k.get(t.Context()); !errors.Is(err, refused) {
			t.Errorf("got %v, want %v", err, refused)
		}
		if l, err := k.get(t.Context()); err != nil || l != made[1] || !made[0].closed.Load() {
			t.Errorf("got %p, %v; want the second, and the first closed", l, err)
		}

		// So is one that was given up; who gives up an old one leaves the new one.
		k.drop(made[1])
		go func() { hold <- nil }()
		if l, err := k.get(t.Context()); err != nil || l != made[2] || !made[1].closed.Load() {
			t.Errorf("got %p, %v; want the third, and the second closed", l, err)
		}
		k.drop(made[1])
		if l, err := k.get(t.Context()); err != nil || l != made[2] {
			t.Errorf("got %p, %v; want the third", l, err)
		}

		// Once it is closed there is none any more, not even one that was just being made.
		k.drop(made[2])
		wg.Go(func() {
			if _, err := k.get(t.Context()); !errors.Is(err, errClosed) {
				t.Errorf("got %v, want %v", err, errClosed)
			}
		})
		synctest.Wait()
		k.close()
		hold <- nil
		wg.Wait()
		if _, err := k.get(t.Context()); !errors.Is(err, errClosed) || len(made) != 4 || !made[3].closed.Load() {
			t.Errorf("got %v, %d made; want %v and 4, the last closed", err, len(made), errClosed)
		}
	})
}
