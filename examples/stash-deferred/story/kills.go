package story

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kinesis"
	"github.com/aws/aws-sdk-go-v2/service/kinesis/types"

	"github.com/lag-monitor/lag-monitor/examples/stash-deferred/stage"
	"github.com/lag-monitor/lag-monitor/examples/stash-deferred/store"
)

// Kills kills the backend n times at random moments under load, and starts it again at once. Each message that the
// frontend has accepted must be in its stream in the end. The stage needs users and no monitor.
func Kills(tb testing.TB, st *stage.Stage, n int, tell func(Step)) Told {
	tb.Helper()
	told, began := Told{Number: 7, Title: fmt.Sprintf("The backend is killed %d times", n)}, time.Now()
	step := func(s Step) {
		s.After = time.Since(began)
		told.Steps = append(told.Steps, s)
		tell(s)
	}
	step(Step{
		What:       fmt.Sprintf("SIGKILL at random moments, %d times, and a new start each time, while users send %d messages a second", n, st.Rate),
		Conclusion: "What it held in memory is gone each time.",
	})
	for range n {
		time.Sleep(time.Duration(50+rand.IntN(300)) * time.Millisecond)
		st.Backend.Kill()
		st.Backend.Start()
	}
	st.Users.Stop()
	messages, unsure := st.Users.Accepted()
	// A machine that is busy with something else takes less than what users would send.
	if len(messages) < st.Rate*int(time.Since(began).Seconds())/10 {
		tb.Errorf("only %d messages were accepted in %v", len(messages), time.Since(began))
	}
	killed := time.Since(began)
	r := newReader(tb, st)
	missing, progress := -1, time.Now()
	for missing != 0 {
		r.read()
		was := missing
		missing = 0
		for _, m := range messages {
			if r.seen[m] == 0 {
				missing++
			}
		}
		if missing != was {
			progress = time.Now()
		}
		// Reading takes the server's time, which it needs for writes.
		if missing > 0 {
			time.Sleep(2 * time.Second)
		}
		if time.Since(progress) > patience {
			tb.Fatalf("of %d messages that were accepted %d are in no stream", len(messages), missing)
		}
	}
	drained := time.Since(began) - killed
	// The last rows are deleted a moment after they were published.
	s, err := store.Open(tb.Context(), st.Bigtable.Config)
	if err != nil {
		tb.Fatal(err)
	}
	defer s.Close()
	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		left, err := s.Backlog(tb.Context(), time.Now().Add(time.Hour), 100)
		if err != nil {
			tb.Fatal(err)
		}
		if left.Rows == 0 {
			break
		}
		if time.Now().After(deadline) {
			tb.Fatalf("%d rows are never deleted", left.Rows)
		}
	}
	r.read()
	twice := r.records - len(r.seen)
	step(Step{
		What: "the last message has come out",
		Seen: fmt.Sprintf("%d kills in %.0f s; messages accepted %d (%.0f/s), lost 0, published again %d (%.1f %%), not confirmed to the user %d; the backlog was gone %.0f s after the last kill; rows left 0",
			n, killed.Seconds(), len(messages), float64(len(messages))/killed.Seconds(), twice, 100*float64(twice)/float64(len(messages)), unsure, drained.Seconds()),
		Conclusion: "At least once holds. A kill costs duplicates of what was on its way, and a moment of lag, never a message.",
	})
	return told
}

// reader reads streams from their beginning on.
type reader struct {
	tb      testing.TB
	client  *kinesis.Client
	streams []string
	at      map[string]*string // iterators
	seen    map[string]int     // how often each message was there
	records int
}

func newReader(tb testing.TB, st *stage.Stage) *reader {
	return &reader{tb: tb, client: st.Kinesis.Client(tb), streams: st.Streams, at: map[string]*string{}, seen: map[string]int{}}
}

// read reads all streams to their end. A server that is busy breaks a connection now and then: what fails is asked again,
// for as long as patience lasts.
func (r *reader) read() {
	r.tb.Helper()
	for _, stream := range r.streams {
		for began := time.Now(); ; {
			end, err := r.next(stream)
			if err == nil {
				began = time.Now()
				if end {
					break
				}
			} else if time.Since(began) > patience {
				r.tb.Fatalf("stream %s: %v", stream, err)
			}
		}
	}
	time.Sleep(200 * time.Millisecond)
}

// next reads on in one stream, and reports whether that was its end.
func (r *reader) next(stream string) (end bool, err error) {
	ctx, cancel := context.WithTimeout(r.tb.Context(), patience/3)
	defer cancel()
	if r.at[stream] == nil {
		out, err := r.client.GetShardIterator(ctx, &kinesis.GetShardIteratorInput{
			StreamName: &stream, ShardId: aws.String("shardId-000000000000"), ShardIteratorType: types.ShardIteratorTypeTrimHorizon,
		})
		if err != nil {
			return false, err
		}
		r.at[stream] = out.ShardIterator
	}
	// Not all at once: a busy machine would take longer for an answer than clients wait.
	out, err := r.client.GetRecords(ctx, &kinesis.GetRecordsInput{ShardIterator: r.at[stream], Limit: aws.Int32(500)})
	if err != nil {
		return false, err
	}
	r.at[stream] = out.NextShardIterator
	for _, record := range out.Records {
		r.seen[string(record.Data)]++
		r.records++
	}
	return len(out.Records) == 0 && aws.ToInt64(out.MillisBehindLatest) == 0, nil
}
