package tracing

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"maps"
	"slices"
	"strings"
	"time"

	commonpb "go.opentelemetry.io/proto/slim/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/slim/otlp/trace/v1"
)

// maxText bounds a text that comes from outside, in bytes.
const maxText = 1000

// spans appends the spans of the heartbeat to dst: its own with the injection below it, where both are
// told, and one for each station. by is the instance of the process that tells.
func (h *Heartbeat) spans(dst []*tracepb.Span, by uint64) []*tracepb.Span {
	id := h.Trace.ID[:]
	if in := h.Injection; in != nil {
		root := &tracepb.Span{
			TraceId: id, SpanId: h.Trace.Root[:], Flags: flags, Name: "heartbeat", Kind: tracepb.Span_SPAN_KIND_INTERNAL,
			StartTimeUnixNano: nano(h.Sent), EndTimeUnixNano: nano(h.end()), Status: h.status(),
			Attributes: append(h.attributes(), text("lag_monitor.outcome", string(h.Outcome())), text("lag_monitor.result", in.Result)),
		}
		for _, name := range slices.Sorted(maps.Keys(h.Labels)) {
			root.Attributes = append(root.Attributes, text("lag_monitor.label."+name, h.Labels[name]))
		}
		inject := &tracepb.Span{
			TraceId: id, SpanId: h.Trace.Injection[:], ParentSpanId: h.Trace.Root[:], Flags: flags, Name: "inject", Kind: tracepb.Span_SPAN_KIND_PRODUCER,
			StartTimeUnixNano: nano(h.Sent), EndTimeUnixNano: nano(h.Sent.Add(in.Took)),
			Attributes: []*commonpb.KeyValue{text("lag_monitor.probe", h.Probe), text("lag_monitor.head.kind", in.Kind), text("lag_monitor.result", in.Result)},
		}
		if in.Kind == "http" {
			inject.Kind = tracepb.Span_SPAN_KIND_CLIENT
		}
		if in.Error != "" {
			inject.Status = failed(in.Error)
		}
		dst = append(dst, root, inject)
	}
	for i := range h.Stations {
		s := &h.Stations[i]
		span := &tracepb.Span{
			TraceId: id, SpanId: h.stationID(s, by), ParentSpanId: h.Trace.Root[:], Flags: flags, Name: "arrive", Kind: tracepb.Span_SPAN_KIND_CONSUMER,
			StartTimeUnixNano: nano(earlier(s.Left, s.At)), EndTimeUnixNano: nano(s.At), Status: s.status(),
			Attributes: []*commonpb.KeyValue{text("lag_monitor.probe", h.Probe), text("lag_monitor.sink", s.Sink), text("lag_monitor.sink.kind", s.Kind),
				text("lag_monitor.sink.role", s.Role), text("lag_monitor.from", s.From), text("lag_monitor.outcome", string(s.Outcome))},
		}
		if s.Reason != "" {
			span.Attributes = append(span.Attributes, text("lag_monitor.reason", s.Reason))
		}
		if s.Arrived {
			span.Attributes = append(span.Attributes, number("lag_monitor.latency_seconds", s.Latency.Seconds()))
		}
		if h.Injection == nil { // whoever looks at this one alone wants to know whose it is
			span.Attributes = append(span.Attributes, h.attributes()[1:]...)
		}
		dst = append(dst, span)
	}
	return dst
}

// flags are those of the W3C in the lowest byte: sampled. The next two bits say that the parent is known
// to be of another process (0b11) or of this one (0b10): it is known not to be remote.
const flags = uint32(tracepb.SpanFlags_SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK) | 1

// attributes say which heartbeat it is.
func (h *Heartbeat) attributes() []*commonpb.KeyValue {
	return []*commonpb.KeyValue{
		text("lag_monitor.probe", h.Probe), whole("lag_monitor.lane", int64(h.Lane)), whole("lag_monitor.seq", int64(h.Seq)),
		text("lag_monitor.epoch", hex64(h.Epoch)), text("lag_monitor.instance", hex64(h.Instance)),
		text("lag_monitor.due", h.Sent.Add(h.Expiry).UTC().Format(time.RFC3339Nano)),
		number("lag_monitor.expiry_seconds", h.Expiry.Seconds()),
	}
}

// stationID is the same whenever the same process tells of the same outcome at the same sink, so that
// nothing is shown twice, and another one for what comes later: one that was dropped may still arrive.
func (h *Heartbeat) stationID(s *Station, by uint64) []byte {
	b := append(h.Trace.ID[:], h.Trace.Root[:]...)
	b = binary.BigEndian.AppendUint64(b, by)
	b = append(b, s.Outcome...)
	sum := sha256.Sum256(append(append(b, 0), s.Sink...))
	return sum[:8]
}

// status is an error when somebody's message would have been lost, or was not taken.
func (h *Heartbeat) status() *tracepb.Status {
	if h.Outcome() == NotSent {
		return failed("the head refused it: " + h.Injection.Error)
	}
	for i := range h.Stations {
		if s := h.Stations[i].status(); s != nil {
			return s
		}
	}
	return nil
}

func (s *Station) status() *tracepb.Status {
	switch s.Outcome {
	case Dropped:
		return failed("dropped between " + s.From + " and " + s.Sink + ": " + s.Reason)
	case Late:
		return failed("came out of " + s.Sink + " after its deadline")
	case DeadLettered:
		return failed("found in the dead-letter queue " + s.Sink)
	}
	return nil
}

func failed(why string) *tracepb.Status {
	return &tracepb.Status{Code: tracepb.Status_STATUS_CODE_ERROR, Message: clean(why)}
}

// clean makes a text fit for a protobuf, which takes nothing but UTF-8, and for a line on a page.
func clean(s string) string {
	if len(s) > maxText {
		s = s[:maxText] + "…"
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, ""))
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func nano(t time.Time) uint64 { return uint64(max(0, t.UnixNano())) }

func hex64(v uint64) string {
	return hex.EncodeToString(binary.BigEndian.AppendUint64(nil, v))
}

func text(key, v string) *commonpb.KeyValue {
	return &commonpb.KeyValue{Key: clean(key), Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: clean(v)}}}
}

func whole(key string, v int64) *commonpb.KeyValue {
	return &commonpb.KeyValue{Key: key, Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_IntValue{IntValue: v}}}
}

func number(key string, v float64) *commonpb.KeyValue {
	return &commonpb.KeyValue{Key: key, Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_DoubleValue{DoubleValue: v}}}
}
