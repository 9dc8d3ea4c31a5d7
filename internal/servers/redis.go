package servers

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// RedisServer is a Redis server as a process of its own. Every write is on its disk before it is answered, so that
// a kill loses nothing.
type RedisServer struct {
	*Process
	Addr string // host:port
}

// Redis starts a server, with further arguments of redis-server, and returns when it answers.
func Redis(t testing.TB, args ...string) *RedisServer {
	t.Helper()
	binary := filepath.Join(installed(t, "redis"), "bin", "redis-server")
	dir := t.TempDir()
	r := &RedisServer{Addr: FreeAddr(t)}
	_, port, err := net.SplitHostPort(r.Addr)
	if err != nil {
		t.Fatal(err)
	}
	r.Process = startProcess(t, "redis", dir, func() *exec.Cmd {
		return exec.Command(binary, append([]string{"--port", port, "--bind", "127.0.0.1", "--dir", dir, "--save", "",
			"--appendonly", "yes", "--appendfsync", "always"}, args...)...)
	}, r.answers)
	return r
}

// answers reports whether the server takes commands: one that reads its data yet says LOADING.
func (r *RedisServer) answers(ctx context.Context) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", r.Addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Second))
	if _, err := fmt.Fprint(conn, "PING\r\n"); err != nil {
		return err
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err == nil && strings.HasPrefix(line, "-LOADING") {
		err = errors.New(strings.TrimSpace(line))
	}
	return err
}
