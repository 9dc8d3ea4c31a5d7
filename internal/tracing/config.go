package tracing

import (
	"errors"
	"net/url"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"

	"github.com/lag-monitor/lag-monitor/internal/conn"
)

// Config says which heartbeats are traced and where their traces go. The zero value traces nothing.
type Config struct {
	// SampleRatio is the part of the heartbeats that is traced, 0 to 1.
	SampleRatio float64
	// OTLP is where the traces go; nil: nowhere. Then only the header traceparent tells of the decision.
	OTLP *OTLP
}

// OTLP is `otlp:`, a receiver of OpenTelemetry traces over HTTP.
type OTLP struct {
	// Endpoint is the receiver's address. Without a path the traces go to /v1/traces there.
	Endpoint string `yaml:"endpoint"`
	// Headers of the requests; SecretHeaders are for what must not be in the file.
	Headers map[string]string `yaml:"headers,omitempty"`
	// Timeout is for one request.
	Timeout conn.Duration `yaml:"timeout"`
	TLS     *conn.TLS     `yaml:"tls,omitempty"`
	// Resource is what is said of the monitor itself, beside service.name, service.version and
	// service.instance.id.
	Resource map[string]string `yaml:"resource,omitempty"`
	Auth     conn.HTTPAuth     `yaml:",inline"`
}

const (
	tracesPath = "/v1/traces" // by the specification of OTLP

	defaultTimeout = 10 * time.Second
	maxTimeout     = time.Minute
)

// NewOTLP returns the defaults.
func NewOTLP() *OTLP { return &OTLP{Timeout: conn.Duration(defaultTimeout)} }

// Validate reports every mistake that can be seen without the network.
func (c *OTLP) Validate() error {
	errs := []error{conn.Prefix("endpoint", conn.HTTPURL(c.Endpoint)), conn.Prefix("tls", c.TLS.Validate()), c.Auth.Validate()}
	if u, err := url.Parse(c.Endpoint); err == nil && u.Port() == "4317" {
		errs = append(errs, conn.Field("endpoint", "port 4317 is that of OTLP over gRPC; only OTLP over HTTP is spoken here, whose port is 4318"))
	}
	if c.Timeout <= 0 || time.Duration(c.Timeout) > maxTimeout {
		errs = append(errs, conn.Field("timeout", "is positive and at most %s", maxTimeout))
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
	return errors.Join(errs...)
}

// target is where requests go.
func (c *OTLP) target() (*url.URL, error) {
	u, err := url.Parse(c.Endpoint)
	if err != nil {
		return nil, errors.New("endpoint: is not a URL")
	}
	if u.Path == "" || u.Path == "/" {
		u.Path = tracesPath
	}
	return u, nil
}
