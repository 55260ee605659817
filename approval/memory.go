package approval

import (
	"bytes"
	"sync/atomic"

	"github.com/hallpass/hallpass/policy"
)

// Memory remembers how the records that every command and call looks at read, and
// the bytes that they were read from. The same bytes read the same, so whoever
// has a memory and whoever has none come to the same, the one sooner. The zero
// Memory is ready; it may be used from several goroutines. What it gives MUST NOT
// be changed.
type Memory struct {
	meta   atomic.Pointer[remembered[meta]]
	policy atomic.Pointer[remembered[*policy.Policy]]
	person atomic.Pointer[remembered[Person]] // of the one asked for last
}

// remembered is what bytes read as.
type remembered[T any] struct {
	data []byte
	read T
}

// Read returns the state in r.
func (m *Memory) Read(r Reader) State { return State{r: r, memory: m} }

// recall reads the record at key by read, or remembers it; false when there is
// none.
func recall[T any](place *atomic.Pointer[remembered[T]], r Reader, key []byte, read func(data []byte) (T, error)) (T, bool, error) {
	data := r.Get(key)
	if data == nil {
		var none T
		return none, false, nil
	}
	if last := place.Load(); last != nil && bytes.Equal(last.data, data) {
		return last.read, true, nil
	}
	v, err := read(data)
	if err != nil {
		return v, false, storedAt(key, err)
	}
	place.Store(&remembered[T]{data: bytes.Clone(data), read: v})
	return v, true, nil
}

func decodeMeta(data []byte) (meta, error) { return decoded[meta](data) }

// decodePolicy reads a stored policy. One that cannot be read denies everything.
func decodePolicy(data []byte) (*policy.Policy, error) {
	doc, err := decoded[PolicyDoc](data)
	if err != nil {
		return nil, err
	}
	p, err := policy.Parse([]byte(doc.YAML))
	if err != nil {
		p = &policy.Policy{}
	}
	return p, nil
}

func decodePerson(data []byte) (Person, error) { return decoded[Person](data) }

func decoded[T any](data []byte) (v T, err error) {
	err = decoder.Unmarshal(data, &v)
	return v, err
}
