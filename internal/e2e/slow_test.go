package e2e_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/servers"
)

// TestSlowClients holds every listener under more bad connections than it has room for. Each kind of
// client is answered all the same, and the process does not grow with its enemies.
func TestSlowClients(t *testing.T) {
	t.Parallel()
	servers.Need(t)
	hook, health := servers.FreeAddr(t), servers.FreeAddr(t)
	d := startDaemon(t, fmt.Sprintf("sinks: {out: {webhook: {listen: %q}}}\nprobes: {p: {sinks: [out]}}\n", hook), "--web.health-listen-address="+health)
	d.await(t, "the listener is there", func(s scrape) bool { return s.Sum("sink_up") == 1 })

	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	attackers := 0
	defer func() {
		stop()
		for range attackers {
			<-ended
		}
	}()
	for addr, n := range map[string]int{d.addr: 400, health: 150, hook: 150} {
		for i := range n {
			attackers++
			go func() {
				defer func() { ended <- struct{}{} }()
				for ctx.Err() == nil {
					annoy(ctx, addr, i)
				}
			}()
		}
	}
	// 4,000 more that never say a word: they are let go as others come.
	var idle []net.Conn
	defer func() {
		for _, c := range idle {
			c.Close()
		}
	}()
	for range 4000 {
		// Those of the backlog that are never accepted run into the timeout.
		c, err := net.DialTimeout("tcp", hook, 2*time.Millisecond)
		if err == nil {
			idle = append(idle, c)
		}
	}

	honest := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
	for what, ask := range map[string]func() (*http.Response, error){
		"a scrape": func() (*http.Response, error) { return honest.Get("http://" + d.addr + "/metrics") },
		"a probe":  func() (*http.Response, error) { return honest.Get("http://" + health + "/-/ready") },
		"the pipeline": func() (*http.Response, error) {
			return honest.Post("http://"+hook, "text/plain", strings.NewReader("x"))
		},
	} {
		failed := 0
		for range 6 {
			resp, err := ask()
			if err != nil {
				failed++
				t.Logf("%s: %v", what, err)
				continue
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			if resp.StatusCode/100 != 2 {
				t.Errorf("%s: %s", what, resp.Status)
			}
		}
		if failed > 2 {
			t.Errorf("%s was kept out %d times of 6", what, failed)
		}
	}
	var s scrape
	eventually(t, "a scrape", func() bool {
		var err error
		s, err = d.tryScrape()
		return err == nil
	})
	if fds := s.Scrape["process_open_fds"][0].Value; fds > 256+64+64+50 {
		t.Errorf("%v file descriptors are open", fds)
	}
	if rss := s.Scrape["process_resident_memory_bytes"][0].Value; rss > 150<<20 {
		t.Errorf("%.0f MB resident", rss/(1<<20))
	}
	if n := s.Sum("sink_errors_total"); n != 0 || s.Sum("sink_up") != 1 {
		t.Errorf("the sink is up: %v, %v errors", s.Sum("sink_up"), n)
	}
}

// annoy opens a connection and keeps it as long as it can, in one of several ways.
func annoy(ctx context.Context, addr string, i int) {
	c, err := net.DialTimeout("tcp", addr, time.Second)
	if err != nil {
		time.Sleep(50 * time.Millisecond)
		return
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	const post = "POST / HTTP/1.1\r\nHost: x\r\n"
	drip := "x"
	switch i % 7 {
	case 0: // says nothing
		drip = ""
	case 1: // a header that does not end
		_, err = io.WriteString(c, "GET /metrics HTTP/1.1\r\nX-Slow: ")
	case 2: // a body that does not end
		_, err = io.WriteString(c, post+"Content-Length: 100000\r\n\r\n")
	case 3: // a length beyond all bounds
		_, err = io.WriteString(c, post+"Content-Length: 9223372036854775807\r\n\r\n")
		drip = strings.Repeat("x", 1000)
	case 4: // chunks without end
		_, err = io.WriteString(c, post+"Transfer-Encoding: chunked\r\n\r\n")
		drip = "400\r\n" + strings.Repeat("x", 1024) + "\r\n"
	case 5: // garbage, one behind the other
		drip = strings.Repeat("\x16\x03\x01\r\n\r\nGET\r\n\r\n", 50)
	case 6: // a request, and then silence
		_, err = io.WriteString(c, "GET /-/healthy HTTP/1.1\r\nHost: x\r\n\r\n")
		drip = ""
	}
	if drip == "" && err == nil {
		_, _ = io.Copy(io.Discard, c)
		return
	}
	for err == nil {
		select {
		case <-ctx.Done():
			return
		case <-time.After(300 * time.Millisecond):
		}
		_, err = io.WriteString(c, drip)
	}
}
