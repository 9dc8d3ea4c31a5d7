package faults_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/heartbeat"
	"github.com/lag-monitor/lag-monitor/internal/servers"
)

// kafkaRows lists what is broken in Kafka, in the order of the table.
func kafkaRows() []*row {
	kafkaOf := func(f *field) *servers.KafkaServer { return f.server.(*servers.KafkaServer) }
	dest := func(f *field) *kafkaQueue { return f.dest.(*kafkaQueue) }
	head := func(f *field) *kafkaQueue { return f.head.(*kafkaQueue) }
	return append(commonRows(),
		&row{
			name: "destination_recreated", does: "the destination topic is deleted with heartbeats that the monitor has not read, and created again 2 s later", gap: true,
			fault: func(t *testing.T, f *field) {
				f.replaceDestination(t, func() { dest(f).recreate(t, kafkaOf(f), 2*time.Second) })
			},
		},
		&row{
			name: "head_recreated", does: "the head topic is deleted, and created again 2 s later", headLoses: true,
			fault: func(t *testing.T, f *field) { head(f).recreate(t, kafkaOf(f), 2*time.Second) },
		},
		&row{
			name: "partitions_added", does: "two partitions become four, first of the destination, then of the head; the monitor looks every 30 s", unnoticed: true, long: true, recovers: 2 * time.Minute,
			fault: func(t *testing.T, f *field) {
				kafkaOf(f).AddPartitions(dest(f).topic, 4)
				kafkaOf(f).AddPartitions(head(f).topic, 4)
			},
			well: func(s servers.Scrape) bool { return len(s.Find("heartbeat_timestamp_seconds")) == 4 },
		},
		&row{
			name: "throttled", does: "the broker allows the monitor 500 bytes a second to write and to read, for 10 s", settings: ", client_id: throttled",
			// Requests that wait for the quota come in late, whoever has given them up: their stamps are from before the wait.
			timeout: 25 * time.Second, settles: 10 * time.Second,
			fault: func(t *testing.T, f *field) {
				quota(t, kafkaOf(f), "throttled", 500)
				wait(t, 10*time.Second)
				quota(t, kafkaOf(f), "throttled", 0)
			},
		},
		&row{
			name: "login_expired", does: "logins last 4 s; the password is changed, and the monitor's file 8 s later", variant: "login",
			fault: func(t *testing.T, f *field) {
				const next = "another one"
				kafkaOf(f).SetPassword(next)
				wait(t, 8*time.Second)
				writeFile(t, f.secret, next)
				f.daemon.Signal(syscall.SIGHUP)
			},
		},
		diskFull(),
	)
}

// natsRows lists what is broken in NATS, in the order of the table.
func natsRows() []*row {
	natsOf := func(f *field) *servers.NATSProcess { return f.server.(*servers.NATSProcess) }
	return append(commonRows(),
		&row{
			name: "destination_recreated", does: "the destination stream is deleted with heartbeats that the monitor has not read, and created again 2 s later", gap: true,
			fault: func(t *testing.T, f *field) {
				f.replaceDestination(t, func() { f.dest.(*natsQueue).recreate(t, 2*time.Second) })
			},
		},
		&row{
			name: "head_recreated", does: "the head stream is deleted, and created again 2 s later", headLoses: true,
			fault: func(t *testing.T, f *field) { f.head.(*natsQueue).recreate(t, 2*time.Second) },
		},
		&row{
			name: "slow_consumer", does: "30 MB of others in the destination and 50 kB/s to the monitor for 10 s: the server throws it out", variant: "slow",
			fault: func(t *testing.T, f *field) {
				f.destProxy.Set(servers.Faults{Bandwidth: 50_000})
				f.dest.(*natsQueue).flood(t)
				wait(t, 10*time.Second)
				if log := f.broker.LogTail(); !strings.Contains(log, "Slow Consumer") {
					t.Errorf("the server has thrown nobody out:\n%s", log)
				}
				f.destProxy.Set(servers.Faults{})
			},
		},
		&row{
			name: "login_expired", does: "the password is changed, which ends the connections, and the monitor's file 5 s later", variant: "login",
			fault: func(t *testing.T, f *field) {
				natsOf(f).Configure(natsUsers("second"))
				wait(t, 5*time.Second)
				writeFile(t, f.secret, "second")
				f.daemon.Signal(syscall.SIGHUP)
			},
		},
		diskFull(),
	)
}

// diskFull needs a broker that keeps its data on a disk of its own.
func diskFull() *row {
	return &row{
		name: "disk_full", does: "the broker's disk is full for 5 s; it is started again with room", variant: "disk",
		fault: func(t *testing.T, f *field) {
			free := servers.Fill(t, f.disk)
			wait(t, 5*time.Second)
			f.broker.Kill() // it may have ended already
			free()
			f.broker.Start()
		},
	}
}

// replaceDestination replaces it with heartbeats in it that the monitor has not read, and notes them before. The relay
// waits meanwhile.
func (f *field) replaceDestination(t *testing.T, replace func()) {
	t.Helper()
	f.destProxy.Set(servers.Faults{Refuse: true})
	defer f.destProxy.Set(servers.Faults{})
	f.destProxy.Cut()
	f.relays(t, f.relay.counts()+5)
	f.relay.hold()
	defer f.relay.resume()
	found, err := f.dest.all(t.Context())
	for deadline := time.Now().Add(patience); err != nil && time.Now().Before(deadline); found, err = f.dest.all(t.Context()) {
		wait(t, 100*time.Millisecond) // a local server that is busy with other rows does not answer each time
	}
	if err != nil {
		t.Fatal(err)
	}
	f.truth.add(found, false)
	replace()
}

// loseUnread calls lose when there are heartbeats in the destination that the monitor has not read, and has not begun to read;
// read are the messages before them. The relay waits meanwhile.
func (f *field) loseUnread(t *testing.T, lose func(read []message)) {
	t.Helper()
	f.relay.hold()
	now := float64(time.Now().UnixMilli()) / 1000
	f.daemon.await(t, "the sink has read everything", patience, func(s servers.Scrape) bool { return s.Sum("sink_caught_up_timestamp_seconds") > now })
	read, err := f.dest.all(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	f.destProxy.Set(servers.Faults{Refuse: true})
	defer f.destProxy.Set(servers.Faults{})
	f.destProxy.Cut()
	f.relay.resume()
	f.relays(t, f.relay.counts()+5)
	f.relay.hold()
	defer f.relay.resume()
	lose(read)
}

// commonRows are those of every kind with a broker that is a process.
func commonRows() []*row {
	rows := []*row{
		{
			name: "broker_restart", does: "SIGTERM, 3 s, start", breaks: true,
			fault: func(t *testing.T, f *field) {
				f.broker.Stop()
				wait(t, 3*time.Second)
				f.broker.Start()
			},
		},
		{
			name: "broker_killed", does: "SIGKILL, 3 s, start with its data", breaks: true,
			fault: func(t *testing.T, f *field) {
				f.broker.Kill()
				wait(t, 3*time.Second)
				f.broker.Start()
			},
		},
		{
			name: "broker_sigstop", does: "SIGSTOP for 20 s", breaks: true,
			fault: func(t *testing.T, f *field) {
				f.broker.Pause()
				wait(t, 20*time.Second)
				f.broker.Resume()
			},
		},
		{
			name: "accept_then_silent", does: "both links accept connections and answer nothing for 10 s",
			fault: func(t *testing.T, f *field) {
				both(f, servers.Faults{Silent: true})
				cut(f)
				wait(t, 10*time.Second)
				both(f, servers.Faults{})
			},
		},
		{
			name: "half_open", does: "the far end of both connections vanishes without a word",
			fault: func(_ *testing.T, f *field) {
				f.headProxy.HalfOpen()
				f.destProxy.HalfOpen()
			},
		},
		{
			name: "packets_vanish", does: "nothing passes on either link for 10 s, nothing is closed",
			fault: func(t *testing.T, f *field) {
				both(f, servers.Faults{Silent: true})
				wait(t, 10*time.Second)
				both(f, servers.Faults{})
			},
		},
		{
			name: "slow_link", does: "400 ms and 20 kB/s in each direction for 10 s",
			fault: slowLink(400 * time.Millisecond),
		},
		{
			name: "sink_partition", does: "the destination refuses the monitor alone for 10 s",
			fault: sinkRefused(10 * time.Second),
		},
		{
			name: "source_partition", does: "the head refuses the monitor alone for 10 s",
			fault: func(t *testing.T, f *field) {
				f.headProxy.Set(servers.Faults{Refuse: true})
				f.headProxy.Cut()
				wait(t, 10*time.Second)
				f.headProxy.Set(servers.Faults{})
			},
		},
		{
			name: "answers_lost", does: "what the head answers does not reach the monitor for 5 s",
			fault: func(t *testing.T, f *field) {
				f.headProxy.Set(servers.Faults{SilentDown: true})
				wait(t, 5*time.Second)
				f.headProxy.Set(servers.Faults{})
			},
		},
		{
			name: "long_outage", does: "the destination refuses the monitor for 60 s at 40 heartbeats a second and lane, with 200 MB of memory at most",
			long: true, interval: 25 * time.Millisecond, page: 20 * time.Second, pages: 1, memory: 100e6,
			// The kernel refuses more than that.
			prefix: []string{"sh", "-c", `ulimit -d 200000; exec "$@"`, "sh"}, env: []string{"GOMEMLIMIT=60MiB"},
			fault: sinkRefused(time.Minute),
		},
		{
			name: "monitor_sigstop", does: "the monitor itself is suspended for 10 s", unnoticed: true, // all may be well before anybody has looked
			fault: func(t *testing.T, f *field) {
				f.daemon.Pause()
				wait(t, 10*time.Second)
				f.daemon.Resume()
			},
		},
		{
			name: "monitor_killed", does: "the monitor, with a journal, is killed ten times in 15 s and started again at once", anew: true, journal: true, unnoticed: true,
			fault: func(t *testing.T, f *field) {
				for range 10 {
					f.daemon.Kill()
					f.daemon.Start()
					wait(t, time.Second+rand.N(time.Second))
				}
			},
		},
		{
			name: "pipeline_stops", does: "the pipeline stops for 10 s and then delivers everything",
			fault: func(t *testing.T, f *field) {
				f.relay.hold()
				wait(t, 10*time.Second)
				f.relay.resume()
			},
		},
		{
			name: "duplicates", does: "1 in 5 is delivered three times", interval: 100 * time.Millisecond, fault: relayed(200),
			plan: func(n int, _ message) plan {
				if n%5 == 0 {
					return plan{copies: 3}
				}
				return forward
			},
		},
		{
			name: "reorder", does: "1 in 5 overtakes another", interval: 100 * time.Millisecond, fault: relayed(200),
			plan: func(n int, _ message) plan { return plan{copies: 1, swap: n%5 == 0} },
		},
		{
			name: "corrupt", does: "1 in 10 has a byte changed", interval: 100 * time.Millisecond, fault: relayed(200),
			plan: func(n int, _ message) plan {
				if n%10 == 0 {
					return plan{copies: 1, change: damage}
				}
				return forward
			},
		},
		{
			name: "late", does: "1 in 10 comes out 3 s after its deadline", interval: 100 * time.Millisecond, fault: relayed(200),
			plan: func(n int, _ message) plan {
				if n%10 == 0 {
					return plan{copies: 1, delay: 6 * time.Second}
				}
				return forward
			},
		},
		{
			name: "one_in_7_dropped", does: "1 in 7 is lost", interval: 100 * time.Millisecond, fault: relayed(200),
			plan: func(n int, _ message) plan {
				if n%7 == 0 {
					return plan{}
				}
				return forward
			},
		},
		{
			name: "reload", does: "SIGHUP every 100 ms for 10 s, the file unchanged and with other labels by turns", interval: 100 * time.Millisecond, unnoticed: true,
			fault: func(t *testing.T, f *field) {
				f.reload(t, strings.Replace(f.config(), "  row:\n", "  row:\n    labels: {team: other}\n", 1))
			},
		},
		{
			name: "reload_restarts", does: "SIGHUP every 100 ms for 10 s, the file unchanged and with another timeout by turns: the probe starts anew each time",
			interval: 100 * time.Millisecond, anew: true, unnoticed: true,
			fault: func(t *testing.T, f *field) {
				f.reload(t, strings.Replace(f.config(), "  row:\n", "  row:\n    timeout: 4s\n", 1))
			},
		},
	}
	return rows
}

// reload has the daemon read its configuration again and again for 10 s, as it is and changed by turns.
func (f *field) reload(t *testing.T, changed string) {
	t.Helper()
	for i := range 100 {
		switch i % 4 { // each of them twice
		case 0:
			f.daemon.configure(t, f.config())
		case 2:
			f.daemon.configure(t, changed)
		}
		f.daemon.Signal(syscall.SIGHUP)
		wait(t, 100*time.Millisecond)
	}
	f.daemon.configure(t, f.config())
	f.daemon.Signal(syscall.SIGHUP)
}

// only picks rows by their names.
func only(rows []*row, names ...string) []*row {
	var some []*row
	for _, name := range names {
		found := false
		for _, r := range rows {
			if r.name == name {
				some, found = append(some, r), true
			}
		}
		if !found {
			panic("no row is named " + name)
		}
	}
	return some
}

// connectionsCut resets every connection of the monitor, whatever it does at the moment.
func connectionsCut(times int, interval time.Duration) *row {
	return &row{
		name: "connections_cut", does: fmt.Sprintf("all connections of the monitor are reset, %d times in 10 s", times), interval: interval,
		fault: func(t *testing.T, f *field) {
			for range times {
				cut(f)
				wait(t, 10*time.Second/time.Duration(times))
			}
		},
	}
}

// ttlExpiry is for brokers that discard what nobody has fetched in time.
func ttlExpiry() *row {
	return &row{
		name: "ttl_expiry", does: "heartbeats have 4 s to live, and the destination refuses the monitor alone for 12 s", ttl: 4 * time.Second, gap: true,
		fault: sinkRefused(12 * time.Second),
	}
}

// untimed is for brokers that do not tell when a message entered a queue: what the monitor could not read in time, it
// could not call on time either. So there is time enough.
func untimed(rows []*row) []*row {
	for _, r := range rows {
		switch r.name {
		case "long_outage":
			r.timeout = 2 * time.Minute
		case "pipeline_stops":
			r.untold = true // nor what came between two proofs
		case "reload", "reload_restarts", "own_queue_deleted", "late":
		case "broker_restart", "broker_killed", "broker_sigstop":
			r.timeout = time.Minute
		default:
			d := 25 * time.Second
			if r.plan != nil {
				d = 10 * time.Second // what is lost is waited for
			}
			r.timeout = orElse(r.timeout, d)
		}
		r.settles = 3 * time.Second
	}
	return rows
}

// resumeWhenUp lets the relay, which is held, go on when the sink listens again.
func (f *field) resumeWhenUp(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	done := make(chan struct{})
	t.Cleanup(func() {
		cancel()
		<-done
	})
	go func() {
		defer close(done)
		defer f.relay.resume()
		for ctx.Err() == nil {
			if s, err := f.daemon.scrape(ctx); err == nil && s.Sum("sink_up") == 1 {
				return
			}
			time.Sleep(50 * time.Millisecond)
		}
	}()
}

// sinkRefused is a fault of the link to the destination alone.
func sinkRefused(d time.Duration) func(*testing.T, *field) {
	return func(t *testing.T, f *field) {
		f.destProxy.Set(servers.Faults{Refuse: true})
		f.destProxy.Cut()
		wait(t, d)
		f.destProxy.Set(servers.Faults{})
	}
}

func slowLink(latency time.Duration) func(*testing.T, *field) {
	return func(t *testing.T, f *field) {
		both(f, servers.Faults{Latency: latency, Bandwidth: 20_000})
		wait(t, 10*time.Second)
		both(f, servers.Faults{})
	}
}

func both(f *field, faults servers.Faults) {
	f.headProxy.Set(faults)
	f.destProxy.Set(faults)
}

func cut(f *field) {
	f.headProxy.Cut()
	f.destProxy.Cut()
}

// relayed is the fault of rows whose relay does wrong all the time: it ends after so many more heartbeats.
func relayed(n int) func(*testing.T, *field) {
	return func(t *testing.T, f *field) {
		t.Helper()
		f.relays(t, f.relay.counts()+n)
	}
}

// relays waits until the relay has read so many messages.
func (f *field) relays(t *testing.T, n int) {
	t.Helper()
	for deadline := time.Now().Add(patience); f.relay.counts() < n; wait(t, 50*time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the relay has read %d messages; want %d", f.relay.counts(), n)
		}
	}
}

// damage changes one letter of a heartbeat's binary part.
func damage(body []byte) []byte {
	_, token, _, ok := heartbeat.Next(body)
	if !ok {
		panic(fmt.Sprintf("no heartbeat in %q", body))
	}
	damaged := append([]byte(nil), body...)
	at := len(body) - len(token)/2
	if damaged[at] == 'A' {
		damaged[at] = 'B'
	} else {
		damaged[at] = 'A'
	}
	return damaged
}
