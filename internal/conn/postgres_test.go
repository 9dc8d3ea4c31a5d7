package conn_test

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/conn"
	"github.com/lag-monitor/lag-monitor/internal/servers"
)

// An address that takes connections and says nothing, as a machine does that hangs, leaves time for the next. What is in the
// environment is not looked at.
func TestPostgresSilentAddress(t *testing.T) {
	server := servers.Postgres(t, servers.PostgresOptions{})
	for name, value := range map[string]string{
		"PGHOST": "nowhere.invalid", "PGUSER": "somebody", "PGDATABASE": "another", "PGSSLMODE": "verify-full", "PGSSLROOTCERT": "/nonexistent",
		"PGTARGETSESSIONATTRS": "standby", "PGREQUIREAUTH": "scram-sha-256", "PGCHANNELBINDING": "require", "PGOPTIONS": "-c search_path=none",
		"PGCONNECT_TIMEOUT": "soon", "PGPORT": "x", "PGSSLCERT": "/nonexistent", "PGSSLKEY": "/nonexistent", "PGSSLCERTMODE": "never",
		"PGSSLNEGOTIATION": "direct", "PGSSLSNI": "2", "PGTZ": "nowhere", "PGAPPNAME": "another",
		"PGMINPROTOCOLVERSION": "3.2", "PGMAXPROTOCOLVERSION": "3.2",
	} {
		t.Setenv(name, value)
	}
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	c := conn.NewPostgres()
	c.Addresses, c.Database, c.Username, c.Timeout = []string{silent.Addr().String(), server.Addr}, "postgres", "postgres", conn.Duration(4*time.Second)
	for deadline := time.Now().Add(time.Minute); ; {
		l, err := c.Connect(context.Background(), nil)
		if err == nil {
			l.Close()
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}
