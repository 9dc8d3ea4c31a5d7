package stage

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/servers"

	"github.com/lag-monitor/lag-monitor/examples/patterns/service"
)

// Stage is one pattern while it runs. It belongs to the goroutine of its test.
type Stage struct {
	Pattern Pattern
	Env     service.Env
	Monitor string // http://host:port

	tb    testing.TB
	house *House
	name  string
	parts map[string]*running
}

// Up puts a pattern up under one of the house's names and returns when all of it runs.
func Up(tb testing.TB, h *House, name string, p Pattern) *Stage {
	tb.Helper()
	s := &Stage{Pattern: p, tb: tb, house: h, name: name, parts: map[string]*running{}}
	var edits []string
	switch p.Broker {
	case RabbitMQ:
		s.Env = service.Env{Addr: h.space(name), Space: name}
		edits = []string{"amqp://127.0.0.1:5672", "amqp://" + s.Env.Addr + "/" + name}
	case Kafka:
		s.Env = service.Env{Addr: h.topics(name, p.Topics), Space: name + "."}
		edits = []string{"127.0.0.1:9092", s.Env.Addr, "topic: ", "topic: " + s.Env.Space}
	case Redis:
		addr, db := h.database()
		s.Env = service.Env{Addr: addr, DB: db}
		edits = []string{"127.0.0.1:6379", addr, "db: 0", fmt.Sprintf("db: %d", db)}
	}
	for i := 0; i < len(edits); i += 2 {
		if !strings.Contains(p.Config, edits[i]) {
			tb.Fatalf("%s: its configuration has no %q", p.Name, edits[i])
		}
	}
	s.declare()
	for _, part := range p.Parts {
		s.start(part)
	}
	s.monitor(strings.NewReplacer(edits...).Replace(p.Config))
	return s
}

func (s *Stage) declare() {
	s.tb.Helper()
	if s.Pattern.Declare == nil {
		return
	}
	ctx, cancel := context.WithTimeout(s.tb.Context(), time.Minute)
	defer cancel()
	env := s.Env
	env.Dial = new(service.Link).Dial
	if err := s.Pattern.Declare(ctx, env); err != nil {
		s.tb.Fatal(err)
	}
}

func (s *Stage) monitor(config string) {
	s.tb.Helper()
	addr := s.house.addrs[s.name]
	s.Monitor = "http://" + addr
	path := filepath.Join(s.tb.TempDir(), "config.yaml")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		s.tb.Fatal(err)
	}
	servers.Program(s.tb, "lag-monitor", func() *exec.Cmd {
		return exec.CommandContext(context.Background(), s.house.binary, "--config.file="+path, "--web.listen-address="+addr)
	}, func(ctx context.Context) error {
		_, err := get(ctx, s.Monitor+"/-/healthy")
		return err
	})
}

// running is a part that was started.
type running struct {
	link   chan *service.Link // holds the link of the current run
	cancel context.CancelFunc
	done   chan struct{}
}

// start runs a part until it is ended, again after each error, and returns when it has been ready for the first time.
func (s *Stage) start(part service.Part) {
	s.tb.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{link: make(chan *service.Link, 1), cancel: cancel, done: make(chan struct{})}
	r.link <- new(service.Link)
	ready := make(chan struct{}, 1)
	go func() {
		defer close(r.done)
		for ctx.Err() == nil {
			link := new(service.Link)
			<-r.link
			r.link <- link
			if ctx.Err() != nil { // it was killed meanwhile
				return
			}
			env := s.Env
			env.Dial = link.Dial
			err := part.Run(ctx, env, func() {
				select {
				case ready <- struct{}{}:
				default:
				}
			})
			link.Cut()
			if ctx.Err() != nil {
				return
			}
			s.tb.Logf("%s: %s is started again: %v", s.name, part.Name, err)
			select {
			case <-time.After(300 * time.Millisecond):
			case <-ctx.Done():
			}
		}
	}()
	s.parts[part.Name] = r
	s.tb.Cleanup(func() { s.end(r) })
	select {
	case <-ready:
	case <-time.After(patience):
		s.tb.Fatalf("%s is not ready after %v", part.Name, patience)
	}
}

// end waits until a part has ended.
func (s *Stage) end(r *running) {
	s.tb.Helper()
	r.cancel()
	select {
	case <-r.done:
	case <-time.After(patience):
		s.tb.Fatalf("a part has not ended after %v", patience)
	}
}

// Kill ends parts without warning: their connections break, and nothing is handed back. It does not wait for what is left of
// them, which cannot do anything any more.
func (s *Stage) Kill(names ...string) {
	s.tb.Helper()
	for _, name := range names {
		r := s.parts[name]
		link := <-r.link
		// First of all, or it would say good-bye.
		link.Cut()
		r.cancel()
		r.link <- link
	}
}

// Stop ends a part as its operator would.
func (s *Stage) Stop(name string) {
	s.tb.Helper()
	s.end(s.parts[name])
}

// Replace stops the part of this name and starts another version of it.
func (s *Stage) Replace(part service.Part) {
	s.tb.Helper()
	s.Stop(part.Name)
	s.start(part)
}

// Heal puts everything back as it was in the beginning.
func (s *Stage) Heal() {
	s.tb.Helper()
	s.declare()
	for _, part := range s.Pattern.Parts {
		s.Replace(part)
	}
}

// Do calls f with the broker at hand, as an operator's tool would, and fails the test on an error.
func (s *Stage) Do(f func(context.Context, service.Env) error) {
	s.tb.Helper()
	ctx, cancel := context.WithTimeout(s.tb.Context(), time.Minute)
	defer cancel()
	env := s.Env
	env.Dial = new(service.Link).Dial
	if err := f(ctx, env); err != nil {
		s.tb.Fatal(err)
	}
}
