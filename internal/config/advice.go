package config

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"
)

// sender is who heartbeats of a probe come from.
type sender struct{ instance, probe string }

// advice returns what is allowed in every part and does not fit together: for those who check a file. A
// daemon that loads it does not say so. senders has the files that were checked before, by who sends; nil for
// none.
func (c *Config) advice(o CheckOptions, senders map[sender]string) (out Problems) {
	warn := func(src Source, path, format string, args ...any) {
		out = append(out, &Problem{File: src.File, Line: src.Line, Path: path, Text: fmt.Sprintf(format, args...)})
	}
	queues := make(map[string]string)
	for _, n := range slices.Sorted(maps.Keys(c.Sinks)) {
		s := c.Sinks[n]
		key := s.Kind + " " + s.Fingerprint
		if first, ok := queues[key]; ok {
			warn(s.Source, "sinks."+n, "reads the same queue as sink %s: share that one, any number of probes can", first)
			continue
		}
		queues[key] = n
	}
	unnamed := defaultGlobal().Instance // monitors without a name in the file have that of their hosts
	scrape := cmp.Or(o.Scrape, 15*time.Second)
	for _, n := range slices.Sorted(maps.Keys(c.Probes)) {
		p := c.Probes[n]
		at := "probes." + n
		for _, t := range []struct {
			name string
			Thresholds
		}{{"page", p.Page}, {"ticket", p.Ticket}} {
			// That a lag is shorter than the interval alone has been said.
			if need := p.Expiry + p.Interval + scrape; t.Lag >= p.Interval && len(p.Sinks) > 0 && t.Lag+t.For < need {
				warn(p.Source, at+"."+t.name, "lag %s for %s is shorter than expiry + interval + the time between two scrapes (%s): a restart of the monitor can be enough for the alert; set for, or raise lag",
					short(t.Lag), short(t.For), short(need))
			}
		}
		if from := (sender{c.Global.Instance, n}); p.Inject != nil && from.instance != unnamed && senders != nil {
			if other, ok := senders[from]; ok {
				warn(p.Source, at, "%s injects under the same name and instance (%s): each would take the heartbeats of the other for its own; give them two names in global.instance", other, from.instance)
			} else {
				senders[from] = p.Source.File
			}
		}
	}
	return out
}
