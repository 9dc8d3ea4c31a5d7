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
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// AMQP says how to connect to RabbitMQ, or to another broker that speaks AMQP 0-9-1.
type AMQP struct {
	// URL of a broker: amqp://host:5672/vhost or amqps://host:5671/vhost; several are separated by commas, and
	// the first that answers is taken. Without a path the virtual host is /.
	URL string `yaml:"url"`
	// Username and Password log in; without them the user is guest, whom a broker lets in from its own host only.
	Username string `yaml:"username,omitempty"`
	Password Secret `yaml:"password,omitempty"`
	// External logs in with the client certificate of tls instead.
	External bool `yaml:"external,omitempty"`
	// TLS settings; amqps:// alone uses the system's roots.
	TLS *TLS `yaml:"tls,omitempty"`
}

var amqpURL = brokerURL{"amqp", "5672", "5671", "amqp://host:5672/vhost", func(s string, u *url.URL) error {
	switch {
	case u.RawQuery != "" || u.Fragment != "":
		return fmt.Errorf("%q has more than a host, a port and a virtual host", s)
	case strings.Contains(strings.TrimPrefix(u.EscapedPath(), "/"), "/"):
		return fmt.Errorf("%q: a slash in the name of a virtual host is written %%2F", s)
	}
	return nil
}}

// Validate reports what is missing or contradicts itself.
func (a *AMQP) Validate() error {
	return errors.Join(
		amqpURL.validate(a.URL, a.TLS),
		validateLogin(a.Username, a.Password, a.External, a.TLS),
		Prefix("tls", a.TLS.Validate()),
	)
}

const (
	// amqpHandshake bounds each step of connecting to one broker. One that refuses a login may say so after 3 s.
	amqpHandshake = 5 * time.Second
	// amqpHeartbeat is how often both sides want to hear something. Either gives the other up after two to
	// three times as long, so a connection that was cut off holds its messages for a quarter of a minute at most.
	amqpHeartbeat = 5 * time.Second
	// amqpClose bounds the farewell.
	amqpClose = 500 * time.Millisecond
)

// AMQPLink is one connection. It does not reconnect: when it is lost, it is over.
type AMQPLink struct {
	*amqp.Connection
	// Context ends when the connection is lost or closed; its cause says why.
	Context context.Context
	fail    context.CancelCauseFunc
	tap     *amqpTap
	hide    Redactor
	blocked atomic.Pointer[string]
}

// Connect makes a connection; every step of it ends with ctx. The broker shows the purpose beside our name.
func (a *AMQP) Connect(ctx context.Context, purpose string) (*AMQPLink, error) {
	config, err := a.TLS.Config()
	if err != nil {
		return nil, fmt.Errorf("tls: %w", err)
	}
	brokers, err := amqpURL.parse(a.URL)
	if err != nil {
		return nil, Field("url", "%w", err)
	}
	login := amqpLogin{mechanism: "PLAIN", response: "\x00guest\x00guest"}
	l := &AMQPLink{}
	if a.External {
		login.mechanism, login.response = "EXTERNAL", ""
	} else if a.Username != "" {
		password, err := a.Password.Read()
		if err != nil {
			return nil, fmt.Errorf("password: %w", err)
		}
		l.hide = NewRedactor(password)
		login.response = "\x00" + a.Username + "\x00" + password
	}
	err = first(ctx, brokers, l.error, func(b broker) error { return l.open(ctx, b, config, login, purpose) })
	if err != nil {
		return nil, err
	}
	return l, nil
}

func (l *AMQPLink) open(ctx context.Context, b broker, config *tls.Config, login amqpLogin, purpose string) error {
	ctx, cancel := context.WithTimeout(ctx, amqpHandshake)
	defer cancel()
	raw, err := b.dial(ctx, config)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { raw.Close() })
	defer stop()
	l.tap = &amqpTap{Conn: raw}
	// A login that is refused is told apart from a connection that is lost only if we say that we understand it. The
	// client puts its capabilities in just before it asks for the response.
	properties := amqp.Table{"product": UserAgent, "connection_name": UserAgent + " " + purpose}
	login.understand = func() {
		if can, ok := properties["capabilities"].(amqp.Table); ok {
			can["authentication_failure_close"] = true
		}
	}
	c, err := amqp.Open(l.tap, amqp.Config{SASL: []amqp.Authentication{&login}, Vhost: cmp.Or(b.path, "/"), Heartbeat: amqpHeartbeat,
		ChannelMax: 16, FrameSize: 128 << 10, Locale: "en_US", Properties: properties})
	if err == nil && !stop() {
		err = ctx.Err()
	}
	if err != nil {
		raw.Close()
		// Whatever broke off the login, the client calls it wrong credentials.
		var server *amqp.Error
		if lost := l.tap.lost.Load(); lost != nil && (!errors.As(err, &server) || !server.Server) {
			return *lost
		}
		return err
	}
	l.Connection = c
	l.Context, l.fail = context.WithCancelCause(context.WithoutCancel(ctx))
	closed, blocked := c.NotifyClose(make(chan *amqp.Error, 1)), c.NotifyBlocked(make(chan amqp.Blocking, 4))
	go l.watch(closed, blocked)
	return nil
}

// watch takes what the broker says between answers.
func (l *AMQPLink) watch(closed chan *amqp.Error, blocked chan amqp.Blocking) {
	for {
		select {
		case b, ok := <-blocked:
			switch {
			case !ok:
				blocked = nil
			case b.Active:
				l.blocked.Store(&b.Reason)
			default:
				l.blocked.Store(nil)
			}
		case err := <-closed:
			reason := error(amqp.ErrClosed)
			if err != nil {
				reason = err
				if lost := l.tap.lost.Load(); lost != nil && !err.Server {
					reason = *lost
				}
			}
			l.fail(l.error(fmt.Errorf("connection lost: %w", reason)))
			return
		}
	}
}

// Blocked returns an error of class throttle while the broker takes nothing from those who publish, because it is
// short of memory or disk.
func (l *AMQPLink) Blocked() error {
	if reason := l.blocked.Load(); reason != nil {
		return WithClass(Throttle, fmt.Errorf("the broker takes no messages: %s", l.hide.Text(*reason)))
	}
	return nil
}

// Deliveries is how many deliveries have come in on the connection so far. It counts one before the client hands
// it out, and any that came before an answer at the latest when the client returns that answer.
func (l *AMQPLink) Deliveries() uint64 { return l.tap.deliveries.Load() }

// Do calls f, which talks to the broker and knows no context. When ctx or d is over first, the connection is cut,
// since nothing else ends such a call, and Do returns why. The error of f is returned with its class.
func (l *AMQPLink) Do(ctx context.Context, d time.Duration, f func() error) error {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		err := errors.New("the call ended its goroutine")
		defer func() { done <- err }()
		defer Contain(&err)
		err = f()
	}()
	select {
	case err := <-done:
		return l.Err(err)
	case <-ctx.Done():
	}
	cause := fmt.Errorf("no answer: %w", ctx.Err())
	l.fail(cause)
	l.tap.Close()
	<-done //nolint:errcheck // that it was cut is the reason
	return cause
}

// Err returns why a call failed: the reason for which the connection was lost, where that is what ended the call,
// else err with its class.
func (l *AMQPLink) Err(err error) error {
	if err == nil {
		return nil
	}
	var said *amqp.Error
	if !errors.As(err, &said) || said.Server && said.Code != amqp.ConnectionForced {
		return l.error(err)
	}
	// The client tells the callers before it tells us.
	select {
	case <-l.Context.Done():
		return context.Cause(l.Context)
	case <-time.After(amqpClose):
		return l.error(err)
	}
}

// Close closes the connection. It does not wait for a broker that does not answer.
func (l *AMQPLink) Close() {
	_ = l.CloseDeadline(time.Now().Add(amqpClose))
	l.tap.Close()
	l.fail(AMQPError(amqp.ErrClosed))
}

func (l *AMQPLink) error(err error) error { return AMQPError(l.hide.Error(err)) }

// AMQPError marks an error of the client with its class.
func AMQPError(err error) error {
	var said *amqp.Error
	if !errors.As(err, &said) {
		return err
	}
	has := func(text string) bool { return strings.Contains(said.Reason, text) }
	switch {
	case said.Code == amqp.NotFound && (has("inaccessible") || has("stopped") || has("timed out") || has("timeout")):
		return WithClass(Network, err) // the queue is there, and its node is not
	case said.Code == amqp.NotFound:
		return WithClass(Missing, err)
	case said.Code == amqp.AccessRefused && has("exclusive"):
		return WithClass(Other, err)
	case said.Code == amqp.AccessRefused:
		return WithClass(Auth, err)
	case said.Code == amqp.NotAllowed && has("limit"):
		return WithClass(Throttle, err)
	case said.Code == amqp.NotAllowed && has("not found"):
		return WithClass(Missing, err)
	case said.Code == amqp.NotAllowed:
		return WithClass(Auth, err)
	case said.Code == amqp.ConnectionForced, said.Code == amqp.ErrClosed.Code, !said.Server:
		return WithClass(Network, err)
	}
	return WithClass(Other, err)
}

// amqpLogin logs in.
type amqpLogin struct {
	mechanism, response string
	understand          func()
}

// Mechanism implements amqp.Authentication.
func (a *amqpLogin) Mechanism() string { return a.mechanism }

// Response implements amqp.Authentication.
func (a *amqpLogin) Response() string {
	a.understand()
	return a.response
}

// amqpTap is a connection that counts the deliveries that come in on it, and keeps why reading ended.
type amqpTap struct {
	net.Conn
	frames     amqpFrames // of the client's reading goroutine
	deliveries atomic.Uint64
	lost       atomic.Pointer[error]
}

// Read implements net.Conn.
func (t *amqpTap) Read(p []byte) (int, error) {
	n, err := t.Conn.Read(p)
	if found := t.frames.deliveries(p[:n]); found > 0 {
		t.deliveries.Add(uint64(found))
	}
	if err != nil {
		t.lost.CompareAndSwap(nil, &err)
	}
	return n, err
}

// amqpFrames finds deliveries in what a broker sends. A frame has a type (1: method), a channel of two bytes, a
// length of four, that many bytes, of which the first four of a method are its class and number, and an end. What
// is no AMQP the client refuses.
type amqpFrames struct {
	head [11]byte
	have int    // bytes of head
	skip uint64 // bytes of the frame that are left
}

// deliveries counts the methods basic.deliver that begin in the next bytes of the stream.
func (f *amqpFrames) deliveries(p []byte) (found int) {
	for len(p) > 0 {
		if f.skip > 0 {
			n := min(f.skip, uint64(len(p)))
			p, f.skip = p[n:], f.skip-n
			continue
		}
		n := copy(f.head[f.have:], p)
		if want := f.wanted(); f.have+n > want {
			n = want - f.have
		}
		f.have += n
		p = p[n:]
		if f.have < 7 || f.have < f.wanted() {
			continue
		}
		if f.have == len(f.head) && string(f.head[7:11]) == "\x00\x3c\x00\x3c" {
			found++
		}
		f.skip = uint64(f.size()) + 8 - uint64(f.have)
		f.have = 0
	}
	return found
}

func (f *amqpFrames) size() uint32 {
	return uint32(f.head[3])<<24 | uint32(f.head[4])<<16 | uint32(f.head[5])<<8 | uint32(f.head[6])
}

// wanted is how much of a frame's beginning has to be seen.
func (f *amqpFrames) wanted() int {
	if f.have < 7 {
		return 7
	}
	if f.head[0] == 1 && f.size() >= 4 {
		return len(f.head)
	}
	return 7
}
