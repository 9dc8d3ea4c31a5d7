package demo

import (
	"testing"
	"time"
)

func TestKeys(t *testing.T) {
	for _, tc := range []struct {
		keys string
		want Fault
		yaml bool
		quit bool
	}{
		{keys: "", want: Fault{}},
		{keys: "s", want: Fault{Slow: 2 * time.Second}},
		{keys: "sss", want: Fault{Slow: 6 * time.Second}},
		{keys: "d", want: Fault{Drop: 1. / 3}},
		{keys: "dd", want: Fault{}},
		{keys: "c", want: Fault{Stall: true}},
		{keys: "cc", want: Fault{}},
		{keys: "k", want: Fault{Refuse: true}},
		{keys: "u", want: Fault{Duplicate: 5}},
		{keys: "sdcku", want: Fault{Slow: 2 * time.Second, Drop: 1. / 3, Stall: true, Refuse: true, Duplicate: 5}},
		{keys: "sdckuh", want: Fault{}},
		{keys: "y", yaml: true},
		{keys: "yy"},
		{keys: "ys", want: Fault{Slow: 2 * time.Second}}, // a fault is worth looking at
		{keys: "x1 \r\x1a", want: Fault{}},
		{keys: "q", quit: true},
		{keys: "\x03", quit: true},
		{keys: "\x04", quit: true},
	} {
		svc, s := newService(nil), &screen{Hint: true}
		quit := false
		for _, k := range []byte(tc.keys) {
			quit = s.press(k, svc) || quit
		}
		if got := svc.state().Fault; got != tc.want || s.ShowYAML != tc.yaml || quit != tc.quit || s.Hint != (tc.keys == "") {
			t.Errorf("%q: fault %v, YAML %v, quit %v, hint %v", tc.keys, got, s.ShowYAML, quit, s.Hint)
		}
	}
}

func TestSlowHasALimit(t *testing.T) {
	svc, s := newService(nil), &screen{}
	for range 1000 {
		s.press('s', svc)
	}
	if got := svc.state().Fault.Slow; got != mostSlow {
		t.Errorf("slow by %v", got)
	}
}

func TestLetters(t *testing.T) {
	for typed, want := range map[string]string{
		"":               "",
		"sS":             "ss",
		"\x03":           "\x03",
		"\x1b[A":         "", // arrow up
		"\x1b[As\x1b[Bd": "sd",
		"\x1bOPs":        "s", // F1
		"\x1b[15~h":      "h", // F5
		"\x1b[1;5Cq":     "q", // control and arrow right
		"\x1b":           "",
		"\x1b[":          "",
		"\x1bs":          "", // alt and s
		"\xc3\x9f":       "\xc3\x9f",
	} {
		if got := string(letters([]byte(typed))); got != want {
			t.Errorf("%q: %q, want %q", typed, got, want)
		}
	}
}
