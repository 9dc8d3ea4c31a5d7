package sinks

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/lag-monitor/lag-monitor/internal/conn"
	"github.com/lag-monitor/lag-monitor/internal/heartbeat"
)

func secretFile(t testing.TB, value string) conn.Secret {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, []byte(value), 0o600); err != nil {
		t.Fatal(err)
	}
	return conn.Secret{File: path}
}

func zipped(b []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	w.Write(b)
	w.Close()
	return out.Bytes()
}

// runWebhook runs a webhook sink on a free port until the test ends.
func runWebhook(t *testing.T, change func(*WebhookConfig)) (addr string, feed *Feed, got *taker) {
	t.Helper()
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) })
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr = ln.Addr().String()
	ln.Close()
	c := NewWebhook()
	c.Listen = addr
	change(c)
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	s, err := c.Open()
	if err != nil {
		t.Fatal(err)
	}
	got = &taker{}
	feed = NewFeed(got, nil)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- s.Run(ctx, feed) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	waitUntil(t, "ready", func() bool { return feed.Stats().Ready })
	return addr, feed, got
}

func TestWebhookAnswers(t *testing.T) {
	const maxBody = 2000
	w := &webhook{c: NewWebhook()}
	w.c.Path, w.c.MaxBody = "/in", maxBody
	password, bearer, key := secretFile(t, "pw"), secretFile(t, "tok"), secretFile(t, "k")
	basic := conn.HTTPAuth{BasicAuth: &conn.BasicAuth{Username: "u", Password: password}}
	long := strings.Repeat("x", maxBody+1)
	full := strings.Repeat("x", maxBody-len(tokenOf(1))) + tokenOf(1)
	for _, c := range []struct {
		name, method, path, body string
		header                   map[string]string
		auth                     conn.HTTPAuth
		chunked                  bool
		status                   int
		count                    Kind
	}{
		{name: "token in the body", body: `{"m":"` + tokenOf(1) + `"}`, status: 204, count: Heartbeat},
		{name: "as long as allowed", body: full, status: 204, count: Heartbeat},
		{name: "token in the header", header: map[string]string{"lag-monitor-heartbeat": tokenOf(1)}, body: "x", status: 204, count: Heartbeat},
		{name: "token in both", header: map[string]string{"lag-monitor-heartbeat": tokenOf(1)}, body: tokenOf(1), status: 204, count: Heartbeat},
		{name: "damaged", body: tokenOf(1)[:40], status: 204, count: Corrupt},
		{name: "ordinary", body: "an order", status: 204, count: Other},
		{name: "empty", body: "", status: 204, count: Other},
		{name: "put", method: "PUT", body: "x", status: 204, count: Other},
		{name: "gzip", header: map[string]string{"Content-Encoding": "gzip"}, body: string(zipped([]byte(tokenOf(1)))), status: 204, count: Heartbeat},
		{name: "no gzip", header: map[string]string{"Content-Encoding": "gzip"}, body: "x", status: 400, count: -1},
		{name: "cut gzip", header: map[string]string{"Content-Encoding": "gzip"}, body: string(zipped([]byte(full))[:30]), status: 400, count: -1},
		{name: "bomb", header: map[string]string{"Content-Encoding": "gzip"}, body: string(zipped([]byte(long))), status: 413, count: -1},
		{name: "brotli", header: map[string]string{"Content-Encoding": "br"}, body: "x", status: 415, count: -1},
		{name: "too long", body: long, status: 413, count: -1},
		{name: "too long, chunked", body: long, chunked: true, status: 413, count: -1},
		{name: "wrong path", path: "/in/x", body: tokenOf(1), status: 404, count: -1},
		{name: "wrong method", method: "GET", status: 405, count: -1},
		{name: "no credentials", auth: basic, body: tokenOf(1), status: 401, count: -1},
		{name: "wrong password", auth: basic, header: map[string]string{"Authorization": "Basic dTp4eA=="}, body: tokenOf(1), status: 401, count: -1},
		{name: "right password", auth: basic, header: map[string]string{"Authorization": "Basic dTpwdw=="}, body: tokenOf(1), status: 204, count: Heartbeat},
		{name: "wrong bearer", auth: conn.HTTPAuth{BearerToken: bearer}, header: map[string]string{"Authorization": "Bearer to"}, status: 401, count: -1},
		{name: "right bearer", auth: conn.HTTPAuth{BearerToken: bearer}, header: map[string]string{"Authorization": "Bearer tok"}, status: 204, count: Other},
		{name: "wrong key", auth: conn.HTTPAuth{SecretHeaders: map[string]conn.Secret{"X-Key": key}}, header: map[string]string{"X-Key": "K"}, status: 401, count: -1},
		{name: "right key", auth: conn.HTTPAuth{SecretHeaders: map[string]conn.Secret{"X-Key": key}}, header: map[string]string{"X-Key": "k"}, status: 204, count: Other},
		{name: "unreadable secret", auth: conn.HTTPAuth{BearerToken: conn.Secret{File: "/nonexistent/token"}}, status: 500, count: -1},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.method == "" {
				c.method = "POST"
			}
			if c.path == "" {
				c.path = "/in"
			}
			w.c.Auth = c.auth
			f := NewFeed(&taker{}, nil)
			r := httptest.NewRequest(c.method, c.path, strings.NewReader(c.body))
			if c.chunked {
				r.ContentLength = -1
			}
			for k, v := range c.header {
				r.Header.Set(k, v)
			}
			rec := httptest.NewRecorder()
			w.handler(f).ServeHTTP(rec, r)
			if rec.Code != c.status {
				t.Errorf("status %d (%q), want %d", rec.Code, rec.Body, c.status)
			}
			var want [kindCount]uint64
			if c.count >= 0 {
				want[c.count] = 1
			}
			if got := f.Stats().Messages; got != want {
				t.Errorf("messages by kind are %v, want %v", got, want)
			}
			if strings.Contains(rec.Body.String(), "/nonexistent") {
				t.Errorf("the answer tells where the secret is: %q", rec.Body)
			}
		})
	}
}

// Slow and idle clients lose their connection, and no more than max_connections are served.
// TestWebhookKnowsTheTime wants each arrival to come with a proof of its own moment.
func TestWebhookKnowsTheTime(t *testing.T) {
	addr, feed, got := runWebhook(t, func(*WebhookConfig) {})
	waitUntil(t, "caught up", func() bool { return !feed.Stats().CaughtUp.IsZero() })
	for seq := range uint64(4) {
		began := time.Now()
		resp, err := http.Post("http://"+addr+"/", "text/plain", strings.NewReader(tokenOf(seq)))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		got.mu.Lock()
		proofs := got.proofs
		got.mu.Unlock()
		if len(proofs) != int(seq)+1 || proofs[seq].Before(began) {
			t.Errorf("arrival %d: proven up to %v; want at least %v", seq, proofs, began)
		}
	}
	http.DefaultClient.CloseIdleConnections()
}

func TestWebhookSlowClients(t *testing.T) {
	addr, feed, _ := runWebhook(t, func(c *WebhookConfig) {
		c.ReadTimeout = conn.Duration(200 * time.Millisecond)
		c.IdleTimeout = conn.Duration(200 * time.Millisecond)
		c.MaxConnections = 2
	})
	var slow []net.Conn
	for _, begin := range []string{
		"POST / HTTP/1.1\r\nHost: x\r\nX-Slow: ",
		"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{",
	} {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		io.WriteString(c, begin)
		slow = append(slow, c)
	}
	resp, err := http.Post("http://"+addr+"/", "text/plain", strings.NewReader("x"))
	if err != nil {
		t.Fatalf("a third connection was not served: %v", err)
	}
	resp.Body.Close()
	http.DefaultClient.CloseIdleConnections()
	for _, c := range slow {
		c.SetReadDeadline(time.Now().Add(time.Minute))
		if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a slow connection was not closed: %v", err)
		}
	}
	big, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer big.Close()
	fmt.Fprintf(big, "POST / HTTP/1.1\r\nHost: x\r\nX-Big: %s\r\n\r\n", strings.Repeat("x", 32<<10))
	big.SetReadDeadline(time.Now().Add(3 * time.Second))
	answer, _ := io.ReadAll(big)
	if !bytes.Contains(answer, []byte(" 431 ")) {
		t.Errorf("oversized headers are answered with %q", answer)
	}
	if n := feed.Stats().Messages[Other]; n != 1 {
		t.Errorf("%d messages delivered, want 1", n)
	}
}

func TestWebhookTLS(t *testing.T) {
	cert, key, pool := certificate(t)
	addr, feed, _ := runWebhook(t, func(c *WebhookConfig) {
		c.TLS = &conn.ServerTLS{CertFile: cert, KeyFile: key, ClientCAFile: cert}
	})
	for _, withCertificate := range []bool{true, false} {
		config := &tls.Config{RootCAs: pool}
		if withCertificate {
			pair, err := tls.LoadX509KeyPair(cert, key)
			if err != nil {
				t.Fatal(err)
			}
			config.Certificates = []tls.Certificate{pair}
		}
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true}}
		resp, err := client.Post("https://"+addr+"/", "text/plain", strings.NewReader(tokenOf(1)))
		if withCertificate {
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != http.StatusNoContent || resp.ProtoMajor != 1 {
				t.Errorf("%s %s", resp.Proto, resp.Status)
			}
		} else if err == nil {
			resp.Body.Close()
			t.Errorf("a client without a certificate got %s", resp.Status)
		}
		client.CloseIdleConnections()
	}
	if n := feed.Stats().Messages[Heartbeat]; n != 1 {
		t.Errorf("%d heartbeats, want 1", n)
	}
}

// TestWebhookCertificateIsReplaced on the disk, one file after the other, without a reload; so is the list
// of those who may send.
func TestWebhookCertificateIsReplaced(t *testing.T) {
	cert, key, pool := certificate(t)
	newCert, newKey, newPool := certificate(t)
	addr, _, _ := runWebhook(t, func(c *WebhookConfig) {
		c.TLS = &conn.ServerTLS{CertFile: cert, KeyFile: key, ClientCAFile: cert}
	})
	replace := func(path, by string) {
		t.Helper()
		b, err := os.ReadFile(by)
		if err == nil {
			err = os.WriteFile(path, b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	cache := tls.NewLRUClientSessionCache(8)
	oldPair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	newPair, err := tls.LoadX509KeyPair(newCert, newKey)
	if err != nil {
		t.Fatal(err)
	}
	try := func(roots *x509.CertPool, pair tls.Certificate) error {
		tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}, ClientSessionCache: cache}}
		defer tr.CloseIdleConnections()
		resp, err := (&http.Client{Transport: tr, Timeout: time.Minute}).Post("https://"+addr+"/", "text/plain", strings.NewReader("x"))
		if err == nil {
			resp.Body.Close()
		}
		return err
	}
	for _, step := range []struct {
		what   string
		do     func()
		roots  *x509.CertPool
		pair   tls.Certificate
		others *x509.CertPool
	}{
		{"at the start", func() {}, pool, oldPair, newPool},
		{"only the certificate is new: what fits together stays", func() { replace(cert, newCert) }, pool, oldPair, newPool},
		{"the key too: and the authority was in the same file", func() { replace(key, newKey) }, newPool, newPair, pool},
		{"a broken file", func() { replace(cert, newKey) }, newPool, newPair, pool},
	} {
		step.do()
		if err := try(step.roots, step.pair); err != nil {
			t.Errorf("%s: %v", step.what, err)
		}
		other := newPair
		if step.roots == newPool {
			other = oldPair
		}
		if err := try(step.roots, other); err == nil {
			t.Errorf("%s: a client is let in whom nobody vouches for", step.what)
		}
		if err := try(step.others, step.pair); err == nil {
			t.Errorf("%s: the other certificate is shown", step.what)
		}
	}
}

// certificate makes a self-signed certificate for 127.0.0.1.
func certificate(t *testing.T) (cert, key string, pool *x509.CertPool) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage:    x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	privateDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	for path, b := range map[string][]byte{cert: certPEM, key: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: privateDER})} {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pool = x509.NewCertPool()
	pool.AppendCertsFromPEM(certPEM)
	return cert, key, pool
}

func TestWebhookValidate(t *testing.T) {
	for _, c := range []struct {
		change func(*WebhookConfig)
		want   string
	}{
		{func(c *WebhookConfig) { c.Listen = "" }, "listen: is required: an address such as :9900 or 127.0.0.1:9900"},
		{func(c *WebhookConfig) { c.Listen = "9900" }, `listen: "9900" is not an address such as :9900 or 127.0.0.1:9900`},
		{func(c *WebhookConfig) { c.Path = "x" }, `path: "x" is not a path such as /heartbeats`},
		{func(c *WebhookConfig) { c.MaxBody = 10 }, fmt.Sprintf("max_body: is between %d (one heartbeat) and 67108864 bytes", heartbeat.MaxToken)},
		{func(c *WebhookConfig) { c.MaxConnections = 0 }, "max_connections: is between 1 and 10000"},
		{func(c *WebhookConfig) { c.ReadTimeout = 0 }, "read_timeout: is a positive duration: without it a slow client would hold a connection for ever"},
		{func(c *WebhookConfig) { c.IdleTimeout = -1 }, "idle_timeout: is a positive duration: without it an idle client would hold a connection for ever"},
		{func(c *WebhookConfig) { c.TLS = &conn.ServerTLS{} }, "tls.cert_file: is required\ntls.key_file: is required"},
		{func(c *WebhookConfig) { c.Auth.BearerToken = conn.Secret{File: "a", Env: "b"} }, "bearer_token: a secret has one source: {file: PATH} or {env: NAME}"},
	} {
		config := NewWebhook()
		config.Listen = ":9900"
		c.change(config)
		if err := config.Validate(); err == nil || err.Error() != c.want {
			t.Errorf("got %v\nwant %s", err, c.want)
		}
	}
}

// Whatever is around a heartbeat in a body, compressed or not, it is found, and nothing breaks.
func FuzzWebhookBody(f *testing.F) {
	f.Add([]byte(`{"heartbeat":"`), []byte(`"}`), true, false)
	f.Add([]byte(heartbeat.Magic), []byte(heartbeat.Magic+"p."), true, true)
	f.Add([]byte{0x1f, 0x8b, 8, 0}, []byte{0xff}, false, true)
	f.Add([]byte("~lagmon1.p.AB"), []byte("~"), true, false)
	w := &webhook{c: NewWebhook()}
	w.c.MaxBody = 64 << 10
	token := []byte(tokenOf(7))
	f.Fuzz(func(t *testing.T, before, after []byte, with, compress bool) {
		body := append([]byte{}, before...)
		if with {
			// A newline ends whatever token before may have begun.
			body = append(append(append(body, '\n'), token...), '\n')
		}
		body = append(body, after...)
		length := int64(len(body))
		sent := body
		if compress {
			sent = zipped(body)
		}
		r := httptest.NewRequest("POST", "/", bytes.NewReader(sent))
		if compress {
			r.Header.Set("Content-Encoding", "gzip")
		}
		got := &taker{}
		feed := NewFeed(got, nil)
		rec := httptest.NewRecorder()
		w.handler(feed).ServeHTTP(rec, r)
		switch rec.Code {
		case http.StatusNoContent:
			if length > w.c.MaxBody {
				t.Errorf("a body of %d bytes was taken", length)
			}
			if with && len(got.seqs) == 0 {
				t.Error("the heartbeat was not found")
			}
		case http.StatusRequestEntityTooLarge:
			if length <= w.c.MaxBody && int64(len(sent)) <= w.c.MaxBody {
				t.Errorf("a body of %d bytes was too long", length)
			}
		default:
			t.Errorf("status %d: %s", rec.Code, rec.Body)
		}

		// The same bytes, when they only claim to be compressed.
		r = httptest.NewRequest("POST", "/", bytes.NewReader(body))
		r.Header.Set("Content-Encoding", "gzip")
		w.handler(feed).ServeHTTP(httptest.NewRecorder(), r)
	})
}
