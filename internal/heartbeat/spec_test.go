package heartbeat

import (
	"encoding/hex"
	"errors"
	"os"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

const specification = "../../docs/heartbeat.md"

// vectors reads the records of a fenced block of the specification: lines of a field and its value,
// an empty line between two records.
func vectors(t *testing.T, block string) []map[string]string {
	t.Helper()
	text, err := os.ReadFile(specification)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(text), "```text "+block+"\n")
	body, _, closed := strings.Cut(rest, "\n```")
	if !ok || !closed {
		t.Fatalf("%s has no block %q", specification, block)
	}
	var all []map[string]string
	for _, record := range strings.Split(body, "\n\n") {
		v := make(map[string]string)
		for _, line := range strings.Split(record, "\n") {
			field, value, _ := strings.Cut(line, " ")
			v[field] = strings.TrimSpace(value)
		}
		all = append(all, v)
	}
	return all
}

func vectorKeys(t *testing.T, v map[string]string) *Keyring {
	t.Helper()
	if v["key"] == "-" {
		return NewKeyring()
	}
	key, err := hex.DecodeString(v["key"])
	if err != nil || len(key) == 0 {
		t.Fatalf("key %q: %v", v["key"], err)
	}
	return NewKeyring(key)
}

func vectorHeartbeat(t *testing.T, v map[string]string) Heartbeat {
	t.Helper()
	number := func(field string, base, bits int) uint64 {
		n, err := strconv.ParseUint(v[field], base, bits)
		if err != nil {
			t.Fatalf("%s: %v", field, err)
		}
		return n
	}
	micros := func(field string) time.Duration { return time.Duration(number(field, 10, 52)) * time.Microsecond }
	sent, err := strconv.ParseInt(v["sent"], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return Heartbeat{Probe: v["probe"], Instance: number("instance", 16, 64), Epoch: number("epoch", 16, 64),
		Lane: uint32(number("lane", 10, 32)), Lanes: uint32(number("lanes", 10, 32)), Seq: number("sequence", 10, 64),
		Sent: time.Unix(0, sent), Expiry: micros("expiry"), Interval: micros("interval"), Timeout: micros("timeout"),
		Accepted: number("accepted", 16, 64)}
}

func TestVectorsOfSpecification(t *testing.T) {
	all := vectors(t, "vectors")
	if len(all) < 8 {
		t.Fatalf("the specification has %d test vectors only", len(all))
	}
	for _, v := range all {
		t.Run(v["name"], func(t *testing.T) {
			if len(v) != 14 {
				t.Fatalf("%d fields: %v", len(v), v)
			}
			keys, want := vectorKeys(t, v), vectorHeartbeat(t, v)
			if token := string(keys.Append(nil, &want)); token != v["token"] {
				t.Errorf("the fields give %s", token)
			}
			var got Heartbeat
			if err := keys.Decode([]byte(v["token"]), &got); err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("the token gives %+v, %v", got, err)
			}
		})
	}
}

func TestRefusedVectorsOfSpecification(t *testing.T) {
	verdicts := map[string]error{"corrupt": ErrCorrupt, "forged": ErrForged}
	seen := make(map[string]bool)
	for _, v := range vectors(t, "refused") {
		want := verdicts[v["verdict"]]
		if want == nil || len(v) != 4 {
			t.Fatalf("%v is no vector", v)
		}
		seen[v["verdict"]] = true
		if err := vectorKeys(t, v).Decode([]byte(v["token"]), new(Heartbeat)); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", v["name"], err, want)
		}
	}
	if len(seen) != len(verdicts) {
		t.Errorf("verdicts shown: %v", seen)
	}
}

// The page on tracing says how the ids of a trace are made, with an example.
func TestTraceOfSpecification(t *testing.T) {
	text, err := os.ReadFile("../../docs/tracing.md")
	if err != nil {
		t.Fatal(err)
	}
	h := vectorHeartbeat(t, vectors(t, "vectors")[0])
	trace := h.Trace()
	if want := "\n    traceparent: " + trace.Parent(true) + "\n"; !strings.Contains(string(text), want) {
		t.Errorf("docs/tracing.md does not say%s", want)
	}
}

// What the page says in figures holds in the code.
func TestFiguresOfSpecification(t *testing.T) {
	text, err := os.ReadFile(specification)
	if err != nil {
		t.Fatal(err)
	}
	smallest := Heartbeat{Probe: "p", Sent: time.Unix(0, 0)}
	short := len(unsigned.Append(nil, &smallest)) - len(Magic) - len("p.")
	long := MaxToken - len(Magic) - MaxProbeName - 1
	for _, want := range []string{
		"| binary part | " + strconv.Itoa(short) + " to " + strconv.Itoa(long) + " |",
		"| probe | 1 to " + strconv.Itoa(MaxProbeName) + " |",
		"(hexadecimal `" + strings.TrimSpace(regexp.MustCompile("..").ReplaceAllString(hex.EncodeToString(magic), "$0 ")) + "`)",
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("%s does not say %q", specification, want)
		}
	}
	if n := strings.Count(string(text), Magic); n < 6 {
		t.Errorf("the magic stands %d times in %s", n, specification)
	}
}
