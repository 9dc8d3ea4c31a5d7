package config

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// summary tells what a configuration holds, with where each thing comes from.
func summary(c *Config, dir string) string {
	var out []string
	for _, n := range slices.Sorted(maps.Keys(c.Sinks)) {
		out = append(out, fmt.Sprintf("sink %s %s", n, c.Sinks[n].Source.File))
	}
	for _, n := range slices.Sorted(maps.Keys(c.Probes)) {
		out = append(out, fmt.Sprintf("probe %s %s %s", n, c.Probes[n].Source.File, short(c.Probes[n].Interval)))
	}
	return strings.ReplaceAll(strings.Join(out, "\n"), dir+"/", "")
}

type step struct {
	write    []string // name, text, …; the text "-" removes the file
	want     string   // summary; "" is an error of the main file
	problems string
}

// TestReload plays edits of several teams' files and looks at what keeps running.
func TestReload(t *testing.T) {
	const (
		main  = "include: [conf.d/*.yaml]\nsinks:\n  out:\n    log: {brokers: [a], topic: t}\n"
		a5    = "probes:\n  a: {interval: 5s, sinks: [out]}\n"
		a7    = "probes:\n  a: {interval: 7s, sinks: [out]}\n"
		aBad  = "probes:\n  a: {intervall: 7s, sinks: [out]}\n"
		b5    = "probes:\n  b: {interval: 5s, sinks: [out]}\n"
		inAll = "sink out main.yaml\nprobe a conf.d/a.yaml 5s\nprobe b conf.d/b.yaml 5s"
	)
	for name, steps := range map[string][]step{
		"a bad file keeps its last good version, the others move on": {
			{write: []string{"main.yaml", main, "conf.d/a.yaml", a5, "conf.d/b.yaml", b5}, want: inAll},
			{write: []string{"conf.d/a.yaml", aBad, "conf.d/b.yaml", strings.Replace(b5, "5s", "9s", 1)},
				want:     "sink out main.yaml\nprobe a conf.d/a.yaml 5s\nprobe b conf.d/b.yaml 9s",
				problems: "conf.d/a.yaml:2: probes.a.intervall: unknown key (did you mean \"interval\"?)"},
			{write: []string{"conf.d/a.yaml", a7}, want: "sink out main.yaml\nprobe a conf.d/a.yaml 7s\nprobe b conf.d/b.yaml 9s"},
		},
		"a bad file at the start is left out": {
			{write: []string{"main.yaml", main, "conf.d/a.yaml", aBad, "conf.d/b.yaml", b5},
				want:     "sink out main.yaml\nprobe b conf.d/b.yaml 5s",
				problems: "conf.d/a.yaml:2: probes.a.intervall: unknown key (did you mean \"interval\"?)"},
		},
		"a bad main file changes nothing": {
			{write: []string{"main.yaml", main, "conf.d/a.yaml", a5}, want: "sink out main.yaml\nprobe a conf.d/a.yaml 5s"},
			{write: []string{"main.yaml", "inclde: []\n" + main, "conf.d/a.yaml", a7}, want: "",
				problems: "main.yaml:1: inclde: unknown key (did you mean \"include\"?)"},
			{write: []string{"main.yaml", main}, want: "sink out main.yaml\nprobe a conf.d/a.yaml 7s"},
		},
		"a file that is cut short while it is written does not stop its probes": {
			{write: []string{"main.yaml", main, "conf.d/a.yaml", a5}, want: "sink out main.yaml\nprobe a conf.d/a.yaml 5s"},
			{write: []string{"conf.d/a.yaml", ""}, want: "sink out main.yaml\nprobe a conf.d/a.yaml 5s",
				problems: "conf.d/a.yaml: the file is empty; write at least `probes: {}`"},
		},
		"a removed file takes its probes along": {
			{write: []string{"main.yaml", main, "conf.d/a.yaml", a5, "conf.d/b.yaml", b5}, want: inAll},
			{write: []string{"conf.d/a.yaml", "-"}, want: "sink out main.yaml\nprobe b conf.d/b.yaml 5s"},
		},
		"a folder that vanished is a fault, not a wish": {
			{write: []string{"main.yaml", main, "conf.d/a.yaml", a5, "conf.d/b.yaml", b5}, want: inAll},
			{write: []string{"conf.d", "-"}, want: inAll, problems: "main.yaml:1: include[0]: folder conf.d: no such file or directory"},
		},
		"a name stays with the file that had it": {
			{write: []string{"main.yaml", main, "conf.d/b.yaml", b5}, want: "sink out main.yaml\nprobe b conf.d/b.yaml 5s"},
			{write: []string{"conf.d/a.yaml", a7 + "  b: {interval: 1h, sinks: [out]}\n"},
				want:     "sink out main.yaml\nprobe a conf.d/a.yaml 7s\nprobe b conf.d/b.yaml 5s",
				problems: "conf.d/a.yaml:3: probes.b: the name is taken: conf.d/b.yaml:2 defines a probe of that name too"},
		},
		"at the start the first file has the name": {
			{write: []string{"main.yaml", main, "conf.d/a.yaml", a5, "conf.d/z.yaml", a7 + "  z: {sinks: [out]}\n"},
				want:     "sink out main.yaml\nprobe a conf.d/a.yaml 5s\nprobe z conf.d/z.yaml 15s",
				problems: "conf.d/z.yaml:2: probes.a: the name is taken: conf.d/a.yaml:2 defines a probe of that name too"},
		},
		"a probe may move to another file": {
			{write: []string{"main.yaml", main, "conf.d/b.yaml", b5}, want: "sink out main.yaml\nprobe b conf.d/b.yaml 5s"},
			{write: []string{"conf.d/a.yaml", b5, "conf.d/b.yaml", "-"}, want: "sink out main.yaml\nprobe b conf.d/a.yaml 5s"},
		},
		"a sink that another team still listens on stays": {
			{write: []string{"main.yaml", main, "conf.d/s.yaml", "sinks:\n  shared:\n    log: {brokers: [a], topic: t}\n", "conf.d/b.yaml", strings.Replace(b5, "out", "shared", 1)},
				want: "sink out main.yaml\nsink shared conf.d/s.yaml\nprobe b conf.d/b.yaml 5s"},
			{write: []string{"conf.d/s.yaml", "-"},
				want:     "sink out main.yaml\nsink shared conf.d/s.yaml\nprobe b conf.d/b.yaml 5s",
				problems: "conf.d/b.yaml:2: probes.b.sinks[0]: sink \"shared\" is no longer defined"},
		},
		"a probe that changes while its sink goes takes the change and keeps the sink": {
			{write: []string{"main.yaml", main, "conf.d/s.yaml", "sinks:\n  shared:\n    log: {brokers: [a], topic: t}\n", "conf.d/b.yaml", strings.Replace(b5, "out", "shared", 1)},
				want: "sink out main.yaml\nsink shared conf.d/s.yaml\nprobe b conf.d/b.yaml 5s"},
			{write: []string{"conf.d/s.yaml", "-", "conf.d/b.yaml", "probes:\n  b: {interval: 9s, sinks: [shared]}\n"},
				want:     "sink out main.yaml\nsink shared conf.d/s.yaml\nprobe b conf.d/b.yaml 9s",
				problems: "conf.d/b.yaml:2: probes.b.sinks[0]: sink \"shared\" is no longer defined"},
		},
		"a probe that points to a wrong sink keeps its last version": {
			{write: []string{"main.yaml", main, "conf.d/a.yaml", a5 + "  b: {interval: 5s, sinks: [out]}\n"}, want: "sink out main.yaml\nprobe a conf.d/a.yaml 5s\nprobe b conf.d/a.yaml 5s"},
			{write: []string{"conf.d/a.yaml", a7 + "  b: {interval: 9s, sinks: [otu]}\n"},
				want:     "sink out main.yaml\nprobe a conf.d/a.yaml 7s\nprobe b conf.d/a.yaml 5s",
				problems: "conf.d/a.yaml:3: probes.b.sinks[0]: unknown sink \"otu\" (did you mean \"out\"?)"},
		},
		"a probe of the main file that needs the sink of a broken file is left out": {
			{write: []string{"main.yaml", main + "probes:\n  m: {sinks: [far]}\n  n: {sinks: [out]}\n", "conf.d/a.yaml", aBad},
				want:     "sink out main.yaml\nprobe n main.yaml 15s",
				problems: "conf.d/a.yaml:2: probes.a.intervall: unknown key (did you mean \"interval\"?)\nmain.yaml:6: probes.m.sinks[0]: unknown sink \"far\"; valid: out"},
		},
		"hidden files and the main file itself are not included": {
			{write: []string{"main.yaml", strings.Replace(main, "conf.d/", "./", 1), "a.yaml", a5, ".a.yaml.swp.yaml", "{", "b.yaml~", "{"},
				want: "sink out main.yaml\nprobe a a.yaml 5s"},
		},
		"an absolute and an overlapping pattern": {
			{write: []string{"main.yaml", strings.Replace(main, "[conf.d/*.yaml]", "[DIR/conf.d/*.yaml, conf.d/a.yaml]", 1), "conf.d/a.yaml", a5},
				want: "sink out main.yaml\nprobe a conf.d/a.yaml 5s"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			l := testLoader(filepath.Join(dir, "main.yaml"))
			for i, s := range steps {
				for j := 0; j < len(s.write); j += 2 {
					if s.write[j+1] == "-" {
						if err := os.RemoveAll(filepath.Join(dir, s.write[j])); err != nil {
							t.Fatal(err)
						}
						continue
					}
					write(t, dir, s.write[j], strings.ReplaceAll(s.write[j+1], "DIR", dir))
				}
				cfg, problems, err := l.Load()
				var lines []string
				if err != nil {
					lines = append(lines, err.Error())
				}
				for _, p := range problems {
					lines = append(lines, p.Error())
				}
				if got := strings.ReplaceAll(strings.Join(lines, "\n"), dir+"/", ""); got != s.problems {
					t.Errorf("step %d: problems\n%s\nwant\n%s", i, got, s.problems)
				}
				if (err != nil) != (s.want == "") {
					t.Fatalf("step %d: err = %v", i, err)
				}
				if err == nil {
					if got := summary(cfg, dir); got != s.want {
						t.Errorf("step %d:\n%s\nwant\n%s", i, got, s.want)
					}
				}
			}
		})
	}
}

// TestUnreadableFile: a file that cannot be read is a fault, not a file without probes.
func TestUnreadableFile(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "main.yaml", "include: [conf.d/*.yaml]\nprobes: {}\n", "conf.d/a.yaml", "probes:\n  a: {inject: {post: {url: 'http://a/'}}}\n")
	l := testLoader(filepath.Join(dir, "main.yaml"))
	if _, problems, err := l.Load(); err != nil || len(problems) > 0 {
		t.Fatal(problems, err)
	}
	// A dangling symlink is unreadable for root too.
	p := filepath.Join(dir, "conf.d/a.yaml")
	if err := os.Remove(p); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("nowhere", p); err != nil {
		t.Fatal(err)
	}
	look := func(want string) {
		t.Helper()
		cfg, problems, err := l.Load()
		if err != nil || len(problems) != 1 || cfg.Probes["a"] == nil || problems[0].Error() != p+": "+want {
			t.Errorf("cfg %+v, problems %v, err %v", cfg, problems, err)
		}
	}
	look("no such file or directory")
	// A pipe would keep the loader waiting for ever.
	if err := os.Remove(p); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(p, 0o600); err != nil {
		t.Fatal(err)
	}
	// Somebody who writes at last lets a loader that waits go on, so that the test fails and does not hang.
	writer := time.AfterFunc(5*time.Second, func() {
		if f, err := os.OpenFile(p, os.O_WRONLY|syscall.O_NONBLOCK, 0); err == nil {
			_ = f.Close()
		}
	})
	defer writer.Stop()
	look("is not a regular file")
}

// TestChanged: contents count, not the way in which they came.
func TestChanged(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "v1/main.yaml", "include: [conf.d/*.yaml]\nprobes: {}\n", "v1/conf.d/a.yaml", "probes: {}\n",
		"v2/main.yaml", "include: [conf.d/*.yaml]\nprobes: {}\n", "v2/conf.d/a.yaml", "probes: {}\n# 2\n",
		"v3/main.yaml", "include: [conf.d/*.yaml]\nprobes: {}\n", "v3/conf.d/a.yaml", "probes: {}\n# 2\n")
	// As a ConfigMap is mounted: main.yaml → ..data/main.yaml, ..data → a folder, swapped by a rename.
	link := func(target, name string) {
		t.Helper()
		tmp := filepath.Join(dir, "tmp")
		if err := os.Symlink(target, tmp); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(tmp, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	link("v1", "..data")
	link("..data/main.yaml", "main.yaml")
	link("..data/conf.d", "conf.d")
	l := testLoader(filepath.Join(dir, "main.yaml"))
	load := func() {
		t.Helper()
		if _, problems, err := l.Load(); err != nil || len(problems) > 0 {
			t.Fatal(problems, err)
		}
	}
	load()
	edit := func(what string, changes bool, f func()) {
		t.Helper()
		f()
		first, second := l.Changed(), l.Changed()
		if first {
			t.Errorf("%s: taken for settled at once", what)
		}
		if second != changes {
			t.Errorf("%s: changed = %v", what, second)
		}
		load()
		if l.Changed() {
			t.Errorf("%s: still changed after Load", what)
		}
	}
	edit("nothing", false, func() {})
	edit("the symlink is swapped", true, func() { link("v2", "..data") })
	edit("swapped for the same contents", false, func() { link("v3", "..data") })
	edit("a file is added", true, func() { write(t, dir, "v3/conf.d/b.yaml", "probes: {}\n") })
	edit("a hidden file is added", false, func() { write(t, dir, "v3/conf.d/.b.yaml.swp", "x") })
	edit("an edit in place", true, func() { write(t, dir, "v3/conf.d/b.yaml", "probes: { }\n") })
	edit("a file is renamed", true, func() {
		if err := os.Rename(filepath.Join(dir, "v3/conf.d/b.yaml"), filepath.Join(dir, "v3/conf.d/c.yaml")); err != nil {
			t.Fatal(err)
		}
	})
	edit("an atomic rename over the main file", true, func() {
		write(t, dir, "new", "include: [conf.d/*.yaml]\nprobes: {}\n# new\n")
		if err := os.Rename(filepath.Join(dir, "new"), filepath.Join(dir, "main.yaml")); err != nil {
			t.Fatal(err)
		}
	})
	edit("a file is removed", true, func() {
		if err := os.Remove(filepath.Join(dir, "v3/conf.d/c.yaml")); err != nil {
			t.Fatal(err)
		}
	})

	// While somebody writes, each look sees something else: not yet.
	for i := range 3 {
		write(t, dir, "main.yaml", "include: [conf.d/*.yaml]\nprobes: {}\n"+strings.Repeat("#\n", i))
		if l.Changed() {
			t.Errorf("changed although the file is still growing")
		}
	}
	if !l.Changed() {
		t.Errorf("not changed although the file has settled")
	}
	// A broken main file is loaded, and complained of, once.
	write(t, dir, "main.yaml", "probes: [")
	l.Changed()
	if !l.Changed() {
		t.Errorf("a broken main file is no change")
	}
	if _, _, err := l.Load(); err == nil {
		t.Errorf("a broken main file loads")
	}
	for range 2 {
		if l.Changed() {
			t.Errorf("a broken main file is a change again and again")
		}
	}
}

func TestFingerprint(t *testing.T) {
	load := func(text string) *Probe {
		t.Helper()
		dir := t.TempDir()
		write(t, dir, "main.yaml", text)
		cfg, problems, err := testLoader(filepath.Join(dir, "main.yaml")).Load()
		if err != nil || len(problems) > 0 {
			t.Fatal(err, problems)
		}
		return cfg.Probes["p"]
	}
	base := load("probes:\n  p: {inject: {post: {url: 'http://a/'}}}\n")
	for _, row := range []struct {
		text      string
		same, run bool
	}{
		{"# a comment\nglobal: {interval: 15000ms}\nprobes:\n  p:\n    expiry: 0s\n    inject:\n      post:\n        url: \"http://a/\"\n        method: POST\n        retries: 3\n", true, true},
		{"global: {key: {env: K}, max_skew: 1s, instance: me}\nprobes:\n  p: {inject: {post: {url: 'http://a/'}}}\n", true, true},
		{"global: {labels: {team: a}}\nprobes:\n  p: {inject: {post: {url: 'http://a/'}}}\n", false, true},
		{"global: {page: {lag: 5m}}\nprobes:\n  p: {inject: {post: {url: 'http://a/'}}}\n", false, true},
		{"probes:\n  p: {runbook: 'http://r/', inject: {post: {url: 'http://a/'}}}\n", false, true},
		{"global: {interval: 16s}\nprobes:\n  p: {inject: {post: {url: 'http://a/'}}}\n", false, false},
		{"probes:\n  p: {inject: {post: {url: 'http://a/', retries: 0}}}\n", false, false},
		{"probes:\n  p: {inject: {post: {url: 'http://a/', tls: {}}}}\n", false, false},
		{"probes:\n  p: {inject: {post: {url: 'http://a/', token: {env: X}}}}\n", false, false},
		{"probes:\n  p: {inject: {queue: {topic: t}}}\n", false, false},
	} {
		p := load(row.text)
		if same := p.Fingerprint == base.Fingerprint; same != row.same {
			t.Errorf("same = %v: %s", same, row.text)
		}
		if run := p.RunFingerprint == base.RunFingerprint; run != row.run {
			t.Errorf("same run = %v: %s", run, row.text)
		}
	}
}

func TestWarnings(t *testing.T) {
	for _, row := range []struct{ probe, want string }{
		{"{page: {lag: 5m}}", ""},
		{"{}", "main.yaml:5: probes.p: has no page threshold: nobody is paged when it lags"},
		{"{page: {lag: 5m}, timeout: 5s}", "main.yaml:5: probes.p.timeout: timeout 5s is shorter than interval 15s: a heartbeat is given up before the next one is sent"},
		{"{page: {lag: 5m}, expiry: 1m, ttl: 90s}", "main.yaml:5: probes.p.ttl: ttl 1m30s is shorter than expiry + timeout (2m): a broker may throw a heartbeat away that could still be on time"},
		{"{page: {lag: 5s}}", "main.yaml:5: probes.p.page.lag: page.lag 5s is shorter than interval 15s: one lost heartbeat is enough for the alert"},
		{"{page: {lag: 5m}, ticket: {lag: 5m}}", "main.yaml:5: probes.p.ticket.lag: ticket.lag 5m is not below page.lag 5m: the ticket never comes before the page"},
		{"{page: {lag: 5m}, slo: {latency: 30s, objective: 99.999%}}", "main.yaml:5: probes.p.slo.objective: slo.objective 99.999% is too fine for interval 15s: in 3d one heartbeat is more than the budget"},
		{"{page: {lag: 5m}, slo: {latency: 30s, objective: 99.99%}}", ""},
		{"{page: {lag: 5m}, labels: {a: '${HOME}'}}", "main.yaml:5: probes.p.labels.a: ${…} stays as it is: environment variables are not expanded in this file"},
	} {
		dir := t.TempDir()
		write(t, dir, "main.yaml", "sinks:\n  out:\n    log: {topic: t}\nprobes:\n  p: "+strings.Replace(row.probe, "{", "{sinks: [out], ", 1)+"\n")
		cfg, problems, err := testLoader(filepath.Join(dir, "main.yaml")).Load()
		if err != nil || len(problems) > 0 {
			t.Fatal(err, problems)
		}
		var lines []string
		for _, w := range cfg.Warnings {
			lines = append(lines, strings.ReplaceAll(w.Error(), dir+"/", ""))
		}
		if got := strings.Join(lines, "\n"); got != row.want {
			t.Errorf("%s:\n%s\nwant\n%s", row.probe, got, row.want)
		}
		if p := cfg.Probes["p"]; strings.Contains(row.probe, "HOME") && p.Labels["a"] != "${HOME}" {
			t.Errorf("label = %q", p.Labels["a"])
		}
	}
}

// TestChangedKey: the file of a key is read when a configuration is applied, so its change is one.
func TestChangedKey(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "main.yaml", "global: {key: [{file: a}, {file: b}]}\n")
	write(t, dir, "a", "one")
	write(t, dir, "b", "two")
	l := testLoader(filepath.Join(dir, "main.yaml"))
	load := func() {
		t.Helper()
		if _, _, err := l.Load(); err != nil {
			t.Fatal(err)
		}
		if first, second := l.Changed(), l.Changed(); first || second {
			t.Error("changed by being loaded")
		}
	}
	load()
	for what, change := range map[string]func(){
		"written":  func() { write(t, dir, "b", "three") },
		"replaced": func() { write(t, dir, "a", "four") },
		"removed": func() {
			if err := os.Remove(filepath.Join(dir, "b")); err != nil {
				t.Fatal(err)
			}
		},
	} {
		write(t, dir, "a", "one")
		write(t, dir, "b", "two")
		load()
		change()
		if first, second := l.Changed(), l.Changed(); first || !second {
			t.Errorf("a key is %s: %v, then %v; want false, as it may be half written, then true", what, first, second)
		}
	}
}

// A role that changes in one file may leave a probe of another one without a destination: its last version
// goes on, and its owner is told. The places of hops and dead-letter queues are looked at, too.
func TestRoles(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "main.yaml", "include: [team.yaml]\nsinks:\n  hop: {role: hop, log: {topic: t}}\n  out: {log: {topic: t}}\n  dead: {role: dead_letter, log: {topic: t}}\n")
	l := testLoader(filepath.Join(dir, "main.yaml"))
	for _, row := range []struct{ sinks, problems, warnings, runs string }{
		{"hop, out, dead", "", "", "hop out dead"},
		{"hop, dead", "team.yaml:2: probes.p.sinks: all are hops or dead-letter queues: messages come out nowhere; make the last one a destination (role: destination)", "", "hop out dead"},
		{"dead, out", "", "team.yaml:2: probes.p.sinks[0]: a dead-letter queue is no station on the way: list it after the others", "dead out"},
		{"out, hop, dead", "", "team.yaml:2: probes.p.sinks[1]: nothing comes after this hop: list it before the sinks that messages reach after it, or make it a destination", "out hop dead"},
	} {
		write(t, dir, "team.yaml", "probes:\n  p: {page: {lag: 5m}, sinks: ["+row.sinks+"], inject: {post: {url: 'http://a/'}}}\n")
		cfg, problems, err := l.Load()
		if err != nil {
			t.Fatal(err)
		}
		var warnings []string
		for _, w := range cfg.Warnings {
			if !strings.Contains(w.Error(), "no probe uses this sink") {
				warnings = append(warnings, w.Error())
			}
		}
		said := func(list any) string { return strings.ReplaceAll(strings.Trim(fmt.Sprint(list), "[]"), dir+"/", "") }
		if got := said(problems); got != strings.Trim(row.problems, "[]") {
			t.Errorf("%s: problems %s", row.sinks, got)
		}
		if got := said(warnings); got != strings.Trim(row.warnings, "[]") {
			t.Errorf("%s: warnings %s", row.sinks, got)
		}
		if got := strings.Join(cfg.Probes["p"].Sinks, " "); got != row.runs {
			t.Errorf("%s: runs with %s", row.sinks, got)
		}
	}
}
