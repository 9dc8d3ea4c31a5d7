package config

import (
	"bytes"
	"encoding"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"gopkg.in/yaml.v3"

	"github.com/lag-monitor/lag-monitor/internal/conn"
	"github.com/lag-monitor/lag-monitor/probe"
	"github.com/lag-monitor/lag-monitor/sinks"
)

const (
	// maxFile bounds one file: ten thousand probes of ten lines fit in three megabytes.
	maxFile = 8 << 20
	// maxFiles and maxTotal bound what one configuration includes, which a pattern such as /* could make
	// anything.
	maxFiles = 10_000
	maxTotal = 64 << 20
	// maxDepth is how deep the keys of a file may nest. What the program knows needs eight.
	maxDepth = 32
	// maxExpanded bounds the values that a file makes through aliases and merge keys, which can
	// multiply: ten lines of YAML can stand for a billion values. Ten thousand probes that merge a
	// dozen keys each stay below.
	maxExpanded = 200_000
	// maxCollected bounds the work for a file that is no configuration at all.
	maxCollected = 1000
)

// kindTable is where the decoder learns what transports there are.
type kindTable struct {
	newProbe func(string) (probe.Config, bool)
	newSink  func(string) (sinks.Config, bool)
	probes   func() []string
	sinks    func() []string
}

func registered() kindTable {
	return kindTable{newProbe: probe.New, newSink: sinks.New, probes: probe.Kinds, sinks: sinks.Kinds}
}

// decoder decodes one file over values that are filled with defaults. yaml.v3 parses; the walk over
// its nodes is our own, because yaml.v3 accepts unknown keys below a custom UnmarshalYAML, stops at
// the first of several mistakes and forgets where a value stood.
type decoder struct {
	file     string
	dir      string // absolute; relative paths of secrets and certificates start here
	kinds    kindTable
	layouts  layouts
	defaults map[string]any // of the kinds, "sink kafka", "inject http", …; read only
	globals  *rawGlobal
	problems Problems
	warnings Problems
	pos      map[string]*yaml.Node // path → its value
	keys     map[string]*yaml.Node // path → its key
	expanded int
	aliased  int // how many aliases lead to the value that is being decoded
	depth    int
}

func newDecoder(file, dir string, kinds kindTable) *decoder {
	return &decoder{
		file: file, dir: dir, kinds: kinds, layouts: make(layouts), defaults: make(map[string]any),
		pos: make(map[string]*yaml.Node), keys: make(map[string]*yaml.Node),
	}
}

// nodeDecoder is a value that decodes itself with the decoder's help.
type nodeDecoder interface {
	decodeNode(d *decoder, n *yaml.Node, path string)
}

func (d *decoder) fail(n *yaml.Node, path, format string, args ...any) {
	p := &Problem{File: d.file, Path: path, Text: fmt.Sprintf(format, args...)}
	if n != nil {
		p.Line, p.Column = n.Line, n.Column
	}
	if len(d.problems) < maxCollected {
		d.problems = append(d.problems, p)
	}
}

// failed reports whether something at path or below it is wrong.
func (d *decoder) failed(path string) bool {
	return slices.ContainsFunc(d.problems, func(p *Problem) bool {
		rest, ok := strings.CutPrefix(p.Path, path)
		return ok && (rest == "" || rest[0] == '.' || rest[0] == '[')
	})
}

func (d *decoder) warn(n *yaml.Node, path, format string, args ...any) {
	p := &Problem{File: d.file, Path: path, Text: fmt.Sprintf(format, args...)}
	if n != nil {
		p.Line, p.Column = n.Line, n.Column
	}
	d.warnings = append(d.warnings, p)
}

// at returns the value at path or, if the file does not hold it, at the nearest path above it.
func (d *decoder) at(path string) *yaml.Node {
	for path != "" {
		if n, ok := d.pos[path]; ok {
			return n
		}
		path = path[:max(0, strings.LastIndexAny(path, ".["))]
	}
	return nil
}

// has reports whether the file itself holds the key.
func (d *decoder) has(path string) bool { _, ok := d.pos[path]; return ok }

// failAt is fail at the place of a path.
func (d *decoder) failAt(path, format string, args ...any) { d.fail(d.at(path), path, format, args...) }

// warnAt is warn at the place of a path.
func (d *decoder) warnAt(path, format string, args ...any) { d.warn(d.at(path), path, format, args...) }

// fieldErrors reports what a Validate said of the value at path.
func (d *decoder) fieldErrors(path string, err error) {
	if err == nil {
		return
	}
	if many, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range many.Unwrap() {
			d.fieldErrors(path, e)
		}
		return
	}
	var f *conn.FieldError
	if errors.As(err, &f) {
		if f.Path != "" {
			path += "." + f.Path
		}
		err = f.Err
	}
	d.failAt(path, "%s", oneLine(err.Error()))
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

var yamlLine = regexp.MustCompile(`^(?:yaml: )?line (\d+): `)

// parse returns the root of the file's only document, or nil after reporting why not.
func (d *decoder) parse(data []byte) (root *yaml.Node) {
	if len(data) > maxFile {
		d.fail(nil, "", "the file is larger than %d MiB: split it with include", maxFile>>20)
		return nil
	}
	for i, line := 0, 1; i < len(data); {
		r, n := utf8.DecodeRune(data[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			d.fail(&yaml.Node{Line: line}, "", "not UTF-8 text")
			return nil
		case r == '\n':
			line++
		case r < ' ' && r != '\t' && r != '\r', r == 0x7f:
			d.fail(&yaml.Node{Line: line}, "", "control character %U is not allowed", r)
			return nil
		}
		i += n
	}
	// The parser of yaml.v3 has panicked before; a file that somebody saves must not end the daemon.
	defer func() {
		if p := recover(); p != nil {
			d.fail(nil, "", "not YAML: %v", p)
			root = nil
		}
	}()
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc yaml.Node
	switch err := dec.Decode(&doc); {
	case errors.Is(err, io.EOF):
		d.fail(nil, "", "the file is empty; write at least `probes: {}`")
		return nil
	case err != nil:
		d.syntax(data, err)
		return nil
	}
	var second yaml.Node
	switch err := dec.Decode(&second); {
	case err == nil:
		d.fail(&second, "", "a second document (`---`) begins here: one file is one document")
		return nil
	case !errors.Is(err, io.EOF):
		d.syntax(data, err)
		return nil
	}
	if len(doc.Content) == 0 || isNull(doc.Content[0]) {
		d.fail(nil, "", "the file is empty; write at least `probes: {}`")
		return nil
	}
	return doc.Content[0]
}

func (d *decoder) syntax(data []byte, err error) {
	text := yamlLine.ReplaceAllString(strings.TrimPrefix(err.Error(), "yaml: "), "")
	n := new(yaml.Node)
	switch {
	case strings.HasPrefix(text, "unknown anchor '"):
		name, _, _ := strings.Cut(strings.TrimPrefix(text, "unknown anchor '"), "'")
		if i := bytes.Index(data, []byte("*"+name)); i >= 0 {
			n.Line = 1 + bytes.Count(data[:i], []byte("\n"))
		}
		text = "*" + name + " names no anchor of this file (&" + name + "), above it"
	case strings.Contains(text, "expected alphabetic or numeric character"):
		text = `a value that begins with * or & must be quoted, such as "*.yaml"`
		n.Line = syntaxLine(data)
	case strings.Contains(text, "cannot start any token"):
		text += " (YAML is indented with spaces, not tabs; quote values that begin with @, ` or %)"
		fallthrough
	default:
		n.Line = syntaxLine(data)
	}
	d.fail(n, "", "not YAML: %s", text)
}

// syntaxLine finds the line on which data stops being YAML. The parser tells the line on which the
// broken collection begins, which may be far above, or none. It is the line after the longest run of
// whole lines that can be parsed. A collection in brackets over several lines cannot be parsed before
// its end, so the search goes on a few lines after each place where it could stop.
func syntaxLine(data []byte) int {
	var ends []int // ends[i] is where line i+1 ends
	for i, c := range data {
		if c == '\n' {
			ends = append(ends, i+1)
		}
	}
	ends = append(ends, len(data))
	budget := 64 << 20 // bytes to parse again, for files that are large and broken
	ok := func(k int) bool {
		var n yaml.Node
		budget -= ends[k-1]
		return yaml.Unmarshal(data[:ends[k-1]], &n) == nil
	}
	good, bad := 0, len(ends)
	for budget > 0 {
		lo, hi := good, bad
		for lo+1 < hi && budget > 0 {
			if mid := (lo + hi) / 2; ok(mid) {
				lo = mid
			} else {
				hi = mid
			}
		}
		good = lo
		next := 0
		for k := good + 2; k <= good+100 && k < bad && budget > 0; k++ {
			if ok(k) {
				next = k
				break
			}
		}
		if next == 0 {
			break
		}
		good = next
	}
	return good + 1
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

// follow resolves an alias. It returns nil, with a problem, when aliases expand to too much.
func (d *decoder) follow(n *yaml.Node, path string) *yaml.Node {
	if d.expanded > maxExpanded {
		return nil
	}
	if n.Kind == yaml.AliasNode || d.aliased > 0 {
		d.expanded++
	}
	if d.expanded > maxExpanded {
		d.fail(n, path, "the file's aliases (*name) expand to more than %d values", maxExpanded)
		return nil
	}
	for range maxDepth {
		if n.Kind != yaml.AliasNode {
			return n
		}
		n = n.Alias
	}
	return n
}

// pair is one key of a mapping.
type pair struct {
	name       string
	key, value *yaml.Node
}

// mapping returns the keys of a mapping in the file's order, merge keys (<<) resolved. A null is an
// empty mapping. It reports everything that is wrong with the keys themselves.
func (d *decoder) mapping(n *yaml.Node, path, want string) (pairs []pair, ok bool) {
	if isNull(n) {
		return nil, true
	}
	if n.Kind != yaml.MappingNode {
		d.fail(n, path, "%s, not %s", want, describe(n))
		return nil, false
	}
	seen := make(map[string]int, len(n.Content)/2)
	var merges []*yaml.Node
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		if k.Kind == yaml.ScalarNode && k.ShortTag() == "!!merge" {
			merges = append(merges, v)
			continue
		}
		k = d.follow(k, path)
		if k == nil {
			return nil, false
		}
		if k.Kind != yaml.ScalarNode || isNull(k) {
			d.fail(k, path, "a key must be text, not %s", describe(k))
			continue
		}
		if first, dup := seen[k.Value]; dup {
			d.fail(n.Content[i], join(path, k.Value), "this key is here twice; first on line %d", first)
			continue
		}
		seen[k.Value] = k.Line
		pairs = append(pairs, pair{k.Value, n.Content[i], v})
	}
	for _, m := range merges {
		for _, p := range d.merged(m, path, 0) {
			if _, dup := seen[p.name]; !dup {
				seen[p.name] = p.key.Line
				pairs = append(pairs, p)
			}
		}
	}
	return pairs, true
}

// merged returns what a merge key brings in: a mapping, or a list of mappings of which earlier ones win.
func (d *decoder) merged(n *yaml.Node, path string, depth int) (pairs []pair) {
	at := n
	if n = d.follow(n, path); n == nil {
		return nil
	}
	switch {
	case depth > maxDepth:
		d.fail(at, path, "merge keys (<<) are nested too deep")
	case n.Kind == yaml.SequenceNode && depth == 0:
		for _, c := range n.Content {
			pairs = append(pairs, d.merged(c, path, depth+1)...)
		}
	case n.Kind == yaml.MappingNode:
		own := make(map[string]bool)
		var below []pair
		for i := 0; i+1 < len(n.Content); i += 2 {
			k, v := n.Content[i], n.Content[i+1]
			switch {
			case k.ShortTag() == "!!merge":
				below = append(below, d.merged(v, path, depth+1)...)
			case k.Kind != yaml.ScalarNode:
				d.fail(k, path, "a key must be text, not %s", describe(k))
			case own[k.Value]:
				d.fail(k, join(path, k.Value), "this key is here twice")
			default:
				own[k.Value] = true
				pairs = append(pairs, pair{k.Value, k, v})
			}
		}
		pairs = append(pairs, below...)
	default:
		d.fail(at, path, "a merge key (<<) takes a mapping, or a list of mappings")
	}
	if len(pairs) > maxExpanded-d.expanded {
		d.expanded = maxExpanded
		d.follow(at, path)
		return nil
	}
	d.expanded += len(pairs)
	return pairs
}

// describe names what a node is, without its value: it may be a secret in the wrong place.
func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	case yaml.AliasNode:
		return "an alias"
	}
	switch n.ShortTag() {
	case "!!null":
		return "nothing"
	case "!!bool":
		return "true or false"
	case "!!int", "!!float":
		return "a number"
	}
	return "text"
}

// join appends a key to a path. What a person wrote as a key is cut where it could not be a name.
func join(path, key string) string {
	if len(key) > 80 {
		cut := 80
		for cut > 0 && !utf8.RuneStart(key[cut]) {
			cut--
		}
		key = key[:cut] + "…"
	}
	if key == "" || strings.ContainsFunc(key, func(r rune) bool { return r <= ' ' || r == utf8.RuneError }) {
		key = strconv.Quote(key)
	}
	if path == "" {
		return key
	}
	return path + "." + key
}

func (d *decoder) mark(p pair, path string) { d.pos[path], d.keys[path] = p.value, p.key }

// funcUnmarshaler is the form of yaml.Unmarshaler that lets the walk go on below it.
type funcUnmarshaler interface {
	UnmarshalYAML(func(any) error) error
}

// value decodes n over v, which is settable and holds the default.
func (d *decoder) value(n *yaml.Node, v reflect.Value, path string) {
	at := n
	if n = d.follow(n, path); n == nil {
		return
	}
	if d.depth++; d.depth > maxDepth {
		d.fail(at, path, "nested deeper than %d levels", maxDepth)
		d.depth--
		return
	}
	if at.Kind == yaml.AliasNode {
		d.aliased++
	}
	defer func() {
		d.depth--
		if at.Kind == yaml.AliasNode {
			d.aliased--
		}
	}()

	if nd, ok := v.Addr().Interface().(nodeDecoder); ok {
		nd.decodeNode(d, n, path)
		return
	}
	if v.Kind() == reflect.Pointer {
		if v.IsNil() {
			v.Set(reflect.New(v.Type().Elem()))
		}
		d.value(n, v.Elem(), path)
		return
	}
	if n.Kind == yaml.ScalarNode && (!strings.HasPrefix(n.ShortTag(), "!!") || n.ShortTag() == "!!binary") {
		d.fail(n, path, "tags such as %s are not supported", n.ShortTag())
		return
	}
	if isNull(n) && v.Kind() != reflect.Struct && v.Kind() != reflect.Map {
		d.fail(n, path, "has no value: write one, or remove the key")
		return
	}
	switch u := v.Addr().Interface().(type) {
	case funcUnmarshaler:
		if isNull(n) {
			d.fail(n, path, "has no value: write one, or remove the key")
			return
		}
		d.custom(n, u, path)
		if s, ok := u.(*conn.Secret); ok {
			d.secret(n, s, path)
		}
		return
	case yaml.Unmarshaler:
		if err := n.Decode(u); err != nil {
			d.fail(n, path, "%s", decodeText(err))
		}
		return
	case encoding.TextUnmarshaler:
		if n.Kind != yaml.ScalarNode {
			d.fail(n, path, "want text, not %s", describe(n))
		} else if err := u.UnmarshalText([]byte(n.Value)); err != nil {
			d.fail(n, path, "%s", oneLine(err.Error()))
		}
		return
	}

	switch v.Kind() {
	case reflect.Struct:
		d.structure(n, v, path)
	case reflect.Map:
		d.mapValue(n, v, path)
	case reflect.Slice:
		if n.Kind != yaml.SequenceNode {
			d.fail(n, path, "want a list, such as [a, b], not %s", describe(n))
			return
		}
		out := reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content))
		for i, c := range n.Content {
			p := fmt.Sprintf("%s[%d]", path, i)
			d.pos[p] = c
			d.value(c, out.Index(i), p)
		}
		v.Set(out)
	case reflect.String:
		if n.Kind != yaml.ScalarNode {
			d.fail(n, path, "want text, not %s", describe(n))
			return
		}
		d.text(n, n.Value, path)
		v.SetString(n.Value)
	case reflect.Bool:
		d.scalar(n, v, path, "want true or false")
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		d.scalar(n, v, path, "want a whole number")
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		d.scalar(n, v, path, "want a whole number that is not negative")
	case reflect.Float32, reflect.Float64:
		d.scalar(n, v, path, "want a number")
	default:
		d.scalar(n, v, path, "want "+v.Type().String())
	}
}

func (d *decoder) scalar(n *yaml.Node, v reflect.Value, path, want string) {
	if n.Kind != yaml.ScalarNode {
		d.fail(n, path, "%s, not %s", want, describe(n))
		return
	}
	// yaml.v3 cuts 1.5 down to 1 where an integer is wanted.
	fraction := v.CanInt() && n.ShortTag() == "!!float" || v.CanUint() && n.ShortTag() == "!!float"
	if err := n.Decode(v.Addr().Interface()); err != nil || fraction {
		got := describe(n)
		if d := describe(n); d == "a number" {
			got = n.Value
		}
		d.fail(n, path, "%s, not %s", want, got)
	}
}

func decodeText(err error) string {
	var te *yaml.TypeError
	if errors.As(err, &te) && len(te.Errors) > 0 {
		return oneLine(yamlLine.ReplaceAllString(te.Errors[0], ""))
	}
	return oneLine(yamlLine.ReplaceAllString(strings.TrimPrefix(err.Error(), "yaml: "), ""))
}

// custom calls an UnmarshalYAML of the form that gets a function. The function decodes with a
// decoder of its own, as strict as this one, whose problems count only if UnmarshalYAML returns them:
// it may try one type after another.
func (d *decoder) custom(n *yaml.Node, u funcUnmarshaler, path string) {
	err := u.UnmarshalYAML(func(out any) error {
		sub := *d
		sub.problems, sub.warnings = nil, nil
		sub.value(n, reflect.ValueOf(out).Elem(), path)
		d.expanded = sub.expanded
		if len(sub.problems) > 0 {
			return sub.problems
		}
		d.warnings = append(d.warnings, sub.warnings...)
		return nil
	})
	if err == nil {
		return
	}
	var ps Problems
	if errors.As(err, &ps) {
		d.problems = append(d.problems, ps...)
		return
	}
	d.fail(n, path, "%s", oneLine(err.Error()))
}

func (d *decoder) secret(n *yaml.Node, s *conn.Secret, path string) {
	// An empty one would pass for "no secret configured", which is not what the person meant.
	if err := s.Validate(); err != nil && !d.failed(path) {
		d.fail(n, path, "%s", err)
	}
	s.File = d.resolve(s.File)
}

// resolve makes a relative file name absolute: it starts at the folder of the file that names it.
func (d *decoder) resolve(name string) string {
	if name == "" || filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(d.dir, name)
}

var (
	// scheme://user:password@… and user:password@host:port
	urlPassword = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9+.-]*://[^/?#\s@]*:[^/?#\s]*@|^[^\s/@:{]+:[^\s/@{]+@[^\s/@:]+:\d+$`)
	envSyntax   = regexp.MustCompile(`\$\{[A-Za-z_][A-Za-z0-9_]*\}`)
)

// text looks at a text for what nobody should write into the file.
func (d *decoder) text(n *yaml.Node, s, path string) {
	if strings.Contains(s, "@") && urlPassword.MatchString(s) {
		d.fail(n, path, "a password is not written into an address: use the keys for user and password beside it")
	}
	if strings.Contains(s, "${") && envSyntax.MatchString(s) {
		d.warn(n, path, "${…} stays as it is: environment variables are not expanded in this file")
	}
}

func (d *decoder) mapValue(n *yaml.Node, v reflect.Value, path string) {
	if v.Type().Key().Kind() != reflect.String {
		d.fail(n, path, "a mapping with keys of %s is not supported", v.Type().Key())
		return
	}
	pairs, ok := d.mapping(n, path, "want a mapping, such as {a: b}")
	if !ok {
		return
	}
	if v.IsNil() {
		v.Set(reflect.MakeMapWithSize(v.Type(), len(pairs)))
	}
	for _, p := range pairs {
		at := join(path, p.name)
		d.mark(p, at)
		e := reflect.New(v.Type().Elem()).Elem()
		d.value(p.value, e, at)
		v.SetMapIndex(reflect.ValueOf(p.name).Convert(v.Type().Key()), e)
	}
}

// structure decodes a mapping over a struct; every key must be a field.
func (d *decoder) structure(n *yaml.Node, v reflect.Value, path string) {
	pairs, ok := d.mapping(n, path, "want keys and values")
	if !ok {
		return
	}
	fs := d.layouts.of(v.Type())
	for _, p := range pairs {
		at := join(path, p.name)
		i := slices.IndexFunc(fs, func(f field) bool { return f.name == p.name })
		if i < 0 {
			d.fail(p.key, at, "%s", Unknown("key", p.name, names(fs)))
			continue
		}
		d.mark(p, at)
		fv := fs[i].in(v)
		d.value(p.value, fv, at)
		// Certificates and the like; a Secret has been resolved by now.
		if fv.Kind() == reflect.String && strings.HasSuffix(p.name, "_file") {
			fv.SetString(d.resolve(fv.String()))
		}
	}
}

// field is one key that a struct may have in the file.
type field struct {
	name  string
	index []int
	typ   reflect.Type
}

// in returns the field of the struct v, making the embedded pointers on the way.
func (f field) in(v reflect.Value) reflect.Value {
	for i, x := range f.index {
		if i > 0 && v.Kind() == reflect.Pointer {
			if v.IsNil() {
				v.Set(reflect.New(v.Type().Elem()))
			}
			v = v.Elem()
		}
		v = v.Field(x)
	}
	return v
}

func names(fs []field) []string {
	out := make([]string, len(fs))
	for i, f := range fs {
		out[i] = f.name
	}
	return out
}

// layouts remembers what fieldsOf found.
type layouts map[reflect.Type][]field

func (l layouts) of(t reflect.Type) []field {
	fs, ok := l[t]
	if !ok {
		fs = fieldsOf(t)
		l[t] = fs
	}
	return fs
}

// fieldsOf lists the keys of a struct type as yaml.v3 understands its tags, in the order of the source.
func fieldsOf(t reflect.Type) (fs []field) {
	for i := range t.NumField() {
		sf := t.Field(i)
		name, opts, _ := strings.Cut(sf.Tag.Get("yaml"), ",")
		if name == "-" || !sf.IsExported() && !sf.Anonymous {
			continue
		}
		if slices.Contains(strings.Split(opts, ","), "inline") {
			et := sf.Type
			if et.Kind() == reflect.Pointer {
				et = et.Elem()
			}
			for _, f := range fieldsOf(et) {
				f.index = append([]int{i}, f.index...)
				fs = append(fs, f)
			}
			continue
		}
		if !sf.IsExported() {
			continue
		}
		if name == "" {
			name = strings.ToLower(sf.Name)
		}
		fs = append(fs, field{name: name, index: []int{i}, typ: sf.Type})
	}
	return fs
}
