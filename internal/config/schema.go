package config

import (
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/lag-monitor/lag-monitor/internal/conn"
	"github.com/lag-monitor/lag-monitor/probe"
	"github.com/lag-monitor/lag-monitor/sinks"
)

// schemaID is where the newest schema is found.
const schemaID = "https://raw.githubusercontent.com/lag-monitor/lag-monitor/main/config.schema.json"

// Schema returns the JSON Schema (draft 2020-12) of a configuration file, for editors. Its keys, types and
// defaults are those of the structs and the tables of kinds that the decoder uses; the descriptions are the
// comments of example, which is config.example.yaml. It accepts all that the decoder accepts (but for yes and
// no in the place of true and false) and refuses what is wrong by shape.
func Schema(example []byte) ([]byte, error) {
	texts, err := comments(example)
	if err != nil {
		return nil, err
	}
	out, err := json.MarshalIndent(schemaOf(registered(), texts), "", "  ")
	return append(out, '\n'), err
}

// node is a part of a schema.
type node = map[string]any

// schemer makes schemas of types. It goes through them as the decoder goes through values.
type schemer struct {
	kinds   kindTable
	layouts layouts
	texts   map[string]string // descriptions, by path
}

func schemaOf(kinds kindTable, texts map[string]string) node {
	s := &schemer{kinds: kinds, layouts: make(layouts), texts: texts}
	names := node{"pattern": validName.String()}
	g := defaultGlobal()
	g.Instance = "" // the host's name is not the same everywhere
	return node{
		"$schema":     "https://json-schema.org/draft/2020-12/schema",
		"$id":         schemaID,
		"title":       "lag-monitor configuration",
		"description": "A main file, or one that it includes; only the main file has `global` and `include`.",
		"type":        "object",
		"properties": node{
			"global":  s.described(s.of(reflect.ValueOf(&g).Elem(), "global"), "global"),
			"include": s.described(node{"type": "array", "items": text()}, "include"),
			"sinks": s.described(node{"type": []string{"object", "null"}, "propertyNames": names,
				"additionalProperties": s.of(reflect.ValueOf(new(rawSink)).Elem(), "sinks.*")}, "sinks"),
			"probes": s.described(node{"type": []string{"object", "null"}, "propertyNames": names,
				"additionalProperties": s.of(reflect.ValueOf(new(rawProbe)).Elem(), "probes.*")}, "probes"),
		},
		"patternProperties":    node{"^x-": node{}},
		"additionalProperties": false,
		"minProperties":        1,
		"$defs": node{
			"text": node{"type": []string{"string", "number", "boolean"}, "not": node{"type": "string", "pattern": urlPassword.String()}},
			"duration": node{
				"description": "A number and a unit, such as 500ms, 15s, 5m, 1h30m or 1d.",
				"type":        []string{"string", "integer"},
				"pattern":     `^(\+?([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)([0-9.]+(ns|us|µs|μs|ms|s|m|h))*|([0-9]+y)?([0-9]+w)?([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?([0-9]+ms)?|\+?0)$`,
				"minLength":   1,
				"minimum":     0, "maximum": 0,
			},
			"ratio": node{
				"description":      "A part of a whole: 1% or 0.01.",
				"type":             []string{"string", "number"},
				"pattern":          `^[-+]?[0-9.eE+-]+ *%?$`,
				"exclusiveMinimum": 0, "maximum": 1,
			},
			"secret": node{
				"description": "Where a secret is kept, never the secret itself.",
				"type":        "object",
				"oneOf":       []node{{"required": []string{"file"}}, {"required": []string{"env"}}},
				"properties": node{
					"file": described(text(), "A file that holds the secret; a relative name starts at the folder of this file."),
					"env":  described(text(), "An environment variable that holds the secret."),
				},
				"additionalProperties": false,
			},
		},
	}
}

func ref(name string) node { return node{"$ref": "#/$defs/" + name} }

// text is what the decoder takes for text: any scalar.
func text() node { return ref("text") }

func described(n node, text string) node {
	if text != "" {
		n["description"] = text
	}
	return n
}

// described adds the description of path. What the example explains in one of several like places counts for
// all of them, and a key without a word of its own has that of the block it stands in.
func (s *schemer) described(n node, path string) node {
	for at := path; at != ""; at = at[:max(0, strings.LastIndexByte(at, '.'))] {
		page := strings.Replace(at, ".ticket.", ".page.", 1)
		for _, p := range []string{at, page, strings.Replace(page, "global.", "probes.*.", 1)} {
			if t := s.texts[p]; t != "" {
				return described(n, t)
			}
		}
	}
	return n
}

// nodeSchemer is a nodeDecoder, which the schema cannot be read off.
type nodeSchemer interface {
	schema(s *schemer, path string) node
}

// of returns the schema of what decodes over v, which holds the defaults and can be set. path is the one of
// its description.
func (s *schemer) of(v reflect.Value, path string) node {
	if n, ok := v.Addr().Interface().(nodeSchemer); ok {
		return n.schema(s, path)
	}
	if v.Kind() == reflect.Pointer {
		if v.IsNil() {
			v = reflect.New(v.Type().Elem())
		}
		return s.of(v.Elem(), path)
	}
	switch u := v.Addr().Interface().(type) {
	case *conn.Duration:
		return ref("duration")
	case *ratio:
		return ref("ratio")
	case *conn.Secret:
		return ref("secret")
	case *probe.Template:
		return text()
	case funcUnmarshaler:
		return s.alternatives(u, path)
	case encoding.TextUnmarshaler:
		return text()
	}
	switch v.Kind() {
	case reflect.Struct:
		return s.structure(v, path)
	case reflect.Map:
		return node{"type": []string{"object", "null"}, "additionalProperties": s.of(reflect.New(v.Type().Elem()).Elem(), path)}
	case reflect.Slice:
		return node{"type": "array", "items": s.of(reflect.New(v.Type().Elem()).Elem(), path)}
	case reflect.Bool:
		return node{"type": "boolean"}
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return node{"type": "integer"}
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return node{"type": "integer", "minimum": 0}
	case reflect.Float32, reflect.Float64:
		return node{"type": "number"}
	}
	return text()
}

// alternatives returns the schema of a type that decodes itself: of whatever it tries to decode into, one
// type after the other, when each one fails.
func (s *schemer) alternatives(u funcUnmarshaler, path string) node {
	var tried []node
	seen := make(map[reflect.Type]bool)
	_ = u.UnmarshalYAML(func(out any) error {
		if t := reflect.TypeOf(out).Elem(); !seen[t] {
			seen[t] = true
			tried = append(tried, s.of(reflect.New(t).Elem(), path))
		}
		return errors.New("the next one")
	})
	switch len(tried) {
	case 0:
		return node{}
	case 1:
		return tried[0]
	}
	return node{"anyOf": tried}
}

// structure returns the schema of a struct whose defaults are in v.
func (s *schemer) structure(v reflect.Value, path string) node {
	props := make(node)
	for _, f := range s.layouts.of(v.Type()) {
		at := path + "." + f.name
		fv := f.in(v)
		d := s.defaultOf(fv)
		n := s.of(fv, at)
		if d != nil {
			n["default"] = d
		}
		switch f.name {
		case "labels":
			n["propertyNames"] = node{"pattern": `^([a-zA-Z]|_([^_]|$))[a-zA-Z0-9_]*$`, "not": node{"enum": reservedLabels}}
		case "runbook", "dashboard":
			n["pattern"] = `^(https?://[^/]+.*)?$`
		}
		props[f.name] = s.described(n, at)
	}
	out := node{"type": []string{"object", "null"}, "properties": props, "additionalProperties": false}
	if need := required(v); len(need) > 0 {
		out["type"], out["required"] = "object", need
	}
	return out
}

// defaultOf returns the default of a scalar or a list of scalars, and nil where there is none to tell.
func (s *schemer) defaultOf(v reflect.Value) any {
	n := s.layouts.encode(v, reflect.Value{})
	if n == nil || n.Kind == yaml.MappingNode {
		return nil
	}
	var d any
	if n.Decode(&d) != nil {
		return nil
	}
	return d
}

// required returns the keys without which the struct's Validate fails, as it is filled with defaults.
func required(v reflect.Value) (keys []string) {
	validator, ok := v.Addr().Interface().(interface{ Validate() error })
	if !ok {
		return nil
	}
	var collect func(error)
	collect = func(err error) {
		if many, ok := err.(interface{ Unwrap() []error }); ok {
			for _, e := range many.Unwrap() {
				collect(e)
			}
			return
		}
		var f *conn.FieldError
		if errors.As(err, &f) && f.Err.Error() == "is required" && !strings.ContainsAny(f.Path, ".[") {
			keys = append(keys, f.Path)
		}
	}
	collect(validator.Validate())
	slices.Sort(keys)
	return slices.Compact(keys)
}

func (k *keyList) schema(*schemer, string) node {
	return node{"anyOf": []node{ref("secret"), {"type": "array", "items": ref("secret"), "minItems": 1}}}
}

func (s *rawSink) schema(m *schemer, path string) node {
	n := m.structure(reflect.ValueOf(&rawAnySink{Role: Destination}).Elem(), path)
	props := n["properties"].(node)
	props["role"].(node)["enum"] = []string{Destination, Hop, DeadLetter}
	props["unwrap"].(node)["items"] = node{"enum": sinks.Envelopes()}
	props["unwrap"].(node)["maxItems"] = sinks.MaxEnvelopes
	m.addKinds(n, "sinks", m.kinds.sinks(), func(k string) any { c, _ := m.kinds.newSink(k); return c })
	return n
}

func (i *inject) schema(s *schemer, path string) node {
	n := node{"properties": node{}, "additionalProperties": false}
	s.addKinds(n, "inject", s.kinds.probes(), func(k string) any { c, _ := s.kinds.newProbe(k); return c })
	return s.described(n, path)
}

// addKinds adds the kinds to the keys of n, of which just one has to be there.
func (s *schemer) addKinds(n node, path string, kinds []string, create func(string) any) {
	n["type"] = "object"
	var one []node
	for _, k := range kinds {
		at := path + "." + k
		n["properties"].(node)[k] = s.described(s.of(reflect.ValueOf(create(k)).Elem(), at), at)
		one = append(one, node{"required": []string{k}})
	}
	n["oneOf"] = one
}

func (r *rawProbe) schema(s *schemer, path string) node {
	// Its defaults are those of global.
	n := s.structure(reflect.ValueOf(&struct {
		rawProbe `yaml:",inline"`
	}{}).Elem(), path)
	n["type"] = "object"
	n["properties"].(node)["sinks"].(node)["uniqueItems"] = true
	n["anyOf"] = []node{{"required": []string{"inject"}}, {"required": []string{"sinks"}, "properties": node{"sinks": node{"minItems": 1}}}}
	return n
}

var (
	commentedKey = regexp.MustCompile(`^#\s*([a-z][a-z_0-9]*): .*?\s#\s*(.*)$`)
	anyCommented = regexp.MustCompile(`^#\s*[a-z][a-z_0-9]*: (\S+( \S+)?|\{.*\}|\[.*\])(\s+#.*)?$`)
)

// comments reads the descriptions off the comments of the example: what stands behind a key, else above it.
// Options that exclude others stand there as comments themselves.
func comments(example []byte) (map[string]string, error) {
	d := newDecoder("config.example.yaml", "/", registered())
	root := d.parse(example)
	if root == nil {
		return nil, d.problems
	}
	d.top(root, &file{sinks: map[string]*Sink{}, probes: map[string]*Probe{}}, true)
	if len(d.problems) > 0 {
		return nil, d.problems
	}
	byName := make(map[string]string)
	for line := range strings.Lines(string(example)) {
		if m := commentedKey.FindStringSubmatch(strings.TrimSpace(line)); m != nil {
			byName[m[1]] = plain(m[2])
		}
	}
	out := make(map[string]string)
	put := func(path, text string) {
		if out[path] == "" && text != "" {
			out[path] = text
		}
	}
	common := names(fieldsOf(reflect.TypeFor[rawAnySink]()))
	for _, path := range slices.Sorted(maps.Keys(d.keys)) {
		parts := strings.Split(path, ".")
		switch {
		case parts[0] == "probes" && len(parts) > 3 && parts[2] == "inject":
			parts = parts[2:]
		case parts[0] == "sinks" && len(parts) > 2 && !slices.Contains(common, parts[2]):
			parts = slices.Delete(parts, 1, 2)
		case (parts[0] == "probes" || parts[0] == "sinks") && len(parts) > 1:
			parts[1] = "*"
		}
		put(strings.Join(parts, "."), comment(d.keys[path], d.pos[path]))
	}
	// What is only there as a comment.
	s := &schemer{kinds: registered(), layouts: make(layouts), texts: out}
	for kind, c := range s.all() {
		s.walk(reflect.TypeOf(c), kind, func(path string) { put(path, byName[path[strings.LastIndexByte(path, '.')+1:]]) })
	}
	// The two keys of the file itself are described where they begin.
	for _, k := range []string{"sinks", "probes", "include", "global"} {
		if key := d.keys[k]; key != nil {
			put(k, comment(key, d.pos[k]))
		}
	}
	return out, nil
}

// all returns the settings of each kind by the path of its description.
func (s *schemer) all() map[string]any {
	out := make(map[string]any)
	for _, k := range s.kinds.probes() {
		out["inject."+k], _ = s.kinds.newProbe(k)
	}
	for _, k := range s.kinds.sinks() {
		out["sinks."+k], _ = s.kinds.newSink(k)
	}
	return out
}

// walk calls f with the path of each key below a struct.
func (s *schemer) walk(t reflect.Type, path string, f func(string)) {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct || t == reflect.TypeFor[conn.Secret]() || t == reflect.TypeFor[probe.Template]() {
		return
	}
	for _, fd := range s.layouts.of(t) {
		f(path + "." + fd.name)
		s.walk(fd.typ, path+"."+fd.name, f)
	}
}

// comment returns what the example says of a key.
func comment(key, value *yaml.Node) string {
	for _, text := range []string{value.LineComment, key.LineComment, value.HeadComment, key.HeadComment} {
		if t := plain(text); t != "" {
			return t
		}
	}
	return ""
}

// plain takes the signs of a comment away, the word default, which a schema says otherwise, and options that
// are commented out.
func plain(comment string) string {
	var lines []string
	for line := range strings.Lines(comment) {
		line = strings.TrimSpace(line)
		if anyCommented.MatchString(line) && !strings.HasPrefix(line, "# default: ") {
			continue // an option
		}
		lines = append(lines, strings.TrimSpace(strings.TrimLeft(line, "#")))
	}
	text := strings.TrimSpace(strings.Join(lines, " "))
	if text == "default" {
		return ""
	}
	text = strings.TrimPrefix(text, "default: ")
	if text == "" {
		return ""
	}
	return fmt.Sprintf("%s%s", strings.ToUpper(text[:1]), text[1:])
}
