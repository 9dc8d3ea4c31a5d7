package servers

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"
)

// SlackMessage is one message as a Slack incoming webhook gets it from Alertmanager: the text of its
// first attachment stands for that of the message when the message itself has none.
type SlackMessage struct {
	Channel   string
	Username  string
	Title     string
	TitleLink string
	Text      string
	Fallback  string
	Color     string
	Received  time.Time
	Body      string // the whole JSON
}

// SlackServer is a fake Slack incoming webhook. Its methods are safe for concurrent use.
type SlackServer struct {
	URL string // for slack_configs' api_url

	mu       sync.Mutex
	messages []SlackMessage
	status   int
	arrived  chan struct{} // closed and replaced with each message
}

// Slack starts a fake Slack webhook that accepts everything.
func Slack(t testing.TB) *SlackServer {
	t.Helper()
	s := &SlackServer{arrived: make(chan struct{})}
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	s.URL = server.URL + "/services/T000/B000/webhook"
	return s
}

// ServeHTTP takes one message, as Slack's endpoint does.
func (s *SlackServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	var payload struct {
		Channel, Username, Text string
		Attachments             []struct {
			Title     string
			TitleLink string `json:"title_link"`
			Text      string
			Fallback  string
			Color     string
		}
	}
	if err := json.Unmarshal(body, &payload); err != nil {
		http.Error(w, "invalid_payload", http.StatusBadRequest)
		return
	}
	m := SlackMessage{
		Channel: payload.Channel, Username: payload.Username, Text: payload.Text,
		Received: time.Now(), Body: string(body),
	}
	if len(payload.Attachments) > 0 {
		a := payload.Attachments[0]
		m.Title, m.TitleLink, m.Fallback, m.Color = a.Title, a.TitleLink, a.Fallback, a.Color
		if m.Text == "" {
			m.Text = a.Text
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.status != 0 {
		http.Error(w, "unavailable", s.status)
		return
	}
	s.messages = append(s.messages, m)
	close(s.arrived)
	s.arrived = make(chan struct{})
	fmt.Fprint(w, "ok")
}

// Answer makes the webhook answer with this status and record nothing; 0 makes it well again.
func (s *SlackServer) Answer(status int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status = status
}

// Messages returns all messages so far, oldest first.
func (s *SlackServer) Messages() []SlackMessage {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.messages)
}

// Wait returns the first message, old or new, that match accepts. When ctx ends before there is one,
// the error tells which messages there were.
func (s *SlackServer) Wait(ctx context.Context, match func(SlackMessage) bool) (SlackMessage, error) {
	for {
		s.mu.Lock()
		messages, arrived := slices.Clone(s.messages), s.arrived
		s.mu.Unlock()
		if i := slices.IndexFunc(messages, match); i >= 0 {
			return messages[i], nil
		}
		select {
		case <-arrived:
		case <-ctx.Done():
			return SlackMessage{}, fmt.Errorf("no such message among %d: %+v: %w", len(messages), messages, ctx.Err())
		}
	}
}
