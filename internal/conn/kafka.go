package conn

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/apiversions"
	"github.com/segmentio/kafka-go/protocol/saslauthenticate"
	"github.com/segmentio/kafka-go/protocol/saslhandshake"
	"github.com/segmentio/kafka-go/sasl"
	"github.com/segmentio/kafka-go/sasl/aws_msk_iam_v2"
	"github.com/segmentio/kafka-go/sasl/plain"
	"github.com/segmentio/kafka-go/sasl/scram"
)

// Kafka is what both ends of the kafka transport say of the cluster.
type Kafka struct {
	// Brokers to ask for the cluster's layout first, host:port. One that answers is enough.
	Brokers []string `yaml:"brokers"`
	// ClientID is how the brokers see us in their logs and quotas.
	ClientID string `yaml:"client_id,omitempty"`
	// TLS encrypts the connections; `tls: {}` means with the system's roots.
	TLS *TLS `yaml:"tls,omitempty"`
	// SASL logs in.
	SASL *KafkaSASL `yaml:"sasl,omitempty"`
	// Timeout is how long a connection may take to be made, and a broker to answer.
	Timeout Duration `yaml:"timeout"`

	// Dial makes the TCP connections, where a test or a tunnel stands between; nil is a net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error) `yaml:"-"`
}

// KafkaSASL is how to log in.
type KafkaSASL struct {
	// Mechanism is plain, scram-sha-256, scram-sha-512 or aws-msk-iam.
	Mechanism string `yaml:"mechanism"`
	// Username and Password are for plain and scram.
	Username string `yaml:"username,omitempty"`
	Password Secret `yaml:"password,omitempty"`
	// Region of the MSK cluster; default: that of the AWS environment. The credentials are those of the
	// AWS environment too: variables, profile, IRSA, instance role.
	Region string `yaml:"region,omitempty"`
	// Profile of the AWS configuration files to take.
	Profile string `yaml:"profile,omitempty"`
}

var kafkaMechanisms = []string{"plain", "scram-sha-256", "scram-sha-512", "aws-msk-iam"}

// NewKafka returns the defaults.
func NewKafka() Kafka {
	return Kafka{ClientID: "lag-monitor", Timeout: Duration(10 * time.Second)}
}

// Validate reports all mistakes.
func (k *Kafka) Validate() error {
	var errs []error
	if len(k.Brokers) == 0 {
		errs = append(errs, Field("brokers", "at least one broker is needed, as host:port"))
	}
	for i, b := range k.Brokers {
		if err := checkHostPort(b); err != nil {
			errs = append(errs, Field(fmt.Sprintf("brokers[%d]", i), "%w", err))
		}
	}
	if k.Timeout <= 0 {
		errs = append(errs, Field("timeout", "must be longer than 0"))
	}
	if err := k.TLS.Validate(); err != nil {
		errs = append(errs, Prefix("tls", err))
	}
	if s := k.SASL; s != nil {
		switch {
		case !slices.Contains(kafkaMechanisms, s.Mechanism):
			errs = append(errs, Field("sasl.mechanism", "%q is not a mechanism: use one of %s", s.Mechanism, strings.Join(kafkaMechanisms, ", ")))
		case s.Mechanism == "aws-msk-iam":
			if s.Username != "" || !s.Password.IsZero() {
				errs = append(errs, Field("sasl.username", "aws-msk-iam takes its credentials from the AWS environment: remove username and password"))
			}
			if k.TLS == nil {
				errs = append(errs, Field("sasl.mechanism", "aws-msk-iam works over TLS only: add tls: {}"))
			}
		default:
			if s.Username == "" {
				errs = append(errs, Field("sasl.username", "%s needs a username", s.Mechanism))
			}
			if err := s.Password.Validate(); err != nil {
				errs = append(errs, Prefix("sasl.password", err))
			}
			if s.Region != "" || s.Profile != "" {
				errs = append(errs, Field("sasl.region", "region and profile belong to aws-msk-iam"))
			}
		}
	}
	return errors.Join(errs...)
}

func checkHostPort(s string) error {
	host, port, err := net.SplitHostPort(s)
	if err != nil || host == "" {
		return fmt.Errorf("%q is not host:port", s)
	}
	if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
		return fmt.Errorf("%q has no port from 1 to 65535", s)
	}
	return nil
}

// Cluster reads the certificates and returns what dials. It touches no network.
func (k *Kafka) Cluster() (*KafkaCluster, error) {
	c := &KafkaCluster{settings: *k, dial: k.Dial}
	if c.dial == nil {
		c.dial = (&net.Dialer{}).DialContext
	}
	var err error
	if c.tls, err = k.TLS.Config(); err != nil {
		return nil, Prefix("tls", err)
	}
	if k.SASL != nil && k.SASL.Mechanism == "aws-msk-iam" {
		var opts []func(*awsconfig.LoadOptions) error
		if k.SASL.Region != "" {
			opts = append(opts, awsconfig.WithRegion(k.SASL.Region))
		}
		if k.SASL.Profile != "" {
			opts = append(opts, awsconfig.WithSharedConfigProfile(k.SASL.Profile))
		}
		if c.aws, err = awsconfig.LoadDefaultConfig(context.Background(), opts...); err != nil {
			return nil, Prefix("sasl", err)
		}
		if c.aws.Region == "" {
			return nil, Field("sasl.region", "neither given nor found in the AWS environment")
		}
	}
	return c, nil
}

// A KafkaCluster makes connections. It is safe for concurrent use and holds none itself.
type KafkaCluster struct {
	settings Kafka
	dial     func(ctx context.Context, network, address string) (net.Conn, error)
	tls      *tls.Config
	aws      aws.Config
}

// Timeout is how long a broker may take to answer a request that it does not hold.
func (c *KafkaCluster) Timeout() time.Duration { return time.Duration(c.settings.Timeout) }

// Seeds are the brokers of the configuration.
func (c *KafkaCluster) Seeds() []string { return c.settings.Brokers }

// Any connects to the first of the addresses that answers; without addresses, to the first of the seeds.
func (c *KafkaCluster) Any(ctx context.Context, addresses ...string) (*KafkaConn, error) {
	if len(addresses) == 0 {
		addresses = c.Seeds()
	}
	var errs []error
	for _, a := range addresses {
		kc, err := c.Connect(ctx, a)
		if err == nil {
			return kc, nil
		}
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	return nil, errors.Join(errs...)
}

// Connect dials a broker, encrypts, asks for its versions and logs in. The end of ctx ends the
// attempt, not the connection.
func (c *KafkaCluster) Connect(ctx context.Context, address string) (*KafkaConn, error) {
	kc, err := c.connect(ctx, address)
	if err != nil {
		return nil, fmt.Errorf("broker %s: %w", address, err)
	}
	return kc, nil
}

func (c *KafkaCluster) connect(ctx context.Context, address string) (_ *KafkaConn, err error) {
	ctx, cancel := context.WithTimeout(ctx, c.Timeout())
	defer cancel()
	nc, err := c.dial(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	raw := nc
	// A TLS connection that is closed may still try to say goodbye to a peer which no longer listens;
	// what ends an attempt is therefore the connection below.
	stop := context.AfterFunc(ctx, func() { raw.Close() })
	defer func() {
		if !stop() && err == nil {
			err = ctx.Err()
		}
		if err != nil {
			raw.Close()
			if ctx.Err() != nil {
				err = WithClass(Network, fmt.Errorf("connection not made in %s: %w", c.Timeout(), err))
			}
		}
	}()
	if c.tls != nil {
		cfg := c.tls
		if cfg.ServerName == "" {
			cfg = cfg.Clone()
			cfg.ServerName, _, _ = net.SplitHostPort(address)
		}
		tc := tls.Client(nc, cfg)
		if err := tc.HandshakeContext(ctx); err != nil {
			return nil, fmt.Errorf("tls: %w", err)
		}
		nc = tc
	}
	kc := &KafkaConn{nc: nc, raw: raw, timeout: c.Timeout(), clientID: c.settings.ClientID, versions: make(map[int16][2]int16)}
	pc := protocol.NewConn(nc, c.settings.ClientID)
	msg, err := pc.RoundTrip(new(apiversions.Request))
	if err != nil {
		return nil, fmt.Errorf("api versions: %w", err)
	}
	res, ok := msg.(*apiversions.Response)
	if !ok || res.ErrorCode != 0 {
		return nil, fmt.Errorf("api versions: %w", kafkaError(res.ErrorCode))
	}
	selected := make(map[protocol.ApiKey]int16, len(res.ApiKeys))
	for _, k := range res.ApiKeys {
		kc.versions[k.ApiKey] = [2]int16{k.MinVersion, k.MaxVersion}
		key := protocol.ApiKey(k.ApiKey)
		selected[key] = key.SelectVersion(k.MinVersion, k.MaxVersion)
	}
	pc.SetVersions(selected)
	if c.settings.SASL != nil {
		life, err := c.login(ctx, pc, address)
		if err != nil {
			return nil, fmt.Errorf("sasl %s: %w", c.settings.SASL.Mechanism, err)
		}
		if life > 0 {
			// A broker ends a session that has outlived its credentials; we are gone before.
			kc.expires = time.Now().Add(life * 8 / 10)
		}
	}
	return kc, nil
}

func (c *KafkaCluster) mechanism() (sasl.Mechanism, error) {
	s := c.settings.SASL
	if s.Mechanism == "aws-msk-iam" {
		m := aws_msk_iam_v2.NewMechanism(c.aws)
		m.Region = c.aws.Region
		return m, nil
	}
	// Read at each connection, so that a rotated password needs no reload.
	password, err := s.Password.Read()
	if err != nil {
		return nil, err
	}
	switch s.Mechanism {
	case "scram-sha-256":
		return scram.Mechanism(scram.SHA256, s.Username, password)
	case "scram-sha-512":
		return scram.Mechanism(scram.SHA512, s.Username, password)
	}
	return plain.Mechanism{Username: s.Username, Password: password}, nil
}

// login returns for how long the session lasts, 0 for ever.
func (c *KafkaCluster) login(ctx context.Context, pc *protocol.Conn, address string) (time.Duration, error) {
	m, err := c.mechanism()
	if err != nil {
		return 0, WithClass(Auth, err)
	}
	msg, err := pc.RoundTrip(&saslhandshake.Request{Mechanism: m.Name()})
	if err != nil {
		return 0, err
	}
	if res := msg.(*saslhandshake.Response); res.ErrorCode != 0 {
		return 0, WithClass(Auth, fmt.Errorf("%w (the broker offers %s)", kafkaError(res.ErrorCode), strings.Join(res.Mechanisms, ", ")))
	}
	host, port, _ := net.SplitHostPort(address)
	n, _ := strconv.Atoi(port)
	session, out, err := m.Start(sasl.WithMetadata(ctx, &sasl.Metadata{Host: host, Port: n}))
	if err != nil {
		return 0, WithClass(Auth, err)
	}
	var life time.Duration
	for done := false; !done; {
		msg, err := pc.RoundTrip(&saslauthenticate.Request{AuthBytes: out})
		if errors.Is(err, io.EOF) && ctx.Err() == nil {
			// Brokers before SaslAuthenticate v1 refuse by hanging up.
			return 0, WithClass(Auth, fmt.Errorf("the broker closed the connection: %w", err))
		}
		if err != nil {
			return 0, err
		}
		res := msg.(*saslauthenticate.Response)
		if res.ErrorCode != 0 {
			err := kafkaError(res.ErrorCode)
			if res.ErrorMessage != "" {
				err = fmt.Errorf("%w: %s", err, res.ErrorMessage)
			}
			return 0, WithClass(Auth, err)
		}
		life = time.Duration(res.SessionLifetimeMs) * time.Millisecond
		if done, out, err = session.Next(ctx, res.AuthBytes); err != nil {
			return 0, WithClass(Auth, err)
		}
	}
	return life, nil
}

// Kafka's error codes that decide something here.
const (
	KafkaOffsetOutOfRange   = 1
	KafkaUnknownTopic       = 3
	KafkaLeaderNotAvailable = 5
	KafkaNotLeader          = 6
	KafkaRequestTimedOut    = 7
	KafkaReplicaNotAvail    = 9
	KafkaNotEnoughAfter     = 20
	KafkaStorage            = 56
	KafkaSessionNotFound    = 70
	KafkaSessionEpoch       = 71
	KafkaFencedEpoch        = 74
	KafkaUnknownEpoch       = 75
	KafkaOffsetNotAvailable = 78
	KafkaThrottling         = 89
	KafkaUnknownTopicID     = 100
	KafkaInconsistentID     = 103
	KafkaSessionTopicID     = 106
)

func kafkaError(code int16) error { return kafka.Error(code) }

// KafkaError turns an error code of a broker into an error with its class; nil for 0.
func KafkaError(code int16) error {
	if code == 0 {
		return nil
	}
	class := Other
	switch code {
	case KafkaUnknownTopic, KafkaUnknownTopicID:
		class = Missing
	case 29, 30, 31, 33, 34, 58:
		class = Auth
	case KafkaThrottling:
		class = Throttle
	case KafkaRequestTimedOut, 13:
		class = Network
	}
	return WithClass(class, kafkaError(code))
}

// maxKafkaFrame bounds what a broker can make us hold. Kafka's own limit for a fetch response is
// lower, unless a single batch is larger than that.
const maxKafkaFrame = 256 << 20

// keepKafkaBuffer is the largest buffer that a connection keeps when it needs it no longer, unless
// Expect has said more.
const keepKafkaBuffer = 4 << 20

// A KafkaConn is one connection to one broker, with one request in flight. It is not safe for
// concurrent use, except Close.
type KafkaConn struct {
	nc, raw  net.Conn
	timeout  time.Duration
	clientID string
	versions map[int16][2]int16
	expires  time.Time
	id       int32
	w        KafkaWriter
	in       []byte
	keep     int
}

// Expect tells how large answers usually are, in bytes, so that the buffer for them is kept.
func (c *KafkaConn) Expect(bytes int) { c.keep = 2 * bytes }

// Alive reports that the broker has not closed the idle connection, as far as this host knows.
// Anything that can be read is no good sign either, since no answer is due.
func (c *KafkaConn) Alive() bool {
	sc, ok := c.raw.(syscall.Conn)
	if !ok {
		return true
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return false
	}
	// A deadline that has passed would keep rc.Read from looking at all.
	if c.raw.SetDeadline(time.Time{}) != nil {
		return false
	}
	alive := false
	err = rc.Read(func(fd uintptr) bool {
		alive = quiet(fd)
		return true
	})
	return err == nil && alive
}

// Close ends the connection, and a Do that waits. It does not block.
func (c *KafkaConn) Close() error { return c.raw.Close() }

// Expired reports that the login is about to run out: connect anew.
func (c *KafkaConn) Expired() bool { return !c.expires.IsZero() && time.Now().After(c.expires) }

// Version returns the highest version of an API that is in [low, high] and that the broker has.
func (c *KafkaConn) Version(key, low, high int16) (int16, bool) {
	v, ok := c.versions[key]
	if !ok || v[1] < low || v[0] > high {
		return 0, false
	}
	return min(high, v[1]), true
}

// Request starts a request. The writer is valid until the next one.
func (c *KafkaConn) Request(key, version int16, flexible bool) *KafkaWriter {
	c.id++
	w := &c.w
	w.b, w.flexible = append(w.b[:0], 0, 0, 0, 0), false
	w.Int16(key)
	w.Int16(version)
	w.Int32(c.id)
	w.String(c.clientID)
	w.flexible = flexible
	w.End()
	return w
}

// Do sends the request of the last call of Request and returns the body of the response, which is
// valid until the next one. hold is how long the broker was asked to wait before it answers. sent
// tells whether any byte may have left. After an error the connection is of no use.
func (c *KafkaConn) Do(hold time.Duration) (r KafkaReader, sent bool, err error) {
	b := c.w.b
	if uint64(len(b)) > maxKafkaFrame {
		return r, false, fmt.Errorf("request of %d bytes is too large", len(b))
	}
	n := len(b) - 4
	b[0], b[1], b[2], b[3] = byte(n>>24), byte(n>>16), byte(n>>8), byte(n)
	if err := c.nc.SetDeadline(time.Now().Add(c.timeout + hold)); err != nil {
		return r, false, err
	}
	if wrote, err := c.nc.Write(b); err != nil {
		return r, wrote > 0, err
	}
	frame, err := c.receive()
	if err != nil {
		return r, true, err
	}
	r = NewKafkaReader(frame, c.w.flexible)
	if id := r.Int32(); id != c.id {
		return r, true, fmt.Errorf("answer to request %d, not to %d", id, c.id)
	}
	r.End()
	if r.Bad() {
		return r, true, errors.New("answer is cut short")
	}
	return r, true, nil
}

// receive reads one frame without its length. Nothing follows it, since one request is in flight, so
// the bytes go from the socket to where they are looked at, with no buffer between.
func (c *KafkaConn) receive() ([]byte, error) {
	if cap(c.in) < 64<<10 || cap(c.in) > max(keepKafkaBuffer, c.keep) {
		c.in = make([]byte, 64<<10)
	}
	b := c.in[:cap(c.in)]
	have, err := io.ReadAtLeast(c.nc, b, 4)
	if err != nil {
		return nil, noEOF(err, have)
	}
	size := int64(b[0])<<24 | int64(b[1])<<16 | int64(b[2])<<8 | int64(b[3])
	if size < 4 || size > maxKafkaFrame {
		return nil, fmt.Errorf("answer of %d bytes", size)
	}
	size += 4
	if int64(have) > size {
		return nil, errors.New("answer is longer than it says")
	}
	if size > int64(len(b)) {
		// With a quarter to spare, so that answers of about the same size stop growing it.
		grown := make([]byte, size+size/4)
		copy(grown, b[:have])
		c.in, b = grown, grown
	}
	if n, err := io.ReadFull(c.nc, b[have:size]); err != nil {
		return nil, noEOF(err, have+n)
	}
	return b[4:size], nil
}

func noEOF(err error, have int) error {
	if errors.Is(err, io.EOF) && have > 0 {
		return io.ErrUnexpectedEOF
	}
	return err
}

// KafkaTopic is the layout of a topic.
type KafkaTopic struct {
	Name       string
	ID         [16]byte         // zero where the broker knows no topic ids
	Partitions []KafkaPartition // ascending
	Brokers    map[int32]string // host:port of all brokers
}

// KafkaPartition is one partition. Leader is -1 while there is none; Epoch counts its leaders.
type KafkaPartition struct {
	ID, Leader, Epoch int32
}

// Addresses are those of all brokers, in no order.
func (t *KafkaTopic) Addresses() []string {
	var out []string
	for _, a := range t.Brokers {
		out = append(out, a)
	}
	return out
}

// Topic asks for the layout of a topic. The error is of class Missing when there is no such topic.
func (c *KafkaConn) Topic(name string) (*KafkaTopic, error) {
	t, err := c.topic(name)
	if err != nil {
		return nil, fmt.Errorf("topic %s: %w", name, err)
	}
	return t, nil
}

func (c *KafkaConn) topic(name string) (*KafkaTopic, error) {
	const key = 3
	v, ok := c.Version(key, 7, 12)
	if !ok {
		return nil, errors.New("the broker is too old: Kafka 2.1 or newer is needed")
	}
	w := c.Request(key, v, v >= 9)
	w.Array(1)
	if v >= 10 {
		w.Raw(make([]byte, 16))
	}
	w.String(name)
	w.End()
	w.Bool(false) // never create a topic by asking for it
	if v >= 8 {
		if v <= 10 {
			w.Bool(false)
		}
		w.Bool(false)
	}
	w.End()
	r, _, err := c.Do(0)
	if err != nil {
		return nil, err
	}
	t := &KafkaTopic{Name: name, Brokers: make(map[int32]string)}
	r.Int32() // throttle
	for range r.Array() {
		id, host, port := r.Int32(), string(r.String()), r.Int32()
		r.String() // rack
		r.End()
		t.Brokers[id] = net.JoinHostPort(host, strconv.Itoa(int(port)))
	}
	r.String() // cluster id
	r.Int32()  // controller
	code := int16(KafkaUnknownTopic)
	for range r.Array() {
		topicCode, got := r.Int16(), string(r.String())
		if v >= 10 {
			id := r.UUID()
			if got == name {
				t.ID = id
			}
		}
		r.Bool() // internal
		for range r.Array() {
			r.Int16() // a partition without leader or with an offline replica: its leader says what we need
			p := KafkaPartition{ID: r.Int32(), Leader: r.Int32(), Epoch: r.Int32()}
			for range 3 {
				for range r.Array() {
					r.Int32()
				}
			}
			r.End()
			t.Partitions = append(t.Partitions, p)
		}
		if v >= 8 {
			r.Int32()
		}
		r.End()
		if got == name {
			code = topicCode
		}
	}
	switch {
	case r.Bad():
		return nil, errors.New("answer with the layout is cut short")
	case code != 0:
		return nil, KafkaError(code)
	case len(t.Partitions) == 0:
		return nil, WithClass(Missing, errors.New("has no partitions"))
	}
	slices.SortFunc(t.Partitions, func(a, b KafkaPartition) int { return int(a.ID) - int(b.ID) })
	return t, nil
}

// Compacted asks whether a topic is, so that messages may be missing in the middle of it.
func (c *KafkaConn) Compacted(topic string) (bool, error) {
	const (
		key    = 32
		policy = "cleanup.policy"
	)
	v, ok := c.Version(key, 1, 2)
	if !ok {
		return false, errors.New("the broker does not tell the settings of topics")
	}
	w := c.Request(key, v, false)
	w.Array(1)
	w.Int8(2) // a topic
	w.String(topic)
	w.Array(1)
	w.String(policy)
	w.Bool(false)
	r, _, err := c.Do(0)
	if err != nil {
		return false, fmt.Errorf("topic %s: settings: %w", topic, err)
	}
	r.Int32() // throttle
	var code int16
	found, compacted := false, false
	for range r.Array() {
		code = r.Int16()
		r.String() // message
		r.Int8()
		r.String()
		for range r.Array() {
			name, value := string(r.String()), string(r.String())
			r.Bool()  // read only
			r.Int8()  // where it is set
			r.Bool()  // sensitive
			r.Array() // of the other places where it is set: none was asked for
			if name == policy {
				found, compacted = true, strings.Contains(value, "compact")
			}
		}
	}
	switch {
	case r.Bad():
		return false, fmt.Errorf("topic %s: settings: answer is cut short", topic)
	case code != 0:
		return false, fmt.Errorf("topic %s: settings: %w", topic, KafkaError(code))
	case !found:
		return false, fmt.Errorf("topic %s: settings: no answer", topic)
	}
	return compacted, nil
}

// Special times of Offsets.
const (
	KafkaLatest   = -1
	KafkaEarliest = -2
)

// KafkaOffset is the answer of Offsets for one partition.
type KafkaOffset struct {
	Offset int64 // -1: no message is as young as was asked for
	Time   int64 // of that message, Unix milliseconds; -1 for the special times
	Code   int16
}

// Offsets asks the leader of the partitions for the first offset at or after a time in Unix
// milliseconds, or for KafkaLatest or KafkaEarliest. With committed, latest is the last stable offset.
func (c *KafkaConn) Offsets(topic string, committed bool, at int64, partitions []int32) (map[int32]KafkaOffset, error) {
	const key = 2
	v, ok := c.Version(key, 2, 5)
	if !ok {
		return nil, errors.New("the broker does not list offsets")
	}
	w := c.Request(key, v, false)
	w.Int32(-1)
	if committed {
		w.Int8(1)
	} else {
		w.Int8(0)
	}
	w.Array(1)
	w.String(topic)
	w.Array(len(partitions))
	for _, p := range partitions {
		w.Int32(p)
		if v >= 4 {
			w.Int32(-1)
		}
		w.Int64(at)
	}
	r, _, err := c.Do(0)
	if err != nil {
		return nil, fmt.Errorf("topic %s: offsets: %w", topic, err)
	}
	out := make(map[int32]KafkaOffset, len(partitions))
	r.Int32() // throttle
	for range r.Array() {
		r.String()
		for range r.Array() {
			p, code := r.Int32(), r.Int16()
			at, offset := r.Int64(), r.Int64()
			if v >= 4 {
				r.Int32()
			}
			out[p] = KafkaOffset{Offset: offset, Time: at, Code: code}
		}
	}
	if r.Bad() {
		return nil, fmt.Errorf("topic %s: offsets: answer is cut short", topic)
	}
	for _, p := range partitions {
		if _, ok := out[p]; !ok {
			return nil, fmt.Errorf("topic %s: offsets: no answer for partition %d", topic, p)
		}
	}
	return out, nil
}
