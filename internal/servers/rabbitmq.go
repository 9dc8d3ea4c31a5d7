package servers

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// RabbitMQUser is somebody who may log in. Each of the three patterns says which names of queues and exchanges
// he may declare, publish to and read; an empty one forbids all.
type RabbitMQUser struct {
	Name, Password         string
	Configure, Write, Read string
}

// RabbitMQOptions says what a broker offers. The zero value lets guest in with the password guest, who may do
// everything.
type RabbitMQOptions struct {
	// Users beside guest.
	Users []RabbitMQUser
	// TLS adds a listener with a certificate for 127.0.0.1 and localhost, made for this broker. A client certificate
	// logs in whom it names: the one that is made is KafkaUser's.
	TLS bool
	// AMQP1 has the listeners speak AMQP 1.0, too. Who does not log in is guest.
	AMQP1 bool
	// Data is an empty directory for the broker's data; one of the test's own when it is not set.
	Data string
	// Config is further lines of rabbitmq.conf.
	Config string
}

// RabbitMQServer is one broker. It keeps its data over Stop and Kill.
type RabbitMQServer struct {
	*Process
	Version string // such as 3.10.8
	Addr    string // host:port; always there
	URL     string // amqp://guest:guest@host:port, for a client of the test's own
	TLSAddr string // empty unless TLS

	TLS TLSFiles // PEM files, empty unless TLS

	epmd, cookie string
	erlCall      string
}

// RabbitMQ starts a broker and returns when it takes connections.
func RabbitMQ(t testing.TB, opts RabbitMQOptions) *RabbitMQServer {
	t.Helper()
	home := installed(t, "rabbitmq")
	version, err := os.ReadFile(filepath.Join(home, "version"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if opts.Data == "" {
		opts.Data = filepath.Join(dir, "mnesia")
	}
	r := &RabbitMQServer{Version: strings.TrimSpace(string(version)), Addr: FreeAddr(t), epmd: FreeAddr(t), erlCall: filepath.Join(home, "usr/bin/erl_call")}
	r.URL = "amqp://guest:guest@" + r.Addr
	config := []string{
		"listeners.tcp.1 = " + r.Addr,
		"load_definitions = " + writeFile(t, dir, "definitions.json", definitions(t, opts.Users)),
		// A machine that is short of disk is not what is tested.
		"disk_free_limit.absolute = 1MB",
		"log.console = true", "log.console.level = warning",
	}
	var enabled []string
	if opts.AMQP1 {
		enabled = append(enabled, "rabbitmq_amqp1_0")
	}
	if opts.TLS {
		enabled = append(enabled, "rabbitmq_auth_mechanism_ssl")
		r.TLS, r.TLSAddr = makeTLS(t, dir), FreeAddr(t)
		config = append(config, "listeners.ssl.1 = "+r.TLSAddr, "ssl_options.cacertfile = "+r.TLS.CA,
			"ssl_options.certfile = "+r.TLS.ServerCert, "ssl_options.keyfile = "+r.TLS.ServerKey,
			"ssl_options.verify = verify_peer", "ssl_options.fail_if_no_peer_cert = false",
			"auth_mechanisms.1 = PLAIN", "auth_mechanisms.2 = EXTERNAL", "ssl_cert_login_from = common_name")
	}
	plugins := writeFile(t, dir, "enabled_plugins", "["+strings.Join(enabled, ",")+"].")
	writeFile(t, dir, "rabbitmq.conf", strings.Join(append(config, opts.Config, ""), "\n"))

	secret := make([]byte, 16)
	rand.Read(secret)
	r.cookie = hex.EncodeToString(secret)
	// Erlang does not take a cookie that others may read.
	if err := os.WriteFile(filepath.Join(dir, ".erlang.cookie"), []byte(r.cookie), 0o400); err != nil {
		t.Fatal(err)
	}
	erlang := filepath.Join(home, "usr/lib/erlang")
	bin := one(t, filepath.Join(erlang, "erts-*/bin"))
	broker := one(t, filepath.Join(home, "usr/lib/rabbitmq/lib/rabbitmq_server-*"))
	_, epmdPort, _ := net.SplitHostPort(r.epmd)
	_, distPort, _ := net.SplitHostPort(FreeAddr(t))
	env := append(os.Environ(),
		"HOME="+dir, "ROOTDIR="+erlang, "BINDIR="+bin, "EMU=beam", "PROGNAME=erl",
		"ERL_EPMD_PORT="+epmdPort, "ERL_EPMD_ADDRESS=127.0.0.1", "ERL_LIBS="+filepath.Join(broker, "plugins"), "ERL_MAX_ETS_TABLES=50000",
		"RABBITMQ_HOME="+broker, "RABBITMQ_PLUGINS_DIR="+filepath.Join(broker, "plugins"), "RABBITMQ_NODENAME="+rabbitNode,
		"RABBITMQ_MNESIA_BASE="+opts.Data, "RABBITMQ_LOG_BASE="+filepath.Join(dir, "log"), "RABBITMQ_LOGS=-", "RABBITMQ_PID_FILE="+filepath.Join(dir, "pid"),
		"RABBITMQ_CONFIG_FILE="+filepath.Join(dir, "rabbitmq.conf"), "RABBITMQ_ADVANCED_CONFIG_FILE="+filepath.Join(dir, "none.config"),
		"RABBITMQ_ENABLED_PLUGINS_FILE="+plugins, "RABBITMQ_CONF_ENV_FILE=/dev/null", "RABBITMQ_DIST_PORT="+distPort, "SYS_PREFIX=")
	// The name service of Erlang would be started by the broker, and outlive it.
	startProcess(t, "epmd", dir, func() *exec.Cmd {
		cmd := exec.Command(filepath.Join(bin, "epmd"), "-port", epmdPort, "-address", "127.0.0.1")
		cmd.Env = env
		return cmd
	}, reachable(r.epmd))
	r.Process = startProcess(t, "rabbitmq", dir, func() *exec.Cmd {
		// What the package's own script passes, without the shells around it.
		cmd := exec.Command(filepath.Join(bin, "erlexec"), "-noinput", "-s", "rabbit", "boot", "-boot", "start_sasl", "-start_epmd", "false",
			"+W", "w", "+B", "i", "+MBas", "ageffcbf", "+MHas", "ageffcbf", "+MBlmbcs", "512", "+MHlmbcs", "512", "+MMmcs", "30",
			"+sbwt", "none", "+sbwtdcpu", "none", "+sbwtdio", "none", "+P", "1048576", "+t", "5000000",
			"-kernel", "inet_dist_use_interface", "{127,0,0,1}", "-kernel", "prevent_overlapping_partitions", "false",
			"-syslog", "logger", "[]", "-syslog", "syslog_error_logger", "false")
		cmd.Env, cmd.Dir = env, dir
		return cmd
	}, reachable(r.Addr))
	return r
}

// rabbitNode is the name of each broker; the name service of its own tells it from the others.
const rabbitNode = "rabbit@localhost"

// one returns the only file of a pattern, whose name holds a version.
func one(t testing.TB, pattern string) string {
	t.Helper()
	found, err := filepath.Glob(pattern)
	if err != nil || len(found) != 1 {
		t.Fatalf("%s: %q, %v; want one", pattern, found, err)
	}
	return found[0]
}

// reachable returns a readiness check that wants somebody to listen.
func reachable(addr string) func(context.Context) error {
	return func(ctx context.Context) error {
		c, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
		if err != nil {
			return err
		}
		return c.Close()
	}
}

// definitions is what a broker imports when it starts.
func definitions(t testing.TB, users []RabbitMQUser) string {
	t.Helper()
	type user struct {
		Name     string `json:"name"`
		Password string `json:"password"`
		Tags     string `json:"tags"`
	}
	type permission struct {
		User      string `json:"user"`
		VHost     string `json:"vhost"`
		Configure string `json:"configure"`
		Write     string `json:"write"`
		Read      string `json:"read"`
	}
	var d struct {
		VHosts      []map[string]string `json:"vhosts"`
		Users       []user              `json:"users"`
		Permissions []permission        `json:"permissions"`
	}
	d.VHosts = []map[string]string{{"name": "/"}}
	for _, u := range append([]RabbitMQUser{{"guest", "guest", ".*", ".*", ".*"}}, users...) {
		d.Users = append(d.Users, user{u.Name, u.Password, ""})
		d.Permissions = append(d.Permissions, permission{u.Name, "/", u.Configure, u.Write, u.Read})
	}
	text, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// Eval evaluates Erlang expressions inside the broker, for what cannot be asked over a connection, and returns the
// value of the last one as Erlang writes it.
func (r *RabbitMQServer) Eval(code string) string {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, r.erlCall, "-n", rabbitNode, "-c", r.cookie, "-e")
	_, port, _ := net.SplitHostPort(r.epmd)
	cmd.Env, cmd.Stdin = append(os.Environ(), "ERL_EPMD_PORT="+port), strings.NewReader(code+".\n")
	out, err := cmd.CombinedOutput()
	value, ok := strings.CutPrefix(strings.TrimSpace(string(out)), "{ok, ")
	if err != nil || !ok {
		r.t.Fatalf("rabbitmq: %s: %v\n%s", code, err, out)
	}
	return strings.TrimSuffix(value, "}")
}

// MemoryAlarm raises the alarm of a broker that has used up its memory: it takes nothing more from any
// connection that has published, until the returned function is called.
func (r *RabbitMQServer) MemoryAlarm() (heal func()) {
	r.t.Helper()
	set := func(fraction string) { r.Eval("vm_memory_monitor:set_vm_memory_high_watermark(" + fraction + ")") }
	set("0.000001")
	return func() { set("0.4") }
}

// DiskAlarm raises the alarm of a broker that is short of disk, until the returned function is called. It takes as
// little as in a MemoryAlarm.
func (r *RabbitMQServer) DiskAlarm() (heal func()) {
	r.t.Helper()
	set := func(bytes string) { r.Eval("rabbit_disk_monitor:set_disk_free_limit(" + bytes + ")") }
	set("1000000000000000000")
	return func() { set("1000000") }
}

// CloseConnections closes all connections as an operator would, and returns how many there were.
func (r *RabbitMQServer) CloseConnections() int {
	r.t.Helper()
	n, err := strconv.Atoi(r.Eval(`N = length(rabbit_networking:connections()), rabbit_networking:close_all_connections("closed by an operator"), N`))
	if err != nil {
		r.t.Fatal(err)
	}
	return n
}

// SetPassword changes the password of a user. Connections that are open stay so.
func (r *RabbitMQServer) SetPassword(user, password string) {
	r.t.Helper()
	r.Eval(fmt.Sprintf(`rabbit_auth_backend_internal:change_password(<<%q>>, <<%q>>, <<"test">>)`, user, password))
}
