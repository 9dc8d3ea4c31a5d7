package conn

import (
	"maps"
	"slices"
)

// Config is what the configuration file says of one end of a transport. It is also the factory of
// that end, and sits beside its driver.
//
// A driver's constructor returns a Config filled with the defaults; the file is decoded over it.
type Config[T any] interface {
	// Validate reports every mistake that can be seen without touching the network, the file system
	// or the environment. A mistake in one key is a FieldError (see Field), several are joined with
	// errors.Join.
	Validate() error
	// Open makes the end. It reads secrets and certificates but does not wait for the network: a
	// broker that is down is an error of the first use, not of Open.
	Open() (T, error)
}

// Kinds is a table of transports: the key that names one in a configuration file, and a constructor of
// its Config, filled with the defaults.
type Kinds[T any] map[string]func() Config[T]

// New returns the Config of a kind, and false for a kind that does not exist.
func (k Kinds[T]) New(kind string) (Config[T], bool) {
	f, ok := k[kind]
	if !ok {
		return nil, false
	}
	return f(), true
}

// Names returns the names of all kinds, sorted.
func (k Kinds[T]) Names() []string { return slices.Sorted(maps.Keys(k)) }
