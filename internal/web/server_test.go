package web

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	toolkit "github.com/prometheus/exporter-toolkit/web"
	"golang.org/x/crypto/bcrypt"
)

// freeAddress returns an address that was free a moment ago.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func webFlags(address, file string) *toolkit.FlagConfig {
	addresses, socket := []string{address}, false
	return &toolkit.FlagConfig{WebListenAddresses: &addresses, WebSystemdSocket: &socket, WebConfigFile: &file}
}

// start runs the server until the test ends and checks that it ends well.
func start(t *testing.T, s *Server) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	listening := make(chan struct{})
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, func() { close(listening) }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	select {
	case <-listening:
	case err := <-done:
		done <- nil
		t.Fatal(err)
	case <-time.After(10 * time.Second):
		t.Fatal("not listening")
	}
}

func webConfig(t *testing.T) (file string, roots *x509.CertPool) {
	t.Helper()
	dir := t.TempDir()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	hash, err := bcrypt.GenerateFromPassword([]byte("pass"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{
		"cert.pem": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		"key.pem":  pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}),
		"web.yaml": fmt.Appendf(nil, `
tls_server_config: {cert_file: cert.pem, key_file: key.pem}
http_server_config: {headers: {Strict-Transport-Security: max-age=600, Content-Security-Policy: "default-src 'self'"}}
basic_auth_users: {oncall: %q}
`, hash),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots = x509.NewCertPool()
	roots.AddCert(cert)
	return filepath.Join(dir, "web.yaml"), roots
}

func TestServerWithTLSAndAuth(t *testing.T) {
	file, roots := webConfig(t)
	addr := freeAddress(t)
	src := &fakeSource{status: someStatus()}
	log := slog.New(slog.DiscardHandler)
	start(t, NewServer(newTestHandler(src), webFlags(addr, file), log))
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: 10 * time.Second}
	for _, route := range []string{
		"GET /", "GET /metrics", "GET /config", "GET /api/v1/status", "GET /debug/pprof/", "GET /-/healthy", "GET /-/ready", "GET /probes/slow", "GET /assets/app.js",
		"GET /api/v1/probes", "GET /api/v1/probes/slow", "GET /api/v1/sinks", "GET /api/v1/openapi.yaml", "GET /api/v1/events",
		"POST /api/v1/probes/slow/pause?for=1h", "POST /api/v1/probes/slow/resume", "POST /-/reload",
	} {
		method, path, _ := strings.Cut(route, " ")
		for password, want := range map[string]int{"": 401, "wrong": 401, "pass": 200} {
			r, err := http.NewRequest(method, "https://"+addr+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			if password != "" {
				r.SetBasicAuth("oncall", password)
			}
			resp, err := client.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			var body []byte
			if path != "/api/v1/events" || want != 200 { // which has no end
				body, _ = io.ReadAll(resp.Body)
			}
			resp.Body.Close()
			if want == 401 && (strings.Contains(string(body), "slow") || strings.Contains(string(body), "eu-1") || len(src.pauses)+src.reloads > 0) {
				t.Errorf("%s with password %q shows or does something: %q, reloads %d, %s", path, password, src.pauses, src.reloads, body)
			}
			src.set(func(f *fakeSource) { f.pauses, f.reloads = nil, 0 })
			if resp.StatusCode != want {
				t.Errorf("%s with password %q: %d, want %d", path, password, resp.StatusCode, want)
			}
			if got := resp.Header.Get("Content-Security-Policy"); got != "default-src 'self'" {
				t.Errorf("the web configuration's header is overwritten with %q", got)
			}
		}
	}
}

// TestServerFilesAreReplaced: a new certificate and a new password count from the next connection and the
// next request on, without a restart.
func TestServerFilesAreReplaced(t *testing.T) {
	file, roots := webConfig(t)
	addr := freeAddress(t)
	start(t, NewServer(newTestHandler(&fakeSource{status: someStatus()}), webFlags(addr, file), slog.New(slog.DiscardHandler)))
	get := func(roots *x509.CertPool, password string) (int, error) {
		tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, ForceAttemptHTTP2: true}
		defer tr.CloseIdleConnections()
		r, err := http.NewRequest("GET", "https://"+addr+"/-/ready", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.SetBasicAuth("oncall", password)
		resp, err := (&http.Client{Transport: tr, Timeout: time.Minute}).Do(r)
		if err != nil {
			return 0, err
		}
		defer resp.Body.Close()
		if resp.ProtoMajor != 2 {
			t.Errorf("%s", resp.Proto)
		}
		return resp.StatusCode, nil
	}
	if status, err := get(roots, "pass"); status != 200 {
		t.Fatal(status, err)
	}
	other, newRoots := webConfig(t)
	for _, name := range []string{"cert.pem", "key.pem"} {
		b, err := os.ReadFile(filepath.Join(filepath.Dir(other), name))
		if err == nil {
			err = os.WriteFile(filepath.Join(filepath.Dir(file), name), b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if status, err := get(newRoots, "pass"); status != 200 {
		t.Errorf("with the new certificate: %d, %v", status, err)
	}
	if _, err := get(roots, "pass"); err == nil {
		t.Error("the old certificate is still shown")
	}
	hash, err := bcrypt.GenerateFromPassword([]byte("new"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, fmt.Appendf(nil, "tls_server_config: {cert_file: cert.pem, key_file: key.pem}\nbasic_auth_users: {oncall: %q}\n", hash), 0o600); err != nil {
		t.Fatal(err)
	}
	for password, want := range map[string]int{"new": 200, "pass": 401} {
		if status, err := get(newRoots, password); status != want {
			t.Errorf("password %s: %d, %v; want %d", password, status, err, want)
		}
	}
}

func TestHealthServerNeedsNoLogin(t *testing.T) {
	addr := freeAddress(t)
	start(t, NewHealthServer(NewHealthHandler(&fakeSource{}), addr, slog.New(slog.DiscardHandler)))
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport}).Get("http://" + addr + "/-/ready")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 200 {
		t.Errorf("%d, want 200", resp.StatusCode)
	}
}

func TestServerErrors(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	bad := filepath.Join(t.TempDir(), "web.yaml")
	if err := os.WriteFile(bad, []byte("basic_auth: {}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ addr, file, want string }{
		{taken.Addr().String(), "", "address already in use"},
		{freeAddress(t), bad, "field basic_auth not found"},
		{freeAddress(t), filepath.Join(t.TempDir(), "none"), "no such file"},
		{"nowhere", "", "missing port"},
	} {
		s := NewServer(http.NotFoundHandler(), webFlags(c.addr, c.file), slog.New(slog.DiscardHandler))
		err := s.Run(t.Context(), func() { t.Errorf("%v: listening", c) })
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: error %v, want %q", c, err, c.want)
		}
	}
}

// An answer under way when the server is told to stop is still given.
func TestServerDrains(t *testing.T) {
	addr := freeAddress(t)
	inside, release := make(chan struct{}), make(chan struct{})
	h := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		close(inside)
		<-release
		_, _ = w.Write([]byte("whole"))
	})
	ctx, cancel := context.WithCancel(t.Context())
	listening := make(chan struct{})
	done := make(chan error, 1)
	s := NewServer(h, webFlags(addr, ""), slog.New(slog.DiscardHandler))
	go func() { done <- s.Run(ctx, func() { close(listening) }) }()
	<-listening
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	got := make(chan string, 1)
	go func() {
		resp, err := (&http.Client{Transport: transport}).Get("http://" + addr)
		if err != nil {
			got <- err.Error()
			return
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		got <- string(b)
	}()
	<-inside
	cancel()
	time.AfterFunc(100*time.Millisecond, func() { close(release) })
	if s := <-got; s != "whole" {
		t.Errorf("answer %q", s)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}
