package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// The files that are checked in are those that this program writes.
func TestFilesAreGenerated(t *testing.T) {
	made := files()
	for name, d := range made {
		want, err := encode(d)
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(filepath.Join("..", name))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s is not what this program writes: run `cd dashboards/gen && go run .`", name)
		}
	}
	there, err := filepath.Glob("../*.json")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range there {
		if _, ok := made[filepath.Base(path)]; !ok {
			t.Errorf("nothing writes %s", path)
		}
	}
}

func TestDocsListEachPanel(t *testing.T) {
	got, err := os.ReadFile(docsFile)
	if err != nil {
		t.Fatal(err)
	}
	want, err := documented(string(got))
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("%s is not what this program writes: run `cd dashboards/gen && go run .`", docsFile)
	}
}

// every calls f for each panel, those inside of folded rows too.
func every(d dashboard, f func(p panel)) {
	var walk func([]panel)
	walk = func(ps []panel) {
		for _, p := range ps {
			f(p)
			if p.Panels != nil {
				walk(*p.Panels)
			}
		}
	}
	walk(d.Panels)
}

func each(t *testing.T, f func(t *testing.T, d dashboard)) {
	for name, d := range files() {
		t.Run(strings.TrimSuffix(name, ".json"), func(t *testing.T) { f(t, d) })
	}
}

func TestLayout(t *testing.T) {
	each(t, func(t *testing.T, d dashboard) {
		// Panels that are seen together: all that are in no folded row, and those of each folded row.
		together := [][]panel{nil}
		for _, p := range d.Panels {
			together[0] = append(together[0], p)
			if p.Panels != nil && len(*p.Panels) > 0 {
				together = append(together, append([]panel{p}, *p.Panels...))
			}
		}
		for _, ps := range together {
			for i, p := range ps {
				g := p.GridPos
				if g.X < 0 || g.Y < 0 || g.W < 1 || g.H < 1 || g.X+g.W > full {
					t.Errorf("%s is not on the grid: %+v", p.Title, g)
				}
				for _, other := range ps[:i] {
					if o := other.GridPos; g.X < o.X+o.W && o.X < g.X+g.W && g.Y < o.Y+o.H && o.Y < g.Y+g.H {
						t.Errorf("%s %+v lies over %s %+v", p.Title, g, other.Title, o)
					}
				}
			}
		}
		ids := map[int]string{}
		every(d, func(p panel) {
			if p.ID == 0 || ids[p.ID] != "" {
				t.Errorf("%s and %q have the id %d", p.Title, ids[p.ID], p.ID)
			}
			ids[p.ID] = p.Title
			if p.Type == "row" && (p.GridPos.W != full || p.GridPos.H != 1 || *p.Collapsed != (len(*p.Panels) > 0)) {
				t.Errorf("row %s: %+v, collapsed %v with %d panels inside", p.Title, p.GridPos, *p.Collapsed, len(*p.Panels))
			}
		})
	})
}

// A dashboard is documentation too: each panel says what it shows, in which unit, and how to read it.
func TestEachPanelSaysWhatItIs(t *testing.T) {
	each(t, func(t *testing.T, d dashboard) {
		texts, folded := 0, 0
		every(d, func(p panel) {
			if p.Title == "" {
				t.Errorf("panel %d has no title", p.ID)
			}
			switch p.Type {
			case "text":
				texts++
				return
			case "row":
				if *p.Collapsed {
					folded++
				}
				return
			case "table", "heatmap", "nodeGraph": // have units of their own
			default:
				if p.FieldConfig.Defaults.Unit == "" {
					t.Errorf("%s has no unit", p.Title)
				}
			}
			if len(p.Description) < 20 || !strings.HasSuffix(p.Description, ".") {
				t.Errorf("%s: description %q", p.Title, p.Description)
			}
			if p.Datasource == nil || *p.Datasource != prometheus() {
				t.Errorf("%s: data source %v", p.Title, p.Datasource)
			}
			refs := map[string]bool{}
			for _, q := range p.Targets {
				if q.RefID == "" || refs[q.RefID] {
					t.Errorf("%s: two queries are called %q", p.Title, q.RefID)
				}
				refs[q.RefID] = true
				if q.Datasource != prometheus() {
					t.Errorf("%s: data source %v of a query", p.Title, q.Datasource)
				}
			}
			if len(refs) == 0 {
				t.Errorf("%s has no query", p.Title)
			}
		})
		if texts < 2 || folded < 1 {
			t.Errorf("%d text panels, %d folded rows", texts, folded)
		}
		if d.Description == "" || d.UID == "" || len(d.UID) > 40 {
			t.Errorf("uid %q, description %q", d.UID, d.Description)
		}
	})
}

var (
	// A variable, as Grafana finds them, but for $1 of label_replace.
	variableUse = regexp.MustCompile(`\$([a-zA-Z_]\w*)|\$\{([^}:]+)(:[^}]*)?\}`)
	toDashboard = regexp.MustCompile(`/d/([\w-]+)`)
)

// What a dashboard uses of variables and other dashboards is there.
func TestVariablesAndLinks(t *testing.T) {
	uids := map[string]bool{}
	for _, d := range files() {
		if uids[d.UID] {
			t.Errorf("two dashboards are called %s", d.UID)
		}
		uids[d.UID] = true
	}
	each(t, func(t *testing.T, d dashboard) {
		text, err := json.Marshal(d)
		if err != nil {
			t.Fatal(err)
		}
		known := []string{"__url_time_range", "__value.raw", "__data.fields.job", "__data.fields.probe", "__field.labels.job", "__field.labels.probe"}
		for i, v := range d.Templating.List {
			for _, m := range variableUse.FindAllStringSubmatch(v.Query, -1) {
				if !slices.Contains(known, m[1]+m[2]) {
					t.Errorf("variable %s asks for %s, which is not before it", v.Name, m[0])
				}
			}
			known = append(known, v.Name)
			if v.Label == "" || v.Description == "" {
				t.Errorf("variable %s has no label or no description", v.Name)
			}
			if i == 0 && v.Name != "datasource" {
				t.Errorf("the first variable is %s", v.Name)
			}
			used := 0
			for _, m := range variableUse.FindAllStringSubmatch(string(text), -1) {
				if m[1]+m[2] == v.Name {
					used++
				}
			}
			if used == 0 {
				t.Errorf("nothing uses the variable %s", v.Name)
			}
		}
		for _, m := range variableUse.FindAllStringSubmatch(string(text), -1) {
			if name := m[1] + m[2]; !slices.Contains(known, name) && name != "__all" {
				t.Errorf("there is no variable %s", m[0])
			}
		}
		for _, m := range toDashboard.FindAllStringSubmatch(string(text), -1) {
			if !uids[m[1]] {
				t.Errorf("there is no dashboard %s", m[1])
			}
		}
	})
}
