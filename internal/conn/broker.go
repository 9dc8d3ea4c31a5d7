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
)

// brokerURL says how a setting `url` names brokers: addresses of one scheme, separated by commas.
type brokerURL struct {
	scheme           string // over TLS it has an s behind it
	port, securePort string // where an address has none
	example          string
	rest             func(s string, u *url.URL) error // what is wrong with what stands behind the port
}

// broker is one address.
type broker struct {
	addr, host, path string
	tls              bool
}

// parse returns the addresses in s.
func (f *brokerURL) parse(s string) (all []broker, err error) {
	for s := range strings.SplitSeq(s, ",") {
		s = strings.TrimSpace(s)
		u, err := url.Parse(s)
		switch {
		case err != nil:
			return nil, fmt.Errorf("is not an address such as %s", f.example)
		case u.User != nil:
			return nil, errors.New("holds a user name: use username and password, so that the password is not in the file")
		case u.Hostname() == "" || u.Scheme != f.scheme && u.Scheme != f.scheme+"s":
			return nil, fmt.Errorf("%q is not an address such as %s", s, f.example)
		}
		if err := f.rest(s, u); err != nil {
			return nil, err
		}
		b := broker{addr: u.Host, host: u.Hostname(), path: strings.TrimPrefix(u.Path, "/"), tls: u.Scheme != f.scheme}
		switch {
		case u.Port() != "":
		case b.tls:
			b.addr = net.JoinHostPort(b.host, f.securePort)
		default:
			b.addr = net.JoinHostPort(b.host, f.port)
		}
		all = append(all, b)
	}
	return all, nil
}

// validate reports what is wrong with the setting, and with tls beside it.
func (f *brokerURL) validate(s string, t *TLS) error {
	if s == "" {
		return Field("url", "is required: an address such as %s", f.example)
	}
	brokers, err := f.parse(s)
	if err != nil {
		return Field("url", "%w", err)
	}
	for _, b := range brokers {
		if t != nil && !b.tls {
			return Field("tls", "is for addresses that begin with %ss://", f.scheme)
		}
	}
	return nil
}

// validateLogin reports what is wrong with a login by password or by the client certificate of TLS.
func validateLogin(username string, password Secret, external bool, t *TLS) error {
	switch {
	case external && (username != "" || !password.IsZero()):
		return Field("external", "cannot be combined with username and password")
	case external && (t == nil || t.CertFile == ""):
		return Field("external", "needs tls with a cert_file: the certificate is what logs in")
	case (username == "") != password.IsZero():
		return Field("password", "username and password go together")
	case username != "":
		return Prefix("password", password.Validate())
	}
	return nil
}

// first calls open for one broker after the other until it returns nil. When all have failed, or ctx has ended, it returns
// what was wrong with each; clean takes secrets out of an error, and gives it its class.
func first(ctx context.Context, brokers []broker, clean func(error) error, open func(broker) error) error {
	var errs []error
	for _, b := range brokers {
		err := open(b)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			// What the client makes of a connection that was cut off in the middle is not the reason.
			err = ctx.Err()
		}
		errs = append(errs, fmt.Errorf("connect to %s: %w", b.addr, clean(err)))
		if ctx.Err() != nil {
			break
		}
	}
	return errors.Join(errs...)
}

// dial connects to the broker, over TLS where its address says so: as config says, which may be nil.
func (b broker) dial(ctx context.Context, config *tls.Config) (net.Conn, error) {
	raw, err := (&net.Dialer{KeepAlive: 15 * time.Second}).DialContext(ctx, "tcp", b.addr)
	if err != nil || !b.tls {
		return raw, err
	}
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
		return nil, err
	}
	return secure, nil
}

// either returns a context that ends with ctx or, with its cause, with life.
func either(ctx, life context.Context) (context.Context, context.CancelFunc) {
	both, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(life, func() { cancel(context.Cause(life)) })
	return both, func() {
		stop()
		cancel(nil)
	}
}
