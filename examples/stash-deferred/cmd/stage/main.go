// Command stage runs the whole case of Stash Deferred on this machine, to look at and to break, or tells its stories by
// itself. Everything listens on loopback, and is gone at the end.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/alecthomas/kingpin/v2"

	"github.com/lag-monitor/lag-monitor/internal/servers"

	"github.com/lag-monitor/lag-monitor/examples/stash-deferred/emulator"
	"github.com/lag-monitor/lag-monitor/examples/stash-deferred/stage"
	"github.com/lag-monitor/lag-monitor/examples/stash-deferred/story"
)

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	app := kingpin.New("stage", "Run Stash Deferred and all that watches it on this machine, to look at and to break.")
	app.HelpFlag.Short('h')
	root := app.Flag("root", "Directory of examples/stash-deferred.").Default(".").ExistingDir()
	tell := app.Flag("story", "Tell the stories, one after the other, and end.").Bool()
	kills := app.Flag("kills", "How often the last story kills the backend.").Default("40").Int()
	slow := app.Flag("slow", "The intervals and limits of production, where a page takes seven minutes.").Bool()
	listen := app.Flag("listen", "Address of the switches.").Default("127.0.0.1:0").String()
	if _, err := app.Parse(args); err != nil {
		fmt.Fprintf(os.Stderr, "stage: %v (try --help)\n", err)
		return 2
	}
	if *tell && *slow {
		fmt.Fprintln(os.Stderr, "stage: stories have a pace of their own: leave out --slow or --story")
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	s := show{root: *root, out: os.Stdout, listen: *listen, kills: *kills, pace: stage.Fast, began: time.Now()}
	if *slow {
		s.pace = stage.Production
	}
	if err := s.run(ctx, *tell); err != nil && ctx.Err() == nil {
		fmt.Fprintln(os.Stderr, "stage:", err)
		return 1
	}
	return 0
}

const install = "bash internal/servers/install.sh"

// has reports whether a server is installed.
func has(name string) bool {
	_, err := os.Stat(filepath.Join(os.Getenv("LAG_MONITOR_TEST_SERVERS"), name, ".stamp"))
	return err == nil
}

// show is one performance.
type show struct {
	root, listen string
	kills        int
	pace         stage.Pace
	binaries     stage.Binaries
	began        time.Time

	mu  sync.Mutex
	out io.Writer
}

func (s *show) say(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fmt.Fprintf(s.out, format+"\n", args...)
}

func (s *show) run(ctx context.Context, tell bool) error {
	dir := os.Getenv("LAG_MONITOR_TEST_SERVERS")
	switch {
	case dir == "":
		return errors.New("LAG_MONITOR_TEST_SERVERS does not say where servers are installed: use make stash")
	case !has("kinesis"):
		return fmt.Errorf("a local Kinesis (kinesis-local, with Node.js) is not installed in %s. This installs it, with the other servers of the tests: %s", dir, install)
	case tell && !has("prometheus"):
		return fmt.Errorf("the stories need Prometheus and Alertmanager, which are not installed in %s. This installs them: %s", dir, install)
	}
	temp, err := os.MkdirTemp("", "stash-deferred-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(temp)
	s.say("Building the service and lag-monitor; the first time takes a minute or two ...")
	if s.binaries, err = stage.Build(ctx, s.root, temp); err != nil {
		return err
	}
	if tell {
		return s.tell(ctx)
	}
	return servers.Outside(ctx, os.Stderr, func(tb testing.TB) {
		s.say("Starting everything ...")
		o := story.Options("throttled", s.root, s.binaries, servers.KinesisInMemory(tb))
		o.Prefix, o.Pace, o.Watched = "", s.pace, has("prometheus")
		s.play(ctx, tb, stage.Up(tb, o))
	})
}

// places says where to look.
func (s *show) places(st *stage.Stage) {
	if st.Monitor != nil {
		s.say("\nlag-monitor    %s/   its metrics: /metrics", st.MonitorURL)
	}
	s.say("frontend       http://%s/metrics", st.FrontendAddr)
	s.say("               curl -d '{\"expiry\": '$(($(date +%%s)+5))', \"message\": \"hello\"}' http://%s/v1/messages", st.FrontendAddr)
	s.say("backend        http://%s/metrics", st.BackendAddr)
	s.say("Kinesis        %s   streams %s", st.Kinesis.Endpoint, strings.Join(st.Streams, ", "))
	s.say("Bigtable       %s   (BIGTABLE_EMULATOR_HOST)", st.Bigtable.Config.Emulator)
	if st.Prometheus == nil && !has("prometheus") {
		s.say("Prometheus and Alertmanager are not installed, so there are no rules and no pages. This installs them: %s", install)
		return
	}
	if st.Prometheus == nil {
		return
	}
	s.say("Prometheus     %s/alerts   rules: /rules; try %s/graph?g0.expr=job:stashdef_lag:seconds&g0.tab=0&g0.range_input=15m", st.Prometheus.URL, st.Prometheus.URL)
	s.say("Alertmanager   %s", st.Alertmanager.URL)
	s.say("Slack          messages to #stash-deferred are shown here")
}

// key is what a person can do.
type key struct {
	key, name, does string
	do              func(st *stage.Stage)
}

var keys = []key{
	{"1", "frontend", "kill the frontend, or start it again", func(st *stage.Stage) { toggle(st.Frontend) }},
	{"2", "scan", "Bigtable does not answer scans", func(st *stage.Stage) { st.Bigtable.Set(emulator.Faults{ScanHangs: true}) }},
	{"3", "throttle", "Kinesis takes 15 messages a second: enough, but not for bursts", func(st *stage.Stage) { st.Broker.LimitWrites(15) }},
	{"4", "throttle-more", "Kinesis takes 4 messages a second: too few", func(st *stage.Stage) { st.Broker.LimitWrites(4) }},
	{"5", "delete", "nobody may delete rows", func(st *stage.Stage) { st.Bigtable.Set(emulator.Faults{NoDeletion: true}) }},
	{"6", "lose", "1 message in 50 is lost on its way into the stream", func(st *stage.Stage) { st.Broker.Swallow(50) }},
	{"7", "backend", "kill the backend and start it again, at once", func(st *stage.Stage) { st.Backend.Kill(); st.Backend.Start() }},
	{"8", "bigtable", "Bigtable is down", func(st *stage.Stage) { st.Bigtable.Set(emulator.Faults{Down: true}) }},
	{"h", "heal", "all is well again", heal},
}

func toggle(p *servers.Process) {
	if p.Pid() == 0 {
		p.Start()
		return
	}
	p.Kill()
}

func heal(st *stage.Stage) {
	st.Bigtable.Set(emulator.Faults{})
	st.Broker.Heal()
	for _, p := range []*servers.Process{st.Frontend, st.Backend} {
		if p.Pid() == 0 {
			p.Start()
		}
	}
}

// play lets a person break things until ctx ends. The stage belongs to this goroutine, so that is where everything is done.
func (s *show) play(ctx context.Context, tb testing.TB, st *stage.Stage) {
	s.places(st)
	typed := make(chan string)
	url, end := s.switches(ctx, tb, typed)
	defer end()
	s.say("\nBreak something: type a number and Enter, or curl -X POST %s/NAME; q or Ctrl-C ends everything.\n", url)
	for _, k := range keys {
		s.say("  %s  /%-13s  %s", k.key, k.name, k.does)
	}
	s.say("")
	// Reading cannot be interrupted; the goroutine ends with the process.
	go func() {
		for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
			select {
			case typed <- strings.TrimSpace(lines.Text()):
			case <-ctx.Done():
				return
			}
		}
	}()
	tick := time.NewTicker(3 * time.Second)
	defer tick.Stop()
	for shown := 0; ; {
		select {
		case <-ctx.Done():
			return
		case what := <-typed:
			if what == "q" {
				return
			}
			for _, k := range keys {
				if what == k.key || what == k.name {
					s.say("%s == %s", s.clock(), k.does)
					k.do(st)
				}
			}
		case <-tick.C:
			s.say("%s %s", s.clock(), st.Status(ctx))
		}
		if st.Slack != nil {
			messages := st.Slack.Messages()
			for _, m := range messages[shown:] {
				if m.Channel == "#stash-deferred" {
					s.say("%s == Slack %s  %s\n%s", s.clock(), m.Channel, m.Title, indent(m.Text))
				}
			}
			shown = len(messages)
		}
	}
}

func (s *show) clock() string {
	d := time.Since(s.began).Round(time.Second)
	return fmt.Sprintf("%3d:%02d", int(d.Minutes()), int(d.Seconds())%60)
}

func indent(text string) string {
	return "         " + strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n         ")
}

// switches serves POST /NAME for each key, and returns the URL.
func (s *show) switches(ctx context.Context, tb testing.TB, typed chan<- string) (url string, end func()) {
	mux := http.NewServeMux()
	for _, k := range keys {
		mux.HandleFunc("POST /"+k.name, func(w http.ResponseWriter, r *http.Request) {
			select {
			case typed <- k.name:
				fmt.Fprintln(w, k.does)
			case <-r.Context().Done():
			case <-ctx.Done():
			}
		})
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", s.listen)
	if err != nil {
		tb.Fatal(err)
	}
	// A page in a browser must not be able to switch anything.
	srv := &http.Server{Handler: http.NewCrossOriginProtection().Handler(mux), ReadHeaderTimeout: 5 * time.Second}
	go func() { _ = srv.Serve(l) }()
	return "http://" + l.Addr().String(), func() { _ = srv.Close() }
}

// tell plays all stories, one stage after the other, with a line on how things stand every few seconds.
func (s *show) tell(ctx context.Context) error {
	for _, name := range append(slices.Clone(story.Stages), "kills") {
		err := servers.Outside(ctx, os.Stderr, func(tb testing.TB) {
			s.say("\n%s ==== A new stage: everything is started ...", s.clock())
			st := stage.Up(tb, story.Options(name, s.root, s.binaries, servers.KinesisInMemory(tb)))
			s.places(st)
			tb.Cleanup(s.report(ctx, st))
			if name == "kills" {
				s.say("\n%s ==== 7. The backend is killed %d times", s.clock(), s.kills)
				story.Kills(tb, st, s.kills, s.step)
				return
			}
			for _, one := range story.On(name) {
				s.say("\n%s ==== %d. %s", s.clock(), one.Number, one.Title)
				one.Play(tb, st, s.step)
			}
		})
		if err != nil {
			return err
		}
	}
	s.say("\n%s ==== The end. docs/stash-deferred.md has all of it as tables.", s.clock())
	return nil
}

// report shows how things stand every few seconds until the returned function is called.
func (s *show) report(ctx context.Context, st *stage.Stage) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(3 * time.Second)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				s.say("%s %s", s.clock(), st.Status(ctx))
			}
		}
	}()
	return func() { cancel(); <-done }
}

func (s *show) step(step story.Step) {
	s.say("%s == %s", s.clock(), step.What)
	for _, text := range []string{step.Seen, step.Page} {
		if text != "" {
			s.say("%s", indent(text))
		}
	}
	s.say("         => %s", step.Conclusion)
}
