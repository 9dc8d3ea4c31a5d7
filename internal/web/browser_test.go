package web

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/lag-monitor/lag-monitor/internal/servers"
)

// TestBrowser shows every scene to a real browser. browser/page.mjs says what is looked at; screenshots are in
// artefacts/ of this package, which git ignores. ONLY=live runs the checks with "live" in their names.
func TestBrowser(t *testing.T) {
	servers.Need(t)
	if testing.Short() {
		t.Skip("left out with -short: takes a minute")
	}
	mux := http.NewServeMux()
	serve := func(name string, src *fakeSource, opts Options) {
		opts.Alertmanager, opts.External = mustURL("https://alerts.example.com/"), mustURL("https://lag.example.com/")
		// Below a prefix, as a proxy would: every link has to be relative.
		mux.Handle("/"+name+"/", http.StripPrefix("/"+name, NewHandler(src, prometheus.NewRegistry(), slog.New(slog.DiscardHandler), opts)))
	}
	for name, scene := range scenes {
		st, details := scene(time.Now())
		serve(name, &fakeSource{status: st, details: details}, Options{})
	}
	live := &fakeSource{}
	serve("live", live, Options{AdminAPI: true})
	conns := struct {
		sync.Mutex
		open map[net.Conn]bool
	}{open: make(map[net.Conn]bool)}
	mux.HandleFunc("POST /control", func(_ http.ResponseWriter, r *http.Request) {
		if scene, ok := scenes[r.FormValue("scene")]; ok {
			st, details := scene(time.Now())
			live.set(func(f *fakeSource) { f.status, f.details = st, details })
		}
		if r.FormValue("cut") != "" {
			conns.Lock()
			defer conns.Unlock()
			for c := range conns.open {
				c.Close()
			}
		}
	})
	srv := httptest.NewUnstartedServer(mux)
	srv.Config.ConnState = func(c net.Conn, s http.ConnState) {
		conns.Lock()
		defer conns.Unlock()
		if conns.open[c] = true; s == http.StateClosed {
			delete(conns.open, c)
		}
	}
	srv.Start()
	defer srv.Close()
	defer srv.CloseClientConnections()

	shots, err := filepath.Abs("artefacts")
	if err != nil {
		t.Fatal(err)
	}
	out := servers.Browser(t, filepath.Join("browser", "page.mjs"), 8*time.Minute, "BASE="+srv.URL, "SHOTS="+shots, "ONLY="+os.Getenv("ONLY"))
	checks := 0
	for d := json.NewDecoder(bytes.NewReader(out)); d.More(); checks++ {
		var c struct{ Name, Error string }
		if err := d.Decode(&c); err != nil {
			t.Fatalf("%v in\n%s", err, out)
		}
		t.Run(c.Name, func(t *testing.T) {
			if c.Error != "" {
				t.Error(c.Error)
			}
		})
	}
	if checks == 0 {
		t.Error("nothing was checked")
	}
}
