package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/lag-monitor/lag-monitor/internal/heartbeat"
	"github.com/lag-monitor/lag-monitor/internal/servers"
)

// fate is what a tampering pipeline does to one heartbeat.
type fate int

const (
	passes  fate = iota
	lost         // accepted, and never put out
	twice        // put out two times
	swapped      // put out right behind the next one of its lane
	delayed      // put out when release is called
)

// tamper is the inside of a pipeline that reads the heartbeats and decides for each what becomes of it:
// the truth that a listener is held against.
type tamper struct {
	put  func(ctx context.Context, lane uint32, body []byte) error
	keys *heartbeat.Keyring

	mu     sync.Mutex
	plan   func(*heartbeat.Heartbeat) fate
	shift  time.Duration // added to what each token says of when it was sent
	seen   map[fate]int
	lanes  map[uint32][][]byte // what waits for the next one of its lane
	held   []held
	newest map[uint32]uint64
	epoch  uint64
	log    map[laneRun]map[uint64]fate // what became of each sequence that was accepted
}

// laneRun is a lane in one run of the sender.
type laneRun struct {
	epoch uint64
	lane  uint32
}

type held struct {
	lane uint32
	body []byte
}

func newTamper(put func(context.Context, uint32, []byte) error) *tamper {
	return &tamper{put: put, plan: func(*heartbeat.Heartbeat) fate { return passes }, seen: map[fate]int{},
		lanes: map[uint32][][]byte{}, newest: map[uint32]uint64{}, log: map[laneRun]map[uint64]fate{}}
}

// truth is the account that a listener has to come to once every deadline is over. Ticks without a heartbeat
// are not in the log; a listener takes them for perhaps sent when more than 64 are missing.
func (p *tamper) truth(released bool) (a account) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, log := range p.log {
		var last, next uint64
		for seq, f := range log {
			if f != lost && f != delayed {
				last = max(last, seq)
			}
		}
		for seq := last; seq > 0; seq-- {
			f, accepted := log[seq]
			switch {
			case accepted && f != lost && f != delayed:
				next = seq
				a.OnTime++
				switch f {
				case twice:
					a.Duplicated++
				case swapped:
					a.Reordered++
				}
			case next-seq > 64:
				a.Indeterminate++
			case accepted:
				a.Dropped++
				if f == delayed && released {
					a.Late++
					a.Reordered++
				}
			}
		}
	}
	a.Sent = a.OnTime + a.Dropped + a.Indeterminate
	return a
}

// take accepts a message. It returns when the message is where the plan wants it.
func (p *tamper) take(ctx context.Context, body []byte) error {
	_, token, _, ok := heartbeat.Next(body)
	var h heartbeat.Heartbeat
	if !ok || p.keys.Decode(token, &h) != nil {
		return fmt.Errorf("not a heartbeat: %q", body)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if h.Epoch != p.epoch {
		p.epoch, p.newest = h.Epoch, map[uint32]uint64{}
	}
	p.newest[h.Lane] = h.Seq
	if p.shift != 0 {
		h.Sent = h.Sent.Add(p.shift)
		body = p.keys.Append(nil, &h)
	}
	f := p.plan(&h)
	p.seen[f]++
	run := laneRun{h.Epoch, h.Lane}
	if p.log[run] == nil {
		p.log[run] = map[uint64]fate{}
	}
	p.log[run][h.Seq] = f
	out := [][]byte{}
	switch f {
	case passes:
		out = append(out, body)
	case twice:
		out = append(out, body, body)
	case swapped:
		p.lanes[h.Lane] = append(p.lanes[h.Lane], body)
	case delayed:
		p.held = append(p.held, held{h.Lane, body})
	}
	if len(out) > 0 {
		out = append(out, p.lanes[h.Lane]...)
		p.lanes[h.Lane] = nil
	}
	for _, b := range out {
		if err := p.put(ctx, h.Lane, b); err != nil {
			return err
		}
	}
	return nil
}

// release puts out what was delayed.
func (p *tamper) release(t *testing.T) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, h := range p.held {
		if err := p.put(t.Context(), h.lane, h.body); err != nil {
			t.Fatal(err)
		}
	}
	p.held = nil
}

// does replaces the plan.
func (p *tamper) does(plan func(*heartbeat.Heartbeat) fate) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.plan = plan
}

// loses loses the next n heartbeats of each lane.
func (p *tamper) loses(n int) {
	left := map[uint32]int{}
	p.does(func(h *heartbeat.Heartbeat) fate {
		if left[h.Lane] == n {
			return passes
		}
		left[h.Lane]++
		return lost
	})
}

// reached tells whether each of n lanes has come to a sequence.
func (p *tamper) reached(n int, seq uint64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.newest) < n {
		return false
	}
	for _, s := range p.newest {
		if s < seq {
			return false
		}
	}
	return true
}

// count returns how many heartbeats had a fate.
func (p *tamper) count(f fate) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.seen[f]
}

// accepted returns how many heartbeats were accepted.
func (p *tamper) accepted() (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.seen {
		n += c
	}
	return n
}

// answer is what an HTTP head says to one heartbeat.
type answer int

const (
	accepts answer = iota
	refuses
	hangsUp     // takes it, and the sender never learns
	hangsUpLost // the same, and it gets lost
)

// httpHead puts an HTTP front end before the pipeline, and returns its address. says may be nil.
func httpHead(t *testing.T, p *tamper, says func(*heartbeat.Heartbeat) answer) string {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		a := accepts
		if _, token, _, ok := heartbeat.Next(body); ok && says != nil {
			var h heartbeat.Heartbeat
			if p.keys.Decode(token, &h) == nil {
				a = says(&h)
			}
		}
		if a == refuses {
			http.Error(w, "not now", http.StatusTooManyRequests)
			return
		}
		if a != hangsUpLost {
			if err := p.take(r.Context(), body); err != nil {
				t.Errorf("the pipeline: %v", err)
			}
		}
		if a != accepts {
			panic(http.ErrAbortHandler)
		}
		w.WriteHeader(http.StatusAccepted)
	}))
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	return server.URL + "/messages"
}

// kafkaHead moves heartbeats from one topic through the pipeline to another, partition by partition.
func kafkaHead(t *testing.T, k *servers.KafkaServer, partitions int) *tamper {
	t.Helper()
	k.CreateTopic("head", partitions)
	k.CreateTopic("out", partitions)
	transport := &kafka.Transport{DialTimeout: 2 * time.Second}
	w := &kafka.Writer{
		Addr: kafka.TCP(k.Addr), Topic: "out", RequiredAcks: kafka.RequireAll, BatchSize: 1, Transport: transport,
		Balancer: kafka.BalancerFunc(func(m kafka.Message, _ ...int) int { n, _ := strconv.Atoi(string(m.Key)); return n }),
	}
	p := newTamper(func(ctx context.Context, lane uint32, body []byte) error {
		return w.WriteMessages(ctx, kafka.Message{Key: strconv.AppendUint(nil, uint64(lane), 10), Value: body})
	})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for i := range partitions {
		wg.Go(func() {
			r := kafka.NewReader(kafka.ReaderConfig{Brokers: []string{k.Addr}, Topic: "head", Partition: i, MaxWait: time.Second})
			defer r.Close()
			for {
				m, err := r.ReadMessage(ctx)
				if err == nil {
					err = p.take(ctx, m.Value)
				}
				if ctx.Err() != nil {
					return
				}
				if err != nil {
					t.Errorf("the pipeline, partition %d: %v", i, err)
				}
			}
		})
	}
	t.Cleanup(func() {
		cancel()
		wg.Wait()
		w.Close()
		transport.CloseIdleConnections()
	})
	return p
}

// account is the account of a probe at a sink as /api/v1/status tells it.
type account struct {
	Sink          string
	Sent          int
	Restored      int // sent by earlier runs
	OnTime        int `json:"on_time"`
	Late          int
	Dropped       int
	Indeterminate int
	InFlight      int `json:"in_flight"`
	Duplicated    int
	Redelivered   int
	Reordered     int
	Unaccounted   int
}

// accounts returns the account of each probe at its first sink. Whenever it is called, each adds up.
func (d *daemon) accounts(t *testing.T) map[string]account {
	t.Helper()
	text, err := call(context.Background(), http.MethodGet, "http://"+d.addr+"/api/v1/status", nil)
	if err != nil {
		t.Fatal(err)
	}
	var status struct {
		Probes []struct {
			Name  string
			Sinks []account
		}
	}
	if err := json.Unmarshal(text, &status); err != nil {
		t.Fatal(err)
	}
	all := map[string]account{}
	for _, p := range status.Probes {
		for _, a := range p.Sinks {
			if a.Sent+a.Restored != a.OnTime+a.Dropped+a.Indeterminate+a.InFlight {
				t.Fatalf("the account of %s at %s does not add up: %+v", p.Name, a.Sink, a)
			}
			all[p.Name] = a
		}
	}
	return all
}

// awaitAccount waits until ok accepts the account of a probe.
func (d *daemon) awaitAccount(t *testing.T, probe, what string, ok func(account) bool) account {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		a := d.accounts(t)[probe]
		if ok(a) {
			return a
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v: %s; the account: %+v", probe, patience, what, a)
		}
	}
}

// split is one pipeline between a sender and a listener.
type split struct {
	name   string
	lanes  int
	pipe   *tamper
	http   bool // heartbeats go in by HTTP, so that the head can refuse
	inject string
	sink   string
}

// Sequences of the first run, in each lane. The listener has to find out from the tokens alone.
var (
	splitLost     = []uint64{1, 2, 20, 21, 22, 55}
	splitTwice    = []uint64{5, 30}
	splitSwapped  = []uint64{3, 10, 50}
	splitDelayed  = []uint64{40, 41}
	splitRefused  = []uint64{60, 61, 62, 63, 64}
	splitHangUp   = []uint64{70, 71} // the head takes them and does not answer
	splitHangLost = []uint64{73}
)

const (
	splitGapFrom, splitGapTo = 100, 179 // 80 in a row: more than a token tells of
	splitEnd                 = 200      // from here on everything passes
)

func splitPlan(h *heartbeat.Heartbeat) fate {
	switch {
	case slices.Contains(splitLost, h.Seq), splitGapFrom <= h.Seq && h.Seq <= splitGapTo:
		return lost
	case slices.Contains(splitTwice, h.Seq):
		return twice
	case slices.Contains(splitSwapped, h.Seq):
		return swapped
	case slices.Contains(splitDelayed, h.Seq):
		return delayed
	}
	return passes
}

// TestSplitHosts: one process injects, another one listens, and between them is a pipeline that loses,
// repeats, delays and reorders. The listener counts what happened, through restarts of both.
func TestSplitHosts(t *testing.T) {
	t.Parallel()
	servers.Need(t)
	const partitions = 3
	k := servers.Kafka(t, servers.KafkaOptions{Version: servers.Kafka4})
	n := servers.NATS(t)
	js := natsStream(t, n, "OUT", "out")
	hook := "http://" + servers.FreeAddr(t) + "/callbacks"
	viaKafka := &split{name: "via-kafka", lanes: partitions, pipe: kafkaHead(t, k, partitions),
		inject: fmt.Sprintf("kafka: {brokers: [%q], topic: head}", k.Addr), sink: fmt.Sprintf("kafka: {brokers: [%q], topic: out}", k.Addr)}
	viaNATS := &split{name: "via-nats", lanes: 1, http: true, sink: fmt.Sprintf("nats: {url: %q, stream: OUT}", n.URL),
		pipe: newTamper(func(ctx context.Context, _ uint32, body []byte) error {
			_, err := js.Publish(ctx, "out", body)
			return err
		})}
	viaHTTP := &split{name: "via-http", lanes: 1, http: true,
		sink: fmt.Sprintf("webhook: {listen: %q, path: /callbacks}", strings.TrimSuffix(strings.TrimPrefix(hook, "http://"), "/callbacks")),
		pipe: newTamper(func(ctx context.Context, _ uint32, body []byte) error {
			for {
				_, err := call(ctx, http.MethodPost, hook, bytes.NewReader(body))
				if err == nil || ctx.Err() != nil {
					return err
				}
				time.Sleep(50 * time.Millisecond) // the listener is being restarted
			}
		})}
	all := []*split{viaKafka, viaNATS, viaHTTP}

	says := func(h *heartbeat.Heartbeat) answer { return accepts }
	var saysNow sync.Mutex
	var sinks, sends, listens strings.Builder
	for _, s := range all {
		s.pipe.does(splitPlan)
		if s.http {
			s.inject = fmt.Sprintf("http: {url: %q}", httpHead(t, s.pipe, func(h *heartbeat.Heartbeat) answer {
				saysNow.Lock()
				defer saysNow.Unlock()
				return says(h)
			}))
		}
		fmt.Fprintf(&sinks, "  %s: {%s}\n", s.name, s.sink)
		fmt.Fprintf(&sends, "  %s: {inject: {%s}}\n", s.name, s.inject)
		fmt.Fprintf(&listens, "  %s: {sinks: [%s]}\n", s.name, s.name)
	}
	says = func(h *heartbeat.Heartbeat) answer {
		switch {
		case slices.Contains(splitRefused, h.Seq):
			return refuses
		case slices.Contains(splitHangUp, h.Seq):
			return hangsUp
		case slices.Contains(splitHangLost, h.Seq):
			return hangsUpLost
		}
		return accepts
	}
	// The clocks are one: what is lost half a second after the listener's start can be counted.
	const global = "global: {interval: 50ms, timeout: 10s, max_skew: 500ms}\n"
	listener := startDaemon(t, global+"sinks:\n"+sinks.String()+"probes:\n"+listens.String())
	listener.await(t, "every sink reads", func(s scrape) bool { return s.Sum("sink_up") == float64(len(all)) })
	time.Sleep(time.Second)
	sending := filepath.Join(t.TempDir(), "sender.yaml")
	write(t, sending, global+"probes:\n"+sends.String())
	sender := startDaemonAt(t, sending)

	each := func(f func(s *split)) {
		for _, s := range all {
			f(s)
		}
	}
	each(func(s *split) {
		eventually(t, s.name+" has played its plan", func() bool { return s.pipe.reached(s.lanes, splitEnd+1) })
	})
	each(func(s *split) {
		drops := s.pipe.truth(false).Dropped
		if least := s.lanes * 32; drops < least {
			t.Fatalf("%s: %d drops are no test", s.name, drops)
		}
		listener.awaitAccount(t, s.name, fmt.Sprint(drops, " drops"), func(a account) bool { return a.Dropped >= drops })
		s.pipe.release(t)
	})
	sender.Stop()
	if err := sender.Exit(); err != nil {
		t.Errorf("the sender after SIGTERM: %v", err)
	}
	exact := func(s *split) {
		t.Helper()
		a := listener.awaitAccount(t, s.name, "all outcomes are known", func(a account) bool {
			want := s.pipe.truth(true)
			return a.InFlight == 0 && a.Late == want.Late && a.Sent >= want.Sent
		})
		want := s.pipe.truth(true)
		want.Sink = s.name
		if a != want {
			t.Errorf("%s: the listener says\n%+v; the truth is\n%+v", s.name, a, want)
		}
	}
	each(exact)
	var want account
	each(func(s *split) {
		a := s.pipe.truth(true)
		want.Dropped += a.Dropped
		want.Indeterminate += a.Indeterminate
		t.Logf("%s: %+v", s.name, a)
	})
	heard := listener.scrape(t)
	heard.wants(t, map[string]float64{
		"heartbeats_indeterminate_total reason send_unknown": float64(want.Indeterminate),
		"heartbeats_indeterminate_total":                     float64(want.Indeterminate),
		"heartbeats_dropped_total reason timeout":            float64(want.Dropped),
		"heartbeats_in_flight":                               0,
		"negative_latencies_total":                           0,
		"sink_messages_total kind corrupt":                   0,
		"sink_messages_total kind foreign":                   0,
		"sink_messages_total kind future":                    0,
	})
	if len(heard.Find("heartbeats_sent_total")) > 0 {
		t.Error("a listener tells of injections")
	}

	// A new run of the sender: its first heartbeats are lost, and nothing is made up between the runs.
	saysNow.Lock()
	says = func(*heartbeat.Heartbeat) answer { return accepts }
	saysNow.Unlock()
	each(func(s *split) { s.pipe.loses(3) })
	sender.Start()
	each(func(s *split) {
		eventually(t, s.name+" delivers again", func() bool { return s.pipe.reached(s.lanes, 10) })
	})

	// The pipelines die, that over Kafka in one partition. The lag tells, and it is no drop yet.
	before := listener.accounts(t)
	each(func(s *split) {
		s.pipe.does(func(h *heartbeat.Heartbeat) fate {
			if h.Lane == uint32(s.lanes-1) {
				return lost
			}
			return passes
		})
	})
	deadLane := map[string]string{"via-kafka": "2", "via-nats": "0", "via-http": "0"}
	s := listener.await(t, "the lag grows where nothing comes out", func(s scrape) bool {
		for _, name := range []string{"0", "1"} {
			if s.Sum("lag_seconds", "probe", "via-kafka", "lane", name) > 2 {
				return false
			}
		}
		for probe, lane := range deadLane {
			if s.Sum("lag_seconds", "probe", probe, "lane", lane) < 3 {
				return false
			}
		}
		return true
	})
	for probe, a := range listener.accounts(t) {
		// The three of the new run may have been decided by now.
		if d := a.Dropped - before[probe].Dropped; d > 3*partitions {
			t.Errorf("%s: %d drops counted of what nobody can know yet", probe, d)
		}
	}
	if len(s.Find("lag_seconds", "probe", "via-kafka")) != partitions {
		t.Errorf("lanes: %v", s.Find("lag_seconds", "probe", "via-kafka"))
	}
	// Not for ever: one more comes out and tells of those that did not.
	each(func(s *split) { s.pipe.does(func(*heartbeat.Heartbeat) fate { return passes }) })
	listener.await(t, "the lag is low again", func(s scrape) bool {
		for _, l := range s.Find("lag_seconds") {
			if l.Value > 2 {
				return false
			}
		}
		return true
	})
	sender.Stop()
	each(exact)

	// The listener is killed and comes back while the sender goes on: no drop is made up, and a real one counts.
	sender.Start()
	listener.await(t, "heartbeats arrive", func(s scrape) bool {
		lags := s.Find("lag_seconds")
		return !slices.ContainsFunc(lags, func(l servers.Series) bool { return l.Value > 2 })
	})
	listener.Kill()
	listener.Start()
	each(func(s *split) {
		listener.awaitAccount(t, s.name, "heartbeats arrive", func(a account) bool { return a.OnTime >= 30*s.lanes })
		s.pipe.loses(4)
	})
	each(func(s *split) {
		listener.awaitAccount(t, s.name, "the drops", func(a account) bool { return a.Dropped >= 4*s.lanes })
	})
	sender.Stop()
	each(func(s *split) {
		a := listener.awaitAccount(t, s.name, "all outcomes are known", func(a account) bool { return a.InFlight == 0 })
		if a.Dropped != 4*s.lanes || a.Late != 0 {
			t.Errorf("%s, after the restart of the listener: %+v; want %d drops", s.name, a, 4*s.lanes)
		}
	})
}

// TestClocksApart: the sender's clock is 3 s ahead of the listener's, 3 s behind it, or so far ahead that
// nothing it says of times is believed. Both sides sign.
func TestClocksApart(t *testing.T) {
	t.Parallel()
	servers.Need(t)
	n := servers.NATS(t)
	js := natsStream(t, n, "OUT", "out")
	key := filepath.Join(t.TempDir(), "key")
	write(t, key, "a key that both sides know")
	const apart, allowed = 3 * time.Second, 4 * time.Second
	shifts := map[string]time.Duration{"ahead": apart, "behind": -apart, "far-ahead": 10 * apart}
	pipes := map[string]*tamper{}
	var sends, listens strings.Builder
	for name, shift := range shifts {
		p := newTamper(func(ctx context.Context, _ uint32, body []byte) error {
			_, err := js.Publish(ctx, "out", body)
			return err
		})
		p.keys, p.shift = heartbeat.NewKeyring([]byte("a key that both sides know")), shift
		pipes[name] = p
		fmt.Fprintf(&sends, "  %s: {inject: {http: {url: %q}}}\n", name, httpHead(t, p, nil))
		fmt.Fprintf(&listens, "  %s: {sinks: [out]}\n", name)
	}
	global := fmt.Sprintf("global: {interval: 100ms, timeout: 8s, max_skew: %s, key: {file: %q}}\n", allowed, key)
	listener := startDaemon(t, global+fmt.Sprintf("sinks:\n  out: {nats: {url: %q, stream: OUT}}\nprobes:\n", n.URL)+listens.String())
	listener.await(t, "the sink reads", func(s scrape) bool { return s.Sum("sink_up") == 1 })
	sender := startDaemon(t, global+"probes:\n"+sends.String())

	// The gauge may be ahead by what the clocks are allowed to differ, and by no more.
	sane := func(s scrape) {
		t.Helper()
		for _, e := range s.Find("heartbeat_timestamp_seconds") {
			if ahead := e.Value - float64(time.Now().UnixNano())/1e9; ahead > allowed.Seconds() {
				t.Fatalf("the timestamp of %s is %v s in the future", e.Labels["probe"], ahead)
			}
		}
	}
	// Until the allowed skew is over since the start, a drop cannot be told from what was sent before it.
	time.Sleep(allowed + apart + time.Second)
	listener.await(t, "heartbeats arrive", func(s scrape) bool {
		sane(s)
		return s.Sum("heartbeats_received_total", "probe", "ahead", "timing", "on_time") >= 20 &&
			s.Sum("heartbeats_received_total", "probe", "behind", "timing", "on_time") >= 20 &&
			s.Sum("sink_messages_total", "kind", "future") >= 20
	})
	pipes["ahead"].loses(5)
	pipes["behind"].loses(5)
	for _, name := range []string{"ahead", "behind"} {
		listener.awaitAccount(t, name, "the drops", func(a account) bool { return a.Dropped >= 5 })
	}
	s := listener.scrape(t)
	sane(s)
	s.wants(t, map[string]float64{
		"heartbeats_dropped_total probe ahead":           5,
		"heartbeats_dropped_total probe behind":          5,
		"heartbeats_dropped_total probe far-ahead":       0,
		"heartbeats_received_total probe far-ahead":      0,
		"heartbeat_latency_seconds_count probe behind":   s.Sum("heartbeats_received_total", "probe", "behind"),
		"heartbeats_indeterminate_total probe ahead":     0,
		"heartbeats_indeterminate_total probe behind":    0,
		"heartbeats_received_total timing late":          0,
		"negative_latencies_total probe ahead":           s.Sum("heartbeats_received_total", "probe", "ahead"),
		"negative_latencies_total probe behind":          0,
		"negative_latencies_total probe far-ahead":       0,
		"clock_skew_seconds probe behind":                0,
		"heartbeats_unaccounted_total probe far-ahead":   0,
		"sink_messages_total kind corrupt":               0,
		"heartbeats_indeterminate_total reason overflow": 0,
	})
	// An estimate from below: what the pipeline takes hides a part of the skew.
	for name, shift := range shifts {
		if got := s.Sum("clock_skew_seconds", "probe", name); shift > 0 && (got > shift.Seconds() || got < shift.Seconds()-1) {
			t.Errorf("%s: the skew is estimated as %v s; it is %v", name, got, shift)
		}
	}
	if len(s.Find("heartbeat_timestamp_seconds", "probe", "far-ahead"))+len(s.Find("lag_seconds", "probe", "far-ahead")) > 0 {
		t.Error("a heartbeat from the future has moved a gauge")
	}
	// Latency and lag are off by the skew, in the open.
	mean := func(probe string) float64 {
		return s.Sum("heartbeat_latency_seconds_sum", "probe", probe) / s.Sum("heartbeat_latency_seconds_count", "probe", probe)
	}
	if got := mean("ahead"); got > -1 {
		t.Errorf("ahead: the mean latency is %v s", got)
	}
	if got := mean("behind"); got < apart.Seconds() {
		t.Errorf("behind: the mean latency is %v s", got)
	}
	if got := s.Sum("lag_seconds", "probe", "behind"); got < apart.Seconds() {
		t.Errorf("behind: the lag is %v s", got)
	}

	// The clock is mended. What came out of the future is no drop now that later ones tell that it was sent.
	far := pipes["far-ahead"]
	far.mu.Lock()
	far.shift = 0
	shifted := far.seen[passes]
	far.mu.Unlock()
	listener.awaitAccount(t, "far-ahead", "heartbeats on time", func(a account) bool { return a.OnTime >= 20 })
	sender.Stop()
	for name, p := range pipes {
		listener.awaitAccount(t, name, "all outcomes are known", func(a account) bool { return a.InFlight == 0 && a.Sent == p.accepted() })
	}
	s = listener.scrape(t)
	sane(s)
	future := s.Sum("sink_messages_total", "kind", "future")
	s.wants(t, map[string]float64{
		"heartbeats_dropped_total probe far-ahead":                     0,
		"heartbeats_indeterminate_total probe far-ahead reason future": future,
		"heartbeats_indeterminate_total probe far-ahead":               future,
		"heartbeats_received_total probe far-ahead timing on_time":     float64(far.accepted()) - future,
		"heartbeats_received_total probe ahead timing on_time":         float64(pipes["ahead"].count(passes)),
		"heartbeats_received_total probe behind timing on_time":        float64(pipes["behind"].count(passes)),
	})
	if int(future) != shifted {
		t.Errorf("%v heartbeats from the future; %d were made so", future, shifted)
	}
}
