package heartbeat

import (
	"testing"
	"time"
)

// A token that is cut short hides nothing of what comes behind it.
func TestNextBehindACutToken(t *testing.T) {
	h := Heartbeat{Probe: "p", Seq: 1, Sent: time.Unix(1700000000, 0)}
	token := string((*Keyring)(nil).Append(nil, &h))
	for _, cut := range []int{1, 2, 10, 40, len(token) - len(Magic)} {
		for _, between := range []string{"", "\n", `"},{"`} {
			b := []byte(token[:len(token)-cut] + between + token)
			var good, bad int
			for rest := b; ; {
				_, found, more, ok := Next(rest)
				if !ok {
					break
				}
				var got Heartbeat
				if (*Keyring)(nil).Decode(found, &got) == nil {
					good++
				} else {
					bad++
				}
				rest = more
			}
			if good != 1 || bad != 1 {
				t.Errorf("cut by %d, then %q: %d good and %d bad tokens, want one of each", cut, between, good, bad)
			}
		}
	}
}
