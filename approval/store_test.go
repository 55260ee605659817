package approval

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// memory is a Tx over sorted keys. It hands out copies, so that whoever keeps or
// changes a slice is found out, and counts what it is asked.
type memory struct {
	all           map[string]string
	sorted        []string
	records       []string
	reads, writes int
}

func newMemory() *memory { return &memory{all: map[string]string{}} }

func (m *memory) Get(key []byte) []byte {
	m.reads++
	v, ok := m.all[string(key)]
	if !ok {
		return nil
	}
	return []byte(v)
}

func (m *memory) Scan(prefix, from []byte, fn func(k, v []byte) bool) {
	start := prefix
	if bytes.Compare(from, prefix) > 0 {
		start = from
	}
	i, _ := slices.BinarySearch(m.sorted, string(start))
	for _, k := range m.sorted[i:] {
		m.reads++
		if !strings.HasPrefix(k, string(prefix)) || !fn([]byte(k), []byte(m.all[k])) {
			return
		}
	}
}

func (m *memory) Put(key, value []byte) {
	m.writes++
	if i, ok := slices.BinarySearch(m.sorted, string(key)); !ok {
		m.sorted = slices.Insert(m.sorted, i, string(key))
	}
	m.all[string(key)] = string(value)
}

func (m *memory) Delete(key []byte) {
	m.writes++
	if i, ok := slices.BinarySearch(m.sorted, string(key)); ok {
		m.sorted = slices.Delete(m.sorted, i, i+1)
	}
	delete(m.all, string(key))
}

func (m *memory) Append(record []byte) {
	m.writes++
	m.records = append(m.records, string(record))
}

// body returns the body of an audit leaf.
func (m *memory) body(index int64) ([]byte, error) {
	if index < 0 || index >= int64(len(m.records)) {
		return nil, fmt.Errorf("there are %d records", len(m.records))
	}
	return []byte(m.records[index]), nil
}

// check returns what is wrong with the state or its records.
func (m *memory) check() error {
	if err := CheckInvariants(m); err != nil {
		return err
	}
	if size, err := Read(m).AuditSize(); err != nil || size != int64(len(m.records)) {
		return fmt.Errorf("%w: %d records, %d audit leaves, %w", ErrInvariant, len(m.records), size, err)
	}
	return CheckAudit(m, m.body)
}

func (m *memory) clone() *memory {
	return &memory{all: maps.Clone(m.all), sorted: slices.Clone(m.sorted), records: slices.Clone(m.records)}
}

// fingerprint is a hash over all keys and values in order, and the records.
func (m *memory) fingerprint() string {
	var b bytes.Buffer
	m.Scan(nil, nil, func(k, v []byte) bool {
		fmt.Fprintf(&b, "%d:%s%d:%s", len(k), k, len(v), v)
		return true
	})
	for _, r := range m.records {
		fmt.Fprintf(&b, "%d=%s", len(r), r)
	}
	return sha256Hex(b.Bytes())
}
