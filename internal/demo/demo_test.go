package demo

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"go.uber.org/goleak"
	"golang.org/x/term"

	"github.com/lag-monitor/lag-monitor/internal/monitor"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var anywhere = Options{Listen: "127.0.0.1:0", Service: "127.0.0.1:0"}

// rig is a demo without a view.
type rig struct {
	*pipeline
	t *testing.T
}

func openRig(t *testing.T) rig {
	t.Helper()
	opts := anywhere
	opts.Logger = slog.New(slog.DiscardHandler)
	p, err := open(opts)
	t.Cleanup(p.close)
	if err != nil {
		t.Fatal(err)
	}
	return rig{p, t}
}

// until waits until the account and the lane are as wanted.
func (r rig) until(what string, ok func(monitor.PairStatus, monitor.LaneStatus) bool) monitor.PairStatus {
	r.t.Helper()
	var a monitor.PairStatus
	for deadline := time.Now().Add(12 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		var l monitor.LaneStatus
		s := screen{Status: r.monitor.Status()}
		if _, a, l = s.probe(); ok(a, l) {
			return a
		}
	}
	r.t.Fatalf("%s: not within 12 s; account %+v, service %+v", what, a, r.service.state())
	return a
}

func (r rig) post(path string) {
	r.t.Helper()
	resp, err := http.Post(r.control+path, "", nil)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		r.t.Fatalf("POST %s: %s", path, resp.Status)
	}
}

func TestLagRisesAndRecovers(t *testing.T) {
	t.Parallel()
	r := openRig(t)
	r.until("all is well", func(a monitor.PairStatus, l monitor.LaneStatus) bool { return a.OnTime >= 2 && l.Lag < 0.5 })
	r.post("/fault?slow=3500ms")
	r.until("slow", func(_ monitor.PairStatus, l monitor.LaneStatus) bool { return l.Lag > 3 })
	r.until("what comes out is late", func(_ monitor.PairStatus, l monitor.LaneStatus) bool { return l.Latency > 3.2 })
	r.post("/heal")
	a := r.until("recovered", func(_ monitor.PairStatus, l monitor.LaneStatus) bool { return l.Lag < 0.5 && l.Latency < 0.5 })
	if a.Dropped+a.Indeterminate+a.Duplicated > 0 {
		t.Errorf("a slow service cost heartbeats: %+v", a)
	}
	r.post("/fault?refuse=1")
	r.until("refused", func(monitor.PairStatus, monitor.LaneStatus) bool {
		return r.monitor.Status().Probes[0].Sent.Failure >= 2
	})
	page, err := http.Get(r.web + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer page.Body.Close()
	metrics, err := io.ReadAll(page.Body)
	if err != nil || !bytes.Contains(metrics, []byte(`lag_monitor_heartbeats_sent_total{probe="deferred",result="failure"}`)) {
		t.Errorf("metrics (%v):\n%s", err, metrics)
	}
}

// What the monitor counts from outside is what the service knows that it did.
func TestDropsAreCountedExactly(t *testing.T) {
	t.Parallel()
	r := openRig(t)
	r.until("all is well", func(a monitor.PairStatus, _ monitor.LaneStatus) bool { return a.OnTime >= 2 })
	r.post("/fault?drop=0.5&duplicate=3")
	time.Sleep(2 * time.Second)
	r.post("/heal")
	want := r.service.state()
	if want.Dropped < 2 || want.Duplicated < 1 {
		t.Fatalf("the service did nothing: %+v", want)
	}
	a := r.until("dropped", func(a monitor.PairStatus, _ monitor.LaneStatus) bool { return a.Dropped >= want.Dropped })
	a = r.until("the next ones", func(b monitor.PairStatus, _ monitor.LaneStatus) bool { return b.OnTime > a.OnTime+1 })
	if a.Dropped != want.Dropped || a.Duplicated != want.Duplicated || a.Indeterminate != 0 || a.Late != 0 {
		t.Errorf("the monitor counts %+v, the service %+v", a, want)
	}
	if a.Sent != a.OnTime+a.Dropped+a.Indeterminate+a.InFlight {
		t.Errorf("the account does not add up: %+v", a)
	}
}

// watcher calls found once what was written holds a text.
type watcher struct {
	bytes.Buffer
	text  string
	found func()
}

func (w *watcher) Write(b []byte) (int, error) {
	defer func() {
		if strings.Contains(w.String(), w.text) {
			w.found()
		}
	}()
	return w.Buffer.Write(b)
}

func TestPlainLines(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	w := &watcher{text: "| messages come out on time, all of them\n", found: cancel}
	opts := anywhere
	opts.Out, opts.For = w, 20*time.Second
	began := time.Now()
	if err := Run(ctx, opts); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"nats: {url: \"nats://127.0.0.1:", "body: '{\"expiry\"", "page:    http://127.0.0.1:", " 0:00  lag -",
		" + dropped 0 + indeterminate 0 + ", w.text} {
		if !strings.Contains(w.String(), want) {
			t.Errorf("the output lacks %q:\n%s", want, w)
		}
	}
	if strings.Contains(w.String(), "\x1b") {
		t.Error("escape sequences in plain output")
	}
	if n := strings.Count(w.String(), "  lag "); n > int(time.Since(began).Seconds())+1 {
		t.Errorf("more than a line in each second:\n%s", w)
	}
}

// The story changes what it says it does, and is over at its end.
func TestStory(t *testing.T) {
	t.Parallel()
	r := openRig(t)
	s := &show{p: r.pipeline, scenes: story, out: &lines{out: io.Discard}}
	for i, c := range story {
		end, err := s.advance(time.Time{}.Add(c.at))
		if err != nil {
			t.Fatal(err)
		}
		f := r.service.state().Fault
		if s.screen.Note != c.note || (f == Fault{}) != (i%2 == 0 || i == len(story)-1) || end != (i == len(story)-1) {
			t.Errorf("scene %d: %q, fault %v, end %v", i, s.screen.Note, f, end)
		}
	}
}

// Who reads no more is written to no more.
func TestClosedPipe(t *testing.T) {
	t.Parallel()
	in, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	in.Close()
	defer w.Close()
	opts := anywhere
	opts.Out, opts.For = w, 20*time.Second
	if err := Run(t.Context(), opts); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("got %v", err)
	}
}

// What a screen shows of the time before it: for how long the lag is too high, the worst lag of each
// second, and whether messages came out twice in the last seconds.
func TestScreenRemembers(t *testing.T) {
	s, began := &show{}, time.Now()
	for i, step := range []struct {
		at         float64
		lag        float64
		duplicated uint64
		above      time.Duration
		lags       []float64
		twice      bool
	}{
		{0, 1, 0, 0, []float64{1}, false},
		{0.4, 3, 0, 0, []float64{1}, false}, // the limit is not above the limit
		{0.8, 2, 0, 0, []float64{1}, false},
		{1, 0, 0, 0, []float64{1, 3}, false},
		{2, 3.5, 0, 1, []float64{1, 3, 3.5}, false},
		{4, 4, 1, 2 * time.Second, []float64{1, 3, 3.5, 4}, true},
		{6, 5, 1, 4 * time.Second, []float64{1, 3, 3.5, 4, 5}, true},
		{7, 0, 1, 0, []float64{1, 3, 3.5, 4, 5, 0}, true},
		{9, 4, 1, 1, []float64{1, 3, 3.5, 4, 5, 0, 4}, false},
	} {
		lags := s.screen.Lags
		s.screen = fixed(step.lag, 0, "..", func(_ *screen, _ *monitor.ProbeStatus, a *monitor.PairStatus) { a.Duplicated = step.duplicated })
		s.screen.Lags = lags
		if i == 0 {
			s.screen.Lags = nil
		}
		s.remember(began.Add(time.Duration(step.at * float64(time.Second))))
		if sc := &s.screen; sc.Above != step.above || sc.Twice != step.twice || !slices.Equal(sc.Lags, step.lags) {
			t.Errorf("after %v s: above for %v, twice %v, lags %v; want %v, %v, %v", step.at, sc.Above, sc.Twice, sc.Lags, step.above, step.twice, step.lags)
		}
	}
	for i := range 2 * history {
		s.remember(began.Add(time.Duration(10+i) * time.Second))
	}
	if n := len(s.screen.Lags); n != history {
		t.Errorf("remembers %d lags, want %d", n, history)
	}
}

// A taken port is an error that names it, and what had been started is gone.
func TestTakenPort(t *testing.T) {
	t.Parallel()
	r := openRig(t)
	opts := anywhere
	opts.Out, opts.Listen = io.Discard, strings.TrimPrefix(r.web, "http://")
	if err := Run(t.Context(), opts); err == nil || !strings.Contains(err.Error(), opts.Listen) {
		t.Errorf("got %v", err)
	}
}

func TestPanicBecomesAnError(t *testing.T) {
	p := &pipeline{failed: make(chan error, 1)}
	p.run(func(context.Context) error { panic("oh no") })
	if err := <-p.failed; !strings.Contains(err.Error(), "oh no") {
		t.Errorf("got %v", err)
	}
	p.close()
}

// console is a pseudo terminal with a person before it.
type console struct {
	t    *testing.T
	keys *os.File // the person's side
	tty  *os.File // the demo's side

	mu   sync.Mutex
	seen bytes.Buffer
}

func openConsole(t *testing.T) *console {
	t.Helper()
	keys, tty, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	c := &console{t: t, keys: keys, tty: tty}
	if err := pty.Setsize(tty, &pty.Winsize{Rows: 24, Cols: 80}); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 4096)
		for {
			n, err := keys.Read(buf)
			c.mu.Lock()
			c.seen.Write(buf[:n])
			c.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() {
		tty.Close()
		<-done // reading ends when nobody has the other side open
		keys.Close()
	})
	return c
}

func (c *console) text() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.seen.String()
}

// shows waits for a text that comes after this call.
func (c *console) shows(want string) {
	c.t.Helper()
	from := len(c.text())
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if strings.Contains(c.text()[from:], want) {
			return
		}
	}
	c.t.Fatalf("the terminal does not show %q, but\n%s", want, c.text()[from:])
}

func (c *console) press(keys string) {
	c.t.Helper()
	if _, err := c.keys.WriteString(keys); err != nil {
		c.t.Fatal(err)
	}
}

func (c *console) mode() *term.State {
	c.t.Helper()
	s, err := term.GetState(int(c.tty.Fd()))
	if err != nil {
		c.t.Fatal(err)
	}
	return s
}

func TestKeysOnATerminal(t *testing.T) {
	t.Parallel()
	c := openConsole(t)
	before := c.mode()
	opts := anywhere
	opts.In, opts.Out, opts.Colour = c.tty, c.tty, true
	ended := make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	t.Cleanup(func() { cancel(); running.Wait() })
	running.Go(func() { ended <- Run(ctx, opts) })

	c.shows("messages come out on time")
	if reflect.DeepEqual(c.mode(), before) {
		t.Error("the terminal is not in raw mode: keys would wait for the return key")
	}
	c.press("s")
	c.shows("slow by 2 s")
	c.press("\x1b[A") // an arrow is not the letter in its sequence
	c.press("S")
	c.shows("slow by 4 s")
	c.press("y")
	c.shows("The whole configuration")
	c.press("h")
	c.shows("fault     \x1b[0m\x1b[32mnone")
	if err := pty.Setsize(c.tty, &pty.Winsize{Rows: 30, Cols: 100}); err != nil {
		t.Fatal(err)
	}
	c.shows(strings.Repeat("·", 20) + "\x1b[0m\x1b[1m│") // half of the longer bar
	began := time.Now()
	c.press("\x03")
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("does not end")
	}
	if d := time.Since(began); d > 2*time.Second {
		t.Errorf("took %v to end", d)
	}
	if !reflect.DeepEqual(c.mode(), before) {
		t.Error("the terminal is not as it was")
	}
	_, last, left := strings.Cut(c.text(), leave)
	if !left || !strings.Contains(last, "lag-monitor demo") || strings.Contains(last, "[q]") {
		t.Errorf("after the end the terminal shows %q", last)
	}
}

// Whatever ends the demo, the terminal is put in order.
func TestTerminalIsRestored(t *testing.T) {
	t.Parallel()
	oops := errors.New("oops")
	for name, end := range map[string]func(*show){
		"failure": func(s *show) { s.p.failed <- oops },
		"panic":   func(s *show) { s.began = time.Now(); s.scenes = []scene{{change: func(*Fault) { panic(oops) }}} },
	} {
		t.Run(name, func(t *testing.T) {
			r, c := openRig(t), openConsole(t)
			before := c.mode()
			s := &show{p: r.pipeline, opts: Options{In: c.tty, Out: c.tty}, began: time.Now()}
			end(s)
			err := func() (err error) {
				defer func() {
					if v := recover(); v != nil {
						err = v.(error)
					}
				}()
				return s.run(t.Context())
			}()
			if !errors.Is(err, oops) {
				t.Errorf("got %v", err)
			}
			if !reflect.DeepEqual(c.mode(), before) {
				t.Error("the terminal is not as it was")
			}
			c.until(leave)
		})
	}
}

// until waits for a text, whenever it came.
func (c *console) until(want string) {
	c.t.Helper()
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if strings.Contains(c.text(), want) {
			return
		}
	}
	c.t.Errorf("the terminal does not get %q", want)
}
