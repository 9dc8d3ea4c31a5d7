package conn

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"time"

	"github.com/Azure/go-amqp"
)

// AMQP1 says how to connect to a broker that speaks AMQP 1.0.
type AMQP1 struct {
	// URL of a broker: amqp://host:5672 or amqps://host:5671; several are separated by commas, and the first that
	// answers is taken.
	URL string `yaml:"url"`
	// Hostname is the name that the broker is asked for, by default that of URL. RabbitMQ takes vhost:NAME.
	Hostname string `yaml:"hostname,omitempty"`
	// Username and Password log in; without them nobody does (SASL ANONYMOUS).
	Username string `yaml:"username,omitempty"`
	Password Secret `yaml:"password,omitempty"`
	// External logs in with the client certificate of tls instead.
	External bool `yaml:"external,omitempty"`
	// TLS settings; amqps:// alone uses the system's roots.
	TLS *TLS `yaml:"tls,omitempty"`
}

type amqp1Broker struct {
	addr, host string
	tls        bool
}

// brokers returns the addresses in URL.
func (a *AMQP1) brokers() (all []amqp1Broker, err error) {
	for s := range strings.SplitSeq(a.URL, ",") {
		s = strings.TrimSpace(s)
		u, err := url.Parse(s)
		switch {
		case err != nil:
			return nil, errors.New("is not an address such as amqps://host:5671")
		case u.User != nil:
			return nil, errors.New("holds a user name: use username and password, so that the password is not in the file")
		case u.Hostname() == "" || u.Scheme != "amqp" && u.Scheme != "amqps":
			return nil, fmt.Errorf("%q is not an address such as amqps://host:5671", s)
		case strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "":
			return nil, fmt.Errorf("%q has more than a host and a port; a virtual host of RabbitMQ is hostname: vhost:NAME", s)
		}
		b := amqp1Broker{addr: u.Host, host: u.Hostname(), tls: u.Scheme == "amqps"}
		if u.Port() == "" {
			b.addr = net.JoinHostPort(u.Hostname(), map[bool]string{false: "5672", true: "5671"}[b.tls])
		}
		all = append(all, b)
	}
	return all, nil
}

// Validate reports what is missing or contradicts itself.
func (a *AMQP1) Validate() error {
	var errs []error
	secure := true
	if a.URL == "" {
		errs = append(errs, Field("url", "is required: an address such as amqps://host:5671"))
	} else if brokers, err := a.brokers(); err != nil {
		errs = append(errs, Field("url", "%w", err))
	} else {
		for _, b := range brokers {
			secure = secure && b.tls
		}
	}
	switch {
	case a.External && (a.Username != "" || !a.Password.IsZero()):
		errs = append(errs, Field("external", "cannot be combined with username and password"))
	case a.External && (a.TLS == nil || a.TLS.CertFile == ""):
		errs = append(errs, Field("external", "needs tls with a cert_file: the certificate is what logs in"))
	case (a.Username == "") != a.Password.IsZero():
		errs = append(errs, Field("password", "username and password go together"))
	case a.Username != "":
		errs = append(errs, Prefix("password", a.Password.Validate()))
	}
	if a.TLS != nil && !secure {
		errs = append(errs, Field("tls", "is for addresses that begin with amqps://"))
	}
	errs = append(errs, Prefix("tls", a.TLS.Validate()))
	return errors.Join(errs...)
}

const (
	// amqp1Handshake bounds connecting to one broker.
	amqp1Handshake = 5 * time.Second
	// amqp1Idle is how long a broker may be silent.
	amqp1Idle = 10 * time.Second
	// amqp1Close bounds the farewell.
	amqp1Close = 500 * time.Millisecond
)

// AMQP1Link is one connection with one session. It does not reconnect: when it is lost, it is over.
type AMQP1Link struct {
	*amqp.Session
	// Context ends when the connection is lost or closed; its cause says why.
	Context context.Context
	fail    context.CancelCauseFunc
	conn    *amqp.Conn
	raw     net.Conn
	hide    Redactor
}

// Connect makes a connection; every step of it ends with ctx.
func (a *AMQP1) Connect(ctx context.Context) (*AMQP1Link, error) {
	config, err := a.TLS.Config()
	if err != nil {
		return nil, fmt.Errorf("tls: %w", err)
	}
	brokers, err := a.brokers()
	if err != nil {
		return nil, Field("url", "%w", err)
	}
	opts := amqp.ConnOptions{IdleTimeout: amqp1Idle, WriteTimeout: amqp1Handshake, SASLType: amqp.SASLTypeAnonymous(),
		Properties: map[string]any{"product": UserAgent}}
	l := &AMQP1Link{}
	if a.External {
		opts.SASLType = amqp.SASLTypeExternal("")
	} else if a.Username != "" {
		password, err := a.Password.Read()
		if err != nil {
			return nil, fmt.Errorf("password: %w", err)
		}
		l.hide = NewRedactor(password)
		opts.SASLType = amqp.SASLTypePlain(a.Username, password)
	}
	var errs []error
	for _, b := range brokers {
		opts.HostName = b.host
		if a.Hostname != "" {
			opts.HostName = a.Hostname
		}
		if err = l.open(ctx, b, config, opts); err == nil {
			return l, nil
		}
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		errs = append(errs, fmt.Errorf("connect to %s: %w", b.addr, l.error(err)))
		if ctx.Err() != nil {
			break
		}
	}
	return nil, errors.Join(errs...)
}

func (l *AMQP1Link) open(ctx context.Context, b amqp1Broker, config *tls.Config, opts amqp.ConnOptions) error {
	l.Context, l.fail = context.WithCancelCause(context.WithoutCancel(ctx))
	ctx, cancel := context.WithTimeout(ctx, amqp1Handshake)
	defer cancel()
	raw, err := (&net.Dialer{KeepAlive: 15 * time.Second}).DialContext(ctx, "tcp", b.addr)
	if err != nil {
		return err
	}
	if b.tls {
		own := &tls.Config{MinVersion: tls.VersionTLS12}
		if config != nil {
			own = config.Clone()
		}
		if own.ServerName == "" {
			own.ServerName = b.host
		}
		secure := tls.Client(raw, own)
		if err := secure.HandshakeContext(ctx); err != nil {
			raw.Close()
			return err
		}
		raw = secure
	}
	// The client itself bounds its steps by the deadline alone.
	stop := context.AfterFunc(ctx, func() { raw.Close() })
	defer stop()
	c, err := amqp.NewConn(ctx, raw, &opts)
	if err != nil {
		raw.Close()
		return err
	}
	l.conn, l.raw = c, raw
	s, err := c.NewSession(ctx, nil)
	if err == nil && !stop() {
		err = ctx.Err()
	}
	if err != nil {
		l.Close()
		return err
	}
	l.Session = s
	go func() {
		var err error
		defer func() { l.fail(l.error(fmt.Errorf("connection lost: %w", err))) }()
		defer Contain(&err)
		<-c.Done()
		if err = c.Err(); err == nil {
			err = net.ErrClosed
		}
	}()
	return nil
}

// Another makes another session on the same connection.
func (l *AMQP1Link) Another(ctx context.Context) (*amqp.Session, error) {
	return l.conn.NewSession(ctx, nil)
}

// With returns a context that ends with ctx or with the connection. After it, Err tells which.
func (l *AMQP1Link) With(ctx context.Context) (context.Context, context.CancelFunc) {
	both, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(l.Context, func() { cancel(context.Cause(l.Context)) })
	return both, func() {
		stop()
		cancel(nil)
	}
}

// Err returns err with its class, or the reason for which the connection was lost, where that is what ended a call.
func (l *AMQP1Link) Err(err error) error {
	if cause := context.Cause(l.Context); cause != nil && errors.Is(err, context.Canceled) {
		return cause
	}
	return l.error(err)
}

// Drop ends the connection at once.
func (l *AMQP1Link) Drop(why error) {
	l.fail(why)
	l.raw.Close()
}

// Close closes the connection. It does not wait for a broker that does not answer.
func (l *AMQP1Link) Close() {
	defer time.AfterFunc(amqp1Close, func() { l.raw.Close() }).Stop()
	l.fail(WithClass(Network, net.ErrClosed))
	_ = l.conn.Close()
}

func (l *AMQP1Link) error(err error) error { return AMQP1Error(l.hide.Error(err)) }

// AMQP1Error marks an error of the client with its class.
func AMQP1Error(err error) error {
	if err == nil {
		return nil
	}
	var said *amqp.Error
	if !errors.As(err, &said) {
		var (
			link    *amqp.LinkError
			session *amqp.SessionError
			lost    *amqp.ConnError
		)
		switch {
		case errors.As(err, &link) && link.RemoteErr != nil:
			said = link.RemoteErr
		case errors.As(err, &session) && session.RemoteErr != nil:
			said = session.RemoteErr
		case errors.As(err, &lost) && lost.RemoteErr != nil:
			said = lost.RemoteErr
		case link != nil || session != nil || lost != nil:
			return WithClass(Network, err)
		case strings.Contains(err.Error(), "SASL"): // the client has no other word for it
			return WithClass(Auth, err)
		default:
			return err
		}
	}
	class := Other
	if said.Condition == amqp.ErrCondInternalError && said.Description == "shutdown" { // RabbitMQ 3 is stopped
		return WithClass(Network, err)
	}
	switch said.Condition {
	case amqp.ErrCondNotFound, amqp.ErrCondResourceDeleted:
		class = Missing
	case amqp.ErrCondUnauthorizedAccess:
		class = Auth
	case amqp.ErrCondResourceLimitExceeded, amqp.ErrCondTransferLimitExceeded, "com.microsoft:server-busy":
		class = Throttle
	case amqp.ErrCondConnectionForced, amqp.ErrCondDetachForced, amqp.ErrCondConnectionRedirect, amqp.ErrCondLinkRedirect, "com.microsoft:timeout":
		class = Network
	}
	return WithClass(class, err)
}
