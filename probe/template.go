package probe

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"text/template"
	"text/template/parse"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/heartbeat"
)

// The limits of a template, so that a slip in one team's file cannot take the monitor of all teams down:
// with neither loops nor templates that call others, and with functions whose results are bounded, the
// time and the memory that a template takes are bounded by its length.
const (
	// maxRendered bounds a template's text and what it may produce. It is the largest message that
	// Kinesis and Kafka take by default.
	maxRendered = 1 << 20
	// maxParts is how many functions, fields and values a template may use. They may hold maxParts ×
	// maxValue bytes in variables.
	maxParts = 500
	// maxValue bounds the text that one function returns.
	maxValue = 64 << 10
	// maxPadding is the widest field of a printf.
	maxPadding = 4096
	// sizeOfOther is more than anything but a text takes when it is printed: a number, a time.
	sizeOfOther = 1 << 10
)

// DefaultBody is the body of a heartbeat where the team gives none.
const DefaultBody = `{"heartbeat":"{{ .Token }}"}`

// Template is a text/template over a Message: a body, a URL, a header, a key. The zero value renders
// nothing. Rendering is safe for concurrent use.
type Template struct {
	text string
	tmpl *template.Template
	// parts is set when the template has nothing but text and {{ .Token }}, which is the usual case:
	// the token goes between the parts without the template machinery.
	parts []string
}

// ParseTemplate compiles the text. The functions are those of text/template, with bounded results; there
// is no range, define, template or block.
func ParseTemplate(text string) (Template, error) {
	if len(text) > maxRendered {
		return Template{}, fmt.Errorf("the template is longer than %d bytes", maxRendered)
	}
	t, err := template.New("template").Option("missingkey=error").Funcs(functions()).Parse(text)
	if err != nil {
		return Template{}, errors.New(strings.TrimPrefix(err.Error(), "template: template:"))
	}
	if err := check(t); err != nil {
		return Template{}, err
	}
	return Template{text: text, tmpl: t, parts: tokenParts(t)}, nil
}

// check refuses what could run for ever or grow without bound.
func check(t *template.Template) error {
	if len(t.Templates()) > 1 || t.Tree == nil && len(t.Templates()) > 0 {
		return errors.New("define and block are not available: a template stands for itself")
	}
	if t.Tree == nil || t.Root == nil {
		return nil
	}
	c := checker{tree: t.Tree}
	c.node(t.Root)
	if c.err == nil && c.parts > maxParts {
		return fmt.Errorf("the template has %d parts (functions, fields, values); at most %d are possible", c.parts, maxParts)
	}
	return c.err
}

// checker walks the tree of a template.
type checker struct {
	tree  *parse.Tree
	parts int
	err   error // the first one
}

func (c *checker) fail(n parse.Node, text string) {
	if c.err == nil {
		at, _ := c.tree.ErrorContext(n)
		c.err = fmt.Errorf("%s: %s", strings.TrimPrefix(at, "template:"), text)
	}
}

func (c *checker) list(l *parse.ListNode) {
	if l == nil {
		return
	}
	for _, n := range l.Nodes {
		c.node(n)
	}
}

func (c *checker) node(n parse.Node) {
	switch n := n.(type) {
	case *parse.ListNode:
		c.list(n)
	case *parse.ActionNode:
		c.pipe(n.Pipe)
	case *parse.IfNode:
		c.pipe(n.Pipe)
		c.list(n.List)
		c.list(n.ElseList)
	case *parse.WithNode:
		c.pipe(n.Pipe)
		c.list(n.List)
		c.list(n.ElseList)
	case *parse.RangeNode:
		c.fail(n, "range is not available: there is nothing to walk through")
	case *parse.TemplateNode:
		c.fail(n, "template is not available: a template stands for itself")
	case *parse.TextNode, *parse.CommentNode:
	default:
		c.fail(n, n.String()+" is not available")
	}
}

func (c *checker) pipe(p *parse.PipeNode) {
	for i, cmd := range p.Cmds {
		c.parts += len(cmd.Args)
		method := false
		switch first := cmd.Args[0].(type) {
		case *parse.FieldNode, *parse.ChainNode:
			method = true
		case *parse.VariableNode:
			method = len(first.Ident) > 1
		}
		// A method has no bound of its own: what it gets must not have been computed, lest it grow each
		// time.
		if method && i > 0 {
			c.fail(cmd, "a method takes its arguments behind its name, not from a pipe")
		}
		for j, arg := range cmd.Args {
			switch a := arg.(type) {
			case *parse.PipeNode:
				c.pipe(a)
			case *parse.ChainNode:
				if inner, ok := a.Node.(*parse.PipeNode); ok {
					c.pipe(inner)
				}
			}
			if method && j > 0 && !plain(arg) {
				c.fail(arg, "an argument of a method is written out, such as \"2006-01-02\", or a field such as .Expiry")
			}
		}
	}
}

// plain reports whether a value stands in the template or the message as it is.
func plain(n parse.Node) bool {
	switch n := n.(type) {
	case *parse.StringNode, *parse.NumberNode, *parse.BoolNode:
		return true
	case *parse.FieldNode:
		return len(n.Ident) == 1
	}
	return false
}

// functions are those of text/template that make a text, bounded.
func functions() template.FuncMap {
	bounded := func(f func(...any) string) func(...any) (string, error) {
		return func(args ...any) (string, error) {
			size := 0
			for _, a := range args {
				size += sizeOf(a)
			}
			if size > maxRendered {
				return "", errTooLong
			}
			return short(f(args...))
		}
	}
	return template.FuncMap{
		"print":    bounded(fmt.Sprint),
		"println":  bounded(fmt.Sprintln),
		"html":     bounded(template.HTMLEscaper),
		"js":       bounded(template.JSEscaper),
		"urlquery": bounded(template.URLQueryEscaper),
		"printf":   boundedPrintf,
	}
}

var (
	errTooLong = fmt.Errorf("a function returns more than %d bytes", maxValue)
	padding    = regexp.MustCompile(`%[-+# 0]*([0-9.*\[\]]*)`)
	number     = regexp.MustCompile(`[0-9]+`)
)

func boundedPrintf(format string, args ...any) (string, error) {
	longest := sizeOfOther
	for _, a := range args {
		longest = max(longest, sizeOf(a))
	}
	size := len(format)
	for _, m := range padding.FindAllStringSubmatch(format, -1) {
		if strings.Contains(m[1], "*") {
			return "", errors.New("printf: a width is written out, not *")
		}
		for _, n := range number.FindAllString(m[1], -1) {
			if w, err := strconv.Atoi(n); err != nil || w > maxPadding {
				return "", fmt.Errorf("printf: a width is at most %d", maxPadding)
			}
		}
		size += longest + 2*maxPadding
	}
	if size > maxRendered {
		return "", errTooLong
	}
	return short(fmt.Sprintf(format, args...))
}

func sizeOf(v any) int {
	switch v := v.(type) {
	case string:
		return len(v)
	case []byte:
		return 5 * len(v) // [255 255 …]
	}
	return sizeOfOther
}

func short(s string) (string, error) {
	if len(s) > maxValue {
		return "", errTooLong
	}
	return s, nil
}

// MustTemplate is ParseTemplate for texts that are part of the program.
func MustTemplate(text string) Template {
	t, err := ParseTemplate(text)
	if err != nil {
		panic(err)
	}
	return t
}

func tokenParts(t *template.Template) []string {
	parts := []string{""}
	if t.Tree == nil || t.Root == nil {
		return nil
	}
	for _, n := range t.Root.Nodes {
		switch n := n.(type) {
		case *parse.TextNode:
			parts[len(parts)-1] += string(n.Text)
		case *parse.ActionNode:
			if n.Pipe.String() != ".Token" {
				return nil
			}
			parts = append(parts, "")
		default:
			return nil
		}
	}
	size := (len(parts) - 1) * heartbeat.MaxToken
	for _, p := range parts {
		size += len(p)
	}
	if size > maxRendered {
		return nil // the slow way counts as it goes
	}
	return parts
}

// IsZero reports that no template is configured.
func (t Template) IsZero() bool { return t.text == "" }

func (t Template) String() string { return t.text }

// Append renders the template for m behind dst.
func (t Template) Append(dst []byte, m *Message) ([]byte, error) {
	if t.parts != nil {
		for i, p := range t.parts {
			if i > 0 {
				dst = append(dst, m.Token...)
			}
			dst = append(dst, p...)
		}
		return dst, nil
	}
	if t.tmpl == nil {
		return dst, nil
	}
	w := limited{buf: bytes.NewBuffer(dst), left: maxRendered}
	if err := t.tmpl.Execute(&w, m); err != nil {
		return dst, err
	}
	return w.buf.Bytes(), nil
}

// Render renders the template for m into new memory.
func (t Template) Render(m *Message) ([]byte, error) { return t.Append(nil, m) }

// Sample is a message as a template will see it, for validation: a driver renders its templates with
// it and looks for Sample().Token in what comes out.
func Sample() *Message {
	sent := time.Unix(1700000000, 0).UTC()
	return &Message{Probe: "sample", Token: "~lagmon1.sample.AAAA", Seq: 1, Sent: sent, Due: sent,
		TTL: time.Minute, TraceParent: "00-00000000000000000000000000000001-0000000000000001-01"}
}

// CheckToken renders the templates with Sample and reports an error when one of them fails or none
// of them holds the token.
func CheckToken(ts ...Template) error {
	found := false
	for _, t := range ts {
		out, err := t.Render(Sample())
		if err != nil {
			return err
		}
		found = found || bytes.Contains(out, []byte(Sample().Token))
	}
	if !found {
		return errors.New("the heartbeat is not in the message: put {{ .Token }} into it")
	}
	return nil
}

// UnmarshalYAML implements yaml.Unmarshaler.
func (t *Template) UnmarshalYAML(unmarshal func(any) error) error {
	var s string
	if err := unmarshal(&s); err != nil {
		return err
	}
	v, err := ParseTemplate(s)
	if err != nil {
		return fmt.Errorf("template: %w", err)
	}
	*t = v
	return nil
}

// MarshalYAML writes the template's text.
func (t Template) MarshalYAML() (any, error) { return t.text, nil }

type limited struct {
	buf  *bytes.Buffer
	left int
}

func (l *limited) Write(p []byte) (int, error) {
	if len(p) > l.left {
		return 0, fmt.Errorf("the template renders more than %d bytes", maxRendered)
	}
	l.left -= len(p)
	return l.buf.Write(p)
}
