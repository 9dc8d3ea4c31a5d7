package sinks

import (
	"strings"
	"testing"
)

// Beside takes nothing away from the process that has the same settings.
func TestBeside(t *testing.T) {
	polls, efo := NewKinesis(), NewKinesis()
	polls.Stream, efo.Stream = "s", "s"
	efo.EnhancedFanOut = &FanOut{Consumer: "c"}
	if got, err := Beside(polls); got != Config(polls) || err != nil {
		t.Errorf("polling: %v, %v", got, err)
	}
	got, err := Beside(efo)
	if k, ok := got.(*Kinesis); !ok || err != nil || k.EnhancedFanOut != nil || k.Stream != "s" || efo.EnhancedFanOut == nil {
		t.Errorf("enhanced fan-out: %+v, %v", got, err)
	}
	shared, own := NewNATS(), NewNATS()
	own.Dedicated = true
	if got, err := Beside(shared); got != Config(shared) || err != nil {
		t.Errorf("a stream that is shared: %v, %v", got, err)
	}
	if _, err := Beside(own); err == nil || !strings.Contains(err.Error(), "dedicated: true takes messages out of the queue") {
		t.Errorf("a dedicated stream: %v", err)
	}
	// Every kind of sink can be asked; its defaults take nothing out, except where a queue can be read in no other way.
	for _, kind := range Kinds() {
		c, _ := New(kind)
		if _, err := Beside(c); (err != nil) != (kind == "sqs") {
			t.Errorf("%s: %v", kind, err)
		}
	}
}
