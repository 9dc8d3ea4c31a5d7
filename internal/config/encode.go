package config

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"hash"
	"reflect"
	"slices"
	"strconv"

	"gopkg.in/yaml.v3"
)

// encode is the opposite of decoder.value: it returns the node that decodes to v over the default
// def, which may be invalid. It writes zero values too, where the default is another one; yaml.v3's
// omitempty would lose them. It returns nil for what need not be written.
func (l layouts) encode(v, def reflect.Value) *yaml.Node {
	if e, ok := v.Interface().(nodeEncoder); ok {
		return e.encodeNode(l)
	}
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			return nil
		}
		if def.IsValid() && !def.IsNil() {
			def = def.Elem()
		} else {
			def = reflect.Zero(v.Type().Elem())
		}
		n := l.encode(v.Elem(), def)
		if n == nil && v.Elem().Kind() == reflect.Struct {
			n = &yaml.Node{Kind: yaml.MappingNode}
		} else if n == nil {
			n = scalarNode(v.Elem())
		}
		return n
	case reflect.Interface:
		if v.IsNil() {
			return nil
		}
		return l.encode(v.Elem(), reflect.Value{})
	}
	if v.IsZero() && (!def.IsValid() || def.IsZero()) {
		return nil
	}
	if m, ok := v.Interface().(yaml.Marshaler); ok {
		out, err := m.MarshalYAML()
		if err != nil || out == nil {
			return nil
		}
		return scalarNode(reflect.ValueOf(out))
	}
	switch v.Kind() {
	case reflect.Struct:
		n := &yaml.Node{Kind: yaml.MappingNode}
		for _, f := range l.of(v.Type()) {
			fv, err := v.FieldByIndexErr(f.index)
			if err != nil {
				continue
			}
			var fd reflect.Value
			if def.IsValid() {
				fd, _ = def.FieldByIndexErr(f.index)
			}
			add(n, f.name, l.encode(fv, fd))
		}
		return n
	case reflect.Map:
		n := &yaml.Node{Kind: yaml.MappingNode}
		keys := v.MapKeys()
		slices.SortFunc(keys, func(a, b reflect.Value) int {
			if a.String() < b.String() {
				return -1
			}
			return 1
		})
		for _, k := range keys {
			c := l.encode(v.MapIndex(k), reflect.Value{})
			if c == nil {
				c = scalarNode(v.MapIndex(k))
			}
			add(n, k.String(), c)
		}
		return n
	case reflect.Slice:
		n := &yaml.Node{Kind: yaml.SequenceNode}
		for i := range v.Len() {
			c := l.encode(v.Index(i), reflect.Value{})
			if c == nil {
				c = scalarNode(v.Index(i))
			}
			n.Content = append(n.Content, c)
		}
		return n
	}
	return scalarNode(v)
}

type nodeEncoder interface{ encodeNode(l layouts) *yaml.Node }

func scalarNode(v reflect.Value) *yaml.Node {
	n := &yaml.Node{Kind: yaml.ScalarNode}
	// yaml.v3 makes an encoder with large buffers for each value.
	switch v.Kind() {
	case reflect.String:
		n.SetString(v.String())
	case reflect.Bool:
		n.Tag, n.Value = "!!bool", strconv.FormatBool(v.Bool())
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		n.Tag, n.Value = "!!int", strconv.FormatInt(v.Int(), 10)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		n.Tag, n.Value = "!!int", strconv.FormatUint(v.Uint(), 10)
	default:
		if err := n.Encode(v.Interface()); err != nil {
			n.SetString("")
		}
	}
	return n
}

func add(n *yaml.Node, key string, value *yaml.Node) {
	if value == nil {
		return
	}
	k := new(yaml.Node)
	k.SetString(key)
	n.Content = append(n.Content, k, value)
}

// fingerprint returns a hash of what the node says, without the given keys of its mapping.
func fingerprint(n *yaml.Node, without ...string) string {
	h := sha256.New()
	hashNode(h, n, without)
	return hex.EncodeToString(h.Sum(nil)[:16])
}

func hashNode(h hash.Hash, n *yaml.Node, without []string) {
	var head [9]byte
	head[0] = byte(n.Kind)
	binary.BigEndian.PutUint64(head[1:], uint64(len(n.Value)))
	h.Write(head[:])
	h.Write([]byte(n.Value))
	h.Write([]byte(n.ShortTag()))
	for i := 0; i < len(n.Content); i++ {
		if i%2 == 0 && n.Kind == yaml.MappingNode && slices.Contains(without, n.Content[i].Value) {
			i++
			continue
		}
		hashNode(h, n.Content[i], nil)
	}
	h.Write([]byte{0xff})
}
