package web

import (
	"errors"
	"fmt"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/net/html"

	"github.com/lag-monitor/lag-monitor/internal/monitor"
)

// hostile are texts that somebody may put into a label, a name or an error.
var hostile = []string{
	`"><script>alert(1)</script><img src=x onerror=alert(2)>`,
	`</title></style></textarea></pre></svg><script>alert(1)</script>`,
	`javascript:alert(1)`,
	`' onmouseover='alert(1)`,
	"\x00\x01\x1b[31mred\x1b[0m\r\n\t\x7f",
	"\u202e\u2066right to left\u200b\ufeff",
	"\xff\xfe not UTF-8 \xc3",
	"{{.Probes}}${7*7}<!-- --><![CDATA[ ]]>",
	strings.Repeat("long ", 100_000),
	"", ".", "..", "a/b?c#d%2e", "\u2028\u2029",
}

// fill puts text into every string of v, and something into every list, map and pointer.
func fill(v reflect.Value, text string, depth int) {
	switch v.Kind() {
	case reflect.String:
		v.SetString(text)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), text, depth)
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			v.Set(reflect.ValueOf(now.Add(-time.Minute)))
			return
		}
		for i := range v.NumField() {
			fill(v.Field(i), text, depth+1)
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range 2 {
			fill(v.Index(i), text, depth+1)
		}
	case reflect.Map:
		key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		fill(key, text, depth+1)
		fill(value, text, depth+1)
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(key, value)
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Float64:
		v.SetFloat(float64(depth))
	case reflect.Int:
		v.SetInt(int64(depth))
	case reflect.Uint32, reflect.Uint64:
		v.SetUint(uint64(depth))
	default:
		panic(fmt.Sprint("a kind that is not filled: ", v.Type()))
	}
}

// sound fails when a page does something else than show: a script or a handler that is not ours, an address that is no
// page, a character that is not to be seen, elements that do not nest.
func sound(t *testing.T, page []byte) {
	t.Helper()
	if !utf8.Valid(page) {
		t.Error("not UTF-8")
	}
	for _, r := range string(page) {
		if r != '\n' && r != '\t' && (unicode.IsControl(r) || unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp)) {
			t.Errorf("the page holds %U", r)
			break
		}
	}
	void := map[string]bool{"meta": true, "link": true, "input": true, "br": true, "img": true}
	var open []string
	for z := html.NewTokenizer(strings.NewReader(string(page))); ; {
		kind := z.Next()
		if kind == html.ErrorToken {
			break
		}
		k := z.Token()
		switch kind {
		case html.StartTagToken, html.SelfClosingTagToken:
			src := ""
			for _, a := range k.Attr {
				if strings.HasPrefix(a.Key, "on") || a.Key == "style" {
					t.Errorf("<%s %s=%q>", k.Data, a.Key, a.Val)
				}
				if u := strings.TrimLeft(strings.ToLower(a.Val), " "); (a.Key == "href" || a.Key == "src" || a.Key == "action") && strings.Contains(strings.SplitN(u, "/", 2)[0], ":") &&
					!strings.HasPrefix(u, "http://") && !strings.HasPrefix(u, "https://") {
					t.Errorf("<%s %s=%q>", k.Data, a.Key, a.Val)
				}
				if a.Key == "src" {
					src = a.Val
				}
			}
			if k.Data == "script" && !strings.Contains(src, "assets/") || k.Data == "img" || k.Data == "iframe" {
				t.Errorf("%s", k)
			}
			if kind == html.StartTagToken && !void[k.Data] {
				open = append(open, k.Data)
			}
		case html.EndTagToken:
			if len(open) == 0 || open[len(open)-1] != k.Data {
				t.Fatalf("</%s> closes nothing; open: %q", k.Data, open)
			}
			open = open[:len(open)-1]
		}
	}
	if len(open) > 0 {
		t.Errorf("not closed: %q", open)
	}
}

// TestHostileTexts puts each of them into every field there is.
func TestHostileTexts(t *testing.T) {
	for i, text := range hostile {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			var st monitor.Status
			fill(reflect.ValueOf(&st).Elem(), text, 0)
			var d monitor.ProbeDetail
			fill(reflect.ValueOf(&d).Elem(), text, 0)
			for _, paused := range []bool{true, false} {
				for i := range st.Sinks {
					st.Sinks[i].Up = i == 0 && paused
				}
				if !paused {
					st.Probes[0].Paused, d.Paused = nil, nil
				}
				sound(t, renderList(t, answer{text, now, st}, errors.New(text)))
				sound(t, renderProbe(t, d, st.Sinks, site{Admin: true, Alertmanager: mustURL("https://a.example"), External: mustURL("https://b.example")}))
				// With stations that are connected, whatever they are called.
				d.Sinks[0].Sink, d.Sinks[0].Role, d.Hops[0].From, d.Hops[0].To, d.Stuck.From, d.Stuck.To = text, roleHop, "head", text, "head", text
				sound(t, renderProbe(t, d, st.Sinks, site{}))
			}
		})
	}
}

// TestLinksAreOfPages: an address from a configuration becomes a link when a browser may go there.
func TestLinksAreOfPages(t *testing.T) {
	for address, want := range map[string]bool{
		"https://wiki/x?y=1#z": true, "http://wiki": true, "javascript:alert(1)": false, "JavaScript://x/%0aalert(1)": false, "data:text/html,x": false,
		"//wiki": false, "wiki": false, "": false, "https://": false, "http://\x00": false,
	} {
		d := monitor.ProbeDetail{ProbeStatus: monitor.ProbeStatus{Name: "p", Head: "http", Runbook: address}}
		p := newProbe(d, nil, site{}, now)
		if got := len(p.Links) == 1; got != want {
			t.Errorf("%q: linked %v, want %v", address, got, want)
		}
	}
}

func TestSilenceLink(t *testing.T) {
	at := site{Alertmanager: mustURL("https://alerts.example.com/am/"), External: mustURL("https://lag.example.com/eu")}
	for name, want := range map[string]string{
		"orders": "https://alerts.example.com/am/#/silences/new?filter=%7Bprobe%3D%22orders%22%7D&comment=https%3A%2F%2Flag.example.com%2Feu%2Fprobes%2Forders",
		`a"b\&`:  "https://alerts.example.com/am/#/silences/new?filter=%7Bprobe%3D%22a%5C%22b%5C%5C%26%22%7D&comment=https%3A%2F%2Flag.example.com%2Feu%2Fprobes%2Fa%2522b%255C&%26",
	} {
		l, ok := at.silence(name)
		if name != "orders" {
			// What matters is that the matcher holds the whole name.
			_, q, _ := strings.Cut(string(l.URL), "?filter=")
			q, _, _ = strings.Cut(q, "&")
			if q != "%7Bprobe%3D%22a%5C%22b%5C%5C%26%22%7D" {
				t.Errorf("%s: %s", name, q)
			}
			continue
		}
		if !ok || string(l.URL) != want {
			t.Errorf("%s: %s, want %s", name, l.URL, want)
		}
	}
	if _, ok := (site{}).silence("orders"); ok {
		t.Error("a link to nowhere")
	}
}

func FuzzPage(f *testing.F) {
	for _, s := range hostile {
		f.Add(s[:min(len(s), 1000)], 1.5, int64(3))
	}
	f.Add("x", math.NaN(), int64(math.MaxInt64))
	f.Add("x", math.Inf(1), int64(math.MinInt64))
	f.Add("x", -1e300, int64(-1))
	f.Fuzz(func(t *testing.T, text string, number float64, at int64) {
		var st monitor.Status
		fill(reflect.ValueOf(&st).Elem(), text, 0)
		var d monitor.ProbeDetail
		fill(reflect.ValueOf(&d).Elem(), text, 0)
		when := time.Unix(at%(1<<40), at)
		d.Sinks[0].Lag, d.Sinks[0].Rate, d.History.Step, d.History.Start, d.PageLimits.Lag, d.PageLimits.LagSince, d.Paused = number, number, number, when, number, when, nil
		d.Beats[0].Due, d.Beats[0].Sinks[0].Latency, d.Hops[0].P99 = when, number, number
		d.History.Sinks[0].Lag = []*float64{nil, &number, nil, &number}
		st.Probes[0] = d.ProbeStatus
		sound(t, renderList(t, answer{text, now, st}, errors.New(text)))
		sound(t, renderProbe(t, d, st.Sinks, site{Admin: true}))
	})
}
