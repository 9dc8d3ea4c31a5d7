package conn

import (
	"encoding/base64"
	"encoding/json"
	"net/url"
	"strings"
)

// plainRun is the shortest run of letters and digits of a secret that is taken out of a text by itself:
// whatever escapes the rest, it leaves such a run as it is. A shorter one is likely to be an ordinary word.
const plainRun = 8

// A Redactor takes secrets out of what a server said, which may repeat what it was sent. The zero value
// takes nothing out. It is safe for concurrent use.
type Redactor struct{ r *strings.Replacer }

// NewRedactor returns a Redactor for these secrets, in all the forms in which one is sent or escaped.
func NewRedactor(secrets ...string) Redactor {
	var pairs []string
	hide := func(s string) {
		if s != "" {
			pairs = append(pairs, s, "<secret>")
		}
	}
	for _, s := range secrets {
		quoted, _ := json.Marshal(s)
		for _, form := range []string{s, url.QueryEscape(s), url.PathEscape(s), strings.Trim(string(quoted), `"`),
			base64.StdEncoding.EncodeToString([]byte(s)), base64.URLEncoding.EncodeToString([]byte(s))} {
			hide(form)
		}
	}
	// Behind the whole ones, which the replacer prefers when both begin at the same place.
	for _, s := range secrets {
		for _, run := range strings.FieldsFunc(s, func(r rune) bool { return r > 'z' || !nameByte(byte(r)) }) {
			if len(run) >= plainRun {
				hide(run)
			}
		}
	}
	if len(pairs) == 0 {
		return Redactor{}
	}
	return Redactor{strings.NewReplacer(pairs...)}
}

func nameByte(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}

// Text returns s without the secrets.
func (r Redactor) Text(s string) string {
	if r.r == nil {
		return s
	}
	return r.r.Replace(s)
}

// Error returns err with a text without the secrets. What it wraps stays.
func (r Redactor) Error(err error) error {
	if err == nil {
		return nil
	}
	if text := r.Text(err.Error()); text != err.Error() {
		return &redacted{text, err}
	}
	return err
}

type redacted struct {
	text string
	err  error
}

func (r *redacted) Error() string { return r.text }
func (r *redacted) Unwrap() error { return r.err }
