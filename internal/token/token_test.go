package token

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/heartbeat"
)

func token(keys *heartbeat.Keyring, seq uint64) string {
	h := heartbeat.Heartbeat{Probe: "orders", Instance: 1, Epoch: 2, Lanes: 1, Seq: seq, Sent: time.Unix(1, 0), Interval: time.Second, Timeout: time.Minute, Accepted: 1}
	return string(keys.Append(nil, &h))
}

func zipped(s string) string {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, _ = w.Write([]byte(s))
	_ = w.Close()
	return b.String()
}

func TestFind(t *testing.T) {
	one, two := token(nil, 1), token(nil, 2)
	json := `{"a": "` + one + `"}`
	for _, c := range []struct{ name, text, want string }{
		{"alone", one, one},
		{"in JSON", json, one},
		{"two, one of them twice", one + " " + two + one, one + " " + two},
		{"base64", base64.StdEncoding.EncodeToString([]byte(json)), one + "(base64)"},
		{"base64 of URLs in JSON", `{"Data":"` + base64.RawURLEncoding.EncodeToString([]byte(json)) + `"}`, one + "(base64)"},
		{"gzip", zipped(json), one + "(gzip)"},
		{"gzip in base64", base64.StdEncoding.EncodeToString([]byte(zipped(json))), one + "(base64 in gzip)"},
		{"an address", "https://x/?m=" + url.QueryEscape("{"+one+"}") + "%7E", one},
		{"an address with its ~ encoded", "https://x/?m=" + strings.ReplaceAll(one, "~", "%7E"), one + "(percent-encoding)"},
		{"nothing", "an order like any other", ""},
		{"empty", "", ""},
	} {
		var got []string
		for _, f := range Find([]byte(c.text), nil) {
			s := f.Token
			if f.Within != "" {
				s += "(" + f.Within + ")"
			}
			if f.Problem != nil {
				s += f.Problem.Error()
			}
			got = append(got, s)
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// The bitmap begins with the sequence before, and a lane has nothing before its first.
func TestMissing(t *testing.T) {
	for _, c := range []struct {
		seq, accepted uint64
		missing, of   int
	}{{1, 0, 0, 0}, {2, 1, 0, 1}, {3, 1, 1, 2}, {100, ^uint64(0), 0, 64}, {100, 0, 64, 64}} {
		f := Found{Heartbeat: heartbeat.Heartbeat{Seq: c.seq, Accepted: c.accepted}}
		if missing, of := f.missing(); len(missing) != c.missing || of != c.of {
			t.Errorf("%+v: %v of %d", c, missing, of)
		}
	}
}

// FuzzFind: whatever is pasted, it ends, and what is found is a token.
func FuzzFind(f *testing.F) {
	one := token(nil, 1)
	f.Add([]byte(one))
	f.Add([]byte(zipped(one)))
	f.Add([]byte(base64.StdEncoding.EncodeToString([]byte(zipped(one)))))
	f.Add([]byte(strings.ReplaceAll(one, "~", "%7E")))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, found := range Find(b, nil) {
			if !strings.HasPrefix(found.Token, heartbeat.Magic) {
				t.Errorf("%q is no token", found.Token)
			}
			var out bytes.Buffer
			found.Text(&out, time.Unix(2, 0))
			if err := found.JSON(&out); err != nil {
				t.Error(err)
			}
			for _, r := range out.String() {
				if r < ' ' && r != '\n' {
					t.Errorf("control character %q in %q", r, out.String())
				}
			}
		}
	})
}
