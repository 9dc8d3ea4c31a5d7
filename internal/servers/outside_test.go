package servers_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/lag-monitor/lag-monitor/internal/servers"
)

// A program gets what a test would: the failure, and all cleanups in the reverse order.
func TestOutside(t *testing.T) {
	var done []int
	var dir string
	var out strings.Builder
	err := servers.Outside(t.Context(), &out, func(tb testing.TB) {
		dir = tb.TempDir()
		for i := range 3 {
			tb.Cleanup(func() { done = append(done, i) })
		}
		if _, err := os.Stat(dir); err != nil {
			t.Error(err)
		}
		tb.Logf("so far %s", "good")
		tb.Fatalf("the server %d is gone", 7)
		t.Error("it went on after a fatal failure")
	})
	if err == nil || err.Error() != "the server 7 is gone" {
		t.Errorf("error %v", err)
	}
	if fmt.Sprint(done) != "[2 1 0]" || out.String() != "so far good\n" {
		t.Errorf("cleanups %v, output %q", done, &out)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("the directory is still there: %v", err)
	}
	if err := servers.Outside(t.Context(), &out, func(tb testing.TB) { tb.Errorf("wrong") }); err == nil {
		t.Error("an error was no failure")
	}
	if err := servers.Outside(t.Context(), &out, func(testing.TB) {}); err != nil {
		t.Error(err)
	}
}
