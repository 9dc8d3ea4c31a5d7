package demo

import (
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Fault is what is wrong with the service. The zero value is a healthy one.
type Fault struct {
	Slow      time.Duration // every message comes out so much later than asked for
	Drop      float64       // share of the messages that vanish, 0 to 1
	Duplicate int           // every nth message comes out twice; 0: none does
	Stall     bool          // nothing comes out; it is kept
	Refuse    bool          // the HTTP side takes nothing
}

const mostSlow = time.Minute

// set takes over what the query of POST /fault says; what it does not name stays.
func (f *Fault) set(q url.Values) error {
	for name, values := range q {
		var err error
		switch v := values[len(values)-1]; name {
		case "slow":
			if f.Slow, err = time.ParseDuration(v); err == nil && (f.Slow < 0 || f.Slow > mostSlow) {
				err = fmt.Errorf("is not between 0s and %v", mostSlow)
			}
		case "drop":
			if f.Drop, err = strconv.ParseFloat(v, 64); err == nil && !(f.Drop >= 0 && f.Drop <= 1) {
				err = errors.New("is not between 0 and 1")
			}
		case "duplicate":
			if f.Duplicate, err = strconv.Atoi(v); err == nil && f.Duplicate < 0 {
				err = errors.New("is negative")
			}
		case "stall":
			f.Stall, err = strconv.ParseBool(v)
		case "refuse":
			f.Refuse, err = strconv.ParseBool(v)
		default:
			err = errors.New("is none of slow, drop, duplicate, stall, refuse")
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// String says it in words.
func (f Fault) String() string {
	var words []string
	if f.Slow > 0 {
		words = append(words, "slow by "+seconds(f.Slow.Seconds()))
	}
	if f.Drop > 0 {
		words = append(words, "drops "+share(f.Drop))
	}
	if f.Duplicate > 0 {
		words = append(words, fmt.Sprintf("publishes each %dth message twice", f.Duplicate))
	}
	if f.Stall {
		words = append(words, "publishes nothing")
	}
	if f.Refuse {
		words = append(words, "refuses new messages")
	}
	if words == nil {
		return "none"
	}
	return strings.Join(words, ", ")
}
