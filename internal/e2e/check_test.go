package e2e_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/lag-monitor/lag-monitor/internal/servers"
)

// check runs `lag-monitor check` and returns its exit code and all that it wrote.
func check(t *testing.T, args ...string) (int, string) {
	t.Helper()
	cmd := command(append([]string{"check"}, args...)...)
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), string(out)
}

// TestCheckConnect: `check --connect` tells ends that would work from those that would not, and says of
// those what is wrong.
func TestCheckConnect(t *testing.T) {
	t.Parallel()
	servers.Need(t)
	k := servers.Kafka(t, servers.KafkaOptions{SASL: true})
	k.CreateTopic("orders", 2)
	kin := servers.Kinesis(t)
	kin.CreateStream(t, "orders", 2)
	n := servers.NATS(t, func(o *server.Options) { o.Username, o.Password = "monitor", "right" })
	natsOpen := servers.NATS(t)
	natsStream(t, natsOpen, "ORDERS", "orders.>")
	p := startWebhookPipeline(t)
	nobody := servers.FreeAddr(t)

	dir := t.TempDir()
	write(t, filepath.Join(dir, "kafka-password"), servers.KafkaPassword)
	write(t, filepath.Join(dir, "right"), "right")
	write(t, filepath.Join(dir, "wrong"), "wrong-and-secret")
	kafka := func(addr, topic, password string) string {
		sasl := ""
		if password != "" {
			sasl = fmt.Sprintf(", sasl: {mechanism: scram-sha-512, username: %s, password: {file: %s}}", servers.KafkaUser, password)
		}
		return fmt.Sprintf("kafka: {brokers: [%q], topic: %s%s}", addr, topic, sasl)
	}
	kinesis := func(endpoint, stream string) string {
		return fmt.Sprintf("kinesis: {stream: %s, region: us-east-1, endpoint: %q, access_key_id: {env: E2E_AWS_KEY}, secret_access_key: {env: E2E_AWS_SECRET}}", stream, endpoint)
	}
	nats := func(url, key, value, password string) string {
		login := ""
		if password != "" {
			login = fmt.Sprintf(", username: monitor, password: {file: %s}", password)
		}
		return fmt.Sprintf("nats: {url: %q, %s: %s%s}", url, key, value, login)
	}

	// The same line for the end that injects and the one that listens, but where they differ.
	for _, c := range []struct {
		what, inject, sink string
		// Regular expressions for what is said of the ends; an empty one stands for ok.
		probeSays, sinkSays string
	}{
		{what: "kafka", inject: kafka(k.SASLAddr, "orders", "kafka-password"), sink: kafka(k.SASLAddr, "orders", "kafka-password")},
		{what: "kinesis", inject: kinesis(kin.Endpoint, "orders"), sink: kinesis(kin.Endpoint, "orders")},
		{what: "nats", inject: nats(natsOpen.URL, "subject", "orders.new", ""), sink: nats(natsOpen.URL, "stream", "ORDERS", "")},
		{what: "http and webhook", inject: fmt.Sprintf("http: {url: %q}", p.url), sink: fmt.Sprintf("webhook: {listen: %q}", p.listen)},
		{
			"kafka: no such topic", kafka(k.Addr, "ordres", ""), kafka(k.Addr, "ordres", ""),
			"missing: .*ordres", "missing: .*ordres",
		},
		{
			"kafka: wrong password", kafka(k.SASLAddr, "orders", "wrong"), kafka(k.SASLAddr, "orders", "wrong"),
			"auth: .*" + k.SASLAddr, "auth: .*" + k.SASLAddr,
		},
		{
			"kafka: nobody there", kafka(nobody, "orders", ""), kafka(nobody, "orders", ""),
			"network: .*connection refused", "network: .*connection refused",
		},
		{
			"kinesis: no such stream", kinesis(kin.Endpoint, "ordres"), kinesis(kin.Endpoint, "ordres"),
			"missing: .*ordres", "missing: .*ordres",
		},
		{
			"kinesis: nobody there", kinesis("http://"+nobody, "orders"), kinesis("http://"+nobody, "orders"),
			"network: .*connection refused", "network: .*connection refused",
		},
		{
			"nats: no such stream", nats(natsOpen.URL, "subject", "nobody.takes.this", ""), nats(natsOpen.URL, "stream", "ORDRES", ""),
			"missing: .*nobody.takes.this", "missing: .*ORDRES",
		},
		{
			"nats: wrong password", nats(n.URL, "subject", "orders.new", "wrong"), nats(n.URL, "stream", "ORDERS", "wrong"),
			"auth: .*" + n.URL, "auth: .*" + n.URL,
		},
		{
			"nats: nobody there", nats("nats://"+nobody, "subject", "orders.new", ""), nats("nats://"+nobody, "stream", "ORDERS", ""),
			"network: .*" + nobody + ".*connection refused", "network: .*" + nobody + ".*connection refused",
		},
		{
			what: "http: nobody there", inject: fmt.Sprintf("http: {url: \"http://%s/\"}", nobody), sink: fmt.Sprintf("webhook: {listen: %q}", p.listen),
			probeSays: "network: .*connection refused",
		},
	} {
		t.Run(c.what, func(t *testing.T) {
			path := filepath.Join(dir, strings.NewReplacer(" ", "-", ":", "").Replace(c.what)+".yaml")
			write(t, path, fmt.Sprintf("sinks:\n  out: {%s}\nprobes:\n  orders: {page: {lag: 5m}, inject: {%s}, sinks: [out]}\n", c.sink, c.inject))
			code, out := check(t, "--connect", path)
			want := 0
			for _, end := range []struct{ name, says string }{{"probe orders", c.probeSays}, {"sink out", c.sinkSays}} {
				line := `(?m)^  ok +` + end.name + ` \([a-z]+\)$`
				if end.says != "" {
					want = 1
					line = `(?m)^  FAILED +` + end.name + ` \([a-z]+\) +` + end.says
				}
				if !regexp.MustCompile(line).MatchString(out) {
					t.Errorf("no line like %s in\n%s", line, out)
				}
			}
			if code != want {
				t.Errorf("exit code %d; want %d:\n%s", code, want, out)
			}
			if strings.Contains(out, "wrong-and-secret") || strings.Contains(out, servers.KafkaPassword) {
				t.Errorf("a secret is shown:\n%s", out)
			}
			t.Log(out)
		})
	}
}

// TestDocs: whatever the documentation and the manifests show as a configuration is one.
func TestDocs(t *testing.T) {
	t.Parallel()
	servers.Need(t)
	root := filepath.Join("..", "..")
	type block struct{ where, text string }
	var blocks []block
	fence := regexp.MustCompile("(?ms)^```yaml\n(.*?)^```$")
	var pages []string
	for _, pattern := range []string{"*.md", "docs/*.md", "docs/*/*.md", "deploy/*.md", "deploy/*/*.md", "rules/*.md"} {
		found, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			t.Fatal(err)
		}
		pages = append(pages, found...)
	}
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range fence.FindAllSubmatchIndex(text, -1) {
			line := 1 + strings.Count(string(text[:m[2]]), "\n")
			blocks = append(blocks, block{fmt.Sprintf("%s:%d", strings.TrimPrefix(page, root+"/"), line), string(text[m[2]:m[3]])})
		}
	}
	// The configuration in a ConfigMap is its only block scalar.
	maps, err := filepath.Glob(filepath.Join(root, "deploy/kubernetes/*/configmap.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range maps {
		text, err := os.ReadFile(m)
		if err != nil {
			t.Fatal(err)
		}
		_, config, ok := strings.Cut(string(text), "\n  config.yaml: |\n")
		if !ok {
			t.Errorf("%s holds no config.yaml", m)
			continue
		}
		blocks = append(blocks, block{strings.TrimPrefix(m, root+"/"), regexp.MustCompile(`(?m)^    `).ReplaceAllString(config, "")})
	}

	ours := regexp.MustCompile(`(?m)^(global|sinks|probes):`)
	checked := map[string]int{}
	for _, b := range blocks {
		if !ours.MatchString(b.text) {
			continue // Prometheus', Alertmanager's or Kubernetes'
		}
		t.Run(b.where, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.Mkdir(filepath.Join(dir, "conf.d"), 0o700); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(dir, "config.yaml")
			write(t, path, complete(b.text))
			if code, out := check(t, path); code != 0 {
				t.Errorf("exit code %d\n%s\nof\n%s", code, out, complete(b.text))
			}
		})
		checked[filepath.Dir(strings.Split(b.where, ":")[0])]++
	}
	for _, dir := range []string{"docs", "docs/transports", "deploy/kubernetes/standalone", "deploy/kubernetes/sidecar"} {
		if checked[dir] == 0 {
			t.Errorf("no configuration was found in %s", dir)
		}
	}
	t.Logf("checked: %v", checked)
}

// complete turns a part of a configuration into a whole one: a page about heads shows no sinks.
func complete(text string) string {
	if strings.Contains(text, "\nsinks:") || strings.HasPrefix(text, "sinks:") {
		return text
	}
	var sinks strings.Builder
	for _, m := range regexp.MustCompile(`(?m)^    sinks: \[(.*?)\]`).FindAllStringSubmatch(text, -1) {
		for _, name := range strings.Split(m[1], ",") {
			fmt.Fprintf(&sinks, "  %s: {webhook: {listen: \":0\"}}\n", strings.TrimSpace(name))
		}
	}
	if sinks.Len() == 0 {
		return text
	}
	return text + "sinks:\n" + sinks.String()
}
