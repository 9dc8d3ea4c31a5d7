package demo

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"
)

// Account is what the service knows of itself.
type Account struct {
	Fault      Fault
	Held       int // messages that wait
	Dropped    uint64
	Duplicated uint64
	Refused    uint64
}

// service is the pipeline: it takes messages over HTTP, holds each one until its expiry and publishes
// it then. It is safe for concurrent use.
type service struct {
	publish func(context.Context, []byte) error
	changed chan struct{} // holds one when the first message, or the fault, is another one

	mu      sync.Mutex
	account Account
	held    []held // by due
	share   float64
	nth     int
}

type held struct {
	due  time.Time
	body []byte
}

const (
	mostHeld   = 10_000
	mostBytes  = 64 << 10
	mostExpiry = time.Hour
)

func newService(publish func(context.Context, []byte) error) *service {
	return &service{publish: publish, changed: make(chan struct{}, 1)}
}

// handler serves the messages of users, and the switches of the faults.
func (s *service) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/messages", s.take)
	mux.HandleFunc("POST /fault", func(w http.ResponseWriter, r *http.Request) {
		f := s.state().Fault
		if err := f.set(r.URL.Query()); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		s.change(func(old *Fault) { *old = f })
		fmt.Fprintln(w, f)
	})
	mux.HandleFunc("POST /heal", func(w http.ResponseWriter, _ *http.Request) {
		s.change(func(f *Fault) { *f = Fault{} })
		fmt.Fprintln(w, Fault{})
	})
	// A page in a browser must not be able to switch anything.
	return http.NewCrossOriginProtection().Handler(mux)
}

// take is POST /v1/messages: {"expiry": seconds or milliseconds since 1970, "message": "…"}.
func (s *service) take(w http.ResponseWriter, r *http.Request) {
	var m struct {
		Expiry  float64 `json:"expiry"`
		Message string  `json:"message"`
	}
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, mostBytes)).Decode(&m); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if m.Expiry < 1e11 { // in milliseconds that is 1973, in seconds the year 5138
		m.Expiry *= 1000
	}
	// Senders cut off what is less than a millisecond; nothing is to come out before it is due.
	due := time.UnixMilli(int64(m.Expiry) + 1)
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.account.Fault.Refuse:
		s.account.Refused++
		http.Error(w, "too busy", http.StatusTooManyRequests)
		return
	case time.Until(due) > mostExpiry:
		http.Error(w, "expiry is too far in the future", http.StatusBadRequest)
		return
	case len(s.held) >= mostHeld:
		http.Error(w, "too many messages wait", http.StatusInsufficientStorage)
		return
	}
	i, _ := slices.BinarySearchFunc(s.held, due, func(h held, due time.Time) int {
		if h.due.After(due) {
			return 1
		}
		return -1 // behind those that are due at the same moment
	})
	s.held = slices.Insert(s.held, i, held{due, []byte(m.Message)})
	if i == 0 {
		s.wake()
	}
	w.WriteHeader(http.StatusAccepted)
}

func (s *service) wake() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// change switches faults.
func (s *service) change(f func(*Fault)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(&s.account.Fault)
	s.account.Fault.Slow = min(s.account.Fault.Slow, mostSlow)
	s.wake()
}

func (s *service) state() Account {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.account
	a.Held = len(s.held)
	return a
}

// run publishes until ctx ends.
func (s *service) run(ctx context.Context) {
	for {
		body, times, wait := s.next(time.Now())
		for range times {
			for s.publish(ctx, body) != nil {
				if !sleep(ctx, 100*time.Millisecond, nil) {
					return
				}
			}
		}
		if !sleep(ctx, wait, s.changed) {
			return
		}
	}
}

// sleep returns after d or when it is woken; false when ctx has ended.
func sleep(ctx context.Context, d time.Duration, woken <-chan struct{}) bool {
	if d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-t.C:
		case <-woken:
		case <-ctx.Done():
		}
	}
	return ctx.Err() == nil
}

// next takes the message that is to come out now and says how many times it does; or, when there is
// none, how long there will be none.
func (s *service) next(now time.Time) (body []byte, times int, wait time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.account.Fault
	if len(s.held) == 0 || f.Stall {
		return nil, 0, time.Hour // change and take wake it
	}
	if wait = s.held[0].due.Add(f.Slow).Sub(now); wait > 0 {
		return nil, 0, wait
	}
	body, s.held = s.held[0].body, s.held[1:]
	if s.share += f.Drop; s.share >= 1 {
		s.share--
		s.account.Dropped++
		return nil, 0, 0
	}
	if s.nth++; f.Duplicate > 0 && s.nth%f.Duplicate == 0 {
		s.account.Duplicated++
		return body, 2, 0
	}
	return body, 1, 0
}
