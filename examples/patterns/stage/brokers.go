package stage

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sync"
	"testing"

	"github.com/lag-monitor/lag-monitor/internal/servers"
)

// Build builds lag-monitor into dir and returns its path. root is the directory of this module.
func Build(ctx context.Context, root, dir string) (string, error) {
	binary := filepath.Join(dir, "lag-monitor")
	cmd := exec.CommandContext(ctx, "go", "build", "-o", binary, "./cmd/lag-monitor")
	cmd.Dir = filepath.Join(root, "..", "..")
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("go build ./cmd/lag-monitor: %w", err)
	}
	return binary, nil
}

// House is what all stages share: one process of each broker, started when the first stage needs it, and one Prometheus. It
// ends with the test it was made for. It is safe for concurrent use.
type House struct {
	tb     testing.TB
	root   string // the directory of this module
	binary string // lag-monitor
	addrs  map[string]string

	prometheus *servers.PrometheusServer

	mu     sync.Mutex
	rabbit *servers.RabbitMQServer
	kafka  *servers.KafkaServer
	redis  *servers.RedisServer
	dbs    int // of Redis, that are in use
}

var (
	groupInterval = regexp.MustCompile(`(?m)^(    interval: )\S+$`)
	alertFor      = regexp.MustCompile(`(?m)^(        for: )\S+$`)
)

// Open makes a house for stages with these names and starts its Prometheus. root is the directory of this module, binary
// lag-monitor.
func Open(tb testing.TB, root, binary string, names ...string) *House {
	tb.Helper()
	h := &House{tb: tb, root: root, binary: binary, addrs: map[string]string{}}
	config := "global: {scrape_interval: 1s, evaluation_interval: 1s}\nscrape_configs:\n"
	for _, name := range names {
		h.addrs[name] = servers.FreeAddr(tb)
		config += fmt.Sprintf("  - {job_name: %s, static_configs: [{targets: [%q]}]}\n", name, h.addrs[name])
	}
	text, err := os.ReadFile(filepath.Join(root, "..", "..", "rules", "lag-monitor.rules.yaml"))
	if err != nil {
		tb.Fatal(err)
	}
	// Their own steps are for minutes; what they say stays as it is shipped.
	text = groupInterval.ReplaceAll(text, []byte("${1}1s"))
	text = alertFor.ReplaceAll(text, []byte("${1}"+For.String()))
	rules := filepath.Join(tb.TempDir(), "lag-monitor.rules.yaml")
	if err := os.WriteFile(rules, text, 0o600); err != nil {
		tb.Fatal(err)
	}
	h.prometheus = servers.Prometheus(tb, config, rules)
	return h
}

// Start starts every broker before any stage needs it: the seconds of work that each takes are then not those in which
// stages are watched.
func (h *House) Start() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.startRabbit()
	h.startKafka()
	h.startRedis()
}

func (h *House) startRabbit() {
	if h.rabbit == nil {
		h.rabbit = servers.RabbitMQ(h.tb, servers.RabbitMQOptions{})
	}
}

func (h *House) startKafka() {
	if h.kafka == nil {
		h.kafka = servers.Kafka(h.tb, servers.KafkaOptions{})
	}
}

func (h *House) startRedis() {
	if h.redis == nil {
		h.redis = servers.Redis(h.tb)
	}
}

// space makes room for a stage on RabbitMQ: a virtual host.
func (h *House) space(name string) (addr string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.startRabbit()
	h.rabbit.Eval(fmt.Sprintf(`rabbit_vhost:add(<<%[1]q>>, <<"patterns">>), `+
		`rabbit_auth_backend_internal:set_permissions(<<"guest">>, <<%[1]q>>, <<".*">>, <<".*">>, <<".*">>, <<"patterns">>)`, name))
	return h.rabbit.Addr
}

// topics makes room for a stage on Kafka: topics whose names begin with its own.
func (h *House) topics(name string, topics []string) (addr string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.startKafka()
	for _, topic := range topics {
		h.kafka.CreateTopic(name+"."+topic, 3)
	}
	return h.kafka.Addr
}

// database makes room for a stage on Redis.
func (h *House) database() (addr string, db int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.startRedis()
	h.dbs++
	return h.redis.Addr, h.dbs
}

// Prometheus returns the address of Prometheus: http://host:port.
func (h *House) Prometheus() string { return h.prometheus.URL }
