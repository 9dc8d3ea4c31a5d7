package sinks

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"

	"github.com/lag-monitor/lag-monitor/internal/conn"
	"github.com/lag-monitor/lag-monitor/internal/heartbeat"
)

// HTTPPollConfig is a sink `http_poll`: an endpoint that shows the last messages of the pipeline.
type HTTPPollConfig struct {
	// URL to get.
	URL string `yaml:"url"`
	// Headers of the request.
	Headers map[string]string `yaml:"headers,omitempty"`
	// PollInterval is the time between two requests: the precision of what is measured, and what a message
	// may be late to be seen.
	PollInterval conn.Duration `yaml:"poll_interval,omitempty"`
	// Timeout bounds one request.
	Timeout conn.Duration `yaml:"timeout,omitempty"`
	// MaxBody is the longest answer in bytes, after decompression; a longer one is an error.
	MaxBody int64 `yaml:"max_body,omitempty"`
	// Keeps says that the endpoint shows every message for longer than any outage of it or of the monitor
	// may last. Without it everything that came while the endpoint could not be asked is taken for
	// possibly unseen.
	Keeps bool `yaml:"keeps,omitempty"`
	// FollowRedirects follows a 3xx answer; otherwise it is an error.
	FollowRedirects bool `yaml:"follow_redirects,omitempty"`
	// TLS settings for https.
	TLS *conn.TLS `yaml:"tls,omitempty"`
	// Auth are the credentials that are sent.
	Auth conn.HTTPAuth `yaml:",inline"`
}

// NewHTTPPoll returns the defaults.
func NewHTTPPoll() *HTTPPollConfig {
	return &HTTPPollConfig{
		PollInterval: conn.Duration(time.Second), Timeout: conn.Duration(5 * time.Second), MaxBody: 4 << 20,
	}
}

// maxPollInterval leaves room below StallAfter for a slow answer.
const maxPollInterval = 10 * time.Second

// Validate implements Config.
func (c *HTTPPollConfig) Validate() error {
	errs := []error{conn.Prefix("url", conn.HTTPURL(c.URL))}
	if c.PollInterval < conn.Duration(10*time.Millisecond) || c.PollInterval > conn.Duration(maxPollInterval) {
		errs = append(errs, conn.Field("poll_interval", "is between 10ms and %s", maxPollInterval))
	}
	if c.Timeout <= 0 || c.Timeout > conn.Duration(maxPollInterval) {
		errs = append(errs, conn.Field("timeout", "is positive and at most %s", maxPollInterval))
	}
	if c.MaxBody < int64(heartbeat.MaxToken) || c.MaxBody > 64<<20 {
		errs = append(errs, conn.Field("max_body", "is between %d (one heartbeat) and %d bytes", heartbeat.MaxToken, 64<<20))
	}
	for name, v := range c.Headers {
		path := "headers." + name
		if !httpguts.ValidHeaderFieldValue(v) {
			errs = append(errs, conn.Field(path, "holds characters that a header cannot have"))
		}
		errs = append(errs, conn.Prefix(path, conn.HeaderName(name)))
		if strings.EqualFold(name, "Authorization") {
			errs = append(errs, conn.Field(path, "use basic_auth, bearer_token or secret_headers, so that the secret is not in the file"))
		}
	}
	errs = append(errs, conn.Prefix("tls", c.TLS.Validate()), c.Auth.Validate())
	return errors.Join(errs...)
}

// Open implements Config.
func (c *HTTPPollConfig) Open() (Sink, error) {
	u, err := url.Parse(c.URL)
	if err != nil {
		return nil, errors.New("url: is not a URL")
	}
	client, err := conn.HTTPClient(c.TLS, &c.Auth, c.FollowRedirects)
	if err != nil {
		return nil, err
	}
	return &httpPoll{c: c, u: u, client: client, seed: maphash.MakeSeed()}, nil
}

type httpPoll struct {
	c      *HTTPPollConfig
	u      *url.URL
	client *http.Client

	// shown are the tokens of the last answer, as hashes. Their number is bounded by max_body. nil: there
	// was no answer yet.
	shown map[uint64]struct{}
	seed  maphash.Seed
	etag  string
}

// Run implements Sink. What the first answer shows was there before and is nobody's; after that a
// token is delivered whenever it was not in the answer before.
func (p *httpPoll) Run(ctx context.Context, f *Feed) error {
	defer p.client.CloseIdleConnections()
	tick := time.NewTicker(time.Duration(p.c.PollInterval))
	defer tick.Stop()
	again := p.shown != nil
	for ready := false; ; {
		asked := time.Now()
		body, changed, err := p.poll(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("GET %s: %w", conn.HTTPTarget(p.u), err)
		}
		if !ready {
			ready = true
			if again && !p.c.Keeps {
				f.Gap("disconnected")
			}
			f.Ready()
		}
		if changed {
			p.deliver(f, body, p.shown == nil)
		}
		f.CaughtUp(asked)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// deliver passes on the tokens that the answer before did not show.
func (p *httpPoll) deliver(f *Feed, body []byte, first bool) {
	shown := make(map[uint64]struct{}, len(p.shown))
	f.contents(body, func(rest []byte) {
		for {
			_, token, more, ok := heartbeat.Next(rest)
			if !ok {
				return
			}
			rest = more
			sum := maphash.Bytes(p.seed, token)
			_, now := shown[sum]
			_, before := p.shown[sum]
			shown[sum] = struct{}{}
			if !now && !before && !first {
				f.Deliver(Message{Header: token})
			}
		}
	})
	if len(shown) == 0 {
		f.Skip(1)
	}
	p.shown = shown
}

// poll gets the endpoint once. changed is false when it says that its answer is the one from before.
func (p *httpPoll) poll(ctx context.Context) (body []byte, changed bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(p.c.Timeout))
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.c.URL, nil)
	if err != nil {
		return nil, false, errors.New("url: is not a URL")
	}
	for name, v := range p.c.Headers {
		req.Header.Set(name, v)
	}
	if h := req.Header.Get("Host"); h != "" {
		req.Host = h
	}
	if req.Header.Get("User-Agent") == "" {
		req.Header.Set("User-Agent", conn.UserAgent)
	}
	// What a cache holds is not what the endpoint shows now.
	req.Header.Set("Cache-Control", "no-cache")
	if p.etag != "" && p.shown != nil {
		req.Header.Set("If-None-Match", p.etag)
	}
	redact, err := p.c.Auth.Set(req)
	if err != nil {
		return nil, false, err
	}
	resp, err := p.client.Do(req)
	if err != nil {
		return nil, false, conn.HTTPError(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusNotModified && p.etag != "" && p.shown != nil {
		return nil, false, nil
	}
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		quote, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
		return nil, false, conn.WithClass(conn.HTTPClass(resp.StatusCode),
			fmt.Errorf("status %s: %s", conn.HTTPStatusText(resp.StatusCode), conn.Quote(redact(string(quote)))))
	}
	body, err = io.ReadAll(io.LimitReader(resp.Body, p.c.MaxBody+1))
	if err != nil {
		return nil, false, fmt.Errorf("read the answer: %w", err)
	}
	if int64(len(body)) > p.c.MaxBody {
		return nil, false, conn.WithClass(conn.Other, fmt.Errorf("the answer is longer than max_body, %d bytes", p.c.MaxBody))
	}
	// Only a change of the ETag tells of every change; Last-Modified has whole seconds.
	p.etag = resp.Header.Get("ETag")
	return body, true, nil
}

// Check implements Checker.
func (p *httpPoll) Check(ctx context.Context) error {
	defer p.client.CloseIdleConnections()
	probe := &httpPoll{c: p.c, u: p.u, client: p.client}
	if _, _, err := probe.poll(ctx); err != nil {
		return fmt.Errorf("GET %s: %w", conn.HTTPTarget(p.u), err)
	}
	return nil
}
