package demo

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"golang.org/x/term"
)

// Options say how the demo is shown.
type Options struct {
	// In is where keys come from. nil, or no terminal: there are none.
	In *os.File
	// Out is where the view goes: in place on a terminal, else as lines.
	Out io.Writer
	// Plain writes lines on a terminal too.
	Plain bool
	// Colour allows it on a terminal.
	Colour bool
	// Listen and Service are the addresses of the monitor's page and of the service, host:port.
	Listen, Service string
	// For is when it ends by itself; 0: not before the story does, or somebody ends it.
	For time.Duration
	// Story plays a story instead of waiting for keys.
	Story bool
	// Logger gets what the monitor logs.
	Logger *slog.Logger
}

const (
	refresh = 200 * time.Millisecond
	history = 120 // samples of the lag, one each second
)

// scene is a moment of the story.
type scene struct {
	at     time.Duration
	note   string
	change func(*Fault)
}

var story = []scene{
	{0, "All is well: each heartbeat comes out when it is due, after a second.", nil},
	{8 * time.Second, "Now the service takes 4 s longer. Lag rises at once, while nothing comes out.", func(f *Fault) { f.Slow = 4 * time.Second }},
	{20 * time.Second, "Healed. Lag falls at once; nothing was lost.", func(f *Fault) { *f = Fault{} }},
	{26 * time.Second, "Now it loses 1 message in 3. Each is counted as dropped 5 s after it was due, not before.", func(f *Fault) { f.Drop = 1. / 3 }},
	{42 * time.Second, "Healed. Drops are counted for 5 s more, then never again. What is lost stays lost.", func(f *Fault) { *f = Fault{} }},
	{52 * time.Second, "The end.", nil},
}

// Run shows the demo until ctx ends, its time is over, or a key says so. It leaves nothing behind: no
// file, no goroutine, and the terminal as it was.
func Run(ctx context.Context, opts Options) error {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	began := time.Now()
	p, err := open(opts)
	defer p.close()
	if err != nil {
		return err
	}
	s := &show{p: p, opts: opts, began: began}
	s.screen = screen{Page: p.config.Probes[probeName].Page, YAML: p.yaml, Web: p.web, Control: p.control}
	return s.run(ctx)
}

// show is one performance.
type show struct {
	p      *pipeline
	opts   Options
	began  time.Time
	screen screen

	out     canvas
	scenes  []scene
	above   time.Time // since when the lag is too high; zero: it is not
	doubled uint64
	twice   time.Time // when a message last came out twice
	sampled time.Time
	peak    float64 // of the lag since then
}

func (s *show) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if s.opts.Story {
		s.scenes = story
	}
	typed := make(chan byte)
	out, restore, err := s.openCanvas(ctx, typed)
	if err != nil {
		return err
	}
	defer restore()
	s.out = out

	var over <-chan time.Time
	if s.opts.For > 0 {
		t := time.NewTimer(s.opts.For - time.Since(s.began))
		defer t.Stop()
		over = t.C
	}
	tick := time.NewTicker(refresh)
	defer tick.Stop()
	for {
		if end, err := s.advance(time.Now()); end || err != nil {
			return err
		}
		select {
		case b := <-typed:
			if s.screen.press(b, s.p.service) {
				return nil
			}
		case <-tick.C:
		case <-over:
			return nil
		case <-ctx.Done():
			return nil
		case err := <-s.p.failed:
			return err
		}
	}
}

// advance brings the screen up to date and shows it. It returns true when the story is over.
func (s *show) advance(now time.Time) (end bool, err error) {
	sc := &s.screen
	sc.Elapsed = now.Sub(s.began)
	for len(s.scenes) > 0 && sc.Elapsed >= s.scenes[0].at {
		sc.Note = s.scenes[0].note
		if s.scenes[0].change != nil {
			s.p.service.change(s.scenes[0].change)
		}
		s.scenes = s.scenes[1:]
		end = len(s.scenes) == 0
	}
	sc.Status, sc.Service = s.p.monitor.Status(), s.p.service.state()

	s.remember(now)
	return end, s.out.show(sc)
}

// remember keeps what a screen shows of the time before it.
func (s *show) remember(now time.Time) {
	sc := &s.screen
	_, account, lane := sc.probe()
	switch {
	case lane.Lag <= sc.Page.Lag.Seconds():
		s.above, sc.Above = time.Time{}, 0
	case s.above.IsZero():
		s.above = now
		fallthrough
	default:
		sc.Above = max(now.Sub(s.above), time.Nanosecond)
	}
	if account.Duplicated > s.doubled {
		s.doubled, s.twice = account.Duplicated, now
	}
	sc.Twice = !s.twice.IsZero() && now.Sub(s.twice) < 4*time.Second
	if s.peak = max(s.peak, lane.Lag); now.Sub(s.sampled) >= time.Second {
		sc.Lags = append(sc.Lags[max(0, len(sc.Lags)-history+1):], s.peak)
		s.sampled, s.peak = now, 0
	}
}

// canvas is where screens are shown.
type canvas interface{ show(*screen) error }

// openCanvas chooses one. restore puts the terminal in order again.
func (s *show) openCanvas(ctx context.Context, typed chan<- byte) (c canvas, restore func(), err error) {
	file, ok := s.opts.Out.(*os.File)
	if !ok || s.opts.Plain || !term.IsTerminal(int(file.Fd())) {
		l := &lines{out: s.opts.Out}
		l.begin(&s.screen)
		return l, func() {}, nil
	}
	restoreInput := func() {}
	if in := s.opts.In; in != nil && term.IsTerminal(int(in.Fd())) {
		before, err := term.MakeRaw(int(in.Fd()))
		if err != nil {
			return nil, nil, fmt.Errorf("terminal: %w", err)
		}
		s.screen.Keys, s.screen.Hint = true, !s.opts.Story
		ctx, stop := context.WithCancel(ctx)
		done := make(chan struct{})
		go func() { defer close(done); readKeys(ctx, in, typed) }()
		restoreInput = func() {
			stop()
			if interruptible {
				<-done
			}
			_ = term.Restore(int(in.Fd()), before)
		}
	}
	t := &terminal{file: file, colour: s.opts.Colour}
	fmt.Fprint(file, enter)
	return t, func() {
		// The last view stays to be read.
		s.screen.Keys, s.screen.ShowYAML, s.screen.Web = false, false, ""
		width, _ := t.size()
		last := s.screen.render(width, 0, s.opts.Colour)
		fmt.Fprint(file, leave)
		restoreInput()
		fmt.Fprintln(file, last)
	}, nil
}

// What a terminal is told: a second screen, no cursor, no line breaks of its own, and back.
const (
	enter = "\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J"
	leave = "\x1b[?7h\x1b[?25h\x1b[?1049l"
)

// terminal shows screens in place.
type terminal struct {
	file   *os.File
	colour bool
}

// size asks each time, so that a resize needs no signal.
func (t *terminal) size() (width, height int) {
	width, height, err := term.GetSize(int(t.file.Fd()))
	if err != nil || width <= 0 || height <= 0 {
		return 80, 24
	}
	return width, height
}

func (t *terminal) show(s *screen) error {
	width, height := t.size()
	text := s.render(width, height, t.colour)
	_, err := fmt.Fprint(t.file, "\x1b[H"+strings.ReplaceAll(text, "\n", "\x1b[K\r\n")+"\x1b[K\x1b[J")
	return err
}

// lines shows screens as lines: one each second, and one for each change of the story or the fault.
type lines struct {
	out   io.Writer
	at    time.Duration
	note  string
	fault Fault
}

func (l *lines) begin(s *screen) {
	l.at = -time.Second
	fmt.Fprintf(l.out, "lag-monitor demo: a small service takes messages over HTTP, holds each until its expiry and puts it on NATS;\n"+
		"lag-monitor watches it with these lines of YAML:\n\n%s\n"+
		"page:    %s/ and /metrics\nfaults:  curl -X POST '%[3]s/fault?slow=4s' (drop=0.33, duplicate=5, stall=1, refuse=1), curl -X POST %[3]s/heal\n\n",
		s.YAML, s.Web, s.Control)
}

func (l *lines) show(s *screen) error {
	if s.Note != l.note {
		l.note = s.Note
		fmt.Fprintf(l.out, "%5s  == %s\n", clock(s.Elapsed), s.Note)
	}
	if s.Service.Fault != l.fault {
		l.fault = s.Service.Fault
		fmt.Fprintf(l.out, "%5s  == fault: %s\n", clock(s.Elapsed), l.fault)
	}
	if s.Elapsed-l.at < time.Second {
		return nil
	}
	l.at = s.Elapsed
	_, err := fmt.Fprintln(l.out, s.text())
	return err
}
