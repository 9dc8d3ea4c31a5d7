package sinks

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/lag-monitor/lag-monitor/internal/conn"
)

// amqpStream reads a stream of RabbitMQ, which keeps what it holds for everybody.
type amqpStream struct {
	amqpSink

	// All under amqpSink.mu.
	next  uint64 // offset of the next message, valid when known
	known bool
	since time.Time // where to start without a position; zero: at the end

	// Of Run alone.
	past  uint64 // messages before this offset were there before the sink
	empty int    // how often a stream with a position had nothing
}

const (
	// amqpEdge is how long the first or the last message of a stream may take to come. Where none comes there is none.
	amqpEdge = time.Second
	// amqpChunk is more messages than RabbitMQ puts into one chunk, so that a chunk comes as a whole.
	amqpChunk = 5000
	// amqpStreamOffset says in an argument of a consumer where it starts, and in a header where a message stands.
	amqpStreamOffset    = "x-stream-offset"
	amqpFirst, amqpLast = "first", "last"
	// amqpEmpty is how often a stream must have nothing until it is believed to be a new one.
	amqpEmpty = 5
)

func (s *amqpStream) position() (next uint64, known bool, since time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.next, s.known, s.since
}

func (s *amqpStream) keep(next uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.next, s.known = next, true
}

// Position implements Resumer.
func (s *amqpStream) Position() map[string]string {
	next, known, _ := s.position()
	if !known {
		return map[string]string{}
	}
	return map[string]string{s.c.Stream: strconv.FormatUint(next, 10)}
}

// Resume implements Resumer.
func (s *amqpStream) Resume(parts map[string]string) {
	if n, err := strconv.ParseUint(parts[s.c.Stream], 10, 63); err == nil {
		s.keep(n)
	}
}

// LookBack implements LookBacker.
func (s *amqpStream) LookBack(since time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.since = since
}

// Check implements Checker.
func (s *amqpStream) Check(ctx context.Context) error {
	l, err := s.c.Broker.Connect(ctx, "checks")
	if err != nil {
		return err
	}
	defer l.Close()
	a, err := amqpOpen(ctx, l)
	if err == nil {
		err = s.attach(ctx, a)
	}
	return err
}

// attach sees that the stream is there.
func (s *amqpStream) attach(ctx context.Context, a *amqpAttached) error {
	if _, err := a.inspect(ctx, s.c.Stream); err != nil {
		return fmt.Errorf("stream %s: %w", s.c.Stream, err)
	}
	return nil
}

// Run implements Sink. It goes on from its position; others read the stream as before.
func (s *amqpStream) Run(ctx context.Context, f *Feed) error {
	if err := s.run(ctx, f); ctx.Err() == nil {
		return err
	}
	return nil
}

func (s *amqpStream) run(ctx context.Context, f *Feed) error {
	l, ctx, end, err := s.connect(ctx)
	if err != nil {
		return err
	}
	defer end()
	looks, err := amqpOpen(ctx, l)
	if err != nil {
		return err
	}
	if err := s.attach(ctx, looks); err != nil {
		return err
	}
	edges := &amqpEdges{looks, s.c.Stream}
	if err := s.start(ctx, edges, f); err != nil {
		return fmt.Errorf("stream %s: %w", s.c.Stream, err)
	}
	next, _, _ := s.position()

	a, err := amqpOpen(ctx, l)
	if err != nil {
		return err
	}
	var deliveries <-chan amqp.Delivery
	err = l.Do(ctx, amqpAnswer, func() (err error) {
		if err = a.ch.Qos(amqpPrefetch, 0, false); err != nil {
			return err
		}
		deliveries, err = a.ch.Consume(s.c.Stream, "", false, false, false, false, amqp.Table{amqpStreamOffset: int64(next)})
		return err
	})
	if err != nil {
		return fmt.Errorf("stream %s: %w", s.c.Stream, err)
	}
	f.Ready()

	ctx, fail := context.WithCancelCause(ctx)
	var done claims
	done.delivered.Store(next)
	stopped := make(chan struct{})
	defer func() { <-stopped }()
	defer fail(nil)
	go func() {
		var err error
		defer close(stopped)
		defer func() { fail(err) }()
		defer conn.Contain(&err)
		err = s.prove(ctx, edges, &done, f)
	}()
	tick := time.NewTicker(amqpProve)
	defer tick.Stop()
	var pace pace
	var tag uint64
	unacked := 0
	for {
		select {
		case d, ok := <-deliveries:
			if !ok {
				return fmt.Errorf("stream %s: %w", s.c.Stream, a.ended(ctx))
			}
			tag = d.DeliveryTag
			unacked++
			offset, ok := amqpOffset(&d)
			if !ok {
				return fmt.Errorf("stream %s: a message has no offset", s.c.Stream)
			}
			if offset >= next {
				m := amqpMessage(&d)
				m.ID, m.Past = offset+1, offset < s.past
				f.Deliver(m)
				next = offset + 1
				s.keep(next)
				if next < s.past && pace.slow(len(d.Body)) {
					// What enters now waits behind the look-back: see pace.
					s.keep(next + (s.past-next+1)/2)
					return conn.WithClass(conn.Network, errors.New("the look-back takes too long: going on from its middle"))
				}
				done.deliveredUpTo(next, f)
			}
			if unacked < amqpAcks {
				continue
			}
		case <-tick.C:
			if unacked == 0 {
				continue
			}
		case <-ctx.Done():
			return fmt.Errorf("stream %s: %w", s.c.Stream, context.Cause(ctx))
		}
		// It takes nothing out of a stream, but lets the broker send more.
		if err := a.ch.Ack(tag, true); err != nil {
			return fmt.Errorf("stream %s: %w", s.c.Stream, a.Err(err))
		}
		unacked = 0
	}
}

// start chooses where to begin and reports what may have been missed.
func (s *amqpStream) start(ctx context.Context, edges *amqpEdges, f *Feed) error {
	next, known, since := s.position()
	_, end, found, err := edges.look(ctx, amqpLast)
	switch {
	case err != nil:
		return err
	case !known && !found:
		s.keep(0)
	case !known:
		s.past = end
		if since.IsZero() {
			s.keep(end)
			break
		}
		begin, _, found, err := edges.look(ctx, since.Truncate(time.Second))
		if err != nil {
			return err
		}
		if !found {
			begin = end
		}
		s.keep(min(begin, end))
	case !found && next > 0:
		// The broker may not have it ready yet. It is a new one if it stays so.
		if s.empty++; s.empty < amqpEmpty {
			return conn.WithClass(conn.Network, errors.New("the stream gives nothing although it held messages before"))
		}
		f.Gap("recreated")
		s.past = 0
		s.keep(0)
	case found:
		first, _, found, err := edges.look(ctx, amqpFirst)
		switch {
		case err != nil:
			return err
		case end < next:
			f.Gap("recreated")
			s.past = 0
			s.keep(first)
		case found && first > next:
			f.Gap("trimmed")
			s.keep(first)
		}
	}
	s.empty = 0
	return nil
}

// prove looks for the end of the stream again and again: when everything before it was delivered, the sink is caught
// up with the time at which it began to look.
func (s *amqpStream) prove(ctx context.Context, edges *amqpEdges, done *claims, f *Feed) error {
	tick := time.NewTicker(amqpProve)
	defer tick.Stop()
	for {
		asked := time.Now()
		_, end, found, err := edges.look(ctx, amqpLast)
		if err != nil {
			return err
		}
		// One that has nothing has nothing to catch up with, unless it had something before.
		if found || done.delivered.Load() == 0 {
			done.when(end, asked, f)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// amqpEdges looks for the ends of a stream.
type amqpEdges struct {
	*amqpAttached
	stream string
}

// look returns the offset of the first message of the chunk at a place and the offset after its last one: at the last
// chunk, when everything before is delivered, nothing is left that was there when it was called. It reports false when
// no message comes, since there is none.
func (e *amqpEdges) look(ctx context.Context, at any) (first, end uint64, found bool, err error) {
	const tag = "edge"
	var deliveries <-chan amqp.Delivery
	prefetch := 1
	if at == amqpLast {
		prefetch = amqpChunk
	}
	err = e.Do(ctx, amqpAnswer, func() (err error) {
		if err := e.ch.Qos(prefetch, 0, false); err != nil {
			return err
		}
		deliveries, err = e.ch.Consume(e.stream, tag, false, false, false, false, amqp.Table{amqpStreamOffset: at})
		return err
	})
	if err != nil {
		return 0, 0, false, err
	}
	var last uint64 // delivery tag
	take := func(d *amqp.Delivery) error {
		offset, ok := amqpOffset(d)
		if !ok {
			return errors.New("a message has no offset")
		}
		if !found {
			first, found = offset, true
		}
		end, last = max(end, offset+1), d.DeliveryTag
		return nil
	}
	wait := time.NewTimer(amqpEdge)
	defer wait.Stop()
	select {
	case d, ok := <-deliveries:
		if !ok {
			return 0, 0, false, e.ended(ctx)
		}
		if err := take(&d); err != nil {
			return 0, 0, false, err
		}
	case <-wait.C:
	case <-ctx.Done():
		return 0, 0, false, context.Cause(ctx)
	}
	// The broker sends a chunk as a whole, and the answer behind it. Then the client hands out what it has, and ends.
	cancelled := make(chan error, 1)
	go func() {
		err := errors.New("the call ended its goroutine")
		defer func() { cancelled <- err }()
		defer conn.Contain(&err)
		err = e.Do(ctx, amqpAnswer, func() error { return e.ch.Cancel(tag, false) })
	}()
	var wrong error
	for d := range deliveries {
		if err := take(&d); err != nil {
			wrong = err
		}
	}
	if err := errors.Join(<-cancelled, wrong); err != nil {
		return 0, 0, false, err
	}
	if last > 0 {
		if err := e.ch.Ack(last, true); err != nil {
			return 0, 0, false, e.Err(err)
		}
	}
	return first, end, found, nil
}

// amqpOffset returns the offset of a message in its stream.
func amqpOffset(d *amqp.Delivery) (uint64, bool) {
	v, ok := d.Headers[amqpStreamOffset].(int64)
	return uint64(v), ok && v >= 0
}
