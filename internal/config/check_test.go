package config

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// reportOn checks the files of a fresh folder.
func reportOn(t *testing.T, o CheckOptions, files ...string) (string, Found) {
	t.Helper()
	dir := t.TempDir()
	write(t, dir, files...)
	var out bytes.Buffer
	found := check(t.Context(), &out, testLoader(filepath.Join(dir, "main.yaml")), o, map[sender]string{})
	return strings.ReplaceAll(out.String(), dir+"/", ""), found
}

func TestCheck(t *testing.T) {
	got, found := reportOn(t, CheckOptions{}, "main.yaml", good+"    timeout: 5s\n", "keys/one", "hunter2\n")
	want := `main.yaml: 1 probe, 1 sink in 1 file
  PROBE   INJECTS  EVERY  EXPIRY  TIMEOUT  TTL   PAGE                     TICKET  SINKS
  orders  post     10s    1d      5s       1d5s  lag 5m for 1m, drops 1%  -       out
  SINK  KIND  ROLE         PROBES
  out   log   destination  1
warning: main.yaml:20: probes.orders.timeout: timeout 5s is shorter than interval 10s: a heartbeat is given up before the next one is sent
warning: main.yaml:11: probes.orders.page: lag 5m for 1m is shorter than expiry + interval + the time between two scrapes (1d25s): a restart of the monitor can be enough for the alert; set for, or raise lag
`
	if got != want || found != (Found{Warnings: 2}) {
		t.Errorf("%+v:\n%s\nwant\n%s", found, got, want)
	}

	got, found = reportOn(t, CheckOptions{}, "main.yaml", "include: [a.yaml]\nprobes: {}\n", "a.yaml", "probes:\n  a: {interval: 1}\n")
	want = `main.yaml: 0 probes, 0 sinks in 2 files
error: a.yaml:2: probes.a.interval: "1" is not a duration: write a number and a unit, such as 500ms, 15s, 5m, 1h30m or 1d
`
	if got != want || found != (Found{Mistakes: 1}) {
		t.Errorf("%+v:\n%s\nwant\n%s", found, got, want)
	}

	got, found = reportOn(t, CheckOptions{Connect: true}, "main.yaml", "prob: {}\n")
	want = "main.yaml: not usable\nerror: main.yaml:1: prob: unknown key (did you mean \"probes\"?)\n"
	if got != want || found != (Found{Mistakes: 1}) {
		t.Errorf("%+v:\n%s\nwant\n%s", found, got, want)
	}
}

// TestAdvice: what is allowed in every part and does not fit together.
func TestAdvice(t *testing.T) {
	const sinks = "sinks:\n  out: {log: {brokers: [a], topic: t}}\n  mid: {role: hop, log: {brokers: [a], topic: m}}\n  dead: {role: dead_letter, log: {brokers: [a], topic: d}}\n"
	const head = "inject: {post: {url: 'http://x/'}}"
	for _, c := range []struct{ name, text, want string }{
		{"all is well", sinks + "probes:\n  p: {interval: 10s, expiry: 30s, page: {lag: 1m}, sinks: [mid, out, dead], " + head + "}\n", ""},
		{"a restart pages", sinks + "probes:\n  p: {interval: 10s, expiry: 30s, page: {lag: 50s}, sinks: [mid, out, dead], " + head + "}\n",
			"main.yaml:6: probes.p.page: lag 50s for 0s is shorter than expiry + interval + the time between two scrapes (55s): a restart of the monitor can be enough for the alert; set for, or raise lag\n"},
		{"for counts", sinks + "probes:\n  p: {interval: 10s, expiry: 30s, page: {lag: 50s, for: 5s}, sinks: [mid, out, dead], " + head + "}\n", ""},
		{"a ticket, too", sinks + "probes:\n  p: {interval: 10s, page: {lag: 1m}, ticket: {lag: 12s}, sinks: [mid, out, dead], " + head + "}\n",
			"main.yaml:6: probes.p.ticket: lag 12s for 0s is shorter than expiry + interval + the time between two scrapes (25s): a restart of the monitor can be enough for the alert; set for, or raise lag\n"},
		{"one queue twice", "sinks:\n  a: {log: {brokers: [a], topic: t}}\n  b: {log: {topic: t, brokers: [a]}}\n  c: {role: hop, log: {brokers: [a], topic: t}}\nprobes:\n  p: {page: {lag: 1m}, sinks: [c, a, b], " + head + "}\n",
			"main.yaml:3: sinks.b: reads the same queue as sink a: share that one, any number of probes can\n"},
		{"ttl below timeout", sinks + "probes:\n  p: {timeout: 5m, ttl: 1m, page: {lag: 1m}, sinks: [mid, out, dead], " + head + "}\n",
			"main.yaml:6: probes.p.ttl: ttl 1m is shorter than expiry + timeout (5m): a broker may throw a heartbeat away that could still be on time\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, found := reportOn(t, CheckOptions{}, "main.yaml", c.text)
			var warnings strings.Builder
			for line := range strings.Lines(got) {
				if w, ok := strings.CutPrefix(line, "warning: "); ok {
					warnings.WriteString(w)
				}
			}
			if warnings.String() != c.want || found.Mistakes > 0 || found.Warnings != strings.Count(c.want, "\n") {
				t.Errorf("%+v:\n%s\nwant\n%s", found, got, c.want)
			}
		})
	}
}

// TestOneNameForTwo: files that are checked together are those of several monitors.
func TestOneNameForTwo(t *testing.T) {
	report := func(instanceA, instanceB, probeB string) string {
		dir := t.TempDir()
		text := func(instance, probe string) string {
			return "global: {instance: " + instance + "}\nprobes:\n  " + probe + ": {inject: {http: {url: 'http://x/'}}}\n"
		}
		write(t, dir, "a.yaml", text(instanceA, "orders"), "b.yaml", text(instanceB, probeB))
		var out bytes.Buffer
		found := Check(t.Context(), &out, []string{dir + "/a.yaml", dir + "/b.yaml"}, CheckOptions{})
		if found.Mistakes > 0 {
			t.Error(out.String())
		}
		_, warning, _ := strings.Cut(out.String(), "warning: ")
		return strings.ReplaceAll(warning, dir+"/", "")
	}
	want := "b.yaml:3: probes.orders: a.yaml injects under the same name and instance (eu-1): each would take the heartbeats of the other for its own; give them two names in global.instance\n"
	if got := report("eu-1", "eu-1", "orders"); got != want {
		t.Errorf("got %q", got)
	}
	for _, other := range [][3]string{{"eu-1", "eu-2", "orders"}, {"eu-1", "eu-1", "payments"}} {
		if got := report(other[0], other[1], other[2]); got != "" {
			t.Errorf("%v: %q", other, got)
		}
	}
}

// TestCheckConnect: every end gets its line, and none can hold the others up for longer than the timeout.
func TestCheckConnect(t *testing.T) {
	files := []string{"main.yaml", `
global: {key: [{file: keys/one}, {file: keys/two}], page: {lag: 5m}}
sinks:
  out:
    log: {brokers: [a], topic: t}
  locked:
    log: {brokers: [a], topic: t, password: {env: LAG_MONITOR_NOT_SET}}
probes:
  down: {sinks: [out, locked], inject: {post: {url: 'http://down/'}}}
  hangs: {inject: {post: {url: 'http://hangs/'}}}
  slow: {inject: {post: {url: 'http://slow/'}}}
  up: {inject: {post: {url: 'http://up/'}}}
`, "keys/one", "hunter2\n"}
	// Not in a bubble of synctest: a driver that never returns would be a deadlock there.
	start := time.Now()
	got, found := reportOn(t, CheckOptions{Connect: true, Timeout: 200 * time.Millisecond, Parallel: 2}, files...)
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("took %s", took)
	}
	_, got, _ = strings.Cut(got, "PROBES\n")
	_, got, _ = strings.Cut(got, "destination  1\n  out     log   destination  1\n")
	want := `  ok      key 1
  FAILED  key 2               other: open keys/two: no such file or directory
  FAILED  sink locked (log)   other: environment variable LAG_MONITOR_NOT_SET is not set
  opened  sink out (log)      this kind cannot be asked without sending
  FAILED  probe down (post)   network: dial: connection refused
  FAILED  probe hangs (post)  network: no answer within 200ms
  FAILED  probe slow (post)   network: context deadline exceeded
  ok      probe up (post)
`
	if got != want || found.Unreachable != 5 {
		t.Errorf("%+v:\n%s\nwant\n%s", found, got, want)
	}
	if strings.Contains(got, "hunter2") {
		t.Errorf("the key is in the report")
	}
}

// TestCheckConnectTimes: an end that ends with ctx is given the timeout and no more.
func TestCheckConnectTimes(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "main.yaml", "probes:\n  slow: {inject: {post: {url: 'http://slow/'}}}\n")
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		check(t.Context(), new(bytes.Buffer), testLoader(filepath.Join(dir, "main.yaml")), CheckOptions{Connect: true}, nil)
		if took := time.Since(start); took != 10*time.Second {
			t.Errorf("took %s", took)
		}
	})
}
