package consumergroup

import (
	"context"
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/lag-monitor/lag-monitor/examples/patterns/kafka"
	"github.com/lag-monitor/lag-monitor/examples/patterns/service"
)

// Member ships parcels as one of a group, and says after each lot that it is done.
func Member(ctx context.Context, env service.Env, ready func()) error {
	return member(ctx, env, ready, 1, 0)
}

// Forgetful is a member that says only at each 15th parcel what it has done, and crashes after each 20th.
func Forgetful(ctx context.Context, env service.Env, ready func()) error {
	return member(ctx, env, ready, 15, 20)
}

// member commits what it has done at each parcel whose number is a multiple of commit, and crashes after that many, if crash is not 0.
func member(ctx context.Context, env service.Env, ready func(), commit, crash int) error {
	cl, err := kgo.NewClient(kafka.Options(env, "shipping", "parcels", ready)...)
	if err != nil {
		return err
	}
	// It leaves the group, so that the others need not wait until the broker misses it.
	defer cl.CloseAllowingRebalance()
	for n := 0; ; {
		fetches := cl.PollFetches(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err := kafka.Failed(fetches); err != nil {
			return err
		}
		for _, r := range fetches.Records() {
			n++
			if err := ship(ctx, cl, r, env.Space+"shipped", n%commit == 0); err != nil {
				return err
			}
			if n == crash {
				return errors.New("crashed")
			}
		}
		cl.AllowRebalance()
	}
}

// ship does one parcel, and says so.
func ship(ctx context.Context, cl *kgo.Client, r *kgo.Record, topic string, commit bool) error {
	ctx, cancel := kafka.Lot(ctx)
	defer cancel()
	if err := cl.ProduceSync(ctx, kafka.Forward(r, topic)).FirstErr(); err != nil {
		return fmt.Errorf("kafka: ship: %w", err)
	}
	if !commit {
		return nil
	}
	if err := cl.CommitRecords(ctx, r); err != nil {
		return fmt.Errorf("kafka: commit: %w", err)
	}
	return nil
}
