package sinks

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/lag-monitor/lag-monitor/internal/conn"
)

// PostgresConfig is a sink `postgres`: rows that a query of the team's own returns, or the notifications of a channel.
type PostgresConfig struct {
	// Server says how to connect.
	Server conn.Postgres `yaml:",inline"`
	// Query reads the rows behind $1, by: key in the order of the key.
	Query string `yaml:"query,omitempty"`
	// By is what $1 of the query is: key, the Key of the last row that no other can come before any more; or transaction, the
	// oldest transaction (xid8) that had not ended when the rows were read before.
	By string `yaml:"by,omitempty"`
	// Key is the column that tells one row from all others, and with by: key gives them an order.
	Key string `yaml:"key,omitempty"`
	// Column is where to look for heartbeats; otherwise in all.
	Column string `yaml:"column,omitempty"`
	// Start is a query for the first $1: that of the rows older than a time, which is its $1 if it has one.
	Start string `yaml:"start,omitempty"`
	// Retention is how long a row stays at least.
	Retention conn.Duration `yaml:"retention,omitempty"`
	// LookBehind is how long may pass from when a row's key is chosen until its transaction begins to write, at most.
	LookBehind conn.Duration `yaml:"look_behind,omitempty"`
	// PollInterval is the time between two readings: the precision of what is measured.
	PollInterval conn.Duration `yaml:"poll_interval,omitempty"`
	// Channel to listen on, instead of a query.
	Channel string `yaml:"channel,omitempty"`
	// BacklogQuery tells how many messages wait, in columns with the names of postgresBacklog.
	BacklogQuery string `yaml:"backlog_query,omitempty"`
}

// What $1 of the query may be.
const (
	byKey         = "key"
	byTransaction = "transaction"
)

// NewPostgres returns the defaults.
func NewPostgres() *PostgresConfig {
	return &PostgresConfig{
		Server: conn.NewPostgres(), By: byKey, Key: "id",
		LookBehind: conn.Duration(10 * time.Second), PollInterval: conn.Duration(500 * time.Millisecond),
	}
}

const (
	minPostgresRetention = 30 * time.Second
	maxPostgresBehind    = 10 * time.Minute
)

// postgresLimited finds that a query returns a part of the rows.
var postgresLimited = regexp.MustCompile(`(?i)\b(limit|fetch)\b`)

// Validate implements Config.
func (c *PostgresConfig) Validate() error {
	errs := []error{c.Server.Validate()}
	if (c.Query == "") == (c.Channel == "") {
		errs = append(errs, conn.Field("query", "one of query and channel is required"))
		return errors.Join(errs...)
	}
	if c.Channel != "" {
		if c.Start != "" {
			errs = append(errs, conn.Field("start", "goes with query"))
		}
		if c.Column != "" {
			errs = append(errs, conn.Field("column", "goes with query"))
		}
		if c.Retention != 0 {
			errs = append(errs, conn.Field("retention", "goes with query"))
		}
		return errors.Join(errs...)
	}
	if !strings.Contains(c.Query, "$1") {
		errs = append(errs, conn.Field("query", "has to read the rows behind $1, such as: select id, payload from outbox where id > $1 order by id"))
	}
	switch c.By {
	case byKey:
		if c.Start == "" {
			errs = append(errs, conn.Field("start", "is required with by: key, such as: select coalesce(max(id), 0) from outbox where created_at < $1"))
		}
	case byTransaction:
		if postgresLimited.MatchString(c.Query) {
			errs = append(errs, conn.Field("query", "with by: transaction has to return all rows: leave the limit out"))
		}
	default:
		errs = append(errs, conn.Field("by", "is %s or %s", byKey, byTransaction))
	}
	if c.Key == "" {
		errs = append(errs, conn.Field("key", "must not be empty"))
	}
	if c.PollInterval < conn.Duration(10*time.Millisecond) || c.PollInterval > conn.Duration(maxPollInterval) {
		errs = append(errs, conn.Field("poll_interval", "is between 10ms and %s", maxPollInterval))
	}
	if c.LookBehind < conn.Duration(time.Second) || c.LookBehind > conn.Duration(maxPostgresBehind) {
		errs = append(errs, conn.Field("look_behind", "is between 1s and %s", maxPostgresBehind))
	}
	if c.Retention < conn.Duration(minPostgresRetention) {
		errs = append(errs, conn.Field("retention", "how long a row stays in the table is required, and at least %s: rows that go at once cannot be read in time, so listen on a channel",
			minPostgresRetention))
	}
	return errors.Join(errs...)
}

// Open implements Config.
func (c *PostgresConfig) Open() (Sink, error) {
	if _, err := c.Server.TLS.Config(); err != nil {
		return nil, fmt.Errorf("tls: %w", err)
	}
	if c.Channel != "" {
		return &pgChannel{c: c}, nil
	}
	return newPGTable(c), nil
}

// once runs f with a link.
func (c *PostgresConfig) once(ctx context.Context, f func(*conn.PostgresLink) error) error {
	l, err := c.Server.Connect(ctx, nil)
	if err != nil {
		return err
	}
	defer l.Close()
	return f(l)
}

// postgresReadOnly begins a transaction that sees one state of the database and cannot change it.
func postgresReadOnly() string {
	return conn.PostgresBegin("isolation level repeatable read, read only")
}

// postgresBacklog are the columns of a backlog query.
func postgresBacklog(b *Backlog, column, value string) error {
	number := func(into *float64) (err error) {
		if *into, err = strconv.ParseFloat(value, 64); err != nil {
			err = fmt.Errorf("column %s: %q is not a number", column, value)
		}
		return err
	}
	switch column {
	case "messages":
		return number(&b.Messages)
	case "seconds":
		return number(&b.Seconds)
	case "consumers":
		return number(&b.Consumers)
	case "queue":
		b.Queue = value
	case "group":
		b.Group = value
	case "partition":
		b.Partition = value
	default:
		return fmt.Errorf("column %s: it is none of messages, seconds, consumers, queue, group, partition", column)
	}
	return nil
}

// maxPostgresBacklogs bounds the rows of a backlog query: each is a series.
const maxPostgresBacklogs = 1000

func (c *PostgresConfig) backlog(ctx context.Context) (all []Backlog, err error) {
	if c.BacklogQuery == "" {
		return nil, nil
	}
	err = c.once(ctx, func(l *conn.PostgresLink) error {
		if _, _, err := l.Do(ctx, postgresReadOnly()); err != nil {
			return err
		}
		_, err := l.Each(ctx, c.BacklogQuery, nil, func(fields []pgconn.FieldDescription, values [][]byte) error {
			if len(all) == maxPostgresBacklogs {
				return fmt.Errorf("it returns more than %d rows", maxPostgresBacklogs)
			}
			b := Backlog{Messages: -1, Seconds: -1, Consumers: -1}
			for i, v := range values {
				if v == nil {
					continue
				}
				if err := postgresBacklog(&b, fields[i].Name, string(v)); err != nil {
					return err
				}
			}
			all = append(all, b)
			return nil
		})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("backlog_query: %w", err)
	}
	return all, nil
}

// pgChannel listens for notifications, which the server keeps for nobody.
type pgChannel struct {
	c     *PostgresConfig
	begun bool // it has listened before
}

// pgAsk is how often the connection is asked for a proof.
const pgAsk = 500 * time.Millisecond

// Run implements Sink. The server hands the notifications of all transactions that have ended before a command came to a listening
// session before it says that this command is done: so each answer is a proof.
func (s *pgChannel) Run(ctx context.Context, f *Feed) error {
	l, err := s.c.Server.Connect(ctx, func(payload string) { f.Deliver(Message{Body: []byte(payload)}) })
	if err == nil {
		defer l.Close()
		err = s.listen(ctx, l, f)
	}
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("channel %s: %w", s.c.Channel, err)
}

func (s *pgChannel) listen(ctx context.Context, l *conn.PostgresLink, f *Feed) error {
	if _, _, err := l.Do(ctx, `listen "`+strings.ReplaceAll(s.c.Channel, `"`, `""`)+`"`); err != nil {
		return err
	}
	if s.begun {
		f.Gap("disconnected")
	}
	s.begun = true
	f.Ready()
	for {
		asked := time.Now()
		if _, _, err := l.Do(ctx, "-- lag-monitor"); err != nil {
			return err
		}
		f.CaughtUp(asked)
		if err := pgWait(ctx, l); err != nil {
			return err
		}
	}
}

// pgWait takes notifications until it is time to ask again.
func pgWait(ctx context.Context, l *conn.PostgresLink) error {
	wait, cancel := context.WithTimeout(ctx, pgAsk)
	defer cancel()
	for {
		if err := l.WaitForNotification(wait); err != nil {
			if ctx.Err() == nil && wait.Err() != nil && !l.IsClosed() {
				return nil
			}
			return l.Error(err)
		}
	}
}

// Backlog implements Backlogger.
func (s *pgChannel) Backlog(ctx context.Context) ([]Backlog, error) { return s.c.backlog(ctx) }

// Check implements Checker.
func (s *pgChannel) Check(ctx context.Context) error {
	return s.c.once(ctx, func(*conn.PostgresLink) error { return nil })
}
