package frontend_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/lag-monitor/lag-monitor/examples/stash-deferred/emulator"
	"github.com/lag-monitor/lag-monitor/examples/stash-deferred/frontend"
	"github.com/lag-monitor/lag-monitor/examples/stash-deferred/metrics"
	"github.com/lag-monitor/lag-monitor/examples/stash-deferred/store"
)

var now = time.Unix(1_764_388_800, 0)

// written is a store that remembers.
type written struct {
	rows []string
	err  error
}

func (w *written) Put(_ context.Context, due int64, id string, m store.Message) error {
	if w.err == nil {
		w.rows = append(w.rows, fmt.Sprintf("%d %s %s", due, m.Stream, m.Body))
	}
	return w.err
}

func start(s frontend.Store) (*frontend.Frontend, *prometheus.Registry) {
	reg := prometheus.NewRegistry()
	return &frontend.Frontend{
		Store: s, Stream: "deferred", Timeout: time.Second, Metrics: metrics.NewFrontend(reg),
		Logger: slog.New(slog.DiscardHandler), Now: func() time.Time { return now },
	}, reg
}

func post(f http.Handler, body string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	f.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/v1/messages", strings.NewReader(body)))
	return w
}

func TestAccepts(t *testing.T) {
	for _, c := range []struct{ body, row string }{
		{`{"expiry": 1764388805, "message": "m"}`, "1764388805 deferred m"},
		{`{"expiry": 1764388805, "message": "m", "stream": "orders"}`, "1764388805 orders m"},
		// A message never comes out early: what is less than a second counts as one.
		{`{"expiry": 1764388805.000000001, "message": "m"}`, "1764388806 deferred m"},
		{`{"expiry": 1764388805.999999999, "message": "m"}`, "1764388806 deferred m"},
		{`{"expiry": 1764388805.000000000, "message": "m"}`, "1764388805 deferred m"},
		// It is due already.
		{`{"expiry": 0, "message": "\u00e4 \"q\""}`, `0 deferred ä "q"`},
	} {
		s := &written{}
		f, reg := start(s)
		w := post(f, c.body)
		if w.Code != http.StatusAccepted || len(s.rows) != 1 || s.rows[0] != c.row {
			t.Errorf("%s: %d %s, rows %q; want %q", c.body, w.Code, w.Body, s.rows, c.row)
		}
		var a frontend.Accepted
		if err := json.Unmarshal(w.Body.Bytes(), &a); err != nil || a.ID == "" || !strings.HasPrefix(c.row, fmt.Sprint(a.Due)) {
			t.Errorf("%s: answer %s (%v)", c.body, w.Body, err)
		}
		if n := testutil.ToFloat64(f.Metrics.Requests.WithLabelValues("202")); n != 1 {
			t.Errorf("%v requests are counted", n)
		}
		if err := testutil.GatherAndCompare(reg, strings.NewReader(`
# HELP stashdef_bigtable_row_write_total Rows that the frontend wrote to Bigtable, by result.
# TYPE stashdef_bigtable_row_write_total counter
stashdef_bigtable_row_write_total{result="failure"} 0
stashdef_bigtable_row_write_total{result="success"} 1
`), "stashdef_bigtable_row_write_total"); err != nil {
			t.Error(err)
		}
	}
}

func TestRejects(t *testing.T) {
	big := strings.Repeat("x", frontend.MaxMessage+1)
	for _, c := range []struct {
		body string
		code int
		says string
	}{
		{``, 400, "the body is empty"},
		{`[]`, 400, "the body is not"},
		{`{"expiry": 1764388805, "message": "m"`, 400, "unexpected EOF"},
		{`{"expiry": 1764388805, "message": "m"} x`, 400, "invalid character"},
		{`{"expiry": 1764388805, "message": "m"} {}`, 400, "behind the object"},
		{`{"expiry": 1764388805, "message": "m", "steam": "x"}`, 400, `unknown field \"steam\"`},
		{`{"message": "m"}`, 400, "expiry is missing"},
		{`{"expiry": null, "message": "m"}`, 400, "expiry is missing"},
		{`{"expiry": "soon", "message": "m"}`, 400, "the body is not"},
		{`{"expiry": -1, "message": "m"}`, 400, "before 1970"},
		{`{"expiry": 1e9, "message": "m"}`, 400, "not a plain number"},
		{`{"expiry": 1e999999999, "message": "m"}`, 400, "not a plain number"},
		{`{"expiry": 1764388805.` + strings.Repeat("1", 100) + `, "message": "m"}`, 400, "not a plain number"},
		{`{"expiry": 1764388805000, "message": "m"}`, 400, "in milliseconds"},
		{`{"expiry": 1864388805, "message": "m"}`, 400, "366 days in the future"},
		{`{"expiry": 99999999999999999999, "message": "m"}`, 400, "in the future"},
		{`{"expiry": 1764388805}`, 400, "message is missing"},
		{`{"expiry": 1764388805, "message": ""}`, 400, "message is missing"},
		{`{"expiry": 1764388805, "message": 5}`, 400, "the body is not"},
		{`{"expiry": 1764388805, "message": "m", "stream": ""}`, 400, "is not the name"},
		{`{"expiry": 1764388805, "message": "m", "stream": "a b"}`, 400, "is not the name"},
		{`{"expiry": 1764388805, "message": "m", "stream": "<script>\u0000"}`, 400, `\u003cscript\u003e\\x00`},
		{`{"expiry": 1764388805, "message": "` + big + `"}`, 413, "at most 524288"},
		{`{"expiry": 1764388805, "message": "` + big + big + big + big + `"}`, 413, "more than"},
	} {
		s := &written{}
		f, _ := start(s)
		w := post(f, c.body)
		if w.Code != c.code || !strings.Contains(w.Body.String(), c.says) || len(s.rows) != 0 {
			t.Errorf("%.80s: %d %s, rows %q; want %d and %q", c.body, w.Code, w.Body, s.rows, c.code, c.says)
		}
	}
}

func TestStoreDown(t *testing.T) {
	f, _ := start(&written{err: errors.New("secret address of the store")})
	w := post(f, `{"expiry": 1764388805, "message": "m"}`)
	if w.Code != http.StatusServiceUnavailable || strings.Contains(w.Body.String(), "secret") || w.Header().Get("Retry-After") == "" {
		t.Errorf("%d %s %v", w.Code, w.Body, w.Header())
	}
}

// A Bigtable that comes and goes: whoever was told 202 has a whole row, and there is no other row but of messages whose
// answer was lost.
func TestNothingIsHalfWritten(t *testing.T) {
	e, err := emulator.Start(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	s, err := store.Open(t.Context(), e.Config)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	f, _ := start(s)
	f.Timeout = 50 * time.Millisecond
	accepted, refused := map[string]bool{}, 0
	for i := range 60 {
		e.Set(emulator.Faults{Down: i/5%2 == 1})
		message := fmt.Sprintf("message %d", i)
		switch w := post(f, fmt.Sprintf(`{"expiry": 1764388805, "message": %q}`, message)); w.Code {
		case http.StatusAccepted:
			accepted[message] = true
		case http.StatusServiceUnavailable:
			refused++
		default:
			t.Errorf("%d %s", w.Code, w.Body)
		}
	}
	e.Set(emulator.Faults{})
	if len(accepted) == 0 || refused == 0 {
		t.Fatalf("%d accepted, %d refused", len(accepted), refused)
	}
	rows, _, err := s.Due(t.Context(), "", time.Unix(1_764_388_805, 0), 1000)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rows {
		if r.Err != nil {
			t.Error(r.Err)
		}
		delete(accepted, string(r.Message.Body))
	}
	if len(accepted) != 0 {
		t.Errorf("accepted, and not there: %v", accepted)
	}
}
