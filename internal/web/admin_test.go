package web

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/lag-monitor/lag-monitor/internal/monitor"
)

func TestPause(t *testing.T) {
	const html, js = "text/html,application/xhtml+xml", "*/*"
	cannot := errors.New("probe slow: it cannot be paused: it only listens here")
	for _, c := range []struct {
		name, path, form, accept string
		err                      error
		code                     int
		did, body, location      string
	}{
		{"by query", "/api/v1/probes/slow/pause?for=1h30m", "", js, nil, 200, "pause slow 1h30m0s", `"until"`, ""},
		{"in days", "/api/v1/probes/slow/pause?for=7d", "", js, nil, 200, "pause slow 168h0m0s", `"until"`, ""},
		{"by form", "/api/v1/probes/slow/pause", "for=15m", html, nil, 303, "pause slow 15m0s", "", "../../../../probes/slow"},
		{"again", "/api/v1/probes/slow/resume", "", js, nil, 200, "resume slow", `"paused": null`, ""},
		{"again by form", "/api/v1/probes/slow/resume", "", html, nil, 303, "resume slow", "", "../../../../probes/slow"},
		{"would not survive", "/api/v1/probes/slow/pause?for=1h", "", js, fmt.Errorf("x: %w", monitor.ErrNotKept), 200, "pause slow 1h0m0s", `"warning": "x: `, ""},
		{"no time", "/api/v1/probes/slow/pause", "", js, nil, 400, "", "for how long? Say it as ?for=1h, at most 7d", ""},
		{"no duration", "/api/v1/probes/slow/pause?for=soon", "", js, nil, 400, "", `for: \"soon\" is not a duration: write a number and a unit`, ""},
		{"no unit", "/api/v1/probes/slow/pause?for=15", "", js, nil, 400, "", "is not a duration", ""},
		{"nothing", "/api/v1/probes/slow/pause?for=0s", "", js, nil, 400, "", "more than 0s, at most 7d", ""},
		{"negative", "/api/v1/probes/slow/pause?for=-1h", "", js, nil, 400, "", "more than 0s, at most 7d", ""},
		{"too long", "/api/v1/probes/slow/pause?for=169h", "", js, nil, 400, "", "169h0m0s is out of range: more than 0s, at most 7d", ""},
		{"too long by form", "/api/v1/probes/slow/pause", "for=8d", html, nil, 400, "", "For: 192h0m0s is out of range", ""},
		{"unknown", "/api/v1/probes/slwo/pause?for=1h", "", js, nil, 404, "", `did you mean \"slow\"?`, ""},
		{"unknown by form", "/api/v1/probes/slwo/pause", "for=1h", html, nil, 404, "", `<a href="../../../../probes/slow">`, ""},
		{"cannot", "/api/v1/probes/slow/pause?for=1h", "", js, cannot, 409, "pause slow 1h0m0s", "it only listens here", ""},
		{"cannot by form", "/api/v1/probes/slow/pause", "for=1h", html, cannot, 409, "pause slow 1h0m0s", "it only listens here", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			src := &fakeSource{status: someStatus(), pauseErr: c.err}
			r := httptest.NewRequest("POST", c.path, strings.NewReader(c.form))
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			r.Header.Set("Accept", c.accept)
			w := httptest.NewRecorder()
			newTestHandler(src).ServeHTTP(w, r)
			if w.Code != c.code || !strings.Contains(w.Body.String(), c.body) || w.Header().Get("Location") != c.location {
				t.Errorf("%d, location %q: %s\nwant %d, %q: %s", w.Code, w.Header().Get("Location"), w.Body, c.code, c.location, c.body)
			}
			if got := strings.Join(src.pauses, ", "); got != c.did {
				t.Errorf("did %q, want %q", got, c.did)
			}
		})
	}
}

// TestPauseNeedsTheFlag: without it nothing is done, whoever asks, and the page has no button.
func TestPauseNeedsTheFlag(t *testing.T) {
	src := &fakeSource{status: someStatus()}
	for _, on := range []bool{false, true} {
		h := newHandler(src, prometheus.NewRegistry(), slog.New(slog.DiscardHandler), Options{AdminAPI: on}, 0)
		page := get(t, h, "GET", "/probes/slow").Body.String()
		if got := strings.Contains(page, "<button>Pause</button>"); got != on {
			t.Errorf("flag %v: button %v", on, got)
		}
		if on {
			continue
		}
		for _, path := range []string{"/api/v1/probes/slow/pause?for=1h", "/api/v1/probes/slow/resume", "/api/v1/probes/nobody/resume"} {
			w := get(t, h, "POST", path)
			if w.Code != 403 || !strings.Contains(w.Body.String(), "--web.enable-admin-api") {
				t.Errorf("%s: %d %s", path, w.Code, w.Body)
			}
			w = get(t, h, "POST", path, "Accept", "text/html")
			if w.Code != 403 || !strings.Contains(w.Body.String(), "<h1>Pausing is not offered here") {
				t.Errorf("%s by form: %d %s", path, w.Code, w.Body)
			}
		}
	}
	if len(src.pauses) > 0 {
		t.Errorf("did %q", src.pauses)
	}
}

// A probe that only listens is paused where it injects.
func TestNoButtonWithoutInjector(t *testing.T) {
	src := &fakeSource{status: someStatus()}
	src.status.Probes[2].Head = ""
	if page := get(t, newTestHandler(src), "GET", "/probes/slow").Body.String(); strings.Contains(page, "<button>Pause</button>") {
		t.Error("a button that would not work")
	}
}

func TestPauseFromAnotherSiteIsRefused(t *testing.T) {
	for site, want := range map[string]int{"cross-site": 403, "same-site": 403, "same-origin": 200, "none": 200} {
		src := &fakeSource{status: someStatus()}
		for _, what := range []string{"pause?for=1h", "resume"} {
			if got := get(t, newTestHandler(src), "POST", "/api/v1/probes/slow/"+what, "Sec-Fetch-Site", site).Code; got != want {
				t.Errorf("%s, %s: %d, want %d", what, site, got, want)
			}
		}
		if done := len(src.pauses) > 0; done != (want == 200) {
			t.Errorf("%s: did %q", site, src.pauses)
		}
	}
}

// TestPauseIsSeenAtOnce: the page that the form leads back to must not be the one from a moment ago.
func TestPauseIsSeenAtOnce(t *testing.T) {
	src := &fakeSource{status: someStatus()}
	h := NewHandler(src, prometheus.NewRegistry(), slog.New(slog.DiscardHandler), Options{AdminAPI: true})
	for _, path := range []string{"/probes/slow", "/"} {
		get(t, h, "GET", path)
	}
	get(t, h, "POST", "/api/v1/probes/slow/pause?for=1h")
	for _, path := range []string{"/probes/slow", "/"} {
		if page := get(t, h, "GET", path).Body.String(); !strings.Contains(page, "<b>paused</b>") {
			t.Errorf("%s is from before", path)
		}
	}
}

func TestFilterOfTheAPI(t *testing.T) {
	h := newTestHandler(&fakeSource{status: someStatus()})
	for query, want := range map[string][]string{
		"":                                 {"slow", "unseen", "refused", "new", "calm", "only-in"},
		"?state=trouble":                   {"slow", "unseen"},
		"?label=team%3Ddata":               {"calm"},
		"?label=team%3Ddat":                nil,
		"?q=team%3Ddat":                    {"calm"},
		"?q=KAFKA":                         {"slow"},
		"?q=http+out&state=fine":           {"calm"},
		"?q=http&state=fine":               {"calm", "only-in"},
		"?q=http&state=fine&label=none%3D": nil,
	} {
		var body struct{ Probes []probeAnswer }
		if err := json.Unmarshal(get(t, h, "GET", "/api/v1/probes"+query).Body.Bytes(), &body); err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, p := range body.Probes {
			got = append(got, p.Name)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", query, got, want)
		}
		page := get(t, h, "GET", "/"+query).Body.String()
		for _, p := range someStatus().Probes {
			if shown := strings.Contains(page, `href="probes/`+p.Name+`"`); shown != slices.Contains(want, p.Name) {
				t.Errorf("page %s: %s shown: %v", query, p.Name, shown)
			}
		}
	}
}
