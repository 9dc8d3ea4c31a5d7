package sinks

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/eclipse/paho.golang/paho"
	"github.com/eclipse/paho.golang/paho/session/state"

	"github.com/lag-monitor/lag-monitor/internal/conn"
)

// MQTTConfig is a sink `mqtt`: a subscription of its own on an MQTT 5 broker.
type MQTTConfig struct {
	// Broker says how to connect.
	Broker conn.MQTT `yaml:",inline"`
	// Topic is the filter to subscribe to. + is one level, and # at the end any number of them.
	Topic string `yaml:"topic,omitempty"`
	// QoS is the most with which the broker sends messages: 0, 1 or 2.
	QoS int `yaml:"qos"`
	// ClientID is what the broker knows the sink by. Empty: a new one.
	ClientID string `yaml:"client_id,omitempty"`
	// SessionExpiry is how long the broker keeps the session, and messages for it, while the sink is away. 0: it
	// keeps nothing.
	SessionExpiry conn.Duration `yaml:"session_expiry,omitempty"`
	// QueueLimit is how many messages the broker holds for one client before it throws some away. 0: no limit.
	QueueLimit int `yaml:"queue_limit"`
	// MarkerTopic is the beginning of a topic to which the sink publishes, to see that what came before has come. The
	// client id is its last level.
	MarkerTopic string `yaml:"marker_topic,omitempty"`
	// Dedicated says that the group of a shared subscription is the monitor's alone.
	Dedicated bool `yaml:"dedicated,omitempty"`
}

// NewMQTT returns the defaults.
func NewMQTT() *MQTTConfig {
	return &MQTTConfig{Broker: conn.NewMQTT(), QoS: 1, QueueLimit: 1000, MarkerTopic: conn.UserAgent}
}

const (
	// mqttAnswer bounds each answer of the broker. It is also how long nothing may come while a marker is out.
	mqttAnswer = 10 * time.Second
	// mqttWait bounds the wait for a marker while other messages come.
	mqttWait = time.Minute
	// mqttProve is how often a marker is sent when little else comes.
	mqttProve = 400 * time.Millisecond
	// mqttMargin is how long a message may take from one node of a cluster to another.
	mqttMargin = 500 * time.Millisecond
	// mqttReceive is how many messages may be under way to a sink that are not acknowledged.
	mqttReceive = 1000
	// mqttLeast is the least queue limit that tells an overflow from a busy moment.
	mqttLeast = 100
	// mqttFarewell is what the farewell of a connection begins with.
	mqttFarewell = "farewell"
	// mqttSession is how long a session may be kept.
	mqttSession = 7 * 24 * time.Hour
)

// Validate implements Config.
func (c *MQTTConfig) Validate() error {
	errs := []error{c.Broker.Validate()}
	add := func(path, format string, args ...any) { errs = append(errs, conn.Field(path, format, args...)) }
	shared, err := conn.MQTTFilter(c.Topic)
	switch {
	case c.Topic == "":
		add("topic", "is required: such as orders/+/done or orders/#")
	case err != nil:
		add("topic", "%w", err)
	case shared && !c.Dedicated:
		add("topic", "who shares a subscription takes messages from the others: leave out $share/GROUP/ for a copy of each message, or set dedicated: true if nobody else is in the group")
	case !shared && c.Dedicated:
		add("dedicated", "goes with a topic that begins with $share/: any other subscription takes nothing from anybody")
	}
	if c.QoS < 0 || c.QoS > 2 {
		add("qos", "%d is not 0, 1 or 2", c.QoS)
	}
	if len(c.ClientID) > 1000 || strings.ContainsAny(c.ClientID, "/#+\x00") {
		add("client_id", "has up to 1000 bytes, and none of / # +")
	}
	if d := time.Duration(c.SessionExpiry); d != 0 && (d < 10*time.Second || d > mqttSession || d%time.Second != 0) {
		add("session_expiry", "%s is not 0, and not a number of whole seconds from 10s to 7d", c.SessionExpiry)
	}
	if c.SessionExpiry != 0 && c.QoS == 0 {
		add("qos", "a broker keeps no message of QoS 0 for a session: 1 or 2 with session_expiry")
	}
	if c.QueueLimit != 0 && c.QueueLimit < mqttLeast {
		add("queue_limit", "%d is not 0, and less than %d", c.QueueLimit, mqttLeast)
	}
	if err := conn.MQTTTopic(c.MarkerTopic); err != nil || strings.HasPrefix(c.MarkerTopic, "$") {
		add("marker_topic", "%q is not a topic such as lag-monitor", c.MarkerTopic)
	}
	return errors.Join(errs...)
}

// Beside implements Besider. A client id has one connection, so the twin takes a new one.
func (c *MQTTConfig) Beside() (Config, error) {
	twin := *c
	twin.ClientID, twin.SessionExpiry = "", 0
	return &twin, nil
}

// Open implements Config.
func (c *MQTTConfig) Open() (Sink, error) {
	if _, err := c.Broker.TLS.Config(); err != nil {
		return nil, fmt.Errorf("tls: %w", err)
	}
	if c.SessionExpiry == 0 {
		return &mqttSink{c: c}, nil
	}
	return &mqttKept{mqttSink: mqttSink{c: c}, id: c.ClientID, seed: maphash.MakeSeed(), state: state.NewInMemory()}, nil
}

// mqttSink listens with a session that ends with the connection.
type mqttSink struct {
	c     *MQTTConfig
	begun bool // it has listened before
}

// Check implements Checker. It has a client id of its own, and takes nothing out of a shared subscription.
func (s *mqttSink) Check(ctx context.Context) error {
	l, err := s.c.Broker.Connect(ctx, conn.MQTTSession{ClientID: conn.MQTTClientID(conn.UserAgent)})
	if err != nil {
		return err
	}
	defer l.Close()
	if s.c.Dedicated {
		return nil
	}
	return s.c.subscribe(ctx, l, s.c.Topic)
}

// subscribe returns when the broker has granted all of these filters.
func (c *MQTTConfig) subscribe(ctx context.Context, l *conn.MQTTLink, filters ...string) error {
	ctx, stop := context.WithTimeout(ctx, mqttAnswer)
	defer stop()
	ctx, cancel := l.With(ctx)
	defer cancel()
	// What was retained is not of now.
	const notRetained = 2
	packet := &paho.Subscribe{}
	for _, filter := range filters {
		packet.Subscriptions = append(packet.Subscriptions, paho.SubscribeOptions{Topic: filter, QoS: byte(c.QoS), RetainHandling: notRetained})
	}
	answer, err := l.Subscribe(ctx, packet)
	if answer == nil || len(answer.Reasons) != len(filters) {
		if err == nil {
			err = errors.New("the broker's answer is not one to this subscription")
		}
		return fmt.Errorf("topic %s: subscribe: %w", filters[0], l.Err(err))
	}
	for i, granted := range answer.Reasons {
		if granted >= 0x80 {
			said := ""
			if answer.Properties != nil {
				said = answer.Properties.ReasonString
			}
			return fmt.Errorf("topic %s: subscribe: %w", filters[i], l.Reason(granted, said))
		}
		if int(granted) < c.QoS {
			return conn.WithClass(conn.Other, fmt.Errorf("topic %s: the broker grants QoS %d, and not %d: set qos: %[2]d", filters[i], granted, c.QoS))
		}
	}
	return nil
}

// Run implements Sink. What is published while it is away is gone.
func (s *mqttSink) Run(ctx context.Context, f *Feed) error {
	w := &mqttWork{c: s.c, id: s.c.ClientID, f: f}
	if w.id == "" {
		w.id = conn.MQTTClientID(conn.UserAgent)
	}
	w.deliver = func(m Message, _ *paho.Publish) { f.Deliver(m) }
	w.lost = func() (lost string) {
		if s.begun {
			lost = "disconnected"
		}
		s.begun = true
		return lost
	}
	return w.run(ctx, conn.MQTTSession{})
}

// mqttKept listens with a session that the broker keeps while it is away.
type mqttKept struct {
	mqttSink
	seed  maphash.Seed
	state *state.State // what the two sides have to know of each other's messages

	mu      sync.Mutex
	id      string       // the client id; empty before the first Run where none is configured
	resumed bool         // the session is of the process before
	fresh   bool         // the broker has begun a session since the sink was ready
	said    string       // the farewell of the connection, which the broker publishes into the session when it is over
	unheard []string     // the farewells of connections before it that have not come
	kept    bool         // a heartbeat came with a QoS that the broker keeps
	loose   bool         // one came with QoS 0
	past    [2048]uint64 // hashes of the last messages that were delivered
	next    int          // in past
	earlier uint64       // see mqttWork
}

// client returns the client id.
func (s *mqttKept) client() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.id == "" {
		s.id = conn.MQTTClientID(conn.UserAgent)
	}
	return s.id
}

// Position implements Resumer. The broker keeps the place; a session is of one topic filter, since nobody else ends its
// other subscriptions.
func (s *mqttKept) Position() map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.id == "" {
		return map[string]string{}
	}
	return map[string]string{s.c.Topic: s.id}
}

// Resume implements Resumer.
func (s *mqttKept) Resume(parts map[string]string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if id := parts[s.c.Topic]; id != "" && (s.c.ClientID == "" || s.c.ClientID == id) {
		s.id, s.resumed = id, true
	}
}

// Expires implements Expirer: what waits in a session has an expiry interval.
func (s *mqttKept) Expires() bool { return true }

// Run implements Sink.
func (s *mqttKept) Run(ctx context.Context, f *Feed) error {
	w := &mqttWork{c: s.c, id: s.client(), f: f, lost: s.lost, parted: s.parted, earlier: s.earlier}
	w.deliver = func(m Message, p *paho.Publish) { s.deliver(f, m, p) }
	defer func() { s.earlier = w.earlier + w.taken.Load() - w.before }()
	farewell := conn.MQTTClientID(mqttFarewell)
	return w.run(ctx, conn.MQTTSession{
		Expiry: time.Duration(s.c.SessionExpiry), State: s.state,
		Farewell: &paho.WillMessage{Topic: w.markers(), QoS: 1, Payload: []byte(farewell)},
		Answered: func(present bool) { s.answered(present, farewell) },
	})
}

// answered notes whether the broker had the session. One that it has begun stays in doubt until the sink is ready: the
// connection may be lost before, and then the session is there the next time.
func (s *mqttKept) answered(present bool, farewell string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fresh = s.fresh || !present
	if s.said != "" {
		s.unheard = append(s.unheard, s.said)
	}
	s.said = farewell
}

// parted takes the farewell of a connection: whatever has come for the session since then is behind it.
func (s *mqttKept) parted(farewell string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if farewell == s.said {
		s.said = "" // the broker has ended the connection, and it has not ended yet
	}
	s.unheard = slices.DeleteFunc(s.unheard, func(f string) bool { return f == farewell })
}

// deliver delivers a message, unless it was: the broker sends what it has no acknowledgement of again, with the same
// packet identifier. Another one with the same contents is the pipeline's, also where the broker has sent it before in vain.
func (s *mqttKept) deliver(f *Feed, m Message, p *paho.Publish) {
	var h maphash.Hash
	h.SetSeed(s.seed)
	for _, part := range [...][]byte{[]byte(p.Topic), m.Header, m.Body} {
		_, _ = h.Write(part)
		_ = h.WriteByte(0)
	}
	_, _ = h.Write([]byte{byte(p.PacketID >> 8), byte(p.PacketID)})
	sum := h.Sum64()
	s.mu.Lock()
	again := p.Duplicate() && slices.Contains(s.past[:], sum)
	s.mu.Unlock()
	if again {
		return
	}
	ours := f.Deliver(m)
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.QoS > 0 {
		s.past[s.next] = sum
		s.next = (s.next + 1) % len(s.past)
	}
	if ours {
		s.kept, s.loose = s.kept || p.QoS > 0, s.loose || p.QoS == 0
	}
}

// lost tells why something may have been missed since the last connection, if so.
func (s *mqttKept) lost() (lost string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case !s.begun && !s.resumed:
	case s.fresh:
		lost = "session_lost"
	case s.resumed:
		// What was acknowledged after the journal was written for the last time does not come again.
		lost = "restarted"
	case len(s.unheard) > 0:
		// Somebody else has had the session, and the messages in it. Or the broker has not noticed that the connection was
		// lost before there was another, and publishes no farewell then.
		lost = "taken_over"
	case s.loose || !s.kept:
		lost = "not_kept"
		s.kept = false
	}
	s.begun, s.resumed, s.fresh, s.loose, s.unheard = true, false, false, false, nil
	return lost
}

// mqttWork is a Run at work.
type mqttWork struct {
	c       *MQTTConfig
	id      string
	f       *Feed
	deliver func(Message, *paho.Publish) // called on one goroutine
	lost    func() string                // what may have been missed before now
	parted  func(string)                 // takes a farewell; nil where there are none

	marker string // topic
	nonce  string // of this Run
	// taken is how many messages have come; busy is told when it reaches alarm.
	taken, alarm atomic.Uint64
	// before is what taken was when the last marker that has come back was sent; earlier is how many the Runs before this
	// had taken since theirs was. What the broker has thrown away in the meantime no marker has told yet.
	before, earlier uint64

	busy chan struct{}
	back chan mqttMarker
}

// mqttMarker is a marker that has come back.
type mqttMarker struct{ number, taken uint64 }

// received takes a message.
func (w *mqttWork) received(p *paho.Publish) {
	if p.Topic == w.marker {
		w.count() // it had its place in the queue of the client, too
		if w.parted != nil && strings.HasPrefix(string(p.Payload), mqttFarewell) {
			w.parted(string(p.Payload))
		}
		// One of another Run may have waited in the session.
		if text, ok := strings.CutPrefix(string(p.Payload), w.nonce); ok {
			if n, err := strconv.ParseUint(text, 10, 64); err == nil {
				// It comes twice where the sink's filter takes it, too. The second one must not be in the way of the next.
				select {
				case <-w.back:
				default:
				}
				w.back <- mqttMarker{n, w.taken.Load()}
			}
		}
		return
	}
	if p.Retain {
		// Asked for or not: it was published before.
		w.f.Skip(1)
	} else {
		m := Message{Body: p.Payload}
		if p.Properties != nil {
			for _, u := range p.Properties.User {
				if strings.EqualFold(u.Key, heartbeatHeader) {
					m.Header = []byte(u.Value)
				}
			}
		}
		w.deliver(m, p)
	}
	w.count()
}

// count counts a message that has come.
func (w *mqttWork) count() {
	if w.taken.Add(1) == w.alarm.Load() {
		select {
		case w.busy <- struct{}{}:
		default:
		}
	}
}

// markers returns the topic of the markers and of the farewells.
func (w *mqttWork) markers() string { return w.c.MarkerTopic + "/" + w.id }

func (w *mqttWork) run(ctx context.Context, session conn.MQTTSession) error {
	if err := w.listen(ctx, session); ctx.Err() == nil {
		return err
	}
	return nil
}

func (w *mqttWork) listen(ctx context.Context, session conn.MQTTSession) error {
	w.marker, w.nonce = w.markers(), conn.MQTTClientID("")+" "
	w.busy, w.back = make(chan struct{}, 1), make(chan mqttMarker, 1)
	session.ClientID, session.ReceiveMaximum, session.Received = w.id, mqttReceive, w.received
	session.Again = session.Expiry > 0 || w.c.ClientID != ""
	l, err := w.c.Broker.Connect(ctx, session)
	if err != nil {
		return err
	}
	defer l.Close()
	if err := w.c.subscribe(ctx, l, w.c.Topic, w.marker); err != nil {
		return err
	}

	ctx, cancel := l.With(ctx)
	defer cancel()
	tick := time.NewTicker(mqttProve)
	defer tick.Stop()
	var ready time.Time
	for n := uint64(1); ; n++ {
		asked, taken := time.Now(), w.taken.Load()
		if w.c.QueueLimit > 0 {
			w.alarm.Store(taken + uint64(w.c.QueueLimit)/4)
		}
		if err := w.send(ctx, l, n); err != nil {
			return fmt.Errorf("topic %s: %w", w.marker, err)
		}
		there, err := w.await(ctx, n)
		if err != nil {
			return fmt.Errorf("topic %s: %w", w.marker, l.Err(err))
		}
		if ready.IsZero() {
			// A subscription that is granted may be one that brings nothing. Now it is known to work.
			if lost := w.lost(); lost != "" {
				w.f.Gap(lost)
			}
		}
		// Between the two markers the broker had at most what has come since the first was sent.
		if limit := uint64(w.c.QueueLimit); limit > 0 && w.earlier+there-w.before >= limit {
			w.f.Gap("overflow")
		}
		w.before, w.earlier = taken, 0
		if ready.IsZero() {
			ready = time.Now()
			w.f.Ready()
		} else if t := asked.Add(-mqttMargin); !t.Before(ready) {
			w.f.CaughtUp(t)
		}
		select {
		case <-tick.C:
		case <-w.busy:
		case <-ctx.Done():
			return l.Err(context.Cause(ctx))
		}
	}
}

// send publishes a marker. A broker sends to each client in the order in which it has taken the messages, so that
// whatever it had taken before comes before it.
func (w *mqttWork) send(ctx context.Context, l *conn.MQTTLink, n uint64) error {
	ctx, stop := context.WithTimeout(ctx, mqttAnswer)
	defer stop()
	expiry := uint32(mqttWait / time.Second)
	answer, err := l.Publish(ctx, &paho.Publish{Topic: w.marker, QoS: 1, Payload: []byte(w.nonce + strconv.FormatUint(n, 10)),
		Properties: &paho.PublishProperties{MessageExpiry: &expiry}})
	if answer != nil && answer.ReasonCode != 0 {
		said := ""
		if answer.Properties != nil {
			said = answer.Properties.ReasonString
		}
		return fmt.Errorf("the sink has to publish to it: %w", l.Reason(answer.ReasonCode, said))
	}
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return fmt.Errorf("no answer to a marker: %w", l.Err(err))
	}
	return nil
}

// await returns how many messages had come before a marker.
func (w *mqttWork) await(ctx context.Context, n uint64) (taken uint64, err error) {
	end := time.Now().Add(mqttWait)
	for {
		last := w.taken.Load()
		select {
		case m := <-w.back:
			if m.number == n {
				return m.taken, nil
			}
		case <-time.After(mqttAnswer):
			if w.taken.Load() == last || time.Now().After(end) {
				return 0, conn.WithClass(conn.Network, errors.New("the marker does not come back: the sink has to be allowed to read it"))
			}
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
}
