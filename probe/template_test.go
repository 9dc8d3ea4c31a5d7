package probe

import (
	"runtime"
	"strings"
	"testing"
	"time"
)

func TestTemplateRenders(t *testing.T) {
	m := Sample()
	m.Expiry = time.Minute
	for text, want := range map[string]string{
		`{"a": "{{ .Token }}"}`:                                 `{"a": "` + m.Token + `"}`,
		`{{ .Due.Unix }} {{ .Due.UnixMilli }}`:                  "1700000000 1700000000000",
		`{{ .Due.Format "2006-01-02T15:04:05Z07:00" }}`:         "2023-11-14T22:13:20Z",
		`{{ (.Due.Add .Expiry).Unix }}`:                         "1700000060",
		`{{ (.Due.AddDate 0 0 1).UTC.Unix }}`:                   "1700086400",
		`{{ printf "%05d-%-4s|%x" .Seq "ab" .Probe }}`:          "00001-ab  |73616d706c65",
		`{{ printf "%2[1]*d" 5 }}`:                              "", // an error
		`{{ if eq .Lane 0 }}zero{{ else }}{{ .Lane }}{{ end }}`: "zero",
		`{{ with $x := .Probe }}{{ $x | html }}{{ end }}`:       "sample",
		`{{ .Expiry.Seconds }} {{ .TTL.Milliseconds }}`:         "60 60000",
		`{{ urlquery .Probe "&" }} {{ js "'" }} {{ len .Token }} {{ slice .Token 1 7 }} {{ print 1 "a" }}`: `sample%26 \' 20 lagmon 1a`,
		`{{/* nothing */}}`: "",
	} {
		tmpl, err := ParseTemplate(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		got, err := tmpl.Render(m)
		if string(got) != want || (err != nil) != strings.Contains(text, "*d") {
			t.Errorf("%s:\n got %q, %v\nwant %q", text, got, err, want)
		}
	}
}

// TestTemplateLimits: whatever a team writes, the monitor of all teams goes on. Each template here either
// is refused when it is read or stops by itself, soon and with little memory.
func TestTemplateLimits(t *testing.T) {
	times := func(n int, s string) string { return strings.Repeat(s, n) }
	for name, c := range map[string]struct{ text, want string }{
		"a loop without end":            {`{{ .Token }}{{ range 1000000000000 }}{{ end }}`, "1:21: range is not available: there is nothing to walk through"},
		"a loop in a branch":            {"{{ .Token }}\n{{ if eq .Seq 5 }}{{ range .Seq }}x{{ end }}{{ end }}", "2:27: range is not available: there is nothing to walk through"},
		"a loop in an else":             {"{{ if true }}{{ else }}{{ with 1 }}{{ else }}{{ range 3 }}{{ end }}{{ end }}{{ end }}", "1:54: range is not available: there is nothing to walk through"},
		"a template that calls itself":  {`{{ define "a" }}{{ template "a" }}{{ end }}{{ template "a" }}`, "define and block are not available: a template stands for itself"},
		"itself by its own name":        {`{{ template "template" }}`, "1:12: template is not available: a template stands for itself"},
		"only a definition":             {`{{ define "a" }}{{ end }}`, "define and block are not available: a template stands for itself"},
		"a block":                       {`{{ block "a" . }}{{ end }}`, "define and block are not available: a template stands for itself"},
		"too wide":                      {`{{ printf "%1000000000d" 1 }}`, "template: template:1:3: executing \"template\" at <printf \"%1000000000d\" 1>: error calling printf: printf: a width is at most 4096"},
		"too precise":                   {`{{ printf "%.999999f" 1.5 }}`, "printf: a width is at most 4096"},
		"a width that overflows":        {`{{ printf "%99999999999999999999999d" 1 }}`, "printf: a width is at most 4096"},
		"a width from an argument":      {`{{ printf "%*d" 100000 1 }}`, "printf: a width is written out, not *"},
		"a precision from an argument":  {`{{ printf "%.[1]*d" 100000 1 }}`, "printf: a width is written out, not *"},
		"the same argument often":       {`{{ printf "` + times(200, "%[1]04096d") + `" 1 }}`, "a function returns more than 65536 bytes"},
		"doubling":                      {`{{ $a := print .Token .Token }}` + times(40, `{{ $a = printf "%s%s" $a $a }}`) + `{{ $a }}`, "a function returns more than 65536 bytes"},
		"doubling by print":             {`{{ $a := .Token }}` + times(40, `{{ $a = print $a $a $a }}`) + `{{ $a }}`, "a function returns more than 65536 bytes"},
		"escapes of escapes":            {`{{ "&" ` + times(40, "| html ") + `| html | html }}` + `{{ "'" ` + times(40, "| js ") + `}}`, "a function returns more than 65536 bytes"},
		"escapes of quotes":             {`{{ $a := "\"" }}` + times(30, `{{ $a = printf "%q" $a }}`) + `{{ $a }}`, "a function returns more than 65536 bytes"},
		"layouts of layouts":            {`{{ $a := "1" }}` + times(40, `{{ $a = .Due.Format $a }}`) + `{{ $a }}`, "an argument of a method is written out"},
		"a layout from a pipe":          {`{{ "111" | .Due.Format }}`, "1:11: a method takes its arguments behind its name, not from a pipe"},
		"a layout from a call":          {`{{ .Due.Format (print 1) }}`, "an argument of a method is written out"},
		"a method of a variable":        {`{{ $d := .Due }}{{ $a := "1" }}{{ $d.Format $a }}`, "an argument of a method is written out"},
		"a method of a chain":           {`{{ $a := "1" }}{{ (.Due.UTC).Format $a }}`, "an argument of a method is written out"},
		"a method inside a call":        {`{{ print (.Due.Format (print "1")) }}`, "an argument of a method is written out"},
		"a message that is changed":     {`{{ $x := .Sent.MarshalText }}{{ .Due.UnmarshalText $x }}`, "an argument of a method is written out"},
		"a message changed by a method": {`{{ .Due.UnmarshalText .Sent.MarshalText }}`, "an argument of a method is written out"},
		"many parts":                    {times(501, `{{ .Seq }}`), "the template has 501 parts (functions, fields, values); at most 500 are possible"},
		"many arguments":                {`{{ print ` + times(501, `1 `) + `}}`, "the template has 502 parts"},
		"a long text":                   {times(1<<20, "x") + "y", "the template is longer than 1048576 bytes"},
		"a long result":                 {times(1<<20-1000, "x") + times(10, "{{ .Token }}"), "the template renders more than 1048576 bytes"},
		"a long result, computed":       {times(1<<20-100, "x") + times(4, "{{ printf `%4000d` 1 }}"), "the template renders more than 1048576 bytes"},
		"deep parentheses":              {`{{ ` + times(100_000, "(") + "1" + times(100_000, ")") + ` }}`, ""},
		"a call":                        {`{{ call .Token }}`, "error calling call"},
	} {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			done := make(chan error, 1)
			go func() {
				tmpl, err := ParseTemplate(c.text)
				if err == nil {
					m := Sample()
					m.Token = "~lagmon1.sample." + strings.Repeat("A", 200)
					_, err = tmpl.Render(m)
				}
				done <- err
			}()
			select {
			case err := <-done:
				if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("got %v\nwant %s", err, c.want)
				}
			case <-time.After(time.Minute):
				t.Fatal("it goes on and on")
			}
			runtime.ReadMemStats(&after)
			if took := after.TotalAlloc - before.TotalAlloc; took > 256<<20 {
				t.Errorf("%d MB allocated", took>>20)
			}
		})
	}
}
