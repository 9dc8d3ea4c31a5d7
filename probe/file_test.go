package probe

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lag-monitor/lag-monitor/internal/conn"
)

func TestFile(t *testing.T) {
	c := NewFile()
	c.Path, c.Body = filepath.Join(t.TempDir(), "app.log"), MustTemplate("level=info msg={{ .Token }}")
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	inj, err := c.Open()
	if err != nil {
		t.Fatal(err)
	}
	m := Sample()
	if err := inj.Inject(t.Context(), m); !IsRefused(err) || conn.ClassOf(err) != conn.Missing {
		t.Errorf("without the file: %v of class %s, refused %t", err, conn.ClassOf(err), IsRefused(err))
	}
	c.Create = true
	for range 2 {
		if err := inj.Inject(t.Context(), m); err != nil {
			t.Error(err)
		}
	}
	got, err := os.ReadFile(c.Path)
	if want := strings.Repeat("level=info msg="+m.Token+"\n", 2); err != nil || string(got) != want {
		t.Errorf("the file holds %q (%v), want %q", got, err, want)
	}
}

func TestFileValidate(t *testing.T) {
	c := NewFile()
	c.Body = MustTemplate("{{ .Token }}\n")
	want := "path: is required\nbody: is one line: it must not hold a line break"
	if got := c.Validate().Error(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
