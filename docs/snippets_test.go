package docs_test

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/heartbeat"
	"github.com/lag-monitor/lag-monitor/internal/servers"
)

// snippetPage has the code for consumers.
const snippetPage = "skip-heartbeats.md"

// A language says how the snippets of a page become a program. It reads lines of a message and a key in
// hexadecimal, and answers each with two words: whether the message is a heartbeat, and whether it is a signed one.
type language struct {
	file    string
	command []string
	// program has IMPORTS where those of the snippets go, if they have to be in front of the rest, and CODE for the rest.
	program string
	imports *regexp.Regexp
}

var languages = map[string]language{
	"go": {"main.go", []string{"go", "run", "main.go"}, `package main

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"os"
	"strings"
)
IMPORTS
CODE
func main() {
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, 1<<20)
	for in.Scan() {
		message, key, _ := strings.Cut(in.Text(), " ")
		m, _ := hex.DecodeString(message)
		k, _ := hex.DecodeString(key)
		fmt.Println(isHeartbeat(m), isSignedHeartbeat(m, k))
	}
}
`, regexp.MustCompile(`(?ms)^import (\(.*?^\)|"[^"]*")$`)},
	"java": {"Main.java", []string{"java", "-XX:TieredStopAtLevel=1", "Main.java"}, `IMPORTS
import java.io.*;
import java.util.HexFormat;

public class Main {
CODE
    public static void main(String[] args) throws Exception {
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in));
        for (String line; (line = in.readLine()) != null; ) {
            String[] words = line.split(" ");
            byte[] m = HexFormat.of().parseHex(words[0]), k = HexFormat.of().parseHex(words[1]);
            System.out.println(isHeartbeat(m) + " " + isSignedHeartbeat(m, k));
        }
    }
}
`, regexp.MustCompile(`(?m)^import .*;$`)},
	"python": {"main.py", []string{"python3", "main.py"}, `CODE
import sys
for line in sys.stdin:
    m, k = (bytes.fromhex(word) for word in line.rstrip("\n").split(" "))
    print(str(is_heartbeat(m)).lower(), str(is_signed_heartbeat(m, k)).lower())
`, nil},
	"js": {"main.js", []string{"node", "main.js"}, `CODE
for (const line of require("node:fs").readFileSync(0, "latin1").trimEnd().split("\n")) {
  const [m, k] = line.split(" ").map((word) => Buffer.from(word, "hex"));
  console.log(isHeartbeat(m), isSignedHeartbeat(m, k));
}
`, nil},
}

// consumed is a message and a key for which the snippets have to find the same as the program itself.
type consumed struct{ message, key []byte }

func (c *consumed) want() string {
	signed := false
	keys := heartbeat.NewKeyring(c.key)
	for rest := c.message; ; {
		_, token, more, ok := heartbeat.Next(rest)
		if !ok {
			return fmt.Sprint(heartbeat.Contains(c.message), signed)
		}
		signed = signed || keys.Decode(token, new(heartbeat.Heartbeat)) == nil
		rest = more
	}
}

// vectors are the tokens of the specification with their keys, in all kinds of messages, and what looks like them.
func vectors(t *testing.T) (all []consumed) {
	t.Helper()
	text, err := os.ReadFile("heartbeat.md")
	if err != nil {
		t.Fatal(err)
	}
	var tokens [][]byte
	keys := [][]byte{[]byte("some other key")}
	var owner [][]byte // of each token
	for _, m := range regexp.MustCompile(`(?ms)^key +(\S+)$.*?^token +(\S+)$`).FindAllSubmatch(text, -1) {
		key, err := hex.DecodeString(string(m[1]))
		if err != nil {
			key = []byte("some other key")
		}
		keys, tokens, owner = append(keys, key), append(tokens, m[2]), append(owner, key)
	}
	if len(tokens) < 18 {
		t.Fatalf("only %d test vectors", len(tokens))
	}
	for i, token := range tokens {
		for _, around := range []string{"%s", `{"order": "%s", "n": 1}`, "a,%s,b\n", "\xff\x00\xfe%s\x80\xc3", "ü%s…", "~lagmon1.%s", "~lagmon1.x.AB%sAAAA", "~lagmon1.x.AQAA %s"} {
			all = append(all, consumed{[]byte(strings.Replace(around, "%s", string(token), 1)), owner[i]})
		}
		all = append(all, consumed{append(bytes.Clone(tokens[0]), token...), owner[i]}, consumed{token, keys[0]}, consumed{token[:len(token)/2], owner[i]})
		// Anything but the last character, of which a decoder may overlook the spare bits.
		rng := rand.New(rand.NewPCG(uint64(i), 1))
		for range 30 {
			bent := bytes.Clone(token)
			bent[rng.IntN(len(bent)-1)] = "~.Az09-_ \x00\xff"[rng.IntN(11)]
			all = append(all, consumed{bent, owner[i]})
		}
	}
	// Signed with the right key, but of a version that nobody knows.
	key := []byte("some other key")
	h := heartbeat.Heartbeat{Probe: "x", Seq: 1, Sent: time.Unix(0, 0)}
	prefix, text64, _ := strings.Cut(string(heartbeat.NewKeyring(key).Append(nil, &h)), "x.")
	b, err := base64.RawURLEncoding.DecodeString(text64)
	if err != nil {
		t.Fatal(err)
	}
	b[0] = 3
	mac := hmac.New(sha256.New, key)
	mac.Write(append([]byte(prefix+"x."), b[:len(b)-16]...))
	b = append(b[:len(b)-16], mac.Sum(nil)[:16]...)
	all = append(all, consumed{[]byte(prefix + "x." + base64.RawURLEncoding.EncodeToString(b)), key})
	for _, other := range []string{"", "x", "~lagmon", "~lagmon1", "~lagmon2.x", "lagmon1.", "~LAGMON1.", "~lagmon1.", "~lagmon1..", "~lagmon1.x", "~lagmon1.x.", "~lagmon1.x.A", "~lagmon1.x.AAAA", "~lagmon1.x.AQAA", "~lagmon1.x.ARIA",
		"~lagmon1.x.AQ__", "%7Elagmon1.x", "~\x00lagmon1.", "~~lagmon1.x", "~lagmon1.ü.AQAA"} {
		all = append(all, consumed{[]byte(other), keys[1]})
	}
	return all
}

// TestSnippets: the code of the page does in each language what the program itself does.
func TestSnippets(t *testing.T) {
	servers.Need(t)
	all := vectors(t)
	var in, want strings.Builder
	signed := 0
	for _, c := range all {
		fmt.Fprintf(&in, "%x %x\n", c.message, c.key)
		fmt.Fprintln(&want, c.want())
		if strings.HasSuffix(c.want(), " true") {
			signed++
		}
	}
	if signed < 20 || signed > len(all)/2 {
		t.Fatalf("%d of %d messages are signed", signed, len(all))
	}
	code := map[string]map[string]string{}
	for _, b := range blocks(t, snippetPage) {
		if name, ok := b.attribute("snippet"); ok {
			if code[b.info[0]] == nil {
				code[b.info[0]] = map[string]string{}
			}
			code[b.info[0]][name] = b.text()
		}
	}
	if len(code) != len(languages) {
		t.Errorf("the page has code in %d languages, %d are known", len(code), len(languages))
	}
	for name, l := range languages {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if len(code[name]) != 2 {
				t.Fatalf("the page has %d pieces of code, not skip and verify", len(code[name]))
			}
			var imports []string
			body := code[name]["skip"] + "\n" + code[name]["verify"]
			if l.imports != nil {
				imports = l.imports.FindAllString(body, -1)
				body = l.imports.ReplaceAllString(body, "")
			}
			program := strings.NewReplacer("IMPORTS", strings.Join(imports, "\n"), "CODE", body).Replace(l.program)
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, l.file), []byte(program), 0o600); err != nil {
				t.Fatal(err)
			}
			cmd := exec.CommandContext(t.Context(), l.command[0], l.command[1:]...)
			cmd.Dir, cmd.Stdin = dir, strings.NewReader(in.String())
			var out, errs bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &errs
			if err := cmd.Run(); err != nil {
				t.Fatalf("%v\n%s\n%s", err, errs.String(), program)
			}
			got, exp := strings.Split(out.String(), "\n"), strings.Split(want.String(), "\n")
			if len(got) != len(exp) {
				t.Fatalf("%d answers to %d messages", len(got), len(exp))
			}
			for i := range got {
				if got[i] != exp[i] {
					t.Errorf("%q with the key %q is %s, want %s", all[i].message, all[i].key, got[i], exp[i])
				}
			}
		})
	}
}
