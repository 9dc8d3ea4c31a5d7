package conn

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials/stscreds"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go"
	"github.com/aws/smithy-go/middleware"
)

// AWS is what every transport on Amazon Web Services shares. Without keys, profile and role the
// default chain of the SDK finds credentials: environment, shared files, web identity, the task's or
// the instance's role.
type AWS struct {
	// Region of the stream or queue, for example eu-west-1. Default: the region in the ARN, else what
	// the environment or the profile says.
	Region string `yaml:"region,omitempty"`
	// Endpoint replaces the service's public address, for an interface endpoint in a VPC or a local
	// server: a URL with http or https and without a path.
	Endpoint string `yaml:"endpoint,omitempty"`
	// Profile of the shared configuration files.
	Profile string `yaml:"profile,omitempty"`
	// RoleARN is a role to assume with the credentials that were found.
	RoleARN string `yaml:"role_arn,omitempty"`
	// ExternalID that the role's trust policy asks for.
	ExternalID string `yaml:"external_id,omitempty"`
	// AccessKeyID and SecretAccessKey are static credentials; they go together. Files are read again
	// every minute, and soon after the service has called their keys expired or unknown, so rotated keys are
	// taken up without a reload.
	AccessKeyID     Secret `yaml:"access_key_id,omitempty"`
	SecretAccessKey Secret `yaml:"secret_access_key,omitempty"`
	// SessionToken of temporary static credentials.
	SessionToken Secret `yaml:"session_token,omitempty"`
	// TLS settings for the endpoint, for example the CA of a proxy.
	TLS *TLS `yaml:"tls,omitempty"`
	// RequestTimeout bounds each request, from the dial to the last byte of the answer. Default 10s.
	RequestTimeout Duration `yaml:"request_timeout,omitempty"`
}

// DefaultAWS returns the defaults.
func DefaultAWS() AWS { return AWS{RequestTimeout: Duration(10 * time.Second)} }

// Validate reports every mistake as a FieldError.
func (a *AWS) Validate() error {
	var errs []error
	if a.Endpoint != "" {
		u, err := url.Parse(a.Endpoint)
		if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.User != nil {
			errs = append(errs, Field("endpoint", "%q is not the address of a service: write http://HOST:PORT or https://HOST", a.Endpoint))
		}
	}
	if a.RoleARN != "" && !strings.HasPrefix(a.RoleARN, "arn:") {
		errs = append(errs, Field("role_arn", "%q is not an ARN: write arn:aws:iam::ACCOUNT:role/NAME", a.RoleARN))
	}
	if a.ExternalID != "" && a.RoleARN == "" {
		errs = append(errs, Field("external_id", "it has a meaning only beside role_arn"))
	}
	keys := 0
	for _, s := range []struct {
		name   string
		secret Secret
	}{{"access_key_id", a.AccessKeyID}, {"secret_access_key", a.SecretAccessKey}, {"session_token", a.SessionToken}} {
		if s.secret.IsZero() {
			continue
		}
		keys++
		if err := s.secret.Validate(); err != nil {
			errs = append(errs, Prefix(s.name, err))
		}
	}
	switch {
	case a.AccessKeyID.IsZero() && keys > 0:
		errs = append(errs, Field("access_key_id", "secret_access_key and session_token need it"))
	case a.SecretAccessKey.IsZero() && keys > 0:
		errs = append(errs, Field("secret_access_key", "access_key_id needs it"))
	}
	if keys > 0 && a.Profile != "" {
		errs = append(errs, Field("profile", "choose one of profile and access_key_id"))
	}
	if err := a.TLS.Validate(); err != nil {
		errs = append(errs, Prefix("tls", err))
	}
	if a.RequestTimeout < Duration(100*time.Millisecond) || a.RequestTimeout > Duration(time.Minute) {
		errs = append(errs, Field("request_timeout", "%s is out of range: 100ms to 1m", a.RequestTimeout))
	}
	return errors.Join(errs...)
}

// Open reads the shared files and returns the SDK's configuration and an HTTP client for the service's
// requests. arn, which may be empty, gives the region when none is configured. Nothing is retried: the
// loops do that. The client's idle connections are the caller's to close.
func (a *AWS) Open(arn string) (aws.Config, *http.Client, error) {
	// Nothing here asks the network; the deadline is for a shared file on a file system that hangs.
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	opts := []func(*awsconfig.LoadOptions) error{
		awsconfig.WithRetryer(func() aws.Retryer { return aws.NopRetryer{} }),
	}
	if a.Region != "" {
		opts = append(opts, awsconfig.WithRegion(a.Region))
	} else if parts := strings.Split(arn, ":"); len(parts) > 3 && parts[3] != "" {
		opts = append(opts, awsconfig.WithRegion(parts[3]))
	}
	if a.Profile != "" {
		opts = append(opts, awsconfig.WithSharedConfigProfile(a.Profile))
	}
	if !a.AccessKeyID.IsZero() {
		opts = append(opts, awsconfig.WithCredentialsProvider(aws.CredentialsProviderFunc(a.static)))
	}
	cfg, err := awsconfig.LoadDefaultConfig(ctx, opts...)
	if err != nil {
		return aws.Config{}, nil, fmt.Errorf("aws: %w", err)
	}
	if cfg.Region == "" {
		return aws.Config{}, nil, Field("region", "no region: name it here, in the profile or in AWS_REGION")
	}
	renew := &renewal{}
	renew.add(cfg.Credentials)
	if a.RoleARN != "" {
		role := stscreds.NewAssumeRoleProvider(sts.NewFromConfig(cfg), a.RoleARN, func(o *stscreds.AssumeRoleOptions) {
			o.RoleSessionName = "lag-monitor"
			if a.ExternalID != "" {
				o.ExternalID = aws.String(a.ExternalID)
			}
		})
		cfg.Credentials = aws.NewCredentialsCache(role)
		renew.add(cfg.Credentials)
	}
	cfg.Credentials = credentials{cfg.Credentials}
	cfg.APIOptions = append(cfg.APIOptions, renew.install)

	transport := awshttp.NewBuildableClient().GetTransport()
	if b, ok := cfg.HTTPClient.(*awshttp.BuildableClient); ok {
		transport = b.GetTransport() // with AWS_CA_BUNDLE
	}
	if a.TLS != nil {
		c, err := a.TLS.Config()
		if err != nil {
			return aws.Config{}, nil, Prefix("tls", err)
		}
		c.MinVersion = max(c.MinVersion, tls.VersionTLS12)
		transport.TLSClientConfig = c
	}
	timeout := time.Duration(a.RequestTimeout)
	dialer := &net.Dialer{Timeout: min(timeout, 5*time.Second), KeepAlive: 15 * time.Second}
	transport.DialContext = dialer.DialContext
	transport.TLSHandshakeTimeout = min(timeout, 5*time.Second)
	transport.ResponseHeaderTimeout = timeout
	transport.IdleConnTimeout = time.Minute
	// A reader of many shards polls them all every second; with the usual two idle connections it
	// would dial for nearly every request where HTTP/2 is not to be had.
	transport.MaxIdleConnsPerHost = 64
	// A request that times out does not close the HTTP/2 connection which it shares with others; the
	// ping finds out when the host behind it has vanished.
	transport.HTTP2 = &http.HTTP2Config{SendPingTimeout: 10 * time.Second, PingTimeout: 5 * time.Second}
	return cfg, &http.Client{
		Transport:     &tracking{transport},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, nil
}

func (a *AWS) static(context.Context) (aws.Credentials, error) {
	c := aws.Credentials{Source: "lag-monitor", CanExpire: true, Expires: time.Now().Add(time.Minute)}
	for _, f := range []struct {
		name   string
		secret Secret
		to     *string
	}{{"access_key_id", a.AccessKeyID, &c.AccessKeyID}, {"secret_access_key", a.SecretAccessKey, &c.SecretAccessKey}, {"session_token", a.SessionToken, &c.SessionToken}} {
		if f.secret.IsZero() {
			continue
		}
		v, err := f.secret.Read()
		if err != nil {
			return aws.Credentials{}, fmt.Errorf("%s: %w", f.name, err)
		}
		*f.to = v
	}
	return c, nil
}

// credentials marks the errors of a provider: whatever went wrong, it is a matter of access.
type credentials struct{ aws.CredentialsProvider }

func (c credentials) Retrieve(ctx context.Context) (aws.Credentials, error) {
	v, err := c.CredentialsProvider.Retrieve(ctx)
	return v, WithClass(Auth, err)
}

// renewal forgets credentials which the service calls expired or unknown, so that the next request gets those
// that have replaced them, instead of waiting until the cached ones were to expire.
type renewal struct {
	caches []*aws.CredentialsCache

	mu   sync.Mutex
	last time.Time
}

// renewAtMost is the time between two renewals. Keys that stay wrong must not make a request for new ones,
// to a service or to a file, out of each heartbeat.
const renewAtMost = 5 * time.Second

func (r *renewal) add(p aws.CredentialsProvider) {
	if c, ok := p.(*aws.CredentialsCache); ok {
		r.caches = append(r.caches, c)
	}
}

func (r *renewal) install(stack *middleware.Stack) error {
	return stack.Finalize.Add(middleware.FinalizeMiddlewareFunc("LagMonitorRenewCredentials",
		func(ctx context.Context, in middleware.FinalizeInput, next middleware.FinalizeHandler) (middleware.FinalizeOutput, middleware.Metadata, error) {
			out, meta, err := next.HandleFinalize(ctx, in)
			if staleCredentials(err) {
				r.renew(time.Now())
			}
			return out, meta, err
		}), middleware.Before)
}

func (r *renewal) renew(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now.Sub(r.last) < renewAtMost {
		return
	}
	r.last = now
	for _, c := range r.caches {
		c.Invalidate()
	}
}

// staleCredentials reports an error that other credentials may avoid. A right that is missing is not such.
func staleCredentials(err error) bool {
	var api smithy.APIError
	if !errors.As(err, &api) {
		return false
	}
	switch api.ErrorCode() {
	case "ExpiredTokenException", "ExpiredToken", "UnrecognizedClientException", "InvalidClientTokenId",
		"InvalidAccessKeyId", "InvalidSignatureException", "SignatureDoesNotMatch":
		return true
	}
	return false
}

// AWSError marks an error of the SDK with its class.
func AWSError(err error) error {
	var api smithy.APIError
	if !errors.As(err, &api) {
		return err
	}
	code := api.ErrorCode()
	if _, ok := retry.DefaultThrottleErrorCodes[code]; ok {
		return WithClass(Throttle, err)
	}
	switch code {
	case "KMSThrottlingException", "ResourceInUseException", "KMSThrottling", "KMS.ThrottlingException", "KmsThrottled", "Throttled", "OverLimit":
		return WithClass(Throttle, err)
	case "ResourceNotFoundException", "NotFound", "NotFoundException", "ResourceNotFound", "QueueDoesNotExist", "AWS.SimpleQueueService.NonExistentQueue":
		return WithClass(Missing, err)
	case "AccessDeniedException", "AccessDenied", "UnrecognizedClientException", "InvalidSignatureException",
		"SignatureDoesNotMatch", "ExpiredTokenException", "ExpiredToken", "InvalidClientTokenId",
		"IncompleteSignature", "IncompleteSignatureException", "MissingAuthenticationToken",
		"MissingAuthenticationTokenException", "NotAuthorized", "OptInRequired", "InvalidAccessKeyId",
		"KMSAccessDeniedException", "KMSDisabledException", "KMSInvalidStateException",
		"KMSNotFoundException", "AuthorizationError", "InvalidSecurity":
		return WithClass(Auth, err)
	}
	// The services spell the other errors of their keys in four ways; all say that the key is not to be used.
	if len(code) >= 3 && strings.EqualFold(code[:3], "KMS") {
		return WithClass(Auth, err)
	}
	return WithClass(Other, err)
}

// HTTPStatus returns the status with which a service answered, 0 when no answer came.
func HTTPStatus(err error) int {
	var answer interface{ HTTPStatusCode() int }
	if errors.As(err, &answer) {
		return answer.HTTPStatusCode()
	}
	return 0
}

type sentKey struct{}

// TrackSent returns a context for one request through a client of Open, and a value that becomes true
// when the request's header has been written to a connection. While it is false, the other side
// cannot have acted on the request. Requests for credentials do not count.
func TrackSent(ctx context.Context) (context.Context, *atomic.Bool) {
	sent := new(atomic.Bool)
	return context.WithValue(ctx, sentKey{}, sent), sent
}

// tracking is the transport behind TrackSent.
type tracking struct{ *http.Transport }

func (t *tracking) RoundTrip(r *http.Request) (*http.Response, error) {
	if sent, ok := r.Context().Value(sentKey{}).(*atomic.Bool); ok {
		r = r.WithContext(httptrace.WithClientTrace(r.Context(), &httptrace.ClientTrace{
			WroteHeaders: func() { sent.Store(true) },
		}))
	}
	resp, err := t.Transport.RoundTrip(r)
	if err == nil && resp.StatusCode >= 300 {
		redactAnswer(r, resp)
	}
	return resp, err
}

// maxAWSError bounds what is read of the answer to a request that failed.
const maxAWSError = 64 << 10

var awsKeyID = regexp.MustCompile(`Credential=(.*)/[0-9]{8}/`)

// redactAnswer takes the credentials of a request out of the error that the server answered with, since
// it becomes a part of ours.
func redactAnswer(r *http.Request, resp *http.Response) {
	hide := []string{r.Header.Get("X-Amz-Security-Token")}
	if m := awsKeyID.FindStringSubmatch(r.Header.Get("Authorization")); m != nil {
		hide = append(hide, m[1])
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAWSError))
	body := io.Reader(strings.NewReader(NewRedactor(hide...).Text(string(b))))
	if err != nil {
		body = io.MultiReader(body, failing{err})
	}
	resp.Body = struct {
		io.Reader
		io.Closer
	}{body, resp.Body}
	resp.ContentLength = -1
	resp.Header.Del("Content-Length")
}

// failing is a reader that fails.
type failing struct{ error }

func (f failing) Read([]byte) (int, error) { return 0, f.error }
