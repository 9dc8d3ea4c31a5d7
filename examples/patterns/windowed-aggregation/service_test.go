package windowedaggregation_test

import (
	"reflect"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	windowedaggregation "github.com/lag-monitor/lag-monitor/examples/patterns/windowed-aggregation"
)

var noon = time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)

func record(partition int32, offset int64, after time.Duration, value string) *kgo.Record {
	return &kgo.Record{Partition: partition, Offset: offset, Timestamp: noon.Add(after), Value: []byte(value)}
}

// A window closes when what is younger by its length and the lateness has come, and brings its heartbeats along.
func TestWindowCloses(t *testing.T) {
	w := windowedaggregation.NewWindows()
	for i, r := range []*kgo.Record{
		record(0, 10, 0, "/cart"), record(0, 11, 500*time.Millisecond, `{"heartbeat":"~lagmon1.clicks.x"}`), record(1, 20, 1900*time.Millisecond, "/cart"),
		record(0, 12, 2499*time.Millisecond, "/help"),
	} {
		if !w.Add(r) {
			t.Errorf("record %d is late", i)
		}
	}
	if counts := w.Closed(); len(counts) != 0 {
		t.Errorf("closed too early: %v", counts)
	}
	// From where it began, at partition 0 as at partition 1.
	if done := w.Done(); done[0].Offset != 10 || done[1].Offset != 20 {
		t.Errorf("done up to %v", done)
	}
	w.Add(record(1, 21, 2500*time.Millisecond, "/help"))
	want := []windowedaggregation.Count{{From: noon, Clicks: map[string]int{"/cart": 2}, Heartbeats: []string{`{"heartbeat":"~lagmon1.clicks.x"}`}}}
	if counts := w.Closed(); !reflect.DeepEqual(counts, want) {
		t.Errorf("closed %v; want %v", counts, want)
	}
	if done := w.Done(); done[0].Offset != 12 || done[1].Offset != 21 {
		t.Errorf("done up to %v", done)
	}
	if w.Add(record(1, 22, time.Second, "/cart")) {
		t.Error("a click of a window that was closed was in time")
	}
	if done := w.Done(); done[1].Offset != 21 {
		t.Errorf("done up to %v", done)
	}
}

// One click of the future ends every window, and all that comes after it is late.
func TestFuture(t *testing.T) {
	w := windowedaggregation.NewWindows()
	w.Add(record(0, 1, 0, "/cart"))
	w.Add(record(0, 2, time.Hour, "/cart"))
	if counts := w.Closed(); len(counts) != 1 {
		t.Errorf("closed %v", counts)
	}
	if w.Add(record(0, 3, time.Second, "/cart")) {
		t.Error("a click of now was in time")
	}
	if done := w.Done(); done[0].Offset != 2 {
		t.Errorf("done up to %v; the window of the future is open", done)
	}
}
