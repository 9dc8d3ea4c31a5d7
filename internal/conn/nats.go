package conn

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// NATS says how to connect to a NATS server or cluster.
type NATS struct {
	// URL of a server: nats://host:4222, tls://, ws:// or wss://; several are separated by commas.
	URL string `yaml:"url"`
	// CredentialsFile is a .creds file with a user's JWT and seed.
	CredentialsFile string `yaml:"credentials_file,omitempty"`
	// NKeyFile holds the seed of a user's nkey.
	NKeyFile string `yaml:"nkey_file,omitempty"`
	// Username and Password authenticate a user.
	Username string `yaml:"username,omitempty"`
	Password Secret `yaml:"password,omitempty"`
	// Token authenticates without a user.
	Token Secret `yaml:"token,omitempty"`
	// TLS settings; tls:// alone uses the system's roots.
	TLS *TLS `yaml:"tls,omitempty"`
}

// Validate reports what is missing or contradicts itself.
func (n *NATS) Validate() error {
	var errs []error
	if n.URL == "" {
		errs = append(errs, Field("url", "is required: an address such as nats://host:4222"))
	}
	for s := range strings.SplitSeq(n.URL, ",") {
		u, err := url.Parse(strings.TrimSpace(s))
		switch {
		case n.URL == "":
		case err != nil:
			errs = append(errs, Field("url", "is not an address such as nats://host:4222"))
		case u.User != nil:
			errs = append(errs, Field("url", "holds a user name: use username and password, so that the password is not in the file"))
		case u.Host == "" || u.Scheme != "nats" && u.Scheme != "tls" && u.Scheme != "ws" && u.Scheme != "wss":
			errs = append(errs, Field("url", "%q is not an address such as nats://host:4222", s))
		}
	}
	ways := 0
	for _, used := range []bool{n.CredentialsFile != "", n.NKeyFile != "", n.Username != "", !n.Token.IsZero()} {
		if used {
			ways++
		}
	}
	if ways > 1 {
		errs = append(errs, Field("credentials_file", "only one of credentials_file, nkey_file, username and token can be used"))
	}
	if (n.Username == "") != n.Password.IsZero() {
		errs = append(errs, Field("password", "username and password go together"))
	} else if n.Username != "" {
		errs = append(errs, Prefix("password", n.Password.Validate()))
	}
	if !n.Token.IsZero() {
		errs = append(errs, Prefix("token", n.Token.Validate()))
	}
	errs = append(errs, Prefix("tls", n.TLS.Validate()))
	return errors.Join(errs...)
}

// NATSLink is one connection. It does not reconnect, so that nothing is ever sent late out of a
// buffer: when it is lost, it is over.
type NATSLink struct {
	*nats.Conn
	// Context ends when the connection is lost or closed; its cause says why.
	Context context.Context
	fail    context.CancelCauseFunc
	// hide takes the credentials out of what the server says.
	hide Redactor
	// Slow is called when the client had to throw messages of a subscription away.
	slow func()
}

// natsHandshake bounds each step of connecting to one server.
const natsHandshake = 5 * time.Second

// Connect makes a connection; every step of it ends with ctx. slow, unless nil, is called when
// messages of a subscription had to be thrown away because they were not taken in time.
func (n *NATS) Connect(ctx context.Context, slow func()) (*NATSLink, error) {
	config, err := n.TLS.Config()
	if err != nil {
		return nil, fmt.Errorf("tls: %w", err)
	}
	l := &NATSLink{slow: slow}
	l.Context, l.fail = context.WithCancelCause(context.WithoutCancel(ctx))
	dialer := &natsDialer{ctx: ctx}
	defer dialer.release()
	opts := []nats.Option{
		nats.Name(UserAgent), nats.NoReconnect(), nats.Timeout(natsHandshake), nats.SetCustomDialer(dialer),
		nats.FlusherTimeout(natsHandshake),
		nats.ErrorHandler(l.asyncError),
		nats.ClosedHandler(func(nc *nats.Conn) {
			err := nc.LastError()
			if err == nil {
				err = nats.ErrConnectionClosed
			}
			l.fail(l.error(fmt.Errorf("connection lost: %w", err)))
		}),
	}
	if config != nil {
		opts = append(opts, nats.Secure(config))
	}
	switch {
	case n.CredentialsFile != "":
		opts = append(opts, nats.UserCredentials(n.CredentialsFile))
	case n.NKeyFile != "":
		o, err := nats.NkeyOptionFromSeed(n.NKeyFile)
		if err != nil {
			return nil, fmt.Errorf("nkey_file: %w", err)
		}
		opts = append(opts, o)
	case n.Username != "":
		password, err := n.Password.Read()
		if err != nil {
			return nil, fmt.Errorf("password: %w", err)
		}
		l.hide = NewRedactor(password)
		opts = append(opts, nats.UserInfo(n.Username, password))
	case !n.Token.IsZero():
		token, err := n.Token.Read()
		if err != nil {
			return nil, fmt.Errorf("token: %w", err)
		}
		l.hide = NewRedactor(token)
		opts = append(opts, nats.Token(token))
	}
	nc, err := nats.Connect(n.URL, opts...)
	if err != nil {
		l.fail(err)
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, l.error(fmt.Errorf("connect to %s: %w", n.URL, dialer.explain(err)))
	}
	l.Conn = nc
	return l, nil
}

// Close closes the connection.
func (l *NATSLink) Close() {
	l.Conn.Close()
	l.fail(NATSError(nats.ErrConnectionClosed))
}

// asyncError takes what the server says between answers. A refused permission is no answer to a
// request, which would wait in vain: the connection is given up with that reason.
func (l *NATSLink) asyncError(_ *nats.Conn, _ *nats.Subscription, err error) {
	switch {
	case errors.Is(err, nats.ErrSlowConsumer):
		if l.slow != nil {
			l.slow()
		}
	case errors.Is(err, nats.ErrPermissionViolation):
		l.fail(l.denied(err))
	}
}

// Denied returns the refused permission that the server has told of, if any.
func (l *NATSLink) Denied() error {
	if err := l.LastError(); errors.Is(err, nats.ErrPermissionViolation) {
		return l.denied(err)
	}
	return nil
}

// DeniedTo reports whether the refused permission is one for this subject.
func (l *NATSLink) DeniedTo(subject string) bool {
	err := l.LastError()
	return errors.Is(err, nats.ErrPermissionViolation) && strings.Contains(err.Error(), `"`+subject+`"`)
}

// ErrNATSInbox says that the account may not subscribe to the subjects on which requests are answered. The
// client subscribes before it asks, so the server says this before anything else that it refuses.
var ErrNATSInbox = errors.New("answers cannot be received: the account may not subscribe to _INBOX.>")

func (l *NATSLink) denied(err error) error {
	if strings.Contains(err.Error(), `Subscription to "`+nats.InboxPrefix) {
		return NATSError(fmt.Errorf("%w: %w", ErrNATSInbox, l.hide.Error(err)))
	}
	return l.error(err)
}

// With returns a context that ends with ctx or with the connection. After it, Err tells which.
func (l *NATSLink) With(ctx context.Context) (context.Context, context.CancelFunc) {
	return either(ctx, l.Context)
}

// Err returns why a call failed: the reason for which the connection was lost, where that is what
// ended the call's context, else err with its class.
func (l *NATSLink) Err(err error) error {
	if err == nil {
		return nil
	}
	if cause := context.Cause(l.Context); cause != nil && (errors.Is(err, context.Canceled) || errors.Is(err, nats.ErrConnectionClosed) || errors.Is(err, jetstream.ErrMsgIteratorClosed)) {
		return cause
	}
	return l.error(err)
}

func (l *NATSLink) error(err error) error { return NATSError(l.hide.Error(err)) }

// NATSError marks an error of the client with its class.
func NATSError(err error) error {
	if err == nil {
		return nil
	}
	for class, list := range natsClasses {
		for _, e := range list {
			if errors.Is(err, e) {
				return WithClass(class, err)
			}
		}
	}
	return err
}

var natsClasses = map[Class][]error{
	Auth: {nats.ErrAuthorization, nats.ErrAuthExpired, nats.ErrAuthRevoked, nats.ErrAccountAuthExpired, nats.ErrPermissionViolation},
	Missing: {jetstream.ErrStreamNotFound, jetstream.ErrNoStreamResponse, nats.ErrNoResponders,
		jetstream.ErrJetStreamNotEnabled, jetstream.ErrJetStreamNotEnabledForAccount},
	Network: {nats.ErrNoServers, nats.ErrConnectionClosed, nats.ErrTimeout, nats.ErrStaleConnection, nats.ErrDisconnected,
		nats.ErrSecureConnRequired, nats.ErrSecureConnWanted, jetstream.ErrNoHeartbeat, jetstream.ErrConsumerNotFound,
		jetstream.ErrConsumerDeleted, jetstream.ErrConsumerLeadershipChanged, jetstream.ErrServerShutdown, jetstream.ErrMsgIteratorClosed},
	Throttle: {nats.ErrMaxConnectionsExceeded, nats.ErrMaxAccountConnectionsExceeded, nats.ErrMaxSubscriptionsExceeded},
}

// natsDialer dials under a context, and cuts the connection when the context ends before the
// handshake is done: the client itself knows no context there.
type natsDialer struct {
	ctx context.Context

	mu    sync.Mutex
	stops []func() bool
	err   error // of the last dial
}

// Dial implements nats.CustomDialer.
func (d *natsDialer) Dial(network, address string) (net.Conn, error) {
	c, err := (&net.Dialer{Timeout: natsHandshake, KeepAlive: 15 * time.Second}).DialContext(d.ctx, network, address)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.err = err
	if err != nil {
		return nil, err
	}
	d.stops = append(d.stops, context.AfterFunc(d.ctx, func() { c.Close() }))
	return c, nil
}

// explain adds to the client's "no servers available" why the last one tried is not.
func (d *natsDialer) explain(err error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.err == nil || !errors.Is(err, nats.ErrNoServers) {
		return err
	}
	return fmt.Errorf("%w: %w", err, d.err)
}

func (d *natsDialer) release() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, stop := range d.stops {
		stop()
	}
}

// NATSSubject checks a subject; only where wildcards are allowed may it hold * and >.
func NATSSubject(s string, wildcards bool) error {
	for token := range strings.SplitSeq(s, ".") {
		switch {
		case token == "", strings.ContainsAny(token, " \t\r\n"):
			return fmt.Errorf("%q is not a subject such as orders.new", s)
		case !wildcards && (token == "*" || token == ">"):
			return fmt.Errorf("%q holds a wildcard, to which nothing can be published", s)
		}
	}
	return nil
}
