package conn

import (
	"errors"
	"fmt"
	"net"
	"strconv"
)

// KafkaGroup is a consumer group as its coordinator describes it.
type KafkaGroup struct {
	// State is the coordinator's word: Stable, Empty, PreparingRebalance, Dead (there is no such group), ….
	State   string
	Members int
	// Assigned says which partitions of which topics a member has. nil: not known, since the group shares
	// them out at the moment or its members are no consumers.
	Assigned map[string]map[int32]bool
}

// Kafka's API keys and error codes of groups.
const (
	kafkaOffsetFetch     = 9
	kafkaFindCoordinator = 10
	kafkaDescribeGroups  = 15
	kafkaDescribeNew     = 69

	kafkaNoGroup     = 69
	kafkaUnsupported = 35

	kafkaStable = "Stable"
	kafkaEmpty  = "Empty"
	kafkaDead   = "Dead"
)

// Coordinator asks which broker looks after a group, host:port.
func (c *KafkaConn) Coordinator(group string) (string, error) {
	v, ok := c.Version(kafkaFindCoordinator, 1, 2)
	if !ok {
		return "", errors.New("the broker does not tell the coordinators of groups")
	}
	w := c.Request(kafkaFindCoordinator, v, false)
	w.String(group)
	w.Int8(0) // a consumer group
	r, _, err := c.Do(0)
	if err != nil {
		return "", fmt.Errorf("coordinator: %w", err)
	}
	r.Int32() // throttle
	code := r.Int16()
	r.String() // message
	r.Int32()  // broker
	host, port := string(r.String()), r.Int32()
	switch {
	case r.Bad():
		return "", errors.New("coordinator: answer is cut short")
	case code != 0:
		return "", fmt.Errorf("coordinator: %w", KafkaError(code))
	}
	return net.JoinHostPort(host, strconv.Itoa(int(port))), nil
}

// Committed asks the coordinator of a group for all offsets that the group has committed, by topic and
// partition. A group that does not exist has none.
func (c *KafkaConn) Committed(group string) (map[string]map[int32]int64, error) {
	v, ok := c.Version(kafkaOffsetFetch, 2, 5)
	if !ok {
		return nil, errors.New("the broker does not tell the offsets of groups")
	}
	w := c.Request(kafkaOffsetFetch, v, false)
	w.String(group)
	w.Array(-1) // of all topics
	r, _, err := c.Do(0)
	if err != nil {
		return nil, fmt.Errorf("committed offsets: %w", err)
	}
	return readCommitted(r, v)
}

func readCommitted(r KafkaReader, v int16) (map[string]map[int32]int64, error) {
	if v >= 3 {
		r.Int32() // throttle
	}
	out := make(map[string]map[int32]int64)
	var failed int16
	for range r.Array() {
		offsets := make(map[int32]int64)
		out[string(r.String())] = offsets
		for range r.Array() {
			id, offset := r.Int32(), r.Int64()
			if v >= 5 {
				r.Int32() // epoch of the leader
			}
			r.String() // metadata
			if code := r.Int16(); code != 0 {
				failed = code
			} else if offset >= 0 {
				offsets[id] = offset
			}
		}
	}
	if code := r.Int16(); code != 0 {
		failed = code
	}
	switch {
	case r.Bad():
		return nil, errors.New("committed offsets: answer is cut short")
	case failed == kafkaNoGroup:
		return nil, nil
	case failed != 0:
		return nil, fmt.Errorf("committed offsets: %w", KafkaError(failed))
	}
	return out, nil
}

// Group asks the coordinator of a group for its members. A group that does not exist is Dead and has none.
func (c *KafkaConn) Group(group string) (*KafkaGroup, error) {
	g, err := c.classicGroup(group)
	if err == nil && g.State == kafkaDead {
		// The groups of KIP-848, which the brokers share out themselves, are told by another request.
		if _, ok := c.Version(kafkaDescribeNew, 0, 0); ok {
			g, err = c.newGroup(group)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("members: %w", err)
	}
	if g.Assigned == nil && (g.State == kafkaEmpty || g.State == kafkaDead) {
		g.Assigned = make(map[string]map[int32]bool)
	}
	return g, nil
}

func (c *KafkaConn) classicGroup(group string) (*KafkaGroup, error) {
	v, ok := c.Version(kafkaDescribeGroups, 0, 4)
	if !ok {
		return nil, errors.New("the broker does not describe groups")
	}
	w := c.Request(kafkaDescribeGroups, v, false)
	w.Array(1)
	w.String(group)
	if v >= 3 {
		w.Bool(false)
	}
	r, _, err := c.Do(0)
	if err != nil {
		return nil, err
	}
	return readClassicGroup(r, v)
}

func readClassicGroup(r KafkaReader, v int16) (*KafkaGroup, error) {
	if v >= 1 {
		r.Int32() // throttle
	}
	g := &KafkaGroup{State: kafkaDead}
	var failed int16
	for range r.Array() {
		if code := r.Int16(); code != 0 {
			failed = code
		}
		r.String() // group
		g.State = string(r.String())
		consumers := string(r.String()) == "consumer"
		r.String() // way of assignment
		if consumers && g.State == kafkaStable {
			g.Assigned = make(map[string]map[int32]bool)
		}
		for range r.Array() {
			g.Members++
			r.String() // member
			if v >= 4 {
				r.String() // instance
			}
			r.String() // client
			r.String() // host
			r.Bytes()  // what it subscribes to
			if a := r.Bytes(); g.Assigned != nil && !g.assign(a) {
				g.Assigned = nil
			}
		}
		if v >= 3 {
			r.Int32() // what we may do
		}
	}
	switch {
	case r.Bad():
		return nil, errors.New("answer is cut short")
	case failed != 0:
		return nil, KafkaError(failed)
	}
	return g, nil
}

// assign takes in what a member has, in the format that consumers agree on among themselves. It reports
// whether that could be read.
func (g *KafkaGroup) assign(b []byte) bool {
	if len(b) == 0 {
		return true // it has nothing
	}
	r := NewKafkaReader(b, false)
	r.Int16() // version
	for range r.Array() {
		topic := string(r.String())
		for range r.Array() {
			g.has(topic, r.Int32())
		}
	}
	return !r.Bad()
}

func (g *KafkaGroup) has(topic string, partition int32) {
	if g.Assigned[topic] == nil {
		g.Assigned[topic] = make(map[int32]bool)
	}
	g.Assigned[topic][partition] = true
}

func (c *KafkaConn) newGroup(group string) (*KafkaGroup, error) {
	w := c.Request(kafkaDescribeNew, 0, true)
	w.Array(1)
	w.String(group)
	w.Bool(false)
	w.End()
	r, _, err := c.Do(0)
	if err != nil {
		return nil, err
	}
	return readNewGroup(r)
}

func readNewGroup(r KafkaReader) (*KafkaGroup, error) {
	r.Int32() // throttle
	g := &KafkaGroup{State: kafkaDead, Assigned: make(map[string]map[int32]bool)}
	var failed int16
	for range r.Array() {
		code := r.Int16()
		r.String() // message
		r.String() // group
		state := string(r.String())
		switch code {
		case 0:
			g.State = state
		case kafkaNoGroup, kafkaUnsupported: // there is no such group, none of this kind, or no such kind
		default:
			failed = code // it may have members, of which nothing is known
		}
		r.Int32()  // epoch of the group
		r.Int32()  // epoch of the assignment
		r.String() // way of assignment
		for range r.Array() {
			g.Members++
			r.String() // member
			r.String() // instance
			r.String() // rack
			r.Int32()  // epoch
			r.String() // client
			r.String() // host
			for range r.Array() {
				r.String() // topic that it subscribes to
			}
			r.String() // or by a pattern
			for target := range 2 {
				for range r.Array() {
					r.UUID()
					topic := string(r.String())
					for range r.Array() {
						if p := r.Int32(); target == 0 {
							g.has(topic, p)
						}
					}
					r.End()
				}
				r.End()
			}
			r.End()
		}
		r.Int32() // what we may do
		r.End()
	}
	r.End()
	switch {
	case r.Bad():
		return nil, errors.New("answer is cut short")
	case failed != 0:
		return nil, KafkaError(failed)
	}
	return g, nil
}
