package backend_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"

	"github.com/lag-monitor/lag-monitor/examples/stash-deferred/backend"
	"github.com/lag-monitor/lag-monitor/examples/stash-deferred/metrics"
	"github.com/lag-monitor/lag-monitor/examples/stash-deferred/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	errThrottled = errors.New("throttled")
	errRefused   = errors.New("no such stream")
	errDown      = errors.New("down")
)

// world is a store and a stream in memory, with hooks for what goes wrong.
type world struct {
	mu        sync.Mutex
	rows      map[string]store.Row
	stale     map[string]store.Row // what the next read shows, instead of rows
	published map[string]int
	reads     int
	onPut     func(body string, nth int) (time.Duration, error)
	onDelete  func(key string) error
	onDue     func(ctx context.Context, nth int) error
	puts      map[string]int
	atOnce    int // puts
	most      int
	reg       *prometheus.Registry
}

func newWorld(n int) *world {
	w := &world{rows: map[string]store.Row{}, published: map[string]int{}, puts: map[string]int{}, reg: prometheus.NewRegistry()}
	for i := range n {
		w.add(time.Now().Unix(), fmt.Sprintf("m%04d", i))
	}
	return w
}

func (w *world) add(due int64, body string) string {
	key := store.Key(due, body)
	w.rows[key] = store.Row{Key: key, Message: store.Message{Stream: "s", Body: []byte(body)}}
	return key
}

func (w *world) Due(ctx context.Context, after string, now time.Time, limit int) ([]store.Row, bool, error) {
	w.mu.Lock()
	w.reads++
	nth, hook := w.reads, w.onDue
	w.mu.Unlock()
	if hook != nil {
		if err := hook(ctx, nth); err != nil {
			return nil, false, err
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	var rows []store.Row
	from := w.rows
	if w.stale != nil {
		from, w.stale = w.stale, nil
	}
	for _, key := range slices.Sorted(maps.Keys(from)) {
		if due, _, err := store.ParseKey(key); key > after && (err != nil || due <= now.Unix()) && len(rows) < limit {
			rows = append(rows, from[key])
		}
	}
	return rows, len(rows) == limit, nil
}

func (w *world) Delete(_ context.Context, keys []string) map[string]error {
	w.mu.Lock()
	defer w.mu.Unlock()
	failed := map[string]error{}
	for _, key := range keys {
		if w.onDelete != nil {
			if err := w.onDelete(key); err != nil {
				failed[key] = err
				continue
			}
		}
		delete(w.rows, key)
	}
	return failed
}

func (w *world) Backlog(context.Context, time.Time, int) (store.Backlog, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return store.Backlog{Rows: len(w.rows), Oldest: time.Minute}, nil
}

func (w *world) Put(ctx context.Context, _, _ string, data []byte) error {
	w.mu.Lock()
	w.puts[string(data)]++
	nth, hook := w.puts[string(data)], w.onPut
	w.atOnce++
	w.most = max(w.most, w.atOnce)
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.atOnce--
	}()
	if hook != nil {
		pause, err := hook(string(data), nth)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return ctx.Err()
		}
		if err != nil {
			return err
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.published[string(data)]++
	return nil
}

// times returns how often the messages were published: the smallest and the largest count.
func (w *world) times() (n, least, most int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	least = 1 << 30
	for _, c := range w.published {
		least, most = min(least, c), max(most, c)
	}
	return len(w.published), least, most
}

// of returns how often a message was tried and published.
func (w *world) of(body string) (tried, published int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.puts[body], w.published[body]
}

func (w *world) left() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.rows)
}

// run runs a backend in a bubble of time until the returned function is called.
func run(t *testing.T, w *world, change func(*backend.Options)) (*backend.Backend, func()) {
	t.Helper()
	o := backend.Default()
	if change != nil {
		change(&o)
	}
	b := &backend.Backend{
		Options: o, Store: w, Stream: w, Refused: func(err error) bool { return errors.Is(err, errRefused) },
		Metrics: metrics.NewBackend(w.reg), Logger: slog.New(slog.DiscardHandler),
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); b.Run(ctx) }()
	return b, func() { cancel(); <-done }
}

func TestPublishesOnceAndDeletes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(2500)
		w.onPut = func(string, int) (time.Duration, error) { return 10 * time.Millisecond, nil }
		w.add(time.Now().Add(5*time.Second).Unix(), "later")
		b, stop := run(t, w, nil)
		defer stop()
		time.Sleep(4900 * time.Millisecond)
		if n, least, most := w.times(); n != 2500 || least != 1 || most != 1 {
			t.Errorf("%d messages were published %d to %d times; want 2500 once", n, least, most)
		}
		if w.left() != 1 {
			t.Errorf("%d rows are left", w.left())
		}
		time.Sleep(2 * time.Second)
		if _, n := w.of("later"); n != 1 || w.left() != 0 {
			t.Errorf("the later one was published %d times, %d rows are left", n, w.left())
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.most > 16 {
			t.Errorf("%d messages were published at once", w.most)
		}
		if n := testutil.CollectAndCount(b.Metrics.Backpressure); n != 1 {
			t.Errorf("backpressure has %d series", n)
		}
	})
}

// A scan that begins while messages are on their way finds their rows, and hands none of them out again; nor those that
// were deleted while it read.
func TestScansFilterWhatIsActive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(10)
		w.onPut = func(string, int) (time.Duration, error) { return 4500 * time.Millisecond, nil }
		b, stop := run(t, w, nil)
		defer stop()
		time.Sleep(3500 * time.Millisecond)
		if n := testutil.ToFloat64(b.Metrics.Duplicates); n < 30 {
			t.Errorf("%v duplicates are filtered; want 10 in each of the scans", n)
		}
		// The read that begins now shows the rows, and ends after they have been deleted.
		w.mu.Lock()
		began := maps.Clone(w.rows)
		w.onDue = func(context.Context, int) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.onDue = nil
			w.mu.Unlock()
			time.Sleep(1500 * time.Millisecond)
			w.mu.Lock()
			w.stale = began
			return nil
		}
		w.mu.Unlock()
		time.Sleep(10 * time.Second)
		if n, least, most := w.times(); n != 10 || least != 1 || most != 1 || w.left() != 0 {
			t.Errorf("%d messages were published %d to %d times, %d rows are left; want 10 once, none", n, least, most, w.left())
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.stale != nil || w.onDue != nil {
			t.Error("there was no such read")
		}
	})
}

func TestRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(3)
		w.onPut = func(_ string, nth int) (time.Duration, error) {
			switch {
			case nth <= 3:
				return 0, errThrottled
			case nth == 4:
				return time.Hour, nil // the attempt's own deadline ends it
			}
			return 0, nil
		}
		_, stop := run(t, w, nil)
		defer stop()
		time.Sleep(20 * time.Second)
		if n, _, most := w.times(); n != 3 || most != 1 || w.left() != 0 {
			t.Errorf("%d messages were published up to %d times, %d rows are left", n, most, w.left())
		}
		if n, _ := w.of("m0000"); n != 5 {
			t.Errorf("%d attempts; want 5", n)
		}
		w.counts(t, map[string]float64{
			"stashdef_kinesis_message_write_total failure": 12, "stashdef_kinesis_message_write_total success": 3,
			"stashdef_bigtable_row_delete_total success": 3, "stashdef_bigtable_row_delete_total failure": 0,
			"stashdef_kinesis_message_decode_total s": 3,
		})
	})
}

// While Kinesis throttles, the scanner waits for publishers: what is in memory does not grow, and the scanner says so.
func TestBackpressure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(1000)
		w.onPut = func(string, int) (time.Duration, error) { return 0, errThrottled }
		_, stop := run(t, w, nil)
		time.Sleep(30 * time.Second)
		w.mu.Lock()
		tried := len(w.puts)
		w.onPut = nil
		w.mu.Unlock()
		if tried > 16 {
			t.Errorf("%d messages are in work; want 16 at most", tried)
		}
		time.Sleep(10 * time.Second)
		stop()
		if n, least, _ := w.times(); n != 1000 || least != 1 || w.left() != 0 {
			t.Errorf("%d messages were published, %d rows are left", n, w.left())
		}
	})
}

// A message that is refused stays, is tried again after a while, and is in nobody's way, even if such messages fill whole
// chunks.
func TestRefusedMessagesStay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(50)
		bad := func(body string) bool { return body < "m0020" }
		w.onPut = func(body string, _ int) (time.Duration, error) {
			if bad(body) {
				return 0, errRefused
			}
			return 0, nil
		}
		_, stop := run(t, w, func(o *backend.Options) { o.Chunk = 7 })
		defer stop()
		time.Sleep(5 * time.Second)
		tried, _ := w.of("m0000")
		if n, _, _ := w.times(); n != 30 || w.left() != 20 || tried != 1 {
			t.Errorf("%d messages were published, %d rows are left, a refused one was tried %d times", n, w.left(), tried)
		}
		time.Sleep(7 * time.Second)
		if tried, _ = w.of("m0000"); tried != 2 {
			t.Errorf("after 12 s a refused message was tried %d times; want 2", tried)
		}
		w.mu.Lock()
		w.onPut = nil
		w.mu.Unlock()
		time.Sleep(12 * time.Second)
		if n, _, most := w.times(); n != 50 || most != 1 || w.left() != 0 {
			t.Errorf("%d messages were published up to %d times, %d rows are left", n, most, w.left())
		}
	})
}

// What cannot be deleted is published again, after a while, and deleted in the end.
func TestFailedDeletionsMakeDuplicates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(5)
		w.onDelete = func(string) error { return errDown }
		_, stop := run(t, w, nil)
		defer stop()
		time.Sleep(5 * time.Second)
		if _, _, most := w.times(); most != 1 {
			t.Errorf("published %d times within the pause; want once", most)
		}
		time.Sleep(20 * time.Second)
		n, least, most := w.times()
		if n != 5 || least < 2 || most > 3 || w.left() != 5 {
			t.Errorf("%d messages were published %d to %d times, %d rows are left", n, least, most, w.left())
		}
		w.mu.Lock()
		w.onDelete = nil
		w.mu.Unlock()
		time.Sleep(12 * time.Second)
		if w.left() != 0 {
			t.Errorf("%d rows are left", w.left())
		}
	})
}

func TestScanThatHangsIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(5)
		w.onDue = func(ctx context.Context, nth int) error {
			if nth <= 2 {
				<-ctx.Done()
				return ctx.Err()
			}
			return nil
		}
		_, stop := run(t, w, nil)
		defer stop()
		time.Sleep(15 * time.Second)
		if n, _, _ := w.times(); n != 0 {
			t.Errorf("%d messages were published by scans that hang", n)
		}
		time.Sleep(10 * time.Second)
		if n, _, _ := w.times(); n != 5 {
			t.Errorf("%d messages were published after two scans that hung", n)
		}
	})
}

// A row that is no message is told and held, and those behind it come out.
func TestRowsThatAreNoMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(5)
		key := store.Key(1, "poison")
		w.rows[key] = store.Row{Key: key, Err: errors.New("no message")}
		_, stop := run(t, w, nil)
		defer stop()
		time.Sleep(25 * time.Second)
		if n, _, _ := w.times(); n != 5 || w.left() != 1 {
			t.Errorf("%d messages were published, %d rows are left", n, w.left())
		}
		// 26 scans; one failure for each pause of 10 s.
		w.counts(t, map[string]float64{"stashdef_bigtable_row_scan_total failure": 3, "stashdef_bigtable_row_scan_total success": 5})
	})
}

// counts checks counters.
func (w *world) counts(t *testing.T, want map[string]float64) {
	t.Helper()
	families, err := w.reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += " " + l.GetValue()
			}
			got[name] = m.GetCounter().GetValue()
		}
	}
	for name, v := range want {
		if g, ok := got[name]; !ok || g != v {
			t.Errorf("%s: %v (there: %v); want %v", name, g, ok, v)
		}
	}
}

// At the end what is on its way is finished, and nothing new is begun.
func TestGentleEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(100)
		w.onPut = func(string, int) (time.Duration, error) { return 3 * time.Second, nil }
		_, stop := run(t, w, nil)
		time.Sleep(time.Second)
		began := time.Now()
		stop()
		n, _, most := w.times()
		if n != 16 || most != 1 || w.left() != 84 {
			t.Errorf("%d messages were published up to %d times, %d rows are left; want 16, once, 84", n, most, w.left())
		}
		if took := time.Since(began); took > 3*time.Second {
			t.Errorf("the end took %v", took)
		}
	})
}

// The end does not wait for ever, and loses nothing.
func TestEndWhileKinesisIsDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(100)
		w.onPut = func(string, int) (time.Duration, error) { return 0, errThrottled }
		_, stop := run(t, w, nil)
		time.Sleep(time.Second)
		began := time.Now()
		stop()
		if took := time.Since(began); took > 11*time.Second {
			t.Errorf("the end took %v; want the grace of 10 s", took)
		}
		if w.left() != 100 {
			t.Errorf("%d rows are left; want all", w.left())
		}
	})
}
