package conn

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"golang.org/x/oauth2"
	"golang.org/x/oauth2/google"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	grpccredentials "google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"
)

// PubSub says how to reach Google Pub/Sub.
type PubSub struct {
	// Project is the id of the project in which names are looked for.
	Project string `yaml:"project,omitempty"`
	// CredentialsFile is a JSON file of Google Cloud; without one, the application default credentials are looked for.
	CredentialsFile string `yaml:"credentials_file,omitempty"`
	// Endpoint is host:port of a region's endpoint or of an emulator.
	Endpoint string `yaml:"endpoint,omitempty"`
	// Insecure connects without TLS and without credentials, for an emulator.
	Insecure bool `yaml:"insecure,omitempty"`
	// TLS settings; without them the system's roots are trusted.
	TLS *TLS `yaml:"tls,omitempty"`
	// RequestTimeout bounds each request, 1s to 1m.
	RequestTimeout Duration `yaml:"request_timeout,omitempty"`
}

// DefaultPubSub returns the defaults.
func DefaultPubSub() PubSub {
	return PubSub{Endpoint: "pubsub.googleapis.com:443", RequestTimeout: Duration(10 * time.Second)}
}

const (
	pubsubScope = "https://www.googleapis.com/auth/pubsub"
	// pubsubBackoff is the longest pause between two attempts to connect. The loops have pauses of their own.
	pubsubBackoff = time.Second
	// maxCredentials bounds the file of credentials, in bytes.
	maxCredentials = 64 << 10
	// maxPubSubMessage bounds an answer: a message has 10 MB at most, and the service sends several at once.
	maxPubSubMessage = 64 << 20
)

var (
	pubsubID      = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9._~+%-]{2,254}$`)
	pubsubProject = regexp.MustCompile(`^([a-z0-9.-]+:)?[a-z][a-z0-9-]{4,28}[a-z0-9]$`)
	oauthCode     = regexp.MustCompile(`^[a-z_]{1,40}$`)
)

// Validate reports every mistake as a FieldError. Names are checked with Full.
func (p *PubSub) Validate() error {
	var errs []error
	if p.Project != "" && !pubsubProject.MatchString(p.Project) {
		errs = append(errs, Field("project", "%q is not the id of a project: 6 to 30 of a-z 0-9 -, beginning with a letter", p.Project))
	}
	if host, port, err := net.SplitHostPort(p.Endpoint); err != nil || host == "" || port == "" || strings.ContainsAny(p.Endpoint, "/@") {
		errs = append(errs, Field("endpoint", "it is not an address: write host:port, such as europe-west1-pubsub.googleapis.com:443"))
	}
	if p.Insecure {
		if p.Endpoint == DefaultPubSub().Endpoint {
			errs = append(errs, Field("insecure", "is for an emulator: write its endpoint"))
		}
		if p.CredentialsFile != "" {
			errs = append(errs, Field("credentials_file", "is not sent with insecure: true"))
		}
		if p.TLS != nil {
			errs = append(errs, Field("tls", "does not go with insecure: true"))
		}
	}
	if t := time.Duration(p.RequestTimeout); t < time.Second || t > time.Minute {
		errs = append(errs, Field("request_timeout", "%s is out of range: 1s to 1m", p.RequestTimeout))
	}
	errs = append(errs, Prefix("tls", p.TLS.Validate()))
	return errors.Join(errs...)
}

// Full returns the full name of a topic or a subscription, projects/PROJECT/KIND/ID, where kind is "topics" or "subscriptions".
// The name is such a full one, or an id in the project.
func (p *PubSub) Full(kind, name string) (string, error) {
	one := strings.TrimSuffix(kind, "s")
	project, id := p.Project, name
	if strings.Contains(name, "/") {
		parts := strings.Split(name, "/")
		if len(parts) != 4 || parts[0] != "projects" || parts[2] != kind || !pubsubProject.MatchString(parts[1]) {
			return "", fmt.Errorf("%q is not the name of a %s: write its id, or projects/PROJECT/%s/ID", name, one, kind)
		}
		project, id = parts[1], parts[3]
	}
	switch {
	case !pubsubID.MatchString(id) || strings.HasPrefix(id, "goog"):
		return "", fmt.Errorf("%q is not the name of a %s: 3 to 255 of A-Z a-z 0-9 . _ ~ + %% -, beginning with a letter, not with goog", id, one)
	case project == "":
		return "", fmt.Errorf("in which project? write project, or projects/PROJECT/%s/%s", kind, id)
	}
	return "projects/" + project + "/" + kind + "/" + id, nil
}

// PubSubErr wraps an error of a request with its class and the name of what it was about. nil stays nil.
func PubSubErr(name, doing string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("pubsub %s: %s: %w", name, doing, WithClass(pubsubClass(err), err))
}

func pubsubClass(err error) Class {
	if s, ok := status.FromError(err); ok {
		switch s.Code() {
		case codes.Unauthenticated, codes.PermissionDenied:
			return Auth
		case codes.NotFound:
			return Missing
		case codes.ResourceExhausted:
			return Throttle
		case codes.Unavailable:
			if strings.Contains(s.Message(), "authentication handshake failed: tls: failed to verify") {
				return Auth // an answer came, from somebody who is not trusted
			}
			return Network
		case codes.DeadlineExceeded, codes.Canceled:
			return Network
		}
		return Other
	}
	return ClassOf(err)
}

// A PubSubClient is a connection to Pub/Sub that tries each request once.
type PubSubClient struct {
	pubsubpb.PublisherClient
	pubsubpb.SubscriberClient

	conn *grpc.ClientConn
}

// Close ends the connection and every request on it.
func (c *PubSubClient) Close() error { return c.conn.Close() }

// A PubSubDialer makes connections.
type PubSubDialer struct {
	endpoint string
	options  []grpc.DialOption
}

// Open reads the files and returns a dialer. It does not wait for the network: the first request does.
func (p *PubSub) Open() (*PubSubDialer, error) {
	d := &PubSubDialer{endpoint: "dns:///" + p.Endpoint, options: []grpc.DialOption{
		grpc.WithDisableServiceConfig(), // which may ask for retries
		grpc.WithDisableRetry(),
		grpc.WithStatsHandler(sentStats{}),
		grpc.WithUserAgent("lag-monitor"),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxPubSubMessage)),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: pubsubBackoff},
			MinConnectTimeout: time.Duration(p.RequestTimeout),
		}),
	}}
	if p.Insecure {
		d.options = append(d.options, grpc.WithTransportCredentials(insecure.NewCredentials()))
		return d, nil
	}
	settings, err := p.TLS.Config()
	if err != nil {
		return nil, err
	}
	if settings == nil {
		settings = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	token := &pubsubToken{timeout: time.Duration(p.RequestTimeout)}
	if p.CredentialsFile != "" {
		if token.json, err = readCredentials(p.CredentialsFile); err != nil {
			return nil, err
		}
		if _, err := token.find(context.Background()); err != nil { // touches no network with a file
			return nil, fmt.Errorf("%s: %w", p.CredentialsFile, err)
		}
	}
	d.options = append(d.options, grpc.WithTransportCredentials(grpccredentials.NewTLS(settings)), grpc.WithPerRPCCredentials(token))
	return d, nil
}

// Dial returns a client, which connects at its first request.
func (d *PubSubDialer) Dial() (*PubSubClient, error) {
	c, err := grpc.NewClient(d.endpoint, d.options...)
	if err != nil {
		return nil, err
	}
	return &PubSubClient{pubsubpb.NewPublisherClient(c), pubsubpb.NewSubscriberClient(c), c}, nil
}

// PubSubRoute adds to a request what the service finds the right servers by: key is "topic" or "subscription".
func PubSubRoute(ctx context.Context, key, name string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "x-goog-request-params", key+"="+url.QueryEscape(name))
}

// sentStats is TrackSent for gRPC.
type sentStats struct{}

func (sentStats) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context   { return ctx }
func (sentStats) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }
func (sentStats) HandleConn(context.Context, stats.ConnStats)                       {}
func (sentStats) HandleRPC(ctx context.Context, s stats.RPCStats) {
	// The message comes behind the header; from the header on it may be under way.
	if _, ok := s.(*stats.OutHeader); ok {
		if sent, ok := ctx.Value(sentKey{}).(*atomic.Bool); ok {
			sent.Store(true)
		}
	}
}

func readCredentials(path string) ([]byte, error) {
	if info, err := os.Stat(path); err != nil {
		return nil, err
	} else if !info.Mode().IsRegular() || info.Size() > maxCredentials {
		return nil, fmt.Errorf("%s is not a file of at most %d bytes", path, maxCredentials)
	}
	return os.ReadFile(path)
}

// pubsubToken fetches the tokens that go with each request.
type pubsubToken struct {
	timeout time.Duration
	json    []byte // nil: the application default credentials

	mu     sync.Mutex
	source oauth2.TokenSource
	hide   Redactor
}

// RequireTransportSecurity implements credentials.PerRPCCredentials.
func (t *pubsubToken) RequireTransportSecurity() bool { return true }

// GetRequestMetadata implements credentials.PerRPCCredentials. It returns with ctx; what fetches the token ends by itself.
func (t *pubsubToken) GetRequestMetadata(ctx context.Context, _ ...string) (map[string]string, error) {
	type answer struct {
		token *oauth2.Token
		err   error
	}
	got := make(chan answer, 1)
	go func() {
		var a answer
		defer func() { got <- a }()
		defer Contain(&a.err)
		a.token, a.err = t.fetch()
	}()
	select {
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	case a := <-got:
		if a.err != nil {
			return nil, a.err
		}
		return map[string]string{"authorization": a.token.Type() + " " + a.token.AccessToken}, nil
	}
}

// fetch returns the token that is valid, or a new one. Its errors do not repeat what servers say, who were sent secrets.
func (t *pubsubToken) fetch() (*oauth2.Token, error) {
	source, err := t.find(context.Background())
	if err != nil {
		return nil, status.Error(codes.Unauthenticated, "credentials: "+err.Error())
	}
	token, err := source.Token()
	if err == nil {
		return token, nil
	}
	var answered *oauth2.RetrieveError
	var network net.Error
	switch {
	case errors.As(err, &answered):
		text := "refused"
		if oauthCode.MatchString(answered.ErrorCode) {
			text = answered.ErrorCode
		}
		if answered.Response != nil && answered.Response.StatusCode >= 500 {
			return nil, status.Errorf(codes.Unavailable, "fetch a token: %d", answered.Response.StatusCode)
		}
		return nil, status.Error(codes.Unauthenticated, "fetch a token: "+t.hide.Text(text))
	case errors.As(err, &network):
		return nil, status.Error(codes.Unavailable, "fetch a token: "+t.hide.Text(network.Error()))
	}
	return nil, status.Error(codes.Unauthenticated, "fetch a token: "+t.hide.Text(err.Error()))
}

// find returns where tokens come from. The default credentials are looked for at the first use, since that may ask the network.
func (t *pubsubToken) find(ctx context.Context) (oauth2.TokenSource, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.source != nil {
		return t.source, nil
	}
	ctx = context.WithValue(ctx, oauth2.HTTPClient, &http.Client{Timeout: t.timeout})
	if t.json == nil {
		found, err := google.FindDefaultCredentials(ctx, pubsubScope)
		if err != nil {
			return nil, errors.New("no application default credentials were found: name a credentials_file, or see docs/transports/pubsub.md")
		}
		t.hide, t.source = hideCredentials(found.JSON), found.TokenSource
		return t.source, nil
	}
	var file struct {
		Type google.CredentialsType `json:"type"`
	}
	if err := json.Unmarshal(t.json, &file); err != nil {
		return nil, errors.New("it is not a JSON file of credentials")
	}
	switch file.Type {
	case google.ServiceAccount, google.AuthorizedUser, google.ExternalAccount, google.ExternalAccountAuthorizedUser, google.ImpersonatedServiceAccount:
	default:
		return nil, errors.New("its type is none of service_account, authorized_user, external_account, external_account_authorized_user, impersonated_service_account")
	}
	t.hide = hideCredentials(t.json)
	found, err := google.CredentialsFromJSONWithType(ctx, t.json, file.Type, pubsubScope)
	if err != nil {
		return nil, t.hide.Error(err)
	}
	t.source = found.TokenSource
	return t.source, nil
}

// hideCredentials takes out whatever texts are in a file of credentials, but for short words.
func hideCredentials(b []byte) Redactor {
	var all any
	if json.Unmarshal(b, &all) != nil {
		return Redactor{}
	}
	var secrets []string
	var walk func(key string, v any)
	walk = func(key string, v any) {
		switch v := v.(type) {
		case map[string]any:
			for k, v := range v {
				walk(k, v)
			}
		case string:
			switch key {
			case "private_key", "client_secret", "refresh_token", "private_key_id":
				secrets = append(secrets, v)
			}
		}
	}
	walk("", all)
	return NewRedactor(secrets...)
}
