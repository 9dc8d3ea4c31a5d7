package exactlyonce

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/lag-monitor/lag-monitor/examples/patterns/kafka"
	"github.com/lag-monitor/lag-monitor/examples/patterns/service"
)

// Worker returns a process that pays, one transaction for each lot that it reads. With crash above 0 it crashes in each transaction of
// that number, when all is written and nothing is committed.
func Worker(crash int) func(context.Context, service.Env, func()) error {
	return func(ctx context.Context, env service.Env, ready func()) error {
		s, err := kgo.NewGroupTransactSession(kafka.Options(env, "paying", "payments", ready,
			// The name by which a new process takes over from one that has died in a transaction: the broker gives that up at once.
			kgo.TransactionalID(env.Space+"worker"),
			kgo.FetchIsolationLevel(kgo.ReadCommitted()))...)
		if err != nil {
			return err
		}
		defer s.CloseAllowingRebalance()
		if err := takeOver(ctx, s.Client()); err != nil {
			return err
		}
		for n := 1; ; s.AllowRebalance() {
			fetches := s.PollFetches(ctx)
			if ctx.Err() != nil {
				return nil
			}
			if err := kafka.Failed(fetches); err != nil {
				return err
			}
			if fetches.NumRecords() == 0 {
				continue
			}
			if err := pay(ctx, s, fetches.Records(), env.Space+"paid", n == crash); err != nil {
				return err
			}
			n++
		}
	}
}

// takeOver ends what an old process has left open. The first transaction would do that, too; but until then there may be nothing to
// read, since how far the old process had read is not settled.
func takeOver(ctx context.Context, cl *kgo.Client) error {
	ctx, cancel := kafka.Lot(ctx)
	defer cancel()
	if _, _, err := cl.ProducerID(ctx); err != nil {
		return fmt.Errorf("kafka: take over: %w", err)
	}
	return nil
}

// pay does one lot in one transaction.
func pay(ctx context.Context, s *kgo.GroupTransactSession, lot []*kgo.Record, topic string, crash bool) error {
	ctx, cancel := kafka.Lot(ctx)
	defer cancel()
	if err := s.Begin(); err != nil {
		return fmt.Errorf("kafka: begin: %w", err)
	}
	var records []*kgo.Record
	for _, r := range lot {
		records = append(records, kafka.Forward(r, topic))
	}
	if err := s.ProduceSync(ctx, records...).FirstErr(); err != nil {
		return fmt.Errorf("kafka: pay: %w", err)
	}
	if crash {
		return errors.New("crashed")
	}
	// Not committed means that the group has given the partitions to others meanwhile: nothing has happened, and they go on.
	if _, err := s.End(ctx, kgo.TryCommit); err != nil {
		return fmt.Errorf("kafka: commit: %w", err)
	}
	return nil
}

// Repair is another program that writes to the same topic: when told to begin it writes into each partition in a transaction that it does
// not end. The broker gives it up after a minute, or when the program is started again and not told to begin.
func Repair(begin bool) func(context.Context, service.Env, func()) error {
	return func(ctx context.Context, env service.Env, ready func()) error {
		cl, err := kgo.NewClient(kgo.SeedBrokers(env.Addr), kgo.Dialer(env.Dial), kgo.RecordPartitioner(kgo.ManualPartitioner()),
			kgo.TransactionalID(env.Space+"repair"), kgo.TransactionTimeout(time.Minute), kgo.RecordDeliveryTimeout(10*time.Second))
		if err != nil {
			return err
		}
		defer cl.Close()
		if !begin {
			if err := takeOver(ctx, cl); err != nil {
				return err
			}
		} else {
			if err := cl.BeginTransaction(); err != nil {
				return fmt.Errorf("kafka: begin: %w", err)
			}
			for partition := range int32(3) {
				r := &kgo.Record{Topic: env.Space + "paid", Partition: partition, Value: []byte(`{"payment": "repaired"}`)}
				if err := cl.ProduceSync(ctx, r).FirstErr(); err != nil {
					return fmt.Errorf("kafka: repair: %w", err)
				}
			}
		}
		ready()
		<-ctx.Done()
		return nil
	}
}
