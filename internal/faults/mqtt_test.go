package faults_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/paho"
	"github.com/eclipse/paho.golang/paho/session/state"

	"github.com/lag-monitor/lag-monitor/internal/conn"
	"github.com/lag-monitor/lag-monitor/internal/servers"
)

// openMQTT gives each row a broker of its own, which starts in no time.
func openMQTT(*testing.T, []*row) func(*testing.T, *row) *pipeline {
	return func(t *testing.T, r *row) *pipeline {
		var options servers.MosquittoOptions
		login, user, password := "", "", ""
		switch r.variant {
		case "login":
			user, password = "pipeline", "pipeline"
			options.Users = map[string]string{user: password, "monitor": "first"}
			r.secret = filepath.Join(t.TempDir(), "password")
			writeFile(t, r.secret, "first")
			login = fmt.Sprintf(", username: monitor, password: {file: %q}", r.secret)
		case "forgetful":
			options.Config = "persistence false"
		case "small":
			options.Config = fmt.Sprintf("max_queued_messages %d", mqttSmall)
		}
		m := servers.Mosquitto(t, options)
		// QoS 0 goes without a session: a broker would keep nothing for it.
		qos, session := 1, fmt.Sprintf(", client_id: %s, session_expiry: 10m", mqttClient(r))
		switch r.variant {
		case "qos0":
			qos, session = 0, ""
		case "qos2":
			qos = 2
		case "small":
			session += fmt.Sprintf(", queue_limit: %d", mqttSmall)
		case "shared":
			session += ", dedicated: true"
		}
		if r.journal {
			session = ", session_expiry: 10m" // the journal has the client id
		}
		open := func(topic string) *mqttQueue {
			q := &mqttQueue{topic: topic, qos: byte(qos), ttl: r.ttl, broker: conn.NewMQTT(), began: map[string]time.Time{}, more: make(chan struct{})}
			q.broker.URL, q.broker.Username, q.broker.KeepAlive = "mqtt://"+m.Addr, user, conn.Duration(time.Minute)
			if user != "" {
				path := filepath.Join(t.TempDir(), "password")
				writeFile(t, path, password)
				q.broker.Password.File = path
			}
			q.start(t)
			return q
		}
		head, dest := open(r.name+"/in"), open(r.name+"/out")
		headProxy, destProxy := servers.Proxy(t, m.Addr), servers.Proxy(t, m.Addr)
		filter := dest.topic
		if r.variant == "shared" {
			filter = "$share/monitor/" + filter
		}
		return &pipeline{
			head: head, dest: dest, headProxy: headProxy, destProxy: destProxy, broker: m.Process, server: m,
			inject: fmt.Sprintf("mqtt: {url: %q, topic: %s, qos: %d%s%s}", "mqtt://"+headProxy.Addr, head.topic, qos, login, r.settings),
			sink:   fmt.Sprintf("mqtt: {url: %q, topic: %s, qos: %d%s%s%s}", "mqtt://"+destProxy.Addr, filter, qos, session, login, r.settings),
		}
	}
}

// mqttSmall is how many messages the broker of the variant "small" holds for a client.
const mqttSmall = 300

// mqttClient is the client id of the sink in a row.
func mqttClient(r *row) string { return r.name + "-monitor" }

// mqttQueue is a topic. A broker keeps nothing of it, so a subscriber of the test's own notes what comes, from the
// beginning on and with a session that the broker keeps while their connection is lost. It has one lane.
type mqttQueue struct {
	broker conn.MQTT
	topic  string
	qos    byte
	ttl    time.Duration // of what is put; 0: none

	putting sync.Mutex // held while a message is put
	link    *conn.MQTTLink

	mu     sync.Mutex
	notes  *conn.MQTTLink       // of the subscriber; nil while it is not subscribed
	began  map[string]time.Time // when a body was put first: nobody tells when it came
	noted  []message
	under  map[string]uint16 // packet identifiers by body, to know what is sent again
	more   chan struct{}     // closed and replaced when there is more in noted
	asked  int               // markers of the test's that were sent
	marker int               // the last one that has come
}

// start begins to note, and goes on until the test ends.
func (q *mqttQueue) start(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	t.Cleanup(func() {
		cancel()
		<-done
		q.putting.Lock()
		defer q.putting.Unlock()
		q.hangUp()
	})
	q.under = map[string]uint16{}
	go func() {
		defer close(done)
		session := conn.MQTTSession{ClientID: strings.ReplaceAll(q.topic, "/", "-") + "-truth", Again: true, Expiry: time.Hour, State: state.NewInMemory(), Received: q.note}
		for ctx.Err() == nil {
			if l, err := q.subscribe(ctx, session); err == nil {
				q.set(l)
				select {
				case <-l.Context.Done():
				case <-ctx.Done():
				}
				q.set(nil)
				l.Close()
			}
			select {
			case <-ctx.Done():
			case <-time.After(20 * time.Millisecond):
			}
		}
	}()
	for deadline := time.Now().Add(patience); q.notedBy() == nil; wait(t, 5*time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("nobody can subscribe to %s", q.topic)
		}
	}
}

func (q *mqttQueue) subscribe(ctx context.Context, s conn.MQTTSession) (*conn.MQTTLink, error) {
	l, err := q.broker.Connect(ctx, s)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	ctx, end := l.With(ctx)
	defer end()
	_, err = l.Subscribe(ctx, &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: q.topic, QoS: 2}, {Topic: "truth/" + q.topic, QoS: 2}}})
	if err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

func (q *mqttQueue) set(l *conn.MQTTLink) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.notes = l
}

// notedBy returns the connection of the subscriber, nil while it is not subscribed.
func (q *mqttQueue) notedBy() *conn.MQTTLink {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.notes
}

// note takes what comes, each message once: the broker sends again what it knows no answer to.
func (q *mqttQueue) note(p *paho.Publish) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if p.Topic != q.topic {
		_, _ = fmt.Sscan(string(p.Payload), &q.marker)
	} else {
		body := string(p.Payload)
		if id, ok := q.under[body]; ok && p.Duplicate() && id == p.PacketID {
			return
		}
		q.under[body] = p.PacketID
		q.noted = append(q.noted, message{id: fmt.Sprint(len(q.noted)), body: bytes.Clone(p.Payload)})
	}
	close(q.more)
	q.more = make(chan struct{})
}

// since returns what was noted from the n-th message on, and what is closed when there is more.
func (q *mqttQueue) since(n int) ([]message, <-chan struct{}) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.noted[n:], q.more
}

func (q *mqttQueue) follow(ctx context.Context, f func(message)) {
	for n := 0; ctx.Err() == nil; {
		found, more := q.since(n)
		for _, m := range found {
			f(m)
		}
		n += len(found)
		select {
		case <-ctx.Done():
		case <-more:
		}
	}
}

// all returns when a marker has come that was sent behind all that was put before.
func (q *mqttQueue) all(ctx context.Context) ([]message, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	q.mu.Lock()
	q.asked++
	n, l := q.asked, q.notes
	q.mu.Unlock()
	if l == nil {
		return nil, errors.New("nobody notes what comes")
	}
	ctx, end := l.With(ctx)
	defer end()
	if _, err := l.Publish(ctx, &paho.Publish{Topic: "truth/" + q.topic, QoS: 1, Payload: []byte(fmt.Sprint(n))}); err != nil {
		return nil, err
	}
	for {
		q.mu.Lock()
		back, more := q.marker >= n, q.more
		all := append([]message(nil), q.noted...)
		for i := range all {
			all[i].at = q.began[string(all[i].body)]
		}
		q.mu.Unlock()
		if back {
			return all, nil
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-more:
		}
	}
}

// hangUp ends the connection on which messages are put.
func (q *mqttQueue) hangUp() {
	if q.link != nil {
		q.link.Close()
		q.link = nil
	}
}

func (q *mqttQueue) put(ctx context.Context, _ int, body []byte) (err error) {
	q.putting.Lock()
	defer q.putting.Unlock()
	q.mu.Lock()
	if _, again := q.began[string(body)]; !again {
		q.began[string(body)] = time.Now()
	}
	there := q.notes != nil
	q.mu.Unlock()
	if !there {
		return errors.New("nobody would note it")
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if q.link == nil {
		if q.link, err = q.broker.Connect(ctx, conn.MQTTSession{ClientID: conn.MQTTClientID("relay")}); err != nil {
			return err
		}
	}
	ctx, end := q.link.With(ctx)
	defer end()
	p := &paho.Publish{Topic: q.topic, QoS: q.qos, Payload: body}
	if q.ttl > 0 {
		seconds := uint32(q.ttl / time.Second)
		p.Properties = &paho.PublishProperties{MessageExpiry: &seconds}
	}
	if _, err = q.link.Publish(ctx, p); err == nil && q.qos == 0 {
		err = q.link.Ping(ctx)
	}
	if err != nil {
		q.link.Drop(err)
		q.hangUp()
	}
	return err
}

// mqttRows lists what is broken in Mosquitto, in the order of the table.
func mqttRows() []*row {
	of := func(f *field) *servers.MosquittoServer { return f.server.(*servers.MosquittoServer) }
	dest := func(f *field) *mqttQueue { return f.dest.(*mqttQueue) }
	rows := append(only(commonRows(), "broker_restart", "broker_killed", "broker_sigstop", "accept_then_silent", "half_open", "sink_partition", "source_partition",
		"answers_lost", "monitor_killed", "pipeline_stops", "duplicates", "late", "one_in_7_dropped", "reload"),
		connectionsCut(20, 50*time.Millisecond),
		&row{
			name: "qos0_sink_partition", does: "with QoS 0 and without a session the destination refuses the monitor alone for 5 s", variant: "qos0", gap: true,
			fault: sinkRefused(5 * time.Second),
		},
		&row{
			name: "qos2_connections_cut", does: "with QoS 2 all connections of the monitor are reset 20 times in 10 s", variant: "qos2", interval: 20 * time.Millisecond,
			fault: connectionsCut(20, 50*time.Millisecond).fault,
		},
		&row{
			name: "shared_sink_partition", does: "a shared subscription; the destination refuses the monitor alone for 10 s", variant: "shared",
			fault: sinkRefused(10 * time.Second),
		},
		ttlExpiry(),
		&row{
			name: "session_lost", does: "the broker, which keeps nothing, is restarted; the monitor may connect 2 s after the pipeline", variant: "forgetful", breaks: true, gap: true,
			fault: func(t *testing.T, f *field) {
				f.destProxy.Set(servers.Faults{Refuse: true})
				f.broker.Stop()
				wait(t, time.Second)
				f.broker.Start()
				wait(t, 2*time.Second)
				f.destProxy.Set(servers.Faults{})
			},
		},
		&row{
			name: "session_taken_over", does: "somebody else with the monitor's client id takes over its session ten times in 10 s, and answers what comes", gap: true,
			fault: func(t *testing.T, f *field) {
				took := 0
				for range 10 {
					l, err := dest(f).broker.Connect(t.Context(), conn.MQTTSession{ClientID: mqttClient(f.row), Expiry: 10 * time.Minute, State: state.NewInMemory(),
						Received: func(p *paho.Publish) {
							if p.Topic == dest(f).topic {
								took++
							}
						}})
					if err != nil {
						t.Fatal(err)
					}
					wait(t, time.Second)
					l.Close()
				}
				t.Logf("the other has taken %d", took)
			},
		},
		&row{
			name: "queue_full", does: fmt.Sprintf("the broker holds %d messages for a client, and the destination refuses the monitor for 15 s at 40 heartbeats a second", mqttSmall), variant: "small",
			gap: true, interval: 25 * time.Millisecond,
			fault: sinkRefused(15 * time.Second),
		},
		&row{
			name: "login_broken", does: "the monitor's password is changed at the broker, which ends its connections, and changed back 5 s later", variant: "login",
			fault: func(t *testing.T, f *field) {
				of(f).SetPassword("monitor", "another one")
				wait(t, 5*time.Second)
				of(f).SetPassword("monitor", "first")
			},
		},
		&row{
			name: "login_expired", does: "the monitor's password is changed at the broker, which ends its connections, and in the monitor's file 5 s later", variant: "login",
			fault: func(t *testing.T, f *field) {
				of(f).SetPassword("monitor", "second")
				wait(t, 5*time.Second)
				writeFile(t, f.secret, "second")
				f.daemon.Signal(syscall.SIGHUP)
			},
		},
	)
	for _, r := range rows {
		if r.name != "broker_killed" {
			continue
		}
		// Mosquitto writes its sessions when it is stopped: killed, it knows nobody. Nothing is put that the monitor,
		// which is not subscribed yet, could not see: session_lost is about that.
		r.does, r.untold = "SIGKILL, 3 s, start: the sessions are gone", true
		fault := r.fault
		r.fault = func(t *testing.T, f *field) {
			f.relay.hold()
			wait(t, 200*time.Millisecond)
			fault(t, f)
			f.resumeWhenUp(t)
		}
	}
	return untimed(rows)
}
