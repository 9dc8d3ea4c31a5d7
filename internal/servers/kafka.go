package servers

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
)

// KafkaVersion names one of the installed Apache Kafka versions. Its text is fit for a subtest's name.
type KafkaVersion string

// The installed versions; the exact ones are in the pom.xml files beside this package.
const (
	Kafka39 KafkaVersion = "kafka39"
	Kafka4  KafkaVersion = "kafka4"
)

// KafkaVersions lists all of them, for a test that has to hold on each.
var KafkaVersions = []KafkaVersion{Kafka39, Kafka4}

// Who may log in where SASL or TLS is asked for.
const (
	KafkaUser     = "lag-monitor"
	KafkaPassword = `p"ss w0rd;\`
)

// KafkaOptions says what a broker offers. The zero value is Kafka 4 with one plain listener.
type KafkaOptions struct {
	Version KafkaVersion // Kafka4 when empty
	// SASL adds a listener that wants KafkaUser and KafkaPassword, by PLAIN, SCRAM-SHA-256 or
	// SCRAM-SHA-512. The plain listener stays.
	SASL bool
	// TLS adds a listener with a certificate for 127.0.0.1 and localhost, made for this broker; a client
	// may show a certificate. With SASL too there is a third one that wants both.
	TLS bool
	// Proxy adds a plain listener that can be reached through a fault Proxy only: the broker advertises
	// the proxy's address there, so that clients cannot bypass it.
	Proxy bool
	// Proxies and SASLProxies add that many more listeners of this kind, so that faults can be made on one
	// connection of a broker and not on the others. Those with SASL want what SASL wants, which must be set.
	Proxies, SASLProxies int
	// Data is an empty directory for the broker's data; one of the test's own when it is not set.
	Data string
	// Config adds or replaces broker settings.
	Config map[string]string
	// Join makes it the second broker of a cluster with one that runs already, of the same version, which stays the
	// controller and so has to outlive it.
	Join *KafkaServer
}

// KafkaServer is one broker in KRaft combined mode. Topics are not created by use.
type KafkaServer struct {
	*Process
	Version string // the exact version, such as 4.3.0
	Addr    string // plain listener, host:port; always there

	controller string // host:port
	brokers    int    // how many there have to be

	SASLAddr    string      // SASL without TLS; empty unless SASL
	TLSAddr     string      // TLS without SASL; empty unless TLS
	SASLTLSAddr string      // both; empty unless both
	Proxy       *FaultProxy // in front of a listener of its own; nil unless Proxy

	Proxies, SASLProxies []*FaultProxy // each in front of a listener of its own

	TLS TLSFiles // PEM files, empty unless TLS
}

// KafkaEach runs f as a subtest on each installed version.
func KafkaEach(t *testing.T, opts KafkaOptions, f func(t *testing.T, k *KafkaServer)) {
	Need(t)
	for _, v := range KafkaVersions {
		t.Run(string(v), func(t *testing.T) {
			opts := opts
			opts.Version = v
			f(t, Kafka(t, opts))
		})
	}
}

// Kafka starts a broker and returns when it serves requests.
func Kafka(t testing.TB, opts KafkaOptions) *KafkaServer {
	t.Helper()
	if opts.Version == "" {
		opts.Version = Kafka4
	}
	home := installed(t, string(opts.Version))
	version, err := os.ReadFile(filepath.Join(home, "version"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	data := opts.Data
	if data == "" {
		data = filepath.Join(dir, "data")
	}
	if err := os.CopyFS(data, os.DirFS(filepath.Join(home, "formatted"))); err != nil {
		t.Fatal(err)
	}
	k := &KafkaServer{Version: strings.TrimSpace(string(version)), brokers: 1}
	var listeners, advertised []string
	id, roles := "1", "broker"
	if opts.Join == nil {
		roles += ",controller"
		k.controller = loopback(freePort(t))
		listeners = append(listeners, "CONTROLLER://"+k.controller)
	} else {
		id, k.controller, k.brokers = "2", opts.Join.controller, 2
		joins(t, data)
	}
	protocols := []string{"CONTROLLER:PLAINTEXT"}
	listen := func(name, protocol string) string {
		addr := loopback(freePort(t))
		listeners = append(listeners, name+"://"+addr)
		advertised = append(advertised, name+"://"+addr)
		protocols = append(protocols, name+":"+protocol)
		return addr
	}
	config := map[string]string{
		"process.roles":                            roles,
		"node.id":                                  id,
		"controller.quorum.voters":                 "1@" + k.controller,
		"controller.listener.names":                "CONTROLLER",
		"inter.broker.listener.name":               "PLAIN",
		"log.dirs":                                 data,
		"auto.create.topics.enable":                "false",
		"offsets.topic.replication.factor":         "1",
		"offsets.topic.num.partitions":             "1",
		"transaction.state.log.replication.factor": "1",
		"transaction.state.log.min.isr":            "1",
		"transaction.state.log.num.partitions":     "1",
		"group.initial.rebalance.delay.ms":         "0",
		// A broker that is not heard for so long loses its leaderships: one that a busy machine keeps waiting, too.
		// One that comes back after a kill has to wait until its former self has timed out.
		"broker.session.timeout.ms":    "6000",
		"broker.heartbeat.interval.ms": "400",
		// By default the cleaner alone takes 128 MB of heap.
		"log.cleaner.dedupe.buffer.size": "2097152",
	}
	k.Addr = listen("PLAIN", "PLAINTEXT")
	sasl := func(listener string) {
		prefix := "listener.name." + strings.ToLower(listener) + "."
		quote := strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace
		config[prefix+"sasl.enabled.mechanisms"] = "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512"
		config[prefix+"plain.sasl.jaas.config"] = fmt.Sprintf(
			`org.apache.kafka.common.security.plain.PlainLoginModule required user_%s="%s";`, KafkaUser, quote(KafkaPassword))
		for _, m := range []string{"scram-sha-256", "scram-sha-512"} {
			config[prefix+m+".sasl.jaas.config"] = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
		}
	}
	tls := func(listener string) {
		prefix := "listener.name." + strings.ToLower(listener) + ".ssl."
		config[prefix+"keystore.type"] = "PEM"
		config[prefix+"keystore.location"] = k.TLS.serverPEM
		config[prefix+"truststore.type"] = "PEM"
		config[prefix+"truststore.location"] = k.TLS.CA
		config[prefix+"client.auth"] = "requested"
	}
	if opts.TLS {
		k.TLS = makeTLS(t, dir)
		k.TLSAddr = listen("TLS", "SSL")
		tls("TLS")
	}
	if opts.SASL {
		k.SASLAddr = listen("SASL", "SASL_PLAINTEXT")
		sasl("SASL")
	}
	if opts.SASL && opts.TLS {
		k.SASLTLSAddr = listen("SASLTLS", "SASL_SSL")
		sasl("SASLTLS")
		tls("SASLTLS")
	}
	proxied := func(name, protocol string) *FaultProxy {
		p := Proxy(t, listen(name, protocol))
		advertised[len(advertised)-1] = name + "://" + p.Addr
		// A listener has three threads unless told otherwise, and there may be many listeners.
		config["listener.name."+strings.ToLower(name)+".num.network.threads"] = "1"
		return p
	}
	if opts.Proxy {
		k.Proxy = proxied("PROXY", "PLAINTEXT")
	}
	for i := range opts.Proxies {
		k.Proxies = append(k.Proxies, proxied(fmt.Sprintf("PROXY%d", i), "PLAINTEXT"))
	}
	for i := range opts.SASLProxies {
		name := fmt.Sprintf("SASLPROXY%d", i)
		k.SASLProxies = append(k.SASLProxies, proxied(name, "SASL_PLAINTEXT"))
		sasl(name)
	}
	config["listeners"] = strings.Join(listeners, ",")
	config["advertised.listeners"] = strings.Join(advertised, ",")
	config["listener.security.protocol.map"] = strings.Join(protocols, ",")
	maps.Copy(config, opts.Config)

	var properties strings.Builder
	for _, key := range slices.Sorted(maps.Keys(config)) {
		// The file's own syntax takes one level of backslashes away.
		fmt.Fprintf(&properties, "%s=%s\n", key, strings.ReplaceAll(config[key], `\`, `\\`))
	}
	file := writeFile(t, dir, "server.properties", properties.String())
	k.Process = startProcess(t, string(opts.Version), dir, func() *exec.Cmd {
		cmd := exec.Command("java", "-Xms64m", "-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1",
			"-Xshare:auto", "-XX:SharedArchiveFile="+filepath.Join(home, "classes.jsa"),
			"-Djava.awt.headless=true", "-Djava.net.preferIPv4Stack=true",
			"-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-Dorg.slf4j.simpleLogger.showDateTime=true",
			"-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS",
			"-cp", filepath.Join(home, "libs", "*"), "kafka.Kafka", file)
		cmd.Dir = dir
		return cmd
	}, k.ready)
	if opts.SASL {
		k.SetPassword(KafkaPassword)
	}
	return k
}

// joins makes formatted data those of the second broker of a cluster.
func joins(t testing.TB, data string) {
	t.Helper()
	path := filepath.Join(data, "meta.properties")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	second := strings.Replace(string(text), "node.id=1", "node.id=2", 1)
	lines := slices.DeleteFunc(strings.Split(second, "\n"), func(l string) bool { return strings.HasPrefix(l, "directory.id=") }) // the broker draws one
	if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
}

// ready wants a broker that has joined the cluster and leads every partition there is.
func (k *KafkaServer) ready(ctx context.Context) error {
	// Without this look a client would wait and retry for a long time.
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", k.Addr)
	if err != nil {
		return err
	}
	conn.Close()
	return k.admin(func(c *kafka.Client) error {
		m, err := c.Metadata(ctx, &kafka.MetadataRequest{})
		if err != nil {
			return err
		}
		if len(m.Brokers) != k.brokers || m.Controller.Port == 0 {
			return fmt.Errorf("%d brokers, controller %+v", len(m.Brokers), m.Controller)
		}
		return serving(ctx, c, m.Topics)
	})
}

// serving asks each partition for its end: metadata names a leader a moment before it leads.
func serving(ctx context.Context, c *kafka.Client, topics []kafka.Topic) error {
	req := kafka.ListOffsetsRequest{Topics: map[string][]kafka.OffsetRequest{}}
	for _, t := range topics {
		if t.Error != nil {
			return fmt.Errorf("topic %s: %w", t.Name, t.Error)
		}
		for _, p := range t.Partitions {
			if p.Error != nil {
				return fmt.Errorf("topic %s partition %d: %w", t.Name, p.ID, p.Error)
			}
			req.Topics[t.Name] = append(req.Topics[t.Name], kafka.LastOffsetOf(p.ID))
		}
	}
	if len(req.Topics) == 0 {
		return nil
	}
	resp, err := c.ListOffsets(ctx, &req)
	if err != nil {
		return err
	}
	for topic, partitions := range resp.Topics {
		for _, p := range partitions {
			if p.Error != nil {
				return fmt.Errorf("topic %s partition %d: %w", topic, p.Partition, p.Error)
			}
		}
	}
	return nil
}

// admin calls f with a client whose connections end with it.
func (k *KafkaServer) admin(f func(*kafka.Client) error) error {
	tr := &kafka.Transport{DialTimeout: 5 * time.Second}
	defer tr.CloseIdleConnections()
	return f(&kafka.Client{Addr: kafka.TCP(k.Addr), Timeout: 10 * time.Second, Transport: tr})
}

// SetPassword changes what KafkaUser has to know to log in by SCRAM. Connections that are logged in stay.
func (k *KafkaServer) SetPassword(password string) {
	k.t.Helper()
	// One request must not change a user twice.
	for _, m := range []kafka.ScramMechanism{kafka.ScramMechanismSha256, kafka.ScramMechanismSha512} {
		u, err := scramCredentials(m, password)
		if err != nil {
			k.t.Fatal(err)
		}
		k.change("set the password of the SCRAM user", nil, func(c *kafka.Client) error {
			resp, err := c.AlterUserScramCredentials(context.Background(), &kafka.AlterUserScramCredentialsRequest{
				Upsertions: []kafka.UserScramCredentialsUpsertion{u},
			})
			if err != nil {
				return err
			}
			for _, r := range resp.Results {
				if r.Error != nil {
					return r.Error
				}
			}
			return nil
		})
	}
}

// CreateTopic creates a topic and returns when each of its partitions can be used. config holds pairs
// of a topic setting's name and value.
func (k *KafkaServer) CreateTopic(name string, partitions int, config ...string) {
	k.t.Helper()
	topic := kafka.TopicConfig{Topic: name, NumPartitions: partitions, ReplicationFactor: 1}
	for i := 0; i+1 < len(config); i += 2 {
		topic.ConfigEntries = append(topic.ConfigEntries, kafka.ConfigEntry{ConfigName: config[i], ConfigValue: config[i+1]})
	}
	k.create(topic)
	k.awaitPartitions(name, partitions)
}

// CreateReplicated creates a topic on both brokers of a cluster, which lead its partitions in turn, and returns when each
// of them can be used.
func (k *KafkaServer) CreateReplicated(name string, partitions int) {
	k.t.Helper()
	topic := kafka.TopicConfig{Topic: name, NumPartitions: -1, ReplicationFactor: -1}
	for i := range partitions {
		topic.ReplicaAssignments = append(topic.ReplicaAssignments, kafka.ReplicaAssignment{Partition: i, Replicas: []int{1 + i%2, 2 - i%2}})
	}
	k.create(topic)
	k.awaitPartitions(name, partitions)
}

func (k *KafkaServer) create(topic kafka.TopicConfig) {
	k.t.Helper()
	k.change("create topic "+topic.Topic, kafka.TopicAlreadyExists, func(c *kafka.Client) error {
		resp, err := c.CreateTopics(context.Background(), &kafka.CreateTopicsRequest{Topics: []kafka.TopicConfig{topic}})
		if err != nil {
			return err
		}
		return resp.Errors[topic.Topic]
	})
}

// Lead makes one of the brokers of a cluster the leader of a partition of a replicated topic, and returns when it leads.
func (k *KafkaServer) Lead(name string, partition, broker int) {
	k.t.Helper()
	k.change(fmt.Sprintf("prefer broker %d for partition %d of %s", broker, partition, name), nil, func(c *kafka.Client) error {
		resp, err := c.AlterPartitionReassignments(context.Background(), &kafka.AlterPartitionReassignmentsRequest{
			Topic:       name,
			Assignments: []kafka.AlterPartitionReassignmentsRequestAssignment{{PartitionID: partition, BrokerIDs: []int{broker, 3 - broker}}},
			Timeout:     10 * time.Second,
		})
		if err != nil {
			return err
		}
		if resp.Error != nil {
			return resp.Error
		}
		return resp.PartitionResults[0].Error
	})
	k.await(fmt.Sprintf("broker %d leads partition %d of %s", broker, partition, name), func(c *kafka.Client) error {
		elected, err := c.ElectLeaders(context.Background(), &kafka.ElectLeadersRequest{Topic: name, Partitions: []int{partition}, Timeout: 10 * time.Second})
		if err != nil {
			return err
		}
		m, err := c.Metadata(context.Background(), &kafka.MetadataRequest{Topics: []string{name}})
		if err != nil {
			return err
		}
		for _, p := range m.Topics[0].Partitions {
			if p.ID == partition && p.Leader.ID == broker {
				return nil
			}
		}
		return fmt.Errorf("the broker says %+v, and of the election %+v", m.Topics, elected)
	})
}

// DeleteTopic deletes a topic and returns when the broker does not know it any more.
func (k *KafkaServer) DeleteTopic(name string) {
	k.t.Helper()
	k.change("delete topic "+name, kafka.UnknownTopicOrPartition, func(c *kafka.Client) error {
		resp, err := c.DeleteTopics(context.Background(), &kafka.DeleteTopicsRequest{Topics: []string{name}})
		if err != nil {
			return err
		}
		return resp.Errors[name]
	})
	k.await("topic "+name+" is gone", func(c *kafka.Client) error {
		m, err := c.Metadata(context.Background(), &kafka.MetadataRequest{Topics: []string{name}})
		if err != nil {
			return err
		}
		if len(m.Topics) == 1 && errors.Is(m.Topics[0].Error, kafka.UnknownTopicOrPartition) {
			return nil
		}
		return fmt.Errorf("the broker still knows it: %+v", m.Topics)
	})
}

// AddPartitions raises a topic's partition count to total and returns when each can be used.
func (k *KafkaServer) AddPartitions(name string, total int) {
	k.t.Helper()
	k.change("add partitions to topic "+name, kafka.InvalidPartitionNumber, func(c *kafka.Client) error {
		resp, err := c.CreatePartitions(context.Background(), &kafka.CreatePartitionsRequest{
			Topics: []kafka.TopicPartitionsConfig{{Name: name, Count: int32(total)}},
		})
		if err != nil {
			return err
		}
		return resp.Errors[name]
	})
	k.awaitPartitions(name, total)
}

// change makes a change at the broker, again when it says that it cannot just now. done is what it says to
// a repetition of a change whose answer was late; nil when a change may be repeated.
func (k *KafkaServer) change(what string, done error, f func(*kafka.Client) error) {
	k.t.Helper()
	repeated := false
	err := k.within(func(c *kafka.Client) (bool, error) {
		err := f(c)
		if repeated && done != nil && errors.Is(err, done) {
			return true, nil
		}
		repeated = true
		var refused kafka.Error
		return !errors.Is(err, context.DeadlineExceeded) && (!errors.As(err, &refused) || !refused.Temporary()), err
	})
	if err != nil {
		k.t.Fatalf("%s: %s: %v", k.name, what, err)
	}
}

func (k *KafkaServer) awaitPartitions(name string, n int) {
	k.t.Helper()
	k.await("topic "+name+" has "+strconv.Itoa(n)+" partitions", func(c *kafka.Client) error {
		m, err := c.Metadata(context.Background(), &kafka.MetadataRequest{Topics: []string{name}})
		if err != nil {
			return err
		}
		if len(m.Topics) != 1 || len(m.Topics[0].Partitions) != n {
			return fmt.Errorf("the broker says %+v", m.Topics)
		}
		return serving(context.Background(), c, m.Topics)
	})
}

// await fails the test when f still returns an error after a while.
func (k *KafkaServer) await(what string, f func(*kafka.Client) error) {
	k.t.Helper()
	err := k.within(func(c *kafka.Client) (bool, error) {
		err := f(c)
		return err == nil, err
	})
	if err != nil {
		k.t.Fatalf("%s: waiting until %s: %v", k.name, what, err)
	}
}

// within calls f until it says that it is over, at most for a minute, and returns its last error.
func (k *KafkaServer) within(f func(*kafka.Client) (over bool, err error)) error {
	return k.admin(func(c *kafka.Client) error {
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
			if over, err := f(c); over || time.Now().After(deadline) {
				return err
			}
		}
	})
}
