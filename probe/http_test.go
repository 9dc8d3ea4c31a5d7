package probe

import (
	"context"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/lag-monitor/lag-monitor/internal/conn"
)

func openHTTP(t *testing.T, c *HTTPConfig) Injector {
	t.Helper()
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	in, err := c.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := in.Close(); err != nil {
			t.Error(err)
		}
	})
	return in
}

func inject(t *testing.T, in Injector, within time.Duration) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	return in.Inject(ctx, Sample())
}

func secretFile(t *testing.T, value string) conn.Secret {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, []byte(value+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return conn.Secret{File: path}
}

func TestHTTPRequest(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	var got *http.Request
	var body string
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		got, body = r, string(b)
	}))
	defer s.Close()
	token := Sample().Token
	for _, c := range []struct {
		name                     string
		config                   HTTPConfig
		uri, method, body, ctype string
		headers                  map[string]string
	}{
		{name: "defaults", config: HTTPConfig{URL: MustTemplate(s.URL + "/in")}, uri: "/in", method: "POST",
			body: `{"heartbeat":"` + token + `"}`, ctype: "application/json"},
		{name: "token in the query", config: HTTPConfig{Method: "GET", URL: MustTemplate(s.URL + "/?t={{ .Token }}&d={{ .Due.Unix }}")},
			uri: "/?t=" + token + "&d=1700000000", method: "GET"},
		{name: "token in a header", config: HTTPConfig{Method: "PUT", URL: MustTemplate(s.URL), Body: MustTemplate("plain"),
			Headers: map[string]Template{"X-Trace": MustTemplate("a {{ .Token }}"), "Content-Type": MustTemplate("text/plain"), "Host": MustTemplate("front.example")}},
			uri: "/", method: "PUT", body: "plain", ctype: "text/plain", headers: map[string]string{"X-Trace": "a " + token}},
		{name: "basic", config: HTTPConfig{URL: MustTemplate(s.URL), Auth: conn.HTTPAuth{BasicAuth: &conn.BasicAuth{Username: "u", Password: secretFile(t, "p")}}},
			uri: "/", method: "POST", body: `{"heartbeat":"` + token + `"}`, ctype: "application/json", headers: map[string]string{"Authorization": "Basic dTpw"}},
		{name: "bearer and key", config: HTTPConfig{URL: MustTemplate(s.URL), Auth: conn.HTTPAuth{BearerToken: secretFile(t, "tok"),
			SecretHeaders: map[string]conn.Secret{"x-api-key": secretFile(t, "key")}}},
			uri: "/", method: "POST", body: `{"heartbeat":"` + token + `"}`, ctype: "application/json",
			headers: map[string]string{"Authorization": "Bearer tok", "X-Api-Key": "key"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := NewHTTP()
			if c.config.Method == "" {
				c.config.Method = d.Method
			}
			c.config.Accept = d.Accept
			if err := inject(t, openHTTP(t, &c.config), 5*time.Second); err != nil {
				t.Fatal(err)
			}
			if got.RequestURI != c.uri || got.Method != c.method || body != c.body || got.Header.Get("Content-Type") != c.ctype {
				t.Errorf("%s %s %q %q, want %s %s %q %q", got.Method, got.RequestURI, got.Header.Get("Content-Type"), body, c.method, c.uri, c.ctype, c.body)
			}
			if got.Header.Get(Header) != token || got.Header.Get(TraceHeader) != Sample().TraceParent {
				t.Errorf("headers %v carry no heartbeat or trace", got.Header)
			}
			for k, v := range c.headers {
				if got.Header.Get(k) != v {
					t.Errorf("header %s is %q, want %q", k, got.Header.Get(k), v)
				}
			}
			if c.name == "token in a header" && got.Host != "front.example" {
				t.Errorf("host is %q", got.Host)
			}
		})
	}
}

// What an answer means for the heartbeat, and what the error says of it.
func TestHTTPStatuses(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	status := 0
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Location", "/elsewhere")
		w.WriteHeader(status)
		_, password, _ := r.BasicAuth()
		io.WriteString(w, "you sent "+r.Header.Get("Authorization")+" with "+password+"\nand "+r.Header.Get("X-Key")+" "+strings.Repeat("x", 500))
	}))
	defer s.Close()
	c := NewHTTP()
	c.URL = MustTemplate(s.URL + "/secret-path?key=secret-query")
	c.Accept = []Statuses{"200", "202"}
	c.Refuse = []Statuses{"503"}
	c.Auth = conn.HTTPAuth{BasicAuth: &conn.BasicAuth{Username: "u", Password: secretFile(t, "secret-password")},
		SecretHeaders: map[string]conn.Secret{"X-Key": secretFile(t, "secret-key")}}
	in := openHTTP(t, c)
	for _, want := range []struct {
		status  int
		outcome string
		class   conn.Class
	}{
		{200, "accepted", ""}, {202, "accepted", ""},
		{201, "unknown", conn.Other}, {302, "refused", conn.Other}, {307, "refused", conn.Other},
		{400, "refused", conn.Other}, {401, "refused", conn.Auth}, {403, "refused", conn.Auth}, {404, "refused", conn.Missing},
		{408, "unknown", conn.Other}, {409, "unknown", conn.Other}, {410, "refused", conn.Missing}, {413, "refused", conn.Other},
		{425, "refused", conn.Other}, {429, "refused", conn.Throttle},
		{500, "unknown", conn.Other}, {502, "unknown", conn.Network}, {503, "refused", conn.Network}, {504, "unknown", conn.Network},
	} {
		status = want.status
		err := inject(t, in, 5*time.Second)
		outcome := "unknown"
		switch {
		case err == nil:
			outcome = "accepted"
		case IsRefused(err):
			outcome = "refused"
		}
		if outcome != want.outcome {
			t.Errorf("status %d: %s, want %s", status, outcome, want.outcome)
		}
		if err == nil {
			continue
		}
		if got := conn.ClassOf(err); got != want.class {
			t.Errorf("status %d: class %s, want %s", status, got, want.class)
		}
		text := err.Error()
		if !strings.Contains(text, http.StatusText(status)) || !strings.Contains(text, "you sent") && status != 304 {
			t.Errorf("status %d: error %q says neither status nor answer", status, text)
		}
		if strings.Contains(text, "secret-") || strings.Contains(text, "dTpz") || strings.ContainsAny(text, "\n") || len(text) > 400 {
			t.Errorf("status %d: error %q is too long, has several lines or tells a secret", status, text)
		}
	}
}

// Whether the heartbeat may have left is known when no connection took it, and only then.
func TestHTTPFailures(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := ln.Addr().String()
	ln.Close()
	release := make(chan struct{})
	silent := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.ReadAll(r.Body)
		<-release
	}))
	defer silent.Close()
	defer close(release)
	rude := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		c, _, _ := w.(http.Hijacker).Hijack()
		c.Close()
	}))
	defer rude.Close()
	tlsServer := httptest.NewUnstartedServer(http.NotFoundHandler())
	tlsServer.Config.ErrorLog = log.New(io.Discard, "", 0) // it complains of the client that does not trust it
	tlsServer.StartTLS()
	defer tlsServer.Close()

	for _, c := range []struct {
		name, url string
		within    time.Duration
		refused   bool
		class     conn.Class
	}{
		{"nobody listens", "http://" + nobody, 10 * time.Second, true, conn.Network},
		{"no answer", silent.URL, 300 * time.Millisecond, false, conn.Network},
		{"closed after the request", rude.URL, 10 * time.Second, false, conn.Network},
		{"unknown certificate", tlsServer.URL, 10 * time.Second, true, conn.Auth},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := NewHTTP()
			config.URL = MustTemplate(c.url)
			began := time.Now()
			err := inject(t, openHTTP(t, config), c.within)
			if err == nil || IsRefused(err) != c.refused || conn.ClassOf(err) != c.class {
				t.Errorf("error %v of class %s, refused %t; want class %s, refused %t", err, conn.ClassOf(err), IsRefused(err), c.class, c.refused)
			}
			if took := time.Since(began); took > 9*time.Second {
				t.Errorf("took %s", took)
			}
		})
	}
}

// A request with side effects is sent once, whatever its method: a repetition would be counted as a
// duplicate made by the pipeline.
func TestHTTPSendsOnce(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	var requests atomic.Int32
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.ReadAll(r.Body)
		if requests.Add(1)%2 == 0 { // on a connection that was used before, where clients like to try again
			c, _, _ := w.(http.Hijacker).Hijack()
			c.Close()
		}
	}))
	defer s.Close()
	for _, method := range []string{"GET", "POST", "PUT", "DELETE"} {
		requests.Store(0)
		c := NewHTTP()
		c.Method, c.URL = method, MustTemplate(s.URL+"/?t={{ .Token }}")
		in := openHTTP(t, c)
		if err := inject(t, in, 5*time.Second); err != nil {
			t.Fatal(err)
		}
		if err := inject(t, in, 5*time.Second); err == nil || IsRefused(err) {
			t.Errorf("%s: error %v, want one that leaves the outcome open", method, err)
		}
		if n := requests.Load(); n != 2 {
			t.Errorf("%s: 2 injections made %d requests", method, n)
		}
	}
}

// Connections are used again, and an answer without end holds nobody up.
func TestHTTPConnections(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	var conns atomic.Int32
	endless := false
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.ReadAll(r.Body)
		for endless && r.Context().Err() == nil {
			io.WriteString(w, "more ")
			w.(http.Flusher).Flush()
			time.Sleep(10 * time.Millisecond)
		}
	}))
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			conns.Add(1)
		}
	}
	s.Start()
	defer s.Close()
	c := NewHTTP()
	c.URL = MustTemplate(s.URL)
	in := openHTTP(t, c)
	for range 20 {
		if err := inject(t, in, 5*time.Second); err != nil {
			t.Fatal(err)
		}
	}
	if n := conns.Load(); n != 1 {
		t.Errorf("20 injections took %d connections, want 1", n)
	}
	endless = true
	began := time.Now()
	if err := inject(t, in, 20*time.Second); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > drainFor+time.Second {
		t.Errorf("an endless answer took %s", took)
	}
}

func TestHTTPTLS(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	defer s.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	c := NewHTTP()
	c.URL, c.TLS = MustTemplate(s.URL), &conn.TLS{CAFile: ca}
	in := openHTTP(t, c)
	if err := inject(t, in, 5*time.Second); err != nil {
		t.Error(err)
	}
	if err := in.(Checker).Check(context.Background()); err != nil {
		t.Error(err)
	}
	c.TLS = nil
	if err := openHTTP(t, c).(Checker).Check(context.Background()); conn.ClassOf(err) != conn.Auth {
		t.Errorf("check with an unknown certificate: %v", err)
	}
}

func TestHTTPFollowsRedirectsWhenTold(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	var body string
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/" {
			http.Redirect(w, r, "/new", http.StatusTemporaryRedirect)
			return
		}
		b, _ := io.ReadAll(r.Body)
		body = string(b)
	}))
	defer s.Close()
	c := NewHTTP()
	c.URL = MustTemplate(s.URL)
	if err := inject(t, openHTTP(t, c), 5*time.Second); !IsRefused(err) || body != "" {
		t.Errorf("not told: error %v, body %q", err, body)
	}
	c.FollowRedirects = true
	if err := inject(t, openHTTP(t, c), 5*time.Second); err != nil || !strings.Contains(body, Sample().Token) {
		t.Errorf("told: error %v, body %q", err, body)
	}
}

func TestHTTPValidate(t *testing.T) {
	url := MustTemplate("http://head/")
	for _, c := range []struct {
		change func(*HTTPConfig)
		want   string
	}{
		{func(c *HTTPConfig) { c.URL = Template{} }, "url: is required"},
		{func(c *HTTPConfig) { c.URL = MustTemplate("head:80") }, "url: is not of the form http://host/path or https://host/path"},
		{func(c *HTTPConfig) { c.URL = MustTemplate("http://u:secret@head/") }, "url: holds a user name: use basic_auth, so that the password is not in the file"},
		{func(c *HTTPConfig) { c.URL = MustTemplate("http://head/%zz") }, "url: is not a URL"},
		{func(c *HTTPConfig) { c.Method = "post" }, `method: "post" is not a method of HTTP: use POST, PUT, PATCH or GET, say`},
		{func(c *HTTPConfig) { c.Method = "GET" }, "body: the heartbeat is not in the message: put {{ .Token }} into it"},
		{func(c *HTTPConfig) { c.Body = MustTemplate("none") }, "body: the heartbeat is not in the message: put {{ .Token }} into it"},
		{func(c *HTTPConfig) { c.Headers = map[string]Template{"A b": MustTemplate("x")} }, `headers.A b: "A b" is not a name of an HTTP header`},
		{func(c *HTTPConfig) { c.Headers = map[string]Template{"X": MustTemplate("a\nb")} }, "headers.X: holds characters that a header cannot have"},
		{func(c *HTTPConfig) { c.Headers = map[string]Template{"content-length": MustTemplate("1")} }, "headers.content-length: is set by the HTTP client itself"},
		{func(c *HTTPConfig) { c.Headers = map[string]Template{"authorization": MustTemplate("x")} },
			"headers.authorization: use basic_auth, bearer_token or secret_headers, so that the secret is not in the file"},
		{func(c *HTTPConfig) { c.Accept = nil }, "accept: lists at least one status such as 202 or class such as 2xx"},
		{func(c *HTTPConfig) { c.Accept = []Statuses{"2xx", "99"} }, `accept.1: "99" is not a status such as 202 nor a class such as 2xx`},
		{func(c *HTTPConfig) { c.Refuse = []Statuses{"6xx"} }, `refuse.0: "6xx" is not a status such as 202 nor a class such as 2xx`},
		{func(c *HTTPConfig) { c.TLS = &conn.TLS{CertFile: "x"} }, "tls: cert_file and key_file go together"},
		{func(c *HTTPConfig) { c.Auth.BasicAuth = &conn.BasicAuth{} },
			"basic_auth.username: is required\nbasic_auth.password: a secret has one source: {file: PATH} or {env: NAME}"},
		{func(c *HTTPConfig) {
			c.Auth.BasicAuth = &conn.BasicAuth{Username: "u", Password: conn.Secret{Env: "P"}}
			c.Auth.BearerToken = conn.Secret{Env: "T"}
		}, "bearer_token: cannot be combined with basic_auth"},
	} {
		config := NewHTTP()
		config.URL = url
		c.change(config)
		err := config.Validate()
		if err == nil || err.Error() != c.want {
			t.Errorf("got %v\nwant %s", err, c.want)
		}
		var f *conn.FieldError
		if !errors.As(err, &f) {
			t.Errorf("%v names no key", err)
		}
	}
}
