package web

import (
	"bytes"
	"compress/gzip"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// most is how large the status page of a thousand probes may be.
const most = 500_000

func TestPageOfAThousandProbes(t *testing.T) {
	h := newTestHandler(&fakeSource{status: thousand(time.Now())})
	page := get(t, h, "GET", "/")
	if n := page.Body.Len(); n > most {
		t.Errorf("%d bytes, want %d at most", n, most)
	} else {
		t.Logf("%d bytes", n)
	}
	if n := strings.Count(page.Body.String(), `href="probes/tenant-`); n != 1000 {
		t.Errorf("%d probes", n)
	}
	zipped := get(t, h, "GET", "/", "Accept-Encoding", "gzip")
	if got := zipped.Header().Get("Content-Encoding"); got != "gzip" {
		t.Fatalf("encoding %q", got)
	}
	t.Logf("%d bytes compressed", zipped.Body.Len())
	z, err := gzip.NewReader(zipped.Body)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(z)
	if err != nil || !bytes.Contains(b, []byte("</html>")) {
		t.Errorf("%v: %d bytes", err, len(b))
	}
}

func BenchmarkPage(b *testing.B) {
	for name, path := range map[string]string{"list of 1000": "/", "status of 1000": "/api/v1/status", "probe": "/probes/orders"} {
		b.Run(name, func(b *testing.B) {
			src := &fakeSource{status: thousand(time.Now())}
			if name == "probe" {
				src.status, src.details = pipelines(time.Now(), "dropped")
			}
			// Each request makes the page anew, which readers within a second share otherwise.
			h := newHandler(src, prometheus.NewRegistry(), slog.New(slog.DiscardHandler), Options{}, 0)
			r := httptest.NewRequest("GET", path, nil)
			n := 0
			for b.Loop() {
				w := httptest.NewRecorder()
				h.ServeHTTP(w, r)
				if n = w.Body.Len(); w.Code != http.StatusOK {
					b.Fatal(w.Code)
				}
			}
			b.ReportMetric(float64(n), "bytes")
		})
	}
}
