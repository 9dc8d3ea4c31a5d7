package store

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// prefix of the keys of all deferred messages.
const prefix = "deferred:"

// MaxDue is the last second that a key has room for, in the year 2286.
const MaxDue = 9_999_999_999

// Key returns the key of the row of a message: deferred:<unix timestamp>:<id>. The timestamp has always ten digits,
// so that the order of the keys, in which Bigtable scans, is that in which messages are due. Seconds beyond 0 and
// MaxDue have no key.
func Key(due int64, id string) string { return fmt.Sprintf("%s%010d:%s", prefix, due, id) }

var keyShape = regexp.MustCompile(`^deferred:(\d{10}):(.+)$`)

// ParseKey is the inverse of Key.
func ParseKey(key string) (due int64, id string, err error) {
	m := keyShape.FindStringSubmatch(key)
	if m == nil {
		return 0, "", fmt.Errorf("row %q: the key is not deferred:<10 digits>:<id>", key)
	}
	due, err = strconv.ParseInt(m[1], 10, 64)
	return due, m[2], err
}

// dueBefore returns the end, exclusive, of the range of keys that are due at the second now: all keys of that
// second are in it, since a message that is due at 12:00:05 is due from the beginning of that second on. The
// character after the colon closes the range behind the last of its ids.
func dueBefore(now int64) string {
	return strings.TrimSuffix(Key(min(max(now, 0), MaxDue), ""), ":") + string(rune(':'+1))
}
