package probe

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lag-monitor/lag-monitor/internal/conn"
	"github.com/lag-monitor/lag-monitor/internal/servers"
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

// What a full disk leaves of a line is ended before the next one, which would be a part of it.
func TestFileDiskFull(t *testing.T) {
	dir := servers.Tmpfs(t, 1)
	c := NewFile()
	c.Path = filepath.Join(dir, "app.log")
	inj, err := c.Open()
	if err != nil {
		t.Fatal(err)
	}
	// On a full disk a file may still grow to the end of its last page.
	before, page := strings.Repeat("x", 10), os.Getpagesize()
	if err := os.WriteFile(c.Path, []byte(strings.Repeat("\n", page-20)+before+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	free := servers.Fill(t, dir)
	m := Sample()
	if err := inj.Inject(t.Context(), m); err == nil || IsRefused(err) {
		t.Errorf("with room for a part: %v, refused %t", err, IsRefused(err))
	}
	if err := inj.Inject(t.Context(), m); !IsRefused(err) {
		t.Errorf("without room: %v, refused %t", err, IsRefused(err))
	}
	free()
	for range 2 {
		if err := inj.Inject(t.Context(), m); err != nil {
			t.Error(err)
		}
	}
	line := `{"heartbeat":"` + m.Token + `"}` + "\n"
	got, err := os.ReadFile(c.Path)
	if want := before + "\n" + line[:9] + "\n" + line + line; err != nil || strings.TrimLeft(string(got), "\n") != want {
		t.Errorf("the file holds %q (%v), want %q", strings.TrimLeft(string(got), "\n"), err, want)
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
