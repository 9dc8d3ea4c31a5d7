package config

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"gopkg.in/yaml.v3"
)

// A Loader reads the configuration again and again, and keeps what the teams that share it do not
// want to lose: the last good version of an included file that is now broken. It is safe for
// concurrent use.
type Loader struct {
	path     string
	kinds    kindTable
	maxTotal int // bytes of all included files

	mu       sync.Mutex
	last     *Config   // what the last successful Load returned
	loaded   [32]byte  // the checksum of what the last Load read, and of the keys
	seen     [32]byte  // the checksum that the last Changed saw
	parsed   [32]byte  // the checksum of the main file whose includes these are
	includes []include // so that a poll does not parse
}

// NewLoader returns a Loader of the main file at path. It reads nothing yet.
func NewLoader(path string) *Loader {
	return &Loader{path: path, kinds: registered(), maxTotal: maxTotal}
}

// Load reads all files. A mistake in the main file is an error, and nothing changes. A mistake in an
// included file is one of the problems, each a *Problem, and cfg is usable: of a file that is broken,
// the last good version stays (at the first Load it is left out), and so it goes with a single probe
// or sink that does not fit the rest, because its name is taken or its sink does not exist.
func (l *Loader) Load() (cfg *Config, problems []error, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.read()
	defer func() {
		l.loaded = l.withKeys(s.sum)
		l.seen = l.loaded
	}()
	if s.main.err != nil {
		return nil, nil, s.main.err
	}
	mainFile, bad, warnings := decodeFile(s.main.name, l.dir(), s.main.data, nil, l.kinds)
	if len(bad) > 0 {
		return nil, nil, bad
	}
	g := mainFile.global
	b := &builder{
		last: l.last,
		cfg: &Config{
			Global: g.global(), Sinks: make(map[string]*Sink), Probes: make(map[string]*Probe), Files: []string{s.main.name}, Warnings: warnings,
		},
		problems: s.problems,
	}
	b.add(mainFile)
	for _, in := range s.included {
		b.cfg.Files = append(b.cfg.Files, in.name)
		if in.err != nil {
			b.problems = append(b.problems, in.err)
			b.keepFile(in.name)
			continue
		}
		f, bad, warnings := decodeFile(in.name, absDir(in.name), in.data, &g, l.kinds)
		if len(bad) > 0 {
			b.problems = append(b.problems, bad...)
			b.keepFile(in.name)
			continue
		}
		b.cfg.Warnings = append(b.cfg.Warnings, warnings...)
		b.add(f)
	}
	for _, name := range s.missing {
		b.keepUnder(name)
	}
	// The main file is whole or nothing; what it lacks because another file is broken is that file's
	// problem and treated as such.
	inMain := b.join(s.main.name)
	if len(inMain) > 0 && len(b.problems) == 0 {
		return nil, nil, inMain.sorted()
	}
	b.problems = append(b.problems, inMain...)
	b.problems = append(b.problems, b.others...)
	b.warnUnused()
	b.warnRoles()
	l.last = b.cfg
	for _, p := range b.problems {
		problems = append(problems, p)
	}
	return b.cfg, problems, nil
}

// Changed reports that the files differ from what the last Load read, and have not changed since the
// call of Changed before: a file that is being written is left to settle. It is meant to be polled.
// It compares contents, not times or inodes, so it sees a symlink that was swapped (as Kubernetes
// updates a ConfigMap), a renamed file and an edit in place alike.
func (l *Loader) Changed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	sum := l.withKeys(l.read().sum)
	settled := sum == l.seen
	l.seen = sum
	return settled && sum != l.loaded
}

// withKeys adds to a checksum the files of the keys that sign heartbeats: these are read when a
// configuration is applied, other secrets whenever they are needed.
func (l *Loader) withKeys(sum [32]byte) [32]byte {
	if l.last == nil {
		return sum
	}
	h := sha256.New()
	h.Write(sum[:])
	for _, k := range l.last.Global.Keys {
		text, err := k.Read()
		if err != nil {
			text = err.Error()
		}
		one := sha256.Sum256([]byte(text))
		h.Write(one[:])
	}
	return [32]byte(h.Sum(nil))
}

func (l *Loader) dir() string { return absDir(l.path) }

func absDir(path string) string {
	abs, err := filepath.Abs(path)
	if err != nil {
		abs = path
	}
	return filepath.Dir(abs)
}

// content is one file as it was read.
type content struct {
	name string
	data []byte
	err  *Problem
}

// snapshot is everything that one Load reads.
type snapshot struct {
	main     content
	included []content
	missing  []string // patterns whose folder could not be read: what came from there stays
	problems Problems
	sum      [32]byte
}

// readFile reads one file. The main file may be a pipe, an included one may not: opening a pipe that
// nobody writes to would never end.
func readFile(name string, main bool) content {
	c := content{name: name}
	fail := func(text string) content {
		c.err = &Problem{File: name, Text: text}
		return c
	}
	switch st, err := os.Stat(name); {
	case err != nil:
		return fail(osText(err))
	case st.IsDir() && main:
		return fail("is a folder, not a file")
	case st.IsDir():
		return fail("is a folder, not a file: include its files with a pattern such as " + filepath.Join(filepath.Base(name), "*.yaml"))
	case !st.Mode().IsRegular() && !main:
		return fail("is not a regular file")
	}
	f, err := os.Open(name)
	if err != nil {
		return fail(osText(err))
	}
	defer f.Close()
	// One byte more than is allowed, so that the decoder sees that it is too much.
	if c.data, err = io.ReadAll(io.LimitReader(f, maxFile+1)); err != nil {
		return fail(osText(err))
	}
	return c
}

// osText is the reason alone: the Problem names the file.
func osText(err error) string {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err.Error()
	}
	return err.Error()
}

// read reads the main file and what it includes. The checksum covers the names and the contents.
func (l *Loader) read() *snapshot {
	s := &snapshot{main: readFile(l.path, true)}
	h := sha256.New()
	write := func(c content) {
		var n [8]byte
		text := ""
		if c.err != nil {
			text = c.err.Text
		}
		for _, part := range [][]byte{[]byte(c.name), []byte(text), c.data} {
			binary.BigEndian.PutUint64(n[:], uint64(len(part)))
			h.Write(n[:])
			h.Write(part)
		}
	}
	write(s.main)
	seen := map[string]bool{filepath.Clean(l.path): true}
	if sum := sha256.Sum256(s.main.data); sum != l.parsed {
		l.parsed, l.includes = sum, includes(s.main.data)
	}
	total := 0
	for i, in := range l.includes {
		at := fmt.Sprintf("include[%d]", i)
		fail := func(text string) {
			s.problems = append(s.problems, &Problem{File: l.path, Line: in.line, Column: in.column, Path: at, Text: text})
		}
		pattern := in.pattern
		if !filepath.IsAbs(pattern) {
			pattern = filepath.Join(filepath.Dir(l.path), pattern)
		}
		matches, err := filepath.Glob(pattern)
		if err != nil {
			fail("not a valid pattern: a [ has no ]")
			continue
		}
		// Glob takes a folder that cannot be read for an empty one, which would stop every probe below it.
		if dir := filepath.Dir(pattern); !hasMeta(dir) {
			if err := readable(dir); err != nil {
				fail("folder " + dir + ": " + osText(err))
				s.missing = append(s.missing, pattern)
				write(content{name: pattern, err: &Problem{Text: osText(err)}})
				continue
			}
		}
		if !hasMeta(pattern) && len(matches) == 0 {
			matches = []string{pattern} // the error of reading it says why
		}
		for _, m := range matches {
			// Hidden ones are editors' work in progress, and the folders behind Kubernetes' symlinks.
			if hasMeta(pattern) && strings.HasPrefix(filepath.Base(m), ".") || seen[filepath.Clean(m)] {
				continue
			}
			seen[filepath.Clean(m)] = true
			if len(s.included) == maxFiles || total > l.maxTotal {
				fail(fmt.Sprintf("more than %d files or %d MiB are included: those from %s on are left out", maxFiles, l.maxTotal>>20, m))
				s.missing = append(s.missing, pattern)
				break
			}
			c := readFile(m, false)
			total += len(c.data)
			s.included = append(s.included, c)
		}
	}
	slices.SortFunc(s.included, func(a, b content) int { return strings.Compare(a.name, b.name) })
	for _, c := range s.included {
		write(c)
	}
	h.Sum(s.sum[:0])
	return s
}

func hasMeta(s string) bool { return strings.ContainsAny(s, `*?[\`) }

func readable(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Readdirnames(1); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

type include struct {
	pattern      string
	line, column int
}

// includes reads the patterns leniently: the strict decoder reports what is wrong with them.
func includes(data []byte) (out []include) {
	if !bytes.Contains(data, []byte("include")) {
		return nil // saves the parser a file of ten thousand probes
	}
	defer func() {
		if recover() != nil {
			out = nil
		}
	}()
	var doc struct {
		Include []yaml.Node `yaml:"include"`
	}
	if len(data) > maxFile || yaml.Unmarshal(data, &doc) != nil {
		return nil
	}
	for _, n := range doc.Include {
		if n.Kind == yaml.ScalarNode && n.Value != "" {
			out = append(out, include{n.Value, n.Line, n.Column})
		}
	}
	return out
}

func (g *rawGlobal) global() Global {
	return Global{
		Interval: time.Duration(g.Interval), Timeout: time.Duration(g.Timeout), SendTimeout: time.Duration(g.SendTimeout), Labels: maps.Clone(g.Labels),
		Page: g.Page.thresholds(), Ticket: g.Ticket.thresholds(), SLO: g.SLO.slo(), Keys: g.Key, Instance: g.Instance,
		MaxSkew: time.Duration(g.MaxSkew), Tracing: g.Tracing.config(),
	}
}

// builder joins the files into one configuration.
type builder struct {
	cfg      *Config
	last     *Config // may be nil
	sinks    []*Sink
	probes   []*Probe
	kept     map[string]bool // "sink/x", "probe/x": its last good version stands for a broken file
	problems Problems
	others   Problems
}

// add takes what a good file defines.
func (b *builder) add(f *file) {
	for _, n := range slices.Sorted(maps.Keys(f.sinks)) {
		b.sinks = append(b.sinks, f.sinks[n])
	}
	for _, n := range slices.Sorted(maps.Keys(f.probes)) {
		b.probes = append(b.probes, f.probes[n])
	}
}

// keepIf takes over from the last configuration what comes from files that satisfy ok.
func (b *builder) keepIf(ok func(file string) bool) {
	if b.last == nil {
		return
	}
	if b.kept == nil {
		b.kept = make(map[string]bool)
	}
	for _, n := range slices.Sorted(maps.Keys(b.last.Sinks)) {
		if s := b.last.Sinks[n]; ok(s.Source.File) {
			b.sinks, b.kept["sink/"+n] = append(b.sinks, s), true
		}
	}
	for _, n := range slices.Sorted(maps.Keys(b.last.Probes)) {
		if p := b.last.Probes[n]; ok(p.Source.File) {
			b.probes, b.kept["probe/"+n] = append(b.probes, p), true
		}
	}
}

func (b *builder) keepFile(name string) { b.keepIf(func(f string) bool { return f == name }) }

func (b *builder) keepUnder(pattern string) {
	b.keepIf(func(f string) bool {
		ok, err := filepath.Match(pattern, f)
		return ok && err == nil
	})
}

// join decides who gets a name and whether every probe finds its sinks. It returns the problems of
// the main file and leaves those of the others in b.others.
func (b *builder) join(main string) (inMain Problems) {
	fail := func(src Source, path, format string, args ...any) {
		p := &Problem{File: src.File, Line: src.Line, Path: path, Text: fmt.Sprintf(format, args...)}
		if src.File == main {
			inMain = append(inMain, p)
		} else {
			b.others = append(b.others, p)
		}
	}
	// A name belongs to the file that had it before; a newcomer must not push out what is running.
	lastFile := func(kind, name string) string {
		if b.last == nil {
			return ""
		}
		if kind == "sink" {
			if s := b.last.Sinks[name]; s != nil {
				return s.Source.File
			}
		} else if p := b.last.Probes[name]; p != nil {
			return p.Source.File
		}
		return ""
	}
	taken := func(kind, name string, holder, other Source) (otherWins bool) {
		otherWins = other.File == lastFile(kind, name) && holder.File != lastFile(kind, name)
		winner, loser := holder, other
		if otherWins {
			winner, loser = other, holder
		}
		fail(loser, kind+"s."+name, "the name is taken: %s:%d defines a %s of that name too", winner.File, winner.Line, kind)
		return otherWins
	}
	for _, s := range b.sinks {
		if have := b.cfg.Sinks[s.Name]; have == nil || taken("sink", s.Name, have.Source, s.Source) {
			b.cfg.Sinks[s.Name] = s
		}
	}
	for _, p := range b.probes {
		if have := b.cfg.Probes[p.Name]; have == nil || taken("probe", p.Name, have.Source, p.Source) {
			b.cfg.Probes[p.Name] = p
		}
	}
	known := slices.Sorted(maps.Keys(b.cfg.Sinks))
	for _, name := range slices.Sorted(maps.Keys(b.cfg.Probes)) {
		p := b.cfg.Probes[name]
		for i, s := range p.Sinks {
			if slices.Contains(known, s) {
				continue
			}
			path := fmt.Sprintf("probes.%s.sinks[%d]", name, i)
			if b.last != nil && b.last.Sinks[s] != nil {
				fail(p.Source, path, "sink %q is no longer defined", s)
			} else {
				fail(p.Source, path, "%s", Unknown(fmt.Sprintf("sink %q", s), s, known))
			}
			b.fallBack(p, p)
			break
		}
		if b.cfg.Probes[name] != p || len(p.Sinks) == 0 || slices.ContainsFunc(p.Sinks, func(s string) bool { return b.cfg.Sinks[s].Role == Destination }) {
			continue
		}
		fail(p.Source, fmt.Sprintf("probes.%s.sinks", name), "%s", b.noDestination(p))
		b.fallBack(p)
	}
	return inMain
}

// noDestination says what is wrong with a probe that watches no end of its pipeline.
func (b *builder) noDestination(p *Probe) string {
	if !slices.ContainsFunc(p.Sinks, func(s string) bool { return b.cfg.Sinks[s].Role == Hop }) {
		return "all are dead-letter queues, where nothing is expected: add the sink where messages come out"
	}
	return "all are hops or dead-letter queues: messages come out nowhere; make the last one a destination (role: destination)"
}

// warnRoles tells of sinks whose place in the list of a probe makes no sense for what they are.
func (b *builder) warnRoles() {
	for _, name := range slices.Sorted(maps.Keys(b.cfg.Probes)) {
		p := b.cfg.Probes[name]
		role := func(i int) string {
			if s := b.cfg.Sinks[p.Sinks[i]]; s != nil {
				return s.Role
			}
			return Destination
		}
		last := len(p.Sinks) - 1 // of the stations
		for last >= 0 && role(last) == DeadLetter {
			last--
		}
		for i := range p.Sinks[:last+1] {
			text := ""
			switch {
			case role(i) == DeadLetter:
				text = "a dead-letter queue is no station on the way: list it after the others"
			case role(i) == Hop && i == last:
				text = "nothing comes after this hop: list it before the sinks that messages reach after it, or make it a destination"
			default:
				continue
			}
			b.cfg.Warnings = append(b.cfg.Warnings, &Problem{File: p.Source.File, Line: p.Source.Line, Path: fmt.Sprintf("probes.%s.sinks[%d]", name, i), Text: text})
		}
	}
}

// fallBack replaces a probe that does not fit its sinks: by the first of the candidates whose sinks are there
// or were, with their last definitions, else by its own last version, else by nothing.
func (b *builder) fallBack(p *Probe, candidates ...*Probe) {
	delete(b.cfg.Probes, p.Name)
	if b.last == nil {
		return
	}
	for _, candidate := range append(candidates, b.last.Probes[p.Name]) {
		if candidate == nil {
			continue
		}
		var old []*Sink
		ok := true
		for _, s := range candidate.Sinks {
			if b.cfg.Sinks[s] != nil {
				continue
			}
			if b.last.Sinks[s] == nil {
				ok = false
				break
			}
			old = append(old, b.last.Sinks[s])
		}
		if ok {
			b.cfg.Probes[p.Name] = candidate
			for _, s := range old {
				b.cfg.Sinks[s.Name] = s
			}
			return
		}
	}
}

func (b *builder) warnUnused() {
	used := make(map[string]bool)
	for _, p := range b.cfg.Probes {
		for _, s := range p.Sinks {
			used[s] = true
		}
	}
	for _, n := range slices.Sorted(maps.Keys(b.cfg.Sinks)) {
		if s := b.cfg.Sinks[n]; !used[n] {
			b.cfg.Warnings = append(b.cfg.Warnings, &Problem{File: s.Source.File, Line: s.Source.Line, Path: "sinks." + n, Text: "no probe uses this sink"})
		}
	}
}
