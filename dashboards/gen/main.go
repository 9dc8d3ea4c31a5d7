package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
)

// files holds the dashboards by the name of their file in the folder above.
func files() map[string]dashboard {
	return map[string]dashboard{
		"fleet.json":         fleet(),
		"probe.json":         probe(),
		"probe-mermaid.json": probeMermaid(),
	}
}

// encode is the text of a dashboard's file.
func encode(d dashboard) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(d); err != nil {
		return nil, fmt.Errorf("%s: %w", d.Title, err)
	}
	return b.Bytes(), nil
}

func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

func main() {
	if err := write(); err != nil {
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1)
	}
}

// write writes all files anew.
func write() error {
	for name, d := range files() {
		b, err := encode(d)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join("..", name), b, 0o644); err != nil {
			return err
		}
	}
	before, err := os.ReadFile(docsFile)
	if err != nil {
		return err
	}
	text, err := documented(string(before))
	if err != nil {
		return err
	}
	return os.WriteFile(docsFile, []byte(text), 0o644)
}
