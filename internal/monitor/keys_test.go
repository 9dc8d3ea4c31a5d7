package monitor

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lag-monitor/lag-monitor/internal/config"
	"github.com/lag-monitor/lag-monitor/internal/conn"
	"github.com/lag-monitor/lag-monitor/internal/heartbeat"
	"github.com/lag-monitor/lag-monitor/probe"
	"github.com/lag-monitor/lag-monitor/sinks"
)

// keyed is a rig whose keys can be changed, and whose pipeline holds heartbeats back on demand.
type keyed struct {
	*rig

	mu      sync.Mutex
	holding bool
	held    []string
}

func (k *keyed) hold(on bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.holding = on
}

func withKeys(t *testing.T, f func(k *keyed, dir string)) {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"a", "b", "c"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("the secret of "+name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	sim(t, func(r *rig) {
		k := &keyed{rig: r}
		r.cfg.Probes["p"].Inject = head(func(ctx context.Context, m *probe.Message) error {
			k.mu.Lock()
			defer k.mu.Unlock()
			if k.holding {
				k.held = append(k.held, m.Token)
				return nil
			}
			return r.inj.Inject(ctx, m)
		})
		r.start()
		f(k, dir)
	})
}

// use reloads with keys while three heartbeats of before and three of after are on their way.
func (k *keyed) use(dir string, names ...string) {
	k.t.Helper()
	k.hold(true)
	time.Sleep(3 * time.Second)
	k.change(dir, names...)
	time.Sleep(3 * time.Second)
	k.hold(false)
	k.release()
}

// change reloads with keys.
func (k *keyed) change(dir string, names ...string) {
	k.t.Helper()
	k.cfg.Global.Keys = nil
	for _, n := range names {
		k.cfg.Global.Keys = append(k.cfg.Global.Keys, conn.Secret{File: filepath.Join(dir, n)})
	}
	if err := k.m.Apply(k.cfg); err != nil {
		k.t.Fatal(err)
	}
}

func (k *keyed) release() {
	k.mu.Lock()
	held := k.held
	k.held = nil
	k.mu.Unlock()
	for _, token := range held {
		k.put(token)
	}
}

func (k *keyed) put(token string) {
	_ = k.queue.Put(k.t.Context(), []byte(token))
	synctest.Wait()
}

func (k *keyed) messages(kind sinks.Kind) uint64 {
	return k.m.state.Load().sinks["out"].feed.Stats().Messages[kind]
}

// TestKeysChangeUnderWay: whatever the keys become, a heartbeat that is on its way keeps its outcome.
func TestKeysChangeUnderWay(t *testing.T) {
	withKeys(t, func(k *keyed, dir string) {
		for _, names := range [][]string{{"a"}, {"a", "b"}, {"b", "a"}, {"b"}, {"c"}, nil, {"a"}, {"a"}} {
			k.use(dir, names...)
			time.Sleep(2 * time.Second)
			s := k.pair()
			if n := k.messages(sinks.Corrupt); n != 0 || s.Dropped+s.Indeterminate+s.Duplicated+s.InFlight != 0 || s.OnTime != s.Sent {
				t.Fatalf("keys %v: %d corrupt, %+v", names, n, s)
			}
		}
	})
}

// TestKeysAndProbeChangeAtOnce: the probe's successor knows what was sent before it.
func TestKeysAndProbeChangeAtOnce(t *testing.T) {
	withKeys(t, func(k *keyed, dir string) {
		k.use(dir, "a")
		for i, names := range [][]string{{"b"}, {"b"}, {"c"}, nil} {
			changed := *k.cfg.Probes["p"]
			changed.RunFingerprint, changed.Timeout = fmt.Sprint(i), changed.Timeout+time.Second
			k.cfg.Probes["p"] = &changed
			before := k.m.Status().Probes[0].Sinks[0]
			k.use(dir, names...)
			time.Sleep(20 * time.Second)
			s := k.pair()
			if n := k.messages(sinks.Corrupt); n != 0 || s.Dropped+s.Indeterminate+s.Duplicated+s.InFlight != 0 {
				t.Errorf("keys %v: %d corrupt, before %+v, after %+v", names, n, before, s)
			}
		}
	})
}

// TestKeysChangeTwiceUnderWay: keys are changed in two steps, so that the other end knows the new one before
// the old one goes. A heartbeat may be on its way over both.
func TestKeysChangeTwiceUnderWay(t *testing.T) {
	withKeys(t, func(k *keyed, dir string) {
		k.use(dir, "a")
		k.hold(true)
		for _, names := range [][]string{{"b", "a"}, {"b"}} {
			time.Sleep(time.Second)
			k.change(dir, names...)
		}
		time.Sleep(time.Second)
		k.hold(false)
		k.release()
		time.Sleep(20 * time.Second)
		s := k.pair()
		if n := k.messages(sinks.Corrupt); n != 0 || s.Dropped+s.Indeterminate+s.Duplicated != 0 {
			t.Errorf("%d corrupt, %+v", n, s)
		}
	})
}

// TestOldKeysProveNothingNew: with a key that was taken away, or with none once there is one, nobody can
// make up a heartbeat.
func TestOldKeysProveNothingNew(t *testing.T) {
	for _, c := range []struct {
		name string
		old  []string // of the retired keyring
		ring *heartbeat.Keyring
	}{
		{"unsigned", nil, heartbeat.NewKeyring()},
		{"a key that was removed", []string{"a"}, heartbeat.NewKeyring([]byte("the secret of a"))},
		{"a key that was never known", []string{"a"}, heartbeat.NewKeyring([]byte("a guess"))},
	} {
		withKeys(t, func(k *keyed, dir string) {
			k.use(dir, c.old...)
			k.use(dir, "b")
			time.Sleep(2 * time.Second)
			k.hold(true)
			time.Sleep(3 * time.Second) // what is held is lost: no forgery may hide that
			k.m.state.Load().probes["p"].entry.Remove()
			own := k.m.state.Load().probes["p"]
			before, corrupt := k.pair(), k.messages(sinks.Corrupt)
			var h heartbeat.Heartbeat
			k.mu.Lock()
			last := k.held[len(k.held)-1]
			k.mu.Unlock()
			if err := own.keys.Decode([]byte(last), &h); err != nil {
				t.Fatal(err)
			}
			forgeries := []func(h *heartbeat.Heartbeat){
				func(*heartbeat.Heartbeat) {},
				func(h *heartbeat.Heartbeat) { h.Sent = h.Sent.Add(-time.Hour); h.Expiry = time.Hour },
				func(h *heartbeat.Heartbeat) { h.Seq++ },
				func(h *heartbeat.Heartbeat) { h.Epoch++; h.Seq = 1 },
				func(h *heartbeat.Heartbeat) { h.Epoch++; h.Sent = h.Sent.Add(-time.Hour); h.Expiry = time.Hour },
				func(h *heartbeat.Heartbeat) { h.Lane++; h.Seq = 1 },
				func(h *heartbeat.Heartbeat) { h.Instance++ },
				func(h *heartbeat.Heartbeat) { h.Probe = "q" },
			}
			for i, change := range forgeries {
				forged := h
				change(&forged)
				k.put(string(c.ring.Append(nil, &forged)))
				if n := k.messages(sinks.Corrupt) - corrupt; n != uint64(i+1) {
					t.Errorf("%s: forgery %d: %d are counted as corrupt: %v", c.name, i, n, k.m.state.Load().sinks["out"].feed.Stats().Messages)
				}
			}
			if after := k.pair(); !after.Lanes[0].Last.Equal(before.Lanes[0].Last) || after.OnTime != before.OnTime || after.Duplicated != 0 {
				t.Errorf("%s: the forgeries made of\n%+v\nthis:\n%+v", c.name, before, after)
			}
			time.Sleep(15 * time.Second)
			if s := k.pair(); s.Dropped != 3 {
				t.Errorf("%s: 3 heartbeats were lost: %+v", c.name, s)
			}
		})
	}
}

// TestListenersTrustNoOldKey: a probe that only listens has sent nothing itself.
func TestListenersTrustNoOldKey(t *testing.T) {
	withKeys(t, func(k *keyed, dir string) {
		k.use(dir, "b")
		listens := *k.cfg.Probes["p"]
		listens.Inject, listens.RunFingerprint = nil, "listens"
		k.cfg.Probes = map[string]*config.Probe{"p": &listens}
		k.use(dir, "b", "c")
		h := heartbeat.Heartbeat{Probe: "p", Instance: 7, Epoch: 7, Lanes: 1, Seq: 5, Sent: time.Now(), Interval: time.Second, Timeout: 10 * time.Second}
		old := k.messages(sinks.Corrupt)
		k.put(string(heartbeat.NewKeyring().Append(nil, &h)))
		if n := k.messages(sinks.Corrupt) - old; n != 1 {
			t.Errorf("an unsigned heartbeat to a listener with keys: %d counted as corrupt", n)
		}
		k.put(string(heartbeat.NewKeyring([]byte("the secret of b")).Append(nil, &h)))
		if n := k.messages(sinks.Corrupt) - old; n != 1 {
			t.Errorf("a signed heartbeat to a listener is counted as corrupt")
		}
	})
}
