package sinks

import (
	"bytes"
	"crypto/md5" // #nosec G501 -- the format's own check code; nothing is kept secret by it

	"google.golang.org/protobuf/encoding/protowire"
)

// kplMagic is how an aggregated record of the Kinesis Producer Library begins. A Protobuf message
// AggregatedRecord follows, and then the 16 bytes of its MD5. The format is public:
// amazon-kinesis-producer, aggregation-format.md.
var kplMagic = []byte{0xF3, 0x89, 0x9A, 0xC2}

// Field numbers of AggregatedRecord and of the Record inside it.
const (
	kplRecords    = 3
	kplRecordData = 3
)

// unaggregate returns the message inside an aggregated record, and how many user records it holds. It
// reports false for a record that is none: one without the magic, with a wrong MD5, or whose message
// does not parse or holds no record. Such a record is an ordinary one, whatever its first bytes.
func unaggregate(data []byte) (message []byte, count int, ok bool) {
	if len(data) < len(kplMagic)+md5.Size || !bytes.HasPrefix(data, kplMagic) {
		return nil, 0, false
	}
	message, sum := data[len(kplMagic):len(data)-md5.Size], data[len(data)-md5.Size:]
	if got := md5.Sum(message); !bytes.Equal(got[:], sum) { // #nosec G401 -- see the import
		return nil, 0, false
	}
	ok = eachField(message, func(num protowire.Number, record []byte) bool {
		if num != kplRecords {
			return true
		}
		count++
		return eachField(record, func(protowire.Number, []byte) bool { return true })
	})
	return message, count, ok && count > 0
}

// eachRecord calls f with the data of each user record in a message that unaggregate has accepted. The
// data is a slice of the message.
func eachRecord(message []byte, f func(index int, data []byte)) {
	i := 0
	eachField(message, func(num protowire.Number, record []byte) bool {
		if num != kplRecords {
			return true
		}
		var data []byte
		eachField(record, func(num protowire.Number, b []byte) bool {
			if num == kplRecordData {
				data = b
			}
			return true
		})
		f(i, data)
		i++
		return true
	})
}

// eachField calls f with each length-delimited field of a Protobuf message and skips the others, known
// or not. It reports whether the message parses to its end and f never returned false.
func eachField(message []byte, f func(num protowire.Number, b []byte) bool) bool {
	for len(message) > 0 {
		num, kind, n := protowire.ConsumeTag(message)
		if n < 0 {
			return false
		}
		message = message[n:]
		if kind != protowire.BytesType {
			if n = protowire.ConsumeFieldValue(num, kind, message); n < 0 {
				return false
			}
			message = message[n:]
			continue
		}
		b, n := protowire.ConsumeBytes(message)
		if n < 0 {
			return false
		}
		message = message[n:]
		if !f(num, b) {
			return false
		}
	}
	return true
}
