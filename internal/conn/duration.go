package conn

import (
	"fmt"
	"time"

	"github.com/prometheus/common/model"
)

// Duration is a time.Duration that a configuration file may write as Go does ("1.5s", "250ms") or as
// Prometheus does ("5m", "1d", "2w").
type Duration time.Duration

// ParseDuration reads either syntax.
func ParseDuration(s string) (time.Duration, error) {
	if d, err := time.ParseDuration(s); err == nil {
		return d, nil
	}
	if d, err := model.ParseDuration(s); err == nil {
		return time.Duration(d), nil
	}
	return 0, fmt.Errorf("%q is not a duration: write a number and a unit, such as 500ms, 15s, 5m, 1h30m or 1d", s)
}

// UnmarshalYAML implements yaml.Unmarshaler in the form that keeps strict decoding.
func (d *Duration) UnmarshalYAML(unmarshal func(any) error) error {
	var s string
	if err := unmarshal(&s); err != nil {
		return err
	}
	v, err := ParseDuration(s)
	if err != nil {
		return err
	}
	*d = Duration(v)
	return nil
}

// MarshalYAML writes Go's syntax.
func (d Duration) MarshalYAML() (any, error) { return time.Duration(d).String(), nil }

func (d Duration) String() string { return time.Duration(d).String() }
