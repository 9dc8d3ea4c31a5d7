// Package docs_test runs what the pages of this folder tell a reader to do. A fenced block takes part when its
// first line says so, behind the language:
//
//	```yaml file=NAME      the text is written into the file NAME in the page's own folder
//	```console run         a session: each line that begins with "$ " is run by bash in that folder, and what follows
//	                       is what has to be shown. "…" stands for any text within a line, and a line of it
//	                       alone for any lines. A command with & at its end runs until the page is over
//	```console run wait    the same, and a command is run again until it shows what is expected
//	```promql run          a Prometheus that scrapes the monitor answers the query, with something
//	```LANGUAGE snippet=NAME   a piece of code, see snippets_test.go
//
// lag-monitor is the program as it is built. The addresses in the text are those of the table of pages, behind
// which a pipeline runs.
package docs_test

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/servers"
)

// patience is how long a command may take to show what the page says.
const patience = time.Minute

// monitor is where the pages find the monitor.
const monitor = "localhost:9847"

// block is a fenced block of a page.
type block struct {
	page  string
	line  int // of its first line of text
	info  []string
	lines []string
}

func (b *block) at(line int) string { return fmt.Sprintf("%s:%d", b.page, b.line+line) }

func (b *block) text() string { return strings.Join(b.lines, "\n") + "\n" }

// attribute returns the value of KEY=VALUE behind the language.
func (b *block) attribute(key string) (string, bool) {
	for _, word := range b.info[min(1, len(b.info)):] {
		if v, ok := strings.CutPrefix(word, key+"="); ok {
			return v, true
		}
	}
	return "", false
}

func (b *block) is(words ...string) bool {
	return len(b.info) >= len(words) && slices.Equal(b.info[:len(words)], words)
}

func blocks(t *testing.T, page string) (all []*block) {
	t.Helper()
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	var in *block
	for i, line := range strings.Split(string(text), "\n") {
		fence, ok := strings.CutPrefix(line, "```")
		switch {
		case ok && in == nil:
			in = &block{page: page, line: i + 2, info: strings.Fields(fence)}
		case ok:
			all = append(all, in)
			in = nil
		case in != nil:
			in.lines = append(in.lines, line)
		}
	}
	if in != nil {
		t.Fatalf("%s: a block is not closed", in.at(-1))
	}
	return all
}

// reader is somebody who follows a page.
type reader struct {
	t       *testing.T
	dir     string
	addrs   map[string]string // the page's addresses, and the real ones
	daemons []*daemon

	prometheus *servers.PrometheusServer // nil: none was needed yet
}

type daemon struct {
	line string
	cmd  *exec.Cmd
	out  bytes.Buffer
}

// TestPages does what the pages say.
func TestPages(t *testing.T) {
	servers.Need(t)
	bin := t.TempDir()
	build := exec.Command("go", "build", "-o", filepath.Join(bin, "lag-monitor.real"), "../cmd/lag-monitor")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	// At the address that the test has chosen, and in no more time than it has.
	shim := "#!/bin/sh\ncase \"$*\" in\n*--web.listen-address=*) exec " + bin + "/lag-monitor.real --shutdown.grace=2s \"$@\";;\n*--config.file=*) exec " + bin + "/lag-monitor.real --web.listen-address=\"$MONITOR\" --shutdown.grace=2s \"$@\";;\nesac\nexec " + bin + "/lag-monitor.real \"$@\"\n"
	if err := os.WriteFile(filepath.Join(bin, "lag-monitor"), []byte(shim), 0o700); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("*.md")
	if err != nil {
		t.Fatal(err)
	}
	ran := 0
	for _, page := range files {
		all := blocks(t, page)
		if !slices.ContainsFunc(all, func(b *block) bool { return b.is("console", "run") }) {
			if pipelines[page] != nil {
				t.Errorf("%s has a pipeline, and nothing that is run", page)
			}
			continue
		}
		ran++
		t.Run(page, func(t *testing.T) {
			t.Parallel()
			pipeline := pipelines[page]
			if pipeline == nil {
				t.Fatal("the page is run, and has no pipeline in the table")
			}
			r := &reader{t: t, dir: t.TempDir(), addrs: map[string]string{monitor: servers.FreeAddr(t)}}
			pipeline(r)
			t.Cleanup(r.leave)
			for _, b := range all {
				r.follow(b, bin)
			}
		})
	}
	if ran != len(pipelines) {
		t.Errorf("%d pages were run, the table has %d", ran, len(pipelines))
	}
}

// follow does what a block says.
func (r *reader) follow(b *block, bin string) {
	r.t.Helper()
	switch {
	case b.is("console", "run"):
		r.session(b, bin)
	case b.is("promql", "run"):
		r.query(b)
	default:
		if name, ok := b.attribute("file"); ok {
			if err := os.WriteFile(filepath.Join(r.dir, name), []byte(r.real(b.text())), 0o600); err != nil {
				r.t.Fatal(err)
			}
		}
	}
}

// session runs the commands of a block, one after the other.
func (r *reader) session(b *block, bin string) {
	r.t.Helper()
	wait := slices.Contains(b.info, "wait")
	for i := 0; i < len(b.lines); {
		command, ok := strings.CutPrefix(b.lines[i], "$ ")
		if !ok {
			r.t.Fatalf("%s: a session begins with a command", b.at(i))
		}
		at := b.at(i)
		for i++; strings.HasSuffix(command, "\\") && i < len(b.lines); i++ {
			command += "\n" + b.lines[i]
		}
		from := i
		for i < len(b.lines) && !strings.HasPrefix(b.lines[i], "$ ") {
			i++
		}
		want := b.lines[from:i]
		command = r.real(command)
		if line, ok := strings.CutSuffix(command, "&"); ok {
			r.start(at, line, bin)
			continue
		}
		for deadline := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
			out, err := r.bash(command, bin).CombinedOutput()
			got := r.shown(string(out))
			if matches(want, got) && (err == nil || len(want) > 0) {
				break
			}
			if !wait || time.Now().After(deadline) {
				r.t.Fatalf("%s: %s\nshows (%v)\n%s\nand the page says\n%s%s", at, command, err, got, strings.Join(want, "\n"), r.logs())
			}
		}
	}
}

func (r *reader) bash(command, bin string) *exec.Cmd {
	cmd := exec.Command("bash", "-c", command)
	cmd.Dir = r.dir
	cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"), "MONITOR="+r.addrs[monitor], "LC_ALL=C.UTF-8")
	return cmd
}

func (r *reader) start(at, command, bin string) {
	r.t.Helper()
	d := &daemon{line: at, cmd: r.bash("exec "+command, bin)}
	d.cmd.Stdout, d.cmd.Stderr = &d.out, &d.out
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := d.cmd.Start(); err != nil {
		r.t.Fatalf("%s: %v", at, err)
	}
	r.daemons = append(r.daemons, d)
}

// leave ends what runs in the background, which has to end well.
func (r *reader) leave() {
	for _, d := range r.daemons {
		_ = d.cmd.Process.Signal(syscall.SIGTERM)
		hangs := time.AfterFunc(patience, func() { _ = d.cmd.Process.Kill() })
		if err := d.cmd.Wait(); err != nil {
			r.t.Errorf("%s: %v\n%s", d.line, err, d.out.String())
		}
		hangs.Stop()
	}
	r.daemons = nil
}

// logs ends what runs in the background, and returns what it said.
func (r *reader) logs() string {
	var b strings.Builder
	all := slices.Clone(r.daemons)
	r.leave()
	for _, d := range all {
		said := d.out.String()
		fmt.Fprintf(&b, "\n%s says\n%s", d.line, said[max(0, len(said)-2000):])
	}
	return b.String()
}

// query asks a Prometheus that scrapes the monitor, one for all queries of a page.
func (r *reader) query(b *block) {
	r.t.Helper()
	if r.prometheus == nil {
		// Without the header by which the Prometheus of the tests asks for native histograms alone: the pages are for
		// everybody.
		plain := httptest.NewServer(&httputil.ReverseProxy{Rewrite: func(p *httputil.ProxyRequest) {
			p.SetURL(&url.URL{Scheme: "http", Host: r.addrs[monitor]})
			p.Out.Header.Del("Accept")
		}})
		r.t.Cleanup(plain.Close)
		r.prometheus = servers.Prometheus(r.t, fmt.Sprintf("global: {scrape_interval: 500ms}\nscrape_configs:\n  - {job_name: lag-monitor, static_configs: [{targets: [%q]}]}\n",
			strings.TrimPrefix(plain.URL, "http://")))
	}
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	r.prometheus.WaitQuery(ctx, r.t, strings.TrimSpace(b.text()), func(s []servers.Sample) bool { return len(s) > 0 && !math.IsNaN(s[0].Value) })
}

// real puts the real addresses into a text of the page, and shown the page's into what was shown.
func (r *reader) real(text string) string {
	for page, addr := range r.addrs {
		text = strings.ReplaceAll(text, page, addr)
	}
	return text
}

func (r *reader) shown(text string) string {
	for page, addr := range r.addrs {
		text = strings.ReplaceAll(text, addr, page)
	}
	return text
}

// matches reports whether a command has shown what the page says.
func matches(want []string, got string) bool {
	var b strings.Builder
	for _, line := range want {
		if line == "…" {
			b.WriteString(`(?:.*\n)*`)
			continue
		}
		line = strings.ReplaceAll(regexp.QuoteMeta(strings.TrimRight(line, " ")), "…", ".*")
		b.WriteString(line + " *\n")
	}
	got = strings.TrimRight(got, "\n") + "\n"
	if len(want) == 0 {
		return true
	}
	return regexp.MustCompile(`^` + b.String() + `$`).MatchString(got)
}

func TestMatches(t *testing.T) {
	for _, c := range []struct {
		want []string
		got  string
		ok   bool
	}{
		{[]string{"a 1"}, "a 1\n", true},
		{[]string{"a 1"}, "a 2\n", false},
		{[]string{"a …"}, "a 2\n", true},
		{[]string{"a … c"}, "a 2 b\n", false},
		{[]string{"a"}, "a\nb\n", false},
		{[]string{"a", "…", "d"}, "a\nb\nc\nd\n", true},
		{[]string{"a", "…", "d"}, "a\nd\n", true},
		{[]string{"a.c"}, "abc\n", false},
		{nil, "anything\n", true},
	} {
		if got := matches(c.want, c.got); got != c.ok {
			t.Errorf("%q shows %q: %v", c.want, c.got, got)
		}
	}
}

var (
	link    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading = regexp.MustCompile(`(?m)^#+ (.*)$`)
	noSlug  = regexp.MustCompile("[^a-z0-9 _-]")
)

// Every link to a file of this repository leads to one, and to a heading in it.
func TestLinks(t *testing.T) {
	var pages []string
	for _, glob := range []string{"*.md", "*/*.md", "../*.md", "../*/*.md", "../internal/*/*.md"} {
		found, err := filepath.Glob(glob)
		if err != nil {
			t.Fatal(err)
		}
		pages = append(pages, found...)
	}
	checked := 0
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllStringSubmatch(string(text), -1) {
			file, anchor, _ := strings.Cut(m[1], "#")
			if strings.Contains(m[1], "://") || strings.Contains(m[1], "{{") {
				continue
			}
			checked++
			to := filepath.Join(filepath.Dir(page), file)
			if file == "" {
				to = page
			}
			if _, err := os.Stat(to); err != nil {
				t.Errorf("%s: %s leads nowhere", page, m[1])
				continue
			}
			if anchor == "" {
				continue
			}
			target, err := os.ReadFile(to)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Contains(anchors(string(target)), anchor) {
				t.Errorf("%s: %s has no such heading; there are %q", page, m[1], anchors(string(target)))
			}
		}
	}
	if checked < 100 {
		t.Errorf("only %d links were followed", checked)
	}
}

// anchors are the names of the headings, as the forges make them.
func anchors(text string) (all []string) {
	for _, m := range heading.FindAllStringSubmatch(text, -1) {
		all = append(all, strings.ReplaceAll(noSlug.ReplaceAllString(strings.ToLower(m[1]), ""), " ", "-"))
	}
	return all
}
