package stage

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// Users send messages to the frontend, at a steady rate, until they are told to stop. Several at once are due at one
// moment, as with everybody who writes "at the full hour". They are safe for concurrent use.
type Users struct {
	url     string
	streams []string
	every   time.Duration // due times are multiples of it
	client  *http.Client

	cancel context.CancelFunc
	wg     sync.WaitGroup

	next              atomic.Uint64
	accepted, refused atomic.Uint64

	mu    sync.Mutex
	taken []string // messages that the frontend has accepted
}

// weights say how the traffic is spread over the streams: one is busy, most are not.
var weights = []int{0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 3, 4}

// startUsers sends so many messages a second, each due at a multiple of every, which is between one and two of them away.
func startUsers(url string, streams []string, rate int, every time.Duration) *Users {
	ctx, cancel := context.WithCancel(context.Background())
	u := &Users{
		url: url, streams: streams, every: every, cancel: cancel,
		client: &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 64}},
	}
	// Enough hands for a slow frontend; a tick that finds none free is left out.
	ticks := make(chan time.Time)
	for range min(64, rate) {
		u.wg.Go(func() {
			for range ticks {
				u.send(ctx)
			}
		})
	}
	u.wg.Go(func() {
		defer close(ticks)
		tick := time.NewTicker(time.Second / time.Duration(rate))
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case t := <-tick.C:
				select {
				case ticks <- t:
				default:
				}
			}
		}
	})
	return u
}

func (u *Users) send(ctx context.Context) {
	n := u.next.Add(1)
	message := fmt.Sprintf("message %d", n)
	due := time.Now().Truncate(u.every).Add(2 * u.every)
	body, err := json.Marshal(map[string]any{
		"expiry": due.Unix(), "message": message, "stream": u.streams[weights[n%uint64(len(weights))]%len(u.streams)],
	})
	if err != nil {
		panic(err) // text and numbers
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.url, bytes.NewReader(body))
	if err != nil {
		panic(err)
	}
	resp, err := u.client.Do(req)
	if err != nil {
		u.refused.Add(1)
		return
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body)
	if resp.StatusCode != http.StatusAccepted {
		u.refused.Add(1)
		return
	}
	u.accepted.Add(1)
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.taken) < mostTaken {
		u.taken = append(u.taken, message)
	}
}

// mostTaken bounds what is remembered of a stage that runs for days.
const mostTaken = 1_000_000

// Stop ends the traffic. It may be called twice.
func (u *Users) Stop() {
	u.cancel()
	u.wg.Wait()
	u.client.CloseIdleConnections()
}

// Accepted returns the messages that the frontend has taken, and how many it has not, or not for certain.
func (u *Users) Accepted() (messages []string, refused uint64) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.taken[:len(u.taken):len(u.taken)], u.refused.Load()
}
