package servers

import (
	"os"
	"path/filepath"
	"testing"
)

// dirEnv names the directory that install.sh filled.
const dirEnv = "LAG_MONITOR_TEST_SERVERS"

// Need leaves the test out, and says so, when the environment variable LAG_MONITOR_TEST_SERVERS is not
// set. Every function of this package that starts an installed server calls it first; a test calls it
// itself when it would do slow work before. Servers that run in this process need nothing.
func Need(t testing.TB) {
	t.Helper()
	if os.Getenv(dirEnv) == "" {
		t.Skipf("left out: needs real servers, and %s is not set; `make test` installs them and runs this test", dirEnv)
	}
}

// installed returns the directory of one installed server.
func installed(t testing.TB, name string) string {
	t.Helper()
	Need(t)
	dir, err := filepath.Abs(filepath.Join(os.Getenv(dirEnv), name))
	if err != nil {
		t.Fatal(err)
	}
	// install.sh writes the stamp last: without it the directory is not one of its making.
	if _, err := os.Stat(filepath.Join(dir, ".stamp")); err != nil {
		t.Fatalf("%s is not installed in %s: run internal/servers/install.sh (%v)", name, os.Getenv(dirEnv), err)
	}
	return dir
}
