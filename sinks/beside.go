package sinks

import (
	"errors"
	"reflect"
)

// Besider is implemented by the Config of a sink that would disturb another process which listens with the
// same settings, because it has a place at the broker that only one can have. Who takes messages out of a queue
// has a field Dedicated for it, and need not implement it.
type Besider interface {
	// Beside returns settings that read the same queue and leave that process alone, or an error that says
	// why there are none.
	Beside() (Config, error)
}

// Beside returns settings with which one may listen beside a process that has those of c.
func Beside(c Config) (Config, error) {
	// What one of two takes out of a queue the other never sees.
	if v := reflect.Indirect(reflect.ValueOf(c)); v.Kind() == reflect.Struct {
		if d := v.FieldByName("Dedicated"); d.Kind() == reflect.Bool && d.Bool() {
			return nil, errors.New("dedicated: true takes messages out of the queue, and the monitor that runs would miss them")
		}
	}
	if b, ok := c.(Besider); ok {
		return b.Beside()
	}
	return c, nil
}

// Beside implements Besider. A registered consumer has one subscription for each shard, so the twin polls.
func (c *Kinesis) Beside() (Config, error) {
	if c.EnhancedFanOut == nil {
		return c, nil
	}
	polls := *c
	polls.EnhancedFanOut = nil
	return &polls, nil
}
