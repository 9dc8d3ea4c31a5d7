package conn

import (
	"cmp"
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

var amqp1URL = brokerURL{"amqp", "5672", "5671", "amqps://host:5671", func(s string, u *url.URL) error {
	if strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
		return fmt.Errorf("%q has more than a host and a port; a virtual host of RabbitMQ is hostname: vhost:NAME", s)
	}
	return nil
}}

// Validate reports what is missing or contradicts itself.
func (a *AMQP1) Validate() error {
	return errors.Join(
		amqp1URL.validate(a.URL, a.TLS),
		validateLogin(a.Username, a.Password, a.External, a.TLS),
		Prefix("tls", a.TLS.Validate()),
	)
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
	brokers, err := amqp1URL.parse(a.URL)
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
	err = first(ctx, brokers, l.error, func(b broker) error {
		opts.HostName = cmp.Or(a.Hostname, b.host)
		return l.open(ctx, b, config, opts)
	})
	if err != nil {
		return nil, err
	}
	return l, nil
}

func (l *AMQP1Link) open(ctx context.Context, b broker, config *tls.Config, opts amqp.ConnOptions) error {
	l.Context, l.fail = context.WithCancelCause(context.WithoutCancel(ctx))
	ctx, cancel := context.WithTimeout(ctx, amqp1Handshake)
	defer cancel()
	raw, err := b.dial(ctx, config)
	if err != nil {
		return err
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
	return either(ctx, l.Context)
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
