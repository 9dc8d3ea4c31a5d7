package conform_test

import (
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/lag-monitor/lag-monitor/internal/conn"
	"github.com/lag-monitor/lag-monitor/probe"
	"github.com/lag-monitor/lag-monitor/sinks"
)

var update = flag.Bool("update", false, "write the table of docs/transports.md anew")

// TestTransportsPage: the table of docs/transports.md is what the code says.
func TestTransportsPage(t *testing.T) {
	const page, begin, end = "../../docs/transports.md", "<!-- table: begin -->\n", "<!-- table: end -->\n"
	b, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok := strings.Cut(string(b), begin)
	old, tail, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no marks around its table", page)
	}
	table := transportsTable(t)
	switch {
	case table == old:
	case *update:
		if err := os.WriteFile(page, []byte(head+begin+table+end+tail), 0o644); err != nil {
			t.Fatal(err)
		}
	default:
		t.Errorf("the table of docs/transports.md is not what the code says: go test ./internal/conform -run TestTransportsPage -update\ngot:\n%s\nwant:\n%s", old, table)
	}
}

// What is known of the first transports, so that a way of looking at the code which finds nothing is seen.
func TestTransportsTable(t *testing.T) {
	table := transportsTable(t)
	for _, want := range []string{
		"| [kafka](transports/kafka.md) | yes | yes | no | never | yes | yes | yes | yes | no | `sasl.password` | yes |",
		"| [webhook](transports/webhook.md) | | | | never | no | no | no | no | no |",
	} {
		if !strings.Contains(table, want) {
			t.Errorf("the table has no\n%s\n%s", want, table)
		}
	}
	for kind, cells := range map[string]string{"amqp": "some", "kinesis": "yes", "redis": "`dedicated`"} {
		if i := strings.Index(table, "| ["+kind+"]"); i < 0 || !strings.Contains(table[i:i+strings.Index(table[i:], "\n")], cells) {
			t.Errorf("%s has no %s in\n%s", kind, cells, table)
		}
	}
}

func transportsTable(t *testing.T) string {
	in, out := parseKinds(t, "../../probe", probe.Kinds()), parseKinds(t, "../../sinks", sinks.Kinds())
	var b strings.Builder
	b.WriteString("| | lanes | headers | TTL | takes messages | goes on | looks back | time of arrival | backlog | dead letters | logs in with | TLS |\n")
	b.WriteString("| --- |" + strings.Repeat(" --- |", 11) + "\n")
	all := maps.Collect(maps.All(in))
	maps.Copy(all, out)
	for _, kind := range slices.Sorted(maps.Keys(all)) {
		row := []string{fmt.Sprintf("[%s](transports/%s)", kind, pageOf(t, kind))}
		settings := make(map[string]reflect.Type)
		if s := in[kind]; s != nil {
			c, _ := probe.New(kind)
			fields := settingsOf(c)
			maps.Copy(settings, fields)
			row = append(row, s.have("Inject", "Lanes"), yes(s.uses["Header"] || fields["headers"] != nil || fields["attributes"] != nil), yes(s.reads["TTL"]))
		} else {
			row = append(row, "", "", "")
		}
		if s := out[kind]; s != nil {
			c, _ := sinks.New(kind)
			fields := settingsOf(c)
			maps.Copy(settings, fields)
			takes := "never"
			if fields["dedicated"] != nil {
				takes = "`dedicated`"
			}
			row = append(row, takes, s.have("Run", "Position"), s.have("Run", "LookBack"), yes(s.sets["Enqueued"]), s.have("Run", "Backlog"), yes(s.sets["Dead"]))
		} else {
			row = append(row, "", "", "", "", "", "")
		}
		var login []string
		encrypted := false
		for _, path := range slices.Sorted(maps.Keys(settings)) {
			name := path[strings.LastIndex(path, ".")+1:]
			encrypted = encrypted || name == "tls"
			if strings.Contains("."+path, ".tls.") {
				continue
			}
			if settings[path] == reflect.TypeFor[conn.Secret]() || strings.HasSuffix(name, "credentials_file") || name == "nkey_file" || name == "role_arn" || name == "external" {
				login = append(login, "`"+path+"`")
			}
		}
		row = append(row, strings.Join(login, ", "), yes(encrypted))
		for _, cell := range row {
			if cell == "" {
				b.WriteString("| ")
			} else {
				b.WriteString("| " + cell + " ")
			}
		}
		b.WriteString("|\n")
	}
	return b.String()
}

// pageOf returns the file name of the page about a kind, whose title names it before its colon: several kinds may share a page.
func pageOf(t *testing.T, kind string) string {
	pages, err := filepath.Glob("../../docs/transports/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range pages {
		b, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		title, _, _ := strings.Cut(string(b), "\n")
		names, _, _ := strings.Cut(title, ":")
		if slices.Contains(strings.FieldsFunc(names, func(r rune) bool { return r == ' ' || r == ',' }), kind) || filepath.Base(page) == kind+".md" {
			return filepath.Base(page)
		}
	}
	t.Errorf("%s has no page in docs/transports: none has it in its title", kind)
	return ""
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// settingsOf returns the keys of a configuration, by their paths.
func settingsOf(config any) map[string]reflect.Type {
	all := make(map[string]reflect.Type)
	var walk func(t reflect.Type, path string)
	walk = func(t reflect.Type, path string) {
		for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
			t = t.Elem()
		}
		if t.Kind() != reflect.Struct || t == reflect.TypeFor[conn.Secret]() {
			return
		}
		for f := range t.Fields() {
			name, options, _ := strings.Cut(f.Tag.Get("yaml"), ",")
			switch {
			case strings.Contains(options, "inline"):
				walk(f.Type, path)
			case name != "" && name != "-":
				all[path+name] = f.Type
				walk(f.Type, path+name+".")
			}
		}
	}
	walk(reflect.TypeOf(config), "")
	return all
}

// kindSource is what the files of one kind say.
type kindSource struct {
	methods map[string]map[string]bool // of each type, those of its embedded types included
	uses    map[string]bool            // names, but for those behind a dot
	reads   map[string]bool            // names behind a dot
	sets    map[string]bool            // fields that get a value
}

// have reports whether the types of the kind that have one method have another one, too.
func (s *kindSource) have(one, other string) string {
	n, of := 0, 0
	for _, m := range s.methods {
		if m[one] {
			of++
			if m[other] {
				n++
			}
		}
	}
	switch n {
	case 0:
		return "no"
	case of:
		return "yes"
	}
	return "some"
}

// parseKinds reads a folder in which the files of a kind begin with its name.
func parseKinds(t *testing.T, dir string, kinds []string) map[string]*kindSource {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]*kindSource)
	for _, k := range kinds {
		all[k] = &kindSource{make(map[string]map[string]bool), make(map[string]bool), make(map[string]bool), make(map[string]bool)}
	}
	for _, path := range files {
		name := strings.TrimSuffix(filepath.Base(path), ".go")
		if strings.HasSuffix(name, "_test") {
			continue
		}
		kind := ""
		for _, k := range kinds { // http_poll is no file of http
			if (name == k || strings.HasPrefix(name, k+"_")) && len(k) > len(kind) {
				kind = k
			}
		}
		if kind == "" {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		all[kind].read(f)
	}
	return all
}

func (s *kindSource) read(f *ast.File) {
	of := func(name string) map[string]bool {
		if s.methods[name] == nil {
			s.methods[name] = make(map[string]bool)
		}
		return s.methods[name]
	}
	name := func(e ast.Expr) string {
		if p, ok := e.(*ast.StarExpr); ok {
			e = p.X
		}
		id, _ := e.(*ast.Ident)
		if id == nil {
			return ""
		}
		return id.Name
	}
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncDecl:
			if n.Recv != nil {
				of(name(n.Recv.List[0].Type))[n.Name.Name] = true
			}
		case *ast.TypeSpec:
			if st, ok := n.Type.(*ast.StructType); ok {
				for _, field := range st.Fields.List {
					if e := name(field.Type); len(field.Names) == 0 && e != "" {
						of(n.Name.Name)["embeds "+e] = true
					}
				}
			}
		case *ast.SelectorExpr:
			s.reads[n.Sel.Name] = true
			ast.Inspect(n.X, func(n ast.Node) bool {
				if id, ok := n.(*ast.Ident); ok {
					s.uses[id.Name] = true
				}
				return true
			})
			return false
		case *ast.KeyValueExpr:
			s.sets[name(n.Key)] = true
		case *ast.AssignStmt:
			for _, l := range n.Lhs {
				if sel, ok := l.(*ast.SelectorExpr); ok {
					s.sets[sel.Sel.Name] = true
				}
			}
		case *ast.Ident:
			s.uses[n.Name] = true
		}
		return true
	})
	// A type has the methods of what it embeds.
	for changed := true; changed; {
		changed = false
		for _, m := range s.methods {
			for k := range maps.Clone(m) {
				if e, ok := strings.CutPrefix(k, "embeds "); ok {
					for x := range s.methods[e] {
						changed = changed || !m[x]
						m[x] = true
					}
				}
			}
		}
	}
}
