package conn

import (
	"fmt"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// Answers are taken apart in every spoken version as the brokers put them together.
func TestKafkaGroupAnswers(t *testing.T) {
	for v := int16(2); v <= 5; v++ {
		resp := kmsg.NewPtrOffsetFetchResponse()
		resp.Version = v
		topic := kmsg.NewOffsetFetchResponseTopic()
		topic.Topic = "t"
		for id, offset := range []int64{7, -1} {
			p := kmsg.NewOffsetFetchResponseTopicPartition()
			p.Partition, p.Offset, p.Metadata = int32(id), offset, kmsg.StringPtr("m")
			topic.Partitions = append(topic.Partitions, p)
		}
		resp.Topics = append(resp.Topics, topic)
		got, err := readCommitted(NewKafkaReader(resp.AppendTo(nil), false), v)
		if err != nil || fmt.Sprint(got) != "map[t:map[0:7]]" {
			t.Errorf("version %d: %v, %v", v, got, err)
		}
		resp.ErrorCode = 30
		if _, err := readCommitted(NewKafkaReader(resp.AppendTo(nil), false), v); ClassOf(err) != Auth {
			t.Errorf("version %d: %v of class %s", v, err, ClassOf(err))
		}
	}
	a := kmsg.ConsumerMemberAssignment{Topics: []kmsg.ConsumerMemberAssignmentTopic{{Topic: "t", Partitions: []int32{3}}}, UserData: []byte("x")}
	for v := range int16(5) {
		for _, c := range []struct{ state, protocol, want string }{
			{"Stable", "consumer", "&{Stable 2 map[t:map[3:true]]}"},
			{"Stable", "connect", "&{Stable 2 map[]}"},
			{"PreparingRebalance", "consumer", "&{PreparingRebalance 2 map[]}"},
		} {
			resp := kmsg.NewPtrDescribeGroupsResponse()
			resp.Version = v
			g := kmsg.NewDescribeGroupsResponseGroup()
			g.Group, g.State, g.ProtocolType, g.Protocol = "g", c.state, c.protocol, "range"
			one, other := kmsg.NewDescribeGroupsResponseGroupMember(), kmsg.NewDescribeGroupsResponseGroupMember()
			one.MemberID, one.ProtocolMetadata, one.MemberAssignment = "m", []byte("metadata"), a.AppendTo(nil)
			g.Members = append(g.Members, one, other)
			resp.Groups = append(resp.Groups, g)
			got, err := readClassicGroup(NewKafkaReader(resp.AppendTo(nil), false), v)
			if err != nil || fmt.Sprint(got) != c.want || (got.Assigned == nil) != (c.want[len(c.want)-6:] == "map[]}") {
				t.Errorf("version %d, %s %s: %v, %v", v, c.state, c.protocol, got, err)
			}
		}
	}
	resp := kmsg.NewPtrConsumerGroupDescribeResponse()
	g := kmsg.NewConsumerGroupDescribeResponseGroup()
	g.Group, g.State = "g", "Stable"
	m := kmsg.NewConsumerGroupDescribeResponseGroupMember()
	m.MemberID, m.SubscribedTopics = "m", []string{"t", "u"}
	for i, to := range []*kmsg.Assignment{&m.Assignment, &m.TargetAssignment} {
		to.TopicPartitions = []kmsg.AssignmentTopicPartition{{Topic: "t", Partitions: []int32{int32(i), 7}}}
	}
	g.Members = append(g.Members, m)
	resp.Groups = append(resp.Groups, g)
	if got, err := readNewGroup(NewKafkaReader(resp.AppendTo(nil), true)); err != nil || fmt.Sprint(got) != "&{Stable 1 map[t:map[0:true 7:true]]}" {
		t.Errorf("new group: %v, %v", got, err)
	}
	// No group is one without members; a coordinator that does not know is none.
	for code, class := range map[int16]Class{69: "", 35: "", 16: Other, 30: Auth} {
		resp.Groups[0] = kmsg.NewConsumerGroupDescribeResponseGroup()
		resp.Groups[0].ErrorCode = code
		got, err := readNewGroup(NewKafkaReader(resp.AppendTo(nil), true))
		if (err == nil) != (class == "") || err == nil && (got.State != kafkaDead || got.Members != 0) || err != nil && ClassOf(err) != class {
			t.Errorf("code %d: %v, %v of class %s", code, got, err, ClassOf(err))
		}
	}
}

func FuzzKafkaGroups(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x00\x00\x00\x00\x01\x00\x01t\x00\x00\x00\x01\x00\x00\x00\x00"), uint8(3))
	f.Fuzz(func(t *testing.T, b []byte, version uint8) {
		if got, err := readCommitted(NewKafkaReader(b, false), 2+int16(version%4)); err == nil {
			for topic, offsets := range got {
				for p, o := range offsets {
					if o < 0 {
						t.Errorf("offset %d of %q, partition %d", o, topic, p)
					}
				}
			}
		}
		if g, err := readClassicGroup(NewKafkaReader(b, false), int16(version%5)); err == nil && g.Members > len(b) {
			t.Errorf("%d members in %d bytes", g.Members, len(b))
		}
		if g, err := readNewGroup(NewKafkaReader(b, true)); err == nil && g.Members > len(b) {
			t.Errorf("%d members in %d bytes", g.Members, len(b))
		}
	})
}
