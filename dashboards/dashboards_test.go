package dashboards_test

import (
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lag-monitor/lag-monitor/dashboards"
	"github.com/lag-monitor/lag-monitor/internal/servers"
)

func names(t *testing.T) []string {
	t.Helper()
	names, err := fs.Glob(dashboards.Files, "*")
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func TestFiles(t *testing.T) {
	if got, want := names(t), []string{"fleet.json", "probe-mermaid.json", "probe.json"}; !slices.Equal(got, want) {
		t.Errorf("Files holds %q; want %q", got, want)
	}
	for _, name := range names(t) {
		b, err := dashboards.Files.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		var d struct{ UID, Title string }
		if err := json.Unmarshal(b, &d); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if d.UID == "" || d.Title == "" {
			t.Errorf("%s has the uid %q and the title %q", name, d.UID, d.Title)
		}
	}
}

// Each dashboard is what Grafana's own types say that a dashboard may be.
func TestGrafanaTypes(t *testing.T) {
	modules := servers.GrafanaTypes(t)
	// Node looks for modules beside the file that asks for them.
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("schema")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(modules, filepath.Join(dir, "node_modules")); err != nil {
		t.Fatal(err)
	}
	validate := func(files ...string) (string, error) {
		out, err := exec.CommandContext(t.Context(), "node", append([]string{filepath.Join(dir, "validate.mjs")}, files...)...).CombinedOutput()
		return string(out), err
	}
	// Mistakes that must not pass: what is in a file, and what is put in its place. In one run with the files themselves, since
	// the schema takes seconds to make.
	mistakes := map[string]string{
		`"colorMode": "value"`:     `"colorMode": "valu"`,
		`"drawStyle": "line"`:      `"drawStile": "line"`,
		`"refId": "nodes"`:         `"refID": "nodes"`,
		`"id": "custom.lineStyle"`: `"id": "custom.lineStile"`,
		`"layoutAlgorithm": "laye`: `"layoutAlgorithm": "Laye`,
		`"editable": true`:         `"editabel": true`,
		`"placement": "bottom"`:    `"placement": "below"`,
		`"titleFormat": "{{alertn`: `"title_format": "{{alertn`,
		`"id": "calculateField"`:   `"id": "calculatefield"`,
		`"yHistogram": true`:       `"yHistogram": "yes"`,
		`"type": "timeseries"`:     `"type": "timeserie"`,
		`"multi": false`:           `"many": false`,
	}
	probe, err := dashboards.Files.ReadFile("probe.json")
	if err != nil {
		t.Fatal(err)
	}
	files := names(t)
	wrong := map[string]string{} // file → mistake
	for right, mistake := range mistakes {
		if !strings.Contains(string(probe), right) {
			t.Errorf("probe.json has no %s", right)
		}
		name := filepath.Join(dir, "wrong-"+strings.Map(func(r rune) rune {
			if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' {
				return r
			}
			return -1
		}, mistake)+".json")
		if err := os.WriteFile(name, []byte(strings.ReplaceAll(string(probe), right, mistake)), 0o600); err != nil {
			t.Fatal(err)
		}
		wrong[filepath.Base(name)] = mistake
		files = append(files, name)
	}
	out, err := validate(files...)
	for line := range strings.Lines(out) {
		if file, _, _ := strings.Cut(line, ": "); wrong[file] == "" {
			t.Error(strings.TrimSpace(line))
		}
	}
	for file, mistake := range wrong {
		if !strings.Contains(out, file+": ") {
			t.Errorf("%s passes", mistake)
		}
	}
	if err == nil {
		t.Error("exit code 0 in spite of mistakes")
	}
}
