package conn

import (
	"bytes"
	"compress/gzip"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func secretFile(t *testing.T, value string) Secret {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, []byte(value), 0o600); err != nil {
		t.Fatal(err)
	}
	return Secret{File: path}
}

// TestRedirects: credentials and addresses stay with the host that they are meant for.
func TestRedirects(t *testing.T) {
	var got http.Header
	other := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got = r.Header.Clone() }))
	defer other.Close()
	target, hops := "", 0
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = r.Header.Clone()
		if r.URL.Path == "/end" {
			return
		}
		if hops++; target == "" {
			http.Redirect(w, r, fmt.Sprintf("/%d", hops), http.StatusTemporaryRedirect)
			return
		}
		http.Redirect(w, r, target, http.StatusTemporaryRedirect)
	})
	plain, encrypted := httptest.NewServer(handler), httptest.NewTLSServer(handler)
	defer plain.Close()
	defer encrypted.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pemOf(encrypted.Certificate()), 0o600); err != nil {
		t.Fatal(err)
	}

	auth := &HTTPAuth{BearerToken: secretFile(t, "the token"), SecretHeaders: map[string]Secret{"x-api-key": secretFile(t, "the key")}}
	for _, c := range []struct {
		what, from, to string
		follow         bool
		err            string
		status         int
		credentials    bool
	}{
		{"the same host", plain.URL, "/end", true, "", 200, true},
		{"another host", plain.URL, other.URL + "/end", true, "", 200, false},
		{"not told to", plain.URL, other.URL, false, "", 307, true},
		{"for ever", plain.URL, "", true, "more than 5 redirects", 0, true},
		{"from https to http", encrypted.URL, plain.URL, true, "a redirect from https to http is not followed", 0, true},
		{"another scheme altogether", plain.URL, "file:///etc/passwd", true, `unsupported protocol scheme "file"`, 0, true},
	} {
		target, hops, got = c.to, 0, nil
		client, err := HTTPClient(&TLS{CAFile: ca}, auth, c.follow)
		if err != nil {
			t.Fatal(err)
		}
		r, err := http.NewRequest("GET", c.from+"/start?key=in-the-query", nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := auth.Set(r); err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(r)
		client.CloseIdleConnections()
		if c.err != "" {
			if err == nil || HTTPError(err).Error() != c.err {
				t.Errorf("%s: error %v; want %s", c.what, err, c.err)
			}
		} else if err != nil || resp.StatusCode != c.status {
			t.Errorf("%s: %v, %v", c.what, resp, err)
		}
		if resp != nil {
			resp.Body.Close()
		}
		if hops > maxRedirects+1 {
			t.Errorf("%s: %d redirects were followed", c.what, hops)
		}
		if has := got.Get("Authorization") != "" || got.Get("X-Api-Key") != ""; has != c.credentials || got.Get("Referer") != "" {
			t.Errorf("%s: the last request has the headers %v", c.what, got)
		}
	}
}

func pemOf(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}

// TestAnswersAreBounded: a server cannot make a client hold more than it has asked for.
func TestAnswersAreBounded(t *testing.T) {
	var bomb bytes.Buffer
	z := gzip.NewWriter(&bomb)
	_, _ = io.CopyN(z, zeros{}, 256<<20)
	z.Close()
	for what, c := range map[string]struct {
		handler http.HandlerFunc
		err     string
	}{
		"a long header": {func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("X", strings.Repeat("x", 80<<10)) }, "server response headers exceeded 65536 bytes; aborted"},
		"many headers": {func(w http.ResponseWriter, _ *http.Request) {
			for i := range 10_000 {
				w.Header().Set(fmt.Sprint("X-", i), "x")
			}
		}, "server response headers exceeded 65536 bytes; aborted"},
		"endless hints": {func(w http.ResponseWriter, _ *http.Request) {
			for range 100_000 {
				w.WriteHeader(http.StatusEarlyHints)
			}
		}, ""},
		"a compressed bomb": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			_, _ = w.Write(bomb.Bytes())
		}, ""},
	} {
		s := httptest.NewServer(c.handler)
		client, err := HTTPClient(nil, &HTTPAuth{}, false)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Get(s.URL)
		if c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
			t.Errorf("%s: %v; want %s", what, err, c.err)
		}
		if err == nil {
			// What a caller reads through a limit is all that is ever unpacked.
			if n, err := io.Copy(io.Discard, io.LimitReader(resp.Body, 1000)); n > 1000 || err != nil {
				t.Errorf("%s: %d bytes, %v", what, n, err)
			}
			resp.Body.Close()
		}
		client.CloseIdleConnections()
		s.CloseClientConnections()
		s.Close()
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// TestRedact: a server that repeats what it was sent does not bring it into an error.
func TestRedact(t *testing.T) {
	const secret = "pa ss/w&rd?"
	for what, auth := range map[string]*HTTPAuth{
		"basic":  {BasicAuth: &BasicAuth{Username: "u", Password: secretFile(t, secret)}},
		"bearer": {BearerToken: secretFile(t, secret)},
		"header": {SecretHeaders: map[string]Secret{"X-Key": secretFile(t, secret)}},
	} {
		r := httptest.NewRequest("GET", "/", nil)
		redact, err := auth.Set(r)
		if err != nil {
			t.Fatal(err)
		}
		for _, form := range []string{secret, "pa+ss%2Fw%26rd%3F", "pa%20ss%2Fw&rd%3F", "cGEgc3MvdyZyZD8=", r.Header.Get("Authorization") + r.Header.Get("X-Key")} {
			if out := redact("you said " + form + "!"); out != "you said <secret>!" {
				t.Errorf("%s: %q becomes %q", what, form, out)
			}
		}
	}
	t.Setenv("NOTHING", "")
	redact, err := (&HTTPAuth{BearerToken: Secret{Env: "NOTHING"}}).Set(httptest.NewRequest("GET", "/", nil))
	if err != nil || redact("abc") != "abc" {
		t.Errorf("an empty secret hides everything: %q, %v", redact("abc"), err)
	}
}

func TestSecretFileIsBounded(t *testing.T) {
	if _, err := (Secret{File: "/dev/zero"}).Read(); err == nil || err.Error() != "secret file /dev/zero is longer than 65536 bytes" {
		t.Errorf("%v", err)
	}
}
