package servers

import (
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha512"
	"encoding/base64"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// MosquittoOptions says what a broker offers. The zero value lets everybody in, who may do everything.
type MosquittoOptions struct {
	// Users by name, with their passwords; without them nobody needs to log in.
	Users map[string]string
	// ACL is the text of an access control file.
	ACL string
	// TLS adds a listener with a certificate for 127.0.0.1 and localhost, made for this broker, that wants a client
	// certificate.
	TLS bool
	// Config is further lines of mosquitto.conf.
	Config string
}

// MosquittoServer is an MQTT broker as a process of its own. It writes its sessions and their messages to disk when it
// is stopped; Kill loses them.
type MosquittoServer struct {
	*Process
	Addr    string // host:port; always there
	TLSAddr string // empty unless TLS

	TLS TLSFiles // PEM files, empty unless TLS

	users     map[string]string
	passwords string // the file with them
}

// Mosquitto starts a broker and returns when it takes connections.
func Mosquitto(t testing.TB, opts MosquittoOptions) *MosquittoServer {
	t.Helper()
	binary := filepath.Join(installed(t, "mosquitto"), "bin", "mosquitto")
	dir := t.TempDir()
	m := &MosquittoServer{Addr: FreeAddr(t)}
	listener := func(addr string) string {
		host, port, _ := strings.Cut(addr, ":")
		return "listener " + port + " " + host
	}
	config := []string{
		"persistence true", "persistence_location " + dir + "/",
		"log_dest stdout", "log_type error", "log_type warning", "log_type notice", "per_listener_settings false", "allow_anonymous " + fmt.Sprint(len(opts.Users) == 0),
	}
	if len(opts.Users) > 0 {
		m.users, m.passwords = maps.Clone(opts.Users), filepath.Join(dir, "passwords")
		m.writePasswords(t)
		config = append(config, "password_file "+m.passwords)
	}
	if opts.ACL != "" {
		config = append(config, "acl_file "+writeFile(t, dir, "acl", opts.ACL))
	}
	config = append(config, opts.Config, listener(m.Addr))
	if opts.TLS {
		m.TLS, m.TLSAddr = makeTLS(t, dir), FreeAddr(t)
		config = append(config, listener(m.TLSAddr), "cafile "+m.TLS.CA, "certfile "+m.TLS.ServerCert, "keyfile "+m.TLS.ServerKey,
			"require_certificate true")
	}
	if os.Getuid() == 0 {
		config = append(config, "user root") // or it would become one who may not read these files
	}
	path := writeFile(t, dir, "mosquitto.conf", strings.Join(append(config, ""), "\n"))
	m.Process = startProcess(t, "mosquitto", dir, func() *exec.Cmd { return exec.Command(binary, "-c", path) }, reachable(m.Addr))
	return m
}

func (m *MosquittoServer) writePasswords(t testing.TB) {
	t.Helper()
	var lines []string
	for name, password := range m.users {
		lines = append(lines, name+":"+mosquittoPassword(t, password))
	}
	writeFile(t, filepath.Dir(m.passwords), filepath.Base(m.passwords), strings.Join(lines, "\n")+"\n")
}

// SetPassword changes the password of a user. The broker ends connections that were made with the old one.
func (m *MosquittoServer) SetPassword(user, password string) {
	m.t.Helper()
	m.users[user] = password
	m.writePasswords(m.t)
	m.Signal(syscall.SIGHUP)
}

// mosquittoPassword is what the password file has of a password: PBKDF2 with SHA-512.
func mosquittoPassword(t testing.TB, password string) string {
	t.Helper()
	const iterations = 101
	salt := make([]byte, 12)
	rand.Read(salt)
	sum, err := pbkdf2.Key(sha512.New, password, salt, iterations, sha512.Size)
	if err != nil {
		t.Fatal(err)
	}
	b64 := base64.StdEncoding.EncodeToString
	return fmt.Sprintf("$7$%d$%s$%s", iterations, b64(salt), b64(sum))
}
