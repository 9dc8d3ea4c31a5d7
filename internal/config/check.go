package config

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/conn"
	"github.com/lag-monitor/lag-monitor/probe"
	"github.com/lag-monitor/lag-monitor/sinks"
)

// CheckOptions are the options of Check.
type CheckOptions struct {
	// Connect opens every end and asks its broker whether it would work. Nothing is sent or received.
	Connect bool
	// Scrape is how often Prometheus asks; 0 means 15 s.
	Scrape time.Duration
	// Timeout is how long one end may take; 0 means 10 s.
	Timeout time.Duration
	// Parallel is how many ends are asked at once; 0 means 16.
	Parallel int
}

// Found is what Check has found in all files.
type Found struct {
	Mistakes    int // in files; none of them is for nothing
	Warnings    int
	Unreachable int // ends that would not work
}

// Check writes a report about each main file to w: what it defines, what is wrong with it, what is probably not
// meant and, when asked, which ends can be reached.
func Check(ctx context.Context, w io.Writer, files []string, o CheckOptions) Found {
	var all Found
	senders := make(map[sender]string)
	for i, f := range files {
		if i > 0 {
			fmt.Fprintln(w)
		}
		found := check(ctx, w, NewLoader(f), o, senders)
		all.Mistakes += found.Mistakes
		all.Warnings += found.Warnings
		all.Unreachable += found.Unreachable
	}
	return all
}

func check(ctx context.Context, w io.Writer, l *Loader, o CheckOptions, senders map[sender]string) (found Found) {
	cfg, problems, err := l.Load()
	var several Problems
	switch {
	case errors.As(err, &several):
		problems = several.Unwrap()
	case err != nil:
		problems = []error{err}
	}
	found.Mistakes = len(problems)
	if cfg == nil {
		fmt.Fprintf(w, "%s: not usable\n", l.path)
	} else {
		fmt.Fprintf(w, "%s: %s, %s in %s\n", l.path, count(len(cfg.Probes), "probe"), count(len(cfg.Sinks), "sink"), count(len(cfg.Files), "file"))
		cfg.summary(w)
	}
	for _, p := range problems {
		fmt.Fprintf(w, "error: %v\n", p)
	}
	if cfg == nil {
		return found
	}
	for _, p := range append(slices.Clone(cfg.Warnings), cfg.advice(o, senders)...) {
		fmt.Fprintf(w, "warning: %v\n", p)
		found.Warnings++
	}
	if o.Connect {
		found.Unreachable = cfg.connect(ctx, w, o)
	}
	return found
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// summary writes the two tables.
func (c *Config) summary(w io.Writer) {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	if len(c.Probes) > 0 {
		fmt.Fprintln(tw, "  PROBE\tINJECTS\tEVERY\tEXPIRY\tTIMEOUT\tTTL\tPAGE\tTICKET\tSINKS")
	}
	for _, n := range slices.Sorted(maps.Keys(c.Probes)) {
		p := c.Probes[n]
		fmt.Fprintf(tw, "  %s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", n, orDash(p.InjectKind), short(p.Interval), short(p.Expiry), short(p.Timeout), short(p.TTL),
			orDash(p.Page.String()), orDash(p.Ticket.String()), orDash(strings.Join(p.Sinks, ", ")))
	}
	_ = tw.Flush()
	if len(c.Sinks) > 0 {
		fmt.Fprintln(tw, "  SINK\tKIND\tROLE\tPROBES")
	}
	users := make(map[string]int)
	for _, p := range c.Probes {
		for _, s := range p.Sinks {
			users[s]++
		}
	}
	for _, n := range slices.Sorted(maps.Keys(c.Sinks)) {
		s := c.Sinks[n]
		fmt.Fprintf(tw, "  %s\t%s\t%s\t%d\n", n, s.Kind, s.Role, users[n])
	}
	_ = tw.Flush()
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// String writes the thresholds as a person would say them; "" for none.
func (t Thresholds) String() string {
	var parts []string
	if t.Lag > 0 {
		s := "lag " + short(t.Lag)
		if t.For > 0 {
			s += " for " + short(t.For)
		}
		parts = append(parts, s)
	}
	if t.DropRatio > 0 {
		parts = append(parts, fmt.Sprintf("drops %.4g%%", t.DropRatio*100))
	}
	return strings.Join(parts, ", ")
}

// end is one thing that Connect asks.
type end struct {
	name string
	ask  func(ctx context.Context) (asked bool, err error)
}

// connect opens every end, asks those that can be asked, and returns how many would not work.
func (c *Config) connect(ctx context.Context, w io.Writer, o CheckOptions) (failures int) {
	if o.Timeout <= 0 {
		o.Timeout = 10 * time.Second
	}
	if o.Parallel <= 0 {
		o.Parallel = 16
	}
	ends := c.ends()
	width := 0
	for _, e := range ends {
		width = max(width, len(e.name))
	}
	lines := make([]string, len(ends))
	failed := make([]bool, len(ends))
	slots := make(chan struct{}, o.Parallel)
	var wg sync.WaitGroup
	for i, e := range ends {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			asked, err := e.within(ctx, o.Timeout)
			word, text := "ok", ""
			switch {
			case err != nil:
				failed[i] = true
				word, text = "FAILED", fmt.Sprintf("%s: %s", conn.ClassOf(err), oneLine(err.Error()))
			case !asked:
				word, text = "opened", "this kind cannot be asked without sending"
			}
			lines[i] = strings.TrimRight(fmt.Sprintf("  %-6s  %-*s  %s", word, width, e.name, text), " ")
		})
	}
	wg.Wait()
	for i, l := range lines {
		fmt.Fprintln(w, l)
		if failed[i] {
			failures++
		}
	}
	return failures
}

func (c *Config) ends() (ends []end) {
	for i, k := range c.Global.Keys {
		ends = append(ends, end{fmt.Sprintf("key %d", i+1), func(context.Context) (bool, error) {
			_, err := k.Read()
			return true, err
		}})
	}
	if o := c.Global.Tracing.OTLP; o != nil {
		ends = append(ends, end{"tracing (otlp)", func(ctx context.Context) (bool, error) {
			r, err := o.Open(c.Global.Instance, "")
			if err != nil {
				return false, err
			}
			return true, r.Check(ctx)
		}})
	}
	for _, n := range slices.Sorted(maps.Keys(c.Sinks)) {
		s := c.Sinks[n]
		ends = append(ends, end{fmt.Sprintf("sink %s (%s)", n, s.Kind), func(ctx context.Context) (bool, error) {
			opened, err := s.Config.Open()
			if err != nil {
				return false, err
			}
			if ch, ok := opened.(sinks.Checker); ok {
				return true, ch.Check(ctx)
			}
			return false, nil
		}})
	}
	for _, n := range slices.Sorted(maps.Keys(c.Probes)) {
		p := c.Probes[n]
		if p.Inject == nil {
			continue
		}
		ends = append(ends, end{fmt.Sprintf("probe %s (%s)", n, p.InjectKind), func(ctx context.Context) (asked bool, err error) {
			opened, err := p.Inject.Open()
			if err != nil {
				return false, err
			}
			if ch, ok := opened.(probe.Checker); ok {
				asked, err = true, ch.Check(ctx)
			}
			return asked, errors.Join(err, opened.Close())
		}})
	}
	return ends
}

// within asks e, and gives up a second after the timeout when the driver does not: somebody waits at
// the terminal.
func (e end) within(ctx context.Context, timeout time.Duration) (bool, error) {
	type answer struct {
		asked bool
		err   error
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	done := make(chan answer, 1)
	go func() {
		var a answer
		defer func() { done <- a }()
		defer conn.Contain(&a.err)
		a.asked, a.err = e.ask(ctx)
	}()
	late := time.NewTimer(timeout + time.Second)
	defer late.Stop()
	select {
	case a := <-done:
		return a.asked, a.err
	case <-late.C:
		return false, conn.WithClass(conn.Network, fmt.Errorf("no answer within %s", short(timeout)))
	}
}
