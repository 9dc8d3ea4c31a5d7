package web

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// none stands where there is nothing to show.
const none = "–"

// maxText bounds what the page shows of a name, a label or an error: somebody else chose how long it is.
const maxText = 500

// seconds converts, and saturates.
func seconds(s float64) time.Duration {
	if math.IsNaN(s) {
		return 0
	}
	const most = float64(math.MaxInt64) / 1e9
	return time.Duration(min(max(s, -most), most*0.999) * 1e9)
}

// count writes a number with a thin space between thousands.
func count(n uint64) string {
	s := strconv.FormatUint(n, 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "\u202f" + s[i:]
	}
	return s
}

// several writes a number and what it counts.
func several(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return count(uint64(max(n, 0))) + " " + many
}

// duration writes two units at most: precise enough to act on, short enough for a table.
func duration(d time.Duration) string {
	if d < 0 {
		return "-" + duration(-max(d, -math.MaxInt64))
	}
	switch {
	case d == 0:
		return "0s"
	case d < 10*time.Millisecond:
		return fmt.Sprintf("%.1fms", float64(d)/1e6)
	case d < time.Second:
		return fmt.Sprintf("%dms", d/time.Millisecond)
	case d < time.Minute:
		return fmt.Sprintf("%.1fs", math.Floor(d.Seconds()*10)/10)
	case d < time.Hour:
		return fmt.Sprintf("%dm %02ds", d/time.Minute, d%time.Minute/time.Second)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh %02dm", d/time.Hour, d%time.Hour/time.Minute)
	}
	return fmt.Sprintf("%dd %02dh", d/(24*time.Hour), d%(24*time.Hour)/time.Hour)
}

// limit writes a duration that somebody has chosen, which is a round one: "5m", "1h30m".
func limit(s float64) string {
	t := seconds(s).String()
	if strings.HasSuffix(t, "m0s") {
		t = t[:len(t)-2]
	}
	if strings.HasSuffix(t, "h0m") {
		t = t[:len(t)-2]
	}
	return t
}

// percent writes a ratio with two digits that mean something.
func percent(r float64) string {
	if r >= 0.1 {
		return strconv.FormatFloat(r*100, 'f', 0, 64) + "%"
	}
	return strconv.FormatFloat(r*100, 'g', 2, 64) + "%"
}

// span writes how long something has lasted in whole minutes, so that a sentence with it changes once a
// minute.
func span(d time.Duration) string {
	switch {
	case d < time.Minute:
		return "less than a minute"
	case d < time.Hour:
		return several(int(d/time.Minute), "minute", "minutes")
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h %02d min", d/time.Hour, d%time.Hour/time.Minute)
	}
	return fmt.Sprintf("%d days %d h", d/(24*time.Hour), d%(24*time.Hour)/time.Hour)
}

// clock writes a time of today, or of another day with its date.
func clock(t, now time.Time) string {
	t, now = t.UTC(), now.UTC()
	if t.YearDay() == now.YearDay() && t.Year() == now.Year() {
		return t.Format("15:04:05 UTC")
	}
	return t.Format("2006-01-02 15:04 UTC")
}

// since writes a time and how long ago that is; "" for the zero time.
func since(t, now time.Time) string {
	if t.IsZero() {
		return ""
	}
	return "since " + clock(t, now) + " (" + span(now.Sub(t)) + ")"
}

// clean makes a text of somebody else fit to be shown: characters that control a terminal, an editor or
// the direction of writing are replaced by a visible mark, and it is cut to maxText.
func clean(s string) string {
	plain := len(s) <= maxText
	for i := 0; plain && i < len(s); i++ {
		plain = s[i] >= ' ' && s[i] < 0x7f
	}
	if plain {
		return s
	}
	return cleaned(s, maxText, false)
}

// cleanLines is clean for a text of many lines, which stays whole.
func cleanLines(s string) string { return cleaned(s, math.MaxInt, true) }

func cleaned(s string, most int, lines bool) string {
	var b strings.Builder
	for i, r := range s {
		if i >= most {
			b.WriteRune('…')
			break
		}
		switch {
		case lines && (r == '\n' || r == '\t'):
			b.WriteRune(r)
		case r < ' ':
			b.WriteRune('\u2400' + r)
		case r == utf8.RuneError, r == 0x7f, unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp, unicode.Co, unicode.Cs):
			b.WriteRune(utf8.RuneError)
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}
