package probe

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/net/http/httpguts"

	"github.com/lag-monitor/lag-monitor/internal/conn"
)

// HTTPConfig is `inject: {http: …}`: a request for each heartbeat.
type HTTPConfig struct {
	// URL to send to; a template, for heads that take the heartbeat in the path or the query.
	URL Template `yaml:"url"`
	// Method of the request.
	Method string `yaml:"method,omitempty"`
	// Headers of the request; the values are templates. lag-monitor-heartbeat and traceparent are always
	// sent. Content-Type is application/json where nothing else is said.
	Headers map[string]Template `yaml:"headers,omitempty"`
	// Body of the request; a template. Default: {"heartbeat":"<token>"} for POST, PUT and PATCH, none for
	// other methods.
	Body Template `yaml:"body,omitempty"`
	// Accept lists the statuses that mean that the head has taken the heartbeat: codes or classes such as 2xx.
	Accept []Statuses `yaml:"accept,omitempty"`
	// Refuse lists statuses that mean that the heartbeat is certainly not in the pipeline, besides 3xx and
	// 4xx (without 408 and 409). Other statuses, 5xx above all, leave that open: a gateway answers so too
	// when the service behind it has taken the message.
	Refuse []Statuses `yaml:"refuse,omitempty"`
	// FollowRedirects sends the request on to where a 3xx answer points.
	FollowRedirects bool `yaml:"follow_redirects,omitempty"`
	// TLS settings for https.
	TLS *conn.TLS `yaml:"tls,omitempty"`
	// Auth are the credentials that are sent.
	Auth conn.HTTPAuth `yaml:",inline"`
}

// NewHTTP returns the defaults.
func NewHTTP() *HTTPConfig {
	return &HTTPConfig{Method: http.MethodPost, Accept: []Statuses{"2xx"}}
}

// Statuses is one status (202) or a class of them (2xx).
type Statuses string

// UnmarshalYAML takes a number too.
func (s *Statuses) UnmarshalYAML(unmarshal func(any) error) error {
	var code int
	if err := unmarshal(&code); err == nil {
		*s = Statuses(strconv.Itoa(code))
		return nil
	}
	return unmarshal((*string)(s))
}

// Validate reports what is neither a status nor a class.
func (s Statuses) Validate() error {
	text := string(s)
	if len(text) == 3 && text[0] >= '1' && text[0] <= '5' && strings.EqualFold(text[1:], "xx") {
		return nil
	}
	if n, err := strconv.Atoi(text); err == nil && len(text) == 3 && n >= 100 && n <= 599 {
		return nil
	}
	return fmt.Errorf("%q is not a status such as 202 nor a class such as 2xx", text)
}

func (s Statuses) has(status int) bool {
	code := strconv.Itoa(status)
	return code == string(s) || len(s) == 3 && s[0] == code[0] && strings.EqualFold(string(s[1:]), "xx")
}

func anyStatus(list []Statuses, status int) bool {
	return slices.ContainsFunc(list, func(s Statuses) bool { return s.has(status) })
}

// Validate implements Config.
func (c *HTTPConfig) Validate() error {
	var errs []error
	parts := []Template{c.URL, c.body()}
	broken := false // a template that does not render is reported once, and hides where the token is
	check := func(path string, t Template) string {
		out, err := t.Render(Sample())
		if err != nil {
			broken = true
			errs = append(errs, conn.Field(path, "%w", err))
		}
		return string(out)
	}
	check("body", c.body())
	if u := check("url", c.URL); !broken || u != "" {
		errs = append(errs, conn.Prefix("url", conn.HTTPURL(u)))
	}
	if !httpguts.ValidHeaderFieldName(c.Method) || strings.ToUpper(c.Method) != c.Method || c.Method == http.MethodConnect {
		errs = append(errs, conn.Field("method", "%q is not a method of HTTP: use POST, PUT, PATCH or GET, say", c.Method))
	}
	for name, t := range c.Headers {
		parts = append(parts, t)
		path := "headers." + name
		if v := check(path, t); !httpguts.ValidHeaderFieldValue(v) {
			errs = append(errs, conn.Field(path, "holds characters that a header cannot have"))
		}
		errs = append(errs, conn.Prefix(path, conn.HeaderName(name)))
		if strings.EqualFold(name, "Authorization") {
			errs = append(errs, conn.Field(path, "use basic_auth, bearer_token or secret_headers, so that the secret is not in the file"))
		}
	}
	if !broken && !c.URL.IsZero() {
		errs = append(errs, conn.Prefix("body", CheckToken(parts...)))
	}
	if len(c.Accept) == 0 {
		errs = append(errs, conn.Field("accept", "lists at least one status such as 202 or class such as 2xx"))
	}
	for i, s := range c.Accept {
		errs = append(errs, conn.Prefix("accept."+strconv.Itoa(i), s.Validate()))
	}
	for i, s := range c.Refuse {
		errs = append(errs, conn.Prefix("refuse."+strconv.Itoa(i), s.Validate()))
	}
	errs = append(errs, conn.Prefix("tls", c.TLS.Validate()), c.Auth.Validate())
	return errors.Join(errs...)
}

var defaultBody = MustTemplate(DefaultBody)

// body returns the template of the body, which may be empty.
func (c *HTTPConfig) body() Template {
	if c.Body.IsZero() {
		switch strings.ToUpper(c.Method) {
		case http.MethodPost, http.MethodPut, http.MethodPatch:
			return defaultBody
		}
	}
	return c.Body
}

// Open implements Config.
func (c *HTTPConfig) Open() (Injector, error) {
	client, err := conn.HTTPClient(c.TLS, &c.Auth, c.FollowRedirects)
	if err != nil {
		return nil, err
	}
	return &httpInjector{c: c, body: c.body(), client: client}, nil
}

type httpInjector struct {
	c      *HTTPConfig
	body   Template
	client *http.Client
	closed atomic.Bool
}

const (
	// drainAtMost and drainFor bound what is read of an answer so that its connection can be used again.
	drainAtMost = 64 << 10
	drainFor    = time.Second
)

// Inject implements Injector.
func (i *httpInjector) Inject(ctx context.Context, m *Message) error {
	if i.closed.Load() {
		return Refused(errors.New("the injector is closed"))
	}
	if err := ctx.Err(); err != nil {
		return Refused(err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var sent atomic.Bool // a connection took the request, so that it may have left
	req, redact, err := i.request(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		// The transport tries a second connection only when nothing was written to the first one: it has
		// no way to repeat a body.
		GetConn: func(string) { sent.Store(false) },
		GotConn: func(httptrace.GotConnInfo) { sent.Store(true) },
	}), m)
	if err != nil {
		return Refused(err)
	}
	resp, err := i.client.Do(req)
	if err != nil {
		err = fmt.Errorf("%s %s: %w", req.Method, conn.HTTPTarget(req.URL), conn.HTTPError(err))
		if !sent.Load() {
			return Refused(err)
		}
		return err
	}
	defer resp.Body.Close()
	// The answer is in: what is left of its body is worth a moment only.
	defer time.AfterFunc(drainFor, cancel).Stop()
	if anyStatus(i.c.Accept, resp.StatusCode) {
		_, _ = io.CopyN(io.Discard, resp.Body, drainAtMost)
		return nil
	}
	quote, _ := io.ReadAll(io.LimitReader(resp.Body, drainAtMost))
	err = conn.WithClass(conn.HTTPClass(resp.StatusCode), fmt.Errorf("%s %s: status %s: %s",
		req.Method, conn.HTTPTarget(req.URL), conn.HTTPStatusText(resp.StatusCode), conn.Quote(redact(string(quote)))))
	if i.refuses(resp.StatusCode) {
		return Refused(err)
	}
	return err
}

// refuses tells whether a status means that the head has not taken the heartbeat. Two of the 4xx do
// not: 408 also comes from gateways that gave up on the service behind them, and 409 says that the
// message is there already.
func (i *httpInjector) refuses(status int) bool {
	if anyStatus(i.c.Refuse, status) {
		return true
	}
	switch status {
	case http.StatusRequestTimeout, http.StatusConflict:
		return false
	}
	return status >= 300 && status < 500
}

func (i *httpInjector) request(ctx context.Context, m *Message) (*http.Request, func(string) string, error) {
	target, err := i.c.URL.Render(m)
	if err != nil {
		return nil, nil, fmt.Errorf("url: %w", err)
	}
	if err := conn.HTTPURL(string(target)); err != nil {
		return nil, nil, fmt.Errorf("url: %w", err)
	}
	body, err := i.body.Render(m)
	if err != nil {
		return nil, nil, fmt.Errorf("body: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, i.c.Method, string(target), nil)
	if err != nil {
		return nil, nil, err
	}
	open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
	req.Body, _ = open()
	req.ContentLength = int64(len(body))
	if i.c.FollowRedirects && len(body) > 0 {
		req.GetBody = open
	}
	for name, t := range i.c.Headers {
		v, err := t.Render(m)
		if err != nil {
			return nil, nil, fmt.Errorf("header %s: %w", name, err)
		}
		if strings.EqualFold(name, "Host") {
			req.Host = string(v)
			continue
		}
		req.Header.Set(name, string(v))
	}
	if len(body) > 0 && req.Header.Get("Content-Type") == "" {
		req.Header.Set("Content-Type", "application/json")
	}
	if req.Header.Get("User-Agent") == "" {
		req.Header.Set("User-Agent", conn.UserAgent)
	}
	req.Header.Set(Header, m.Token)
	req.Header.Set(TraceHeader, m.TraceParent)
	redact, err := i.c.Auth.Set(req)
	return req, redact, err
}

// Check implements Checker. It connects and sends nothing: whether the head takes a heartbeat is seen
// by sending one only.
func (i *httpInjector) Check(ctx context.Context) error {
	target, err := i.c.URL.Render(Sample())
	if err != nil {
		return fmt.Errorf("url: %w", err)
	}
	u, err := url.Parse(string(target))
	if err != nil {
		return errors.New("url: is not a URL")
	}
	if _, err := i.c.Auth.Set(&http.Request{Header: make(http.Header)}); err != nil {
		return err
	}
	if err := conn.HTTPReach(ctx, i.client, u); err != nil {
		return fmt.Errorf("%s: %w", conn.HTTPTarget(u), err)
	}
	return nil
}

// Close implements Injector.
func (i *httpInjector) Close() error {
	i.closed.Store(true)
	i.client.CloseIdleConnections()
	return nil
}
