package demo

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func post(h http.Handler, target, body string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, target, strings.NewReader(body)))
	return w
}

// out is what a service published, with the time since the test began.
type out struct {
	mu   sync.Mutex
	list []string
}

// take returns what was published since the last call.
func (o *out) take() []string {
	synctest.Wait()
	o.mu.Lock()
	defer o.mu.Unlock()
	list := o.list
	o.list = nil
	return list
}

// sim runs f in a bubble with a service that publishes into out.
func sim(t *testing.T, f func(svc *service, out *out, send func(name string, due time.Duration))) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		var published out
		svc := newService(func(_ context.Context, body []byte) error {
			published.mu.Lock()
			defer published.mu.Unlock()
			published.list = append(published.list, fmt.Sprintf("%s@%v", body, time.Since(began)))
			return nil
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); svc.run(ctx) }()
		h := svc.handler()
		f(svc, &published, func(name string, due time.Duration) {
			body := fmt.Sprintf(`{"expiry": %d, "message": %q}`, began.Add(due).UnixMilli(), name)
			if w := post(h, "/v1/messages", body); w.Code != http.StatusAccepted {
				t.Fatalf("%d %s", w.Code, w.Body)
			}
		})
		cancel()
		<-done
	})
}

func (o *out) is(t *testing.T, want ...string) {
	t.Helper()
	if got := o.take(); !slices.Equal(got, want) {
		t.Errorf("published %q, want %q", got, want)
	}
}

// Messages come out in the order of their expiry, a millisecond after it: what the sender cut off.
func TestServiceHoldsMessages(t *testing.T) {
	sim(t, func(_ *service, out *out, send func(string, time.Duration)) {
		send("late", 3*time.Second)
		send("early", time.Second)
		send("early too", time.Second)
		send("past", -time.Minute)
		out.is(t, "past@0s")
		time.Sleep(2 * time.Second)
		out.is(t, "early@1.001s", "early too@1.001s")
		time.Sleep(2 * time.Second)
		out.is(t, "late@3.001s")
	})
}

func TestServiceFaults(t *testing.T) {
	sim(t, func(svc *service, out *out, send func(string, time.Duration)) {
		svc.change(func(f *Fault) { f.Slow = 2 * time.Second })
		send("a", 0)
		time.Sleep(time.Second)
		out.is(t)
		time.Sleep(1500 * time.Millisecond)
		out.is(t, "a@2.001s")
		send("b", 2*time.Second)
		svc.change(func(f *Fault) { *f = Fault{} })
		out.is(t, "b@2.5s") // overdue, and at once when healed

		svc.change(func(f *Fault) { f.Stall = true })
		send("c", 0)
		time.Sleep(time.Hour)
		out.is(t)
		if n := svc.state().Held; n != 1 {
			t.Errorf("holds %d messages, want 1", n)
		}
		svc.change(func(f *Fault) { f.Stall = false })
		out.is(t, "c@1h0m2.5s")

		svc.change(func(f *Fault) { f.Drop = 1. / 3 })
		for range 10 {
			send("1", 0)
			send("2", 0)
			send("3", 0)
		}
		out.is(t, slices.Repeat([]string{"1@1h0m2.5s", "2@1h0m2.5s"}, 10)...)
		svc.change(func(f *Fault) { *f = Fault{Duplicate: 2} })
		send("7", 0)
		send("8", 0)
		if n := len(out.take()); n != 3 {
			t.Errorf("two messages came out %d times, want 3", n)
		}
		if a := svc.state(); a.Dropped != 10 || a.Duplicated != 1 || a.Held != 0 {
			t.Errorf("account %+v, want 10 dropped, 1 duplicated, none held", a)
		}
	})
}

// What NATS does not take is published later, not lost.
func TestServicePublishesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tries := 0
		svc := newService(func(context.Context, []byte) error {
			if tries++; tries < 3 {
				return errors.New("no answer")
			}
			return nil
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); svc.run(ctx) }()
		post(svc.handler(), "/v1/messages", `{"expiry": 0, "message": "x"}`)
		time.Sleep(time.Second)
		cancel()
		<-done
		if tries != 3 {
			t.Errorf("tried %d times, want 3", tries)
		}
	})
}

func TestServiceAnswers(t *testing.T) {
	now := time.Now()
	for _, tc := range []struct {
		name, target, body string
		fault              Fault
		code               int
		says               string
	}{
		{"milliseconds", "/v1/messages", fmt.Sprintf(`{"expiry": %d, "message": "x"}`, now.UnixMilli()), Fault{}, 202, ""},
		{"seconds", "/v1/messages", fmt.Sprintf(`{"expiry": %d, "message": "x"}`, now.Unix()), Fault{}, 202, ""},
		{"too far", "/v1/messages", fmt.Sprintf(`{"expiry": %d, "message": "x"}`, now.Add(2*time.Hour).Unix()), Fault{}, 400, "too far"},
		{"no JSON", "/v1/messages", "x", Fault{}, 400, "invalid character"},
		{"too long", "/v1/messages", `{"message": "` + strings.Repeat("x", mostBytes) + `"}`, Fault{}, 400, "too large"},
		{"refusing", "/v1/messages", `{"expiry": 0, "message": "x"}`, Fault{Refuse: true}, 429, "too busy"},
		{"slow", "/fault?slow=2s", "", Fault{}, 200, "slow by 2 s\n"},
		{"all", "/fault?slow=1500ms&drop=0.33&duplicate=5&stall=1&refuse=1", "", Fault{}, 200,
			"slow by 1.5 s, drops 1 in 3 messages, publishes each 5th message twice, publishes nothing, refuses new messages\n"},
		{"the rest stays", "/fault?drop=0.9", "", Fault{Stall: true}, 200, "drops 90 % of the messages, publishes nothing\n"},
		{"off", "/fault?stall=0", "", Fault{Stall: true}, 200, "none\n"},
		{"heal", "/heal", "", Fault{Stall: true, Drop: 1}, 200, "none\n"},
		{"drop 2", "/fault?drop=2", "", Fault{}, 400, "drop: is not between 0 and 1\n"},
		{"drop NaN", "/fault?drop=NaN", "", Fault{}, 400, "drop: is not between 0 and 1\n"},
		{"slow -1s", "/fault?slow=-1s", "", Fault{}, 400, "slow: is not between 0s and 1m0s\n"},
		{"slow 2", "/fault?slow=2", "", Fault{}, 400, "slow: time: missing unit"},
		{"duplicate -1", "/fault?duplicate=-1", "", Fault{}, 400, "duplicate: is negative\n"},
		{"unknown", "/fault?delay=1s", "", Fault{}, 400, "delay: is none of slow, drop, duplicate, stall, refuse\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			svc := newService(nil)
			svc.account.Fault = tc.fault
			w := post(svc.handler(), tc.target, tc.body)
			if w.Code != tc.code || !strings.Contains(w.Body.String(), tc.says) {
				t.Errorf("got %d %q, want %d %q", w.Code, w.Body, tc.code, tc.says)
			}
		})
	}
}

// Another site in a browser cannot switch faults.
func TestServiceKeepsOtherSitesOut(t *testing.T) {
	r := httptest.NewRequest(http.MethodPost, "/fault?stall=1", nil)
	r.Header.Set("Sec-Fetch-Site", "cross-site")
	w := httptest.NewRecorder()
	svc := newService(nil)
	svc.handler().ServeHTTP(w, r)
	if w.Code != http.StatusForbidden || svc.state().Fault.Stall {
		t.Errorf("got %d and fault %v", w.Code, svc.state().Fault)
	}
}

func TestServiceHoldsNoMoreThanItCan(t *testing.T) {
	svc := newService(nil)
	svc.held = make([]held, mostHeld)
	if w := post(svc.handler(), "/v1/messages", `{"expiry": 0, "message": "x"}`); w.Code != http.StatusInsufficientStorage {
		t.Errorf("got %d", w.Code)
	}
}

func TestFaultSetKeepsItsWordOnErrors(t *testing.T) {
	svc := newService(nil)
	post(svc.handler(), "/fault?"+url.Values{"stall": {"1"}, "drop": {"x"}}.Encode(), "")
	if f := svc.state().Fault; f != (Fault{}) {
		t.Errorf("a request with a mistake switched on %v", f)
	}
}
