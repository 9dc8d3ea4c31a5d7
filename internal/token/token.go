package token

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"net/url"
	"regexp"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/heartbeat"
	"github.com/lag-monitor/lag-monitor/internal/lines"
	"github.com/lag-monitor/lag-monitor/sinks"
)

// Found is one token.
type Found struct {
	Token    string
	Within   string // how it was wrapped, such as "base64"; empty: not at all
	Readable bool   // Heartbeat and Signed hold, whether or not the check code is right
	Signed   bool
	heartbeat.Heartbeat
	// Problem is nil for a genuine heartbeat.
	Problem error
}

const (
	maxDepth = 3 // a token in JSON in base64 in gzip
	maxFound = 10_000
)

// Find returns the tokens in text, each once, in their order. It also looks into what is
// wrapped in it: percent-encoding, base64, and the envelopes that sinks know. keys verify; without keys a checksum is enough.
func Find(text []byte, keys *heartbeat.Keyring) []Found {
	var out []Found
	seen := make(map[string]bool)
	find(text, "", maxDepth, func(token []byte, within string) bool {
		if s := string(token); !seen[s] {
			seen[s] = true
			out = append(out, inspect(s, within, keys))
		}
		return len(out) < maxFound
	})
	return out
}

// base64Run is a piece of text that may be base64 of something that holds a token: tokens are longer than 60.
var base64Run = regexp.MustCompile(`[A-Za-z0-9+/_-]{60,}={0,2}`)

func find(text []byte, within string, depth int, found func(token []byte, within string) bool) bool {
	for rest := text; ; {
		_, token, after, ok := heartbeat.Next(rest)
		if !ok {
			break
		}
		if !found(token, within) {
			return false
		}
		rest = after
	}
	if depth == 0 {
		return true
	}
	in := func(how string) string { return strings.TrimPrefix(within+" in "+how, " in ") }
	for _, name := range sinks.Envelopes() {
		u, err := sinks.NewUnwrap(name)
		if err != nil {
			continue
		}
		more := true
		u.Each(text, func(inner []byte) {
			if more && !bytes.Equal(inner, text) {
				more = find(bytes.Clone(inner), in(name), depth-1, found)
			}
		})
		if !more {
			return false
		}
	}
	if s, err := url.QueryUnescape(string(text)); err == nil && bytes.Contains(text, []byte("%7")) {
		if !find([]byte(s), in("percent-encoding"), depth-1, found) {
			return false
		}
	}
	for _, run := range base64Run.FindAll(text, -1) {
		plain, ok := decode(run)
		if ok && !find(plain, in("base64"), depth-1, found) {
			return false
		}
	}
	return true
}

func decode(run []byte) ([]byte, bool) {
	s := strings.TrimRight(string(run), "=")
	enc := base64.RawStdEncoding
	if strings.ContainsAny(s, "-_") {
		enc = base64.RawURLEncoding
	}
	b, err := enc.DecodeString(s)
	return b, err == nil
}

func inspect(text, within string, keys *heartbeat.Keyring) Found {
	f := Found{Token: text, Within: within}
	signed, err := heartbeat.Peek([]byte(text), &f.Heartbeat)
	f.Readable, f.Signed = err == nil, signed
	var ignored heartbeat.Heartbeat
	switch err := keys.Decode([]byte(text), &ignored); {
	case err == nil:
	case !f.Readable:
		f.Problem = fmt.Errorf("it is cut short or damaged: %w", err)
	case f.Signed && !keys.Signed():
		f.Problem = fmt.Errorf("it is signed, and no key was given to verify it with")
	case f.Signed:
		f.Problem = fmt.Errorf("it is signed by another key, or damaged")
	case keys.Signed():
		f.Problem = fmt.Errorf("it is not signed, and a key was given")
	default:
		f.Problem = fmt.Errorf("its checksum is wrong: it was damaged or made up")
	}
	return f
}

// check says of which kind the check code is, and whether it is right.
func (f *Found) check() string {
	kind := "CRC-32C"
	if f.Signed {
		kind = "HMAC-SHA-256"
	}
	if f.Problem == nil {
		return kind + ", right"
	}
	return kind + ", NOT VALID: " + f.Problem.Error()
}

// missing lists the sequences before the token's own that the head had not accepted, of the 64 before.
func (f *Found) missing() (seqs []uint64, of int) {
	for i := uint64(0); i < 64 && i+1 < f.Seq; i++ {
		of++
		if f.Accepted>>i&1 == 0 {
			seqs = append(seqs, f.Seq-1-i)
		}
	}
	return seqs, of
}

// Text writes what a token says, for people. now is what times are compared with.
func (f *Found) Text(w io.Writer, now time.Time) {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(name, format string, args ...any) { fmt.Fprintf(tw, name+"\t"+format+"\n", args...) }
	token := f.Token
	if f.Within != "" {
		token += "  (in " + f.Within + ")"
	}
	row("token", "%s", token)
	if !f.Readable {
		row("check code", "NOT VALID: %v", f.Problem)
		_ = tw.Flush()
		return
	}
	row("probe", "%s", f.Probe)
	row("instance", "%016x", f.Instance)
	row("epoch", "%016x", f.Epoch)
	row("lane", "%d of %d", f.Lane, f.Lanes)
	row("sequence", "%d", f.Seq)
	row("sent", "%s", at(f.Sent, now))
	row("expiry", "%v", f.Expiry)
	row("due", "%s", at(f.Due(), now))
	row("timeout", "%v", f.Timeout)
	row("deadline", "%s", at(f.Deadline(), now))
	row("interval", "%v", f.Interval)
	seqs, of := f.missing()
	text := fmt.Sprintf("%d of the %d before (bitmap %016x)", of-len(seqs), of, f.Accepted)
	if len(seqs) > 0 {
		text += ", not: " + strings.Trim(fmt.Sprint(seqs[:min(len(seqs), 16)]), "[]")
		if len(seqs) > 16 {
			text += " …"
		}
	}
	row("accepted", "%s", text)
	row("trace id", "%x", f.Trace().ID)
	row("check code", "%s", f.check())
	_ = tw.Flush()
}

func at(t, now time.Time) string {
	d := now.Sub(t)
	if d < 0 {
		return t.UTC().Format(time.RFC3339Nano) + ", in " + lines.Latency(-d)
	}
	return t.UTC().Format(time.RFC3339Nano) + ", " + lines.Latency(d) + " ago"
}

// JSON writes what a token says as one line. Durations are in seconds.
func (f *Found) JSON(w io.Writer) error {
	type fields struct {
		Probe       string    `json:"probe"`
		Instance    string    `json:"instance"`
		Epoch       string    `json:"epoch"`
		Lane        uint32    `json:"lane"`
		Lanes       uint32    `json:"lanes"`
		Seq         uint64    `json:"seq"`
		Sent        time.Time `json:"sent"`
		Expiry      float64   `json:"expiry"`
		Due         time.Time `json:"due"`
		Timeout     float64   `json:"timeout"`
		Deadline    time.Time `json:"deadline"`
		Interval    float64   `json:"interval"`
		Accepted    string    `json:"accepted"`
		NotAccepted []uint64  `json:"not_accepted"`
		TraceID     string    `json:"trace_id"`
		Signed      bool      `json:"signed"`
	}
	out := struct {
		Token   string `json:"token"`
		Within  string `json:"within,omitempty"`
		Valid   bool   `json:"valid"`
		Problem string `json:"problem,omitempty"`
		*fields
	}{Token: f.Token, Within: f.Within, Valid: f.Problem == nil}
	if f.Problem != nil {
		out.Problem = f.Problem.Error()
	}
	if f.Readable {
		seqs, _ := f.missing()
		out.fields = &fields{f.Probe, fmt.Sprintf("%016x", f.Instance), fmt.Sprintf("%016x", f.Epoch), f.Lane, f.Lanes, f.Seq, f.Sent.UTC(),
			f.Expiry.Seconds(), f.Due().UTC(), f.Timeout.Seconds(), f.Deadline().UTC(), f.Interval.Seconds(), fmt.Sprintf("%016x", f.Accepted),
			append([]uint64{}, seqs...), fmt.Sprintf("%x", f.Trace().ID), f.Signed}
	}
	return lines.JSON(w, out)
}
