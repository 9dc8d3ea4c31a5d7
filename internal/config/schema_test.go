package config

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"gopkg.in/yaml.v3"
)

const schemaFile = "../../config.schema.json"

// TestSchema: the schema in the repository is the one of the code. go test ./internal/config -run TestSchema
// -update writes it.
func TestSchema(t *testing.T) {
	want, err := Schema([]byte(readExample(t)))
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(schemaFile, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(schemaFile)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("config.schema.json is not what the code gives: run go test ./internal/config -run TestSchema -update")
	}
	var root node
	if err := json.Unmarshal(want, &root); err != nil {
		t.Fatal(err)
	}
	described := 0
	var visit func(v any, path string)
	visit = func(v any, path string) {
		n, ok := v.(map[string]any)
		if !ok {
			return
		}
		props, _ := n["properties"].(map[string]any)
		for k, p := range props {
			if len(path) > 0 && strings.Contains(path, "[anyOf]") {
				continue
			}
			if d, _ := p.(map[string]any)["description"].(string); d == "" {
				t.Errorf("%s.%s has no description", path, k)
			}
			described++
			visit(p, path+"."+k)
		}
		visit(n["additionalProperties"], path+".*")
		visit(n["items"], path+"[]")
	}
	visit(root, "")
	if described < 150 {
		t.Errorf("only %d keys were looked at", described)
	}
}

func compile(t *testing.T, schema any) *jsonschema.Schema {
	t.Helper()
	b, err := json.Marshal(schema)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource(schemaID, doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile(schemaID)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// validate says what an editor would say of a file.
func validate(t *testing.T, s *jsonschema.Schema, text []byte) error {
	t.Helper()
	var v any
	if err := yaml.Unmarshal(text, &v); err != nil {
		return err
	}
	// Through JSON, so that the values are those of JSON.
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(b))
	if err != nil {
		return err
	}
	return s.Validate(doc)
}

// TestSchemaAccepts: the example, which begins by naming the schema to editors, and files that are good.
func TestSchemaAccepts(t *testing.T) {
	text := readExample(t)
	if !strings.HasPrefix(text, "# yaml-language-server: $schema="+filepath.Base(schemaFile)+"\n") {
		t.Error("the example does not begin with the line that names the schema to editors")
	}
	texts, err := comments([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	s := compile(t, schemaOf(registered(), texts))
	for name, text := range map[string]string{
		"example":                     text,
		"a number as text":            "global: {labels: {shard: 7, on: true}, instance: 5}\n",
		"durations":                   "global: {interval: 1m30s, timeout: 1d, send_timeout: .5s, max_skew: 0, page: {lag: 2w, drop_ratio: 0.5}}\n",
		"a ratio in percent":          "global: {page: {drop_ratio: 0.1%}}\n",
		"empty blocks":                "global:\nsinks:\nprobes:\n",
		"a status as number and text": "probes: {p: {inject: {http: {url: 'http://x/{{ .Token }}', accept: [202, 2xx]}}}}\n",
	} {
		if err := validate(t, s, []byte(text)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	good := good
	if err := validate(t, compile(t, schemaOf(testKinds(), nil)), []byte(good)); err != nil {
		t.Errorf("the loader's good file: %v", err)
	}
}

// TestSchemaRefusesBad: what is wrong by shape is seen in the editor already. The rows that a schema cannot know
// for bad are in testdata/beyond-schema.txt, which -update writes: it knows no other file, compares no two values,
// understands no unit and runs no template.
func TestSchemaRefusesBad(t *testing.T) {
	s := compile(t, schemaOf(testKinds(), nil))
	rows, err := filepath.Glob("testdata/bad/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	var accepted strings.Builder
	for _, row := range rows {
		name := strings.TrimSuffix(filepath.Base(row), ".txtar")
		ar, err := txtar.ParseFile(row)
		if err != nil {
			t.Fatal(err)
		}
		refused := false
		for _, f := range ar.Files {
			if strings.HasSuffix(f.Name, ".yaml") {
				refused = refused || validate(t, s, f.Data) != nil
			}
		}
		if refused {
			continue
		}
		fmt.Fprintln(&accepted, name)
		for _, shape := range []string{"bad-", "key-", "label-", "no-kind-", "null-", "probe-is-", "required-", "secret-", "two-known-kinds", "unknown-key", "unknown-kind", "want-"} {
			if strings.HasPrefix(name, shape) {
				t.Errorf("%s: the schema accepts it", name)
			}
		}
	}
	const golden = "testdata/beyond-schema.txt"
	if *update {
		if err := os.WriteFile(golden, []byte(accepted.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got := accepted.String(); got != string(want) {
		t.Errorf("the schema accepts\n%s\nwant\n%s\ngo test ./internal/config -run TestSchema -update writes the list", got, want)
	}
}
