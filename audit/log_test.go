package audit_test

import (
	"errors"
	"fmt"
	"testing"

	"golang.org/x/mod/sumdb/tlog"
	"pgregory.net/rapid"

	"github.com/hallpass/hallpass/audit"
)

// history is a log with its bodies, as a node holds it.
type history struct {
	store  audit.Memory
	bodies [][]byte
}

func (h *history) size() int64 { return int64(len(h.bodies)) }

type fataler interface {
	Helper()
	Fatal(args ...any)
}

func newHistory(t fataler, entries int) *history {
	t.Helper()
	h := &history{}
	for i := range entries {
		e := sample()
		e.Object = fmt.Sprintf("object %d", i)
		body, size, err := audit.AppendEntry(&h.store, h.size(), e)
		if err != nil {
			t.Fatal(err)
		}
		h.bodies = append(h.bodies, body)
		if size != h.size() {
			t.Fatal("size after append:", size)
		}
	}
	return h
}

func (h *history) checkpoint(t fataler, size int64) audit.Checkpoint {
	t.Helper()
	root, err := audit.Root(&h.store, size)
	if err != nil {
		t.Fatal(err)
	}
	return audit.Checkpoint{Origin: audit.Origin("acme.test", 1), Size: size, Root: root}
}

func TestAppendEntryNumbersEntries(t *testing.T) {
	h := newHistory(t, 3)
	for i, body := range h.bodies {
		e, err := audit.ParseEntry(body)
		if err != nil {
			t.Fatal(err)
		}
		if e.Index != uint64(i) {
			t.Errorf("entry %d has index %d", i, e.Index)
		}
	}
}

func TestAppendRefuses(t *testing.T) {
	for _, c := range []struct {
		name string
		size int64
		body []byte
		want error
	}{
		{"a negative size", -1, []byte("{}"), audit.ErrRange},
		{"a full log", audit.MaxSize, []byte("{}"), audit.ErrRange},
		{"an empty body", 0, nil, audit.ErrEntry},
		{"an endless body", 0, make([]byte, audit.MaxBody+1), audit.ErrEntry},
		{"a log whose hashes are gone", 3, []byte("{}"), audit.ErrStorage},
	} {
		t.Run(c.name, func(t *testing.T) {
			var store audit.Memory
			size, err := audit.Append(&store, c.size, c.body)
			if !errors.Is(err, c.want) || size != c.size {
				t.Errorf("Append = %d, %v; want the old size and %v", size, err, c.want)
			}
			if _, ok := store.GetHash(0); ok {
				t.Error("something was written")
			}
		})
	}
	if _, _, err := audit.AppendEntry(&audit.Memory{}, -1, sample()); !errors.Is(err, audit.ErrRange) {
		t.Errorf("AppendEntry at -1: %v", err)
	}
	if _, _, err := audit.AppendEntry(&audit.Memory{}, 0, audit.Entry{}); !errors.Is(err, audit.ErrEntry) {
		t.Errorf("AppendEntry of nothing: %v", err)
	}
	if _, _, err := audit.AppendEntry(&audit.Memory{}, 1, sample()); !errors.Is(err, audit.ErrStorage) {
		t.Errorf("AppendEntry without its log: %v", err)
	}
}

func TestProofRanges(t *testing.T) {
	h := newHistory(t, 4)
	head := h.checkpoint(t, 4)
	for name, err := range map[string]error{
		"root below":              second(audit.Root(&h.store, -1)),
		"root of more than any":   second(audit.Root(&h.store, audit.MaxSize+1)),
		"inclusion beyond":        second(audit.InclusionProof(&h.store, 4, 4)),
		"inclusion below":         second(audit.InclusionProof(&h.store, 4, -1)),
		"inclusion, size below":   second(audit.InclusionProof(&h.store, -4, 0)),
		"consistency backwards":   second(audit.ConsistencyProof(&h.store, 4, 3)),
		"consistency below":       second(audit.ConsistencyProof(&h.store, -1, 3)),
		"check inclusion beyond":  audit.CheckInclusion(head, 4, h.bodies[0], nil),
		"check inclusion huge":    audit.CheckInclusion(audit.Checkpoint{Size: 1<<63 - 1}, 0, h.bodies[0], nil),
		"check consistency back":  audit.CheckConsistency(head, h.checkpoint(t, 3), nil),
		"check consistency huge":  audit.CheckConsistency(head, audit.Checkpoint{Size: 1<<63 - 1}, nil),
		"check consistency below": audit.CheckConsistency(audit.Checkpoint{Size: -1}, head, nil),
	} {
		if !errors.Is(err, audit.ErrRange) {
			t.Errorf("%s: %v, want ErrRange", name, err)
		}
	}
	for name, err := range map[string]error{
		"root":        second(audit.Root(&h.store, 9)),
		"inclusion":   second(audit.InclusionProof(&h.store, 9, 0)),
		"consistency": second(audit.ConsistencyProof(&h.store, 3, 9)),
	} {
		if !errors.Is(err, audit.ErrStorage) {
			t.Errorf("%s past what is stored: %v, want ErrStorage", name, err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

func TestProofsHoldForEveryEntryAndSize(t *testing.T) {
	const entries = 33
	h := newHistory(t, entries)
	for size := int64(0); size <= entries; size++ {
		head := h.checkpoint(t, size)
		for i := range size {
			proof, err := audit.InclusionProof(&h.store, size, i)
			if err != nil {
				t.Fatal(err)
			}
			if err := audit.CheckInclusion(head, i, h.bodies[i], proof); err != nil {
				t.Errorf("entry %d of %d: %v", i, size, err)
			}
		}
		for older := range size + 1 {
			proof, err := audit.ConsistencyProof(&h.store, older, size)
			if err != nil {
				t.Fatal(err)
			}
			if err := audit.CheckConsistency(h.checkpoint(t, older), head, proof); err != nil {
				t.Errorf("%d is a prefix of %d: %v", older, size, err)
			}
		}
	}
}

func TestProofsProveNothingElse(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.Int64Range(2, 40).Draw(t, "size")
		index := rapid.Int64Range(0, size-1).Draw(t, "index")
		older := rapid.Int64Range(1, size-1).Draw(t, "older")
		h := newHistory(t, int(size))
		head := h.checkpoint(t, size)
		inclusion, err1 := audit.InclusionProof(&h.store, size, index)
		consistency, err2 := audit.ConsistencyProof(&h.store, older, size)
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}

		other := rapid.Int64Range(0, size-1).Filter(func(i int64) bool { return i != index }).Draw(t, "other")
		wantProofError(t, "another body", audit.CheckInclusion(head, index, h.bodies[other], inclusion))
		wantProofError(t, "another place", audit.CheckInclusion(head, other, h.bodies[index], inclusion))
		wantProofError(t, "another root", audit.CheckInclusion(h.checkpoint(t, 1), 0, h.bodies[index], inclusion))
		wantProofError(t, "a bent proof", audit.CheckInclusion(head, index, h.bodies[index], bend(t, inclusion)))

		past := h.checkpoint(t, older)
		wantProofError(t, "a bent consistency proof", audit.CheckConsistency(past, head, bend(t, consistency)))
		past.Root[0] ^= 1
		wantProofError(t, "another past", audit.CheckConsistency(past, head, consistency))
		past.Size = size
		wantProofError(t, "another present", audit.CheckConsistency(past, head, nil))
		past.Size = 0
		wantProofError(t, "another nothing", audit.CheckConsistency(past, head, nil))
		wantProofError(t, "a proof where none belongs", audit.CheckConsistency(head, head, []tlog.Hash{{}}))
	})
}

func wantProofError(t *rapid.T, what string, err error) {
	if !errors.Is(err, audit.ErrProof) {
		t.Fatalf("%s: %v, want ErrProof", what, err)
	}
}

// bend returns a proof that differs from p in one bit or in its length.
func bend(t *rapid.T, p []tlog.Hash) []tlog.Hash {
	bent := append([]tlog.Hash(nil), p...)
	at := rapid.IntRange(0, len(p)).Draw(t, "bend at")
	if at == len(p) {
		return append(bent, tlog.Hash{1})
	}
	if rapid.Bool().Draw(t, "shorten") {
		return append(bent[:at], bent[at+1:]...)
	}
	bit := rapid.IntRange(0, 8*tlog.HashSize-1).Draw(t, "bit")
	bent[at][bit/8] ^= 1 << (bit % 8)
	return bent
}

func TestMemory(t *testing.T) {
	var m audit.Memory
	m.PutHash(1, tlog.Hash{1}) // a gap
	m.PutHash(-1, tlog.Hash{1})
	if _, ok := m.GetHash(0); ok {
		t.Error("a hash after a gap was kept")
	}
	m.PutHash(0, tlog.Hash{2})
	m.PutHash(0, tlog.Hash{3})
	if h, ok := m.GetHash(0); !ok || h != (tlog.Hash{3}) {
		t.Errorf("GetHash(0) = %v, %v", h, ok)
	}
	for _, i := range []int64{-1, 1} {
		if _, ok := m.GetHash(i); ok {
			t.Errorf("GetHash(%d) found something", i)
		}
	}
}

func BenchmarkAppend(b *testing.B) {
	var store audit.Memory
	var size int64
	e := sample()
	for b.Loop() {
		_, next, err := audit.AppendEntry(&store, size, e)
		if err != nil {
			b.Fatal(err)
		}
		size = next
	}
}
