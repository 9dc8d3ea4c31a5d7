package conn

import (
	"context"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/net/http/httpguts"
)

// UserAgent is what the monitor calls itself to HTTP servers.
const UserAgent = "lag-monitor"

// BasicAuth is the `basic_auth:` block.
type BasicAuth struct {
	Username string `yaml:"username"`
	Password Secret `yaml:"password"`
}

// HTTPAuth are the credentials of an HTTP request: what a client sends and what a server asks for.
// Secrets are read anew for each request, so that a rotated one is seen without a reload.
type HTTPAuth struct {
	BasicAuth     *BasicAuth        `yaml:"basic_auth,omitempty"`     // user name and password
	BearerToken   Secret            `yaml:"bearer_token,omitempty"`   // sent as `Authorization: Bearer …`
	SecretHeaders map[string]Secret `yaml:"secret_headers,omitempty"` // headers whose value is a secret, such as X-Api-Key
}

// Validate reports incomplete or contradicting credentials.
func (a *HTTPAuth) Validate() error {
	var errs []error
	if a.BasicAuth != nil {
		if a.BasicAuth.Username == "" {
			errs = append(errs, Field("basic_auth.username", "is required"))
		}
		errs = append(errs, Prefix("basic_auth.password", a.BasicAuth.Password.Validate()))
	}
	if !a.BearerToken.IsZero() {
		errs = append(errs, Prefix("bearer_token", a.BearerToken.Validate()))
		if a.BasicAuth != nil {
			errs = append(errs, Field("bearer_token", "cannot be combined with basic_auth"))
		}
	}
	for name, s := range a.SecretHeaders {
		errs = append(errs, Prefix("secret_headers."+name, errors.Join(s.Validate(), HeaderName(name))))
		if strings.EqualFold(name, "Authorization") && (a.BasicAuth != nil || !a.BearerToken.IsZero()) {
			errs = append(errs, Field("secret_headers."+name, "cannot be combined with basic_auth or bearer_token"))
		}
	}
	return errors.Join(errs...)
}

// HeaderName checks the name of a header that a person may set.
func HeaderName(name string) error {
	if !httpguts.ValidHeaderFieldName(name) {
		return fmt.Errorf("%q is not a name of an HTTP header", name)
	}
	switch http.CanonicalHeaderKey(name) {
	case "Content-Length", "Transfer-Encoding", "Connection", "Upgrade", "Trailer", "Te":
		return errors.New("is set by the HTTP client itself")
	}
	return nil
}

// headers returns the headers that carry the credentials.
func (a *HTTPAuth) headers() (http.Header, error) {
	h := make(http.Header)
	if a.BasicAuth != nil {
		password, err := a.BasicAuth.Password.Read()
		if err != nil {
			return nil, fmt.Errorf("basic_auth: %w", err)
		}
		r := http.Request{Header: h}
		r.SetBasicAuth(a.BasicAuth.Username, password)
	}
	if !a.BearerToken.IsZero() {
		token, err := a.BearerToken.Read()
		if err != nil {
			return nil, fmt.Errorf("bearer_token: %w", err)
		}
		h.Set("Authorization", "Bearer "+token)
	}
	for name, s := range a.SecretHeaders {
		v, err := s.Read()
		if err != nil {
			return nil, fmt.Errorf("secret_headers: %s: %w", name, err)
		}
		h.Set(name, v)
	}
	return h, nil
}

// Set puts the credentials into a request. It returns a function that takes them out of a text, since
// a server may repeat in its answer what it was sent.
func (a *HTTPAuth) Set(r *http.Request) (redact func(string) string, err error) {
	h, err := a.headers()
	if err != nil {
		return nil, err
	}
	var hide []string
	for name, v := range h {
		r.Header[name] = v
		if !httpguts.ValidHeaderFieldValue(v[0]) {
			return nil, fmt.Errorf("the secret for header %s holds characters that a header cannot have", name)
		}
		hide = append(hide, v[0])
		if name == "Authorization" {
			if _, value, ok := strings.Cut(v[0], " "); ok {
				hide = append(hide, value)
			}
			if _, password, ok := r.BasicAuth(); ok {
				hide = append(hide, password)
			}
		}
	}
	return NewRedactor(hide...).Text, nil
}

// Allows reports whether a request carries the credentials. It takes the same time for every wrong
// value of the same length.
func (a *HTTPAuth) Allows(r *http.Request) (bool, error) {
	want, err := a.headers()
	if err != nil {
		return false, err
	}
	ok := 1
	for name, v := range want {
		ok &= subtle.ConstantTimeCompare([]byte(r.Header.Get(name)), []byte(v[0]))
	}
	return ok == 1, nil
}

// IsZero reports that there are no credentials.
func (a *HTTPAuth) IsZero() bool {
	return a.BasicAuth == nil && a.BearerToken.IsZero() && len(a.SecretHeaders) == 0
}

// HTTPURL checks an address that requests are sent to.
func HTTPURL(s string) error {
	u, err := url.Parse(s)
	switch {
	case s == "":
		return errors.New("is required")
	case err != nil:
		// The error of url.Parse repeats the address, which may hold a secret.
		return errors.New("is not a URL")
	case u.Scheme != "http" && u.Scheme != "https", u.Host == "":
		return errors.New("is not of the form http://host/path or https://host/path")
	case u.User != nil:
		return errors.New("holds a user name: use basic_auth, so that the password is not in the file")
	}
	return nil
}

// HTTPTarget is what an error says of an address: without path and query, which may hold secrets.
func HTTPTarget(u *url.URL) string { return u.Scheme + "://" + u.Host }

// maxRedirects is how many answers that point elsewhere are followed.
const maxRedirects = 5

// HTTPClient returns a client for one server. Its requests are bounded by their contexts only; it keeps
// at most a few idle connections. It follows redirects only when told to, at most five, never from https
// to http, and takes the credentials auth to no other host.
func HTTPClient(t *TLS, auth *HTTPAuth, followRedirects bool) (*http.Client, error) {
	config, err := t.Config()
	if err != nil {
		return nil, fmt.Errorf("tls: %w", err)
	}
	c := &http.Client{Transport: &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 15 * time.Second}).DialContext,
		TLSClientConfig:        config,
		TLSHandshakeTimeout:    10 * time.Second,
		ForceAttemptHTTP2:      true,
		MaxIdleConns:           16,
		MaxIdleConnsPerHost:    16,
		MaxConnsPerHost:        64,
		IdleConnTimeout:        90 * time.Second,
		MaxResponseHeaderBytes: 64 << 10,
	}}
	c.CheckRedirect = func(r *http.Request, via []*http.Request) error {
		first := via[0].URL
		switch {
		case !followRedirects:
			return http.ErrUseLastResponse
		case len(via) > maxRedirects:
			return fmt.Errorf("more than %d redirects", maxRedirects)
		case first.Scheme == "https" && r.URL.Scheme != "https":
			return errors.New("a redirect from https to http is not followed")
		}
		r.Header.Del("Referer") // the address before, whose query may hold a secret
		if r.URL.Scheme != first.Scheme || r.URL.Host != first.Host {
			r.Header.Del("Authorization")
			for name := range auth.SecretHeaders {
				r.Header.Del(name)
			}
		}
		return nil
	}
	return c, nil
}

// HTTPStatusText names a status. The words that a server sends with it could repeat a secret.
func HTTPStatusText(code int) string {
	return strings.TrimSpace(strconv.Itoa(code) + " " + http.StatusText(code))
}

// HTTPError takes the address out of an error of an http.Client, since its query may hold a secret.
func HTTPError(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

// quoteAtMost is how many bytes of an answer an error repeats.
const quoteAtMost = 200

// Quote makes the beginning of what a server said fit for an error: short, on one line, quoted.
func Quote(s string) string {
	cut := len(s) > quoteAtMost
	s = strings.ToValidUTF8(s[:min(len(s), quoteAtMost)], "")
	s = strings.Join(strings.Fields(s), " ")
	if cut {
		s += "…"
	}
	return strconv.Quote(s)
}

// HTTPClass is the class of a status that is no success.
func HTTPClass(status int) Class {
	switch status {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusProxyAuthRequired:
		return Auth
	case http.StatusNotFound, http.StatusGone:
		return Missing
	case http.StatusTooManyRequests:
		return Throttle
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return Network
	}
	return Other
}

// HTTPReach connects to the server of an address, or to the proxy in front of it, and sends nothing.
func HTTPReach(ctx context.Context, c *http.Client, u *url.URL) error {
	t := c.Transport.(*http.Transport)
	target := u
	if proxy, err := t.Proxy(&http.Request{URL: u}); err == nil && proxy != nil {
		target = proxy
	}
	port := target.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[target.Scheme]
	}
	nc, err := t.DialContext(ctx, "tcp", net.JoinHostPort(target.Hostname(), port))
	if err != nil {
		return err
	}
	defer nc.Close()
	if target != u || target.Scheme != "https" {
		return nil
	}
	config := t.TLSClientConfig.Clone()
	if config == nil {
		config = &tls.Config{}
	}
	if config.ServerName == "" {
		config.ServerName = target.Hostname()
	}
	return tls.Client(nc, config).HandshakeContext(ctx)
}

// ServerTLS is the `tls:` block of a listener.
type ServerTLS struct {
	CertFile     string `yaml:"cert_file"`                // PEM, with the intermediate certificates
	KeyFile      string `yaml:"key_file"`                 // PEM
	ClientCAFile string `yaml:"client_ca_file,omitempty"` // PEM; clients need a certificate signed by one of these
}

// Validate reports what is missing.
func (t *ServerTLS) Validate() error {
	if t == nil {
		return nil
	}
	var errs []error
	if t.CertFile == "" {
		errs = append(errs, Field("cert_file", "is required"))
	}
	if t.KeyFile == "" {
		errs = append(errs, Field("key_file", "is required"))
	}
	return errors.Join(errs...)
}

// Config reads the files. It returns nil for a nil receiver. All files are read anew at each handshake,
// so rotated ones need no reload; while they do not fit together, because somebody is in the middle of
// replacing them, the last ones that did are used.
func (t *ServerTLS) Config() (*tls.Config, error) {
	if t == nil {
		return nil, nil
	}
	c, err := t.load()
	if err != nil {
		return nil, fmt.Errorf("tls: %w", err)
	}
	var last atomic.Pointer[tls.Config]
	last.Store(c)
	// The outer one carries the session keys, which would be new for each handshake otherwise.
	outer := c.Clone()
	outer.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		if c, err := t.load(); err == nil {
			last.Store(c)
		}
		return last.Load(), nil
	}
	return outer, nil
}

func (t *ServerTLS) load() (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile)
	if err != nil {
		return nil, err
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}}
	if t.ClientCAFile != "" {
		pem, err := os.ReadFile(t.ClientCAFile)
		if err != nil {
			return nil, err
		}
		c.ClientCAs = x509.NewCertPool()
		if !c.ClientCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s holds no certificate", t.ClientCAFile)
		}
		c.ClientAuth = tls.RequireAndVerifyClientCert
		// A resumed session would keep a client whose authority has been taken out of the file.
		c.SessionTicketsDisabled = true
	}
	return c, nil
}
