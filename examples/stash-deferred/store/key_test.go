package store

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// Keys sort as their times do, whatever the length of the number, and a scan up to a second takes all that is due in
// it and nothing that is due later.
func TestKeysSortByTime(t *testing.T) {
	times := []int64{0, 1, 9, 10, 99, 100, 999_999_999, 1_000_000_000, 1_764_388_805, 1_764_388_806, MaxDue - 1, MaxDue}
	ids := []string{"0", "A", "Z", "zzz", "~", "\U0010ffff"}
	var keys []string
	for _, due := range times {
		for _, id := range ids {
			keys = append(keys, Key(due, id))
		}
	}
	want := slices.Clone(keys)
	rand.Shuffle(len(keys), func(i, j int) { keys[i], keys[j] = keys[j], keys[i] })
	slices.Sort(keys)
	if !slices.Equal(keys, want) {
		t.Errorf("sorted keys: %q", keys)
	}
	for _, now := range times {
		for _, due := range times {
			for _, id := range ids {
				key := Key(due, id)
				if got := prefix <= key && key < dueBefore(now); got != (due <= now) {
					t.Errorf("a scan at %d takes %q: %v", now, key, got)
				}
			}
		}
	}
	// A clock that is wrong must not scan backwards.
	if dueBefore(-5) < prefix || dueBefore(MaxDue+5) < Key(MaxDue, "z") {
		t.Error("a scan at a time that no key has loses its range")
	}
}

func TestParseKey(t *testing.T) {
	due, id, err := ParseKey(Key(1_764_388_805, "abc:def"))
	if due != 1_764_388_805 || id != "abc:def" || err != nil {
		t.Errorf("ParseKey: %d, %q, %v", due, id, err)
	}
	for _, key := range []string{"", "deferred:", "deferred:1:abc", "deferred:1764388805:", "deferred:17643888059:a", "other:1764388805:a"} {
		if due, id, err := ParseKey(key); err == nil {
			t.Errorf("ParseKey(%q) = %d, %q", key, due, id)
		}
	}
}
