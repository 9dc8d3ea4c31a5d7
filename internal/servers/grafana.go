package servers

import (
	"path/filepath"
	"testing"
)

// GrafanaTypes returns the directory of Node modules that holds @grafana/schema, the types of Grafana's dashboards, and
// beside them ts-json-schema-generator and ajv, which hold a file against them.
func GrafanaTypes(t testing.TB) string {
	t.Helper()
	return filepath.Join(installed(t, "grafana"), "node_modules")
}
