package heartbeat

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net/url"
	"reflect"
	"strings"
	"testing"
	"testing/quick"
	"time"
)

const century = 100 * 365 * 24 * time.Hour

var (
	unsigned = (*Keyring)(nil)
	keyA     = []byte("the first key")
	keyB     = []byte("the second key")
)

func sample() Heartbeat {
	return Heartbeat{Probe: "stash-deferred", Instance: InstanceID("eu-1"), Epoch: 0x0123456789abcdef, Lane: 3, Lanes: 12,
		Seq: 86_400, Sent: time.Unix(0, 1_700_000_000_123_456_789), Expiry: 5 * time.Second, Interval: 10 * time.Second,
		Timeout: 5 * time.Minute, Accepted: math.MaxUint64 - 4}
}

// arbitrary makes a heartbeat of any value that a token can carry, small and large ones alike.
func arbitrary(r *rand.Rand) Heartbeat {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"
	name := make([]byte, 1+r.IntN(MaxProbeName))
	for i := range name {
		name[i] = letters[r.IntN(len(letters))]
	}
	any64 := func() uint64 { return r.Uint64() >> r.IntN(64) }
	duration := func() time.Duration {
		return min(time.Duration(any64()>>12)*time.Microsecond, century)
	}
	return Heartbeat{Probe: string(name), Instance: any64(), Epoch: any64(), Lane: uint32(any64()), Lanes: uint32(any64()),
		Seq: any64(), Sent: time.Unix(0, int64(r.Uint64())), Expiry: duration(), Interval: duration(), Timeout: duration(), Accepted: any64()}
}

func keyrings() map[string]*Keyring {
	return map[string]*Keyring{"unsigned": unsigned, "no keys": NewKeyring(), "key": NewKeyring(keyA), "two keys": NewKeyring(keyB, keyA)}
}

func TestRoundTrip(t *testing.T) {
	for name, keys := range keyrings() {
		t.Run(name, func(t *testing.T) {
			same := func(seed uint64) bool {
				h := arbitrary(rand.New(rand.NewPCG(seed, 0)))
				token := keys.Append(nil, &h)
				var got Heartbeat
				if err := keys.Decode(token, &got); err != nil {
					t.Errorf("%+v: %v", h, err)
					return false
				}
				if len(token) > MaxToken {
					t.Errorf("the token has %d bytes, more than MaxToken", len(token))
					return false
				}
				return reflect.DeepEqual(h, got)
			}
			if err := quick.Check(same, &quick.Config{MaxCount: 2000}); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestLongestToken(t *testing.T) {
	h := Heartbeat{Probe: strings.Repeat("x", MaxProbeName), Instance: math.MaxUint64, Epoch: math.MaxUint64, Lane: math.MaxUint32,
		Lanes: math.MaxUint32, Seq: math.MaxUint64, Sent: time.Unix(0, math.MaxInt64), Expiry: century, Interval: century, Timeout: century,
		Accepted: math.MaxUint64}
	token := NewKeyring(keyA).Append(nil, &h)
	if len(token) != MaxToken {
		t.Errorf("the longest token has %d bytes, MaxToken is %d", len(token), MaxToken)
	}
	if _, found, _, _ := Next(token); !bytes.Equal(found, token) {
		t.Errorf("found %q in %q", found, token)
	}
}

func TestAppendKeepsWhatIsThere(t *testing.T) {
	h := sample()
	for name, keys := range keyrings() {
		alone := keys.Append(nil, &h)
		if got, want := string(keys.Append([]byte("before"), &h)), "before"+string(alone); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

func TestAppendCutsToMicroseconds(t *testing.T) {
	h, want := sample(), sample()
	h.Expiry += 999
	h.Timeout++
	var got Heartbeat
	if err := unsigned.Decode(unsigned.Append(nil, &h), &got); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
}

func TestDecodeRefusesWhatAppendMustNotBeGiven(t *testing.T) {
	for name, spoil := range map[string]func(*Heartbeat){
		"no name":           func(h *Heartbeat) { h.Probe = "" },
		"long name":         func(h *Heartbeat) { h.Probe = strings.Repeat("x", MaxProbeName+1) },
		"dot in the name":   func(h *Heartbeat) { h.Probe = "a.b" },
		"space in the name": func(h *Heartbeat) { h.Probe = "a b" },
		"negative expiry":   func(h *Heartbeat) { h.Expiry = -time.Second },
		"negative interval": func(h *Heartbeat) { h.Interval = -time.Second },
		"endless timeout":   func(h *Heartbeat) { h.Timeout = century + time.Microsecond },
	} {
		for kind, keys := range keyrings() {
			h := sample()
			spoil(&h)
			var got Heartbeat
			if err := keys.Decode(keys.Append(nil, &h), &got); !errors.Is(err, ErrCorrupt) {
				t.Errorf("%s, %s: %v, want ErrCorrupt", name, kind, err)
			}
		}
	}
}

func TestKeys(t *testing.T) {
	a, b, both, turned := NewKeyring(keyA), NewKeyring(keyB), NewKeyring(keyA, keyB), NewKeyring(keyB, keyA)
	for _, c := range []struct {
		name           string
		signer, reader *Keyring
		want           error
	}{
		{"same key", a, a, nil},
		{"another key", a, b, ErrForged},
		{"the first one signs", both, a, nil},
		{"the second one does not sign", both, b, ErrForged},
		{"the second one verifies", a, turned, nil},
		{"rotation, first step: all know the new key", a, both, nil},
		{"rotation, second step: some sign with it already", turned, both, nil},
		{"rotation, third step: the old one is gone", both, b, ErrForged},
		{"unsigned, keys are set", unsigned, a, ErrForged},
		{"unsigned by an empty keyring, keys are set", NewKeyring(), both, ErrForged},
		{"signed, no keys", a, unsigned, ErrForged},
		{"signed, an empty keyring", a, NewKeyring(), ErrForged},
		{"unsigned, an empty keyring", unsigned, NewKeyring(), nil},
		{"an empty key is a key", NewKeyring(nil), unsigned, ErrForged},
	} {
		h := sample()
		var got Heartbeat
		if err := c.reader.Decode(c.signer.Append(nil, &h), &got); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
	if unsigned.Signed() || NewKeyring().Signed() || !a.Signed() {
		t.Error("Signed does not tell whether there are keys")
	}
	key := bytes.Clone(keyA)
	k := NewKeyring(key)
	key[0]++
	h := sample()
	if err := a.Decode(k.Append(nil, &h), new(Heartbeat)); err != nil {
		t.Error("the keyring did not keep a copy of its key")
	}
}

// A heartbeat of one probe must not pass for one of another, however it is signed.
func TestRenamedTokenIsRefused(t *testing.T) {
	for name, keys := range keyrings() {
		h := sample()
		token := string(keys.Append(nil, &h))
		renamed := strings.Replace(token, "stash-deferred", "stash-defended", 1)
		err := keys.Decode([]byte(renamed), new(Heartbeat))
		if want := map[bool]error{true: ErrForged, false: ErrCorrupt}[keys.Signed()]; !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
	}
}

func TestEveryFlippedBitIsNoticed(t *testing.T) {
	for name, keys := range keyrings() {
		for seed := range uint64(20) {
			h := arbitrary(rand.New(rand.NewPCG(seed, 1)))
			token := keys.Append(nil, &h)
			for bit := range 8 * len(token) {
				token[bit/8] ^= 1 << (bit % 8)
				var got Heartbeat
				if err := keys.Decode(token, &got); !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrForged) {
					t.Fatalf("%s: %q with bit %d flipped: %v, %+v", name, token, bit, err, got)
				}
				token[bit/8] ^= 1 << (bit % 8)
			}
		}
	}
}

func TestTruncatedTokenIsCorrupt(t *testing.T) {
	for name, keys := range keyrings() {
		h := sample()
		token := keys.Append(nil, &h)
		for n := range token {
			if err := keys.Decode(token[:n], new(Heartbeat)); !errors.Is(err, ErrCorrupt) {
				t.Errorf("%s: cut to %d bytes: %v, want ErrCorrupt", name, n, err)
			}
			_, found, rest, ok := Next(token[:n])
			if want := n >= len(Magic); ok != want {
				t.Errorf("%s: cut to %d bytes: found %v, want %v", name, n, ok, want)
			}
			if ok && len(found)+len(rest) != n {
				t.Errorf("%s: cut to %d bytes: %d found and %d left", name, n, len(found), len(rest))
			}
		}
	}
}

// reseal returns the token of sample with its binary part changed, and the checksum made right again.
func reseal(change func(b []byte) []byte) []byte {
	h := sample()
	token := unsigned.Append(nil, &h)
	at := len(Magic) + len(h.Probe) + 1
	b, _ := encoding.DecodeString(string(token[at:]))
	b = change(b[:len(b)-crcLen])
	b[1] = byte(len(b) + crcLen)
	sum := checksum(token[:at], b)
	b = append(b, byte(sum>>24), byte(sum>>16), byte(sum>>8), byte(sum))
	return encoding.AppendEncode(bytes.Clone(token[:at]), b)
}

func TestDecodeTakesOneSpellingOnly(t *testing.T) {
	h := sample()
	token := string(unsigned.Append(nil, &h))
	at := len(Magic) + len(h.Probe) + 1
	// The binary part of this one is no multiple of three bytes long, so that its last letter has bits to
	// spare.
	loose := sample()
	for (len(unsigned.Append(nil, &loose))-at)%4 == 0 {
		loose.Seq *= 128
	}
	spare := unsigned.Append(nil, &loose)
	spare[len(spare)-1]++
	for name, bad := range map[string]string{
		"empty":                 "",
		"the magic alone":       Magic,
		"no name":               Magic + "." + token[at:],
		"no dot":                Magic + h.Probe,
		"nothing behind":        Magic + h.Probe + ".",
		"another version":       strings.Replace(token, Magic, "~lagmon2.", 1),
		"something before":      " " + token,
		"something behind":      token + "A",
		"padding":               token + "=",
		"a line end behind":     token + "\n",
		"a line end inside":     token[:at+8] + "\r\n" + token[at+8:],
		"standard base64":       token[:at] + strings.NewReplacer("-", "+", "_", "/").Replace(token[at:]),
		"spare bits set":        string(spare),
		"an unknown flag":       string(reseal(func(b []byte) []byte { b[0] = 2; return b })),
		"a byte too many":       string(reseal(func(b []byte) []byte { return append(b, 0) })),
		"a byte too few":        string(reseal(func(b []byte) []byte { return b[:len(b)-1] })),
		"header alone":          string(reseal(func(b []byte) []byte { return b[:2] })),
		"a varint in long form": string(reseal(func(b []byte) []byte { return append(append(b[:18:18], 0x83, 0), b[19:]...) })),
		"lane over 32 bits": string(reseal(func(b []byte) []byte {
			return append(append(b[:18:18], 0x80, 0x80, 0x80, 0x80, 0x10), b[19:]...)
		})),
		"lanes over 32 bits": string(reseal(func(b []byte) []byte {
			return append(append(b[:19:19], 0x80, 0x80, 0x80, 0x80, 0x10), b[20:]...)
		})),
		"a varint without end": string(reseal(func(b []byte) []byte {
			return append(append(b[:18:18], bytes.Repeat([]byte{0xff}, 11)...), b[19:]...)
		})),
		"a long binary part": Magic + "p." + strings.Repeat("A", MaxToken-len(Magic)-len("p.")),
		"longer than any":    Magic + h.Probe + "." + strings.Repeat("A", 4*MaxToken),
	} {
		if err := unsigned.Decode([]byte(bad), new(Heartbeat)); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v, want ErrCorrupt: %q", name, err, bad)
		}
	}
	if err := unsigned.Decode(reseal(func(b []byte) []byte { return b }), new(Heartbeat)); err != nil {
		t.Errorf("a token that was sealed again: %v", err)
	}
}

func TestNextFindsTokenInAnyEnvelope(t *testing.T) {
	for name, keys := range keyrings() {
		h := sample()
		token := string(keys.Append(nil, &h))
		quoted, _ := json.Marshal(map[string]any{"heartbeat": token, "n": 1})
		for _, body := range []string{
			token,
			string(quoted),
			`{"id":"x` + token + `x"}`,
			"a,b," + token + ",c\n",
			"<m>" + token + "</m>",
			"https://example.com/?q=" + url.QueryEscape(token) + "&z=1",
			"https://example.com/" + url.PathEscape(token) + "/more",
			"abc" + token + "abc",
			"AAAA" + token + "AAAA_-09",
			"~" + token + "~",
			"~lagmon1" + token,
			Magic + token,
			Magic + "other." + token,
			Magic + "other.AA" + token,
			Magic + "other.AFAA" + token,
			Magic + "other.AP__AAAAAAAAAAAAAA" + token,
			token[:len(token)-1] + token,
			token[:len(token)/2] + token,
			"\x00\xff\n" + token + "\xff\x00",
			token + token,
			token + " " + token,
		} {
			n, rest := 0, []byte(body)
			for {
				probe, found, after, ok := Next(rest)
				if !ok {
					break
				}
				rest = after
				var got Heartbeat
				if keys.Decode(found, &got) == nil {
					n++
					if !reflect.DeepEqual(got, h) || string(probe) != h.Probe || string(found) != token {
						t.Errorf("%s: %q: found %q of %q, %+v", name, body, found, probe, got)
					}
				}
			}
			if want := strings.Count(body, token); n != max(want, 1) {
				t.Errorf("%s: found %d valid tokens in %q, want %d", name, n, body, want)
			}
			if !Contains([]byte(body)) {
				t.Errorf("%s: Contains does not see the token in %q", name, body)
			}
		}
	}
}

func TestNextWithoutToken(t *testing.T) {
	for _, body := range []string{"", "~", "~lagmon1", "lagmon1.x.AAAA", "~LAGMON1.x.AAAA", "~lagmon2.x.AAAA", strings.Repeat("~lagmon1", 99)} {
		if probe, token, rest, ok := Next([]byte(body)); ok || probe != nil || token != nil || rest != nil {
			t.Errorf("found %q of %q before %q in %q", token, probe, rest, body)
		}
		if Contains([]byte(body)) {
			t.Errorf("Contains sees a token in %q", body)
		}
	}
}

func TestNextReturnsWhatIsMangled(t *testing.T) {
	for _, c := range []struct{ body, probe, token, rest string }{
		{"x~lagmon1.", "", "~lagmon1.", ""},
		{"x~lagmon1. y", "", "~lagmon1.", " y"},
		{"x~lagmon1.abc", "abc", "~lagmon1.abc", ""},
		{"x~lagmon1.abc y", "abc", "~lagmon1.abc", " y"},
		{"x~lagmon1.abc.", "abc", "~lagmon1.abc.", ""},
		{"x~lagmon1.abc.AA y", "abc", "~lagmon1.abc.", "AA y"},
		{"x~lagmon1.abc.\n\n\n\n y", "abc", "~lagmon1.abc.", "\n\n\n\n y"},
		{"x~lagmon1.abc.AAMA y", "abc", "~lagmon1.abc.AAMA", " y"},
		{"x~lagmon1.abc.AAYA y", "abc", "~lagmon1.abc.AAYA", " y"},
		{"~lagmon1." + strings.Repeat("n", MaxProbeName+1) + ".AAMA", strings.Repeat("n", MaxProbeName), Magic + strings.Repeat("n", MaxProbeName), "n.AAMA"},
	} {
		probe, token, rest, ok := Next([]byte(c.body))
		if !ok || string(probe) != c.probe || string(token) != c.token || string(rest) != c.rest {
			t.Errorf("%q: %q, %q, %q, %v", c.body, probe, token, rest, ok)
		}
	}
}

func TestDueAndDeadline(t *testing.T) {
	h := Heartbeat{Sent: time.Unix(100, 0), Expiry: 5 * time.Second, Timeout: 20 * time.Second}
	if !h.Due().Equal(time.Unix(105, 0)) || !h.Deadline().Equal(time.Unix(125, 0)) {
		t.Errorf("due %v, deadline %v", h.Due(), h.Deadline())
	}
}

func TestValidName(t *testing.T) {
	for name, want := range map[string]bool{
		"a": true, "Stash_deferred-2": true, strings.Repeat("x", MaxProbeName): true, "-": true, "0": true,
		"": false, strings.Repeat("x", MaxProbeName+1): false, "a.b": false, "a b": false, "a~": false, "ä": false, "a/b": false, "a:b": false,
		"a@b": false, "[": false, "`": false, "{": false, "a\n": false, "\x00": false,
	} {
		if got := ValidName(name); got != want {
			t.Errorf("ValidName(%q) = %v", name, got)
		}
	}
}

func TestTrace(t *testing.T) {
	h := sample()
	first := h.Trace()
	for sampled, flags := range map[bool]string{true: "01", false: "00"} {
		if got, want := first.Parent(sampled), fmt.Sprintf("00-%x-%x-%s", first.ID, first.Injection, flags); got != want || len(got) != 55 {
			t.Errorf("trace parent %q, want %q", got, want)
		}
	}
	if first.Root == first.Injection || first.Root == [8]byte{} || first.Injection == [8]byte{} || first.ID == [16]byte{} {
		t.Errorf("%x: ids must differ, and none is all zeros", first)
	}
	later := h
	later.Sent, later.Accepted, later.Interval = time.Unix(0, 0), 0, 0
	if later.Trace() != first {
		t.Error("what does not identify the heartbeat changes its trace")
	}
	for name, change := range map[string]func(*Heartbeat){
		"probe":    func(h *Heartbeat) { h.Probe += "x" },
		"instance": func(h *Heartbeat) { h.Instance++ },
		"epoch":    func(h *Heartbeat) { h.Epoch++ },
		"lane":     func(h *Heartbeat) { h.Lane++ },
		"sequence": func(h *Heartbeat) { h.Seq++ },
	} {
		other := sample()
		change(&other)
		if got := other.Trace(); got.ID == first.ID || got.Injection == first.Injection || got.Root == first.Root {
			t.Errorf("another %s has the same ids", name)
		}
	}
}

func TestIDs(t *testing.T) {
	if a := InstanceID("a"); a == InstanceID("b") || a != InstanceID(string([]byte{'a'})) {
		t.Error("InstanceID does not tell names apart")
	}
	if a, b := NewEpoch(), NewEpoch(); a == b {
		t.Error("two epochs are the same")
	}
}

func TestKeyringIsSafeForConcurrentUse(t *testing.T) {
	keys := NewKeyring(keyA, keyB)
	done := make(chan error)
	for i := range 4 {
		go func() {
			h := sample()
			h.Lane = uint32(i)
			var got Heartbeat
			var buf []byte
			for h.Seq = range 500 {
				buf = keys.Append(buf[:0], &h)
				if err := keys.Decode(buf, &got); err != nil {
					done <- err
					return
				}
				if !reflect.DeepEqual(h, got) {
					done <- errors.New("another heartbeat came back")
					return
				}
			}
			done <- nil
		}()
	}
	for range 4 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// FuzzFind looks for tokens in arbitrary bytes, alone and around a valid token.
func FuzzFind(f *testing.F) {
	h := sample()
	token := unsigned.Append(nil, &h)
	signed := NewKeyring(keyA).Append(nil, &h)
	f.Add([]byte(""), []byte(""), uint64(0))
	f.Add([]byte(`{"heartbeat":"`), []byte(`"}`), uint64(1))
	f.Add([]byte("https://example.com/?q="), []byte("&x=1"), uint64(2))
	f.Add([]byte(Magic), []byte(Magic), uint64(3))
	f.Add(token[:len(token)-3], token[3:], uint64(4))
	f.Add(signed, signed[:40], uint64(5))
	f.Add([]byte(base64.URLEncoding.EncodeToString(token)), []byte("QUJDREVGRw__-"), uint64(6))
	f.Add([]byte(Magic+"other.AP__"), []byte("AAAA"), uint64(7))
	f.Fuzz(func(t *testing.T, before, after []byte, seed uint64) {
		for _, keys := range []*Keyring{unsigned, NewKeyring(keyA)} {
			scan(t, keys, before)
			want := arbitrary(rand.New(rand.NewPCG(seed, 2)))
			token := keys.Append(nil, &want)
			message := append(append(bytes.Clone(before), token...), after...)
			at := len(before)
			if !scan(t, keys, message)[at] {
				t.Errorf("the token at %d was not found in %q", at, message)
			}
			var got Heartbeat
			if err := keys.Decode(message[at:at+len(token)], &got); err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("%+v, %v; want %+v", got, err, want)
			}
		}
	})
}

// scan finds all tokens in b, checks what holds of each, and returns where the valid ones begin.
func scan(t *testing.T, keys *Keyring, b []byte) map[int]bool {
	t.Helper()
	valid := make(map[int]bool)
	before := bytes.Clone(b)
	for rest, offset := b, 0; ; {
		probe, token, next, ok := Next(rest)
		if !ok {
			if Contains(rest) {
				t.Errorf("a magic was left over in %q", rest)
			}
			break
		}
		start := offset + bytes.Index(rest, magic)
		end := start + len(token)
		if !bytes.Equal(b[start:end], token) || &b[start] != &token[0] || len(next) != len(b)-end {
			t.Fatalf("token %q and rest %q are not slices of %q", token, next, b)
		}
		if name := start + len(Magic); !bytes.Equal(b[name:name+len(probe)], probe) {
			t.Fatalf("probe %q is not a slice of the token %q", probe, token)
		}
		if len(next) > 0 && &next[0] != &b[end] {
			t.Fatalf("rest %q is not what follows in %q", next, b)
		}
		var h Heartbeat
		if keys.Decode(token, &h) == nil {
			valid[start] = true
			if h.Probe != string(probe) {
				t.Errorf("probe %q, found as %q", h.Probe, probe)
			}
			if again := keys.Append(nil, &h); !bytes.Equal(again, token) {
				t.Errorf("%q has a second spelling: %q", again, token)
			}
		}
		rest, offset = next, end
	}
	if !bytes.Equal(b, before) {
		t.Error("the search changed the message")
	}
	return valid
}

// FuzzDecode gives arbitrary bodies the right check code, so that what lies behind it is tried too.
func FuzzDecode(f *testing.F) {
	h := sample()
	token := unsigned.Append(nil, &h)
	body, _ := encoding.DecodeString(string(token[len(Magic)+len(h.Probe)+1:]))
	f.Add("p", body[2:len(body)-crcLen])
	f.Fuzz(func(t *testing.T, name string, body []byte) {
		prefix := append([]byte(Magic), name+"."...)
		body = append([]byte{0, byte(len(body) + 2 + crcLen)}, body...)
		sum := checksum(prefix, body)
		body = append(body, byte(sum>>24), byte(sum>>16), byte(sum>>8), byte(sum))
		token := encoding.AppendEncode(prefix, body)
		var h Heartbeat
		if err := unsigned.Decode(token, &h); err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Error(err)
			}
			return
		}
		if again := unsigned.Append(nil, &h); !bytes.Equal(again, token) {
			t.Errorf("%q has a second spelling: %q", again, token)
		}
	})
}

func TestAllocations(t *testing.T) {
	h := sample()
	body := []byte(strings.Repeat("ordinary traffic; ", 60))
	for name, keys := range keyrings() {
		token := keys.Append(nil, &h)
		buf := make([]byte, 0, MaxToken)
		got := Heartbeat{Probe: h.Probe}
		message := append(bytes.Clone(body), token...)
		for what, f := range map[string]func(){
			"Append":   func() { buf = keys.Append(buf[:0], &h) },
			"Decode":   func() { _ = keys.Decode(token, &got) },
			"Next":     func() { _, _, _, _ = Next(message) },
			"Contains": func() { Contains(body) },
		} {
			if n := testing.AllocsPerRun(1000, f); n >= mostAllocations {
				t.Errorf("%s, %s: %v allocations", what, name, n)
			}
		}
	}
}

func Benchmark(b *testing.B) {
	h := sample()
	traffic := []byte(strings.Repeat(`{"id":"00112233","name":"ordinary","tags":["a","b"],"n":42}`, 18)[:1024])
	b.Run("contains in 1 KiB of others", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			Contains(traffic)
		}
	})
	for _, c := range []struct {
		name string
		keys *Keyring
	}{{"unsigned", unsigned}, {"signed", NewKeyring(keyA)}, {"signed by the second of two keys", NewKeyring(keyB, keyA)}} {
		signer := c.keys
		if len(c.name) > len("unsigned") {
			signer = NewKeyring(keyA)
		}
		token := signer.Append(nil, &h)
		message := append(bytes.Clone(traffic[:1024-len(token)]), token...)
		buf := make([]byte, 0, MaxToken)
		got := h
		b.Run("encode "+c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				buf = signer.Append(buf[:0], &h)
			}
		})
		b.Run("find in 1 KiB "+c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				_, _, _, _ = Next(message)
			}
		})
		b.Run("decode "+c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := c.keys.Decode(token, &got); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func TestKeyringsCompared(t *testing.T) {
	ring := func(keys ...string) *Keyring {
		var b [][]byte
		for _, k := range keys {
			b = append(b, []byte(k))
		}
		return NewKeyring(b...)
	}
	for _, c := range []struct {
		k, o           *Keyring
		equal, accepts bool
	}{
		{nil, nil, true, true},
		{nil, ring(), true, true},
		{ring(), ring("a"), false, false},
		{ring("a"), ring(), false, false},
		{ring("a"), nil, false, false},
		{ring("a"), ring("a"), true, true},
		{ring("b"), ring("a"), false, false},
		{ring("a", "b"), ring("b"), false, true},
		{ring("a", "b"), ring("b", "a"), false, true},
		{ring("b"), ring("a", "b"), false, false},
		{ring("b"), ring("b", "a"), false, true},
	} {
		if got := c.k.Equal(c.o); got != c.equal {
			t.Errorf("%v.Equal(%v) = %v", c.k, c.o, got)
		}
		accepts := c.k.Accepts(c.o)
		h := Heartbeat{Probe: "p", Seq: 1, Sent: time.Unix(1, 0)}
		decodes := c.k.Decode(c.o.Append(nil, &h), new(Heartbeat)) == nil
		if accepts != c.accepts || decodes != c.accepts {
			t.Errorf("%v.Accepts(%v) = %v, and decoding works: %v", c.k, c.o, accepts, decodes)
		}
	}
}
