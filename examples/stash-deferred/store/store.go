package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"cloud.google.com/go/bigtable"
	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

// Where a message is inside its row: one cell, so that a row is there whole or not at all.
const (
	Family = "m"
	column = "message"
)

// most bytes of messages that Due returns at once.
const mostBytes = 16 << 20

// Message is what is put onto a stream when it is due.
type Message struct {
	Stream string `json:"stream"`
	Body   []byte `json:"body"` // base64 in JSON, so that it may hold anything
}

// Row is a message in the store. Err is set, and Message empty, when what is in the row is no message.
type Row struct {
	Key     string
	Message Message
	Err     error
}

// Config says where the table is.
type Config struct {
	Project, Instance, Table string
	// Emulator is the address (host:port) of a Bigtable emulator, which is spoken to without TLS and credentials.
	// Empty: the real service, with the default credentials of the environment.
	Emulator string
}

// Store is a table of deferred messages. It is safe for concurrent use.
type Store struct {
	client *bigtable.Client
	table  *bigtable.Table
	conn   *grpc.ClientConn // to an emulator
}

// Open connects to a table, which must exist with the column family Family. A store that does not answer is no error
// here: the first call says so.
func Open(ctx context.Context, c Config) (*Store, error) {
	s := &Store{}
	var opts []option.ClientOption
	// The client's own metrics would go to Google's Cloud Monitoring, and this service exports its own.
	config := bigtable.ClientConfig{MetricsProvider: bigtable.NoopMetricsProvider{}}
	if c.Emulator != "" {
		conn, err := grpc.NewClient("passthrough:///"+c.Emulator, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return nil, fmt.Errorf("bigtable emulator %s: %w", c.Emulator, err)
		}
		s.conn = conn
		opts = append(opts, option.WithGRPCConn(conn))
		config.DisableSession = true
	}
	var err error
	if s.client, err = bigtable.NewClientWithConfig(ctx, c.Project, c.Instance, config, opts...); err != nil {
		return nil, errors.Join(fmt.Errorf("bigtable %s/%s: %w", c.Project, c.Instance, err), s.Close())
	}
	s.table = s.client.Open(c.Table)
	return s, nil
}

// Close ends the connections.
func (s *Store) Close() error {
	var errs []error
	if s.client != nil {
		errs = append(errs, s.client.Close())
	}
	if s.conn != nil {
		// The client may have closed it already.
		if err := s.conn.Close(); status.Code(err) != codes.Canceled {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Put writes a message that is due at a second. When it returns an error the row may be there all the same, whole:
// the answer may have been lost.
func (s *Store) Put(ctx context.Context, due int64, id string, m Message) error {
	cell, err := json.Marshal(m)
	if err != nil {
		return err
	}
	mut := bigtable.NewMutation()
	// With a timestamp of its own a mutation can be repeated, so the client retries it.
	mut.Set(Family, column, bigtable.Now(), cell)
	return s.table.Apply(ctx, Key(due, id), mut)
}

// Due returns the first rows behind the key after (from the first one on when it is empty) that are due at now, in the
// order of their time: at most limit rows and about 16 MB. There are more when more is true.
func (s *Store) Due(ctx context.Context, after string, now time.Time, limit int) (rows []Row, more bool, err error) {
	begin := prefix
	if after != "" {
		begin = after + "\x00"
	}
	size := 0
	err = s.table.ReadRows(ctx, bigtable.NewRange(begin, dueBefore(now.Unix())), func(r bigtable.Row) bool {
		rows = append(rows, decode(r))
		size += len(rows[len(rows)-1].Message.Body)
		more = len(rows) == limit || size >= mostBytes
		return !more
	}, bigtable.LimitRows(int64(limit)), bigtable.RowFilter(bigtable.LatestNFilter(1)))
	if err != nil {
		return nil, false, err
	}
	return rows, more, nil
}

func decode(r bigtable.Row) Row {
	row := Row{Key: r.Key()}
	if _, _, err := ParseKey(row.Key); err != nil {
		row.Err = err
		return row
	}
	cells := r[Family]
	if len(cells) != 1 || cells[0].Column != Family+":"+column {
		row.Err = fmt.Errorf("row %q: it is not one cell %s:%s", row.Key, Family, column)
		return row
	}
	if err := json.Unmarshal(cells[0].Value, &row.Message); err != nil {
		row.Err = fmt.Errorf("row %q: %w", row.Key, err)
	} else if row.Message.Stream == "" {
		row.Err = fmt.Errorf("row %q: it names no stream", row.Key)
	}
	if row.Err != nil {
		row.Message = Message{}
	}
	return row
}

// Delete deletes rows. It returns an error for each that was not deleted, or nil when all were.
func (s *Store) Delete(ctx context.Context, keys []string) map[string]error {
	muts := make([]*bigtable.Mutation, len(keys))
	for i := range muts {
		muts[i] = bigtable.NewMutation()
		muts[i].DeleteRow()
	}
	errs, err := s.table.ApplyBulk(ctx, keys, muts)
	if err == nil && errs == nil {
		return nil
	}
	failed := map[string]error{}
	for i, key := range keys {
		if err != nil {
			failed[key] = err
		} else if errs[i] != nil {
			failed[key] = errs[i]
		}
	}
	return failed
}

// Backlog says how much is due and still there.
type Backlog struct {
	Rows   int           // at most the limit that was asked for
	Oldest time.Duration // how long the first of them has been due
}

// Backlog counts the rows that are due at now, up to limit. It reads keys only.
func (s *Store) Backlog(ctx context.Context, now time.Time, limit int) (Backlog, error) {
	var b Backlog
	err := s.table.ReadRows(ctx, bigtable.NewRange(prefix, dueBefore(now.Unix())), func(r bigtable.Row) bool {
		if due, _, err := ParseKey(r.Key()); err == nil && b.Rows == 0 {
			b.Oldest = now.Sub(time.Unix(due, 0))
		}
		b.Rows++
		return true
	}, bigtable.LimitRows(int64(limit)), bigtable.RowFilter(KeysOnly()))
	return b, err
}

// KeysOnly is the filter of Backlog, which tells its reads from those of Due.
func KeysOnly() bigtable.Filter {
	return bigtable.ChainFilters(bigtable.LatestNFilter(1), bigtable.StripValueFilter())
}
