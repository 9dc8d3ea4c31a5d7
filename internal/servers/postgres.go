package servers

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// PostgresOptions says what a server offers. The zero value lets everybody in from loopback who names a role that exists.
type PostgresOptions struct {
	// Password makes everybody but the superuser log in with a password, by SCRAM.
	Password bool
	// TLS adds a certificate for 127.0.0.1 and localhost, made for this server. Plain connections stay possible.
	TLS bool
	// Config is further lines of postgresql.conf.
	Config string
}

// PostgresServer is a PostgreSQL server as a process of its own, on TCP alone. It keeps its data over Stop and Kill; it
// does not wait for the disk, so it would not over a loss of power.
type PostgresServer struct {
	*Process
	Addr string   // host:port; the superuser is postgres, and so is its database
	TLS  TLSFiles // PEM files, empty unless TLS
	data string
}

// nobody is the user and the group that a server runs as when the test runs as root, since it refuses to run as root itself.
const nobody = 65534

// asNobody is how setpriv makes a process nobody's that can still read what root has installed, and go where the test's directory is. The
// securebit is for access(2), by which the server looks for its own files.
var asNobody = []string{"--reuid=65534", "--regid=65534", "--clear-groups", "--securebits=+no_setuid_fixup", "--pdeathsig=KILL",
	"--inh-caps=-all,+dac_override,+dac_read_search", "--ambient-caps=-all,+dac_override,+dac_read_search", "--"}

// Postgres starts a server and returns when it takes connections.
func Postgres(t testing.TB, opts PostgresOptions) *PostgresServer {
	t.Helper()
	home := installed(t, "postgres")
	dir := t.TempDir()
	data := filepath.Join(dir, "data")
	p := &PostgresServer{Addr: FreeAddr(t), data: data}
	libraries, _ := filepath.Glob(filepath.Join(home, "usr/lib/*-linux-gnu*"))
	command := func(name string, args ...string) *exec.Cmd {
		cmd := exec.Command(filepath.Join(home, "bin", name), args...)
		if os.Getuid() == 0 {
			cmd = exec.Command("setpriv", append(slices.Concat(asNobody, []string{cmd.Path}), args...)...)
		}
		cmd.Dir = "/"
		cmd.Env = append(os.Environ(), "LD_LIBRARY_PATH="+strings.Join(libraries, ":"), "LC_ALL=C", "TZ=UTC")
		return cmd
	}
	own := func(path string) {
		if os.Getuid() != 0 {
			return
		}
		if err := os.Chown(path, nobody, nobody); err != nil {
			t.Fatal(err)
		}
	}
	own(dir)
	init := command("initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync", "--no-instructions")
	if out, err := init.CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v\n%s", err, out)
	}
	host, port, err := net.SplitHostPort(p.Addr)
	if err != nil {
		t.Fatal(err)
	}
	method := "trust"
	if opts.Password {
		method = "scram-sha-256"
	}
	config := []string{
		"listen_addresses = '" + host + "'", "port = " + port, "unix_socket_directories = ''", "max_connections = 60",
		"shared_buffers = 32MB", "fsync = off", "full_page_writes = off", "jit = off", "autovacuum = off", "wal_level = replica",
		"log_timezone = UTC", "timezone = UTC",
	}
	if opts.TLS {
		p.TLS = makeTLS(t, dir)
		own(p.TLS.ServerKey)
		config = append(config, "ssl = on", "ssl_cert_file = '"+p.TLS.ServerCert+"'", "ssl_key_file = '"+p.TLS.ServerKey+"'")
	}
	for name, text := range map[string]string{
		"postgresql.conf": strings.Join(append(config, opts.Config, ""), "\n"),
		"pg_hba.conf": "host all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 " + method +
			"\nhost replication all 127.0.0.1/32 trust\n",
	} {
		own(writeFile(t, data, name, text))
	}
	p.Process = startProcess(t, "postgres", dir, func() *exec.Cmd { return command("postgres", "-D", data) }, p.answers)
	t.Cleanup(p.Kill) // its children notice the end of their parent alone a little later, and may write into what is removed then
	return p
}

// answers reports whether the server takes connections: one that recovers yet says so with an error, whose first byte is E. It
// asks for TLS, which is answered with one byte before anything else is looked at, and then says hello.
func (p *PostgresServer) answers(ctx context.Context) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", p.Addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(2 * time.Second))
	hello := "\x00\x03\x00\x00user\x00postgres\x00database\x00postgres\x00\x00"
	if _, err := conn.Write(append([]byte{0, 0, 0, byte(len(hello) + 4)}, hello...)); err != nil {
		return err
	}
	first := make([]byte, 1)
	if _, err := io.ReadFull(conn, first); err != nil {
		return err
	}
	if first[0] != 'R' {
		rest, _ := io.ReadAll(io.LimitReader(conn, 1000))
		return &net.OpError{Op: "hello", Net: "tcp", Err: &net.AddrError{Err: string(rest), Addr: p.Addr}}
	}
	return nil
}

// Stop ends the server as its operator would who does not wait for its clients: they are told and disconnected.
func (p *PostgresServer) Stop() { p.end(syscall.SIGINT) }

// Kill ends the server and its children at once; it recovers when it starts again. The server ends its children itself, since
// each one is a process group of its own.
func (p *PostgresServer) Kill() { p.end(syscall.SIGQUIT) }

// Pause freezes the server and its children, each of which is a process group of its own.
func (p *PostgresServer) Pause() {
	p.Process.Pause() // from now on there are no more of them
	for _, pid := range p.children() {
		p.tell(pid, syscall.SIGSTOP)
		for end := time.Now().Add(stopDeadline); !standsStill(pid); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				p.t.Errorf("%s: its child %d does not stand still after SIGSTOP", p.name, pid)
				return
			}
		}
	}
}

// Resume lets a paused server go on.
func (p *PostgresServer) Resume() {
	for _, pid := range p.children() {
		p.tell(pid, syscall.SIGCONT)
	}
	p.Process.Resume()
}

func (p *PostgresServer) tell(pid int, sig syscall.Signal) {
	if err := syscall.Kill(pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		p.t.Errorf("%s: signal %v to its child %d: %v", p.name, sig, pid, err)
	}
}

// children returns the processes that the server has started, by what /proc says of all.
func (p *PostgresServer) children() (pids []int) {
	parent := p.Pid()
	if parent == 0 {
		return nil
	}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		stat, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		// Behind the name, which is in brackets and may hold anything, stand the state and the parent.
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if len(fields) > 1 && fields[1] == strconv.Itoa(parent) {
			if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path))); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// Standby makes the server, which is stopped, a standby that has lost its master, until it is promoted.
func (p *PostgresServer) Standby() {
	p.t.Helper()
	writeFile(p.t, p.data, "standby.signal", "")
	if os.Getuid() == 0 {
		if err := os.Chown(filepath.Join(p.data, "standby.signal"), nobody, nobody); err != nil {
			p.t.Fatal(err)
		}
	}
}

func (p *PostgresServer) end(sig syscall.Signal) {
	p.t.Helper()
	p.signal(sig)
	if !p.wait(stopDeadline) {
		p.Process.Kill()
		p.t.Errorf("%s did not end within %v after %v; end of its log:\n%s", p.name, stopDeadline, sig, p.LogTail())
	}
}
