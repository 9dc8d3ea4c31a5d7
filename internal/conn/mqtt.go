package conn

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/base32"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"
	"github.com/eclipse/paho.golang/paho/log"
	"github.com/eclipse/paho.golang/paho/session"
	sessionstate "github.com/eclipse/paho.golang/paho/session/state"
)

// MQTT says how to connect to a broker that speaks MQTT 5.
type MQTT struct {
	// URL of a broker: mqtt://host:1883 or mqtts://host:8883; several are separated by commas, and the first that
	// answers is taken.
	URL string `yaml:"url"`
	// Username and Password log in.
	Username string `yaml:"username,omitempty"`
	Password Secret `yaml:"password,omitempty"`
	// KeepAlive is after how long a silent connection is asked for a sign of life. Whole seconds.
	KeepAlive Duration `yaml:"keep_alive,omitempty"`
	// TLS settings; mqtts:// alone uses the system's roots.
	TLS *TLS `yaml:"tls,omitempty"`
}

// NewMQTT returns the defaults.
func NewMQTT() MQTT { return MQTT{KeepAlive: Duration(10 * time.Second)} }

var mqttURL = brokerURL{"mqtt", "1883", "8883", "mqtt://host:1883", func(s string, u *url.URL) error {
	if strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
		return fmt.Errorf("%q has more than a host and a port", s)
	}
	return nil
}}

// Validate reports what is missing or contradicts itself.
func (m *MQTT) Validate() error {
	errs := []error{mqttURL.validate(m.URL, m.TLS)}
	if !m.Password.IsZero() {
		errs = append(errs, Prefix("password", m.Password.Validate()))
		if m.Username == "" {
			errs = append(errs, Field("username", "password needs a username"))
		}
	}
	if k := time.Duration(m.KeepAlive); k < 2*time.Second || k > time.Hour || k%time.Second != 0 {
		errs = append(errs, Field("keep_alive", "%s is not a number of whole seconds from 2s to 1h", m.KeepAlive))
	}
	errs = append(errs, Prefix("tls", m.TLS.Validate()))
	return errors.Join(errs...)
}

const (
	// mqttHandshake bounds connecting to one broker.
	mqttHandshake = 5 * time.Second
	// mqttWrite bounds each write. A broker that takes nothing for as long is given up.
	mqttWrite = 5 * time.Second
	// mqttLeave is how long Connect waits beyond its context for the answer to a login that is out already. Given up
	// without it, the login may come in behind that of the next connection, and end it.
	mqttLeave = time.Second
	// mqttClose bounds the farewell.
	mqttClose = 500 * time.Millisecond
	// mqttPacket is how large a message the broker may send us, in bytes; it throws away a larger one.
	mqttPacket = 16 << 20
)

// MQTTClientID returns a new client id that begins with prefix and that no other connection has. With "lag-monitor" it
// has 22 bytes; every broker takes up to 23.
func MQTTClientID(prefix string) string {
	b := make([]byte, 6)
	rand.Read(b)
	id := base32.HexEncoding.WithPadding(base32.NoPadding).EncodeToString(b)
	return strings.TrimPrefix(prefix+"-"+strings.ToLower(id), "-")
}

// MQTTSession says what a connection is for.
type MQTTSession struct {
	// ClientID is what the broker knows the session by. A second connection with the same one ends the first.
	ClientID string
	// Again says that other connections have the same one, before or after this.
	Again bool
	// Expiry is how long the broker keeps the session when the connection is gone; 0: not at all. Whole seconds.
	Expiry time.Duration
	// State is what this end has to know of a session that is kept, over all of its connections. nil: nothing is.
	State session.SessionManager
	// Answered is told whether the broker had the session, as soon as it has let us in: also where Connect then returns
	// an error, after which a session that the broker has begun is there the next time. nil: nobody is told.
	Answered func(present bool)
	// Farewell is what the broker publishes when the connection is over, however it ends. nil: nothing.
	Farewell *paho.WillMessage
	// ReceiveMaximum is how many messages may be under way to us that are not acknowledged; 0: the protocol's 65535.
	ReceiveMaximum uint16
	// Received takes each message, in order, on one goroutine of the client. The message is acknowledged when it
	// returns. It may be called before Connect returns and until Close does. nil: none is expected.
	Received func(*paho.Publish)
}

// MQTTLink is one connection. It does not reconnect: when it is lost, it is over.
type MQTTLink struct {
	*paho.Client
	// Context ends when the connection is lost or closed; its cause says why.
	Context context.Context

	fail context.CancelCauseFunc
	raw  *mqttConn
	ping mqttPinger
	hide Redactor
	will bool // the broker publishes one when the connection is over
}

// mqttWithWill is the reason with which a client ends a connection so that its will is published.
const mqttWithWill = 0x04

var errMQTTClosed = WithClass(Network, errors.New("the connection is closed"))

// Connect makes a connection; every step of it ends with ctx.
func (m *MQTT) Connect(ctx context.Context, s MQTTSession) (*MQTTLink, error) {
	config, err := m.TLS.Config()
	if err != nil {
		return nil, fmt.Errorf("tls: %w", err)
	}
	brokers, err := mqttURL.parse(m.URL)
	if err != nil {
		return nil, Field("url", "%w", err)
	}
	expiry, most := uint32(s.Expiry/time.Second), uint32(mqttPacket)
	packet := &paho.Connect{
		ClientID: s.ClientID, CleanStart: s.Expiry == 0, KeepAlive: uint16(time.Duration(m.KeepAlive) / time.Second),
		Username: m.Username, UsernameFlag: m.Username != "",
		Properties: &paho.ConnectProperties{SessionExpiryInterval: &expiry, MaximumPacketSize: &most, RequestProblemInfo: true},
	}
	if s.Farewell != nil {
		packet.WillMessage, packet.WillProperties = s.Farewell, &paho.WillProperties{MessageExpiry: &expiry}
	}
	if s.ReceiveMaximum > 0 {
		packet.Properties.ReceiveMaximum = &s.ReceiveMaximum
	}
	var hide Redactor
	if !m.Password.IsZero() {
		password, err := m.Password.Read()
		if err != nil {
			return nil, fmt.Errorf("password: %w", err)
		}
		hide = NewRedactor(password)
		packet.Password, packet.PasswordFlag = []byte(password), true
	}
	var l *MQTTLink
	err = first(ctx, brokers, hide.Error, func(b broker) error {
		l = &MQTTLink{hide: hide, will: s.Farewell != nil}
		return l.open(ctx, b, config, packet, &s)
	})
	if err != nil {
		return nil, err
	}
	return l, nil
}

func (l *MQTTLink) open(ctx context.Context, b broker, config *tls.Config, packet *paho.Connect, s *MQTTSession) error {
	l.Context, l.fail = context.WithCancelCause(context.WithoutCancel(ctx))
	ctx, cancel := context.WithTimeout(ctx, mqttHandshake)
	defer cancel()
	raw, err := b.dial(ctx, config)
	if err != nil {
		return err
	}
	l.raw = &mqttConn{Conn: raw, r: bufio.NewReaderSize(raw, 32<<10)}
	l.ping.conn = l.raw
	client := paho.ClientConfig{
		ClientID: s.ClientID, Conn: l.raw, PingHandler: &l.ping, PacketTimeout: time.Hour, // contexts say how long
		OnClientError: func(err error) { l.lost(err) },
		OnServerDisconnect: func(d *paho.Disconnect) {
			said := ""
			if d.Properties != nil {
				said = d.Properties.ReasonString
			}
			l.lost(MQTTReason(d.ReasonCode, said))
		},
		OnPublishReceived: []func(paho.PublishReceived) (bool, error){func(p paho.PublishReceived) (ok bool, err error) {
			defer func() {
				if err != nil {
					l.fail(err)
				}
			}()
			defer Contain(&err)
			if s.Received != nil {
				s.Received(p.Packet)
			}
			return true, nil
		}},
	}
	state := s.State
	if state == nil {
		state = sessionstate.NewInMemory()
	}
	client.Session = &mqttState{state, l}
	client.AuthHandler = mqttNoAuth{}
	l.Client = paho.NewClient(client)
	login := ctx
	if s.Again {
		late, stop := context.WithCancel(context.WithoutCancel(ctx))
		defer stop()
		defer context.AfterFunc(ctx, func() { time.AfterFunc(mqttLeave, stop) })()
		login = late
	}
	answer, err := l.Client.Connect(login, packet)
	if answer != nil && answer.ReasonCode == packets.ConnackSuccess && s.Answered != nil {
		s.Answered(answer.SessionPresent)
	}
	if answer != nil && answer.ReasonCode != packets.ConnackSuccess {
		said := ""
		if answer.Properties != nil {
			said = answer.Properties.ReasonString
		}
		if err == nil {
			l.Close()
		}
		return MQTTReason(answer.ReasonCode, said)
	}
	if err != nil {
		raw.Close()
		return err
	}
	if ctx.Err() != nil {
		l.Close()
		return ctx.Err()
	}
	return nil
}

// lost notes why the connection is over.
func (l *MQTTLink) lost(err error) { l.fail(l.hide.Error(fmt.Errorf("connection lost: %w", err))) }

// With returns a context that ends with ctx or with the connection. After it, Err tells which.
func (l *MQTTLink) With(ctx context.Context) (context.Context, context.CancelFunc) {
	return either(ctx, l.Context)
}

// Err returns why a call failed: the reason for which the connection was lost, where that is what ended the call,
// else err.
func (l *MQTTLink) Err(err error) error {
	if err == nil {
		return nil
	}
	var class *classified
	if errors.As(err, &class) || errors.Is(err, paho.ErrInvalidArguments) || errors.Is(err, context.DeadlineExceeded) {
		return l.hide.Error(err)
	}
	// The client tells the callers before it tells us.
	select {
	case <-l.Context.Done():
		return context.Cause(l.Context)
	case <-time.After(mqttClose):
		return l.hide.Error(err)
	}
}

// Reason is MQTTReason without the credentials in it.
func (l *MQTTLink) Reason(code byte, said string) error { return MQTTReason(code, l.hide.Text(said)) }

// Ping returns when the broker has answered a ping, that is, has read all that was written before.
func (l *MQTTLink) Ping(ctx context.Context) error { return l.ping.send(ctx) }

// Drop ends the connection at once.
func (l *MQTTLink) Drop(why error) {
	l.fail(why)
	l.raw.Close()
}

// Close says farewell and returns when nothing is received any more. It does not wait for a broker that does not answer.
func (l *MQTTLink) Close() {
	defer time.AfterFunc(mqttClose, func() { l.raw.Close() }).Stop()
	if l.will {
		// The broker ends the connection when it has read this. A next one that it saw before would replace this one, and
		// some publish no will then.
		if _, err := (&paho.Disconnect{ReasonCode: mqttWithWill}).Packet().WriteTo(l.raw); err == nil {
			select {
			case <-l.Context.Done():
			case <-time.After(mqttClose):
			}
		}
	}
	_ = l.Disconnect(&paho.Disconnect{})
	l.fail(errMQTTClosed)
}

// mqttState contains what the client's session panics with on a goroutine of the client: it answers a PUBREC on a connection
// that may just be gone.
type mqttState struct {
	session.SessionManager
	l *MQTTLink
}

// PacketReceived implements session.SessionManager.
func (s *mqttState) PacketReceived(p *packets.ControlPacket, to chan<- *packets.Publish) (err error) {
	defer func() {
		var panicked *PanicError
		if errors.As(err, &panicked) {
			s.l.Drop(err)
		}
	}()
	defer Contain(&err)
	return s.SessionManager.PacketReceived(p, to)
}

// mqttNoAuth answers a broker that begins a dialogue for which nobody has asked. Without it the client panics.
type mqttNoAuth struct{}

// Authenticate answers a further step of a login: it gives back nothing that could let us in.
func (mqttNoAuth) Authenticate(a *paho.Auth) *paho.Auth {
	return &paho.Auth{ReasonCode: packets.AuthContinueAuthentication, Properties: &paho.AuthProperties{AuthMethod: a.Properties.AuthMethod}}
}

// Authenticated is told of the end of a login.
func (mqttNoAuth) Authenticated() {}

// mqttConn is the connection as the client wants it: a packet is written by one at a time.
type mqttConn struct {
	net.Conn
	sync.Mutex
	r *bufio.Reader
}

// Read implements net.Conn. The client reads single bytes.
func (c *mqttConn) Read(p []byte) (int, error) { return c.r.Read(p) }

// Write implements net.Conn. A packet that is cut short makes the rest unreadable.
func (c *mqttConn) Write(p []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(mqttWrite)); err != nil {
		return 0, err
	}
	n, err := c.Conn.Write(p)
	if err != nil {
		c.Conn.Close()
	}
	return n, err
}

// mqttPinger asks for signs of life, in the place of the client's own, which does not tell when one has come.
type mqttPinger struct {
	conn  net.Conn
	order sync.Mutex // of what is written and waited for

	mu   sync.Mutex
	wait []chan struct{} // of the pings without an answer, the oldest first
}

// send writes a ping and waits for the answer.
func (p *mqttPinger) send(ctx context.Context) error {
	answered := make(chan struct{})
	p.order.Lock()
	p.mu.Lock()
	p.wait = append(p.wait, answered)
	p.mu.Unlock()
	_, err := packets.NewControlPacket(packets.PINGREQ).WriteTo(p.conn)
	p.order.Unlock()
	if err != nil {
		return err
	}
	select {
	case <-answered:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Run implements paho.Pinger.
func (p *mqttPinger) Run(ctx context.Context, _ net.Conn, keepAlive uint16) (err error) {
	defer Contain(&err)
	if keepAlive == 0 {
		return nil // the broker wants none
	}
	every := time.Duration(keepAlive) * time.Second / 2
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		soon, cancel := context.WithTimeout(ctx, every)
		err := p.send(soon)
		cancel()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("no sign of life: %w", err)
		}
	}
}

// PingResp implements paho.Pinger.
func (p *mqttPinger) PingResp() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.wait) > 0 {
		close(p.wait[0])
		p.wait = p.wait[1:]
	}
}

// PacketSent implements paho.Pinger.
func (p *mqttPinger) PacketSent() {}

// PacketReceived implements paho.Pinger.
func (p *mqttPinger) PacketReceived() {}

// SetDebug implements paho.Pinger.
func (p *mqttPinger) SetDebug(log.Logger) {}

// MQTTReason is the error for a reason code of the broker, with what it says besides. It has its class.
func MQTTReason(code byte, said string) error {
	class, text := Other, mqttReasons[code]
	switch code {
	case 0x86, 0x87, 0x8A, 0x8C:
		class = Auth
	case 0x88, 0x8B, 0x8D, 0x8E, 0x98, 0x9C, 0x9D, 0xA0, 0x00:
		class = Network
	case 0x89, 0x93, 0x96, 0x97, 0x9F:
		class = Throttle
	case 0x10, 0x8F, 0x90:
		class = Missing
	}
	if text == "" {
		text = "the broker says no"
	}
	if said != "" {
		text += ": " + said
	}
	return WithClass(class, fmt.Errorf("%s (reason code 0x%02X)", text, code))
}

// mqttReasons are the codes that MQTT 5 gives in answers and in farewells, as far as we may meet them.
var mqttReasons = map[byte]string{
	0x00: "the broker says goodbye", 0x01: "the broker does not speak MQTT 5", 0x10: "no subscription takes the topic", 0x80: "unspecified error", 0x81: "malformed packet", 0x82: "protocol error",
	0x83: "the broker does not want it", 0x84: "the broker does not speak MQTT 5", 0x85: "client id not valid", 0x86: "wrong user name or password",
	0x87: "not authorized", 0x88: "broker unavailable", 0x89: "broker busy", 0x8A: "banned", 0x8B: "the broker is shutting down",
	0x8C: "this way to log in is not supported", 0x8D: "the broker heard nothing in time", 0x8E: "another connection has taken the client id",
	0x8F: "topic filter not valid", 0x90: "topic not valid", 0x91: "packet identifier in use", 0x92: "packet identifier not found",
	0x93: "more messages under way than agreed", 0x95: "packet too large", 0x96: "message rate too high", 0x97: "quota exceeded",
	0x98: "ended by an operator", 0x99: "payload not valid", 0x9A: "retained messages are not supported", 0x9B: "QoS not supported",
	0x9C: "use another broker", 0x9D: "the broker has moved", 0x9E: "shared subscriptions are not supported", 0x9F: "too many connections",
	0xA0: "connected for too long", 0xA1: "subscription identifiers are not supported", 0xA2: "wildcards are not supported",
}

// mqttTopic is how long a topic may be, in bytes.
const mqttTopic = 65535

// MQTTTopic checks a topic to publish to.
func MQTTTopic(s string) error {
	switch {
	case s == "" || len(s) > mqttTopic:
		return fmt.Errorf("a topic has 1 to %d bytes", mqttTopic)
	case strings.ContainsAny(s, "#+"):
		return fmt.Errorf("%q holds a wildcard, to which nothing can be published", s)
	case strings.ContainsRune(s, 0):
		return errors.New("holds a zero byte")
	}
	return nil
}

// MQTTFilter checks a topic filter, which may have wildcards, and reports whether it is a shared subscription.
func MQTTFilter(s string) (shared bool, err error) {
	filter := s
	if rest, ok := strings.CutPrefix(s, "$share/"); ok {
		group, topic, _ := strings.Cut(rest, "/")
		if group == "" || topic == "" || strings.ContainsAny(group, "#+") {
			return true, fmt.Errorf("%q is not a shared subscription such as $share/group/orders/#", s)
		}
		shared, filter = true, topic
	}
	if filter == "" || len(s) > mqttTopic || strings.ContainsRune(s, 0) {
		return shared, fmt.Errorf("a topic filter has 1 to %d bytes and no zero byte", mqttTopic)
	}
	for level := range strings.SplitSeq(filter, "/") {
		if strings.ContainsAny(level, "#+") && len(level) > 1 {
			return shared, fmt.Errorf("%q: a wildcard stands alone between slashes", s)
		}
	}
	if i := strings.IndexByte(filter, '#'); i >= 0 && i != len(filter)-1 {
		return shared, fmt.Errorf("%q: # stands at the end only", s)
	}
	return shared, nil
}
