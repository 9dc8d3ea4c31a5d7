package servers_test

import (
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/servers"
)

// BenchmarkStart measures how long each server takes from its start until it is ready, and
// its resident memory then, which is the table of README.md.
func BenchmarkStart(b *testing.B) {
	kafka := func(v servers.KafkaVersion) func(testing.TB) *servers.Process {
		return func(t testing.TB) *servers.Process { return servers.Kafka(t, servers.KafkaOptions{Version: v}).Process }
	}
	for _, c := range []struct {
		name  string
		start func(testing.TB) *servers.Process
	}{
		{"kafka39", kafka(servers.Kafka39)},
		{"kafka4", kafka(servers.Kafka4)},
		{"rabbitmq", func(t testing.TB) *servers.Process { return servers.RabbitMQ(t, servers.RabbitMQOptions{}).Process }},
		{"mosquitto", func(t testing.TB) *servers.Process {
			return servers.Mosquitto(t, servers.MosquittoOptions{}).Process
		}},
		{"postgres", func(t testing.TB) *servers.Process { return servers.Postgres(t, servers.PostgresOptions{}).Process }},
		{"kinesis", func(t testing.TB) *servers.Process { return servers.Kinesis(t).Process }},
		{"moto", func(t testing.TB) *servers.Process { return servers.Moto(t).Process }},
		{"prometheus", func(t testing.TB) *servers.Process { return servers.Prometheus(t, "scrape_configs: []").Process }},
		{"alertmanager", func(t testing.TB) *servers.Process {
			return servers.Alertmanager(t, "route: {receiver: none}\nreceivers: [{name: none}]\n").Process
		}},
	} {
		b.Run(c.name, func(b *testing.B) {
			var started time.Duration
			var pages int
			for b.Loop() {
				begin := time.Now()
				p := c.start(b)
				started += time.Since(begin)
				pages += residentPages(b, p.Pid())
				p.Kill()
			}
			b.ReportMetric(float64(started.Milliseconds())/float64(b.N), "ms/start")
			b.ReportMetric(float64(pages)*float64(os.Getpagesize())/1e6/float64(b.N), "MB")
			b.ReportMetric(0, "ns/op")
		})
	}
}

func residentPages(b *testing.B, pid int) int {
	b.Helper()
	statm, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/statm")
	if err != nil {
		b.Fatal(err)
	}
	pages, err := strconv.Atoi(strings.Fields(string(statm))[1])
	if err != nil {
		b.Fatal(err)
	}
	return pages
}
