package backend

import (
	"context"
	"log/slog"
	"math"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/lag-monitor/lag-monitor/examples/stash-deferred/metrics"
	"github.com/lag-monitor/lag-monitor/examples/stash-deferred/store"
)

// Store is where messages are; *store.Store is one.
type Store interface {
	Due(ctx context.Context, after string, now time.Time, limit int) (rows []store.Row, more bool, err error)
	Delete(ctx context.Context, keys []string) map[string]error
	Backlog(ctx context.Context, now time.Time, limit int) (store.Backlog, error)
}

// Stream is where messages go; *stream.Kinesis is one.
type Stream interface {
	Put(ctx context.Context, stream, key string, data []byte) error
}

// Options say how fast and how patient the backend is. Default has good values.
type Options struct {
	Interval       time.Duration // between the beginnings of two scans
	ScanTimeout    time.Duration // of one read of the store
	Chunk          int           // rows of one read
	Publishers     int           // messages that are published at once
	PublishTimeout time.Duration // of one attempt
	GiveUp         time.Duration // how long a message is tried before its row is left to a later scan
	Batch          int           // rows that are deleted at once
	Linger         time.Duration // how long a row waits for others to be deleted with
	DeleteTimeout  time.Duration // of one batch, with all retries of the client
	Pause          time.Duration // how long a row is left alone that was refused or not deleted
	Backlog        time.Duration // between two counts of what is due
	Grace          time.Duration // how long what is on its way may take at the end
}

// Default returns the options of the service as it runs in production.
func Default() Options {
	return Options{
		Interval: time.Second, ScanTimeout: 10 * time.Second, Chunk: 1000,
		Publishers: 16, PublishTimeout: 5 * time.Second, GiveUp: time.Minute,
		Batch: 50, Linger: 50 * time.Millisecond, DeleteTimeout: 5 * time.Second,
		Pause: 10 * time.Second, Backlog: 5 * time.Second, Grace: 10 * time.Second,
	}
}

// mostCounted bounds the rows that one count of the backlog reads.
const mostCounted = 100_000

// Backend runs the three parts.
type Backend struct {
	Options
	Store  Store
	Stream Stream
	// Refused tells the errors of Stream that another attempt would meet again.
	Refused func(error) bool
	Metrics *metrics.Backend
	Logger  *slog.Logger

	active *active
}

// Run works until ctx ends. Then it scans no more, and what is on its way is finished within Grace. It may be called
// once.
func (b *Backend) Run(ctx context.Context) {
	b.active = newActive()
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	stop := context.AfterFunc(ctx, func() {
		timer := time.AfterFunc(b.Grace, cancel)
		context.AfterFunc(work, func() { timer.Stop() })
	})
	defer stop()

	rows, published := make(chan store.Row), make(chan string)
	var observer, publishers, deleter sync.WaitGroup
	observer.Go(func() { b.observe(ctx) })
	for range b.Publishers {
		publishers.Go(func() { b.publishAll(work, rows, published) })
	}
	deleter.Go(func() { b.deleteAll(work, published) })

	b.scanAll(ctx, rows)
	// Each part ends when the one before it has.
	close(rows)
	publishers.Wait()
	close(published)
	deleter.Wait()
	observer.Wait()
}

// scanAll scans at each interval; a scan that takes longer is followed by the next one at once.
func (b *Backend) scanAll(ctx context.Context, rows chan<- store.Row) {
	tick := time.NewTicker(b.Interval)
	defer tick.Stop()
	for {
		if err := b.scan(ctx, rows); err != nil && ctx.Err() == nil {
			b.Metrics.Scan.Failed(1)
			b.Logger.Warn("a scan broke off", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// scan hands all rows that are due to the publishers. It reads a chunk and then hands it out, so that the time that
// Bigtable takes and the time that publishers take are two figures, and no read is held open by a slow publisher.
func (b *Backend) scan(ctx context.Context, out chan<- store.Row) error {
	after := ""
	for {
		b.active.begin(time.Now())
		b.Metrics.Active.Set(float64(b.active.len()))
		began := time.Now()
		read, cancel := context.WithTimeout(ctx, b.ScanTimeout)
		rows, more, err := b.Store.Due(read, after, began, b.Chunk)
		cancel()
		b.Metrics.Scan.Took(time.Since(began))
		if err != nil {
			return err
		}
		for _, row := range rows {
			after = row.Key
			if !b.active.take(row.Key) {
				b.Metrics.Duplicates.Inc()
				continue
			}
			if row.Err != nil {
				b.Metrics.Scan.Failed(1)
				b.Logger.Error("a row is no message, and stays", "err", row.Err)
				b.active.hold(row.Key, time.Now().Add(b.Pause))
				continue
			}
			b.Metrics.Scan.Succeeded(1)
			b.Metrics.Decoded(row.Message.Stream)
			sent := time.Now()
			select {
			case out <- row:
				b.Metrics.Backpressure.Observe(time.Since(sent).Seconds())
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if !more {
			return nil
		}
	}
}

// publishAll publishes rows until there are no more, and hands those that are on their stream to the deleter.
func (b *Backend) publishAll(ctx context.Context, rows <-chan store.Row, published chan<- string) {
	for row := range rows {
		err := b.publish(ctx, row)
		switch {
		case err == nil:
			published <- row.Key
		case b.Refused(err):
			b.Logger.Error("a message is refused, and stays", "row", row.Key, "stream", row.Message.Stream, "err", err)
			b.active.hold(row.Key, time.Now().Add(b.Pause))
		default:
			b.Logger.Warn("a message is left to a later scan", "row", row.Key, "stream", row.Message.Stream, "err", err)
			b.active.release(row.Key)
		}
	}
}

// publish tries until it succeeds, is refused, or has tried for long enough. Each attempt is counted.
func (b *Backend) publish(ctx context.Context, row store.Row) error {
	_, id, err := store.ParseKey(row.Key)
	if err != nil {
		return err
	}
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval = 50*time.Millisecond, time.Second
	_, err = backoff.Retry(ctx, func() (struct{}, error) {
		began := time.Now()
		attempt, cancel := context.WithTimeout(ctx, b.PublishTimeout)
		defer cancel()
		err := b.Stream.Put(attempt, row.Message.Stream, id, row.Message.Body)
		b.Metrics.Publish.Done(time.Since(began), err)
		if err != nil && b.Refused(err) {
			err = backoff.Permanent(err)
		}
		return struct{}{}, err
	}, backoff.WithBackOff(pause), backoff.WithMaxElapsedTime(b.GiveUp))
	return err
}

// deleteAll deletes rows in small batches until there are no more. A row that is not deleted is published again, after
// a while: a duplicate is better than a message that is lost.
func (b *Backend) deleteAll(ctx context.Context, published <-chan string) {
	for key := range published {
		keys := []string{key}
		linger := time.NewTimer(b.Linger)
	gather:
		for len(keys) < b.Batch {
			select {
			case key, ok := <-published:
				if !ok {
					break gather
				}
				keys = append(keys, key)
			case <-linger.C:
				break gather
			}
		}
		linger.Stop()
		b.delete(ctx, keys)
	}
}

func (b *Backend) delete(ctx context.Context, keys []string) {
	ctx, cancel := context.WithTimeout(ctx, b.DeleteTimeout)
	defer cancel()
	began := time.Now()
	failed := b.Store.Delete(ctx, keys)
	b.Metrics.Delete.Took(time.Since(began))
	b.Metrics.Delete.Succeeded(len(keys) - len(failed))
	b.Metrics.Delete.Failed(len(failed))
	var last error
	for _, key := range keys {
		if err := failed[key]; err != nil {
			last = err
			b.active.hold(key, time.Now().Add(b.Pause))
		} else {
			b.active.finish(key)
		}
	}
	if last != nil {
		b.Logger.Warn("rows are not deleted, and will be published again", "rows", len(failed), "err", last)
	}
}

// observe counts what is due at each interval.
func (b *Backend) observe(ctx context.Context) {
	tick := time.NewTicker(b.Backlog)
	defer tick.Stop()
	for {
		read, cancel := context.WithTimeout(ctx, b.ScanTimeout)
		backlog, err := b.Store.Backlog(read, time.Now(), mostCounted)
		cancel()
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			b.Logger.Warn("cannot count what is due", "err", err)
			b.Metrics.Backlog.Set(math.NaN())
			b.Metrics.BacklogAge.Set(math.NaN())
		default:
			b.Metrics.Backlog.Set(float64(backlog.Rows))
			b.Metrics.BacklogAge.Set(backlog.Oldest.Seconds())
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
