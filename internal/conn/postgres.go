package conn

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgconn/ctxwatch"
)

// Postgres says how to reach a PostgreSQL server.
type Postgres struct {
	// Addresses are host:port of the server; of several, the one that is no standby is used.
	Addresses []string `yaml:"addresses"`
	// Database to connect to.
	Database string `yaml:"database"`
	// Username and Password log in; without a password the server trusts us, or the client certificate of TLS.
	Username string `yaml:"username"`
	Password Secret `yaml:"password,omitempty"`
	// TLS encrypts.
	TLS *TLS `yaml:"tls,omitempty"`
	// ApplicationName is how the server names us in pg_stat_activity and in its log.
	ApplicationName string `yaml:"application_name,omitempty"`
	// Timeout bounds connecting, and each answer.
	Timeout Duration `yaml:"timeout,omitempty"`
}

// NewPostgres returns the defaults.
func NewPostgres() Postgres {
	return Postgres{ApplicationName: UserAgent, Timeout: Duration(5 * time.Second)}
}

const (
	minPostgresTimeout = time.Second
	maxPostgresTimeout = 20 * time.Second
	// postgresClose bounds the farewell, and what it takes to cancel a command that is being carried out.
	postgresClose = 300 * time.Millisecond
	// postgresMessage is the longest row in bytes that is read.
	postgresMessage = 64 << 20
	// postgresIdle is how long the server waits for us inside a transaction before it ends it. An open one keeps the server from
	// cleaning up, and a machine that has vanished does not say so.
	postgresIdle = 30 * time.Second
)

// Validate reports every mistake as a FieldError.
func (c *Postgres) Validate() error {
	var errs []error
	if len(c.Addresses) == 0 {
		errs = append(errs, Field("addresses", "is required: a list such as [postgres:5432]"))
	}
	for i, a := range c.Addresses {
		host, port, err := net.SplitHostPort(a)
		if n, perr := strconv.ParseUint(port, 10, 16); err != nil || perr != nil || n == 0 || host == "" || strings.Contains(host, "/") {
			errs = append(errs, Field(fmt.Sprintf("addresses[%d]", i), "%q is not of the form host:port", a))
		}
	}
	if c.Database == "" {
		errs = append(errs, Field("database", "is required"))
	}
	if c.Username == "" {
		errs = append(errs, Field("username", "is required"))
	}
	if !c.Password.IsZero() {
		errs = append(errs, Prefix("password", c.Password.Validate()))
	}
	if c.Timeout < Duration(minPostgresTimeout) || c.Timeout > Duration(maxPostgresTimeout) {
		errs = append(errs, Field("timeout", "is between %s and %s", minPostgresTimeout, maxPostgresTimeout))
	}
	return errors.Join(append(errs, Prefix("tls", c.TLS.Validate()))...)
}

// PostgresLink is one connection, for one goroutine. It does not reconnect. Errors of its embedded connection go through Error.
type PostgresLink struct {
	*pgconn.PgConn
	timeout time.Duration
	hide    Redactor
	end     context.CancelFunc // ends what is being dialled

	mu     sync.Mutex
	closed bool
	raw    []net.Conn // every connection that was made for this one
}

// Connect makes a connection to a server that is no standby. notify is called with the payload of each notification, by the goroutine
// that uses the link; it may be nil.
func (c *Postgres) Connect(ctx context.Context, notify func(payload string)) (*PostgresLink, error) {
	config, l, err := c.config(notify)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(c.Timeout))
	defer cancel()
	// Each address has its part of the time, so that one that is silent leaves some to the next.
	by, _ := ctx.Deadline()
	config.ConnectTimeout = max(time.Until(by)/time.Duration(len(c.Addresses)), time.Millisecond)
	if l.PgConn, err = pgconn.ConnectConfig(ctx, config); err != nil {
		l.Close()
		var lost *pgconn.ConnectError
		if errors.As(err, &lost) {
			err = lost.Unwrap() // without the user and the database, which the reader knows
		}
		return nil, l.Error(err)
	}
	return l, nil
}

// config makes the client's configuration. What the client finds in the environment and in the home directory is not used: a monitor's
// file says all.
func (c *Postgres) config(notify func(string)) (*pgconn.Config, *PostgresLink, error) {
	config, err := pgconn.ParseConfig("host=127.0.0.1 port=5432 user=u database=d target_session_attrs=any passfile=/dev/null connect_timeout=0 " +
		"min_protocol_version=3.0 max_protocol_version=3.0 require_auth='' channel_binding=prefer " +
		"sslmode=disable sslrootcert='' sslcert='' sslkey='' sslsni=1 sslnegotiation=postgres sslcertmode=allow")
	if err != nil {
		return nil, nil, err
	}
	secure, err := c.TLS.Config()
	if err != nil {
		return nil, nil, fmt.Errorf("tls: %w", err)
	}
	config.Password = ""
	l := &PostgresLink{timeout: time.Duration(c.Timeout)}
	if !c.Password.IsZero() {
		if config.Password, err = c.Password.Read(); err != nil {
			return nil, nil, WithClass(Auth, fmt.Errorf("password: %w", err))
		}
		l.hide = NewRedactor(config.Password)
	}
	config.User, config.Database = c.Username, c.Database
	config.Fallbacks = nil
	for i, a := range c.Addresses {
		host, port, err := net.SplitHostPort(a)
		if err != nil {
			return nil, nil, err
		}
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil {
			return nil, nil, err
		}
		own := secure
		if own != nil && own.ServerName == "" {
			own = own.Clone()
			own.ServerName = host
		}
		if i == 0 {
			config.Host, config.Port, config.TLSConfig = host, uint16(n), own
		} else {
			config.Fallbacks = append(config.Fallbacks, &pgconn.FallbackConfig{Host: host, Port: uint16(n), TLSConfig: own})
		}
	}
	config.SSLNegotiation, config.SSLCertMode, config.RequireAuth, config.ChannelBinding = "", "", "", "prefer"
	config.MaxProtocolMessageBodyLen = postgresMessage
	config.RuntimeParams = map[string]string{"application_name": c.ApplicationName, "client_encoding": "UTF8", "datestyle": "ISO", "timezone": "UTC"}
	config.ValidateConnect = func(ctx context.Context, p *pgconn.PgConn) error {
		rows, err := p.Exec(ctx, "select pg_is_in_recovery()").ReadAll()
		if err == nil && len(rows) == 1 && len(rows[0].Rows) == 1 && string(rows[0].Rows[0][0]) == "t" {
			err = WithClass(Network, errors.New("the server is a standby"))
		}
		return err
	}
	config.OnPgError = func(_ *pgconn.PgConn, err *pgconn.PgError) bool {
		return err.SeverityUnlocalized != "FATAL" && err.Severity != "FATAL"
	}
	if notify != nil {
		config.OnNotification = func(_ *pgconn.PgConn, n *pgconn.Notification) { notify(n.Payload) }
	}
	config.BuildContextWatcherHandler = func(p *pgconn.PgConn) ctxwatch.Handler {
		return &pgconn.DeadlineContextWatcherHandler{Conn: p.Conn()}
	}
	life, end := context.WithCancel(context.Background())
	l.end = end
	dialer := &net.Dialer{KeepAlive: 15 * time.Second}
	config.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(life, cancel)()
		raw, err := dialer.DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.closed {
			raw.Close()
			return nil, net.ErrClosed
		}
		l.raw = append(l.raw, raw)
		return raw, nil
	}
	return config, l, nil
}

// Close says goodbye if it can and leaves nothing behind. A command that was broken off is cancelled at the server, which gets a moment
// for that. Several calls are one.
func (l *PostgresLink) Close() {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return
	}
	l.mu.Unlock()
	if l.PgConn != nil {
		if l.IsClosed() {
			select {
			case <-l.CleanupDone():
			case <-time.After(postgresClose):
			}
		} else {
			ctx, cancel := context.WithTimeout(context.Background(), postgresClose)
			l.PgConn.Close(ctx)
			cancel()
		}
	}
	l.end()
	l.mu.Lock()
	l.closed = true
	for _, raw := range l.raw {
		raw.Close()
	}
	l.mu.Unlock()
	if l.PgConn != nil {
		<-l.CleanupDone()
	}
}

// PostgresBegin is how a transaction begins, with further words for BEGIN.
func PostgresBegin(mode string) string {
	return fmt.Sprintf("begin %s; set local idle_in_transaction_session_timeout = %d", mode, postgresIdle.Milliseconds())
}

var errPostgresBroke = WithClass(Network, errors.New("the connection broke before the answer"))

// Do sends commands without parameters and returns the rows of the last one, as text, and its tag.
func (l *PostgresLink) Do(ctx context.Context, sql string) ([][][]byte, pgconn.CommandTag, error) {
	ctx, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	answer := l.Exec(ctx, sql)
	sent := !l.IsClosed()
	results, err := answer.ReadAll()
	if err != nil {
		if sent && l.IsClosed() && PostgresUnsent(err) {
			// It broke while the answer was awaited, of which the client says what it says of one that was closed before.
			err = errPostgresBroke
		}
		return nil, pgconn.CommandTag{}, l.Error(err)
	}
	if len(results) == 0 {
		return nil, pgconn.CommandTag{}, nil
	}
	last := results[len(results)-1]
	return last.Rows, last.CommandTag, nil
}

// Each sends one command with parameters, as text whose type the server knows, and calls row for each row of the answer: its values,
// which are only valid during the call, a nil one for NULL. An error of row ends it, and the link. The deadline is that of each row.
func (l *PostgresLink) Each(ctx context.Context, sql string, args [][]byte, row func(fields []pgconn.FieldDescription, values [][]byte) error) (pgconn.CommandTag, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	overdue := WithClass(Network, fmt.Errorf("no answer within %s", l.timeout))
	watch := time.AfterFunc(l.timeout, func() { cancel(overdue) })
	defer watch.Stop()
	answer := l.ExecParams(ctx, sql, args, nil, nil, nil)
	var failed error
	for answer.NextRow() {
		watch.Reset(l.timeout)
		if failed == nil && row != nil {
			if failed = row(answer.FieldDescriptions(), answer.Values()); failed != nil {
				cancel(failed)
			}
		}
	}
	tag, err := answer.Close()
	if failed != nil {
		return tag, failed
	}
	if err != nil && errors.Is(context.Cause(ctx), overdue) {
		err = overdue
	}
	return tag, l.Error(err)
}

// Error gives what the client says its class, and takes the password out of it. It returns nil for nil.
func (l *PostgresLink) Error(err error) error {
	if err == nil {
		return nil
	}
	return l.hide.Error(postgresClass(err))
}

func postgresClass(err error) error {
	var c *classified
	if errors.As(err, &c) {
		return err
	}
	var said *pgconn.PgError
	if !errors.As(err, &said) {
		if errors.Is(err, pgconn.ErrConnClosed) || pgconn.Timeout(err) {
			return WithClass(Network, err)
		}
		return err
	}
	state := said.Code
	class := Other
	switch {
	case state == "42501", strings.HasPrefix(state, "28"): // insufficient_privilege, invalid authorization
		class = Auth
	case state == "3D000", state == "3F000", state == "42P01", state == "42703", state == "42883": // database, schema, table, column, function
		class = Missing
	case strings.HasPrefix(state, "53"): // too many connections, out of memory, disk full
		class = Throttle
	case strings.HasPrefix(state, "08"), strings.HasPrefix(state, "57"), state == "25006", state == "25P03": // lost, shut down or starting, a standby, idle too long
		class = Network
	}
	return WithClass(class, err)
}

// PostgresSaid reports whether the error is the server's word that a command was not carried out, on a connection that goes on: what it
// says when it ends the connection tells nothing about a COMMIT that it may have carried out before.
func PostgresSaid(err error) bool {
	var said *pgconn.PgError
	return errors.As(err, &said) && said.Severity != "FATAL" && said.Severity != "PANIC" &&
		said.SeverityUnlocalized != "FATAL" && said.SeverityUnlocalized != "PANIC" &&
		!strings.HasPrefix(said.Code, "08") && !strings.HasPrefix(said.Code, "57P") && said.Code != "40003"
}

// PostgresUnsent reports whether the error came before anything was sent.
func PostgresUnsent(err error) bool { return pgconn.SafeToRetry(err) }
