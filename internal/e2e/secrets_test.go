package e2e_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"

	"github.com/lag-monitor/lag-monitor/internal/conn"
	"github.com/lag-monitor/lag-monitor/internal/servers"
	"github.com/lag-monitor/lag-monitor/probe"
	"github.com/lag-monitor/lag-monitor/sinks"
)

// companions are the keys that have to stand beside a secret.
var companions = map[string]map[string]any{
	"basic_auth.password": {"basic_auth.username": "u"},
	"sasl.password":       {"sasl.mechanism": "plain", "sasl.username": "u"},
	"password":            {"username": "u"},
	"access_key_id":       {"secret_access_key": map[string]any{"env": "PLAIN"}},
	"secret_access_key":   {"access_key_id": map[string]any{"env": "PLAIN"}},
	"session_token":       {"access_key_id": map[string]any{"env": "PLAIN"}, "secret_access_key": map[string]any{"env": "PLAIN"}},
	"tls.cert_file":       {"tls.key_file": "garbage"},
	"tls.key_file":        {"tls.cert_file": "garbage"},
	"tls.client_ca_file":  {"tls.cert_file": "garbage", "tls.key_file": "garbage"},
}

// keysOf lists the keys of a kind that take a secret, and those that take the name of a file: whatever is
// added to a transport is found here.
func keysOf(v any) (secrets, files []string) {
	var walk func(t reflect.Type, at string)
	walk = func(t reflect.Type, at string) {
		for t.Kind() == reflect.Pointer {
			t = t.Elem()
		}
		switch {
		case t == reflect.TypeFor[conn.Secret]():
			secrets = append(secrets, at)
		case t.Kind() == reflect.Map && t.Elem() == reflect.TypeFor[conn.Secret]():
			secrets = append(secrets, at+".X-Secret")
		case t.Kind() == reflect.String && strings.HasSuffix(at, "_file"):
			files = append(files, at)
		case t.Kind() == reflect.Struct:
			for i := range t.NumField() {
				f := t.Field(i)
				name, options, _ := strings.Cut(f.Tag.Get("yaml"), ",")
				if !f.IsExported() || name == "-" {
					continue
				}
				key := strings.TrimPrefix(at+"."+name, ".")
				if strings.Contains(options, "inline") {
					key = at
				}
				walk(f.Type, key)
			}
		}
	}
	walk(reflect.TypeOf(v), "")
	return secrets, files
}

// with returns a copy of the settings with a value at a key such as basic_auth.password, and its companions.
func with(settings map[string]any, key string, value any) map[string]any {
	b, err := json.Marshal(settings)
	if err != nil {
		panic(err)
	}
	var out map[string]any
	if err := json.Unmarshal(b, &out); err != nil {
		panic(err)
	}
	set := func(key string, value any) {
		m := out
		parts := strings.Split(key, ".")
		for _, p := range parts[:len(parts)-1] {
			next, ok := m[p].(map[string]any)
			if !ok {
				next = map[string]any{}
				m[p] = next
			}
			m = next
		}
		m[parts[len(parts)-1]] = value
	}
	for k, v := range companions[key] {
		set(k, v)
	}
	set(key, value)
	return out
}

// vault hands out secrets and finds them again.
type vault struct {
	t     *testing.T
	dir   string
	env   []string
	cores map[string]string // what cannot be missed of a secret → whose it is
}

// secret makes a secret and returns its value.
func (v *vault) secret(whose string) string {
	core := fmt.Sprintf("Qz%04dHush", len(v.cores))
	v.cores[core] = whose
	return "p/+&=" + core + "&=+/q"
}

// reference puts a new secret into a file or into the environment.
func (v *vault) reference(whose string) map[string]any {
	value := v.secret(whose)
	if n := len(v.cores); n%2 == 0 {
		name := fmt.Sprintf("E2E_HIDDEN_%d", n)
		v.env = append(v.env, name+"="+value)
		return map[string]any{"env": name}
	}
	return map[string]any{"file": v.file(value + "\n")}
}

func (v *vault) file(content string) string {
	path := filepath.Join(v.dir, fmt.Sprintf("hidden-%d", len(v.cores)))
	write(v.t, path, content)
	return path
}

// clean reports every secret in a text: as it is, in hex, and in base64 wherever it begins. What URLs, JSON
// and HTML escape is not in the core of a secret.
func (v *vault) clean(where, text string) {
	v.t.Helper()
	for core, whose := range v.cores {
		forms := []string{core, hex.EncodeToString([]byte(core))}
		for pad := range 3 {
			// The letters at the ends depend on the neighbours.
			b := base64.RawStdEncoding.EncodeToString([]byte(strings.Repeat("x", pad) + core))
			forms = append(forms, b[(pad*8+5)/6:len(b)-1])
		}
		for _, f := range forms {
			if at := strings.Index(text, f); at >= 0 {
				v.t.Errorf("%s shows the secret %s: …%s…", where, whose, text[max(0, at-200):min(len(text), at+100)])
				break
			}
		}
	}
}

// talkative servers repeat everything that they are sent.
type talkative struct{ http, tcp, nats, amqp, amqp1, mqtt, postgres string }

func startTalkative(t *testing.T) talkative {
	t.Helper()
	h := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := httputil.DumpRequest(r, true)
		said := string(b)
		if _, password, ok := r.BasicAuth(); ok {
			said = password + said
		}
		w.Header().Set("Content-Type", "application/x-amz-json-1.1")
		w.WriteHeader([]int{400, 401, 500}[len(said)%3])
		_ = json.NewEncoder(w).Encode(map[string]string{"__type": "AccessDeniedException", "message": said})
	}))
	t.Cleanup(h.Close)
	serve := func(talk func(net.Conn)) string {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				talk(c)
				c.Close()
			}
		}()
		t.Cleanup(func() {
			ln.Close()
			<-ended
		})
		return ln.Addr().String()
	}
	return talkative{
		http: h.URL,
		tcp: serve(func(c net.Conn) {
			buf := make([]byte, 4096)
			for range 3 {
				n, err := c.Read(buf)
				if err != nil {
					return
				}
				_, _ = c.Write(buf[:n])
			}
		}),
		nats: serve(func(c net.Conn) {
			fmt.Fprintf(c, "INFO {\"server_id\":\"x\",\"version\":\"2.10.0\",\"proto\":1,\"max_payload\":1048576,\"auth_required\":true}\r\n")
			line, _ := bufio.NewReader(c).ReadString('\n')
			fmt.Fprintf(c, "-ERR 'Authorization Violation: %s'\r\n", strings.TrimSpace(line))
		}),
		postgres: serve(func(c net.Conn) {
			buf := make([]byte, 4096)
			if _, err := c.Read(buf); err != nil {
				return
			}
			_, _ = c.Write([]byte("R\x00\x00\x00\x08\x00\x00\x00\x03")) // the password, as it is
			n, err := c.Read(buf)
			if err != nil || n < 6 {
				return
			}
			said := "SFATAL\x00VFATAL\x00C28P01\x00Mthe password is " + string(buf[5:n-1]) + "\x00\x00"
			_, _ = c.Write(append([]byte{'E', 0, 0, byte((len(said) + 4) >> 8), byte(len(said) + 4)}, said...))
		}),
		amqp: serve(func(c net.Conn) {
			frame := func(method string) { fmt.Fprintf(c, "\x01\x00\x00\x00\x00\x00%c%s\xce", len(method), method) }
			buf := make([]byte, 4096)
			if _, err := c.Read(buf); err != nil {
				return
			}
			frame("\x00\x0a\x00\x0a\x00\x09\x00\x00\x00\x00\x00\x00\x00\x05PLAIN\x00\x00\x00\x05en_US") // connection.start
			n, err := c.Read(buf)
			if err != nil {
				return
			}
			_, said, _ := strings.Cut(string(buf[:n]), "PLAIN")
			said = said[4:min(len(said), 100)]
			frame("\x00\x0a\x00\x32\x01\x93" + string(rune(len(said))) + said + "\x00\x00\x00\x00") // connection.close, 403
			_, _ = c.Read(buf)
		}),
		amqp1: serve(func(c net.Conn) {
			_ = c.SetDeadline(time.Now().Add(5 * time.Second))
			buf := make([]byte, 4096)
			if _, err := io.ReadFull(c, buf[:8]); err != nil {
				return
			}
			frame := func(body string) {
				_, _ = io.WriteString(c, string([]byte{0, 0, 0, byte(8 + len(body)), 2, 1, 0, 0})+body)
			}
			_, _ = io.WriteString(c, "AMQP\x03\x01\x00\x00")
			frame("\x00\x53\x40\xc0\x08\x01\xa3\x05PLAIN") // sasl-mechanisms
			n, err := c.Read(buf)
			if err != nil {
				return
			}
			_, said, _ := strings.Cut(string(buf[:n]), "\x00")
			said = said[max(0, len(said)-60):]
			frame("\x00\x53\x44\xc0" + string(rune(len(said)+5)) + "\x02\x50\x01\xa0" + string(rune(len(said))) + said) // sasl-outcome
			_, _ = c.Read(buf)
		}),
		mqtt: serve(func(c net.Conn) {
			_ = c.SetDeadline(time.Now().Add(5 * time.Second))
			p, err := packets.ReadPacket(c)
			if err != nil {
				return
			}
			if login, ok := p.Content.(*packets.Connect); ok {
				no := packets.NewControlPacket(packets.CONNACK)
				no.Content = &packets.Connack{ReasonCode: packets.ConnackBadUsernameOrPassword,
					Properties: &packets.Properties{ReasonString: fmt.Sprintf("no: %s %q", login.Password, login.Password)}}
				_, _ = no.WriteTo(c)
			}
		}),
	}
}

// TestNoSecretAnywhere configures every secret of every transport, makes every end fail in its own way,
// and looks through everything that the program says.
func TestNoSecretAnywhere(t *testing.T) {
	t.Parallel()
	servers.Need(t)
	v := &vault{t: t, dir: t.TempDir(), env: []string{"PLAIN=plain"}, cores: map[string]string{}}
	talk := startTalkative(t)
	kafka := map[string]any{"brokers": []string{talk.tcp}, "topic": "t", "timeout": "1s"}
	kinesis := map[string]any{"stream": "s", "region": "us-east-1", "endpoint": talk.http, "request_timeout": "2s"}
	queue := map[string]any{"queue": "q", "region": "us-east-1", "endpoint": talk.http, "request_timeout": "2s"}
	nats := map[string]any{"url": "nats://" + talk.nats, "subject": "s"}
	rabbit := map[string]any{"url": "amqp://" + talk.amqp, "routing_key": "q"}
	talker := map[string]any{"command": []string{"/bin/sh", "-c", "env; env >&2; exit 1"}} // says all that it was told
	file := map[string]any{"path": filepath.Join(v.dir, "no folder", "file")}
	mqtt := map[string]any{"url": "mqtt://" + talk.mqtt, "topic": "t"}
	redis := map[string]any{"addresses": []string{talk.tcp}, "stream": "k", "timeout": "1s"}
	database := map[string]any{"addresses": []string{talk.postgres}, "database": "d", "username": "u", "timeout": "1s", "statement": "insert into t values ($1)"}
	rows := map[string]any{"addresses": []string{talk.postgres}, "database": "d", "username": "u", "timeout": "1s", "query": "select id from t where x > $1",
		"by": "transaction", "retention": "1h"}
	// Nothing but the token's address of these credentials is asked.
	account := filepath.Join(v.dir, "account.json")
	write(t, account, serviceAccount(t, talk.http))
	cloud := map[string]any{"project": "acme-billing", "topic": "invoices", "endpoint": talk.tcp, "request_timeout": "1s", "credentials_file": account}
	heads := map[string]map[string]any{"pubsub": cloud, "http": {"url": talk.http}, "kafka": kafka, "kinesis": kinesis, "nats": nats, "exec": talker, "file": file, "redis": redis, "postgres": database, "amqp": rabbit, "mqtt": mqtt,
		"sqs": queue, "sns": {"topic_arn": "arn:aws:sns:us-east-1:123456789012:t", "endpoint": talk.http, "request_timeout": "2s"},
		"amqp1": {"url": "amqp://" + talk.amqp1, "address": "q"}}
	ends := map[string]map[string]any{
		"http_poll": {"url": talk.http, "poll_interval": "100ms"}, "kafka": kafka, "kinesis": kinesis, "nats": nats,
		"webhook": {"listen": "127.0.0.1:0"}, "exec": talker, "file": file, "redis": redis, "postgres": rows, "mqtt": mqtt,
		"sqs":    with(queue, "dedicated", true),
		"amqp":   {"url": rabbit["url"], "exchange": "x", "bindings": []any{map[string]any{"routing_key": "#"}}},
		"amqp1":  {"url": "amqp://" + talk.amqp1, "queue": "q", "dedicated": true},
		"pubsub": {"project": cloud["project"], "subscription": "out", "dedicated": true, "endpoint": talk.tcp, "request_timeout": "1s", "credentials_file": account},
	}

	type entity struct {
		sink              bool
		kind, key         string
		settings, literal map[string]any
		files             []map[string]any
	}
	var all []entity
	collect := func(sink bool, kind string, config any, base map[string]any) {
		if base == nil {
			t.Fatalf("the kind %s is new: say here how it is configured", kind)
		}
		secrets, files := keysOf(config)
		for _, key := range secrets {
			whose := fmt.Sprintf("%s of %s", key, kind)
			base := base
			if kind == "webhook" {
				base = with(base, "listen", servers.FreeAddr(t))
			}
			all = append(all, entity{sink: sink, kind: kind, key: key, settings: with(base, key, v.reference(whose)), literal: with(base, key, v.secret(whose+", literal"))})
		}
		for _, key := range files {
			if kind == "amqp" {
				base = with(base, "url", "amqps://"+talk.tcp)
			}
			all = append(all, entity{sink: sink, kind: kind, key: key, files: []map[string]any{with(base, key, v.file(v.secret("the file "+key+" of "+kind)))}})
		}
	}
	for _, kind := range probe.Kinds() {
		c, _ := probe.New(kind)
		collect(false, kind, c, heads[kind])
	}
	for _, kind := range sinks.Kinds() {
		c, _ := sinks.New(kind)
		collect(true, kind, c, ends[kind])
	}
	if len(v.cores) < 30 {
		t.Fatalf("only %d secrets: %v", len(v.cores), slices.Sorted(maps.Values(v.cores)))
	}

	config := func(settings func(entity) map[string]any) string {
		sinkMap, probes := map[string]any{}, map[string]any{}
		for i, e := range all {
			s := settings(e)
			switch name := fmt.Sprintf("e%d", i); {
			case s == nil:
			case e.sink:
				sinkMap[name] = map[string]any{e.kind: s}
				probes[name] = map[string]any{"sinks": []string{name}}
			default:
				probes[name] = map[string]any{"interval": "200ms", "send_timeout": "2s", "inject": map[string]any{e.kind: s}}
			}
		}
		b, err := json.MarshalIndent(map[string]any{
			"global": map[string]any{
				"key": []any{v.reference("the first key"), v.reference("the second key")},
				"tracing": map[string]any{"otlp": map[string]any{"endpoint": talk.http, "basic_auth": map[string]any{"username": "u", "password": v.reference("the password for traces")},
					"secret_headers": map[string]any{"X-Secret": v.reference("a header for traces")}}},
			},
			"sinks": sinkMap, "probes": probes,
		}, "", " ")
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(v.dir, fmt.Sprintf("config-%d.yaml", len(v.cores)))
		write(t, path, string(b))
		return path
	}
	run := func(args ...string) string {
		cmd := command(args...)
		cmd.Env = append(cmd.Env, v.env...)
		out, _ := cmd.CombinedOutput()
		v.clean(strings.Join(args, " "), string(out))
		return string(out)
	}

	// Written into the file itself, a secret is refused with a text that does not repeat it.
	for i, e := range all {
		if e.literal == nil {
			continue
		}
		only := config(func(o entity) map[string]any {
			if reflect.DeepEqual(o, e) {
				return e.literal
			}
			return nil
		})
		if out := run("check", only); !strings.Contains(out, "a secret is not written into the file") {
			t.Errorf("%s of %s (%d) in the file: %s", e.key, e.kind, i, out)
		}
	}
	for kind, base := range heads {
		for _, key := range []string{"url", "endpoint"} {
			if base[key] != nil {
				address := strings.Replace(base[key].(string), "://", "://u:"+strings.NewReplacer("/", "", "+", "", "&", "", "=", "").Replace(v.secret("in the address"))+"@", 1)
				path := filepath.Join(v.dir, "address.yaml")
				b, _ := json.Marshal(map[string]any{"probes": map[string]any{"p": map[string]any{"inject": map[string]any{kind: with(base, key, address)}}}})
				write(t, path, string(b))
				run("check", "--connect", path)
			}
		}
	}
	// Files that hold secrets and cannot be used.
	run("check", "--connect", config(func(e entity) map[string]any {
		if e.files != nil {
			return e.files[0]
		}
		return nil
	}))

	whole := config(func(e entity) map[string]any { return e.settings })
	if out := run("check", "--connect", whole); !strings.Contains(out, "FAILED") {
		t.Errorf("no end fails:\n%s", out)
	}
	d := &daemon{addr: servers.FreeAddr(t), config: whole}
	flags := []string{"--config.file=" + whole, "--web.listen-address=" + d.addr, "--web.enable-pprof", "--log.level=debug", "--storage.path=" + filepath.Join(v.dir, "journal")}
	start := func() {
		d.Process = servers.Program(t, "lag-monitor", func() *exec.Cmd {
			cmd := command(flags...)
			cmd.Env = append(cmd.Env, v.env...)
			return cmd
		}, func(ctx context.Context) error {
			_, err := call(ctx, http.MethodGet, "http://"+d.addr+"/-/healthy", nil)
			return err
		})
	}
	start()
	d.await(t, "every sink that can fail has failed, and every probe", func(s scrape) bool {
		for _, e := range s.Find("heartbeat_inject_duration_seconds_count") {
			if e.Value < 3 && s.Sum("heartbeats_sent_total", "probe", e.Labels["probe"], "result", "failure") < 3 {
				return false
			}
		}
		for i, e := range all {
			if e.sink && e.settings != nil && e.kind != "webhook" && s.Sum("sink_errors_total", "sink", fmt.Sprintf("e%d", i)) == 0 {
				return false
			}
		}
		return s.Sum("traces_dropped_total", "reason", "export_failed") > 0
	})
	for _, e := range all {
		if e.kind == "webhook" && e.settings != nil {
			r, err := http.NewRequest(http.MethodPost, "http://"+e.settings["listen"].(string), strings.NewReader("x"))
			if err != nil {
				t.Fatal(err)
			}
			r.SetBasicAuth("u", v.secret("a wrong password"))
			resp, err := client.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			b, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			v.clean("the webhook's answer", string(b))
			if resp.StatusCode != http.StatusUnauthorized {
				t.Errorf("a wrong password: %s", resp.Status)
			}
		}
	}
	look := func() {
		for _, path := range append(probePages(t, "http://"+d.addr), []string{
			"/", "/config", "/metrics", "/api/v1/status", "/-/ready", "/-/healthy", "/assets/style.css", "/api/v1/probes", "/api/v1/sinks", "/nothing",
			"/debug/pprof/", "/debug/pprof/cmdline", "/debug/pprof/symbol", "/debug/pprof/heap", "/debug/pprof/heap?debug=1", "/debug/pprof/allocs",
			"/debug/pprof/goroutine", "/debug/pprof/goroutine?debug=1", "/debug/pprof/goroutine?debug=2", "/debug/pprof/threadcreate?debug=1",
			"/debug/pprof/block?debug=1", "/debug/pprof/mutex?debug=1", "/debug/pprof/profile?seconds=1", "/debug/pprof/trace?seconds=1",
		}...) {
			resp, err := client.Get("http://" + d.addr + path)
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil {
				t.Fatal(err)
			}
			if z, err := gzip.NewReader(bytes.NewReader(b)); err == nil {
				if plain, err := io.ReadAll(z); err == nil {
					b = plain
				}
			}
			if want := path != "/nothing"; (resp.StatusCode == http.StatusOK) != want {
				t.Errorf("%s: %s", path, resp.Status)
			}
			v.clean(path, string(b))
		}
	}
	look()

	// The secrets cannot be read any more, or are no secrets that could be sent.
	files, err := filepath.Glob(filepath.Join(v.dir, "hidden-*"))
	if err != nil || len(files) < 10 {
		t.Fatal(files, err)
	}
	for i, f := range files {
		switch i % 3 {
		case 0:
			err = os.Remove(f)
		case 1:
			err = os.WriteFile(f, []byte(v.secret("broken")+"\x00\n\r\xff"), 0o600)
		default:
			err = os.WriteFile(f, nil, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	_, text := d.reload(t)
	v.clean("the answer to a reload", text)
	run("check", "--connect", whole)
	before := d.scrape(t)
	d.await(t, "more fails", func(s scrape) bool {
		return s.Sum("sink_errors_total") >= before.Sum("sink_errors_total")+20 && s.Sum("heartbeats_sent_total") >= before.Sum("heartbeats_sent_total")+50
	})
	look()
	d.Stop()
	v.clean("the log", d.Log())
	journal, err := os.ReadFile(filepath.Join(v.dir, "journal", "journal.db"))
	if err != nil {
		t.Fatal(err)
	}
	v.clean("the journal", string(journal))
}

// serviceAccount is a file of credentials of Google Cloud with a new key, whose tokens come from an address.
func serviceAccount(t *testing.T, tokens string) string {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(map[string]string{"type": "service_account", "client_email": "monitor@acme-billing.example", "token_uri": tokens,
		"private_key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))})
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// probePages are the addresses of what shows a probe's configuration, errors and heartbeats.
func probePages(t *testing.T, base string) []string {
	t.Helper()
	resp, err := http.Get(base + "/api/v1/probes")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var body struct{ Probes []struct{ Name string } }
	if err := json.NewDecoder(resp.Body).Decode(&body); err != nil || len(body.Probes) == 0 {
		t.Fatal(err, body)
	}
	var pages []string
	for _, p := range body.Probes {
		pages = append(pages, "/probes/"+p.Name, "/api/v1/probes/"+p.Name)
	}
	return pages
}
