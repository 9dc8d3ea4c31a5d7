package probe

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/lag-monitor/lag-monitor/internal/conn"
)

// PostgresConfig is `inject: {postgres: …}`: a statement of the team's own, such as an insert into an outbox, or a notification.
type PostgresConfig struct {
	// Server says how to connect.
	Server conn.Postgres `yaml:",inline"`
	// Statement is one SQL command with the placeholders $1, $2 and so on.
	Statement string `yaml:"statement,omitempty"`
	// Parameters are what goes into the placeholders, in order: words of postgresValues, or templates.
	Parameters []string `yaml:"parameters,omitempty"`
	// Notify is a channel: the body is sent as a notification. Goes without statement; a template.
	Notify Template `yaml:"notify,omitempty"`
	// Body is what is sent; a template.
	Body Template `yaml:"body,omitempty"`
}

// NewPostgres returns the defaults.
func NewPostgres() *PostgresConfig {
	return &PostgresConfig{Server: conn.NewPostgres(), Body: defaultBody, Parameters: []string{"body"}}
}

// postgresParameter is what goes into a placeholder.
type postgresParameter func(m *Message, body []byte) ([]byte, error)

// parameters compiles the words and the templates.
func (c *PostgresConfig) parameters() (all []postgresParameter, err error) {
	var errs []error
	for i, text := range c.Parameters {
		path := fmt.Sprintf("parameters[%d]", i)
		if of, ok := postgresValues[text]; ok {
			all = append(all, func(m *Message, body []byte) ([]byte, error) { return of(m, body), nil })
			continue
		}
		if !strings.Contains(text, "{{") {
			errs = append(errs, conn.Field(path, "is one of %s, or a template with {{ }}", strings.Join(slices.Sorted(maps.Keys(postgresValues)), ", ")))
			continue
		}
		t, err := ParseTemplate(text)
		if err != nil {
			errs = append(errs, conn.Field(path, "template: %w", err))
			continue
		}
		all = append(all, func(m *Message, _ []byte) ([]byte, error) { return t.Append([]byte{}, m) })
	}
	return all, errors.Join(errs...)
}

// postgresValues are the words, each with the text of its value.
var postgresValues = map[string]func(m *Message, body []byte) []byte{
	"body":        func(_ *Message, body []byte) []byte { return body },
	"bytes":       func(_ *Message, body []byte) []byte { return hex.AppendEncode([]byte(`\x`), body) },
	"token":       func(m *Message, _ []byte) []byte { return []byte(m.Token) },
	"probe":       func(m *Message, _ []byte) []byte { return []byte(m.Probe) },
	"seq":         func(m *Message, _ []byte) []byte { return strconv.AppendUint(nil, m.Seq, 10) },
	"lane":        func(m *Message, _ []byte) []byte { return strconv.AppendUint(nil, uint64(m.Lane), 10) },
	"sent":        func(m *Message, _ []byte) []byte { return postgresTime(m.Sent) },
	"due":         func(m *Message, _ []byte) []byte { return postgresTime(m.Due) },
	"expires":     func(m *Message, _ []byte) []byte { return postgresTime(m.Sent.Add(m.TTL)) },
	"uuid":        func(*Message, []byte) []byte { return []byte(uuid.Must(uuid.NewV7()).String()) },
	"traceparent": func(m *Message, _ []byte) []byte { return []byte(m.TraceParent) },
}

func postgresTime(t time.Time) []byte {
	return t.UTC().AppendFormat(nil, "2006-01-02T15:04:05.999999Z07:00")
}

// postgresPayload is the longest payload of a notification in bytes that every server takes.
const postgresPayload = 7999

// Validate implements Config.
func (c *PostgresConfig) Validate() error {
	errs := []error{c.Server.Validate()}
	switch {
	case (c.Statement == "") == c.Notify.IsZero():
		errs = append(errs, conn.Field("statement", "one of statement and notify is required"))
	case !c.Notify.IsZero():
		errs = append(errs, conn.Prefix("body", CheckToken(c.Body)))
	default:
		errs = append(errs, c.checkParameters())
	}
	return errors.Join(errs...)
}

// checkParameters renders everything with Sample and looks for the token.
func (c *PostgresConfig) checkParameters() error {
	all, err := c.parameters()
	if err != nil {
		return err
	}
	body, err := c.Body.Render(Sample())
	if err != nil {
		return conn.Prefix("body", err)
	}
	found := bytes.Contains(body, []byte(Sample().Token)) && slices.Contains(c.Parameters, "bytes")
	for i, of := range all {
		text, err := of(Sample(), body)
		if err != nil {
			return conn.Prefix(fmt.Sprintf("parameters[%d]", i), err)
		}
		found = found || bytes.Contains(text, []byte(Sample().Token))
	}
	if !found {
		return conn.Field("parameters", "the heartbeat is in none of them: name body, bytes or token")
	}
	return nil
}

// Open implements Config.
func (c *PostgresConfig) Open() (Injector, error) {
	if _, err := c.Server.TLS.Config(); err != nil {
		return nil, fmt.Errorf("tls: %w", err)
	}
	parameters, err := c.parameters()
	if err != nil {
		return nil, err
	}
	i := &postgresInjector{c: c, parameters: parameters, idle: make(chan *conn.PostgresLink, 4)}
	i.life, i.end = context.WithCancel(context.Background())
	return i, nil
}

// postgresInjector keeps a few connections, each for one injection at a time.
type postgresInjector struct {
	c          *PostgresConfig
	parameters []postgresParameter

	idle chan *conn.PostgresLink
	life context.Context // until Close
	end  context.CancelFunc
	put  sync.Mutex // a link is put back, or closed because the injector is
}

// Inject implements Injector. BEGIN, the statement and COMMIT are sent one after the other, each when the one before was answered: until
// COMMIT leaves the heartbeat is certainly not in the pipeline.
func (i *postgresInjector) Inject(ctx context.Context, m *Message) error {
	if err := errors.Join(ctx.Err(), i.life.Err()); err != nil {
		return Refused(err)
	}
	sql, args, err := i.command(m)
	if err != nil {
		return Refused(err)
	}
	l, err := i.begin(ctx)
	if err != nil {
		return Refused(err)
	}
	if err := postgresInsert(ctx, l, sql, args); err != nil {
		l.Close()
		return err
	}
	i.giveBack(l)
	return nil
}

// command returns what to send for m.
func (i *postgresInjector) command(m *Message) (sql string, args [][]byte, err error) {
	body, err := i.c.Body.Append([]byte{}, m)
	if err != nil {
		return "", nil, fmt.Errorf("body: %w", err)
	}
	if !i.c.Notify.IsZero() {
		channel, err := i.c.Notify.Render(m)
		if err != nil {
			return "", nil, fmt.Errorf("notify: %w", err)
		}
		if len(body) > postgresPayload {
			return "", nil, fmt.Errorf("the body has %d bytes, and a notification takes %d", len(body), postgresPayload)
		}
		return "select pg_notify($1, $2)", [][]byte{channel, body}, nil
	}
	for n, of := range i.parameters {
		v, err := of(m, body)
		if err != nil {
			return "", nil, fmt.Errorf("parameters[%d]: %w", n, err)
		}
		args = append(args, v)
	}
	return i.c.Statement, args, nil
}

// begin returns a connection on which a transaction has begun. One that has died while it was idle is replaced: nothing of the message
// was sent on it.
func (i *postgresInjector) begin(ctx context.Context) (*conn.PostgresLink, error) {
	for {
		var l *conn.PostgresLink
		var err error
		used := true
		select {
		case l = <-i.idle:
		default:
			used = false
			if l, err = i.c.Server.Connect(ctx, nil); err != nil {
				return nil, err
			}
		}
		if _, _, err = l.Do(ctx, conn.PostgresBegin("read write")); err == nil {
			return l, nil
		}
		l.Close()
		if !used || ctx.Err() != nil {
			return nil, err
		}
	}
}

// postgresInsert does the rest of the transaction.
func postgresInsert(ctx context.Context, l *conn.PostgresLink, sql string, args [][]byte) error {
	tag, err := l.Each(ctx, sql, args, nil)
	switch {
	case err != nil:
		return Refused(fmt.Errorf("statement: %w", err))
	case l.TxStatus() != 'T':
		return errors.New("statement: it has ended the transaction by itself")
	case (tag.Insert() || tag.Update()) && tag.RowsAffected() == 0:
		return Refused(errors.New("statement: it has written no row"))
	}
	_, tag, err = l.Do(ctx, "commit")
	switch {
	case err != nil && (conn.PostgresSaid(err) || conn.PostgresUnsent(err)):
		return Refused(fmt.Errorf("commit: %w", err))
	case err != nil:
		return fmt.Errorf("commit: %w", err)
	case tag.String() == "ROLLBACK":
		return Refused(errors.New("commit: the server has rolled the transaction back"))
	}
	return nil
}

// giveBack keeps a connection for the next injection.
func (i *postgresInjector) giveBack(l *conn.PostgresLink) {
	i.put.Lock()
	defer i.put.Unlock()
	if i.life.Err() == nil {
		select {
		case i.idle <- l:
			return
		default:
		}
	}
	l.Close()
}

// Check implements Checker: the server parses the statement and finds the tables in it, without carrying it out.
func (i *postgresInjector) Check(ctx context.Context) error {
	l, err := i.c.Server.Connect(ctx, nil)
	if err != nil || i.c.Statement == "" {
		if l != nil {
			l.Close()
		}
		return err
	}
	defer l.Close()
	var d *pgconn.StatementDescription
	if d, err = l.Prepare(ctx, "", i.c.Statement, nil); err != nil {
		return fmt.Errorf("statement: %w", l.Error(err))
	}
	if len(d.ParamOIDs) != len(i.parameters) {
		return conn.WithClass(conn.Other, fmt.Errorf("statement: it has %d placeholders, and there are %d parameters", len(d.ParamOIDs), len(i.parameters)))
	}
	return nil
}

// Close implements Injector.
func (i *postgresInjector) Close() error {
	i.put.Lock()
	defer i.put.Unlock()
	i.end()
	for {
		select {
		case l := <-i.idle:
			l.Close()
		default:
			return nil
		}
	}
}
