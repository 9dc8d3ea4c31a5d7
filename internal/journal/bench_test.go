package journal

import (
	"fmt"
	"testing"
	"time"
)

// load10k is what a monitor of 10,000 probes at one heartbeat a second writes each second.
type load10k struct {
	sinks  []Sink
	blocks []Block
	b      Batch
}

func newLoad(sinks int) *load10k {
	l := &load10k{}
	for i := range sinks {
		s := Sink{Name: fmt.Sprintf("sink-%03d", i), Fingerprint: "0123456789abcdef", Position: map[string]string{}}
		for p := range 8 {
			s.Position[fmt.Sprintf("topic/%d", p)] = "123456789"
		}
		for p := range 10_000 / sinks {
			s.Stamps = append(s.Stamps, Stamp{Probe: fmt.Sprintf("checkout-%05d", p*sinks+i)})
		}
		l.sinks = append(l.sinks, s)
	}
	for i := range 50 {
		l.blocks = append(l.blocks, Block{
			Key:    Key{Probe: fmt.Sprintf("checkout-%05d", i*200), Sink: "sink-000", Instance: 1, Epoch: 2},
			Expiry: time.Second, Timeout: time.Minute, TTL: time.Hour, Open: make([]Heartbeat, 64),
		})
	}
	return l
}

// tick fills the batch with what has changed at the nth second.
func (l *load10k) tick(n int) *Batch {
	now := time.Date(2026, 3, 1, 12, 0, n, 0, time.UTC).UnixNano()
	l.b.Reset()
	for i := range l.sinks {
		s := &l.sinks[i]
		for p := range s.Stamps {
			s.Stamps[p].Due = now + int64(p*7919%1_000_000_000)
		}
		l.b.PutSink(s)
	}
	for i := range l.blocks {
		b := &l.blocks[i]
		b.Block = uint64(n / 64)
		for o := range b.Open {
			seq := b.Block*64 + uint64(o)
			b.Open[o] = Heartbeat{Seq: seq, Due: int64(seq)*1e9 + int64(i)}
		}
		l.b.PutBlock(b)
	}
	return &l.b
}

func BenchmarkWrite(b *testing.B) {
	for _, sinks := range []int{1, 100} {
		for _, sync := range []bool{false, true} {
			b.Run(fmt.Sprintf("sinks=%d/fsync=%t", sinks, sync), func(b *testing.B) {
				j, _ := open(b, b.TempDir())
				j.noSync = !sync
				l := newLoad(sinks)
				l.tick(0).ReplaceAll()
				write(b, j, &l.b)
				b.ReportAllocs()
				n := 0
				for b.Loop() {
					n++
					write(b, j, l.tick(n))
				}
				b.ReportMetric(float64(l.b.Size()), "B/batch")
				b.ReportMetric(float64(j.size), "B/file")
			})
		}
	}
}

func BenchmarkBatch(b *testing.B) {
	l := newLoad(100)
	n := 0
	b.ReportAllocs()
	for b.Loop() {
		n++
		l.tick(n)
	}
}

// What a process does at its start after an outage, for each million heartbeats without an outcome.
func BenchmarkOpen(b *testing.B) {
	dir := b.TempDir()
	j, _ := open(b, dir)
	var all Batch
	all.ReplaceAll()
	k := Block{Open: make([]Heartbeat, 64)}
	for n := range 1_000_000 / 64 {
		k.Key = Key{Probe: fmt.Sprintf("checkout-%05d", n%10_000), Sink: "deferred-out", Block: uint64(n / 10_000)}
		for i := range k.Open {
			k.Open[i] = Heartbeat{Seq: k.Block*64 + uint64(i), Due: int64(i)*1e9 + int64(i*i%1000)*1e3}
		}
		all.PutBlock(&k)
	}
	write(b, j, &all)
	b.ReportMetric(float64(j.size), "B/file")
	j.Close()
	b.ReportAllocs()
	for b.Loop() {
		j, s := open(b, dir)
		if len(s.Blocks) != 1_000_000/64 {
			b.Fatal(len(s.Blocks))
		}
		j.Close()
	}
}
