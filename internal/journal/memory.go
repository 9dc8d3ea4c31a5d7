package journal

import "time"

// Memory is a Journal without a file, for simulations. The zero value is empty. It is not safe for
// concurrent use.
type Memory struct {
	at      time.Time
	entries map[string][]byte
}

// Write makes the changes of the batch.
func (m *Memory) Write(b *Batch) error {
	if b.err != nil {
		return b.err
	}
	if b.all || m.entries == nil {
		m.entries = make(map[string][]byte)
	}
	for _, p := range b.puts {
		if key := string(b.keyOf(p)); p.value == p.end {
			delete(m.entries, key)
		} else {
			m.entries[key] = append(m.entries[key][:0], b.valueOf(p)...)
		}
	}
	m.at = b.gathered()
	return nil
}

// Close does nothing.
func (m *Memory) Close() error { return nil }

// State returns what has been written.
func (m *Memory) State() (*State, error) {
	s := &State{At: m.at, Sinks: make(map[string]Sink)}
	for key, value := range m.entries {
		if err := s.add([]byte(key), value); err != nil {
			return nil, err
		}
	}
	return s, nil
}
