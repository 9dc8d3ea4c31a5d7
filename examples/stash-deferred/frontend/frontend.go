package frontend

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/lag-monitor/lag-monitor/examples/stash-deferred/metrics"
	"github.com/lag-monitor/lag-monitor/examples/stash-deferred/store"
)

// The bounds of a message.
const (
	// MaxMessage is the most bytes of a message; Kinesis takes records of up to 1 MiB.
	MaxMessage = 512 << 10
	// MaxDefer is how far in the future a message may be due.
	MaxDefer = 366 * 24 * time.Hour

	maxRequest = 4 * MaxMessage // escapes in JSON take room
)

// Store is where messages are kept; *store.Store is one.
type Store interface {
	Put(ctx context.Context, due int64, id string, m store.Message) error
}

// Frontend is the HTTP handler. It is safe for concurrent use.
type Frontend struct {
	// Store gets the messages.
	Store Store
	// Stream is where a message goes that names none.
	Stream string
	// Timeout bounds one write into the store.
	Timeout time.Duration
	Metrics *metrics.Frontend
	Logger  *slog.Logger
	// Now is time.Now unless it is set.
	Now func() time.Time
}

// Accepted is the body of the answer 202.
type Accepted struct {
	ID  string `json:"id"`
	Due int64  `json:"due"` // the second, since 1970, from which on the message may come out
}

// rejection is an error of the user's, with the status of the answer.
type rejection struct {
	code int
	text string
}

func (r rejection) Error() string { return r.text }

func bad(format string, args ...any) error {
	return rejection{http.StatusBadRequest, fmt.Sprintf(format, args...)}
}

// ServeHTTP is POST /v1/messages. The body is {"expiry": 1764388805.5, "message": "…", "stream": "…"}: expiry in seconds
// since 1970, with or without a fraction; stream may be left out. Answers: 202 with Accepted; 400 with the reason; 413
// when it is too large; 503 when the store did not confirm the row.
func (f *Frontend) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	code, answer := f.take(w, r)
	f.Metrics.Requests.WithLabelValues(strconv.Itoa(code)).Inc()
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if code == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "1")
	}
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(answer) // the user is gone
}

func (f *Frontend) take(w http.ResponseWriter, r *http.Request) (code int, answer any) {
	type failed struct {
		Error string `json:"error"`
	}
	due, m, err := f.parse(http.MaxBytesReader(w, r.Body, maxRequest))
	var rejected rejection
	if errors.As(err, &rejected) {
		return rejected.code, failed{rejected.text}
	}
	id := rand.Text()
	// The write goes on when the user hangs up: half of the users that do have been told nothing, and send again.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), f.Timeout)
	defer cancel()
	began := time.Now()
	err = f.Store.Put(ctx, due, id, m)
	f.Metrics.Write.Done(time.Since(began), err)
	if err != nil {
		f.Logger.Warn("cannot write a row", "err", err)
		return http.StatusServiceUnavailable, failed{"the store did not confirm the message: send it again"}
	}
	return http.StatusAccepted, Accepted{ID: id, Due: due}
}

var streamName = regexp.MustCompile(`^[a-zA-Z0-9_.-]{1,128}$`)

// parse reads a request. Its errors are rejections.
func (f *Frontend) parse(body io.Reader) (due int64, m store.Message, err error) {
	var in struct {
		Expiry  *json.Number `json:"expiry"`
		Message *string      `json:"message"`
		Stream  *string      `json:"stream"`
	}
	d := json.NewDecoder(body)
	d.DisallowUnknownFields()
	d.UseNumber()
	err = d.Decode(&in)
	if err == nil {
		if _, more := d.Token(); more == nil {
			err = errors.New("there is something behind the object")
		} else if !errors.Is(more, io.EOF) {
			err = more
		}
	}
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return 0, m, rejection{http.StatusRequestEntityTooLarge, fmt.Sprintf("the request has more than %d bytes", maxRequest)}
	case errors.Is(err, io.EOF):
		return 0, m, bad(`the body is empty: send {"expiry": SECONDS, "message": "TEXT"}`)
	case err != nil:
		return 0, m, bad(`the body is not {"expiry": SECONDS, "message": "TEXT", "stream": "NAME"}: %s`, strings.TrimPrefix(err.Error(), "json: "))
	case in.Expiry == nil:
		return 0, m, bad("expiry is missing: the time when the message is due, in seconds since 1970")
	case in.Message == nil || *in.Message == "":
		return 0, m, bad("message is missing or empty")
	case len(*in.Message) > MaxMessage:
		return 0, m, rejection{http.StatusRequestEntityTooLarge, fmt.Sprintf("message has %d bytes; at most %d are taken", len(*in.Message), MaxMessage)}
	}
	m = store.Message{Stream: f.Stream, Body: []byte(*in.Message)}
	if in.Stream != nil {
		m.Stream = *in.Stream
	}
	if !streamName.MatchString(m.Stream) {
		return 0, m, bad("stream %q is not the name of a Kinesis stream: 1 to 128 of A-Z a-z 0-9 _ . -", m.Stream)
	}
	due, err = f.due(in.Expiry.String())
	return due, m, err
}

// due rounds an expiry up to whole seconds: keys have whole seconds, and no message may come out before it is due. Up to
// a second of the lag that users and monitors see is this rounding.
func (f *Frontend) due(expiry string) (int64, error) {
	// An exponent makes a number of any length out of a few characters.
	if len(expiry) > 32 || strings.ContainsAny(expiry, "eE") {
		return 0, bad("expiry %.40s is not a plain number of seconds", expiry)
	}
	exact, ok := new(big.Rat).SetString(expiry)
	if !ok {
		return 0, bad("expiry %.40s is not a number of seconds", expiry)
	}
	if exact.Sign() < 0 {
		return 0, bad("expiry %s is before 1970", expiry)
	}
	// The smallest whole number that is not below.
	up := new(big.Int).Add(exact.Num(), new(big.Int).Sub(exact.Denom(), big.NewInt(1)))
	up.Quo(up, exact.Denom())
	now := time.Now
	if f.Now != nil {
		now = f.Now
	}
	latest := min(now().Add(MaxDefer).Unix(), store.MaxDue)
	if !up.IsInt64() || up.Int64() > latest {
		// In milliseconds: a time since 2001.
		if s := new(big.Int).Quo(up, big.NewInt(1000)); s.IsInt64() && s.Int64() > 1e9 && s.Int64() <= latest {
			return 0, bad("expiry %s is in milliseconds, as it seems: seconds since 1970 are wanted", expiry)
		}
		return 0, bad("expiry %s is more than %d days in the future", expiry, int(MaxDefer.Hours()/24))
	}
	return up.Int64(), nil
}
