package lines

import (
	"encoding/json"
	"io"
	"strings"
	"time"
	"unicode"
)

// Latency writes a duration with three digits or so: 1.56ms, 12.3s.
func Latency(d time.Duration) string {
	for _, unit := range []time.Duration{time.Second, time.Millisecond, time.Microsecond} {
		if d >= unit || -d >= unit {
			return d.Round(unit / 100).String()
		}
	}
	return d.String()
}

// Clean puts what a stranger said on one line. What it says must not move the cursor of a terminal.
func Clean(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, s)
	return strings.Join(strings.Fields(s), " ")
}

// JSON writes v as one line.
func JSON(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = w.Write(append(b, '\n'))
	return err
}
